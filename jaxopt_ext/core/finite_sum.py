"""Means over samples, as problems that can be asked for minibatches.

Solvers that look at a part of the data see a problem through `draw`, `value`, `gradient`, `losses`,
`gradients`, `full_value`, `full_gradient` and `prox`, whether the data are a table (`FiniteSum`),
come from a distribution (`Expectation`), or are not looked at one by one at all (`minibatches`).
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from . import checks, rows, tree
from .natural import natural
from .problem import AbstractProblem, Composite, Constrained, Smooth
from .restricted import Restricted

Batch = PyTree
"""What `draw` returns: only the problem that drew it looks inside."""


class AbstractSampling(eqx.Module):
    """How the indices of a minibatch are drawn."""

    @abc.abstractmethod
    def __call__(self, key: PRNGKeyArray, n: int, b: int) -> Int[Array, " b"]:
        """`b` indices below `n`."""


class WithReplacement(AbstractSampling):
    """Each index is uniform, independently of the others."""

    def __call__(self, key, n, b):
        return jax.random.randint(key, (b,), 0, n, jnp.int32)


class WithoutReplacement(AbstractSampling):
    """No index twice. It is a permutation of all that is cut, so a draw costs $O(n)$.

    **Raises:** `ValueError` for more indices than there are.
    """

    def __call__(self, key, n, b):
        if b > n:
            raise ValueError(f"cannot draw {b} of {n} samples without replacement")
        return jax.random.permutation(key, n)[:b].astype(jnp.int32)


class AbstractExpectation(AbstractProblem):
    """Minimize $\\mathbb E_\\xi\\, \\ell(x, \\xi) + g(x)$ by looking at minibatches.

    `value` and its like are of the smooth part, the mean of the losses, without $g$. The same
    batch may be asked at several points. The residual is $x - \\mathrm{prox}_g(x - \\nabla f(x))$
    with the full gradient; what the implicit derivative is at a kink of $g$ is said at `Composite`.
    It is the derivative of the solution, and so means little at a point that a stochastic method
    with a constant step left far from it.
    """

    loss: eqx.AbstractVar[Callable[[PyTree[Array], PyTree], Float[Array, ""]]]
    nonsmooth: eqx.AbstractVar[Any]

    def __check_init__(self):
        if not callable(self.loss):
            raise TypeError(f"loss must be a function (x, sample) -> scalar, got {self.loss!r}")
        if self.nonsmooth is not None:
            checks.proximable("nonsmooth", self.nonsmooth)

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, b: int) -> Batch:
        """A batch of `b` samples; `b` is static and at least 1."""

    @abc.abstractmethod
    def samples(self, batch: Batch) -> PyTree[Array]:
        """The samples of a batch, stacked on the leading axis."""

    @abc.abstractmethod
    def full_value(self, x: PyTree[Array]) -> Float[Array, ""]:
        """$f(x) = \\mathbb E\\, \\ell(x, \\xi)$."""

    @abc.abstractmethod
    def full_gradient(self, x: PyTree[Array]) -> PyTree[Array]:
        """$\\nabla f(x)$."""

    def losses(self, x: PyTree[Array], batch: Batch) -> Float[Array, " b"]:
        """The loss of each sample."""
        return jax.vmap(lambda sample: self.loss(x, sample))(self.samples(batch))

    def value(self, x: PyTree[Array], batch: Batch) -> Float[Array, ""]:
        """The mean loss over a batch."""
        return jnp.mean(self.losses(x, batch))

    def gradient(self, x: PyTree[Array], batch: Batch) -> PyTree[Array]:
        """The gradient of the mean loss over a batch."""
        return tree.gradient(lambda x: self.value(x, batch), x)

    def gradients(self, x: PyTree[Array], batch: Batch) -> PyTree[Array]:
        """The gradient of each loss, stacked on a new leading axis."""
        one = lambda sample: tree.gradient(lambda x: self.loss(x, sample), x)
        return jax.vmap(one)(self.samples(batch))

    def prox(self, x: PyTree[Array], step: Any = 1.0) -> PyTree[Array]:
        """The prox of $g$; the identity without one."""
        return x if self.nonsmooth is None else self.nonsmooth.prox(x, step)

    def objective(self, x: PyTree[Array]) -> Float[Array, ""]:
        """$f(x) + g(x)$."""
        value = self.full_value(x)
        return value if self.nonsmooth is None else value + self.nonsmooth(x)

    def restrict(self, rest):
        return dataclasses.replace(self, loss=Restricted(self.loss, rest))

    def residual(self, x):
        return natural(self.nonsmooth, x, self.full_gradient(x))

    def tags(self):
        return frozenset({lx.symmetric_tag}) if self.nonsmooth is None else frozenset()


def _check_loss(problem, x, sample):
    checks.objective("loss", lambda x: problem.loss(x, sample), x)
    if problem.nonsmooth is not None:
        checks.shaped_like("the prox of nonsmooth", jax.eval_shape(problem.prox, x), x)


class FiniteSum(AbstractExpectation):
    """Minimize a mean over the rows of a table, $\\min_x \\frac1n \\sum_i \\ell(x, d_i) + g(x)$.

    A batch is an array of indices, shape `(b,)`, so that methods may keep a table of their own.
    Full sums go through the data `chunk` rows at a time, forward and in derivatives, and so need
    the memory of one chunk.

    **Arguments:**

    - `loss`: $\\ell$, `(x, sample) -> scalar`, of one sample.
    - `data`: a pytree of arrays, stacked on the leading axis $n$.
    - `nonsmooth`: $g$, a function of `jaxopt_ext.prox`; `None` for zero.
    - `sampling`: how minibatches are drawn, `WithReplacement()` or `WithoutReplacement()`.
    - `chunk`: rows of a full sum that are looked at together; `None` for all of them, which data
      that are cut over devices ask for.

    **Raises:** `ValueError` on data without a common leading axis of at least 1.
    """

    loss: Callable[[PyTree[Array], PyTree], Float[Array, ""]]
    data: PyTree[Array]
    nonsmooth: Any = None
    sampling: AbstractSampling = WithReplacement()
    chunk: int | None = eqx.field(static=True, default=4096)

    def __check_init__(self):
        checks.instance("sampling", self.sampling, AbstractSampling, "WithReplacement()")
        if self.chunk is not None:
            checks.count("chunk", self.chunk)
        rows.check(self.data)

    @property
    def n(self) -> int:
        """The number of samples."""
        return rows.count(self.data)

    def draw(self, key, b):
        checks.count("b", b)
        return self.sampling(key, self.n, b)

    def samples(self, batch):
        return rows.take(self.data, batch)

    def full_value(self, x):
        return rows.mean(lambda part: self._total(x, part), self.data, self.chunk)

    def full_gradient(self, x):
        total = lambda part: tree.gradient(lambda x: self._total(x, part), x)
        return rows.mean(total, self.data, self.chunk)

    def _total(self, x, part):
        return jnp.sum(jax.vmap(lambda sample: self.loss(x, sample))(part))

    def check(self, x):
        _check_loss(self, x, rows.first(self.data))


class Expectation(AbstractExpectation):
    """Minimize an expectation, $\\min_x \\mathbb E_\\xi\\, \\ell(x, \\xi) + g(x)$, by sampling.

    A batch is what `sampler` returns.

    **Arguments:**

    - `loss`: $\\ell$, `(x, sample) -> scalar`, of one sample.
    - `sampler`: `(key, b) -> samples`, stacked on the leading axis `b`; pure.
    - `nonsmooth`: $g$, a function of `jaxopt_ext.prox`; `None` for zero.
    - `mean`: $f$, `x -> scalar`, the expectation itself where it is known. Without it there is no
      residual, so no implicit derivative, and methods that ask for full gradients raise.

    **Raises:** `ValueError` where the full objective is asked for and was not given.
    """

    loss: Callable[[PyTree[Array], PyTree], Float[Array, ""]]
    sampler: Callable[[PRNGKeyArray, int], PyTree[Array]]
    nonsmooth: Any = None
    mean: Callable[[PyTree[Array]], Float[Array, ""]] | None = None

    def draw(self, key, b):
        checks.count("b", b)
        return self.sampler(key, b)

    def samples(self, batch):
        return batch

    def full_value(self, x):
        return self._full()(x)

    def full_gradient(self, x):
        return tree.gradient(self._full(), x)

    def _full(self):
        if self.mean is None:
            raise ValueError("this Expectation has no mean: give the full objective as mean=")
        return self.mean

    def restrict(self, rest):
        mean = None if self.mean is None else Restricted(self.mean, rest)
        return dataclasses.replace(self, loss=Restricted(self.loss, rest), mean=mean)

    def check(self, x):
        sample = jax.eval_shape(
            lambda key: jax.tree.map(lambda leaf: leaf[0], self.sampler(key, 1)), jax.random.key(0)
        )
        _check_loss(self, x, tree.zeros_of(sample))
        if self.mean is not None:
            checks.objective("mean", self.mean, x)


class Deterministic(eqx.Module):
    """A problem with one smooth part, asked as if it were a mean: each batch is all of it.

    **Arguments:**

    - `fun`: the smooth part.
    - `nonsmooth`: the other, or `None`.
    """

    fun: Callable[[PyTree[Array]], Float[Array, ""]]
    nonsmooth: Any = None

    def draw(self, key: PRNGKeyArray, b: int) -> None:
        """Nothing: there are no samples."""
        checks.count("b", b)

    def full_value(self, x: PyTree[Array]) -> Float[Array, ""]:
        """$f(x)$."""
        return self.fun(x)

    def full_gradient(self, x: PyTree[Array]) -> PyTree[Array]:
        """$\\nabla f(x)$."""
        return tree.gradient(self.fun, x)

    def value(self, x: PyTree[Array], batch: None = None) -> Float[Array, ""]:
        """$f(x)$."""
        return self.fun(x)

    def gradient(self, x: PyTree[Array], batch: None = None) -> PyTree[Array]:
        """$\\nabla f(x)$."""
        return self.full_gradient(x)

    def losses(self, x: PyTree[Array], batch: None = None) -> Float[Array, " 1"]:
        """$f(x)$ as the one loss there is."""
        return self.fun(x)[None]

    def gradients(self, x: PyTree[Array], batch: None = None) -> PyTree[Array]:
        """The one gradient there is, on a leading axis."""
        return jax.tree.map(lambda g: g[None], self.full_gradient(x))

    def prox(self, x: PyTree[Array], step: Any = 1.0) -> PyTree[Array]:
        """The prox of the other part."""
        return x if self.nonsmooth is None else self.nonsmooth.prox(x, step)


def minibatches(problem: AbstractProblem) -> AbstractExpectation | Deterministic:
    """A problem as one that can be asked for minibatches.

    **Arguments:**

    - `problem`: a `FiniteSum` or an `Expectation`, returned as they are; or a `Smooth`,
      `Composite` or `Constrained`, of which each batch is the whole.

    **Raises:** `TypeError` for anything else.
    """
    match problem:
        case AbstractExpectation():
            return problem
        case Smooth():
            return Deterministic(problem.fun)
        case Composite():
            return Deterministic(problem.smooth, problem.nonsmooth)
        case Constrained():
            return Deterministic(problem.smooth, problem.feasible)
    raise TypeError(f"no minibatches of a {type(problem).__name__}")
