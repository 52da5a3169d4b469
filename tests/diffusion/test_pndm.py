"""Pseudo numerical methods against loops in numpy, closed forms and diffusers' numbers."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import pndm

SCHEDULE = diffusion.VariancePreserving(start=1.0, end=0.01)
CHAIN = diffusion.DiscreteSchedule(diffusion.linear_betas(1000))
F, S = diffusion.PNDM(), diffusion.PNDM(2, diffusion.ImprovedEuler())
PLMS = diffusion.PNDM(4, diffusion.ImprovedEuler())
START = np.array([0.4, -1.1, 2.0])


def network(x, t, xp=np):
    return xp.sin(2 * x + 3 * t) + 0.5 * x


MODEL = diffusion.Denoiser(lambda x, node: network(x, node.t, jnp))


def transfer(x, e, s, t, schedule):
    """The map of the paper, in the squares of alpha."""
    a, b = (float(schedule.alpha(u)) ** 2 for u in (s, t))
    scale = np.sqrt(a) * (np.sqrt((1 - b) * a) + np.sqrt((1 - a) * b))
    return np.sqrt(b / a) * x - (b - a) / scale * e


def by_hand(kind, schedule, times):
    """A loop over steps; returns the sample and the number of evaluations."""
    x, old, calls = START, [], 0
    for s, t in itertools.pairwise(times):
        phi = lambda e, to, s=s, x=x: transfer(x, e, s, to, schedule)
        e1 = network(x, s)
        calls += 1
        if kind == "F" and len(old) < 3:
            m = (s + t) / 2
            e2 = network(phi(e1, m), m)
            e3 = network(phi(e2, m), m)
            e4 = network(phi(e3, t), t)
            calls += 3
            e = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        elif not old:
            e = (e1 + network(phi(e1, t), t)) / 2
            calls += 1
        elif kind == "S" or len(old) == 1:
            e = (3 * e1 - old[-1]) / 2
        elif len(old) == 2:
            e = (23 * e1 - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            e = (55 * e1 - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        old.append(e1)
        x = phi(e, t)
    return x, calls


@pytest.mark.parametrize(("kind", "sampler"), [("F", F), ("S", S), ("PLMS", PLMS)])
def test_a_run_equals_a_loop(kind, sampler):
    for schedule, times in (
        (SCHEDULE, diffusion.uniform_time(SCHEDULE, 7)),
        (CHAIN, diffusion.leading(CHAIN, 7)),
    ):
        out = diffusion.sample(MODEL, sampler, schedule, times, jnp.asarray(START))
        wanted, calls = by_hand(kind, schedule, times)
        np.testing.assert_allclose(out.value, wanted, rtol=1e-11, atol=1e-12)
        assert out.evaluations == calls


def test_the_classical_method_equals_a_loop():
    def rate(x, t, h=1e-5):
        up, down = (SCHEDULE.nodes(t + d) for d in (h, -h))
        decay = (up.alpha - down.alpha) / (2 * h) / SCHEDULE.alpha(t)
        spread = (up.sigma - down.sigma) / (2 * h)
        return decay * x + (spread - decay * SCHEDULE.sigma(t)) * network(x, t)

    x, old, times = START, [], even(9)
    for t, h in zip(times[:-1], np.diff(times), strict=True):
        old.append(rate(x, t))
        if len(old) <= 3:
            d2 = rate(x + h / 2 * old[-1], t + h / 2)
            d3 = rate(x + h / 2 * d2, t + h / 2)
            d4 = rate(x + h * d3, t + h)
            x = x + h * (old[-1] + 2 * d2 + 2 * d3 + d4) / 6
        else:
            x = x + h * (np.array([-9, 37, -59, 55]) @ np.stack(old[-4:])) / 24
    out = diffusion.sample(MODEL, diffusion.FON(), SCHEDULE, times, jnp.asarray(START))
    np.testing.assert_allclose(out.value, x, rtol=1e-6)
    assert out.evaluations == 9 + 9


def test_rules_are_the_classical_ones_and_sum_to_one():
    weights = F.plan(SCHEDULE, diffusion.uniform_time(SCHEDULE, 6)).weights
    _, end = SCHEDULE.nodes(0.175), SCHEDULE.nodes(0.01)
    move = end.sigma - SCHEDULE.sigma(0.175) * end.alpha / SCHEDULE.alpha(0.175)
    np.testing.assert_allclose(weights[-1] / move, np.array([55, -59, 37, -9]) / 24, rtol=1e-12)
    for starter in (diffusion.RungeKutta(), diffusion.ImprovedEuler()):
        np.testing.assert_allclose(starter.weights.sum(), 1)
    for places in ([0.0], [0, -1.0], [0, -0.4, -1.7], [0, -0.4, -1.7, -1.9]):
        found = pndm.adams(np.array(places))
        np.testing.assert_allclose(found.sum(), 1)
        power = len(places) - 1
        wanted = quad(lambda r, k=power: (r + 0.3) ** k, 0, 1)[0]
        np.testing.assert_allclose(found @ (np.array(places) + 0.3) ** power, wanted, rtol=1e-12)


@functools.cache
def reference():
    """The solution of $dy/d\\rho = e$ in $y = x/\\alpha$, $\\rho = \\sigma/\\alpha$, by scipy."""

    def rate(u, y):
        t = SCHEDULE.time_at(-u)
        return np.exp(u) * network(SCHEDULE.alpha(t) * y, t)

    span = -SCHEDULE.log_snr(np.array([1.0, 0.01]))
    first, last = SCHEDULE.alpha(np.array([1.0, 0.01]))
    out = solve_ivp(rate, span, START / first, method="DOP853", rtol=1e-11, atol=1e-11)
    return last * out.y[:, -1]


def slope(sampler, grid, counts=(640, 1280)):
    errors = []
    for count in counts:
        found = diffusion.sample(MODEL, sampler, SCHEDULE, grid(count), jnp.asarray(START)).value
        errors.append(np.abs(found - reference()).max())
    return np.log(errors[0] / errors[1]) / np.log(counts[1] / counts[0])


def uneven(count):
    """Steps of lengths 1, 3, 1, 3, ..."""
    lengths = np.resize([1.0, 3.0], count)
    return 1 - 0.99 * np.concatenate([[0.0], np.cumsum(lengths) / lengths.sum()])


def even(count):
    return np.linspace(1.0, 0.01, count + 1)


@pytest.mark.parametrize(
    ("sampler", "grid", "order"),
    [
        (F, uneven, 1),
        (diffusion.PNDM(variable=True), uneven, 2),
        pytest.param(F, even, 2, marks=pytest.mark.slow),
        pytest.param(S, even, 2, marks=pytest.mark.slow),
        pytest.param(diffusion.PNDM(3), even, 2, marks=pytest.mark.slow),
    ],
    ids=["uneven", "variable", "F", "S", "third"],
)
def test_order_of_convergence(sampler, grid, order):
    assert abs(slope(sampler, grid) - order) < 0.2


def test_variable_weights_change_nothing_on_equal_steps():
    times = diffusion.uniform_time(SCHEDULE, 9)
    fixed, variable = (diffusion.PNDM(variable=v).plan(SCHEDULE, times) for v in (False, True))
    np.testing.assert_allclose(variable.weights, fixed.weights, rtol=1e-10)


def test_the_classical_method_takes_the_slope_of_the_path():
    # d/dt of alpha x0 + sigma e, both fixed, is what the plan says at any node
    plan = diffusion.FON().plan(SCHEDULE, even(8))
    row = plan.node
    x0, e, h = 0.7, -1.3, 1e-6
    path = lambda t: SCHEDULE.alpha(t) * x0 + SCHEDULE.sigma(t) * e
    wanted = (path(row.node.t + h) - path(row.node.t - h)) / (2 * h)
    np.testing.assert_allclose(row.linear * path(row.node.t) + row.noise * e, wanted, rtol=1e-6)
    chain = diffusion.FON(width=1e-3).plan(CHAIN, diffusion.linspaced(CHAIN, 20)[:-1])
    assert all(np.all(np.isfinite(a)) for a in chain.node.node)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: diffusion.PNDM(1), ValueError, "order"),
        (lambda: diffusion.PNDM(5), ValueError, "order"),
        (lambda: diffusion.PNDM(starter="F"), TypeError, "starter"),
        (lambda: diffusion.FON(width=0.0), ValueError, "width"),
        (lambda: F.plan(SCHEDULE, even(3)), ValueError, "at least 4 steps"),
        (lambda: S.plan(SCHEDULE, even(1)), ValueError, "at least 2 steps"),
    ],
)
def test_bad_input_raises(make, error, match):
    with pytest.raises(error, match=match):
        make()
