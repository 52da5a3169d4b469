"""Every optimizer of the catalogue on three problems, each at its best rate of one grid."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.claims.optimizers import _characters as characters, _digits as digits
from jaxopt_ext import catalog, plots
from jaxopt_ext.optimizers import hessian_vector_product, per_sample_grads

FACTORS = (0.3, 1.0, 3.0)
"""Of the learning rate in the catalogue, or of the steps where there is none."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A training loop's parts.

    - `start`: parameters; `batch(key)`: data of one step.
    - `loss`: `(params, batch) -> scalar`; `each`: the same of one sample, if there are samples.
    - `measure`: what the curves show.
    - `heavy`: leave out the optimizers that cost several gradients a step.
    """

    name: str
    start: Any
    batch: Callable[[Any], Any]
    loss: Callable[[Any, Any], Any]
    each: Callable[[Any, Any], Any] | None
    measure: Callable[[Any], Any]
    num_steps: int
    heavy: bool = False


def digits_problem() -> Problem:
    """A small classifier, batches of 64."""

    def batch(key):
        chosen = jax.random.randint(key, (64,), 0, digits.NUM_TRAIN)
        return jax.tree.map(lambda a: a[chosen], digits.TRAIN)

    return Problem(
        "digits, training loss",
        digits.network(jax.random.key(0), (64, 32, 10)),
        batch,
        digits.loss,
        lambda p, s: digits.loss(p, jax.tree.map(lambda a: a[None], s)),
        lambda p: digits.loss(p, digits.TRAIN),
        200,
    )


def text_problem() -> Problem:
    """The character transformer."""
    held_out = characters.draw(characters.VALID, jax.random.key(9), 64)
    return Problem(
        "text, validation loss",
        characters.network(jax.random.key(0)),
        lambda key: characters.draw(characters.TRAIN, key, 8),
        characters.loss,
        lambda p, s: characters.loss(p, s[None]),
        lambda p: characters.loss(p, held_out),
        100,
        heavy=True,
    )


def quadratic_problem() -> Problem:
    """Ill-conditioned least squares in matrices, without noise; its minimum is 0."""
    scales = jnp.logspace(-1.5, 0, 256).reshape(16, 16).astype(jnp.float32)
    target = jax.random.normal(jax.random.key(1), (16, 16), jnp.float32)
    loss = lambda p, _: 0.5 * jnp.sum((scales * (p["w"] - target)) ** 2)
    start = {"w": jnp.zeros((16, 16), jnp.float32)}
    return Problem(
        "quadratic, loss", start, lambda key: jnp.zeros(4), loss, loss, lambda p: loss(p, 0), 300
    )


def _extras(names, problem, params, grads, batch, number):
    """The extra arguments that an optimizer asks for."""
    known = {
        "value": lambda: problem.loss(params, batch),
        "grad_fn": lambda: jax.grad(lambda p: problem.loss(p, batch)),
        "hvp_fn": lambda: hessian_vector_product(lambda p: problem.loss(p, batch)),
        "loss_grads": lambda: jax.tree.map(lambda g: jnp.stack([0.5 * g, 0.5 * g]), grads),
        "per_sample_grads": lambda: per_sample_grads(problem.each, params, batch),
        "cluster_id": lambda: jnp.asarray(number % 2, jnp.int32),
    }
    return {name: known[name]() for name in names}


def curves(
    factory: Any, arguments: dict, extras: tuple, problem: Problem, every: int = 10
) -> np.ndarray:
    """The measure every few steps for each factor of the rate, shape `(factors, points)`."""
    given = arguments.get("learning_rate")
    outer = given is None  # no rate of its own: the steps are scaled
    rate = 1.0 if outer else given

    def train(factor):
        options = arguments if outer else {**arguments, "learning_rate": rate * factor}
        tx = factory(**options)
        if outer:
            tx = optax.chain(tx, optax.scale(factor))
        tx = optax.with_extra_args_support(tx)

        def step(carry, inputs):
            params, state = carry
            key, number = inputs
            batch = problem.batch(key)
            grads = jax.grad(problem.loss)(params, batch)
            more = _extras(extras, problem, params, grads, batch, number)
            updates, state = tx.update(grads, state, params, **more)
            return (optax.apply_updates(params, updates), state), None

        def stretch(carry, inputs):
            carry, _ = jax.lax.scan(step, carry, inputs)
            return carry, problem.measure(carry[0])

        keys = jax.random.split(jax.random.key(2), problem.num_steps)
        inputs = keys.reshape(-1, every), jnp.arange(problem.num_steps).reshape(-1, every)
        carry = problem.start, tx.init(problem.start)
        return jax.lax.scan(stretch, carry, inputs)[1]

    return np.asarray(jax.jit(jax.vmap(train))(jnp.array(FACTORS, jnp.float32)))


def race(problem: Problem) -> dict[str, np.ndarray]:
    """The best curve of every optimizer: that with the lowest mean of its last three points."""
    best = {}
    entries = [("Adam", optax.adam, {"learning_rate": 1e-2}, ())]
    for row in catalog.rows(catalog.OptimizerRow):
        arguments = row.example(problem.start)
        if "batch" in row.extras or arguments.get("preconditioner") == "newton":
            continue  # need the network's outputs, or a matrix as large as the Hessian
        if problem.heavy and {"hvp_fn", "per_sample_grads"} & set(row.extras):
            continue
        entries.append((row.name, row.object, arguments, row.extras))
    for name, factory, arguments, extras in entries:
        found = curves(factory, arguments, extras, problem)
        last = np.nan_to_num(found[:, -3:].mean(1), nan=np.inf)
        best[name] = found[np.argmin(last)]
    return best


def plot(results: dict[str, dict[str, np.ndarray]], highlight: int = 5) -> Any:
    """One panel for each problem: all in grey, Adam black, the best few in colour."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(15, 4.6), layout="constrained")
    for axis, (name, found) in zip(axes, results.items(), strict=True):
        others = [method for method in found if method != "Adam"]
        order = sorted(others, key=lambda k: np.nan_to_num(found[k][-3:].mean(), nan=np.inf))

        def draw(methods, axis=axis, found=found):
            before = len(axis.lines)
            plots.convergence({m[:34]: found[m] for m in methods}, every=10, ax=axis)
            return axis.lines[before:]

        for line in draw(order[highlight:]):
            line.set(color="0.85", linewidth=1, label="_")
        axis.set_prop_cycle(None)
        for line in draw(order[:highlight]):
            line.set_linewidth(1.8)
        if "Adam" in found:
            draw(["Adam"])[0].set(color="black", linewidth=1.8, linestyle="--")
        finite = np.concatenate([c[np.isfinite(c)] for c in found.values()])
        top = found["Adam"][0] * 2 if "Adam" in found else finite.max()
        axis.set(title=name, xlabel="steps", ylabel="", ylim=(max(finite.min(), 1e-8), top))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8, loc="best")
    return figure
