"""Rows of the coordinate methods of later papers."""

import jaxopt_ext as jxt

from .shapes import SolverRow

_CODER = (
    "Lin, Song, Diakonikolas, Accelerated Cyclic Coordinate Dual Averaging with Extrapolation for "
    "Composite Convex Optimization, 2023, arXiv:2303.16279"
)
_RATIOS = "Yuan, Coordinate Descent Methods for Fractional Minimization, 2023, arXiv:2201.12691"
_INNER = lambda: jxt.minimize.ProximalGradient(max_steps=5)  # short, as every step has some
_ONE_ARRAY = {"pytree": "blocks are the entries of the leading axis of one array"}

SOLVERS_COORDINATE: tuple[SolverRow, ...] = (
    SolverRow(
        "A-CODER",
        "minimize.ACODER",
        _CODER,
        lambda: jxt.minimize.ACODER(blocks=3, restart=True),
        system=("S074",),
        claim="minimize/acoder",
        opt_outs=_ONE_ARRAY,
    ),
    SolverRow(
        "Greedy block coordinate descent",
        "minimize.GreedyBlockCoordinateDescent",
        "Nutini, Laradji, Schmidt, Let's Make Block Coordinate Descent Converge Faster: Faster "
        "Greedy Rules, Message-Passing, Active-Set Complexity, and Superlinear Convergence, 2022, "
        "arXiv:1712.08859",
        lambda: jxt.minimize.GreedyBlockCoordinateDescent(
            jxt.minimize.VariableBlocks(2), update=jxt.minimize.BacktrackedGradientUpdate()
        ),
        system=("S012",),
        claim="minimize/greedy_blocks",
        opt_outs=_ONE_ARRAY,
    ),
    SolverRow(
        "VR-A-CODER",
        "minimize.VRACODER",
        _CODER,
        lambda: jxt.minimize.VRACODER(20, blocks=3, restart=True),
        system=("S074",),
        claim="minimize/acoder",
        opt_outs=_ONE_ARRAY,
    ),
    SolverRow(
        "Coordinate descent for ratios",
        "minimize.FractionalCoordinateDescent",
        _RATIOS,
        lambda: jxt.minimize.FractionalCoordinateDescent(),
        system=("S040",),
        claim="minimize/fractional",
        opt_outs=_ONE_ARRAY,
    ),
    SolverRow(
        "Dinkelbach's method",
        "minimize.Dinkelbach",
        _RATIOS,
        lambda: jxt.minimize.Dinkelbach(_INNER()),
        system=("S040",),
        claim="minimize/fractional",
    ),
)
