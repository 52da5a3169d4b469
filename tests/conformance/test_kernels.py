"""Every kernel in the catalogue keeps the contract of kernels."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from aot import topology
from hypothesis import given, settings, strategies as st

from jaxopt_ext import catalog

ROWS = catalog.rows(catalog.KernelRow)
EACH = pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
CHECKS = ("types", "derivatives")
BODIES = pytest.mark.parametrize("implementation", ["xla", "pallas"])


def test_there_are_kernels_and_known_opt_outs():
    assert ROWS
    for row in ROWS:
        assert set(row.opt_outs) <= set(CHECKS), row.name


def _skip(row, check):
    if row.reason(check):
        pytest.skip(row.reason(check))


@functools.cache
def _case(row):
    """The case, and its call as one program for each shape: eager ones compile dozens."""
    case = row.example()
    return case, eqx.filter_jit(case.call)


@EACH
@BODIES
@pytest.mark.parametrize("draws", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_equals_the_dense_reference(row, implementation, draws):
    case, call = _case(row)

    @settings(deadline=None, max_examples=draws)  # each shape is compiled
    @given(st.integers(0, 2**31))
    def check(seed):
        arguments = case.draw(seed, jnp.float64)
        found = call(*arguments, implementation=implementation)
        case.compare(found, case.reference(*arguments), 1e-10)

    check()


@EACH
@BODIES
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_types_are_kept(row, implementation, dtype):
    _skip(row, "types")
    case, call = _case(row)
    arguments = case.large(dtype)
    found = call(*arguments, implementation=implementation)
    assert found.dtype == dtype
    wanted = case.reference(*arguments)
    scale = np.abs(wanted).max()
    tolerance = scale * (1e-5 if dtype == jnp.float32 else 1e-2)
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, atol=tolerance)


@EACH
@BODIES
def test_derivatives_equal_differences_of_the_reference(row, implementation):
    _skip(row, "derivatives")
    case = row.example()
    draws = (case.draw(seed, jnp.float64) for seed in range(100))
    # A matrix without entries would have derivative zero, which no wrong sign can spoil.
    arguments = next(d for d in draws if np.any(case.reference(*d)))
    arrays = case.differentiable(*arguments)
    weights = np.cos(np.arange(case.reference(*arguments).size))

    def score(arrays):
        moved = case.replace(arguments, arrays)
        return jnp.vdot(weights, case.call(*moved, implementation=implementation).ravel())

    gradients = jax.jit(jax.grad(score))(arrays)
    rng = np.random.default_rng(0)
    for i, array in enumerate(arrays):
        direction = rng.normal(size=array.shape)

        def shifted(h, i=i, direction=direction):
            moved = [a + h * direction if j == i else a for j, a in enumerate(arrays)]
            return weights @ case.reference(*case.replace(arguments, moved)).ravel()

        wanted = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        assert abs(wanted) > 1e-3
        np.testing.assert_allclose(np.sum(gradients[i] * direction), wanted, rtol=1e-6, atol=1e-8)


def _large(row, dtype):
    """Its arguments; a kernel that takes one type only has them in that."""
    if dtype != jnp.float32:
        _skip(row, "types")
    return row.example().large(dtype)


def _types(*slow):
    each = [jnp.float32, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in slow)]
    return pytest.mark.parametrize("dtype", each)


@EACH
@_types(jnp.bfloat16)
def test_compiles_ahead_of_time_for_tpu(row, dtype):
    case, arguments = row.example(), _large(row, dtype)
    chip = jax.sharding.SingleDeviceSharding(topology("v5e:2x2").devices[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), arguments
    )
    forward = jax.jit(lambda *a: case.call(*a, implementation="pallas"))
    with jax.enable_x64(False):
        compiled = forward.trace(*shapes).lower().compile()
    assert "tpu_custom_call" in compiled.as_text()


@EACH
@_types(jnp.bfloat16, jnp.float16)
def test_lowers_for_cuda(row, dtype):
    case, arguments = row.example(), _large(row, dtype)
    forward = jax.jit(lambda *a: case.call(*a, implementation="pallas"))
    lowered = forward.trace(*arguments).lower(lowering_platforms=("cuda",))
    assert "triton" in lowered.as_text().lower()
