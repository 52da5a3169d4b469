"""What every estimator asks of its data, at the door."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import checks


def matrix(X: Any) -> Float[Array, "n d"]:
    """Rows as real floating-point numbers; integers and booleans are converted.

    **Raises:** `ValueError` on anything but a matrix with rows and columns, and on NaN or infinity;
    `TypeError` on complex numbers.
    """
    X = jnp.asarray(X)
    if X.ndim != 2:
        raise ValueError(f"X must be a matrix with one row per sample, got shape {X.shape}")
    if 0 in X.shape:
        raise ValueError(f"X must have rows and columns, got shape {X.shape}")
    return real("X", X)


def real(name: str, value: Array, dtype: Any = None) -> Array:
    """Finite real numbers in a floating-point type, by default their own."""
    if jnp.iscomplexobj(value):
        raise TypeError(f"{name} must be real, got dtype {value.dtype}")
    checks.finite(name, value)
    if dtype is None:
        dtype = value.dtype if jnp.issubdtype(value.dtype, jnp.floating) else float
    return value.astype(jnp.result_type(dtype))


def row_weights(sample_weight: Any, like: Float[Array, "n d"]) -> Float[Array, " n"]:
    """One weight for each row of `like`, in its type; ones if there are none.

    **Raises:** `ValueError` on another shape, on weights that are negative or not finite, and if
    all are zero.
    """
    n = like.shape[0]
    if sample_weight is None:
        return jnp.ones(n, like.dtype)
    weights = jnp.asarray(sample_weight)
    if weights.shape != (n,):
        raise ValueError(f"sample_weight must have shape {(n,)}, got {weights.shape}")
    weights = real("sample_weight", weights, like.dtype)
    checks.nonnegative("sample_weight", weights)
    if not checks.is_traced(weights) and not jnp.any(weights > 0):
        raise ValueError("sample_weight must be positive for some row, got zeros only")
    return jnp.where(weights >= 0, weights, jnp.nan)  # where they are traced


def columns(X: Any, like: Float[Array, "d ..."]) -> Float[Array, "n d"]:
    """Rows for a fitted model with as many features as `like` has entries, in its type.

    **Raises:** `ValueError` on any other number of columns.
    """
    X = jnp.asarray(X)
    if X.ndim != 2 or X.shape[1] != like.shape[0]:
        raise ValueError(f"X must have {like.shape[0]} columns, as in fit, got shape {X.shape}")
    return X.astype(like.dtype)
