"""Projections onto the row space of a Kronecker-weighted matrix, kept while the weights change."""

import abc
import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..core import Scalar, checks, scalar_field
from .precision import highest

_DENSE_CHECK_EVERY = 10


class AbstractKroneckerForm(eqx.Module):
    """How the weights stand in $B = A T \\mathrm{diag}(\\sqrt\\delta) T^\\top$.

    $T$ is orthogonal, applied by products of size $n \\times n$, and never formed."""

    @abc.abstractmethod
    def rotate(self, U: Float[Array, "n n"], X: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
        """$T^\\top \\mathrm{vec}(X)$, by rows."""

    @abc.abstractmethod
    def rotate_back(
        self, U: Float[Array, "n n"], X: Float[Array, "... n n"]
    ) -> Float[Array, "... n n"]:
        """$T \\mathrm{vec}(X)$."""

    @abc.abstractmethod
    def root(self, lam: Float[Array, " n"]) -> Float[Array, "n n"]:
        """$\\sqrt\\delta$."""

    @abc.abstractmethod
    def touched(self, changed: np.ndarray) -> np.ndarray:
        """Which entries of $\\delta$ change with these of $\\lambda$; on the host."""


class OneSided(AbstractKroneckerForm):
    """$B = A (W \\otimes I)$, and so $\\delta = \\lambda^2 \\otimes 1$, $T = U \\otimes I$."""

    def rotate(self, U, X):
        return U.T @ X

    def rotate_back(self, U, X):
        return U @ X

    def root(self, lam):
        return jnp.broadcast_to(lam[:, None], (lam.size, lam.size))

    def touched(self, changed):
        return np.repeat(changed, changed.size)


class TwoSided(AbstractKroneckerForm):
    """$B = A (W^{1/2} \\otimes W^{1/2})$, and so $\\delta = \\lambda \\otimes \\lambda$,
    $T = U \\otimes U$."""

    def rotate(self, U, X):
        return U.T @ X @ U

    def rotate_back(self, U, X):
        return U @ X @ U.T

    def root(self, lam):
        return jnp.sqrt(lam)[:, None] * jnp.sqrt(lam)

    def touched(self, changed):
        return (changed[:, None] | changed).ravel()


class Statistics(eqx.Module):
    """What maintenance has done: `commits`, the sum of their ranks in entries of $\\delta$,
    recomputations from scratch, the first one included, and updates left pending or ignored."""

    commits: Int[Array, ""]
    ranks: Int[Array, ""]
    recomputations: Int[Array, ""]
    pending: Int[Array, ""]
    ignored: Int[Array, ""]


def _counted(statistics: Statistics, **more: int) -> Statistics:
    new = {name: getattr(statistics, name) + value for name, value in more.items()}
    return dataclasses.replace(statistics, **new)


class _Correction(eqx.Module):
    """$N' = N - K M K^\\top$, with padding of zeros."""

    left: Float[Array, "m p"]
    middle: Float[Array, "p p"]

    def __call__(self, g: Float[Array, "... m"]) -> Float[Array, "... m"]:
        return ((g @ self.left) @ self.middle.T) @ self.left.T


@jax.jit
def _inverse(G: Array, root: Array) -> Array:
    """$(G\\, \\mathrm{diag}(\\delta)\\, G^\\top)^{-1}$."""
    half = G * root.ravel()
    factor = jax.scipy.linalg.cho_factor(half @ half.T)
    return jax.scipy.linalg.cho_solve(factor, jnp.eye(len(G), dtype=G.dtype))


@jax.jit
def _woodbury(N: Array, G: Array, places: Array, change: Array) -> _Correction:
    """The correction for changes of $\\delta$ at some places, zero where padded."""
    columns = G[:, places] * (change != 0)
    left = N @ columns
    # Without the inverse of the change, which may be zero: (I + D C)^-1 D.
    capacitance = jnp.eye(places.size, dtype=G.dtype) + change[:, None] * (columns.T @ left)
    return _Correction(left, jnp.linalg.solve(capacitance, jnp.diag(change)))


@jax.jit
def _committed(N: Array, correction: _Correction) -> Array:
    new = N - correction.left @ correction.middle @ correction.left.T
    return (new + new.T) / 2


@jax.jit
def _drift(N: Array, G: Array, root: Array) -> Array:
    half = G * root.ravel()
    return jnp.max(jnp.abs(N @ (half @ half.T) - jnp.eye(len(G), dtype=G.dtype)))


class KroneckerProjection(eqx.Module):
    """$P h = B^\\top (B B^\\top)^{-1} B h$ while $W = U \\mathrm{diag}(\\lambda) U^\\top$ changes.

    With $G = A T$, $B B^\\top = G \\mathrm{diag}(\\delta) G^\\top$, whose inverse $N$ is kept:

    $$P h = T \\sqrt\\delta \\circ G^\\top N G (\\sqrt\\delta \\circ T^\\top h).$$

    `update` looks at $y_i = |\\log \\lambda_i - \\log \\bar\\lambda_i|$, with $\\bar\\lambda$ what
    $N$ belongs to. Entries below the threshold are answered with $\\bar\\lambda_i$, an error of
    about the threshold times $\\|h\\|$. Of the others, $r$ in number, fewer than $n^a$ are kept
    pending, as a correction of low rank. More are committed to $N$ by Woodbury's formula, together
    with those that are nearly as far off: while $1.5 r < n$ and
    $y_{(1.5 r)} \\ge (1 - 1/\\log n) y_{(r)}$, $r$ grows by half. Where the rank reaches $m$,
    $N$ is computed anew; so it is where every tenth commit finds that digits were lost.

    Build it with `build`. All methods return a new module. `query` is a pure function, under `jit`,
    `vmap` and derivatives in `h`; `build`, `update` and `refresh` are driven on the host, because
    the rank depends on the data; ranks are padded to powers of two, so that few programs are
    compiled.

    **Attributes:**

    - `eigenvalues`: $\\lambda$ as it was last given, shape `(n,)`.
    - `answered`: the $\\lambda$ that queries are answered for, exactly.
    - `statistics`: see `Statistics`.

    **Reference:** Song, Yang, Yang, Zhang, Sketching Meets Differential Privacy: Fast Algorithm for
    Dynamic Kronecker Projection Maintenance, 2023, arXiv:2210.11542.
    """

    G: Float[Array, "m n2"]
    U: Float[Array, "n n"]
    eigenvalues: Float[Array, " n"]
    committed: Float[Array, " n"]
    answered: Float[Array, " n"]
    N: Float[Array, "m m"]
    correction: _Correction
    statistics: Statistics
    threshold: Scalar = scalar_field(1e-2)
    batch_exponent: Scalar = scalar_field(0.5)
    form: AbstractKroneckerForm = OneSided()

    @classmethod
    @highest
    def build(
        cls,
        A: Float[Array, "m n2"],
        U: Float[Array, "n n"],
        lam: Float[Array, " n"],
        *,
        form: AbstractKroneckerForm = OneSided(),  # noqa: B008  (immutable)
        threshold: float = 1e-2,
        batch_exponent: float = 0.5,
    ) -> "KroneckerProjection":
        """From the matrix, eigenvectors that stay, and the first eigenvalues.

        **Arguments:**

        - `A`: shape `(m, n^2)`, of full rank, $m \\le n^2$.
        - `U`: orthogonal, shape `(n, n)`.
        - `lam`: positive, shape `(n,)`.
        - `form`: `OneSided`, $A (W \\otimes I)$, or `TwoSided`, $A (W^{1/2} \\otimes W^{1/2})$.
        - `threshold`: of $|\\log \\lambda - \\log \\bar\\lambda|$; 0 is exact.
        - `batch_exponent`: $a$; 0 commits all that is above the threshold at once.

        **Raises:** `ValueError` for shapes that do not fit, eigenvalues that are not positive, `U`
        not orthogonal to `1e-6`, or `A` without full rank.
        """
        A, U, lam = map(jnp.asarray, (A, U, lam))
        if not jnp.issubdtype(A.dtype, jnp.floating):
            raise TypeError(f"A must be real and floating-point, got {A.dtype}")
        U, lam = U.astype(A.dtype), lam.astype(A.dtype)
        n = lam.size
        if A.ndim != 2 or U.shape != (n, n) or lam.shape != (n,) or A.shape[1] != n * n:
            raise ValueError(f"A {A.shape}, U {U.shape} and lam {lam.shape} do not fit")
        checks.instance("form", form, AbstractKroneckerForm, "TwoSided()")
        checks.positive("lam", lam)
        checks.finite("A", A)
        checks.nonnegative("threshold", threshold)
        checks.interval("batch_exponent", batch_exponent, 0.0, 1.0)
        far, G, weighted, N = _begun(form, A, U, lam)
        far = float(far)
        if not far <= (1e-6 if U.dtype == jnp.float64 else 1e-4):
            raise ValueError(f"U must be orthogonal, U'U differs from the identity by {far:.2g}")
        spectrum = np.linalg.svd(np.asarray(weighted), compute_uv=False)
        if len(A) > n * n or spectrum[-1] <= len(A) * np.finfo(G.dtype).eps * spectrum[0]:
            raise ValueError(
                f"A must have full rank, got {spectrum[-1]:.2g} for the smallest of"
                f" {len(spectrum)} singular values of a matrix with {len(A)} rows"
            )
        count = lambda value: jnp.asarray(value, jnp.int32)
        statistics = Statistics(*map(count, (0, 0, 1, 0, 0)))
        nothing = _nothing(G)
        return cls(G, U, lam, lam, lam, N, nothing, statistics, threshold, batch_exponent, form)

    @highest
    def query(self, h: Float[Array, "... n2"]) -> Float[Array, "... n2"]:
        """$P h$ for the eigenvalues `answered`.

        **Arguments:**

        - `h`: shape `(..., n^2)`, a matrix of shape `(n, n)` by rows.

        **Raises:** `ValueError` for another last axis.
        """
        root = self.form.root(self.answered).ravel()
        g = (root * self._rotated(h)) @ self.G.T
        g = g @ self.N - self.correction(g)
        return self._rotated_back(root * (g @ self.G))

    def _rotated(self, h):
        n = self.U.shape[0]
        if not jnp.ndim(h) or h.shape[-1] != n * n:
            raise ValueError(f"h must have a last axis of {n * n}, got shape {jnp.shape(h)}")
        return self.form.rotate(self.U, h.reshape(*h.shape[:-1], n, n)).reshape(h.shape)

    def _rotated_back(self, h):
        n = self.U.shape[0]
        return self.form.rotate_back(self.U, h.reshape(*h.shape[:-1], n, n)).reshape(h.shape)

    @highest
    def update(self, lam: Float[Array, " n"]) -> "KroneckerProjection":
        """For other eigenvalues.

        **Arguments:**

        - `lam`: positive, shape `(n,)`.

        **Raises:** `ValueError` for another shape or what is not positive.
        """
        lam = jnp.asarray(lam, self.G.dtype)
        if lam.shape != self.eigenvalues.shape:
            raise ValueError(f"lam must have shape {self.eigenvalues.shape}, got {lam.shape}")
        checks.positive("lam", lam)
        new, old = np.asarray(lam), np.asarray(self.committed)
        n, y = new.size, np.abs(np.log(new) - np.log(old))
        order = np.argsort(-y, kind="stable")
        far = y[order]
        r = int(np.sum((far >= float(self.threshold)) & (far > 0)))
        known = dataclasses.replace(self, eigenvalues=lam)
        if r == 0:
            statistics = _counted(self.statistics, ignored=1)
            nothing = _nothing(self.G)
            return dataclasses.replace(
                known, answered=self.committed, correction=nothing, statistics=statistics
            )
        commit = r >= n ** float(self.batch_exponent)
        if commit:
            nearly = 1 - 1 / math.log(max(n, 3))
            while 1.5 * r < n and far[math.ceil(1.5 * r) - 1] >= nearly * far[r - 1]:
                r = math.ceil(1.5 * r)
        changed = np.zeros(n, bool)
        changed[order[:r]] = True
        target = jnp.asarray(np.where(changed, new, old))
        places = np.flatnonzero(self.form.touched(changed))
        if len(places) >= len(self.G):
            # Of such a rank nothing is saved, and so it is committed.
            return dataclasses.replace(known, committed=target, statistics=self.statistics)._anew(
                commits=1, ranks=len(places)
            )
        correction = self._correction(target, places)
        if not commit:
            statistics = _counted(self.statistics, pending=1)
            return dataclasses.replace(
                known, answered=target, correction=correction, statistics=statistics
            )
        statistics = _counted(self.statistics, commits=1, ranks=len(places))
        out = dataclasses.replace(
            known,
            committed=target,
            answered=target,
            N=_committed(self.N, correction),
            correction=_nothing(self.G),
            statistics=statistics,
        )
        if int(statistics.commits) % _DENSE_CHECK_EVERY == 0:
            limit = math.sqrt(float(jnp.finfo(self.G.dtype).eps))
            if not float(_drift(out.N, out.G, out.form.root(target))) <= limit:
                return out.refresh()
        return out

    def _correction(self, target, places):
        size = 1 << max(len(places) - 1, 0).bit_length()
        padded = np.pad(places, (0, size - len(places)))
        return _corrected(self, target, jnp.asarray(padded), np.int32(len(places)))

    @highest
    def refresh(self) -> "KroneckerProjection":
        """With $N$ computed anew for the eigenvalues that were last given."""
        return dataclasses.replace(self, committed=self.eigenvalues)._anew()

    def _anew(self, **more: int) -> "KroneckerProjection":
        return dataclasses.replace(
            self,
            answered=self.committed,
            N=_inverse(self.G, self.form.root(self.committed)),
            correction=_nothing(self.G),
            statistics=_counted(self.statistics, recomputations=1, **more),
        )


@eqx.filter_jit
def _begun(form, A, U, lam):
    """How far $U$ is from orthogonal, $A T$, that with its weights, and $N$."""
    n = lam.size
    far = jnp.max(jnp.abs(U.T @ U - jnp.eye(n, dtype=U.dtype)))
    G = form.rotate(U, A.reshape(-1, n, n)).reshape(A.shape)
    root = form.root(lam)
    return far, G, G * root.ravel(), _inverse(G, root)


@eqx.filter_jit
def _corrected(projection, target, places, count):
    """The correction to eigenvalues that differ at the first `count` places; others are padding."""
    root = lambda lam: projection.form.root(lam).ravel()
    delta = root(target) ** 2 - root(projection.committed) ** 2
    change = jnp.where(jnp.arange(places.size) < count, delta[places], 0)
    return _woodbury(projection.N, projection.G, places, change)


def _nothing(G):
    return _Correction(jnp.zeros((len(G), 1), G.dtype), jnp.zeros((1, 1), G.dtype))


class PrivateMedian(eqx.Module):
    """A median in each coordinate of a random subset of rows, by the exponential mechanism.

    Each coordinate draws a point $x$ of a grid over the range of the rows with a probability
    proportional to $\\exp(-\\tfrac12 \\varepsilon |c(x) - q/2|)$, $c(x)$ the number of rows at most
    $x$, which one row changes by at most one. The range itself is not private.

    **Arguments:**

    - `subset`: $q$, rows that are looked at; static.
    - `epsilon`: privacy of one coordinate of one answer with respect to a row; infinity is a
      plain median on the grid.
    - `num_points`: of the grid; static.

    **Reference:** McSherry, Talwar, Mechanism Design via Differential Privacy, 2007. Used by Song,
    Yang, Yang, Zhang, Sketching Meets Differential Privacy, 2023, arXiv:2210.11542.
    """

    subset: int = eqx.field(static=True, default=9)
    epsilon: Scalar = scalar_field(1.0)
    num_points: int = eqx.field(static=True, default=256)

    def __check_init__(self):
        checks.count("subset", self.subset)
        checks.positive("epsilon", self.epsilon)
        checks.count("num_points", self.num_points, 2)

    def __call__(self, rows: Float[Array, "L d"], key: PRNGKeyArray) -> Float[Array, " d"]:
        """One value for each column."""
        chosen, noise = jax.random.split(key)
        some = jax.random.choice(chosen, rows, (self.subset,), replace=False)
        low, high = jnp.min(some, axis=0), jnp.max(some, axis=0)
        share = jnp.linspace(0, 1, self.num_points, dtype=rows.dtype)
        grid = low + (high - low) * share[:, None]
        below = jnp.sum(some[:, None, :] <= grid, axis=0)
        score = -jnp.abs(below - self.subset / 2).astype(rows.dtype)
        gumbel = jax.random.gumbel(noise, score.shape, rows.dtype)
        best = jnp.argmax(self.epsilon.astype(rows.dtype) / 2 * score + gumbel, axis=0)
        return jnp.take_along_axis(grid, best[None], axis=0)[0]


class SketchedProjection(eqx.Module):
    """Answers of a `KroneckerProjection` through sketches, robust to queries that depend on them.

    With $R$ of random signs over $\\sqrt b$, shape `(b, n^2)`,

    $$\\hat P h = T \\sqrt\\delta \\circ G^\\top K R\\, T^\\top h, \\qquad
      K = N G\\, \\mathrm{diag}(\\sqrt\\delta) R^\\top,$$

    with $K$, of shape `(m, b)`, kept. It is unbiased, with an error of the order of $b^{-1/2}$. Who
    sees answers learns the sketch, and can ask for what it gets wrong. So there are several, of
    which each answer takes a private median over a random subset: about $\\sqrt T$ sketches serve
    $T$ adaptive queries, instead of $T$. The median does not remove the bias that an adversary
    finds, it slows its growth.

    **Attributes:**

    - `projection`: the one that is answered for.
    - `sketches`: shape `(L, b, n^2)`. `kept`: shape `(L, m, b)`.
    - `median`: a `PrivateMedian`.

    **Reference:** Song, Yang, Yang, Zhang, Sketching Meets Differential Privacy: Fast Algorithm for
    Dynamic Kronecker Projection Maintenance, 2023, arXiv:2210.11542.
    """

    projection: KroneckerProjection
    sketches: Float[Array, "L b n2"]
    kept: Float[Array, "L m b"]
    median: PrivateMedian

    @classmethod
    @highest
    def build(
        cls,
        projection: KroneckerProjection,
        sketch_size: int,
        copies: int,
        key: PRNGKeyArray,
        *,
        median: PrivateMedian | None = None,
    ) -> "SketchedProjection":
        """**Arguments:**

        - `projection`: shape `(m, n^2)`.
        - `sketch_size`: $b$. `copies`: $L$.
        - `key`: of the signs.
        - `median`: of subsets of at most `copies`; `None` is one of more than half of them.

        **Raises:** `ValueError` for sizes below 1 or a subset above the number of copies.
        """
        checks.instance("projection", projection, KroneckerProjection, "KroneckerProjection.build")
        checks.count("sketch_size", sketch_size)
        checks.count("copies", copies)
        median = PrivateMedian(copies // 2 + 1) if median is None else median
        if median.subset > copies:
            raise ValueError(f"a subset of {median.subset} is more than {copies} copies")
        G = projection.G
        signs = jax.random.rademacher(key, (copies, sketch_size, G.shape[1]), G.dtype)
        sketches = signs / math.sqrt(sketch_size)
        return cls(projection, sketches, _kept(projection, sketches), median)

    @highest
    def update(self, lam: Float[Array, " n"]) -> "SketchedProjection":
        """For other eigenvalues, as `KroneckerProjection.update`; the sketches stay."""
        projection = self.projection.update(lam)
        return dataclasses.replace(
            self, projection=projection, kept=_kept(projection, self.sketches)
        )

    @highest
    def refresh(self, key: PRNGKeyArray) -> "SketchedProjection":
        """With fresh sketches and $N$ computed anew."""
        copies, size, _ = self.sketches.shape
        return SketchedProjection.build(
            self.projection.refresh(), size, copies, key, median=self.median
        )

    @highest
    def answers(self, h: Float[Array, " n2"]) -> Float[Array, "L n2"]:
        """What each sketch says."""
        projection = self.projection
        root = projection.form.root(projection.answered).ravel()
        rotated = projection._rotated(h)
        if rotated.ndim != 1:
            raise ValueError(f"h must be a vector, got shape {h.shape}; vmap over several")
        inner = jnp.einsum("lmb,lb->lm", self.kept, self.sketches @ rotated)
        return projection._rotated_back(root * (inner @ projection.G))

    @highest
    def query(self, h: Float[Array, " n2"], key: PRNGKeyArray) -> Float[Array, " n2"]:
        """The private median of the sketches.

        **Arguments:**

        - `h`: shape `(n^2,)`.
        - `key`: of the subset and the noise, new for each query; independent of the sketches also
          where it is the key that these were drawn from.
        """
        return self.median(self.answers(h), jax.random.fold_in(key, 0x6D656469))


@jax.jit
def _kept(projection, sketches):
    root = projection.form.root(projection.answered).ravel()
    g = (sketches * root) @ projection.G.T
    return jnp.swapaxes(g @ projection.N - projection.correction(g), 1, 2)
