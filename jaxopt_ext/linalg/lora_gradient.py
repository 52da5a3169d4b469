"""Attention by polynomial features, and gradients of low-rank adapters in almost linear time."""

import functools
import itertools
import math
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..core import Scalar, checks, loops, scalar_field

# The weights of the monomials do not survive a product in half precision.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def num_features(dim: int, degree: int) -> int:
    """$R = \\binom{d + g}{g}$, the number of monomials of degree at most $g$ in $d$ variables."""
    return math.comb(dim + degree, degree)


def degree_for(bound: float, tol: float) -> int:
    """The smallest even $g$ with $B^{g+1} e^{2B} / (g+1)! \\le \\mathtt{tol}$.

    That bounds the relative error of the degree-$g$ Taylor polynomial of $e^x$ for $|x| \\le B$, so
    it grows about linearly in $B$.

    **Arguments:**

    - `bound`: $B \\ge 0$, as of `norm_bound`; a number.
    - `tol`: the relative error, positive.

    **Raises:** `ValueError` for a negative or infinite bound or a tolerance that is not positive.

    **Reference:** Hu, Su, Kuo, Song, Liu, Computational Limits of Low-Rank Adaptation (LoRA) for
    Transformer-Based Models, 2025, arXiv:2406.03136.
    """
    bound, tol = float(bound), float(tol)
    checks.nonnegative("bound", bound)
    checks.finite("bound", bound)
    checks.positive("tol", tol)
    if bound == 0:
        return 0
    for degree in itertools.count(0, 2):
        size = (degree + 1) * math.log(bound) + 2 * bound - math.lgamma(degree + 2)
        if size <= math.log(tol):
            return degree
    raise AssertionError


def norm_bound(X: Float[Array, "n d"], W: Float[Array, "d d"]) -> Float[Array, ""]:
    """A bound of $|x_i^\\top W x_j|$ over all $i, j$ in linear time, by Cauchy and Schwarz:
    $\\max_i \\|W^\\top x_i\\| \\max_j \\|x_j\\|$.

    **Arguments:**

    - `X`: rows $x_i$, shape `(n, d)`. `W`: shape `(d, d)`.

    **Reference:** Hu, Su, Kuo, Song, Liu, Computational Limits of Low-Rank Adaptation (LoRA) for
    Transformer-Based Models, 2025, arXiv:2406.03136.
    """
    largest = lambda rows: jnp.max(jnp.linalg.norm(rows, axis=-1), initial=0)
    return largest(_matmul(X, W)) * largest(X)


@functools.cache
def _plan(dim: int, degree: int):
    """For each degree: the parent of each monomial, the variable that it has more, and the weight
    that comes with it."""
    levels, exponents = [], [(0,) * dim]
    for _ in range(degree):
        parents, variables, weights, children = [], [], [], []
        for parent, exponent in enumerate(exponents):
            last = max((i for i, e in enumerate(exponent) if e), default=0)
            for i in range(last, dim):
                child = tuple(e + (i == j) for j, e in enumerate(exponent))
                parents.append(parent)
                variables.append(i)
                weights.append(1 / math.sqrt(child[i]))
                children.append(child)
        levels.append((np.array(parents), np.array(variables), np.array(weights)))
        exponents = children
    return levels


def _check_degree(degree: int, dim: int, max_rank: int) -> None:
    checks.count("degree", degree, 0)
    if degree % 2:
        raise ValueError(f"degree must be even, or row sums may be negative, got {degree}")
    rank = num_features(dim, degree)
    if rank > max_rank:
        raise ValueError(
            f"degree {degree} in {dim} variables has {rank} features, more than {max_rank}"
        )


