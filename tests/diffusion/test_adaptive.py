"""Chosen steps against the controller in plain numpy, and what becomes of runs that cannot end."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from mixture_noise import mixture_noise

from jaxopt_ext import diffusion
from jaxopt_ext.core.solution import Status
from jaxopt_ext.diffusion import DataForm, DPMSolverAdaptive, sample_adaptive

SCHEDULE = diffusion.VariancePreserving(start=1.0, end=0.01)
MEANS, SCALES = jnp.array([[-2.0, 0.0], [1.0, 1.0], [0.5, -2.0]]), jnp.array([0.6, 0.8, 0.5])
START = np.random.default_rng(0).normal(size=(4, 2))
TIGHT = DPMSolverAdaptive(3, atol=1e-5, rtol=1e-3)


def denoiser(shift=0.0, dtype=jnp.float64):
    return diffusion.GaussianMixture((MEANS + shift).astype(dtype), SCALES.astype(dtype)).denoiser()


def spoiled(last=-1.0, gain=1.0, shift=(0.0, 0.0)):
    """Noise times a gain and moved, no number after the time `last`; all numbers are data of one
    program."""
    exact = denoiser()
    last, gain, shift = map(jnp.array, (last, gain, shift))

    def noise(x, node):
        return jnp.where(node.t < last, jnp.nan, gain * exact.noise(x, node) + shift)

    return diffusion.Denoiser(noise)


def closed(order, e, x, atol=0.0078, rtol=0.05, theta=0.9, h=0.05):
    """The paper's controller; every attempt is in the list of its steps."""
    at = lambda l: (SCHEDULE.alpha(SCHEDULE.time_at(l)), SCHEDULE.sigma(SCHEDULE.time_at(l)))
    l, end = SCHEDULE.log_snr(SCHEDULE.start), SCHEDULE.log_snr(SCHEDULE.end)
    before, attempts = x, []
    while end - l > 1e-9:
        h = min(h, end - l)
        (a, _), (b, s) = at(l), at(l + h)
        es = e(x, l)
        first = b / a * x - s * np.expm1(h) * es
        c, r = at(l + h / order)
        e1 = e(c / a * x - r * np.expm1(h / order) * es, l + h / order)
        second = first - s * order / 2 * np.expm1(h) * (e1 - es)
        if order == 2:
            low, high = first, second
        else:
            c, r = at(l + 2 * h / 3)
            g = 2 * h / 3
            x2 = c / a * x - r * np.expm1(g) * es - 2 * r * (np.expm1(g) / g - 1) * (e1 - es)
            e2 = e(x2, l + 2 * h / 3)
            low, high = second, first - 1.5 * s * (np.expm1(h) / h - 1) * (e2 - es)
        delta = np.maximum(atol, rtol * np.maximum(np.abs(low), np.abs(before)))
        error = np.sqrt(np.mean(((high - low) / delta) ** 2, 1)).max()
        attempts.append((h, error <= 1))
        if error <= 1:
            x, before, l = high, low, l + h
        h = theta * h * error ** (-1 / order)
    return x, attempts


def exact_noise(shift=0.0):
    """The noise of the mixture at a level, from its density."""
    means, scales = np.asarray(MEANS) + shift, np.asarray(SCALES)

    def noise(x, l):
        _, a, s = SCHEDULE.nodes(SCHEDULE.time_at(l))
        return mixture_noise(x, a, s, means, scales)

    return noise


def test_steps_are_those_of_the_papers_controller():
    wanted, attempts = closed(3, exact_noise(), START)
    out = sample_adaptive(spoiled(), DPMSolverAdaptive(), SCHEDULE, jnp.asarray(START))
    assert out.status == Status.converged
    assert any(not taken for _, taken in attempts), "the controller should have had to reject"
    assert out.evaluations == 3 * len(attempts)
    np.testing.assert_allclose(out.value, wanted, rtol=1e-8)


