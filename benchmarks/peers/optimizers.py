"""One update over ten million parameters, every optimizer of the catalogue against Adam."""

import jax
import jax.numpy as jnp
import optax

from benchmarks.timing import race
from jaxopt_ext import catalog

TITLE = "one update of 10 leaves of 1000 x 1000, jitted, buffers donated, against optax.adam"

_SUBSPACE = (
    "1 GFLOP per matrix: down to a 1000 x 250 basis and up again; the SVD of every 200th step is "
    "not in this time"
)
WHY = {
    "optimizers.microadam": "top_k of each block of 32768 entries is two thirds of it; then 4-bit "
    "codes and the window's scatter-add",
    "optimizers.online_subspace_descent": "1.6 GFLOP per matrix: down to a 1000 x 250 basis, up "
    "again, and the gradient of the PCA loss; an SVD at the first step only",
    "optimizers.adam_snsm": _SUBSPACE,
    "optimizers.adan": "four trees of state where Adam has two",
    "optimizers.adamp": "inner products of weights with gradients and steps, before the step",
    "optimizers.sgdp": "inner products of weights with gradients and steps, before the step",
    "optimizers.multiadam": "two groups: twice Adam's gradients and state",
    "optimizers.multi_momentum": "two clusters: a table of their gradients beside the momentum",
    "optimizers.subspace_momentum": _SUBSPACE,
    "optimizers.adafactor": "row and column sums, then a second pass for the step and its size",
    "optimizers.ademamix": "three trees of state where Adam has two",
    "optimizers.amsgrad": "three trees of state where Adam has two",
    "optimizers.amsbound": "three trees of state where Adam has two",
    "optimizers.opt_amsgrad": "shifts six gradients and takes their inner products",
}


def tree(scale: float, leaves: int = 10, side: int = 1000):
    keys = jax.random.split(jax.random.key(0), leaves)
    return [scale * jax.random.normal(key, (side, side), jnp.float32) for key in keys]


def extra_arguments(names, gradients):
    """Extra arguments that cost next to nothing themselves."""
    tenth = lambda point: jax.tree.map(lambda x: 0.1 * x, point)
    known = {
        "value": lambda: jnp.float32(1.0),
        "grad_fn": lambda: tenth,
        "hvp_fn": lambda: lambda point, vector: tenth(vector),
        "batch": lambda: (jnp.arange(8), jnp.zeros(8)),
        "key": lambda: jax.random.key(0),
        "loss_grads": lambda: jax.tree.map(lambda g: jnp.stack([g, g]), gradients),
        "per_sample_grads": lambda: jax.tree.map(lambda g: jnp.stack([g, -0.5 * g]), gradients),
        "cluster_id": lambda: jnp.int32(0),
        "cluster_grads": lambda: jax.tree.map(lambda g: jnp.stack([g, g]), gradients),
        "cluster_frac": lambda: jnp.full(2, 0.5, jnp.float32),
    }
    return {name: known[name]() for name in names}


def stepper(tx, extras=()):
    """A function of no arguments that takes one step, and the bytes of its state."""
    gradients = tree(1e-2)
    extra = extra_arguments(extras, gradients)
    static = {name: value for name, value in extra.items() if callable(value)}
    arrays = {name: value for name, value in extra.items() if name not in static}

    def step(params, state, gradients, arrays):
        updates, state = tx.update(gradients, state, params, **arrays, **static)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    params = tree(1.0)
    cell = [(params, jax.jit(tx.init)(params))]
    size = sum(x.nbytes for x in jax.tree.leaves(cell[0][1]) if x.ndim)

    def call():
        cell[0] = compiled(*cell[0], gradients, arrays)
        return cell[0]

    return call, size


def run(filters=()) -> list[dict]:
    table = []
    for row in catalog.rows("optimizer"):
        if filters and not any(f in row.public for f in filters):
            continue
        try:
            call, size = stepper(row.transformation(tree(1.0)), row.extras)
            adam, _ = stepper(optax.adam(1e-3))
            timings = race({"adam": adam, row.name: call}, reference="adam", rounds=9)
        except Exception as error:
            table.append({"method": row.name, "why": f"{type(error).__name__}: {error}"[:120]})
            continue
        table.append(
            {
                "method": row.name,
                "ms": 1e3 * timings[1].seconds,
                "x optax.adam": timings[1].ratio,
                "state bytes per parameter": size / 1e7,
                "why": WHY.get(row.public, ""),
            }
        )
    return table
