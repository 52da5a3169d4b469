"""ADMM, Douglas-Rachford, primal-dual and quadratic programs against cvxpy and dense algebra."""

import dataclasses

import cvxpy as cp
import jax
import jax.numpy as jnp
import lapack
import lineax as lx
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import fixed_point, minimize, prox, splitting
from jaxopt_ext.core.operators import as_map
from jaxopt_ext.splitting.ruiz import ruiz_scaling

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 8)), RNG.normal(size=30)
LAM = 1.5


def half_square(x):
    return 0.5 * jnp.sum((X @ x - Y) ** 2)


def lasso_reference():
    u = cp.Variable(8)
    cp.Problem(cp.Minimize(0.5 * cp.sum_squares(X @ u - Y) + LAM * cp.norm1(u))).solve(
        solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12
    )
    return u.value


@pytest.mark.always(2)
@pytest.mark.parametrize(
    "options",
    [
        {"x_update": splitting.QuadraticUpdate()},
        {"x_update": splitting.QuadraticUpdate(), "relaxation": 1.7, "penalty": 10.0},
        {"x_update": splitting.QuadraticUpdate(), "balance": 10.0, "penalty": 1e-3},
        {
            "x_update": splitting.InexactUpdate(minimize.FISTA(tol=1e-11, max_steps=300)),
            "penalty": 10.0,
        },
    ],
    ids=["exact", "relaxed", "balanced", "inexact"],
)
def test_admm_on_the_lasso(options):
    problem = jxt.Splitting(half_square, prox.L1(LAM))
    solver = splitting.ADMM(tol=1e-8, max_steps=20_000, **options)
    solution = jxt.solve(problem, solver, jnp.zeros(8))
    assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(solution.value.z, lasso_reference(), atol=1e-6)
    np.testing.assert_allclose(solution.value.x, solution.value.z, atol=1e-7)
    # The multiplier: -y is the gradient of f, y a subgradient of g.
    gradient = jax.grad(half_square)(solution.value.x)
    np.testing.assert_allclose(-solution.value.dual, gradient, atol=1e-5)


def test_balancing_saves_steps_from_a_bad_penalty():
    problem = jxt.Splitting(half_square, prox.L1(LAM))
    steps = [
        int(
            jxt.solve(
                problem,
                splitting.ADMM(
                    penalty=1e-3,
                    x_update=splitting.QuadraticUpdate(),
                    balance=b,
                    tol=1e-6,
                    max_steps=20_000,
                ),
                jnp.zeros(8),
            ).steps
        )
        for b in (None, 10.0)
    ]
    assert 3 * steps[1] < steps[0]


@pytest.mark.slow
def test_the_derivative_of_a_changing_penalty():
    """Of the iterate itself, in both modes and under `vmap`, by central differences."""
    solver = splitting.ADMM(
        x_update=splitting.QuadraticUpdate(), balance_every=2, tol=0.0, max_steps=6
    )

    def score(theta):
        loss = lambda x: 0.5 * theta[0] * jnp.sum((X @ x - Y) ** 2)
        problem, how = jxt.Splitting(loss, prox.L1(theta[1])), jxt.UnrolledAdjoint()
        solution = jxt.solve(problem, solver, jnp.zeros(8), adjoint=how)
        return jnp.sum(jnp.sin(solution.value.x)), solution.state.penalty

    def slopes(theta):
        fun = lambda theta: score(theta)[0]
        return jax.grad(fun)(theta), jax.jvp(fun, (theta,), (theta,))[1]

    thetas, eye = jnp.array([[30.0, LAM], [0.01, 0.02], [3.0, 5.0]]), 1e-6 * jnp.eye(2)
    quick = {"xla_backend_optimization_level": 0}
    reverse, forward = jax.jit(jax.vmap(slopes)).lower(thetas).compile(quick)(thetas)
    around = thetas[:, None, None] * (1 + jnp.stack([eye, -eye], axis=1))
    values, penalties = jax.jit(jnp.vectorize(score, signature="(n)->(),()"))(around)
    assert jnp.all(penalties == penalties[:, :1, :1])
    assert len(set(penalties[:, 0, 0].tolist())) == 3
    wanted = (values[..., 0] - values[..., 1]) / (2e-6 * thetas)
    np.testing.assert_allclose(reverse, wanted, rtol=1e-5, atol=1e-8)
    along = jnp.sum(reverse * thetas, axis=1)
    np.testing.assert_allclose(forward, along, rtol=1e-8, atol=1e-12)


