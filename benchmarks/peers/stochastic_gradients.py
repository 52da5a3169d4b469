"""Estimators of gradients with variance reduction, a step beside one of plain minibatches."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.timing import race
from jaxopt_ext.stochastic import StochasticGradient, estimators

TITLE = (
    "a step with two gradients over 64 samples against one, of StochasticGradient, within a solve "
    "of 2000 steps that holds no big batch behind the first; rows of 4000 x 100, and a network "
    "64-32-10 of random images; float32. Plain gradients twice over are shown as batches of 128"
)
BATCH, STEPS, NEVER = 64, 2000, 10**6
ESTIMATORS = {
    "plain": estimators.Minibatch(BATCH),
    "plain, 128": estimators.Minibatch(2 * BATCH),
    "SVRG": estimators.SVRG(NEVER, BATCH),
    "SPIDER": estimators.SPIDER(NEVER, BATCH),
    "PAGE": estimators.PAGE(1e-9, BATCH),
    "STORM": estimators.STORM(0.1, BATCH),
}


def run() -> list[dict]:
    return [row for name, case in _cases() for row in _rows(name, *case)]


def _cases():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 100)).astype(np.float32)
    y = np.sign(X[:, 0] + rng.normal(size=4000)).astype(np.float32)
    logistic = lambda w, sample: jnp.logaddexp(0.0, -sample[1] * (sample[0] @ w))
    yield "logistic", (logistic, (X, y), jnp.zeros(100))

    def cross_entropy(params, sample):
        x, label = sample
        first, second = params
        scores = jnp.tanh(x @ first) @ second
        return jax.nn.logsumexp(scores) - scores[label]

    images = rng.random(size=(4000, 64)).astype(np.float32)
    labels = rng.integers(0, 10, 4000)
    start = jnp.asarray(rng.normal(size=(64, 32)) / 8, jnp.float32), jnp.zeros((32, 10))
    yield "network", (cross_entropy, (images, labels), start)


def _rows(name, loss, data, start):
    data = jax.tree.map(jnp.asarray, data)

    def solved(estimator, steps):
        solver = StochasticGradient(0.01, estimator, max_steps=steps)

        @jax.jit
        def run(data, start):
            return jxt.solve(jxt.FiniteSum(loss, data=data), solver, start).value

        return lambda: run(data, start)

    calls = {who: solved(estimator, STEPS) for who, estimator in ESTIMATORS.items()}
    return [
        {"case": name, "who": t.name, "us a step": 1e6 * t.seconds / STEPS, "ratio": t.ratio}
        for t in race(calls, reference="plain", rounds=9)
    ]