@pytest.mark.slow
def test_tolerances_are_met_and_cost():
    model, x = denoiser(), jnp.asarray(START)
    exact = closed(3, exact_noise(), START, atol=1e-8, rtol=1e-6)[0]
    runs = [
        sample_adaptive(model, DPMSolverAdaptive(3, atol=a, rtol=100 * a), SCHEDULE, x)
        for a in (1e-3, 1e-5)
    ]
    loose, tight = (np.sqrt(np.mean((run.value - exact) ** 2)) for run in runs)
    assert tight < 1e-3 < 1e-2
    assert tight < loose / 10
    assert runs[0].evaluations < runs[1].evaluations
    # Fewer calls than equal steps of order 1 need.
    times = diffusion.uniform_log_snr(SCHEDULE, int(runs[1].evaluations))
    first = diffusion.sample(model, diffusion.DDIM(), SCHEDULE, times, x)
    assert np.sqrt(np.mean((first.value - exact) ** 2)) > 1e-2


@pytest.mark.slow
def test_a_batch_shares_its_steps_and_vmap_does_not():
    method = DPMSolverAdaptive(2, batch_ndim=0)
    run = lambda x: sample_adaptive(denoiser(), method, SCHEDULE, x)
    out = jax.vmap(run)(jnp.asarray(START))
    assert out.evaluations.shape == (4,)
    assert len(set(out.evaluations.tolist())) > 1
    for i, x in enumerate(START):
        value, attempts = closed(2, exact_noise(), x[None])
        assert out.evaluations[i] == 2 * len(attempts)
        np.testing.assert_allclose(out.value[i], value[0], rtol=1e-8)


def test_single_precision_and_pytrees_land_on_the_end():
    exact = denoiser(dtype=jnp.float32)
    join = lambda x: jnp.concatenate([x["a"], x["b"][0]], -1)
    cut = lambda x: {"a": x[:, :1], "b": (x[:, 1:],)}
    last = collections.deque()  # a list would be a pytree, and copied

    def network(x, node):
        jax.debug.callback(lambda t: last.append(float(t)), node.t)
        return cut(exact.noise(join(x), node))

    x = cut(jnp.asarray(START, jnp.float32))
    # The table of a chain is of double precision; its betas are those of SCHEDULE, step by step.
    chain = diffusion.DiscreteSchedule(diffusion.linear_betas(1000), end=0.01)
    method = DPMSolverAdaptive(2, form=DataForm())
    out = sample_adaptive(diffusion.Denoiser(network), method, chain, x, denoise=True)
    jax.effects_barrier()
    assert len(last) == out.evaluations
    assert min(last) == np.float32(0.01)
    value = join(out.value)
    assert value.dtype == jnp.float32
    wanted = closed(3, exact_noise(), START, atol=1e-6, rtol=1e-4)[0]
    _, a, s = SCHEDULE.nodes(0.01)
    noise = exact_noise()(wanted, SCHEDULE.log_snr(0.01))
    np.testing.assert_allclose(value, (wanted - s * noise) / a, atol=5e-2)


@pytest.mark.slow
def test_derivatives_are_those_of_the_solution():
    def score(shift, checkpoints):
        method = DPMSolverAdaptive(3, atol=1e-6, rtol=1e-4)
        out = sample_adaptive(
            denoiser(shift),
            method,
            SCHEDULE,
            jnp.asarray(START),
            checkpoints=checkpoints,
            max_steps=200,
        )
        return jnp.sum(jnp.sin(out.value))

    exact = lambda shift: np.sum(
        np.sin(closed(3, exact_noise(shift), START, atol=1e-7, rtol=1e-5)[0])
    )
    numeric = (exact(1e-3) - exact(-1e-3)) / 2e-3
    forward = jax.jvp(lambda s: score(s, None), (0.0,), (1.0,))[1]
    np.testing.assert_allclose(forward, numeric, rtol=1e-3)
    np.testing.assert_allclose(jax.grad(score)(0.0, 8), forward, rtol=1e-8)