def test_the_spectral_penalty_follows_the_units():
    """A lasso in units over twelve orders of magnitude takes about as many steps in each."""
    units = jnp.array([1e-6, 1e-3, 1.0, 1e3, 1e6])

    @jax.jit
    @jax.vmap
    def run(unit):
        problem = jxt.Splitting(lambda x: unit * half_square(x), prox.L1(unit * LAM))
        update = splitting.QuadraticUpdate()
        solver = splitting.ADMM(x_update=update, max_steps=5000, tol=1e-6 * jnp.minimum(unit, 1))
        solution = jxt.solve(problem, solver, jnp.zeros(8))
        return solution.value.z, solution.steps, solution.status == jxt.Status.converged

    found, steps, converged = run(units)
    assert jnp.all(converged), steps
    assert jnp.max(steps) <= 200, steps
    np.testing.assert_allclose(found, np.tile(lasso_reference(), (5, 1)), atol=1e-5)


@pytest.mark.always(2)
@pytest.mark.parametrize("kind", ["matrix", "operator"])
def test_admm_with_general_maps_and_right_hand_side(kind):
    """min |x|_1 + 1/2 |z|^2  s.t.  A x + B z = c."""
    rng = np.random.default_rng(1)
    A, B, c = rng.normal(size=(4, 5)), rng.normal(size=(4, 3)), rng.normal(size=4)
    u, v = cp.Variable(5), cp.Variable(3)
    cp.Problem(cp.Minimize(cp.norm1(u) + 0.5 * cp.sum_squares(v)), [A @ u + B @ v == c]).solve(
        solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12
    )
    wrap = lambda m: lx.MatrixLinearOperator(jnp.asarray(m)) if kind == "operator" else m
    problem = jxt.Splitting(prox.L1(), prox.L2Squared(), wrap(A), wrap(B), jnp.asarray(c))
    solver = splitting.ADMM(tol=1e-9, max_steps=50_000)
    solution = jxt.solve(problem, solver, jnp.zeros(5))
    assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(solution.value.x, u.value, atol=1e-5)
    np.testing.assert_allclose(solution.value.z, v.value, atol=1e-5)


@pytest.mark.always(1)
@pytest.mark.parametrize("options", [{}, {"relaxation": 1.6}, {"penalty": 5.0, "balance": 10.0}])
def test_linearized_updates_stop_only_at_solutions(options):
    """Maps of large norm, where a step of the last iterate is small long before it is right."""
    rng = np.random.default_rng(1)
    A, B, c = 30 * rng.normal(size=(4, 5)), 20 * rng.normal(size=(4, 3)), rng.normal(size=4)
    u, v = cp.Variable(5), cp.Variable(3)
    cp.Problem(cp.Minimize(cp.norm1(u) + 0.5 * cp.sum_squares(v)), [A @ u + B @ v == c]).solve(
        solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12
    )
    problem = jxt.Splitting(prox.L1(), prox.L2Squared(), A, B, jnp.asarray(c))
    solver = splitting.ADMM(tol=1e-7, max_steps=100_000, **options)
    solution = jxt.solve(problem, solver, jnp.zeros(5))
    assert solution.status == jxt.Status.converged
    residual = problem.residual(solution.value)
    assert max(np.linalg.norm(leaf) for leaf in residual) < 2e-7
    np.testing.assert_allclose(solution.value.x, u.value, atol=1e-6)
    np.testing.assert_allclose(solution.value.z, v.value, atol=1e-6)


def test_the_linearized_update_knows_its_own_residual():
    A, w, x, rho = RNG.normal(size=(4, 5)), RNG.normal(size=4), RNG.normal(size=5), 3.0
    update, A_map, f = splitting.LinearizedUpdate(), as_map(A), prox.L2Squared()
    prepared = update.prepare(f, A_map, x, jnp.asarray(rho))
    new, left = update.minimize(f, A_map, jnp.asarray(x), w, jnp.asarray(rho), prepared)
    gradient = jax.grad(f)(new) + rho * A.T @ (A @ new - w)
    np.testing.assert_allclose(left, np.linalg.norm(gradient), rtol=1e-10)


