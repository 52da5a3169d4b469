"""Order-agnostic models with exact conditionals against enumeration; policies against brute force;
the coder against what it coded."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_ext import diffusion, training

STATES = np.array(list(itertools.product(range(3), repeat=4)))
JOINT = np.random.default_rng(0).gamma(0.5, size=len(STATES)) + 1e-3
JOINT /= JOINT.sum()
ORDERS = np.array([np.argsort(p) for p in itertools.permutations(range(4))])


class Exact(eqx.Module):
    """The conditionals of a table, as a network."""

    levels: np.ndarray
    upscale: bool = eqx.field(static=True)
    model: diffusion.Upscale | None = None

    def __call__(self, x, known, *place):
        stage = place[0] if self.upscale else 0
        # Which state shows which symbol; one that shows all those that are there is possible.
        symbols = jnp.array(self.levels[:, STATES, None] == np.arange(3), float)
        there = (x[:, None] == jnp.arange(3)).astype(float)
        hits = jnp.einsum("sdk,dk->s", symbols[stage + 1], there * known[:, None])
        if self.upscale:
            hits += jnp.einsum("sdk,dk->s", symbols[stage], there * ~known[:, None])
        else:
            hits += jnp.sum(~known)
        weights = jnp.where(hits == 4, jnp.array(JOINT), 0.0)
        here = np.array(STATES[:, :, None] == np.arange(3), float)
        data = jnp.log(jnp.einsum("s,sdk->dk", weights, here) + 1e-300)
        if not isinstance(self.model, diffusion.Upscale):
            return data
        ranks, count = jnp.array(self.model.ranks)[stage], self.model.branch
        symbol = ranks[:, None] == jnp.arange(count)
        mass = jnp.log(jnp.exp(data) @ symbol + 1e-300)
        return jnp.broadcast_to(mass[:, None, :], (4, self.model.stages, count))


def agnostic():
    levels = np.array([[0, 0, 0], [0, 1, 2]])
    return diffusion.OrderAgnostic(Exact(levels, False), 4, 3)


def upscale(levels, direct):
    bare = diffusion.Upscale(lambda *a: None, 4, levels)
    if direct:
        return diffusion.Upscale(Exact(levels, True, bare), 4, levels)
    return diffusion.Upscale(Exact(levels, True), 4, levels, diffusion.DataLogits())


def test_every_order_has_the_probability_of_the_table():
    model = agnostic()
    found = jax.jit(jax.vmap(jax.vmap(model.log_prob, in_axes=(None, 0)), in_axes=(0, None)))(
        jnp.array(STATES), jnp.array(ORDERS)
    )
    np.testing.assert_allclose(found, np.broadcast_to(np.log(JOINT)[:, None], (81, 24)), rtol=1e-9)


def test_the_bound_over_all_orders_and_steps_is_the_entropy():
    model = agnostic()
    term = jax.vmap(model.terms, in_axes=(None, 0, None, None))

    def means(x):
        each = lambda t: jnp.sum(term(x, jnp.array(ORDERS), 0, t)) / (24 * (4 - t))
        return jax.vmap(each)(jnp.arange(4))

    steps = JOINT @ np.asarray(jax.jit(jax.vmap(means))(jnp.array(STATES)))
    np.testing.assert_allclose(steps.sum(), JOINT @ np.log(JOINT), rtol=1e-10)
    assert np.all(np.diff(steps) > 0)  # the more is known, the easier is what is left
    # Draws of the bound, of its steps and of a policy's bound are unbiased.
    rows = np.random.default_rng(1).choice(81, 4000, p=JOINT)
    policy = np.array([0, 1, 3])

    @jax.jit
    def bounds(x, key):
        keys = jax.random.split(key, 4000)
        each = model.elbo, lambda x, k: model.elbo(x, k, policy=policy), model.elbo_per_step
        loss = diffusion.AutoregressiveLoss()(model, x, training.Context(key, 0, None))[0]
        return [*(jax.vmap(bound)(x, keys) for bound in each), loss]

    found = bounds(jnp.array(STATES[rows]), jax.random.key(0))
    whole, planned, each, loss = map(np.asarray, found)
    for draws, wanted in ((whole, steps.sum()), (planned, steps[0] + 2 * steps[1] + steps[3])):
        assert abs(draws.mean() - wanted) < 4 * draws.std() / 4000**0.5
    assert np.all(np.abs(each.mean(0) - steps) < 4 * each.std(0) / 4000**0.5)
    # The loss is in bits, of one coordinate.
    bits = 4 * np.log(2)
    assert abs(loss + steps.sum() / bits) < 4 * whole.std() / bits / 4000**0.5


LEVELS = {
    "bits": diffusion.digit_levels(3, 2),
    "pairs": np.array([[1, 1, 1], [0, 1, 0], [0, 1, 2]]),
}


def test_levels_keep_the_leading_digits():
    levels = diffusion.digit_levels(11, 3)
    assert levels.shape == (4, 11)
    np.testing.assert_array_equal(levels[1], [0] * 9 + [9, 9])
    np.testing.assert_array_equal(levels[2], [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9])
    model = diffusion.Upscale(lambda *a: None, 11, levels)

    @jax.jit
    def values(x):
        value, found = jnp.zeros(11, int), []
        for stage in range(3):
            value = model.put(value, stage, model.symbols(x, stage))
            found.append(value)
        return found

    for found, wanted in zip(values(jnp.arange(11)), levels[1:], strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("levels", ["bits", pytest.param("pairs", marks=pytest.mark.slow)])
@pytest.mark.parametrize("direct", [True, False])
def test_stages_together_have_the_probability_of_the_table(levels, direct):
    with pytest.raises(ValueError, match="nested"):
        diffusion.Upscale(lambda *a: None, 4, np.array([[0, 0, 0], [1, 1, 0], [0, 1, 2]]))
    # a representative that is not its own
    chosen = np.array([[0, 0, 0], [0, 1, 0], [0, 1, 2]]) if levels == "pairs" else LEVELS[levels]
    model = upscale(chosen, direct)
    orders = jnp.array(ORDERS[[5, 17]])
    found = jax.jit(jax.vmap(lambda x: model.log_prob(x, orders)))(jnp.array(STATES))
    np.testing.assert_allclose(found, np.log(JOINT), rtol=1e-9)


@pytest.mark.always(1)  # each of its stages is drawn in any order
@pytest.mark.parametrize("kind", ["upscale", "agnostic"])
def test_samples_have_the_law_of_the_table(kind):
    model = agnostic() if kind == "agnostic" else upscale(LEVELS["bits"], False)
    draws = np.asarray(jax.jit(lambda key: model.sample(key, 20_000))(jax.random.key(0)))
    counts = np.bincount(draws @ [27, 9, 3, 1], minlength=81) / len(draws)
    assert np.abs(counts - JOINT).max() < 5 * np.sqrt(JOINT.max() / len(draws))
    assert np.abs(counts - JOINT).sum() < 0.06


@pytest.mark.slow  # policies are those of the coder, and draws those of the test above
def test_one_call_for_all_coordinates_has_independent_ones():
    model = agnostic()
    run = jax.jit(lambda key: model.sample(key, 20_000, np.array([0])))
    draws = np.asarray(run(jax.random.key(0)))
    for i in range(4):
        shares = [JOINT[STATES[:, i] == v].sum() for v in range(3)]
        assert np.abs(np.bincount(draws[:, i], minlength=3) / 20_000 - shares).max() < 0.02
    pairs = np.cov(draws.T)
    assert np.abs(pairs - np.diag(np.diag(pairs))).max() < 0.02


@pytest.mark.parametrize(
    "budgets",
    [(3, 12), pytest.param(tuple(range(1, 13)), marks=pytest.mark.slow)],
)
def test_the_best_policy_equals_brute_force(budgets):
    loss = np.sort(np.random.default_rng(3).exponential(size=12))[::-1] + 0.1
    last = np.inf

    @functools.partial(jax.jit, static_argnums=1)
    def costs(loss, budget):
        policies = diffusion.optimal_policy(loss, budget), diffusion.naive_policy(12, budget)
        return [diffusion.policy_cost(loss, policy) for policy in policies]

    for budget in budgets:
        cost, naive = map(float, costs(jnp.array(loss), budget))
        best = min(
            np.dot(np.diff([0, *rest, 12]), loss[[0, *rest]])
            for rest in itertools.combinations(range(1, 12), budget - 1)
        )
        np.testing.assert_allclose(cost, best, rtol=1e-12)
        assert cost <= naive + 1e-12
        assert cost < last
        last = cost
    np.testing.assert_allclose(last, loss.sum())


@pytest.mark.slow  # the loss above is the bound only if each is drawn as often
def test_steps_are_spread_over_the_batch():
    draw = jax.vmap(lambda k: diffusion.antithetic_steps(k, 8, 12))
    many = np.asarray(jax.jit(lambda key: draw(jax.random.split(key, 3000)))(jax.random.key(1)))
    assert all(np.all(np.bincount(steps // 3, minlength=4) == 2) for steps in many)
    shares = np.bincount(many.ravel(), minlength=12) / many.size
    assert np.abs(shares - 1 / 12).max() < 0.01


@pytest.mark.always(1)
@pytest.mark.parametrize(("kind", "policy"), [("upscale", [0, 1, 3]), ("agnostic", None)])
def test_what_is_decoded_is_what_was_encoded(kind, policy):
    model = agnostic() if kind == "agnostic" else upscale(LEVELS["bits"], True)
    policy = None if policy is None else jnp.array(policy)
    rng = np.random.default_rng(0)
    x = STATES[rng.choice(81, 300, p=JOINT)]
    key = jax.random.key(5)
    data = diffusion.compress(model, x, key, policy)
    np.testing.assert_array_equal(diffusion.decompress(model, data, key, policy), x)

    # The programs of these draws are those of the coder.
    keys = jax.random.split(key, model.stages)
    orders = np.stack([np.asarray(jax.random.permutation(k, 4)) for k in keys])
    logs = jax.jit(jax.vmap(lambda x, orders: model.log_prob(x, orders, policy), (0, None)))
    bits = -np.sum(np.asarray(logs(jnp.array(x), jnp.array(orders)))) / np.log(2)
    assert bits - 1 < 8 * len(data) < 1.02 * bits + 64 * 300 + 32
    with pytest.raises(ValueError, match=r"data|hold"):
        diffusion.decompress(model, data[:-4], key, policy)
    with pytest.raises(ValueError, match=r"data|hold"):
        diffusion.decompress(model, data, jax.random.key(6), policy)


def test_one_sample_alone_comes_back_alone():
    logits = np.random.default_rng(0).normal(size=(4, 3))
    model = diffusion.OrderAgnostic(lambda x, known, count: jnp.array(logits), 4, 3)
    key, x = jax.random.key(5), STATES[50]
    data = diffusion.compress(model, x, key)
    np.testing.assert_array_equal(diffusion.decompress(model, data, key), x)


@pytest.mark.slow  # that the loss is the bound is seen above
@pytest.mark.parametrize("stages", [1, 2])
def test_training_lowers_the_bound_of_a_small_network(stages):
    first, second = jax.random.split(jax.random.key(0))
    make = eqx.filter_jit(lambda key: diffusion.MaskedMLP(4, 3, 32, 1, stages, key=key))
    network = make(first)
    if stages == 1:
        model = diffusion.OrderAgnostic(network, 4, 3)
    else:
        model = diffusion.Upscale(network, 4, LEVELS["bits"], diffusion.DataLogits())
    rng = np.random.default_rng(1)
    x = jnp.array(STATES[rng.choice(81, (300, 64), p=JOINT)])
    step = training.GradientStep(diffusion.AutoregressiveLoss(), optax.adam(1e-2))
    fit = training.fit(step, model, x, key=second, progress=False)
    loss = np.asarray(fit.metrics["loss"])
    best = -float(JOINT @ np.log2(JOINT)) / 4
    assert loss[:10].mean() > best + 0.2
    assert abs(loss[-100:].mean() - best) < 0.1


def test_bad_input_is_refused():
    model = agnostic()
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="whole numbers"):
        model.elbo(jnp.zeros(3, int), key)
    with pytest.raises(ValueError, match="x must"):
        model.elbo(jnp.array([0, 1, 2, 3]), key)
    for bad in ([1, 2], [0, 2, 2], [0, 4]):
        with pytest.raises(ValueError, match="policy must"):
            model.log_prob(jnp.zeros(4, int), jnp.arange(4), jnp.array(bad))
    with pytest.raises(ValueError, match="budget"):
        diffusion.optimal_policy(jnp.ones(4), 5)
    with pytest.raises(ValueError, match="budget"):
        diffusion.naive_policy(4, 0)
    with pytest.raises(ValueError, match="x must"):
        diffusion.compress(model, np.array([0, 1, 2, 3]), key)
    with pytest.raises(ValueError, match="at least 12 bytes"):
        diffusion.decompress(model, b"", key)
