"""Adafactor: second moments of a matrix from its row and column sums."""

import jax.numpy as jnp
import optax

from ..core import checks
from ._leafwise import is_zero, one_minus_power
from ._precision import keep_wide


def relative_step_size(warmup_init: bool = False) -> optax.Schedule:
    r"""Adafactor's own schedule, $\rho_t = \min(10^{-2}, 1/\sqrt t)$.

    It is meant to be multiplied by the size of the parameters. As any schedule it is called with
    t - 1, the number of updates before this one.

    **Arguments:**

    - `warmup_init`: grow first, $\rho_t = \min(10^{-6} t, 1/\sqrt t)$.
    """

    def schedule(count):
        t = jnp.asarray(count + 1, float)
        return jnp.minimum(1e-6 * t if warmup_init else 1e-2, t**-0.5)

    return schedule


def adafactor(
    learning_rate: optax.ScalarOrSchedule | None = None,
    scale_parameter: bool = True,
    decay_rate: float = 0.8,
    clipping_threshold: float | None = 1.0,
    b1: float | None = None,
    b2: float | None = None,
    eps1: float = 1e-30,
    eps2: float = 1e-3,
    min_dim_size_to_factor: int = 2,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Adafactor: Adam's second moment in n + m numbers for an n x m matrix.

    $$R \leftarrow \beta_{2,t} R + (1-\beta_{2,t})(G^2 + \epsilon_1) 1_m, \quad
    C \leftarrow \beta_{2,t} C + (1-\beta_{2,t})\, 1_n^\top (G^2 + \epsilon_1), \quad
    V = \frac{R C}{1_n^\top R},$$
    $$U = \frac{G}{\sqrt V}, \qquad
    X \leftarrow X - \rho_t \max(\epsilon_2, \mathrm{RMS}(X))\,
    \frac{U}{\max(1, \mathrm{RMS}(U)/d)},$$

    with $\beta_{2,t} = 1 - t^{-0.8}$, so that the first step has no past and needs no correction.
    Vectors, scalars and matrices with one row keep V itself; tensors of higher rank are factored
    along their two largest axes, for each index of the others.

    `optax.adafactor` (0.2.8) makes the steps; it differs in its defaults: it keeps V whole unless
    both sides reach 128, has no schedule of its own, fixes $\epsilon_2$, and decays weights without
    the learning rate.

    **Arguments:**

    - `learning_rate`: $\rho_t$, a number or a schedule; `relative_step_size()` if left out, and
      `relative_step_size(warmup_init=True)` starts slowly.
    - `scale_parameter`: multiply the step by the size of the parameter; off, $\rho_t$ is absolute.
    - `decay_rate`: the exponent 0.8.
    - `clipping_threshold`: d, the largest root mean square of U; `None` does not clip.
    - `b1`: decay of a mean of the steps, learning rate included, without correction for its
      start; `None` has no such mean, and no state for it.
    - `b2`: a constant decay in place of the power, corrected for the start as in Adam:
      $\beta_{2,t} = 1 - (1-\beta_2)/(1-\beta_2^t)$.
    - `eps1`, `eps2`: $\epsilon_1$, $\epsilon_2$.
    - `min_dim_size_to_factor`: factor a leaf if its two largest axes are at least this long.
    - `weight_decay`: $\lambda$; $\rho_t \lambda X$ is subtracted, as in AdamW.

    **Raises:** `ValueError` or `TypeError` naming the argument: decays outside [0, 1), a
    non-positive `decay_rate`, `clipping_threshold` or epsilon, a negative `weight_decay`, a size
    below 2.

    **Reference:** Shazeer, Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost,
    2018, arXiv:1804.04235.
    """
    checks.positive("decay_rate", decay_rate)
    checks.positive("eps1", eps1)
    checks.positive("eps2", eps2)
    checks.nonnegative("weight_decay", weight_decay)
    checks.count("min_dim_size_to_factor", min_dim_size_to_factor, minimum=2)
    if clipping_threshold is not None:
        checks.positive("clipping_threshold", clipping_threshold)
    for name, decay in (("b1", b1), ("b2", b2)):
        if decay is not None:
            checks.interval(name, decay, 0.0, 1.0, open_high=True)
    rate = relative_step_size() if learning_rate is None else learning_rate

    def second_moment_decay(count, exponent):
        t = jnp.asarray(count + 1, float)
        if b2 is None:
            return 1 - t**-exponent
        return 1 - (1 - b2) / one_minus_power(b2, t)

    scaling = optax.scale_by_factored_rms(
        decay_rate=decay_rate,
        min_dim_size_to_factor=min_dim_size_to_factor,
        epsilon=eps1,
        decay_rate_fn=second_moment_decay,
    )
    steps = [
        scaling,
        optax.identity()
        if clipping_threshold is None
        else optax.clip_by_block_rms(clipping_threshold),
        optax.scale_by_learning_rate(rate),
        optax.scale_by_param_block_rms(eps2) if scale_parameter else optax.identity(),
        optax.identity() if b1 is None else optax.ema(b1, debias=False),
    ]
    if not is_zero(weight_decay):
        decay = lambda count: -weight_decay * (rate(count) if callable(rate) else rate)
        steps.append(optax.add_decayed_weights(decay))
    return keep_wide(optax.chain(*steps))