def test_a_quadratic_update_of_another_function_is_not_called_converged():
    problem = jxt.Splitting(lambda x: jnp.sum(jnp.cosh(x - 2)), prox.L1(0.1))
    solver = splitting.ADMM(x_update=splitting.QuadraticUpdate(), max_steps=500)
    assert jxt.solve(problem, solver, jnp.zeros(3)).status == jxt.Status.step_limit


def test_a_rough_inexact_update_is_not_called_converged():
    problem = jxt.Splitting(half_square, prox.L1(LAM))
    rough = splitting.InexactUpdate(minimize.FISTA(tol=1e-2, max_steps=300))
    solver = splitting.ADMM(penalty=10.0, x_update=rough, tol=1e-8, max_steps=500)
    assert jxt.solve(problem, solver, jnp.zeros(8)).status == jxt.Status.step_limit


@pytest.mark.always(1)
@pytest.mark.parametrize(
    ("accelerated", "atol"),
    [
        (fixed_point.Anderson(tol=1e-9), 1e-7),
        (fixed_point.Halpern(tol=1e-3, max_steps=20_000), 1e-3),
    ],
    ids=["Anderson", "Halpern"],
)
def test_admm_is_accelerated_through_its_operator(accelerated, atol):
    problem = jxt.Splitting(half_square, prox.L1(LAM))
    method = splitting.ADMM(penalty=10.0, x_update=splitting.QuadraticUpdate(), tol=1e-12)
    start = method.start(problem, jnp.zeros(8))
    solution = jxt.solve(problem, method, start)
    again = method.operator(problem, start)(solution.value)
    for a, b in zip(again, solution.value, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)
    found = jxt.solve(fixed_point.fixed_point_of(problem, method, start), accelerated, start)
    assert found.status == jxt.Status.converged
    np.testing.assert_allclose(method.read(problem, found.value).z, lasso_reference(), atol=atol)


def test_consensus_form():
    parts = (jnp.asarray(X.reshape(5, 6, 8)), jnp.asarray(Y.reshape(5, 6)))
    problem = splitting.consensus(
        lambda x, d: 0.5 * jnp.sum((d[0] @ x - d[1]) ** 2), parts, prox.L1(LAM)
    )
    for update in (
        splitting.QuadraticUpdate(),
        splitting.InexactUpdate(minimize.FISTA(tol=1e-11, max_steps=200)),
    ):
        solver = splitting.ADMM(penalty=3.0, x_update=update, tol=1e-8, max_steps=20_000)
        solution = jxt.solve(problem, solver, jnp.zeros((5, 8)))
        np.testing.assert_allclose(solution.value.z, lasso_reference(), atol=1e-6)


@pytest.mark.always(1)
@pytest.mark.parametrize("step_size", [0.01, 100.0])
def test_douglas_rachford_error_is_the_gap_and_the_subgradients(step_size):
    """By hand for a multiple of x^2 and |x|, one step from u = 1."""
    problem = jxt.Composite(prox.L2Squared(1.0), prox.L1(1.0))
    solver = splitting.DouglasRachford(step_size, relaxation=1.5, tol=0.0, max_steps=1)
    solution = jxt.solve(problem, solver, jnp.array([1.0]))
    u = 1.0
    for _ in range(2):
        p = float(problem.smooth.prox(jnp.array([u]), step_size)[0])
        q = np.sign(2 * p - u) * max(abs(2 * p - u) - step_size, 0)
        gap, u = abs(q - p), u + 1.5 * (q - p)
    np.testing.assert_allclose(solution.residual, max(gap, gap / step_size), rtol=1e-6)


def test_douglas_rachford_between_two_sets():
    """Projection onto an intersection, f = 1/2 |x - p|^2 over a box, and a hyperplane."""
    p, normal = RNG.normal(size=6), RNG.normal(size=6)
    u = cp.Variable(6)
    cp.Problem(cp.Minimize(cp.sum_squares(u - p)), [u >= 0, u <= 1, normal @ u == 0.3]).solve(
        solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12
    )

    class Boxed(prox.AbstractFunction):
        """1/2 |x - p|^2 on the unit box."""

        convex = True

        def __call__(self, x):
            return 0.5 * jnp.sum((x - p) ** 2)

        def prox(self, x, step=1.0):
            return jnp.clip((x + step * p) / (1 + step), 0, 1)

    problem = jxt.Composite(Boxed(), prox.Hyperplane(normal, 0.3))
    solution = jxt.solve(problem, splitting.DouglasRachford(tol=1e-10), jnp.zeros(6))
    np.testing.assert_allclose(solution.value, u.value, atol=1e-6)


