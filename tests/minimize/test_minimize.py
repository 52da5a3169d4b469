"""What each method promises beyond the contract of solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import Lasso, LogisticRegression, MultiTaskLasso

import jaxopt_ext as jxt
from jaxopt_ext import minimize, objectives, prox

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 8))
Y = X @ np.array([1, -2, 0, 0, 0.5, 0, 0, 0]) + 0.1 * RNG.normal(size=30)
LABELS = (Y > 0).astype(float)


def lasso(lam=0.1):
    return jxt.Composite(objectives.SquaredLoss(X, Y), prox.L1(lam))


def reference(lam=0.1):
    model = Lasso(alpha=lam, fit_intercept=False, tol=1e-14, max_iter=100_000)
    return model.fit(X, Y).coef_


@pytest.mark.parametrize("loss", ["squared", "logistic", "multiclass", "huber", "poisson"])
def test_losses_against_numpy(loss):
    z = RNG.normal(size=30)
    if loss == "squared":
        ours, wanted = objectives.SquaredLoss(X, Y), 0.5 * np.mean((z - Y) ** 2)
    elif loss == "logistic":
        p = 1 / (1 + np.exp(-z))
        wanted = -np.mean(LABELS * np.log(p) + (1 - LABELS) * np.log(1 - p))
        ours = objectives.LogisticLoss(X, LABELS)
    elif loss == "multiclass":
        z, classes = RNG.normal(size=(30, 3)), RNG.integers(0, 3, 30)
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        wanted = -np.mean(np.log(p[np.arange(30), classes]))
        ours = objectives.MulticlassLogisticLoss(X, classes)
    elif loss == "huber":
        gap = np.abs(z - Y)
        wanted = np.mean(np.where(gap < 0.5, gap**2 / 2, 0.5 * (gap - 0.25)))
        ours = objectives.HuberLoss(X, Y, 0.5)
    else:
        counts = RNG.integers(0, 4, 30)
        wanted = np.mean(np.exp(z) - counts * z)
        ours = objectives.PoissonLoss(X, counts)
    np.testing.assert_allclose(ours.of_predictions(jnp.asarray(z)), wanted, rtol=1e-12)
    if np.isfinite(ours.curvature):
        # The bound holds for the losses, and so for the coordinates.
        row = jnp.asarray(z[:1])
        for t in jnp.linspace(-3, 3, 7):
            hessian = jax.hessian(lambda r, o=ours: jnp.mean(_first(o, r)))(row + t)
            assert np.linalg.eigvalsh(hessian.reshape(row.size, row.size))[-1] <= (
                ours.curvature + 1e-9
            )


def _first(loss, row):
    import dataclasses

    return dataclasses.replace(loss, matrix=X[:1], targets=loss.targets[:1]).losses(row)


@pytest.mark.parametrize(
    "solver",
    [
        minimize.FISTA(restart=False, tol=1e-9, max_steps=20_000),
        minimize.FISTA(minimize.FixedStep(0.3), tol=1e-9, max_steps=20_000),
        minimize.ProximalGradient(tol=1e-9, max_steps=20_000),
        minimize.BlockCoordinateDescent(tol=1e-10),
        minimize.BlockCoordinateDescent(selection=minimize.Random(1.0), tol=1e-10),
        minimize.BlockCoordinateDescent(selection=minimize.Random(), tol=1e-10),
        minimize.GreedyCoordinateDescent(tol=1e-10),
    ],
    ids=["plain", "fixed", "ista", "cyclic", "importance", "random", "greedy"],
)
def test_lasso_variants_equal_scikit_learn(solver):
    value = jxt.solve(lasso(), solver, jnp.zeros(8)).value
    np.testing.assert_allclose(value, reference(), atol=1e-7)
    assert np.array_equal(value != 0, reference() != 0)


def test_block_descent_on_logistic_rows_and_plain_functions():
    lam = 0.02
    model = LogisticRegression(
        C=1 / (30 * lam),
        l1_ratio=1.0,
        solver="saga",
        fit_intercept=False,
        tol=1e-12,
        max_iter=200_000,
    ).fit(X, LABELS)
    solver = minimize.BlockCoordinateDescent(tol=1e-9, max_steps=20_000)
    problem = jxt.Composite(objectives.LogisticLoss(X, LABELS), prox.L1(lam))
    np.testing.assert_allclose(
        jxt.solve(problem, solver, jnp.zeros(8)).value, model.coef_[0], atol=1e-5
    )
    targets = np.stack([Y, RNG.normal(size=30)], axis=1)
    grouped = MultiTaskLasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=100_000)
    grouped.fit(X, targets)
    problem = jxt.Composite(objectives.SquaredLoss(X, targets), prox.GroupLasso(0.1))
    rows = jxt.solve(problem, solver, jnp.zeros((8, 2))).value
    np.testing.assert_allclose(rows, grouped.coef_.T, atol=1e-6)
    bounds = objectives.SquaredLoss(X, Y).coordinate_lipschitz()
    plain = jxt.Composite(lambda w: 0.5 * jnp.mean((X @ w - Y) ** 2), prox.L1(0.1))
    solver = minimize.BlockCoordinateDescent(lipschitz=bounds, tol=1e-10)
    np.testing.assert_allclose(jxt.solve(plain, solver, jnp.zeros(8)).value, reference(), atol=1e-7)


def test_predictions_are_kept_not_computed_again():
    problem = lasso()
    solver = minimize.BlockCoordinateDescent()
    state = solver.init(problem, jnp.zeros(8), jax.random.key(0))
    jaxpr = jax.make_jaxpr(lambda w, s: solver.step(problem, w, s))(jnp.zeros(8), state)

    def loops(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in ("while", "scan"):
                inner = eqn.params.get("body_jaxpr") or eqn.params["jaxpr"]
                yield inner.jaxpr

    (sweep,) = loops(jaxpr.jaxpr)
    products = [e for e in sweep.eqns if e.primitive.name == "dot_general"]
    # One inner product with one column; the (30, 8) matrix is never multiplied in the sweep.
    assert all(v.aval.ndim == 1 for e in products for v in e.invars)


def test_greedy_picks_the_best_block():
    problem = lasso()
    solver = minimize.GreedyCoordinateDescent(max_steps=1)
    x = jnp.zeros(8)
    moved = jxt.solve(problem, solver, x).value
    bounds = np.mean(X**2, axis=0)
    best = None
    for j in range(8):
        slope = X[:, j] @ (-Y) / 30
        u = -slope / bounds[j]
        u = np.sign(u) * max(abs(u) - 0.1 / bounds[j], 0)
        decrease = -(slope * u + 0.5 * bounds[j] * u**2 + 0.1 * abs(u))
        best = max(best, (decrease, j, u)) if best else (decrease, j, u)
    expected = np.zeros(8)
    expected[best[1]] = best[2]
    np.testing.assert_allclose(moved, expected, atol=1e-12)


def test_backtracking_never_exceeds_what_the_bound_allows():
    curvature = np.linalg.eigvalsh(X.T @ X / 30)[-1]
    record = lambda problem, x, state: state.step_size
    solver = minimize.FISTA(max_steps=60, tol=0.0)
    steps = jxt.solve(lasso(), solver, jnp.zeros(8), trace=record).trace
    # Any step of at most 1/L passes, so a search never ends below half of it.
    assert np.all(steps >= 0.5 / curvature)


def test_fista_is_accelerated_and_restart_helps():
    rng = np.random.default_rng(2)
    scales = np.logspace(0, -2, 40)
    matrix = (
        np.linalg.qr(rng.normal(size=(40, 40)))[0]
        * scales
        @ np.linalg.qr(rng.normal(size=(40, 40)))[0]
    )
    problem = jxt.Composite(
        objectives.SquaredLoss(matrix, rng.normal(size=40)), prox.L2Squared(1e-6)
    )
    counts = [
        int(jxt.solve(problem, solver, jnp.zeros(40)).steps)
        for solver in (
            minimize.FISTA(tol=1e-9, max_steps=50_000),
            minimize.FISTA(restart=False, tol=1e-9, max_steps=50_000),
            minimize.ProximalGradient(tol=1e-9, max_steps=50_000),
        )
    ]
    assert counts[0] < counts[1] < counts[2]
    assert counts[0] < 0.1 * counts[2]


@pytest.mark.parametrize(
    "search",
    [
        optax.scale_by_zoom_linesearch(max_linesearch_steps=30),
        optax.scale_by_backtracking_linesearch(max_backtracking_steps=40),
        optax.scale(0.02),
    ],
    ids=["zoom", "backtracking", "fixed"],
)
def test_gradient_descent_line_searches(search):
    problem = jxt.Smooth(lambda x: jnp.sum(jnp.cosh(jnp.array([1.0, 3.0]) * (x - 1))))
    solver = minimize.GradientDescent(search, tol=1e-6, max_steps=2000)
    solution = jxt.solve(problem, solver, jnp.zeros(2))
    assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(solution.value, 1, atol=1e-5)


def simplex_problem():
    return jxt.Constrained(lambda w: 0.5 * jnp.sum((X @ w - Y) ** 2), prox.Simplex(1.0))


def test_mirror_maps_agree():
    start = jnp.full(8, 1 / 8)
    entropic = jxt.solve(
        simplex_problem(), minimize.MirrorDescent(tol=1e-8, max_steps=50_000), start
    )
    solver = minimize.MirrorDescent(mirror_map=minimize.Euclidean(), tol=1e-8)
    euclidean = jxt.solve(simplex_problem(), solver, start)
    np.testing.assert_allclose(entropic.value, euclidean.value, atol=1e-6)
    orthant = jxt.Constrained(lambda w: 0.5 * jnp.sum((X @ w - Y) ** 2), prox.NonNegative())
    solver = minimize.MirrorDescent(
        mirror_map=minimize.EntropicOrthant(), tol=1e-6, max_steps=50_000
    )
    import scipy.optimize

    value = jxt.solve(orthant, solver, jnp.ones(8)).value
    np.testing.assert_allclose(value, scipy.optimize.nnls(X, Y)[0], atol=1e-5)


@pytest.mark.parametrize("solver", [minimize.AwayFrankWolfe, minimize.PairwiseFrankWolfe])
@pytest.mark.parametrize("feasible", [prox.Simplex(1.0), prox.L1Ball(2.0)], ids=["simplex", "l1"])
def test_frank_wolfe_variants_converge_linearly(solver, feasible):
    problem = jxt.Constrained(lambda w: 0.5 * jnp.sum((X @ w - Y) ** 2), feasible)
    start = jnp.zeros(8).at[0].set(1.0)
    found = jxt.solve(problem, solver(tol=1e-9, max_steps=3000), start)
    assert found.status == jxt.Status.converged
    wanted = jxt.solve(problem, minimize.ProximalGradient(tol=1e-10, max_steps=50_000), start)
    np.testing.assert_allclose(found.value, wanted.value, atol=1e-6)
    if isinstance(feasible, prox.L1Ball):  # on the simplex the solution is a corner
        plain = jxt.solve(problem, minimize.FrankWolfe(tol=1e-9, max_steps=3000), start)
        assert plain.status == jxt.Status.step_limit
    # A full set of atoms is worked off, not overrun.
    few = jxt.solve(problem, solver(max_atoms=6, tol=1e-9, max_steps=3000), start)
    assert few.status == jxt.Status.converged


def test_frank_wolfe_gap_bounds_the_error():
    problem = simplex_problem()
    best = jxt.solve(
        problem, minimize.ProximalGradient(tol=1e-12, max_steps=50_000), jnp.ones(8) / 8
    )
    record = lambda problem, x, state: jnp.stack([state.error, problem.smooth(x)])
    solver = minimize.FrankWolfe(tol=0.0, max_steps=100)
    gaps, values = jxt.solve(problem, solver, jnp.ones(8) / 8, trace=record).trace.T
    optimum = problem.smooth(best.value)
    # The gap is measured before the step, which does not raise the objective.
    assert np.all(gaps >= values - optimum - 1e-10)


@pytest.mark.parametrize("kind", [minimize.AwayFrankWolfe, minimize.PairwiseFrankWolfe])
def test_each_step_goes_as_far_as_the_rule_says(kind):
    """Every step again in numpy, from the weights before it and the curvature it settled on."""
    ball = prox.L1Ball(2.0)
    problem = jxt.Constrained(lambda w: 0.5 * jnp.sum((X @ w - Y) ** 2), ball)
    solver = kind(max_atoms=20)
    x = jnp.zeros(8).at[0].set(1.0)
    state = solver.init(problem, x, jax.random.key(0))
    step = jax.jit(lambda x, s: solver.step(problem, x, s))
    away_steps = 0
    for _ in range(40):
        slope = X.T @ (X @ np.asarray(x) - Y)
        atoms, weights = np.asarray(state.active.atoms), np.asarray(state.active.weights)
        j = np.argmax(np.where(weights > 0, atoms @ slope, -np.inf))
        toward, away = np.asarray(ball.linear_minimizer(jnp.asarray(slope))), atoms[j]
        if kind is minimize.PairwiseFrankWolfe:
            direction, limit = toward - away, weights[j]
        elif slope @ (x - toward) >= slope @ (away - x):
            direction, limit = toward - x, 1.0
        else:
            direction, limit = x - away, weights[j] / (1 - weights[j])
            away_steps += 1
        if -slope @ direction < 1e-9:
            break
        new, state = step(x, state)
        gamma = min(-slope @ direction / (float(state.curvature) * direction @ direction), limit)
        np.testing.assert_allclose(new, x + gamma * direction, atol=1e-10)
        x = new
    assert away_steps > 3 or kind is minimize.PairwiseFrankWolfe
