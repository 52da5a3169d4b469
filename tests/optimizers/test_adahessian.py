"""AdaHessian against a loop in numpy, momentum and Adam."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_ext.optimizers.adahessian import adahessian, scale_by_adahessian, spatial_average

SHAPES = {"bias": (5,), "matrix": (3, 4), "kernel": (2, 3, 3, 2)}


def blockwise(d, size):
    flat = d.reshape(-1)
    out = np.empty_like(flat)
    for start in range(0, flat.size, size):
        out[start : start + size] = flat[start : start + size].mean()
    return out.reshape(d.shape)


def averaged(name, d, block_size):
    if name == "kernel":
        return np.broadcast_to(d.mean((2, 3))[:, :, None, None], d.shape)
    return blockwise(d, block_size) if name == "matrix" else d


def reference(theta, grads, diagonals, *, lr, b1, b2, eps, k, decay, block_size, each, abs_first):
    """`diagonals[t]` is z times Hz at step t."""
    m = {n: 0.0 for n in theta}
    v = {n: 0.0 for n in theta}
    refreshes = 0
    for t, (g, d) in enumerate(zip(grads, diagonals, strict=True), 1):
        if (t - 1) % each == 0:
            refreshes += 1
            for n in theta:
                x = averaged(n, np.abs(d[n]) if abs_first else d[n], block_size)
                v[n] = b2 * v[n] + (1 - b2) * x**2
        for n in theta:
            m[n] = b1 * m[n] + (1 - b1) * g[n]
            denominator = np.sqrt(v[n] / (1 - b2**refreshes)) ** k + eps
            step = m[n] / (1 - b1**t) / denominator
            theta = {**theta, n: theta[n] - lr * (step + decay * theta[n])}
    return theta


def trees(seed, steps):
    rng = np.random.default_rng(seed)
    return [{n: rng.normal(size=s) for n, s in SHAPES.items()} for _ in range(steps)]


@pytest.mark.always(3)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.3, "hessian_power": 0.5},
        {"block_size": 5, "abs_before_average": False},
        {"update_each": 3},
    ],
    ids=["plain", "decay", "blocks", "delayed"],
)
def test_equals_a_numpy_loop(dtype, options):
    """The products are prescribed, times the signs, so that z * Hz is what the loop gets."""
    steps = 12
    start, grads, diagonals = trees(0, 1)[0], trees(1, steps), trees(2, steps)
    cast = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, dtype))
    tx = adahessian(0.05, 0.8, 0.95, **options)

    def step(carry, both):
        params, state = carry
        g, d = both
        hvp = lambda params, z: jax.tree.map(lambda a, b: a * b, d, z)
        updates, state = tx.update(g, state, params, hvp_fn=hvp)
        return (optax.apply_updates(params, updates), state), None

    params = cast(start)
    stack = lambda ts: cast(jax.tree.map(lambda *x: np.stack(x), *ts))
    stacked = stack(grads), stack(diagonals)
    params = jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), stacked)[0][0])()
    expected = reference(
        start, grads, diagonals, lr=0.05, b1=0.8, b2=0.95, eps=1e-4,
        k=options.get("hessian_power", 1.0), decay=options.get("weight_decay", 0.0),
        block_size=options.get("block_size", 1), each=options.get("update_each", 1),
        abs_first=options.get("abs_before_average", True),
    )  # fmt: skip
    rtol = 2e-4 if dtype == jnp.float32 else 1e-11
    for name in SHAPES:
        assert params[name].dtype == dtype
        np.testing.assert_allclose(params[name], expected[name], rtol=rtol, atol=rtol)


@pytest.mark.slow
def test_power_zero_is_momentum(dtype):
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), dtype)
    tx = adahessian(0.1, hessian_power=0.0)
    x = jnp.zeros(4, dtype)
    state, m = tx.init(x), 0.0
    for t, g in enumerate(grads, 1):
        updates, state = tx.update(g, state, x, hvp_fn=lambda p, z: z)
        m = 0.9 * m + 0.1 * np.asarray(g, float)
        np.testing.assert_allclose(updates, -0.1 * m / (1 - 0.9**t) / (1 + 1e-4), rtol=1e-5)


@pytest.mark.slow
def test_signs_change_from_step_to_step():
    H = jnp.asarray([[1.0, 0.9], [0.9, 1.0]])
    tx = scale_by_adahessian(b2=0.0)
    x = jnp.ones(2)
    state, seen = tx.init(x), set()
    for _ in range(12):
        _, state = tx.update(x, state, x, hvp_fn=lambda p, z: H @ z)
        seen.add(round(float(state.nu[0]), 6))
    assert seen == {round(0.1**2, 6), round(1.9**2, 6)}


@pytest.mark.slow
def test_nodes_average_the_product_before_the_absolute_value():
    rng = np.random.default_rng(3)
    H = jnp.asarray(rng.normal(size=(4, 6, 6)))
    H = H + H.swapaxes(1, 2)
    tx = adahessian()
    x, g = jnp.zeros(6), jnp.ones(6)

    def node(H):
        hvp = lambda p, z: jax.lax.pmean(H @ z, "nodes")
        return tx.update(g, tx.init(x), x, hvp_fn=hvp)[0]

    apart = jax.vmap(node, axis_name="nodes")(H)
    together, _ = tx.update(g, tx.init(x), x, hvp_fn=lambda p, z: H.mean(0) @ z)
    np.testing.assert_allclose(apart, np.broadcast_to(together, apart.shape), rtol=1e-12)


@pytest.mark.slow
def test_loss_and_product_agree():
    loss = lambda p: jnp.sum(jnp.cosh(p["a"])) * jnp.sum(p["b"] ** 2)
    params = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}
    hvp = lambda p, z: jax.jvp(jax.grad(loss), (p,), (z,))[1]
    tx, grads = adahessian(), jax.grad(loss)(params)
    outcomes = [
        tx.update(grads, tx.init(params), params, **{name: fun})[0]
        for name, fun in {"loss_fn": loss, "value_fn": loss, "hvp_fn": hvp}.items()
    ]
    jax.tree.map(np.testing.assert_array_equal, *outcomes[:2])
    jax.tree.map(np.testing.assert_array_equal, *outcomes[1:])


@pytest.mark.slow
def test_badly_scaled_quadratic_in_single_precision():
    """Eigenvalues from 1e-3 to 1e3: below a tenth of Adam's best of three rates."""
    curvature = jnp.logspace(-3, 3, 50, dtype=jnp.float32)
    loss = lambda x: jnp.sum(curvature * x**2) / 2

    @functools.partial(jax.jit, static_argnums=0)
    def final(method, rate):
        tx = optax.with_extra_args_support(method(rate))

        def step(carry, _):
            x, state = carry
            updates, state = tx.update(jax.grad(loss)(x), state, x, loss_fn=loss)
            return (optax.apply_updates(x, updates), state), None

        x = jnp.ones(50, jnp.float32)
        return loss(jax.lax.scan(step, (x, tx.init(x)), length=200)[0][0])

    adam = min(float(final(optax.adam, rate)) for rate in (0.1, 0.01, 0.001))
    assert final(adahessian, 0.15) <= 0.1 * adam


