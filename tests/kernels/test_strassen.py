"""Fast products and the code of them, against numpy, brute force and closed forms."""

import itertools
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from aot import topology
from conftest import ROOT

from jaxopt_ext_kernels import (
    Bilinear,
    FaultTolerantProduct,
    bilinear,
    coded_products,
    distributed_matmul,
    relations,
    search_parities,
    strassen_matmul,
)
from jaxopt_ext_kernels._exact import in_row_space, rank

BOTH = bilinear("strassen").products + bilinear("winograd").products
CODE = FaultTolerantProduct()


def matrices(*shape, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    m, n, k = shape
    draw = (
        rng.normal if np.issubdtype(dtype, np.floating) else lambda size: rng.integers(-9, 9, size)
    )
    return jax.device_put(tuple(draw(size=size).astype(dtype) for size in ((m, n), (n, k))))


INTEGERS = [(1, "strassen", (5, 4, 7)), (2, "winograd", (6, 9, 5)), (3, "strassen", (9, 11, 13))]
MORE = [
    pytest.param(levels, name, (m, 9, k), marks=pytest.mark.slow)
    for levels, name, m, k in itertools.product(
        (1, 2, 3), ("strassen", "winograd"), (1, 8, 13), (2, 9)
    )
]


@pytest.mark.parametrize(("levels", "algorithm", "shape"), [*INTEGERS, *MORE])
def test_integers_are_exact(levels, algorithm, shape):
    A, B = matrices(*shape, dtype=np.int32)
    run = jax.jit(lambda A, B: strassen_matmul(A, B, levels=levels, algorithm=algorithm))
    np.testing.assert_array_equal(run(A, B), np.asarray(A) @ np.asarray(B))
    huge = np.asarray(A) * 2**27  # wraps around, as the plain product does
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(run(huge, B), np.asarray(huge) @ np.asarray(B))


def test_small_integers_do_not_overflow():
    A, B = (jnp.full((4, 4), 100, jnp.int8),) * 2
    found = jax.jit(strassen_matmul)(A, B)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, 40_000)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_multiplications_are_those_of_the_algorithm(levels):
    run = lambda A, B: strassen_matmul(A, B, levels=levels)
    equations = _equations(jax.make_jaxpr(run)(*matrices(8, 8, 8)).jaxpr)
    (product,) = (e for e in equations if e.primitive.name == "dot_general")
    (shape,) = (v.aval.shape for v in product.outvars)
    assert np.prod(shape) == 7**levels * (8 // 2**levels) ** 2


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def test_derivatives_are_products_by_the_same_algorithm():
    A, B = matrices(5, 6, 3)
    run = lambda A, B: strassen_matmul(A, B, levels=2, algorithm="winograd")
    weights = jnp.cos(jnp.arange(15.0).reshape(5, 3))
    score = lambda A, B: jnp.sum(weights * run(A, B))
    found = jax.make_jaxpr(jax.grad(score, (0, 1)))(A, B)
    products = [e for e in _equations(found.jaxpr) if e.primitive.name == "dot_general"]
    assert len(products) == 3  # forward, and one for each derivative
    # Of second order, which goes through the first.
    cross = jax.jit(jax.grad(lambda A: jnp.sum(jax.grad(score, 1)(A, B) ** 2)))(A)
    A, weights = np.asarray(A), np.asarray(weights)
    np.testing.assert_allclose(cross, 2 * weights @ (A.T @ weights).T, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["xla", pytest.param("pallas", marks=pytest.mark.slow)])
def test_vmap_with_a_shared_factor_and_its_gradient(implementation):
    _, B = matrices(4, 6, 3)
    As = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 6)))
    run = lambda A, B: strassen_matmul(A, B, implementation=implementation)
    score = lambda B: jnp.sum(jax.vmap(run, (0, None))(As, B) ** 2)
    value, slope = jax.jit(jax.value_and_grad(score))(B)
    wanted, exact = jax.value_and_grad(lambda B: jnp.sum((As @ B) ** 2))(B)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    np.testing.assert_allclose(slope, exact, atol=1e-10)


