"""Every sampler in the catalogue keeps the contract of samplers."""

import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from jaxopt_ext import catalog, diffusion

ROWS = catalog.rows(catalog.SamplerRow)
CHECKS = (
    "order",
    "law",
    "constant",
    "pytree",
    "vmap",
    "dtypes",
    "retrace",
    "key",
    "gradient",
    "nonfinite",
)
EACH = pytest.mark.parametrize(
    "row",
    [pytest.param(r, id=r.name, marks=pytest.mark.slow if r.relative else ()) for r in ROWS],
)
SCHEDULES = {
    "VP": diffusion.VariancePreserving(start=1.0, end=0.01),
    "flow": diffusion.RectifiedFlow(start=0.99, end=0.01),
}
MEANS = np.array([[-2.0, 0.0], [1.0, 1.0], [0.5, -2.0]])
START = np.array([[0.5, -0.3], [-1.0, 0.8], [0.1, 1.3]])


def mixture(dtype=jnp.float64, shift=0.0):
    return diffusion.GaussianMixture(
        jnp.asarray(MEANS + shift, dtype), jnp.array([0.6, 0.8, 0.5], dtype)
    )


def exact_model(dtype=jnp.float64, shift=0.0, last=-1.0):
    """Exact predictions, that are not a number after the time `last`.

    Mixture and time are data, so that checks which differ in them share a program.
    """
    exact, last = mixture(dtype, shift), jnp.asarray(last, dtype)
    predict = lambda x, node: jnp.where(node.t < last, jnp.nan, exact.data(x, node))
    return diffusion.Denoiser(predict, diffusion.Data())


def _skip(row, check):
    if row.reason(check):
        pytest.skip(row.reason(check))


def _steps(row):
    """20, or the fewer ones over which the order is measured where they are few: one program."""
    return 20 if row.order is None or row.counts[-2] > 40 else row.counts[-2]


def _sample(row, num_steps=None, *, dtype=jnp.float64, name="VP", x=None, model=None, **options):
    schedule = SCHEDULES[name]
    times = getattr(diffusion, row.grid)(schedule, num_steps or _steps(row))
    x = jnp.asarray(START, dtype) if x is None else x
    model = exact_model(dtype) if model is None else model
    options.setdefault("key", jax.random.key(0))
    return diffusion.sample(model, row.example(), schedule, times, x, **options)


@functools.cache
def _reference(name):
    """The probability-flow solution, by an integrator in the plain variables."""
    schedule, model = SCHEDULES[name], mixture()
    data = jax.jit(lambda x, node: model.data(x, node))

    def drift(t, flat):
        x, h = flat.reshape(START.shape), 1e-6
        node = schedule.nodes(t)
        slope = lambda f: (f(t + h) - f(t - h)) / (2 * h)
        x0 = np.asarray(data(jnp.asarray(x), node))
        noise = (x - node.alpha * x0) / node.sigma
        return (slope(schedule.alpha) * x0 + slope(schedule.sigma) * noise).ravel()

    span = schedule.start, schedule.end
    solution = solve_ivp(drift, span, START.ravel(), method="DOP853", rtol=1e-10, atol=1e-12)
    return solution.y[:, -1].reshape(START.shape)


def test_there_are_samplers_and_known_opt_outs():
    assert ROWS
    for row in ROWS:
        assert set(row.opt_outs) <= set(CHECKS), row.name
        assert (row.order is None) == row.example().stochastic, row.name


def _schedules():
    """Of the two schedules one runs always; which, differs from row to row."""
    for row in ROWS:
        for i, name in enumerate(SCHEDULES):
            waits = row.relative or zlib.crc32(row.name.encode()) % len(SCHEDULES) != i
            marks = pytest.mark.slow if waits else ()
            yield pytest.param(row, name, id=f"{name}-{row.name}", marks=marks)


@pytest.mark.parametrize(("row", "name"), _schedules())
def test_order_of_convergence(row, name):
    _skip(row, "order")
    if row.order is None:
        pytest.skip("draws noise; its law is tested instead")
    counts = np.array(row.counts)[-2:]
    runs = [np.asarray(_sample(row, int(n), name=name).value) for n in counts]
    errors = [np.abs(run - _reference(name)).max() for run in runs]
    slopes = -np.diff(np.log(errors)) / np.diff(np.log(counts))
    assert abs(slopes[-1] - row.order) < 0.15, (errors, slopes)


@EACH
def test_constant_predictions_are_integrated_exactly(row):
    _skip(row, "constant")
    if row.order is None:
        pytest.skip("draws noise")
    schedule, x, fixed = SCHEDULES["VP"], jnp.asarray(START), jnp.asarray([0.7, -0.4])
    first, last = (schedule.nodes(t) for t in (schedule.start, schedule.end))
    predict = lambda x, node: jnp.broadcast_to(fixed, x.shape)
    ratio, decay = last.alpha / first.alpha, last.sigma / first.sigma
    wanted = {
        diffusion.Data: decay * START + (last.alpha - first.alpha * decay) * np.asarray(fixed),
        diffusion.Noise: ratio * START + (last.sigma - first.sigma * ratio) * np.asarray(fixed),
    }
    errors = []
    for prediction, exact in wanted.items():
        model = diffusion.Denoiser(predict, prediction())
        errors.append(np.abs(_sample(row, 7, x=x, model=model).value - exact).max())
        if errors[-1] < 1e-12:
            return
    raise AssertionError(errors)


