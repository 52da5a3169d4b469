"""OASIS finds its own rate on badly scaled problems."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer

from jaxopt_ext.optimizers import oasis

from .. import Outcome
from ._toys import curvature, descend

CLAIM = (
    "On quadratics S Q diag(1..20) Q' S (n = 50, S from 1e-2 to 1e2, 3 seeds) OASIS, without "
    "tuning, has a relative gap below 0.02 after 200 steps and gradient descent at 1/L above 0.5; "
    "on regularized logistic regression (breast cancer, columns times 10^U(-3, 3), full batch, "
    "double precision) its gap is below 1e-3 after 500 steps for first rates 1e-8, 1e-4 and 1 "
    "alike."
)
SETTINGS = (
    "The defaults, with alpha 1e-7 on the logistic problem, whose curvatures are smaller than the "
    "default; gradient descent at 1/L. Seeds 0 to 2, seed 0 for the units. What was tried "
    "afterwards is on the same seeds."
)


def quadratics():
    """The third column is not claimed: the diagonal forgets faster."""
    rows = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        Q = np.linalg.qr(rng.normal(size=(50, 50)))[0]
        S = np.logspace(-2, 2, 50)
        H = S[:, None] * (Q * np.linspace(1, 20, 50)) @ Q.T * S
        b = H @ (rng.normal(size=50) / S)
        best = -0.5 * b @ np.linalg.solve(H, b)
        A, rhs = jnp.asarray(H), jnp.asarray(b)
        f = lambda x, A=A, rhs=rhs: 0.5 * x @ A @ x - rhs @ x
        start = jnp.zeros(50)
        plain = descend(optax.sgd(1 / np.linalg.eigvalsh(H)[-1]), f, start, 200)
        mine = descend(oasis(eta0=1e-3, n_warmup=100), f, start, 200, extras=curvature)
        tried = descend(oasis(eta0=1e-3, b2=0.95, n_warmup=100), f, start, 200, extras=curvature)
        gap = lambda x, f=f, best=best: float((f(x) - best) / -best)
        rows.append(
            {
                "task": f"quadratic, seed {seed}",
                "gradient descent": gap(plain),
                "OASIS": gap(mine),
                "b2 = 0.95": gap(tried),
            }
        )
    return rows


def logistic():
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0) * 10 ** np.random.default_rng(0).uniform(-3, 3, X.shape[1])
    X, y = jnp.asarray(X), jnp.asarray(y, float)

    def f(w):
        z = X @ w
        return jnp.mean(jax.nn.softplus(z) - y * z) + 0.5e-3 * jnp.sum(w**2)

    w = jnp.zeros(X.shape[1])
    for _ in range(100):  # Newton with halving
        g, step = jax.grad(f)(w), 1.0
        p = jnp.linalg.solve(jax.hessian(f)(w), g)
        while f(w - step * p) > f(w) - 1e-4 * step * g @ p and step > 1e-12:
            step /= 2
        w = w - step * p
    best, rows = f(w), []
    for eta in (1e-8, 1e-4, 1.0):
        row = {"task": f"logistic, first rate {eta:g}"}
        for name, b2 in (("OASIS", 0.999), ("b2 = 0.95", 0.95)):
            tx = oasis(eta0=eta, alpha=1e-7, b2=b2, n_warmup=100)
            x = descend(tx, f, jnp.zeros(X.shape[1]), 500, extras=curvature)
            row[name] = float(f(x) - best)
        rows.append(row)
    step = 1 / float(jnp.linalg.norm(X, 2) ** 2 / 4 / len(y) + 1e-3)
    x = descend(optax.sgd(step), f, jnp.zeros(X.shape[1]), 500)
    rows.append({"task": "logistic", "gradient descent": float(f(x) - best)})
    return rows


def run() -> Outcome:
    with jax.enable_x64(True):
        first, second = quadratics(), logistic()
    holds = all(row["OASIS"] < 0.02 and row["gradient descent"] > 0.5 for row in first)
    holds = holds and all(row["OASIS"] < 1e-3 for row in second if "OASIS" in row)
    mean = np.mean([row["OASIS"] for row in first])
    near = sum(row["b2 = 0.95"] < 0.02 for row in first)
    there = sum(row["b2 = 0.95"] < 1e-3 for row in second if "OASIS" in row)
    return Outcome(
        [*first, *second],
        holds,
        f"The mean gap on the quadratics is {mean:.3g}. On the logistic problem the three first "
        "rates end close to each other and far closer than gradient descent, but not within 1e-3: "
        "with b2 = 0.999 the diagonal is still mostly that of the start, where the curvature is "
        "largest. The last column was tried afterwards: with b2 = 0.95, the other end of the "
        f"authors' range, {near} of 3 quadratics are within 0.02 and {there} of 3 logistic runs "
        "within 1e-3.",
        why="scale: the 500 logistic steps are shorter than the 1000 that b2 = 0.999 remembers, "
        "and keep the diagonal of the start; one of the quadratics misses too",
    )
