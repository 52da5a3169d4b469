"""Splitting methods seen as fixed-point problems."""

from ..core import AbstractProblem, AbstractSplittingSolver, FixedPoint


def fixed_point_of(problem: AbstractProblem, solver: AbstractSplittingSolver) -> FixedPoint:
    """The fixed-point problem of a splitting method, to be solved by Anderson, Halpern and others.

    ```python
    douglas_rachford = jxt.splitting.DouglasRachford()
    accelerated = jxt.solve(fixed_point_of(problem, douglas_rachford), Anderson(), u0)
    x = douglas_rachford.read(problem, accelerated.value)
    ```

    **Arguments:**

    - `problem`: what is solved.
    - `solver`: a method with an `operator`; `solver.start(problem, x0)` makes a starting point,
      `solver.read(problem, u)` the solution from a fixed point.
    """
    if not isinstance(solver, AbstractSplittingSolver):
        raise TypeError(f"{type(solver).__name__} has no operator")
    return FixedPoint(solver.operator(problem))
