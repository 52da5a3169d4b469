"""Score steps of a chain, plain and accelerated, against loops in the paper's indices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import diffusion

MEANS, SCALES = np.array([-1.5, 0.5, 2.0]), np.array([0.4, 0.6, 0.3])
WEIGHTS = np.array([0.3, 0.5, 0.2])
MIXTURE = diffusion.GaussianMixture(jnp.asarray(MEANS)[:, None], SCALES, WEIGHTS)
BETAS = np.array([0.02, 0.05, 0.1, 0.3, 0.2, 0.25])  # rates that rise and fall
T = len(BETAS)
KEY = jax.random.key(3)
SAMPLERS = {
    "plain DDIM": diffusion.PlainScoreDDIM(),
    "accelerated DDIM": diffusion.AcceleratedDDIM(),
    "plain DDPM": diffusion.PlainScoreDDPM(),
    "accelerated DDPM": diffusion.AcceleratedDDPM(),
}
EACH = pytest.mark.parametrize("name", SAMPLERS)


def score(y, alpha_bar):
    """The derivative of the logarithm of the noisy density, of one number."""
    variances = alpha_bar * SCALES**2 + 1 - alpha_bar
    gaps = y - np.sqrt(alpha_bar) * MEANS
    densities = WEIGHTS * np.exp(-0.5 * gaps**2 / variances) / np.sqrt(variances)
    return np.sum(densities * -gaps / variances) / np.sum(densities)


def chain(name, y, draws):
    """Y_0 from Y_T, one number; lists are indexed as in the paper, from 1."""
    b = [None, *BETAS]
    a = [None, *(1 - BETAS)]
    bar = np.concatenate([[1.0], np.cumprod(1 - BETAS)])
    s = lambda t, y: score(y, bar[t])
    for t in range(T, 0, -1):
        z = draws[T - t]
        if name == "plain DDIM" or (name == "accelerated DDIM" and t == T):
            y = (y + b[t] / 2 * s(t, y)) / np.sqrt(a[t])
        elif name == "accelerated DDIM":
            back = np.sqrt(a[t + 1]) * (y - b[t + 1] / 2 * s(t, y))
            gap = s(t, y) - np.sqrt(a[t + 1]) * s(t + 1, back)
            y = (y + b[t] / 2 * s(t, y) + b[t] ** 2 / (4 * b[t + 1]) * gap) / np.sqrt(a[t])
        elif name == "plain DDPM":
            y = (y + b[t] * s(t, y) + np.sqrt(b[t]) * z[0]) / np.sqrt(a[t])
        else:
            y = y + np.sqrt(b[t] / 2) * z[0]
            y = (y + b[t] * s(t, y) + np.sqrt(b[t] / 2) * z[1]) / np.sqrt(a[t])
    return y


def draws_of(name, shape):
    """The normal numbers of each step."""

    @jax.jit
    def draws(key):
        keys = jax.random.split(key, T)
        keys = jax.vmap(jax.random.split)(keys) if name == "accelerated DDPM" else keys[:, None]
        return jax.vmap(jax.vmap(lambda k: diffusion.gaussian(jnp.zeros(shape), k)))(keys)

    return np.asarray(draws(KEY))


@EACH
def test_a_run_equals_a_loop_over_numbers(name):
    schedule = diffusion.DiscreteSchedule(BETAS)
    times = diffusion.linspaced(schedule, T)
    assert times[-1] == 0  # down to the data themselves
    x = np.array([-1.0, 0.2, 1.7])
    model = MIXTURE.denoiser()
    found = diffusion.sample(
        model, SAMPLERS[name], schedule, times, jnp.asarray(x)[:, None], key=KEY
    )
    draws = draws_of(name, (3, 1))[..., 0]
    wanted = [chain(name, x[i], draws[:, :, i]) for i in range(3)]
    np.testing.assert_allclose(np.asarray(found.value)[:, 0], wanted, rtol=1e-11)
    assert found.evaluations == (2 * T - 1 if name == "accelerated DDIM" else T)


@EACH
def test_any_schedule_is_a_chain_after_scaling(name):
    """The same levels in other variables are the same run."""
    plain = diffusion.VariancePreserving(end=0.01)
    times = diffusion.uniform_time(plain, 9)
    x = np.array([[-1.0], [0.2], [1.7]])
    wanted = diffusion.sample(
        MIXTURE.denoiser(), SAMPLERS[name], plain, times, jnp.array(x), key=KEY
    ).value
    levels = plain.log_snr(times)
    for other in (
        diffusion.RectifiedFlow(start=0.9999, end=0.001),
        diffusion.VarianceExploding(start=1000.0, end=0.001),
    ):
        nodes = other.nodes(other.time_at(levels))
        size = np.hypot(nodes.alpha, nodes.sigma)
        run = diffusion.sample(
            MIXTURE.denoiser(), SAMPLERS[name], other, nodes.t, jnp.array(size[0] * x), key=KEY
        )
        np.testing.assert_allclose(np.asarray(run.value) / size[-1], wanted, rtol=1e-8)


@pytest.mark.always(1)
@pytest.mark.parametrize("name", ["accelerated DDPM", "plain DDPM"])
def test_law_of_gaussian_data_follows_the_recursion_of_moments(name):
    """For normal data the score is affine, and so is each step."""
    mean, variance, num = 0.7, 0.25, 100_000
    data = diffusion.GaussianMixture(jnp.array([[mean]]), jnp.array([variance**0.5]))
    schedule = diffusion.DiscreteSchedule(BETAS)
    x = jnp.array(np.random.default_rng(0).normal(size=(num, 1)))
    times = diffusion.linspaced(schedule, T)
    out = diffusion.sample(data.denoiser(), SAMPLERS[name], schedule, times, x, key=KEY).value
    out = np.asarray(out)
    bar, m, v = np.cumprod(1 - BETAS), 0.0, 1.0
    for t in range(T - 1, -1, -1):
        b, spread = BETAS[t], bar[t] * variance + 1 - bar[t]
        early, late = (b / 2, b / 2) if name == "accelerated DDPM" else (0.0, b)
        slope = 1 - b / spread
        m = (slope * m + b * np.sqrt(bar[t]) * mean / spread) / np.sqrt(1 - b)
        v = (slope**2 * (v + early) + late) / (1 - b)
    np.testing.assert_allclose(out.mean(), m, atol=5 * np.sqrt(v / num))
    np.testing.assert_allclose(out.var(), v, rtol=5 * np.sqrt(2 / num))


@pytest.mark.parametrize(("num_steps", "c0", "c1"), [(40, 2.0, 4.0), (200, 1.5, 2.5)])
def test_the_schedule_of_the_proofs(num_steps, c0, c1):
    schedule = diffusion.theory_schedule(num_steps, c0, c1)
    betas = [num_steps**-c0]
    growth = c1 * np.log(num_steps) / num_steps
    for t in range(2, num_steps + 1):
        betas.append(growth * min(betas[0] * (1 + growth) ** t, 1))
    bars = np.cumprod(1 - np.array(betas))
    np.testing.assert_allclose(schedule.log_alphas[1:], 0.5 * np.log(bars), rtol=1e-12)
    times = diffusion.linspaced(schedule, num_steps)
    assert len(times) == num_steps + 1
    np.testing.assert_allclose(schedule.alpha(times) ** 2, [*bars[::-1], 1.0], rtol=1e-12)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="below 1"):
        diffusion.theory_schedule(5)
    with pytest.raises(ValueError, match="c1"):
        diffusion.theory_schedule(40, c1=0.0)
    with pytest.raises(ValueError, match="num_steps"):
        diffusion.theory_schedule(1)
