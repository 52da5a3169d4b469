"""Errors against steps."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..core import Solution, checks
from .figure import axes, numbers


def convergence(
    runs: Any, *, every: int = 1, xscale: str = "linear", ylabel: str = "error", ax: Any = None
) -> Any:
    """The errors of one or several solves against the number of steps, on a log axis.

    Entry $i = 0, 1, \\dots$ of a trace stands at step `every * (i + 1)`. Entries behind the last
    step of a solve are not drawn. A zero or a negative entry falls off the lower end of the log
    axis, a NaN leaves a gap.

    **Arguments:**

    - `runs`: a `Solution` of `solve(..., trace=True)`, with a trace of one array of shape
      `(max_steps,)`; under `vmap` `(b, max_steps)`, drawn as b lines of one colour. Or an array
      `(t,)`, such as the `history` of `distributed.run`. Or a dict from names to either; the names
      make the legend.
    - `every`: steps between two entries, such as `record_every` of `distributed.run`.
    - `xscale`: `"log"` makes sublinear rates, $k^{-p}$, straight lines.
    - `ylabel`: what was recorded.
    - `ax`: axes to draw on; a new figure's if `None`.

    **Returns:** the axes.

    **Raises:** `ValueError` on a solution without a trace, on a trace of several arrays, and on
    other dimensions; `TypeError` on what is not real; `ImportError` without matplotlib.
    """
    checks.count("every", every)
    named = isinstance(runs, Mapping)
    lines = {str(k): _lines(str(k), run) for k, run in (runs if named else {"runs": runs}).items()}
    ax = axes(ax)
    for name, traces in lines.items():
        colour = None
        for trace in traces:
            (line,) = ax.plot(every * np.arange(1, len(trace) + 1), trace, color=colour)
            if named and colour is None:
                line.set_label(name)
            colour = line.get_color()
    ax.set(xlabel="step", ylabel=ylabel, xscale=xscale, yscale="log")
    if lines and named:
        ax.legend()
    return ax


def _lines(name: str, run: Any) -> list[np.ndarray]:
    """The traces in `run`, each as long as there were steps."""
    if not isinstance(run, Solution):
        trace = numbers(name, run)
        if trace.ndim != 1:
            raise ValueError(f"{name} must have shape (t,), got {trace.shape}")
        return [trace]
    leaves = jax.tree.leaves(run.trace)
    if not leaves:
        raise ValueError(f"{name} has no trace: solve with trace=True")
    if len(leaves) > 1:
        shapes = [np.shape(leaf) for leaf in leaves]
        raise ValueError(f"{name} has a trace of arrays of shapes {shapes}: pass one of them")
    trace, steps = numbers(name, leaves[0]), np.asarray(run.steps)
    if steps.ndim > 1 or trace.ndim != steps.ndim + 1 or trace.shape[:-1] != steps.shape:
        raise ValueError(
            f"{name} must have a trace of shape (max_steps,), or (b, max_steps) with b numbers of "
            f"steps, got {trace.shape} with steps of shape {steps.shape}"
        )
    rows = zip(np.atleast_2d(trace), np.atleast_1d(steps), strict=True)
    return [row[: int(count)] for row, count in rows]
