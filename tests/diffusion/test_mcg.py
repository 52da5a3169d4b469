"""Guided samplers against closed forms for Gaussian data."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

from jaxopt_ext import diffusion

VP = diffusion.VariancePreserving()
TWO = np.array([0.6, 0.5])
COVARIANCE = np.array([[1.0, 0.9], [0.9, 1.0]])
SEEN = diffusion.Inpainting(np.array([True, False]))
RNG = np.random.default_rng(0)


def gaussian(covariance=COVARIANCE):
    """The exact denoiser of normal data."""
    S = jnp.asarray(covariance)

    def data(x, node):
        total = node.alpha**2 * S + node.sigma**2 * jnp.eye(len(S))
        return node.alpha * x @ jnp.linalg.inv(total) @ S

    return diffusion.Denoiser(data, diffusion.Data())


def exact_data(x, node):
    """The mean of the data given a sample, by matrices."""
    total = node.alpha**2 * COVARIANCE + node.sigma**2 * np.eye(2)
    return node.alpha * x @ np.linalg.inv(total) @ COVARIANCE


def run(guided, x, times=TWO, model=None, key=0, **options):
    model = gaussian() if model is None else model
    options.setdefault("denoise", False)
    key = jax.random.key(key)
    return diffusion.posterior_sample(model, guided, VP, times, jnp.asarray(x), key=key, **options)


def one_step(x, squared, weight):
    """DDIM's step and the gradient, by matrices."""
    (_, a, s), (_, b, r) = VP.nodes(TWO[0]), VP.nodes(TWO[1])
    A = a * COVARIANCE @ np.linalg.inv(a**2 * COVARIANCE + s**2 * np.eye(2))
    data = x @ A.T
    new = b * data + r / s * (x - a * data)
    gap = 0.7 - data[:, :1]
    scale = 2 if squared else 1 / np.abs(gap)
    return new + weight * scale * gap * A[:1]


@pytest.mark.parametrize("squared", [False, True])
def test_a_step_without_consistency_by_matrices(squared):
    x = RNG.normal(size=(5, 2))
    guided = diffusion.MCG(
        SEEN, jnp.array([0.7, 0.0]), diffusion.DDIM(), 0.3, squared, diffusion.Unconstrained()
    )
    assert not guided.stochastic
    out = run(guided, x)
    np.testing.assert_allclose(out.value, one_step(x, squared, 0.3), rtol=1e-9)
    assert out.evaluations == 1
    # Each sample has its own norm, and its own y where there are several.
    if squared:
        return
    alone = run(guided, x[:1])
    np.testing.assert_allclose(np.asarray(out.value)[:1], alone.value, rtol=1e-12)
    own = diffusion.MCG(
        SEEN,
        jnp.array(np.tile([0.7, 0.0], (5, 1))),
        diffusion.DDIM(),
        0.3,
        consistency=diffusion.Unconstrained(),
    )
    np.testing.assert_allclose(run(own, x).value, out.value, rtol=1e-12)


def test_the_measured_part_is_noised_and_the_rest_is_guided():
    x = np.tile(RNG.normal(size=(1, 2)), (4000, 1))
    guided = diffusion.MCG(SEEN, jnp.array([0.7, 0.0]), diffusion.DDIM(), 0.3)
    assert guided.stochastic
    out = np.asarray(run(guided, x).value)
    np.testing.assert_allclose(out[:, 1], one_step(x, False, 0.3)[:, 1], rtol=1e-9)
    _, alpha, sigma = VP.nodes(TWO[1])
    noise = (out[:, 0] - 0.7 * alpha) / sigma
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05


@pytest.mark.slow
def test_noise_of_the_step_and_of_the_measurement_are_apart():
    x = np.tile(RNG.normal(size=(1, 2)), (4000, 1))
    both = diffusion.Inpainting(np.array([True, False]))
    out = np.asarray(run(diffusion.MCG(both, jnp.array([0.7, 0.0]), weight=0.0), x).value)
    assert abs(np.corrcoef(out.T)[0, 1]) < 0.05
    assert np.std(out[:, 1]) > 0.1


