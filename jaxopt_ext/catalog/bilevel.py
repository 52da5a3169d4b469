"""Rows of the bilevel methods."""

import jaxopt_ext as jxt

from .rows import Row, SolverRow

BILEVEL: tuple[Row, ...] = (
    SolverRow(
        "Averaged method of multipliers",
        "bilevel.BAMM",
        "Liu, Liu, Yao, Zeng, Zhang, Averaged Method of Multipliers for Bi-Level Optimization "
        "without Lower-Level Strong Convexity, ICML 2023, arXiv:2302.03407",
        lambda: jxt.bilevel.BAMM(0.5, jxt.bilevel.PowerDecay(0.5, 0.25), x_step=0.25),
        claim="bilevel/bamm",
        system=("S050",),
    ),
)
