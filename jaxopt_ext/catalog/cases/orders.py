"""Autoregressive diffusion with a table as network, and its policies, in plain loops."""

import itertools

import jax.numpy as jnp
import numpy as np

from ... import diffusion
from ..shapes.function import AbstractFunctionCase

D, K = 4, 3
ORDER = np.array([[2, 0, 3, 1], [1, 3, 0, 2]])
LEVELS = diffusion.digit_levels(K, 2)


class LogProbCase(AbstractFunctionCase):
    """The log-probability of values in an order, two coordinates first and then one by one."""

    upscale: bool = False

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        array = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
        return array(D * K, D), array(D * K, D), jnp.asarray(rng.integers(0, K, D), jnp.int32)

    def call(self, weights, moves, x):
        def network(x, known, *place):
            seen = x + jnp.asarray(known, weights.dtype) + sum(place)
            return (jnp.sin(weights @ seen) + moves @ known.astype(weights.dtype)).reshape(D, K)

        if self.upscale:
            model = diffusion.Upscale(network, D, LEVELS, diffusion.DataLogits())
        else:
            model = diffusion.OrderAgnostic(network=network, size=D, num_classes=K)
        order = jnp.asarray(ORDER[: model.stages])
        return model.log_prob(x, order, jnp.array([0, 2, 3]))

    def reference(self, weights, moves, x):
        weights, moves, x = np.float64(weights), np.float64(moves), np.asarray(x)
        levels = LEVELS if self.upscale else np.array([[0] * K, range(K)])
        total = 0.0
        for s in range(len(levels) - 1):
            for low, high in ((0, 2), (2, 3), (3, 4)):
                known = np.array([ORDER[s][i] < low for i in range(D)])
                canvas = np.where(known, levels[s + 1][x], levels[s][x])
                seen = canvas + known * 1.0 + low + s
                logits = (np.sin(weights @ seen) + moves @ known).reshape(D, K)
                for i in range(D):
                    if low <= ORDER[s][i] < high:
                        past = levels[s] == levels[s][x[i]]
                        future = levels[s + 1] == levels[s + 1][x[i]]
                        mass = np.exp(logits[i])
                        total += np.log(mass[past & future].sum() / mass[past].sum())
        return np.float64(total)


class PolicyCase(AbstractFunctionCase):
    """The best policy of three calls for six coordinates, and its cost."""

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        return (jnp.asarray(rng.exponential(size=6) + 0.1, dtype),)

    def call(self, loss):
        policy = diffusion.optimal_policy(loss, 3)
        return policy, diffusion.policy_cost(loss, policy)

    def reference(self, loss):
        loss = np.asarray(loss, np.float64)
        cost = lambda starts: sum(np.diff([*starts, 6]) * loss.take(starts))
        best = min(((0, *rest) for rest in itertools.combinations(range(1, 6), 2)), key=cost)
        return np.array(best), cost(best)
