"""MultiAdam against Adam, a loop in numpy, and on losses of very different scales."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_ext.optimizers.multiadam import grouped_grads, multiadam


def reference(theta, grads, lr, b1, b2, eps, weights, amsgrad, agg, decay):
    n = len(weights)
    m, v, vmax = ([0.0] * n for _ in range(3))
    M = V = 0.0
    path = []
    for t, stacked in enumerate(grads, 1):
        total = 0.0
        for i in range(n):
            g = stacked[i] + decay * theta
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g**2
            vmax[i] = np.maximum(vmax[i], v[i])
            root = np.sqrt((vmax if amsgrad else v)[i] / (1 - b2**t))
            total = total + weights[i] * (m[i] / (1 - b1**t)) / (root + eps)
        if agg is not None:
            a1, a2 = agg
            M = a1 * M + (1 - a1) * total
            V = a2 * V + (1 - a2) * total**2
            total = (M / (1 - a1**t)) / (np.sqrt(V / (1 - a2**t)) + eps)
        theta = theta - lr * total
        path.append(theta)
    return np.array(path)


def trajectory(tx, params, stacked):
    @jax.jit
    def run(params, stacked):
        def step(carry, g):
            params, state = carry
            updates, state = tx.update(None, state, params, loss_grads=g)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, tx.init(params)), stacked)[1]

    return run(params, stacked)


@pytest.mark.always(2)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"group_weights": (0.5, 0.2, 1.0)},
        {"amsgrad": True, "weight_decay": 0.3},
        {"agg_betas": (0.8, 0.9)},
    ],
    ids=["plain", "weights", "amsgrad", "twice"],
)
def test_equals_a_numpy_loop(dtype, options):
    rng = np.random.default_rng(0)
    scale = np.array([1e-3, 1.0, 50.0])[:, None, None]
    grads, start = rng.normal(size=(60, 3, 2, 4)) * scale, rng.normal(size=(2, 4))
    tx = multiadam(1e-2, 0.95, 0.97, n_groups=3, **options)
    path = trajectory(tx, jnp.asarray(start, dtype), jnp.asarray(grads, dtype))
    expected = reference(
        start, grads, 1e-2, 0.95, 0.97, 1e-8,
        options.get("group_weights", (1 / 3,) * 3),
        options.get("amsgrad", False),
        options.get("agg_betas"),
        options.get("weight_decay", 0.0),
    )  # fmt: skip
    assert path.dtype == dtype
    limits = dict(rtol=1e-4, atol=1e-5) if dtype == jnp.float32 else dict(rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(path, expected, **limits)


@pytest.mark.slow
def test_one_group_is_adam(dtype):
    rng = np.random.default_rng(1)
    grads, start = jnp.asarray(rng.normal(size=(60, 3)), dtype), jnp.ones(3, dtype)
    path = trajectory(multiadam(1e-2, n_groups=1), start, grads[:, None])
    adam, x = optax.adam(1e-2, 0.99, 0.99), start
    state = adam.init(x)
    for g, mine in zip(grads, path, strict=True):
        u, state = adam.update(g, state)
        x = optax.apply_updates(x, u)
        np.testing.assert_allclose(mine, x, atol=1e-6 if dtype == jnp.float32 else 1e-13)


def least_squares(scale):
    """Two consistent systems, each with too few equations; the second one is scaled."""
    rng = np.random.default_rng(2)
    A, x = jnp.asarray(rng.normal(size=(2, 5, 10))), jnp.asarray(rng.normal(size=10))
    b = A @ x
    return lambda x: jnp.array([1.0, scale]) * jnp.mean((A @ x - b) ** 2, axis=1)


def descend(tx, losses, steps, adam=False):
    def step(carry, _):
        x, state = carry
        _, grads = grouped_grads(losses)(x)
        updates, state = tx.update(
            jnp.sum(grads, 0), state, x, **({} if adam else {"loss_grads": grads})
        )
        x = optax.apply_updates(x, updates)
        return (x, state), x

    x = jnp.zeros(10)
    return jax.jit(lambda: jax.lax.scan(step, (x, tx.init(x)), length=steps)[1])()


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_scale_of_a_loss_does_not_matter(scale):
    mine = [descend(multiadam(1e-2, eps=1e-12), least_squares(s), 500) for s in (1.0, scale)]
    np.testing.assert_allclose(mine[1], mine[0], rtol=1e-4, atol=1e-7)
    adam = [
        descend(optax.adam(1e-2, 0.99, 0.99, 1e-12), least_squares(s), 500, True)
        for s in (1.0, scale)
    ]
    assert np.linalg.norm(adam[1] - adam[0]) > 0.1 * np.linalg.norm(adam[0])


@pytest.mark.slow
def test_solves_the_small_loss_beside_a_large_one():
    rate = optax.cosine_decay_schedule(1e-2, 3000, alpha=0.1)
    losses = least_squares(1e4)
    mine = descend(multiadam(rate), losses, 3000)[-1]
    adam = descend(optax.adam(rate), losses, 3000, True)[-1]
    assert losses(mine)[0] ** 0.5 <= 0.2 * losses(adam)[0] ** 0.5


@pytest.mark.slow
def test_a_group_without_gradient_takes_its_share(dtype):
    x, tx = jnp.ones(3, dtype), multiadam(0.1)
    grads = jnp.stack([jnp.ones(3, dtype), jnp.zeros(3, dtype)])
    updates, _ = tx.update(None, tx.init(x), x, loss_grads=grads)
    np.testing.assert_allclose(updates, -0.05, rtol=1e-5)


@pytest.mark.slow
def test_grouped_grads_equals_grad_of_each():
    params = {"a": jnp.arange(3.0), "b": jnp.array(2.0)}
    losses = lambda p, c: jnp.stack([jnp.sum(p["a"] ** 2) * c, p["b"] * jnp.sum(jnp.sin(p["a"]))])
    values, grads = grouped_grads(losses)(params, 3.0)
    np.testing.assert_array_equal(values, losses(params, 3.0))
    for i in range(2):
        one = jax.grad(lambda p, i=i: losses(p, 3.0)[i])(params)
        jax.tree.map(lambda g, o, i=i: np.testing.assert_allclose(g[i], o), grads, one)


@pytest.mark.slow
def test_poisson_network_learns():
    """u'' = -(pi/L)^2 sin(pi x/L) on [0, L], u = 0 at both ends."""
    length = 1.0
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "w": 2 * jax.random.normal(keys[0], (16,)),
        "b": jnp.zeros(16),
        "v": jax.random.normal(keys[1], (16,)) / 4,
        "c": jnp.zeros([]),
    }
    xs = jnp.linspace(0, length, 16)
    exact = jnp.sin(jnp.pi * xs / length)

    def u(p, x):
        return jnp.dot(p["v"], jnp.tanh(p["w"] * x + p["b"])) + p["c"]

    def losses(p):
        curvature = jax.vmap(jax.grad(jax.grad(u, 1), 1), (None, 0))(p, xs)
        residual = curvature + (jnp.pi / length) ** 2 * exact
        return jnp.stack([jnp.mean(residual**2), u(p, 0.0) ** 2 + u(p, length) ** 2])

    tx = multiadam(optax.cosine_decay_schedule(1e-2, 1500, 0.1))

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            _, grads = grouped_grads(losses)(params)
            updates, state = tx.update(None, state, params, loss_grads=grads)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=1500)[0][0]

    found = jax.vmap(u, (None, 0))(train(params), xs)
    assert jnp.linalg.norm(found - exact) < 0.05 * jnp.linalg.norm(exact)


@pytest.mark.slow
def test_masked_leaves_are_left_out_of_the_stacked_gradients():
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    grads = jax.tree.map(lambda x: jnp.stack([x, -2 * x]), params)
    tx = optax.masked(multiadam(0.1, group_weights=(0.9, 0.1)), {"a": True, "b": False})
    updates, _ = tx.update(params, tx.init(params), params, loss_grads=grads)
    np.testing.assert_allclose(updates["a"], -0.08, rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], params["b"])


def test_missing_or_wrong_gradients_raise():
    x, tx = jnp.ones(3), multiadam()
    with pytest.raises(ValueError, match="loss_grads"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match="leading axis"):
        tx.update(x, tx.init(x), x, loss_grads=jnp.ones((3, 3)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("b1", 1.0),
        ("b2", -0.1),
        ("eps", 0.0),
        ("n_groups", 0),
        ("group_weights", (1.0,)),
        ("agg_betas", (0.9, 1.0)),
    ],
)
def test_bad_input_raises(name, value):
    with pytest.raises(ValueError, match=name):
        multiadam(**{name: value})
