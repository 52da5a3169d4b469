"""A small problem of each type, a parameter to differentiate by, and an independent answer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import jaxopt_ext as jxt
from jaxopt_ext import prox

RNG = np.random.default_rng(7)
ROWS, COLUMNS = 12, 5
A = RNG.normal(size=(ROWS, COLUMNS)) / np.sqrt(ROWS)
TRUE = np.array([1.0, -2.0, 0.0, 0.5, 0.0])
B = A @ TRUE + 0.1 * RNG.normal(size=ROWS)
CONTRACTION = 0.7 * np.linalg.qr(RNG.normal(size=(COLUMNS, COLUMNS)))[0]


@dataclasses.dataclass(frozen=True)
class Case:
    """A family of problems in one parameter `theta`, a vector.

    - `build(theta)`: the problem, in the type of `theta`.
    - `start(dtype)`: a starting point.
    - `primal(value)`: the part of a solution that the oracle knows.
    - `oracle(theta)`: that part, by other means, in double precision.
    - `theta`: the parameter's value.
    - `pytree(theta)`: the same problem over a dictionary, where it makes sense.
    """

    build: Callable[[Any], Any]
    start: Callable[[Any], Any]
    oracle: Callable[[np.ndarray], np.ndarray]
    theta: np.ndarray
    primal: Callable[[Any], Any] = lambda value: value
    pytree: Callable[[Any], Any] | None = None


def _cast(*arrays, like):
    return tuple(jnp.asarray(a, like.dtype) for a in arrays)


def _zeros(dtype):
    return jnp.zeros(COLUMNS, dtype)


def _split(w):
    return {"a": w[:2], "b": (w[2:],)}


def _join(tree):
    return jnp.concatenate([tree["a"], tree["b"][0]])


def _ridge(theta):
    a, b = _cast(A, B, like=theta)
    return lambda w: 0.5 * jnp.sum((a @ w - b) ** 2) + 0.5 * jnp.sum(theta * w**2)


def _solve_ridge(theta):
    return np.linalg.solve(A.T @ A + np.diag(theta), A.T @ B)


def _cvx(objective, *constraints, variable):
    problem = cp.Problem(cp.Minimize(objective), list(constraints))
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    return np.asarray(variable.value)


def _solve_lasso(weights):
    w = cp.Variable(COLUMNS)
    fit = cp.sum_squares(A @ w - B) / (2 * ROWS)
    return _cvx(fit + cp.norm1(cp.multiply(weights, w)), variable=w)


def _solve_l1(weights):
    w = cp.Variable(COLUMNS)
    fit = 0.5 * cp.sum_squares(A @ w - B)
    return _cvx(fit + cp.norm1(cp.multiply(weights, w)), variable=w)


def _solve_simplex(theta):
    w = cp.Variable(COLUMNS)
    objective = 0.5 * cp.sum_squares(A @ w - B) + theta @ w
    return _cvx(objective, w >= 0, cp.sum(w) == 1, variable=w)


def _solve_qp(q):
    w = cp.Variable(COLUMNS)
    objective = 0.5 * cp.sum_squares(A @ w) + q @ w
    return _cvx(objective, cp.sum(w) == 1, w[:3] >= 0, w <= 2, variable=w)


def _build_qp(q):
    a = jnp.asarray(A, q.dtype)
    rows = jnp.concatenate([jnp.ones((1, COLUMNS)), jnp.eye(COLUMNS)]).astype(q.dtype)
    lower = jnp.asarray([1, 0, 0, 0, -jnp.inf, -jnp.inf], q.dtype)
    upper = jnp.asarray([1, 2, 2, 2, 2, 2], q.dtype)
    return jxt.QuadraticProgram(a.T @ a, q, rows, lower, upper)


def _root(theta):
    m = jnp.asarray(CONTRACTION, theta.dtype)
    return lambda x: x + jnp.tanh(m @ x) - theta


def _residuals(theta):
    a, b = _cast(A, B, like=theta)
    return lambda w: (a @ w - b, jnp.sqrt(theta) * jnp.sin(w))


def _squares(theta, w):
    return np.sum((A @ w - B) ** 2) + np.sum(theta * np.sin(w) ** 2)


def _solve_squares(theta):
    start = scipy.optimize.minimize(lambda w: _squares(theta, w), np.zeros(COLUMNS), tol=1e-9)
    fun = lambda w: np.concatenate([A @ w - B, np.sqrt(theta) * np.sin(w)])
    options = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    return scipy.optimize.least_squares(fun, start.x, **options).x


def _finite_sum(theta):
    """Ridge regression, a few rows at a time."""
    fit = lambda w, row: 0.5 * ROWS * (row[0] @ w - row[1]) ** 2
    data = _cast(A, B, like=theta)
    return jxt.FiniteSum(fit, data, prox.L2Squared(theta), chunk=5)


def _expectation(theta):
    a, b = _cast(A, B, like=theta)
    fit = lambda w, i: 0.5 * ROWS * (a[i] @ w - b[i]) ** 2
    mean = lambda w: 0.5 * jnp.sum((a @ w - b) ** 2)
    draw = lambda key, size: jax.random.randint(key, (size,), 0, ROWS)
    return jxt.Expectation(fit, draw, prox.L2Squared(theta), mean)


def _manifold(q):
    """The quadratic program's objective on the unit sphere."""
    a = jnp.asarray(A, q.dtype)
    fun = lambda w: 0.5 * jnp.sum((a @ w) ** 2) + q @ w
    return jxt.EqualityConstrained(fun, lambda w: (w @ w - 1)[None])


