"""Interior points against HiGHS and Clarabel."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import lapack
import numpy as np
import pytest
import scipy.optimize

import jaxopt_ext as jxt
from jaxopt_ext.minimize import InteriorPoint, LongStep, ShortStep
from jaxopt_ext.minimize.cones import Orthant, SecondOrderCones, SemidefiniteCones, symmetrized

N, M, SIZE = 4, 9, 12


def _programs():
    """Equations, one-sided, free and dependent rows, badly scaled; infeasible and unbounded ones
    among them."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(SIZE, M, N))
    A[1, 1] = A[1, 0]
    A[2, :, 2] = A[2, :, 1]
    A[3, 3] = 0
    middle = np.einsum("smn,sn->sm", A, rng.normal(size=(SIZE, N)))
    l, u = middle - rng.uniform(0, 1, (SIZE, M)), middle + rng.uniform(0, 1, (SIZE, M))
    l[:, 0] = u[:, 0] = middle[:, 0]
    l[1, 1] = u[1, 1] = middle[1, 1]
    l[:, 2], u[:, 3], l[:, 4], u[:, 4] = -np.inf, np.inf, -np.inf, np.inf
    c = rng.normal(size=(SIZE, N))
    c[4] = 0
    scale = 10.0 ** rng.uniform(-3, 3, M)
    A[5], l[5], u[5] = A[5] * scale[:, None], l[5] * scale, u[5] * scale
    A[6, 5], l[6, 5], u[6, 5] = A[6, 6], u[6, 6] + 1, u[6, 6] + 2  # contradicts the next row
    l[7, 1:] = -np.inf
    u[7, 1:] = np.inf
    A[8, 1], l[8, 1], u[8, 1] = A[8, 0], l[8, 0] + 1, l[8, 0] + 1  # contradicts an equation
    return c, A, l, u


def _highs(c, A, l, u):
    rows = scipy.optimize.LinearConstraint(A, l, u)
    return scipy.optimize.milp(c, constraints=rows, bounds=(-np.inf, np.inf))


def test_linear_programs_agree_with_highs_and_certify_what_has_no_solution():
    data = _programs()
    run = jax.jit(
        jax.vmap(
            lambda c, A, l, u: jxt.solve(jxt.LinearProgram(c, A, l, u), InteriorPoint(tol=1e-7))
        )
    )
    solution = run(*data)
    found = np.asarray(solution.status._value)
    for i in range(SIZE):
        c, A, l, u = (d[i] for d in data)
        wanted, (x, y) = _highs(c, A, l, u), jax.tree.map(lambda a, i=i: a[i], solution.value)
        if i in (6, 8):
            assert wanted.status == 2
            assert found[i] == jxt.Status.infeasible._value
            np.testing.assert_allclose(A.T @ y, 0, atol=1e-6)
            support = np.sum(np.where(y > 0, u * y, 0) + np.where(y < 0, l * y, 0), where=y != 0)
            assert support < -0.9
        elif i == 7 or (wanted.status == 3):
            assert found[i] == jxt.Status.unbounded._value
            Ax = A @ x
            assert c @ x < -0.9
            assert np.all(Ax[np.isfinite(u)] < 1e-6)
            assert np.all(Ax[np.isfinite(l)] > -1e-6)
        else:
            assert found[i] == jxt.Status.converged._value, (i, solution.residual[i])
            np.testing.assert_allclose(c @ x, wanted.fun, rtol=1e-6, atol=1e-6)
    assert np.sum(found == jxt.Status.converged._value) >= 8


def test_paths_keep_what_they_promise():
    """Short steps stay close to the path, and their number is the formula's."""
    rng = np.random.default_rng(1)
    A = rng.normal(size=(30, 6))
    problem = jxt.LinearProgram(
        rng.normal(size=6) @ np.diag(A[:6, 0]), A, -np.ones(30), np.ones(30)
    )
    record = lambda problem, x, state: (state.decrement, state.error)
    solver = InteriorPoint(ShortStep(rate=0.4), tol=1e-6, max_steps=800)
    short = jxt.solve(problem, solver, trace=record)
    assert short.status == jxt.Status.converged
    assert np.max(short.trace[0]) < 0.25
    # mu falls from 1 as (1 + r / sqrt(nu))^-k, and the error with it.
    nu, steps = 61, int(short.steps)
    formula = np.log(1e6) / np.log1p(0.4 / np.sqrt(nu))
    assert 0.5 * formula < steps < 1.5 * formula
    long = jxt.solve(problem, InteriorPoint(LongStep(), tol=1e-6))
    assert long.status == jxt.Status.converged
    assert long.steps < steps / 5
    np.testing.assert_allclose(long.value.primal, short.value.primal, atol=1e-5)


