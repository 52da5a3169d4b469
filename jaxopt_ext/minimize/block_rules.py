"""Partitions of coordinates into blocks, and rules that choose a block."""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..core import checks, loops
from .coordinate_model import gather
from .curvature import AbstractCurvature, largest_eigenvalue, solve_block
from .forest import greedy_forest
from .separable import Separable

Table = Int[Array, "m s"]


class AbstractArrangement(eqx.Module):
    """The order in which coordinates are dealt out to fixed blocks."""

    @abc.abstractmethod
    def order(self, lipschitz: Float[Array, " d"]) -> Int[Array, " d"]:
        """The coordinates; each run of `size` is a block."""


class InOrder(AbstractArrangement):
    """As they come."""

    def order(self, lipschitz):
        return jnp.arange(lipschitz.size)


class Sorted(AbstractArrangement):
    """By their $L_i$, the largest first: blocks are of alike coordinates."""

    def order(self, lipschitz):
        return jnp.argsort(-lipschitz, stable=True)


class Averaged(AbstractArrangement):
    """The largest $L_i$ beside the smallest, and so on: blocks have about the same mean."""

    def order(self, lipschitz):
        falling = jnp.argsort(-lipschitz, stable=True)
        d = lipschitz.size
        place = jnp.arange(d)
        return falling[jnp.where(place % 2 == 0, place // 2, d - 1 - place // 2)]


class AbstractPartition(eqx.Module):
    """Which sets of coordinates are blocks."""

    @abc.abstractmethod
    def check(self, d: int) -> None:
        """Raise `ValueError` if it does not fit so many coordinates."""


class AbstractFixedPartition(AbstractPartition):
    """Blocks that stay as they are."""

    @abc.abstractmethod
    def table(self, lipschitz: Float[Array, " d"]) -> Table:
        """The indices of each block; the padding is `d`."""


class AbstractVariablePartition(AbstractPartition):
    """Blocks that are put together anew each step."""

    @abc.abstractmethod
    def grow(self, scores: Float[Array, " d"], smooth: Any) -> Int[Array, " s"]:
        """The indices of a block of high scores; the padding is `d`."""


class FixedBlocks(AbstractFixedPartition):
    """Blocks of one size, the last of the rest.

    **Arguments:**

    - `size`: of a block.
    - `by`: `InOrder()`, `Sorted()` or `Averaged()`.
    """

    size: int = 1
    by: AbstractArrangement = InOrder()

    def __check_init__(self):
        checks.count("size", self.size)
        checks.instance("by", self.by, AbstractArrangement, "InOrder()")

    def check(self, d):
        _fits(self.size, d)

    def table(self, lipschitz):
        d = lipschitz.size
        order = self.by.order(lipschitz)
        rest = -d % self.size
        return jnp.append(order, jnp.full(rest, d, order.dtype)).reshape(-1, self.size)


class GivenBlocks(AbstractFixedPartition):
    """Blocks of any sizes; steps cost as much as the longest.

    **Arguments:**

    - `blocks`: the indices of each, which together are $0, \\dots, d - 1$, each once.

    **Raises:** `ValueError` if they leave one out, or have one twice.
    """

    indices: tuple[tuple[int, ...], ...]

    def __init__(self, blocks: Sequence[Any]):
        self.indices = tuple(tuple(int(i) for i in np.asarray(block)) for block in blocks)
        everything = sorted(i for block in self.indices for i in block)
        wanted = range(len(everything))
        if not everything or not all(self.indices) or everything != list(wanted):
            wrong = sorted(set(wanted) ^ set(everything)) or everything
            raise ValueError(
                "blocks must be nonempty and hold each of 0, ..., d - 1 once, but some are missing "
                f"or doubled, or no index at all: {wrong[:5]}"
            )

    def check(self, d):
        count = sum(map(len, self.indices))
        if count != d:
            raise ValueError(f"blocks hold {count} coordinates, and x has {d}")

    def table(self, lipschitz):
        d, longest = lipschitz.size, max(map(len, self.indices))
        rows = [block + (d,) * (longest - len(block)) for block in self.indices]
        return jnp.asarray(rows, jnp.int32)


class VariableBlocks(AbstractVariablePartition):
    """Any set of so many coordinates.

    **Arguments:**

    - `size`: of a block.
    """

    size: int = 1

    def __check_init__(self):
        checks.count("size", self.size)

    def check(self, d):
        _fits(self.size, d)

    def grow(self, scores, smooth):
        return jax.lax.top_k(scores, self.size)[1]


class ForestBlocks(AbstractVariablePartition):
    """Sets of coordinates that are forests in the graph of a `GraphQuadratic`, as large as they
    get: `greedy_forest` of the scores."""

    def check(self, d):
        pass

    def grow(self, scores, smooth):
        if not checks.has_method(smooth, "neighbors"):
            raise TypeError(f"ForestBlocks needs a GraphQuadratic, got {type(smooth).__name__}")
        d = scores.size
        block = greedy_forest(scores, smooth.neighbors)
        return jnp.sort(jnp.where(block, jnp.arange(d), d))


def _fits(size, d):
    if size > d:
        raise ValueError(f"size must be at most the {d} coordinates, got {size}")


class Overview(eqx.Module):
    """What rules look at.

    - `x`, `slope`: the point and its full gradient.
    - `penalty`: the nonsmooth part.
    - `curvature`: a bound on the Hessian.
    - `size`: of variable blocks, where it is known.
    """

    x: Float[Array, " d"]
    slope: Float[Array, " d"]
    penalty: Separable
    curvature: AbstractCurvature
    size: int | None


class AbstractScore(eqx.Module):
    """A greedy rule. Of fixed blocks the one of the highest score is taken, of variable ones those
    coordinates; ties go to the lowest index."""

    @abc.abstractmethod
    def prepare(self, curvature: AbstractCurvature, table: Table | None) -> Any:
        """What the rule needs to know of the curvature; `table` is `None` for variable blocks."""

    @abc.abstractmethod
    def blocks(self, view: Overview, table: Table, aid: Any) -> Float[Array, " m"]:
        """A score for each fixed block."""

    @abc.abstractmethod
    def entries(self, view: Overview, aid: Any) -> Float[Array, " d"]:
        """A score for each coordinate."""


class AbstractDiagonalScore(AbstractScore):
    """The decrease that a diagonal model promises, $\\max_d -\\sum_{i \\in b} g_i d_i +
    \\tfrac{D_i}2 d_i^2 + h_i(x_i + d_i) - h_i(x_i)$: without $h$ that is $\\sum_{i \\in b} g_i^2 /
    (2 D_i)$."""

    @abc.abstractmethod
    def scales(self, curvature: AbstractCurvature, table: Table | None) -> Float[Array, " d"]:
        """$D$."""

    def prepare(self, curvature, table):
        return self.scales(curvature, table)

    def blocks(self, view, table, aid):
        return jnp.sum(gather(self.entries(view, aid), table), axis=1)

    def entries(self, view, aid):
        return view.penalty.decreases(view.x, view.slope, aid)


class GS(AbstractDiagonalScore):
    """Gauss-Southwell: the largest gradient, $|g_b|$. $D$ is the largest of the $L_i$."""

    def scales(self, curvature, table):
        diagonal = curvature.diagonal()
        return jnp.full_like(diagonal, jnp.max(diagonal))


class GSL(AbstractDiagonalScore):
    """Gauss-Southwell-Lipschitz: $|g_b| / \\sqrt{L_b}$ with $L_b = \\lambda_{\\max}(H_{bb})$ for
    fixed blocks; $|g_i| / \\sqrt{L_i}$ for variable ones."""

    def scales(self, curvature, table):
        diagonal = curvature.diagonal()
        if table is None:
            return diagonal
        bounds = jax.vmap(curvature.bound)(table).astype(diagonal.dtype)
        spread = jnp.broadcast_to(bounds[:, None], table.shape)
        return diagonal.at[table].set(spread, mode="drop")


class GSD(AbstractDiagonalScore):
    """Gauss-Southwell-diagonal with $D_i = L_i$, which need not bound a block: with `MatrixUpdate`
    it can fall behind a random choice."""

    def scales(self, curvature, table):
        return curvature.diagonal()


class GSDH(AbstractDiagonalScore):
    """Gauss-Southwell-diagonal with $D_i = \\sum_j |H_{ij}|$, the sum of all of the row, which
    bounds every block."""

    def scales(self, curvature, table):
        return curvature.row_sums()


class GSQ(AbstractScore):
    """Gauss-Southwell-quadratic: the most progress by the model itself,
    $g_b^\\top H_{bb}^{-1} g_b$; with a nonsmooth part, by the minimum of its model. Fixed blocks
    only."""

    def prepare(self, curvature, table):
        if table is None:
            raise ValueError(
                "GSQ would have to look at every subset: it takes fixed blocks, and GSQIHT "
                "variable ones"
            )
        return jax.vmap(curvature.block)(table)

    def blocks(self, view, table, aid):
        def one(indices, block):
            slope = gather(view.slope, indices)
            point = gather(view.x, indices)
            move = model_step(view.penalty, indices, point, slope, block, view.x.size)
            promised = -jnp.vdot(move, slope + 0.5 * block @ move)
            if view.penalty.function is None:
                return promised
            row = jnp.minimum(indices, view.x.size - 1)
            change = view.penalty.values(row, point) - view.penalty.values(row, point + move)
            return promised + jnp.sum(jnp.where(indices < view.x.size, change, 0))

        return jax.vmap(one)(table, aid)

    def entries(self, view, aid):
        raise NotImplementedError


class GSQIHT(AbstractScore):
    """Gauss-Southwell-quadratic for variable blocks, about: from the model's step on the block of
    `GSD`, ten steps of iterative hard thresholding,

    $$d \\leftarrow \\text{the `size` largest of } d - (g + H d) / \\lambda_{\\max}(H),$$

    behind the prox if there is a nonsmooth part. Scores are the sizes of $d$.

    **Arguments:**

    - `steps`: of thresholding, at most; they end where $d$ stands still.
    """

    steps: int = 10

    def __check_init__(self):
        checks.count("steps", self.steps)

    def prepare(self, curvature, table):
        if table is not None:
            raise ValueError("GSQIHT chooses the coordinates of a block: it takes VariableBlocks")
        diagonal = curvature.diagonal()
        return largest_eigenvalue(curvature, diagonal.size, diagonal.dtype)

    def blocks(self, view, table, aid):
        raise NotImplementedError

    def entries(self, view, aid):
        if view.size is None:
            raise TypeError("GSQIHT takes VariableBlocks, whose size it knows")
        x, slope, size, every = view.x, view.slope, view.size, jnp.arange(view.x.size)
        scores = view.penalty.decreases(x, slope, view.curvature.diagonal())
        indices = jax.lax.top_k(scores, size)[1]
        block = view.curvature.block(indices)
        move = model_step(view.penalty, indices, x[indices], slope[indices], block, x.size)
        steps = jnp.full_like(x, 1 / aid)

        def improve(carry):
            move, count, _ = carry
            new = x + move - (slope + view.curvature.product(move)) / aid
            new = view.penalty.prox(every, new, steps) - x
            kept = jax.lax.top_k(jnp.abs(new), size)[1]
            new = jnp.zeros_like(x).at[kept].set(new[kept])
            change, length = jnp.max(jnp.abs(new - move)), jnp.max(jnp.abs(new))
            return new, count + 1, change > 4 * jnp.finfo(x.dtype).eps * length

        first = jnp.zeros_like(x).at[indices].set(move)
        start = (first, jnp.asarray(0, jnp.int32), jnp.asarray(True))
        more = lambda carry: carry[2] & (carry[1] < self.steps)
        return jnp.abs(loops.while_loop(more, improve, start)[0])


def model_step(
    penalty: Separable,
    indices: Int[Array, " s"],
    point: Float[Array, " s"],
    slope: Float[Array, " s"],
    matrix: Float[Array, "s s"],
    d: int,
) -> Float[Array, " s"]:
    """$\\arg\\min_d g^\\top d + \\tfrac12 d^\\top M d + h(x + d)$ of a block.

    Without $h$ by a factorization; with it by coordinate descent until it stands still, two hundred
    sweeps at most. Entries that stand for nothing, those of `d` or more, do not move.
    """
    if penalty.function is None:
        return -solve_block(matrix, slope)
    diagonal = jnp.diagonal(matrix)
    scale = jnp.where(diagonal > 0, diagonal, 1)
    there = indices < d

    def visit(k, carry):
        new, image = carry
        goal = new[k] - (slope[k] + image[k]) / scale[k]
        value = penalty.prox(indices[k][None], goal[None], 1 / scale[k][None])[0]
        change = jnp.where(there[k], value - new[k], 0)
        return new.at[k].add(change), image + change * matrix[k]

    def sweep(carry):
        new, image, count, _ = carry
        after, image = loops.fori_loop(0, point.size, visit, (new, image))
        change, length = jnp.max(jnp.abs(after - new)), jnp.max(jnp.abs(after - point))
        return after, image, count + 1, change > 2 * jnp.finfo(new.dtype).eps * length

    start = (point, jnp.zeros_like(point), jnp.asarray(0, jnp.int32), jnp.asarray(True))
    more = lambda carry: carry[3] & (carry[2] < 200)
    return loops.while_loop(more, sweep, start)[0] - point
