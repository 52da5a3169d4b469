"""Asynchronous updates of blocks, against plain loops and what the theory says of delays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import fixed_point as fp, prox

RNG = np.random.default_rng(8)
D = 20


def dominant(ratio, d=D):
    """A symmetric matrix with ones on the diagonal and rows that sum to `ratio` off it."""
    A = np.abs(RNG.normal(size=(d, d))) * RNG.choice([-1, 1], (d, d))
    A = np.triu(A, 1)
    A = A + A.T
    return np.eye(d) + ratio * A / np.abs(A).sum(1).max()


A = dominant(0.8)
B = RNG.normal(size=D)
QUADRATIC = jxt.Composite(
    lambda x: 0.5 * x @ jnp.asarray(A) @ x - jnp.asarray(B) @ x, prox.L1(jnp.asarray(0.1))
)
MAP = fp.ProximalCoordinateMap(QUADRATIC, 1.0)


def map_by_hand(x):
    v = x - (A @ x - B)
    return np.sign(v) * np.maximum(np.abs(v) - 0.1, 0)


def replay(fun, x, blocks, ages, size, eta, own=True):
    """Events one by one, from the list of all points so far."""
    points = [x]
    for k, (i, age) in enumerate(zip(blocks, ages, strict=True)):
        at = slice(i * size, (i + 1) * size)
        read = np.concatenate(
            [points[k - min(a, k)][j * size : (j + 1) * size] for j, a in enumerate(age)]
        )
        if own:
            read[at] = points[k][at]
        new = points[k].copy()
        new[at] += eta * (fun(read)[at] - read[at])
        points.append(new)
    return points[-1]


def run(solver, fun, x, steps):
    solver = dataclasses.replace(solver, tol=0.0, max_steps=steps)
    return jxt.solve(jxt.FixedPoint(fun), solver, x)


def test_without_delays_it_is_gauss_seidel():
    x = np.zeros(D)
    for _ in range(3):
        for i in range(D):
            x[i] = map_by_hand(x)[i]
    solution = run(fp.DelayAgnostic(), MAP, jnp.zeros(D), 3 * D)
    np.testing.assert_allclose(solution.value, x, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(solution.residual, np.linalg.norm(map_by_hand(x) - x), rtol=1e-10)


@pytest.mark.parametrize("kind", [fp.DelayAgnostic, fp.ARock])
def test_a_recorded_run(kind):
    """Blocks of five entries, ages of up to nine events, and beyond the start."""
    blocks, ages = RNG.integers(0, 4, 60), RNG.integers(0, 10, (60, 4))
    start = RNG.normal(size=D)
    schedule = fp.RecordedSchedule(blocks, ages)
    solver = kind(schedule, blocks=4, averaging=0.7, max_steps=60)
    wanted = replay(map_by_hand, start, blocks, ages, 5, 0.7, own=kind is fp.DelayAgnostic)
    found = run(solver, MAP, jnp.asarray(start), 60).value
    np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-12)


class Blockwise:
    """A map that knows its blocks, and that its other rows are not asked for."""

    def __call__(self, x):
        return jnp.asarray(A) @ x / 4 + 1

    def block(self, i, x):
        return jax.lax.dynamic_slice_in_dim(self(x), 5 * i, 5)


def test_maps_that_know_their_blocks():
    solver = fp.DelayAgnostic(fp.UniformDelay(6), blocks=4)
    both = jax.jit(
        lambda x: [run(solver, f, x, 50) for f in (lambda x: Blockwise()(x), Blockwise())]
    )
    whole, parts = both(np.zeros(D))
    np.testing.assert_allclose(parts.value, whole.value, rtol=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [
        fp.ConstantDelay(50),
        fp.UniformDelay(50),
        fp.GrowingDelay(0.6),
        fp.ConstantDelay(3, fp.Random()),
    ],
)
def test_dominance_is_enough_at_any_delay(schedule):
    solver = fp.DelayAgnostic(schedule, tol=1e-12, max_steps=20_000)
    solution = jxt.solve(jxt.FixedPoint(MAP), solver, jnp.zeros(D))
    assert solution.status == jxt.Status.converged, solution.residual
    x = np.zeros(D)
    for _ in range(400):
        x = map_by_hand(x)
    np.testing.assert_allclose(solution.value, x, atol=1e-11)


@pytest.mark.slow
def test_stale_own_blocks_blow_up():
    delayed = fp.ConstantDelay(50)
    solver = fp.ARock(delayed, averaging=1.0, max_steps=8000)
    stale = jxt.solve(jxt.FixedPoint(MAP), solver, jnp.zeros(D))
    assert stale.status != jxt.Status.converged
    assert not stale.residual < 1


@pytest.mark.slow
def test_douglas_rachford_with_stale_entries():
    """The operator of a splitting method, entry by entry, on a lasso whose columns are nearly
    orthogonal: 512 events at ages of 20, where those of ARock at full length do not come to rest.
    The solution is that of proximal gradient steps in numpy."""
    rng = np.random.default_rng(1)
    n, d, lam = 40, 8, 0.3
    X = np.linalg.qr(rng.normal(size=(n, d)))[0] * np.sqrt(n) + 0.15 * rng.normal(size=(n, d))
    y = X @ np.array([2, -1, 0, 0, 0.7, 0, 0, 1.5]) + 0.1 * rng.normal(size=n)
    wanted = np.zeros(d)
    for _ in range(2000):
        v = wanted - 0.5 * X.T @ (X @ wanted - y) / n
        wanted = np.sign(v) * np.maximum(np.abs(v) - 0.5 * lam, 0)
    assert np.sum(wanted == 0) == 4
    problem = jxt.Composite(jxt.objectives.SquaredLoss(X, y), prox.L1(lam))
    method = jxt.splitting.DouglasRachford(step_size=2.0)
    start = method.start(problem, jnp.zeros(d))
    wrapped = fp.fixed_point_of(problem, method, start)
    aged = fp.ConstantDelay(20)
    found = jxt.solve(wrapped, fp.DelayAgnostic(aged, tol=1e-12, max_steps=2000), start)
    assert found.status == jxt.Status.converged
    np.testing.assert_allclose(method.read(problem, found.value), wanted, atol=1e-11)
    arock = fp.ARock(aged, averaging=1.0, tol=1e-12, max_steps=2000)
    assert not jxt.solve(wrapped, arock, start).residual < 1


def consensus(kappa, n=6, d=4):
    rng = np.random.default_rng(3)
    curvature = rng.uniform(1, kappa, (n, d))
    curvature[:, 0], curvature[:, 1] = 1, kappa
    centers = rng.normal(size=(n, d))
    proxes = lambda v, t: (v + t * curvature * centers) / (1 + t * curvature)
    solution = np.sum(curvature * centers, 0) / np.sum(curvature, 0)
    return fp.ConsensusMap(proxes, np.sqrt(kappa)), solution


def constants(fun, x, num_samples):
    """Those of the blocks by a formula of numbers, the margin and its weights."""

    def both(x):
        a = fp.block_lipschitz(fun, x, jax.random.key(0), num_samples=num_samples)
        return a, *fp.delay_free_margin(a)

    return map(np.asarray, jax.jit(both)(x))


@pytest.mark.always(1)
@pytest.mark.parametrize("delay", [200, 30])
def test_consensus_by_admm(delay):
    """Row sums of 0.81 by the formula, and of their estimate."""
    fun, solution = consensus(3.0)
    r = (np.sqrt(3.0) - 1) / (np.sqrt(3.0) + 1)
    a, margin, _ = constants(fun, np.zeros((6, 4)), 2)
    bound = 0.5 + 0.5 * r * (3 - 4 / 6)
    np.testing.assert_allclose(bound, 0.81, atol=5e-3)
    assert np.sum(a, axis=1).max() <= bound + 1e-12
    assert margin <= bound + 1e-12
    solver = fp.DelayAgnostic(fp.ConstantDelay(delay), tol=1e-10, max_steps=8000)
    found = jxt.solve(jxt.FixedPoint(fun), solver, jnp.zeros((6, 4)))
    assert found.status == jxt.Status.converged
    np.testing.assert_allclose(fun.read(found.value), solution, atol=1e-9)
    arock = fp.ARock(fp.ConstantDelay(delay), averaging=1.0, max_steps=8000)
    assert not jxt.solve(jxt.FixedPoint(fun), arock, jnp.zeros((6, 4))).residual < 1


def test_the_condition_is_not_idle():
    fun, _ = consensus(300.0)
    solver = fp.DelayAgnostic(fp.ConstantDelay(200), tol=1e-6, max_steps=8000)
    found = jxt.solve(jxt.FixedPoint(fun), solver, jnp.zeros((6, 4)))
    assert found.status != jxt.Status.converged


def test_gossip():
    n = 5
    W = RNG.dirichlet(np.ones(n), n)
    c = RNG.normal(size=(n, 3))
    fun = fp.GossipMap(W, lambda v, t: (v + t * c) / (1 + t), 0.5)
    _, margin, weights = constants(fun, np.zeros((n, 3)), 1)
    np.testing.assert_allclose(margin, 1 / 1.5, rtol=1e-9)
    np.testing.assert_allclose(weights, 1, rtol=1e-9)
    solver = fp.DelayAgnostic(fp.UniformDelay(40), tol=1e-11)
    found = jxt.solve(jxt.FixedPoint(fun), solver, jnp.zeros((n, 3)))
    assert found.status == jxt.Status.converged
    np.testing.assert_allclose(
        found.value, np.linalg.solve(1.5 * np.eye(n) - W, 0.5 * c), atol=1e-10
    )


def test_margins():
    a = np.abs(RNG.normal(size=(6, 6)))
    margin_of = jax.jit(fp.delay_free_margin)
    margin, w = margin_of(a)
    np.testing.assert_allclose(margin, np.abs(np.linalg.eigvals(a)).max(), rtol=1e-9)
    np.testing.assert_allclose(a @ w / w, margin, rtol=1e-8)
    # Periodic and reducible ones too.
    for b in (np.array([[0.0, 2], [0.5, 0]]), np.diag([0.3, 0.7])):
        np.testing.assert_allclose(margin_of(b)[0], np.abs(np.linalg.eigvals(b)).max(), rtol=1e-4)


def test_schedules_and_bad_ones():
    key = jax.random.key(0)
    event = lambda k: fp.UniformDelay(7).event(k, 3, jax.random.fold_in(key, k))
    blocks, ages = jax.jit(jax.vmap(event))(np.arange(3000))
    assert set(np.unique(blocks)) == {0, 1, 2}
    assert set(np.unique(ages)) == set(range(8))
    event = lambda k: fp.GrowingDelay(0.5).event(k, 2, key)
    _, ages = jax.jit(jax.vmap(event))(np.arange(100))
    np.testing.assert_array_equal(ages[:, 0], np.floor(np.sqrt(np.arange(100))))
    assert fp.GrowingDelay(0.5).longest(100) >= 10
    recorded = fp.RecordedSchedule(np.zeros(5, int), np.ones((5, 2), int))
    with pytest.raises(ValueError, match="5 events were recorded, 6 are wanted"):
        fp.DelayAgnostic(recorded, max_steps=6)
    with pytest.raises(ValueError, match="of 2 blocks, the point of 3"):
        run(fp.DelayAgnostic(recorded, max_steps=5), jnp.cos, jnp.zeros(3), 5)
    with pytest.raises(ValueError, match="20 cannot be cut into 3"):
        run(fp.DelayAgnostic(blocks=3), MAP, jnp.zeros(D), 5)
    with pytest.raises(ValueError, match="common leading axis"):
        run(fp.DelayAgnostic(), lambda x: x, {"a": jnp.zeros(2), "b": jnp.zeros(3)}, 5)
    with pytest.raises(ValueError, match="averaging"):
        fp.DelayAgnostic(averaging=0.0)
    with pytest.raises(TypeError, match="schedule"):
        fp.ARock(5)
    with pytest.raises(ValueError, match="delay"):
        fp.ConstantDelay(-1)
    with pytest.raises(ValueError, match="rate"):
        fp.GrowingDelay(1.0)
    with pytest.raises(ValueError, match="ages must be non-negative"):
        fp.RecordedSchedule(np.zeros(1, int), -np.ones((1, 2), int))
    with pytest.raises(ValueError, match="block must be in"):
        fp.RecordedSchedule(np.full(1, 2), np.ones((1, 2), int))
    with pytest.raises(TypeError, match="ints"):
        fp.RecordedSchedule(np.zeros(1), np.ones((1, 2), int))
    with pytest.raises(ValueError, match="row of weights"):
        fp.GossipMap(np.ones((2, 2)), lambda v, t: v, 1.0)