def test_primal_dual_solves_a_linear_program_and_restarts_help():
    rng = np.random.default_rng(4)
    A = rng.uniform(size=(6, 10))
    b, c = A @ rng.uniform(size=10), rng.uniform(size=10)
    u = cp.Variable(10)
    cp.Problem(cp.Minimize(c @ u), [A @ u == b, u >= 0]).solve(solver=cp.CLARABEL)

    class Cost(prox.AbstractFunction):
        """c'x on the orthant."""

        convex = True

        def __call__(self, x):
            return jnp.vdot(c, x) + prox.NonNegative()(x)

        def prox(self, x, step=1.0):
            return jnp.maximum(x - step * c, 0)

    problem = jxt.Saddle(Cost(), prox.Box(b, b), jnp.asarray(A))
    steps = {}
    for restart in (True, False):
        solver = splitting.PrimalDualHybridGradient(restart=restart, tol=1e-8, max_steps=100_000)
        solution = jxt.solve(problem, solver, jnp.zeros(10))
        assert solution.status == jxt.Status.converged
        np.testing.assert_allclose(c @ solution.value.primal, c @ u.value, rtol=1e-6)
        steps[restart] = int(solution.steps)
    assert steps[True] < steps[False]


def test_primal_dual_with_a_smooth_term_and_its_operator():
    """The fused lasso, the data term smooth."""
    D = np.diff(np.eye(8), axis=0)
    u = cp.Variable(8)
    goal = 0.5 * cp.sum_squares(X @ u - Y) + cp.norm1(u) + 2 * cp.norm1(D @ u)
    cp.Problem(cp.Minimize(goal)).solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12)
    problem = jxt.Saddle(prox.L1(1.0), prox.L1(2.0), jnp.asarray(D), half_square)
    curvature = np.linalg.eigvalsh(X.T @ X)[-1]
    method = splitting.PrimalDualHybridGradient(
        step_size=0.45, weight=0.45 * curvature, adaptive=False, tol=1e-9, max_steps=50_000
    )
    solution = jxt.solve(problem, method, jnp.zeros(8))
    np.testing.assert_allclose(solution.value.primal, u.value, atol=1e-6)
    start = method.start(problem, jnp.zeros(8))
    wrapped = fixed_point.fixed_point_of(problem, method, start)
    fast = jxt.solve(wrapped, fixed_point.Anderson(tol=1e-10, max_steps=50_000), start)
    np.testing.assert_allclose(method.read(problem, fast.value).primal, u.value, atol=1e-6)


def test_primal_dual_finds_steps_for_a_smooth_term():
    """The same with curvatures from 1e-2 to 1e4: no step, no weight is given, and what is given too
    long is cut."""
    D = np.diff(np.eye(8), axis=0)
    scales = np.array([[0.1], [1.0], [30.0]])
    solver = splitting.PrimalDualHybridGradient(tol=1e-7, max_steps=100_000)

    @jax.jit
    @jax.vmap
    def solved(scale, step_size):
        data = lambda x: half_square(scale * x)
        problem = jxt.Saddle(prox.L1(1.0), prox.L1(2.0), jnp.asarray(D), data)
        plain = jxt.solve(problem, solver, jnp.zeros(8))
        too_long = dataclasses.replace(solver, step_size=step_size, weight=0.1)
        given = jxt.solve(problem, too_long, jnp.zeros(8))
        found = [s.value.primal for s in (plain, given)]
        return jnp.stack(found), jnp.stack([s.residual for s in (plain, given)])

    for scale, found, residuals in zip(
        scales, *solved(jnp.asarray(scales), jnp.full(3, 50.0)), strict=True
    ):
        u = cp.Variable(8)
        goal = 0.5 * cp.sum_squares(X @ (scale[0] * u) - Y) + cp.norm1(u) + 2 * cp.norm1(D @ u)
        cp.Problem(cp.Minimize(goal)).solve(
            solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12
        )
        assert np.max(residuals) <= 1e-7
        np.testing.assert_allclose(found, np.stack([u.value] * 2), atol=1e-5)


