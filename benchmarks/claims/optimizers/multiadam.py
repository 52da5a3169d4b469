"""MultiAdam on physics-informed networks whose residual and boundary terms differ in scale."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_ext.optimizers import grouped_grads, multiadam

from .. import Outcome

CLAIM = (
    "u'' = -(pi/L)^2 sin(pi x/L) on [0, 0.5] by a 1-32-32-1 tanh network (64 points, 3000 steps of "
    "rate 1e-3, mean of 4 seeds): MultiAdam's relative L2 error is at most half of Adam's on the "
    "sum; and on two least-squares terms, one scaled by 1e4, it leaves at most 0.2 of Adam's "
    "residual in the other."
)
SETTINGS = (
    "The rate of the claim for both; nothing is chosen. Keys of seeds 10 and 11; the first run "
    "was on 0 and 1."
)

SEEDS = 4
RATES = (3e-4, 1e-3, 3e-3)
WIDTHS = (1, 32, 32, 1)


def network(key):
    keys = jax.random.split(key, len(WIDTHS) - 1)
    return [
        (jax.random.normal(k, (m, n)) * (2 / (m + n)) ** 0.5, jnp.zeros(n))
        for k, m, n in zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
    ]


def evaluate(params, x):
    for w, b in params[:-1]:
        x = jnp.tanh(x @ w + b)
    w, b = params[-1]
    return x @ w + b


def losses(params, length):
    x = jnp.linspace(0, 1, 64)[:, None] * length
    one = jnp.ones_like(x)

    def slope(x):
        return jax.jvp(lambda x: evaluate(params, x), (x,), (one,))[1]

    curvature = jax.jvp(slope, (x,), (one,))[1]
    residual = curvature + (jnp.pi / length) ** 2 * jnp.sin(jnp.pi * x / length)
    ends = evaluate(params, jnp.array([[0.0], [1.0]]) * length)
    return jnp.stack([jnp.mean(residual**2), jnp.mean(ends**2)])


def relative_error(params, length):
    x = jnp.linspace(0, 1, 257)[:, None] * length
    exact = jnp.sin(jnp.pi * x / length)
    return jnp.linalg.norm(evaluate(params, x) - exact) / jnp.linalg.norm(exact)


def descend(tx, losses, params, num_steps):
    """Train; Adam sees the sum of the gradients, MultiAdam all of them."""
    tx = optax.with_extra_args_support(tx)

    def step(carry, _):
        params, state = carry
        _, grads = grouped_grads(losses)(params)
        total = jax.tree.map(lambda g: jnp.sum(g, 0), grads)
        updates, state = tx.update(total, state, params, loss_grads=grads)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=num_steps)[0][0]


def pinn(method, length, rates):
    """Relative errors, by rate and seed."""

    def one(rate, key):
        trained = descend(method(rate), lambda p: losses(p, length), network(key), 3000)
        return relative_error(trained, length)

    keys = jax.random.split(jax.random.key(10), SEEDS)
    by_seed = jax.vmap(one, (None, 0))
    return np.asarray(jax.jit(jax.vmap(by_seed, (0, None)))(jnp.array(rates), keys))


def least_squares(method):
    """Root mean square residual of the unscaled term."""
    rate = optax.cosine_decay_schedule(1e-2, 3000, alpha=0.1)

    def one(key):
        A, x = jax.random.normal(key, (2, 5, 10)), jax.random.normal(key, (10,))
        terms = lambda x_: jnp.mean((A @ (x_ - x)) ** 2, 1)
        scaled = lambda x_: jnp.array([1.0, 1e4]) * terms(x_)
        return jnp.sqrt(terms(descend(method(rate), scaled, jnp.zeros(10), 3000))[0])

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(11), SEEDS)).mean().item()


def run() -> Outcome:
    table = []
    for name, method in (("Adam on the sum", optax.adam), ("MultiAdam", multiadam)):
        errors = pinn(method, 0.5, RATES).mean(1)
        row = {"method": name}
        row |= {f"L=0.5, rate {r:g}": e.item() for r, e in zip(RATES, errors, strict=True)}
        for length in (1.0, 8.0):
            row[f"L={length:g}"] = pinn(method, length, (1e-3,)).mean().item()
        table.append(row | {"least squares": least_squares(method)})
    adam, mine = table
    at = "L=0.5, rate 0.001"
    return Outcome(
        table,
        mine[at] <= 0.5 * adam[at] and mine["least squares"] <= 0.2 * adam["least squares"],
        f"Means over {SEEDS} seeds; L = 1 and 8, at rate 1e-3, are shown without a threshold.",
        why="ours: it has 0.4 to 0.6 of Adam's error, by rate and seeds, and we asked for half",
    )
