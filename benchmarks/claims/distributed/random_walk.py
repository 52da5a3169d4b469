"""Self-repellent walks against plain ones, in the error of a token's descent."""

import functools

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
from sklearn.datasets import load_breast_cancer

from benchmarks.claims import Outcome
from jaxopt_ext import distributed as dd

CLAIM = (
    "For a token on a cycle of 8 nodes, over 60000 steps and 3 seeds, repulsion 1, 4 and 10 brings "
    "the squared error below 0.2, 0.04 and 0.01 of the plain walk's if the iterate's steps fall "
    "faster than the walk's, on average within a factor of 2 of the theory, and gains at most 2.5 "
    "times if they fall more slowly; and in logistic regression of breast_cancer over the karate "
    "club the error after 20000 steps falls with repulsion 0, 1, 5."
)
SETTINGS = (
    "Cycle: a = 0.8, b = 1 and a = 0.9, b = 0.6, there 20000 steps; 100 runs for each seed, and no "
    "free parameter. Regression: a = 0.8, b = 0.9; the factor c of the steps for each repulsion is "
    "the best of a grid, 2^k, k = 0..6, on 4 runs of seed 0; 8 runs each of seeds 10 to 12 are "
    "reported."
)

ALPHAS = (0.0, 1.0, 4.0, 10.0)
REPULSIONS = (0.0, 1.0, 5.0, 10.0)
SEEDS = range(10, 13)
GRID = 2.0 ** np.arange(0, 7)
STEPS, LONG = 20_000, 60_000


