"""DDIM against ancestral sampling at equal numbers of evaluations."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_ext import diffusion

from .. import Outcome

CLAIM = (
    "On a mixture of 8 Gaussians on a circle with its exact denoiser, DDIM with 10 and with 20 "
    "evaluations has at most half of the sliced Wasserstein distance to the data that ancestral "
    "sampling has with as many, and ancestral sampling catches up within a factor of two at 500 "
    "(20,000 samples, mean of 3 seeds, the same uniform grid of times)."
)
SETTINGS = (
    "Nothing is chosen for the verdict: both samplers take the same grid of times; seeds 0 to 2. "
    "What was tried afterwards is on the same seeds."
)

SEEDS, NUM = 3, 20_000


def data():
    angles = np.arange(8) * np.pi / 4
    means = 2 * np.stack([np.cos(angles), np.sin(angles)], 1)
    return diffusion.GaussianMixture(jnp.asarray(means, jnp.float32), jnp.full(8, 0.1, jnp.float32))


def sliced_wasserstein(a, b):
    """Mean over 32 directions of the 1-Wasserstein distance of the projections."""
    angles = jnp.arange(32) * jnp.pi / 32
    directions = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
    return jnp.mean(jnp.abs(jnp.sort(a @ directions, 0) - jnp.sort(b @ directions, 0))).item()


def distance(sampler, num_steps, seed):
    schedule, mixture = diffusion.VariancePreserving(), data()
    start, noise, draw = jax.random.split(jax.random.key(seed), 3)
    x = diffusion.prior(schedule, jnp.zeros((NUM, 2), jnp.float32), start)
    times = diffusion.uniform_time(schedule, num_steps)
    out = diffusion.sample(mixture.denoiser(), sampler, schedule, times, x, key=noise)
    return sliced_wasserstein(out.value, mixture.sample(draw, NUM))


def run() -> Outcome:
    table = []
    for count in (10, 20, 50, 100, 500):
        row = {"evaluations": count}
        for name, sampler in (("DDIM", diffusion.DDIM()), ("DDPM", diffusion.DDIM(1.0))):
            row[name] = float(np.mean([distance(sampler, count, seed) for seed in range(SEEDS)]))
        table.append(row)
    holds = all(row["DDIM"] <= 0.5 * row["DDPM"] for row in table[:2])
    holds = holds and table[-1]["DDPM"] <= 2 * table[-1]["DDIM"]
    mixture = data()
    keys = jax.random.split(jax.random.key(9), 2)
    floor = sliced_wasserstein(*(mixture.sample(k, NUM) for k in keys))
    return Outcome(
        table,
        holds,
        f"Two exact samples of this size are {floor:.3g} apart, other pairs 0.007 to 0.022. Tried "
        "afterwards: times uniform in the logarithm of the signal-to-noise ratio (at 10 "
        "evaluations DDIM 0.064, DDPM 0.040) and squares of a uniform grid, the authors' choice "
        "on CIFAR-10 (0.036, 0.028). The gap that the paper has on images is not there in two "
        "dimensions with an exact denoiser.",
        why="scale: with an exact denoiser in two dimensions ancestral sampling is nearly as "
        "close; the gap of the paper is on images",
    )
