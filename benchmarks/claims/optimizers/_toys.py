"""Small problems that more than one claim runs on."""

import jax
import jax.numpy as jnp
import optax


def descend(tx, loss, start, num_steps, *, noise=None, key=None, extras=lambda loss, x: {}):
    """The point after `num_steps` of an optimizer.

    `noise(key, gradient)` makes gradients stochastic; `extras(loss, x)` gives extra arguments.
    """
    keys = jax.random.split(jax.random.key(0) if key is None else key, num_steps)
    tx = optax.with_extra_args_support(tx)

    def step(carry, key):
        x, state = carry
        gradient = jax.grad(loss)(x)
        gradient = gradient if noise is None else noise(key, gradient)
        updates, state = tx.update(gradient, state, x, **extras(loss, x))
        return (optax.apply_updates(x, updates), state), None

    return jax.lax.scan(step, (start, tx.init(start)), keys)[0][0]


def rosenbrock(x):
    """A curved valley with its minimum at (1, 1); runs start at `ROSENBROCK_START`."""
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


ROSENBROCK_START = jnp.array([-1.5, 2.0], jnp.float32)


def curvature(loss, x):
    """What the curvature optimizers ask for."""
    return {"loss_fn": loss}
