"""Training by blocks: each block against grids and least squares, the whole by its objective."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import sklearn.datasets
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxopt_ext as jxt
from jaxopt_ext.training import (
    BlockCoordinateTraining,
    Hinge,
    Identity,
    LeakyReLU,
    Logistic,
    ReLU,
    Sigmoid,
    SquaredError,
    Tanh,
    Two,
)
from jaxopt_ext.training.block_coordinate import ridge_step

NUMPY = {
    ReLU: lambda u: np.maximum(u, 0),
    LeakyReLU: lambda u: np.where(u > 0, u, 0.01 * u),
    Identity: lambda u: u,
    Sigmoid: lambda u: 1 / (1 + np.exp(-u)),
    Tanh: np.tanh,
}


def draw(n=12, widths=(4, 5, 5, 2), seed=0, signs=False):
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(n, widths[0])), rng.normal(size=(n, widths[-1]))
    return jnp.asarray(X), jnp.asarray(np.sign(Y) if signs else Y)


@pytest.mark.parametrize("kind", NUMPY, ids=lambda kind: kind.__name__)
def test_inputs_are_global_minimizers(kind):
    """No point of a grid is better, for all draws of the weights and targets."""
    rng = np.random.default_rng(1)
    count = 200
    v, c, u = (2 * rng.normal(size=count) for _ in range(3))
    g = np.exp(rng.normal(size=count))
    found = np.asarray(jax.jit(lambda *a: kind().minimize(*a))(v, c, g, u))[:, None]
    reach = np.abs(v - NUMPY[kind](c)) / np.sqrt(g) + 1
    grid = c[:, None] + reach[:, None] * np.linspace(-1, 1, 4001)
    value = lambda u: (NUMPY[kind](u) - v[:, None]) ** 2 + g[:, None] * (u - c[:, None]) ** 2
    best = value(grid).min(axis=1)
    # Stationary to rounding, where the function is smooth, and never above the grid.
    assert np.all(value(found)[:, 0] <= best + 1e-12)
    near = value(found + 1e-3 * np.array([-1, 1]))
    assert np.all(near >= value(found) - 1e-12)


@pytest.mark.parametrize("kind", [SquaredError, Hinge, Logistic], ids=lambda kind: kind.__name__)
def test_prox_of_losses(kind, dtype):
    rng = np.random.default_rng(2)
    z, y, step = 2 * rng.normal(size=20), np.sign(rng.normal(size=20)), np.exp(rng.normal(size=20))
    losses = {
        SquaredError: lambda u, y: (u - y) ** 2 / 2,
        Hinge: lambda u, y: max(0, 1 - y * u),
        Logistic: lambda u, y: np.log1p(np.exp(-y * u)),
    }
    loss = kind()
    found, values = jax.jit(lambda z, y, step: (loss.prox(z, y, step), loss(z, y)))(
        *(a.astype(dtype) for a in (z, y, step))
    )
    assert found.dtype == dtype
    for a, b, t, u in zip(z, y, step, np.asarray(found, float), strict=True):
        fun = lambda u, a=a, b=b, t=t: losses[kind](u, b) + (u - a) ** 2 / (2 * t)
        wanted = scipy.optimize.minimize_scalar(fun, (a - 1, a + 1), options={"xtol": 1e-12}).fun
        assert fun(u) <= wanted + (1e-12 if dtype == jnp.float64 else 1e-6) * (1 + wanted)
    wanted = [losses[kind](*p) for p in zip(z, y, strict=True)]
    np.testing.assert_allclose(values, wanted, rtol=1e-7 if dtype == jnp.float64 else 1e-5)


def test_ridge_step_of_tall_and_wide_matrices():
    rng = np.random.default_rng(3)
    for shape in ((7, 3), (3, 7)):
        A, R = rng.normal(size=shape), rng.normal(size=(2, shape[0]))
        rows = np.sqrt(1.3) * A, np.sqrt(0.2) * np.eye(shape[1])
        rhs = np.concatenate([np.sqrt(1.3) * R.T, np.zeros((shape[1], 2))])
        wanted = np.linalg.lstsq(np.concatenate(rows), rhs)[0].T
        np.testing.assert_allclose(jax.jit(ridge_step)(A, R, 0.2, 1.3), wanted, rtol=1e-9)


MODELS = {
    "three": lambda w: BlockCoordinateTraining(w, alpha=1.0),
    "three, residual, tanh, penalties": lambda w: BlockCoordinateTraining(
        w,
        Tanh(),
        residual=True,
        gamma=2.0,
        rho=0.5,
        weight_penalty=jxt.prox.L1(0.05),
        output_penalty=jxt.prox.NonNegative(),
    ),
    "two, leaky": lambda w: BlockCoordinateTraining(w, LeakyReLU(0.1), Two()),
    "two, residual, penalties": lambda w: BlockCoordinateTraining(
        w,
        Sigmoid(),
        Two(),
        residual=True,
        loss=Logistic(),
        weight_penalty=jxt.prox.L1(0.05),
        output_penalty=jxt.prox.L2Squared(0.1),
    ),
}


@functools.cache
def _traced(name):
    """Objectives after each block of each of 15 epochs, and the last state."""
    model = MODELS[name]((4, 5, 5, 2) if "residual" in name else (4, 5, 2))
    X, Y = draw(signs=isinstance(model.loss, Logistic))

    @jax.jit
    def run(X, Y):
        def epoch(state, _):
            states = []
            for update in model.updates():
                state = update(state, X, Y)
                states.append(state)
            each = jax.tree.map(lambda *parts: jnp.stack(parts), *states)
            return state, jax.vmap(lambda state: model.objective(state, X, Y))(each)

        return jax.lax.scan(epoch, model.init(X, Y, jax.random.key(0)), length=15)

    return model, X, Y, *run(X, Y)


@pytest.mark.parametrize("name", MODELS)
def test_no_block_lets_the_objective_rise(name):
    _, _, _, state, values = _traced(name)
    values = np.ravel(values)
    values = values[np.isfinite(values)]  # outputs are non-negative after their first update
    assert len(values) >= 60
    assert np.all(np.diff(values) <= 1e-9 * np.abs(values[:-1]))
    assert values[-1] < 0.8 * values[0]
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(eqx.filter(state, eqx.is_array)))


def test_the_residual_objective_by_hand():
    model, X, Y, state, values = _traced("two, residual, penalties")
    X, Y = np.asarray(X), np.asarray(Y)
    parts = jax.tree.map(np.asarray, (state.weights, state.biases, state.outputs))
    W, b, V = parts[0], parts[1], (X, *parts[2])
    sigmoid = NUMPY[Sigmoid]
    misfits = [
        V[1] - sigmoid(V[0] @ W[0].T + b[0]),
        V[2] - sigmoid(V[1] @ W[1].T + b[1]) - V[1],
        V[3] - V[2] @ W[2].T - b[2],
    ]
    wanted = np.sum(np.log1p(np.exp(-Y * V[3]))) + 0.5 * sum(np.sum(m**2) for m in misfits)
    wanted += 0.05 * sum(np.sum(np.abs(w)) for w in W)
    wanted += 0.05 * sum(np.sum(np.square(v)) for v in V[1:3])
    np.testing.assert_allclose(values[-1, -1], wanted, rtol=1e-6)
    hidden = sigmoid(X @ W[0].T + b[0])
    hidden = hidden + sigmoid(hidden @ W[1].T + b[1])
    np.testing.assert_allclose(model.to_network(state)(X), hidden @ W[2].T + b[2], rtol=1e-6)


def test_a_residual_block_is_a_minimizer():
    """The outputs of a layer between two that are skipped: the gradient in them is zero."""
    model = BlockCoordinateTraining((5, 5, 5, 5), residual=True, gamma=0.7, rho=1.9)
    X, Y = draw(widths=(5, 5))
    state = eqx.filter_jit(model.init)(X, Y, jax.random.key(1))
    noise = lambda a: np.asarray(a) + np.random.default_rng(4).normal(size=a.shape)
    state = jax.tree.map(noise, state)

    @jax.jit
    def slopes(state):
        updates, found = model.updates(), []
        for position, i in ((4, 1), (8, 0)):
            state = updates[position](state, X, Y)
            moved = lambda V, s=state, i=i: eqx.tree_at(lambda s: s.outputs[i], s, V)
            value = lambda V, moved=moved: model.objective(moved(V), X, Y)
            found.append(jax.grad(value)(state.outputs[i]))
        return found

    for slope in slopes(state):
        np.testing.assert_allclose(slope, 0, atol=1e-9)


def test_fit_resumes_and_records(tmp_path):
    dtype, model = jnp.float32, BlockCoordinateTraining((4, 3, 2))
    X, Y = (jnp.asarray(np.asarray(a).astype(dtype)) for a in draw(widths=(4, 2)))
    whole = model.fit(X, Y, 6, record_every=2)
    file = tmp_path / "blocks"
    model.fit(X, Y, 4, record_every=2, checkpoint=file)
    resumed = model.fit(X, Y, 6, record_every=2, checkpoint=file)
    assert resumed.epochs == 6
    assert whole.history.dtype == jax.eval_shape(whole.network, X).dtype == dtype
    for a, b in zip(
        *(jax.tree.leaves((f.state, f.history)) for f in (whole, resumed)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert np.all(np.diff(whole.history) <= 0)
    objective = eqx.filter_jit(model.objective)(whole.state, X, Y)
    np.testing.assert_allclose(np.asarray(whole.history)[-1], objective, rtol=1e-5)


def test_samples_may_be_spread_over_devices():
    model = BlockCoordinateTraining((4, 3, 2))
    X, Y = draw(n=16, widths=(4, 2))
    mesh = Mesh(np.array(jax.devices()[:4]), ("samples",))
    spread = NamedSharding(mesh, PartitionSpec("samples"))

    @jax.jit
    def run(X, Y):
        return model.epoch(model.init(X, Y, jax.random.key(0)), X, Y)

    here, there = run(X, Y), run(*jax.device_put((X, Y), spread))
    assert len(there.outputs[0].sharding.device_set) == 4
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_bad_input():
    make = BlockCoordinateTraining
    for options, match in (
        ({"widths": (3,)}, r"inputs and outputs, got \(3,\)"),
        ({"widths": (3, 0)}, "widths must be at least 1, got 0"),
        ({"widths": (3, 2), "alpha": 0.0}, "alpha must be positive, got 0"),
        ({"widths": (3, 2), "gamma": -1.0}, "gamma"),
        ({"widths": (3, 4, 2), "residual": True}, r"two equal widths.*\(3, 4, 2\)"),
    ):
        with pytest.raises(ValueError, match=match):
            make(**options)
    for options, match in (
        ({"activation": jnp.tanh}, "activation must be an object such as ReLU"),
        ({"loss": "hinge"}, "loss must be an object"),
        ({"weight_penalty": 1.0}, "weight_penalty must have a value and a prox"),
    ):
        with pytest.raises(TypeError, match=match):
            make((3, 2), **options)
    X, Y = draw(widths=(4, 2))
    model = make((4, 3, 2), loss=Hinge())
    for call, match in (
        (lambda: model.fit(X, Y, 1), "targets must be -1 or 1"),
        (lambda: model.fit(X[:, :3], jnp.sign(Y), 1), r"\(n, 4\).*\(12, 3\)"),
        (lambda: model.fit(X, jnp.sign(Y)[:5], 1), r"\(n, 2\).*\(5, 2\)"),
        (lambda: model.fit(X[:0], Y[:0], 1), r"\(0, 4\)"),
        (lambda: model.fit(X.at[0, 0].set(jnp.nan), jnp.sign(Y), 1), "X must be finite"),
        (lambda: LeakyReLU(1.0), "slope"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


@pytest.mark.slow
def test_the_gradient_falls_at_least_as_fast_as_proved():
    """The least norm so far, times the number of epochs, stays bounded."""
    model = BlockCoordinateTraining((4, 8, 2), Tanh())
    X, Y = draw(n=40, widths=(4, 2))

    @jax.jit
    def run():
        def epoch(state, _):
            state = model.epoch(state, X, Y)
            slope = jax.grad(model.objective)(state, X, Y)
            return state, jxt.core.tree.norm(slope)

        return jax.lax.scan(epoch, model.init(X, Y, jax.random.key(0)), length=100)[1]

    least = np.minimum.accumulate(run())
    scaled = least * np.arange(1, 101)
    assert least[-1] < least[9]
    assert scaled[-1] <= 3 * scaled[9:30].max()


@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "soon", "late"), [(1, 0.89, 0.92), (3, None, 0.91)])
def test_it_learns_digits(hidden, soon, late):
    """Test accuracies after 5 and 30 epochs, with one hidden layer of 100 and with three."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    images, targets = jnp.asarray(images / 16, jnp.float32), jax.nn.one_hot(labels, 10)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1437], order[1437:]
    model = BlockCoordinateTraining((64, *[100] * hidden, 10))
    X, Y = images[train], targets[train]

    @jax.jit
    def run():
        def epoch(state, _):
            state = model.epoch(state, X, Y)
            guess = jnp.argmax(model.to_network(state)(images[test]), axis=1)
            return state, jnp.mean(guess == labels[test])

        return jax.lax.scan(epoch, model.init(X, Y, jax.random.key(0)), length=30)[1]

    accuracy = run()
    assert soon is None or accuracy[4] >= soon, accuracy
    assert accuracy[29] >= late, accuracy
