"""AdamP and SGDP: momentum whose radial part is projected out of scale-invariant weights."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree

from ..core import checks
from ._leafwise import next_count, require_params
from ._precision import keep_wide


class ScaleByAdamPState(NamedTuple):
    """Number of updates and the two moments."""

    count: Int[Array, ""]
    mu: PyTree[Array]
    nu: PyTree[Array]


class ScaleBySGDPState(NamedTuple):
    """The momentum buffer."""

    trace: PyTree[Array]


def _project_leaf(direction, gradient, weight, delta, eps, channel_axis):
    if weight.ndim < 2:
        return direction, jnp.zeros([], bool)
    channel = range(weight.ndim)[channel_axis]
    axes = tuple(axis for axis in range(weight.ndim) if axis != channel)

    def inner(a, b):
        return jnp.sum(jnp.real(jnp.conj(a) * b), axis=axes, keepdims=True)

    products = (
        inner(gradient, weight),
        inner(gradient, gradient),
        inner(weight, weight),
        inner(weight, direction),
    )

    def view(products, length):
        gw, gg, ww, wp = products
        size = jnp.sqrt(ww)
        cosine = jnp.abs(gw) / (jnp.maximum(jnp.sqrt(gg), eps) * jnp.maximum(size, eps))
        orthogonal = jnp.all(cosine < delta / math.sqrt(max(length, 1)))
        return orthogonal, wp / (size + eps) / (size + eps)

    # sums over the whole leaf are sums of those over channels; the barrier keeps the compiler from
    # going over the leaf once more for them
    products = jax.lax.optimization_barrier(products)
    by_channel, channels = view(products, weight.size // max(weight.shape[channel], 1))
    by_leaf, leaf = view([jnp.sum(p, keepdims=True) for p in products], weight.size)
    along = jnp.where(by_channel, channels, jnp.where(by_leaf, leaf, jnp.zeros_like(leaf)))
    return direction - weight * along, by_channel | by_leaf


def project_radial(
    direction: PyTree[Array],
    gradient: PyTree[Array],
    params: PyTree[Array],
    *,
    delta: float = 0.1,
    eps: float = 1e-8,
    channel_axis: int = 0,
) -> tuple[PyTree[Array], PyTree[Bool[Array, ""]]]:
    r"""Remove the radial part of a direction where the weights look scale-invariant.

    A loss with $f(cw) = f(w)$ for $c > 0$ has a gradient orthogonal to $w$. A leaf passes for
    scale-invariant if all its channels $i$ have

    $$|\langle g_i, w_i\rangle| < \delta \|g_i\| \|w_i\| / \sqrt{\dim w_i}.$$

    Then $p_i$ becomes $p_i - \langle w_i, p_i\rangle w_i / \|w_i\|^2$. A leaf that fails is tested
    once more as a single channel. Leaves of fewer than two axes are never projected.

    **Arguments:**

    - `direction`: the direction p to project.
    - `gradient`: the raw gradient g, which alone is tested.
    - `params`: the weights w.
    - `delta`: threshold of the test.
    - `eps`: guards the norms that are divided by.
    - `channel_axis`: axis of the output channels: 0 in equinox and PyTorch, -1 in flax.

    **Returns:** the projected direction, and for each leaf whether it was projected.

    **Reference:** Heo et al., AdamP: Slowing Down the Slowdown for Momentum Optimizers on
    Scale-invariant Weights, 2021, arXiv:2006.08217.
    """
    leaves, treedef = jax.tree.flatten(direction)
    gradients, weights = treedef.flatten_up_to(gradient), treedef.flatten_up_to(params)
    pairs = [
        _project_leaf(p, g, w, delta, eps, channel_axis)
        for p, g, w in zip(leaves, gradients, weights, strict=True)
    ]
    return (
        jax.tree.unflatten(treedef, [p for p, _ in pairs]),
        jax.tree.unflatten(treedef, [fired for _, fired in pairs]),
    )


def _decay_and_project(direction, updates, params, weight_decay, wd_ratio, **options):
    direction, fired = project_radial(direction, updates, params, **options)

    def decayed(p, w, projected):
        return p + weight_decay * jnp.where(projected, wd_ratio, 1.0).astype(p.dtype) * w

    return jax.tree.map(decayed, direction, params, fired)


def scale_by_adamp(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    nesterov: bool = False,
    channel_axis: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients as AdamP does, weight decay included; see `adamp`."""

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return ScaleByAdamPState(jnp.zeros([], jnp.int32), zeros, optax.tree.real(zeros))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        require_params(params, "adamp")
        count = next_count(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        ahead = optax.tree.update_moment(updates, mu, b1, 1) if nesterov else mu
        # the correction of the first moment is a scalar, so the projection may come after it
        direction = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v) + eps),
            optax.tree.bias_correction(ahead, b1, count),
            optax.tree.bias_correction(nu, b2, count),
        )
        direction = _decay_and_project(
            direction,
            updates,
            params,
            weight_decay,
            wd_ratio,
            delta=delta,
            eps=eps,
            channel_axis=channel_axis,
        )
        return direction, ScaleByAdamPState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_sgdp(
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    nesterov: bool = False,
    eps: float = 1e-8,
    channel_axis: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Momentum as SGDP does it, weight decay included; see `sgdp`."""

    def init(params):
        return ScaleBySGDPState(optax.tree.zeros_like(params))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        require_params(params, "sgdp")
        trace = jax.tree.map(lambda g, b: momentum * b + (1 - dampening) * g, updates, state.trace)
        direction = trace
        if nesterov:
            direction = jax.tree.map(lambda g, b: g + momentum * b, updates, trace)
        direction = _decay_and_project(
            direction,
            updates,
            params,
            weight_decay / (1 - momentum),
            wd_ratio,
            delta=delta,
            eps=eps,
            channel_axis=channel_axis,
        )
        return direction, ScaleBySGDPState(trace)

    return optax.GradientTransformationExtraArgs(init, update)


def _check(weight_decay, delta, wd_ratio, eps, channel_axis):
    checks.nonnegative("weight_decay", weight_decay)
    checks.nonnegative("delta", delta)
    checks.nonnegative("wd_ratio", wd_ratio)
    checks.positive("eps", eps)
    if isinstance(channel_axis, bool) or not isinstance(channel_axis, int):
        raise TypeError(f"channel_axis must be an int, got {channel_axis!r}")


def adamp(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    nesterov: bool = False,
    channel_axis: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamP: Adam without the radial part of the step on scale-invariant weights.

    Weights before a normalisation layer are scale-invariant: only their direction matters.
    Momentum makes their norm grow and so shrinks the steps that count. Where `project_radial` finds
    a leaf scale-invariant, Adam's direction p loses its part along the weights,

    $$\theta \leftarrow (1 - \eta\lambda\rho)\theta - \eta\, \Pi_\theta(p),$$

    and the decay is scaled by $\rho$ = `wd_ratio`; elsewhere it is AdamW's step, with $\rho = 1$.

    **Arguments:**

    - `learning_rate`: $\eta$, a number or a schedule.
    - `b1`, `b2`: decays of the two moments, in [0, 1).
    - `eps`: added to the root of the second moment and to the norms of the projection.
    - `weight_decay`: $\lambda$, decoupled.
    - `delta`: threshold of the test on the cosine between gradient and weights.
    - `wd_ratio`: how much of the decay scale-invariant weights get.
    - `nesterov`: look ahead with the first moment.
    - `channel_axis`: axis of the output channels: 0 in equinox and PyTorch, -1 in flax.

    **Returns:** a transformation; `update` needs `params`.

    **Raises:** `ValueError` or `TypeError` naming the argument that is out of range.

    **Reference:** Heo et al., AdamP: Slowing Down the Slowdown for Momentum Optimizers on
    Scale-invariant Weights, 2021, arXiv:2006.08217.
    """
    checks.interval("b1", b1, 0.0, 1.0, open_high=True)
    checks.interval("b2", b2, 0.0, 1.0, open_high=True)
    _check(weight_decay, delta, wd_ratio, eps, channel_axis)
    scaling = scale_by_adamp(b1, b2, eps, weight_decay, delta, wd_ratio, nesterov, channel_axis)
    return keep_wide(optax.chain(scaling, optax.scale_by_learning_rate(learning_rate)))


def sgdp(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    nesterov: bool = False,
    eps: float = 1e-8,
    channel_axis: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""SGDP: momentum SGD without the radial part of the step on scale-invariant weights.

    $b \leftarrow \mu b + (1 - \text{dampening}) g$ gives the direction $b$, or $g + \mu b$ with
    `nesterov`, which is projected as in `adamp`; the decay is
    $\theta \leftarrow (1 - \eta\lambda\rho/(1-\mu))\theta$. The buffer itself is not
    projected, as in the paper; the authors' code does it in place where `nesterov` is off.

    **Arguments:**

    - `learning_rate`: $\eta$, a number or a schedule.
    - `momentum`: $\mu$, in [0, 1).
    - `dampening`: keeps this part of each gradient out of the buffer.
    - the others: as in `adamp`.

    **Returns:** a transformation; `update` needs `params`.

    **Raises:** `ValueError` or `TypeError` naming the argument that is out of range.

    **Reference:** as `adamp`.
    """
    checks.interval("momentum", momentum, 0.0, 1.0, open_high=True)
    checks.interval("dampening", dampening, 0.0, 1.0)
    _check(weight_decay, delta, wd_ratio, eps, channel_axis)
    scaling = scale_by_sgdp(
        momentum, dampening, weight_decay, delta, wd_ratio, nesterov, eps, channel_axis
    )
    return keep_wide(optax.chain(scaling, optax.scale_by_learning_rate(learning_rate)))
