"""Gradients from function values: random directions on spheres, and smoothing over their balls."""

import abc
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..core import Scalar, checks, hoist, tree


def _each(draw: Callable, key: PRNGKeyArray, x: PyTree[Array], batch: int) -> PyTree[Array]:
    """Independent draws `(key, shape, dtype)` for all leaves, `batch` on a new leading axis."""
    leaves, treedef = jax.tree.flatten(x)
    keys = jax.random.split(key, len(leaves))
    drawn = [draw(k, (batch, *a.shape), a.dtype) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


def _rows(weights: Float[Array, " b"], x: PyTree[Array]) -> PyTree[Array]:
    """Each entry of the leading axis times its weight."""
    return jax.tree.map(
        lambda a: weights.astype(a.real.dtype).reshape(-1, *(1,) * (a.ndim - 1)) * a, x
    )


def _require_real(name: str, x: PyTree[Array]) -> None:
    for leaf in jax.tree.leaves(x):
        if jnp.iscomplexobj(leaf):
            raise TypeError(f"{name} has directions for real numbers only, got {leaf.dtype}")


def uniform_simplex(key: PRNGKeyArray, x: PyTree[Array], batch: int) -> PyTree[Array]:
    """Uniform points of the unit simplex, all entries nonnegative with sum one.

    **Arguments:**

    - `x`: a pytree that gives shapes and types; the sum is over all of its leaves.
    - `batch`: $b$, how many.

    **Returns:** a pytree like `x` with a leading axis of length $b$ on each leaf.

    **Raises:** `TypeError` for complex leaves.
    """
    _require_real("the simplex", x)
    drawn = _each(jax.random.exponential, key, x, batch)
    return _rows(1 / jax.vmap(lambda e: tree.sum_leaves(jax.tree.map(jnp.sum, e)))(drawn), drawn)


class AbstractSphere(eqx.Module):
    """The boundary of a ball that functions are smoothed over.

    With $f_g(x) = \\mathbb E f(x + g u)$ for $u$ uniform in the ball,
    $\\nabla f_g(x) = \\mathbb E \\frac{n}{g} f(x + g e)\\, w(e)$ for $e$ uniform on the sphere, by
    the divergence theorem: $w(e)$ is along the outer normal.
    """

    @abc.abstractmethod
    def dimension(self, x: PyTree[Array]) -> int:
        """$n$, that of the space of the ball, for points like `x`."""

    @abc.abstractmethod
    def draw(
        self, key: PRNGKeyArray, x: PyTree[Array], batch: int
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """Directions $e$ and their normals $w(e)$, pytrees like `x` with a leading axis."""

    def ball(self, key: PRNGKeyArray, x: PyTree[Array], batch: int) -> PyTree[Array]:
        """Points $u$ uniform in the ball, a pytree like `x` with a leading axis."""
        along, out = jax.random.split(key)
        directions, _ = self.draw(along, x, batch)
        uniform = jax.random.uniform(out, (batch,), tree.real_dtype(x))
        return _rows(uniform ** (1 / self.dimension(x)), directions)


class L2Sphere(AbstractSphere):
    """Euclidean length one, $w(e) = e$; over complex leaves a pair of numbers an entry."""

    def dimension(self, x):
        return sum(a.size * (1 + jnp.iscomplexobj(a)) for a in jax.tree.leaves(x))

    def draw(self, key, x, batch):
        def normal(key, shape, dtype):
            scale = 2**0.5 if jnp.issubdtype(dtype, jnp.complexfloating) else 1  # of both parts
            return scale * jax.random.normal(key, shape, dtype)

        # Independent entries are normalized together, after they are drawn.
        drawn = _each(normal, key, x, batch)
        directions = _rows(1 / jax.vmap(tree.norm)(drawn), drawn)
        return directions, directions


class L1Sphere(AbstractSphere):
    """Sum of magnitudes one, $w(e) = \\mathrm{sign}(e)$: its estimates have entries of one size.

    **Reference:** Akhavan, Chzhen, Pontil, Tsybakov, A Gradient Estimator via L1-Randomization for
    Online Zero-Order Optimization with Two Point Feedback, 2022, arXiv:2205.13910.
    """

    def dimension(self, x):
        return tree.size(x)

    def draw(self, key, x, batch):
        _require_real("L1Sphere", x)
        drawn = _each(jax.random.laplace, key, x, batch)
        total = lambda e: tree.sum_leaves(jax.tree.map(lambda a: jnp.sum(jnp.abs(a)), e))
        directions = _rows(1 / jax.vmap(total)(drawn), drawn)
        return directions, jax.tree.map(jnp.sign, directions)


class TangentSphere(AbstractSphere):
    """Euclidean length one and sum zero, $w(e) = e$: directions within the plane of a simplex.

    Functions are then asked where the entries' sum is that of $x$, and the estimate is that of the
    gradient's part along this plane.

    **Raises:** `ValueError` for a single entry, which has no such direction; `TypeError` for
    complex leaves.
    """

    def dimension(self, x):
        return tree.size(x) - 1

    def draw(self, key, x, batch):
        _require_real("TangentSphere", x)
        if tree.size(x) < 2:
            raise ValueError("a single entry has no direction of sum zero")
        drawn = _each(jax.random.normal, key, x, batch)

        def one(e):
            mean = tree.sum_leaves(jax.tree.map(jnp.sum, e)) / tree.size(e)
            e = jax.tree.map(lambda a: a - mean.astype(a.dtype), e)
            return tree.scale(e, 1 / tree.norm(e))

        directions = jax.vmap(one)(drawn)
        return directions, directions


class SphereSmoothing(eqx.Module):
    """A function averaged over a ball around each point, and its gradient from values alone:

    $$f_g(x) = \\mathbb E f(x + g u), \\qquad
      G(x) = \\frac1b \\sum_{i=1}^b \\frac{n}{2g} \\bigl(f(x + g e_i) - f(x - g e_i)\\bigr) w(e_i),
      \\qquad \\mathbb E\\, G(x) = \\nabla f_g(x) .$$

    For a convex $f$ with Lipschitz constant $M_2$ in the Euclidean norm, on the `L2Sphere` in $d$
    unknowns: $f \\le f_g \\le f + g M_2$; $\\nabla f_g$ has the Lipschitz constant
    $\\sqrt d M_2 / g$; and $\\mathbb E |G|^2 \\le \\sqrt2\\, d M_2^2$ for $b = 1$, plus
    $d^2 \\Delta^2 / g^2$ where values are off by up to $\\Delta$.

    The directions are asked in one `vmap`, which needs the memory of $b$ points. All points are
    within $g$ of $x$ and may be outside of a set that $x$ is in: $f$ must be defined there, or the
    set be shrunk. In single precision differences cancel: choose $g \\ge 10^{-3} |x|$.

    **Arguments:**

    - `radius`: $g > 0$.
    - `batch`: $b$, directions of an estimate; static.
    - `central`: two values a direction, as above; or one, $\\frac{n}{g} f(x + g e) w(e)$, whose
      variance grows like $1 / g^2$, for functions that cannot be asked twice alike.
    - `sphere`: `L2Sphere()`, `L1Sphere()` or `TangentSphere()`.

    **Raises:** `ValueError` unless `radius` is positive and `batch` at least 1.

    **Reference:** Gasnikov, Novitskii, Novitskii, Abdukhakimov, Kamzolov, Beznosikov, Takáč,
    Dvurechensky, Gu, The Power of First-Order Smooth Optimization for Black-Box Non-Smooth
    Problems, 2022, arXiv:2201.12289. Shamir, An Optimal Algorithm for Bandit and Zero-Order Convex
    Optimization with Two-Point Feedback, 2017, arXiv:1507.08752.
    """

    radius: Scalar = eqx.field(converter=checks.scalar)
    batch: int = eqx.field(static=True, default=1)
    central: bool = eqx.field(static=True, default=True)
    sphere: AbstractSphere = eqx.field(default_factory=L2Sphere)

    def __check_init__(self):
        checks.positive("radius", self.radius)
        checks.count("batch", self.batch)
        if not isinstance(self.central, bool):
            raise TypeError(f"central must be True or False, got {self.central!r}")
        checks.instance("sphere", self.sphere, AbstractSphere, "L2Sphere()")

    def smoothness(self, lipschitz: Any, x: PyTree[Array]) -> Float[Array, ""]:
        """$\\sqrt d M_2 / g$, the Lipschitz constant of $\\nabla f_g$ at points like `x`."""
        dtype = tree.real_dtype(x)
        root = jnp.sqrt(jnp.asarray(self.sphere.dimension(x), dtype))
        return root * jnp.asarray(lipschitz, dtype) / jnp.asarray(self.radius, dtype)

    def value(
        self, fun: Callable[..., Array], x: PyTree[Array], key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """The mean of $f(x + g u)$ over `batch` points of the ball, an estimate of $f_g(x)$."""
        points = self.sphere.ball(key, x, self.batch)
        return jnp.mean(jax.vmap(lambda u: fun(tree.axpy(x, self.radius, u)))(points))

    def _weighted(self, fun, x, key, samples):
        """The normals, and the factor of each."""
        directions, normals = self.sphere.draw(key, x, self.batch)

        def at(sign):
            point = lambda e: tree.axpy(x, sign * self.radius, e)
            if samples is None:
                return jax.vmap(lambda e: fun(point(e)))(directions)
            return jax.vmap(lambda e, sample: fun(point(e), sample))(directions, samples)

        values = 0.5 * (at(1) - at(-1)) if self.central else at(1)
        n = self.sphere.dimension(x)
        return normals, values * (n / jnp.asarray(self.radius, values.dtype))

    def estimates(
        self,
        fun: Callable[..., Array],
        x: PyTree[Array],
        key: PRNGKeyArray,
        samples: PyTree[Array] = None,
    ) -> PyTree[Array]:
        """The estimate of each direction, a pytree like `x` with a leading axis of length $b$."""
        normals, weights = self._weighted(fun, x, key, samples)
        return _rows(weights, normals)

    def gradient(
        self,
        fun: Callable[..., Array],
        x: PyTree[Array],
        key: PRNGKeyArray,
        samples: PyTree[Array] = None,
    ) -> PyTree[Array]:
        """$G(x)$. `fun` is only called, never differentiated.

        **Arguments:**

        - `fun`: `x -> scalar`, or `(x, sample) -> scalar`.
        - `x`: the point, a pytree of arrays.
        - `key`: for the directions.
        - `samples`: one for each direction, on a leading axis of length $b$: both values of a
          direction are those of one sample. `None` if `fun` takes none.

        **Returns:** a pytree like `x`.
        """
        normals, weights = self._weighted(fun, x, key, samples)
        mean = lambda w: jnp.tensordot(weights.astype(w.dtype), w, axes=1) / self.batch
        return jax.tree.map(mean, normals)

    def function(self, fun: Callable[..., Array], key: PRNGKeyArray) -> "SmoothedFunction":
        """$f_g$ as a function that any solver takes; see `SmoothedFunction`."""
        return SmoothedFunction(fun, self, key)


class SmoothedFunction(eqx.Module):
    """$f_g$, whose derivative is the estimate $G$: for solvers that ask for gradients.

    Directions are those of one key at each point, so that it is a function: a solver sees the same
    numbers again. Value and derivative are estimates of $f_g$ and $\\nabla f_g$ from other points,
    and agree only as `batch` grows; so give step sizes, and do not search for them. First
    derivatives in $x$ never differentiate $f$; those in arrays that $f$ holds, and second ones, do.
    Second derivatives of an estimate are not symmetric, which the implicit derivative of a `Smooth`
    problem's solution takes them for: give a solution its derivative by `attach` of the problem
    that was not smoothed.

    **Arguments:**

    - `fun`: $f$, `x -> scalar`.
    - `smoothing`: radius, directions and their number.
    - `key`: for the directions.

    **Reference:** Gasnikov, Novitskii, Novitskii, Abdukhakimov, Kamzolov, Beznosikov, Takáč,
    Dvurechensky, Gu, The Power of First-Order Smooth Optimization for Black-Box Non-Smooth
    Problems, 2022, arXiv:2201.12289.
    """

    fun: Callable[[PyTree[Array]], Float[Array, ""]]
    smoothing: SphereSmoothing
    key: PRNGKeyArray

    def __call__(self, x: PyTree[Array]) -> Float[Array, ""]:
        arrays, static = eqx.partition(hoist(self), eqx.is_array)
        moving, fixed = eqx.partition(arrays, eqx.is_inexact_array)
        return _smoothed(static, x, moving, fixed)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _smoothed(static, x, moving, fixed):
    of = eqx.combine(moving, fixed, static)
    return of.smoothing.value(of.fun, x, jax.random.fold_in(of.key, 0))


@functools.partial(_smoothed.defjvp, symbolic_zeros=True)
def _smoothed_jvp(static, primals, tangents):
    x, moving, fixed = primals
    is_zero = lambda leaf: isinstance(leaf, jax.custom_derivatives.SymbolicZero)
    known = lambda t: jax.tree.map(lambda a: None if is_zero(a) else a, t, is_leaf=is_zero)
    x_dot, of_dot = known(tangents[0]), known(tangents[1])
    value, moved = _smoothed(static, x, moving, fixed), None
    if jax.tree.leaves(of_dot):
        is_none = lambda leaf: leaf is None
        pick = lambda dot, leaf: None if dot is None else leaf
        part = jax.tree.map(pick, of_dot, moving, is_leaf=is_none)

        def of_arrays(part):
            of = eqx.combine(part, moving, fixed, static)
            return of.smoothing.value(of.fun, x, jax.random.fold_in(of.key, 0))

        _, moved = jax.jvp(of_arrays, (part,), (of_dot,))
    if jax.tree.leaves(x_dot):
        of = eqx.combine(moving, fixed, static)
        gradient = of.smoothing.gradient(of.fun, x, jax.random.fold_in(of.key, 1))
        zeros = jax.tree.map(jnp.zeros_like, x)
        along = tree.vdot(gradient, eqx.combine(x_dot, zeros)).astype(value.dtype)
        moved = along if moved is None else moved + along
    return value, jnp.zeros_like(value) if moved is None else moved
