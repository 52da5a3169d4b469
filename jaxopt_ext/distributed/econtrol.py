"""EControl and its relatives: gradient methods whose nodes send compressed messages to a server."""

import abc
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import checks, tree
from .algorithm import AbstractGradientAlgorithm, Loss
from .compression import (
    EF14,
    EF21,
    AbstractCompressor,
    AbstractFeedback,
    ErrorControl,
    FeedbackState,
    NoFeedback,
    mean_message,
    mean_message_over,
    message_keys,
)
from .compression.compressor import structs
from .network import Network


class CompressedState(eqx.Module):
    """The state of a method with compressed messages, stacked over the nodes.

    **Attributes:**

    - `params`: the same at all nodes.
    - `sender`: what each node remembers of its messages.
    - `memory`: what the server remembers, known at all nodes; `None` if nothing.
    - `extra`: what else a method needs of each node.
    """

    params: PyTree[Array]
    sender: FeedbackState
    memory: PyTree[Array] | None
    extra: PyTree[Array] | None


def _first(x):
    return jax.tree.map(lambda a: a[0], x)


def _copies(x, like):
    count = jax.tree.leaves(like)[0].shape[0]
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *jnp.shape(a))), x)


def _one(params):
    """What one node's value looks like."""
    return structs(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), params))


class AbstractCompressedGradient(AbstractGradientAlgorithm):
    """Nodes tell gradients in small messages, by a rule of error feedback.

    All nodes know the mean of all messages and so play the server, whose state is the same
    everywhere bit for bit: `mean_message`. On a mesh that is one gather of packed messages, or one
    mean where the compressor's messages can be averaged.

    **Attributes:**

    - `compressor`: what a message tells.
    """

    compressor: eqx.AbstractVar[AbstractCompressor]

    @property
    @abc.abstractmethod
    def feedback(self) -> AbstractFeedback:
        """The rule between a node and the server."""

    def begin(
        self,
        params: PyTree[Array],
        gradients: PyTree[Array],
        batch: PyTree[Array],
        network: Network,
    ) -> PyTree[Array] | None:
        """What a node holds beside its sender's memory."""
        return None

    def value(
        self, gradients: PyTree[Array], extra: PyTree[Array]
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """What the nodes have to tell, and what they hold afterwards."""
        return gradients, extra

    def move(
        self, params: PyTree[Array], estimate: PyTree[Array], extra: PyTree[Array]
    ) -> PyTree[Array]:
        """The step, from the server's estimate of the mean value."""
        return self.descend(params, estimate)

    def init(self, params, batch, network, key):
        gradients = self.gradients(params, batch)
        keys = message_keys(self.compressor, network, key)
        start = jax.vmap(lambda g, k: self.feedback.init(g, self.compressor, k))
        # Rules with a copy know the first gradients, which are sent whole, once.
        memory = self.feedback.listen(gradients)
        memory = None if memory is None else network.mean(memory)
        extra = self.begin(params, gradients, batch, network)
        return CompressedState(params, start(gradients, keys), memory, extra)

    def round(self, state, batch, network, key):
        gradients = self.gradients(state.params, batch)
        value, extra = self.value(gradients, state.extra)
        keys = message_keys(self.compressor, network, key)
        rule, compressor = self.feedback, self.compressor
        tell = jax.vmap(lambda s, v, k: rule.apply(s, v, compressor, k))
        message, sender = tell(state.sender, value, keys)
        increment = mean_message(compressor, message, _one(value), network, key)
        estimate, memory = rule.receive(_first(state.memory), increment)
        estimate, memory = _copies((estimate, memory), state.params)
        params = self.move(state.params, estimate, extra)
        return CompressedState(params, sender, memory, extra)

    def bits_per_round(self, params, network):
        """One message to the server. The first gradients of rules with a copy are not counted:
        they are one model, once."""
        return self.compressor.bits(_one(params))


class EControl(AbstractCompressedGradient):
    """Gradient descent with compressed messages and controlled error feedback,

    $$D_i = C(\\eta e_i + g_i - h_i), \\qquad e_i \\leftarrow e_i + g_i - h_i - D_i, \\qquad
      h_i \\leftarrow h_i + D_i, \\qquad x \\leftarrow x - \\frac\\gamma n \\sum_i h_i,$$

    with the old $h_i$ in the second and the new ones in the last. $D_i$ is all that node i sends.
    The point $x - \\gamma \\bar e$ moves as SGD does. Linear on strongly convex losses however
    different the nodes are, with the noise of gradients averaged over the nodes as by SGD. It
    starts from $e_i = 0$ and $h_i = g_i$ at the first point, sent whole once.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\gamma > 0$, of the order of $\\delta$ over the smoothness.
    - `compressor`: a contractive one, such as `compression.TopK(0.1)`.
    - `eta`: $\\eta \\in [0, 1)$, how much of the error is sent on; $\\delta$ of the compressor if
      `None`. The theory's is smaller by a constant; a few times $\\delta$ diverges.

    **Raises:** `ValueError` on another $\\eta$, or without one if the compressor has no $\\delta$;
    `TypeError` if the compressor is none.

    **Reference:** Gao, Islamov, Stich, EControl: Fast Distributed Optimization with Compression and
    Error Control, 2024, arXiv:2311.05645.
    """

    loss: Loss
    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)
    compressor: AbstractCompressor
    eta: Float[Array, ""] | None = eqx.field(
        default=None, converter=lambda eta: None if eta is None else checks.scalar(eta)
    )

    def __check_init__(self):
        _check(self.compressor)
        ErrorControl(self.eta)

    @property
    def feedback(self):
        return ErrorControl(self.eta)


