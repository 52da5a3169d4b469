"""Square roots of matrices and their inverses, with cheap derivatives.

A root is made by one object, a method, and differentiated by another, which solves the Lyapunov
equation of the derivative; the two are chosen apart.
"""

import abc
import functools
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxopt_ext_kernels import matrix_polynomials
from jaxopt_ext_kernels.spmm import Implementation

from ..core import checks, loops
from .precision import highest
from .units import norm, unit

_POWERS = 7
"""Up to this degree the polynomials of a Padé approximant are formed; above, rounding in them would
cost more digits than single precision has to spare."""


class Root(NamedTuple):
    """A root and what its derivative may use again.

    - `value`: $R$, symmetric.
    - `scale`: a bound on its largest eigenvalue.
    - `spectrum`: its eigenvalues and eigenvectors, if they are known.
    """

    value: Float[Array, "*b n n"]
    scale: Float[Array, "*b"]
    spectrum: tuple[Float[Array, "*b n"], Float[Array, "*b n n"]] | None = None


class AbstractRootMethod(eqx.Module):
    """How $A^{1/2}$ and $A^{-1/2}$ are computed."""

    @abc.abstractmethod
    def roots(self, A: Float[Array, "*b n n"]) -> tuple[Root, Root]:
        """$A^{1/2}$ and $A^{-1/2}$; traced, so that what is not used is not computed."""


class AbstractRootDerivative(eqx.Module):
    """How $R X + X R = G$ is solved, of which the derivative of a root $R$ is made."""

    @abc.abstractmethod
    def solve(self, root: Root, G: Float[Array, "*b n n"]) -> Float[Array, "*b n n"]:
        """$X$, linear in $G$ and self-adjoint as a map of it; only the symmetric part of $G$ need
        count."""


class Pade(AbstractRootMethod):
    r"""The Padé approximant $[m/m]$ of $\sqrt x$ around $x = 1$, at $X = A / \|A\|_F$,

    $$\sqrt x \approx \frac{\sum_j \binom{2m+1}{2j} x^j}{\sum_j \binom{2m+1}{2j+1} x^j}
      = 1 - \frac{2}{2m+1} \sum_{j=1}^m \frac{(1 - x) \sin^2 t_j}{\sin^2 t_j + x \cos^2 t_j},
      \quad t_j = \frac{j \pi}{2m+1},$$

    and its reciprocal for the inverse root. In the paper's $Z = I - X$ the coefficients alternate;
    here they are positive, so nothing cancels, and both polynomials are positive definite. To
    degree 7 that is $m - 1$ products and a Cholesky factor; above, the partial fractions are
    summed, $m$ factors, which is stable at any degree.

    At an eigenvalue the relative error is $2 / (q^{2m+1} - 1)$ with
    $q = (1 + \sqrt x) / (1 - \sqrt x)$: slow where $x$ is small, and of a flat spectrum of $n$
    eigenvalues all $x = n^{-1/2}$. Degree 5 has 1 % at condition 10 and 14 % at 1000 for a
    geometric spectrum of 64; `root_residual` tells.

    **Arguments:**

    - `degree`: $m \ge 1$; static.
    - `implementation`: of `matrix_polynomials`, of which the two polynomials are made: `None` for
      one fused program a matrix on TPU and GPU, which does not trace in `shard_map` with its check
      on, and without a `backward` method has no derivative of forward mode; static.

    **Reference:** Song, Sebe, Wang, Fast Differentiable Matrix Square Root, 2022,
    arXiv:2201.08663.
    """

    degree: int = eqx.field(static=True, default=5)
    implementation: Implementation = eqx.field(static=True, default="xla")

    def __check_init__(self):
        checks.count("degree", self.degree)

    def roots(self, A):
        scale, X = _normalized(A)
        unscaled = self._powers(X) if self.degree <= _POWERS else self._fractions(X)
        return _rescaled(*unscaled, scale)

    def _powers(self, X):
        order = 2 * self.degree + 1
        size = 2.0 ** (order - 1)  # the sum of either row of coefficients
        coefficients = [
            [math.comb(order, 2 * j + odd) / size for j in range(self.degree + 1)] for odd in (0, 1)
        ]
        coefficients = jnp.asarray(coefficients, X.dtype)
        P, Q = matrix_polynomials(X, coefficients, implementation=self.implementation)
        return _solve(Q, P), _solve(P, Q)

    def _fractions(self, X):
        order = 2 * self.degree + 1
        identity = _identity(X)
        Z = identity - X

        def shifted(angles):
            """$\\sin^2 t_j I + \\cos^2 t_j X$ on a leading axis."""
            sines = jnp.asarray(np.sin(angles) ** 2, X.dtype).reshape(-1, *[1] * X.ndim)
            cosines = jnp.asarray(np.cos(angles) ** 2, X.dtype).reshape(-1, *[1] * X.ndim)
            return sines, sines * identity + cosines * X

        j = np.arange(1, self.degree + 1)
        sines, matrices = shifted(j * np.pi / order)
        terms = _solve(matrices, sines * Z)
        root = identity - (2 / order) * jnp.sum(terms, axis=0)
        _, matrices = shifted((j - 0.5) * np.pi / order)
        terms = _solve(matrices, jnp.broadcast_to(identity, matrices.shape))
        return root, (identity + 2 * jnp.sum(terms, axis=0)) / order


