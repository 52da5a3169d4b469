"""AdEMAMix against Adam in a valley, under noise, and on text."""

import jax
import jax.numpy as jnp
import optax

from jaxopt_ext.optimizers import ademamix

from .. import Outcome
from . import _characters as characters
from ._toys import ROSENBROCK_START, descend, rosenbrock

CLAIM = (
    "At Adam's own rate AdEMAMix (alpha 5, schedules over the run) brings Rosenbrock's function "
    "in 8000 steps (rate 3e-4, b3 0.999) to at most 0.1 of Adam's value, and a quadratic with "
    "eigenvalues from 1e-3 to 1 under unit noise in 4000 steps (rate 1e-3, b3 0.999) to at most "
    "half of Adam's excess (mean of 3 seeds); on a small character transformer (b3 0.992) its "
    "validation loss after 400 steps is not above Adam's, each at its best rate in {1e-3, 3e-3, "
    "1e-2} (mean of 3 seeds)."
)
SETTINGS = (
    "On text, rates from one grid for both, chosen by validation loss on 3 keys; three others are "
    "reported. Adam is best at the longest, 1e-2, and at 3e-2, off the grid, worse than there "
    "after 250 steps (see Adafactor). b3 was set on the keys of seed 0, by the half-life in the "
    "paper's shortest runs, after a first try that lost; the noisy quadratic is reported on keys "
    "of seed 10."
)

EIGENVALUES = jnp.logspace(-3, 0, 100).astype(jnp.float32)
TEXT_STEPS, TEXT_RATES = 400, (1e-3, 3e-3, 1e-2)


def excess(tx):
    quadratic = lambda x: 0.5 * jnp.sum(EIGENVALUES * x**2)
    noise = lambda key, g: g + jax.random.normal(key, g.shape, g.dtype)
    start = 3 * jnp.ones(100, jnp.float32)
    one = lambda key: quadratic(descend(tx, quadratic, start, 4000, noise=noise, key=key))
    return jax.vmap(one)(jax.random.split(jax.random.key(10), 3)).mean().item()


def on_text(method):
    tuning, best, reported = characters.race(method, TEXT_RATES, TEXT_STEPS)
    row = {f"text, {rate:g}": loss for rate, loss in zip(TEXT_RATES, tuning, strict=True)}
    return row | {"rate on text": best, "text": reported}


def mixed(rate, b3, length):
    return ademamix(rate, b3=b3, T_alpha=length, T_beta3=length)


def run() -> Outcome:
    table = []
    for name, valley, noisy, text in (
        ("Adam", optax.adam(3e-4), optax.adam, optax.adam),
        (
            "AdEMAMix",
            mixed(3e-4, 0.999, 8000),
            lambda rate: mixed(rate, 0.999, 4000),
            lambda rate: mixed(rate, 0.992, TEXT_STEPS),
        ),
    ):
        final = rosenbrock(descend(valley, rosenbrock, ROSENBROCK_START, 8000))
        row = {"method": name, "Rosenbrock": final.item()}
        row |= {f"excess, {rate:g}": excess(noisy(rate)) for rate in (3e-4, 1e-3, 3e-3)}
        table.append(row | on_text(text))
    adam, mine = table
    holds = (
        mine["Rosenbrock"] <= 0.1 * adam["Rosenbrock"]
        and mine["excess, 0.001"] <= 0.5 * adam["excess, 0.001"]
        and mine["text"] <= adam["text"]
    )
    return Outcome(
        table,
        holds,
        "Text by rate is on the keys that choose, the last column on those reported. There b3 "
        "gives a half-life of a fifth of the run, as 0.9999 does in the paper's shortest runs of "
        "32,000 steps. A first try, on other seeds, had a half-life beyond the run's end, b3 "
        "0.9999 under noise and 0.999 on text, and lost: excess 61 against 10, text 2.52 "
        "against 2.28.",
    )
