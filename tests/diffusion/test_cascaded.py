"""Cascades of two networks: who learns from what, blends, and the loss by hand."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn import numpy_draws

from jaxopt_ext import diffusion, training
from jaxopt_ext.diffusion import cascaded

VP = diffusion.VariancePreserving()
LEVELS = diffusion.UniformTime(VP)
CONTEXT = training.Context(jax.random.key(1), jnp.ones((), jnp.int32), None)
BATCH = np.random.default_rng(2).uniform(-1, 1, size=(6, 3))


class Line(diffusion.AbstractNetwork):
    """Affine in the sample."""

    weight: jax.Array
    shift: jax.Array
    shape: tuple[int, ...] = eqx.field(static=True)
    blocks: tuple[Any, ...] = ()

    def stem(self, x, node, label=None):
        return self.weight @ x.reshape(-1) + self.shift * node.sigma, None

    def head(self, hidden, condition):
        return hidden.reshape(self.shape)


class Constant(diffusion.AbstractNetwork):
    """A prediction of its own and logits, whatever it sees."""

    clean: jax.Array
    logit: jax.Array
    shape: tuple[int, ...] = eqx.field(static=True)
    blocks: tuple[Any, ...] = ()

    def stem(self, x, node, label=None):
        return jnp.stack([self.clean, jnp.full_like(self.clean, self.logit)]), None

    def head(self, hidden, condition):
        return hidden


def line(seed, *shape):
    rng, n = np.random.default_rng(seed), int(np.prod(shape))
    return Line(jnp.array(rng.normal(size=(n, n)) / 2), jnp.array(rng.normal(size=n)), shape)


def cascade(**options):
    return diffusion.CascadedDenoiser(diffusion.Denoiser(line(0, 3)), line(1, 2, 3), **options)


def dual(**options):
    return diffusion.DualDenoiser(line(2, 3, 3), **options)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def by_hand(model, x, alpha, sigma):
    """Output, both predictions and the share, in numpy."""
    affine = lambda net, v: np.asarray(net.weight) @ v + np.asarray(net.shift) * sigma
    if isinstance(model, diffusion.DualDenoiser):
        output, second, logits = affine(model.network, np.r_[x, np.zeros(6)]).reshape(3, 3)
        first = np.clip((x - sigma * output) / alpha, -1, 1)
    else:
        output = affine(model.noise_model.network, x)
        first = np.clip((x - sigma * output) / alpha, -1, 1)
        size = np.sqrt((alpha * 0.5) ** 2 + sigma**2)
        seen = {
            diffusion.BothInputs: np.r_[first, x / size],
            diffusion.CleanInput: np.r_[first, np.zeros(3)],
            diffusion.NoisyInput: np.r_[x / size, np.zeros(3)],
        }[type(model.inputs)]
        second, logits = affine(model.clean_network, seen).reshape(2, 3)
    share = sigmoid(logits) if isinstance(model.share, diffusion.PixelShare) else None
    return output, first, second, sigmoid(np.mean(logits)) if share is None else share


def test_predictions_and_their_blend_are_those_by_hand():
    node = VP.nodes(np.array(0.3))
    models = [
        cascade(inputs=diffusion.BothInputs(0.5)),
        cascade(inputs=diffusion.CleanInput(), share=diffusion.PixelShare()),
        cascade(inputs=diffusion.NoisyInput(0.5)),
        dual(),
    ]

    @jax.jit
    def all_of(models, x):
        return [(m.data(x, node), m.noise(x, node), m.data(x[0], node)) for m in models]

    found = jax.tree.map(np.asarray, all_of(models, BATCH))
    for model, (data, noise, alone) in zip(models, found, strict=True):
        for x, d, n in zip(BATCH, data, noise, strict=True):
            _, first, second, share = by_hand(model, np.asarray(x), node.alpha, node.sigma)
            np.testing.assert_allclose(d, share * second + (1 - share) * first, rtol=1e-10)
            np.testing.assert_allclose(node.alpha * d + node.sigma * n, x, rtol=1e-10)
        np.testing.assert_allclose(alone, data[0], rtol=1e-12)


def test_the_loss_is_the_sum_of_its_terms_by_hand():
    metric = diffusion.PerceptualDistance(jnp.sin, normalize=False)
    loss = diffusion.CascadedLoss(LEVELS, metric, 0.3, 0.7)
    models = [cascade(inputs=diffusion.BothInputs(0.5)), dual()]

    @jax.jit
    def run(models, batch):
        drawn = cascaded._drawn(LEVELS, batch, CONTEXT.key)
        return drawn, [loss(m, batch, CONTEXT) for m in models]

    (nodes, noise), found = run(models, BATCH)
    for model, (total, terms) in zip(models, found, strict=True):
        wanted = np.zeros(4)
        for x, e, a, s in zip(
            *map(np.asarray, (BATCH, noise, nodes.alpha, nodes.sigma)), strict=True
        ):
            output, first, second, share = by_hand(model, a * x + s * e, a, s)
            blend = share * second + (1 - share) * first
            errors = [np.mean(u**2) for u in (output - e, second - x, blend - x)]
            wanted += np.array([*errors, np.sum((np.sin(second) - np.sin(x)) ** 2)]) / len(BATCH)
        names = ("noise_error", "clean_error", "mean_error", "distance")
        np.testing.assert_allclose([terms[name] for name in names], wanted, rtol=1e-9)
        np.testing.assert_allclose(total, wanted @ [1, 1, 0.7, 0.3], rtol=1e-9)


def test_each_network_learns_from_its_own_terms():
    model, metric = cascade(), diffusion.PerceptualDistance(jnp.sin)

    @jax.jit
    def gradients(model):
        def of(take):
            return eqx.filter_grad(take)(model)

        def total(weight):
            loss = diffusion.CascadedLoss(LEVELS, metric, weight)
            return of(lambda m: loss(m, BATCH, CONTEXT)[0])

        loss = diffusion.CascadedLoss(LEVELS, metric)
        term = lambda name: of(lambda m: loss(m, BATCH, CONTEXT)[1][name])
        denoising = diffusion.DenoisingLoss(LEVELS, lambda v: jnp.exp(2 * v))
        usual = eqx.filter_grad(lambda m: denoising(m, BATCH, CONTEXT)[0])(model.noise_model)
        names = ("noise_error", "clean_error", "mean_error", "distance")
        return jax.vmap(total)(jnp.array([0.0, 0.1, 10.0])), {n: term(n) for n in names}, usual

    totals, terms, usual = jax.tree.map(np.asarray, gradients(model))
    alone = terms["noise_error"].noise_model.network
    ours = jax.tree.leaves(totals.noise_model)
    for found, wanted in zip(ours, jax.tree.leaves(alone), strict=True):
        for one in found:
            np.testing.assert_array_equal(one, wanted)  # bit for bit, for every weight
    for found, wanted in zip(jax.tree.leaves(alone), jax.tree.leaves(usual), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-9)
    for name in ("clean_error", "mean_error", "distance"):
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(terms[name].noise_model))
    assert not np.any(terms["noise_error"].clean_network.weight)
    # The first three rows of the second network are its data, the last three the logits.
    weight = {name: np.asarray(g.clean_network.weight) for name, g in terms.items()}
    assert not np.any(weight["mean_error"][:3])
    assert np.all(weight["mean_error"][3:])
    for name in ("clean_error", "distance"):
        assert not np.any(weight[name][3:])
        assert np.all(weight[name][:3])


def test_the_share_is_learned_to_its_closed_form():
    # The noise network's data and the second network's are constant: r* is a projection.
    first = np.array([0.4, -0.3, 0.2])
    x = np.array([0.1, 0.5, -0.2])
    between = first + np.array([-0.6, 1.0, 0.4])
    closed = np.vdot(x - first, between - first) / np.vdot(between - first, between - first)
    assert 0.1 < closed < 0.9
    loss = diffusion.CascadedLoss(LEVELS, mean_weight=5.0)

    def learned(x, second, logit):
        base = diffusion.Denoiser(lambda x, node: jnp.array(first), diffusion.Data())
        model = diffusion.CascadedDenoiser(base, Constant(second, logit, (2, 3)))
        only = eqx.tree_at(
            lambda m: m.clean_network.logit, jax.tree.map(lambda _: False, model), True
        )
        method = training.GradientStep(loss, optax.adam(0.3), trainable=only)
        batches = training.Drawn(x[None], 2, jax.random.key(0))
        done = training.fit(method, model, batches, 300).params.clean_network.logit
        return jax.nn.sigmoid(done)

    xs, seconds = np.stack([x, x, first]), np.stack([between, x, between])
    found = jax.jit(jax.vmap(learned))(xs, seconds, jnp.zeros(3))
    np.testing.assert_allclose(found, [closed, 1.0, 0.0], atol=0.02)


def test_blended_steps_are_steps_of_the_blend():
    """A step of the ancestral sampler is $A x_0 + B x_t$ and noise, with DDPM's numbers."""
    betas = diffusion.linear_betas(100)
    schedule = diffusion.DiscreteSchedule(betas)
    at = np.array([60, 59]) / 100
    x, key = BATCH, jax.random.key(3)
    share, node = 0.3, schedule.nodes(at[0])

    @jax.jit
    def steps():
        models = [cascade(share=diffusion.FixedShare(r)) for r in (share, 0.0, 1.0)]
        go = lambda m: diffusion.sample(m, diffusion.DDIM(1.0), schedule, at, x, key=key).value
        return [go(m) for m in models], [m.data(x, node) for m in models[1:]]

    (blended, first, second), data = jax.tree.map(np.asarray, steps())
    np.testing.assert_allclose(blended, share * second + (1 - share) * first, atol=1e-6)
    total = np.cumprod(1 - betas)
    before, now, beta = total[58], total[59], betas[59]
    a = np.sqrt(before) * beta / (1 - now)
    b = np.sqrt(1 - beta) * (1 - before) / (1 - now)
    np.testing.assert_allclose(second - first, a * (data[1] - data[0]), atol=1e-9)
    z = (first - a * data[0] - b * np.asarray(x)) / np.sqrt(beta * (1 - before) / (1 - now))
    again = (second - a * data[1] - b * np.asarray(x)) / np.sqrt(beta * (1 - before) / (1 - now))
    np.testing.assert_allclose(z, again, atol=1e-6)
    assert 0.5 < np.std(z) < 1.5  # the noise that was drawn, and nothing else


