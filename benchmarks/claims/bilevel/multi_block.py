"""BSVRB beside RSVRB and plain stochastic steps on noisy quadratics, and on data to be cleaned."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.bilevel import BSVRB, RSVRB, AllRows, BlockwiseSGD, BSVRBHessian
from jaxopt_ext.stochastic.estimators import MSVR

CLAIM = (
    "On 50 noisy quadratic blocks, 5 of them a step, BSVRB's root mean square gradient over the "
    "last fifth is below that of plain stochastic steps at equal samples, both tuned, and 20 "
    "blocks a step at least halve it at the same rates; on breast cancer with 30 % of the labels "
    "flipped the learned weights tell clean samples from wrong ones with an AUC above 0.8 and "
    "lower the validation loss of equal weights, on each of 5 seeds."
)
SETTINGS = (
    "Quadratics: 5000 steps, batches of 4, lower rate 0.05; of 12 settings for either side the "
    "best on seeds 0 and 1 is taken: 4 step sizes times 3 weights (the tracker's is ten times the "
    "upper one, its correction that of the theory), or 12 step sizes of plain steps, which get 10 "
    "blocks a step, as they look at each sample once. RSVRB and BSVRB with Hessians are shown with "
    "the step size and weight of BSVRB. 5 and 20 blocks: step size 0.01, weights 0.03 and 0.003. "
    "Breast cancer: the defaults, with the step size tuned on seeds 0 and 1. Seeds 20 to 24 are "
    "reported."
)
BLOCKS, UPPER, LOWER, ROWS, NOISE, RIDGE = 50, 10, 5, 100, 0.5, 0.1
STEPS, LANES = 5000, 8
RATES, WEIGHTS = (0.0025, 0.005, 0.01, 0.02), (0.0003, 0.001, 0.003)
PLAIN_RATES = tuple(float(rate) for rate in np.geomspace(0.001, 0.02, 12))
TEMPERATURES, TRAIN, VALID, CLEANING = 20, 300, 150, 600
CLEANING_RATES = (100.0, 300.0, 1000.0, 3000.0, 10000.0)


def _instance(seed):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(BLOCKS, LOWER, LOWER)))[0]
    A = np.einsum("mij,j,mkj->mik", Q, np.linspace(1, 2, LOWER), Q)
    B = rng.normal(size=(BLOCKS, UPPER, LOWER)) / np.sqrt(UPPER)
    c, h = rng.normal(size=(BLOCKS, LOWER)), rng.normal(size=UPPER)
    inverse = np.linalg.inv(A)
    mean = np.mean(B @ inverse @ inverse @ np.swapaxes(B, 1, 2), axis=0) + RIDGE * np.eye(UPPER)
    right = np.mean(np.einsum("mij,mj->mi", B @ inverse, c), axis=0) + RIDGE * h
    noise = [NOISE * rng.normal(size=(ROWS, n)) for n in (UPPER + LOWER, 2 * LOWER)]
    noise = [rows - rows.mean(axis=0) for rows in noise]
    return tuple(np.asarray(a, np.float32) for a in (A, B, c, h, *noise, mean, right))


def _late(solver, instance, key):
    """Root mean square norm of the gradient of the whole over the last fifth of the steps."""
    A, B, c, h, above, below, mean, right = instance

    def upper(x, y, noise, i):
        size = 0.5 * jnp.sum((y - c[i]) ** 2) + 0.5 * RIDGE * jnp.sum((x - h) ** 2)
        return size + x @ noise[:UPPER] + y @ noise[UPPER:]

    def lower(x, y, noise, i):
        bent = 0.5 * jnp.sum(noise[LOWER:] * y**2)
        return 0.5 * y @ A[i] @ y - x @ B[i] @ y + y @ noise[:LOWER] + bent

    problem = jxt.MultiBlockBilevel(upper, lower, above, below, BLOCKS)
    start = jnp.zeros(UPPER, jnp.float32), jnp.zeros((BLOCKS, LOWER), jnp.float32)
    follow = lambda problem, x, state: jnp.sum((mean @ x.upper - right) ** 2)
    squares = jxt.solve(problem, solver, start, key=key, trace=follow).trace
    late = jnp.sqrt(jnp.mean(squares[-(STEPS // 5) :]))
    return jnp.where(jnp.isfinite(late), late, jnp.inf)


def _tracker(weight, blocks):
    left = 1 - 10 * weight
    return MSVR(10 * weight, (BLOCKS - blocks) / (blocks * left) + left)


def _tracked(kind, blocks=5, **options):
    return lambda rate, weight: kind(
        rate,
        0.05,
        tracker=_tracker(weight, blocks),
        upper_weight=weight,
        blocks=blocks,
        batch=4,
        moves=AllRows(),
        max_steps=STEPS,
        **options,
    )


METHODS = {
    "BSVRB": _tracked(BSVRB),
    "BSVRB, Hessians": _tracked(BSVRBHessian, modulus=0.5),
    "RSVRB": lambda rate, weight: RSVRB(
        rate, 0.05, weight=weight, blocks=5, batch=4, max_steps=STEPS
    ),
    "plain": lambda rate, weight: BlockwiseSGD(rate, 0.05, blocks=10, batch=4, max_steps=STEPS),
}
GRID = [(rate, weight) for rate in RATES for weight in WEIGHTS]
GRIDS = {"BSVRB": GRID, "plain": [(rate, 1.0) for rate in PLAIN_RATES]}


def _runner(make):
    """The errors of any number of pairs of setting and seed, a few of them at once."""

    @jax.jit
    @jax.vmap
    def some(setting, instance, key):
        return _late(make(*setting), instance, key)

    def run(pairs):
        found = []
        for k in range(0, len(pairs), LANES):
            part = pairs[k : k + LANES]
            part = part + part[-1:] * (LANES - len(part))
            settings, seeds = zip(*part, strict=True)
            stacked = [jnp.asarray(a, jnp.float32) for a in zip(*settings, strict=True)]
            instances = map(np.stack, zip(*map(_instance, seeds), strict=True))
            keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
            found.extend(np.asarray(some(tuple(stacked), tuple(instances), keys)))
        return np.asarray(found[: len(pairs)])

    return run


def _inside(name, setting):
    ends = [(min(v), max(v)) for v in zip(*GRIDS[name], strict=True)]
    return all(low == high or low < v < high for v, (low, high) in zip(setting, ends, strict=True))


def _quadratics(seeds):
    errors, chosen, inside = {}, {}, True
    for name, make in METHODS.items():
        run, grid = _runner(make), GRIDS.get(name)
        if grid is not None:
            scores = run([(setting, seed) for setting in grid for seed in (0, 1)]).reshape(-1, 2)
            chosen[name] = grid[int(np.argmin(np.mean(scores**2, axis=1)))]
            inside &= _inside(name, chosen[name])
        setting = chosen.get(name, chosen["BSVRB"])
        errors[name] = run([(setting, seed) for seed in seeds])
        if name == "BSVRB":
            errors["5 blocks"] = run([((0.01, 0.003), seed) for seed in seeds])
    more = _runner(_tracked(BSVRB, 20))
    errors["20 blocks"] = more([((0.01, 0.003), seed) for seed in seeds])
    return errors, chosen, inside


def _cancer(seed):
    rng = np.random.default_rng(seed)
    bunch: Any = load_breast_cancer()
    order = rng.permutation(len(bunch.data))
    X, y = bunch.data[order], 2.0 * bunch.target[order] - 1
    X = (X - X[:TRAIN].mean(axis=0)) / X[:TRAIN].std(axis=0)
    X = np.concatenate([X, np.ones((len(X), 1))], axis=1).astype(np.float32)
    wrong = rng.random(TRAIN) < 0.3
    noisy = np.where(wrong, -y[:TRAIN], y[:TRAIN])
    cut = TRAIN + VALID
    parts = X[:TRAIN], noisy, X[TRAIN:cut], y[TRAIN:cut], X[cut:], y[cut:]
    return tuple(np.asarray(a, np.float32) for a in parts), wrong


def _cleaned(data, rate, key):
    """Weights; losses of both kinds of weights on the validation set and on the rest."""
    X, noisy, Xv, yv, Xt, yt = data
    scales = jnp.geomspace(1.0, 5.0, TEMPERATURES).astype(jnp.float32)
    loss = lambda w, x, y, i: jax.nn.softplus(-y * (x @ w) / scales[i])

    def upper(p, w, sample, i):
        x, y = sample
        return loss(w, x, y, i)

    def lower(p, w, sample, i):
        x, y, j = sample
        return jax.nn.sigmoid(p[j]) * loss(w, x, y, i) + 0.005 * jnp.sum(w**2)

    rows = jnp.arange(TRAIN, dtype=jnp.int32)
    problem = jxt.MultiBlockBilevel(upper, lower, (Xv, yv), (X, noisy, rows), TEMPERATURES)
    p = jnp.zeros(TRAIN, jnp.float32)
    w = jnp.zeros((TEMPERATURES, X.shape[1]), jnp.float32)
    ball = jxt.prox.L2Ball(100.0)
    method = BSVRB(rate, multiplier_set=ball, moves=AllRows(), max_steps=CLEANING)
    weights = jxt.solve(problem, method, (p, w), key=key).value.upper

    def losses(p):
        """Of the lower solutions that belong to the weights."""

        def one(i):
            fit = lambda w: (
                jnp.mean(jax.nn.sigmoid(p) * loss(w, X, noisy, i)) + 0.005 * jnp.sum(w**2)
            )
            w_i = jxt.bilevel.descend(fit, w[0], 0.5, 1000)
            return jnp.mean(loss(w_i, Xv, yv, i)), jnp.mean(loss(w_i, Xt, yt, i))

        valid, test = jax.vmap(one)(jnp.arange(TEMPERATURES))
        return jnp.mean(valid), jnp.mean(test)

    return weights, losses(weights), losses(p)


def _cleaning(seeds):
    run = jax.jit(lambda data, rate, key: _cleaned(data, rate, key))
    score = lambda seed, rate: float(run(_cancer(seed)[0], jnp.float32(rate), _key(seed))[1][0])
    tuned = [np.mean([score(seed, rate) for seed in (0, 1)]) for rate in CLEANING_RATES]
    best = int(np.nanargmin(tuned))
    rows = []
    for seed in seeds:
        data, wrong = _cancer(seed)
        weights, learned, equal = run(data, jnp.float32(CLEANING_RATES[best]), _key(seed))
        rows.append(
            {
                "AUC of the weights": float(roc_auc_score(~wrong, np.asarray(weights))),
                "validation loss": float(learned[0]),
                "validation loss, equal": float(equal[0]),
                "test loss": float(learned[1]),
                "test loss, equal": float(equal[1]),
            }
        )
    return rows, CLEANING_RATES[best], best not in (0, len(CLEANING_RATES) - 1)


def _key(seed):
    return jax.random.key(seed)


def run() -> Outcome:
    seeds = list(range(20, 25))
    errors, chosen, inside = _quadratics(seeds)
    cleaned, rate, within = _cleaning(seeds)
    table, holds = [], inside and within
    for k, seed in enumerate(seeds):
        row: dict = {"seed": seed} | {name: float(found[k]) for name, found in errors.items()}
        row |= cleaned[k]
        table.append(row)
        holds &= row["BSVRB"] < row["plain"]
        holds &= row["20 blocks"] <= 0.5 * row["5 blocks"]
        holds &= row["AUC of the weights"] > 0.8
        holds &= row["validation loss"] < row["validation loss, equal"]
    settings = "; ".join(f"{n} {' '.join(f'{v:.2g}' for v in s)}" for n, s in chosen.items())
    note = (
        f"root mean square gradients; step sizes and weights chosen: {settings}; of the weights of "
        f"samples {rate:.0f}; an end of a grid was {'not ' if inside and within else ''}hit"
    )
    return Outcome(
        table,
        bool(holds),
        note,
        why="scale: of 5000 steps at equal samples the tuned plain ones end lower on 4 of 5 seeds; "
        "20 blocks gain 1.8 to 2.6 where 2 was asked, which is what theory gives and no more; the "
        "part on breast cancer holds",
    )
