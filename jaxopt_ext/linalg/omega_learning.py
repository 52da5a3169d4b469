"""Bandits that choose a solver's parameter from a grid, and see only what the choice cost."""

import abc
import math
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import Scalar, checks, loops, scalar_field

State = TypeVar("State")


class AbstractPolicy(eqx.Module):
    """A choice among the points of `grid`, as pure functions of a state.

    In a round `select` draws an action and notes in the state what `update` needs of it;
    `update` sees the action's cost.
    """

    grid: eqx.AbstractVar[Float[Array, " d"]]

    @abc.abstractmethod
    def init(self) -> PyTree[Array]:
        """The state before the first round."""

    @abc.abstractmethod
    def probabilities(self, state: Any, context: Array) -> Float[Array, " d"]:
        """The law of the next action."""

    @abc.abstractmethod
    def select(
        self, state: Any, context: Array, key: PRNGKeyArray
    ) -> tuple[Int[Array, ""], PyTree[Array]]:
        """An index into `grid`, and the state that remembers it."""

    @abc.abstractmethod
    def update(self, state: Any, action: Int[Array, ""], cost: Array) -> PyTree[Array]:
        """The state after the action's cost is known."""


def _grid(grid: Any) -> Float[Array, " d"]:
    grid = jnp.asarray(grid)
    return grid if jnp.issubdtype(grid.dtype, jnp.floating) else grid.astype(float)


def _check_grid(grid: Array) -> None:
    if grid.ndim != 1 or not grid.size:
        raise ValueError(f"grid must be a vector with at least one point, got shape {grid.shape}")
    checks.finite("grid", grid)


def _check_range(low: Array, high: Array) -> None:
    if not checks.is_traced((low, high)) and not np.all(np.asarray(low) < np.asarray(high)):
        raise ValueError(f"low must be below high, got {low} and {high}")


def _draw(key: PRNGKeyArray, probabilities: Float[Array, " d"]) -> Int[Array, ""]:
    return jax.random.categorical(key, jnp.log(probabilities)).astype(jnp.int32)


class Fixed(AbstractPolicy):
    """Always the same point: what the learners are compared with.

    **Arguments:**

    - `grid`: the points, shape `(d,)`.
    - `index`: of the point that is taken.
    """

    grid: Float[Array, " d"] = eqx.field(converter=_grid)
    index: int = 0

    def __check_init__(self):
        _check_grid(self.grid)
        checks.count("index", self.index, 0)
        if self.index >= self.grid.size:
            raise ValueError(f"index must be below {self.grid.size}, got {self.index}")

    def init(self):
        return None

    def probabilities(self, state, context):
        return (jnp.arange(self.grid.size) == self.index).astype(self.grid.dtype)

    def select(self, state, context, key):
        return jnp.asarray(self.index, jnp.int32), state

    def update(self, state, action, cost):
        return state


class _TsallisState(eqx.Module):
    estimates: Float[Array, " d"]  # of the summed costs
    total: Float[Array, ""]
    rounds: Int[Array, ""]
    chosen: Float[Array, ""]  # the probability that the last action had


