"""Descent along an estimate of the gradient."""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import (
    AbstractProblem,
    AbstractSolver,
    Composite,
    Constrained,
    Expectation,
    FiniteSum,
    Scalar,
    Smooth,
    checks,
    minibatches,
    scalar_field,
    tree,
)
from ..core.confirm import unknown
from .estimators import AbstractEstimator, Estimate, Minibatch
from .oracle import (
    Oracle,
    check_rate,
    latest,
    rate_at,
    rate_field,
    stationarity,
)
from .outputs import AbstractOutput, Last, finished


class DescentState(eqx.Module):
    """State of a method that descends along an `Estimate`."""

    estimate: Estimate
    record: Any
    count: Int[Array, ""]
    error: Float[Array, ""]
    key: PRNGKeyArray

    @property
    def samples(self) -> Int[Array, ""]:
        """Per-sample gradients so far."""
        return self.estimate.samples


class AbstractEstimatedDescent(AbstractSolver[AbstractProblem, DescentState]):
    """A step along the estimate at the point, and a new estimate at the new one.

    So the gradient that a step needs is there when the error is asked. The error is the norm of the
    problem's residual wherever the estimate is a full gradient; between, it is that of the last
    one, and no solve ends. If there was none it is a number above every tolerance.
    """

    if TYPE_CHECKING:  # type checkers take equinox's abstract variables for fields
        step_size: ClassVar[Any]
        output: ClassVar[AbstractOutput]
    else:
        step_size: eqx.AbstractVar[Any]
        output: eqx.AbstractVar[AbstractOutput]

    def __check_init__(self):
        check_rate("step_size", self.step_size)
        checks.instance("output", self.output, AbstractOutput, "Last()")

    def oracle(self, problem: AbstractProblem) -> Oracle:
        """How the problem is asked."""
        return minibatches(problem)

    @abc.abstractmethod
    def estimated_by(self) -> AbstractEstimator:
        """The estimator."""

    @abc.abstractmethod
    def move(
        self, oracle: Oracle, x: PyTree[Array], gradient: PyTree[Array], step: Float[Array, ""]
    ) -> PyTree[Array]:
        """The next point."""

    def _error(self, oracle, x, estimate, last):
        size = stationarity(oracle, x, estimate.gradient)
        return latest(size, last, estimate.exact, jnp.asarray(self.tol, last.dtype))

    def init(self, problem, x, key):
        oracle, (first, key) = self.oracle(problem), jax.random.split(key)
        estimate = self.estimated_by().init(oracle, x, first)
        error = self._error(oracle, x, estimate, unknown(tree.real_dtype(x)))
        return DescentState(estimate, self.output.init(x), jnp.asarray(0, jnp.int32), error, key)

    def refresh(self, problem, x, state):
        """A new first estimate, as the problem may be a new one."""
        fresh = self.init(problem, x, state.key)
        where = lambda s: (s.record, s.count, s.estimate.samples)
        samples = state.samples + fresh.samples
        return eqx.tree_at(
            where,
            fresh,
            (state.record, state.count, samples),
            is_leaf=lambda leaf: leaf is None,
        )

    def step(self, problem, x, state):
        oracle = self.oracle(problem)
        draw, pick, key = jax.random.split(state.key, 3)
        dtype = state.error.dtype
        size = jnp.where(state.estimate.exact, state.error, jnp.inf)
        record = self.output.observe(state.record, x, size, jnp.ones((), dtype), pick)
        step = rate_at(self.step_size, state.count, dtype)
        new = tree.cast_like(self.move(oracle, x, state.estimate.gradient, step), x)
        estimate = self.estimated_by().update(oracle, new, x, state.estimate, draw)
        error = self._error(oracle, new, estimate, state.error)
        return new, DescentState(estimate, record, state.count + 1, error, key)

    def error(self, problem, x, state):
        return state.error

    def finish(self, problem, x, state):
        size = jnp.where(state.estimate.exact, state.error, jnp.inf)
        return finished(self.output, x, state, size, self.tol)


def descend(x: PyTree[Array], gradient: PyTree[Array], length: Float[Array, ""]) -> PyTree[Array]:
    """$x - t v$; not a number where the estimate's norm, and so `length`, is none."""
    return tree.axpy(x, -length, gradient)


def inverse_power(size: Float[Array, ""], power: Any) -> Float[Array, ""]:
    """$|v|^{-p}$; zero at zero, where there is nowhere to go, and not a number where the norm
    overflows."""
    positive = jnp.where(size > 0, size, 1)
    value = jnp.where(size > 0, positive ** -jnp.asarray(power, size.dtype), 0)
    return jnp.where(jnp.isfinite(size), value, jnp.nan)


class StochasticGradient(AbstractEstimatedDescent):
    """Stochastic proximal gradient descent with any estimator of the gradient,

    $$x_{k+1} = \\mathrm{prox}_{\\gamma g}(x_k - \\gamma v_k).$$

    With `estimators.Minibatch` it is SGD, with `SVRG`, `SPIDER`, `PAGE` or `STORM` the methods of
    these names. The state counts `samples`.

    A solve converges only where the estimate is a full gradient; with others it ends as
    `step_limit`. The implicit derivative is that of the solution, and means little at a point far
    from it.

    **Arguments:**

    - `step_size`: $\\gamma > 0$, or a schedule of the step's number.
    - `estimator`: see `estimators`.
    - `output`: which iterate is returned: `Last()`, `Average()`, `RandomIterate()`,
      `LeastGradient()`.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` on a step size that is not positive.

    **Reference:** Robbins, Monro, A Stochastic Approximation Method, 1951; of the estimators, see
    theirs.
    """

    step_size: Any = rate_field()
    estimator: AbstractEstimator = eqx.field(default_factory=Minibatch)
    output: AbstractOutput = eqx.field(default_factory=Last)
    tol: Scalar = scalar_field(0.0)
    max_steps: int = 1000
    problems = (Smooth, Composite, Constrained, FiniteSum, Expectation)

    def __check_init__(self):
        checks.instance("estimator", self.estimator, AbstractEstimator, "Minibatch(10)")

    def estimated_by(self):
        return self.estimator

    def move(self, oracle, x, gradient, step):
        return oracle.prox(descend(x, gradient, step), step)
