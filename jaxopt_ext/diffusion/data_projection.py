"""Sampling with a denoised estimate that is made to agree with a measurement."""

import equinox as eqx

from ..core import checks
from .consistency import AbstractConsistency, Projection
from .ddim import DDIM
from .denoiser import AbstractDenoiser, combine
from .measurement import AbstractMeasurement, Measured
from .posterior import AbstractGuidedSampler
from .sampler import AbstractSampler


class DataProjection(AbstractGuidedSampler):
    r"""The predicted data are projected before each step,
    $\hat x_0 \leftarrow (I - H^+ H) \hat x_0 + H^+ y$, and the noise follows from them.

    **Arguments:**

    - `measurement`, `y`, `sampler`, `consistency`, `batch_ndim`: as in `MCG`.

    **Raises:** `TypeError` for objects of other kinds.

    **Reference:** Wang, Yu, Zhang, Zero-Shot Image Restoration Using Denoising Diffusion
    Null-Space Model, 2023, arXiv:2212.00490.
    """

    measurement: AbstractMeasurement
    y: Measured
    sampler: AbstractSampler = DDIM(eta=1.0)
    consistency: AbstractConsistency = Projection()
    batch_ndim: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        checks.instance("consistency", self.consistency, AbstractConsistency, "Projection()")

    def guide(self, model, x, here, there, advance, key):
        return advance(_Imposed(model, self), x, key)


class _Imposed(AbstractDenoiser):
    model: AbstractDenoiser
    guided: DataProjection

    def data(self, x, node):
        own = self.guided
        impose = lambda m, y: own.consistency.impose(own.measurement, m, y, node)
        return own.each(impose)(self.model.data(x, node), own.y)

    def noise(self, x, node):
        return combine((1 / node.sigma, x), (-node.alpha / node.sigma, self.data(x, node)))
