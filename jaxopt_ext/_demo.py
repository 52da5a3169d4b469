"""Sparse logistic regression on breast-cancer data: solved, tuned, and solved without a centre."""

import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import sklearn
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import jaxopt_ext as jxt
from jaxopt_ext import distributed
from jaxopt_ext.core.progress import progress_bar

NODES = 8


def load() -> tuple[Any, ...]:
    """Training and validation rows, standardized, with a column of ones behind."""
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    X = np.concatenate([X, np.ones((len(X), 1))], axis=1)
    split = train_test_split(X, y.astype(float), test_size=0.3, random_state=0, stratify=y)
    return tuple(jnp.asarray(part) for part in split)


def penalty(lam: Any, columns: int) -> jxt.prox.L1:
    """An l1 penalty that leaves the intercept alone."""
    return jxt.prox.L1(lam * jnp.ones(columns).at[-1].set(0.0))


def fit(X, y, lam: Any, **options) -> jxt.Solution:
    """l1-penalized logistic regression with FISTA."""
    problem = jxt.Composite(jxt.objectives.LogisticLoss(X, y), penalty(lam, X.shape[1]))
    solver = jxt.minimize.FISTA(tol=1e-9, max_steps=20_000)
    return jxt.solve(problem, solver, jnp.zeros(X.shape[1]), **options)


def peer_objective(X, y, lam: float) -> float:
    """What scikit-learn's l1 solver reaches on the same problem."""
    options: dict[str, Any] = {"l1_ratio": 1.0} if _version() >= (1, 8) else {"penalty": "l1"}
    model = LogisticRegression(
        C=1 / (lam * len(y)), solver="saga", tol=1e-10, max_iter=100_000, **options
    )
    model.fit(np.asarray(X)[:, :-1], np.asarray(y))
    w = jnp.asarray(np.concatenate([model.coef_[0], model.intercept_]))
    problem = jxt.Composite(jxt.objectives.LogisticLoss(X, y), penalty(lam, X.shape[1]))
    return float(problem.objective(w))


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in sklearn.__version__.split(".")[:2])


def tune(X, y, X_val, y_val, steps: int = 25) -> dict[str, Any]:
    """Gradient descent on log lambda, differentiating the validation loss through the solver."""

    def validation(log_lam):
        w = fit(X, y, jnp.exp(log_lam)).value
        return jxt.objectives.LogisticLoss(X_val, y_val)(w)

    hypergradient = jax.jit(jax.value_and_grad(validation))
    log_lam, path = jnp.log(0.05), []
    with progress_bar(steps, "tuning the penalty") as advance:
        for _ in range(steps):
            loss, slope = hypergradient(log_lam)
            path.append((float(jnp.exp(log_lam)), float(loss)))
            # Far from the minimum the steps are bounded, near it they follow the slope.
            log_lam = log_lam - jnp.clip(10.0 * slope, -0.4, 0.4)
            advance(loss=loss)
    # Checked where the path began, where the slope is large.
    at, step = jnp.log(0.05), 1e-4
    _, slope = hypergradient(at)
    difference = (hypergradient(at + step)[0] - hypergradient(at - step)[0]) / (2 * step)
    return {
        "lam": float(jnp.exp(log_lam)),
        "path": path,
        "hypergradient": float(slope),
        "difference": float(difference),
    }


