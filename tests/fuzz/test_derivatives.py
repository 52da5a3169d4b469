"""Implicit derivatives of drawn solutions against the reduced linear systems of their active sets,
in numpy; and what is returned where an active set is about to change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import Pairs

import jaxopt_ext as jxt
from jaxopt_ext import minimize, objectives, prox

M, N = 10, 6
QUICK = {"xla_backend_optimization_level": 0}


KINDS = {
    "lasso": lambda f, lam: jxt.Composite(f, prox.L1(lam)),
    "elastic net": lambda f, lam: jxt.Composite(f, prox.ElasticNet(lam, 0.5 * lam)),
    "group lasso": lambda f, lam: jxt.Composite(f, Pairs(lam)),
    "box": lambda f, lam: jxt.Constrained(f, prox.Box(-lam, lam)),
    "simplex": lambda f, lam: jxt.Constrained(f, prox.Simplex(lam)),
}


def draw(seed, size):
    """Data and a direction in them."""
    rng = np.random.default_rng(seed)

    def data():
        return {"A": rng.normal(size=(size, M, N)), "b": rng.normal(size=(size, M))}

    base = {**data(), "lam": 10.0 ** rng.uniform(-1.5, -0.3, size)}
    return base, {**data(), "lam": base["lam"] * rng.normal(size=size)}


def solution(kind, d):
    problem = KINDS[kind](objectives.SquaredLoss(d["A"], d["b"]), d["lam"])
    start = jnp.full(N, d["lam"] / N)
    return jxt.solve(problem, minimize.FISTA(tol=1e-12, max_steps=20_000), start)


def reduced(kind, w, A, b, lam, dA, db, dlam):
    """The derivative on the active set, and by how much that is away from a change."""
    g = A.T @ (A @ w - b) / M
    H = A.T @ A / M
    dg = (dA.T @ (A @ w - b) + A.T @ (dA @ w - db)) / M  # of the gradient at a fixed point
    dw, small = np.zeros(N), 1e-7
    if kind in ("lasso", "elastic net"):
        ridge = 0.5 if kind == "elastic net" else 0.0
        on = np.abs(w) > small
        system = H[np.ix_(on, on)] + ridge * lam * np.eye(on.sum())
        dw[on] = np.linalg.solve(system, -dg[on] - dlam * (np.sign(w[on]) + ridge * w[on]))
        slack = lam - np.abs(g[~on])
    elif kind == "group lasso":
        size = np.linalg.norm(w.reshape(-1, 2), axis=1)
        on, bend, pull = np.repeat(size > small, 2), np.zeros((N, N)), np.zeros(N)
        for k in np.flatnonzero(size > small):
            pair = slice(2 * k, 2 * k + 2)
            pull[pair] = w[pair] / size[k]
            bend[pair, pair] = (np.eye(2) - np.outer(pull[pair], pull[pair])) / size[k]
        system = (H + lam * bend)[np.ix_(on, on)]
        dw[on] = np.linalg.solve(system, -dg[on] - dlam * pull[on])
        slack = lam - np.linalg.norm(g.reshape(-1, 2), axis=1)[size <= small]
        w = np.repeat(size, 2)
    elif kind == "box":
        on = np.abs(w) < lam - small
        dw[~on] = dlam * np.sign(w[~on])
        rhs = -dg[on] - H[np.ix_(on, ~on)] @ dw[~on]
        dw[on] = np.linalg.solve(H[np.ix_(on, on)], rhs)
        slack, w = np.abs(g[~on]), lam - np.abs(w)
    else:
        on = w > small
        k = on.sum()
        system = np.block(
            [[H[np.ix_(on, on)], np.ones((k, 1))], [np.ones((1, k)), np.zeros((1, 1))]]
        )
        dw[on] = np.linalg.solve(system, np.append(-dg[on], dlam))[:k]
        slack = g[~on] - g[on].mean()
    return dw, min(np.min(np.abs(w[on]), initial=1), np.min(slack, initial=1))


def check(seed, size):
    base, move = draw(seed, size)

    def one(d, dot):
        found = {}
        for kind in KINDS:

            def at(d, kind=kind):
                solved = solution(kind, d)
                return solved.value, solved.status == jxt.Status.converged

            found[kind] = jax.jvp(at, (d,), (dot,), has_aux=True)
        return found

    found = jax.jit(jax.vmap(one)).lower(base, move).compile(QUICK)(base, move)
    for kind, (values, slopes, converged) in jax.tree.map(np.asarray, found).items():
        assert converged.all(), kind
        judged = 0
        for k in range(size):
            data = [base[n][k] for n in ("A", "b", "lam")] + [move[n][k] for n in ("A", "b", "lam")]
            wanted, margin = reduced(kind, values[k], *data)
            if margin > 1e-5:
                judged += 1
                np.testing.assert_allclose(
                    slopes[k],
                    wanted,
                    rtol=1e-5,
                    atol=1e-6 * (1 + np.abs(wanted).max()),
                    err_msg=kind,
                )
        assert judged >= 0.9 * size, (kind, judged)


def test_derivatives_are_those_of_the_active_set():
    check(0, 16)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_derivatives_of_many_are_those_of_the_active_set(seed):
    check(seed, 200)


def test_at_a_kink_the_derivative_is_between_the_one_sided_ones():
    """Of $\\tfrac12 \\|x - \\theta\\|^2$, where some entries of $\\theta$ sit on a kink exactly."""
    theta = jnp.array([0.5, -0.5, 0.5, 2.0, 0.1, -1.0, 1.0])
    direction = jnp.array([1.0, 1.0, -3.0, 1.0, 1.0, 2.0, -1.0])

    def run(theta, direction):
        slopes = {}
        for name, make in (
            ("lasso", lambda f: jxt.Composite(f, prox.L1(0.5))),
            ("box", lambda f: jxt.Constrained(f, prox.Box(-1.0, 1.0))),
        ):

            def at(theta, make=make):
                problem = make(lambda x: 0.5 * jnp.sum((x - theta) ** 2))
                return jxt.solve(problem, minimize.FISTA(tol=1e-12), jnp.zeros(7)).value

            slopes[name] = jax.jvp(at, (theta,), (direction,))[1]
        return slopes

    maps = {
        "lasso": lambda t: np.sign(t) * np.maximum(np.abs(t) - 0.5, 0),
        "box": lambda t: np.clip(t, -1, 1),
    }
    t, v, h = np.asarray(theta), np.asarray(direction), 1e-6
    found = jax.jit(run).lower(theta, direction).compile(QUICK)(theta, direction)
    for name, slope in found.items():
        ahead = (maps[name](t + h * v) - maps[name](t)) / h
        behind = (maps[name](t) - maps[name](t - h * v)) / h
        assert np.sum(np.abs(ahead - behind) > 0.5) >= 2  # there are kinks
        low, high = np.minimum(ahead, behind), np.maximum(ahead, behind)
        assert np.all((low - 1e-6 <= slope) & (slope <= high + 1e-6)), (name, slope, low, high)
