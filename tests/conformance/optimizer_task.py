"""What the conformance suite of optimizers asks them to do."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from jaxopt_ext.optimizers import hessian_vector_product

SHAPES = {"matrix": (6, 4), "vector": (5,), "scalar": ()}


def tree(seed, dtype=jnp.float32, shapes=SHAPES):
    """Normal entries; complex ones for a complex type."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: rng.normal(size=shape) + 1j * rng.normal(size=shape)
    real = not jnp.issubdtype(dtype, jnp.complexfloating)
    return {
        name: jnp.asarray(draw(shape).real if real else draw(shape), dtype)
        for name, shape in shapes.items()
    }


@dataclasses.dataclass(frozen=True)
class Parabola:
    """Half the squared distance to a target, plus a fourth power that bends it."""

    target: Any
    bend: float = 0.0

    def __call__(self, params):
        gaps = jax.tree.map(lambda p, t: jnp.abs(p - t) ** 2, params, self.target)
        squares = [
            0.5 * jnp.sum(g) + 0.25 * self.bend * jnp.sum(g**2) for g in jax.tree.leaves(gaps)
        ]
        return functools.reduce(jnp.add, squares, jnp.zeros(()))

    def gradient(self, params):
        """The direction of steepest ascent, also for complex parameters."""
        return jax.tree.map(jnp.conj, jax.grad(self)(params))

    def extras(self, names, params, grads, step):
        """The extra arguments of one update, all consistent with `grads`."""
        flat = ravel_pytree(self.target)[0]
        stacked = lambda *factors: jax.tree.map(
            lambda g: jnp.stack([f * g for f in factors]), grads
        )
        known = {
            "value": lambda: self(params),
            "grad_fn": lambda: self.gradient,
            "hvp_fn": lambda: hessian_vector_product(self),
            "loss_grads": lambda: stacked(0.3, 0.7),
            "per_sample_grads": lambda: stacked(0.9, 1.0, 1.1),
            "cluster_id": lambda: jnp.asarray(step % 2, jnp.int32),
            "batch": lambda: (jnp.arange(flat.size), flat),
        }
        return {name: known[name]() for name in names}


def one_step(tx, row, loss):
    """`(params, state, step) -> (params, state)`."""

    def step(params, state, number):
        grads = loss.gradient(params)
        extras = loss.extras(row.extras, params, grads, number)
        updates, state = tx.update(grads, state, params, **extras)
        return optax.apply_updates(params, updates), state

    return step


def run(tx, row, loss, params, num_steps):
    """Parameters and state after a scan."""
    step = one_step(tx, row, loss)

    @jax.jit
    def scan(params):
        carry = params, tx.init(params)
        return jax.lax.scan(lambda c, n: (step(*c, n), None), carry, jnp.arange(num_steps))[0]

    return scan(params)


def path(tx, row, loss, params, num_steps):
    """Parameters and states after each step of a scan; to be compiled by the caller."""
    step = one_step(tx, row, loss)

    def body(carry, number):
        carry = step(*carry, number)
        return carry, carry

    return jax.lax.scan(body, (params, tx.init(params)), jnp.arange(num_steps))[1]


def transformer(width=64, layers=2, vocabulary=96, context=64):
    """The shapes of a small character transformer's parameters."""
    block = {
        "attention": {"qkv": (width, 3 * width), "out": (width, width)},
        "mlp": {"up": (width, 4 * width), "down": (4 * width, width), "bias": (4 * width,)},
        "norm": {"scale": (width,), "shift": (width,)},
    }
    shapes = {
        "embedding": (vocabulary, width),
        "position": (context, width),
        "layers": [block] * layers,
        "head": (width, vocabulary),
    }
    is_shape = lambda node: isinstance(node, tuple)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=is_shape)
