"""Linear algebra over the rationals for small matrices of integers, on the host.

Whether a lost product can be recovered is a question of rank, and a rank is an integer: nothing
here rounds.
"""

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np


def reduced(matrix: np.ndarray) -> tuple[list[list[Fraction]], list[int]]:
    """The reduced row echelon form of a matrix, its zero rows left out, and its pivot columns."""
    rows = [[Fraction(int(entry)) for entry in row] for row in matrix]
    pivots, done = [], 0
    for column in range(matrix.shape[1]):
        found = next((i for i in range(done, len(rows)) if rows[i][column]), None)
        if found is None:
            continue
        rows[done], rows[found] = rows[found], rows[done]
        pivot = rows[done][column]
        rows[done] = [entry / pivot for entry in rows[done]]
        for i, row in enumerate(rows):
            if i != done and row[column]:
                factor = row[column]
                rows[i] = [a - factor * b for a, b in zip(row, rows[done], strict=True)]
        pivots.append(column)
        done += 1
    return rows[:done], pivots


def rank(matrix: np.ndarray) -> int:
    """The rank of a matrix of integers."""
    return len(reduced(matrix)[1])


def null_space(matrix: np.ndarray) -> np.ndarray:
    """A basis of $\\{x : M x = 0\\}$ in rows of integers without common factor.

    **Arguments:**

    - `matrix`: $M$, integers, shape `(m, n)`.

    **Returns:** shape `(n - rank, n)`.
    """
    rows, pivots = reduced(matrix)
    n = matrix.shape[1]
    basis = []
    for free in sorted(set(range(n)) - set(pivots)):
        vector = [Fraction(0)] * n
        vector[free] = Fraction(1)
        for row, pivot in zip(rows, pivots, strict=True):
            vector[pivot] = -row[free]
        basis.append(_integers(vector)[0])
    return np.array(basis, np.int64).reshape(len(basis), n)


def combinations(rows: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Integers $c$ and $s > 0$ with $c\\, \\mathrm{rows} = \\mathrm{diag}(s)\\, \\mathrm{targets}$.

    **Arguments:**

    - `rows`: shape `(n, d)`. `targets`: shape `(t, d)`.

    **Returns:** shapes `(t, n)` and `(t,)`; `None` if a target is no combination of the rows.
    """
    n = len(rows)
    echelon, pivots = reduced(np.concatenate([rows, targets]).T)
    if any(pivot >= n for pivot in pivots):
        return None
    coefficients, scales = [], []
    for k in range(n, n + len(targets)):
        vector = [Fraction(0)] * n
        for row, pivot in zip(echelon, pivots, strict=True):
            vector[pivot] = row[k]
        integers, scale = _integers(vector)
        coefficients.append(integers)
        scales.append(scale)
    return np.array(coefficients, np.int64), np.array(scales, np.int64)


def _integers(vector: list[Fraction]) -> tuple[list[int], int]:
    """The vector times the least common multiple of its denominators, and that multiple."""
    scale = math.lcm(*(entry.denominator for entry in vector))
    return [int(entry * scale) for entry in vector], scale


def in_row_space(columns: np.ndarray, basis: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """For many sets of columns, whether all the vectors, cut to the columns of the set, are
    combinations of the basis, cut to the same.

    Gauss's elimination without fractions, Bareiss's: what it has to divide by divides exactly, and
    its entries are minors of the matrices, of which Hadamard's bound says that they are integers
    that floating-point numbers hold exactly.

    **Arguments:**

    - `columns`: the sets, booleans, shape `(sets, n)`.
    - `basis`: integers, shape `(r, n)`. `vectors`: integers, shape `(t, n)`.

    **Returns:** booleans, shape `(sets,)`.

    **Raises:** `OverflowError` if the entries may be too large for that.
    """
    r = len(basis)
    whole = np.concatenate([basis, vectors])
    norms = np.sqrt((whole.astype(float) ** 2).sum(1))
    bound = np.prod(np.maximum(norms[:r], 1)) * max(1, norms[r:].max(initial=0))
    if 2 * bound**2 >= 2.0**53:
        raise OverflowError(f"minors up to {bound:g} do not fit")
    work = np.where(columns[:, None], whole, 0).astype(float)
    sets, previous = np.arange(len(columns)), np.ones(len(columns))
    for i in range(r):
        place = np.argmax(work[:, i] != 0, axis=1)
        pivot = work[sets, i, place]
        later = work[:, i + 1 :]
        factor = np.take_along_axis(later, place[:, None, None], axis=2)
        stepped = pivot[:, None, None] * later - factor * work[:, i, None]
        some = pivot != 0
        divided = stepped / previous[:, None, None]
        work[:, i + 1 :] = np.where(some[:, None, None], divided, later)
        previous = np.where(some, pivot, previous)
    return np.logical_not(np.any(work[:, r:], axis=(1, 2)))


def vanishing(rows: np.ndarray, limit: int = 1) -> np.ndarray:
    """All combinations of the rows with coefficients in $\\{-l, \\dots, l\\}$ that vanish, up to
    sign and without the empty one; those of the first half are looked up for each of the second.

    **Arguments:**

    - `rows`: integers, shape `(n, d)`. `limit`: $l$.

    **Returns:** integers, shape `(found, n)`.
    """
    half = len(rows) // 2

    def sums(part: np.ndarray) -> Iterator[tuple[tuple[int, ...], bytes]]:
        choices = range(-limit, limit + 1)
        coefficients = np.array(list(itertools.product(choices, repeat=len(part))), np.int64)
        for c, total in zip(coefficients, coefficients @ part, strict=True):
            yield tuple(map(int, c)), total.tobytes()

    first: dict[bytes, list[tuple[int, ...]]] = {}
    for c, total in sums(rows[:half]):
        first.setdefault(total, []).append(c)
    found = [a + b for b, total in sums(-rows[half:]) for a in first.get(total, [])]
    # Of a combination and its negative the one whose first entry that is not zero is positive.
    found = [c for c in found if next((x for x in c if x), -1) > 0]
    return np.array(sorted(found, key=lambda c: (np.count_nonzero(c), c)), np.int64).reshape(
        len(found), len(rows)
    )
