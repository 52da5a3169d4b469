"""Rows of what a sequence of matrices or systems is worked on with."""

from .rows import Row

LINALG_SEQUENCES: tuple[Row, ...] = ()
