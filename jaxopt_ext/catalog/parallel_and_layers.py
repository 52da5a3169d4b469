"""Rows of computations whose steps or layers are solved for at once."""

import jaxopt_ext as jxt

from .cases.blocks import BlockEpochCase
from .rows import FunctionRow, Row, SolverRow

PARALLEL_AND_LAYERS: tuple[Row, ...] = (
    SolverRow(
        "Jacobi rounds",
        "fixed_point.Jacobi",
        "Song, Meng, Liao, Ermon, Accelerating Feedforward Computation via Parallel Nonlinear "
        "Equation Solving, 2021, arXiv:2002.03629",
        lambda: jxt.fixed_point.Jacobi(),
        system=("S088",),
        claim="fixed_point/feedforward",
    ),
    SolverRow(
        "Jacobi-Gauss-Seidel",
        "fixed_point.JacobiGaussSeidel",
        "Song, Meng, Liao, Ermon, Accelerating Feedforward Computation via Parallel Nonlinear "
        "Equation Solving, 2021, arXiv:2002.03629",
        lambda: jxt.fixed_point.JacobiGaussSeidel(block=2),
        system=("S088",),
        claim="fixed_point/feedforward",
    ),
    SolverRow(
        "Gauss-Seidel-Jacobi",
        "fixed_point.GaussSeidelJacobi",
        "Song, Meng, Liao, Ermon, Accelerating Feedforward Computation via Parallel Nonlinear "
        "Equation Solving, 2021, arXiv:2002.03629",
        lambda: jxt.fixed_point.GaussSeidelJacobi(block=3),
        system=("S088",),
        claim="fixed_point/feedforward",
    ),
    SolverRow(
        "Newton by a scan",
        "fixed_point.ScanNewton",
        "Song, Meng, Liao, Ermon, Accelerating Feedforward Computation via Parallel Nonlinear "
        "Equation Solving, 2021, arXiv:2002.03629",
        lambda: jxt.fixed_point.ScanNewton(),
        system=("S088",),
        claim="fixed_point/feedforward",
    ),
    FunctionRow(
        "Block coordinate descent for networks",
        "training.BlockCoordinateTraining",
        "Zeng, Lau, Lin, Yao, Global Convergence of Block Coordinate Descent in Deep Learning, "
        "2019, arXiv:1803.00225",
        BlockEpochCase,
        system=("S098",),
        claim="training/block_coordinate",
    ),
)
