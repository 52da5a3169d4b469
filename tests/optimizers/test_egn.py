"""Exact Gauss-Newton against the dense d x d system, least squares and its own search rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy.special import expit, softmax

from jaxopt_ext.optimizers.egn import egn
from jaxopt_ext.optimizers.per_sample import flat_jacobian

B, INPUTS = 32, 6


def network(c, dtype, hidden=20):
    """About 200 parameters, tanh, c outputs; with inputs and targets."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 2, dtype)
    params = {"a": draw(INPUTS, hidden), "b": draw(hidden), "c": draw(hidden, c), "d": draw(c)}
    predict = lambda p, x: jnp.tanh(x @ p["a"] + p["b"]) @ p["c"] + p["d"]
    return params, predict, jnp.asarray(rng.normal(size=(B, INPUTS)), dtype), rng


def targets(loss, c, rng):
    if loss == "mse":
        return rng.normal(size=(B, c))
    if loss == "bce":
        return rng.integers(0, 2, size=(B, c)).astype(float)
    return rng.integers(0, c, size=B)


def dense_direction(loss, J, outputs, y, damping):
    """(J'QJ/b + λI)⁻¹ J'r/b in double precision, one sample after another."""
    b, c = outputs.shape
    J = J.reshape(b, c, -1)
    A, rhs = damping * np.eye(J.shape[2]), 0.0
    for j, phi, t in zip(J, outputs, y, strict=True):
        if loss == "mse":
            Q, r = np.eye(c), t - phi
        elif loss == "bce":
            p = expit(phi)
            Q, r = np.diag(p * (1 - p)), t - p
        else:
            p = softmax(phi)
            Q, r = np.diag(p) - np.outer(p, p), np.eye(c)[t] - p
        A = A + j.T @ Q @ j / b
        rhs = rhs + j.T @ r / b
    return np.linalg.solve(A, rhs)


CASES = [("mse", 3), ("ce", 3), ("bce", 3), ("mse", 1), ("bce", 1)]


@pytest.mark.always(3)
@pytest.mark.parametrize(("loss", "c"), CASES)
@pytest.mark.parametrize("damping", [1.0, 1e-2])
def test_direction_equals_the_dense_one(dtype, loss, c, damping):
    params, predict, x, rng = network(c, dtype)
    y = targets(loss, c, rng)
    tx = egn(predict, loss, damping=damping)
    updates, _ = jax.jit(lambda p: tx.update(None, tx.init(p), p, batch=(x, y)))(params)
    wide = jax.tree.map(lambda a: a.astype(float), params)
    outputs, J = flat_jacobian(predict, wide, x.astype(float))
    expected = dense_direction(loss, np.asarray(J), np.asarray(outputs), y, damping)
    found = ravel_pytree(updates)[0]
    assert found.dtype == dtype
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < (1e-3 if dtype == jnp.float32 else 1e-10)


@pytest.mark.slow
def test_jacobian_equals_finite_differences():
    params, predict, x, _ = network(3, jnp.float64, hidden=3)
    outputs, J = flat_jacobian(predict, params, x)
    flat, unravel = ravel_pytree(params)
    f = lambda v: jax.vmap(predict, (None, 0))(unravel(v), x).reshape(-1)
    np.testing.assert_allclose(outputs.reshape(-1), f(flat))
    h = 1e-6
    columns = [(f(flat.at[i].add(h)) - f(flat.at[i].add(-h))) / (2 * h) for i in range(flat.size)]
    np.testing.assert_allclose(J, np.stack(columns, 1), atol=1e-8)


@pytest.mark.slow
def test_linear_regression_in_one_step():
    """The full batch is larger than the number of parameters, so J J' is singular."""
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(60, 7)), rng.normal(size=60)
    tx = egn(lambda w, x: x @ w, damping=1e-8)
    w = jnp.zeros(7)
    updates, _ = tx.update(None, tx.init(w), w, batch=(jnp.asarray(X), jnp.asarray(y)))
    best = np.linalg.lstsq(X, y, rcond=None)[0]
    np.testing.assert_allclose(updates, best, atol=1e-5)
    residual = lambda w: np.sum((y - X @ w) ** 2)
    np.testing.assert_allclose(residual(np.asarray(updates)), residual(best), rtol=1e-10)


@pytest.mark.slow
def test_one_hot_targets_and_labels_agree():
    params, predict, x, rng = network(3, jnp.float64)
    y = targets("ce", 3, rng)
    tx = egn(predict, "ce")
    steps = [tx.update(None, tx.init(params), params, batch=(x, t))[0] for t in (y, np.eye(3)[y])]
    jax.tree.map(np.testing.assert_array_equal, *steps)


