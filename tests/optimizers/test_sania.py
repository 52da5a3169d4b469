"""SANIA against a loop in numpy, the problem that defines its step, and changes of units."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

from jaxopt_ext.optimizers.sania import newton_direction, sania, truncated_cg

D = 5
# Single precision follows a path that is steep in places.
LIMITS = {jnp.float32: dict(rtol=5e-3, atol=2e-3), jnp.float64: dict(rtol=1e-10, atol=1e-12)}


def convex(dtype=jnp.float64):
    """A convex function of five variables with minimum 0.3, and its Hessian."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(8, D))
    b = rng.normal(size=8)
    matrix, vector = jnp.asarray(A, dtype), jnp.asarray(b, dtype)
    return lambda w: jnp.sum(jnp.cosh(matrix @ w - vector)) / 8, A, b


def reference(kind, A, b, w, diagonals, steps, options):
    """`diagonals[t]` is z times Hz at step t."""
    f_star, b2 = options.get("f_star", 0.0), 0.9
    total = np.zeros(D)
    path = []
    for t in range(steps):
        r = A @ w - b
        f, g = np.cosh(r).sum() / 8, A.T @ np.sinh(r) / 8
        H = A.T @ (np.cosh(r)[:, None] * A) / 8
        match kind:
            case "adagrad_sqr":
                total = total + g**2
                B = np.diag(np.sqrt(total) if options.get("is_sqrt") else total)
            case "adam_sqr":
                total = b2 * total + (1 - b2) * g**2
                fair = total / (1 - b2 ** (t + 1))
                B = np.diag(np.sqrt(fair) if options.get("is_sqrt") else fair)
            case "identity":
                B = np.eye(D)
            case "hutchinson":
                total = diagonals[0] if t == 0 else b2 * total + (1 - b2) * diagonals[t]
                B = np.diag(np.maximum(np.abs(total), 0.2))
            case _:
                B = H
        s = np.linalg.solve(B, g)
        q = g @ s
        gap = max(f - f_star, 0)
        if options.get("linear"):
            lam = min(gap / q, options.get("max_step", np.inf))
        else:
            lam = 1 - np.sqrt(1 - 2 * gap / q) if 2 * gap <= q else 1.0
        w = w - options.get("lr", 1.0) * lam * s
        path.append(w)
    return np.array(path)


@pytest.mark.always(6)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("adagrad_sqr", {"is_sqrt": True, "f_star": 0.5}),
        ("adam_sqr", {"f_star": 0.9, "lr": 0.5}),
        ("identity", {"linear": True, "max_step": 0.3}),
        ("hutchinson", {"f_star": 0.9}),
        ("newton", {"f_star": 0.9}),
        ("cg", {"f_star": 0.9}),
        ("adagrad_sqr", {}),
        ("adam_sqr", {"is_sqrt": True, "linear": True}),
        ("identity", {"f_star": 0.9}),
    ],
)
def test_equals_a_numpy_loop(dtype, kind, options):
    loss, A, b = convex(dtype)
    rng = np.random.default_rng(1)
    w, diagonals = rng.normal(size=D), rng.uniform(-1, 3, size=(10, D))
    extra = {"alpha": 0.2} if kind == "hutchinson" else {"cg_steps": 30, "cg_tol": 1e-7}
    tx = sania(kind, b2=0.9, **options, **extra)

    def step(carry, d):
        w, state = carry
        value, grad = jax.value_and_grad(loss)(w)
        prescribed = {"hvp_fn": lambda w, z: d * z} if kind == "hutchinson" else {"loss_fn": loss}
        updates, state = tx.update(grad, state, w, value=value, **prescribed)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    w, prescribed = jnp.asarray(w, dtype), jnp.asarray(diagonals, dtype)
    path = jax.jit(lambda: jax.lax.scan(step, (w, tx.init(w)), prescribed)[1])()
    expected = reference(kind, A, b, np.asarray(w, float), diagonals, 10, options)
    assert path.dtype == dtype
    np.testing.assert_allclose(path, expected, **LIMITS[dtype])


