"""A sparse matrix may stand for a dense one: same values, same derivatives, nothing dense made."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import jaxopt_ext as jxt
from jaxopt_ext.core.operators import as_map, dense
from jaxopt_ext_kernels import BCSR, CSR

RNG = np.random.default_rng(0)
N, D = 14, 6
X = RNG.normal(size=(N, D)) * (RNG.random((N, D)) < 0.5)
Y = RNG.normal(size=N)
ROWS = CSR.from_dense(X, nnz=np.count_nonzero(X) + 3)
BLOCKS = BCSR.from_csr(CSR.from_dense(X), (3, 2), RNG.permutation(N))
FORMATS = {"csr": ROWS, "bcsr": BLOCKS}


def _with(matrix, values):
    return dataclasses.replace(matrix, values=values)


def _agree(found, wanted, tolerance=1e-9):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


@pytest.mark.always(1)
@pytest.mark.parametrize("kind", FORMATS)
def test_losses_and_maps(kind):
    sparse = FORMATS[kind]
    binary = jnp.asarray(Y > 0, float)
    losses = [
        (jxt.objectives.SquaredLoss, jnp.asarray(Y)),
        (jxt.objectives.LogisticLoss, binary),
        (jxt.objectives.HuberLoss, jnp.asarray(Y)),
        (jxt.objectives.PoissonLoss, binary),
        (jxt.objectives.MulticlassLogisticLoss, jnp.asarray(Y > 0, int)),
    ]

    def all_of(matrix, w):
        values = [
            loss(matrix, y)(w if y.dtype != int else jnp.stack([w, -w], 1)) for loss, y in losses
        ]
        bounds = losses[0][0](matrix, losses[0][1]).coordinate_lipschitz()
        there = as_map(matrix)
        return jnp.stack(values), bounds, there(w), there.adjoint(there(w))

    def both(values, w):
        score = lambda v, w, make: sum(jnp.sum(jnp.sin(a)) for a in all_of(make(v), w))
        ours = lambda v: _with(sparse, v)
        theirs = lambda v: ours(v).todense()
        return [
            (all_of(make(values), w), jax.grad(score, (0, 1))(values, w, make))
            for make in (ours, theirs)
        ]

    found, wanted = jax.jit(both)(sparse.values, jnp.asarray(RNG.normal(size=D)))
    _agree(found, wanted)
    np.testing.assert_allclose(dense(sparse, None), X, atol=1e-12)


SOLVERS = {
    "csr": jxt.minimize.FISTA(tol=1e-10),
    "bcsr": jxt.minimize.FISTA(tol=1e-10),
    "coordinates": jxt.minimize.BlockCoordinateDescent(tol=1e-10),
    "columns of targets": jxt.minimize.BlockCoordinateDescent(tol=1e-10),
}


@pytest.mark.always(1)
@pytest.mark.parametrize(
    "kind",
    ["csr", "bcsr", "coordinates", pytest.param("columns of targets", marks=pytest.mark.slow)],
)
def test_composite_problems(kind):
    sparse, solver = FORMATS.get(kind, ROWS), SOLVERS[kind]
    targets = jnp.stack([Y, np.cos(Y)], 1) if kind.startswith("columns") else jnp.asarray(Y)
    penalty = jxt.prox.GroupLasso if targets.ndim > 1 else jxt.prox.L1
    start = jnp.zeros((D, *targets.shape[1:]))

    def both(values, lam):
        def score(values, lam, make):
            loss = jxt.objectives.SquaredLoss(make(values), targets)
            w = jxt.solve(jxt.Composite(loss, penalty(lam)), solver, start).value
            return jnp.sum(jnp.sin(w)), w

        makes = (lambda v: _with(sparse, v)), (lambda v: _with(sparse, v).todense())
        return [jax.grad(score, (0, 1), has_aux=True)(values, lam, make) for make in makes]

    found, wanted = jax.jit(both)(sparse.values, 0.03)
    assert np.any(found[1])
    _agree(found, wanted, 1e-6)


def test_sweeps_over_coordinates_are_those_of_the_dense_matrix():
    """After a few: at the end even a wrong step within a sweep is forgotten."""
    targets = jnp.stack([Y, np.cos(Y)], 1)
    solver = jxt.minimize.BlockCoordinateDescent(max_steps=3, tol=1e-14)

    def after(matrix, targets):
        loss = jxt.objectives.SquaredLoss(matrix, targets)
        start = jnp.ones((D, *targets.shape[1:]))
        return jxt.solve(jxt.Composite(loss, jxt.prox.L2Squared(0.1)), solver, start).value

    both = jax.jit(lambda t: [(after(m, t), after(m, t[:, 0])) for m in (ROWS, jnp.asarray(X))])
    found, wanted = both(targets)
    _agree(found, wanted, 1e-12)


@pytest.mark.slow
def test_batches_with_a_shared_matrix_in_shard_map_with_its_check():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("x")

    def total(values, lams, make):
        def one(lam):
            loss = jxt.objectives.SquaredLoss(make(values), Y)
            problem = jxt.Composite(loss, jxt.prox.L1(lam))
            w = jxt.solve(problem, jxt.minimize.FISTA(tol=1e-10), jnp.zeros(D)).value
            return jnp.sum(jnp.sin(w))

        return jax.lax.psum(jnp.sum(jax.vmap(one)(lams)), "x")

    def slopes(make):
        def run(values, lams):
            return jax.grad(lambda v: total(v, lams, make))(values)

        return jax.shard_map(run, mesh=mesh, in_specs=(everywhere, split), out_specs=everywhere)

    makes = ROWS.with_values, lambda v: ROWS.with_values(v).todense()
    lams = jnp.array([0.01, 0.05])
    found, wanted = jax.jit(lambda v, lams: [slopes(make)(v, lams) for make in makes])(
        ROWS.values, lams
    )
    assert np.any(found)
    _agree(found, wanted, 1e-6)


@pytest.mark.parametrize("kind", ["csr", pytest.param("bcsr", marks=pytest.mark.slow)])
def test_quadratic_programs(kind):
    P, A = X.T @ X + np.eye(D), X[:5]
    make = CSR.from_dense if kind == "csr" else lambda M: BCSR.from_dense(M, (2, 3))
    P, A = make(P), make(A)
    solver = jxt.splitting.OSQP(tol=1e-10, polish=False)

    def both(p, a):
        def score(p, a, dense):
            matrices = _with(P, p), _with(A, a)
            if dense:
                matrices = [M.todense() for M in matrices]
            problem = jxt.QuadraticProgram(
                matrices[0], jnp.arange(D) - 2.5, matrices[1], -jnp.ones(5), jnp.ones(5)
            )
            x = jxt.solve(problem, solver).value.primal
            return jnp.sum(jnp.sin(x)), x

        return [jax.grad(score, (0, 1), has_aux=True)(p, a, dense) for dense in (False, True)]

    found, wanted = jax.jit(both)(P.values, A.values)
    _agree(found, wanted, 1e-6)


@pytest.mark.slow
def test_nothing_dense_is_made():
    n = 400
    matrix = CSR.from_scipy(sp.eye_array(n) + sp.eye_array(n, k=1))

    def score(values, w):
        loss = jxt.objectives.SquaredLoss(matrix.with_values(values), jnp.ones(n))
        problem = jxt.Composite(loss, jxt.prox.L1(0.01))
        return jnp.sum(jxt.solve(problem, jxt.minimize.FISTA(max_steps=10), w).value)

    jaxpr = jax.make_jaxpr(jax.grad(score))(matrix.values, jnp.zeros(n))
    assert max(_sizes(jaxpr.jaxpr)) < n * n / 4


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


def test_bad_input_is_named():
    square, q = CSR.from_dense(np.eye(3)), jnp.ones(3)
    cases = [
        (ValueError, lambda: jxt.objectives.SquaredLoss(ROWS, Y[:3]), r"\(14, 6\) and \(3,\)"),
        (
            ValueError,
            lambda: jxt.QuadraticProgram(square, q, CSR.from_dense(np.ones((2, 4))), q[:2], q[:2]),
            r"A must have shape \(2, 3\)",
        ),
        (
            ValueError,
            lambda: jxt.QuadraticProgram(CSR.from_dense(np.triu(np.ones((3, 3)))), q, square, q, q),
            "P must be symmetric, entries differ by 1",
        ),
        (
            ValueError,
            lambda: jxt.QuadraticProgram(
                BCSR.from_dense(np.triu(np.ones((3, 3))), (2, 2)), q, square, q, q
            ),
            "P must be symmetric, entries differ by 1",
        ),
        (
            TypeError,
            lambda: jxt.QuadraticProgram.from_inequalities(square, q, G=square, h=q),
            "stack A and G",
        ),
        (
            TypeError,
            lambda: jxt.solve(
                jxt.Composite(jxt.objectives.SquaredLoss(BLOCKS, Y), jxt.prox.L1(0.1)),
                jxt.minimize.BlockCoordinateDescent(),
                jnp.zeros(D),
            ),
            "not a BCSR",
        ),
    ]
    for kind, call, message in cases:
        with pytest.raises(kind, match=message):
            call()