class Taylor(AbstractRootMethod):
    r"""The Taylor series in $Z = I - A / \|A\|_F$, with products alone,

    $$A^{\pm 1/2} \approx \|A\|_F^{\pm 1/2} \sum_{k=0}^K (-1)^k \binom{\pm 1/2}{k} Z^k.$$

    Less accurate than `Pade` of half the degree.

    **Arguments:**

    - `degree`: $K \ge 1$; static.

    **Reference:** Song, Sebe, Wang, Fast Differentiable Matrix Square Root, 2022,
    arXiv:2201.08663.
    """

    degree: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        checks.count("degree", self.degree)

    def roots(self, A):
        scale, X = _normalized(A)
        identity = _identity(X)
        Z = identity - X

        def series(power):
            coefficients = [1.0]
            for k in range(self.degree):  # (-1)^k binom(power, k)
                coefficients.append(coefficients[-1] * (k - power) / (k + 1))
            total = coefficients[-1] * Z + coefficients[-2] * identity
            for coefficient in coefficients[-3::-1]:
                total = total @ Z + coefficient * identity
            return total

        return _rescaled(series(0.5), series(-0.5), scale)


class NewtonSchulz(AbstractRootMethod):
    r"""The coupled iteration, from $Y = A / \|A\|_F$ and $Z = I$,

    $$Y \leftarrow \tfrac12 Y (3 I - Z Y), \quad Z \leftarrow \tfrac12 (3 I - Z Y) Z,$$

    to $Y \to (A / \|A\|_F)^{1/2}$ and $Z \to (A / \|A\|_F)^{-1/2}$. Products alone, and quadratic
    in the end.

    **Arguments:**

    - `num_steps`: at least 1; static.

    **Reference:** Higham, Functions of Matrices, 2008, as in Li, Xie, Wang, Gao, Towards Faster
    Training of Global Covariance Pooling Networks, 2018, arXiv:1712.01034.
    """

    num_steps: int = eqx.field(static=True, default=5)

    def __check_init__(self):
        checks.count("num_steps", self.num_steps)

    def roots(self, A):
        scale, Y = _normalized(A)
        Z = identity = _identity(Y)
        for _ in range(self.num_steps):
            T = 1.5 * identity - 0.5 * (Z @ Y)
            Y, Z = Y @ T, T @ Z
        return _rescaled(Y, Z, scale)


class Eigh(AbstractRootMethod):
    r"""The eigendecomposition, $Q \Lambda^{\pm 1/2} Q^\top$; exact, and NaN for negative
    eigenvalues beyond rounding.

    **Reference:** Golub, Van Loan, Matrix Computations, 2013.
    """

    def roots(self, A):
        values, vectors = jnp.linalg.eigh(A, symmetrize_input=False)
        rounding = values.shape[-1] * jnp.finfo(values.dtype).eps * jnp.abs(values[..., -1:])
        values = jnp.where(jnp.abs(values) <= rounding, jnp.maximum(values, 0), values)
        size = jnp.sqrt(values)

        def root(size, bound):
            value = (vectors * size[..., None, :]) @ _transposed(vectors)
            return Root(_symmetric(value), bound, (size, vectors))

        return root(size, size[..., -1]), root(1 / size, 1 / size[..., 0])


