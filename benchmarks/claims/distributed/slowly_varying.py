"""Acceleration of gossip on networks that change slowly, and where there is none."""

import functools

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np

from benchmarks.claims import Outcome
from jaxopt_ext import distributed as dd

CLAIM = (
    "On cycles of 64 nodes whose 32 chords are lost for good, one in each round, accelerated "
    "gossip needs at most a quarter of the rounds of plain gossip to a relative error of 1e-6, "
    "each at its best of one grid, on 5 seeds; and on graphs of 64 nodes that change by two edges "
    "in each round, all of condition number below 192, a token does not reach a node in 28 rounds."
)
SETTINGS = (
    "Both take a bound M of the eigenvalues, accelerated gossip also m of the cycle. M is "
    "multiplied by 2^(k/2), k = -3..3, and m by 4^k, k = -2..2; each takes the values whose "
    "largest number of rounds is least on seeds 0 and 1; seeds 10 to 14 are reported."
)

N, CHORDS, LIMIT = 64, 32, 40_000
TUNING, REPORTED = range(2), range(10, 15)
OF_M = 2.0 ** (np.arange(-3, 4) / 2)
OF_m = 4.0 ** np.arange(-2, 3)


def run() -> Outcome:
    with jax.enable_x64(True):
        plain = np.array([_rounds(s, "plain", OF_M, np.ones(7)) for s in TUNING]).max(0)
        pairs = [np.repeat(OF_M, len(OF_m)), np.tile(OF_m, len(OF_M))]
        fast = np.array([_rounds(s, "fast", *pairs) for s in TUNING]).max(0)
        best, pair = OF_M[np.argmin(plain)], [p[np.argmin(fast)] for p in pairs]
        table = []
        for seed in REPORTED:
            (slow,), (quick,) = (
                _rounds(seed, "plain", np.array([best]), np.ones(1)),
                _rounds(seed, "fast", *(np.array([p]) for p in pair)),
            )
            row = {"seed": seed, "plain": slow, "accelerated": quick, "ratio": slow / quick}
            table.append(row)
        arrival, condition = _bridge(64)
    holds = all(row["ratio"] >= 4 and row["plain"] < LIMIT for row in table)
    holds = holds and arrival >= 28 and condition < 192
    note = (
        f"Rounds. Chosen: plain M times {best:g}; accelerated M times {pair[0]:g}, m times "
        f"{pair[1]:g}. Where two edges change in each round, condition number at most "
        f"{condition:.0f} with a square root of {condition**0.5:.1f}, the token arrives after "
        f"{arrival} rounds."
    )
    return Outcome(table, bool(holds), note)


def _problem(seed):
    rng = np.random.default_rng(seed)
    cycle = dd.ring(N)
    free = [(i, j) for i in range(N) for j in range(i + 2, N) if (i, j) != (0, N - 1)]
    chords = [free[k] for k in rng.choice(len(free), CHORDS, replace=False)]
    graph = nx.Graph(cycle)
    graph.add_edges_from(chords)
    edges = list(map(tuple, dd.edge_list(graph).tolist()))
    laplacians = []
    for k in range(CHORDS + 1):
        lost = set(chords[:k])
        laplacians.append(dd.weighted_laplacian(graph, [float(e not in lost) for e in edges]))
    return graph, laplacians, dd.laplacian_spectrum(cycle)[0], rng.normal(size=N)


@functools.cache
def _setting(seed):
    graph, laplacians, low, x = _problem(seed)
    network = dd.Network.simulated(graph)
    weights, high = dd.laplacian_schedule(network, laplacians)
    last = laplacians[-1].toarray()
    return network, weights, low / high, jnp.asarray(x - x.mean()), last


def _rounds(seed, method, of_high, of_low):
    """Rounds of each setting to the tolerance, LIMIT if there are more."""
    network, weights, low, x, _ = _setting(seed)
    schedule = lambda k: weights(jnp.minimum(k, CHORDS))  # what is lost stays lost

    def one(of_high, of_low):
        if method == "plain":
            gossip = dd.PlainGossip(1 / of_high)
        else:
            gossip = dd.NesterovGossip((low * of_low, of_high))

        def body(carry):
            k, state, _ = carry
            state = gossip.step(state, lambda y: y - network.mix(y, schedule(k)), k)
            return k + 1, state, jnp.linalg.norm(state[0])

        def going(carry):
            k, _, error = carry
            return (error > 1e-6 * jnp.linalg.norm(x)) & (error < 1e6) & (k < LIMIT)

        k, _, error = jax.lax.while_loop(going, body, (0, gossip.start(x), jnp.linalg.norm(x)))
        return jnp.where(error <= 1e-6 * jnp.linalg.norm(x), k, LIMIT)

    return np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(of_high), jnp.asarray(of_low)))


def _bridge(n):
    """The first round after which node 1 may know of node 0, and the largest condition number."""
    laplacians = dd.bridge_swap(n).laplacians
    knows = np.arange(n) == 0
    spectra = [dd.laplacian_spectrum(matrix) for matrix in laplacians]
    for k in range(2 * n):
        matrix = laplacians[min(k, len(laplacians) - 1)].toarray()
        knows = knows | ((matrix != 0) @ knows > 0)
        if knows[1]:
            break
    return k + 1, max(high / low for low, high in spectra)
