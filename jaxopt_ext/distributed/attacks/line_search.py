"""An attack fitted to the rule that it meets."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import checks, loops
from ...core.rows import average
from ..robust import AbstractAggregator
from ..robust.rows import row_norms
from .attack import AbstractAttack, deviation, repeated

Rows = Float[Array, "m d"]
Row = Float[Array, " d"]


def against_mean(good: Rows) -> Row:
    """The direction $-\\mu$ of `InnerProduct`."""
    return -average(good)


def against_deviation(good: Rows) -> Row:
    """The direction $-\\sigma$ of `ALIE`; it needs two good rows."""
    if len(good) < 2:
        raise ValueError(f"a deviation needs two good rows, got {len(good)}")
    return -deviation(good)


class LineSearch(AbstractAttack):
    """All send $\\mu + c\\, r$ with the $c \\ge 0$ that moves the result of a rule farthest from
    $\\mu$, the mean of the good messages, among a number of trials.

    The factor is doubled from 1 for as long as that helps; the other trials close in on the best
    one from alternating sides, at distances that shrink by 0.8.

    **Arguments:**

    - `f`: the number of bad nodes; static.
    - `direction`: $r$, from the matrix of good rows: `against_mean`, `against_deviation`.
    - `rule`: an aggregator, or a function of the matrix of all $m$ rows, the good ones first: a
      rule that looks at a pivot or a state, say, or the mean of what many nodes make of them.
    - `trials`: how often the rule is tried; static.

    **Reference:** Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, Robust Collaborative
    Learning with Linear Gradient Overhead, 2023, arXiv:2210.00253. Shejwalkar, Houmansadr,
    Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
    Learning, 2021.
    """

    f: int = eqx.field(static=True)
    direction: Callable[[Rows], Row]
    rule: AbstractAggregator | Callable[[Rows], Row]
    trials: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        checks.count("f", self.f, 0)
        checks.count("trials", self.trials)
        for name in ("direction", "rule"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} must be callable, got {getattr(self, name)!r}")

    def send(self, good, key, state, own):
        mean, direction = average(good), self.direction(good)
        bad = lambda c: repeated(mean + c * direction, self.f)

        def harm(c):
            rows = jnp.concatenate([good, bad(c)])
            if isinstance(self.rule, AbstractAggregator):
                found = self.rule.aggregate(rows, key=key)
            else:
                found = self.rule(rows)
            moved = row_norms(found - mean)
            return jnp.where(jnp.isnan(moved), -jnp.inf, moved)

        def step(i, carry):
            best, value, width, growing = carry
            # The first trial is 1, and 0 is known to do nothing that honest nodes would not.
            side = jnp.where(growing | (i % 2 == 0), 1, -1).astype(good.dtype)
            trial = jnp.maximum(best + side * width, 0)
            found = harm(trial)
            better = found > value
            growing = growing & better
            width = jnp.where(growing, 2 * width, 0.8 * width)
            best = jnp.where(better, trial, best)
            return best, jnp.where(better, found, value), width, growing

        zero = jnp.zeros((), good.dtype)
        start = (zero, harm(zero), zero + 1, jnp.asarray(True))
        return bad(loops.fori_loop(0, self.trials - 1, step, start)[0])
