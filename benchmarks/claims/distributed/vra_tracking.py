"""Gradient tracking over noisy links, with and without variance-reduced aggregation."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims import Outcome
from benchmarks.claims.distributed.econtrol import _splits
from jaxopt_ext import distributed as dd
from jaxopt_ext.core import tree
from jaxopt_ext.distributed import compression as cc

CLAIM = (
    "Over links with unit noise the squared error of VRA-DGT falls as 1/k, within 0.2 in the "
    "exponent, and so does that of VRA-DSGT with noise on gradients too; VRA-DGT ends at a third "
    "of the error of tracking on two timescales or less, and plain tracking above ten times it. "
    "With dithered messages of 8 bits on logistic regression VRA-DGT's gradient halves from round "
    "500 to round 4500, where that of plain tracking does not."
)
SETTINGS = (
    "Each method at the step size of least error at the end on two problems, 0.5 * 4^k, k = 0..6, "
    "of alpha = a/(k + 5 a), or 0.000001 * 4^k, k = 0..6, where it is constant; five others are "
    "reported. For logistic regression one problem, 0.5 * 4^k, k = 0..4, or 0.0001 * 4^k, k = "
    "-3..4, and two. "
    "Other settings are defaults; two-timescale gains fall as (1 + k/50)^-0.6. Reported seeds are "
    "1000 to 1004, in one run; earlier runs reported 10 to 14."
)

NODES, D = 10, 5
TUNING, REPORTED = (0, 1), tuple(range(1000, 1005))
DECAYING = 0.5 * 4.0 ** np.arange(7)
CONSTANT = 1e-6 * 4.0 ** np.arange(7)
LOGISTIC = {
    "VRA-DGT": 0.5 * 4.0 ** np.arange(5),
    "plain tracking": 0.0001 * 4.0 ** np.arange(-3, 5),
}
NETWORK = dd.Network.simulated(dd.ring(NODES))
NOISE = dd.GaussianNoise(1.0)
BITS = dd.Quantized(cc.Grid(0.25, 8))


def _vra(loss, a, channel):
    return dd.VRADGT(loss, dd.Harmonic(a), channel)


def _vra_stochastic(loss, a, channel):
    return dd.VRADSGT(loss, dd.Harmonic(a), channel)


def _two_timescales(loss, a, channel):
    return dd.RobustTracking(loss, dd.Harmonic(a), channel)


def _no_aggregation(loss, a, channel):
    consensus, tracking = dd.Harmonic(4 * a, 5 * a), dd.PowerGain(exponent=0.0)
    return dd.RobustTracking(loss, dd.Harmonic(a), channel, consensus, tracking)


def _plain(loss, a, channel):
    return dd.GradientTracking(loss, a, channel)


METHODS = {
    "VRA-DGT": (_vra, DECAYING),
    "VRA-DSGT": (_vra_stochastic, DECAYING),
    "two timescales": (_two_timescales, DECAYING),
    "no aggregation": (_no_aggregation, DECAYING),
    "plain tracking": (_plain, CONSTANT),
}


def run() -> Outcome:
    with jax.enable_x64(True):
        links, inside = _links(4000)
        bits, also = _bits(4500)
    error = {row["method"]: row for row in links}
    last = {name: row["last"] for name, row in error.items()}
    slopes = {name: row["slope"] for name, row in error.items()}
    holds = all(abs(slopes[name] + 1) <= 0.2 for name in ("VRA-DGT", "VRA-DSGT"))
    holds &= 3 * last["VRA-DGT"] <= last["two timescales"]
    holds &= last["plain tracking"] > 10 * last["VRA-DGT"]
    holds &= all(2 * row["last"] <= row["first"] for row in bits if row["method"] == "VRA-DGT")
    holds &= all(2 * row["last"] > row["first"] for row in bits if row["method"] != "VRA-DGT")
    holds &= bool(inside and also)
    note = (
        "Mean squared error over the nodes at a tenth of the run and at its end, and norm of the "
        "mean gradient at the nodes' mean. The second method has noise on its gradients too."
    )
    if not (inside and also):
        note += " A best step size lies at an end of its grid."
    if last["VRA-DGT"] > last["no aggregation"]:
        note += (
            " Each at its best step size, the same scheme without aggregation is no worse: what "
            "makes the rate here is the cumulative tracker with consensus gains of the order of "
            "the step size."
        )
    return Outcome(links + bits, holds, note)


def _walk(algorithm, batch_of, d, rounds, key, measure):
    """What is measured after each round."""

    def one(state, k):
        state = algorithm.round(state, batch_of(k), NETWORK, jax.random.fold_in(key, k))
        return state, measure(state.params)

    state = algorithm.init(jnp.zeros((NODES, d)), batch_of(0), NETWORK, key)
    return jax.lax.scan(one, state, jnp.arange(rounds))[1]


def _best(curve, rates, problems, num_tuning):
    """The mean curve of the reported problems at the best rate of those before, and its index."""
    keys = jax.random.split(jax.random.key(1003), len(jax.tree.leaves(problems)[0]))
    run = jax.jit(jax.vmap(jax.vmap(curve, (None, 0, 0)), (0, None, None)))

    def at(rates, part):
        taken = jax.tree.map(lambda a: a[part], (problems, keys))
        return np.nan_to_num(np.asarray(run(jnp.asarray(rates), *taken)), nan=np.inf)

    tuned = at(rates, slice(None, num_tuning))
    best = int(np.argmin(tuned[:, :, -200:].mean(axis=(1, 2))))
    return at(rates[best : best + 1], slice(num_tuning, None))[0].mean(axis=0), best


def _row(problem, method, curve, first, rates, best):
    early, late = curve[first - 100 : first + 100].mean(), curve[-200:].mean()
    slope = np.log(late / early) / np.log((len(curve) - 100) / first)
    return {
        "problem": problem,
        "method": method,
        "step size": float(rates[best]),
        "first": float(early),
        "last": float(late),
        "slope": float(slope),
    }


def _quadratic(x, batch):
    curvature, slope = batch
    return 0.5 * jnp.sum(curvature * x**2) - jnp.vdot(slope, x)


def _links(rounds):
    seeds = TUNING + REPORTED
    draws = [np.random.default_rng(seed) for seed in seeds]
    curvature = jnp.asarray([rng.uniform(0.5, 2, (NODES, D)) for rng in draws])
    slope = jnp.asarray([rng.normal(size=(NODES, D)) for rng in draws])
    problems = curvature, slope, slope.sum(axis=1) / curvature.sum(axis=1)
    table, inside = [], True
    for name, (method, rates) in METHODS.items():

        def curve(rate, problem, key, name=name, method=method):
            curvature, slope, optimum = problem
            noisy, (walk, draw) = name == "VRA-DSGT", jax.random.split(key)

            def batch(k):
                if not noisy:
                    return curvature, slope
                noise = jax.random.normal(jax.random.fold_in(draw, k), slope.shape)
                return curvature, slope + noise

            error = lambda x: jnp.mean(jnp.sum((x - optimum) ** 2, axis=1))
            return _walk(method(_quadratic, rate, NOISE), batch, D, rounds, walk, error)

        found, best = _best(curve, rates, problems, len(TUNING))
        inside &= 0 < best < len(rates) - 1
        table.append(_row("noise", name, found, rounds // 10, rates, best))
    return table, inside


def _logistic(x, batch):
    rows, targets = batch
    return jnp.mean(jax.nn.softplus(-targets * (rows @ x))) + 0.05 * jnp.sum(x**2)


def _bits(rounds):
    problems, _ = _splits(TUNING[:1] + REPORTED[:2])
    table, inside = [], True
    for name, rates in LOGISTIC.items():
        method, _ = METHODS[name]

        def curve(rate, problem, key, method=method):
            mean = lambda x: jnp.mean(jax.vmap(lambda b: _logistic(x, b))(problem))
            size = lambda params: tree.norm(jax.grad(mean)(jnp.mean(params, axis=0)))
            algorithm = method(_logistic, rate, BITS)
            return _walk(algorithm, lambda k: problem, problem[0].shape[-1], rounds, key, size)

        found, best = _best(curve, rates, problems, 1)
        inside &= 0 < best < len(rates) - 1
        table.append(_row("8 bits", name, found, 500, rates, best))
    return table, inside