def test_gradients_on_a_subspace_are_tangent_to_it():
    U = np.linalg.qr(RNG.normal(size=(20, 5)))[0]
    normal = np.eye(20) - U @ U.T
    matrix = RNG.normal(size=(6, 20))
    measurement = diffusion.LinearMeasurement(matrix)
    y = jnp.array(matrix @ U @ RNG.normal(size=5))
    x = RNG.normal(size=(3, 20))
    step = lambda weight: np.asarray(
        run(
            diffusion.MCG(
                measurement, y, diffusion.DDIM(), weight, consistency=diffusion.Unconstrained()
            ),
            x,
            np.array([0.9, 0.5, 0.2]),
            gaussian(U @ U.T),
        ).value
    )
    plain, moved = step(0.0), step(1.0)
    change = moved - plain
    assert np.linalg.norm(change) > 0.1
    assert np.linalg.norm(change @ normal) < 1e-9 * np.linalg.norm(change)
    # The distance to the subspace stays in proportion to the noise.
    size = VP.sigma(0.9) / VP.sigma(0.2)
    np.testing.assert_allclose(size * moved @ normal, x @ normal, rtol=1e-7)


@pytest.mark.slow
def test_gaussian_posteriors_are_missed_as_they_are_known_to_be():
    """The posterior has mean 0.9 and deviation 0.436: projections fall short of it, gradients and
    projections together go past it."""
    x = diffusion.prior(VP, jnp.zeros((4000, 2)), jax.random.key(1))
    times = diffusion.uniform_time(VP, 200)
    y = jnp.array([1.0, 0.0])
    for weight, mean, deviation in ((0.0, 0.61, 0.55), (0.3, 1.11, 0.28)):
        out = np.asarray(run(diffusion.MCG(SEEN, y, weight=weight), x, times).value)
        assert abs(out[:, 1].mean() - mean) < 0.04
        assert abs(out[:, 1].std() - deviation) < 0.03
        assert np.abs(out[:, 0] - 1).max() < 0.06


def test_no_gap_no_gradient():
    model = gaussian()
    x = np.array([[0.3, -0.2]])
    y = jnp.array(exact_data(x, VP.nodes(TWO[0]))[0])
    guided = diffusion.MCG(
        diffusion.Inpainting(np.array([True, True])),
        y,
        diffusion.DDIM(),
        consistency=diffusion.Unconstrained(),
    )
    wanted = diffusion.sample(model, diffusion.DDIM(), VP, TWO, jnp.array(x)).value
    np.testing.assert_allclose(run(guided, x).value, wanted, rtol=1e-12)


def test_steps_of_other_samplers_are_guided():
    x = RNG.normal(size=(2, 2))
    guided = lambda weight: diffusion.MCG(
        SEEN, jnp.array([0.7, 0.0]), diffusion.Heun(), weight, consistency=diffusion.Unconstrained()
    )
    plain = diffusion.sample(gaussian(), diffusion.Heun(), VP, TWO, jnp.asarray(x))
    out = run(guided(0.0), x)
    np.testing.assert_allclose(out.value, plain.value, rtol=1e-9)
    assert out.evaluations == plain.evaluations == 2
    change = one_step(x, False, 0.3) - one_step(x, False, 0.0)
    found = np.asarray(run(guided(0.3), x).value) - np.asarray(out.value)
    np.testing.assert_allclose(found, change, rtol=1e-7)


