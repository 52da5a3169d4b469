"""Models made of models, against their formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import diffusion

NODE = diffusion.Node(0.5, 0.8, 0.6)
X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))


def constant(value):
    return diffusion.Denoiser(lambda x, node: value + 0.1 * x)


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_guidance_extrapolates(scale):
    model = diffusion.Guided(constant(2.0), constant(-1.0), scale)
    wanted = -1.0 + scale * 3.0 + 0.1 * X
    np.testing.assert_allclose(model.noise(X, NODE), wanted, rtol=1e-12)
    back = 0.8 * model.data(X, NODE) + 0.6 * model.noise(X, NODE)
    np.testing.assert_allclose(back, X, atol=1e-12)


def test_guidance_in_an_interval_only():
    model = diffusion.Guided(constant(2.0), constant(-1.0), 3.0, interval=(0.1, 0.8))
    plain = constant(2.0)
    np.testing.assert_allclose(model.noise(X, NODE), plain.noise(X, NODE) + 6.0)
    for ratio in (0.05, 0.9):
        node = diffusion.Node(0.5, 1.0, ratio)
        np.testing.assert_array_equal(model.noise(X, node), plain.noise(X, node))


def test_rescaled_guidance_keeps_the_size_of_each_sample():
    conditional = diffusion.Denoiser(lambda x, node: jnp.sin(3 * x))
    model = diffusion.Guided(conditional, constant(0.0), 4.0, rescale=0.7)
    c, u = np.sin(3 * np.asarray(X)), 0.1 * np.asarray(X)
    guided = u + 4 * (c - u)
    factor = c.std(1, keepdims=True) / guided.std(1, keepdims=True)
    wanted = 0.7 * guided * factor + 0.3 * guided
    np.testing.assert_allclose(model.noise(X, NODE), wanted, rtol=1e-10)
    one = diffusion.Guided(conditional, constant(0.0), 4.0, rescale=0.7, batch_ndim=0)
    np.testing.assert_allclose(one.noise(X[0], NODE), wanted[0], rtol=1e-10)


def test_one_network_for_both_conditions_is_called_once():
    calls = []

    def network(x, node, label):
        calls.append(label)
        return label * jnp.cos(x)

    model = diffusion.ClassifierFree(network, jnp.array(2.0), jnp.array(0.5), 3.0)
    two = [diffusion.Denoiser(lambda x, node, c=c: c * jnp.cos(x)) for c in (2.0, 0.5)]
    found = model.noise(X, NODE)
    assert len(calls) == 1
    np.testing.assert_allclose(found, diffusion.Guided(*two, 3.0).noise(X, NODE), rtol=1e-12)


def test_thresholding_cuts_each_sample_by_its_quantile():
    model = diffusion.Denoiser(lambda x, node: 2 * x, diffusion.Data())
    cut = diffusion.Thresholded(model, ratio=0.6)
    data = 2 * np.asarray(X)
    bound = np.maximum(np.quantile(np.abs(data), 0.6, axis=1, keepdims=True), 1.0)
    wanted = np.clip(data, -bound, bound) / bound
    np.testing.assert_allclose(cut.data(X, NODE), wanted, rtol=1e-12)
    noise = (np.asarray(X) - 0.8 * wanted) / 0.6
    np.testing.assert_allclose(cut.noise(X, NODE), noise, rtol=1e-10)
    assert np.abs(cut.data(X, NODE)).max() <= 1


def test_wrapped_models_are_sampled():
    exact = diffusion.GaussianMixture(jnp.array([[-2.0, 0.0], [2.0, 1.0]]), jnp.array([0.3, 0.4]))
    part = diffusion.GaussianMixture(jnp.array([[2.0, 1.0]]), jnp.array([0.4]))
    schedule = diffusion.VariancePreserving(end=0.01)
    model = diffusion.Guided(part.denoiser(), exact.denoiser(), 2.0)
    x = jax.random.normal(jax.random.key(0), (64, 2))
    times = diffusion.uniform_log_snr(schedule, 20)
    out = diffusion.sample(model, diffusion.DDIM(), schedule, times, x).value
    assert np.abs(out.mean(0) - np.array([2.0, 1.0])).max() < 0.3


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="unconditional"):
        diffusion.Guided(constant(0.0), None, 2.0)
    with pytest.raises(ValueError, match="interval"):
        diffusion.Guided(constant(0.0), constant(0.0), 2.0, interval=(1.0, 0.5))
    with pytest.raises(ValueError, match="rescale"):
        diffusion.Guided(constant(0.0), constant(0.0), 2.0, rescale=1.5)
    with pytest.raises(ValueError, match="same shapes"):
        diffusion.ClassifierFree(lambda x, node, c: x, jnp.zeros(2), jnp.zeros(3), 1.0)
    with pytest.raises(ValueError, match="ratio"):
        diffusion.Thresholded(constant(0.0), ratio=1.2)
