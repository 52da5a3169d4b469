"""Variance reduction by one momentum for each cluster of the data (Discover)."""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from ..core import checks
from ._leafwise import mask_like, next_count, sum_rows
from ._precision import keep_wide, narrow


class MultiMomentumState(NamedTuple):
    """State of `multi_momentum`.

    - `table`: momenta, with a leading axis of clusters (of length one if each node has its own).
    - `mean`: their weighted mean.
    - `inner`: state of the inner transformation.
    """

    table: PyTree[Array]
    mean: PyTree[Array]
    inner: optax.OptState


def multi_momentum(
    inner: optax.GradientTransformation,
    num_clusters: int,
    weights: Sequence[float] | Float[Array, " K"] | None = None,
    alpha: float = 0.1,
    *,
    sampling: Sequence[float] | Float[Array, " K"] | None = None,
    axis_name: Hashable | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Variance reduction between clusters of the data: a momentum for each of them.

    The loss is $\sum_k p_k \mathrm{E}_{x \in k}\, \ell(\theta; x)$ over K clusters (classes,
    augmentations, groups found by k-means). With the mean gradient $G_k$ of each cluster in the
    batch, and the fraction $q_k$ of the batch that it makes up, `inner` gets

    $$e = \sum_k \frac{p_k}{s_k} q_k (G_k - M_k) + \sum_k p_k M_k, \qquad
    M_k \leftarrow M_k + a (G_k - M_k) \text{ for clusters in the batch},$$

    with the $M_k$ from before the step. $e$ is unbiased whatever $M$ is, if $s_k = \mathrm{E} q_k$.
    What remains of the variance is that within clusters. One cluster gives back $e = G$; clusters
    of one sample with $a = 1$ give SAGA.

    The gradient comes in one of three ways:

    - `update(grads, state, params, cluster_grads=..., cluster_frac=...)`: leaves of `cluster_grads`
      have a leading axis K, `cluster_frac` is the vector q, zero for clusters not in the batch;
      `cluster_grads` of this module makes both. `grads` is not used.
    - `update(grads, state, params, cluster_id=k)`: all samples of the batch are of cluster k.
    - with `axis_name`, inside `jax.vmap` or `jax.shard_map`, one cluster per node:
      `update(grads, state, params, cluster_frac=...)` with the node's own gradient and fraction
      (its weight, if left out). Each node keeps its own momentum; two sums travel.

    **Arguments:**

    - `inner`: gets e in place of the gradient.
    - `num_clusters`: K; the momenta take K + 1 copies of the parameters.
    - `weights`: $p$, summing to one; equal if left out.
    - `alpha`: $a$, in (0, 1].
    - `sampling`: $s$, the expected fractions of the batches, where they differ from `weights`.
    - `axis_name`: the axis of nodes, of size K.

    **Raises:** `ValueError` for weights that are not K positive numbers summing to one, for `alpha`
    outside (0, 1], and at the update if the extra arguments are missing.

    **Reference:** Tondji, Kashubin, Cisse, Variance Reduction in Deep Learning: More Momentum is
    All You Need, 2021, arXiv:2111.11828.
    """
    checks.count("num_clusters", num_clusters)
    checks.interval("alpha", alpha, 0.0, 1.0, open_low=True)
    p = _probabilities("weights", weights, num_clusters)
    s = p if sampling is None else _probabilities("sampling", sampling, num_clusters)
    rows = 1 if axis_name is not None else num_clusters
    inner = optax.with_extra_args_support(inner)

    def total(coefficients, x):
        x = sum_rows(x, coefficients)
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    def init(params):
        mean = optax.tree.zeros_like(params)
        table = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), mean)
        return MultiMomentumState(table, mean, inner.init(params))

    def update(
        updates,
        state,
        params=None,
        *,
        cluster_grads=None,
        cluster_frac=None,
        cluster_id=None,
        **extra_args,
    ):
        if axis_name is not None:
            node = jax.lax.axis_index(axis_name)
            fraction = p[node] if cluster_frac is None else cluster_frac
            grads, fraction = _stack(updates), jnp.reshape(fraction, 1)
            weight, expected = p[node][None], s[node][None]
        elif cluster_id is not None:
            grads, fraction = _stack(updates), jnp.ones(1)
            weight, expected = p[cluster_id][None], s[cluster_id][None]
        else:
            if cluster_grads is None or cluster_frac is None:
                raise ValueError(
                    "multi_momentum needs cluster_grads and cluster_frac, or cluster_id: "
                    "update(grads, state, params, **cluster_grads(loss, params, batch, ids, K)) or "
                    "update(grads, state, params, cluster_id=k)"
                )
            grads, fraction = mask_like(cluster_grads, state.table), jnp.asarray(cluster_frac)
            weight, expected = p, s
        chosen = None if axis_name is not None else cluster_id

        def read(m):
            return m if chosen is None else jax.lax.dynamic_index_in_dim(m, chosen, 0)

        def gap(g, m):
            old = read(m)
            return jnp.where(_column(fraction, old) > 0, g.astype(old.dtype) - old, 0)

        def write(d, m):
            new = read(m) + alpha * d
            return new if chosen is None else jax.lax.dynamic_update_index_in_dim(m, new, chosen, 0)

        gaps = jax.tree.map(gap, grads, state.table)
        table = jax.tree.map(write, gaps, state.table)
        # the old mean is read once, so that it is updated in place
        kept = alpha * weight
        mean = jax.tree.map(lambda d, mean: mean + total(kept, d), gaps, state.mean)
        rest = fraction * weight / expected - kept
        reduced = jax.tree.map(lambda d, mean: mean + total(rest, d), gaps, mean)
        reduced, inner_state = inner.update(reduced, state.inner, params, **extra_args)
        return reduced, MultiMomentumState(table, mean, inner_state)

    return keep_wide(optax.GradientTransformationExtraArgs(init, update))


def _column(vector, leaf):
    """A vector along the leading axis of a leaf."""
    return vector.astype(jnp.finfo(leaf.dtype).dtype).reshape(-1, *(1,) * (leaf.ndim - 1))


def _stack(tree):
    return jax.tree.map(lambda x: x[None], tree)


def _probabilities(name, value, size):
    if value is None:
        return jnp.full(size, 1 / size)
    checks.positive(name, value)
    if np.shape(value) != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {np.shape(value)}")
    if not checks.is_traced(value) and abs(np.sum(np.asarray(value, float)) - 1) > 1e-5:
        raise ValueError(f"{name} must sum to one, got {value}")
    return jnp.asarray(value)


def cluster_grads(
    loss: Callable[..., Float[Array, ""]],
    params: PyTree[Array],
    batch: PyTree[Array],
    ids: Int[Array, " batch"],
    num_clusters: int,
) -> dict[str, PyTree[Array]]:
    """Mean gradient of each cluster in a batch, and the fraction of the batch that it makes up.

    **Arguments:**

    - `loss`: maps parameters and one sample to a scalar.
    - `params`: where the gradients are taken.
    - `batch`: samples, stacked on the leading axis of each leaf.
    - `ids`: the cluster of each sample, from 0 to K - 1.
    - `num_clusters`: K.

    **Returns:** `cluster_grads`, leaves with a leading axis K, zero for clusters not in the batch,
    and `cluster_frac`, of length K: the extra arguments of `multi_momentum`.
    """
    checks.count("num_clusters", num_clusters)
    grads = jax.vmap(jax.grad(loss), (None, 0))(params, batch)
    counts = jnp.bincount(ids, length=num_clusters)

    def mean(g):
        sums = jax.ops.segment_sum(g, ids, num_clusters)
        return sums / jnp.maximum(counts, 1).astype(g.dtype).reshape(-1, *(1,) * (g.ndim - 1))

    dtype = jnp.result_type(float)
    return {
        "cluster_grads": jax.tree.map(mean, grads),
        "cluster_frac": counts.astype(dtype) / ids.shape[0],
    }


class ScaleByQHMState(NamedTuple):
    """The momentum buffer."""

    momentum: PyTree[Array]


def scale_by_qhm(momentum: float = 0.9, nu: float = 0.7) -> optax.GradientTransformationExtraArgs:
    r"""Quasi-hyperbolic momentum: $b \leftarrow \mu b + (1-\mu) g$, step along $(1-\nu) g + \nu b$.

    **Reference:** Ma, Yarats, Quasi-hyperbolic Momentum and Adam for Deep Learning, 2019,
    arXiv:1810.06801.
    """
    checks.interval("momentum", momentum, 0.0, 1.0, open_high=True)
    checks.interval("nu", nu, 0.0, 1.0)

    def init(params):
        return ScaleByQHMState(optax.tree.zeros_like(params))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        buffer = optax.tree.update_moment(updates, state.momentum, momentum, 1)
        mixed = jax.tree.map(lambda g, b: (1 - nu) * g + nu * b, updates, buffer)
        return mixed, ScaleByQHMState(buffer)

    return keep_wide(optax.GradientTransformationExtraArgs(init, update))


class ScaleByIGTState(NamedTuple):
    """Number of updates, the transported gradient, and the parameters before the last update."""

    count: Int[Array, ""]
    velocity: PyTree[Array]
    previous: PyTree[Array]


def scale_by_igt() -> optax.GradientTransformationExtraArgs:
    r"""Implicit gradient transport: $v \leftarrow (t v + g)/(t+1)$, t from 0.

    The gradients must be taken at `lookahead_params`.

    **Reference:** Arnold et al., Reducing the Variance in Online Optimization by Transporting Past
    Gradients, 2019, arXiv:1906.03532.
    """

    def init(params):
        return ScaleByIGTState(jnp.zeros([], jnp.int32), optax.tree.zeros_like(params), params)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        t = state.count

        def transport(g, v):
            rate = 1 / (t + 1).astype(v.dtype)
            return v + rate * (g - v)

        velocity = jax.tree.map(transport, updates, state.velocity)
        return velocity, ScaleByIGTState(next_count(t), velocity, params)

    return keep_wide(optax.GradientTransformationExtraArgs(init, update))


def lookahead_params(state: PyTree, params: PyTree[Array]) -> PyTree[Array]:
    r"""Where implicit gradient transport takes gradients: $\theta_t + t(\theta_t-\theta_{t-1})$.

    **Arguments:**

    - `state`: state of `discover_igt` or of anything that holds a `scale_by_igt`.
    - `params`: the current parameters $\theta_t$.

    **Raises:** `ValueError` if the state holds no `scale_by_igt`, or more than one.
    """

    def is_igt(node):
        return isinstance(node, ScaleByIGTState)

    found = [node for node in jax.tree.leaves(state, is_leaf=is_igt) if is_igt(node)]
    if len(found) != 1:
        raise ValueError(f"the state must hold one scale_by_igt, found {len(found)}")
    (igt,) = found
    ahead = jax.tree.map(
        lambda x, last: x + igt.count.astype(last.dtype) * (x - last), params, igt.previous
    )
    return narrow(ahead, params)


def discover_sgd(
    learning_rate: optax.ScalarOrSchedule,
    num_clusters: int,
    weights: Sequence[float] | Float[Array, " K"] | None = None,
    alpha: float = 0.1,
) -> optax.GradientTransformationExtraArgs:
    r"""`multi_momentum` around gradient descent: $\theta \leftarrow \theta - \eta e$.

    **Arguments:**

    - `learning_rate`: a number or a schedule.
    - `num_clusters`, `weights`, `alpha`: as in `multi_momentum`, which also says how to pass the
      gradients.
    """
    return multi_momentum(optax.sgd(learning_rate), num_clusters, weights, alpha)


def discover_sgdm(
    learning_rate: optax.ScalarOrSchedule,
    num_clusters: int,
    momentum: float = 0.9,
    weights: Sequence[float] | Float[Array, " K"] | None = None,
    alpha: float = 0.1,
    ema: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""`multi_momentum` around momentum: $b \leftarrow \mu b + e$, a step of $-\eta b$.

    **Arguments:**

    - `learning_rate`: a number or a schedule.
    - `num_clusters`, `weights`, `alpha`: as in `multi_momentum`, which also says how to pass the
      gradients.
    - `momentum`: $\mu$, in [0, 1).
    - `ema`: $b \leftarrow \mu b + (1-\mu) e$ instead.
    """
    checks.interval("momentum", momentum, 0.0, 1.0, open_high=True)
    buffer = optax.ema(momentum, debias=False) if ema else optax.trace(momentum)
    inner = optax.chain(buffer, optax.scale_by_learning_rate(learning_rate))
    return multi_momentum(inner, num_clusters, weights, alpha)


def discover_qhm(
    learning_rate: optax.ScalarOrSchedule,
    num_clusters: int,
    momentum: float = 0.9,
    nu: float = 0.7,
    weights: Sequence[float] | Float[Array, " K"] | None = None,
    alpha: float = 0.1,
) -> optax.GradientTransformationExtraArgs:
    r"""`multi_momentum` around quasi-hyperbolic momentum, `scale_by_qhm`.

    **Arguments:**

    - `learning_rate`: a number or a schedule.
    - `num_clusters`, `weights`, `alpha`: as in `multi_momentum`, which also says how to pass the
      gradients.
    - `momentum`, `nu`: $\mu$ in [0, 1), and the part $\nu$ of the momentum in the step.
    """
    inner = optax.chain(scale_by_qhm(momentum, nu), optax.scale_by_learning_rate(learning_rate))
    return multi_momentum(inner, num_clusters, weights, alpha)


def discover_igt(
    learning_rate: optax.ScalarOrSchedule,
    num_clusters: int,
    weights: Sequence[float] | Float[Array, " K"] | None = None,
    alpha: float = 0.1,
) -> optax.GradientTransformationExtraArgs:
    """`multi_momentum` around implicit gradient transport, `scale_by_igt`.

    Take the gradients at `lookahead_params(state, params)`.

    **Arguments:**

    - `learning_rate`: a number or a schedule.
    - `num_clusters`, `weights`, `alpha`: as in `multi_momentum`, which also says how to pass the
      gradients.
    """
    inner = optax.chain(scale_by_igt(), optax.scale_by_learning_rate(learning_rate))
    return multi_momentum(inner, num_clusters, weights, alpha)