def _solve_manifold(q):
    """By the secular equation in the eigenbasis, whose least root is the minimizer's."""
    values, vectors = np.linalg.eigh(A.T @ A)
    b = vectors.T @ q
    secular = lambda shift: np.sum((b / (values + shift)) ** 2) - 1
    low = -values[0] + 1e-9
    shift = scipy.optimize.brentq(secular, low, low + 10, xtol=1e-15, rtol=1e-14)
    return -vectors @ (b / (values + shift))


def _build_nonlinear(q):
    """The quadratic program again, as functions."""
    a = jnp.asarray(A, q.dtype)
    fun = lambda w: 0.5 * jnp.sum((a @ w) ** 2) + q @ w
    lower = jnp.asarray([0, 0, 0, -jnp.inf, -jnp.inf], q.dtype)
    return jxt.NonlinearProgram(
        fun, lambda w: (jnp.sum(w) - 1)[None], lambda w: w[3:] - 2, (lower, jnp.inf)
    )


def _ratio(theta):
    a, b = _cast(A, B, like=theta)
    fit = lambda w: 0.5 * jnp.sum((a @ w - b) ** 2)
    return jxt.Fractional(fit, prox.L2Squared(1.0), jxt.minimize.denominators.Affine(theta, 3.0))


def _solve_ratio(theta):
    """Dinkelbach's iteration."""
    w = np.zeros(COLUMNS)
    for _ in range(100):
        ratio = 0.5 * (np.sum((A @ w - B) ** 2) + w @ w) / (w @ theta + 3)
        w = np.linalg.solve(A.T @ A + np.eye(COLUMNS), A.T @ B + ratio * theta)
    return w


def _multi_objective(theta):
    """The ridge regression, and its own gradient squared: with the same minimizer, although the
    gradients elsewhere differ."""
    a, b = _cast(A, B, like=theta)
    slope = lambda w: a.T @ (a @ w - b) + theta * w
    return lambda w: jnp.stack([_ridge(theta)(w), 0.5 * jnp.sum(slope(w) ** 2)])


def _bounded_root(theta):
    return jxt.BoundedRootFinding(_root(theta), -3.0, 3.0)


def _solve_root(theta):
    fun = lambda x: x + np.tanh(CONTRACTION @ x) - theta
    return scipy.optimize.root(fun, np.zeros(COLUMNS), tol=1e-14).x


def _cell(s, u):
    return jnp.sin(1.5 * s) + u


def _solve_recurrence(theta):
    states = [0.3]
    for u in theta:
        states.append(np.sin(1.5 * states[-1]) + u)
    return np.array(states[1:])


CORNER = np.array([[2.0, -1, 0, 0, 0], [1, 2, 0, 1, 0], [0, 0, 1, -1, 0], [0, 1, 0, 2, 0], [0] * 5])
CORNER[4] = [1, 0, 0, 0, 3]
STRETCH = np.eye(COLUMNS) + 0.3 * CORNER


