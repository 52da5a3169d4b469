"""What all pictures need: matplotlib when it is there, axes, and arrays that it can draw."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def pyplot() -> Any:
    """`matplotlib.pyplot`, or an `ImportError` that says how to get it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "jaxopt_ext.plots needs matplotlib: pip install 'jaxopt-ext[plots]'"
        ) from error
    return plt


def axes(ax: Any) -> Any:
    """`ax`, or the axes of a new figure if it is `None`."""
    return pyplot().subplots(layout="constrained")[1] if ax is None else ax


def numbers(name: str, value: Any) -> np.ndarray:
    """`value` as an array of real numbers; those of 16 bits, which cannot all be drawn, in 32."""
    array = np.asarray(value)
    if array.dtype != bool and not jnp.issubdtype(array.dtype, jnp.integer):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must hold real numbers, got {array.dtype}")
        array = array.astype(np.float32) if array.dtype.itemsize < 4 else array
    return array


def names(name: str, labels: Any, count: int) -> list[str] | None:
    """`labels` as text, after a check that there are `count`; `None` stays."""
    if labels is None:
        return None
    labels = [str(label) for label in labels]
    if len(labels) != count:
        raise ValueError(f"expected {count} {name}, got {len(labels)}")
    return labels