def polynomial_features(x: Float[Array, "... d"], degree: int) -> Float[Array, "... R"]:
    """Monomials $\\phi_\\alpha(x) = x^\\alpha / \\sqrt{\\alpha!}$, $|\\alpha| \\le g$, so that

    $$\\langle \\phi(q), \\phi(k) \\rangle = \\sum_{j \\le g} (q^\\top k)^j / j!
      \\approx e^{q^\\top k}.$$

    **Arguments:**

    - `x`: shape `(..., d)`, in single or double precision.
    - `degree`: $g \\ge 0$; static.

    **Returns:** shape `(..., R)`, $R = \\binom{d+g}{g}$, by degree.

    **Raises:** `TypeError` for integers and half precision, which loses the weights; `ValueError`
    for a scalar or a negative degree.

    **Reference:** Hu, Su, Kuo, Song, Liu, Computational Limits of Low-Rank Adaptation (LoRA) for
    Transformer-Based Models, 2025, arXiv:2406.03136.
    """
    checks.count("degree", degree, 0)
    x = jnp.asarray(x)
    if x.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"x must be in single or double precision, got {x.dtype}")
    if not x.ndim:
        raise ValueError("x must have a last axis of variables, got a scalar")
    level = jnp.ones((*x.shape[:-1], 1), x.dtype)
    levels = [level]
    for parents, variables, weights in _plan(x.shape[-1], degree):
        level = level[..., parents] * x[..., variables] * jnp.asarray(weights, x.dtype)
        levels.append(level)
    return jnp.concatenate(levels, axis=-1)


def low_rank_attention(
    Q: Float[Array, "n d"],
    K: Float[Array, "m d"],
    V: Float[Array, "m v"],
    degree: int,
    *,
    max_rank: int = 4096,
) -> Float[Array, "n v"]:
    """$D^{-1} \\exp(Q K^\\top) V$ with the exponential by polynomial features, in time and memory
    linear in $n$ and $m$.

    Good while all $|q_i^\\top k_j|$ are small: `degree_for` says which degree is enough. There is
    no shift by a row's maximum, which a polynomial would not survive, and no scale: put it in `Q`.
    Heads go by `vmap`, and should be narrow: there are $\\binom{d+g}{g}$ features.

    **Arguments:**

    - `Q`, `K`, `V`: queries, keys and values, shapes `(n, d)`, `(m, d)`, `(m, v)`.
    - `degree`: $g$, even; static.
    - `max_rank`: the most features that are allowed; static.

    **Raises:** `ValueError` for an odd degree, too many features or shapes that do not fit;
    `TypeError` for half precision.

    **Reference:** Hu, Su, Kuo, Song, Liu, Computational Limits of Low-Rank Adaptation (LoRA) for
    Transformer-Based Models, 2025, arXiv:2406.03136.
    """
    if Q.ndim != 2 or K.ndim != 2 or V.ndim != 2 or Q.shape[1] != K.shape[1] or len(K) != len(V):
        raise ValueError(f"Q {Q.shape}, K {K.shape} and V {V.shape} do not fit")
    _check_degree(degree, Q.shape[1], max_rank)
    rows, columns = polynomial_features(Q, degree), polynomial_features(K, degree)
    return _normalized(rows, columns, V)[0]


def _normalized(rows, columns, values):
    """$f V$ and the row sums, for $f$ the normalized product of the features."""
    sums = _matmul(rows, jnp.sum(columns, axis=0))
    return _matmul(rows, _matmul(columns.T, values)) / sums[:, None], sums


