"""Solves on data spread over a pod."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from aot import topology
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from pod_task import lasso

import jaxopt_ext as jxt
from jaxopt_ext import distributed, prox
from jaxopt_ext.minimize import FISTA, FixedStep, ProximalGradient

CHIPS, ROWS, D = 256, 64, 128
DATA_BYTES = 4 * CHIPS * ROWS * D


def shapes():
    """A row-sharded matrix, its targets, and a replicated penalty, on 256 chips."""
    mesh = Mesh(np.array(topology("v5e:16x16").devices), ("rows",))
    cut, whole = NamedSharding(mesh, P("rows")), NamedSharding(mesh, P())
    array = lambda shape, sharding: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    n = CHIPS * ROWS
    return array((), whole), array((n, D), cut), array((n,), cut)


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
