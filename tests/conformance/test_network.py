"""Every network algorithm in the catalogue keeps the contract of network algorithms."""

import functools
import os
import pathlib
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import network_task as task
import numpy as np
import pod_task
import pytest
from aot import topology

from jaxopt_ext import catalog, distributed
from jaxopt_ext.core import checkpoint

ROWS = catalog.rows(catalog.NetworkRow)


def _params(ordinary):
    marks = lambda row: () if ordinary(row) else pytest.mark.slow
    return [pytest.param(row, id=row.name, marks=marks(row)) for row in ROWS]


LEADING = {row.system or row.name: row for row in reversed(ROWS)}


def _leads(row):
    """Whether it is the first of its system: the others compile for a pod, and are killed and
    resumed, in slow tests."""
    return not row.relative and LEADING[row.system or row.name] is row


# All checks of a row follow each other, so that its programs are still there.
FIRST = pytest.mark.parametrize("row", _params(_leads), scope="module")
EACH = pytest.mark.parametrize("row", _params(lambda row: not row.relative), scope="module")
CHECKS = ("exact", "mesh", "processes", "resume", "pod", "dtype")


def _skip(row, check):
    if row.reason(check):
        pytest.skip(row.reason(check))


def test_there_are_algorithms_and_known_opt_outs():
    assert ROWS
    for row in ROWS:
        assert set(row.opt_outs) <= set(CHECKS), row.name


@functools.cache
def _simulated(row):
    return task.run(row, task.simulated(row), 20)


@EACH
def test_reaches_the_exact_optimum(row):
    _skip(row, "exact")
    params = task.joined(task.run(row, task.simulated(row), 1500, record_every=500).params)
    np.testing.assert_allclose(params, np.tile(task.OPTIMUM, (task.NODES, 1)), atol=1e-6)


# Two nodes on each device in any run; one on each, and all on one, where time does not matter: two
# processes below have eight devices too.
MESHES = [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(8, marks=pytest.mark.slow)]


