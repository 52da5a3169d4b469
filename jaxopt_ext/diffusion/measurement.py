"""Linear measurements of images: inpainting, colour, blur, super-resolution, tomography.

A measurement is of one sample, $y = Hx + $ noise; what samples many maps it over them.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ..core import checks
from ..core.operators import as_map
from .denoiser import Sample

Measured = PyTree[Float[Array, "..."]]


class AbstractMeasurement(eqx.Module):
    """A linear map of a sample, with its transpose and a pseudo-inverse."""

    @abc.abstractmethod
    def forward(self, x: Sample) -> Measured:
        """$Hx$."""

    @abc.abstractmethod
    def adjoint(self, y: Measured) -> Sample:
        """$H^T y$."""

    @abc.abstractmethod
    def pseudo_inverse(self, y: Measured) -> Sample:
        """$H^+ y$."""

    def weigh(self, residual: Measured) -> PyTree[Array]:
        """$W r$ of a residual $r = y - Hx$, the norm of which is descended; r itself unless said
        otherwise."""
        return residual

    def unmeasured(self, x: Sample) -> Sample:
        """The part of a sample that no measurement sees, $(I - H^+ H) x$ unless said otherwise."""
        return jax.tree.map(jnp.subtract, x, self.pseudo_inverse(self.forward(x)))


class LinearMeasurement(AbstractMeasurement):
    """A measurement by functions, a matrix or a `lineax` operator.

    **Arguments:**

    - `operator`: $H$; a function of a sample, a matrix of shape `(m, n)` or a `lineax` operator.
    - `transpose`: $H^T$, a function; that of the matrix or the operator if left out.
    - `inverse`: $H^+$, a function; that of the matrix, by its singular values, if left out.

    **Raises:** `ValueError` if a part is missing that does not follow from the operator.
    """

    operator: Callable[[Sample], Measured]
    transpose: Callable[[Measured], Sample]
    inverse: Callable[[Measured], Sample]

    def __init__(self, operator, transpose=None, inverse=None):
        matrix = operator.as_matrix() if hasattr(operator, "as_matrix") else operator
        if eqx.is_array_like(matrix):
            if inverse is None:
                inverse = as_map(jnp.linalg.pinv(jnp.asarray(matrix))).forward
            map_ = as_map(operator)
            operator, transpose = map_.forward, transpose or map_.adjoint
        if transpose is None or inverse is None:
            raise ValueError("an operator that is a function needs its transpose and inverse")
        self.operator, self.transpose, self.inverse = operator, transpose, inverse

    def forward(self, x):
        return self.operator(x)

    def adjoint(self, y):
        return self.transpose(y)

    def pseudo_inverse(self, y):
        return self.inverse(y)


class Inpainting(AbstractMeasurement):
    """Some entries are seen, $Hx = Mx$ with zeros elsewhere; all of them for denoising, those
    between stripes for destriping.

    **Arguments:**

    - `mask`: M, true where an entry is seen; shaped like a sample, or what broadcasts against it.

    **Raises:** `TypeError` if the mask is not of truth values.
    """

    mask: PyTree[Bool[Array, "..."]]

    def __init__(self, mask):
        self.mask = jax.tree.map(jnp.asarray, mask)
        for leaf in jax.tree.leaves(self.mask):
            if leaf.dtype != jnp.bool_:
                raise TypeError(f"mask must hold truth values, got {leaf.dtype}")

    def forward(self, x):
        return jax.tree.map(lambda m, a: jnp.where(m, a, 0), self.mask, x)

    def adjoint(self, y):
        return self.forward(y)

    def pseudo_inverse(self, y):
        return self.forward(y)


class Colorization(AbstractMeasurement):
    """Images of three channels, first axis, seen in grey: the first coordinate in an orthonormal
    basis of colours that begins with $(1, 1, 1)/\\sqrt 3$. Its rows are orthonormal."""

    def forward(self, x):
        if x.shape[0] != 3:
            raise ValueError(f"images must have three channels in front, got shape {x.shape}")
        return jnp.sum(x, axis=0) / np.sqrt(3).item()

    def adjoint(self, y):
        return jnp.broadcast_to(y / np.sqrt(3).item(), (3, *y.shape))

    def pseudo_inverse(self, y):
        return self.adjoint(y)


class SuperResolution(AbstractMeasurement):
    """Means of blocks of pixels, over the last two axes.

    **Arguments:**

    - `factor`: the side of a block.

    **Raises:** `ValueError` if the factor does not divide the sides of an image.
    """

    factor: int = eqx.field(static=True, default=2)

    def __check_init__(self):
        checks.count("factor", self.factor)

    def forward(self, x):
        *lead, h, w = x.shape
        if h % self.factor or w % self.factor:
            raise ValueError(f"factor {self.factor} must divide the sides of {x.shape}")
        blocks = x.reshape(*lead, h // self.factor, self.factor, w // self.factor, self.factor)
        return jnp.mean(blocks, axis=(-3, -1))

    def adjoint(self, y):
        return self.pseudo_inverse(y) / self.factor**2

    def pseudo_inverse(self, y):
        return jnp.repeat(jnp.repeat(y, self.factor, -2), self.factor, -1)


class Blur(AbstractMeasurement):
    """Convolution over the last two axes, with the image continued periodically.

    Its pseudo-inverse divides by the kernel's spectrum where that is above `cutoff` times its
    largest, and is zero elsewhere.

    **Arguments:**

    - `kernel`: of odd sides, shape `(k, l)`; see `gaussian_kernel` and `motion_kernel`.
    - `cutoff`: where the spectrum counts as zero.

    **Raises:** `ValueError` if the kernel's sides are not odd, or exceed those of an image.
    """

    kernel: Float[Array, "k l"]
    cutoff: float = 1e-3

    def __init__(self, kernel, cutoff: float = 1e-3):
        self.kernel, self.cutoff = jnp.asarray(kernel), cutoff
        checks.positive("cutoff", cutoff)
        if self.kernel.ndim != 2 or not all(side % 2 for side in self.kernel.shape):
            raise ValueError(f"kernel must have two odd sides, got shape {self.kernel.shape}")

    def _spectrum(self, shape) -> Array:
        sides = self.kernel.shape
        if any(k > s for k, s in zip(sides, shape, strict=True)):
            raise ValueError(f"the kernel, {sides}, is larger than the image, {shape}")
        padded = jnp.zeros(shape, self.kernel.dtype).at[: sides[0], : sides[1]].set(self.kernel)
        return jnp.fft.rfft2(jnp.roll(padded, [-(s // 2) for s in sides], (0, 1)))

    def _filter(self, x, factor):
        return jnp.fft.irfft2(jnp.fft.rfft2(x) * factor, s=x.shape[-2:]).astype(x.dtype)

    def forward(self, x):
        return self._filter(x, self._spectrum(x.shape[-2:]))

    def adjoint(self, y):
        return self._filter(y, self._spectrum(y.shape[-2:]).conj())

    def pseudo_inverse(self, y):
        spectrum = self._spectrum(y.shape[-2:])
        size = jnp.abs(spectrum)
        there = size > self.cutoff * jnp.max(size)
        return self._filter(y, jnp.where(there, 1 / jnp.where(there, spectrum, 1), 0))


def gaussian_kernel(side: int, width: float) -> Float[np.ndarray, "k k"]:
    """A bell of standard deviation `width` on `side` by `side` pixels, summing to one."""
    checks.count("side", side)
    checks.positive("width", width)
    line = np.exp(-0.5 * (np.arange(side) - (side - 1) / 2) ** 2 / width**2)
    return np.outer(line, line) / line.sum() ** 2


def motion_kernel(side: int, angle: float) -> Float[np.ndarray, "k k"]:
    """A line of length `side` through the middle, `angle` in radians from the second axis, spread
    over the nearest pixels, summing to one."""
    checks.count("side", side)
    checks.finite("angle", angle)
    middle, kernel = (side - 1) / 2, np.zeros((side, side))
    for way in np.linspace(-middle, middle, 8 * side + 1):
        place = middle + way * np.array([np.sin(angle), np.cos(angle)])
        low = np.clip(np.floor(place).astype(int), 0, max(side - 2, 0))
        part = place - low
        for i, j in np.ndindex(2, 2):
            share = abs(1 - i - part[0]) * abs(1 - j - part[1])
            if share > 0 and max(low[0] + i, low[1] + j) < side:
                kernel[low[0] + i, low[1] + j] += share
    return kernel / kernel.sum()


class SparseRadon(AbstractMeasurement):
    """Line integrals of a square image in a few of many directions (sparse-view tomography).

    The image is turned by each angle, with linear interpolation, and summed over its rows. The
    pseudo-inverse is filtered back-projection, $H^+ y \\approx \\tfrac{\\pi}{2v} H^T F y$ with the
    ramp filter F and v views over half a turn, which is what residuals are weighed by too; as an
    inverse it is approximate.

    **Arguments:**

    - `views`: directions in half a turn, equally spaced.
    - `every`: of these every so many is measured.
    - `size`: the image's side.

    **Raises:** `ValueError` if `every` does not divide `views`, or an image has other sides.
    """

    views: int = eqx.field(static=True)
    every: int = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __check_init__(self):
        for name in ("views", "every", "size"):
            checks.count(name, getattr(self, name))
        if self.views % self.every:
            raise ValueError(f"every must divide views, got {self.every} and {self.views}")

    @property
    def angles(self) -> Float[np.ndarray, " v"]:
        """The measured directions, in radians."""
        return np.arange(0, self.views, self.every) * np.pi / self.views

    def forward(self, x):
        return self._project(x, self.angles)

    def adjoint(self, y):
        return self._back(y, self.angles)

    def pseudo_inverse(self, y):
        return self._filtered(y, self.angles)

    def weigh(self, residual):
        return self.pseudo_inverse(residual)

    def unmeasured(self, x):
        """What the directions see that were not measured, by filtered back-projection of all."""
        angles = np.arange(self.views) * np.pi / self.views
        unseen = np.arange(self.views) % self.every != 0
        views = self._project(x, angles) * jnp.asarray(unseen, x.dtype)[:, None]
        return self._filtered(views, angles)

    def _project(self, x, angles):
        if x.shape != (self.size, self.size):
            raise ValueError(f"images must have shape {(self.size, self.size)}, got {x.shape}")
        middle = (self.size - 1) / 2
        line = np.arange(self.size) - middle
        down, along = np.meshgrid(line, line, indexing="ij")

        def view(turn):
            c, s = turn
            places = [middle + c * down - s * along, middle + s * down + c * along]
            turned = jax.scipy.ndimage.map_coordinates(x, places, order=1, mode="constant")
            return jnp.sum(turned, axis=0)

        turns = np.stack([np.cos(angles), np.sin(angles)], -1)
        return jax.vmap(view)(jnp.asarray(turns, x.dtype))

    def _back(self, y, angles):
        like = jax.ShapeDtypeStruct((self.size, self.size), y.dtype)
        return jax.linear_transpose(lambda x: self._project(x, angles), like)(y)[0]

    def _filtered(self, y, angles):
        length = 2 * self.size
        # The ramp |f| of the line, whose values in space are exact at zero and at odd places.
        place = np.fft.fftfreq(length, 1 / length)
        odd = place % 2 == 1
        ramp = np.where(odd, -1 / (np.pi * np.where(odd, place, 1)) ** 2, 0.0)
        ramp[0] = 0.25
        ramp = jnp.asarray(2 * np.fft.rfft(ramp).real, y.dtype)
        spectrum = jnp.fft.rfft(y, n=length, axis=-1) * ramp
        lines = jnp.fft.irfft(spectrum, n=length, axis=-1)[:, : self.size].astype(y.dtype)
        return self._back(lines, angles) * (np.pi / (2 * len(angles)))
