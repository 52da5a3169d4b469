"""Solves on data spread over a pod, and over two processes."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

import jaxopt_ext as jxt
from jaxopt_ext import distributed, prox
from jaxopt_ext.minimize import FISTA, FixedStep, ProximalGradient

CHIPS, ROWS, D = 256, 64, 128
DATA_BYTES = 4 * CHIPS * ROWS * D


def shapes():
    """A row-sharded matrix, its targets, and a replicated penalty, on 256 chips."""
    from aot import topology  # not needed by the processes started below

    mesh = Mesh(np.array(topology("v5e:16x16").devices), ("rows",))
    cut, whole = NamedSharding(mesh, P("rows")), NamedSharding(mesh, P())
    array = lambda shape, sharding: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    n = CHIPS * ROWS
    return array((), whole), array((n, D), cut), array((n,), cut)


def lasso(lam, X, y, solver):
    problem = jxt.Composite(jxt.objectives.SquaredLoss(X, y), prox.L1(lam))
    return jxt.solve(problem, solver, jnp.zeros(X.shape[1], X.dtype)).value


def consensus(lam, X, y):
    """Each chip's rows are a part with its own copy of the variable."""
    parts = X.reshape(CHIPS, ROWS, D), y.reshape(CHIPS, ROWS)
    loss = lambda w, part: 0.5 * jnp.mean((part[0] @ w - part[1]) ** 2) / CHIPS
    problem = jxt.splitting.consensus(loss, parts, prox.L1(lam))
    inner = ProximalGradient(FixedStep(0.5), max_steps=10)
    solver = jxt.splitting.ADMM(x_update=jxt.splitting.InexactUpdate(inner), max_steps=50)
    return jxt.solve(problem, solver, jnp.zeros((CHIPS, D), X.dtype)).value.z


def program(lam, X, y):
    """A quadratic program with a row for each row of the data."""
    P_, q = jnp.eye(D, dtype=X.dtype), jnp.full(D, -1.0, X.dtype) * lam
    problem = jxt.QuadraticProgram(P_, q, X, y - 1, y + 1)
    return jxt.solve(problem, jxt.splitting.OSQP(max_steps=20, polish=False), None).value.primal


def compiled(fun, derivative):
    if derivative:
        inner = fun
        fun = jax.grad(lambda *args: jnp.sum(inner(*args) ** 2), argnums=(0, 1))
    with jax.enable_x64(False):
        return jax.jit(fun).lower(*shapes()).compile()


def assert_the_data_stay_where_they_are(executable, largest):
    """Only sums cross the mesh, of at most `largest` numbers at once, and no chip holds it all."""
    sent = distributed.collective_bytes(executable)
    assert set(sent) == {"all-reduce"}, sent
    sizes = re.findall(r"f32\[([\d,]*)\][^=]*? all-reduce(?:-start)?\(", executable.as_text())
    assert max(int(np.prod([int(d) for d in s.split(",") if d])) for s in sizes) <= largest
    memory = executable.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert held < DATA_BYTES / 2, held


@pytest.mark.parametrize("derivative", [False, True], ids=["value", "gradient"])
def test_fista_on_a_pod(derivative):
    solver = FISTA(FixedStep(0.1))
    executable = compiled(lambda *args: lasso(*args, solver), derivative)
    # The Jacobian of so few variables is formed, and summed over the rows.
    assert_the_data_stay_where_they_are(executable, largest=D**2 if derivative else D)
    if not derivative:
        # A gradient in each step, and the residual where a step is small enough: each one sum.
        assert len(re.findall(r" all-reduce(?:-start)?\(", executable.as_text())) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("derivative", [False, True], ids=["value", "gradient"])
@pytest.mark.parametrize("fun", [consensus, program])
def test_admm_and_quadratic_programs_on_a_pod(fun, derivative):
    executable = compiled(fun, derivative)
    assert_the_data_stay_where_they_are(executable, largest=(CHIPS + D) * D)


def fitted(place):
    """A lasso and its derivatives, on rows that `place` puts somewhere."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 6)), rng.normal(size=40)
    solver = FISTA(tol=1e-11, max_steps=20_000)
    score = lambda lam, X, y: jnp.sum(jnp.sin(lasso(lam, X, y, solver)))
    run = jax.jit(lambda *args: (lasso(*args, solver), jax.grad(score, argnums=(0, 1))(*args)))
    value, (by_penalty, by_data) = run(jnp.asarray(0.05), place(X), place(y))
    return {"value": value, "penalty": by_penalty, "data": by_data}


def test_two_processes_find_what_one_finds(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(pathlib.Path(__file__)), port, str(tmp_path / "found.npz")]
    running = [subprocess.Popen([*command, str(i)], env=os.environ | flags) for i in (0, 1)]
    try:
        assert [process.wait(timeout=240) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    found = np.load(tmp_path / "found.npz")
    for name, expected in fitted(jnp.asarray).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-7, atol=1e-9, err_msg=name)


def _process(port, out, rank):
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
    from jax.experimental import multihost_utils

    rows = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), P("rows"))

    def place(array):
        return jax.make_array_from_callback(array.shape, rows, lambda index: array[index])

    found = fitted(place)
    found = jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), found)
    if rank == 0:
        np.savez(out, **found)


if __name__ == "__main__":
    _process(sys.argv[1], sys.argv[2], int(sys.argv[3]))
