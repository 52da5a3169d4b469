"""Proofs that a linear layer was applied, which tell nothing of its weights."""

import dataclasses
import hashlib
import random
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from .group import MODP_2048, Group

_CHALLENGE = 16  # bytes


@dataclasses.dataclass(frozen=True)
class Commitment:
    """What is published of a matrix, once.

    **Attributes:**

    - `rows`: $C_i = h^{r_i} \\prod_j g_j^{W_{ij}}$.
    - `columns`: how many columns the matrix has.
    """

    group: Group
    rows: tuple[int, ...]
    columns: int


@dataclasses.dataclass(frozen=True)
class Opening:
    """What its owner keeps: the matrix and the $r_i$."""

    matrix: tuple[tuple[int, ...], ...]
    randomness: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Proof:
    """A proof of $y = W x$: $A$, $t$, $z$ and $r_z$ of `prove`."""

    announcement: int
    product: int
    response: tuple[int, ...]
    randomness: int


def commit(
    matrix: Int[np.ndarray, "rows columns"],
    source: random.Random | None = None,
    group: Group = MODP_2048,
) -> tuple[Commitment, Opening]:
    """Commit to each row of an integer matrix, perfectly hidden:
    $C_i = h^{r_i} \\prod_j g_j^{W_{ij}}$ with uniform $r_i$ modulo the order $q$.

    **Arguments:**

    - `matrix`: $W$, of any integer type; `with_bias` and `convolution_matrix` make one.
    - `source`: of randomness; the operating system's if `None`, which is the only one that hides.
    - `group`: where the commitments live.

    **Raises:** `TypeError` if `matrix` does not hold integers, `ValueError` if it is no matrix.

    **Reference:** Pedersen, Non-Interactive and Information-Theoretic Secure Verifiable Secret
    Sharing, 1991.
    """
    matrix = _integers("matrix", matrix, 2)
    source = source or random.SystemRandom()
    rows = tuple(tuple(row) for row in matrix.tolist())
    randomness = tuple(source.randrange(group.order) for _ in rows)
    columns = matrix.shape[1]
    values = tuple(_commit(group, row, r) for row, r in zip(rows, randomness, strict=True))
    return Commitment(group, values, columns), Opening(rows, randomness)


def prove(
    commitment: Commitment,
    opening: Opening,
    x: Int[np.ndarray, " columns"],
    source: random.Random | None = None,
) -> tuple[Int[np.ndarray, " rows"], Proof]:
    """Compute $y = W x$ and a proof of it for the holder of the commitment.

    The rows are merged with hashed weights, $\\rho_i = H(C, x, y, i)$, $w = \\sum_i \\rho_i W_i$,
    $r = \\sum_i \\rho_i r_i$; then, for random $s$ and $r_s$ modulo $q$,

    $$A = h^{r_s} \\prod_j g_j^{s_j}, \\quad t = \\langle s, x \\rangle, \\quad
      c = H(A, t, \\rho, x, y), \\quad z = s + c w, \\quad r_z = r_s + c r.$$

    Hashes have 128 bits. A pair $(s, r_s)$ is used once: a second use would tell $W$.

    **Arguments:**

    - `commitment`, `opening`: those of `commit`.
    - `x`: integers, opened to the verifier, as $y$ is.
    - `source`: of randomness; the operating system's if `None`, which is the only one that hides.

    **Returns:** $y$, in 64 bits, and the proof.

    **Raises:** `TypeError` or `ValueError` if `x` does not hold integers, one for each column;
    `OverflowError` if an entry of $y$ has more than 64 bits.

    **Reference:** Zhang, Zhao, Angione, Yang, Buban, Farhan, Johnston, Colangelo, Towards Secure
    and Private AI: A Framework for Decentralized Inference, 2024, arXiv:2407.19401; the protocol
    is Schnorr's, Efficient Signature Generation by Smart Cards, 1991, for Pedersen's commitments.
    """
    source = source or random.SystemRandom()
    group, q = commitment.group, commitment.group.order
    point = _point(commitment, x)
    y = [_dot(row, point) for row in opening.matrix]
    result = np.array(y, np.int64)
    merging = _merging(commitment, point, y)
    merged = [_dot(merging, column) for column in zip(*opening.matrix, strict=True)]
    s = [source.randrange(q) for _ in point]
    s_random = source.randrange(q)
    announcement, product = _commit(group, s, s_random), _dot(s, point) % q
    c = _challenge(commitment, announcement, product, merging, point, y)
    response = tuple((a + c * w) % q for a, w in zip(s, merged, strict=True))
    randomness = (s_random + c * _dot(merging, opening.randomness)) % q
    return result, Proof(announcement, product, response, randomness)


