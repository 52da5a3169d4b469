"""Eight host devices, 64-bit types, one compilation cache and a bill for the whole suite."""

import contextlib
import gc
import itertools
import os
import pathlib
import zlib
from collections import Counter, defaultdict

# Tests compile thousands of small programs and run each for milliseconds, so the compiler is
# asked for little: that is five times less work. Flags of the environment come last and win;
# TEST_COMPILER=default leaves the compiler to its own defaults.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        *(
            ()
            if os.environ.get("TEST_COMPILER") == "default"
            else (
                "--xla_backend_optimization_level=0",
                "--xla_llvm_disable_expensive_passes=true",
                "--xla_cpu_use_fusion_emitters=false",
                "--xla_cpu_parallel_codegen_split_count=1",
            )
        ),
        os.environ.get("XLA_FLAGS", ""),
    ]
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
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

TESTS_SEEN = itertools.count(1)


@pytest.fixture(autouse=True)
def few_executables():
    """Every executable holds memory maps, of which a process may have 65,530 on Linux."""
    yield
    if next(TESTS_SEEN) % 16:  # reading the maps takes milliseconds
        return
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(params=[jnp.float32, jnp.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


FOLDERS = [
    "conformance/test_aggregators.py",
    "core",
    "diffusion",
    "distributed",
    "fuzz",
    "games",
    "kernels",
    "linalg",
    "minimize",
    "optimizers",
    "prox",
    "splitting",
    "training",
]
HALVED = tuple(f"tests/{folder}" for folder in FOLDERS)


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "always(n): of the cases of a test the first n run always, the others are slow"
    )


BOTH = [jnp.float32, jnp.float64]


def _precision(item):
    """Which of the two it runs in, if it is asked in one."""
    callspec = getattr(item, "callspec", None)
    asked = None if callspec is None else callspec.params.get("dtype")
    return {dtype for dtype in BOTH if asked is dtype}


def _test(item):
    return item.nodeid.split("[")[0]


def _case(item):
    """Which case of its test it is, whatever its precision."""
    return item.nodeid.replace("float32", "").replace("float64", "")


def pytest_collection_modifyitems(items):
    """What of a test waits for the slow ones, as compiling is most of the time, once for each case.

    Of a test that is marked so all cases but the first few. Of one in both precisions, in the
    folders above, one of them: which one differs from test to test.
    """
    seen, precisions = defaultdict(dict), defaultdict(set)
    for item in items:
        few = item.get_closest_marker("always")
        if few is not None:
            cases = seen[_test(item)]
            if cases.setdefault(_case(item), len(cases)) >= few.args[0]:
                item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow") is None:
            precisions[_case(item)] |= _precision(item)
    for item in items:
        both = len(precisions[_case(item)]) == 2
        if item.nodeid.startswith(HALVED) and both and _precision(item):
            always = zlib.crc32(_case(item).encode()) % 2
            if _precision(item) != {BOTH[always]}:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish(session):
    """What is there by now stays, and traced programs are thousands of small objects each: looking
    through all of them every few hundred objects took a fifteenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


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


# The bill: CPU seconds of this process, its threads and its finished children.
CPU = "cpu_seconds"
STARTED = pytest.StashKey[float]()
WORKERS = pytest.StashKey[list]()


def _cpu_seconds():
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    item.stash[STARTED] = _cpu_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    # Teardown comes last, so its report carries the whole test to the process that sums up.
    if call.when == "teardown":
        item.user_properties.append((CPU, _cpu_seconds() - item.stash[STARTED]))
    return (yield)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a worker of pytest-xdist
        session.config.workeroutput[CPU] = _cpu_seconds()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    output = getattr(node, "workeroutput", {})
    node.config.stash.setdefault(WORKERS, []).append(output.get(CPU, 0.0))


def _family(nodeid):
    """The folder; a file of its own where it stands in no folder or in conformance."""
    parts = nodeid.split("::")[0].split("/")[1:]
    return "/".join(parts[: 2 if parts[0] == "conformance" else 1])


def bill(reports):
    """Seconds and number of tests for each family, and seconds of each test.

    Where a report has no CPU time, its wall time stands in.
    """
    tests, families, numbers = {}, Counter(), Counter()
    for report in reports:
        tests[report.nodeid] = dict(report.user_properties).get(CPU, report.duration)
        families[_family(report.nodeid)] += tests[report.nodeid]
        numbers[_family(report.nodeid)] += 1
    return families, numbers, tests


def pytest_terminal_summary(terminalreporter, config):
    everything = itertools.chain.from_iterable(terminalreporter.stats.values())
    reports = [r for r in everything if getattr(r, "when", None) == "teardown"]
    if not reports:
        return
    families, numbers, tests = bill(reports)
    line = terminalreporter.write_line
    terminalreporter.section("CPU seconds")
    for family, seconds in families.most_common():
        line(f"{seconds:8.1f}  {family} ({numbers[family]} tests)")
    workers = config.stash.get(WORKERS, None) or [_cpu_seconds()]
    line(f"{sum(workers) - sum(families.values()):8.1f}  imports and collection")
    line(f"{sum(workers):8.1f}  in all")
    terminalreporter.section("slowest tests")
    for test, seconds in Counter(tests).most_common(10):
        line(f"{seconds:8.1f}  {test}")
