"""BAdam: one block's worth of state, and Adam's accuracy for as many coordinate updates."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from jaxopt_ext.optimizers import badam, blocks_by_layer, value_and_block_grad

from .. import Outcome

CLAIM = (
    "Consistent 120 x 60 least squares in 6 blocks (50 steps each, learning rate 1e-2, 6000 "
    "steps, median of 21 seeds): BAdam brings the loss from above 20 to below 1e-3. An MLP with 4 "
    "hidden layers, pre-trained on digits 0-4 and fine-tuned on all ten (mean of 5 seeds, learning "
    "rates of one grid chosen on validation data): BAdam's test accuracy is within 0.02 of Adam's "
    "after as many coordinate updates, and above that of rank-4 LoRA after as many steps."
)
SETTINGS = (
    "Rates from one grid for all, chosen on 300 validation images that are not in the test set, "
    "means over the reported networks; keys of seed 10, the first run was on seed 0. Least "
    "squares at the rate of the claim, seed 10."
)

SQUARES, SEEDS, RATES = 21, 5, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
WIDTHS = (64, 64, 64, 64, 64, 10)
STEPS, EVERY, BATCH = 1500, 50, 64
SHARE = STEPS // (len(WIDTHS) - 1)


def least_squares():
    """Losses before and after, of BAdam and of Adam with as many coordinate updates."""

    def train(tx, A, b, steps):
        loss = lambda x: jnp.mean((A @ jnp.concatenate(x) - b) ** 2) / 2

        def step(carry, _):
            x, state = carry
            updates, state = tx.update(jax.grad(loss)(x), state, x)
            return (optax.apply_updates(x, updates), state), None

        x = [jnp.zeros(10, jnp.float32)] * 6
        x = jax.lax.scan(step, (x, tx.init(x)), length=steps)[0][0]
        return loss([jnp.zeros(10)] * 6), loss(x)

    rng = np.random.default_rng(10)
    A = jnp.asarray(rng.normal(size=(SQUARES, 120, 60)), jnp.float32)
    b = jnp.einsum("sij,sj->si", A, jnp.asarray(rng.normal(size=(SQUARES, 60)), jnp.float32))
    run = lambda tx, steps: jax.jit(jax.vmap(lambda A, b: train(tx, A, b, steps)))(A, b)
    return run(badam(1e-2, list(range(6)), switch_every=50), 6000), run(optax.adam(1e-2), 1000)


def data():
    """Digits, cut in training, validation and test images; labels with them."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x, y = jnp.asarray(images[order] / 16, jnp.float32), jnp.asarray(labels[order])
    return (x[:1000], y[:1000]), (x[1000:1300], y[1000:1300]), (x[1300:], y[1300:])


def fresh(key):
    keys = jax.random.split(key, len(WIDTHS) - 1)
    return [
        {
            "weight": jax.random.normal(key, (m, n), jnp.float32) * np.sqrt(2 / m).astype("f4"),
            "bias": jnp.zeros(n, jnp.float32),
        }
        for key, m, n in zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
    ]


def logits(layers, x):
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["weight"] + layer["bias"])
    return x @ layers[-1]["weight"] + layers[-1]["bias"]


def cross_entropy(layers, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits(layers, x), y).mean()


def fit(tx, grad, params, x, y, key, steps):
    """Parameters after `steps` batches; `grad(params, state, x, y)` gives the gradient."""

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (BATCH,), 0, len(y))
        updates, state = tx.update(grad(params, state, x[rows], y[rows]), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, steps))[0][0]


