"""The driver of training steps and the plain step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_ext import training

X = np.random.default_rng(0).normal(size=(10, 3))


def square(params, batch, context):
    del context
    return 0.5 * jnp.mean((batch @ params) ** 2), {}


def step(loss=square, tx=None, **options):
    return training.GradientStep(loss, optax.sgd(0.1) if tx is None else tx, **options)


def test_sgd_with_momentum_is_a_loop_of_numpy():
    batches = X[:8].reshape(4, 2, 3)
    fit = training.fit(step(tx=optax.sgd(0.1, momentum=0.9)), jnp.ones(3), batches, piece=3)
    params, speed = np.ones(3), np.zeros(3)
    losses = []
    for batch in batches:
        losses.append(0.5 * np.mean((batch @ params) ** 2))
        speed = 0.9 * speed + batch.T @ (batch @ params) / 2
        params = params - 0.1 * speed
    np.testing.assert_allclose(fit.params, params, rtol=1e-12)
    np.testing.assert_allclose(fit.metrics["loss"], losses, rtol=1e-12)
    assert str(fit) == f"4 steps, last loss {losses[-1]:.3g}"
    none = training.fit(step(), jnp.ones(3), batches, 0)
    assert none.steps == 0
    assert none.metrics["loss"].shape == (0,)
    assert str(none) == "0 steps"


class Mean(eqx.Module):
    """The mean of all parameters after a step."""

    def init(self, params):
        return params

    def update(self, average, params, number):
        return average + (params - average) / number


def test_what_a_loss_is_told():
    def loss(params, batch, context):
        noise = jax.random.normal(context.key, ())
        seen = jax.lax.stop_gradient(jnp.sum(context.averaged))
        pull = context.averaged @ params  # an average has no derivative
        return jnp.sum(batch) * jnp.sum(params) + 0 * pull, {
            "noise": noise,
            "step": context.step,
            "seen": seen,
        }

    batches = jnp.arange(1.0, 6.0)
    fit = training.fit(step(loss, average=Mean()), jnp.zeros(2), batches, progress=False)
    path = -0.1 * np.cumsum(np.arange(1.0, 6.0))
    np.testing.assert_allclose(fit.params, [path[-1]] * 2, rtol=1e-12)
    np.testing.assert_allclose(fit.state.averaged, [np.mean(path)] * 2, rtol=1e-12)
    means = [0, *(2 * np.mean(path[: k + 1]) for k in range(4))]
    np.testing.assert_allclose(fit.metrics["seen"], means, atol=1e-12)
    np.testing.assert_array_equal(fit.metrics["step"], np.arange(1, 6))
    assert len(set(np.asarray(fit.metrics["noise"]).tolist())) == 5


def test_several_averages_projection_and_frozen_parts():
    """Against a loop of numpy; losses see the first average."""

    class Double(eqx.Module):
        def init(self, params):
            return jax.tree.map(lambda leaf: 2 * leaf, params)

        def update(self, average, params, number):
            return jax.tree.map(lambda leaf: 2 * leaf, params)

    def loss(params, batch, context):
        seen = jnp.sum(context.averaged["a"])
        return jnp.sum((params["a"] + params["b"]) * batch), {"seen": seen}

    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    batches = jnp.arange(1.0, 9.0).reshape(4, 2)
    method = step(
        loss,
        average=(Double(), Mean2()),
        trainable={"a": True, "b": False},
        after_update=lambda p: {"a": jnp.maximum(p["a"], 0.0), "b": p["b"]},
    )
    fit = training.fit(method, params, batches, progress=False)
    a, path = np.ones(2), []
    for batch in np.asarray(batches):
        a = np.maximum(a - 0.1 * batch, 0)
        path.append(a)
    np.testing.assert_allclose(fit.params["a"], a, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(fit.params["b"], np.ones(2))
    np.testing.assert_allclose(fit.metrics["seen"], [4, *(2 * np.sum(p) for p in path[:-1])])
    np.testing.assert_allclose(fit.state.averaged[1]["a"], np.mean(path, axis=0), rtol=1e-12)


class Mean2(eqx.Module):
    def init(self, params):
        return params

    def update(self, average, params, number):
        return jax.tree.map(lambda m, leaf: m + (leaf - m) / number, average, params)


def test_what_a_transformation_is_told():
    """Newton's direction from what it may ask for, and a random number of its own."""

    def update(updates, state, params, *, value, grad, value_fn, grad_fn, hvp_fn, key, **extra):
        matrix = jax.vmap(lambda z: hvp_fn(params, z))(jnp.eye(3))
        same = [value - value_fn(params), jnp.sum(abs(grad - grad_fn(params)))]
        return -jnp.linalg.solve(matrix, updates), (jnp.stack(same), jax.random.normal(key))

    zeros = jnp.zeros(2), jnp.zeros(())
    newton = optax.GradientTransformationExtraArgs(lambda params: zeros, update)

    def loss(params, batch, context):
        noise = {"noise": jax.random.normal(context.key)}
        return 0.5 * jnp.mean((batch @ params - 1) ** 2), noise

    fit = training.fit(step(loss, newton), jnp.ones(3), X[None], progress=False)
    np.testing.assert_allclose(fit.params, np.linalg.lstsq(X, np.ones(10))[0], rtol=1e-9)
    same, noise = fit.state.opt_state
    np.testing.assert_array_equal(same, 0)
    assert abs(float(noise - fit.metrics["noise"][0])) > 1e-6
    wanted = training.fit(step(tx=optax.lbfgs()), jnp.ones(3), X[None], 1, progress=False)
    assert float(square(wanted.params, X, None)[0]) < float(square(jnp.ones(3), X, None)[0])


