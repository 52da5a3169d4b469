"""UniPC against the paper's linear systems in plain numpy, its relatives, and measured orders."""

import itertools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from mixture_noise import mixture_noise

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import BH1, BH2, DataForm, NoiseForm, UniC, UniP, UniPC, Varying, unipc

SCHEDULE = diffusion.VariancePreserving(start=1.0, end=0.01)
MEANS, SCALES = np.array([[-2.0, 0.0], [1.0, 1.0], [0.5, -2.0]]), np.array([0.6, 0.8, 0.5])
MODEL = diffusion.GaussianMixture(MEANS, SCALES).denoiser()
START = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)))
TIMES = diffusion.uniform_time(SCHEDULE, 7)  # steps that differ in lambda


def run(sampler, times=TIMES, model=MODEL):
    return np.asarray(diffusion.sample(model, sampler, SCHEDULE, times, START).value)


def output(x, node, noise):
    """The exact noise or data of the mixture, without a program."""
    x, a, s = map(np.asarray, (x, node.alpha, node.sigma))
    found = mixture_noise(x, a, s, MEANS, SCALES)
    return found if noise else (x - s * found) / a


class Plain(diffusion.AbstractDenoiser):
    """The exact model in numpy."""

    def noise(self, x, node):
        return jnp.asarray(output(x, node, True))

    def data(self, x, node):
        return jnp.asarray(output(x, node, False))


def eagerly(sampler):
    """A run as a Python loop over the rows of the plan, without a program."""
    x, model, key = START, Plain(), jax.random.key(0)
    nodes, table = SCHEDULE.nodes(TIMES), sampler.plan(SCHEDULE, TIMES)
    with jax.disable_jit():
        memory = sampler.start(model, x, jax.tree.map(lambda a: jnp.asarray(a[0]), nodes))
        for i in range(len(TIMES) - 1):
            row = jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), table)
            x, memory = sampler.step(model, x, memory, row, key)
    return np.asarray(x)


def paper(order, variant, noise, corrector, times=TIMES, final=10):
    """The algorithm as the authors write it, with B(h), R and b."""
    nodes = [SCHEDULE.nodes(t) for t in times]
    lam = [float(SCHEDULE.log_snr(t)) for t in times]
    f = lambda x, i: output(x, nodes[i], noise)
    x, buffer, count = np.asarray(START), [], len(times) - 1
    buffer = [f(x, 0)]
    for i in range(count):
        p = min(order, i + 1)
        if count < final:
            p = min(p, count - i)
        s, t = nodes[i], nodes[i + 1]
        h = lam[i + 1] - lam[i]
        hh = mpmath.mpf(h if noise else -h)
        B = hh if variant == "bh1" else mpmath.expm1(hh)
        r = [(lam[i - j] - lam[i]) / h for j in range(1, p)] + [1.0]
        q, b = mpmath.expm1(hh) / hh - 1, []
        for k in range(1, p + 1):
            b.append(q * math.factorial(k) / B)
            q = q / hh - mpmath.mpf(1) / math.factorial(k + 1)
        solve = lambda m, r=r, b=b: [
            float(a)
            for a in mpmath.lu_solve(
                mpmath.matrix([[mpmath.mpf(r[j]) ** k for j in range(m)] for k in range(m)]),
                mpmath.matrix(b[:m]),
            )
        ]
        halved = variant != "vary"
        ahead = [] if p == 1 else [0.5] if p == 2 and halved else solve(p - 1)
        behind = [0.5] if p == 1 and halved else solve(p)
        D = [(buffer[j] - buffer[0]) / r[j - 1] for j in range(1, p)]
        keep = t.alpha / s.alpha if noise else t.sigma / s.sigma
        size = t.sigma if noise else t.alpha
        base = keep * x - size * float(mpmath.expm1(hh)) * buffer[0]
        move = lambda rho, D, size=size, B=B: (
            size * float(B) * sum((a * d for a, d in zip(rho, D, strict=True)), 0.0)
        )
        new = base - move(ahead, D)
        if i < count - 1:
            out = f(new, i + 1)
            if corrector:
                new = base - move(behind, [*D, out - buffer[0]])
            buffer = [out if corrector else f(new, i + 1), *buffer][:order]
        x = new
    return x


