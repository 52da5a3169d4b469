"""Gradient transformations fed with given gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def replay(tx, params, grads):
    """Parameters and states after each step, stacked."""

    @jax.jit
    def run(params, grads):
        def step(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, state)

        return jax.lax.scan(step, (params, tx.init(params)), grads)[1]

    return run(params, grads)


def trajectory(tx, params, grads):
    """Parameters after each step, stacked."""
    return replay(tx, params, grads)[0]


def leaves_of_each_rank(dtype, steps=12, seed=0):
    """Parameters with matrices of both orientations, a vector and a scalar, and gradients."""
    rng = np.random.default_rng(seed)
    shapes = {"tall": (6, 4), "wide": (3, 8), "bias": (5,), "scale": ()}
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), dtype)
    params = {k: draw(s) for k, s in shapes.items()}
    grads = {k: draw((steps, *s)) for k, s in shapes.items()}
    return params, grads


def descend(tx, loss, start, num_steps):
    """The point after some steps along the gradients of a loss."""

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(jax.grad(loss)(x), state, x)
        return (optax.apply_updates(x, updates), state), None

    return jax.lax.scan(step, (start, tx.init(start)), length=num_steps)[0][0]


def rosenbrock_after(tx, num_steps):
    """Rosenbrock's function after some steps from (-1.5, 2)."""
    loss = lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    return loss(descend(tx, loss, jnp.array([-1.5, 2.0]), num_steps))
