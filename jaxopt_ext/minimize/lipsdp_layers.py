"""Layers of networks with what is known of their increments: quadratic constraints."""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core import FixedPoint, Scalar, checks, scalar_field, solve
from ..fixed_point import Anderson


class AbstractActivation(eqx.Module):
    """A nonlinearity $\\phi$ between spaces of one size, and constraints that hold for all pairs
    of inputs,

    $$\\begin{pmatrix} \\Delta x \\\\ \\Delta \\phi \\end{pmatrix}^\\top X(\\lambda)
      \\begin{pmatrix} \\Delta x \\\\ \\Delta \\phi \\end{pmatrix} \\ge 0,$$

    linear in their multipliers $\\lambda$, some of which must not be negative.
    """

    @abc.abstractmethod
    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """$\\phi(x)$."""

    @property
    @abc.abstractmethod
    def slope(self) -> Float[Array, ""] | float:
        """Its Lipschitz constant in the Euclidean norm."""

    @property
    def max_slope(self) -> Float[Array, ""] | float:
        """Its Lipschitz constant in the maximum norm."""
        return self.slope

    @abc.abstractmethod
    def signs(self, width: int) -> Bool[Array, " count"]:
        """Which multipliers must not be negative; how many there are is its length.

        **Raises:** `ValueError` if features do not come in such a number.
        """

    @abc.abstractmethod
    def matrix(self, multipliers: Float[Array, " count"], width: int) -> Float[Array, "2n 2n"]:
        """$X(\\lambda)$, in the precision of the multipliers."""

    @abc.abstractmethod
    def ball(self, level: Array, width: int) -> Float[Array, " count"]:
        """Multipliers whose constraint is below that of the ball,
        $l (b^2 |\\Delta x|^2 - |\\Delta \\phi|^2)$ with $b$ the slope and $l$ this level."""

    def passed(self, width: int) -> Float[Array, "r n"]:
        """Independent rows $C$ of what passes unchanged: $C \\Delta \\phi = C \\Delta x$ for all
        pairs. Where there are any, multipliers of any sign must act on $C \\Delta x - C \\Delta
        \\phi$ alone, so that they are nothing where that vanishes."""
        return jnp.zeros((0, width))


class SlopeRestricted(AbstractActivation):
    """An activation of each feature with slopes in $[\\alpha, \\beta]$,

    $$X = \\begin{pmatrix} -2\\alpha\\beta \\Lambda & (\\alpha + \\beta) \\Lambda \\\\
      (\\alpha + \\beta) \\Lambda & -2 \\Lambda \\end{pmatrix}$$

    with a diagonal $\\Lambda \\ge 0$, a multiplier for each feature.

    **Arguments:**

    - `alpha`, `beta`: the slopes, $\\alpha < \\beta$. ReLU and tanh have 0 and 1, the sigmoid 0
      and 1/4.
    - `fun`: the activation itself, entrywise. Bounds do not look at it.

    **Raises:** `ValueError` unless $\\alpha < \\beta$.

    **Reference:** Fazlyab et al., Efficient and Accurate Estimation of Lipschitz Constants for Deep
    Neural Networks, 2019, arXiv:1906.04893; its constraints that couple features do not hold.
    """

    alpha: Scalar = scalar_field(0.0)
    beta: Scalar = scalar_field(1.0)
    fun: Callable[[Array], Array] = eqx.field(static=True, default=jax.nn.relu)

    def __check_init__(self):
        checks.finite("alpha", self.alpha)
        checks.finite("beta", self.beta)
        if not checks.is_traced((self.alpha, self.beta)):
            checks.positive("beta - alpha", self.beta - self.alpha)

    def __call__(self, x):
        return self.fun(x)

    @property
    def slope(self):
        return jnp.maximum(jnp.abs(self.alpha), jnp.abs(self.beta))

    def signs(self, width):
        return jnp.ones(width, bool)

    def matrix(self, multipliers, width):
        alpha, beta = (a.astype(multipliers.dtype) for a in (self.alpha, self.beta))
        cross = jnp.diag((alpha + beta) * multipliers)
        first = jnp.diag(-2 * alpha * beta * multipliers)
        return jnp.block([[first, cross], [cross, jnp.diag(-2 * multipliers)]])

    def ball(self, level, width):
        share = (self.slope / (self.beta - self.alpha)).astype(level.dtype)
        return jnp.full(width, share * level)


