"""Search for the best decision of a sampler by evolution."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from ..core import checks
from .exponential import DataForm, NoiseForm
from .rank_predictor import RankModel, RankPredictor
from .schedules import AbstractSchedule
from .usf import (
    Decision,
    LinearRelaxation,
    MeanData,
    PseudoCorrector,
    StatisticsForm,
    Step,
    ZeroData,
)

_PARENTS = 15
_ROUNDS = 4  # of evolution on the predictor between two true evaluations


class Mutation(eqx.Module):
    """Random changes of decisions that keep the number of evaluations.

    In each step, and for each choice in turn with probability `rate`: the time at its end times
    $1 + N(0, 0.08^2)$, the order drawn from 1, ..., 4 with probabilities .2, .4, .3, .1, the form
    with .3, .3, .4, the first derivative from one or two outputs, the relaxation
    $c \\leftarrow c + N(0, 0.03^2)$, the corrector none or a pseudo one. With probability `rate`
    the first output is the model's, that of zero, or of the mean, with .3, .3, .4. With probability
    `length` each a step is cut in two, two are joined. Then steps are cut or joined until the
    number of evaluations is right again. Times that come too close are left as they were.

    **Arguments:**

    - `schedule`: the noise schedule; the first time stays, the last one is at least its end.
    - `statistics`: whether `StatisticsForm()` may be chosen.
    - `mean`: whether `MeanData()` may be chosen.
    - `rate`, `length`: probabilities.
    - `gap`: least distance of times in the logarithm of the signal-to-noise ratio.

    **Raises:** `ValueError` if a number leaves its range.

    **Reference:** Liu, Ning, Lin, Yang, Wang, A Unified Sampling Framework for Solver Searching of
    Diffusion Probabilistic Models, 2023, arXiv:2312.07243.
    """

    schedule: AbstractSchedule
    statistics: bool = False
    mean: bool = False
    rate: float = 0.3
    length: float = 0.2
    gap: float = 0.05

    def __check_init__(self):
        checks.interval("rate", self.rate, 0.0, 1.0)
        checks.interval("length", self.length, 0.0, 1.0)
        checks.positive("gap", self.gap)

    def mutate(self, decision: Decision, rng: np.random.Generator) -> Decision:
        """A changed decision of as many evaluations."""
        changed = lambda: rng.random() < self.rate
        times = np.array(decision.times)
        moved = times.copy()
        for i in range(1, len(times)):
            if changed():
                moved[i] *= 1 + 0.08 * rng.normal()
        times = self._kept(moved, times)
        steps = [self._step(step, changed, rng) for step in decision.steps]
        first = decision.first
        if changed():
            first = (None, ZeroData(), MeanData())[_draw(rng, (0.3, 0.3, 0.4 * self.mean))]
        if rng.random() < self.length:
            times, steps = self._cut(times, steps, rng)
        if rng.random() < self.length and len(steps) > 1:
            times, steps = self._join(times, steps, rng)
        return self._repaired(times, steps, first, decision.calls, rng)

    def cross(self, one: Decision, other: Decision, rng: np.random.Generator) -> Decision:
        """A decision with times and choices of both: each kind of choice from one of them, or each
        step; the first where their lengths differ."""
        if len(one.steps) != len(other.steps):
            return one
        pick = lambda a, b: a if rng.random() < 0.5 else b
        if rng.random() < 0.5:
            kinds = ("order", "form", "variant", "active", "corrector")
            source = {kind: pick(one, other) for kind in kinds}
            times = np.array(pick(one, other).times)
            steps = [
                Step(**{kind: getattr(source[kind].steps[i], kind) for kind in kinds})
                for i in range(len(one.steps))
            ]
        else:
            from_one = rng.random(len(one.steps)) < 0.5
            steps = [
                a if f else b for f, a, b in zip(from_one, one.steps, other.steps, strict=True)
            ]
            mixed = np.where(np.append(True, from_one), one.times, other.times)
            times = self._kept(mixed, np.array(one.times))
        return self._repaired(times, steps, pick(one, other).first, one.calls, rng)

    def _step(self, step, changed, rng):
        order, form, variant = step.order, step.form, step.variant
        active, corrector = step.active, step.corrector
        if changed():
            order = 1 + _draw(rng, (0.2, 0.4, 0.3, 0.1))
        if changed():
            forms = NoiseForm(), DataForm(), StatisticsForm()
            form = forms[_draw(rng, (0.3, 0.3, 0.4 * self.statistics))]
        if changed():
            active = (tuple(range(1, 2 + _draw(rng, (0.5, 0.5)))),)
        if changed():
            slope = variant.slope if isinstance(variant, LinearRelaxation) else 0.0
            variant = LinearRelaxation(float(slope + 0.03 * rng.normal()))
        if changed():
            corrector = (None, PseudoCorrector())[_draw(rng, (0.5, 0.5))]
        return Step(order, form, variant, active, corrector)

    def _kept(self, moved, times):
        """The moved times in order, or the others where some are out of range or too close."""
        moved = np.append(times[0], np.sort(moved[1:])[::-1])
        moved[-1] = max(moved[-1], self.schedule.end)
        if moved[1] >= moved[0] or np.any(moved[1:] < self.schedule.end):
            return times
        close = np.any(np.diff(self.schedule.log_snr(moved)) < self.gap)
        return times if close else moved

    def _cut(self, times, steps, rng):
        """A step in two, by the mean level, the longer ones rather."""
        levels = self.schedule.log_snr(times)
        lengths = np.diff(levels)
        if np.max(lengths) < 2 * self.gap:
            return times, steps
        i = _draw(rng, np.where(lengths < 2 * self.gap, 0.0, lengths))
        middle = self.schedule.time_at(0.5 * (levels[i] + levels[i + 1]))
        return np.insert(times, i + 1, middle), [*steps[: i + 1], *steps[i:]]

    def _join(self, times, steps, rng):
        i = int(rng.integers(1, len(steps)))
        return np.delete(times, i), [*steps[:i], *steps[i + 1 :]]

    def _repaired(self, times, steps, first, calls, rng) -> Decision:
        while True:
            # The last step is not corrected.
            *others, last = steps
            last = Step(last.order, last.form, last.variant, last.active)
            times_of = tuple(map(float, times))
            decision = Decision(times_of, (*others, last), first)
            if decision.calls == calls:
                return decision
            if decision.calls < calls:
                longer = self._cut(times, steps, rng)
                if len(longer[1]) == len(steps):
                    raise ValueError(f"gap leaves no room for {calls} evaluations, got {self.gap}")
                times, steps = longer
            else:
                times, steps = self._join(times, steps, rng)


def _draw(rng, weights) -> int:
    weights = np.asarray(weights, float)
    return int(rng.choice(len(weights), p=weights / weights.sum()))


class Searched(eqx.Module):
    """What `search` returns.

    **Attributes:**

    - `best`: the decision with the smallest loss.
    - `loss`: its loss, on what the search has seen: report another one.
    - `decisions`, `losses`: all that were evaluated, in order.
    - `history`: the smallest loss after each evaluation.
    """

    best: Decision
    loss: float
    decisions: tuple[Decision, ...]
    losses: Float[np.ndarray, " n"]
    history: Float[np.ndarray, " n"]


def search(
    evaluate: Callable[[Sequence[Decision]], Any],
    population: Sequence[Decision],
    budget: int,
    *,
    mutation: Mutation,
    predictor: RankPredictor | None = None,
    key: PRNGKeyArray,
    batch: int = 50,
) -> Searched:
    """The best decision, by evolution from known samplers.

    Children of the best 15 so far, crossed with probability 0.3 and then mutated, are evaluated
    `batch` at a time. With a predictor they are first bred for some rounds on its scores, and those
    that it ranks best are evaluated; it learns from all evaluations anew each time.

    What is chosen was seen: judge it by other starts than those of `evaluate`, which must use the
    same ones always.

    **Arguments:**

    - `evaluate`: from `batch` decisions to their losses, shape `(batch,)`; always so many, the
      last ones again where fewer are wanted, so that it is one program. Losses that are not finite
      are the worst.
    - `population`: decisions to begin with, all of as many evaluations of the model; mutants of
      them fill the first batch.
    - `budget`: decisions to evaluate; fewer are, where mutation finds no other.
    - `mutation`: a `Mutation`.
    - `predictor`: a `RankPredictor`, or `None` for plain evolution.
    - `key`: random key.
    - `batch`: decisions in a batch.

    **Returns:** a `Searched`.

    **Raises:** `ValueError` if there is no population, or with different numbers of evaluations, or
    more than the budget; `TypeError` if a part is none.

    **Reference:** Liu, Ning, Lin, Yang, Wang, A Unified Sampling Framework for Solver Searching of
    Diffusion Probabilistic Models, 2023, arXiv:2312.07243.
    """
    checks.count("budget", budget)
    checks.count("batch", batch)
    checks.instance("mutation", mutation, Mutation, "Mutation(schedule)")
    if predictor is not None:
        checks.instance("predictor", predictor, RankPredictor, "RankPredictor()")
    calls = {decision.calls for decision in population}
    if len(calls) != 1 or len(population) > budget:
        raise ValueError(
            f"population must have at most {budget} decisions of one number of evaluations, got "
            f"{len(population)} with {sorted(calls)}"
        )
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key), np.uint32))
    most = calls.pop() + 1
    seen: dict[Decision, float] = {}

    def ask(decisions):
        for i in range(0, len(decisions), batch):
            now = list(decisions[i : i + batch])
            losses = np.asarray(evaluate(now + [now[-1]] * (batch - len(now))), float)
            if losses.shape != (batch,):
                raise ValueError(f"evaluate must return shape {(batch,)}, got {losses.shape}")
            losses = np.where(np.isfinite(losses), losses, np.inf)[: len(now)]
            seen.update(zip(now, losses.tolist(), strict=True))

    start = list(dict.fromkeys(population))
    ask(_filled(start, start, min(max(batch, len(start)), budget), mutation, rng, seen))
    while len(seen) < budget:
        wanted = min(batch, budget - len(seen))
        best = sorted(seen, key=seen.__getitem__)[:_PARENTS]
        if predictor is None:
            new = _filled([], best, wanted, mutation, rng, seen)
        else:
            key, fitting = jax.random.split(key)
            model = predictor.fit(
                list(seen),
                np.array(list(seen.values())),
                mutation.schedule,
                fitting,
                most=most,
                room=budget,
            )
            new = _bred(model, best, wanted, 2 * batch, mutation, rng, seen)
        if not new:  # mutation makes nothing else
            break
        ask(new)
    losses = np.array(list(seen.values()))
    decisions = tuple(seen)
    at = int(np.argmin(losses))
    history = np.minimum.accumulate(losses)
    return Searched(decisions[at], float(losses[at]), decisions, losses, history)


def _child(parents, mutation, rng):
    pick = lambda: parents[int(rng.integers(len(parents)))]
    child = pick()
    if rng.random() < 0.3:
        child = mutation.cross(child, pick(), rng)
    return mutation.mutate(child, rng)


def _filled(start, parents, wanted, mutation, rng, seen) -> list[Decision]:
    """So many decisions that were not seen, beginning with those of `start`; fewer, where a
    thousand children in a row are old ones."""
    found, old = dict.fromkeys(start), 0
    while len(found) < wanted and old < 1000:
        child = _child(parents, mutation, rng)
        old = old + 1 if child in seen or child in found else 0
        if not old:
            found[child] = None
    return list(found)


def _bred(model: RankModel, best, wanted, count, mutation, rng, seen) -> list[Decision]:
    """What the model ranks best after some rounds of evolution on its scores."""
    pool: dict[Decision, float] = {}
    parents, ranked = list(best), []
    for _ in range(_ROUNDS):
        children = _filled([], parents, max(count, wanted), mutation, rng, {**seen, **pool})
        if not children:
            break
        pool.update(zip(children, model.predict(children).tolist(), strict=True))
        ranked = sorted(pool, key=pool.__getitem__, reverse=True)
        parents = [*ranked[:_PARENTS], *best[:5]]
    return ranked[:wanted]