def test_primal_dual_goes_on_with_the_steps_of_a_new_problem():
    """Ten times the map, and a curvature of its own: old steps would be too long."""
    D = jnp.asarray(np.diff(np.eye(8), axis=0))
    solver = splitting.PrimalDualHybridGradient(tol=1e-7, max_steps=50_000)

    @jax.jit
    def both(scale, start, state):
        problem = jxt.Saddle(
            prox.L1(1.0), prox.L1(2.0 / scale), scale * D, lambda x: half_square(scale * x)
        )
        return jxt.solve(problem, solver, start, state=state)

    first = both(1.0, jnp.zeros(8), None)
    again = both(10.0, first.value, first.state)
    for solution in (first, again):
        assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(again.state.bounds.norm, 10 * first.state.bounds.norm, rtol=1e-6)
    np.testing.assert_allclose(10 * again.state.step_size, first.state.step_size, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("check", [True, False])
def test_primal_dual_with_a_smooth_term_on_each_device(check):
    """Values and derivatives of four problems, each on a device, equal those of one by one."""
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(4, 12, 8))), jnp.asarray(rng.normal(size=(4, 12)))
    D = jnp.asarray(np.diff(np.eye(8), axis=0))
    solver = splitting.PrimalDualHybridGradient(tol=1e-8, max_steps=20_000)

    def fit(penalty, A, b):
        loss = lambda x: 0.5 * jnp.sum((A @ x - b) ** 2)
        problem = jxt.Saddle(prox.L1(penalty), prox.L1(0.5), D, loss)
        return jxt.solve(problem, solver, jnp.zeros(8)).value.primal

    both = lambda *args: (fit(*args), jax.jacrev(fit)(*args))
    args = jnp.ones(4), *data
    one = lambda *args: jax.tree.map(lambda a: a[None], both(*(a[0] for a in args)))
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("i")
    mapped = jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check)
    found, wanted = jax.jit(mapped)(*args), jax.jit(jax.vmap(both))(*args)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
    assert np.max(np.abs(wanted[1])) > 1e-3


def random_program(seed, n=6, m=9, equalities=2, dtype=float):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n - 1))
    A = rng.normal(size=(m, n))
    inside = A @ rng.normal(size=n)
    l, u = inside - rng.uniform(0.1, 1, m), inside + rng.uniform(0.1, 1, m)
    l[:equalities] = u[:equalities] = inside[:equalities]
    l[equalities : equalities + 2] = -np.inf
    u[-2:] = np.inf
    arrays = (root @ root.T, rng.normal(size=n), A, l, u)
    return tuple(np.asarray(a, dtype) for a in arrays)


def clarabel(P, q, A, l, u):
    x = cp.Variable(len(q))
    low, high = np.isfinite(l), np.isfinite(u)
    problem = cp.Problem(
        cp.Minimize(0.5 * cp.quad_form(x, cp.psd_wrap(P)) + q @ x),
        [A[low] @ x >= l[low], A[high] @ x <= u[high]],
    )
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return x.value, problem.value


@pytest.mark.always(2)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("polish", [True, False])
def test_quadratic_programs(seed, polish):
    data = random_program(seed)
    problem = jxt.QuadraticProgram(*data)
    solver = splitting.OSQP(tol=1e-8, polish=polish, max_steps=2000)
    solution = jxt.solve(problem, solver, None)
    assert solution.status == jxt.Status.converged
    _, value = clarabel(*data)
    np.testing.assert_allclose(problem.objective(solution.value.primal), value, atol=1e-6)
    residual = jax.tree.leaves(problem.residual(solution.value))
    assert max(np.max(np.abs(r)) for r in residual) < (1e-9 if polish else 1e-5)


def test_batch_in_single_precision_equals_one_by_one():
    data = [random_program(seed, dtype=np.float32) for seed in range(4)]
    stacked = [jnp.stack([d[i] for d in data]) for i in range(5)]
    solver = splitting.OSQP(tol=1e-4)
    solve = lambda *d: jxt.solve(jxt.QuadraticProgram(*d), solver, None).value.primal
    batch = jax.jit(jax.vmap(solve))(*stacked)
    assert batch.dtype == jnp.float32
    for i, d in enumerate(data):
        np.testing.assert_allclose(
            batch[i], clarabel(*np.float64(1) * np.array(d, object))[0], atol=5e-3
        )


