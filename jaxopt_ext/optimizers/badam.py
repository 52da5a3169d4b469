"""BAdam: Adam on one block of the parameters at a time, so that its state is one block large."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import SequenceKey
from jaxtyping import Array, Float, Int, Key, PyTree

from ..core import checks, loops
from ._devices import on_each_device
from ._leafwise import is_zero, next_count, rate_at, require_params, wide

Blocks = Sequence[Callable[[str], bool]] | PyTree[int]
"""How leaves are told apart: predicates on a leaf's path, or a tree of integer labels."""

FROZEN = -1


class BAdamState(NamedTuple):
    """State of `badam`.

    - `count`: number of updates.
    - `inner_count`: updates of the current block.
    - `block`: the block that the next update will change.
    - `position`, `order`: where in the order of this block epoch we are.
    - `key`: for the orders to come.
    - `inner`: state of the inner transformation, of the current block alone.
    """

    count: Int[Array, ""]
    inner_count: Int[Array, ""]
    block: Int[Array, ""]
    position: Int[Array, ""]
    order: Int[Array, " blocks"]
    key: Key[Array, ""]
    inner: optax.OptState


def badam(
    learning_rate: optax.ScalarOrSchedule,
    blocks: Blocks,
    *,
    inner: Callable[[float], optax.GradientTransformation] = optax.adam,
    switch_every: int = 50,
    order: Literal["random", "ascending", "descending", "fixed"] = "random",
    start_block: int | None = None,
    active_blocks: Sequence[int] = (),
    weight_decay: float = 0.0,
    decay_mask: PyTree[bool] | Callable[[optax.Params], PyTree[bool]] | None = None,
    packed: bool = True,
    strict: bool = True,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam on one block of the parameters at a time (block coordinate descent).

    The leaves are cut into D blocks, as a rule the layers. For each block i in turn the moments
    start from zero, and for K = `switch_every` updates, with inner counter k = 1..K,

    $$m = β_1 m + (1-β_1) g_i, \quad v = β_2 v + (1-β_2) g_i^2, \quad
    θ_i \mathrel{-}= η_t \left(\frac{m/(1-β_1^k)}{\sqrt{v/(1-β_2^k)} + ε} + λ θ_i\right),$$

    while all other blocks stay as they are, decay included. So the state is two numbers for each
    parameter of the largest block, where Adam keeps two for every parameter. Only the gradient of
    the current block is used; `value_and_block_grad` computes no other.

    **Arguments:**

    - `learning_rate`: η, a number, or a schedule of the number of updates so far (that count
      runs on when the block changes).
    - `blocks`: a sequence of predicates, predicate i telling from a leaf's path such as
      `"layers/0/weight"` whether it is in block i (the first that says yes wins); or a tree of
      integer labels 0..D-1 of the parameters' structure or a prefix of it, -1 for frozen leaves.
      `blocks_by_layer` makes one.
    - `inner`: called with the learning rate 1, gives the transformation that runs on a block. With
      `packed=True` it must work entry by entry, as `optax.adam` and `optax.lion` do.
    - `switch_every`: K, updates of a block before the next one's turn.
    - `order`: `"random"`, a new permutation each block epoch; `"ascending"`; `"descending"`; or
      `"fixed"`, `start_block` for ever, its moments restarted every K updates.
    - `start_block`: the first block; by default 0, and D-1 if descending. Not for random order.
    - `active_blocks`: labels of blocks that are trained along with every other one, such as an
      embedding and a head. Their moments restart with each block, too.
    - `weight_decay`: λ, decoupled and scaled by the learning rate.
    - `decay_mask`: tree of booleans, or a function from parameters to one: which leaves decay. By
      default those with two axes or more, so neither biases nor scales.
    - `packed`: keep one flat buffer of the largest block's size per moment. `False` keeps a full
      tree per moment, zero outside the current block's turn: more memory, the same numbers, and
      the sharding of each leaf is kept.
    - `strict`: raise on leaves that are in no block or have no entries, and on blocks without
      leaves; `False` freezes such leaves and idles in such blocks.
    - `seed`: of the random orders.

    **Returns:** a gradient transformation. `state.block` is the block of the next update.

    **Raises:** `ValueError` on blocks that do not fit the parameters, and from `update` if
    `weight_decay` is used without `params`.

    **Reference:** Luo, Yu, Li, BAdam: A Memory Efficient Full Parameter Training Method for Large
    Language Models, 2024, arXiv:2404.02827.
    """
    if not callable(learning_rate):
        checks.nonnegative("learning_rate", learning_rate)
    checks.count("switch_every", switch_every)
    checks.nonnegative("weight_decay", weight_decay)
    cut = _Cut(blocks, tuple(active_blocks))
    fixed_order = _fixed_order(order, cut.turns, start_block)
    direction = inner(1.0)
    decays = not is_zero(weight_decay)

    def next_order(key):
        if fixed_order is not None:
            return jnp.asarray(fixed_order, jnp.int32)
        return jax.random.permutation(key, jnp.asarray(cut.turns, jnp.int32))

    def fresh(labels, leaves, treedef):
        """The inner transformation's state at the start of a block."""
        if packed:
            return direction.init(cut.buffer(labels, leaves))
        zeros = [jnp.zeros(leaf.shape, wide(leaf.dtype)) for leaf in leaves]
        return direction.init(jax.tree.unflatten(treedef, zeros))

    def init(params):
        leaves, treedef = _flatten(params)
        labels = cut.labels(params)
        if strict and leaves:
            cut.require_fit(labels, params)
        key, subkey = jax.random.split(jax.random.key(seed))
        order = next_order(subkey)
        zero = jnp.zeros((), jnp.int32)
        return BAdamState(zero, zero, order[0], zero, order, key, fresh(labels, leaves, treedef))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        if decays:
            require_params(params, "weight_decay")
        leaves, treedef = _flatten(updates)
        values = [None] * len(leaves) if params is None else treedef.flatten_up_to(params)
        labels = cut.labels(updates)
        decaying = _decaying(decay_mask, params, leaves) if decays else [False] * len(leaves)

        if packed:
            pack = functools.partial(cut.pack, labels, state.block)
            flat, inner_state = direction.update(
                pack(leaves), state.inner, None if params is None else pack(values)
            )
            moved = cut.unpack(labels, flat, leaves)
        else:
            widen = lambda x: None if x is None else x.astype(wide(x.dtype))
            tree = lambda xs: jax.tree.unflatten(treedef, [widen(x) for x in xs])
            moved, inner_state = direction.update(
                tree(leaves), state.inner, None if params is None else tree(values)
            )
            moved = treedef.flatten_up_to(moved)

        def finish(label, u, gradient, value, decay):
            u = u if jnp.iscomplexobj(gradient) else u.real
            step = u - weight_decay * value.astype(u.dtype) if decay else u
            rate = rate_at(learning_rate, state.count, u.real.dtype)
            step = jnp.where(cut.in_turn(label, state.block), rate * step, 0)
            return step.astype(gradient.dtype)

        out = list(map(finish, labels, moved, leaves, values, decaying))

        inner_count = next_count(state.inner_count)
        block_ended = inner_count >= switch_every
        position = state.position + block_ended.astype(jnp.int32)
        epoch_ended = position >= len(cut.turns)
        position = jnp.where(epoch_ended, 0, position)

        def redraw(key):
            key, subkey = jax.random.split(key)
            return next_order(subkey), key

        order, key = loops.cond(epoch_ended, redraw, lambda key: (state.order, key), state.key)
        return jax.tree.unflatten(treedef, out), BAdamState(
            next_count(state.count),
            jnp.where(block_ended, 0, inner_count),
            order[position],
            position,
            order,
            key,
            jax.tree.map(
                lambda new, old: jnp.where(block_ended, new, old),
                fresh(labels, leaves, treedef),
                inner_state,
            ),
        )

    return on_each_device(optax.GradientTransformationExtraArgs(init, update))


def blocks_by_layer(params: optax.Params, depth: int | None = None) -> PyTree[int]:
    """Label the leaves of each layer with the layer's number, in the order of the tree.

    **Arguments:**

    - `params`: the parameters.
    - `depth`: leaves whose paths agree in their first `depth` keys form a layer. By default a
      layer is an entry of a list or tuple where the path goes through one (the outermost), and
      else the node that holds the leaf.

    **Returns:** a tree of ints of the structure of `params`, for `badam`.
    """
    if depth is not None:
        checks.count("depth", depth)
    numbers: dict[tuple, int] = {}

    def label(path, leaf):
        end = depth
        if end is None:
            through = [i for i, key in enumerate(path) if isinstance(key, SequenceKey)]
            end = through[0] + 1 if through else len(path) - 1
        return numbers.setdefault(tuple(path[:end]), len(numbers))

    return jax.tree.map_with_path(label, params)


def value_and_block_grad(
    loss: Callable[..., Float[Array, ""]], blocks: Blocks, active_blocks: Sequence[int] = ()
) -> Callable[..., tuple[Float[Array, ""], optax.Updates]]:
    """The loss and its gradient with respect to one block, zero elsewhere.

    Only the block is differentiated: no gradient of another leaf is formed, and reverse mode
    stops at the deepest layer of the block.

    **Arguments:**

    - `loss`: function of the parameters and further arguments.
    - `blocks`, `active_blocks`: as given to `badam`.

    **Returns:** a function of (params, block, *args), with `block` an integer such as
    `state.block`, that returns the loss and a tree shaped like the parameters.

    **Example:**

    ```python
    grad = value_and_block_grad(loss, blocks)
    value, updates = grad(params, state.block, batch)
    updates, state = tx.update(updates, state, params)
    ```
    """
    cut = _Cut(blocks, tuple(active_blocks))

    def function(params, block, *args):
        leaves, treedef = jax.tree.flatten(params)
        labels = cut.labels(params)

        def branch(number):
            mine = [cut.in_block(label, number) for label in labels]

            def run(leaves):
                def on_block(chosen):
                    chosen = iter(chosen)
                    merged = [
                        next(chosen) if own else jax.lax.stop_gradient(leaf)
                        for own, leaf in zip(mine, leaves, strict=True)
                    ]
                    return loss(jax.tree.unflatten(treedef, merged), *args)

                chosen = [leaf for own, leaf in zip(mine, leaves, strict=True) if own]
                value, grads = jax.value_and_grad(on_block)(chosen)
                grads = iter(grads)
                return value, [
                    next(grads) if own else jnp.zeros_like(leaf)
                    for own, leaf in zip(mine, leaves, strict=True)
                ]

            return run

        branches = [branch(number) for number in range(cut.num_blocks)]
        value, grads = jax.lax.switch(block, branches, leaves)
        return value, jax.tree.unflatten(treedef, grads)

    return function


class _Cut:
    """A partition of the leaves in blocks; all of it is settled while tracing."""

    def __init__(self, blocks: Blocks, active: tuple[int, ...]):
        leaves = jax.tree.leaves(blocks)
        if not leaves:
            raise ValueError("blocks must name at least one block, got none")
        self.predicates = None
        if all(callable(leaf) for leaf in leaves):
            self.predicates = leaves
            self.num_blocks = len(leaves)
        elif all(isinstance(leaf, int) and not isinstance(leaf, bool) for leaf in leaves):
            self.num_blocks = max(leaves) + 1
            if set(leaves) - {FROZEN} != set(range(self.num_blocks)):
                raise ValueError(
                    "labels in blocks must be 0, 1, ..., D-1, each used, or -1 for frozen, got "
                    f"{sorted(set(leaves))}"
                )
        else:
            raise TypeError(
                "blocks must be a sequence of predicates on paths or a tree of int labels, got "
                f"{blocks!r}"
            )
        self.blocks = blocks
        self.active = frozenset(active)
        if any(not 0 <= label < self.num_blocks for label in active):
            raise ValueError(f"active_blocks must be in [0, {self.num_blocks}), got {active}")
        self.turns = [label for label in range(self.num_blocks) if label not in self.active]
        if not self.turns:
            raise ValueError(f"active_blocks must leave a block that takes turns, got {active}")

    def labels(self, tree) -> list[int]:
        """The block of each leaf."""
        if self.predicates is None:
            spread = lambda label, part: jax.tree.map(lambda leaf: label, part)
            try:
                return jax.tree.leaves(jax.tree.map(spread, self.blocks, tree))
            except ValueError as error:
                if not jax.tree.leaves(tree):
                    return []
                raise ValueError(f"blocks must have the structure of params: {error}") from error
        predicates = list(enumerate(self.predicates))
        names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
        return [next((i for i, holds in predicates if holds(name)), FROZEN) for name in names]

    def require_fit(self, labels, tree):
        """Raise if a leaf is nowhere or without entries, or if a block is without leaves."""
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        for label, (path, leaf) in zip(labels, leaves, strict=True):
            if label == FROZEN and self.predicates is not None:
                raise ValueError(
                    f"every leaf must be in a block, got none for {_name(path)}; pass strict=False "
                    "to freeze such leaves"
                )
            if jnp.size(leaf) == 0:
                raise ValueError(
                    f"leaf {_name(path)} of shape {leaf.shape} has no entries; pass strict=False "
                    "to pass over such leaves"
                )
        empty = sorted(set(range(self.num_blocks)) - set(labels))
        if empty:
            raise ValueError(f"every block must hold a leaf, got none for {empty}")

    def in_block(self, label: int, block: int) -> bool:
        """Whether leaves of this label move while `block` has its turn."""
        return label == block or label in self.active

    def in_turn(self, label: int, block: Int[Array, ""]):
        """The same for a block that is known at run time only."""
        return True if label in self.active else block == label

    def slots(self, labels, leaves) -> tuple[list[int], int]:
        """Where each leaf starts in the flat buffer of its block, and the buffer's size.

        Leaves that are always on come first, so that every leaf has one place.
        """
        ends = dict.fromkeys(self.turns, 0)
        starts = [0] * len(leaves)
        common = 0
        for i, (label, leaf) in enumerate(zip(labels, leaves, strict=True)):
            if label in self.active:
                starts[i] = common
                common += leaf.size
        for i, (label, leaf) in enumerate(zip(labels, leaves, strict=True)):
            if label in ends:
                starts[i] = common + ends[label]
                ends[label] += leaf.size
        return starts, common + max(ends.values())

    def buffer(self, labels, leaves) -> Array:
        """Zeros for the largest block."""
        dtype = jnp.result_type(jnp.float32, *[wide(leaf.dtype) for leaf in leaves])
        return jnp.zeros(self.slots(labels, leaves)[1], dtype)

    def pack(self, labels, block, leaves) -> Array:
        """The current block's leaves, each in its slot; zeros behind them."""
        empty = self.buffer(labels, leaves)
        starts, size = self.slots(labels, leaves)

        def branch(number):
            def run(leaves):
                own = [i for i, label in enumerate(labels) if self.in_block(label, number)]
                own = sorted(own, key=lambda i: (starts[i], leaves[i].size))
                parts = [leaves[i].reshape(-1).astype(empty.dtype) for i in own]
                flat = jnp.concatenate([*parts, empty[:0]])
                return jnp.pad(flat, (0, size - flat.size))

            return run

        # Blocks that are always on have no turn of their own, so their branch is never taken.
        numbers = [i if i in self.turns else self.turns[0] for i in range(self.num_blocks)]
        return jax.lax.switch(block, [branch(number) for number in numbers], leaves)

    def unpack(self, labels, flat, leaves) -> list[Array]:
        """For each leaf what lies in its slot, which is its own only if its block has its turn."""
        starts, _ = self.slots(labels, leaves)
        return [
            jnp.zeros(leaf.shape, flat.dtype)
            if label == FROZEN
            else flat[start : start + leaf.size].reshape(leaf.shape)
            for label, start, leaf in zip(labels, starts, leaves, strict=True)
        ]


def _flatten(tree):
    leaves, treedef = jax.tree.flatten(tree)
    return [jnp.asarray(leaf) for leaf in leaves], treedef


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _fixed_order(order: str, turns: list[int], start: int | None) -> list[int] | None:
    """The blocks in the order of their turns; `None` if it is random."""
    if order not in ("random", "ascending", "descending", "fixed"):
        raise ValueError(
            f"order must be 'random', 'ascending', 'descending' or 'fixed', got {order!r}"
        )
    if start is not None and start not in turns:
        raise ValueError(
            f"start_block must be one of the blocks that take turns, {turns}, got {start}"
        )
    if order == "random":
        if start is not None:
            raise ValueError(f"start_block must be None if order is random, got {start}")
        return None
    if order == "descending":
        turns = turns[::-1]
    at = 0 if start is None else turns.index(start)
    return [turns[at]] * len(turns) if order == "fixed" else turns[at:] + turns[:at]


def _decaying(mask, params, leaves) -> list[bool]:
    """Which leaves decay."""
    if mask is None:
        return [leaf.ndim >= 2 for leaf in leaves]
    tree = mask(params) if callable(mask) else mask
    spread = lambda on, part: jax.tree.map(lambda leaf: bool(on), part)
    return jax.tree.leaves(jax.tree.map(spread, tree, params))
