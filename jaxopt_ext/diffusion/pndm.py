"""Pseudo numerical methods: classical combinations of outputs, moved along by DDIM."""

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, Float

from ..core import checks, loops
from .denoiser import AbstractDenoiser, Sample, combine
from .exponential import derivatives, empty, weighted
from .sampler import AbstractSampler, ends
from .schedules import Coefficients, Node, Times


class AbstractStarter(eqx.Module):
    """How the first steps go, when there is no history: each place in a step is reached along the
    output at the place before, the end along a combination of all."""

    @property
    @abc.abstractmethod
    def places(self) -> tuple[float, ...]:
        """Where between the ends of a step outputs are taken, from 0 to 1."""

    @property
    @abc.abstractmethod
    def weights(self) -> Float[np.ndarray, " p"]:
        """The combination of outputs that moves to the end."""

    @abc.abstractmethod
    def steps(self, order: int) -> int:
        """How many steps go this way before a multistep rule of this order."""


class RungeKutta(AbstractStarter):
    """The classical fourth-order rule, in each step until the history is full."""

    @property
    def places(self):
        return (0.0, 0.5, 0.5, 1.0)

    @property
    def weights(self):
        return np.array([1, 2, 2, 1]) / 6

    def steps(self, order):
        return order - 1


class ImprovedEuler(AbstractStarter):
    """The improved Euler rule in the first step, then multistep rules of rising order."""

    @property
    def places(self):
        return (0.0, 1.0)

    @property
    def weights(self):
        return np.array([0.5, 0.5])

    def steps(self, order):
        return 1


class PNDM(AbstractSampler):
    """Pseudo numerical methods for diffusion models on manifolds.

    A classical method on $dx/dt$ leaves the points that the network was trained on. These split it:
    outputs $e$ are combined as in the classical method, and a step goes along the combination as
    DDIM goes along one output,

    $$x_t = \\varphi(x_s, \\bar e, s, t) = \\tfrac{\\alpha_t}{\\alpha_s} x_s
    + \\big(\\sigma_t - \\tfrac{\\alpha_t}{\\alpha_s} \\sigma_s\\big) \\bar e.$$

    The first steps combine outputs inside the step, at $s$, $\\tfrac{s+t}2$ and $t$, each at the
    point where $\\varphi$ takes the output before; all others those of the steps before by the
    Adams-Bashforth rule, of order 4 say

    $$\\bar e = \\tfrac1{24} (55 e_s - 59 e_{-1} + 37 e_{-2} - 9 e_{-3}).$$

    F-PNDM is `PNDM()`, N + 9 evaluations in N steps. S-PNDM is `PNDM(2, ImprovedEuler())`, N + 1.
    `PNDM(4, ImprovedEuler())` is what latent diffusion models call PLMS. The rules hold for equally
    spaced times; $\\varphi$ limits the order of convergence to two. Every one is exact for a
    constant output.

    **Arguments:**

    - `order`: order of the multistep rule, from 2 to 4.
    - `starter`: how the first steps go, `RungeKutta()` or `ImprovedEuler()`.
    - `variable`: weigh outputs by the integral over the step of the polynomial in time through
      them, which is the rule above where times are equally spaced, and keeps its order elsewhere.

    **Raises:** `ValueError` if `order` leaves its range, or, in `sample`, if there are fewer steps
    than `order`; `TypeError` if `starter` is none.

    **Reference:** Liu, Ren, Lin, Zhao, Pseudo Numerical Methods for Diffusion Models on Manifolds,
    2022, arXiv:2202.09778.
    """

    order: int = 4
    starter: AbstractStarter = eqx.field(default_factory=RungeKutta)
    variable: bool = False

    def __check_init__(self):
        checks.count("order", self.order, 2)
        if self.order > 4:
            raise ValueError(f"order must be at most 4, got {self.order}")
        checks.instance("starter", self.starter, AbstractStarter, "RungeKutta()")

    @property
    def reaches_zero(self):
        return True  # the last step is no first one

    def evaluations(self, num_steps):
        return num_steps + _extra(self.starter, self.order)

    def plan(self, schedule, times):
        here, _ = ends(schedule, times)
        rule = _rule(self.starter, self.order, times, self.variable)
        nodes = schedule.nodes(rule.times)
        keep = nodes.alpha / here.alpha[:, None]
        return _rows(rule, nodes, keep, nodes.sigma - here.sigma[:, None] * keep)

    def start(self, model, x, node):
        return empty(x, self.order - 1)

    def step(self, model, x, memory, row, key):
        return _step(model, x, memory, row)


class _Slope(NamedTuple):
    """A node, and what $dx/dt$ is there, $p x + q e$."""

    node: Node
    linear: Coefficients
    noise: Coefficients


class _Slopes(AbstractDenoiser):
    """A model whose noise, at a `_Slope` in place of its node, is $dx/dt$."""

    model: AbstractDenoiser

    def noise(self, x, node: Any):
        return combine((node.linear, x), (node.noise, self.model.noise(x, node.node)))

    def data(self, x, node: Any):
        return self.model.data(x, node.node)


