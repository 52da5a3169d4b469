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
    exact = eqx.filter_jit(diffusion.ExactWeights(0.3))
    # The softmax creeps to the border of the simplex, so it gets more steps than by default.
    slow = eqx.filter_jit(diffusion.SoftmaxWeights(0.3, num_steps=4000, step_size=2.0))
    for _ in range(5):
        g = rng.normal(size=(4, 6)) + 0.7
        gram = jnp.asarray(g @ g.T)
        wanted = by_scipy(np.asarray(gram), 0.3)
        found = exact(gram)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        np.testing.assert_allclose(slow(gram), wanted, atol=5e-3)
        slope = (gram + 0.3 * jnp.eye(4)) @ found
        level = float(found @ slope)
        assert float(jnp.min(slope)) > level - 1e-8 * abs(level)  # no vertex is lower
        assert float(jnp.sum(jnp.where(found > 1e-8, slope - level, 0))) < 1e-8
    weights = diffusion.SoftmaxWeights()(gram)
    np.testing.assert_allclose(jnp.sum(weights), 1)
    assert weights @ gram @ weights < jnp.mean(gram)  # better than equal ones


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
    x = jax.random.normal(KEY, (32, 2))
    loss = diffusion.UnifiedGradientWeights(LOSS, 3, diffusion.ExactWeights(0.1))
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)

    @jax.jit
    def every(arrays):
        model = eqx.combine(arrays, rest)
        whole = lambda arrays: loss(eqx.combine(arrays, rest), x, CONTEXT)
        (value, metrics), gradient = jax.value_and_grad(whole, has_aux=True)(arrays)
        return value, metrics, gradient, tasks.group_gradients(LOSS, 3, model, x, CONTEXT)

    value, metrics, gradient, (losses, rows) = every(arrays)
    flat = np.concatenate([np.reshape(leaf, (3, -1)) for leaf in jax.tree.leaves(rows)], axis=1)
    weights = by_scipy(flat @ flat.T, 0.1)
    found = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
    np.testing.assert_allclose(found, weights @ flat, atol=1e-5)
    np.testing.assert_allclose(value, weights @ losses, rtol=1e-5)
    np.testing.assert_allclose(metrics["largest_weight"], np.max(weights), atol=1e-5)
    # The groups are those of a loss over a part of the times.
    for i, part in enumerate(LOSS.levels.parts(3)):
        alone = diffusion.DenoisingLoss(part, diffusion.MinSNR())(model, x, CONTEXT)[0]
        np.testing.assert_allclose(losses[i], alone, rtol=1e-6)


def test_what_one_group_learns_another_forgets():
    """A constant prediction cannot be right at both ends, and a step for one is one against the
    other; of a model with a number for each end neither forgets."""
    x = jnp.full((16, 1), 1.0)

    class Slope(eqx.Module):
        value: jax.Array

        def __call__(self, x, node):
            return self.value * (node.sigma - 0.8) + 1.0

    model = diffusion.Denoiser(Slope(jnp.array([0.5])), diffusion.Data())
    loss = diffusion.DenoisingLoss(diffusion.UniformTime(VP), diffusion.ConstantWeighting())
    run = lambda loss: diffusion.task_conflict(
        model, loss, x, optax.sgd(0.5), groups=2, num_steps=20, batch_size=8, key=KEY
    )
    found = run(loss)
    np.testing.assert_allclose(np.diagonal(found.cosines), 1, rtol=1e-6)
    np.testing.assert_allclose(found.cosines[0, 1], 1, rtol=1e-6)  # both want the slope at zero
    assert np.all(found.changes < 0)
    assert found.losses.shape == (2,)

    class Constant(eqx.Module):
        value: jax.Array

        def __call__(self, x, node):
            return self.value + 0 * x

    noise = diffusion.Denoiser(Constant(jnp.array([0.4])), Tilted())
    found = diffusion.task_conflict(
        noise, loss, x, optax.sgd(0.5), groups=2, num_steps=20, batch_size=8, key=KEY
    )
    assert found.cosines[0, 1] < -0.9
    assert found.changes[0, 0] < 0 < found.changes[0, 1]
    assert found.changes[1, 1] < 0 < found.changes[1, 0]


class Tilted(diffusion.AbstractPrediction):
    """Data plus a multiple of the level: its target depends on the time."""

    def data(self, output, x, node):
        return output + 1 - 0.6 * (node.sigma > 0.95) + 0 * x

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