class EF21SGD(AbstractCompressedGradient):
    """Only the change of a gradient is sent,

    $$D_i = C(g_i - h_i), \\qquad h_i \\leftarrow h_i + D_i, \\qquad
      x \\leftarrow x - \\frac\\gamma n \\sum_i h_i :$$

    `EControl` with $\\eta = 0$. Linear without noise; the noise of gradients is not averaged.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\gamma > 0$.
    - `compressor`: a contractive one.

    **Reference:** Richtárik, Sokolov, Fatkhullin, EF21: A New, Simpler, Theoretically Better, and
    Practically Faster Error Feedback, 2021, arXiv:2106.05203.
    """

    loss: Loss
    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)
    compressor: AbstractCompressor

    def __check_init__(self):
        _check(self.compressor)

    @property
    def feedback(self):
        return EF21()


class EF21SGDM(AbstractCompressedGradient):
    """`EF21SGD` on running means of the gradients,

    $$v_i \\leftarrow (1 - b) v_i + b g_i, \\qquad D_i = C(v_i - h_i), \\qquad
      h_i \\leftarrow h_i + D_i, \\qquad x \\leftarrow x - \\frac\\gamma n \\sum_i h_i .$$

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\gamma > 0$.
    - `compressor`: a contractive one.
    - `momentum`: $b \\in (0, 1]$; 1 is `EF21SGD`.

    **Reference:** Fatkhullin, Tyurin, Richtárik, Momentum Provably Improves Error Feedback!, 2023,
    arXiv:2305.15155.
    """

    loss: Loss
    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)
    compressor: AbstractCompressor
    momentum: Float[Array, ""] = eqx.field(default=0.1, converter=checks.scalar)

    def __check_init__(self):
        _check(self.compressor)
        checks.interval("momentum", self.momentum, 0, 1, open_low=True)

    @property
    def feedback(self):
        return EF21()

    def begin(self, params, gradients, batch, network):
        return gradients

    def value(self, gradients, extra):
        mean = jax.tree.map(
            lambda v, g: v + self.momentum.astype(g.dtype) * (g - v), extra, gradients
        )
        return mean, mean


class EF14SGD(AbstractCompressedGradient):
    """What was not sent is added to the next step,

    $$D_i = C(e_i + \\gamma g_i), \\qquad e_i \\leftarrow e_i + \\gamma g_i - D_i, \\qquad
      x \\leftarrow x - \\frac1n \\sum_i D_i .$$

    At a constant step size it stalls where the nodes' gradients at the optimum are not zero.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\gamma > 0$.
    - `compressor`: a contractive one.

    **Reference:** Stich, Cordonnier, Jaggi, Sparsified SGD with Memory, 2018, arXiv:1809.07599.
    """

    loss: Loss
    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)
    compressor: AbstractCompressor

    def __check_init__(self):
        _check(self.compressor)

    @property
    def feedback(self):
        return EF14()

    def value(self, gradients, extra):
        step = jax.tree.map(lambda g: self.step_size.astype(g.dtype) * g, gradients)
        return step, extra

    def move(self, params, estimate, extra):
        return jax.tree.map(jnp.subtract, params, estimate)


