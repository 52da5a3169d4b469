"""Chains of steps and frozen numbers where models are trained, and runs that end without noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn import numpy_draws

from jaxopt_ext import diffusion, training
from jaxopt_ext.core.constants import HostArray, Untrained
from jaxopt_ext.diffusion import continuous_consistency, early_exit, magnitude_preserving

KEY = jax.random.key(0)
CHAIN = diffusion.DiscreteSchedule(diffusion.linear_betas(20, 1e-3, 0.2))


@numpy_draws()
def network(embedding=None):
    embedding = embedding or diffusion.FourierFeatures(4, key=jax.random.key(1))
    made = diffusion.MLPDenoiser((2,), width=8, depth=1, embedding=embedding, key=jax.random.key(0))
    return diffusion.Denoiser(made, diffusion.Noise())


def shaken(net):
    """What is zero at first would hide the blocks before it."""
    shake = lambda a: jnp.array(np.asarray(a) + 0.3 * np.cos(np.asarray(a) + 1))
    return jax.tree.map(lambda a: shake(a) if eqx.is_inexact_array(a) else a, net)


def test_networks_are_trained_on_a_chain_and_nothing_frozen_moves():
    """With a decay, which needs no gradient to move a number."""
    model = network()
    loss = diffusion.DenoisingLoss(diffusion.DiscreteTimes(CHAIN, 20), diffusion.MinSNR())
    method = training.GradientStep(loss, optax.adamw(0.1, weight_decay=0.5))
    data = jnp.array(np.random.default_rng(2).normal(size=(16, 2)))
    batches = training.Drawn(data, 8, jax.random.key(3))
    fit = training.fit(method, model, batches, 5, key=jax.random.key(4))
    assert np.all(np.isfinite(fit.metrics["loss"]))
    trained = fit.params.network
    np.testing.assert_array_equal(
        trained.embedding.frequencies, model.network.embedding.frequencies
    )
    moved = [
        np.max(np.abs(np.asarray(a) - np.asarray(b)))
        for a, b in zip(
            *(
                jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array))
                for net in (trained, model.network)
            ),
            strict=True,
        )
    ]
    assert np.max(moved) > 0.1


def test_chains_and_statistics_are_arguments_of_programs():
    x = jnp.ones((3, 2))
    times = np.array([1.0, 0.7, 0.4, 0.1])
    model = network()
    run = lambda sampler, schedule: diffusion.sample(model, sampler, schedule, times, x).value
    plain = run(diffusion.DDIM(), CHAIN)
    np.testing.assert_allclose(eqx.filter_jit(run)(diffusion.DDIM(), CHAIN), plain, rtol=1e-6)
    levels = np.linspace(-4, 6, 9)
    table = np.sin(levels)[:, None] * 0.1
    sampler = diffusion.DPMSolverV3(diffusion.ModelStatistics(table, table, table, levels))
    np.testing.assert_allclose(
        eqx.filter_jit(run)(sampler, CHAIN), run(sampler, CHAIN), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("prediction", [diffusion.Noise(), diffusion.Data()])
def test_the_model_is_not_asked_where_no_noise_is_left(prediction):
    schedule = diffusion.VariancePreserving()
    times = np.append(diffusion.uniform_time(schedule, 4), 0.0)
    asked = diffusion.Denoiser(lambda x, node, *_: x / node.sigma, prediction)
    x = jnp.ones((3, 2))
    plain = diffusion.sample(asked, diffusion.DDIM(), schedule, times, x)
    last = diffusion.sample(asked, diffusion.DDIM(), schedule, times, x, denoise=True)
    assert np.all(np.isfinite(last.value))
    np.testing.assert_array_equal(last.value, plain.value)
    assert last.evaluations == plain.evaluations


def test_exposure_bias_starts_with_the_noise_of_the_run():
    """The exact model has none, wherever the run begins."""
    schedule = diffusion.VarianceExploding()
    data = jnp.array(0.5 * np.random.default_rng(0).normal(size=(2000, 2)))
    exact = diffusion.Denoiser(
        lambda x, node, *_: x * node.sigma / (0.25 + node.sigma**2), diffusion.Noise()
    )
    times = np.geomspace(2.0, 0.05, 20)
    gap = diffusion.noise_norm_gap(
        exact, diffusion.Heun(), schedule, times, data, jax.random.key(1)
    )
    np.testing.assert_allclose(gap.gap, 0, atol=0.06)


def test_probabilities_that_are_none_are_not_coded():
    for classes in (3, 4):
        model = diffusion.OrderAgnostic(
            lambda *_, classes=classes: jnp.full((2, classes), jnp.nan), 2, classes
        )
        with pytest.raises(ValueError, match="coded"):
            diffusion.compress(model, jnp.zeros((1, 2), int), jax.random.key(0))


def test_untrained_numbers_are_integers_and_host_arrays_structure():
    numbers = jnp.asarray([1.5, -0.0, np.pi], jnp.float32)
    kept = Untrained(numbers)
    assert not jax.tree.leaves(eqx.filter(kept, eqx.is_inexact_array))
    np.testing.assert_array_equal(jax.jit(lambda kept: kept.value)(kept), numbers)
    many = eqx.filter_vmap(Untrained)(jnp.stack([numbers, 2 * numbers]))
    np.testing.assert_array_equal(many.value[1], 2 * numbers)
    one, same, other = (HostArray(np.array([1.0, a])) for a in (np.nan, np.nan, 2.0))
    assert (one == same, one == other, hash(one) == hash(same)) == (True, False, True)
    assert one != 3
    embedding = magnitude_preserving.MPFourier(3, key=jax.random.key(0))
    assert not jax.tree.leaves(eqx.filter(embedding, eqx.is_inexact_array))


def test_early_exits_where_steps_are_guided():
    """A guided run with an exit at full depth is the one without."""
    schedule = diffusion.VariancePreserving()
    time = diffusion.ScheduleTime(schedule)
    plain = network()
    exits = lambda *depths: diffusion.Denoiser(
        diffusion.EarlyExit(plain.network, diffusion.ExitSchedule(depths), time), diffusion.Noise()
    )
    seen = diffusion.Inpainting(np.array([True, False]))
    guided = diffusion.MCG(seen, jnp.array([0.7, 0.0]), diffusion.DDIM())
    times, x = np.array([0.9, 0.5, 0.2]), jnp.ones((3, 2))
    run = lambda model: (
        diffusion.posterior_sample(model, guided, schedule, times, x, key=jax.random.key(5)).value
    )
    np.testing.assert_allclose(run(exits(1)), run(plain), rtol=1e-6)


def deep_network():
    """A continuous network of which two blocks may be skipped, and a node."""
    solver = diffusion.CheckpointedSteps(1, diffusion.Euler())
    with numpy_draws(3):  # of which the last blocks are seen in the output
        unet = diffusion.ContinuousUNet((1, 4, 4), (2, 3, 4), solver=solver, key=KEY)
    unet = shaken(unet)
    schedule = diffusion.VariancePreserving()
    exits, time = diffusion.ExitSchedule((2, 1)), diffusion.ScheduleTime(schedule)
    assert len(early_exit.exit_blocks(unet)) == 2
    node = jax.tree.map(jnp.array, schedule.nodes(np.array(0.5)))
    return unet, diffusion.EarlyExit(unet, exits, time), node


def test_blocks_of_continuous_networks_may_be_skipped():
    _, network, node = deep_network()
    image = jax.ShapeDtypeStruct((1, 1, 4, 4), jnp.float64)
    for depth in (1, 2):
        assert jax.eval_shape(network.at_depth(depth), image, node).shape == image.shape


@pytest.mark.slow
def test_a_continuous_network_without_a_block_is_another():
    unet, network, node = deep_network()
    image = jnp.ones((1, 1, 4, 4))
    least, whole = (network.at_depth(n)(image, node) for n in (1, 2))
    np.testing.assert_allclose(whole, unet(image, node), rtol=1e-6)
    assert not np.allclose(least, whole, atol=1e-3)


def test_networks_of_mixed_depth_drop_as_their_network_does():
    schedule = diffusion.VariancePreserving()
    with numpy_draws():
        inner = diffusion.EDM2MLP((2,), 4, dropout=0.5, key=KEY)
    mixed = early_exit.MixedDepths(
        inner, diffusion.ExitSchedule((1,)), diffusion.ScheduleTime(schedule)
    )
    assert mixed.dropping(KEY).network.dropout_key is not None


def test_a_teacher_is_told_the_class():
    with numpy_draws():
        net = shaken(diffusion.MLPDenoiser((2,), width=4, depth=1, num_classes=3, key=KEY))
    model = diffusion.ConsistencyModel(net, 0.5)
    teacher = diffusion.Denoiser(net, diffusion.TrigVelocity(0.5))

    @jax.jit
    @jax.vmap
    def both(label):
        x, t = jnp.ones(2), jnp.asarray(0.7)
        found = continuous_consistency._velocity(teacher, model, x, t, None, None, label)
        return found, 0.5 * model.output(x, t, label)

    found, wanted = map(np.asarray, both(jnp.array([0, 1])))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert not np.allclose(*found)
