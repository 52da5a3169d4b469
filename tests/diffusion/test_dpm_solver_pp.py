"""DPM-Solver++ against its formulas in plain numpy, its law on Gaussian data, and its orders."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import (
    DPMSolver,
    DPMSolverPP,
    MultiStep,
    SDEDPMSolverPP,
    SingleStep,
    dpm_solver_pp,
)

SCHEDULE = diffusion.VariancePreserving(start=1.0, end=0.01)
MEANS, SCALES = np.array([[-2.0, 0.0], [1.0, 1.0], [0.5, -2.0]]), np.array([0.6, 0.8, 0.5])
MODEL = diffusion.GaussianMixture(MEANS, SCALES).denoiser()
START = np.random.default_rng(0).normal(size=(4, 2))
TIMES = diffusion.uniform_time(SCHEDULE, 5)  # steps that differ in lambda
FREE = dict(lower_order_final=0)


def data(x, t):
    """The exact mean of the mixture's data, from its density."""
    a, s = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    variances = a**2 * SCALES**2 + s**2
    gaps = x[:, None] - a * MEANS
    weights = np.exp(-0.5 * np.sum(gaps**2, -1) / variances) / variances
    weights /= weights.sum(1, keepdims=True)
    return np.sum(weights[..., None] * (MEANS + (a * SCALES**2 / variances)[:, None] * gaps), 1)


def eagerly(sampler, times=TIMES, predict=data, wrap=lambda model: model):
    """A run as a Python loop over the rows of the plan, without a program."""
    network = lambda x, node: jnp.asarray(predict(np.asarray(x), float(node.t)))
    model, x = wrap(diffusion.Denoiser(network, diffusion.Data())), jnp.asarray(START)
    table = sampler.plan(SCHEDULE, np.asarray(times))
    with jax.disable_jit():
        memory = sampler.start(model, x, SCHEDULE.nodes(times[0]))
        for i in range(len(times) - 1):
            row = jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), table)
            x, memory = sampler.step(model, x, memory, row, i)
    return np.asarray(x)


def at(log_snr):
    t = SCHEDULE.time_at(log_snr)
    return t, SCHEDULE.alpha(t), SCHEDULE.sigma(t)


