"""What a linear predictor says about a target: the loss it is fitted with, the prediction, the
score."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ..core import Scalar, checks, scalar_field
from ..core.objectives import (
    AbstractLinearLoss,
    HuberLoss,
    LogisticLoss,
    MulticlassLogisticLoss,
    PoissonLoss,
    SquaredLoss,
)


class AbstractResponse(eqx.Module):
    """The distribution of a target given $z = x^\\top w + b$."""

    @property
    def outputs(self) -> tuple[int, ...]:
        """Shape of $z$ for one row: `()` or `(classes,)`."""
        return ()

    @abc.abstractmethod
    def loss(self, X: Float[Array, "n d"], y: Shaped[Array, " n"]) -> AbstractLinearLoss:
        """The loss of these data."""

    @abc.abstractmethod
    def predict(self, z: Float[Array, "n *k"]) -> Shaped[Array, " n"]:
        """The most likely target, or its mean."""

    @abc.abstractmethod
    def score(
        self, z: Float[Array, "n *k"], y: Shaped[Array, " n"], weights: Float[Array, " n"]
    ) -> Float[Array, ""]:
        """Higher is better, 1 is perfect; weights sum to one."""

    def target(self, y: Shaped[Array, " n"], dtype) -> Shaped[Array, " n"]:
        """The targets in the type that the loss takes; raises on values that make no sense."""
        checks.finite("y", y)
        return y.astype(dtype)


def _explained(residuals, y, weights):
    """One minus the ratio of the residuals' square to that of the targets around their mean."""
    spread = y - jnp.sum(weights * y)
    return 1 - jnp.sum(weights * residuals**2) / jnp.sum(weights * spread**2)


class Continuous(AbstractResponse):
    """Real targets with squared errors; the score is $R^2$."""

    def loss(self, X, y):
        return SquaredLoss(X, y)

    def predict(self, z):
        return z

    def score(self, z, y, weights):
        return _explained(y - z, y, weights)


class Robust(AbstractResponse):
    """Real targets with Huber's loss, linear beyond `delta`; the score is $R^2$.

    **Arguments:**

    - `delta`: where the loss turns linear, in units of the target.
    """

    delta: Scalar = scalar_field(1.35)

    def __check_init__(self):
        checks.positive("delta", self.delta)

    def loss(self, X, y):
        return HuberLoss(X, y, self.delta.astype(X.dtype))

    def predict(self, z):
        return z

    def score(self, z, y, weights):
        return _explained(y - z, y, weights)


class Binary(AbstractResponse):
    """Targets 0 and 1, logistic; the score is the accuracy."""

    def target(self, y, dtype):
        return _labels(y, 2).astype(dtype)

    def loss(self, X, y):
        return LogisticLoss(X, y)

    def predict(self, z):
        return (z > 0).astype(jnp.int32)

    def score(self, z, y, weights):
        return jnp.sum(weights * (self.predict(z) == y))

    def probabilities(self, z: Float[Array, " n"]) -> Float[Array, "n 2"]:
        """Of classes 0 and 1."""
        return jnp.stack([jax.nn.sigmoid(-z), jax.nn.sigmoid(z)], -1)


class Categorical(AbstractResponse):
    """Targets 0, ..., k - 1, multinomial logistic; the score is the accuracy.

    **Arguments:**

    - `num_classes`: k, at least 2.
    """

    num_classes: int = eqx.field(static=True)

    def __check_init__(self):
        checks.count("num_classes", self.num_classes, minimum=2)

    @property
    def outputs(self):
        return (self.num_classes,)

    def target(self, y, dtype):
        return _labels(y, self.num_classes)

    def loss(self, X, y):
        return MulticlassLogisticLoss(X, y)

    def predict(self, z):
        return jnp.argmax(z, -1).astype(jnp.int32)

    def score(self, z, y, weights):
        return jnp.sum(weights * (self.predict(z) == y))

    def probabilities(self, z: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """Of all classes."""
        return jax.nn.softmax(z, -1)


class Count(AbstractResponse):
    """Targets 0, 1, 2, ..., Poisson with logarithmic link; the score is the share of the deviance
    explained."""

    def target(self, y, dtype):
        checks.nonnegative("y", y)
        return y.astype(dtype)

    def loss(self, X, y):
        return PoissonLoss(X, y)

    def predict(self, z):
        return jnp.exp(z)

    def score(self, z, y, weights):
        def deviance(mean):
            log_ratio = jnp.where(y > 0, y * jnp.log(jnp.where(y > 0, y, 1) / mean), 0)
            return jnp.sum(weights * (log_ratio - y + mean))

        return 1 - deviance(jnp.exp(z)) / deviance(jnp.sum(weights * y))


def _labels(y, num_classes):
    if not checks.is_traced(y):
        found = np.unique(np.asarray(y))  # on the host: y may be a constant of what is traced
        if not set(found.tolist()) <= set(range(num_classes)):
            raise ValueError(f"y must hold classes 0 to {num_classes - 1}, got {found}")
        if len(found) < 2:
            raise ValueError(f"y must hold at least two classes, got {found} only")
    return y.astype(jnp.int32)