def decentralize(X, y, lam: float, optimum: Any, rounds: int = 1500) -> dict[str, Any]:
    """The same problem over a ring of nodes that see their own rows only."""
    n = len(y)
    width = -(-n // NODES)
    rows = np.arange(NODES * width).reshape(NODES, width)
    weight = jnp.asarray(rows < n, X.dtype) / n
    batch = X[rows % n], y[rows % n], weight

    def loss(w, data):
        X, y, weight = data
        z = X @ w
        return jnp.sum(weight * (jax.nn.softplus(z) - y * z))

    algorithm = distributed.DecentralizedADMM(
        loss,
        0.0003,
        jxt.minimize.FISTA(tol=1e-9, max_steps=300),
        penalty(lam, X.shape[1]),
    )
    network = distributed.Network.simulated(distributed.ring(NODES))
    result = distributed.run(
        algorithm,
        network,
        network.replicate(jnp.zeros(X.shape[1])),
        batch,
        rounds,
        metric=lambda w: jnp.max(jnp.abs(w - optimum)),
        record_every=10,
    )
    assert result.history is not None
    return {"params": result.params, "distance": np.asarray(result.history)}


def plot(path: str, tuned: dict[str, Any], ring: dict[str, Any], w: Any) -> None:
    """Three panels: the path of the penalty, the coefficients, the distance of the nodes."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    lams, losses = zip(*tuned["path"], strict=True)
    axes[0].plot(lams, losses, "o-", ms=4)
    axes[0].set(
        xscale="log",
        xlabel="penalty $\\lambda$",
        ylabel="validation loss",
        title="gradient descent through the solver",
    )
    axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].xaxis.set_minor_formatter(NullFormatter())
    coefficients = np.asarray(w)[:-1]
    colours = np.where(coefficients == 0, "lightgray", "C0")
    axes[1].bar(range(len(coefficients)), coefficients, color=colours)
    axes[1].axhline(0, color="gray", lw=0.5)
    count = int(np.sum(coefficients != 0))
    axes[1].set(
        xlabel="feature",
        ylabel="coefficient",
        title=f"{count} of {len(coefficients)} features used",
    )
    jxt.plots.convergence(
        ring["distance"], every=10, ylabel="largest error of a coefficient", ax=axes[2]
    )
    axes[2].set(xlabel="round", title=f"decentralized ADMM, {NODES} nodes on a ring")
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run(figure: str) -> int:
    """Run the three parts, print a table, save a figure; 0 if all agree."""
    jax.config.update("jax_enable_x64", True)
    began = time.perf_counter()
    X, X_val, y, y_val = load()

    lam = 0.01
    solution = fit(X, y, lam)
    ours = float(jxt.objectives.LogisticLoss(X, y)(solution.value))
    ours += float(penalty(lam, X.shape[1])(solution.value))
    peer = peer_objective(X, y, lam)

    tuned = tune(X, y, X_val, y_val)
    best = fit(X, y, tuned["lam"])
    accuracy = float(jnp.mean((X_val @ best.value > 0) == (y_val > 0.5)))
    used = int(jnp.sum(best.value[:-1] != 0))

    ring = decentralize(X, y, tuned["lam"], best.value)
    plot(figure, tuned, ring, best.value)

    gap = abs(ours - peer)
    slope_gap = abs(tuned["hypergradient"] - tuned["difference"]) / abs(tuned["difference"])
    distance = float(ring["distance"][-1])
    checks = [gap < 1e-8, slope_gap < 1e-4, distance < 1e-5]
    rows = [
        ("FISTA, lambda = 0.01", f"{int(solution.steps)} steps, objective {ours:.10f}", ""),
        ("scikit-learn on the same problem", f"objective {peer:.10f}", f"gap {gap:.1e}"),
        ("hypergradient at lambda = 0.05", f"{tuned['hypergradient']:+.8f}", ""),
        (
            "central difference",
            f"{tuned['difference']:+.8f}",
            f"relative gap {slope_gap:.1e}",
        ),
        (
            "penalty chosen on validation data",
            f"lambda = {tuned['lam']:.5f}",
            f"loss {tuned['path'][0][1]:.4f} -> {tuned['path'][-1][1]:.4f}",
        ),
        ("features used, accuracy", f"{used} of {X.shape[1] - 1}, {100 * accuracy:.1f} %", ""),
        (
            f"{NODES} nodes on a ring, own rows only",
            f"{10 * len(ring['distance'])} rounds of decentralized ADMM",
            f"error {distance:.1e}",
        ),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    print(
        "\nSparse logistic regression, breast-cancer data "
        f"({len(y)} training and {len(y_val)} validation rows)\n"
    )
    for row in rows:
        print("  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
    print(f"\n  figure: {figure}    time: {time.perf_counter() - began:.1f} s")
    print("  all parts agree" if all(checks) else "  SOME PARTS DISAGREE")
    return 0 if all(checks) else 1
