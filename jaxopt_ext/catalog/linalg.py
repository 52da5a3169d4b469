"""Rows of the matrix functions."""

from .rows import Row

LINALG: tuple[Row, ...] = ()
