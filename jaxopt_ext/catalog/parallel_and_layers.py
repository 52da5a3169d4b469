"""Rows of computations whose steps or layers are solved for at once."""

import jaxopt_ext as jxt

from .cases.blocks import BlockEpochCase
from .shapes import EstimatorRow, FunctionRow, Row, SolverRow

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
    EstimatorRow(
        "Convex two-layer ReLU network",
        "training.ConvexReLU",
        "Bai, Gautam, Sojoudi, Efficient Global Optimization of Two-layer ReLU Networks: "
        "Quadratic-time Algorithms and Adversarial Training, 2023, arXiv:2201.01965",
        # The programs over patterns, which take long to compile, are run by their own tests.
        lambda: jxt.training.ConvexReLU(
            penalty=0.5,
            solver=jxt.training.SampledNeurons(20, jxt.minimize.FISTA(tol=1e-7, max_steps=10_000)),
        ),
        task="real",
        system=("S007",),
        claim="training/convex_relu",
        opt_outs={
            "gradient": "its penalty is a number, and no solver of its own takes FISTA's place"
        },
    ),
)