@pytest.mark.parametrize(
    "cone", [Orthant((3,)), SecondOrderCones((2, 3)), SemidefiniteCones((2, 3, 3))]
)
def test_scalings(cone):
    """$Wz = W^{-T}s$, and what a scaling, its inverse and its transpose have to do."""
    rng = np.random.default_rng(2)

    @jax.jit
    def ask(drawn):
        def interior(a):
            a = symmetrized(a) if len(cone.shape) == 3 else a
            return cone.product(a, a) + 0.1 * cone.unit(a.dtype)

        s, z, a, outer, inner = map(interior, drawn)
        b = outer - 2 * inner
        w, point = cone.scaling(s, z)
        reach = cone.reach(point, b)
        pairs = (
            (cone.scale(w, z), point),
            (cone.scale_slack(w, s), point),
            (cone.unscale(w, cone.scale(w, b)), b),
            (cone.unscale_slack(w, cone.scale_slack(w, b)), b),
            (jnp.vdot(cone.scale(w, a), b), jnp.vdot(a, cone.unscale_slack(w, b))),
            (cone.product(point, cone.divide(point, b)), b),
        )
        ends = [cone.interior(point + share / reach * b) for share in (0.999, 1.001)]
        return pairs, reach, ends

    pairs, reach, (inside, outside) = ask(rng.normal(size=(5, *cone.shape)))
    for found, wanted in pairs:
        np.testing.assert_allclose(found, wanted, atol=1e-10)
    assert reach > 0
    assert inside
    assert not outside


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_cones_of_different_sizes_and_signs_agree_with_clarabel():
    rng = np.random.default_rng(3)
    c, lhs, rhs = rng.normal(size=4), rng.normal(size=(1, 4)), rng.normal(size=1)
    norms = [(rng.normal(size=(k, 4)), rng.normal(size=k), np.zeros(4), 3.0) for k in (2, 5)]
    problem = jxt.SecondOrderConeProgram.from_norms(c, norms, lhs, rhs, -np.eye(4), np.ones(4))
    solution = jxt.solve(problem, InteriorPoint(tol=2e-7))  # rounding allows no much less
    x = cp.Variable(4)
    rows = [cp.norm(A @ x + b) <= d for A, b, _, d in norms]
    wanted = cp.Problem(cp.Minimize(c @ x), [*rows, lhs @ x == rhs, x >= -1])
    wanted.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(solution.value.primal, x.value, atol=1e-6)


def _matrix_problem(shift):
    """MAXCUT's relaxation on a cycle of five, whose value is known; signs beside it."""
    n = 5
    L = np.diag(np.full(n, 2.0)) - np.roll(np.eye(n), 1, 0) - np.roll(np.eye(n), -1, 0)
    units = np.zeros((n, n, n))
    units[np.arange(n), np.arange(n), np.arange(n)] = -1
    return jxt.LinearMatrixInequality(np.ones(n), shift * L / 4, units, np.ones(n, bool))


def test_matrix_inequality_has_the_known_value():
    solution = jxt.solve(_matrix_problem(1.0), InteriorPoint(tol=1e-8))
    assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(np.sum(solution.value.primal), 5 * (5 + 5**0.5) / 8, atol=1e-7)


def test_matrix_inequalities_without_solution():
    """A trace that cannot be negative, and a cost that falls along a free direction."""
    F = np.array([[[1.0, 0], [0, -1]]])
    infeasible = jxt.LinearMatrixInequality(np.ones(1), np.eye(2), F)
    found = jxt.solve(infeasible, InteriorPoint())
    assert found.status == jxt.Status.infeasible
    X = found.value.dual
    np.testing.assert_allclose(np.trace(X), 1, rtol=1e-6)
    np.testing.assert_allclose(np.vdot(F[0], X), 0, atol=1e-6)
    assert np.all(np.linalg.eigvalsh(X) > -1e-9)
    unbounded = jxt.LinearMatrixInequality(np.ones(1), -np.eye(2), np.eye(2)[None])
    found = jxt.solve(unbounded, InteriorPoint())
    assert found.status == jxt.Status.unbounded
    np.testing.assert_allclose(found.value.primal, -1, rtol=1e-6)


