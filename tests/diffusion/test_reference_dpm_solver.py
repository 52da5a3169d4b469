"""DPM-Solver and DPM-Solver++ step by step against the schedulers of diffusers: against values that
these left in `reference/dpm_solver.npz`, and, where they are installed, against themselves.

`PYTHONPATH=tests python tests/diffusion/test_reference_dpm_solver.py` writes the file anew.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_runs import close

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import (
    DPMSolver,
    DPMSolverPP,
    MultiStep,
    SDEDPMSolverPP,
    dpm_solver_fast,
    dpm_solver_pp,
)

STORED = pathlib.Path(__file__).parent / "reference" / "dpm_solver.npz"
BETAS = diffusion.linear_betas(1000)
SCHEDULE = diffusion.DiscreteSchedule(BETAS)
STEPS = 7
START = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
NOISE = np.random.default_rng(1).normal(size=(STEPS, 3, 2)).astype(np.float32)

# The class of diffusers, its options, and how it is called here.
MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
multi = lambda order, **options: MultiStep(order, lower_order_final=15, **options)
VARIANTS = {
    "noise 2M": (MULTI, "dpmsolver", 2, "midpoint", DPMSolver(multi(2))),
    "noise 3M": (MULTI, "dpmsolver", 3, "midpoint", DPMSolver(multi(3, official_d2=True))),
    "2M": (MULTI, "dpmsolver++", 2, "midpoint", DPMSolverPP(multi(2))),
    "2M taylor": (MULTI, "dpmsolver++", 2, "heun", DPMSolverPP(multi(2, taylor=True))),
    "2M to zero": (MULTI, "dpmsolver++", 2, "midpoint", DPMSolverPP(multi(2))),
    "3M": (MULTI, "dpmsolver++", 3, "midpoint", DPMSolverPP(multi(3, official_d2=True))),
    "SDE 1": (MULTI, "sde-dpmsolver++", 1, "midpoint", SDEDPMSolverPP(multi(1))),
    "SDE 2M": (MULTI, "sde-dpmsolver++", 2, "midpoint", SDEDPMSolverPP(multi(2))),
    "SDE 2M to zero": (MULTI, "sde-dpmsolver++", 2, "midpoint", SDEDPMSolverPP(multi(2))),
    "noise 2S": (SINGLE, "dpmsolver", 2, "midpoint", DPMSolver),
    "noise 3S taylor": (SINGLE, "dpmsolver", 3, "heun", DPMSolver),
    "2S": (SINGLE, "dpmsolver++", 2, "midpoint", DPMSolverPP),
    "3S taylor": (SINGLE, "dpmsolver++", 3, "heun", DPMSolverPP),
}


def model(x, step):
    """A fixed function as a network that predicts noise."""
    return np.sin(1.3 * x + 0.002 * step).astype(np.float32)


def grid(schedule, num_steps, end=1 / 1000):
    """Steps of the chain from the last, equally spaced, without the first, and the end."""
    return np.append((np.linspace(0, 999, num_steps + 1).round()[:0:-1] + 1) / 1000, end)


def theirs(name):
    """The points of a scheduler of diffusers."""
    import diffusers
    import torch

    kind, algorithm, order, solver, _ = VARIANTS[name]
    scheduler = getattr(diffusers, kind)(
        trained_betas=BETAS,
        solver_order=order,
        algorithm_type=algorithm,
        solver_type=solver,
        final_sigmas_type="zero" if "zero" in name else "sigma_min",
    )
    # Their product of betas is of single precision, too coarse near the data.
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(BETAS), 0)
    scheduler.set_timesteps(STEPS)
    x, path = torch.tensor(START), []
    for i, step in enumerate(scheduler.timesteps):
        output = torch.tensor(model(x.numpy(), int(step)))
        extra = {"variance_noise": torch.tensor(NOISE[i])} if "SDE" in name else {}
        x = scheduler.step(output, step, x, **extra).prev_sample
        path.append(x.numpy())
    return np.stack(path)


def ours(name, monkeypatch):
    """Our points, and which of the others they are."""
    _, _, order, solver, sampler = VARIANTS[name]
    times, at = grid(SCHEDULE, STEPS, 0.0 if "zero" in name else 1 / 1000), np.arange(STEPS)
    if isinstance(sampler, type):
        fast, times = dpm_solver_fast(
            SCHEDULE, STEPS, order=order, taylor=solver == "heun", grid=grid
        )
        at = np.cumsum(fast.steps.order) - 1
        sampler = sampler(fast.steps)
    # The noise of the other side in place of our own; its key is the number of the step.
    monkeypatch.setattr(dpm_solver_pp, "gaussian", lambda x, key: jnp.asarray(NOISE[key]))
    network = lambda x, node: jnp.asarray(model(np.asarray(x), 1000 * float(node.t) - 1))
    denoiser, x, path = diffusion.Denoiser(network), jnp.asarray(START), []
    table = sampler.plan(SCHEDULE, times)
    memory = sampler.start(denoiser, x, SCHEDULE.nodes(times[0]))
    with jax.disable_jit():
        for i in range(len(times) - 1):
            row = jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), table)
            x, memory = sampler.step(denoiser, x, memory, row, i)
            path.append(np.asarray(x))
    return np.stack(path), at


@pytest.mark.parametrize("name", VARIANTS)
def test_equal_to_what_diffusers_left(name, monkeypatch):
    found, at = ours(name, monkeypatch)
    wanted = np.load(STORED)[name][at]
    assert found.dtype == np.float32
    close(found, wanted)


def test_the_corrected_curvature_is_another_sampler(monkeypatch):
    name, corrected = "3M", DPMSolverPP(multi(3))
    monkeypatch.setitem(VARIANTS, name, (*VARIANTS[name][:-1], corrected))
    found, _ = ours(name, monkeypatch)
    assert np.abs(found - np.load(STORED)[name]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_equal_to_diffusers(name, monkeypatch):
    pytest.importorskip("diffusers")
    wanted = theirs(name)
    close(np.load(STORED)[name], wanted)
    found, at = ours(name, monkeypatch)
    close(found, wanted[at])


if __name__ == "__main__":
    np.savez(STORED, **{name: theirs(name) for name in VARIANTS})
