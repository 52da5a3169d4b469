"""Comparisons with other libraries: same machine, same run, same tolerance on the same residual.

Each module defines `TITLE` and `run() -> list[dict]`, the rows of one table.
"""
