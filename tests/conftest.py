"""Eight host devices, 64-bit types and one compilation cache for the whole suite."""

import contextlib
import os
import pathlib

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.monitoring
import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

jax.config.update("jax_enable_x64", True)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(autouse=True)
def few_executables():
    """Every executable holds memory maps, of which a process may have 65,530 on Linux."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(params=[jnp.float32, jnp.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def key():
    return jax.random.key(0)


class Traces:
    count = 0


@pytest.fixture
def trace_count():
    """A context manager that counts the functions traced inside it."""

    @contextlib.contextmanager
    def counting():
        traces = Traces()

        def listen(event, duration, **kwargs):
            if event == "/jax/core/compile/jaxpr_trace_duration":
                traces.count += 1

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield traces
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    return counting
