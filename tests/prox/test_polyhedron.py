"""Projections on polyhedra against Clarabel, with their derivatives against differences."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxopt_ext import prox

M, K, N = 8, 2, 4
KINDS = ("plain", "redundant", "zero rows", "scales", "no interior", "one vertex", "ties", "empty")


def drawn(kind, rng):
    """Rows and bounds; all kinds but the last have a point."""
    G, z = rng.normal(size=(M, N)), rng.normal(size=N)
    A = rng.normal(size=(K, N))
    h = G @ z + rng.exponential(size=M) * (rng.random(M) < 0.7)
    if kind == "redundant":
        G[3], G[4], G[5] = G[0], 2 * G[1], G[0] + G[1]
        h[3], h[4], h[5] = h[0], 2 * h[1], h[0] + h[1]
        A[1] = -3 * A[0]
    if kind == "zero rows":
        G[4:7], h[4:7], A[1] = 0, [0.0, 1.0, np.inf], 0
    if kind == "scales":
        scale = 10 ** rng.uniform(-5, 5, M)
        G, h = G * scale[:, None], h * scale
    if kind == "no interior":
        G[1], G[3], h[:4] = -G[0], -G[2], G[:4] @ z
        h[1], h[3] = -h[0], -h[2]
    if kind == "one vertex":
        h = G @ z
    if kind == "ties":
        G = rng.integers(-1, 2, size=(M, N)).astype(float)
        h = np.maximum(G @ np.ones(N), 0)
        z, A = np.ones(N), rng.integers(-1, 2, size=(K, N)).astype(float)
    b = A @ z
    if kind == "empty":
        G[1], h[1] = -2 * G[0], -2 * h[0] - 0.1
    return G, h, A, b


def problems(count, seed=0):
    rng = np.random.default_rng(seed)
    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    data = [np.stack(part) for part in zip(*(drawn(kind, rng) for kind in kinds), strict=True)]
    x = rng.normal(size=(count, N)) * 10 ** rng.uniform(-1, 2, (count, 1))
    return kinds, x, *data


@jax.jit
@jax.vmap
def project(x, G, h, A, b):
    """Without and with the equalities, and what the sets say of the answers."""
    sets = prox.Polyhedron(G, h), prox.Polyhedron(G, h, A, b)
    answers = [s.project(x) for s in sets]
    return [(p, s(p), s(p + 1e-2 * (x - p))) for s, p in zip(sets, answers, strict=True)]


def reference(x, G, h, A, b):
    size = lambda rows: np.maximum(np.linalg.norm(rows, axis=1), 1e-9)
    keep = np.isfinite(h)
    u = cp.Variable(N)
    limits = [(G / size(G)[:, None])[keep] @ u <= (h / size(G))[keep]]
    if A is not None:
        limits.append((A / size(A)[:, None]) @ u == b / size(A))
    program = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), limits)
    try:
        program.solve(solver=cp.CLARABEL)
    except cp.SolverError:
        return None
    return u.value if program.status == "optimal" else None


def off_optimal(x, p, G, h, A, b):
    """How far `p` is from feasible, and `x - p` from the cone of the rows that hold with equality,
    by non-negative least squares."""
    size = lambda rows: np.maximum(np.linalg.norm(rows, axis=1), 1e-9)
    G, h = G / size(G)[:, None], h / size(G)
    rows = G[G @ p - h > -1e-9 * (1 + np.abs(p).max())]
    gap = max(0, np.max(G @ p - h))
    if A is not None:
        A, b = A / size(A)[:, None], b / size(A)
        rows, gap = np.concatenate([rows, A, -A]), max(gap, np.max(np.abs(A @ p - b)))
    normal = scipy.optimize.nnls(rows.T, x - p)[1] if len(rows) else np.linalg.norm(x - p)
    return max(gap, normal)


def check(count, seed, clarabel):
    kinds, x, *data = problems(count, seed)
    single = jax.tree.map(lambda v: np.asarray(v, np.float32), (x, *data))
    exact = project(x, *data)
    rough = project(*single)
    compared = 0
    for i, kind in enumerate(kinds):
        G, h, *flat = (v[i] for v in data)
        far = max(1, np.abs(x[i]).max())
        for j, (A, b) in enumerate(((None, None), flat)):
            p, inside, outside = (np.asarray(v)[i] for v in exact[j])
            if kind == "empty":
                assert np.all(np.isnan(p))
                assert inside == np.inf
                continue
            assert np.all(np.isfinite(p)), (kind, i, j)
            assert off_optimal(x[i], p, G, h, A, b) <= 1e-9 * far, (kind, i, j)
            assert inside == 0, (kind, i)
            near = np.linalg.norm(p - x[i]) <= 1e-9 * far
            assert near or outside == np.inf, (kind, i)
            wanted = reference(x[i], G, h, A, b) if clarabel else None
            if wanted is not None:
                compared += 1
                np.testing.assert_allclose(p, wanted, atol=2e-5 * far, err_msg=f"{kind} {i}")
            wanted = p
            # A set without interior may be empty once its data are rounded.
            p, inside, _ = (np.asarray(v)[i] for v in rough[j])
            assert p.dtype == np.float32
            if kind in ("plain", "zero rows", "scales", "ties") and j == 0:
                np.testing.assert_allclose(p, wanted, atol=2e-3 * far, err_msg=f"{kind} {i}")
                assert inside == 0, (kind, i)
            elif np.all(np.isfinite(p)):
                np.testing.assert_allclose(p, wanted, atol=1e-2 * far, err_msg=f"{kind} {i}")
    assert compared > count or not clarabel


def test_projections_equal_those_of_an_interior_point_method():
    check(48, 0, clarabel=True)


@pytest.mark.slow
def test_hundreds_of_projections():
    for seed in range(1, 9):
        check(48, seed, clarabel=seed < 5)


@pytest.mark.slow
def test_derivatives_equal_differences():
    """In all data, forward and in reverse, of a batch that shares the rows."""
    rng = np.random.default_rng(3)
    G, h, A, b = drawn("plain", rng)
    x, weights = rng.normal(size=(2, 6, N))
    directions = tuple(rng.normal(size=v.shape) for v in (3 * x, G, h, A[:1], b[:1]))
    start = 3 * x, G, h, A[:1], b[:1]

    def score(x, G, h, A, b):
        own, shared = prox.Polyhedron(G, h), prox.Polyhedron(G, h, A, b)
        answers = jax.vmap(shared.project)(x) + 2 * jax.vmap(own.project)(x)
        return jnp.vdot(weights, answers + 0.1 * answers**2)

    def along(t):
        return score(*(v + t * d for v, d in zip(start, directions, strict=True)))

    @jax.jit
    def everything(t):
        value, forward = jax.jvp(along, (t,), (1.0,))
        gradients = jax.grad(score, argnums=(0, 1, 2, 3, 4))(*start)
        return value, forward, [jnp.vdot(g, d) for g, d in zip(gradients, directions, strict=True)]

    h = 1e-6
    difference = (everything(h)[0] - everything(-h)[0]) / (2 * h)
    _, forward, parts = everything(0.0)
    np.testing.assert_allclose(forward, difference, rtol=1e-6)
    np.testing.assert_allclose(sum(parts), difference, rtol=1e-6)
    assert all(abs(part) > 1e-3 for part in parts), "each must matter here"


def test_bad_input_is_named():
    G, h = jnp.ones((3, 2)), jnp.ones(3)
    for call, kind, message in (
        (lambda: prox.Polyhedron(G, h[:2]), ValueError, "do not fit"),
        (lambda: prox.Polyhedron(G, h, G), ValueError, "come together"),
        (lambda: prox.Polyhedron(G, h, G[:, :1], h), ValueError, "A and G do not fit"),
        (lambda: prox.Polyhedron(jnp.ones((3, 2), int), h), TypeError, "floating"),
        (lambda: prox.Polyhedron(G * jnp.nan, h), ValueError, "G must be finite"),
        (lambda: prox.Polyhedron(G, h).project(jnp.ones(3)), ValueError, "does not fit x"),
        (lambda: prox.Polyhedron(G, h).project(G), ValueError, "takes a vector"),
        (lambda: prox.Polyhedron(G, h).project(jnp.ones(2, complex)), TypeError, "real numbers"),
    ):
        with pytest.raises(kind, match=message):
            call()
