"""Optimistic AMSGrad against a loop in numpy, AMSGrad, and a game that AMSGrad cycles in."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replay import replay, trajectory

from jaxopt_ext.optimizers.amsgrad import amsgrad
from jaxopt_ext.optimizers.optimistic_amsgrad import (
    AbstractPredictor,
    ExtrapolatedGradient,
    LastGradient,
    opt_amsgrad,
    rmpe,
)

STEPS = 40


def gradients(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(STEPS, 3, 4)) * np.geomspace(3, 0.1, STEPS)[:, None, None]


def extrapolate(points, reg):
    points = np.array(points).reshape(len(points), -1)
    u = np.diff(points, axis=0).T
    gram = u.T @ u
    z = np.linalg.solve(gram + reg * np.linalg.norm(gram) * np.eye(len(gram)), np.ones(len(gram)))
    return (z / z.sum()) @ points[:-1]


def reference(w, grads, rate, predict, *, span=1, v_residual=False, previous=True):
    """Both sequences, as the method is written down."""
    aux, m, v = w, 0.0, 1e-8
    largest, guess, path, auxiliary = v, 0.0, [], []
    for t, g in enumerate(grads):
        before = m
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * ((g - guess) if v_residual else g) ** 2
        largest = np.maximum(largest, v)
        aux = aux - rate(t) * m / np.sqrt(largest)
        seen = grads[: t + 1][-span:]
        guess = predict(seen).reshape(g.shape) if len(seen) == span else g
        ahead = 0.9 * (before if previous else m) + 0.1 * guess
        w = aux - rate(t) * ahead / np.sqrt(largest)
        path.append(w)
        auxiliary.append(aux)
    return np.array(path), np.array(auxiliary)


CASES = {
    "last": (LastGradient(), lambda s: s[-1], 1, {}),
    "rmpe": (ExtrapolatedGradient(3, 1e-3), lambda s: extrapolate(s, 1e-3), 4, {}),
    "residual": (LastGradient(), lambda s: s[-1], 1, {"v_residual": True}),
    "current": (LastGradient(), lambda s: s[-1], 1, {"previous_momentum": False}),
}


@pytest.mark.always(2)
@pytest.mark.parametrize("case", CASES)
def test_equals_a_numpy_loop(dtype, case):
    predictor, predict, span, options = CASES[case]
    grads, start = gradients(), np.ones((3, 4))
    schedule = lambda t: 0.1 / (1 + jnp.asarray(t, float))
    tx = opt_amsgrad(schedule, 0.9, 0.99, predictor=predictor, **options)
    path, states = replay(tx, jnp.asarray(start, dtype), jnp.asarray(grads, dtype))
    assert path.dtype == dtype
    expected, auxiliary = reference(
        start,
        grads,
        lambda t: 0.1 / (1 + t),
        predict,
        span=span,
        v_residual="v_residual" in options,
        previous="previous_momentum" not in options,
    )
    loose = dict(rtol=1e-4, atol=2e-4) if case == "rmpe" else dict(rtol=2e-5, atol=5e-6)
    tolerance = loose if dtype == jnp.float32 else dict(rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(path, expected, **tolerance)
    np.testing.assert_allclose(states.without_optimism(path), auxiliary, **tolerance)


@pytest.mark.slow
def test_without_a_predictor_it_is_amsgrad(dtype):
    grads, x = jnp.asarray(gradients(), dtype), jnp.ones((3, 4), dtype)
    mine = trajectory(opt_amsgrad(1e-2, eps=1e-14, predictor=None), x, grads)
    theirs = trajectory(amsgrad(1e-2, eps=1e-10), x, grads)
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.always(1)
@pytest.mark.parametrize("seed", range(3))
def test_rmpe_finds_the_limit_of_a_linear_recurrence(seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(4, 4))
    a *= 0.9 / np.abs(np.linalg.eigvals(a)).max()
    b, points = rng.normal(size=4), [rng.normal(size=4)]
    for _ in range(5):
        points.append(a @ points[-1] + b)
    history = jnp.asarray(np.array(points))
    limit = np.linalg.solve(np.eye(4) - a, b)
    split = {"head": history[:, :1], "tail": (history[:, 1:],)}
    found = rmpe(split, 1e-16)
    np.testing.assert_allclose(found["head"], limit[:1], atol=1e-6)
    np.testing.assert_allclose(found["tail"][0], limit[1:], atol=1e-6)
    assert np.linalg.norm(points[-1] - limit) > 1e-2


def test_rmpe_is_an_affine_combination(dtype):
    points = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), dtype)
    shift = jnp.array([1.0, -2.0, 3.0], dtype)
    moved = rmpe(points + shift)
    np.testing.assert_allclose(
        moved, rmpe(points) + shift, atol=1e-2 if dtype == jnp.float32 else 1e-9
    )
    assert moved.dtype == dtype


@pytest.mark.slow
def test_rmpe_of_equal_points_is_the_point(dtype):
    points = jnp.full((6, 3), 2.0, dtype)
    np.testing.assert_allclose(rmpe(points), 2.0, rtol=1e-6)
    with pytest.raises(ValueError, match="two points"):
        rmpe(points[:1])


@pytest.mark.slow
def test_reaches_the_saddle_where_amsgrad_does_not():
    def norm(tx):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(jnp.array([x[1], -x[0]]), state, x)
            return (optax.apply_updates(x, updates), state), None

        x = jnp.ones(2)
        return jnp.linalg.norm(jax.lax.scan(step, (x, tx.init(x)), length=3000)[0][0])

    assert norm(opt_amsgrad(0.05, 0.0, 0.99, predictor=LastGradient())) < 1e-3
    assert norm(amsgrad(0.05, 0.0, 0.99)) > 1


@pytest.mark.always(1)
@pytest.mark.parametrize("span", [1, 2, 5])
def test_the_ring_gives_the_extrapolation_of_the_last_points(span):
    predictor = ExtrapolatedGradient(span)
    points = jax.random.normal(jax.random.key(0), (4 * span + 3, 7))
    split = lambda x: {"head": x[..., :2], "tail": (x[..., 2:],)}
    memory, call = predictor.init(split(points[0])), jax.jit(predictor)
    for count in range(1, len(points) + 1):
        guess, memory = call(memory, split(points[count - 1]), count)
        last = points[count - span - 1 : count]
        wanted = rmpe(split(last)) if count > span else split(points[count - 1])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), guess, wanted)


@pytest.mark.slow
def test_any_predictor_is_taken():
    class Mean(AbstractPredictor):
        def init(self, params):
            return params

        def __call__(self, memory, gradient, count):
            mean = jax.tree.map(lambda a, b: jnp.where(count > 1, (a + b) / 2, b), memory, gradient)
            return mean, gradient

    grads, start = gradients(), np.ones((3, 4))
    path = trajectory(opt_amsgrad(0.1, 0.9, 0.99, predictor=Mean()), jnp.asarray(start), grads)
    expected, _ = reference(start, grads, lambda t: 0.1, lambda s: s.mean(0), span=2)
    np.testing.assert_allclose(path, expected, rtol=1e-9)


def test_zero_gradients_give_zero_updates(dtype):
    path = trajectory(opt_amsgrad(0.1), jnp.ones(3, dtype), jnp.zeros((10, 3), dtype))
    np.testing.assert_array_equal(path, 1)


@pytest.mark.parametrize(("name", "value"), [("b1", 1.0), ("b2", -0.1), ("eps", 0.0)])
def test_bad_input_raises(name, value):
    with pytest.raises(ValueError, match=name):
        opt_amsgrad(**{name: value})


def test_bad_predictors_raise():
    with pytest.raises(TypeError, match="predictor"):
        opt_amsgrad(predictor=lambda h: h)
    with pytest.raises(ValueError, match="v_residual"):
        opt_amsgrad(predictor=None, v_residual=True)
    with pytest.raises(ValueError, match="span"):
        ExtrapolatedGradient(0)
    with pytest.raises(ValueError, match="reg"):
        ExtrapolatedGradient(reg=0.0)
