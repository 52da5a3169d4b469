"""Error feedback: what a sender remembers of what its messages did not say."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ...core import checks
from .compressor import AbstractCompressor


class FeedbackState(eqx.Module):
    """The memory of a sender.

    **Attributes:**

    - `error`: $e$, what was not sent yet; `None` for rules that have none.
    - `copy`: $h$, what the receivers know; `None` for rules that have none.
    - `compressor`: the memory of the compressor.
    """

    error: PyTree[Array] | None
    copy: PyTree[Array] | None
    compressor: PyTree[Array]


def _add(a, b):
    return jax.tree.map(jnp.add, a, b)


def _subtract(a, b):
    return jax.tree.map(jnp.subtract, a, b)


def _zeros(a):
    return jax.tree.map(jnp.zeros_like, a)


class AbstractFeedback(eqx.Module):
    """A rule of one sender and its receivers.

    The sender calls `init` once and `apply` for each value; a receiver calls `listen` once and
    `receive` for each decompressed message. The estimate of `receive` is linear in memory and
    increment: a receiver of many senders may hold the mean of their memories, and give it the mean
    of their increments, to get the mean of their estimates.
    """

    @abc.abstractmethod
    def init(
        self,
        start: PyTree[Array],
        compressor: AbstractCompressor,
        key: PRNGKeyArray | None = None,
    ) -> FeedbackState:
        """The memory of the sender.

        **Arguments:**

        - `start`: what the receivers know before the first message: zeros, or a first value that
          was sent as it is. Rules without a copy look at its shapes only.
        - `compressor`: the compressor that `apply` will get.
        - `key`: for compressors that draw their memory.
        """

    @abc.abstractmethod
    def correction(
        self, state: FeedbackState, value: PyTree[Array], compressor: AbstractCompressor
    ) -> PyTree[Array]:
        """What is compressed."""

    @abc.abstractmethod
    def update(
        self, state: FeedbackState, value: PyTree[Array], sent: PyTree[Array], memory: Any
    ) -> FeedbackState:
        """The memory after `sent` $= D$ was told, and the compressor remembers `memory`."""

    def apply(
        self,
        state: FeedbackState,
        value: PyTree[Array],
        compressor: AbstractCompressor,
        key: PRNGKeyArray | None = None,
    ) -> tuple[PyTree[Array], FeedbackState]:
        """The message for a value, and the memory after it."""
        target = self.correction(state, value, compressor)
        message = compressor.compress(target, key, state.compressor)
        sent = compressor.decompress(message, target, key)
        memory = compressor.advance(state.compressor, message)
        return message, self.update(state, value, sent, memory)

    def listen(self, start: PyTree[Array]) -> PyTree[Array]:
        """The memory of a receiver; `start` as in `init`."""
        return None

    def receive(
        self, memory: PyTree[Array], increment: PyTree[Array]
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """The receiver's estimate of the value from the decompressed message, and its memory."""
        return increment, memory


class NoFeedback(AbstractFeedback):
    """$D = C(v)$: what is not sent is lost. For unbiased compressors."""

    def init(self, start, compressor, key=None):
        return FeedbackState(None, None, compressor.init(start, key))

    def correction(self, state, value, compressor):
        return value

    def update(self, state, value, sent, memory):
        return FeedbackState(None, None, memory)


class EF14(AbstractFeedback):
    """What is not sent is added to the next value,

    $$D = C(e + v), \\qquad e \\leftarrow e + v - D,$$

    where $v$ is a gradient times its step size. The receivers use $D$, and forget it. At a
    constant step size it stalls where the nodes' values do not vanish.

    **Reference:** Seide, Fu, Droppo, Li, Yu, 1-Bit Stochastic Gradient Descent and its Application
    to Data-Parallel Distributed Training of Speech DNNs, 2014. Karimireddy, Rebjock, Stich, Jaggi,
    Error Feedback Fixes SignSGD and other Gradient Compression Schemes, 2019, arXiv:1901.09847.
    """

    def init(self, start, compressor, key=None):
        return FeedbackState(_zeros(start), None, compressor.init(start, key))

    def correction(self, state, value, compressor):
        return _add(state.error, value)

    def update(self, state, value, sent, memory):
        return FeedbackState(_subtract(_add(state.error, value), sent), None, memory)


class EF21(AbstractFeedback):
    """Only the change of a value is sent,

    $$D = C(v - h), \\qquad h \\leftarrow h + D,$$

    and the receivers' estimate is $h$, which they follow. Of values that settle nothing is lost.
    The public copies of CHOCO are these $h$.

    **Reference:** Richtárik, Sokolov, Fatkhullin, EF21: A New, Simpler, Theoretically Better, and
    Practically Faster Error Feedback, 2021, arXiv:2106.05203.
    """

    def init(self, start, compressor, key=None):
        return FeedbackState(None, start, compressor.init(start, key))

    def correction(self, state, value, compressor):
        return _subtract(value, state.copy)

    def update(self, state, value, sent, memory):
        return FeedbackState(None, _add(state.copy, sent), memory)

    def listen(self, start):
        return start

    def receive(self, memory, increment):
        estimate = _add(memory, increment)
        return estimate, estimate


class ErrorControl(AbstractFeedback):
    """The change of a value is sent, with part of what was not sent before,

    $$D = C(\\eta e + v - h), \\qquad e \\leftarrow e + v - h - D, \\qquad h \\leftarrow h + D,$$

    with the old $h$ in the second. The receivers' estimate is $h$. $\\eta = 0$ sends what `EF21`
    does; with $h$ fixed at zero and $\\eta = 1$ it would be `EF14`.

    **Arguments:**

    - `eta`: $\\eta \\in [0, 1)$; `None` for the $\\delta$ of the compressor. A few times $\\delta$
      is unstable.

    **Raises:** `ValueError` on another $\\eta$, or if there is none and the compressor has no
    $\\delta$.

    **Reference:** Gao, Islamov, Stich, EControl: Fast Distributed Optimization with Compression and
    Error Control, 2024, arXiv:2311.05645.
    """

    eta: Float[Array, ""] | None = eqx.field(
        default=None, converter=lambda eta: None if eta is None else checks.scalar(eta)
    )

    def __check_init__(self):
        if self.eta is not None:
            checks.interval("eta", self.eta, 0, 1, open_high=True)

    def init(self, start, compressor, key=None):
        return FeedbackState(_zeros(start), start, compressor.init(start, key))

    def correction(self, state, value, compressor):
        eta = compressor.delta(value) if self.eta is None else self.eta
        if eta is None:
            raise ValueError(f"eta must be given, since {compressor} has no delta")
        return jax.tree.map(
            lambda e, v, h: jnp.asarray(eta, e.dtype) * e + (v - h), state.error, value, state.copy
        )

    def update(self, state, value, sent, memory):
        error = jax.tree.map(
            lambda e, v, h, d: e + (v - h - d), state.error, value, state.copy, sent
        )
        return FeedbackState(error, _add(state.copy, sent), memory)

    def listen(self, start):
        return start

    def receive(self, memory, increment):
        estimate = _add(memory, increment)
        return estimate, estimate
