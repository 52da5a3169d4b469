"""What a solve returns."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree


class Status(eqx.Enumeration):
    """Why a solve stopped."""

    running = "The solver has not stopped."
    converged = "Converged: the residual is below the tolerance."
    step_limit = "Stopped at the step limit before reaching the tolerance."
    nonfinite = "Stopped on a NaN or infinity, in the data or made by divergence."
    infeasible = "The constraints contradict each other (primal infeasible)."
    unbounded = "The objective has no lower bound on the feasible set (dual infeasible)."
    breakdown = "The method cannot go on: what it assumes, convexity say, does not hold here."


class Solution(eqx.Module):
    """The result of `solve`.

    **Attributes:**

    - `value`: the solution, a pytree shaped like `x0`; derivatives flow through it.
    - `steps`: steps taken.
    - `residual`: the solver's error, the number compared with its `tol`.
    - `status`: a `Status`; under `vmap` one for each problem.
    - `state`: the solver's state, from which a later `solve` can go on.
    - `tol`: the solver's tolerance.
    - `gap`: a bound on the objective's distance from the best, relative to its size, from the
      solvers that have one; else `None`.
    - `trace`: what was recorded at each step, on a leading axis of length `max_steps`, or `None`.
      Entries behind the last step repeat it.
    """

    value: PyTree[Array]
    steps: Int[Array, ""]
    residual: Float[Array, ""]
    status: Status
    state: PyTree
    tol: Float[Array, ""] | None = None
    gap: Float[Array, ""] | None = None
    trace: Any = None

    def __str__(self) -> str:
        """What happened, in three lines."""
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(self)):
            return repr(self)
        status = np.asarray(self.status._value)
        kinds, counts = np.unique(status, return_counts=True)
        said = [Status._index_to_message[kind] for kind in kinds]
        if status.ndim:
            said = [
                f"{count} of {status.size}: {what}"
                for count, what in zip(counts, said, strict=True)
            ]
        steps, error = np.max(self.steps, initial=0), np.max(self.residual, initial=-np.inf)
        lines = [" ".join(said), f"{steps} steps" + (" at most" if status.ndim else "")]
        error_line = f"error {error:.3g}" + (" at most" if status.ndim else "")
        if self.tol is not None:
            error_line += f", tolerance {np.min(self.tol):.3g}"
        if self.gap is not None:
            error_line += f", duality gap {np.max(self.gap, initial=-np.inf):.3g}"
        if np.any(self.status == Status.step_limit) and self.tol is not None:
            error_line += f": {_times_the(self.tol, error)}{_ADVICE}"
        return "\n".join([*lines, error_line])


def _times_the(tol, error) -> str:
    tol = float(np.min(tol))
    return f"{error / tol:.3g} times the tolerance. " if tol > 0 else ""


_ADVICE = (
    "Go on with x0=solution.value and state=solution.state, raise max_steps, scale the data, "
    "or ask for less."
)
