"""Model-based steps by fine searches, convex programs and closed forms."""

import cvxpy as cp
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.stochastic import (
    Average,
    ComposedLoss,
    GrowingPenalty,
    HorizonPenalty,
    Last,
    ProximalPoint,
    ProxLinear,
    RandomIterate,
    StochasticModelBased,
    Subgradient,
    Truncated,
    blind_deconvolution,
    covariance_sketch,
    moreau_gradient,
    phase_retrieval_prox,
    robust_phase_retrieval,
)

M, D = 8, 3
RNG = np.random.default_rng(2)
A, X = RNG.normal(size=(M, D)), RNG.normal(size=D)
B = (A @ RNG.normal(size=D)) ** 2
KEY = jax.random.key(0)
INNER = jxt.splitting.PrimalDualHybridGradient(tol=1e-10, max_steps=5000)


def test_proximal_point_is_the_best_on_a_line():
    """The objective changes along the measurement only."""
    t = np.linspace(-8, 8, 400_001)
    rows = [(a, b, s) for a, b in zip(A, B, strict=True) for s in (0.02, 0.5, 30.0)]
    rows += [(A[0], -1.0, 0.1), (A[1], 0.0, 0.7), (A[2], 2.0, 0.5 / (A[2] @ A[2]))]
    rows += [(np.zeros(D), 1.0, 1.0)]
    a, b, step = (jnp.asarray(np.array(v)) for v in zip(*rows, strict=True))
    found = jax.jit(jax.vmap(lambda a, b, s: phase_retrieval_prox(jnp.asarray(X), (a, b), s)))(
        a, b, step
    )
    for (a, b, step), y in zip(rows, np.asarray(found), strict=True):
        value = lambda y, a=a, b=b, step=step: (
            abs((a @ y) ** 2 - b) + np.sum((y - X) ** 2) / 2 / step
        )
        grid = np.abs((a @ X + t * (a @ a)) ** 2 - b) + t**2 * (a @ a) / 2 / step
        assert value(y) <= grid.min() + 1e-12
        assert value(y) >= grid.min() - 1e-3
    np.testing.assert_array_equal(found[-1], X)


@eqx.filter_jit
def _steps(problem, solver, start, keys):
    drawn = jax.vmap(lambda key: problem.draw(jax.random.split(key, 3)[0], solver.batch))(keys)
    return jax.vmap(lambda key: jxt.solve(problem, solver, start, key=key).value)(keys), drawn


def steps(problem, model, start, beta, seeds=6, **options):
    """The points one step away, and the samples that were drawn."""
    beta = jnp.asarray(beta)  # traced, so that one program serves several
    solver = StochasticModelBased(model, beta, output=Last(), max_steps=1, **options)
    return map(np.asarray, _steps(problem, solver, start, jax.random.split(KEY, seeds)))


def test_prox_linear_in_one_variable():
    t = np.linspace(-3, 3, 600_001)
    problem = robust_phase_retrieval(A, B)
    for beta in (0.3, 20.0):
        found, drawn = steps(problem, ProxLinear(), jnp.asarray(X), beta)
        for y, (i,) in zip(found, drawn, strict=True):
            g, c = 2 * (A[i] @ X) * A[i], (A[i] @ X) ** 2 - B[i]
            best = t[np.argmin(np.abs(c + t * (g @ g)) + beta / 2 * t**2 * (g @ g))]
            np.testing.assert_allclose(y, X + best * g, atol=1e-4)
            clipped = -np.clip(beta * c / (g @ g), -1, 1) * g / beta  # the closed form
            np.testing.assert_allclose(y, X + clipped, atol=1e-12)


def test_prox_linear_with_vectors_and_a_nonsmooth_part():
    """By convex programs."""
    inner = lambda x, row: jnp.stack([row[0] @ x, jnp.vdot(row[0], x) ** 2]) - row[1]
    loss = ComposedLoss(prox.L1(0.7), inner)
    data = (jnp.asarray(A), jnp.asarray(B))
    problem = jxt.FiniteSum(loss, data=data, nonsmooth=prox.L1(0.4))
    found, drawn = steps(problem, ProxLinear(INNER), jnp.asarray(X), 1.5, seeds=3)
    for y, (i,) in zip(found, drawn, strict=True):
        t = A[i] @ X
        value, matrix = np.array([t, t**2]) - B[i], np.stack([A[i], 2 * t * A[i]])
        z = cp.Variable(D)
        model = 0.7 * cp.norm1(value + matrix @ (z - X)) + 0.4 * cp.norm1(z)
        cp.Problem(cp.Minimize(model + 0.75 * cp.sum_squares(z - X))).solve(cp.CLARABEL)
        np.testing.assert_allclose(y, np.asarray(z.value), atol=1e-5)


