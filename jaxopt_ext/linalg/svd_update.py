"""Updates of a truncated singular value decomposition in time that depends on the update only."""

import abc
import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxopt_ext_kernels import CSR

from ..core import checks, loops
from .precision import highest
from .units import unit


class _Residual(NamedTuple):
    """Columns of $(I - V V^\\top) X$ as pairs: `b`, their entries on the rows touched, and `c`,
    for $b - V c$. The product of two is $b^\\top b' - c^\\top c'$."""

    b: Float[Array, "t s"]
    c: Float[Array, "k s"]

    def inner(self, other: "_Residual") -> Array:
        return self.b.T @ other.b - self.c.T @ other.c

    def times(self, matrix: Array) -> "_Residual":
        return _Residual(self.b @ matrix, self.c @ matrix)

    def over(self, size: Array) -> "_Residual":
        return _Residual(self.b / size, self.c / size)

    def minus(self, other: "_Residual") -> "_Residual":
        return _Residual(self.b - other.b, self.c - other.c)

    def store(self, at: Array, column: "_Residual") -> "_Residual":
        return _Residual(self.b.at[:, at].set(column.b[:, 0]), self.c.at[:, at].set(column.c[:, 0]))

    def column(self, at: Array) -> "_Residual":
        take = lambda a: jax.lax.dynamic_slice_in_dim(a, at, 1, axis=1)
        return _Residual(take(self.b), take(self.c))


def _length(column: _Residual, whole: Array) -> tuple[Array, Array]:
    """The length of a column, zero where it is rounding of what it came from, and its inverse."""
    square = column.inner(column)[0, 0]
    real = ~(square <= jnp.sqrt(jnp.finfo(square.dtype).eps) * whole)  # a NaN stays one
    length = jnp.where(real, jnp.sqrt(jnp.where(real, square, 1)), 0)
    return length, jnp.where(real, 1 / jnp.where(real, length, 1), 0)


class AbstractAugmentation(eqx.Module):
    """How the part of an update outside of the span of the factors gets a basis."""

    @abc.abstractmethod
    def __call__(self, z: _Residual) -> tuple[_Residual, Float[Array, "s l"]]:
        """Orthonormal $Q$, and $P$ with $Z \\approx Q P^\\top$."""


class GramSchmidt(AbstractAugmentation):
    """All of it, by the modified Gram-Schmidt process: the update is exact before it is truncated.

    A column of which less than $\\varepsilon^{1/4}$ is left outside of the span, 1.2e-4 in double
    and 1.9e-2 in single precision, counts as in it: squares of lengths are differences here, and
    what is left of such a one is rounding.

    **Reference:** Deng, Yang, Li, Chen, Jiang, Pu, Fast Updating Truncated SVD for Representation
    Learning with Sparse Matrices, 2024, arXiv:2401.09703.
    """

    def __call__(self, z):
        s = z.b.shape[1]
        units = unit(z.b, 0)
        z = z.over(units)
        whole = jnp.sum(z.b**2, axis=0)

        def step(i, carry):
            z, r = carry
            column = z.column(i)
            length, inverse = _length(column, whole[i])
            column = _Residual(column.b * inverse, column.c * inverse)
            along = jnp.where(jnp.arange(s) > i, column.inner(z)[0], 0)
            z = z.minus(_Residual(column.b * along, column.c * along)).store(i, column)
            return z, r.at[i].set(along.at[i].set(length))

        q, r = loops.fori_loop(0, s, step, (z, jnp.zeros((s, s), z.b.dtype)))
        return q, units.T * r.T


