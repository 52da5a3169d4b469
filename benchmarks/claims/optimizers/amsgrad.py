"""AMSGrad and AdamNC where Adam goes to the worst point."""

import jax.numpy as jnp
import optax

from jaxopt_ext.optimizers import OnlineCounterexample, adamnc, amsgrad

from .. import Outcome

CLAIM = (
    "On the convex online problem f_t(x) = 1010 x once in 101 rounds and -10 x else, x in [-1, "
    "1], with rates a / sqrt(t) and b2 = 0.99, Adam ends within 0.1 of the worst point after "
    "100,000 rounds for every a in {0.1, 0.5, 1}, while AMSGrad ends within 0.1 of the best for "
    "some a, with less than half of the mean regret that Adam has at its best a."
)
SETTINGS = "Deterministic; both sides take the best of the same three scales."

SCALES, ROUNDS = (0.1, 0.5, 1.0), 100_000


def run() -> Outcome:
    game, table = OnlineCounterexample(), []
    methods = {
        "Adam": lambda rate: optax.adam(rate, 0.9, 0.99),
        "AMSGrad": lambda rate: amsgrad(rate, 0.9, 0.99),
        "AdamNC": lambda rate: adamnc(rate, 0.9),
    }
    for name, method in methods.items():
        row = {"method": name}
        for scale in SCALES:
            point, regret = game.play(
                method(lambda t, scale=scale: scale / jnp.sqrt(t + 1)), ROUNDS
            )
            row |= {f"x, {scale:g}": point.item(), f"regret, {scale:g}": regret.item()}
        table.append(row)
    adam, mine, _ = table
    regret = [min(row[f"regret, {scale:g}"] for scale in SCALES) for row in (adam, mine)]
    holds = (
        all(adam[f"x, {scale:g}"] > 0.9 for scale in SCALES)
        and min(mine[f"x, {scale:g}"] for scale in SCALES) < -0.9
        and regret[1] < 0.5 * regret[0]
    )
    return Outcome(table, holds, "Deterministic; no seeds.")
