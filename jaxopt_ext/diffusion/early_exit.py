r"""Networks that stop early where there is much noise: adaptive score estimation.

A denoiser of B blocks is evaluated with the first $n(t)$ of them, fewer near pure noise, in any
sampler: `Denoiser(EarlyExit(network, exits, time), predicts)`. `EarlyExitLoss` makes the head,
which all exits share, fit them.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ..core import checks, loops, tree
from .beyond_u import Merge
from .edm2 import MPJoin
from .magnitude_preserving import mp_cat
from .networks import AbstractNetwork, Join
from .sampler import AbstractSampler
from .schedules import AbstractSchedule, Node, Times
from .segments import AbstractVariableDepth, networks, visited

SLACK = 1e-5
"""Times so little below an edge count as on it: grids stop at edges, up to rounding."""


class ExitSchedule(eqx.Module):
    r"""How many blocks are evaluated: $n(t) = n_i$ for $e_{i-1} \le t < e_i$, t from 0 at the data
    to 1 at noise.

    **Arguments:**

    - `depths`: $n_i$, which do not rise.
    - `edges`: the inner edges $e_1 < e_2 < \dots$, one fewer than depths; equal bins if left out.

    **Raises:** `ValueError` or `TypeError` for depths that rise, that are no whole numbers from 1
    on, or edges that do not rise within (0, 1).

    **Reference:** Moon, Choi, Yun, Yoon, Lee, Cho, Lee, A Simple Early Exiting Framework for
    Accelerated Sampling in Diffusion Models, 2024, arXiv:2408.05927.
    """

    depths: tuple[int, ...] = eqx.field(static=True)
    edges: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, depths, edges=None):
        self.depths = tuple(depths)
        if not self.depths:
            raise ValueError("depths must hold at least one")
        for depth in self.depths:
            checks.count("depths", depth)
        if any(b > a for a, b in zip(self.depths[:-1], self.depths[1:], strict=True)):
            raise ValueError(f"depths must not rise with time, got {self.depths}")
        bins = len(self.depths)
        if edges is None:
            edges = [i / bins for i in range(1, bins)]
        self.edges = tuple(map(float, edges))
        ends = np.array([0.0, *self.edges, 1.0])
        if len(self.edges) != bins - 1 or not np.all(np.diff(ends) > 0):
            raise ValueError(
                f"edges must be {bins - 1} numbers that rise within (0, 1), got {self.edges}"
            )

    def at(self, time: Float[Any, "*n"]) -> Int[Any, "*n"]:
        """$n(t)$: of numbers and arrays of numpy on the host, of JAX arrays there."""
        xp = jnp if isinstance(time, jax.Array) else np
        time = xp.asarray(time)
        edges = xp.asarray(np.asarray(self.edges) - SLACK, time.dtype)
        return xp.asarray(self.depths)[xp.searchsorted(edges, time, side="right")]

    def fraction(self, times: Float[np.ndarray, " n"], num_blocks: int) -> float:
        """The part of `num_blocks` that is evaluated, in the mean over `times`."""
        checks.count("num_blocks", num_blocks)
        return float(np.mean(self.at(np.asarray(times, np.float64))) / num_blocks)


def graded_exits(num_blocks: int, grade: int = 4) -> ExitSchedule:
    """Five depths on ten bins, which fall evenly from all B blocks to $B(1 - g/7)$, rounded.

    With 28 blocks the fourth is the one of the official code for DiT, 28, 28, 24, 24, 20, 20, 16,
    16, 12, 12; the others scale its fall.

    **Arguments:**

    - `num_blocks`: B.
    - `grade`: g, from 1, mild, to 5.

    **Raises:** `ValueError` or `TypeError` for numbers out of range.

    **Reference:** Moon, Choi, Yun, Yoon, Lee, Cho, Lee, A Simple Early Exiting Framework for
    Accelerated Sampling in Diffusion Models, 2024, arXiv:2408.05927.
    """
    checks.count("num_blocks", num_blocks)
    checks.count("grade", grade)
    checks.interval("grade", grade, 1, 5)
    levels = np.linspace(num_blocks, num_blocks * (1 - grade / 7), 5)
    return ExitSchedule(np.repeat(np.maximum(np.round(levels), 1).astype(int), 2).tolist())


class ScheduleTime(eqx.Module):
    """The time of a node in a noise schedule, over that of its start.

    Found from the level, since networks behind `Preconditioned` see another time.

    **Arguments:**

    - `schedule`: that of training.
    """

    schedule: AbstractSchedule

    def __call__(self, node: Node) -> Float[Any, "*n"]:
        xp = jnp if isinstance(node.sigma, jax.Array) else np
        with np.errstate(divide="ignore"):
            log_snr = xp.log(node.alpha) - xp.log(node.sigma)
        return self.schedule.time_at(log_snr) / self.schedule.start


class KarrasTime(eqx.Module):
    r"""Where on the grid `karras` a level $\rho = \sigma/\alpha$ is: from 0 at `low` to 1 at
    `high`, linear in $\rho^{1/\text{power}}$.

    **Arguments:**

    - `low`, `high`: the least and the largest level.
    - `power`: 7 in the paper.

    **Raises:** `ValueError` unless `0 < low < high` and `power > 0`.

    **Reference:** Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based
    Generative Models, 2022, arXiv:2206.00364.
    """

    low: float = eqx.field(static=True, default=0.002)
    high: float = eqx.field(static=True, default=80.0)
    power: float = eqx.field(static=True, default=7.0)

    def __check_init__(self):
        checks.positive("low", self.low)
        checks.positive("power", self.power)
        if not self.low < self.high:
            raise ValueError(f"need low < high, got {self.low} and {self.high}")

    def __call__(self, node: Node) -> Float[Any, "*n"]:
        first, last = self.low ** (1 / self.power), self.high ** (1 / self.power)
        return ((node.sigma / node.alpha) ** (1 / self.power) - first) / (last - first)


@functools.singledispatch
def skipped(block: Any, hidden: Any) -> Any:
    """What is left of a block that is not evaluated: of most, nothing.

    Where the descending side of a network is joined, the linear map that merges it is: without it,
    the numbers of channels would not fit.
    """
    del block
    return hidden


@skipped.register
def _(block: Join, hidden):
    x, kept = hidden
    merge = block.block if isinstance(block.block, Merge) else block.block.skip
    merged = jnp.tensordot(merge.weight, jnp.concatenate([x, kept[-1]]), 1)
    return merged, kept[:-1]


@skipped.register
def _(block: MPJoin, hidden):
    x, kept = hidden
    joined, merge = mp_cat(x, kept[-1], 0.5), block.block.skip
    return (joined if merge is None else merge(joined)), kept[:-1]


def exit_blocks(network: AbstractNetwork) -> tuple[int, ...]:
    """The places of the blocks that may be skipped, the last first to go: those that join, in a
    network that has such; else all."""
    joins = [i for i, block in enumerate(network.blocks) if isinstance(block, Join | MPJoin)]
    return tuple(joins or range(len(network.blocks)))


class _Skipped(eqx.Module):
    """A block that is not evaluated."""

    block: Any

    def __call__(self, hidden, condition):
        del condition
        return skipped(self.block, hidden)


def truncated(network: AbstractNetwork, depth: int) -> AbstractNetwork:
    """The network with the first `depth` of the blocks that may be skipped.

    **Arguments:**

    - `network`: in blocks.
    - `depth`: from 1 to the number of these blocks.
    """
    dropped = exit_blocks(network)[depth:]
    kept = [_Skipped(b) if i in dropped else b for i, b in enumerate(network.blocks)]
    return eqx.tree_at(lambda net: net.blocks, network, tuple(kept))


class _Gated(eqx.Module):
    """A block that is evaluated, and taken where the sample's depth is above its number."""

    block: Any
    number: int | None = eqx.field(static=True)

    def __call__(self, hidden, condition):
        condition, depth = condition
        whole = self.block(hidden, condition)
        if self.number is None:
            return whole
        return tree.where(self.number < depth, whole, skipped(self.block, hidden))


