"""What claims on trained denoisers share: training on digits, samples, distances."""

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxopt_ext import diffusion, training
from jaxopt_ext.core import distances


def train(model, loss, tx, num_steps, every, seed, average=None, **options):
    """Averages of a training on batches of 128 after every so many steps, stacked, and what the
    steps reported."""
    average = diffusion.PowerFunctionAverage(0.10) if average is None else average
    method = training.GradientStep(loss, tx, average, **options)
    taken = training.Snapshots(method, every, num_steps // every)
    keys = jax.random.split(jax.random.key(seed))
    batches = training.Drawn(jnp.asarray(diffusion.digits().train), 128, keys[0])
    fit = training.fit(taken, model, batches, num_steps, key=keys[1], progress=False, piece=every)
    return fit.state.snapshots, fit.metrics, fit


def at(snapshots, model, i):
    """The model of a snapshot; what is no array comes from `model`."""
    arrays = jax.tree.map(lambda leaf: leaf[i], snapshots)
    return eqx.combine(arrays, eqx.filter(model, eqx.is_array, inverse=True))


def frechet(x):
    """The Frechet distance of samples to the test images, in features of a classifier."""
    features = diffusion.digit_features().features
    return float(_frechet(features(x), features(jnp.asarray(diffusion.digits().test))))


def mmd(x):
    """The squared maximum mean discrepancy to the test images, times a thousand."""
    return 1000 * float(_mmd(x, jnp.asarray(diffusion.digits().test)))


_frechet = jax.jit(distances.frechet_distance)
_mmd = jax.jit(distances.squared_mmd)


def noise(schedule, seed, num=597):
    """Starts of samples."""
    return diffusion.prior(schedule, jnp.zeros((num, 8, 8)), jax.random.key(seed))
