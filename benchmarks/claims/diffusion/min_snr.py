"""Min-SNR weighting against constant weights, on digits."""

import jax
import numpy as np
import optax

from jaxopt_ext import diffusion

from .. import Outcome
from . import _digits as bed

CLAIM = (
    "In training a perceptron to predict the data behind noisy digits, the Frechet distance of "
    "samples is smaller with Min-SNR weights than with constant ones after 500, 1000 and 1500 "
    "steps, and with Min-SNR weights after 1000 steps smaller than with constant ones after 1500, "
    "in the mean of 3 seeds."
)
SETTINGS = (
    "Perceptron 64-256 with three residual layers, variance preserving schedule, batches of 128, "
    "gamma 5 as in the paper, averages of relative width 0.10, 597 samples by 40 steps of DDIM on "
    "a grid uniform in log-SNR, predictions clipped to [-1, 1]. Adam's rate is the best of 5e-4, "
    "1e-3, 2e-3, 4e-3 and 8e-3 by distance after 1000 steps on seed 100, for each side: 4e-3 for "
    "both. Seeds 3 to 5 are reported. Rows of other weights and predictions, of which nothing is "
    "claimed, are of seed 3, at the best rates of that grid, with 2.5e-4 or 1.6e-2 beside where an "
    "end was best."
)
RATES = {"Min-SNR": 4e-3, "constant": 4e-3}
GRID, TUNING, REPORTED, EVERY, STEPS = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), 100, (3, 4, 5), 500, 1500

WEIGHTINGS = {
    "Min-SNR": diffusion.MinSNR(5.0),
    "constant": diffusion.ConstantWeighting(),
    "truncated": diffusion.TruncatedSNR(),
    "SNR": diffusion.SNR(),
    "SNR + 1": diffusion.EDMWeighting(1.0),
    "P2": diffusion.P2(),
}
PREDICTIONS = {"noise": diffusion.Noise(), "velocity": diffusion.Velocity(), "data": None}
OTHERS = {  # a prediction, weights of the data's error, and the rate
    ("data", "truncated"): 5e-4,
    ("data", "SNR"): 1e-3,
    ("noise", "Min-SNR"): 8e-3,
    ("noise", "SNR"): 8e-3,
    ("noise", "P2"): 8e-3,
    ("velocity", "Min-SNR"): 4e-3,
    ("velocity", "SNR + 1"): 4e-3,
}


def found(weighting, rate, seed, steps=STEPS, every=EVERY, prediction=None):
    """Frechet distances on the way."""
    schedule = diffusion.VariancePreserving()
    network = diffusion.MLPDenoiser((8, 8), key=jax.random.key(1000 + seed))
    model = diffusion.Denoiser(network, prediction or diffusion.Data())
    loss = diffusion.DenoisingLoss(diffusion.UniformTime(schedule), WEIGHTINGS[weighting])
    snapshots, _, _ = bed.train(model, loss, optax.adam(rate), steps, every, seed)
    times, x = diffusion.uniform_log_snr(schedule, 40), bed.noise(schedule, seed)
    values = []
    for i in range(steps // every):
        # A floor of one that is never exceeded: values are clipped to [-1, 1].
        clipped = diffusion.Thresholded(bed.at(snapshots, model, i), ratio=0.0, floor=1.0)
        made = diffusion.sample(clipped, diffusion.DDIM(), schedule, times, x, denoise=True)
        values.append(bed.frechet(made.value))
    return np.array(values)


def tune():
    """How RATES and those of OTHERS were found."""
    for name in RATES:
        print(name, {rate: found(name, rate, TUNING, 1000, 1000)[0] for rate in GRID}, flush=True)
    for predicts, name in OTHERS:
        one = lambda rate, p=predicts, n=name: found(n, rate, TUNING, 1000, 1000, PREDICTIONS[p])[0]
        print(predicts, name, {rate: one(rate) for rate in (2.5e-4, *GRID, 1.6e-2)}, flush=True)


def run() -> Outcome:
    table = [{"predicts": "data", "steps": EVERY * (i + 1)} for i in range(STEPS // EVERY)]
    means = {}
    for name, rate in RATES.items():
        values = np.stack([found(name, rate, seed) for seed in REPORTED])
        means[name] = values.mean(axis=0)
        for row, mean, spread in zip(table, means[name], values.std(axis=0, ddof=1), strict=True):
            row[name], row[f"{name} spread"] = float(mean), float(spread)
    ours, constant = means["Min-SNR"], means["constant"]
    holds = bool(np.all(ours < constant) and ours[1] < constant[2])
    for (predicts, name), rate in OTHERS.items():
        distances = found(name, rate, REPORTED[0], prediction=PREDICTIONS[predicts])
        row = {"predicts": f"{predicts}, one seed", "weights": name}
        table.append(row | {f"{EVERY * (i + 1)} steps": float(d) for i, d in enumerate(distances)})
    return Outcome(table, holds, NOTE, why="scale: at this size the gain is smaller than the claim")


NOTE = (
    "Spread is the standard deviation over seeds. On the tuning seed rates 5e-4 to 8e-3 gave "
    "Min-SNR distances of 9.8, 8.9, 5.3, 4.7 and 4.9, constant weights 20.1, 15.4, 9.1, 6.9 and "
    "8.3. A first run, on seeds 0 to 2 after 400, 800 and 1200 steps, gave Min-SNR 9.5, 4.9 and "
    "3.6, constant weights 14.5, 7.5 and 4.9: better at equal steps, and with two thirds of the "
    "steps behind by 0.6 %, within the spread. So the gain in steps is about 1.5; the paper's, of "
    "3.4, is over weights of noise prediction. All weights are of the data's error: SNR is "
    "constant for the noise, SNR + 1 for the velocity. On the tuning seed after 1000 steps, at "
    "their best rates: truncated weights 10.3 and SNR 12.2 for data; for noise Min-SNR 4.4, "
    "constant 4.7 and P2 4.8; for velocity Min-SNR 5.5 and constant 6.0."
)
