"""What hyperparameters cost, by each way to their gradient: of the lower level gradients, products
with its second derivatives, and memory.

A unit is one gradient of the whole lower level, or one product of its Hessian or cross derivatives
with a vector; a reverse pass through a gradient step is one product. What belongs to the upper
level alone is not counted: all ways have the same of it in each step.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

import jaxopt_ext as jxt
from benchmarks.timing import seconds
from jaxopt_ext import bilevel
from jaxopt_ext.core import LeastSquaresFallback

BUDGET = 4000
"""Units that each way may spend, about."""
CHECKPOINTS = 20
TARGET = 0.05
"""Of the gap at the start, to what the best of the ways found."""

ACCURACY = 5e-3
"""Of the linear solve in a step; twice that leaves the step 6 percent beside the derivative."""


class Task(NamedTuple):
    """A hyperparameter problem.

    - `problem`: both levels as means over samples; the lower one is strongly convex.
    - `start`: hyperparameters and parameters.
    - `smoothness`: at least the largest eigenvalue of any lower Hessian.
    - `truth`: of each hyperparameter, whether it belongs to what is good.
    """

    name: str
    problem: jxt.StochasticBilevel
    start: tuple[jax.Array, jax.Array]
    smoothness: float
    truth: np.ndarray


def penalties(seed: int = 0) -> Task:
    """A penalty for each of 60 features, half of which are noise: breast cancer, logistic."""
    rng = np.random.default_rng(seed)
    bunch: Any = load_breast_cancer()
    order = rng.permutation(len(bunch.data))
    X = (bunch.data - bunch.data.mean(0)) / bunch.data.std(0)
    X = np.concatenate([X, rng.normal(size=X.shape)], axis=1)[order].astype(np.float32)
    y = (2.0 * bunch.target[order] - 1).astype(np.float32)
    train, valid = (X[:150], y[:150]), (X[150:350], y[150:350])
    largest = 1.0

    def fit(w, sample):
        return jax.nn.softplus(-sample[1] * (sample[0] @ w))

    def lower(x, w, sample):
        return fit(w, sample) + 0.5 * jnp.sum((0.01 + largest * jax.nn.sigmoid(x)) * w**2)

    problem = jxt.StochasticBilevel(lambda x, w, sample: fit(w, sample), lower, valid, train)
    smoothness = float(np.linalg.norm(train[0], 2)) ** 2 / (4 * len(train[0])) + 0.01 + largest
    start = jnp.zeros(X.shape[1]), jnp.zeros(X.shape[1])
    return Task("penalties", problem, start, smoothness, np.arange(X.shape[1]) < 30)


def cleaning(seed: int = 0) -> Task:
    """A weight for each of 300 digits, half of whose labels were drawn anew."""
    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    X = np.concatenate([images / 16, np.ones((len(images), 1))], axis=1)
    order = rng.permutation(len(X))
    X, y = X[order].astype(np.float32), labels[order].astype(np.int32)
    n = 300
    noisy = np.where(rng.random(n) < 0.5, rng.integers(0, 10, n), y[:n]).astype(np.int32)

    def fit(w, x, y):
        return -jax.nn.log_softmax(x @ w)[y]

    def lower(x, w, sample):
        row, label, i = sample
        return jax.nn.sigmoid(x[i]) * fit(w, row, label) + 0.005 * jnp.sum(w**2)

    problem = jxt.StochasticBilevel(
        lambda x, w, sample: fit(w, *sample),
        lower,
        (X[n : 2 * n], y[n : 2 * n]),
        (X[:n], noisy, np.arange(n, dtype=np.int32)),
    )
    # The Hessian of the softmax is at most a half.
    smoothness = float(np.linalg.norm(X[:n], 2)) ** 2 / (2 * n) + 0.01
    start = jnp.zeros(n), jnp.zeros((X.shape[1], 10))
    return Task("cleaning", problem, start, smoothness, noisy == y[:n])


class Spent(NamedTuple):
    gradients: jax.Array
    products: jax.Array


class Way(NamedTuple):
    """A way to descend.

    - `begin`: `(task, rate) -> carry`, whose first part is the pair of x and y.
    - `step`: `(task, rate, carry) -> (carry, Spent)`.
    - `units`: of a step, about.
    """

    begin: Callable[..., Any]
    step: Callable[..., Any]
    units: float
    rates: tuple[float, ...]


def lower_problem(levels: jxt.Bilevel, x: jax.Array) -> jxt.Smooth:
    return jxt.Smooth(lambda y: levels.lower(x, y))


def answer(task: Task, x, y, *, adjoint=None, tol=1e-4, **options):
    """The lower level's solution by `solve`."""
    step = jxt.minimize.FixedStep(1 / task.smoothness)
    solver = jxt.minimize.FISTA(step, tol=tol, **options)
    adjoint = jxt.ImplicitAdjoint() if adjoint is None else adjoint
    return jxt.solve(lower_problem(task.problem.full(), x), solver, y, adjoint=adjoint)


