"""Small data on which denoisers are trained in seconds, and what comes of it.

Everything is trained at first use, with a fixed key, and then kept in a folder of the user's,
`$XDG_CACHE_HOME/jaxopt_ext` or `~/.cache/jaxopt_ext`. The images are those of scikit-learn.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ..core import checkpoint, checks
from ..training import Drawn, GradientStep, fit
from .autoencoders import ConvolutionalAutoencoder
from .averages import PowerFunctionAverage
from .denoiser import Denoiser, Preconditioned
from .networks import MLPDenoiser
from .objectives import DenoisingLoss, LogNormal
from .psld import Autoencoder
from .weightings import EDMWeighting

SIGMA_DATA = 0.847
"""Root mean square of the digits' pixels."""

TRAIN = 1200


class Digits(NamedTuple):
    """Images of handwritten digits, with values in [-1, 1], and their labels.

    **Attributes:**

    - `train`, `test`: shapes `(1200, 8, 8)` and `(597, 8, 8)`, `float32`.
    - `train_labels`, `test_labels`: 0 to 9, `int32`.
    """

    train: Float[np.ndarray, "n 8 8"]
    train_labels: Int[np.ndarray, " n"]
    test: Float[np.ndarray, "m 8 8"]
    test_labels: Int[np.ndarray, " m"]


def digits(classes: Sequence[int] | None = None) -> Digits:
    """The digits of scikit-learn, in a fixed random order.

    Two samples of one law, the training and the test images, are this far apart, which is the least
    that samples of a model can be: squared MMD (median RBF) -0.3e-3, sliced Wasserstein 0.049,
    Frechet distance of `digit_features` about 0.5.

    **Arguments:**

    - `classes`: only images of these labels, if given.

    **Raises:** `ImportError` without scikit-learn, which the extra `demo` brings; `ValueError` for
    labels that are none.
    """
    images, labels = _load()
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], labels[order]
    parts = []
    for rows in (slice(None, TRAIN), slice(TRAIN, None)):
        x, y = images[rows], labels[rows]
        if classes is not None:
            if not len(classes) or not set(classes) <= set(range(10)):
                raise ValueError(f"classes must be some of 0 to 9, got {classes}")
            chosen = np.isin(y, list(classes))
            x, y = x[chosen], y[chosen]
        parts += [x, y]
    return Digits(*parts)


@functools.cache
def _load():
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits are scikit-learn's: pip install 'jaxopt-ext[demo]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    return (images / 8 - 1).reshape(-1, 8, 8).astype(np.float32), labels.astype(np.int32)


class DigitFeatures(eqx.Module):
    """A classifier of digits, 64-64-10, whose hidden values are features for distances."""

    hidden: eqx.nn.Linear
    output: eqx.nn.Linear

    def __init__(self, *, key):
        keys = jax.random.split(key)
        self.hidden = eqx.nn.Linear(64, 64, dtype=jnp.float32, key=keys[0])
        self.output = eqx.nn.Linear(64, 10, dtype=jnp.float32, key=keys[1])

    def features(self, x: Float[Array, "n 8 8"]) -> Float[Array, "n 64"]:
        """The hidden values."""
        return jax.nn.relu(jax.vmap(self.hidden)(x.reshape(-1, 64)))

    def logits(self, x: Float[Array, "n 8 8"]) -> Float[Array, "n 10"]:
        """Logarithms of the probabilities, up to a constant."""
        return jax.vmap(self.output)(self.features(x))

    def probabilities(self, x: Float[Array, "n 8 8"]) -> Float[Array, "n 10"]:
        """Of the ten digits."""
        return jax.nn.softmax(self.logits(x))


class _Recipe(NamedTuple):
    """How something is trained; part of the name of the file it is kept in."""

    steps: int
    batch_size: int
    rate: float
    seed: int


FEATURES = _Recipe(400, 128, 2e-3, 0)
TEACHER = _Recipe(3000, 128, 2e-3, 0)
AUTOENCODER = _Recipe(1500, 128, 3e-3, 0)


def digit_features() -> DigitFeatures:
    """The classifier, 97 % of whose answers on test images are right; trained at first use."""
    return _kept("digit_features", FEATURES, _first_features, _train_features)