@pytest.mark.always(1)
@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_coded_products_and_their_derivatives(implementation):
    A, B = matrices(5, 300 if implementation == "pallas" else 7, 4)  # of several tiles inside
    U, V = CODE.U[10:], CODE.V[10:]

    def plain(A, B):
        A, B = (jnp.pad(x, ((0, x.shape[0] % 2), (0, x.shape[1] % 2))) for x in (A, B))
        cut = lambda x: [h for r in jnp.split(x, 2, 0) for h in jnp.split(r, 2, 1)]
        sums = lambda c, x: sum(int(w) * block for w, block in zip(c, cut(x), strict=True))
        return jnp.stack([sums(u, A) @ sums(v, B) for u, v in zip(U, V, strict=True)])

    run = lambda A, B: coded_products(
        A, B, jnp.asarray(U), jnp.asarray(V), implementation=implementation
    )
    weights = jnp.cos(jnp.arange(36.0).reshape(6, 3, 2))
    score = lambda f: lambda A, B: (jnp.sum(weights * f(A, B)), f(A, B))
    both = lambda f: jax.jit(jax.value_and_grad(score(f), (0, 1), has_aux=True))(A, B)
    (_, found), slopes = both(run)
    (_, wanted), exact = both(plain)
    np.testing.assert_allclose(found, wanted, atol=1e-11)
    for a, b in zip(slopes, exact, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_recoverable_sets_are_counted():
    count = lambda *names, **options: FaultTolerantProduct(names, **options).unrecoverable()[:5]
    assert count("strassen", "winograd", parity=()) == (0, 0, 2, 40, 362)
    assert count("strassen", "strassen") == (0, 0, 7, 84, 441)
    assert count("strassen", "strassen", "strassen") == (0, 0, 0, 7, 126)
    assert CODE.unrecoverable()[:5] == (0, 0, 0, 4, 114)
    # A second copy of Strassen's last product, and one that is in neither.
    other = [((0, 1, 0, -1), (0, 0, 1, 1)), ((0, 0, 1, -1), (0, 1, 0, -1))]
    assert count("strassen", "winograd", parity=other) == (0, 0, 0, 7, 121)
    assert sum(CODE.unrecoverable()) == sum(np.asarray(CODE.place) == 0)


def _lost(products, size):
    """Sets of failures that lose the product, by the rank of what is left, in floating point."""
    rows = np.array([np.outer(u, v).ravel() for u, v in products], float)
    # The blocks of C, by multiplying matrices with a single one.
    unit = np.eye(4).reshape(4, 2, 2)
    C = np.array([[(a @ b).ravel() for b in unit] for a in unit]).reshape(16, 4).T
    sets = list(itertools.combinations(range(len(products)), size))
    left = np.array([np.delete(rows, s, axis=0) for s in sets])
    more = np.concatenate([left, np.broadcast_to(C, (len(sets), 4, 16))], axis=1)
    ranks = lambda x: np.linalg.matrix_rank(x, tol=1e-6)
    return [s for s, bad in zip(sets, ranks(left) != ranks(more), strict=True) if bad]


@pytest.mark.parametrize(
    "size", [1, 2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_recoverable_sets_equal_brute_force(size):
    for code in (CODE, FaultTolerantProduct(parity=())):
        lost = _lost(code.products, size)
        assert code.unrecoverable()[size] == len(lost)
        alive = np.ones((len(lost), code.nodes), bool)
        for row, s in zip(alive, lost, strict=True):
            row[list(s)] = False
        if size > 2:
            assert not np.any(jax.vmap(lambda a, code=code: code.weights(a)[1])(jnp.asarray(alive)))
    if size == 2:  # S3 with W5, S7 with W2
        assert lost == [(2, 11), (6, 8)]


@pytest.mark.slow
def test_the_parities_are_the_best_there_are():
    parities, triples = search_parities(BOTH)
    assert CODE.products[14:] == parities
    assert triples == CODE.unrecoverable()[3] == 4


def test_two_failures_of_any_workers_are_survived():
    A, B = matrices(5, 6, 3, dtype=np.float32)
    patterns = np.ones((137, 16), bool)
    for row, s in zip(
        patterns,
        [(), *itertools.combinations(range(16), 1), *itertools.combinations(range(16), 2)],
        strict=True,
    ):
        row[list(s)] = False
    results = eqx.filter_jit(CODE.encode)(A, B)

    @jax.jit
    @jax.vmap
    def decode(alive):  # what a dead worker sends is not looked at
        return CODE.decode(jnp.where(alive[:, None, None], results, jnp.nan), alive, (5, 3))

    C, ok = decode(patterns)
    assert C.dtype == jnp.float32
    assert np.all(ok)
    np.testing.assert_allclose(C, np.broadcast_to(np.asarray(A) @ B, C.shape), atol=1e-5)
    bad = np.ones((1, 16), bool)
    bad[0, [2, 11, 14]] = False
    C, ok = decode(np.repeat(bad, 137, 0))
    assert not np.any(ok)
    assert np.all(np.isnan(C))


@pytest.mark.slow
def test_copies_share_the_work():
    code = FaultTolerantProduct(("strassen", "strassen", "strassen"))
    A, B = matrices(4, 4, 4)
    alive = np.ones(21, bool)
    alive[[0, 7, 9, 20]] = False
    C, ok = eqx.filter_jit(code)(A, B, alive)
    assert ok
    np.testing.assert_allclose(C, A @ B, atol=1e-12)
    alive[14] = False  # the last copy of the first product
    assert not code.weights(alive)[1]


def test_failure_probability():
    p = np.array([0.0, 0.01, 0.3, 1.0])
    for copies in (1, 3):
        code = FaultTolerantProduct(("strassen",) * copies)
        np.testing.assert_allclose(
            eqx.filter_jit(code.failure_probability)(p), 1 - (1 - p**copies) ** 7, atol=1e-14
        )
    # All patterns, one by one.
    lost = np.asarray(CODE.place) == 0
    dead = 16 - np.bitwise_count(np.arange(2**16))
    np.testing.assert_allclose(
        eqx.filter_jit(CODE.failure_probability)(0.1),
        np.sum(0.1 ** dead[lost] * 0.9 ** (16 - dead[lost])),
    )
    h = 1e-6
    values = jax.jit(jax.vmap(jax.value_and_grad(lambda p: CODE.failure_probability(p))))
    (_, low, high), (slope, *_) = values(jnp.array([0.1, 0.1 - h, 0.1 + h]))
    np.testing.assert_allclose(slope, (high - low) / (2 * h), rtol=1e-6)


def test_relations_are_all_that_vanish():
    found = relations(BOTH)
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(2, 2, 2))
    products = [np.dot(u, A.ravel()) * np.dot(v, B.ravel()) for u, v in BOTH]
    np.testing.assert_allclose(found @ np.array(products), 0, atol=1e-12)
    assert len(found) == 10
    # Among S1, S4, S5, S7 and W1 to W3, by trying all.
    some = tuple(BOTH[i] for i in (0, 3, 4, 6, 7, 8, 9))
    rows = np.array([np.outer(u, v).ravel() for u, v in some])
    every = itertools.product((-1, 0, 1), repeat=7)
    vanish = {c for c in every if not np.any(np.array(c) @ rows)}
    both = {tuple(map(int, s * r)) for r in relations(some) for s in (1, -1)}
    assert both == vanish - {(0,) * 7}
    assert both


def test_elimination_of_many_sets_equals_ranks():
    rng = np.random.default_rng(0)
    basis, vectors = rng.integers(-2, 3, (3, 7)), rng.integers(-2, 3, (2, 7))
    vectors[1] = basis[0] - 2 * basis[2]
    basis[1] = basis[0] + basis[2]  # of rank two
    columns = rng.random((200, 7)) < 0.4
    found = in_row_space(columns, basis, vectors)
    assert 0 < found.sum() < 200
    for some, fine in zip(columns, found, strict=True):
        a, b = basis[:, some], np.concatenate([basis, vectors])[:, some]
        assert fine == (np.linalg.matrix_rank(a) == np.linalg.matrix_rank(b))
        assert rank(b) == np.linalg.matrix_rank(b)


DEVICES = [
    pytest.param(("strassen", "winograd"), None, 8, id="16 nodes on 8"),
    pytest.param(("strassen",), (), 7, id="7 on 7", marks=pytest.mark.slow),
    pytest.param(("strassen", "winograd"), (), 7, id="14 on 7", marks=pytest.mark.slow),
    pytest.param(("strassen", "winograd"), (), 8, id="14 on 8", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("products", "parity", "devices"), DEVICES)
def test_devices_may_fail(products, parity, devices):
    code = FaultTolerantProduct(products, parity)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("workers",))
    A, B = matrices(5, 6, 3)
    run = jax.jit(lambda A, B, alive: distributed_matmul(A, B, mesh, "workers", alive, code))
    alone = eqx.filter_jit(code)
    rng = np.random.default_rng(0)
    for _ in range(4):
        alive = np.ones(code.nodes, bool)
        alive[rng.choice(code.nodes, 2, replace=False)] = False
        C, ok = run(A, B, alive)
        wanted, fine = alone(A, B, alive)
        assert ok == fine
        np.testing.assert_allclose(C, wanted, atol=1e-12)
        if ok:
            np.testing.assert_allclose(C, np.asarray(A) @ B, atol=1e-12)
    assert run._cache_size() == 1


SIXTEEN = """
import jax, numpy as np
from jaxopt_ext_kernels import FaultTolerantProduct, distributed_matmul
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("workers",))
assert len(jax.devices()) == 16
rng = np.random.default_rng(0)
code = FaultTolerantProduct()
run = jax.jit(lambda A, B, alive: distributed_matmul(A, B, mesh, "workers", alive, code))
for _ in range(20):
    A, B = rng.normal(size=(2, 12, 12)).astype(np.float32)
    alive = np.ones(16, bool)
    alive[rng.choice(16, 2, replace=False)] = False
    C, ok = run(A, B, alive)
    assert ok and np.abs(C - A @ B).max() < 1e-4, np.abs(C - A @ B).max()
"""


@pytest.mark.slow
def test_sixteen_devices_two_dropped_twenty_times():
    flags = "--xla_force_host_platform_device_count=16"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", SIXTEEN], cwd=ROOT, env=environment, check=True)


@pytest.mark.slow
def test_compiles_for_tpus_two_levels_and_on_four_chips():
    chips = topology("v5e:2x2").devices
    mesh = jax.sharding.Mesh(np.array(chips).reshape(-1), ("workers",))
    chip = jax.sharding.SingleDeviceSharding(chips[0])
    everywhere = jax.sharding.NamedSharding(mesh, jax.P())
    shape = lambda where, *s: jax.ShapeDtypeStruct(s, jnp.float32, sharding=where)
    alive = jax.ShapeDtypeStruct((16,), bool, sharding=everywhere)
    with jax.enable_x64(False):
        code = FaultTolerantProduct()
        two = jax.jit(lambda A, B: strassen_matmul(A, B, levels=2, implementation="pallas"))
        compiled = two.trace(*(shape(chip, 2048, 2048),) * 2).lower().compile()
        assert "tpu_custom_call" in compiled.as_text()
        run = lambda A, B, alive: distributed_matmul(
            A, B, mesh, "workers", alive, code, implementation="pallas"
        )
        program = jax.jit(run).trace(*(shape(everywhere, 512, 512),) * 2, alive).lower().compile()
    assert "tpu_custom_call" in program.as_text()
    assert program.as_text().count("all-reduce") == 1


def test_bad_input_is_named():
    A, B = matrices(4, 4, 4)
    U, V = jnp.asarray(CODE.U), jnp.asarray(CODE.V)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("workers",))
    alive = np.ones(16, bool)
    cases = [
        (lambda: strassen_matmul(A, B[:3]), ValueError, r"\(4, 4\) times \(3, 4\)"),
        (lambda: strassen_matmul(A, B, levels=-1), ValueError, "-1"),
        (lambda: strassen_matmul(A, B, levels=1.5), TypeError, "1.5"),
        (lambda: strassen_matmul(A, B, algorithm="karatsuba"), ValueError, "'karatsuba'"),
        (lambda: strassen_matmul(A, B, algorithm=3), TypeError, "3"),
        (lambda: strassen_matmul(A, B, implementation="cuda"), ValueError, "'cuda'"),
        (lambda: strassen_matmul(A, B, leaf=jnp.dot, implementation="pallas"), ValueError, "leaf"),
        (lambda: strassen_matmul(A > 0, B > 0), TypeError, "bool"),
        (
            lambda: coded_products(A.astype(int), B.astype(int), U, V, implementation="pallas"),
            TypeError,
            "int",
        ),
        (lambda: coded_products(A, B, U[:3], V), ValueError, r"\(3, 4\) and \(16, 4\)"),
        (lambda: coded_products(A, B, U * 0.5, V), TypeError, "float64"),
        (lambda: Bilinear(BOTH[:6]), ValueError, "no integer combination"),
        (lambda: Bilinear([((1, 0), (1, 0))]), ValueError, "four integers"),
        (lambda: FaultTolerantProduct([]), ValueError, r"\[\]"),
        (lambda: FaultTolerantProduct("strassen"), ValueError, "'strassen'"),
        (
            lambda: FaultTolerantProduct(["strassen"], [((0, 0, 0, 0), (1, 0, 0, 0))]),
            ValueError,
            "zero",
        ),
        (
            lambda: FaultTolerantProduct(
                parity=BOTH[:1] * 0 + tuple((tuple(r), (1, 0, 0, 0)) for r in np.eye(4, dtype=int))
            ),
            ValueError,
            "16",
        ),
        (lambda: CODE.weights(alive[:3]), ValueError, r"\(3,\)"),
        (lambda: CODE.weights(alive.astype(float)), TypeError, "float64"),
        (lambda: CODE.decode(jnp.ones((3, 2, 2)), alive), ValueError, r"\(3, 2, 2\)"),
        (lambda: CODE.decode(jnp.ones((16, 2, 2), int), alive), TypeError, "int"),
        (lambda: CODE.decode(jnp.ones((16, 2, 2)), alive, (2, 4)), ValueError, r"\(2, 4\)"),
        (lambda: CODE.failure_probability(1.5), ValueError, "1.5"),
        (lambda: relations(BOTH, 0), ValueError, "0"),
        (lambda: relations(BOTH, 9), ValueError, "9"),
        (lambda: search_parities(BOTH[:7]), ValueError, "alone"),
        (lambda: distributed_matmul(A, B, mesh, "nodes", alive), ValueError, "'nodes'"),
        (
            lambda: distributed_matmul(A.astype(int), B.astype(int), mesh, "workers", alive),
            TypeError,
            "int",
        ),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()


def test_empty_matrices():
    for m, n, k in itertools.product((0, 3), repeat=3):
        found = strassen_matmul(jnp.ones((m, n)), jnp.ones((n, k)))
        np.testing.assert_array_equal(found, np.ones((m, n)) @ np.ones((n, k)))
