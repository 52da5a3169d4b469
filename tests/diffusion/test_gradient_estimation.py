"""The gradient-estimation sampler against loops, and denoising as projection against geometry."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import GradientEstimation

EXPLODING = diffusion.VarianceExploding(start=40.0, end=0.01)
PRESERVING = diffusion.VariancePreserving(start=1.0, end=0.01)
START = np.array([0.4, -1.1, 2.0])


def network(x, t, xp=np):
    return xp.sin(2 * x + 3 * t) + 0.5 * x


MODEL = diffusion.Denoiser(lambda x, node: network(x, node.t, jnp))


@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0])
def test_a_run_equals_a_loop(gamma):
    times = diffusion.log_linear(PRESERVING, 6)
    out = diffusion.sample(MODEL, GradientEstimation(gamma), PRESERVING, times, jnp.asarray(START))
    alphas, sigmas = (
        np.append(f(times[:-1]), end)
        for f, end in zip((PRESERVING.alpha, PRESERVING.sigma), (1.0, 0.0), strict=True)
    )
    y, old = START / alphas[0], None
    for i in range(6):
        e = network(alphas[i] * y, times[i])
        mean = e if old is None else gamma * e + (1 - gamma) * old
        y = y + (sigmas[i + 1] / alphas[i + 1] - sigmas[i] / alphas[i]) * mean
        old = e
    np.testing.assert_allclose(out.value, y, rtol=1e-11)
    assert out.evaluations == 6
    if gamma == 1:
        ddim = diffusion.sample(MODEL, diffusion.DDIM(), PRESERVING, times, jnp.asarray(START))
        np.testing.assert_allclose(out.value, ddim.value, rtol=1e-12)


def test_error_is_that_of_ddim_times_three_less_two_gamma():
    times = diffusion.uniform_log_snr(PRESERVING, 1280)
    run = lambda gamma: np.asarray(
        diffusion.sample(
            MODEL, GradientEstimation(gamma), PRESERVING, times, jnp.asarray(START)
        ).value
    )
    ddim, half, full = (run(gamma) for gamma in (1.0, 1.5, 2.0))
    np.testing.assert_allclose(full - half, -(ddim - half), rtol=0.1)
    exact = diffusion.sample(MODEL, diffusion.Heun(), PRESERVING, times, jnp.asarray(START)).value
    assert np.abs(half - exact).max() < 0.02 * np.abs(ddim - exact).max()


@pytest.mark.parametrize("schedule", [PRESERVING, EXPLODING, diffusion.RectifiedFlow()])
def test_levels_fall_by_one_factor_and_then_to_zero(schedule):
    level = lambda t: schedule.sigma(t) / schedule.alpha(t)
    times = diffusion.log_linear(schedule, 8)
    assert len(times) == 9
    assert level(times)[-1] == 0
    np.testing.assert_allclose(times[[0, -2]], [schedule.start, schedule.end], rtol=1e-12)
    factors = level(times)[1:-1] / level(times)[:-2]
    np.testing.assert_allclose(factors, factors[0], rtol=1e-9)
    inner = diffusion.log_linear(schedule, 4, 3.0, 0.5, to_zero=False)
    np.testing.assert_allclose(level(inner), np.geomspace(3.0, 0.5, 5), rtol=1e-9)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_distance_to_a_subspace_falls_with_the_level_and_to_zero(gamma):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 2)))[0]
    plane = diffusion.DistanceFunction(lambda x: x @ basis @ basis.T)
    for schedule in (EXPLODING, PRESERVING):
        times = diffusion.log_linear(schedule, 10)
        x = jnp.asarray(np.random.default_rng(1).normal(size=(7, 5)))
        run = diffusion.sample(
            plane.denoiser(), GradientEstimation(gamma), schedule, times, x, trace=True
        )
        alpha = schedule.alpha(times)[1:, None, None]
        distance = np.asarray(plane.distance(run.path / alpha))
        level = (schedule.sigma(times) / schedule.alpha(times))[1:-1, None]
        first = plane.distance(x / schedule.alpha(times[0])) * schedule.alpha(times[0])
        wanted = np.broadcast_to(first / schedule.sigma(times[0]), (9, 7))
        np.testing.assert_allclose(distance[:-1] / level, wanted, rtol=1e-10)
        np.testing.assert_allclose(distance[-1], 0, atol=1e-12)


def test_the_distance_function():
    ball = diffusion.DistanceFunction(
        lambda x: x / jnp.maximum(1, jnp.linalg.norm(x, axis=-1, keepdims=True))
    )
    x = jnp.array([[3.0, 4.0], [0.3, 0.4], [0.0, -2.0]])
    np.testing.assert_allclose(ball.distance(x), [4, 0, 1], atol=1e-12)
    np.testing.assert_allclose(ball(x), [8, 0, 0.5], atol=1e-12)
    np.testing.assert_allclose(jax.vmap(jax.grad(ball))(x), ball.gradient(x), atol=1e-12)
    node = PRESERVING.nodes(0.5)
    np.testing.assert_allclose(
        ball.denoiser().data(x * node.alpha, node), x - ball.gradient(x), atol=1e-12
    )


@pytest.mark.parametrize("smoothing", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_the_ideal_denoiser_is_the_posterior_mean(smoothing, dtype):
    rng = np.random.default_rng(0)
    points, x = rng.normal(size=(20, 3)) + 5, rng.normal(size=(4, 3)) + 4
    node = PRESERVING.nodes(0.2)
    model = diffusion.IdealDenoiser(jnp.asarray(points, dtype), smoothing)
    wanted = []
    for row in x:
        variance = node.sigma**2 + (node.alpha * smoothing) ** 2
        squares = ((row - node.alpha * points) ** 2).sum(1)
        weights = np.exp(-(squares - squares.min()) / (2 * variance))
        gain = node.alpha * smoothing**2 / variance
        means = points + gain * (row - node.alpha * points)
        wanted.append(weights @ means / weights.sum())
    found = model.data(jnp.asarray(x, dtype), node)
    assert found.dtype == dtype
    rtol = 2e-5 if dtype == jnp.float32 else 1e-11
    np.testing.assert_allclose(found, wanted, rtol=rtol)
    noise = model.noise(jnp.asarray(x, dtype), node)
    np.testing.assert_allclose(node.alpha * found + node.sigma * noise, x, rtol=rtol)
    np.testing.assert_allclose(model.data(jnp.asarray(x[0], dtype), node), found[0], rtol=rtol)


def sphere(dimension):
    """Its distance, and the ideal denoiser of many points that lie evenly on it."""
    project = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    if dimension == 2:
        angles = 2 * np.pi * np.arange(500) / 500
        points = np.stack([np.cos(angles), np.sin(angles)], 1)
    else:  # a spiral along the golden angle
        height = 1 - (2 * np.arange(4000) + 1) / 4000
        angles = np.pi * (3 - 5**0.5) * np.arange(4000)
        round_ = np.sqrt(1 - height**2)
        points = np.stack([round_ * np.cos(angles), round_ * np.sin(angles), height], 1)
    return diffusion.DistanceFunction(project), diffusion.IdealDenoiser(jnp.asarray(points))


@pytest.mark.parametrize("dimension", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_denoising_is_projection_at_small_levels(dimension):
    distance, model = sphere(dimension)
    rng = np.random.default_rng(0)
    on = rng.normal(size=(200, dimension))
    on /= np.linalg.norm(on, axis=1, keepdims=True)
    errors = []
    for level in (0.2, 0.1, 0.05):
        x = jnp.asarray(on * (1 + rng.choice([-1, 1], (200, 1)) * dimension**0.5 * level))
        node = EXPLODING.nodes(np.float64(level))
        errors.append(diffusion.relative_projection_error(model, distance, x, node).max())
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 0.1


@pytest.mark.parametrize("dimension", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_measured_distances_keep_the_bounds_of_admissible_levels(dimension):
    distance, model = sphere(dimension)
    eta, nu, steps = 0.15, 1.2, 15
    rate = diffusion.constant_rate(eta, nu, steps)
    levels = 0.1 * (1 - rate) ** np.arange(steps + 1)
    assert diffusion.admissible(levels, eta, nu)
    rng = np.random.default_rng(0)
    on = rng.normal(size=(1000, dimension))
    on /= np.linalg.norm(on, axis=1, keepdims=True)
    away = dimension**0.5 * rng.choice([-1, 1], (1000, 1))
    x = jnp.asarray(on * (1 + away * levels[0]))
    run = diffusion.sample(model, diffusion.DDIM(), EXPLODING, levels, x, trace=True)
    ratio = distance.distance(run.path) / (dimension**0.5 * levels[1:, None])
    assert np.all((ratio >= 1 / nu) & (ratio <= nu))
    # and the premise holds along the run
    path = jnp.concatenate([x[None], run.path[:-1]])
    for point, level in zip(path, levels[:-1], strict=True):
        node = EXPLODING.nodes(np.float64(level))
        assert diffusion.relative_projection_error(model, distance, point, node).max() <= eta


def test_admissible_levels_against_the_worst_case_step_by_step():
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(200):
        eta, nu = rng.uniform(0, 0.5), rng.uniform(1, 2)
        levels = np.cumprod(np.r_[5.0, 1 - rng.uniform(0.01, 0.6, rng.integers(1, 8))])
        low = high = levels[0]
        good = True
        for before, after in itertools.pairwise(levels):
            b = 1 - after / before
            low, high = (1 - b * (1 + eta)) * low, (1 - b * (1 - eta)) * high
            good = good and low >= after / nu and high <= nu * after
        assert diffusion.admissible(levels, eta, nu) == good
        verdicts.add(good)
    assert verdicts == {True, False}
    for eta, nu, steps in ((0.1, 1.5, 1), (0.3, 2.0, 10), (0.05, 1.1, 100)):
        rate = diffusion.constant_rate(eta, nu, steps)
        path = lambda b, steps=steps: (1 - b) ** np.arange(steps + 1)
        assert diffusion.admissible(path(rate), eta, nu)
        assert not diffusion.admissible(path(1.001 * rate), eta, nu)
        assert diffusion.admissible(path(0.999 * rate), eta, nu)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: GradientEstimation(0.9), ValueError, "gamma"),
        (lambda: diffusion.log_linear(EXPLODING, 0), ValueError, "num_steps"),
        (lambda: diffusion.log_linear(EXPLODING, 4, start=100.0), ValueError, "start <="),
        (lambda: diffusion.log_linear(EXPLODING, 4, end=1e-4), ValueError, "end < start"),
        (lambda: diffusion.log_linear(EXPLODING, 4, 0.1, 0.2), ValueError, "end < start"),
        (lambda: diffusion.DistanceFunction(3), TypeError, "callable"),
        (lambda: diffusion.IdealDenoiser(jnp.ones(3)), ValueError, "matrix"),
        (lambda: diffusion.IdealDenoiser(jnp.ones((3, 2)), -0.1), ValueError, "smoothing"),
        (lambda: diffusion.admissible([1.0, 2.0], 0.1, 1.5), ValueError, "fall"),
        (lambda: diffusion.admissible([1.0, 0.0], 0.1, 1.5), ValueError, "fall"),
        (lambda: diffusion.admissible([2.0, 1.0], 1.0, 1.5), ValueError, "eta"),
        (lambda: diffusion.admissible([2.0, 1.0], 0.1, 0.5), ValueError, "nu"),
        (lambda: diffusion.constant_rate(0.0, 1.5, 3), ValueError, "eta"),
        (lambda: diffusion.constant_rate(0.1, 1.5, 0), ValueError, "num_steps"),
    ],
)
def test_bad_input_raises(make, error, match):
    with pytest.raises(error, match=match):
        make()
