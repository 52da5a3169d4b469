"""The training of EDM2, and averages found afterwards."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn import numpy_draws
from scipy import integrate, optimize

from jaxopt_ext import diffusion, training
from jaxopt_ext.diffusion import edm2, posthoc

KEY = jax.random.key(0)
NUMPY = np.random.default_rng(0)


def test_the_loss_is_a_loop_of_numpy_and_its_minimum_the_logarithm_of_the_error():
    class Wrong(eqx.Module):
        def __call__(self, x, node):
            return 0.3 * x

    denoiser = diffusion.Denoiser(Wrong(), diffusion.Preconditioned(0.8))
    model = diffusion.WithUncertainty(denoiser, 16, key=KEY)
    context = training.Context(jax.random.key(1), jnp.ones((), jnp.int32), None)
    x = jax.random.normal(KEY, (32, 3))
    loss, metrics = jax.jit(diffusion.UncertaintyLoss(0.8).__call__)(model, x, context)
    level_key, key = jax.random.split(context.key)
    sigma = np.exp(-0.4 + np.asarray(jax.random.normal(level_key, (32,))))
    noise = np.asarray(jax.random.normal(jax.random.split(key)[0], (32, 3)))
    f, p = model.fourier.frequencies, model.fourier.phases
    row = np.asarray(model.linear.weight)[0]
    row = row / (1e-4 + np.sqrt(np.mean(row**2))) / 4
    first = second = 0.0
    for i in range(32):
        total = sigma[i] ** 2 + 0.64
        noisy = np.asarray(x[i]) + sigma[i] * noise[i]
        data = 0.64 / total * noisy + sigma[i] * 0.8 / np.sqrt(total) * 0.3 * noisy / np.sqrt(total)
        error = total / (sigma[i] * 0.8) ** 2 * np.mean((data - np.asarray(x[i])) ** 2)
        u = row @ (np.sqrt(2) * np.cos(f * np.log(sigma[i]) / 4 + p))
        first, second = first + error / 32, second + (error / np.exp(u) + u) / 32
    np.testing.assert_allclose(metrics["denoising"], first, rtol=1e-9)
    np.testing.assert_allclose(loss, second, rtol=1e-9)


def test_rates():
    rate = diffusion.inverse_sqrt_schedule(0.01, 500, 100)
    t = np.array([0, 50, 100, 500, 2000])
    wanted = 0.01 * np.array([0, 0.5, 1, 1, 0.5])
    np.testing.assert_allclose(jax.vmap(rate)(t), wanted, rtol=1e-6)
    assert diffusion.inverse_sqrt_schedule(0.01, 500)(0) == 0.01
    tx = diffusion.edm2_optimizer(0.01)
    g = jnp.array([1.0, jnp.nan, -jnp.inf])
    updates, _ = tx.update(g, tx.init(g), g)
    np.testing.assert_allclose(updates, [-0.01, 0, 0], rtol=1e-5)
    with pytest.raises(ValueError, match="peak"):
        diffusion.inverse_sqrt_schedule(0.0)
    with pytest.raises(ValueError, match="ramp"):
        diffusion.inverse_sqrt_schedule(0.1, 5, -1)


def density(t, width):
    gamma = optimize.brentq(lambda g: (g + 1) / ((g + 2) ** 2 * (g + 3)) - width**2, 1e-9, 1e4)
    return lambda tau: (gamma + 1) * tau**gamma / t ** (gamma + 1) * (tau <= t)


def test_products_of_profiles_are_integrals():
    times, widths = np.array([3.0, 5.0, 8.0]), np.array([0.05, 0.2, 0.1])
    gammas = np.array([diffusion.power_exponent(w) for w in widths])
    found = posthoc._products(times, gammas, times, gammas)
    for i in range(3):
        for j in range(3):
            p, q = density(times[i], widths[i]), density(times[j], widths[j])
            end = min(times[i], times[j])
            wanted = integrate.quad(lambda tau: p(tau) * q(tau), 0, end, epsabs=1e-13)[0]  # noqa: B023
            np.testing.assert_allclose(found[i, j], wanted, rtol=1e-8)


def walk(num_steps, count):
    """A random walk's averages of widths 0.05 and 0.10 at a few times, and of others at the end."""
    path = np.cumsum(np.random.default_rng(0).normal(size=(num_steps, 20)), axis=0)
    widths = np.array([0.05, 0.10, 0.03, 0.075, 0.15, 0.20, 0.25])
    t = np.arange(1, num_steps + 1)
    values, kept, every = np.zeros((7, 20)), [], num_steps // count
    beta = (1 - 1 / t[:, None]) ** (np.array([diffusion.power_exponent(w) for w in widths]) + 1)
    for i, x in enumerate(path):
        values = beta[i][:, None] * values + (1 - beta[i])[:, None] * x
        if (i + 1) % every == 0:
            kept.append(values[:2])
    return np.stack(kept, 1), every * np.arange(1, count + 1), widths[2:], values[2:]


