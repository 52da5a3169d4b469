"""Greedy rules and block updates against loops in numpy, dense solves and other solvers."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

import jaxopt_ext as jxt
from jaxopt_ext import minimize, objectives, prox
from jaxopt_ext.minimize import (
    GreedyBlockCoordinateDescent as Greedy,
    block_coordinate as landed,
    block_rules as rules,
    block_updates as updates,
    coordinate_model as models,
    curvature as curvatures,
)
from jaxopt_ext.minimize.separable import Separable

RNG = np.random.default_rng(0)
N, D, LAM = 12, 8, 0.2
X = RNG.normal(size=(N, D)) * 10.0 ** RNG.uniform(-1, 1, D) + 0.3
Y = RNG.normal(size=N)
W = RNG.normal(size=D) * (RNG.random(D) < 0.7)
H = X.T @ X / N
SLOPE = X.T @ (X @ W - Y) / N
SQUARED = objectives.SquaredLoss(X, Y)
BLOCKS = [[0, 5, 2], [1, 7, 4], [3, 6]]


def soft(x, amount):
    return np.sign(x) * np.maximum(np.abs(x) - amount, 0)


def decrease(i, scale, lam):
    new = soft(W[i] - SLOPE[i] / scale, lam / scale)
    d = new - W[i]
    return -(SLOPE[i] * d + 0.5 * scale * d**2 + lam * (abs(new) - abs(W[i])))


def least(block, lam, slope=SLOPE, matrix=H):
    """The block's model at its least, and where."""
    d = cp.Variable(len(block))
    part = matrix[np.ix_(block, block)]
    root = np.linalg.cholesky(part).T
    fit = slope[block] @ d + 0.5 * cp.sum_squares(root @ d)
    problem = cp.Problem(cp.Minimize(fit + lam * cp.norm1(W[block] + d)))
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    return problem.value - lam * np.abs(W[block]).sum(), d.value


@pytest.mark.parametrize("lam", [0.0, LAM])
def test_scores_equal_loops(lam):
    partition = minimize.GivenBlocks(BLOCKS)
    nonsmooth = prox.L1(lam) if lam else None

    @jax.jit
    def scores(x):
        model = models.coordinate_model(SQUARED)
        known = curvatures.curvature_of(SQUARED, model, None, None, x)
        slope, table = model.gradient(x, model.predictions(x)), partition.table(x)
        view = rules.Overview(x, slope, Separable.of(nonsmooth, x), known, 3)
        single = {"GS": rules.GS(), "GSD": rules.GSD(), "GSDH": rules.GSDH()}
        each = {n: s.entries(view, s.prepare(known, None)) for n, s in single.items()}
        more = single | {"GSL": rules.GSL(), "GSQ": rules.GSQ()}
        whole = {n: s.blocks(view, table, s.prepare(known, table)) for n, s in more.items()}
        iht = rules.GSQIHT()
        return each, whole, iht.entries(view, iht.prepare(known, None))

    each, whole, thresholded = scores(jnp.asarray(W))
    scales = {"GS": np.full(D, np.diag(H).max()), "GSD": np.diag(H), "GSDH": np.abs(H).sum(1)}
    for name, scale in scales.items():
        wanted = [decrease(i, scale[i], lam) for i in range(D)]
        np.testing.assert_allclose(each[name], wanted, atol=1e-12, err_msg=name)
        by_block = [sum(wanted[i] for i in block) for block in BLOCKS]
        np.testing.assert_allclose(whole[name], by_block, atol=1e-12, err_msg=name)
    largest = [np.linalg.eigvalsh(H[np.ix_(b, b)])[-1] for b in BLOCKS]
    by_block = [
        sum(decrease(i, bound, lam) for i in b) for b, bound in zip(BLOCKS, largest, strict=True)
    ]
    np.testing.assert_allclose(whole["GSL"], by_block, atol=1e-12)
    np.testing.assert_allclose(whole["GSQ"], [-least(b, lam)[0] for b in BLOCKS], atol=1e-8)

    top = np.argsort([-decrease(i, H[i, i], lam) for i in range(D)], kind="stable")[:3]
    d, bound = np.zeros(D), np.linalg.eigvalsh(H)[-1]
    d[top] = least(top, lam)[1] if lam else -np.linalg.solve(H[np.ix_(top, top)], SLOPE[top])
    for _ in range(10):
        d = soft(W + d - (SLOPE + H @ d) / bound, lam / bound) - W
        d[np.argsort(-np.abs(d), kind="stable")[3:]] = 0
    np.testing.assert_allclose(thresholded, np.abs(d), rtol=1e-5, atol=1e-6)


