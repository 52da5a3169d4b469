"""AdAdaGrad: AdaGrad whose batches grow as the gradient's noise begins to matter."""

import functools
from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core import checks, loops
from ._leafwise import abs_square, next_count, rate_at, sum_rows
from ._precision import keep_wide, widen
from .hutchinson import require_real, scalar_dtype
from .per_sample import per_sample_grads

Test = Literal["norm", "coordinate", "inner", "augmented"]


class AdAdaGradState(NamedTuple):
    """State of `adadagrad` and `adadagrad_norm`.

    - `count`: number of updates.
    - `batch_size`: samples that the next batch should have, over all nodes.
    - `accumulator`: sum of squared gradients: like the parameters, or one number.
    """

    count: Int[Array, ""]
    batch_size: Int[Array, ""]
    accumulator: PyTree[Array]


def batch_size_test(
    G: PyTree[Float[Array, "b ..."]],
    mask: Bool[Array, " b"] | None = None,
    kind: Test = "norm",
    *,
    eta: float = 0.1,
    theta: float = 0.9,
    nu: float = 5.0,
    axis_name: Hashable | None = None,
) -> Float[Array, ""]:
    r"""Batch size at which the noise of the mean gradient is as small as a test asks.

    With the mean $\bar g$ of the gradients $g_i$ of b samples, and unbiased variances over them,

    - `"norm"`: $\|\mathrm{Var}\, g\|_1 / (\eta^2 \|\bar g\|^2)$;
    - `"coordinate"`: $\max_j \mathrm{Var}_j / (\eta^2 \bar g_j^2)$;
    - `"inner"`: $\mathrm{Var}_i \langle g_i, \bar g\rangle / (\theta^2 \|\bar g\|^4)$;
    - `"augmented"`: the larger of that and
      $\|\mathrm{Var}_i (g_i - \langle g_i, \bar g\rangle \bar g / \|\bar g\|^2)\|_1
      / (\nu^2 \|\bar g\|^2)$.

    **Arguments:**

    - `G`: gradients, stacked on the leading axis of each leaf; all leaves count as one vector.
    - `mask`: which rows are samples; the others are padding.
    - `kind`: the test.
    - `eta`, `theta`, `nu`: $\eta, \theta, \nu$, tolerances.
    - `axis_name`: axis of nodes with the same number of samples each, as in `jax.vmap` or
      `jax.shard_map`. The variance is the mean of the nodes' variances plus the variance of their
      means, and the answer is for the batch of all nodes together.

    **Returns:** a number, not rounded; infinite if the mean is zero and the variance is not, zero
    if there is no variance.

    **Raises:** `ValueError` on an unknown test or tolerances that are not positive.
    """
    _check_test(kind, eta, theta, nu)
    leaves = jax.tree.leaves(widen(G))
    if not leaves:
        return jnp.zeros([])
    mask = jnp.ones(leaves[0].shape[0], bool) if mask is None else jnp.asarray(mask, bool)
    leaves = [jnp.where(_column(mask, g), g, 0) for g in leaves]
    mean = functools.partial(_mean, axis_name=axis_name)

    def variance(x):
        """Of each column."""
        samples = jnp.sum(mask).astype(x.dtype)
        local = sum_rows(x) / samples
        squares = jnp.where(_column(mask, x), (x - local) ** 2, 0)
        within = mean(sum_rows(squares) / jnp.maximum(samples - 1, 1))
        return within if axis_name is None else within + mean((local - mean(local)) ** 2)

    samples = jnp.sum(mask)
    means = [mean(sum_rows(g) / samples.astype(g.dtype)) for g in leaves]
    square = sum(jnp.sum(m**2) for m in means)
    if kind == "norm":
        return _ratio(sum(jnp.sum(variance(g)) for g in leaves), eta**2 * square)
    if kind == "coordinate":
        worst = [
            jnp.max(_ratio(variance(g), eta**2 * m**2), initial=0)
            for g, m in zip(leaves, means, strict=True)
        ]
        return functools.reduce(jnp.maximum, worst)
    along = sum(
        g.reshape(len(mask), -1) @ m.reshape(-1) for g, m in zip(leaves, means, strict=True)
    )
    inner = _ratio(variance(along), theta**2 * square**2)
    # With a mean of zero nothing points along it, and any noise is too much.
    noise = mean(sum(jnp.sum(g**2) for g in leaves))
    inner = jnp.where(square == 0, _ratio(noise, square), inner)
    if kind == "inner":
        return inner
    part = along / jnp.where(square > 0, square, 1)
    across = sum(
        jnp.sum(variance(g - _column(part, g) * m)) for g, m in zip(leaves, means, strict=True)
    )
    return jnp.maximum(inner, _ratio(across, nu**2 * square))


