"""Accelerated cubic Newton against the plain method, Extra-Newton and gradient steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.minimize import (
    AcceleratedCubicNewton,
    LazyCubicNewton,
    NoisyOracle,
    RegularizedNewton,
    SubsampledOracle,
)

CLAIM = (
    "On the function that is worst for second-order methods, in 20 unknowns and with the constant "
    "M of the theory for both, acceleration leaves at most 0.6 of the gap of cubic Newton steps "
    "after 160 steps and 0.05 after 320; with noise in Hessians and M tuned for each, its schedule "
    "for the noise leaves at most 0.4 of the gap of no schedule and of the cubic method with the "
    "same Hessians after 320 steps, and a smaller one than Extra-Newton with the same Hessians and "
    "than gradient steps, in the mean over 5 seeds."
)
SETTINGS = (
    "Without noise nothing is chosen. With noise the constant of every method is the best of 4^-7 "
    "to 4^7 times that of theory on seeds 0 to 2, by the mean gap, and no end of the grid is best: "
    "for cubic steps M, for Extra-Newton the scale of its adaptive step beside the distance to the "
    "solution, for gradient steps, each with the last and the averaged point, the step beside 1/M. "
    "Seeds 10 to 14. Digits 3 and 8, a ridge of 1e-3: the best of 4^-7 to 4^5 times M."
)
D, STEPS, NOISE = 20, 320, 0.5
GRID = 4.0 ** np.arange(-7, 8)
DISTANCE = float(np.linalg.norm(np.arange(1, D + 1)))  # of the solution from the start


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


def _oracle(gradient, hessian):
    # The standard deviation of an entry of the Hessian is what is given.
    return NoisyOracle(gradient, hessian * np.sqrt(2 * D))


def _noisy(constant, key, gradient, hessian, schedule):
    solver = AcceleratedCubicNewton(
        constant,
        gradient_noise=schedule * gradient,
        hessian_noise=schedule * hessian,
        radius=DISTANCE if gradient * schedule else None,
        oracle=_oracle(gradient, hessian),
        check_every=STEPS,
        tol=0.0,
        max_steps=STEPS,
    )
    return _gaps(solver, key)[-1]


def _plain(constant, key, oracle, noise):
    """The inexact cubic Newton method."""
    cubic = jxt.minimize._cubic

    def step(x, key):
        of_gradient, of_hessian = jax.random.split(key)
        flat = cubic.Flat(_fun, x, lambda v: v)
        at = cubic.eigen(oracle.hessian(None, flat, of_hessian))
        g = oracle.gradient(None, flat, of_gradient)
        return x + cubic.cubic_step(at, g, constant, 2 * noise), None

    x, _ = jax.lax.scan(step, jnp.zeros(D), jax.random.split(key, STEPS))
    return _fun(x) + 2 / 3 * D


def _extra_newton(scale, key, oracle):
    """Steps from a prediction that is linear in the Hessian, at weighted averages of the points."""
    cubic = jxt.minimize._cubic
    eye, zero = jnp.eye(D), jnp.zeros(D)

    def step(carry, inputs):
        x, total, weight, errors = carry
        key, t = inputs
        first, second, third = jax.random.split(key, 3)
        a = t**2
        gamma = scale / jnp.sqrt(1 + errors)
        weight = weight + a
        flat = cubic.Flat(_fun, (a * x + total) / weight, lambda v: v)
        g, H = oracle.gradient(None, flat, first), oracle.hessian(None, flat, second)
        move = -a * gamma * jnp.linalg.solve(eye + a**2 * gamma / weight * H, g)
        total = total + a * (x + move)
        fresh = oracle.gradient(None, cubic.Flat(_fun, total / weight, lambda v: v), third)
        errors = errors + a**2 * jnp.sum((fresh - g - a / weight * H @ move) ** 2)
        return (x - gamma * a * fresh, total, weight, errors), None

    inputs = jax.random.split(key, STEPS), 1.0 + jnp.arange(STEPS)
    (_, total, weight, _), _ = jax.lax.scan(step, (zero, zero, 0.0, 0.0), inputs)
    return _fun(total / weight) + 2 / 3 * D


def _gradient_steps(step, key, oracle):
    """The gaps of the last point and of the mean."""
    cubic = jxt.minimize._cubic

    def move(carry, key):
        x, total = carry
        x = x - step * oracle.gradient(None, cubic.Flat(_fun, x, lambda v: v), key)
        return (x, total + x), None

    start = jnp.zeros(D), jnp.zeros(D)
    (x, total), _ = jax.lax.scan(move, start, jax.random.split(key, STEPS))
    return jnp.stack([_fun(x), _fun(total / STEPS)]) + 2 / 3 * D


def run() -> Outcome:
    with jax.enable_x64(True):
        return _run()


def _tuned(M, keys, gradient, hessian, edges):
    """The mean gap of each method at its best constant; `edges` gets those that end a grid."""
    oracle = _oracle(gradient, hessian)
    methods = {
        "accelerated": lambda c, k: _noisy(c * M, k, gradient, hessian, 1.0),
        "without schedule": lambda c, k: _noisy(c * M, k, gradient, hessian, 0.0),
        "cubic": lambda c, k: _plain(c * M, k, oracle, 0.0),
        "inexact cubic": lambda c, k: _plain(c * M, k, oracle, hessian),
        "Extra-Newton": lambda c, k: _extra_newton(c * DISTANCE, k, oracle),
        "gradient, last": lambda c, k: _gradient_steps(c / M, k, oracle)[0],
        "gradient, mean": lambda c, k: _gradient_steps(c / M, k, oracle)[1],
    }
    means = {}
    for name, one in methods.items():
        if name == "inexact cubic" and not hessian:
            continue
        each = jax.jit(jax.vmap(one, (None, 0)))
        found = np.nan_to_num(np.array([each(c, keys) for c in GRID]), nan=np.inf)
        index = int(np.argmin(found[:, :3].mean(axis=1)))
        if hessian and index in (0, len(GRID) - 1):
            edges.append(name)
        means[name] = float(found[index, 3:].mean())
    return means


def _digits():
    """Hessian samples until the gap is 1e-3 on digits 3 and 8, of the methods with batches of a
    tenth, each with its best M, and which of these end the grid."""
    images, labels = load_digits(return_X_y=True)
    seen = np.isin(labels, (3, 8))
    X = jnp.asarray(images[seen] / 16)
    y = jnp.asarray(np.where(labels[seen] == 3, 1.0, -1.0))
    batch, steps = len(y) // 10, 60

    def loss(w, sample):
        return jnp.logaddexp(0, -sample[1] * sample[0] @ w) + 5e-4 * jnp.sum(w**2)

    problem, zero = jxt.FiniteSum(loss, (X, y)), jnp.zeros(64)
    full, cubic = jxt.Smooth(problem.full_value), jxt.minimize._cubic
    best = full.fun(jxt.solve(full, RegularizedNewton(tol=1e-9, max_steps=200), zero).value)
    oracle, at = SubsampledOracle(None, batch), cubic.Flat(problem.full_value, zero, lambda v: v)
    keys = jax.vmap(jax.random.key)(jnp.array([0, 1, 2, *range(10, 15)]))
    off = jax.vmap(lambda k: oracle.hessian(problem, at, k))(keys) - cubic.hessian(at.fun, zero)
    noise = float(np.mean(np.linalg.norm(off, 2, axis=(1, 2))))
    # Of the logistic function's third derivative.
    M = float(jnp.mean(jnp.linalg.norm(X, axis=1) ** 3)) / (6 * np.sqrt(3))

    def accelerated(schedule, c, key):
        solver = AcceleratedCubicNewton(
            c * M,
            hessian_noise=schedule * noise,
            oracle=oracle,
            check_every=steps,
            tol=0.0,
            max_steps=steps,
        )
        value = lambda problem, x, state: problem.full_value(x)
        return jxt.solve(problem, solver, zero, key=key, trace=value).trace

    def plain(tau, c, key):
        def step(x, key):
            flat = cubic.Flat(problem.full_value, x, lambda v: v)
            near = cubic.eigen(oracle.hessian(problem, flat, key))
            x = x + cubic.cubic_step(near, oracle.gradient(problem, flat, key), c * M, tau)
            return x, problem.full_value(x)

        return jax.lax.scan(step, zero, jax.random.split(key, steps))[1]

    methods = {
        "accelerated": functools.partial(accelerated, 1.0),
        "without schedule": functools.partial(accelerated, 0.0),
        "cubic": functools.partial(plain, 0.0),
        "inexact cubic": functools.partial(plain, 2 * noise),
    }
    row, edges = {"noise": "digits, Hessians of a tenth: samples", "steps": steps}, []
    grid = 4.0 ** np.arange(-7, 6)
    for name, one in methods.items():
        each = jax.jit(jax.vmap(one, (None, 0)))
        reached = np.stack([each(c, keys) for c in grid]) - best <= 1e-3
        first = np.where(reached.any(axis=2), reached.argmax(axis=2) + 1.0, np.inf)
        means = first[:, :3].mean(axis=1)
        index = int(np.argmin(means))
        if np.isfinite(means[index]) and index in (0, len(grid) - 1):
            edges.append(name)
        row[name] = float(batch * first[index, 3:].mean())
    return row, edges


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
    keys = jax.vmap(jax.random.key)(jnp.array([0, 1, 2, *range(10, 15)]))
    edges = []
    for gradient, hessian in ((0.0, NOISE), (0.02, 0.0)):
        row = {"noise": f"gradient {gradient}, Hessian {hessian}", "steps": STEPS}
        row |= _tuned(M, keys, gradient, hessian, edges)
        table.append(row)
    row = table[-2]
    digits, edges_of_digits = _digits()
    table.append(digits)
    holds = holds and not edges
    holds = holds and row["accelerated"] <= 0.4 * min(row["without schedule"], row["cubic"])
    holds = holds and row["accelerated"] < min(row["Extra-Newton"], row["gradient, last"])
    holds = holds and row["accelerated"] < row["gradient, mean"]
    tuned = {
        c: np.asarray(_gaps(LazyCubicNewton(1, c * M, tol=0.0, max_steps=80), key))[-1]
        for c in (1 / 64, 1 / 16)
    }
    note = (
        "gaps f - f*; on digits samples in Hessians until it is 1e-3, inf if it is not in these "
        "steps; nothing is claimed of digits, where acceleration is behind, nor of noise in "
        "gradients; an end of the grid was best: "
        + (", ".join(edges) or "no")
        + ", on digits: "
        + (", ".join(edges_of_digits) or "no")
        + "; with M tuned and no noise the plain method is far ahead: after 80 steps "
        + ", ".join(f"{gap:.2g} at M/{round(1 / c)}" for c, gap in tuned.items())
    )
    return Outcome(table, bool(holds), note)
