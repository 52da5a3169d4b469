"""Samplers that run backwards: loops in numpy, round trips and finite differences."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture_noise import mixture_noise

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import BDIA, EDICT, DDIMInversion, EulerIncrement, HeunIncrement

SCHEDULE = diffusion.VariancePreserving(start=1.0, end=0.01)
START = np.array([[0.4, -1.1], [2.0, 0.3]])
SHIFT = 0.3


def network(x, t, xp=np):
    return xp.sin(2 * x + 3 * t) + 0.5 * x


def model(shift=0.0):
    return diffusion.Denoiser(lambda x, node: network(x + shift, node.t, jnp))


MODEL = model()


def mixture(dtype=jnp.float64, shift=0.0):
    """Unlike the model above, its paths do not run together."""
    means = jnp.asarray([[-2.0, 0.0], [1.0, 1.0], [0.5, -2.0]], dtype) + jnp.asarray(shift, dtype)
    return diffusion.GaussianMixture(means, jnp.asarray([0.6, 0.8, 0.5], dtype)).denoiser()


def exact_noise(x, node):
    """That of the mixture, in numpy."""
    means, scales = np.array([[-2.0, 0.0], [1.0, 1.0], [0.5, -2.0]]), np.array([0.6, 0.8, 0.5])
    return mixture_noise(x, node.alpha, node.sigma, means, scales)


def even(count):
    return diffusion.uniform_time(SCHEDULE, count)


def numbers(times):
    return SCHEDULE.alpha(times), SCHEDULE.sigma(times), times


def move(z, e, i, j, nodes):
    alpha, sigma, _ = nodes
    ratio = alpha[j] / alpha[i]
    return ratio * z + (sigma[j] - ratio * sigma[i]) * e


def bdia_by_hand(gamma, kind, count):
    """Here index 0 is the noise."""
    nodes = numbers(even(count))
    times = nodes[2]

    def heun(z, e, i, j):
        other = network(move(z, e, i, j, nodes), times[j])
        return move(z, (e + other) / 2, i, j, nodes)

    path = [START]
    for i in range(count):
        z = path[-1]
        e = network(z, times[i])
        new = move(z, e, i, i + 1, nodes) if kind == "Euler" else heun(z, e, i, i + 1)
        if i:
            back = heun(z, e, i, i - 1) if kind == "both" else move(z, e, i, i - 1, nodes)
            new = new + gamma * (path[-2] - back)
        path.append(new)
    return np.stack(path[1:])


INCREMENTS = {
    "Euler": EulerIncrement(),
    "Heun": HeunIncrement(),
    "both": HeunIncrement(both=True),
}


@pytest.mark.parametrize(
    ("gamma", "kind"),
    [(0.0, "Euler"), (0.5, "Euler"), (1.0, "Euler"), (0.5, "Heun"), (0.5, "both")],
)
def test_a_run_equals_a_loop(gamma, kind):
    sampler = BDIA(gamma, INCREMENTS[kind])
    run = diffusion.sample(MODEL, sampler, SCHEDULE, even(7), jnp.asarray(START), trace=True)
    np.testing.assert_allclose(run.path, bdia_by_hand(gamma, kind, 7), rtol=1e-11)
    assert run.evaluations == 7 * {"Euler": 1, "Heun": 2, "both": 3}[kind]
    if gamma == 0:
        ddim = diffusion.sample(MODEL, diffusion.DDIM(), SCHEDULE, even(7), jnp.asarray(START))
        np.testing.assert_allclose(run.value, ddim.value, rtol=1e-12)


def test_a_step_is_affine_with_the_numbers_of_the_plan():
    plan = BDIA(0.7).plan(SCHEDULE, even(5))
    row = jax.tree.map(lambda a: a[3], plan)
    rng = np.random.default_rng(0)
    before, z = rng.normal(size=(2, 3))
    noise = network(z, row.here.t)
    wanted = (
        (row.keep_ahead - 0.7 * row.keep_behind) * z
        + (row.move_ahead - 0.7 * row.move_behind) * noise
        + 0.7 * before
    )
    key = jax.random.key(0)
    new, memory = BDIA(0.7).step(MODEL, jnp.asarray(z), jnp.asarray(before), row, key)
    np.testing.assert_allclose(new, wanted, rtol=1e-12)
    np.testing.assert_array_equal(memory, z)


def test_coupled_chains_equal_a_loop():
    nodes, p = numbers(even(6)), 0.8
    x = y = START
    for i, t in enumerate(nodes[2][:-1]):
        x = move(x, network(y, t), i, i + 1, nodes)
        y = move(y, network(x, t), i, i + 1, nodes)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
    run = diffusion.sample(MODEL, EDICT(p), SCHEDULE, even(6), jnp.asarray(START))
    np.testing.assert_allclose(run.value, x, rtol=1e-11)
    assert run.evaluations == 12


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (BDIA(1.0), 2),
        pytest.param(BDIA(0.9), 1, marks=pytest.mark.slow),
        pytest.param(BDIA(1.0, HeunIncrement()), 1, marks=pytest.mark.slow),
        pytest.param(BDIA(0.5, HeunIncrement(both=True)), 2, marks=pytest.mark.slow),
        pytest.param(EDICT(), 1, marks=pytest.mark.slow),
    ],
    ids=["symmetric", "nearly", "one Heun", "both Heun", "coupled"],
)
def test_order_of_convergence(sampler, order):
    x = jnp.asarray(START)
    run = lambda sampler, count: diffusion.sample(MODEL, sampler, SCHEDULE, even(count), x).value
    exact = run(diffusion.Heun(), 10_000)
    errors = [np.abs(run(sampler, count) - exact).max() for count in (320, 640)]
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.25


@pytest.mark.parametrize(
    ("sampler", "wide", "narrow"),
    [
        (BDIA(1.0), 1e-13, 1e-5),
        pytest.param(BDIA(0.96), 1e-12, 2e-5, marks=pytest.mark.slow),
        pytest.param(EDICT(), 1e-10, 2e-3, marks=pytest.mark.slow),
        pytest.param(BDIA(0.9), 1e-11, 1e-3, marks=pytest.mark.slow),
        pytest.param(BDIA(1.0, HeunIncrement()), 1e-13, 1e-5, marks=pytest.mark.slow),
        pytest.param(BDIA(1.0, HeunIncrement(both=True)), 1e-13, 1e-5, marks=pytest.mark.slow),
    ],
    ids=["1", "0.96", "coupled", "0.9", "Heun", "both"],
)
def test_round_trips_are_exact_up_to_rounding(sampler, wide, narrow, dtype):
    times, image = even(50), jnp.asarray(START, dtype)
    code = diffusion.encode(mixture(dtype), sampler, SCHEDULE, times, image)
    back = diffusion.decode(mixture(dtype), sampler, SCHEDULE, times, code)
    bound = narrow if dtype == jnp.float32 else wide
    assert back.value.dtype == dtype
    assert np.abs(back.value - image).max() < bound
    assert np.abs(code.value - image).max() > 0.1
    if isinstance(sampler, BDIA):  # a whole run, undone from its last two points
        run = diffusion.sample(mixture(dtype), sampler, SCHEDULE, times, image, trace=True)
        first = diffusion.invert(mixture(dtype), sampler, SCHEDULE, times, run.value, run.path[-2])
        assert np.abs(first.value - image).max() < 10 * bound


def test_ddim_is_undone_roughly():
    times, image, exact = even(50), jnp.asarray(START), mixture()
    code = diffusion.encode(exact, DDIMInversion(), SCHEDULE, times, image)
    back = diffusion.decode(exact, DDIMInversion(), SCHEDULE, times, code).value
    assert 1e-3 < np.abs(back - image).max() < 1
    ddim = diffusion.sample(exact, diffusion.DDIM(), SCHEDULE, times, code.value).value
    np.testing.assert_allclose(back, ddim, rtol=1e-12)
    # against a loop, from the data to the noise
    nodes, z = numbers(times), START
    for i in range(50, 0, -1):
        z = move(z, exact_noise(z, SCHEDULE.nodes(times[i])), i, i - 1, nodes)
    np.testing.assert_allclose(code.value, z, rtol=1e-11)


def test_what_rounding_would_destroy_warns():
    times, x = even(50), jnp.asarray(START)
    with pytest.warns(UserWarning, match="rounding"):
        diffusion.encode(MODEL, BDIA(0.5), SCHEDULE, times, x)
    with pytest.warns(UserWarning, match="rounding"):
        diffusion.encode(MODEL, BDIA(0.8), SCHEDULE, times, x.astype(jnp.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diffusion.encode(MODEL, BDIA(0.8), SCHEDULE, times, x)


@pytest.mark.parametrize("sampler", [BDIA(1.0), pytest.param(EDICT(), marks=pytest.mark.slow)])
def test_gradient_without_kept_points_equals_the_plain_one(sampler):
    times = even(30)

    runs = diffusion.sample_reversible, diffusion.sample

    def slope(run, *arguments):
        def score(shift, x):
            out = run(mixture(shift=shift), sampler, SCHEDULE, times, x)
            return jnp.sum(jnp.sin(out.value))

        return jax.grad(score, (0, 1))(*arguments)

    both = jax.jit(lambda *arguments: [slope(run, *arguments) for run in runs])
    found, wanted = both(jnp.array(SHIFT), jnp.array(START))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    value = lambda run, shift: np.asarray(
        run(mixture(shift=shift), sampler, SCHEDULE, times, jnp.array(START)).value
    )
    high, low = (np.sum(np.sin(value(runs[0], SHIFT + h))) for h in (1e-5, -1e-5))
    np.testing.assert_allclose(found[0], (high - low) / 2e-5, rtol=1e-6)
    np.testing.assert_array_equal(*(value(run, 0.0) for run in runs))


@pytest.mark.slow
@pytest.mark.parametrize("check", [True, False])
def test_gradient_in_shard_map_and_vmap(check):
    times, sampler = even(10), BDIA(1.0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)))

    def slope(x, shift):
        def score(shift, x):
            run = diffusion.sample_reversible(mixture(shift=shift), sampler, SCHEDULE, times, x)
            return jnp.sum(jnp.sin(run.value))

        return jax.vmap(jax.grad(score, (0, 1)))(shift, x)

    shift = jnp.full(8, SHIFT)
    mesh, part = jax.sharding.Mesh(jax.devices()[:8], ("d",)), jax.sharding.PartitionSpec("d")
    spread = jax.shard_map(slope, mesh=mesh, in_specs=part, out_specs=part, check_vma=check)
    for a, b in zip(spread(x, shift), slope(x, shift), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_its_memory_does_not_grow_with_the_steps():
    def temporaries(run, count):
        score = lambda x: jnp.sum(run(MODEL, BDIA(1.0), SCHEDULE, even(count), x).value)
        compiled = jax.jit(jax.grad(score)).lower(jnp.ones(10_000)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = (temporaries(diffusion.sample_reversible, count) for count in (10, 100))
    assert large < small + 100_000
    assert temporaries(diffusion.sample, 100) > 5 * large


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: BDIA(-0.1), ValueError, "gamma"),
        (lambda: BDIA(1.1), ValueError, "gamma"),
        (lambda: BDIA(increment="Heun"), TypeError, "increment"),
        (lambda: EDICT(0.0), ValueError, "p must"),
        (
            lambda: diffusion.encode(MODEL, BDIA(0.0), SCHEDULE, even(5), jnp.ones(2)),
            ValueError,
            "gamma 0",
        ),
        (
            lambda: diffusion.encode(MODEL, diffusion.DDIM(), SCHEDULE, even(5), jnp.ones(2)),
            TypeError,
            "AbstractInvertible",
        ),
        (
            lambda: diffusion.encode(MODEL, BDIA(1.0), SCHEDULE, [1.0, 0.5, 0.0], jnp.ones(2)),
            ValueError,
            "within",
        ),
    ],
)
def test_bad_input_raises(make, error, match):
    with pytest.raises(error, match=match):
        make()
