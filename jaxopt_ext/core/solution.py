"""What a solve returns."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, Int, PyTree


class Status(eqx.Enumeration):
    """Why a solve stopped."""

    running = "The solver has not stopped."
    converged = "Converged: the residual is below the tolerance."
    step_limit = "Stopped at the step limit before reaching the tolerance."
    nonfinite = "Stopped on a NaN or infinity, in the data or made by divergence."
    infeasible = "The constraints contradict each other (primal infeasible)."
    unbounded = "The objective has no lower bound on the feasible set (dual infeasible)."


class Solution(eqx.Module):
    """The result of `solve`.

    **Attributes:**

    - `value`: the solution, a pytree shaped like `x0`; derivatives flow through it.
    - `steps`: steps taken.
    - `residual`: the solver's error, the number compared with its `tol`.
    - `status`: a `Status`; under `vmap` one for each problem.
    - `state`: the solver's state, from which a later `solve` can go on.
    - `trace`: what was recorded at each step, on a leading axis of length `max_steps`, or `None`.
      Entries behind the last step repeat it.
    """

    value: PyTree[Array]
    steps: Int[Array, ""]
    residual: Float[Array, ""]
    status: Status
    state: PyTree
    trace: Any = None
