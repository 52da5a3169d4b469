"""Every training step in the catalogue keeps the contract of training steps."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import catalog, training

ROWS = catalog.rows(catalog.TrainingRow)
EACH = pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
CHECKS = ("scan", "resume", "keys", "dtypes", "nonfinite", "plain", "vmap", "shard_map")
STEPS = 6


def _skip(row, check):
    if row.reason(check):
        pytest.skip(row.reason(check))


def _is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(tree):
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array | np.ndarray)]
    return [np.asarray(jax.random.key_data(a) if _is_key(a) else a) for a in arrays]


def _on_the_host(tree):
    """Where cutting and stacking compiles nothing."""
    return jax.tree.map(lambda leaf: leaf if _is_key(leaf) else np.asarray(leaf), tree)


def _stacked(*trees):
    join = lambda *leaves: jnp.stack(leaves) if _is_key(leaves[0]) else np.stack(leaves)
    return jax.tree.map(join, *trees)


def _same(found, wanted, **tolerance):
    found, wanted = _numbers(found), _numbers(wanted)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, **(tolerance or {"rtol": 0, "atol": 0}))


# Compilation is what this suite costs: the programs below are shared by the checks.


class _Once(training.AbstractTrainingStep):
    """The method that it holds, whose step is traced once for all programs that it stands in."""

    method: training.AbstractTrainingStep

    def init(self, params, batch, key):
        return self.method.init(params, batch, key)

    def step(self, state, batch):
        return _step(self.method, state, batch)

    def check(self, batch):
        self.method.check(batch)


@eqx.filter_jit
def _step(method, state, batch):
    return method.step(state, batch)


def _opened(method, twin):
    """Both methods, with the numbers in which they differ as arguments of their one program."""
    (ours, kind), (theirs, other) = map(jax.tree.flatten, (method, twin))
    if kind != other:
        return method, twin
    differ = [isinstance(a, float) and a != b for a, b in zip(ours, theirs, strict=True)]
    number = lambda leaf, found: jnp.float32(leaf) if found else leaf
    return tuple(jax.tree.unflatten(kind, map(number, leaves, differ)) for leaves in (ours, theirs))


@functools.cache
def _methods(row):
    """The example; the one with weight zero of what it adds and plain training, if there are."""
    example, ours, plain = row.example(), None, None
    if row.plain is not None:
        ours, plain = row.plain()
        example, ours = _opened(example, ours)
    return tuple(None if method is None else _Once(method) for method in (example, ours, plain))


@functools.cache
def _parts(row):
    return _methods(row)[0], row.start(jnp.float32), row.batches(STEPS, jnp.float32)


def _fit(row, **options):
    method, params, batches = _parts(row)
    options = {"key": jax.random.key(3), "piece": 3, "progress": False, **options}
    return training.fit(options.pop("method", method), params, batches, **options)


_whole = functools.cache(_fit)


@functools.cache
def _stepper(row):
    method, params, batches = _parts(row)
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    state = eqx.filter_jit(method.init)(params, first, jax.random.key(3))
    return state, eqx.filter_jit(method.step)


def _loop(row, batches, steps=STEPS):
    batches = _on_the_host(batches)
    state, step = _stepper(row)
    metrics = []
    for t in range(steps):
        state, found = step(state, jax.tree.map(lambda leaf, t=t: leaf[t], batches))
        metrics.append(found)
    return state, metrics


def test_there_are_rows_and_known_opt_outs():
    assert ROWS
    for row in ROWS:
        assert set(row.opt_outs) <= set(CHECKS), row.name


@EACH
def test_a_fit_is_a_loop_of_steps(row):
    _skip(row, "scan")
    state, metrics = _loop(row, _parts(row)[2])
    fit = _whole(row)
    _same(fit.state, state, rtol=1e-5, atol=1e-6)
    _same(fit.params, state.params, rtol=1e-5, atol=1e-6)
    assert fit.steps == STEPS
    assert np.all(fit.metrics["finite"])
    _same(fit.metrics, _stacked(*metrics), rtol=1e-5, atol=1e-6)
    for a, b in zip(_numbers(fit.params), _numbers(_parts(row)[1]), strict=True):
        assert np.max(np.abs(a - b)) > 1e-3


@EACH
def test_a_resumed_fit_is_the_same_bit_for_bit(row, tmp_path):
    _skip(row, "resume")
    file = tmp_path / "checkpoint"
    half = _fit(row, num_steps=3, checkpoint=file)
    assert half.steps == 3
    _same(_fit(row, checkpoint=file), _whole(row))
    rest = _fit(row, checkpoint=file)
    _same(rest, _whole(row))  # nothing is left to do
    # What nobody placed stays so: a placed state would be another program to compile.
    arrays = filter(eqx.is_array, jax.tree.leaves(rest.state))
    assert not any(a.committed for a in arrays)


@EACH
def test_same_key_same_result(row):
    _skip(row, "keys")
    _same(_fit(row), _whole(row))


@EACH
def test_types_are_kept(row):
    _skip(row, "dtypes")
    for dtype in (jnp.float32, jnp.float64):
        method, params = _Once(row.example()), row.start(dtype)
        batches = row.batches(STEPS, dtype)

        def go(params, batches, method=method):
            return training.fit(method, params, batches, key=jax.random.key(0))

        fit = jax.eval_shape(go, params, batches)
        kinds = {a.dtype for a in jax.tree.leaves(fit) if jnp.issubdtype(a.dtype, jnp.inexact)}
        assert kinds == {jnp.dtype(dtype)}, kinds


@EACH
def test_a_nan_batch_is_reported_and_leaves_no_trace(row):
    _skip(row, "nonfinite")
    bad = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.ndim > 2

    def spoil(leaf):
        if not bad(leaf):
            return leaf
        leaf = np.array(leaf)
        leaf[2, 0] = np.nan
        return leaf

    batches = jax.tree.map(spoil, _parts(row)[2])
    state, metrics = _loop(row, batches)
    lost = 2 + row.delay
    assert [bool(found["finite"]) for found in metrics] == [t != lost for t in range(STEPS)]
    before = _loop(row, batches, lost)[0]
    after = _loop(row, batches, lost + 1)[0]
    _same(after.params, before.params)
    _same(after.opt_state, before.opt_state)
    assert all(np.all(np.isfinite(leaf)) for leaf in _numbers(state))
    assert any(np.any(a != b) for a, b in zip(*map(_numbers, (state, after)), strict=True))


@EACH
def test_weight_zero_of_what_is_new_is_plain_training(row):
    if row.plain is None:
        pytest.skip("it adds nothing")
    _skip(row, "plain")
    _, ours, plain = _methods(row)
    steps = STEPS - row.delay
    wanted = _fit(row, method=plain, num_steps=steps, piece=steps).params
    _same(_fit(row, method=ours).params, wanted, rtol=1e-5, atol=1e-6)


# What is plain, a tuple of averages and a run of a sampler; the driver is the same for all.
FIRST = "training.GradientStep", "diffusion.DenoisingLoss", "diffusion.MMDLoss"
FIRST_ONES = sorted(ROWS, key=lambda row: (row.public not in FIRST, row.name))


@pytest.mark.always(3)  # compiles two programs of each
@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in FIRST_ONES])
def test_many_at_once_and_on_devices_one_by_one(row):
    """`vmap` equals a loop, and so does `shard_map`, whose check is on."""
    method, params, batches = _parts(row)
    keys = jax.random.split(jax.random.key(5), 2)
    first = _on_the_host(params)
    starts = [first, jax.tree.map(lambda leaf: 0.5 * leaf, first)]

    def go(params, key, **options):
        fit = training.fit(method, params, batches, 3, key=key, **options)
        return fit.params, fit.metrics["loss"]

    # As in the resumed fits, for whose programs there is no need to compile another.
    alone = {"piece": 3, "progress": False}
    wanted = [go(jax.device_put(p), key, **alone) for p, key in zip(starts, keys, strict=True)]
    wanted, starts = _stacked(*wanted), _stacked(*starts)
    many = jax.vmap(go)
    if not row.reason("vmap"):
        _same(jax.jit(many)(starts, keys), wanted, rtol=1e-5, atol=1e-6)
    if not row.reason("shard_map"):
        mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        cut = jax.sharding.PartitionSpec("d")
        one = lambda params, key: jax.tree.map(
            lambda leaf: leaf[None],
            go(*jax.tree.map(lambda leaf: leaf[0], (params, key))),
        )
        spread = jax.shard_map(one, mesh=mesh, in_specs=cut, out_specs=cut)
        _same(jax.jit(spread)(starts, keys), wanted, rtol=1e-5, atol=1e-6)
