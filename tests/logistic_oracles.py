"""A logistic regression by numpy and by JAX, on which Newton's methods are compared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt

RNG = np.random.default_rng(4)
N, D = 40, 4
A = RNG.normal(size=(N, D))
Y = (A @ np.array([2.0, -1, 0.5, 0]) + RNG.normal(size=N) > 0) * 1.0
START = np.array([1.0, -2.0, 1.5, 1.0])
RIDGE = 1e-3


def fun(x, turn=None):
    x = x if turn is None else turn @ x
    z = jnp.asarray(A) @ x
    return jnp.mean(jax.nn.softplus(z) - Y * z) + 0.5 * RIDGE * jnp.sum(x**2)


def value(x):
    z = A @ x
    return np.mean(np.logaddexp(0, z) - Y * z) + 0.5 * RIDGE * x @ x


def slope(x):
    return A.T @ (1 / (1 + np.exp(-A @ x)) - Y) / N + RIDGE * x


def curve(x):
    p = 1 / (1 + np.exp(-A @ x))
    return (A.T * (p * (1 - p))) @ A / N + RIDGE * np.eye(D)


def path(solver, start=START, fun=fun):
    trace = lambda problem, x, state: x
    return np.asarray(jxt.solve(jxt.Smooth(fun), solver, jnp.asarray(start), trace=trace).trace)


def turned(solver):
    """The paths in the usual coordinates and in others, from one program; both in the usual."""
    turns = np.stack([np.eye(D), RNG.normal(size=(D, D)) * np.logspace(0, 2, D)])
    trace = lambda problem, x, state: x

    def solve(at):
        turn, start = at
        return jxt.solve(jxt.Smooth(lambda x: fun(x, turn)), solver, start, trace=trace).trace

    starts = np.linalg.solve(turns, np.stack([START, START])[..., None])[..., 0]
    return np.einsum(
        "bij,bkj->bki", turns, jax.jit(lambda *at: jax.lax.map(solve, at))(turns, starts)
    )


THETAS = np.stack([np.linspace(-1, 1, 6), np.linspace(-1.3, 1.3, 6)])


def unrolled(solver, *derivatives):
    """Derivatives of what is found at two parameters, in one program."""
    a = jnp.asarray(A[:6])

    def score(adjoint, theta):
        problem = jxt.Smooth(lambda x: jnp.sum(jnp.log(jnp.cosh(a @ x - theta))))
        value = jxt.solve(problem, solver, jnp.full(D, 0.3), adjoint=adjoint).value
        return jnp.sum(jnp.sin(value))

    found = lambda theta: [derivative(score, theta) for derivative in derivatives]
    return jax.jit(lambda thetas: jax.lax.map(found, thetas))(THETAS)


def gradient(adjoint):
    return lambda score, theta: jax.grad(functools.partial(score, adjoint))(theta)


def along(score, theta):
    score = functools.partial(score, jxt.UnrolledAdjoint())
    return jax.jvp(score, (theta,), (jnp.cos(theta),))[1]


def difference(score, theta):
    ends = theta + 1e-5 * jnp.array([[1.0], [-1.0]]) * jnp.cos(theta)
    ahead, behind = jax.vmap(functools.partial(score, jxt.ImplicitAdjoint()))(ends)
    return (ahead - behind) / 2e-5