class MixedDepths(AbstractNetwork):
    """`EarlyExit` for samples with a level each: all blocks are evaluated once, and each sample
    takes what its own depth gives.

    **Arguments:**

    - `network`, `exits`, `time`: as for `EarlyExit`.
    """

    network: AbstractNetwork
    exits: ExitSchedule
    time: Callable[[Node], Any]

    def __init__(self, network: AbstractNetwork, exits: ExitSchedule, time: Callable[[Node], Any]):
        self.network, self.exits, self.time = network, exits, time

    @property
    def shape(self):
        """Of a sample."""
        return self.network.shape

    @property
    def blocks(self):
        """Modules, each `(hidden, (condition, depth)) -> hidden`."""
        places = exit_blocks(self.network)
        number = lambda i: places.index(i) if i in places else None
        return tuple(_Gated(block, number(i)) for i, block in enumerate(self.network.blocks))

    def dropping(self, key):
        return eqx.tree_at(lambda s: s.network, self, self.network.dropping(key))

    def stem(self, x, node, label=None):
        hidden, condition = self.network.stem(x, node, label)
        return hidden, (condition, self.exits.at(jnp.asarray(self.time(node))))

    def head(self, hidden, condition):
        return self.network.head(hidden, condition[0])


class EarlyExit(AbstractVariableDepth):
    r"""A network of which at time t the first $n(t)$ blocks are evaluated, and the head.

    Near pure noise the score is easy, and most of a network does nothing for it. In a network whose
    ascending side joins what the descending side kept, blocks of the ascending side are counted,
    and of one that is skipped the linear map that merges the two is kept.

    `sample` finds the depths before the run and cuts it into segments, in each of which the network
    is compiled as deep as it is. Elsewhere, at a level that all samples share, one of as many
    branches as there are depths is taken, all of them under a `vmap` over levels. With a level for
    each sample all blocks are evaluated once, see `MixedDepths`.

    **Arguments:**

    - `network`: in blocks, `MLPDenoiser(...)` say.
    - `exits`: how many blocks at which time.
    - `time`: from a node to its time in [0, 1], `ScheduleTime(schedule)` or `KarrasTime()`, the
      same in training and sampling. Nodes come on the host and traced, and behind `Preconditioned`
      with another `t`: only levels may be looked at.
    - `depths`: those that occur; all of the schedule if left out.

    **Raises:** `ValueError` for depths above the number of blocks that may be skipped; `TypeError`
    for what is no network in blocks or no schedule.

    **Reference:** Moon, Choi, Yun, Yoon, Lee, Cho, Lee, A Simple Early Exiting Framework for
    Accelerated Sampling in Diffusion Models, 2024, arXiv:2408.05927.
    """

    network: AbstractNetwork
    exits: ExitSchedule
    time: Callable[[Node], Any]
    depths: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        network: AbstractNetwork,
        exits: ExitSchedule,
        time: Callable[[Node], Any],
        depths: tuple[int, ...] | None = None,
    ):
        checks.instance("network", network, AbstractNetwork, "MLPDenoiser(...)")
        checks.instance("exits", exits, ExitSchedule, "graded_exits(6)")
        if not callable(time):
            raise TypeError(f"time must be a function of nodes, got {time!r}")
        most = len(exit_blocks(network))
        self.depths = tuple(sorted(set(exits.depths if depths is None else depths)))
        for depth in self.depths:
            checks.count("depths", depth)
        if max(self.depths) > most:
            raise ValueError(f"depths must be at most {most}, the blocks, got {self.depths}")
        self.network, self.exits, self.time = network, exits, time

    def depth_at(self, node):
        return self.exits.at(np.asarray(self.time(node)))

    def at_depth(self, *depths):
        return EarlyExit(self.network, self.exits, self.time, depths)

    @property
    def mixed(self) -> MixedDepths:
        """The same with a level for each sample."""
        return MixedDepths(self.network, self.exits, self.time)

    def __call__(self, x: Array, node: Node, label: Int[Array, "*n"] | None = None) -> Array:
        if any(jnp.ndim(a) for a in node):
            return self.mixed(x, node, label)
        if len(self.depths) == 1:
            return truncated(self.network, self.depths[0])(x, node, label)
        branch = lambda depth: lambda *inputs: truncated(self.network, depth)(*inputs)
        depth = self.exits.at(jnp.asarray(self.time(jax.tree.map(jnp.asarray, node))))
        which = jnp.searchsorted(jnp.asarray(self.depths), depth)
        return loops.switch(which, [*map(branch, self.depths)], x, node, label)