def _first_features(key):
    return DigitFeatures(key=key)


def _train_features(model, recipe, key):
    def loss(model, batch, context):
        del context
        x, y = batch
        losses = optax.softmax_cross_entropy_with_integer_labels(model.logits(x), y)
        return jnp.mean(losses), {}

    # Decay keeps the features of one size.
    method = GradientStep(loss, optax.adamw(recipe.rate, weight_decay=1e-2))
    data = digits()
    batches = Drawn(
        (jnp.asarray(data.train), jnp.asarray(data.train_labels)), recipe.batch_size, key
    )
    return fit(method, model, batches, recipe.steps, key=key, progress=False, piece=500).params


def digits_teacher() -> Denoiser:
    """A trained denoiser of digits; trained at first use, in about a quarter of a minute.

    A perceptron 64-256 with three residual layers, `Preconditioned(0.847)`, levels `LogNormal()`,
    `EDMWeighting`, 3000 steps of Adam on batches of 128, and the average of relative width 0.10.
    With `Heun`, 18 steps of `karras` from 80 to 0.002, samples are near the floor of `digits`.
    Samples and batches have the shapes `(8, 8)` and `(n, 8, 8)`.
    """
    return _kept("digits_teacher", TEACHER, _first_teacher, _train_teacher)


def _first_teacher(key):
    network = MLPDenoiser((8, 8), key=key, dtype=jnp.float32)
    return Denoiser(network, Preconditioned(SIGMA_DATA))


def _train_teacher(model, recipe, key):
    loss = DenoisingLoss(LogNormal(), EDMWeighting(SIGMA_DATA))
    method = GradientStep(loss, optax.adam(recipe.rate), PowerFunctionAverage(0.10))
    batches = Drawn(jnp.asarray(digits().train), recipe.batch_size, key)
    done = fit(method, model, batches, recipe.steps, key=key, progress=False, piece=500)
    return done.state.averaged


def digits_autoencoder() -> Autoencoder:
    """A trained `ConvolutionalAutoencoder` of digits, images `(8, 8)` and latents `(4, 4)`, of one
    image at a time; trained at first use.

    1500 steps of Adam on the squared error, in batches of 128. Latents of the training images have
    mean 0 and variance 1.
    """
    model = _kept("digits_autoencoder", AUTOENCODER, _first_autoencoder, _train_autoencoder)
    return Autoencoder(model.encode, model.decode)


def _first_autoencoder(key):
    return ConvolutionalAutoencoder(8, key=key, dtype=jnp.float32)


def _train_autoencoder(model, recipe, key):
    def loss(model, batch, context):
        del context
        return jnp.mean((jax.vmap(lambda x: model.decode(model.encode(x)))(batch) - batch) ** 2), {}

    images = jnp.asarray(digits().train)
    method = GradientStep(loss, optax.adam(recipe.rate))
    batches = Drawn(images, recipe.batch_size, key)
    done = fit(method, model, batches, recipe.steps, key=key, progress=False, piece=500)
    return done.params.standardized(images)


def _kept(name: str, recipe: _Recipe, first: Callable, train: Callable) -> Any:
    """The model as it was kept, or trained and kept."""
    if checks.is_traced(jnp.zeros(())):
        raise ValueError(f"{name} must be called outside of JAX transformations")
    return _trained(name, recipe, first, train)


@functools.cache
def _trained(name, recipe, first, train):
    # In single precision whatever is asked elsewhere, so that there is one model.
    with jax.enable_x64(False):
        keys = jax.random.split(jax.random.key(recipe.seed))
        model = first(keys[0])
        file = _folder() / f"{name}-{_mark(recipe, model)}.eqx"
        if file.exists():
            with contextlib.suppress(RuntimeError, ValueError, EOFError):
                return checkpoint.load(file, model)
        model = train(model, recipe, keys[1])
        with contextlib.suppress(OSError):  # a folder that cannot be written to
            checkpoint.save(file, model)
        return model


def _mark(recipe, model):
    shapes = [getattr(leaf, "shape", None) for leaf in jax.tree.leaves(model)]
    return hashlib.sha256(repr((recipe, shapes)).encode()).hexdigest()[:12]


def _folder():
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "jaxopt_ext"
