"""Samplers with provable rates: score steps of a noising chain, plain and accelerated.

Between a node and the next of less noise lies a step of the chain $x_t = \\sqrt{a_t}\\, x_{t-1} +
\\sqrt{b_t}\\, z$ with $a_t = (\\bar\\alpha_t/\\bar\\alpha_{t-1})^2$ and $b_t = 1 - a_t$, where
$(\\bar\\alpha, \\bar\\sigma) = (\\alpha, \\sigma)/r$ with $r^2 = \\alpha^2 + \\sigma^2$; so any
schedule is one that preserves variance, for $Y = x/r$. The scores are
$s_t(Y) = -\\hat\\epsilon/\\bar\\sigma_t$.

Steps from score to sample are not exact for a constant noise, as `DDIM` is: the two differ at
second order in $b_t$.
"""

from typing import NamedTuple

import jax
import numpy as np

from ..core import checks
from .denoiser import combine
from .exponential import NoiseForm, SinglestepRow, singlestep
from .sampler import AbstractSampler, ends, gaussian
from .schedules import AbstractSchedule, Coefficients, DiscreteSchedule, Node, Times


class _Links(NamedTuple):
    """The chain's steps between nodes, each read from its noisy end; a row for each."""

    here: Node
    drift: Coefficients
    """$\\sqrt{1/a_t}$ in x."""
    rate: Coefficients
    """$b_t$."""
    size: Coefficients
    """$\\sqrt{\\alpha^2 + \\sigma^2}$ at the end times $\\sqrt{1/a_t}$."""
    scaled: Node
    """The beginning, in variables that preserve variance."""
    radius: Coefficients
    """$\\sqrt{\\alpha^2 + \\sigma^2}$ at the beginning."""


def _links(schedule: AbstractSchedule, times: Times) -> _Links:
    here, there = ends(schedule, times)
    radii = np.hypot(here.alpha, here.sigma), np.hypot(there.alpha, there.sigma)
    scaled = Node(here.t, here.alpha / radii[0], here.sigma / radii[0])
    root = scaled.alpha / (there.alpha / radii[1])  # of a_t
    size = radii[1] / root
    return _Links(here, there.alpha / here.alpha, 1 - root**2, size, scaled, radii[0])


class PlainScoreDDIM(AbstractSampler):
    """The deterministic sampler that `AcceleratedDDIM` speeds up,

    $$Y_{t-1} = \\tfrac{1}{\\sqrt{a_t}} \\big(Y_t + \\tfrac{b_t}{2} s_t(Y_t)\\big).$$

    First order; the distance in total variation to the law of the data falls like 1/T in the number
    T of steps, up to logarithms, without smoothness or log-concavity of the data.

    **Reference:** Li, Huang, Efimov, Wei, Chi, Chen, Accelerating Convergence of Score-Based
    Diffusion Models, Provably, 2024, arXiv:2403.03852, where it is the baseline.
    """

    @property
    def reaches_zero(self):
        return True

    def plan(self, schedule, times):
        link = _links(schedule, times)
        return link.here, link.drift, -link.size * link.rate / (2 * link.scaled.sigma)

    def step(self, model, x, memory, row, key):
        node, keep, weight = row
        return combine((keep, x), (weight, model.noise(x, node))), memory


class AcceleratedDDIM(AbstractSampler):
    """A second-order deterministic sampler with a second score at the level before,

    $$\\begin{aligned}
    Y_t^- &= \\sqrt{a_{t+1}}\\, \\big(Y_t - \\tfrac{b_{t+1}}{2} s_t(Y_t)\\big), \\\\
    Y_{t-1} &= \\tfrac{1}{\\sqrt{a_t}} \\Big(Y_t + \\tfrac{b_t}{2} s_t(Y_t)
      + \\tfrac{b_t^2}{4 b_{t+1}} \\big(s_t(Y_t) - \\sqrt{a_{t+1}}\\, s_{t+1}(Y_t^-)\\big)\\Big).
    \\end{aligned}$$

    $Y_t^-$ is where $Y_t$ would have been at the noisier level t + 1. The first step, which has
    none, is `PlainScoreDDIM()`; every further one takes two evaluations. The distance in total
    variation to the law of the data falls like $1/T^2$, up to logarithms.

    **Reference:** Li, Huang, Efimov, Wei, Chi, Chen, Accelerating Convergence of Score-Based
    Diffusion Models, Provably, 2024, arXiv:2403.03852.
    """

    @property
    def reaches_zero(self):
        return True

    def evaluations(self, num_steps):
        return 2 * num_steps - 1

    def plan(self, schedule, times):
        link = _links(schedule, times)
        before = lambda a: np.concatenate([a[:1], a[:-1]])
        rate, root = before(link.rate), np.sqrt(1 - before(link.rate))
        sigma = link.scaled.sigma
        slope = link.rate**2 / (4 * rate)
        slope[0] = 0.0
        back = before(link.radius) * root * rate / (2 * sigma)
        first = -link.size * (link.rate / 2 + slope) / sigma
        second = link.size * slope * root / before(sigma)
        nodes = Node(*(np.stack([a, before(a)], 1) for a in link.here))
        keep = np.stack([before(link.here.alpha) / link.here.alpha, link.drift], 1)
        weights = np.stack([np.stack([back, 0 * back], 1), np.stack([first, second], 1)], 1)
        return SinglestepRow(nodes, keep, weights, np.minimum(np.arange(len(rate)), 1) + 1)

    def step(self, model, x, memory, row, key):
        return singlestep(NoiseForm(), model, x, row, uniform=False), memory


