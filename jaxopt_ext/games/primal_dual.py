"""Linearized primal-dual methods for saddle points that are strongly concave on one side."""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..core import AbstractSolver, MinMax, PrimalDual, Scalar, checks, loops, scalar_field, tree
from ..core.inclusion import prox_of
from ..core.operators import Map, norm_bound
from ..prox import AbstractFunction


class LipschitzConstants(NamedTuple):
    """Of the gradients of $\\min_x \\max_y s(x) + \\varphi(x, y) + f(x) - h(y)$: $L_s$ of $\\nabla
    s$, $L_{xx}$ of $\\nabla_x \\varphi$ in $x$, and $L_{xy}$ of $\\nabla_x \\varphi$ in $y$."""

    smooth: Any
    primal: Any
    coupling: Any


class _State(eqx.Module):
    point: PrimalDual
    past: PyTree[Array]  # the dual slope at the point before
    constants: LipschitzConstants
    count: Int[Array, ""]
    error: Float[Array, ""]


class _AbstractLinearized(AbstractSolver[MinMax, _State]):
    """What the methods share: all but where the smooth part is looked at, the constant in the step
    size, and how the primal point moves."""

    if TYPE_CHECKING:  # type checkers take equinox's abstract variables for fields
        strong_concavity: ClassVar[Any]
        lipschitz_smooth: ClassVar[Any]
        lipschitz_primal: ClassVar[Any]
        lipschitz_coupling: ClassVar[Any]
    else:
        strong_concavity: eqx.AbstractVar[Any]
        lipschitz_smooth: eqx.AbstractVar[Any]
        lipschitz_primal: eqx.AbstractVar[Any]
        lipschitz_coupling: eqx.AbstractVar[Any]

    def __check_init__(self):
        checks.positive("strong_concavity", self.strong_concavity)
        for name in ("lipschitz_smooth", "lipschitz_primal", "lipschitz_coupling"):
            if getattr(self, name) is not None:
                checks.nonnegative(name, getattr(self, name))

    @abc.abstractmethod
    def _constant(self, constants: LipschitzConstants) -> Any:
        """$C$, without the part of the coupling."""

    @abc.abstractmethod
    def _look(self, average: PyTree[Array], point: PyTree[Array], beta: Any) -> PyTree[Array]:
        """Where the gradient of the smooth part is taken."""

    @abc.abstractmethod
    def _primal(self, problem, x, dual, slope, step, constants, count) -> PyTree[Array]:
        """The next primal point from x, with the slope of the smooth part."""

    def init(self, problem, x, key):
        dtype = tree.real_dtype(x)
        constants = _constants(self, problem, x, dtype)
        nothing = jax.tree.map(jnp.zeros_like, x.dual)
        zero, infinity = jnp.asarray(0, jnp.int32), jnp.asarray(jnp.inf, dtype)
        return _State(x, nothing, constants, zero, infinity)

    def refresh(self, problem, x, state):
        constants = _constants(self, problem, state.point, state.error.dtype)
        return eqx.tree_at(lambda s: s.constants, state, constants)

    def step(self, problem, x, state):
        dtype = state.error.dtype
        k = state.count.astype(dtype) + 1
        mu, constants = self.strong_concavity.astype(dtype), state.constants
        theta, beta, sigma = (k - 1) / k, (k + 1) / 2, 3 / (mu * k)
        bound = self._constant(constants) + 3 * constants.coupling**2 / mu
        tau = k / jnp.where(bound > 0, bound, 1)
        primal, dual = state.point

        rise = tree.gradient(lambda y: problem.objective(primal, y), dual)
        ahead = tree.axpy(rise, theta, jax.tree.map(jnp.subtract, rise, state.past))
        dual = prox_of(problem.dual, tree.axpy(dual, sigma, ahead), sigma)
        dual = tree.cast_like(dual, state.point.dual)

        look = self._look(x.primal, primal, beta)
        slope = jax.tree.map(jnp.zeros_like, primal)
        if problem.smooth is not None:
            slope = tree.gradient(problem.smooth, tree.cast_like(look, primal))
        new = self._primal(problem, primal, dual, slope, tau, constants, k)
        new = tree.cast_like(new, primal)

        value = tree.cast_like(_mixed(x, PrimalDual(new, dual), beta), x)
        error = tree.norm(problem.residual(value)).astype(dtype)
        rise = tree.cast_like(rise, state.past)
        return value, _State(PrimalDual(new, dual), rise, constants, state.count + 1, error)

    def error(self, problem, x, state):
        return state.error

    def guarantee(
        self,
        steps: Any,
        constants: LipschitzConstants,
        primal_radius: Any,
        dual_radius: Any,
    ) -> Float[Array, ""]:
        """$(C |x - x_1|^2 + \\frac\\mu3 |y - y_1|^2) / (K (K + 1))$, above the gap of the averages
        to any $(x, y)$, behind $K$ steps.

        **Arguments:**

        - `steps`: $K \\le$ `max_steps`.
        - `constants`: the Lipschitz constants.
        - `primal_radius`, `dual_radius`: $|x - x_1|$ and $|y - y_1|$.
        """
        mu = self.strong_concavity
        bound = self._constant(constants) + 3 * constants.coupling**2 / mu
        return (bound * primal_radius**2 + mu / 3 * dual_radius**2) / (steps * (steps + 1))


