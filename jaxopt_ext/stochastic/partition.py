"""A point cut into blocks."""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from ..core import checks, loops
from ..minimize.block_coordinate import AbstractSelection, Cyclic
from ..prox import AbstractFunction, Separable


class Backward(AbstractSelection):
    """Every block once, from the last to the first: layers of a network in this order share what is
    computed of those behind them."""

    def order(self, lipschitz, key):
        return jnp.arange(lipschitz.size)[::-1]


class AbstractPartition(eqx.Module):
    """Blocks of a point, by their number."""

    if TYPE_CHECKING:  # type checkers take equinox's abstract variables for fields
        count: ClassVar[int]
    else:
        count: eqx.AbstractVar[int]

    @abc.abstractmethod
    def take(self, x: PyTree[Array], j: Any) -> Any:
        """Block `j`."""

    @abc.abstractmethod
    def put(self, x: PyTree[Array], j: Any, block: Any) -> PyTree[Array]:
        """The point with another block `j`."""

    @abc.abstractmethod
    def sweep(
        self, selection: AbstractSelection, key: Any, visit: Callable[[Any, Any], Any], carry: Any
    ) -> Any:
        """`carry = visit(j, carry)` for the blocks in the order of the selection."""

    def order(self, selection: AbstractSelection, key: Any) -> Int[Array, " m"]:
        """The blocks of one sweep."""
        return selection.order(jnp.ones(self.count), key)


class _Entries(AbstractPartition):
    """Consecutive entries of the leading axis of one array, those of nothing behind its end."""

    indices: Int[Array, "m s"]
    count: int = eqx.field(static=True)

    def take(self, x, j):
        return x.at[self.indices[j]].get(mode="fill", fill_value=0)

    def put(self, x, j, block):
        return x.at[self.indices[j]].set(block.astype(x.dtype), mode="drop")

    def sweep(self, selection, key, visit, carry):
        order = self.order(selection, key)
        return loops.fori_loop(0, self.count, lambda i, carry: visit(order[i], carry), carry)


class _Leaves(AbstractPartition):
    """Leaves of a pytree, by their numbers."""

    groups: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    @property
    def count(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.groups)

    def take(self, x, j):
        leaves = jax.tree.leaves(x)
        return [leaves[i] for i in self.groups[j]]

    def put(self, x, j, block):
        leaves, treedef = jax.tree.flatten(x)
        for i, leaf in zip(self.groups[j], block, strict=True):
            leaves[i] = leaf.astype(leaves[i].dtype)
        return jax.tree.unflatten(treedef, leaves)

    def sweep(self, selection, key, visit, carry):
        if isinstance(selection, Cyclic | Backward):
            for j in range(self.count) if isinstance(selection, Cyclic) else self._backward():
                carry = visit(j, carry)
            return carry
        order = self.order(selection, key)

        def turn(i, carry):
            for j in range(self.count):
                now = lambda carry, j=j: visit(j, carry)
                carry = loops.cond(order[i] == j, now, lambda carry: carry, carry)
            return carry

        return loops.fori_loop(0, self.count, turn, carry)

    def _backward(self):
        return reversed(range(self.count))


def _entries(d, blocks):
    count = d if blocks is None else blocks
    checks.count("blocks", count)
    if count > d:
        raise ValueError(f"blocks must be at most the {d} entries of the leading axis, got {count}")
    size = -(-d // count)
    count = -(-d // size)
    indices = jnp.arange(count * size, dtype=jnp.int32).reshape(count, size)
    return _Entries(jnp.minimum(indices, d), count)


def _leaves(x, blocks):
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(x)[0]]
    if blocks is None:
        names = [path[:1] for path in paths]
        groups = [[i for i, own in enumerate(names) if own == n] for n in dict.fromkeys(names)]
        return tuple(tuple(group) for group in groups)
    text = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    under = lambda path, root: path == root or path.startswith(root + "/")
    groups = tuple(
        tuple(
            i
            for i, path in enumerate(paths)
            if any(under(text(path), root) for root in ((b,) if isinstance(b, str) else b))
        )
        for b in blocks
    )
    found = sorted(i for group in groups for i in group)
    if found != list(range(len(paths))) or not all(groups):
        names = [text(path) for path in paths]
        raise ValueError(f"blocks must hold each of the leaves {names} once, got {blocks!r}")
    return groups


def partition(x: PyTree[Array], blocks: Any) -> AbstractPartition:
    """The blocks of a point.

    **Arguments:**

    - `x`: the point, of which shapes are used.
    - `blocks`: of one array, into how many parts its leading axis is cut, as evenly as equal sizes
      allow, or `None` for one entry each. Of another pytree, a tuple with a path such as
      `"encoder/weight"`, or a tuple of several, for each block; `None` for the children of the top
      level.

    **Raises:** `ValueError` for more blocks than entries, or paths that do not name each leaf once;
    `TypeError` for a number of blocks of a pytree, or paths of an array.
    """
    if isinstance(x, jax.Array):
        if blocks is not None and not isinstance(blocks, int):
            raise TypeError(f"blocks of one array are given by their number, got {blocks!r}")
        if x.ndim == 0:
            raise ValueError("blocks are of the leading axis of an array, got shape ()")
        return _entries(x.shape[0], blocks)
    if not (blocks is None or isinstance(blocks, tuple)):
        raise TypeError(f"blocks of a pytree are given by a tuple of paths, got {blocks!r}")
    return _Leaves(_leaves(x, blocks))


def require_separable(nonsmooth: Any, x: PyTree[Array], parts: AbstractPartition) -> None:
    """Raise `TypeError` unless a function is a sum over the blocks.

    Functions of each entry or row are; of a `Separable`, those that stay inside of a block.
    """
    if nonsmooth is None or parts.count == 1:
        return
    if isinstance(nonsmooth, Separable) and isinstance(parts, _Leaves):
        owner = {i: j for j, group in enumerate(parts.groups) for i in group}
        numbers = jax.tree.unflatten(jax.tree.structure(x), range(len(owner)))
        is_function = lambda f: isinstance(f, AbstractFunction)

        def inside(function, part):
            owners = {owner[i] for i in jax.tree.leaves(part)}
            if len(owners) > 1 and not _by_entry(function):
                _raise(function)

        jax.tree.map(inside, nonsmooth.functions, numbers, is_leaf=is_function)
    elif not _by_entry(nonsmooth):
        _raise(nonsmooth)


def _by_entry(function):
    return isinstance(function, AbstractFunction) and (
        type(function).block is not AbstractFunction.block
    )


def _raise(function):
    raise TypeError(f"the nonsmooth part must be separable over the blocks, got {function!r}")
