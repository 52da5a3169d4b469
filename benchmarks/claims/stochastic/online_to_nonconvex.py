"""Online-to-nonconvex conversion beside SGD, and its optimistic form beside the plain one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.stochastic import (
    BallGradientDescent,
    Last,
    Midpoint,
    OnlineToNonconvex,
    OptimisticBall,
    StochasticGradient,
    o2nc_parameters,
)

CLAIM = (
    "On a nonsmooth nonconvex fit, one sample a step, delta = 0.2, the mean over epochs of the "
    "norm of the mean gradient falls at least as N^-0.18 from N = 1,000 to 64,000 with the "
    "theory's parameters, on average over 5 seeds; both tuned, at N = 16,000, it is on each of "
    "them at most that of windows of SGD within the same delta; and on a smooth fit the optimistic "
    "instance meets 1e-4 within fewer gradients than the plain one on each."
)
SETTINGS = (
    "Both sides tuned on seeds 0 and 1, reported on 10 to 14. Windows of 8 to 64 points for both; "
    "steps of the learner by factors of two from 1 to 64 of D / (G sqrt T), those of SGD from 2^-8 "
    "to 2^-3, windows of which all stay within delta admitted. On the smooth fit epochs of 1, the "
    "shortest there is, to 256, and steps by factors of two from 1/2 to 32 for both; one round of "
    "guesses. Theory: G = 1 and the gap to F >= -0.2."
)
M, D, DELTA = 200, 10, 0.2
HORIZONS = (1000, 4000, 16_000, 64_000)
TUNED, STEPS = 16_000, 4000
EPOCHS = (8, 16, 32, 64)
FACTORS = tuple(2.0**k for k in range(7))
RATES = tuple(2.0**k for k in range(-8, -2))
LONG = (1, 16, 64, 256)
SIZES = tuple(2.0**k for k in range(-1, 6))
SEEDS, TUNING = (0, 1, *range(10, 15)), 2


def _data(seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(M, D)) / np.sqrt(D)
    x = rng.normal(size=D)
    c = A @ x + 0.3 * rng.normal(size=M)
    return A, c, x + 2 * rng.normal(size=D)


def _kinked(x, sample):
    a, c = sample
    r = a @ x - c
    return jnp.abs(r) - 0.2 * jnp.cos(3 * r)


def _rounded(x, sample):
    a, c = sample
    r = a @ x - c
    return jnp.sqrt(1 + r**2) - 0.2 * jnp.cos(3 * r)


def _gradients(points, A, c):
    """Of the kinked fit at all points, a block at a time."""

    def one(x):
        r = A @ x - c
        return (jnp.sign(r) + 0.6 * jnp.sin(3 * r)) @ A / M

    return jax.lax.map(one, points, batch_size=1000)


def _windows(points, gradients, T):
    """The mean norm of the mean gradient over windows of T points, and the largest radius."""
    K = len(points) // T
    cut = lambda a: a[: K * T].reshape(K, T, D)
    points, gradients = cut(points), cut(gradients)
    away = points - jnp.mean(points, axis=1, keepdims=True)
    norms = jnp.linalg.norm(jnp.mean(gradients, axis=1), axis=1)
    return jnp.mean(norms), jnp.max(jnp.linalg.norm(away, axis=2))


@functools.partial(jax.jit, static_argnums=(0, 1))
@functools.partial(jax.vmap, in_axes=(None, None, 0, None, None, None, None))
@functools.partial(jax.vmap, in_axes=(None, None, None, 0, 0, 0, 0))
def _converted(N, T, factor, A, c, start, seed):
    """Of the nonsmooth fit; the learner's step is this factor of that of the theory."""
    radius, steps = DELTA / T, N // T * T
    learner = BallGradientDescent(radius, factor * radius / T**0.5)
    solver = OnlineToNonconvex(learner, DELTA, T, output=Last(), max_steps=steps)
    follow = lambda problem, x, state: state.seen
    problem, key = jxt.FiniteSum(_kinked, data=(A, c)), jax.random.key(seed)
    points = jxt.solve(problem, solver, start, key=key, trace=follow).trace
    return jnp.stack(_windows(points, _gradients(points, A, c), T))


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None, None, None, None))
@functools.partial(jax.vmap, in_axes=(None, 0, 0, 0, 0))
def _descended(rate, A, c, start, seed):
    """Of SGD for all lengths of windows."""
    solver = StochasticGradient(rate, max_steps=TUNED)
    follow = lambda problem, x, state: x
    problem, key = jxt.FiniteSum(_kinked, data=(A, c)), jax.random.key(seed)
    points = jxt.solve(problem, solver, start, key=key, trace=follow).trace
    gradients = _gradients(points, A, c)
    return jnp.stack([jnp.stack(_windows(points, gradients, T)) for T in EPOCHS])