class Lyapunov(AbstractRootDerivative):
    r"""Newton-Schulz's iteration for the sign of the matrix of blocks $R, -G; 0, -R$: from
    $B = R / c$ and $C = G / c$ with $c$ a bound on the eigenvalues of $R$,

    $$C \leftarrow \tfrac12 (C (3 I - B^2) - B^2 C + B C B), \quad
      B \leftarrow \tfrac12 B (3 I - B^2),$$

    where $C / 2 \to X$. Products alone, and exact as $B \to I$. Eight steps, the paper's number,
    have converged for a condition number of $A$ of 10 and leave 2 % at 100, 26 % at 1000; 20 are
    exact to rounding for all up to $10^4$. It takes repeated eigenvalues as any other.

    **Arguments:**

    - `num_steps`: at least 1; static.

    **Reference:** Song, Sebe, Wang, Fast Differentiable Matrix Square Root, 2022,
    arXiv:2201.08663.
    """

    num_steps: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        checks.count("num_steps", self.num_steps)

    def solve(self, root, G):
        scale = _column(root.scale)

        def step(_, carry):
            B, C = carry
            D = B @ C
            # Its transpose has what is missing, C B^2 too. So C stays symmetric, which it must:
            # rounding of the other kind doubles in each step.
            half = 0.75 * C + 0.25 * (D @ B) - 0.5 * (B @ D)
            return 1.5 * B - 0.5 * (B @ (B @ B)), half + _transposed(half)

        start = root.value / scale, _symmetric(G) / scale
        return 0.5 * loops.fori_loop(0, self.num_steps, step, start)[1]


class Exact(AbstractRootDerivative):
    r"""The solution in the eigenbasis of $R$, $Q ((Q^\top G Q)_{ij} / (r_i + r_j)) Q^\top$, without
    differences of eigenvalues, so that repeated ones do no harm.

    **Reference:** Bhatia, Matrix Analysis, 1997.
    """

    def solve(self, root, G):
        if root.spectrum is None:
            values, vectors = jnp.linalg.eigh(root.value, symmetrize_input=False)
        else:
            values, vectors = root.spectrum
        adjoint = _transposed(vectors)
        quotient = (adjoint @ G @ vectors) / (values[..., :, None] + values[..., None, :])
        return vectors @ quotient @ adjoint


_METHOD, _DERIVATIVE = Pade(), Lyapunov()


def sqrtm(
    A: Float[Array, "*b n n"],
    method: AbstractRootMethod = _METHOD,
    backward: AbstractRootDerivative | None = _DERIVATIVE,
) -> Float[Array, "*b n n"]:
    r"""$A^{1/2}$ of symmetric positive definite matrices.

    Of the default only the speed is high: see `Pade` and `Lyapunov` for what accuracy their
    numbers buy, and raise them for ill-conditioned matrices. The derivative $X$ in the direction
    $E$ solves $R X + X R = E$ with $R$ the root that was computed; in both modes and of any order.
    Works under `jit`, `vmap` and in `shard_map`. Only the symmetric part of `A` counts. At $A = 0$
    the root is 0 and its derivative not finite.

    **Arguments:**

    - `A`: shape `(..., n, n)`. Half precision is computed in single.
    - `method`: `Pade`, `Taylor`, `NewtonSchulz` or `Eigh`.
    - `backward`: `Lyapunov` or `Exact`, or `None` to differentiate the operations of the method,
      which for `Eigh` is NaN where eigenvalues repeat.

    **Returns:** symmetric matrices in the type of `A`. Under `jit` a matrix that is indefinite
    gives NaN with `Eigh` and something else with the others: `root_residual` is then not small.

    **Raises:** `ValueError` if `A` is not square, or, outside of `jit`, not symmetric or not
    positive semidefinite; `TypeError` if it is not real floating-point, or for a method or backward
    that is none.

    **Reference:** Song, Sebe, Wang, Fast Differentiable Matrix Square Root, 2022,
    arXiv:2201.08663.
    """
    return _checked(A, method, backward, (0,))[0]


def inverse_sqrtm(
    A: Float[Array, "*b n n"],
    method: AbstractRootMethod = _METHOD,
    backward: AbstractRootDerivative | None = _DERIVATIVE,
) -> Float[Array, "*b n n"]:
    r"""$A^{-1/2}$ of symmetric positive definite matrices.

    As `sqrtm`, which see. The derivative solves $R X + X R = -R^2 E R^2$. The approximate methods
    err more than on the root: the small eigenvalues, where they are slow, count most. A singular
    matrix gives what is not finite with `Eigh`, and something too small with the others.

    **Arguments:**

    - `A`: shape `(..., n, n)`.
    - `method`, `backward`: as for `sqrtm`.

    **Raises:** as `sqrtm`.

    **Reference:** Song, Sebe, Wang, Fast Differentiable Matrix Square Root and Inverse Square Root,
    2022, arXiv:2201.12543.
    """
    return _checked(A, method, backward, (1,))[0]


