"""DPM-Solver-v3 against its relatives, its statistics against closed forms, and its formulas
against adaptive quadrature."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from jaxopt_ext import checkpoint, diffusion
from jaxopt_ext.diffusion import (
    DividedDifferences,
    DPMSolverV3,
    Interpolation,
    ModelStatistics,
    NoiseForm,
    UniP,
    Varying,
)

SCHEDULE = diffusion.VariancePreserving(start=1.0, end=0.01)
MEANS, SCALES = np.array([[-2.0, 0.0], [1.0, 1.0], [0.5, -2.0]]), np.array([0.6, 0.8, 0.5])
MIXTURE = diffusion.GaussianMixture(MEANS, SCALES)
MODEL = MIXTURE.denoiser()
START = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)))
TIMES = diffusion.uniform_time(SCHEDULE, 7)
ENDS = SCHEDULE.log_snr(np.array([1.0, 0.01]))


def run(sampler, times=TIMES, model=MODEL, **options):
    return np.asarray(diffusion.sample(model, sampler, SCHEDULE, times, START, **options).value)


def made_up(shape=(2,), num=41):
    """Statistics that vary with the level and the coordinate; where there is hardly any signal they
    are those of the predicted data, as measured ones are, so that the first steps, of low order,
    are harmless."""
    levels = np.linspace(*ENDS, num)
    phase = np.arange(math.prod(shape)).reshape(shape)
    column = levels.reshape(-1, *[1] * len(shape))
    signal = 1 / (1 + np.exp(-2 * column))
    wave = signal * np.sin(column + phase)
    return ModelStatistics(1 - signal + 0.3 * wave, 0.4 * wave - 0.2 * signal, 0.3 * wave, levels)


@functools.cache
def measured(num_nodes=100, num_samples=512):
    draw = lambda key, n: MIXTURE.sample(key, n)
    return diffusion.model_statistics(
        MODEL, SCHEDULE, draw, jax.random.key(0), num_nodes, num_samples, probes=None
    )


def fixed(l, s, num=601):
    return ModelStatistics(*(np.full((num, 1), v) for v in (l, s, 0.0)), np.linspace(*ENDS, num))


@pytest.mark.always(1)
@pytest.mark.parametrize("order", [3, 2, 1])
def test_fixed_statistics_are_the_predictions_of_data_and_noise(order):
    options = {"order": order, "corrector": None}
    data = run(DPMSolverV3(fixed(1.0, 0.0), **options))
    np.testing.assert_allclose(data, run(UniP(order, Varying())), atol=2e-5)
    noise = run(DPMSolverV3(fixed(0.0, -1.0), **options))
    np.testing.assert_allclose(noise, run(UniP(order, Varying(), NoiseForm())), atol=2e-5)


def by_quadrature(stats, nodes, end, differences):
    """A step for one coordinate of samples, from the formulas."""
    lam = np.array([SCHEDULE.log_snr(TIMES[n]) for n in (*nodes, end)])
    at = lambda x, k: float(np.interp(x, stats.log_snr, np.asarray(getattr(stats, k))[:, 0]))
    l, s, b = (lambda x, k=k: at(x, k) for k in ("linear", "scaling", "offset"))
    bends = stats.log_snr

    def integral(f, low, high):
        inside = bends[(bends > min(low, high)) & (bends < max(low, high))]
        cuts = np.concatenate([[min(low, high)], inside, [max(low, high)]])
        value = sum(quad(f, u, v, epsabs=1e-13)[0] for u, v in itertools.pairwise(cuts))
        return value if high >= low else -value

    # All integrals are over the same pieces, and so from the same points.
    S = functools.cache(lambda x: integral(s, lam[0], x))
    L = functools.cache(lambda x: integral(l, lam[0], x))
    W = functools.cache(lambda x: integral(lambda y: np.exp(-S(y)) * b(y), lam[0], x))
    rows = differences(lam[:-1])
    moment = lambda k: integral(
        lambda x: np.exp(L(x) + S(x)) * (x - lam[0]) ** k / math.factorial(k), lam[0], lam[-1]
    )
    weights = np.array(
        [
            sum(rows[k][q] * moment(k) for k in range(len(nodes))) * np.exp(-S(lam[q]))
            for q in range(len(nodes))
        ]
    )
    constant = integral(lambda x: np.exp(L(x) + S(x)) * W(x), lam[0], lam[-1])
    constant -= sum(
        rows[k][q] * moment(k) * W(lam[q]) for k in range(len(nodes)) for q in range(len(nodes))
    )
    alpha = SCHEDULE.alpha(TIMES[[nodes[0], end]])
    size = alpha[1] * np.exp(-L(lam[-1]))
    return size / alpha[0], -size * constant, -size * weights


def taylor(places):
    return np.array([[1.0, 0.0], [-1.0, 1.0] / (places[1] - places[0])])


def test_a_row_is_what_quadrature_gives():
    stats = made_up((1,), 9)
    row = DPMSolverV3(stats, 2, lower_order_final=0).plan(SCHEDULE, TIMES)
    keep, offset, weights = by_quadrature(stats, [3, 2], 4, taylor)
    np.testing.assert_allclose(row.predictor.keep[3], [keep], rtol=1e-5)
    np.testing.assert_allclose(row.predictor.offset[3], [offset], rtol=1e-3)
    np.testing.assert_allclose(row.predictor.weights[3, :, 0], weights, rtol=1e-3)
    keep, offset, weights = by_quadrature(stats, [3, 4], 4, taylor)
    full = DPMSolverV3(stats, 2, corrector=Interpolation(), lower_order_final=0)
    row = full.plan(SCHEDULE, TIMES)
    np.testing.assert_allclose(row.corrector.offset[3], [offset], rtol=1e-3)
    np.testing.assert_allclose(row.corrector.weights[3, :2, 0], weights[::-1], rtol=1e-3)


def test_differences_of_polynomials():
    places = np.array([0.3, 1.0, -0.4])
    cubic = places**2 * 1.5 - places
    np.testing.assert_allclose(Interpolation().rows(places) @ cubic, [-0.165, -0.1, 3.0])
    newton = DividedDifferences().rows(places) @ cubic
    first = (cubic[1] - cubic[0]) / 0.7
    np.testing.assert_allclose(newton, [-0.165, first, 3.0])


@pytest.mark.slow
def test_any_statistics_keep_the_order():
    exact = run(diffusion.RK4(), diffusion.uniform_log_snr(SCHEDULE, 4000))
    for order, corrector, wanted in (
        (1, None, 1),
        (2, None, 2),
        (3, None, 3),
        (2, Interpolation(), 2),
        (3, DividedDifferences(), 2),
    ):
        sampler = DPMSolverV3(made_up(num=2001), order, corrector=corrector)
        errors = [
            np.sqrt(np.mean((run(sampler, diffusion.uniform_log_snr(SCHEDULE, n)) - exact) ** 2))
            for n in (80, 160)
        ]
        slope = np.log2(errors[0] / errors[1])
        assert abs(slope - wanted) < 0.3, (order, corrector, slope)


def test_statistics_of_one_gaussian_are_its_own():
    mean, scale = np.array([0.7, -1.2]), 0.5

    def data(x, node):
        gain = node.alpha * scale**2 / (node.alpha**2 * scale**2 + node.sigma**2)
        return mean + gain * (x - node.alpha * mean)

    model = diffusion.Denoiser(data, diffusion.Data())
    draw = lambda key, n: mean + scale * jax.random.normal(key, (n, 2))
    stats = diffusion.model_statistics(model, SCHEDULE, draw, jax.random.key(0), 200, 16)
    node = SCHEDULE.nodes(SCHEDULE.time_at(stats.log_snr))
    l = node.sigma**2 / (node.alpha**2 * scale**2 + node.sigma**2)
    np.testing.assert_allclose(stats.linear, np.stack([l, l], 1), rtol=1e-9)
    # f = -l mean does not vary, so b is its derivative and every order is exact.
    np.testing.assert_allclose(stats.scaling, 0, atol=1e-6)
    slope = -2 * l * (1 - l)
    np.testing.assert_allclose(stats.offset, -slope[:, None] * mean, rtol=0.01, atol=2e-3)
    found = run(DPMSolverV3(stats, 1, corrector=None), TIMES, model)
    first, last = (SCHEDULE.nodes(t) for t in (1.0, 0.01))
    spread = lambda n: np.sqrt(n.alpha**2 * scale**2 + n.sigma**2)
    exact = last.alpha * mean + spread(last) / spread(first) * (
        np.asarray(START) - first.alpha * mean
    )
    np.testing.assert_allclose(found, exact, atol=5e-4)
    assert np.abs(run(diffusion.DDIM(), TIMES, model) - exact).max() > 0.05


@pytest.mark.slow
def test_measured_statistics_make_few_steps_accurate():
    exact = run(diffusion.RK4(), diffusion.uniform_log_snr(SCHEDULE, 1000))
    times = diffusion.uniform_log_snr(SCHEDULE, 6)
    error = lambda sampler: np.sqrt(np.mean((run(sampler, times) - exact) ** 2))
    found = error(DPMSolverV3(measured(), 2, corrector=Interpolation()))
    assert found < 0.8 * error(diffusion.UniPC(2))


@pytest.mark.slow
def test_probes_agree_with_the_exact_diagonal():
    draw = lambda key, n: MIXTURE.sample(key, n)
    options = (SCHEDULE, draw, jax.random.key(1), 10, 4000)
    exact = diffusion.model_statistics(MODEL, *options, probes=None)
    found = diffusion.model_statistics(MODEL, *options, probes=4)
    np.testing.assert_allclose(found.linear, exact.linear, atol=0.05)


def test_evaluations_are_counted():
    calls = itertools.count()

    def network(x, node):
        jax.debug.callback(lambda: next(calls))
        return MODEL.noise(x, node)

    run(DPMSolverV3(made_up()), model=diffusion.Denoiser(network))
    jax.effects_barrier()
    assert next(calls) == 7


def test_statistics_are_saved_by_their_arrays(tmp_path):
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(3, 4, 2))
    statistics = ModelStatistics(*parts, np.arange(4.0))
    with pytest.raises(ValueError, match="nothing to save"):
        checkpoint.save(tmp_path / "none", statistics)
    checkpoint.save(tmp_path / "file", statistics.arrays)
    like = tuple(np.zeros_like(a) for a in statistics.arrays)
    loaded = ModelStatistics(*checkpoint.load(tmp_path / "file", like))
    assert loaded == statistics
    np.testing.assert_array_equal(loaded.scaling, parts[1])


def test_bad_input_is_refused():
    stats = made_up()
    with pytest.raises(ValueError, match="rises"):
        ModelStatistics(stats.linear, stats.scaling, stats.offset, stats.log_snr[::-1])
    with pytest.raises(ValueError, match="one shape"):
        ModelStatistics(stats.linear[:3], stats.scaling, stats.offset, stats.log_snr)
    with pytest.raises(TypeError, match="statistics"):
        DPMSolverV3(None)
    with pytest.raises(ValueError, match="as many steps"):
        run(DPMSolverV3(stats, 8))
    narrow = ModelStatistics(stats.linear, stats.scaling, stats.offset, stats.log_snr / 2)
    with pytest.raises(ValueError, match="levels of the statistics"):
        run(DPMSolverV3(narrow))
