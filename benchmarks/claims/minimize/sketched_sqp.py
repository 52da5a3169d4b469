"""Sketched Newton steps under constraints, against GMRES on an l1 merit function, exact steps and
the augmented Lagrangian method."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse.linalg
from sklearn.datasets import load_breast_cancer

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.linalg import GaussianSketch, KaczmarzSketch
from jaxopt_ext.minimize import AugmentedLagrangian, ExactSQP, LanczosRegularity, SketchedSQP

CLAIM = (
    "On logistic regression (breast cancer, 30 features) with five random linear equalities and "
    "|x| = 1, sketched Newton steps reach a KKT residual of 1e-4 with Gaussian and with Kaczmarz "
    "sketches on each of 5 seeds, and with fewer floating-point operations for linear systems than "
    "SQP on an l1 merit function with GMRES, its penalty kept at 1 or raised past the multipliers."
)
SETTINGS = (
    "The floor of the accuracy (ours, over 1, 1e2, 1e4, 1e6, 1e8) and the tolerance of GMRES (over "
    "1e-5 to 0.5, for each penalty) have the least operations on seeds 0 and 1; the rest is the "
    "paper's. The augmented Lagrangian's first penalty has the fewest steps of L-BFGS, by which "
    "its problems are solved, there over 1e-3 to 1e3 by factors of 10. Seeds 10 to 14, float64. A "
    "sketch costs its row, a projection and its share of the residual; a GMRES step a product and "
    "the orthogonalization; an exact step a factorization."
)
FLOORS = (1.0, 1e2, 1e4, 1e6, 1e8)
TOLERANCES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 0.5)
PENALTIES = tuple(10.0**k for k in range(-3, 4))
FAILED = float("inf")
FEATURES, LABELS = load_breast_cancer(return_X_y=True)
FEATURES = (FEATURES - FEATURES.mean(0)) / FEATURES.std(0)
SIGNS = 2.0 * LABELS - 1
SIZE = 36
SKETCHES = {"Gaussian": GaussianSketch(), "Kaczmarz": KaczmarzSketch()}
COST = {"Gaussian": 2 * SIZE**2 + 6 * SIZE + 2 * SIZE, "Kaczmarz": 6 * SIZE + 2 * SIZE}


def _loss(x):
    return jnp.mean(jax.nn.softplus(-SIGNS * (FEATURES @ x)))


def _draw(seed):
    rng = np.random.default_rng(seed)
    plane, inside = rng.normal(size=(5, 30)) / np.sqrt(30), rng.normal(size=30)
    inside /= np.linalg.norm(inside)
    return jnp.asarray(plane), jnp.asarray(plane @ inside), jnp.asarray(rng.normal(size=30))


def _constraints(x, plane, side):
    return jnp.append(plane @ x - side, x @ x - 1)


@jax.jit
def _sketched(solver, plane, side, start, key):
    problem = jxt.EqualityConstrained(_loss, lambda x: _constraints(x, plane, side))
    solution = jxt.solve(problem, solver, start, key=key)
    return solution.steps, solution.residual, solution.state.sketches


@jax.jit
def _local(x, dual, plane, side):
    lagrangian = lambda x: _loss(x) + dual @ _constraints(x, plane, side)
    return (
        _constraints(x, plane, side),
        jax.grad(_loss)(x),
        jax.jacobian(lambda x: _constraints(x, plane, side))(x),
        jax.hessian(lagrangian)(x),
    )


@jax.jit
def _merit(x, penalty, plane, side):
    return _loss(x) + penalty * jnp.sum(jnp.abs(_constraints(x, plane, side)))


def _gmres_sqp(seed, rtol, adaptive=True):
    """Steps, KKT residual and operations; an adaptive penalty grows past the multipliers."""
    plane, side, x = _draw(seed)
    dual, penalty, cost = np.zeros(6), 1.0, 0
    for step in range(200):
        c, g, J, H = map(np.asarray, _local(x, dual, plane, side))
        r = np.concatenate([g + J.T @ dual, c])
        if np.linalg.norm(r) <= 1e-4:
            return step, np.linalg.norm(r), cost
        null = scipy.linalg.null_space(J)
        if np.linalg.eigvalsh(null.T @ H @ null)[0] < 1e-6:
            H = H + (0.1 + np.linalg.norm(H)) * np.eye(30)
        A, count = np.block([[H, J.T], [J, np.zeros((6, 6))]]), [0]
        z, _ = scipy.sparse.linalg.gmres(
            A,
            -r,
            rtol=rtol,
            restart=SIZE,
            maxiter=1,
            callback=lambda _, count=count: count.__setitem__(0, count[0] + 1),
            callback_type="pr_norm",
        )
        k = count[0]
        cost += k * 2 * SIZE**2 + 2 * SIZE * k * (k + 1)
        if adaptive:
            penalty = max(penalty, 1.1 * np.max(np.abs(dual + z[30:])))
        fall = g @ z[:30] - penalty * np.sum(np.abs(c)) + penalty * np.sum(np.abs(c + J @ z[:30]))
        here, length = float(_merit(x, penalty, plane, side)), 1.0
        while length > 1e-8:
            if float(_merit(x + length * z[:30], penalty, plane, side)) <= (
                here + 0.1 * length * min(fall, 0) + 1e-14
            ):
                break
            length *= 0.5
        x, dual = x + length * z[:30], dual + length * z[30:]
    return step, np.linalg.norm(r), FAILED


def _ours(seed, name, floor, **options):
    options = {"tol": 1e-4, "max_steps": 100, "max_sketches": 20_000, **options}
    solver = SketchedSQP(SKETCHES[name], least_accuracy=floor, **options)
    steps, residual, sketches = _sketched(solver, *_draw(seed), jax.random.key(seed))
    solved = residual <= 1e-4
    return int(steps), float(residual), COST[name] * int(sketches) if solved else FAILED


@jax.jit
def _multipliers(penalty, plane, side, start):
    """Steps, KKT residual and steps of L-BFGS of the augmented Lagrangian method."""
    problem = jxt.EqualityConstrained(_loss, lambda x: _constraints(x, plane, side))
    solver = AugmentedLagrangian(optax.lbfgs(), penalty, tol=1e-4, max_steps=50)
    solution = jxt.solve(problem, solver, start)
    return solution.steps, solution.residual, solution.state.inner_steps


def _total(penalty, seed):
    _, residual, inner = _multipliers(penalty, *_draw(seed))
    return int(inner) if residual <= 1e-4 else FAILED


def run() -> Outcome:
    with jax.enable_x64(True):
        return _run()


def _best(choices, cost):
    totals = [sum(cost(seed, choice) for seed in (0, 1)) for choice in choices]
    return choices[int(np.argmin(totals))]


def _run():
    floors = {
        name: _best(FLOORS, lambda seed, floor, name=name: _ours(seed, name, floor)[2])
        for name in SKETCHES
    }
    rules = {"fixed": False, "adaptive": True}
    rtols = {
        name: _best(TOLERANCES, lambda seed, rtol, rule=rule: _gmres_sqp(seed, rtol, rule)[2])
        for name, rule in rules.items()
    }
    penalty = _best(PENALTIES, lambda seed, penalty: _total(penalty, seed))
    table = []
    for seed in range(10, 15):
        drawn, key = _draw(seed), jax.random.key(seed)
        steps, residual, _ = _sketched(ExactSQP(1e-4, 100), *drawn, key)
        # A factorization of a symmetric matrix in each step.
        exact = int(steps) * SIZE**3 / 3 if residual <= 1e-4 else FAILED
        row = {"seed": seed, "exact steps": int(steps), "exact Mflop": exact / 1e6}
        for name, floor in floors.items():
            steps, residual, cost = _ours(seed, name, floor)
            row |= {f"{name} steps": steps, f"{name} KKT": residual, f"{name} Mflop": cost / 1e6}
        free = _ours(seed, "Gaussian", floors["Gaussian"], regularity=LanczosRegularity(36))
        row |= {"Lanczos steps": free[0], "Lanczos KKT": free[1]}
        for name, rule in rules.items():
            steps, _, cost = _gmres_sqp(seed, rtols[name], rule)
            row |= {f"GMRES {name} steps": steps, f"GMRES {name} Mflop": cost / 1e6}
        steps, residual, inner = _multipliers(penalty, *drawn)
        row |= {"AL steps": int(steps), "AL L-BFGS": int(inner), "AL KKT": float(residual)}
        table.append(row)
    reached = all(row[f"{name} KKT"] <= 1e-4 for row in table for name in SKETCHES)
    cheaper = all(
        row[f"{name} Mflop"] < min(row[f"GMRES {rule} Mflop"] for rule in rules)
        for row in table
        for name in SKETCHES
    )
    note = (
        f"accuracy floors {floors}, GMRES tolerances {rtols}; AL is the augmented Lagrangian "
        f"method, with no linear systems, its first penalty {penalty:g}; Lanczos: Gaussian "
        "sketches with bounds from products alone"
    )
    why = (
        "scale: all reach 1e-4, but of 36 unknowns GMRES needs 36 products, sketches 1e4 rows"
        if reached
        else "ours: not all sketched runs reach 1e-4 within 100 steps of 20,000 sketches"
    )
    return Outcome(table, bool(reached and cheaper), note, "" if reached and cheaper else why)
