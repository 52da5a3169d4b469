"""Newton's methods against loops in numpy, and what they promise."""

import functools

import jax
import jax.numpy as jnp
import lapack
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext.minimize import (
    AcceleratedCubicNewton,
    AcceleratedTensor,
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

RNG = np.random.default_rng(4)
N, D = 40, 4
A = RNG.normal(size=(N, D))
Y = (A @ np.array([2.0, -1, 0.5, 0]) + RNG.normal(size=N) > 0) * 1.0
START = np.array([1.0, -2.0, 1.5, 1.0])
RIDGE = 1e-3


def fun(x, turn=None):
    x = x if turn is None else turn @ x
    z = jnp.asarray(A) @ x
    return jnp.mean(jax.nn.softplus(z) - Y * z) + 0.5 * RIDGE * jnp.sum(x**2)


def value(x):
    z = A @ x
    return np.mean(np.logaddexp(0, z) - Y * z) + 0.5 * RIDGE * x @ x


def slope(x):
    return A.T @ (1 / (1 + np.exp(-A @ x)) - Y) / N + RIDGE * x


def curve(x):
    p = 1 / (1 + np.exp(-A @ x))
    return (A.T * (p * (1 - p))) @ A / N + RIDGE * np.eye(D)


def path(solver, start=START, fun=fun):
    trace = lambda problem, x, state: x
    return np.asarray(jxt.solve(jxt.Smooth(fun), solver, jnp.asarray(start), trace=trace).trace)


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


def turned(solver):
    """The paths in the usual coordinates and in others, from one program; both in the usual."""
    turns = np.stack([np.eye(D), RNG.normal(size=(D, D)) * np.logspace(0, 2, D)])
    trace = lambda problem, x, state: x

    def solve(at):
        turn, start = at
        return jxt.solve(jxt.Smooth(lambda x: fun(x, turn)), solver, start, trace=trace).trace

    starts = np.linalg.solve(turns, np.stack([START, START])[..., None])[..., 0]
    return np.einsum(
        "bij,bkj->bki", turns, jax.jit(lambda *at: jax.lax.map(solve, at))(turns, starts)
    )


def test_universal_damping_against_numpy_and_in_other_coordinates():
    wanted = universal(START, 5, sigma=0.01)
    plain, other = turned(DampedNewton(UniversalDamping(initial=0.01), tol=0.0, max_steps=5))
    np.testing.assert_allclose(plain, wanted, rtol=1e-8)
    np.testing.assert_allclose(other, wanted, rtol=1e-7)
    assert np.all(np.diff([value(x) for x in wanted]) < 0)
    free = path(DampedNewton(UniversalDamping(initial=0.01), HessianFree(1e-12), 0.0, 5))
    np.testing.assert_allclose(free, wanted, rtol=1e-7)


def test_gradient_regularization_has_a_norm_of_its_own():
    rule = GradientRegularization(0.7)
    plain, other = turned(RegularizedNewton(rule, 2, tol=0.0, max_steps=5))
    shift = lambda g, H: np.sqrt(0.7 * np.linalg.norm(g))
    np.testing.assert_allclose(plain, kept(shift), rtol=1e-9)
    assert np.abs(other - plain).max() > 1e-2


def kept(shift):
    """Regularized steps with Hessians that serve two."""
    x, wanted = START, []
    for k in range(5):
        H = curve(x) if k % 2 == 0 else H
        g = slope(x)
        x = x - np.linalg.solve(H + shift(g, H) * np.eye(D), g)
        wanted.append(x)
    return wanted


def test_regularized_steps_with_a_kept_hessian_against_numpy():
    shift = lambda g, H: np.sqrt(1.2 * np.sqrt(g @ np.linalg.solve(H, g)))
    found = path(RegularizedNewton(LocalRegularization(3.0, 0.2), 2, tol=0.0, max_steps=5))
    np.testing.assert_allclose(found, kept(shift), rtol=1e-9)


def searched(x, steps, shift, grow=4.0):
    found, constant = [], 1e-3
    for _ in range(steps):
        H, g = curve(x), slope(x)
        while True:
            lam = shift(constant, np.linalg.norm(g))
            new = x - np.linalg.solve(H + lam * np.eye(D), g)
            there = slope(new)
            if there @ (x - new) >= there @ there / (4 * lam):
                break
            constant *= grow
        x, constant = new, constant / grow
        found.append(x)
    return found


def test_searched_regularizations_against_numpy():
    rule = GradientRegularization(initial=1e-3)
    found = path(RegularizedNewton(rule, tol=0.0, max_steps=4))
    np.testing.assert_allclose(found, searched(START, 4, lambda M, g: np.sqrt(M * g)), rtol=1e-8)
    rule = SuperUniversalRegularization(0.8, initial=1e-3)
    found = path(RegularizedNewton(rule, tol=0.0, max_steps=4))
    np.testing.assert_allclose(found, searched(START, 4, lambda C, g: C * g**0.8), rtol=1e-8)


def cubic(H, g, M):
    """By bisection on the length."""
    low, high = 0.0, 1e3
    for _ in range(200):
        r = (low + high) / 2
        h = np.linalg.solve(H + M * r / 2 * np.eye(D), -g)
        low, high = (r, high) if np.linalg.norm(h) > r else (low, r)
    return h


@pytest.mark.parametrize("period", [1, 3])
def test_lazy_cubic_steps_against_numpy_and_their_numbers(period):
    x, wanted = START, []
    for k in range(6):
        H = curve(x) if k % period == 0 else H
        x = x + cubic(H, slope(x), 0.5)
        wanted.append(x)
    solver = LazyCubicNewton(period, 0.5, tol=1e-9, max_steps=60)
    trace = lambda problem, x, state: x
    solution = jxt.solve(jxt.Smooth(fun), solver, jnp.asarray(START), trace=trace)
    assert solution.status == jxt.Status.converged
    steps = int(solution.steps)
    assert 6 <= steps == int(solution.state.gradients)
    assert int(solution.state.hessians) == -(-steps // period)
    np.testing.assert_allclose(solution.trace[:6], wanted, rtol=1e-8, atol=1e-10)


def test_adaptive_phases_against_numpy():
    x, M, wanted, kept_all, H = START, 1e-4, [], [], None
    for _ in range(5):
        H = H if kept_all and not kept_all[-1] else curve(x)
        z, cubes = x, 0.0
        for _ in range(4):
            h = cubic(H, slope(z), M)
            z, cubes = z + h, cubes + np.linalg.norm(h) ** 3
        kept_all.append(value(x) - value(z) >= M / 12 * cubes)
        x, M = (z, max(M / 4, 1e-10)) if kept_all[-1] else (x, 2 * M)
        wanted.append(x)
    found = path(LazyCubicNewton(4, initial=1e-4, tol=0.0, max_steps=5))
    np.testing.assert_allclose(found, wanted, rtol=1e-7)


@pytest.mark.always(1)
@pytest.mark.parametrize("constant", [None, 1.5])
def test_cubic_newton_leaves_saddles(constant):
    """Sum of double wells with a coupling, from its exact saddle point, batched with one near."""
    C = RNG.normal(size=(10, 10))
    C = C + C.T
    f = lambda x: jnp.sum((x**2 - 1) ** 2) / 4 + 0.025 * x @ jnp.asarray(C) @ x
    solver = LazyCubicNewton(5, constant, tol=1e-9)
    solve = lambda x: jxt.solve(jxt.Smooth(f), solver, x)
    solution = jax.vmap(solve)(jnp.stack([jnp.zeros(10), jnp.full(10, 1e-3)]))
    assert np.all(np.asarray(solution.residual) <= 1e-9)
    for x in np.asarray(solution.value):
        H = np.diag(3 * x**2 - 1) + 0.05 * C
        assert np.linalg.norm(x**3 - x + 0.05 * C @ x) <= 1e-8
        assert np.linalg.eigvalsh(H)[0] > 0.5


def test_singular_hessians_and_functions_that_are_not_convex():
    b = RNG.uniform(0.5, 1, N)
    polytope = lambda x: jnp.sum(jnp.maximum(A @ x - b, 0) ** 4)
    either = lambda x, first: jnp.where(first, polytope(x), -jnp.sum(x**2))

    def solve(solver, first):
        problem = jxt.Smooth(lambda x: either(x, first))
        solution = jxt.solve(problem, solver, jnp.where(first, 3 * START, 1.0))
        return solution.value, solution.status._value, polytope(solution.value)

    @jax.jit
    def solved():
        both = jax.lax.map(lambda first: solve(DampedNewton(tol=1e-8), first), np.array([1, 0]))
        searched = solve(RegularizedNewton(tol=1e-8), True)
        return both, searched, solve(RegularizedNewton(GradientRegularization(0.1)), False)

    (values, codes, heights), searched, fixed = jax.tree.map(np.asarray, solved())
    for code, height in ((codes[0], heights[0]), searched[1:]):
        assert code == jxt.Status.converged._value
        assert height <= 1e-9
    for value, code in ((values[1], codes[1]), fixed[:2]):
        assert code == jxt.Status.breakdown._value
        np.testing.assert_array_equal(value, 1)


@pytest.mark.parametrize(
    "solver",
    [
        DampedNewton(),
        RegularizedNewton(period=3),
        LazyCubicNewton(3),
        AcceleratedCubicNewton(),
        AcceleratedTensor(),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_factorizations_of_a_batch_wait_for_each_other(solver, key):
    """Else they can wait for each other's threads for ever; and what is due now and then would be
    computed in each step."""
    problem = jxt.Smooth(fun)
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


def unrolled(solver, *derivatives):
    """Derivatives of what is found at two parameters, in one program."""
    a = jnp.asarray(A[:6])

    def score(adjoint, theta):
        problem = jxt.Smooth(lambda x: jnp.sum(jnp.log(jnp.cosh(a @ x - theta))))
        value = jxt.solve(problem, solver, jnp.full(D, 0.3), adjoint=adjoint).value
        return jnp.sum(jnp.sin(value))

    found = lambda theta: [derivative(score, theta) for derivative in derivatives]
    return jax.jit(lambda thetas: jax.lax.map(found, thetas))(THETAS)


THETAS = np.stack([np.linspace(-1, 1, 6), np.linspace(-1.3, 1.3, 6)])


def gradient(adjoint):
    return lambda score, theta: jax.grad(functools.partial(score, adjoint))(theta)


def along(score, theta):
    score = functools.partial(score, jxt.UnrolledAdjoint())
    return jax.jvp(score, (theta,), (jnp.cos(theta),))[1]


def difference(score, theta):
    ends = theta + 1e-5 * jnp.array([[1.0], [-1.0]]) * jnp.cos(theta)
    ahead, behind = jax.vmap(functools.partial(score, jxt.ImplicitAdjoint()))(ends)
    return (ahead - behind) / 2e-5


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [
        DampedNewton(RootDamping(4.0, 0.1), HessianFree(1e-12), tol=0.0, max_steps=12),
        RegularizedNewton(GradientRegularization(1.0), 2, tol=0.0, max_steps=9),
        LazyCubicNewton(2, 1.0, tol=0.0, max_steps=9),
        AcceleratedCubicNewton(1.0, tol=0.0, max_steps=9),
        AcceleratedTensor(1.0, tol=0.0, max_steps=5),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_unrolled_derivatives_in_forward_mode_are_those_of_the_iterate(solver):
    """Which has not converged."""
    found, wanted = unrolled(solver, along, difference)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [
        LazyCubicNewton(1, 1.0, tol=0.0, max_steps=4),
        RegularizedNewton(tol=0.0, max_steps=4),
        RegularizedNewton(SuperUniversalRegularization(), tol=0.0, max_steps=4),
        AcceleratedCubicNewton(1.0, tol=0.0, max_steps=5),
    ],
)
def test_unrolled_gradients_are_those_of_the_iterate(solver):
    """Which has not converged."""

    def back(score, theta):
        return jnp.vdot(gradient(jxt.UnrolledAdjoint())(score, theta), jnp.cos(theta))

    found, wanted = unrolled(solver, back, difference)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


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
