"""Equilibria: variational inequalities, saddle points, games.

All are inclusions $0 \\in F(z) + G(z)$, with a map $F$ that is evaluated forward and a maximal
monotone $G$ that is known by its resolvent $J_{tG} = (I + tG)^{-1}$, a prox or a projection in most
cases. Solvers see nothing but these two.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from . import checks, loops, rows, tree
from .natural import natural
from .operators import as_map
from .problem import (
    AbstractProblem,
    Composite,
    Constrained,
    PrimalDual,
    RootFinding,
    Saddle,
    Smooth,
)
from .restricted import Restricted

Operator = Callable[[PyTree[Array]], PyTree[Array]]


class AbstractInclusion(AbstractProblem):
    """Find $z$ with $0 \\in F(z) + G(z)$.

    The residual is $z - J_G(z - F(z))$, zero exactly at solutions.

    **Derivatives.** Where the solution is unique and nothing is about to change sides at a kink of
    the resolvent (strict complementarity), the implicit derivative is that of the solution. At a
    kink it is that of one of the pieces next to it, or a mixture. Where solutions are many, as in
    games of matrices, the Jacobian of the residual is singular, and the derivative is that of the
    least-squares solution of the linearization. It is not symmetric.
    """

    @abc.abstractmethod
    def forward(self, z: PyTree[Array]) -> PyTree[Array]:
        """$F(z)$."""

    @abc.abstractmethod
    def backward(self, z: PyTree[Array], t: Any = 1.0) -> PyTree[Array]:
        """$J_{tG}(z)$."""

    def residual(self, z):
        return self.residual_with(z, self.forward(z))

    def residual_with(self, z: PyTree[Array], slope: PyTree[Array]) -> PyTree[Array]:
        """The residual where $F(z)$ is known already."""
        moved = self.backward(jax.tree.map(jnp.subtract, z, slope), 1.0)
        return jax.tree.map(jnp.subtract, z, moved)

    def check(self, z):
        checks.shaped_like("F(z)", jax.eval_shape(self.forward, z), z)
        checks.shaped_like("the resolvent", jax.eval_shape(self.backward, z), z)


def prox_of(function: Any, x: PyTree[Array], t: Any) -> PyTree[Array]:
    """$\\mathrm{prox}_{t g}(x)$, which is $x$ without $g$."""
    return x if function is None else function.prox(x, t)


def _check_prox(name: str, function: Any) -> None:
    if function is not None:
        checks.proximable(name, function)


class Inclusion(AbstractInclusion):
    """$0 \\in F(z) + G(z)$, with $G$ given by its resolvent.

    **Arguments:**

    - `operator`: $F$, from a pytree to one of the same shapes.
    - `resolvent`: `(z, t) -> ` $(I + tG)^{-1}(z)$; `None` for $G = 0$.
    """

    operator: Operator
    resolvent: Callable[[PyTree[Array], Any], PyTree[Array]] | None = None

    def forward(self, z):
        return self.operator(z)

    def backward(self, z, t=1.0):
        return z if self.resolvent is None else self.resolvent(z, t)

    def residual_with(self, z, slope):
        return slope if self.resolvent is None else super().residual_with(z, slope)

    def restrict(self, rest):
        resolvent = self.resolvent
        if resolvent is not None:
            resolvent = Restricted(resolvent, rest, maps=True)
        operator = Restricted(self.operator, rest, maps=True)
        return dataclasses.replace(self, operator=operator, resolvent=resolvent)


class VariationalInequality(AbstractInclusion):
    """$\\langle F(z), u - z\\rangle + g(u) - g(z) \\ge 0$ for all $u$.

    **Arguments:**

    - `operator`: $F$, from a pytree to one of the same shapes.
    - `nonsmooth`: $g$, a convex function or a set of `jaxopt_ext.prox`; `None` for the whole space.
    """

    operator: Operator
    nonsmooth: Any = None

    def __check_init__(self):
        _check_prox("nonsmooth", self.nonsmooth)

    def forward(self, z):
        return self.operator(z)

    def backward(self, z, t=1.0):
        return prox_of(self.nonsmooth, z, t)

    def residual_with(self, z, slope):
        return natural(self.nonsmooth, z, slope)

    def restrict(self, rest):
        return dataclasses.replace(self, operator=Restricted(self.operator, rest, maps=True))


class MinMax(AbstractInclusion):
    """$\\min_x \\max_y\\, s(x) + \\varphi(x, y) + f(x) - h(y)$.

    A point is `PrimalDual(primal, dual)`, and $F = (\\nabla s + \\nabla_x \\varphi, -\\nabla_y
    \\varphi)$.

    **Arguments:**

    - `objective`: $\\varphi$, `(x, y) -> scalar`, convex in $x$ and concave in $y$.
    - `primal`, `dual`: $f$ and $h$, functions or sets of `jaxopt_ext.prox`; `None` for zero.
    - `smooth`: $s$, differentiable, or `None`: a part that methods may treat apart.
    """

    objective: Callable[[PyTree[Array], PyTree[Array]], Float[Array, ""]]
    primal: Any = None
    dual: Any = None
    smooth: Callable[[PyTree[Array]], Float[Array, ""]] | None = None

    def __check_init__(self):
        _check_prox("primal", self.primal)
        _check_prox("dual", self.dual)

    def value(self, z: PyTree[Array]) -> Float[Array, ""]:
        """$s(x) + \\varphi(x, y)$."""
        value = self.objective(z.primal, z.dual)
        return value if self.smooth is None else value + self.smooth(z.primal)

    def forward(self, z):
        gradient = tree.gradient(self.value, z)
        return PrimalDual(gradient.primal, jax.tree.map(jnp.negative, gradient.dual))

    def backward(self, z, t=1.0):
        return PrimalDual(prox_of(self.primal, z.primal, t), prox_of(self.dual, z.dual, t))

    def residual_with(self, z, slope):
        primal = natural(self.primal, z.primal, slope.primal)
        return PrimalDual(primal, natural(self.dual, z.dual, slope.dual))

    def check(self, z):
        checks.point("MinMax", z, PrimalDual, "PrimalDual(primal, dual)")
        checks.objective("objective", self.value, z)
        super().check(z)

    def restrict(self, rest):
        if not isinstance(rest, PrimalDual):
            raise TypeError("MinMax is solved for a PrimalDual(primal, dual)")
        objective = _RestrictedPair(self.objective, rest)
        smooth = None if self.smooth is None else Restricted(self.smooth, rest.primal)
        return dataclasses.replace(self, objective=objective, smooth=smooth)


class _RestrictedPair(eqx.Module):
    function: Callable[..., Any]
    rest: PrimalDual

    def __call__(self, x, y):
        return self.function(eqx.combine(x, self.rest.primal), eqx.combine(y, self.rest.dual))


class Game(AbstractInclusion):
    """Nash equilibria: each player $i$ minimizes its own loss $\\ell_i(z_1, \\dots, z_n)$ over its
    own $z_i \\in C_i$.

    A point is a tuple with a pytree for each player. $F$ stacks the gradients of each loss in its
    own block, which costs as many gradients as there are players, one after the other where they
    are more than eight. It is monotone in zero-sum games that are convex for each player, potential
    games with a convex potential, and others.

    **Arguments:**

    - `losses`: the vector of all losses, `z -> ` shape `(n,)`.
    - `feasible`: a tuple of $n$ sets or functions of `jaxopt_ext.prox`, `None` for a player that is
      free; or `None` if all are.
    """

    losses: Callable[[tuple[PyTree[Array], ...]], Float[Array, " n"]]
    feasible: tuple[Any, ...] | None = None

    def __check_init__(self):
        if self.feasible is None:
            return
        if not isinstance(self.feasible, tuple):
            raise TypeError(f"feasible must be a tuple, a set a player, got {self.feasible!r}")
        for i, one in enumerate(self.feasible):
            _check_prox(f"feasible[{i}]", one)

    def forward(self, z):
        n = len(z)
        if n <= 8:
            of_player = lambda i: tree.gradient(
                lambda own: self.losses((*z[:i], own, *z[i + 1 :]))[i], z[i]
            )
            return tuple(of_player(i) for i in range(n))

        def visit(found, i):
            whole = tree.gradient(lambda z: self.losses(z)[i], z)
            return tuple(tree.where(i == j, whole[j], found[j]) for j in range(n)), None

        return loops.scan(visit, jax.tree.map(jnp.zeros_like, z), jnp.arange(n))[0]

    def backward(self, z, t=1.0):
        if self.feasible is None:
            return z
        return tuple(prox_of(one, own, t) for one, own in zip(self.feasible, z, strict=True))

    def residual_with(self, z, slope):
        if self.feasible is None:
            return slope
        return tuple(map(natural, self.feasible, z, slope))

    def check(self, z):
        checks.point("Game", z, tuple, "tuple, a pytree a player")
        if self.feasible is not None and len(self.feasible) != len(z):
            raise ValueError(f"feasible has {len(self.feasible)} sets for {len(z)} players")
        out = jax.eval_shape(self.losses, z)
        if getattr(out, "shape", None) != (len(z),):
            raise ValueError(f"losses must return shape ({len(z)},), a loss a player, got {out}")
        super().check(z)

    def restrict(self, rest):
        return dataclasses.replace(self, losses=Restricted(self.losses, rest))


class FiniteSumInclusion(AbstractInclusion):
    """$0 \\in \\frac1n \\sum_i F(z; d_i) + \\partial g(z)$, a mean over the rows of a table.

    **Arguments:**

    - `component`: `(z, sample) -> ` $F(z; d)$, shaped like `z`.
    - `data`: a pytree of arrays, stacked on the leading axis $n$.
    - `nonsmooth`: $g$, a function or set of `jaxopt_ext.prox`; `None` for zero.
    - `chunk`: rows of a full sum that are looked at together, as in `FiniteSum`.

    **Raises:** `ValueError` on data without a common leading axis of at least 1.
    """

    component: Callable[[PyTree[Array], PyTree], PyTree[Array]]
    data: PyTree[Array]
    nonsmooth: Any = None
    chunk: int | None = eqx.field(static=True, default=4096)

    def __check_init__(self):
        _check_prox("nonsmooth", self.nonsmooth)
        if self.chunk is not None:
            checks.count("chunk", self.chunk)
        rows.check(self.data)

    @property
    def n(self) -> int:
        """The number of samples."""
        return rows.count(self.data)

    def _total(self, z, part):
        each = jax.vmap(lambda sample: self.component(z, sample))(part)
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), each)

    def forward(self, z):
        return rows.mean(lambda part: self._total(z, part), self.data, self.chunk)

    def sampled(self, z: PyTree[Array], indices: Int[Array, " b"]) -> PyTree[Array]:
        """The mean over some rows."""
        b = jnp.shape(indices)[0]
        return tree.scale(self._total(z, rows.take(self.data, indices)), 1 / b)

    def backward(self, z, t=1.0):
        return prox_of(self.nonsmooth, z, t)

    def residual_with(self, z, slope):
        return natural(self.nonsmooth, z, slope)

    def check(self, z):
        sample = rows.first(self.data)
        out = jax.eval_shape(lambda z: self.component(z, sample), z)
        checks.shaped_like("component(z, sample)", out, z)
        super().check(z)

    def restrict(self, rest):
        return dataclasses.replace(self, component=Restricted(self.component, rest, maps=True))


class _Gradient(eqx.Module):
    fun: Callable[[PyTree[Array]], Float[Array, ""]]

    def __call__(self, x):
        return tree.gradient(self.fun, x)


class _SaddleOperator(eqx.Module):
    saddle: Saddle

    def __call__(self, z):
        mapped = as_map(self.saddle.K)(z.primal)
        slope = self.saddle.primal_gradient(z.primal, z.dual)
        return PrimalDual(slope, jax.tree.map(jnp.negative, mapped))


class _SaddleResolvent(eqx.Module):
    saddle: Saddle

    def __call__(self, z, t):
        # Moreau: prox_{t g*}(y) = y - t prox_{g/t}(y/t).
        inverse = 1 / jnp.asarray(t)
        inner = self.saddle.g.prox(tree.scale(z.dual, inverse), inverse)
        return PrimalDual(self.saddle.f.prox(z.primal, t), tree.axpy(z.dual, -t, inner))


def as_inclusion(problem: AbstractProblem) -> AbstractInclusion:
    """A problem as an inclusion with the same points and solutions.

    **Arguments:**

    - `problem`: a `Saddle`, whose map is $F(x, y) = (K^* y + \\nabla h(x), -Kx)$; a `Smooth`,
      `Composite` or `Constrained`, where $F$ is the gradient; a `RootFinding`; or an inclusion,
      returned as it is.

    **Raises:** `TypeError` for anything else.
    """
    match problem:
        case AbstractInclusion():
            return problem
        case Saddle():
            return Inclusion(_SaddleOperator(problem), _SaddleResolvent(problem))
        case Smooth():
            return VariationalInequality(_Gradient(problem.fun))
        case Composite():
            return VariationalInequality(_Gradient(problem.smooth), problem.nonsmooth)
        case Constrained():
            return VariationalInequality(_Gradient(problem.smooth), problem.feasible)
        case RootFinding():
            return VariationalInequality(problem.fun)
    raise TypeError(f"a {type(problem).__name__} is no inclusion")