class FON(AbstractSampler):
    """The classical fourth-order numerical method on the probability-flow equation: what PNDM is
    measured against,

    $$\\frac{dx}{dt} = \\frac{\\alpha'}{\\alpha} x
    + \\Big(\\sigma' - \\frac{\\alpha'}{\\alpha} \\sigma\\Big) e,$$

    three steps of the classical Runge-Kutta rule, then the Adams-Bashforth rule of order 4;
    N + 9 evaluations in N steps of equal length in time. Of order 4 where the schedule is smooth;
    but the slope grows without bound near the data, so that few steps are not enough.

    **Arguments:**

    - `width`: the time over which derivatives of the schedule are taken, by differences backwards;
      1 / N for a chain of N steps.

    **Raises:** `ValueError` if `width` is not positive, or, in `sample`, if there are fewer than
    four steps.

    **Reference:** Liu, Ren, Lin, Zhao, Pseudo Numerical Methods for Diffusion Models on Manifolds,
    2022, arXiv:2202.09778.
    """

    width: float = 1e-5

    def __check_init__(self):
        checks.positive("width", self.width)

    def evaluations(self, num_steps):
        return num_steps + _extra(RungeKutta(), 4)

    def plan(self, schedule, times):
        here, _ = ends(schedule, times)
        rule = _rule(RungeKutta(), 4, times, False)
        slope = lambda f: _backward(f, rule.times, self.width)
        nodes = schedule.nodes(rule.times)
        decay = slope(schedule.log_alpha)
        slopes = _Slope(nodes, decay, slope(schedule.sigma) - decay * nodes.sigma)
        return _rows(rule, slopes, np.ones_like(nodes.t), nodes.t - here.t[:, None])

    def start(self, model, x, node):
        return empty(x, 3)

    def step(self, model, x, memory, row, key):
        return _step(_Slopes(model), x, memory, row)


class _Rule(NamedTuple):
    """How outputs are combined, whatever they are, and however a step goes along them."""

    starting: Bool[np.ndarray, " n"]
    times: Float[np.ndarray, "n p"]
    within: Float[np.ndarray, " p"]
    across: Float[np.ndarray, "n q"]


class _Stage(NamedTuple):
    """A place in a step: the point $\\kappa x_s + w f$ with the output f before, the node of its
    own output, and what this counts for in the end."""

    node: Any
    keep: Coefficients
    weight: Any
    share: Any


class _Row(NamedTuple):
    """A step to $\\kappa x_s + \\sum_j w_j f_j$, of the outputs at the places inside it, or of the
    first of these and those of the steps before."""

    starting: Any
    node: Any
    keep: Coefficients
    share: Any
    inner: _Stage
    weights: Coefficients


def _extra(starter: AbstractStarter, order: int) -> int:
    """Evaluations of a run beyond one for each step."""
    return starter.steps(order) * (len(starter.places) - 1)


def _rule(starter: AbstractStarter, order: int, times: Times, variable: bool) -> _Rule:
    times = np.asarray(times, np.float64)
    steps = len(times) - 1
    if steps < order:
        raise ValueError(f"needs at least {order} steps, its order, got {steps}")
    length = np.diff(times)
    weights = np.zeros((steps, order))
    equal = [adams(-np.arange(p)) for p in range(1, order + 1)]
    for k in range(steps):
        p = min(k + 1, order)
        before = k - np.arange(p)
        rule = adams((times[before] - times[k]) / length[k]) if variable else equal[p - 1]
        weights[k, :p] = rule
    inner = times[:-1, None] + length[:, None] * np.asarray(starter.places)
    inner[:, -1] = times[1:]
    return _Rule(np.arange(steps) < starter.steps(order), inner, starter.weights, weights)


def adams(places: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
    """Weights of outputs at $t + r_j h$ in the mean over the step from $t$ to $t + h$ of the
    polynomial through them."""
    means = [1 / math.factorial(k + 1) for k in range(len(places))]
    return np.asarray(means) @ derivatives(places)


def _rows(rule: _Rule, nodes: Any, keep: Any, move: Any) -> _Row:
    """Rows of a run from how a step's beginning (`keep`) and an output (`move`) act at each place
    in it, the last of which is its end."""
    tree = lambda a: jax.tree.map(lambda leaf: leaf[:, a], nodes)
    end = move[:, -1:]
    shares = end * rule.within
    inner = _Stage(tree(slice(1, None)), keep[:, 1:], move[:, 1:], shares[:, 1:])
    weights = end * rule.across
    return _Row(rule.starting, tree(0), keep[:, -1], shares[:, 0], inner, weights)


def _step(model: AbstractDenoiser, x: Sample, memory: tuple, row: _Row):
    first = model.noise(x, row.node)

    def within():
        # a loop, so that the model is compiled once for all stages
        def stage(carry, now):
            last, end = carry
            new = model.noise(combine((now.keep, x), (now.weight, last)), now.node)
            return (new, combine((1, end), (now.share, new))), None

        start = first, combine((row.keep, x), (row.share, first))
        return loops.scan(stage, start, row.inner)[0][1]

    outputs = (first, *memory)
    across = lambda: weighted(row.keep, x, row.weights, outputs)
    return loops.cond(row.starting, within, across), outputs[:-1]


def _backward(f, t: np.ndarray, width: float) -> np.ndarray:
    """df/dt of second order by differences backwards: no later times are asked for."""
    return (3 * f(t) - 4 * f(t - width) + f(t - 2 * width)) / (2 * width)
