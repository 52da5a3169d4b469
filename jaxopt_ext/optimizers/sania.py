"""SANIA: Polyak's step size with a curvature term, for preconditioners without square roots."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree

from ..core import checks, loops
from ._leafwise import abs_square, next_count, one_minus_power
from ._precision import keep_wide, narrow
from .hutchinson import (
    missing_curvature,
    require_real,
    running_diagonal,
    scalar_dtype,
    with_curvature,
)

Preconditioner = Literal["adagrad_sqr", "adam_sqr", "identity", "hutchinson", "newton", "cg"]


class SANIAState(NamedTuple):
    """Number of updates, key of the next signs, and the diagonal of the preconditioner."""

    count: Int[Array, ""]
    key: PyTree[Key[Array, ""]]
    diagonal: PyTree[Array]


def sania(
    preconditioner: Preconditioner = "adagrad_sqr",
    lr: optax.ScalarOrSchedule = 1.0,
    b2: float = 0.999,
    eps: float = 1e-30,
    f_star: float = 0.0,
    is_sqrt: bool = False,
    *,
    linear: bool = False,
    max_step: float | None = None,
    alpha: float = 1e-5,
    n_warmup: int = 1,
    cg_steps: int = 20,
    cg_tol: float = 1e-3,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""SANIA: the nearest point where a quadratic model of the batch loss reaches its lower bound.

    With the loss f of the batch, its gradient g and lower bound $f^*$, the next point solves

    $$\min_w \tfrac12 \|w - w_t\|_B^2 \quad\text{s.t.}\quad
    f + \langle g, w - w_t\rangle + \tfrac12 (w-w_t)^\top B (w-w_t) \le f^*,$$

    or goes to the model's minimum if that is higher. With $q = \langle g, B^{-1} g\rangle$,

    $$w_{t+1} = w_t - \lambda B^{-1} g, \qquad
    \lambda = 1 - \sqrt{1 - \min(1, 2 (f - f^*)/q)},$$

    so no learning rate has to be tuned where one model fits all data. `"adagrad_sqr"` and
    `"adam_sqr"` do not change when coordinates are measured in other units: the path of Bw is the
    same.

    The loss on the batch that the gradient comes from is an extra argument of `update`. Three
    preconditioners need its curvature as well, from the loss as a function or by products:

    ```python
    updates, state = tx.update(grads, state, params, value=value)
    updates, state = tx.update(grads, state, params, value=value, loss_fn=lambda p: loss(p, batch))
    updates, state = tx.update(grads, state, params, value=value, hvp_fn=lambda p, z: product(p, z))
    ```

    **Arguments:**

    - `preconditioner`: B.

        - `"adagrad_sqr"`: sum of the squares of all gradients, without root.
        - `"adam_sqr"`: running mean of the squares, bias corrected, without root.
        - `"identity"`: stochastic Polyak steps.
        - `"hutchinson"`: running mean of $z \odot Hz$ with random signs z, then
          $\max(|\cdot|, \alpha)$.
        - `"newton"`: the Hessian of a convex loss, n x n, by Cholesky; where it is not positive
          definite the step is the one for the identity.
        - `"cg"`: the Hessian by truncated conjugate gradients. At negative curvature they stop
          and give what they have, or g if that is nothing.

    - `lr`: multiplies the step.
    - `b2`: decay of the running means, in [0, 1).
    - `eps`: lower bound of the diagonal of the first two, in its units; not tiny, it spoils the
      invariance. The squares of gradients above 1e19 overflow in single precision.
    - `f_star`: lower bound of the loss of a batch. Where the bounds differ, pass f minus its bound
      as `value`.
    - `is_sqrt`: take the roots of the first two; not scale-invariant, for comparison.
    - `linear`: no curvature term in the constraint: $\lambda = (f - f^*)/q$, Polyak's step.
    - `max_step`: upper bound of $\lambda$ if `linear`.
    - `alpha`, `n_warmup`: for `"hutchinson"`: $\alpha$, and products for the first diagonal.
    - `cg_steps`, `cg_tol`: for `"cg"`: largest number of products, residual relative to g.
    - `seed`: of the signs.

    **Returns:** a gradient transformation. The state takes one number per parameter for the first
    two and for `"hutchinson"`, none for the others.

    **Raises:** `ValueError` or `TypeError` on bad hyperparameters; from `update` without `value`,
    or without curvature where it is needed; `TypeError` from `init` on complex parameters where
    curvature is needed.

    **Reference:** Abdukhakimov, Xiang, Kamzolov, Gower, Takáč, SANIA: Polyak-type Optimization
    Framework Leads to Scale Invariant Stochastic Algorithms, 2023, arXiv:2312.17369.
    """
    if preconditioner not in Preconditioner.__args__:
        raise ValueError(
            f"preconditioner must be one of {Preconditioner.__args__}, got {preconditioner!r}"
        )
    squares = preconditioner in ("adagrad_sqr", "adam_sqr")
    curved = preconditioner in ("hutchinson", "newton", "cg")
    if not callable(lr):
        checks.nonnegative("lr", lr)
    checks.interval("b2", b2, 0.0, 1.0, open_high=True)
    checks.positive("eps", eps)
    checks.finite("f_star", f_star)
    checks.positive("alpha", alpha)
    checks.count("n_warmup", n_warmup)
    checks.count("cg_steps", cg_steps)
    checks.nonnegative("cg_tol", cg_tol)
    if is_sqrt and not squares:
        raise ValueError(f"is_sqrt has no meaning for preconditioner {preconditioner!r}")
    if max_step is not None:
        checks.positive("max_step", max_step)
        if not linear:
            raise ValueError("max_step has no meaning unless linear: the step is at most 1")

    def init(params):
        if curved:
            require_real(f"sania with preconditioner {preconditioner!r}", params)
        diagonal = None
        if squares or preconditioner == "hutchinson":
            diagonal = optax.tree.real(optax.tree.zeros_like(params))
        key = jax.random.key(seed) if preconditioner == "hutchinson" else None
        return SANIAState(jnp.zeros([], jnp.int32), key, diagonal)

    def bounded(diagonal):
        root = jnp.sqrt if is_sqrt else lambda x: x
        return jax.tree.map(lambda d: jnp.maximum(root(d), eps), diagonal)

    def preconditioned(g, state, count, params, hvp_fn):
        """B⁻¹g and the new state."""
        new = SANIAState(count, state.key, state.diagonal)
        match preconditioner:
            case "adagrad_sqr":
                total = jax.tree.map(lambda d, x: d + abs_square(x), state.diagonal, g)
                return _divide(g, bounded(total)), new._replace(diagonal=total)
            case "adam_sqr":
                mean = optax.tree.update_moment_per_elem_norm(g, state.diagonal, b2, 2)
                fair = jax.tree.map(lambda d: d / one_minus_power(b2, count.astype(d.dtype)), mean)
                return _divide(g, bounded(fair)), new._replace(diagonal=mean)
            case "identity":
                return g, new
            case "hutchinson":
                key, now = jax.random.split(state.key)
                average = {"n_warmup": n_warmup, "decay": b2, "hvp_fn": hvp_fn}
                diagonal = running_diagonal(state.diagonal, state.count, params, now, **average)
                scale = jax.tree.map(lambda d: jnp.maximum(jnp.abs(d), alpha), diagonal)
                return _divide(g, scale), SANIAState(count, key, diagonal)
            case "newton":
                return newton_direction(lambda z: hvp_fn(params, z), g), new
            case "cg":
                matvec = lambda z: hvp_fn(params, z)
                return truncated_cg(matvec, g, cg_steps, cg_tol), new

    def update(updates, state, params=None, *, value=None, hvp_fn=None, **extra_args):
        del extra_args
        if value is None:
            raise ValueError(
                "sania needs value, the loss on the batch that the gradient comes from: "
                "update(grads, state, params, value=loss(params, batch))"
            )
        if curved and hvp_fn is None:
            raise missing_curvature(f"sania with preconditioner {preconditioner!r}", "hvp_fn")
        count = next_count(state.count)
        s, new = preconditioned(updates, state, count, params, hvp_fn)
        q = jnp.real(optax.tree.vdot(updates, s))
        dtype = scalar_dtype(updates)
        gap = jnp.maximum(jnp.asarray(value, dtype) - f_star, 0)
        safe = jnp.where(q > 0, q, 1).astype(dtype)
        if linear:
            step = gap / safe if max_step is None else jnp.minimum(gap / safe, max_step)
        else:
            ratio = jnp.minimum(2 * gap / safe, 1)
            # 1 - sqrt(1 - ratio) without cancellation.
            step = ratio / (1 + jnp.sqrt(1 - ratio))
        step = jnp.where(q > 0, step, 0 * q)  # 0, or not a number where q is none
        rate = lr(state.count) if callable(lr) else lr
        return jax.tree.map(lambda x: -(rate * step) * x, s), new

    tx = optax.GradientTransformationExtraArgs(init, update)
    return with_curvature("sania", tx) if curved else keep_wide(tx)