@pytest.mark.always(1)
@pytest.mark.parametrize(
    ("shape", "axes", "over"),
    [((2, 3, 4), (2, 3), (2,)), ((3, 2, 4), (0, 1), (0,)), ((2, 2, 3, 3, 3), (2, 3, 4), (2, 3, 4))],
)
def test_spatial_axes_of_other_kernels(shape, axes, over):
    d = np.random.default_rng(0).normal(size=shape)
    expected = np.broadcast_to(d.mean(over, keepdims=True), shape)
    np.testing.assert_allclose(spatial_average(jnp.asarray(d), 1, axes), expected)


def test_missing_arguments_raise():
    x, tx = jnp.ones(3), adahessian()
    with pytest.raises(ValueError, match="hvp_fn"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match="params"):
        tx.update(x, tx.init(x), loss_fn=jnp.sum)
    with pytest.raises(TypeError, match="real"):
        tx.init(jnp.ones(2, jnp.complex64))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1.0),
        ("b1", 1.0),
        ("b2", -0.1),
        ("eps", 0.0),
        ("hessian_power", 1.5),
        ("n_samples", 0),
        ("block_size", 0),
        ("update_each", 0),
        ("spatial_axes", (-1,)),
        ("weight_decay", -1.0),
    ],
)
def test_bad_input_raises(name, value):
    with pytest.raises(ValueError, match=name):
        adahessian(**{name: value})
