"""Programs compiled for other machines, or as users' programs are."""

import functools
import importlib.util
import os

import jax
import pytest

_USUAL = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}


def usual_program(fun, *args):
    """`fun` compiled by the compiler's own defaults, for tests that read the program: the suite's
    are lighter."""
    return jax.jit(fun).lower(*args).compile(compiler_options=_USUAL)


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
