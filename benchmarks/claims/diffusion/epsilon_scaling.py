"""Scaled noise beside plain sampling, with a trained denoiser of digits and with an exact one."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_ext import diffusion
from jaxopt_ext.core import distances

from .. import Outcome

CLAIM = (
    "With the denoiser trained on digits (variance preserving, equal times, 300 samples, mean of "
    "three seeds) DDPM with 10, 20 and 100 steps and DDIM with as many predict noise of larger "
    "norm than on noisy data over the last half of a run, and the divisor of epsilon scaling that "
    "was chosen on other seeds lowers both this gap and the squared MMD to the test images."
)
SETTINGS = (
    "The divisor is the best of seven, 0.98 to 1.45 for DDPM and 0.98 to 1.1 for DDIM, by squared "
    "MMD to the training images, mean of seeds 100 and 101; reported are seeds 0 to 2 and the test "
    "images. For the exact mixture it is the best by energy distance to one sample on seed 100, "
    "reported on seeds 0 to 2 and another sample."
)

SAMPLERS = {
    "DDPM": (diffusion.DDIM(1.0), [0.98, 1.0, 1.06, 1.12, 1.2, 1.3, 1.45]),
    "DDIM": (diffusion.DDIM(), [0.98, 1.0, 1.01, 1.02, 1.03, 1.05, 1.1]),
}


def chosen(model, run, tried, data, seeds, distance):
    keys = [jax.random.key(seed) for seed in seeds]
    fits = [
        diffusion.fit_scale(model, *run, data, key, candidates=tried, distance=distance)
        for key in keys
    ]
    return tried[int(np.argmin(np.mean([fit.scores for fit in fits], 0)))]


def reached(model, run, data, seeds, distance):
    """Mean distance of samples, and mean gap of norms over the last half of the steps."""
    sampler, schedule, times = run
    scores, gaps = [], []
    for seed in seeds:
        first, second, third = jax.random.split(jax.random.key(seed), 3)
        start = diffusion.prior(schedule, data, first)
        value = diffusion.sample(model, sampler, schedule, times, start, key=second).value
        scores.append(distance(value, data))
        gap = diffusion.noise_norm_gap(model, *run, data[:64], third).gap
        gaps.append(np.mean(np.asarray(gap)[len(gap) // 2 :]))
    return float(np.mean(scores)), float(np.mean(gaps))


def compared(name, model, counts, tuning, testing, seeds, distance, factor):
    schedule, rows = diffusion.VariancePreserving(), []
    for label, (sampler, tried) in SAMPLERS.items():
        for count in counts:
            run = sampler, schedule, diffusion.uniform_time(schedule, count)
            best = chosen(model, run, tried, tuning, seeds[0], distance)
            scaled = diffusion.EpsilonScaled(model, jnp.asarray(best))
            plain = diffusion.EpsilonScaled(model, jnp.asarray(1.0))  # one program for both
            before, after = (reached(m, run, testing, seeds[1], distance) for m in (plain, scaled))
            rows.append(
                {
                    "model": name,
                    "sampler": label,
                    "steps": count,
                    "divisor": best,
                    "distance": factor * before[0],
                    "scaled": factor * after[0],
                    "gap": before[1],
                    "gap, scaled": after[1],
                }
            )
    return rows


def six(key):
    """Six Gaussians in eight dimensions."""
    means = jax.random.normal(jax.random.key(key), (6, 8))
    return diffusion.GaussianMixture(means, jnp.full(6, 0.35))


def run() -> Outcome:
    digits = diffusion.digits()
    mmd = jax.jit(distances.squared_mmd)
    train, test = jnp.asarray(digits.train[:200]), jnp.asarray(digits.test[:300])
    seeds = (100, 101), (0, 1, 2)
    learned = compared(
        "digits", diffusion.digits_teacher(), (10, 20, 100), train, test, seeds, mmd, 1000
    )
    mixture, energy = six(0), jax.jit(distances.energy_distance)
    data = [mixture.sample(jax.random.key(k), 1000) for k in (1, 2)]
    exact = compared("exact", mixture.denoiser(), (20,), *data, ((100,), (0, 1, 2)), energy, 1)
    holds = all(
        row["gap"] > 0
        and row["scaled"] < row["distance"]
        and abs(row["gap, scaled"]) < abs(row["gap"])
        for row in learned
    )
    return Outcome(
        learned + exact,
        holds,
        "The distance is the squared MMD times a thousand for digits, the energy distance for the "
        "exact mixture in eight dimensions; gaps are over the root of the dimension. In few steps "
        "samples come out too wide, also with the exact denoiser, and the divisor repairs that; "
        "the norms of the predicted noise do not show it on digits: the divisor that is best for "
        "the distance makes their gap larger.",
        why="scale: the distance falls several times over, but this small network predicts no "
        "larger noise while sampling than on noisy data",
    )
