"""Accelerated cubic Newton against the plain method."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.minimize import AcceleratedCubicNewton, LazyCubicNewton, NoisyOracle

CLAIM = (
    "On the function that is worst for second-order methods, in 20 unknowns and with the constant "
    "M of the theory for both, acceleration leaves at most 0.6 of the gap of cubic Newton steps "
    "after 160 steps and 0.05 after 320; with noise in Hessians and M tuned for each, its schedule "
    "for the noise leaves at most 0.4 of the gap of no schedule and of the cubic method with the "
    "same Hessians after 320 steps, in the mean over 5 seeds."
)
SETTINGS = (
    "Without noise nothing is chosen. With noise M is the best of 4^-4 to 4 times that of theory "
    "for each method on seeds 0 to 2, by the mean gap; no end of the grid is best. Seeds 10 to 14."
)
D, STEPS, NOISE = 20, 320, 0.5


def _fun(x):
    gaps = jnp.append(x[:-1] - x[1:], x[-1])
    return jnp.sum(jnp.abs(gaps) ** 3) / 3 - x[0]


def _theory():
    difference = np.eye(D) - np.eye(D, k=1)
    return 2 * np.linalg.norm(difference, 2) ** 3


def _trace(problem, x, state):
    return problem.fun(x)


def _gaps(solver, key):
    problem = jxt.Smooth(_fun)
    found = jxt.solve(problem, solver, jnp.zeros(D), key=key, trace=_trace).trace
    return found + 2 / 3 * D  # each difference is 1, and x_1 is d


def _noisy(constant, key, schedule, accelerated):
    """`accelerated` as a number: without, the prox centre never leaves the value."""
    oracle = NoisyOracle(0.0, NOISE * np.sqrt(2 * D))  # the standard deviation of an entry
    solver = AcceleratedCubicNewton(
        constant,
        hessian_noise=schedule * NOISE,
        oracle=oracle,
        check_every=STEPS,
        tol=0.0,
        max_steps=STEPS,
    )
    if accelerated:
        return _gaps(solver, key)[-1]
    return _plain(constant, key, oracle, schedule * NOISE)


def _plain(constant, key, oracle, noise):
    """The inexact cubic Newton method."""
    cubic = jxt.minimize._cubic

    def step(x, key):
        flat = cubic.Flat(_fun, x, lambda v: v)
        at = cubic.eigen(oracle.hessian(None, flat, key))
        return x + cubic.cubic_step(at, jax.grad(_fun)(x), constant, 2 * noise), None

    x, _ = jax.lax.scan(step, jnp.zeros(D), jax.random.split(key, STEPS))
    return _fun(x) + 2 / 3 * D


def run() -> Outcome:
    with jax.enable_x64(True):
        return _run()


def _run():
    M, key = _theory(), jax.random.key(0)
    exact = {
        "accelerated": AcceleratedCubicNewton(M, tol=0.0, max_steps=STEPS),
        "cubic": LazyCubicNewton(1, M, tol=0.0, max_steps=STEPS),
    }
    table, holds = [], True
    curves = {name: np.asarray(_gaps(solver, key)) for name, solver in exact.items()}
    for t, share in ((40, np.inf), (160, 0.6), (320, 0.05)):
        row = {"noise": 0, "steps": t} | {name: c[t - 1] for name, c in curves.items()}
        holds = holds and row["accelerated"] <= share * row["cubic"]
        table.append(row)
    grid = M * 4.0 ** np.arange(-4, 2)
    keys = jax.vmap(jax.random.key)(jnp.array([0, 1, 2, *range(10, 15)]))
    means, edges = {}, False
    for name, options in {
        "accelerated": (1.0, True),
        "without schedule": (0.0, True),
        "cubic": (0.0, False),
        "inexact cubic": (1.0, False),
    }.items():
        one = lambda c, k, options=options: _noisy(c, k, *options)
        each = jax.jit(jax.vmap(one, (None, 0)))
        found = np.nan_to_num(np.array([each(c, keys) for c in grid]), nan=np.inf)
        index = int(np.argmin(found[:, :3].mean(axis=1)))
        edges = edges or index in (0, len(grid) - 1)
        means[name] = found[index, 3:].mean()
    row = {"noise": NOISE, "steps": STEPS} | means
    holds = holds and not edges
    holds = holds and row["accelerated"] <= 0.4 * min(row["without schedule"], row["cubic"])
    table.append(row)
    tuned = {
        c: np.asarray(_gaps(LazyCubicNewton(1, c * M, tol=0.0, max_steps=80), key))[-1]
        for c in (1 / 64, 1 / 16)
    }
    note = (
        "gaps f - f*; an end of the grid was best: " + ("yes" if edges else "no") + "; with M "
        "tuned and no noise the plain method is far ahead: after 80 steps "
        + ", ".join(f"{gap:.2g} at M/{round(1 / c)}" for c, gap in tuned.items())
    )
    return Outcome(table, bool(holds), note)
