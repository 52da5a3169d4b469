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
- Accelerated gossip: `chebyshev_gossip`, `fast_mix`. While links change: `accelerated_gossip`,
  where lost links do not return; `RestartedGossip`, where all may change now and then; of which
  `PlainGossip`, `NesterovGossip`, `ChebyshevGossip` are the parts, `laplacian_schedule` makes the
  weights, and `bridge_swap` is the sequence that no method can be fast on.
- `run`: rounds with a progress bar, metrics and resumable checkpoints.
- `collective_bytes`: what a compiled round sends.

Algorithms for a constant step size and exact optimum:

- `GradientTracking` (DIGing), `AdaptThenCombineTracking`: two values an edge, simple and robust.
- `EXTRA`, `ExactDiffusion`: one value an edge.
- `DecentralizedADMM`: local solves and a non-smooth regularizer; few rounds.
- `DecentralizedGradient`: the biased baseline.
- `AcceleratedDGD`: Nesterov's method with gossip for a mean, also while links change.
- `DADAO`: accelerated, on the clocks of nodes and links, of which none waits for another;
  `dadao_events`, `communication_rates` and `optimal_rates` set the clocks.
- `TokenSGD`, `TokenHeavyBall`: one copy that walks, by a `SelfRepellentWalk` of a `Chain`
  (`metropolis_hastings`, `simple_random_walk`), a `NonBacktrackingWalk` or `IndependentSampling`;
  `visit_covariance` and `asymptotic_covariance` say what is lost by walking.
- `OwnerEigensolver`, `ReplicatedEigensolver`: the smallest eigenvalue of a matrix, of a `partition`
  of its rows into `Blocks` or of one that all nodes have; `eigen_status` tells how near they are.
- `RunningAverage`: any of these, with means over the rounds.
"""

from .admm import DecentralizedADMM
from .algorithm import AbstractGradientAlgorithm, AbstractNetworkAlgorithm, model_bits
from .averaging import RunningAverage
from .dadao import DADAO, communication_rates, dadao_events, optimal_rates
from .decentralized_gradient import DecentralizedGradient
from .eigenvalue import (
    Blocks,
    EigenStatus,
    OwnerEigensolver,
    Partition,
    ReplicatedEigensolver,
    eigen_status,
    partition,
)
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
from .random_walk import (
    AbstractWalk,
    Chain,
    IndependentSampling,
    NonBacktrackingWalk,
    SelfRepellentWalk,
    TokenHeavyBall,
    TokenSGD,
    WalkState,
    asymptotic_covariance,
    metropolis_hastings,
    simple_random_walk,
    visit_covariance,
)
from .run import Run, consensus_distance, run
from .slowly_varying import (
    AcceleratedDGD,
    BridgeSwap,
    ChebyshevGossip,
    NesterovGossip,
    PlainGossip,
    RestartedGossip,
    accelerated_gossip,
    bridge_swap,
    laplacian_schedule,
)
from .time_varying import TimeVarying, b_connectivity, one_peer_exponential, random_matching

__all__ = [
    "DADAO",
    "EXTRA",
    "AbstractGradientAlgorithm",
    "AbstractNetworkAlgorithm",
    "AbstractWalk",
    "AcceleratedDGD",
    "AdaptThenCombineTracking",
    "Blocks",
    "BridgeSwap",
    "Chain",
    "ChebyshevGossip",
    "DecentralizedADMM",
    "DecentralizedGradient",
    "DelayedLinks",
    "EigenStatus",
    "Events",
    "ExactDiffusion",
    "GaussianNoise",
    "GradientTracking",
    "IndependentSampling",
    "Kind",
    "NesterovGossip",
    "Network",
    "NonBacktrackingWalk",
    "OwnerEigensolver",
    "Partition",
    "PlainGossip",
    "ReplicatedEigensolver",
    "RestartedGossip",
    "Run",
    "RunningAverage",
    "SelfRepellentWalk",
    "TimeVarying",
    "TokenHeavyBall",
    "TokenSGD",
    "WalkState",
    "accelerated_gossip",
    "asymptotic_covariance",
    "b_connectivity",
    "barbell",
    "best_constant",
    "binary_tree",
    "bridge_swap",
    "chebyshev_gossip",
    "chi",
    "chi_1",
    "chi_2",
    "closed_neighborhood",
    "collective_bytes",
    "communication_rates",
    "complete",
    "consensus_distance",
    "dadao_events",
    "edge_list",
    "eigen_status",
    "erdos_renyi",
    "exponential",
    "fast_mix",
    "hypercube",
    "laplacian",
    "laplacian_schedule",
    "laplacian_spectrum",
    "lazy",
    "link_failures",
    "lose_edges",
    "max_degree",
    "merge",
    "metropolis",
    "metropolis_hastings",
    "model_bits",
    "one_peer_exponential",
    "optimal_rates",
    "partition",
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
    "simple_random_walk",
    "spectral_gap",
    "star",
    "torus",
    "visit_covariance",
    "weighted_laplacian",
    "with_delays",
    "without_failed",
]
