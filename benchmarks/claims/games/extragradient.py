"""Looking ahead, and an anchor, on bilinear games."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome

CLAIM = (
    "On bilinear games with singular values over four decades the norm of the map grows under "
    "gradient descent ascent with every step size tried; under extragradient, optimistic gradient "
    "and forward-reflected-backward steps it falls at the last iterate, with a log-log slope from "
    "step 200 to 2000 of at least -0.55, and with an anchor with one of at most -0.85, on each of "
    "5 seeds."
)
SETTINGS = (
    "Each method's step size is the one of 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1 and 1.2 over L with "
    "the least norm of the map after 2000 steps, in the median over seeds 0 to 4; none is an end "
    "of the grid, but for gradient descent ascent, of which all are judged. Seeds 10 to 14 are "
    "reported."
)
GRID = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
STEPS, SIZE = 2000, 100
METHODS = {
    "descent ascent": jxt.games.GradientDescentAscent,
    "extragradient": jxt.games.Extragradient,
    "optimistic": jxt.games.OptimisticGradient,
    "reflected": jxt.games.ForwardReflectedBackward,
    "anchored": jxt.games.AnchoredExtragradient,
}


def run() -> Outcome:
    with jax.enable_x64(True):
        tuning, reported = _games(range(5)), _games([*range(10, 15), None])
        curves = {name: (_curves(m, tuning), _curves(m, reported)) for name, m in METHODS.items()}
    table, holds, chosen = [], True, {}
    best = {name: _best(tuned) for name, (tuned, _) in curves.items()}
    for i, seed in enumerate((*range(10, 15), "even")):
        row, good = {"seed": seed}, True
        for name, (_, found) in curves.items():
            # Of descent ascent, the shortest of its ways away, whatever the step size.
            if name == "descent ascent":
                growth = np.min(found[i, :, -1] / found[i, :, 0])
                row["descent ascent, growth"] = float(growth)
                good &= bool(growth > 1)
                continue
            curve = found[i, best[name]]
            slope = float(np.log10(curve[STEPS - 1] / curve[STEPS // 10 - 1]))
            row[f"{name}, slope"] = slope
            row[f"{name}, last"] = float(curve[-1])
            nearer = curve[-1] < curve[0]
            good &= bool(nearer and (slope <= -0.85 if name == "anchored" else slope >= -0.55))
            chosen[name] = GRID[best[name]]
        table.append(row)
        holds &= good or seed == "even"
    inside = all(0 < best[name] < len(GRID) - 1 for name in chosen)
    steps = ", ".join(f"{name} {t}" for name, t in chosen.items())
    note = (
        f"step sizes times L: {steps}. Growth is the least over step sizes, from the first step to "
        "the last; the norm after the last step is shown too. A step of extragradient, anchored or "
        "not, is two evaluations of the map, of the others one. The last row, no part of the "
        "verdict, is the game with evenly spaced exponents and nothing else drawn"
    )
    why = (
        "ours: the thresholds are those of evenly spaced singular values, with which they hold; "
        "drawn ones scatter the slopes without an anchor around -1/2 by more than 0.05"
    )
    return Outcome(table, holds and inside, note, why)


def _games(seeds):
    """Matrices with norm 1, and the second player's equilibrium; the first's is zero. `None` is the
    one with evenly spaced exponents."""
    matrices, targets = [], []
    for seed in seeds:
        if seed is None:
            matrices.append(np.diag(np.logspace(-4, 0, SIZE)))
            targets.append(np.ones(SIZE))
            continue
        rng = np.random.default_rng(seed)
        s = 10.0 ** np.append(rng.uniform(-4, 0, SIZE - 1), 0.0)
        left, right = (np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0] for _ in range(2))
        matrices.append(left * s @ right)
        targets.append(right.T @ rng.choice([-1.0, 1.0], SIZE))
    return jnp.asarray(np.stack(matrices)), jnp.asarray(np.stack(targets))


def _curves(method, games):
    """The norm of the map at the value after each step: game, step size, step."""

    def one(K, y, t):
        problem = jxt.MinMax(lambda x, z: x @ K @ (z - y))
        start = jxt.PrimalDual(jnp.zeros(SIZE), jnp.zeros(SIZE))
        return jxt.solve(problem, method(t, tol=0.0, max_steps=STEPS), start, trace=True).trace

    over_steps = jax.vmap(one, in_axes=(None, None, 0))
    return np.asarray(jax.vmap(over_steps, in_axes=(0, 0, None))(*games, jnp.asarray(GRID)))


def _best(curves):
    last = np.median(curves[:, :, -1], axis=0)
    return int(np.nanargmin(np.where(np.isfinite(last), last, np.inf)))
