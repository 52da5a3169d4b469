"""Maintained projections against those with everything formed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec as P

from jaxopt_ext import linalg
from jaxopt_ext.linalg import KroneckerProjection, PrivateMedian, SketchedProjection

FORMS = [linalg.OneSided(), linalg.TwoSided()]


def draw(seed, n, m):
    rng = np.random.default_rng(seed)
    U, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return rng, rng.normal(size=(m, n * n)), U, rng.uniform(0.5, 2, n)


def dense(A, U, lam, form):
    """$P$ by a QR factorization of $B^\\top$."""
    n = len(U)
    W = (U * lam) @ U.T
    if isinstance(form, linalg.OneSided):
        weights = np.kron(W, np.eye(n))
    else:
        root = (U * np.sqrt(lam)) @ U.T
        weights = np.kron(root, root)
    Q, _ = np.linalg.qr((A @ weights).T)
    return Q @ Q.T


@jax.jit
def whole(projection):
    """All columns of the projection."""
    return projection.query(jnp.eye(projection.G.shape[1], dtype=projection.G.dtype))


@pytest.mark.parametrize(
    ("form", "rounds"),
    [(FORMS[1], 3), *(pytest.param(f, 30, marks=pytest.mark.slow) for f in FORMS)],
)
def test_threshold_zero_is_exact(form, rounds):
    rng, A, U, lam = draw(0, 5, 12)
    projection = KroneckerProjection.build(A, U, lam, form=form, threshold=0.0)
    for _ in range(rounds):
        some = rng.random(5) < 0.3
        some[0] = True
        lam = lam * np.exp(some * rng.normal(size=5))
        projection = projection.update(lam)
        found = np.asarray(whole(projection))
        np.testing.assert_allclose(found, dense(A, U, lam, form), atol=1e-9)
        np.testing.assert_allclose(found, found.T, atol=1e-9)
        np.testing.assert_allclose(found @ found, found, atol=1e-9)
        np.testing.assert_allclose(projection.answered, lam)


@pytest.mark.parametrize(
    ("form", "rounds"),
    [(FORMS[0], 12), *(pytest.param(f, 200, marks=pytest.mark.slow) for f in FORMS)],
)
def test_errors_stay_below_the_threshold_and_commits_are_counted(form, rounds):
    threshold, n, m = 0.05, 8, 40
    rng, A, U, lam = draw(1, n, m)
    projection = KroneckerProjection.build(A, U, lam, form=form, threshold=threshold)
    for _ in range(rounds):
        lam = lam * np.exp(0.02 * rng.normal(size=n) + 0.1 * (rng.random(n) < 0.15))
        projection = projection.update(lam)
        answered = np.asarray(projection.answered)
        assert np.max(np.abs(np.log(answered / lam))) <= threshold
        gap = np.linalg.norm(whole(projection) - dense(A, U, lam, form), 2)
        assert gap <= 1.5 * threshold
        # For the weights that it answers for, it is exact.
        np.testing.assert_allclose(whole(projection), dense(A, U, answered, form), atol=1e-9)
    s = jax.tree.map(int, projection.statistics)
    assert s.commits + s.pending + s.ignored == rounds
    assert min(s.pending, s.commits) > 0
    fresh = projection.refresh()
    np.testing.assert_allclose(whole(fresh), dense(A, U, lam, form), atol=1e-10)


def test_what_is_below_the_threshold_or_few_is_not_committed():
    _, A, U, lam = draw(2, 9, 20)
    projection = KroneckerProjection.build(A, U, lam, threshold=0.1)
    near = projection.update(lam * 1.05)
    assert (near.statistics.ignored, near.statistics.commits) == (1, 0)
    np.testing.assert_array_equal(near.answered, lam)
    np.testing.assert_array_equal(near.eigenvalues, lam * 1.05)
    one = np.where(np.arange(9) < 2, 2.0, 1.05)
    few = projection.update(lam * one)  # 2 of 9, below the root of 9
    assert (few.statistics.pending, few.statistics.commits) == (1, 0)
    np.testing.assert_array_equal(few.committed, lam)
    np.testing.assert_allclose(few.answered, lam * np.where(one > 1.5, 2.0, 1.0))
    many = np.where(np.arange(9) < 4, 2.0, 1.0)
    many[4] = 1.0999  # far from the four: not taken along
    assert projection.update(lam * many).statistics.recomputations == 2  # of rank 36 above 20
    # Nearly as far off, and so taken along.
    long = KroneckerProjection.build(A, U, lam, threshold=np.log(1.9))
    like = np.array([2.0, 2.0, 2.0, 2.0, 1.85, 1.85, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(long.update(lam * like).answered, lam * like)


def test_nothing_of_fourth_power_size_is_formed():
    _, A, U, lam = draw(3, 7, 5)
    projection = KroneckerProjection.build(A, U, lam)
    text = str(jax.make_jaxpr(lambda p, h: p.query(h))(projection, jnp.ones(49)))
    assert "5,49]" in text
    assert "49,49]" not in text


def test_digits_that_were_lost_are_found():
    _, A, U, lam = draw(4, 9, 81 // 2)
    projection = KroneckerProjection.build(A, U, lam, threshold=0.0, batch_exponent=0.0)
    spoiled = dataclasses.replace(
        projection,
        N=projection.N * (1 + 1e-5),
        statistics=dataclasses.replace(projection.statistics, commits=jnp.asarray(9, jnp.int32)),
    )
    for start, wanted in ((spoiled, 2), (projection, 1)):
        moved = start.update(lam * np.where(np.arange(9) == 0, 1.5, 1.0))
        assert moved.statistics.recomputations == wanted


def sketched(seed, size, copies, **options):
    rng, A, U, lam = draw(seed, 6, 12)
    projection = KroneckerProjection.build(A, U, lam)
    return rng, SketchedProjection.build(projection, size, copies, jax.random.key(seed), **options)


@pytest.mark.slow
def test_sketches_are_unbiased_and_better_with_their_size():
    errors = []
    for size in (8, 32):
        rng, s = sketched(5, size, 400)
        h = rng.normal(size=36)
        answers = np.asarray(jax.jit(lambda s, h: s.answers(h))(s, h))
        exact = np.asarray(s.projection.query(h))
        spread = answers.std(axis=0) / np.sqrt(400)
        assert np.mean(np.abs(answers.mean(0) - exact) / spread) < 1.2
        assert np.all(np.abs(answers.mean(0) - exact) < 4.5 * spread)
        errors.append(np.sqrt(np.mean((answers - exact) ** 2)))
    assert 1.6 < errors[0] / errors[1] < 2.5  # the root of four


@pytest.mark.slow
def test_sketches_follow_updates_and_noise_is_not_theirs():
    rng, s = sketched(6, 4, 5)
    h = jnp.asarray(rng.normal(size=36))
    query = jax.jit(lambda s, h, key: s.query(h, key))
    for moved in (s.update(s.projection.eigenvalues * 1.5), s.refresh(jax.random.key(7))):
        again = SketchedProjection(
            moved.projection, moved.sketches, moved.kept, PrivateMedian(5, 1e6)
        )
        # Without noise, anywhere between the middle ones, of which five have three.
        answers = np.sort(again.answers(h), axis=0)
        step = np.ptp(answers, axis=0) / 255 + 1e-12
        found = query(again, h, jax.random.key(6))
        assert np.all((found >= answers[1] - step) & (found <= answers[3] + step))
    assert not np.array_equal(moved.sketches, s.sketches)
    first, second = (query(s, h, jax.random.key(k)) for k in (0, 1))
    assert np.any(first != second)
    np.testing.assert_array_equal(first, query(s, h, jax.random.key(0)))


def test_the_median_draws_by_the_exponential_mechanism():
    rows = jnp.asarray([[0.0], [0.2], [1.0]])
    median = PrivateMedian(3, 2.0, num_points=3)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: median(rows, key)))(keys)).ravel()
    weights = np.exp(-np.abs(np.array([1, 2, 3]) - 1.5))  # counts below 0, 0.5 and 1
    for point, p in zip((0.0, 0.5, 1.0), weights / weights.sum(), strict=True):
        assert abs(np.mean(drawn == point) - p) < 4 * np.sqrt(p * (1 - p) / 4000)


@pytest.mark.slow
def test_shard_map_and_single_precision():
    rng, A, U, lam = draw(8, 4, 6)
    cast = lambda a: jnp.asarray(a, jnp.float32)
    projection = KroneckerProjection.build(cast(A), cast(U), cast(lam), threshold=0.0)
    projection = projection.update(cast(lam * 1.3))
    h = cast(rng.normal(size=(2, 16)))
    mesh = Mesh(np.array(jax.devices()[:2]), "i")
    each = jax.shard_map(
        lambda p, h: p.query(h), mesh=mesh, in_specs=(P(), P("i")), out_specs=P("i")
    )
    found = jax.jit(each)(projection, h)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, h @ dense(A, U, lam * 1.3, linalg.OneSided()), atol=1e-4)


def test_bad_input_raises():
    _, A, U, lam = draw(9, 3, 4)
    build = KroneckerProjection.build
    for bad in (lam * 0, -lam, lam * np.nan):
        with pytest.raises(ValueError, match="lam must be positive"):
            build(A, U, bad)
    with pytest.raises(ValueError, match="orthogonal"):
        build(A, 1.001 * U, lam)
    with pytest.raises(ValueError, match="full rank"):
        build(np.vstack([A, A[:1]]), U, lam)
    with pytest.raises(ValueError, match="full rank"):
        build(np.random.default_rng(0).normal(size=(10, 9)), U, lam)
    with pytest.raises(ValueError, match="do not fit"):
        build(A[:, :8], U, lam)
    with pytest.raises(ValueError, match="threshold"):
        build(A, U, lam, threshold=-1.0)
    with pytest.raises(ValueError, match="batch_exponent"):
        build(A, U, lam, batch_exponent=2.0)
    with pytest.raises(TypeError, match="form"):
        build(A, U, lam, form="left")
    with pytest.raises(TypeError, match="int"):
        build(np.ones((4, 9), int), U, lam)
    projection = build(A, U, lam)
    with pytest.raises(ValueError, match="last axis of 9"):
        projection.query(jnp.ones(8))
    with pytest.raises(ValueError, match="shape"):
        projection.update(lam[:2])
    with pytest.raises(ValueError, match="positive"):
        projection.update(-lam)
    with pytest.raises(ValueError, match="subset of 3"):
        SketchedProjection.build(projection, 2, 2, jax.random.key(0), median=PrivateMedian(3))
    with pytest.raises(ValueError, match="sketch_size"):
        SketchedProjection.build(projection, 0, 2, jax.random.key(0))
    with pytest.raises(ValueError, match="vector"):
        SketchedProjection.build(projection, 2, 2, jax.random.key(0)).answers(jnp.ones((2, 9)))
    with pytest.raises(ValueError, match="epsilon"):
        PrivateMedian(3, 0.0)
