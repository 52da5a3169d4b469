"""Products of long matrices from few of their rows, by Monte Carlo and multilevel Monte Carlo."""

import abc
import functools
import itertools
import math
import operator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..core import checks
from .precision import highest
from .units import norm, unit

Matrix = Float[Array, "n *p"]


class Draw(NamedTuple):
    """Rows that were drawn, and how likely each was."""

    rows: Int[Array, " N"]
    probabilities: Float[Array, " N"]


class AbstractRowSampler(eqx.Module):
    """How rows of a block are drawn, with replacement."""

    @abc.abstractmethod
    def draw(
        self, key: Array, A: Matrix, B: Matrix, block: Int[Array, " m"] | range, num_rows: int
    ) -> Draw:
        """`num_rows` of the rows in `block`."""


class UniformRows(AbstractRowSampler):
    """All rows of a block are as likely.

    **Reference:** Drineas, Kannan, Mahoney, Fast Monte Carlo Algorithms for Matrices I, 2006.
    """

    def draw(self, key, A, B, block, num_rows):
        del B
        size = len(block)
        places = jax.random.randint(key, (num_rows,), 0, size)
        dtype = _wide(A)
        return Draw(_at(block, places), jnp.full(num_rows, 1 / size, dtype))


class ImportanceRows(AbstractRowSampler):
    r"""Rows of a block in proportion to $\|a_i\| \|b_i\|$, which has the least variance and costs a
    pass over the block. A block of zeros is drawn from uniformly.

    Probabilities are constants to derivatives: the derivative of an estimate is an unbiased
    estimate of the product's.

    **Reference:** Drineas, Kannan, Mahoney, Fast Monte Carlo Algorithms for Matrices I, 2006.
    """

    def draw(self, key, A, B, block, num_rows):
        everything = _at(block, np.arange(len(block)))
        weights = jax.lax.stop_gradient(
            _shares(_gather(A, everything)) * _shares(_gather(B, everything))
        )
        # A sum of zero would be divided by; a NaN has to stay one.
        weights = jnp.where(jnp.sum(weights) == 0, 1, weights)
        sums = jnp.cumsum(weights)
        levels = jax.random.uniform(key, (num_rows,), weights.dtype) * sums[-1]
        places = jnp.minimum(jnp.searchsorted(sums, levels, side="right"), len(block) - 1)
        return Draw(_at(block, places), weights[places] / sums[-1])


_UNIFORM = UniformRows()


def uniform_product(key: Array, A: Matrix, B: Matrix, num_rows: int) -> Float[Array, "*pq"]:
    r"""$\frac{n}{N} \sum_{j} a_{i_j} b_{i_j}^\top$, an unbiased estimate of $A^\top B$ from $N$
    rows drawn uniformly.

    Works under `jit`, `vmap`, in `shard_map`; for a fixed key differentiable in `A` and `B`.

    **Arguments:**

    - `key`: of the draw.
    - `A`, `B`: shapes `(n, p)` and `(n, q)`, or `(n,)` for vectors. Of `numpy` arrays, memory maps
      say, only the rows drawn are read, outside of `jit`.
    - `num_rows`: $N \ge 1$; static.

    **Returns:** shape `(p, q)`, less the axes of vectors.

    **Raises:** `ValueError` if lengths differ, are 0, or the arrays are no vectors or matrices;
    `TypeError` if they are not floating-point.

    **Reference:** Drineas, Kannan, Mahoney, Fast Monte Carlo Algorithms for Matrices I, 2006.
    """
    return _one_level(key, A, B, num_rows, UniformRows())


def importance_product(key: Array, A: Matrix, B: Matrix, num_rows: int) -> Float[Array, "*pq"]:
    r"""$\frac1N \sum_j a_{i_j} b_{i_j}^\top / p_{i_j}$ with $p_i \propto \|a_i\| \|b_i\|$: an
    unbiased estimate of $A^\top B$ of the least variance, after a pass over all norms.

    **Arguments:**

    - `key`, `A`, `B`, `num_rows`: as for `uniform_product`; all rows are read.

    **Raises:** as `uniform_product`.

    **Reference:** Drineas, Kannan, Mahoney, Fast Monte Carlo Algorithms for Matrices I, 2006.
    """
    return _one_level(key, A, B, num_rows, ImportanceRows())


def _one_level(key, A, B, num_rows, sampler):
    checks.count("num_rows", num_rows)
    n = _length(A, B)
    return MultilevelProduct((n,), sampler).estimate(key, A, B, (num_rows,)).value


