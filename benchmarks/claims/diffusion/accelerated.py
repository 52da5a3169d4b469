"""Accelerated score samplers beside the plain ones, in one dimension where laws are computed."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import CubicSpline
from scipy.stats import norm

from jaxopt_ext import diffusion

from .. import Outcome

CLAIM = (
    "On five mixtures of three Gaussians on the line, started from the exact noisy law: the "
    "Wasserstein distance of accelerated DDIM to the data falls like the square of 1/T (slope from "
    "T = 320 to 640 at least 1.7) where plain DDIM falls like 1/T (slope below 1.3); at equal "
    "evaluations (T/2 steps) it is below plain DDIM for every T from 40 to 640; with the schedule "
    "of the theory its total variation from T = 160 to 640 falls with at least 1.5 times the slope "
    "of plain DDIM's; and accelerated DDPM has at most 0.6 of the total variation of plain DDPM "
    "for T = 40, 80, 160, 320."
)
SETTINGS = (
    "Nothing is chosen for the verdict but the thresholds, set on one other mixture (means -1.5, "
    "0.5, 2, deviations 0.4, 0.6, 0.3, weights 0.3, 0.5, 0.2). Means, deviations and weights of "
    "the five are drawn with seeds 0 to 4; c0 = 2 and c1 = 4 in the schedule of the theory."
)

SEEDS = range(5)
PLAIN, FAST = diffusion.PlainScoreDDIM(), diffusion.AcceleratedDDIM()


def targets(seeds):
    """Means, deviations and weights, each of shape `(targets, 3)`."""
    draws = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        draw = rng.uniform(-2, 2, 3), rng.uniform(0.3, 0.7, 3), rng.uniform(0.2, 1.0, 3)
        draws.append((*draw[:2], draw[2] / draw[2].sum()))
    return tuple(np.stack(parts) for parts in zip(*draws, strict=True))


def model_of(mixtures):
    """Exact denoiser of points of shape `(targets, points)`."""

    def one(means, scales, weights, x, node):
        mixture = diffusion.GaussianMixture(means[:, None], scales, weights)
        return mixture.data(x[:, None], node)[:, 0]

    each = jax.vmap(one, (0, 0, 0, 0, None))
    parts = tuple(map(jnp.asarray, mixtures))
    return diffusion.Denoiser(lambda x, node: each(*parts, x, node), diffusion.Data())


def law(mixtures, node):
    """Density and distribution function of a noisy level, at points `(targets, points)`."""
    means, scales, weights = (a[:, None] for a in mixtures)
    wide = np.sqrt(node.alpha**2 * scales**2 + node.sigma**2)
    over = lambda f: lambda y: np.sum(weights * f(y[..., None], node.alpha * means, wide), -1)
    return over(norm.pdf), over(norm.cdf)


def quantiles(mixtures, node, levels):
    cumulative = law(mixtures, node)[1]
    low, high = (np.full((len(mixtures[0]), len(levels)), end) for end in (-20.0, 20.0))
    for _ in range(50):
        middle = (low + high) / 2
        below = cumulative(middle) < levels
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def linear_chain(num_steps):
    """The variance-preserving schedule at equal times from 1 to 0.001, scaled to end at data."""
    schedule = diffusion.VariancePreserving()
    log_alpha = schedule.log_alpha(diffusion.uniform_time(schedule, num_steps))[::-1]
    return diffusion.DiscreteSchedule(-np.expm1(2 * np.diff(log_alpha)))


def wasserstein(mixtures, sampler, num_steps):
    levels = (np.arange(1000) + 0.5) / 1000
    chain = linear_chain(num_steps)
    start = quantiles(mixtures, chain.nodes(1.0), levels)
    times = diffusion.linspaced(chain, num_steps)
    end = diffusion.sample(model_of(mixtures), sampler, chain, times, jnp.asarray(start)).value
    return np.mean(np.abs(end - quantiles(mixtures, chain.nodes(0.0), levels)), -1)


def total_variation(mixtures, sampler, num_steps):
    """To the law of the least noisy level of the theory's chain, by change of variables."""
    chain = diffusion.theory_schedule(num_steps)
    times = diffusion.linspaced(chain, num_steps)[:-1]
    y = np.tile(np.linspace(-6.0, 6.0, 2001), (len(mixtures[0]), 1))
    model = model_of(mixtures)
    run = lambda x: diffusion.sample(model, sampler, chain, times, x).value
    end, slope = map(np.asarray, jax.jvp(run, (jnp.asarray(y),), (jnp.ones(y.shape),)))
    if np.any(slope <= 0):
        raise ArithmeticError("the map does not keep the order of points")
    density = law(mixtures, chain.nodes(1.0))[0](y)
    wanted = law(mixtures, chain.nodes(chain.end))[0](end)
    return 0.5 * np.trapezoid(np.abs(density - wanted * slope), y[0])