class TsallisINF(AbstractPolicy):
    """Follow the regularized leader with Tsallis entropy of order one half.

    In round $t$ action $i$ has the probability

    $$p_i = 4\\, (\\eta_t (K_i / s - x))^{-2}, \\qquad \\eta_t = 2 / \\sqrt t,$$

    with $x$ such that they sum to one, found by bisection between $\\min_i K_i/s - 2\\sqrt d/\\eta$
    and $\\min_i K_i/s - 2/\\eta$. $K_i$ sums the costs of $i$ above `least`, each divided by the
    probability it had, and $s$ is the running mean of these costs. Without contexts.

    **Arguments:**

    - `grid`: the points, shape `(d,)`.
    - `least`: the smallest cost that there can be; an iterative solver takes one step.

    **Raises:** `ValueError` for a grid that is no vector, is empty or not finite.

    **Reference:** Zimmert, Seldin, Tsallis-INF, 2021, arXiv:1807.07623, as in Khodak, Chow, Balcan,
    Talwalkar, Learning to Relax: Setting Solver Parameters Across a Sequence of Linear System
    Instances, 2024, arXiv:2310.02246.
    """

    grid: Float[Array, " d"] = eqx.field(converter=_grid)
    least: Scalar = scalar_field(1.0)

    def __check_init__(self):
        _check_grid(self.grid)

    def init(self):
        zero = jnp.zeros((), self.grid.dtype)
        return _TsallisState(jnp.zeros_like(self.grid), zero, jnp.asarray(0, jnp.int32), zero + 1)

    def probabilities(self, state, context=None):
        dtype = self.grid.dtype
        eta = 2 / jnp.sqrt((state.rounds + 1).astype(dtype))
        mean = state.total / jnp.maximum(state.rounds, 1).astype(dtype)
        gaps = (state.estimates - jnp.min(state.estimates)) / jnp.where(mean > 0, mean, 1)
        law = lambda depth: 4 / (eta * (gaps + depth)) ** 2  # depth is min K/s - x

        def halve(_, bracket):
            low, high = bracket
            middle = (low + high) / 2
            heavy = jnp.sum(law(middle)) > 1
            return jnp.where(heavy, middle, low), jnp.where(heavy, high, middle)

        start = (2 / eta, 2 * jnp.sqrt(jnp.asarray(self.grid.size, dtype)) / eta)
        low, high = loops.fori_loop(0, jnp.finfo(dtype).nmant + 4, halve, start)
        p = law((low + high) / 2)
        return p / jnp.sum(p)

    def select(self, state, context, key):
        p = self.probabilities(state)
        action = _draw(key, p)
        return action, eqx.tree_at(lambda s: s.chosen, state, p[action])

    def update(self, state, action, cost):
        excess = (cost - self.least).astype(self.grid.dtype)
        estimates = state.estimates.at[action].add(excess / state.chosen)
        return _TsallisState(estimates, state.total + excess, state.rounds + 1, state.chosen)


class _ChebyshevState(eqx.Module):
    gram: Float[Array, "d m m"]
    moment: Float[Array, "d m"]
    theta: Float[Array, "d m"]  # of the costs as they are, not scaled
    features: Float[Array, " m"]
    predicted: Float[Array, ""]  # of the last action, scaled
    squares: Float[Array, "3"]  # sums of predicted², predicted × cost, cost²
    largest: Float[Array, ""]
    smallest: Float[Array, ""]
    rounds: Int[Array, ""]


