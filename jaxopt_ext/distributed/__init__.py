"""Decentralized optimization: nodes with their own data that talk to neighbours only.

- Graphs: `ring`, `path`, `grid`, `torus`, `star`, `complete`, `hypercube`, `exponential`,
  `binary_tree`, `barbell`; random ones `erdos_renyi`, `random_regular`, `random_geometric`;
  `edge_list` numbers the edges.
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
- `collective_bytes`: what a compiled round sends.

Algorithms for a constant step size and exact optimum:

- `GradientTracking` (DIGing), `AdaptThenCombineTracking`: two values an edge, simple and robust.
- `EXTRA`, `ExactDiffusion`: one value an edge.
- `DecentralizedADMM`: local solves and a non-smooth regularizer; few rounds.
- `DecentralizedGradient`: the biased baseline.

Stochastic gradients:

- `DistributedSGD` with a `PowerDecay` of steps and of mixing (`consensus_decay`): for losses that
  are neither convex nor smooth; `SubspaceConstrainedSGD` is its general form.
- `DecentralizedSGD` with schedules, `warmup_step_decay` and `RandomRelabelling`, and what makes it
  prefer flat minima: `average_direction_gradient`, `average_direction_expansion`,
  `AverageDirectionSAM`, `weight_diversity`, `trace_diversity`, `predictive_moments`,
  `smoothing_bound`.

Federated learning, several local steps (`LocalSGD`, `LocalSAM`) between two talks, on clients that
have more and less data (`Padded`):

- `DecentralizedFederated`, composed by `dfedsam`, `dfedsam_mgs`, `dfedavg`, `fedavg`, `fedsam`; the
  talk is `MultipleGossip`, `ChebyshevGossip` or `ServerAverage`.
- Nodes that start from models drawn apart (`independent_init`): `GossipLearning` with
  `VarianceCorrected` averages (`variance_corrected_mean`) or the `PlainAverage`,
  `BufferedGossipLearning`; `PartitionedGossip` sends parts. `sample_weights` are weights by data.
"""

from .admm import DecentralizedADMM
from .algorithm import AbstractGradientAlgorithm, AbstractNetworkAlgorithm, model_bits
from .decentralized_gradient import DecentralizedGradient
from .dfedsam import (
    ChebyshevGossip,
    DecentralizedFederated,
    MultipleGossip,
    ServerAverage,
    dfedavg,
    dfedsam,
    dfedsam_mgs,
    fedavg,
    fedsam,
)
from .dsgd import (
    AverageDirectionSAM,
    DecentralizedSGD,
    DistributedSGD,
    PowerDecay,
    RandomRelabelling,
    SubspaceConstrainedSGD,
    average_direction_expansion,
    average_direction_gradient,
    consensus_decay,
    predictive_moments,
    smoothing_bound,
    trace_diversity,
    warmup_step_decay,
    weight_diversity,
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
    grid,
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
from .local import AbstractLocalSolver, LocalSAM, LocalSGD, Padded
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
from .run import Run, consensus_distance, run
from .time_varying import TimeVarying, b_connectivity, one_peer_exponential, random_matching
from .variance_corrected import (
    AbstractModelAverage,
    BufferedGossipLearning,
    GossipLearning,
    PartitionedGossip,
    PlainAverage,
    VarianceCorrected,
    independent_init,
    sample_weights,
    variance_corrected_mean,
)

__all__ = [
    "EXTRA",
    "AbstractGradientAlgorithm",
    "AbstractLocalSolver",
    "AbstractModelAverage",
    "AbstractNetworkAlgorithm",
    "AdaptThenCombineTracking",
    "AverageDirectionSAM",
    "BufferedGossipLearning",
    "ChebyshevGossip",
    "DecentralizedADMM",
    "DecentralizedFederated",
    "DecentralizedGradient",
    "DecentralizedSGD",
    "DelayedLinks",
    "DistributedSGD",
    "Events",
    "ExactDiffusion",
    "GaussianNoise",
    "GossipLearning",
    "GradientTracking",
    "Kind",
    "LocalSAM",
    "LocalSGD",
    "MultipleGossip",
    "Network",
    "Padded",
    "PartitionedGossip",
    "PlainAverage",
    "PowerDecay",
    "RandomRelabelling",
    "Run",
    "ServerAverage",
    "SubspaceConstrainedSGD",
    "TimeVarying",
    "VarianceCorrected",
    "average_direction_expansion",
    "average_direction_gradient",
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
    "consensus_decay",
    "consensus_distance",
    "dfedavg",
    "dfedsam",
    "dfedsam_mgs",
    "edge_list",
    "erdos_renyi",
    "exponential",
    "fast_mix",
    "fedavg",
    "fedsam",
    "grid",
    "hypercube",
    "independent_init",
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
    "path",
    "poisson_events",
    "predictive_moments",
    "random_geometric",
    "random_matching",
    "random_regular",
    "random_walks",
    "receive",
    "ring",
    "run",
    "run_events",
    "sample_weights",
    "smoothing_bound",
    "spectral_gap",
    "star",
    "torus",
    "trace_diversity",
    "variance_corrected_mean",
    "warmup_step_decay",
    "weight_diversity",
    "weighted_laplacian",
    "with_delays",
    "without_failed",
]