@pytest.mark.always(1)
@pytest.mark.parametrize("kind", ["identity", "newton", "adagrad_sqr"])
def test_step_solves_its_problem(kind):
    """The nearest point in the norm of B where the model reaches the bound, by SLSQP."""
    rng = np.random.default_rng(2)
    A = rng.normal(size=(3, 3))
    H, w, f_star = A @ A.T + np.eye(3), rng.normal(size=3), 0.3
    loss = lambda w: w @ H @ w / 2 + f_star
    value, g = loss(w) * 0.2 + 0.1, H @ w
    B = {"identity": np.eye(3), "newton": H, "adagrad_sqr": np.diag(g**2)}[kind]
    value = min(value, f_star + 0.4 * g @ np.linalg.solve(B, g))  # so that the bound is reached
    tx = sania(kind, f_star=f_star)
    update = lambda g, w: tx.update(g, tx.init(w), w, value=value, hvp_fn=lambda w, z: H @ z)[0]
    step = np.asarray(jax.jit(update)(g, w))
    model = lambda d: value + g @ d + d @ B @ d / 2
    np.testing.assert_allclose(model(step), f_star, atol=1e-10)
    constraint = {"fun": lambda d: f_star - model(d), "jac": lambda d: -g - B @ d}
    found = minimize(
        lambda d: d @ B @ d / 2, np.zeros(3), jac=lambda d: B @ d, method="SLSQP",
        constraints={"type": "ineq", **constraint},
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    np.testing.assert_allclose(step, found.x, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["newton", "cg"])
def test_quadratic_in_one_step(dtype, kind):
    rng = np.random.default_rng(3)
    A = jnp.asarray(rng.normal(size=(6, 6)) + 4 * np.eye(6), dtype)
    target = {"a": jnp.asarray(rng.normal(size=4), dtype), "b": jnp.ones((2, 1), dtype)}

    def loss(p):
        r = A @ jnp.concatenate([jnp.ravel(p["a"] - target["a"]), jnp.ravel(p["b"] - target["b"])])
        return jnp.sum(r**2) / 2

    params = optax.tree.zeros_like(target)
    tx = sania(kind, cg_steps=50, cg_tol=1e-8)
    value, grads = jax.value_and_grad(loss)(params)
    updates, _ = tx.update(grads, tx.init(params), params, value=value, loss_fn=loss)
    # 2 (f - f*) / q is one up to rounding, of which the step takes the root.
    atol = 2e-2 if dtype == jnp.float32 else 1e-6
    jax.tree.map(lambda u, t: np.testing.assert_allclose(u, t, atol=atol), updates, target)


def units():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 50))
    y = np.where(X @ rng.normal(size=50) > 0, 1.0, -1.0)
    return X, y, np.exp(rng.uniform(-6, 6, size=50)), rng.integers(0, 500, size=(500, 50))


def logistic(tx, X, y, batches):
    """Predictions and loss after a pass over the batches."""
    X, y = jnp.asarray(X), jnp.asarray(y)

    def step(carry, rows):
        w, state = carry
        loss = lambda w: jnp.mean(jnp.logaddexp(0, -y[rows] * (X[rows] @ w)))
        value, grad = jax.value_and_grad(loss)(w)
        updates, state = tx.update(grad, state, w, value=value)
        return (optax.apply_updates(w, updates), state), None

    w = jnp.zeros(X.shape[1])
    w = jax.jit(lambda: jax.lax.scan(step, (w, tx.init(w)), batches)[0][0])()
    return np.asarray(X @ w), float(jnp.mean(jnp.logaddexp(0, -y * (X @ w))))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adagrad_sqr", "adam_sqr"])
def test_units_do_not_matter(kind):
    X, y, scale, batches = units()
    plain, loss = logistic(sania(kind), X, y, batches)
    scaled, _ = logistic(sania(kind), X * scale, y, batches)
    np.testing.assert_allclose(scaled, plain, atol=1e-6)
    assert loss < 0.05
    rooted, _ = logistic(sania(kind, is_sqrt=True), X, y, batches)
    apart, _ = logistic(sania(kind, is_sqrt=True), X * scale, y, batches)
    assert np.abs(apart - rooted).max() > 1e-2


