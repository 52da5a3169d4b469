"""OASIS against a loop in numpy, and on problems whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

from jaxopt_ext.optimizers.oasis import oasis

N = 6


def problem(seed):
    """The quadratic part of a convex quartic, a start, and the z * Hz to prescribe."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(N, N))
    A = A @ A.T + np.eye(N)
    return A, rng.normal(size=N), rng.uniform(-1, 4, size=(40, N))


def reference(A, w, diagonals, *, eta, b1, b2, alpha, warmup, steps, rate=None):
    grad = lambda w: A @ w + w**3
    D = diagonals[:warmup].mean(0)
    later = diagonals[warmup:]
    theta, m, last, path, rates = np.inf, 0.0, None, [], []
    for k in range(steps):
        if k:
            D = b2 * D + (1 - b2) * later[k - 1]
        Dh = np.maximum(np.abs(D), alpha)
        g = grad(w)
        if k and rate is None:
            dw, dg = w - last, g - grad(last)
            local = np.sqrt(np.sum(Dh * dw**2)) / (2 * np.sqrt(np.sum(dg**2 / Dh)))
            new = min(np.sqrt(1 + theta) * eta, local)
            theta, eta = new / eta, new
        m = b1 * m + (1 - b1) * g
        last = w
        w = w - (eta if rate is None else rate) * m / (1 - b1 ** (k + 1)) / Dh
        path.append(w)
        rates.append(eta)
    return np.array(path), np.array(rates)


def run(tx, grad, w, prescribed):
    """Parameters and rates of one step for each row of prescribed z * Hz."""

    def step(carry, d):
        w, state = carry
        hvp = lambda w, z: jax.tree.map(jnp.multiply, d, z)
        updates, state = tx.update(grad(w), state, w, grad_fn=grad, hvp_fn=hvp)
        w = optax.apply_updates(w, updates)
        return (w, state), (w, state.rate)

    return jax.jit(lambda: jax.lax.scan(step, (w, tx.init(w)), prescribed)[1])()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stochastic": False},
        {"b1": 0.9},
        {"adaptive": False, "learning_rate": 0.05, "b1": 0.5},
    ],
    ids=["stochastic", "deterministic", "momentum", "fixed"],
)
def test_equals_a_numpy_loop(dtype, options):
    """One product for the warm start; the k-th call of the product gives the k-th prescription."""
    A, w, diagonals = problem(0)
    steps = 20
    matrix, prescribed = jnp.asarray(A, dtype), jnp.asarray(diagonals, dtype)
    grad = lambda w: matrix @ w + w**3
    tx = oasis(1e-3, b2=0.8, alpha=0.3, n_warmup=1, **options)
    w = jnp.asarray(w, dtype)
    path, rates = run(tx, grad, w, prescribed[:steps])
    expected, expected_rates = reference(
        A, np.asarray(w, float), diagonals, eta=1e-3, b1=options.get("b1", 0.0), b2=0.8,
        alpha=0.3, warmup=1, steps=steps, rate=options.get("learning_rate"),
    )  # fmt: skip
    assert path.dtype == dtype
    rtol = 1e-3 if dtype == jnp.float32 else 1e-10
    np.testing.assert_allclose(path, expected, rtol=rtol, atol=rtol)
    if "learning_rate" not in options:
        np.testing.assert_allclose(rates, expected_rates, rtol=rtol)


@pytest.mark.slow
def test_leaves_of_several_sizes_share_one_rate():
    A, w, diagonals = problem(0)
    cut = lambda x: [x[..., :1], {"rest": x[..., 1:]}]
    join = lambda tree: jnp.concatenate([tree[0], tree[1]["rest"]], -1)
    grad = lambda w: A @ w + w**3
    tx = oasis(1e-3, b2=0.8, alpha=0.3, n_warmup=1)
    one, rates = run(tx, grad, jnp.asarray(w), jnp.asarray(diagonals))
    leaves, shared = run(tx, lambda t: cut(grad(join(t))), cut(w), cut(jnp.asarray(diagonals)))
    np.testing.assert_allclose(shared, rates, rtol=1e-10)
    np.testing.assert_allclose(join(leaves), one, rtol=1e-10)


def trajectory(tx, loss, w, steps):
    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jax.grad(loss)(w), state, w, loss_fn=loss)
        w = optax.apply_updates(w, updates)
        return (w, state), (w, state.rate, state.diagonal)

    return jax.jit(lambda: jax.lax.scan(step, (w, tx.init(w)), length=steps)[1])()


def test_diagonal_quadratic(dtype):
    """One product is exact, and then half the inverse smoothness is 1/2 wherever it is measured."""
    curvature = jnp.logspace(-2, 2, 8, dtype=dtype)
    loss = lambda w: jnp.sum(curvature * w**2) / 2
    w = jnp.ones(8, dtype)
    path, rates, diagonal = trajectory(oasis(1e-3, n_warmup=1), loss, w, 12)
    np.testing.assert_allclose(diagonal, np.broadcast_to(curvature, diagonal.shape), rtol=1e-4)
    np.testing.assert_allclose(rates[1:], 0.5, rtol=2e-4)
    np.testing.assert_allclose(path[2:] / path[1:-1], 0.5, rtol=1e-3)


