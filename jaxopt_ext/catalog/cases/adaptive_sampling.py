"""Samples of a small network, with steps chosen on the way."""

import numpy as np

from ...diffusion import DPMSolverAdaptive, VariancePreserving, sample_adaptive
from .small_sampling import AbstractSmallSampling


class AdaptiveSamplingCase(AbstractSmallSampling):
    """Steps of orders 1 and 2, against a loop over them."""

    def call(self, *arguments):
        x, matrix = arguments
        done = sample_adaptive(
            self.model(matrix), DPMSolverAdaptive(2), VariancePreserving(end=0.01), x
        )
        return done.value, done.evaluations

    def reference(self, *arguments):
        x, matrix = (np.asarray(a, np.float64) for a in arguments)

        def node(log_snr):
            rest = np.log1p(np.exp(-2 * log_snr))  # -2 log alpha
            return np.exp(-rest / 2), np.sqrt(-np.expm1(-rest))

        def noise(x, log_snr):
            return np.tanh(x @ matrix) * node(log_snr)[1]

        def log_snr(t):
            log_alpha = -0.25 * 19.9 * t**2 - 0.05 * t
            return log_alpha - 0.5 * np.log(-np.expm1(2 * log_alpha))

        here, end, before, h, steps = log_snr(1.0), log_snr(0.01), x, 0.05, 0
        while here < end:
            h = min(h, end - here)
            (a, _), (b, c), (d, e) = node(here), node(here + h / 2), node(here + h)
            first = noise(x, here)
            inner = b / a * x - c * np.expm1(h / 2) * first
            low = d / a * x - e * np.expm1(h) * first
            high = low - e * np.expm1(h) * (noise(inner, here + h / 2) - first)
            size = np.maximum(0.0078, 0.05 * np.maximum(np.abs(low), np.abs(before)))
            error = np.sqrt(np.mean(((high - low) / size) ** 2, axis=1)).max()
            steps += 1
            if error <= 1:
                x, before = high, low
                here = end if h == end - here else here + h
            h *= 0.9 / np.sqrt(error)
        return x, np.asarray(2 * steps)
