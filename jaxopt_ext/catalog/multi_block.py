"""Rows of the bilevel methods that look at a few blocks in each step."""

import jaxopt_ext as jxt

from .shapes import SolverRow

_BSVRB = (
    "Hu, Qiu, Guo, Zhang, Yang, Blockwise Stochastic Variance-Reduced Methods with Parallel "
    "Speedup for Multi-Block Bilevel Optimization, ICML 2023, arXiv:2305.18730"
)
# Of all blocks and samples: with fewer the noise stays, whatever the tolerance.
MULTI_BLOCK: tuple[SolverRow, ...] = (
    SolverRow(
        "Blockwise stochastic variance-reduced bilevel method",
        "bilevel.BSVRB",
        _BSVRB,
        lambda: jxt.bilevel.BSVRB(
            0.3,
            0.5,
            blocks=None,
            batch=None,
            multiplier_set=None,
            tol=1e-6,
            max_steps=3000,
        ),
        claim="bilevel/multi_block",
        system=("S056",),
    ),
    SolverRow(
        "Blockwise stochastic variance-reduced bilevel method, Hessians",
        "bilevel.BSVRBHessian",
        _BSVRB,
        lambda: jxt.bilevel.BSVRBHessian(
            0.3, 0.5, blocks=None, batch=None, tol=1e-6, max_steps=3000
        ),
        claim="bilevel/multi_block",
        system=("S056",),
    ),
    SolverRow(
        "Randomized stochastic variance-reduced bilevel method",
        "bilevel.RSVRB",
        "Guo, Hu, Zhang, Yang, Randomized Stochastic Variance-Reduced Methods for Multi-Task "
        "Stochastic Bilevel Optimization, 2021, arXiv:2105.02266",
        lambda: jxt.bilevel.RSVRB(
            0.3, 0.5, blocks=None, batch=None, multiplier_set=None, tol=1e-6, max_steps=3000
        ),
        claim="bilevel/multi_block",
        system=("S056",),
    ),
    SolverRow(
        "Stochastic bilevel steps, many blocks",
        "bilevel.BlockwiseSGD",
        "Dagréou, Ablin, Vaiter, Moreau, A Framework for Bilevel Optimization that Enables "
        "Stochastic and Global Variance Reduction Algorithms, NeurIPS 2022, arXiv:2201.13409",
        lambda: jxt.bilevel.BlockwiseSGD(
            0.3, 0.5, blocks=None, batch=None, multiplier_set=None, tol=1e-6, max_steps=3000
        ),
        claim="bilevel/multi_block",
        system=("S056",),
    ),
)
