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
from . import _data


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
    def constant(self, y: Shaped[Array, " n"], weights: Float[Array, " n"]) -> Float[Array, "*k"]:
        """The constant $z$ that fits best, or one near it: where a fit starts."""

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
        return _data.real("y", y, dtype)


def _mean(y, weights):
    return jnp.sum(weights * y)


def _explained(residuals, y, weights):
    """One minus the ratio of the residuals' square to that of the targets around their mean."""
    spread = y - _mean(y, weights)
    return 1 - jnp.sum(weights * residuals**2) / jnp.sum(weights * spread**2)


class Continuous(AbstractResponse):
    """Real targets with squared errors; the score is $R^2$."""

    def loss(self, X, y):
        return SquaredLoss(X, y)

    def constant(self, y, weights):
        return _mean(y, weights)

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

    def constant(self, y, weights):
        order = jnp.argsort(y)  # the median resists what the mean does not
        return y[order[jnp.searchsorted(jnp.cumsum(weights[order]), 0.5)]]

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

    def constant(self, y, weights):
        return jax.scipy.special.logit(_share(_mean(y, weights)))

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
        labels = _labels(y, self.num_classes)
        # Beyond the last class the loss is NaN.
        return jnp.where(jnp.isnan(labels), self.num_classes, labels).astype(jnp.int32)

    def loss(self, X, y):
        return MulticlassLogisticLoss(X, y)

    def constant(self, y, weights):
        shares = jnp.zeros(self.num_classes, weights.dtype).at[y].add(weights)
        return jnp.log(_share(shares))

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
        y = _data.real("y", y, dtype)
        checks.nonnegative("y", y)
        return _or_nan(y >= 0, y)

    def loss(self, X, y):
        return PoissonLoss(X, y)

    def constant(self, y, weights):
        mean = _mean(y, weights)
        return jnp.log(jnp.where(mean > 0, mean, 1e-3))

    def predict(self, z):
        return jnp.exp(z)

    def score(self, z, y, weights):
        def deviance(mean):
            log_ratio = jnp.where(y > 0, y * jnp.log(jnp.where(y > 0, y, 1) / mean), 0)
            return jnp.sum(weights * (log_ratio - y + mean))

        return 1 - deviance(jnp.exp(z)) / deviance(_mean(y, weights))


def _share(of_weight):
    """A class that is absent, from a fold say, must not start the fit at infinity."""
    return jnp.clip(of_weight, 1e-3, 1 - 1e-3)


def _labels(y, num_classes):
    """Class labels; raises on others, and where they are traced makes them NaN."""
    if jnp.iscomplexobj(y):
        raise TypeError(f"y must hold classes, got dtype {y.dtype}")
    if not checks.is_traced(y):
        found = np.unique(np.asarray(y))  # on the host: y may be a constant of what is traced
        if not set(found.tolist()) <= set(range(num_classes)):
            raise ValueError(f"y must hold classes 0 to {num_classes - 1}, got {found}")
        if len(found) < 2:
            raise ValueError(f"y must hold at least two classes, got {found} only")
    return _or_nan((y >= 0) & (y < num_classes) & (y == jnp.floor(y)), y)


def _or_nan(sensible, y):
    """What cannot be raised on shows in the status of the solve."""
    return jnp.where(sensible, y, jnp.nan)
