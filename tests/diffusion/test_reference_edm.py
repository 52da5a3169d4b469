"""Euler's and Heun's methods in the level of noise against the schedulers of diffusers: against
values that these left in `reference/edm.npz`, and, where they are installed, against themselves.

`PYTHONPATH=tests python tests/diffusion/test_reference_edm.py` writes the file anew.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from reference_runs import close

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import DDIM, Data, Heun, Noise, Preconditioned, Velocity

STORED = pathlib.Path(__file__).parent / "reference" / "edm.npz"
BETAS = diffusion.linear_betas(1000)
CHAIN = diffusion.DiscreteSchedule(BETAS)
RATIOS = np.exp(-CHAIN.log_snr(CHAIN.times[1:]))
LEVELS = diffusion.VarianceExploding(start=float(RATIOS[-1]), end=float(RATIOS[0]))
EDM = diffusion.VarianceExploding()
STEPS = 7
START = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)

# The class of diffusers, its options, our sampler, what is predicted, schedule and times. Theirs
# goes through levels of noise and ends without, with a step of Euler's.
EULER, HEUN, KARRAS = "EulerDiscreteScheduler", "HeunDiscreteScheduler", {"use_karras_sigmas": True}
zero = lambda times: np.append(times, 0.0)
VARIANTS = {
    "Euler": (EULER, KARRAS, DDIM(), Noise(), LEVELS, zero(diffusion.karras(LEVELS, STEPS - 1))),
    "Euler of velocity": (
        EULER,
        {"prediction_type": "v_prediction", "timestep_spacing": "leading"},
        DDIM(),
        Velocity(),
        CHAIN,
        diffusion.leading(CHAIN, STEPS),
    ),
    "EDM Euler": (
        "EDMEulerScheduler",
        {},
        DDIM(),
        Preconditioned(0.5),
        EDM,
        zero(diffusion.karras(EDM, STEPS - 1)),
    ),
    "Heun": (HEUN, KARRAS, Heun(), Noise(), LEVELS, diffusion.karras(LEVELS, STEPS - 1)),
    "Heun of data": (
        HEUN,
        {"prediction_type": "sample", "timestep_spacing": "linspace"},
        Heun(),
        Data(),
        LEVELS,
        # levels between steps of the chain are interpolated there
        np.interp(np.linspace(999, 0, STEPS), np.arange(1000), RATIOS),
    ),
}


def network(xp, x, level):
    """A fixed function of what a network sees and the logarithm of the level."""
    return xp.sin(1.3 * x + 0.25 * level)


def theirs(name):
    """The points of a scheduler of diffusers, each in the variables where data have factor 1."""
    import diffusers
    import torch

    kind, options, *_ = VARIANTS[name]
    edm = kind.startswith("EDM")
    scheduler = getattr(diffusers, kind)(**({} if edm else {"trained_betas": BETAS}), **options)
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(BETAS), 0)
    scheduler.set_timesteps(STEPS)
    x, path = torch.tensor(START) * scheduler.sigmas[0], []
    for step in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, step)
        output = network(torch, seen, torch.log(scheduler.sigmas[scheduler.step_index]))
        x = scheduler.step(output, step, x).prev_sample
        path.append(x.numpy())
    # between the two halves of a step of Heun's is no point
    return np.stack(path[1::2] + path[-1:] if kind == HEUN else path)


def ours(name):
    """Our points, in one program."""
    *_, sampler, predicts, schedule, times = VARIANTS[name]

    def seen(x, node):
        # a network of theirs sees samples of variance one
        size = 1 if predicts == Preconditioned(0.5) else jnp.hypot(node.alpha, node.sigma)
        return network(jnp, x / size, jnp.log(node.sigma / node.alpha))

    first = schedule.nodes(times[0])
    start = jnp.asarray(START * np.float32(first.sigma))
    heun = isinstance(sampler, Heun)
    model = diffusion.Denoiser(seen, predicts)
    run = diffusion.sample(model, sampler, schedule, times, start, trace=True, denoise=heun)
    assert run.path.dtype == jnp.float32
    points = np.asarray(run.path) / schedule.alpha(times[1:])[:, None, None]
    return np.append(points, run.value[None], 0) if heun else points


@pytest.mark.parametrize("name", VARIANTS)
def test_equal_to_what_diffusers_left(name):
    close(ours(name), np.load(STORED)[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_equal_to_diffusers(name):
    pytest.importorskip("diffusers")
    close(np.load(STORED)[name], theirs(name))


if __name__ == "__main__":
    np.savez(STORED, **{name: theirs(name) for name in VARIANTS})
