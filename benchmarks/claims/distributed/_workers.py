"""Workers with parts of the digits, some of them bad, many runs in one program."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jaxopt_ext.core import Scalar, loops
from jaxopt_ext.distributed.attacks import AbstractAttack, LabelFlip

CLASSES = 10
IMAGES, LABELS = load_digits(return_X_y=True)
SPLIT = train_test_split(
    IMAGES.astype(np.float32) / 16, LABELS, test_size=360, random_state=0, stratify=LABELS
)
TRAIN = SPLIT[0], SPLIT[2].astype(np.int32)
TEST = SPLIT[1], SPLIT[3].astype(np.int32)


class OneOf(AbstractAttack):
    """The attack of this number, which may be traced: so one program serves all of them.

    Past the last one nodes are honest.

    **Arguments:**

    - `attacks`: of equal `f`.
    - `which`: the number.
    """

    attacks: tuple[AbstractAttack, ...]
    which: Scalar | jax.Array

    @property
    def f(self):
        return self.attacks[0].f

    def init(self, row, key=None):
        return tuple(attack.init(row, key) for attack in self.attacks)

    def observe(self, state, good):
        return tuple(a.observe(s, good) for a, s in zip(self.attacks, state, strict=True))

    def send(self, good, key, state, own):
        sends = [
            lambda a=a, s=s: a.send(good, key, s, own)
            for a, s in zip(self.attacks, state, strict=True)
        ]
        return jax.lax.switch(self.which, [*sends, lambda: own])


def loss(params, batch):
    """Softmax regression."""
    x, y = batch
    scores = x @ params["w"] + params["b"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(scores), y[:, None], axis=1))


def start():
    """Zeros."""
    return {"w": jnp.zeros((64, CLASSES), jnp.float32), "b": jnp.zeros(CLASSES, jnp.float32)}


def accuracy(params):
    """On the test part, for one worker's parameters."""
    scores = jnp.asarray(TEST[0]) @ params["w"] + params["b"]
    return jnp.mean(jnp.argmax(scores, axis=1) == jnp.asarray(TEST[1]))


def parts(n, seed, concentration=None):
    """Which images each of `n` workers has, `(n, k)`: all alike, or their classes from a Dirichlet
    distribution for each worker."""
    rng = np.random.default_rng(seed)
    labels, size = TRAIN[1], len(TRAIN[1]) // n
    if concentration is None:
        return rng.permutation(len(labels))[: n * size].reshape(n, size)
    pools = [np.flatnonzero(labels == c) for c in range(CLASSES)]
    shares = rng.dirichlet(np.full(CLASSES, concentration), n)
    return np.stack(
        [[rng.choice(pools[c]) for c in rng.choice(CLASSES, size, p=share)] for share in shares]
    )


def batches(part, key, batch_size, flipped=None):
    """A minibatch for each worker, `(n, batch_size, ...)`; those `flipped` see wrong labels."""
    n, k = part.shape
    chosen = jnp.take_along_axis(part, jax.random.randint(key, (n, batch_size), 0, k), axis=1)
    x, y = jnp.asarray(TRAIN[0])[chosen], jnp.asarray(TRAIN[1])[chosen]
    if flipped is not None:
        y = jnp.where(flipped[:, None], LabelFlip(CLASSES)(y), y)
    return x, y


def train(algorithm, network, part, key, num_rounds, batch_size, flipped=None, metric=None):
    """The parameters of all workers after some rounds, and `metric` of them after each."""
    first, later = jax.random.split(key)
    params = network.replicate(start())
    state = algorithm.init(params, batches(part, first, batch_size, flipped), network, first)

    def one(state, r):
        draw, key = jax.random.split(jax.random.fold_in(later, r))
        state = algorithm.round(state, batches(part, draw, batch_size, flipped), network, key)
        return state, None if metric is None else metric(state.params)

    state, history = loops.scan(one, state, jnp.arange(num_rounds))
    return state.params, history
