"""Averages that keep the variance, against loops in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import distributed as dd

RNG = np.random.default_rng(7)


def reference(models, weights):
    """A float64 loop over the layers of a list of models."""
    weights = np.asarray(weights, np.float64) / np.sum(weights)
    result = {}
    for name in models[0]:
        layers = [np.asarray(model[name], np.float64) for model in models]
        mean = sum(w * layer for w, layer in zip(weights, layers, strict=True))
        target = sum(w * layer.var() for w, layer in zip(weights, layers, strict=True))
        if mean.size > 1 and mean.var() > 0:
            mean = (mean - mean.mean()) * np.sqrt(target / mean.var()) + mean.mean()
        result[name] = mean
    return result


def models(m):
    """Layers with a mean and a scale of their own; biases that are zero; a scalar."""
    return [
        {
            "w": RNG.normal(size=(4, 5)) * (1 + i) + 0.3,
            "b": np.zeros(5),
            "s": np.asarray(float(i)),
        }
        for i in range(m)
    ]


def stacked(parts, dtype=jnp.float64):
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves), dtype), *parts)


def test_equals_a_loop_over_layers():
    five = models(5)
    weights, mask = np.array([0.1, 2, 0.7, 1, 3]), np.array([True, True, False, True, True])
    hidden = [dict(m, w=m["w"] * np.nan) if not there else m for m, there in zip(five, mask)]  # noqa: B905

    @jax.jit
    def every(plain, hidden):
        mean = dd.variance_corrected_mean
        return (
            mean(plain),
            mean(plain, weights),
            mean(hidden, None, mask),
            mean(hidden, weights, mask),
        )

    for dtype, rtol in ((jnp.float64, 1e-12), (jnp.float32, 2e-6)):
        results = every(stacked(five, dtype), stacked(hidden, dtype))
        for result, w in zip(
            results, (np.ones(5), weights, 1.0 * mask, weights * mask), strict=True
        ):
            present = [i for i in range(5) if w[i]]
            expected = reference([five[i] for i in present], w[present])
            for name, wanted in expected.items():
                assert result[name].dtype == dtype
                np.testing.assert_allclose(result[name], wanted, rtol=rtol, atol=rtol)


def test_variance_stays_and_equal_models_too():
    n, scale = 16, 0.3
    layers = (RNG.normal(size=(n, 64, 64)) * scale).astype(np.float32)
    mean = jax.jit(dd.variance_corrected_mean)
    np.testing.assert_allclose(np.var(mean(layers)), scale**2, rtol=0.03)
    np.testing.assert_allclose(np.var(layers.mean(axis=0)), scale**2 / n, rtol=0.05)
    same = np.broadcast_to(layers[0] + 5, layers.shape)
    np.testing.assert_allclose(mean(same), same[0], rtol=1e-6)


def test_bad_layers():
    with pytest.raises(TypeError, match="int"):
        dd.variance_corrected_mean({"w": jnp.ones((2, 3)), "n": jnp.ones(2, jnp.int32)})
    with pytest.raises(ValueError, match="mask"):
        dd.variance_corrected_mean(jnp.ones((2, 3)), mask=jnp.ones(3, bool))
    with pytest.raises(ValueError, match="weights"):
        dd.variance_corrected_mean(jnp.ones((2, 3)), jnp.ones(3))
    local = dd.LocalSGD(0.1, 1)
    with pytest.raises(TypeError, match="VarianceCorrected"):
        dd.GossipLearning(jnp.sum, local, "mean")
    with pytest.raises(TypeError, match="LocalSGD"):
        dd.PartitionedGossip(jnp.sum, 0.1, 2)
    for bad in (
        lambda: dd.BufferedGossipLearning(jnp.sum, local, 0),
        lambda: dd.PartitionedGossip(jnp.sum, local, 0),
        lambda: dd.sample_weights(dd.Network.simulated(dd.ring(4)), jnp.ones(3)),
    ):
        with pytest.raises(ValueError, match=r"at least|shape"):
            bad()


GRAPH = dd.erdos_renyi(6, 0.5, seed=4)  # degrees differ
NETWORK = dd.Network.simulated(GRAPH)
COUNTS = np.array([1.0, 5, 2, 2, 9, 1])


def loss(x, sample):
    return 0.5 * sum(jnp.sum((leaf - sample[0]) ** 2) for leaf in x.values())


def trained(model, target):
    """One step of size 0.1."""
    return {name: layer - 0.1 * (layer - target) for name, layer in model.items()}


def neighbours(i):
    """In the order in which their models come."""
    table, mask = map(np.asarray, NETWORK.neighbor_table())
    return [int(j) for j, there in zip(table[i], mask[i], strict=True) if there]


def gossip_loop(nodes, targets, number, corrected, counts):
    for _ in range(number):
        nodes = [trained(m, t) for m, t in zip(nodes, targets, strict=True)]
        new = []
        for i in range(6):
            held = [i, *neighbours(i)]
            group, w = [nodes[j] for j in held], counts[held]
            if corrected:
                new.append(reference(group, w))
            else:
                mean = lambda name: np.average([m[name] for m in group], axis=0, weights=w)  # noqa: B023
                new.append({name: mean(name) for name in group[0]})
        nodes = new
    return nodes


def buffer_loop(nodes, targets, number, size):
    buffers = [[] for _ in nodes]
    for _ in range(number):
        nodes = [trained(m, t) for m, t in zip(nodes, targets, strict=True)]
        sent = list(nodes)
        for i in range(6):
            for j in neighbours(i):
                buffers[i].append(sent[j])
                if len(buffers[i]) == size:
                    nodes[i] = reference([nodes[i], *buffers[i]], np.ones(size + 1))
                    buffers[i] = []
    return nodes


def test_rounds_equal_numpy_loops():
    assert len(set(dict(GRAPH.degree).values())) > 1
    start, targets = models(6), RNG.normal(size=6)
    local, number = dd.LocalSGD(0.1, 1), 3
    weights = dd.sample_weights(NETWORK, COUNTS)
    algorithms = [
        dd.GossipLearning(loss, local),
        dd.GossipLearning(loss, local, weights=weights),
        dd.GossipLearning(loss, local, dd.PlainAverage()),
        dd.BufferedGossipLearning(loss, local, 4),
    ]

    @jax.jit
    def every(params, batch):
        def one(algorithm):
            state = algorithm.init(params, batch, NETWORK, jax.random.key(0))
            step = lambda state, key: (algorithm.round(state, batch, NETWORK, key), None)
            return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), number))[0]

        return [one(algorithm).params for algorithm in algorithms]

    results = every(stacked(start), jnp.asarray(targets)[:, None])
    expected = [
        gossip_loop(start, targets, number, True, np.ones(6)),
        gossip_loop(start, targets, number, True, COUNTS),
        gossip_loop(start, targets, number, False, np.ones(6)),
        buffer_loop(start, targets, number, 4),
    ]
    for result, wanted in zip(results, expected, strict=True):
        for name, value in stacked(wanted).items():
            np.testing.assert_allclose(result[name], value, rtol=1e-9, atol=1e-12)


def test_parts_and_bits():
    n = 6
    params = {"w": RNG.normal(size=(n, 5)), "b": np.arange(6.0)[:, None, None]}
    algorithm = dd.PartitionedGossip(lambda x, b: 0.0 * jnp.sum(x["w"]), dd.LocalSGD(0.1, 1), 4)

    @jax.jit
    def once(params, key):
        batch = jnp.zeros((n, 1))
        state = algorithm.init(params, batch, NETWORK, jax.random.key(0))
        keys = NETWORK.keys(jax.random.split(key)[0])
        parts = jax.vmap(lambda k: jax.random.randint(k, (), 0, 4))(keys)
        return algorithm.round(state, batch, NETWORK, key).params, parts

    new, parts = jax.tree.map(np.asarray, once(params, jax.random.key(1)))
    assert len(set(parts.tolist())) > 1
    old = np.concatenate([params["b"].reshape(n, 1), params["w"]], axis=1)
    for i in range(n):
        for entry in range(6):
            held = [i] + [j for j in neighbours(i) if parts[j] == entry % 4]
            got = np.concatenate([new["b"].reshape(n, 1), new["w"]], axis=1)[i, entry]
            np.testing.assert_allclose(got, old[held, entry].mean())
    degree = NETWORK.max_degree
    assert algorithm.bits_per_round(params, NETWORK) == degree * (2 * 64 + 32)
    corrected = dd.GossipLearning(loss, dd.LocalSGD(0.1, 1))
    assert corrected.bits_per_round(params, NETWORK) == degree * 64 * (
        6 + 1
    )  # nothing for the leaf of one entry
    plain = dd.BufferedGossipLearning(loss, dd.LocalSGD(0.1, 1), 3, dd.PlainAverage())
    assert plain.bits_per_round(params, NETWORK) == degree * 64 * 6


def test_nodes_start_apart():
    params = dd.independent_init(
        lambda key: jax.random.normal(key, (64,)), NETWORK, jax.random.key(0)
    )
    correlation = np.corrcoef(params) - np.eye(6)
    assert np.abs(correlation).max() < 0.5


@pytest.mark.slow
def test_a_deep_network_learns_only_with_the_variance():
    """Deep tanh networks whose plain average forgets its signal; the layers say why."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 40, 8)).astype(np.float32)
    y = np.sign(x[..., 0]).astype(np.float32)
    network = dd.Network.simulated(dd.random_regular(16, 4, seed=1))

    def init(key):
        keys = jax.random.split(key, 6)
        return [
            jax.random.normal(k, (16 if i else 8, 16), jnp.float32) * (2 / 32) ** 0.5
            for i, k in enumerate(keys)
        ]

    def loss(layers, batch):
        rows, signs = batch
        for layer in layers:
            rows = jnp.tanh(rows @ layer)
        return jnp.mean(jnp.log1p(jnp.exp(-signs * jnp.sum(rows, axis=-1))))

    params = dd.independent_init(init, network, jax.random.key(0))
    ratios, losses = [], []
    for average in (dd.PlainAverage(), dd.VarianceCorrected()):
        algorithm = dd.GossipLearning(loss, dd.LocalSGD(0.1, 5, 16), average)
        once = dd.run(algorithm, network, params, (x, y), 1, progress=False).params
        ratios.append(np.mean(np.var(once[3], axis=(1, 2)) / np.var(params[3], axis=(1, 2))))
        last = dd.run(algorithm, network, params, (x, y), 60, progress=False).params
        losses.append(float(np.mean(jax.vmap(loss)(last, (jnp.asarray(x), jnp.asarray(y))))))
    np.testing.assert_allclose(ratios, [0.2, 1.0], atol=0.05)
    assert losses[1] < 0.5 < losses[0]