@EACH
@pytest.mark.parametrize("devices", MESHES)
def test_mesh_equals_simulation(row, devices):
    _skip(row, "mesh")
    simulated = _simulated(row)
    # Losses may not trace with the check of shard_map on, so it is off if nobody asks for it.
    network = task.on_mesh(row, jax.devices()[:devices], check_vma=devices == 4)
    meshed = task.run(row, network, 20)
    for a, b in zip(jax.tree.leaves(simulated.state), jax.tree.leaves(meshed.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@functools.cache
def _talk(row):
    """The collectives of a round, and whether they bring what all the others have."""
    if row.collectives is None:
        return ("collective-permute",), False
    params = jax.eval_shape(lambda: jax.tree.map(lambda x: x[None], task.start()))
    sizes = [
        row.collectives(params, types.SimpleNamespace(size=size, max_degree=2)) for size in (8, 16)
    ]
    return tuple(sorted(sizes[0])), sizes[0] != sizes[1]


@functools.cache
def _first_to_talk_so(row):
    """What two processes add is that collectives cross them: of the rows that talk alike one, and
    not DADAO, which takes ten times as long to compile."""
    able = [other for other in ROWS if not other.reason("processes")]
    able.sort(key=lambda other: other.public == "distributed.DADAO")
    return row is next((other for other in able if _talk(other) == _talk(row)), row)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, request):
    wanted = {
        item.callspec.params["row"].name
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_two_processes_equal_simulation"
    }
    out = tmp_path_factory.mktemp("processes") / "result.npz"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    assert "device_count=4" in flags
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    script = pathlib.Path(task.__file__)
    command = [sys.executable, str(script)]
    running = [
        subprocess.Popen([*command, str(rank), port, str(out), *sorted(wanted)], env=environment)
        for rank in (0, 1)
    ]
    try:
        codes = [process.wait(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0, 0]
    return np.load(out)


@pytest.mark.parametrize("row", _params(_first_to_talk_so), scope="module")
def test_two_processes_equal_simulation(row, two_processes):
    _skip(row, "processes")
    expected = task.joined(_simulated(row).params)
    np.testing.assert_allclose(two_processes[row.name], expected, rtol=1e-9, atol=1e-9)


def test_two_processes_solve_what_one_does(two_processes):
    for name, expected in pod_task.fitted(jnp.asarray).items():
        found = two_processes[f"solve: {name}"]
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9, err_msg=name)


class _Killed(Exception):
    pass


@FIRST
def test_killed_and_resumed_is_bitwise_the_same(row, tmp_path, monkeypatch):
    _skip(row, "resume")
    options = {"record_every": 4, "metric": distributed.consensus_distance}
    whole = task.run(row, task.simulated(row), 18, **options)

    save, calls = checkpoint.save, []

    def save_and_die(path, tree):
        save(path, tree)
        calls.append(path)
        if len(calls) == 2:
            raise _Killed

    file = tmp_path / "state"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_die)
        with pytest.raises(_Killed):
            task.run(row, task.simulated(row), 18, checkpoint=file, **options)
    resumed = task.run(row, task.simulated(row), 18, checkpoint=file, **options)
    assert resumed.rounds == whole.rounds == 18
    for a, b in zip(
        jax.tree.leaves((whole.state, whole.history)),
        jax.tree.leaves((resumed.state, resumed.history)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("devices", [1, 4])
def test_resumed_on_other_devices_is_bitwise_the_same(devices, tmp_path):
    row = ROWS[0]
    task.run(row, task.on_mesh(row, jax.devices()), 10, checkpoint=tmp_path / "state")
    network = task.on_mesh(row, jax.devices()[:devices]) if devices > 1 else task.simulated(row)
    resumed = task.run(row, network, 20, checkpoint=tmp_path / "state")
    for a, b in zip(*map(jax.tree.leaves, (_simulated(row).state, resumed.state)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_processes_resume_from_what_each_saved(two_processes):
    for name in ("whole", "resumed"):
        np.testing.assert_array_equal(two_processes[name], two_processes["alone"])
    assert two_processes["files"] == 6  # the last three of each
    assert two_processes["records"] == 4


@EACH
def test_keeps_single_precision(row):
    _skip(row, "dtype")
    network, algorithm = task.simulated(row), row.example(task.loss)
    params = network.replicate(task.start(jnp.float32))
    batch, key = task.batch(jnp.float32), jax.random.key(0)

    def two_rounds(params):
        state = algorithm.init(params, batch, network, key)
        once = algorithm.round(state, batch, network, key)
        return state, once, algorithm.round(once, batch, network, key)

    for state in jax.eval_shape(two_rounds, params):
        floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
        assert {x.dtype for x in floats} == {jnp.dtype(jnp.float32)}


# The compiler takes long for the all-to-alls of so many chips.
@pytest.mark.parametrize(
    "row",
    _params(lambda row: _leads(row) and "all-to-all" not in _talk(row)[0]),
    scope="module",
)
def test_compiles_for_a_pod_and_sends_what_it_says(row):
    _skip(row, "pod")
    chips = topology("v5e:16x16").devices
    mesh = jax.sharding.Mesh(np.array(chips), ("nodes",))
    # A torus: each node has four neighbours.
    graph = task.graph(row, 256) if row.graph else distributed.torus(16, 16)
    network = distributed.Network.on_mesh(graph, mesh, "nodes")
    nodes = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("nodes"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    algorithm = row.example(task.loss)

    def stacked(x):
        return jax.ShapeDtypeStruct((256, *x.shape), jnp.float32, sharding=nodes)

    params = jax.tree.map(stacked, task.start())
    batch = tuple(jax.tree.map(lambda x: stacked(x[0]), task.batch()))
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)

    def init(params, batch, key):
        return algorithm.init(params, batch, network, key)

    def once(state, batch, key):
        return algorithm.round(state, batch, network, key)

    state = jax.eval_shape(network.parallel(init), params, batch, key)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=nodes), state)
    compiled = jax.jit(network.parallel(once)).lower(state, batch, key).compile()
    sent = distributed.collective_bytes(compiled)
    bits = algorithm.bits_per_round(params, network)
    # A row whose method does not send its parameters to each neighbour says what it sends.
    if row.collectives is None:
        assert sent == {"collective-permute": bits // 8}
    else:
        assert sent == row.collectives(params, network)
    assert bits > 0
