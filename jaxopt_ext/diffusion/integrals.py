"""Integrals of the exponential integrators whose linear part comes from a model's statistics."""

import math
from typing import Any, NamedTuple

import numpy as np

from .model_statistics import ModelStatistics
from .schedules import Coefficients

_FINER, _LEAST = 4, 2000  # points of quadrature: for each level of the statistics, and in all


class Move(NamedTuple):
    """$x_t = \\kappa x_s + o + \\sum_j w_j f_j$, coordinate by coordinate."""

    keep: Coefficients
    offset: Coefficients
    weights: Coefficients


class Integrals:
    """The integrals between the levels of a run, each from the beginning of a step, where
    exponents are small."""

    def __init__(self, statistics: ModelStatistics, levels: Any):
        points = max(len(statistics.log_snr) * _FINER, _LEAST)
        inner = (statistics.log_snr > levels[0]) & (statistics.log_snr < levels[-1])
        even = np.linspace(levels[0], levels[-1], points)
        self.grid = np.union1d(np.concatenate([statistics.log_snr[inner], even]), levels)
        self.at: Any = np.searchsorted(self.grid, levels)
        self.levels = levels
        l, s, self.offset = statistics.at(self.grid)
        self.linear = l[self.at]
        self.gaps = np.diff(self.grid).reshape(-1, *[1] * (l.ndim - 1))
        self.L, self.S = self.rising(l), self.rising(s)

    def rows(self, count):
        """Room for the weights of so many outputs."""
        return np.zeros((count, *self.linear.shape[1:]))

    def rising(self, values, first=0):
        """Integrals up to each point of the grid, from the point `first`, by trapezoids."""
        gaps = self.gaps[first : first + len(values) - 1]
        parts = 0.5 * gaps * (values[1:] + values[:-1])
        return np.concatenate([np.zeros_like(values[:1]), np.cumsum(parts, 0)])

    def carried(self, here, to):
        """$W$ at another level of the run, from `here`."""
        low, high = sorted((self.at[here], self.at[to]))
        part = slice(low, high + 1)
        inner = np.exp(self.S[self.at[here]] - self.S[part]) * self.offset[part]
        return np.sign(to - here) * self.rising(inner, low)[-1]

    def step(self, nodes, end, scale, rows, room) -> Move:
        """The step from the level of the first of `nodes` to `end`, by the outputs at `nodes`.

        **Arguments:**

        - `nodes`, `end`: places in `levels`.
        - `scale`: $\\alpha_t/\\alpha_s$ and $\\alpha_t$.
        - `rows`: weights of the outputs in the derivatives of orders 0, 1, ..., shape `(k, n)`.
        - `room`: how many weights there are, those of `nodes` first.
        """
        here = nodes[0]
        start, part = self.at[here], slice(self.at[here], self.at[end] + 1)
        apart = (self.grid[part] - self.levels[here]).reshape(-1, *[1] * (self.linear.ndim - 1))
        S = self.S[part] - self.S[start]
        growth = np.exp(self.L[part] - self.L[start] + S)
        total = lambda values: self.rising(values, start)[-1]
        W = self.rising(np.exp(-S) * self.offset[part], start)
        constant = total(growth * W)
        weights = self.rows(room)
        for k in range(len(rows)):
            moment = total(growth * apart**k / math.factorial(k))
            for q, node in enumerate(nodes):
                share = rows[k, q] * moment
                weights[q] += share * np.exp(self.S[start] - self.S[self.at[node]])
                if node != here:
                    constant = constant - share * self.carried(here, node)
        decay = np.exp(self.L[start] - self.L[self.at[end]])
        keep, size = (a * decay for a in scale)
        return Move(keep, -size * constant, -size * weights)
