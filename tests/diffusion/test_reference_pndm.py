"""PNDM against diffusers: its stored numbers, and where it is installed its scheduler."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from reference_runs import close

from jaxopt_ext import diffusion

STORED = pathlib.Path(__file__).parent / "reference" / "pndm.npz"
STEPS = 20
SAMPLERS = {
    "prk": (diffusion.PNDM(), dict(skip_prk_steps=False)),
    "plms": (diffusion.PNDM(4, diffusion.ImprovedEuler()), dict(skip_prk_steps=True)),
}


def start():
    return np.random.default_rng(0).normal(size=(8, 3))


def scheduler_path(options):
    """The points behind each step of diffusers' scheduler, shape `(20, 8, 3)`."""
    import torch

    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.PNDMScheduler(1000, set_alpha_to_one=True, **options)
    # its float32 table of alphas would be all of the difference
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(STEPS)
    x, points, times = torch.from_numpy(start()), [], list(scheduler.timesteps)
    for t in times:
        output = torch.sin(2 * x + 3 * (float(t) + 1) / 1000) + 0.5 * x
        x = scheduler.step(output, t, x).prev_sample
        points.append(x.numpy())
    # the evaluations inside of steps are no points of the path
    kept = slice(1, None) if options["skip_prk_steps"] else [3, 7, *range(11, len(times))]
    return np.stack([points[i] for i in np.arange(len(times))[kept]])


def write():
    """Store diffusers' numbers."""
    np.savez(
        STORED, **{name: scheduler_path(o)[[0, 2, 9, 19]] for name, (_, o) in SAMPLERS.items()}
    )


def path(name):
    schedule = diffusion.DiscreteSchedule(diffusion.linear_betas(1000))
    model = diffusion.Denoiser(lambda x, node: jnp.sin(2 * x + 3 * node.t) + 0.5 * x)
    x, times = jnp.asarray(start()), diffusion.leading(schedule, STEPS)
    run = diffusion.sample(model, SAMPLERS[name][0], schedule, times, x, trace=True)
    return np.asarray(run.path)


@pytest.mark.parametrize("name", SAMPLERS)
def test_points_equal_those_stored(name):
    found = path(name)[[0, 2, 9, 19]]
    close(found, np.load(STORED)[name], 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_points_equal_those_of_diffusers(name):
    pytest.importorskip("diffusers")
    wanted = scheduler_path(SAMPLERS[name][1])
    close(path(name), wanted, 1e-9)
