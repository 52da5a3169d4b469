"""DPM-Solver against DDIM with four times as many evaluations."""

import jax
import numpy as np

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import DPMSolver, DPMSolverAdaptive, MultiStep

from .. import Outcome
from ._bed import SCHEDULE, mixture, reference, rms, starts
from ._grids import GRIDS

CLAIM = (
    "On a mixture of three Gaussians in the plane with its exact denoiser, DPM-Solver-fast with "
    "10, 15 and 20 evaluations has a smaller root-mean-square error to the probability-flow "
    "solution than DDIM with four times as many, the smallest speed-up that the paper reports, in "
    "at least 4 of 5 seeds of 64 starts each."
)
SETTINGS = (
    "Both sides choose one of 13 grids of times for each number of evaluations on seeds 100 to "
    "104: powers 0.6, 0.8, 1, 1.5, 2, 3, 4, 6, 8 and 12 of a uniform one, uniform in the logarithm "
    "of the signal-to-noise ratio, Karras's with rho 3 and 7. Reported on seeds 0 to 4."
)


SEEDS, CALLS = 5, (10, 15, 20)


def ddim(grid, calls):
    return diffusion.DDIM(), GRIDS[grid](SCHEDULE, calls)


def fast(grid, calls):
    chosen = None if grid == "log snr" else GRIDS[grid]
    return diffusion.dpm_solver_fast(SCHEDULE, calls, grid=chosen)


def multistep(grid, calls):
    return DPMSolver(MultiStep(2)), GRIDS[grid](SCHEDULE, calls)


def solve(made, x):
    sampler, times = made
    run = diffusion.sample(mixture().denoiser(), sampler, SCHEDULE, times, x)
    return np.asarray(run.value)


def run() -> Outcome:
    with jax.enable_x64(True):
        seeds = [*range(100, 100 + SEEDS), *range(SEEDS)]
        x = np.concatenate([np.asarray(starts(seed)) for seed in seeds])
        exact = reference(x).reshape(2, SEEDS, -1, 2)
        # Errors of the seeds: of those for tuning, and of those that are reported.
        errors = lambda made: [
            [rms(a, b) for a, b in zip(*pair, strict=True)]
            for pair in zip(solve(made, x).reshape(exact.shape), exact, strict=True)
        ]

        def best(method, calls):
            runs = {grid: errors(method(grid, calls)) for grid in GRIDS}
            grid = min(runs, key=lambda name: np.mean(runs[name][0]))
            return grid, runs[grid][1]

        table, holds = [], True
        for calls in CALLS:
            row = {"evaluations": calls}
            grid, found = best(fast, calls)
            many_grid, many = best(ddim, 4 * calls)
            same_grid, same = best(ddim, calls)
            wins = sum(a < b for a, b in zip(found, many, strict=True))
            holds = holds and wins >= 4
            row |= {"DPM-Solver-fast": np.mean(found).item(), "its grid": grid}
            row |= {"DDIM, 4 times as many": np.mean(many).item(), "its grid ": many_grid}
            row |= {"wins of 5": wins}
            row |= {"DDIM, as many": np.mean(same).item(), "its grid  ": same_grid}
            row |= {"fast, log snr": np.mean(errors(fast("log snr", calls))[1]).item()}
            row |= {"multistep 2": np.mean(errors(multistep("log snr", calls))[1]).item()}
            table.append(row)
        adaptive = diffusion.sample_adaptive(
            mixture().denoiser(), DPMSolverAdaptive(), SCHEDULE, x[-64:]
        )
        error = rms(adaptive.value, exact[1, -1])
    return Outcome(
        table,
        holds,
        f"Adaptive steps of order 3 with the paper's tolerances: {int(adaptive.evaluations)} "
        f"evaluations, error {error:.2g} (seed 4). Multistep order 2 in the predicted noise, not "
        "in the paper, on the grid uniform in the logarithm of the signal-to-noise ratio, which is "
        "the paper's.",
        why="scale: with ten evaluations, four steps, it is level with DDIM's forty on this "
        "mixture; with 15 and 20 it is far ahead",
    )
