"""Updates of decompositions against Zha and Simon's with dense factors, and recomputation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from jax.sharding import Mesh, PartitionSpec as P

from jaxopt_ext.linalg import GramSchmidt, Lanczos, RandomizedPower, TruncatedSVD
from jaxopt_ext_kernels import CSR

RANK, S = 5, 3


def entries(rng, m, n, capacity, nnz=8):
    """A sparse matrix of shape `capacity` with entries in its first m rows and n columns."""
    flat = rng.choice(m * n, nnz, replace=False)
    return CSR.from_coo(rng.normal(size=nnz), flat // n, flat % n, capacity)


def multiplied(svd):
    u, s, v = _factors(svd)
    return (u * s) @ v.T


@jax.jit
def _computed(svd):
    return svd.u, svd.s, svd.v


def _factors(svd):
    return map(np.asarray, _computed(svd))


class ZhaSimon:
    """Rows, columns and weights by dense QR of what is outside of the span."""

    def __init__(self, A, k):
        u, s, vt = np.linalg.svd(A, full_matrices=False)
        self.u, self.s, self.v, self.k = u[:, :k], s[:k], vt[:k].T, k

    def truncate(self, left, middle, right):
        F, s, Gt = np.linalg.svd(middle)
        k = self.k
        self.u, self.s, self.v = left @ F[:, :k], s[:k], right @ Gt[:k].T

    def rows(self, E):
        C = self.v.T @ E.T
        Q, R = np.linalg.qr(E.T - self.v @ C)
        zero = np.zeros((self.k, len(R)))
        left = np.block(
            [
                [self.u, np.zeros((len(self.u), len(E)))],
                [np.zeros((len(E), self.k)), np.eye(len(E))],
            ]
        )
        middle = np.block([[np.diag(self.s), zero], [C.T, R.T]])
        self.truncate(left, middle, np.hstack([self.v, Q]))

    def columns(self, E):
        self.u, self.v = self.v, self.u
        self.rows(E.T)
        self.u, self.v = self.v, self.u

    def weights(self, D, E):
        sides = []
        for basis, X in ((self.u, D), (self.v, E)):
            C = basis.T @ X
            Q, R = np.linalg.qr(X - basis @ C)
            sides.append((np.hstack([basis, Q]), np.vstack([C, R])))
        (left, a), (right, b) = sides
        middle = a @ b.T
        middle[: self.k, : self.k] += np.diag(self.s)
        self.truncate(left, middle, right)


def add_all(svd, rows, columns, D, E):
    return svd.add_rows(rows).add_columns(columns).add_low_rank(D, E)


@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_it_is_zha_and_simons_update_and_stays_orthonormal(rounds):
    rng = np.random.default_rng(0)
    m, n = 20, 15
    room = m + S * rounds, n + S * rounds
    A = rng.normal(size=(m, n))
    oracle, svd = ZhaSimon(A, RANK), TruncatedSVD.from_matrix(A, RANK, capacity=room)
    update = jax.jit(add_all)
    for _ in range(rounds):
        rows = entries(rng, S, n, (S, room[1]))
        columns = entries(rng, m + S, S, (room[0], S))
        D = entries(rng, m + S, S, (room[0], S))
        E = entries(rng, n + S, S, (room[1], S))
        svd = update(svd, rows, columns, D, E)
        oracle.rows(rows.to_scipy().toarray()[:, :n])
        oracle.columns(columns.to_scipy().toarray()[: m + S])
        m, n = m + S, n + S
        oracle.weights(D.to_scipy().toarray()[:m], E.to_scipy().toarray()[:n])
    assert (svd.num_rows, svd.num_columns) == (m, n)
    wanted = (oracle.u * oracle.s) @ oracle.v.T
    np.testing.assert_allclose(multiplied(svd)[:m, :n], wanted, atol=1e-10)
    np.testing.assert_allclose(svd.s, oracle.s, rtol=1e-10)
    u, _, v = _factors(svd)
    for factor in (u, v):
        np.testing.assert_allclose(factor.T @ factor, np.eye(RANK), atol=1e-9)
    rows = np.array([0, m - 1])
    left, right = jax.jit(lambda svd, i, j: (svd.left(i), svd.right(j)))(svd, rows, n - 1)
    np.testing.assert_allclose(left, u[rows])
    np.testing.assert_allclose(right, v[n - 1])


def test_no_dense_array_of_the_rows_is_made():
    svd = TruncatedSVD.from_matrix(np.eye(997, 12), 4, capacity=(997, 12))
    E = entries(np.random.default_rng(0), 997, 7, (997, 7), 9)
    text = str(jax.make_jaxpr(lambda svd, E: svd.add_low_rank(E, entries_of(12, 7)))(svd, E))
    assert "997,4]" in text
    assert "997,7]" not in text


@functools.cache
def entries_of(m, n):
    return entries(np.random.default_rng(1), m, n, (m, n))


@pytest.mark.slow
def test_a_space_as_large_as_the_update_is_exact():
    rng = np.random.default_rng(3)
    A = rng.normal(size=(8, 12))
    svd = TruncatedSVD.from_matrix(A, RANK, capacity=(11, 12))
    E = entries(rng, S, 12, (S, 12))

    @jax.jit
    def each(svd):
        ways = (svd.add_rows(E, a) for a in (GramSchmidt(), Lanczos(3), RandomizedPower(3)))
        return [(new.u * new.s) @ new.v.T for new in ways]

    wanted, *found = each(svd)
    for other in found:
        np.testing.assert_allclose(other, wanted, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("augment", [Lanczos, RandomizedPower])
def test_smaller_spaces_get_better_with_their_size(augment):
    rng = np.random.default_rng(4)
    A = rng.normal(size=(30, 60)) * 0.5 ** np.arange(60)
    wide = CSR.from_scipy(sp.random_array((30, 60), density=0.1, rng=rng))
    svd = TruncatedSVD.from_matrix(A, RANK, capacity=(60, 60))
    whole = np.vstack([multiplied(svd)[:30], np.asarray(wide.todense())])
    optimum = np.linalg.norm(np.linalg.svd(whole)[1][RANK:])
    errors = [
        np.linalg.norm(multiplied(svd.add_rows(wide, augment(size))) - whole) - optimum
        for size in (1, 5, 10, 20)
    ]
    assert errors[-1] < 0.02 * errors[0]
    assert errors == sorted(errors, reverse=True)


def check_exact(A, E, dtype=np.float64, tol=1e-10):
    k = 4
    room = (len(A) + len(E), A.shape[1])
    svd = TruncatedSVD.from_matrix(A.astype(dtype), k, capacity=room)
    # Padding says nothing, and no shape is new.
    svd = appended(svd, CSR.from_dense(E.astype(dtype), nnz=18))
    whole = np.vstack([A, E])
    assert svd.s.dtype == dtype
    scale = np.abs(whole).max()
    np.testing.assert_allclose(multiplied(svd), whole, atol=tol * scale)
    u, _, v = _factors(svd)
    for factor in (u, v):
        np.testing.assert_allclose(factor.T @ factor, np.eye(k), atol=1e3 * tol)


@jax.jit
def appended(svd, E):
    return svd.add_rows(E)


def test_what_has_the_rank_is_kept_exactly_whatever_it_is():
    rng = np.random.default_rng(5)
    base = rng.normal(size=(3, 6))
    A = rng.normal(size=(7, 3)) @ base
    inside = rng.normal(size=(S, 3)) @ base
    check_exact(A, inside)  # all of the update lies in the span
    check_exact(A, np.zeros((S, 6)))
    check_exact(A, np.repeat(rng.normal(size=(1, 6)), S, axis=0))  # equal rows
    check_exact(1e-9 * A[:, :1] @ np.eye(1, 6), 1e9 * np.eye(S, 6, k=2))  # new directions take over
    check_exact(A, 1e-7 * inside)


@pytest.mark.slow
def test_what_has_the_rank_is_kept_in_single_precision():
    rng = np.random.default_rng(5)
    base = rng.normal(size=(3, 6))
    A, inside = (rng.normal(size=(m, 3)) @ base for m in (7, S))
    check_exact(A, inside, np.float32, 1e-5)
    check_exact(A, np.repeat(rng.normal(size=(1, 6)), S, axis=0), np.float32, 1e-5)


def one_of_two():
    rng = np.random.default_rng(6)
    svd = TruncatedSVD.from_matrix(rng.normal(size=(4, 5)), 2, capacity=(6, 5))
    E = CSR.from_coo(rng.normal(size=4), [0, 0, 1, 1], [0, 2, 2, 4], (2, 5))

    def total(s, v):
        given = TruncatedSVD(*[s if a is svd.s else a for a in jax.tree.leaves(svd)])
        new = given.add_rows(E.with_values(v))
        return jnp.sum(((new.u * new.s) @ new.v.T)[:, 0] ** 2)

    values = jnp.asarray(rng.normal(size=(2, 4)))

    def plain(s):
        A = np.asarray(svd.outer_left)[:4] * s @ np.asarray(svd.outer_right).T
        sums = 0
        for v in values:
            u, t, wt = np.linalg.svd(np.vstack([A, E.with_values(v).todense()]))
            sums += np.sum(((u[:, :2] * t[:2]) @ wt[:2])[:, 0] ** 2)
        return sums

    return total, plain, svd.s, values


@pytest.mark.slow
def test_shard_map():
    total, plain, s, values = one_of_two()
    mesh = Mesh(np.array(jax.devices()[:2]), "i")
    each = jax.shard_map(
        lambda s, v: total(s, v[0])[None], mesh=mesh, in_specs=(P(), P("i")), out_specs=P("i")
    )
    np.testing.assert_allclose(jnp.sum(jax.jit(each)(s, values)), plain(np.asarray(s)))


@pytest.mark.slow
def test_derivatives_of_what_a_batch_shares():
    total, plain, s, values = one_of_two()
    batched = lambda s, v: jnp.sum(jax.vmap(total, (None, 0))(s, v))
    value, slope = jax.jit(jax.value_and_grad(batched))(s, values)
    np.testing.assert_allclose(value, plain(np.asarray(s)))
    for i, step in enumerate(1e-6 * np.eye(2)):
        moved = (plain(s + step) - plain(s - step)) / 2e-6
        np.testing.assert_allclose(slope[i], moved, rtol=1e-5)


def test_from_sparse_matrices_and_renormalized():
    A = sp.random_array((30, 20), density=0.3, rng=np.random.default_rng(7))
    wanted = np.linalg.svd(A.toarray())[1][:4]
    for form in (A, CSR.from_scipy(A), A.toarray()):
        svd = TruncatedSVD.from_matrix(form, 4)
        np.testing.assert_allclose(svd.s, wanted, rtol=1e-8)
    leaves = [np.asarray(a) for a in jax.tree.leaves(svd)]
    skew = TruncatedSVD(*jax.device_put([a if a.ndim < 2 else a + 0.01 for a in leaves]))
    straight = jax.jit(lambda svd: svd.renormalized())(skew)
    np.testing.assert_allclose(multiplied(straight), multiplied(skew), atol=1e-10)
    u, *_ = _factors(straight)
    np.testing.assert_allclose(u.T @ u, np.eye(4), atol=1e-12)


def test_bad_input_raises():
    A = np.ones((4, 3))
    svd = TruncatedSVD.from_matrix(A, 2, capacity=(5, 4))
    with pytest.raises(ValueError, match="rank 4 is above"):
        TruncatedSVD.from_matrix(A, 4)
    with pytest.raises(ValueError, match="capacity"):
        TruncatedSVD.from_matrix(A, 2, capacity=(3, 3))
    with pytest.raises(ValueError, match="finite"):
        TruncatedSVD.from_matrix(A * np.nan, 2)
    with pytest.raises(TypeError, match="int"):
        TruncatedSVD.from_matrix(np.ones((2, 2), int), 1)
    with pytest.raises(ValueError, match="shape"):
        TruncatedSVD.from_matrix(np.ones(3), 1)
    one = lambda i, j, shape, dtype=np.float64: CSR.from_coo(np.ones(1, dtype), [i], [j], shape)
    with pytest.raises(ValueError, match="no room for 2 more rows"):
        svd.add_rows(one(0, 0, (2, 4)))
    with pytest.raises(ValueError, match="behind the last of the columns"):
        svd.add_rows(one(0, 3, (1, 4)))
    with pytest.raises(ValueError, match="do not fit capacities"):
        svd.add_rows(one(0, 0, (1, 5)))
    with pytest.raises(TypeError, match="float32"):
        svd.add_rows(one(0, 0, (1, 4), np.float32))
    with pytest.raises(TypeError, match="CSR"):
        svd.add_columns(A)
    with pytest.raises(ValueError, match="as many columns"):
        svd.add_low_rank(one(0, 0, (4, 1)), one(0, 0, (3, 2)))
    with pytest.raises(ValueError, match="behind the last of the rows"):
        svd.add_low_rank(one(4, 0, (5, 1)), one(0, 0, (3, 1)))
    for make in (Lanczos, RandomizedPower):
        with pytest.raises(ValueError, match="at least 1"):
            make(0)
    assert svd.add_rows(CSR.from_dense(np.zeros((0, 4)))) is svd
