"""Magnitude-preserving layers against a plain perceptron, on digits; averages found afterwards."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_ext import diffusion

from .. import Outcome
from . import _digits as bed

CLAIM = (
    "On digits, over 3 seeds, a magnitude-preserving perceptron keeps the root mean square of its "
    "activations between 0.85 and 1.25 in training, ends with a denoising loss at most 1.03 times "
    "that of a plain one of the same width, and its samples have a smaller mean Frechet distance "
    "than the plain one's; averages of width 0.15 found afterwards from kept ones of 0.05 and 0.10 "
    "differ from the one that was followed by at most 1 % of its distance to that of 0.10."
)
SETTINGS = (
    "Width 256, four square layers in residual blocks, Preconditioned(0.847), the same loss with "
    "trained uncertainty, batches of 128, 1000 steps of Adam (0.9, 0.99), with a rate that rises "
    "for 50 steps and falls from 250 on, 597 samples by Heun with 18 steps. Peak rate, of 1e-3, "
    "3e-3, 1e-2, 3e-2 and 1e-1, and width of the average, of 0.03, 0.05, 0.075, 0.10, 0.15 and "
    "0.20 by reconstruction, are the best by Frechet distance on seed 100, for each side: 3e-2 and "
    "0.05 of the magnitude-preserving one, 3e-3 and 0.10 of the plain one, whose distance at 1e-2, "
    "0.92 where 0.95 on that seed, is not finite on one of the others. Seeds 0 to 2 are reported."
)
SIGMA_DATA, STEPS, EVERY, FLAT = 0.847, 1000, 50, (0.85, 1.25)
RATES, WIDTHS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (0.03, 0.05, 0.075, 0.10, 0.15, 0.20)
BEST = {"preserving": (3e-2, 0.05), "plain": (3e-3, 0.10)}
TUNING, REPORTED = 100, (0, 1, 2)
KEPT = 0.05, 0.10, 0.15
SCHEDULE = diffusion.VarianceExploding()


def first(name, key):
    keys = jax.random.split(key)
    if name == "preserving":
        network = diffusion.EDM2MLP((8, 8), 256, 2, key=keys[0])
    else:
        network = diffusion.MLPDenoiser((8, 8), 256, 4, key=keys[0])
    denoiser = diffusion.Denoiser(network, diffusion.Preconditioned(SIGMA_DATA))
    return diffusion.WithUncertainty(denoiser, key=keys[1])


def train(name, rate, seed):
    """Snapshots of the averages, the whole state, and the denoising loss of the last 100 steps."""
    model = first(name, jax.random.key(1000 + seed))
    rates = diffusion.inverse_sqrt_schedule(rate, 250, 50)
    averages = tuple(map(diffusion.PowerFunctionAverage, KEPT))
    project = {"after_update": diffusion.forced_normalisation} if name == "preserving" else {}
    loss = diffusion.UncertaintyLoss(SIGMA_DATA)
    snapshots, metrics, fit = bed.train(
        model, loss, optax.adam(rates, 0.9, 0.99), STEPS, EVERY, seed, averages, **project
    )
    return model, snapshots, fit, float(jnp.mean(metrics["denoising"][-100:]))


def found(model, snapshots, width, step=STEPS):
    """The denoiser with the average of this width."""
    steps = EVERY * np.arange(1, STEPS // EVERY + 1)
    made = diffusion.posthoc_average(snapshots[:2], steps, KEPT[:2], step, width, like=model)
    return made.denoiser


def quality(denoiser, seed):
    times, x = diffusion.karras(SCHEDULE, 18), bed.noise(SCHEDULE, seed)
    made = diffusion.sample(denoiser, diffusion.Heun(), SCHEDULE, times, x).value
    return bed.frechet(made), bed.mmd(made)


@eqx.filter_jit
def sizes(network, x, nodes):
    """Root mean square behind the stem and each block, over a batch."""

    def one(x, node):
        hidden, condition = network.stem(x, node)
        kept = [hidden]
        for block in network.blocks:
            kept.append(block(kept[-1], condition))
        return jnp.stack([jnp.mean(h**2) for h in kept])

    return jnp.sqrt(jnp.mean(jax.vmap(one)(x, nodes), axis=0))


def activations(denoiser):
    """The same, on noisy test images."""
    data = jnp.asarray(diffusion.digits().test[:256])
    keys = jax.random.split(jax.random.key(5))
    nodes = diffusion.LogNormal(-0.4, 1.0).draw(keys[0], 256, jnp.float32)
    noisy = data + nodes.sigma[:, None, None] * jax.random.normal(keys[1], data.shape)
    return np.asarray(sizes(denoiser.network, *jax.vmap(denoiser.predicts.inputs)(noisy, nodes)))


def weights(network):
    """Root mean square of each square matrix, times the root of its fan-in."""
    found = [leaf for leaf in jax.tree.leaves(network) if getattr(leaf, "shape", ()) == (256, 256)]
    return np.array([float(jnp.sqrt(jnp.mean(w**2)) * 16) for w in found])


def tune():
    """How BEST was found."""
    for name in BEST:
        for rate in RATES:
            model, snapshots, _, loss = train(name, rate, TUNING)
            values = {w: round(quality(found(model, snapshots, w), TUNING)[0], 3) for w in WIDTHS}
            print(name, rate, f"loss {loss:.4f}", values, flush=True)


def run() -> Outcome:
    table, means, flat, errors = [], {}, [], []
    for name, (rate, width) in BEST.items():
        rows = []
        for seed in REPORTED:
            model, snapshots, fit, loss = train(name, rate, seed)
            final = fit.state.params.denoiser.network
            sizes_seen = [
                activations(bed.at(snapshots[1], model, i).denoiser)[1:] for i in (0, 4, -1)
            ]
            frechet, mmd = quality(found(model, snapshots, width), seed)
            rows.append((loss, frechet))
            grown = weights(final) / weights(model.denoiser.network)
            table.append(
                {
                    "network": name,
                    "seed": seed,
                    "denoising loss": loss,
                    "Frechet": frechet,
                    "1000 MMD^2": mmd,
                    "least activation": float(np.min(sizes_seen)),
                    "largest activation": float(np.max(sizes_seen)),
                    "weights grown by": f"{grown.min():.2f} to {grown.max():.2f}",
                }
            )
            if name == "preserving":
                flat.append(FLAT[0] <= np.min(sizes_seen) and np.max(sizes_seen) <= FLAT[1])
                errors.append(missed(model, snapshots, fit))
                table[-1]["found / followed"] = errors[-1]
        means[name] = np.mean(rows, axis=0)
    ours, plain = means["preserving"], means["plain"]
    holds = bool(
        np.all(np.isfinite(plain))  # of a baseline that blows up nothing can be said
        and all(flat)
        and ours[0] <= 1.03 * plain[0]
        and ours[1] < plain[1]
        and max(errors) <= 0.01
    )
    return Outcome(
        table,
        holds,
        NOTE,
        why="paper: magnitudes are kept by weights that are independent of their inputs, which "
        "trained ones are not; and the samples of so small a plain perceptron are nearer",
    )


def missed(model, snapshots, fit):
    """Distance of the average found for width 0.15 to the one followed, over that of width 0.10."""
    vector = lambda tree: np.concatenate(
        [np.ravel(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]
    )
    steps = EVERY * np.arange(1, STEPS // EVERY + 1)
    made = diffusion.posthoc_average(snapshots[:2], steps, KEPT[:2], STEPS, KEPT[2], like=model)
    followed = vector(fit.state.averaged[2])
    nearest = np.linalg.norm(vector(fit.state.averaged[1]) - followed)
    return float(np.linalg.norm(vector(made) - followed) / nearest)


NOTE = (
    "Loss and averages do as the claim says; samples and activations do not. These are root mean "
    "squares over 256 noisy test images behind each block, after 50, 250 and 1000 steps. Trained "
    "weights point along their inputs: with the entries of each row in random order, tried after "
    "250 steps on the tuning seed, those behind the first block fall from 1.63 to 1.08. 'Weights "
    "grown by' is over the square matrices. On the tuning seed rates 3e-3, 1e-2, 3e-2 and 1e-1 "
    "gave the magnitude-preserving network losses of 0.447, 0.397, 0.354 and 0.376 and distances "
    "of 1.89, 1.56, 0.97 and 1.17; rates 1e-3, 3e-3 and 1e-2 gave the plain one losses of 0.422, "
    "0.382 and 0.400 and distances of 1.31, 0.95 and 0.92, and from 3e-2 on its samples were not "
    "finite; at 1e-2 those of one reported seed were not. "
    "Without forced normalisation, tried on the tuning seed at 3e-2, weights grew by 1.25, the "
    "loss was 0.355 in place of 0.354, the distance 1.05 in place of 0.97. Not tried: the U-Net, "
    "and longer training."
)
