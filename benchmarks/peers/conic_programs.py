"""Conic programs against Clarabel and SCS."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.timing import race

TITLE = "Linear and second-order cone programs (n = 30): one, and 256 of the linear ones in a vmap"
N, ROWS, CONES, WIDTH = 30, 60, 4, 6
TOL = 1e-6


def run() -> list[dict]:
    warnings.simplefilter("ignore")
    with jax.enable_x64(True):
        return _one("linear", _linear(1)) + _one("second order", _second_order()) + _batch(256)


def _rows(case, calls, errors):
    return [
        {"case": case, "who": t.name, "ms": 1e3 * t.seconds, "ratio": t.ratio, **errors[t.name]}
        for t in race(calls, reference="ours", rounds=3)
    ]


def _linear(count):
    """Cost, rows and their upper bounds, with a point inside and a dual one."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(count, ROWS, N))
    inside = np.einsum("bmn,bn->bm", A, rng.normal(size=(count, N)))
    c = -np.einsum("bmn,bm->bn", A, rng.uniform(size=(count, ROWS)))
    return c, A, inside + rng.uniform(0.1, 1, (count, ROWS)), ROWS, ()


def _second_order():
    rng = np.random.default_rng(1)
    sizes = (1 + WIDTH,) * CONES
    c, A, b, _, _ = _linear(1)
    cones = rng.normal(size=(sum(sizes), N))
    heads = np.cumsum((0, *sizes[:-1]))
    side = rng.normal(size=len(cones))
    side[heads] = 2 * np.sqrt(WIDTH) + np.abs(side[heads])  # zero is inside
    b = np.abs(b)
    return c, np.concatenate([A[0], cones])[None], np.append(b[0], side)[None], ROWS, sizes


def _solved(c, A, b, nonnegative, sizes):
    problem = jxt.SecondOrderConeProgram(c, A, b, nonnegative=nonnegative, second_order=sizes)
    solution = jxt.solve(problem, jxt.minimize.InteriorPoint(tol=TOL), jnp.zeros_like(c))
    return solution.value.primal


def _peer(name, c, A, b, nonnegative, sizes):
    """The primal point of a program, set up and solved; both solvers take one form."""
    import scipy.sparse as sp

    if name == "Clarabel":
        import clarabel

        cones = [clarabel.NonnegativeConeT(nonnegative), *map(clarabel.SecondOrderConeT, sizes)]
        settings = clarabel.DefaultSettings()
        settings.verbose = False
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = TOL
        P = sp.csc_matrix((c.size, c.size))
        return np.array(
            clarabel.DefaultSolver(P, c, sp.csc_matrix(A), b, cones, settings).solve().x
        )
    import scs

    data = {"A": sp.csc_matrix(A), "b": b, "c": c}
    cone = {"l": nonnegative, "q": list(sizes)}
    return scs.SCS(data, cone, eps_abs=TOL, eps_rel=TOL, verbose=False).solve()["x"]


def _error(values, reference):
    """How far objectives are from the reference's, relative, the most."""
    return {"error": float(np.max(np.abs(values - reference) / (1 + np.abs(reference))))}


def _compare(case, data, ours, who):
    c, A, b, nonnegative, sizes = data
    arrays = tuple(map(jnp.asarray, (c, A, b)))

    def each(name):
        parts = zip(c, A, b, strict=True)
        return np.stack([_peer(name, *part, nonnegative, sizes) for part in parts])

    calls = {"ours": lambda: ours(*arrays)} | {name: functools.partial(each, name) for name in who}
    values = {name: np.einsum("bn,bn->b", c, np.asarray(call())) for name, call in calls.items()}
    errors = {name: _error(value, values["Clarabel"]) for name, value in values.items()}
    return _rows(case, calls, errors)


def _vmapped(nonnegative, sizes):
    return jax.jit(jax.vmap(lambda c, A, b: _solved(c, A, b, nonnegative, sizes)))


def _one(case, data):
    *_, nonnegative, sizes = data
    solve = jax.jit(lambda c, A, b: _solved(c[0], A[0], b[0], nonnegative, sizes)[None])
    return _compare(f"one {case}", data, solve, ("Clarabel", "SCS"))


def _batch(count):
    data = _linear(count)
    return _compare(f"{count} linear", data, _vmapped(*data[3:]), ("Clarabel", "SCS"))
