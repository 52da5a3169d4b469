"""Every aggregator keeps the contract of aggregators."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec as P

from jaxopt_ext import catalog

ROWS = catalog.rows(catalog.AggregatorRow)
CHECKS = (
    "permutation",
    "translation",
    "scale",
    "rotation",
    "equal",
    "absent",
    "breakdown",
    "feasible",
)
EACH = pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
M, D = 9, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(M, D)) + 1
ORDER = RNG.permutation(M)
SHIFT, SCALE = RNG.normal(size=D), 3.0
ROTATION = np.linalg.qr(RNG.normal(size=(D, D)))[0]
PRESENT = np.ones(M, bool)
PRESENT[[2, 7]] = False
REFERENCE = X[4]
"""State and pivot: what was good the round before, and the node's own row."""
F = 2
BAD = {
    "huge": 1e30,
    "NaN": np.nan,
    "infinity": np.inf,
    "minus infinity": -np.inf,
}
EVERYBODY = np.ones(M, bool)


def bad_rows(value):
    """Bad rows stand first, where ties go to them."""
    return np.concatenate([np.full((F, D), value), X[F:]])


def inputs():
    """Stacks of rows, references and masks, all of one shape: one program serves them all."""
    pick = {
        "plain": (X, REFERENCE, EVERYBODY),
        "permutation": (X[ORDER], REFERENCE, EVERYBODY),
        "translation": (X + SHIFT, REFERENCE + SHIFT, EVERYBODY),
        "scale": (SCALE * X, SCALE * REFERENCE, EVERYBODY),
        "rotation": (X @ ROTATION, REFERENCE @ ROTATION, EVERYBODY),
        "equal": (np.tile(REFERENCE, (M, 1)), REFERENCE * 0, EVERYBODY),
        "absent": (np.where(PRESENT[:, None], X, 1e9), REFERENCE, PRESENT),
        "absent, NaN": (np.where(PRESENT[:, None], X, np.nan), REFERENCE, PRESENT),
        **{name: (bad_rows(value), REFERENCE, EVERYBODY) for name, value in BAD.items()},
    }
    mixed = bad_rows(np.nan)
    mixed[0] = np.inf
    pick["mixed"] = (mixed, REFERENCE, EVERYBODY)
    half = X.copy()
    half[:F, 0] = [np.nan, -np.inf]
    pick["one entry"] = (half, REFERENCE, EVERYBODY)
    rows, references, masks = (np.stack(part) for part in zip(*pick.values(), strict=True))
    return list(pick), rows, references, masks


def feasible(row, m):
    return min(F, row.tolerates(m))


@functools.cache
def results(row, dtype):
    names, rows, references, masks = inputs()
    rule = row.example(M, feasible(row, M))
    key = jax.random.key(0)

    @jax.jit
    @jax.vmap
    def run(x, reference, mask):
        tree = lambda a: {"a": a[..., :4].reshape(*a.shape[:-1], 2, 2), "b": a[..., 4:]}
        found = rule.aggregate(tree(x), tree(reference), tree(reference), key, mask)
        return jnp.concatenate([found["a"].reshape(-1), found["b"]])

    found = run(jnp.asarray(rows, dtype), jnp.asarray(references, dtype), jnp.asarray(masks))
    assert found.dtype == dtype
    return dict(zip(names, np.asarray(found), strict=True))


def _skip(row, check):
    if row.reason(check):
        pytest.skip(row.reason(check))


def _close(found, wanted, dtype):
    tolerance = {jnp.float32: 2e-4, jnp.float64: 1e-8}[dtype]
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


def test_opt_outs_are_known():
    assert ROWS
    for row in ROWS:
        assert set(row.opt_outs) <= set(CHECKS), row.name


@EACH
def test_permutation_of_the_rows_changes_nothing(row, dtype):
    _skip(row, "permutation")
    found = results(row, dtype)
    _close(found["permutation"], found["plain"], dtype)


@EACH
def test_a_shift_of_the_rows_shifts(row, dtype):
    _skip(row, "translation")
    found = results(row, dtype)
    _close(found["translation"], found["plain"] + SHIFT, dtype)