class _AbstractCompensation(AbstractCompressedGradient):
    """Error compensation of what differs from a fixed reference, which `begin` gives."""

    def __check_init__(self):
        _check(self.compressor)

    @property
    def feedback(self):
        return EF14()

    def value(self, gradients, extra):
        return extra.taken_from(gradients), extra

    def move(self, params, estimate, extra):
        return self.descend(params, extra.added_to(estimate))


class ECIdeal(_AbstractCompensation):
    """Error compensation of what differs from the gradients at the optimum,

    $$D_i = C(e_i + g_i - h_i^*), \\qquad e_i \\leftarrow e_i + g_i - h_i^* - D_i, \\qquad
      x \\leftarrow x - \\frac\\gamma n \\sum_i (D_i + h_i^*), \\qquad h_i^* = \\nabla f_i(x^*).$$

    No method that could be run, since it knows the optimum: what `EControl` aims at.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\gamma > 0$.
    - `compressor`: a contractive one.
    - `optimum`: $x^*$, as the parameters of one node. $h_i^*$ is the gradient there on the batch
      that `init` gets.

    **Reference:** Gao, Islamov, Stich, EControl: Fast Distributed Optimization with Compression and
    Error Control, 2024, arXiv:2311.05645.
    """

    loss: Loss
    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)
    compressor: AbstractCompressor
    optimum: PyTree[Array]

    def begin(self, params, gradients, batch, network):
        optimum = tree.cast_like(_copies(self.optimum, params), params)
        return _Reference.of(self.gradients(optimum, batch), network)


class ECApproximate(_AbstractCompensation):
    """`ECIdeal` with any fixed guess in place of the gradients at the optimum. It stalls the nearer
    to the optimum the better the guess is.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\gamma > 0$.
    - `compressor`: a contractive one.
    - `reference`: the guesses, shaped as the parameters of all nodes, stacked.

    **Reference:** Gao, Islamov, Stich, EControl: Fast Distributed Optimization with Compression and
    Error Control, 2024, arXiv:2311.05645.
    """

    loss: Loss
    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)
    compressor: AbstractCompressor
    reference: PyTree[Array]

    def begin(self, params, gradients, batch, network):
        own = tree.cast_like(jax.tree.map(network.local, self.reference), gradients)
        return _Reference.of(own, network)


class _Reference(eqx.Module):
    """Fixed values of the nodes, and their mean, which is sent once."""

    own: PyTree[Array]
    mean: PyTree[Array]

    @staticmethod
    def of(values, network):
        return _Reference(values, network.mean(values))

    def taken_from(self, x):
        return jax.tree.map(jnp.subtract, x, self.own)

    def added_to(self, x):
        return jax.tree.map(jnp.add, x, self.mean)


class CompressedSGD(AbstractCompressedGradient):
    """$x \\leftarrow x - \\frac\\gamma n \\sum_i C(g_i)$: what is not sent is lost.

    For unbiased compressors, as a baseline with others.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\gamma > 0$.
    - `compressor`: any.

    **Reference:** Alistarh, Grubic, Li, Tomioka, Vojnovic, QSGD: Communication-Efficient SGD via
    Gradient Quantization and Encoding, 2017, arXiv:1610.02132.
    """

    loss: Loss
    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)
    compressor: AbstractCompressor

    def __check_init__(self):
        _check(self.compressor)

    @property
    def feedback(self):
        return NoFeedback()


