"""Rows of the network algorithms."""

import jaxopt_ext as jxt

from .shapes import NetworkRow

NETWORK: tuple[NetworkRow, ...] = (
    NetworkRow(
        "Gradient tracking (DIGing)",
        "distributed.GradientTracking",
        "Nedić, Olshevsky, Shi, Achieving Geometric Convergence for Distributed Optimization over "
        "Time-Varying Graphs, 2017, arXiv:1607.03218",
        lambda loss: jxt.distributed.GradientTracking(loss, 0.05),
        claim="distributed/gradient_tracking",
    ),
    NetworkRow(
        "Gradient tracking, adapt then combine",
        "distributed.AdaptThenCombineTracking",
        "Xu, Zhu, Soh, Xie, Augmented Distributed Gradient Methods for Multi-Agent Optimization, "
        "2015",
        lambda loss: jxt.distributed.AdaptThenCombineTracking(loss, 0.05),
        claim="distributed/gradient_tracking",
    ),
    NetworkRow(
        "EXTRA",
        "distributed.EXTRA",
        "Shi, Ling, Wu, Yin, EXTRA: An Exact First-Order Algorithm for Decentralized Consensus "
        "Optimization, 2015, arXiv:1404.6264",
        lambda loss: jxt.distributed.EXTRA(loss, 0.05),
        claim="distributed/gradient_tracking",
    ),
    NetworkRow(
        "Exact diffusion",
        "distributed.ExactDiffusion",
        "Yuan, Ying, Zhao, Sayed, Exact Diffusion for Distributed Optimization and Learning, "
        "2019, arXiv:1702.05122",
        lambda loss: jxt.distributed.ExactDiffusion(loss, 0.05),
        claim="distributed/gradient_tracking",
    ),
    NetworkRow(
        "Decentralized gradient descent",
        "distributed.DecentralizedGradient",
        "Nedić, Ozdaglar, Distributed Subgradient Methods for Multi-Agent Optimization, 2009",
        lambda loss: jxt.distributed.DecentralizedGradient(loss, 0.05),
        claim="distributed/gradient_tracking",
        opt_outs={"exact": "a constant step size leaves a bias; it is the baseline"},
    ),
    NetworkRow(
        "Decentralized ADMM",
        "distributed.DecentralizedADMM",
        "Shi, Ling, Yuan, Wu, Yin, On the Linear Convergence of the ADMM in Decentralized "
        "Consensus Optimization, 2014, arXiv:1307.5561",
        lambda loss: jxt.distributed.DecentralizedADMM(
            loss, 0.5, jxt.minimize.FISTA(tol=1e-10, max_steps=200)
        ),
        claim="distributed/decentralized_admm",
    ),
)
