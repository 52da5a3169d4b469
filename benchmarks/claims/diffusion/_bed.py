"""The exact bed of the samplers' claims: a mixture in the plane whose denoiser is known."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from jaxopt_ext import diffusion

SCHEDULE = diffusion.VariancePreserving(start=1.0, end=0.01)


def mixture() -> diffusion.GaussianMixture:
    """Three Gaussians of different sizes; double precision where it is enabled."""
    means = jnp.array([[-2.0, 0.0], [1.0, 1.0], [0.5, -2.0]])
    return diffusion.GaussianMixture(means, jnp.array([0.6, 0.8, 0.5]))


def starts(seed: int, num: int = 64):
    """Standard normal starts, shape `(num, 2)`."""
    return jax.random.normal(jax.random.key(seed), (num, 2))


def reference(x, model=None, schedule=SCHEDULE, rtol: float = 1e-10):
    """The probability-flow solution from `x` at the schedule's start to its end, by an explicit
    Runge-Kutta method of order 8 in $\\rho = \\sigma/\\alpha$; shares no code with the samplers."""
    model = mixture().denoiser() if model is None else model
    first, last = (schedule.nodes(t) for t in (schedule.start, schedule.end))
    noise = jax.jit(lambda x, node: model.noise(x, node))

    def slope(log_rho, flat):
        rho = np.exp(log_rho)
        node = schedule.nodes(schedule.time_at(-log_rho))
        y = flat.reshape(x.shape)
        return (rho * np.asarray(noise(jnp.asarray(node.alpha * y), node))).ravel()

    span = np.log(first.sigma / first.alpha), np.log(last.sigma / last.alpha)
    y = (np.asarray(x, np.float64) / first.alpha).ravel()
    out = solve_ivp(slope, span, y, method="DOP853", rtol=rtol, atol=1e-12)
    return last.alpha * out.y[:, -1].reshape(x.shape)


def rms(found, wanted) -> float:
    """Root of the mean squared distance between samples."""
    return float(np.sqrt(np.mean(np.sum((np.asarray(found) - np.asarray(wanted)) ** 2, -1))))
