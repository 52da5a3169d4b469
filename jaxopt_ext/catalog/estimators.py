"""Rows of the estimators."""

from .row import Row

ESTIMATORS: tuple[Row, ...] = ()
