"""One gradient or Jacobian for each sample of a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def per_sample_grads(
    loss: Callable[[PyTree[Array], Any], Float[Array, ""]],
    params: PyTree[Array],
    batch: PyTree[Array],
) -> PyTree[Array]:
    """The gradient of the loss of each sample.

    **Arguments:**

    - `loss`: maps parameters and one sample to a scalar.
    - `params`: where the gradients are taken.
    - `batch`: samples, stacked on the leading axis of each leaf.

    **Returns:** a tree like `params` whose leaves have a leading axis of samples: as much memory as
    the parameters for each of them.
    """
    return jax.vmap(jax.grad(loss), (None, 0))(params, batch)


def flat_jacobian(
    predict_fn: Callable[[PyTree[Array], Any], Float[Array, "..."]],
    params: PyTree[Array],
    inputs: PyTree[Array],
) -> tuple[Float[Array, "b c"], Float[Array, "bc d"]]:
    """Outputs for a batch, and their Jacobian in all parameters as one matrix.

    **Arguments:**

    - `predict_fn`: maps parameters and one input to its c outputs.
    - `params`: pytree of d numbers, where the Jacobian is taken.
    - `inputs`: b inputs, stacked on the leading axis of each leaf.

    **Returns:** the outputs, (b, c), and the Jacobian, (bc, d): rows sample by sample, columns in
    the order of `jax.flatten_util.ravel_pytree`.
    """

    def outputs(p, x):
        flat = jnp.ravel(predict_fn(p, x))
        return flat, flat

    differentiate = jax.jacrev(outputs, has_aux=True)
    blocks, values = jax.vmap(differentiate, (None, 0))(params, inputs)
    rows = values.size
    columns = [block.reshape(rows, -1) for block in jax.tree.leaves(blocks)]
    if not columns:
        return values, jnp.zeros((rows, 0), values.dtype)
    return values, jnp.concatenate(columns, axis=1)