class LowRankAdapter(eqx.Module):
    """$W^* + \\tfrac{\\alpha}{r} B A$ with $W^*$ frozen.

    **Arguments:**

    - `base`: $W^*$, shape `(d, k)`; its derivative is zero.
    - `A`: shape `(r, k)`. `B`: shape `(d, r)`.
    - `alpha`: $\\alpha$, frozen too.

    **Raises:** `ValueError` for shapes that do not fit.

    **Reference:** Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2022,
    arXiv:2106.09685.
    """

    base: Float[Array, "d k"]
    A: Float[Array, "r k"]
    B: Float[Array, "d r"]
    alpha: Scalar = scalar_field(1.0)

    def __check_init__(self):
        shapes = [jnp.shape(a) for a in (self.base, self.A, self.B)]
        if any(len(shape) != 2 for shape in shapes):
            return  # batched by vmap, or a tree of placeholders
        base, A, B = shapes
        if base != (B[0], A[1]) or A[0] != B[1] or not A[0]:
            raise ValueError(f"base {base}, A {A} and B {B} do not fit")

    @classmethod
    def create(
        cls, base: Float[Array, "d k"], rank: int, key: PRNGKeyArray, alpha: float = 1.0
    ) -> "LowRankAdapter":
        """Gaussian $A$ and $B = 0$, so that it starts from `base`."""
        checks.count("rank", rank)
        if rank > min(base.shape):
            raise ValueError(f"rank {rank} is above the size of a matrix of shape {base.shape}")
        A = jax.random.normal(key, (rank, base.shape[1]), base.dtype) / math.sqrt(base.shape[1])
        return cls(base, A, jnp.zeros((base.shape[0], rank), base.dtype), alpha)

    @property
    def weight(self) -> Float[Array, "d k"]:
        """The adapted matrix."""
        alpha = jax.lax.stop_gradient(self.alpha)
        update = (alpha / self.A.shape[-2]) * _matmul(self.B, self.A)
        return jax.lax.stop_gradient(self.base) + update.astype(self.base.dtype)


class AdaptedAttention(eqx.Module):
    """The matrices of an attention layer, adapted or, where they are plain arrays, fixed.

    Adapting `query` and `value` alone is LoRA as it is mostly used; all three is full adaptation.

    **Arguments:**

    - `query`, `key`: `LowRankAdapter` or matrix, shape `(d, k)`, with the scale in one of them.
    - `value`: `LowRankAdapter` or matrix, shape `(d, v)`.

    **Reference:** Hu, Su, Kuo, Song, Liu, Computational Limits of Low-Rank Adaptation (LoRA) for
    Transformer-Based Models, 2025, arXiv:2406.03136.
    """

    query: Any
    key: Any
    value: Any

    def weights(self) -> tuple[Float[Array, "d d"], Float[Array, "d v"]]:
        """$W = W_Q W_K^\\top$ and $W_V$."""
        query, key, value = map(_weight, (self.query, self.key, self.value))
        return _matmul(query, key.T), value


def _weight(matrix):
    return matrix.weight if isinstance(matrix, LowRankAdapter) else jax.lax.stop_gradient(matrix)


def attention_loss(
    params: AdaptedAttention, X: Float[Array, "n d"], Y: Float[Array, "n v"]
) -> Float[Array, ""]:
    """$\\tfrac12 \\|D^{-1} \\exp(X W X^\\top) X W_V - Y\\|_F^2$ by the $n \\times n$ matrix.

    What `lora_attention_loss` approximates; arguments as there.

    **Reference:** Hu, Su, Kuo, Song, Liu, Computational Limits of Low-Rank Adaptation (LoRA) for
    Transformer-Based Models, 2025, arXiv:2406.03136.
    """
    W, W_V = params.weights()
    _check_data(W, W_V, X, Y)
    f = jax.nn.softmax(_matmul(_matmul(X, W), X.T), axis=-1)
    return 0.5 * jnp.sum((_matmul(f, _matmul(X, W_V)) - Y) ** 2)


