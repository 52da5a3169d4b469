"""Losses through samplers: gradients against differences, errors against closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn import drawn

from jaxopt_ext import diffusion, training
from jaxopt_ext.core.distances import RBF, squared_mmd
from jaxopt_ext.training import Context

VE = diffusion.VarianceExploding(start=10.0, end=0.05)
TIMES = np.append(np.geomspace(10.0, 0.05, 5), 0.0)
MIXTURE = diffusion.GaussianMixture(
    jnp.array([[-2.0, 0.0], [1.0, 1.0], [0.5, -2.0]]), jnp.array([0.6, 0.8, 0.5])
)


def sampled(num, seed):
    """Draws of the mixture, without a program."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, 3, num)
    means, scales = np.asarray(MIXTURE.means), np.asarray(MIXTURE.scales)
    return jnp.array(means[chosen] + scales[chosen, None] * rng.normal(size=(num, 2)))


DATA = sampled(32, 0)
CONTEXT = Context(jax.random.key(1), jnp.ones((), int), None)


class Bent(eqx.Module):
    """The mixture's denoiser with an error that can be trained away."""

    shift: jax.Array

    def __call__(self, x, node):
        return MIXTURE.data(x, node) + jnp.tanh(node.sigma) * self.shift


def bent(shift):
    return diffusion.Denoiser(Bent(jnp.asarray(shift, float)), diffusion.Data())


def mmd_loss(**options):
    return diffusion.MMDLoss(diffusion.DDIM(), VE, TIMES, RBF(0.5), **options)


def propagation(span, weight=1.0, growth=0.0, **options):
    denoising = diffusion.DenoisingLoss(diffusion.LogNormal(), diffusion.ConstantWeighting())
    sampler = diffusion.DDIM(1.0)
    return diffusion.PropagationLoss(
        denoising, sampler, VE, TIMES, span, weight, growth, RBF(0.5), **options
    )


LOSSES = {"mmd": mmd_loss, "propagation": lambda **options: propagation(3, **options)}


@pytest.mark.always(1)
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_differences_with_and_without_checkpoints(name):
    fun = lambda loss: lambda shift: loss(bent(shift), DATA, CONTEXT)[0]
    kept, again = (
        jax.jit(jax.value_and_grad(fun(LOSSES[name](checkpoint=c)))) for c in (False, True)
    )
    at, slope = np.array([0.3, -0.2]), again(np.array([0.3, -0.2]))[1]
    np.testing.assert_allclose(kept(at)[1], slope, rtol=1e-10)
    wanted = [(again(at + h)[0] - again(at - h)[0]) / 2e-5 for h in 1e-5 * np.eye(2)]
    np.testing.assert_allclose(slope, wanted, rtol=1e-6)


def test_the_loss_is_the_discrepancy_of_the_samples():
    features = lambda x: jnp.concatenate([x, x**2], 1)

    @jax.jit
    def both(data, key):
        starting, drawing = jax.random.split(key)
        x = 10.0 * jax.random.normal(jax.random.split(starting, 1)[0], data.shape)
        model = bent([0.3, -0.2])
        samples = diffusion.sample(model, diffusion.DDIM(), VE, TIMES, x, key=drawing).value
        loss = mmd_loss(features=features)(model, data, Context(key, CONTEXT.step, None))[0]
        return loss, squared_mmd(features(samples), features(data), RBF(0.5))

    np.testing.assert_allclose(*both(DATA, CONTEXT.key), rtol=1e-9)


