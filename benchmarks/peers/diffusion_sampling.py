"""Diffusion samplers beside the schedulers of diffusers: same betas, grid, start and model."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.timing import race
from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import BH2, DDIM, PNDM, DPMSolverPP, Heun, MultiStep, UniPC

TITLE = (
    "whole runs, set-up of times and coefficients included, by evaluation of the model, float32: a "
    "trivial model on 64 x 3 x 32 x 32, which leaves the sampler's own work, and the denoiser of "
    "digits on 597 x 8 x 8, the same weights in PyTorch; how far apart the samples are, as a part "
    "of the largest"
)

STEPS = 20
BETAS = diffusion.linear_betas(1000)
SCHEDULE = diffusion.DiscreteSchedule(BETAS)
RATIOS = np.exp(-SCHEDULE.log_snr(SCHEDULE.times[1:]))


def spread(num_steps):
    """Steps of the chain from the last, equally spaced, and the first as the end."""
    return np.append((np.linspace(0, 999, num_steps + 1).round()[:0:-1] + 1) / 1000, 1 / 1000)


def pairs():
    """Name to (the sampler, its schedule and times, options of `sample`, the scheduler)."""
    import diffusers

    common: Any = dict(trained_betas=BETAS)
    leading = diffusion.leading(SCHEDULE, STEPS)
    last: Any = dict(final_sigmas_type="sigma_min", solver_order=2)
    heun = diffusers.HeunDiscreteScheduler(**common, use_karras_sigmas=True)
    exploding = diffusion.VarianceExploding(start=float(RATIOS[-1]), end=float(RATIOS[0]))
    # the last step of theirs, to no noise, is one of Euler's: the predicted data
    karras = diffusion.karras(exploding, STEPS // 2 - 1)
    return {
        "DDIM": (
            (DDIM(), SCHEDULE, leading, {}),
            diffusers.DDIMScheduler(**common, clip_sample=False),
        ),
        "PNDM": (
            (PNDM(), SCHEDULE, leading, {}),
            diffusers.PNDMScheduler(**common, set_alpha_to_one=True),
        ),
        "DPM-Solver++(2M)": (
            (DPMSolverPP(MultiStep(2, lower_order_final=15)), SCHEDULE, spread(STEPS), {}),
            diffusers.DPMSolverMultistepScheduler(**common, **last),
        ),
        "UniPC-2": (
            (UniPC(2, BH2(), lower_order_final=1000), SCHEDULE, spread(STEPS), {}),
            diffusers.UniPCMultistepScheduler(**common, **last),
        ),
        "Heun": ((Heun(), exploding, karras, dict(denoise=True)), heun),
    }


def digits_in_torch(teacher):
    """The arithmetic of `digits_teacher` in PyTorch: noise from a sample and its sigma/alpha."""
    import torch

    network, s = teacher.network, float(teacher.predicts.sigma_data)
    tensor = lambda a: torch.from_numpy(np.array(a))
    layer = lambda linear: (tensor(linear.weight), tensor(linear.bias))
    first, last = layer(network.first), layer(network.last)
    blocks = [layer(block.linear) for block in network.blocks]
    frequencies = tensor(network.embedding.frequencies)
    linear, silu = torch.nn.functional.linear, torch.nn.functional.silu

    def noise(x, ratio):
        # `x` is that of a variance-preserving schedule
        x = x * (1 + ratio**2) ** 0.5
        total = ratio**2 + s**2
        level = frequencies * 0.25 * np.log(ratio)
        seen = [(x / total**0.5).reshape(len(x), -1)]
        seen.append(torch.cat([torch.cos(level), torch.sin(level)]).expand(len(x), -1))
        h = silu(linear(torch.cat(seen, dim=1), *first))
        for block in blocks:
            h = h + silu(linear(h, *block))
        output = linear(h, *last).reshape(x.shape)
        data = s**2 / total * x + ratio * s / total**0.5 * output
        return (x - data) / ratio

    return noise


def theirs(scheduler, model, start):
    """A function of no arguments that samples as diffusers does."""
    import torch

    # their products of betas are of single precision, too coarse near the data
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(BETAS), 0)
    heun = "Heun" in type(scheduler).__name__

    def run():
        with torch.inference_mode():
            scheduler.set_timesteps(STEPS // 2 if heun else STEPS)
            x = start
            for step in scheduler.timesteps:
                ratio = float(np.interp(float(step), np.arange(1000), RATIOS))
                if heun:
                    x_in = scheduler.scale_model_input(x, step)
                    ratio = float(scheduler.sigmas[scheduler.step_index])
                else:
                    x_in = x
                x = scheduler.step(model(x_in, ratio), step, x).prev_sample
        return x

    return run


def run() -> list[dict]:
    import torch

    teacher = diffusion.digits_teacher()
    halved = lambda x, node: 0.5 * x / jnp.sqrt(node.alpha**2 + node.sigma**2)
    trivial = diffusion.Denoiser(halved)
    cases = {
        "trivial": (trivial, lambda x, ratio: 0.5 * x, (64, 3, 32, 32)),
        "digits": (teacher, digits_in_torch(teacher), (597, 8, 8)),
    }
    table = []
    for case, (model, twin, shape) in cases.items():
        start = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        for name, ((sampler, schedule, times, options), scheduler) in pairs().items():
            x = start if schedule is SCHEDULE else schedule.start * start
            x = x.astype(np.float32)
            here = jnp.asarray(x)
            ours = lambda s=sampler, c=schedule, t=times, x=here, o=options, m=model: (
                diffusion.sample(m, s, c, t, x, **o).value
            )
            other = theirs(scheduler, twin, torch.from_numpy(x))
            calls = diffusion.sample(model, sampler, schedule, times, here, **options).evaluations
            wanted = other().numpy()
            apart = np.abs(np.asarray(ours()) - wanted).max() / np.abs(wanted).max()
            mine, their = race({"ours": ours, "diffusers": other}, reference="ours", rounds=7)
            table.append(
                {
                    "model": case,
                    "sampler": name,
                    "evaluations": calls,
                    "ours us": 1e6 * mine.seconds / calls,
                    "diffusers us": 1e6 * their.seconds / calls,
                    "diffusers / ours": their.ratio,
                    "apart": f"{apart:.0e}",
                }
            )
    return table
