"""Sketched Newton steps under equality constraints, on problems of Hock and Schittkowski."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import jaxopt_ext as jxt
from jaxopt_ext.linalg import GaussianSketch, ImportanceRows, KaczmarzSketch, sketch_and_project
from jaxopt_ext.minimize import (
    AugmentedLagrangian,
    DirectSolve,
    ExactSQP,
    GivenRegularity,
    LanczosRegularity,
    SketchedSQP,
)


def _hs77(x):
    return (
        (x[0] - 1) ** 2 + (x[0] - x[1]) ** 2 + (x[2] - 1) ** 2 + (x[3] - 1) ** 4 + (x[4] - 1) ** 6
    )


def _bt11(x):
    tail = (x[2] - x[3]) ** 4 + (x[3] - x[4]) ** 4
    return (x[0] - 1) ** 2 + (x[0] - x[1]) ** 2 + (x[1] - x[2]) ** 2 + tail


PROBLEMS = {
    "HS6": (
        lambda x: (1 - x[0]) ** 2,
        lambda x: 10 * jnp.stack([x[1] - x[0] ** 2]),
        [-1.2, 1.0],
    ),
    "HS7": (
        lambda x: jnp.log(1 + x[0] ** 2) - x[1],
        lambda x: jnp.stack([(1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4]),
        [2.0, 2.0],
    ),
    "HS28": (
        lambda x: (x[0] + x[1]) ** 2 + (x[1] + x[2]) ** 2,
        lambda x: jnp.stack([x[0] + 2 * x[1] + 3 * x[2] - 1]),
        [-4.0, 1.0, 1.0],
    ),
    "HS40": (
        lambda x: -x[0] * x[1] * x[2] * x[3],
        lambda x: jnp.stack([x[0] ** 3 + x[1] ** 2 - 1, x[0] ** 2 * x[3] - x[2], x[3] ** 2 - x[1]]),
        [0.8] * 4,
    ),
    "HS48": (
        lambda x: (x[0] - 1) ** 2 + (x[1] - x[2]) ** 2 + (x[3] - x[4]) ** 2,
        lambda x: jnp.stack([jnp.sum(x) - 5, x[2] - 2 * (x[3] + x[4]) + 3]),
        [3.0, 5.0, -3.0, 2.0, -2.0],
    ),
    "BT11": (
        _bt11,
        lambda x: jnp.stack(
            [
                x[0] + x[1] ** 2 + x[2] ** 3 - 2 - 18**0.5,
                x[1] + x[3] - x[2] ** 2 + 2 - 8**0.5,
                x[0] * x[4] - 2,
            ]
        ),
        [2.0] * 5,
    ),
    "HS77": (
        _hs77,
        lambda x: jnp.stack(
            [
                x[0] ** 2 * x[3] + jnp.sin(x[3] - x[4]) - 8**0.5,
                x[1] + x[2] ** 4 * x[3] ** 2 - 8 - 2**0.5,
            ]
        ),
        [2.0] * 5,
    ),
}
SKETCHES = {"gaussian": GaussianSketch(), "kaczmarz": KaczmarzSketch()}


def _problem(name):
    fun, constraints, start = PROBLEMS[name]
    return jxt.EqualityConstrained(fun, constraints), jnp.array(start)


def _by_slsqp(name):
    fun, constraints, start = PROBLEMS[name]
    found = scipy.optimize.minimize(
        jax.jit(fun),
        start,
        jac=jax.jit(jax.grad(fun)),
        method="SLSQP",
        constraints={
            "type": "eq",
            "fun": jax.jit(constraints),
            "jac": jax.jit(jax.jacobian(constraints)),
        },
        options={"ftol": 1e-14, "maxiter": 200},
    )
    return found.fun


@pytest.mark.always(1)
@pytest.mark.parametrize("sketch", SKETCHES)
def test_hs40_in_four_steps(sketch):
    problem, start = _problem("HS40")
    record = lambda problem, x, state: (state.error, state.step_size)

    solver = SketchedSQP(SKETCHES[sketch], tol=1e-8, max_steps=4)
    solution = jax.jit(lambda: jxt.solve(problem, solver, start, trace=record))()
    assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(-np.prod(solution.value.primal), -0.25, atol=1e-8)
    np.testing.assert_array_equal(solution.trace[1][-2:], 1)
    assert solution.state.feasibility < 1e3  # exact directions descend, and these nearly do


@pytest.mark.slow
def test_exact_steps_are_those_of_newton():
    """Of numpy, from a start where the line search takes them whole."""
    problem, start = _problem("HS40")
    record = lambda problem, x, state: (x, state.step_size)
    solution = jxt.solve(problem, ExactSQP(1e-12, 6), start, trace=record)
    points, lengths = solution.trace
    system = jax.jit(
        lambda p: (
            jnp.concatenate(problem.residual(jxt.PrimalDual(p[:4], p[4:]))),
            jax.jacobian(lambda p: jnp.concatenate(problem.residual(jxt.PrimalDual(p[:4], p[4:]))))(
                p
            ),
        )
    )
    whole = 0
    rows = np.concatenate([np.append(start, np.zeros(3))[None], np.concatenate(points, axis=1)])
    for p, after, length in zip(rows[:-1], rows[1:], lengths, strict=True):
        r, matrix = map(np.asarray, system(p))
        null = scipy.linalg.null_space(matrix[4:, :4])
        if np.linalg.eigvalsh(null.T @ matrix[:4, :4] @ null)[0] > 1e-6 and length == 1:
            np.testing.assert_allclose(after, p - np.linalg.solve(matrix, r), atol=1e-10)
            whole += 1
    assert whole >= 3


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["tall", "zero row"])
@pytest.mark.parametrize("kind", ["rows", "free rows", "gaussian"])
def test_sketches_solve_systems(kind, shape):
    rng = np.random.default_rng(0)
    A, x = rng.normal(size=(9, 6)), rng.normal(size=6)
    if shape == "zero row":
        A[2] = 0
    A, b = jnp.asarray(A), jnp.asarray(A @ x)
    free = jxt.core.operators.Map(lambda x: A @ x, lambda y: A.T @ y)
    sketch, operator = {
        "rows": (KaczmarzSketch(3, ImportanceRows()), A),
        "free rows": (KaczmarzSketch(), free),
        "gaussian": (GaussianSketch(), free),
    }[kind]
    run = jax.jit(
        lambda key: sketch_and_project(sketch, operator, b, jnp.zeros(6), 1e-9, 5000, key)
    )
    found = run(jax.random.key(0))
    assert found.residual <= 1e-9
    assert found.sketches < 5000
    np.testing.assert_allclose(found.x, x, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_agree_with_slsqp(name, sketch):
    problem, start = _problem(name)
    solution = jxt.solve(problem, SketchedSQP(SKETCHES[sketch], tol=1e-6, max_steps=200), start)
    assert solution.status == jxt.Status.converged
    assert solution.residual <= 1e-6
    value = _by_slsqp(name)
    np.testing.assert_allclose(problem.fun(solution.value.primal), value, atol=1e-5)
    if name == "HS7":
        assert solution.steps <= 15
        np.testing.assert_allclose(value, -(3**0.5), atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["FISTA", "LBFGS"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_augmented_lagrangian_agrees_with_slsqp(name, inner):
    problem, start = _problem(name)
    solver = AugmentedLagrangian() if inner == "FISTA" else AugmentedLagrangian(optax.lbfgs())
    solution = jxt.solve(problem, solver, start)
    assert solution.status == jxt.Status.converged
    assert solution.residual <= 1e-6
    np.testing.assert_allclose(problem.fun(solution.value.primal), _by_slsqp(name), atol=1e-5)


@pytest.mark.slow
def test_the_augmented_lagrangian_finds_multipliers():
    """Of an equation, an inequality that holds with equality and one that does not, and bounds."""
    program = jxt.NonlinearProgram(
        lambda x: 0.5 * jnp.sum((x - jnp.array([3.0, 2.0, -1.0])) ** 2),
        lambda x: (jnp.sum(x) - 2)[None],
        lambda x: jnp.stack([x[0] - x[1] - 0.5, x[2] - 5]),
        (jnp.array([-jnp.inf, -jnp.inf, 0.0]), jnp.inf),
    )
    solution = jxt.solve(program, AugmentedLagrangian(tol=1e-8), jnp.zeros(3))
    assert solution.status == jxt.Status.converged
    x, dual = solution.value
    np.testing.assert_allclose(x, [1.25, 0.75, 0.0], atol=1e-7)
    # From stationarity in x_1, x_2 and x_3.
    np.testing.assert_allclose(dual.equalities, [1.5], atol=1e-6)
    np.testing.assert_allclose(dual.inequalities, [0.25, 0.0], atol=1e-6)
    np.testing.assert_allclose(dual.bounds, [0, 0, -2.5], atol=1e-6)


@pytest.mark.slow
def test_a_sharpened_tolerance_is_superlinear():
    """With a coarse floor, so that the tolerance is what decides."""
    problem, start = _problem("HS77")
    record = lambda problem, x, state: state.error

    def ratios(sharpen):
        solver = SketchedSQP(GaussianSketch(), sharpen, least_accuracy=1e4, tol=1e-11, max_steps=60)
        solution = jxt.solve(problem, solver, start, trace=record)
        errors = np.asarray(solution.trace)[: int(solution.steps)]
        return errors[1:] / errors[:-1]

    sharp, fixed = ratios(True), ratios(False)
    assert np.max(sharp[-2:]) < 1e-2
    assert len(sharp) < len(fixed)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["exact", "sketched"])
def test_elliptic_control(solver):
    """min |y - y_d|^2 / 2 + a |u|^2 / 2 subject to -y'' = u on a grid, against its linear system.

    Sketches need the square of a condition number, here of 15000: for them the equation is solved
    for y, which is all the preconditioning there is."""
    n, weight = 60, 1.0
    h = 1 / (n + 1)
    K = (2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)) / h**2
    y, u = (K, np.eye(n)) if solver == "exact" else (np.eye(n), np.linalg.inv(K))
    target = 100 * np.sin(np.pi * h * np.arange(1, n + 1))

    def fun(x):
        return 0.5 * jnp.sum((x["y"] - target) ** 2) + 0.5 * weight * jnp.sum(x["u"] ** 2)

    problem = jxt.EqualityConstrained(fun, lambda x: y @ x["y"] - u @ x["u"])
    start = {"y": jnp.zeros(n), "u": jnp.zeros(n)}
    kind = DirectSolve() if solver == "exact" else GaussianSketch(30)
    solution = jxt.solve(
        problem, SketchedSQP(kind, tol=1e-7, max_steps=20, max_sketches=3000), start
    )
    J = np.concatenate([-u, y], axis=1)  # u comes before y
    H = np.diag(np.repeat([weight, 1.0], n))
    side = np.concatenate([np.zeros(n), target, np.zeros(n)])
    wanted = np.linalg.solve(np.block([[H, J.T], [J, np.zeros((n, n))]]), side)
    assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(solution.value.primal["u"], wanted[:n], atol=1e-5)
    np.testing.assert_allclose(solution.value.primal["y"], wanted[n : 2 * n], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(5, 2), (30, 7)])
def test_lanczos_bounds_are_those_of_the_matrix(sizes):
    """Exact with enough steps: of the null space too, whose dimension is less."""
    n, m = sizes
    rng = np.random.default_rng(0)
    H, J = rng.normal(size=(n, n)), rng.normal(size=(m, n))
    H = H + H.T
    null = scipy.linalg.null_space(J)
    least = np.linalg.eigvalsh(null.T @ H @ null)[0]
    spectrum = np.linalg.eigvalsh(J @ J.T)
    r = jnp.ones(n + m)

    @jax.jit
    def run(H):
        matrix = jnp.block([[H, J.T], [J, jnp.zeros((m, m))]])
        kkt = jxt.core.operators.Map(lambda v: matrix @ v, lambda v: matrix @ v)
        model = LanczosRegularity(40)(kkt, r, n)
        return model.constraint, model.size, model.A(jnp.ones(n + m)) - matrix @ jnp.ones(n + m)

    for shifted in (H - (least - 1e-3) * (null @ null.T), H - (least + 1e-3) * (null @ null.T)):
        constraint, size, added = run(jnp.asarray(shifted))
        np.testing.assert_allclose(constraint, spectrum[0], rtol=1e-6)
        own = np.linalg.eigvalsh(null.T @ shifted @ null)[0]
        norm = np.linalg.norm(shifted, 2)
        more = 0.0 if own >= 1e-6 else 0.1 + norm
        np.testing.assert_allclose(added[:n], more, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(size, norm + more + np.sqrt(spectrum[-1]), rtol=1e-6)


@pytest.mark.slow
def test_products_alone_solve_too_and_programs_with_equalities_are_taken():
    problem, start = _problem("HS28")
    program = jxt.NonlinearProgram(problem.fun, problem.constraints)
    for regularity in (GivenRegularity(10.0, 14.0, 1e-3), LanczosRegularity()):
        free = SketchedSQP(GaussianSketch(2), regularity=regularity, tol=1e-6, max_steps=60)
        solution = jxt.solve(program, free, start)
        assert solution.status == jxt.Status.converged
        np.testing.assert_allclose(solution.value.primal, [0.5, -0.5, 0.5], atol=1e-5)


@pytest.mark.slow
def test_what_cannot_go_on_says_so():
    """Rows that contradict each other, and what is not a number."""
    fun = lambda x: jnp.sum(x**2)
    twice = lambda x: jnp.stack([jnp.sum(x) - 1, 2 * jnp.sum(x) - 3])
    found = jxt.solve(jxt.EqualityConstrained(fun, twice), SketchedSQP(), jnp.ones(2))
    assert found.status == jxt.Status.breakdown
    nan = jxt.EqualityConstrained(lambda x: fun(x) * jnp.nan, lambda x: jnp.sum(x)[None])
    assert jxt.solve(nan, SketchedSQP(), jnp.ones(2)).status == jxt.Status.nonfinite


def test_bad_input():
    fun = lambda x: jnp.sum(x**2)
    bounded = jxt.NonlinearProgram(fun, lambda x: jnp.sum(x)[None], bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match="bounds"):
        jxt.solve(bounded, SketchedSQP(), jnp.ones(2))
    with pytest.raises(ValueError, match="with equalities"):
        jxt.solve(jxt.NonlinearProgram(fun), SketchedSQP(), jnp.ones(2))
    with pytest.raises(TypeError, match="sketch"):
        SketchedSQP(3)
    with pytest.raises(TypeError, match="regularity"):
        SketchedSQP(regularity=3)
    with pytest.raises(ValueError, match="factor"):
        SketchedSQP(factor=1.0)
    with pytest.raises(ValueError, match="armijo"):
        SketchedSQP(armijo=0.5)
    for regularity in (GivenRegularity(1.0), LanczosRegularity()):
        with pytest.raises(TypeError, match="matrix"):
            SketchedSQP(DirectSolve(), regularity=regularity)
    with pytest.raises(ValueError, match="num_steps"):
        LanczosRegularity(0)
    with pytest.raises(ValueError, match="growth"):
        AugmentedLagrangian(growth=1.0)
    with pytest.raises(ValueError, match="shrink"):
        AugmentedLagrangian(shrink=1.0)
    with pytest.raises(TypeError, match="inner"):
        AugmentedLagrangian(jxt.fixed_point.Picard())
    with pytest.raises(ValueError, match="size"):
        GaussianSketch(0)
    with pytest.raises(ValueError, match="norm"):
        GivenRegularity(-1.0)
    free = jxt.core.operators.Map(lambda x: x, lambda x: x)
    with pytest.raises(TypeError, match="ImportanceRows"):
        KaczmarzSketch(1, ImportanceRows())(jax.random.key(0), free, jnp.ones(2))
