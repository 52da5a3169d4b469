"""Equilibria: closed forms of solutions and of their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from newton import Newton

import jaxopt_ext as jxt
from jaxopt_ext import prox

RNG = np.random.default_rng(4)


def interior(A):
    """Both mixed strategies and the value of a two by two game without a saddle in pure ones."""
    (a, b), (c, d) = A
    total = a - b - c + d
    x, y = np.array([d - c, a - b]) / total, np.array([d - b, a - c]) / total
    return x, y, (a * d - b * c) / total


MATRIX = np.array([[3.0, -1.0], [-2.0, 1.5]])


def matrix_game(A):
    return jxt.MinMax(lambda x, y: x @ A @ y, prox.Simplex(1.0), prox.Simplex(1.0))


def test_a_matrix_game():
    """$\\partial v / \\partial A = x y^\\top$, and the strategy's derivative by differences."""
    x, y, v = interior(MATRIX)
    off = np.array([0.01, -0.01])
    near = jxt.PrimalDual(jnp.asarray(x + off), jnp.asarray(y + off))

    def value(A):
        z = jxt.solve(matrix_game(A), Newton(), near).value
        return z.primal @ A @ z.dual, z.primal

    found, slope = jax.jit(lambda A: (value(A), jax.jacobian(value)(A)))(jnp.asarray(MATRIX))
    np.testing.assert_allclose(found[0], v, rtol=1e-9)
    np.testing.assert_allclose(found[1], x, rtol=1e-9)
    np.testing.assert_allclose(slope[0], np.outer(x, y), atol=1e-5)
    step = 1e-5
    for i, j in np.ndindex(2, 2):
        move = np.zeros((2, 2))
        move[i, j] = step
        wanted = (interior(MATRIX + move)[0] - interior(MATRIX - move)[0]) / (2 * step)
        np.testing.assert_allclose(slope[1][:, i, j], wanted, atol=1e-8)


def test_an_affine_map_on_a_box():
    """$-(I - D(I - M))^{-1} D$ with the 0/1 diagonal of the free entries."""
    n = 5
    root, skew = RNG.normal(size=(2, n, n))
    M = root.T @ root / n + 0.5 * np.eye(n) + skew - skew.T
    q = 2 * RNG.normal(size=n)
    box = prox.Box(-0.4, 0.4)
    build = lambda q: jxt.VariationalInequality(lambda z: M @ z + q, box)
    z = np.zeros(n)
    for _ in range(4000):  # by projections with a short step
        z = np.clip(z - 0.02 * (M @ z + q), -0.4, 0.4)
    free = np.abs(z) < 0.4
    assert 0 < free.sum() < n
    solved = lambda q: jxt.solve(build(q), Newton(), jnp.asarray(z)).value
    value, slope = jax.jit(lambda q: (solved(q), jax.jacobian(solved)(q)))(jnp.asarray(q))
    np.testing.assert_allclose(value, z, atol=1e-8)
    D = np.diag(free * 1.0)
    wanted = -np.linalg.solve(np.eye(n) - D @ (np.eye(n) - M), D)
    np.testing.assert_allclose(slope, wanted, atol=1e-9)


def quadratic_game(n, size, shift):
    """Losses $z_i^\\top (Q_{ii} z_i / 2 + \\sum_{j \\ne i} Q_{ij} z_j + b_i)$, and the linear
    system."""
    rng = np.random.default_rng(n)
    Q = 0.2 * rng.normal(size=(n, n, size, size))
    for i in range(n):
        Q[i, i] = 2 * np.eye(size) + Q[i, i] @ Q[i, i].T
    b = rng.normal(size=(n, size)) + shift

    def losses(z):
        z = jnp.stack([p["own"] for p in z])
        pushed = jnp.einsum("ijab,jb->ia", jnp.asarray(Q), z) + b
        own = jnp.einsum("iab,ib->ia", jnp.asarray(Q)[np.arange(n), np.arange(n)], z)
        return jnp.sum(z * (pushed - 0.5 * own), axis=1)

    matrix = Q.transpose(0, 2, 1, 3).reshape(n * size, n * size)
    return jxt.Game(losses), -np.linalg.solve(matrix, b.ravel()).reshape(n, size), (matrix, b)


@pytest.mark.always(1)
@pytest.mark.parametrize(("n", "size"), [(3, 2), (10, 1)])
def test_a_game_of_quadratics(n, size):
    """Gradients player by player, and all players in a loop."""
    game, solution, (matrix, b) = quadratic_game(n, size, 0.1)
    start = tuple({"own": jnp.asarray(row)} for row in RNG.normal(size=(n, size)))
    stacked = lambda z: np.stack([np.asarray(p["own"]) for p in z])
    forward = jax.jit(lambda z: game.forward(z))(start)
    wanted = (matrix @ stacked(start).ravel()).reshape(n, size) + b
    np.testing.assert_allclose(stacked(forward), wanted, rtol=1e-11)
    value = jxt.solve(game, Newton(), start).value
    np.testing.assert_allclose(stacked(value), solution, atol=1e-9)


