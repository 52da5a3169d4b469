"""Line searches against grids, ratios against enumeration and convex programs."""

import itertools

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_diabetes

import jaxopt_ext as jxt
from jaxopt_ext import minimize, prox
from jaxopt_ext.minimize import denominators, fractional

RNG = np.random.default_rng(0)
D, M = 5, 7
G = RNG.normal(size=(M, D))
DENOMINATORS = {
    "sum": denominators.SumOfMagnitudes(G),
    "squared sum": denominators.SquaredSumOfMagnitudes(G),
    "largest": denominators.LargestMagnitude(G),
    "top": denominators.SumOfLargest(2),
    "norm": denominators.EuclideanNorm(G),
    "squared norm": denominators.SquaredEuclideanNorm(G),
    "four": denominators.FourNorm(G),
    "squared four": denominators.SquaredFourNorm(G),
    "root": denominators.RootOfQuadratic(G.T @ G),
    "affine": denominators.Affine(G[0], 3.0),
    "least": denominators.LeastAffine(G[:4], np.array([1.0, 2, 3, 1.5])),
}
BY_HAND = {
    "sum": lambda x: np.abs(G @ x).sum(0),
    "squared sum": lambda x: 0.5 * np.abs(G @ x).sum(0) ** 2,
    "largest": lambda x: np.abs(G @ x).max(0),
    "top": lambda x: np.sort(np.abs(x), axis=0)[-2:].sum(0),
    "norm": lambda x: np.sqrt(((G @ x) ** 2).sum(0)),
    "squared norm": lambda x: ((G @ x) ** 2).sum(0),
    "four": lambda x: ((G @ x) ** 4).sum(0) ** 0.25,
    "squared four": lambda x: ((G @ x) ** 4).sum(0) ** 0.5,
    "root": lambda x: np.sqrt(((G @ x) ** 2).sum(0)),
    "affine": lambda x: G[0] @ x + 3,
    "least": lambda x: (G[:4] @ x + np.array([1.0, 2, 3, 1.5])[:, None]).min(0),
}
QUADRATIC = ("squared sum", "squared norm", "squared four")


def check_lines(name, mode, lines, size, box=20.0):
    """A kink, a ridge, and bounds; where denominators grow as fast as numerators, far bounds."""
    rng = np.random.default_rng(len(name))
    x = rng.normal(size=(lines, D))
    i = rng.integers(0, D, lines)
    slope, bend = rng.normal(0, 3, lines), 0.2 + rng.exponential(2, lines)
    weight = rng.exponential(1, lines) * (rng.random(lines) < 0.7)
    entries = x[np.arange(lines), i]
    spent = slope**2 / (2 * bend) + weight * np.abs(entries) + 0.05 * entries**2
    value = spent + rng.exponential(1, lines)  # numerators are nonnegative
    denominator, hand = DENOMINATORS[name], BY_HAND[name]

    @jax.jit
    @jax.vmap
    def run(x, i, value, slope, bend, weight):
        numbers = (0.1, -3.0, box if name in QUADRATIC else jnp.inf)
        ridge, low, high = (jnp.asarray(n, x.dtype) for n in numbers)
        top = fractional.Numerator(value, slope, bend, x[i], weight, ridge, low, high)
        line = denominator.breakpoints(x, denominator.keep(x), i)
        return fractional.minimize_line(mode, denominator, line, top)

    moves, decreases = map(np.asarray, run(x, i, value, slope, bend, weight))
    checked = 0
    for k in range(lines):
        here = float(hand(x[k][:, None])[0])
        if here <= 0:
            continue
        entry = x[k, i[k]]

        def objective(e, k=k, here=here, entry=entry):
            points = np.repeat(x[k][:, None], e.size, axis=1)
            points[i[k]] += e
            kink = weight[k] * (np.abs(entry + e) - abs(entry)) + 0.1 * (entry * e + e**2 / 2)
            top, bottom = value[k] + slope[k] * e + 0.5 * bend[k] * e**2 + kink, hand(points)
            direct = isinstance(mode, minimize.Direct)
            with np.errstate(all="ignore"):
                found = top / bottom if direct else top - value[k] / here * bottom
            return np.where(bottom > 0, found, np.inf)

        grid = np.linspace(-3 - entry, box - entry, size)
        best, start = objective(grid).min(), objective(np.zeros(1))[0]
        ours = objective(moves[k : k + 1])[0]
        rounding = 1e-10 * (1 + abs(best))
        assert ours <= min(best, start) + rounding, (k, ours, best, start)
        np.testing.assert_allclose(decreases[k], start - ours, atol=1e-8)
        checked += 1
    assert checked > lines / 3


MODES = [
    pytest.param(name, mode, id=f"{name}-{type(mode).__name__}")
    for name in DENOMINATORS
    for mode in (minimize.Direct(), minimize.Parametric())
]
QUICK = ("squared sum-Direct", "norm-Parametric", "least-Direct")


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(*p.values, id=p.id, marks=() if p.id in QUICK else pytest.mark.slow)
        for p in MODES
    ],
)
def test_moves_beat_a_grid(name, mode):
    check_lines(name, mode, 40, 2001)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), MODES)