def total_variation_of_noisy(mixtures, sampler, num_steps):
    """To the data, with the density carried through the steps that the sampler plans."""
    chain, grid = linear_chain(num_steps), np.linspace(-10.0, 10.0, 4096)
    frequency = 2 * np.pi * np.fft.rfftfreq(len(grid), grid[1] - grid[0])
    blur = lambda p, s: np.fft.irfft(
        np.fft.rfft(p) * np.exp(-0.5 * (frequency * s) ** 2), len(p[0])
    )
    model, points = model_of(mixtures), np.tile(grid, (len(mixtures[0]), 1))
    noise = jax.jit(lambda node: model.noise(jnp.asarray(points), node))
    table = sampler.plan(chain, diffusion.linspaced(chain, num_steps))
    early = [0.0] * num_steps if len(table) == 4 else table[1]
    density = law(mixtures, chain.nodes(1.0))[0](points)
    for i in range(num_steps):
        node = diffusion.Node(*(a[i] for a in table[0]))
        keep, weight, fresh = (a[i] for a in table[-3:])
        moved = CubicSpline(grid, keep * points + weight * np.asarray(noise(node)), axis=1)
        slope = moved(grid, 1)
        if np.any(slope <= 0):
            raise ArithmeticError("the step does not keep the order of points")
        pushed = zip(moved(grid), blur(density, early[i]) / slope, strict=True)
        density = np.stack([np.interp(grid, *pair, left=0.0, right=0.0) for pair in pushed])
        density = blur(density, fresh)
    gaps = np.abs(density - law(mixtures, chain.nodes(0.0))[0](points))
    return 0.5 * np.trapezoid(gaps, grid)


def measure(mixtures):
    """Columns of the table, each of shape `(targets,)`."""
    counts, few, noisy = (40, 80, 160, 320, 640), (160, 640), (40, 80, 160, 320)
    w1 = {s: [wasserstein(mixtures, s, n) for n in counts] for s in (PLAIN, FAST)}
    half = [wasserstein(mixtures, FAST, 20), *w1[FAST][:-1]]
    tv = {s: [total_variation(mixtures, s, n) for n in few] for s in (PLAIN, FAST)}
    slope = lambda e, factor: np.log(e[-2] / e[-1]) / np.log(factor)
    pair = diffusion.PlainScoreDDPM(), diffusion.AcceleratedDDPM()
    stochastic = [[total_variation_of_noisy(mixtures, s, n) for n in noisy] for s in pair]
    return {
        "W1 of DDIM, T = 640": w1[PLAIN][-1],
        "slope": slope(w1[PLAIN], 2),
        "W1 of accelerated DDIM": w1[FAST][-1],
        "its slope": slope(w1[FAST], 2),
        "with T = 320": w1[FAST][-2],
        "W1 of `DDIM()`, T = 640": wasserstein(mixtures, diffusion.DDIM(), 640),
        "largest ratio at equal evaluations": np.max(np.divide(half, w1[PLAIN]), 0),
        "slope of TV, DDIM": slope(tv[PLAIN], 4),
        "slope of TV, accelerated": slope(tv[FAST], 4),
        "TV of DDPM, T = 320": stochastic[0][-1],
        "slope, DDPM": slope(stochastic[0], 2),
        "slope, accelerated DDPM": slope(stochastic[1], 2),
        "largest ratio of TV": np.max(np.divide(stochastic[1], stochastic[0]), 0),
    }


def run() -> Outcome:
    with jax.enable_x64(True):
        columns = measure(targets(SEEDS))
    table = [
        {"seed": seed, **{name: float(column[i]) for name, column in columns.items()}}
        for i, seed in enumerate(SEEDS)
    ]
    holds = all(
        row["its slope"] >= 1.7
        and row["slope"] < 1.3
        and row["largest ratio at equal evaluations"] < 1
        and row["slope of TV, accelerated"] >= 1.5 * row["slope of TV, DDIM"]
        and row["largest ratio of TV"] <= 0.6
        for row in table
    )
    return Outcome(
        table,
        holds,
        "W1 is between points that start from equal quantiles, TV a quadrature of densities. Plain "
        "DDPM falls with slope 1 on these smooth targets, faster than the proved root of 1/T, and "
        "accelerated DDPM gains a factor, not a slope. The plain samplers take scores as the paper "
        "does; `DDIM()`, exact for a constant noise, is first order too, but eight times closer "
        "than plain DDIM at T = 640.",
    )
