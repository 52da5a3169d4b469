"""Hyperplane rounding of the relaxation of the maximum cut."""

import itertools

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np

from benchmarks.claims import Outcome
from jaxopt_ext.minimize import textbook

CLAIM = (
    "On each of six graphs (Petersen, the karate club, and random ones of 12, 12, 80 and 150 "
    "nodes) the mean of 100,000 random hyperplanes is at least 0.878 of the relaxation, of which a "
    "random cut has less; and the best of them is the largest cut where that can be "
    "counted."
)
SETTINGS = (
    "Nothing is chosen. Seeds 10 to 13 for the graphs and 20 to 25 for the planes, of which there "
    "were 4000 at first: too few on Petersen's graph, where runs gave 0.8800 and 0.8778."
)


def _largest(weights):
    n = len(weights)
    signs = np.array(list(itertools.product([-1, 1], repeat=n - 1)))
    signs = np.concatenate([np.ones((len(signs), 1)), signs], axis=1)
    form = (np.diag(weights.sum(axis=0)) - weights) / 4
    return ((signs @ form) * signs).sum(axis=1).max()


def _graphs():
    yield "Petersen", nx.to_numpy_array(nx.petersen_graph())
    yield "karate club", nx.to_numpy_array(nx.karate_club_graph(), weight=None)
    for seed, n in zip(range(10, 14), (12, 12, 80, 150), strict=True):
        rng = np.random.default_rng(seed)
        edges = np.triu(rng.random((n, n)) * (rng.random((n, n)) < max(0.1, 6 / n)), 1)
        yield f"random, {n} nodes", edges + edges.T


def run() -> Outcome:
    table = []
    with jax.enable_x64(True):
        for i, (name, weights) in enumerate(_graphs()):
            found = textbook.max_cut(jnp.asarray(weights), jax.random.key(20 + i), 100_000)
            count = _largest(weights) if len(weights) <= 12 else np.nan
            table.append(
                {
                    "graph": name,
                    "relaxation": float(found.relaxed),
                    "mean / relaxation": float(found.mean / found.relaxed),
                    "random / relaxation": float(weights.sum() / 4 / found.relaxed),
                    "best": float(found.value),
                    "bound": float(found.bound),
                    "largest": float(count),
                }
            )
    holds = all(
        row["mean / relaxation"] >= 0.878 > row["random / relaxation"]
        and (np.isnan(row["largest"]) or row["best"] >= row["largest"] * (1 - 1e-9))
        for row in table
    )
    return Outcome(
        table,
        holds,
        "interior points up to 60 nodes, low-rank factors beyond; on Petersen's graph the expected "
        "share is 15 arccos(-2/3) / pi / 12.5 = 0.8787, which the mean of a hundred planes often "
        "misses",
    )
