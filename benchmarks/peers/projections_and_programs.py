"""Simplex projections and quadratic programs against JAXopt, optax and OSQP."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_ext as jxt
from benchmarks.timing import race

TITLE = "10,000 simplex projections of length 1,000; 256 programs (n = 50, m = 100); one of n = 500"


def run() -> list[dict]:
    warnings.simplefilter("ignore")
    return _simplex() + _batch() + _single()


def _rows(name, candidates, reference, errors):
    return [
        {"case": name, "who": t.name, "ms": 1e3 * t.seconds, "ratio": t.ratio, **errors(t.name)}
        for t in race(candidates, reference=reference, rounds=3)
    ]


def _simplex():
    import jaxopt

    x = jax.random.normal(jax.random.key(0), (10_000, 1_000))
    functions = {
        "ours": jax.jit(jax.vmap(jxt.prox.Simplex().project)),
        "JAXopt": jax.jit(jax.vmap(jaxopt.projection.projection_simplex)),
        "optax": jax.jit(jax.vmap(optax.projections.projection_simplex)),
    }
    reference = functions["JAXopt"](x)
    errors = lambda name: {"error": float(jnp.max(jnp.abs(functions[name](x) - reference)))}
    calls = {name: lambda f=f: f(x) for name, f in functions.items()}
    return _rows("simplex", calls, "ours", errors)


def _programs(count, n, m):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(count, n, n)) / np.sqrt(n)
    P = root @ root.swapaxes(1, 2) + 0.01 * np.eye(n)
    A = rng.normal(size=(count, m, n))
    inside = np.einsum("bmn,bn->bm", A, rng.normal(size=(count, n)))
    bounds = inside - rng.uniform(size=(count, m)), inside + rng.uniform(size=(count, m))
    return P, rng.normal(size=(count, n)), A, *bounds


def _residual(data, x, y):
    problem = jxt.QuadraticProgram(*data)
    r = problem.residual(jxt.PrimalDual(x, y))
    return max(float(jnp.max(jnp.abs(leaf))) for leaf in r)


def _batch():
    import jaxopt

    data = tuple(jnp.asarray(d, jnp.float32) for d in _programs(256, 50, 100))
    # Ours stops on relative residuals: 2e-5 there is about 1e-3 absolute here.
    solver = jxt.splitting.OSQP(tol=2e-5)

    def ours(*d):
        return jxt.solve(jxt.QuadraticProgram(*d), solver, None).value

    peer = jaxopt.BoxOSQP(tol=1e-3, maxiter=4000)

    def theirs(P, q, A, l, u):
        run = peer.run(params_obj=(P, q), params_eq=A, params_ineq=(l, u))
        return run.params.primal[0], run.params.dual_eq

    functions = {"ours": jax.jit(jax.vmap(ours)), "JAXopt BoxOSQP": jax.jit(jax.vmap(theirs))}

    def errors(name):
        x, y = functions[name](*data)
        return {
            "error": max(_residual([d[i] for d in data], x[i], y[i]) for i in range(0, 256, 16))
        }

    calls = {name: lambda f=f: f(*data) for name, f in functions.items()}
    return _rows("256 programs", calls, "ours", errors)


def _single():
    import osqp
    import scipy.sparse as sp

    with jax.enable_x64(True):
        P, q, A, l, u = (d[0] for d in _programs(1, 500, 1000))
        problem = jxt.QuadraticProgram(P, q, A, l, u)
        solver = jxt.splitting.OSQP(tol=1.5e-5)  # 1e-3 absolute, what theirs ends with

        def theirs():
            model = osqp.OSQP()
            model.setup(
                sp.csc_matrix(np.triu(P)),
                q,
                sp.csc_matrix(A),
                l,
                u,
                verbose=False,
                eps_abs=1e-4,
                eps_rel=1e-4,
                polishing=True,
            )
            result = model.solve()
            return jnp.asarray(result.x), jnp.asarray(result.y)

        calls = {"ours": lambda: jxt.solve(problem, solver, None).value, "osqp": theirs}
        errors = lambda name: {"error": _residual((P, q, A, l, u), *calls[name]())}
        return _rows("one program", calls, "ours", errors)