def lora_attention_loss(
    params: AdaptedAttention,
    X: Float[Array, "n d"],
    Y: Float[Array, "n v"],
    degree: int,
    *,
    max_rank: int = 4096,
) -> Float[Array, ""]:
    """The loss $\\tfrac12 \\|f X W_V - Y\\|_F^2$ with $f = D^{-1} \\exp(X W X^\\top)$ and
    $W = W_Q W_K^\\top$, and its gradient in the adapters, both in time $O(n R d v)$ and memory
    $O(n R)$.

    With $U_1 = \\phi(X W)$, $U_2 = \\phi(X)$ of `polynomial_features`, $f$ is
    $\\mathrm{diag}(1/s) U_1 U_2^\\top$ and never formed. With $H = X W_V$ and $C = f H - Y$,

    $$\\partial_{W_V} L = X^\\top f^\\top C, \\qquad
    \\partial_W L = X^\\top \\Big( \\sum_v \\mathrm{diag}(C_v)\\, f\\, \\mathrm{diag}(H_v) X
      - \\mathrm{diag}(r) f X \\Big), \\qquad r_i = \\langle C_i, (f H)_i \\rangle;$$

    the chain rule does the rest, $\\partial B = (\\alpha / r) (\\partial W_Q) A^\\top$, say. The
    gradient is the formula of the exact loss with the approximate $f$ in it, and so differs from
    the derivative of the approximate loss by as much as $f$ is wrong. Reverse mode only; `vmap` for
    heads and batches, and `shard_map`.

    **Arguments:**

    - `params`: the matrices of the layer.
    - `X`, `Y`: inputs and targets, shapes `(n, d)` and `(n, v)`.
    - `degree`: $g$ of the polynomial, even; `degree_for(norm_bound(X, W), tol)`, say; static.
    - `max_rank`: the most features that are allowed; static.

    **Raises:** `ValueError` for an odd degree, too many features or shapes that do not fit;
    `TypeError` for half precision. Warns if there are more features than rows, where the exact loss
    is cheaper.

    **Reference:** Hu, Su, Kuo, Song, Liu, Computational Limits of Low-Rank Adaptation (LoRA) for
    Transformer-Based Models, 2025, arXiv:2406.03136.
    """
    W, W_V = params.weights()
    _check_data(W, W_V, X, Y)
    _check_degree(degree, X.shape[1], max_rank)
    rank = num_features(X.shape[1], degree)
    if rank > len(X):
        warnings.warn(f"{rank} features for {len(X)} rows: the exact loss is cheaper", stacklevel=2)
    arguments = (W, W_V, X, Y)
    # Derivatives of what all devices share are summed where it is promoted.
    return _loss(degree, *loops.vary(arguments, loops.varying_axes(arguments)))


def _check_data(W, W_V, X, Y) -> None:
    fits = X.ndim == Y.ndim == 2 and W.shape == 2 * X.shape[1:]
    if not (fits and W_V.shape == (X.shape[1], Y.shape[1]) and len(X) == len(Y)):
        raise ValueError(f"X {X.shape}, Y {Y.shape}, W {W.shape} and W_V {W_V.shape} do not fit")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(degree, W, W_V, X, Y):
    return _loss_forward(degree, W, W_V, X, Y)[0]


def _loss_forward(degree, W, W_V, X, Y):
    rows = polynomial_features(_matmul(X, W), degree)
    columns = polynomial_features(X, degree)
    H = _matmul(X, W_V)
    fH, sums = _normalized(rows, columns, H)
    C = fH - Y
    return 0.5 * jnp.sum(C**2), (W, W_V, X, rows, columns, sums, H, fH, C)


def _loss_backward(degree, saved, ct):
    del degree
    W, W_V, X, rows, columns, sums, H, fH, C = saved
    (n, d), v = X.shape, H.shape[1]

    def f(Z):
        return _matmul(rows, _matmul(columns.T, Z)) / sums[:, None]

    def f_transposed(Z):
        return _matmul(columns, _matmul(rows.T, Z / sums[:, None]))

    def paired(left, apply, right):
        """$\\sum_v \\mathrm{diag}(L_v) f \\mathrm{diag}(R_v) X$, all columns in one product."""
        images = apply((right[:, :, None] * X[:, None, :]).reshape(n, v * d))
        return jnp.einsum("iv,ivd->id", left, images.reshape(n, v, d))

    r = jnp.sum(C * fH, axis=1, keepdims=True)
    pX = paired(C, f, H) - r * f(X)
    pTX = paired(H, f_transposed, C) - f_transposed(r * X)
    fTC = f_transposed(C)
    dX = _matmul(pX, W.T) + _matmul(pTX, W) + _matmul(fTC, W_V.T)
    return tuple(ct * g for g in (_matmul(X.T, pX), _matmul(X.T, fTC), dX, -C))


_loss.defvjp(_loss_forward, _loss_backward)
