"""DPM-Solver++ against DPM-Solver and DDIM under guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_ext import diffusion, training
from jaxopt_ext.diffusion import DDIM, DPMSolver, DPMSolverPP, MultiStep, SDEDPMSolverPP, SingleStep

from .. import Outcome
from ._bed import SCHEDULE, mixture, reference, rms, starts
from ._grids import GRIDS

CLAIM = (
    "Guided with scale 7.5 towards one of three Gaussians in the plane by exact denoisers, "
    "DPM-Solver++(2M) has at most 0.7 times the root-mean-square error to the guided "
    "probability-flow solution that DPM-Solver-2 and -3 have with as many evaluations, 12, and at "
    "most half with 18 (mean of 5 seeds of 64 starts); and with noise, 20 steps of order 2 have at "
    "most a third of the error in the covariance of unguided samples that order 1 has."
)
SETTINGS = (
    "Each sampler chooses one of 13 grids of times for each number of evaluations on seeds 100 to "
    "104: powers 0.6, 0.8, 1, 1.5, 2, 3, 4, 6, 8 and 12 of a uniform one, uniform in the logarithm "
    "of the signal-to-noise ratio, Karras's with rho 3 and 7. Reported on seeds 0 to 4. "
    "Covariances: 40,000 samples, the grid uniform in the logarithm, mean of seeds 0 to 2. Digits, "
    "reported only: Karras's grid with rho 7, one training."
)

SEEDS, SCALE, CALLS = 5, 7.5, (12, 18, 24)
SAMPLERS = {
    "2M": (DPMSolverPP(), 1),
    "DPM-Solver-2": (DPMSolver(SingleStep(2)), 2),
    "DPM-Solver-3": (DPMSolver(SingleStep(3)), 3),
    "DDIM": (DDIM(), 1),
    "3M": (DPMSolverPP(MultiStep(3)), 1),
    "2S": (DPMSolverPP(SingleStep(2)), 2),
    "2M of noise": (DPMSolver(MultiStep(2)), 1),
}


def guided():
    whole = mixture()
    part = diffusion.GaussianMixture(whole.means[1:2], whole.scales[1:2])
    return diffusion.Guided(part.denoiser(), whole.denoiser(), SCALE)


def guided_rows():
    seeds = [*range(100, 100 + SEEDS), *range(SEEDS)]
    x = np.concatenate([np.asarray(starts(seed)) for seed in seeds])
    exact = reference(x, guided()).reshape(2, SEEDS, -1, 2)
    table = []
    for calls in CALLS:
        row: dict[str, str | float] = {"": f"guided, {calls} evaluations"}
        for name, (sampler, cost) in SAMPLERS.items():
            runs = {}
            for grid, make in GRIDS.items():
                times = make(SCHEDULE, calls // cost)
                value = diffusion.sample(guided(), sampler, SCHEDULE, times, x).value
                found = np.asarray(value).reshape(exact.shape)
                runs[grid] = [
                    np.mean([rms(a, b) for a, b in zip(*pair, strict=True)])
                    for pair in zip(found, exact, strict=True)
                ]
            grid = min(runs, key=lambda name: runs[name][0])
            row |= {name: float(runs[grid][1]), f"grid of {name}": grid}
        table.append(row)
    return table


def covariance_rows():
    wanted = np.asarray(mixture().moments()[1])
    table = []
    for count in (20, 40):
        row: dict[str, str | float] = {"": f"with noise, {count} steps"}
        times = diffusion.uniform_log_snr(SCHEDULE, count)
        for name, order in (("2M", 2), ("DDIM", 1)):
            errors = []
            for seed in range(3):
                first, second = jax.random.split(jax.random.key(seed))
                x = diffusion.prior(SCHEDULE, jnp.zeros((40_000, 2)), first)
                out = diffusion.sample(
                    mixture().denoiser(),
                    SDEDPMSolverPP(MultiStep(order)),
                    SCHEDULE,
                    times,
                    x,
                    key=second,
                )
                errors.append(np.linalg.norm(np.cov(np.asarray(out.value).T) - wanted))
            row[name] = float(np.mean(errors))
        table.append(row)
    return table


def conditional_digits():
    """A denoiser of digits that takes a label, and -1 for none."""
    network = diffusion.MLPDenoiser((8, 8), num_classes=10, key=jax.random.key(0))
    model = diffusion.Denoiser(network, diffusion.Preconditioned(0.847))
    weighting = diffusion.EDMWeighting(0.847)
    loss = diffusion.DenoisingLoss(diffusion.LogNormal(), weighting, label_dropout=0.15)
    average = diffusion.PowerFunctionAverage(0.10)
    method = training.GradientStep(loss, optax.adam(2e-3), average)
    data, key = diffusion.digits(), jax.random.key(1)
    batches = training.Drawn((jnp.asarray(data.train), jnp.asarray(data.train_labels)), 128, key)
    return training.fit(method, model, batches, 1500, key=key, progress=False).state.averaged


def digit_rows():
    model, schedule = conditional_digits(), diffusion.VarianceExploding(80.0, 0.01)
    labels = jnp.arange(200) % 10
    network = lambda x, node, label: jax.vmap(model.network, (0, None, 0))(x, node, label)
    denoiser = diffusion.ClassifierFree(
        network, labels, jnp.full(200, -1), SCALE, predicts=model.predicts
    )
    x = diffusion.prior(schedule, jnp.zeros((200, 8, 8)), jax.random.key(2))
    classify = diffusion.digit_features().logits

    def solve(wrapped, sampler, count):
        times = diffusion.karras(schedule, count)
        return diffusion.sample(wrapped, sampler, schedule, times, x).value

    table = []
    for kind, wrapped in (("", denoiser), (", thresholded", diffusion.Thresholded(denoiser))):
        exact = solve(wrapped, DPMSolverPP(MultiStep(3)), 400)
        row: dict[str, str | float] = {"": f"digits{kind}, {CALLS[0]} evaluations"}
        for name in ("2M", "DPM-Solver-2", "DPM-Solver-3", "DDIM", "2M of noise"):
            sampler, cost = SAMPLERS[name]
            value = solve(wrapped, sampler, CALLS[0] // cost)
            row[name] = float(jnp.sqrt(jnp.mean((value - exact) ** 2)))
            right = jnp.mean(jnp.argmax(classify(value), 1) == labels)
            row[f"grid of {name}"] = f"{100 * float(right):.0f} % right"
        table.append(row)
    return table


def run() -> Outcome:
    with jax.enable_x64(True):
        table = guided_rows()
        noisy = covariance_rows()
    holds = noisy[0]["2M"] <= noisy[0]["DDIM"] / 3
    for row, factor in zip(table, (0.7, 0.5), strict=False):
        holds = holds and all(row["2M"] <= factor * row[f"DPM-Solver-{order}"] for order in (2, 3))
    return Outcome(
        table + noisy + digit_rows(),
        bool(holds),
        "Rows with noise: norm of the error of the covariance; order 1, ancestral sampling, is in "
        "the column of DDIM. Rows of digits: root-mean-square difference of a pixel to a run of "
        "400 steps, and in place of the grid how many of 200 samples a classifier takes for their "
        "label. Multistep order 2 in the predicted noise, which is not in the paper, is ahead of "
        "all under guidance.",
        why="scale: 12 evaluations are as claimed, but with 18 on its best grid DPM-Solver-3 is "
        "within a factor of two on this smooth mixture",
    )