def test_runs_that_cannot_end_say_so():
    x = jnp.asarray(START)
    short = sample_adaptive(denoiser(), TIGHT, SCHEDULE, x, max_steps=5)
    assert short.status == Status.step_limit
    assert short.evaluations == 15
    out = sample_adaptive(spoiled(last=0.5), TIGHT, SCHEDULE, x)
    assert out.status == Status.nonfinite
    assert np.all(np.isnan(out.value))
    assert out.evaluations < 300


@pytest.mark.slow
def test_devices_choose_their_own_steps():
    devices = jax.devices()[:4]
    mesh = jax.sharding.Mesh(np.array(devices), ("i",))
    means = jnp.asarray(np.random.default_rng(1).normal(size=(len(devices), 2)))

    def one(x, mean):
        model = diffusion.Denoiser(lambda x, node: jnp.tanh(x - mean) * node.sigma)
        out = sample_adaptive(model, DPMSolverAdaptive(), SCHEDULE, x, max_steps=40, checkpoints=4)
        return out.value, out.evaluations

    specs = dict(mesh=mesh, in_specs=(P(), P("i")), out_specs=P("i"))
    spread = jax.shard_map(lambda x, m: jax.tree.map(lambda a: a[None], one(x, m[0])), **specs)
    each = jax.vmap(one, in_axes=(None, 0))
    loss = lambda run: lambda x: (jnp.sum(jnp.sin((out := run(x, means))[0])), out[1])
    grad = lambda run: jax.jit(jax.grad(loss(run), has_aux=True))(jnp.asarray(START))
    jax.tree.map(np.testing.assert_allclose, grad(spread), grad(each))


def test_no_error_takes_the_rest_in_one_step():
    """A model of constant noise makes E zero, and the next h infinite."""
    e = np.array([0.7, -0.4])
    out = sample_adaptive(spoiled(gain=0.0, shift=e), TIGHT, SCHEDULE, jnp.asarray(START))
    assert out.status == Status.converged
    assert out.evaluations == 6
    (_, a, s), (_, b, r) = (SCHEDULE.nodes(t) for t in (1.0, 0.01))
    np.testing.assert_allclose(out.value, b / a * START + (r - s * b / a) * e, atol=1e-10)


def test_new_numbers_do_not_retrace(trace_count):
    run = lambda shift, atol: sample_adaptive(
        denoiser(shift), DPMSolverAdaptive(2, atol=atol), SCHEDULE, jnp.asarray(START)
    )
    run(0.0, 1e-2)
    run(0.1, 1e-2)
    with trace_count() as traces:
        run(0.2, 2e-2)
    assert traces.count == 0


BAD = {
    "order": (lambda: DPMSolverAdaptive(1), ValueError, "at least 2"),
    "high order": (lambda: DPMSolverAdaptive(4), ValueError, "2 or 3"),
    "atol": (lambda: DPMSolverAdaptive(atol=0.0), ValueError, "atol"),
    "rtol": (lambda: DPMSolverAdaptive(rtol=-1.0), ValueError, "rtol"),
    "theta": (lambda: DPMSolverAdaptive(theta=1.0), ValueError, "theta"),
    "h0": (lambda: DPMSolverAdaptive(h0=0.0), ValueError, "h0"),
    "form": (lambda: DPMSolverAdaptive(form="noise"), TypeError, "form"),
    "model": (lambda: sample_adaptive(lambda x, n: x, TIGHT, SCHEDULE, START), TypeError, "model"),
    "method": (
        lambda: sample_adaptive(denoiser(), diffusion.DDIM(), SCHEDULE, START),
        TypeError,
        "method",
    ),
    "integers": (
        lambda: sample_adaptive(denoiser(), TIGHT, SCHEDULE, jnp.arange(2)),
        TypeError,
        "floating",
    ),
    "no batch": (
        lambda: sample_adaptive(denoiser(), TIGHT, SCHEDULE, jnp.float64(1.0)),
        ValueError,
        "leading axes",
    ),
    "max_steps": (
        lambda: sample_adaptive(denoiser(), TIGHT, SCHEDULE, jnp.asarray(START), max_steps=0),
        ValueError,
        "max_steps",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_raises(case):
    make, error, match = BAD[case]
    with pytest.raises(error, match=match):
        make()