def sqrtm_pair(
    A: Float[Array, "*b n n"],
    method: AbstractRootMethod = _METHOD,
    backward: AbstractRootDerivative | None = _DERIVATIVE,
) -> tuple[Float[Array, "*b n n"], Float[Array, "*b n n"]]:
    r"""$A^{1/2}$ and $A^{-1/2}$ from one computation.

    **Arguments:**

    - `A`: shape `(..., n, n)`.
    - `method`, `backward`: as for `sqrtm`.

    **Raises:** as `sqrtm`.

    **Reference:** Song, Sebe, Wang, Fast Differentiable Matrix Square Root and Inverse Square Root,
    2022, arXiv:2201.12543.
    """
    root, inverse = _checked(A, method, backward, (0, 1))
    return root, inverse


@highest
def root_residual(A: Float[Array, "*b n n"], root: Float[Array, "*b n n"]) -> Float[Array, "*b"]:
    r"""$\|R^2 - A\|_F / \|A\|_F$: how far `root` is from a square root of `A`.

    **Arguments:**

    - `A`, `root`: shape `(..., n, n)`.
    """
    return _frobenius(root @ root - A) / _frobenius(A)


@highest
def whiten(
    samples: Float[Array, "*b m n"],
    ridge: Float[Array, ""] | float = 1e-3,
    method: AbstractRootMethod = _METHOD,
    backward: AbstractRootDerivative | None = _DERIVATIVE,
) -> Float[Array, "*b m n"]:
    r"""Samples less their mean, turned and scaled as little as possible so that their covariance is
    near the identity, $(x - \bar x) (\Sigma + \rho \tfrac{\operatorname{tr} \Sigma}{n} I)^{-1/2}$.

    **Arguments:**

    - `samples`: shape `(..., m, n)`, of which $m \ge 2$.
    - `ridge`: $\rho \ge 0$; it bounds the condition number by about $n / \rho$.
    - `method`, `backward`: as for `sqrtm`.

    **Raises:** `ValueError` for fewer than two samples or a negative ridge; and as `sqrtm`.

    **Reference:** Kessy, Lewin, Strimmer, Optimal Whitening and Decorrelation, 2018,
    arXiv:1512.00809.
    """
    checks.nonnegative("ridge", ridge)
    if jnp.ndim(samples) < 2 or samples.shape[-2] < 2:
        raise ValueError(f"expected at least two samples as rows, got shape {jnp.shape(samples)}")
    count, n = samples.shape[-2:]
    centred = samples - jnp.mean(samples, axis=-2, keepdims=True)
    centred = centred / unit(centred, (-2, -1))  # the result has no units
    covariance = _transposed(centred) @ centred / (count - 1)
    mean = jnp.trace(covariance, axis1=-2, axis2=-1)[..., None, None] / n
    covariance = covariance + jnp.asarray(ridge, samples.dtype) * mean * _identity(covariance)
    return centred @ inverse_sqrtm(covariance, method, backward)


@highest
def _checked(A, method, backward, which):
    checks.instance("method", method, AbstractRootMethod, "Pade(5)")
    if backward is not None:
        checks.instance("backward", backward, AbstractRootDerivative, "Lyapunov(8)")
    A = jnp.asarray(A)
    if not jnp.issubdtype(A.dtype, jnp.floating):
        raise TypeError(f"A must be real and floating-point, got {A.dtype}")
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"A must be square, got shape {A.shape}")
    if not checks.is_traced(A) and A.size:
        _look_at(np.asarray(A, np.float64), float(jnp.finfo(A.dtype).eps))
    if not A.size:
        return (A,) * len(which)
    wide = _symmetric(A.astype(jnp.promote_types(A.dtype, jnp.float32)))
    if backward is None:
        roots = _computed(method, which, wide)
    else:
        roots = _roots(method, backward, which, wide)
    return tuple(root.value.astype(A.dtype) for root in roots)


