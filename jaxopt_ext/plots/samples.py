"""Images, points and paths of particles."""

import math
from typing import Any

import numpy as np

from ..core import checks
from .figure import axes, numbers, pyplot


def samples(
    x: Any,
    *,
    columns: int | None = None,
    limits: tuple[float, float] | None = None,
    ax: Any = None,
) -> Any:
    """Samples as their shape says: a grid of images, a cloud of points, or trajectories.

    - `(n, h, w)`, `(n, h, w, 1)`: n gray images. `(n, h, w, 3)`: n images in red, green and blue.
    - `(n, 2)`: n points of the plane.
    - `(t, n, 2)`: n particles at t times, with marks at both ends. Three axes of which the last
      has length 2 are always that: images of width 2 need the axis of channels.

    **Arguments:**

    - `x`: an array of one of these shapes: the `value` of `diffusion.sample`, or,
      of points of the plane, its `path`.
    - `columns`: of the grid of images; if `None`, as many as make it about square.
    - `limits`: numbers that are black and white (for colours: none and all of it); those beyond
      are clipped. If `None`, the smallest and the largest finite number of all images together.
    - `ax`: axes to draw on; a new figure's if `None`. For images an array of at least n axes, of
      which the first n, row by row, are used; one image takes single axes too.

    **Returns:** the axes; for images the array of axes, `(rows, columns)` of a new figure, else as
    it was given.

    **Raises:** `ValueError` on another shape, on no image, and on too few axes; `TypeError` on
    what is not real; `ImportError` without matplotlib.
    """
    x = numbers("samples", x)
    if x.ndim == 2 and x.shape[1] == 2:
        return _cloud(x, ax)
    if x.ndim == 3 and x.shape[2] == 2:
        return _trajectories(x, ax)
    if x.ndim == 4 and x.shape[3] == 1:
        x = x[..., 0]
    if x.ndim == 3 or (x.ndim == 4 and x.shape[3] == 3):
        return _images(x, columns, limits, ax)
    raise ValueError(
        "samples must have shape (n, h, w), (n, h, w, 1), (n, h, w, 3), (n, 2) or (t, n, 2), "
        f"got {x.shape}"
    )


def _images(x, columns, limits, ax):
    n = len(x)
    if x.size == 0:
        raise ValueError(f"there is no image in samples of shape {x.shape}")
    if columns is None:
        columns = math.ceil(math.sqrt(n))
    checks.count("columns", columns)
    if limits is None:
        finite = x[np.isfinite(x)]
        limits = (finite.min(), finite.max()) if finite.size else (0, 1)
    low, high = float(limits[0]), float(limits[1])
    if not low <= high:
        raise ValueError(f"limits must be ascending, got {limits}")
    if x.ndim == 4:  # matplotlib takes colours between 0 and 1, and scales none of them
        x = np.clip((x - low) / (high - low if high > low else 1), 0, 1)
    if ax is None:
        rows, size = -(-n // columns), 1.2
        grid = pyplot().subplots(
            rows,
            columns,
            squeeze=False,
            layout="constrained",
            figsize=(max(size * columns, 2), max(size * rows, 2)),
        )[1]
        for spare in grid.flat[n:]:
            spare.set_axis_off()
    else:
        grid = np.asarray(ax, dtype=object)
        if grid.size < n:
            raise ValueError(f"{n} images need as many axes, got {grid.size}")
    for image, place in zip(x, grid.flat, strict=False):
        place.imshow(image, cmap="gray", vmin=low, vmax=high)
        place.set_axis_off()
    return grid


def _cloud(x, ax):
    ax = axes(ax)
    ax.scatter(*x.T, s=8, alpha=0.6, linewidths=0)
    ax.set_aspect("equal")
    return ax


def _trajectories(x, ax):
    if len(x) == 0:
        raise ValueError(f"there is no time in trajectories of shape {x.shape}")
    ax = axes(ax)
    from matplotlib.collections import LineCollection

    # One artist for all paths: thousands of particles are usual.
    paths = LineCollection(list(np.swapaxes(x, 0, 1)), colors="gray", linewidths=0.5, alpha=0.5)
    ax.add_collection(paths)
    for time, name in ((0, "start"), (-1, "end")):
        ax.scatter(*x[time].T, s=8, linewidths=0, zorder=2, label=name)
    ax.set_aspect("equal")
    ax.legend()
    return ax
