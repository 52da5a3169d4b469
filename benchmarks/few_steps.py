"""All samplers in few evaluations, on the exact bed, with and without guidance.

`measure` gives errors by sampler, scale of guidance and number of evaluations; `plot` draws them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_ext import diffusion

from .claims.diffusion import _bed as bed

COUNTS = (5, 10, 20)
SCALES = (1.0, 2.0, 4.0, 8.0)
Table = dict[str, dict[float, dict[int, float]]]


@functools.cache
def _statistics(scale):
    """For DPM-Solver-v3, of the model that is sampled."""
    mixture = bed.mixture()
    key = jax.random.key(100)
    return diffusion.model_statistics(model(scale), bed.SCHEDULE, mixture.sample, key, 200, 512)


def model(scale: float) -> diffusion.AbstractDenoiser:
    """Guided towards the second of three components."""
    whole = bed.mixture()
    part = diffusion.GaussianMixture(whole.means[1:2], whole.scales[1:2])
    # An array, so that one program serves all scales.
    return diffusion.Guided(part.denoiser(), whole.denoiser(), jnp.asarray(scale))


def samplers(scale: float, count: int) -> dict:
    """Each with the grid of its paper and as many steps as `count` evaluations allow, at most."""
    uniform, snr, karras = (
        diffusion.uniform_time,
        diffusion.uniform_log_snr,
        diffusion.karras,
    )
    found = {
        "DDIM": (diffusion.DDIM(), uniform),
        "Heun": (diffusion.Heun(), karras),
        "DPM-Solver-2": (diffusion.DPMSolver(diffusion.SingleStep(2)), snr),
        "DPM-Solver-3": (diffusion.DPMSolver(diffusion.SingleStep(3)), snr),
        "DPM-Solver multistep 2": (diffusion.DPMSolver(diffusion.MultiStep(2)), snr),
        "DPM-Solver++ 2M": (diffusion.DPMSolverPP(diffusion.MultiStep(2)), snr),
        "DPM-Solver++ 3M": (diffusion.DPMSolverPP(diffusion.MultiStep(3)), snr),
        "UniPC-2": (diffusion.UniPC(2), snr),
        "UniPC-3": (diffusion.UniPC(3), snr),
        "DPM-Solver-v3": (diffusion.DPMSolverV3(_statistics(scale), 2), snr),
        "S-PNDM": (diffusion.PNDM(2, diffusion.ImprovedEuler()), uniform),
        "F-PNDM": (diffusion.PNDM(), uniform),
        "BDIA": (diffusion.BDIA(1.0), uniform),
        "gradient estimation": (diffusion.GradientEstimation(), uniform),
        "accelerated DDIM": (diffusion.AcceleratedDDIM(), snr),
    }
    runs = {}
    for name, (sampler, grid) in found.items():
        steps = max((n for n in range(1, count + 1) if sampler.evaluations(n) <= count), default=0)
        try:
            times = grid(bed.SCHEDULE, steps)
            sampler.plan(bed.SCHEDULE, times)
        except ValueError:  # the rule needs more steps than that
            continue
        runs[name] = sampler, times
    return runs


def measure(seeds: range = range(3)) -> Table:
    """Root-mean-square distances to the probability-flow solution, by sampler, scale, count."""
    found: Table = {}
    x = np.concatenate([bed.starts(seed) for seed in seeds])
    for scale in SCALES:
        exact = bed.reference(x, model(scale))
        for count in COUNTS:
            for name, (sampler, times) in samplers(scale, count).items():
                out = diffusion.sample(model(scale), sampler, bed.SCHEDULE, times, x).value
                row = found.setdefault(name, {}).setdefault(scale, {})
                row[count] = bed.rms(out, exact)
    return found


def plot(found: Table):
    """One picture: a panel for each scale of guidance, a line for each sampler."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(SCALES), figsize=(15, 4.5), sharey=True)
    colours = plt.get_cmap("tab20")
    for panel, scale in zip(panels, SCALES, strict=True):
        for i, (name, rows) in enumerate(found.items()):
            line = rows.get(scale, {})
            label = name if scale == SCALES[0] else None
            panel.loglog(list(line), list(line.values()), "o-", ms=3, color=colours(i), label=label)
        panel.set(title=f"scale {scale:g}", xlabel="evaluations")
        panel.set_xticks(COUNTS, [str(c) for c in COUNTS], minor=False)
        panel.minorticks_off()
    panels[0].set_ylabel("error")
    figure.legend(loc="center left", bbox_to_anchor=(0.905, 0.5), fontsize=8)
    return figure
