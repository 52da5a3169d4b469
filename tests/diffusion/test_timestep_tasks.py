"""Weights of groups of times against scipy, and what conflicts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

from jaxopt_ext import diffusion, training
from jaxopt_ext.diffusion import timestep_tasks as tasks

KEY = jax.random.key(0)
VP = diffusion.VariancePreserving()
LOSS = diffusion.DenoisingLoss(diffusion.UniformTime(VP), diffusion.MinSNR())
CONTEXT = training.Context(jax.random.key(1), jnp.ones((), jnp.int32), None)


def by_scipy(gram, regularizer):
    k = len(gram)
    matrix = gram + regularizer * np.eye(k)
    return optimize.minimize(
        lambda w: w @ matrix @ w,
        np.full(k, 1 / k),
        jac=lambda w: 2 * matrix @ w,
        bounds=[(0, 1)] * k,
        constraints={"type": "eq", "fun": lambda w: np.sum(w) - 1, "jac": lambda w: np.ones(k)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    ).x


def test_weights_of_least_norm_are_those_of_scipy():
    rng = np.random.default_rng(0)
    # The softmax creeps to the border of the simplex, so it gets more steps than by default.
    slow = diffusion.SoftmaxWeights(0.3, num_steps=4000, step_size=2.0)
    methods = diffusion.ExactWeights(0.3), slow, diffusion.SoftmaxWeights()
    every = jax.jit(lambda gram: [weights(gram) for weights in methods])
    for _ in range(5):
        g = rng.normal(size=(4, 6)) + 0.7
        gram = g @ g.T
        wanted = by_scipy(gram, 0.3)
        found, crept, weights = map(np.asarray, every(jnp.array(gram)))
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        np.testing.assert_allclose(crept, wanted, atol=5e-3)
        slope = (gram + 0.3 * np.eye(4)) @ found
        level = found @ slope
        assert np.min(slope) > level - 1e-8 * abs(level)  # no vertex is lower
        assert np.sum(np.where(found > 1e-8, slope - level, 0)) < 1e-8
        np.testing.assert_allclose(np.sum(weights), 1)
        assert weights @ gram @ weights < np.mean(gram)  # better than equal ones


class Line(eqx.Module):
    """Scale and shift of the sample, each for its end of the times."""

    scale: jax.Array
    shift: jax.Array

    def __call__(self, x, node):
        return self.scale * x + self.shift * node.sigma


def test_the_loss_has_the_gradient_of_least_norm():
    model = diffusion.Denoiser(
        Line(jnp.array([0.2, -0.3]), jnp.array([0.5, 1.0])), diffusion.Data()
    )
    x = np.random.default_rng(0).normal(size=(32, 2))
    loss = diffusion.UnifiedGradientWeights(LOSS, 3, diffusion.ExactWeights(0.1))
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)

    @jax.jit
    def every(arrays):
        model = eqx.combine(arrays, rest)
        whole = lambda arrays: loss(eqx.combine(arrays, rest), x, CONTEXT)
        (value, metrics), gradient = jax.value_and_grad(whole, has_aux=True)(arrays)
        parts = [diffusion.DenoisingLoss(p, diffusion.MinSNR()) for p in LOSS.levels.parts(3)]
        alone = [part(model, x, CONTEXT)[0] for part in parts]
        found = tasks.group_gradients(LOSS, 3, model, x, CONTEXT)
        return value, metrics, gradient, found, alone

    value, metrics, gradient, (losses, rows), alone = jax.tree.map(np.asarray, every(arrays))
    flat = np.concatenate([np.reshape(leaf, (3, -1)) for leaf in jax.tree.leaves(rows)], axis=1)
    weights = by_scipy(flat @ flat.T, 0.1)
    found = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
    np.testing.assert_allclose(found, weights @ flat, atol=1e-5)
    np.testing.assert_allclose(value, weights @ losses, rtol=1e-5)
    np.testing.assert_allclose(metrics["largest_weight"], np.max(weights), atol=1e-5)
    # The groups are those of a loss over a part of the times.
    np.testing.assert_allclose(losses, alone, rtol=1e-6)


def test_what_one_group_learns_another_forgets():
    """A constant prediction cannot be right at both ends, and a step for one is one against the
    other; of a model with a number for each end neither forgets."""
    x = jnp.full((16, 1), 1.0)
    loss = diffusion.DenoisingLoss(diffusion.UniformTime(VP), diffusion.ConstantWeighting())

    # Of both, in one program: whole numbers are not trained.
    @jax.jit
    @jax.vmap
    def run(value, tilted):
        model = diffusion.Denoiser(SlopeOrConstant(value, tilted), Tilted(tilted))
        return diffusion.task_conflict(
            model, loss, x, optax.sgd(0.5), groups=2, num_steps=20, batch_size=8, key=KEY
        )

    both = jax.tree.map(np.asarray, run(jnp.array([[0.5], [0.4]]), jnp.array([0, 1])))
    found, conflict = (jax.tree.map(lambda a, i=i: a[i], both) for i in range(2))
    np.testing.assert_allclose(np.diagonal(found.cosines), 1, rtol=1e-6)
    np.testing.assert_allclose(found.cosines[0, 1], 1, rtol=1e-6)  # both want the slope at zero
    assert np.all(found.changes < 0)
    assert found.losses.shape == (2,)
    assert conflict.cosines[0, 1] < -0.9
    assert conflict.changes[0, 0] < 0 < conflict.changes[0, 1]
    assert conflict.changes[1, 1] < 0 < conflict.changes[1, 0]


class SlopeOrConstant(eqx.Module):
    """A number times the level's distance from one in between, or the number."""

    value: jax.Array
    constant: jax.Array

    def __call__(self, x, node):
        sloped = self.value * (node.sigma - 0.8) + 1.0
        return jnp.where(self.constant, self.value, sloped) + 0 * x


class Tilted(diffusion.AbstractPrediction):
    """Data, or data plus a multiple of the level: then its target depends on the time."""

    tilted: jax.Array

    def data(self, output, x, node):
        return output + self.tilted * (1 - 0.6 * (node.sigma > 0.95)) + 0 * x

    def noise(self, output, x, node):
        return (x - node.alpha * self.data(output, x, node)) / node.sigma


def test_bad_input():
    other = diffusion.DenoisingLoss(diffusion.LogNormal(), diffusion.SNR())
    with pytest.raises(TypeError, match="UniformTime"):
        diffusion.UnifiedGradientWeights(other, 3)
    with pytest.raises(ValueError, match="groups"):
        diffusion.UnifiedGradientWeights(LOSS, 0)
    with pytest.raises(ValueError, match="regularizer"):
        diffusion.ExactWeights(-1.0)
    with pytest.raises(ValueError, match="step_size"):
        diffusion.SoftmaxWeights(step_size=0.0)