@EACH
def test_a_scale_of_the_rows_scales(row, dtype):
    _skip(row, "scale")
    found = results(row, dtype)
    _close(found["scale"], SCALE * found["plain"], dtype)


@EACH
def test_a_rotation_of_the_rows_rotates(row, dtype):
    _skip(row, "rotation")
    found = results(row, dtype)
    _close(found["rotation"], found["plain"] @ ROTATION, dtype)


@EACH
def test_equal_rows_give_that_row(row, dtype):
    _skip(row, "equal")
    _close(results(row, dtype)["equal"], REFERENCE, dtype)


@EACH
def test_absent_rows_hold_anything(row, dtype):
    found = results(row, dtype)
    assert np.all(np.isfinite(found["absent"]))
    np.testing.assert_array_equal(found["absent"], found["absent, NaN"])
    _skip(row, "absent")
    if dtype == jnp.float32:
        return
    rule, key = row.example(M, feasible(row, M)), jax.random.key(0)
    wanted = jax.jit(lambda x, reference: rule(x, reference, reference, key))
    _close(found["absent"], wanted(jnp.asarray(X[PRESENT]), jnp.asarray(REFERENCE)), dtype)


@EACH
def test_bad_rows_do_not_move_it_out_of_the_others(row, dtype):
    _skip(row, "breakdown")
    rule = row.example(M, feasible(row, M))
    assert rule.tolerates(M) >= F
    found, good = results(row, dtype), X[F:]
    center = np.mean(good, axis=0)
    radius = np.max(np.linalg.norm(good - center, axis=1))
    for name in (*BAD, "mixed", "one entry"):
        assert np.all(np.isfinite(found[name])), name
        assert np.linalg.norm(found[name] - center) <= radius, name


@EACH
def test_one_row(row):
    if row.tolerates(1) < 0:
        with pytest.raises(ValueError, match="m = 1"):
            row.example(3, 0).aggregate(jnp.ones((1, D)), pivot=jnp.ones(D))
        return
    x = jnp.asarray(X[:1])
    rule = row.example(1, 0)
    found = jax.jit(lambda x: rule.aggregate(x, x[0], x[0], jax.random.key(0)))(x)
    np.testing.assert_allclose(found, X[0], rtol=1e-9)


@EACH
def test_too_many_bad_rows_are_refused_with_the_numbers(row):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        row.example(M, 0).aggregate(jnp.ones((0, D)), pivot=jnp.ones(D))
    _skip(row, "feasible")
    f = row.tolerates(M) + 1
    rule = row.example(M, f)
    with pytest.raises(ValueError, match=rf"f={f}.*m = \d+"):
        jax.eval_shape(lambda x: rule(x, pivot=x[0], key=jax.random.key(0)), jnp.ones((M, D)))
    row.example(M, f - 1).check(M)


@EACH
def test_bad_rows_arguments_are_refused(row):
    rule, x = row.example(M, 0), jnp.asarray(X)
    with pytest.raises(ValueError, match="mask must have shape"):
        rule(x, mask=jnp.ones(3, bool))
    with pytest.raises(ValueError, match="pivot must be shaped like a row"):
        rule(x, pivot=jnp.ones(D + 1))
    with pytest.raises(ValueError, match="same number of rows"):
        rule({"a": x, "b": x[1:]})
    with pytest.raises(TypeError, match="real floating-point"):
        rule(x.astype(complex))


def test_all_in_shard_map_with_its_check():
    rules = {row.name: row.example(M, feasible(row, M)) for row in ROWS}
    stacks = jnp.asarray(X + RNG.normal(size=(8, M, D)), jnp.float32)

    def everything(x):
        key = jax.random.key(0)
        return {name: rule(x, x[0], x[0], key) for name, rule in rules.items()}

    mesh = Mesh(np.array(jax.devices()[:8]), ("i",))
    one = lambda x: jax.tree.map(lambda a: a[None], everything(x[0]))
    spread = jax.shard_map(one, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
    found, wanted = jax.jit(spread)(stacks), jax.jit(jax.vmap(everything))(stacks)
    for name in rules:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3, atol=1e-4, err_msg=name)