def doubling_sizes(n: int, first: int = 16) -> tuple[int, ...]:
    """`first`, twice that, and so on; the last is `n`.

    **Raises:** `ValueError` or `TypeError` unless both are integers from 1.
    """
    checks.count("n", n)
    checks.count("first", first)
    sizes = [min(first, n)]
    while sizes[-1] < n:
        sizes.append(min(2 * sizes[-1], n))
    return tuple(sizes)


def energy_order(
    key: Array, A: Matrix, B: Matrix, num_chunks: int, rows_per_chunk: int = 4
) -> Int[Array, " n"]:
    r"""An order of the rows in which those of large $\|a_i\| \|b_i\|$ tend to come first: chunks of
    neighbours are sorted by a few rows of each.

    **Arguments:**

    - `key`: of the rows that are looked at.
    - `A`, `B`: as for `uniform_product`.
    - `num_chunks`: at most $n$. `rows_per_chunk`: from 1.

    **Raises:** as `uniform_product`, and `ValueError` for more chunks than rows.
    """
    n = _length(A, B)
    checks.count("num_chunks", num_chunks)
    checks.count("rows_per_chunk", rows_per_chunk)
    if num_chunks > n:
        raise ValueError(f"num_chunks must be at most the {n} rows, got {num_chunks}")
    edges = np.linspace(0, n, num_chunks + 1).astype(int)
    shares = jax.random.uniform(key, (num_chunks, rows_per_chunk))
    rows = jnp.minimum(
        edges[:-1, None] + (shares * np.diff(edges)[:, None]).astype(int), edges[1:, None] - 1
    )
    sizes = _shares(_gather(A, rows.ravel())) * _shares(_gather(B, rows.ravel()))
    energy = jnp.mean(sizes.reshape(num_chunks, -1), axis=1)
    rank = jnp.argsort(jnp.argsort(-energy))
    return jnp.argsort(jnp.repeat(rank, np.diff(edges), total_repeat_length=n), stable=True)


class Pilot(NamedTuple):
    """What a few rows say of each level.

    - `variances`: $V_l$, of an estimate from one row, summed over the entries.
    - `sizes`: Frobenius norms of the levels' contributions.
    - `rows_touched`: how many rows it took.
    """

    variances: Float[Array, " levels"]
    sizes: Float[Array, " levels"]
    rows_touched: int


class Estimate(NamedTuple):
    """An estimate of a product.

    - `value`: shape `(p, q)`, less the axes of vectors.
    - `variance`: an estimate of its variance, summed over the entries; of a level with one row the
      second moment stands in, which is larger.
    - `rows_touched`: with repetitions; of importance sampling what was drawn, not what was looked
      at. A number, or a traced one if the allocation is traced.
    """

    value: Float[Array, "*pq"]
    variance: Float[Array, ""]
    rows_touched: int | Int[Array, ""]


