"""PowerSGD: data-parallel training with low-rank gradients."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from ..core import checks, loops
from .algorithm import AbstractNetworkAlgorithm, Loss, node_gradients
from .compression.bits import word
from .compression.low_rank import (
    HIGHEST,
    alive,
    as_matrix,
    from_matrix,
    matrix_shape,
    orthonormal,
)


class PowerMemory(eqx.Module):
    """What a worker remembers. Matrices of one shape and type are one stack of $l$.

    **Attributes:**

    - `count`: steps taken.
    - `left`, `right`: the last factors, stacks $(l, n, r)$ and $(l, m, r)$, the same at all
      workers; empty where the next step does not start from them.
    - `error`: what was not sent, stacks $(l, n, m)$, each worker's own; empty without feedback.
    """

    count: Int[Array, "..."]
    left: tuple[Array, ...]
    right: tuple[Array, ...]
    error: tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class _Stack:
    """The leaves whose matrices are n x m of one type."""

    n: int
    m: int
    rank: int
    dtype: Any
    indices: tuple[int, ...]

    @property
    def wide(self):
        return jnp.promote_types(self.dtype, jnp.float32)


def _product(a, b):
    return jnp.matmul(a, b, precision=HIGHEST)


def _adjoint(a):
    return jnp.conj(jnp.swapaxes(a, -1, -2))


@dataclasses.dataclass(frozen=True)
class _Workers:
    """How the workers' values are held.

    `each(f)` is f at every worker; `mean` takes a vector of each worker to their mean, held once.
    """

    each: Callable[[Callable], Callable]
    mean: Callable[[Array], Array]

    def means(self, values: list[Array], likes: list[Any]) -> list[Array]:
        """The means of many arrays, in one buffer for each type."""
        found: list[Any] = [None] * len(values)
        for dtype in dict.fromkeys(jnp.dtype(like.dtype) for like in likes):
            mine = [i for i, like in enumerate(likes) if like.dtype == dtype]
            join = lambda *parts: jnp.concatenate([part.reshape(-1) for part in parts])
            buffer = self.mean(self.each(join)(*(values[i] for i in mine)))
            start = 0
            for i in mine:
                size = likes[i].size
                found[i] = buffer[start : start + size].reshape(likes[i].shape)
                start += size
        return found


@dataclasses.dataclass(frozen=True)
class _Scheme:
    """The compression apart from where workers live; all of it is static."""

    rank: int
    warm_start: bool
    power_iterations: int
    alternate: bool
    start: int
    min_compression: float | None
    error_feedback: bool
    channel_axis: int
    seed: int

    def __post_init__(self):
        checks.count("rank", self.rank)
        checks.count("power_iterations", self.power_iterations)
        checks.count("start", self.start, minimum=0)
        if self.min_compression is not None:
            checks.nonnegative("min_compression", self.min_compression)
        if self.alternate and not self.warm_start:
            raise ValueError("alternate=True goes on from the last factors: it needs warm_start")

    def numbers(self, n: int, m: int) -> float:
        """Numbers sent for a matrix in one step, on average."""
        return self.power_iterations * min(self.rank, n, m) * (n + m) / (2 if self.alternate else 1)

    def split(self, likes: list[Any]) -> tuple[list[_Stack], list[int]]:
        """Stacks of the leaves that are compressed, and the numbers of all others."""
        stacks: dict[Any, list[int]] = {}
        rest = []
        for i, like in enumerate(likes):
            worth, shape = len(like.shape) > 1 and like.size > 0, ()
            if worth:
                shape = matrix_shape(like.shape, self.channel_axis)
            if worth and self.min_compression is not None:
                worth = like.size / self.numbers(*shape) > self.min_compression
            if worth:
                stacks.setdefault((*shape, jnp.dtype(like.dtype)), []).append(i)
            else:
                rest.append(i)
        found = [
            _Stack(n, m, min(self.rank, n, m), dtype, tuple(indices))
            for (n, m, dtype), indices in stacks.items()
        ]
        return found, rest

    def _fresh(self, step, stacks: list[_Stack], rows: list[int]) -> list[Array]:
        """Normal factors of so many rows, the same at all workers and in all precisions."""
        shapes = [(len(s.indices), n, s.rank) for s, n in zip(stacks, rows, strict=True)]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        draws = jax.random.normal(key, (int(ends[-1]) if stacks else 0,), jnp.float32)
        parts = jnp.split(draws, ends[:-1])
        return [
            a.reshape(shape).astype(s.wide)
            for a, shape, s in zip(parts, shapes, stacks, strict=False)
        ]

    def init(self, likes: list[Any]) -> PowerMemory:
        stacks, _ = self.split(likes)
        lefts, rights = [s.n for s in stacks], [s.m for s in stacks]
        zeros = [jnp.zeros((len(s.indices), s.n, s.m), s.wide) for s in stacks]
        return PowerMemory(
            jnp.zeros((), jnp.int32),
            tuple(self._fresh(0, stacks, lefts)) if self.alternate else (),
            tuple(self._fresh(0, stacks, rights)) if self.warm_start else (),
            tuple(zeros) if self.error_feedback else (),
        )

    def step(
        self, leaves: list[Array], likes: list[Any], memory: PowerMemory, workers: _Workers
    ) -> tuple[list[Array], PowerMemory]:
        """The mean gradient as all workers know it.

        Leaves and errors are as `workers` holds them; count, factors and results are held once.
        """
        compressed = lambda: self._compressed(leaves, likes, memory, workers)
        if not self.start:
            return compressed()
        plain = lambda: (
            workers.means(leaves, likes),
            PowerMemory(memory.count + 1, memory.left, memory.right, memory.error),
        )
        return loops.cond(memory.count < self.start, plain, compressed)

    def _compressed(self, leaves, likes, memory, workers):
        stacks, rest = self.split(likes)
        each = workers.each

        def gather(stack):
            join = lambda *parts: jnp.stack(
                [as_matrix(part, self.channel_axis).astype(stack.wide) for part in parts]
            )
            return each(join)(*(leaves[i] for i in stack.indices))

        left_over = [gather(stack) for stack in stacks]
        if self.error_feedback:
            left_over = [each(jnp.add)(a, e) for a, e in zip(left_over, memory.error, strict=True)]
        others = [leaves[i] for i in rest], [likes[i] for i in rest]
        iterate = self._half_steps if self.alternate else self._whole_steps
        approximations, others, left, right = iterate(stacks, left_over, others, memory, workers)
        error = ()
        if self.error_feedback:
            subtract = lambda a, b: each(lambda x: x - b)(a)
            error = tuple(map(subtract, left_over, approximations))

        found: list[Any] = [None] * len(leaves)
        for i, value in zip(rest, others, strict=True):
            found[i] = value
        for stack, values in zip(stacks, approximations, strict=True):
            for i, value in zip(stack.indices, values, strict=True):
                shaped = from_matrix(value, likes[i].shape, self.channel_axis)
                found[i] = shaped.astype(likes[i].dtype)
        return found, PowerMemory(memory.count + 1, left, right, error)

    def _means(self, stacks, rows, values, others, workers):
        """Means of one factor of each stack, and of what is not compressed, in the types of the
        gradients."""
        cast = lambda stack, value: workers.each(lambda a: a.astype(stack.dtype))(value)
        likes = [
            jax.ShapeDtypeStruct((len(s.indices), n, s.rank), s.dtype)
            for s, n in zip(stacks, rows, strict=True)
        ]
        sent = [*map(cast, stacks, values), *others[0]]
        found = workers.means(sent, likes + others[1])
        factors = [a.astype(s.wide) for a, s in zip(found, stacks, strict=False)]
        return factors, found[len(stacks) :]

    def _whole_steps(self, stacks, matrices, others, memory, workers):
        """Both factors in every step."""
        fresh = self._fresh(memory.count + 1, stacks, [s.m for s in stacks])
        right = memory.right if self.warm_start else fresh
        left, rest, nothing = [], [], ([], [])
        for iteration in range(self.power_iterations):
            sent = [
                workers.each(lambda a, q=q: _product(a, q))(a)
                for a, q in zip(matrices, right, strict=True)
            ]
            left, more = self._means(
                stacks, [s.n for s in stacks], sent, nothing if iteration else others, workers
            )
            rest = rest if iteration else more
            left = list(map(orthonormal, left))
            sent = [
                workers.each(lambda a, p=p: _product(_adjoint(a), p))(a)
                for a, p in zip(matrices, left, strict=True)
            ]
            right, _ = self._means(stacks, [s.m for s in stacks], sent, nothing, workers)
        approximations = [_product(p, _adjoint(q)) for p, q in zip(left, right, strict=True)]
        kept = tuple(map(_alive, right, fresh)) if self.warm_start else ()
        return approximations, rest, (), kept

    def _half_steps(self, stacks, matrices, others, memory, workers):
        """One factor in every step, the other from the step before."""
        nothing = ([], [])
        approximations = [jnp.zeros((len(s.indices), s.n, s.m), s.wide) for s in stacks]
        left, right, rest = memory.left, memory.right, []

        def half(transposed, matrices, left, right, others):
            """The right factor from the left one, or of the adjoints."""
            rows = [s.n if transposed else s.m for s in stacks]
            known, turn = (right, lambda a: a) if transposed else (left, _adjoint)
            known = tuple(map(orthonormal, known))
            sent = [
                workers.each(lambda a, p=p: _product(turn(a), p))(a)
                for a, p in zip(matrices, known, strict=True)
            ]
            new, rest = self._means(stacks, rows, sent, others, workers)
            pairs = (new, known) if transposed else (known, new)
            pieces = [_product(p, _adjoint(q)) for p, q in zip(*pairs, strict=True)]
            new = tuple(map(_alive, new, self._fresh(memory.count + 1, stacks, rows)))
            return pieces, rest, *((new, known) if transposed else (known, new))

        for iteration in range(self.power_iterations):
            first = others if iteration == 0 else nothing
            odd = (memory.count * self.power_iterations + iteration) % 2 == 1
            pieces, more, left, right = loops.cond(
                odd,
                lambda m, p, q, f=first: half(True, m, p, q, f),
                lambda m, p, q, f=first: half(False, m, p, q, f),
                matrices,
                tuple(left),
                tuple(right),
            )
            rest = rest if iteration else more
            approximations = list(map(jnp.add, approximations, pieces))
            matrices = [
                workers.each(lambda a, b=b: a - b)(a) for a, b in zip(matrices, pieces, strict=True)
            ]
        return approximations, rest, tuple(left), tuple(right)


_alive = jax.vmap(alive)


def _likes(leaves, drop=0):
    return [jax.ShapeDtypeStruct(jnp.shape(a)[drop:], jnp.result_type(a)) for a in leaves]


def powersgd(
    rank: int,
    axis_name: str | None = None,
    warm_start: bool = True,
    power_iterations: int = 1,
    min_compression: float | None = None,
    seed: int = 0,
    *,
    alternate: bool = False,
    start: int = 0,
    error_feedback: bool = True,
    channel_axis: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Averages gradients over workers by factors of rank r, which are all that travels.

    A leaf with two or more axes is a matrix $M_k$ (n x m) at worker k. With $Q$ (m x r) the same
    at all workers and $e_k = 0$ at first,

    $$D_k = M_k + e_k, \\qquad P = \\mathrm{orthonormal}\\Bigl(\\tfrac1K \\sum_k D_k Q\\Bigr),
      \\qquad Q \\leftarrow \\tfrac1K \\sum_k D_k' P, \\qquad \\hat D = P Q',
      \\qquad e_k \\leftarrow D_k - \\hat D .$$

    It is linear: K workers give what one gives on the mean gradient. All $P$ are one buffer with
    the leaves that are not matrices, which are averaged as they are, and all $Q$ are another, so
    that a step is two all-reduces, of $r(n + m)$ numbers in place of $nm$, in the type of the
    gradients. Put it before momentum and everything else, as in
    `optax.chain(powersgd(2, "workers"), sum_momentum(0.9), optax.scale(-0.1))`. The paper
    multiplies the learning rate of one worker by their number, grows it linearly in the first five
    epochs, and adds weight decay, of matrices only, after this transformation.

    **Arguments:**

    - `rank`: $r \\ge 1$, cut to $\\min(n, m)$.
    - `axis_name`: the axis of `shard_map` or `vmap` over the workers; `None` for one worker, who
      gets the approximation of its own gradient.
    - `warm_start`: go on from the last $Q$; else it is drawn anew in every step.
    - `power_iterations`: how often $P$ and $Q$ are computed in a step; four come close to the best
      approximation.
    - `min_compression`: only matrices whose message is so many times smaller are compressed; all
      if `None`. The later library of the authors has 2.
    - `seed`: of the $Q$, which must be the same at all workers.
    - `alternate`: a step computes one of the factors, from the other of the step before: half the
      traffic, one all-reduce. This is the form of the later library.
    - `start`: steps at the beginning that average whole gradients; 100 in the later library.
    - `error_feedback`: without it what is not sent is lost.
    - `channel_axis`: the axis of a leaf that is the rows of its matrix, that of the outputs; -1
      for kernels that are stored output last.

    The state is a `PowerMemory`: $Q$ and $e_k$ in at least single precision. Its errors differ
    from worker to worker, and belong into checkpoints.

    **Raises:** `ValueError` or `TypeError` on bad counts, and if `alternate` has no warm start.

    **Reference:** Vogels, Karimireddy, Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for
    Distributed Optimization, 2019, arXiv:1905.13727.
    """
    scheme = _Scheme(
        rank,
        warm_start,
        power_iterations,
        alternate,
        start,
        min_compression,
        error_feedback,
        channel_axis,
        seed,
    )
    average = (lambda x: x) if axis_name is None else (lambda x: jax.lax.pmean(x, axis_name))
    workers = _Workers(lambda f: f, average)

    def init(params) -> Any:
        return scheme.init(_likes(jax.tree.leaves(params)))

    def update(updates, state, params=None, **extra_args) -> tuple[Any, Any]:
        del params, extra_args
        leaves, treedef = jax.tree.flatten(updates)
        found, state = scheme.step(leaves, _likes(leaves), state, workers)
        return jax.tree.unflatten(treedef, found), state

    return optax.GradientTransformationExtraArgs(init, update)


