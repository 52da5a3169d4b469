"""Sampling by rounds over a window, against the sequential run and a loop over a whole buffer."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from aot import topology
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from jaxopt_ext import diffusion, distributed
from jaxopt_ext.diffusion.exponential import DataForm, MultistepRow, empty, multistep

SCHEDULE = diffusion.VariancePreserving(end=0.01)
MIXTURE = diffusion.GaussianMixture(
    jnp.array([[-2.0, 0.0], [1.0, 1.0], [0.5, -2.0]]), jnp.array([0.6, 0.8, 0.5])
)
MODEL = MIXTURE.denoiser()
X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)))
KEY = jax.random.key(1)


class TwoStep(diffusion.AbstractSampler):
    """Adams-Bashforth in the predicted data, which remembers an output."""

    def evaluations(self, num_steps):
        return num_steps

    def plan(self, schedule, times):
        here, there = diffusion.ends(schedule, times)
        keep = there.sigma / here.sigma
        gain = there.alpha - here.alpha * keep
        share = np.append(0.0, 0.5 * np.ones(len(keep) - 1))
        return MultistepRow(here, keep, np.stack([gain * (1 + share), -gain * share], 1))

    def start(self, model, x, node):
        return empty(x, 1)

    def step(self, model, x, memory, row, key):
        return multistep(DataForm(), model, x, memory, row)


def sequential(sampler, num_steps, x=X, model=MODEL, **options):
    times = diffusion.uniform_time(SCHEDULE, num_steps)
    return diffusion.sample(model, sampler, SCHEDULE, times, x, key=KEY, **options)


def parallel(sampler, num_steps, window, tol, x=X, model=MODEL, **options):
    times = diffusion.uniform_time(SCHEDULE, num_steps)
    return diffusion.sample_parallel(
        model, sampler, SCHEDULE, times, x, window, tol=tol, key=KEY, **options
    )


def rms(a, b):
    return np.sqrt(np.mean(np.sum((a - b) ** 2, -1)))


def by_buffer(eta, num_steps, window, tol):
    """The paper's loop, on a buffer of all points: value, rounds, evaluations."""
    times = np.linspace(SCHEDULE.start, SCHEDULE.end, num_steps + 1)
    _, a, s = SCHEDULE.nodes(times)
    var = s[1:] ** 2 * (1 - (a[:-1] / s[:-1] * s[1:] / a[1:]) ** 2)
    keys = jax.random.split(KEY, num_steps)
    z = np.stack([diffusion.gaussian(X, k) for k in keys])
    means, scales = np.asarray(MIXTURE.means), np.asarray(MIXTURE.scales)

    def drift(x, j):
        wide = a[j] ** 2 * scales**2 + s[j] ** 2
        gaps = x[:, None] - a[j] * means
        logits = -0.5 * np.sum(gaps**2, -1) / wide - np.log(wide)
        share = np.exp(logits - logits.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        data = np.einsum("nk,nkd->nd", share, means + (a[j] * scales**2 / wide)[:, None] * gaps)
        noise = (x - a[j] * data) / s[j]
        kept = np.sqrt(s[j + 1] ** 2 - eta**2 * var[j])
        return a[j + 1] * data + kept * noise + eta * np.sqrt(var[j]) * z[j] - x

    points = np.stack([np.asarray(X)] * (num_steps + 1))
    begin = rounds = evaluations = 0
    while begin < num_steps:
        end = min(begin + window, num_steps)
        steps = np.stack([drift(points[j], j) for j in range(begin, end)])
        new = points[begin] + np.cumsum(steps, 0)
        errors = np.sum((new - points[begin + 1 : end + 1]) ** 2, -1) / X.shape[1]
        small = np.max(errors, 1) <= tol**2 * var[begin:end]
        stride = 1 + int(np.argmin(np.append(small, False)))
        points[begin + 1 : end + 1] = new
        points[end + 1 :] = new[-1]
        rounds, evaluations = rounds + 1, evaluations + end - begin
        begin += min(stride, end - begin)
    return points[-1], rounds, evaluations


@pytest.mark.always(1)
@pytest.mark.parametrize(
    ("eta", "window", "tol"),
    [(1.0, 16, 0.1), (0.0, 16, 0.1), (1.0, 50, 0.3), (0.0, 7, 0.1), (0.0, 50, 0.0), (1.0, 50, 0.0)],
)
def test_rounds_are_those_of_the_paper(eta, window, tol):
    found = parallel(diffusion.DDIM(eta), 30, window, tol)
    value, rounds, evaluations = by_buffer(eta, 30, window, tol)
    if tol:  # else rounding decides when points no longer change
        assert (int(found.rounds), int(found.evaluations)) == (rounds, evaluations)
    np.testing.assert_allclose(found.value, value, rtol=1e-9, atol=1e-9)


SAMPLERS = {
    "memory": TwoStep(),
    "DDPM": diffusion.DDIM(1.0),
    "DDIM": diffusion.DDIM(),
    "Heun": diffusion.Heun(),
    "accelerated": diffusion.AcceleratedDDPM(),
    "ParaDPMSolver": diffusion.DPMSolverPP(diffusion.MultiStep(2)),
    "UniPC": diffusion.UniPC(2),
}


@pytest.mark.always(1)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_window_of_one_is_the_sequential_run_and_a_settled_one_equals_it(name):
    sampler = SAMPLERS[name]
    found = parallel(sampler, 30, 1, 0.1, denoise=True)
    wanted = sequential(sampler, 30, denoise=True)
    np.testing.assert_array_equal(found.value, wanted.value)
    assert int(found.rounds) == 31
    assert int(found.evaluations) == sampler.evaluations(30) + 1
    found = parallel(sampler, 30, 30, 0.0, denoise=True)
    np.testing.assert_allclose(found.value, wanted.value, rtol=1e-12, atol=1e-12)
    assert int(found.rounds) <= 31


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memory", "DDPM", "DDIM"])
def test_few_rounds_find_nearly_the_same(name):
    wanted = sequential(SAMPLERS[name], 200).value
    found, closer = (parallel(SAMPLERS[name], 200, 40, tol) for tol in (0.1, 0.01))
    assert int(found.rounds) < 200 / 8
    assert 0 < rms(found.value, wanted) < 0.05
    assert int(found.rounds) < int(closer.rounds)
    assert rms(closer.value, wanted) < rms(found.value, wanted) / 5


def test_vmap_gives_each_sample_its_window():
    run = lambda x: parallel(diffusion.DDIM(), 30, 16, 0.1, x=x, batch_ndim=0)
    mapped = jax.jit(jax.vmap(run))(X)
    each = [run(jnp.array(x)) for x in np.asarray(X)]
    np.testing.assert_allclose(mapped.value, [e.value for e in each], rtol=1e-12)
    np.testing.assert_array_equal(mapped.rounds, [e.rounds for e in each])
    assert len({int(e.rounds) for e in each}) > 1


@pytest.mark.slow
def test_pytrees():
    cut = lambda x: {"a": x[..., :1], "b": (x[..., 1:],)}
    join = lambda x: jnp.concatenate([x["a"], x["b"][0]], -1)
    model = diffusion.Denoiser(lambda x, node: cut(MODEL.noise(join(x), node)))
    whole = alone(diffusion.DDIM())
    tree = parallel(diffusion.DDIM(), 30, 16, 0.1, x=cut(X), model=model)
    np.testing.assert_allclose(join(tree.value), whole.value, rtol=1e-10)
    assert int(tree.rounds) == int(whole.rounds)


def test_long_sums_in_single_precision():
    """All is in the sums where noise is constant and nothing decays: two rounds for 1000 steps."""
    schedule = diffusion.VarianceExploding(start=10.0, end=0.01)
    model = diffusion.Denoiser(lambda x, node: jnp.full_like(x, 0.3))
    times = diffusion.uniform_time(schedule, 1000)
    x = X.astype(jnp.float32)
    found = diffusion.sample_parallel(model, diffusion.DDIM(), schedule, times, x, 1000)
    assert found.value.dtype == jnp.float32
    assert int(found.rounds) == 2
    # Each step rounds its own end, in the sequential run too; the sums add nothing to that.
    np.testing.assert_allclose(found.value, x - 0.3 * 9.99, atol=1000 * 1e-7)


def test_forward_derivatives_and_no_new_trace(trace_count):
    times = diffusion.uniform_time(SCHEDULE, 30)

    def run(shift, tol=None):
        mixture = diffusion.GaussianMixture(MIXTURE.means + shift, MIXTURE.scales)
        start = mixture.denoiser(), diffusion.DDIM(), SCHEDULE, times, X
        if tol is None:
            return diffusion.sample(*start).value
        return diffusion.sample_parallel(*start, 16, tol=tol).value

    slope = lambda tol: jax.jvp(lambda shift: run(shift, tol), (0.1,), (1.0,))
    found, wanted = slope(0.0), slope(None)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    run(0.2, 0.1)
    with trace_count() as traces:
        run(0.3, 0.2)
    assert traces.count == 0


def test_nan_is_not_hidden_and_ends():
    model = diffusion.Denoiser(lambda x, node: jnp.where(node.t < 0.5, jnp.nan, x))
    found = parallel(diffusion.DDIM(), 30, 16, 0.1, model=model)
    assert np.all(np.isnan(found.value))
    assert int(found.rounds) <= 30


@functools.cache
def alone(sampler):
    return parallel(sampler, 30, 16, 0.1)


@pytest.mark.always(1)
@pytest.mark.parametrize("devices", [8, 1])
@pytest.mark.parametrize("name", ["memory", "DDPM"])
def test_a_window_spread_over_devices(name, devices):
    sampler = SAMPLERS[name]
    mesh = jax.make_mesh((devices,), ("time",), devices=jax.devices()[:devices])
    found = parallel(sampler, 30, 16, 0.1, mesh=mesh, axis="time")
    np.testing.assert_allclose(found.value, alone(sampler).value, rtol=1e-11)
    assert int(found.rounds) == int(alone(sampler).rounds)
    assert int(found.evaluations) == int(alone(sampler).evaluations)


@pytest.mark.slow
def test_a_window_that_is_longer_than_the_run_is_spread():
    mesh = jax.make_mesh((8,), ("time",))
    found = parallel(diffusion.DDIM(), 9, 24, 0.0, mesh=mesh, axis="time")
    wanted = sequential(diffusion.DDIM(), 9)
    np.testing.assert_allclose(found.value, wanted.value, rtol=1e-12, atol=1e-12)
    assert int(found.rounds) <= 9


@pytest.mark.always(1)
@pytest.mark.parametrize(
    ("axis", "samples"), [("time", P("data")), (None, P("data")), ("time", P())], ids=str
)
def test_inside_shard_map_over_time_over_samples_and_both(axis, samples):
    mesh = jax.make_mesh((2, 4), ("data", "time"))
    run = lambda x, axis=None: parallel(diffusion.DDIM(), 30, 16, 0.1, x=x, axis=axis).value
    spread = jax.shard_map(lambda x: run(x, axis), mesh=mesh, in_specs=samples, out_specs=samples)
    parts = (X,) if samples == P() else (X, jnp.array(np.asarray(X)[::-1] / 2))
    # Parts are as large as the samples of other tests, whose program runs alone here.
    wanted = np.concatenate([run(x) for x in parts])
    x = jax.device_put(np.concatenate(parts), NamedSharding(mesh, samples))
    np.testing.assert_allclose(jax.jit(spread)(x), wanted, rtol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_samples_stay_spread_over_another_axis(kind):
    mesh = jax.make_mesh((2, 4), ("data", "time"), axis_types=(kind, kind))
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    found = parallel(diffusion.DDIM(), 30, 16, 0.1, x=x, mesh=mesh, axis="time")
    np.testing.assert_allclose(found.value, alone(diffusion.DDIM()).value, rtol=1e-11)
    assert int(found.rounds) == int(alone(diffusion.DDIM()).rounds)
    assert found.value.sharding.is_equivalent_to(x.sharding, 2)


@pytest.mark.always(1)  # noise takes longer to compile, and its sums are those of the data
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_round_on_a_pod_sends_few_samples(eta):
    chips, window, shape = 16, 64, (4, 256)
    mesh = Mesh(np.array(topology("v5e:4x4").devices).reshape(chips), ("time",))
    model = diffusion.Denoiser(lambda x, node: jnp.tanh(x) * node.sigma)

    def run(x, key):
        times = diffusion.uniform_time(SCHEDULE, 100)
        return diffusion.sample_parallel(
            model, diffusion.DDIM(eta), SCHEDULE, times, x, window, key=key, mesh=mesh, axis="time"
        ).value

    whole = NamedSharding(mesh, P())
    with jax.enable_x64(False):
        keys = jax.eval_shape(lambda: jax.random.key(0))
        structs = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole) for a in (keys,)]
        x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole)
        executable = jax.jit(run).lower(x, *structs).compile()
    sample = 4 * np.prod(shape)
    sent = distributed.collective_bytes(executable)
    # Two known points, a neighbour's, two sums of each chip.
    assert 0 < sum(sent.values()) < (2 + 1 + 2 * chips + 1) * sample, sent
    assert not re.search(rf"f32\[{window},", executable.as_text())  # nobody holds the window


def test_bad_input_is_refused():
    times = diffusion.uniform_time(SCHEDULE, 10)
    run = lambda window, x=X, sampler=None, **options: diffusion.sample_parallel(
        MODEL, sampler or diffusion.DDIM(), SCHEDULE, times, x, window, **options
    )
    with pytest.raises(ValueError, match="window"):
        run(0)
    with pytest.raises(ValueError, match="tol"):
        run(4, tol=-1.0)
    with pytest.raises(ValueError, match="axes of samples"):
        run(4, batch_ndim=3)
    with pytest.raises(ValueError, match="key"):
        run(4, sampler=diffusion.DDIM(1.0))
    mesh = jax.make_mesh((8,), ("time",))
    with pytest.raises(ValueError, match="8 devices"):
        run(12, mesh=mesh, axis="time")
    with pytest.raises(ValueError, match="axis"):
        run(16, mesh=mesh, axis="space")