@pytest.mark.parametrize("taylor", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_single_steps_are_the_papers(order, taylor):
    x = START
    for s, t in itertools.pairwise(TIMES):
        ls, lt = SCHEDULE.log_snr(s), SCHEDULE.log_snr(t)
        h, (_, _, s_s), (_, a_t, s_t) = lt - ls, at(ls), at(lt)
        m0, p1 = data(x, s), np.expm1(-h)
        p2 = p1 / h + 1
        first = s_t / s_s * x - a_t * p1 * m0
        if order == 2:
            u, a, sig = at(ls + h / 2)
            d = data(sig / s_s * x - a * np.expm1(-h / 2) * m0, u) - m0
            first = first + (2 * a_t * p2 * d if taylor else -a_t * p1 * d)
        if order == 3:
            r1, r2 = 1 / 3, 2 / 3
            (u1, a1, s1), (u2, a2, s2) = at(ls + r1 * h), at(ls + r2 * h)
            m1 = data(s1 / s_s * x - a1 * np.expm1(-r1 * h) * m0, u1)
            x2 = s2 / s_s * x - a2 * np.expm1(-r2 * h) * m0
            x2 = x2 + a2 * r2 / r1 * (np.expm1(-r2 * h) / (r2 * h) + 1) * (m1 - m0)
            m2 = data(x2, u2)
            if taylor:
                d1, d2 = (m1 - m0) / r1, (m2 - m0) / r2
                slope, bend = (r2 * d1 - r1 * d2) / (r2 - r1), 2 * (d2 - d1) / (r2 - r1)
                first = first + a_t * p2 * slope - a_t * (p2 / h - 0.5) * bend
            else:
                first = first + a_t / r2 * p2 * (m2 - m0)
        x = first
    found = eagerly(DPMSolverPP(SingleStep(order, None, taylor)))
    np.testing.assert_allclose(found, x, rtol=1e-11, atol=1e-12)


def multistep(x, times, orders, *, taylor=False, factor=2.0, predict=data):
    """A run as the paper writes it; `factor` is that of the second derivative."""
    before, log_snrs = [], []
    for order, (s, t) in zip(orders, itertools.pairwise(times), strict=True):
        m0 = predict(x, s)
        before = [m0, *before]
        log_snrs = [SCHEDULE.log_snr(s), *log_snrs]
        if SCHEDULE.sigma(t) == 0:
            return m0
        h = SCHEDULE.log_snr(t) - log_snrs[0]
        (_, _, s_s), (_, a_t, s_t) = at(log_snrs[0]), at(SCHEDULE.log_snr(t))
        p1 = np.expm1(-h)
        p2 = p1 / h + 1
        p3 = p2 / h - 0.5
        x = s_t / s_s * x - a_t * p1 * m0
        if order > 1:
            r0 = (log_snrs[0] - log_snrs[1]) / h
            d10 = (m0 - before[1]) / r0
        if order == 2:
            x = x + (a_t * p2 * d10 if taylor else -a_t * p1 * d10 / 2)
        if order == 3:
            r1 = (log_snrs[1] - log_snrs[2]) / h
            d11 = (before[1] - before[2]) / r1
            d1 = d10 + r0 / (r0 + r1) * (d10 - d11)
            x = x + a_t * p2 * d1 - a_t * p3 * factor * (d10 - d11) / (r0 + r1)
    return x


MULTISTEPS = {
    "2M": (MultiStep(2, **FREE), (1, 2, 2, 2, 2), {}),
    "2M taylor": (MultiStep(2, taylor=True, **FREE), (1, 2, 2, 2, 2), dict(taylor=True)),
    "3M": (MultiStep(3, **FREE), (1, 2, 3, 3, 3), {}),
    "3M official": (MultiStep(3, official_d2=True, **FREE), (1, 2, 3, 3, 3), dict(factor=1.0)),
    "2M with lower orders at the end": (MultiStep(2), (1, 2, 2, 2, 1), {}),
    "3M with lower orders at the end": (MultiStep(3), (1, 2, 3, 2, 1), {}),
    "3M long enough": (MultiStep(3, lower_order_final=5), (1, 2, 3, 3, 3), {}),
}


@pytest.mark.parametrize("name", MULTISTEPS)
def test_multisteps_are_the_papers(name):
    steps, orders, options = MULTISTEPS[name]
    wanted = multistep(START, TIMES, orders, **options)
    np.testing.assert_allclose(eagerly(DPMSolverPP(steps)), wanted, rtol=1e-11, atol=1e-12)


def test_a_run_may_end_without_noise():
    times = np.append(TIMES, 0.0)
    wanted = multistep(START, times, (1, 2, 2, 2, 2, 1))
    for steps in (MultiStep(2), MultiStep(2, **FREE)):
        found = eagerly(DPMSolverPP(steps), times)
        np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-12)
    # In the predicted noise the last step is the predicted data as well.
    late = eagerly(DPMSolver(MultiStep(1)), times)
    np.testing.assert_allclose(late, eagerly(diffusion.DDIM(), times), rtol=1e-11, atol=1e-12)
    ended = diffusion.sample(MODEL, DPMSolverPP(), SCHEDULE, times, jnp.asarray(START))
    np.testing.assert_allclose(ended.value, wanted, rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match="lie within"):
        diffusion.sample(MODEL, DPMSolverPP(SingleStep(2)), SCHEDULE, times, jnp.asarray(START))


