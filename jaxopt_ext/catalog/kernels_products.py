"""Rows of the dense kernels."""

from .rows import Row

KERNELS_PRODUCTS: tuple[Row, ...] = ()
