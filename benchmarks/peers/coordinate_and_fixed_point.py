"""Block coordinate descent and Anderson acceleration against JAXopt and scikit-learn."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import Lasso

import jaxopt_ext as jxt
from benchmarks.timing import race

TITLE = (
    "lasso of 1000 x 5000 by coordinates, at most 200 sweeps, which JAXopt uses up; scikit-learn "
    "is faster: a coordinate is one call of compiled code there, five small kernels of about "
    "0.3 us each here; a deep-equilibrium map of width 200, batch 64"
)


def run() -> list[dict]:
    warnings.simplefilter("ignore")
    return _lasso() + _equilibrium()


def _rows(case, candidates, errors):
    timings = race(candidates, reference="ours", rounds=3)
    return [
        {"case": case, "who": t.name, "ms": 1e3 * t.seconds, "ratio": t.ratio, "error": errors(t)}
        for t in timings
    ]


def _lasso():
    import jaxopt

    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, 5000)).astype(np.float32)
    w = np.where(rng.random(5000) < 0.01, rng.normal(size=5000), 0).astype(np.float32)
    y = X @ w + 0.1 * rng.normal(size=1000).astype(np.float32)
    lam = float(0.1 * np.abs(X.T @ y).max() / 1000)
    loss, start = jxt.objectives.SquaredLoss(X, y), jnp.zeros(5000, jnp.float32)
    problem = jxt.Composite(loss, jxt.prox.L1(lam))
    solver = jxt.minimize.BlockCoordinateDescent(tol=1e-3, max_steps=200)
    ours = jax.jit(
        lambda lam: jxt.solve(jxt.Composite(loss, jxt.prox.L1(lam)), solver, start).value
    )
    peer = jaxopt.BlockCoordinateDescent(
        jaxopt.objective.least_squares, jaxopt.prox.prox_lasso, tol=1e-3, maxiter=200
    )
    data = jnp.asarray(X), jnp.asarray(y)
    theirs = jax.jit(lambda lam: peer.run(start, hyperparams_prox=lam, data=data).params)
    model = Lasso(alpha=lam, fit_intercept=False, tol=1e-4)
    candidates = {
        "ours": lambda: ours(jnp.float32(lam)),
        "JAXopt": lambda: theirs(jnp.float32(lam)),
        "scikit-learn": lambda: jnp.asarray(model.fit(X, y).coef_),
    }
    best = min(float(problem.objective(f())) for f in candidates.values())
    error = lambda t: float(problem.objective(candidates[t.name]())) / best - 1
    return _rows("lasso, excess objective", candidates, error)


def _equilibrium():
    import jaxopt

    keys = jax.random.split(jax.random.key(0), 3)
    W = jax.random.normal(keys[0], (200, 200)) / 200**0.5
    W = 0.95 * W / jnp.linalg.norm(W, 2)
    inputs = jax.random.normal(keys[1], (64, 200))

    def layer(z, inputs):
        return jnp.tanh(z @ W + inputs)

    start = jnp.zeros((64, 200))
    solver = jxt.fixed_point.Anderson(history=5, tol=1e-4, max_steps=500)
    ours = jax.jit(lambda u: jxt.solve(jxt.FixedPoint(lambda z: layer(z, u)), solver, start).value)
    peer = jaxopt.AndersonAcceleration(layer, history_size=5, tol=1e-4, maxiter=500, ridge=1e-5)
    theirs = jax.jit(lambda u: peer.run(start, u).params)
    candidates = {"ours": lambda: ours(inputs), "JAXopt": lambda: theirs(inputs)}
    residual = lambda t: float(
        jnp.linalg.norm(layer(candidates[t.name](), inputs) - candidates[t.name]())
    )
    return _rows("equilibrium, residual", candidates, residual)
