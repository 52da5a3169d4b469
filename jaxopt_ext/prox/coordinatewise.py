"""Functions of each coordinate alone. They take any pytree and act leaf by leaf."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..core import checks, tree
from .function import (
    AbstractFunction,
    AbstractSet,
    align,
    entrywise_slopes,
    magnitude,
    parameter_field,
    part,
    require_real,
    shrink,
    spread,
)

Parameter = Any
"""A number, an array broadcast against `x`, or a pytree of arrays like `x`."""


def _check(check, name, value, *bounds):
    for leaf in jax.tree.leaves(value):
        check(name, leaf, *bounds)


class AbstractCoordinatewise(AbstractFunction):
    """A sum over coordinates of one scalar function with parameters."""

    @abc.abstractmethod
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters, in the order of the scalar functions below."""

    @abc.abstractmethod
    def scalar(self, x: Array, *parameters: Array) -> Array:
        """The value at each coordinate."""

    @abc.abstractmethod
    def scalar_prox(self, x: Array, step: Array, *parameters: Array) -> Array:
        """The prox at each coordinate."""

    def __call__(self, x: PyTree[Array]) -> Float[Array, ""]:
        spreads = [spread(p, x) for p in self.parameters()]
        values = jax.tree.map(lambda *args: jnp.sum(self.scalar(*args)), x, *spreads)
        return tree.sum_leaves(values)

    def prox(self, x: PyTree[Array], step: Any = 1.0) -> PyTree[Array]:
        _check(checks.positive, "step", step)
        spreads = [spread(p, x) for p in (step, *self.parameters())]
        return jax.tree.map(self.scalar_prox, x, *spreads)

    def prox_slopes(self, x, step=1.0):
        return entrywise_slopes(lambda x: self.prox(x, step), x)

    def aligned(self, x: Array) -> AbstractFunction:
        return type(self)(*(align(p, x) for p in self.parameters()))

    def block(self, index: Any) -> AbstractFunction:
        return type(self)(*(part(p, index) for p in self.parameters()))


class AbstractWeighted(AbstractCoordinatewise):
    """A scalar function times a weight $\\ge 0$."""

    weight: eqx.AbstractVar[Parameter]

    def __check_init__(self):
        _check(checks.nonnegative, "weight", self.weight)

    def parameters(self):
        return (self.weight,)


class Zero(AbstractFunction):
    """The zero function."""

    convex = True

    def __call__(self, x):
        return jnp.zeros((), tree.real_dtype(x))

    def prox(self, x, step=1.0):
        return x

    def block(self, index):
        return self


class L1(AbstractWeighted):
    """$\\sum_i w_i |x_i|$.

    **Arguments:**

    - `weight`: $w \\ge 0$.
    """

    weight: Parameter = parameter_field(default=1.0)
    convex = True

    def scalar(self, x, w):
        return w * magnitude(x)

    def scalar_prox(self, x, step, w):
        return shrink(x, step * w)


class L2Squared(AbstractWeighted):
    """$\\tfrac12 \\sum_i w_i |x_i|^2$.

    **Arguments:**

    - `weight`: $w \\ge 0$.
    """

    weight: Parameter = parameter_field(default=1.0)
    convex = True

    def scalar(self, x, w):
        return 0.5 * w * (x.real**2 + x.imag**2 if jnp.iscomplexobj(x) else x**2)

    def scalar_prox(self, x, step, w):
        return x / (1 + step * w)


class ElasticNet(AbstractCoordinatewise):
    """$\\sum_i a_i |x_i| + \\tfrac12 b_i |x_i|^2$.

    **Arguments:**

    - `l1`, `l2`: $a, b \\ge 0$.
    """

    l1: Parameter = parameter_field(default=1.0)
    l2: Parameter = parameter_field(default=1.0)
    convex = True

    def __check_init__(self):
        _check(checks.nonnegative, "l1", self.l1)
        _check(checks.nonnegative, "l2", self.l2)

    def parameters(self):
        return self.l1, self.l2

    def scalar(self, x, a, b):
        size = magnitude(x)
        return a * size + 0.5 * b * size**2

    def scalar_prox(self, x, step, a, b):
        return shrink(x, step * a) / (1 + step * b)


