"""The block-sparse format and its product."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from jaxopt_ext_kernels import BCSR, CSR, bcsr_matmul, reorder_rows, spmm

RNG = np.random.default_rng(0)


def test_constructors_agree_and_round_trip():
    dense = RNG.normal(size=(11, 7)) * (RNG.random((11, 7)) < 0.2)
    dense[4:8] = 0
    a, b = BCSR.from_dense(dense, (4, 3)), BCSR.from_scipy(sp.csr_array(dense), (4, 3))
    made_dense = jax.jit(lambda m: (m.todense(), m.T.todense(), m.T.T.todense(), m.T.pointers))
    for matrix in (a, b):
        plain, transposed, back, pointers = map(np.asarray, made_dense(matrix))
        np.testing.assert_array_equal(plain, dense)
        np.testing.assert_array_equal(transposed, dense.T)
        np.testing.assert_array_equal(back, dense)
        assert np.all(np.diff(np.asarray(matrix.pointers)) >= 1), "every block row has a block"
        assert np.all(np.diff(pointers) >= 1)


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_vmap_and_jit(implementation):
    dense = RNG.normal(size=(6, 8)) * (RNG.random((6, 8)) < 0.4)
    matrix, batch = BCSR.from_dense(dense, (2, 4)), RNG.normal(size=(3, 8, 5))
    product = jax.jit(jax.vmap(lambda b: bcsr_matmul(matrix, b, implementation=implementation)))
    np.testing.assert_allclose(product(batch), dense @ batch, atol=1e-12)


def test_nothing_dense_is_made():
    n = 640
    matrix = BCSR.from_scipy(sp.eye_array(n), (8, 8))
    jaxpr = jax.make_jaxpr(
        jax.grad(lambda b: jnp.sum(bcsr_matmul(matrix, b, implementation="xla") ** 2))
    )(jnp.ones((n, 2)))
    sizes = [v.aval.size for e in jaxpr.jaxpr.eqns for v in e.outvars]
    assert max(sizes) < n * n / 8


@pytest.mark.slow
def test_forward_and_second_derivatives_of_the_plain_body():
    matrix = BCSR.from_dense(RNG.normal(size=(4, 4)), (2, 2))
    fun = lambda b: jnp.sum(jnp.sin(bcsr_matmul(matrix, b, implementation="xla")))
    exact = lambda b: jnp.sum(jnp.sin(matrix.todense() @ b))
    point = jnp.asarray(RNG.normal(size=(4, 1)))
    np.testing.assert_allclose(jax.hessian(fun)(point), jax.hessian(exact)(point), atol=1e-10)


def test_bad_input_is_named():
    matrix = BCSR.from_dense(np.eye(4), (2, 2))
    ones = np.ones((1, 2, 2))
    cases = [
        (lambda: bcsr_matmul(matrix, jnp.ones((3, 2))), r"\(4, 4\) times \(3, 2\)"),
        (lambda: bcsr_matmul(matrix, jnp.ones(4)), "do not fit"),
        (lambda: bcsr_matmul(matrix, jnp.ones((4, 2)), implementation="cuda"), "'cuda'"),
        (lambda: BCSR.from_dense(np.ones(3), (2, 2)), "expected a matrix"),
        (lambda: BCSR.from_blocks(ones, [0, 1], [0], (4, 4)), "do not fit"),
        (lambda: BCSR.from_blocks(ones, [2], [0], (4, 4)), "outside"),
        (lambda: BCSR.from_blocks(np.ones((2, 2, 2)), [0, 0], [1, 1], (4, 4)), "share a place"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="floating-point"):
        BCSR.from_blocks(ones.astype(int), [0], [0], (4, 4))


@pytest.fixture
def short_lists(monkeypatch):
    """Pieces so short that lists of a few blocks are cut."""
    module = importlib.import_module("jaxopt_ext_kernels.spmm")
    monkeypatch.setattr(module, "_PREFETCHED", 5)
    monkeypatch.setattr(module, "_PIECE", 8)


@pytest.mark.always(2)
@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_long_lists_of_blocks_are_cut(short_lists, implementation):
    kept = 1 - np.eye(4)  # in 12 blocks
    dense = RNG.normal(size=(16, 12)) * np.kron(kept, np.ones((4, 3)))
    matrix, b = BCSR.from_dense(dense, (4, 3)), jnp.asarray(RNG.normal(size=(12, 5)))
    assert matrix.values.shape[0] == 12
    weights = RNG.normal(size=(16, 5))

    def score(b):
        product = bcsr_matmul(matrix, b, implementation=implementation, tile=4)
        return jnp.vdot(weights, product), product

    (_, product), slope = jax.jit(jax.value_and_grad(score, has_aux=True))(b)
    np.testing.assert_allclose(product, dense @ b, atol=1e-12)
    np.testing.assert_allclose(slope, dense.T @ weights, atol=1e-12)


def _structures(n):
    """Matrices of several structures, entries without meaning."""
    rng = np.random.default_rng(1)
    blocks = np.kron(np.eye(n // 8), np.ones((8, 8))) * (rng.random((n, n)) < 0.5)
    heavy = rng.random((n, n)) < np.minimum(1, 4 / (1 + np.arange(n)))[:, None]
    band = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) < 3
    return {
        "uniform": rng.random((n, n)) < 0.05,
        "power law": heavy[rng.permutation(n)],
        "banded": band,
        "shuffled blocks": blocks[rng.permutation(n)],
        "empty": np.zeros((n, n), bool),
    }


def test_a_reordered_matrix_is_the_matrix():
    n = 64
    b = RNG.normal(size=(n, 3))
    product = jax.jit(lambda A, b: (spmm(A, b), b.T @ A, A.T @ b, A.todense(), spmm(A, b[:, 0])))
    for name, mask in _structures(n).items():
        dense = np.where(mask, RNG.normal(size=(n, n)), 0)
        csr = CSR.from_dense(dense, nnz=n * n)  # one shape for all, so that little is compiled
        for tau in (0.0, 0.3, 0.9):
            order = reorder_rows(csr, (8, 8), tau)
            assert order.num_blocks_after <= order.num_blocks_before
            np.testing.assert_array_equal(np.sort(order.order), np.arange(n))
        side = reorder_rows(CSR.from_dense(dense.T, nnz=n * n), (8, 8))
        blocks = BCSR.from_csr(csr, (8, 8), order, side)
        padded = _with_more_blocks(blocks, 64)
        found = product(padded, jnp.asarray(b))
        for ours, wanted in zip(
            found, (dense @ b, b.T @ dense, dense.T @ b, dense, dense @ b[:, 0]), strict=True
        ):
            np.testing.assert_allclose(ours, wanted, atol=1e-12, err_msg=name)


def _with_more_blocks(matrix, count):
    """The same matrix with all of its places taken, by blocks of zeros if need be."""
    n = matrix.block_rows
    values = np.zeros((count, *matrix.block))
    values[np.asarray(matrix.rows) * n + np.asarray(matrix.columns)] = matrix.values
    full = BCSR.from_blocks(values, *np.divmod(np.arange(count), n), matrix.shape)
    return dataclasses.replace(full, row_order=matrix.row_order, column_order=matrix.column_order)


@pytest.mark.slow
def test_derivatives_go_back_to_the_entries_of_a_reordered_matrix():
    dense = RNG.normal(size=(12, 9)) * (RNG.random((12, 9)) < 0.3)
    csr, b = CSR.from_dense(dense), jnp.asarray(RNG.normal(size=(9, 2)))
    order = RNG.permutation(12)
    weights = RNG.normal(size=(12, 2))

    @jax.jit
    @jax.grad
    def slope(values):
        blocks = BCSR.from_csr(csr.with_values(values), (4, 3), order)
        return jnp.vdot(weights, spmm(blocks, b))

    wanted = (weights @ b.T)[np.asarray(csr.rows), np.asarray(csr.columns)]
    np.testing.assert_allclose(slope(csr.values), wanted, atol=1e-12)


def _greedy(sets, height, tau, distance, union):
    """The clustering in plain Python."""
    clusters, free = [], [i for i, s in enumerate(sets) if s]
    while free:
        seed, *rest = free
        pattern, members, refused = set(sets[seed]), [seed], []
        for i in rest:
            if len(members) == height:
                break
            far = distance(pattern, sets[i])
            if far <= tau:
                members.append(i)
                pattern = pattern | sets[i] if union else pattern
            else:
                refused.append((far, i))
        members += [i for _, i in sorted(refused)[: height - len(members)]]
        free = [i for i in free if i not in members]
        clusters.append(members)
    full = [c for c in clusters if len(c) == height] + [c for c in clusters if len(c) < height]
    return [i for c in full for i in c] + [i for i, s in enumerate(sets) if not s]


@pytest.mark.always(2)
@pytest.mark.parametrize("pattern", ["union", "seed"])
@pytest.mark.parametrize("similarity", ["jaccard", "hamming"])
def test_the_order_is_that_of_the_greedy_clustering(similarity, pattern):
    m, wide, height = 30, 10, 4
    distance = {
        "jaccard": lambda p, q: 1 - len(p & q) / len(p | q),
        "hamming": lambda p, q: len(p ^ q) / wide,
    }[similarity]

    def count(order, sets):
        groups = [[sets[i] for i in order[k : k + height]] for k in range(0, m, height)]
        return sum(len(set().union(*group)) for group in groups)

    changed = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        dense = rng.random((m, 4 * wide)) < rng.choice([0.03, 0.1])
        sets = [set((np.flatnonzero(row) // 4).tolist()) for row in dense]
        tau = rng.choice([0.2, 0.5])
        wanted = _greedy(sets, height, tau, distance, pattern == "union")
        csr = CSR.from_dense(dense * 1.0, nnz=dense.size)
        found = reorder_rows(csr, (height, 4), tau, None, similarity, pattern)
        before, after = count(range(m), sets), count(wanted, sets)
        assert found.num_blocks_before == before
        assert found.num_blocks_after == min(before, after)
        if after < before:
            changed += 1
            np.testing.assert_array_equal(found.order, wanted)
    assert changed > 4


@pytest.mark.always(1)
@pytest.mark.parametrize("many", [False, True])
def test_shuffled_rows_of_blocks_find_each_other(monkeypatch, many):
    if many:  # as if there were too many rows to look at every pair
        module = importlib.import_module("jaxopt_ext_kernels.reorder")
        monkeypatch.setattr(module, "_MANY", 100)
        monkeypatch.setattr(module, "_WINDOW", 256)
    rng = np.random.default_rng(0)
    n = 2048
    rows, columns = np.nonzero(rng.random((n, 16)) < 0.5)
    columns += rows // 16 * 16
    rows = rng.permutation(n)[rows]
    matrix = CSR.from_coo(np.ones(len(rows)), rows, columns, (n, n))
    order = reorder_rows(matrix, (16, 16))
    assert order.num_blocks_after <= order.num_blocks_before / 8
    assert order.num_blocks_after <= 1.2 * n / 16
    padded = CSR.from_coo(np.ones(len(rows)), rows, columns, (n, n), nnz=len(rows) + 50)
    np.testing.assert_array_equal(reorder_rows(padded, (16, 16)).order, order.order)


def test_half_precision_is_accumulated_in_single_precision():
    dense = RNG.normal(size=(64, 512)) * (RNG.random((64, 512)) < 0.2)
    csr, b = CSR.from_dense(dense.astype(np.float32)), RNG.normal(size=(512, 8))
    csr = csr.with_values(jax.device_put(np.asarray(csr.values).astype(jnp.bfloat16)))
    blocks = BCSR.from_csr(csr, (16, 16), reorder_rows(csr, (16, 16)))
    found = jax.jit(spmm)(blocks, b.astype(jnp.bfloat16))
    wanted = dense @ b
    assert found.dtype == jnp.bfloat16
    assert np.linalg.norm(np.asarray(found, float) - wanted) < 1e-2 * np.linalg.norm(wanted)


@pytest.mark.slow
def test_in_shard_map_with_its_check():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    dense = RNG.normal(size=(8, 6)) * (RNG.random((8, 6)) < 0.5)
    spec = jax.sharding.PartitionSpec("x")

    def product(csr, blocks, b):
        return csr @ b, spmm(blocks, b), jax.grad(lambda b: jnp.sum(jnp.sin(csr @ b)))(b)

    csr, b = CSR.from_dense(dense), jnp.asarray(RNG.normal(size=(6, 9)))
    blocks = BCSR.from_csr(csr, (2, 2), np.arange(8)[::-1])
    specs = (jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(), spec)
    module = importlib.import_module("jaxopt_ext_kernels.formats")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", 2)  # in chunks
        patch.setattr(importlib.import_module("jaxopt_ext_kernels.spmm"), "_PIECE", 2)
        mapped = jax.shard_map(product, mesh=mesh, in_specs=specs, out_specs=spec)
        found = jax.jit(mapped)(csr, blocks, b)
    for ours, wanted in zip(
        found, (dense @ b, dense @ b, dense.T @ np.cos(dense @ b)), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, atol=1e-12)


def test_bad_orders_are_named():
    csr = CSR.from_dense(np.eye(4))
    order = functools.partial(reorder_rows, csr, (2, 2))
    blocks = BCSR.from_csr(csr, (2, 2))
    cases = [
        (lambda: order(1.5), "tau must be in .* got 1.5"),
        (lambda: order(float("nan")), "got nan"),
        (lambda: order(max_height=0), "max_height=0"),
        (lambda: order(similarity="cosine"), "'cosine'"),
        (lambda: order(pattern="mean"), "'mean'"),
        (lambda: BCSR.from_csr(csr, (2, 2), [0, 1, 2]), "not an order of 4"),
        (lambda: BCSR.from_csr(csr, (2, 2), [0, 1, 2, 2]), "not an order of 4"),
        (lambda: spmm(csr, jnp.ones(4), implementation="pallas"), "'pallas'"),
        (lambda: spmm(blocks, jnp.ones(3)), r"\(4, 4\) times \(3, 1\)"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="BCSR or a CSR, got ndarray"):
        spmm(np.eye(4), jnp.ones(4))
    with pytest.raises(TypeError, match="expected a CSR"):
        reorder_rows(blocks, (2, 2))
