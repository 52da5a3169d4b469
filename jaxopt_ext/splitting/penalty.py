"""How ADMM chooses its penalty while it runs."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..core import Scalar, checks, scalar_field, tree


class Iteration(NamedTuple):
    """What one iteration of ADMM shows of the functions $f$ and $g$.

    - `mapped_x`, `mapped_z`: $Ax^+$ and $Bz^+$.
    - `dual`: $y^+$, of which $-B^* y^+$ is a subgradient of $g$ at $z^+$.
    - `dual_of_x`: $\\hat y = y + \\rho (Ax^+ + Bz - c)$, of which $-A^* \\hat y$ is a subgradient
      of $f$ at $x^+$.
    - `primal`, `dual_residual`: the norms of the two residuals.
    """

    mapped_x: PyTree[Array]
    mapped_z: PyTree[Array]
    dual: PyTree[Array]
    dual_of_x: PyTree[Array]
    primal: Float[Array, ""]
    dual_residual: Float[Array, ""]


class AbstractBalance(eqx.Module):
    """A rule for the penalty, asked now and then.

    Factors are powers of two, so that a penalty is constant near almost every problem and the
    derivative of an unrolled iteration needs nothing of the rule.
    """

    @abc.abstractmethod
    def init(self, dual: PyTree[Array]) -> Any:
        """What the rule remembers, before it has seen anything."""

    @abc.abstractmethod
    def update(
        self, now: Iteration, memory: Any, penalty: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Any]:
        """The factor by which the penalty changes, and the new memory."""


class ResidualBalance(AbstractBalance):
    """Double or halve the penalty when one residual is more than `threshold` times the other.

    **Reference:** Boyd et al., Distributed Optimization and Statistical Learning via the
    Alternating Direction Method of Multipliers, 2011, section 3.4.1.
    """

    threshold: Scalar = scalar_field(10.0)

    def __check_init__(self):
        checks.interval("balance", self.threshold, 1, float("inf"), open_low=True)

    def init(self, dual):
        return None

    def update(self, now, memory, penalty):
        up = now.primal > self.threshold * now.dual_residual
        down = now.dual_residual > self.threshold * now.primal
        return jnp.where(up, 2.0, jnp.where(down, 0.5, 1.0)), None


class _Snapshot(NamedTuple):
    mapped_x: PyTree[Array]
    mapped_z: PyTree[Array]
    dual: PyTree[Array]
    dual_of_x: PyTree[Array]
    known: Bool[Array, ""]


class SpectralBalance(AbstractBalance):
    """Set the penalty to the geometric mean of the curvatures of $f$ and $g$, as seen by the
    constraint.

    Between two iterations let $\\Delta h$ be the change of $Ax$ and $\\Delta \\lambda$ that of
    $-\\hat y$, a subgradient there. Steepest descent and minimum gradient estimate the curvature
    as

    $$\\frac{\\|\\Delta\\lambda\\|^2}{\\langle\\Delta h, \\Delta\\lambda\\rangle}, \\qquad
      \\frac{\\langle\\Delta h, \\Delta\\lambda\\rangle}{\\|\\Delta h\\|^2},$$

    of which the second is taken if it is more than half of the first, else the first less half of
    the second. The same holds for $Bz$ and $-y$. An estimate counts if the correlation of
    $\\Delta h$ and $\\Delta\\lambda$ is above `correlation`; if one does not count the other is the
    penalty, and if none does, as where a variable does not move, `ResidualBalance()` decides. So
    the penalty follows the units of the problem.

    **Arguments:**

    - `correlation`: in $[0, 1)$.
    - `largest`: bound on the factor of one change, above 1; rounded to a power of two.

    **Reference:** Xu, Figueiredo, Goldstein, Adaptive ADMM with Spectral Penalty Parameter
    Selection, 2017, arXiv:1605.07246.
    """

    correlation: Scalar = scalar_field(0.2)
    largest: Scalar = scalar_field(4096.0)

    def __check_init__(self):
        checks.interval("correlation", self.correlation, 0, 1, open_high=True)
        checks.interval("largest", self.largest, 1, float("inf"), open_low=True)

    def init(self, dual):
        zeros = jax.tree.map(jnp.zeros_like, dual)
        return _Snapshot(zeros, zeros, zeros, zeros, jnp.asarray(False))

    def update(self, now, memory, penalty):
        of_f, f_counts = self._curvature(
            _change(now.mapped_x, memory.mapped_x), _change(memory.dual_of_x, now.dual_of_x)
        )
        of_g, g_counts = self._curvature(
            _change(now.mapped_z, memory.mapped_z), _change(memory.dual, now.dual)
        )
        # Of one that does not count the other takes the place.
        first, second = jnp.where(f_counts, of_f, of_g), jnp.where(g_counts, of_g, of_f)
        wanted = jnp.sqrt(first) * jnp.sqrt(second)
        counts = (f_counts | g_counts) & (wanted > 0) & jnp.isfinite(wanted)
        otherwise, _ = ResidualBalance().update(now, None, penalty)
        factor = jnp.where(counts, wanted / penalty, otherwise)
        factor = jnp.where(memory.known, factor, 1)
        largest = self.largest.astype(factor.dtype)
        power = jnp.round(jnp.log2(jnp.clip(factor, 1 / largest, largest)))
        factor = jnp.ldexp(jnp.ones_like(factor), power.astype(jnp.int32))
        seen = (now.mapped_x, now.mapped_z, now.dual, now.dual_of_x)
        return factor, _Snapshot(*seen, jnp.ones_like(memory.known))

    def _curvature(self, moved, slope):
        """The estimate, one if it does not count, and whether it does."""
        (moved, length), (slope, rise) = moved, slope
        moves = (length > 0) & (rise > 0)
        length, rise = jnp.where(moves, length, 1), jnp.where(moves, rise, 1)
        # Of unit vectors, as squares of small numbers vanish in single precision.
        unit = lambda x, size: jax.tree.map(lambda a: a / size.astype(a.real.dtype), x)
        cosine = tree.vdot(unit(moved, length), unit(slope, rise))
        counts = moves & (cosine > self.correlation)
        cosine = jnp.where(counts, cosine, 1)
        # Steepest descent is ratio / cosine, minimum gradient ratio * cosine.
        hybrid = jnp.where(2 * cosine**2 > 1, cosine, 1 / cosine - cosine / 2)
        return jnp.where(counts, rise / length * hybrid, 1), counts


def _change(a, b):
    """The difference and its norm, zero if it is hardly more than rounding."""
    moved = jax.tree.map(jnp.subtract, a, b)
    length, size = tree.norm(moved), tree.norm(a)
    return moved, jnp.where(length > 10 * jnp.finfo(size.dtype).eps * size, length, 0)


def as_balance(rule: Any) -> AbstractBalance | None:
    """A rule from itself, from the threshold of `ResidualBalance`, or from `None`."""
    if rule is None or isinstance(rule, AbstractBalance):
        return rule
    return ResidualBalance(rule)
