"""Problems with many problems inside: one for each block."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from . import checks, rows
from .bilevel import AbstractSampledLevels, Bilevel, BilevelPoint, _Mean, _start
from .finite_sum import AbstractSampling, WithReplacement

BlockLoss = Callable[[PyTree[Array], PyTree[Array], PyTree, Int[Array, ""]], Float[Array, ""]]


class _OfBlock(eqx.Module):
    """A loss with the block's number in its place."""

    loss: BlockLoss
    block: Int[Array, ""]

    def __call__(self, x, y, sample):
        return self.loss(x, y, sample, self.block)


class _Restricted(eqx.Module):
    """A loss of points, as one of their floating-point arrays. `lower` is of all blocks."""

    loss: BlockLoss
    upper: PyTree
    lower: PyTree

    def __call__(self, x, y, sample, block):
        own = jax.tree.map(lambda a: a[block] if eqx.is_array(a) else a, self.lower)
        return self.loss(eqx.combine(x, self.upper), eqx.combine(y, own), sample, block)


class MultiBlockBilevel(AbstractSampledLevels):
    """Minimize a mean over blocks, each with a problem inside,

    $$\\min_x \\frac1m \\sum_{i=1}^m f_i(x, y_i^*(x)), \\qquad y_i^*(x) = \\arg\\min_y g_i(x, y),$$

    where $f_i$ and $g_i$ are means over samples and $g_i$ is strongly convex in $y$.

    A solution is `BilevelPoint(upper, lower, multiplier)`, the triple $(x, y, v)$ with all $y_i$,
    and all $v_i$, stacked on a leading axis $m$. The residual is that of a `Bilevel` for each
    block, with the mean over blocks in the first place,

    $$\\Bigl(\\frac1m \\sum_i \\nabla_x f_i - \\nabla_{xy} g_i\\, v_i,\\quad \\nabla_y g_i,\\quad
      \\nabla_{yy} g_i\\, v_i - \\nabla_y f_i\\Bigr),$$

    so that $v_i = (\\nabla_{yy} g_i)^{-1} \\nabla_y f_i$ at a solution. `minibatch` gives the
    `Bilevel` of one block and a few samples.

    **Arguments:**

    - `upper_loss`, `lower_loss`: `(x, y, sample, block) -> scalar`, of one sample and one block,
      with `y` that of the block and its number `block`.
    - `upper_data`, `lower_data`: pytrees of arrays, stacked on a leading axis; all blocks share
      them. Where each block has its own, let the samples be numbers $0, 1, \\dots$, and the losses
      look up row `[block, sample]` of what they close over.
    - `num_blocks`: $m$, static.
    - `sampling`: how batches of samples are drawn.
    - `chunk`: samples of a full mean that are looked at together, in all blocks; `None` for all.

    A start is a `BilevelPoint`, or the pair `(x, y)`, which is completed by $v = 0$.

    **Raises:** `TypeError` if a loss is no function, on complex points, and on a start that is
    neither; `ValueError` if `num_blocks` is below 1, data have no common leading axis of at least
    1, a loss returns no real scalar, `multiplier` is not shaped like `lower`, or `lower` has not
    `num_blocks` rows.

    **Reference:** Hu, Qiu, Guo, Zhang, Yang, Blockwise Stochastic Variance-Reduced Methods with
    Parallel Speedup for Multi-Block Bilevel Optimization, 2023, arXiv:2305.18730.
    """

    upper_loss: BlockLoss
    lower_loss: BlockLoss
    upper_data: PyTree[Array]
    lower_data: PyTree[Array]
    num_blocks: int = eqx.field(static=True)
    sampling: AbstractSampling = WithReplacement()
    chunk: int | None = eqx.field(static=True, default=4096)

    def __check_init__(self):
        self._check_levels("(x, y, sample, block)")
        checks.count("num_blocks", self.num_blocks)

    def minibatch(
        self, block: Int[Array, ""], upper: Int[Array, " b"], lower: Int[Array, " c"]
    ) -> Bilevel:
        """The problem of one block, over these samples.

        **Arguments:**

        - `block`: its number.
        - `upper`, `lower`: indices, as from `draw_upper` and `draw_lower`.
        """
        return Bilevel(
            _Mean(_OfBlock(self.upper_loss, block), rows.take(self.upper_data, upper)),
            _Mean(_OfBlock(self.lower_loss, block), rows.take(self.lower_data, lower)),
        )

    def full(self, block: Int[Array, ""]) -> Bilevel:
        """The problem of one block, over all samples.

        **Arguments:**

        - `block`: its number.
        """
        return Bilevel(
            _Mean(_OfBlock(self.upper_loss, block), self.upper_data, self.chunk),
            _Mean(_OfBlock(self.lower_loss, block), self.lower_data, self.chunk),
        )

    def residual(self, x):
        x, y, v = x
        one = lambda block, y, v: self.full(block).residual(BilevelPoint(x, y, v))
        blocks = jnp.arange(self.num_blocks, dtype=jnp.int32)
        found = jax.vmap(one)(blocks, y, v)
        return found._replace(upper=jax.tree.map(lambda a: jnp.mean(a, axis=0), found.upper))

    def start(self, x):
        return _start(x)

    def check(self, x):
        form = "BilevelPoint(upper, lower, multiplier), or (upper, lower)"
        checks.point("MultiBlockBilevel", x, BilevelPoint, form)
        if any(map(jnp.iscomplexobj, jax.tree.leaves(x))):
            raise TypeError("a MultiBlockBilevel is over real numbers, got complex ones")
        checks.shaped_like("the multiplier", x.multiplier, x.lower)
        for leaf in jax.tree.leaves(x.lower):
            if jnp.shape(leaf)[:1] != (self.num_blocks,):
                raise ValueError(
                    f"lower must have a row for each of {self.num_blocks} blocks, got shapes "
                    f"{checks.shapes_of(x.lower)}"
                )
        y = rows.first(x.lower)
        for name, loss, data in (
            ("upper_loss", self.upper_loss, self.upper_data),
            ("lower_loss", self.lower_loss, self.lower_data),
        ):
            sample, block = rows.first(data), jnp.zeros((), jnp.int32)
            of = lambda p, loss=loss, sample=sample, block=block: loss(*p, sample, block)
            checks.objective(name, of, (x.upper, y))

    def restrict(self, rest):
        if not isinstance(rest, BilevelPoint):
            raise TypeError(
                "a MultiBlockBilevel over points that hold more than floating-point arrays starts "
                "from BilevelPoint(upper, lower, multiplier)"
            )
        losses = {
            name: _Restricted(getattr(self, name), rest.upper, rest.lower)
            for name in ("upper_loss", "lower_loss")
        }
        return dataclasses.replace(self, **losses)
