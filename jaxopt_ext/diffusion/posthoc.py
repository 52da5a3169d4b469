r"""Averages of weights of any length, found after training from a few that were kept."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .averages import power_exponent


def _products(t, gamma, other_t, other_gamma):
    r"""$\langle p_i, p_j \rangle$ of $p_i(\tau) = (\gamma_i + 1) \tau^{\gamma_i} /
    t_i^{\gamma_i + 1}$ on $[0, t_i]$."""
    t, gamma = t[:, None], gamma[:, None]
    late = np.maximum(t, other_t)
    power = np.where(t <= other_t, other_gamma, gamma)
    ratio = np.minimum(t, other_t) / late
    scale = (gamma + 1) * (other_gamma + 1) / ((gamma + other_gamma + 1) * late)
    return scale * ratio**power


def posthoc_coefficients(
    steps: Sequence[int] | Float[np.ndarray, " n"],
    widths: Sequence[float] | Float[np.ndarray, " n"],
    step: float,
    width: float,
) -> Float[np.ndarray, " n"]:
    r"""Coefficients of stored averages whose sum is nearest to another average.

    An average of relative width $\sigma_{rel}$ after step $t$ weighs parameters by
    $p(\tau) \propto \tau^\gamma$ up to $t$. The coefficients $x$ minimize
    $\int (\sum_i x_i p_i - p)^2 d\tau$, $A x = b$ with
    $A_{ij} = \langle p_i, p_j \rangle$ and $b_i = \langle p_i, p \rangle$, and are scaled to the
    sum one. On the host, in double precision: $A$ is ill-conditioned.

    **Arguments:**

    - `steps`, `widths`: of the stored averages, one of each for every average.
    - `step`, `width`: of the one that is wanted.

    **Raises:** `ValueError` for widths outside of $(0, 0.2886)$, a step above the last that was
    stored, two averages of the same step and width or nearly so, and other shapes.

    **Reference:** Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the
    Training Dynamics of Diffusion Models, 2024, arXiv:2312.02696.
    """
    t, widths = np.asarray(steps, np.float64), np.asarray(widths, np.float64)
    if t.ndim != 1 or t.shape != widths.shape or not t.size:
        raise ValueError(f"steps and widths must be vectors, got shapes {t.shape, widths.shape}")
    if np.any(t < 1) or step < 1:
        raise ValueError(f"steps must be at least 1, got {t} and {step}")
    if step > np.max(t):
        raise ValueError(f"step must be at most the last stored one, {np.max(t)}, got {step}")
    gamma = np.array([power_exponent(width) for width in widths])
    products = _products(t, gamma, t, gamma)
    cosines = products / np.sqrt(np.outer(np.diagonal(products), np.diagonal(products)))
    if np.any(np.triu(cosines, 1) > 1 - 1e-9):
        raise ValueError("two of the averages are nearly the same")
    wanted = _products(t, gamma, np.array([float(step)]), np.array([power_exponent(width)]))[:, 0]
    found = np.linalg.solve(products, wanted)
    return found / np.sum(found)


def posthoc_average(
    snapshots: Sequence[PyTree[Array]],
    steps: Sequence[int] | Float[np.ndarray, " n"],
    widths: Sequence[float],
    step: float,
    width: float,
    like: Any = None,
) -> PyTree[Array]:
    """The average of any width, after any step, from stored ones.

    **Arguments:**

    - `snapshots`: for each width a pytree stacked on a leading axis of steps, as
      `training.Snapshots` gives for a tuple of `PowerFunctionAverage`.
    - `steps`: after which they were taken, $n$ of them.
    - `widths`: $\\sigma_{rel}$ of each.
    - `step`, `width`: of the average that is wanted.
    - `like`: a model that gives what is no array, if anything is wanted.

    **Returns:** the average, in the types of the snapshots.

    **Raises:** `ValueError` as `posthoc_coefficients` does, and for numbers of snapshots, steps and
    widths that do not fit.

    **Reference:** Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the
    Training Dynamics of Diffusion Models, 2024, arXiv:2312.02696.
    """
    count = len(steps)
    shapes = {leaf.shape[:1] for leaf in jax.tree.leaves(tuple(snapshots))}
    if len(snapshots) != len(widths) or shapes != {(count,)}:
        raise ValueError(
            f"need snapshots of {count} steps for {len(widths)} widths, got {len(snapshots)} with "
            f"leading axes {sorted(shapes)}"
        )
    x = posthoc_coefficients(np.tile(steps, len(widths)), np.repeat(widths, count), step, width)
    parts = np.split(x, len(widths))

    def combined(*leaves):
        if not jnp.issubdtype(leaves[0].dtype, jnp.inexact):
            return leaves[0][-1]
        total = sum(
            np.tensordot(part, np.asarray(leaf, _wide(leaf)), 1)
            for part, leaf in zip(parts, leaves, strict=True)
        )
        return jnp.asarray(total, leaves[0].dtype)

    average = jax.tree.map(combined, *snapshots)
    return average if like is None else eqx.combine(average, eqx.filter(like, _is_rest))


def _wide(leaf):
    return np.complex128 if jnp.iscomplexobj(leaf) else np.float64


def _is_rest(leaf):
    return not eqx.is_array(leaf)