def test_first_prediction_is_cut_off_where_noise_is_high():
    node = VP.nodes(np.array(1.0))
    x = 5 + BATCH
    data = lambda clip: cascade(share=diffusion.FixedShare(0.0), clip=clip).data(x, node)
    both = jax.jit(lambda: (cascade().noise_model.data(x, node), data(None), data(2.0)))
    free, uncut, cut = map(np.asarray, both())
    assert np.max(np.abs(free)) > 10
    np.testing.assert_allclose(uncut, free, rtol=1e-9)
    np.testing.assert_allclose(cut, np.clip(free, -2, 2), rtol=1e-9)


def test_perceptual_distance_is_that_of_loops():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 5, 3, 2))
    features = lambda x: [x, x[:, :2] ** 2]
    weights = (0.5, 2.0)

    def loops(x, y, normalize):
        total = np.zeros(len(x))
        for weight, u, v in zip(weights, features(x), features(y), strict=True):
            for n in range(len(x)):
                for i in range(3):
                    for j in range(2):
                        a, b = u[n, :, i, j], v[n, :, i, j]
                        if normalize:
                            a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
                        total[n] += weight * np.sum((a - b) ** 2) / 6
        return total

    for normalize in (True, False):
        found = jax.jit(diffusion.PerceptualDistance(features, weights, normalize))(x, y)
        np.testing.assert_allclose(found, loops(x, y, normalize), rtol=1e-6)
    # Blank features have no direction, and do no harm, in single precision too.
    blank = jnp.zeros((2, 3), jnp.float32)
    distance = lambda x: jnp.sum(diffusion.PerceptualDistance(jnp.tanh)(x, blank + 1))
    slope = jax.jit(jax.grad(distance))(blank)
    assert slope.dtype == jnp.float32
    assert np.all(np.isfinite(np.asarray(slope)))
    assert np.any(np.asarray(slope))


