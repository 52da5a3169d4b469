"""What Anderson acceleration saves."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

import jaxopt_ext as jxt
from benchmarks.claims import Outcome

CLAIM = (
    "Wrapped around proximal gradient steps for l1-logistic regression, safeguarded Anderson "
    "acceleration needs at most a third of the evaluations of the plain iteration to a residual "
    "of 1e-6, for each of 4 penalties and 3 data sets: breast cancer, digits (3 against 8) and "
    "wine (class 0 against the rest)."
)
SETTINGS = (
    "No seeds: three data sets. The default regularization was chosen among five values on breast "
    "cancer, whose rows are reported too and prove nothing about that choice; digits and wine "
    "were not looked at for it. The step is 1/L on both sides."
)


def datasets():
    yield "breast cancer", *load_breast_cancer(return_X_y=True)
    X, y = load_digits(return_X_y=True)
    chosen = (y == 3) | (y == 8)
    yield "digits", X[chosen], y[chosen] == 3
    X, y = load_wine(return_X_y=True)
    yield "wine", X, y == 0


def run() -> Outcome:
    table = []
    with jax.enable_x64(True):
        for name, X, y in datasets():
            X = X[:, X.std(axis=0) > 0]
            X = jnp.asarray((X - X.mean(axis=0)) / X.std(axis=0))
            loss = jxt.objectives.LogisticLoss(X, jnp.asarray(y, float))
            step = 4 * len(y) / float(jnp.linalg.norm(X, 2) ** 2)
            table += [{"data": name, "lambda": lam, **count(loss, step, lam)} for lam in PENALTIES]
    holds = all(3 * row["Anderson"] <= row["plain"] for row in table)
    return Outcome(
        table,
        bool(np.all(holds)),
        "Step 1/L for both; default history of 5. The default regularization was chosen among five "
        "values on the breast-cancer rows; the others are data that it has not seen.",
    )


PENALTIES = (0.1, 0.03, 0.01, 0.003)


def count(loss, step, lam):
    """Evaluations to the tolerance; a billion if it is not reached."""
    g = jxt.prox.L1(lam)
    problem = jxt.FixedPoint(lambda w: g.prox(w - step * jxt.tree.gradient(loss, w), step))
    counts = {}
    for name, solver in (
        ("plain", jxt.fixed_point.Picard(tol=1e-6, max_steps=100_000)),
        ("Anderson", jxt.fixed_point.Anderson(tol=1e-6, max_steps=100_000)),
    ):
        solution = jxt.solve(problem, solver, jnp.zeros(loss.matrix.shape[1]))
        done = solution.status == jxt.Status.converged
        counts[name] = int(solution.steps) if done else 10**9
    return counts
