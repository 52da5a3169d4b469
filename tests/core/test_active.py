"""Linear systems that few entries decide, against dense Jacobians and the general way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.core import linear, loops
from jaxopt_ext.core.active import ActiveSystem

N, D = 40, 300
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D))
W = np.where(np.arange(D) % 60 == 0, RNG.normal(size=D), 0)
FEW = np.abs(W) > 0
PROBLEMS = {
    "lasso": (jxt.objectives.SquaredLoss, prox.L1(0.2)),
    "twice": (jxt.objectives.SquaredLoss, 2.0 * prox.L1(np.full(D, 0.1))),
    "elastic net": (jxt.objectives.LogisticLoss, prox.ElasticNet(0.3, 0.5)),
    "folded": (jxt.objectives.SquaredLoss, prox.MCP(0.2, 3.0)),
    "box": (jxt.objectives.HuberLoss, prox.Box(-9.0 * FEW, 9.0 * FEW)),
}


def problem_of(name, dtype):
    loss, function = PROBLEMS[name]
    y = X @ W + 0.01 * RNG.normal(size=N)
    y = (y > 0).astype(float) if name == "elastic net" else y
    loss = loss(jnp.asarray(X, dtype), jnp.asarray(y, dtype))
    kind = jxt.Constrained if name == "box" else jxt.Composite
    return kind(loss, function)


@pytest.mark.parametrize("name", PROBLEMS)
def test_solves_both_ways(name, dtype):
    problem = problem_of(name, dtype)
    x = jnp.asarray(W, dtype)  # as good as any for a Jacobian
    vectors = jnp.asarray(RNG.normal(size=(2, D)), dtype)

    @jax.jit
    def solved(x, vectors):
        system = problem.active(x)
        both = [
            system.solve(v, 1e-4, 128, transposed=t)
            for v, t in zip(vectors, (False, True), strict=True)
        ]
        return both, system.solve(vectors[0], 1e-4, 1, transposed=False)[1]

    both, too_many = solved(x, vectors)
    assert not too_many
    J = np.asarray(jax.jacobian(problem.residual)(x), float)
    for (found, reached), v, matrix in zip(both, vectors, (J, J.T), strict=True):
        assert reached
        assert found.dtype == dtype
        gap = np.linalg.norm(matrix @ np.asarray(found, float) - v) / np.linalg.norm(v)
        assert gap < (1e-4 if dtype == jnp.float32 else 1e-12)


def lasso(theta, linear_solver=jxt.LeastSquaresFallback(), data=X):  # noqa: B008
    loss = jxt.objectives.SquaredLoss(theta["scale"] * jnp.asarray(data), jnp.asarray(X @ W))
    adjoint = jxt.ImplicitAdjoint(linear_solver)
    solver = jxt.minimize.FISTA(tol=1e-10)
    return jxt.solve(
        jxt.Composite(loss, prox.L1(theta["lam"])), solver, jnp.zeros(D), adjoint=adjoint
    ).value


THETA = {"scale": jnp.asarray(1.0), "lam": jnp.asarray(0.1)}


def slopes(theta, solver):
    """First and second derivatives."""
    direction = jax.tree.map(jnp.ones_like, theta)
    score = lambda t: jnp.sum(jnp.sin(lasso(t, solver)))
    return jax.jvp(jax.grad(score), (theta,), (direction,))


def test_derivatives_equal_the_general_ones():
    free = jxt.LeastSquaresFallback(dense_size=0)
    both = jax.jit(lambda t: [slopes(t, s) for s in (jxt.LeastSquaresFallback(), free)])(THETA)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *both)


@pytest.mark.slow
def test_batches_and_forward_mode():
    many = jax.tree.map(lambda a: a * jnp.asarray([1.0, 1.2]), THETA)
    all_of = lambda t: (slopes(t, jxt.LeastSquaresFallback()), jax.jacfwd(lasso)(t))
    batch = jax.jit(jax.vmap(all_of))(many)
    second = jax.jit(all_of)(jax.tree.map(lambda a: a[1], many))
    close = lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-8, atol=1e-10)
    jax.tree.map(close, batch, second)
    jacobian = jax.jit(jax.jacrev(lasso))(THETA)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-8),
        batch[1],
        {name: jnp.asarray(leaf) for name, leaf in jacobian.items()},
    )


def test_what_it_cannot_solve_is_left_to_the_general_way(monkeypatch):
    """Active columns that are the same: the answer is that of least squares; and no Krylov step is
    taken where it can."""
    taken = []
    original = loops.while_loop

    def spied(cond, body, start):
        last = original(cond, body, start)
        if isinstance(start, linear._Search):
            jax.debug.callback(lambda steps: taken.append(int(steps)), last.steps)
        return last

    monkeypatch.setattr(loops, "while_loop", spied)
    twins = np.concatenate([X[:, :150], X[:, :150]], axis=1)
    score = lambda data: lambda lam: jnp.sum(lasso({**THETA, "lam": lam}, data=data) ** 2)
    for data, general in ((twins, True), (X, False)):
        slope = jax.jit(jax.grad(score(data)))(THETA["lam"])
        step = 1e-4
        up, down = (score(data)(THETA["lam"] + s) for s in (step, -step))
        np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-4)
        jax.effects_barrier()
        assert any(taken) == general
        taken.clear()


def test_other_forms_have_none():
    x, loss = jnp.zeros(D), jxt.objectives.SquaredLoss(X, X @ W)
    assert isinstance(jxt.Composite(loss, prox.L1(0.1)).active(x), ActiveSystem)
    for problem in (
        jxt.Composite(loss, prox.L2(0.1)),
        jxt.Composite(lambda w: loss(w), prox.L1(0.1)),
        jxt.Constrained(loss, prox.Simplex()),
        jxt.Smooth(loss),
    ):
        assert problem.active(x) is None
    assert jxt.Composite(loss, prox.L1(0.1)).active(jnp.zeros(D, jnp.float32)) is None