class DoubleEC(AbstractGradientAlgorithm):
    """Error compensation with two messages,

    $$D_i = C(e_i + g_i - h_i), \\qquad e_i \\leftarrow e_i + g_i - h_i - D_i, \\qquad
      x \\leftarrow x - \\frac\\gamma n \\sum_i (D_i + h_i), \\qquad
      h_i \\leftarrow h_i + C(g_i - h_i),$$

    all with the old $h_i$: one message tells the step, the other moves the reference of `ECIdeal`
    to where it should be.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\gamma > 0$.
    - `compressor`: a contractive one.

    **Reference:** Gao, Islamov, Stich, EControl: Fast Distributed Optimization with Compression and
    Error Control, 2024, arXiv:2311.05645.
    """

    loss: Loss
    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)
    compressor: AbstractCompressor

    def __check_init__(self):
        _check(self.compressor)

    def init(self, params, batch, network, key):
        gradients = self.gradients(params, batch)
        keys = message_keys(self.compressor, network, key)
        start = lambda rule: jax.vmap(lambda g, k: rule.init(g, self.compressor, k))
        mean = network.mean(gradients)
        step, reference = start(EF14())(gradients, keys), start(EF21())(gradients, keys)
        return CompressedState(params, step, mean, reference)

    def round(self, state, batch, network, key):
        gradients = self.gradients(state.params, batch)
        compressor, one = self.compressor, _one(gradients)

        def tell(rule, sender, value, key):
            keys = message_keys(compressor, network, key)
            apply = jax.vmap(lambda s, v, k: rule.apply(s, v, compressor, k))
            message, sender = apply(sender, value, keys)
            return mean_message(compressor, message, one, network, key), sender

        first, second = jax.random.split(key)
        gap = jax.tree.map(jnp.subtract, gradients, state.extra.copy)
        step, sender = tell(EF14(), state.sender, gap, first)
        change, reference = tell(EF21(), state.extra, gradients, second)
        mean = _first(state.memory)
        step, new = (jax.tree.map(jnp.add, mean, x) for x in (step, change))
        step, new = _copies((step, new), state.params)
        return CompressedState(self.descend(state.params, step), sender, new, reference)

    def bits_per_round(self, params, network):
        """Two messages to the server."""
        return 2 * self.compressor.bits(_one(params))


def _check(compressor):
    checks.instance("compressor", compressor, AbstractCompressor, "TopK(0.1)")


class _MeanState(eqx.Module):
    count: Int[Array, ""]
    sender: FeedbackState
    memory: PyTree[Array] | None


def compressed_mean(
    compressor: AbstractCompressor,
    feedback: AbstractFeedback,
    axis_name: str | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Averages gradients over workers by compressed messages, as a gradient transformation.

    Put it before momentum and step sizes. With `compression.EF14` and a sparse, sign or low-rank
    compressor it is error feedback in the form that data-parallel training uses: errors are
    remembered in the units of gradients. Everything starts from zero: no gradient is sent whole.

    **Arguments:**

    - `compressor`: what a message tells.
    - `feedback`: a rule of `compression`.
    - `axis_name`: the axis of `shard_map` or `vmap` over the workers; `None` for one worker.
    - `seed`: of all draws.

    The state differs from worker to worker. In `shard_map` its first value may be made inside.

    **Reference:** Karimireddy, Rebjock, Stich, Jaggi, Error Feedback Fixes SignSGD and other
    Gradient Compression Schemes, 2019, arXiv:1901.09847.
    """
    _check(compressor)
    checks.instance("feedback", feedback, AbstractFeedback, "EF14()")

    def keys(count) -> tuple[PRNGKeyArray, PRNGKeyArray]:
        """One common to all workers, and this worker's."""
        key = jax.random.fold_in(jax.random.key(seed), count)
        if axis_name is None or compressor.shared_key:
            return key, key
        return key, jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    def init(params) -> Any:
        # What the server remembers is the same at all workers, whatever the parameters are.
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), params)
        key = jax.random.fold_in(jax.random.key(seed), 0)
        sender = feedback.init(zeros, compressor, key)
        return _MeanState(jnp.zeros((), jnp.int32), sender, feedback.listen(zeros))

    def update(updates, state, params=None, **extra_args) -> tuple[Any, Any]:
        del params, extra_args
        count = state.count + 1
        common, own = keys(count)
        message, sender = feedback.apply(state.sender, updates, compressor, own)
        increment = mean_message_over(compressor, message, updates, axis_name, common)
        estimate, memory = feedback.receive(state.memory, increment)
        return estimate, _MeanState(count, sender, memory)

    return optax.GradientTransformationExtraArgs(cast(Any, init), cast(Any, update))


def error_controlled(
    compressor: AbstractCompressor,
    eta: Any = None,
    axis_name: str | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """`EControl` as a gradient transformation: `compressed_mean` with `compression.ErrorControl`.

    **Arguments:**

    - `compressor`: a contractive one.
    - `eta`: $\\eta \\in [0, 1)$; $\\delta$ of the compressor if `None`.
    - `axis_name`, `seed`: see `compressed_mean`.

    **Raises:** `ValueError` on another $\\eta$.

    **Reference:** Gao, Islamov, Stich, EControl: Fast Distributed Optimization with Compression and
    Error Control, 2024, arXiv:2311.05645.
    """
    return compressed_mean(compressor, ErrorControl(eta), axis_name, seed)
