"""Generalized linear models with any proximable penalty."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from ..core import AbstractSolver, Composite, Status, solve
from ..core.objectives import AbstractLinearLoss
from ..minimize import FISTA
from ..prox import AbstractFunction, Separable, Zero
from . import _data
from .responses import AbstractResponse, Continuous


class GeneralizedLinearModel(eqx.Module):
    """Fit $z = x^\\top w + b$ to targets,

    $$\\min_{w, b} \\frac{1}{\\sum_i s_i} \\sum_i s_i\\, \\ell(x_i^\\top w + b, y_i) + g(w).$$

    `fit` is pure: it runs under `jit`, `vmap` over penalties or data makes a path or an ensemble,
    and the fitted coefficients are differentiated implicitly with respect to the penalty, the data
    and the sample weights. The intercept is not penalized.

    **Arguments:**

    - `response`: $\\ell$: `Continuous()`, `Robust(delta)`, `Binary()`, `Categorical(k)` or
      `Count()`.
    - `penalty`: $g$, a function of `jaxopt_ext.prox`; for `Categorical` it acts on `(d, k)`.
    - `intercept`: whether there is a $b$.
    - `standardize`: whether $g$ acts on $\\sigma_j w_j$, the coefficients of features divided by
      their standard deviations; $w$ itself is always in the units of the data. A constant feature
      keeps $\\sigma_j = 1$.
    - `solver`: any solver of `Composite` problems. Its `tol` is taken relative to the root mean
      square of $\\ell'$ at the best constant $z$, the standard deviation of the target in linear
      regression, so that it does not depend on units.

    **Raises:** `TypeError` if the parts are of the wrong kind.
    """

    response: AbstractResponse = Continuous()
    penalty: AbstractFunction = Zero()
    intercept: bool = eqx.field(static=True, default=True)
    standardize: bool = eqx.field(static=True, default=False)
    solver: AbstractSolver = FISTA(tol=1e-6, max_steps=10_000)

    def __check_init__(self):
        if not isinstance(self.response, AbstractResponse):
            raise TypeError(f"response must be an AbstractResponse, got {self.response!r}")
        if not isinstance(self.penalty, AbstractFunction):
            raise TypeError(f"penalty must be a function of prox, got {self.penalty!r}")
        for name in ("intercept", "standardize"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        if not isinstance(self.solver, AbstractSolver) or Composite not in self.solver.problems:
            raise TypeError(f"solver must take Composite problems, got {self.solver!r}")

    def fit(
        self,
        X: Float[Array, "n d"],
        y: Shaped[Array, " n"],
        sample_weight: Float[Array, " n"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> "LinearFit":
        """Fit to rows `X` and targets `y`.

        **Arguments:**

        - `X`: real numbers; integers are converted.
        - `y`: one target per row, as the response takes them.
        - `sample_weight`: $s \\ge 0$, one per row, for instance a mask; 1 if left out.
        - `key`: for randomized solvers.

        **Returns:** a `LinearFit`; its `status` tells whether the solver converged.

        **Raises:** `ValueError` on shapes that do not fit, no rows, NaN or infinity in the data,
        weights that are negative or all zero, targets that the response cannot have; `TypeError`
        on complex data.
        """
        task = prepare(self, X, y, sample_weight)
        return fit_from(self, task, task.start, key)[0]


class LinearFit(eqx.Module):
    """A fitted linear model.

    **Attributes:**

    - `response`: of the model; of a classifier it knows the classes.
    - `coef`: $w$, shape `(d,)` or `(d, k)`.
    - `intercept`: $b$, or `None`.
    - `status`, `residual`: of the solve.
    """

    response: AbstractResponse
    coef: Float[Array, "d *k"]
    intercept: Float[Array, "*k"] | None
    status: Status
    residual: Float[Array, ""]

    def decision_function(self, X: Float[Array, "n d"]) -> Float[Array, "n *k"]:
        """$z$ for each row.

        **Raises:** `ValueError` if `X` has another number of columns than the model.
        """
        z = _data.columns(X, self.coef) @ self.coef
        return z if self.intercept is None else z + self.intercept

    def predict(self, X: Float[Array, "n d"]) -> Shaped[Array, " n"]:
        """Predicted targets: classes for classifiers, else means."""
        return self.response.predict(self.decision_function(X))

    def predict_proba(self, X: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """Class probabilities of a classifier.

        **Raises:** `TypeError` if the response has no classes.
        """
        of = getattr(self.response, "probabilities", None)
        if of is None:
            raise TypeError(f"a {type(self.response).__name__} response has no classes")
        return of(self.decision_function(X))

    def score(
        self, X: Float[Array, "n d"], y: Shaped[Array, " n"], sample_weight: Any = None
    ) -> Float[Array, ""]:
        """$R^2$, accuracy, or the share of the deviance explained, as the response has it."""
        X, y, weights = _checked(X, y, sample_weight)
        if jnp.issubdtype(y.dtype, jnp.floating):
            y = y.astype(self.coef.dtype)
        return self.response.score(self.decision_function(X), y, weights.astype(self.coef.dtype))


Parameters = tuple[Float[Array, "d *k"], Float[Array, "*k"] | None]


class WeightedLoss(eqx.Module):
    """$\\sum_i s_i\\, \\ell(x_i^\\top w + b, y_i)$ of the pair $(w, b)$, with weights that sum to
    one."""

    loss: AbstractLinearLoss
    weights: Float[Array, " n"]

    def of_predictions(self, z: Float[Array, "n *k"]) -> Float[Array, ""]:
        """The loss as a function of $z$."""
        return jnp.sum(self.weights * self.loss.losses(z))

    def __call__(self, parameters: Parameters) -> Float[Array, ""]:
        w, b = parameters
        z = self.loss.matrix @ w
        return self.of_predictions(z if b is None else z + b)


class Task(NamedTuple):
    """A model's data as its solver sees them: features shifted and scaled."""

    loss: WeightedLoss
    shift: Float[Array, " d"]
    scale: Float[Array, " d"]
    start: Parameters
    unit: Float[Array, ""]


