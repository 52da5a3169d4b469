"""Samples of a small network, by rounds over a window of steps."""

import numpy as np

from ...diffusion import DDIM, VariancePreserving, sample_parallel, uniform_time
from .small_sampling import AbstractSmallSampling

_STEPS = 10


class ParallelSamplingCase(AbstractSmallSampling):
    """Settled rounds of DDIM, against the steps one after the other."""

    def call(self, *arguments):
        x, matrix = arguments
        schedule = VariancePreserving(end=0.01)
        times = uniform_time(schedule, _STEPS)
        return sample_parallel(self.model(matrix), DDIM(), schedule, times, x, 6, tol=0.0).value

    def reference(self, *arguments):
        x, matrix = (np.asarray(a, np.float64) for a in arguments)
        t = np.linspace(1.0, 0.01, _STEPS + 1)
        alpha = np.exp(-0.25 * 19.9 * t**2 - 0.05 * t)
        sigma = np.sqrt(1 - alpha**2)
        for j in range(_STEPS):
            noise = np.tanh(x @ matrix) * sigma[j]
            data = (x - sigma[j] * noise) / alpha[j]
            x = alpha[j + 1] * data + sigma[j + 1] * noise
        return x