def test_updates_equal_dense_solves():
    block = [0, 5, 2]
    logistic = objectives.LogisticLoss(X, (Y > 0) * 1.0)

    def view(fun, nonsmooth, x, indices):
        model = models.coordinate_model(fun)
        z, part = model.predictions(x), model.block(indices)
        known = curvatures.curvature_of(fun, model, None, None, x)
        slope = jnp.where(indices < D, part.partial(x, z), 0)
        penalty = Separable.of(nonsmooth, x)
        return updates.BlockView(indices, x, z, slope, part, penalty, known, jnp.array(3.0))

    @jax.jit
    def run(x):
        indices = jnp.asarray([*block, D])
        bare, with_l1 = view(SQUARED, None, x, indices), view(SQUARED, prox.L1(LAM), x, indices)
        curved = view(logistic, None, x, indices)
        return {
            "gradient": updates.GradientUpdate()(with_l1)[0],
            "backtracked": updates.BacktrackedGradientUpdate()(bare),
            "matrix": updates.MatrixUpdate()(bare)[0],
            "proximal matrix": updates.MatrixUpdate()(with_l1)[0],
            "newton": updates.NewtonUpdate()(bare)[0],
            "exact": updates.ExactUpdate(updates.NewtonUpdate())(curved)[0],
            "two metrics": updates.ExactUpdate(updates.TwoMetricUpdate())(with_l1)[0],
        }

    found = run(jnp.asarray(W))
    part, w, g = H[np.ix_(block, block)], W[block], SLOPE[block]
    bound = np.linalg.eigvalsh(part)[-1]
    near = {"rtol": 0, "atol": 1e-9}
    np.testing.assert_allclose(found["gradient"][:3], soft(w - g / bound, LAM / bound), **near)
    newton = w - np.linalg.solve(part, g)
    np.testing.assert_allclose(found["matrix"], [*newton, 0], **near)
    np.testing.assert_allclose(found["newton"][:3], newton, **near)
    wanted = w + least(block, LAM)[1]
    np.testing.assert_allclose(found["proximal matrix"][:3], wanted, atol=1e-6)
    np.testing.assert_allclose(found["two metrics"][:3], wanted, atol=1e-6)
    new, estimate = found["backtracked"]
    d = np.asarray(new[:3]) - w
    np.testing.assert_allclose(d, -g / estimate, **near)
    assert d @ part @ d <= estimate * d @ d * (1 + 1e-9)
    shorter = -2 * g / estimate
    assert shorter @ part @ shorter > 0.5 * estimate * shorter @ shorter * (1 - 1e-9)
    moved = W.copy()
    moved[block] = found["exact"][:3]
    slope = X.T @ (1 / (1 + np.exp(-X @ moved)) - (Y > 0)) / N
    np.testing.assert_allclose(slope[block], 0, atol=1e-10)


