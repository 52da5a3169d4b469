"""Networks whose features are merged."""

import jax
import jax.numpy as jnp
import numpy as np

from ... import diffusion
from ..shapes.function import AbstractFunctionCase
from .draws import draws

WIDTH, GROUPS, FREQUENCIES = 4, 2, 2


class AggregationCase(AbstractFunctionCase):
    """Two perceptrons of one block on one vector, with all weights drawn."""

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        embedding = diffusion.Sinusoidal(FREQUENCIES)
        options = {"embedding": embedding, "key": jax.random.key(0)}
        make = lambda: diffusion.MLPDenoiser((2,), WIDTH, 1, dtype=dtype, **options)
        merged = lambda: diffusion.AggregatedNetwork.create(
            (make(), make()), hidden=3, groups=GROUPS, **options
        )
        network = draws(merged, rng, dtype, scale=1.0)
        x, sigma = rng.normal(size=2), np.exp(rng.normal())
        return network, jnp.asarray(x, dtype), jnp.asarray(sigma, dtype)

    def call(self, network, x, sigma):
        return network(x, diffusion.Node(sigma, jnp.ones_like(sigma), sigma))

    def reference(self, weights, x, sigma):
        array = lambda a: np.asarray(a, np.float64)
        linear = lambda layer, h: array(layer.weight) @ h + array(layer.bias)
        silu = lambda h: h / (1 + np.exp(-h))
        angles = 0.25 * np.log(array(sigma)) / 1e4 ** (np.arange(FREQUENCIES) / FREQUENCIES)
        level = np.concatenate([np.cos(angles), np.sin(angles)])

        def merge(aggregator, features):
            inner = silu(linear(aggregator.first, np.concatenate([*features, level])))
            powers = np.exp(linear(aggregator.last, inner).reshape(2, GROUPS))
            out = []
            for i in range(len(features[0])):
                part = powers[:, i // (len(features[0]) // GROUPS)]
                out.append(part @ [f[i] for f in features] / np.sum(part))
            return np.array(out)

        nets = weights.networks
        seen = np.concatenate([array(x), level])
        h = merge(weights.first, [silu(linear(net.first, seen)) for net in nets])
        blocks = [h + silu(linear(net.blocks[0].linear, h)) for net in nets]
        h = merge(weights.aggregators[0], blocks)
        return merge(weights.output, [linear(net.last, h) for net in nets])