def run() -> Outcome:
    with jax.enable_x64(True):
        table, holds = [], True
        for a, b, steps in ((0.8, 1.0, LONG), (0.9, 0.6, STEPS)):
            theory = np.array([_theory(alpha, a, b) for alpha in ALPHAS])
            found = np.array([_cycle(seed, a, b, steps) for seed in SEEDS])
            if b > a:
                early = np.mean([_cycle(s, a, b, LONG // 4, ALPHAS[-1:]) for s in SEEDS])
                excess = early / theory[-1], found[:, -1].mean() / theory[-1]
                holds &= bool(np.all(found[:, 1:] / found[:, :1] < [0.2, 0.04, 0.01]))
                holds &= bool(np.all(np.abs(np.log(found.mean(0) / theory)) < np.log(2)))
            else:
                holds &= bool(np.all(found >= 0.4 * found[:, :1]))
            named = zip([*SEEDS, "theory"], [*found, theory], strict=True)
            table += [_row(f"cycle, a={a}, b={b}", name, ALPHAS, values) for name, values in named]
        factors = np.repeat(GRID, len(REPULSIONS)), np.tile(REPULSIONS, len(GRID))
        tuned = _regression(0, 4, *factors).reshape(len(GRID), -1)
        best = GRID[np.argmin(tuned, axis=0)]
        for seed in SEEDS:
            found = _regression(seed, 8, best, np.asarray(REPULSIONS))
            table.append(_row("regression", seed, REPULSIONS, found))
            holds &= bool(found[0] > found[1] > found[2])
        chosen = ", ".join(f"{c:g} at {alpha:g}" for c, alpha in zip(best, REPULSIONS, strict=True))
        linear = _linear(ALPHAS[-1], 0.8, 1.0, (LONG // 4, LONG, 4 * LONG))
    note = (
        "Columns are repulsions. Cycle: mean square times m^b. Regression: mean square. Chosen "
        f"factors: {chosen}. At repulsion 10 the error is {excess[0]:.2f} times that of the theory "
        f"after {LONG // 4} steps and {excess[1]:.2f} times after {LONG}."
    )
    why = (
        f"scale: the theory's limit is far at repulsion 10, where the error is {excess[1]:.2f} "
        f"times it after {LONG} steps; the linearized recursion gives "
        + ", ".join(f"{value:.2f} after {m}" for m, value in linear.items())
        + ", as the ratio of both step sizes falls like m^-0.2 only"
    )
    return Outcome(table, bool(holds), note, why)


def _linear(alpha, a, b, steps):
    """The mean square of the iterate over the theory's limit, after some steps of the recursion of
    the covariance of the iterate and the visits, linear about the target."""
    values, vectors = np.linalg.eigh(CYCLE.matrix())
    weights = np.where(values < 1 - 1e-9, (1 + values) / np.maximum(1 - values, 1e-9), 0) / 8
    both = np.concatenate([FIELD[None] @ vectors, vectors])
    noise = jnp.asarray((both * weights) @ both.T)
    pull = CYCLE.matrix() + np.eye(8)
    drift = np.zeros((9, 9))
    drift[0, 0], drift[0, 1:] = -1, -alpha * FIELD @ pull
    drift[1:, 1:] = -alpha * pull - np.eye(8)

    def one(covariance, m):
        sizes = (m + 1.0) ** -jnp.asarray([b, *[a] * 8])
        move = jnp.eye(9) + sizes[:, None] * drift
        covariance = move @ covariance @ move.T + sizes[:, None] * noise * sizes
        return covariance, covariance[0, 0] * (m + 1.0) ** b

    # Before, steps along the visits are too long for what is linear.
    found = jax.lax.scan(one, jnp.zeros((9, 9)), jnp.arange(50, max(steps) + 1))[1]
    return {m: float(found[m - 50]) / _theory(alpha, a, b) for m in steps}


def _row(problem, seed, repulsions, values):
    found = {f"{alpha:g}": float(v) for alpha, v in zip(repulsions, values, strict=True)}
    return {"problem": problem, "seed": seed, **found}


CYCLE = dd.simple_random_walk(dd.ring(8)).lazy(0.25)
FIELD = np.cos(2 * np.pi * np.arange(8) / 8) + np.cos(4 * np.pi * np.arange(8) / 8) / 2


def _theory(alpha, a, b):
    field, jacobian = FIELD[:, None], -np.eye(1)
    args = (CYCLE.matrix(), CYCLE.target, field, jacobian)
    return float(dd.asymptotic_covariance(*args, alpha, a, b)[0, 0])


def _last(algorithm, network, params, data, key, steps):
    """The parameters after some rounds, without a driver, so that runs batch."""
    state = algorithm.init(params, data, network, key)
    state, _ = jax.lax.scan(
        lambda state, key: (algorithm.round(state, data, network, key), None),
        state,
        jax.random.split(key, steps),
    )
    return jax.tree.map(lambda a: a[0], state.params)


def _cycle(seed, a, b, steps, alphas=ALPHAS):
    network = dd.Network.simulated(dd.ring(8))
    data = jnp.asarray(FIELD)

    def one(alpha, key):
        walk = dd.SelfRepellentWalk(CYCLE, alpha, a)
        token = dd.TokenSGD(lambda x, g: 0.5 * (x - g) ** 2, walk, b)
        return _last(token, network, jnp.zeros(8), data, key, steps)

    keys = jax.random.split(jax.random.key(seed), 100)
    runs = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    last = jax.jit(runs)(jnp.asarray(alphas), keys)
    return np.asarray(jnp.mean(last**2, axis=1)) * (steps + 1) ** b


@functools.cache
def _data():
    graph = nx.karate_club_graph()
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    # Sorted by label, so that the nodes' data differ.
    order = np.argsort(y, kind="stable")
    count = -(-len(y) // len(graph))
    rows = np.resize(order, count * len(graph)).reshape(len(graph), count)
    data = jnp.asarray(X[rows]), jnp.asarray(2.0 * y[rows] - 1)

    def loss(w, batch):
        return jnp.mean(jax.nn.softplus(-batch[1] * (batch[0] @ w))) + 0.05 * jnp.sum(w**2)

    total = lambda w: jnp.mean(jax.vmap(loss, (None, 0))(w, data))
    optimum = jnp.zeros(X.shape[1])
    for _ in range(20):  # Newton's method
        step = jnp.linalg.solve(jax.hessian(total)(optimum), jax.grad(total)(optimum))
        optimum = optimum - step
    return graph, data, loss, optimum


def _regression(seed, runs, factors, repulsions):
    graph, data, loss, optimum = _data()
    network = dd.Network.simulated(graph)
    chain = dd.metropolis_hastings(graph)

    def one(factor, alpha, key):
        token = dd.TokenSGD(loss, dd.SelfRepellentWalk(chain, alpha, 0.8), 0.9, factor)
        start = jnp.zeros((len(graph), len(optimum)))
        last = _last(token, network, start, data, key, STEPS)
        return jnp.sum((last - optimum) ** 2)

    keys = jax.random.split(jax.random.key(seed), runs)
    many = jax.vmap(jax.vmap(one, (None, None, 0)), (0, 0, None))
    found = jax.jit(many)(jnp.asarray(factors), jnp.asarray(repulsions), keys)
    return np.nan_to_num(np.asarray(jnp.mean(found, axis=1)), nan=np.inf)