class MultilevelProduct(eqx.Module):
    r"""$A^\top B = P_L$ as a telescoping sum, with $P_l$ the sum over the first $M_l$ rows,

    $$P_L = P_0 + \sum_{l=1}^L (P_l - P_{l-1}), \qquad
      P_l - P_{l-1} \approx \frac{1}{N_l} \sum_{j=1}^{N_l} \frac{a_{i_j} b_{i_j}^\top}{p_{i_j}},$$

    each difference from rows of its own block $M_{l-1} \le i < M_l$, with replacement. Unbiased
    for all $N_l \ge 1$, with variance $\sum_l V_l / N_l$. It beats uniform sampling where the rows
    decay along the order, and only there: where they do not, no split of the rows helps.

    ```python
    product = MultilevelProduct(doubling_sizes(len(A)))
    allocation = product.allocate(product.pilot(key, A, B), budget=1000)
    estimate = product.estimate(another_key, A, B, allocation)
    ```

    `pilot` and `estimate` work under `jit`, `vmap`, in `shard_map`; `allocate` is for the host.
    With a `capacity` the allocation is an argument of the compiled program, which then serves all.

    **Arguments:**

    - `levels`: $M_0 < \dots < M_L = n$; static. `doubling_sizes` makes them.
    - `within`: `UniformRows` or `ImportanceRows`.
    - `order`: the rows in the order in which they are counted, such as of `energy_order`; `None`
      for their own.

    **Raises:** `ValueError` if `levels` do not grow from 1, or do not end with the number of rows.

    **Reference:** Wu, Polydorides, A Multilevel Monte Carlo Estimator for Matrix Multiplication,
    2019, arXiv:1904.00429.
    """

    levels: tuple[int, ...] = eqx.field(static=True)
    within: AbstractRowSampler = _UNIFORM
    order: Int[Array, " n"] | None = None

    def __check_init__(self):
        if not isinstance(self.levels, tuple) or not self.levels:
            raise TypeError(f"levels must be a tuple of integers, got {self.levels!r}")
        for size in self.levels:
            checks.count("levels", size)
        if any(low >= high for low, high in itertools.pairwise(self.levels)):
            raise ValueError(f"levels must grow, got {self.levels}")
        checks.instance("within", self.within, AbstractRowSampler, "UniformRows()")
        if self.order is not None and self.order.shape != (self.levels[-1],):
            raise ValueError(f"order has shape {self.order.shape} for {self.levels[-1]} rows")

    @highest
    def pilot(self, key: Array, A: Matrix, B: Matrix, num_rows: int = 10) -> Pilot:
        """A look at `num_rows` rows of each level. An estimate from the same rows would be biased
        by the allocation; `estimate` draws anew.

        **Raises:** `ValueError` for fewer than two rows; and as `estimate`.
        """
        checks.count("num_rows", num_rows, 2)
        parts = self._parts(key, A, B, (num_rows,) * len(self.levels))
        means, variances = zip(*(part for part in parts if part is not None), strict=True)
        sizes = jnp.stack([jnp.sqrt(jnp.sum(mean**2)) for mean in means])
        return Pilot(num_rows * jnp.stack(variances), sizes, num_rows * len(self.levels))

    def allocate(
        self,
        pilot: Pilot,
        *,
        variance: float | None = None,
        budget: int | None = None,
        costs: tuple[float, ...] | None = None,
        truncate: bool = False,
    ) -> tuple[int, ...]:
        r"""Rows of each level, on the host.

        For a target $e^2$, $N_l = \lceil e^{-2} \sqrt{V_l / C_l} \sum_m \sqrt{V_m C_m} \rceil$; for
        a budget, in proportion to $\sqrt{V_l / C_l}$. One at least of each level.

        **Arguments:**

        - `pilot`: of `pilot`.
        - `variance`: $e^2$, summed over the entries. `budget`: the total cost. One of the two.
        - `costs`: $C_l$ of a row of each level; `None` for 1.
        - `truncate`: with a `variance`, half of it is left for a bias: while the last two levels
          have less than $e / \sqrt 2$ to give, the last is left out, with no rows.

        **Raises:** `ValueError` unless one of the two is given, for one that is not positive, a
        budget below one row a level, costs that do not fit, or a pilot that is not finite.
        """
        V, sizes = np.asarray(pilot.variances, float), np.asarray(pilot.sizes, float)
        checks.finite("the pilot's variances", V)
        C = np.ones(len(V)) if costs is None else np.asarray(costs, float)
        if C.shape != V.shape:
            raise ValueError(f"expected {len(V)} costs, got {costs}")
        checks.positive("costs", C)
        if (variance is None) == (budget is None):
            raise ValueError("give either a variance or a budget")
        if variance is None:
            assert budget is not None
            if not np.sum(C) <= budget:
                raise ValueError(f"one row of each level costs {np.sum(C):g}, got budget {budget}")
            share = np.sqrt(V / C)
            share = share if np.any(share) else np.ones(len(V))
            rest = budget - np.sum(C)
            return tuple(int(N) for N in 1 + np.floor(rest * share / np.sum(share * C)))
        checks.positive("variance", variance)
        kept = len(V)
        if truncate:
            while kept > 2 and np.sum(sizes[kept - 2 : kept]) < math.sqrt(variance / 2):
                kept -= 1
            variance = variance / 2
        V, C = V[:kept], C[:kept]
        rows = np.sqrt(V / C) * np.sum(np.sqrt(V * C)) / variance
        counts = [max(1, math.ceil(N)) for N in rows]
        return (*counts, *[0] * (len(sizes) - kept))

    @highest
    def estimate(
        self,
        key: Array,
        A: Matrix,
        B: Matrix,
        allocation: tuple[int, ...] | Int[Array, " levels"],
        capacity: tuple[int, ...] | None = None,
    ) -> Estimate:
        """The estimate from so many rows of each level; a level with none is left out, which
        biases it.

        **Arguments:**

        - `key`: of the draw.
        - `A`, `B`: shapes `(n, p)` and `(n, q)`, or `(n,)`; memory maps as for `uniform_product`.
        - `allocation`: $N_l$; static, unless there is a `capacity`. Then it may be traced, and if
          it is, numbers below zero or beyond the capacity give NaN.
        - `capacity`: the most rows of each level, static; so many are drawn, and the first $N_l$
          count. `None` for those of the allocation.

        **Raises:** as `uniform_product`, and `ValueError` if levels, rows, capacity and allocation
        do not fit each other; `TypeError` for an allocation that is traced without a capacity, or
        of other numbers than integers.
        """
        if capacity is None:
            if checks.is_traced(allocation):
                raise TypeError("a traced allocation needs a capacity, the most rows of each level")
            counts = capacity = tuple(np.asarray(allocation).tolist())
        else:
            counts = _counts(allocation, capacity)
        if len(capacity) != len(self.levels) or not any(capacity):
            raise ValueError(f"expected {len(self.levels)} numbers of rows, got {capacity}")
        for number in capacity:
            checks.count("allocation", number, 0)
        parts = [p for p in self._parts(key, A, B, capacity, counts) if p is not None]
        value = functools.reduce(operator.add, [mean for mean, _ in parts])
        variance = functools.reduce(operator.add, [variance for _, variance in parts])
        dtype = jnp.result_type(A, B)
        shape = (*A.shape[1:], *B.shape[1:])
        value, variance = value.reshape(shape).astype(dtype), variance.astype(dtype)
        if isinstance(counts, tuple):
            return Estimate(value, variance, sum(counts))
        fits = jnp.all((counts >= 0) & (counts <= np.asarray(capacity)))
        value, variance = (jnp.where(fits, x, jnp.nan) for x in (value, variance))
        return Estimate(value, variance, jnp.sum(counts))

    def _parts(self, key, A, B, capacity, counts=None):
        """Mean and variance of each level, from the first `counts` of so many rows; `None` for one
        without rows."""
        n = _length(A, B)
        if self.levels[-1] != n:
            raise ValueError(f"the last level has {self.levels[-1]} rows of {n}")
        keys = jax.random.split(key, len(capacity))
        counts = capacity if counts is None else counts
        starts = (0, *self.levels)
        for i, (low, high) in enumerate(zip(starts, self.levels, strict=False)):
            if not capacity[i]:
                yield None
                continue
            block = range(low, high) if self.order is None else self.order[low:high]
            drawn = self.within.draw(keys[i], A, B, block, capacity[i])
            a, b = _gather(A, drawn.rows), _gather(B, drawn.rows)
            yield _moments(a, b, drawn.probabilities, counts[i])