class LinearizedPrimalDual(_AbstractLinearized):
    """For $\\min_x \\max_y s(x) + \\varphi(x, y) + f(x) - h(y)$ with $h$ strongly convex and a
    smooth $s$ that has no prox: step $k$ of $K$ is

    $$\\begin{aligned}
    y_{k+1} &= \\mathrm{prox}_{\\sigma_k h}\\bigl(y_k + \\sigma_k ((1 + \\theta_k) \\nabla_y
      \\varphi(x_k, y_k) - \\theta_k \\nabla_y \\varphi(x_{k-1}, y_{k-1}))\\bigr) \\\\
    x_{k+1} &= \\mathrm{prox}_{\\tau_k f}\\bigl(x_k - \\tau_k (\\nabla s(x_k) + \\nabla_x
      \\varphi(x_k, y_{k+1}))\\bigr)
    \\end{aligned}$$

    with $\\theta_k = (k - 1) / k$, $\\sigma_k = 3 / (\\mu k)$, $\\tau_k = k / C$ and
    $C = K (L_s + L_{xx}) + 3 L_{xy}^2 / \\mu$. The value is the mean of the points with weights
    $k$, and its gap is $O((L_s + L_{xx}) / K + L_{xy}^2 / (\\mu K^2))$.

    The rate is that of a $\\varphi$ that is linear in $y$; one that is concave is taken too, and
    $\\sigma_k$ falls below what its curvature asks for. $K$ is `max_steps`: the steps are those of
    a horizon. The error is the norm of the problem's
    residual at the mean, which costs one more evaluation of the map.

    **Arguments:**

    - `strong_concavity`: $\\mu > 0$, that of $h$.
    - `lipschitz_smooth`, `lipschitz_primal`, `lipschitz_coupling`: $L_s$, $L_{xx}$, $L_{xy}$;
      `None` for those of the Jacobian at the start, by power iteration, which is enough where $s$
      and $\\varphi$ are quadratic.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` for a constant that is negative, or no `strong_concavity`.

    **Reference:** Khalafi, Boob, Accelerated Primal-Dual Methods for Convex-Strongly-Concave Saddle
    Point Problems, ICML 2023, arXiv:2209.04604.
    """

    strong_concavity: Scalar = eqx.field(converter=checks.scalar)
    lipschitz_smooth: Scalar | None = scalar_field(None)
    lipschitz_primal: Scalar | None = scalar_field(None)
    lipschitz_coupling: Scalar | None = scalar_field(None)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 1000
    problems = (MinMax,)

    def _constant(self, constants):
        return self.max_steps * (constants.smooth + constants.primal)

    def _look(self, average, point, beta):
        return point

    def _primal(self, problem, x, dual, slope, step, constants, count):
        return _linearized(problem, x, dual, slope, step)


