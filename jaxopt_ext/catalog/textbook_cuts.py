"""Rows of cutting planes, barriers, random walks and rounding."""

import jaxopt_ext as jxt

from .cases.cuts import LargestCutCase
from .shapes import FunctionRow, Row, SolverRow

_BOOK = "Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980"
_INTERIOR = (
    "Constrained: the suite's simplex has no interior; tests/minimize/test_cutting_plane.py asks "
    "balls and boxes"
)
_ROUGH = (
    "function values tell a minimizer no better than the square root of the precision; "
    "tests/minimize/test_random_walk.py asks within that"
)

TEXTBOOK_CUTS: tuple[Row, ...] = (
    SolverRow(
        "Ellipsoid method",
        "minimize.textbook.Ellipsoid",
        f"{_BOOK}; Nemirovski, Yudin, Problem Complexity and Method Efficiency in Optimization, "
        "1983",
        lambda: jxt.minimize.textbook.Ellipsoid(5.0),
        system=("S172",),
        claim="minimize/cutting_plane",
        opt_outs={"problems": _INTERIOR},
    ),
    SolverRow(
        "Vaidya's cutting plane method",
        "minimize.textbook.Vaidya",
        f"{_BOOK}; Vaidya, A New Algorithm for Minimizing Convex Functions over Convex Sets, 1996",
        lambda: jxt.minimize.textbook.Vaidya(5.0, newton_steps=3),
        system=("S172",),
        claim="minimize/cutting_plane",
        opt_outs={"problems": _INTERIOR},
    ),
    SolverRow(
        "Barrier method",
        "minimize.textbook.BarrierMethod",
        f"{_BOOK}; Nesterov, Nemirovskii, Interior-Point Polynomial Algorithms in Convex "
        "Programming, 1994",
        lambda: jxt.minimize.textbook.BarrierMethod(jxt.minimize.LongStep(), weight=0.1),
        system=("S172",),
        claim="minimize/interior_point",
        opt_outs={"pytree": "a conic program is over one vector and its multipliers"},
    ),
    SolverRow(
        "Center of gravity, by random walks",
        "minimize.textbook.CenterOfGravity",
        f"{_BOOK}; Levin, On an Algorithm for the Minimization of Convex Functions, 1965; "
        "Bertsimas, Vempala, Solving Convex Programs by Random Walks, 2004",
        # With steps to its end: roundings grow tenfold in three cuts, as walks are chaotic, so that
        # batches and devices agree to what the solve is good for.
        lambda: jxt.minimize.textbook.CenterOfGravity(
            5.0, jxt.minimize.textbook.SampledCentroid(24, 5, 24), max_steps=120
        ),
        system=("S172",),
        opt_outs={"problems": _INTERIOR},
    ),
    SolverRow(
        "Simulated annealing by hit-and-run",
        "minimize.textbook.SimulatedAnnealing",
        f"{_BOOK}; Kalai, Vempala, Simulated Annealing for Convex Optimization, 2006",
        lambda: jxt.minimize.textbook.SimulatedAnnealing(
            5.0, 10.0, num_chains=12, num_steps=4, max_steps=40
        ),
        system=("S172",),
        opt_outs={
            **{check: _ROUGH for check in ("oracle", "float32", "pytree", "gradient")},
            "problems": _INTERIOR.replace("cutting_plane", "random_walk"),
        },
    ),
    FunctionRow(
        "Maximum cut by hyperplane rounding",
        "minimize.textbook.max_cut",
        f"{_BOOK}; Goemans, Williamson, Improved Approximation Algorithms for Maximum Cut and "
        "Satisfiability Problems Using Semidefinite Programming, 1995",
        lambda: LargestCutCase(jxt.minimize.textbook.BurerMonteiro()),
        system=("S172",),
        claim="minimize/max_cut",
    ),
)