def run(tx, w, batches):
    states, path = [tx.init(w)], [w]
    update = jax.jit(lambda w, state, batch: tx.update(None, state, w, batch=batch))
    for batch in batches:
        updates, state = update(path[-1], states[-1], batch)
        path.append(optax.apply_updates(path[-1], updates))
        states.append(state)
    return path, states


def tiny():
    rng = np.random.default_rng(2)
    X, y = rng.normal(size=(6, 8, 3)), rng.normal(size=(6, 8))
    predict = lambda w, x: jnp.sin(x @ w)
    return predict, X, y


def direction(w, X, y, damping):
    phi = np.sin(X @ w)
    J = np.cos(X @ w)[:, None] * X
    return np.linalg.solve(J.T @ J / 8 + damping * np.eye(3), J.T @ (y - phi) / 8)


def test_momentum_equals_a_numpy_loop():
    predict, X, y = tiny()
    tx = egn(predict, learning_rate=0.5, damping=0.1, momentum=0.8)
    path, _ = run(tx, jnp.ones(3), list(zip(X, y, strict=True)))
    w, v = np.ones(3), 0.0
    for t in range(6):
        v = 0.8 * v + 0.2 * direction(w, X[t], y[t], 0.1)
        w = w + 0.5 * v / (1 - 0.8 ** (t + 1))
    np.testing.assert_allclose(path[-1], w, rtol=1e-10)


@pytest.mark.always(1)
@pytest.mark.parametrize("reset", ["increase", "conservative", "goldstein"])
def test_line_search_equals_a_numpy_loop(reset):
    predict, X, y = tiny()
    largest, c1 = 4.0, 0.1
    tx = egn(predict, learning_rate=largest, damping=0.02, line_search=True, reset=reset)
    path, states = run(tx, jnp.ones(3), list(zip(X, y, strict=True)))
    w, alpha, found = np.ones(3), largest, []
    for Xt, yt in zip(X, y, strict=True):
        f = lambda w, Xt=Xt, yt=yt: np.sum((yt - np.sin(Xt @ w)) ** 2) / 16
        g = -(np.cos(Xt @ w)[:, None] * Xt).T @ (yt - np.sin(Xt @ w)) / 8
        p = direction(w, Xt, yt, 0.02)
        slope = g @ p
        alpha = min(1.5 * alpha, largest) if reset == "increase" else alpha
        for _ in range(15):
            falls = f(w) - f(w + alpha * p)
            if falls < -c1 * alpha * slope:
                alpha *= 0.8
            elif reset == "goldstein" and falls > -(1 - c1) * alpha * slope and alpha < largest:
                alpha = min(1.5 * alpha, largest)
            else:
                break
        w = w + alpha * p
        found.append(alpha)
    np.testing.assert_allclose([s.step_size for s in states[1:]], found, rtol=1e-12)
    np.testing.assert_allclose(path[-1], w, rtol=1e-9)
    assert min(found) < largest


@pytest.mark.slow
def test_line_search_backs_out_of_overflow():
    """A step into nothing but NaN is shortened like one that goes up."""
    predict = lambda w, x: jnp.log(w) * x
    tx = egn(predict, damping=1e-6, line_search=True)
    w, batch = jnp.asarray(2.0), (jnp.ones(4), jnp.full(4, -1.0))
    path, states = run(tx, w, [batch])
    assert states[1].step_size < 1
    assert path[1] > 0


