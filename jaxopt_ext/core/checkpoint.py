"""Saving and loading pytrees without pickle."""

import os
import pathlib
from typing import Any, BinaryIO

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def save(path: str | os.PathLike, tree: PyTree) -> None:
    """Write the leaves of `tree` to `path`.

    The file appears whole or not at all: it is written beside its final place and renamed.

    **Arguments:**

    - `path`: the file to write; missing folders are made.
    - `tree`: any pytree of arrays, random keys and Python scalars.

    **Raises:** `ValueError` for a tree without one: its numbers, if there are any, are constants
    that would not be written.
    """
    if not any(map(eqx.is_array_like, jax.tree.leaves(tree))):
        raise ValueError(f"there is nothing to save in {type(tree).__name__}: it has no arrays")
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        eqx.tree_serialise_leaves(file, tree, _write)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path: str | os.PathLike, like: PyTree) -> PyTree:
    """Read what `save` wrote into the structure, shapes and dtypes of `like`.

    **Raises:** `RuntimeError` if a stored leaf does not match the one in `like`.
    """
    with open(path, "rb") as file:
        return eqx.tree_deserialise_leaves(file, like, _read)


def is_key(leaf: Any) -> bool:
    """Whether this is an array of random keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _write(file: BinaryIO, leaf: Any) -> None:
    # equinox writes the numbers of old keys only
    data = jax.random.key_data(leaf) if is_key(leaf) else leaf
    eqx.default_serialise_filter_spec(file, data)


def _read(file: BinaryIO, like: Any) -> Any:
    if not is_key(like):
        return eqx.default_deserialise_filter_spec(file, like)
    data = eqx.default_deserialise_filter_spec(file, jax.random.key_data(like))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
