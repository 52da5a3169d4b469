"""AMSGrad and AdamNC: Adam with a second moment that never forgets, and the example behind them."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from ..core import checks, loops
from ._leafwise import abs_square, next_count
from ._precision import keep_wide
from .weighted_projection import Projection, project_updates


def amsgrad(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    bias_correction: bool = False,
    projection: Projection | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AMSGrad: Adam whose second moment is the largest so far, so that rates never grow again.

    $$m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
    \hat v \leftarrow \max(\hat v, v), \quad
    \theta \leftarrow \Pi\Big(\theta - \eta_t \frac{m}{\sqrt{\hat v} + \epsilon}\Big),$$

    with $\Pi$ the projection in the norm weighted by $\sqrt{\hat v} + \epsilon$. Adam can converge
    to the worst point of a convex problem, see `OnlineCounterexample`; this form has regret
    $O(\sqrt T)$ with $\eta_t = \eta/\sqrt t$ and a $\beta_1$ that decays, which
    `optax.inject_hyperparams(amsgrad)(..., b1=schedule)` makes.

    There is no bias correction, so with $\beta_2$ near 1 the first steps are up to
    $1/\sqrt{1-\beta_2}$ times those of Adam. `optax.amsgrad` (0.2.8) corrects by default, and
    before the maximum; `bias_correction=True` is that.

    **Arguments:**

    - `learning_rate`: $\eta_t$, a number or a schedule.
    - `b1`, `b2`: decays of the two moments, in [0, 1).
    - `eps`: $\epsilon$, for coordinates without gradient.
    - `bias_correction`: correct both moments for their start at zero.
    - `projection`: `(y, D) -> x`, see `weighted_projection`; none if left out.

    **Raises:** `ValueError` for decays outside [0, 1) or non-positive `eps`.

    **Reference:** Reddi, Kale, Kumar, On the Convergence of Adam and Beyond, 2018,
    arXiv:1904.09237.
    """
    _check(b1, b2, eps)
    scaling = optax.scale_by_amsgrad(
        b1, b2, eps, bias_correction_mu=bias_correction, bias_correction_nu=bias_correction
    )
    tx = optax.chain(scaling, optax.scale_by_learning_rate(learning_rate))
    weights = lambda state: _root(state[0].nu_max, eps)
    return keep_wide(project_updates(tx, projection, weights, "amsgrad"))


class ScaleByAdamNCState(NamedTuple):
    """Number of updates, the first moment, and the mean of all squared gradients."""

    count: Int[Array, ""]
    mu: PyTree[Array]
    nu: PyTree[Array]


def scale_by_adamnc(b1: float = 0.9, eps: float = 1e-8) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients as AdamNC does; see `adamnc`."""

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return ScaleByAdamNCState(jnp.zeros([], jnp.int32), zeros, optax.tree.real(zeros))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        count = next_count(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        # beta_2 = 1 - 1/t, as a correction of the mean so that the weights do not cancel
        nu = jax.tree.map(lambda g, v: v + (abs_square(g) - v) / count, updates, state.nu)
        direction = jax.tree.map(jnp.divide, mu, _root(nu, eps))
        return direction, ScaleByAdamNCState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def adamnc(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    eps: float = 1e-8,
    projection: Projection | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamNC: Adam with the mean of all squared gradients, $\beta_{2,t} = 1 - 1/t$.

    $$v_t = \frac1t \sum_{s \le t} g_s^2, \qquad
    \theta \leftarrow \Pi\Big(\theta - \eta_t \frac{m_t}{\sqrt{v_t} + \epsilon}\Big).$$

    With $\eta_t = \eta/\sqrt t$ it is AdaGrad with momentum. No bias correction.

    **Arguments:** as `amsgrad`.

    **Raises:** `ValueError` for `b1` outside [0, 1) or non-positive `eps`.

    **Reference:** as `amsgrad`.
    """
    _check(b1, 0.0, eps)
    tx = optax.chain(scale_by_adamnc(b1, eps), optax.scale_by_learning_rate(learning_rate))
    weights = lambda state: _root(state[0].nu, eps)
    return keep_wide(project_updates(tx, projection, weights, "adamnc"))


def _check(b1, b2, eps):
    checks.interval("b1", b1, 0.0, 1.0, open_high=True)
    checks.interval("b2", b2, 0.0, 1.0, open_high=True)
    checks.positive("eps", eps)


def _root(second_moment, eps):
    return jax.tree.map(lambda v: jnp.sqrt(jnp.real(v)) + eps, second_moment)


class OnlineCounterexample(eqx.Module):
    r"""Linear losses on [-1, 1] that lead Adam to the worst point.

    $f_t(x) = C x$ once every `period` rounds, at t = 1 first, and $-c\,x$ in all others, with
    $C > (\mathrm{period} - 1)\, c$: the best point is -1. A second moment that forgets weighs down
    the rare large gradient and moves to +1.

    **Arguments:**

    - `large`: C.
    - `small`: c.
    - `period`: rounds from one large gradient to the next.

    **Raises:** `ValueError` if the best point is not -1.
    """

    large: float = 1010.0
    small: float = 10.0
    period: int = 101

    def __check_init__(self):
        if not self.large > (self.period - 1) * self.small:
            raise ValueError(
                f"large must exceed (period - 1) * small = {(self.period - 1) * self.small}, got "
                f"{self.large}"
            )

    def gradient(self, t: Int[Array, ""]) -> Float[Array, ""]:
        """The slope of $f_t$, t counted from 1."""
        return jnp.where(t % self.period == 1, self.large, -self.small)

    def play(
        self, tx: optax.GradientTransformation, num_rounds: int, start: float = 0.0
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The last point and the mean regret against -1 of an optimizer kept in [-1, 1]."""

        def step(carry, t):
            x, state = carry
            gradient = self.gradient(t).astype(x.dtype)
            updates, state = tx.update(gradient, state, x)
            moved = jnp.clip(x + updates, -1, 1)
            return (moved, state), gradient * (x + 1)

        x = jnp.asarray(start)
        (x, _), regret = loops.scan(step, (x, tx.init(x)), jnp.arange(1, num_rounds + 1))
        return x, jnp.mean(regret)
