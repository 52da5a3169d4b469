"""The product of sparse matrices, entry by entry beside scipy's."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from aot import topology

from jaxopt_ext_kernels import CSR, HashTable, spgemm, spgemm_symbolic

RNG = np.random.default_rng(0)
BODIES = pytest.mark.parametrize("implementation", ["xla", "pallas"])
MODULE = importlib.import_module("jaxopt_ext_kernels.spgemm")


@functools.partial(jax.jit, static_argnames=("implementation", "table"))
def _product(A, B, plan, **options):
    """As one program: by itself each of its operations is a program."""
    return spgemm(A, B, plan, **options)


def _random(m, n, density, rng=RNG):
    return sp.random_array((m, n), density=density, rng=rng).tocsr()


def _graph(scale, rng):
    """A recursive-matrix graph: few rows have most of the entries."""
    rows, columns = np.zeros((2, 8 << scale), int)
    for _ in range(scale):
        u = rng.random(8 << scale)
        rows = 2 * rows + (u >= 0.76)
        columns = 2 * columns + (((u >= 0.57) & (u < 0.76)) | (u >= 0.95))
    return sp.coo_array((rng.normal(size=rows.size), (rows, columns)), shape=(1 << scale,) * 2)


def _same(plan):
    """The plan with the static bounds of the small ones here, so that one program serves all."""
    starts = np.asarray(plan.starts)
    assert len(starts) <= 41
    assert plan.capacity <= 96
    assert plan.nnz <= 700
    starts = jnp.asarray(np.pad(starts, (0, 41 - len(starts)), mode="edge"))
    work = jnp.zeros(40, jnp.int32)
    bounds = {"products": 0, "capacity": 96, "rows": 30, "nnz": 700}
    return dataclasses.replace(plan, starts=starts, work=work, **bounds)


def _check(found, wanted, atol=1e-12):
    """Places and values, and what every product of ours keeps."""
    assert not found.overflow
    matrix = found.matrix
    m, n = matrix.shape
    of = matrix.values, matrix.columns, matrix.rows, matrix.pointers
    values, columns, rows, pointers = map(np.asarray, of)
    count = pointers[-1]
    assert np.all(np.diff(rows[:count].astype(np.int64) * n + columns[:count]) > 0)
    np.testing.assert_array_equal(np.diff(pointers), np.bincount(rows[:count], minlength=m))
    for padding, fill in ((values, 0), (columns, 0), (rows, m - 1)):
        assert np.all(padding[count:] == fill)
    wanted = sp.csr_array(wanted)
    wanted.sort_indices()
    np.testing.assert_array_equal(columns[:count], wanted.indices)
    np.testing.assert_array_equal(pointers, wanted.indptr)
    np.testing.assert_allclose(values[:count], wanted.data, atol=atol)


@BODIES
def test_equals_scipy_entry_by_entry(implementation):
    n = 30
    band = sp.diags_array(RNG.normal(size=(5, n)), offsets=range(-2, 3), shape=(n, n)).tocsr()
    hub = _random(n, n, 0.03).tolil()
    hub[4] = 1 + RNG.random(n)  # one row of far more products than a window
    hub[7:12] = 0
    cases = {
        "random": (_random(n, n, 0.06), _random(n, n, 0.08)),
        "banded": (band, band),
        "hub": (hub.tocsr(), _random(n, n, 0.06)),
        "empty": (sp.csr_array((n, n)), band),
    }
    for a, b in cases.values():
        A, B = CSR.from_scipy(a, nnz=200), CSR.from_scipy(b, nnz=200)
        plan = spgemm_symbolic(A, B, window=40)
        assert plan.products == int(np.asarray(plan.work).sum())
        assert plan.nnz == (abs(a) @ abs(b)).nnz
        _check(_product(A, B, _same(plan), implementation=implementation), a @ b)


@pytest.mark.slow
def test_a_graph_with_hubs_equals_scipy_and_windows_are_balanced():
    a = _graph(10, np.random.default_rng(0)).tocsr()
    A = CSR.from_scipy(a)
    plan = spgemm_symbolic(A, A)
    _check(jax.jit(spgemm)(A, A, plan), a @ a, 1e-10)
    spread = lambda p: np.std(p.work) / np.mean(p.work)
    rows = spgemm_symbolic(A, A, split="rows")
    assert rows.work.shape == plan.work.shape
    assert rows.nnz == plan.nnz
    assert int(np.asarray(rows.work).sum()) == plan.products
    assert spread(rows) > 3 * spread(plan)


def test_entries_that_cancel_are_kept():
    A, B = CSR.from_dense([[1.0, 1.0]]), CSR.from_dense([[1.0, 2.0], [-1.0, 3.0]])
    matrix = _product(A, B, spgemm_symbolic(A, B)).matrix
    np.testing.assert_array_equal(matrix.values, [0, 5])
    np.testing.assert_array_equal(matrix.columns, [0, 1])


@pytest.mark.parametrize("implementation", ["xla", pytest.param("pallas", marks=pytest.mark.slow)])
def test_bounds_that_are_too_small_are_seen(implementation):
    a = _random(12, 12, 0.3)
    A = CSR.from_scipy(a)
    plan = spgemm_symbolic(A, A, window=30)
    for small in (
        dataclasses.replace(plan, nnz=plan.nnz - 1),
        dataclasses.replace(plan, capacity=plan.capacity - 1),
        dataclasses.replace(plan, nnz=0),
    ):
        found = _product(A, A, small, implementation=implementation)
        assert found.overflow
        assert np.all(np.isnan(found.matrix.values))


@pytest.mark.parametrize(
    ("implementation", "double"),
    [("xla", True), pytest.param("pallas", True, marks=pytest.mark.slow), ("xla", False)],
)
def test_keys_may_exceed_32_bits(implementation, double):
    n = 1 << 20
    rows, columns = [0, 5, n - 1, n - 1], [1, 0, 0, 2]
    a = sp.coo_array((RNG.normal(size=4), (rows, columns)), shape=(n, 3)).tocsr()
    b = sp.coo_array((RNG.normal(size=4), (columns, [n - 1, 7, 3, 3])), shape=(3, n)).tocsr()
    with jax.enable_x64(double):
        A, B = CSR.from_scipy(a), CSR.from_scipy(b)
        found = _product(A, B, spgemm_symbolic(A, B), implementation=implementation)
        _check(found, a @ b, 1e-12 if double else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("record", [False, True])
def test_derivatives_of_any_order_equal_dense_ones(record):
    a, b = _random(12, 12, 0.3), _random(12, 12, 0.3)
    A, B = CSR.from_scipy(a, nnz=50), CSR.from_scipy(b)
    plan = spgemm_symbolic(A, B, window=20, record=record)
    count = int(A.count)

    def ours(v, w):
        return spgemm(A.with_values(v), B.with_values(w), plan).matrix.todense()

    def theirs(v, w):
        return A.with_values(v).todense() @ B.with_values(w).todense()

    def all_of(fun):
        score = lambda v, w: jnp.sum(jnp.sin(fun(v, w)))
        slope = jax.grad(score, (0, 1))
        pushed = lambda v, w: jax.jvp(slope, (v, w), (jnp.cos(v), jnp.sin(w)))[1]
        return lambda v, w: (jax.jacrev(fun, (0, 1))(v, w), jax.jacfwd(fun)(v, w), pushed(v, w))

    found, wanted = jax.jit(lambda v, w: (all_of(ours)(v, w), all_of(theirs)(v, w)))(
        A.values, B.values
    )
    in_use = lambda x: x[..., :count] if x.shape[-1] == 50 else x
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(in_use(x), in_use(y), atol=1e-12)


@pytest.mark.parametrize("double", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_record_of_the_products_serves_the_same_places_only(double):
    with jax.enable_x64(double):
        kind = np.float64 if double else np.float32
        a, b = (_random(12, 12, 0.3).astype(kind) for _ in range(2))
        A, B = CSR.from_scipy(a, nnz=50), CSR.from_scipy(b)
        plan = spgemm_symbolic(A, B, record=True, nnz=130)
        product = functools.partial(_product, implementation="xla")
        for factor in (1, -2.5):
            found = product(A.with_values(factor * A.values), B, plan)
            assert found.matrix.dtype == kind
            _check(found, factor * a @ b, 1e-12 if double else 1e-5)
        matrix, transposed = jax.jit(lambda m: (m.todense(), m.T.todense()))(found.matrix)
        np.testing.assert_allclose(transposed, np.asarray(matrix).T)
        other = dataclasses.replace(B, columns=B.columns[::-1])
        longer = CSR.from_scipy(a, nnz=51)  # a shape of its own
        for found in (product(A, other, plan), product(longer, B, plan)):
            assert found.overflow
            assert np.all(np.isnan(found.matrix.values))
        with pytest.raises(ValueError, match="nnz=3 is too small"):
            spgemm_symbolic(A, B, record=True, nnz=3)
        nothing = CSR.from_scipy(sp.csr_array((12, 12), dtype=kind), nnz=4)
        _check(
            product(nothing, B, spgemm_symbolic(nothing, B, record=True, nnz=2)),
            sp.csr_array((12, 12)),
        )


@pytest.mark.slow
@pytest.mark.parametrize("record", [False, True])
def test_vmap_over_values_and_shard_map_with_its_check(record):
    a = _random(9, 9, 0.3)
    A = CSR.from_scipy(a)
    plan = spgemm_symbolic(A, A, window=12, record=record)
    values = jnp.stack([A.values, jnp.cos(A.values)])

    def each(values):
        square = lambda v: spgemm(A.with_values(v), A, plan).matrix.todense()
        return jax.vmap(lambda v: (square(v), jax.grad(lambda v: jnp.sum(square(v) ** 2))(v)))(
            values
        )

    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    mapped = jax.shard_map(each, mesh=mesh, in_specs=spec, out_specs=spec)
    found, slopes = jax.jit(mapped)(values)
    rows, columns = np.asarray(A.rows), np.asarray(A.columns)
    for i in range(2):
        left = np.asarray(A.with_values(values[i]).todense())
        np.testing.assert_allclose(found[i], left @ a.toarray(), atol=1e-12)
        slope = 2 * (left @ a.toarray()) @ a.toarray().T
        np.testing.assert_allclose(slopes[i], slope[rows, columns], atol=1e-12)


def test_runs_are_summed_on_a_gpu_across_pieces():
    """Its program, interpreted: runs that end and begin in all places, one longer than a piece."""
    row = np.concatenate([np.zeros(300, int), RNG.integers(0, 5, 200), np.full(20, 5)])
    column = np.concatenate([np.full(300, 2), RNG.integers(0, 40, 200), np.zeros(20, int)])
    values = np.where(row < 5, RNG.normal(size=row.size), 0)
    dense = np.zeros((6, 40))
    np.add.at(dense, (row, column), values)
    pieces = row.astype(np.int32), column.astype(np.int32), values
    program = jax.jit(lambda *a: MODULE._triton_runs((5, 40), *a, None, 500, interpret=True))
    rows, columns, sums = map(np.asarray, program(*pieces))
    found = np.zeros((6, 40))
    np.add.at(found, (rows, columns), sums)
    np.testing.assert_allclose(found[:5], dense[:5], atol=1e-12)
    places = rows[rows < 5] * 40 + columns[rows < 5]
    assert len(np.unique(places)) == len(places) == np.count_nonzero(dense[:5])


def test_single_precision_is_kept():
    a = _random(12, 12, 0.3)
    A = CSR.from_scipy(a.astype(np.float32))
    found = jax.jit(lambda values: spgemm(A.with_values(values), A))(A.values)
    assert found.matrix.dtype == jnp.float32
    _check(found, a @ a, 1e-5)


def test_bad_input_is_named():
    A, B = CSR.from_dense(np.ones((2, 3))), CSR.from_dense(np.ones((2, 2)))
    plan = spgemm_symbolic(B, B)
    cases = [
        (ValueError, lambda: spgemm(A, B), r"\(2, 3\) times \(2, 2\)"),
        (ValueError, lambda: spgemm(B, B, implementation="cuda"), "'cuda'"),
        (ValueError, lambda: spgemm_symbolic(B, B, window=0), "window must be positive, got 0"),
        (ValueError, lambda: spgemm_symbolic(B, B, nnz=-1), "nnz must not be negative, got -1"),
        (ValueError, lambda: spgemm_symbolic(B, B, split="columns"), "'columns'"),
        (TypeError, lambda: spgemm(B, np.ones((2, 2))), "ndarray"),
        (TypeError, lambda: jax.jit(spgemm)(B, B), "traced"),
        (
            ValueError,
            lambda: spgemm(
                B, B, dataclasses.replace(plan, capacity=1 << 15), implementation="pallas"
            ),
            "window of 32768 products is too large",
        ),
        (
            TypeError,
            lambda: spgemm(B.with_values(1j * B.values), B, plan, implementation="pallas"),
            "complex128",
        ),
    ]
    for kind, call, message in cases:
        with pytest.raises(kind, match=message):
            call()
    # A column of 2^16 entries times a row of 2^16 has 2^32 products.
    many = np.arange(1 << 16)
    column = CSR.from_coo(np.ones(many.size), many, 0 * many, (many.size, 1))
    row = CSR.from_coo(np.ones(many.size), 0 * many, many, (1, many.size))
    with pytest.raises(ValueError, match="4294967296 partial products"):
        spgemm_symbolic(column, row)


TABLES = pytest.mark.parametrize(
    "table",
    [
        HashTable("high bits", "memory"),
        pytest.param(HashTable("high bits"), marks=pytest.mark.slow),
        pytest.param(HashTable(sums="memory"), marks=pytest.mark.slow),
    ],
    ids=str,
)


@TABLES
def test_every_table_gives_the_same(table):
    a, b = _random(12, 30, 0.2).tolil(), _random(30, 50, 0.2)
    a[3], a[5] = 1, 0
    A, B = CSR.from_scipy(a.tocsr()), CSR.from_scipy(b)
    plan = spgemm_symbolic(A, B, window=1100)
    # The first window takes more than a piece of products, and one row more than its share.
    assert plan.capacity < 1100 < plan.products + 1100
    _check(_product(A, B, plan, implementation="pallas", table=table), a @ b)


def test_high_bits_keep_the_order_of_places():
    rng = np.random.default_rng(1)
    for rows, n, size in [(5, 40, 256), (300, 7, 256), (1, 1, 256), (70, 1 << 20, 1 << 15)]:
        window = MODULE._Window((1000, n), rows, np.int32(20))
        slots_of = jax.jit(
            lambda *place, window=window, size=size: [
                window.slots(*place, size, order) for order in ("high bits", "scattered")
            ]
        )
        places = np.unique(rng.integers(0, rows * n, 500))
        row, column = 20 + places // n, places % n
        slots, mixed = map(np.asarray, slots_of(row, column))
        assert np.all(np.diff(slots) >= 0)
        assert slots.min() >= 0
        assert slots.max() < size
        assert len(np.unique(slots)) > min(len(places), size) / 4
        assert np.all((mixed >= 0) & (mixed < size))
        expected = size * (1 - (1 - 1 / size) ** len(places))
        assert len(np.unique(mixed)) > 0.6 * expected  # of numbers drawn at random


@pytest.mark.slow
@TABLES
def test_every_table_compiles_for_tpu_with_its_largest_window(table):
    chip = jax.sharding.SingleDeviceSharding(topology("v5e:2x2").devices[0])
    with jax.enable_x64(False):
        a = _random(64, 80, 0.1).astype(np.float32)
        A, B = CSR.from_scipy(a), CSR.from_scipy(a.T.tocsr())
        plan = dataclasses.replace(spgemm_symbolic(A, B), capacity=table.largest_window)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), (A, B, plan)
        )
        product = lambda *a: spgemm(*a, implementation="pallas", table=table)
        compiled = jax.jit(product).trace(*shapes).lower().compile()
        assert "tpu_custom_call" in compiled.as_text()
        larger = dataclasses.replace(plan, capacity=table.largest_window + 1)
        with pytest.raises(ValueError, match="too large for a table"):
            spgemm(A, B, larger, implementation="pallas", table=table)


def test_unknown_tables_are_refused():
    A = CSR.from_dense(np.eye(2))
    for table in (HashTable("low bits"), HashTable(sums="values")):  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="order must be"):
            spgemm(A, A, table=table)
