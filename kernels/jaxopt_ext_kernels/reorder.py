"""Orders of rows in which a sparse matrix has few blocks."""

import dataclasses
from typing import Literal

import numpy as np

from .formats import CSR, known_places

_WINDOW = 4096
_MANY = 50_000
_SEARCHED = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class RowOrder:
    """An order of rows, as `BCSR.from_csr` takes it.

    **Attributes:**

    - `order`: the row that stands at each place, shape `(m,)`.
    - `num_blocks_before`, `num_blocks_after`: blocks with an entry in the matrix's own order and in
      this one.
    """

    order: np.ndarray
    num_blocks_before: int
    num_blocks_after: int


def reorder_rows(
    matrix: CSR,
    block: tuple[int, int],
    tau: float = 0.6,
    max_height: int | None = None,
    similarity: Literal["jaccard", "hamming"] = "jaccard",
    pattern: Literal["union", "seed"] = "union",
) -> RowOrder:
    """Bring rows together that touch the same blocks, in one pass over them.

    A row's set $Q$ are the block columns that it has entries in. The first row that is in no
    cluster begins one, with $P = Q$; the rows after it join, in their order, if their distance is
    at most $\\tau$,
    $$d_J = 1 - |P \\cap Q| / |P \\cup Q| \\quad\\text{or}\\quad
      d_H = (|P \\setminus Q| + |Q \\setminus P|) / \\text{block columns},$$
    and $P$ grows to $P \\cup Q$, until the cluster has `max_height` rows. If fewer have joined, it
    is filled with those of least distance among the refused. Full clusters stand first, what is
    left after them, rows without entries last. If that needs no fewer blocks than the matrix's own
    order, that is returned: banded matrices are best as they are.

    It runs on the host, once. The time grows with the square of the number of rows; above 50,000
    they are first sorted by eight min-hashes of their sets and clustered in windows of 4096.

    **Arguments:**

    - `matrix`: shape `(m, n)`, with known places; values do not matter.
    - `block`: rows and columns of the blocks to be cut.
    - `tau`: the largest distance that joins; the paper sweeps 0.1 to 0.9.
    - `max_height`: rows of a cluster; `None` for those of a block.
    - `similarity`: Jaccard's distance, or Hamming's, which needs a far smaller `tau`.
    - `pattern`: the cluster's set, the `"union"` of its rows' or that of its `"seed"`.

    For an order of the columns, `reorder_rows(matrix.T, block[::-1])`.

    **Raises:** `ValueError` if `tau` is outside of [0, 1], the block or height is empty, or a name
    is unknown; `TypeError` if `matrix` is no `CSR` or its places are traced.

    **Reference:** Okanovic, Kwasniewski, Sylos Labini, Besta, Vella, Hoefler, High Performance
    Unstructured SpMM Computation Using Tensor Cores, SC 2024, arXiv:2408.11551.
    """
    if not isinstance(matrix, CSR):
        raise TypeError(f"expected a CSR, got {type(matrix).__name__}")
    height = block[0] if max_height is None else max_height
    if min(*block, height) < 1:
        raise ValueError(f"bad block {block} or max_height={height}")
    if not 0 <= tau <= 1:
        raise ValueError(f"tau must be in [0, 1], got {tau}")
    if similarity not in ("jaccard", "hamming"):
        raise ValueError(f"similarity must be 'jaccard' or 'hamming', got {similarity!r}")
    if pattern not in ("union", "seed"):
        raise ValueError(f"pattern must be 'union' or 'seed', got {pattern!r}")
    m, n = matrix.shape
    wide = max(-(-n // block[1]), 1)
    rows, columns = known_places(matrix)
    touched = np.unique(rows * wide + columns // block[1])
    rows, columns = touched // wide, touched % wide
    pointers = np.searchsorted(rows, np.arange(m + 1))
    used = np.flatnonzero(np.diff(pointers))
    distance = (similarity, wide)
    if len(used) > _MANY:
        used = used[_by_min_hash(columns, pointers[used], wide)]
        windows = [used[i : i + _WINDOW] for i in range(0, len(used), _WINDOW)]
    else:
        windows = [used]
    full, ragged = [], []
    for window in windows:
        found = _clusters(window, pointers, columns, wide, tau, height, distance, pattern)
        full += [cluster for cluster in found if len(cluster) == height]
        ragged += [cluster for cluster in found if len(cluster) < height]
    empty = np.setdiff1d(np.arange(m), used)
    order = np.concatenate([*full, *ragged, empty]).astype(np.int64)
    places = np.empty(m, np.int64)
    places[order] = np.arange(m)
    before, after = (_num_blocks(p, columns, block[0], wide) for p in (rows, places[rows]))
    if after >= before:
        return RowOrder(np.arange(m), before, before)
    return RowOrder(order, before, after)


def _num_blocks(rows, columns, height, wide):
    return len(np.unique(rows // height * wide + columns))


def _by_min_hash(columns, starts, wide):
    """Rows sorted by eight min-hashes of their sets, which those of similar rows share."""
    rng = np.random.default_rng(0)
    # The sets of rows with entries lie one behind the other.
    hashes = [np.minimum.reduceat(rng.permutation(wide)[columns], starts) for _ in range(8)]
    return np.lexsort(hashes)


def _gathered(pointers, entries, which):
    """The entries of several lists, one list after the other."""
    starts, lengths = pointers[which], pointers[which + 1] - pointers[which]
    shift = np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
    return entries[shift + np.arange(lengths.sum())]


def _clusters(window, pointers, columns, wide, tau, height, distance, pattern):
    """Clusters of the rows of one window, in one pass."""
    sizes = pointers[window + 1] - pointers[window]
    own = _gathered(pointers, columns, window)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    by_column = np.argsort(own, kind="stable")
    touching = np.repeat(np.arange(len(window)), sizes)[by_column]
    heads = np.searchsorted(own[by_column], np.arange(wide + 1))
    similarity, units = distance
    overlap = _Overlap(starts, own, heads, touching, wide)
    free = np.ones(len(window), bool)
    clusters = []
    for first in range(len(window)):
        if not free[first]:
            continue
        overlap.begin(first)
        members, refused, how_far = [first], [], []
        candidates = first + 1 + np.flatnonzero(free[first + 1 :])
        begin = 0
        while begin < len(candidates) and len(members) < height:
            some = candidates[begin : begin + _SEARCHED]
            shared, total = overlap.shared[some], overlap.size + sizes[some]
            if similarity == "jaccard":
                far = 1 - shared / (total - shared)
            else:
                far = (total - 2 * shared) / units
            near = far <= tau
            stop = int(np.argmax(near)) if near.any() else len(some)
            refused.append(some[:stop])
            how_far.append(far[:stop])
            begin += stop
            if stop < len(some):
                members.append(int(some[stop]))
                begin += 1
                if pattern == "union":
                    overlap.add(members[-1])
        lacking = height - len(members)
        if lacking and refused:
            nearest = np.argsort(np.concatenate(how_far), kind="stable")[:lacking]
            members += np.concatenate(refused)[nearest].tolist()
        free[members] = False
        clusters.append(window[members])
    return clusters


class _Overlap:
    """The set of a cluster, and how much of it each row of the window shares."""

    def __init__(self, starts, own, heads, touching, wide):
        self.starts, self.own, self.heads, self.touching = starts, own, heads, touching
        self.wide, self.rows = wide, len(starts) - 1

    def begin(self, row):
        """The set of one row."""
        self.inside = np.zeros(self.wide, bool)
        self.size = 0
        self.shared = np.zeros(self.rows, np.int64)
        self.add(row)

    def add(self, row):
        """The union with that of one row."""
        columns = self.own[self.starts[row] : self.starts[row + 1]]
        new = columns[~self.inside[columns]]
        if len(new):
            self.inside[new] = True
            self.size += len(new)
            rows = _gathered(self.heads, self.touching, new)
            self.shared += np.bincount(rows, minlength=self.rows)
