"""Regularized Newton steps and kept Hessians against loops in numpy, and what they promise."""

import jax
import jax.numpy as jnp
import lapack
import numpy as np
import pytest
from logistic_oracles import (
    RNG,
    START,
    A,
    D,
    N,
    along,
    curve,
    difference,
    fun,
    gradient,
    path,
    slope,
    turned,
    unrolled,
    value,
)

import jaxopt_ext as jxt
from jaxopt_ext.minimize import (
    AcceleratedCubicNewton,
    AcceleratedTensor,
    DampedNewton,
    GradientRegularization,
    HessianFree,
    LazyCubicNewton,
    LocalRegularization,
    RegularizedNewton,
    RootDamping,
    SuperUniversalRegularization,
)


def test_gradient_regularization_has_a_norm_of_its_own():
    rule = GradientRegularization(0.7)
    plain, other = turned(RegularizedNewton(rule, 2, tol=0.0, max_steps=5))
    shift = lambda g, H: np.sqrt(0.7 * np.linalg.norm(g))
    np.testing.assert_allclose(plain, kept(shift), rtol=1e-9)
    assert np.abs(other - plain).max() > 1e-2


def kept(shift):
    """Regularized steps with Hessians that serve two."""
    x, wanted = START, []
    for k in range(5):
        H = curve(x) if k % 2 == 0 else H
        g = slope(x)
        x = x - np.linalg.solve(H + shift(g, H) * np.eye(D), g)
        wanted.append(x)
    return wanted


def test_regularized_steps_with_a_kept_hessian_against_numpy():
    shift = lambda g, H: np.sqrt(1.2 * np.sqrt(g @ np.linalg.solve(H, g)))
    found = path(RegularizedNewton(LocalRegularization(3.0, 0.2), 2, tol=0.0, max_steps=5))
    np.testing.assert_allclose(found, kept(shift), rtol=1e-9)


def searched(x, steps, shift, grow=4.0):
    found, constant = [], 1e-3
    for _ in range(steps):
        H, g = curve(x), slope(x)
        while True:
            lam = shift(constant, np.linalg.norm(g))
            new = x - np.linalg.solve(H + lam * np.eye(D), g)
            there = slope(new)
            if there @ (x - new) >= there @ there / (4 * lam):
                break
            constant *= grow
        x, constant = new, constant / grow
        found.append(x)
    return found


def test_searched_regularizations_against_numpy():
    rule = GradientRegularization(initial=1e-3)
    found = path(RegularizedNewton(rule, tol=0.0, max_steps=4))
    np.testing.assert_allclose(found, searched(START, 4, lambda M, g: np.sqrt(M * g)), rtol=1e-8)
    rule = SuperUniversalRegularization(0.8, initial=1e-3)
    found = path(RegularizedNewton(rule, tol=0.0, max_steps=4))
    np.testing.assert_allclose(found, searched(START, 4, lambda C, g: C * g**0.8), rtol=1e-8)


def cubic(H, g, M):
    """By bisection on the length."""
    low, high = 0.0, 1e3
    for _ in range(200):
        r = (low + high) / 2
        h = np.linalg.solve(H + M * r / 2 * np.eye(D), -g)
        low, high = (r, high) if np.linalg.norm(h) > r else (low, r)
    return h


@pytest.mark.parametrize("period", [1, 3])
def test_lazy_cubic_steps_against_numpy_and_their_numbers(period):
    x, wanted = START, []
    for k in range(6):
        H = curve(x) if k % period == 0 else H
        x = x + cubic(H, slope(x), 0.5)
        wanted.append(x)
    solver = LazyCubicNewton(period, 0.5, tol=1e-9, max_steps=60)
    trace = lambda problem, x, state: x
    solution = jxt.solve(jxt.Smooth(fun), solver, jnp.asarray(START), trace=trace)
    assert solution.status == jxt.Status.converged
    steps = int(solution.steps)
    assert 6 <= steps == int(solution.state.gradients)
    assert int(solution.state.hessians) == -(-steps // period)
    np.testing.assert_allclose(solution.trace[:6], wanted, rtol=1e-8, atol=1e-10)


def test_adaptive_phases_against_numpy():
    x, M, wanted, kept_all, H = START, 1e-4, [], [], None
    for _ in range(5):
        H = H if kept_all and not kept_all[-1] else curve(x)
        z, cubes = x, 0.0
        for _ in range(4):
            h = cubic(H, slope(z), M)
            z, cubes = z + h, cubes + np.linalg.norm(h) ** 3
        kept_all.append(value(x) - value(z) >= M / 12 * cubes)
        x, M = (z, max(M / 4, 1e-10)) if kept_all[-1] else (x, 2 * M)
        wanted.append(x)
    found = path(LazyCubicNewton(4, initial=1e-4, tol=0.0, max_steps=5))
    np.testing.assert_allclose(found, wanted, rtol=1e-7)


@pytest.mark.always(1)
@pytest.mark.parametrize("constant", [None, 1.5])
def test_cubic_newton_leaves_saddles(constant):
    """Sum of double wells with a coupling, from its exact saddle point, batched with one near."""
    C = RNG.normal(size=(10, 10))
    C = C + C.T
    f = lambda x: jnp.sum((x**2 - 1) ** 2) / 4 + 0.025 * x @ jnp.asarray(C) @ x
    solver = LazyCubicNewton(5, constant, tol=1e-9)
    solve = lambda x: jxt.solve(jxt.Smooth(f), solver, x)
    solution = jax.vmap(solve)(jnp.stack([jnp.zeros(10), jnp.full(10, 1e-3)]))
    assert np.all(np.asarray(solution.residual) <= 1e-9)
    for x in np.asarray(solution.value):
        H = np.diag(3 * x**2 - 1) + 0.05 * C
        assert np.linalg.norm(x**3 - x + 0.05 * C @ x) <= 1e-8
        assert np.linalg.eigvalsh(H)[0] > 0.5


def test_singular_hessians_and_functions_that_are_not_convex():
    b = RNG.uniform(0.5, 1, N)
    polytope = lambda x: jnp.sum(jnp.maximum(A @ x - b, 0) ** 4)
    solution = jxt.solve(jxt.Smooth(polytope), RegularizedNewton(tol=1e-8), 3 * jnp.asarray(START))
    assert solution.status == jxt.Status.converged
    assert jax.jit(polytope)(solution.value) <= 1e-9
    concave = jxt.Smooth(lambda x: -jnp.sum(x**2))
    # Of the second there is no decrement.
    for rule in (GradientRegularization(0.1), LocalRegularization()):
        solution = jxt.solve(concave, RegularizedNewton(rule), jnp.ones(3))
        assert solution.status == jxt.Status.breakdown
        np.testing.assert_array_equal(solution.value, 1)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [GradientRegularization(1.0), SuperUniversalRegularization()])
