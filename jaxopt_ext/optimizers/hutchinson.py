"""The diagonal of the Hessian from products with random signs (Hutchinson)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from ..core import checks, loops
from ._leafwise import abs_square, require_params
from ._precision import keep_wide, narrow, widen


def hutchinson_diag(
    loss_fn: Callable[..., Float[Array, ""]] | None,
    params: PyTree[Array],
    key: Key[Array, ""],
    n: int = 1,
    *args: Any,
    hvp_fn: Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]] | None = None,
) -> PyTree[Array]:
    r"""Unbiased estimate of the diagonal of a Hessian from n Hessian-vector products.

    With entries of z independently 1 or -1,

    $$\mathrm{diag}(H) \approx \frac1n \sum_{i=1}^n z_i \odot H z_i, \qquad
    \mathrm{Var}_j = \frac1n \sum_{k \ne j} H_{jk}^2,$$

    so one product is exact for a diagonal Hessian. Products are forward over reverse, one after the
    other: the memory does not grow with n.

    **Arguments:**

    - `loss_fn`: scalar function of `params` and `args`; may be `None` if `hvp_fn` is given.
    - `params`: where the Hessian is taken.
    - `key`: decides the signs. Nodes that share a Hessian need the same key.
    - `n`: number of products.
    - `args`: passed on to `loss_fn`.
    - `hvp_fn`: used instead of `loss_fn`: maps `params` and a vector z like them to Hz.

    **Returns:** a tree like `params`.

    **Raises:** `ValueError` if both functions are missing, or n is not positive.

    **Reference:** Bekas, Kokiopoulou, Saad, An Estimator for the Diagonal of a Matrix, 2007.
    """
    checks.count("n", n)
    if hvp_fn is None:
        if loss_fn is None:
            raise ValueError("hutchinson_diag needs loss_fn or hvp_fn")
        hvp_fn = hessian_vector_product(lambda x: loss_fn(x, *args))

    def sample(key):
        signs = optax.tree.random_like(key, params, random_signs)
        return jax.tree.map(lambda z, hz: z * hz, signs, hvp_fn(params, signs))

    if n == 1:
        return sample(key)

    def add(total, key):
        return optax.tree.add(total, sample(key)), None

    total, _ = loops.scan(add, optax.tree.zeros_like(params), jax.random.split(key, n))
    return jax.tree.map(lambda x: x / n, total)


def random_signs(key: Key[Array, ""], shape: Sequence[int] = (), dtype: Any = float) -> Array:
    """Independent entries 1 or -1, equally likely.

    Each random word gives 32 of them along the last axis, where `jax.random.rademacher` draws a
    word for each, which takes about ten times as long.
    """
    shape = tuple(shape)
    size = shape[-1] if shape else 1
    count = math.ceil(size / 32)
    words = jax.random.bits(key, (*shape[:-1], count), jnp.uint32)
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    bits = bits.reshape(*shape[:-1], 32 * count)[..., :size].reshape(shape)
    return 1 - 2 * bits.astype(dtype)


def running_diagonal(diagonal, count, params, key, *, n_warmup, decay, hvp_fn):
    """The moving average of diagonals: `n_warmup` products in the first step, one in the others."""
    drawn = lambda n: hutchinson_diag(None, params, key, n, hvp_fn=hvp_fn)
    averaged = lambda new: optax.tree.update_moment(new, diagonal, decay, 1)
    if n_warmup == 1:
        new = drawn(1)
        return optax.tree.where(count == 0, new, averaged(new))
    return loops.cond(count == 0, lambda: drawn(n_warmup), lambda: averaged(drawn(1)))


def hessian_vector_product(
    loss_fn: Callable[[PyTree[Array]], Float[Array, ""]],
) -> Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]]:
    """The function of parameters and a vector that gives Hessian times vector."""

    def product(params, vector):
        return jax.jvp(jax.grad(loss_fn), (params,), (vector,))[1]

    return product


def with_curvature(
    name: str, tx: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """Run `tx` in at least float32, with functions of the parameters as extra arguments.

    `tx` gets `grad_fn` and `hvp_fn`, made from `loss_fn` (or optax's `value_fn`) where they are not
    passed; `None` where neither is. They are called with parameters of the types that the caller
    has, and give results in the types that `tx` works in.
    """
    wide = keep_wide(tx)

    def update(
        updates,
        state,
        params=None,
        *,
        loss_fn=None,
        value_fn=None,
        grad_fn=None,
        hvp_fn=None,
        **extra_args,
    ):
        require_params(params, name)
        loss_fn = value_fn if loss_fn is None else loss_fn
        if loss_fn is not None:
            grad_fn = jax.grad(loss_fn) if grad_fn is None else grad_fn
            hvp_fn = hessian_vector_product(loss_fn) if hvp_fn is None else hvp_fn

        def widened(fn):
            """`fn` as `tx` sees it: its points and vectors come wide, and so does its result."""
            if fn is None:
                return None
            return lambda *trees: widen(fn(*(narrow(tree, params) for tree in trees)))

        return wide.update(
            updates,
            state,
            params,
            grad_fn=widened(grad_fn),
            hvp_fn=widened(hvp_fn),
            **extra_args,
        )

    return optax.GradientTransformationExtraArgs(wide.init, update)


def missing_curvature(name: str, argument: str) -> ValueError:
    """The error for a function that was not passed to `update`."""
    call = {"hvp_fn": "lambda params, z: ...", "grad_fn": "lambda params: ..."}[argument]
    return ValueError(
        f"{name} needs {argument} or loss_fn: update(grads, state, params, loss_fn=lambda params: "
        f"loss(params, batch)) or update(grads, state, params, {argument}={call})"
    )


def require_real(name: str, params: PyTree[Array]) -> None:
    """Raise on complex parameters, which have no diagonal of a Hessian."""
    for leaf in jax.tree.leaves(params):
        if jnp.iscomplexobj(leaf):
            raise TypeError(
                f"{name} needs real parameters, got {leaf.dtype}; wrap it in "
                "optax.contrib.split_real_and_imaginary"
            )


def scalar_dtype(params: PyTree[Array]) -> Any:
    """The real type, at least float32, for numbers that belong to the whole tree."""
    return jnp.finfo(jnp.result_type(jnp.float32, *jax.tree.leaves(params))).dtype


def weighted_square(x: PyTree[Array], weight: PyTree[Array]) -> Float[Array, ""]:
    """Sum of weight times |x|² over all entries of all leaves."""
    squares = jax.tree.map(lambda a, w: jnp.sum(w * abs_square(a)), x, weight)
    return jnp.asarray(optax.tree.sum(squares))