class GroupSort(AbstractActivation):
    """Features sorted within each group of `size` neighbours, the largest first. What is left in
    the end is a smaller group.

    Neither lengths of increments grow nor do their sums change. So with $T = \\mathrm{diag}
    (\\lambda) \\otimes I$, $P = \\mathrm{diag}(\\nu) \\otimes 11^\\top$, $S = \\mathrm{diag}
    (\\tau) \\otimes 11^\\top$, three numbers for each group and $\\lambda \\ge 0$,

    $$X = \\begin{pmatrix} T - 2S & P + S \\\\ P + S & -T - 2P \\end{pmatrix}.$$

    (A term $\\gamma \\otimes 11^\\top$ of $T$ in the paper is a combination of the other two.)

    **Arguments:**

    - `size`: of the groups, at least 1; `MaxMin()` has 2.

    **Reference:** Pauli et al., Novel Quadratic Constraints for Extending LipSDP beyond
    Slope-Restricted Activations, ICLR 2024, arXiv:2401.14033.
    """

    size: int = eqx.field(static=True, default=2)

    def __check_init__(self):
        checks.count("size", self.size)

    def __call__(self, x):
        missing = -x.size % self.size
        padded = jnp.pad(x, (0, missing), constant_values=-jnp.inf).reshape(-1, self.size)
        return -jnp.sort(-padded, axis=1).reshape(-1)[: x.size]

    @property
    def slope(self):
        return 1.0

    def signs(self, width):
        return _first_of_three(_groups(width, self.size)[1])

    def matrix(self, multipliers, width):
        ids, _ = _groups(width, self.size)
        same = ids[:, None] == ids
        return _group_matrix(multipliers, ids, same.astype(multipliers.dtype))

    def ball(self, level, width):
        return _lengths_only(level, _groups(width, self.size)[1])

    def passed(self, width):
        ids, count = _groups(width, self.size)
        return (jnp.arange(count)[:, None] == ids).astype(jnp.result_type(float))


def MaxMin() -> GroupSort:
    """`GroupSort(2)`: the larger, then the smaller, of each pair of features.

    **Reference:** Anil, Lucas, Grosse, Sorting out Lipschitz Function Approximation, 2019,
    arXiv:1811.05381.
    """
    return GroupSort(2)


