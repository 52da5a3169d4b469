"""Random modules."""

import equinox as eqx
import jax


def draws(make, rng, dtype, scale=0.7):
    """What `make()` makes, with normal numbers of numpy in its arrays: the same draws of JAX would
    be a program for each shape.

    **Arguments:**

    - `rng`: numpy's generator.
    - `dtype`: of the arrays. `scale`: their standard deviation.
    """

    def fill(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jax.device_put((scale * rng.normal(size=leaf.shape)).astype(dtype))

    return jax.tree.map(fill, eqx.filter_eval_shape(make))
