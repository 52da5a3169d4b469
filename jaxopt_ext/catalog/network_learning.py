"""Rows of network algorithms that learn from stochastic gradients."""

import jaxopt_ext as jxt
from jaxopt_ext.distributed import model_bits

from .shapes import NetworkRow

_ZHU = (
    "Zhu, He, Chen, Song, Tao, Decentralized SGD and Average-direction SAM are Asymptotically "
    "Equivalent, 2023, arXiv:2306.02913"
)


def _once(params, network):
    """Gossip steps are a loop, whose body counts once."""
    return {"collective-permute": network.max_degree * model_bits(params) // 8}


NETWORK_LEARNING: tuple[NetworkRow, ...] = (
    NetworkRow(
        "Distributed SGD with decaying weights",
        "distributed.DistributedSGD",
        "Swenson, Murray, Poor, Kar, Distributed Stochastic Gradient Descent: Nonconvexity, "
        "Nonsmoothness, and Convergence to Local Minima, 2022, arXiv:2003.02818",
        lambda loss: jxt.distributed.DistributedSGD(
            loss,
            jxt.distributed.PowerDecay(0.1, 0.8),
            jxt.distributed.PowerDecay(0.25, 0.3),
            noise_scale=0.1,
        ),
        claim="distributed/dsgd",
        system=("S047",),
        opt_outs={"exact": "its weights decay, and nodes come together at a power of the round"},
    ),
    NetworkRow(
        "Decentralized SGD (D-SGD)",
        "distributed.DecentralizedSGD",
        _ZHU,
        lambda loss: jxt.distributed.DecentralizedSGD(
            loss, jxt.distributed.warmup_step_decay(0.05, 1500, 10)
        ),
        claim="distributed/dsgd_flatness",
        system=("S082",),
        opt_outs={"exact": "it stops at a bias of the order of its step size"},
    ),
    NetworkRow(
        "DFedSAM and DFedSAM-MGS",
        "distributed.DecentralizedFederated",
        "Shi, Shen, Wei, Sun, Yuan, Wang, Tao, Improving the Model Consistency of Decentralized "
        "Federated Learning, 2023, arXiv:2302.04083",
        lambda loss: jxt.distributed.dfedsam_mgs(
            loss, 0.02, 3, gossip_steps=4, rho=0.1, batch_size=None, momentum=0.5
        ),
        claim="distributed/dfedsam",
        system=("S031",),
        opt_outs={"exact": "local steps apart from the others leave a bias"},
        collectives=_once,
    ),
    NetworkRow(
        "Variance-corrected model averaging",
        "distributed.GossipLearning",
        "Tian, Al-Ars, Kitsak, Hofstee, Vanishing Variance Problem in Fully Decentralized "
        "Neural-Network Systems, 2024, arXiv:2404.04616",
        lambda loss: jxt.distributed.GossipLearning(loss, jxt.distributed.LocalSGD(0.02, 3)),
        claim="distributed/variance_corrected",
        system=("S032",),
        opt_outs={"exact": "local steps apart from the others leave a bias"},
    ),
)
