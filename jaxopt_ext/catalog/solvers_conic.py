"""Rows of solvers of conic programs, and of what is built on them."""

import jaxopt_ext as jxt

from .rows import Row, SolverRow

SOLVERS_CONIC: tuple[Row, ...] = (
    SolverRow(
        "Interior point",
        "minimize.InteriorPoint",
        "Nesterov, Todd, Self-Scaled Barriers and Interior-Point Methods for Convex Programming, "
        "1997",
        lambda: jxt.minimize.InteriorPoint(),
        claim="minimize/interior_point",
        opt_outs={"pytree": "a conic program is over one vector and its multipliers"},
    ),
)
