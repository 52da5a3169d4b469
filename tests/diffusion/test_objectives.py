"""Losses of denoisers and their weightings."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn import numpy_draws

from jaxopt_ext import diffusion, training
from jaxopt_ext.diffusion import objectives

KEY = jax.random.key(0)
VP = diffusion.VariancePreserving()
CONTEXT = training.Context(jax.random.key(1), jnp.ones((), jnp.int32), None)
WEIGHTINGS = {
    "min": diffusion.MinSNR(),
    "max": diffusion.MaxSNR(2.0),
    "truncated": diffusion.TruncatedSNR(),
    "snr": diffusion.SNR(),
    "inverse": diffusion.InverseSNR(),
    "constant": diffusion.ConstantWeighting(),
    "p2": diffusion.P2(),
    "edm": diffusion.EDMWeighting(0.8),
}
PREDICTIONS = {
    "data": diffusion.Data(),
    "noise": diffusion.Noise(),
    "velocity": diffusion.Velocity(),
    "score": diffusion.Score(),
    "edm": diffusion.Preconditioned(0.8),
}


class Base(eqx.Module):
    """Predicts the data; `form` says what is made of that before it is given out."""

    weight: jax.Array
    form: str = eqx.field(static=True)

    def __call__(self, x, node):
        a, s = node.alpha, node.sigma
        if self.form == "edm":  # it sees a scaled sample
            ratio, width = s / a, 0.8
            total = jnp.sqrt(ratio**2 + width**2)
            x = x * a * total
            return (self.data(x, node) - width**2 / total**2 * x / a) / (ratio * width / total)
        data = self.data(x, node)
        noise = (x - a * data) / s
        velocity = a * noise - s * data
        return {"data": data, "noise": noise, "velocity": velocity, "score": -noise / s}[self.form]

    def data(self, x, node):
        return jnp.tanh(self.weight @ x + jnp.log(node.sigma))


class Chosen(eqx.Module):
    """One of the weightings, by its number."""

    index: jax.Array

    def __call__(self, log_snr):
        return jnp.stack([weighting(log_snr) for weighting in WEIGHTINGS.values()])[self.index]


@pytest.fixture(scope="module")
def losses():
    """Values and gradients of all predictions under all weightings."""
    x = jax.random.normal(KEY, (64, 3))
    weight = jax.random.normal(KEY, (3, 3))
    levels = diffusion.UniformTime(VP, low=0.01)

    @jax.jit
    def every(weight, numbers):
        def of(form):
            def value(weight, index):
                model = diffusion.Denoiser(Base(weight, form), PREDICTIONS[form])
                return diffusion.DenoisingLoss(levels, Chosen(index))(model, x, CONTEXT)[0]

            return jax.vmap(jax.value_and_grad(value), (None, 0))(weight, numbers)

        return {form: of(form) for form in PREDICTIONS}

    found = jax.tree.map(np.asarray, every(weight, np.arange(len(WEIGHTINGS))))
    return {
        form: dict(zip(WEIGHTINGS, zip(*pair, strict=True), strict=True))
        for form, pair in found.items()
    }


def test_transforms_of_one_network_have_one_loss(losses):
    for form in PREDICTIONS:
        for name in WEIGHTINGS:
            for found, wanted in zip(losses[form][name], losses["data"][name], strict=True):
                np.testing.assert_allclose(found, wanted, rtol=1e-8)
    values = [float(losses["data"][name][0]) for name in WEIGHTINGS]
    assert len({round(value, 6) for value in values}) == len(values)


def test_the_loss_is_a_loop_of_numpy(losses):
    """With the same draws, in the data, with a weight of its own."""
    x = np.asarray(jax.random.normal(KEY, (64, 3)))
    weight = np.asarray(jax.random.normal(KEY, (3, 3)))
    level_key, key = jax.random.split(CONTEXT.key)
    nodes = diffusion.UniformTime(VP, low=0.01).draw(level_key, 64, jnp.float64)
    noise = np.asarray(jax.random.normal(jax.random.split(key)[0], (64, 3)))
    total = 0.0
    for i in range(64):
        t = float(nodes.t[i])
        alpha = np.exp(-0.25 * 19.9 * t**2 - 0.05 * t)
        sigma = np.sqrt(1 - alpha**2)
        found = np.tanh(weight @ (alpha * x[i] + sigma * noise[i]) + np.log(sigma))
        total += min(alpha**2 / sigma**2, 5) * np.mean((found - x[i]) ** 2)
    np.testing.assert_allclose(losses["velocity"]["min"][0], total / 64, rtol=1e-9)


def test_the_table_of_min_snr():
    ratio = np.array([1e-4, 0.5, 5.0, 50.0])
    sigma = 1 / np.sqrt(1 + ratio)
    node = diffusion.Node(sigma, *(jnp.asarray(a) for a in (np.sqrt(ratio) * sigma, sigma)))
    of = lambda predicts: objectives.output_weight(diffusion.MinSNR(), predicts, node)
    np.testing.assert_allclose(of(diffusion.Data()), [1e-4, 0.5, 5, 5], rtol=1e-12)
    np.testing.assert_allclose(of(diffusion.Noise()), [1, 1, 1, 0.1], rtol=1e-12)
    velocity = [1e-4 / 1.0001, 1 / 3, 5 / 6, 5 / 51]
    np.testing.assert_allclose(of(diffusion.Velocity()), velocity, rtol=1e-12)
    # EDM: min(SNR, gamma) c_out^2, in terms of the level alone.
    rho, width = ratio**-0.5, 0.5
    out = (rho * width) ** 2 / (rho**2 + width**2)
    found = of(diffusion.Preconditioned(width))
    np.testing.assert_allclose(found, np.minimum(ratio, 5) * out, rtol=1e-12)


def test_weights_in_closed_form():
    ratio = np.array([1e-4, 0.5, 5.0, 50.0])
    wanted = {
        "min": np.minimum(ratio, 5),
        "max": np.maximum(ratio, 2),
        "truncated": np.maximum(ratio, 1),
        "snr": ratio,
        "inverse": 1 / ratio,
        "constant": np.ones(4),
        "p2": ratio / (1 + ratio),
        "edm": (1 / ratio + 0.64) / (0.64 / ratio),
    }
    for name, weighting in WEIGHTINGS.items():
        found = weighting(jnp.asarray(0.5 * np.log(ratio), jnp.float32))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted[name], rtol=1e-5)
    strong = diffusion.P2(gamma=0.5, k=2.0)(jnp.asarray(0.5 * np.log(ratio)))
    np.testing.assert_allclose(strong, ratio / np.sqrt(2 + ratio), rtol=1e-12)


def test_where_no_data_is_left():
    """Weight 1 of noise and velocity, none of data; no NaN in between."""
    node = diffusion.Node(*(jnp.array(a) for a in ([1.0], [0.0], [1.0])))
    for weighting in (diffusion.MinSNR(), diffusion.SNR()):
        for predicts in (diffusion.Noise(), diffusion.Velocity()):
            assert objectives.output_weight(weighting, predicts, node) == 1
        assert objectives.output_weight(weighting, diffusion.Data(), node) == 0


class Affine(diffusion.AbstractPrediction):
    """A prediction that the losses do not know: three times the velocity and the sample."""

    def data(self, output, x, node):
        return diffusion.Velocity().data((output - x) / 3, x, node)

    def noise(self, output, x, node):
        return diffusion.Velocity().noise((output - x) / 3, x, node)


def test_targets_give_data_and_noise_back():
    data, noise = jnp.arange(1.0, 4.0), jnp.array([0.3, -2.0, 0.5])
    node = jax.tree.map(jnp.asarray, diffusion.Node(0.4, 0.9, 0.7))  # not variance preserving
    x = 0.9 * data + 0.7 * noise
    for predicts in (*PREDICTIONS.values(), Affine()):
        output = objectives.target(predicts, data, noise, node)
        np.testing.assert_allclose(predicts.data(output, x, node), data, rtol=1e-10)
        np.testing.assert_allclose(predicts.noise(output, x, node), noise, rtol=1e-9)
        moved = predicts.data(output + 1, x, node) - predicts.data(output, x, node)
        slope = objectives.data_slope(predicts, node)
        np.testing.assert_allclose(np.abs(moved), abs(float(slope)), rtol=1e-9)


def test_laws_of_levels():
    laws = {
        "uniform": (diffusion.UniformTime(VP), 4000),
        "mirrored": (diffusion.UniformTime(VP, antithetic=True), 5),
        "normal": (diffusion.LogNormal(-0.4, 1.5), 4000),
        "pair": (diffusion.LogNormal(-0.4, 1.5, antithetic=True), 4),
        "chain": (diffusion.DiscreteTimes(VP, 10), 4000),
        "both": (diffusion.DiscreteTimes(VP, 10, antithetic=True), 6),
        "part": (diffusion.UniformTime(VP).parts(4)[1], 4000),
    }
    draw = jax.jit(lambda: {k: law.draw(KEY, size, jnp.float32) for k, (law, size) in laws.items()})
    drawn = jax.tree.map(np.asarray, draw())
    nodes = drawn["uniform"]
    assert nodes.alpha.dtype == jnp.float32
    assert abs(float(np.mean(nodes.t)) - 0.5) < 0.02
    np.testing.assert_allclose(nodes.alpha**2 + nodes.sigma**2, 1, rtol=1e-5)
    mirrored = drawn["mirrored"].t
    np.testing.assert_allclose(mirrored[:2] + mirrored[3:], 1.001, rtol=1e-5)
    logs = np.log(drawn["normal"].sigma)
    assert abs(np.mean(logs) + 0.4) < 0.1
    assert abs(np.std(logs) - 1.5) < 0.1
    np.testing.assert_array_equal(drawn["normal"].alpha, 1)
    pair = np.log(drawn["pair"].sigma)
    np.testing.assert_allclose(pair[:2] + pair[2:], -0.8, rtol=1e-5)
    chain = drawn["chain"]
    steps = np.round(chain.t * 10, 5)
    assert set(steps.tolist()) == set(range(1, 11))
    wanted = VP.nodes(np.asarray(chain.t, np.float64))
    np.testing.assert_allclose(chain.sigma, wanted.sigma, rtol=1e-6)
    both = drawn["both"].t
    np.testing.assert_allclose(both[:3] + both[3:], 1.1, rtol=1e-6)
    parts = diffusion.UniformTime(VP).parts(4)
    assert (parts[0].low, parts[-1].high) == (VP.end, VP.start)
    assert all(a.high == b.low for a, b in itertools.pairwise(parts))
    assert float(np.max(drawn["part"].t)) <= parts[1].high + 1e-6


def test_labels_are_dropped():
    class Sees(eqx.Module):
        def __call__(self, x, node, label):
            return x * jnp.where(label < 0, 10.0, label)

    x = jnp.ones((400, 1))
    labels = jnp.zeros(400, jnp.int32)
    model = diffusion.Denoiser(Sees(), diffusion.Data())
    levels, weighting = diffusion.LogNormal(std=1e-6, mean=-20.0), diffusion.ConstantWeighting()

    @jax.jit
    def values(x, labels):
        every = [diffusion.DenoisingLoss(levels, weighting, rate) for rate in (0.0, 0.25, 1.0)]
        return [loss(model, (x, labels), CONTEXT)[0] for loss in every]

    seen = np.asarray(values(x, labels))
    # Without labels the output is ten times the data, with them zero.
    np.testing.assert_allclose(seen[::2], [1, 81], rtol=1e-4)
    assert abs((seen[1] - 1) / 80 - 0.25) < 0.08


def test_bad_input():
    levels = diffusion.UniformTime(VP)
    with pytest.raises(ValueError, match="gamma"):
        diffusion.MinSNR(0.0)
    with pytest.raises(ValueError, match="gamma"):
        diffusion.MaxSNR(-1.0)
    with pytest.raises(ValueError, match="low < high"):
        diffusion.UniformTime(VP, 0.5, 0.2)
    with pytest.raises(TypeError, match="levels"):
        diffusion.DenoisingLoss(VP, diffusion.SNR())  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="weighting"):
        diffusion.DenoisingLoss(levels, 3.0)
    with pytest.raises(ValueError, match="label_dropout"):
        diffusion.DenoisingLoss(levels, diffusion.SNR(), 1.5)
    model = diffusion.Denoiser(Base(jnp.eye(3), "data"), diffusion.Data())
    for weight in (lambda log_snr: log_snr - 100, lambda log_snr: log_snr * jnp.nan):
        loss = diffusion.DenoisingLoss(levels, weight)
        assert np.isnan(eqx.filter_jit(loss)(model, jnp.ones((2, 3)), CONTEXT)[0])


def test_the_size_of_the_data_is_no_parameter():
    """In a fit inside of `jit` it would be trained, and in double precision."""
    with numpy_draws():
        network = diffusion.MLPDenoiser((2,), 4, 1, key=KEY, dtype=jnp.float32)
    model = diffusion.Denoiser(network, diffusion.Preconditioned(0.8))
    loss = diffusion.DenoisingLoss(diffusion.LogNormal(), diffusion.EDMWeighting(0.8))
    method = training.GradientStep(loss, optax.sgd(0.1))
    batches = jnp.ones((2, 3, 2), jnp.float32)
    numbers, rest = eqx.partition(model, eqx.is_array_like)
    fitted = eqx.filter_jit(
        lambda numbers: training.fit(method, eqx.combine(numbers, rest), batches)
    )
    done = fitted(jax.tree.map(jnp.asarray, numbers))
    assert done.params.predicts.sigma_data == 0.8
    arrays = eqx.filter(done.params, eqx.is_inexact_array)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(arrays))
    assert done.metrics["loss"].dtype == jnp.float32
