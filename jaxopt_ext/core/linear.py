"""The linear solver behind implicit derivatives."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from . import checks, loops, ring, tree
from .dense import pseudo_solve, solve_checked

LinearFunction = Callable[[PyTree[Array]], PyTree[Array]]
Shortcut = Callable[[PyTree[Array], Array, int], tuple[PyTree[Array], Bool[Array, ""]]]

_ACTIVE = 64  # so many unknowns are cheaper to factorize than a few products with hundreds


class LeastSquaresFallback(lx.AbstractLinearSolver[lx.AbstractLinearOperator]):
    """Solve a square system fast if it is regular, and in the least-squares sense if it is not.

    Small systems are factorized by LU. Large ones go matrix-free through GMRES, which looks at its
    residual after every product: where all but $k$ unknowns are decoupled from each other it needs
    about $k$ of them. The answer is kept if its true residual is small and, for LU, if the pivots
    show no rank loss. Otherwise the minimum-norm least-squares solution $A^{+} b$ is found, by
    singular values for small systems on CPUs and else by LSQR. So a large singular system that has
    solutions gets one of them, not always the smallest. A method that is not needed takes no step,
    also under `vmap`.

    **Arguments:**

    - `rtol`: relative residual that counts as solved; `None` is `1e-5` in single and `1e-9` in
      double precision.
    - `dense_size`: systems of at most this size are factorized.
    - `max_steps`: limit on the products of each method; `None` is twice the size for GMRES, which
      gives up when it stagnates, and ten times for LSQR.
    - `strict`: report an LSQR solve that missed its tolerance as failed; else its last iterate is
      taken. What is not finite always counts as failed.

    **Reference:** Saad, Schultz, GMRES, 1986, in the simpler form of Jiránek, Rozložník, Adaptive
    Version of Simpler GMRES, 2010. Paige, Saunders, LSQR, 1982.
    """

    rtol: float | None = None
    dense_size: int = 256
    max_steps: int | None = None
    strict: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if self.rtol is not None:
            checks.positive("rtol", self.rtol)
        checks.count("dense_size", self.dense_size, minimum=0)

    def solve(
        self, product: LinearFunction, vector: PyTree[Array], shortcut: Shortcut | None = None
    ) -> tuple[PyTree, Bool[Array, ""]]:
        """$A^{-1} b$ or $A^+ b$ from the function $x \\mapsto Ax$, and whether it was reached.

        **Arguments:**

        - `product`, `vector`: $x \\mapsto Ax$ and $b$.
        - `shortcut`: another way to $A^{-1} b$, tried first on large systems: from $b$, a relative
          tolerance and a number of unknowns that may be factorized, to $x$ and whether it was
          found.
        """
        if any(map(jnp.iscomplexobj, jax.tree.leaves(vector))):
            real = lambda x: tree.real_view(product(tree.complex_view(x, vector)))
            x, solved = self.solve(real, tree.real_view(vector))
            return tree.complex_view(x, vector), solved
        if self.factorizes(vector):
            flat, unravel = ravel_pytree(vector)
            x, solved = self._solve(_matrix(product, vector, flat, unravel), flat)
            return unravel(x), solved
        if shortcut is None or self.dense_size == 0:
            return self._solve(product, vector)
        limit = min(self.dense_size, max(_ACTIVE, min(tree.size(vector) // 16, 2 * _ACTIVE)))
        first = shortcut(vector, self._tolerance(vector), limit)
        longer = lambda b: self._solve(product, b)
        return loops.if_due(~first[1], longer, vector, first)

    def factorizes(self, vector: PyTree[Array]) -> bool:
        """Whether the matrix of a system with this right-hand side is made, so that no shortcut is
        asked for."""
        spread = any(map(tree.is_spread, jax.tree.leaves(vector)))
        return tree.size(vector) <= self.dense_size and not spread

    def _tolerance(self, vector):
        dtype = tree.real_dtype(vector)
        return jnp.asarray(self.rtol or (1e-9 if dtype == jnp.float64 else 1e-5), dtype)

    def _solve(self, product, vector):
        """`product` is a function, or a matrix if the vector is a flat one."""
        tolerance = self._tolerance(vector)
        norm = tree.norm(vector)
        scale = jnp.where(norm > 0, norm, 1)
        unit = tree.scale(vector, 1 / scale)
        limit = self.max_steps or 10 * tree.size(vector)
        if callable(product):
            shorter = self.max_steps or 2 * tree.size(vector)
            first = _gmres(product, unit, tolerance, shorter)
            second = lambda b: _lsqr(product, b, tolerance, limit)
            x, solved = loops.if_due(~first.solved, second, unit, first)
        else:
            first = _Answer(*solve_checked(product, unit, tolerance))
            # The matrix is an operand too: what depends on nothing in the loop, its singular
            # values, would be found before it is known whether they are asked for.
            second = lambda s: _pseudo_solve(s[0], s[1], tolerance, limit)
            x, solved = loops.if_due(~first.solved, second, (product, unit), first)
        finite = tree.all_finite(x)
        return tree.scale(x, scale), solved & finite if self.strict else finite

    def init(self, operator, options):
        del options
        if operator.in_size() != operator.out_size():
            raise ValueError("the residual must be shaped like x")
        return operator

    def compute(self, state, vector, options):
        del options
        x, solved = self.solve(state.mv, vector)
        result = lx.RESULTS.where(solved, lx.RESULTS.successful, lx.RESULTS.singular)
        return x, result, {}

    def transpose(self, state, options):
        return state.T, options

    def conj(self, state, options):
        return lx.conj(state), options

    def assume_full_rank(self):
        return True


class VaryingOperator(lx.AbstractLinearOperator):
    """A square linear function in `shard_map`, for `lineax` solvers.

    `lineax.FunctionLinearOperator` keeps shapes and types of what goes in, and so calls the
    function with arrays that vary over no axis of the mesh.

    **Arguments:**

    - `function`: linear, real.
    - `like`: arrays like those that go in and come out.
    - `tags`: what is known of it, as of all `lineax` operators.
    """

    function: LinearFunction
    like: PyTree[Array]
    tags: frozenset[object] = eqx.field(static=True)

    def mv(self, vector):
        return self.function(vector)

    def as_matrix(self):
        flat, unravel = ravel_pytree(self.like)
        return _matrix(self.function, self.like, flat, unravel)

    def transpose(self):
        if lx.is_symmetric(self):
            return self
        transposed = jax.linear_transpose(self.function, self.like)
        return VaryingOperator(lambda v: transposed(v)[0], self.like, lx.transpose_tags(self.tags))

    def in_structure(self):
        return jax.eval_shape(lambda: self.like)

    def out_structure(self):
        return self.in_structure()


for _same in (lx.linearise, lx.materialise, lx.conj):
    _same.register(VaryingOperator)(lambda operator: operator)
for _is, _tags in {
    lx.is_symmetric: (
        lx.symmetric_tag,
        lx.diagonal_tag,
        lx.positive_semidefinite_tag,
        lx.negative_semidefinite_tag,
    ),
    lx.is_diagonal: (lx.diagonal_tag,),
    lx.is_tridiagonal: (lx.tridiagonal_tag, lx.diagonal_tag),
    lx.is_lower_triangular: (lx.lower_triangular_tag,),
    lx.is_upper_triangular: (lx.upper_triangular_tag,),
    lx.is_positive_semidefinite: (lx.positive_semidefinite_tag,),
    lx.is_negative_semidefinite: (lx.negative_semidefinite_tag,),
    lx.has_unit_diagonal: (lx.unit_diagonal_tag,),
}.items():
    _is.register(VaryingOperator)(
        lambda operator, tags=frozenset(_tags): not tags.isdisjoint(operator.tags)
    )


class _Answer(NamedTuple):
    x: PyTree[Array]
    solved: Bool[Array, ""]


def _gap(product, x, b):
    return jax.tree.map(jnp.subtract, b, tree.cast_like(product(x), b))


def _matrix(product, b, flat, unravel) -> Float[Array, "n n"]:
    column = lambda e: ravel_pytree(tree.cast_like(product(unravel(e)), b))[0]
    basis = loops.vary(jnp.eye(flat.size, dtype=flat.dtype), loops.varying_axes(flat))
    return jax.vmap(column, out_axes=1)(basis)


_WINDOW = 40
_PATIENCE = 20


class _Search(NamedTuple):
    x: PyTree[Array]
    gap: PyTree[Array]
    direction: PyTree[Array]
    directions: PyTree[Array]  # p_i, on a leading axis
    images: PyTree[Array]  # A p_i, orthonormal
    filled: Bool[Array, " m"]
    norm: Float[Array, ""]
    mark: Float[Array, ""]
    stretch: Float[Array, ""]  # the largest |A p| / |p| seen
    errors: Float[Array, " m"]  # |A p_i - image|, squared, as if roundings were independent
    drift: Float[Array, ""]  # the same of the gap
    steps: Array
    active: Bool[Array, ""]


def _orthogonalized(p, image, s: _Search, size, slot):
    """`image` less its part in the span of the images, `p` less the same of the directions, the
    coefficients, and what is left.

    Of a symmetric matrix only the last two images count, until rounding has brought back the
    others by the root of the precision; that is then seen (Simon).
    """
    window = s.filled.size
    along = jnp.where(s.filled, ring.products(s.images, image), 0)
    rows = [(slot - i) % window for i in range(1, 1 + min(2, window))]
    last = functools.reduce(jnp.logical_or, (jnp.arange(window) == row for row in rows))

    def against_all(image, p, near, along, left):
        del near, left
        image, left = reduced(image, along)
        # Where little has cancelled, a second pass would change nothing (Kahan, Parlett).
        keep = lambda image, along, left: (image, left, along)
        image, left, along = loops.cond(left < 0.5 * size, again, keep, image, along, left)
        return image, ring.minus(p, along, s.directions), along, left

    def again(image, along, left):
        del left
        more = jnp.where(s.filled, ring.products(s.images, image), 0)
        return *reduced(image, more), along + more

    def reduced(image, along):
        image = ring.minus(image, along, s.images)
        return image, tree.norm(image)

    def against_last(image, p, near, along, left):
        del image
        p = ring.minus_rows(p, along, s.directions, rows)
        return near, p, jnp.where(last, along, 0), left

    near = ring.minus_rows(image, along, s.images, rows)
    left = tree.norm(near)
    others = jnp.max(jnp.abs(jnp.where(last, 0, along)))
    few = (others <= jnp.sqrt(jnp.finfo(left.dtype).eps) * left) & (left > 0.05 * size)
    return loops.cond(few, against_last, against_all, image, p, near, along, left)


def _gmres(product, b, tolerance, limit) -> _Answer:
    """Minimize the residual over a growing Krylov space.

    Directions $p_i$ are kept with orthonormal images $A p_i$, the last `_WINDOW` of them, so that
    the residual is known after every product. The next direction is the residual while that
    falls, and the last image where it does not; the space is the same. The residual at the end is
    computed again only if roundings may have moved it.
    """
    window = min(_WINDOW, tree.size(b))
    norm = tree.norm(b)
    zero = jnp.asarray(0, jnp.int32)
    nothing = jax.tree.map(jnp.zeros_like, b)
    eps = jnp.finfo(norm.dtype).eps
    start = _Search(
        nothing,
        b,
        b,
        ring.empty(b, window),
        ring.empty(b, window),
        jnp.zeros(window, bool),
        norm,
        norm,
        jnp.zeros_like(norm),
        jnp.zeros(window, norm.dtype),
        jnp.zeros_like(norm),
        zero,
        norm > 0,
    )

    def reached(s):
        return s.norm + jnp.sqrt(s.drift) + eps * s.stretch * tree.norm(s.x) <= tolerance

    def unfinished(s):
        return s.active & (s.norm > 0.5 * tolerance) & (s.steps < limit) & ~reached(s)

    def step(s):
        p = tree.scale(s.direction, 1 / tree.norm(s.direction))
        image = tree.cast_like(product(p), b)
        size = tree.norm(image)
        slot, steps = s.steps % window, s.steps + 1
        image, p, along, left = _orthogonalized(p, image, s, size, slot)
        # The Krylov space is exhausted: what is left is rounding.
        fresh = left > 10 * eps * size
        inverse = jnp.where(fresh, 1 / jnp.where(fresh, left, 1), 0)
        image, p = tree.scale(image, inverse), tree.scale(p, inverse)
        length = tree.vdot(image, s.gap)
        gap = tree.axpy(s.gap, -length, image)
        norm = tree.norm(gap)
        falls = norm <= 0.9 * s.norm
        again = ~fresh & (norm <= 0.5 * s.mark)  # with what rounding has left of the residual
        due = again | (steps % _PATIENCE == 0)
        stuck = ~again & (~fresh | (due & (norm > 0.95 * s.mark)))
        stretch = jnp.maximum(s.stretch, size)
        error = jnp.square(inverse) * (jnp.square(eps * stretch) + jnp.vdot(along**2, s.errors))
        return _Search(
            tree.axpy(s.x, length, p),
            gap,
            tree.where(falls | again, gap, image),
            ring.store(s.directions, p, slot, after=p),
            ring.store(s.images, image, slot, after=image),
            ~again & (s.filled | (jnp.arange(window) == slot)),
            norm,
            jnp.where(due, norm, s.mark),
            stretch,
            s.errors.at[slot].set(error),
            s.drift + jnp.square(length) * error,
            steps,
            jnp.isfinite(norm) & ~stuck,
        )

    last = loops.while_loop(unfinished, step, start)
    x = last.x
    norm = loops.if_due(~reached(last), lambda x: tree.norm(_gap(product, x, b)), x, last.norm)
    # Rounding alone leaves this much, the least that any method can reach.
    rounding = 4 * eps * last.stretch * tree.norm(x)
    return _Answer(x, norm <= jnp.clip(rounding, tolerance, 100 * tolerance))


def _pseudo_solve(matrix, b, tolerance, limit) -> _Answer:
    """$A^{+} b$ by singular values on CPUs, where that compiles at once, and by LSQR elsewhere."""

    def dense(matrix, b):
        x = pseudo_solve(matrix, b[:, None])[0][:, 0]
        return _Answer(x, jnp.all(jnp.isfinite(x)))

    def iterative(matrix, b):
        return _lsqr(functools.partial(jnp.matmul, matrix), b, tolerance, limit)

    return jax.lax.platform_dependent(matrix, b, cpu=dense, default=iterative)


class _Bidiagonalization(NamedTuple):
    x: PyTree[Array]
    u: PyTree[Array]
    v: PyTree[Array]
    w: PyTree[Array]
    alpha: Float[Array, ""]
    rho: Float[Array, ""]
    phi: Float[Array, ""]
    norm: Float[Array, ""]  # of A, by Frobenius
    slope: Float[Array, ""]  # |A' r|
    steps: Array
    done: Bool[Array, ""]


def _lsqr(product, b, tolerance, limit) -> _Answer:
    """The least-squares solution of minimum norm, by Golub-Kahan bidiagonalization."""
    transposed = jax.linear_transpose(lambda x: tree.cast_like(product(x), b), b)
    adjoint = lambda y: transposed(y)[0]

    def normalized(a):
        norm = tree.norm(a)
        return tree.scale(a, 1 / jnp.where(norm > 0, norm, 1)), norm

    u, beta = normalized(b)
    v, alpha = normalized(adjoint(u))
    nothing = jax.tree.map(jnp.zeros_like, b)
    zero = jnp.asarray(0, jnp.int32)

    def small(phi, slope, norm):
        # The residual is phi; of an inconsistent system, A' r vanishes instead.
        return (phi <= tolerance) | (slope <= 0.1 * tolerance * norm * phi)

    slope = alpha * beta
    done = small(beta, slope, alpha)
    start = _Bidiagonalization(nothing, u, v, v, alpha, alpha, beta, alpha, slope, zero, done)

    def unfinished(s):
        return (s.alpha > 0) & ~s.done & (s.steps < limit) & jnp.isfinite(s.phi)

    def step(s):
        u, beta = normalized(tree.axpy(tree.cast_like(product(s.v), b), -s.alpha, s.u))
        v, alpha = normalized(tree.axpy(adjoint(u), -beta, s.v))
        rho = jnp.sqrt(s.rho**2 + beta**2)
        c, sine = s.rho / rho, beta / rho
        theta, rho_bar, phi = sine * alpha, -c * alpha, c * s.phi
        phi_bar = sine * s.phi
        x = tree.axpy(s.x, phi / rho, s.w)
        w = tree.axpy(v, -theta / rho, s.w)
        norm = jnp.sqrt(s.norm**2 + alpha**2 + beta**2)
        slope = phi_bar * alpha * jnp.abs(c)
        done = small(phi_bar, slope, norm)
        steps = s.steps + 1
        return _Bidiagonalization(x, u, v, w, alpha, rho_bar, phi_bar, norm, slope, steps, done)

    last = loops.while_loop(unfinished, step, start)
    number = jnp.isfinite(last.alpha) & jnp.isfinite(last.phi)  # a NaN ends the loop at once
    x = jax.tree.map(lambda a: jnp.where(number, a, jnp.nan), last.x)
    return _Answer(x, last.done | (last.alpha == 0))
