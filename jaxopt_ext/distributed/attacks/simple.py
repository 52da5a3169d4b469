"""Attacks without a memory."""

import statistics

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core import Scalar, checks, scalar_field
from ...core.rows import average
from .attack import AbstractAttack, deviation, repeated


class SignFlip(AbstractAttack):
    """Each bad node sends $-c$ times its own good message.

    **Arguments:**

    - `f`: the number of bad nodes; static.
    - `scale`: $c > 0$.

    **Reference:** Li, Xu, Chen, Giannakis, Ling, RSA: Byzantine-Robust Stochastic Aggregation
    Methods for Distributed Learning from Heterogeneous Datasets, 2019, arXiv:1811.03761.
    """

    f: int = eqx.field(static=True)
    scale: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.count("f", self.f, 0)
        checks.positive("scale", self.scale)

    def send(self, good, key, state, own):
        return -self.scale.astype(own.dtype) * own


class InnerProduct(AbstractAttack):
    """All send $-\\epsilon$ times the mean of the good messages (IPM, fall of empires).

    A small $\\epsilon$ hides among the good; with $\\epsilon > (m - f)/f$ the mean of all is
    reversed.

    **Arguments:**

    - `f`: the number of bad nodes; static.
    - `epsilon`: $\\epsilon > 0$.

    **Reference:** Xie, Koyejo, Gupta, Fall of Empires: Breaking Byzantine-tolerant SGD by Inner
    Product Manipulation, 2019, arXiv:1903.03936.
    """

    f: int = eqx.field(static=True)
    epsilon: Scalar = scalar_field(0.1)

    def __check_init__(self):
        checks.count("f", self.f, 0)
        checks.positive("epsilon", self.epsilon)

    def send(self, good, key, state, own):
        return repeated(-self.epsilon.astype(good.dtype) * average(good), self.f)


class ALIE(AbstractAttack):
    """A little is enough: all send $\\mu - z \\sigma$, with mean and deviation of the good messages
    by coordinates.

    Unless given, $z = \\Phi^{-1}\\bigl(\\frac{m - f - s}{m - f}\\bigr)$ with
    $s = \\lfloor m/2 + 1 \\rfloor - f$ good nodes to win over for a majority. It is negative for
    small $f$.

    **Arguments:**

    - `f`: the number of bad nodes; static.
    - `z`: `None` for the above.

    **Raises:** `ValueError` when called with fewer than two good messages, which have no
    deviation, or so few nodes that $s = m - f$.

    **Reference:** Baruch, Baruch, Goldberg, A Little Is Enough: Circumventing Defenses For
    Distributed Learning, 2019, arXiv:1902.06156.
    """

    f: int = eqx.field(static=True)
    z: Scalar | None = eqx.field(
        default=None, converter=lambda z: None if z is None else checks.scalar(z)
    )

    def __check_init__(self):
        checks.count("f", self.f, 0)

    def check(self, good):
        AbstractAttack.check(self, good)
        if good < 2:
            raise ValueError(f"ALIE needs two good rows for a deviation, got {good}")
        if self.z is None:
            self.quantile(good)

    def quantile(self, good: int) -> float:
        """The $z$ for so many good nodes."""
        s = (good + self.f) // 2 + 1 - self.f
        if not 0 < good - s < good:
            raise ValueError(
                f"ALIE has no z for f = {self.f}, m = {good + self.f}: it needs "
                f"{s} of {good} good rows for a majority"
            )
        return statistics.NormalDist().inv_cdf((good - s) / good)

    def send(self, good, key, state, own):
        z = self.quantile(len(good)) if self.z is None else self.z
        row = average(good) - jnp.asarray(z, good.dtype) * deviation(good)
        return repeated(row, self.f)


class Gaussian(AbstractAttack):
    """Each sends normal noise of mean zero.

    **Arguments:**

    - `f`: the number of bad nodes; static.
    - `scale`: its standard deviation, $> 0$.

    **Reference:** Blanchard, El Mhamdi, Guerraoui, Stainer, Machine Learning with Adversaries:
    Byzantine Tolerant Gradient Descent, 2017, arXiv:1703.02757.
    """

    f: int = eqx.field(static=True)
    scale: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.count("f", self.f, 0)
        checks.positive("scale", self.scale)

    def send(self, good, key, state, own):
        if key is None:
            raise ValueError("Gaussian draws at random and needs a key")
        noise = jax.random.normal(key, own.shape, own.dtype)
        return self.scale.astype(own.dtype) * noise


class NonFinite(AbstractAttack):
    """All send NaN, or an infinity, in all coordinates.

    **Arguments:**

    - `f`: the number of bad nodes; static.
    - `value`: what they send; static.

    **Reference:** Blanchard, El Mhamdi, Guerraoui, Stainer, Machine Learning with Adversaries:
    Byzantine Tolerant Gradient Descent, 2017, arXiv:1703.02757, for nodes that send anything.
    """

    f: int = eqx.field(static=True)
    value: float = eqx.field(static=True, default=float("nan"))

    def __check_init__(self):
        checks.count("f", self.f, 0)
        if abs(self.value) < float("inf"):
            raise ValueError(f"value must not be finite, got {self.value}")

    def send(self, good, key, state, own):
        return jnp.full_like(own, self.value)
