"""Dense systems in batches, against numpy."""

import jax
import jax.numpy as jnp
import lapack
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext.core import dense

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [5, 20])
def test_batches_equal_single_solves(n, dtype):
    """With a matrix and columns of each member, and with either shared; batches of batches too."""
    matrices = RNG.normal(size=(3, n, n)) + np.eye(n)
    matrices[0, 0, 0] = 0  # rows change places
    columns = RNG.normal(size=(3, n, 2))
    A, B = jnp.asarray(matrices, dtype), jnp.asarray(columns, dtype)

    @jax.jit
    def all_of(A, B):
        one, many = dense.lu_solve, jax.vmap(dense.lu_solve)
        shared = jax.vmap(dense.lu_solve, (None, 0))(A[0], B)[0]
        fixed = jax.vmap(dense.lu_solve, (0, None))(A, B[0])[0]
        table = jax.vmap(jax.vmap(dense.lu_solve, (None, 0)), (0, None))(A, B)[0]
        return one(A[0], B[0]), many(A, B), shared, fixed, table

    one, many, shared, fixed, table = all_of(A, B)
    wanted = np.linalg.solve(matrices[:, None], columns[None])
    close = dict(rtol=0, atol=(1e-3 if dtype == jnp.float32 else 1e-11) * np.abs(wanted).max())
    np.testing.assert_allclose(table, wanted, **close)
    np.testing.assert_allclose(shared, wanted[0], **close)
    np.testing.assert_allclose(fixed, wanted[:, 0], **close)
    np.testing.assert_allclose(many[0], np.stack([wanted[i, i] for i in range(3)]), **close)
    np.testing.assert_allclose(one[0], wanted[0, 0], **close)
    np.testing.assert_allclose(np.abs(many[1][0]), np.abs(one[1]), rtol=1e-3)


@pytest.mark.parametrize("n", [3, 20])
def test_derivatives_of_batches_do_not_wait_for_each_other(n):
    """Two solves stand side by side in a second derivative."""

    def solved(theta, shift):
        problem = jxt.Smooth(
            lambda x: jnp.sum(jnp.cosh(x - shift) + theta * x**2) + jnp.sum(x) ** 2
        )
        return jxt.attach(shift, problem)

    def score(theta, shifts):
        return jnp.sum(jax.vmap(solved, (None, 0))(theta, shifts) ** 2)

    program = jax.make_jaxpr(jax.hessian(score))(jnp.ones(()), jnp.ones((4, n)))
    assert bool(_factorized(program)) == (n > 16)  # small ones are eliminated
    assert not lapack.side_by_side(program)


def _factorized(program):
    """Shapes of the matrices whose LU a program has in it."""
    found = []

    def visit(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "lu":
                found.append(eqn.invars[0].aval.shape)
            for part in lapack.parts(eqn):
                visit(part)

    visit(program.jaxpr)
    return found


def test_a_shared_matrix_is_factorized_once():
    problem = lambda data: jxt.Smooth(lambda x: jnp.sum((x - data) ** 2) + jnp.sum(x) ** 4)
    solved = lambda data: jxt.attach(data, problem(data))
    jacobian = jax.make_jaxpr(jax.jacrev(solved))(jnp.ones(20))
    assert _factorized(jacobian) == [(20, 20)]
