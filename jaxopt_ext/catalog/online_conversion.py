"""Row of online-to-nonconvex conversion."""

import jaxopt_ext as jxt

from .shapes import SolverRow

ONLINE_CONVERSION: tuple[SolverRow, ...] = (
    SolverRow(
        "Online-to-nonconvex conversion",
        "stochastic.OnlineToNonconvex",
        "Cutkosky, Mehta, Orabona, Optimal Stochastic Non-smooth Non-convex Optimization through "
        "Online-to-Non-convex Conversion, 2023, arXiv:2302.03775",
        lambda: jxt.stochastic.OnlineToNonconvex(
            jxt.stochastic.OptimisticBall(0.2, 0.3, 2),
            1.0,
            5,
            jxt.stochastic.Midpoint(),
            tol=1e-6,
            max_steps=2000,
        ),
        system=("S143",),
        claim="stochastic/online_to_nonconvex",
        opt_outs={
            "problems": "FiniteSum, Expectation: the suite's have a nonsmooth part; asked in "
            "tests/stochastic/test_online_to_nonconvex.py"
        },
    ),
)
