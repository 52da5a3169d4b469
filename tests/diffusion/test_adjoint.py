"""Derivatives by the adjoint equation, against closed forms, loops and unrolled steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P
from scipy.linalg import expm, expm_frechet

from jaxopt_ext import diffusion

VP = diffusion.VariancePreserving(start=0.5, end=0.05)
VE = diffusion.VarianceExploding(start=2.0, end=0.2)
TIMES = np.array([2.0, 1.1, 0.9, 0.5, 0.2])
RNG = np.random.default_rng(0)
X, W, THETA = RNG.normal(size=(3, 2)), RNG.normal(size=(3, 2)), RNG.normal(size=2)


def small(theta):
    return diffusion.Denoiser(lambda x, node: jnp.tanh(theta * x + node.sigma))


def gradients(x, theta, run=diffusion.sample_adjoint, method=None, times=TIMES, **options):
    method = diffusion.Euler() if method is None else method

    def loss(x, theta):
        return jnp.sum(W * run(small(theta), method, VE, times, x, **options).value)

    return jax.grad(loss, (0, 1))(jnp.asarray(x), jnp.asarray(theta))


@pytest.mark.parametrize("form", [diffusion.NoiseForm(), diffusion.DataForm()])
def test_linear_networks_by_matrix_exponentials(form):
    B = np.array([[0.3, -0.5], [0.4, 0.2]])
    is_noise = isinstance(form, diffusion.NoiseForm)
    predicts = diffusion.Noise() if is_noise else diffusion.Data()
    first, last = (VP.nodes(t) for t in (VP.start, VP.end))
    # Where y = x/a has dy/drho = B y.
    size, ratio = ("alpha", "sigma") if is_noise else ("sigma", "alpha")

    def loss(x, B):
        network = lambda x, node: x / getattr(node, size) @ B.T
        model = diffusion.Denoiser(network, predicts)
        times = diffusion.uniform_log_snr(VP, 60)
        out = diffusion.sample_adjoint(model, diffusion.RK4(form), VP, times, x)
        return jnp.sum(W * out.value)

    by_x, by_B = jax.grad(loss, (0, 1))(jnp.asarray(X), jnp.asarray(B))
    a, b = (getattr(node, size) for node in (first, last))
    length = getattr(last, ratio) / b - getattr(first, ratio) / a
    np.testing.assert_allclose(by_x, b / a * W @ expm(length * B), rtol=1e-4)
    wanted = np.zeros((2, 2))
    for i, j in np.ndindex(2, 2):
        move = np.zeros((2, 2))
        move[i, j] = length
        wanted[i, j] = np.sum(W * (b / a * X @ expm_frechet(length * B, move)[1].T))
    np.testing.assert_allclose(by_B, wanted, rtol=1e-4)


def loop(times, backward, kept=()):
    """Euler's method there, and back on the three equations."""
    y, path = X, {times[0]: X}
    for s, t in itertools.pairwise(times):
        y = y + (t - s) * np.tanh(THETA * y + s)
        path[t] = y
    p, g = W, np.zeros(2)
    way = backward[::-1]
    for s, t in itertools.pairwise(way):
        if s in kept:
            y = path[s]
        e = np.tanh(THETA * y + s)
        pull = (1 - e**2) * p
        g = g - (t - s) * np.sum(y * pull, 0)
        y, p = y + (t - s) * e, p - (t - s) * THETA * pull
    return p, g


