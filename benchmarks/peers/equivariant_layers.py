"""Equivariant layers by diagrams against the product with their dense weight matrix."""

import math

import jax
import jax.numpy as jnp

from benchmarks.timing import race
from jaxopt_ext.linalg import EquivariantLinear, Orthogonal, Symmetric, Symplectic

TITLE = (
    "a layer from order 2 to order 2 with all diagrams of its group, two channels in and out, 32 "
    "inputs, float32, forward and its gradient; the dense matrix is the layer of unit tensors. "
    "The power is that of n from one row to the next"
)

GROUPS = {"orthogonal": Orthogonal(), "symplectic": Symplectic(), "symmetric": Symmetric()}
SIZES = (8, 16, 32)
CHANNELS, BATCH = 2, 32


def run() -> list[dict]:
    return [row for name in GROUPS for row in _rows(name)]


def _rows(name):
    table, before = [], {}
    for n in SIZES:
        one, other = jax.random.split(jax.random.key(n))
        layer = EquivariantLinear(n, 2, 2, CHANNELS, CHANNELS, GROUPS[name], bias=False, key=one)
        size = CHANNELS * n * n
        units = jnp.eye(size).reshape(size, CHANNELS, n, n)
        matrix = layer(units).reshape(size, size)
        x = jax.random.normal(other, (BATCH, CHANNELS, n, n))
        by_diagrams = lambda layer, x: layer(x)
        by_matrix = lambda matrix, x: (x.reshape(BATCH, -1) @ matrix).reshape(x.shape)
        for what, wrap in (("forward", lambda f: f), ("gradient", _gradient)):
            ours, dense = jax.jit(wrap(by_diagrams)), jax.jit(wrap(by_matrix))
            calls = {
                "ours": lambda ours=ours, layer=layer, x=x: ours(layer, x),
                "dense": lambda dense=dense, matrix=matrix, x=x: dense(matrix, x),
            }
            mine, theirs = (jax.tree.leaves(call())[-1] for call in calls.values())
            error = float(jnp.max(jnp.abs(mine - theirs)) / jnp.max(jnp.abs(theirs)))
            for timing in race(calls, reference="ours", rounds=9):
                key = (what, timing.name)
                last = before.get(key)
                table.append(
                    {
                        "group": name,
                        "what": what,
                        "n": n,
                        "who": timing.name,
                        "ms": 1e3 * timing.seconds,
                        "ratio": timing.ratio,
                        "power": math.log2(timing.seconds / last) if last else "",
                        "error": error if timing.name == "ours" else 0.0,
                    }
                )
                before[key] = timing.seconds
    return sorted(table, key=lambda row: row["what"] == "gradient")


def _gradient(fun):
    """With respect to weights and inputs."""
    return jax.grad(lambda weights, x: jnp.sum(fun(weights, x) ** 2), argnums=(0, 1))
