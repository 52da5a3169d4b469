"""Exact inversion by two coupled chains."""

import math

from ..core import checks
from .denoiser import Sample, combine
from .inversion import AbstractInvertible, transfer
from .sampler import ends


class EDICT(AbstractInvertible):
    """Exact diffusion inversion via coupled transformations.

    Two chains x and y, which start at the same noise, take DDIM's steps each with the noise of the
    other, and are mixed so that they stay together,

    $$x' = k x + m\\, e(y, s), \\qquad y' = k y + m\\, e(x', s), \\qquad
    x_t = p x' + (1 - p) y', \\qquad y_t = p y' + (1 - p) x_t,$$

    with $k = \\alpha_t/\\alpha_s$, $m = \\sigma_t - k \\sigma_s$. Each line can be solved for what
    it replaced, so steps are undone exactly; rounding grows by $p^{-2}$ a step. Two evaluations a
    step, first order.

    **Arguments:**

    - `p`: $p \\in (0, 1]$; 1 does not mix.

    **Raises:** `ValueError` if `p` leaves its range.

    **Reference:** Wallace, Gokul, Naik, EDICT: Exact Diffusion Inversion via Coupled
    Transformations, 2023, arXiv:2211.12446.
    """

    p: float = 0.93

    def __check_init__(self):
        checks.interval("p", self.p, 0.0, 1.0, open_low=True)

    @property
    def reaches_zero(self):
        return True

    def growth(self, num_steps):
        return -2 * num_steps * math.log(self.p)

    def evaluations(self, num_steps):
        return 2 * num_steps

    def plan(self, schedule, times):
        here, there = ends(schedule, times)
        return here, *transfer(here, there)

    def start(self, model, x, node):
        return x

    def step(self, model, x, memory, row, key):
        here, keep, move = row
        y: Sample = memory
        x = combine((keep, x), (move, model.noise(y, here)))
        y = combine((keep, y), (move, model.noise(x, here)))
        x = combine((self.p, x), (1 - self.p, y))
        return x, combine((self.p, y), (1 - self.p, x))

    def undo(self, model, x, memory, row):
        here, keep, move = row
        weight = 1 / self.p, 1 - 1 / self.p
        y = combine((weight[0], memory), (weight[1], x))
        x = combine((weight[0], x), (weight[1], y))
        y = combine((1 / keep, y), (-move / keep, model.noise(x, here)))
        return combine((1 / keep, x), (-move / keep, model.noise(y, here))), y

    def enter(self, model, x, row):
        return x, x
