"""Newton's methods by wall time: Hessians that serve several steps, and other libraries."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.timing import race
from jaxopt_ext.minimize import DampedNewton, LazyCubicNewton

TITLE = (
    "Logistic regression, d = 500, 1000 rows, ridge 1e-4, to a gradient of 1e-7, which leaves less "
    "than 1e-10 of the objective; cubic steps with a Hessian for each or for m of them, the "
    "constant of each m the best of half powers of 10 from 1e-5 to 1 on another seed"
)
D, N, TOL = 500, 1000, 1e-7
CONSTANTS = {1: 1e-4, 125: 10**-1.5, 500: 1e-1}


def problem(seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, D)) / 10**0.5  # at the start margins are some 20
    y = (X @ rng.normal(size=D) + rng.normal(size=N) > 0) * 1.0
    loss = jxt.objectives.LogisticLoss(jnp.asarray(X), jnp.asarray(y))
    return jxt.Smooth(jax.tree_util.Partial(_objective, loss))


def _objective(loss, w):
    return loss(w) + 5e-5 * jnp.sum(w**2)


START = np.full(D, 3.0)


def run() -> list[dict]:
    with jax.enable_x64(True):
        return _run()


def _run():
    import optimistix as optx
    import scipy.optimize

    given, start = problem(1), jnp.asarray(START)
    fun, gradient = jax.jit(given.fun), jax.jit(jax.grad(given.fun))
    hessian = jax.jit(jax.hessian(given.fun))
    found = {}

    def ours(name, solver):
        solve = jax.jit(lambda x: (lambda s: (s.value, s.steps))(jxt.solve(given, solver, x)))

        def call():
            found[name] = solve(start)
            return found[name]

        return call

    def exact():
        result = scipy.optimize.minimize(
            lambda x: float(fun(x)),
            START,
            jac=lambda x: np.asarray(gradient(x)),
            hess=lambda x: np.asarray(hessian(x)),
            method="trust-exact",
            options={"gtol": TOL},
        )
        found["scipy, trust-exact"] = result.x, result.nit
        return result.x

    peer = jax.jit(
        lambda x: (lambda s: (s.value, s.stats["num_steps"]))(
            optx.minimise(lambda x, _: given.fun(x), optx.BFGS(1e-9, 1e-9), x, max_steps=4000)
        )
    )

    def quasi():
        found["optimistix, BFGS"] = peer(start)
        return found["optimistix, BFGS"]

    calls = {
        f"cubic, m = {m}": ours(f"cubic, m = {m}", LazyCubicNewton(m, constant, tol=TOL))
        for m, constant in CONSTANTS.items()
    }
    calls["damped"] = ours("damped", DampedNewton(tol=TOL))
    calls |= {"scipy, trust-exact": exact, "optimistix, BFGS": quasi}
    timings = race(calls, reference="cubic, m = 1", rounds=1)
    size = lambda x: float(jnp.linalg.norm(gradient(jnp.asarray(x))))
    return [
        {
            "who": t.name,
            "ms": 1e3 * t.seconds,
            "ratio": t.ratio,
            "steps": int(found[t.name][1]),
            "gradient": size(found[t.name][0]),
        }
        for t in timings
    ]