def sum_momentum(decay: float = 0.9) -> optax.GradientTransformation:
    """The momentum of PowerSGD, $v \\leftarrow \\mu v + g$, update $g + v$.

    **Arguments:**

    - `decay`: $\\mu \\in [0, 1)$.

    **Reference:** Vogels, Karimireddy, Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for
    Distributed Optimization, 2019, arXiv:1905.13727.
    """
    checks.interval("decay", decay, 0, 1, open_high=True)
    trace = optax.trace(decay)

    def update(updates, state, params=None):
        velocity, state = trace.update(updates, state, params)
        return jax.tree.map(jnp.add, updates, velocity), state

    return optax.GradientTransformation(trace.init, update)


class _State(eqx.Module):
    params: PyTree[Array]
    optimizer: Any
    memory: PowerMemory


class PowerSGD(AbstractNetworkAlgorithm):
    """Data-parallel training in which gradients travel as factors of rank r: `powersgd` over the
    nodes of a network, then any optimizer, at every node alike.

    Nodes start from one point and stay together. A round is two means over all nodes
    (`Network.mean`), one with `alternate`, of what `powersgd` says.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `optimizer`: an `optax` transformation of the mean gradient, such as
      `optax.chain(sum_momentum(0.9), optax.scale(-0.1))`.
    - `rank`, `warm_start`, `power_iterations`, `min_compression`, `seed`, `alternate`, `start`,
      `error_feedback`, `channel_axis`: see `powersgd`.

    **Raises:** as `powersgd`.

    **Reference:** Vogels, Karimireddy, Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for
    Distributed Optimization, 2019, arXiv:1905.13727.
    """

    loss: Loss
    optimizer: optax.GradientTransformation
    rank: int = eqx.field(static=True)
    warm_start: bool = eqx.field(static=True, default=True)
    power_iterations: int = eqx.field(static=True, default=1)
    min_compression: float | None = eqx.field(static=True, default=None)
    seed: int = eqx.field(static=True, default=0)
    alternate: bool = eqx.field(static=True, default=False, kw_only=True)
    start: int = eqx.field(static=True, default=0, kw_only=True)
    error_feedback: bool = eqx.field(static=True, default=True, kw_only=True)
    channel_axis: int = eqx.field(static=True, default=0, kw_only=True)

    def __check_init__(self):
        self._scheme()

    def _scheme(self) -> _Scheme:
        return _Scheme(
            self.rank,
            self.warm_start,
            self.power_iterations,
            self.alternate,
            self.start,
            self.min_compression,
            self.error_feedback,
            self.channel_axis,
            self.seed,
        )

    def init(self, params, batch, network, key):
        count = network.index().shape[0]
        memory = self._scheme().init(_likes(jax.tree.leaves(params), 1))
        return _State(params, jax.vmap(self.optimizer.init)(params), _copies(memory, count))

    def round(self, state, batch, network, key):
        count = network.index().shape[0]
        leaves, treedef = jax.tree.flatten(node_gradients(self.loss, state.params, batch))
        once = jax.tree.map(lambda a: a[0], state.memory)
        memory = PowerMemory(once.count, once.left, once.right, state.memory.error)
        workers = _Workers(jax.vmap, lambda x: network.mean(x)[0])
        found, memory = self._scheme().step(leaves, _likes(leaves, 1), memory, workers)
        error, memory = memory.error, PowerMemory(memory.count, memory.left, memory.right, ())
        memory = _copies(memory, count)
        direction = _copies(jax.tree.unflatten(treedef, found), count)
        updates, optimizer = jax.vmap(self.optimizer.update)(
            direction, state.optimizer, state.params
        )
        params = jax.vmap(optax.apply_updates)(state.params, updates)
        memory = PowerMemory(memory.count, memory.left, memory.right, error)
        return _State(params, optimizer, memory)

    def bits_per_round(self, params, network):
        """What one node gives to the means, on average; after `start` rounds."""
        scheme, likes = self._scheme(), _likes(jax.tree.leaves(params), 1)
        stacks, rest = scheme.split(likes)
        bits = sum(likes[i].size * word(likes[i].dtype) for i in rest)
        for stack in stacks:
            each = scheme.numbers(stack.n, stack.m) * word(stack.dtype)
            bits += round(len(stack.indices) * each)
        return bits


def _copies(x, count):
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *jnp.shape(a))), x)
