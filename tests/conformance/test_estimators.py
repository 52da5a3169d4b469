"""Every estimator in the catalogue keeps the contract of estimators."""

import functools
import io

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import catalog

ROWS = catalog.rows(catalog.EstimatorRow)
CHECKS = ("pure", "vmap", "dtypes", "retrace", "weights", "shapes", "nonfinite", "gradient", "file")
EACH = pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])


def data(task, n=30, d=3, seed=0, dtype=np.float64):
    """Rows and targets that fit the task."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    z = X @ np.linspace(1, -1, d) + 0.3 * rng.normal(size=n)
    y = {
        "real": z,
        "binary": (z > 0).astype(int),
        "classes": np.digitize(z, [-0.5, 0.5]),
        "counts": rng.poisson(np.exp(0.5 * z)),
    }[task]
    y = y.astype(dtype if task == "real" else int)
    return jax.device_put((X.astype(dtype), y))  # as it is: a change of type there is compiled


def _skip(row, check):
    if row.reason(check):
        pytest.skip(row.reason(check))


@functools.cache
def _fitted(row):
    return row.example().fit(*data(row.task))


@eqx.filter_jit
def _predicted(fit, X):
    return fit.predict(X)


def _parameters(fit):
    """What is compared of two fits: coefficients, or where a model has none that are unique, its
    predictions."""
    if hasattr(fit, "coef"):
        return eqx.filter((fit.coef, fit.intercept), eqx.is_array)
    return _predicted(fit, data("real", seed=5)[0])


def _assert_close(found, wanted, **tolerance):
    leaves = lambda fit: jax.tree.leaves(_parameters(fit))
    for a, b in zip(leaves(found), leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def test_there_are_estimators_and_known_opt_outs():
    assert ROWS
    for row in ROWS:
        assert set(row.opt_outs) <= set(CHECKS), row.name


@EACH
def test_fit_is_pure_and_compiles(row):
    _skip(row, "pure")
    model, (X, y) = row.example(), data(row.task)
    before = jax.tree.leaves(model)
    again = model.fit(X, y)
    assert all(a is b for a, b in zip(before, jax.tree.leaves(model), strict=True))
    _assert_close(again, _fitted(row), rtol=0)
    compiled = eqx.filter_jit(lambda model, X, y: model.fit(X, y))(model, X, y)
    _assert_close(compiled, _fitted(row), rtol=1e-6, atol=1e-8)
    assert compiled.status == jxt.Status.converged
    np.testing.assert_allclose(_predicted(compiled, X), compiled.predict(X), rtol=1e-9)


@EACH
def test_vmap_over_data_equals_a_loop(row):
    _skip(row, "vmap")
    model = row.example()
    sets = [data(row.task, seed=seed) for seed in range(3)]
    stacked = jax.device_put(jax.tree.map(lambda *parts: np.stack(parts), *sets))
    first = lambda X, y: jax.tree.leaves(_parameters(model.fit(X, y)))[0]
    for found, (X, y) in zip(jax.vmap(first)(*stacked), sets, strict=True):
        np.testing.assert_allclose(found, first(X, y), atol=1e-5)


@EACH
def test_types_are_kept(row):
    _skip(row, "dtypes")
    for dtype in (np.float32, np.float64):
        X, y = data(row.task, dtype=dtype)
        fit = row.example().fit(X, y)
        floats = jax.tree.leaves((_parameters(fit), fit.residual))
        assert {a.dtype for a in floats} == {jnp.dtype(dtype)}
        _assert_close(fit, _fitted(row), atol=1e-4)
        assert fit.score(X, y).dtype == dtype
    X, y = data(row.task)
    whole = np.round(10 * np.asarray(X))
    fits = [row.example().fit(jax.device_put(rows), y) for rows in (whole.astype(int), whole)]
    _assert_close(*fits, rtol=0)


@EACH
def test_new_numbers_do_not_retrace_the_solve(row, trace_count):
    _skip(row, "retrace")
    model = eqx.filter(row.example(), eqx.is_array)
    static = eqx.filter(row.example(), eqx.is_array, inverse=True)
    fit = jax.jit(lambda leaves, X, y: _parameters(eqx.combine(leaves, static).fit(X, y)))
    for seed in range(2):
        fit(model, *data(row.task, seed=seed))
    with trace_count() as traces:
        fit(model, *data(row.task, seed=2))
    assert traces.count == 0


@EACH
def test_weights_are_repetitions(row):
    _skip(row, "weights")
    model, (X, y) = row.example(), data(row.task)
    counts = np.arange(len(y)) % 3
    weights = jax.device_put(counts.astype(float))
    weighted = model.fit(X, y, weights)
    twice = jax.device_put((np.repeat(X, counts, axis=0), np.repeat(y, counts)))
    repeated = model.fit(*twice)
    _assert_close(weighted, repeated, atol=2e-5)
    order = np.random.default_rng(1).permutation(len(y))
    mixed = jax.device_put((np.asarray(X)[order], np.asarray(y)[order]))
    _assert_close(model.fit(*mixed), _fitted(row), atol=2e-5)
    score = weighted.score(X, y, weights)
    again = weighted.score(*twice)
    np.testing.assert_allclose(score, again, rtol=1e-9)


@EACH
def test_odd_shapes(row):
    _skip(row, "shapes")
    model = row.example()
    for n, d in ((40, 1), (6, 20)):
        X, y = data(row.task, n, d, seed=3)
        rows = np.array(X)
        rows[:, -1] = 1.0 if d > 1 else rows[:, -1]
        fit = model.fit(jax.device_put(rows), y)
        predicted = _predicted(fit, X)
        assert predicted.shape == (n,)
        assert np.all(np.isfinite(predicted))
    X, y = (np.asarray(part) for part in data(row.task))
    spoiled = X.copy()
    spoiled[0, 0] = np.inf
    fit = _fitted(row)
    assert jax.eval_shape(fit.predict, X[:1]).shape == (1,)
    for call, match in (
        (lambda: fit.predict(X[:, :2]), r"3 columns.*\(30, 2\)"),
        (lambda: fit.predict(X[0]), r"3 columns.*\(3,\)"),
        (lambda: model.fit(X, y[:-1]), r"\(30, 3\) and \(29,\)"),
        (lambda: model.fit(X[0], y), r"\(3,\) and \(30,\)"),
        (lambda: model.fit(X[:0], y[:0]), r"rows and columns.*\(0, 3\)"),
        (lambda: model.fit(X[:, :0], y), r"rows and columns.*\(30, 0\)"),
        (lambda: model.fit(X, y, np.ones(4)), r"sample_weight.*\(30,\).*\(4,\)"),
        (lambda: model.fit(X, y, -np.ones(30)), "sample_weight"),
        (lambda: model.fit(spoiled, y), "X must be finite"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    if row.task in ("binary", "classes"):
        with pytest.raises(ValueError, match="at least two classes"):
            model.fit(X, np.ones_like(y))
        with pytest.raises(ValueError, match="classes 0 to"):
            model.fit(X, y + 5)


@EACH
def test_nan_behind_jit_is_reported(row):
    _skip(row, "nonfinite")
    X, y = data(row.task)
    fit = eqx.filter_jit(lambda X: row.example().fit(X, y))(X.at[0, 0].set(jnp.nan))
    assert fit.status == jxt.Status.nonfinite


@EACH
def test_gradient_in_the_penalty_equals_central_differences(row):
    _skip(row, "gradient")
    X, y = data(row.task)
    model = eqx.tree_at(lambda m: m.solver, row.example(), jxt.minimize.FISTA(tol=1e-10))

    def score(weight):
        penalized = eqx.tree_at(lambda m: m.penalty, model, jxt.prox.L2Squared(weight))
        fit = penalized.fit(X, y)
        return jnp.sum(jnp.sin(fit.coef)) + jnp.sum(jnp.cos(fit.intercept))

    wanted = (score(0.1 + 1e-4) - score(0.1 - 1e-4)) / 2e-4
    np.testing.assert_allclose(jax.grad(score)(0.1), wanted, rtol=1e-5)


@EACH
def test_a_fitted_model_survives_a_file(row):
    _skip(row, "file")
    file, fit = io.BytesIO(), _fitted(row)
    eqx.tree_serialise_leaves(file, fit)
    file.seek(0)
    other = row.example().fit(*data(row.task, seed=9))
    X = data(row.task)[0]
    back = eqx.tree_deserialise_leaves(file, other)
    np.testing.assert_array_equal(_predicted(back, X), _predicted(fit, X))