class AcceleratedLinearizedPrimalDual(_AbstractLinearized):
    """`LinearizedPrimalDual` with the gradient of the smooth part between the mean of the points so
    far and the last, as Nesterov's method has it,

    $$\\nabla s\\bigl((1 - \\beta_k^{-1}) \\bar x_k + \\beta_k^{-1} x_k\\bigr), \\qquad
    \\beta_k = (k + 1) / 2,$$

    and $C = 2 L_s + K L_{xx} + 3 L_{xy}^2 / \\mu$: the gap of the mean is $O(L_s / K^2 + L_{xx} / K
    + L_{xy}^2 / (\\mu K^2))$, which is $O(1 / K^2)$ where $\\varphi$ is linear in $x$.

    **Arguments:** those of `LinearizedPrimalDual`.

    **Raises:** as `LinearizedPrimalDual`.

    **Reference:** Khalafi, Boob, Accelerated Primal-Dual Methods for Convex-Strongly-Concave Saddle
    Point Problems, ICML 2023, arXiv:2209.04604.
    """

    strong_concavity: Scalar = eqx.field(converter=checks.scalar)
    lipschitz_smooth: Scalar | None = scalar_field(None)
    lipschitz_primal: Scalar | None = scalar_field(None)
    lipschitz_coupling: Scalar | None = scalar_field(None)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 1000
    problems = (MinMax,)

    def _constant(self, constants):
        return 2 * constants.smooth + self.max_steps * constants.primal

    def _look(self, average, point, beta):
        return _mixed(average, point, beta)

    def _primal(self, problem, x, dual, slope, step, constants, count):
        return _linearized(problem, x, dual, slope, step)


class InexactAcceleratedPrimalDual(_AbstractLinearized):
    """`AcceleratedLinearizedPrimalDual` whose primal step leaves $\\varphi$ as it is,

    $$x_{k+1} \\approx \\arg\\min_x \\langle \\nabla s(\\cdot), x\\rangle + \\varphi(x, y_{k+1}) +
      f(x) + \\tfrac1{2 \\tau_k} |x - x_k|^2,$$

    by $N_k = \\lceil \\sqrt{\\kappa_k} \\log(k + 1) \\rceil$ accelerated proximal steps, $\\kappa_k
    = 1 + \\tau_k L_{xx}$. Then $C = 2 L_s + 3 L_{xy}^2 / \\mu$, and the gap is $O(L_s / K^2)$ in
    evaluations of $\\nabla s$, one a step. It cannot be unrolled in reverse mode.

    **Arguments:** those of `LinearizedPrimalDual`; `max_steps` is no horizon here.

    **Raises:** as `LinearizedPrimalDual`.

    **Reference:** Khalafi, Boob, Accelerated Primal-Dual Methods for Convex-Strongly-Concave Saddle
    Point Problems, ICML 2023, arXiv:2209.04604.
    """

    strong_concavity: Scalar = eqx.field(converter=checks.scalar)
    lipschitz_smooth: Scalar | None = scalar_field(None)
    lipschitz_primal: Scalar | None = scalar_field(None)
    lipschitz_coupling: Scalar | None = scalar_field(None)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 1000
    problems = (MinMax,)

    def _constant(self, constants):
        return 2 * constants.smooth

    def _look(self, average, point, beta):
        return _mixed(average, point, beta)

    def _primal(self, problem, x, dual, slope, step, constants, count):
        root = jnp.sqrt(1 + step * constants.primal)
        length = step / root**2
        momentum = (root - 1) / (root + 1)
        steps = jnp.ceil(root * jnp.log(count + 1)).astype(jnp.int32)

        def inner(_, carry):
            point, before = carry
            moved = tree.axpy(point, momentum, jax.tree.map(jnp.subtract, point, before))
            moved = tree.cast_like(moved, point)
            rise = tree.gradient(lambda x: problem.objective(x, dual), moved)
            pull = jax.tree.map(jnp.subtract, moved, x)
            total = jax.tree.map(jnp.add, slope, tree.axpy(rise, 1 / step, pull))
            new = prox_of(problem.primal, tree.axpy(moved, -length, total), length)
            return tree.cast_like(new, point), point

        return loops.fori_loop(0, steps, inner, (x, x))[0]