class L0(AbstractWeighted):
    """$\\sum_i w_i [x_i \\ne 0]$; not convex, its prox is hard thresholding.

    **Arguments:**

    - `weight`: $w \\ge 0$.
    """

    weight: Parameter = parameter_field(default=1.0)
    convex = False

    def scalar(self, x, w):
        return jnp.where(x != 0, w, 0)

    def scalar_prox(self, x, step, w):
        amount = 2 * step * w
        kept = jnp.where((magnitude(x) <= jnp.sqrt(amount)) & (amount != 0), 0, x)
        return jnp.where(jnp.isnan(amount), amount, kept)


class AbstractFoldedConcave(AbstractCoordinatewise):
    """$\\sum_i w_i |x_i| + q(x)$ with $q$ smooth and concave."""

    weight: eqx.AbstractVar[Parameter]

    def l1_part(self) -> L1:
        """$\\sum_i w_i |x_i|$."""
        return L1(self.weight)

    @abc.abstractmethod
    def scalar_concave_gradient(self, x: Array, *parameters: Array) -> Array:
        """$q'$ at each coordinate."""

    @abc.abstractmethod
    def concavity(self) -> Array:
        """The largest $-q''$."""

    def concave_gradient(self, x: PyTree[Array]) -> PyTree[Array]:
        """$\\nabla q(x)$, against the sign of each $x_i$."""
        spreads = [spread(p, x) for p in self.parameters()]
        return jax.tree.map(self.scalar_concave_gradient, x, *spreads)


class SCAD(AbstractFoldedConcave):
    """The smoothly clipped absolute deviation penalty: $\\lambda |x|$ near zero, quadratic between
    $\\lambda$ and $a \\lambda$, constant beyond.

    The prox is the global minimizer for every step; from $a - 1$ on it jumps where two are.

    **Arguments:**

    - `weight`: $\\lambda \\ge 0$.
    - `a`: $> 2$, 3.7 in the paper.

    **Reference:** Fan, Li, Variable Selection via Nonconcave Penalized Likelihood and its Oracle
    Properties, 2001.
    """

    weight: Parameter = parameter_field(default=1.0)
    a: Parameter = parameter_field(default=3.7)
    convex = False

    def __check_init__(self):
        _check(checks.nonnegative, "weight", self.weight)
        for leaf in jax.tree.leaves(self.a):
            checks.interval("a", leaf, 2, float("inf"), open_low=True)

    def parameters(self):
        return self.weight, self.a

    def scalar_concave_gradient(self, x, w, a):
        return -jnp.sign(x) * jnp.clip((magnitude(x) - w) / (a - 1), 0, w)

    def concavity(self):
        return jnp.max(jnp.stack([jnp.max(1 / (a - 1)) for a in jax.tree.leaves(self.a)]))

    def scalar(self, x, w, a):
        size = magnitude(x)
        middle = (2 * a * w * size - size**2 - w**2) / (2 * (a - 1))
        flat = 0.5 * w**2 * (a + 1)
        return jnp.where(size <= w, w * size, jnp.where(size <= a * w, middle, flat))

    def scalar_prox(self, x, step, w, a):
        size = magnitude(x)
        near = shrink(x, step * w)
        # The middle piece is convex for short steps. For long ones it holds no minimizer, and the
        # soft one near zero gives way to x where their objectives are equal.
        short = step < a - 1
        room = jnp.where(short, 1 - step / (a - 1), 1)
        middle = shrink(x, a * w * step / (a - 1)) / room
        bent = jnp.where(size < w * (1 + step), near, middle)
        equal = jnp.where(step < a + 1, 0.5 * (a + 1 + step), jnp.sqrt(step * (a + 1)))
        far = size >= w * jnp.where(short, a, equal)
        return jnp.where(far, x, jnp.where(short, bent, near))


