"""Walks against integrals, annealing against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.minimize import textbook
from jaxopt_ext.minimize.textbook import (
    Ball,
    Constants,
    ConvexBody,
    Polytope,
    SampledCentroid,
    SimulatedAnnealing,
    hit_and_run,
)

CORNER = np.concatenate([-np.eye(3), np.ones((1, 3))])  # x >= 0, sum at most 1
SIDES = np.array([0.0, 0, 0, 1])


def _start(count):
    drawn = np.random.default_rng(0).dirichlet(np.ones(4), count)
    return jnp.asarray(0.5 * drawn[:, :3] + 0.05)


def _grid(energy):
    """The mean under e^-E on the corner, by sums over a grid of midpoints."""
    at = (np.arange(80) + 0.5) / 80
    grid = np.stack(np.meshgrid(at, at, at, indexing="ij"), axis=-1).reshape(-1, 3)
    grid = grid[grid.sum(axis=1) <= 1]
    weights = np.exp(-energy(grid.T))
    return weights @ grid / weights.sum(), weights @ grid**2 / weights.sum()


def test_walks_have_the_law_that_is_asked():
    body, key, points = Polytope(CORNER, SIDES), jax.random.key(1), _start(600)
    energy = lambda x: 8 * x[0] + 3 * x[1]
    walk = jax.jit(lambda p, key: hit_and_run(body, p, key, 40))
    tilted = jax.jit(lambda p, key: hit_and_run(body, p, key, 40, energy))
    for run, wanted in ((walk, lambda x: 0 * x[0]), (tilted, energy)):
        found = np.asarray(run(points, key))
        assert (found @ CORNER.T <= SIDES + 1e-12).all()
        mean, square = _grid(wanted)
        np.testing.assert_allclose(found.mean(axis=0), mean, atol=0.03)
        np.testing.assert_allclose((found**2).mean(axis=0), square, atol=0.03)


def test_chords_by_closed_forms():
    x, d = np.array([0.2, 0.1, 0.3]), np.array([1.0, -2.0, 0.5])

    @jax.jit
    def chords(x, d):
        around = Ball(jnp.zeros(3), 2.0)
        bodies = (
            Polytope(CORNER, SIDES),
            Ball(jnp.array([0.2, 0.1, 0.0]), 0.5),
            ConvexBody(prox.L1Ball(1.0).contains, around),
            ConvexBody(lambda x: jnp.all(x < 9), around),
            around,
        )
        return [body.chord(x, d) for body in bodies]

    corner, ball, by_halves, whole, around = chords(x, d)
    # The second entry vanishes at 0.05, the first at -0.2, and the sum is one at -0.8.
    np.testing.assert_allclose(corner, (-0.2, 0.05), rtol=1e-12)
    square = lambda t: (t * d) @ (t * d) + 0.3 * t + 0.09
    for t in ball:
        np.testing.assert_allclose(square(t), 0.25, rtol=1e-9)
    low, high = by_halves
    for t in (low, high):
        np.testing.assert_allclose(np.sum(np.abs(x + t * d)), 1, rtol=1e-9)
    assert low < 0 < high
    np.testing.assert_allclose(whole, around)


def test_sampled_centroids_by_a_simplex():
    """Cuts of a square whose rest is a triangle."""
    centroid, key = SampledCentroid(500, 8), jax.random.key(2)
    body = centroid.start(2, jnp.asarray(1.0), key)
    move, body, ok = jax.jit(centroid.cut)(body, jnp.array([0.6, 0.8]), key)
    assert ok
    # Of the lower part of the square: by symmetry its centroid mirrors that of the upper.
    at = (np.arange(400) + 0.5) / 200 - 1
    grid = np.stack(np.meshgrid(at, at, indexing="ij"), axis=-1).reshape(-1, 2)
    wanted = grid[grid @ [0.6, 0.8] <= 0].mean(axis=0)
    np.testing.assert_allclose(move, wanted, atol=0.06)
    np.testing.assert_allclose(jnp.mean(body.points, axis=0), 0, atol=1e-12)
    assert (body.points @ body.matrix.T <= body.rhs + 1e-12).all()


def _annealed(size, n, chains, within):
    solver = SimulatedAnnealing(1.0, 4.0, num_chains=chains, max_steps=20)
    targets = np.random.default_rng(3).normal(size=(size, n)) / (3 * n**0.5)

    def one(target):
        problem = jxt.Constrained(lambda x: jnp.max(jnp.abs(x - target)), prox.Box(-1.0, 1.0))
        trace = lambda p, x, s: (jnp.mean(jax.vmap(p.smooth)(s.points)), p.smooth(x))
        solution = jxt.solve(problem, solver, jnp.zeros(n), trace=trace)
        return (*solution.trace, solution.status._value)

    means, best, status = map(np.asarray, jax.jit(jax.vmap(one))(jnp.asarray(targets)))
    at = np.linspace(0, 19, 10).astype(int)
    bound = np.asarray(textbook.guarantee(solver, at, Constants(dimension=n)))
    assert (best[:, at] <= bound).all()
    # A cone's samples are nT above its tip in the mean, where the box is far away.
    ratio = means.mean(axis=0)[at] / bound
    assert (ratio <= 1 + within).all(), ratio
    assert (ratio[-5:] >= 1 - within).all(), ratio
    assert not (status == jxt.Status.converged._value).any()


def test_annealed_samples_are_as_good_as_promised():
    _annealed(4, 4, 20, 0.25)


@pytest.mark.slow
def test_annealed_samples_of_many_are_as_good_as_promised():
    _annealed(20, 5, 60, 0.1)


def test_annealing_within_rounding_and_without_solutions():
    bowl = jxt.Smooth(lambda x: 1 + jnp.sum((x - 0.3) ** 2))
    solver = SimulatedAnnealing(2.0, 4.0, tol=1e-3)
    solution = jxt.solve(bowl, solver, jnp.zeros(3))
    assert solution.status == jxt.Status.converged
    assert jnp.linalg.norm(2 * (solution.value - 0.3)) <= 1e-3
    sharp = jxt.solve(bowl, SimulatedAnnealing(2.0, 4.0, tol=1e-12), jnp.zeros(3))
    assert sharp.status == jxt.Status.breakdown
    np.testing.assert_allclose(sharp.value, 0.3, atol=1e-6)
    ill = jxt.Smooth(lambda x: jnp.sum(x) * jnp.nan)
    assert jxt.solve(ill, solver, jnp.zeros(3)).status == jxt.Status.nonfinite


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="do not fit"):
        Polytope(CORNER, SIDES[:2])
    with pytest.raises(ValueError, match="radius"):
        Ball(jnp.zeros(2), 0.0)
    with pytest.raises(TypeError, match="body"):
        hit_and_run(CORNER, _start(9), jax.random.key(0), 3)
    with pytest.raises(ValueError, match="shape"):
        hit_and_run(Polytope(CORNER, SIDES), jnp.zeros(3), jax.random.key(0), 3)
    with pytest.raises(ValueError, match="num_steps"):
        hit_and_run(Polytope(CORNER, SIDES), _start(9), jax.random.key(0), 0)
    for name, value in (("radius", 0.0), ("temperature", 0.0), ("cooling", 1.0)):
        with pytest.raises(ValueError, match=name):
            SimulatedAnnealing(**{"radius": 1.0, name: value})
    solver = SimulatedAnnealing(1.0, num_chains=2)
    with pytest.raises(ValueError, match="chains"):
        jxt.solve(jxt.Smooth(lambda x: jnp.sum(x)), solver, jnp.zeros(3))
