"""Measurements against dense matrices, loops and scipy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from scipy import ndimage

from jaxopt_ext import diffusion

RNG = np.random.default_rng(0)
MASK = RNG.uniform(size=(6, 8)) < 0.4
MATRIX = RNG.normal(size=(3, 5))
KERNEL = RNG.uniform(0.2, 1.0, size=(3, 5))
MEASUREMENTS = {
    "mask": (diffusion.Inpainting(MASK), (6, 8)),
    "colour": (diffusion.Colorization(), (3, 4, 4)),
    "blocks": (diffusion.SuperResolution(2), (6, 8)),
    "blur": (diffusion.Blur(KERNEL), (6, 8)),
    "views": (diffusion.SparseRadon(12, 3, 9), (9, 9)),
    "matrix": (diffusion.LinearMeasurement(MATRIX), (5,)),
    "bell": (diffusion.Blur(diffusion.gaussian_kernel(5, 1.0)), (8, 8)),
    "operator": (diffusion.LinearMeasurement(lx.MatrixLinearOperator(jnp.asarray(MATRIX))), (5,)),
}
EACH = pytest.mark.parametrize("name", MEASUREMENTS)


def dense(function, shape):
    basis = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    columns = jax.jit(jax.vmap(function))(jnp.asarray(basis))
    return np.asarray(columns).reshape(len(basis), -1).T


@pytest.mark.always(6)
@EACH
def test_transpose_and_pseudo_inverse_are_those_of_the_matrix(name):
    measurement, shape = MEASUREMENTS[name]
    image = jax.eval_shape(measurement.forward, jax.ShapeDtypeStruct(shape, jnp.float64)).shape
    H = dense(measurement.forward, shape)
    np.testing.assert_allclose(dense(measurement.adjoint, image), H.T, atol=1e-12)
    if name == "views":  # filtered back-projection is no inverse
        return
    wanted = np.linalg.pinv(H, rcond=1e-3)
    np.testing.assert_allclose(dense(measurement.pseudo_inverse, image), wanted, atol=1e-9)
    wanted = np.eye(len(H.T)) - wanted @ H
    np.testing.assert_allclose(dense(measurement.unmeasured, shape), wanted, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["colour", "blur", "matrix"])
def test_single_precision_stays_single(name):
    measurement, shape = MEASUREMENTS[name]
    x = jnp.asarray(RNG.normal(size=shape), jnp.float32)
    cast = lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a
    narrow = jax.tree.map(cast, measurement)
    y = narrow.forward(x)
    found = (y, narrow.adjoint(y), narrow.pseudo_inverse(y), narrow.weigh(y), narrow.unmeasured(x))
    assert {a.dtype for a in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(y, measurement.forward(x.astype(float)), atol=1e-5)


def test_convolution_is_periodic_and_its_kernel_in_the_middle():
    x = RNG.normal(size=(6, 8))
    found = diffusion.Blur(KERNEL).forward(jnp.asarray(x))
    np.testing.assert_allclose(found, ndimage.convolve(x, KERNEL, mode="wrap"), rtol=1e-10)


def test_blocks_and_grey_images_by_loops():
    x = RNG.normal(size=(6, 8))
    found = diffusion.SuperResolution(2).forward(jnp.asarray(x))
    wanted = [[x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(4)] for i in range(3)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    x = RNG.normal(size=(3, 2, 2))
    grey = np.array([1, 1, 1]) / np.sqrt(3)
    np.testing.assert_allclose(
        diffusion.Colorization().forward(jnp.asarray(x)), np.tensordot(grey, x, 1), rtol=1e-12
    )


def phantom(size):
    line = np.linspace(-1, 1, size)
    x, y = np.meshgrid(line, line, indexing="ij")
    return np.exp(-20 * ((x - 0.2) ** 2 + 2 * (y + 0.1) ** 2))


def test_views_are_sums_of_turned_images():
    image = phantom(31)
    measurement = diffusion.SparseRadon(12, 2, 31)
    found = measurement.forward(jnp.asarray(image))
    assert found.shape == (6, 31)
    for view, angle in zip(found, measurement.angles, strict=True):
        turned = ndimage.rotate(image, -np.rad2deg(angle), reshape=False, order=1)
        np.testing.assert_allclose(view, turned.sum(0), atol=1e-5)  # it cuts the edge off


@pytest.mark.slow
def test_filtered_back_projection_of_many_views_is_the_image():
    image = phantom(31)
    measurement = diffusion.SparseRadon(60, 1, 31)
    image = jnp.asarray(image)
    back = measurement.pseudo_inverse(measurement.forward(image))
    # Turning the image there and back smooths it.
    assert np.linalg.norm(back - image) < 0.15 * np.linalg.norm(image)
    # Of a few views the rest is unmeasured.
    few = diffusion.SparseRadon(60, 15, 31)
    rest = few.unmeasured(image)
    seen = few.pseudo_inverse(few.forward(image))
    wanted = (60 * back - 4 * seen) / 60
    np.testing.assert_allclose(rest, wanted, atol=1e-9)


def test_kernels_sum_to_one():
    bell = diffusion.gaussian_kernel(5, 0.8)
    np.testing.assert_allclose(bell[2] / bell[2, 2], np.exp(-0.5 * (np.arange(-2, 3) / 0.8) ** 2))
    for angle in (0.0, 0.6, np.pi / 2):
        np.testing.assert_allclose(diffusion.motion_kernel(5, angle).sum(), 1)
    flat = diffusion.motion_kernel(5, 0.0)
    assert np.all(flat[[0, 1, 3, 4]] == 0)
    assert np.all(flat[2] > 0.1)
    np.testing.assert_allclose(diffusion.motion_kernel(5, np.pi / 2), flat.T, atol=1e-12)


BAD = {
    "mask": (lambda: diffusion.Inpainting(jnp.ones(3)), TypeError, "truth values"),
    "channels": (
        lambda: diffusion.Colorization().forward(jnp.ones((4, 2, 2))),
        ValueError,
        "three",
    ),
    "factor": (
        lambda: diffusion.SuperResolution(3).forward(jnp.ones((4, 6))),
        ValueError,
        "divide",
    ),
    "kernel": (lambda: diffusion.Blur(jnp.ones((2, 3))), ValueError, "odd"),
    "large": (
        lambda: diffusion.Blur(jnp.ones((5, 5))).forward(jnp.ones((4, 6))),
        ValueError,
        "larger",
    ),
    "views": (lambda: diffusion.SparseRadon(10, 3, 8), ValueError, "every"),
    "square": (
        lambda: diffusion.SparseRadon(4, 1, 8).forward(jnp.ones((8, 7))),
        ValueError,
        "shape",
    ),
    "function": (lambda: diffusion.LinearMeasurement(lambda x: x), ValueError, "transpose"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_raises(case):
    make, error, match = BAD[case]
    with pytest.raises(error, match=match):
        make()