def test_a_metric_in_one_network_disturbs_the_noise():
    model, metric = diffusion.Denoiser(line(0, 3)), diffusion.PerceptualDistance(jnp.sin)

    @jax.jit
    def slopes(weights):
        def slope(weight):
            loss = diffusion.MetricLoss(LEVELS, metric, weight)
            take = lambda m: loss(m, BATCH, CONTEXT)
            (total, terms), gradient = eqx.filter_value_and_grad(take, has_aux=True)(model)
            return total, terms, gradient.network.weight

        return jax.vmap(slope)(weights)

    weights = np.array([0.0, 0.2])
    totals, terms, gradients = jax.tree.map(np.asarray, slopes(weights))
    np.testing.assert_allclose(totals, terms["noise_error"] + weights * terms["distance"])
    assert np.max(np.abs(gradients[1] - gradients[0])) > 1e-3


@pytest.mark.always(1)
@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (1, 8, 8)], ids=["batch", "sample"])
def test_networks_of_images(shape):
    key = jax.random.key(0)
    with numpy_draws():
        base = diffusion.Denoiser(diffusion.MLPDenoiser((1, 8, 8), 8, 1, key=key))
        unet = diffusion.UNetDenoiser((2, 8, 8), (2,), 1, key=key)
    both = diffusion.CascadedDenoiser(base, unet)
    x = jax.ShapeDtypeStruct(shape, float)
    assert jax.eval_shape(lambda x: both.data(x, VP.nodes(0.5)), x).shape == shape


