"""Coefficients against penalties."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core import checks
from .figure import axes, names, numbers


def coefficients_path(
    coefficients: Any, penalties: Any, *, labels: Sequence[str] | None = None, ax: Any = None
) -> Any:
    """One line a coefficient, against the penalty of the fit, on a log axis.

    **Arguments:**

    - `coefficients`: shape `(k, d)`, a row for each penalty: fits under `vmap`.
    - `penalties`: shape `(k,)`, positive, in any order; drawn in ascending order.
    - `labels`: d names for a legend; no legend if `None`.
    - `ax`: axes to draw on; a new figure's if `None`.

    **Returns:** the axes.

    **Raises:** `ValueError` on other shapes, on a penalty that is not positive and finite, and on
    another number of labels; `TypeError` on what is not real; `ImportError` without matplotlib.
    """
    coefficients = numbers("coefficients", coefficients)
    penalties = numbers("penalties", penalties)
    if penalties.ndim != 1 or coefficients.ndim != 2 or len(coefficients) != len(penalties):
        raise ValueError(
            "expected coefficients of shape (k, d) and penalties of shape (k,), got "
            f"{coefficients.shape} and {penalties.shape}"
        )
    checks.positive("penalties", penalties)
    labels = names("labels", labels, coefficients.shape[1])
    order = np.argsort(penalties, kind="stable")
    ax = axes(ax)
    lines = ax.plot(penalties[order], coefficients[order])
    ax.set(xlabel="penalty", ylabel="coefficient", xscale="log")
    if labels:
        ax.legend(lines, labels)
    return ax
