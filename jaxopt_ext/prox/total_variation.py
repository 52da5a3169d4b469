"""Total variation of signals and images."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..core import AbstractProblem, ImplicitAdjoint, attach, checks, loops, tree
from .coordinatewise import parameter_field
from .function import (
    AbstractFunction,
    amount_of,
    number,
    require_array,
    require_real,
    root,
    unit_of,
)
from .isotonic import centre, segment_ids, segment_means


class _Tube(eqx.Module):
    """State of the taut-string walk: the segment from `first`, and the last places where its
    lower and upper values could have ended."""

    k: Int[Array, ""]
    first: Int[Array, ""]
    low_end: Int[Array, ""]
    high_end: Int[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    low_slack: Float[Array, ""]
    high_slack: Float[Array, ""]


def _walk(y: Float[Array, " n"], lam: Float[Array, ""]) -> Int[Array, " n"]:
    """Condat's direct algorithm: the sign of the jump in front of each entry, or zero.

    All cases are scalars that are selected from, and the array of signs is only written to:
    through branches the loop would carry copies of it.
    """
    n = y.size
    last = n - 1

    def jump_down(s: _Tube, at_end):
        """The segment ends with its lower value."""
        first = jnp.minimum(s.low_end + 1, last)
        start = y[first]
        high_end = jnp.where(at_end, s.high_end, first)
        high = jnp.where(at_end, s.high, start + 2 * lam)
        high_slack = jnp.where(at_end, start + lam - s.high, -lam)
        return _Tube(first, first, first, high_end, start, high, lam, high_slack)

    def jump_up(s: _Tube, at_end):
        """The segment ends with its upper value."""
        first = jnp.minimum(s.high_end + 1, last)
        start = y[first]
        low_end = jnp.where(at_end, s.low_end, first)
        low = jnp.where(at_end, s.low, start - 2 * lam)
        low_slack = jnp.where(at_end, start - lam - s.low, lam)
        return _Tube(first, first, low_end, first, low, start, low_slack, -lam)

    def go_on(s: _Tube, low_slack, high_slack):
        """The segment takes one entry more."""
        k = s.k + 1
        count = (k - s.first + 1).astype(y.dtype)
        raise_low, drop_high = low_slack >= lam, high_slack <= -lam
        return _Tube(
            k,
            s.first,
            jnp.where(raise_low, k, s.low_end),
            jnp.where(drop_high, k, s.high_end),
            jnp.where(raise_low, s.low + (low_slack - lam) / count, s.low),
            jnp.where(drop_high, s.high + (high_slack + lam) / count, s.high),
            jnp.where(raise_low, lam, low_slack),
            jnp.where(drop_high, -lam, high_slack),
        )

    def step(carry):
        s, jumps, _ = carry
        at_end = s.k == last
        ahead = y[jnp.minimum(s.k + 1, last)]
        low_slack, high_slack = s.low_slack + ahead - s.low, s.high_slack + ahead - s.high
        down = jnp.where(at_end, s.low_slack < 0, low_slack < -lam)
        up = ~down & jnp.where(at_end, s.high_slack > 0, high_slack > lam)
        jumped = tree.where(down, jump_down(s, at_end), jump_up(s, at_end))
        new = tree.where(down | up, jumped, go_on(s, low_slack, high_slack))
        sign = up.astype(jnp.int32) - down.astype(jnp.int32)
        slot = jnp.where(sign == 0, n, new.first)
        jumps = jax.lax.dynamic_update_index_in_dim(jumps, sign, slot, 0)
        return new, jumps, at_end & (sign == 0)

    zero = jnp.asarray(0, jnp.int32)
    tube = _Tube(zero, zero, zero, zero, y[0] - lam, y[0] + lam, lam, -lam)
    start = tube, jnp.zeros(n + 1, jnp.int32), jnp.asarray(False)
    _, jumps, _ = loops.while_loop(lambda carry: ~carry[2], step, start)
    return jumps[:n]


class TotalVariation1D(AbstractFunction):
    """$w \\sum_i |x_{i+1} - x_i|$ of a vector.

    The prox is exact: a walk of about $n$ steps finds its constant segments, and each value is
    the mean of its segment moved by $t w / |{\\rm segment}|$ towards each neighbour. That formula
    gives the derivatives, in `x` and in the weight.

    **Arguments:**

    - `weight`: $w \\ge 0$.

    **Reference:** Condat, A Direct Algorithm for 1-D Total Variation Denoising, 2013.
    """

    weight: Any = parameter_field(default=1.0)
    convex = True

    def __check_init__(self):
        checks.nonnegative("weight", self.weight)

    def __call__(self, x):
        require_array("TotalVariation1D", x, "a vector", 1)
        return number("weight", self.weight, tree.real_dtype(x)) * jnp.sum(jnp.abs(jnp.diff(x)))

    def prox(self, x: Float[Array, " n"], step: Any = 1.0) -> Float[Array, " n"]:
        require_array("TotalVariation1D", x, "a vector", 1)
        require_real("TotalVariation1D", x)
        lam = amount_of(step, self.weight, x.dtype)
        if x.size <= 1:
            return x
        middle = centre(x)
        x = x - middle
        y, frozen = jax.lax.stop_gradient((x, lam))
        # A NaN would never leave the walk.
        finite = jnp.all(jnp.isfinite(y)) & jnp.isfinite(frozen)
        jumps = _walk(jnp.where(finite, y, 0), jnp.where(finite, frozen, 0))
        ids = segment_ids(jumps != 0)
        n = x.size
        counts = jnp.maximum(jax.ops.segment_sum(jnp.ones_like(x), ids, n), 1)
        before = jax.ops.segment_sum(jumps.astype(x.dtype), ids, n)
        after = jnp.roll(before, -1)
        means = segment_means(x, ids)
        values = means + lam * (after - before) / counts
        # Without a weight, entries that are equal by chance do not move together.
        apart = jnp.where(lam == 0, x - means[ids], 0)
        return jnp.where(finite, middle + values[ids] + apart, jnp.nan)


def _differences(x):
    """Forward differences down and right, zero at the border."""
    down = jnp.pad(jnp.diff(x, axis=0), ((0, 1), (0, 0)))
    right = jnp.pad(jnp.diff(x, axis=1), ((0, 0), (0, 1)))
    return jnp.stack([down, right])


def _differences_adjoint(p):
    down, right = p[0, :-1], p[1, :, :-1]
    x = jnp.zeros(p.shape[1:], p.dtype)
    x = x.at[:-1].add(-down).at[1:].add(down)
    return x.at[:, :-1].add(-right).at[:, 1:].add(right)


class _Dual(AbstractProblem):
    """$\\min_p \\tfrac12 \\|y - \\lambda D^\\top p\\|^2$ over fields in the unit ball."""

    image: Float[Array, "h w"]
    weight: Float[Array, ""]
    isotropic: bool = eqx.field(static=True)

    def point(self, p):
        return self.image - self.weight * _differences_adjoint(p)

    def step(self, p):
        # 8 bounds the square of the norm of D.
        safe = jnp.where(self.weight > 0, self.weight, 1)
        moved = p + _differences(self.point(p)) / (8 * safe)
        if not self.isotropic:
            return jnp.clip(moved, -1, 1)
        square = jnp.sum(moved**2, axis=0)
        outside = square > 1
        return jnp.where(outside, moved / jnp.sqrt(jnp.where(outside, square, 1)), moved)

    def residual(self, x):
        return x - self.step(x)


class TotalVariation2D(AbstractFunction):
    """Total variation of an image, $w \\sum_{ij} \\|(Dx)_{ij}\\|$ with forward differences $D$.

    The prox is found by accelerated projected gradient on the dual, with restarts, until the
    duality gap $w \\sum_{ij} \\|(Du)_{ij}\\| - \\langle p_{ij}, (Du)_{ij}\\rangle$, in units of the
    range of the image, is below `tol` times the objective of the better of two simple answers: the
    image itself, and its mean. It bounds the square of the distance to the
    solution. Where the mean has the smaller gap it is the answer. Derivatives are implicit.

    **Arguments:**

    - `weight`: $w \\ge 0$.
    - `isotropic`: Euclidean norm of each gradient; else the sum of absolute differences.
    - `tol`: the relative duality gap that ends the iteration; a few roundings at least.
    - `max_steps`: limit on the iterations.

    **Reference:** Beck, Teboulle, Fast Gradient-Based Algorithms for Constrained Total Variation
    Image Denoising and Deblurring Problems, 2009.
    """

    weight: Any = parameter_field(default=1.0)
    isotropic: bool = eqx.field(static=True, default=True)
    tol: Any = parameter_field(default=1e-6)
    max_steps: int = 2000
    convex = True

    def __check_init__(self):
        checks.nonnegative("weight", self.weight)
        checks.positive("tol", self.tol)
        checks.count("max_steps", self.max_steps)

    def __call__(self, x):
        require_array("TotalVariation2D", x, "an image", 2)
        require_real("TotalVariation2D", x)
        if x.size == 0:
            return jnp.zeros((), x.dtype)
        d = _differences(x)
        size = root(jnp.sum(d**2, axis=0)) if self.isotropic else jnp.abs(d)
        return number("weight", self.weight, x.dtype) * jnp.sum(size)

    def prox(self, x: Float[Array, "h w"], step: Any = 1.0) -> Float[Array, "h w"]:
        require_array("TotalVariation2D", x, "an image", 2)
        require_real("TotalVariation2D", x)
        amount = amount_of(step, self.weight, x.dtype)
        if x.size == 0:
            return x
        # In units of the range of the image, about its mean.
        low, high = jnp.min(x), jnp.max(x)
        mean = low + jnp.mean(x - low)
        unit, middle = jax.lax.stop_gradient((unit_of(high - low), mean))
        dual = _Dual((x - middle) / unit, amount / unit, self.isotropic)
        frozen = jax.lax.stop_gradient(dual)
        image, weight = frozen.image, frozen.weight

        def size(d):
            return root(jnp.sum(d**2, axis=0)) if self.isotropic else jnp.sum(jnp.abs(d), axis=0)

        def gaps(p):
            """Of the point of `p`, and of the constant image."""
            u = frozen.point(p)
            d = _differences(u)
            return weight * jnp.sum(size(d) - jnp.sum(p * d, axis=0)), 0.5 * jnp.sum(u**2)

        plain = weight * jnp.sum(size(_differences(image))), 0.5 * jnp.sum(image**2)
        tol = jnp.maximum(jnp.asarray(self.tol, x.dtype), 4 * jnp.finfo(x.dtype).eps)
        limit = tol * jnp.minimum(*plain)

        def iterate(_, carry):
            p, q, t = carry
            new = frozen.step(q)
            back = jnp.sum((q - new) * (new - p)) > 0  # against the momentum
            t_new = jnp.where(back, 1, 0.5 * (1 + jnp.sqrt(1 + 4 * t**2)))
            q_new = new + jnp.where(back, 0, (t - 1) / t_new) * (new - p)
            return new, q_new, t_new

        def unfinished(carry):
            _, gap, steps = carry
            return (gap > limit) & (steps < self.max_steps)

        def several(carry):
            field, _, steps = carry
            field = loops.fori_loop(0, _BETWEEN, iterate, field)
            return field, jnp.minimum(*gaps(field[0])), steps + _BETWEEN

        zero, one = jnp.zeros((2, *x.shape), x.dtype), jnp.ones((), x.dtype)
        start = (zero, zero, one), jnp.minimum(*gaps(zero)), jnp.asarray(0, jnp.int32)
        p = loops.while_loop(unfinished, several, start)[0][0]
        own, constant = gaps(p)
        moved = middle + unit * dual.point(attach(p, dual, ImplicitAdjoint()))
        # A heavy weight magnifies the roundings that keep the point from being constant.
        return jnp.where((constant <= own) & (weight > 0), mean, moved)


_BETWEEN = 8  # steps from one look at the gap to the next
