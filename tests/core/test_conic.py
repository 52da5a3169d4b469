"""Conic programs: residuals at the solutions of another solver, and derivatives."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from newton import Newton

import jaxopt_ext as jxt
from jaxopt_ext.core.operators import Map
from jaxopt_ext.core.spectral import positive_part
from jaxopt_ext.splitting import OSQP

pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
RNG = np.random.default_rng(11)
TIGHT = {"solver": cp.CLARABEL, "tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}


def differences(solve, t, step=1e-4):
    return np.stack(
        [(solve(t + step * e) - solve(t - step * e)) / (2 * step) for e in np.eye(len(t))], axis=1
    )


def solved_and_slope(build, t, start):
    solved = lambda t: jxt.solve(build(t), Newton(tol=1e-10), start).value
    return jax.jit(lambda t: (solved(t), jax.jacobian(lambda t: solved(t).primal)(t)))(t)


G, C = RNG.normal(size=(9, 4)), RNG.normal(size=4)
H = np.abs(RNG.normal(size=9)) + 0.5
LP = (np.ones((1, 4)), np.array([0.3]), np.concatenate([G, np.eye(4), -np.eye(4)]))


def linear(h, c=C):
    equal, rhs, rows = LP
    return jxt.LinearProgram.from_inequalities(
        c, equal, rhs, rows, jnp.concatenate([h, jnp.full(8, 2.0)])
    )


def linear_oracle(h):
    x = cp.Variable(4)
    equal, rhs, rows = LP
    rows = [equal @ x == rhs, rows @ x <= np.concatenate([h, np.full(8, 2.0)])]
    cp.Problem(cp.Minimize(C @ x), rows).solve(**TIGHT)
    return x.value, np.concatenate([r.dual_value for r in rows])


def test_a_linear_program():
    """The pair of another solver has no residual; the derivative in the bounds; and OSQP."""
    x, y = linear_oracle(H)
    problem = linear(jnp.asarray(H))
    pair = jxt.PrimalDual(jnp.asarray(x), jnp.asarray(y))
    assert jxt.tree.norm(problem.residual(pair)) < 1e-8
    value, slope = solved_and_slope(linear, jnp.asarray(H), pair)
    np.testing.assert_allclose(slope, differences(lambda h: linear_oracle(h)[0], H), atol=1e-5)
    assert np.abs(slope).max() > 0.1
    found = jxt.solve(problem.as_quadratic_program(), OSQP(tol=1e-9))
    assert found.status == jxt.Status.converged
    np.testing.assert_allclose(found.value.primal, x, atol=1e-7)
    np.testing.assert_allclose(found.value.primal, value.primal, atol=1e-7)
    for wrong in (pair._replace(dual=-pair.dual), pair._replace(primal=pair.primal + 0.1)):
        assert jxt.tree.norm(problem.residual(wrong)) > 1e-2


def test_a_program_without_a_matrix():
    """A map is enough: the residual is that with the matrix, and OSQP takes it."""
    dense = linear(jnp.asarray(H))
    A = dense.A
    free = jxt.LinearProgram(dense.c, Map(lambda x: A @ x, lambda y: A.T @ y), dense.l, dense.u)
    pair = jxt.PrimalDual(jnp.asarray(RNG.normal(size=4)), jnp.asarray(RNG.normal(size=18)))
    residual = lambda problem: jax.jit(lambda pair: problem.residual(pair))(pair)
    for a, b in zip(residual(dense), residual(free), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)
    quadratic = free.as_quadratic_program()
    np.testing.assert_allclose(
        quadratic.residual(pair).primal, dense.residual(pair).primal, rtol=1e-13
    )
    assert quadratic.P is not None
    bad = jxt.LinearProgram(dense.c, Map(lambda x: x, lambda y: y), dense.l, dense.u)
    with pytest.raises(ValueError, match="Ax must be shaped like"):
        jxt.solve(bad, Newton())


STATES = {
    "infeasible": jxt.LinearProgram.from_inequalities(
        jnp.ones(1), None, None, [[1.0], [-1.0]], [0.0, -1.0]
    ),
    "unbounded": jxt.LinearProgram.from_inequalities(-jnp.ones(1), None, None, [[-1.0]], [0.0]),
}


@pytest.mark.always(2)
@pytest.mark.parametrize("name", STATES)
def test_without_a_solution(name):
    solution = jxt.solve(STATES[name].as_quadratic_program(), OSQP())
    assert solution.status == getattr(jxt.Status, name)


NORMS = [
    (RNG.normal(size=(3, 4)), RNG.normal(size=3), 0.1 * RNG.normal(size=4), 2.5),
    (np.eye(4), np.zeros(4), np.zeros(4), 1.5),
]


def cones(c):
    G0 = jnp.asarray(G[:3])
    return jxt.SecondOrderConeProgram.from_norms(
        c, NORMS, np.array([[1.0, 1, 0, 0]]), [0.1], G0, H[:3]
    )


def cones_oracle(c):
    x = cp.Variable(4)
    rows = [x[0] + x[1] == 0.1, G[:3] @ x <= H[:3]]
    rows += [cp.SOC(w @ x + d, A @ x + b) for A, b, w, d in NORMS]
    cp.Problem(cp.Minimize(c @ x), rows).solve(**TIGHT)
    duals = [np.ravel(part) for r in rows for part in _parts(r.dual_value)]
    return x.value, np.concatenate(duals)


def _parts(dual):
    return dual if isinstance(dual, list) else [dual]


def test_a_second_order_cone_program():
    x, y = cones_oracle(C)
    problem = cones(jnp.asarray(C))
    assert problem.second_order == (4, 5)
    pair = jxt.PrimalDual(jnp.asarray(x), jnp.asarray(y))
    assert jxt.tree.norm(problem.residual(pair)) < 1e-5
    value, slope = solved_and_slope(cones, jnp.asarray(C), pair)
    np.testing.assert_allclose(value.primal, x, atol=1e-6)
    np.testing.assert_allclose(slope, differences(lambda c: cones_oracle(c)[0], C, 1e-3), atol=1e-4)
    assert np.abs(slope).max() > 0.1
    for wrong in (pair._replace(dual=-pair.dual), pair._replace(primal=1.2 * pair.primal)):
        assert jxt.tree.norm(problem.residual(wrong)) > 1e-2
    with pytest.raises(ValueError, match="no bounds on rows"):
        problem.as_quadratic_program()


def test_projection_on_a_product_of_cones():
    """Against one cone after the other, at all scales, and its derivative at the apex."""
    sizes = (1, 3, 2, 4)
    problem = jxt.SecondOrderConeProgram(np.ones(1), np.ones((14, 1)), np.ones(14), 1, 3, sizes)

    def by_hand(s):
        parts, at = [np.zeros(1), np.maximum(s[1:4], 0)], 4
        for size in sizes:
            t, v = s[at], s[at + 1 : at + size]
            norm = np.linalg.norm(v)
            if norm <= t:
                parts.append(s[at : at + size])
            elif norm <= -t:
                parts.append(np.zeros(size))
            else:
                half = (t + norm) / 2
                parts.append(np.concatenate([[half], half * v / norm]))
            at += size
        return np.concatenate(parts)

    points = RNG.normal(size=(40, 14)) * 10.0 ** RNG.uniform(-2, 2, (40, 14))
    found = jax.jit(jax.vmap(problem.project))(points)
    np.testing.assert_allclose(found, np.stack([by_hand(s) for s in points]), rtol=1e-12)
    tiny = jax.jit(lambda s: problem.project(s))(np.float32(1e-30) * points[0].astype(np.float32))
    wanted = 1e-30 * by_hand(points[0].astype(np.float32))
    np.testing.assert_allclose(tiny.astype(float), wanted, rtol=1e-5)
    assert np.all(np.isfinite(jax.jit(jax.jacobian(problem.project))(jnp.zeros(14))))


def symmetric(*shape):
    matrix = RNG.normal(size=shape)
    return 0.5 * (matrix + np.swapaxes(matrix, -1, -2))


GENERATORS = symmetric(3, 4, 4)
CONSTANT = symmetric(4, 4) - 3 * np.eye(4)


def inequality(c):
    """Bounded by a box, which is a second inequality; the last variable has a sign."""
    box = np.zeros((3, 4, 4))
    box[[0, 1, 2], [0, 1, 2], [0, 1, 2]] = 1
    constant = np.stack([CONSTANT, np.diag([-1.0, -1, -1, -1])])
    generators = np.stack([GENERATORS, box], axis=1)
    return jxt.LinearMatrixInequality(c, constant, generators, [False, False, True])


def inequality_oracle(c):
    z = cp.Variable(3)
    first = CONSTANT + sum(z[i] * GENERATORS[i] for i in range(3))
    rows = [first << 0, cp.diag(cp.hstack([z - 1, -1])) << 0, z[2] >= 0]
    cp.Problem(cp.Minimize(c @ z), rows).solve(**TIGHT)
    return z.value, np.stack([r.dual_value for r in rows[:2]])


COST = np.array([0.5, -1.0, 2.0])


def test_a_linear_matrix_inequality():
    z, X = inequality_oracle(COST)
    problem = inequality(jnp.asarray(COST))
    pair = jxt.PrimalDual(jnp.asarray(z), jnp.asarray(X))
    assert jxt.tree.norm(problem.residual(pair)) < 1e-6
    assert abs(z[2]) < 1e-8
    value, slope = solved_and_slope(inequality, jnp.asarray(COST), pair)
    np.testing.assert_allclose(value.primal, z, atol=1e-5)
    wanted = differences(lambda c: inequality_oracle(c)[0], COST, 1e-3)
    np.testing.assert_allclose(slope, wanted, atol=1e-3)
    assert np.abs(slope).max() > 0.1
    skew = jnp.zeros_like(pair.dual).at[0, 0, 1].set(1.0).at[0, 1, 0].set(-1.0)
    for wrong in (
        pair._replace(dual=-pair.dual),
        pair._replace(dual=pair.dual + skew),
        pair._replace(primal=pair.primal - 0.1),
    ):
        assert jxt.tree.norm(problem.residual(wrong)) > 1e-2


def test_higher_derivatives_of_the_cone_where_eigenvalues_are_repeated():
    """Of $A$ with $A^2 = I$, where $|A + tH|$ is a square root with a Taylor series."""
    basis = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    matrix = (basis * [1.0, 1, -1, -1]) @ basis.T
    H, weight = (a + a.T for a in RNG.normal(size=(2, 4, 4)))
    S, square = matrix @ H + H @ matrix, H @ H
    second = square / 2 - S @ S / 8
    third = 3 / 16 * S @ S @ S - 3 / 8 * (S @ square + square @ S)

    def run(t):
        score = lambda t: jnp.sum(weight * positive_part(jnp.asarray(matrix) + t * H))
        slope = lambda t: jax.jvp(score, (t,), (1.0,))[1]
        twice = (jax.hessian(score), jax.grad(jax.grad(score)), jax.grad(slope))
        return *(fun(t) for fun in twice), jax.grad(twice[0])(t)

    wanted = np.array([np.sum(weight * second)] * 3 + [np.sum(weight * third)])
    assert np.all(np.abs(wanted) > 1)
    np.testing.assert_allclose(jax.jit(run)(0.0), wanted, rtol=1e-10)


def test_generators_as_a_map():
    dense = inequality(jnp.asarray(COST))
    generators = dense.generators
    forward = lambda z: jnp.tensordot(z, generators, axes=1)
    adjoint = lambda X: jnp.tensordot(generators, X, axes=3)
    free = jxt.LinearMatrixInequality(COST, dense.constant, Map(forward, adjoint), [0, 0, 1])
    pair = jxt.PrimalDual(jnp.asarray(RNG.normal(size=3)), jnp.asarray(RNG.normal(size=(2, 4, 4))))
    for a, b in zip(dense.residual(pair), free.residual(pair), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_bad_programs():
    cone = jxt.SecondOrderConeProgram
    matrix = jxt.LinearMatrixInequality
    with pytest.raises(ValueError, match=r"A must have shape \(3, 2\), got \(2, 2\)"):
        jxt.LinearProgram(np.ones(2), np.eye(2), np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="u - l"):
        jxt.LinearProgram(np.ones(2), np.eye(2), np.ones(2), np.zeros(2))
    with pytest.raises(ValueError, match=r"4 rows in all, but b has shape \(5,\)"):
        cone(np.ones(1), np.ones((5, 1)), np.ones(5), 1, 1, (2,))
    with pytest.raises(ValueError, match="second_order must be at least 1"):
        cone(np.ones(1), np.ones((2, 1)), np.ones(2), 1, 1, (0,))
    with pytest.raises(ValueError, match="b must be finite"):
        cone(np.ones(1), np.ones((1, 1)), np.full(1, np.inf), 1)
    with pytest.raises(ValueError, match="constant must be symmetric"):
        matrix(np.ones(1), np.array([[0, 1.0], [0, 0]]), np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match=r"generators must have shape \(1, 2, 2\)"):
        matrix(np.ones(1), np.eye(2), np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="nonnegative"):
        matrix(np.ones(1), np.eye(2), np.zeros((1, 2, 2)), [True, False])
    with pytest.raises(TypeError, match="PrimalDual"):
        inequality(COST).check(np.ones(3))
    with pytest.raises(ValueError, match="dual starting point"):
        inequality(COST).check(jxt.PrimalDual(np.ones(3), np.eye(4)))


@pytest.mark.slow
def test_the_standard_form_is_the_dual():
    """The least trace among matrices with given products, against Clarabel."""
    rng = np.random.default_rng(4)
    A = rng.normal(size=(3, 4, 4))
    A = A + np.swapaxes(A, 1, 2)
    root = rng.normal(size=(4, 4))
    b, C = np.einsum("iab,ab->i", A, root @ root.T), np.diag([1.0, 2.0, 1.0, 3.0])
    problem = jxt.LinearMatrixInequality.from_standard(C, A, b)
    found = jxt.solve(problem, jxt.minimize.InteriorPoint(tol=1e-7))
    X = cp.Variable((4, 4), PSD=True)
    rows = [cp.trace(A[i] @ X) == b[i] for i in range(3)]
    wanted = cp.Problem(cp.Minimize(cp.trace(C @ X)), rows)
    wanted.solve(**TIGHT)
    assert found.status == jxt.Status.converged
    np.testing.assert_allclose(found.value.dual, X.value, atol=1e-4)
    np.testing.assert_allclose(-problem.objective(found.value.primal), wanted.value, rtol=1e-6)
