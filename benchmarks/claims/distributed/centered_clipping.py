"""Centered clipping with worker momentum against attacks, and against rare events."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims import Outcome
from benchmarks.claims.distributed import _workers as workers
from jaxopt_ext import distributed
from jaxopt_ext.distributed import attacks, robust

CLAIM = (
    "On digits with 25 workers, momentum 0.99 and one threshold, centered clipping ends within 2 "
    "points of the mean without bad workers under sign flips, ALIE, mimicry and flipped labels of "
    "5 bad workers and under inner products of 11, where the coordinate-wise median does not; and "
    "on rare events without any bad worker it comes within 0.05 of the optimum, where without "
    "momentum median, Krum and geometric median stay more than 0.9 away from it."
)
SETTINGS = (
    "Softmax regression, 800 rounds of batches of 32. Steps 0.125 * 2^k and thresholds 0.03 to 0.5 "
    "in factors of two, five of each, on seeds 0 and 1: of each rule the best mean over the "
    "attacks, in no case at an end: step 0.5 and threshold 0.12 for clipping, 0.5 for the mean, "
    "0.25 for the median. Seeds 10 to 12 are reported. Rare events: step, probability and c = 1.5 "
    "of the threshold from theory, nothing chosen; seeds 10 to 13."
)

WORKERS, ROUNDS, BATCH, BETA = 25, 800, 32, 0.99
SEEDS = range(10, 13)
RULES = {
    "mean": (robust.Mean(), 0.5),
    "median": (robust.CoordinateMedian(), 0.25),
    "centered clipping": (robust.CenteredClip(0.12), 0.5),
}
ATTACKS = ("sign flips", "ALIE", "mimicry", "labels flipped", "none")
INNER = "inner products, 11 bad"


def run() -> Outcome:
    table = []
    for name, (rule, step) in RULES.items():
        five = lambda f: (attacks.SignFlip(f), attacks.ALIE(f), attacks.Mimic(f))
        found = _accuracies(rule, step, 5, five, len(ATTACKS))
        inner = _accuracies(rule, step, 11, lambda f: (attacks.InnerProduct(f, 0.1),), 1)
        table.append({"rule": name, **dict(zip(ATTACKS, found, strict=True)), INNER: inner[0]})
    rare = _rare_events()
    for row in table:
        row["rare events"] = rare.pop(row["rule"])
    table += [{"rule": name, "rare events": value} for name, value in rare.items()]
    by_name = {row["rule"]: row for row in table}
    attacked = [*ATTACKS[:-1], INNER]
    wanted = by_name["mean"]["none"] - 0.02
    worst = {name: min(by_name[name][a] for a in attacked) for name in RULES}
    stuck = [by_name[name]["rare events"] for name in ("median", "Krum", "geometric median")]
    holds = (
        worst["centered clipping"] >= wanted
        and worst["median"] < wanted
        and abs(by_name["centered clipping"]["rare events"] - 1) < 0.05
        and all(abs(value - 1) > 0.9 for value in stuck)
    )
    note = (
        f"Test accuracies, mean of {len(SEEDS)} seeds. Rare events: where SGD on (x - xi)^2/2, xi "
        "= 10 once in ten times and else 0, lives on average; the optimum is 1; clipping and the "
        f"mean with momentum {BETA}, the others without."
    )
    low = 100 * (wanted + 0.02 - worst["centered clipping"])
    why = (
        f"scale: at 360 test images and 3 seeds clipping loses {low:.1f} points at worst"
        if worst["centered clipping"] < wanted
        else "scale: the median loses no more than 2 points at this size"
    )
    return Outcome(table, bool(holds), note, why)


def _accuracies(rule, step, f, some, count):
    """Mean accuracy over the seeds for each of the attacks; behind them flipped labels, none."""
    network, bad = distributed.Network.clients(WORKERS), np.arange(WORKERS) < f

    @jax.jit
    @jax.vmap
    def one(which, part, key):
        attack = workers.OneOf(some(f), which)
        algorithm = distributed.RobustSGD(
            workers.loss, step, rule, BETA, attack, np.flatnonzero(bad)
        )
        flipped = jnp.asarray(bad) & (which == len(attack.attacks))
        params, _ = workers.train(algorithm, network, part, key, ROUNDS, BATCH, flipped)
        return workers.accuracy(jax.tree.map(lambda a: a[-1], params))

    cases = [(which, seed) for which in range(count) for seed in SEEDS]
    which, seeds = map(np.array, zip(*cases, strict=True))
    parts = jnp.asarray(np.stack([workers.parts(WORKERS, seed) for seed in seeds]))
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    found = one(jnp.asarray(which), parts, keys)
    return np.asarray(found).reshape(count, -1).mean(axis=1).tolist()


def _rare_events(n=15, p=0.1, rounds=6000):
    """Mean of the last half of x over seeds, by rule."""
    network = distributed.Network.clients(n)
    radius = distributed.clipping_radius(np.sqrt((1 - p) / p), BETA)
    rules = {
        "mean": (robust.Mean(), BETA),
        "median": (robust.CoordinateMedian(), 0.0),
        "centered clipping": (robust.CenteredClip(radius), BETA),
        "Krum": (robust.Krum(0), 0.0),
        "geometric median": (robust.GeometricMedian(), 0.0),
    }
    draw = lambda key: jnp.where(jax.random.bernoulli(key, p, (n,)), 1 / p, 0.0)

    def average(algorithm, key):
        state = algorithm.init(jnp.zeros(n), draw(key), network, key)

        def one(state, r):
            here = jax.random.fold_in(key, r)
            state = algorithm.round(state, draw(here), network, here)
            return state, state.params[0]

        return jnp.mean(jax.lax.scan(one, state, jnp.arange(rounds))[1][rounds // 2 :])

    found = {}
    keys = jax.vmap(jax.random.key)(jnp.arange(10, 14))
    for name, (rule, beta) in rules.items():
        algorithm = distributed.RobustSGD(_square, 0.01, rule, beta)
        found[name] = float(jnp.mean(jax.jit(jax.vmap(lambda k, a=algorithm: average(a, k)))(keys)))
    return found


def _square(x, xi):
    return 0.5 * (x - xi) ** 2
