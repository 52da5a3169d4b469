"""Parallel rounds of a recurrence on 8 host devices, against the steps one after another."""

import json
import os
import subprocess
import sys

TITLE = (
    "64 states of a recurrence whose cell is a network 256-2048-256, to 1e-6, in double precision; "
    "positions on 1 device or on 8 host devices, which share the cores of one machine, so that the "
    "wall time is a promise for those that do not; depth is how many cells follow one another"
)
T, WIDTH, HIDDEN = 64, 256, 2048


def run() -> list[dict]:
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.feedforward"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _measure() -> list[dict]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jaxopt_ext as jxt
    from benchmarks.timing import race
    from jaxopt_ext import fixed_point as fp

    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    first = jnp.asarray(rng.normal(size=(HIDDEN, WIDTH)) * 0.8 / WIDTH**0.5)
    second = jnp.asarray(rng.normal(size=(WIDTH, HIDDEN)) * 0.8 / HIDDEN**0.5)
    inputs, start = jnp.asarray(rng.normal(size=(T, WIDTH))), jnp.zeros(WIDTH)
    automatic = (jax.sharding.AxisType.Auto,)  # the compiler places what is between
    mesh = jax.make_mesh((8,), ("positions",), axis_types=automatic)
    spread = jax.NamedSharding(mesh, jax.P("positions"))
    everywhere = jax.NamedSharding(mesh, jax.P())

    def cell(weights):
        return lambda s, u: weights[1] @ jnp.tanh(weights[0] @ s) + u

    @jax.jit
    def sequential(weights, inputs):
        return jax.lax.scan(lambda s, u: (cell(weights)(s, u),) * 2, start, inputs)[1]

    def parallel(solver):
        def call(weights, inputs):
            solution = jxt.solve(fp.recurrence(cell(weights), inputs, start), solver)
            return solution.value, solution.steps

        return jax.jit(call)

    weights, found = (first, second), {}
    placed = jax.device_put(weights, everywhere), jax.device_put(inputs, spread)
    jacobi = parallel(fp.Jacobi(tol=1e-6))
    blocks = parallel(fp.JacobiGaussSeidel(8, tol=1e-6))

    def counted(name, fun, *arguments):
        def call():
            found[name] = fun(*arguments)
            return found[name]

        return call

    calls = {
        "one after another": counted("one after another", sequential, weights, inputs),
        "Jacobi, 1 device": counted("Jacobi, 1 device", jacobi, weights, inputs),
        "Jacobi, 8 devices": counted("Jacobi, 8 devices", jacobi, *placed),
        "blocks of 8, 8 devices": counted("blocks of 8, 8 devices", blocks, *placed),
    }
    timings = race(calls, reference="one after another", rounds=5)
    exact, rows = np.asarray(found["one after another"]), []
    for t in timings:
        result = found[t.name]
        value, depth = (result, T) if t.name == "one after another" else result
        error = float(np.max(np.abs(np.asarray(value) - exact)))
        depth = int(depth) * (8 if t.name.startswith("blocks") else 1)
        rows.append(
            {
                "who": t.name,
                "ms": 1e3 * t.seconds,
                "ratio": t.ratio,
                "depth": depth,
                "devices": len(jax.tree.leaves(value)[0].sharding.device_set),
                "error": error,
            }
        )
    return rows


if __name__ == "__main__":
    print(json.dumps(_measure()))
