"""Saddle points in two geometries: mirror descent and mirror prox on both sides at once."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ...core import MinMax, PrimalDual, Scalar, checks, scalar_field, tree
from ...prox import L2Ball, Simplex
from ..mirror_descent import AbstractMirrorMap, Euclidean
from .averaging import AbstractAveraged, Played, forward
from .mirror import check_geometry, geometry_field


def pair_field(first: float = 1.0):
    """Two numbers, of the primal and the dual side."""
    return eqx.field(converter=_pair, default=(first, first))


def _pair(pair):
    pair = tuple(checks.scalar(a) for a in pair)
    if len(pair) != 2:
        raise ValueError(f"there must be two numbers, of the primal and the dual side, got {pair}")
    return pair


class AbstractSaddleMethod(AbstractAveraged[MinMax]):
    """A method with the mirror map $\\Phi = a \\Phi_X + b \\Phi_Y$ on both sides."""

    primal_map: eqx.AbstractVar[AbstractMirrorMap]
    dual_map: eqx.AbstractVar[AbstractMirrorMap]
    radii: eqx.AbstractVar[Any]

    def enter(self, problem, x):
        primal = _projected(self.primal_map, problem.primal, x.primal)
        return PrimalDual(primal, _projected(self.dual_map, problem.dual, x.dual))

    @abc.abstractmethod
    def weights(self) -> tuple[Any, Any]:
        """$a$ and $b$."""

    def both(self, problem, z, slope, eta):
        """A step on both sides."""
        a, b = self.weights()
        steps = [(eta / w).astype(tree.real_dtype(z)) for w in (a, b)]
        primal = forward(self.primal_map, problem.primal, z.primal, slope.primal, steps[0])
        dual = forward(self.dual_map, problem.dual, z.dual, slope.dual, steps[1])
        return tree.cast_like(PrimalDual(primal, dual), z)

    def range(self, constants):
        """$a R_X^2 + b R_Y^2$."""
        if constants.dual is None:
            raise ValueError("this theorem needs the constants of the other player, `dual`")
        (first,), (second,) = constants.need("radius"), constants.dual.need("radius")
        a, b = self.weights()
        return a * first**2 + b * second**2


def _projected(mirror_map, other, x):
    if hasattr(other, "project") and isinstance(mirror_map, Euclidean):
        return other.project(x)
    return x


def look(problem, z) -> PrimalDual:
    """$(\\nabla_x \\varphi, -\\nabla_y \\varphi)$."""
    return tree.cast_like(problem.forward(z), z)


def first_order(eta, steps, range_, lipschitz, constants, weights, factor=1.0):
    """$\\Theta / (\\eta s) + c \\frac\\eta2 (L_X^2 / a + L_Y^2 / b)$."""
    (first,), (second,) = constants.need(lipschitz), constants.dual.need(lipschitz)
    square = first**2 / weights[0] + second**2 / weights[1]
    return range_ / (eta * steps) + factor * eta / 2 * square


class SaddleMirrorDescent(AbstractSaddleMethod):
    """Saddle point mirror descent,

    $$z_{s+1} = \\arg\\min_u \\eta \\langle F(z_s), u\\rangle + D_\\Phi(u, z_s), \\qquad
      F = (g_X, -g_Y), \\qquad \\Phi = a \\Phi_X + b \\Phi_Y,$$

    with $a = L_X / R_X$, $b = L_Y / R_Y$, $\\eta = \\sqrt{2 / t}$ and $t$ = `max_steps`. The
    average $(x, y)$ has a gap $\\max_v \\varphi(x, v) - \\min_u \\varphi(u, y) \\le
    (R_X L_X + R_Y L_Y) \\sqrt{2 / t}$. The function may have kinks.

    The error is the norm of the problem's residual at the iterate in the loop, which circles around
    saddle points, and at the average in the end.

    **Arguments:**

    - `primal_map`, `dual_map`: mirror maps, strongly convex with constant 1 in a norm each.
    - `radii`: $(R_X, R_Y)$, with $R^2$ a bound on the divergence from the start.
    - `lipschitz`: $(L_X, L_Y)$, bounds on the dual norms of $g_X$ and $g_Y$.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless constants are positive.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 5.2.2. Juditsky, Nemirovski, First Order Methods for Nonsmooth Convex Large-Scale
    Optimization, 2011.
    """

    primal_map: AbstractMirrorMap = geometry_field()
    dual_map: AbstractMirrorMap = geometry_field()
    radii: Any = pair_field()
    lipschitz: Any = pair_field()
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 1000
    problems = (MinMax,)

    def __check_init__(self):
        for one in (self.primal_map, self.dual_map):
            check_geometry(one, radii=self.radii, lipschitz=self.lipschitz)

    def weights(self):
        return tuple(l / r for l, r in zip(self.lipschitz, self.radii, strict=True))

    @property
    def step_size(self) -> float:
        """$\\eta$."""
        return (2 / self.max_steps) ** 0.5

    def first(self, problem, x, key):
        return look(problem, x)

    def renew(self, problem, state):
        return look(problem, state.point)

    def move(self, problem, state):
        point = self.both(problem, state.point, state.memory, self.step_size)
        slope = look(problem, point)
        error = tree.norm(problem.residual_with(point, slope))
        return Played(point, slope, state.point, jnp.zeros((), error.dtype), error)

    def guarantee(self, steps, constants):
        """Of the gap: $\\Theta / (\\eta s) + \\frac\\eta2 (L_X^2 / a + L_Y^2 / b)$, $\\Theta = a
        R_X^2 + b R_Y^2$, with the `radius` and `lipschitz` given for the primal side, and in `dual`
        for the other."""
        range_, weights = self.range(constants), self.weights()
        return first_order(self.step_size, steps, range_, "lipschitz", constants, weights)


class SaddleMirrorProx(AbstractSaddleMethod):
    """Saddle point mirror prox,

    $$w_{s+1} = \\arg\\min_u \\eta \\langle F(z_s), u\\rangle + D_\\Phi(u, z_s), \\qquad
      z_{s+1} = \\arg\\min_u \\eta \\langle F(w_{s+1}), u\\rangle + D_\\Phi(u, z_s),$$

    with $a = 1 / R_X^2$, $b = 1 / R_Y^2$, $\\eta = 1 / (2 m)$ and $m = \\max(\\beta_{11} R_X^2,
    \\beta_{22} R_Y^2, \\beta_{12} R_X R_Y, \\beta_{21} R_X R_Y)$. The average of the $w$ has a gap
    of at most $4 m / t$, whatever $t$ is.

    The error is the norm of the problem's residual at $z$ in the loop, and at the average in the
    end; if $z$ is a solution it is returned.

    **Arguments:**

    - `primal_map`, `dual_map`, `radii`: see `SaddleMirrorDescent`.
    - `smoothness`: $(\\beta_{11}, \\beta_{22}, \\beta_{12})$: Lipschitz constants of $\\nabla_x
      \\varphi$ in $x$, of $\\nabla_y \\varphi$ in $y$, and of each in the other, in the norms of
      the maps.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless radii are positive, and smoothness is not negative and not zero.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 5.2.3. Nemirovski, Prox-Method with Rate of Convergence O(1/t) for Variational
    Inequalities with Lipschitz Continuous Monotone Operators and Smooth Convex-Concave Saddle Point
    Problems, 2004.
    """

    primal_map: AbstractMirrorMap = geometry_field()
    dual_map: AbstractMirrorMap = geometry_field()
    radii: Any = pair_field()
    smoothness: Any = eqx.field(
        converter=lambda three: tuple(checks.scalar(a) for a in three), default=(0.0, 0.0, 1.0)
    )
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 2000
    problems = (MinMax,)

    def __check_init__(self):
        for one in (self.primal_map, self.dual_map):
            check_geometry(one, radii=self.radii)
        check_smoothness(self.smoothness)

    def weights(self):
        return tuple(1 / r**2 for r in self.radii)

    @property
    def step_size(self) -> Float[Array, ""]:
        """$\\eta$."""
        return 1 / joint_smoothness(self.smoothness, self.weights())

    def first(self, problem, x, key):
        return look(problem, x)

    def renew(self, problem, state):
        return look(problem, state.point)

    def move(self, problem, state):
        eta = self.step_size
        ahead = self.both(problem, state.point, state.memory, eta)
        point = self.both(problem, state.point, look(problem, ahead), eta)
        slope = look(problem, point)
        error = tree.norm(problem.residual_with(point, slope))
        return Played(point, slope, ahead, jnp.zeros((), error.dtype), error)

    def guarantee(self, steps, constants):
        """Of the gap: $(a R_X^2 + b R_Y^2) / (\\eta s)$ with the `radius` given, and in `dual` for
        the other side, if $\\eta$ is short enough for the `smoothness` of both and the `coupling`
        given; infinite otherwise."""
        range_, weights = self.range(constants), self.weights()
        (coupling,) = constants.need("coupling")
        own = [0.0 if c.smoothness is None else c.smoothness for c in (constants, constants.dual)]
        total = joint_smoothness((*own, coupling), weights)
        holds = self.step_size * total <= 1 + 1e-5
        return jnp.where(holds, range_ / (self.step_size * steps), jnp.inf)


def check_smoothness(smoothness) -> None:
    """Raise `ValueError` unless these are three constants, not all zero."""
    if len(smoothness) != 3:
        raise ValueError(f"smoothness must be three constants, got {smoothness}")
    for value in smoothness:
        checks.nonnegative("smoothness", value)
    if not checks.is_traced(smoothness):
        checks.positive("the largest smoothness", max(float(value) for value in smoothness))


def joint_smoothness(smoothness, weights):
    """$2 \\max(\\beta_{11} / a, \\beta_{22} / b, \\beta_{12} / \\sqrt{a b})$, a Lipschitz constant
    of $F$ in the joint norm."""
    (first, second, coupling), (a, b) = smoothness, weights
    return 2 * jnp.maximum(jnp.maximum(first / a, second / b), coupling / jnp.sqrt(a * b))


class AbstractSampledObjective(eqx.Module):
    """$\\varphi$ with cheap unbiased estimates of its gradients."""

    @abc.abstractmethod
    def __call__(self, x: PyTree[Array], y: PyTree[Array]) -> Float[Array, ""]:
        """$\\varphi(x, y)$."""

    @abc.abstractmethod
    def sampled(
        self, x: PyTree[Array], y: PyTree[Array], key: PRNGKeyArray
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """Estimates of $\\nabla_x \\varphi$ and $\\nabla_y \\varphi$."""


class MatrixGame(AbstractSampledObjective):
    """$\\varphi(x, y) = x^\\top A y$ of mixed strategies: a column drawn by $y$ is an estimate of
    $A y$, a row drawn by $x$ one of $A^\\top x$, for the price of $n + m$ where the products cost
    $n m$.

    **Arguments:**

    - `matrix`: $A$, shape `(n, m)`, what the first player pays.
    """

    matrix: Float[Array, "n m"] = eqx.field(converter=jnp.asarray)

    def __check_init__(self):
        if self.matrix.ndim != 2:
            raise ValueError(f"matrix must have two axes, got shape {self.matrix.shape}")

    def __call__(self, x, y):
        return x @ self.matrix @ y

    def sampled(self, x, y, key):
        first, second = jax.random.split(key)
        i, j = _draw(first, x), _draw(second, y)
        return self.matrix[:, j], self.matrix[i, :]


def _draw(key, weights):
    """An index in proportion to the weights."""
    sums = jnp.cumsum(weights)
    at = jax.random.uniform(key, (), sums.dtype) * sums[-1]
    return jnp.minimum(jnp.searchsorted(sums, at, side="right"), weights.shape[0] - 1)


def matrix_game(matrix: Float[Array, "n m"]) -> MinMax:
    """$\\min_{x \\in \\Delta_n} \\max_{y \\in \\Delta_m} x^\\top A y$.

    With `EntropicSimplex` on both sides $R_X^2 = \\log n$, $R_Y^2 = \\log m$, and the largest entry
    of $|A|$ is $\\beta_{12}$, $L_X$ and $L_Y$.

    **Arguments:**

    - `matrix`: $A$, shape `(n, m)`.

    **Raises:** `ValueError` for what is no matrix.
    """
    return MinMax(MatrixGame(matrix), Simplex(1.0), Simplex(1.0))


class _Weighted(eqx.Module):
    functions: Callable[[PyTree[Array]], Float[Array, " m"]]

    def __call__(self, x, y):
        return jnp.vdot(y, self.functions(x))


def maximum_of(
    functions: Callable[[PyTree[Array]], Float[Array, " m"]], feasible: Any = None
) -> MinMax:
    """$\\min_x \\max_{j \\le m} f_j(x)$ of smooth functions, as the saddle point of $\\sum_j y_j
    f_j(x)$ with $y$ in the simplex: a rate of $1/t$ where the maximum itself allows $1/\\sqrt t$.

    **Arguments:**

    - `functions`: `x -> ` all $f_j(x)$, shape `(m,)`.
    - `feasible`: a set for $x$, or `None`.
    """
    return MinMax(_Weighted(functions), feasible, Simplex(1.0))


class _Margins(eqx.Module):
    rows: Float[Array, "m n"]

    def __call__(self, x):
        return -self.rows @ x


def linear_classification(
    inputs: Float[Array, "m n"], labels: Float[Array, " m"], feasible: Any = None
) -> MinMax:
    """The largest margin, $\\max_{|x| \\le 1} \\min_i \\, y_i \\langle a_i, x\\rangle$, as a saddle
    point; the game's value is less than zero where the data are separable.

    **Arguments:**

    - `inputs`: $a$, shape `(m, n)`.
    - `labels`: $y_i = \\pm 1$, shape `(m,)`.
    - `feasible`: another set for $x$ than the Euclidean ball.

    **Raises:** `ValueError` if shapes do not fit.
    """
    inputs, labels = jnp.asarray(inputs), jnp.asarray(labels)
    if inputs.ndim != 2 or labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"inputs must have one row per label, got {inputs.shape} and {labels.shape}"
        )
    rows = labels[:, None] * inputs
    return maximum_of(_Margins(rows), L2Ball(1.0) if feasible is None else feasible)
