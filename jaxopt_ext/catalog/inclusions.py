"""Rows of the solvers of inclusions, and of asynchronous ones."""

import jaxopt_ext as jxt

from .shapes import SolverRow

_SADDLE = (
    "Khalafi, Boob, Accelerated Primal-Dual Methods for Convex-Strongly-Concave Saddle Point "
    "Problems, ICML 2023, arXiv:2209.04604"
)

_OF_A_HORIZON = {
    name: "the gap of its mean falls as 1/K^2, so the tight tolerance of this check is out of "
    "reach; tests/games/test_primal_dual.py holds it to its rate"
    for name in ("oracle", "gradient", "vmap")
}

INCLUSIONS: tuple[SolverRow, ...] = (
    SolverRow(
        "Extragradient",
        "games.Extragradient",
        "Korpelevich, The Extragradient Method for Finding Saddle Points and Other Problems, 1976",
        lambda: jxt.games.Extragradient(),
        claim="games/extragradient",
    ),
    SolverRow(
        "Optimistic gradient",
        "games.OptimisticGradient",
        "Popov, A Modification of the Arrow-Hurwicz Method for Search of Saddle Points, 1980",
        lambda: jxt.games.OptimisticGradient(),
        claim="games/extragradient",
    ),
    SolverRow(
        "Forward-reflected-backward splitting",
        "games.ForwardReflectedBackward",
        "Malitsky, Tam, A Forward-Backward Splitting Method for Monotone Inclusions Without "
        "Cocoercivity, 2020, arXiv:1808.04162",
        lambda: jxt.games.ForwardReflectedBackward(),
        claim="games/extragradient",
    ),
    SolverRow(
        "Anchored extragradient",
        "games.AnchoredExtragradient",
        "Yoon, Ryu, Accelerated Algorithms for Smooth Convex-Concave Minimax Problems, 2021, "
        "arXiv:2102.07922",
        lambda: jxt.games.AnchoredExtragradient(),
        claim="games/extragradient",
        opt_outs={
            name: "its residual falls as 1/k, so the tight tolerance of this check is out of reach"
            for name in ("oracle", "pytree", "gradient", "vmap", "float32")
        },
    ),
    SolverRow(
        "Gradient descent ascent",
        "games.GradientDescentAscent",
        "Arrow, Hurwicz, Uzawa, Studies in Linear and Non-Linear Programming, 1958",
        lambda: jxt.games.GradientDescentAscent(),
        claim="games/extragradient",
    ),
    SolverRow(
        "Accelerated linearized primal-dual method (ALPD)",
        "games.AcceleratedLinearizedPrimalDual",
        _SADDLE,
        lambda: jxt.games.AcceleratedLinearizedPrimalDual(0.5),
        claim="games/primal_dual",
        system=("S020",),
        opt_outs=_OF_A_HORIZON,
    ),
    SolverRow(
        "Inexact accelerated primal-dual method",
        "games.InexactAcceleratedPrimalDual",
        _SADDLE,
        lambda: jxt.games.InexactAcceleratedPrimalDual(0.5),
        claim="games/primal_dual",
        system=("S020",),
        opt_outs=_OF_A_HORIZON,
    ),
    SolverRow(
        "Linearized primal-dual method (LPD)",
        "games.LinearizedPrimalDual",
        _SADDLE,
        lambda: jxt.games.LinearizedPrimalDual(0.5),
        claim="games/primal_dual",
        system=("S020",),
        opt_outs=_OF_A_HORIZON,
    ),
    SolverRow(
        "DEGAS",
        "fixed_point.DelayAgnostic",
        "Wu, Liu, Magnússon, Johansson, Delay-Agnostic Asynchronous Coordinate Update Algorithm, "
        "2023, arXiv:2305.08535",
        lambda: jxt.fixed_point.DelayAgnostic(jxt.fixed_point.UniformDelay(4)),
        opt_outs={"pytree": "blocks are on one leading axis of all leaves"},
        claim="fixed_point/degas",
        system=("S006",),
    ),
    SolverRow(
        "ARock",
        "fixed_point.ARock",
        "Peng, Xu, Yan, Yin, ARock: an Algorithmic Framework for Asynchronous Parallel Coordinate "
        "Updates, 2016, arXiv:1506.02396",
        lambda: jxt.fixed_point.ARock(jxt.fixed_point.UniformDelay(2), averaging=0.4),
        opt_outs={"pytree": "blocks are on one leading axis of all leaves"},
        claim="fixed_point/degas",
    ),
)