VARIANTS = {"bh1": BH1(), "bh2": BH2(), "vary": Varying()}


FORMS = [(noise, variant) for noise in (False, True) for variant in VARIANTS]
TWO = (False, "bh2"), (True, "bh1")


@pytest.mark.always(2)
@pytest.mark.parametrize(("noise", "variant"), [*TWO, *(form for form in FORMS if form not in TWO)])
def test_equals_the_paper(variant, noise):
    form = NoiseForm() if noise else DataForm()
    for order, corrector in ((1, True), (2, False), (2, True), (4, True)):
        sampler = (UniPC if corrector else UniP)(order, VARIANTS[variant], form)
        wanted = paper(order, variant, noise, corrector)
        np.testing.assert_allclose(eagerly(sampler), wanted, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(run(sampler), wanted, rtol=1e-9, atol=1e-10)


def test_relatives_are_equal():
    multi = lambda order: diffusion.DPMSolverPP(diffusion.MultiStep(order))
    for found, wanted in (
        (UniP(1), diffusion.DDIM()),
        (UniP(2, lower_order_final=10), multi(2)),
        (UniP(3, lower_order_final=10), multi(3)),
        (UniC(2, multi(2), lower_order_final=10), UniPC(2, lower_order_final=10)),
        (UniC(1, diffusion.DDIM()), UniPC(1)),
        (UniC(2, UniP(2, form=NoiseForm()), form=NoiseForm()), UniPC(2, form=NoiseForm())),
    ):
        np.testing.assert_allclose(eagerly(found), eagerly(wanted), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("form", [DataForm(), NoiseForm()])
def test_the_corrector_adds_an_order(form):
    exact = run(diffusion.RK4(), diffusion.uniform_log_snr(SCHEDULE, 4000))
    for order, kind in itertools.product((1, 2, 3), (UniP, UniPC)):
        errors = [
            np.abs(
                run(
                    kind(order, form=form, lower_order_final=0),
                    diffusion.uniform_log_snr(SCHEDULE, n),
                )
                - exact
            )
            for n in (160, 320)
        ]
        slope = np.log2(np.sqrt(np.mean(errors[0] ** 2) / np.mean(errors[1] ** 2)))
        assert abs(slope - order - (kind is UniPC)) < 0.2, (order, kind, slope)


def test_only_the_known_point_is_known():
    """A base that asks at two points of one node, as exact inversion by pairs does, is answered by
    the model at the second."""
    node, x = SCHEDULE.nodes(0.5), jnp.array([0.3, -0.4])
    model = unipc._KnownAt(MODEL, node, x, diffusion.Noise(), jnp.array([7.0, 8.0]))
    np.testing.assert_array_equal(model.noise(x, node), [7.0, 8.0])
    np.testing.assert_allclose(model.noise(x + 1, node), MODEL.noise(x + 1, node), rtol=1e-12)
    later = SCHEDULE.nodes(0.4)
    np.testing.assert_allclose(model.noise(x, later), MODEL.noise(x, later), rtol=1e-12)


@pytest.mark.slow
def test_a_corrected_pndm_is_better_and_costs_the_same():
    times = diffusion.uniform_time(SCHEDULE, 40)
    calls = itertools.count()

    def network(x, node):
        jax.debug.callback(lambda: next(calls))
        return MODEL.noise(x, node)

    base = diffusion.PNDM(2, diffusion.ImprovedEuler())
    found = run(UniC(2, base, form=NoiseForm()), times, diffusion.Denoiser(network))
    jax.effects_barrier()
    assert next(calls) == 40 + 1 == UniC(2, base).evaluations(40)
    exact = run(diffusion.RK4(), diffusion.uniform_log_snr(SCHEDULE, 2000))
    error = lambda x: np.sqrt(np.mean((x - exact) ** 2))
    assert error(found) < 0.5 * error(run(base, times))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="order"):
        UniPC(0)
    with pytest.raises(TypeError, match="variant"):
        UniP(2, "bh2")
    with pytest.raises(TypeError, match="form"):
        UniPC(2, form="data")
    with pytest.raises(ValueError, match="draw noise"):
        UniC(1, diffusion.DDIM(1.0))
    with pytest.raises(ValueError, match="order 8 needs as many steps"):
        run(UniPC(8))
