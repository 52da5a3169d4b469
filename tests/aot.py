"""Compile-only TPU topologies."""

import functools
import importlib.util
import os

import pytest


@functools.cache
def topology(name: str):
    """The TPU topology `name`, for compiling ahead of time; skips if libtpu is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (extra: aot)")
    # Without these, libtpu asks a metadata server about the machine, and refuses a second process.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    return topologies.get_topology_desc(name, "tpu")
