"""Every gradient transformation in the catalogue keeps the contract of optimizers."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_task import SHAPES, Parabola, one_step, path, run, transformer, tree

from jaxopt_ext import catalog
from jaxopt_ext.core import checkpoint

ROWS = catalog.rows(catalog.OptimizerRow)
EACH = pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
LEADING = {row.system or row.public: row for row in reversed(ROWS)}
"""The first row of each system, or of what one function makes."""
ONCE = pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            id=row.name,
            marks=() if LEADING[row.system or row.public] is row else pytest.mark.slow,
        )
        for row in ROWS
    ],
)
"""A check of what others do with the function, which says little more of its other rows: theirs
are slow tests."""
CHECKS = (
    "optimum",
    "complex",
    "scan",
    "chain",
    "masked",
    "multi_transform",
    "inject",
    "multi_steps",
    "dtypes",
    "sharding",
    "empty_tree",
    "none_leaf",
    "zero_size",
    "serialisation",
    "state_bytes",
    "extras",
    "nonfinite",
    "construction",
    "shard_map",
)
TARGET = Parabola(tree(1))


def _skip(row, check):
    if row.reason(check):
        pytest.skip(row.reason(check))


def _on_host(tree):
    """Arrays of numpy, which take no compilation to cut; keys as their numbers."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def _assert_close(found, wanted, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    found, wanted = _on_host(found), _on_host(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


# Compilation is what this suite costs, so each row has few programs and the checks share them.


@functools.cache
def _stepper(row):
    """One compiled update on the small tree."""
    tx = row.transformation(tree(0))
    update = lambda params, state, number: _update(tx, row, params, state, step=number)
    return tx, jax.jit(update)


@functools.cache
def _walk(row, num_steps=4):
    """Parameters and states along the first steps, from a loop over compiled updates."""
    tx, update = _stepper(row)
    params = tree(0)
    path = [(params, jax.jit(tx.init)(params))]
    for number in range(num_steps):
        updates, state = update(*path[-1], jnp.asarray(number))
        path.append((optax.apply_updates(path[-1][0], updates), state))
    return path


@functools.cache
def _scan(row):
    """Parameters and state after 4 and 1500 steps of a scan, from the bend of the loss."""
    params = tree(0)
    tx = row.transformation(params)

    @jax.jit
    def scan(bend):
        walked = path(tx, row, Parabola(TARGET.target, bend), params, 1500)
        at = lambda index: jax.tree.map(lambda leaf: leaf[index], walked)
        return at(3), at(-1)

    return functools.cache(scan)


def _without_scalar(tree):
    """What a transformation sees of a tree whose scalar is masked."""
    return {**tree, "scalar": optax.MaskedNode()}


@functools.cache
def _in_company(row):
    """What comes of the row inside of optax's wrappers, from one program, by the name of the check.

    First updates; of `multi_steps` the first two, and of `inject` parameters and state after three.
    """
    tx, _ = _stepper(row)
    chained = optax.chain(optax.clip_by_global_norm(1e6), tx, optax.scale(0.5))
    kept = row.transformation(_without_scalar(tree(0)))
    seen = Parabola(_without_scalar(TARGET.target))
    labels = {"matrix": "mine", "vector": "mine", "scalar": "none"}
    masked = optax.masked(kept, {"matrix": True, "vector": True, "scalar": False})
    split = optax.multi_transform({"mine": kept, "none": optax.set_to_zero()}, labels)
    two = optax.MultiSteps(tx, 2)
    injected = optax.inject_hyperparams(row.object, static_args=tuple(_injected(row)[1]))

    def partial(tx, params):
        """Functions among the extra arguments take the parameters that the transformation sees."""
        grads = TARGET.gradient(params)
        functions = seen.extras(row.extras, _without_scalar(params), _without_scalar(grads), 0)
        extras = TARGET.extras(row.extras, params, grads, 0)
        extras |= {k: v for k, v in functions.items() if callable(v) or k == "batch"}
        return tx.update(grads, tx.init(params), params, **extras)[0]

    def chain(params):
        """Among arguments that others may want."""
        grads = TARGET.gradient(params)
        known = TARGET.extras(row.extras, params, grads, 0)
        return chained.update(grads, chained.init(params), params, **known, of_no_use=object())[0]

    def multi_steps(params):
        step = lambda state, _: _update(two, row, params, state)[::-1]
        return jax.lax.scan(step, two.init(params), length=2)[1]

    checks = {
        "chain": chain,
        "masked": functools.partial(partial, masked),
        "multi_transform": functools.partial(partial, split),
        "multi_steps": multi_steps,
        "inject": lambda params: run(injected(**row.example(params)), row, TARGET, params, 3),
    }
    found = jax.jit(
        lambda params: {
            name: check(params) for name, check in checks.items() if name not in row.opt_outs
        }
    )
    return _on_host(found(tree(0)))


