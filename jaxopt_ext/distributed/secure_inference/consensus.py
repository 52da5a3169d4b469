"""Which replicas agree."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ...core import checks


class Agreement(eqx.Module):
    """What replicas agree on.

    **Attributes:**

    - `value`: the mean over those that agree; NaN if `accepted` is false. Of `SampleConsensus` the
      samples of the medoid.
    - `accepted`: whether enough agree.
    - `members`: who agrees; the others are reported.
    - `medoid`: whom they agree with.
    """

    value: Array
    accepted: Bool[Array, ""]
    members: Bool[Array, " m"]
    medoid: Int[Array, ""]


class Consensus(eqx.Module):
    """The mean of the outputs that lie within a tolerance of the medoid, the output whose distances
    to all others, in the maximum norm, have the least sum.

    A replica that is not finite agrees with nobody.

    **Arguments:**

    - `tolerance`: the largest distance; $10^{-4} \\max |o|$ of the medoid if `None`, which is more
      than the order of a sum makes in single precision.
    - `quorum`: how many must agree; $\\lfloor 2m/3 \\rfloor + 1$ if `None`.
    - `throw`: whether too few raise at run time.

    **Raises:** `ValueError` if `tolerance` is negative, or the quorum is not more than half of the
    replicas, when called.

    **Reference:** Zhang, Zhao, Angione, Yang, Buban, Farhan, Johnston, Colangelo, Towards Secure
    and Private AI: A Framework for Decentralized Inference, 2024, arXiv:2407.19401.
    """

    tolerance: float | None = None
    quorum: int | None = eqx.field(static=True, default=None)
    throw: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if self.tolerance is not None:
            checks.nonnegative("tolerance", self.tolerance)

    def __call__(self, outputs: Float[Array, "m *shape"]) -> Agreement:
        """The agreement of outputs that are stacked over the replicas."""
        m = len(outputs)
        rows = outputs.reshape(m, -1)
        distances = jax.vmap(lambda a: jnp.max(jnp.abs(a - rows), axis=1))(rows)
        finite = jnp.all(jnp.isfinite(rows), axis=1)
        medoid = _medoid(distances, finite)
        tolerance = self.tolerance
        if tolerance is None:
            # Of the medoid: a bad replica could make that of all as large as it likes.
            tolerance = 1e-4 * jnp.max(jnp.abs(rows[medoid]))
        members = finite & finite[medoid] & (distances[medoid] <= tolerance)
        accepted = jnp.sum(members) >= _quorum(self.quorum, m)
        total = jnp.sum(jnp.where(members[:, None], rows, 0), axis=0)
        mean = (total / jnp.sum(members).astype(rows.dtype)).reshape(outputs.shape[1:])
        if self.throw:
            mean = eqx.error_if(mean, ~accepted, "too few replicas agree")
        value = jnp.where(accepted, mean, jnp.nan)
        return Agreement(value, accepted, members, medoid)


class AbstractStatistic(eqx.Module):
    """A distance between two sets of samples."""

    @abc.abstractmethod
    def __call__(self, a: Array, b: Array) -> Float[Array, ""]:
        """The distance of the empirical distributions."""


class TotalVariation(AbstractStatistic):
    """Half of the sum of differences of frequencies, for samples 0, ..., `categories` - 1."""

    categories: int = eqx.field(static=True)

    def __call__(self, a, b):
        count = lambda s: jnp.mean(s[:, None] == jnp.arange(self.categories), axis=0)
        return 0.5 * jnp.sum(jnp.abs(count(a) - count(b)))


class KolmogorovSmirnov(AbstractStatistic):
    """The largest difference of the distribution functions, for real samples."""

    def __call__(self, a, b):
        points = jnp.concatenate([a, b])
        below = lambda s: jnp.searchsorted(jnp.sort(s), points, side="right") / len(s)
        return jnp.max(jnp.abs(below(a) - below(b)))


class SampleConsensus(eqx.Module):
    """Agreement of replicas that draw their outputs: those whose samples a permutation test does
    not tell from the medoid's.

    **Arguments:**

    - `statistic`: `TotalVariation` or `KolmogorovSmirnov`.
    - `level`: of each test; an honest replica is left out with this probability.
    - `permutations`: for each test; at least 1 / `level` - 1, or it never rejects.
    - `quorum`: how many must agree; $\\lfloor 2m/3 \\rfloor + 1$ if `None`.

    **Raises:** `ValueError` for too few permutations, or a quorum of not more than half of the
    replicas, when called.

    **Reference:** Good, Permutation Tests, 2000.
    """

    statistic: AbstractStatistic
    level: float = eqx.field(static=True, default=0.01)
    permutations: int = eqx.field(static=True, default=199)
    quorum: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        checks.interval("level", self.level, 0, 1, open_low=True, open_high=True)
        checks.count("permutations", self.permutations)
        if (self.permutations + 1) * self.level < 1:
            raise ValueError(f"{self.permutations} permutations cannot reject at {self.level}")

    def __call__(self, samples: Array, key: PRNGKeyArray) -> Agreement:
        """The agreement of samples of shape `(m, n)`; `key` draws the permutations."""
        m, n = samples.shape
        pairs = jax.vmap(jax.vmap(self.statistic, (None, 0)), (0, None))(samples, samples)
        finite = jnp.all(jnp.isfinite(samples), axis=1)
        medoid = _medoid(pairs, finite)

        def agrees(other, key):
            pool = jnp.concatenate([samples[medoid], other])
            draw = lambda key: jax.random.permutation(key, pool)
            shuffled = jax.vmap(draw)(jax.random.split(key, self.permutations))
            drawn = jax.vmap(lambda s: self.statistic(s[:n], s[n:]))(shuffled)
            # Rounding must not tell a value from itself.
            seen = self.statistic(samples[medoid], other) - 1e-6
            return (1 + jnp.sum(drawn >= seen)) / (self.permutations + 1) > self.level

        tested = jax.vmap(agrees)(samples, jax.random.split(key, m))
        members = finite & finite[medoid] & tested
        accepted = jnp.sum(members) >= _quorum(self.quorum, m)
        return Agreement(samples[medoid], accepted, members, medoid)


def _medoid(distances, finite):
    # A sum of distances must not overflow, or all outputs would be as far.
    largest = jnp.finfo(distances.dtype).max / len(distances)
    counted = jnp.where(finite[:, None] & finite, jnp.minimum(distances, largest), 0)
    return jnp.argmin(jnp.where(finite, jnp.sum(counted, axis=1), jnp.inf))


def _quorum(quorum: int | None, m: int) -> int:
    quorum = 2 * m // 3 + 1 if quorum is None else quorum
    if not m < 2 * quorum <= 2 * m:
        raise ValueError(f"quorum must be more than half of {m} replicas, got {quorum}")
    return quorum
