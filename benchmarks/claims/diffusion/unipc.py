"""UniPC against multistep samplers and DDIM at equal numbers of evaluations."""

import jax
import jax.numpy as jnp

from jaxopt_ext import diffusion

from .. import Outcome
from . import _bed as bed

CLAIM = (
    "On a mixture of three Gaussians with its exact denoiser UniPC of order 2 has a smaller error "
    "than DPM-Solver++ (2M) and DDIM at 6, 10 and 20 evaluations, and at 12, 16 and 20 under "
    "guidance of scale 7.5 towards one component; at 20 at most half of 2M's in both "
    "(root-mean-square distance to the probability-flow solution, mean of 5 seeds of 64 starts)."
)
SETTINGS = (
    "Nothing is chosen for the verdict: orders, grid (uniform in the logarithm of the "
    "signal-to-noise ratio) and coefficients (B(h) = exp(h) - 1) are the papers' for guided "
    "sampling; seeds 20 to 24."
)

SEEDS = range(20, 25)
SAMPLERS = {
    "DDIM": diffusion.DDIM(),
    "2M": diffusion.DPMSolverPP(diffusion.MultiStep(2)),
    "UniPC-2": diffusion.UniPC(2),
    "UniPC-3": diffusion.UniPC(3),
    "UniC on DDIM": diffusion.UniC(1, diffusion.DDIM()),
}


def models():
    whole = bed.mixture()
    part = diffusion.GaussianMixture(whole.means[1:2], whole.scales[1:2])
    guided = diffusion.Guided(part.denoiser(), whole.denoiser(), 7.5)
    return {"none": (whole.denoiser(), (6, 10, 20)), "7.5": (guided, (12, 16, 20))}


def run() -> Outcome:
    table, holds = [], True
    with jax.enable_x64(True):
        x = jnp.concatenate([bed.starts(seed) for seed in SEEDS])
        for guidance, (model, counts) in models().items():
            exact = bed.reference(x, model)
            for count in counts:
                times = diffusion.uniform_log_snr(bed.SCHEDULE, count)
                row = {"guidance": guidance, "evaluations": count}
                for name, sampler in SAMPLERS.items():
                    assert sampler.evaluations(count) == count
                    found = diffusion.sample(model, sampler, bed.SCHEDULE, times, x).value
                    parts = zip(jnp.split(found, 5), jnp.split(exact, 5), strict=True)
                    row[name] = sum(bed.rms(a, b) for a, b in parts) / 5
                table.append(row)
                others = min(row["DDIM"], row["2M"])
                holds &= row["UniPC-2"] < others
                holds &= count < 20 or row["UniPC-2"] <= 0.5 * row["2M"]
    return Outcome(
        table,
        bool(holds),
        "Reference: an explicit Runge-Kutta method of order 8 in double precision. UniPC-3 and the "
        "corrector alone stand beside it.",
    )