def test_newton_direction_in_any_units(dtype):
    rng = np.random.default_rng(5)
    A = rng.normal(size=(9, 6))
    scale = np.exp(rng.uniform(-6, 6, size=6))
    H, g = A.T @ A, rng.normal(size=6)
    matrix, slope = (H * np.outer(scale, scale)).astype(dtype), (g * scale).astype(dtype)
    found = jax.jit(lambda g: newton_direction(lambda z: matrix @ z, g))(slope)
    rtol = 1e-3 if dtype == jnp.float32 else 1e-11
    np.testing.assert_allclose(found * scale, np.linalg.solve(H, g), rtol=rtol)


def test_negative_curvature():
    """Along g at once: g. Later: what there is, still with ⟨g, s⟩ = ⟨s, Hs⟩."""
    g, H = np.ones(3), np.diag([4.0, 2.0, -1.0])

    @jax.jit
    def directions(g):
        cg = jax.vmap(lambda H: truncated_cg(lambda z: H @ z, g, 9, 1e-9))
        return *cg(np.stack([-np.eye(3), H])), newton_direction(lambda z: -z, g)

    at_once, s, newton = map(np.asarray, directions(g))
    np.testing.assert_array_equal(at_once, g)
    np.testing.assert_array_equal(newton, g)
    np.testing.assert_allclose(g @ s, s @ H @ s, rtol=1e-12)
    np.testing.assert_allclose(s, g * 3 / 5, rtol=1e-12)


@pytest.mark.always(2)
@pytest.mark.parametrize(
    "kind", ["adagrad_sqr", "adam_sqr", "identity", "hutchinson", "newton", "cg"]
)
def test_nothing_to_do(dtype, kind):
    """No gradient, or a loss below its bound, gives no step."""
    x, tx = np.ones(3, dtype), sania(kind, f_star=1.0)
    hvp = lambda p, z: 2 * z
    update = lambda grad, value: tx.update(grad, tx.init(x), x, value=value, hvp_fn=hvp)[0]
    updates = jax.jit(jax.vmap(update))(np.stack([0 * x, x]), np.array([3.0, 0.5], dtype))
    np.testing.assert_array_equal(updates, np.zeros((2, 3)))


@pytest.mark.slow
def test_a_coordinate_that_never_had_a_gradient_stays(dtype):
    x = jnp.ones(3, dtype)
    for kind in ("adagrad_sqr", "adam_sqr"):
        tx = sania(kind)
        updates, _ = tx.update(jnp.asarray([1.0, 0.0, 1e-8], dtype), tx.init(x), x, value=0.1)
        assert jnp.all(jnp.isfinite(updates))
        assert updates[1] == 0


@pytest.mark.slow
def test_complex_parameters():
    target = jnp.asarray([1 + 2j, -3j])
    loss = lambda z: jnp.sum(jnp.abs(z - target) ** 2)
    z, tx = jnp.zeros(2, complex), sania("adam_sqr")

    def step(carry, _):
        z, state = carry
        value, grad = jax.value_and_grad(loss)(z)
        updates, state = tx.update(jnp.conj(grad), state, z, value=value)
        return (optax.apply_updates(z, updates), state), None

    found = jax.lax.scan(step, (z, tx.init(z)), length=300)[0][0]
    np.testing.assert_allclose(found, target, atol=1e-3)
    with pytest.raises(TypeError, match="real"):
        sania("newton").init(z)


def test_missing_arguments_raise():
    x = jnp.ones(3)
    with pytest.raises(ValueError, match="value"):
        sania().update(x, sania().init(x), x)
    for kind in ("hutchinson", "newton", "cg"):
        with pytest.raises(ValueError, match="hvp_fn"):
            sania(kind).update(x, sania(kind).init(x), x, value=1.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("preconditioner", {"preconditioner": "adagrad"}),
        ("lr", {"lr": -1.0}),
        ("b2", {"b2": 1.0}),
        ("eps", {"eps": 0.0}),
        ("f_star", {"f_star": jnp.inf}),
        ("is_sqrt", {"preconditioner": "cg", "is_sqrt": True}),
        ("max_step", {"max_step": 1.0}),
        ("max_step", {"max_step": 0.0, "linear": True}),
        ("alpha", {"alpha": 0.0}),
        ("n_warmup", {"n_warmup": 0}),
        ("cg_steps", {"cg_steps": 0}),
        ("cg_tol", {"cg_tol": -1.0}),
    ],
)
def test_bad_input_raises(name, options):
    with pytest.raises(ValueError, match=name):
        sania(**options)
