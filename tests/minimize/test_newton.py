"""Damped Newton steps against loops in numpy, and what they promise."""

import jax
import jax.numpy as jnp
import lapack
import numpy as np
import pytest
from logistic_oracles import (
    RNG,
    START,
    THETAS,
    A,
    D,
    N,
    along,
    curve,
    difference,
    fun,
    gradient,
    path,
    slope,
    turned,
    unrolled,
    value,
)

import jaxopt_ext as jxt
from jaxopt_ext.minimize import (
    AICNDamping,
    ArmijoDamping,
    DampedNewton,
    ExactDamping,
    FixedDamping,
    GradientRegularization,
    HessianFree,
    LazyCubicNewton,
    LocalRegularization,
    RegularizedNewton,
    RootDamping,
    SuperUniversalRegularization,
    UniversalDamping,
)
from jaxopt_ext.minimize.newton import Search


def universal(x, steps, beta=2 / 3, sigma=1.0, c=2.0):
    found = []
    for _ in range(steps):
        H, g = curve(x), slope(x)
        n = np.linalg.solve(H, g)
        for j in range(50):
            theta = c**j * sigma * np.sqrt(g @ n) ** beta
            new = x - n / (1 + theta)
            there = slope(new)
            if there @ n >= there @ np.linalg.solve(H, there) / (2 * theta / (1 + theta)):
                break
        sigma, x = c ** (j - 1) * sigma, new
        found.append(x)
    return found


def damped(x, steps, alpha):
    found = []
    for _ in range(steps):
        g = slope(x)
        n = np.linalg.solve(curve(x), g)
        x = x - alpha(np.sqrt(g @ n), x, n) * n
        found.append(x)
    return found


def armijo(N, x, n):
    alpha = 1.0
    while value(x - alpha * n) > value(x) - 0.25 * alpha * N**2:
        alpha /= 2
    return alpha


def exact(N, x, n):
    low, high = 0.0, 64.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(x - middle * n) @ n <= 0 else (middle, high)
    return low


DAMPINGS = {
    "root": (RootDamping(4.0, 2.0), lambda N, x, n: 1 / (1 + 18 ** (1 / 3) * N ** (2 / 3))),
    "root 2": (RootDamping(2.0, 0.1), lambda N, x, n: 1 / (1 + 0.9)),
    "aicn": (AICNDamping(5.0), lambda N, x, n: (np.sqrt(1 + 10 * N) - 1) / (5 * N)),
    "armijo": (ArmijoDamping(), armijo),
    "exact": (ExactDamping(), exact),
    "fixed": (FixedDamping(0.5), lambda N, x, n: 0.5),
}


def test_lengths_of_damped_steps_against_numpy():
    """Of all the dampings on the way of each, in one program."""
    points = np.concatenate([[START, *damped(START, 3, alpha)] for _, alpha in DAMPINGS.values()])

    def lengths(x, gradient, direction, decrement):
        inverse = lambda v: v  # which none of these asks for
        at = Search(fun, x, fun(x), gradient, direction, decrement, inverse)
        return [damping.length(at, None)[0] for damping, _ in DAMPINGS.values()]

    slopes = np.stack([slope(x) for x in points])
    steps = np.stack([np.linalg.solve(curve(x), slope(x)) for x in points])
    sizes = np.sqrt(np.sum(slopes * steps, 1))
    found = jax.jit(jax.vmap(lengths))(points, slopes, steps, sizes)
    for (_, alpha), lengths in zip(DAMPINGS.values(), found, strict=True):
        wanted = [alpha(*at) for at in zip(sizes, points, steps, strict=True)]
        np.testing.assert_allclose(np.broadcast_to(lengths, len(points)), wanted, rtol=1e-6)


@pytest.mark.always(1)
@pytest.mark.parametrize("name", DAMPINGS)
def test_damped_steps_against_numpy(name):
    damping, alpha = DAMPINGS[name]
    found = path(DampedNewton(damping, tol=0.0, max_steps=60))
    np.testing.assert_allclose(found[:4], damped(START, 4, alpha), rtol=1e-6, atol=1e-7)