def _look_at(A, eps):
    finite = np.all(np.isfinite(A), axis=(-2, -1))
    A = A[finite]  # what is not a number shows in the result
    size = np.linalg.norm(A, axis=(-2, -1))
    gap = np.max(np.abs(A - np.swapaxes(A, -1, -2)), axis=(-2, -1))
    if np.any(gap > 1e3 * eps * size):
        raise ValueError(f"A must be symmetric, got entries that differ by {np.max(gap):.3g}")
    shift = (10 * A.shape[-1] * eps * size + np.finfo(float).tiny)[..., None, None]
    try:
        np.linalg.cholesky(A + shift * np.eye(A.shape[-1]))
    except np.linalg.LinAlgError:
        least = np.min(np.linalg.eigvalsh(A))
        raise ValueError(f"A must be positive semidefinite, got eigenvalue {least:.3g}") from None


@functools.partial(jax.jit, static_argnums=(0, 1))
def _computed(method, which, A):
    roots = method.roots(A)
    return tuple(roots[i] for i in which)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _roots(method, backward, which, A):
    del backward
    return _computed(method, which, A)


@_roots.defjvp
def _roots_jvp(method, backward, which, primals, tangents):
    (A,), (E,) = primals, tangents
    roots = _roots(method, backward, which, A)
    return roots, tuple(_moved(backward, i == 1, r, E) for i, r in zip(which, roots, strict=True))


def _moved(backward, inverse, root, E):
    """The tangent of a root when its matrix moves along $E$."""
    R = root.value
    if inverse:
        square = R @ R
        E = -square @ E @ square
    # How it is solved is not differentiated again; the equation is, by the rule of linear solves.
    X = jax.lax.custom_linear_solve(
        lambda X: R @ X + X @ R, E, lambda _, G: backward.solve(root, G), symmetric=True
    )
    return Root(X, *jax.tree.map(jnp.zeros_like, (root.scale, root.spectrum)))


def _transposed(x):
    return jnp.swapaxes(x, -1, -2)


def _symmetric(x):
    return 0.5 * (x + _transposed(x))


def _identity(x):
    return jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)


def _column(scale):
    return scale[..., None, None]


def _normalized(A):
    """$\\|A\\|_F$ and $A / \\|A\\|_F$, where 0 stays 0."""
    size = _frobenius(A)
    return size, A / _column(jnp.where(size == 0, 1, size))


def _frobenius(A):
    return norm(A, (-2, -1))


def _rescaled(root, inverse, size):
    """Both roots of $A$ from those of $A / \\|A\\|_F$. Eigenvalues of the inverse have no bound
    before it is there."""
    length = jnp.sqrt(size)
    root = _symmetric(root) * _column(length)
    inverse = _symmetric(inverse) / _column(length)
    return Root(root, length), Root(inverse, _frobenius(inverse))


def _solve(matrix, rhs):
    """$M^{-1} B$ for positive definite $M$.

    By the inverse of the Cholesky factor, which is made of products: batched triangular solves are
    slow on CPU. The matrices here are well-conditioned.
    """
    inverse = _inverse_triangular(jax.lax.linalg.cholesky(matrix, symmetrize_input=False))
    return _transposed(inverse) @ (inverse @ rhs)


def _inverse_triangular(factor):
    """The inverse of lower triangular matrices, by diagonal blocks of doubling size."""
    n = factor.shape[-1]
    doublings = max(0, math.ceil(math.log2(n / 8)))
    width = -(-n // 2**doublings)
    size = width * 2**doublings
    margin = [(0, 0)] * (factor.ndim - 2) + [(0, size - n)] * 2
    diagonal = np.arange(size) >= n
    factor = jnp.pad(factor, margin) + jnp.asarray(np.diag(diagonal), factor.dtype)

    def blocks(width):
        """The blocks on the diagonal, on an axis before the last two."""
        count = size // width
        shaped = factor.reshape(*factor.shape[:-2], count, width, count, width)
        return jnp.moveaxis(jnp.diagonal(shaped, axis1=-4, axis2=-2), -1, -3)

    leaf = blocks(width)
    identity = jnp.eye(width, dtype=factor.dtype)
    rows = []
    for i in range(width):  # at most 8
        row = jnp.broadcast_to(identity[i], (*leaf.shape[:-2], width))
        for j, known in enumerate(rows):
            row = row - leaf[..., i, j, None] * known
        rows.append(row / leaf[..., i, i, None])
    inverse = jnp.stack(rows, axis=-2)
    while width < size:
        corner = blocks(2 * width)[..., width:, :width]
        upper, lower = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -lower @ corner @ upper
        top = jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-1)
        inverse = jnp.concatenate([top, jnp.concatenate([corner, lower], axis=-1)], axis=-2)
        width *= 2
    return inverse[..., 0, :n, :n]
