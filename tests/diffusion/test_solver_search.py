"""Mutations, the search and its predictor, on losses that cost nothing."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import (
    DataForm,
    Decision,
    ImplicitCorrector,
    LinearRelaxation,
    MeanData,
    Mutation,
    NoiseForm,
    PseudoCorrector,
    RankPredictor,
    StatisticsForm,
    Step,
    ZeroData,
    as_decision,
    rank_predictor,
    search,
)
from jaxopt_ext.diffusion.rank_predictor import encode

SCHEDULE = diffusion.VariancePreserving(start=1.0, end=0.01)
MUTATION = Mutation(SCHEDULE, statistics=True, mean=True)


def population(calls=5):
    return [
        as_decision(sampler, SCHEDULE, grid(SCHEDULE, calls))
        for sampler in (diffusion.DDIM(), diffusion.UniPC(2))
        for grid in (diffusion.uniform_log_snr, diffusion.uniform_time)
    ]


def loss(decision):
    """Made up: falls with orders, correctors and evenness of the times."""
    gaps = np.diff(np.sqrt(decision.times))
    orders = sum(abs(step.order - 3) + (step.corrector is None) for step in decision.steps)
    return 1 + 20 * np.var(gaps) + 0.1 * orders + (decision.first is None)


def evaluate(decisions):
    return np.array([loss(decision) for decision in decisions])


def test_mutants_cost_the_same_and_keep_the_rules():
    rng = np.random.default_rng(0)
    implicit = Step(2, corrector=ImplicitCorrector())
    start = [population()[0], Decision((1.0, 0.6, 0.3, 0.1, 0.02), (implicit,) * 3 + (Step(),))]
    assert {d.calls for d in population()} == {5}
    mutants = {}
    for first in start:
        found = first
        for _ in range(80):
            found = MUTATION.mutate(found, rng)
            mutants[found] = first
    kinds = {type(d.first) for d in mutants}
    assert kinds == {type(None), ZeroData, MeanData}
    assert {type(s.form) for d in mutants for s in d.steps} == {NoiseForm, DataForm, StatisticsForm}
    assert {s.order for d in mutants for s in d.steps} == {1, 2, 3, 4}
    assert any(isinstance(s.variant, LinearRelaxation) for d in mutants for s in d.steps)
    for found, first in mutants.items():
        assert found.calls == first.calls
        assert found.times[0] == 1.0
        assert found.times[-1] >= 0.01
        assert np.diff(SCHEDULE.log_snr(np.array(found.times))).min() >= 0.05
        assert found.steps[-1].corrector is None
    one, other = list(mutants)[40], list(mutants)[41]
    for _ in range(20):
        child = MUTATION.cross(one, other, rng)
        assert child.calls == one.calls
        assert len(child.steps) in (len(one.steps), len(other.steps))


def test_a_cross_takes_each_choice_from_a_parent():
    rng = np.random.default_rng(0)
    one, _, other, _ = population()
    found = {MUTATION.cross(one, other, rng) for _ in range(40)}
    assert len(found) > 8
    for child in found:
        assert child.times in (one.times, other.times) or set(child.times) <= {
            *one.times,
            *other.times,
        }
        for a, b, c in zip(one.steps, other.steps, child.steps, strict=True):
            assert c.order in (a.order, b.order)
            assert type(c.form) in (type(a.form), type(b.form))


def test_a_search_that_finds_nothing_else_ends():
    still = Mutation(SCHEDULE, rate=0.0, length=0.0)
    start = population()[:1]
    found = search(evaluate, start, 3, mutation=still, key=jax.random.key(0))
    assert found.decisions == tuple(start)


def test_search_keeps_its_budget_and_improves():
    sizes, start = [], population()

    def counted(decisions):
        sizes.append(len(decisions))
        found = evaluate(decisions)
        return np.where(found < 1.5, np.nan, found)  # too good to be finite

    run = lambda: search(counted, start, 130, mutation=MUTATION, key=jax.random.key(1))
    found, again = run(), run()
    assert sizes == [50] * 6
    assert len(found.decisions) == len(set(found.decisions)) == len(found.losses) == 130
    assert found.decisions[:4] == tuple(start)
    np.testing.assert_allclose(found.losses[:4], evaluate(start))
    np.testing.assert_array_equal(found.history, np.minimum.accumulate(found.losses))
    assert found.loss == found.history[-1] == loss(found.best) >= 1.5
    # Parents are the best: later ones are better than random mutants.
    assert np.median(found.losses[100:]) < np.median(found.losses[4:50]) - 0.1
    np.testing.assert_array_equal(found.losses, again.losses)


def test_features_of_a_decision():
    times = (1.0, 0.5, 0.2)
    steps = (
        Step(1, NoiseForm(), corrector=PseudoCorrector()),
        Step(2, DataForm(), LinearRelaxation(0.1), ((1, 2),)),
    )
    rows = encode(Decision(times, steps, MeanData()), SCHEDULE)
    levels = SCHEDULE.log_snr(np.array(times))
    h = levels[2] - levels[1]
    np.testing.assert_allclose(rows[:, 0], levels[1:] / 4)
    order, form, outputs, corrector = [1, 0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1, 0]
    first = [0, 0, 1]
    np.testing.assert_allclose(rows[0, 2:], [*order, *form, *outputs, 0, *corrector, *first])
    order, form, outputs, corrector = [0, 1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0, 0]
    wanted = [h, *order, *form, *outputs, -0.1 * h, *corrector, *first]
    np.testing.assert_allclose(rows[1, 1:], wanted, atol=1e-12)


def test_the_loss_of_pairs():
    """One recurrent network by hand, with a decision that ends before the others."""
    rng = np.random.default_rng(0)
    rows, mask = rng.normal(size=(3, 4, 5)), np.arange(4) < np.array([4, 2, 3])[:, None]
    member = eqx.filter_vmap(lambda key: rank_predictor._Member(5, 3, key))(
        jax.random.split(jax.random.key(0), 1)
    )
    losses, margin = np.array([0.3, 0.1, 0.3]), 0.1
    one = jax.tree.map(lambda a: np.asarray(a[0]), eqx.filter(member, eqx.is_array))
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    scores = []
    for decision, steps in zip(rows, mask.sum(1), strict=True):
        hidden = np.zeros(3)
        for row in decision[:steps]:
            seen = np.tanh(one.embedding.weight @ row + one.embedding.bias)
            inner = np.split(one.cell.weight_ih @ seen + one.cell.bias, 3)
            outer = np.split(one.cell.weight_hh @ hidden, 3)
            reset, update = (sigmoid(inner[k] + outer[k]) for k in (0, 1))
            new = np.tanh(inner[2] + reset * (outer[2] + one.cell.bias_n))
            hidden = new + update * (hidden - new)
        scores.append(one.out.weight @ hidden + one.out.bias)
    scores = np.array(scores)[:, 0]
    wanted = np.mean([max(0.0, margin - (scores[1] - scores[j])) for j in (0, 2)])
    batch = (jnp.asarray(rows), jnp.asarray(mask), jnp.asarray(losses), margin)
    found, _ = eqx.filter_jit(rank_predictor._loss)(member, batch, None)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert wanted > 0


@pytest.mark.slow
def test_the_predictor_ranks_decisions_that_it_has_not_seen():
    rng = np.random.default_rng(0)
    start = population()
    found = [MUTATION.mutate(start[rng.integers(4)], rng) for _ in range(300)]
    losses = evaluate(found)
    predictor = RankPredictor(width=16, members=2)
    options = {"most": 6, "room": 300}
    model = predictor.fit(found[:200], losses[:200], SCHEDULE, jax.random.key(0), **options)
    scores = model.predict(found[200:])
    assert spearmanr(scores, -losses[200:]).statistic > 0.5
    with pytest.raises(ValueError, match="room for 300"):
        predictor.fit(found, losses, SCHEDULE, jax.random.key(0), room=10)
    with pytest.raises(ValueError, match="at most 2 steps"):
        predictor.fit(found, losses, SCHEDULE, jax.random.key(0), most=2)


@pytest.mark.slow
def test_search_with_a_predictor():
    options = {"mutation": MUTATION, "key": jax.random.key(0), "batch": 20}
    plain = search(evaluate, population(), 120, **options)
    found = search(evaluate, population(), 120, predictor=RankPredictor(), **options)
    assert found.losses.shape == (120,)
    assert found.loss <= plain.loss
    assert np.median(found.losses[60:]) < np.median(plain.losses[60:])


def test_bad_input():
    options = {"mutation": MUTATION, "key": jax.random.key(0)}
    for make, error in (
        (lambda: search(evaluate, population(), 3, **options), "at most 3 decisions"),
        (lambda: search(evaluate, [], 3, **options), "at most 3 decisions"),
        (lambda: search(lambda d: np.zeros(3), population(), 9, **options), "must return shape"),
        (lambda: search(evaluate, [*population(), *population(6)], 9, **options), "one number"),
        (lambda: Mutation(SCHEDULE, rate=2.0), "rate"),
        (lambda: RankPredictor(margin=-1.0), "margin"),
    ):
        with pytest.raises(ValueError, match=error):
            make()
    with pytest.raises(TypeError):
        search(evaluate, population(), 9, mutation=0.3, key=jax.random.key(0))
