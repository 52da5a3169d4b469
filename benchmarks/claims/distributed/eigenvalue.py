"""Eigenvalues by nodes with late and lost messages, beside the power method in one place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse
import scipy.sparse.linalg

from benchmarks.claims import Outcome
from jaxopt_ext import distributed as dd

CLAIM = (
    "For the smallest eigenvalue of a tridiagonal matrix of size 1000, whose rows 10 nodes on a "
    "line own, the nodes need at most 1.5 times the rounds of the power method in one place until "
    "all stay within 1e-6 of it, and at most twice as many if messages take up to 10 rounds and "
    "30% are lost, both at their best step size, on 3 seeds; and 8 nodes that each fit a network "
    "to the ground state of an oscillator all have it within 1e-3 after 3000 rounds, with and "
    "without such links."
)
SETTINGS = (
    "Step sizes of the owners are 2^(k/6), "
    "k = -6..5, times Partition.step_size, and the power method runs on c I - A with c that many "
    "times the bound of Gershgorin's circles; each takes the one whose largest number of rounds is "
    "least on seeds 0 and 1, and with late messages one of its own. Seeds 1000 to 1002 are "
    "reported, in one run; earlier runs reported 10 to 12. "
    "Networks: one hidden layer of 32, 500 points, the optimizer Adam with 2e-2 and cosine decay, "
    "nothing tuned."
)

SIZE, NODES, LIMIT = 1000, 10, 1500
TUNING, REPORTED = range(2), range(1000, 1003)
GRID = 2.0 ** (np.arange(-6, 6) / 6)
LATE = dd.DelayedLinks(10, 0.3)
KINDS = ("in time", "late", "power method")


def run() -> Outcome:
    with jax.enable_x64(True):
        chosen = {
            kind: GRID[np.argmin(np.max([_rounds(kind, s, GRID) for s in TUNING], axis=0))]
            for kind in KINDS
        }
        table, holds = [], True
        for seed in REPORTED:
            row = {"problem": "owners", "seed": seed}
            for kind in KINDS:
                row[kind] = float(_errors(kind, seed, np.ones(1))[0, 999])
            for kind in KINDS:
                rounds = _rounds(kind, seed, np.array([chosen[kind]]))
                row[f"{kind}, rounds"] = int(rounds[0])
            rounds = row["power method, rounds"]
            holds &= row["in time, rounds"] <= 1.5 * rounds and row["late, rounds"] <= 2 * rounds
            table.append(row)
    with jax.enable_x64(False):
        for seed in REPORTED:
            row = {"problem": "networks", "seed": seed}
            for kind, links in (("in time", None), ("late", LATE)):
                row[kind], above = _oscillator(seed, links)
                holds &= row[kind] < 1e-3 and above
            table.append(row)
    factors = ", ".join(f"{value:.3g} {kind}" for kind, value in chosen.items())
    note = (
        "Largest relative error of a node's estimate: owners after 1000 rounds at the default "
        "step, and rounds, or products with A, until it stays below 1e-6 at the best of the grid, "
        f"{factors}; networks after 3000 rounds, where no node's quotient is below the eigenvalue "
        "but by rounding, 1e-4 of it."
    )
    return Outcome(
        table,
        bool(holds),
        note,
        why="ours: late messages cost the owners 1.72, 1.30 and 2.01 times the rounds of the power "
        "method, the last 322 rounds where 320 are allowed; all else holds",
    )


@functools.cache
def _matrix():
    middle = np.minimum(0.0025 * (np.arange(SIZE) - SIZE / 2) ** 2, 1)
    off = -np.ones(SIZE - 1)
    matrix = scipy.sparse.diags_array([off, 2 + middle, off], offsets=[-1, 0, 1]).tocsr()
    exact = scipy.sparse.linalg.eigsh(matrix, k=1, sigma=0, which="LM")[0][0]
    parts = dd.partition(matrix, NODES)
    network = dd.Network.simulated(parts.graph)
    return matrix, float(exact), parts, network, parts.blocks(network)


def _rounds(kind, seed, factors):
    """Rounds of each factor after which the error stays small."""
    bad = ~(_errors(kind, seed, factors) < 1e-6)
    return np.where(bad.any(axis=1), LIMIT - np.argmax(bad[:, ::-1], axis=1), 0)


def _errors(kind, seed, factors):
    """Of each factor, after each round."""
    _, exact, parts, _, _ = _matrix()
    u = np.random.default_rng(seed).normal(size=SIZE)
    if kind == "power method":
        values = _power(jnp.asarray(u), 0.75 / parts.step_size * factors)
    else:
        steps = np.resize(parts.step_size * factors, len(GRID))  # one program for all
        values = _owners(kind)(parts.split(u), jax.random.key(seed), jnp.asarray(steps))
        values = values[: len(factors)]
    return np.max(np.abs(np.asarray(values) / exact - 1).reshape(len(factors), LIMIT, -1), -1)


@functools.cache
def _owners(kind):
    _, _, parts, network, blocks = _matrix()
    links = LATE if kind == "late" else None

    def run(u, key, step_size):
        solver = dd.OwnerEigensolver(parts.block_size, step_size, links=links)

        def one(state, key):
            state = solver.round(state, blocks, network, key)
            return state, state.estimate

        state = solver.init(u, blocks, network, key)
        return jax.lax.scan(one, state, jax.random.split(key, LIMIT))[1]

    return jax.jit(jax.vmap(run, (None, None, 0)))


@jax.jit
def _power(u, shifts):
    matrix = _matrix()[0]
    diagonal = jnp.asarray(matrix.diagonal())

    def run(shift):
        def one(u, _):
            padded = jnp.pad(u, 1)
            product = diagonal * u - padded[2:] - padded[:-2]
            value = jnp.vdot(u, product) / jnp.vdot(u, u)
            new = shift * u - product
            return new / jnp.linalg.norm(new), value

        return jax.lax.scan(one, u, length=LIMIT)[1]

    return jax.vmap(run)(shifts)


def _oscillator(seed, links):
    """The largest relative error of a node, and whether quotients are upper bounds."""
    points = np.linspace(-5, 5, 500)
    h = points[1] - points[0]
    off = np.full(499, -1 / h**2)
    dense = scipy.sparse.diags_array([off, 2 / h**2 + points**2, off], offsets=[-1, 0, 1])
    exact = float(scipy.sparse.linalg.eigsh(dense.tocsc(), k=1, sigma=0, which="LM")[0][0])
    where = jnp.asarray(points, jnp.float32)

    def matvec(u):
        # Differences of differences: in single precision the second ones would cancel.
        slopes = jnp.diff(jnp.pad(u, 1)) / np.float32(h)
        return -jnp.diff(slopes) / np.float32(h) + where**2 * u

    def model(p):
        return jnp.tanh(where[:, None] * p["in"] + p["bias"]) @ p["out"]

    keys = jax.random.split(jax.random.key(seed), 3)
    scales = {"in": 1.0, "bias": 1.0, "out": 0.3}
    params = {
        name: scale * jax.random.normal(key, (8, 32), jnp.float32)
        for key, (name, scale) in zip(keys, scales.items(), strict=True)
    }
    adam = optax.adam(optax.cosine_decay_schedule(2e-2, 3000))
    solver = dd.ReplicatedEigensolver(matvec, model, adam, links=links)
    state = dd.run(
        solver,
        dd.Network.simulated(dd.ring(8)),
        params,
        jnp.zeros((8, 1), jnp.float32),
        3000,
        key=jax.random.key(seed),
        state_metric=lambda state: jnp.min(state.quotient),
        record_every=100,
        progress=False,
    )
    error = np.max(np.abs(np.asarray(state.state.estimate, np.float64) / exact - 1))
    return float(error), bool(np.min(state.history) > exact * (1 - 1e-4))
