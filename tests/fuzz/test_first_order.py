"""First-order solvers against independent ones, on problems drawn to be ugly.

Each answer is right, undecided or wrong. None may be wrong, which is judged by the objective, and
by the residual in numpy, where a solver says that it has converged; few may be undecided.
Tolerances are drawn too, so that solves stop at any moment.
"""

import dataclasses

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from pairs import Pairs

import jaxopt_ext as jxt
from jaxopt_ext import fixed_point, minimize, objectives, prox, splitting

M, N = 12, 8
QUICK = {"xla_backend_optimization_level": 0}


def draw(seed, size):
    """Least-squares data with zero, repeated and badly scaled columns and rows."""
    rng = np.random.default_rng(seed)
    A, b = rng.normal(size=(size, M, N)), rng.normal(size=(size, M))
    for k, kind in enumerate(rng.integers(0, 6, size)):
        if kind == 1:
            A[k, :, 1] = A[k, :, 0]
        elif kind == 2:
            A[k, :, 3] = 0
            A[k, 2] = 0
        elif kind == 3:
            A[k, 1:5], b[k, 1:5] = A[k, 0], b[k, 0]
        elif kind == 4:
            A[k] *= 10.0 ** rng.uniform(-1.5, 1.5, N)
        elif kind == 5:
            A[k] = A[k, :, :2] @ rng.normal(size=(2, N))
    A *= 10.0 ** rng.uniform(-3, 3, (size, 1, 1))
    b *= 10.0 ** rng.uniform(-3, 3, (size, 1))
    top = np.abs(np.einsum("smn,sm->sn", A, b)).max(axis=1) / M
    return {
        "A": A,
        "b": b,
        "lam": top * 10.0 ** rng.uniform(-2, 0.1, size),
        "price": np.abs(A).mean(axis=1).max(axis=1) * 10.0 ** rng.uniform(-2, 0.1, size),
        "stop": rng.uniform(0, 1, size),
    }