def test_universal_damping_against_numpy_and_in_other_coordinates():
    wanted = universal(START, 5, sigma=0.01)
    plain, other = turned(DampedNewton(UniversalDamping(initial=0.01), tol=0.0, max_steps=5))
    np.testing.assert_allclose(plain, wanted, rtol=1e-8)
    np.testing.assert_allclose(other, wanted, rtol=1e-7)
    assert np.all(np.diff([value(x) for x in wanted]) < 0)
    free = path(DampedNewton(UniversalDamping(initial=0.01), HessianFree(1e-12), 0.0, 5))
    np.testing.assert_allclose(free, wanted, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["root", "root 2", "aicn", "armijo", "exact", "fixed"])
def test_damped_steps_move_with_the_coordinates(name):
    """Newton directions and decrements are those of the function, so their dampings are."""
    damping, alpha = DAMPINGS[name]
    plain, other = turned(DampedNewton(damping, tol=0.0, max_steps=5))
    np.testing.assert_allclose(other, plain, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(other, damped(START, 5, alpha), rtol=1e-6, atol=1e-7)
    assert np.linalg.norm(plain[-1] - START) > 1


@pytest.mark.slow
def test_steps_that_are_regularized_by_gradients_do_not_move_with_the_coordinates():
    plain, other = turned(RegularizedNewton(GradientRegularization(1.0), tol=0.0, max_steps=5))
    assert np.max(np.abs(plain - other)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damping", "steps"),
    [
        (RootDamping(4.0, 1e-8), 50),
        (RootDamping(3.0, 1e-4), 60),
        (AICNDamping(1e-3), 40),
        (UniversalDamping(), 60),
        (ArmijoDamping(), 40),
        (ExactDamping(), 5),
        (FixedDamping(1.0), 40),
        (FixedDamping(0.5), 70),
    ],
    ids=repr,
)
def test_points_of_a_polytope(damping, steps):
    """The sum of the fourth powers of 500 violations falls from 1e8 to less than 1e-12, where
    Hessians are nearly singular, or zero."""
    rng = np.random.default_rng(0)
    rows, center = rng.normal(size=(500, 20)), rng.normal(size=20)
    sides = rows @ center + rng.uniform(0.5, 1, 500)
    violated = lambda x: jnp.sum(jnp.maximum(rows @ x - sides, 0) ** 4)
    solver = DampedNewton(damping, tol=0.0, max_steps=steps)
    start = np.full(20, 3.0)
    found = jxt.solve(jxt.Smooth(violated), solver, jnp.asarray(start)).value
    assert np.sum(np.maximum(rows @ start - sides, 0) ** 4) > 1e6
    assert np.sum(np.maximum(rows @ np.asarray(found) - sides, 0) ** 4) <= 1e-12


def test_singular_hessians_and_functions_that_are_not_convex():
    b = RNG.uniform(0.5, 1, N)
    polytope = lambda x: jnp.sum(jnp.maximum(A @ x - b, 0) ** 4)

    def solve(first):
        either = lambda x: jnp.where(first, polytope(x), -jnp.sum(x**2))
        start = jnp.where(first, 3 * START, 1.0)
        solution = jxt.solve(jxt.Smooth(either), DampedNewton(tol=1e-8), start)
        return solution.value, solution.status._value, polytope(solution.value)

    each = jax.jit(lambda firsts: jax.lax.map(solve, firsts))
    values, codes, heights = map(np.asarray, each(np.array([1, 0])))
    assert codes[0] == jxt.Status.converged._value
    assert heights[0] <= 1e-9
    assert codes[1] == jxt.Status.breakdown._value
    np.testing.assert_array_equal(values[1], 1)


def test_factorizations_of_a_batch_wait_for_each_other(key):
    """Else they can wait for each other's threads for ever; and what is due now and then would be
    computed in each step."""
    problem, solver = jxt.Smooth(fun), DampedNewton()
    step = lambda x: solver.step(problem, x, solver.init(problem, x, key))
    assert not lapack.side_by_side(jax.make_jaxpr(jax.vmap(step))(np.ones((2, D))))


def test_root_damping_has_its_rate():
    """The slope of log(f - f*) over log k is steep, and steeper in the end, while damping is
    strong."""
    found = path(DampedNewton(RootDamping(4.0, 1e4), tol=0.0, max_steps=60))
    best = value(damped(START, 60, lambda N, x, n: 1.0 if N < 1 else 0.5)[-1])
    gaps = np.array([value(x) for x in found]) - best
    slope = lambda i, k: np.log(gaps[k] / gaps[i]) / np.log((k + 1) / (i + 1))
    assert gaps[59] > 1e-6
    assert slope(4, 39) < -1
    assert slope(39, 59) < -3


def test_one_step_derivatives_are_those_of_newtons_method():
    def minimizer(theta):
        problem, solver = jxt.Smooth(lambda x: jnp.sum(jnp.cosh(A[:6] @ x - theta))), DampedNewton
        adjoint = jxt.OneStepAdjoint()
        return jxt.solve(problem, solver(tol=1e-11), jnp.zeros(D), adjoint=adjoint).value

    theta = np.linspace(-1, 1, 6)
    found = jax.jit(jax.jacobian(minimizer))(theta)
    np.testing.assert_allclose(found, minimum(np.sinh, np.cosh, theta)[1], atol=1e-8)


def minimum(slope, curve, theta):
    """Of a sum over the entries of $Ax - \\theta$, and its derivative."""
    x, a = np.zeros(D), A[:6]
    for _ in range(100):
        x = x - 0.5 * np.linalg.solve(a.T * curve(a @ x - theta) @ a, a.T @ slope(a @ x - theta))
    weighted = a.T * curve(a @ x - theta)
    return x, np.linalg.solve(weighted @ a, weighted)


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(DampedNewton(tol=0.0, max_steps=9), id="universal"),
        *(
            pytest.param(DampedNewton(damping, tol=0.0, max_steps=steps), marks=pytest.mark.slow)
            for damping, steps in (
                (RootDamping(4.0, 0.1), 25),
                (AICNDamping(0.5), 12),
                (ArmijoDamping(), 9),
                (ExactDamping(), 9),
            )
        ),
    ],
)
def test_unrolled_gradients_equal_implicit_ones(solver):
    (found,) = unrolled(solver, gradient(jxt.UnrolledAdjoint()))
    at = [minimum(np.tanh, lambda z: 1 / np.cosh(z) ** 2, theta) for theta in THETAS]
    wanted = [np.cos(x) @ derivative for x, derivative in at]
    np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-9)