def test_snapshots_are_what_training_had_then():
    batches = X[:9].reshape(9, 1, 3)
    taken = training.Snapshots(step(), every=2, count=3)
    fit = training.fit(taken, jnp.ones(3), batches, piece=5, progress=False)
    for i, number in enumerate((2, 4, 6)):  # there is no room for that of step 8
        wanted = training.fit(step(), jnp.ones(3), batches, number, progress=False)
        np.testing.assert_allclose(fit.state.snapshots[i], wanted.params, rtol=1e-12)
    plain = training.fit(step(), jnp.ones(3), batches, progress=False)
    np.testing.assert_allclose(fit.params, plain.params, rtol=1e-12)
    averaged = training.Snapshots(step(average=Mean()), 4, 3, of=lambda state: state.averaged)
    found = training.fit(averaged, jnp.ones(3), batches, progress=False).state
    np.testing.assert_allclose(found.averaged, found.inner.averaged)
    one = training.fit(step(average=Mean()), jnp.ones(3), batches, 4, progress=False)
    np.testing.assert_allclose(found.snapshots[0], one.state.averaged, rtol=1e-12)
    np.testing.assert_array_equal(found.snapshots[2], 0)  # not reached


def test_batches_drawn_and_fresh():
    table = jnp.arange(5.0)
    drawn = training.Drawn(table, 4000, jax.random.key(0))
    counts = np.bincount(np.asarray(drawn(jnp.asarray(0)), int), minlength=5)
    assert np.all(abs(counts - 800) < 4 * np.sqrt(640))
    assert not np.array_equal(drawn(jnp.asarray(0)), drawn(jnp.asarray(1)))
    fresh = training.Fresh(lambda key: jax.random.normal(key, (2, 3)), jax.random.key(1))
    rows = jnp.stack([fresh(jnp.asarray(t)) for t in range(3)])
    assert len(np.unique(rows)) == 18
    found = training.fit(step(), jnp.ones(3), fresh, 3, progress=False).params
    wanted = training.fit(step(), jnp.ones(3), rows, progress=False).params
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_batches_as_a_function_in_epochs(trace_count):
    key = jax.random.key(1)
    shuffled = training.Shuffled(jnp.asarray(X), 3, key)
    index = np.stack([shuffled(jnp.asarray(t))[1] for t in range(6)]).reshape(2, 9)
    assert all(len(set(epoch)) == 9 for epoch in index.tolist())
    assert not np.array_equal(*index)
    loss = lambda params, batch, context: square(params, batch[0], context)
    go = lambda table: training.fit(step(loss), jnp.ones(3), table, 6, progress=False)
    fit = go(shuffled)
    batches = X[index.reshape(6, 3)]
    wanted = training.fit(step(), jnp.ones(3), batches, progress=False)
    np.testing.assert_allclose(fit.params, wanted.params, rtol=1e-12)
    other = training.Shuffled(jnp.asarray(2 * X), 3, key)
    with trace_count() as traces:  # other numbers are another run of the same program
        go(other)
    assert traces.count == 0
    data = jnp.asarray(X)
    drawn = training.fit(step(), jnp.ones(3), lambda t: data[t][None], 6)
    rows = training.fit(step(), jnp.ones(3), X[:6, None], progress=False)
    np.testing.assert_allclose(drawn.params, rows.params, rtol=1e-12)