def test_checkpoints_save_memory():
    network = drawn(lambda: diffusion.MLPDenoiser((2,), 64, 3, key=jax.random.key(0)))
    model = diffusion.Denoiser(network)
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    data = jnp.array(np.tile(DATA, (8, 1)))
    times = np.geomspace(10.0, 0.05, 21)

    def memory(checkpoint):
        loss = diffusion.MMDLoss(diffusion.DDIM(), VE, times, RBF(0.5), checkpoint=checkpoint)
        fun = lambda arrays: loss(eqx.combine(arrays, rest), data, CONTEXT)[0]
        compiled = jax.jit(jax.grad(fun)).lower(arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(True) < 0.5 * memory(False)


def test_finetuning_removes_an_error():
    data = sampled(600, 2)
    tx = optax.adam(0.05)
    done = diffusion.finetune_mmd(
        bent([0.6, -0.5]),
        data,
        diffusion.DDIM(),
        VE,
        TIMES,
        key=jax.random.key(3),
        num_steps=60,
        batch_size=64,
        tx=tx,
        kernel=RBF(0.2),
    )
    loss = np.asarray(done.metrics["loss"])
    assert loss[-20:].mean() < 0.4 * loss[:5].mean()


def test_of_one_law_the_estimate_is_zero_on_average():
    keys = jax.random.split(jax.random.key(5), (200, 2))
    draw = lambda k: squared_mmd(MIXTURE.sample(k[0], 64), MIXTURE.sample(k[1], 64), RBF(0.5))
    values = np.asarray(jax.jit(jax.vmap(draw))(keys))
    assert abs(values.mean()) < 3 * values.std() / 200**0.5


def test_errors_of_the_exact_denoiser_are_noise_and_of_a_bent_one_grow():
    data = sampled(800, 6)
    schedule = diffusion.VarianceExploding(start=20.0, end=0.05)
    times = np.geomspace(20.0, 0.05, 30)
    args = (diffusion.DDIM(1.0), schedule, times, data, jax.random.key(7), RBF(0.5))
    exact = bent([0.0, 0.0])  # a program is that of a bent one too
    cumulative = np.asarray(diffusion.cumulative_errors(exact, *args))
    assert np.abs(cumulative).max() < 0.02
    modular = np.asarray(diffusion.modular_errors(exact, *args))
    assert np.abs(modular).max() < 0.01
    worse = np.asarray(diffusion.cumulative_errors(bent([0.6, -0.5]), *args))
    assert worse[-1] > 0.02
    single = np.asarray(diffusion.modular_errors(bent([0.6, -0.5]), *args))
    assert worse[-1] > 3 * np.abs(single).max()


def test_the_regulariser_is_the_error_at_a_random_step():
    """With one step it is a modular error, with all steps a cumulative one."""
    model, steps = bent([0.3, -0.2]), len(TIMES) - 1

    @jax.jit
    def losses(model, data, key):
        choosing, carrying = jax.random.split(jax.random.fold_in(key, 1))
        index = jax.random.randint(choosing, (), 1, steps + 1)
        context = Context(key, CONTEXT.step, None)
        every = propagation(steps), propagation(1, 0.3, 0.1)
        return index, carrying, [loss(model, data, context) for loss in every]

    index, carrying, ((plain, metrics), (mixed, parts)) = losses(model, DATA, CONTEXT.key)
    index = int(index)
    args = (model, diffusion.DDIM(1.0), VE, TIMES, DATA, carrying, RBF(0.5))
    np.testing.assert_allclose(plain, metrics["propagation"])
    for found, of in (
        (metrics, diffusion.cumulative_errors),
        (parts, diffusion.modular_errors),
    ):
        error = np.asarray(of(*args))[index - 1]
        np.testing.assert_allclose(found["propagation"], error, rtol=1e-8)
    denoising, apart = float(parts["denoising"]), float(parts["propagation"])
    wanted = 0.7 * denoising + 0.3 * np.exp(0.1 * index) * apart
    np.testing.assert_allclose(mixed, wanted, rtol=1e-10)


@pytest.mark.parametrize("wrong", [(0.3, 0.5), (0.7, 1.1), (0.3, 1.1)])
def test_exact_errors_of_gaussians_obey_the_chain_rule(wrong):
    schedule, times = diffusion.VariancePreserving(end=0.05), np.linspace(1.0, 0.05, 12)
    errors = diffusion.gaussian_chain_errors((0.7, 0.5), wrong, schedule, times)
    before = np.array([errors.start, *errors.cumulative[:-1]])
    np.testing.assert_allclose(
        errors.cumulative, before + errors.modular - errors.backward, rtol=1e-10, atol=1e-14
    )
    assert np.all(diffusion.amplification(errors.cumulative, errors.modular) <= 1 + 1e-12)
    assert min(errors.cumulative.min(), errors.modular.min(), errors.backward.min()) >= 0
    # The law at the end, from many runs of the sampler.
    gauss = diffusion.GaussianMixture(jnp.array([[wrong[0]]]), jnp.array([wrong[1]]))
    x = jnp.array(schedule.sigma(1.0) * np.random.default_rng(0).normal(size=(100_000, 1)))
    out = diffusion.sample(
        gauss.denoiser(), diffusion.DDIM(1.0), schedule, times, x, key=jax.random.key(1)
    ).value
    out = np.asarray(out)
    node = schedule.nodes(0.05)
    mean, variance = node.alpha * 0.7, node.alpha**2 * 0.25 + node.sigma**2
    ratio = float(out.var()) / variance
    found = 0.5 * (ratio - 1 - np.log(ratio) + (float(out.mean()) - mean) ** 2 / variance)
    np.testing.assert_allclose(errors.cumulative[-1], found, rtol=0.05, atol=1e-3)


@pytest.mark.slow  # as those of the catalogue
def test_both_train_under_fit():
    batches = jnp.tile(DATA, (4, 1, 1))
    for make in LOSSES.values():
        step = training.GradientStep(make(), optax.sgd(0.1))
        fit = training.fit(step, bent([0.3, -0.2]), batches, key=jax.random.key(0), progress=False)
        assert np.all(fit.metrics["finite"])


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="sampler"):
        diffusion.MMDLoss(diffusion.DPMSolverAdaptive(), VE, TIMES)
    with pytest.raises(ValueError, match="fall"):
        diffusion.MMDLoss(diffusion.DDIM(), VE, TIMES[::-1])
    with pytest.raises(ValueError, match="at least 2"):
        mmd_loss()(bent([0.0, 0.0]), DATA[:1], CONTEXT)
    with pytest.raises(ValueError, match="span"):
        propagation(0)
    with pytest.raises(ValueError, match="number of steps"):
        propagation(6)
    multi = diffusion.DPMSolverPP()
    with pytest.raises(ValueError, match="no memory"):
        diffusion.modular_errors(MIXTURE.denoiser(), multi, VE, TIMES, DATA, jax.random.key(0))


def test_the_last_cumulative_error_is_that_of_whole_runs():
    key, half = jax.random.key(8), len(DATA) // 2
    model = bent([0.3, -0.2])
    args = (model, diffusion.DDIM(), VE, TIMES, DATA, key, RBF(0.5))

    @jax.jit
    def whole(data, key):
        starting = jax.random.split(jax.random.split(key)[0])[0]
        x = data[:half] + 10.0 * jax.random.normal(jax.random.split(starting, 1)[0], (half, 2))
        out = diffusion.sample(model, diffusion.DDIM(), VE, TIMES, x).value
        return squared_mmd(out, data[half:], RBF(0.5))

    found = np.asarray(diffusion.cumulative_errors(*args))[-1]
    np.testing.assert_allclose(found, whole(DATA, key), rtol=1e-9)
