"""Averages of weights against weighted sums by numpy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from jaxopt_ext import diffusion

PATH = np.cumsum(np.random.default_rng(0).normal(size=(300, 3)), axis=0)


def followed(average, path=PATH, dtype=jnp.float64):
    def step(carry, x):
        number, value = carry
        value = average.update(value, x, number)
        return (number + 1, value), value

    start = jnp.asarray(1), average.init(jnp.full(3, 7.0, dtype))
    return jax.lax.scan(step, start, jnp.asarray(path, dtype))[1]


def test_power_functions_weigh_by_powers(dtype):
    for width in (0.05, 0.10, 0.25):
        gamma = diffusion.power_exponent(width)
        t = np.arange(1, 301)
        found = followed(diffusion.PowerFunctionAverage(width), dtype=dtype)
        assert found.dtype == dtype
        # The weight of the k-th point after n steps is a product of what was left of it.
        left = (1 - 1 / t) ** (gamma + 1)
        weights = np.array([(1 - left[k]) * np.prod(left[k + 1 :]) for k in range(300)])
        np.testing.assert_allclose(np.sum(weights), 1)
        tolerance = 1e-10 if dtype == jnp.float64 else 2e-5
        np.testing.assert_allclose(found[-1], weights @ PATH, rtol=tolerance)
        # And that is a power, up to the steps' being of size one.
        middle = weights[150:] / t[150:] ** gamma
        assert np.ptp(middle) < 0.2 * np.mean(middle)
        np.testing.assert_allclose(found[0], PATH[0], rtol=1e-6)  # no trace of the start


def test_widths_and_powers():
    np.testing.assert_allclose(diffusion.power_exponent(0.05), 16.97, atol=5e-3)
    np.testing.assert_allclose(diffusion.power_exponent(0.10), 6.94, atol=5e-3)
    for width in (0.01, 0.05, 0.1, 0.2, 0.28):
        gamma = diffusion.power_exponent(width)
        np.testing.assert_allclose(diffusion.power_width(gamma), width, rtol=1e-10)
        density = lambda t, gamma=gamma: (gamma + 1) * t**gamma
        moment = lambda k, p=density: integrate.quad(lambda t: t**k * p(t), 0, 1, epsabs=1e-12)[0]
        np.testing.assert_allclose(np.sqrt(moment(2) - moment(1) ** 2), width, rtol=1e-7)
    for bad in (0.0, 0.29, -1):
        with pytest.raises(ValueError, match="sigma_rel"):
            diffusion.PowerFunctionAverage(bad)
    with pytest.raises(ValueError, match="gamma"):
        diffusion.power_width(-1.0)


def test_exponential_averages(dtype):
    tolerance = 1e-10 if dtype == jnp.float64 else 2e-5
    for warmup in (None, 0.09):
        found = followed(diffusion.ExponentialAverage(0.98, warmup), dtype=dtype)
        wanted, value = [], PATH[0]
        for t, x in enumerate(PATH, 1):
            life = np.log(0.5) / np.log(0.98)
            beta = 0.5 ** (1 / (life if warmup is None else min(life, warmup * t)))
            value = x if t == 1 else beta * value + (1 - beta) * x
            wanted.append(value)
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
    with pytest.raises(ValueError, match="decay"):
        diffusion.ExponentialAverage(1.0)
    with pytest.raises(ValueError, match="warmup"):
        diffusion.ExponentialAverage(0.9, 0.0)


def test_what_does_not_change_stays_bit_for_bit():
    network = eqx.nn.MLP(2, 2, 3, 1, key=jax.random.key(0))
    average = diffusion.PowerFunctionAverage(0.1)
    value = average.init(network)
    for step in range(1, 5):
        value = average.update(value, network, step)
    assert eqx.tree_equal(value, network)
