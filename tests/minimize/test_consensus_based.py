"""Consensus points by numpy, hops by closed forms and quadrature, particles among minima."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.minimize import (
    Anisotropic,
    ConsensusBased,
    ConsensusHopping,
    Isotropic,
    laplace_mean,
)
from jaxopt_ext.minimize.textbook import SimulatedAnnealing

RNG = np.random.default_rng(3)
BOWL = jxt.Smooth(lambda x: 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * x**2))


def test_consensus_point_by_numpy():
    energies, points = RNG.normal(size=9), RNG.normal(size=(9, 2, 3))
    weights = np.exp(-3 * energies)
    wanted = np.einsum("n,nij->ij", weights / weights.sum(), points)
    mean = jax.jit(laplace_mean)
    found = mean(energies, {"a": points}, 3.0)["a"]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    # Shifted far, in single precision and cold: the best point, without underflow.
    single = energies.astype(np.float32) + 50
    found = mean(single, points.astype(np.float32), 1e5)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, points[np.argmin(energies)], rtol=1e-5)
    # What is not known has no weight.
    holes = np.where(np.arange(9) % 3 == 0, [np.nan, np.inf, np.nan] * 3, energies)
    known = np.arange(9) % 3 != 0
    wanted = np.einsum("n,nij->ij", weights[known] / weights[known].sum(), points[known])
    found = mean(holes, points, 3.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert np.isnan(mean(np.full(9, np.inf), points, 3.0)).all()


def _one_step(*many):
    """With each of some options, in one program."""
    start = np.array([3.0, -2.0])
    given = {"inverse_temperature": 2.0, "drift": 1.5, "step_size": 0.04}

    def once(key, options):
        solver = ConsensusBased(2000, **given, **options)
        state = solver.init(BOWL, start, key)
        x, after = solver.step(BOWL, start, state)
        return state.particles, x, after.particles

    run = jax.jit(lambda key: [once(key, options) for options in many])
    return jax.tree.map(np.asarray, run(jax.random.key(1)))


def test_one_step_by_numpy():
    weigh = lambda p: np.exp(-2 * (0.5 * p[:, 0] ** 2 + 2 * p[:, 1] ** 2))
    mean = lambda p: weigh(p) @ p / weigh(p).sum()
    (before, x, still), *kicked = _one_step(
        {"noise": 0.0},
        {"noise": 0.7, "geometry": Anisotropic()},
        {"noise": 0.7, "geometry": Isotropic()},
    )
    difference = before - mean(before)  # of the positions before the step
    np.testing.assert_allclose(before.mean(axis=0), [3, -2], atol=0.1)
    np.testing.assert_allclose(still, before - 0.06 * difference, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(x, mean(still), rtol=1e-9)
    # The same normal numbers for both, recovered from the kicks.
    lengths = np.linalg.norm(difference, axis=1, keepdims=True)
    normals = [
        (after - still) / (0.7 * 0.2 * scale)
        for (*_, after), scale in zip(kicked, (difference, lengths), strict=True)
    ]
    np.testing.assert_allclose(normals[0], normals[1], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.cov(normals[0].T), np.eye(2), atol=0.12)
    np.testing.assert_allclose(normals[0].mean(axis=0), 0, atol=0.1)


def _hop(solver, problem, x, keys):
    def one(key):
        state = solver.init(problem, x, key)
        return solver.step(problem, x, state)[0]

    return jax.jit(jax.vmap(one))(keys)


def test_hopping_on_a_quadratic_is_a_proximal_step():
    root = RNG.normal(size=(3, 3))
    A, x = root @ root.T, np.array([1.0, -2.0, 0.5])
    problem = jxt.Smooth(lambda v: 0.5 * v @ A @ v)
    keys = jax.random.split(jax.random.key(0), 1)
    wanted = np.linalg.solve(np.eye(3) + 0.1 * A, x)
    exact = _hop(ConsensusHopping(None, 1.0, 0.1), problem, jnp.asarray(x), keys)[0]
    np.testing.assert_allclose(exact, wanted, rtol=1e-12)
    sampled = _hop(ConsensusHopping(200_000, 1.0, 0.1), problem, jnp.asarray(x), keys)[0]
    np.testing.assert_allclose(sampled, wanted, atol=0.02 * np.linalg.norm(wanted))


def test_mean_hop_is_along_the_gradient():
    solver, x = ConsensusHopping(200, 0.1, 10.0), np.array([3.0, 2.0])
    problem = jxt.Smooth(lambda v: 0.5 * (v[0] ** 2 + 4 * v[1] ** 2))
    hops = _hop(solver, problem, jnp.asarray(x), jax.random.split(jax.random.key(2), 200))
    move, down = np.mean(hops, axis=0) - x, -x * [1, 4]
    assert move @ down / np.linalg.norm(move) / np.linalg.norm(down) > 0.99


def test_hopping_tends_to_the_minimizing_movement():
    """By quadrature: the Gaussian is part of the energy."""
    start, tau = 0.4, 0.1
    well = lambda x: (x**2 - 1) ** 2 + 0.3 * x
    moved = lambda x: well(x) + (x - start) ** 2 / (2 * tau)
    best = scipy.optimize.minimize_scalar(moved, (0, 1), tol=1e-14).x
    grid = np.linspace(-3, 3, 200_001)
    alphas = 10.0 ** np.arange(1, 5)
    gaps = [
        abs(float(laplace_mean(jnp.asarray(moved(grid)), jnp.asarray(grid), a)) - best)
        for a in alphas
    ]
    np.testing.assert_allclose(gaps[:3], [7.2e-3, 7.4e-4, 8.5e-5], rtol=0.2)
    assert np.polyfit(np.log(alphas), np.log(gaps), 1)[0] <= -0.8


def ackley(x):
    far = jnp.exp(-0.2 * jnp.sqrt(jnp.mean(x**2)))
    return 20 - 20 * far + jnp.e - jnp.exp(jnp.mean(jnp.cos(2 * jnp.pi * x)))


def rastrigin(x):
    return jnp.sum(x**2 + 10 * (1 - jnp.cos(2 * jnp.pi * x)))


def _runs(fun, solver, dimension, seeds):
    start = jnp.full(dimension, 3.0, jnp.float32)
    run = lambda key: jxt.solve(jxt.Smooth(fun), solver, start, key=key).value
    return jax.vmap(run)(jax.vmap(jax.random.key)(jnp.arange(seeds)))


@pytest.mark.slow
def test_finds_the_best_of_many_minima():
    solver = ConsensusBased(50, init_scale=2.0, tol=0.0)
    found = _runs(rastrigin, solver, 2, 8)
    assert found.dtype == jnp.float32
    # Of 121 within reach of the cloud; a run may stay in the one next to the best.
    assert np.sum(np.max(np.abs(found), axis=1) < 0.25) >= 6


@pytest.mark.slow
def test_finds_the_best_of_many_minima_in_ten_dimensions():
    found = _runs(ackley, ConsensusBased(100, init_scale=2.0, tol=0.0), 10, 6)
    np.testing.assert_allclose(found, 0, atol=0.25)


QUICK = {"noise": 1.0, "step_size": 0.1, "inverse_temperature": 1e5, "max_steps": 300}


@pytest.mark.slow
def test_pytrees_batches_schedules_and_derivatives():
    """Of a ridge regression, converged to what values can tell."""
    A, b = RNG.normal(size=(6, 3)), RNG.normal(size=6)
    schedule = optax.linear_schedule(1e2, 1e5, 50)

    def fun(theta):
        return lambda t: (
            0.5
            * (
                jnp.sum((A[:, :1] @ t["a"] + A[:, 1:] @ t["b"][0] - b) ** 2)
                + theta * (jnp.sum(t["a"] ** 2) + jnp.sum(t["b"][0] ** 2))
            )
        )

    solver = ConsensusBased(
        200,
        geometry=Isotropic(),
        batch_size=150,
        tol=0.05,
        **QUICK | {"inverse_temperature": schedule, "noise": 0.5},
    )

    @jax.jit
    def found(theta):
        start = {"a": jnp.zeros(1), "b": (jnp.zeros(2),)}
        solution = jxt.solve(jxt.Smooth(fun(theta)), solver, start)
        value = solution.value
        return jnp.concatenate([value["a"], value["b"][0]]), solution.status

    ridge = lambda theta: np.linalg.solve(A.T @ A + theta * np.eye(3), A.T @ b)
    x, status = found(1.5)
    assert status == jxt.Status.converged
    np.testing.assert_allclose(x, ridge(1.5), atol=0.05)
    slope = jax.jacobian(lambda theta: found(theta)[0])(1.5)
    wanted = (ridge(1.501) - ridge(1.499)) / 0.002
    np.testing.assert_allclose(slope, wanted, atol=0.02)


def kinked(target, unit):
    """A kink, beside a half-space where nothing is known; and a solver."""
    unit = jnp.asarray(unit)
    kink = lambda x: unit * jnp.where(x[0] > 2.2, jnp.nan, jnp.sum(jnp.abs(x - target)))
    return jxt.Smooth(kink), ConsensusBased(tol=1e-6, **QUICK | {"max_steps": 1500})


@pytest.mark.always(1)
@pytest.mark.parametrize(
    "solver",
    [
        ConsensusBased(tol=1e-2, **QUICK),
        ConsensusHopping(100, optax.exponential_decay(0.5, 10, 0.7), 1e5, 1e-2, 300),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_sets(solver):
    target = np.array([2.0, -0.3])
    inside = jxt.Constrained(lambda x: jnp.sum((x - target) ** 2), prox.Box(-1.0, 1.0))
    solution = jxt.solve(inside, solver, np.zeros(2))
    assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(solution.value, [1, -0.3], atol=0.01)


def test_kinks_and_holes():
    target = np.array([2.0, -0.3])
    solution = jxt.solve(*kinked(target, 1.0), jnp.ones(2))
    np.testing.assert_allclose(solution.value, target, atol=0.01)
    # The gradient is no less than one near it: that is not called converged.
    assert solution.status == jxt.Status.breakdown


def _black_box(x):
    """A square that JAX cannot differentiate."""
    shape = jax.ShapeDtypeStruct((), x.dtype)
    host = lambda x: np.asarray(np.sum((x - 0.5) ** 2), x.dtype)
    return jax.pure_callback(host, shape, x, vmap_method="sequential")


@pytest.mark.parametrize(
    "solver",
    [
        ConsensusBased(20, step_size=0.1, confirm=False, max_steps=100),
        ConsensusHopping(20, confirm=False, max_steps=20),
        SimulatedAnnealing(2.0, num_chains=5, num_steps=2, confirm=False, max_steps=20),
    ],
    ids=lambda solver: type(solver).__name__,
)
@pytest.mark.always(1)
def test_values_are_enough(solver):
    """Of a function without derivatives; what values cannot prove is not said to be solved."""
    with pytest.raises(ValueError, match="JVP"):
        jax.grad(_black_box)(jnp.ones(2))
    found = jxt.solve(jxt.Smooth(_black_box), solver, jnp.ones(2))
    assert found.status in (jxt.Status.step_limit, jxt.Status.breakdown)
    assert np.linalg.norm(found.value - 0.5) < 0.35


def test_what_cannot_be_solved_shows():
    nowhere, particles = kinked(jnp.ones(2), jnp.nan)
    for solver in (particles, ConsensusHopping()):
        assert jxt.solve(nowhere, solver, jnp.ones(2)).status == jxt.Status.nonfinite
    hill = jxt.Smooth(lambda x: -jnp.sum(x**2))
    exact = ConsensusHopping(None, 1.0, 1.0)
    assert jxt.solve(hill, exact, jnp.ones(2)).status == jxt.Status.breakdown
    box = jxt.Constrained(BOWL.fun, prox.Box(-1.0, 1.0))
    with pytest.raises(TypeError, match="num_samples"):
        jxt.solve(box, exact, jnp.ones(2))


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: ConsensusBased(0), ValueError, "num_particles"),
        (lambda: ConsensusBased(drift=0.0), ValueError, "drift"),
        (lambda: ConsensusBased(noise=-1.0), ValueError, "noise"),
        (lambda: ConsensusBased(step_size=-0.1), ValueError, "step_size"),
        (lambda: ConsensusBased(inverse_temperature=np.inf), ValueError, "inverse_temperature"),
        (lambda: ConsensusBased(geometry="isotropic"), TypeError, "geometry"),
        (lambda: ConsensusBased(init_scale=0.0), ValueError, "init_scale"),
        (lambda: ConsensusBased(10, batch_size=11), ValueError, "batch_size"),
        (lambda: ConsensusHopping(0), ValueError, "num_samples"),
        (lambda: ConsensusHopping(width=0.0), ValueError, "width"),
        (lambda: ConsensusHopping(inverse_temperature=-1.0), ValueError, "inverse_temperature"),
        (lambda: laplace_mean(jnp.ones(3), jnp.ones((2, 3)), 1.0), ValueError, "leading axis"),
        (lambda: laplace_mean(jnp.ones((3, 1)), jnp.ones(3), 1.0), ValueError, "energies"),
    ],
)
def test_bad_input_raises(build, error, match):
    with pytest.raises(error, match=match):
        build()
