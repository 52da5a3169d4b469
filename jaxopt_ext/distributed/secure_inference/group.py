"""Groups in which discrete logarithms are hard."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

_WINDOW = 4


@dataclasses.dataclass(frozen=True)
class Group:
    """The squares modulo a safe prime $p = 2 q + 1$: a group of prime order $q$.

    **Arguments:**

    - `prime`: $p$; that it is a safe prime is not checked.

    **Raises:** `ValueError` if $p$ is not 3 modulo 4, or $q$ has less than 160 bits, which the
    challenges of 128 bits need.
    """

    prime: int

    def __post_init__(self):
        if self.prime % 4 != 3 or self.prime.bit_length() < 161:
            raise ValueError(f"prime must be a safe prime of 161 bits or more, got {self.prime}")

    @property
    def order(self) -> int:
        """$q$."""
        return self.prime // 2

    def generator(self, label: str) -> int:
        """The square of a hash of the label: nobody knows its logarithm to another's base."""
        return _generator(self.prime, label)

    def product(self, bases: Sequence[int], exponents: Sequence[int]) -> int:
        """$\\prod_j b_j^{e_j}$; exponents of either sign, whose size is what it costs."""
        above = [(b, e) for b, e in zip(bases, exponents, strict=True) if e > 0]
        below = [(b, -e) for b, e in zip(bases, exponents, strict=True) if e < 0]
        value = self._product(above)
        # A negative exponent modulo q would have all of its bits.
        return value * pow(self._product(below), -1, self.prime) % self.prime

    def _product(self, powers: list[tuple[int, int]]) -> int:
        """All powers in one pass over the bits of their exponents, four at a time."""
        tables = []
        for base, _ in powers:
            table = [1]
            for _ in range(2**_WINDOW - 1):
                table.append(table[-1] * base % self.prime)
            tables.append(table)
        bits = max((e.bit_length() for _, e in powers), default=0)
        value = 1
        for shift in range((bits - 1) // _WINDOW * _WINDOW, -1, -_WINDOW):
            value = pow(value, 2**_WINDOW, self.prime)
            for table, (_, exponent) in zip(tables, powers, strict=True):
                digit = exponent >> shift & 2**_WINDOW - 1
                if digit:
                    value = value * table[digit] % self.prime
        return value

    def __contains__(self, value: int) -> bool:
        """Whether a number is in the group, by its Jacobi symbol."""
        if not 0 < value < self.prime:
            return False
        a, n, sign = value, self.prime, 1
        while a:
            twos = (a & -a).bit_length() - 1
            a >>= twos
            if twos % 2 and n % 8 in (3, 5):
                sign = -sign
            if a % 4 == n % 4 == 3:
                sign = -sign
            a, n = n % a, a
        return n == 1 and sign == 1


@functools.lru_cache(maxsize=4096)
def _generator(prime: int, label: str) -> int:
    # 128 bits more than the prime has, so that the remainder is as good as uniform.
    size = prime.bit_length() // 8 + 17
    digest = hashlib.shake_256(f"{prime}:{label}".encode()).digest(size)
    return pow(int.from_bytes(digest, "big"), 2, prime)


MODP_2048 = Group(
    int(
        "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74"
        "020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437"
        "4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
        "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05"
        "98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB"
        "9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
        "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718"
        "3995497CEA956AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF",
        16,
    )
)
"""The group of 2048 bits, number 14 of RFC 3526."""