def test_one_coordinate_is_the_greedy_method_there_was():
    problem = jxt.Composite(SQUARED, prox.L1(LAM))
    ours, theirs = (
        jxt.solve(problem, solver, jnp.asarray(W), trace=lambda problem, x, state: x).trace
        for solver in (
            Greedy(tol=0.0, max_steps=40),
            minimize.GreedyCoordinateDescent(tol=0.0, max_steps=40),
        )
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_blocks_in_turn_and_arrangements():
    lipschitz = jnp.array([3.0, 1, 4, 1.5, 9, 2, 6, 5])
    tables = [
        np.asarray(minimize.FixedBlocks(3, by).table(lipschitz))
        for by in (minimize.InOrder(), minimize.Sorted(), minimize.Averaged())
    ]
    np.testing.assert_array_equal(tables[0], [[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    np.testing.assert_array_equal(tables[1], [[4, 6, 7], [2, 0, 5], [3, 1, 8]])
    np.testing.assert_array_equal(tables[2], [[4, 1, 6], [3, 7, 5], [2, 0, 8]])
    problem = jxt.Smooth(models.Quadratic(H + np.eye(D), Y[:D]))
    wanted = np.linalg.solve(H + np.eye(D), Y[:D])
    for partition, selection in (
        (minimize.VariableBlocks(3), landed.Cyclic()),
        (minimize.FixedBlocks(3, minimize.Sorted()), landed.Random(1.0)),
    ):
        solver = Greedy(partition, selection, minimize.MatrixUpdate(), tol=1e-9)
        solution = jxt.solve(problem, solver, jnp.zeros(D))
        assert solution.status == jxt.Status.converged
        np.testing.assert_allclose(solution.value, wanted, atol=1e-7)


def test_bounds_are_held_and_nothing_is_left_of_a_support_once_found():
    targets = X @ np.array([1.0, -1, 0.5, 0, 0, -2, 0, 0])
    problem = jxt.Composite(objectives.SquaredLoss(X, targets), prox.NonNegative())
    solver = Greedy(minimize.VariableBlocks(D), update=minimize.TwoMetricUpdate(), tol=1e-10)
    record = lambda problem, x, state: state.held
    solution = jxt.solve(problem, solver, jnp.asarray(-W), trace=record)
    x = cp.Variable(D)
    cp.Problem(cp.Minimize(cp.sum_squares(X @ x - targets)), [x >= 0]).solve(solver=cp.CLARABEL)
    assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(solution.value, x.value, atol=1e-4)
    held = np.asarray(solution.trace)
    last = int(solution.state.last_change)
    assert 0 < last <= int(solution.steps) <= last + 3  # a quadratic: one Newton step
    assert 0 < int(solution.state.support_changes) <= last
    np.testing.assert_array_equal(held[last - 1], held[int(solution.steps) - 1])
    np.testing.assert_array_equal(np.asarray(solution.value)[held[-1]], 0)


def test_bad_input_raises():
    problem = jxt.Smooth(SQUARED)
    plain = jxt.Smooth(lambda w: jnp.sum(w**2))
    sparse = jxt.Composite(SQUARED, prox.L1(LAM))

    def solve(problem, *args, start=None, **options):
        start = jnp.zeros(D) if start is None else start
        return lambda: jxt.solve(problem, Greedy(*args, **options), start)

    variable, fixed = minimize.VariableBlocks(2), minimize.FixedBlocks(2)
    for error, match, make in (
        (ValueError, "fixed blocks", solve(problem, variable, minimize.GSQ())),
        (ValueError, "VariableBlocks", solve(problem, fixed, minimize.GSQIHT())),
        (TypeError, "matrix", solve(plain, update=minimize.MatrixUpdate(), lipschitz=2.0)),
        (TypeError, "matrix", solve(plain, selection=minimize.GSDH(), lipschitz=2.0)),
        (TypeError, "bound on the curvature", solve(plain)),
        (ValueError, r"\(8, 8\)", solve(plain, matrix=np.eye(3))),
        (ValueError, "not both", lambda: Greedy(matrix=np.eye(3), lipschitz=1.0)),
        (ValueError, "at most the 8", solve(problem, minimize.VariableBlocks(9))),
        (ValueError, r"\[1, 2\]", lambda: minimize.GivenBlocks([[0], [2]])),
        (ValueError, "hold 2 coordinates", solve(problem, minimize.GivenBlocks([[0], [1]]))),
        (TypeError, "L1 penalty", solve(problem, update=minimize.TwoMetricUpdate())),
        (TypeError, "smooth functions", solve(sparse, update=minimize.NewtonUpdate())),
        (TypeError, "GraphQuadratic", solve(problem, update=minimize.ForestUpdate())),
        (TypeError, "GraphQuadratic", solve(problem, minimize.ForestBlocks())),
        (TypeError, "one real vector", solve(problem, start=jnp.zeros(D, complex))),
        (TypeError, "selection", lambda: Greedy(selection="GS")),
        (ValueError, "size", lambda: minimize.VariableBlocks(0)),
    ):
        with pytest.raises(error, match=match):
            make()


@pytest.mark.slow
def test_two_metrics_are_superlinear_behind_the_last_change_of_support():
    """Gradient updates are not."""
    data, target = load_breast_cancer(return_X_y=True)
    data = (data - data.mean(0)) / data.std(0)
    loss = objectives.SquaredLoss(data, 2.0 * target - 1)
    problem, start = jxt.Composite(loss, prox.L1(0.02)), jnp.zeros(data.shape[1])
    exact = jxt.solve(problem, minimize.FISTA(tol=1e-13, max_steps=10**6), start).value
    best = problem.objective(exact)
    record = lambda problem, x, state: (problem.objective(x), state.last_change)

    def behind(update, steps):
        solver = Greedy(minimize.VariableBlocks(25), update=update, tol=0.0, max_steps=steps)
        values, changes = map(np.asarray, jxt.solve(problem, solver, start, trace=record).trace)
        there = np.flatnonzero(values - best < 1e-10)
        return (there[0] + 1 if there.size else np.inf), changes[-1]

    reached, last = behind(minimize.TwoMetricUpdate(), 300)
    assert reached <= last + 30
    slow, last = behind(minimize.GradientUpdate(), 3000)
    assert slow > last + 30
