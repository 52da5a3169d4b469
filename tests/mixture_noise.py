"""The exact noise of mixtures of Gaussians, from their density, in numpy: references of tests in
several files, which take no program."""

import numpy as np


def mixture_noise(x, alpha, sigma, means, scales):
    """Of samples `(n, d)` at a level; `means` `(k, d)` and `scales` `(k,)` of equally likely
    components."""
    variances = alpha**2 * scales**2 + sigma**2
    gaps = x[:, None] - alpha * means
    weights = np.exp(-0.5 * np.sum(gaps**2, -1) / variances) / variances ** (x.shape[1] / 2)
    weights /= weights.sum(1, keepdims=True)
    return sigma * np.sum((weights / variances)[..., None] * gaps, 1)
