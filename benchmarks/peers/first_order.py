"""Lasso and l1-logistic regression against JAXopt and scikit-learn."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import Lasso

import jaxopt_ext as jxt
from benchmarks.timing import race

TITLE = (
    "medians over 9 turns in float32; ratio to our jitted call; residual |x - prox(x - grad)|; "
    "data are arguments everywhere. An eager call costs 0.1 to 0.3 ms of Python"
)


def run() -> list[dict]:
    import jaxopt

    warnings.simplefilter("ignore")
    table = []
    for name, loss, peer_loss, lam in _problems(jaxopt):
        X, y = loss.matrix, loss.targets
        start = jnp.zeros(X.shape[1], X.dtype)
        solver = jxt.minimize.FISTA(tol=1e-4, max_steps=20_000)

        def ours(lam, loss, solver=solver, start=start):
            return jxt.solve(jxt.Composite(loss, jxt.prox.L1(lam)), solver, start).value

        peer = jaxopt.ProximalGradient(peer_loss, jaxopt.prox.prox_lasso, tol=1e-4, maxiter=20_000)

        def theirs(lam, X, y, peer=peer, start=start):
            return peer.run(start, hyperparams_prox=lam, data=(X, y)).params

        jitted, peer_jitted = jax.jit(ours), jax.jit(theirs)
        slope = jax.jit(jax.grad(lambda lam, loss, f=ours: jnp.sum(f(lam, loss) ** 2)))
        mine, data = (lam, loss), (lam, X, y)
        candidates = {
            "jitted": lambda f=jitted, a=mine: f(*a),
            "eager": lambda f=ours, a=mine: f(*a),
            "gradient": lambda f=slope, a=mine: f(*a),
            "JAXopt jitted": lambda f=peer_jitted, a=data: f(*a),
            "JAXopt eager": lambda f=theirs, a=data: f(*a),
        }
        if name == "lasso":
            model = Lasso(alpha=float(lam), fit_intercept=False, tol=1e-6)
            host = np.asarray(X), np.asarray(y)
            candidates["scikit-learn"] = lambda m=model, d=host: m.fit(*d).coef_
        problem = jxt.Composite(loss, jxt.prox.L1(lam))
        residual = lambda w, p=problem: float(jxt.tree.norm(p.residual(jnp.asarray(w, X.dtype))))  # noqa: B023
        for timing in race(candidates, reference="jitted", rounds=9):
            row = {"problem": name, "who": timing.name, "ms": 1e3 * timing.seconds}
            row["ratio"] = timing.ratio
            if timing.name != "gradient":
                row["residual"] = residual(candidates[timing.name]())
            table.append(row)
    return table


def _problems(jaxopt):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 1000)).astype(np.float32)
    w = np.where(rng.random(1000) < 0.05, rng.normal(size=1000), 0).astype(np.float32)
    y = X @ w + 0.1 * rng.normal(size=500).astype(np.float32)
    lam = jnp.asarray(0.05 * np.abs(X.T @ y).max() / 500)
    squared = lambda w, data: 0.5 * jnp.mean((data[0] @ w - data[1]) ** 2)
    yield "lasso", jxt.objectives.SquaredLoss(X, y), squared, lam
    X, y = load_breast_cancer(return_X_y=True)
    X = ((X - X.mean(axis=0)) / X.std(axis=0)).astype(np.float32)
    y = y.astype(np.float32)
    loss = lambda w, data: jnp.mean(jax.nn.softplus(data[0] @ w) - data[1] * (data[0] @ w))
    yield "l1-logistic", jxt.objectives.LogisticLoss(X, y), loss, jnp.asarray(0.01, jnp.float32)
