"""Rows of the methods that have their rates proved beside them."""

import jaxopt_ext as jxt

from .shapes import SolverRow

_BOOK = "Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980"
_AVERAGED = (
    "its steps are those of a horizon, and averages of noisy points come no closer than their "
    "rate; tests/minimize/test_textbook.py holds them to it"
)
_SHRINKING = (
    "its steps shrink as 1/s, and so does the distance; tests/minimize/test_textbook.py holds it "
    "to its rate"
)
_PAIR = (20.0, 20.0)


def _row(name, public, example, paper=_BOOK, opt_outs=None):
    return SolverRow(
        name,
        f"minimize.textbook.{public}",
        paper,
        example,
        system=("S172",),
        claim="minimize/textbook",
        opt_outs=opt_outs or {},
    )


def _without(reason, *more):
    return {check: reason for check in ("oracle", "float32", "gradient", *more)}


TEXTBOOK_RATES: tuple[SolverRow, ...] = (
    _row(
        "Projected subgradient method",
        "ProjectedSubgradient",
        lambda: jxt.minimize.textbook.ProjectedSubgradient(20.0),
    ),
    _row(
        "Strongly convex subgradient method",
        "StronglyConvexSubgradient",
        lambda: jxt.minimize.textbook.StronglyConvexSubgradient(1.0),
        opt_outs=_without(_SHRINKING, "pytree"),
    ),
    _row(
        "Accelerated gradient, strongly convex",
        "StronglyConvexNesterov",
        lambda: jxt.minimize.textbook.StronglyConvexNesterov(4.0, 0.5),
    ),
    _row(
        "Geometric descent",
        "GeometricDescent",
        lambda: jxt.minimize.textbook.GeometricDescent(0.5),
        "Bubeck, Lee, Singh, A Geometric Alternative to Nesterov's Accelerated Gradient Descent, "
        "2015, arXiv:1506.08187",
    ),
    _row(
        "Mirror descent with fixed steps",
        "FixedMirrorDescent",
        lambda: jxt.minimize.textbook.FixedMirrorDescent(radius=16.0),
    ),
    _row(
        "Dual averaging",
        "DualAveraging",
        lambda: jxt.minimize.textbook.DualAveraging(radius=20.0),
    ),
    _row(
        "Mirror prox",
        "MirrorProx",
        lambda: jxt.minimize.textbook.MirrorProx(smoothness=4.0),
    ),
    _row(
        "Saddle point mirror descent",
        "SaddleMirrorDescent",
        lambda: jxt.minimize.textbook.SaddleMirrorDescent(radii=_PAIR),
    ),
    _row(
        "Saddle point mirror prox",
        "SaddleMirrorProx",
        lambda: jxt.minimize.textbook.SaddleMirrorProx(),
    ),
    # Steps short enough for problems in all units.
    _row(
        "Stochastic mirror descent",
        "StochasticMirrorDescent",
        lambda: jxt.minimize.textbook.StochasticMirrorDescent(radius=1e-4, batch=8),
        opt_outs=_without(_AVERAGED),
    ),
    _row(
        "Stochastic mirror descent, smooth",
        "SmoothStochasticMirrorDescent",
        lambda: jxt.minimize.textbook.SmoothStochasticMirrorDescent(
            radius=1e-4, smoothness=2.0, batch=8
        ),
        opt_outs=_without(_AVERAGED),
    ),
    _row(
        "SVRG",
        "SVRG",
        lambda: jxt.minimize.textbook.SVRG(4.0, 50),
    ),
    _row(
        "Stochastic saddle point mirror descent",
        "StochasticSaddleMirrorDescent",
        lambda: jxt.minimize.textbook.StochasticSaddleMirrorDescent(radii=_PAIR),
        opt_outs=_without(_AVERAGED),
    ),
    _row(
        "Stochastic saddle point mirror prox",
        "StochasticSaddleMirrorProx",
        lambda: jxt.minimize.textbook.StochasticSaddleMirrorProx(),
        opt_outs=_without(_AVERAGED),
    ),
)