def verify(
    commitment: Commitment,
    x: Int[np.ndarray, " columns"],
    y: Int[np.ndarray, " rows"],
    proof: Proof,
) -> bool:
    """Whether a proof shows that $y = W x$ for the committed $W$: with the hashes of `prove`,

    $$h^{r_z} \\prod_j g_j^{z_j} = A \\Bigl(\\prod_i C_i^{\\rho_i}\\Bigr)^c, \\qquad
      \\langle z, x \\rangle = t + c \\langle \\rho, y \\rangle \\bmod q.$$

    Who can make a false one pass can take logarithms in the group. Numbers outside of their range
    are refused, and so is a commitment outside of the group.

    **Arguments:**

    - `commitment`: the owner's.
    - `x`, `y`: integers of at most 64 bits.
    - `proof`: what `prove` made.

    **Reference:** Zhang, Zhao, Angione, Yang, Buban, Farhan, Johnston, Colangelo, Towards Secure
    and Private AI: A Framework for Decentralized Inference, 2024, arXiv:2407.19401.
    """
    point = _point(commitment, x)
    result = _integers("y", y, 1).tolist()
    if len(result) != len(commitment.rows):
        return False
    merging = _merging(commitment, point, result)
    c = _challenge(commitment, proof.announcement, proof.product, merging, point, result)
    return holds(commitment, x, y, proof, c)


def holds(
    commitment: Commitment,
    x: Int[np.ndarray, " columns"],
    y: Int[np.ndarray, " rows"],
    proof: Proof,
    challenge: int,
) -> bool:
    """The equations of `verify` for a challenge that the verifier drew itself.

    **Reference:** Schnorr, Efficient Signature Generation by Smart Cards, 1991.
    """
    group, q = commitment.group, commitment.group.order
    point, result = _point(commitment, x), _integers("y", y, 1).tolist()
    scalars = (*proof.response, proof.product, proof.randomness)
    sizes = (commitment.columns, len(commitment.rows))
    if (len(proof.response), len(result)) != sizes or not all(0 <= a < q for a in scalars):
        return False
    if not all(value in group for value in (*commitment.rows, proof.announcement)):
        return False
    merging = _merging(commitment, point, result)
    right = pow(group.product(commitment.rows, merging), challenge, group.prime)
    left = _commit(group, proof.response, proof.randomness)
    return (
        left == proof.announcement * right % group.prime
        and (_dot(proof.response, point) - proof.product - challenge * _dot(merging, result)) % q
        == 0
    )


def simulate(
    commitment: Commitment,
    x: Int[np.ndarray, " columns"],
    y: Int[np.ndarray, " rows"],
    challenge: int,
    source: random.Random | None = None,
) -> Proof:
    """A proof for a challenge that is known before, made without the matrix.

    Its law is that of the prover's, so that the verifier of `holds` learns nothing from either: it
    chooses $z$ and $r_z$ and solves for $A$ and $t$.

    **Reference:** Cramer, Damgård, Schoenmakers, Proofs of Partial Knowledge and Simplified Design
    of Witness Hiding Protocols, 1994.
    """
    source = source or random.SystemRandom()
    group, q = commitment.group, commitment.group.order
    point, result = _point(commitment, x), _integers("y", y, 1).tolist()
    response = tuple(source.randrange(q) for _ in point)
    randomness = source.randrange(q)
    merging = _merging(commitment, point, result)
    right = pow(group.product(commitment.rows, merging), -challenge, group.prime)
    announcement = _commit(group, response, randomness) * right % group.prime
    product = (_dot(response, point) - challenge * _dot(merging, result)) % q
    return Proof(announcement, product, response, randomness)


def _commit(group: Group, values: Sequence[int], randomness: int) -> int:
    bases = [group.generator("h"), *(group.generator(f"g{j}") for j in range(len(values)))]
    return group.product(bases, [randomness, *values])


def _dot(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(u * v for u, v in zip(a, b, strict=True))


def _hash(label: str, *parts: object) -> int:
    digest = hashlib.sha256(repr((label, *parts)).encode()).digest()
    return int.from_bytes(digest[:_CHALLENGE], "big")


def _merging(commitment: Commitment, x: list[int], y: list[int]) -> list[int]:
    statement = _hash_statement(commitment, x, y)
    return [_hash("merge", statement, i) for i in range(len(commitment.rows))]


def _challenge(commitment, announcement, product, merging, x, y) -> int:
    # All that is public goes in: what is left out could be chosen after the challenge.
    statement = _hash_statement(commitment, x, y)
    return _hash("challenge", statement, announcement, product, merging)


def _hash_statement(commitment: Commitment, x: list[int], y: list[int]) -> str:
    parts = (commitment.group.prime, commitment.rows, commitment.columns, x, y)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _point(commitment: Commitment, x) -> list[int]:
    point = _integers("x", x, 1)
    if len(point) != commitment.columns:
        raise ValueError(f"x must have {commitment.columns} entries, got {len(point)}")
    return point.tolist()


def _integers(name: str, value, ndim: int) -> np.ndarray:
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must hold integers, got {array.dtype}")
    if array.ndim != ndim or not array.size:
        raise ValueError(f"{name} must have {ndim} axes and entries, got shape {array.shape}")
    return array
