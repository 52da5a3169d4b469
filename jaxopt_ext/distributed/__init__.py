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
- Asynchronous time: `poisson_events`, `random_walks`, `link_failures`, `without_failed`,
  `with_delays`, `merge` make `Events` of a `Kind`, and `run_events` runs them.
- Accelerated gossip: `chebyshev_gossip`, `fast_mix`. While links change: `accelerated_gossip`,
  where lost links do not return; `RestartedGossip`, where all may change now and then; of which
  `PlainGossip`, `NesterovGossip`, `ChebyshevGossip` are the parts, `laplacian_schedule` makes the
  weights, and `bridge_swap` is the sequence that no method can be fast on.
- Parts: `compression` (small messages, error feedback), `robust` (rules for bad rows), `attacks`.
- `run`: rounds with a progress bar, metrics and resumable checkpoints. `RunningAverage`: any
  algorithm, with means over the rounds.
- `collective_bytes`: what a compiled round sends.

Algorithms for a constant step size and exact optimum:

- `GradientTracking` (DIGing), `AdaptThenCombineTracking`: two values an edge, simple and robust.
- `EXTRA`, `ExactDiffusion`: one value an edge.
- `DecentralizedADMM`: local solves and a non-smooth regularizer; few rounds.
- `AcceleratedDGD`: Nesterov's method with gossip for a mean, also while links change.
- `DADAO`: accelerated, on the clocks of nodes and links, of which none waits for another;
  `dadao_events`, `communication_rates` and `optimal_rates` set the clocks.
- `DecentralizedGradient`: the biased baseline.
- `DecentralizedZerothOrder`: by values of losses with kinks alone.

Stochastic gradients:

- `DistributedSGD` with a `PowerDecay` of steps and of mixing (`consensus_decay`): for losses that
  are neither convex nor smooth; `SubspaceConstrainedSGD` is its general form.
- `DecentralizedSGD` with schedules, `warmup_step_decay` and `RandomRelabelling`, and what makes it
  prefer flat minima: `average_direction_gradient`, `average_direction_expansion`,
  `AverageDirectionSAM`, `weight_diversity`, `trace_diversity`, `predictive_moments`,
  `smoothing_bound`.
- `TokenSGD`, `TokenHeavyBall`: one copy that walks, by a `SelfRepellentWalk` of a `Chain`
  (`metropolis_hastings`, `simple_random_walk`), a `NonBacktrackingWalk` or `IndependentSampling`;
  `visit_covariance` and `asymptotic_covariance` say what is lost by walking.

Federated learning, several local steps (`LocalSGD`, `LocalSAM`) between two talks, on clients that
have more and less data (`Padded`):

- `DecentralizedFederated`, composed by `dfedsam`, `dfedsam_mgs`, `dfedavg`, `fedavg`, `fedsam`; the
  talk is `MultipleGossip`, `ChebyshevAverage` or `ServerAverage`.

- `GossipLearning`, `BufferedGossipLearning`, `PartitionedGossip`: the average over a neighbourhood,
  also of models drawn apart (`VarianceCorrected`); `AsynchronousGossipLearning`: without rounds.

Small messages:

- `CompressedGossip`: any of the above that mixes, with any compressor and rule of error feedback.
- `PowerSGD`, `powersgd`: data-parallel training with low-rank gradients, by two small means;
  `sum_momentum` is its momentum.
- `EControl`: compressed gradients with controlled error feedback; exact, and averages noise.
  `error_controlled` is its gradient transformation, `compressed_mean` that of any feedback.
- `EF21SGD`, `EF21SGDM`, `EF14SGD`, `CompressedSGD`, `DoubleEC`, `ECIdeal`, `ECApproximate`: its
  relatives and baselines.

Noisy links:

- `VRADGT`, `VRADSGT`: exact gradient tracking over links with noise, by
  `VarianceReducedAggregation`; `Harmonic` is their step size.
- `RobustTracking`: the slower way, with gains that fall, `PowerGain`.

Where some nodes are bad:

- `RobustSGD`: workers' momentum and any rule, `CenteredClip` say; `clipping_radius` for that one.
- `MoNNA`: no server; each node averages the parameters nearest to its own; `StaircaseStepSize`,
  `reduction_constants` and `at_honest` go with it. `LEARN` is what it is compared with.

Layers whose experts are spread over the nodes, `expert_parallel`:

