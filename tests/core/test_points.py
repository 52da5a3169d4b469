"""Models and mixed containers as points: the floating-point arrays are the variables."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
from jaxtyping import Array

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.adapters import Optax, Optimistix
from jaxopt_ext.minimize import FISTA

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(12, 2)))
Y = jnp.sin(X[:, 0]) + 0.5 * X[:, 1]


def network(key):
    return eqx.nn.MLP(2, "scalar", width_size=3, depth=1, activation=jnp.tanh, key=key)


def penalty(model):
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return sum(jnp.sum(leaf**2) for leaf in leaves)


def loss(model):
    return jnp.mean((jax.vmap(model)(X) - Y) ** 2)


def penalized(lam):
    return jxt.Smooth(lambda model: loss(model) + lam * penalty(model))


@eqx.filter_jit
def gradient_norm(model, lam):
    gradient = eqx.filter_grad(lambda m: loss(m) + lam * penalty(m))(model)
    return jnp.sqrt(penalty(gradient))


def adam(tol, max_steps=2000):
    return Optax(optax.adam(3e-2), tol=tol, max_steps=max_steps)


@pytest.mark.parametrize(
    "solver",
    [
        adam(1e-4),
        pytest.param(Optax(optax.lbfgs(), tol=1e-6), marks=pytest.mark.slow),
        pytest.param(Optimistix(optx.BFGS(rtol=1e-8, atol=1e-8), tol=1e-4), marks=pytest.mark.slow),
    ],
    ids=["adam", "lbfgs", "BFGS"],
)
def test_a_network_is_trained(solver, key):
    start = network(key)
    solution = jxt.solve(penalized(0.01), solver, start)
    model = solution.value
    assert solution.status == jxt.Status.converged
    assert isinstance(model, eqx.nn.MLP)
    assert model.activation is start.activation
    assert jax.tree.structure(model) == jax.tree.structure(start)
    assert gradient_norm(model, 0.01) <= float(solver.tol) * (1 + 1e-6)
    assert loss(model) < 0.5 * loss(start)
    assert "activation" in repr(solution)


@pytest.mark.slow
def test_a_network_with_few_weights(key):
    """With the soft threshold written out as an oracle."""
    lam, tol = 0.05, 1e-6
    problem = jxt.Composite(loss, prox.L1(lam))
    solution = jxt.solve(problem, FISTA(tol=tol, max_steps=20_000), network(key))
    assert solution.status == jxt.Status.converged
    assert isinstance(solution.value, eqx.nn.MLP)
    gradient = eqx.filter_jit(eqx.filter_grad(loss))(solution.value)
    weights = jax.tree.leaves(eqx.filter(solution.value, eqx.is_inexact_array))
    zeros = 0
    for w, g in zip(weights, jax.tree.leaves(gradient), strict=True):
        moved = np.asarray(w - g)
        thresholded = np.sign(moved) * np.maximum(np.abs(moved) - lam, 0)
        np.testing.assert_allclose(w, thresholded, atol=2 * tol)
        zeros += np.sum(np.asarray(w) == 0)
    assert zeros > 0


class Affine(eqx.Module):
    """A map with a name, a function and a count beside its parameters."""

    shift: Array
    function: Callable
    count: int
    name: str = eqx.field(static=True)


def test_a_fixed_point_of_modules():
    shift = jnp.array([0.3, -0.2])
    start = Affine(jnp.zeros(2), jnp.cos, 2, "half")
    step = lambda m: Affine(m.function(m.shift) / m.count + shift, m.function, m.count, m.name)
    solution = jxt.solve(jxt.FixedPoint(step), jxt.fixed_point.Picard(tol=1e-10), start)
    assert solution.status == jxt.Status.converged
    x = np.zeros(2)
    for _ in range(100):
        x = np.cos(x) / 2 + np.asarray(shift)
    np.testing.assert_allclose(solution.value.shift, x, atol=1e-9)
    assert solution.value.function is jnp.cos
    assert type(solution.value.count) is int
    assert solution.value.name == "half"


def test_integers_and_functions_stay_and_plain_numbers_move():
    def fun(p):
        return jnp.mean((p["act"](X @ p["w"]) / p["n"] + p["b"] - Y) ** 2) + 0.1 * p["b"] ** 2

    start = {"w": jnp.zeros(2), "b": 0.0, "n": 3, "act": jnp.sinh, "none": None}
    solution = jxt.solve(jxt.Smooth(fun), FISTA(tol=1e-8), start)
    assert solution.status == jxt.Status.converged
    value = solution.value
    assert set(value) == set(start)
    assert type(value["n"]) is int and value["n"] == 3  # noqa: PT018
    assert value["act"] is jnp.sinh
    assert value["none"] is None
    assert isinstance(value["b"], jax.Array)
    assert value["b"] != 0
    # A grid of central differences sees no way down.
    for leaf in ("w", "b"):
        for direction in np.eye(value[leaf].size).reshape(-1, *value[leaf].shape):
            for side in (-1e-3, 1e-3):
                assert fun({**value, leaf: value[leaf] + side * direction}) > fun(value)


@pytest.mark.slow
def test_a_dropout_rate_is_no_variable(key):
    first, second = jax.random.split(key)
    layers = [eqx.nn.Linear(2, 3, key=first), eqx.nn.Dropout(0.4), eqx.nn.Linear(3, 1, key=second)]
    start = eqx.nn.Sequential(layers)

    def fun(model):
        assert type(model.layers[1].p) is float
        masks = jax.random.split(jax.random.key(1), 12)
        predict = lambda x, mask: model(x, key=mask)[0]
        return jnp.mean((jax.vmap(predict)(X, masks) - Y) ** 2)

    value = jxt.solve(jxt.Smooth(fun), Optax(optax.sgd(0.05), max_steps=5), start).value
    assert type(value.layers[1].p) is float
    assert value.layers[1].p == 0.4
    assert value.layers[1].inference is False
    assert not np.allclose(value.layers[0].weight, start.layers[0].weight)


def test_a_trace_sees_whole_models(key):
    def measure(problem, model, state):
        assert isinstance(model, eqx.nn.MLP)
        return loss(model)

    whole = jxt.solve(penalized(0.01), adam(0.0, 30), network(key), trace=measure)
    assert whole.trace.shape == (30,)
    np.testing.assert_allclose(whole.trace[-1], loss(whole.value), rtol=1e-12)
    assert whole.trace[-1] < whole.trace[0]


@pytest.mark.slow
def test_a_solve_goes_on(key):
    whole = jxt.solve(penalized(0.01), adam(0.0, 30), network(key))
    half = jxt.solve(penalized(0.01), adam(0.0, 15), network(key))
    rest = jxt.solve(penalized(0.01), adam(0.0, 15), half.value, state=half.state)
    for a, b in zip(*map(arrays, (rest.value, whole.value)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    # Without the moments it is another run.
    fresh = jxt.solve(penalized(0.01), adam(0.0, 15), half.value)
    assert not np.allclose(arrays(fresh.value)[0], arrays(whole.value)[0], rtol=1e-6)


def arrays(model):
    return jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))


@pytest.mark.slow
def test_gradient_of_a_validation_loss(key):
    held_out = lambda model: jnp.mean((jax.vmap(model)(X + 0.3) - Y) ** 2)
    solver = Optax(optax.lbfgs(), tol=1e-9)

    def validation(lam):
        return held_out(jxt.solve(penalized(lam), solver, network(key)).value)

    step = 1e-4
    slope = (validation(0.02 + step) - validation(0.02 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(validation)(jnp.asarray(0.02)), slope, rtol=1e-4)
    assert abs(slope) > 1e-3


def test_a_model_found_elsewhere_gets_its_derivative():
    """Ridge regression by its normal equations, in a module with a function and a count."""
    solve = lambda lam: jnp.linalg.solve(X.T @ X / 12 + lam * jnp.eye(2), X.T @ Y / 12)

    def fit(lam):
        found = Affine(jax.lax.stop_gradient(solve(lam)), jnp.cos, 2, "ridge")
        fun = lambda m: jnp.mean((X @ m.shift - Y) ** 2) / m.count + lam / 2 * penalty(m)
        return jxt.attach(found, jxt.Smooth(fun))

    assert fit(0.1).function is jnp.cos
    slopes = jax.jit(lambda lam: (jax.jacrev(lambda t: fit(t).shift)(lam), jax.jacrev(solve)(lam)))
    np.testing.assert_allclose(*slopes(0.1), rtol=1e-8)


class Noisy(eqx.Module):
    weight: Array
    key: Array


@pytest.mark.slow
def test_a_random_key_in_the_point_does_not_hinder_throw(key):
    problem = jxt.Smooth(lambda m: jnp.sum((m.weight - 1 - jax.random.uniform(m.key)) ** 2))
    start = Noisy(jnp.zeros(2), key)
    value = jxt.solve(problem, FISTA(tol=1e-6, max_steps=100), start, throw=True).value
    np.testing.assert_allclose(value.weight, 1 + jax.random.uniform(key), atol=1e-6)
    assert value.key is not None
    bad = Noisy(jnp.full(2, jnp.nan), key)
    with pytest.raises(Exception, match="NaN"):
        jxt.solve(problem, FISTA(tol=1e-6, max_steps=100), bad, throw=True)


@pytest.mark.slow
def test_models_of_many_seeds(key):
    keys = jax.random.split(key, 3)
    solver = Optax(optax.lbfgs(), tol=1e-7)
    fit = lambda model: jxt.solve(penalized(0.02), solver, model)
    batch = eqx.filter_vmap(fit)(eqx.filter_vmap(network)(keys))
    assert batch.value.activation is jnp.tanh
    assert np.all(batch.status == jxt.Status.converged)
    for i, k in enumerate(keys):
        for a, b in zip(arrays(fit(network(k)).value), arrays(batch.value), strict=True):
            np.testing.assert_allclose(a, b[i], atol=1e-5)


def test_points_without_variables_are_refused():
    solve = lambda x0: jxt.solve(jxt.Smooth(lambda x: 0.0), FISTA(), x0)
    with pytest.raises(TypeError, match="x0 must hold floating-point arrays, got dtype int"):
        solve(jnp.arange(3))
    with pytest.raises(TypeError, match="got int, str"):
        solve({"n": 3, "name": "net"})
    with pytest.raises(TypeError, match="got bool, float"):
        solve(eqx.nn.Dropout(0.4))
    with pytest.raises(ValueError, match="empty pytree"):
        solve({})


@pytest.mark.slow
def test_a_solution_is_told_in_three_lines(key):
    model = network(key)
    stopped = str(jxt.solve(penalized(0.01), adam(1e-30), model)).split("\n")
    assert len(stopped) == 3
    assert stopped[0].startswith("Stopped at the step limit")
    assert stopped[1] == "2000 steps"
    assert "times the tolerance. Go on with x0=solution.value" in stopped[2]

    solution = jxt.solve(penalized(0.01), adam(1e3), model)
    done = str(solution)
    assert done.split("\n")[:2] == ["Converged: the residual is below the tolerance.", "1 steps"]
    assert done.split("\n")[2].startswith("error ")
    assert done.endswith("tolerance 1e+03")

    bounded = str(dataclasses.replace(solution, gap=jnp.asarray(2e-4)))
    assert bounded == done + ", duality gap 0.0002"


@pytest.mark.slow
def test_a_batch_is_told_in_three_lines():
    problem = lambda lam: jxt.Composite(jxt.objectives.SquaredLoss(X, Y), prox.L1(lam))
    solver = FISTA(tol=1e-8, max_steps=3)
    lams = jnp.array([1e-3, 1e3])
    batch = jax.vmap(lambda lam: jxt.solve(problem(lam), solver, jnp.zeros(2)))(lams)
    lines = str(batch).split("\n")
    assert len(lines) == 3
    assert "1 of 2: Converged" in lines[0]
    assert "1 of 2: Stopped at the step limit" in lines[0]
    assert lines[1] == "3 steps at most"
    assert "at most" in lines[2]
