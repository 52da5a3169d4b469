"""Every sampler in the catalogue keeps the contract of samplers."""

import functools
import itertools

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


def _skip(row, check):
    if row.reason(check):
        pytest.skip(row.reason(check))


def _sample(row, num_steps=20, *, dtype=jnp.float64, name="VP", x=None, model=None, **options):
    schedule = SCHEDULES[name]
    times = getattr(diffusion, row.grid)(schedule, num_steps)
    x = jnp.asarray(START, dtype) if x is None else x
    model = mixture(dtype).denoiser() if model is None else model
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


@EACH
@pytest.mark.parametrize("name", SCHEDULES)
def test_order_of_convergence(row, name):
    _skip(row, "order")
    if row.order is None:
        pytest.skip("draws noise; its law is tested instead")
    counts = np.array(row.counts)
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

    def run(predicts):
        model = diffusion.Denoiser(lambda x, node: jnp.broadcast_to(fixed, x.shape), predicts)
        return _sample(row, 7, x=x, model=model).value

    ratio = last.alpha / first.alpha
    noise = ratio * x + (last.sigma - first.sigma * ratio) * fixed
    decay = last.sigma / first.sigma
    data = decay * x + (last.alpha - first.alpha * decay) * fixed
    errors = [
        np.abs(run(diffusion.Noise()) - noise).max(),
        np.abs(run(diffusion.Data()) - data).max(),
    ]
    assert min(errors) < 1e-12, errors


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


@EACH
def test_evaluations_are_counted_and_as_stated(row):
    calls = itertools.count()  # a list would be a pytree, and copied

    def network(x, node):
        jax.debug.callback(lambda: next(calls))
        return x

    out = _sample(row, 7, model=diffusion.Denoiser(network), denoise=True)
    jax.block_until_ready(out.value)
    jax.effects_barrier()
    assert out.evaluations == row.example().evaluations(7) + 1
    assert next(calls) == out.evaluations


@EACH
def test_jit_vmap_and_pytrees_change_nothing(row):
    _skip(row, "vmap")
    plain = _sample(row, x=jnp.asarray(START[0])).value
    compiled = jax.jit(lambda x: _sample(row, x=x).value)(jnp.asarray(START[0]))
    np.testing.assert_allclose(compiled, plain, rtol=1e-12)
    mapped = jax.vmap(lambda x: _sample(row, x=x).value)(jnp.asarray(START))
    np.testing.assert_allclose(mapped[0], plain, rtol=1e-10)
    _skip(row, "pytree")
    exact = mixture().denoiser()
    join = lambda x: jnp.concatenate([x["a"], x["b"][0]])
    cut = lambda x: {"a": x[:1], "b": (x[1:],)}
    model = diffusion.Denoiser(lambda x, node: cut(exact.noise(join(x), node)))
    tree = _sample(row, x=cut(jnp.asarray(START[0])), model=model).value
    assert jax.tree.structure(tree) == jax.tree.structure(cut(plain))
    if not row.example().stochastic:  # noise is drawn leaf by leaf
        np.testing.assert_allclose(join(tree), plain, rtol=1e-10)


@EACH
def test_single_precision_stays_single_and_close(row):
    _skip(row, "dtypes")
    wide, narrow = (_sample(row, 50, dtype=d, trace=True) for d in (jnp.float64, jnp.float32))
    assert {x.dtype for x in (narrow.value, narrow.path)} == {jnp.dtype("float32")}
    assert narrow.path.shape == (50, 3, 2)
    if not row.example().stochastic:
        np.testing.assert_allclose(narrow.value, wide.value, atol=2e-4)
    np.testing.assert_array_equal(narrow.path[-1], narrow.value)


@EACH
def test_new_numbers_do_not_retrace(row, trace_count):
    _skip(row, "retrace")

    def fresh(shift):
        exact = mixture(shift=shift)
        return _sample(row, model=diffusion.Denoiser(lambda x, node: exact.data(x, node)))

    fresh(0.0)
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
def test_gradient_equals_central_differences(row):
    _skip(row, "gradient")

    def score(shift):
        return jnp.sum(jnp.sin(_sample(row, 10, model=mixture(shift=shift).denoiser()).value))

    wanted = (score(1e-5) - score(-1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(score)(0.0), wanted, rtol=1e-6)


@EACH
def test_nan_is_not_hidden(row):
    _skip(row, "nonfinite")
    model = diffusion.Denoiser(lambda x, node: jnp.where(node.t < 0.5, jnp.nan, x))
    assert np.all(np.isnan(_sample(row, model=model).value))