class MCP(AbstractFoldedConcave):
    """The minimax concave penalty: $\\lambda |x| - x^2 / (2 \\gamma)$ up to $\\gamma \\lambda$,
    constant beyond; its prox is firm thresholding.

    The prox is the global minimizer for every step; from $\\gamma$ on it is a hard threshold.

    **Arguments:**

    - `weight`: $\\lambda \\ge 0$.
    - `gamma`: $> 1$, 3 by custom.

    **Reference:** Zhang, Nearly Unbiased Variable Selection under Minimax Concave Penalty, 2010.
    """

    weight: Parameter = parameter_field(default=1.0)
    gamma: Parameter = parameter_field(default=3.0)
    convex = False

    def __check_init__(self):
        _check(checks.nonnegative, "weight", self.weight)
        for leaf in jax.tree.leaves(self.gamma):
            checks.interval("gamma", leaf, 1, float("inf"), open_low=True)

    def parameters(self):
        return self.weight, self.gamma

    def scalar_concave_gradient(self, x, w, gamma):
        return -jnp.sign(x) * jnp.minimum(magnitude(x) / gamma, w)

    def concavity(self):
        return jnp.max(jnp.stack([jnp.max(1 / gamma) for gamma in jax.tree.leaves(self.gamma)]))

    def scalar(self, x, w, gamma):
        size = magnitude(x)
        inner = w * size - size**2 / (2 * gamma)
        return jnp.where(size <= gamma * w, inner, 0.5 * gamma * w**2)

    def scalar_prox(self, x, step, w, gamma):
        short = step < gamma
        inner = shrink(x, step * w) / jnp.where(short, 1 - step / gamma, 1)
        # For long steps all between is concave, and zero competes with x itself.
        far = magnitude(x) >= w * jnp.where(short, gamma, jnp.sqrt(step * gamma))
        return jnp.where(far, x, jnp.where(short, inner, 0 * x * w))


class NonNegative(AbstractSet):
    """$\\{x : x \\ge 0\\}$."""

    convex = True

    def project(self, x):
        require_real("NonNegative", x)
        return jax.tree.map(lambda a: jnp.maximum(a, 0), x)

    def prox_slopes(self, x, step=1.0):
        return entrywise_slopes(self.project, x)

    def block(self, index):
        return self


class Box(AbstractSet):
    """$\\{x : l \\le x \\le u\\}$; bounds may be infinite.

    **Arguments:**

    - `lower`, `upper`: numbers, arrays or pytrees like `x`.
    """

    lower: Parameter = parameter_field()
    upper: Parameter = parameter_field()
    convex = True

    def __check_init__(self):
        if checks.is_traced((self.lower, self.upper)):
            return
        lowers, uppers = jax.tree.leaves(self.lower), jax.tree.leaves(self.upper)
        count = max(len(lowers), len(uppers))
        lowers, uppers = (v * count if len(v) == 1 else v for v in (lowers, uppers))
        for l, u in zip(lowers, uppers, strict=True):
            l, u = np.asarray(l), np.asarray(u)  # on the host, also inside of jit
            if not np.all((l <= u) & (l < np.inf) & (u > -np.inf)):
                raise ValueError(f"upper - lower must be non-negative, got {l} and {u}")

    def project(self, x):
        require_real("Box", x)

        def leaf(a, l, u):
            # A bound that is touched holds the entry: its derivative is that of the bound.
            lifted = jnp.where(a <= l, l, a) + jnp.where(jnp.isnan(l), l, 0)
            return jnp.where(lifted >= u, u, lifted) + jnp.where(jnp.isnan(u), u, 0)

        return jax.tree.map(leaf, x, spread(self.lower, x), spread(self.upper, x))

    def prox_slopes(self, x, step=1.0):
        return entrywise_slopes(self.project, x)

    def linear_minimizer(self, g):
        require_real("Box", g)

        def leaf(g, l, u):
            idle = jnp.where(jnp.isfinite(u), u, jnp.where(jnp.isfinite(l), l, 0))
            return jnp.where(g > 0, l, jnp.where(g < 0, u, idle))

        return jax.tree.map(leaf, g, spread(self.lower, g), spread(self.upper, g))

    def aligned(self, x):
        return Box(align(self.lower, x), align(self.upper, x))

    def block(self, index):
        return Box(part(self.lower, index), part(self.upper, index))
