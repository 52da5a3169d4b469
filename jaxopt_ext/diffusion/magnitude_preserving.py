r"""Layers whose outputs have the size of their inputs, root mean square 1, whatever training does.

Weights are normalized in every forward pass, so that only their direction counts; kept so by
`forced_normalisation` after every update, steps have a fixed relative size too. There are no biases
and no group norms.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..core import checks
from ..core.constants import Untrained
from .networks import conv3x3

EPS = 1e-4


def normalize(x: Array, axes: int | tuple[int, ...], eps: float = EPS) -> Array:
    r"""$x / (\epsilon + \mathrm{rms}(x))$, with the root mean square over `axes`."""
    square = jnp.mean(x**2, axis=axes, keepdims=True)
    # The root has no derivative at zero, where there is no direction either.
    some = square > 0
    root = jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0)
    return x / (jnp.asarray(eps, x.dtype) + root)


def pixel_norm(x: Float[Array, "channels *pixels"]) -> Float[Array, "channels *pixels"]:
    """Each pixel over the root mean square of its channels; a vector is one pixel.

    **Arguments:**

    - `x`: channels first.
    """
    return normalize(x, 0)


def mp_silu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    r"""$\mathrm{silu}(x) / 0.596$: of standard normal numbers it has root mean square 1.

    **Arguments:**

    - `x`: any array.
    """
    return jax.nn.silu(x) / 0.596


def mp_sum(a: Float[Array, "*s"], b: Float[Array, "*s"], t: float = 0.5) -> Float[Array, "*s"]:
    r"""$\frac{(1 - t) a + t b}{\sqrt{(1 - t)^2 + t^2}}$, of the size of two independent terms.

    **Arguments:**

    - `a`, `b`: the terms.
    - `t`: the part of `b`.
    """
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(
    a: Float[Array, "m *pixels"], b: Float[Array, "n *pixels"], t: float = 0.5
) -> Float[Array, "m+n *pixels"]:
    r"""`a` above `b`, scaled so that the first counts $1 - t$ and the second $t$ in what follows,

    $$C \Big[\tfrac{1 - t}{\sqrt m} a, \tfrac{t}{\sqrt n} b\Big],
    \qquad C = \sqrt{\tfrac{m + n}{(1 - t)^2 + t^2}}.$$

    **Arguments:**

    - `a`, `b`: channels first.
    - `t`: the part of `b`.
    """
    m, n = a.shape[0], b.shape[0]
    scale = math.sqrt((m + n) / ((1 - t) ** 2 + t**2))
    first, second = scale * (1 - t) / math.sqrt(m), scale * t / math.sqrt(n)
    return jnp.concatenate([first * a, second * b])


class MPLinear(eqx.Module):
    r"""$y = \frac{g}{\sqrt N} \hat w x$ with rows $\hat w$ of root mean square 1.

    **Arguments:**

    - `inputs`, `outputs`: $N$ and the number of rows.
    - `key`: random key.
    - `dtype`: of the weights.

    **Reference:** Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the
    Training Dynamics of Diffusion Models, 2024, arXiv:2312.02696.
    """

    weight: Float[Array, "out in"]

    def __init__(self, inputs: int, outputs: int, *, key: PRNGKeyArray, dtype: Any = None):
        checks.count("inputs", inputs)
        checks.count("outputs", outputs)
        self.weight = jax.random.normal(key, (outputs, inputs), _default(dtype))

    def __call__(self, x: Float[Array, " in"], gain: Any = 1.0) -> Float[Array, " out"]:
        """`gain` is $g$."""
        # The gain scales the weights, of which there are fewer or which cost no more than x.
        weight = normalize(self.weight, 1) * (gain / math.sqrt(self.weight.shape[1]))
        return weight @ x


class MPConv(eqx.Module):
    r"""A convolution without bias that preserves magnitudes: kernels of each output channel have
    root mean square 1, $y = \frac{g}{\sqrt N} \hat w * x$ with $N$ weights for an output.

    **Arguments:**

    - `inputs`, `outputs`: numbers of channels.
    - `side`: 1 or 3.
    - `key`: random key.
    - `dtype`: of the weights.

    **Raises:** `ValueError` for another side.

    **Reference:** Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the
    Training Dynamics of Diffusion Models, 2024, arXiv:2312.02696.
    """

    weight: Float[Array, "out in k k"]

    def __init__(
        self, inputs: int, outputs: int, side: int = 3, *, key: PRNGKeyArray, dtype: Any = None
    ):
        if side not in (1, 3):
            raise ValueError(f"side must be 1 or 3, got {side}")
        self.weight = jax.random.normal(key, (outputs, inputs, side, side), _default(dtype))

    def __call__(self, x: Float[Array, "in h w"], gain: Any = 1.0) -> Float[Array, "out h w"]:
        """`gain` is $g$."""
        size = math.prod(self.weight.shape[1:])
        weight = normalize(self.weight, (1, 2, 3)) * (gain / math.sqrt(size))
        if self.weight.shape[2] == 3:
            return conv3x3(weight, x)
        return jnp.tensordot(weight[:, :, 0, 0], x, 1)


class MPFourier(eqx.Module):
    r"""$\sqrt 2 \cos(f_i u + \phi_i)$ with $f_i = 2\pi b z_i$, $z_i$ normal, and $\phi_i$ uniform
    in $[0, 2\pi)$, which are not trained.

    **Arguments:**

    - `size`: number of features.
    - `bandwidth`: $b$.
    - `key`: random key.
    - `dtype`: of the numbers.

    **Reference:** Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the
    Training Dynamics of Diffusion Models, 2024, arXiv:2312.02696.
    """

    _frequencies: Untrained
    _phases: Untrained

    def __init__(self, size: int, bandwidth: float = 1.0, *, key: PRNGKeyArray, dtype: Any = None):
        checks.count("size", size)
        checks.positive("bandwidth", bandwidth)
        dtype, keys = _default(dtype), jax.random.split(key)
        normal = jax.random.normal(keys[0], (size,), dtype)
        self._frequencies = Untrained(2 * math.pi * bandwidth * normal)
        self._phases = Untrained(2 * math.pi * jax.random.uniform(keys[1], (size,), dtype))

    @property
    def frequencies(self) -> Float[Array, " size"]:
        """$f_i$."""
        return self._frequencies.value

    @property
    def phases(self) -> Float[Array, " size"]:
        """$\\phi_i$."""
        return self._phases.value

    @property
    def size(self) -> int:
        """Number of features."""
        return self._frequencies.bits.shape[0]

    def __call__(self, u: Float[Array, ""]) -> Float[Array, " size"]:
        return math.sqrt(2) * jnp.cos(self.frequencies * u + self.phases)


def _default(dtype):
    return jnp.zeros(()).dtype if dtype is None else dtype


def forced_normalisation(model: PyTree) -> PyTree:
    """The model with the weights of all its `MPLinear` and `MPConv` normalized: what
    `training.GradientStep` takes as `after_update`.

    The function that the model computes stays what it is; without this, weights grow with every
    step, since gradients are orthogonal to them, and steps shrink.

    **Arguments:**

    - `model`: any pytree.
    """
    is_layer = lambda node: isinstance(node, MPLinear | MPConv)

    def kept(node):
        if not is_layer(node):
            return node
        axes = tuple(range(1, node.weight.ndim))
        return eqx.tree_at(lambda layer: layer.weight, node, normalize(node.weight, axes))

    return jax.tree.map(kept, model, is_leaf=is_layer)
