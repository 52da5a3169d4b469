"""RMSProp and Adam in the form analysed under generalized smoothness, with its test problem."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from ..core import checks
from ._precision import keep_wide


class ScaleByUncorrectedAdamState(NamedTuple):
    """The two moments."""

    mu: PyTree[Array]
    nu: PyTree[Array]


def _check(b2, zeta, v0):
    checks.interval("b2", b2, 0.0, 1.0, open_low=True, open_high=True)
    checks.positive("zeta", zeta)
    checks.positive("v0", v0)


def rmsprop_gs(
    learning_rate: optax.ScalarOrSchedule, b2: float = 0.999, zeta: float = 1e-8, v0: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    r"""RMSProp as analysed under generalized smoothness: no bias correction, damping in the root.

    $$v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2, \qquad
    x_{t+1} = x_t - \eta\, g_t / \sqrt{v_t + \zeta}.$$

    It converges on functions whose smoothness grows with the gradient,
    $|\partial_i f(x) - \partial_i f(y)| \le (L_0 + L_1 |\partial_i f(x)|) \|x - y\|$, under noise
    whose variance grows with it too, without a bound on gradients: the mean gradient norm falls
    below $\epsilon$ in $O(\epsilon^{-4})$ steps with the rates of `theory_hyperparams`, which
    depend on the number of steps and must be computed anew for another.

    **Arguments:**

    - `learning_rate`: $\eta$, a number or a schedule.
    - `b2`: decay of the second moment, in (0, 1).
    - `zeta`: damping, inside the root.
    - `v0`: every entry of the second moment at the start.

    **Raises:** `ValueError` if `b2` is outside (0, 1), or `zeta` or `v0` is not positive.

    **Reference:** Zhang, Zhou, Zou, Convergence Guarantees for RMSProp and Adam in
    Generalized-smooth Non-convex Optimization with Affine Noise Variance, 2025, arXiv:2404.01436.
    """
    _check(b2, zeta, v0)
    scaling = optax.scale_by_rms(
        decay=b2, eps=zeta, initial_scale=v0, eps_in_sqrt=True, bias_correction=False
    )
    return keep_wide(optax.chain(scaling, optax.scale_by_learning_rate(learning_rate)))


def adam_gs(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    zeta: float = 1e-8,
    v0: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam as analysed under generalized smoothness: no bias correction, damping in the root.

    The second moment is that of `rmsprop_gs`; the step is taken along
    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $m_0 = 0$. For Adam with bias correction use
    `optax.adam`, which the analysis does not cover.

    **Arguments:**

    - `learning_rate`: $\eta$, a number or a schedule.
    - `b1`: decay of the first moment, $0 \le \beta_1 < \sqrt{\beta_2}$.
    - `b2`, `zeta`, `v0`: as in `rmsprop_gs`.

    **Raises:** `ValueError` if $\beta_1 \ge \sqrt{\beta_2}$, and as `rmsprop_gs`.

    **Reference:** as `rmsprop_gs`.
    """
    _check(b2, zeta, v0)
    checks.nonnegative("b1", b1)
    if not checks.is_traced((b1, b2)) and not b1 < np.sqrt(b2):
        raise ValueError(f"b1 must be below sqrt(b2) = {np.sqrt(b2):.6g}, got {b1}")

    def init(params):
        return ScaleByUncorrectedAdamState(
            optax.tree.zeros_like(params), optax.tree.full_like(optax.tree.real(params), v0)
        )

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        direction = jax.tree.map(lambda m, v: m * jax.lax.rsqrt(v + zeta), mu, nu)
        return direction, ScaleByUncorrectedAdamState(mu, nu)

    scaling = optax.GradientTransformationExtraArgs(init, update)
    return keep_wide(optax.chain(scaling, optax.scale_by_learning_rate(learning_rate)))


def theory_hyperparams(num_steps: int, c_eta: float = 1.0, c_b: float = 1.0) -> dict[str, float]:
    r"""Rates of the convergence theorem: $\eta = c_\eta/\sqrt T$, $1 - \beta_2 = c_b/\sqrt T$.

    **Arguments:**

    - `num_steps`: T, the number of steps that will be run.
    - `c_eta`, `c_b`: constants; the analysis wants $\eta$ small against $\sqrt{1-\beta_2}/L_1$.

    **Returns:** `learning_rate` and `b2`, to pass on to `rmsprop_gs` or `adam_gs`.

    **Raises:** `ValueError` if T is not above $c_b^2$, so that $\beta_2$ would not be positive.
    """
    checks.count("num_steps", num_steps)
    checks.positive("c_eta", c_eta)
    checks.positive("c_b", c_b)
    if num_steps <= c_b**2:
        raise ValueError(f"num_steps must be above c_b**2 = {c_b**2:g}, got {num_steps}")
    return {"learning_rate": c_eta / num_steps**0.5, "b2": 1 - c_b / num_steps**0.5}


class SinhProblem(NamedTuple):
    r"""$f(x) = \sum_i \cosh x_i$: generalized smooth with $L_0 = L_1 = 1$, but not smooth."""

    dim: int

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """f(x), at least `dim`."""
        return jnp.sum(jnp.cosh(x))

    def gradient(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """sinh of each entry; infinite in float32 beyond 89."""
        return jnp.sinh(x)


def sinh_problem(dim: int) -> SinhProblem:
    """The test problem $\\sum_i \\cosh x_i$ in `dim` variables."""
    checks.count("dim", dim)
    return SinhProblem(dim)


def affine_noise(
    gradient: PyTree[Array], key: Key[Array, ""], D0: float, D1: float
) -> PyTree[Array]:
    r"""A stochastic gradient whose variance is affine in the squared gradient.

    $g = \nabla f\,(1 + \sqrt{D_1}\,\xi) + \sqrt{D_0}\,\xi'$ with independent standard normals, so
    that $\mathrm{E} g = \nabla f$ and $\mathrm{Var}\, g_i = D_0 + D_1 (\partial_i f)^2$.

    **Arguments:**

    - `gradient`: the exact gradient, a pytree.
    - `key`: for the draw.
    - `D0`, `D1`: variance at zero gradient, and its growth.
    """
    checks.nonnegative("D0", D0)
    checks.nonnegative("D1", D1)
    first, second = jax.random.split(key)
    xi = optax.tree.random_like(first, gradient, sampler=jax.random.normal)
    zeta = optax.tree.random_like(second, gradient, sampler=jax.random.normal)
    return jax.tree.map(
        lambda g, x, z: g * (1 + jnp.asarray(D1**0.5, g.dtype) * x) + D0**0.5 * z,
        gradient,
        xi,
        zeta,
    )
