"""Finite sums that stochastic methods are measured on."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ..core import FiniteSum, Scalar, checks
from ..prox import L1
from .model_based import ComposedLoss


def _table(**arrays) -> tuple[Array, ...]:
    """Arrays with floating-point entries and as many rows each."""
    rows = {name: jnp.shape(array)[:1] for name, array in arrays.items()}
    if len(set(rows.values())) != 1 or () in rows.values():
        shapes = {name: jnp.shape(array) for name, array in arrays.items()}
        raise ValueError(f"the arrays must have as many rows each, got shapes {shapes}")
    dtype = jnp.result_type(float, *arrays.values())
    return tuple(jnp.asarray(array, dtype) for array in arrays.values())


def _quartic(z, row):
    a, y = row
    return 0.5 * (y - jnp.vdot(a, z) ** 2) ** 2


def phase_retrieval(A: Float[ArrayLike, "m d"], y: Float[ArrayLike, " m"]) -> FiniteSum:
    """$\\min_z \\frac{1}{2m} \\sum_r (y_r - \\langle a_r, z\\rangle^2)^2$, a quartic.

    **Arguments:**

    - `A`: the measurement vectors, shape `(m, d)`.
    - `y`: their squared products with the signal, shape `(m,)`.

    **Raises:** `ValueError` unless `A` and `y` have as many rows.
    """
    return FiniteSum(loss=_quartic, data=_table(A=A, y=y))


class _RobustRegression(eqx.Module):
    lam: Scalar

    def __call__(self, point, row):
        w, eta = point
        x, y = row
        penalty = 0.1 * jnp.sum(jnp.log1p(jnp.abs(w)))
        loss = 0.5 * (y - jnp.vdot(x, w)) ** 2 + penalty
        lam = jnp.asarray(self.lam, loss.dtype)
        conjugate = 0.25 * jnp.maximum((loss - eta) / lam + 2, 0) ** 2 - 1
        return lam * conjugate + eta


def chi2_dro(X: Float[ArrayLike, "m d"], y: Float[ArrayLike, " m"], lam: float = 0.01) -> FiniteSum:
    """Distributionally robust regression against reweighted samples, penalized by their $\\chi^2$
    divergence, in its dual form

    $$\\min_{w, \\eta} \\frac{\\lambda}{m} \\sum_i \\psi^*((\\ell_i(w) - \\eta) / \\lambda) +
    \\eta,\\quad \\psi^*(t) = \\tfrac14 (t + 2)_+^2 - 1,\\quad \\ell_i(w) = \\tfrac12 (y_i -
    \\langle x_i, w\\rangle)^2 + 0.1 \\sum_j \\log(1 + |w_j|),$$

    solved for the pair `(w, eta)`. It is not smooth, but smooth in the generalized sense where $w$
    has no zero.

    **Arguments:**

    - `X`: shape `(m, d)`. `y`: shape `(m,)`.
    - `lam`: $\\lambda > 0$.

    **Raises:** `ValueError` unless `X` and `y` have as many rows and `lam` is positive.
    """
    checks.positive("lam", lam)
    return FiniteSum(loss=_RobustRegression(checks.scalar(lam)), data=_table(X=X, y=y))


def _phase(x, row):
    a, b = row
    return jnp.vdot(a, x) ** 2 - b


def robust_phase_retrieval(A: Float[ArrayLike, "m d"], b: Float[ArrayLike, " m"]) -> FiniteSum:
    """$\\min_x \\frac1m \\sum_i |\\langle a_i, x\\rangle^2 - b_i|$, a `ComposedLoss`.

    **Arguments:**

    - `A`: the measurement vectors, shape `(m, d)`. `b`: shape `(m,)`.

    **Raises:** `ValueError` unless `A` and `b` have as many rows.
    """
    return FiniteSum(loss=ComposedLoss(L1(1.0), _phase), data=_table(A=A, b=b))


def _product(point, row):
    x, y = point
    u, v, b = row
    return jnp.vdot(u, x) * jnp.vdot(v, y) - b


def blind_deconvolution(
    U: Float[ArrayLike, "m d"], V: Float[ArrayLike, "m e"], b: Float[ArrayLike, " m"]
) -> FiniteSum:
    """$\\min_{x, y} \\frac1m \\sum_i |\\langle u_i, x\\rangle \\langle v_i, y\\rangle - b_i|$ for
    the pair `(x, y)`, a `ComposedLoss`.

    **Arguments:**

    - `U`: shape `(m, d)`. `V`: shape `(m, e)`. `b`: shape `(m,)`.

    **Raises:** `ValueError` unless they have as many rows.
    """
    return FiniteSum(loss=ComposedLoss(L1(1.0), _product), data=_table(U=U, V=V, b=b))


def _sketch(x, row):
    first, second, b = row
    return jnp.sum((x.T @ first) ** 2) - jnp.sum((x.T @ second) ** 2) - b


def covariance_sketch(
    A: Float[ArrayLike, "m d"], B: Float[ArrayLike, "m d"], c: Float[ArrayLike, " m"]
) -> FiniteSum:
    """$\\min_X \\frac1m \\sum_i \\bigl| |X^\\top a_i|^2 - |X^\\top b_i|^2 - c_i\\bigr|$ for $X$ of
    shape `(d, r)`: a covariance of rank $r$ from differences of quadratic sketches. A
    `ComposedLoss`.

    **Arguments:**

    - `A`, `B`: shape `(m, d)`. `c`: shape `(m,)`.

    **Raises:** `ValueError` unless they have as many rows.
    """
    return FiniteSum(loss=ComposedLoss(L1(1.0), _sketch), data=_table(A=A, B=B, c=c))
