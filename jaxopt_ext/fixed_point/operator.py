"""Splitting methods seen as fixed-point problems."""

from jaxtyping import Array, PyTree

from ..core import AbstractProblem, AbstractSplittingSolver, FixedPoint


def fixed_point_of(
    problem: AbstractProblem, solver: AbstractSplittingSolver, u: PyTree[Array]
) -> FixedPoint:
    """The fixed-point problem of a splitting method, to be solved by Anderson, Halpern and others.

    ```python
    douglas_rachford = jxt.splitting.DouglasRachford()
    u = douglas_rachford.start(problem, x0)
    accelerated = jxt.solve(fixed_point_of(problem, douglas_rachford, u), Anderson(), u)
    x = douglas_rachford.read(problem, accelerated.value)
    ```

    **Arguments:**

    - `problem`: what is solved.
    - `solver`: a method with an `operator`; `solver.start(problem, x0)` makes a starting point,
      `solver.read(problem, u)` the solution from a fixed point.
    - `u`: a point shaped like the operator's.
    """
    if not isinstance(solver, AbstractSplittingSolver):
        raise TypeError(f"{type(solver).__name__} has no operator")
    return FixedPoint(solver.operator(problem, u))