class Lanczos(AbstractAugmentation):
    """The space of some steps of the Golub-Kahan-Lanczos bidiagonalization.

    **Arguments:**

    - `steps`: dimension $l$ of the space; static.

    **Reference:** Deng, Yang, Li, Chen, Jiang, Pu, Fast Updating Truncated SVD for Representation
    Learning with Sparse Matrices, 2024, arXiv:2401.09703.
    """

    steps: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        checks.count("steps", self.steps)

    def __call__(self, z):
        s = z.b.shape[1]
        count = min(self.steps, s)
        dtype = z.b.dtype
        units = unit(z.b)
        z = z.over(units)
        whole = jnp.sum(z.b**2)
        # A start that no structure of the update is orthogonal to.
        first = jax.random.normal(jax.random.key(0), (s,), dtype)
        zeros = lambda rows: jnp.zeros((rows, count), dtype)
        empty = _Residual(zeros(z.b.shape[0]), zeros(z.c.shape[0]))

        def step(j, carry):
            q, p, bidiagonal, right, beta = carry
            column = z.times(right[:, None])
            column = column.minus(q.times(q.inner(column)))  # by the last one, and rounding
            alpha, inverse = _length(column, jnp.sum(column.b**2))
            column = _Residual(column.b * inverse, column.c * inverse)
            q = q.store(j, column)
            p = p.at[:, j].set(right)
            bidiagonal = bidiagonal.at[j, j].set(alpha).at[j - 1, j].add(jnp.where(j > 0, beta, 0))
            new = z.inner(column)[:, 0]
            for _ in range(2):
                new = new - p @ (p.T @ new)
            beta = jnp.linalg.norm(new)
            real = beta**2 > jnp.finfo(dtype).eps * whole
            right = jnp.where(real, new / jnp.where(real, beta, 1), 0)
            return q, p, bidiagonal, right, jnp.where(real, beta, 0)

        square = jnp.zeros((count, count), dtype)
        start = (empty, zeros(s), square, first / jnp.linalg.norm(first), jnp.zeros((), dtype))
        q, p, bidiagonal, _, _ = loops.fori_loop(0, count, step, start)
        return q, units * (p @ bidiagonal.T)


class RandomizedPower(AbstractAugmentation):
    """The space of a randomized power iteration.

    **Arguments:**

    - `size`: dimension $l$ of the space; static.
    - `rounds`: of the iteration; static.
    - `seed`: of the start; static.

    **Reference:** Deng, Yang, Li, Chen, Jiang, Pu, Fast Updating Truncated SVD for Representation
    Learning with Sparse Matrices, 2024, arXiv:2401.09703.
    """

    size: int = eqx.field(static=True, default=10)
    rounds: int = eqx.field(static=True, default=3)
    seed: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        checks.count("size", self.size)
        checks.count("rounds", self.rounds, 0)

    def __call__(self, z):
        s = z.b.shape[1]
        start = jax.random.normal(jax.random.key(self.seed), (s, min(self.size, s)), z.b.dtype)
        basis, _ = jnp.linalg.qr(start)
        units = unit(z.b)
        z = z.over(units)

        def step(_, basis):
            q, _ = GramSchmidt()(z.times(basis))
            return jnp.linalg.qr(z.inner(q))[0]

        q, _ = GramSchmidt()(z.times(loops.fori_loop(0, self.rounds, step, basis)))
        return q, units * z.inner(q)


class _Side(NamedTuple):
    """A factor $L = L_0 K$ whose rows are changed a few at a time."""

    outer: Float[Array, "n k"]
    inner: Float[Array, "k k"]

    def product(self, touched: "_Touched") -> _Residual:
        """The pairs of $(I - L L^\\top) X$, of which `c` is $L^\\top X$."""
        near = self.outer.at[touched.index].get(mode="fill", fill_value=0)
        return _Residual(touched.block, self.inner.T @ (near.T @ touched.block))

    def settled(self, inner: Array) -> "_Side":
        """With a new inner factor, multiplied out where its inverse would lose digits."""
        # The condition number grows with the updates, and by much where one replaces directions.
        limit = jnp.finfo(inner.dtype).eps ** -0.4
        scale = jnp.linalg.svd(inner, compute_uv=False)
        bad = ~(scale[-1] * limit > scale[0])
        identity = jnp.eye(len(inner), dtype=inner.dtype)
        multiplied = lambda outer: outer @ inner
        outer = loops.cond(bad, multiplied, lambda outer: outer, self.outer)
        return _Side(outer, jnp.where(bad, identity, inner))

    def changed(self, z: _Residual, left: Array, right: Array, touched: "_Touched") -> "_Side":
        """$L G + Q H$ for $Q$ of the pairs, $G$ and $H$ given."""
        side = self.settled(self.inner @ (left - z.c @ right))
        change = jnp.linalg.solve(side.inner.T, (z.b @ right).T).T
        outer = side.outer.at[touched.index].add(change, mode="drop")
        return _Side(outer, side.inner)


