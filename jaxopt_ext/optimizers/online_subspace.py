"""Online Subspace Descent: moments in a subspace that online PCA of the gradient keeps moving."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Inexact, Int, Key, PyTree

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
    OrthonormalProjector,
    SVDProjector,
    check_rank,
    dense_down,
    from_right,
    low_shape,
    resolve_rank,
)


class LeafState(NamedTuple):
    """State of one leaf.

    - `mu`, `nu`: moments, in the subspace for matrices; `nu` is `None` for Lion.
    - `basis`: P, for matrices; else `None`.
    - `basis_state`: state of P's own optimizer, if it has one.
    """

    mu: Array
    nu: Array | None
    basis: Array | None
    basis_state: optax.OptState


class OnlineSubspaceState(NamedTuple):
    """State of `online_subspace_descent`: a counter, a key, and one `LeafState` a leaf."""

    count: Int[Array, ""]
    key: Key[Array, ""]
    leaves: PyTree[LeafState]


def online_subspace_descent(
    learning_rate: optax.ScalarOrSchedule,
    rank: int | float,
    base: Literal["adam", "lion"] = "adam",
    b1: float = 0.9,
    b2: float | None = None,
    eps: float = 1e-6,
    projection: Literal["online", "svd", "random", "frozen"] = "online",
    proj_lr: float = 5e-3,
    proj_optimizer: optax.GradientTransformation | None = None,
    lam: float = 0.0,
    update_proj_gap: int = 200,
    scale: float = 1.0,
    weight_decay: float = 0.0,
    reference_lr: float | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Descent with moments in a low-dimensional subspace of each matrix, learnt by online PCA.

    For a matrix gradient G (m x n, here m >= n; the other side otherwise) and P (n x r), which
    starts as the leading right singular vectors of the first gradient,

    $$X \mathrel{-}= η_t \, s \; \mathrm{base}(G P) P^\top + η_t λ X,$$

    with P as it was before this step. Then, from the second step on, P takes one step of its own
    optimizer on

    $$L(P) = \|\hat G P P^\top - \hat G\|_F^2 + μ \|P^\top P - I\|_F^2, \qquad
    \hat G = G/\|G\|_F,$$

    at the rate `proj_lr` η_t/η_0. The moments are not rotated when P moves. Leaves that are not
    matrices, and matrices whose smaller side equals the rank, take plain steps of the base.

    **Arguments:**

    - `learning_rate`: η, a number or a schedule.
    - `rank`: r: an int, or a float in (0, 1], the fraction of each matrix's smaller side.
    - `base`: `"adam"`: moments m, v of the projected gradient, step √(1-β₂ᵗ)/(1-β₁ᵗ) m/(√v + ε);
      `"lion"`: the sign of β₁ m + (1-β₁) G P, then m with β₂.
    - `b1`, `b2`, `eps`: of the base; `b2` is 0.999 for Adam and 0.99 for Lion if not given.
    - `projection`: `"online"` as above; and baselines with P replaced every `update_proj_gap`
      steps: `"svd"` of the current gradient (GaLore), `"random"` orthonormal; or `"frozen"` after
      the first gradient.
    - `proj_lr`: rate of P's optimizer.
    - `proj_optimizer`: P's optimizer, built with learning rate 1, such as `optax.sgd(1.0)`,
      `optax.lion(1.0)` or `optax.adafactor(1.0)`; `optax.adam(1.0)` by default. PyTorch's AdamW,
      used by the authors, also decays P: `optax.adamw(1.0, weight_decay=0.01)`.
    - `lam`: μ, the pull towards orthonormal columns; the authors' code has 0.
    - `update_proj_gap`: for the baselines `"svd"` and `"random"`.
    - `scale`: s; 0.25 is customary.
    - `weight_decay`: λ: after the step X is multiplied by 1 - η_t λ.
    - `reference_lr`: η_0, by default the schedule's value at step 0; needed for schedules that
      start from 0.
    - `seed`: of random projections.

    **Returns:** a gradient transformation. Moments take 2 max(m, n) r numbers for a matrix, and P
    with the moments of its own optimizer 3 min(m, n) r.

    **Raises:** `ValueError` on bad hyperparameters, from `init` if `rank` exceeds a matrix's
    smaller side, and from `update` if `weight_decay` is used without `params`.

    **Reference:** Liang, Liu, Chen, Liu, Memory-Efficient LLM Training with Online Subspace
    Descent, 2024, arXiv:2408.12857.
    """
    b2 = (0.999 if base == "adam" else 0.99) if b2 is None else b2
    if not callable(learning_rate):
        checks.nonnegative("learning_rate", learning_rate)
    check_rank(rank)
    if base not in ("adam", "lion"):
        raise ValueError(f"base must be 'adam' or 'lion', got {base!r}")
    if projection not in ("online", "svd", "random", "frozen"):
        raise ValueError(
            f"projection must be 'online', 'svd', 'random' or 'frozen', got {projection!r}"
        )
    checks.interval("b1", b1, 0.0, 1.0, open_high=True)
    checks.interval("b2", b2, 0.0, 1.0, open_high=True)
    checks.positive("eps", eps)
    checks.positive("proj_lr", proj_lr)
    checks.nonnegative("lam", lam)
    checks.count("update_proj_gap", update_proj_gap)
    checks.positive("scale", scale)
    checks.nonnegative("weight_decay", weight_decay)
    first_lr = reference_lr
    if reference_lr is not None:
        checks.positive("reference_lr", reference_lr)
    elif callable(learning_rate) and projection == "online":
        first_lr = jnp.asarray(learning_rate(jnp.zeros((), jnp.int32)))
        if not checks.is_traced(first_lr) and not first_lr > 0:
            raise ValueError(
                "proj_lr is scaled by learning_rate / reference_lr, and the schedule starts at "
                f"{first_lr}: pass reference_lr, for instance the schedule's peak"
            )
    basis_optimizer = proj_optimizer or optax.adam(1.0)
    projector = OrthonormalProjector() if projection == "random" else SVDProjector()

    def directions(leaf, name="a matrix"):
        """r, or `None` for leaves that take plain steps of the base."""
        if leaf.ndim != 2:
            return None
        r = resolve_rank(rank, leaf.shape, name)
        return None if r == min(leaf.shape) else r

    def init_leaf(path, leaf):
        dtype = wide(leaf.dtype)
        r = directions(leaf, path)
        shape, basis, basis_state = leaf.shape, None, ()
        if r is not None:
            shape = low_shape(leaf.shape, r)
            basis = projector.empty(leaf.shape, r, dtype)
            basis_state = basis_optimizer.init(basis) if projection == "online" else ()
        nu = jnp.zeros(shape, jnp.finfo(dtype).dtype) if base == "adam" else None
        return LeafState(jnp.zeros(shape, dtype), nu, basis, basis_state)

    def init(params):
        return OnlineSubspaceState(
            jnp.zeros((), jnp.int32),
            jax.random.key(seed),
            init_leaves(params, init_leaf),
        )

    def base_step(low, mu, nu, steps):
        """The base's direction for the (projected) gradient, and its new moments."""
        if base == "lion":
            return jnp.sign(b1 * mu + (1 - b1) * low), b2 * mu + (1 - b2) * low, None
        mu = b1 * mu + (1 - b1) * low
        nu = b2 * nu + (1 - b2) * jnp.abs(low) ** 2
        correction = jnp.sqrt(one_minus_power(b2, steps)) / one_minus_power(b1, steps)
        return correction * mu / (jnp.sqrt(nu) + eps), mu, nu

    def first_basis(state, index, g, basis, r):
        """P of this step."""
        every = update_proj_gap if projection in ("svd", "random") else None
        refresh = state.count == 0 if every is None else state.count % every == 0
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.count), index)
        return loops.cond(refresh, lambda: projector.fit(g, r, key), lambda: basis)

    def next_basis(state, g, low, basis, basis_state, rate):
        """P of the next step. At the first step, and for G = 0, P rests."""
        norm = jnp.linalg.norm(g)
        moving = (state.count > 0) & (norm > 0)
        unit = jnp.where(norm > 0, norm, 1)
        gradient = subspace_gradient(basis, g / unit, lam, low / unit)
        steps, new_state = basis_optimizer.update(gradient, basis_state, basis)
        moved = (basis + rate * jnp.asarray(steps, basis.dtype), new_state)
        return jax.tree.map(
            lambda new, old: jnp.where(moving, new, old), moved, (basis, basis_state)
        )

    def update_leaf(state, index, g, leaf, value):
        real = jnp.finfo(g.dtype).dtype
        rate = rate_at(learning_rate, state.count, real)
        steps = state.count.astype(real) + 1
        r = directions(g)
        if r is None:
            direction, mu, nu = base_step(g, leaf.mu, leaf.nu, steps)
            step, basis, basis_state = -rate * direction, None, ()
        else:
            basis, basis_state = first_basis(state, index, g, leaf.basis, r), leaf.basis_state
            low = projector.down(g, basis)
            direction, mu, nu = base_step(low, leaf.mu, leaf.nu, steps)
            step = projector.up(-rate * scale * direction, basis, g.shape)
            if projection == "online":
                ratio = 1 if first_lr is None else rate / first_lr
                basis, basis_state = next_basis(
                    state, g, low, basis, basis_state, jnp.asarray(proj_lr * ratio, real)
                )
        if not is_zero(weight_decay):
            step = step - rate * weight_decay * (value + step)
        return step, LeafState(mu, nu, basis, basis_state)

    return leafwise_transformation(init, update_leaf, weight_decay)


