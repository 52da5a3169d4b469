"""Saving and loading pytrees without pickle."""

import os
import pathlib

import equinox as eqx
from jaxtyping import PyTree


def save(path: str | os.PathLike, tree: PyTree) -> None:
    """Write the leaves of `tree` to `path`.

    The file appears whole or not at all: it is written beside its final place and renamed.

    **Arguments:**

    - `path`: the file to write; missing folders are made.
    - `tree`: any pytree of arrays and Python scalars.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        eqx.tree_serialise_leaves(file, tree)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path: str | os.PathLike, like: PyTree) -> PyTree:
    """Read what `save` wrote into the structure, shapes and dtypes of `like`.

    **Raises:** `RuntimeError` if a stored leaf does not match the one in `like`.
    """
    with open(path, "rb") as file:
        return eqx.tree_deserialise_leaves(file, like)
