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
- Links: `lose_edges`, `GaussianNoise`, `receive`, `DelayedLinks`.
- Asynchronous time: `poisson_events`, `random_walks`, `link_failures`, `without_failed`,
  `with_delays`, `merge` make `Events` of a `Kind`, and `run_events` runs them.
- Accelerated gossip: `chebyshev_gossip`, `fast_mix`.
- `run`: rounds with a progress bar, metrics and resumable checkpoints.
- `collective_bytes`: what a compiled round sends; `overlap_report`: what may run beside it.

Algorithms for a constant step size and exact optimum:

- `GradientTracking` (DIGing), `AdaptThenCombineTracking`: two values an edge, simple and robust.
- `EXTRA`, `ExactDiffusion`: one value an edge.
- `DecentralizedADMM`: local solves and a non-smooth regularizer; few rounds.
- `DecentralizedGradient`: the biased baseline.

Layers whose experts are spread over the nodes, `expert_parallel`:

- `ScMoEPair`: talk that depends on an earlier layer only, and may run beside the next two.
- `DGMoEPair`: half of the talk does.
- `TopKMoE`, `SharedExpertMoE`: the baselines, whose talk everything waits for.

Nodes that are not trusted with inference: `secure_inference`.
"""

from .admm import DecentralizedADMM
from .algorithm import AbstractGradientAlgorithm, AbstractNetworkAlgorithm, model_bits
from .decentralized_gradient import DecentralizedGradient
from .events import (
    Events,
    Kind,
    link_failures,
    merge,
    poisson_events,
    random_walks,
    run_events,
    with_delays,
    without_failed,
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
from .links import DelayedLinks, GaussianNoise, lose_edges, receive
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
from .overlap import Overlap, overlap_report
from .run import Run, consensus_distance, run
from .scmoe import DGMoEPair, ScMoEPair, SharedExpertMoE, TopKMoE, expert_parallel
from .time_varying import TimeVarying, b_connectivity, one_peer_exponential, random_matching

__all__ = [
    "EXTRA",
    "AbstractGradientAlgorithm",
    "AbstractNetworkAlgorithm",
    "AdaptThenCombineTracking",
    "DGMoEPair",
    "DecentralizedADMM",
    "DecentralizedGradient",
    "DelayedLinks",
    "Events",
    "ExactDiffusion",
    "GaussianNoise",
    "GradientTracking",
    "Kind",
    "Network",
    "Overlap",
    "Run",
    "ScMoEPair",
    "SharedExpertMoE",
    "TimeVarying",
    "TopKMoE",
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
    "consensus_distance",
    "edge_list",
    "erdos_renyi",
    "expert_parallel",
    "exponential",
    "fast_mix",
    "hypercube",
    "laplacian",
    "laplacian_spectrum",
    "lazy",
    "link_failures",
    "lose_edges",
    "max_degree",
    "merge",
    "metropolis",
    "model_bits",
    "one_peer_exponential",
    "overlap_report",
    "path",
    "poisson_events",
    "random_geometric",
    "random_matching",
    "random_regular",
    "random_walks",
    "receive",
    "ring",
    "run",
    "run_events",
    "spectral_gap",
    "star",
    "torus",
    "weighted_laplacian",
    "with_delays",
    "without_failed",
]
