"""`training.fit` against training loops written by hand with optax."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from benchmarks.timing import race
from jaxopt_ext import diffusion, training

TITLE = (
    "a denoiser of digits, batches of 128, Adam, float32: steps a second of `training.fit` and of "
    "plain loops over the same loss, and of loops whose loss is written by hand, too; ratio of the "
    "time of `fit`"
)

BATCH, RATE = 128, 2e-3
FORMS = {
    "perceptron 64-256, 3 layers": (300, lambda key: diffusion.MLPDenoiser((8, 8), key=key)),
    "U-Net of 8 and 16 channels": (20, lambda key: diffusion.UNetDenoiser((8, 8), key=key)),
}
"""With the number of steps of a run."""


def hand_written_loss(model, x, key):
    """EDM's loss over a batch, written out."""
    level_key, noise_key = jax.random.split(key)
    s = diffusion.beds.SIGMA_DATA
    sigma = jnp.exp(-1.2 + 1.2 * jax.random.normal(level_key, x.shape[:1]))[:, None, None]
    noisy = x + sigma * jax.random.normal(noise_key, x.shape)
    total = sigma**2 + s**2
    ones = jnp.ones_like(sigma[:, 0, 0])
    node = diffusion.Node(jnp.log(sigma[:, 0, 0]) / 4, ones, sigma[:, 0, 0])
    output = model.network(noisy / jnp.sqrt(total), node)
    data = s**2 / total * noisy + sigma * s / jnp.sqrt(total) * output
    return jnp.mean(total / (sigma * s) ** 2 * (data - x) ** 2)


def loops(loss, images, model, key, num_steps):
    """The two loops everybody writes: a compiled step called from Python, and a compiled scan."""
    tx = optax.adam(RATE)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def step(carry, number):
        params, opt_state = carry
        draw_key, loss_key = jax.random.split(jax.random.fold_in(key, number))
        x = images[jax.random.randint(draw_key, (BATCH,), 0, len(images))]
        fun = lambda params: loss(eqx.combine(params, static), x, loss_key)
        value, gradient = jax.value_and_grad(fun)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    one = jax.jit(step)
    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(num_steps)))
    start = params, tx.init(params)

    def called():
        carry = start
        for number in range(num_steps):
            carry, value = one(carry, number)
        return carry, value

    return called, lambda: scan(start)


def run() -> list[dict]:
    images = jnp.asarray(diffusion.digits().train)
    ours = diffusion.DenoisingLoss(
        diffusion.LogNormal(), diffusion.EDMWeighting(diffusion.beds.SIGMA_DATA)
    )
    context = lambda key: training.Context(key, jnp.zeros((), jnp.int32), None)
    same = lambda model, x, key: ours(model, x, context(key))[0]
    table = []
    for name, (num_steps, make) in FORMS.items():
        key = jax.random.key(0)
        model = diffusion.Denoiser(make(key), diffusion.Preconditioned(diffusion.beds.SIGMA_DATA))
        method = training.GradientStep(ours, optax.adam(RATE))
        batches = training.Drawn(images, BATCH, key)

        def fitted(method=method, model=model, batches=batches, key=key, num_steps=num_steps):
            done = training.fit(method, model, batches, num_steps, key=key, progress=False)
            return eqx.filter(done, eqx.is_array)

        candidates = {"fit": fitted}
        for part, loss in (("", same), (", its loss too", hand_written_loss)):
            pair = loops(loss, images, model, key, num_steps)
            for kind, fun in zip(("jit", "scan"), pair, strict=True):
                candidates[kind + part] = fun
        for timing in race(candidates, reference="fit", rounds=3):
            table.append(
                {
                    "network": name,
                    "loop": timing.name,
                    "steps a second": num_steps / timing.seconds,
                    "fit / loop": 1 / timing.ratio,
                }
            )
    return table
