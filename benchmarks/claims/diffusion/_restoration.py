"""Digits with their exact denoiser, and how well what was hidden is restored: what the claims of
guided samplers share."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_ext import diffusion

SCHEDULE = diffusion.VariancePreserving()
WIDTH = 0.25
PRIOR, NUM = 900, 64


def images(seed: int, num: int = NUM):
    """A batch, of at most `NUM`, that the prior has not seen: of the training images behind it for
    the first four seeds, which settings are chosen on, of the test images for those from 10."""
    data = diffusion.digits()
    pool = data.train[PRIOR:] if seed < 10 else data.test
    first = NUM * (seed % 10)
    return jnp.asarray(pool[first : first + num])


def points_denoiser(points, width: float) -> diffusion.Denoiser:
    """The exact denoiser of equal Gaussians about many points, by matrix products; samples may have
    any shape of the points' size."""
    points = jnp.asarray(points).reshape(len(points), -1)
    squares = jnp.sum(points**2, -1)

    def data(x, node):
        flat = x.reshape(-1, points.shape[1])
        variance = node.alpha**2 * width**2 + node.sigma**2
        logits = (node.alpha * flat @ points.T - 0.5 * node.alpha**2 * squares) / variance
        pull = node.alpha * width**2 / variance
        mean = jax.nn.softmax(logits) @ points
        return ((1 - pull * node.alpha) * mean + pull * flat).reshape(x.shape)

    return diffusion.Denoiser(data, diffusion.Data())


def box():
    """All but the middle of 4 by 4 pixels is seen."""
    return np.pad(np.zeros((4, 4), bool), 2, constant_values=True)


def some(seed: int, share: float = 0.3):
    """This share of the pixels is seen."""
    order = np.random.default_rng(1000 + seed).permutation(64)
    return (order < round(share * 64)).reshape(8, 8)


def psnr(found, wanted, where=None) -> float:
    """Ratio of the range, 2, to the error, in dB; of the pixels `where` it is true."""
    gap = np.asarray(found) - np.asarray(wanted)
    gap = gap if where is None else gap[:, where]
    return float(10 * np.log10(4 / np.mean(gap**2)))
