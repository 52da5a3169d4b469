"""Second derivatives of functions of singular values, where these are repeated or zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import prox

RNG = np.random.default_rng(0)
LEFT = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
RIGHT = np.linalg.qr(RNG.normal(size=(4, 4)))[0][:, :3]
WEIGHT, ALONG = RNG.normal(size=(2, 3, 4))
VALUES = np.array([[3.0, 2.0, 1.0], [2.0, 2.0, 0.5], [2.0, 0.1, 0.1], [2.0, 0.1, 0.0]])
MAPS = {
    "nuclear norm": lambda x, t: prox.NuclearNorm(t).prox(x, 1.0),
    "nuclear ball": lambda x, t: prox.NuclearBall(2.5 * t).project(x),
}


@pytest.mark.parametrize("name", MAPS)
def test_second_derivatives_against_differences_of_first(name):
    points = jnp.asarray(np.einsum("ij,sj,kj->sik", LEFT, VALUES, RIGHT))
    slopes = jax.grad(lambda x, t: jnp.sum(WEIGHT * jnp.sin(MAPS[name](x, t))), argnums=(0, 1))
    size = 1e-5

    @jax.jit
    @jax.vmap
    def run(x):
        moves = ((jnp.asarray(ALONG), jnp.zeros(())), (jnp.zeros((3, 4)), jnp.ones(())))
        found = [jax.jvp(slopes, (x, jnp.asarray(0.7)), move)[1] for move in moves]
        at = lambda h, move: slopes(x + h * move[0], 0.7 + h * move[1])
        wanted = [
            jax.tree.map(lambda a, b: (a - b) / (2 * size), at(size, move), at(-size, move))
            for move in moves
        ]
        return found, wanted

    found, wanted = run(points)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)
    assert np.max(np.abs(wanted[0][0])) > 0.05
