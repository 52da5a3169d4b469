"""A-CODER beside its peers, by passes over the data, and its variance-reduced form."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.minimize.textbook import SVRG

CLAIM = (
    "On logistic regression with an L1 penalty A-CODER's objective gap after 400 passes over the "
    "data is below those of CODER, APCG and cyclic coordinate descent, on each of 5 seeds."
)
SETTINGS = (
    "The constant of every method is tuned on seeds 0 and 1 over one grid of factors of 4; seeds "
    "10 to 14 are reported. Beside it, with no claim: breast cancer, with the constant L of all "
    "and with those tuned on even rows for the odd ones; a ridge of 1e-3, constants tuned for it "
    "on seeds 0 and 1; and one digit against the rest, 600 of them, ridge 1e-3, constants tuned "
    "on digits 0 to 4 by the mean number of passes, for 5 to 9."
)
PASSES, D, N, LAM, RIDGE = 400, 30, 284, 1e-4, 1e-3
CHECKPOINTS = (100, 200, 400)
GRID = tuple(4.0**k for k in range(-6, 3))


def _problem(seed):
    """Correlated columns, unit rows, noisy labels."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, 6)) @ rng.normal(size=(6, D)) + 0.3 * rng.normal(size=(N, D))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    y = rng.random(N) < 1 / (1 + np.exp(-20 * X @ rng.normal(size=D) / np.sqrt(D)))
    return jnp.asarray(X, jnp.float64), jnp.asarray(y, jnp.float64)


def _cancer(odd):
    """Half of the rows, of unit length."""
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    X, y = X[odd::2][:N], y[odd::2][:N]
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    return jnp.asarray(X, jnp.float64), jnp.asarray(y, jnp.float64)


def _composite(X, y, ridge):
    return jxt.Composite(jxt.objectives.LogisticLoss(X, y), jxt.prox.ElasticNet(LAM, ridge))


def _shrink(x, amount, ridge):
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - amount, 0) / (1 + ridge)