def _injected(row):
    """Names of the hyperparameters that are injected, and of the others."""
    bound = inspect.signature(row.object).bind(**row.example(tree(0)))
    bound.apply_defaults()
    traced = {name for name, value in bound.arguments.items() if isinstance(value, float)}
    return traced - set(row.static), set(bound.arguments) - (traced - set(row.static))


def _update(tx, row, params, state, loss=TARGET, step=0):
    grads = loss.gradient(params)
    return tx.update(grads, state, params, **loss.extras(row.extras, params, grads, step))


def test_there_are_optimizers_and_known_opt_outs():
    assert ROWS
    for row in ROWS:
        assert set(row.opt_outs) <= set(CHECKS), row.name
        assert set(row.static) <= set(inspect.signature(row.object).parameters), row.name


@EACH
@pytest.mark.parametrize("bend", [0.0, 1.0])
def test_goes_to_the_optimum(row, bend):
    loss, params = Parabola(tree(1), bend), tree(0)
    reached = loss(_scan(row)(bend)[1][0])
    assert reached < 0.3 * loss(params)
    _skip(row, "optimum")
    assert reached < 1e-2 * loss(params)


@EACH
def test_complex_parameters_go_to_the_optimum_or_are_refused(row):
    params, loss = tree(0, jnp.complex64), Parabola(tree(1, jnp.complex64))
    tx = row.transformation(params)
    if "complex" in row.opt_outs:
        with pytest.raises(TypeError, match="real parameters, got complex64"):
            tx.init(params)
        return
    reached, _ = run(tx, row, loss, params, 1500)
    assert jax.tree.map(jnp.dtype, reached) == jax.tree.map(jnp.dtype, params)
    assert loss(reached) < (0.3 if "optimum" in row.opt_outs else 1e-2) * loss(params)


@EACH
def test_scan_equals_a_loop_and_types_are_stable(row):
    _skip(row, "scan")
    params, state = _walk(row)[-1]
    _assert_close(_scan(row)(0.0)[0], (params, state), rtol=1e-4, atol=1e-5)
    types = lambda tree: jax.tree.map(lambda x: x.aval, tree)
    assert types(state) == types(_walk(row)[0][1])


@ONCE
def test_chain(row):
    _skip(row, "chain")
    moved = jax.tree.map(lambda p, u: np.asarray(p) + 2 * u, tree(0), _in_company(row)["chain"])
    _assert_close(moved, _walk(row)[1][0], rtol=1e-4, atol=1e-5)


@ONCE
def test_masked_leaves_are_left_alone(row):
    _skip(row, "masked")
    updates, params = _in_company(row)["masked"], tree(0)
    grads = {name: np.asarray(leaf) - TARGET.target[name] for name, leaf in params.items()}
    np.testing.assert_allclose(updates["scalar"], grads["scalar"], rtol=1e-6)
    assert any(not np.allclose(updates[k], grads[k], rtol=1e-4) for k in ("matrix", "vector"))


@ONCE
def test_multi_transform(row):
    _skip(row, "multi_transform")
    updates = _in_company(row)["multi_transform"]
    assert updates["scalar"] == 0
    assert any(np.any(updates[k] != 0) for k in ("matrix", "vector"))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))


