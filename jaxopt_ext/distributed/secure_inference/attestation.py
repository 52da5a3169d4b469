"""The interface of attested code, in software."""

import dataclasses
import hashlib
import hmac
import secrets


def measure(code: bytes, weights: bytes) -> bytes:
    """SHA-256 of code and of a commitment to weights, with their lengths."""
    head = f"{len(code)}:{len(weights)}:".encode()
    return hashlib.sha256(head + code + weights).digest()


@dataclasses.dataclass(frozen=True)
class Quote:
    """What an enclave says it runs: `tag` is an HMAC of the other two."""

    measurement: bytes
    nonce: bytes
    tag: bytes


class SoftwareEnclave:
    """A stand-in for a trusted execution environment, **without any of its security**: the key lies
    in ordinary memory, and whoever runs this may sign what he likes. It has the interface of one,
    so that the protocol around it can be written and tested.

    **Arguments:**

    - `key`: shared with the verifier; hardware would hold it.
    - `code`, `weights`: what is measured; see `measure`.
    """

    def __init__(self, key: bytes, code: bytes, weights: bytes):
        self._key = key
        self.measurement = measure(code, weights)

    def quote(self, nonce: bytes) -> Quote:
        """An answer to a verifier's nonce."""
        return Quote(self.measurement, nonce, _tag(self._key, self.measurement, nonce))


class Attestation:
    """A verifier of quotes, which takes each of its nonces once.

    **Arguments:**

    - `key`: that of the enclave.
    - `measurement`: the one expected, of `measure`.

    **Reference:** Birkholz et al., Remote ATtestation procedureS (RATS) Architecture, 2023,
    RFC 9334.
    """

    def __init__(self, key: bytes, measurement: bytes):
        self._key, self._measurement = key, measurement
        self._open: set[bytes] = set()

    def challenge(self) -> bytes:
        """A fresh nonce."""
        nonce = secrets.token_bytes(16)
        self._open.add(nonce)
        return nonce

    def check(self, quote: Quote) -> bool:
        """Whether a quote answers an open challenge for the expected measurement."""
        if quote.nonce not in self._open:
            return False
        self._open.remove(quote.nonce)
        right = hmac.compare_digest(quote.measurement, self._measurement)
        tag = _tag(self._key, quote.measurement, quote.nonce)
        return hmac.compare_digest(quote.tag, tag) and right


def _tag(key: bytes, measurement: bytes, nonce: bytes) -> bytes:
    return hmac.new(key, measurement + nonce, hashlib.sha256).digest()