def _coder(X, y, bound, ridge):
    """CODER: dual averaging without acceleration; a round is one pass and one full gradient."""
    columns, problem = X.T, _composite(X, y, ridge)
    slopes = lambda z: (jax.nn.sigmoid(z) - y) / N

    def round_(carry, _):
        x, z, dual, total, p_before, before = carry
        full = columns @ slopes(z)
        a = (1 + ridge * total) / (2 * bound)
        total = total + a

        def visit(i, carry):
            w, z, dual, p = carry
            j = D - 1 - i
            new = columns[j] @ slopes(z)
            dual = dual.at[j].add(a * new + before * (full[j] - p_before[j]))
            moved = _shrink(-dual[j], total * LAM, total * ridge)
            z = z + (moved - w[j]) * columns[j]
            return w.at[j].set(moved), z, dual, p.at[j].set(new)

        x, z, dual, p = jax.lax.fori_loop(0, D, visit, (x, z, dual, p_before))
        return (x, z, dual, total, p, a), problem.objective(x)

    zero = jnp.zeros(D)
    start = (zero, jnp.zeros(N), zero, 0.0, zero, 0.0)
    return jax.lax.scan(round_, start, None, PASSES // 2)[1]


def _apcg(X, y, bound, ridge):
    """APCG without strong convexity; D random coordinates are one pass."""
    columns, problem = X.T, _composite(X, y, ridge)
    curves = bound * jnp.mean(X**2, axis=0) / jnp.max(jnp.mean(X**2, axis=0))

    def move(carry, j):
        u, v, zu, zv, theta = carry  # the point is theta^2 u + v
        point = theta**2 * zu + zv
        g = columns[j] @ (jax.nn.sigmoid(point) - y) / N
        scale = D * theta * curves[j]
        new = _shrink(v[j] - g / scale, LAM / scale, ridge / scale)
        step = new - v[j]
        back = -(1 - D * theta) / theta**2 * step
        u, v = u.at[j].add(back), v.at[j].set(new)
        zu, zv = zu + back * columns[j], zv + step * columns[j]
        after = 0.5 * (jnp.sqrt(theta**4 + 4 * theta**2) - theta**2)
        return (u, v, zu, zv, after), theta

    def sweep(carry, order):
        carry, thetas = jax.lax.scan(move, carry, order)
        return carry, problem.objective(thetas[-1] ** 2 * carry[0] + carry[1])

    zero = jnp.zeros(D)
    order = jax.random.randint(jax.random.key(0), (PASSES, D), 0, D)
    start = (zero, zero, jnp.zeros(N), jnp.zeros(N), jnp.asarray(1 / D))
    return jax.lax.scan(sweep, start, order)[1]


def _objective(problem, x, state):
    return problem.objective(x)


def _solver(make):
    def run(X, y, bound, ridge):
        problem = _composite(X, y, ridge)
        return jxt.solve(problem, make(bound, ridge), jnp.zeros(D), trace=_objective).trace

    return run


def _acoder(restart):
    return lambda bound, ridge: jxt.minimize.ACODER(
        bound,
        strong_convexity=ridge,
        blocks=None,
        restart=restart,
        tol=0.0,
        max_steps=PASSES // 2,
    )


# Objectives after each round, and how many passes a round is.
METHODS = {
    "A-CODER": (_solver(_acoder(False)), 2),
    "restarted": (_solver(_acoder(True)), 2),
    "CODER": (_coder, 2),
    "APCG": (_apcg, 1),
    "cyclic CD": (
        _solver(
            lambda bound, _: jxt.minimize.BlockCoordinateDescent(
                lipschitz=bound, tol=0.0, max_steps=PASSES
            )
        ),
        1,
    ),
    "FISTA": (
        _solver(
            lambda bound, _: jxt.minimize.FISTA(
                jxt.minimize.FixedStep(1 / bound), restart=False, tol=0.0, max_steps=PASSES
            )
        ),
        1,
    ),
}


def _gaps(name, X, y, ridge, best):
    """The gaps at the checkpoints for each constant of the grid, from the smooth part's bound."""
    run, passes = METHODS[name]
    bound = 0.25 * jnp.linalg.norm(X, 2) ** 2 / N
    at = np.array(CHECKPOINTS) // passes - 1
    return jax.vmap(lambda factor: run(X, y, factor * bound, ridge)[at] - best)(jnp.asarray(GRID))


def run() -> Outcome:
    with jax.enable_x64(True):
        return _run()


def _run() -> Outcome:
    compiled = {name: jax.jit(lambda *a, name=name: _gaps(name, *a)) for name in METHODS}

    @jax.jit
    def least(X, y, ridge):
        problem = _composite(X, y, ridge)
        solver = jxt.minimize.FISTA(tol=1e-11, max_steps=50_000)
        return problem.objective(jxt.solve(problem, solver, jnp.zeros(D)).value)

    def measure(data, ridge=0.0):
        ridge = jnp.asarray(ridge)
        best = least(*data, ridge)
        return {
            name: np.maximum(np.asarray(fun(*data, ridge, best)), 1e-13)
            for name, fun in compiled.items()
        }

    def choose(found):
        score = {n: sum(np.log(gaps[n][:, -1]) for gaps in found) for n in METHODS}
        return {n: int(np.nanargmin(np.where(np.isfinite(v), v, np.nan))) for n, v in score.items()}

    def row(what, seed, gaps, chosen, at):
        row = {"": what, "seed": seed, "passes": CHECKPOINTS[at]}
        return row | {name: float(gaps[name][k, at]) for name, k in chosen.items()}

    def constants(what, chosen):
        return {"": what, "seed": "constant / L"} | {name: GRID[k] for name, k in chosen.items()}

    chosen = choose([measure(_problem(seed)) for seed in (0, 1)])
    inside = all(0 < k < len(GRID) - 1 for k in chosen.values())
    race = [row("L1", seed, measure(_problem(seed)), chosen, 2) for seed in range(10, 15)]
    table = [constants("L1", chosen), *race]
    odd, theory = measure(_cancer(1)), dict.fromkeys(METHODS, GRID.index(1.0))
    table += [row("cancer", "L", odd, theory, at) for at in range(3)]
    chosen = choose([measure(_cancer(0))])
    table.append(constants("cancer", chosen))
    table += [row("cancer", "tuned", odd, chosen, at) for at in range(3)]
    chosen = choose([measure(_problem(seed), RIDGE) for seed in (0, 1)])
    table.append(constants("ridge", chosen))
    table += [
        row("ridge", seed, gaps, chosen, at)
        for seed in (10, 11)
        for gaps in [measure(_problem(seed), RIDGE)]
        for at in range(3)
    ]
    table += _reduced()
    peers = ("CODER", "APCG", "cyclic CD")
    holds = inside and all(row["A-CODER"] < min(row[p] for p in peers) for row in race)
    note = (
        "objective gaps; an A-CODER or CODER round counts as two passes (the error's pass is not "
        "counted), the others' as one; FISTA and the restarted form for comparison; the grid's "
        f"ends are {'not ' if inside else ''}hit; of digits passes to a gap of 1e-6, {BUDGET} is "
        "never, and a block's gradient of a sample counts as the block's share"
    )
    why = (
        "scale: it is ahead of CODER on every seed, but with 30 unknowns and a pass for each "
        "gradient APCG and cyclic descent are ahead of it on all five"
    )
    return Outcome(table, holds, note, why)


SAMPLES, BLOCKS, BUDGET = 600, 4, 180


def _digit(number):
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))[:SAMPLES]
    X = X[order] / 16
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return jnp.asarray(X), jnp.asarray(np.where(y[order] == number, 1.0, -1.0))


