"""Regularization paths, each fit started from the one before."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from ..core import Composite, checks, solve
from ..prox import Scaled, Zero
from .linear_model import (
    GeneralizedLinearModel,
    LinearFit,
    Task,
    fit_from,
    prepare,
    with_relative_tol,
)


class RegularizationPath(eqx.Module):
    """Fits along a path of penalties.

    **Attributes:**

    - `factors`: of the model's penalty, shape `(m,)`.
    - `fits`: a `LinearFit` whose arrays have a leading axis of length m; `path[i]` is one of them.
    """

    factors: Float[Array, " m"]
    fits: LinearFit

    def __getitem__(self, index: Any) -> LinearFit:
        return jax.tree.map(lambda leaf: leaf[index], self.fits)

    def predict(self, X: Float[Array, "n d"]) -> Shaped[Array, "m n"]:
        """Predictions of every fit."""
        return jax.vmap(lambda fit: fit.predict(X))(self.fits)

    def score(
        self, X: Float[Array, "n d"], y: Shaped[Array, " n"], sample_weight: Any = None
    ) -> Float[Array, " m"]:
        """The score of every fit."""
        return jax.vmap(lambda fit: fit.score(X, y, sample_weight))(self.fits)


def regularization_path(
    model: GeneralizedLinearModel,
    X: Float[Array, "n d"],
    y: Shaped[Array, " n"],
    sample_weight: Float[Array, " n"] | None = None,
    *,
    factors: Float[Array, " m"] | None = None,
    num_factors: int = 100,
    ratio: Any = 1e-3,
    key: PRNGKeyArray | None = None,
) -> RegularizationPath:
    """Fit with the penalty $c\\, g$ for a sequence of factors $c$, each from the fit before.

    It is one `lax.scan`. Derivatives reach the data, the weights, the penalty and given factors.

    **Arguments:**

    - `model`, `X`, `y`, `sample_weight`, `key`: as in `GeneralizedLinearModel.fit`.
    - `factors`: positive, best in decreasing order; if left out, `num_factors` of them in
      geometric progression from `largest_factor` to `ratio` times that.

    **Raises:** as `fit`; `ValueError` on bad factors, or if there are none and the penalty has no
    largest.

    **Reference:** Friedman, Hastie, Tibshirani, Regularization Paths for Generalized Linear Models
    via Coordinate Descent, 2010.
    """
    task = prepare(model, X, y, sample_weight)
    if factors is None:
        factors = factor_grid(model, task, num_factors, ratio)
    factors = jnp.asarray(factors)
    if factors.ndim != 1 or not factors.size:
        raise ValueError(f"factors must be a vector, got shape {factors.shape}")
    checks.positive("factors", factors)
    return follow(model, task, factors.astype(task.shift.dtype), key)


def largest_factor(
    model: GeneralizedLinearModel,
    X: Float[Array, "n d"],
    y: Shaped[Array, " n"],
    sample_weight: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """The smallest $c$ for which the penalty $c\\, g$ sets all coefficients to zero.

    Zero is optimal where $\\mathrm{prox}_{c g}(-\\nabla_w f) = 0$ at the best constant; for the
    lasso that is $c = \\|\\nabla_w f\\|_\\infty$ over the penalty's weight. Found by bisection, so
    for any penalty; NaN if $g$ never makes coefficients zero, as a ridge does not.
    """
    return _largest(model, prepare(model, X, y, sample_weight))


def factor_grid(
    model: GeneralizedLinearModel, task: Task, num_factors: int, ratio: Any
) -> Float[Array, " m"]:
    """Factors in geometric progression downwards from the largest."""
    checks.count("num_factors", num_factors)
    checks.interval("ratio", ratio, 0, 1, open_low=True, open_high=True)
    largest = jax.lax.stop_gradient(_largest(model, task))
    if not checks.is_traced(largest) and not jnp.isfinite(largest):
        raise ValueError(
            f"{model.penalty!r} never sets all coefficients to zero, so its path has no beginning: "
            "give factors"
        )
    exponents = jnp.linspace(0, 1, num_factors, dtype=largest.dtype)
    return largest * jnp.asarray(ratio, largest.dtype) ** exponents


@eqx.filter_jit
def follow(
    model: GeneralizedLinearModel,
    task: Task,
    factors: Float[Array, " m"],
    key: PRNGKeyArray | None,
) -> RegularizationPath:
    """The path itself."""

    def step(parameters, factor):
        scaled = eqx.tree_at(lambda m: m.penalty, model, Scaled(model.penalty, factor))
        fit, parameters = fit_from(scaled, task, parameters, key)
        return parameters, fit

    return RegularizationPath(factors, jax.lax.scan(step, task.start, factors)[1])


@eqx.filter_jit
def _largest(model, task):
    w, constant = task.start
    if constant is not None:
        alone = Composite(lambda b: task.loss((w, b)), Zero())
        constant = solve(alone, with_relative_tol(model.solver, task), constant).value
    descent = -jax.grad(lambda w: task.loss((w, constant)))(w)

    def vanishes(exponent):
        moved = Scaled(model.penalty, jnp.exp2(exponent)).prox(descent, 1.0)
        return jnp.all(moved == 0)

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        enough = vanishes(middle)
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    bounds = jnp.asarray(-60, w.dtype), jnp.asarray(60, w.dtype)
    high = jax.lax.fori_loop(0, 64, halve, bounds)[1]
    return jnp.where(vanishes(bounds[1]), jnp.exp2(high), jnp.nan)
