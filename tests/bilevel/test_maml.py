"""Meta-gradients against explicit Hessians and differences; the linear theory against sampling."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_ext import bilevel

RNG = np.random.default_rng(2)
D, TASKS, M, QUERY = 3, 4, 5, 6
ALPHA = 0.2


def _loss(w, samples):
    """Softplus regression, so that Hessians depend on the point."""
    X, y = samples
    return 0.5 * jnp.mean((jax.nn.softplus(X @ w["w"]) + w["b"] - y) ** 2)


W = {"w": jnp.asarray(RNG.normal(size=D)), "b": jnp.asarray(0.3)}
PART = lambda n: (
    jnp.asarray(RNG.normal(size=(TASKS, n, D))),
    jnp.asarray(RNG.normal(size=(TASKS, n))),
)
BATCH = bilevel.Task(PART(M), PART(QUERY))


def _flat(w):
    return np.concatenate([w["w"], np.reshape(w["b"], 1)])


def _derivatives(w, X, y):
    """Gradient and Hessian, written out."""
    z = X @ w[:D]
    s = 1 / (1 + np.exp(-z))
    r = np.log1p(np.exp(z)) + w[D] - y
    J = np.concatenate([s[:, None] * X, np.ones((len(y), 1))], axis=1)
    H = J.T @ J / len(y)
    H[:D, :D] += X.T @ (X * (r * s * (1 - s))[:, None]) / len(y)
    return J.T @ r / len(y), H


def _by_hand(steps, order):
    total = 0
    for i in range(TASKS):
        (X, y), (Xq, yq) = ([np.asarray(a[i]) for a in part] for part in BATCH)
        u, factors = _flat(W), []
        for _ in range(steps):
            g, H = _derivatives(u, X, y)
            factors.append(np.eye(D + 1) - ALPHA * H)
            u = u - ALPHA * g
        g, _ = _derivatives(u, Xq, yq)
        for factor in reversed(factors) if order == 2 else ():
            g = factor @ g
        total = total + g / TASKS
    return total


METHODS = {
    "first": bilevel.FirstOrderMAML(_loss, ALPHA, 3),
    "one": bilevel.MAML(_loss, ALPHA),
    "three": bilevel.MAML(_loss, ALPHA, 3),
    "free": bilevel.HessianFreeMAML(_loss, ALPHA, 3, delta=1e-4),
    "none": bilevel.MAML(_loss, ALPHA, 0),
    "plain": bilevel.NonAdaptive(_loss, ALPHA),
}


@functools.cache
def _gradients():
    run = jax.jit(lambda w, t: {k: m.value_and_gradient(w, t) for k, m in METHODS.items()})
    return run(W, BATCH), run


def test_meta_gradients_are_explicit_algebra():
    found = {name: _flat(gradient) for name, (_, gradient) in _gradients()[0].items()}
    np.testing.assert_allclose(found["one"], _by_hand(1, 2), atol=1e-12)
    np.testing.assert_allclose(found["three"], _by_hand(3, 2), atol=1e-12)
    np.testing.assert_allclose(found["free"], _by_hand(3, 2), atol=1e-7)
    np.testing.assert_allclose(found["first"], _by_hand(3, 1), atol=1e-12)
    np.testing.assert_allclose(found["none"], _by_hand(0, 2), atol=1e-12)
    gap = np.linalg.norm(found["first"] - found["three"])
    assert gap > 0.01 * np.linalg.norm(found["three"])
    together = [
        _derivatives(_flat(W), *(np.concatenate([s[i], q[i]]) for s, q in zip(*BATCH, strict=True)))
        for i in range(TASKS)
    ]
    np.testing.assert_allclose(
        found["plain"], np.mean([g for g, _ in together], axis=0), atol=1e-12
    )


def test_meta_gradients_are_differences_of_their_objective():
    (found, run), direction = _gradients(), RNG.normal(size=D + 1)
    move = lambda h: {"w": W["w"] + h * direction[:D], "b": W["b"] + h * direction[D]}
    ahead, behind = run(move(1e-5), BATCH), run(move(-1e-5), BATCH)
    for name in ("one", "three", "plain"):
        wanted = (ahead[name][0] - behind[name][0]) / 2e-5
        np.testing.assert_allclose(_flat(found[name][1]) @ direction, wanted, rtol=1e-6)
    np.testing.assert_allclose(found["free"][0], found["three"][0], rtol=1e-12)


def test_adaptation():
    one = jax.tree.map(lambda a: np.asarray(a)[0], BATCH.support)
    method = METHODS["three"]
    u = _flat(W)
    for _ in range(2):
        u = u - ALPHA * _derivatives(u, *map(np.asarray, one))[0]
    adapted = jax.jit(lambda w, s: method.adapt(w, s, 2))(W, one)
    np.testing.assert_allclose(_flat(adapted), u, atol=1e-12)


@pytest.mark.slow
def test_single_precision():
    single = lambda t: jax.tree.map(lambda a: np.asarray(a).astype(np.float32), t)
    run = _gradients()[1]
    found = run(single(W), single(BATCH))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(_flat(found["three"][1]), _by_hand(3, 2), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(_flat(found["one"][1]), _by_hand(1, 2), rtol=1e-4, atol=1e-5)


def test_the_metric_after_a_step_on_few_samples():
    d, m, alpha, draws = 5, 4, 0.4, 50_000
    root = RNG.normal(size=(d, d)) / np.sqrt(d)
    S = root @ root.T + 0.2 * np.eye(d)
    X = RNG.normal(size=(draws, m, d)) @ np.linalg.cholesky(S).T
    left = np.eye(d) - alpha * np.einsum("tmi,tmj->tij", X, X) / m
    wanted = np.einsum("tij,jk,tkl->il", left, S, left) / draws
    found = bilevel.adapted_covariance(jnp.asarray(S), alpha, m)
    np.testing.assert_allclose(found, wanted, atol=0.03 * np.max(wanted))
    # The whole task, and what the trace adds.
    whole = bilevel.adapted_covariance(jnp.asarray(S), alpha, np.inf)
    exact = (np.eye(d) - alpha * S) @ S @ (np.eye(d) - alpha * S)
    np.testing.assert_allclose(whole, exact, atol=1e-12)
    traced = alpha**2 * np.trace(S @ S) / m * S
    assert np.max(np.abs(found - traced - wanted)) > 3 * np.max(np.abs(found - wanted))


def _gain(m, R=2.0, rho=(1.0, 0.1), r=(1.0, 0.1), alpha=0.9):
    tasks = bilevel.hardness_mixture(10, rho[0], rho[1], R, r[0], r[1])
    points = (
        bilevel.nal_population_solution(tasks),
        bilevel.maml_population_solution(tasks, alpha, m),
    )
    plain, adapted = (float(bilevel.excess_risk(w, tasks, alpha, m)) for w in points)
    return plain / adapted


def test_gains_in_closed_form():
    wanted = {np.inf: 5.42, 500: 2.60, 25: 1.02}
    for m, gain in wanted.items():
        np.testing.assert_allclose(_gain(m), gain, atol=6e-3)
    np.testing.assert_allclose(_gain(np.inf, rho=(0.5, 0.5)), 1, atol=1e-12)
    np.testing.assert_allclose(_gain(np.inf, r=(1.0, 1.0)), 2.86, atol=6e-3)
    np.testing.assert_allclose(
        [_gain(np.inf, R) for R in (0.0, 0.5, 1.0, 4.0)], [1, 1.73, 3.19, 6.92], atol=6e-3
    )
    # Before adaptation it is the other way round.
    tasks = bilevel.hardness_mixture(10, 1.0, 0.1, 2.0, 1.0, 0.1)
    plain = tasks.population_risk(bilevel.nal_population_solution(tasks))
    assert plain < tasks.population_risk(bilevel.maml_population_solution(tasks, 0.9, np.inf))


def test_the_risk_after_adaptation_by_sampling():
    tasks = bilevel.hardness_mixture(4, 1.0, 0.3, 1.0, 0.5, 0.1, noise=0.7)
    w, m, alpha = jnp.full(4, 0.4), 6, 0.3
    square = lambda w, s: 0.5 * jnp.mean((s[0] @ w - s[1]) ** 2)
    method = bilevel.MAML(square, alpha)
    drawn = jax.jit(lambda key: method.objective(w, tasks.draw(key, 10_000, m, 2)))
    found = drawn(jax.random.key(0)) - 0.5 * 0.7**2
    wanted = jax.jit(lambda w: bilevel.excess_risk(w, tasks, alpha, m))(w)
    np.testing.assert_allclose(found, wanted, rtol=0.05)


@pytest.mark.slow
def test_training_ends_where_the_theory_says():
    """Of a shorter run than the claim's."""
    tasks = bilevel.hardness_mixture(10, 1.0, 0.1, 2.0, 1.0, 0.1)
    square = lambda w, s: 0.5 * jnp.mean((s[0] @ w - s[1]) ** 2)
    key, w0 = jax.random.key(0), jnp.zeros(10)

    @jax.jit
    def run():
        train = lambda method, query: bilevel.meta_train(
            method, w0, lambda k: tasks.draw(k, 4, 25, query), optax.sgd(0.3), 3000, key
        )
        return train(bilevel.MAML(square, 0.9), 10), train(bilevel.NonAdaptive(square, 0.9), 10)

    adapted, plain = run()
    wanted = bilevel.maml_population_solution(tasks, 0.9, 25)
    np.testing.assert_allclose(np.mean(wanted), 0.370, atol=1e-3)
    np.testing.assert_allclose(np.mean(adapted.average), np.mean(wanted), rtol=0.08)
    np.testing.assert_allclose(np.mean(plain.average), 0.182, rtol=0.08)
    assert adapted.losses.shape == (3000,)


