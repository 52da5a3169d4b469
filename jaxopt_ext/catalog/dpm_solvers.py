"""Rows of the DPM-Solver family."""

import jaxopt_ext as jxt

from .cases.adaptive_sampling import AdaptiveSamplingCase
from .shapes import FunctionRow, Row, SamplerRow

_DPM_SOLVER = (
    "Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model "
    "Sampling in Around 10 Steps, 2022, arXiv:2206.00927"
)
_DPM_SOLVER_PP = (
    "Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver++: Fast Solver for Guided Sampling of Diffusion "
    "Probabilistic Models, 2022, arXiv:2211.01095"
)

DPM_SOLVERS: tuple[Row, ...] = (
    SamplerRow(
        "DPM-Solver",
        "diffusion.DPMSolver",
        _DPM_SOLVER,
        lambda: jxt.diffusion.DPMSolver(),
        claim="diffusion/dpm_solver",
        system=("S155",),
        order=3,
        counts=(40, 80),
    ),
    FunctionRow(
        "Adaptive DPM-Solver",
        "diffusion.sample_adaptive",
        _DPM_SOLVER,
        AdaptiveSamplingCase,
        claim="diffusion/dpm_solver",
        system=("S155",),
        opt_outs={"gradient": "steps are chosen in the run and count as fixed in derivatives"},
    ),
    SamplerRow(
        "DPM-Solver++",
        "diffusion.DPMSolverPP",
        _DPM_SOLVER_PP,
        lambda: jxt.diffusion.DPMSolverPP(),
        claim="diffusion/dpm_solver_pp",
        system=("S069",),
        order=2,
    ),
    SamplerRow(
        "SDE-DPM-Solver++",
        "diffusion.SDEDPMSolverPP",
        _DPM_SOLVER_PP,
        lambda: jxt.diffusion.SDEDPMSolverPP(),
        claim="diffusion/dpm_solver_pp",
        system=("S069",),
        opt_outs={
            "law": "costly; mean and covariance are held exactly on Gaussian data, and on the "
            "mixture in a slow test, in tests/diffusion/test_dpm_solver_pp.py"
        },
    ),
)