def test_repeated_steps_lead_back_to_their_beginning():
    times = np.array([0.6, 0.5, 0.35])
    guided = diffusion.RePaint(SEEN, jnp.array([0.7, 0.0]), repeats=3)
    out = run(guided, 2 * RNG.normal(size=(6000, 2)), times, gaussian(np.eye(2)))
    assert out.evaluations == 3 * 2
    variance = 4.0
    for s, t in itertools.pairwise(times):
        (_, a, r), (_, b, q) = VP.nodes(s), VP.nodes(t)
        new = q**2 * (1 - (a / r * q / b) ** 2)
        factor = b * a + np.sqrt(q**2 - new) * r
        for i in range(3):
            start = variance if i == 0 else (a / b) ** 2 * variance + r**2 - (a / b * q) ** 2
            variance = factor**2 * start + new
    seen, other = np.asarray(out.value).T
    np.testing.assert_allclose(np.var(other), variance, rtol=0.06)
    np.testing.assert_allclose(np.std(seen), VP.sigma(0.35), rtol=0.04)
    np.testing.assert_allclose(np.mean(seen), 0.7 * VP.alpha(0.35), atol=0.04)


def test_projected_data_end_on_the_measurement():
    x = VP.sigma(VP.start) * np.random.default_rng(1).normal(size=(3, 2))
    guided = diffusion.DataProjection(SEEN, jnp.array([0.7, 0.0]), diffusion.DDIM())
    assert not guided.stochastic
    out = run(guided, x, np.append(diffusion.uniform_time(VP, 9), 0.0))
    np.testing.assert_allclose(np.asarray(out.value)[:, 0], 0.7, rtol=1e-9)
    (_, a, s), (_, b, r) = VP.nodes(TWO[0]), VP.nodes(TWO[1])
    data = exact_data(x, VP.nodes(TWO[0])) * [0, 1] + [0.7, 0]
    np.testing.assert_allclose(run(guided, x).value, b * data + r / s * (x - a * data), rtol=1e-9)


H = RNG.normal(size=(3, 5)) ** 2
MOVES = {
    "projection": (diffusion.Projection(), lambda x, gap: x + np.linalg.pinv(H) @ gap),
    "transpose": (diffusion.Transpose(0.3), lambda x, gap: x + 0.3 * H.T @ gap),
    "kaczmarz": (diffusion.Kaczmarz(0.4), lambda x, gap: x + 0.4 * H.T @ gap / H.sum(0) / 1),
    "scheduled": (diffusion.Kaczmarz(lambda node: 2 * node.sigma), None),
    "nothing": (diffusion.Unconstrained(), lambda x, gap: x),
}


@pytest.mark.parametrize("name", MOVES)
def test_consistency_by_matrices(name):
    consistency, wanted = MOVES[name]
    measurement = diffusion.LinearMeasurement(H)
    x, y = RNG.normal(size=5), RNG.normal(size=3)
    node = diffusion.Node(0.5, 0.8, 0.6)
    total = H.T @ H.sum(1)
    if "kaczmarz" in name or name == "scheduled":
        step = 0.4 if name == "kaczmarz" else 1.2
        wanted = lambda x, gap: x + step * H.T @ gap / total
    found = consistency.impose(measurement, jnp.asarray(x), jnp.asarray(y), node)
    np.testing.assert_allclose(found, wanted(x, y - H @ x), rtol=1e-9)


@pytest.mark.slow
def test_colour_blur_and_views_run():
    """Their measured parts come near what was measured."""
    image = jnp.asarray(RNG.normal(size=(2, 3, 6, 6)))
    cases = [
        (diffusion.Colorization(), image, {"weight": 0.1}),
        (diffusion.SuperResolution(2), image, {}),
        (diffusion.Blur(diffusion.gaussian_kernel(3, 1.0)), image, {}),
        (diffusion.SparseRadon(8, 2, 6), image[:, 0], {"consistency": diffusion.Kaczmarz()}),
    ]
    prior = diffusion.Denoiser(lambda x, node: node.alpha * x, diffusion.Data())
    times = np.append(diffusion.uniform_time(VP, 30), 0.0)
    for measurement, x, options in cases:
        y = jax.vmap(measurement.forward)(x)
        guided = diffusion.MCG(measurement, y, **options)
        start = diffusion.prior(VP, x, jax.random.key(0))
        out = run(guided, start, times, prior).value
        gap = np.linalg.norm(jax.vmap(measurement.forward)(out) - y) / np.linalg.norm(y)
        assert gap < (0.2 if options.get("consistency") else 1e-6), measurement


