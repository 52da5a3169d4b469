"""Rows of solvers of conic programs, and of what is built on them."""

import jaxopt_ext as jxt

from .cases.lipschitz import LipschitzCase
from .shapes import FunctionRow, Row, SolverRow

SOLVERS_CONIC: tuple[Row, ...] = (
    SolverRow(
        "Interior point",
        "minimize.InteriorPoint",
        "Nesterov, Todd, Self-Scaled Barriers and Interior-Point Methods for Convex Programming, "
        "1997",
        lambda: jxt.minimize.InteriorPoint(),
        claim="minimize/interior_point",
        system=("S172",),
        opt_outs={"pytree": "a conic program is over one vector and its multipliers"},
    ),
    FunctionRow(
        "LipSDP with constraints of sorted groups",
        "minimize.lipschitz_bound",
        "Pauli et al., Novel Quadratic Constraints for Extending LipSDP beyond Slope-Restricted "
        "Activations, ICLR 2024, arXiv:2401.14033",
        LipschitzCase,
        opt_outs={"single": "slow to compile again; its own tests look at single precision"},
        claim="minimize/lipsdp",
        system=("S156",),
    ),
    SolverRow(
        "Exact augmented Lagrangian with sketched Newton steps",
        "minimize.SketchedSQP",
        "Hong, Na, Mahoney, Kolar, Constrained Optimization via Exact Augmented Lagrangian and "
        "Randomized Iterative Sketching, ICML 2023, arXiv:2305.18379",
        lambda: jxt.minimize.SketchedSQP(max_sketches=300),
        claim="minimize/sketched_sqp",
        system=("S054",),
        opt_outs={"problems": "NonlinearProgram: the suite's has inequalities"},
    ),
    SolverRow(
        "Augmented Lagrangian",
        "minimize.AugmentedLagrangian",
        "Hestenes, Multiplier and Gradient Methods, 1969",
        lambda: jxt.minimize.AugmentedLagrangian(jxt.minimize.FISTA(max_steps=500)),
        claim="minimize/sketched_sqp",
        system=("S054",),
    ),
)
