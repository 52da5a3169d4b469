"""Scores on held-out folds, all folds in one `vmap`."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from ..core import checks
from . import _data
from .linear_model import GeneralizedLinearModel, prepare
from .path import factor_grid, regularization_path


def cross_validate(
    model: GeneralizedLinearModel,
    X: Float[Array, "n d"],
    y: Shaped[Array, " n"],
    sample_weight: Float[Array, " n"] | None = None,
    *,
    key: PRNGKeyArray,
    num_folds: int = 5,
) -> Float[Array, " folds"]:
    """Scores on each fold of a model fitted to the others.

    Pure in the model's numbers, so `grad` with respect to a penalty is a hypergradient.

    **Arguments:**

    - `model`, `X`, `y`, `sample_weight`: as in `GeneralizedLinearModel.fit`.
    - `key`: of the random assignment to folds of equal size, up to one.
    - `num_folds`: at least 2.

    **Raises:** as `fit`; `ValueError` if there are fewer rows than folds.
    """
    X, weights, fold = _split(X, sample_weight, key, num_folds)

    def one(index):
        held = fold == index
        fit = model.fit(X, y, jnp.where(held, 0, weights))
        return fit.score(X, y, jnp.where(held, weights, 0))

    return jax.vmap(one)(jnp.arange(num_folds))


def cross_validate_path(
    model: GeneralizedLinearModel,
    X: Float[Array, "n d"],
    y: Shaped[Array, " n"],
    sample_weight: Float[Array, " n"] | None = None,
    *,
    key: PRNGKeyArray,
    num_folds: int = 5,
    factors: Float[Array, " m"] | None = None,
    num_factors: int = 100,
    ratio: Any = 1e-3,
) -> tuple[Float[Array, " m"], Float[Array, "folds m"]]:
    """Scores on each fold of the fits along a `regularization_path` on the others.

    **Arguments:**

    - `model`, `X`, `y`, `sample_weight`, `key`, `num_folds`: as in `cross_validate`.
    - `factors`, `num_factors`, `ratio`: as in `regularization_path`; a path left out begins at the
      largest factor of all rows together.

    **Returns:** the factors and the scores; `scores.mean(0)` is the curve to choose from.
    """
    if factors is None:
        factors = factor_grid(model, prepare(model, X, y, sample_weight), num_factors, ratio)
    X, weights, fold = _split(X, sample_weight, key, num_folds)
    factors = jnp.asarray(factors, X.dtype)

    def one(index):
        held = fold == index
        path = regularization_path(model, X, y, jnp.where(held, 0, weights), factors=factors)
        return path.score(X, y, jnp.where(held, weights, 0))

    return factors, jax.vmap(one)(jnp.arange(num_folds))


def _split(
    X: Any, sample_weight: Any, key: PRNGKeyArray, num_folds: int
) -> tuple[Float[Array, "n d"], Float[Array, " n"], Int[Array, " n"]]:
    """Rows, weights, and the fold that holds each row out."""
    checks.count("num_folds", num_folds, minimum=2)
    X = _data.matrix(X)
    if X.shape[0] < num_folds:
        raise ValueError(f"{X.shape[0]} rows are too few for {num_folds} folds")
    weights = _data.row_weights(sample_weight, X)
    return X, weights, jax.random.permutation(key, jnp.arange(X.shape[0]) % num_folds)