def _iterations(levels, x, y, v0, rtol):
    """How many products conjugate gradients take to this part of the first residual."""
    slope = lambda y: jax.grad(lambda y: levels.lower(x, y))(y)
    _, product = jax.linearize(slope, y)
    through = jax.grad(lambda y: levels.upper(x, y))(y)
    left = through - product(v0)
    least = (rtol * jnp.linalg.norm(left)) ** 2

    def turn(carry):
        r, p, square, count = carry
        bent = product(p)
        r = r - square / jnp.vdot(p, bent) * bent
        new = jnp.vdot(r, r)
        return r, r + new / square * p, new, count + 1

    start = left, left, jnp.vdot(left, left), jnp.asarray(0)
    return jax.lax.while_loop(lambda c: c[2] > least, turn, start)[3]


def _pair(task, rate):
    return (task.start,)


def _with_multiplier(task, rate):
    return task.start, jnp.zeros_like(task.start[1])


def _implicit(task, rate, carry):
    """`jax.grad` through `solve`, from where the last solve ended."""
    ((x, y),) = carry
    levels = task.problem.full()
    adjoint = jxt.ImplicitAdjoint(LeastSquaresFallback(1e-3, dense_size=0))

    def value(x):
        found = answer(task, x, y, adjoint=adjoint)
        return levels.upper(x, found.value), found

    gradient, found = jax.grad(value, has_aux=True)(x)
    # The adjoint has GMRES, which needs no more of them than conjugate gradients.
    products = _iterations(levels, x, found.value, jnp.zeros_like(y), 1e-3) + 1
    return ((x - rate * gradient, found.value),), Spent(found.steps + 1, products)


def _unrolled(task, rate, carry, steps=50):
    """`jax.grad` through `solve`, by its iterates, of which few are kept: they are made twice."""
    ((x, _),) = carry
    levels = task.problem.full()
    adjoint = jxt.UnrolledAdjoint()

    def value(x):
        start = task.start[1]
        found = answer(task, x, start, adjoint=adjoint, tol=0.0, max_steps=steps, restart=False)
        return levels.upper(x, found.value), found.value

    gradient, y = jax.grad(value, has_aux=True)(x)
    return ((x - rate * gradient, y),), Spent(jnp.asarray(2 * steps), jnp.asarray(steps))


def _descended(task, x, y, steps):
    levels = task.problem.full()
    return levels, bilevel.descend(lambda y: levels.lower(x, y), y, 1 / task.smoothness, steps)


def _conjugate(task, rate, carry, steps=10):
    """A few steps on the lower level from the last iterate, and a linear solve from the last
    multiplier."""
    (x, y), v = carry
    levels, y = _descended(task, x, y, steps)
    solver = LeastSquaresFallback(ACCURACY, dense_size=0)
    found = bilevel.hypergradient(levels, x, y, linear_solver=solver, v0=v)
    # Two more check the solve's start and end, one is the cross product.
    products = _iterations(levels, x, y, v, ACCURACY) + 3
    x = x - rate * found.gradient
    return ((x, y), found.multiplier), Spent(jnp.asarray(steps), products)


def _series(task, rate, carry, steps=10):
    """As many steps, and a series in place of the linear solve."""
    ((x, y),) = carry
    levels, y = _descended(task, x, y, steps)
    found = bilevel.neumann(levels, x, y, num_terms=steps, step_size=1 / task.smoothness)
    return ((x - rate * found.gradient, y),), Spent(jnp.asarray(steps), jnp.asarray(steps))


def _bamm(task, rate, batch):
    size = 1 if batch is None else 0.5
    averaging = bilevel.ConstantAveraging(0.0)
    return bilevel.BAMM(size / task.smoothness, averaging, x_step=rate, batch=batch, tol=0.0)


def _single_begin(task, rate, batch=None):
    x, y = task.start
    method, point = _bamm(task, rate, batch), jxt.BilevelPoint(x, y, jnp.zeros_like(y))
    return task.start, point, method.init(task.problem, point, jax.random.key(0))


def _single(task, rate, carry, batch=None):
    _, point, state = carry
    point, state = _bamm(task, rate, batch).step(task.problem, point, state)
    # Of batches each direction has its own: one gradient, one product, one cross product.
    share = 1.0 if batch is None else batch / len(task.problem.lower_data[0])
    spent = Spent(jnp.asarray(share), jnp.asarray(share * (1 if batch is None else 2)))
    return ((point.upper, point.lower), point, state), spent


