"""Maintained Kronecker projections against recomputed ones, and sketches against an adversary."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  (its LAPACK is that of compiled programs, loaded to be limited)
from threadpoolctl import threadpool_limits

from benchmarks.claims import Outcome
from jaxopt_ext import linalg

CLAIM = (
    "While a tenth of the eigenvalues drifts at each of 60 steps, queries at the threshold 0.05 "
    "are within 1.5 * 0.05 * |h| of the exact projection in both forms, on each of 3 seeds, and "
    "with m = 200 the time of an update with a query falls, relative to recomputing always, from "
    "n = 16 to 24 to 32, and is below it at 32. An adversary who adds up 200 queries that one "
    "sketch of size 16 answered too high errs it at least 4 times as much as a random query, and "
    "the private median of 9 of 15 sketches at most a third of that, on the mean of 20 "
    "repetitions, for each of 3 seeds."
)
SETTINGS = (
    "Nothing is chosen: the threshold is the claim's, the batch exponent 1/2, and epsilon 2 for "
    "each coordinate of an answer was set before the first run. LAPACK has one thread, for both "
    "sides: with two on a busy machine recomputing took six times the processor and ten times as "
    "long, and once, at n = 16 on seed 0, maintaining 0.44 of it. No run before the one reported "
    "ended; seeds 10 to 12."
)

ALONE = True

THRESHOLD, STEPS, ROUNDS, REPETITIONS = 0.05, 60, 200, 20
SIZES = (16, 24, 32)


def run() -> Outcome:
    with threadpool_limits(1), jax.enable_x64(True):
        table = [_row(seed) for seed in range(10, 13)]
    holds = all(
        max(r["error, one-sided"], r["error, two-sided"]) <= 1.5
        and r["time, n = 16"] > r["time, n = 24"] > r["time, n = 32"]
        and r["time, n = 32"] < 1
        and r["one sketch, attacked"] >= 4 * r["one sketch, random"]
        and r["median, attacked"] <= r["one sketch, attacked"] / 3
        for r in table
    )
    return Outcome(
        table,
        holds,
        "Errors of queries in units of the threshold; times relative to recomputing always; errors "
        "of sketches in the attacked coordinate, for queries of norm 1.",
        why="scale: the time relative to recomputing rises with n, from 0.70 to 0.97 at 16 to 1.08 "
        "to 1.23 at 32. An eigenvalue changes n entries, so that at m = 200 seven of them are of "
        "full rank at n = 32. Errors and sketches are as claimed",
    )


def _row(seed):
    errors = {}
    for name, form in (("one-sided", linalg.OneSided()), ("two-sided", linalg.TwoSided())):
        errors[f"error, {name}"] = _error(seed, form)
    return {
        "seed": seed,
        **errors,
        **{f"time, n = {n}": _time(seed, n) for n in SIZES},
        **_attacked(seed),
    }


def _draw(seed, n, m):
    rng = np.random.default_rng(seed)
    U, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return rng, rng.normal(size=(m, n * n)), U, rng.uniform(0.5, 2, n)


def _drift(rng, n):
    """Eigenvalues, from step to step, of which a tenth moves."""
    logs, path = np.zeros(n), []
    for _ in range(STEPS):
        logs = logs + 0.1 * rng.normal(size=n) * (rng.random(n) < 0.1)
        path.append(np.exp(logs))
    return path


@jax.jit
def _query(projection, h):
    return projection.query(h)


def _error(seed, form):
    rng, A, U, lam = _draw(seed, 8, 20)
    kept = linalg.KroneckerProjection.build(A, U, lam, form=form, threshold=THRESHOLD)
    exact = linalg.KroneckerProjection.build(A, U, lam, form=form, threshold=0.0)
    worst = 0.0
    for factor in _drift(rng, 8):
        kept, exact = kept.update(lam * factor), exact.update(lam * factor)
        h = rng.normal(size=64)
        gap = np.linalg.norm(_query(kept, h) - _query(exact.refresh(), h)) / np.linalg.norm(h)
        worst = max(worst, float(gap))
    return worst / THRESHOLD


def _time(seed, n):
    """Seconds of maintaining and querying over those of recomputing always."""
    rng, A, U, lam = _draw(seed, n, 200)
    path, h = _drift(rng, n), jnp.asarray(rng.normal(size=n * n))
    start = linalg.KroneckerProjection.build(A, U, lam, threshold=THRESHOLD)
    ways = {
        "kept": lambda p, lam: p.update(lam),
        "fresh": lambda p, lam: _given(p, lam).refresh(),
    }

    def seconds(way):
        projection, begin = start, time.perf_counter()
        for factor in path:
            projection = ways[way](projection, lam * factor)
            _query(projection, h).block_until_ready()
        return time.perf_counter() - begin

    for way in ways:
        seconds(way)  # compiled
    ratios = []
    for _ in range(3):
        turn = {way: seconds(way) for way in ways}
        ratios.append(turn["kept"] / turn["fresh"])
    return float(np.median(ratios))


def _given(projection, lam):
    return dataclasses.replace(projection, eigenvalues=jnp.asarray(lam))


@jax.jit
def _one(sketched, h, key):
    del key
    return sketched.answers(h)[0, 0]


@jax.jit
def _median(sketched, h, key):
    # Each coordinate has its own draws, and this one is all that is looked at.
    return sketched.median(sketched.answers(h)[:, :1], key)[0]


def _attacked(seed):
    rng, A, U, lam = _draw(seed, 8, 20)
    projection = linalg.KroneckerProjection.build(A, U, lam)
    median = linalg.PrivateMedian(9, 2.0)
    sums = {name: [] for name in ("one", "median", "random")}
    for k in range(REPETITIONS):
        key = jax.random.fold_in(jax.random.key(seed), k)
        sketched = linalg.SketchedProjection.build(projection, 16, 15, key, median=median)
        h = rng.normal(size=(ROUNDS, 64))
        h = jnp.asarray(h / np.linalg.norm(h, axis=1, keepdims=True))
        truth = projection.query(h)[:, 0]
        for name, answer in (("one", _one), ("median", _median)):
            noise = jax.random.split(jax.random.fold_in(key, 1), ROUNDS + 1)
            found = jax.vmap(answer, (None, 0, 0))(sketched, h, noise[:-1])
            total = jnp.sign(found - truth) @ h
            total = total / jnp.linalg.norm(total)
            gap = answer(sketched, total, noise[-1]) - projection.query(total)[0]
            sums[name].append(abs(float(gap)))
            if name == "one":
                sums["random"].append(float(jnp.mean(jnp.abs(found - truth))))
    return {
        "one sketch, random": float(np.mean(sums["random"])),
        "one sketch, attacked": float(np.mean(sums["one"])),
        "median, attacked": float(np.mean(sums["median"])),
    }
