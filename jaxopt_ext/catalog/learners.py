"""Rows of online learners."""

import jaxopt_ext as jxt

from .shapes import LearnerRow

_CONVERSION = (
    "Cutkosky, Mehta, Orabona, Optimal Stochastic Non-smooth Non-convex Optimization through "
    "Online-to-Non-convex Conversion, 2023, arXiv:2302.03775"
)

LEARNERS: tuple[LearnerRow, ...] = (
    LearnerRow(
        "Online gradient descent in a ball",
        "stochastic.BallGradientDescent",
        "Zinkevich, Online Convex Programming and Generalized Infinitesimal Gradient Ascent, 2003",
        lambda: jxt.stochastic.BallGradientDescent(0.5, 0.02),
        system=("S143",),
    ),
    LearnerRow(
        "Optimistic gradient descent in a ball",
        "stochastic.OptimisticBall",
        _CONVERSION,
        lambda: jxt.stochastic.OptimisticBall(0.5, 0.02, 3),
        system=("S143",),
    ),
    LearnerRow(
        "Online gradient descent in a box",
        "stochastic.BoxGradientDescent",
        _CONVERSION,
        lambda: jxt.stochastic.BoxGradientDescent(0.5, 0.02),
        system=("S143",),
    ),
    LearnerRow(
        "AdaGrad in a box",
        "stochastic.BoxAdaGrad",
        "Duchi, Hazan, Singer, Adaptive Subgradient Methods for Online Learning and Stochastic "
        "Optimization, 2011; " + _CONVERSION,
        lambda: jxt.stochastic.BoxAdaGrad(0.5),
        system=("S143",),
    ),
)