def _linear(upper):
    """The rows hold all of the point; others, slack here, stand beside them."""
    rows = jnp.asarray(np.concatenate([CORNER, np.eye(COLUMNS)]), upper.dtype)
    upper = jnp.concatenate([upper, jnp.full(COLUMNS, 9.0, upper.dtype)])
    c = -jnp.asarray(CORNER.T @ np.arange(1.0, 1 + COLUMNS), upper.dtype)
    return jxt.LinearProgram(c, rows, jnp.full_like(upper, -90), upper)


def _solve_linear(upper):
    c, x = -CORNER.T @ np.arange(1.0, 1 + COLUMNS), cp.Variable(COLUMNS)
    return _cvx(c @ x, CORNER @ x <= upper, CORNER @ x >= -90, x <= 9, x >= -90, variable=x)


def _ellipsoid_cone(theta):
    rows = [jnp.zeros((1, COLUMNS)), -jnp.asarray(STRETCH)]
    side = jnp.zeros(1 + COLUMNS, theta.dtype).at[0].set(1)
    rows = jnp.concatenate(rows).astype(theta.dtype)
    return jxt.SecondOrderConeProgram(theta, rows, side, second_order=(1 + COLUMNS,))


def _ellipsoid_matrix(theta):
    """The ball in other words: its Schur complement is nonnegative."""
    generators = np.zeros((COLUMNS, 1 + COLUMNS, 1 + COLUMNS))
    generators[:, 0, 1:] = generators[:, 1:, 0] = -STRETCH.T
    constant = -jnp.eye(1 + COLUMNS, dtype=theta.dtype)
    return jxt.LinearMatrixInequality(theta, constant, jnp.asarray(generators, theta.dtype))


def _solve_ellipsoid(theta):
    """$\\theta^\\top x$ is least on $|Sx| \\le 1$ where $S^\\top S x$ is along $-\\theta$."""
    x = np.linalg.solve(STRETCH.T @ STRETCH, theta)
    return -x / np.sqrt(theta @ x)


ALONG = np.array([1.0, -0.5, 0.7, 0.3, -0.8])


def _ellipsoid_start(kind):
    """Multipliers are those of a neighbour's solution; the point is inside."""
    x = _solve_ellipsoid(ALONG)
    edge = np.concatenate([[1.0], STRETCH @ x])
    if kind is jxt.LinearMatrixInequality:
        edge = 0.5 * np.outer(edge, edge)
        edge[0, 1:], edge[1:, 0] = -edge[0, 1:], -edge[1:, 0]
    else:
        edge[1:] *= -1
    dual = edge * -(ALONG @ x)
    return lambda dtype: jxt.PrimalDual(jnp.asarray(0.5 * x, dtype), jnp.asarray(dual, dtype))


P_BLOCK = np.array([[1.2, 0.3], [0.3, 0.9]])
Q_BLOCK = np.array([[1.0, 0.2, 0.0], [0.2, 0.8, -0.3], [0.0, -0.3, 1.1]])
K_BLOCK = np.array([[0.4, -0.5, 0.2], [0.3, 0.1, -0.4]])
MONOTONE = np.block([[P_BLOCK, K_BLOCK], [-K_BLOCK.T, Q_BLOCK]])
LIMIT = 0.6
BOX = prox.Box(-LIMIT, LIMIT)


def _variational(theta):
    M = jnp.asarray(MONOTONE, theta.dtype)
    return jxt.VariationalInequality(lambda z: M @ z + theta, BOX)


def _inclusion(theta):
    M = jnp.asarray(MONOTONE, theta.dtype)
    return jxt.Inclusion(lambda z: M @ z + theta, lambda z, t: jnp.clip(z, -LIMIT, LIMIT))


def _min_max(theta):
    """The same map: its blocks are those of a saddle."""
    P, Q, K = _cast(P_BLOCK, Q_BLOCK, K_BLOCK, like=theta)
    own = lambda x: 0.5 * x @ P @ x + theta[:2] @ x
    return jxt.MinMax(lambda x, y: x @ K @ y - 0.5 * y @ Q @ y - theta[2:] @ y, BOX, BOX, own)