def test_models_with_parts_that_are_no_arrays():
    model = eqx.nn.MLP(3, "scalar", 4, 1, key=jax.random.key(0))

    def loss(model, batch, context):
        return square(jnp.ones(1), jax.vmap(model)(batch)[:, None], context)

    fit = training.fit(step(loss), model, X.reshape(5, 2, 3), progress=False)
    assert fit.params.activation is model.activation
    assert fit.metrics["loss"].shape == (5,)
    assert float(jnp.max(jnp.abs(fit.params.layers[0].weight - model.layers[0].weight))) > 1e-4


def test_derivatives_of_a_fit():
    """By the step size, through all steps, against central differences."""
    batches = X.reshape(5, 2, 3)

    def end(rate):
        return jnp.sum(training.fit(step(tx=optax.sgd(rate)), jnp.ones(3), batches).params)

    found = jax.jit(jax.grad(end))(0.1)
    wanted = (end(0.1 + 1e-5) - end(0.1 - 1e-5)) / 2e-5
    np.testing.assert_allclose(found, wanted, rtol=1e-7)


def test_a_lost_batch_is_said(tmp_path):
    batches = X.reshape(5, 2, 3).copy()
    batches[1, 0, 0] = np.inf
    fit = training.fit(step(), jnp.ones(3), batches, progress=False)
    np.testing.assert_array_equal(fit.metrics["finite"], [True, False, True, True, True])
    wanted = training.fit(step(), jnp.ones(3), np.delete(batches, 1, 0), progress=False)
    np.testing.assert_array_equal(fit.params, wanted.params)
    assert str(fit).endswith("1 batches were not finite and left no trace")


def test_bad_input(tmp_path):
    batches, file = X.reshape(5, 2, 3), tmp_path / "file"
    with pytest.raises(TypeError, match="training step"):
        training.fit(square, jnp.ones(3), batches)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="loss"):
        step(loss=3)
    with pytest.raises(TypeError, match="tx"):
        step(tx=3)
    with pytest.raises(TypeError, match="after_update"):
        step(after_update=3)
    with pytest.raises(TypeError, match="method"):
        training.Snapshots(square, 1, 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="every"):
        training.Snapshots(step(), 0, 1)
    with pytest.raises(ValueError, match="5 batches for 6 steps"):
        training.fit(step(), jnp.ones(3), batches, 6)
    with pytest.raises(ValueError, match="num_steps"):
        training.fit(step(), jnp.ones(3), lambda t: batches)
    with pytest.raises(TypeError, match="floating-point"):
        training.fit(step(), jnp.ones(3, int), batches)
    with pytest.raises(ValueError, match="leading axis"):
        training.fit(step(), jnp.ones(3), (batches, X))
    with pytest.raises(ValueError, match="batch_size"):
        training.Shuffled(X, 11, jax.random.key(0))
    training.fit(step(), jnp.ones(3), batches, 4, checkpoint=file, progress=False)
    with pytest.raises(ValueError, match="holds 4 steps"):
        training.fit(step(), jnp.ones(3), batches, 3, checkpoint=file)
    with pytest.raises(ValueError, match="another run"):
        training.fit(step(), jnp.ones((3, 2)), batches, checkpoint=file)
    with pytest.raises(ValueError, match="checkpoint"):
        jax.jit(lambda p: training.fit(step(), p, batches, checkpoint=file).params)(jnp.ones(3))