def prepare(model: GeneralizedLinearModel, X: Any, y: Any, sample_weight: Any) -> Task:
    """Check the data and move the features to where the solver converges fast.

    An intercept takes up any shift, so centering changes nothing but the conditioning.
    """
    X, y, weights = _checked(X, y, sample_weight)
    y = model.response.target(y, X.dtype)
    centered, mean, deviation = _centered(X, weights)
    scale = deviation if model.standardize else jnp.ones_like(deviation)
    shift = mean if model.intercept else jnp.zeros_like(mean)
    loss = WeightedLoss(
        model.response.loss((centered if model.intercept else X) / scale, y), weights
    )
    constant = model.response.constant(y, weights) if model.intercept else None
    start = (jnp.zeros((X.shape[1], *model.response.outputs), X.dtype), constant)
    return Task(loss, shift, scale, start, jax.lax.stop_gradient(_unit(loss, constant, start[0])))


def fit_from(
    model: GeneralizedLinearModel, task: Task, start: Parameters, key: PRNGKeyArray | None
) -> tuple[LinearFit, Parameters]:
    """Solve from a start in the task's coordinates; also gives the solution in these."""
    penalty = Separable((model.penalty, Zero() if model.intercept else None))
    problem, solver = Composite(task.loss, penalty), with_relative_tol(model.solver, task)
    solution = solve(problem, solver, start, key=key)
    w, b = solution.value
    coef = w / (task.scale if w.ndim == 1 else task.scale[:, None])
    intercept = None if b is None else b - task.shift @ coef
    fit = LinearFit(model.response, coef, intercept, solution.status, solution.residual)
    return fit, solution.value


def with_relative_tol(solver: AbstractSolver, task: Task) -> AbstractSolver:
    """The solver with its tolerance in the task's unit."""
    return eqx.tree_at(lambda s: s.tol, solver, solver.tol * task.unit)


def _checked(X, y, sample_weight):
    """Data as floating-point arrays, and weights that sum to one."""
    X, y = _data.matrix(X), jnp.asarray(y)
    if y.shape != X.shape[:1]:
        raise ValueError(f"X must be a matrix with one row per y, got {X.shape} and {y.shape}")
    if jnp.iscomplexobj(y):
        raise TypeError(f"y must be real, got dtype {y.dtype}")
    weights = _data.row_weights(sample_weight, X)
    return X, y, weights / jnp.sum(weights)


def _centered(X, weights):
    """Columns around their means, the means, and the standard deviations, 1 for constants."""
    mean = weights @ X
    centered = X - mean
    rest = weights @ centered  # of the first mean's rounding, which would pass for a deviation
    centered, mean = centered - rest, mean + rest
    variance = weights @ jnp.square(centered)
    size = jnp.max(jnp.where(weights[:, None] > 0, jnp.abs(X), 0), axis=0)
    varies = variance > (10 * jnp.finfo(X.dtype).eps * size) ** 2
    return centered, mean, jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1)), 1)


def _unit(loss, constant, w):
    """The root mean square of the loss's slopes where only the constant is fitted."""

    def rms(constant):
        z = jnp.zeros((loss.weights.shape[0], *w.shape[1:]), w.dtype)
        slopes = jax.grad(lambda z: jnp.sum(loss.loss.losses(z)))(z + constant)
        squares = jnp.square(slopes).reshape(z.shape[0], -1).sum(1)
        return jnp.sqrt(jnp.sum(loss.weights * squares))

    at_zero = rms(jnp.zeros((), w.dtype))
    # A constant that fits exactly, up to rounding, must not ask for the impossible.
    floor = jnp.sqrt(jnp.finfo(w.dtype).eps) * at_zero
    unit = jnp.maximum(at_zero if constant is None else rms(constant), floor)
    return jnp.where(unit > 0, unit, 1)