def test_factorizations_of_a_batch_wait_for_each_other():
    """Else they can wait for each other's threads for ever."""
    run = lambda shift: jxt.solve(_matrix_problem(shift), InteriorPoint()).value
    assert not lapack.side_by_side(jax.make_jaxpr(jax.vmap(run))(jnp.ones(2)))


def test_operators_are_taken():
    import lineax as lx

    rng = np.random.default_rng(4)
    c, A = rng.normal(size=3), rng.normal(size=(6, 3))
    rows = lx.MatrixLinearOperator(jnp.asarray(A))
    problem = jxt.LinearProgram(c, rows, -np.ones(6), np.ones(6))
    found = jxt.solve(problem, InteriorPoint(tol=1e-9)).value
    wanted = _highs(c, A, -np.ones(6), np.ones(6))
    np.testing.assert_allclose(found.primal, wanted.x, atol=1e-8)


@pytest.mark.slow
def test_operators_are_taken_as_their_matrices_are():
    import lineax as lx

    rng = np.random.default_rng(4)
    c, A = rng.normal(size=3), rng.normal(size=(6, 3))
    plain, lazy = (
        jxt.solve(jxt.LinearProgram(c, a, -np.ones(6), np.ones(6)), InteriorPoint()).value
        for a in (A, lx.MatrixLinearOperator(jnp.asarray(A)))
    )
    np.testing.assert_allclose(plain.primal, lazy.primal, atol=1e-12)


def test_bad_hyperparameters():
    with pytest.raises(TypeError, match="path"):
        InteriorPoint(0.5)
    with pytest.raises(ValueError, match="infeasible_tol"):
        InteriorPoint(infeasible_tol=0.0)
    with pytest.raises(ValueError, match="rate"):
        ShortStep(rate=-1.0)
    with pytest.raises(ValueError, match="factor"):
        LongStep(factor=1.0)
    with pytest.raises(ValueError, match="neighborhood"):
        LongStep(neighborhood=0.0)


@pytest.mark.slow
def test_ugly_programs_of_second_order_cones_to_nine_digits():
    """Drawn with their solution, which is not always the only one, rows and columns of any size."""
    zero, plain, cones, n = 1, 3, (3, 3, 2), 5

    def draw(seed):
        rng = np.random.default_rng(seed)
        size = lambda: 10 ** rng.uniform(-1, 1)
        s, y = [np.zeros(zero)], [rng.normal(size=zero)]
        for _ in range(plain):
            pair = [np.zeros(1), np.full(1, size())]
            pair = pair[::-1] if rng.random() < 0.5 else pair
            s.append(pair[0])
            y.append(pair[1])
        for k in cones:
            v = rng.normal(size=k - 1)
            v, t, u = v / np.linalg.norm(v), size(), size()
            kind, inner = rng.choice(3, p=[0.25, 0.25, 0.5]), rng.uniform(0, 0.95)
            inside = np.r_[t, t * inner * v]
            s.append([inside, np.zeros(k), np.r_[t, t * v]][kind])
            y.append([np.zeros(k), inside, np.r_[u, -u * v]][kind])
        s, y = np.concatenate(s), np.concatenate(y)
        A = rng.normal(size=(s.size, n)) * 10 ** rng.uniform(-1.5, 1.5, n)
        rows = 10 ** rng.uniform(-1, 1, zero + plain + len(cones))
        A = A * np.repeat(rows, [1] * (zero + plain) + list(cones))[:, None]
        return -A.T @ y, A, A @ rng.normal(size=n) + s

    @jax.jit
    @jax.vmap
    def run(c, A, b):
        problem = jxt.SecondOrderConeProgram(c, A, b, zero, plain, cones)
        solver = InteriorPoint(tol=1e-9, max_steps=40)
        return jxt.solve(problem, solver, jxt.PrimalDual(jnp.zeros(n), jnp.zeros(b.size))).residual

    data = [np.stack(part) for part in zip(*map(draw, range(200)), strict=True)]
    errors = np.asarray(run(*map(jnp.asarray, data)))
    assert np.mean(errors > 1e-9) <= 0.06
    assert np.max(errors) < 1e-6