@pytest.mark.slow
def test_on_affine_parts_prox_linear_is_the_proximal_point():
    loss = ComposedLoss(prox.L1(1.0), lambda x, row: row[0] @ x - row[1])
    problem = jxt.FiniteSum(loss, data=(jnp.asarray(A), jnp.asarray(B)))

    def known(x, row, step):
        a, b = row
        gap = a @ x - b
        return x - jnp.clip(gap / (a @ a), -step, step) * a

    linear, _ = steps(problem, ProxLinear(), jnp.asarray(X), 2.0)
    point, _ = steps(problem, ProximalPoint(known), jnp.asarray(X), 2.0)
    np.testing.assert_allclose(linear, point, rtol=0, atol=1e-13)


def slope(i):
    """Of one sample of phase retrieval."""
    return np.sign((A[i] @ X) ** 2 - B[i]) * 2 * (A[i] @ X) * A[i]


@pytest.mark.slow
def test_subgradients_of_a_batch():
    found, drawn = steps(robust_phase_retrieval(A, B), Subgradient(), jnp.asarray(X), 3.0, batch=4)
    for y, rows in zip(found, drawn, strict=True):
        np.testing.assert_allclose(y, X - np.mean([slope(i) for i in rows], axis=0) / 3)


def test_truncation():
    problem = robust_phase_retrieval(A, B)
    for beta in (0.01, 100.0):
        found, drawn = steps(problem, Truncated(), jnp.asarray(X), beta)
        for y, (i,) in zip(found, drawn, strict=True):
            f, g = np.abs((A[i] @ X) ** 2 - B[i]), slope(i)
            np.testing.assert_allclose(y, X - min(1 / beta, f / (g @ g)) * g)


def test_the_moreau_envelope_by_cases():
    problem = jxt.Smooth(lambda x: jnp.abs(x**2 - 1))
    solver = jxt.minimize.GradientDescent(tol=1e-10)
    found = moreau_gradient(problem, jnp.asarray(0.5), 0.2, solver)
    # At the kink |0.5 - 1| / 0.2 = 2.5 it is higher than at y = 0.5 / (1 - 0.4).
    np.testing.assert_allclose(found, (0.5 - 0.5 / 0.6) / 0.2, rtol=1e-8)
    convex = jxt.Composite(lambda x: 0.0 * jnp.sum(x), prox.L1(1.0))  # Huber's function
    solver = jxt.minimize.ProximalGradient(tol=1e-12)
    found = moreau_gradient(convex, jnp.array([0.1, -3.0]), 0.5, solver)
    np.testing.assert_allclose(found, [0.2, -1.0], atol=1e-8)
    with pytest.raises(TypeError, match="Moreau"):
        moreau_gradient(jxt.FixedPoint(jnp.sin), jnp.asarray(0.5), 0.2, solver)


def test_rank_one_signals_are_found():
    """To rounding."""
    rng = np.random.default_rng(5)
    U, V, u, v = (rng.normal(size=s) for s in ((40, 3), (40, 2), 3, 2))
    start = (jnp.asarray(u + 0.2), jnp.asarray(v - 0.2))
    blind = blind_deconvolution(U, V, (U @ u) * (V @ v))
    solver = StochasticModelBased(ProxLinear(), 1.0, output=Last(), max_steps=2000)
    found = jxt.solve(blind, solver, start)
    x, y = map(np.asarray, found.value)
    np.testing.assert_allclose(np.outer(x, y), np.outer(u, v), atol=1e-8)
    assert found.status == jxt.Status.step_limit
    assert int(found.state.samples) == 2000


@pytest.mark.slow
def test_other_signals_are_found():
    """With another of the models that keep the kink too, and in single precision."""
    rng = np.random.default_rng(5)
    solver = StochasticModelBased(ProxLinear(), 1.0, output=Last(), max_steps=2000)
    P, Q, Z = (rng.normal(size=s) for s in ((40, 3), (40, 3), (3, 1)))
    sketch = covariance_sketch(P, Q, np.sum((P @ Z) ** 2 - (Q @ Z) ** 2, axis=1))
    X = np.asarray(jxt.solve(sketch, solver, jnp.asarray(Z + 0.1)).value)
    np.testing.assert_allclose(X @ X.T, Z @ Z.T, atol=1e-8)
    problem = robust_phase_retrieval(
        *(jnp.asarray(a.astype(np.float32)) for a in (P, (P @ Z[:, 0]) ** 2))
    )
    point = StochasticModelBased(ProximalPoint(phase_retrieval_prox), 1.0, output=Last())
    x = jxt.solve(problem, point, jnp.asarray(Z[:, 0] + 0.1, jnp.float32)).value
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(np.abs(x), np.abs(Z[:, 0]), atol=1e-5)


def test_penalties_and_their_rates():
    """A strongly convex sum: the mean of samples, whose weighted average is known."""
    rng = np.random.default_rng(7)
    centers = rng.normal(size=(20, 2))
    fit = lambda x, c: jnp.vdot(x, c)
    problem = jxt.FiniteSum(fit, data=jnp.asarray(centers), nonsmooth=prox.L2Squared(1.0))
    solver = StochasticModelBased(
        Subgradient(), GrowingPenalty(1.0), output=Average(1.0), max_steps=4000
    )
    found = jxt.solve(problem, solver, jnp.zeros(2))
    np.testing.assert_allclose(found.value, -centers.mean(0), atol=0.06)
    rule = HorizonPenalty(2.0, 0.5)
    solver = StochasticModelBased(Subgradient(), rule, output=Last(), max_steps=3)
    by_hand = StochasticModelBased(Subgradient(), 2 + 2 * 2.0, output=Last(), max_steps=3)
    run = jax.jit(lambda x: [jxt.solve(problem, s, x).value for s in (solver, by_hand)])
    first, second = run(np.ones(2))
    np.testing.assert_array_equal(first, second)