def test_moves_beat_a_fine_grid(name, mode):
    check_lines(name, mode, 200, 100_000)


def test_values_and_subgradients():
    x, steps = RNG.normal(size=D), 1e-6 * np.eye(D)
    both = lambda x: {n: (g(x), g.subgradient(x)) for n, g in DENOMINATORS.items()}
    for name, (value, slope) in jax.jit(both)(x).items():
        hand = BY_HAND[name]
        np.testing.assert_allclose(value, hand(x[:, None])[0], err_msg=name)
        slopes = (hand(x[:, None] + steps) - hand(x[:, None] - steps)) / 2e-6
        np.testing.assert_allclose(slope, slopes, rtol=1e-6, atol=1e-8, err_msg=name)


PCA = np.random.default_rng(3).normal(size=(8, 4))


def least_ratio():
    """$|x|^2 / |Gx|_1^2$ is least along $G^\\top s$ for the best signs $s$."""
    signs = np.array(list(itertools.product([-1, 1], repeat=7)))
    longest = max(np.sum((PCA.T @ np.append(1, s)) ** 2) for s in signs)
    return 2 / longest


@pytest.mark.slow
@pytest.mark.parametrize("mode", [minimize.Direct(), minimize.Parametric()])
def test_scale_is_kept_and_the_best_of_starts_is_the_best(mode):
    problem = jxt.Fractional(
        lambda x: jnp.sum(x**2), None, denominators.SquaredSumOfMagnitudes(PCA)
    )
    solver = minimize.FractionalCoordinateDescent(
        mode, minimize.Cyclic(), lipschitz=2.0, normalize_every=5, max_steps=200
    )
    starts = jnp.asarray(np.random.default_rng(0).normal(size=(10, 4)))
    record = lambda problem, x, state: (problem.objective(x), jnp.linalg.norm(x))
    run = jax.jit(jax.vmap(lambda x: jxt.solve(problem, solver, x, trace=record)))
    solutions = run(starts)
    values, sizes = map(np.asarray, solutions.trace)
    assert np.all(np.diff(values, axis=1) <= 1e-14)
    assert np.all(solutions.status._value == jxt.Status.converged._value)
    assert np.all(values[:, -1] >= least_ratio() * (1 - 1e-12))
    np.testing.assert_allclose(values[:, -1].min(), least_ratio(), rtol=1e-8)
    np.testing.assert_allclose(sizes[:, 4], 1)


def test_a_ratio_with_a_known_minimizer():
    """$(1 + |x|^2 / 2) / (a^\\top x + b)$ is least at $\\lambda a$, where it is $\\lambda$ with
    $\\lambda^2 |a|^2 / 2 + b \\lambda = 1$."""
    a, b = np.array([1.0, -2.0, 0.5]), 1.5
    affine = denominators.Affine(a, b)
    problem = jxt.Fractional(lambda x: 1 + 0.5 * jnp.sum(x**2), None, affine)
    solver = minimize.FractionalCoordinateDescent(
        selection=minimize.Cyclic(), lipschitz=1.0, tol=1e-9
    )
    solution = jxt.solve(problem, solver, jnp.zeros(3))
    least = (np.sqrt(b**2 + 2 * a @ a) - b) / (a @ a)
    assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(solution.value, least * a, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [minimize.Direct(), minimize.Parametric()])
def test_sparse_recovery_falls_in_each_step_to_where_no_entry_can_move(mode):
    """Over the sum of the three largest entries: from 1.57 to below 0.1, and no other value of one
    entry is better."""
    rng = np.random.default_rng(0)
    A, rho, top = rng.normal(size=(20, 40)) / np.sqrt(20), 0.05, 3
    target = A[:, :3] @ [2, -1.5, 1] + 0.01 * rng.normal(size=20)
    start = A.T @ target

    def ratio(x):  # of each row
        fit = 0.5 * np.sum((x @ A.T - target) ** 2, axis=-1) + rho * np.sum(np.abs(x), axis=-1)
        return fit / np.sum(np.sort(np.abs(x), axis=-1)[..., -top:], axis=-1)

    fit = lambda x: 0.5 * jnp.sum((A @ x - target) ** 2)
    problem = jxt.Fractional(fit, prox.L1(rho), denominators.SumOfLargest(top))
    solver = minimize.FractionalCoordinateDescent(mode, minimize.Cyclic(), tol=0.0, max_steps=400)
    record = lambda problem, x, state: x
    points = np.asarray(jxt.solve(problem, solver, jnp.asarray(start), trace=record).trace)
    values = np.concatenate([[ratio(start)], ratio(points)])
    assert values[0] > 1.5
    assert values[-1] < 0.1
    assert np.max(np.diff(values)) <= 1e-14
    last = points[-1]
    for i in range(40):
        moved = np.repeat(last[None], 802, axis=0)
        moved[:, i] = np.append(last[i] + np.linspace(-3, 3, 801), 0)
        assert np.min(ratio(moved)) >= values[-1] - 1e-6