def _game(theta):
    """The same map: each block is a gradient of a loss."""
    P, Q, K = _cast(P_BLOCK, Q_BLOCK, K_BLOCK, like=theta)

    def losses(z):
        x, y = z
        first = 0.5 * x @ P @ x + x @ K @ y + theta[:2] @ x
        return jnp.stack([first, 0.5 * y @ Q @ y - x @ K @ y + theta[2:] @ y])

    return jxt.Game(losses, (BOX, BOX))


def _mean_of_maps(theta):
    noise = np.random.default_rng(1).normal(size=(6, COLUMNS, COLUMNS))
    mats = jnp.asarray(MONOTONE + noise - noise.mean(0), theta.dtype)
    return jxt.FiniteSumInclusion(lambda z, M: M @ z + theta, mats, BOX, chunk=4)


def _solve_monotone(theta):
    """By projections, with the step that contracts."""
    z = np.zeros(COLUMNS)
    for _ in range(2000):
        z = np.clip(z - 0.3 * (MONOTONE @ z + theta), -LIMIT, LIMIT)
    return z


PULL = np.array([1.4, -0.3, 0.2, -0.4, 1.1])
_MONOTONE_CASE = Case(
    _variational,
    _zeros,
    _solve_monotone,
    PULL,
    pytree=lambda theta: jxt.VariationalInequality(
        lambda t: _split(jnp.asarray(MONOTONE, theta.dtype) @ _join(t) + theta), BOX
    ),
)


LOWER = np.array([[1.5, 0.2, 0.0], [0.2, 1.2, -0.3], [0.0, -0.3, 1.8]])
COUPLING = np.array([[0.5, -0.2, 0.1], [0.3, 0.4, -0.6], [0.0, 0.2, 0.3], [-0.4, 0.1, 0.2]])
COUPLING = np.concatenate([COUPLING, [[0.2, -0.3, 0.5]]])
WEIGHT = np.linspace(0.6, 1.2, COLUMNS)
NESTED = COUPLING @ np.linalg.inv(LOWER) @ COUPLING.T + np.diag(WEIGHT)


def _bilevel(theta):
    """Quadratic levels: the lower answer is linear in the upper variable."""
    A, B, D = _cast(LOWER, COUPLING, WEIGHT, like=theta)
    upper = lambda x, y: 0.5 * (y @ A @ y + jnp.sum(D * (x - theta) ** 2))
    return jxt.Bilevel(upper, lambda x, y: 0.5 * y @ A @ y - x @ B @ y)


def _stochastic_bilevel(theta):
    """The same, as means over factors that are one on average."""
    exact = _bilevel(theta)
    factors = _cast(np.array([0.4, 1.3, 1.3]), np.array([0.5, 1.5]), like=theta)
    upper = lambda x, y, sample: sample * exact.upper(x, y)
    lower = lambda x, y, sample: sample * exact.lower(x, y)
    return jxt.StochasticBilevel(upper, lower, factors[0], factors[1], chunk=2)


def _multi_block(theta):
    """The same in three blocks, whose lower variables differ by a factor; samples move nothing on
    average."""
    A, B, D, shift = _cast(LOWER, COUPLING, WEIGHT, np.array([-0.2, 0.2]), like=theta)
    scale = jnp.asarray([0.8, 1.0, 1.25], theta.dtype)

    def upper(x, y, sample, i):
        size = 0.5 * scale[i] ** 2 * y @ A @ y + 0.5 * jnp.sum(D * (x - theta) ** 2)
        return size + sample * (jnp.sum(y) + jnp.sum(x))

    def lower(x, y, sample, i):
        return 0.5 * (1 + sample) * scale[i] * y @ A @ y - x @ B @ y

    return jxt.MultiBlockBilevel(upper, lower, shift, shift, len(scale))


def _nested_start(dtype):
    return jnp.zeros(COLUMNS, dtype), jnp.zeros(3, dtype)


def _quadratic_prox(theta, rows=None):
    b = jnp.asarray(B, theta.dtype)
    return prox.Shifted(prox.L2Squared(1.0), b)


WEIGHTS = np.array([0.02, 0.03, 0.04, 0.05, 0.06])

