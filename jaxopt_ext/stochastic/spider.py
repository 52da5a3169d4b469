"""Normalized descent for functions that are smooth in a generalized sense, SPIDER among it."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from ..core import Expectation, FiniteSum, Scalar, Smooth, checks, scalar_field, tree
from .descent import AbstractEstimatedDescent, descend, inverse_power
from .estimators import SPIDER as Recursive, FullGradient, Minibatch, Momentum
from .oracle import rate_field, smooth_oracle
from .outputs import AbstractOutput, Last, LeastGradient, RandomIterate


class _AbstractSmoothDescent(AbstractEstimatedDescent):
    """For problems without a nonsmooth part; the estimator is checked when the solver is made."""

    problems = (Smooth, FiniteSum, Expectation)

    def __check_init__(self):
        self.estimated_by()

    def oracle(self, problem):
        return smooth_oracle(problem)


class NormalizedGradientDescent(_AbstractSmoothDescent):
    """Gradient descent with steps that shrink by a power of the gradient's norm,

    $$x_{k+1} = x_k - \\gamma \\nabla f(x_k) / \\|\\nabla f(x_k)\\|^\\beta .$$

    For a function that is $\\alpha$-symmetric generalized-smooth,

    $$\\|\\nabla f(x') - \\nabla f(x)\\| \\le \\bigl(L_0 + L_1 \\max_t \\|\\nabla
    f(x_t)\\|^\\alpha\\bigr) \\|x' - x\\|$$

    over the segment, and $\\alpha \\le \\beta \\le 1$, a gradient below $\\epsilon$ is met in
    $O(\\epsilon^{-2})$ steps with a step size in proportion to $\\epsilon^\\beta$; see
    `generalized_smooth_step`. Quartics have $\\alpha = 2/3$, exponentials 1.

    With a constant step size the gradient comes down to a level that depends on it, and no further;
    with a schedule that falls it goes on. The error is the gradient's norm at the value.

    **Arguments:**

    - `step_size`: $\\gamma > 0$, or a schedule of the step's number.
    - `power`: $\\beta$ in [0, 1]; 1 is normalized gradient descent, 0 gradient descent.
    - `output`: by default the iterate with the smallest gradient.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` on a power outside of [0, 1]; `TypeError` for a problem with a
    nonsmooth part.

    **Reference:** Chen, Zhou, Liang, Lu, Generalized-Smooth Nonconvex Optimization is As Efficient
    As Smooth Nonconvex Optimization, 2023, arXiv:2303.02854.
    """

    step_size: Any = rate_field()
    power: Scalar = scalar_field(2 / 3)
    output: AbstractOutput = eqx.field(default_factory=LeastGradient)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000

    def __check_init__(self):
        checks.interval("power", self.power, 0, 1)

    def estimated_by(self):
        return FullGradient()

    def move(self, oracle, x, gradient, step):
        return descend(x, gradient, step * inverse_power(tree.norm(gradient), self.power))


class SPIDER(_AbstractSmoothDescent):
    """Steps of fixed length along the recursive estimate of `estimators.SPIDER`,

    $$x_{k+1} = x_k - \\gamma v_k / \\|v_k\\|,\\quad
    v_k = v_{k-1} + \\nabla f_B(x_k) - \\nabla f_B(x_{k-1}),$$

    with $v_k$ from a big batch whenever $k$ is a multiple of the period. A gradient below
    $\\epsilon$ is met within $O(n + \\sqrt n\\, \\epsilon^{-2})$ samples of a finite sum, and
    $O(\\epsilon^{-3})$ of an expectation, with $\\gamma$ in proportion to $\\epsilon$, also for
    functions that are smooth in the sense of `NormalizedGradientDescent` only. Far from a solution
    steps of a fixed length make slow progress.

    The error is the gradient's norm where the big batch is the whole sum; see `StochasticGradient`.

    **Arguments:**

    - `step_size`: $\\gamma > 0$, or a schedule of the step's number.
    - `period`: steps from one big batch to the next; `None` for $\\lceil \\sqrt n \\rceil$.
    - `batch`: size of $B$; `None` for $\\lceil \\sqrt n \\rceil$.
    - `big_batch`: samples of a big batch; `None` for the full gradient.
    - `output`: by default an iterate at random, of which the paper's theorem speaks.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` for an `Expectation` without `period` or `batch`, or sizes below 1;
    `TypeError` for a problem with a nonsmooth part.

    **Reference:** Chen, Zhou, Liang, Lu, Generalized-Smooth Nonconvex Optimization is As Efficient
    As Smooth Nonconvex Optimization, 2023, arXiv:2303.02854. Fang, Li, Lin, Zhang, SPIDER, 2018,
    arXiv:1807.01695.
    """

    step_size: Any = rate_field()
    period: int | None = eqx.field(static=True, default=None)
    batch: int | None = eqx.field(static=True, default=None)
    big_batch: int | None = eqx.field(static=True, default=None)
    output: AbstractOutput = eqx.field(default_factory=RandomIterate)
    tol: Scalar = scalar_field(0.0)
    max_steps: int = 1000

    def estimated_by(self):
        return Recursive(self.period, self.batch, self.big_batch)

    def move(self, oracle, x, gradient, step):
        return descend(x, gradient, step * inverse_power(tree.norm(gradient), 1))


class NormalizedSGD(_AbstractSmoothDescent):
    """Steps of fixed length along the gradient of a minibatch, or its moving average,

    $$x_{k+1} = x_k - \\gamma v_k / \\|v_k\\|,\\quad
    v_k = m v_{k-1} + (1 - m) \\nabla f_B(x_k).$$

    See `StochasticGradient` for the error.

    **Arguments:**

    - `step_size`: $\\gamma > 0$, or a schedule of the step's number.
    - `momentum`: $m \\in [0, 1)$.
    - `batch`: size of $B$.
    - `output`, `tol`, `max_steps`: see `StochasticGradient`.

    **Raises:** as `SPIDER`.

    **Reference:** Cutkosky, Mehta, Momentum Improves Normalized SGD, 2020, arXiv:2002.03305.
    """

    step_size: Any = rate_field()
    momentum: Scalar = scalar_field(0.0)
    batch: int = eqx.field(static=True, default=1)
    output: AbstractOutput = eqx.field(default_factory=Last)
    tol: Scalar = scalar_field(0.0)
    max_steps: int = 1000

    def estimated_by(self):
        return Momentum(self.momentum, self.batch)

    def move(self, oracle, x, gradient, step):
        return descend(x, gradient, step * inverse_power(tree.norm(gradient), 1))


class ClippedSGD(_AbstractSmoothDescent):
    """Minibatch gradients of which a step is never longer than a threshold,

    $$x_{k+1} = x_k - \\min(\\gamma, c / \\|g_k\\|)\\, g_k .$$

    See `StochasticGradient` for the error; of a `Smooth` it is clipped gradient descent.

    **Arguments:**

    - `step_size`: $\\gamma > 0$, or a schedule of the step's number.
    - `threshold`: $c > 0$, the length of the longest step.
    - `batch`: samples of a gradient.
    - `output`, `tol`, `max_steps`: see `StochasticGradient`.

    **Raises:** as `SPIDER`.

    **Reference:** Zhang, He, Sra, Jadbabaie, Why Gradient Clipping Accelerates Training, 2020,
    arXiv:1905.11881.
    """

    step_size: Any = rate_field()
    threshold: Scalar = scalar_field(1.0)
    batch: int = eqx.field(static=True, default=1)
    output: AbstractOutput = eqx.field(default_factory=Last)
    tol: Scalar = scalar_field(0.0)
    max_steps: int = 1000

    def __check_init__(self):
        checks.positive("threshold", self.threshold)

    def estimated_by(self):
        return Minibatch(self.batch)

    def move(self, oracle, x, gradient, step):
        size = tree.norm(gradient)
        longest = self.threshold.astype(size.dtype) * inverse_power(size, 1)
        return descend(x, gradient, jnp.where(step * size <= self.threshold, step, longest))


def generalized_smooth_step(L0: float, L1: float, alpha: float, beta: float, eps: float) -> float:
    """The step size that the theory of `NormalizedGradientDescent` has for a gradient of norm
    $\\epsilon$: for $\\alpha < 1$

    $$\\gamma = \\frac{\\epsilon^\\beta}{12 (K_0 + K_1 + 2 K_2) + 1},\\quad K_0 = L_0 (2^{\\alpha^2
    / (1 - \\alpha)} + 1),\\quad K_1 = L_1 2^{\\alpha^2 / (1 - \\alpha)} 3^\\alpha,\\quad K_2 =
    L_1^{1 / (1 - \\alpha)} 2^{\\alpha^2 / (1 - \\alpha)} 3^\\alpha (1 - \\alpha)^{\\alpha / (1 -
    \\alpha)},$$

    and for $\\alpha = 1$, $\\gamma = \\epsilon^\\beta / (4 L_0 + 8 L_1)$.

    **Arguments:**

    - `L0`, `L1`: $\\ge 0$, not both zero.
    - `alpha`: in [0, 1].
    - `beta`: in [`alpha`, 1].
    - `eps`: $> 0$.

    **Raises:** `ValueError` outside of these.

    **Reference:** Chen, Zhou, Liang, Lu, Generalized-Smooth Nonconvex Optimization is As Efficient
    As Smooth Nonconvex Optimization, 2023, arXiv:2303.02854.
    """
    checks.nonnegative("L0", L0)
    checks.nonnegative("L1", L1)
    checks.positive("L0 + L1", L0 + L1)
    checks.interval("alpha", alpha, 0, 1)
    checks.interval("beta", beta, alpha, 1)
    checks.positive("eps", eps)
    if alpha == 1:
        return eps**beta / (4 * L0 + 8 * L1)
    two = 2 ** (alpha**2 / (1 - alpha))
    K0, K1 = L0 * (two + 1), L1 * two * 3**alpha
    K2 = L1 ** (1 / (1 - alpha)) * two * 3**alpha * (1 - alpha) ** (alpha / (1 - alpha))
    return eps**beta / (12 * (K0 + K1 + 2 * K2) + 1)