def test_order_one_is_ddim():
    for steps in (SingleStep(1), MultiStep(1)):
        np.testing.assert_allclose(
            eagerly(DPMSolverPP(steps)), eagerly(diffusion.DDIM()), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("steps", [SingleStep(2), SingleStep(3, None, True), MultiStep(3)])
def test_constant_data_are_integrated_exactly(steps):
    m = np.array([0.7, -0.4])
    found = eagerly(DPMSolverPP(steps), predict=lambda x, t: np.broadcast_to(m, x.shape))
    (_, a, s), (_, b, r) = (SCHEDULE.nodes(t) for t in (TIMES[0], TIMES[-1]))
    np.testing.assert_allclose(found, r / s * START + (b - a * r / s) * m, rtol=0, atol=1e-12)


def test_what_is_remembered_is_thresholded():
    def clipped(x, t):
        m = data(x, t)
        bound = np.maximum(np.quantile(np.abs(m), 0.7, axis=1, keepdims=True), 0.5)
        return np.clip(m, -bound, bound) / bound

    wrap = lambda model: diffusion.Thresholded(model, 0.7, 0.5)
    wanted = multistep(START, TIMES, (1, 2, 2, 2, 2), predict=clipped)
    found = eagerly(DPMSolverPP(MultiStep(2, **FREE)), wrap=wrap)
    np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_with_noise_it_is_the_papers(order, monkeypatch):
    draws = np.random.default_rng(1).normal(size=(5, 4, 2))
    monkeypatch.setattr(dpm_solver_pp, "gaussian", lambda x, key: jnp.asarray(draws[key]))
    x, last, before = START, None, None
    for i, (s, t) in enumerate(itertools.pairwise(TIMES)):
        ls, lt = SCHEDULE.log_snr(s), SCHEDULE.log_snr(t)
        h, (_, _, s_s), (_, a_t, s_t) = lt - ls, at(ls), at(lt)
        m = d = data(x, s)
        if order == 2 and i:
            d = m + (m - before) / (2 * (ls - last) / h)
        x = s_t / s_s * np.exp(-h) * x + a_t * (1 - np.exp(-2 * h)) * d
        x = x + s_t * np.sqrt(1 - np.exp(-2 * h)) * draws[i]
        last, before = ls, m
    found = eagerly(SDEDPMSolverPP(MultiStep(order, **FREE)))
    np.testing.assert_allclose(found, x, rtol=1e-11, atol=1e-12)


def test_order_one_with_noise_is_ancestral_sampling():
    times, x = diffusion.uniform_log_snr(SCHEDULE, 6), jnp.asarray(START)
    run = lambda sampler: diffusion.sample(
        MODEL, sampler, SCHEDULE, times, x, key=jax.random.key(3)
    )
    wanted = run(diffusion.DDIM(1.0)).value
    np.testing.assert_allclose(run(SDEDPMSolverPP(MultiStep(1))).value, wanted, rtol=1e-10)


def test_with_noise_the_law_of_gaussian_data_is_kept_to_its_order():
    """Data N(mu, c^2): the sampler is linear; mean and variance are a recursion over the plan."""
    mu, c = 0.7, 0.4

    def moments(order, count):
        times = diffusion.uniform_log_snr(SCHEDULE, count)
        steps, fresh = SDEDPMSolverPP(MultiStep(order)).plan(SCHEDULE, times)
        # The state is (x, m of the step before); its mean, and its covariance.
        a, s = SCHEDULE.alpha(1.0), SCHEDULE.sigma(1.0)
        mean, spread = np.array([a * mu, 0.0]), np.diag([a**2 * c**2 + s**2, 0.0])
        for i in range(count):
            _, a, s = (v[i] for v in steps.node)
            slope = a * c**2 / (a**2 * c**2 + s**2)
            rest = mu - slope * a * mu
            w = np.append(steps.weights[i], 0.0)
            move = np.array([[steps.keep[i] + w[0] * slope, w[1]], [slope, 0.0]])
            mean = move @ mean + rest * np.array([w[0], 1.0])
            spread = move @ spread @ move.T + np.diag([fresh[i] ** 2, 0.0])
        a, s = SCHEDULE.alpha(0.01), SCHEDULE.sigma(0.01)
        return abs(mean[0] - a * mu), abs(spread[0, 0] - a**2 * c**2 - s**2)

    for order in (1, 2):
        coarse, fine = moments(order, 200), moments(order, 400)
        # On the path of the mean the predicted data are constant, which is exact.
        assert max(coarse[0], fine[0]) < 1e-12
        assert fine[1] < (5e-3, 5e-5)[order - 1]
        assert abs(np.log2(coarse[1] / fine[1]) - order) < 0.15, (coarse, fine)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: DPMSolverPP(2), "SingleStep"),
        (lambda: SDEDPMSolverPP(SingleStep(2)), "MultiStep"),
    ],
)
def test_bad_steps_raise(make, match):
    with pytest.raises(TypeError, match=match):
        make()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "order"),
    [
        (SingleStep(2), 2),
        (SingleStep(2, None, True), 2),
        (SingleStep(3), 3),
        (SingleStep(3, None, True), 3),
        (MultiStep(1), 1),
        (MultiStep(2, taylor=True), 2),
        (MultiStep(3), 3),
        (MultiStep(3, official_d2=True), 2),
    ],
)
def test_order_of_convergence(steps, order):
    def run(sampler, count):
        times = diffusion.uniform_log_snr(SCHEDULE, count)
        return diffusion.sample(MODEL, sampler, SCHEDULE, times, jnp.asarray(START)).value

    exact = run(DPMSolver(), 2000)
    errors = [np.sqrt(np.mean((run(DPMSolverPP(steps), n) - exact) ** 2)) for n in (160, 320)]
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.15, errors


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
def test_with_noise_the_law_of_a_mixture(order):
    mixture, num = diffusion.GaussianMixture(MEANS, SCALES), 40_000
    first, second = jax.random.split(jax.random.key(0))
    times = diffusion.uniform_log_snr(SCHEDULE, 400)
    x = diffusion.prior(SCHEDULE, jnp.zeros((num, 2)), first)
    out = diffusion.sample(
        mixture.denoiser(), SDEDPMSolverPP(MultiStep(order)), SCHEDULE, times, x, key=second
    ).value
    mean, covariance = mixture.moments()
    np.testing.assert_allclose(out.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(out.T), covariance, atol=0.06 if order == 1 else 0.04)
