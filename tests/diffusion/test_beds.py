"""The digits, their classifier and their denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxopt_ext import diffusion
from jaxopt_ext.core import distances
from jaxopt_ext.diffusion import beds


def test_digits_are_those_of_scikit_learn():
    found = diffusion.digits()
    assert found.train.shape == (1200, 8, 8)
    assert found.test.shape == (597, 8, 8)
    assert found.train.dtype == np.float32
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(1797)
    everything = np.concatenate([found.train, found.test]).reshape(1797, 64)
    np.testing.assert_array_equal(everything, images[order] / 8 - 1)
    both = np.concatenate([found.train_labels, found.test_labels])
    np.testing.assert_array_equal(both, labels[order])
    np.testing.assert_allclose(np.sqrt(np.mean(found.train**2)), beds.SIGMA_DATA, atol=1e-3)
    np.testing.assert_allclose(np.mean(found.train), -0.389, atol=1e-3)
    some = diffusion.digits((3, 5))
    assert set(some.train_labels.tolist()) == {3, 5}
    assert len(some.train) == np.sum(np.isin(found.train_labels, (3, 5)))
    for bad in ((10,), ()):
        with pytest.raises(ValueError, match="classes"):
            diffusion.digits(bad)


def test_what_is_trained_is_kept(tmp_path, monkeypatch):
    """In single precision, in a file that is read the next time; a file of another kind is not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe, trained = beds.FEATURES._replace(steps=3), []

    def train(model, recipe, key):
        trained.append(recipe)
        return beds._train_features(model, recipe, key)

    make = lambda: beds._kept("test", recipe, beds._first_features, train)
    first = make()
    beds._trained.cache_clear()
    again = make()
    assert len(trained) == 1
    x = diffusion.digits().test[:5]
    probabilities = first.probabilities(x)
    np.testing.assert_array_equal(probabilities, again.probabilities(x))
    assert probabilities.dtype == jnp.float32
    np.testing.assert_allclose(np.sum(probabilities, axis=1), 1, rtol=1e-5)
    assert first.features(x).shape == (5, 64)
    (file,) = (tmp_path / "jaxopt_ext").iterdir()
    file.write_bytes(b"no model")
    beds._trained.cache_clear()
    make()
    assert len(trained) == 2
    with pytest.raises(ValueError, match="outside"):
        jax.jit(lambda x: diffusion.digits_teacher().data(x, None))(x)
    beds._trained.cache_clear()


@pytest.mark.slow
def test_the_teacher_is_near_the_data():
    data, features = diffusion.digits(), diffusion.digit_features()
    answers = np.argmax(features.probabilities(data.test), axis=1)
    assert np.mean(answers == data.test_labels) > 0.965
    schedule = diffusion.VarianceExploding()
    x = diffusion.prior(schedule, jnp.zeros((597, 8, 8), jnp.float32), jax.random.key(0))
    times = diffusion.karras(schedule, 18)
    made = diffusion.sample(diffusion.digits_teacher(), diffusion.Heun(), schedule, times, x).value
    assert made.dtype == jnp.float32
    test = jnp.asarray(data.test)
    assert float(distances.squared_mmd(made, test)) < 3e-3
    assert float(distances.squared_mmd(jnp.asarray(data.train[:597]), test)) < 0.5e-3
    frechet = distances.frechet_distance(features.features(made), features.features(test))
    assert float(frechet) < 2.0