def test_networks_of_the_wrong_size():
    base, wide = diffusion.Denoiser(line(0, 1, 2, 2)), line(1, 2, 2, 2)
    with pytest.raises(ValueError, match="shape"):
        cascade().data(jnp.zeros((2, 4)), VP.nodes(0.5))
    with pytest.raises(ValueError, match="multiple of 3"):
        diffusion.DualDenoiser(wide)
    with pytest.raises(ValueError, match="multiple of 2"):
        diffusion.CascadedDenoiser(base, line(0, 1, 2, 2))
    with pytest.raises(TypeError, match="network"):
        diffusion.CascadedDenoiser(base, lambda x, node: x)  # type: ignore
    with pytest.raises(TypeError, match="noise_model"):
        diffusion.CascadedDenoiser(base.network, wide)  # type: ignore
    with pytest.raises(ValueError, match="clip"):
        diffusion.CascadedDenoiser(base, wide, clip=0.0)
    with pytest.raises(ValueError, match="value"):
        diffusion.FixedShare(1.5)
    with pytest.raises(ValueError, match="sigma_data"):
        diffusion.BothInputs(0.0)


def test_losses_refuse_what_they_are_not_for():
    metric = diffusion.PerceptualDistance(jnp.sin)
    with pytest.raises(ValueError, match="metric_weight"):
        diffusion.CascadedLoss(LEVELS, metric, -0.1)
    with pytest.raises(ValueError, match="mean_weight"):
        diffusion.CascadedLoss(LEVELS, mean_weight=-1.0)
    with pytest.raises(TypeError, match="metric"):
        diffusion.CascadedLoss(LEVELS, 3.0)  # type: ignore
    with pytest.raises(TypeError, match="levels"):
        diffusion.MetricLoss(VP, metric)  # type: ignore
    with pytest.raises(TypeError, match="model"):
        diffusion.CascadedLoss(LEVELS)(diffusion.Denoiser(line(0, 3)), BATCH, CONTEXT)  # type: ignore
    with pytest.raises(TypeError, match="features"):
        diffusion.PerceptualDistance(1.0)  # type: ignore
    with pytest.raises(ValueError, match="weights"):
        diffusion.PerceptualDistance(jnp.sin, [-1.0])
    with pytest.raises(ValueError, match="2 weights for 1"):
        diffusion.PerceptualDistance(jnp.sin, [1.0, 1.0])(BATCH, BATCH)