@pytest.mark.slow
def test_badly_scaled_quadratic(dtype):
    """Nothing is tuned: the gap falls below 2 %, gradient descent with 1/L stays above half."""
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.normal(size=(50, 50)))
    S = np.diag(np.logspace(-2, 2, 50))
    A = S @ Q @ np.diag(np.linspace(1, 20, 50)) @ Q.T @ S
    b = A @ (rng.normal(size=50) / np.diag(S))
    star = -b @ np.linalg.solve(A, b) / 2
    matrix, vector = jnp.asarray(A, dtype), jnp.asarray(b, dtype)
    loss = lambda w: w @ (matrix @ w) / 2 - vector @ w
    last = lambda path: np.asarray(path[-1], float)
    gap = lambda w: (w @ A @ w / 2 - b @ w - star) / -star
    w = jnp.zeros(50, dtype)
    assert gap(last(trajectory(oasis(1e-3, stochastic=False), loss, w, 200)[0])) < 0.02
    plain, rate = np.zeros(50), 1 / np.linalg.eigvalsh(A)[-1]
    for _ in range(200):
        plain = plain - rate * (A @ plain - b)
    assert gap(plain) > 0.5


@pytest.mark.slow
def test_first_rate_does_not_matter():
    """Logistic regression with columns in units from 1e-3 to 1e3."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 20))
    sign = np.where(X @ rng.normal(size=20) + rng.normal(size=500) > 0, 1.0, -1.0)
    X = X * 10 ** rng.uniform(-3, 3, size=20)

    def loss(w):
        return jnp.mean(jnp.logaddexp(0, -sign * (X @ w))) + 5e-4 * jnp.sum(w**2)

    value_and_gradient, hessian = jax.jit(jax.value_and_grad(loss)), jax.jit(jax.hessian(loss))
    best = minimize(
        lambda w: tuple(np.asarray(v) for v in value_and_gradient(w)), np.zeros(20), jac=True,
        hess=lambda w: np.asarray(hessian(w)), method="trust-exact", options={"gtol": 1e-9},
    ).fun  # fmt: skip
    for eta0 in (1e-8, 1e-4, 1.0):
        tx = oasis(eta0, alpha=1e-7, stochastic=False)
        path, _, _ = trajectory(tx, loss, jnp.zeros(20), 500)
        assert float(loss(path[-1])) - best < 1e-5, eta0


@pytest.mark.slow
def test_stands_still_without_breaking(dtype):
    """Equal points and equal gradients: the rate stays, nothing is divided by zero."""
    loss = lambda w: jnp.sum((w - 1) ** 2)
    w = jnp.ones(3, dtype)
    path, rates, _ = trajectory(oasis(0.1, n_warmup=2), loss, w, 300)
    np.testing.assert_array_equal(path, np.ones((300, 3)))
    np.testing.assert_allclose(rates, 0.1, rtol=1e-6)
    flat, rates, _ = trajectory(oasis(0.1, n_warmup=2), lambda w: jnp.sum(w) * 1e-6, w, 5)
    assert jnp.all(jnp.isfinite(flat))
    np.testing.assert_allclose(rates, 0.1, rtol=1e-6)


@pytest.mark.slow
def test_both_gradients_are_of_the_current_batch():
    """Two batches differ in their minimizers only, which the rate does not see."""
    centres = jnp.asarray([[3.0, -1.0], [-2.0, 5.0]])
    tx = oasis(0.05, n_warmup=1)

    def step(carry, batch):
        w, state = carry
        grad = lambda w: w - centres[batch]
        hvp = lambda w, z: z
        updates, state = tx.update(grad(w), state, w, grad_fn=grad, hvp_fn=hvp)
        return (optax.apply_updates(w, updates), state), state.rate

    w = jnp.zeros(2)
    _, rates = jax.lax.scan(step, (w, tx.init(w)), jnp.arange(12) % 2)
    np.testing.assert_allclose(rates[1:], 0.5, rtol=1e-9)


def test_schedule_and_missing_arguments():
    x = jnp.ones(3)
    tx = oasis(adaptive=False, learning_rate=optax.linear_schedule(1.0, 0.0, 2), n_warmup=1)
    hvp = lambda p, z: z
    step = lambda state, _: tx.update(x, state, x, hvp_fn=hvp)[::-1]
    updates = jax.jit(lambda: jax.lax.scan(step, tx.init(x), length=3)[1])()
    np.testing.assert_allclose(updates, -np.outer([1.0, 0.5, 0.0], np.ones(3)))
    tx = oasis()
    with pytest.raises(ValueError, match="hvp_fn"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match="grad_fn"):
        tx.update(x, tx.init(x), x, hvp_fn=hvp)
    with pytest.raises(ValueError, match="params"):
        tx.update(x, tx.init(x), loss_fn=jnp.sum)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("eta0", {"eta0": 0.0}),
        ("b2", {"b2": 1.0}),
        ("alpha", {"alpha": 0.0}),
        ("n_warmup", {"n_warmup": 0}),
        ("b1", {"b1": -0.1}),
        ("learning_rate", {"adaptive": False}),
        ("learning_rate", {"learning_rate": 0.1}),
        ("learning_rate", {"adaptive": False, "learning_rate": -0.1}),
    ],
)
def test_bad_input_raises(name, options):
    with pytest.raises(ValueError, match=name):
        oasis(**options)
