"""Updates of a truncated decomposition, multiplied out."""

from typing import Any

import equinox as eqx
import numpy as np

from jaxopt_ext_kernels import CSR

from ... import linalg
from ..shapes.function import AbstractFunctionCase

SHAPE, CAPACITY, RANK = (6, 5), (9, 6), 3


class SVDUpdateCase(AbstractFunctionCase):
    """Two rows more.

    **Arguments:**

    - `augment`: how.
    """

    augment: Any = eqx.field(static=True)

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        A = rng.normal(size=SHAPE).astype(dtype)
        svd = linalg.TruncatedSVD.from_matrix(A, RANK, capacity=CAPACITY)
        values = lambda count: rng.normal(size=count).astype(dtype)
        # One place is padding.
        return svd, CSR.from_coo(values(4), [0, 0, 1, 1], [0, 3, 1, 2], (2, 5), nnz=5)

    def call(self, *arguments):
        svd, rows = arguments
        svd = svd.add_rows(rows, self.augment)
        return (svd.u * svd.s) @ svd.v.T, svd.s, svd.num_rows, svd.num_columns

    def reference(self, *arguments):
        svd, rows = arguments
        u, s, v = (np.asarray(a, np.float64) for a in (svd.outer_left, svd.s, svd.outer_right))
        A = ((u * s) @ v.T)[: SHAPE[0], : SHAPE[1]]
        u, s, vt = np.linalg.svd(np.vstack([A, _dense(rows)]))
        A, s = (u[:, :RANK] * s[:RANK]) @ vt[:RANK], s[:RANK]
        full = np.zeros(CAPACITY)
        full[: A.shape[0], : A.shape[1]] = A
        return full, s, np.array(8, np.int32), np.array(5, np.int32)


def _dense(matrix):
    dense = np.zeros(matrix.shape)
    np.add.at(dense, (np.asarray(matrix.rows), np.asarray(matrix.columns)), matrix.values)
    return dense