@pytest.mark.slow
def test_damping_adapts_by_the_model(dtype):
    """Right about a linear model: damping falls. Far too short a view: it rises."""
    X = jnp.asarray(np.random.default_rng(3).normal(size=(8, 3)), dtype)
    linear = egn(lambda w, x: x @ w, damping=0.5, adaptive_damping=True)
    _, states = run(linear, jnp.zeros(3, dtype), [(X, jnp.ones(8, dtype))] * 3)
    np.testing.assert_allclose([s.damping for s in states], 0.5 * 0.99 ** np.arange(4), rtol=1e-5)
    curved = egn(lambda w, x: jnp.exp(6 * x * w), damping=1e-3, adaptive_damping=True)
    one, target = jnp.ones(4, dtype), jnp.full(4, 50.0, dtype)
    _, states = run(curved, jnp.asarray(0.1, dtype), [(one, target)])
    np.testing.assert_allclose(states[1].damping, 1.01e-3, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mse", "ce", "bce"])
def test_agreement_of_the_model(loss):
    """Agreement at the thresholds, from the model written out with dense matrices."""
    params, predict, x, rng = network(3, jnp.float64, hidden=4)
    y = targets(loss, 3, rng)
    flat, unravel = ravel_pytree(params)
    outputs, J = flat_jacobian(predict, params, x)
    labels = np.eye(3)[y] if loss == "ce" else y

    def value(v):
        phi = jax.vmap(predict, (None, 0))(unravel(v), x)
        each = {
            "mse": lambda: 0.5 * (labels - phi) ** 2,
            "ce": lambda: -labels * jax.nn.log_softmax(phi),
            "bce": lambda: (
                -labels * jax.nn.log_sigmoid(phi) - (1 - labels) * jax.nn.log_sigmoid(-phi)
            ),
        }[loss]()
        return float(jnp.sum(each)) / B

    p = dense_direction(loss, np.asarray(J), np.asarray(outputs), y, 1e-3)
    g = (value_gradient(value, flat)) @ p
    JQJ = curvature(loss, np.asarray(J), np.asarray(outputs))
    rates = [0.1, 1.0, 3.0, 8.0]
    expected = []
    for rate in rates:
        rho = (value(flat + rate * p) - value(flat)) / (rate * g + rate**2 * p @ JQJ @ p / 2)
        expected.append(1.01 if rho < 0.25 else 0.99 if rho > 0.75 else 1.0)
    found = []
    for rate in rates:
        tx = egn(predict, loss, rate, damping=1e-3, adaptive_damping=True)
        _, state = tx.update(None, tx.init(params), params, batch=(x, y))
        found.append(float(state.damping) / 1e-3)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert len(set(expected)) > 1


def value_gradient(value, flat, h=1e-6):
    unit = np.eye(flat.size)
    return np.array([(value(flat + h * e) - value(flat - h * e)) / (2 * h) for e in unit])


def curvature(loss, J, outputs):
    b, c = outputs.shape
    J = J.reshape(b, c, -1)
    total = 0.0
    for j, phi in zip(J, outputs, strict=True):
        p = softmax(phi) if loss == "ce" else expit(phi)
        Q = {
            "mse": np.eye(c),
            "ce": np.diag(p) - np.outer(p, p),
            "bce": np.diag(p * (1 - p)),
        }[loss]
        total = total + j.T @ Q @ j / b
    return total


def sizes(jaxpr):
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(variable.aval.shape))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from sizes(getattr(inner, "jaxpr", inner))


def test_no_array_of_squared_size():
    hidden, b, c = 3000, 4, 3
    params, predict, _, rng = network(c, jnp.float32, hidden)
    d = ravel_pytree(params)[0].size
    assert d > 20_000
    batch = jnp.asarray(rng.normal(size=(b, INPUTS)), jnp.float32), np.arange(b) % c
    tx = egn(predict, "ce", line_search=True, adaptive_damping=True, momentum=0.9)
    step = lambda p, s: tx.update(None, s, p, batch=batch)
    assert max(sizes(jax.make_jaxpr(step)(params, tx.init(params)).jaxpr)) <= 2 * b * c * d
    updates, _ = jax.jit(step)(params, tx.init(params))
    assert jnp.all(jnp.isfinite(ravel_pytree(updates)[0]))


@pytest.mark.slow
def test_trains_in_a_scan_with_narrow_parameters():
    params, predict, x, rng = network(3, jnp.bfloat16)
    y = targets("ce", 3, rng)
    tx = egn(predict, "ce", damping=0.1, momentum=0.5, line_search=True, adaptive_damping=True)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, batch=(x, y))
        return (optax.apply_updates(params, updates), state), None

    def loss(params):
        phi = jax.vmap(functools.partial(predict, params))(x).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(phi, y).mean()

    (end, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=20)
    assert loss(end) < 0.2 * loss(params)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(end))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.velocity))


def test_missing_or_wrong_arguments_raise():
    w = jnp.ones(3)
    tx = egn(lambda w, x: x @ w)
    X, y = jnp.ones((4, 3)), jnp.ones(4)
    with pytest.raises(ValueError, match="batch"):
        tx.update(None, tx.init(w), w)
    with pytest.raises(ValueError, match="params"):
        tx.update(None, tx.init(w), batch=(X, y))
    with pytest.raises(ValueError, match="targets"):
        tx.update(None, tx.init(w), w, batch=(X, jnp.ones((4, 2))))
    with pytest.raises(ValueError, match="two logits"):
        egn(lambda w, x: x @ w, "ce").update(None, tx.init(w), w, batch=(X, jnp.ones(4, int)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("loss", {"loss": "l2"}),
        ("reset", {"reset": "never"}),
        ("learning_rate", {"learning_rate": -1.0}),
        ("damping", {"damping": -1.0}),
        ("momentum", {"momentum": 1.0}),
        ("armijo", {"armijo": 0.0}),
        ("decrease", {"decrease": 1.0}),
        ("increase", {"increase": 0.5}),
        ("max_trials", {"max_trials": 0}),
    ],
)
def test_bad_input_raises(name, options):
    with pytest.raises(ValueError, match=name):
        egn(lambda w, x: x @ w, **options)
    with pytest.raises(TypeError, match="predict_fn"):
        egn(None)
