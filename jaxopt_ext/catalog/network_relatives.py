"""Rows of the relatives and baselines of network algorithms, made of the same parts."""

import functools

import jax
import jax.numpy as jnp

from jaxopt_ext import distributed
from jaxopt_ext.distributed import attacks, compression
from jaxopt_ext.distributed.algorithm import model_bits

from .network_compressed import gathered
from .shapes import NetworkRow

_GAO = (
    "Gao, Islamov, Stich, EControl: Fast Distributed Optimization with Compression and Error "
    "Control, 2024, arXiv:2311.05645"
)
_TOP = compression.TopK(1)
_row = functools.partial(NetworkRow, relative=True)
_compressed = functools.partial(_row, claim="distributed/econtrol", collectives=gathered)
_averaging = functools.partial(_row, claim="distributed/variance_corrected")
_STALLS = {"exact": "what is not sent is lost, or comes late, where nodes differ"}
_BIAS = {"exact": "local steps apart from the others leave a bias"}


def _local():
    """Made where it is used: arrays of a module would begin JAX before several processes meet."""
    return distributed.LocalSGD(0.02, 3)


def _zeros(*batch):
    """A point of the suite's task, or one for each node; which is no optimum."""
    return {"a": jnp.zeros((*batch, 1)), "b": jnp.zeros((*batch, 3))}


def _meetings(loss):
    events = distributed.poisson_events(
        jax.random.key(0), distributed.ring(8), 40.0, node_rates=0.0
    )
    return distributed.AsynchronousGossipLearning(loss, _local(), events.blocks(8))


def _rows_of_a_meeting(params, network):
    """In the loop's body: the models of two nodes, and the data of both."""
    return {"all-reduce": 2 * model_bits(params) // 8 + 2 * 4 * 30}


NETWORK_RELATIVES: tuple[NetworkRow, ...] = (
    _compressed(
        "EF21",
        "distributed.EF21SGD",
        "Richtárik, Sokolov, Fatkhullin, EF21: A New, Simpler, Theoretically Better, and "
        "Practically Faster Error Feedback, 2021, arXiv:2106.05203",
        lambda loss: distributed.EF21SGD(loss, 0.1, _TOP),
    ),
    _compressed(
        "EF21 with momentum",
        "distributed.EF21SGDM",
        "Fatkhullin, Tyurin, Richtárik, Momentum Provably Improves Error Feedback!, 2023, "
        "arXiv:2305.15155",
        lambda loss: distributed.EF21SGDM(loss, 0.05, _TOP, 0.5),
    ),
    _compressed(
        "EF14",
        "distributed.EF14SGD",
        "Karimireddy, Rebjock, Stich, Jaggi, Error Feedback Fixes SignSGD and other Gradient "
        "Compression Schemes, 2019, arXiv:1901.09847",
        lambda loss: distributed.EF14SGD(loss, 0.05, _TOP),
        opt_outs=_STALLS,
    ),
    _compressed(
        "Compressed SGD",
        "distributed.CompressedSGD",
        "Alistarh, Grubic, Li, Tomioka, Vojnovic, QSGD: Communication-Efficient SGD via Gradient "
        "Quantization and Encoding, 2017, arXiv:1610.02132",
        lambda loss: distributed.CompressedSGD(loss, 0.05, _TOP),
        opt_outs=_STALLS,
    ),
    _compressed(
        "Error compensation with two messages",
        "distributed.DoubleEC",
        _GAO,
        lambda loss: distributed.DoubleEC(loss, 0.1, _TOP),
        collectives=lambda params, network: {"all-reduce": 2 * network.size * (4 + 4 + 2)},
    ),
    _compressed(
        "Error compensation that knows the optimum",
        "distributed.ECIdeal",
        _GAO,
        lambda loss: distributed.ECIdeal(loss, 0.05, _TOP, _zeros()),
        opt_outs={"exact": "it is told a point that is not the optimum of the suite's task"},
    ),
    _compressed(
        "Error compensation with a guess",
        "distributed.ECApproximate",
        _GAO,
        lambda loss: distributed.ECApproximate(loss, 0.05, _TOP, _zeros(8)),
        opt_outs={"exact": "it stops as near to the optimum as its guess is"},
    ),
    _row(
        "Robust gradient tracking",
        "distributed.RobustTracking",
        "Pu, A Robust Gradient Tracking Method for Distributed Optimization over Directed "
        "Networks, 2020, arXiv:2003.13980",
        lambda loss: distributed.RobustTracking(loss, distributed.Harmonic(8.0)),
        claim="distributed/vra_tracking",
        opt_outs={"exact": "on two timescales it is slow"},
    ),
    _row(
        "LEARN",
        "distributed.LEARN",
        "El-Mhamdi, Farhadkhani, Guerraoui, Guirguis, Hoang, Rouault, Collaborative Learning in "
        "the Jungle (Decentralized, Byzantine, Heterogeneous, Asynchronous and Nonconvex "
        "Learning), 2021, arXiv:2008.00742",
        lambda loss: distributed.LEARN(loss, 0.1, 1, attack=attacks.Gaussian(1, 10.0), faulty=(3,)),
        claim="distributed/monna",
        graph=distributed.complete,
        # Momenta and parameters; the compiler makes sums of such small gathers.
        collectives=lambda params, network: {
            "all-reduce": 2 * network.size * model_bits(params) // 8
        },
        opt_outs={"exact": "it drops what is far, and the nodes' data differ; one node is bad"},
    ),
    _averaging(
        "Gossip learning with a buffer",
        "distributed.BufferedGossipLearning",
        "Tian, Al-Ars, Kitsak, Hofstee, Vanishing Variance Problem in Fully Decentralized "
        "Neural-Network Systems, 2024, arXiv:2404.04616",
        lambda loss: distributed.BufferedGossipLearning(loss, _local(), 3),
        opt_outs=_BIAS,
    ),
    _averaging(
        "Gossip learning by parts",
        "distributed.PartitionedGossip",
        "Hegedűs, Danner, Jelasity, Decentralized Learning Works: An Empirical Comparison of "
        "Gossip Learning and Federated Learning, 2021",
        lambda loss: distributed.PartitionedGossip(loss, _local(), 2),
        opt_outs=_BIAS,
    ),
    _averaging(
        "Asynchronous gossip learning",
        "distributed.AsynchronousGossipLearning",
        "Ormándi, Hegedűs, Jelasity, Gossip Learning with Linear Models on Fully Distributed "
        "Data, 2013, arXiv:1109.1396",
        _meetings,
        collectives=_rows_of_a_meeting,
        opt_outs=_BIAS,
    ),
)
