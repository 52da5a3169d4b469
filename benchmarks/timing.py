"""Timing that survives a noisy machine: candidates take turns, and ratios are taken per turn."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def seconds(fun: Callable[[], Any]) -> float:
    """Wall seconds of one call, results waited for."""
    start = time.perf_counter()
    jax.block_until_ready(fun())
    return time.perf_counter() - start


@dataclasses.dataclass(frozen=True)
class Timing:
    """Median seconds of a candidate and its median ratio to the reference candidate."""

    name: str
    seconds: float
    ratio: float


def race(
    candidates: Mapping[str, Callable[[], Any]], *, reference: str, rounds: int = 7
) -> list[Timing]:
    """Time the candidates in turn, the second of two calls each.

    The first brings back what the candidate before pushed out of the caches.

    **Arguments:**

    - `candidates`: name to a function of no arguments.
    - `reference`: the candidate that ratios are taken against, round by round.
    - `rounds`: number of turns.
    """

    def second_call(fun):
        seconds(fun)
        return seconds(fun)

    for fun in candidates.values():
        seconds(fun)
    turns = [{name: second_call(fun) for name, fun in candidates.items()} for _ in range(rounds)]
    return [
        Timing(
            name,
            statistics.median(turn[name] for turn in turns),
            statistics.median(turn[name] / turn[reference] for turn in turns),
        )
        for name in candidates
    ]
