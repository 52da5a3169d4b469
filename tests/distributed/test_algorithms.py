"""Each algorithm against a loop over dense matrices that shares no code with it."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import distributed as dd

N, D, STEP, ROUNDS = 6, 3, 0.03, 25
RNG = np.random.default_rng(1)
H = np.stack([np.diag(RNG.uniform(0.5, 2, D)) for _ in range(N)])
C = RNG.normal(size=(N, D))
GRAPH = dd.erdos_renyi(N, 0.5, seed=2)
W = dd.metropolis(GRAPH)
OPTIMUM = np.linalg.solve(H.sum(axis=0), C.sum(axis=0))


def loss(x, batch):
    h, c = batch
    return 0.5 * x @ h @ x - c @ x


def gradient(x):
    return np.einsum("nij,nj->ni", H, x) - C


def digging(x):
    y = gradient(x)
    for _ in range(ROUNDS):
        new = W @ x - STEP * y
        y = W @ y + gradient(new) - gradient(x)
        x = new
    return x


def atc(x):
    y = gradient(x)
    for _ in range(ROUNDS):
        new = W @ (x - STEP * y)
        y = W @ (y + gradient(new) - gradient(x))
        x = new
    return x


def extra(x):
    # The original form, with W and (I + W) / 2 written out.
    half = (np.eye(N) + W) / 2
    old, x = x, W @ x - STEP * gradient(x)
    for _ in range(ROUNDS - 1):
        step = STEP * (gradient(x) - gradient(old))
        old, x = x, (np.eye(N) + W) @ x - half @ old - step
    return x


def diffusion(x):
    # The primal-dual elimination: x+ = A (2 x - x_old - step * (g - g_old)).
    half = (np.eye(N) + W) / 2
    old, x = x, half @ (x - STEP * gradient(x))
    for _ in range(ROUNDS - 1):
        old, x = x, half @ (2 * x - old - STEP * (gradient(x) - gradient(old)))
    return x


def plain(x):
    for _ in range(ROUNDS):
        x = W @ x - STEP * gradient(x)
    return x


ORACLES = {
    dd.GradientTracking: digging,
    dd.AdaptThenCombineTracking: atc,
    dd.EXTRA: extra,
    dd.ExactDiffusion: diffusion,
    dd.DecentralizedGradient: plain,
}


@pytest.mark.parametrize("method", ORACLES, ids=lambda m: m.__name__)
def test_equals_the_recursion_of_the_paper(method):
    start = RNG.normal(size=(N, D))
    network = dd.Network.simulated(GRAPH)
    batch = (jnp.asarray(H), jnp.asarray(C))
    result = dd.run(method(loss, STEP), network, jnp.asarray(start), batch, ROUNDS, progress=False)
    np.testing.assert_allclose(result.params, ORACLES[method](start), rtol=1e-10, atol=1e-12)


def test_admm_equals_the_edge_form():
    """Consensus ADMM with one auxiliary variable for each edge, in its textbook form."""
    penalty = 0.7
    edges = [(i, j) for a, b in GRAPH.edges for i, j in ((a, b), (b, a))]
    start = np.zeros((N, D))
    x, duals = start.copy(), {e: np.zeros(D) for e in edges}
    z = {(i, j): (x[i] + x[j]) / 2 for i, j in edges}
    for _ in range(ROUNDS):
        new = np.empty_like(x)
        for i in range(N):
            around = list(GRAPH.neighbors(i))
            matrix = H[i] + 2 * penalty * len(around) * np.eye(D)
            # Each undirected edge appears as (i, j) and (j, i): two constraints on x_i.
            rhs = C[i] + sum(2 * (penalty * z[i, j] - duals[i, j]) for j in around)
            new[i] = np.linalg.solve(matrix, rhs)
        x = new
        for i, j in edges:
            z[i, j] = (x[i] + x[j]) / 2
        for i, j in edges:
            duals[i, j] = duals[i, j] + penalty * (x[i] - z[i, j])
    algorithm = dd.DecentralizedADMM(loss, penalty, jxt.minimize.FISTA(tol=1e-13, max_steps=2000))
    network = dd.Network.simulated(GRAPH)
    batch = (jnp.asarray(H), jnp.asarray(C))
    result = dd.run(algorithm, network, jnp.asarray(start), batch, ROUNDS, progress=False)
    np.testing.assert_allclose(result.params, x, atol=1e-8)


@pytest.mark.slow
def test_admm_with_a_regularizer_finds_the_lasso():
    from sklearn.linear_model import Lasso

    rng = np.random.default_rng(5)
    A, b = rng.normal(size=(6, 10, 4)), rng.normal(size=(6, 10))
    reference = Lasso(alpha=0.1, fit_intercept=False, tol=1e-12, max_iter=100_000)
    reference.fit(A.reshape(-1, 4), b.reshape(-1))
    algorithm = dd.DecentralizedADMM(
        lambda w, d: 0.5 * jnp.sum((d[0] @ w - d[1]) ** 2) / 60,
        0.05,
        jxt.minimize.FISTA(tol=1e-12, max_steps=500),
        jxt.prox.L1(0.1),
    )
    network = dd.Network.simulated(GRAPH)
    result = dd.run(
        algorithm, network, jnp.zeros((6, 4)), (jnp.asarray(A), jnp.asarray(b)), 400, progress=False
    )
    np.testing.assert_allclose(result.params, np.tile(reference.coef_, (6, 1)), atol=1e-6)


def test_batches_may_depend_on_the_round():
    network = dd.Network.simulated(GRAPH)
    algorithm = dd.DecentralizedGradient(lambda x, b: jnp.vdot(b, x), 1.0)
    batch = lambda r: jnp.ones((N, D)) * r
    result = dd.run(algorithm, network, jnp.zeros((N, D)), batch, 4, progress=False)
    np.testing.assert_allclose(result.params, -(0.0 + 1 + 2 + 3))
