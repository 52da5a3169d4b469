"""EControl against other ways to feed back what compression drops."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer

from benchmarks.claims import Outcome
from jaxopt_ext import distributed as dd
from jaxopt_ext.core import tree
from jaxopt_ext.distributed import compression as cc

CLAIM = (
    "Where nodes differ, EControl converges as EF21 does, to squared errors below 1e-20 on "
    "quadratics and to gradients below 1e-6 on logistic regression split by label, where EF14 with "
    "as many bits does not; and under noise of the gradients its error is at most 2.2 times that "
    "of SGD and falls as 1/n within 0.15 in the exponent, where EF21's is at least 4 times that of "
    "SGD."
)
SETTINGS = (
    "Exact gradients: the step size of least error on one problem, of one grid, 0.0012 * 3^k, "
    "k = 0..7, for quadratics, 0.1 * 3^k, k = 0..6, for logistic regression, reported on two "
    "others; EF14 has the best step size on each reported problem itself, which favours it. "
    "Logistic regression has one data set, of which the seeds draw the part and its order. Noise: "
    "step size 0.02 for all, as nothing was chosen. eta is delta. Seeds 1000 and 1001, in one run; "
    "earlier runs reported 10 and 11."
)

TUNING, REPORTED = (0,), (1000, 1001)
NODES, ROUNDS = 10, 3000


def _econtrol(loss, rate, compressor):
    return dd.EControl(loss, rate, compressor)


def _ef21(loss, rate, compressor):
    return dd.EF21SGD(loss, rate, compressor)


def _ef21_momentum(loss, rate, compressor):
    return dd.EF21SGDM(loss, rate, compressor)


def _ef14(loss, rate, compressor):
    return dd.EF14SGD(loss, rate, compressor)


def _sgd(loss, rate, compressor):
    return dd.CompressedSGD(loss, rate, cc.Identity())


def run() -> Outcome:
    with jax.enable_x64(True):
        rates = 0.0012 * 3.0 ** np.arange(8), 0.1 * 3.0 ** np.arange(7)
        table, inside = _exact(
            "quadratics", rates[0], _quadratic, _squared_error, _problems, 1e-20, cc.TopK(1)
        )
        more, also = _exact(
            "logistic", rates[1], _logistic, _gradient_norm, _splits, 1e-6, cc.TopK(3)
        )
        table, inside = table + more, inside and also
        noisy, slope = _noisy()
    good = all(row["worst"] < row["wanted"] for row in table if row["method"] != "EF14")
    bad = all(row["best"] > row["wanted"] for row in table if row["method"] == "EF14")
    ratio = {row["method"]: row for row in noisy}
    fair = max(ratio["EControl"][f"n={n}"] for n in (2, 8, 32)) <= 2.2
    unfair = min(ratio["EF21"][f"n={n}"] for n in (2, 8, 32)) >= 4
    note = (
        "Squared distance to the optimum, norm of the mean gradient; under noise the mean squared "
        f"error over that of SGD. EControl's falls as n^{slope:.2f}."
    )
    if not inside:
        note += " A best step size lies at an end of the grid."
    holds = good and bad and fair and unfair and abs(slope + 1) <= 0.15
    return Outcome(table + noisy, holds, note)


def _exact(name, rates, loss, measure, problems, wanted, compressor):
    """A table, and whether all best step sizes lie inside of the grid."""
    tuning, reported = problems(TUNING), problems(REPORTED)
    table, inside = [], True
    for label, method in (("EControl", _econtrol), ("EF21", _ef21), ("EF14", _ef14)):

        def final(rate, problem, method=method):
            last = _last(method(loss, rate, compressor), problem[0], ROUNDS)
            return measure(last, problem)

        run = jax.jit(jax.vmap(jax.vmap(final, (None, 0)), (0, None)))
        both = jax.tree.map(lambda *a: jnp.concatenate(a), tuning, reported)
        found = np.nan_to_num(np.asarray(run(jnp.asarray(rates), both)), nan=np.inf)
        chosen = int(np.argmin(found[:, : len(TUNING)].max(axis=1)))
        errors = found[:, len(TUNING) :]
        best = errors.argmin(axis=0) if label == "EF14" else np.full(len(REPORTED), chosen)
        inside &= bool(np.all((best > 0) & (best < len(rates) - 1)))
        errors = np.take_along_axis(errors, best[None], axis=0)[0]
        table.append(
            {
                "problem": name,
                "method": label,
                "rate": " ".join(f"{rate:.3g}" for rate in sorted({*rates[best].tolist()})),
                "best": float(errors.min()),
                "worst": float(errors.max()),
                "wanted": wanted,
            }
        )
    return table, inside


def _last(algorithm, batch, rounds):
    """The point after so many rounds from zero."""
    nodes, d = batch[1].shape[0], batch[0].shape[-1]
    network, key = dd.Network.clients(nodes), jax.random.key(0)
    state = algorithm.init(jnp.zeros((nodes, d)), batch, network, key)
    one = lambda r, state: algorithm.round(state, batch, network, jax.random.fold_in(key, r))
    return jax.lax.fori_loop(0, rounds, one, state).params[0]


def _quadratic(x, batch):
    curvature, slope = batch
    return 0.5 * jnp.sum(curvature * x**2) - jnp.vdot(slope, x)


def _problems(seeds, nodes=NODES, d=50):
    """Batches and optima, stacked over the seeds."""
    draws = [np.random.default_rng(seed) for seed in seeds]
    curvature = jnp.asarray([rng.uniform(0.1, 1, (nodes, d)) for rng in draws])
    slope = jnp.asarray([rng.normal(size=(nodes, d)) for rng in draws])
    return (curvature, slope), slope.sum(axis=1) / curvature.sum(axis=1)


def _squared_error(x, problem):
    return jnp.sum((x - problem[1]) ** 2)


def _splits(seeds):
    """Breast cancers by label: each node has but one kind, save perhaps one node."""
    data, labels = load_breast_cancer(return_X_y=True)
    data = (data - data.mean(axis=0)) / data.std(axis=0)
    data = np.concatenate([data, np.ones((len(data), 1))], axis=1) / np.sqrt(31)
    rows, targets = [], []
    for seed in seeds:
        picked = np.random.default_rng(seed).permutation(len(data))[:560]
        picked = picked[np.argsort(labels[picked], kind="stable")].reshape(NODES, -1)
        rows.append(data[picked])
        targets.append(2.0 * labels[picked] - 1)
    return (jnp.asarray(rows), jnp.asarray(targets)), None


def _logistic(x, batch):
    rows, targets = batch
    return jnp.mean(jax.nn.softplus(-targets * (rows @ x))) + 0.005 * jnp.sum(x**2)


def _gradient_norm(x, problem):
    mean = lambda x: jnp.mean(jax.vmap(lambda batch: _logistic(x, batch))(problem[0]))
    return tree.norm(jax.grad(mean)(x))


def _noisy(rate=0.02, d=20, warm_up=800, rounds=2400):
    """Mean squared errors over those of SGD, and the exponent of n in EControl's own."""
    methods = {
        "SGD": _sgd,
        "EControl": _econtrol,
        "EF21": _ef21,
        "EF21 with momentum": _ef21_momentum,
    }
    floors = {name: [] for name in methods}
    for nodes in (2, 8, 32):
        network, problems = dd.Network.clients(nodes), _problems(REPORTED, nodes, d)

        def floor(problem, key, method, network=network, nodes=nodes):
            algorithm = method(_quadratic, rate, cc.TopK(2))
            (curvature, slope), optimum = problem

            def batch(r):
                noise = jax.random.normal(jax.random.fold_in(key, r), slope.shape)
                return curvature, slope + noise

            def one(r, carry):
                state, total = carry
                state = algorithm.round(state, batch(r), network, jax.random.fold_in(key, r))
                error = jnp.sum((state.params[0] - optimum) ** 2)
                return state, total + jnp.where(r >= warm_up, error, 0)

            start = jnp.broadcast_to(optimum, (nodes, d))
            state = algorithm.init(start, (curvature, slope), network, key)
            _, total = jax.lax.fori_loop(0, rounds, one, (state, 0.0))
            return total / (rounds - warm_up)

        @jax.jit
        def all_of(problems, keys, floor=floor):
            return {
                name: jnp.mean(jax.vmap(lambda p, k, m=m: floor(p, k, m))(problems, keys))
                for name, m in methods.items()
            }

        found = all_of(problems, jax.random.split(jax.random.key(1020), len(REPORTED)))
        for name, value in found.items():
            floors[name].append(float(value))
    table = [
        {"problem": "noise", "method": name}
        | {f"n={n}": v / s for n, v, s in zip((2, 8, 32), floors[name], floors["SGD"], strict=True)}
        for name in methods
        if name != "SGD"
    ]
    slope = np.polyfit(np.log([2, 8, 32]), np.log(floors["EControl"]), 1)[0]
    return table, float(slope)
