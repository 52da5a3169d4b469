"""Generalized linear models with any proximable penalty."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from ..core import AbstractSolver, Composite, Status, checks, solve
from ..minimize import FISTA
from ..prox import AbstractFunction, Separable, Zero
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
    - `solver`: any solver of `Composite` problems.

    **Raises:** `TypeError` if the parts are of the wrong kind.

    **Reference:** Nelder, Wedderburn, Generalized Linear Models, 1972; for `Robust`, Huber, Robust
    Estimation of a Location Parameter, 1964.
    """

    response: AbstractResponse = eqx.field(default_factory=Continuous)
    penalty: AbstractFunction = eqx.field(default_factory=Zero)
    intercept: bool = eqx.field(static=True, default=True)
    solver: AbstractSolver = eqx.field(default_factory=lambda: FISTA(tol=1e-6, max_steps=10_000))

    def __check_init__(self):
        if not isinstance(self.response, AbstractResponse):
            raise TypeError(f"response must be an AbstractResponse, got {self.response!r}")
        if not isinstance(self.penalty, AbstractFunction):
            raise TypeError(f"penalty must be a function of prox, got {self.penalty!r}")
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
        negative weights, targets that the response cannot have.
        """
        X, y, weights = _checked(X, y, sample_weight)
        loss = self.response.loss(X, self.response.target(y, X.dtype))
        start = (
            jnp.zeros((X.shape[1], *self.response.outputs), X.dtype),
            jnp.zeros(self.response.outputs, X.dtype) if self.intercept else None,
        )

        def smooth(parameters):
            w, b = parameters
            z = X @ w if b is None else X @ w + b
            return jnp.sum(weights * loss.losses(z))

        penalty = Separable((self.penalty, Zero() if self.intercept else None))
        solution = solve(Composite(smooth, penalty), self.solver, start, key=key)
        w, b = solution.value
        return LinearFit(self.response, w, b, solution.status, solution.residual)


class LinearFit(eqx.Module):
    """A fitted linear model.

    **Attributes:**

    - `response`: of the model.
    - `coef`: $w$, shape `(d,)` or `(d, k)`.
    - `intercept`: $b$, or `None`.
    - `status`, `residual`: of the solve.
    """

    response: AbstractResponse
    coef: Float[Array, "d *k"]
    intercept: Float[Array, "*k"] | None
    status: Status
    residual: Float[Array, ""]

    def decision(self, X: Float[Array, "n d"]) -> Float[Array, "n *k"]:
        """$z$ for each row.

        **Raises:** `ValueError` if `X` has another number of columns than the model.
        """
        X = jnp.asarray(X)
        if X.ndim != 2 or X.shape[1] != self.coef.shape[0]:
            raise ValueError(
                f"X must have {self.coef.shape[0]} columns, as in fit, got shape {X.shape}"
            )
        z = X.astype(self.coef.dtype) @ self.coef
        return z if self.intercept is None else z + self.intercept

    def predict(self, X: Float[Array, "n d"]) -> Shaped[Array, " n"]:
        """Predicted targets: classes for classifiers, else means."""
        return self.response.predict(self.decision(X))

    def probabilities(self, X: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """Class probabilities of a classifier.

        **Raises:** `TypeError` if the response has no classes.
        """
        of = getattr(self.response, "probabilities", None)
        if of is None:
            raise TypeError(f"a {type(self.response).__name__} response has no classes")
        return of(self.decision(X))

    def score(
        self, X: Float[Array, "n d"], y: Shaped[Array, " n"], sample_weight: Any = None
    ) -> Float[Array, ""]:
        """$R^2$, accuracy, or the share of the deviance explained, as the response has it."""
        X, y, weights = _checked(X, y, sample_weight)
        return self.response.score(self.decision(X), y, weights)


def _checked(X, y, sample_weight):
    """Data as floating-point arrays, and weights that sum to one."""
    X, y = jnp.asarray(X), jnp.asarray(y)
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise ValueError(f"X must be a matrix with one row per y, got {X.shape} and {y.shape}")
    if 0 in X.shape:
        raise ValueError(f"X must have rows and columns, got shape {X.shape}")
    if not jnp.issubdtype(X.dtype, jnp.floating):
        X = X.astype(jnp.result_type(float))
    checks.finite("X", X)
    checks.finite("y", y)
    weights = jnp.ones(len(y), X.dtype) if sample_weight is None else jnp.asarray(sample_weight)
    if weights.shape != y.shape:
        raise ValueError(f"sample_weight must have shape {y.shape}, got {weights.shape}")
    checks.nonnegative("sample_weight", weights)
    weights = weights.astype(X.dtype)
    return X, y, weights / jnp.sum(weights)


def cross_validate(
    model: GeneralizedLinearModel,
    X: Float[Array, "n d"],
    y: Shaped[Array, " n"],
    *,
    key: PRNGKeyArray,
    num_folds: int = 5,
) -> Float[Array, " folds"]:
    """Scores on each fold of a model fitted to the others; one compiled call, folds by `vmap`.

    **Arguments:**

    - `model`: pure in its numbers, so `vmap` over a penalty gives a whole curve.
    - `X`, `y`: as in `fit`.
    - `key`: of the random assignment to folds of equal size, up to one.
    - `num_folds`: at least 2.

    **Raises:** `ValueError` if there are fewer rows than folds.
    """
    checks.count("num_folds", num_folds, minimum=2)
    X, y = jnp.asarray(X), jnp.asarray(y)
    if X.shape[0] < num_folds:
        raise ValueError(f"{X.shape[0]} rows are too few for {num_folds} folds")
    fold = jax.random.permutation(key, jnp.arange(X.shape[0]) % num_folds)

    def one(i):
        held = (fold == i).astype(jnp.result_type(X, jnp.float32))
        return model.fit(X, y, 1 - held).score(X, y, held)

    return jax.vmap(one)(jnp.arange(num_folds))
