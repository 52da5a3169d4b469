"""Arrays that belong to an object and are none of its variables."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt


class HostArray:
    """An array of the host as a static field: part of a tree's structure, compared by its values.

    It is there while a program is traced, and no transformation sees it.

    **Arguments:**

    - `value`: the array, which is copied.
    """

    def __init__(self, value: Any):
        self.value = np.array(value)
        self.value.setflags(write=False)
        self._hash = hash((self.value.shape, self.value.dtype.str, self.value.tobytes()))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, HostArray) or self._hash != other._hash:
            return False
        one, two = self.value, other.value
        return one.dtype == two.dtype and np.array_equal(one, two, equal_nan=True)

    def __repr__(self) -> str:
        return f"HostArray({self.value.dtype}{list(self.value.shape)})"


class Untrained(eqx.Module):
    """Floating-point numbers kept as the integers of their bits, which no derivative, optimizer,
    decay, average or change of precision of a whole model touches; they are saved with it.

    **Arguments:**

    - `value`: the array, of 16, 32 or 64 bits.
    """

    bits: UInt[Array, "..."]
    dtype: Any = eqx.field(static=True)

    def __init__(self, value: Float[Array, "..."]):
        self.dtype = jnp.dtype(value.dtype)
        kind = jnp.dtype(f"uint{8 * self.dtype.itemsize}")
        self.bits = jax.lax.bitcast_convert_type(value, kind)

    @property
    def value(self) -> Float[Array, "..."]:
        """The numbers."""
        return jax.lax.bitcast_convert_type(jnp.asarray(self.bits), self.dtype)