- `ScMoEPair`: talk that depends on an earlier layer only, and may run beside the next two.
- `DGMoEPair`: half of the talk does.
- `TopKMoE`, `SharedExpertMoE`: the baselines, whose talk everything waits for.
"""

from . import attacks, compression, robust
from .admm import (
    DecentralizedADMM,
)
from .algorithm import (
    AbstractGradientAlgorithm,
    AbstractNetworkAlgorithm,
    model_bits,
)
from .asynchronous_learning import (
    AsynchronousGossipLearning,
)
from .averaging import (
    RunningAverage,
)
from .centered_clipping import (
    RobustSGD,
    clipping_radius,
)
from .compressed_gossip import (
    CompressedGossip,
)
from .dadao import (
    DADAO,
    communication_rates,
    dadao_events,
    optimal_rates,
)
from .decentralized_gradient import (
    DecentralizedGradient,
)
from .dfedsam import (
    ChebyshevAverage,
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
from .exact_diffusion import (
    ExactDiffusion,
)
from .extra import (
    EXTRA,
)
from .gossip import (
    chebyshev_gossip,
    fast_mix,
)
from .gradient_tracking import (
    AdaptThenCombineTracking,
    GradientTracking,
)
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
from .hlo import (
    collective_bytes,
)
from .links import (
    DelayedLinks,
    GaussianNoise,
    LaplaceNoise,
    Quantized,
    lose_edges,
    receive,
)
from .local import (
    AbstractLocalSolver,
    LocalSAM,
    LocalSGD,
    Padded,
)
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
from .monna import (
    LEARN,
    MoNNA,
    StaircaseStepSize,
    at_honest,
    reduction_constants,
)
from .network import (
    Network,
)
from .overlap import (
    Overlap,
    overlap_report,
)
from .powersgd import (
    PowerMemory,
    PowerSGD,
    powersgd,
    sum_momentum,
)
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
from .run import (
    Run,
    consensus_distance,
    run,
)
from .scmoe import (
    DGMoEPair,
    ScMoEPair,
    SharedExpertMoE,
    TopKMoE,
    expert_parallel,
)
from .signum import (
    signum,
)
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
from .time_varying import (
    TimeVarying,
    b_connectivity,
    one_peer_exponential,
    random_matching,
)
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
from .vra_tracking import (
    VRADGT,
    VRADSGT,
    Harmonic,
    PowerGain,
    RobustTracking,
    VarianceReducedAggregation,
)
from .zeroth_order import (
    DecentralizedZerothOrder,
)

__all__ = [
    "DADAO",
    "EF14SGD",
    "EF21SGD",
    "EF21SGDM",
    "EXTRA",
    "LEARN",
    "VRADGT",
    "VRADSGT",
    "AbstractCompressedGradient",
    "AbstractGradientAlgorithm",
    "AbstractLocalSolver",
    "AbstractModelAverage",
    "AbstractNetworkAlgorithm",
    "AbstractWalk",
    "AcceleratedDGD",
    "AdaptThenCombineTracking",
    "AsynchronousGossipLearning",
    "AverageDirectionSAM",
    "Blocks",
    "BridgeSwap",
    "BufferedGossipLearning",
    "Chain",
    "ChebyshevAverage",
    "ChebyshevGossip",
    "CompressedGossip",
    "CompressedSGD",
    "CompressedState",
    "DGMoEPair",
    "DecentralizedADMM",
    "DecentralizedFederated",
    "DecentralizedGradient",
    "DecentralizedSGD",
    "DecentralizedZerothOrder",
    "DelayedLinks",
    "DistributedSGD",
    "DoubleEC",
    "ECApproximate",
    "ECIdeal",
    "EControl",
    "EigenStatus",
    "Events",
    "ExactDiffusion",
    "GaussianNoise",
    "GossipLearning",
    "GradientTracking",
    "Harmonic",
    "IndependentSampling",
    "Kind",
    "LaplaceNoise",
    "LocalSAM",
    "LocalSGD",
    "MoNNA",
    "MultipleGossip",
    "NesterovGossip",
    "Network",
    "NonBacktrackingWalk",
    "Overlap",
    "OwnerEigensolver",
    "Padded",
    "Partition",
    "PartitionedGossip",
    "PlainAverage",
    "PlainGossip",
    "PowerDecay",
    "PowerGain",
    "PowerMemory",
    "PowerSGD",
    "Quantized",
    "RandomRelabelling",
    "ReplicatedEigensolver",
    "RestartedGossip",
    "RobustSGD",
    "RobustTracking",
    "Run",
    "RunningAverage",
    "ScMoEPair",
    "SelfRepellentWalk",
    "ServerAverage",
    "SharedExpertMoE",
    "StaircaseStepSize",
    "SubspaceConstrainedSGD",
    "TimeVarying",
    "TokenHeavyBall",
    "TokenSGD",
    "TopKMoE",
    "VarianceCorrected",
    "VarianceReducedAggregation",
    "WalkState",
    "accelerated_gossip",
    "asymptotic_covariance",
    "at_honest",
    "attacks",
    "average_direction_expansion",
    "average_direction_gradient",
    "b_connectivity",
    "barbell",
    "best_constant",
    "binary_tree",
    "bridge_swap",
    "chebyshev_gossip",
    "chi",
    "chi_1",
    "chi_2",
    "clipping_radius",
    "closed_neighborhood",
    "collective_bytes",
    "communication_rates",
    "complete",
    "compressed_mean",
    "compression",
    "consensus_decay",
    "consensus_distance",
    "dadao_events",
    "dfedavg",
    "dfedsam",
    "dfedsam_mgs",
    "edge_list",
    "eigen_status",
    "erdos_renyi",
    "error_controlled",
    "expert_parallel",
    "exponential",
    "fast_mix",
    "fedavg",
    "fedsam",
    "grid",
    "hypercube",
    "independent_init",
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
    "overlap_report",
    "partition",
    "path",
    "poisson_events",
    "powersgd",
    "predictive_moments",
    "random_geometric",
    "random_matching",
    "random_regular",
    "random_walks",
    "receive",
    "reduction_constants",
    "ring",
    "robust",
    "run",
    "run_events",
    "sample_weights",
    "signum",
    "simple_random_walk",
    "smoothing_bound",
    "spectral_gap",
    "star",
    "sum_momentum",
    "torus",
    "trace_diversity",
    "variance_corrected_mean",
    "visit_covariance",
    "warmup_step_decay",
    "weight_diversity",
    "weighted_laplacian",
    "with_delays",
    "without_failed",
]
