"""Rows of the samplers."""

from .row import Row

SAMPLERS: tuple[Row, ...] = ()
