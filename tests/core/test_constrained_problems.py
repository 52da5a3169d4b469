"""Nonlinear programs, bounded systems and ratios: residuals and derivatives of solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from newton import Newton

import jaxopt_ext as jxt
from jaxopt_ext import prox

Program = jxt.NonlinearProgram
TARGET = np.array([1.2, 0.3, -0.4, 0.1])
SQP = {"method": "SLSQP", "options": {"ftol": 1e-15, "maxiter": 500}}


def objective(x, t, xp=jnp):
    return xp.sum((x - t) ** 2) + xp.exp(0.5 * x[0] * x[1])


def sphere(x):
    return (x @ x - 1)[None]


def plane(x):
    return {"a": (jnp.sum(x) - 0.9)[None]}


def by_scipy(t, *constraints, bounds=None):
    fun = lambda x: objective(x, t, np)
    start = np.array([0.6, 0.5, 0.1, 0.1])
    return scipy.optimize.minimize(
        fun, start, constraints=constraints, bounds=bounds, tol=1e-14, **SQP
    ).x


def differences(solve, t, step=1e-4):
    return np.stack(
        [(solve(t + step * e) - solve(t - step * e)) / (2 * step) for e in np.eye(len(t))], axis=1
    )


def newton(build):
    """Primal solution and its Jacobian in the target, from nearby."""

    def solved(t, start):
        return jxt.solve(build(t), Newton(), start).value

    run = jax.jit(lambda t, start: (solved(t, start), jax.jacrev(solved)(t, start)))
    return lambda start: run(jnp.asarray(TARGET), start)


def test_on_a_sphere():
    """The optimum of another method, its derivative, and the multiplier."""
    build = lambda t: jxt.EqualityConstrained(lambda x: objective(x, t), sphere)
    oracle = lambda t: by_scipy(t, {"type": "eq", "fun": lambda x: x @ x - 1})
    x = oracle(TARGET)
    value, slope = newton(build)(jnp.asarray(x + 0.01))
    np.testing.assert_allclose(value.primal, x, atol=1e-6)
    np.testing.assert_allclose(slope.primal, differences(oracle, TARGET), atol=1e-4)
    # The gradient of f is parallel to x.
    gradient = jax.grad(objective)(value.primal, TARGET)
    np.testing.assert_allclose(value.dual, -(gradient @ value.primal)[None] / 2, rtol=1e-8)


def test_all_kinds_of_constraints():
    """An equation, an inequality that holds one back, one that is slack, and bounds."""

    def build(t):
        fun = lambda x: objective(x, t)
        inequalities = lambda x: jnp.stack([x[0] - x[2] - 0.5, x[1] - 10.0])
        return Program(fun, plane, inequalities, (jnp.array([-5.0, -5.0, -5.0, 0.3]), 5.0))

    constraints = (
        {"type": "eq", "fun": lambda x: np.sum(x) - 0.9},
        {"type": "ineq", "fun": lambda x: 0.5 - x[0] + x[2]},
    )
    bounds = [(-5, 5), (-5, 5), (-5, 5), (0.3, 5)]
    oracle = lambda t: by_scipy(t, *constraints, bounds=bounds)
    x = oracle(TARGET)
    assert abs(x[0] - x[2] - 0.5) < 1e-8
    assert abs(x[3] - 0.3) < 1e-8
    value, slope = newton(build)(jnp.asarray(x))
    np.testing.assert_allclose(value.primal, x, atol=1e-6)
    np.testing.assert_allclose(slope.primal, differences(oracle, TARGET), atol=1e-4)
    dual = value.dual
    assert dual.inequalities[0] > 0.1
    assert dual.inequalities[1] == 0
    assert dual.bounds[3] < -0.1
    np.testing.assert_allclose(dual.bounds[:3], 0, atol=1e-12)


def test_moving_bounds():
    """Derivatives in the bounds themselves; of equal ones it is the upper that holds back."""

    def solved(l, u):
        problem = Program(lambda x: jnp.sum((x - 3) ** 2), bounds=(l, u))
        return jxt.solve(problem, Newton(), jnp.ones(3)).value.primal

    l, u = jnp.array([0.0, 4.0, 2.0]), jnp.array([1.0, 5.0, 2.0])
    np.testing.assert_allclose(solved(l, u), [1.0, 4.0, 2.0])
    low, high = jax.jacobian(solved, (0, 1))(l, u)
    np.testing.assert_allclose(low, np.diag([0, 1, 0]), atol=1e-12)
    np.testing.assert_allclose(high, np.diag([1, 0, 1]), atol=1e-12)


POINT = jnp.array([0.2, 0.4])
WRONG = {
    "stationary only": (jnp.array([0.5, 0.4]), [0.0], [0.0]),
    "a negative multiplier": (jnp.array([0.2, 0.4]), [-1.0], [0.0]),
    "a multiplier of nothing": (jnp.array([0.1, 0.4]), [0.2], [0.0]),
    "a bound's with the wrong sign": (jnp.array([0.2, 0.0]), [0.6], [0.8]),
}


@pytest.mark.always(2)
@pytest.mark.parametrize("name", WRONG)
def test_residual_is_zero_at_solutions_only(name):
    """$\\min |x - (1/2, 2/5)|^2$ with $x_1 \\le 1/5$."""
    problem = Program(
        lambda x: jnp.sum((x - jnp.array([0.5, 0.4])) ** 2),
        inequalities=lambda x: x[:1] - 0.2,
        bounds=(0.0, 1.0),
    )
    zeros = lambda *parts: jxt.Multipliers(None, *map(jnp.asarray, parts))
    solution = jxt.PrimalDual(POINT, zeros([0.6], [0.0, 0.0]))
    assert jxt.tree.norm(problem.residual(solution)) < 1e-15
    x, mu, nu = WRONG[name]
    other = jxt.PrimalDual(x, zeros(mu, [0.0, *nu]))
    assert jxt.tree.norm(problem.residual(other)) > 1e-2


def test_programs_over_modules_and_bad_ones():
    problem = jxt.EqualityConstrained(lambda p: jnp.sum(p["x"] ** p["n"]), lambda p: p["x"][:1] - 1)
    start = {"x": jnp.array([0.5, 0.5]), "n": 2}
    with pytest.raises(TypeError, match="starts from PrimalDual"):
        jxt.solve(problem, Newton(), start)
    value = jxt.solve(problem, Newton(), jxt.PrimalDual(start, jnp.zeros(1))).value
    np.testing.assert_allclose(value.primal["x"], [1.0, 0.0], atol=1e-12)
    assert value.primal["n"] == 2
    fun = lambda x: jnp.sum(x**2)
    solve = lambda problem, x=POINT: jxt.solve(problem, Newton(), x)
    with pytest.raises(ValueError, match="u - l"):
        Program(fun, bounds=(1.0, 0.0))
    with pytest.raises(ValueError, match="u - l"):
        Program(fun, bounds=(np.nan, 0.0))
    with pytest.raises(TypeError, match="pair"):
        Program(fun, bounds=3.0)
    with pytest.raises(ValueError, match=r"lower of shape \(3,\) does not fit x of shape \(2,\)"):
        solve(Program(fun, bounds=(jnp.zeros(3), 1.0)))
    with pytest.raises(ValueError, match="equalities must return"):
        solve(Program(fun, lambda x: 1))
    dual = jxt.Multipliers(jnp.zeros(2), None, None)
    with pytest.raises(ValueError, match="the dual"):
        solve(Program(fun, lambda x: x[:1]), jxt.PrimalDual(POINT, dual))
    with pytest.raises(TypeError, match="real"):
        solve(Program(lambda x: jnp.sum(jnp.abs(x))), POINT + 0j)
    with pytest.raises(ValueError, match="scalar"):
        solve(jxt.EqualityConstrained(lambda x: x, lambda x: x))


def test_a_system_in_a_box():
    """A root inside, with its derivative; and a box without one, where all that is left is the
    nearest to it."""

    def build(t, upper):
        fun = lambda x: jnp.stack([x[0] ** 2 + x[1] - t, x[0] - x[1] ** 2])
        return jxt.BoundedRootFinding(fun, 0.0, upper)

    solved = lambda t: jxt.solve(build(t, jnp.inf), Newton(), jnp.ones(2)).value
    value, slope = jax.jit(lambda t: (solved(t), jax.jacobian(solved)(t)))(jnp.asarray(2.0))
    np.testing.assert_allclose(value, [1.0, 1.0], atol=1e-9)
    np.testing.assert_allclose(slope, np.linalg.solve([[2.0, 1.0], [1.0, -2.0]], [1.0, 0.0]))
    tight = build(2.0, 0.5)
    stuck = jnp.array([0.5, 0.5])
    assert jxt.tree.norm(tight.residual(stuck)) < 1e-15
    assert tight.objective(stuck) > 0.5
    assert jxt.tree.norm(tight.residual(jnp.array([0.5, 0.4]))) > 0.01
    with pytest.raises(ValueError, match="shaped like x"):
        jxt.solve(jxt.BoundedRootFinding(lambda x: x[:1]), Newton(), POINT)
    with pytest.raises(ValueError, match="u - l"):
        jxt.BoundedRootFinding(lambda x: x, 1.0, 0.0)


def test_a_ratio():
    """$(|Ax - b|^2 / 2 + |x|_1 / 10) / (a'x + 1)$ by golden sections over its value."""
    rng = np.random.default_rng(2)
    A, b = rng.normal(size=(8, 3)), rng.normal(size=8)

    def build(a):
        fit = lambda x: 0.5 * jnp.sum((A @ x - b) ** 2)
        return jxt.Fractional(fit, prox.L1(0.1), lambda x: x @ a + 1)

    def oracle(a):
        """Dinkelbach's iteration on the smooth pieces, found by their signs."""
        x = np.linalg.lstsq(A, b, rcond=None)[0]
        sign = np.sign(x)
        for _ in range(200):
            ratio = (0.5 * np.sum((A @ x - b) ** 2) + 0.1 * np.abs(x).sum()) / (a @ x + 1)
            x = np.linalg.solve(A.T @ A, A.T @ b - 0.1 * sign + ratio * a)
        assert np.array_equal(np.sign(x), sign)
        return x

    a = np.array([0.1, 0.2, 0.05])
    solved = lambda a, start: jxt.solve(build(a), Newton(), start).value
    run = jax.jit(lambda a, start: (solved(a, start), jax.jacobian(solved)(a, start)))
    value, slope = run(jnp.asarray(a), jnp.asarray(oracle(a) + 1e-3))
    np.testing.assert_allclose(value, oracle(a), atol=1e-8)
    np.testing.assert_allclose(slope, differences(oracle, a), atol=1e-6)
    outside = jnp.array([-100.0, 0.0, 0.0])
    assert jnp.isnan(build(a).objective(outside))
    assert jxt.solve(build(a), Newton(), outside).status == jxt.Status.nonfinite


class TwoLargest:
    """A denominator that says which subgradient to take."""

    def __call__(self, x):
        return jnp.sum(jax.lax.top_k(jnp.abs(x), 2)[0])

    def subgradient(self, x):
        return jnp.full_like(x, 7.0)


def test_a_given_subgradient_is_taken():
    problem = jxt.Fractional(lambda x: 1 + jnp.sum(x**2), None, TwoLargest())
    x = jnp.array([1.0, -2.0, 0.5])
    ratio = 6.25 / 3
    np.testing.assert_allclose(problem.residual(x), 2 * x - 7 * ratio)
    plain = jxt.Fractional(lambda x: 1 + jnp.sum(x**2), None, lambda x: TwoLargest()(x))
    np.testing.assert_allclose(plain.residual(x), 2 * x - ratio * np.array([1, -1, 0]))
    with pytest.raises(TypeError, match="denominator"):
        jxt.Fractional(lambda x: 1.0, None, 2.0)