@pytest.mark.parametrize("count", [8, 32])
def test_averages_found_afterwards_are_those_followed(count):
    kept, steps, widths, wanted = walk(4000, count)
    # A little above what five walks gave.
    bounds = {32: [6e-4, 4e-5, 1e-4, 1e-3, 1e-2], 8: [2e-2, 2e-3, 6e-3, 2e-2, 8e-2]}[count]
    for width, value, bound in zip(widths, wanted, bounds, strict=True):
        found = diffusion.posthoc_average(tuple(kept), steps, (0.05, 0.10), 4000, width)
        error = np.linalg.norm(found - value) / np.linalg.norm(value)
        assert error < bound, (width, error)
    for i, width in enumerate((0.05, 0.10)):  # one that was kept is itself
        for j in (0, count - 1):
            found = diffusion.posthoc_average(tuple(kept), steps, (0.05, 0.10), steps[j], width)
            np.testing.assert_allclose(found, kept[i, j], rtol=1e-9)
    x = diffusion.posthoc_coefficients(steps, np.full(count, 0.1), steps[-1], 0.1)
    np.testing.assert_allclose(x, np.eye(count)[-1], atol=1e-10)


def test_averages_of_a_training():
    """Snapshots of two widths, taken by the driver, give the third that was followed."""

    def loss(model, batch, context):
        return jnp.sum((model["w"].weight - batch) ** 2), {}

    model = {"w": eqx.nn.Linear(2, 2, use_bias=False, key=KEY), "name": "walk"}
    averages = tuple(map(diffusion.PowerFunctionAverage, (0.05, 0.10, 0.15)))
    method = training.GradientStep(loss, optax.sgd(0.02), averages)
    taken = training.Snapshots(method, 50, 8, of=lambda state: state.averaged[:2])
    batches = np.cumsum(np.random.default_rng(0).normal(size=(400, 2, 2)), axis=0)
    fit = training.fit(taken, model, batches, progress=False)
    found = diffusion.posthoc_average(
        fit.state.snapshots, 50 * np.arange(1, 9), (0.05, 0.10), 400, 0.15, like=model
    )
    assert found["name"] == "walk"
    wanted = fit.state.averaged[2]["w"].weight
    np.testing.assert_allclose(found["w"].weight, wanted, rtol=0.02)
    assert np.max(np.abs(fit.state.averaged[1]["w"].weight / wanted - 1)) > 0.05


def test_bad_input():
    ask = diffusion.posthoc_coefficients
    with pytest.raises(ValueError, match="sigma_rel"):
        ask([1, 2], [0.1, 0.3], 2, 0.1)
    with pytest.raises(ValueError, match="last stored"):
        ask([1, 2], [0.1, 0.1], 3, 0.1)
    with pytest.raises(ValueError, match="nearly the same"):
        ask([5000, 5000.0000001], [0.1, 0.1], 5000, 0.1)
    with pytest.raises(ValueError, match="vectors"):
        ask([1, 2], [0.1], 2, 0.1)
    with pytest.raises(ValueError, match="at least 1"):
        ask([0, 2], [0.1, 0.1], 2, 0.1)
    with pytest.raises(ValueError, match="leading axes"):
        diffusion.posthoc_average((np.ones((3, 2)),), [1, 2], (0.1,), 2, 0.1)
    with pytest.raises(ValueError, match="sigma_data"):
        diffusion.UncertaintyLoss(0.0)


def test_dropout_is_between_the_layers_of_a_block_and_in_losses_only():
    rate, key = 0.4, jax.random.key(3)
    pair = jax.jit(lambda: [edm2.dropped(jnp.ones(20_000), rate, key, place) for place in (1, 2)])
    kept, other = map(np.asarray, pair())
    np.testing.assert_allclose(np.unique(kept), [0, 1 / (1 - rate)])
    assert abs(np.mean(kept) - 1) < 0.03
    assert not np.array_equal(kept, other)
    with numpy_draws():
        layer = edm2.MPLayer(6, 3, rate, 1, key=KEY)
        block = edm2.MPBlock(2, 2, 3, ascending=True, dropout=rate, key=KEY)
    with numpy_draws():
        network = diffusion.EDM2MLP((3,), 8, dropout=rate, key=KEY)
    with numpy_draws():
        networks = diffusion.EDM2MLP((3,), 8, key=KEY), network
    hidden, images, x = (jnp.array(NUMPY.normal(size=n)) for n in (6, (2, 4, 4), (4, 3)))

    @eqx.filter_jit
    def outputs(layer, block, condition, hidden, images):
        seen = diffusion.pixel_norm(hidden)
        inner = diffusion.mp_silu(layer.first(diffusion.mp_silu(seen)))
        told = condition, edm2.Dropping(condition, key)
        between = inner, edm2.dropped(inner, rate, key, 1)
        wanted = [diffusion.mp_sum(seen, layer.second(x), edm2.BALANCE) for x in between]
        return [layer(hidden, c) for c in told], wanted, [block(images, c) for c in told]

    found, wanted, blocks = outputs(layer, block, jnp.ones(3), hidden, images)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert not np.allclose(*blocks)

    @eqx.filter_jit
    def losses(networks, x):
        loss = diffusion.DenoisingLoss(diffusion.LogNormal(), diffusion.EDMWeighting(0.8))
        context = training.Context(jax.random.key(0), jnp.ones((), jnp.int32), None)
        out = []
        for network in networks:
            network = eqx.tree_at(lambda network: network.gain, network, jnp.ones(()))
            model = diffusion.Denoiser(network, diffusion.Preconditioned(0.8))
            node = diffusion.Node(1.0, 1.0, 1.0)
            out.append((model.data(x, node), loss(model, x, context)[0]))
        return out

    (plain, loss), (same, other) = losses(networks, x)
    np.testing.assert_array_equal(plain, same)
    assert abs(loss - other) > 1e-3
    for make in (diffusion.EDM2MLP, diffusion.EDM2UNet):
        with pytest.raises(ValueError, match="dropout"):
            jax.eval_shape(lambda key, make=make: make((1, 8, 8), dropout=1.0, key=key), KEY)
