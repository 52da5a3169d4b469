"""MoNNA among bad nodes against decentralized SGD without them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims import Outcome
from benchmarks.claims.distributed import _workers as workers
from jaxopt_ext import distributed
from jaxopt_ext.distributed import attacks, robust

CLAIM = (
    "On digits with 16 nodes whose classes differ, 3 of them bad, MoNNA ends within 2 points of "
    "decentralized SGD without bad nodes under sign flips, flipped labels, and ALIE as strong as a "
    "line search makes it, which takes more than 50 points from the mean in its place; and with f "
    "= 1, 2, 3 bad nodes that flip signs its good nodes need at most 1 + 4f/n times as many "
    "gradients to an accuracy of 0.9, mean of 3 seeds."
)
SETTINGS = (
    "Softmax regression, 300 rounds of batches of 25, momentum 0.99, steps of 1/(1 + t/50) in "
    "stairs as in the paper. First steps 0.75 * 2^k, k = 0 to 7, on seeds 0 and 1: decentralized "
    "SGD without bad nodes is best and flat from 12 to 96, and all take 48; under ALIE the mean "
    "ends below 0.07 at each of the first six. For batches of one 3/16 * 4^k, k = 0 to 3: 12 with "
    "momentum, an end, and 3 without. Seeds 10 to 12 are reported."
)

NODES, ROUNDS, BATCH, BETA, CONCENTRATION = 16, 300, 25, 0.99, 5.0
SEEDS, GOAL = range(10, 13), 0.9
STEPS = {(BATCH, BETA): 48.0, (1, BETA): 12.0, (1, 0.0): 3.0}


def run() -> Outcome:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nothing is proven")
        return _run()


def _run():
    mean, table = robust.Mean(), []
    free = _history(mean, 0, "none")
    slow = _reached(free)
    table.append({"method": "D-SGD, none bad", "none": _end(free), "rounds to 0.9": slow})
    rows = {name: {"method": name} for name in ("MoNNA, f = 3", "mean, f = 3")}
    for kind in ("sign flips", "labels flipped", "ALIE, line search"):
        for name, rule in zip(rows, (None, mean), strict=True):
            history = _history(rule, 3, kind)
            rows[name][kind] = _end(history)
            if name == "MoNNA, f = 3" and kind == "sign flips":
                rows[name] |= _overhead(history, slow, 3)
    table += rows.values()
    for f in (1, 2):
        history = _history(None, f, "sign flips")
        overhead = _overhead(history, slow, f)
        table.append({"method": f"MoNNA, f = {f}", "sign flips": _end(history), **overhead})
    for beta in (BETA, 0.0):
        end = _end(_history(None, 3, "ALIE, line search", beta, 1, 200))
        name = f"MoNNA, f = 3, momentum {beta:g}"
        table.append({"method": f"{name}, batches of one", "ALIE, line search": end})
    good, bad = rows["MoNNA, f = 3"], rows["mean, f = 3"]
    worst = min(good[k] for k in ("sign flips", "labels flipped", "ALIE, line search"))
    ratios = [(row["ratio"], row["allowed"]) for row in table if "ratio" in row]
    close = worst >= table[0]["none"] - 0.02
    fast = all(ratio <= allowed for ratio, allowed in ratios)
    lost = table[0]["none"] - bad["ALIE, line search"]
    note = (
        "Test accuracies, mean over good nodes and seeds; rounds to 0.9 are those of the mean over "
        f"good nodes, each with {BATCH} gradients a node. The mean recovers from sign flips with "
        "ever larger steps (0.94 from 1536, on the seeds that choose): they shrink the parameters, "
        "and a linear classifier does not mind. The last two rows, of 200 rounds, show what "
        "momentum is for."
    )
    why = (
        f"scale: MoNNA loses {100 * (table[0]['none'] - worst):.1f} points at worst and takes "
        f"{max(r / a for r, a in ratios):.2f} of the gradients allowed, the mean loses {lost:.2f}"
    )
    return Outcome(table, bool(close and fast and lost > 0.5), note, why)


def _end(history):
    return float(history[:, -1].mean())


def _reached(history):
    """Rounds until the mean accuracy stays at the goal or above, mean over seeds."""
    return float(np.mean([np.max(np.flatnonzero(a < GOAL), initial=-1) + 2 for a in history]))


def _overhead(history, slow, f):
    rounds = _reached(history)
    return {"rounds to 0.9": rounds, "ratio": rounds / slow, "allowed": 1 + 4 * f / NODES}


def _wrong(params, batch):
    return workers.loss(params, (batch[0], workers.CLASSES - 1 - batch[1]))


def _history(rule, f, kind, beta=BETA, batch_size=BATCH, rounds=ROUNDS):
    """Accuracy after each round, mean over the good nodes, `(seeds, rounds)`."""
    network = distributed.Network.simulated(distributed.complete(NODES))
    good = NODES - f
    options = {"faulty": range(good, NODES)} if f else {}
    if kind == "sign flips":
        options["attack"] = attacks.SignFlip(f)
    if kind == "labels flipped":
        options["poisoned"] = _wrong
    if kind == "ALIE, line search":
        seen = rule
        if rule is None:
            seen = distributed.at_honest(robust.NNA(f), good, missing=f, key=jax.random.key(0))
        options["attack"] = attacks.LineSearch(f, attacks.against_deviation, seen)
    step = STEPS[batch_size, beta]
    algorithm = distributed.MoNNA(
        workers.loss,
        distributed.StaircaseStepSize(step),
        f,
        beta,
        missing=None if rule is None else 0,
        rule=rule,
        **options,
    )
    measure = lambda params: jnp.mean(
        jax.vmap(workers.accuracy)(jax.tree.map(lambda a: a[:good], params))
    )

    @jax.jit
    @jax.vmap
    def one(part, key):
        return workers.train(algorithm, network, part, key, rounds, batch_size, metric=measure)[1]

    parts = np.stack([workers.parts(NODES, seed, CONCENTRATION) for seed in SEEDS])
    keys = jax.vmap(jax.random.key)(jnp.asarray(SEEDS))
    return np.asarray(one(jnp.asarray(parts), keys))