class ChebCB(AbstractPolicy):
    """A contextual bandit that fits each action's cost by a Chebyshev series in the context.

    With $\\phi(c)$ the Chebyshev polynomials $T_0, \\dots, T_m$ of the context, scaled from
    `[low, high]` to $[-1, 1]$, each action's coefficients are the least-squares fit of the costs it
    had, in the box

    $$|\\theta_0| \\le K, \\qquad |\\theta_j| \\le 2 (K - k) / j,$$

    where $K$ and $k$ are the largest and the smallest cost seen. With predictions
    $\\hat y = \\theta^\\top \\phi(c) / s$, their best action $i^*$ and

    $$s = K N, \\quad N = 2 + 4 \\tfrac{K - k}{K} (1 + \\log (m + 1)), \\quad
    p_i = \\frac{1}{d + \\eta (\\hat y_i - \\hat y_{i^*})}, \\; i \\ne i^*,$$

    the rest of the probability is $i^*$'s. The learning rate is
    $\\eta = 2 t \\sqrt{d t / (R + 2 \\alpha^2 t)}$ with $R$ the summed squared errors of the
    predictions and $\\alpha = (\\pi + \\tfrac2\\pi \\log(2m + 3)) (K - k) / (2 s (m + 2))$. A ridge
    makes the fit unique while observations are few; where the free solution leaves the box, cyclic
    descent over coordinates goes on from there.

    **Arguments:**

    - `grid`: the points, shape `(d,)`.
    - `low`, `high`: of the contexts; those outside are moved to the ends.
    - `degree`: $m$; static.
    - `sweeps`: of the descent in each round; static.
    - `ridge`: weight of $\\|\\theta\\|^2$ beside the squared errors.
    - `least`: the smallest cost that there can be.

    **Raises:** `ValueError` for a bad grid, or unless `low < high`.

    **Reference:** Khodak, Chow, Balcan, Talwalkar, Learning to Relax: Setting Solver Parameters
    Across a Sequence of Linear System Instances, 2024, arXiv:2310.02246.
    """

    grid: Float[Array, " d"] = eqx.field(converter=_grid)
    low: Scalar = scalar_field(-1.0)
    high: Scalar = scalar_field(1.0)
    degree: int = eqx.field(static=True, default=5)
    sweeps: int = eqx.field(static=True, default=10)
    ridge: Scalar = scalar_field(1e-3)
    least: Scalar = scalar_field(1.0)

    def __check_init__(self):
        _check_grid(self.grid)
        _check_range(self.low, self.high)
        checks.count("degree", self.degree)
        checks.count("sweeps", self.sweeps)
        checks.positive("ridge", self.ridge)

    def init(self):
        d, m, dtype = self.grid.size, self.degree + 1, self.grid.dtype
        zeros = lambda *shape: jnp.zeros(shape, dtype)
        return _ChebyshevState(
            zeros(d, m, m),
            zeros(d, m),
            zeros(d, m),
            zeros(m),
            zeros(),
            zeros(3),
            zeros(),
            jnp.asarray(jnp.inf, dtype),
            jnp.asarray(0, jnp.int32),
        )

    def features(self, context: Array) -> Float[Array, " m"]:
        """$T_0, \\dots, T_m$ of a context."""
        dtype = self.grid.dtype
        place = 2 * (context - self.low) / (self.high - self.low) - 1
        angle = jnp.arccos(jnp.clip(place.astype(dtype), -1, 1))
        return jnp.cos(jnp.arange(self.degree + 1, dtype=dtype) * angle)

    def _scale(self, state):
        largest = state.largest
        spread = jnp.where(state.rounds > 0, largest - state.smallest, 0)
        share = spread / jnp.where(largest > 0, largest, 1)
        scale = largest * (2 + 4 * share * (1 + math.log(self.degree + 1)))
        return jnp.where(scale > 0, scale, 1), spread

    def _rate(self, state):
        """The learning rate, zero before the first round."""
        scale, spread = self._scale(state)
        m, t = self.degree + 1, state.rounds.astype(self.grid.dtype)
        alpha = (math.pi + 2 / math.pi * math.log(2 * m + 1)) * spread / (2 * scale * (m + 1))
        a, b, c = state.squares
        error = jnp.maximum(a - 2 * b / scale + c / scale**2, 0)
        below = error + 2 * alpha**2 * t
        below = jnp.where(below > 0, below, 1)
        return 2 * t * jnp.sqrt(self.grid.size * t / below)

    def probabilities(self, state, context):
        predicted = state.theta @ self.features(context) / self._scale(state)[0]
        best = jnp.argmin(predicted)
        d = self.grid.size
        p = 1 / (d + self._rate(state) * (predicted - predicted[best]))
        others = jnp.where(jnp.arange(d) == best, 0, p)
        return others.at[best].set(1 - jnp.sum(others))

    def select(self, state, context, key):
        action = _draw(key, self.probabilities(state, context))
        features = self.features(context)
        predicted = state.theta[action] @ features / self._scale(state)[0]
        where = lambda s: (s.features, s.predicted)
        return action, eqx.tree_at(where, state, (features, predicted))

    def update(self, state, action, cost):
        cost = jnp.asarray(cost).astype(self.grid.dtype)
        excess, features, predicted = cost - self.least, state.features, state.predicted
        excess = excess.astype(self.grid.dtype)
        largest = jnp.maximum(state.largest, cost)
        smallest = jnp.minimum(state.smallest, cost)
        gram = state.gram.at[action].add(jnp.outer(features, features))
        moment = state.moment.at[action].add(excess * features)
        squares = state.squares + jnp.stack([predicted**2, predicted * excess, excess**2])
        orders = jnp.arange(1, self.degree + 1)
        bound = jnp.append(largest, 2 * (largest - smallest) / orders)
        theta = jax.vmap(self._fit, (0, 0, None))(gram, moment, bound)
        return _ChebyshevState(
            gram, moment, theta, features, predicted, squares, largest, smallest, state.rounds + 1
        )

    def _fit(self, gram, moment, bound):
        m = self.degree + 1
        gram = gram + self.ridge * jnp.eye(m, dtype=gram.dtype)
        free = jax.scipy.linalg.solve(gram, moment, assume_a="pos")

        def one(k, theta):
            j = k % m
            best = theta[j] + (moment[j] - gram[j] @ theta) / gram[j, j]
            return theta.at[j].set(jnp.clip(best, -bound[j], bound[j]))

        # Where the free solution is in the box it stays where it is.
        return loops.fori_loop(0, self.sweeps * m, one, jnp.clip(free, -bound, bound))