def test_a_minimization_in_other_words():
    """The same solution and gradient as of the constrained problem; and of a saddle."""
    A, b = RNG.normal(size=(8, 4)), RNG.normal(size=8)
    fun = lambda t: lambda x: 0.5 * jnp.sum((A @ x - b) ** 2) + t @ x
    start = jnp.full(4, 0.25)

    def slope(wrap, t):
        problem = jxt.Constrained(fun(t), prox.Simplex(1.0))
        return jxt.solve(wrap(problem), Newton(), start).value

    t = jnp.asarray(0.3 * RNG.normal(size=4)) + A.T @ b - A.T @ A @ start
    whole = lambda t: (slope(jxt.as_inclusion, t), slope(lambda p: p, t))
    inclusion, plain = jax.jit(jax.jacobian(whole))(t)
    np.testing.assert_allclose(inclusion, plain, atol=1e-12)
    assert np.abs(plain).max() > 0.01

    saddle = jxt.Saddle(prox.L1(0.1), prox.Shifted(prox.L2Squared(1.0), b), jnp.asarray(A))
    point = jxt.PrimalDual(jnp.asarray(RNG.normal(size=4)), jnp.asarray(RNG.normal(size=8)))
    inclusion = jxt.as_inclusion(saddle)
    forward = inclusion.forward(point)
    np.testing.assert_allclose(forward.primal, A.T @ point.dual, rtol=1e-12)
    np.testing.assert_allclose(forward.dual, -A @ point.primal, rtol=1e-12)
    # The prox of the conjugate |y|^2/2 + b'y is (y - tb)/(1 + t).
    backward = inclusion.backward(point, 0.5)
    np.testing.assert_allclose(backward.dual, (point.dual - 0.5 * b) / 1.5, rtol=1e-12)
    for name in ("Smooth", "Composite", "RootFinding"):
        problem = {
            "Smooth": jxt.Smooth(fun(t)),
            "Composite": jxt.Composite(fun(t), prox.L1(0.3)),
            "RootFinding": jxt.RootFinding(lambda x: x**3 - t),
        }[name]
        other = jxt.as_inclusion(problem)
        np.testing.assert_allclose(other.residual(start), problem.residual(start), rtol=1e-12)
    with pytest.raises(TypeError, match="FixedPoint"):
        jxt.as_inclusion(jxt.FixedPoint(jnp.sin))


def test_a_mean_of_operators():
    mats, shifts = RNG.normal(size=(7, 3, 3)), RNG.normal(size=(7, 3))
    component = lambda z, s: {"z": s[0] @ z["z"] + s[1]}
    problem = jxt.FiniteSumInclusion(component, (mats, shifts), prox.Box(-1.0, 1.0), chunk=3)
    z = {"z": jnp.asarray(RNG.normal(size=3))}
    each = mats @ np.asarray(z["z"]) + shifts
    np.testing.assert_allclose(problem.forward(z)["z"], each.mean(0), rtol=1e-12)
    picked = np.array([4, 4, 1])
    np.testing.assert_allclose(problem.sampled(z, picked)["z"], each[picked].mean(0), rtol=1e-12)
    moved = np.clip(z["z"] - each.mean(0), -1, 1)
    np.testing.assert_allclose(problem.residual(z)["z"], z["z"] - moved, rtol=1e-12)


def test_a_part_that_methods_may_treat_apart():
    smooth = lambda x: jnp.sum(x**4)
    whole = jxt.MinMax(lambda x, y: x @ y + smooth(x))
    apart = jxt.MinMax(lambda x, y: x @ y, smooth=smooth)
    z = jxt.PrimalDual(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))
    for a, b in zip(whole.forward(z), apart.forward(z), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)
    np.testing.assert_allclose(apart.forward(z).dual, [-1.0, -2.0])


def test_integers_and_functions_in_points():
    z = jxt.PrimalDual({"x": jnp.array([1.0]), "n": 2}, {"y": jnp.array([1.0]), "f": jnp.tanh})
    problem = jxt.MinMax(
        lambda x, y: jnp.sum(x["x"] ** x["n"]) - jnp.sum(y["y"] ** 2) + y["f"](x["x"])[0]
    )
    value = jxt.solve(problem, Newton(), z).value
    assert value.primal["n"] == 2
    np.testing.assert_allclose(
        2 * value.primal["x"] + 1 / np.cosh(value.primal["x"]) ** 2, 0, atol=1e-12
    )


def test_bad_inclusions():
    solve = lambda problem, z: jxt.solve(problem, Newton(), z)
    pair = jxt.PrimalDual(jnp.ones(2), jnp.ones(2))
    players = (jnp.ones(2), jnp.ones(1))
    losses = lambda z: jnp.stack([jnp.sum(z[0] ** 2), jnp.sum(z[1] ** 2)])
    with pytest.raises(ValueError, match=r"F\(z\) must be shaped like x"):
        solve(jxt.VariationalInequality(lambda z: z[:1]), jnp.ones(2))
    with pytest.raises(TypeError, match="nonsmooth"):
        jxt.VariationalInequality(lambda z: z, lambda z: z)
    with pytest.raises(TypeError, match="PrimalDual"):
        solve(jxt.MinMax(lambda x, y: x @ y), jnp.ones(2))
    with pytest.raises(ValueError, match="objective must return a scalar"):
        solve(jxt.MinMax(lambda x, y: x * y), pair)
    with pytest.raises(ValueError, match=r"losses must return shape \(2,\)"):
        solve(jxt.Game(lambda z: jnp.ones(3)), players)
    with pytest.raises(ValueError, match="1 sets for 2 players"):
        solve(jxt.Game(losses, (None,)), players)
    with pytest.raises(TypeError, match="tuple"):
        jxt.Game(losses, prox.Simplex(1.0))
    with pytest.raises(TypeError, match="tuple, a pytree a player"):
        solve(jxt.Game(losses), jnp.ones(2))
    with pytest.raises(ValueError, match="common leading axis"):
        jxt.FiniteSumInclusion(lambda z, s: z, (np.ones(2), np.ones(3)))
    with pytest.raises(ValueError, match="the resolvent must be shaped like"):
        solve(jxt.Inclusion(lambda z: z, lambda z, t: z[:1]), jnp.ones(2))
