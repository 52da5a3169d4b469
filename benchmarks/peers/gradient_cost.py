"""What the gradient of a lasso costs as the data grow."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.timing import race

TITLE = (
    "medians in float32, twenty active coordinates, one penalty; ratio of a gradient, which holds "
    "a solve, to a solve"
)


def run() -> list[dict]:
    return [_row(n, d) for n, d in ((500, 1000), (2000, 2000), (5000, 5000))]


def _row(n, d):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d)).astype(np.float32)
    w = np.zeros(d, np.float32)
    w[rng.choice(d, 20, replace=False)] = rng.choice([-1, 1], 20) * (1 + rng.random(20))
    y = X @ w + 0.1 * rng.normal(size=n).astype(np.float32)
    loss = jxt.objectives.SquaredLoss(X, y)
    lam = jnp.asarray(0.1 * np.abs(X.T @ y).max() / n)
    solver, start = jxt.minimize.FISTA(tol=1e-4, max_steps=20_000), jnp.zeros(d, jnp.float32)

    def solved(lam, loss):
        return jxt.solve(jxt.Composite(loss, jxt.prox.L1(lam)), solver, start)

    solve = jax.jit(lambda lam, loss: solved(lam, loss).value)
    slope = jax.jit(jax.grad(lambda lam, loss: jnp.sum(solved(lam, loss).value ** 2)))
    candidates = {"solve": lambda: solve(lam, loss), "gradient": lambda: slope(lam, loss)}
    times = {t.name: t for t in race(candidates, reference="solve", rounds=7)}
    return {
        "data": f"{n} x {d}",
        "steps": int(solved(lam, loss).steps),
        "solve ms": 1e3 * times["solve"].seconds,
        "gradient ms": 1e3 * times["gradient"].seconds,
        "ratio": times["gradient"].ratio,
    }
