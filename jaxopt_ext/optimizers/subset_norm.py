"""Subset-norm step sizes and momentum in a subspace: Adam with a fraction of its memory."""

import math
import warnings
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from ..core import checks, loops
from ._leafwise import (
    init_leaves,
    is_zero,
    leafwise_transformation,
    one_minus_power,
    rate_at,
    wide,
)
from .projectors import (
    AbstractMatrixProjector,
    SVDProjector,
    check_rank,
    low_shape,
    resolve_rank,
)

SubsetSize = int | Literal["heuristics"]
BiasCorrection = Literal["official", "momentum_only", "none"]


class LeafState(NamedTuple):
    """State of one leaf; what the method does not use is `None`.

    - `squares`: one accumulated squared norm per subset.
    - `momentum`: in the subspace, for matrices; else of the leaf's shape.
    - `basis`: of the subspace, for matrices.
    """

    squares: Array | None
    momentum: Array | None
    basis: Array | None


class SubsetNormState(NamedTuple):
    """State of the transformations of this file: a counter, a key, and one `LeafState` a leaf."""

    count: Int[Array, ""]
    key: Key[Array, ""] | None
    leaves: PyTree[LeafState]


def subset_norm(
    learning_rate: optax.ScalarOrSchedule,
    b2: float = 1.0,
    subset_size: SubsetSize = "heuristics",
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    bias_correction: BiasCorrection = "official",
) -> optax.GradientTransformationExtraArgs:
    r"""Adaptive step sizes shared by subsets of the coordinates (SN).

    Coordinates are cut into subsets Ψ_i, and each keeps one number,

    $$b_i^2 \mathrel{+}= \|g_{Ψ_i}\|^2 \quad (β_2 = 1) \qquad\text{or}\qquad
    b_i^2 = β_2 b_i^2 + (1-β_2) \|g_{Ψ_i}\|^2,$$

    $$x_{Ψ_i} \mathrel{-}= η \, \frac{g_{Ψ_i}}{b_i + ε}.$$

    Subsets of one coordinate are AdaGrad or RMSProp, one subset is AdaGrad-Norm. The norm is a sum
    and not a mean, so good learning rates are about √(subset size) times those of AdaGrad.

    **Arguments:**

    - `learning_rate`: η, a number or a schedule.
    - `b2`: β₂ in (0, 1]; 1 accumulates as AdaGrad does.
    - `subset_size`: how a matrix of shape (p, q) is cut. `"heuristics"`: one subset per row if
      p >= q, else per column, so max(p, q) numbers. A positive integer k: runs of consecutive
      entries whose length is the largest divisor of p q not above k. A negative integer -c: the
      same with k = √(p q)/c. Leaves that are not matrices have subsets of one coordinate.
    - `eps`: ε.
    - `weight_decay`: λ: after the step x is multiplied by 1 - ηλ.
    - `bias_correction`: with β₂ < 1, `"none"` leaves b as it is, and the others divide b by
      √(1 - β₂ᵗ).

    **Returns:** a gradient transformation.

    **Raises:** `ValueError` on bad hyperparameters, and from `update` if `weight_decay` is used
    without `params`.

    **Reference:** Nguyen, Nguyen, Efficient Adaptive Optimization via Subset-Norm and
    Subspace-Momentum: Fast, Memory-Reduced Training with Convergence Guarantees, 2025,
    arXiv:2411.07120.
    """
    return _build(
        learning_rate, b2=b2, subset_size=subset_size, eps=eps, weight_decay=weight_decay,
        bias_correction=bias_correction,
    )  # fmt: skip


def adam_sn(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    subset_size: SubsetSize = "heuristics",
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    bias_correction: BiasCorrection = "official",
) -> optax.GradientTransformationExtraArgs:
    """Adam whose second moment is kept per subset: Subset-Norm with momentum.

    The state is one number per coordinate and one per subset. See `subset_norm` for the arguments;
    `b1` is the decay of the momentum, and its bias correction divides by 1 - b1ᵗ.

    **Reference:** as for `subset_norm`.
    """
    return _build(
        learning_rate, b1=b1, b2=b2, subset_size=subset_size, eps=eps, weight_decay=weight_decay,
        bias_correction=bias_correction,
    )  # fmt: skip