def _mixed(mean, point, beta):
    return tree.axpy(tree.scale(mean, 1 - 1 / beta), 1 / beta, point)


def _linearized(problem, x, dual, slope, step):
    rise = tree.gradient(lambda x: problem.objective(x, dual), x)
    moved = tree.axpy(x, -step, jax.tree.map(jnp.add, slope, rise))
    return prox_of(problem.primal, moved, step)


def _constants(method, problem: MinMax, x: PrimalDual, dtype) -> LipschitzConstants:
    """Those given, and the others of the Jacobian at a point."""
    # Tangents vary over a mesh as the data do, and so must their point.
    x = loops.vary(x, loops.varying_axes((problem, x)))
    rise = lambda z: tree.gradient(lambda x: problem.objective(x, z.dual), z.primal)

    axes = loops.varying_axes(x)

    def curvature(slope):
        product = lambda v: jax.jvp(slope, (x.primal,), (loops.vary(v, axes),))[1]
        return norm_bound(Map(product, product), x.primal)

    def smooth():
        fun = problem.smooth
        return 0.0 if fun is None else curvature(lambda x: tree.gradient(fun, x))

    def coupling():
        across = lambda y: rise(PrimalDual(x.primal, y))
        product = lambda v: jax.jvp(across, (x.dual,), (loops.vary(v, axes),))[1]
        back = jax.vjp(across, x.dual)[1]
        return norm_bound(Map(product, lambda u: back(loops.vary(u, axes))[0]), x.dual)

    own = lambda: curvature(lambda p: rise(PrimalDual(p, x.dual)))
    given = method.lipschitz_smooth, method.lipschitz_primal, method.lipschitz_coupling
    found = (
        a if a is not None else of() for a, of in zip(given, (smooth, own, coupling), strict=True)
    )
    return LipschitzConstants(*(jnp.asarray(a).astype(dtype) for a in found))


class _PenaltyDual(AbstractFunction):
    """$|y|^2 / (2 \\rho)$ on $y \\ge 0$."""

    rho: Float[Array, ""]
    convex = True

    def __call__(self, x):
        inside = jnp.all(x >= 0)
        return jnp.where(inside, jnp.sum(x**2) / (2 * self.rho.astype(x.dtype)), jnp.inf)

    def prox(self, x, step=1.0):
        return jnp.maximum(x, 0) / (1 + step / self.rho.astype(x.dtype))


class _Weighted(eqx.Module):
    constraints: Callable[[PyTree[Array]], Float[Array, " m"]]

    def __call__(self, x, y):
        return jnp.vdot(y, self.constraints(x))


def penalty_problem(
    objective: Callable[[PyTree[Array]], Float[Array, ""]],
    constraints: Callable[[PyTree[Array]], Float[Array, " m"]],
    penalty: Any,
    feasible: Any = None,
) -> MinMax:
    """The saddle point of a quadratic penalty on inequalities,

    $$\\min_{x \\in X} s(x) + \\tfrac\\rho2 |c(x)_+|^2 = \\min_{x \\in X} \\max_{y \\ge 0}
      s(x) + y^\\top c(x) - \\tfrac1{2 \\rho} |y|^2,$$

    which is strongly concave with $\\mu = 1 / \\rho$.

    **Arguments:**

    - `objective`: $s$.
    - `constraints`: $c$, convex functions, to shape `(m,)`.
    - `penalty`: $\\rho > 0$.
    - `feasible`: $X$, a set or function of `jaxopt_ext.prox`; `None` for the whole space.

    **Returns:** a `MinMax`, whose points are `PrimalDual(x, y)` with `y` of shape `(m,)`.

    **Raises:** `ValueError` unless the penalty is positive.
    """
    rho = checks.scalar(penalty)
    checks.positive("penalty", rho)
    return MinMax(_Weighted(constraints), feasible, _PenaltyDual(rho), objective)
