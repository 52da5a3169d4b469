"""Schedules, grids, predictions and the exact denoiser against closed forms and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from jaxopt_ext import diffusion

SCHEDULES = {
    "VP": diffusion.VariancePreserving(),
    "cosine": diffusion.Cosine(),
    "VE": diffusion.VarianceExploding(),
    "flow": diffusion.RectifiedFlow(),
}
EACH = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
MIXTURE = diffusion.GaussianMixture(
    np.array([[-2.0, 0.0], [1.0, 1.0], [0.5, -2.0]]), np.array([0.3, 0.5, 0.2]), [0.5, 0.3, 0.2]
)


@EACH
def test_signal_falls_with_time(schedule):
    t = np.linspace(schedule.end, schedule.start, 101)
    assert np.all(np.diff(schedule.log_snr(t)) < 0)
    assert np.all(schedule.sigma(t) > 0)
    np.testing.assert_allclose(schedule.time_at(schedule.log_snr(t)), t, rtol=1e-7)


@pytest.mark.parametrize("name", ["VP", "cosine"])
def test_variance_is_preserved(name):
    t = np.linspace(0.01, 0.99, 50)
    schedule = SCHEDULES[name]
    np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1, rtol=1e-14)


def test_coefficients_equal_their_definitions():
    t = 0.37
    vp = -0.5 * quad(lambda s: 0.1 + s * 19.9, 0, t)[0]
    np.testing.assert_allclose(SCHEDULES["VP"].log_alpha(t), vp, rtol=1e-12)
    cosine = np.cos((t + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)
    np.testing.assert_allclose(SCHEDULES["cosine"].alpha(t), cosine, rtol=1e-12)
    assert SCHEDULES["VE"].nodes(t) == (t, 1, t)
    np.testing.assert_allclose(SCHEDULES["flow"].nodes(t), (t, 1 - t, t))


@EACH
@pytest.mark.parametrize("grid", ["uniform_time", "uniform_log_snr", "karras", "quadratic_time"])
def test_grids_fall_from_end_to_end(schedule, grid):
    t = getattr(diffusion, grid)(schedule, 10)
    assert t.shape == (11,)
    assert (t[0], t[-1]) == (schedule.start, schedule.end)
    assert np.all(np.diff(t) < 0)
    even = {
        "uniform_time": t,
        "quadratic_time": np.sqrt(t),
        "uniform_log_snr": schedule.log_snr(t),
        "karras": np.exp(-schedule.log_snr(t) / 7),
    }[grid]
    np.testing.assert_allclose(np.diff(even), np.diff(even)[0], rtol=1e-5)


PREDICTIONS = {
    "noise": (diffusion.Noise(), lambda x0, e, a, s: e),
    "data": (diffusion.Data(), lambda x0, e, a, s: x0),
    "velocity": (diffusion.Velocity(), lambda x0, e, a, s: a * e - s * x0),
    "score": (diffusion.Score(), lambda x0, e, a, s: -e / s),
}


@EACH
@pytest.mark.parametrize("name", PREDICTIONS)
def test_noise_and_data_follow_from_any_prediction(dtype, schedule, name):
    predicts, output = PREDICTIONS[name]
    rng = np.random.default_rng(0)
    x0, e = rng.normal(size=3), rng.normal(size=3)
    _, a, s = schedule.nodes(0.4)
    node = diffusion.Node(0.4, a, s)
    array = lambda v: {"x": jnp.asarray(v, dtype)}
    model = diffusion.Denoiser(lambda x, node: array(output(x0, e, a, s)), predicts)
    x = array(a * x0 + s * e)
    tolerance = dict(rtol=2e-5, atol=2e-5) if dtype == jnp.float32 else dict(rtol=1e-12)
    np.testing.assert_allclose(model.noise(x, node)["x"], e, **tolerance)
    np.testing.assert_allclose(model.data(x, node)["x"], x0, **tolerance)
    assert model.noise(x, node)["x"].dtype == dtype


@EACH
def test_preconditioning(schedule):
    node = schedule.nodes(0.4)
    _, a, s = node
    rho, x = s / a, np.array([0.3, -1.0])
    seen = {}

    def network(x, node):
        seen.update(x=x, t=node.t)
        return 2 * x

    model = diffusion.Denoiser(network, diffusion.Preconditioned(0.5))
    data = model.data(jnp.asarray(x), node)
    scale = 1 / np.sqrt(rho**2 + 0.25)
    np.testing.assert_allclose(seen["x"], scale * x / a)
    np.testing.assert_allclose(seen["t"], np.log(rho) / 4)
    wanted = 0.25 / (rho**2 + 0.25) * x / a + rho * 0.5 * scale * 2 * scale * x / a
    np.testing.assert_allclose(data, wanted)
    np.testing.assert_allclose(model.noise(jnp.asarray(x), node), (x - a * wanted) / s)


@EACH
def test_the_exact_denoiser_is_the_gradient_of_the_density(schedule):
    node = schedule.nodes(0.3)
    _, a, s = node

    def log_density(x):
        variances = a**2 * MIXTURE.scales**2 + s**2
        squares = jnp.sum((x - a * MIXTURE.means) ** 2, -1)
        terms = jnp.log(MIXTURE.weights) - jnp.log(variances) - 0.5 * squares / variances
        return jax.nn.logsumexp(terms)

    x = jnp.array([0.2, -0.7])
    noise = MIXTURE.denoiser().noise(x, node)
    np.testing.assert_allclose(noise, -s * jax.grad(log_density)(x), rtol=1e-9)
    batch = MIXTURE.denoiser().noise(jnp.stack([x, 2 * x]), node)
    np.testing.assert_allclose(batch[0], noise, rtol=1e-12)


def test_moments_of_the_mixture():
    draws = MIXTURE.sample(jax.random.key(0), 200_000)
    mean, covariance = MIXTURE.moments()
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.05)


def test_ddim_is_exact_for_a_constant_noise():
    e = jnp.array([0.3, -2.0])
    model = diffusion.Denoiser(lambda x, node: e)
    schedule, x0 = SCHEDULES["VP"], jnp.array([1.0, 2.0])
    x = schedule.alpha(1.0) * x0 + schedule.sigma(1.0) * e
    out = diffusion.sample(model, diffusion.DDIM(), schedule, [1.0, 0.5, 0.001], x, denoise=True)
    np.testing.assert_allclose(out.value, x0, rtol=1e-5)
    assert out.evaluations == 3


@EACH
def test_ancestral_noise_is_that_of_the_posterior(schedule):
    t = np.array([0.7, 0.4])
    (_, a, s), (_, b, r) = schedule.nodes(t[0]), schedule.nodes(t[1])
    *_, fresh = diffusion.DDIM(1.0).plan(schedule, t)
    # x_t | x_0 has variance r^2; x_s = (a/b) x_t + noise; the posterior of x_t is Gaussian.
    step = s**2 - (a / b * r) ** 2
    np.testing.assert_allclose(fresh**2, 1 / (1 / r**2 + (a / b) ** 2 / step), rtol=1e-10)


BAD = {
    "rising times": (dict(times=[0.1, 0.5]), ValueError, "falls"),
    "one time": (dict(times=[0.5]), ValueError, "at least two"),
    "outside": (dict(times=[1.5, 0.5]), ValueError, "within"),
    "integers": (dict(x=jnp.arange(2)), TypeError, "floating"),
    "no denoiser": (dict(model=lambda x, node: x), TypeError, "Denoiser"),
    "no sampler": (dict(sampler="ddim"), TypeError, "AbstractSampler"),
    "no key": (dict(sampler=diffusion.DDIM(1.0)), ValueError, "key"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_raises(case):
    change, error, match = BAD[case]
    arguments = dict(
        model=MIXTURE.denoiser(),
        sampler=diffusion.DDIM(),
        schedule=SCHEDULES["VP"],
        times=[1.0, 0.5],
        x=jnp.ones(2),
    )
    with pytest.raises(error, match=match):
        diffusion.sample(*(arguments | change).values())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: diffusion.DDIM(eta=1.5), "eta"),
        (lambda: diffusion.DDIM(eta=-0.1), "eta"),
        (lambda: diffusion.VariancePreserving(beta_min=3.0, beta_max=2.0), "beta_min"),
        (lambda: diffusion.RectifiedFlow(start=1.0), "start"),
        (lambda: diffusion.Cosine(shift=0.0), "shift"),
        (lambda: diffusion.VarianceExploding(end=0.0), "end"),
        (lambda: diffusion.karras(SCHEDULES["VE"], 0), "num_steps"),
        (lambda: diffusion.karras(SCHEDULES["VE"], 4, rho=0.0), "rho"),
        (lambda: diffusion.Preconditioned(0.0), "sigma_data"),
        (lambda: diffusion.GaussianMixture(jnp.ones((2, 3)), jnp.ones(3)), "scales"),
        (lambda: diffusion.GaussianMixture(jnp.ones((2, 3)), -jnp.ones(2)), "scales"),
    ],
)
def test_bad_hyperparameters_raise(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@EACH
def test_schedules_answer_inside_jit_as_on_the_host(schedule):
    t = np.linspace(schedule.end, schedule.start, 7)
    compiled = jax.jit(lambda t: (schedule.nodes(t), schedule.time_at(schedule.log_snr(t))))
    nodes, back = compiled(jnp.asarray(t))
    np.testing.assert_allclose(nodes, schedule.nodes(t), rtol=1e-9)
    np.testing.assert_allclose(back, t, rtol=1e-6)
    single = compiled(jnp.asarray(t, jnp.float32))[0]
    assert all(a.dtype == jnp.float32 for a in single)


@pytest.mark.parametrize("betas", [diffusion.linear_betas(50), diffusion.cosine_betas(50)])
def test_a_chain_keeps_its_steps_and_is_linear_between_them(betas):
    schedule = diffusion.DiscreteSchedule(betas)
    steps = np.cumprod(1 - betas)
    np.testing.assert_allclose(schedule.alpha(np.arange(1, 51) / 50) ** 2, steps, rtol=1e-12)
    np.testing.assert_allclose(schedule.sigma(1.0) ** 2, 1 - steps[-1], rtol=1e-12)
    middle = 0.25 * (np.log(steps[9]) + np.log(steps[10]))
    np.testing.assert_allclose(schedule.log_alpha(10.5 / 50), middle, rtol=1e-12)
    t = np.linspace(0.02, 1.0, 33)
    np.testing.assert_allclose(schedule.time_at(schedule.log_snr(t)), t, rtol=1e-9)
    nodes = jax.jit(lambda t: schedule.nodes(t))(jnp.asarray(t))
    np.testing.assert_allclose(nodes, schedule.nodes(t), rtol=1e-12)


def test_grids_of_chains():
    schedule = diffusion.DiscreteSchedule(diffusion.linear_betas(100))
    steps = lambda times: np.round(times * 100).astype(int) - 1
    assert steps(diffusion.leading(schedule, 4)).tolist() == [75, 50, 25, 0, -1]
    assert steps(diffusion.leading(schedule, 4, offset=1)).tolist() == [76, 51, 26, 1, 0]
    assert steps(diffusion.trailing(schedule, 4)).tolist() == [99, 74, 49, 24, 0]
    assert steps(diffusion.linspaced(schedule, 4)).tolist() == [99, 66, 33, 0, -1]
    with pytest.raises(ValueError, match="at most 100"):
        diffusion.leading(schedule, 101)
    with pytest.raises(TypeError, match="DiscreteSchedule"):
        diffusion.trailing(diffusion.VariancePreserving(), 4)
    with pytest.raises(ValueError, match="betas"):
        diffusion.DiscreteSchedule([0.1, 1.0])


def test_ddim_ends_without_noise_at_the_denoised_point():
    schedule = diffusion.DiscreteSchedule(diffusion.linear_betas(100))
    times = diffusion.leading(schedule, 10)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))
    run = lambda times, **options: (
        diffusion.sample(MIXTURE.denoiser(), diffusion.DDIM(), schedule, times, x, **options).value
    )
    np.testing.assert_allclose(run(times), run(times[:-1], denoise=True), rtol=1e-12)
    with pytest.raises(ValueError, match="lie within"):
        diffusion.sample(MIXTURE.denoiser(), diffusion.Heun(), schedule, times, x)
