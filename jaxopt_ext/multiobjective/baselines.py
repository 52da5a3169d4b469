"""Aggregators of gradients that Jacobian descent by UPGrad is compared with."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core import Scalar, checks, loops, scalar_field
from ..core.gram import nonnegative_programs
from .aggregator import (
    AbstractJacobianAggregator,
    AbstractWeighting,
    average,
    check_tolerances,
    normalized,
    require_key,
)
from .gram import nash_weights


class Mean(AbstractWeighting):
    """The mean of the gradients: gradient descent on the mean objective.

    **Reference:** Quinton, Rey, Jacobian Descent for Multi-Objective Optimization, 2024,
    arXiv:2406.16232.
    """

    def weights(self, G, key=None):
        return average(G)


class RandomWeights(AbstractWeighting):
    """Random loss weighting: $w$ is the softmax of standard normal numbers.

    **Reference:** Lin, Ye, Zhang, Tsang, Reasonable Effectiveness of Random Weighting: A Litmus
    Test for Multi-Task Learning, 2022, arXiv:2111.10603.
    """

    def weights(self, G, key=None):
        return jax.nn.softmax(jax.random.normal(require_key(self, key), G[0].shape, G.dtype))


class MGDA(AbstractWeighting):
    """The point of least norm in the hull of the gradients, by the Frank-Wolfe method with exact
    line search from equal weights.

    **Arguments:**

    - `tolerance`: it ends at a step below this.
    - `max_iters`: or after this many steps; static.

    **Reference:** Sener, Koltun, Multi-Task Learning as Multi-Objective Optimization, 2018,
    arXiv:1810.04650.
    """

    tolerance: Scalar = scalar_field(1e-3)
    max_iters: int = eqx.field(static=True, default=100)

    def __check_init__(self):
        checks.nonnegative("tolerance", self.tolerance)
        checks.count("max_iters", self.max_iters)

    def weights(self, G, key=None):
        def turn(carry):
            alpha, _, number = carry
            slopes = G @ alpha
            t = jnp.argmin(slopes)
            a, b, c = slopes[t], jnp.vdot(alpha, slopes), G[t, t]
            curvature = b + c - 2 * a
            inner = (b - a) / jnp.where(curvature > 0, curvature, 1)
            step = jnp.where(c <= a, 1, jnp.where(b <= a, 0, inner)).astype(G.dtype)
            return (
                alpha + step * (jax.nn.one_hot(t, len(G), dtype=G.dtype) - alpha),
                step,
                number + 1,
            )

        def more(carry):
            _, step, number = carry
            return (step >= self.tolerance) & (number < self.max_iters)

        start = average(G), jnp.full_like(G[0, 0], jnp.inf), jnp.asarray(0, jnp.int32)
        with jax.default_matmul_precision("highest"):
            return loops.while_loop(more, turn, start)[0]


class PCGrad(AbstractWeighting):
    """Projecting conflicting gradients: each gradient is projected off every other one that the
    vector so far conflicts with, one after the other in random order; the results are summed.

    **Reference:** Yu, Kumar, Gupta, Levine, Hausman, Finn, Gradient Surgery for Multi-Task
    Learning, 2020, arXiv:2001.06782.
    """

    def weights(self, G, key=None):
        m = len(G)
        diagonal = jnp.diagonal(G)
        squares = jnp.where(diagonal > 0, diagonal, 1)

        def one(i, key):
            def visit(w, j):
                inner = jnp.vdot(G[j], w)
                off = jnp.where((inner < 0) & (j != i), inner / squares[j], 0)
                return w.at[j].add(-off), None

            return loops.scan(
                visit, jax.nn.one_hot(i, m, dtype=G.dtype), jax.random.permutation(key, m)
            )[0]

        keys = jax.random.split(require_key(self, key), m)
        with jax.default_matmul_precision("highest"):
            return jnp.sum(jax.vmap(one)(jnp.arange(m), keys), axis=0)


class IMTLG(AbstractWeighting):
    """Impartial multi-task learning: the combination, of weights with sum one, whose projections on
    all gradients are equally long. With $v = G^+ \\sqrt{\\mathrm{diag}\\, G}$ they are
    $w = v / \\sum_i v_i$, or zero where the sum vanishes.

    **Reference:** Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang, Towards Impartial Multi-Task
    Learning, ICLR 2021.
    """

    def weights(self, G, key=None):
        values, vectors, kept = _spectrum(G)
        inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
        with jax.default_matmul_precision("highest"):
            v = vectors @ (inverse * (vectors.T @ jnp.sqrt(jnp.diagonal(G))))
        total = jnp.sum(v)
        # A sum of rounding errors is none.
        gone = jnp.abs(total) <= 4 * len(G) * jnp.finfo(G.dtype).eps * jnp.sum(jnp.abs(v))
        return jnp.where(gone, 0, v / jnp.where(gone, 1, total))


def smallest(values: Float[Array, " m"], kept: Bool[Array, " m"]) -> Float[Array, ""]:
    """The smallest of the eigenvalues that are kept."""
    return jnp.min(jnp.where(kept, values, jnp.inf))


def lower_median(values: Float[Array, " m"], kept: Bool[Array, " m"]) -> Float[Array, ""]:
    """The median of those that are kept, of an even number the lower of the two in the middle."""
    count = jnp.sum(kept)
    return jnp.sort(jnp.where(kept, values, jnp.inf))[jnp.maximum(count - 1, 0) // 2]


def root_mean_square(values: Float[Array, " m"], kept: Bool[Array, " m"]) -> Float[Array, ""]:
    """The mean of those that are kept, so that singular values get their root mean square."""
    return jnp.sum(jnp.where(kept, values, 0)) / jnp.maximum(jnp.sum(kept), 1)


class AlignedMTL(AbstractWeighting):
    """The mean after all singular values of the Jacobian were made equal:
    $w = \\sqrt\\sigma\\, V \\Lambda^{-1/2} V^\\top \\frac{\\mathbf 1}{m}$ over the eigenvalues
    $\\Lambda$ of $G$ that are not zero.

    **Arguments:**

    - `scale`: $\\sigma$, of the eigenvalues and a mask of those that count: `smallest`,
      `lower_median` or `root_mean_square`.

    **Reference:** Senushkin, Patakin, Kuznetsov, Konushin, Independent Component Alignment for
    Multi-Task Learning, 2023, arXiv:2305.19000.
    """

    scale: Callable[[Array, Array], Array] = eqx.field(static=True, default=smallest)

    def __check_init__(self):
        if not callable(self.scale):
            raise TypeError(f"scale must be a function such as smallest, got {self.scale!r}")

    def weights(self, G, key=None):
        values, vectors, kept = _spectrum(G)
        scale = self.scale(values, kept)
        root = jnp.sqrt(jnp.where(kept, scale / jnp.where(kept, values, 1), 0))
        with jax.default_matmul_precision("highest"):
            w = vectors @ (root * (vectors.T @ average(G)))
        return jnp.where(jnp.any(kept) | jnp.isnan(values[0]), w, average(G))


def _spectrum(G):
    """Eigenvalues, eigenvectors, and which eigenvalues are more than rounding."""
    values, vectors = jnp.linalg.eigh(G)
    return values, vectors, values > len(G) * jnp.finfo(G.dtype).eps * jnp.max(values)


class NashMTL(AbstractWeighting):
    """The bargaining solution of Nash, $w > 0$ with $(G w)_i = 1 / w_i$ for $G$ over its Frobenius
    norm, exactly; an update longer than `max_norm` is shortened.

    **Arguments:**

    - `max_norm`: the largest norm of the update; infinity for any.

    **Reference:** Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik, Fetaya, Multi-Task Learning
    as a Bargaining Game, 2022, arXiv:2202.01017.
    """

    max_norm: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.nonnegative("max_norm", self.max_norm)

    def weights(self, G, key=None):
        size = jnp.sqrt(jnp.sum(jnp.square(G)))
        w = nash_weights(G / jnp.where(size == 0, 1, size))
        with jax.default_matmul_precision("highest"):
            norm = jnp.sqrt(jnp.maximum(w @ G @ w, 0))
        return w * jnp.where(norm > self.max_norm, self.max_norm / norm, 1).astype(G.dtype)


class CAGrad(AbstractWeighting):
    """Conflict-averse gradient: of all vectors within $c \\|g_0\\|$ of the mean $g_0$ the one whose
    worst inner product with a gradient is largest,

    $$A = g_0 + c \\|g_0\\| \\frac{J^\\top w}{\\|J^\\top w\\|}, \\qquad
    w = \\arg\\min_{w \\in \\Delta}\\,
    \\langle J^\\top w, g_0 \\rangle + c \\|g_0\\| \\|J^\\top w\\|.$$

    From $g_0$ the nearest vector with inner products of at least $s$ lies along $J^\\top w$; the
    level $s$ at which it is $c \\|g_0\\|$ away is found by section. With one objective the result
    is $(1 + c)$ times its gradient.

    **Arguments:**

    - `c`: $c \\ge 0$.
    - `norm_eps`: the weights are zero where $\\|J^\\top w\\|$ is below this after $G$ was divided
      by its trace, and where that trace is.

    **Raises:** `ValueError` for $c < 0$.

    **Reference:** Liu, Liu, Jin, Stone, Liu, Conflict-Averse Gradient Descent for Multi-Task
    Learning, 2021, arXiv:2110.14048.
    """

    c: Scalar = scalar_field(0.5)
    norm_eps: Scalar = scalar_field(1e-4)

    def __check_init__(self):
        checks.nonnegative("c", self.c)
        checks.finite("c", self.c)
        check_tolerances(self.norm_eps)

    def weights(self, G, key=None):
        with jax.default_matmul_precision("highest"):
            return self._weights(normalized(G, self.norm_eps))

    def _weights(self, G):
        u = average(G)
        inner = G @ u
        radius = self.c.astype(G.dtype) * jnp.sqrt(jnp.maximum(u @ inner, 0))
        low = jnp.min(inner)
        high = jnp.min(inner + radius * jnp.sqrt(jnp.diagonal(G)))
        parts = jnp.arange(1, 9, dtype=G.dtype) / 8

        def turn(_, carry):
            low, high, _, _ = carry
            levels = low + parts * (high - low)
            shifts = nonnegative_programs(G, levels[:, None] - inner)
            norms = jnp.sqrt(jnp.maximum(jnp.sum((shifts @ G) * shifts, axis=1), 0))
            # The last level is known to be too high.
            i = jnp.argmax((norms >= radius).at[-1].set(True))
            before = jnp.where(i > 0, levels[i - 1], low)
            return before, levels[i], shifts[i], norms[i]

        digits = jnp.finfo(G.dtype).nmant + 1
        start = low, high, jnp.zeros_like(u), jnp.zeros_like(low)
        _, _, shift, norm = loops.fori_loop(0, -(-digits // 3), turn, start)
        found = norm > 0
        norm, total = jnp.where(found, norm, 1), jnp.sum(shift)
        # The norm of J'w is norm / total.
        gone = found & (norm < self.norm_eps * total) & (radius > 0)
        w = u + jnp.where(found, radius / norm, 0) * shift
        return jnp.where(gone | (jnp.trace(G) == 0), 0, w)


class GradDrop(AbstractJacobianAggregator):
    """Gradient sign dropout: in each coordinate the entries of one sign are kept and summed, the
    positive ones with probability $P = \\frac12 (1 + \\sum_i J_{ij} / \\sum_i |J_{ij}|)$.

    It looks at the entries of $J$, so there are no weights.

    **Raises:** `ValueError` without a key; `TypeError` on complex leaves.

    **Reference:** Chen, Ngiam, Huang, Luong, Kretzschmar, Chai, Anguelov, Just Pick a Sign:
    Optimizing Deep Multitask Models with Gradient Sign Dropout, 2020, arXiv:2010.06808.
    """

    def aggregate(self, jacobian, key):
        leaves, structure = jax.tree.flatten(jacobian)
        keys = jax.random.split(require_key(self, key), len(leaves))
        return jax.tree.unflatten(
            structure, [_drop(a, k) for a, k in zip(leaves, keys, strict=True)]
        )


def _drop(rows: Float[Array, "m ..."], key: Any) -> Float[Array, "..."]:
    if jnp.iscomplexobj(rows):
        raise TypeError(f"GradDrop asks for signs, got dtype {rows.dtype}")
    total, size = jnp.sum(rows, axis=0), jnp.sum(jnp.abs(rows), axis=0)
    positive = 0.5 * (1 + jnp.where(size == 0, 0, total / jnp.where(size == 0, 1, size)))
    drawn = jax.random.uniform(key, total.shape, rows.dtype)
    # The draw can be 0, never 1: a strict sign on one side only keeps one of the two always.
    kept = jnp.where(positive > drawn, rows > 0, rows < 0)
    return jnp.sum(jnp.where(kept | jnp.isnan(rows), rows, 0), axis=0)
