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
_SIGNS = "ten million random signs; the product itself costs nothing here"
_THREE = "three trees of state where Adam has two: thirteen passes over memory, not ten"
_RADIAL = "inner products of weights with gradients and steps, before the step"
WHY = {
    "MicroAdam": "top_k of each block of 32768 entries is two thirds of it; then 4-bit codes and "
    "the window's scatter-add",
    "Online Subspace Descent": "1.6 GFLOP per matrix: down to a 1000 x 250 basis, up again, and "
    "the gradient of the PCA loss; an SVD at the first step only",
    "AdamSNSM": _SUBSPACE,
    "Subspace-Momentum": _SUBSPACE,
    "Adan": "four trees of state where Adam has two: eighteen passes over memory, not ten",
    "AdamP": _RADIAL,
    "SGDP": _RADIAL,
    "MultiAdam": "two groups, twice Adam's gradients and state: eighteen passes over memory",
    "Norm-filtered aggressive stochastic weight averaging (NASWA)": "norms of the weights and of "
    "the average at each step: one pass more",
    "Multi-momentum variance reduction (Discover)": "two clusters; XLA on CPU copies the table of "
    "their momenta, twice, before it writes a row",
    "AdaHessian": _SIGNS,
    "OASIS": "three copies of the parameters, which it keeps, and norms of what changed since; "
    "random signs",
    "OASIS with momentum at a fixed rate": _SIGNS,
    "SANIA Hutchinson": _SIGNS,
    "SANIA AdaGrad-SQR": "the norm of the scaled gradient, a pass before the step",
    "SANIA Adam-SQR": "the norm of the scaled gradient, a pass before the step",
    "SANIA Newton": "a dense Hessian of all parameters: for small problems",
    "SANIA Newton-CG": "up to ten steps of conjugate gradients",
    "Exact Gauss-Newton (EGN)": "Jacobians of eight outputs, each as large as the parameters, and "
    "their Gram matrix",
    "AdAdaGrad": "means and variances over the gradients of two samples, twice Adam's input",
    "AdAdaGradNorm": "means and variances over the gradients of two samples, twice Adam's input",
    "AdaBelief with AMSGrad's maximum": _THREE,
    "Adafactor": "row and column sums, then a second pass for the step and its size",
    "AdEMAMix": _THREE,
    "AMSGrad": _THREE,
    "AMSBound": _THREE,
    "Optimistic AMSGrad": "ten trees of state; five inner products and a mean of differences of "
    "gradients",
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
    for row in catalog.rows(catalog.OptimizerRow):
        if filters and not any(f in row.public for f in filters):
            continue
        try:
            call, size = stepper(row.transformation(tree(1.0)), row.extras)
            adam, _ = stepper(optax.adam(1e-3))
            timings = race({"adam": adam, row.name: call}, reference="adam", rounds=9)
        except Exception as error:
            why = WHY.get(row.name, "") + f" ({type(error).__name__}: {error}"[:100] + ")"
            table.append({"method": row.name, "why": why})
            continue
        table.append(
            {
                "method": row.name,
                "ms": 1e3 * timings[1].seconds,
                "x optax.adam": timings[1].ratio,
                "state bytes per parameter": size / 1e7,
                "why": WHY.get(row.name, "") if timings[1].ratio > 1.15 else "",
            }
        )
    return table