def _divide(x: PyTree[Array], by: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda a, b: a / b, x, by)


def newton_direction(
    matvec: Callable[[PyTree[Array]], PyTree[Array]], g: PyTree[Array]
) -> PyTree[Array]:
    """The solution s of Hs = g by Cholesky; g itself if H is not positive definite.

    The matrix is scaled to a unit diagonal first, so the answer does not depend on units.
    """
    flat, unravel = ravel_pytree(g)
    if flat.size == 0:
        return g
    columns = jax.vmap(lambda e: ravel_pytree(matvec(unravel(e)))[0])
    matrix = columns(jnp.eye(flat.size, dtype=flat.dtype))
    diagonal = jnp.diagonal(matrix)
    unit = jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1))
    jitter = 4 * flat.size * jnp.finfo(flat.dtype).eps
    scaled = unit[:, None] * matrix * unit + jitter * jnp.eye(flat.size, dtype=flat.dtype)
    operator = lx.MatrixLinearOperator(scaled, lx.positive_semidefinite_tag)
    s = unit * lx.linear_solve(operator, unit * flat, lx.Cholesky(), throw=False).value
    return unravel(jnp.where(jnp.all(jnp.isfinite(s)), s, flat))


class _CG(NamedTuple):
    s: Any
    residual: Any
    direction: Any
    square: Float[Array, ""]
    steps: Int[Array, ""]
    convex: Any


