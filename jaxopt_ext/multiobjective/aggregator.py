"""The contract of aggregators of gradients."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..core import checks, rows
from ..core.gram import combine, gram


class AbstractJacobianAggregator(eqx.Module):
    """A rule that makes one row of the rows of a Jacobian.

    Unlike the aggregators of `jaxopt_ext.distributed`, which look for what most rows agree on and
    drop the others, these look for a row that serves every objective.
    """

    @abc.abstractmethod
    def aggregate(self, jacobian: PyTree[Array], key: PRNGKeyArray | None) -> PyTree[Array]:
        """See `__call__`."""

    def __call__(self, jacobian: PyTree[Array], key: PRNGKeyArray | None = None) -> PyTree[Array]:
        """One row.

        **Arguments:**

        - `jacobian`: leaves stacked on a leading axis of $m \\ge 1$, a gradient a row.
        - `key`: for rules that draw.

        **Raises:** `ValueError` without rows, or if the key is missing.
        """
        rows.check(jacobian)
        return self.aggregate(jacobian, key)


class AbstractWeighting(AbstractJacobianAggregator):
    """A rule $J \\mapsto J^\\top w$ whose weights depend on the Gram matrix alone, $G = JJ^\\top$,
    and so can be found without storing $J$."""

    @abc.abstractmethod
    def weights(
        self, G: Float[Array, "m m"], key: PRNGKeyArray | None = None
    ) -> Float[Array, " m"]:
        """$w$. It is not meant to be differentiated.

        **Arguments:**

        - `G`: the Gram matrix.
        - `key`: for rules that draw.
        """

    def aggregate(self, jacobian, key):
        return combine(jacobian, self.weights(gram(jacobian), key))


def normalized(G: Float[Array, "m m"], norm_eps: Float[Array, ""]) -> Float[Array, "m m"]:
    """$G$ over its trace; zero where that is below `norm_eps`."""
    trace = jnp.trace(G)
    # Written so that NaN stays NaN.
    small = trace < norm_eps
    return jnp.where(small | (trace == 0), 0, G / jnp.where(trace == 0, 1, trace))


def average(G: Float[Array, "m m"]) -> Float[Array, " m"]:
    """Equal weights of sum one."""
    return jnp.full_like(G[0], 1 / len(G))


def require_key(rule: AbstractJacobianAggregator, key: PRNGKeyArray | None) -> PRNGKeyArray:
    """Raise `ValueError` unless there is a key."""
    if key is None:
        raise ValueError(f"{type(rule).__name__} draws: give it a key")
    return key


def check_tolerances(norm_eps: Array, reg_eps: Array | None = None) -> None:
    """Raise `ValueError` on negative ones."""
    checks.nonnegative("norm_eps", norm_eps)
    if reg_eps is not None:
        checks.nonnegative("reg_eps", reg_eps)
