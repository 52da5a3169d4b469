"""Cyclic blocks with variance reduction beside cyclic SGD and beside PAGE on all blocks at once."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.datasets

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.stochastic import (
    CyclicProximal,
    StochasticGradient,
    VarianceReducedCyclic,
    cyclic_step,
    estimators,
    quadratic_constants,
)

CLAIM = (
    "On noisy least squares in 5 blocks, within 200 passes over the data the objective gap of "
    "cyclic descent with variance reduction falls below 1e-12, and that of cyclic SGD at its best "
    "constant step size stays above 1e-4, on each of 5 seeds."
)
SETTINGS = (
    "Step sizes are tuned on seeds 0 and 1 over powers of 2 from 2^-10 / L to 2 / L for each "
    "method; seeds 10 to 14 are reported. Small batches of 23; the probability of a full gradient "
    "is that of the paper, 23 / 523. The network has its step sizes from the same seeds, by the "
    "loss, over powers of 2 from 1/16 to 8, and small batches of 32."
)
N, D, BLOCKS, SMALL, PASSES = 500, 50, 5, 23, 200
GRID = tuple(2.0**k for k in range(-10, 2))
MEAN = (SMALL * N + N * 2 * SMALL) / (N + SMALL)  # samples of a cycle
CYCLES = int(0.9 * PASSES * N / MEAN)
METHODS = {
    "VRO-CCD": lambda t: VarianceReducedCyclic(
        t, small_batch=SMALL, blocks=BLOCKS, max_steps=CYCLES
    ),
    "C-SGD": lambda t: VarianceReducedCyclic(
        t, SMALL, SMALL, 1.0, BLOCKS, max_steps=PASSES * N // SMALL
    ),
    "PAGE": lambda t: StochasticGradient(t, estimators.PAGE(None, SMALL), max_steps=CYCLES),
    "P-CCD": lambda t: CyclicProximal(t, BLOCKS, tol=0.0, max_steps=PASSES),
    "GD": lambda t: CyclicProximal(t, 1, tol=0.0, max_steps=PASSES),
}

LAYERS, NET_SMALL, NET_PASSES = (64, 48, 32, 10), 32, 30
NET_GRID = tuple(2.0**k for k in range(-4, 4))
IMAGES, LABELS = sklearn.datasets.load_digits(return_X_y=True)
NET_MEAN = 3 * NET_SMALL * len(LABELS) / (len(LABELS) + NET_SMALL)  # as that of a cycle above
NET_CYCLES = int(NET_PASSES * len(LABELS) / NET_MEAN)
NET_METHODS = {  # layers are the blocks
    "VRO-CCD": lambda t: VarianceReducedCyclic(t, small_batch=NET_SMALL, max_steps=NET_CYCLES),
    "PAGE": lambda t: StochasticGradient(t, estimators.PAGE(None, NET_SMALL), max_steps=NET_CYCLES),
    "SGD": lambda t: StochasticGradient(
        t, estimators.Minibatch(NET_SMALL), max_steps=NET_PASSES * len(LABELS) // NET_SMALL
    ),
}


def _fit(w, row):
    return 0.5 * (row[0] @ w - row[1]) ** 2


def _data(seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, D))
    y = X @ rng.normal(size=D) + rng.normal(size=N)
    best = np.linalg.lstsq(X, y, rcond=None)[0]
    return tuple(map(jnp.asarray, (X, y, best))), np.linalg.eigvalsh(X.T @ X / N)[-1]


def _compiled(make):
    @jax.jit
    def run(steps, X, y, best, key):
        problem = jxt.FiniteSum(_fit, data=(X, y), chunk=None)

        def gap(step):
            found = jxt.solve(problem, make(step), jnp.zeros(D), key=key)
            # Exact for a quadratic, and without the rounding of a difference.
            value = 0.5 * jnp.mean((X @ (found.value - best)) ** 2)
            return jnp.where(jnp.isfinite(value), value, jnp.inf), found.state.samples

        return jax.lax.map(gap, steps)

    return run


def _network_loss(layers, row):
    x, label = row
    for W, b in layers[:-1]:
        x = jnp.tanh(W @ x + b)
    W, b = layers[-1]
    return -jax.nn.log_softmax(W @ x + b)[label]


def _trained(make):
    """The norm of the gradient and the loss behind 30 passes, of each step size."""

    @jax.jit
    def run(steps, key):
        data = jnp.asarray(IMAGES / 16, jnp.float32), jnp.asarray(LABELS)
        problem = jxt.FiniteSum(_network_loss, data=data, chunk=None)
        first, rest = jax.random.split(key)
        keys = jax.random.split(first, 3)
        start = tuple(
            (jax.random.normal(k, (b, a), jnp.float32) / a**0.5, jnp.zeros(b, jnp.float32))
            for k, (a, b) in zip(keys, itertools.pairwise(LAYERS), strict=True)
        )

        def ends(step):
            x = jxt.solve(problem, make(step), start, key=rest).value
            loss, slope = jax.value_and_grad(problem.full_value)(x)
            return jnp.nan_to_num(jnp.stack([jxt.tree.norm(slope), loss]), nan=jnp.inf)

        return jax.lax.map(ends, steps)

    return run


def _networks():
    """What is reported of the network: of each method its step size, and a row for each seed.

    By the loss, since an output that is saturated has no gradient either."""
    chosen: dict[str, float] = {}
    table: dict[int, dict[str, float]] = {seed: {} for seed in range(10, 15)}
    for name, make in NET_METHODS.items():
        fun, steps = _trained(make), jnp.asarray(NET_GRID, jnp.float32)
        scores = [fun(steps, jax.random.key(seed))[:, 1] for seed in (0, 1)]
        best = int(np.argmin(np.sum(np.log(np.asarray(scores)), axis=0)))
        chosen[f"net {name}"] = NET_GRID[best]
        for seed, row in table.items():
            norm, loss = fun(steps[best : best + 1], jax.random.key(seed))[0]
            row |= {f"net {name}": float(norm), f"loss {name}": float(loss)}
    return chosen, table


def _order(networks):
    count = lambda name: sum(row["loss VRO-CCD"] < row[f"loss {name}"] for row in networks.values())
    return (
        f"VRO-CCD ends below PAGE on {count('PAGE')} and below SGD on {count('SGD')} of "
        f"{len(networks)} seeds"
    )


def run() -> Outcome:
    steps, networks = _networks()
    with jax.enable_x64(True):
        return _run(steps, networks)


def _run(steps, networks) -> Outcome:
    runs = {name: _compiled(make) for name, make in METHODS.items()}
    chosen = {}
    for name, fun in runs.items():
        score = 0
        for seed in (0, 1):
            data, L = _data(seed)
            gaps, _ = fun(jnp.asarray(GRID) / L, *data, jax.random.key(seed))
            score = score + np.log(np.maximum(np.asarray(gaps), 1e-28))
        chosen[name] = int(np.argmin(score))
    inside = all(0 < k < len(GRID) - 1 for name, k in chosen.items())
    head = {"seed": "step size * L"} | {name: GRID[k] for name, k in chosen.items()} | steps
    rows: list[dict[str, float]] = []
    early = {
        "P-CCD, 10": _compiled(lambda t: CyclicProximal(t, BLOCKS, tol=0.0, max_steps=10)),
        "GD, 10": _compiled(lambda t: CyclicProximal(t, 1, tol=0.0, max_steps=10)),
    }
    passes = []
    for seed in range(10, 15):
        data, L = _data(seed)
        row: dict[str, float] = {"seed": seed}
        for name, fun in runs.items():
            gaps, samples = fun(jnp.asarray([GRID[chosen[name]]]) / L, *data, jax.random.key(seed))
            row[name] = float(gaps[0])
            if name == "VRO-CCD":
                passes.append(float(samples[0]) / N)
        bound = cyclic_step(L, quadratic_constants(data[0].T @ data[0] / N, BLOCKS), BLOCKS)
        for (name, fun), step in zip(early.items(), (bound, 1 / L), strict=True):
            row[name] = float(fun(jnp.asarray([step]), *data, jax.random.key(0))[0][0])
        rows.append(row | networks[seed])
    reached = all(row["VRO-CCD"] < 1e-12 and row["C-SGD"] > 1e-4 for row in rows)
    holds = inside and max(passes) <= PASSES and reached
    note = (
        f"objective gaps; passes of VRO-CCD: {min(passes):.0f} to {max(passes):.0f}, by coins; "
        f"the grid's ends are {'not ' if inside else ''}hit. P-CCD and GD take full gradients, "
        "the columns of 10 after 10 cycles with the step of `cyclic_step`, and with 1 / L. That "
        "cyclic blocks beat PAGE on all blocks is not claimed. Reported alone: a network "
        "64-48-32-10 of tanh on all digits, its layers the blocks, by the norm of the gradient and "
        "the loss behind 30 passes, below its step sizes; " + _order(networks)
    )
    return Outcome([head, *rows], bool(holds), note)
