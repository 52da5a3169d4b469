"""A matrix as a table with colours."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .figure import axes, names, numbers


def heatmap(
    matrix: Any,
    *,
    rows: Sequence[Any] | None = None,
    columns: Sequence[Any] | None = None,
    format: str | None = None,
    ax: Any = None,
) -> Any:
    """A matrix with a colour and a number in each cell, black or white, whichever is readable.

    **Arguments:**

    - `matrix`: shape `(m, n)`: rules against attacks, true against predicted classes. A cell that
      is not finite has no colour.
    - `rows`, `columns`: m and n names; positions if `None`.
    - `format`: of the numbers, as in `format(1.5, ".2f")`; if `None`, all digits of integers and
      three of others.
    - `ax`: axes to draw on; a new figure's if `None`.

    **Returns:** the axes.

    **Raises:** `ValueError` on another number of axes, an empty matrix, and another number of
    names; `TypeError` on what is not real; `ImportError` without matplotlib.
    """
    matrix = numbers("matrix", matrix)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"matrix must have shape (m, n) and entries, got {matrix.shape}")
    m, n = matrix.shape
    rows, columns = names("rows", rows, m), names("columns", columns, n)
    matrix = matrix.astype(int) if matrix.dtype == bool else matrix
    if format is None:
        format = ".3g" if np.issubdtype(matrix.dtype, np.floating) else "d"
    texts = [[value.__format__(format) for value in row] for row in matrix.tolist()]

    ax = axes(ax)
    image = ax.imshow(np.ma.masked_invalid(matrix), aspect="auto")
    colours = image.to_rgba(image.get_array())
    for i in range(m):
        for j in range(n):
            ink = "black" if _luminance(colours[i, j]) > 0.179 else "white"
            ax.text(j, i, texts[i][j], ha="center", va="center", color=ink)
    ax.set_xticks(range(n), columns)
    ax.set_yticks(range(m), rows)
    return ax


def _luminance(rgba) -> float:
    """Relative luminance on white paper; black and white contrast equally with 0.179.

    Of sRGB, as the guidelines on accessible contents (WCAG 2.1) define it.
    """
    rgb = rgba[3] * rgba[:3] + (1 - rgba[3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))