def _logistic(w, sample):
    return jax.nn.softplus(-sample[1] * (sample[0] @ w))


def _reduced():
    """Passes to a gap of 1e-6, with variance reduction and without."""

    def values(make, X, y, bound):
        problem = jxt.FiniteSum(_logistic, (X, y), jxt.prox.L2Squared(RIDGE))
        look = lambda problem, x, state: problem.objective(x)
        return jxt.solve(problem, make(bound), jnp.zeros(64), trace=look).trace

    def full(X, y, bound):
        loss = jxt.objectives.LogisticLoss(X, 0.5 * (y + 1))
        solver = jxt.minimize.ACODER(
            bound,
            strong_convexity=RIDGE,
            blocks=BLOCKS,
            restart=False,
            tol=0.0,
            max_steps=BUDGET // 2,
        )
        problem = jxt.Composite(loss, jxt.prox.L2Squared(RIDGE))
        return jxt.solve(problem, solver, jnp.zeros(64), trace=_objective).trace

    reduced = lambda bound: jxt.minimize.VRACODER(
        SAMPLES,
        lipschitz=bound,
        strong_convexity=RIDGE,
        blocks=BLOCKS,
        restart=False,
        tol=0.0,
        max_steps=BUDGET // 5,
    )
    plain = lambda bound: SVRG(bound, SAMPLES, tol=0.0, max_steps=BUDGET // 3)
    # Rows are of unit length: a sample's curvature is at most 1/4.
    bound = lambda X: 0.25 * jnp.linalg.norm(X, 2) ** 2 / SAMPLES
    methods = {
        "VR-A-CODER": (lambda X, y, c: values(reduced, X, y, c / 4), 5),
        "SVRG": (lambda X, y, c: values(plain, X, y, c / 4), 3),
        "A-CODER": (lambda X, y, c: full(X, y, c * bound(X)), 2),
    }
    data = tuple(jnp.stack(part) for part in zip(*map(_digit, range(10)), strict=True))

    @jax.jit
    def least(X, y):
        problem = jxt.Composite(
            jxt.objectives.LogisticLoss(X, 0.5 * (y + 1)), jxt.prox.L2Squared(RIDGE)
        )
        return problem.objective(
            jxt.solve(problem, jxt.minimize.FISTA(tol=1e-10), jnp.zeros(64)).value
        )

    best = jax.vmap(least)(*data)
    rows = [{"": "digits", "seed": "constant / L"}]
    rows += [{"": "digits", "seed": f"digit {k}"} for k in range(5, 10)]
    for name, (run, passes) in methods.items():
        each = jax.jit(jax.vmap(jax.vmap(run, (None, None, 0)), (0, 0, None)))
        gaps = np.asarray(each(*data, jnp.asarray(GRID))) - np.asarray(best)[:, None, None]
        reached = gaps <= 1e-6
        first = passes * (np.argmax(reached, axis=-1) + 1)
        first = np.where(reached.any(axis=-1), first, BUDGET)
        index = int(np.argmin(first[:5].mean(axis=0)))
        rows[0][name] = GRID[index]
        for k in range(5):
            rows[1 + k][name] = int(first[5 + k, index])
    return rows
