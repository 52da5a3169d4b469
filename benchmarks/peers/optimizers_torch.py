"""The optimizers that have a PyTorch original or port on PyPI, against it: numbers and time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers.optimizers import stepper
from benchmarks.timing import race
from jaxopt_ext import optimizers

TITLE = (
    "against PyTorch: how far apart after 30 steps (part of the way gone), and one update of 10 "
    "leaves of 1000 x 1000, both on all cores"
)

RATE = 1e-2
SGD_DELTA = 10.0  # above any cosine: every matrix is projected


def pairs():
    """Name to (our transformation, the PyTorch optimizer of a list of parameters, its package)."""
    import adabelief_pytorch
    import adabound
    import adamp
    import pytorch_optimizer
    import torch

    def belief(params, **options):
        options = {"rectify": False, "print_change_log": False, **options}
        return adabelief_pytorch.AdaBelief(params, lr=RATE, **options)

    original, port = "original", "pytorch_optimizer"
    return {
        "Adam (optax)": (optax.adam(RATE), lambda p: torch.optim.Adam(p, lr=RATE), "torch"),
        "AdamP": (
            optimizers.adamp(RATE, weight_decay=0.01),
            lambda p: adamp.AdamP(p, lr=RATE, weight_decay=0.01),
            original,
        ),
        # without Nesterov's form the original projects its momentum in place, which the paper
        # does not
        "SGDP, Nesterov": (
            optimizers.sgdp(RATE, 0.9, weight_decay=0.01, delta=SGD_DELTA, nesterov=True),
            lambda p: adamp.SGDP(
                p, lr=RATE, momentum=0.9, weight_decay=0.01, delta=SGD_DELTA, nesterov=True
            ),
            original,
        ),
        "AdaBelief": (optimizers.adabelief(RATE), belief, original),
        "AdaBelief, rectified": (
            optimizers.adabelief(RATE, rectify=True),
            lambda p: belief(p, rectify=True),
            original,
        ),
        "AdaBelief with maximum": (
            optimizers.adabelief(RATE, amsgrad=True),
            lambda p: belief(p, amsgrad=True),
            original,
        ),
        "AdaBound": (
            optimizers.adabound(RATE),
            lambda p: adabound.AdaBound(p, lr=RATE),
            original,
        ),
        "AMSBound": (
            optimizers.amsbound(RATE),
            lambda p: adabound.AdaBound(p, lr=RATE, amsbound=True),
            original,
        ),
        "Adafactor": (
            optimizers.adafactor(),
            lambda p: torch.optim.Adafactor(p, lr=1e-2),
            "torch",
        ),
        "AdEMAMix": (
            optimizers.ademamix(RATE, T_alpha=20, T_beta3=20),
            lambda p: pytorch_optimizer.AdEMAMix(p, lr=RATE, t_alpha_beta3=20.0),
            port,
        ),
        "Adan": (
            optimizers.adan(RATE, weight_decay=0.01),
            lambda p: pytorch_optimizer.Adan(p, lr=RATE, weight_decay=0.01),
            port,
        ),
        "EXAdam, constant step": (
            optimizers.exadam(RATE, weight_decay=0.01, dynamic_step_size=False),
            lambda p: pytorch_optimizer.EXAdam(p, lr=RATE, weight_decay=0.01),
            port,
        ),
    }


def difference(tx, make) -> float:
    """Largest difference between the two after 30 steps, as a part of the largest way gone."""
    import torch

    rng = np.random.default_rng(0)
    draw = lambda: [rng.normal(size=shape).astype(np.float32) for shape in [(30, 20), (7,)]]
    start, gradients = draw(), [draw() for _ in range(30)]
    params = [jnp.asarray(leaf) for leaf in start]
    state, update = tx.init(params), jax.jit(tx.update)
    twins = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in start]
    other = make(twins)
    for step in gradients:
        updates, state = update([jnp.asarray(g) for g in step], state, params)
        params = optax.apply_updates(params, updates)
        for twin, gradient in zip(twins, step, strict=True):
            twin.grad = torch.tensor(gradient)
        other.step()
    ends = [(np.asarray(p), t.detach().numpy()) for p, t in zip(params, twins, strict=True)]
    way = max(np.abs(theirs - x).max() for (_, theirs), x in zip(ends, start, strict=True))
    return float(max(np.abs(ours - theirs).max() for ours, theirs in ends) / way)


def torch_stepper(make):
    """A function of no arguments that takes one step over ten million numbers in PyTorch."""
    import torch

    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(1000, 1000, generator=generator)) for _ in range(10)]
    for p in params:
        p.grad = 1e-2 * torch.randn(1000, 1000, generator=generator)
    return make(params).step


def run() -> list[dict]:
    import torch

    table = []
    for name, (tx, make, source) in pairs().items():
        far = difference(tx, make)
        torch.set_grad_enabled(False)
        candidates = {"ours": stepper(tx)[0], "torch": torch_stepper(make)}
        ours, theirs = race(candidates, reference="ours", rounds=7)
        torch.set_grad_enabled(True)
        table.append(
            {
                "method": name,
                "PyTorch from": source,
                "apart": far,
                "our ms": 1e3 * ours.seconds,
                "PyTorch's ms": 1e3 * theirs.seconds,
                "PyTorch / ours": theirs.ratio,
            }
        )
    return table