def _column(vector, leaf):
    return vector.reshape(-1, *(1,) * (leaf.ndim - 1))


def _mean(x, axis_name):
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def _ratio(a, b):
    """a / b with 0 / 0 = 0 and a / 0 infinite."""
    return jnp.where(a > 0, a / jnp.where(b > 0, b, 0), jnp.where(a == 0, 0, jnp.nan))


def _check_test(kind, eta, theta, nu):
    if kind not in Test.__args__:
        raise ValueError(f"test must be one of {Test.__args__}, got {kind!r}")
    checks.positive("eta", eta)
    checks.positive("theta", theta)
    checks.positive("nu", nu)


def adadagrad(
    learning_rate: optax.ScalarOrSchedule,
    test: Test = "norm",
    eta: float = 0.1,
    theta: float = 0.9,
    nu: float = 5.0,
    b0: int = 8,
    b_max: int = 4096,
    test_interval: int = 1,
    eps: float = 1e-8,
    initial_accumulator: float = 1e-2,
    *,
    axis_name: Hashable | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdAdaGrad: AdaGrad with a batch size that grows by a test on the gradients of samples.

    $$s \leftarrow s + \bar g^2, \quad
    x \leftarrow x - \eta_t \frac{\bar g}{\sqrt{s} + \epsilon}, \quad
    b \leftarrow \min(b_{\max}, \max(b, \lceil T \rceil)),$$

    with the batch size T that `batch_size_test` asks for on the same batch. It never shrinks.

    The gradients of all samples are an extra argument of `update`, with a mask if the batch is
    padded; the gradient itself may be `None`, and is then their mean:

    ```python
    grads = per_sample_grads(loss, params, batch)
    updates, state = tx.update(None, state, params, per_sample_grads=grads, sample_mask=mask)
    state.batch_size  # how many to draw next
    ```

    `fit_adaptive_batch` is a loop around that. Over several nodes, use `axis_name`.

    **Arguments:**

    - `learning_rate`: $\eta_t$, a number or a schedule.
    - `test`, `eta`, `theta`, `nu`: see `batch_size_test`; `"coordinate"` is the one in the theory
      of AdAdaGrad. Smaller tolerances give larger batches.
    - `b0`, `b_max`: first and largest batch size, over all nodes; at least 2.
    - `test_interval`: test at each so many steps.
    - `eps`: $\epsilon$, outside the root.
    - `initial_accumulator`: s at the start.
    - `axis_name`: axis of nodes with equally many samples; a gradient that is passed must be of
      all of them.

    **Returns:** a gradient transformation with a state of one number per parameter.

    **Raises:** `ValueError` or `TypeError` on bad hyperparameters; from `update` without
    `per_sample_grads`.

    **Reference:** Lau, Liu, Kolar, AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient
    Methods, 2024, arXiv:2402.11215.
    """
    checks.positive("eps", eps)
    checks.nonnegative("initial_accumulator", initial_accumulator)

    def start(params):
        return jax.tree.map(
            lambda p: jnp.full_like(p.real, initial_accumulator), optax.tree.zeros_like(params)
        )

    def scaled(g, s):
        s = jax.tree.map(lambda a, x: a + abs_square(x), s, g)
        return jax.tree.map(lambda x, a: x / (jnp.sqrt(a) + eps), g, s), s

    return _adaptive_batch(
        start, scaled, learning_rate, test, eta, theta, nu, b0, b_max, test_interval, axis_name
    )


def adadagrad_norm(
    learning_rate: optax.ScalarOrSchedule,
    test: Test = "norm",
    eta: float = 0.1,
    theta: float = 0.9,
    nu: float = 5.0,
    b0: int = 8,
    b_max: int = 4096,
    test_interval: int = 1,
    initial_accumulator: float = 1e-2,
    *,
    axis_name: Hashable | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdAdaGradNorm: `adadagrad` with one step size for all parameters.

    $$s \leftarrow s + \|\bar g\|^2, \quad x \leftarrow x - \eta_t \bar g / \sqrt{s},$$

    over all leaves together. Arguments, extra arguments and errors are those of `adadagrad`, but
    `initial_accumulator` must be positive. The state is of a few bytes.

    **Reference:** Lau, Liu, Kolar, AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient
    Methods, 2024, arXiv:2402.11215.
    """
    checks.positive("initial_accumulator", initial_accumulator)

    def start(params):
        return jnp.asarray(initial_accumulator, scalar_dtype(params))

    def scaled(g, s):
        s = (s + optax.tree.norm(g, squared=True)).astype(s.dtype)
        return jax.tree.map(lambda x: x * jax.lax.rsqrt(s), g), s

    return _adaptive_batch(
        start, scaled, learning_rate, test, eta, theta, nu, b0, b_max, test_interval, axis_name
    )


def _adaptive_batch(
    start: Callable[[PyTree[Array]], PyTree[Array]],
    scaled: Callable[[PyTree[Array], PyTree[Array]], tuple[PyTree[Array], PyTree[Array]]],
    learning_rate: optax.ScalarOrSchedule,
    test: Test,
    eta: float,
    theta: float,
    nu: float,
    b0: int,
    b_max: int,
    test_interval: int,
    axis_name: Hashable | None,
) -> optax.GradientTransformationExtraArgs:
    """A scaling of the mean gradient with an accumulator, and a batch size that grows."""
    if not callable(learning_rate):
        checks.nonnegative("learning_rate", learning_rate)
    _check_test(test, eta, theta, nu)
    checks.count("b0", b0, minimum=2)
    checks.count("b_max", b_max, minimum=b0)
    checks.count("test_interval", test_interval)

    def init(params):
        require_real("adadagrad", params)
        count = jnp.zeros([], jnp.int32)
        return AdAdaGradState(count, jnp.asarray(b0, jnp.int32), start(params))

    def update(
        updates, state, params=None, *, per_sample_grads=None, sample_mask=None, **extra_args
    ):
        del params, extra_args
        if per_sample_grads is None:
            raise ValueError(
                "adadagrad needs per_sample_grads, the gradients of all samples stacked on a "
                "leading axis: update(None, state, params, "
                "per_sample_grads=per_sample_grads(loss, params, batch))"
            )
        G, mask = widen(per_sample_grads), sample_mask
        if updates is None:
            updates = jax.tree.map(lambda g: _mean(_masked_mean(g, mask), axis_name), G)
        step, accumulator = scaled(updates, state.accumulator)

        def grown(size):
            wanted = batch_size_test(
                G, mask, test, eta=eta, theta=theta, nu=nu, axis_name=axis_name
            )
            # Not a number, which only a bad gradient gives, leaves the size as it is.
            wanted = jnp.where(jnp.isnan(wanted), 0, jnp.ceil(wanted))
            return jnp.maximum(size, jnp.minimum(wanted, b_max).astype(jnp.int32))

        due = ((state.count + 1) % test_interval == 0) & (state.batch_size < b_max)
        if axis_name is None:
            size = loops.cond(due, grown, lambda size: size, state.batch_size)
        else:  # Nodes must meet in the sums, whatever branch each believes in.
            size = jnp.where(due, grown(state.batch_size), state.batch_size)

        def descend(x):
            return -rate_at(learning_rate, state.count, x.real.dtype) * x

        new = AdAdaGradState(next_count(state.count), size, accumulator)
        return jax.tree.map(descend, step), new

    return keep_wide(optax.GradientTransformationExtraArgs(init, update))


def _masked_mean(g, mask):
    if mask is None:
        return sum_rows(g) / g.shape[0]
    mask = jnp.asarray(mask, bool)
    return sum_rows(jnp.where(_column(mask, g), g, 0)) / jnp.sum(mask).astype(g.dtype)


class AdaptiveBatchFit(NamedTuple):
    """What `fit_adaptive_batch` returns.

    - `params`, `state`: at the end.
    - `batch_sizes`: of each step.
    """

    params: PyTree[Array]
    state: optax.OptState
    batch_sizes: np.ndarray


def fit_adaptive_batch(
    loss: Callable[[PyTree[Array], Any], Float[Array, ""]],
    params: PyTree[Array],
    data: PyTree[Array],
    tx: optax.GradientTransformationExtraArgs,
    budget: int,
    *,
    seed: int = 0,
) -> AdaptiveBatchFit:
    """Train with a batch size that the transformation decides, until the samples are used up.

    Batches are drawn with replacement and padded to the next power of two. A stretch of steps of
    the same padded size is one compiled loop on the device, so there is one compilation per power
    of two. The draws depend on the seed and the number of the step only, and on the padded size.

    **Arguments:**

    - `loss`: maps parameters and one sample to a scalar.
    - `params`: where to start.
    - `data`: samples, stacked on the leading axis of each leaf.
    - `tx`: `adadagrad`, `adadagrad_norm`, or a chain with one of them.
    - `budget`: number of samples to draw; the last batch that would exceed it is left out.
    - `seed`: of the draws.

    **Returns:** parameters, state and the batch size of each step.

    **Raises:** `ValueError` if there is no data, `data` has leaves of different lengths, or the
    budget is below the first batch.
    """
    checks.count("budget", budget)
    lengths = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"data must hold arrays of one positive length, got {sorted(lengths)}")
    state = tx.init(params)
    size = int(_batch_size(state))
    if budget < size:
        raise ValueError(f"budget must be at least the first batch size {size}, got {budget}")
    sizes = jnp.zeros(budget // size, jnp.int32)
    carry = (params, state, jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32), sizes)
    key = jax.random.key(seed)
    while True:
        steps, used, size = int(carry[2]), int(carry[3]), int(_batch_size(carry[1]))
        if used + size > budget:
            return AdaptiveBatchFit(carry[0], carry[1], np.asarray(carry[4][:steps]))
        carry = _stretch(loss, tx, _power_of_two(size), budget, data, carry, key)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _stretch(loss, tx, padded, budget, data, carry, key):
    """Steps until the batch size outgrows its padding or the budget ends."""
    length = jax.tree.leaves(data)[0].shape[0]

    def more(carry):
        _, state, _, used, _ = carry
        size = _batch_size(state)
        return (size <= padded) & (used + size <= budget)

    def step(carry):
        params, state, count, used, sizes = carry
        size = _batch_size(state)
        rows = jax.random.randint(jax.random.fold_in(key, count), (padded,), 0, length)
        batch = jax.tree.map(lambda a: a[rows], data)
        updates, state = tx.update(
            None,
            state,
            params,
            per_sample_grads=per_sample_grads(loss, params, batch),
            sample_mask=jnp.arange(padded) < size,
        )
        params = optax.apply_updates(params, updates)
        return params, state, count + 1, used + size, sizes.at[count].set(size)

    return loops.while_loop(more, step, carry)


def _batch_size(state):
    return optax.tree.get(state, "batch_size")


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