@ONCE
def test_hyperparameters_can_be_injected(row):
    _skip(row, "inject")
    params, state = _in_company(row)["inject"]
    _assert_close(params, _walk(row)[3][0], rtol=1e-3, atol=1e-4)
    assert set(state.hyperparams) == _injected(row)[0]


@ONCE
def test_multi_steps_accumulates(row):
    _skip(row, "multi_steps")
    both = _in_company(row)["multi_steps"]
    assert all(np.all(leaf[0] == 0) for leaf in jax.tree.leaves(both))
    moved = jax.tree.map(lambda p, u: np.asarray(p) + u[1], tree(0), both)
    _assert_close(moved, _walk(row)[1][0], rtol=1e-4, atol=1e-5)


@EACH
@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.slow)]
)
def test_types_are_kept_and_states_are_wide(row, dtype):
    _skip(row, "dtypes")
    params, loss = tree(0, dtype), Parabola(tree(1, dtype))
    tx = row.transformation(params)

    def first(params):
        state = tx.init(params)
        return state, *_update(tx, row, params, state, loss)

    before, updates, after = jax.eval_shape(first, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    wanted = {jnp.dtype(jnp.promote_types(dtype, jnp.float32))}
    kinds = {x.dtype for x in jax.tree.leaves((before, after)) if _is_wide(x)}
    assert kinds <= wanted, kinds
    if dtype == jnp.float32:  # the type of the other leaves: nothing is mixed
        return
    mixed = {**tree(0), "vector": params["vector"]}
    loss = Parabola({**tree(1), "vector": loss.target["vector"]})
    tx = row.transformation(mixed)
    updates, _ = jax.eval_shape(lambda p: _update(tx, row, p, tx.init(p), loss), mixed)
    assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(lambda x: x.dtype, mixed)


def _is_wide(leaf):
    """State in the paper's low precision (codes, windows) is declared by its integer types."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _spread(devices):
    """Rows cut over devices, and everything on each."""
    mesh = jax.make_mesh((devices,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    return [jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*s)) for s in (["d"], [])]


@ONCE
def test_sharded_parameters_stay_sharded(row):
    _skip(row, "sharding")
    (cut, whole), shape = _spread(2), SHAPES["matrix"]
    place = lambda leaf: jax.device_put(leaf, cut if leaf.shape == shape else whole)
    _, update = _stepper(row)
    params, state = jax.tree.map(place, _walk(row)[0])
    for number in range(2):
        updates, state = update(params, state, jnp.asarray(number))
        params = optax.apply_updates(params, updates)
    for leaf in jax.tree.leaves((params, state)):
        if leaf.shape == shape:
            assert leaf.sharding.is_equivalent_to(cut, leaf.ndim), leaf.sharding
    _assert_close(params, _walk(row)[2][0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@EACH
def test_states_of_sharded_parameters_start_and_stay_sharded(row):
    _skip(row, "sharding")
    shapes = {"matrix": (16, 8), "vector": (8,)}
    params, target = tree(0, shapes=shapes), tree(1, shapes=shapes)
    tx = row.transformation(params)
    # The target is an argument, so that both runs share one trace.
    step = jax.jit(lambda target, *args: one_step(tx, row, Parabola(target))(*args))
    spec, _ = _spread(8)
    spread, spread_target = jax.device_put((params, target), spec)
    many = spread, tx.init(spread)
    one = params, jax.device_put(many[1], jax.devices()[0])
    for number in range(2):
        number = jnp.asarray(number)
        one, many = step(target, *one, number), step(spread_target, *many, number)
    for leaf in jax.tree.leaves(many[0]):
        assert leaf.sharding.is_equivalent_to(spec, leaf.ndim), leaf.sharding
    for leaf in jax.tree.leaves(many[1]):
        if leaf.shape == (16, 8):
            assert leaf.sharding.is_equivalent_to(spec, leaf.ndim), leaf.sharding
    _assert_close(many[0], one[0], rtol=1e-4, atol=1e-5)


ODD = {
    "empty_tree": {},
    "none_leaf": {"none": None, "x": jnp.ones(3)},
    "zero_size": {"empty": jnp.zeros((0, 3)), "x": jnp.ones(3)},
}


@functools.cache
def _odd_updates(row):
    """First updates of the row on each odd tree, from one program."""

    def first(params):
        loss, tx = Parabola(jax.tree.map(jnp.zeros_like, params)), row.transformation(params)
        return lambda params: _update(tx, row, params, tx.init(params), loss)[0]

    kinds = {kind: params for kind, params in ODD.items() if kind not in row.opt_outs}
    firsts = {kind: first(params) for kind, params in kinds.items()}
    return jax.jit(lambda trees: {kind: firsts[kind](trees[kind]) for kind in kinds})(kinds)


@ONCE
@pytest.mark.parametrize("kind", ODD)
def test_odd_leaves(row, kind):
    _skip(row, kind)
    updates = _odd_updates(row)[kind]
    assert jax.tree.structure(updates) == jax.tree.structure(ODD[kind])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))


@EACH
def test_state_survives_a_file(row, tmp_path):
    _skip(row, "serialisation")
    _, update = _stepper(row)
    params, state = _walk(row)[2]
    checkpoint.save(tmp_path / "state", state)
    back = checkpoint.load(tmp_path / "state", _walk(row)[0][1])
    updates, state = update(params, back, jnp.asarray(2))
    _assert_close((optax.apply_updates(params, updates), state), _walk(row)[3], rtol=0)


@EACH
@pytest.mark.parametrize("where", ["2**20 numbers", "transformer"])
def test_state_memory_is_the_papers(row, where):
    _skip(row, "state_bytes")
    if where == "transformer":
        params = transformer()
    else:
        params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), params)
    state = jax.eval_shape(row.transformation(zeros).init, params)
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    arrays = [leaf for leaf in jax.tree.leaves(state) if not is_key(leaf)]
    found = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in arrays)
    leaves = len(jax.tree.leaves(params))
    # A few counters and scalars for the whole tree and for each leaf are not the paper's subject.
    wanted = row.state_bytes(zeros)
    assert 0 <= found - wanted <= 64 + 16 * leaves, (found, wanted)


@EACH
def test_a_missing_extra_is_named_and_shown(row):
    _skip(row, "extras")
    tx, _ = _stepper(row)
    params, state = _walk(row)[0]

    def without(name):
        grads = TARGET.gradient(params)
        extras = TARGET.extras([k for k in row.extras if k != name], params, grads, 0)
        return tx.update(grads, state, params, **extras)

    for name in row.extras:
        with pytest.raises(ValueError, match=name) as error:
            jax.eval_shape(lambda name=name: without(name))
        assert "update(" in str(error.value), error.value


@EACH
def test_nan_is_not_hidden(row):
    _skip(row, "nonfinite")
    _, update = _stepper(row)
    params, state = _walk(row)[1]
    params = {**params, "matrix": jnp.full_like(params["matrix"], jnp.nan)}
    updates, _ = update(params, state, jnp.asarray(1))
    after = optax.apply_updates(tree(0), updates)
    assert np.any(~np.isfinite(after["matrix"]))


BAD = {
    "b1": 1.5,
    "b2": 1.5,
    "b3": 1.5,
    "momentum": -0.5,
    "eps": -1.0,
    "weight_decay": -1.0,
    "rank": -1,
    "learning_rate": -1.0,
    "alpha": -1.0,
    "decay": 1.5,
    "n_groups": 0,
    "num_clusters": 0,
    "steps_per_epoch": 0,
    "damping": -1.0,
    "m": 0,
    "k": 0.0,
    "zeta": 0.0,
    "v0": 0.0,
    "n_warmup": 0,
    "switch_every": 0,
    "b0": 1,
}
NOT_CHECKED = {"learning_rate"}  # a number's sign is the user's: optax takes negative ones too


@EACH
def test_bad_hyperparameters_raise_at_construction(row):
    _skip(row, "construction")
    example = row.example(tree(0))
    names = set(BAD) & set(inspect.signature(row.object).parameters) - NOT_CHECKED
    for name in sorted(names):
        with pytest.raises((ValueError, TypeError), match=name):
            row.object(**{**example, name: BAD[name]})
