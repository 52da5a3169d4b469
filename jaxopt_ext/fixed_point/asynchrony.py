"""Asynchrony, simulated: which block is updated at an event, and how old what it reads is."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ..core import checks


class AbstractOrder(eqx.Module):
    """Which block comes next."""

    @abc.abstractmethod
    def block(self, k: Int[Array, ""], m: int, key: PRNGKeyArray) -> Int[Array, ""]:
        """The block of event `k`, of `m`; `key` is the event's own."""


class Cyclic(AbstractOrder):
    """One after the other, again and again."""

    def block(self, k, m, key):
        return k % m


class Random(AbstractOrder):
    """Each block with the same probability."""

    def block(self, k, m, key):
        return jax.random.randint(key, (), 0, m, jnp.int32)


class AbstractSchedule(eqx.Module):
    """The events of a run: blocks, and ages of what they read.

    At event $k$ the block $i(k)$ is updated from $\\hat x_j = x_j(k - a_j)$, with ages $0 \\le a_j
    \\le k$.
    """

    @abc.abstractmethod
    def event(
        self, k: Int[Array, ""], m: int, key: PRNGKeyArray
    ) -> tuple[Int[Array, ""], Int[Array, " m"]]:
        """The block of event `k` and the age of each block that it reads.

        Ages may be larger than `k`: what is older than the start is the start.

        **Arguments:**

        - `k`: the event, from 0.
        - `m`: the number of blocks.
        - `key`: random key of this event.
        """

    @abc.abstractmethod
    def longest(self, num_events: int) -> int:
        """The largest age in so many events: how much history must be kept.

        **Raises:** `ValueError` if the schedule has fewer events.
        """


class ConstantDelay(AbstractSchedule):
    """All that is read is `delay` events old; with 0 nothing is stale.

    **Arguments:**

    - `delay`: an int $\\ge 0$, static.
    - `order`: `Cyclic()` or `Random()`.
    """

    delay: int = eqx.field(static=True, default=0)
    order: AbstractOrder = Cyclic()

    def __check_init__(self):
        checks.count("delay", self.delay, minimum=0)
        checks.instance("order", self.order, AbstractOrder, "Cyclic()")

    def event(self, k, m, key):
        return self.order.block(k, m, key), jnp.full(m, self.delay, jnp.int32)

    def longest(self, num_events):
        return min(self.delay, num_events)


class UniformDelay(AbstractSchedule):
    """Ages are uniform on $0, \\dots, d$, for each block and event.

    **Arguments:**

    - `max_delay`: $d$, an int $\\ge 0$, static.
    - `order`: `Cyclic()` or `Random()`.
    """

    max_delay: int = eqx.field(static=True)
    order: AbstractOrder = Random()

    def __check_init__(self):
        checks.count("max_delay", self.max_delay, minimum=0)
        checks.instance("order", self.order, AbstractOrder, "Random()")

    def event(self, k, m, key):
        first, second = jax.random.split(key)
        ages = jax.random.randint(second, (m,), 0, self.max_delay + 1, jnp.int32)
        return self.order.block(k, m, first), ages

    def longest(self, num_events):
        return min(self.max_delay, num_events)


class GrowingDelay(AbstractSchedule):
    """Ages grow without bound, as $\\lfloor k^r \\rfloor$ at event $k$: total asynchrony.

    **Arguments:**

    - `rate`: $r \\in [0, 1)$, static.
    - `order`: `Cyclic()` or `Random()`.
    """

    rate: float = eqx.field(static=True)
    order: AbstractOrder = Cyclic()

    def __check_init__(self):
        checks.interval("rate", self.rate, 0, 1, open_high=True)
        checks.instance("order", self.order, AbstractOrder, "Cyclic()")

    def event(self, k, m, key):
        age = jnp.floor(k.astype(jnp.float32) ** self.rate).astype(jnp.int32)
        return self.order.block(k, m, key), jnp.full(m, jnp.minimum(age, k), jnp.int32)

    def longest(self, num_events):
        return int(np.floor(float(num_events) ** self.rate)) + 1  # the power is rounded


class RecordedSchedule(AbstractSchedule):
    """The events of a run that took place.

    **Arguments:**

    - `block`: the block of each event, ints of shape `(K,)`.
    - `ages`: how old what it read of each block was, ints $\\ge 0$ of shape `(K, m)`.

    **Raises:** `ValueError` on shapes that do not fit, no event, or negative numbers; `TypeError`
    unless they are ints that are known when the schedule is made.
    """

    block: Int[Array, " K"]
    ages: Int[Array, "K m"]
    max_age: int = eqx.field(static=True)

    def __init__(self, block, ages):
        if checks.is_traced((block, ages)):
            raise TypeError("a recorded schedule must be known when it is made, got tracers")
        block, ages = np.asarray(block), np.asarray(ages)
        for name, value in (("block", block), ("ages", ages)):
            if not np.issubdtype(value.dtype, np.integer):
                raise TypeError(f"{name} must be ints, got dtype {value.dtype}")
        if block.ndim != 1 or ages.ndim != 2 or len(block) != len(ages) or len(block) == 0:
            raise ValueError(
                f"block and ages must have shapes (K,) and (K, m), got {block.shape} and "
                f"{ages.shape}"
            )
        checks.nonnegative("ages", ages)
        checks.interval("block", block, 0, ages.shape[1] - 1)
        self.block, self.ages = jnp.asarray(block, jnp.int32), jnp.asarray(ages, jnp.int32)
        self.max_age = int(ages.max())

    def event(self, k, m, key):
        if self.ages.shape[1] != m:
            raise ValueError(f"the schedule is of {self.ages.shape[1]} blocks, the point of {m}")
        return self.block[k], self.ages[k]

    def longest(self, num_events):
        if num_events > self.block.shape[0]:
            raise ValueError(f"{self.block.shape[0]} events were recorded, {num_events} are wanted")
        return self.max_age


def stale(
    history: PyTree[Array],
    k: Int[Array, ""],
    ages: Int[Array, " m"],
    size: int,
) -> PyTree[Array]:
    """What is read at event `k`: each block from its own time.

    **Arguments:**

    - `history`: the last points in a ring, that of time $t$ in slot $t \\bmod L$, stacked on the
      leading axis of each leaf; at the start all are the first point.
    - `k`: the event: the newest point is that of time `k`.
    - `ages`: of each block, below the length $L$.
    - `size`: entries of the point's leading axis in each block.
    """
    rows = jnp.repeat(ages, size)
    length = jax.tree.leaves(history)[0].shape[0]
    slots = (k - jnp.minimum(rows, k)) % length
    return jax.tree.map(lambda h: h[slots, jnp.arange(rows.size)], history)
