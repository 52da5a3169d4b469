"""The classical methods, against closed forms on bilinear games and plain loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.games import (
    AnchoredExtragradient,
    Extragradient,
    ForwardReflectedBackward,
    GradientDescentAscent,
    OptimisticGradient,
    measures,
)

ALL = (
    Extragradient,
    OptimisticGradient,
    ForwardReflectedBackward,
    AnchoredExtragradient,
    GradientDescentAscent,
)
RNG = np.random.default_rng(6)


def walk(problem, solver, z, steps):
    """The value after each step."""
    solver = dataclasses.replace(solver, tol=0.0, max_steps=steps)
    return jxt.solve(problem, solver, z, trace=lambda problem, z, state: z).trace


SINGULAR = np.array([0.2, 0.5, 1.0])


def modes(s=SINGULAR):
    """$\\sum_i s_i x_i y_i$: a point is three complex numbers, and the map turns each."""
    return jxt.MinMax(lambda x, y: jnp.sum(jnp.asarray(s) * x * y))


def as_complex(z):
    return np.asarray(z.primal) + 1j * np.asarray(z.dual)


START = jxt.PrimalDual(jnp.array([1.0, -0.5, 2.0]), jnp.array([0.3, 1.0, -1.0]))


@pytest.mark.parametrize("kind", [GradientDescentAscent, Extragradient])
def test_factor_of_a_step_on_a_bilinear_game(kind):
    """$1 + i t s$, of modulus $\\sqrt{1 + t^2 s^2}$; and $1 - t^2 s^2 + i t s$."""
    t = 0.7
    trace = as_complex(walk(modes(), kind(t), START, 10))
    # F(x, y) = (s y, -s x) is -i s (x + i y).
    turn = 1 + 1j * t * SINGULAR
    if kind is Extragradient:
        turn = 1 + 1j * t * SINGULAR - (t * SINGULAR) ** 2
    wanted = as_complex(START) * turn ** np.arange(1, 11)[:, None]
    np.testing.assert_allclose(trace, wanted, rtol=1e-10)
    growth = np.abs(trace[1:] / trace[:-1])
    grows = kind is GradientDescentAscent
    assert np.all(growth > 1 if grows else growth < 1)


def by_hand(kind, forward, project, z, t, steps):
    """The five methods as their papers write them."""
    first, old, w, out = z, forward(z), z, []
    for k in range(steps):
        if kind is Extragradient:
            h = project(z - t * forward(z))
            z = project(z - t * forward(h))
        elif kind is OptimisticGradient:
            w = project(z - t * forward(w))
            z = project(z - t * forward(w))
        elif kind is ForwardReflectedBackward:
            now = forward(z)
            z, old = project(z - t * (2 * now - old)), now
        elif kind is AnchoredExtragradient:
            a = (first - z) / (k + 2)
            h = project(z - t * forward(z) + a)
            z = project(z - t * forward(h) + a)
        else:
            z = project(z - t * forward(z))
        out.append(w if kind is OptimisticGradient else z)
    return np.stack(out)


N = 6
ROOT, SKEW = RNG.normal(size=(2, N, N))
M = ROOT.T @ ROOT / N + SKEW - SKEW.T
Q = RNG.normal(size=N)
ON_A_BOX = jxt.VariationalInequality(
    lambda z: jnp.asarray(M) @ z + jnp.asarray(Q) + z**3, prox.Box(-0.3, 0.5)
)


@pytest.mark.parametrize("kind", ALL)
def test_equals_a_plain_loop(kind):
    z = RNG.uniform(-0.3, 0.5, N)
    forward, project = lambda z: M @ z + Q + z**3, lambda z: np.clip(z, -0.3, 0.5)
    wanted = by_hand(kind, forward, project, z, 0.07, 25)
    np.testing.assert_allclose(walk(ON_A_BOX, kind(0.07), jnp.asarray(z), 25), wanted, rtol=1e-10)


@pytest.mark.parametrize(
    "kind",
    [
        ForwardReflectedBackward,
        pytest.param(Extragradient, marks=pytest.mark.slow),
        pytest.param(OptimisticGradient, marks=pytest.mark.slow),
    ],
)
def test_step_sizes_are_found(kind):
    """At any unit of the map, also in single precision, where many steps are below rounding."""

    def solved(unit):
        affine = lambda z: unit * (jnp.asarray(M, z.dtype) @ z + jnp.asarray(Q, z.dtype))
        problem = jxt.VariationalInequality(affine, prox.Box(-1, 1))
        solver = kind(tol=3e-6 * unit, max_steps=3000)
        solution = jxt.solve(problem, solver, jnp.zeros(N, jnp.float32))
        return solution.value, solution.status == jxt.Status.converged, solution.steps

    units = 10.0 ** jnp.arange(-4, 4, dtype=jnp.float32)
    values, converged, steps = jax.jit(jax.vmap(solved))(units)
    assert np.all(converged), (converged, steps)
    z = np.zeros(N)
    for _ in range(20_000):
        h = np.clip(z - 0.05 * (M @ z + Q), -1, 1)
        z = np.clip(z - 0.05 * (M @ h + Q), -1, 1)
    np.testing.assert_allclose(values, np.broadcast_to(z, values.shape), atol=1e-2)
    # The steps scale with the map: all need about as many.
    assert steps.max() <= 3 * steps.min(), steps


def matrix_game(A):
    A = jnp.asarray(A)
    return jxt.MinMax(lambda x, y: x @ A @ y, prox.Simplex(1.0), prox.Simplex(1.0))


@pytest.mark.slow
def test_a_matrix_game_and_its_value():
    """The value of another solver, of the averages too, and its derivative $x y^\\top$."""
    A = RNG.normal(size=(5, 7))
    c = np.concatenate([np.zeros(5), [1.0]])
    program = scipy.optimize.linprog(
        c,
        np.concatenate([A.T, -np.ones((7, 1))], axis=1),
        np.zeros(7),
        np.concatenate([np.ones((1, 5)), np.zeros((1, 1))], axis=1),
        [1.0],
        [(0, None)] * 5 + [(None, None)],
    )
    start = jxt.PrimalDual(jnp.full(5, 0.2), jnp.full(7, 1 / 7))

    def value(A):
        z = jxt.solve(matrix_game(A), Extragradient(tol=1e-8, max_steps=20_000), start).value
        return z.primal @ A @ z.dual, z

    (v, z), slope = jax.jit(jax.value_and_grad(value, has_aux=True))(jnp.asarray(A))
    np.testing.assert_allclose(v, program.fun, atol=1e-7)
    np.testing.assert_allclose(slope, np.outer(z.primal, z.dual), atol=1e-5)
    assert measures.duality_gap(A, z.primal, z.dual) < 1e-6
    assert measures.natural_residual(matrix_game(A), z) < 1e-8
    averaged = jxt.solve(
        matrix_game(A), Extragradient(average=True, tol=0.0, max_steps=500), start
    ).value
    assert measures.duality_gap(A, *averaged) < 0.05
    np.testing.assert_allclose(jnp.sum(averaged.primal), 1, rtol=1e-12)


@pytest.mark.parametrize("kind", [Extragradient, OptimisticGradient])
def test_averages_are_means_of_what_was_played(kind):
    z = RNG.uniform(-0.3, 0.5, N)
    forward, project = lambda z: M @ z + Q + z**3, lambda z: np.clip(z, -0.3, 0.5)
    iterates = by_hand(kind, forward, project, z, 0.07, 12)
    if kind is Extragradient:
        before = np.concatenate([z[None], iterates[:-1]])
        iterates = np.stack([project(z - 0.07 * forward(z)) for z in before])
    solver = kind(0.07, average=True, tol=0.0, max_steps=12)
    solution = jxt.solve(ON_A_BOX, solver, jnp.asarray(z))
    np.testing.assert_allclose(solution.value, iterates.mean(0), rtol=1e-10)
    mean = iterates.mean(0)
    residual = np.linalg.norm(mean - project(mean - forward(mean)))
    np.testing.assert_allclose(solution.residual, residual, rtol=1e-10)


def test_rates_of_the_last_iterate():
    """Two hundred modes, the slow ones four orders of magnitude below: with an anchor the map at
    the value falls as $1/k$, without it as $1/\\sqrt k$."""
    s = np.logspace(-4, 0, 200)
    problem = jxt.MinMax(lambda x, y: jnp.sum(s * x * (y - 1)))
    start = jxt.PrimalDual(jnp.zeros(200), jnp.zeros(200))
    slopes = {}
    for kind, t in ((AnchoredExtragradient, 0.5), (Extragradient, 0.5), (OptimisticGradient, 0.4)):
        solver = kind(t, tol=0.0, max_steps=2000)
        errors = np.asarray(jxt.solve(problem, solver, start, trace=True).trace)
        slopes[kind] = np.log10(errors[1999] / errors[199])
    assert slopes[AnchoredExtragradient] <= -0.85
    assert slopes[Extragradient] >= -0.55
    assert slopes[OptimisticGradient] >= -0.55


def test_goes_on_from_a_state():
    z = jnp.asarray(RNG.uniform(-0.3, 0.5, N))
    first = jxt.solve(ON_A_BOX, ForwardReflectedBackward(0.07, tol=1e-9, max_steps=20), z)
    assert first.status == jxt.Status.step_limit
    solver = ForwardReflectedBackward(0.07, tol=1e-9)
    second = jxt.solve(ON_A_BOX, solver, first.value, state=first.state)
    assert second.status == jxt.Status.converged


def test_diverging_is_reported():
    solution = jxt.solve(modes(), GradientDescentAscent(2.0, max_steps=100_000), START)
    assert solution.status == jxt.Status.nonfinite


@pytest.mark.parametrize("nonsmooth", [None, prox.Zero(), prox.Box(-1.0, jnp.inf)])
def test_without_a_solution(nonsmooth, dtype):
    """The point goes for ever; what is added to it must not vanish in its rounding."""
    apart = jxt.VariationalInequality(lambda z: -jnp.ones_like(z), nonsmooth)
    solution = jxt.solve(apart, Extragradient(), jnp.zeros(2, dtype))
    assert solution.status == jxt.Status.step_limit
    np.testing.assert_allclose(solution.residual, np.sqrt(2), rtol=0.5)


def test_measures():
    problem = ON_A_BOX
    v = jnp.asarray(RNG.normal(size=N))
    z = problem.backward(v, 0.5)
    u = (v - z) / 0.5
    tangent = measures.tangent_residual(problem, z, u)
    np.testing.assert_allclose(tangent, np.linalg.norm(problem.forward(z) + u), rtol=1e-12)
    assert measures.natural_residual(problem, z) <= tangent
    # Two players on an interval and on a line: (x - y)^2 and (y - 3)^2 / 2 + x y.
    game = jxt.Game(
        lambda z: jnp.stack(
            [jnp.sum((z[0] - z[1]) ** 2), jnp.sum((z[1] - 3) ** 2) / 2 + jnp.sum(z[0] * z[1])]
        ),
        (prox.Box(0.0, 1.0), None),
    )
    gains = measures.best_response_gain(game, (jnp.array([0.25]), jnp.array([4.0])))
    # Best answers are 1 and 3 - 1/4.
    np.testing.assert_allclose(gains, [3.75**2 - 9, (1 + 2 - (0.25**2 + 2 * 0.25 * 2.75)) / 2])
    equilibrium = (jnp.array([1.0]), jnp.array([2.0]))
    np.testing.assert_allclose(measures.best_response_gain(game, equilibrium), 0, atol=1e-12)
    with pytest.raises(ValueError, match="does not fit"):
        measures.duality_gap(np.eye(3), np.ones(2), np.ones(3))


@pytest.mark.parametrize("kind", ALL)
def test_bad_hyperparameters(kind):
    with pytest.raises(ValueError, match="step_size"):
        kind(0.0)
    with pytest.raises(TypeError, match="average"):
        kind(average=1)
    with pytest.raises(TypeError, match="takes AbstractInclusion, not Smooth"):
        jxt.solve(jxt.Smooth(jnp.sum), kind(), jnp.ones(2))