def test_unrolled_derivatives_at_a_minimizer_are_numbers(rule):
    """The regularization is zero there, with an infinite derivative; the value moves all along."""

    def solved(shift):
        weights = jnp.arange(1.0, 4.0)
        problem = jxt.Smooth(lambda x: weights @ ((x - shift) ** 2 + (x - shift) ** 4))
        solver = RegularizedNewton(rule, tol=0.0, max_steps=2)
        adjoint = jxt.UnrolledAdjoint()
        return jxt.solve(problem, solver, jnp.zeros(3), adjoint=adjoint).value

    for mode in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(jax.jit(mode(solved))(jnp.zeros(3)), np.eye(3), atol=1e-6)


@pytest.mark.parametrize(
    "solver",
    [
        RegularizedNewton(period=3),
        LazyCubicNewton(3),
        AcceleratedCubicNewton(),
        AcceleratedTensor(),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_factorizations_of_a_batch_wait_for_each_other(solver, key):
    """Else they can wait for each other's threads for ever; and what is due now and then would be
    computed in each step."""
    problem = jxt.Smooth(fun)
    step = lambda x: solver.step(problem, x, solver.init(problem, x, key))
    assert not lapack.side_by_side(jax.make_jaxpr(jax.vmap(step))(np.ones((2, D))))


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [
        DampedNewton(RootDamping(4.0, 0.1), HessianFree(1e-12), tol=0.0, max_steps=12),
        RegularizedNewton(GradientRegularization(1.0), 2, tol=0.0, max_steps=9),
        LazyCubicNewton(2, 1.0, tol=0.0, max_steps=9),
        AcceleratedCubicNewton(1.0, tol=0.0, max_steps=9),
        AcceleratedTensor(1.0, tol=0.0, max_steps=5),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_unrolled_derivatives_in_forward_mode_are_those_of_the_iterate(solver):
    """Which has not converged."""
    found, wanted = unrolled(solver, along, difference)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [
        LazyCubicNewton(1, 1.0, tol=0.0, max_steps=4),
        RegularizedNewton(tol=0.0, max_steps=4),
        RegularizedNewton(SuperUniversalRegularization(), tol=0.0, max_steps=4),
        AcceleratedCubicNewton(1.0, tol=0.0, max_steps=5),
    ],
)
def test_unrolled_gradients_are_those_of_the_iterate(solver):
    """Which has not converged."""

    def back(score, theta):
        return jnp.vdot(gradient(jxt.UnrolledAdjoint())(score, theta), jnp.cos(theta))

    found, wanted = unrolled(solver, back, difference)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cubic", "regularized"])
def test_kept_hessians_cost_less_with_every_constant_tuned(kind):
    """Logistic regression, 50 unknowns: a Hessian counts as 50 gradients."""
    d, rng = 50, np.random.default_rng(1)
    rows = rng.normal(size=(300, d))
    labels = 1.0 * (rows @ rng.normal(size=d) + rng.normal(size=300) > 0)
    loss = jxt.objectives.LogisticLoss(jnp.asarray(rows), jnp.asarray(labels))
    problem = jxt.Smooth(lambda w: loss(w) + 5e-5 * jnp.sum(w**2))
    best = jxt.solve(problem, RegularizedNewton(tol=1e-11, max_steps=200), jnp.zeros(d)).value
    best = problem.fun(best)

    def cost(period, steps):
        def one(constant):
            options = {"tol": 0.0, "max_steps": steps}
            if kind == "cubic":
                solver = LazyCubicNewton(period, constant, **options)
            else:
                solver = RegularizedNewton(GradientRegularization(constant), period, **options)
            value = lambda problem, x, state: problem.fun(x)
            gaps = jxt.solve(problem, solver, jnp.full(d, 3.0), trace=value).trace - best
            first = jnp.argmax(gaps < 1e-10) + 1
            return jnp.where(jnp.any(gaps < 1e-10), first + d * (1 + (first - 1) // period), 1e9)

        found = jax.jit(lambda grid: jax.lax.map(one, grid))(10.0 ** jnp.arange(-4, 2))
        assert 0 < np.argmin(found) < len(found) - 1
        return np.min(found)

    always, ten, fifty = cost(1, 150), cost(10, 400), cost(50, 800)
    assert max(ten, fifty) <= 0.4 * always
    assert min(ten, fifty) <= 0.3 * always
