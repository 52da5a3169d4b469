"""Estimates of products against the products and the formulas of their variances."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxopt_ext.linalg import (
    ImportanceRows,
    MultilevelProduct,
    Pilot,
    UniformRows,
    doubling_sizes,
    energy_order,
    importance_product,
    uniform_product,
)

RNG = np.random.default_rng(0)
LEVELS, ALLOCATION = (4, 10, 24), (3, 2, 4)
DECAY = np.arange(1, 25)[:, None] ** -0.7
A = DECAY * RNG.normal(size=(24, 2))
B = DECAY * RNG.normal(size=(24, 3))


def variance(A, B, importance):
    """Of one row of a block, summed over the entries, from its distribution."""
    size = np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=1)
    p = size / size.sum() if importance else np.full(len(A), 1 / len(A))
    outcomes = A[:, :, None] * B[:, None, :] / p[:, None, None]
    mean = np.tensordot(p, outcomes, 1)
    return np.sum(np.tensordot(p, (outcomes - mean) ** 2, 1))


ORDER = RNG.permutation(24)
PARTS = [
    (MultilevelProduct(LEVELS, ImportanceRows(), jnp.asarray(ORDER)), ALLOCATION),
    (MultilevelProduct(LEVELS), ALLOCATION),
    (MultilevelProduct((24,)), (7,)),
    (MultilevelProduct((24,), ImportanceRows()), (7,)),
]


@pytest.mark.always(1)
@pytest.mark.parametrize("part", PARTS, ids=["order", "levels", "uniform", "importance"])
def test_unbiased_with_the_variance_of_the_formula(part):
    """Over 2000 keys, in the order given and in another, and by all samplers."""
    product, counts = part

    @jax.jit
    @jax.vmap
    def run(key):
        found = product.estimate(key, jnp.asarray(A), jnp.asarray(B), counts)
        return found.value, found.variance

    values, estimated = run(jax.random.split(jax.random.key(0), 2000))
    rows = np.arange(24) if product.order is None else ORDER
    blocks = np.split(rows, product.levels[:-1])
    importance = isinstance(product.within, ImportanceRows)
    wanted = sum(variance(A[b], B[b], importance) / N for b, N in zip(blocks, counts, strict=True))
    spread = np.std(values, axis=0)
    assert np.all(np.abs(np.mean(values, axis=0) - A.T @ B) < 4 * spread / 2000**0.5)
    np.testing.assert_allclose(np.sum(spread**2), wanted, rtol=0.15)
    np.testing.assert_allclose(np.mean(estimated), wanted, rtol=0.15)


@pytest.mark.always(1)
@pytest.mark.parametrize(
    "sampler", [UniformRows(), ImportanceRows()], ids=["uniform", "importance"]
)
def test_one_program_serves_all_allocations(sampler):
    """The first rows of each level count, and no others; means and variances by numpy."""
    capacity, traces = (5, 3, 6), []
    blocks = [range(low, high) for low, high in zip((0, *LEVELS), LEVELS, strict=False)]

    @jax.jit
    def run(key, A, B, counts):
        traces.append(None)
        keys = jax.random.split(key, 3)
        ours = MultilevelProduct(LEVELS, sampler).estimate(key, A, B, counts, capacity)
        levels = zip(keys, blocks, capacity, strict=True)
        draws = [sampler.draw(k, A, B, block, N) for k, block, N in levels]
        return ours, draws, MultilevelProduct(LEVELS, sampler).estimate(key, A, B, capacity).value

    run = functools.partial(run, jax.random.key(1), A, B)
    for counts in (capacity, (2, 1, 4), (1, 0, 6)):
        ours, draws, static = run(jnp.asarray(counts))
        wanted, variances = np.zeros((2, 3)), 0
        for draw, N in zip(draws, counts, strict=True):
            if N:
                rows, p = (np.asarray(x)[:N] for x in draw)
                each = A[rows, :, None] * B[rows, None, :] / p[:, None, None]
                wanted += np.mean(each, axis=0)
                around = np.sum(np.var(each, axis=0, ddof=1)) if N > 1 else np.sum(each**2)
                variances += around / N
        np.testing.assert_allclose(ours.value, wanted, rtol=1e-12)
        np.testing.assert_allclose(ours.variance, variances, rtol=1e-9)
        assert ours.rows_touched == sum(counts)
        if counts == capacity:
            np.testing.assert_allclose(ours.value, static, rtol=1e-12)
    for counts in ((6, 3, 6), (5, -1, 6)):
        ours, _, _ = run(jnp.asarray(counts))
        assert np.isnan(ours.value).all()
        assert np.isnan(ours.variance)
    assert len(traces) == 1


def test_importance_is_exact_where_rows_are_multiples_of_one():
    scales = RNG.uniform(0.1, 2, size=(2, 9, 1))
    a, b = scales[0] * RNG.normal(size=2), scales[1] * RNG.normal(size=3)
    zeros = a.copy()
    zeros[2:6] = 0  # rows of zeros are never drawn, and blocks of zeros do no harm
    product = MultilevelProduct((2, 6, 9), ImportanceRows())

    @jax.jit
    def run(key, a, zeros, b):
        return (
            importance_product(key, a, b, 2),
            importance_product(key, zeros, b, 2),
            product.estimate(key, zeros, b, (1, 1, 1)).value,
        )

    found = run(jax.random.key(0), a, zeros, b)
    for one, wanted in zip(found, (a.T @ b, zeros.T @ b, zeros.T @ b), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-12)


@pytest.mark.slow
def test_decay_is_what_levels_use():
    n, keys = 4096, jax.random.split(jax.random.key(3), 100)
    ratio = {}
    for decay in (0.0, 0.6):
        a = np.arange(1, n + 1) ** -decay * RNG.normal(size=n)
        b = a * (1 + 0.3 * RNG.normal(size=n))
        product = MultilevelProduct(doubling_sizes(n))
        allocation = product.allocate(product.pilot(jax.random.key(4), a, b, 20), budget=400)
        assert sum(allocation) <= 400
        errors = [
            jax.jit(jax.vmap(f, (0, None, None)))(keys, a, b) - a @ b
            for f in (
                lambda k, a, b, p=product, N=allocation: p.estimate(k, a, b, N).value,
                lambda k, a, b: uniform_product(k, a, b, 400),
            )
        ]
        ratio[decay] = np.std(errors[0]) / np.std(errors[1])
    assert ratio[0.6] < 0.2
    assert 0.7 < ratio[0.0] < 1.5


def test_allocation_is_the_formula():
    product = MultilevelProduct(LEVELS)
    pilot = Pilot(jnp.array([9.0, 4.0, 0.0]), jnp.array([3.0, 0.2, 0.1]), 30)
    # sqrt(V): 3, 2, 0, sum 5
    assert product.allocate(pilot, variance=0.5) == (30, 20, 1)
    assert product.allocate(pilot, budget=28) == (16, 11, 1)
    # sqrt(V / C): 3, 1; sqrt(V C): 3, 4
    assert product.allocate(pilot, variance=0.5, costs=(1, 4, 1)) == (42, 14, 1)
    # 0.3 is less than e / sqrt 2, so the last level goes
    assert product.allocate(pilot, variance=0.5, truncate=True) == (60, 40, 0)
    kept = product.allocate(pilot, variance=0.1, truncate=True)
    assert kept[-1] == 1
    still = Pilot(jnp.zeros(3), jnp.zeros(3), 30)
    assert product.allocate(still, variance=1.0) == (1, 1, 1)
    assert product.allocate(still, budget=9) == (3, 3, 3)
    assert doubling_sizes(100, 16) == (16, 32, 64, 100)
    assert doubling_sizes(5, 16) == (5,)


def test_chunks_of_energy_come_first():
    scale = np.repeat([1e-3, 1.0, 1e-2, 0.1], [5, 5, 5, 6])
    a = np.float32(scale * RNG.uniform(0.5, 1, size=21))
    found = jax.jit(lambda key, a: energy_order(key, a, a, 4, 2))(jax.random.key(0), a)
    order = np.asarray(found)
    assert sorted(order) == list(range(21))
    assert np.all(np.diff(scale[order]) <= 0)


def test_memory_maps_are_read_by_the_row(tmp_path):
    whole = np.memmap(tmp_path / "a", np.float32, "w+", shape=(1000, 2))
    whole[:] = RNG.normal(size=(1000, 2))
    read = []

    class Watched(np.ndarray):
        def __getitem__(self, rows):
            read.append(np.size(rows))
            return np.asarray(self)[rows]

    seen = whole.view(Watched)
    key = jax.random.key(0)
    found = uniform_product(key, seen, seen, 5)
    assert found.dtype == jnp.float32
    assert read == [5, 5]
    on_device = jax.jit(lambda key, A: uniform_product(key, A, A, 5))(key, np.asarray(whole))
    np.testing.assert_allclose(found, on_device, rtol=1e-6)


@pytest.mark.slow
def test_shards_a_shared_leaf_and_types():
    product, key = MultilevelProduct(LEVELS), jax.random.key(0)
    batch = jnp.asarray(RNG.normal(size=(4, 24, 3)))
    score = lambda A, B: jnp.sum(jnp.sin(product.estimate(key, A, B, ALLOCATION).value))
    slope = jax.grad(lambda A: jnp.sum(jax.vmap(score, (None, 0))(A, batch)))
    found = jax.jit(slope)(jnp.asarray(A))
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.shard_map(
        lambda A, B: jax.grad(lambda A: jax.lax.psum(score(A, B[0]), "i"))(A),
        mesh=mesh,
        in_specs=(P(), P("i")),
        out_specs=P(),
    )
    np.testing.assert_allclose(jax.jit(spread)(jnp.asarray(A), batch), found, atol=1e-12)
    half = jnp.asarray(A, jnp.bfloat16)
    estimate = eqx.filter_jit(product.estimate)(key, half, half[:, 0], ALLOCATION)
    assert estimate.value.shape == (2,)
    assert estimate.value.dtype == estimate.variance.dtype == jnp.bfloat16
    assert estimate.rows_touched == 9


def test_bad_input_is_named():
    key, product = jax.random.key(0), MultilevelProduct(LEVELS)
    pilot = Pilot(jnp.ones(3), jnp.ones(3), 30)
    ones = jnp.ones((24, 2))
    cases = [
        (lambda: uniform_product(key, ones, jnp.ones(3), 2), ValueError, r"\(3,\)"),
        (lambda: uniform_product(key, ones[:0], ones[:0], 2), ValueError, r"\(0, 2\)"),
        (lambda: uniform_product(key, ones[None], ones, 2), ValueError, r"\(1, 24, 2\)"),
        (lambda: uniform_product(key, ones.astype(int), ones, 2), TypeError, "int"),
        (lambda: uniform_product(key, [1.0], ones, 2), TypeError, "list"),
        (lambda: importance_product(key, ones, ones, 0), ValueError, "got 0"),
        (lambda: MultilevelProduct((4, 4)), ValueError, r"\(4, 4\)"),
        (lambda: MultilevelProduct(()), TypeError, r"\(\)"),
        (lambda: MultilevelProduct((4,), "uniform"), TypeError, "'uniform'"),
        (lambda: MultilevelProduct((4,), UniformRows(), jnp.arange(3)), ValueError, r"\(3,\)"),
        (lambda: product.estimate(key, ones[:9], ones[:9], ALLOCATION), ValueError, "24 rows of 9"),
        (lambda: product.estimate(key, ones, ones, (1, 1)), ValueError, r"\(1, 1\)"),
        (lambda: product.estimate(key, ones, ones, (1, 1, -1)), ValueError, "-1"),
        (
            lambda: jax.jit(lambda N: product.estimate(key, ones, ones, N))(jnp.ones(3, int)),
            TypeError,
            "capacity",
        ),
        (lambda: product.estimate(key, ones, ones, jnp.ones(3), ALLOCATION), TypeError, "float"),
        (lambda: product.estimate(key, ones, ones, (4, 1, 1), ALLOCATION), ValueError, "got 4"),
        (lambda: product.estimate(key, ones, ones, (1, 1), ALLOCATION), ValueError, r"\(2,\)"),
        (lambda: product.estimate(key, ones, ones, (1, 1), (1, 1)), ValueError, r"\(1, 1\)"),
        (lambda: product.pilot(key, ones, ones, 1), ValueError, "got 1"),
        (lambda: product.allocate(pilot), ValueError, "either"),
        (lambda: product.allocate(pilot, variance=-1.0), ValueError, "-1.0"),
        (lambda: product.allocate(pilot, budget=2), ValueError, "budget 2"),
        (lambda: product.allocate(pilot, budget=9, costs=(1, 1)), ValueError, r"\(1, 1\)"),
        (lambda: energy_order(key, ones, ones, 25), ValueError, "got 25"),
        (lambda: doubling_sizes(0), ValueError, "got 0"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