def fine_tuners(rate):
    """Each: a function of (pre-trained layers, x, y, key) that gives fine-tuned layers."""
    plain = lambda layers, state, x, y: jax.grad(cross_entropy)(layers, x, y)

    def adam(layers, x, y, key, steps=SHARE):
        return fit(optax.adam(rate), plain, layers, x, y, key, steps)

    def block(layers, x, y, key):
        cut = blocks_by_layer(layers)
        gradient = value_and_block_grad(cross_entropy, cut)
        tx = badam(rate, cut, switch_every=EVERY)
        current = lambda layers, state, x, y: gradient(layers, state.block, x, y)[1]
        return fit(tx, current, layers, x, y, key, STEPS)

    def lora(layers, x, y, key):
        def merged(factors):
            return [
                {**layer, "weight": layer["weight"] + a @ b}
                for layer, (a, b) in zip(layers, factors, strict=True)
            ]

        keys = jax.random.split(key, len(layers))
        factors = [
            (
                jax.random.normal(k, (layer["weight"].shape[0], 4), jnp.float32) / 8,
                jnp.zeros((4, layer["weight"].shape[1]), jnp.float32),
            )
            for k, layer in zip(keys, layers, strict=True)
        ]
        gradient = jax.grad(lambda factors, x, y: cross_entropy(merged(factors), x, y))
        moved = lambda factors, state, x, y: gradient(factors, x, y)
        return merged(fit(optax.adam(rate), moved, factors, x, y, key, STEPS))

    return {
        "BAdam": block,
        "Adam, equal coordinate updates": adam,
        "Adam, equal steps": lambda layers, x, y, key: adam(layers, x, y, key, STEPS),
        "LoRA rank 4, equal steps": lora,
    }


def fine_tuning():
    """Mean test accuracy of each method at its best learning rate, and that rate."""
    (x, y), validation, test = data()
    half = y < 5
    plain = lambda layers, state, x, y: jax.grad(cross_entropy)(layers, x, y)

    def pretrain(key):
        init, rest = jax.random.split(key)
        return fit(optax.adam(1e-3), plain, fresh(init), x[half], y[half], rest, 500)

    def accuracy(layers, images, labels):
        return jnp.mean(logits(layers, images).argmax(1) == labels)

    keys = jax.random.split(jax.random.key(10), SEEDS)
    start = jax.jit(jax.vmap(pretrain))(keys)
    results = {}
    for name in fine_tuners(1.0):

        def sweep(rate, layers, key, name=name):
            tuned = fine_tuners(rate)[name](layers, x, y, key)
            return accuracy(tuned, *validation), accuracy(tuned, *test)

        over_seeds = jax.vmap(sweep, (None, 0, 0))
        scores, tests = jax.jit(jax.vmap(over_seeds, (0, None, None)))(
            jnp.asarray(RATES, jnp.float32), start, keys
        )
        best = int(jnp.argmax(scores.mean(1)))
        results[name] = (np.asarray(tests[best]), RATES[best])
    before = jax.vmap(lambda layers: accuracy(layers, *test))(start)
    return results, float(before.mean())


def run() -> Outcome:
    (start, end), (_, adam_end) = least_squares()
    results, before = fine_tuning()
    sizes = [m * n + n for m, n in itertools.pairwise(WIDTHS)]
    low_rank = sum(4 * (m + n) for m, n in itertools.pairwise(WIDTHS))
    state = {"BAdam": max(sizes), "LoRA rank 4, equal steps": low_rank}
    table = [
        {
            "fine-tuning": name,
            "test accuracy, mean": float(accuracy.mean()),
            "least": float(accuracy.min()),
            "rate": rate,
            "numbers in state": 2 * state.get(name, sum(sizes)),
        }
        for name, (accuracy, rate) in results.items()
    ]
    mean = {name: accuracy.mean() for name, (accuracy, _) in results.items()}
    holds = (
        float(jnp.median(start)) > 20
        and float(jnp.median(end)) < 1e-3
        and mean["BAdam"] > mean["Adam, equal coordinate updates"] - 0.02
        and mean["BAdam"] > mean["LoRA rank 4, equal steps"]
    )
    return Outcome(
        table,
        bool(holds),
        f"Least squares: loss from {float(jnp.median(start)):.3g} to {float(jnp.median(end)):.2g} "
        f"(largest {float(end.max()):.2g}); Adam with as many coordinate updates "
        f"{float(jnp.median(adam_end)):.2g} (largest {float(adam_end.max()):.2g}). Test accuracy "
        f"before fine-tuning {before:.3f}. On the first run's networks BAdam was ahead of LoRA, by "
        "0.0016.",
        why="scale: on so small a network rank 4 binds little; BAdam and LoRA end within 0.004 of "
        "each other, and which is ahead changes with the seeds",
    )
