"""Experts of half of the digits each, merged: by trained attention, by averages, or not at all."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_ext import diffusion, training

from .. import Outcome
from . import _digits as bed

CLAIM = (
    "Of two denoisers, trained for digits 0 to 4 and 5 to 9 from one base, samples by Heun with 18 "
    "and with 6 steps have a smaller Frechet distance to all digits with trained adaptive feature "
    "aggregation than with the average of the weights, the average of the outputs, and each "
    "denoiser alone, in the mean of 3 seeds."
)
SETTINGS = (
    "Perceptrons 64-128 with three residual layers, Preconditioned(0.847), batches of 128, 300 "
    "steps of Adam at 2e-3 on all digits, then 600 steps at 1e-3 on half of them for each expert. "
    "Aggregators behind the stem and each layer, of 8 groups and 64 hidden values, heads averaged, "
    "300 steps of Adam on all digits; averages of relative width 0.10 throughout; 597 samples. "
    "On seed 100 the aggregators' rate 3e-3 was better than 1e-3; higher ones were not tried. Both "
    "averages are given more: the first expert's share is the best of 0.35, 0.5, 0.65 and 0.8 by "
    "mean distance with 18 steps on the reported seeds themselves, 0 to 2."
)
SIGMA_DATA, WIDTH, BASE, EXPERT, MERGING, BASE_RATE = 0.847, 128, 300, 600, 300, 2e-3
RATES, SHARES = (1e-3, 3e-3), (0.35, 0.5, 0.65, 0.8)
BEST, TUNING, REPORTED, COUNTS = 3e-3, 100, (0, 1, 2), (18, 6)
SCHEDULE = diffusion.VarianceExploding()
LOSS = diffusion.DenoisingLoss(diffusion.LogNormal(), diffusion.EDMWeighting(SIGMA_DATA))
adam = functools.cache(optax.adam)
LOW, HIGH = range(5), range(5, 10)


def fit(network, rate, steps, classes, seed, frozen=False):
    """The averaged network after training on digits of these classes."""
    model = diffusion.Denoiser(network, diffusion.Preconditioned(SIGMA_DATA))
    trainable = diffusion.aggregator_filter(model) if frozen else None
    average = diffusion.PowerFunctionAverage(0.10)
    method = training.GradientStep(LOSS, adam(rate), average, trainable=trainable)
    keys = jax.random.split(jax.random.key(seed))
    images = jnp.asarray(diffusion.digits(classes).train)
    batches = training.Drawn(images, 128, keys[0])
    done = training.fit(method, model, batches, steps, key=keys[1], progress=False, piece=steps)
    return done.state.averaged.network


def experts(seed):
    """Two, from one base."""
    network = diffusion.MLPDenoiser((8, 8), WIDTH, 3, key=jax.random.key(1000 + seed))
    base = fit(network, BASE_RATE, BASE, range(10), seed)
    return tuple(fit(base, 1e-3, EXPERT, c, seed + 10 * i) for i, c in enumerate((LOW, HIGH), 1))


def aggregated(pair, seed):
    """Not trained yet."""
    mean = diffusion.UniformAggregator()
    key = jax.random.key(2000 + seed)
    return diffusion.AggregatedNetwork.create(pair, key=key, hidden=64, groups=8, output=mean)


def samples(network, times, x):
    """By Heun."""
    denoiser = diffusion.Denoiser(network, diffusion.Preconditioned(SIGMA_DATA))
    return diffusion.sample(denoiser, diffusion.Heun(), SCHEDULE, times, x).value


def quality(network, seed, count):
    """Frechet distance, squared discrepancy and share of digits 0 to 4."""
    made = samples(network, diffusion.karras(SCHEDULE, count), bed.noise(SCHEDULE, seed))
    found = np.argmax(diffusion.digit_features().probabilities(made), axis=1)
    return bed.frechet(made), bed.mmd(made), float(np.mean(found < 5))


def tune():
    """How BEST was found."""
    pair = experts(TUNING)
    for rate in RATES:
        net = fit(aggregated(pair, TUNING), rate, MERGING, range(10), TUNING + 50, frozen=True)
        print(rate, quality(net, TUNING, 18), flush=True)


def run() -> Outcome:
    found = {}
    for seed in REPORTED:
        pair = experts(seed)
        fresh = aggregated(pair, seed)
        soup = diffusion.average_weights(pair)
        networks: dict[Any, Any] = {
            "aggregation": fit(fresh, BEST, MERGING, range(10), seed + 50, frozen=True),
            "aggregation, not trained": fresh,
            "expert of 0 to 4": pair[0],
            "expert of 5 to 9": pair[1],
            "average of weights, trained alike": fit(soup, 1e-3, MERGING, range(10), seed + 50),
        }
        for share in SHARES:
            weights = share, 1 - share
            networks["average of weights", share] = diffusion.average_weights(pair, weights)
            networks["average of outputs", share] = diffusion.AveragedOutputs(pair, weights)
        for name, network in networks.items():
            values = [quality(network, seed, count) for count in COUNTS]
            found.setdefault(name, []).append(values)
    for name in ("average of weights", "average of outputs"):
        tried = {share: found.pop((name, share)) for share in SHARES}
        best = min(SHARES, key=lambda share: np.mean(tried[share], axis=0)[0, 0])
        found[f"{name}, share {best}"] = tried[best]
    means = {name: np.mean(values, axis=0) for name, values in found.items()}
    spreads = {name: np.std(values, axis=0, ddof=1) for name, values in found.items()}
    table = [
        {
            "network": name,
            "Frechet, 18 steps": float(mean[0, 0]),
            "spread": float(spreads[name][0, 0]),
            "1000 MMD^2": float(mean[0, 1]),
            "share of 0 to 4": float(mean[0, 2]),
            "Frechet, 6 steps": float(mean[1, 0]),
            "spread, 6 steps": float(spreads[name][1, 0]),
        }
        for name, mean in means.items()
    ]
    ours = means["aggregation"][:, 0]
    given = ("aggregation", "aggregation, not trained", "average of weights, trained alike")
    rivals = [mean[:, 0] for name, mean in means.items() if name not in given]
    holds = bool(np.all(ours < np.min(rivals, axis=0)))
    return Outcome(
        table,
        holds,
        NOTE,
        why="scale: ahead of all with 18 steps; with 6 steps the average of outputs is nearer",
    )


NOTE = (
    "Frechet distances in features of a classifier; the share is that of samples classified as 0 "
    "to 4. The average of the weights trained further, for as many steps on the same digits, is "
    "given for comparison and is no rival of the claim: frozen models are the point of aggregation."
)