def value(kind, d, w):
    """The objective in double precision, in numpy."""
    A, b, lam = (np.asarray(d[k], float) for k in ("A", "b", "lam"))
    w = np.asarray(w, float)
    gap = np.einsum("smn,sn->sm", A, w) - b
    fit = 0.5 * np.sum(gap**2, axis=1) / M
    if kind == "deviations":
        return np.mean(np.abs(gap), axis=1) + d["price"] * np.sum(np.abs(w), axis=1)
    if kind == "lasso":
        return fit + lam * np.sum(np.abs(w), axis=1)
    if kind == "elastic net":
        return fit + lam * (np.sum(np.abs(w), axis=1) + 0.25 * np.sum(w**2, axis=1))
    if kind == "group lasso":
        return fit + lam * np.sum(np.linalg.norm(w.reshape(-1, N // 2, 2), axis=2), axis=1)
    return fit


def residual(kind, d, w):
    """The norm of the residual in double precision, in numpy."""
    A, b, lam = d["A"], d["b"], d["lam"][:, None]
    v = w - np.einsum("smn,sm->sn", A, np.einsum("smn,sn->sm", A, w) - b) / M
    soft = np.sign(v) * np.maximum(np.abs(v) - lam, 0)
    if kind == "lasso":
        moved = soft
    elif kind == "elastic net":
        moved = soft / (1 + 0.5 * lam)
    elif kind == "group lasso":
        pairs = v.reshape(-1, N // 2, 2)
        length = np.linalg.norm(pairs, axis=2, keepdims=True)
        shrunk = np.maximum(length - lam[:, :, None], 0) / np.where(length > 0, length, 1)
        moved = (pairs * shrunk).reshape(-1, N)
    elif kind == "box":
        moved = np.clip(v, -1, 1)
    else:
        ordered = -np.sort(-v, axis=1)
        levels = (np.cumsum(ordered, axis=1) - 1) / np.arange(1, N + 1)
        last = np.sum(ordered > levels, axis=1, keepdims=True) - 1
        moved = np.maximum(v - np.take_along_axis(levels, last, axis=1), 0)
    return np.linalg.norm(w - moved, axis=1)


def problem(kind, d):
    loss, lam = objectives.SquaredLoss(d["A"], d["b"]), d["lam"]
    return {
        "lasso": lambda: jxt.Composite(loss, prox.L1(lam)),
        "elastic net": lambda: jxt.Composite(loss, prox.ElasticNet(lam, 0.5 * lam)),
        "group lasso": lambda: jxt.Composite(loss, Pairs(lam)),
        "box": lambda: jxt.Constrained(loss, prox.Box(-1.0, 1.0)),
        "simplex": lambda: jxt.Constrained(loss, prox.Simplex(1.0)),
        "deviations": lambda: jxt.Saddle(
            prox.L1(d["price"]), prox.Shifted(prox.L1(1.0 / M), d["b"]), d["A"]
        ),
    }[kind]()


def best(kind, d):
    """The optimal values, by Clarabel, from one canonical form with parameters, in unit scales."""
    w, A, b, lam = cp.Variable(N), cp.Parameter((M, N)), cp.Parameter(M), cp.Parameter(nonneg=True)
    far = kind == "deviations"
    fit = cp.norm1(A @ w - b) / M if far else cp.sum_squares(A @ w - b) / (2 * M)
    penalty, constraints = {
        "lasso": (lam * cp.norm1(w), []),
        "elastic net": (lam * (cp.norm1(w) + 0.25 * cp.sum_squares(w)), []),
        "group lasso": (lam * sum(cp.norm2(w[2 * g : 2 * g + 2]) for g in range(N // 2)), []),
        "box": (0, [w >= -1, w <= 1]),
        "simplex": (0, [w >= 0, cp.sum(w) == 1]),
        "deviations": (lam * cp.norm1(w), []),
    }[kind]
    program, found = cp.Problem(cp.Minimize(fit + penalty), constraints), []
    for k in range(len(d["b"])):
        A.value, b.value, lam.value = d["A"][k], d["b"][k], float(d["price" if far else "lam"][k])
        try:
            program.solve(solver=cp.CLARABEL)
            found.append(w.value)
        except cp.error.SolverError:
            found.append(None)
    return [np.full(N, np.nan) if v is None else v for v in found]


def start(kind):
    return jnp.full(N, 1 / N) if kind == "simplex" else jnp.zeros(N)


def tolerance(kind, d, rtol):
    """Relative to the residual at the start, and small enough to bound objectives.

    Of a convex $F = f + g$ with $f'$ of Lipschitz constant $L$, a residual $r$ at $x$ allows
    $F(x - r) - F^* \\le (1 + L) \\|r\\| \\|x - r - x^*\\|$."""
    posed = problem(kind, d)
    first = jxt.tree.norm(posed.residual(posed.start(start(kind).astype(d["b"].dtype))))
    return rtol * first / (1 + jnp.sum(d["A"] ** 2) / M)


def sharpest(dtype):
    return 1e-3 if dtype == jnp.float32 else 1e-6


def solve_all(kind, solvers, d, dtype, quick=True):
    """Values, whether they claim to be solutions, steps and tolerances for each solver, all in
    one program; compiled in a hurry where that is most of the time."""

    def one(d):
        tol = tolerance(kind, d, sharpest(dtype) ** d["stop"] * 0.5)
        solved = lambda solver: _primal_of(kind, dataclasses.replace(solver, tol=tol), d)
        return {name: (*solved(solver), tol) for name, solver in solvers.items()}

    d = {name: jnp.asarray(a, dtype) for name, a in d.items()}
    options = QUICK if quick else {}
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one)).lower(d).compile(options)(d))


def _primal_of(kind, solver, d):
    x0 = start(kind).astype(d["b"].dtype)
    if kind == "deviations":
        solution = jxt.solve(problem(kind, d), solver, x0)
        found = solution.value.primal
    elif isinstance(solver, splitting.PrimalDualHybridGradient):
        fit = prox.Shifted(prox.L2Squared(1.0 / M), d["b"])
        solution = jxt.solve(jxt.Saddle(prox.L1(d["lam"]), fit, d["A"]), solver, x0)
        found = solution.value.primal
    elif isinstance(solver, splitting.ADMM):
        loss = objectives.SquaredLoss(d["A"], d["b"])
        solution = jxt.solve(jxt.Splitting(loss, prox.L1(d["lam"])), solver, x0)
        found = solution.value.z
    else:
        solution = jxt.solve(problem(kind, d), solver, x0)
        found = solution.value
    return found, solution.status == jxt.Status.converged, solution.steps


STEPS = 4000
PROXIMAL = {
    "FISTA": minimize.FISTA(max_steps=STEPS),
    "proximal gradient": minimize.ProximalGradient(max_steps=STEPS),
    "Douglas-Rachford": splitting.DouglasRachford(max_steps=STEPS),
}
LASSO = {
    **PROXIMAL,
    "coordinates": minimize.BlockCoordinateDescent(max_steps=STEPS),
    "greedy": minimize.GreedyCoordinateDescent(max_steps=STEPS),
    "ADMM": splitting.ADMM(x_update=splitting.QuadraticUpdate(), max_steps=STEPS),
    "PDHG": splitting.PrimalDualHybridGradient(max_steps=STEPS),
}
SIMPLEX = {
    "FISTA": PROXIMAL["FISTA"],
    "mirror descent": minimize.MirrorDescent(max_steps=STEPS),
    "away steps": minimize.AwayFrankWolfe(max_steps=400),
    "pairwise": minimize.PairwiseFrankWolfe(max_steps=400),
}
SOLVERS = {
    "lasso": LASSO,
    "elastic net": PROXIMAL,
    "group lasso": PROXIMAL,
    "box": PROXIMAL,
    "simplex": SIMPLEX,
    "deviations": {"PDHG": LASSO["PDHG"]},
}
BOUNDS_ELSE = {
    "away steps": np.square,  # of a Frank-Wolfe gap
    "pairwise": np.square,
    "ADMM": None,  # of a splitting and a saddle, not of the composite problem
    "PDHG": None,
}
"""What of the residual's norm the error bounds, where that is not itself."""

MOST = {
    "FISTA": (40, 15),
    "proximal gradient": (40, 20),
    "Douglas-Rachford": (60, 65),  # of a fixed step of one, in any units
    "coordinates": (40, 5),
    "greedy": (40, 20),
    "ADMM": (30, 5),
    "PDHG": (35, 15),
    "mirror descent": (42, 25),
    "away steps": (45, 38),
    "pairwise": (42, 36),
}
"""How many of a hundred may be undecided after so many steps, in single precision, where rounding
alone is above a third of these tolerances, and in double."""


def few_undecided(counts, dtype, spare):
    for name, (right, undecided, wrong) in counts.items():
        most = MOST[name][0 if dtype == jnp.float32 else 1] / 100
        assert wrong == 0
        assert undecided <= most * (right + undecided) + spare, (name, right, undecided)


FEW = {
    "lasso": ("FISTA", "coordinates", "greedy", "ADMM", "PDHG"),
    "elastic net": ("proximal gradient",),
    "group lasso": ("Douglas-Rachford",),
    "box": ("FISTA",),
    "simplex": tuple(SIMPLEX),
    "deviations": ("PDHG",),
}
"""Each solver in the quick suite, and each problem; all pairs of them are in the slow one."""


def count(kind, seed, size, dtype, quick=True):
    """How many answers of each solver are right, undecided and wrong."""
    d, eps = draw(seed, size), jnp.finfo(dtype).eps
    best, counts = _references(kind, seed, size), {}
    reference = value(kind, d, best)
    size_of = lambda a: np.sqrt(np.sum(a**2, axis=tuple(range(1, a.ndim))))
    norm, loads, slopes = size_of(d["A"]), size_of(d["b"]), size_of(d["A"]) ** 2 / M
    solvers = {name: SOLVERS[kind][name] for name in (FEW if quick else SOLVERS)[kind]}
    for name, (found, claimed, _, tol) in solve_all(kind, solvers, d, dtype, quick).items():
        ours, distance = value(kind, d, found), size_of(found) + size_of(best)
        # What such a residual allows, besides rounding and the reference's own tolerance.
        if kind == "deviations":
            scale = np.mean(np.abs(d["b"]), axis=1)
            slack = tol * ((1 + norm) * (distance + 1) + loads + N * d["price"] + 1)
        else:
            scale = loads**2 / (2 * M)
            slope = norm * loads / M + slopes * distance
            slack = tol * ((1 + slopes) * distance + slope + N * d["lam"] * (1 + distance))
        slack += 100 * eps * (scale + np.abs(ours)) + 1e-7 * (scale + np.abs(reference))
        wrong = claimed & np.isfinite(reference) & ~(ours <= reference + slack)
        measure = BOUNDS_ELSE.get(name, np.asarray)
        if measure is not None:
            rounding = 30 * eps * ((1 + slopes) * size_of(found) + norm * loads / M)
            left = np.maximum(residual(kind, d, np.asarray(found, float)) - rounding, 0)
            wrong |= claimed & ~(measure(left) <= 1.001 * tol)
        assert not wrong.any(), (name, seed, np.flatnonzero(wrong), ours[wrong], reference[wrong])
        counts[name] = np.array([np.sum(claimed), np.sum(~claimed), np.sum(wrong)])
    return counts


_CACHE = {}


def _references(kind, seed, size):
    key = (kind, seed, size)
    if key not in _CACHE:
        _CACHE[key] = np.stack(best(kind, draw(seed, size)))
    return _CACHE[key]


@pytest.mark.parametrize("kind", SOLVERS)
def test_no_answer_is_wrong(kind):
    dtype = jnp.float32 if kind in ("elastic net", "box") else jnp.float64
    few_undecided(count(kind, 2, 30, dtype), dtype, spare=3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOLVERS)
def test_no_answer_of_many_is_wrong(kind, dtype):
    many = [count(kind, seed, 100, dtype, quick=False) for seed in range(1, 4)]
    total = {name: np.sum([counts[name] for counts in many], axis=0) for name in SOLVERS[kind]}
    for name, counts in total.items():
        print(f"{kind}, {name}, {jnp.dtype(dtype)}: right, undecided, wrong {counts}")
    few_undecided(total, dtype, spare=0)


MAPS = {
    "rotation": lambda x: jnp.stack([-x[1], x[0]]) + 1,
    "expansion": lambda x: 3 * x + 1,
    "translation": lambda x: x + 1,
    "slow drift": lambda x: x + 1e-3 / (1 + x**2),
    "growth": lambda x: x + jnp.exp(x),
    "tent": lambda x: 1.9 * jnp.minimum(x, 1 - x),
}
ITERATIONS = [
    fixed_point.Picard(max_steps=300),
    fixed_point.KrasnoselskiiMann(max_steps=300),
    fixed_point.Halpern(max_steps=300),
    fixed_point.Anderson(max_steps=300),
]


SINGLE = (fixed_point.Picard, fixed_point.Anderson)
CASES = [
    pytest.param(
        solver,
        dtype,
        id=f"{type(solver).__name__}-{jnp.dtype(dtype)}",
        # One precision each in the quick suite.
        marks=[] if isinstance(solver, SINGLE) == (dtype == jnp.float32) else pytest.mark.slow,
    )
    for solver in ITERATIONS
    for dtype in (jnp.float32, jnp.float64)
]


@pytest.mark.parametrize(("solver", "dtype"), CASES)
def test_maps_that_do_not_contract(solver, dtype):
    """Converged only at fixed points, from any start and to any tolerance."""
    rng = np.random.default_rng(0)
    starts = jnp.asarray(rng.normal(size=(20, 2)) * 10.0 ** rng.uniform(-2, 2, (20, 1)), dtype)
    tols = jnp.asarray(10.0 ** rng.uniform(-6, 0, 20), dtype)

    def run(starts, tols):
        found = {}
        for name, fun in MAPS.items():
            found[name] = jax.vmap(
                lambda x, tol, fun=fun: jxt.solve(
                    jxt.FixedPoint(fun), dataclasses.replace(solver, tol=tol), x
                )
            )(starts, tols)
        return {k: (s.value, s.status == jxt.Status.converged) for k, s in found.items()}

    run = jax.jit(run).lower(starts, tols).compile(QUICK)
    for name, (values, claimed) in run(starts, tols).items():
        x = np.asarray(values)[claimed]
        gap = np.linalg.norm(np.asarray(jax.vmap(MAPS[name])(x)) - x, axis=1)
        assert np.all(gap <= 1.01 * np.asarray(tols)[claimed] + 1e-5 * np.abs(x).max(axis=1)), name


@pytest.mark.parametrize(
    "solver",
    [
        optx.Newton(rtol=1e-6, atol=1e-6),
        optx.Dogleg(rtol=1e-6, atol=1e-6),
        optx.LevenbergMarquardt(rtol=1e-6, atol=1e-6),
        optx.BFGS(rtol=1e-6, atol=1e-6),
    ],
    ids=lambda s: type(s).__name__,
)
def test_roots_that_do_not_exist(solver):
    """Of $x^2 + 1$, $e^x$ and $x^4 + 1$."""
    square, power, fourth, one = jnp.eye(4)
    weights = jnp.stack([square + one, power, fourth + one])
    fun = lambda x, w: w[0] * x**2 + w[1] * jnp.exp(x) + w[2] * x**4 + w[3]

    def run(w):
        problem = jxt.RootFinding(lambda x: fun(x, w))
        solution = jxt.solve(problem, jxt.adapters.Optimistix(solver), jnp.ones(2))
        size = jnp.linalg.norm(fun(solution.value, w))
        return (solution.status != jxt.Status.converged) | (size <= 1e-5)

    run = jax.jit(run).lower(weights[0]).compile(QUICK)
    assert all(run(w) for w in weights)


@pytest.mark.slow
def test_a_batch_of_easy_and_hard_members():
    """A member that has ended stays where it is, as if solved alone."""
    d, solvers = draw(3, 12), {"FISTA": dataclasses.replace(LASSO["FISTA"], max_steps=500)}
    found, _, steps, _ = solve_all("lasso", solvers, d, jnp.float64)["FISTA"]
    assert steps.min() < 0.2 * steps.max()
    k = int(np.argmin(steps))
    first = {n: a[k : k + 1] for n, a in d.items()}
    alone, _, taken, _ = solve_all("lasso", solvers, first, jnp.float64)["FISTA"]
    assert taken[0] == steps[k]
    np.testing.assert_allclose(alone[0], found[k], rtol=1e-6, atol=1e-12)
