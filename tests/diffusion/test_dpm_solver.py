"""DPM-Solver against its formulas in plain numpy, counted calls, and orders of convergence."""

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from mixture_noise import mixture_noise

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import DPMSolver, MultiStep, SingleStep, dpm_solver_fast

SCHEDULE = diffusion.VariancePreserving(start=1.0, end=0.01)
MEANS, SCALES = np.array([[-2.0, 0.0], [1.0, 1.0], [0.5, -2.0]]), np.array([0.6, 0.8, 0.5])
MODEL = diffusion.GaussianMixture(MEANS, SCALES).denoiser()
START = np.random.default_rng(0).normal(size=(4, 2))
TIMES = diffusion.uniform_time(SCHEDULE, 5)  # steps that differ in lambda


def noise(x, t):
    """The exact noise of the mixture, from its density."""
    return mixture_noise(x, SCHEDULE.alpha(t), SCHEDULE.sigma(t), MEANS, SCALES)


def eagerly(sampler, times=TIMES, network=noise):
    """A run as a Python loop over the rows of the plan, without a program, and its calls."""
    calls = []

    def counted(x, node):
        calls.append(float(node.t))
        return jnp.asarray(network(np.asarray(x), float(node.t)))

    model, x, key = diffusion.Denoiser(counted), jnp.asarray(START), jax.random.key(0)
    table = sampler.plan(SCHEDULE, np.asarray(times))
    with jax.disable_jit():
        memory = sampler.start(model, x, SCHEDULE.nodes(times[0]))
        for i in range(len(times) - 1):
            row = jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), table)
            x, memory = sampler.step(model, x, memory, row, key)
    assert len(calls) == sampler.evaluations(len(times) - 1)
    return np.asarray(x), calls


def at(log_snr):
    t = SCHEDULE.time_at(log_snr)
    return t, SCHEDULE.alpha(t), SCHEDULE.sigma(t)


def single_step(order, taylor, x, s, t, e=noise, places=(1 / 3, 2 / 3)):
    """One step as the paper writes it."""
    ls, lt = SCHEDULE.log_snr(s), SCHEDULE.log_snr(t)
    h, (_, a_s, _), (_, a_t, s_t) = lt - ls, at(ls), at(lt)
    es = e(x, s)
    first = a_t / a_s * x - s_t * np.expm1(h) * es
    if order == 1:
        return first
    if order == 2:
        r = 0.5
        u, a_u, s_u = at(ls + r * h)
        eu = e(a_u / a_s * x - s_u * np.expm1(r * h) * es, u)
        if taylor:
            return first - s_t / r * (np.expm1(h) / h - 1) * (eu - es)
        return first - s_t / (2 * r) * np.expm1(h) * (eu - es)
    r1, r2 = places
    (u1, a1, s1), (u2, a2, s2) = at(ls + r1 * h), at(ls + r2 * h)
    e1 = e(a1 / a_s * x - s1 * np.expm1(r1 * h) * es, u1)
    x2 = a2 / a_s * x - s2 * np.expm1(r2 * h) * es
    x2 = x2 - s2 * (r2 / r1) * (np.expm1(r2 * h) / (r2 * h) - 1) * (e1 - es)
    e2 = e(x2, u2)
    phi2 = np.expm1(h) / h - 1
    if not taylor:
        return first - s_t / r2 * phi2 * (e2 - es)
    d1, d2 = (e1 - es) / r1, (e2 - es) / r2
    phi3 = phi2 / h - 0.5
    slope, bend = (r2 * d1 - r1 * d2) / (r2 - r1), 2 * (d2 - d1) / (r2 - r1)
    return first - s_t * phi2 * slope - s_t * phi3 * bend


