"""UniPC step by step against the scheduler of diffusers: against values that it left in
`reference/unipc.npz`, and, where it is installed, against itself.

`PYTHONPATH=tests python tests/diffusion/test_reference_unipc.py` writes the file anew.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from reference_runs import close

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import BH1, BH2, DataForm, NoiseForm, UniPC

STORED = pathlib.Path(__file__).parent / "reference" / "unipc.npz"
BETAS = diffusion.linear_betas(1000)
SCHEDULE = diffusion.DiscreteSchedule(BETAS)
STEPS = 7
START = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)

# Order, kind of B(h), whether the data are expanded, and how the last step ends.
VARIANTS = {
    "1 bh2": (1, "bh2", True, "sigma_min"),
    "2 bh1": (2, "bh1", True, "sigma_min"),
    "2 bh2": (2, "bh2", True, "sigma_min"),
    "3 bh2": (3, "bh2", True, "sigma_min"),
    "3 bh1 noise": (3, "bh1", False, "sigma_min"),
    "2 bh2 to zero": (2, "bh2", True, "zero"),
}


def theirs(name):
    """The points of diffusers' scheduler, each after its correction, which comes a step later."""
    import torch
    from diffusers import UniPCMultistepScheduler

    order, kind, data, end = VARIANTS[name]
    scheduler = UniPCMultistepScheduler(
        trained_betas=BETAS,
        solver_order=order,
        solver_type=kind,
        predict_x0=data,
        final_sigmas_type=end,
        lower_order_final=True,
    )
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(BETAS), 0)
    scheduler.set_timesteps(STEPS)
    x, path = torch.tensor(START), []
    for i, step in enumerate(scheduler.timesteps):
        output = torch.sin(1.3 * x + 0.002 * step)
        x = scheduler.step(output, step, x).prev_sample
        if i:
            path.append(scheduler.last_sample.numpy())
    return np.stack([*path, x.numpy()])


def ours(name):
    """Our points, in one program."""
    order, kind, data, end = VARIANTS[name]
    steps = np.linspace(0, 999, STEPS + 1).round()[:0:-1]
    times = np.append((steps + 1) / 1000, 0.0 if end == "zero" else 1 / 1000)
    sampler = UniPC(
        order,
        BH1() if kind == "bh1" else BH2(),
        DataForm() if data else NoiseForm(),
        lower_order_final=15,
    )
    model = diffusion.Denoiser(lambda x, node: jnp.sin(1.3 * x + 0.002 * (1000 * node.t - 1)))
    return diffusion.sample(model, sampler, SCHEDULE, times, START, trace=True).path


@pytest.mark.parametrize("name", VARIANTS)
def test_equal_to_what_diffusers_left(name):
    found = ours(name)
    assert found.dtype == np.float32
    close(found, np.load(STORED)[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_equal_to_diffusers(name):
    pytest.importorskip("diffusers")
    close(np.load(STORED)[name], theirs(name))


if __name__ == "__main__":
    np.savez(STORED, **{name: theirs(name) for name in VARIANTS})
