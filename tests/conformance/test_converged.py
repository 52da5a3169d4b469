"""Converged means solved: a solver of the catalogue that says so has a small residual.

Problems are drawn ugly: rank-deficient, with zero and repeated rows and columns, with units over
six orders of magnitude, some without any solution. Tolerances are drawn too, so that solves stop at
any moment, early ones above all.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import catalog, prox

ROWS = catalog.rows(catalog.SolverRow)
M, N, SIZE, STEPS = 8, 5, 24, 120


def _draw(seed, size):
    """Numbers for `size` problems."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(size, M, N)) / np.sqrt(M)
    kind = rng.integers(0, 5, size)
    A[kind == 1, :, 1] = A[kind == 1, :, 0]
    A[kind == 2, :, 2] = 0
    A[kind == 3, : M // 2] = A[kind == 3, M // 2 :]
    A[kind == 4] *= 10.0 ** rng.uniform(-2, 2, (np.sum(kind == 4), 1, N))
    units = 10.0 ** rng.uniform(-3, 3, (2, size))
    A *= units[0][:, None, None]
    b = units[1][:, None] * rng.normal(size=(size, M))
    pulled = np.abs(np.einsum("smn,sm->sn", A, b)).max(axis=1, keepdims=True) / M
    root = np.linalg.qr(rng.normal(size=(size, N, N)))[0]
    return {
        "A": A,
        "b": b,
        "theta": pulled * 10.0 ** rng.uniform(-3, 0.3, (size, N)),
        "map": root * 10.0 ** rng.uniform(-1, 0.3, (size, 1, 1)),  # expansions too
        "shift": rng.normal(size=(size, N)) * 10.0 ** rng.uniform(-3, 3, (size, 1)),
        "bad": rng.integers(0, 2, size) * 1.0,
        "start": rng.dirichlet(np.ones(N), size) * 10.0 ** rng.uniform(-2, 2, (size, 1)),
        "stop": 10.0 ** rng.uniform(-5, 0.5, size),
    }


def _smooth(d):
    """Without lower bound in half of the cases: a slope where nothing curves, or an exponential."""
    A, b, c, bad = d["A"], d["b"], d["shift"], d["bad"]
    fun = lambda x: (
        0.5 * jnp.sum((A @ x - b) ** 2) + bad * (jnp.vdot(c, x) - x[0] + jnp.exp(-bad * x[1]))
    )
    return jxt.Smooth(fun)


def _constrained(d):
    A, b, theta = d["A"], d["b"], d["theta"]
    fun = lambda x: 0.5 * jnp.sum((A @ x - b) ** 2) + theta @ x
    return jxt.Constrained(fun, prox.Simplex(jnp.sum(d["start"])))


def _root(d):
    """The square makes half of them have no root."""
    return jxt.RootFinding(
        lambda x: d["map"] @ x + jnp.tanh(x) + d["bad"] * (1 + x**2) - d["shift"]
    )


def _feedforward(d):
    """A recurrence; expansions of large numbers too."""

    def cell(s, u):
        return u[0] * (s + 0.5 * d["bad"] * jnp.sin(s)) + u[1]

    inputs = jnp.stack([N * d["map"][:, 0], d["shift"]], axis=1)
    return jxt.fixed_point.recurrence(cell, inputs, d["theta"][0])


def _bounded_root(d):
    """Some with the root outside of the box, or none."""
    lower = jnp.where(d["theta"] > jnp.median(d["theta"]), -jnp.inf, d["start"] - 1)
    return jxt.BoundedRootFinding(_root(d).fun, lower, d["start"] + 10 * d["bad"] + 0.1)


def _least_squares(d):
    return jxt.LeastSquares(lambda x: (d["A"] @ x - d["b"], d["bad"] * (jnp.sin(x) + 2)))


def _program(d):
    A = d["A"]
    middle = A @ d["start"]
    return jxt.QuadraticProgram(A.T @ A, d["shift"], A, middle - d["bad"], middle + 1)


def _linear_program(d):
    """Equal bounds in half of the rows of the bad ones."""
    A = d["A"]
    middle = A @ d["start"]
    upper = middle + jnp.where(jnp.arange(M) < d["bad"] * M / 2, 0, 1)
    return jxt.LinearProgram(d["shift"] - A.T @ d["b"], A, middle - d["bad"], upper + d["bad"] - 1)


def _second_order(d):
    A = jnp.concatenate([d["A"], -d["map"]])
    side = jnp.concatenate([A[:M] @ d["start"] + 1, d["shift"]])
    cost = d["A"].T @ d["b"]
    return jxt.SecondOrderConeProgram(cost, A, side, nonnegative=M, second_order=(2, 3))


def _matrix_inequality(d):
    """Often without a solution."""
    size = 4
    parts = d["A"][: 2 * size, :].reshape(2, size, N)
    generators = jnp.einsum("ki,li->ikl", parts[0], parts[1])
    generators = generators + jnp.swapaxes(generators, 1, 2)
    constant = jnp.diag(d["shift"][:size]) * d["bad"] - jnp.eye(size, dtype=d["A"].dtype)
    return jxt.LinearMatrixInequality(d["A"].T @ d["b"], constant, generators, jnp.arange(N) < 2)


def _inclusion(d):
    """A monotone map, affine or a little bent, on a box that may be far away; without curvature
    half of the time, and then often without a solution but on the box."""
    skew = d["map"] - d["map"].T
    A = d["A"] * (1 - d["bad"])
    size = jnp.sum(d["start"])
    forward = lambda z: A.T @ (A @ z - d["b"]) + skew @ z + jnp.arctan(z) + d["shift"]
    return jxt.VariationalInequality(forward, prox.Box(-size, 2 * size))


def _min_max(d):
    """A bilinear saddle, with a square on one side half of the time."""
    A, b = d["A"] * d["bad"], d["b"]
    objective = lambda x, y: 0.5 * jnp.sum((A @ x - b) ** 2) + y @ d["map"] @ x - y @ d["shift"]
    size = jnp.sum(d["start"])
    return jxt.MinMax(objective, prox.Box(-size, 2 * size), prox.Box(-size, size))


def _manifold(d):
    """A sphere, with a plane that misses it in some cases; multipliers grow with the units."""
    A, b, c = d["A"], d["b"], d["map"][0]
    fun = lambda x: 0.5 * jnp.sum((A @ x - b) ** 2) + d["bad"] * jnp.vdot(d["shift"], x)
    radius = jnp.sum(d["start"] ** 2)
    return jxt.EqualityConstrained(fun, lambda x: jnp.stack([x @ x - radius, c @ x - d["bad"]]))


def _nonlinear_program(d):
    """A plane, a ball and a box, which do not meet in some cases."""
    A, b, c = d["A"], d["b"], d["map"][0]
    fun = lambda x: 0.5 * jnp.sum((A @ x - b) ** 2) + d["bad"] * jnp.vdot(d["shift"], x)
    size = jnp.sum(d["start"])
    return jxt.NonlinearProgram(
        fun,
        lambda x: (c @ x - d["bad"])[None],
        lambda x: jnp.stack([x @ x - size**2, x[0] - 0.1 * size]),
        (-size, jnp.where(d["theta"] > jnp.median(d["theta"]), jnp.inf, 2 * size)),
    )


def _multi_objective(d):
    """Objectives that share a minimizer, that conflict, that are equal, that have no minimizer,
    that do not look at the point, in units of their own."""
    A, b, c, units = d["A"], d["b"], d["shift"], d["theta"]

    def objectives(x):
        fit = 0.5 * jnp.sum((A @ x - b) ** 2)
        far = 0.5 * jnp.sum((A @ x + d["bad"] * b) ** 2)
        line = d["bad"] * jnp.vdot(c, x)
        return jnp.stack([fit, far, fit, units[0] * line, units[1] * jnp.sum(x[:2] ** 2), 1.0])

    return jxt.MultiObjective(objectives)


def _finite_sum(d):
    fit = lambda x, row: 0.5 * M * (row[0] @ x - row[1]) ** 2
    return jxt.FiniteSum(fit, (d["A"], d["b"]), prox.L1(d["theta"]))


def _expectation(d):
    """The same by draws of rows."""
    fit = lambda x, i: 0.5 * M * (d["A"][i] @ x - d["b"][i]) ** 2
    mean = lambda x: 0.5 * jnp.sum((d["A"] @ x - d["b"]) ** 2)
    draw = lambda key, size: jax.random.randint(key, (size,), 0, M)
    return jxt.Expectation(fit, draw, prox.L1(d["theta"]), mean)


def _ratio(d):
    """Some with a denominator that falls to zero, some that start there or beyond."""
    A, b, normal = d["A"], d["b"], d["shift"]
    offset = jnp.where(d["theta"][0] > d["theta"][1], 1 + jnp.abs(normal @ d["start"]), 1)
    fit = lambda x: 0.5 * jnp.sum((A @ x - b) ** 2)
    return jxt.Fractional(
        fit, prox.L1(d["theta"]), jxt.minimize.denominators.Affine(normal, offset)
    )


def _bilevel(d):
    """Data fitted under weights of its rows; singular and unsolvable lower levels among them, and a
    box for the weights in which they may end."""
    A, b = d["A"], d["b"]
    size = jnp.sum(jnp.abs(b)) ** 2

    def upper(x, y):
        fit = 0.5 * jnp.sum((A[: M // 2] @ y - b[: M // 2]) ** 2)
        return fit + 0.5 * size * jnp.sum((x - 0.3 * d["bad"]) ** 2)

    def lower(x, y):
        rows = 0.5 * jnp.sum(jax.nn.sigmoid(x) * (A @ y - b) ** 2)
        return rows + d["bad"] * jnp.vdot(d["theta"], y)

    return jxt.Bilevel(upper, lower, prox.Box(-1.0, 1.0))


def _multi_block(d):
    """Three fits of the same rows, with penalties to be found; the last goes without half of the
    time, and then its lower level may be singular."""
    A, b = d["A"], d["b"]
    floor = jnp.asarray([1.0, 2.0, 0.0], A.dtype) + (1 - d["bad"])
    size = jnp.sum(A**2) / M

    def upper(x, y, row, i):
        return 0.5 * (row[0] @ y - row[1]) ** 2 / (1 + row[1] ** 2) + 0.5 * jnp.sum(x**2)

    def lower(x, y, row, i):
        penalty = jnp.sum((floor[i] + floor[i] * jax.nn.sigmoid(x)) * y**2)
        return 0.5 * (row[0] @ y - row[1]) ** 2 / size + 0.5 * penalty

    return jxt.MultiBlockBilevel(upper, lower, (A, b), (A, b), 3)


BUILD = {
    jxt.MultiBlockBilevel: _multi_block,
    jxt.Bilevel: _bilevel,
    jxt.StochasticBilevel: lambda d: jxt.StochasticBilevel(
        lambda x, y, s: s * _bilevel(d).upper(x, y),
        lambda x, y, s: s * _bilevel(d).lower(x, y),
        jnp.asarray([0.5, 1.5], d["A"].dtype),
        jnp.asarray([0.0, 1.0, 2.0], d["A"].dtype),
        prox.Box(-1.0, 1.0),
    ),
    jxt.Fractional: _ratio,
    jxt.MultiObjective: _multi_objective,
    jxt.FiniteSum: _finite_sum,
    jxt.Expectation: _expectation,
    jxt.EqualityConstrained: _manifold,
    jxt.NonlinearProgram: _nonlinear_program,
    jxt.AbstractInclusion: _inclusion,
    jxt.MinMax: _min_max,
    jxt.Smooth: _smooth,
    jxt.Composite: lambda d: jxt.Composite(
        jxt.objectives.SquaredLoss(d["A"], d["b"]), prox.L1(d["theta"])
    ),
    jxt.Constrained: _constrained,
    jxt.FixedPoint: lambda d: jxt.FixedPoint(
        lambda x: d["map"] @ (x + 0.5 * d["bad"] * jnp.sin(x)) + d["shift"]
    ),
    jxt.Feedforward: _feedforward,
    jxt.RootFinding: _root,
    jxt.BoundedRootFinding: _bounded_root,
    jxt.LeastSquares: _least_squares,
    jxt.Saddle: lambda d: jxt.Saddle(
        prox.L1(d["theta"]), prox.Shifted(prox.L2Squared(1.0), d["b"]), d["A"]
    ),
    jxt.Splitting: lambda d: jxt.Splitting(
        prox.Shifted(prox.L2Squared(1.0), d["b"]), prox.L1(d["theta"]), None, -d["A"]
    ),
    jxt.QuadraticProgram: _program,
    jxt.LinearProgram: _linear_program,
    jxt.SecondOrderConeProgram: _second_order,
    jxt.LinearMatrixInequality: _matrix_inequality,
}


def _start(kind, d):
    return {
        jxt.Splitting: lambda: jnp.zeros_like(d["b"]),
        jxt.MinMax: lambda: jxt.PrimalDual(d["start"], jnp.zeros_like(d["start"])),
        jxt.Smooth: lambda: d["bad"] * d["shift"],
        jxt.Bilevel: lambda: (0.1 * d["b"], d["start"]),
        jxt.StochasticBilevel: lambda: (0.1 * d["b"], d["start"]),
        jxt.MultiBlockBilevel: lambda: (d["start"], jnp.tile(0.1 * d["start"], (3, 1))),
    }.get(kind, lambda: d["start"])()


def _norm(problem, value):
    return jxt.tree.norm(problem.residual(value))


def _square(problem, value):
    """Of a Frank-Wolfe gap: the square of the residual's norm is below it."""
    return _norm(problem, value) ** 2


def _relative(problem, value):
    """Of OSQP: each entry relative to the products that it is made of."""
    stationarity, feasibility = map(jnp.abs, problem.residual(value))
    x, y, q = jnp.abs(value.primal), jnp.abs(value.dual), jnp.abs(problem.q)
    A, P = jnp.abs(problem.A), jnp.abs(problem.P)
    z = jnp.clip(problem.A @ value.primal + value.dual, problem.l, problem.u)
    rows = jnp.max(feasibility / (1 + A @ x + jnp.abs(z)))
    return jnp.maximum(rows, jnp.max(stationarity / (1 + P @ x + q + A.T @ y)))


MEASURES = {
    "Frank-Wolfe": _square,
    "Away-step Frank-Wolfe": _square,
    "Pairwise Frank-Wolfe": _square,
    "OSQP": _relative,
}
"""What a solver's docstring says its error bounds, where that is not the residual's norm."""


SOLVES = {
    "Augmented Lagrangian": 15,
    "Exact augmented Lagrangian with sketched Newton steps": 10,
}
"""Steps of those whose each step is a solve, which is most of the time; in as few they converge on
the same problems."""


def _runner(row, kind):
    """The solve of a batch, and the measure at its values."""
    measure = MEASURES.get(row.name, _norm)

    def run(data):
        problem, start = BUILD[kind](data), _start(kind, data)
        first = measure(problem, problem.start(start))
        # Where the start is a solution any tolerance will do.
        tol = data["stop"] * jnp.where(first > 0, first, 1)
        solver = row.example()
        steps = min(solver.max_steps, SOLVES.get(row.name, STEPS))
        solver = dataclasses.replace(solver, tol=tol, max_steps=steps)
        solution = jxt.solve(problem, solver, start)
        return solution.value, tol, solution.status == jxt.Status.converged

    again = lambda data, value: measure(BUILD[kind](data), value)
    return jax.vmap(run), jax.vmap(again)


def _compiled(fun, quick, *args):
    """In a hurry where compiling is most of the time."""
    options = {"xla_backend_optimization_level": 0} if quick else {}
    return jax.jit(fun).lower(*args).compile(options)


def _jiggled(tree, eps, rng):
    """Every number off by a few roundings."""
    off = lambda x: x * (1 + eps * rng.uniform(-1, 1, x.shape)).astype(x.dtype)
    return jax.tree.map(off, tree)


def _check(row, kind, dtype, seeds, size, quick=False):
    run, measure = _runner(row, kind)
    solve_all = measure_all = None
    sharp = 0
    for seed in seeds:
        data = {name: np.asarray(a, dtype) for name, a in _draw(seed, size).items()}
        solve_all = solve_all or _compiled(run, quick, data)
        value, tol, converged = jax.tree.map(np.asarray, solve_all(data))
        measure_all = measure_all or _compiled(measure, quick, data, value)
        found, rng = measure_all(data, value), np.random.default_rng(seed)
        eps = 8 * jnp.finfo(dtype).eps
        noisy = [measure_all(*_jiggled((data, value), eps, rng)) for _ in range(6)]
        moved = np.abs(np.stack(noisy) - found)  # not a number where a jiggle overflows
        rounding = 4 * np.max(np.nan_to_num(moved, nan=0.0, posinf=0.0), axis=0)
        wrong = converged & ~(found <= 1.001 * tol + rounding)
        assert not wrong.any(), (seed, np.flatnonzero(wrong), found[wrong], tol[wrong])
        sharp += np.sum(converged & (rounding < 0.5 * tol))
    assert sharp >= 2, "too few solves converged for the check to mean anything"


def _kinds(row):
    skipped = row.opt_outs.get("problems", "")
    return [kind for kind in row.example().problems if kind.__name__ not in skipped]


def _says(row):
    """By which code a solver says that it has converged, for which system."""
    solver = type(row.example())
    return row.system, solver.step, solver.error


SAID = {_says(row): row for row in reversed(ROWS) if row.system}


def _pairs(others=()):
    """Of each row the first problem type; with these marks the others, and solvers of one system
    that have step and error from the same class as one before."""
    return [
        pytest.param(
            row,
            kind,
            id=f"{row.name}-{kind.__name__}",
            marks=others if i or SAID.get(_says(row), row) is not row else (),
        )
        for row in ROWS
        for i, kind in enumerate(_kinds(row))
    ]


@pytest.mark.parametrize(("row", "kind"), _pairs(others=pytest.mark.slow))
def test_converged_is_solved(row, kind):
    assert kind in BUILD, f"draw problems of the type {kind.__name__} here"
    # One precision each, turn by turn: both are in the slow test.
    single = len(f"{row.name}{kind.__name__}") % 2 and "float32" not in row.opt_outs
    # What is slow anyway may draw more: methods with one fixed penalty converge on few.
    seeds = range(1 if kind is _kinds(row)[0] else 4)
    _check(row, kind, jnp.float32 if single else jnp.float64, seeds, SIZE, quick=True)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "kind"), _pairs())
def test_converged_is_solved_on_many(row, kind, dtype):
    assert kind in BUILD, f"draw problems of the type {kind.__name__} here"
    if dtype == jnp.float32 and "float32" in row.opt_outs:
        pytest.skip(row.opt_outs["float32"])
    _check(row, kind, dtype, range(1, 3 if row.name in SOLVES else 21), 100)