def subspace_momentum(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    rank: int | float = 0.25,
    projector: AbstractMatrixProjector | None = None,
    update_proj_gap: int = 200,
    overlap: bool = False,
    weight_decay: float = 0.0,
    bias_correction: BiasCorrection = "none",
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum in a subspace, plain SGD in its complement (SM).

    With P of orthonormal columns, chosen anew every `update_proj_gap` steps, and for a matrix
    gradient G (here m >= n; the other side otherwise),

    $$M = β_1 M + (1-β_1) G P, \qquad U = M P^\top + (G - G P P^\top), \qquad
    X \mathrel{-}= η U.$$

    Leaves that are not matrices have ordinary momentum.

    **Arguments:**

    - `learning_rate`: η, a number or a schedule.
    - `b1`: β₁ in [0, 1).
    - `rank`: directions kept of the smaller side of each matrix: an int from 0 (SGD) to the side
      (momentum), or a float in (0, 1], the fraction of the side.
    - `projector`: how they are chosen: `SVDProjector()` (the default) of the current gradient,
      `CoordinateProjector()`, `TopNormProjector()` or `OrthonormalProjector()`.
    - `update_proj_gap`: steps between choices, the first step included.
    - `overlap`: keep M when P changes, instead of starting it from zero.
    - `weight_decay`: λ: after the step X is multiplied by 1 - ηλ.
    - `bias_correction`: `"none"`; `"momentum_only"` divides M by 1 - β₁ᵗ; `"official"` divides the
      whole U by it, so that the complement's first steps are long.
    - `seed`: of random choices.

    **Returns:** a gradient transformation.

    **Raises:** `ValueError` on bad hyperparameters, from `init` if `rank` exceeds a matrix's
    smaller side, and from `update` if `weight_decay` is used without `params`.

    **Reference:** as for `subset_norm`.
    """
    return _build(
        learning_rate, b1=b1, rank=rank, projector=projector or SVDProjector(),
        update_proj_gap=update_proj_gap, overlap=overlap, weight_decay=weight_decay,
        bias_correction=bias_correction, seed=seed,
    )  # fmt: skip


def adam_snsm(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    rank: int | float = 0.25,
    projector: AbstractMatrixProjector | None = None,
    update_proj_gap: int = 200,
    subset_size: SubsetSize = "heuristics",
    eps: float = 1e-6,
    overlap: bool = False,
    weight_decay: float = 0.0,
    bias_correction: BiasCorrection = "official",
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with Subspace-Momentum above Subset-Norm.

    With U of `subspace_momentum` and b of `subset_norm` (from the raw gradient),

    $$X \mathrel{-}= η c_t \, \frac{U}{b + ε}, \qquad
    c_t = \frac{\sqrt{1-β_2^t}}{1-β_1^t}.$$

    A p x q matrix keeps max(p, q) (1 + r) + min(p, q) r numbers where Adam keeps 2 p q: r
    directions, their momentum, and one squared norm per row or column.

    **Arguments:** those of `subset_norm` and `subspace_momentum`, and

    - `bias_correction`: `"official"` as above, so that U's part outside the subspace, which has no
      bias, is 1/(1 - β₁) times too long at first; `"momentum_only"` divides by 1 - β₁ᵗ inside the
      subspace alone; `"none"` sets c_t = 1. With β₂ = 1 there is no √(1 - β₂ᵗ).

    **Returns:** a gradient transformation.

    **Raises:** as `subspace_momentum`.

    **Reference:** as for `subset_norm`.
    """
    return _build(
        learning_rate, b1=b1, b2=b2, rank=rank, projector=projector or SVDProjector(),
        update_proj_gap=update_proj_gap, subset_size=subset_size, eps=eps, overlap=overlap,
        weight_decay=weight_decay, bias_correction=bias_correction, seed=seed,
    )  # fmt: skip


def subset_shape(shape: tuple[int, ...], subset_size: SubsetSize) -> tuple[tuple[int, ...], Any]:
    """How `subset_norm` cuts a leaf.

    **Arguments:**

    - `shape`: of the leaf.
    - `subset_size`: as in `subset_norm`.

    **Returns:** the shape that the leaf is viewed in, and the axis whose entries form a subset;
    axis `()` means subsets of one coordinate.
    """
    if len(shape) != 2:
        return shape, ()
    if subset_size == "heuristics":
        return shape, 1 if shape[0] >= shape[1] else 0
    size = math.prod(shape)
    wanted = subset_size if subset_size > 0 else int(math.sqrt(size) / -subset_size)
    wanted = max(1, min(wanted, size))
    length = next(k for k in range(wanted, 0, -1) if size % k == 0)
    if length == 1 < wanted:
        warnings.warn(
            f"a leaf of shape {shape} has no divisor from 2 to {wanted}: its subsets are single "
            "coordinates, and no memory is saved",
            stacklevel=2,
        )
    return (size // length, length), 1


def _build(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float | None = None,
    b2: float | None = None,
    subset_size: SubsetSize = "heuristics",
    eps: float = 1e-6,
    rank: int | float = 0,
    projector: AbstractMatrixProjector | None = None,
    update_proj_gap: int = 200,
    overlap: bool = False,
    weight_decay: float = 0.0,
    bias_correction: BiasCorrection = "none",
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Momentum (none, full, or in a subspace) over a norm (none, or per subset)."""
    if not callable(learning_rate):
        checks.nonnegative("learning_rate", learning_rate)
    if b1 is not None:
        checks.interval("b1", b1, 0.0, 1.0, open_high=True)
    if b2 is not None:
        checks.interval("b2", b2, 0.0, 1.0, open_low=True)
    checks.positive("eps", eps)
    checks.nonnegative("weight_decay", weight_decay)
    checks.count("update_proj_gap", update_proj_gap)
    if subset_size != "heuristics":
        checks.count("subset_size", subset_size, minimum=-(2**31))
        if subset_size == 0:
            raise ValueError("subset_size must be 'heuristics' or an int other than 0, got 0")
    if bias_correction not in ("official", "momentum_only", "none"):
        raise ValueError(
            "bias_correction must be 'official', 'momentum_only' or 'none', got "
            f"{bias_correction!r}"
        )
    if projector is not None:
        check_rank(rank, minimum=0)
        if not isinstance(projector, AbstractMatrixProjector):
            raise TypeError(f"projector must be an AbstractMatrixProjector, got {projector!r}")

    def space(leaf) -> AbstractMatrixProjector | None:
        """What projects this leaf, if anything does."""
        return projector if leaf.ndim == 2 else None

    def init_leaf(path, leaf):
        dtype = wide(leaf.dtype)
        squares = momentum = basis = None
        if b2 is not None:
            view, axis = subset_shape(leaf.shape, subset_size)
            shape = jax.eval_shape(
                lambda x: jnp.sum(x.reshape(view), axis=axis, keepdims=True), leaf
            ).shape
            squares = jnp.zeros(shape, jnp.finfo(dtype).dtype)
        if b1 is not None:
            shape = leaf.shape
            leaf_projector = space(leaf)
            if leaf_projector is not None:
                directions = resolve_rank(rank, leaf.shape, path)
                shape = low_shape(leaf.shape, directions)
                basis = leaf_projector.empty(leaf.shape, directions, dtype)
            momentum = jnp.zeros(shape, dtype)
        return LeafState(squares, momentum, basis)

    def init(params) -> Any:
        return SubsetNormState(
            jnp.zeros((), jnp.int32),
            None if projector is None else jax.random.key(seed),
            init_leaves(params, init_leaf),
        )

    def numerator(state, index, gradient, leaf, correction):
        """The direction, with its momentum divided by `correction`; new momentum and basis."""
        if b1 is None:
            return gradient, None, None
        leaf_projector = space(gradient)
        if leaf_projector is None:
            momentum = b1 * leaf.momentum + (1 - b1) * gradient
            return momentum / correction, momentum, None
        refresh = state.count % update_proj_gap == 0
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.count), index)
        directions = resolve_rank(rank, gradient.shape)
        basis = loops.cond(
            refresh, lambda: leaf_projector.fit(gradient, directions, key), lambda: leaf.basis
        )
        low = leaf_projector.down(gradient, basis)
        kept = leaf.momentum if overlap else jnp.where(refresh, 0, leaf.momentum)
        momentum = b1 * kept + (1 - b1) * low
        # M Pᵀ + (G - G P Pᵀ) with one product, and nothing to cancel outside the subspace.
        inside = leaf_projector.up(momentum / correction - low, basis, gradient.shape)
        return gradient + inside, momentum, basis

    def update_leaf(state, index, g, leaf, value):
        real = jnp.finfo(g.dtype).dtype
        rate = rate_at(learning_rate, state.count, real)
        steps = state.count.astype(real) + 1
        bias = 1 if b1 is None else one_minus_power(b1, steps)
        within = bias if bias_correction == "momentum_only" else 1
        direction, momentum, basis = numerator(state, index, g, leaf, within)
        scale = rate / bias if bias_correction == "official" else rate
        squares = None
        if b2 is None:
            step = -scale * direction
        else:
            view, axis = subset_shape(g.shape, subset_size)
            added = jnp.sum(jnp.abs(g.reshape(view)) ** 2, axis=axis, keepdims=True)
            squares = b2 * leaf.squares + jnp.where(b2 == 1, 1, 1 - b2) * added
            if bias_correction != "none":
                scale = scale * jnp.where(b2 == 1, 1, jnp.sqrt(one_minus_power(b2, steps)))
            step = -direction.reshape(view) * (scale / (jnp.sqrt(squares) + eps))
            step = step.reshape(g.shape)
        if not is_zero(weight_decay):
            step = step - rate * weight_decay * (value + step)
        return step, LeafState(squares, momentum, basis)

    return leafwise_transformation(init, update_leaf, weight_decay)
