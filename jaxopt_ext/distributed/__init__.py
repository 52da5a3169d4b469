"""Decentralized optimization: nodes with their own data that talk to neighbours only.

- Graphs: `ring`, `path`, `torus`, `star`, `complete`, `hypercube`, `exponential`, `binary_tree`,
  `barbell`; random ones `erdos_renyi`, `random_regular`, `random_geometric`; `edge_list` numbers
  the edges.
- Mixing matrices, sparse: `metropolis`, `max_degree`, `laplacian`, `best_constant`, `lazy`;
  `closed_neighborhood`, which is stochastic by rows only. Spectra: `spectral_gap`,
  `weighted_laplacian`, `laplacian_spectrum`, `chi`, `chi_1`, `chi_2`.
- `Network.simulated` on one device, `Network.on_mesh` over many, `Network.clients` of a server;
  the numbers are the same.
- Weights that change: `TimeVarying`, `one_peer_exponential`, `random_matching`, `b_connectivity`.
- Links: `lose_edges`, `GaussianNoise`, `LaplaceNoise`, `Quantized`, `receive`, `DelayedLinks`.
- Accelerated gossip: `chebyshev_gossip`, `fast_mix`.
- `run`: rounds with a progress bar, metrics and resumable checkpoints.
- `collective_bytes`: what a compiled round sends.

Algorithms for a constant step size and exact optimum:

- `GradientTracking` (DIGing), `AdaptThenCombineTracking`: two values an edge, simple and robust.
- `EXTRA`, `ExactDiffusion`: one value an edge.
- `DecentralizedADMM`: local solves and a non-smooth regularizer; few rounds.
- `DecentralizedGradient`: the biased baseline.

Small messages (the compressors themselves are in `compression`):

- `PowerSGD`, `powersgd`: data-parallel training with low-rank gradients, by two small means;
  `sum_momentum` is its momentum.
- `signum`: a majority vote with one bit an entry.
- `EControl`: compressed gradients with controlled error feedback; exact, and averages noise.
  `error_controlled` is its gradient transformation, `compressed_mean` that of any feedback.
- `EF21SGD`, `EF21SGDM`, `EF14SGD`, `CompressedSGD`, `DoubleEC`, `ECIdeal`, `ECApproximate`: its
  relatives and baselines.

Noisy links:

- `VRADGT`, `VRADSGT`: exact gradient tracking over links with noise, by
  `VarianceReducedAggregation`; `Harmonic` is their step size.
- `RobustTracking`: the slower way, with gains that fall, `PowerGain`.
"""

from .admm import DecentralizedADMM
from .algorithm import AbstractGradientAlgorithm, AbstractNetworkAlgorithm
from .decentralized_gradient import DecentralizedGradient
from .econtrol import (
    EF14SGD,
    EF21SGD,
    EF21SGDM,
    AbstractCompressedGradient,
    CompressedSGD,
    CompressedState,
    DoubleEC,
    ECApproximate,
    ECIdeal,
    EControl,
    compressed_mean,
    error_controlled,
)
from .exact_diffusion import ExactDiffusion
from .extra import EXTRA
from .gossip import chebyshev_gossip, fast_mix
from .gradient_tracking import AdaptThenCombineTracking, GradientTracking
from .graphs import (
    barbell,
    binary_tree,
    complete,
    edge_list,
    erdos_renyi,
    exponential,
    hypercube,
    path,
    random_geometric,
    random_regular,
    ring,
    star,
    torus,
)
from .hlo import collective_bytes
from .links import DelayedLinks, GaussianNoise, LaplaceNoise, Quantized, lose_edges, receive
from .mixing import (
    best_constant,
    chi,
    chi_1,
    chi_2,
    closed_neighborhood,
    laplacian,
    laplacian_spectrum,
    lazy,
    max_degree,
    metropolis,
    spectral_gap,
    weighted_laplacian,
)
from .network import Network
from .powersgd import PowerMemory, PowerSGD, powersgd, sum_momentum
from .run import Run, consensus_distance, run
from .signum import signum
from .time_varying import TimeVarying, b_connectivity, one_peer_exponential, random_matching
from .vra_tracking import (
    VRADGT,
    VRADSGT,
    Harmonic,
    PowerGain,
    RobustTracking,
    VarianceReducedAggregation,
)

__all__ = [
    "EF14SGD",
    "EF21SGD",
    "EF21SGDM",
    "EXTRA",
    "VRADGT",
    "VRADSGT",
    "AbstractCompressedGradient",
    "AbstractGradientAlgorithm",
    "AbstractNetworkAlgorithm",
    "AdaptThenCombineTracking",
    "CompressedSGD",
    "CompressedState",
    "DecentralizedADMM",
    "DecentralizedGradient",
    "DelayedLinks",
    "DoubleEC",
    "ECApproximate",
    "ECIdeal",
    "EControl",
    "ExactDiffusion",
    "GaussianNoise",
    "GradientTracking",
    "Harmonic",
    "LaplaceNoise",
    "Network",
    "PowerGain",
    "PowerMemory",
    "PowerSGD",
    "Quantized",
    "RobustTracking",
    "Run",
    "TimeVarying",
    "VarianceReducedAggregation",
    "b_connectivity",
    "barbell",
    "best_constant",
    "binary_tree",
    "chebyshev_gossip",
    "chi",
    "chi_1",
    "chi_2",
    "closed_neighborhood",
    "collective_bytes",
    "complete",
    "compressed_mean",
    "consensus_distance",
    "edge_list",
    "erdos_renyi",
    "error_controlled",
    "exponential",
    "fast_mix",
    "hypercube",
    "laplacian",
    "laplacian_spectrum",
    "lazy",
    "lose_edges",
    "max_degree",
    "metropolis",
    "one_peer_exponential",
    "path",
    "powersgd",
    "random_geometric",
    "random_matching",
    "random_regular",
    "receive",
    "ring",
    "run",
    "signum",
    "spectral_gap",
    "star",
    "sum_momentum",
    "torus",
    "weighted_laplacian",
]