class _Touched(NamedTuple):
    """Columns with few rows that are not zero: these rows, in order and no one twice, and what
    stands there. Indices behind the end are padding."""

    index: Int[Array, " t"]
    block: Float[Array, "t s"]


def _touched(rows: Array, columns: Array, values: Array, size: int, num_columns: int) -> _Touched:
    bound = max(min(rows.size, size), 1)
    index = jnp.unique(rows, size=bound, fill_value=size)
    place = jnp.searchsorted(index, rows)
    block = jnp.zeros((bound, num_columns), values.dtype).at[place, columns].add(values)
    return _Touched(index, block)


class TruncatedSVD(eqx.Module):
    """$A \\approx U S V^\\top$ of rank $k$, kept while $A$ gets sparse rows, columns or a sparse
    change of low rank.

    The factors are $U = U_0 K_U$, $V = V_0 K_V$ with small inner ones, so that a rotation of all of
    $V$ costs $O(k^3)$, and only the rows are changed that the update touches. With rows $E$,
    $C = V^\\top E^\\top$ and $(I - V V^\\top) E^\\top \\approx Q P^\\top$,

    $$\\begin{pmatrix} A \\\\ E \\end{pmatrix} \\approx
      \\begin{pmatrix} U & \\\\ & I \\end{pmatrix}
      \\begin{pmatrix} S & 0 \\\\ C^\\top & P \\end{pmatrix}
      \\begin{pmatrix} V & Q \\end{pmatrix}^\\top,$$

    and the decomposition of the matrix in the middle, truncated, turns the factors. Nothing of the
    length of $V$ is formed for each row. An update of
    $s$ rows with $t$ columns touched costs $O(t (k s + s^2) + (k + s)^3)$, whatever the size of
    $A$. Rarely, an inner factor becomes ill-conditioned and is multiplied out, in $O(n k^2)$.

    All methods are functional, work in `jit` and `vmap`, and have derivatives where singular values
    differ. To update in place, which the cost above assumes, give the decomposition away:
    `jax.jit(lambda svd, E: svd.add_rows(E), donate_argnums=0)`. Build it with `from_matrix`.

    **Attributes:**

    - `s`: singular values, falling, shape `(k,)`.
    - `num_rows`, `num_columns`: of $A$; the outer factors have room for more.

    **Reference:** Deng, Yang, Li, Chen, Jiang, Pu, Fast Updating Truncated SVD for Representation
    Learning with Sparse Matrices, 2024, arXiv:2401.09703.
    """

    outer_left: Float[Array, "m k"]
    inner_left: Float[Array, "k k"]
    s: Float[Array, " k"]
    outer_right: Float[Array, "n k"]
    inner_right: Float[Array, "k k"]
    num_rows: Int[Array, ""]
    num_columns: Int[Array, ""]

    @classmethod
    def from_matrix(
        cls, A: Any, k: int, *, capacity: tuple[int, int] | None = None
    ) -> "TruncatedSVD":
        """The decomposition of a matrix, on the host.

        **Arguments:**

        - `A`: dense, `scipy.sparse` (by ARPACK) or `CSR`, shape `(m, n)`.
        - `k`: rank.
        - `capacity`: rows and columns that there is room for; `None` for those of `A`.

        **Raises:** `ValueError` if the rank is above the size, the capacity below it, or entries
        are not finite; `TypeError` if they are not real floating-point numbers.
        """
        import scipy.sparse as sp
        import scipy.sparse.linalg

        A = A.to_scipy() if isinstance(A, CSR) else A
        A = A if sp.issparse(A) else np.asarray(A)
        if A.ndim != 2:
            raise ValueError(f"expected a matrix, got shape {A.shape}")
        if not np.issubdtype(A.dtype, np.floating):
            raise TypeError(f"A must be real and floating-point, got {A.dtype}")
        m, n = A.shape
        checks.count("k", k)
        if k > min(m, n):
            raise ValueError(f"rank {k} is above the size of a matrix of shape {(m, n)}")
        rows, columns = (m, n) if capacity is None else capacity
        if rows < m or columns < n:
            raise ValueError(f"capacity {(rows, columns)} is below the shape {(m, n)}")
        checks.finite("A", A.data if sp.issparse(A) else A)
        if sp.issparse(A) and k < min(m, n):
            u, s, vt = scipy.sparse.linalg.svds(A, k, rng=np.random.default_rng(0))
            order = np.argsort(-s)
            u, s, vt = np.asarray(u)[:, order], s[order], np.asarray(vt)[order]
        else:
            u, s, vt = np.linalg.svd(A.todense() if sp.issparse(A) else A, full_matrices=False)
            u, s, vt = u[:, :k], s[:k], vt[:k]
        pad = lambda a, size: jnp.asarray(np.pad(a, ((0, size - len(a)), (0, 0))), A.dtype)
        identity = jnp.eye(k, dtype=A.dtype)
        return cls(
            pad(u, rows),
            identity,
            jnp.asarray(s, A.dtype),
            pad(vt.T, columns),
            jnp.copy(identity),
            jnp.asarray(m, jnp.int32),
            jnp.asarray(n, jnp.int32),
        )

    @property
    def rank(self) -> int:
        """$k$."""
        return self.s.shape[-1]

    @property
    @highest
    def u(self) -> Float[Array, "m k"]:
        """$U$, with rows of zeros where there is room for more."""
        return self.outer_left @ self.inner_left

    @property
    @highest
    def v(self) -> Float[Array, "n k"]:
        """$V$, with rows of zeros where there is room for more."""
        return self.outer_right @ self.inner_right

    @highest
    def left(self, i: Int[Array, "..."]) -> Float[Array, "... k"]:
        """Rows of $U$."""
        return self.outer_left[i] @ self.inner_left

    @highest
    def right(self, i: Int[Array, "..."]) -> Float[Array, "... k"]:
        """Rows of $V$."""
        return self.outer_right[i] @ self.inner_right

    @highest
    def renormalized(self) -> "TruncatedSVD":
        """The same with orthonormal outer factors, in $O((m + n) k^2)$: removes what rounding has
        done to them over very many updates."""
        u, r = jnp.linalg.qr(self.u)
        v, q = jnp.linalg.qr(self.v)
        left, s, right = jnp.linalg.svd((r * self.s) @ q.T)
        return dataclasses.replace(
            self,
            outer_left=u,
            inner_left=left,
            s=s,
            outer_right=v,
            inner_right=right.T,
        )

    def add_rows(
        self,
        E: CSR,
        augment: AbstractAugmentation = GramSchmidt(),  # noqa: B008  (immutable)
    ) -> "TruncatedSVD":
        """With rows below $A$.

        **Arguments:**

        - `E`: the rows, shape `(s, n)`, $n$ at most the capacity.
        - `augment`: `GramSchmidt`, `Lanczos` or `RandomizedPower`.

        **Raises:** `ValueError` if there is no room or an entry stands where $A$ has no column; in
        `jit` a runtime error. `TypeError` for another type than that of the factors.
        """
        return self._appended(E, augment, rows=True)

    def add_columns(
        self,
        E: CSR,
        augment: AbstractAugmentation = GramSchmidt(),  # noqa: B008
    ) -> "TruncatedSVD":
        """With columns right of $A$: `E` has shape `(m, s)`; otherwise as `add_rows`."""
        return self._appended(E, augment, rows=False)

    @highest
    def _appended(self, E, augment, rows):
        self._check("E", E)
        long, short = (E.columns, E.rows) if rows else (E.rows, E.columns)
        count, width = E.shape if rows else E.shape[::-1]
        if not count:
            return self
        grown, kept = self._sides() if rows else self._sides()[::-1]
        used, there = (self.num_rows, self.num_columns)[:: 1 if rows else -1]
        what = ("rows", "columns")[:: 1 if rows else -1]
        if width > len(kept.outer) or count > len(grown.outer):
            raise ValueError(
                f"{count} {what[0]} of length {width} do not fit capacities"
                f" {len(grown.outer)} and {len(kept.outer)}"
            )
        s = self._checked(
            (used + count > len(grown.outer), f"there is no room for {count} more {what[0]}"),
            (_last(E, long) >= there, f"an entry of E lies behind the last of the {what[1]}"),
        )
        touched = _touched(long, short, E.values, len(kept.outer), count)
        z = kept.product(touched)
        q, P = augment(z)
        k = self.rank
        middle = jnp.zeros((k + count, k + P.shape[1]), s.dtype)
        middle = middle.at[:k, :k].set(jnp.diag(_floored(s)))
        middle = middle.at[k:, :k].set(z.c.T).at[k:, k:].set(P)
        F, s, Gt = jnp.linalg.svd(middle, full_matrices=False)
        F, s, G = F[:, :k], s[:k], Gt[:k].T
        kept = kept.changed(q, G[:k], G[k:], touched)
        grown = grown.settled(grown.inner @ F[:k])
        new = jnp.linalg.solve(grown.inner.T, F[k:].T).T
        outer = jax.lax.dynamic_update_slice_in_dim(grown.outer, new, used, axis=0)
        grown = _Side(outer, grown.inner)
        left, right = (grown, kept) if rows else (kept, grown)
        added = (count, 0) if rows else (0, count)
        return TruncatedSVD(*left, s, *right, self.num_rows + added[0], self.num_columns + added[1])

    @highest
    def add_low_rank(
        self,
        D: CSR,
        E: CSR,
        augment: AbstractAugmentation = GramSchmidt(),  # noqa: B008
    ) -> "TruncatedSVD":
        """Of $A + D E^\\top$.

        **Arguments:**

        - `D`, `E`: shapes `(m, s)` and `(n, s)`, at most the capacities.
        - `augment`: as of `add_rows`, for both sides.

        **Raises:** as `add_rows`; `ValueError` if the numbers of columns differ.
        """
        self._check("D", D)
        self._check("E", E)
        if D.shape[1] != E.shape[1]:
            raise ValueError(f"D {D.shape} and E {E.shape} must have as many columns")
        left, right = self._sides()
        if D.shape[0] > len(left.outer) or E.shape[0] > len(right.outer):
            raise ValueError(
                f"D {D.shape} and E {E.shape} do not fit capacities"
                f" {len(left.outer)} and {len(right.outer)}"
            )
        if not D.shape[1]:
            return self
        s = self._checked(
            (_last(D, D.rows) >= self.num_rows, "an entry of D lies behind the last of the rows"),
            (
                _last(E, E.rows) >= self.num_columns,
                "an entry of E lies behind the last of the columns",
            ),
        )
        parts = []
        for side, X in ((left, D), (right, E)):
            touched = _touched(X.rows, X.columns, X.values, len(side.outer), X.shape[1])
            z = side.product(touched)
            q, P = augment(z)
            parts.append((touched, q, jnp.concatenate([z.c, P.T])))
        (touched_left, q_left, a), (touched_right, q_right, b) = parts
        k = self.rank
        middle = (a @ b.T).at[:k, :k].add(jnp.diag(_floored(s)))
        F, s, Gt = jnp.linalg.svd(middle, full_matrices=False)
        F, s, G = F[:, :k], s[:k], Gt[:k].T
        left = left.changed(q_left, F[:k], F[k:], touched_left)
        right = right.changed(q_right, G[:k], G[k:], touched_right)
        return TruncatedSVD(*left, s, *right, self.num_rows, self.num_columns)

    def _sides(self):
        return (
            _Side(self.outer_left, self.inner_left),
            _Side(self.outer_right, self.inner_right),
        )

    def _check(self, name, E):
        checks.instance(name, E, CSR, "CSR.from_scipy(...)")
        if E.dtype != self.s.dtype:
            raise TypeError(f"{name} must be of type {self.s.dtype}, got {E.dtype}")

    def _checked(self, *faults):
        """The singular values, if none of the faults is there."""
        s = self.s
        for fault, message in faults:
            if checks.is_traced(fault):
                s = eqx.error_if(s, fault, message)
            elif np.any(fault):
                raise ValueError(message)
        return s


def _last(E: CSR, places: Array) -> Array:
    """The last place with an entry that is no padding; -1 without any."""
    return jnp.max(jnp.where(E.in_use, places, -1), initial=-1)


def _floored(s):
    # Directions that are there come before those that are not, where both have the value zero.
    return jnp.maximum(s, 4 * jnp.finfo(s.dtype).eps * jnp.max(s))
