"""First-order solvers against independent ones, on problems drawn to be ugly.

Each answer is right, undecided or wrong; none may be wrong, which is judged by the objective where
a solver says that it has converged.
"""

import dataclasses

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import fixed_point, minimize, objectives, prox, splitting

M, N = 12, 8


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
    return {"A": A, "b": b, "lam": top * 10.0 ** rng.uniform(-2, 0.1, size)}


def value(kind, d, w):
    """The objective in double precision, in numpy."""
    A, b, lam = (np.asarray(d[k], float) for k in ("A", "b", "lam"))
    w = np.asarray(w, float)
    fit = 0.5 * np.sum((np.einsum("smn,sn->sm", A, w) - b) ** 2, axis=1) / M
    if kind == "lasso":
        return fit + lam * np.sum(np.abs(w), axis=1)
    if kind == "elastic net":
        return fit + lam * (np.sum(np.abs(w), axis=1) + 0.25 * np.sum(w**2, axis=1))
    if kind == "group lasso":
        return fit + lam * np.sum(np.linalg.norm(w.reshape(-1, N // 2, 2), axis=2), axis=1)
    return fit


class _Pairs(prox.AbstractFunction):
    """A group lasso of neighbours."""

    weight: jax.Array
    convex = True

    def __call__(self, w):
        return prox.GroupLasso(self.weight)(w.reshape(-1, 2))

    def prox(self, w, step=1.0):
        return prox.GroupLasso(self.weight).prox(w.reshape(-1, 2), step).reshape(-1)


def problem(kind, d):
    loss, lam = objectives.SquaredLoss(d["A"], d["b"]), d["lam"]
    return {
        "lasso": lambda: jxt.Composite(loss, prox.L1(lam)),
        "elastic net": lambda: jxt.Composite(loss, prox.ElasticNet(lam, 0.5 * lam)),
        "group lasso": lambda: jxt.Composite(loss, _Pairs(lam)),
        "box": lambda: jxt.Constrained(loss, prox.Box(-1.0, 1.0)),
        "simplex": lambda: jxt.Constrained(loss, prox.Simplex(1.0)),
    }[kind]()


def best(kind, d):
    """The optimal values, by Clarabel, from one canonical form with parameters, in unit scales."""
    w, A, b, lam = cp.Variable(N), cp.Parameter((M, N)), cp.Parameter(M), cp.Parameter(nonneg=True)
    fit = cp.sum_squares(A @ w - b) / (2 * M)
    penalty, constraints = {
        "lasso": (lam * cp.norm1(w), []),
        "elastic net": (lam * (cp.norm1(w) + 0.25 * cp.sum_squares(w)), []),
        "group lasso": (lam * sum(cp.norm2(w[2 * g : 2 * g + 2]) for g in range(N // 2)), []),
        "box": (0, [w >= -1, w <= 1]),
        "simplex": (0, [w >= 0, cp.sum(w) == 1]),
    }[kind]
    program, found = cp.Problem(cp.Minimize(fit + penalty), constraints), []
    for k in range(len(d["b"])):
        A.value, b.value, lam.value = d["A"][k], d["b"][k], float(d["lam"][k])
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
    first = jxt.tree.norm(problem(kind, d).residual(start(kind).astype(d["b"].dtype)))
    return rtol * first / (1 + jnp.sum(d["A"] ** 2) / M)


def solve_all(kind, solver, d, dtype, rtol):
    """Values and whether they claim to be solutions."""

    def one(d):
        tol = tolerance(kind, d, rtol)
        return *_primal_of(kind, dataclasses.replace(solver, tol=tol), d), tol

    d = {name: jnp.asarray(a, dtype) for name, a in d.items()}
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(d))


def _primal_of(kind, solver, d):
    x0 = start(kind).astype(d["b"].dtype)
    if isinstance(solver, splitting.PrimalDualHybridGradient):
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
}


def count(kind, name, seed, size, dtype):
    """How many answers are right, undecided and wrong."""
    d = draw(seed, size)
    rtol = 1e-3 if dtype == jnp.float32 else 1e-6
    found, claimed, _, tol = solve_all(kind, SOLVERS[kind][name], d, dtype, rtol)
    reference = value(kind, d, _references(kind, seed, size))
    ours = value(kind, d, found)
    # What such a residual allows, besides rounding and the reference's own tolerance.
    scale = np.sum(d["b"] ** 2, axis=1) / (2 * M)
    slopes = np.sum(d["A"] ** 2, axis=(1, 2)) / M
    distance = np.linalg.norm(found, axis=1) + np.linalg.norm(_references(kind, seed, size), axis=1)
    slope = np.linalg.norm(np.einsum("smn,sm->sn", d["A"], d["b"]), axis=1) / M + slopes * distance
    slack = tol * ((1 + slopes) * distance + slope + N * d["lam"] * (1 + distance))
    slack += 100 * np.finfo(dtype).eps * (scale + np.abs(ours)) + 1e-7 * (scale + np.abs(reference))
    known = np.isfinite(reference)
    wrong = claimed & known & ~(ours <= reference + slack)
    assert not wrong.any(), (name, seed, np.flatnonzero(wrong), ours[wrong], reference[wrong])
    return int(np.sum(claimed)), int(np.sum(~claimed)), int(np.sum(wrong))


_CACHE = {}


def _references(kind, seed, size):
    key = (kind, seed, size)
    if key not in _CACHE:
        _CACHE[key] = np.stack(best(kind, draw(seed, size)))
    return _CACHE[key]


PAIRS = [(kind, name) for kind, solvers in SOLVERS.items() for name in solvers]


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_no_answer_is_wrong(kind, name):
    dtype = jnp.float32 if len(kind + name) % 2 else jnp.float64
    right, undecided, _ = count(kind, name, 0, 30, dtype)
    assert right >= 6, (right, undecided)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_no_answer_of_many_is_wrong(kind, name, dtype):
    counts = np.sum([count(kind, name, seed, 100, dtype) for seed in range(1, 4)], axis=0)
    print(f"{kind}, {name}, {jnp.dtype(dtype)}: right, undecided, wrong {counts}")
    assert counts[0] >= 100


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


@pytest.mark.parametrize("solver", ITERATIONS, ids=lambda s: type(s).__name__)
def test_maps_that_do_not_contract(solver, dtype):
    """Converged only at fixed points, from any start and to any tolerance."""
    rng = np.random.default_rng(0)
    starts = jnp.asarray(rng.normal(size=(20, 2)) * 10.0 ** rng.uniform(-2, 2, (20, 1)), dtype)
    tols = jnp.asarray(10.0 ** rng.uniform(-6, 0, 20), dtype)

    @jax.jit
    def run(starts, tols):
        found = {}
        for name, fun in MAPS.items():
            found[name] = jax.vmap(
                lambda x, tol, fun=fun: jxt.solve(
                    jxt.FixedPoint(fun), dataclasses.replace(solver, tol=tol), x
                )
            )(starts, tols)
        return {k: (s.value, s.status == jxt.Status.converged) for k, s in found.items()}

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
    for fun in (lambda x: x**2 + 1, lambda x: jnp.exp(x), lambda x: x * 0 + 1 + x**4):
        solution = jxt.solve(jxt.RootFinding(fun), jxt.adapters.Optimistix(solver), jnp.ones(2))
        size = float(jnp.linalg.norm(fun(solution.value)))
        assert solution.status != jxt.Status.converged or size <= 1e-5


def test_a_batch_of_easy_and_hard_members():
    """A member that has ended stays where it is, as if solved alone."""
    d = draw(3, 12)
    for name in ("FISTA", "coordinates"):
        solver = dataclasses.replace(LASSO[name], max_steps=500)
        together = solve_all("lasso", solver, d, jnp.float64, 1e-5)
        steps = together[2]
        assert steps.min() < 0.2 * steps.max()
        for k in np.argsort(steps)[:1]:
            alone = solve_all(
                "lasso", solver, {n: a[k : k + 1] for n, a in d.items()}, jnp.float64, 1e-5
            )
            assert alone[2][0] == steps[k]
            np.testing.assert_allclose(alone[0][0], together[0][k], rtol=1e-6, atol=1e-12)