class PlainScoreDDPM(AbstractSampler):
    """The stochastic sampler that `AcceleratedDDPM` speeds up,

    $$Y_{t-1} = \\tfrac{1}{\\sqrt{a_t}} \\big(Y_t + b_t s_t(Y_t) + \\sqrt{b_t} Z_t\\big).$$

    Its distance in total variation is proved to fall like $1/\\sqrt{T}$, up to logarithms.

    **Reference:** Li, Huang, Efimov, Wei, Chi, Chen, Accelerating Convergence of Score-Based
    Diffusion Models, Provably, 2024, arXiv:2403.03852, where it is the baseline.
    """

    @property
    def stochastic(self):
        return True

    @property
    def reaches_zero(self):
        return True

    def plan(self, schedule, times):
        link = _links(schedule, times)
        weight = -link.size * link.rate / link.scaled.sigma
        return link.here, link.drift, weight, link.size * np.sqrt(link.rate)

    def step(self, model, x, memory, row, key):
        node, keep, weight, fresh = row
        noise = model.noise(x, node)
        return combine((keep, x), (weight, noise), (fresh, gaussian(x, key))), memory


class AcceleratedDDPM(AbstractSampler):
    """A stochastic sampler that draws half of its noise before the score and half behind it,

    $$Y_t^+ = Y_t + \\sqrt{b_t/2}\\, Z_t, \\qquad
    Y_{t-1} = \\tfrac{1}{\\sqrt{a_t}}
      \\big(Y_t^+ + b_t s_t(Y_t^+) + \\sqrt{b_t/2}\\, Z_t^+\\big).$$

    One evaluation a step; the distance in total variation is proved to fall like 1/T, up to
    logarithms.

    **Reference:** Li, Huang, Efimov, Wei, Chi, Chen, Accelerating Convergence of Score-Based
    Diffusion Models, Provably, 2024, arXiv:2403.03852.
    """

    @property
    def stochastic(self):
        return True

    @property
    def reaches_zero(self):
        return True

    def plan(self, schedule, times):
        link = _links(schedule, times)
        spread = np.sqrt(link.rate / 2)
        weight = -link.size * link.rate / link.scaled.sigma
        return link.here, link.radius * spread, link.drift, weight, link.size * spread

    def step(self, model, x, memory, row, key):
        node, early, keep, weight, fresh = row
        before, behind = jax.random.split(key)
        moved = combine((1.0, x), (early, gaussian(x, before)))
        noise = model.noise(moved, node)
        return combine((keep, moved), (weight, noise), (fresh, gaussian(x, behind))), memory


def theory_schedule(num_steps: int, c0: float = 2.0, c1: float = 4.0) -> DiscreteSchedule:
    """The chain of T steps for which rates are proved,

    $$b_1 = T^{-c_0}, \\qquad b_t = \\tfrac{c_1 \\log T}{T}
    \\min\\Big(b_1 \\big(1 + \\tfrac{c_1 \\log T}{T}\\big)^t, 1\\Big), \\quad t \\ge 2.$$

    With `linspaced(schedule, num_steps)` sampling visits every node and ends without noise. The
    proofs ask for large constants; large ones need many steps.

    **Arguments:**

    - `num_steps`: T, at least 2.
    - `c0`, `c1`: constants, positive.

    **Raises:** `ValueError` if constants are not positive or $c_1 \\log T/T$ is not below 1.

    **Reference:** Li, Huang, Efimov, Wei, Chi, Chen, Accelerating Convergence of Score-Based
    Diffusion Models, Provably, 2024, arXiv:2403.03852.
    """
    checks.count("num_steps", num_steps, 2)
    checks.positive("c0", c0)
    checks.positive("c1", c1)
    growth = c1 * np.log(num_steps) / num_steps
    if growth >= 1:
        raise ValueError(f"c1 log(T) / T must be below 1, got {growth} for T = {num_steps}")
    first = float(num_steps) ** -c0
    with np.errstate(over="ignore"):
        betas = growth * np.minimum(first * (1 + growth) ** np.arange(1.0, num_steps + 1), 1.0)
    betas[0] = first
    return DiscreteSchedule(betas)