@pytest.mark.slow
def test_concave_denominators_have_one_value():
    """That of a bisection of convex programs."""
    data, target = load_diabetes(return_X_y=True)
    data, target = data[:100] * 10, target[:100] / 100 - 1.5
    normal, rho = np.linspace(-0.2, 0.3, data.shape[1]), 0.5
    x = cp.Variable(data.shape[1])
    top = 0.5 * cp.sum_squares(data @ x - target) + rho * cp.norm1(x)
    low, high = 0.0, 0.5 * np.sum(target**2)
    for _ in range(40):
        middle = 0.5 * (low + high)
        program = cp.Problem(cp.Minimize(top - middle * (normal @ x + 1)))
        program.solve(solver=cp.CLARABEL)
        low, high = (low, middle) if program.value <= 0 else (middle, high)
    fit = lambda x: 0.5 * jnp.sum((data @ x - target) ** 2)
    problem = jxt.Fractional(fit, prox.L1(rho), denominators.Affine(normal, 1.0))
    solver = minimize.FractionalCoordinateDescent(tol=1e-8)
    start = lambda x: jxt.solve(problem, solver, x)
    starts = 0.3 * np.random.default_rng(0).normal(size=(5, data.shape[1]))
    solutions = jax.jit(jax.vmap(start))(jnp.asarray(starts))
    inside = starts @ normal + 1 > 0
    found = jax.vmap(problem.objective)(solutions.value)[inside]
    assert inside.sum() > 2
    np.testing.assert_allclose(found, high, atol=1e-6)


@pytest.mark.slow
def test_greedy_moves_fall_most_and_bounds_hold():
    rng = np.random.default_rng(5)
    A, b = rng.normal(size=(9, D)), rng.normal(size=9)
    loss = jxt.objectives.SquaredLoss(A, b)
    problem = jxt.Fractional(loss, prox.Box(-0.3, 0.4), denominators.Affine(G[0], 5.0))
    solver = minimize.FractionalCoordinateDescent(
        selection=minimize.GreedyDecrease(), tol=1e-9, proximal_weight=1e-9
    )
    solution = jxt.solve(problem, solver, jnp.zeros(D))
    x = cp.Variable(D)
    ratio = problem.objective(solution.value)
    top = cp.sum_squares(A @ x - b) / 18
    program = cp.Problem(cp.Minimize(top - float(ratio) * (G[0] @ x + 5)), [x >= -0.3, x <= 0.4])
    program.solve(solver=cp.CLARABEL)
    assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(program.value, 0, atol=1e-7)  # no point has a lesser ratio


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [
        minimize.Dinkelbach(tol=1e-8),
        minimize.QuadraticTransform(tol=1e-8),
        minimize.ProximalSubgradientRatio(tol=1e-8),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_peers_agree_where_the_denominator_is_affine(solver):
    A, b = np.random.default_rng(5).normal(size=(9, D)), np.ones(9)
    loss = lambda x: jnp.mean((A @ x - b) ** 2) / 2
    problem = jxt.Fractional(loss, prox.L1(0.05), denominators.Affine(G[0], 5.0))
    found = jxt.solve(problem, solver, jnp.zeros(D))
    ours = jxt.solve(problem, minimize.FractionalCoordinateDescent(tol=1e-9), jnp.ones(D))
    assert found.status == ours.status == jxt.Status.converged
    np.testing.assert_allclose(found.value, ours.value, atol=1e-6)


@pytest.mark.slow
def test_a_denominator_that_is_negative_at_the_start_shows():
    affine = denominators.Affine(np.ones(D), -6.0)
    problem = jxt.Fractional(lambda x: 1 + jnp.sum(x**2), None, affine)
    outside = jxt.solve(problem, minimize.FractionalCoordinateDescent(), jnp.ones(D))
    assert outside.status == jxt.Status.nonfinite


def test_bad_input_raises():
    fit, starting = lambda x: 1 + jnp.sum(x**2), jnp.ones(D)
    solver = minimize.FractionalCoordinateDescent()
    for error, match, make in (
        (TypeError, "known along", lambda: (lambda x: 1.0 + jnp.sum(x), None)),
        (
            TypeError,
            "nonsmooth part must",
            lambda: (denominators.Affine(np.ones(D)), prox.L2(1.0)),
        ),
    ):
        denominator, nonsmooth = make()
        with pytest.raises(error, match=match):
            jxt.solve(jxt.Fractional(fit, nonsmooth, denominator), solver, starting)
    with pytest.raises(ValueError, match="at most the 5"):
        jxt.solve(jxt.Fractional(fit, None, denominators.SumOfLargest(6)), solver, starting)
    with pytest.raises(ValueError, match="proximal_weight"):
        minimize.FractionalCoordinateDescent(proximal_weight=0.0)
    with pytest.raises(TypeError, match="selection"):
        minimize.FractionalCoordinateDescent(selection="random")  # pyright: ignore
    with pytest.raises(ValueError, match=r"\(m, d\)"):
        denominators.SumOfMagnitudes(np.ones(3))
    with pytest.raises(TypeError, match="inner"):
        minimize.Dinkelbach(inner=3)  # pyright: ignore
