"""Problems with a problem inside: minimize over what solves another one."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from . import checks, rows, tree
from .finite_sum import AbstractSampling, WithReplacement
from .problem import AbstractProblem

Level = Callable[[PyTree[Array], PyTree[Array]], Float[Array, ""]]
SampledLevel = Callable[[PyTree[Array], PyTree[Array], PyTree], Float[Array, ""]]


class BilevelPoint(NamedTuple):
    """Upper and lower variables, and the multiplier of the lower level, shaped like `lower`."""

    upper: PyTree[Array]
    lower: PyTree[Array]
    multiplier: PyTree[Array]


class _Restricted(eqx.Module):
    """A function of two points, as one of their floating-point arrays."""

    function: Callable[..., Float[Array, ""]]
    upper: PyTree
    lower: PyTree

    def __call__(self, x, y, *args):
        return self.function(eqx.combine(x, self.upper), eqx.combine(y, self.lower), *args)


def _restricted(problem, rest, *names):
    if not isinstance(rest, BilevelPoint):
        raise TypeError(
            f"a {type(problem).__name__} over points that hold more than floating-point arrays "
            "starts from BilevelPoint(upper, lower, multiplier)"
        )
    functions = {n: _Restricted(getattr(problem, n), rest.upper, rest.lower) for n in names}
    return dataclasses.replace(problem, **functions)


def _start(x):
    if isinstance(x, tuple) and not isinstance(x, BilevelPoint) and len(x) == 2:
        upper, lower = x
        return BilevelPoint(upper, lower, jax.tree.map(jnp.zeros_like, lower))
    return x


def _check_set(name, feasible):
    if feasible is not None and not checks.has_method(feasible, "project"):
        raise TypeError(f"{name} must be a set with a projection, got {feasible!r}")


def _project_gap(feasible, x, direction):
    """$x - P(x - d)$, which is $d$ without a set."""
    if feasible is None:
        return direction
    moved = jax.tree.map(jnp.subtract, x, direction)
    return jax.tree.map(jnp.subtract, x, feasible.project(moved))


class Bilevel(AbstractProblem):
    """Minimize over the solutions of another problem,

    $$\\min_{x \\in X} F(x, y^*(x)), \\qquad y^*(x) \\in \\arg\\min_{y \\in Y} f(x, y).$$

    A solution is `BilevelPoint(upper, lower, multiplier)`, the triple $(x, y, v)$ with $v$ shaped
    like $y$. Where the lower level is strongly convex and $Y$ is the whole space, $v$ solves
    $\\nabla_{yy} f\\, v = \\nabla_y F$, and by the implicit function theorem the derivative of
    $x \\mapsto F(x, y^*(x))$ is $\\nabla_x F - \\nabla_{xy} f\\, v$. The residual

    $$\\bigl(x - P_X(x - \\nabla_x F + \\nabla_{xy} f\\, v),\\quad \\nabla_y f,\\quad
      \\nabla_{yy} f\\, v - \\nabla_y F\\bigr)$$

    holds no inner solve. With a set $Y$, the gradient $\\nabla_y f$ gives way to
    $G(x, y) = y - P_Y(y - \\nabla_y f)$ and its second derivatives to the transposed Jacobians of
    $G$.

    **Derivatives.** The implicit derivative is that of all three parts, and so asks for third
    derivatives of $f$. Where the lower Hessian is singular $v$ need not exist nor be unique: a
    residual of the third part that does not vanish tells that there is none.

    **Arguments:**

    - `upper`: $F$, `(x, y) -> scalar`.
    - `lower`: $f$, `(x, y) -> scalar`.
    - `upper_set`, `lower_set`: $X$ and $Y$, sets of `jaxopt_ext.prox`; `None` for all of the space.

    A start is a `BilevelPoint`, or the pair `(x, y)`, which is completed by $v = 0$.

    **Raises:** `TypeError` if a set has no projection, on complex points, and on a start that is
    neither; `ValueError` if a level returns no real scalar or `multiplier` is not shaped like
    `lower`.

    **Reference:** Pedregosa, Hyperparameter Optimization with Approximate Gradient, 2016,
    arXiv:1602.02355.
    """

    upper: Level
    lower: Level
    upper_set: Any = None
    lower_set: Any = None

    def __check_init__(self):
        for name in ("upper", "lower"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function (x, y) -> scalar")
        _check_set("upper_set", self.upper_set)
        _check_set("lower_set", self.lower_set)

    def lower_residual(self, x: PyTree[Array], y: PyTree[Array]) -> PyTree[Array]:
        """$\\nabla_y f(x, y)$, or $G(x, y)$ with a set: zero where $y$ is stationary."""
        slope = tree.gradient(lambda y: self.lower(x, y), y)
        return _project_gap(self.lower_set, y, slope)

    def pull(
        self, x: PyTree[Array], y: PyTree[Array], v: PyTree[Array]
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """The gradients of $\\langle \\nabla_y f(x, y), v\\rangle$ in $x$ and in $y$,
        $\\nabla_{xy} f\\, v$ and $\\nabla_{yy} f\\, v$, by one reverse pass."""
        return tree.gradient(lambda p: tree.vdot(self.lower_residual(*p), v), (x, y))

    def upper_gap(self, x: PyTree[Array], direction: PyTree[Array]) -> PyTree[Array]:
        """$x - P_X(x - d)$."""
        return _project_gap(self.upper_set, x, direction)

    def residual(self, x):
        x, y, v = x
        own, through = tree.gradient(lambda p: self.upper(*p), (x, y))
        cross, curved = self.pull(x, y, v)
        return BilevelPoint(
            self.upper_gap(x, jax.tree.map(jnp.subtract, own, cross)),
            self.lower_residual(x, y),
            jax.tree.map(jnp.subtract, curved, through),
        )

    def start(self, x):
        return _start(x)

    def check(self, x):
        form = "BilevelPoint(upper, lower, multiplier), or (upper, lower)"
        checks.point("Bilevel", x, BilevelPoint, form)
        if any(map(jnp.iscomplexobj, jax.tree.leaves(x))):
            raise TypeError("a Bilevel is over real numbers, got complex ones")
        checks.shaped_like("the multiplier", x.multiplier, x.lower)
        for name, fun in (("upper", self.upper), ("lower", self.lower)):
            checks.objective(name, lambda p, fun=fun: fun(*p), (x.upper, x.lower))
        for name, feasible, part in (
            ("upper_set", self.upper_set, x.upper),
            ("lower_set", self.lower_set, x.lower),
        ):
            if feasible is not None:
                out = jax.eval_shape(feasible.project, part)
                checks.shaped_like(f"the projection on {name}", out, part)

    def restrict(self, rest):
        return _restricted(self, rest, "upper", "lower")


class _Mean(eqx.Module):
    """The mean of a loss over rows of data."""

    loss: SampledLevel
    data: PyTree[Array]
    chunk: int | None = eqx.field(static=True, default=None)

    def __call__(self, x, y):
        def total(part):
            return jnp.sum(jax.vmap(lambda sample: self.loss(x, y, sample))(part))

        return rows.mean(total, self.data, self.chunk)


class AbstractSampledLevels(AbstractProblem):
    """A problem of two levels, each a mean of losses over samples."""

    upper_loss: eqx.AbstractVar[Callable[..., Any]]
    lower_loss: eqx.AbstractVar[Callable[..., Any]]
    upper_data: eqx.AbstractVar[PyTree[Array]]
    lower_data: eqx.AbstractVar[PyTree[Array]]
    sampling: eqx.AbstractVar[AbstractSampling]
    chunk: eqx.AbstractVar[int | None]

    def draw_upper(self, key: PRNGKeyArray, b: int) -> Int[Array, " b"]:
        """Indices of `b` samples of the upper level."""
        checks.count("b", b)
        return self.sampling(key, rows.count(self.upper_data), b)

    def draw_lower(self, key: PRNGKeyArray, b: int) -> Int[Array, " b"]:
        """Indices of `b` samples of the lower level."""
        checks.count("b", b)
        return self.sampling(key, rows.count(self.lower_data), b)

    def _check_levels(self, signature: str) -> None:
        for name in ("upper_loss", "lower_loss"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function {signature} -> scalar")
        checks.instance("sampling", self.sampling, AbstractSampling, "WithReplacement()")
        if self.chunk is not None:
            checks.count("chunk", self.chunk)
        for name, data in (("upper_data", self.upper_data), ("lower_data", self.lower_data)):
            try:
                rows.check(data)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error


class StochasticBilevel(AbstractSampledLevels):
    """A `Bilevel` whose levels are means over samples,

    $$F(x, y) = \\frac1n \\sum_i F_i(x, y), \\qquad f(x, y) = \\frac1m \\sum_j f_j(x, y).$$

    Points, start and residual are those of the `Bilevel` of the means. `minibatch` gives the one of
    a few samples, so that methods write each step once. Gradients, products and solutions of its
    lower level are unbiased, but a hypergradient from one batch is not: factors need batches of
    their own.

    **Arguments:**

    - `upper_loss`, `lower_loss`: `(x, y, sample) -> scalar`, of one sample.
    - `upper_data`, `lower_data`: pytrees of arrays, stacked on a leading axis.
    - `upper_set`, `lower_set`: as in `Bilevel`.
    - `sampling`: how batches are drawn.
    - `chunk`: rows of a full mean that are looked at together; `None` for all.

    **Raises:** `ValueError` on data without a common leading axis of at least 1, or a batch larger
    than the data drawn without replacement; otherwise as `Bilevel`.
    """

    upper_loss: SampledLevel
    lower_loss: SampledLevel
    upper_data: PyTree[Array]
    lower_data: PyTree[Array]
    upper_set: Any = None
    lower_set: Any = None
    sampling: AbstractSampling = WithReplacement()
    chunk: int | None = eqx.field(static=True, default=4096)

    def __check_init__(self):
        self._check_levels("(x, y, sample)")
        _check_set("upper_set", self.upper_set)
        _check_set("lower_set", self.lower_set)

    def minibatch(self, upper: Int[Array, " b"], lower: Int[Array, " c"]) -> Bilevel:
        """The problem of these samples.

        **Arguments:**

        - `upper`, `lower`: indices, as from `draw_upper` and `draw_lower`.
        """
        return Bilevel(
            _Mean(self.upper_loss, rows.take(self.upper_data, upper)),
            _Mean(self.lower_loss, rows.take(self.lower_data, lower)),
            self.upper_set,
            self.lower_set,
        )

    def full(self) -> Bilevel:
        """The problem of all samples."""
        return Bilevel(
            _Mean(self.upper_loss, self.upper_data, self.chunk),
            _Mean(self.lower_loss, self.lower_data, self.chunk),
            self.upper_set,
            self.lower_set,
        )

    def residual(self, x):
        return self.full().residual(x)

    def start(self, x):
        return _start(x)

    def check(self, x):
        self.full().check(x)

    def restrict(self, rest):
        return _restricted(self, rest, "upper_loss", "lower_loss")