def _is_exit(part: Any) -> bool:
    return isinstance(part, EarlyExit)


class EarlyExitLoss(eqx.Module):
    r"""A loss in which each sample is denoised with the blocks of its own time,

    $$\mathbb E\, \ell\big(x_0, F_{n(t)}(x_t)\big).$$

    Blocks are evaluated once for all samples. For finetuning: from the trained network, by Adam at
    a small rate (1e-5 in the paper), with an average of the weights from there on, the embedding of
    the level frozen by `trainable=all_but_embedding(model)`, for a few percent of its training.

    **Arguments:**

    - `loss`: `(model, batch, context) -> (scalar, metrics)`, the one that the network was trained
      with; `DenoisingLoss(...)` say. It is called with models that hold `MixedDepths`.

    **Raises:** `TypeError` if `loss` is no function, or the model holds no `EarlyExit`.

    **Reference:** Moon, Choi, Yun, Yoon, Lee, Cho, Lee, A Simple Early Exiting Framework for
    Accelerated Sampling in Diffusion Models, 2024, arXiv:2408.05927.
    """

    loss: Callable[[Any, Any, Any], tuple[Float[Array, ""], dict]]

    def __check_init__(self):
        if not callable(self.loss):
            raise TypeError(f"loss must be a function, got {self.loss!r}")

    def __call__(self, model: Any, batch: Any, context: Any) -> tuple[Float[Array, ""], dict]:
        _require_exit(model)
        mix = lambda part: part.mixed if _is_exit(part) else part
        return self.loss(jax.tree.map(mix, model, is_leaf=_is_exit), batch, context)