def test_matrix_free_equals_dense():
    P, q, A, l, u = random_program(1)
    free = jxt.QuadraticProgram(
        lx.FunctionLinearOperator(lambda x: P @ x, jax.ShapeDtypeStruct((6,), float)),
        q,
        lx.FunctionLinearOperator(lambda x: A @ x, jax.ShapeDtypeStruct((6,), float)),
        l,
        u,
    )
    solution = jxt.solve(free, splitting.OSQP(tol=1e-7, max_steps=2000), None)
    assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(
        free.objective(solution.value.primal), clarabel(P, q, A, l, u)[1], atol=1e-5
    )


def test_warm_start_and_refresh():
    P, q, A, l, u = random_program(2)
    solver = splitting.OSQP(tol=1e-8, max_steps=2000, polish=False)
    first = jxt.solve(jxt.QuadraticProgram(P, q, A, l, u), solver, None)
    again = jxt.solve(jxt.QuadraticProgram(P, q, A, l, u), solver, first.value, state=first.state)
    assert int(again.steps) <= 1
    # A changed matrix must not meet the old factorization.
    changed = jxt.QuadraticProgram(P + np.eye(6), q, A, l, u)
    warm = jxt.solve(changed, solver, first.value, state=first.state)
    assert warm.status == jxt.Status.converged
    np.testing.assert_allclose(warm.value.primal, clarabel(P + np.eye(6), q, A, l, u)[0], atol=1e-5)


def test_linear_program_and_textbook_form():
    rng = np.random.default_rng(4)
    A = rng.uniform(size=(3, 6))
    b, c = A @ rng.uniform(size=6), rng.uniform(size=6)
    problem = jxt.QuadraticProgram.from_inequalities(
        np.zeros((6, 6)), c, A=A, b=b, G=-np.eye(6), h=np.zeros(6)
    )
    solution = jxt.solve(problem, splitting.OSQP(tol=1e-7, max_steps=4000), None)
    u = cp.Variable(6)
    optimum = cp.Problem(cp.Minimize(c @ u), [A @ u == b, u >= 0]).solve(solver=cp.CLARABEL)
    np.testing.assert_allclose(c @ solution.value.primal, optimum, rtol=1e-5)


def test_ruiz_equilibrates_and_inverts():
    P, q, A, l, u = random_program(3)
    D = np.diag(10.0 ** RNG.uniform(-2, 2, 6))
    problem = jxt.QuadraticProgram(D @ P @ D, D @ q, A @ D, l, u)
    scaling = ruiz_scaling(problem, 20)
    scaled = scaling.scale(problem)
    columns = np.maximum(np.abs(scaled.P).max(axis=0), np.abs(scaled.A).max(axis=0))
    assert columns.max() / columns.min() < 10
    point = jxt.PrimalDual(jnp.arange(6.0), jnp.arange(9.0))
    back = scaling.backward(scaling.forward(point))
    assert jax.tree.all(jax.tree.map(jnp.allclose, back, point))


def test_osqp_operator_has_the_solution_as_fixed_point():
    data = random_program(0)
    problem = jxt.QuadraticProgram(*data)
    solver = splitting.OSQP(tol=1e-10, max_steps=4000)
    solution = jxt.solve(problem, solver, None)
    u = solver.start(problem, solution.value)
    T = solver.operator(problem, u)
    for a, b in zip(T(u), u, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
    read = solver.read(problem, u)
    np.testing.assert_allclose(read.primal, solution.value.primal)
    np.testing.assert_allclose(read.dual, solution.value.dual, atol=1e-8)


def test_no_factorization_inside_the_iterations():
    """The reduced system is factorized outside of the inner loop."""
    problem = jxt.QuadraticProgram(*random_program(0))
    solver = splitting.OSQP()
    x = problem.start(None)
    state = solver.init(problem, x, jax.random.key(0))
    jaxpr = jax.make_jaxpr(lambda s: solver.step(problem, x, s))(state).jaxpr
    iterations = [e for e in jaxpr.eqns if e.primitive.name == "scan"]
    assert len(iterations) == 1
    assert "cholesky" not in str(iterations[0])
    assert "cholesky" in str(jaxpr)


def test_factorizations_of_a_batch_of_programs_wait_for_each_other():
    """Else they can wait for each other's threads for ever; and none is done at each step."""
    P, q, A, l, u = random_program(0)
    run = lambda q: jxt.solve(jxt.QuadraticProgram(P, q, A, l, u), splitting.OSQP(), None).value
    assert not lapack.side_by_side(jax.make_jaxpr(jax.vmap(run))(jnp.stack([q, q])))
