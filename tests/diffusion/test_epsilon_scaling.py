"""Scaled noise, and the measures of exposure bias, against formulas and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import diffusion
from jaxopt_ext.core import distances

SCHEDULE = diffusion.VariancePreserving(end=0.01)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(5, 3)))
NODE = SCHEDULE.nodes(0.4)
NETWORK = lambda x, node: jnp.tanh(x) + 0.3
PREDICTIONS = [diffusion.Noise(), diffusion.Data(), diffusion.Preconditioned(0.5)]


@pytest.mark.parametrize("predicts", PREDICTIONS, ids=["noise", "data", "preconditioned"])
def test_noise_is_divided_and_data_follow(dtype, predicts):
    x = X.astype(dtype)
    model = diffusion.Denoiser(NETWORK, predicts)
    same = diffusion.EpsilonScaled(model, 1.0)
    np.testing.assert_array_equal(same.noise(x, NODE), model.noise(x, NODE))
    np.testing.assert_array_equal(same.data(x, NODE), model.data(x, NODE))
    scaled = diffusion.EpsilonScaled(model, 1.25)
    noise, data = scaled.noise(x, NODE), scaled.data(x, NODE)
    assert noise.dtype == data.dtype == dtype
    tolerance = dict(rtol=2e-6, atol=2e-6) if dtype == jnp.float32 else dict(rtol=1e-12)
    np.testing.assert_allclose(noise, np.asarray(model.noise(x, NODE)) / 1.25, **tolerance)
    np.testing.assert_allclose(NODE.alpha * data + NODE.sigma * noise, x, **tolerance)
    # The form for levels of noise alone, x - (x - D) / scale.
    flat = diffusion.Node(0.7, 1.0, 0.7)
    wanted = np.asarray(x) - (np.asarray(x) - np.asarray(model.data(x, flat))) / 1.25
    np.testing.assert_allclose(scaled.data(x, flat), wanted, **tolerance)


def test_a_scale_by_steps_counts_from_the_data():
    times = diffusion.uniform_time(SCHEDULE, 4)
    scale = diffusion.linear_scale(0.1, 1.2, times)
    np.testing.assert_allclose(scale.values, [1.5, 1.4, 1.3, 1.2])
    found = [scale.at(SCHEDULE.nodes(t)) for t in times]
    np.testing.assert_allclose(found, [1.5, 1.4, 1.3, 1.2, 1.2], rtol=1e-12)  # the end has no step
    np.testing.assert_allclose(scale.at(SCHEDULE.nodes(times[:2].mean())), 1.45, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2])
def test_every_use_of_the_model_is_scaled(steps):
    """A run of DDIM, or of Heun with both slopes, against a loop."""
    sampler = diffusion.DDIM() if steps == 1 else diffusion.Heun()
    times = diffusion.uniform_time(SCHEDULE, 5)
    scale = diffusion.linear_scale(0.02, 1.01, times)
    model = diffusion.EpsilonScaled(diffusion.Denoiser(NETWORK), scale)
    found = diffusion.sample(model, sampler, SCHEDULE, times, X).value
    _, a, s = SCHEDULE.nodes(times)
    index = [4, 3, 2, 1, 0, 0]
    e = lambda y, j: (np.tanh(a[j] * y) + 0.3) / (1.01 + 0.02 * index[j])
    y = np.asarray(X) / a[0]
    for j in range(5):
        step = s[j + 1] / a[j + 1] - s[j] / a[j]
        slope = e(y, j)
        if steps == 2:
            slope = (slope + e(y + step * slope, j + 1)) / 2
        y = y + step * slope
    np.testing.assert_allclose(found, a[-1] * y, rtol=1e-10)


def test_it_goes_around_guidance_and_inside_of_thresholding():
    low, high = (diffusion.Denoiser(lambda x, node, c=c: c * jnp.cos(x)) for c in (0.5, 2.0))
    guided = diffusion.Guided(high, low, 3.0)
    scaled = diffusion.EpsilonScaled(guided, 1.1)
    np.testing.assert_allclose(scaled.noise(X, NODE), 5.0 * np.cos(X) / 1.1, rtol=1e-12)
    cut = diffusion.Thresholded(scaled, ratio=1.0, floor=0.01)
    data = np.asarray(scaled.data(X, NODE))
    wanted = data / np.abs(data).max(1, keepdims=True)
    np.testing.assert_allclose(cut.data(X, NODE), wanted, rtol=1e-12)


def test_errors_of_the_predicted_data_widen_a_step_by_the_known_variance():
    """One ancestral step with prediction x0 + e * normal: the variance of what comes out."""
    times, error, draws = np.array([0.5, 0.4]), 0.8, 20_000
    _, a, s = SCHEDULE.nodes(times)
    data = np.array([[0.7, -1.0]])
    spread = jnp.array(RNG.normal(size=(draws, 2)))

    def bias(error):
        error = jnp.array(error)
        model = diffusion.Denoiser(lambda x, node: data + error * spread, diffusion.Data())
        run = diffusion.DDIM(1.0), SCHEDULE, times, jnp.array(data), jax.random.key(1)
        return np.asarray(diffusion.exposure_bias(model, *run, draws=draws))

    found, exact = bias(error), bias(0.0)
    beta = 1 - (a[0] / a[1]) ** 2
    wide = np.sqrt(s[1] ** 2 + (a[1] * beta / s[0] ** 2 * error) ** 2)
    noise = 4 * wide / np.sqrt(4 * draws)
    assert abs(np.sqrt(found[0]) - (wide - s[1])) < noise < (wide - s[1]) / 2
    assert np.sqrt(exact[0]) < noise


def narrow(num):
    means = np.random.default_rng(7).normal(size=(4, 8))
    mixture = diffusion.GaussianMixture(means, np.full(4, 0.35))
    return mixture, jax.jit(lambda key: mixture.sample(key, num))(jax.random.key(7))


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [100, 1000])
def test_the_gap_of_an_exact_model_is_small_and_that_of_a_wide_one_is_not(num_steps):
    mixture, data = narrow(5000 if num_steps == 1000 else 400)
    times = diffusion.uniform_time(SCHEDULE, num_steps)
    gap = lambda model: diffusion.noise_norm_gap(
        model, diffusion.DDIM(1.0), SCHEDULE, times, data, jax.random.key(2)
    )
    exact = gap(mixture.denoiser())
    assert exact.gap.shape == (num_steps,)
    assert np.abs(exact.gap).max() < (0.02 if num_steps == 1000 else 0.1)
    np.testing.assert_allclose(exact.ratio, exact.sampled / exact.forward)
    # Scaled too strongly, runs are too narrow; noisy data are compared with as they are.
    scaled = gap(diffusion.EpsilonScaled(mixture.denoiser(), 1.3))
    np.testing.assert_array_equal(scaled.forward, exact.forward)
    assert np.abs(scaled.gap).max() > 0.2


def test_norms_are_those_of_a_loop():
    x = np.asarray(X)
    data = {"a": jnp.array(x[:, :1]), "b": jnp.array(x[:, 1:])}
    model = diffusion.Denoiser(lambda x, node: jax.tree.map(lambda a: a * (1 + node.sigma), x))
    times = diffusion.uniform_time(SCHEDULE, 3)
    found = diffusion.noise_norm_gap(
        model, diffusion.DDIM(), SCHEDULE, times, data, jax.random.key(0)
    )
    start = diffusion.prior(SCHEDULE, data, jax.random.split(jax.random.key(0), 3)[0])
    y = np.concatenate([start["a"], start["b"]], 1)
    _, a, s = SCHEDULE.nodes(times)
    for j in range(3):
        e = y * (1 + s[j])
        np.testing.assert_allclose(found.sampled[j], np.linalg.norm(e, axis=1).mean() / 3**0.5)
        y = a[j + 1] / a[j] * (y - s[j] * e) + s[j + 1] * e


def test_a_fit_finds_the_divisor_that_was_taken_away():
    """A model that is exact but for a factor needs that factor back."""
    mixture, data = narrow(100)
    exact = mixture.denoiser()
    wide = diffusion.Denoiser(lambda x, node: 1.5 * exact.noise(x, node))
    times = diffusion.uniform_time(SCHEDULE, 20)
    tried = np.array([1.0, 1.25, 1.5, 1.75])
    run = diffusion.DDIM(), SCHEDULE, times, data, jax.random.key(3)
    distance = jax.jit(distances.energy_distance)
    fitted = diffusion.fit_scale(wide, *run, candidates=tried, distance=distance)
    assert fitted.uniform == 1.5
    np.testing.assert_allclose(np.mean(fitted.linear.values), fitted.uniform, rtol=1e-6)
    ratio = diffusion.noise_norm_gap(wide, *run).ratio
    slope = np.polyfit(np.arange(20)[::-1], ratio, 1)[0]
    np.testing.assert_allclose(np.diff(fitted.linear.values), -slope, rtol=1e-6)


@pytest.mark.slow
def test_a_fit_by_norms_leaves_an_exact_model_as_it_is():
    mixture, data = narrow(100)
    times = diffusion.uniform_time(SCHEDULE, 20)
    run = diffusion.DDIM(), SCHEDULE, times, data, jax.random.key(3)
    fitted = diffusion.fit_scale(mixture.denoiser(), *run, candidates=[1.0, 1.25, 1.5])
    assert fitted.uniform == 1.0
    scaled = diffusion.EpsilonScaled(mixture.denoiser(), jnp.asarray(1.5))
    gap = diffusion.noise_norm_gap(scaled, *run).gap
    np.testing.assert_allclose(fitted.scores[2], np.abs(gap).mean(), rtol=1e-9)


def test_new_numbers_do_not_trace_again(trace_count):
    times = diffusion.uniform_time(SCHEDULE, 5)
    model = diffusion.Denoiser(NETWORK)

    def run(value):
        scaled = diffusion.EpsilonScaled(model, jnp.asarray(value))
        return diffusion.sample(scaled, diffusion.DDIM(), SCHEDULE, times, X).value

    run(1.0)
    with trace_count() as traces:
        run(1.1)
    assert traces.count == 0


def test_bad_input_is_refused():
    model = diffusion.Denoiser(NETWORK)
    times = diffusion.uniform_time(SCHEDULE, 5)
    with pytest.raises(ValueError, match="positive"):
        diffusion.EpsilonScaled(model, 0.0)
    with pytest.raises(TypeError, match="Denoiser"):
        diffusion.EpsilonScaled(NETWORK, 1.0)
    with pytest.raises(ValueError, match="one for each step"):
        diffusion.TabulatedScale([1.0, 1.0], times)
    with pytest.raises(ValueError, match="fall"):
        diffusion.linear_scale(0.0, 1.0, times[::-1])
    with pytest.raises(ValueError, match="positive"):
        diffusion.linear_scale(-1.0, 1.0, times)
    fit = lambda tried: diffusion.fit_scale(
        model, diffusion.DDIM(), SCHEDULE, times, X, jax.random.key(0), candidates=tried
    )
    with pytest.raises(ValueError, match="candidates"):
        fit([])
    with pytest.raises(ValueError, match="positive"):
        fit([-1.0])
    with pytest.raises(ValueError, match="draws"):
        diffusion.exposure_bias(
            model, diffusion.DDIM(), SCHEDULE, times, X, jax.random.key(0), draws=1
        )