BATCH = 32


def _halves(low, high):
    """Powers of the square root of ten."""
    return tuple(float(rate) for rate in 10 ** (np.arange(2 * low, 2 * high + 1) / 2))


WAYS = {
    "grad of solve, implicit": Way(_pair, _implicit, 100, _halves(2.5, 5)),
    "grad of solve, unrolled": Way(_pair, _unrolled, 150, _halves(2.5, 5)),
    "nested, linear solve": Way(_with_multiplier, _conjugate, 25, _halves(2, 4.5)),
    "nested, series": Way(_pair, _series, 20, _halves(2, 4.5)),
    "single loop": Way(_single_begin, _single, 2, _halves(0.5, 4)),
    "single loop, batches": Way(
        functools.partial(_single_begin, batch=BATCH),
        functools.partial(_single, batch=BATCH),
        0.8,
        _halves(0.5, 3.5),
    ),
}


class Run(NamedTuple):
    """What one way found.

    - `x`: its last hyperparameters.
    - `units`: gradients and products at the checkpoints, shape `(2, CHECKPOINTS)`.
    - `losses`: $F(x, y^*(x))$ at them, with $y^*$ by a solve of its own.
    """

    x: np.ndarray
    units: np.ndarray
    losses: np.ndarray
    rate: float
    at_an_end: bool
    steps: int
    seconds: float
    memory: int


def _followed(task: Task, way: Way, inner: int):
    """From a rate to the hyperparameters and what was spent, at each checkpoint."""

    def run(rate):
        def one(carry, _):
            return way.step(task, rate, carry)

        def part(carry, _):
            carry, spent = jax.lax.scan(one, carry, length=inner)
            return carry, (carry[0][0], jnp.stack([jnp.sum(s) for s in spent]))

        _, (x, spent) = jax.lax.scan(part, way.begin(task, rate), length=CHECKPOINTS)
        return x, jnp.cumsum(spent, axis=0)

    return jax.jit(run).lower(jnp.float32(1)).compile()


def loss(task: Task):
    """$F(x, y^*(x))$ of each of several x."""
    levels = task.problem.full()

    def one(x):
        return levels.upper(x, answer(task, x, task.start[1]).value)

    return jax.jit(lambda xs: jax.lax.map(one, xs))


def measure(task: Task) -> dict[str, Run]:
    """All ways on one task, each at the rate of its grid that ends with the least loss."""
    judge, runs = loss(task), {}
    for name, way in WAYS.items():
        inner = max(1, round(BUDGET / way.units / CHECKPOINTS))
        follow = _followed(task, way, inner)
        rates = [jnp.float32(rate) for rate in way.rates]
        found = [follow(rate) for rate in rates]
        ends = np.asarray(judge(jnp.stack([x[-1] for x, _ in found])))
        best = int(np.argmin(np.where(np.isfinite(ends), ends, np.inf)))
        x, spent = found[best]
        analysis = follow.memory_analysis()
        runs[name] = Run(
            np.asarray(x[-1]),
            np.asarray(spent).T,
            np.asarray(judge(x)),
            float(rates[best]),
            best in (0, len(rates) - 1),
            inner * CHECKPOINTS,
            seconds(lambda follow=follow, rate=rates[best]: follow(rate)),
            analysis.temp_size_in_bytes if analysis else -1,
        )
    return runs


def table(task: Task, runs: dict[str, Run]) -> list[dict[str, Any]]:
    """What each way had spent when its loss was near the best that any found: the first checkpoint
    where at most `TARGET` is left of the gap at the start."""
    first = float(loss(task)(jnp.asarray(task.start[0])[None])[0])
    best = min(np.nanmin(run.losses) for run in runs.values())
    rows = []
    for name, run in runs.items():
        near = run.losses <= best + TARGET * (first - best)
        at = int(np.argmax(near))
        done = (at + 1) / CHECKPOINTS
        there = bool(near.any())
        rows.append(
            {
                "task": task.name,
                "way": name,
                "steps": round(done * run.steps) if there else "-",
                "gradients": round(run.units[0, at]) if there else "-",
                "products": round(run.units[1, at]) if there else "-",
                "ms": round(1e3 * done * run.seconds) if there else "-",
                "KiB": round(run.memory / 1024),
                "last loss": f"{run.losses[-1]:.4f}",
                "rate": f"{run.rate:.3g}" + (", an end" if run.at_an_end else ""),
            }
        )
    return rows


if __name__ == "__main__":
    from benchmarks.claims import format_table

    for task in (penalties(), cleaning()):
        print(format_table(table(task, measure(task))))