class Householder(AbstractActivation):
    """$\\phi(x) = x$ if $v^\\top x > 0$, else $(I - 2vv^\\top) x$, on each group of neighbouring
    features. The constraint is that of `GroupSort` with $I - vv^\\top$ in place of $11^\\top$:
    that part of an increment passes unchanged.

    **Arguments:**

    - `v`: a direction of shape `(size,)`, the same for all groups; it is normalized.

    **Raises:** `ValueError` for a `v` that is zero or no vector, and where the width is no multiple
    of its size.

    **Reference:** Pauli et al., Novel Quadratic Constraints for Extending LipSDP beyond
    Slope-Restricted Activations, ICLR 2024, arXiv:2401.14033.
    """

    v: Float[Array, " size"] = eqx.field(converter=jnp.asarray)

    def __check_init__(self):
        if self.v.ndim != 1 or not self.v.size:
            raise ValueError(f"v must be a vector, got shape {self.v.shape}")
        if not checks.is_traced(self.v):
            checks.positive("the length of v", jnp.linalg.norm(self.v))

    @property
    def _unit(self):
        return self.v / jnp.linalg.norm(self.v)

    def __call__(self, x):
        x = x.reshape(-1, self.v.size)
        along = x @ self._unit
        return (x - 2 * jnp.minimum(along, 0)[:, None] * self._unit).reshape(-1)

    @property
    def slope(self):
        return 1.0

    @property
    def max_slope(self):
        size = jnp.sum(jnp.abs(jnp.eye(self.v.size) - 2 * jnp.outer(self._unit, self._unit)), 1)
        return jnp.maximum(1, jnp.max(size))

    def _count(self, width):
        if width % self.v.size:
            raise ValueError(f"{width} features do not come in groups of {self.v.size}")
        return width // self.v.size

    def signs(self, width):
        return _first_of_three(self._count(width))

    def matrix(self, multipliers, width):
        unit = self._unit.astype(multipliers.dtype)
        kept = jnp.eye(self.v.size, dtype=unit.dtype) - jnp.outer(unit, unit)
        kept = jnp.kron(jnp.eye(self._count(width), dtype=unit.dtype), kept)
        return _group_matrix(multipliers, jnp.arange(width) // self.v.size, kept)

    def ball(self, level, width):
        return _lengths_only(level, self._count(width))

    def passed(self, width):
        # The rows behind the first of a reflection that maps the first unit vector to v.
        v = self._unit
        normal = v.at[0].add(jnp.where(v[0] < 0, -1, 1))
        outer = jnp.outer(normal, normal) / jnp.vdot(normal, normal)
        rows = (jnp.eye(v.size, dtype=v.dtype) - 2 * outer)[1:]
        return jnp.kron(jnp.eye(self._count(width), dtype=v.dtype), rows)


def _groups(width, size):
    return jnp.arange(width) // size, -(-width // size)


def _first_of_three(count):
    return jnp.concatenate([jnp.ones(count, bool), jnp.zeros(2 * count, bool)])


def _lengths_only(level, count):
    return jnp.concatenate([jnp.full(count, level), jnp.zeros(2 * count, level.dtype)])


def _group_matrix(multipliers, ids, kept):
    lengths, nu, tau = (part[ids] for part in jnp.split(multipliers, 3))
    T, P, S = jnp.diag(lengths), nu[:, None] * kept, tau[:, None] * kept
    return jnp.block([[T - 2 * S, P + S], [P + S, -T - 2 * P]])


class AbstractLayer(eqx.Module):
    """A layer as a linear map of what came before and of what its activation puts out."""

    if TYPE_CHECKING:  # type checkers take equinox's abstract variables for fields
        activation: ClassVar[AbstractActivation | None]
    else:
        activation: eqx.AbstractVar[AbstractActivation | None]

    @abc.abstractmethod
    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """The layer itself."""

    @abc.abstractmethod
    def sizes(self) -> tuple[int, int, int]:
        """Of input, activation and output.

        **Raises:** `ValueError` for matrices that do not fit each other.
        """

    @abc.abstractmethod
    def input(self, v: Float[Array, "n N"], w: Float[Array, "k N"]) -> Float[Array, "k N"]:
        """What the activation sees when the layer gets `v` and its activation puts out `w`."""

    @abc.abstractmethod
    def output(self, v: Float[Array, "n N"], w: Float[Array, "k N"]) -> Float[Array, "m N"]:
        """What comes out then."""

    @abc.abstractmethod
    def growth(self, norm: Callable[[Array], Array], slope: Any) -> tuple[Array, Array, Array]:
        """Bounds on the increments of activation and output, for increments of the input of
        length one, and the part of the latter that does not come through the activation, NaN where
        the activation sees itself."""


def _matrix(value):
    array = jnp.asarray(value)
    return array.astype(jnp.result_type(float)) if array.dtype.kind in "iub" else array


def _require_matrices(layer, **shapes):
    """Raise unless matrices have these shapes, a size by a letter."""
    sizes: dict[str, int] = {}
    for name, letters in shapes.items():
        shape = getattr(layer, name).shape
        known = tuple(sizes.get(a, b) for a, b in zip(letters, shape, strict=False))
        if len(shape) != len(letters) or known != shape:
            wanted = tuple(sizes.get(a, a) for a in letters)
            raise ValueError(f"{name} of {type(layer).__name__} must have shape {wanted}: {shape}")
        sizes.update(zip(letters, shape, strict=True))


class Affine(AbstractLayer):
    """$Wx + b$.

    **Arguments:**

    - `weight`: $W$, shape `(m, n)`.
    - `bias`: $b$, shape `(m,)`, or `None`.
    """

    weight: Float[Array, "m n"] = eqx.field(converter=_matrix)
    bias: Float[Array, " m"] | None = None
    activation: None = None

    def __call__(self, x):
        return self.weight @ x + (0 if self.bias is None else self.bias)

    def sizes(self):
        _require_matrices(self, weight="mn")
        return self.weight.shape[1], 0, self.weight.shape[0]

    def input(self, v, w):
        return w

    def output(self, v, w):
        return self.weight @ v

    def growth(self, norm, slope):
        size = norm(self.weight)
        return jnp.ones_like(size), size, size


class Residual(AbstractLayer):
    """$Hx + G \\phi(Wx + b)$.

    **Arguments:**

    - `H`, `G`, `W`: shapes `(m, n)`, `(m, k)`, `(k, n)`.
    - `activation`: $\\phi$.
    - `bias`: $b$, shape `(k,)`, or `None`.
    """

    H: Float[Array, "m n"] = eqx.field(converter=_matrix)
    G: Float[Array, "m k"] = eqx.field(converter=_matrix)
    W: Float[Array, "k n"] = eqx.field(converter=_matrix)
    activation: AbstractActivation
    bias: Float[Array, " k"] | None = None

    def __call__(self, x):
        inner = self.W @ x + (0 if self.bias is None else self.bias)
        return self.H @ x + self.G @ self.activation(inner)

    def sizes(self):
        _require_matrices(self, H="mn", G="mk", W="kn")
        return self.H.shape[1], self.W.shape[0], self.H.shape[0]

    def input(self, v, w):
        return self.W @ v

    def output(self, v, w):
        return self.H @ v + self.G @ w

    def growth(self, norm, slope):
        inner, past = slope * norm(self.W), norm(self.H)
        return inner, past + norm(self.G) * inner, past


class Implicit(AbstractLayer):
    """$Cz$ where $z = \\phi(Wz + Ux + b)$.

    A bound exists only where the constraints prove that there is one such $z$. To evaluate the
    layer, $z$ is found by Anderson acceleration.

    **Arguments:**

    - `W`, `U`, `C`: shapes `(k, k)`, `(k, n)`, `(m, k)`.
    - `activation`: $\\phi$.
    - `bias`: $b$, shape `(k,)`, or `None`.
    """

    W: Float[Array, "k k"] = eqx.field(converter=_matrix)
    U: Float[Array, "k n"] = eqx.field(converter=_matrix)
    C: Float[Array, "m k"] = eqx.field(converter=_matrix)
    activation: AbstractActivation
    bias: Float[Array, " k"] | None = None

    def __call__(self, x):
        drive = self.U @ x + (0 if self.bias is None else self.bias)
        problem = FixedPoint(lambda z: self.activation(self.W @ z + drive))
        tol = 10 * float(jnp.finfo(drive.dtype).eps) ** 0.75
        return self.C @ solve(problem, Anderson(tol=tol), jnp.zeros_like(drive)).value

    def sizes(self):
        _require_matrices(self, W="kk", U="kn", C="mk")
        return self.U.shape[1], self.U.shape[0], self.C.shape[0]

    def input(self, v, w):
        return self.W @ w + self.U @ v

    def output(self, v, w):
        return self.C @ w

    def growth(self, norm, slope):
        room = 1 - slope * norm(self.W)
        inner = jnp.where(room > 0, slope * norm(self.U) / jnp.where(room > 0, room, 1), jnp.inf)
        return inner, norm(self.C) * inner, jnp.full_like(inner, jnp.nan)