CASES = {
    "plain": ({}, TIMES, ()),
    "one point": ({"checkpoints": 1}, TIMES, (0.9,)),
    "all points": ({"checkpoints": 3}, TIMES, (1.1, 0.9, 0.5)),
    "own way back": (
        {"checkpoints": 1, "backward": np.array([2.0, 1.5, 0.5, 0.3, 0.25, 0.2])},
        np.array([2.0, 1.5, 0.5, 0.3, 0.25, 0.2]),
        (0.5,),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_a_loop(case):
    options, backward, kept = CASES[case]
    found = gradients(X, THETA, **options)
    for a, b in zip(found, loop(TIMES, backward, kept), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_nears_the_unrolled_gradient_by_one_order_more():
    gaps = []
    for count in (20, 40):
        times = np.linspace(2.0, 0.2, count + 1)
        run = lambda run, times=times: gradients(X, THETA, run, diffusion.Heun(), times)
        found, wanted = run(diffusion.sample_adjoint), run(diffusion.sample)
        gaps.append([np.abs(a - b).max() for a, b in zip(found, wanted, strict=True)])
    order = np.log2(np.divide(*gaps))
    np.testing.assert_allclose(order, 3, atol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "order"), [(diffusion.Euler(), 1), (diffusion.Heun(), 2)])
def test_orders_on_a_mixture(method, order):
    schedule = diffusion.VariancePreserving(end=0.01)
    means = jnp.array([[-2.0, 0.0], [1.0, 1.0], [0.5, -2.0]])
    x = jax.random.normal(jax.random.key(0), (16, 2))
    weights = jnp.arange(1, 33).reshape(16, 2) / 16

    def gradient(run, method, count):
        def loss(x, shift):
            exact = diffusion.GaussianMixture(means + shift, jnp.array([0.6, 0.8, 0.5]))
            times = diffusion.uniform_log_snr(schedule, count)
            value = run(exact.denoiser(), method, schedule, times, x).value
            return jnp.sum(jnp.sin(weights * value))

        return jax.grad(loss, (0, 1))(x, jnp.zeros(2))

    wanted = gradient(diffusion.sample, diffusion.Heun(), 3000)
    error = lambda found: [
        np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, wanted, strict=True)
    ]
    errors = [error(gradient(diffusion.sample_adjoint, method, n)) for n in (160, 320)]
    np.testing.assert_allclose(np.log2(np.divide(*errors)), order, atol=0.12)


def test_memory_does_not_grow_with_the_steps():
    x = jnp.zeros((200, 2))

    def size(run, count):
        times = np.linspace(2.0, 0.2, count + 1)
        fun = lambda x, theta: gradients_of_mean(run, times, x, theta)
        compiled = jax.jit(fun).lower(x, jnp.asarray(THETA)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def gradients_of_mean(run, times, x, theta):
        loss = lambda x: jnp.mean(run(small(theta), diffusion.Heun(), VE, times, x).value)
        return jax.grad(loss)(x)

    few, many = (size(diffusion.sample_adjoint, count) for count in (10, 1000))
    assert many <= few + 1000 * 8 * 20  # the plan's own rows, at most
    assert size(diffusion.sample, 1000) > 1000 * x.nbytes


def test_sums_of_half_precision_are_in_single():
    times = np.linspace(2.0, 0.2, 1001)

    def loss(theta):
        model = diffusion.Denoiser(lambda x, node: theta + 0 * x)
        out = diffusion.sample_adjoint(model, diffusion.Euler(), VE, times, jnp.zeros_like(theta))
        return jnp.sum(out.value)

    found = jax.grad(loss)(jnp.ones(2, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    # Of a thousand equal shares, sums of eight bits would lose most.
    np.testing.assert_allclose(np.asarray(found, np.float64), -1.8, rtol=0.01)


def test_pytrees_batches_and_meshes():
    theta = jnp.asarray(THETA)

    def loss(x, theta):
        network = lambda x, node: {"a": jnp.tanh(theta[:1] * x["a"]), "b": (theta[1:] * x["b"][0],)}
        out = diffusion.sample_adjoint(
            diffusion.Denoiser(network), diffusion.Heun(), VE, TIMES, x, denoise=True
        )
        return jnp.sum(out.value["a"] ** 2) + jnp.sum(out.value["b"][0])

    tree = {"a": jnp.asarray(X[:, :1]), "b": (jnp.asarray(X[:, 1:]),)}
    one = jax.jit(jax.grad(loss, (0, 1)))
    singles = [one(jax.tree.map(lambda a, i=i: a[i], tree), theta) for i in range(3)]
    together = jax.vmap(jax.grad(loss, (0, 1)), (0, None))(tree, theta)
    np.testing.assert_allclose(together[1], [g for _, g in singles], rtol=1e-10)
    np.testing.assert_allclose(together[0]["a"], [x["a"] for x, _ in singles], rtol=1e-10)
    # What all devices share has the sum of their derivatives.
    mesh = jax.make_mesh((3,), ("i",), (AxisType.Auto,), devices=jax.devices()[:3])
    part = lambda x, theta: jax.grad(loss, (0, 1))(x, theta)
    spread = jax.shard_map(part, mesh=mesh, in_specs=(P("i"), P()), out_specs=(P("i"), P()))
    by_x, by_theta = jax.jit(spread)(tree, theta)
    np.testing.assert_allclose(by_theta, sum(g for _, g in singles), rtol=1e-10)
    np.testing.assert_allclose(by_x["b"][0], together[0]["b"][0], rtol=1e-10)


def test_only_what_is_asked_for_is_differentiated():
    run = lambda theta: diffusion.sample_adjoint(
        small(theta), diffusion.Euler(), VE, TIMES, jnp.asarray(X)
    )
    assert run(jnp.asarray(THETA)).evaluations == 4
    found = jax.grad(lambda theta: jnp.sum(W * run(theta).value))(jnp.asarray(THETA))
    np.testing.assert_allclose(found, loop(TIMES, TIMES)[1], rtol=1e-10)


BAD = {
    "ancestral": (dict(method=diffusion.DDIM(1.0)), TypeError, "Runge-Kutta"),
    "ends": (dict(backward=[2.0, 0.5]), ValueError, "lead from"),
    "rising": (dict(backward=[0.2, 2.0]), ValueError, "falls"),
    "points": (dict(checkpoints=4), ValueError, "checkpoints"),
    "common points": (
        dict(checkpoints=2, backward=[2.0, 1.1, 0.3, 0.2]),
        ValueError,
        "common inner",
    ),
    "no count": (dict(checkpoints=0.5), TypeError, "checkpoints"),
    "no denoiser": (dict(model=lambda x, node: x), TypeError, "Denoiser"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_raises(case):
    change, error, match = BAD[case]
    arguments = dict(
        model=small(jnp.asarray(THETA)),
        method=diffusion.Euler(),
        schedule=VE,
        times=TIMES,
        x=jnp.asarray(X),
    )
    with pytest.raises(error, match=match):
        diffusion.sample_adjoint(**(arguments | change))


def test_forward_mode_is_refused_with_a_hint():
    run = lambda x: (
        diffusion.sample_adjoint(small(jnp.asarray(THETA)), diffusion.Euler(), VE, TIMES, x).value
    )
    with pytest.raises(TypeError, match="reverse mode only"):
        jax.jvp(run, (jnp.asarray(X),), (jnp.asarray(W),))
