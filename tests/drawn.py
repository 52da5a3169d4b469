"""Random networks of tests in several files: of draws of JAX, each shape is a program to compile,
of numpy's none is. So is, where `jnp.asarray` takes an array of numpy, the copy, but not that of
`jnp.array`."""

import contextlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext.core.constants import Untrained


def drawn(make, seed=0, scale=1.0):
    """What `make()` makes, with normal numbers in all places, those that start at zero too."""
    rng = np.random.default_rng(seed)
    normal = lambda shape, dtype: (scale * rng.normal(size=shape)).astype(dtype)

    def fill(leaf):
        if isinstance(leaf, Untrained):
            bits = normal(leaf.bits.shape, leaf.dtype).view(leaf.bits.dtype)
            return eqx.tree_at(lambda u: u.bits, leaf, jnp.array(bits))
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        assert jnp.issubdtype(leaf.dtype, jnp.inexact), leaf
        return jnp.array(normal(leaf.shape, leaf.dtype))

    is_leaf = lambda x: isinstance(x, Untrained)
    return jax.tree.map(fill, eqx.filter_eval_shape(make), is_leaf=is_leaf)


@contextlib.contextmanager
def numpy_draws(seed=0):
    """`jax.random.normal` and `uniform` draw from numpy, whatever the key; not for programs."""
    rng = np.random.default_rng(seed)
    cast = lambda a, dtype: jnp.array(a.astype(jnp.zeros(()).dtype if dtype is None else dtype))

    def normal(key, shape=(), dtype=None):
        return cast(rng.normal(size=shape), dtype)

    def uniform(key, shape=(), dtype=None, minval=0.0, maxval=1.0):
        return cast(rng.uniform(minval, maxval, size=shape), dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", normal)
        patch.setattr(jax.random, "uniform", uniform)
        patch.setattr(jax.random, "split", lambda key, num=2: [key] * num)
        yield
