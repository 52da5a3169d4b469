"""Decisions against the samplers that they describe, and rows against polynomials."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import (
    BH1,
    BH2,
    DataForm,
    Decision,
    DividedDifferences,
    DPMSolverV3,
    Interpolation,
    MultiStep,
    NoiseForm,
    Step,
    UniP,
    UniPC,
    USFSampler,
    Varying,
    as_decision,
    sample_decisions,
)

SCHEDULE = diffusion.VariancePreserving(start=1.0, end=0.01)
MIXTURE = diffusion.GaussianMixture(
    jnp.array([[-2.0, 0.0], [1.0, 1.0], [0.5, -2.0]]), jnp.array([0.6, 0.8, 0.5])
)
MODEL = MIXTURE.denoiser()
START = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)))
TIMES = diffusion.uniform_time(SCHEDULE, 7)


def statistics():
    levels = np.linspace(*SCHEDULE.log_snr(np.array([1.0, 0.01])), 41)
    wave = np.sin(levels[:, None] + np.arange(2)) / (1 + np.exp(-2 * levels[:, None]))
    linear = 1 / (1 + np.exp(2 * levels[:, None])) + 0.2 * wave
    return diffusion.ModelStatistics(linear, 0.3 * wave, 0.2 * wave, levels)


STATISTICS = statistics()


def run(sampler, times=TIMES, model=MODEL, x=START, **options):
    return np.asarray(diffusion.sample(model, sampler, SCHEDULE, times, x, **options).value)


def known():
    full = diffusion.DPMSolverV3(STATISTICS, 2, corrector=Interpolation())
    newton = DPMSolverV3(STATISTICS, 3, DividedDifferences(), corrected_above=0.2)
    return {
        "DDIM": diffusion.DDIM(),
        "2M": diffusion.DPMSolverPP(MultiStep(2)),
        "2M taylor": diffusion.DPMSolverPP(MultiStep(2, taylor=True)),
        "3M": diffusion.DPMSolverPP(MultiStep(3)),
        "noise 2M": diffusion.DPMSolver(MultiStep(2)),
        "noise 3M": diffusion.DPMSolver(MultiStep(3)),
        "UniP-3": UniP(3),
        "UniP-4": UniP(4, lower_order_final=0),
        "UniPC-1": UniPC(1, BH1()),
        "UniPC-2": UniPC(2),
        "UniPC-4, noise": UniPC(4, Varying(), NoiseForm(), 0),
        "v3": full,
        "v3, divided differences": newton,
    }


@pytest.mark.slow
def test_known_samplers_are_decisions_of_one_program(trace_count):
    samplers = known()
    decisions = [as_decision(sampler, SCHEDULE, TIMES) for sampler in samplers.values()]
    found = sample_decisions(MODEL, decisions, SCHEDULE, START, STATISTICS)
    for (name, sampler), sample in zip(samplers.items(), found, strict=True):
        np.testing.assert_allclose(sample, run(sampler), atol=2e-12, err_msg=name)
    one = lambda decision: run(USFSampler(decision, STATISTICS))
    one(decisions[0])
    with trace_count() as traces:
        last = one(decisions[-1])
    assert traces.count == 0
    np.testing.assert_allclose(last, found[-1], atol=1e-12)


def by_loop(decision, mean=0.0):
    """A run from the formulas, with quadrature, for decisions in data and noise."""
    times = np.array(decision.times)
    nodes = [SCHEDULE.nodes(t) for t in times]
    lam = SCHEDULE.log_snr(times)
    noise = jax.jit(lambda x, node: MODEL.noise(x, node))
    x, calls = np.asarray(START), 0
    points, noises = [], []

    def outputs(form, n):
        e = noises[n]
        data = isinstance(form, DataForm)
        return (points[n] - nodes[n].sigma * e) / nodes[n].alpha if data else e

    def ask(x, n):
        nonlocal calls
        calls += 1
        return np.asarray(noise(jnp.asarray(x), nodes[n]))

    def move(x, i, form, order, js, factor):
        a, b, h = nodes[i], nodes[i + 1], lam[i + 1] - lam[i]
        data = isinstance(form, DataForm)
        exponent = lambda t: np.exp(t if data else -t)
        scale = b.sigma if data else -b.alpha
        out = (b.sigma / a.sigma if data else b.alpha / a.alpha) * x
        derivatives = [outputs(form, i)]
        for k in range(1, order):
            d = np.array([lam[j] - lam[i] for j in js[k - 1]])
            powers = np.array([d**m / math.factorial(m) for m in range(1, len(d) + 1)])
            w = np.linalg.solve(powers, np.eye(len(d))[k - 1])
            gaps = [outputs(form, j) - outputs(form, i) for j in js[k - 1]]
            derivatives.append(sum(c * g for c, g in zip(w, gaps, strict=True)))
        for k, f in enumerate(derivatives):
            integrand = lambda t, k=k: exponent(t) * (t - lam[i]) ** k / math.factorial(k)
            value = quad(integrand, lam[i], lam[i + 1], epsabs=1e-14, epsrel=1e-13)[0]
            out = out + scale * value * f * (factor(-h if data else h) if k == 1 else 1.0)
        return out

    points.append(x)
    if decision.first is None:
        noises.append(ask(x, 0))
    else:
        noises.append((x - nodes[0].alpha * mean) / nodes[0].sigma)
    for i, (form, order, js, factor, corrector) in enumerate(SPELLED):
        end = move(x, i, form, order, js, factor)
        if i < len(SPELLED) - 1:
            points.append(end)
            noises.append(ask(end, i + 1))
            if corrector is not None:
                end = move(x, i, form, *corrector)
                if i == 2:
                    points[-1], noises[-1] = end, ask(end, i + 1)
        x = end
    return x, calls


bh = lambda z: (z * np.expm1(z) / 2) / (np.expm1(z) - z)
none = lambda z: 1.0
# The decision below, spelled out: form, order, nodes of each derivative, relaxation, corrector.
SPELLED = [
    (NoiseForm(), 1, [], none, (2, [[1]], bh)),
    (DataForm(), 2, [[0]], lambda z: 1 + 0.1 * z, None),
    (NoiseForm(), 3, [[1], [1, 0]], lambda z: 1 + 0.5 * np.expm1(z), (3, [[3, 1], [3, 1]], none)),
    (DataForm(), 3, [[1], [2, 1]], lambda z: 1 - 0.5 * np.expm1(z), (4, [[4, 2, 1]] * 3, none)),
    (DataForm(), 4, [[3, 2, 1]] * 3, none, (5, [[5, 3, 2, 1]] * 4, none)),
    (NoiseForm(), 2, [[3]], lambda z: (z * z / 2) / (np.expm1(z) - z), None),
]
STEPS = (
    Step(1, NoiseForm(), corrector=diffusion.PseudoCorrector(1, BH2())),
    Step(2, DataForm(), diffusion.LinearRelaxation(0.1)),
    Step(
        3,
        NoiseForm(),
        diffusion.ExponentialRelaxation(0.5),
        ((1,), (1, 2)),
        diffusion.ImplicitCorrector(0, active=((0, 1), (0, 1))),
    ),
    Step(
        3,
        DataForm(),
        diffusion.ExponentialRelaxation(-0.5),
        ((2,),),
        diffusion.PseudoCorrector(),
    ),
    Step(4, corrector=diffusion.PseudoCorrector()),
    Step(2, NoiseForm(), BH1(), ((2,),), diffusion.ImplicitCorrector()),
)


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(None, id="asked"),
        pytest.param(diffusion.ZeroData(), id="zero", marks=pytest.mark.slow),
        pytest.param(diffusion.MeanData(), id="mean"),
    ],
)
def test_a_mixed_decision_is_what_quadrature_gives(first):
    decision = Decision((0.98, 0.8, 0.61, 0.45, 0.3, 0.12, 0.02), STEPS, first)
    mean = np.array([-0.2, 0.4])
    wanted, calls = by_loop(decision, mean if isinstance(first, diffusion.MeanData) else 0.0)
    assert decision.calls == calls == 7 - (first is not None)
    sampler = USFSampler(decision, mean=mean)
    assert sampler.evaluations(6) == calls
    np.testing.assert_allclose(run(sampler, decision.times), wanted, atol=1e-11)
    both = sample_decisions(MODEL, [decision] * 2, SCHEDULE, START, mean=mean)
    np.testing.assert_allclose(both[1], wanted, atol=1e-11)


def test_evaluations_are_counted():
    calls = itertools.count()

    def network(x, node):
        jax.debug.callback(lambda: next(calls))
        return MODEL.noise(x, node)

    decision = Decision((0.98, 0.8, 0.61, 0.45, 0.3, 0.12, 0.02), STEPS, diffusion.MeanData())
    run(USFSampler(decision), decision.times, diffusion.Denoiser(network), START[0])
    jax.effects_barrier()
    assert next(calls) == decision.calls == 6


@pytest.mark.parametrize(
    ("form", "order"),
    [
        pytest.param(form, order, marks=[] if order == 4 else pytest.mark.slow)
        for form in (NoiseForm(), DataForm())
        for order in (2, 3, 4)
    ],
)
def test_polynomials_are_integrated_exactly(form, order):
    """Outputs that are a polynomial in the logarithm of the signal-to-noise ratio, whatever x."""
    polynomial = lambda level: sum((0.3 * level) ** k for k in range(order))

    def network(x, node):
        return polynomial(jnp.log(node.alpha / node.sigma)) + 0 * x

    data = isinstance(form, DataForm)
    model = diffusion.Denoiser(network, diffusion.Data() if data else diffusion.Noise())
    # Four steps of one evaluation each give the history; the last one is asked.
    times = diffusion.uniform_log_snr(SCHEDULE, 9)[3:]
    path = diffusion.sample(
        model, USFSampler(Step(order, form)), SCHEDULE, times, START, trace=True
    ).path
    a, b = (SCHEDULE.nodes(t) for t in times[-2:])
    low, high = SCHEDULE.log_snr(times[-2:])
    integrand = lambda t: np.exp(t if data else -t) * polynomial(t)
    value = quad(integrand, low, high, epsabs=1e-14, epsrel=1e-13)[0]
    keep = b.sigma / a.sigma if data else b.alpha / a.alpha
    wanted = keep * path[-2] + (b.sigma if data else -b.alpha) * value
    np.testing.assert_allclose(path[-1], wanted, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("corrected", [False, True])
def test_order_of_convergence(order, corrected):
    corrector = diffusion.PseudoCorrector() if corrected else None
    sampler = USFSampler(Step(order, corrector=corrector))
    exact = run(UniPC(4, lower_order_final=0), diffusion.uniform_log_snr(SCHEDULE, 2000))
    errors = [
        np.sqrt(np.mean((run(sampler, diffusion.uniform_log_snr(SCHEDULE, n)) - exact) ** 2))
        for n in (80, 160)
    ]
    assert abs(np.log2(errors[0] / errors[1]) - order - corrected) < 0.35, errors


def test_single_precision_and_bad_input():
    decision = as_decision(UniPC(3), SCHEDULE, TIMES)
    narrow = run(USFSampler(decision), x=START.astype(jnp.float32))
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, run(UniPC(3)), atol=2e-4)
    step = functools.partial(Step, 2)
    for make, error in (
        (lambda: Step(5), "order must be at most 4"),
        (lambda: step(active=((0,),)), "active must name"),
        (lambda: step(active=((1,), (2,))), "active must name"),
        (lambda: diffusion.PseudoCorrector(2), "raised must be"),
        (lambda: Decision((1.0, 0.5), (step(), step())), "a step between each two"),
        (lambda: Decision((0.5, 0.6), (step(),)), "times must fall"),
        (lambda: run(USFSampler(decision), TIMES[1:]), "decision has 7 steps"),
        (lambda: run(USFSampler(step(diffusion.StatisticsForm()))), "needs statistics"),
        (lambda: as_decision(diffusion.DDIM(1.0), SCHEDULE, TIMES), "must not draw noise"),
        (lambda: sample_decisions(MODEL, [], SCHEDULE, START), "the same number"),
    ):
        with pytest.raises(ValueError, match=error):
            make()
    for make in (
        lambda: Step(2, Varying()),
        lambda: Step(2, variant=DataForm()),
        lambda: Step(2, corrector=BH2()),
        lambda: USFSampler(UniPC()),
        lambda: as_decision(diffusion.Heun(), SCHEDULE, TIMES),
    ):
        with pytest.raises(TypeError):
            make()
