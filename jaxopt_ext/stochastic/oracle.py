"""What stochastic methods ask of a problem: gradients of batches and of all, and their price."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import (
    AbstractExpectation,
    AbstractProblem,
    Expectation,
    FiniteSum,
    checks,
    minibatches,
    tree,
)
from ..core.confirm import confirmed, unknown
from ..core.finite_sum import Deterministic
from ..core.natural import natural

Oracle = AbstractExpectation | Deterministic
"""What `minibatches` makes of a problem."""


class Measurement(eqx.Module):
    """A gradient, whether it is that of the whole problem, and the samples it took."""

    gradient: PyTree[Array]
    exact: Bool[Array, ""]
    samples: Int[Array, ""]


def population(oracle: Oracle) -> int:
    """How many samples a full gradient takes: $n$ of a `FiniteSum`, and 1 where there are none."""
    return oracle.n if isinstance(oracle, FiniteSum) else 1


def root_of_population(oracle: Oracle, name: str) -> int:
    """$\\lceil \\sqrt n \\rceil$, the usual size of small batches and periods.

    **Raises:** `ValueError` for an `Expectation`, which has no $n$.
    """
    if isinstance(oracle, AbstractExpectation) and not isinstance(oracle, FiniteSum):
        raise ValueError(f"an Expectation has no number of samples: give {name}=")
    return math.isqrt(population(oracle) - 1) + 1


def measure(oracle: Oracle, x: PyTree[Array], b: int | None, key: PRNGKeyArray) -> Measurement:
    """The gradient at `x` over a new batch of `b` samples, or of all for `None`."""
    if b is None or isinstance(oracle, Deterministic):
        gradient, exact, samples = oracle.full_gradient(x), True, population(oracle)
    else:
        gradient, exact, samples = oracle.gradient(x, oracle.draw(key, b)), False, b
    return Measurement(gradient, jnp.asarray(exact), jnp.asarray(samples, jnp.int32))


def change(
    oracle: Oracle, x: PyTree[Array], before: PyTree[Array], b: int, key: PRNGKeyArray
) -> tuple[PyTree[Array], PyTree[Array], int]:
    """Gradients at two points over one batch, and the per-sample gradients that this took."""
    batch = oracle.draw(key, b)
    samples = 2 if isinstance(oracle, Deterministic) else 2 * b
    return oracle.gradient(x, batch), oracle.gradient(before, batch), samples


def smooth_oracle(problem: AbstractProblem) -> Oracle:
    """The oracle of a problem without a nonsmooth part.

    **Raises:** `TypeError` for one that has it.
    """
    oracle = minibatches(problem)
    if oracle.nonsmooth is not None:
        raise TypeError(
            f"a {type(problem).__name__} without a nonsmooth part is needed, got "
            f"{oracle.nonsmooth!r}"
        )
    return oracle


def stationarity(oracle: Oracle, x: PyTree[Array], gradient: PyTree[Array]) -> Float[Array, ""]:
    """$\\|x - \\mathrm{prox}_g(x - \\nabla f)\\|$, the norm of the residual if `gradient` is
    that of the whole problem."""
    return tree.norm(natural(oracle.nonsmooth, x, gradient))


def latest(
    error: Float[Array, ""], last: Float[Array, ""], exact: Bool[Array, ""], tol: Float[Array, ""]
) -> Float[Array, ""]:
    """The error of a step: the residual's norm where it was measured, the last one that was
    elsewhere, which does not pass though the tolerance may be a new one."""
    stale = jnp.where((last > tol) & jnp.isfinite(last), last, unknown(last.dtype))
    return jnp.where(exact, error.astype(last.dtype), stale)


def asked(
    problem: AbstractProblem,
    x: PyTree[Array],
    size: Float[Array, ""],
    last: Float[Array, ""],
    tol: Float[Array, ""],
) -> Float[Array, ""]:
    """The error of a method that has an estimate of the residual's norm and no full gradient: where
    the estimate passes, the residual is asked. Not at all with a tolerance of zero, or if the
    problem has none."""
    if isinstance(problem, Expectation) and problem.mean is None:
        return jnp.where(jnp.isfinite(size), unknown(size.dtype), size)
    size = jnp.where(tol > 0, size, jnp.maximum(size, jnp.finfo(size.dtype).tiny))
    return confirmed(problem, x, size, last, tol)


def rate_field(default: Any = None) -> Any:
    """A positive number, or a schedule `step -> number` such as those of `optax`."""
    options = {} if default is None else {"default": default}
    return eqx.field(converter=lambda v: v if callable(v) else checks.scalar(v), **options)


def check_rate(name: str, rate: Any) -> None:
    """Raise `ValueError` for a number that is not positive."""
    if not callable(rate):
        checks.positive(name, rate)


def rate_at(rate: Any, count: Int[Array, ""], dtype: Any) -> Float[Array, ""]:
    """The value of a rate at a step."""
    return jnp.asarray(rate(count) if callable(rate) else rate, dtype)
