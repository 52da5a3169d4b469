"""Projected sampling with steps that are taken back and taken again."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core import checks, loops
from .consistency import AbstractConsistency, Projection
from .ddim import DDIM
from .denoiser import combine
from .measurement import AbstractMeasurement, Measured
from .posterior import AbstractGuidedSampler, noised
from .sampler import AbstractSampler, gaussian


class RePaint(AbstractGuidedSampler):
    r"""Each step is taken `repeats` times, with noise between that leads back to its beginning,

    $$x_t = C(x'(x_s), y_t), \qquad
    x_s \leftarrow \tfrac{\alpha_s}{\alpha_t} x_t
      + \sqrt{\sigma_s^2 - (\tfrac{\alpha_s}{\alpha_t}\sigma_t)^2}\, z,$$

    so that what was not measured comes to fit what was. No gradient is taken; with one repeat it
    is the projected sampler.

    **Arguments:**

    - `measurement`, `y`, `sampler`, `consistency`, `batch_ndim`: as in `MCG`.
    - `repeats`: how often a step is taken.

    **Raises:** `ValueError` if `repeats` is no positive number; `TypeError` for objects of other
    kinds.

    **Reference:** Lugmayr, Danelljan, Romero, Yu, Timofte, Van Gool, RePaint: Inpainting using
    Denoising Diffusion Probabilistic Models, 2022, arXiv:2201.09865.
    """

    measurement: AbstractMeasurement
    y: Measured
    sampler: AbstractSampler = DDIM(eta=1.0)
    repeats: int = eqx.field(static=True, default=20)
    consistency: AbstractConsistency = Projection()
    batch_ndim: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        checks.count("repeats", self.repeats)
        checks.instance("consistency", self.consistency, AbstractConsistency, "Projection()")

    @property
    def stochastic(self):
        return True

    def evaluations(self, num_steps):
        return self.repeats * self.sampler.evaluations(num_steps)

    def guide(self, model, x, here, there, advance, key):
        def agree(x, y, key):
            y = noised(self.measurement, x, y, there, key)
            return self.consistency.impose(self.measurement, x, y, there)

        back = here.alpha / there.alpha
        fresh = jnp.sqrt(jnp.maximum(here.sigma**2 - (back * there.sigma) ** 2, 0))

        def once(x, key):
            step, measured, again = jax.random.split(key, 3)
            new, memory = advance(model, x, step)
            new = self.each(agree)(new, self.y, self.keys(measured))
            new = jax.tree.map(lambda a, b: a.astype(b.dtype), new, x)
            return combine((back, new), (fresh, gaussian(x, again))), (new, memory)

        _, out = loops.scan(once, x, jax.random.split(key, self.repeats))
        return jax.tree.map(lambda a: a[-1], out)
