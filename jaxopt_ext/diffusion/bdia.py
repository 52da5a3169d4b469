"""Bi-directional integration approximation: a sampler whose steps are undone exactly."""

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np

from ..core import checks
from .denoiser import AbstractDenoiser, Sample, combine
from .inversion import AbstractInvertible, transfer
from .schedules import Coefficients, Node


class Neighbours(NamedTuple):
    """Numbers of a step at node i: how moves to the nodes behind (i + 1) and ahead (i - 1) weigh
    the point and its noise; and $\\gamma$ and $1/\\gamma$, zero in the first step."""

    behind: Node
    here: Node
    ahead: Node
    keep_behind: Coefficients
    move_behind: Coefficients
    keep_ahead: Coefficients
    move_ahead: Coefficients
    gamma: Coefficients
    inverse: Coefficients


class AbstractIncrement(eqx.Module):
    """A method of one step: where a point at node i is taken at the nodes beside it."""

    @property
    @abc.abstractmethod
    def calls(self) -> int:
        """Evaluations of both moves together."""

    @property
    def reaches_zero(self) -> bool:
        """Whether the node ahead may be one without noise."""
        return False

    @abc.abstractmethod
    def moves(self, model: AbstractDenoiser, z: Sample, row: Neighbours) -> tuple[Sample, Sample]:
        """The points at the node ahead and at the node behind."""


class EulerIncrement(AbstractIncrement):
    """DDIM's move, with one output for both sides."""

    @property
    def calls(self):
        return 1

    @property
    def reaches_zero(self):
        return True

    def moves(self, model, z, row):
        noise = model.noise(z, row.here)
        return (
            combine((row.keep_ahead, z), (row.move_ahead, noise)),
            combine((row.keep_behind, z), (row.move_behind, noise)),
        )


class HeunIncrement(AbstractIncrement):
    """Heun's move ahead, and behind either Euler's with the same slope or Heun's too.

    With Euler's behind, the rule is of first order for any $\\gamma > 0$, less exact than `Heun`
    itself; with Heun's it is of second order, for one more evaluation.

    **Arguments:**

    - `both`: whether the move behind is Heun's.
    """

    both: bool = False

    @property
    def calls(self):
        return 3 if self.both else 2

    def moves(self, model, z, row):
        first = model.noise(z, row.here)

        def heun(keep, move, node):
            second = model.noise(combine((keep, z), (move, first)), node)
            return combine((keep, z), (0.5 * move, first), (0.5 * move, second))

        ahead = heun(row.keep_ahead, row.move_ahead, row.ahead)
        if self.both:
            return ahead, heun(row.keep_behind, row.move_behind, row.behind)
        return ahead, combine((row.keep_behind, z), (row.move_behind, first))


class BDIA(AbstractInvertible):
    """Bi-directional integration approximation.

    Let $F(i \\to j \\mid z_i)$ be where DDIM takes a point from node i to node j, with the noise
    $e(z_i, i)$ for any j. The first step is DDIM's; then

    $$z_{i-1} = F(i \\to i - 1 \\mid z_i)
    + \\gamma \\big( z_{i+1} - F(i \\to i + 1 \\mid z_i) \\big),$$

    one evaluation a step. It is solved for $z_{i+1}$ by the same $e(z_i, i)$,

    $$z_{i+1} = F(i \\to i + 1 \\mid z_i)
    + \\big( z_{i-1} - F(i \\to i - 1 \\mid z_i) \\big) / \\gamma,$$

    so that two neighbouring points give all others, up to rounding that grows by $1/\\gamma$ a
    step; see `encode`, `decode` and `invert`. `gamma=0` is DDIM; `gamma=1` is symmetric, of second
    order, and what to invert with; between, it is of first order with about
    $(1 - \\gamma)/(1 + \\gamma)$ times DDIM's error.

    Rounding is relative to the size of the points, so exact inversion is for schedules that
    preserve the variance. With `gamma=1` the difference of neighbouring points is not damped: when
    a condition changes on the way back, a smaller one, 0.96 say, keeps to the range of the data.

    **Arguments:**

    - `gamma`: $\\gamma \\in [0, 1]$.
    - `increment`: $F$; `EulerIncrement()` is DDIM's, `HeunIncrement()` makes it BDIA-EDM.

    **Raises:** `ValueError` if `gamma` leaves its range, or is 0 where steps are undone;
    `TypeError` if `increment` is none.

    **Reference:** Zhang, Lewis, Kleijn, Exact Diffusion Inversion via Bi-directional Integration
    Approximation, 2024, arXiv:2307.10829.
    """

    gamma: float = 0.5
    increment: AbstractIncrement = eqx.field(default_factory=EulerIncrement)

    def __check_init__(self):
        checks.interval("gamma", self.gamma, 0.0, 1.0)
        checks.instance("increment", self.increment, AbstractIncrement, "EulerIncrement()")

    @property
    def reaches_zero(self):
        return self.increment.reaches_zero

    @property
    def opening(self):
        return 1

    def growth(self, num_steps):
        if self.gamma == 0:
            raise ValueError("steps cannot be undone with gamma 0")
        return -num_steps * math.log(self.gamma)

    def evaluations(self, num_steps):
        return self.increment.calls * num_steps

    def plan(self, schedule, times):
        nodes = schedule.nodes(np.asarray(times, np.float64))
        part = lambda *index: Node(*(np.concatenate([a[i] for i in index]) for a in nodes))
        here, ahead = part(slice(0, -1)), part(slice(1, None))
        behind = part(slice(0, 1), slice(0, -2))  # the first has none, and stays where it is
        gamma = np.full(len(here.t), float(self.gamma))
        inverse = np.full(len(here.t), 1 / self.gamma if self.gamma else 0.0)
        gamma[0] = inverse[0] = 0.0
        moves = *transfer(here, behind), *transfer(here, ahead)
        return Neighbours(behind, here, ahead, *moves, gamma, inverse)

    def start(self, model, x, node):
        return x

    def step(self, model, x, memory: Any, row, key):
        ahead, behind = self.increment.moves(model, x, row)
        return combine((1, ahead), (row.gamma, combine((1, memory), (-1, behind)))), x

    def undo(self, model, x, memory, row):
        ahead, behind = self.increment.moves(model, memory, row)
        return memory, combine((1, behind), (row.inverse, combine((1, x), (-1, ahead))))

    def enter(self, model, x, row):
        # DDIM's move from the last node to the one before, with the noise of the last
        noise = model.noise(x, row.ahead)
        before = combine((1 / row.keep_ahead, x), (-row.move_ahead / row.keep_ahead, noise))
        return x, before