def _require_exit(model):
    if not any(map(_is_exit, jax.tree.leaves(model, is_leaf=_is_exit))):
        raise TypeError(f"the model must hold an EarlyExit, got {type(model).__name__}")


def all_but_embedding(model: PyTree) -> PyTree[bool]:
    """What of a model is trained when the embedding of the level is not: a pytree of booleans for
    `training.GradientStep`.

    **Arguments:**

    - `model`: one that holds networks in blocks, whose `embedding`, and `condition` where there is
      one, are frozen.
    """
    is_network = lambda part: isinstance(part, AbstractNetwork)

    def flags(part):
        chosen = jax.tree.map(lambda _: True, part)
        if not is_network(part):
            return chosen
        for name in ("embedding", "condition"):
            frozen = jax.tree.map(lambda _: False, getattr(part, name, None))
            if jax.tree.leaves(frozen):
                chosen = eqx.tree_at(lambda net, name=name: getattr(net, name), chosen, frozen)
        return chosen

    return jax.tree.map(flags, model, is_leaf=is_network)


def block_evaluations(
    model: Any, sampler: AbstractSampler, schedule: AbstractSchedule, times: Times
) -> tuple[int, int]:
    """How many blocks that may be skipped a run evaluates, and how many the whole network would.

    Their ratio is the speed-up but for stem, head and blocks that are always evaluated.

    **Arguments:**

    - `model`: one that holds an `EarlyExit`, or several.
    - `sampler`, `schedule`, `times`: of the run.

    **Raises:** `TypeError` if the model holds none.
    """
    _require_exit(model)
    calls = visited(sampler, np.zeros(()), schedule.nodes(times[0]), sampler.plan(schedule, times))
    nodes = [node for step in calls for node in step]
    exits = [net for net in networks(model) if isinstance(net, EarlyExit)]
    evaluated = sum(int(net.depth_at(node)) for net in exits for node in nodes)
    return evaluated, len(nodes) * sum(len(exit_blocks(net.network)) for net in exits)