class _BinnedState(eqx.Module):
    states: PyTree[Array]
    bin: Int[Array, ""]


class Binned(AbstractPolicy):
    """A policy for each of several bins of the context.

    **Arguments:**

    - `policy`: of one bin, without contexts, `TsallisINF` say.
    - `low`, `high`: of the contexts; those outside belong to the bins at the ends.
    - `num_bins`: number of bins of equal width; static.

    **Raises:** `ValueError` unless `low < high`.

    **Reference:** Khodak, Chow, Balcan, Talwalkar, Learning to Relax: Setting Solver Parameters
    Across a Sequence of Linear System Instances, 2024, arXiv:2310.02246.
    """

    policy: AbstractPolicy
    low: Scalar = scalar_field(-1.0)
    high: Scalar = scalar_field(1.0)
    num_bins: int = eqx.field(static=True, default=5)

    # Written out, since type checkers would ask for `grid`, which here is a property.
    def __init__(self, policy: AbstractPolicy, low: Any = -1.0, high: Any = 1.0, num_bins: int = 5):
        self.policy, self.low, self.high, self.num_bins = policy, low, high, num_bins

    def __check_init__(self):
        checks.instance("policy", self.policy, AbstractPolicy, "TsallisINF(grid)")
        _check_range(self.low, self.high)
        checks.count("num_bins", self.num_bins)

    @property
    def grid(self):
        return self.policy.grid

    def init(self):
        repeat = lambda a: jnp.broadcast_to(a, (self.num_bins, *a.shape))
        return _BinnedState(jax.tree.map(repeat, self.policy.init()), jnp.asarray(0, jnp.int32))

    def _bin(self, context):
        place = (context - self.low) / (self.high - self.low) * self.num_bins
        return jnp.clip(jnp.floor(place), 0, self.num_bins - 1).astype(jnp.int32)

    def probabilities(self, state, context):
        index = self._bin(context)
        return self.policy.probabilities(jax.tree.map(lambda a: a[index], state.states), context)

    def select(self, state, context, key):
        index = self._bin(context)
        one = jax.tree.map(lambda a: a[index], state.states)
        action, one = self.policy.select(one, context, key)
        return action, _BinnedState(_stored(state.states, index, one), index)

    def update(self, state, action, cost):
        one = jax.tree.map(lambda a: a[state.bin], state.states)
        one = self.policy.update(one, action, cost)
        return _BinnedState(_stored(state.states, state.bin, one), state.bin)


def _stored(states, index, one):
    return jax.tree.map(lambda all, new: all.at[index].set(new), states, one)
