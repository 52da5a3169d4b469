"""Zeroth-order methods by numpy loops, by linear programs, and by what their plans promise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.games import MirrorProxBatch
from jaxopt_ext.minimize import (
    AcceleratedBatch,
    EntropicSimplex,
    MirrorBatch,
    PNorm,
    Restarted,
    SphereSmoothing,
    ZerothOrder,
    estimated_gradient,
    zeroth_order_plan,
)

KEY = jax.random.key(2)
RNG = np.random.default_rng(4)


@jax.custom_jvp
def values_only(x):
    """The absolute sum, which raises when somebody differentiates it."""
    return jnp.sum(jnp.abs(x))


@values_only.defjvp
def _raise(primals, tangents):
    raise AssertionError("a black box was differentiated")


def cone(c):
    """Sharp at `c`, with the Lipschitz constant 1."""
    return lambda x: jnp.sum(jnp.abs(x - c)) / x.size**0.5


def runs(problem, solver, start, seeds=3):
    """Values from several keys, in one program."""
    one = lambda key: jxt.solve(problem, solver, start, key=key).value
    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, seeds)))


def test_accelerated_steps_by_numpy():
    """On a box, with the estimates recomputed one direction at a time."""
    c = np.array([1.5, -0.3, 0.4])
    f = lambda x: np.sum(np.abs(x - c)) + 0.5 * x[0] ** 2
    smoothing = SphereSmoothing(0.3, 5)
    problem = jxt.Constrained(lambda x: jnp.sum(jnp.abs(x - c)) + 0.5 * x[0] ** 2, prox.Box(-1, 1))
    solver = ZerothOrder(AcceleratedBatch(), smoothing, 2.0, max_steps=4)
    start = jnp.array([0.9, 0.2, -0.5])
    found = jxt.solve(problem, solver, start, key=KEY)

    x = v = np.asarray(start)
    L, weight, key = 3**0.5 * 2 / 0.3, 0.0, KEY
    for _ in range(4):
        now, key = jax.random.split(key)
        a = max(np.roots([L, -1, -weight]))
        y = (weight * x + a * v) / (weight + a)
        slope = np.zeros(3)
        for e in np.asarray(smoothing.sphere.draw(now, start, 5)[0]):
            slope += 3 / (2 * 0.3) * (f(y + 0.3 * e) - f(y - 0.3 * e)) * e / 5
        v = np.clip(v - a * slope, -1, 1)
        x, weight = (weight * x + a * v) / (weight + a), weight + a
    np.testing.assert_allclose(found.value, x, rtol=1e-9)
    assert found.status == jxt.Status.step_limit
    np.testing.assert_allclose(found.residual, 2.0)  # all that values prove


def test_plan():
    d, M, R, eps = 16, 2.0, 1.5, 0.1
    plan = zeroth_order_plan(d, M, R, eps)
    np.testing.assert_allclose(plan.radius, eps / (2 * M))
    np.testing.assert_allclose(plan.smoothness, 2 * d**0.5 * M**2 / eps)
    assert plan.num_steps == np.ceil(2 * 2**0.5 * d**0.25 * M * R / eps)
    assert plan.batch == np.ceil(2**0.5 * d * M**2 * R**2 / (eps**2 * plan.num_steps))
    np.testing.assert_allclose(plan.noise, eps**2 / (d**0.5 * M * R))
    slow = zeroth_order_plan(d, M, R, eps, MirrorBatch())
    assert slow.num_steps == np.ceil((2 * M * R / eps) ** 2 - 1e-9)
    flat = zeroth_order_plan(d, M, R, eps, geometry=EntropicSimplex())
    ratio = np.log(d) / d  # of the second moments in the two norms
    np.testing.assert_allclose(flat.batch, plan.batch * ratio, atol=1)
    saddle = zeroth_order_plan(d, M, R, eps, MirrorProxBatch())
    assert saddle.num_steps == np.ceil(plan.smoothness * R**2 / eps - 1e-9)
    stages = zeroth_order_plan(d, M, R, eps, Restarted(1.0, power=1.0))
    # Accuracies 3/8, 3/16, 3/32, and distances 3/2, 3/4, 3/8.
    each = [2 * 2**0.5 * 2 * M * 1.5 * 0.5**k / (0.375 * 0.5**k) for k in range(3)]
    assert stages.num_steps == sum(map(np.ceil, each))
    with pytest.raises(ValueError, match="accuracy"):
        zeroth_order_plan(d, M, R, 0.0)


METHODS = AcceleratedBatch(), MirrorBatch(), Restarted(0.5, power=1.0)


@pytest.mark.always(1)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_plan_reaches_its_accuracy(method):
    d, eps = 16, 0.1
    plan = zeroth_order_plan(d, 1.0, 1.0, eps, method)
    solver = ZerothOrder(
        method, SphereSmoothing(plan.radius, plan.batch), 1.0, max_steps=plan.num_steps
    )
    c = RNG.normal(size=d)
    c = jnp.asarray(c / np.linalg.norm(c), jnp.float32)
    found = runs(jxt.Smooth(cone(c)), solver, jnp.zeros(d, jnp.float32))
    assert found.dtype == np.float32
    values = np.sum(np.abs(found - c), axis=1) / d**0.5
    assert np.mean(values) <= eps, values
    assert np.sum(np.abs(c)) / d**0.5 > 5 * eps  # where it began


A = RNG.normal(size=(12, 4))
B = RNG.normal(size=12)


def least_absolute(weights, simplex=False):
    """The least mean of |Aw - b|, by a linear program in w and bounds of the absolute values."""
    m, n = A.shape
    cost = np.concatenate([np.zeros(n), np.full(m, 1 / m)])
    rows = np.block([[A, -np.eye(m)], [-A, -np.eye(m)]])
    bounds = [(0, None) if simplex else (None, None)] * n + [(0, None)] * m
    total = (
        {"A_eq": np.concatenate([np.ones(n), np.zeros(m)])[None], "b_eq": [1]} if simplex else {}
    )
    out = scipy.optimize.linprog(cost, rows, np.concatenate([B, -B]), bounds=bounds, **total)
    return out.fun


@pytest.mark.slow
def test_entropic_geometry_on_a_simplex():
    f = lambda w: jnp.mean(jnp.abs(A @ w - B))
    problem = jxt.Constrained(f, prox.Simplex(1.0))
    solver = ZerothOrder(
        AcceleratedBatch(), SphereSmoothing(0.01, 60), 1.5, EntropicSimplex(), max_steps=300
    )
    found = runs(problem, solver, jnp.full(4, 0.25))
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-9)
    assert (found > 0).all()
    best = least_absolute(None, simplex=True)
    gaps = np.mean(np.abs(found @ A.T - B), axis=1) - best
    assert (gaps > -1e-9).all()
    assert (gaps < 0.02).all(), gaps


def test_a_direction_asks_the_same_sample_twice():
    """Samples shift all values by large numbers, which cancel only within a sample."""
    rng = np.random.default_rng(1)
    table = (jnp.asarray(A), jnp.asarray(B), jnp.asarray(rng.normal(size=12) * 1e4))
    problem = jxt.FiniteSum(lambda w, row: jnp.abs(row[0] @ w - row[1]) + row[2], table)
    solver = ZerothOrder(MirrorBatch(), SphereSmoothing(0.01, 40), 2.0, max_steps=1500)
    found = runs(problem, solver, jnp.zeros(4))
    gaps = np.mean(np.abs(found @ A.T - B), axis=1) - least_absolute(None)
    assert (gaps < 0.05).all(), gaps
    assert np.mean(np.abs(B)) - least_absolute(None) > 0.1


def test_a_saddle_step_by_numpy():
    """Over balls, of both players at once: the value is the point in the middle."""
    K, radius = np.random.default_rng(3).normal(size=(3, 4)), 0.3
    smoothing, ball = SphereSmoothing(radius, 5), prox.L2Ball(1.0)
    problem = jxt.MinMax(lambda x, y: x @ K @ y + 0.5 * (x @ x) - 0.2 * (y @ y), ball, ball)
    solver = ZerothOrder(MirrorProxBatch(), smoothing, 2.0)
    start = jxt.PrimalDual(np.full(3, 0.5), np.full(4, -0.5))

    @jax.jit
    def run(z):
        value, after = solver.step(problem, z, solver.init(problem, z, KEY))
        keys = jax.random.split(jax.random.split(KEY)[0])
        directions = [smoothing.sphere.draw(key, z, 5)[0] for key in keys]
        return value, after.method.point, directions

    value, point, directions = run(start)
    flat = lambda z: np.concatenate(jax.tree.leaves(z), axis=-1)
    phi = lambda z: z[:3] @ K @ z[3:] + 0.5 * (z[:3] @ z[:3]) - 0.2 * (z[3:] @ z[3:])
    into = lambda v: v / max(1, np.linalg.norm(v))
    z, t = flat(start), radius / (7**0.5 * 2)

    def moved(at, directions):
        around = (phi(at + radius * e) - phi(at - radius * e) for e in directions)
        slope = sum(7 / (2 * radius) * d * e / 5 for d, e in zip(around, directions, strict=True))
        ahead = z - t * slope * np.repeat([1, -1], (3, 4))
        return np.concatenate([into(ahead[:3]), into(ahead[3:])])

    middle = moved(z, flat(directions[0]))
    np.testing.assert_allclose(flat(value), middle, rtol=1e-9)
    np.testing.assert_allclose(flat(point), moved(middle, flat(directions[1])), rtol=1e-9)
    with pytest.raises(TypeError, match="no method for a Smooth"):
        jxt.solve(jxt.Smooth(jnp.sum), solver, np.ones(2))
    plain = dataclasses.replace(solver, method=AcceleratedBatch())
    with pytest.raises(TypeError, match="no method for a MinMax"):
        jxt.solve(problem, plain, start)


@pytest.mark.slow
def test_saddle_points_at_the_steps_of_the_plan():
    """Over balls, where the gap has a closed form."""
    K, eps, pull = RNG.normal(size=(3, 4)) / 2, 0.2, 0.3
    phi = lambda x, y: x @ K @ y + pull * jxt.tree.norm(x) - pull * jxt.tree.norm(y)
    ball = prox.L2Ball(1.0)
    problem = jxt.MinMax(phi, ball, ball)
    lipschitz = float(np.linalg.norm(K, 2) + pull) * 2**0.5
    plan = zeroth_order_plan(7, lipschitz, 2.0, eps, MirrorProxBatch())
    smoothing = SphereSmoothing(plan.radius, plan.batch)
    solver = ZerothOrder(MirrorProxBatch(), smoothing, lipschitz, max_steps=plan.num_steps)
    start = jxt.PrimalDual(jnp.ones(3) / 2, -jnp.ones(4) / 2)

    def gap(z):
        x, y = map(np.asarray, z)
        norm = np.linalg.norm
        best = lambda v: max(norm(v) - pull, 0)
        return pull * (norm(x) + norm(y)) + best(K.T @ x) + best(K @ y)

    solution = jxt.solve(problem, solver, start, key=KEY)
    assert gap(solution.value) <= eps, gap(solution.value)
    assert gap(start) > 3 * eps  # one player's sign turned would drive it away


def test_p_norm_steps_are_minimizers():
    mirror, t = PNorm(1.4), 0.7
    x, slope = np.array([1.0, -0.5, 0.2]), np.array([0.3, 0.8, -2.0])
    power = lambda v: np.sum(np.abs(v) ** 1.4) ** (2 / 1.4) / (2 * 0.4)
    step = 1e-6
    here = [(power(x + step * e) - power(x - step * e)) / (2 * step) for e in np.eye(3)]
    divergence = lambda u: power(u) - power(x) - np.dot(here, u - x)
    u = np.array([0.4, -0.9, 1.3])
    np.testing.assert_allclose(jax.jit(lambda *at: mirror.divergence(*at))(u, x), divergence(u))
    wanted = scipy.optimize.minimize(
        lambda u: t * slope @ u + divergence(u),
        x,
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000},
    ).x
    problem = jxt.Smooth(jnp.sum)
    step = jax.jit(lambda *at: mirror.step(problem, *at, t))
    np.testing.assert_allclose(step(x, slope), wanted, atol=1e-5)
    plain = jax.jit(lambda *at: PNorm(2.0).step(problem, *at, t))({"a": x}, {"a": slope})
    np.testing.assert_allclose(plain["a"], x - t * slope, rtol=1e-12)
    np.testing.assert_array_equal(step(np.zeros(3), np.zeros(3)), np.zeros(3))
    with pytest.raises(TypeError, match="Constrained"):
        mirror.step(jxt.Constrained(jnp.sum, prox.Box(0, 1)), jnp.ones(2), jnp.ones(2), 1.0)
    with pytest.raises(ValueError, match="p must be"):
        PNorm(1.0)


def test_black_boxes_are_never_differentiated():
    solver = ZerothOrder(AcceleratedBatch(), SphereSmoothing(0.05, 20), 2.0, max_steps=200)
    start = {"a": jnp.ones(2), "b": jnp.asarray([-1.0, 2.0])}
    flat = lambda t: values_only(jnp.concatenate([t["a"], t["b"]]))
    problem = jxt.Smooth(flat)
    found = jxt.solve(problem, dataclasses.replace(solver, geometry=PNorm(1.8)), start)
    assert flat(found.value) < 0.5
    # Asking for the residual does.
    with pytest.raises(AssertionError, match="differentiated"):
        jxt.solve(problem, dataclasses.replace(solver, confirm=True), start)


def test_confirmed_solves_and_derivatives():
    """Of a quadratic, whose estimates are exact but for a factor: there it converges."""
    H = np.diag([1.0, 2.0, 0.5])
    smoothing = SphereSmoothing(1.0, 60)
    solver = ZerothOrder(AcceleratedBatch(), smoothing, 3.0, confirm=True, max_steps=20_000)

    def solved(theta):
        problem = jxt.Smooth(lambda x: 0.5 * x @ H @ x - theta @ x)
        return jxt.solve(problem, solver, jnp.zeros(3))

    theta = jnp.array([1.0, -1.0, 0.5])
    with_value = lambda t: (lambda found: (found.value, found))(solved(t))
    jacobian, solution = jax.jit(jax.jacobian(with_value, has_aux=True))(theta)
    assert solution.status == jxt.Status.converged
    assert np.linalg.norm(H @ solution.value - theta) <= 1e-4
    np.testing.assert_allclose(jacobian, np.linalg.inv(H), atol=1e-9)


@pytest.mark.slow
def test_what_goes_wrong_has_a_status():
    solver = ZerothOrder(AcceleratedBatch(), SphereSmoothing(0.1, 2), max_steps=20)
    hole = jxt.solve(jxt.Smooth(lambda x: jnp.sum(jnp.log(x))), solver, -jnp.ones(2))
    assert hole.status == jxt.Status.nonfinite
    far = jxt.solve(jxt.Smooth(cone(0.0)), solver, jnp.full(2, 1e15))
    assert far.status == jxt.Status.breakdown


@pytest.mark.slow
def test_an_optimizer_of_values():
    tx = optax.chain(estimated_gradient(SphereSmoothing(0.05, 30), KEY), optax.sgd(0.02))

    def step(carry, _):
        params, state = carry
        nothing = jax.tree.map(jnp.zeros_like, params)
        updates, state = tx.update(nothing, state, params, value_fn=lambda p: values_only(p["a"]))
        return (optax.apply_updates(params, updates), state), None

    start = {"a": jnp.asarray([1.0, -2.0], jnp.float32)}
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=150))((start, tx.init(start)))
    assert params["a"].dtype == jnp.float32
    np.testing.assert_allclose(params["a"], 0, atol=0.1)
    with pytest.raises(ValueError, match="value_fn"):
        tx.update(start, tx.init(start), start)


def test_bad_input():
    good = SphereSmoothing(0.1, 2)
    with pytest.raises(TypeError, match="method"):
        ZerothOrder("fast", good)
    with pytest.raises(TypeError, match="smoothing"):
        ZerothOrder(AcceleratedBatch(), 0.1)
    with pytest.raises(ValueError, match="lipschitz"):
        ZerothOrder(AcceleratedBatch(), good, 0.0)
    with pytest.raises(TypeError, match="confirm"):
        ZerothOrder(AcceleratedBatch(), good, confirm=1)
    with pytest.raises(ValueError, match="step_size"):
        MirrorBatch(step_size=-1.0)
    with pytest.raises(ValueError, match="power"):
        Restarted(1.0, power=0.5)
    with pytest.raises(ValueError, match="growth"):
        Restarted(0.0)
    problem = jxt.FiniteSum(lambda w, a: jnp.abs(a @ w), jnp.eye(3), prox.L1(1.0))
    with pytest.raises(TypeError, match="Euclidean"):
        jxt.solve(problem, ZerothOrder(MirrorBatch(), good, 1.0, PNorm()), jnp.ones(3))
