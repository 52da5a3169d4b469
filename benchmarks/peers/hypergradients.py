"""Hypergradients beside JAXopt and optimistix."""

import warnings

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax

import jaxopt_ext as jxt
from benchmarks.timing import race

TITLE = (
    "the derivative of a validation loss in ten log-penalties of a ridge regression with 200 rows, "
    "at its solution, where each library's L-BFGS starts and ends; float32, conjugate gradients to "
    "1e-5 but for defaults; error of the derivative against the closed form in float64. Dense "
    "defaults are left out where they would hold a Hessian of 10,000 x 10,000. 'function' and "
    "'root_vjp' have no solver in them"
)
ROWS, TOL = 200, 1e-5


def run() -> list[dict]:
    warnings.simplefilter("ignore")
    return [row for n in (10, 100, 1000, 10_000) for row in _rows(n)]


def _data(n):
    """Training and validation rows, the group of each entry, and log-penalties."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=n) / np.sqrt(n)
    A, V = rng.normal(size=(2, ROWS, n))
    b, c = A @ w + rng.normal(size=ROWS), V @ w + rng.normal(size=ROWS)
    return A, b, V, c, np.arange(n) % 10, rng.uniform(-1, 1, 10)


def _exact(A, b, V, c, group, x):
    """Solution and derivative by Woodbury's identity."""
    d = np.exp(x)[group]

    def solve(r):
        small = np.eye(ROWS) + (A / d) @ A.T / ROWS
        return r / d - (A.T / d[:, None]) @ np.linalg.solve(small, A @ (r / d)) / ROWS

    y = solve(A.T @ b / ROWS)
    v = solve(V.T @ (V @ y - c) / ROWS)
    return y, -np.bincount(group, d * y * v, 10)


def _rows(n):
    import jaxopt
    import optimistix as optx
    from jaxopt.linear_solve import solve_cg

    given = _data(n)
    y, wanted = _exact(*given)
    A, b, V, c, group, x = (
        jnp.asarray(a, jnp.int32 if a.dtype == int else jnp.float32) for a in given
    )
    y = jnp.asarray(y, jnp.float32)
    # All data are arguments, or XLA would work on them when it compiles.
    data = A, b, V, c

    def lower(x, y, data):
        A, b, _, _ = data
        return 0.5 * jnp.mean((A @ y - b) ** 2) + 0.5 * jnp.sum(jnp.exp(x)[group] * y**2)

    def upper(y, data):
        _, _, V, c = data
        return 0.5 * jnp.mean((V @ y - c) ** 2)

    line_search = jxt.minimize.wolfe_line_search()
    quasi_newton = jxt.adapters.Optax(optax.lbfgs(linesearch=line_search), tol=1e-2)

    def ours(x, data):
        problem = jxt.Smooth(lambda y: lower(x, y, data))
        return upper(jxt.solve(problem, quasi_newton, y).value, data)

    def by_function(x, data):
        levels = jxt.Bilevel(lambda x, y: upper(y, data), lambda x, y: lower(x, y, data))
        solver = lx.CG(rtol=TOL, atol=TOL)
        return jxt.bilevel.hypergradient(levels, x, y, linear_solver=solver).gradient

    def by_jaxopt(x, data):
        peer = jaxopt.LBFGS(
            lambda y, x, data: lower(x, y, data),
            tol=1e-2,
            implicit_diff_solve=lambda *a, **k: solve_cg(*a, tol=TOL, **k),
        )
        return upper(peer.run(y, x, data).params, data)

    def by_root_vjp(x, data):
        (slope,) = jaxopt.implicit_diff.root_vjp(
            lambda y, x: jax.grad(lower, 1)(x, y, data),
            y,
            (x,),
            jax.grad(upper)(y, data),
            solve=lambda *a, **k: solve_cg(*a, tol=TOL, **k),
        )
        return slope

    def by_optimistix(linear_solver):
        def value(x, data):
            found = optx.minimise(
                lambda y, args: lower(args[0], y, args[1]),
                optx.LBFGS(rtol=1e-2, atol=1e-2),
                y,
                (x, data),
                adjoint=optx.ImplicitAdjoint(linear_solver),
                tags=frozenset({lx.positive_semidefinite_tag}),
                throw=False,
            )
            return upper(found.value, data)

        return value

    slopes = {
        "ours": jax.grad(ours),
        "our function": by_function,
        "JAXopt": jax.grad(by_jaxopt),
        "JAXopt, root_vjp": by_root_vjp,
        "optimistix": jax.grad(by_optimistix(lx.CG(rtol=TOL, atol=TOL))),
    }
    if n <= 1000:
        slopes["optimistix, default"] = jax.grad(
            by_optimistix(lx.AutoLinearSolver(well_posed=None))
        )
    calls = {who: jax.jit(slope) for who, slope in slopes.items()}
    calls = {who: lambda call=call: call(x, data) for who, call in calls.items()}
    return [
        {
            "lower variables": n,
            "who": t.name,
            "ms": 1e3 * t.seconds,
            "ratio": t.ratio,
            "error": float(
                np.linalg.norm(np.asarray(calls[t.name]()) - wanted) / np.linalg.norm(wanted)
            ),
        }
        for t in race(calls, reference="ours", rounds=9)
    ]
