"""Consensus-based optimization beside gradient methods, and its two kinds of noise."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.minimize import Anisotropic, ConsensusBased, ConsensusHopping, Isotropic

CLAIM = (
    "A mean hop of 200 samples has a cosine above 0.99 with the negative gradient of a quadratic; "
    "on Rastrigin's function in 2 unknowns 50 particles find the best minimum from all of 8 seeds, "
    "gradient descent and annealed Langevin steps from the same law of starts from at most 1; on "
    "Ackley's in 20 unknowns 200 particles find it from all of 6 seeds with anisotropic noise, "
    "from at most 2 with isotropic noise."
)
SETTINGS = (
    "The noise of each geometry is the best of 0.1 * 2^(k/2), k from 0 to 16, on seeds 0 to 2, by "
    "successes (no entry off by more than 0.25), then by the mean error; steps of gradient and "
    "Langevin methods the best of 2^-12 to 1/2 by factors of 2, the first temperature of the best "
    "of 0.1 to 1000 by factors of 10, on seeds 0 to 7; no end of a grid is best. Reported seeds: "
    "10 to 17 and 10 to 15. All take 2000 steps."
)
STEPS = 2000
NOISES = 0.1 * 2.0 ** (np.arange(17) / 2)


def _ackley(x):
    far = jnp.exp(-0.2 * jnp.sqrt(jnp.mean(x**2)))
    return 20 - 20 * far + jnp.e - jnp.exp(jnp.mean(jnp.cos(2 * jnp.pi * x)))


def _rastrigin(x):
    return jnp.sum(x**2 + 10 * (1 - jnp.cos(2 * jnp.pi * x)))


def _particles(fun, dimension, size, geometry):
    def run(noise, seed):
        options = {"init_scale": 2.0, "tol": 0.0, "max_steps": STEPS}
        solver = ConsensusBased(size, noise=noise, geometry=geometry, **options)
        start = jnp.full(dimension, 3.0, jnp.float32)
        return jxt.solve(jxt.Smooth(fun), solver, start, key=jax.random.key(seed)).value

    return jax.jit(jax.vmap(run, (None, 0)))


def _langevin(fun, dimension):
    """Gradient descent at temperature zero."""

    def run(setting, seed):
        step, hot = setting
        keys = jax.random.split(jax.random.key(seed), STEPS + 1)
        start = 3 + 2 * jax.random.normal(keys[0], (dimension,), jnp.float32)

        def move(x, inputs):
            key, t = inputs
            noise = jnp.sqrt(2 * step * hot * (1 - t)) * jax.random.normal(key, x.shape, x.dtype)
            return x - step * jax.grad(fun)(x) + noise, None

        return jax.lax.scan(move, start, (keys[1:], jnp.arange(STEPS) / STEPS))[0]

    return jax.jit(jax.vmap(run, (None, 0)))


def _errors(run, setting, seeds):
    found = np.max(np.abs(np.asarray(run(setting, jnp.asarray(seeds)))), axis=1)
    return np.nan_to_num(found, nan=1e6, posinf=1e6)


def _tuned(run, settings, seeds):
    scores = []
    for setting in settings:
        errors = _errors(run, setting, seeds)
        scores.append((-np.sum(errors < 0.25), np.mean(np.minimum(errors, 1e6))))
    best = min(range(len(scores)), key=scores.__getitem__)
    return best, settings[best]


def _row(function, method, run, settings, tuning, seeds):
    index, setting = _tuned(run, settings, tuning)
    errors = _errors(run, setting, seeds)
    return index, {
        "function": function,
        "method": method,
        "setting": ", ".join(f"{s:.3g}" for s in np.atleast_1d(np.asarray(setting))),
        "found": int(np.sum(errors < 0.25)),
        "of": len(seeds),
        "median error": float(np.median(errors)),
    }


def _cosine(seed):
    x = jnp.array([3.0, 2.0])
    problem = jxt.Smooth(lambda v: 0.5 * (v[0] ** 2 + 4 * v[1] ** 2))
    solver = ConsensusHopping(200, 0.1, 10.0)

    def hop(key):
        return solver.step(problem, x, solver.init(problem, x, key))[0]

    move = jnp.mean(jax.vmap(hop)(jax.random.split(jax.random.key(seed), 200)), axis=0) - x
    down = -x * jnp.array([1.0, 4.0])
    return float(move @ down / jnp.linalg.norm(move) / jnp.linalg.norm(down))


def _consensus_cosine(geometry, seed):
    """Of the mean move of the consensus point of particles, in 20 steps."""
    x = jnp.array([3.0, 2.0])
    problem = jxt.Smooth(lambda v: 0.5 * (v[0] ** 2 + 4 * v[1] ** 2))
    solver = ConsensusBased(100, geometry=geometry, init_scale=0.5, tol=0.0, max_steps=20)

    def ends(key):
        points = jxt.solve(problem, solver, x, key=key, trace=lambda p, x, s: x).trace
        return points[0], points[-1]

    first, last = jax.vmap(ends)(jax.random.split(jax.random.key(seed), 200))
    move, down = jnp.mean(last - first, axis=0), -jnp.mean(first, axis=0) * jnp.array([1.0, 4.0])
    return float(move @ down / jnp.linalg.norm(move) / jnp.linalg.norm(down))


def run() -> Outcome:
    cosine = min(_cosine(seed) for seed in range(10, 15))
    table = [{"function": "quadratic", "method": "mean hop", "cosine": cosine}]
    for method, geometry in (("anisotropic", Anisotropic()), ("isotropic", Isotropic())):
        own = min(_consensus_cosine(geometry, seed) for seed in range(10, 15))
        table.append({"function": "quadratic", "method": f"{method} particles", "cosine": own})
    edges, found = [], {}
    noises = [jnp.asarray(s, jnp.float32) for s in NOISES]
    few, many = list(range(10, 18)), list(range(10, 16))
    for function, fun, d, size, seeds in (
        ("Rastrigin 2", _rastrigin, 2, 50, few),
        ("Ackley 20", _ackley, 20, 200, many),
    ):
        for method, geometry in (("anisotropic", Anisotropic()), ("isotropic", Isotropic())):
            solve = _particles(fun, d, size, geometry)
            index, row = _row(function, method, solve, noises, [0, 1, 2], seeds)
            if index in (0, len(noises) - 1):
                edges.append(f"{function} {method}")
            table.append(row)
            found[function, method] = row["found"]
    steps = 2.0 ** np.arange(-12, 0)
    walk = _langevin(_rastrigin, 2)
    for method, temperatures in (("gradient", [0.0]), ("Langevin", 10.0 ** np.arange(-1, 4))):
        settings = [jnp.array([s, t], jnp.float32) for s in steps for t in temperatures]
        index, row = _row("Rastrigin 2", method, walk, settings, list(range(8)), few)
        across, along = divmod(index, len(temperatures))
        if across in (0, 11) or (len(temperatures) > 1 and along in (0, 4)):
            edges.append(f"Rastrigin {method}")
        table.append(row)
        found["Rastrigin 2", method] = row["found"]
    parts = {
        "cosine": cosine > 0.99,
        "particles on Rastrigin": found["Rastrigin 2", "anisotropic"] == 8,
        "gradient descent": found["Rastrigin 2", "gradient"] <= 1,
        "Langevin": found["Rastrigin 2", "Langevin"] <= 1,
        "anisotropic on Ackley": found["Ackley 20", "anisotropic"] == 6,
        "isotropic on Ackley": found["Ackley 20", "isotropic"] <= 2,
    }
    failed = [name for name, holds in parts.items() if not holds]
    note = "nothing is claimed of the cosine of particles, whose covariance shapes their drift; "
    note += "ends of a grid that were best: " + (", ".join(edges) or "none")
    note += "; parts that do not hold: " + (", ".join(failed) or "none")
    why = (
        "ours: bounds on two baselines were set from few runs, too low; tuned, isotropic noise "
        f"finds Ackley's minimum from {found['Ackley 20', 'isotropic']} of 6 seeds, Langevin steps "
        f"Rastrigin's from {found['Rastrigin 2', 'Langevin']} of 8"
    )
    # Said of these two parts alone.
    explained = not edges and set(failed) <= {"Langevin", "isotropic on Ackley"}
    return Outcome(table, not failed and not edges, note, why if failed and explained else "")
