"""Checking a product without computing it."""

import random

import numpy as np
from jaxtyping import Int

from ...core import checks
from .zero_knowledge import _integers

FIELD = 2**31 - 1


def freivalds(
    W: Int[np.ndarray, "m n"],
    X: Int[np.ndarray, "n k"],
    Y: Int[np.ndarray, "m k"],
    *,
    probes: int = 1,
    binary: bool = False,
    source: random.Random | None = None,
) -> bool:
    """Whether $Y = W X$, by probes $v$ with $Y v = W (X v)$: $O(mn + nk + mk)$ each, instead of
    the product's $O(mnk)$.

    A right product always passes. A wrong one passes with probability at most $P^{-probes}$ for
    $v$ uniform modulo $P = 2^{31} - 1$, and $2^{-probes}$ for entries 0 and 1.

    **Arguments:**

    - `W`, `X`, `Y`: integers; the true product must be below $P / 2$ in size, and an entry of `Y`
      beyond fails.
    - `probes`: how many.
    - `binary`: whether the entries of probes are 0 and 1, which spares multiplications.
    - `source`: of randomness; the operating system's if `None`. The prover must not know it before
      he answers.

    **Raises:** `TypeError` or `ValueError` if the arguments are no integer matrices of these
    shapes.

    **Reference:** Freivalds, Probabilistic Machines Can Use Less Running Time, 1977.
    """
    W, X, Y = (_integers(name, a, 2) for name, a in (("W", W), ("X", X), ("Y", Y)))
    checks.count("probes", probes)
    if W.shape[1] != X.shape[0] or Y.shape != (W.shape[0], X.shape[1]):
        raise ValueError(f"shapes {W.shape}, {X.shape}, {Y.shape} are not of a product")
    if np.any(Y > FIELD // 2) or np.any(Y < -(FIELD // 2)):
        return False
    source = source or random.SystemRandom()
    bound = 2 if binary else FIELD
    v = np.array([[source.randrange(bound) for _ in range(probes)] for _ in range(X.shape[1])])
    return np.array_equal(_times(Y, v), _times(W, _times(X, v)))


def _times(a, v):
    """Modulo $P$; each product has at most 62 bits and is reduced before it is added."""
    a = a.astype(np.int64) % FIELD
    columns = [np.sum(a * (column % FIELD) % FIELD, axis=1) % FIELD for column in v.T]
    return np.stack(columns, axis=1)
