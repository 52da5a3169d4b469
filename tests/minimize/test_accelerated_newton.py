"""Accelerated methods of higher order against loops in numpy, and what they promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.minimize import (
    AcceleratedCubicNewton,
    AcceleratedTensor,
    FullOracle,
    NoisyOracle,
    SubsampledOracle,
)

RNG = np.random.default_rng(6)
N, D = 12, 3
A = RNG.normal(size=(N, D))
B = RNG.normal(size=N)
START = np.array([1.0, -1.0, 0.5])


def loss(x, sample):
    a, b = sample
    return jnp.log(2 * jnp.cosh(a @ x - b))


SUM = jxt.FiniteSum(loss, (jnp.asarray(A), jnp.asarray(B)))
SMOOTH = jxt.Smooth(lambda x: jnp.mean(jnp.log(2 * jnp.cosh(jnp.asarray(A) @ x - B))))


def slope(x):
    return A.T @ np.tanh(A @ x - B) / N


def curve(x):
    return (A.T / np.cosh(A @ x - B) ** 2) @ A / N


def third(x):
    z = A @ x - B
    return np.einsum("n,ni,nj,nk->ijk", -2 * np.tanh(z) / np.cosh(z) ** 2 / N, A, A, A)


def path(solver, problem=SMOOTH):
    trace = lambda problem, x, state: x
    return np.asarray(jxt.solve(problem, solver, jnp.asarray(START), trace=trace).trace)


def cubic(H, g, tau, M):
    low, high = 0.0, 1e3
    for _ in range(200):
        r = (low + high) / 2
        h = np.linalg.solve(H + (tau + M * r / 2) * np.eye(D), -g)
        low, high = (r, high) if np.linalg.norm(h) > r else (low, r)
    return h


def tensor(H, g, x, tau, nu, M):
    T = third(x)

    def gradient(h):
        r = np.linalg.norm(h)
        return g + H @ h + T @ h @ h / 2 + (tau + nu * r / 2 + M * r**2 / 6) * h

    return scipy.optimize.root(gradient, np.zeros(D), tol=1e-13).x


def bregman(H, g, x, tau, nu, M):
    """The model is minimized relative to $h^\\top (H + \\tau) h / 2 + M |h|^4 / 8$, by bisection in
    each step, until its gradient is at most $\\tau |h| / 4 + M |h|^3 / 24$."""
    T, shifted, norm = third(x), H + tau * np.eye(D), np.linalg.norm
    model = lambda h: (
        g @ h
        + h @ H @ h / 2
        + T @ h @ h @ h / 6
        + tau * norm(h) ** 2 / 2
        + nu * norm(h) ** 3 / 6
        + M * norm(h) ** 4 / 24
    )
    slope = lambda h: (
        g + H @ h + T @ h @ h / 2 + (tau + nu * norm(h) / 2 + M * norm(h) ** 2 / 6) * h
    )
    ruler = lambda h: h @ shifted @ h / 2 + M * norm(h) ** 4 / 8
    steep = lambda h: shifted @ h + M * norm(h) ** 2 / 2 * h
    h, smooth = np.zeros(D), 1.0
    while True:
        c = slope(h) / smooth - steep(h)
        low, high = 0.0, 1e3
        for _ in range(200):
            r = (low + high) / 2
            new = np.linalg.solve(shifted + M * r**2 / 2 * np.eye(D), -c)
            low, high = (r, high) if norm(new) > r else (low, r)
        far = ruler(new) - ruler(h) - steep(h) @ (new - h)
        if model(new) > model(h) + slope(h) @ (new - h) + smooth * far:
            smooth *= 2
            continue
        h, smooth = new, max(smooth / 2, 0.5)
        if norm(slope(h)) <= tau * norm(h) / 4 + M * norm(h) ** 3 / 24:
            return h


def reference(order, steps, M, tau_of, nu=0.0, scale=8 / 3, minimize=tensor):
    x = y = START
    s, found, k2, k3, k4 = np.zeros(D), [], 0.0, 0.0, 0.0
    share = 1.0
    for t in range(steps):
        a = (order + 1) / (t + order + 1)
        share *= 1.0 if t == 0 else 1 - a
        v, tau = (1 - a) * x + a * y, tau_of(t)
        k2 = max(k2, 2 * tau * a**2 / share)
        if order == 2:
            x = v + cubic(curve(v), slope(v), tau, M)
            k3 = max(k3, scale * M * a**3 / share)
        else:
            x = v + minimize(curve(v), slope(v), v, tau, nu, M)
            k3 = max(k3, 8 / 3 * nu * a**3 / share)
            k4 = max(k4, scale * M * a**4 / share)
        s = s + a / share * slope(x)
        size = np.linalg.norm(s)
        roots = np.roots(np.trim_zeros([k4 / 6, k3 / 2, k2, -size], "f"))
        y = START - s / size * max(r.real for r in roots if abs(r.imag) < 1e-12)
        found.append(x)
    return found


OPTIONS = {"radius": 2.0, "tol": 0.0, "max_steps": 6}  # of one compiled program


@functools.cache
def _noisy_path():
    return path(AcceleratedCubicNewton(0.8, gradient_noise=0.02, hessian_noise=0.1, **OPTIONS))


def test_accelerated_cubic_steps_against_numpy():
    wanted = reference(2, 6, 0.8, lambda t: 0.2 + 0.02 * (t + 3) ** 1.5 / 2)
    np.testing.assert_allclose(_noisy_path(), wanted, rtol=1e-8, atol=1e-10)
    solver = AcceleratedCubicNewton(0.8, prox_scale=1.5, **OPTIONS)
    wanted = reference(2, 6, 0.8, lambda t: 0.0, scale=1.5)
    np.testing.assert_allclose(path(solver), wanted, rtol=1e-8, atol=1e-10)


def test_accelerated_tensor_steps_against_numpy():
    """The model is minimized up to a share of its last term, so exact steps agree roughly, and
    those that stop by the same rule to rounding."""
    solver = AcceleratedTensor(5.0, hessian_error=0.05, third_error=0.1, tol=0.0, max_steps=4)
    given = 3, 4, 5.0, lambda t: 0.1, 0.2, 9 / 4
    wanted, found = reference(*given), path(solver)
    np.testing.assert_allclose(found, wanted, atol=5e-2)
    np.testing.assert_allclose(found, reference(*given, bregman), rtol=1e-9, atol=1e-10)
    assert np.abs(np.asarray(wanted)[0] - reference(2, 1, 5.0, lambda t: 0.1)[0]).max() > 0.1


@pytest.mark.slow
def test_steps_by_whole_samples_are_those_of_the_function():
    solver = AcceleratedCubicNewton(
        0.8, gradient_noise=0.02, hessian_noise=0.1, oracle=SubsampledOracle(), **OPTIONS
    )
    np.testing.assert_allclose(path(solver, SUM), _noisy_path(), rtol=1e-10)


def test_oracles():
    """Minibatches are what they say; noise has the size it is said to."""
    oracle, sampled = NoisyOracle(0.5, 0.3), SubsampledOracle(None, 4)

    @jax.jit
    def ask(start):
        flat = jxt.minimize._cubic.flatten(lambda x: 0.0 * jnp.sum(x), jnp.zeros(60))
        gradients = jax.vmap(lambda k: oracle.gradient(None, flat, k))(jax.random.split(SEED, 200))
        at = jxt.minimize._cubic.flatten(SUM.full_value, start)
        parts = sampled.gradient(SUM, at, SEED), sampled.hessian(SUM, at, SEED)
        return gradients, oracle.hessian(None, flat, SEED), *parts, SUM.draw(SEED, 4)

    gradients, noise, gradient, hessian, rows = map(np.asarray, ask(START))
    np.testing.assert_allclose(gradient, slope(START), rtol=1e-10)
    weights = A[rows].T / np.cosh(A[rows] @ START - B[rows]) ** 2
    np.testing.assert_allclose(hessian, weights @ A[rows] / 4, rtol=1e-10)
    np.testing.assert_allclose(np.mean(np.sum(gradients**2, axis=1)), 0.25, rtol=0.1)
    np.testing.assert_allclose(noise, noise.T)
    np.testing.assert_allclose(np.linalg.norm(noise, 2), 0.3, rtol=0.2)


SEED = jax.random.key(1)


@pytest.mark.slow
def test_minibatches_reach_a_tolerance_that_is_measured():
    solver = AcceleratedCubicNewton(
        0.5,
        hessian_noise=0.4,
        oracle=SubsampledOracle(None, 6),
        check_every=7,
        tol=1e-2,
        max_steps=500,
    )
    solution = jxt.solve(SUM, solver, jnp.asarray(START), key=SEED)
    assert solution.status == jxt.Status.converged
    assert int(solution.steps) % 7 == 0
    np.testing.assert_allclose(np.linalg.norm(slope(solution.value)), solution.residual)
    again = jxt.solve(SUM, solver, jnp.asarray(START), key=SEED)
    np.testing.assert_array_equal(again.value, solution.value)


@pytest.mark.slow
def test_the_gap_falls_faster_than_one_over_t_squared():
    """Logistic regression without a ridge, M a bound on twice the third derivative."""
    n, d, rng = 2000, 30, np.random.default_rng(0)
    rows, truth = rng.normal(size=(n, d)), rng.normal(size=d)
    sign = np.where(rng.uniform(size=n) < 1 / (1 + np.exp(-rows @ truth)), 1, -1)
    rows = rows * sign[:, None]
    logistic = lambda x: jnp.mean(jnp.logaddexp(0, -rows @ x))
    parts = {"jac": jax.jit(jax.grad(logistic)), "hess": jax.jit(jax.hessian(logistic))}
    best = scipy.optimize.minimize(
        jax.jit(logistic), np.zeros(d), method="trust-exact", options={"gtol": 1e-12}, **parts
    ).fun
    M = np.mean(np.linalg.norm(rows, axis=1) ** 3) / (3 * np.sqrt(3))
    solver = AcceleratedCubicNewton(M, tol=0.0, max_steps=160)
    value = lambda problem, x, state: problem.fun(x)
    gaps = jxt.solve(jxt.Smooth(logistic), solver, jnp.zeros(d), trace=value).trace - best
    assert gaps[159] > 1e-9  # rounding has no part in it
    assert np.log(gaps[159] / gaps[39]) / np.log(4) <= -2, gaps[[39, 79, 159]]


@pytest.mark.slow
def test_the_gap_of_the_tensor_method_falls_like_the_fourth_power():
    """A chain of ten quartic springs, whose third derivative has the constant 6 |D|^4: it stays
    below 24 M R^4 / (T + 3)^4, which the estimating functions promise at c = 9/4, and over the
    decade from 20 to 200 the slope of its logarithm is -4.6."""
    d = 10
    D = np.eye(d) - np.eye(d, k=1)
    stretched = np.cbrt(np.linalg.solve(D.T, np.eye(d)[0]))
    solution = np.linalg.solve(D, stretched)
    best, M = np.sum(stretched**4) / 4 - solution[0], 18 * np.linalg.norm(D, 2) ** 4
    springs = lambda x: jnp.sum((D @ x) ** 4) / 4 - x[0]
    value = lambda problem, x, state: problem.fun(x)
    solver = AcceleratedTensor(M, tol=0.0, max_steps=200)
    trace = jxt.solve(jxt.Smooth(springs), solver, jnp.zeros(d), trace=value).trace
    gaps, T = np.asarray(trace) - best, np.arange(1, 201)
    assert np.all(gaps > 1e-6)
    assert np.all(gaps <= 24 * M * np.linalg.norm(solution) ** 4 / (T + 3) ** 4)
    assert np.log10(gaps[199] / gaps[19]) <= -4, gaps[[19, 199]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AcceleratedTensor, AcceleratedCubicNewton])
def test_restarts_are_fast(kind):
    """Strong convexity gives a rate that is linear, and then superlinear."""
    mu = float(np.linalg.eigvalsh(curve(START))[0]) / 4
    never = 1e-99  # no restarts
    options = {"radius": 2.0, "tol": 1e-12, "max_steps": 60}
    solution, plain = (
        jxt.solve(SMOOTH, kind(2.0, strong_convexity=convexity, **options), jnp.asarray(START))
        for convexity in (mu, never)
    )
    assert solution.status == jxt.Status.converged
    assert plain.residual > 1e-10


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: AcceleratedCubicNewton(0.0), ValueError),
        (lambda: AcceleratedCubicNewton(gradient_noise=0.1), ValueError),
        (lambda: AcceleratedCubicNewton(hessian_noise=-0.1), ValueError),
        (lambda: AcceleratedCubicNewton(strong_convexity=0.1), ValueError),
        (lambda: AcceleratedCubicNewton(check_every=0), ValueError),
        (lambda: AcceleratedCubicNewton(oracle="full"), TypeError),
        (lambda: AcceleratedTensor(third_error=-1.0), ValueError),
        (lambda: AcceleratedTensor(inner_steps=0), ValueError),
        (lambda: SubsampledOracle(0), ValueError),
        (lambda: NoisyOracle(-1.0), ValueError),
        (
            lambda: jxt.solve(
                jxt.FiniteSum(loss, SUM.data, prox.L1(1.0)), AcceleratedCubicNewton(), START
            ),
            TypeError,
        ),
        (
            lambda: jxt.solve(SMOOTH, AcceleratedCubicNewton(oracle=SubsampledOracle(2)), START),
            TypeError,
        ),
    ],
)
def test_bad_settings_raise(make, error):
    assert isinstance(AcceleratedCubicNewton().oracle, FullOracle)
    with pytest.raises(error, match="got"):
        make()
