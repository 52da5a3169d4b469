"""Differences of submodular functions of sets, minimized by difference-of-convex programming.

- Set functions: `Modular`, `Cut`, `Coverage`, `FacilityLocation`, `ConcaveOfModular`, `LogDet`,
  `JointEntropy`, `WeightedSum` of others; `DifferenceOfSubmodular` is what is minimized.
- `SubmodularDCA`, with the iterates `Fractional`, `Rounded`, `Extrapolated`; `SubmodularCDCA` looks
  for better subgradients and is slower.
- Their convex steps: `MinimumNormPoint`, exact, or `LovaszSubgradient`, which never holds a matrix.
- What they are compared with: `SubSup`, `SupSub`, `ModMod`, `GreedySet`, and `MinimumNormPoint` on
  the difference itself.

A set is a mask of booleans. All run under `jit` and `vmap`; there are no derivatives.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..core import Scalar, Status, checks, loops, scalar_field

Mask = Bool[Array, " n"]
Vector = Float[Array, " n"]


class AbstractSetFunction(eqx.Module):
    """A function $F$ of the subsets of $\\{0, \\dots, n - 1\\}$, known along chains of sets.

    The value of a set is that beyond the empty set: $F(\\emptyset)$ is taken off.
    """

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """$n$."""

    @abc.abstractmethod
    def prefix_values(self, order: Int[Array, " n"]) -> Float[Array, " n+1"]:
        """$F(\\emptyset), F(\\{o_1\\}), F(\\{o_1, o_2\\}), \\dots$ in one pass."""

    def gains_along(self, order: Int[Array, " n"]) -> Vector:
        """$F(S_k) - F(S_{k-1})$ for the sets $S_k$ of the first $k$ elements of an order."""
        return jnp.diff(self.prefix_values(order))

    def value(self, mask: Mask) -> Float[Array, ""]:
        """$F(S) - F(\\emptyset)$."""
        values = self.prefix_values(jnp.argsort(~mask, stable=True))
        return values[jnp.sum(mask)] - values[0]

    def flips(self, mask: Mask) -> Vector:
        """The values of the sets that differ from $S$ in one element."""
        return jax.vmap(self.value)(mask[None] ^ jnp.eye(self.size, dtype=bool))

    def marginals(self, mask: Mask) -> Vector:
        """$F(S + i) - F(S - i)$ for each $i$; of members it is $F(S) - F(S - i)$."""
        move = self.flips(mask) - self.value(mask)
        return jnp.where(mask, -move, move)

    def greedy_vector(self, x: Vector, tie: Vector | None = None) -> Vector:
        """Edmonds' greedy vector, the gains along decreasing $x$, equal ones by decreasing `tie`.

        If $F$ is submodular it is a subgradient of the Lovász extension at $x$, and the vertex of
        the base polytope that is best along $x$.
        """
        order = _decreasing(x, tie)
        gains = self.gains_along(order)
        return jnp.zeros_like(gains).at[order].set(gains)

    def lovasz(self, x: Vector) -> Float[Array, ""]:
        """$f_L(x) = \\langle y, x\\rangle$ with the greedy vector $y$; it is $F$ on masks."""
        return jnp.vdot(self.greedy_vector(x), x)

    def best_level_set(self, x: Vector, tie: Vector | None = None) -> tuple[Mask, Array]:
        """The best of the $n + 1$ sets of the first elements by decreasing $x$, and its value,
        which is at most $f_L(x)$ for $x$ in the unit cube."""
        order = _decreasing(x, tie)
        values = self.prefix_values(order)
        values = values - values[0]
        count = jnp.argmin(values)
        mask = jnp.zeros(self.size, bool).at[order].set(jnp.arange(self.size) < count)
        return mask, values[count]


def _decreasing(x, tie=None):
    return jnp.argsort(-x, stable=True) if tie is None else jnp.lexsort((-tie, -x))


def _cumulative(gains):
    return jnp.concatenate([jnp.zeros(1, gains.dtype), jnp.cumsum(gains)])


def _matrix(name: str, value: Any, square: bool = False) -> Array:
    value = jnp.asarray(value)
    if value.ndim != 2 or (square and value.shape[0] != value.shape[1]):
        raise ValueError(f"{name} must be a {'square ' * square}matrix, got shape {value.shape}")
    return value


class Modular(AbstractSetFunction):
    """$\\sum_{i \\in S} w_i$.

    **Arguments:**

    - `weights`: $w$, shape `(n,)`.
    """

    weights: Vector = eqx.field(converter=jnp.asarray)

    def __check_init__(self):
        if jnp.ndim(self.weights) != 1:
            raise ValueError(f"weights must have shape (n,), got {jnp.shape(self.weights)}")

    @property
    def size(self):
        return self.weights.shape[0]

    def prefix_values(self, order):
        return _cumulative(self.weights[order])


class Cut(AbstractSetFunction):
    """$\\sum_{i \\in S, j \\notin S} w_{ij}$ of an undirected graph.

    **Arguments:**

    - `weights`: $w$, symmetric, not negative, shape `(n, n)`; its diagonal does not count.

    **Raises:** `ValueError` otherwise.
    """

    weights: Float[Array, "n n"]

    def __init__(self, weights):
        self.weights = _matrix("weights", weights, square=True)
        checks.nonnegative("weights", self.weights)
        if not checks.is_traced(self.weights) and not np.allclose(self.weights, self.weights.T):
            raise ValueError("weights must be symmetric")

    @property
    def size(self):
        return self.weights.shape[0]

    def prefix_values(self, order):
        among = self.weights[order][:, order]
        among = among - jnp.diag(jnp.diag(among))
        return _cumulative(jnp.sum(among, axis=1) - 2 * jnp.sum(jnp.tril(among, -1), axis=1))


class FacilityLocation(AbstractSetFunction):
    """$\\sum_j c_j \\max_{i \\in S} b_{ij}$, zero of the empty set: customers by their best site.

    **Arguments:**

    - `benefits`: $b$, not negative, shape `(n, m)`.
    - `weights`: $c$, not negative, shape `(m,)`; ones if `None`.

    **Raises:** `ValueError` otherwise.
    """

    benefits: Float[Array, "n m"]
    weights: Float[Array, " m"]

    def __init__(self, benefits, weights=None):
        self.benefits = _matrix("benefits", benefits)
        m = self.benefits.shape[1]
        self.weights = jnp.ones(m, self.benefits.dtype) if weights is None else jnp.asarray(weights)
        checks.nonnegative("benefits", self.benefits)
        checks.nonnegative("weights", self.weights)
        if self.weights.shape != (m,):
            raise ValueError(f"weights must have shape {(m,)}, got {self.weights.shape}")

    @property
    def size(self):
        return self.benefits.shape[0]

    def prefix_values(self, order):
        best = jax.lax.cummax(self.benefits[order], axis=0) @ self.weights
        return jnp.concatenate([jnp.zeros(1, best.dtype), best])


class Coverage(AbstractSetFunction):
    """The weight of what is covered, $\\sum_j c_j [\\,j$ is covered by some $i \\in S]$.

    **Arguments:**

    - `incidence`: whether $i$ covers $j$, shape `(n, m)`.
    - `weights`: $c$, not negative, shape `(m,)`.

    **Raises:** `ValueError` for shapes and signs.
    """

    incidence: Bool[Array, "n m"]
    weights: Float[Array, " m"]

    def __init__(self, incidence, weights):
        self.incidence = _matrix("incidence", incidence).astype(bool)
        self.weights = jnp.asarray(weights)
        checks.nonnegative("weights", self.weights)
        if self.weights.shape != self.incidence.shape[1:]:
            wanted = self.incidence.shape[1:]
            raise ValueError(f"weights must have shape {wanted}, got {self.weights.shape}")

    @property
    def size(self):
        return self.incidence.shape[0]

    def prefix_values(self, order):
        weight = self.weights.dtype
        covered = jax.lax.cummax(self.incidence[order].astype(weight), axis=0) @ self.weights
        return jnp.concatenate([jnp.zeros(1, covered.dtype), covered])


class ConcaveOfModular(AbstractSetFunction):
    """$\\sum_j c_j\\, \\varphi\\bigl(\\sum_{i \\in S} w_{ij}\\bigr)$ with a concave $\\varphi$.

    **Arguments:**

    - `weights`: $w$, not negative, shape `(n, m)`.
    - `scales`: $c$, not negative, shape `(m,)`; ones if `None`.
    - `concave`: $\\varphi$ on nonnegative numbers, elementwise; static.

    **Raises:** `ValueError` for shapes and signs.
    """

    weights: Float[Array, "n m"]
    scales: Float[Array, " m"]
    concave: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(self, weights, scales=None, concave=jnp.sqrt):
        self.weights = _matrix("weights", weights)
        m = self.weights.shape[1]
        self.scales = jnp.ones(m, self.weights.dtype) if scales is None else jnp.asarray(scales)
        self.concave = concave
        checks.nonnegative("weights", self.weights)
        checks.nonnegative("scales", self.scales)
        if self.scales.shape != (m,):
            raise ValueError(f"scales must have shape {(m,)}, got {self.scales.shape}")

    @property
    def size(self):
        return self.weights.shape[0]

    def prefix_values(self, order):
        sums = jnp.cumsum(self.weights[order], axis=0)
        sums = jnp.concatenate([jnp.zeros_like(sums[:1]), sums])
        return self.concave(sums) @ self.scales


class LogDet(AbstractSetFunction):
    """$\\log\\det K_{SS}$, the entropy of jointly Gaussian variables up to a modular part. One
    Cholesky factorization gives a chain.

    **Arguments:**

    - `matrix`: $K$, symmetric positive definite, shape `(n, n)`.
    """

    matrix: Float[Array, "n n"] = eqx.field(converter=lambda a: _matrix("matrix", a, square=True))

    @property
    def size(self):
        return self.matrix.shape[0]

    def prefix_values(self, order):
        factor = jnp.linalg.cholesky(self.matrix[order][:, order])
        return _cumulative(2 * jnp.log(jnp.diag(factor)))


class JointEntropy(AbstractSetFunction):
    """The entropy, in nats, of the rows of some columns of a table of integers: $H(X_S)$, or
    $H(X_S \\mid Y)$ if the rows have labels. Mutual information is their difference.

    **Arguments:**

    - `table`: shape `(rows, n)`, integers in $[0, c)$.
    - `levels`: $c$; static.
    - `labels`: $Y$, integers in $[0, c)$, shape `(rows,)`, or `None`.

    **Raises:** `TypeError` unless they are integers; `ValueError` for shapes, or numbers out of
    range.
    """

    table: Int[Array, "rows n"]
    levels: int = eqx.field(static=True)
    labels: Int[Array, " rows"] | None = None

    def __init__(self, table, levels, labels=None):
        self.table, self.levels = _matrix("table", table), levels
        self.labels = None if labels is None else jnp.asarray(labels)
        checks.count("levels", levels)
        for name, value in (("table", self.table), ("labels", self.labels)):
            if value is None:
                continue
            if not jnp.issubdtype(value.dtype, jnp.integer):
                raise TypeError(f"{name} must hold integers, got {value.dtype}")
            checks.interval(name, value, 0, levels, open_high=True)
        if self.labels is not None and self.labels.shape != self.table.shape[:1]:
            raise ValueError(f"labels {self.labels.shape} do not fit a table {self.table.shape}")

    @property
    def size(self):
        return self.table.shape[1]

    def prefix_values(self, order):
        rows = self.table.shape[0]

        def ranks(ids):
            """Ids from 0 without gaps, and the entropy of their law."""
            by = jnp.argsort(ids)
            new = jnp.diff(ids[by], prepend=ids[by][:1]) != 0
            ids = jnp.zeros_like(ids).at[by].set(jnp.cumsum(new, dtype=ids.dtype))
            share = jnp.bincount(ids, length=rows) / jnp.asarray(rows, jnp.result_type(float))
            return ids, -jnp.sum(
                jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0)
            )

        def visit(ids, column):
            return ranks(ids * self.levels + column)

        start = jnp.zeros(rows, jnp.int32) if self.labels is None else self.labels.astype(jnp.int32)
        start, empty = ranks(start)
        _, values = loops.scan(visit, start, self.table.T[order].astype(jnp.int32))
        return jnp.concatenate([empty[None], values])


class WeightedSum(AbstractSetFunction):
    """$\\sum_k c_k F_k$; submodular if all parts are and no $c_k$ is negative.

    **Arguments:**

    - `parts`: set functions of one size.
    - `weights`: $c$; ones if `None`.

    **Raises:** `ValueError` if sizes or lengths do not fit.
    """

    parts: tuple[AbstractSetFunction, ...]
    weights: tuple[Any, ...]

    def __init__(self, parts, weights=None):
        self.parts = tuple(parts)
        weights = (1.0,) * len(self.parts) if weights is None else weights
        self.weights = tuple(map(checks.scalar, weights))
        sizes = [part.size for part in self.parts]
        if len(set(sizes)) != 1 or len(self.weights) != len(sizes):
            raise ValueError(f"{len(self.weights)} weights for set functions of sizes {sizes}")

    @property
    def size(self):
        return self.parts[0].size

    def prefix_values(self, order):
        each = [c * f.prefix_values(order) for c, f in zip(self.weights, self.parts, strict=True)]
        return sum(each[1:], each[0])


class DifferenceOfSubmodular(AbstractSetFunction):
    """$F = G - H$, both submodular: any set function is one. That they are is not checked.

    **Arguments:**

    - `positive`, `negative`: $G$ and $H$.

    **Raises:** `TypeError` unless they are set functions, `ValueError` unless of one size.
    """

    positive: AbstractSetFunction
    negative: AbstractSetFunction

    def __check_init__(self):
        for name in ("positive", "negative"):
            checks.instance(name, getattr(self, name), AbstractSetFunction, "Cut(weights)")
        if self.positive.size != self.negative.size:
            sizes = self.positive.size, self.negative.size
            raise ValueError(f"set functions of sizes {sizes[0]} and {sizes[1]} have no difference")

    @property
    def size(self):
        return self.positive.size

    def prefix_values(self, order):
        return self.positive.prefix_values(order) - self.negative.prefix_values(order)


class SetSolution(eqx.Module):
    """What a minimizer of set functions returns.

    **Attributes:**

    - `mask`: the set.
    - `value`: $F(S) - F(\\emptyset)$.
    - `steps`: steps taken.
    - `status`: `Status.converged` where the method ended by itself, `step_limit`, or `nonfinite`.
    """

    mask: Mask
    value: Float[Array, ""]
    steps: Int[Array, ""]
    status: Status


def _solution(fun, mask, steps, ended):
    # What is not a number anywhere makes all comparisons void, and the value says so.
    known = jnp.all(jnp.isfinite(fun.prefix_values(jnp.arange(fun.size))))
    value = jnp.where(known, fun.value(mask), jnp.nan)
    status = Status.where(ended, Status.converged, Status.step_limit)
    status = Status.where(jnp.isfinite(value), status, Status.nonfinite)
    return SetSolution(mask, value, steps, status)


class AbstractLovaszProx(eqx.Module):
    """How the convex step is taken."""

    @abc.abstractmethod
    def __call__(self, fun: AbstractSetFunction, y: Vector, rho: Scalar) -> Vector:
        """The step to the minimizer of

        $$g_L(z) + \\frac\\rho2 \\|z\\|^2 - \\langle y, z\\rangle, \\qquad z \\in [0, 1]^n .$$
        """


class MinimumNormPoint(AbstractLovaszProx):
    """The point of least norm of the base polytope of $G - y$, by Wolfe's method: exact up to
    rounding.

    With that point $s$ the step is $z = \\mathrm{clip}(-s / \\rho, 0, 1)$, and for $\\rho = 0$ the
    mask of $s < 0$. It holds $n + 1$ vertices and solves a system of that size in each turn.
    Numbers closer than the third root of the precision become equal, so that ties are ties.

    **Arguments:**

    - `max_steps`: vertices that may be added.

    **Reference:** Fujishige, Isotani, A Submodular Function Minimization Algorithm Based on the
    Minimum-Norm Base, 2011. Wolfe, Finding the Nearest Point in a Polytope, 1976.
    """

    max_steps: int = eqx.field(static=True, default=1000)

    def __check_init__(self):
        checks.count("max_steps", self.max_steps)

    def point(self, fun: AbstractSetFunction, y: Vector) -> tuple[Vector, Int[Array, ""], Array]:
        """The point, steps taken, and whether it is known to be the nearest."""
        n = fun.size
        first = fun.greedy_vector(y) - y
        eps = jnp.finfo(first.dtype).eps
        scale = jnp.sum(first**2) + jnp.max(jnp.abs(first), initial=0) ** 2
        atoms = jnp.zeros((n + 2, n), first.dtype).at[0].set(first)
        weights = jnp.zeros(n + 2, first.dtype).at[0].set(1)

        def affine(used, atoms):
            """Weights of the nearest point of the affine hull of the atoms in use."""
            gram = jnp.where(used[:, None] & used, atoms @ atoms.T, 0)
            ridge = 8 * eps * (jnp.trace(gram) / jnp.maximum(jnp.sum(used), 1))
            gram = gram + jnp.diag(jnp.where(used, ridge, 1))
            alpha = jnp.linalg.solve(gram, used.astype(gram.dtype))
            return alpha / jnp.sum(alpha)

        def shrink(atoms, carry):
            """Towards the nearest point of the hull, as far as no weight is negative."""
            weights, used, _, turns = carry
            alpha = affine(used, atoms)
            bad = used & (alpha <= 8 * eps)
            ratio = jnp.maximum(weights / jnp.where(bad, weights - alpha, 1), 0)
            theta = jnp.min(jnp.where(bad, ratio, 1))
            again = jnp.any(bad)
            moved = jnp.where(again, weights + theta * (alpha - weights), alpha)
            used = used & ~(bad & (ratio <= theta))
            moved = jnp.where(used, jnp.maximum(moved, 0), 0)
            return moved / jnp.sum(moved), used, again, turns + 1

        def turn(carry):
            atoms, weights, steps, _, _ = carry
            x = weights @ atoms
            q = fun.greedy_vector(-x) - y
            gap = jnp.vdot(x, x - q)
            nearest = gap <= 64 * eps * scale
            used = weights > 0
            known = jnp.any(used & (jnp.max(jnp.abs(atoms - q), axis=1) == 0))
            slot = jnp.argmin(used)
            grown = atoms.at[slot].set(q)
            start = (weights, used.at[slot].set(True), jnp.asarray(True), jnp.asarray(0, jnp.int32))
            moved, *_ = loops.while_loop(
                lambda c: c[2] & (c[3] <= n + 2), lambda c: shrink(grown, c), start
            )
            stop = nearest | known | ~jnp.isfinite(gap)
            weights = jnp.where(stop, weights, moved)
            atoms = jnp.where(stop, atoms, grown)
            return atoms, weights, steps + 1, stop, nearest | known

        start = (atoms, weights, jnp.asarray(0, jnp.int32), jnp.asarray(False), jnp.asarray(False))
        running = lambda carry: ~carry[3] & (carry[2] < self.max_steps)
        atoms, weights, steps, _, nearest = loops.while_loop(running, turn, start)
        return weights @ atoms, steps, nearest

    def __call__(self, fun, y, rho):
        point, _, _ = self.point(fun, y)
        rho = jnp.asarray(rho, point.dtype)
        # Without curvature a best mask is among the level sets, told by values, not by signs: how
        # far from zero rounding puts an entry depends on the units of the function.
        mask, _ = DifferenceOfSubmodular(fun, Modular(y)).best_level_set(-point)
        z = jnp.clip(-point / jnp.where(rho > 0, rho, 1), 0, 1)
        grain = jnp.finfo(point.dtype).eps ** (1 / 3)
        return jnp.where(rho > 0, grain * jnp.round(z / grain), mask.astype(point.dtype))

    @eqx.filter_jit
    def minimize(self, fun: AbstractSetFunction) -> SetSolution:
        """The best level set of $-s$: a minimizer of a submodular function, and a guess for any
        other."""
        point, steps, nearest = self.point(
            fun, jnp.zeros_like(fun.gains_along(jnp.arange(fun.size)))
        )
        mask, _ = fun.best_level_set(-point)
        return _solution(fun, mask, steps, nearest)


class LovaszSubgradient(AbstractLovaszProx):
    """Projected subgradients on the cube: for $\\rho > 0$ with steps $2 / (\\rho (t + 1))$ and
    averages weighted by $t$, else with steps $\\sqrt n / (\\|s\\| \\sqrt t)$ and plain averages. It
    ends where the duality gap is below a tolerance.

    **Arguments:**

    - `max_steps`: steps at most.
    - `tol`: of the gap.
    """

    max_steps: int = eqx.field(static=True, default=1000)
    tol: Scalar = scalar_field(1e-6)

    def __check_init__(self):
        checks.count("max_steps", self.max_steps)
        checks.nonnegative("tol", self.tol)

    def __call__(self, fun, y, rho):
        rho = jnp.asarray(rho, y.dtype)
        safe = jnp.where(rho > 0, rho, 1)

        def visit(carry):
            z, mean, slope, total, t, _ = carry
            t = t + 1
            vertex = fun.greedy_vector(z)
            weight = jnp.where(rho > 0, t, 1.0).astype(y.dtype)
            total = total + weight
            mean = mean + weight / total * (z - mean)
            slope = slope + weight / total * (vertex - slope)
            s = vertex + rho * z - y
            norm = jnp.sqrt(jnp.sum(s**2))
            plain = jnp.sqrt(z.size / t) / jnp.where(norm > 0, norm, 1)
            z = jnp.clip(
                z - jnp.where(rho > 0, 2 / (safe * (t + 1)), plain).astype(y.dtype) * s, 0, 1
            )
            # The best of the cube for the linear bound that the averaged vertex makes.
            w = y - slope
            cut = jnp.clip(w / safe, 0, 1)
            dual = jnp.where(rho > 0, 0.5 * rho * cut**2 - w * cut, -jnp.maximum(w, 0))
            primal = fun.lovasz(mean) + 0.5 * rho * jnp.sum(mean**2) - jnp.vdot(y, mean)
            return z, mean, slope, total, t, primal - jnp.sum(dual)

        zero = jnp.zeros((), y.dtype)
        start = (
            jnp.full_like(y, 0.5),
            jnp.zeros_like(y),
            jnp.zeros_like(y),
            zero,
            zero,
            zero + jnp.inf,
        )
        running = lambda carry: (carry[-1] > self.tol) & (carry[4] < self.max_steps)
        return loops.while_loop(running, visit, start)[1]


class AbstractIterate(eqx.Module):
    """Which point the next linearization is made at."""

    @abc.abstractmethod
    def kept(self, x: Vector, mask: Mask) -> Vector:
        """What is kept of a convex step and its best level set."""

    def ahead(self, fun, x, before, t, history):
        """The point of the linearization, from this point and the one before; and $t^+$."""
        return x, t


class Fractional(AbstractIterate):
    """DCA: the point of the convex step."""

    def kept(self, x, mask):
        return x


class Rounded(AbstractIterate):
    """DCAR: the mask of its best level set."""

    def kept(self, x, mask):
        return mask.astype(x.dtype)


class Extrapolated(AbstractIterate):
    """ADCA: extrapolation, $z = x + \\frac{t - 1}{t^+} (x - x^-)$.

    Here $t^+ = \\frac{1 + \\sqrt{1 + 4 t^2}}2$; it is taken where $f_L(z)$ is at most the largest
    of the last 5 values."""

    def kept(self, x, mask):
        return x

    def ahead(self, fun, x, before, t, history):
        new = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        z = x + (t - 1) / new * (x - before)
        return jnp.where(fun.lovasz(z) <= jnp.max(history), z, x), new


class _State(eqx.Module):
    x: Vector
    before: Vector
    best: Mask
    value: Float[Array, ""]
    t: Float[Array, ""]
    history: Float[Array, " 5"]
    key: PRNGKeyArray
    steps: Int[Array, ""]
    done: Bool[Array, ""]


def _descend(fun, mask, tol, limit):
    """Single additions and removals while the best of them improves."""

    def visit(carry):
        mask, value, turns, _ = carry
        flips = fun.flips(mask)
        i = jnp.argmin(flips)
        better = flips[i] < value - tol
        mask = jnp.where(better, mask.at[i].set(~mask[i]), mask)
        return mask, jnp.where(better, flips[i], value), turns + 1, better

    start = (mask, fun.value(mask), jnp.asarray(0, jnp.int32), jnp.asarray(True))
    return loops.while_loop(lambda c: c[3] & (c[2] < limit), visit, start)[0]


class _AbstractDCA(eqx.Module):
    """What the two methods share."""

    rho: eqx.AbstractVar[Any]
    prox: eqx.AbstractVar[AbstractLovaszProx]
    iterate: eqx.AbstractVar[AbstractIterate]
    tol: eqx.AbstractVar[Any]
    max_steps: eqx.AbstractVar[int]

    def __check_init__(self):
        checks.nonnegative("rho", self.rho)
        checks.finite("rho", self.rho)
        checks.nonnegative("tol", self.tol)
        checks.count("max_steps", self.max_steps)
        checks.instance("prox", self.prox, AbstractLovaszProx, "MinimumNormPoint()")
        checks.instance("iterate", self.iterate, AbstractIterate, "Fractional()")

    def _refined(self, problem, x, y, new, rho):
        """The convex step of a subgradient at least as good as one given, whose own is `new`."""
        return new

    @eqx.filter_jit
    def __call__(
        self, problem: DifferenceOfSubmodular, key: PRNGKeyArray | None = None
    ) -> SetSolution:
        """Minimize, from the empty set.

        **Arguments:**

        - `problem`: $G - H$.
        - `key`: of the random order of ties; `jax.random.key(0)` if `None`.
        """
        checks.instance("problem", problem, DifferenceOfSubmodular, "DifferenceOfSubmodular(G, H)")
        G, H = problem.positive, problem.negative
        dtype = jnp.result_type(
            G.gains_along(jnp.arange(G.size)), H.gains_along(jnp.arange(G.size))
        )
        rho, tol = jnp.asarray(self.rho, dtype), jnp.asarray(self.tol, dtype)
        key = jax.random.key(0) if key is None else key

        def visit(state):
            now, key = jax.random.split(state.key)
            z, t = self.iterate.ahead(problem, state.x, state.before, state.t, state.history)
            ties = jnp.stack(
                [
                    jax.random.uniform(now, (G.size,), dtype),
                    H.marginals(state.best).astype(dtype),
                    problem.marginals(state.best).astype(dtype),
                ]
            )
            ys = jax.vmap(lambda tie: rho * z + H.greedy_vector(z, tie).astype(dtype))(ties)
            xs = jax.vmap(lambda y: self.prox(G, y, rho))(ys).astype(dtype)
            _, values = jax.vmap(problem.best_level_set)(xs, ties)
            k = jnp.argmin(values)
            x = self._refined(problem, z, ys[k], xs[k], rho).astype(dtype)
            mask, value = problem.best_level_set(x, ties[k])
            x = self.iterate.kept(x, mask)
            better = value < state.value
            best = jnp.where(better, mask, state.best)
            value = jnp.where(better, value, state.value).astype(dtype)
            level = problem.lovasz(x).astype(dtype)
            # Where it stalls, a single element may lead on.
            stalled = ~(level < state.history[-1] - tol)
            flips = problem.flips(best).astype(dtype)
            i = jnp.argmin(flips)
            jump = stalled & (flips[i] < value - tol)
            best = jnp.where(jump, best.at[i].set(~best[i]), best)
            value = jnp.where(jump, flips[i], value)
            x = jnp.where(jump, best.astype(dtype), x)
            before = jnp.where(jump, x, state.x)
            history = jnp.append(state.history[1:], jnp.where(jump, value, level))
            done = stalled & ~jump
            return _State(x, before, best, value, t, history, key, state.steps + 1, done)

        zero, empty = jnp.zeros(G.size, dtype), jnp.zeros(G.size, bool)
        start = _State(
            zero,
            zero,
            empty,
            jnp.zeros((), dtype),
            jnp.ones((), dtype),
            jnp.zeros(5, dtype),
            key,
            jnp.asarray(0, jnp.int32),
            jnp.asarray(False),
        )
        running = lambda state: ~state.done & (state.steps < self.max_steps)
        state = loops.while_loop(running, visit, start)
        mask = _descend(problem, state.best, tol, 10 * G.size)
        return _solution(problem, mask, state.steps, state.done)


class SubmodularDCA(_AbstractDCA):
    """Difference-of-convex programming on Lovász extensions: $\\min_S G(S) - H(S)$ as the minimum
    of $(g_L + \\frac\\rho2 \\|x\\|^2) - (h_L + \\frac\\rho2 \\|x\\|^2)$ over the cube $[0, 1]^n$,

    $$y \\in \\rho x + \\partial h_L(x), \\qquad
      x^+ = \\arg\\min_{z \\in [0, 1]^n} g_L(z) + \\tfrac\\rho2 \\|z\\|^2 - \\langle y, z\\rangle,$$

    each $x$ rounded to the best of its level sets. Equal entries of $x$ leave a choice of $y$,
    which decides the method: three orders of ties are tried in each step, a random one, by
    decreasing $H(i \\mid S - i)$, and by decreasing $F(i \\mid S - i)$, and the best kept. Where
    the value falls by no more than `tol`, the best single addition or removal is taken, if it
    improves; else it ends. What is returned is a minimum under these.

    **Arguments:**

    - `rho`: $\\rho \\ge 0$, the strength of the quadratic that both parts get.
    - `prox`: `MinimumNormPoint()` or `LovaszSubgradient()`.
    - `iterate`: `Fractional()`, `Rounded()` or `Extrapolated()`.
    - `tol`: see above.
    - `max_steps`: steps at most.

    **Raises:** `ValueError` unless $\\rho$ and `tol` are not negative; `TypeError` on anything but
    a `DifferenceOfSubmodular`.

    **Reference:** El Halabi, Orfanides, Hoheisel, Difference of Submodular Minimization via DC
    Programming, 2023, arXiv:2305.11046.
    """

    rho: Scalar = scalar_field(0.1)
    prox: AbstractLovaszProx = MinimumNormPoint()
    iterate: AbstractIterate = Fractional()
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = eqx.field(static=True, default=30)


class SubmodularCDCA(_AbstractDCA):
    """The complete form of `SubmodularDCA`, which chooses its subgradient: $y$ minimizes

    $$\\langle y, x\\rangle - \\max_{z \\in [0, 1]^n}
      \\langle y, z\\rangle - g_L(z) - \\tfrac\\rho2 \\|z\\|^2$$

    over $\\rho x + \\partial h_L(x)$. That is a concave problem; Frank-Wolfe steps from the best of
    the three orders find a stationary point, each with a convex step and a greedy vector with ties
    by the gradient. It is stationary in a stronger sense, and about `inner_steps` times as slow.

    **Arguments:**

    - `inner_steps`: Frank-Wolfe steps at most; they end at a gap of 1e-6.
    - all others: see `SubmodularDCA`.

    **Reference:** El Halabi, Orfanides, Hoheisel, Difference of Submodular Minimization via DC
    Programming, 2023, arXiv:2305.11046.
    """

    rho: Scalar = scalar_field(0.1)
    prox: AbstractLovaszProx = MinimumNormPoint()
    iterate: AbstractIterate = Fractional()
    inner_steps: int = eqx.field(static=True, default=10)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = eqx.field(static=True, default=30)

    def __check_init__(self):
        checks.count("inner_steps", self.inner_steps)

    def _refined(self, problem, x, y, new, rho):
        def visit(carry):
            y, new, t, _ = carry
            gradient = x - new
            v = rho * x + problem.negative.greedy_vector(x, -gradient).astype(x.dtype)
            gap = jnp.vdot(gradient, y - v)
            go = gap > 1e-6
            share = (2 / (t + 1)).astype(x.dtype)
            y = jnp.where(go, y + share * (v - y), y)
            return y, self.prox(problem.positive, y, rho).astype(x.dtype), t + 1, go

        start = (y, new, jnp.ones((), x.dtype), jnp.asarray(True))
        running = lambda carry: carry[3] & (carry[2] <= self.inner_steps)
        return loops.while_loop(running, visit, start)[1]


class _AbstractBounds(eqx.Module):
    """Methods that move to the best of some sets while it improves."""

    max_steps: eqx.AbstractVar[int]

    def __check_init__(self):
        checks.count("max_steps", self.max_steps)

    @abc.abstractmethod
    def _candidates(self, problem, mask, key) -> Bool[Array, "k n"]:
        """Sets to look at."""

    @eqx.filter_jit
    def __call__(
        self, problem: DifferenceOfSubmodular, key: PRNGKeyArray | None = None
    ) -> SetSolution:
        """Minimize, from the empty set; see `SubmodularDCA`."""
        checks.instance("problem", problem, DifferenceOfSubmodular, "DifferenceOfSubmodular(G, H)")
        key = jax.random.key(0) if key is None else key
        empty = jnp.zeros(problem.size, bool)

        def visit(carry):
            mask, value, key, steps, _ = carry
            now, key = jax.random.split(key)
            masks = self._candidates(problem, mask, now)
            values = jax.vmap(problem.value)(masks)
            k = jnp.argmin(values)
            better = values[k] < value - 1e-6
            mask = jnp.where(better, masks[k], mask)
            return mask, jnp.where(better, values[k], value), key, steps + 1, better

        start = (empty, problem.value(empty), key, jnp.asarray(0, jnp.int32), jnp.asarray(True))
        running = lambda carry: carry[4] & (carry[3] < self.max_steps)
        mask, _, _, steps, moving = loops.while_loop(running, visit, start)
        return _solution(problem, mask, steps, ~moving)


def _orders(problem, mask, key):
    """Greedy vectors of $H$ along orders that begin with the set: modular bounds from below that
    are exact there."""
    H, x = problem.negative, mask.astype(jnp.result_type(float))
    ties = (jax.random.uniform(key, x.shape), H.marginals(mask), problem.marginals(mask))
    return jnp.stack([H.greedy_vector(x, tie) for tie in ties])


def _upper_bounds(fun, mask):
    """Weights of two modular functions, up to constants, that bound a submodular one from above
    and are exact at the set."""
    nothing, everything = jnp.zeros(fun.size, bool), jnp.ones(fun.size, bool)
    here = fun.marginals(mask)
    first = jnp.where(mask, here, fun.marginals(nothing))
    return jnp.stack([first, jnp.where(mask, fun.marginals(everything), here)])


class ModMod(_AbstractBounds):
    """A modular bound of $G$ from above and one of $H$ from below, both exact at the set, whose
    difference is minimized by signs: the best of two times three in each step.

    **Arguments:**

    - `max_steps`: steps at most.

    **Reference:** Iyer, Bilmes, Algorithms for Approximate Minimization of the Difference Between
    Submodular Functions, with Applications, 2012, arXiv:1207.0560.
    """

    max_steps: int = eqx.field(static=True, default=30)

    def _candidates(self, problem, mask, key):
        uppers = _upper_bounds(problem.positive, mask)
        lowers = _orders(problem, mask, key)
        return (uppers[:, None] - lowers < 0).reshape(-1, problem.size)


class SubSup(_AbstractBounds):
    """A modular bound of $H$ from below, and $G$ minus that minimized exactly: `SubmodularDCA` with
    $\\rho = 0$ on sets.

    **Arguments:**

    - `max_steps`: steps at most.

    **Reference:** Narasimhan, Bilmes, A Submodular-Supermodular Procedure with Applications to
    Discriminative Structure Learning, 2005, arXiv:1207.1404.
    """

    max_steps: int = eqx.field(static=True, default=30)

    def _candidates(self, problem, mask, key):
        lowers = _orders(problem, mask, key)
        exact = MinimumNormPoint()
        return jax.vmap(lambda y: exact(problem.positive, y, 0.0) > 0.5)(lowers)


class SupSub(_AbstractBounds):
    """A modular bound of $G$ from above; $H$ minus that is submodular, and maximized by the double
    greedy method.

    **Arguments:**

    - `max_steps`: steps at most.

    **Reference:** Iyer, Bilmes, Algorithms for Approximate Minimization of the Difference Between
    Submodular Functions, with Applications, 2012, arXiv:1207.0560. Buchbinder, Feldman, Naor,
    Schwartz, A Tight Linear Time (1/2)-Approximation for Unconstrained Submodular Maximization,
    2012.
    """

    max_steps: int = eqx.field(static=True, default=30)

    def _candidates(self, problem, mask, key):
        def double_greedy(upper):
            fun = DifferenceOfSubmodular(problem.negative, Modular(upper))

            def visit(i, carry):
                low, high = carry
                more, less = low.at[i].set(True), high.at[i].set(False)
                add = fun.value(more) - fun.value(low) >= fun.value(less) - fun.value(high)
                return jnp.where(add, more, low), jnp.where(add, high, less)

            start = jnp.zeros(problem.size, bool), jnp.ones(problem.size, bool)
            return loops.fori_loop(0, problem.size, visit, start)[0]

        return jax.vmap(double_greedy)(_upper_bounds(problem.positive, mask))


class GreedySet(_AbstractBounds):
    """The best single addition while it improves.

    **Arguments:**

    - `max_steps`: additions at most.

    **Reference:** Nemhauser, Wolsey, Fisher, An Analysis of Approximations for Maximizing
    Submodular Set Functions, 1978.
    """

    max_steps: int = eqx.field(static=True, default=1000)

    def _candidates(self, problem, mask, key):
        return mask[None] | jnp.eye(problem.size, dtype=bool)


__all__ = [
    "AbstractIterate",
    "AbstractLovaszProx",
    "AbstractSetFunction",
    "ConcaveOfModular",
    "Coverage",
    "Cut",
    "DifferenceOfSubmodular",
    "Extrapolated",
    "FacilityLocation",
    "Fractional",
    "GreedySet",
    "JointEntropy",
    "LogDet",
    "LovaszSubgradient",
    "MinimumNormPoint",
    "ModMod",
    "Modular",
    "Rounded",
    "SetSolution",
    "SubSup",
    "SubmodularCDCA",
    "SubmodularDCA",
    "SupSub",
    "WeightedSum",
]
