"""BAMM against explicit Jacobians in numpy and closed-form limits."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import bilevel, prox

RNG = np.random.default_rng(5)
N = 20


def _positive(n, low, high):
    q = np.linalg.qr(RNG.normal(size=(n, n)))[0]
    return q @ np.diag(np.linspace(low, high, n)) @ q.T


A, D, E = _positive(N, 1, 2), _positive(N, 0.1, 1), 0.3 * RNG.normal(size=(N, N))
B, C = RNG.normal(size=(N, N)) / np.sqrt(N), RNG.normal(size=N)


def _coupled(scale=1.0):
    """Both levels couple the variables, so that the weight shows in every direction."""
    upper = lambda x, y: 0.5 * (y @ A @ y + (x - C) @ D @ (x - C)) + scale * x @ E @ y
    return jxt.Bilevel(upper, lambda x, y: 0.5 * y @ A @ y - x @ B @ y)


def _by_hand(x, y, v, mu):
    cross = mu * E - (1 - mu) * B
    through = A @ y + E.T @ x
    lower = mu * through + (1 - mu) * (A @ y - B.T @ x)
    return D @ (x - C) + E @ y - cross @ v, lower, A @ v - through


def _norm(*parts):
    return np.sqrt(sum(np.sum(np.square(part)) for part in parts))


def test_one_step_is_the_explicit_algebra():
    point = [RNG.normal(size=N) for _ in range(3)]
    start = jxt.BilevelPoint(*map(jnp.asarray, point))
    solver = bilevel.BAMM(0.1, bilevel.PowerDecay(0.6, 2.0), tol=0.0, max_steps=1)
    exact = dataclasses.replace(solver, multiplier_step=bilevel.ExactMultiplierStep())
    sequential = dataclasses.replace(solver, order=bilevel.Sequential(), x_step=0.2)

    @jax.jit
    def run(start):
        key = jax.random.key(0)
        found = []
        for method in (solver, exact, sequential):
            state = eqx.tree_at(
                lambda s: s.count, method.init(_coupled(), start, key), jnp.asarray(7)
            )
            found.append(method.step(_coupled(), start, state))
        return found

    x, y, v = point
    mu = 0.6 * 8**-0.5
    dx, dy, dv = _by_hand(x, y, v, mu)
    alpha, eta = 0.1 * mu**3 * 8 ** (-3 / 80), 0.1 * 8 ** (-1 / 80)
    (plain, state), (searched, _), (ordered, last) = run(start)
    for a, b in zip(plain, (x - alpha * dx, y - 0.1 * dy, v - eta * dv), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)
    np.testing.assert_allclose(state.stationarity, _norm(dx, dy, dv), rtol=1e-10)
    H = A  # of both levels
    np.testing.assert_allclose(searched.multiplier, v - (dv @ dv) / (dv @ H @ dv) * dv, atol=1e-10)
    y1 = y - 0.1 * dy
    v1 = v - eta * _by_hand(x, y1, v, mu)[2]
    x1 = x - 0.2 * _by_hand(x, y1, v1, mu)[0]
    for a, b in zip(ordered, (x1, y1, v1), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)
    assert last.stationarity > 0


def _limit(mu):
    """Where all three directions vanish, of the uncoupled upper level."""
    return np.linalg.solve((1 - mu) ** 2 * B @ np.linalg.inv(A) @ B.T + D, D @ C)


@functools.cache
def _long_run():
    """Fixed weights, and a decay."""
    start = jnp.zeros(N), jnp.zeros(N)

    def one(weight, power):
        averaging = bilevel.PowerDecay(weight, power)
        method = bilevel.BAMM(0.3, averaging, x_step=0.03, tol=0.0, max_steps=5000)
        return jxt.solve(_coupled(0.0), method, start)

    # A power without end is a fixed weight.
    weights, powers = jnp.asarray([0.0, 0.1, 0.4, 0.1]), jnp.asarray([1e12, 1e12, 1e12, 4.0])
    found = jax.jit(jax.vmap(one))(weights, powers)
    found = jax.tree.map(np.asarray, eqx.tree_at(lambda f: f.state.key, found, np.zeros(4)))
    return jax.tree.map(lambda a: a[:3], found), jax.tree.map(lambda a: a[3], found)


def test_limits_with_a_fixed_weight_and_with_a_decay():
    fixed, decayed = _long_run()
    for mu, x, state in zip(
        (0.0, 0.1, 0.4), fixed.value.upper, fixed.state.stationarity, strict=True
    ):
        np.testing.assert_allclose(x, _limit(mu), atol=1e-8)
        assert state < 1e-8
    biased = _norm(_limit(0.4) - _limit(0.0))
    assert biased > 0.05 * _norm(_limit(0.0))
    # The error is that of the problem, not of the averaged one: a bias is not converged.
    norm = jax.jit(jax.vmap(lambda v: jxt.tree.norm(_coupled(0.0).residual(v))))
    residual = norm(fixed.value)
    np.testing.assert_allclose(fixed.residual[1:], residual[1:], rtol=1e-4)
    assert fixed.residual[0] < 1e-8 < 1e-2 < fixed.residual[2]
    # The iterate follows the limit of its own weight.
    mu = 0.1 * 5000**-0.25
    tracked = _norm(decayed.value.upper - _limit(mu))
    assert tracked < 3e-5 * _norm(_limit(mu))
    assert _norm(decayed.value.upper - _limit(0.0)) > 30 * tracked


def _merely_convex():
    """A problem and a start."""

    def upper(x, y):
        return 0.5 * (jnp.sum((x - y[1]) ** 2) + jnp.sum((y[0] - 1) ** 2))

    problem = jxt.Bilevel(upper, lambda x, y: 0.5 * jnp.sum(y[0] ** 2) - x @ y[0])
    point = np.full(10, 0.01)
    return problem, (point, (point, point))


def test_a_merely_convex_lower_level():
    """Of the lower solutions the one that is best above."""
    problem, start = _merely_convex()

    @jax.jit
    def run(weight):
        paper = bilevel.BAMM(averaging=bilevel.PowerDecay(weight), tol=0.0, max_steps=6000)
        return jxt.solve(problem, paper, start).value.upper

    assert _norm(run(0.9) - 1) / np.sqrt(10) < 1e-4


@pytest.mark.slow
def test_without_the_weight_it_stays():
    """And so do hypergradients by unrolling and by the implicit function theorem."""
    problem, start = _merely_convex()

    @jax.jit
    def unaveraged(x):
        zero = bilevel.BAMM(averaging=bilevel.ConstantAveraging(0.0), x_step=0.02, max_steps=3000)
        flat = jxt.solve(problem, zero, start)
        y = (x, start[1][1])
        implicit = bilevel.hypergradient(problem, x, y).gradient
        unrolled = bilevel.unrolled(problem, x, y, num_steps=20, step_size=0.5).gradient
        return flat, implicit, unrolled

    flat, implicit, unrolled = unaveraged(np.full(10, 0.505))
    np.testing.assert_allclose(flat.value.upper, 0.505, atol=1e-3)
    np.testing.assert_allclose(implicit, 0, atol=1e-3)
    np.testing.assert_allclose(unrolled, 0, atol=1e-3)
    # v has no solution where the Hessian is singular: the residual tells.
    assert flat.status == jxt.Status.step_limit
    assert flat.residual > 0.5


def test_weights():
    counts = jnp.arange(4.0)
    np.testing.assert_allclose(
        bilevel.PowerDecay()(counts), 0.9 * np.array([1, 2, 3, 4]) ** -0.1, rtol=1e-6
    )
    wanted = 0.9 * np.array([1, 2 / 3, 2 / 3 * 3 / 4, 2 / 3 * 3 / 4 * 4 / 5])
    np.testing.assert_allclose(bilevel.HarmonicDecay()(counts), wanted, rtol=1e-6)
    np.testing.assert_allclose(bilevel.ConstantAveraging(0.3)(counts[0]), 0.3)


def test_batches_a_set_and_an_upper_level_without_the_lower_variable():
    data = jnp.asarray(RNG.normal(size=(40, 3)))
    fit = lambda x, y, s: 0.5 * jnp.sum((y - s) ** 2) + 0.5 * jnp.sum((x - s) ** 2)
    lower = lambda x, y, s: 0.5 * jnp.sum((y - x - s) ** 2)
    problem = jxt.StochasticBilevel(fit, lower, data, data[:30], prox.Box(-1.0, 0.05))
    decay = lambda k: 0.3 / (1 + 0.05 * k)
    method = bilevel.BAMM(
        decay, bilevel.ConstantAveraging(0.0), x_step=decay, multiplier_step=decay, tol=0.0
    )
    start = jnp.zeros(3), jnp.zeros(3)
    alone = jxt.Bilevel(lambda x, y: jnp.sum((x - 1) ** 2), lambda x, y: jnp.sum((y - x) ** 2))

    @jax.jit
    def run(key):
        sampled = dataclasses.replace(method, batch=4, max_steps=2000)
        whole = dataclasses.replace(method, max_steps=300)
        single = bilevel.BAMM(0.3, bilevel.PowerDecay(0.5, 0.25), x_step=0.2, max_steps=300)
        return (
            jxt.solve(problem, sampled, start, key=key),
            jxt.solve(problem, whole, start),
            jxt.solve(alone, single, start),
        )

    sampled, whole, single = run(jax.random.key(1))
    a, b = np.mean(data, axis=0), np.mean(data[:30], axis=0)
    # The minimum of |x + b - a|^2 + |x - a|^2 in the box.
    wanted = np.clip(a - b / 2, -1.0, 0.05)
    np.testing.assert_allclose(whole.value.upper, wanted, atol=1e-4)
    np.testing.assert_allclose(sampled.value.upper, wanted, atol=0.04)
    assert (sampled.state.samples, whole.state.samples) == (2000 * 6 * 4, 300 * 70)
    assert sampled.residual > 1e300
    assert sampled.status == jxt.Status.step_limit
    assert whole.residual < 1e-3
    assert single.status == jxt.Status.converged
    np.testing.assert_allclose(single.value.upper, 1, atol=1e-5)
    np.testing.assert_allclose(single.value.multiplier, 0, atol=1e-5)


def test_bad_input():
    for name, value, error in (
        ("step_size", 0.0, ValueError),
        ("step_size", None, TypeError),
        ("x_step", -1.0, ValueError),
        ("multiplier_step", 0.0, ValueError),
        ("averaging", 0.5, TypeError),
        ("order", "simultaneous", TypeError),
        ("batch", 0, ValueError),
        ("x_step", bilevel.ExactMultiplierStep(), TypeError),
    ):
        with pytest.raises(error, match=name):
            bilevel.BAMM(**{name: value})  # pyright: ignore[reportArgumentType]
    for make in (
        lambda: bilevel.PowerDecay(1.5),
        lambda: bilevel.PowerDecay(0.5, 0.0),
        lambda: bilevel.HarmonicDecay(-0.1),
        lambda: bilevel.ConstantAveraging(2.0),
    ):
        with pytest.raises(ValueError, match="must be"):
            make()
    held = jxt.Bilevel(_coupled().upper, _coupled().lower, lower_set=prox.Box(0, 1))
    with pytest.raises(ValueError, match="without a set"):
        jxt.solve(held, bilevel.BAMM(), (jnp.zeros(N), jnp.zeros(N)))
