"""sl-BAMM where the lower level is merely convex, and on data with wrong labels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import jaxopt_ext as jxt
from benchmarks.claims import Outcome

CLAIM = (
    "With a merely convex lower level sl-BAMM ends within 1e-4 of the solution, relatively, where "
    "the fully single-loop method, unrolling and implicit differentiation stay above 0.45; on "
    "digits with half of the labels redrawn its test accuracy is at least that of unrolling less "
    "0.01 and that of equal weights plus 0.15, on each of 5 seeds."
)
SETTINGS = (
    "Convex: 6000 steps, the paper's schedule; the upper rates of the others are the best of one "
    "grid for each seed. Digits: 1000 steps of BAMM beside 50 of unrolling 20, as many lower "
    "gradients and products; the upper rate of either is tuned on seeds 0 and 1 over one grid; "
    "seeds 10 to 14 are reported."
)
N, STEPS = 10, 6000
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
GRID = tuple(10.0**k for k in (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4))
TRAIN, VALID, CLASSES = 500, 300, 10


def _convex(seed):
    target, start = jax.random.normal(jax.random.key(seed), (2, N), jnp.float32)
    start = 0.01 * start
    upper = lambda x, y: 0.5 * (jnp.sum((x - y[1]) ** 2) + jnp.sum((y[0] - target) ** 2))
    problem = jxt.Bilevel(upper, lambda x, y: 0.5 * jnp.sum(y[0] ** 2) - x @ y[0])
    return (
        problem,
        (start, (start, start)),
        lambda x: jnp.linalg.norm(x - target) / jnp.sqrt(jnp.sum(target**2)),
    )


def _bamm(seed, averaging, x_step=None):
    problem, start, error = _convex(seed)
    method = jxt.bilevel.BAMM(averaging=averaging, x_step=x_step, tol=0.0, max_steps=STEPS)
    return error(jxt.solve(problem, method, start).value.upper)


def _nested(seed, rate, find):
    """Gradient steps with a hypergradient and a warm start."""
    problem, (x, y), error = _convex(seed)

    def step(carry, _):
        x, y = carry
        gradient, y = find(problem, x, y)
        return (x - rate * gradient, y), None

    return error(jax.lax.scan(step, (x, y), None, 400)[0][0])


def _unrolled(problem, x, y):
    found = jxt.bilevel.unrolled(problem, x, y, num_steps=15, step_size=0.5)
    return found.gradient, found.lower


def _implicit(problem, x, y):
    y = jxt.bilevel.descend(lambda y: problem.lower(x, y), y, 0.5, 15)
    return jxt.bilevel.hypergradient(problem, x, y).gradient, y


def _aggregated(problem, x, y):
    return _unrolled(jxt.bilevel.averaged(problem, 0.1), x, y)


def _convex_table(seeds):
    over = lambda fun: jax.jit(jax.vmap(fun))
    zero = jxt.bilevel.ConstantAveraging(0.0)
    best = lambda fun: over(
        lambda seed: jnp.nanmin(jax.vmap(lambda rate: fun(seed, rate))(jnp.asarray(RATES)))
    )
    columns = {
        "BAMM": over(lambda seed: _bamm(seed, jxt.bilevel.PowerDecay())),
        "weight zero": best(lambda seed, rate: _bamm(seed, zero, rate)),
        "unrolled": best(lambda seed, rate: _nested(seed, rate, _unrolled)),
        "implicit": best(lambda seed, rate: _nested(seed, rate, _implicit)),
        "unrolled, averaged": best(lambda seed, rate: _nested(seed, rate, _aggregated)),
    }
    return {name: np.asarray(fun(seeds)) for name, fun in columns.items()}


def _digits(seed):
    rng = np.random.default_rng(seed)
    bunch: Any = load_digits()
    X = np.concatenate([bunch.data / 16, np.ones((len(bunch.data), 1))], axis=1)
    order = rng.permutation(len(X))
    X, y = X[order].astype(np.float32), bunch.target[order].astype(np.int32)
    noisy = y[:TRAIN].copy()
    chosen = rng.random(TRAIN) < 0.5
    noisy[chosen] = rng.integers(0, CLASSES, chosen.sum())
    cut = TRAIN + VALID
    return X[:TRAIN], noisy, X[TRAIN:cut], y[TRAIN:cut], X[cut:], y[cut:]


def _cleaning(data):
    X, noisy, Xv, yv, Xt, yt = data
    losses = lambda w, X, y: (
        -jnp.take_along_axis(jax.nn.log_softmax(X @ w), y[:, None], axis=1)[:, 0]
    )
    upper = lambda x, w: jnp.mean(losses(w, Xv, yv))
    lower = lambda x, w: jnp.mean(jax.nn.sigmoid(x) * losses(w, X, noisy))
    start = jnp.zeros(TRAIN, jnp.float32), jnp.zeros((X.shape[1], CLASSES), jnp.float32)
    accuracy = lambda w: jnp.mean(jnp.argmax(Xt @ w, axis=1) == yt)
    return jxt.Bilevel(upper, lower), start, accuracy


def _clean_bamm(data, rate):
    problem, start, accuracy = _cleaning(data)
    averaging = jxt.bilevel.PowerDecay(0.1)
    method = jxt.bilevel.BAMM(1.0, averaging, x_step=rate, tol=0.0, max_steps=1000)
    return accuracy(jxt.solve(problem, method, start).value.lower)


def _clean_unrolled(data, rate):
    """The lower variable starts afresh each time, as unrolling asks for."""
    problem, (x, w), accuracy = _cleaning(data)

    def step(x, _):
        found = jxt.bilevel.unrolled(problem, x, w, num_steps=20, step_size=1.0)
        return x - rate * found.gradient, None

    x, _ = jax.lax.scan(step, x, None, 50)
    fit = lambda w: problem.lower(x, w)
    return accuracy(jxt.bilevel.descend(fit, w, 1.0, 1000))


def _equal(data):
    problem, (x, w), accuracy = _cleaning(data)
    return accuracy(jxt.bilevel.descend(lambda w: problem.lower(x, w), w, 1.0, 1000))


def _stacked(seeds):
    return jax.tree.map(lambda *a: jnp.stack(a), *map(_digits, seeds))


def _tuned(fun):
    """The best rate on seeds 0 and 1, and whether it is at an end of the grid."""
    grid = jnp.asarray(GRID, jnp.float32)
    one = lambda rate: jnp.mean(jax.vmap(lambda data: fun(data, rate))(_stacked((0, 1))))
    best = int(np.nanargmax(jax.jit(jax.vmap(one))(grid)))
    return GRID[best], best in (0, len(GRID) - 1)


def run() -> Outcome:
    seeds = np.arange(10, 15)
    errors = _convex_table(seeds)
    data, accuracies, rates, ends = _stacked(seeds), {}, {}, []
    for name, fun in (("BAMM", _clean_bamm), ("unrolled", _clean_unrolled)):
        rates[name], end = _tuned(fun)
        ends.append(end)
        accuracies[name] = jax.jit(jax.vmap(lambda d, f=fun, r=rates[name]: f(d, r)))(data)
    accuracies["equal weights"] = jax.jit(jax.vmap(_equal))(data)
    table, holds = [], not any(ends)
    for i, seed in enumerate(seeds):
        row: dict = {"seed": int(seed)} | {
            f"error, {name}": float(v[i]) for name, v in errors.items()
        }
        found = {name: float(v[i]) for name, v in accuracies.items()}
        table.append(row | {f"accuracy, {name}": value for name, value in found.items()})
        others = min(row[f"error, {n}"] for n in ("weight zero", "unrolled", "implicit"))
        holds &= row["error, BAMM"] < 1e-4 and others > 0.45
        holds &= found["BAMM"] >= found["unrolled"] - 0.01
        holds &= found["BAMM"] >= found["equal weights"] + 0.15
    note = (
        f"upper rates on digits: BAMM {rates['BAMM']:.3g}, unrolled {rates['unrolled']:.3g}; an "
        f"end of the grid was {'' if any(ends) else 'not '}hit; unrolling the averaged lower "
        "level, weight 0.1, solves the convex problem too"
    )
    gaps = [row["accuracy, BAMM"] - row["accuracy, equal weights"] for row in table]
    why = (
        f"scale: all but one part hold; with {TRAIN} samples equal weights lose less than the "
        f"clean-up was to win back, {min(gaps):.3f} to {max(gaps):.3f} where 0.15 was asked"
    )
    return Outcome(table, bool(holds), note, why)