def truncated_cg(
    matvec: Callable[[PyTree[Array]], PyTree[Array]],
    g: PyTree[Array],
    max_steps: int,
    tol: float,
) -> PyTree[Array]:
    """Conjugate gradients on Hs = g from zero, stopped at negative curvature.

    Every iterate satisfies ⟨g, s⟩ = ⟨s, Hs⟩. Negative curvature along g itself gives g.
    """
    dtype = scalar_dtype(g)
    dot = lambda a, b: jnp.asarray(optax.tree.vdot(a, b), dtype)
    start = dot(g, g)

    def unfinished(state):
        large = state.square > tol**2 * start
        return state.convex & large & (state.steps < max_steps)

    def step(state):
        product = matvec(state.direction)
        curvature = dot(state.direction, product)
        convex = curvature > 0
        length = jnp.where(convex, state.square / jnp.where(convex, curvature, 1), 0)
        s = narrow(optax.tree.add_scale(state.s, length, state.direction), g)
        residual = narrow(optax.tree.add_scale(state.residual, -length, product), g)
        square = dot(residual, residual)
        ratio = square / state.square
        direction = narrow(optax.tree.add_scale(residual, ratio, state.direction), g)
        return _CG(s, residual, direction, square, state.steps + 1, convex)

    zeros = optax.tree.zeros_like(g)
    first = _CG(zeros, g, g, start, jnp.zeros([], jnp.int32), jnp.asarray(True))
    last = loops.while_loop(unfinished, step, first)
    none = ~last.convex & (last.steps == 1)
    return jax.tree.map(lambda s, x: jnp.where(none, x, s), last.s, g)