CASES: dict[type, Case] = {
    jxt.Smooth: Case(
        lambda theta: jxt.Smooth(_ridge(theta)),
        _zeros,
        _solve_ridge,
        np.linspace(0.5, 1.0, COLUMNS),
        pytree=lambda theta: jxt.Smooth(lambda t: _ridge(theta)(_join(t))),
    ),
    jxt.Composite: Case(
        lambda theta: jxt.Composite(
            jxt.objectives.SquaredLoss(*_cast(A, B, like=theta)), prox.L1(theta)
        ),
        _zeros,
        _solve_lasso,
        WEIGHTS / 5,
        pytree=lambda theta: jxt.Composite(
            lambda t: jxt.objectives.SquaredLoss(*_cast(A, B, like=theta))(_join(t)),
            prox.L1(_split(theta)),
        ),
    ),
    jxt.Constrained: Case(
        lambda theta: jxt.Constrained(
            lambda w: (
                0.5 * jnp.sum((_cast(A, like=w)[0] @ w - _cast(B, like=w)[0]) ** 2) + theta @ w
            ),
            prox.Simplex(1.0),
        ),
        lambda dtype: jnp.full(COLUMNS, 1 / COLUMNS, dtype),
        _solve_simplex,
        np.array([0.9, -2.0, -0.6, 0.2, 0.1]),
        pytree=lambda theta: jxt.Constrained(
            lambda t: (
                0.5 * jnp.sum((_cast(A, like=theta)[0] @ _join(t) - _cast(B, like=theta)[0]) ** 2)
                + theta @ _join(t)
            ),
            prox.Simplex(1.0),
        ),
    ),
    jxt.MultiObjective: Case(
        lambda theta: jxt.MultiObjective(_multi_objective(theta)),
        _zeros,
        _solve_ridge,
        np.linspace(0.5, 1.0, COLUMNS),
        pytree=lambda theta: jxt.MultiObjective(lambda t: _multi_objective(theta)(_join(t))),
    ),
    jxt.FixedPoint: Case(
        lambda theta: jxt.FixedPoint(lambda x: jnp.asarray(CONTRACTION, x.dtype) @ x + theta),
        _zeros,
        lambda theta: np.linalg.solve(np.eye(COLUMNS) - CONTRACTION, theta),
        np.arange(1.0, 1 + COLUMNS),
        pytree=lambda theta: jxt.FixedPoint(
            lambda t: _split(jnp.asarray(CONTRACTION, theta.dtype) @ _join(t) + theta)
        ),
    ),
    jxt.Feedforward: Case(
        lambda theta: jxt.fixed_point.recurrence(_cell, theta, jnp.asarray(0.3, theta.dtype)),
        _zeros,
        _solve_recurrence,
        np.linspace(-0.7, 0.6, COLUMNS),
    ),
    jxt.RootFinding: Case(
        lambda theta: jxt.RootFinding(_root(theta)),
        _zeros,
        _solve_root,
        np.linspace(-0.5, 0.5, COLUMNS),
    ),
    jxt.LeastSquares: Case(
        lambda theta: jxt.LeastSquares(_residuals(theta)),
        _zeros,
        _solve_squares,
        np.linspace(0.2, 0.4, COLUMNS),
    ),
    jxt.Saddle: Case(
        lambda theta: jxt.Saddle(
            prox.L1(theta), _quadratic_prox(theta), jnp.asarray(A, theta.dtype)
        ),
        _zeros,
        _solve_l1,
        WEIGHTS,
        primal=lambda value: value.primal,
    ),
    jxt.Splitting: Case(
        lambda theta: jxt.Splitting(
            _quadratic_prox(theta), prox.L1(theta), None, -jnp.asarray(A, theta.dtype)
        ),
        lambda dtype: jnp.zeros(ROWS, dtype),
        _solve_l1,
        WEIGHTS,
        primal=lambda value: value.z,
    ),
    jxt.QuadraticProgram: Case(
        _build_qp,
        _zeros,
        _solve_qp,
        np.array([0.3, -0.2, 0.1, 0.4, -0.5]),
        primal=lambda value: value.primal,
    ),
    jxt.FiniteSum: Case(_finite_sum, _zeros, _solve_ridge, np.linspace(0.5, 1.0, COLUMNS)),
    jxt.Expectation: Case(_expectation, _zeros, _solve_ridge, np.linspace(0.5, 1.0, COLUMNS)),
    jxt.EqualityConstrained: Case(
        _manifold,
        lambda dtype: jnp.asarray([-0.6, 0.1, -0.3, -0.4, 0.5], dtype),
        _solve_manifold,
        np.array([0.9, -0.2, 0.5, 0.4, -0.5]),
        primal=lambda value: value.primal,
    ),
    jxt.NonlinearProgram: Case(
        _build_nonlinear,
        lambda dtype: jnp.full(COLUMNS, 1 / COLUMNS, dtype),
        _solve_qp,
        np.array([0.3, -0.2, 0.1, 0.4, -0.5]),
        primal=lambda value: value.primal,
    ),
    jxt.BoundedRootFinding: Case(
        _bounded_root, _zeros, _solve_root, np.linspace(-0.5, 0.5, COLUMNS)
    ),
    jxt.Fractional: Case(_ratio, _zeros, _solve_ratio, np.linspace(0.1, 0.3, COLUMNS)),
    jxt.LinearProgram: Case(
        _linear,
        lambda dtype: jxt.PrimalDual(
            jnp.zeros(COLUMNS, dtype),
            jnp.concatenate([jnp.arange(1.0, 1 + COLUMNS), jnp.zeros(COLUMNS)]).astype(dtype),
        ),
        _solve_linear,
        np.linspace(0.5, 1.0, COLUMNS),
        primal=lambda value: value.primal,
    ),
    jxt.SecondOrderConeProgram: Case(
        _ellipsoid_cone,
        _ellipsoid_start(jxt.SecondOrderConeProgram),
        _solve_ellipsoid,
        ALONG * np.array([1.1, 1, 0.9, 1, 1]),
        primal=lambda value: value.primal,
    ),
    jxt.LinearMatrixInequality: Case(
        _ellipsoid_matrix,
        _ellipsoid_start(jxt.LinearMatrixInequality),
        _solve_ellipsoid,
        ALONG * np.array([1.1, 1, 0.9, 1, 1]),
        primal=lambda value: value.primal,
    ),
    jxt.AbstractInclusion: _MONOTONE_CASE,
    jxt.VariationalInequality: _MONOTONE_CASE,
    jxt.Inclusion: Case(_inclusion, _zeros, _solve_monotone, PULL),
    jxt.MinMax: Case(
        _min_max,
        lambda dtype: jxt.PrimalDual(jnp.zeros(2, dtype), jnp.zeros(3, dtype)),
        _solve_monotone,
        PULL,
        primal=lambda value: jnp.concatenate(value),
    ),
    jxt.Game: Case(
        _game,
        lambda dtype: (jnp.zeros(2, dtype), jnp.zeros(3, dtype)),
        _solve_monotone,
        PULL,
        primal=lambda value: jnp.concatenate(value),
    ),
    jxt.FiniteSumInclusion: Case(_mean_of_maps, _zeros, _solve_monotone, PULL),
    jxt.Bilevel: Case(
        _bilevel,
        _nested_start,
        lambda theta: np.linalg.solve(NESTED, WEIGHT * theta),
        np.linspace(-0.8, 1.0, COLUMNS),
        primal=lambda value: value.upper,
    ),
    jxt.StochasticBilevel: Case(
        _stochastic_bilevel,
        _nested_start,
        lambda theta: np.linalg.solve(NESTED, WEIGHT * theta),
        np.linspace(-0.8, 1.0, COLUMNS),
        primal=lambda value: value.upper,
    ),
    jxt.MultiBlockBilevel: Case(
        _multi_block,
        lambda dtype: (jnp.zeros(COLUMNS, dtype), jnp.zeros((3, 3), dtype)),
        lambda theta: np.linalg.solve(NESTED, WEIGHT * theta),
        np.linspace(-0.8, 1.0, COLUMNS),
        primal=lambda value: value.upper,
    ),
}

ALIKE = {
    jxt.Feedforward,
    jxt.Expectation,
    jxt.EqualityConstrained,
    jxt.BoundedRootFinding,
    jxt.Fractional,
    jxt.MultiObjective,
    jxt.LinearProgram,
    jxt.SecondOrderConeProgram,
    jxt.AbstractInclusion,
    jxt.Inclusion,
    jxt.MinMax,
    jxt.Game,
    jxt.FiniteSumInclusion,
    jxt.StochasticBilevel,
    jxt.MultiBlockBilevel,
}
"""Types whose residuals are made like those of others here: what is asked of a type, and not of a
solver, waits for the slow tests."""