@functools.partial(jax.jit, static_argnums=(0, 1))
@functools.partial(jax.vmap, in_axes=(None, None, 0, None, None, None, None))
@functools.partial(jax.vmap, in_axes=(None, None, None, 0, 0, 0, 0))
def _asked(rounds, T, size, A, c, start, seed):
    """Gradients until an epoch's mean one is short; infinite if none is."""
    radius = DELTA / T
    plain = BallGradientDescent(radius, size)
    learner = OptimisticBall(radius, size, rounds) if rounds else plain
    steps = STEPS // (1 + rounds)
    solver = OnlineToNonconvex(learner, DELTA, T, Midpoint(), output=Last(), max_steps=steps)
    problem = jxt.Smooth(jxt.FiniteSum(_rounded, data=(A, c)).full_value)
    follow = lambda problem, x, state: state.epoch.norm
    short = jxt.solve(problem, solver, start, trace=follow).trace <= 1e-4
    return jnp.where(jnp.any(short), (1 + jnp.argmax(short)) * (1 + rounds), jnp.inf)


def _tuned(scores):
    """The place of the least mean over the seeds for tuning, seeds last, and whether it is inside
    of the grid."""
    means = np.mean(scores[..., :TUNING], axis=-1)
    best = np.unravel_index(np.argmin(means), means.shape)
    inside = [0 < i < n - 1 for i, n in zip(best, means.shape, strict=True)]
    return best, inside


def run() -> Outcome:
    parts = [np.stack(part) for part in zip(*map(_data, SEEDS), strict=True)]
    data = *(jnp.asarray(part, jnp.float32) for part in parts), jnp.asarray(SEEDS)
    table: list[dict[str, Any]] = [{"seed": seed} for seed in SEEDS[TUNING:]]

    # The least gap bound that all data have, so that they share one program.
    A, c, start = parts
    r = np.einsum("smd,sd->sm", A, start) - c
    gap = float(np.mean(np.abs(r) - 0.2 * np.cos(3 * r), axis=1).max()) + 0.2
    norms = []
    for N in HORIZONS:
        T = o2nc_parameters(N, DELTA, 1.0, gap).epoch
        found = np.asarray(_converted(N, T, jnp.ones(1), *data))[0, TUNING:]
        norms.append(found[:, 0])
        for row, value in zip(table, found, strict=True):
            row[f"N = {N}"] = float(value[0])
    slopes = np.polyfit(np.log(HORIZONS), np.log(norms), 1)[0]
    for row, value in zip(table, slopes, strict=True):
        row["slope"] = float(value)

    factors = jnp.asarray(FACTORS)
    ours = np.stack([np.asarray(_converted(TUNED, T, factors, *data)) for T in EPOCHS])[..., 0]
    peers = np.moveaxis(np.asarray(_descended(jnp.asarray(RATES), *data)), 2, 0)
    fits = np.max(peers[..., :TUNING, 1], axis=-1, keepdims=True) <= DELTA
    (i, j), inside = _tuned(ours)
    (k, l), more = _tuned(np.where(fits, peers[..., 0], np.inf))
    sizes = jnp.asarray(SIZES)
    plain = np.stack([np.asarray(_asked(0, T, sizes, *data)) for T in LONG])
    guessed = np.stack([np.asarray(_asked(1, T, sizes, *data)) for T in LONG])
    (p, q), plain_inside = _tuned(plain)
    (s, t), guessed_inside = _tuned(guessed)
    inside = all((*inside, *more, *plain_inside, guessed_inside[1], s < len(LONG) - 1))
    for n, row in enumerate(table, TUNING):
        row |= {
            "tuned": float(ours[i, j, n]),
            "SGD": float(peers[k, l, n, 0]),
            "its radius": float(peers[k, l, n, 1]),
            "optimistic": float(guessed[s, t, n]),
            "plain": float(plain[p, q, n]),
        }
    table.append(
        {
            "seed": "setting",
            "slope": float(np.mean(slopes)),
            "tuned": f"T {EPOCHS[i]}, {FACTORS[j]:g}",
            "SGD": f"T {EPOCHS[k]}, {RATES[l]:.2g}",
            "optimistic": f"T {LONG[s]}, {SIZES[t]:g}",
            "plain": f"T {LONG[p]}, {SIZES[q]:g}",
        }
    )
    falls = np.mean(slopes) <= -0.18
    ahead = all(row["tuned"] <= row["SGD"] for row in table[:-1])
    fewer = all(row["optimistic"] < row["plain"] for row in table[:-1])
    note = (
        f"it falls: {bool(falls)}; ahead of SGD: {ahead}; fewer gradients: {fewer}; ends of grids "
        f"{'not ' if inside else ''}hit. All norms are of true gradients, all epochs and windows "
        "counted from the first on. Epochs are within delta / 2 by construction, as lengths of "
        "steps add up to delta at most; windows of SGD within delta where seen. The slope is one "
        "of this function: where losses saturate norms are small at the start and fall little"
    )
    return Outcome(
        table,
        bool(falls and ahead and fewer and inside),
        note,
        why="paper: its rate is optimal in the worst case; here tuned SGD is as good, ahead by 9 "
        "and 3 % on two seeds, behind by 1 to 2 % on three",
    )
