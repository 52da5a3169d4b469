"""Posterior sampling with diffusion models of latents."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import checks, tree
from .consistency import AbstractConsistency, Transpose, Unconstrained
from .ddim import DDIM
from .denoiser import Sample, combine
from .measurement import AbstractMeasurement, Measured
from .posterior import AbstractGuidedSampler, descent
from .sampler import AbstractSampler


class Autoencoder(eqx.Module):
    """Between images and their latents, one at a time.

    An encoder that draws gives its mean here; constants that scale latents belong into both.

    **Arguments:**

    - `encode`: E, an image to its latent.
    - `decode`: D, a latent to its image.

    **Raises:** `TypeError` if either is no function.
    """

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]

    def __check_init__(self):
        for name in ("encode", "decode"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function, got {getattr(self, name)!r}")


class PSLD(AbstractGuidedSampler):
    r"""Posterior sampling with latent diffusion. A step from s to t is one of the sampler in the
    latents, $z'$, then

    $$z_t = z' - \nabla_{z_s} \big(\omega \|A X - y\| + \gamma \|E(X^+) - \hat z_0\|\big),
    \qquad X = D(\hat z_0(z_s)), \quad X^+ = X + A^T (y - A X),$$

    with the gradient through encoder, decoder and network. Many latents have images with the
    measurement; the second term, the gluing, keeps to those that stay as they are where their image
    is made to agree and is encoded again. `posterior_sample` gives images.

    $A^T A$ should be a projector, as that of a mask is, so that gluing leaves the measured part as
    measured; for other operators, blur among them, `Projection()` glues by the pseudo-inverse.
    Without gluing, $\gamma = 0$, it is diffusion posterior sampling of latents; with
    `Unconstrained()` the second term is $\|E(D(\hat z_0)) - \hat z_0\|$, which is GML-DPS; with
    both weights 0 it is the sampler itself. Weights are those of a norm, and change with the size
    of the latents: 0.1 and 0.1 are the authors' choice for inpainting with an autoencoder that
    makes images four times smaller, 0.9 and 0.1 for super-resolution. Norms are each sample's own.

    Encoder and decoder are run again for their derivatives instead of kept; a network too large to
    be kept whole checkpoints its blocks itself.

    **Arguments:**

    - `measurement`: A, of one image.
    - `y`: what was measured, of one image, or with the leading axes of the latents.
    - `autoencoder`: an `Autoencoder`.
    - `omega`, `gamma`: $\omega, \gamma \ge 0$.
    - `sampler`: whose steps are guided; it must evaluate the model where its steps begin.
    - `squared`: squares of the norms instead, as in the paper's text; the norms are those of the
      authors' program. Where a norm is zero, so is its gradient.
    - `gluing`: `Transpose()`, `Projection()` or `Unconstrained()`.
    - `final`: what is imposed on the images at the end; `Projection()` pastes what was seen.
    - `batch_ndim`: how many leading axes of the latents count samples.

    **Raises:** `ValueError` if a weight is negative; `TypeError` for objects of other kinds.

    **Reference:** Rout, Raoof, Daras, Caramanis, Dimakis, Shakkottai, Solving Linear Inverse
    Problems Provably via Posterior Sampling with Latent Diffusion Models, 2023, arXiv:2307.00619.
    """

    measurement: AbstractMeasurement
    y: Measured
    autoencoder: Autoencoder
    omega: Float[Array, ""] | float = eqx.field(converter=checks.scalar, default=0.1)
    gamma: Float[Array, ""] | float = eqx.field(converter=checks.scalar, default=0.1)
    sampler: AbstractSampler = DDIM(eta=1.0)
    squared: bool = eqx.field(static=True, default=False)
    gluing: AbstractConsistency = Transpose()
    final: AbstractConsistency = Unconstrained()
    batch_ndim: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        checks.nonnegative("omega", self.omega)
        checks.nonnegative("gamma", self.gamma)
        checks.instance("autoencoder", self.autoencoder, Autoencoder, "Autoencoder(encode, decode)")
        checks.instance("gluing", self.gluing, AbstractConsistency, "Transpose()")
        checks.instance("final", self.final, AbstractConsistency, "Unconstrained()")

    def image(self, x):
        return self.autoencoder.decode(x)

    def guide(self, model, x, here, there, advance, key):
        def miss(latent):
            return jnp.sum(self.each(lambda z, y: self.misses(z, y, here))(latent, self.y))

        new, memory, slope = descent(model, x, here, miss, advance, key)
        return combine((1, new), (-1, slope)), memory

    def misses(self, latent: Sample, y: Measured, node) -> Array:
        r"""$\omega \|A X - y\| + \gamma \|E(X^+) - \hat z_0\|$ of one predicted latent."""
        image = jax.checkpoint(lambda z: self.autoencoder.decode(z))(latent)
        measured = combine((1, self.measurement.forward(image)), (-1, y))
        glued = self.gluing.impose(self.measurement, image, y, node)
        again = jax.checkpoint(lambda x: self.autoencoder.encode(x))(glued)
        moved = combine((1, again), (-1, latent))
        power = 2 if self.squared else 1
        return self.omega * tree.norm(measured) ** power + self.gamma * tree.norm(moved) ** power

    def finish(self, x, node):
        def one(latent, y):
            image = self.autoencoder.decode(latent)
            return self.final.impose(self.measurement, image, y, node)

        return self.each(one)(x, self.y)