@pytest.mark.slow
def test_pytrees_and_meshes():
    mask = {"a": np.array([True]), "b": (np.array([False]),)}
    exact = gaussian()
    join = lambda x: jnp.concatenate([x["a"], x["b"][0]], -1)
    cut = lambda x: {"a": x[..., :1], "b": (x[..., 1:],)}
    model = diffusion.Denoiser(lambda x, node: cut(exact.data(join(x), node)), diffusion.Data())
    build = lambda mask, y: diffusion.MCG(
        diffusion.Inpainting(mask), y, diffusion.DDIM(), consistency=diffusion.Unconstrained()
    )
    x = jnp.asarray(RNG.normal(size=(4, 2)))
    tree = diffusion.posterior_sample(
        model, build(mask, cut(jnp.array([0.7, 0.0]))), VP, TWO, cut(x)
    )
    plain = lambda x, y: (
        diffusion.posterior_sample(exact, build(np.array([True, False]), y), VP, TWO, x).value
    )
    y = jnp.array([0.7, 0.0])
    wanted = plain(x, y)
    np.testing.assert_allclose(join(tree.value), wanted, rtol=1e-10)
    mesh = jax.make_mesh((2,), ("i",), (AxisType.Auto,), devices=jax.devices()[:2])
    spread = jax.shard_map(plain, mesh=mesh, in_specs=(P("i"), P()), out_specs=P("i"))
    np.testing.assert_allclose(jax.jit(spread)(x, y), wanted, rtol=1e-10)
    shared = jax.shard_map(
        lambda x, y: plain(x, y[0]), mesh=mesh, in_specs=(P(), P("i")), out_specs=P("i")
    )
    found = jax.jit(shared)(x, jnp.stack([y, 2 * y]))
    np.testing.assert_allclose(found, np.concatenate([wanted, plain(x, 2 * y)]), rtol=1e-10)


class Late(diffusion.AbstractSampler):
    """Evaluates the model away from where its steps begin."""

    def evaluations(self, num_steps):
        return num_steps

    def plan(self, schedule, times):
        return diffusion.ends(schedule, times)[0]

    def step(self, model, x, memory, row, key):
        return model.data(2 * x, row), memory


GOOD = dict(measurement=SEEN, y=jnp.zeros(2))
BAD = {
    "weight": (lambda: diffusion.MCG(**GOOD, weight=-1.0), ValueError, "weight"),
    "sampler": (lambda: diffusion.MCG(**GOOD, sampler=diffusion.DDIM), TypeError, "sampler"),
    "measurement": (lambda: diffusion.MCG(lambda x: x, jnp.zeros(2)), TypeError, "measurement"),
    "consistency": (lambda: diffusion.MCG(**GOOD, consistency=None), TypeError, "consistency"),
    "repeats": (lambda: diffusion.RePaint(**GOOD, repeats=0), ValueError, "repeats"),
    "relaxation": (lambda: diffusion.Kaczmarz(0.0), ValueError, "relaxation"),
    "step": (lambda: diffusion.Transpose(-1.0), ValueError, "step_size"),
    "y": (lambda: run(diffusion.MCG(SEEN, jnp.zeros(3)), jnp.zeros((4, 2))), ValueError, "y must"),
    "x": (
        lambda: run(diffusion.MCG(**GOOD), jnp.zeros((4, 3))),
        ValueError,
        "does not fit samples",
    ),
    "axes": (
        lambda: run(diffusion.MCG(**GOOD, batch_ndim=2), jnp.zeros(2)),
        ValueError,
        "leading axes",
    ),
    "late": (
        lambda: run(diffusion.MCG(**GOOD, sampler=Late()), jnp.zeros((4, 2))),
        TypeError,
        "where its steps begin",
    ),
    "guided": (lambda: run(diffusion.DDIM(), jnp.zeros((4, 2))), TypeError, "guided"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_raises(case):
    make, error, match = BAD[case]
    with pytest.raises(error, match=match):
        make()