@pytest.mark.parametrize("taylor", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_single_steps_are_the_papers(order, taylor):
    wanted = START
    for s, t in itertools.pairwise(TIMES):
        wanted = single_step(order, taylor, wanted, s, t)
    found, _ = eagerly(DPMSolver(SingleStep(order, None, taylor)))
    np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("taylor", [False, True])
@pytest.mark.parametrize("order", [2, 3])
def test_multistep_in_the_noise(order, taylor):
    x, before, log_snrs = START, [], []
    for i, (s, t) in enumerate(itertools.pairwise(TIMES)):
        ls, lt = SCHEDULE.log_snr(s), SCHEDULE.log_snr(t)
        h, (_, a_s, _), (_, a_t, s_t) = lt - ls, at(ls), at(lt)
        before, log_snrs = [noise(x, s), *before], [ls, *log_snrs]
        new = a_t / a_s * x - s_t * np.expm1(h) * before[0]
        p1 = np.expm1(h)
        p2 = p1 / h - 1
        if i == 1 or (order == 2 and i > 1):
            d = (before[0] - before[1]) * h / (log_snrs[0] - log_snrs[1])
            new = new - s_t * (p2 if taylor else p1 / 2) * d
        elif i > 1:
            r0, r1 = ((log_snrs[j] - log_snrs[j + 1]) / h for j in (0, 1))
            d10, d11 = (before[0] - before[1]) / r0, (before[1] - before[2]) / r1
            d1 = d10 + r0 / (r0 + r1) * (d10 - d11)
            d2 = 2 * (d10 - d11) / (r0 + r1)
            new = new - s_t * p2 * d1 - s_t * (p2 / h - 0.5) * d2
        x = new
    found, calls = eagerly(DPMSolver(MultiStep(order, taylor, lower_order_final=0)))
    np.testing.assert_allclose(found, x, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(calls, TIMES[:-1])


def test_order_one_is_ddim():
    wanted, _ = eagerly(diffusion.DDIM())
    for steps in (SingleStep(1), MultiStep(1)):
        np.testing.assert_allclose(eagerly(DPMSolver(steps))[0], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [SingleStep(2), SingleStep(3, None, True), MultiStep(3)])
def test_a_constant_noise_is_integrated_exactly(steps):
    e = np.array([0.7, -0.4])
    found, _ = eagerly(DPMSolver(steps), network=lambda x, t: np.broadcast_to(e, x.shape))
    (_, a, s), (_, b, r) = (SCHEDULE.nodes(t) for t in (TIMES[0], TIMES[-1]))
    np.testing.assert_allclose(found, b / a * START + (r - s * b / a) * e, rtol=0, atol=1e-12)


def test_no_cancellation_in_tiny_steps():
    """Weights of difference quotients, expm1(h)/h - 1 and its like, for h near 1e-7."""
    t = np.array([0.5, 0.5 - 1e-8])
    row = DPMSolver(SingleStep(3, None, True)).plan(SCHEDULE, t)
    with mpmath.workdps(60):
        h = mpmath.mpf(float(np.diff(SCHEDULE.log_snr(t))[0]))
        phi2 = mpmath.expm1(h) / h - 1
        phi3 = phi2 / h - mpmath.mpf(1) / 2
        # D1 = 6 (e1 - es) - 1.5 (e2 - es), D2 = 9 (e2 - es) - 18 (e1 - es)
        second, third = float(phi2 * 6 - phi3 * 18), float(phi3 * 9 - phi2 * 1.5)
    scale = -float(SCHEDULE.sigma(t[1]))
    np.testing.assert_allclose(row.weights[0, -1, 2], scale * third, rtol=1e-12)
    np.testing.assert_allclose(row.weights[0, -1, 1], scale * second, atol=1e-22)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_fast_uses_its_calls(order):
    for calls in range(5, 26):
        sampler, times = dpm_solver_fast(SCHEDULE, calls, order=order)
        assert sampler.evaluations(len(times) - 1) == calls
    orders = lambda calls: dpm_solver_fast(SCHEDULE, calls, order=order)[0].steps.order
    if order == 3:
        assert [orders(k) for k in (1, 2, 3)] == [(1,), (2,), (2, 1)]
        assert [orders(k) for k in (9, 10, 11)] == [(3, 3, 2, 1), (3, 3, 3, 1), (3, 3, 3, 2)]
    if order == 2:
        assert [orders(k) for k in (6, 7)] == [(2, 2, 2), (2, 2, 2, 1)]


def test_fast_steps_are_single_steps_of_their_orders():
    sampler, times = dpm_solver_fast(SCHEDULE, 9)
    wanted = START
    for order, s, t in zip((3, 3, 2, 1), times[:-1], times[1:], strict=True):
        wanted = single_step(order, False, wanted, s, t)
    found, calls = eagerly(sampler, times)
    assert len(calls) == 9
    np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-12)
    compiled = diffusion.sample(MODEL, sampler, SCHEDULE, times, jnp.asarray(START))
    np.testing.assert_allclose(compiled.value, wanted, rtol=1e-10, atol=1e-11)


def test_a_grid_is_grouped_by_orders():
    sampler, times = dpm_solver_fast(SCHEDULE, 4, taylor=True, grid=diffusion.uniform_time)
    grid = diffusion.uniform_time(SCHEDULE, 4)
    np.testing.assert_allclose(times, grid[[0, 3, 4]])
    _, calls = eagerly(sampler, times)
    np.testing.assert_allclose(calls, grid[:-1], rtol=1e-9)
    low, *inner, high = SCHEDULE.log_snr(grid[:4])
    places = [(l - low) / (high - low) for l in inner]
    wanted = single_step(3, True, START, times[0], times[1], places=places)
    wanted = single_step(1, True, wanted, times[1], times[2])
    np.testing.assert_allclose(eagerly(sampler, times)[0], wanted, rtol=1e-10, atol=1e-11)


BAD = {
    "order": (lambda: SingleStep(4), ValueError, "at most 3"),
    "no order": (lambda: MultiStep(0), ValueError, "at least 1"),
    "no steps": (lambda: SingleStep(()), ValueError, "at least one"),
    "places": (lambda: SingleStep(3, (0.5, 0.2)), ValueError, "rise"),
    "few places": (lambda: SingleStep(3, (0.5,)), ValueError, "needs 2 places"),
    "places of steps": (lambda: SingleStep((2, 2), ((0.5,),)), ValueError, "2 steps"),
    "final": (lambda: MultiStep(2, lower_order_final=-1), ValueError, "lower_order_final"),
    "stepping": (lambda: DPMSolver("single"), TypeError, "SingleStep"),
    "calls": (lambda: dpm_solver_fast(SCHEDULE, 0), ValueError, "calls"),
    "more order than steps": (
        lambda: DPMSolver(MultiStep(3)).plan(SCHEDULE, TIMES[:3]),
        ValueError,
        "as many steps",
    ),
    "orders that do not fit": (
        lambda: DPMSolver(SingleStep((3, 3))).plan(SCHEDULE, TIMES),
        ValueError,
        "names 2 steps",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_raises(case):
    make, error, match = BAD[case]
    with pytest.raises(error, match=match):
        make()


@functools.cache
def _exact():
    times = diffusion.uniform_log_snr(SCHEDULE, 2000)
    run = diffusion.sample(MODEL, DPMSolver(), SCHEDULE, times, jnp.asarray(START))
    return np.asarray(run.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "order"),
    [
        (SingleStep(1), 1),
        (SingleStep(2), 2),
        (SingleStep(2, None, True), 2),
        (SingleStep(3, None, True), 3),
        (SingleStep(3, (0.2, 2 / 3), True), 3),
        (MultiStep(2), 2),
        (MultiStep(2, True), 2),
        (MultiStep(3), 3),
    ],
)
def test_order_of_convergence(steps, order):
    errors = []
    for count in (160, 320):
        times = diffusion.uniform_log_snr(SCHEDULE, count)
        run = diffusion.sample(MODEL, DPMSolver(steps), SCHEDULE, times, jnp.asarray(START))
        errors.append(np.sqrt(np.mean((run.value - _exact()) ** 2)))
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.15, errors