def test_unrolled_derivatives_on_the_way():
    """At the end a step is zero, and hides how the Hessian moves."""
    solver = DampedNewton(RootDamping(4.0, 0.1), tol=0.0, max_steps=2)
    found = unrolled(solver, gradient(jxt.UnrolledAdjoint()), along, difference)
    backward, forward, wanted = map(np.asarray, found)
    np.testing.assert_allclose(forward, wanted, rtol=1e-6)
    np.testing.assert_allclose(np.sum(backward * np.cos(THETAS), axis=1), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RootDamping(1.0),
        lambda: RootDamping(4.0, 0.0),
        lambda: UniversalDamping(factor=1.0),
        lambda: UniversalDamping(0.5),
        lambda: AICNDamping(-1.0),
        lambda: ArmijoDamping(decrease=0.7),
        lambda: ExactDamping(0.0),
        lambda: FixedDamping(0.0),
        lambda: GradientRegularization(0.0),
        lambda: SuperUniversalRegularization(2.0),
        lambda: LocalRegularization(5.0),
        lambda: RegularizedNewton(period=0),
        lambda: LazyCubicNewton(0),
        lambda: LazyCubicNewton(1, -1.0),
        lambda: HessianFree(-1.0),
    ],
)
def test_bad_settings_raise(make):
    with pytest.raises(ValueError, match="got"):
        make()


def test_wrong_kinds_raise():
    for make in (
        lambda: DampedNewton(0.5),
        lambda: DampedNewton(hessian="dense"),
        lambda: RegularizedNewton(0.1),
    ):
        with pytest.raises(TypeError, match="must be an object"):
            make()