ASKING = StochasticModelBased(Truncated(), 0.01, tol=1e-8, max_steps=5000)


def agreeing(x, a):
    return 0.5 * (a @ (x - 1)) ** 2


def test_a_tolerance_asks_for_the_residual():
    """Where all samples agree, and never before."""
    found = jxt.solve(jxt.FiniteSum(agreeing, data=jnp.asarray(A)), ASKING, jnp.zeros(D))
    assert found.status == jxt.Status.converged
    assert np.linalg.norm(A.T @ A @ (np.asarray(found.value) - 1) / M) <= 1e-8


@pytest.mark.slow
def test_without_a_residual_none_is_asked_for():
    blind = jxt.Expectation(agreeing, sampler=lambda key, b: jax.random.normal(key, (b, D)))
    found = jxt.solve(blind, ASKING, jnp.zeros(D))
    assert found.status == jxt.Status.step_limit
    np.testing.assert_allclose(found.value, 1, atol=1e-6)


def test_bad_input():
    for bad in (
        lambda: StochasticModelBased(Subgradient(), 0.0),
        lambda: StochasticModelBased(Subgradient(), 1.0, weak_convexity=1.5),
        lambda: StochasticModelBased(Subgradient(), HorizonPenalty(0.0, 1e3), weak_convexity=5.0),
        lambda: StochasticModelBased(ProxLinear(), 1.0, batch=2),
        lambda: GrowingPenalty(0.0),
        lambda: robust_phase_retrieval(A, B[1:]),
        lambda: moreau_gradient(robust_phase_retrieval(A, B), jnp.ones(D), 0.0, INNER),
    ):
        with pytest.raises(ValueError, match="must"):
            bad()
    plain = jxt.FiniteSum(lambda x, a: jnp.abs(a @ x), data=jnp.asarray(A), nonsmooth=prox.L1(1.0))
    for model in (Truncated(), ProximalPoint(lambda x, a, t: x), ProxLinear()):
        with pytest.raises(TypeError, match=r"nonsmooth|ComposedLoss"):
            jxt.solve(plain, StochasticModelBased(model, 1.0), jnp.ones(D))
    lasso = jxt.FiniteSum(
        ComposedLoss(prox.L1(1.0), lambda x, a: a @ x), data=jnp.asarray(A), nonsmooth=prox.L1(1.0)
    )
    with pytest.raises(TypeError, match="closed form"):
        jxt.solve(lasso, StochasticModelBased(ProxLinear(), 1.0), jnp.ones(D))
    assert isinstance(StochasticModelBased(Subgradient(), 1.0).output, RandomIterate)


@pytest.mark.slow
def test_the_envelope_gradient_falls_with_the_horizon():
    """At a random iterate, with outliers in the data: the theorem has the power -1/4 of the steps
    for any weakly convex loss. The envelope is found by a search that knows no gradients."""
    rng = np.random.default_rng(3)
    m, seeds, horizons = 40, 12, (500, 2000, 8000)
    A, signal = rng.normal(size=(m, 2)), np.array([1.0, -0.5])
    b = (A @ signal) ** 2 + np.where(rng.random(m) < 0.1, rng.exponential(4.0, m), 0)
    curved = 2 * np.linalg.eigvalsh(A.T @ A / m)[-1]  # a bound of the weak convexity
    rho = 3 * curved

    def reached(steps, key):
        solver = StochasticModelBased(
            Subgradient(), HorizonPenalty(rho, 1.0), output=RandomIterate(), max_steps=steps
        )
        problem = robust_phase_retrieval(jnp.asarray(A), jnp.asarray(b))
        return jxt.solve(problem, solver, jnp.asarray([-0.3, 2.0]), key=key).value

    def norm(x):
        near = lambda y: np.mean(np.abs((A @ y) ** 2 - b)) + rho / 2 * np.sum((y - x) ** 2)
        options = {"xatol": 1e-9, "fatol": 1e-13, "maxiter": 2000}
        return rho * np.linalg.norm(x - minimize(near, x, method="Nelder-Mead", options=options).x)

    means = []
    for steps in horizons:
        points = jax.jit(jax.vmap(lambda key, n=steps: reached(n, key)))(
            jax.random.split(jax.random.key(0), seeds)
        )
        means.append(np.mean([norm(x) ** 2 for x in np.asarray(points)]) ** 0.5)
    assert np.polyfit(np.log(horizons), np.log(means), 1)[0] <= -0.2, means
    assert means[0] > 0.01
