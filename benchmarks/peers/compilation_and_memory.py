"""Time to compile, and memory of derivatives."""

import statistics
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt

TITLE = (
    "seconds to trace and compile, without a cache, medians of 5 turns; bytes of temporaries of a "
    "gradient. JAXopt "
    "compiles faster: our program has equilibration, an adaptive penalty, certificates and "
    "polishing in it, and behind our gradients stands a least-squares method for singular systems"
)


def run() -> list[dict]:
    warnings.simplefilter("ignore")
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return _compile_times() + _memory()
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _seconds(fun, argument):
    jax.clear_caches()
    start = time.perf_counter()
    jax.jit(fun).lower(argument).compile()
    return time.perf_counter() - start


def _compile_times():
    import jaxopt

    # Both libraries are imported whole before the first clock starts; ours would load on demand.
    _ = jxt.minimize, jxt.prox, jxt.splitting, jxt.fixed_point
    rng = np.random.default_rng(0)
    X = jnp.asarray(rng.normal(size=(100, 50)), jnp.float32)
    y, start = X[:, 0], jnp.zeros(50, jnp.float32)
    loss = jxt.objectives.SquaredLoss(X, y)
    squared = lambda w, data: 0.5 * jnp.mean((data[0] @ w - data[1]) ** 2)
    peer = jaxopt.ProximalGradient(squared, jaxopt.prox.prox_lasso, tol=1e-4)
    eye, ones = jnp.eye(50), jnp.ones(50, jnp.float32)
    box = jaxopt.BoxOSQP(tol=1e-4)
    fixed = jaxopt.AndersonAcceleration(lambda z, u: jnp.tanh(0.5 * z + u), tol=1e-4)

    def program(q):
        qp = jxt.QuadraticProgram(eye, q, eye, -ones, ones)
        return jxt.solve(qp, jxt.splitting.OSQP(), None).value.primal

    def equilibrium(u):
        problem = jxt.FixedPoint(lambda z: jnp.tanh(0.5 * z + u))
        return jxt.solve(problem, jxt.fixed_point.Anderson(), start).value

    cases = {
        "lasso": (
            lambda lam: (
                jxt.solve(jxt.Composite(loss, jxt.prox.L1(lam)), jxt.minimize.FISTA(), start).value
            ),
            lambda lam: peer.run(start, hyperparams_prox=lam, data=(X, y)).params,
            jnp.float32(0.1),
        ),
        "quadratic program": (
            program,
            lambda q: box.run(
                params_obj=(eye, q), params_eq=eye, params_ineq=(-ones, ones)
            ).params.primal[0],
            ones,
        ),
        "Anderson": (equilibrium, lambda u: fixed.run(start, u).params, ones),
    }
    table = []
    for name, (ours, theirs, argument) in cases.items():
        for what, wrap in (
            ("solve", lambda f: f),
            ("gradient", lambda f: jax.grad(lambda a: jnp.sum(f(a) ** 2))),
        ):
            turns = [
                (_seconds(wrap(ours), argument), _seconds(wrap(theirs), argument)) for _ in range(5)
            ]
            mine, other, ratio = (
                statistics.median(column)
                for column in zip(*((m, t, m / t) for m, t in turns), strict=True)
            )
            table.append(
                {"case": f"compile {name}, {what}", "ours": mine, "JAXopt": other, "ratio": ratio}
            )
    return table


def _memory():
    X = jnp.asarray(np.random.default_rng(0).normal(size=(200, 2000)), jnp.float32)
    loss, start = jxt.objectives.SquaredLoss(X, X[:, 0]), jnp.zeros(2000, jnp.float32)
    table = []
    for steps in (10, 1000, 100_000):
        row = {"case": f"gradient of a lasso, at most {steps} steps"}
        for name, adjoint in (
            ("implicit bytes", jxt.ImplicitAdjoint()),
            ("unrolled bytes", jxt.UnrolledAdjoint()),
        ):
            solver = jxt.minimize.FISTA(max_steps=steps)

            def score(lam, solver=solver, adjoint=adjoint):
                problem = jxt.Composite(loss, jxt.prox.L1(lam))
                return jnp.sum(jxt.solve(problem, solver, start, adjoint=adjoint).value)

            compiled = jax.jit(jax.grad(score)).lower(jnp.float32(0.1)).compile()
            row[name] = compiled.memory_analysis().temp_size_in_bytes
        table.append(row)
    return table
