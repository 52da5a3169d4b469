"""Methods of other geometries, with steps that a horizon or a smoothness fixes."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...core import Composite, Constrained, Scalar, Smooth, checks, scalar_field, tree
from ..mirror_descent import AbstractMirrorMap, Euclidean
from .averaging import (
    AbstractAverage,
    AbstractAveraged,
    BestPoint,
    Played,
    UniformAverage,
    forward,
    natural,
    other_part,
)
from .gradient import AbstractSloped, inside, look


def geometry_field():
    """A mirror map, Euclidean by default."""
    return eqx.field(default_factory=lambda: Euclidean())


def check_geometry(mirror_map, **positive) -> None:
    """Raise unless it is a mirror map and the constants are positive."""
    checks.instance("mirror_map", mirror_map, AbstractMirrorMap, "EntropicSimplex()")
    for name, value in positive.items():
        for one in value if isinstance(value, tuple) else (value,):
            checks.positive(name, one)


def enter(mirror_map, problem, x):
    """A start moved into the set; other geometries than the Euclidean must start in it, as a
    projection may put an entry where they have no gradient."""
    return inside(problem, x) if isinstance(mirror_map, Euclidean) else x


class FixedMirrorDescent(AbstractSloped):
    """Mirror descent with the step of a horizon,

    $$x_{s+1} = \\arg\\min_{u \\in C} \\eta \\langle g_s, u\\rangle + \\eta\\, h(u) + D(u, x_s),
      \\qquad \\eta = \\frac RL \\sqrt{\\frac{2 \\rho}{t}},$$

    with a mirror map that is $\\rho$-strongly convex in a norm, subgradients $\\|g\\|_* \\le L$ and
    $t$ = `max_steps`. The average of $x_1, \\dots, x_t$ has $f - f^* \\le R L \\sqrt{2 / (\\rho
    t)}$; of the first $s$ of them $R^2 / (\\eta s) + \\eta L^2 / (2 \\rho)$. It is for functions
    with kinks; `MirrorDescent` searches its step on smooth ones. With the Euclidean map it is
    `ProjectedSubgradient`.

    On a `Composite` problem $h$ is the nonsmooth part, which is not linearized: composite mirror
    descent, with the same rate from a start where $h$ is least, as zero is for norms. `Euclidean`
    takes all $h$, `PNorm` the `prox.L1`: both soft thresholding of gradients of the mirror map.

    The error is the norm of the problem's residual, which at a kink of $f$ does not vanish. Then a
    solve takes all its steps and ends as `step_limit`.

    **Arguments:**

    - `mirror_map`: `Euclidean()`, `EntropicSimplex()`, `EntropicOrthant()`, `PNorm(p)`,
      `MatrixEntropy()`. Other geometries than the Euclidean start in the set, away from its
      boundary.
    - `radius`: $R$, with $R^2$ a bound on $D(x^*, x_1)$: $\\log d$ from the middle of a simplex,
      half of the squared distance in the Euclidean geometry.
    - `lipschitz`: $L$.
    - `mirror_convexity`: $\\rho$.
    - `average`: `UniformAverage()` or `BestPoint()`.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless constants are positive; `TypeError` for another average, and a
    geometry that has no step with the nonsmooth part.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 4.2. Nemirovski, Yudin, Problem Complexity and Method Efficiency in Optimization, 1983.
    Duchi, Shalev-Shwartz, Singer, Tewari, Composite Objective Mirror Descent, 2010.
    """

    mirror_map: AbstractMirrorMap = geometry_field()
    radius: Scalar = scalar_field(1.0)
    lipschitz: Scalar = scalar_field(1.0)
    mirror_convexity: Scalar = scalar_field(1.0)
    average: AbstractAverage = eqx.field(default_factory=lambda: UniformAverage())
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 1000
    problems = (Constrained, Composite, Smooth)

    def __check_init__(self):
        check_geometry(
            self.mirror_map,
            radius=self.radius,
            lipschitz=self.lipschitz,
            mirror_convexity=self.mirror_convexity,
        )
        if not isinstance(self.average, UniformAverage | BestPoint):
            raise TypeError(f"average must be UniformAverage() or BestPoint(), got {self.average}")

    @property
    def step_size(self) -> Float[Array, ""]:
        """$\\eta$."""
        return self.radius / self.lipschitz * jnp.sqrt(2 * self.mirror_convexity / self.max_steps)

    def averaging(self):
        return self.average

    def enter(self, problem, x):
        return enter(self.mirror_map, problem, x)

    def move(self, problem, state):
        other, eta = other_part(problem), self.step_size.astype(state.error.dtype)
        point = forward(self.mirror_map, other, state.point, state.memory.slope, eta)
        point = tree.cast_like(point, state.point)
        known = look(problem, point)
        value = state.memory.value
        if isinstance(problem, Composite):
            value = value + other(state.point)
        return Played(point, known, state.point, value, natural(other, point, known.slope))

    def guarantee(self, steps, constants):
        """$R^2 / (\\eta s) + \\eta L^2 / (2 \\rho)$ with the `radius`, `lipschitz` and
        `mirror_convexity` given."""
        return regret(self.step_size, steps, constants)


def regret(eta, steps, constants, factor=1.0):
    """$R^2 / (\\eta s) + c \\eta L^2 / (2 \\rho)$."""
    radius, lipschitz, rho = constants.need("radius", "lipschitz", "mirror_convexity")
    return radius**2 / (eta * steps) + factor * eta * lipschitz**2 / (2 * rho)


class _Sum(NamedTuple):
    anchor: PyTree[Array]
    total: PyTree[Array]  # of the subgradients
    value: Float[Array, ""]
    slope: PyTree[Array]


class DualAveraging(AbstractAveraged):
    """Dual averaging: each point from the start and all subgradients so far,

    $$x_{s+1} = \\arg\\min_{u \\in C} \\eta \\sum_{r \\le s} \\langle g_r, u\\rangle + \\eta s
      \\, h(u) + D(u, x_1), \\qquad \\eta = \\frac RL \\sqrt{\\frac{\\rho}{2 t}} .$$

    The average of $x_1, \\dots, x_t$ has $f - f^* \\le 2 R L \\sqrt{2 / (\\rho t)}$; of the first
    $s$ of them $R^2 / (\\eta s) + 2 \\eta L^2 / \\rho$. With a start that minimizes the mirror map
    over the set, $D(u, x_1)$ is as good as the map itself.

    On a `Composite` problem $h$ is the nonsmooth part: regularized dual averaging, whose points are
    sparser than those of mirror descent, as the whole penalty acts at once. With `prox.L1` and
    `Euclidean` or `PNorm` the step is soft thresholding of the mean subgradient.

    The error is that of `FixedMirrorDescent`.

    **Arguments:**

    - `mirror_map`, `radius`, `lipschitz`, `mirror_convexity`: see `FixedMirrorDescent`.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless constants are positive; `TypeError` for a geometry that has no
    step with the nonsmooth part.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 4.4. Nesterov, Primal-Dual Subgradient Methods for Convex Problems, 2009. Xiao, Dual
    Averaging Methods for Regularized Stochastic Learning and Online Optimization, 2010.
    """

    mirror_map: AbstractMirrorMap = geometry_field()
    radius: Scalar = scalar_field(1.0)
    lipschitz: Scalar = scalar_field(1.0)
    mirror_convexity: Scalar = scalar_field(1.0)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 1000
    problems = (Constrained, Composite, Smooth)

    def __check_init__(self):
        check_geometry(
            self.mirror_map,
            radius=self.radius,
            lipschitz=self.lipschitz,
            mirror_convexity=self.mirror_convexity,
        )

    @property
    def step_size(self) -> Float[Array, ""]:
        """$\\eta$."""
        return self.radius / self.lipschitz * jnp.sqrt(self.mirror_convexity / (2 * self.max_steps))

    def enter(self, problem, x):
        return enter(self.mirror_map, problem, x)

    def first(self, problem, x, key):
        known = look(problem, x)
        return _Sum(x, jax.tree.map(jnp.zeros_like, x), known.value, known.slope)

    def renew(self, problem, state):
        known = look(problem, state.point)
        return state.memory._replace(value=known.value, slope=known.slope)

    def move(self, problem, state):
        memory, other = state.memory, other_part(problem)
        dtype = state.error.dtype
        eta = self.step_size.astype(dtype)
        total = jax.tree.map(jnp.add, memory.total, memory.slope)
        penalty = eta * (state.count.astype(dtype) + 1)
        point = forward(self.mirror_map, other, memory.anchor, total, eta, penalty)
        point = tree.cast_like(point, state.point)
        known = look(problem, point)
        error = natural(other, point, known.slope)
        new = _Sum(memory.anchor, total, known.value, known.slope)
        return Played(point, new, state.point, memory.value, error)

    def guarantee(self, steps, constants):
        """$R^2 / (\\eta s) + 2 \\eta L^2 / \\rho$ with the `radius`, `lipschitz` and
        `mirror_convexity` given."""
        return regret(self.step_size, steps, constants, 4.0)


class MirrorProx(AbstractSloped):
    """Mirror prox: look ahead, then step from where you were with the gradient found there,

    $$y_{s+1} = \\arg\\min_{u \\in C} \\eta \\langle \\nabla f(x_s), u\\rangle + D(u, x_s), \\qquad
      x_{s+1} = \\arg\\min_{u \\in C} \\eta \\langle \\nabla f(y_{s+1}), u\\rangle + D(u, x_s),
      \\qquad \\eta = \\rho / \\beta .$$

    The average of the $y$ has $f - f^* \\le \\beta R^2 / (\\rho t)$. It is for smooth functions;
    `SaddleMirrorProx` is the same for saddle points, `games.Extragradient` the Euclidean one for
    inclusions.

    The error is the norm of the problem's residual at $x$; if that passes it is returned.

    **Arguments:**

    - `mirror_map`: see `FixedMirrorDescent`.
    - `smoothness`: $\\beta$, in the norm of the mirror map.
    - `mirror_convexity`: $\\rho$.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless constants are positive.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 4.5. Nemirovski, Prox-Method with Rate of Convergence O(1/t) for Variational
    Inequalities with Lipschitz Continuous Monotone Operators and Smooth Convex-Concave Saddle Point
    Problems, 2004.
    """

    mirror_map: AbstractMirrorMap = geometry_field()
    smoothness: Scalar = scalar_field(1.0)
    mirror_convexity: Scalar = scalar_field(1.0)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Constrained, Smooth)

    def __check_init__(self):
        check_geometry(
            self.mirror_map, smoothness=self.smoothness, mirror_convexity=self.mirror_convexity
        )

    @property
    def step_size(self) -> Float[Array, ""]:
        """$\\eta$."""
        return self.mirror_convexity / self.smoothness

    def enter(self, problem, x):
        return enter(self.mirror_map, problem, x)

    def move(self, problem, state):
        other, x = other_part(problem), state.point
        eta = self.step_size.astype(state.error.dtype)
        ahead = tree.cast_like(forward(self.mirror_map, other, x, state.memory.slope, eta), x)
        seen = look(problem, ahead)
        point = tree.cast_like(forward(self.mirror_map, other, x, seen.slope, eta), x)
        known = look(problem, point)
        return Played(point, known, ahead, seen.value, natural(other, point, known.slope))

    def guarantee(self, steps, constants):
        """$R^2 / (\\eta s)$ with the `radius` given, if $\\eta \\beta \\le \\rho$ with the
        `smoothness` and `mirror_convexity` given; infinite otherwise."""
        names = "radius", "smoothness", "mirror_convexity"
        radius, beta, rho = constants.need(*names)
        holds = self.step_size * beta <= rho * (1 + 1e-5)
        return jnp.where(holds, radius**2 / (self.step_size * steps), jnp.inf)
