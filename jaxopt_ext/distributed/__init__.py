"""Decentralized optimization: nodes with their own data that talk to neighbours only.

- Graphs: `ring`, `path`, `torus`, `star`, `complete`, `hypercube`, `exponential`, `erdos_renyi`.
- Mixing matrices: `metropolis`, `max_degree`, `laplacian`, `lazy`; `spectral_gap`.
- `Network.simulated` on one device, `Network.on_mesh` over many; the numbers are the same.
- `run`: rounds with a progress bar, metrics and resumable checkpoints.
- `collective_bytes`: what a compiled round sends.

Algorithms for a constant step size and exact optimum:

- `GradientTracking` (DIGing), `AdaptThenCombineTracking`: two values an edge, simple and robust.
- `EXTRA`, `ExactDiffusion`: one value an edge.
- `DecentralizedADMM`: local solves and a non-smooth regularizer; few rounds.
- `DecentralizedGradient`: the biased baseline.
"""

from .admm import DecentralizedADMM
from .algorithm import AbstractGradientAlgorithm, AbstractNetworkAlgorithm
from .decentralized_gradient import DecentralizedGradient
from .exact_diffusion import ExactDiffusion
from .extra import EXTRA
from .gradient_tracking import AdaptThenCombineTracking, GradientTracking
from .graphs import (
    complete,
    erdos_renyi,
    exponential,
    hypercube,
    path,
    ring,
    star,
    torus,
)
from .hlo import collective_bytes
from .mixing import laplacian, lazy, max_degree, metropolis, spectral_gap
from .network import Network
from .run import Run, consensus_distance, run

__all__ = [
    "EXTRA",
    "AbstractGradientAlgorithm",
    "AbstractNetworkAlgorithm",
    "AdaptThenCombineTracking",
    "DecentralizedADMM",
    "DecentralizedGradient",
    "ExactDiffusion",
    "GradientTracking",
    "Network",
    "Run",
    "collective_bytes",
    "complete",
    "consensus_distance",
    "erdos_renyi",
    "exponential",
    "hypercube",
    "laplacian",
    "lazy",
    "max_degree",
    "metropolis",
    "path",
    "ring",
    "run",
    "spectral_gap",
    "star",
    "torus",
]
