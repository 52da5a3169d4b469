"""What the ways to a hypergradient are said to cost, and that they lead the same way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import bilevel_costs


@pytest.mark.slow
def test_every_way_steps_along_the_derivative():
    task = bilevel_costs.penalties()
    _, y = task.start
    x = jax.random.normal(jax.random.key(0), task.start[0].shape)
    solved = bilevel_costs.answer(task, x, y, tol=1e-5).value
    task = task._replace(start=(x, solved))
    slope = jax.grad(
        lambda x: task.problem.full().upper(x, bilevel_costs.answer(task, x, solved).value)
    )(x)
    for name, way in bilevel_costs.WAYS.items():
        if name.startswith("single"):  # their multiplier starts at zero
            continue
        (pair, *_), spent = way.step(task, 1.0, way.begin(task, 1.0))
        far = jnp.linalg.norm(x - pair[0] - slope) / jnp.linalg.norm(slope)
        assert far < (0.8 if name == "nested, series" else 0.05), (name, far)
        assert spent.gradients > 0 < spent.products


def test_the_table_tells_when_a_way_is_near_the_best():
    task = bilevel_costs.penalties()
    first = float(bilevel_costs.loss(task)(jnp.asarray(task.start[0])[None])[0])
    n = bilevel_costs.CHECKPOINTS
    units = np.stack([np.arange(1.0, n + 1), 2 * np.arange(1.0, n + 1)])
    losses = np.linspace(first, 0, n + 1)[1:]
    quick = bilevel_costs.Run(np.zeros(1), units, losses, 1.0, False, 10 * n, 1.0, 2048)
    stuck = quick._replace(losses=np.full(n, first), at_an_end=True)
    rows = bilevel_costs.table(task, {"quick": quick, "stuck": stuck})
    at = int(np.ceil(n * (1 - bilevel_costs.TARGET)))
    assert [rows[0][k] for k in ("steps", "gradients", "products", "KiB")] == [
        10 * at,
        at,
        2 * at,
        2,
    ]
    assert (rows[1]["steps"], rows[1]["rate"]) == ("-", "1, an end")
