"""Guidance and thresholding: models made of models."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..core import checks
from .denoiser import AbstractDenoiser, AbstractPrediction, Denoiser, Noise, Sample, combine
from .schedules import Node


class _Rule(eqx.Module):
    """How far guidance goes, at which levels, and what happens to the size of its result."""

    scale: Float[Array, ""] | float
    interval: tuple[float, float]
    rescale: float
    batch_ndim: int

    def mix(self, conditional: Sample, unconditional: Sample, node: Node) -> Sample:
        ratio = node.sigma / node.alpha
        inside = (ratio >= self.interval[0]) & (ratio <= self.interval[1])
        scale = jnp.where(inside, self.scale, 1.0)
        mixed = combine((scale, conditional), (1 - scale, unconditional))
        if self.rescale == 0:
            return mixed

        def leaf(guided, plain):
            axes = tuple(range(self.batch_ndim, guided.ndim))
            size = lambda a: jnp.std(a, axis=axes, keepdims=True)
            wide = size(guided)
            factor = jnp.where(wide > 0, size(plain) / jnp.where(wide > 0, wide, 1), 1)
            return guided * (self.rescale * factor + 1 - self.rescale)

        return jax.tree.map(leaf, mixed, conditional)


def _rule(scale, interval, rescale, batch_ndim):
    checks.finite("scale", scale)
    checks.interval("rescale", rescale, 0.0, 1.0)
    low, high = interval
    if not 0 <= low < high:
        raise ValueError(f"interval must hold levels 0 <= low < high, got {interval}")
    checks.count("batch_ndim", batch_ndim, 0)
    return _Rule(scale, (low, high), rescale, batch_ndim)


class Guided(AbstractDenoiser):
    """Guidance of one model by another,

    $$\\hat\\epsilon = \\hat\\epsilon_u + w (\\hat\\epsilon_c - \\hat\\epsilon_u).$$

    With $w = 1$ it is the conditional model, with $w = 0$ the unconditional one. Both are called;
    where one network serves for both, `ClassifierFree` calls it once.

    **Arguments:**

    - `conditional`, `unconditional`: the models.
    - `scale`: $w$.
    - `interval`: levels $\\sigma/\\alpha$ between which models are guided; outside it the
      conditional model is used.
    - `rescale`: $\\phi \\in [0, 1]$, how far the standard deviation of each sample's predicted
      noise is brought back to that of the conditional model.
    - `batch_ndim`: how many leading axes count samples; used by `rescale`.

    **Raises:** `TypeError` if a model is missing; `ValueError` if numbers leave their ranges.

    **Reference:** Ho, Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598; Lin,
    Liu, Li, Yang, Common Diffusion Noise Schedules and Sample Steps are Flawed, 2024,
    arXiv:2305.08891 (`rescale`); Kynkäänniemi, Aittala, Karras, Laine, Aila, Lehtinen, Applying
    Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models,
    2024, arXiv:2404.07724 (`interval`).
    """

    conditional: AbstractDenoiser
    unconditional: AbstractDenoiser
    rule: _Rule

    def __init__(
        self,
        conditional: AbstractDenoiser,
        unconditional: AbstractDenoiser,
        scale: float,
        *,
        interval: tuple[float, float] = (0.0, math.inf),
        rescale: float = 0.0,
        batch_ndim: int = 1,
    ):
        for name, model in (("conditional", conditional), ("unconditional", unconditional)):
            if not isinstance(model, AbstractDenoiser):
                raise TypeError(f"{name} must be a Denoiser, got {model!r}")
        self.conditional, self.unconditional = conditional, unconditional
        self.rule = _rule(scale, interval, rescale, batch_ndim)

    def noise(self, x, node):
        return self.rule.mix(
            self.conditional.noise(x, node), self.unconditional.noise(x, node), node
        )

    def data(self, x, node):
        return Noise().data(self.noise(x, node), x, node)


class ClassifierFree(AbstractDenoiser):
    """Guidance by one network that takes a condition, evaluated once on both conditions,

    $$\\hat\\epsilon = \\hat\\epsilon(x, \\varnothing)
    + w (\\hat\\epsilon(x, c) - \\hat\\epsilon(x, \\varnothing)).$$

    **Arguments:**

    - `network`: `(x, node, condition) -> output`.
    - `condition`, `null`: $c$ and $\\varnothing$, pytrees of arrays of the same shapes.
    - `scale`, `interval`, `rescale`, `batch_ndim`: as in `Guided`.
    - `predicts`: what the network predicts.

    **Raises:** `ValueError` if the two conditions do not match.

    **Reference:** Ho, Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598.
    """

    network: Callable[[Sample, Node, PyTree[Array]], Sample]
    conditions: PyTree[Array]
    predicts: AbstractPrediction
    rule: _Rule

    def __init__(
        self,
        network,
        condition: PyTree[Array],
        null: PyTree[Array],
        scale: float,
        *,
        predicts: AbstractPrediction | None = None,
        interval: tuple[float, float] = (0.0, math.inf),
        rescale: float = 0.0,
        batch_ndim: int = 1,
    ):
        shapes = lambda tree: jax.tree.map(jnp.shape, tree)
        if shapes(condition) != shapes(null):
            raise ValueError(
                f"condition and null must have the same shapes, got {shapes(condition)} and "
                f"{shapes(null)}"
            )
        self.network, self.predicts = network, Noise() if predicts is None else predicts
        self.conditions = jax.tree.map(lambda *leaves: jnp.stack(leaves), condition, null)
        self.rule = _rule(scale, interval, rescale, batch_ndim)

    def noise(self, x, node):
        def one(condition):
            inner = lambda x, node: self.network(x, node, condition)
            return Denoiser(inner, self.predicts).noise(x, node)

        both = jax.vmap(one)(self.conditions)
        part = lambda i: jax.tree.map(lambda a: a[i], both)
        return self.rule.mix(part(0), part(1), node)

    def data(self, x, node):
        return Noise().data(self.noise(x, node), x, node)


class Thresholded(AbstractDenoiser):
    """Dynamic thresholding: predicted data of each sample are cut off and scaled back,

    $$q = \\max(\\text{quantile}_p |\\hat x_0|, 1), \\qquad
    \\hat x_0 \\leftarrow \\text{clip}(\\hat x_0, -q, q)/q,$$

    and the noise follows from them.

    **Arguments:**

    - `model`: the model.
    - `ratio`: p.
    - `floor`: the smallest q, the range of the data; 1 above.
    - `batch_ndim`: how many leading axes count samples.

    **Raises:** `ValueError` if `ratio` or `floor` leave their ranges.

    **Reference:** Saharia et al., Photorealistic Text-to-Image Diffusion Models with Deep Language
    Understanding, 2022, arXiv:2205.11487.
    """

    model: AbstractDenoiser
    ratio: float = 0.995
    floor: float = 1.0
    batch_ndim: int = 1

    def __check_init__(self):
        checks.interval("ratio", self.ratio, 0.0, 1.0)
        checks.positive("floor", self.floor)
        checks.count("batch_ndim", self.batch_ndim, 0)

    def data(self, x, node):
        def leaf(a):
            axes = tuple(range(self.batch_ndim, a.ndim))
            bound = jnp.abs(a)
            if axes:
                bound = jnp.quantile(bound, self.ratio, axis=axes, keepdims=True)
            bound = jnp.maximum(bound, jnp.asarray(self.floor, a.dtype)).astype(a.dtype)
            return jnp.clip(a, -bound, bound) / bound

        return jax.tree.map(leaf, self.model.data(x, node))

    def noise(self, x, node):
        return combine((1 / node.sigma, x), (-node.alpha / node.sigma, self.data(x, node)))
