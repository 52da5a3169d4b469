"""Optimistic AMSGrad: a second step along a prediction of the next gradient."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from ..core import checks, ring, tree
from ._leafwise import next_count, rate_at, sum_rows
from ._precision import keep_wide
from .hutchinson import scalar_dtype


def rmpe(history: PyTree[Array], reg: float | None = None) -> PyTree[Array]:
    r"""Regularized minimal polynomial extrapolation: the limit of a sequence from its last points.

    With the differences $U = [x_1 - x_0, \dots, x_r - x_{r-1}]$ it solves
    $(U^\top U + \rho \|U^\top U\|_F I) z = 1$ and returns $\sum_{i=0}^{r-1} c_i x_i$ with
    $c = z / \sum_i z_i$. It is exact, up to $\rho$, for $x_{k+1} = A x_k + b$ in at most $r - 1$
    dimensions. Equal points give their mean. The last point counts in the differences only, as
    where the method comes from; the program of optimistic AMSGrad's authors combines $x_1$ to
    $x_r$ instead, one application of the map further.

    **Arguments:**

    - `history`: a pytree whose leaves hold $x_0, \dots, x_r$, oldest first, on the leading axis.
      Inner products are summed over all leaves.
    - `reg`: $\rho$; 1e-5 in single precision and 1e-8 in double if left out.

    **Returns:** a pytree like one point.

    **Raises:** `ValueError` if there are fewer than two points.

    **Reference:** Scieur, d'Aspremont, Bach, Regularized Nonlinear Acceleration, 2016,
    arXiv:1606.04133.
    """
    leaves = jax.tree.leaves(history)
    if not leaves:
        return history
    length = leaves[0].shape[0]
    if length < 2:
        raise ValueError(f"history must hold at least two points, got {length}")
    differences = jax.tree.map(lambda x: jnp.diff(x, axis=0), history)
    pairs = jax.vmap(jax.vmap(tree.vdot, (None, 0)), (0, None))(differences, differences)
    weights = jnp.append(_combination(pairs, reg), 0)
    return jax.tree.map(lambda x: sum_rows(x, weights), history)


def _combination(gram: Float[Array, "r r"], reg: float | None) -> Float[Array, " r"]:
    """The weights c, from the inner products of the differences."""
    if reg is None:
        reg = 1e-8 if gram.dtype == jnp.float64 else 1e-5
    size = jnp.linalg.norm(gram)
    scale = jnp.where(size > 0, size, 1)
    identity = jnp.eye(len(gram), dtype=gram.dtype)
    z = jnp.linalg.solve(gram / scale + reg * identity, jnp.ones(len(gram), gram.dtype))
    return z / jnp.sum(z)


class AbstractPredictor(eqx.Module):
    """A guess of the next gradient from the last ones."""

    @abc.abstractmethod
    def init(self, params: PyTree[Array]) -> PyTree[Array]:
        """What the predictor keeps, before the first gradient."""

    @abc.abstractmethod
    def __call__(
        self, memory: PyTree[Array], gradient: PyTree[Array], count: Int[Array, ""]
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """The guess and what is kept, from the newest gradient, number `count` (from 1)."""


class LastGradient(AbstractPredictor):
    """The next gradient is the last one."""

    def init(self, params):
        return None

    def __call__(self, memory, gradient, count):
        return gradient, memory


class _Differences(NamedTuple):
    """The last gradient, a ring of the differences before it, and their inner products."""

    last: PyTree[Array]
    differences: PyTree[Array]
    gram: Float[Array, "r r"]


class ExtrapolatedGradient(AbstractPredictor):
    """The next gradient is the limit of the last ones, by `rmpe`; the last one, until there are
    enough.

    With the differences $u_j = x_j - x_{j-1}$ kept instead of the points, the limit is
    $x_r - \\sum_j (c_0 + \\dots + c_{j-1}) u_j$, and a step takes r inner products, not one for
    each pair.

    **Arguments:**

    - `span`: r, differences looked at; with the last gradient r + 1 copies of the parameters.
    - `reg`: see `rmpe`.
    """

    span: int = 5
    reg: float | None = None

    def __check_init__(self):
        checks.count("span", self.span)
        if self.reg is not None:
            checks.positive("reg", self.reg)

    def init(self, params):
        zeros = optax.tree.zeros_like(params)
        gram = jnp.zeros((self.span, self.span), scalar_dtype(params))
        return _Differences(zeros, ring.empty(zeros, self.span), gram)

    def __call__(self, memory, gradient, count):
        if not jax.tree.leaves(gradient):
            return gradient, memory
        # The first gradient is no difference: its slot is written again before it counts.
        slot = (count - 2) % self.span
        new = jax.tree.map(jnp.subtract, gradient, memory.last)
        gram = ring.gram_with(memory.gram, memory.differences, new, slot)
        oldest_first = (slot + 1 + jnp.arange(self.span)) % self.span
        weights = _combination(gram, self.reg)[oldest_first]
        before = jnp.zeros_like(weights).at[oldest_first].set(jnp.cumsum(weights))
        moved = ring.weighted_sum(before, memory.differences, new, slot)
        guess = jax.tree.map(lambda g, d: jnp.where(count > self.span, g - d, g), gradient, moved)
        kept = ring.store(memory.differences, new, slot, after=moved)
        return guess, _Differences(gradient, kept, gram)


class OptAMSGradState(NamedTuple):
    """State of `opt_amsgrad`.

    - `count`: number of updates.
    - `mu`, `nu`, `nu_max`: the moments, and the largest second moment so far.
    - `offset`: how far the parameters are ahead of the sequence without optimism.
    - `memory`: what the predictor keeps.
    - `predicted`: what was predicted for the next gradient; `None` unless `v_residual`.
    """

    count: Int[Array, ""]
    mu: PyTree[Array]
    nu: PyTree[Array]
    nu_max: PyTree[Array]
    offset: PyTree[Array]
    memory: PyTree[Array]
    predicted: PyTree[Array]

    def without_optimism(self, params: PyTree[Array]) -> PyTree[Array]:
        """The auxiliary point that belongs to these parameters; it may be the better one to
        report."""
        return jax.tree.map(jnp.add, params, self.offset)


def opt_amsgrad(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    predictor: AbstractPredictor | None = ExtrapolatedGradient(),  # noqa: B008  (immutable)
    *,
    v_residual: bool = False,
    previous_momentum: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""OPT-AMSGrad: AMSGrad that moves ahead along a prediction of the next gradient.

    An auxiliary sequence $\tilde w$ does AMSGrad without bias correction on gradients taken at w,

    $$\tilde w_{t+1} = \tilde w_t - \eta_t m_t/\sqrt{\hat v_t}, \qquad
    w_{t+1} = \tilde w_{t+1} - \eta_t h_{t+1}/\sqrt{\hat v_t}, \qquad
    h_{t+1} = \beta_1 m_{t-1} + (1-\beta_1) \hat g_{t+1},$$

    where $\hat g_{t+1}$ is the prediction and $v_0 = \hat v_0 = \epsilon$. Parameters are w; the
    state's `without_optimism` gives $\tilde w$.

    The authors' code corrects biases, adds $\epsilon$ to the root, and predicts by a second
    gradient on the same batch, at weights that are extrapolated. That costs two gradients a step;
    this is their listing, which costs one.

    **Arguments:**

    - `learning_rate`: $\eta_t$, a number or a schedule.
    - `b1`, `b2`: decays of the moments, in [0, 1).
    - `eps`: $\epsilon$, the second moment at the start.
    - `predictor`: `ExtrapolatedGradient(span)` keeps span + 1 copies of the parameters,
      `LastGradient()` none; `None` is AMSGrad. Subclass `AbstractPredictor` for others.
    - `v_residual`: take the second moment of $g_t - \hat g_t$, as the regret bound and the authors'
      code do, and their listing does not (one more copy of the parameters).
    - `previous_momentum`: $m_{t-1}$ in h, as the authors' code has it; `False` takes $m_t$, which
      the next step will decay.

    **Raises:** `ValueError` for decays outside [0, 1), non-positive `eps`, or `v_residual` without
    a predictor; `TypeError` if `predictor` is no `AbstractPredictor`.

    **Reference:** Wang, Li, Karimi, Li, An Optimistic Acceleration of AMSGrad for Nonconvex
    Optimization, 2021, arXiv:1903.01435.
    """
    checks.interval("b1", b1, 0.0, 1.0, open_high=True)
    checks.interval("b2", b2, 0.0, 1.0, open_high=True)
    checks.positive("eps", eps)
    if predictor is None and v_residual:
        raise ValueError("v_residual needs a predictor, got None")
    if not isinstance(predictor, AbstractPredictor | None):
        raise TypeError(f"predictor must be an AbstractPredictor or None, got {predictor!r}")

    def init(params):
        zeros = optax.tree.zeros_like(params)
        nu = optax.tree.full_like(optax.tree.real(zeros), eps)
        memory = None if predictor is None else predictor.init(zeros)
        count = jnp.zeros([], jnp.int32)
        return OptAMSGradState(count, zeros, nu, nu, zeros, memory, zeros if v_residual else None)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        count = next_count(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        surprise = optax.tree.sub(updates, state.predicted) if v_residual else updates
        nu = optax.tree.update_moment_per_elem_norm(surprise, state.nu, b2, 2)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)

        def scaled(direction):
            return jax.tree.map(
                lambda d, v: rate_at(learning_rate, state.count, v.dtype) * d / jnp.sqrt(v),
                direction,
                nu_max,
            )

        memory, predicted, offset = state.memory, state.predicted, state.offset
        if predictor is not None:
            guess, memory = predictor(state.memory, updates, count)
            momentum = state.mu if previous_momentum else mu
            ahead = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, momentum, guess)
            offset = scaled(ahead)
            predicted = guess if v_residual else None
        steps = jax.tree.map(
            lambda old, step, new: old - step - new,
            state.offset,
            scaled(mu),
            offset,
        )
        return steps, OptAMSGradState(count, mu, nu, nu_max, offset, memory, predicted)

    return keep_wide(optax.GradientTransformationExtraArgs(init, update))
