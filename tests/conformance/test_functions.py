"""Every function in the catalogue keeps the contract of functions."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import catalog

ROWS = catalog.rows(catalog.FunctionRow)
EACH = pytest.mark.parametrize(
    "row",
    [pytest.param(r, id=r.name, marks=pytest.mark.slow if r.relative else ()) for r in ROWS],
)
LEADING = {row.system or row.name: row for row in reversed(ROWS)}
"""The first function of each system."""


def _slow(row, check):
    """Whether a check waits for the slow tests: of the functions of one system the first has all
    of them always, the others those that need no program of their own, and derivatives."""
    other = LEADING[row.system or row.name] is not row
    return row.relative or (other and (check == "single" or bool(row.reason("gradient"))))


def _each(check):
    return pytest.mark.parametrize(
        "row",
        [
            pytest.param(r, id=r.name, marks=pytest.mark.slow if _slow(r, check) else ())
            for r in ROWS
        ],
    )


CHECKS = ("reference", "single", "jit", "vmap", "dtype", "gradient", "retrace", "nan")
SEEDS = (0, 1)


def _skip(row, check):
    if row.reason(check):
        pytest.skip(row.reason(check))


def test_there_are_functions_and_known_opt_outs():
    assert ROWS
    for row in ROWS:
        assert set(row.opt_outs) <= set(CHECKS), row.name


@functools.cache
def _case(row):
    """The case, and its call as one compiled program, which all checks share."""
    case = row.example()
    return case, case.call if row.host else eqx.filter_jit(case.call)


@functools.cache
def _result(row, seed, dtype=jnp.float64):
    case, call = _case(row)
    arguments = case.draw(seed, dtype)
    return arguments, call(*arguments)


def _compare(found, wanted, tolerance):
    found, wanted = jax.tree.leaves(found), jax.tree.leaves(wanted)
    for a, b in zip(found, wanted, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        if np.issubdtype(a.dtype, np.inexact):
            scale = max(1, np.max(np.abs(b), initial=0))
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)
        else:
            np.testing.assert_array_equal(a, b)


@EACH
def test_equals_the_reference(row):
    _skip(row, "reference")
    for seed in SEEDS:
        arguments, found = _result(row, seed)
        _compare(found, _case(row)[0].reference(*arguments), 1e-10)


@_each("single")
def test_equals_the_reference_in_single_precision_and_keeps_it(row):
    _skip(row, "single")
    arguments, found = _result(row, 0, jnp.float32)
    _compare(found, _case(row)[0].reference(*arguments), 1e-4)
    if not row.reason("dtype"):
        floats = filter(eqx.is_inexact_array_like, jax.tree.leaves(found))
        assert {jnp.result_type(a) for a in floats} <= {jnp.dtype(jnp.float32)}


def _weights(found):
    return jax.tree.map(lambda a: np.cos(np.arange(a.size)).reshape(a.shape), _floats(found))


def _score(out, weights):
    return sum(jax.tree.leaves(jax.tree.map(lambda w, a: jnp.vdot(w, a), weights, out)))


def _slope(case, weights, arguments):
    """The result, and the gradient of its score in the floats of the arguments."""
    floats, rest = eqx.partition(arguments, eqx.is_inexact_array)

    def fun(floats):
        out = case.call(*eqx.combine(floats, rest))
        return _score(_floats(out), weights), out

    slope, out = jax.grad(fun, has_aux=True)(floats)
    return out, slope


def _stacked(*leaves):
    """On the host, but keys."""
    keys = jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key)
    return jnp.stack(leaves) if keys else np.stack(leaves)


@functools.cache
def _together(row):
    """Results and gradients of both seeds: a batch in one program."""
    case, _ = _case(row)
    (first, found), (second, _) = (_result(row, seed) for seed in SEEDS)
    dynamic, static = eqx.partition((first, second), eqx.is_array)
    stacked = jax.tree.map(_stacked, *dynamic)
    weights = None if row.reason("gradient") else _weights(found)

    def one(dynamic):
        arguments = eqx.combine(dynamic, static[0])
        return (case.call(*arguments),) if weights is None else _slope(case, weights, arguments)

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(stacked))


@_each("vmap")
def test_vmap_equals_a_loop(row):
    _skip(row, "vmap")
    (_, a), (_, b) = (_result(row, seed) for seed in SEEDS)
    _compare(_together(row)[0], jax.tree.map(lambda *leaves: np.stack(leaves), a, b), 1e-10)


@EACH
def test_a_second_call_does_not_trace_again(row, trace_count):
    _skip(row, "retrace")
    _, call = _case(row)
    arguments, _ = _result(row, 0)
    other, _ = _result(row, 1)
    call(*arguments)
    with trace_count() as traces:
        call(*other)
    assert traces.count == 0


@EACH
def test_derivatives_equal_differences(row):
    """In a batch, where that is one program with the results; the slow test has them alone."""
    _skip(row, "gradient")
    _check_slope(row, alone=bool(row.reason("vmap")))


@pytest.mark.slow
@EACH
def test_plain_derivatives_equal_differences(row):
    _skip(row, "gradient")
    _check_slope(row, alone=True)


def _check_slope(row, alone):
    case, call = _case(row)
    arguments, found = _result(row, 0)
    floats, rest = eqx.partition(arguments, eqx.is_inexact_array)
    weights = _weights(found)
    if alone:
        slope = eqx.filter_jit(lambda *a: _slope(case, weights, a)[1])(*arguments)
    else:
        slope = jax.tree.map(lambda a: a[0], _together(row)[1])
    leaves, treedef = jax.tree.flatten(floats)
    rng = np.random.default_rng(0)
    for _ in range(3):
        direction = [rng.normal(size=a.shape).astype(a.dtype) for a in leaves]

        def moved(h, direction=direction):
            arrays = [np.asarray(a) + h * d for a, d in zip(leaves, direction, strict=True)]
            shifted = jax.device_put(treedef.unflatten(arrays))
            out = jax.tree.map(np.asarray, _floats(call(*eqx.combine(shifted, rest))))
            pairs = zip(jax.tree.leaves(weights), jax.tree.leaves(out), strict=True)
            return sum(np.vdot(w, a) for w, a in pairs)

        wanted = (moved(1e-6) - moved(-1e-6)) / 2e-6
        assert abs(wanted) > 1e-6
        found = sum(np.vdot(d, a) for d, a in zip(direction, jax.tree.leaves(slope), strict=True))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


def _floats(tree):
    return eqx.filter(tree, eqx.is_inexact_array)


@EACH
def test_a_nan_stays_visible(row):
    _skip(row, "nan")
    _, call = _case(row)
    arguments, _ = _result(row, 0)
    spoiled = jax.tree.map(
        lambda a: (
            jax.device_put(np.full(a.shape, np.nan, a.dtype)) if eqx.is_inexact_array(a) else a
        ),
        arguments,
    )
    floats = jax.tree.leaves(_floats(call(*spoiled)))
    assert floats
    assert not all(np.all(np.isfinite(a)) for a in floats)