def _moments(a, b, probabilities, count):
    """Mean of $a_i b_i' / p_i$ over the first rows, as many as `count`, and the variance of that
    mean summed over the entries."""
    number = len(probabilities)
    a = a.reshape(number, -1)
    b = b.reshape(number, -1)
    if isinstance(count, int):
        weights = 1 / (count * probabilities)
    else:
        rate = jnp.maximum(count, 1).astype(probabilities.dtype) * probabilities
        weights = jnp.where(jnp.arange(number) < count, 1 / rate, 0)
    mean = (weights[:, None] * a).T @ b
    second = jnp.sum((_lengths(a) * _lengths(b) * weights) ** 2)
    several = jnp.maximum(count, 2).astype(second.dtype)
    spread = jnp.maximum(second - jnp.sum(mean**2) / several, 0) * several / (several - 1)
    return mean, jnp.where(count > 1, spread, second)  # of one row the second moment stands in


def _counts(allocation, capacity):
    """Rows of each level that are not static, within what there is room for."""
    counts = jnp.asarray(allocation)
    if not jnp.issubdtype(counts.dtype, jnp.integer):
        raise TypeError(f"an allocation must be of integers, got {counts.dtype}")
    if counts.shape != (len(capacity),):
        raise ValueError(f"expected {len(capacity)} numbers of rows, got shape {counts.shape}")
    if not checks.is_traced(counts):
        for number, most in zip(counts.tolist(), capacity, strict=True):
            if not 0 <= number <= most:
                raise ValueError(f"a level has room for {most} rows, got {number}")
    return counts


def _length(A, B):
    for name, x in (("A", A), ("B", B)):
        if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
            kind = getattr(x, "dtype", type(x).__name__)
            raise TypeError(f"{name} must be a real floating-point array, got {kind}")
        if x.ndim not in (1, 2):
            raise ValueError(f"{name} must be a vector or a matrix, got shape {x.shape}")
    if len(A) != len(B) or not len(A):
        raise ValueError(f"expected as many rows, one at least, got {A.shape} and {B.shape}")
    return len(A)


def _wide(*arrays):
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def _at(block, places):
    return places + block.start if isinstance(block, range) else block[places]


def _gather(x, rows):
    """Rows, in single precision at least; of what is in no device's memory only those are read."""
    if isinstance(x, np.ndarray) and not checks.is_traced(rows):
        x = jnp.asarray(x[np.asarray(rows)])
    else:
        x = jnp.asarray(x)[rows]
    return x.astype(_wide(x))


def _lengths(x):
    return norm(x.reshape(len(x), -1), 1)


def _shares(x):
    """Lengths of rows, in a unit of their own."""
    lengths = _lengths(x)
    return lengths / unit(lengths)