FIRST_WITH_NOISE = next(row for row in ROWS if row.order is None)


@pytest.mark.parametrize(
    "row",
    [
        # What draws no noise is held by its order to the flow, which has the law. Of the others,
        # with so many draws, one runs always.
        pytest.param(
            row, id=row.name, marks=[pytest.mark.slow] if row is not FIRST_WITH_NOISE else []
        )
        for row in ROWS
    ],
)
def test_law_of_the_samples(row):
    _skip(row, "law")
    schedule, exact, num = SCHEDULES["VP"], mixture(), 20_000
    first, second = jax.random.split(jax.random.key(0))
    x = diffusion.prior(schedule, jnp.zeros((num, 2)), first)
    out = _sample(row, 400, x=x, key=second).value
    mean, covariance = exact.moments()
    size = np.sqrt(np.diagonal(covariance) / num)
    assert np.all(np.abs(out.mean(0) - mean) < 0.02 + 5 * size)
    np.testing.assert_allclose(np.cov(out.T), covariance, atol=0.06)


@functools.cache
def _plain(row):
    """What several checks look at."""
    return _sample(row).value


@EACH
def test_vmap_and_pytrees_change_nothing(row):
    _skip(row, "vmap")
    x = jnp.asarray(START)
    trees = not row.reason("pytree")
    join = lambda x: jnp.concatenate([x["a"], x["b"][0]], -1)
    cut = lambda x: {"a": x[..., :1], "b": (x[..., 1:],)}
    exact = mixture().denoiser()
    model = diffusion.Denoiser(lambda x, node: cut(exact.noise(join(x), node)))

    def tree(x):
        out = _sample(row, x=cut(x), model=model).value
        assert jax.tree.structure(out) == jax.tree.structure(cut(x))
        return join(out)

    alone = lambda x: _sample(row, x=x).value
    if row.example().stochastic:  # noise is drawn leaf by leaf
        run = alone
        if trees:
            jax.eval_shape(tree, x)
    else:
        run = tree if trees else alone
    mapped = jax.jit(jax.vmap(run))(np.stack([START, 2 * START]))
    np.testing.assert_allclose(mapped[0], _plain(row), rtol=1e-10)


@EACH
def test_evaluations_are_as_stated_and_single_precision_stays_single_and_close(row):
    exact = exact_model(jnp.float32)
    calls = itertools.count()  # a list would be a pytree, and copied

    def network(x, node):
        jax.debug.callback(lambda: next(calls))
        return exact.data(x, node)

    model = diffusion.Denoiser(network, diffusion.Data())
    narrow = _sample(row, dtype=jnp.float32, model=model, trace=True, denoise=True)
    jax.block_until_ready(narrow.value)
    jax.effects_barrier()
    assert narrow.evaluations == row.example().evaluations(_steps(row)) + 1
    assert next(calls) == narrow.evaluations
    _skip(row, "dtypes")
    assert {x.dtype for x in (narrow.value, narrow.path)} == {jnp.dtype("float32")}
    assert narrow.path.shape == (_steps(row), 3, 2)
    if not row.example().stochastic:
        np.testing.assert_allclose(narrow.path[-1], _plain(row), atol=2e-4)


@pytest.mark.parametrize("denoise", [False, True])
def test_a_path_ends_in_the_value_or_before_its_denoising(denoise):
    """What follows from the driver alone, for one sampler."""
    row = next(row for row in ROWS if row.public == "diffusion.DDIM")
    out = _sample(row, trace=True, denoise=denoise)
    value = out.path[-1]
    if denoise:
        last = SCHEDULES["VP"].nodes(SCHEDULES["VP"].end)
        value = jax.jit(lambda x, node: mixture().data(x, node))(value, last)
    np.testing.assert_allclose(out.value, value, rtol=1e-12 if denoise else 0)


@EACH
def test_new_numbers_do_not_retrace(row, trace_count):
    _skip(row, "retrace")
    fresh = lambda shift: _sample(row, model=exact_model(shift=shift))
    fresh(0.1)
    with trace_count() as traces:
        fresh(0.2)
    assert traces.count == 0


@EACH
def test_key_decides_if_anything(row):
    _skip(row, "key")
    one, same, other = (_sample(row, key=jax.random.key(k)).value for k in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.array_equal(one, other) != row.example().stochastic


@EACH
def test_jit_changes_nothing_and_gradients_equal_central_differences(row):
    _skip(row, "gradient")

    def score(shift):
        out = _sample(row, model=exact_model(shift=shift)).value
        return jnp.sum(jnp.sin(out)), out

    wanted = (score(1e-5)[0] - score(-1e-5)[0]) / 2e-5
    slope, compiled = jax.jit(jax.grad(score, has_aux=True))(0.0)
    np.testing.assert_allclose(slope, wanted, rtol=1e-6)
    np.testing.assert_allclose(compiled, _plain(row), rtol=1e-12)


@EACH
def test_nan_is_not_hidden(row):
    _skip(row, "nonfinite")
    assert np.all(np.isnan(_sample(row, model=exact_model(last=0.5)).value))
