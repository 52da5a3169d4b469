import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext.optimizers.projectors import (
    CoordinateProjector,
    OrthonormalProjector,
    SVDProjector,
    TopNormProjector,
    low_shape,
    resolve_rank,
)

PROJECTORS = [SVDProjector(), OrthonormalProjector(), CoordinateProjector(), TopNormProjector()]
SHAPES = [(7, 4), (4, 7), (5, 5), (1, 3)]


def matrix(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    return jnp.asarray(a if jnp.issubdtype(dtype, jnp.complexfloating) else a.real, dtype)


def name(x):
    return type(x).__name__


@pytest.mark.parametrize("projector", PROJECTORS, ids=name)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.complex128])
def test_up_down_is_an_orthogonal_projection(projector, shape, dtype, key):
    g, h, rank = matrix(shape, dtype), matrix(shape, dtype, 1), max(1, min(shape) // 2)

    @jax.jit
    def apply(g, h):
        basis = projector.fit(g, rank, key)
        project = lambda x: projector.up(projector.down(x, basis), basis, shape)
        return basis, projector.down(g, basis), project(g), project(h), project(project(g))

    basis, low, pg, ph, ppg = apply(g, h)
    empty = projector.empty(shape, rank, dtype)
    assert (basis.shape, basis.dtype) == (empty.shape, empty.dtype)
    assert low.shape == low_shape(shape, rank)
    assert low.dtype == pg.dtype == dtype
    tol = 1e-5 if dtype == jnp.float32 else 1e-12
    np.testing.assert_allclose(ppg, pg, atol=tol)
    np.testing.assert_allclose(np.vdot(pg, h), np.vdot(g, ph), atol=10 * tol)
    assert np.linalg.matrix_rank(np.asarray(pg), tol=1e-4) == rank
    np.testing.assert_allclose(np.vdot(pg, g - pg), 0, atol=10 * tol)


@pytest.mark.always(1)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_svd_projector_is_the_best_approximation(shape, key):
    g = matrix(shape, jnp.float64)
    projector = SVDProjector()
    basis = projector.fit(g, 2, key)
    lost = g - projector.up(projector.down(g, basis), basis, shape)
    singular = np.linalg.svd(np.asarray(g), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(lost) ** 2, np.sum(singular[2:] ** 2), rtol=1e-10)


def test_top_norm_projector_takes_the_longest_lines(key):
    g = matrix((6, 4), jnp.float64) * jnp.asarray([1.0, 100.0, 0.01, 10.0])
    assert sorted(TopNormProjector().fit(g, 2, key).tolist()) == [1, 3]
    assert sorted(TopNormProjector().fit(g.T, 2, key).tolist()) == [1, 3]
    spread = jnp.array([[2.0, 3.0], [2.0, 0.0], [0.0, 0.0]])  # larger sum, smaller norm
    assert TopNormProjector().fit(spread, 1, key).tolist() == [1]


def test_coordinates_are_drawn_without_replacement(key):
    fit = lambda key: CoordinateProjector().fit(jnp.zeros((9, 6)), 3, key)
    drawn = np.asarray(jax.vmap(fit)(jax.random.split(key, 600)))
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    assert np.all(np.abs(np.bincount(drawn.ravel(), minlength=6) / 600 - 0.5) < 0.08)


@pytest.mark.always(1)
@pytest.mark.parametrize("projector", PROJECTORS, ids=name)
def test_rank_zero_keeps_nothing(projector, key):
    g = matrix((5, 3), jnp.float32)
    basis = projector.fit(g, 0, key)
    assert np.all(projector.up(projector.down(g, basis), basis, g.shape) == 0)


def test_resolve_rank():
    assert resolve_rank(3, (8, 4)) == 3
    assert resolve_rank(0.25, (64, 128)) == 16
    assert resolve_rank(0.25, (3, 1)) == 1
    assert resolve_rank(1.0, (3, 5)) == 3
    with pytest.raises(ValueError, match=r"rank 5 .* \(8, 4\)"):
        resolve_rank(5, (8, 4))