def subspace_loss(
    basis: Inexact[Array, "k r"], gradient: Inexact[Array, "m n"], lam: float = 0.0
) -> Float[Array, ""]:
    """What a projection loses: ‖G P Pᴴ - G‖² + lam ‖Pᴴ P - I‖² (‖P Pᴴ G - G‖² if m < n).

    **Arguments:**

    - `basis`: P, with k = min(m, n).
    - `gradient`: G.
    - `lam`: pull towards orthonormal columns.
    """
    a = gradient if from_right(gradient.shape) else gradient.conj().T
    lost = a @ basis @ basis.conj().T - a
    gram = basis.conj().T @ basis - jnp.eye(basis.shape[1], dtype=basis.dtype)
    return jnp.sum(jnp.abs(lost) ** 2) + lam * jnp.sum(jnp.abs(gram) ** 2)


def subspace_gradient(
    basis: Inexact[Array, "k r"],
    gradient: Inexact[Array, "m n"],
    lam: float = 0.0,
    low: Array | None = None,
) -> Inexact[Array, "k r"]:
    """Gradient of `subspace_loss` in P: 2 (AᴴR P + Rᴴ A P) + 4 lam P (PᴴP - I).

    Here A = G (Gᴴ if m < n) and R = A P Pᴴ - A, an m x n matrix that is never formed: with
    Z = A P, it is 2 (Aᴴ Z (PᴴP - 2 I) + P Zᴴ Z) + 4 lam P (PᴴP - I).

    **Arguments:** as `subspace_loss`, and

    - `low`: the projection of `gradient` if it is at hand: Z if m >= n, else Zᴴ.
    """
    right = from_right(gradient.shape)
    a = gradient if right else gradient.conj().T
    low = dense_down(gradient, basis) if low is None else low
    z = low if right else low.conj().T
    eye = jnp.eye(basis.shape[1], dtype=basis.dtype)
    gram = basis.conj().T @ basis
    fit = a.conj().T @ (z @ (gram - 2 * eye)) + basis @ (z.conj().T @ z)
    return 2 * fit + 4 * lam * (basis @ (gram - eye))
