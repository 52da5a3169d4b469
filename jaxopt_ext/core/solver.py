"""The contract of solvers."""

import abc
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from . import checks
from .problem import AbstractProblem
from .solution import Status

Problem = TypeVar("Problem", bound=AbstractProblem)
State = TypeVar("State")


if TYPE_CHECKING:
    Scalar: TypeAlias = Any  # a number to who makes a solver, an array to the solver itself
else:
    Scalar = Float[Array, ""]


def scalar_field(default: float | None) -> Any:
    """A hyperparameter kept as an array leaf, or `None`: a new value does not retrace."""
    return eqx.field(converter=checks.scalar, default=default)


class AbstractSolver(eqx.Module, Generic[Problem, State]):
    """A pure step and the error that tells when to stop.

    **Attributes:**

    - `tol`: the solve ends when `error` is at most this.
    - `max_steps`: the solve ends after this many steps; static.
    - `problems`: the problem types the solver takes.
    """

    if TYPE_CHECKING:  # type checkers take equinox's abstract variables for fields
        tol: ClassVar[Scalar]
        max_steps: ClassVar[int]
        problems: ClassVar[tuple[type[AbstractProblem], ...]]
    else:
        tol: eqx.AbstractVar[Scalar]
        max_steps: eqx.AbstractVar[int]
        problems: eqx.AbstractClassVar[tuple[type[AbstractProblem], ...]]

    def __check_init__(self):
        checks.nonnegative("tol", self.tol)
        checks.count("max_steps", self.max_steps)

    @abc.abstractmethod
    def init(self, problem: Problem, x: PyTree[Array], key: PRNGKeyArray) -> State:
        """The state before the first step."""

    @abc.abstractmethod
    def step(self, problem: Problem, x: PyTree[Array], state: State) -> tuple[PyTree[Array], State]:
        """One iteration."""

    @abc.abstractmethod
    def error(self, problem: Problem, x: PyTree[Array], state: State) -> Float[Array, ""]:
        """The scalar compared with `tol`, after a step."""

    def status(self, problem: Problem, x: PyTree[Array], state: State) -> Status:
        """`Status.running`, or a certificate that the problem has no solution."""
        return Status.running

    def gap(self, problem: Problem, x: PyTree[Array], state: State) -> Float[Array, ""] | None:
        """How far the objective of the value can be from the best, relative to its size, where the
        method knows; reported with the solution."""
        return None

    def refresh(self, problem: Problem, x: PyTree[Array], state: State) -> State:
        """Recompute whatever `state` caches from `problem`, a factorization say.

        Called when a solve starts from a given state, whose problem may have been another, and by
        `last_step`, which is differentiated.
        """
        return state

    def finish(
        self, problem: Problem, x: PyTree[Array], state: State
    ) -> tuple[PyTree[Array], State]:
        """Run once behind the last step: polishing, averaging.

        `error` is asked again if it gives another state.
        """
        return x, state

    def last_step(self, problem: Problem, x: PyTree[Array], state: State) -> PyTree[Array]:
        """The value one step beyond `x`, whose derivative in the problem `OneStepAdjoint` takes.

        Override it where the value of `step` was fixed by the step before.
        """
        x, state = self.step(problem, x, self.refresh(problem, x, state))
        return self.finish(problem, x, state)[0]


class AbstractSplittingSolver(AbstractSolver[Problem, State]):
    """A solver that is the iteration of one operator.

    `operator(problem, u)` is a function T of the governing variable with T(u*) = u* exactly at
    solutions; `start` and `read` move between it and the user's `x`. Acceleration, noise and
    asynchrony are wrappers around T.
    """

    @abc.abstractmethod
    def operator(self, problem: Problem, u: PyTree[Array]) -> Any:
        """The map u -> T(u), a pure function on pytrees.

        What it needs once, a factorization or a norm, is computed here; of `u` only shapes and
        precision are used."""

    @abc.abstractmethod
    def start(self, problem: Problem, x: PyTree[Array]) -> PyTree[Array]:
        """A governing variable from a starting point."""

    @abc.abstractmethod
    def read(self, problem: Problem, u: PyTree[Array]) -> PyTree[Array]:
        """The solution that belongs to a fixed point of the operator."""


__all__ = ["AbstractSolver", "AbstractSplittingSolver", "Scalar", "scalar_field"]