def test_training_a_module_and_a_nan():
    class Line(eqx.Module):
        w: jax.Array
        act: object = eqx.field(static=True, default=None)
        sizes: int = 3

    loss = lambda line, s: jnp.mean((s[0] @ line.w - s[1]) ** 2)
    method = bilevel.FirstOrderMAML(loss, 0.1)

    @eqx.filter_jit
    def train(targets):
        batch = bilevel.Task(BATCH.support, (BATCH.query[0], targets))
        start, key = Line(jnp.zeros(D)), jax.random.key(0)
        return bilevel.meta_train(method, start, lambda key: batch, optax.sgd(0.1), 5, key)

    found = train(BATCH.query[1])
    assert found.params.sizes == 3
    assert found.losses[-1] < found.losses[0]
    assert not np.any(np.isfinite(train(BATCH.query[1] * np.nan).losses))


def test_bad_input():
    for make, match in (
        (lambda: bilevel.MAML(_loss, 0.1, -1), "inner_steps"),
        (lambda: bilevel.MAML(_loss, -0.1), "inner_step"),
        (lambda: bilevel.HessianFreeMAML(_loss, 0.1, delta=0.0), "delta"),
        (lambda: bilevel.hardness_mixture(3, 0.0, 1, 1, 1, 1), "rho_easy"),
        (lambda: bilevel.hardness_mixture(3, 1, 1, 1, 1, -1), "r_hard"),
        (lambda: bilevel.LinearTask(jnp.eye(3), jnp.ones(2), 0.1), "covariance"),
        (lambda: bilevel.LinearTask(jnp.eye(3), jnp.ones(3), jnp.ones(2)), "noise"),
    ):
        with pytest.raises(ValueError, match=match):
            make()
    method = bilevel.MAML(_loss)
    empty = bilevel.Task((jnp.ones((2, 0, D)), jnp.ones((2, 0))), PART(2))
    with pytest.raises(ValueError, match="support must"):
        method.gradient(W, empty)
    with pytest.raises(ValueError, match="as many tasks"):
        method.gradient(W, bilevel.Task(BATCH.support, jax.tree.map(lambda a: a[:2], BATCH.query)))
    with pytest.raises(TypeError, match="Task"):
        method.gradient(W, (BATCH.support, BATCH.query))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="num_steps"):
        bilevel.meta_train(method, W, lambda k: BATCH, optax.sgd(0.1), 0, jax.random.key(0))
