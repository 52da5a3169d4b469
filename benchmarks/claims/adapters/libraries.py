"""Solvers of other libraries, taken as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx

import jaxopt_ext as jxt
from benchmarks.claims import Outcome

CLAIM = (
    "An optax transformation passed to solve takes the same steps as optax's own loop, to "
    "rounding; optimistix solvers passed to solve return optimistix's own answer; and the "
    "derivative through each of them equals central differences to 1e-5 relative."
)
SETTINGS = (
    "Nothing is chosen and nothing is drawn but one data set, seed 0; tolerances are those of the "
    "claim."
)


def run() -> Outcome:
    with jax.enable_x64(True):
        table = [*_optax(), *_optimistix()]
    holds = all(row["gap"] < 1e-10 and row["derivative"] < 1e-5 for row in table)
    return Outcome(
        table,
        holds,
        "The answers are the libraries' own. Differences are over 1e-3 either way: over the 1e-4 "
        "first taken, the error that optimistix's BFGS stops with made the difference, not the "
        "derivative, 3e-5 wrong.",
    )


RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(20, 5)), RNG.normal(size=20)


def objective(lam):
    return lambda x: jnp.sum(jnp.log(jnp.cosh(A @ x - B))) + lam * jnp.sum(x**2)


def _slope(value):
    """Relative gap of the derivative of a function of the penalty to central differences."""
    wanted = (value(0.3 + 1e-3) - value(0.3 - 1e-3)) / 2e-3
    return float(abs(jax.grad(value)(0.3) - wanted) / abs(wanted))


def _optax():
    for name, tx in (("adam", optax.adam(0.05)), ("lbfgs", optax.lbfgs())):
        f, x = objective(0.3), jnp.zeros(5)
        state, value_and_grad = tx.init(x), jax.value_and_grad(f)
        tx_extra = optax.with_extra_args_support(tx)
        for _ in range(20):
            value, grad = value_and_grad(x)
            updates, state = tx_extra.update(grad, state, x, value=value, grad=grad, value_fn=f)
            x = optax.apply_updates(x, updates)
        short = jxt.adapters.Optax(tx, tol=0.0, max_steps=20)
        ours = jxt.solve(jxt.Smooth(f), short, jnp.zeros(5)).value
        sharp = jxt.adapters.Optax(tx, tol=1e-9, max_steps=20_000)
        value = lambda lam, sharp=sharp: jnp.sum(
            jnp.sin(jxt.solve(jxt.Smooth(objective(lam)), sharp, jnp.zeros(5)).value)
        )
        gap = float(jnp.max(jnp.abs(ours - x)))
        yield {"library": "optax", "solver": name, "gap": gap, "derivative": _slope(value)}


def _optimistix():
    tight = dict(rtol=1e-10, atol=1e-10)
    residuals = lambda lam: lambda x: jnp.tanh(A @ x - B) + lam * (A @ x)
    contraction = lambda lam: lambda x: jnp.tanh(0.1 * A[:5] @ x + lam)
    cases = {
        "BFGS": (optx.BFGS(**tight), jxt.Smooth, objective, optx.minimise),
        "Levenberg-Marquardt": (
            optx.LevenbergMarquardt(**tight),
            jxt.LeastSquares,
            residuals,
            optx.least_squares,
        ),
        "fixed point": (
            optx.FixedPointIteration(**tight),
            jxt.FixedPoint,
            contraction,
            optx.fixed_point,
        ),
        "Newton": (
            optx.Newton(**tight),
            jxt.RootFinding,
            lambda lam: lambda x: contraction(lam)(x) - x,
            optx.root_find,
        ),
    }
    for name, (solver, problem, make, entry) in cases.items():
        f = make(0.3)
        theirs = entry(lambda x, _, f=f: f(x), solver, jnp.zeros(5), max_steps=1000).value
        ours = jxt.solve(problem(f), solver, jnp.zeros(5)).value
        value = lambda lam, solver=solver, problem=problem, make=make: jnp.sum(
            jnp.sin(jxt.solve(problem(make(lam)), solver, jnp.zeros(5)).value)
        )
        gap = float(jnp.max(jnp.abs(ours - theirs)))
        yield {"library": "optimistix", "solver": name, "gap": gap, "derivative": _slope(value)}
