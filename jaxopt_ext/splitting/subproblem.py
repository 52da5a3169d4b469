"""How ADMM minimizes over one of its variables."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..core import AbstractSolver, Composite, Smooth, solve, tree
from ..core.operators import Map, dense, norm_bound


class AbstractUpdate(eqx.Module):
    """A way to find $\\arg\\min_x f(x) + \\tfrac{\\rho}{2} \\|A x - w\\|^2$."""

    @abc.abstractmethod
    def prepare(self, function: Any, operator: Map, x: PyTree[Array], penalty: Array) -> Any:
        """What can be computed once for a penalty."""

    @abc.abstractmethod
    def minimize(
        self,
        function: Any,
        operator: Map,
        x: PyTree[Array],
        target: PyTree[Array],
        penalty: Float[Array, ""],
        prepared: Any,
    ) -> tuple[PyTree[Array], Float[Array, ""]]:
        """The new value of the variable, from the last one, and the norm of what is left of the
        subproblem's residual: zero if it is solved exactly."""


class ProxUpdate(AbstractUpdate):
    """Exact, by the prox of $f$, for maps with $A^* A = c I$."""

    def prepare(self, function, operator, x, penalty):
        if operator.gram is None or not hasattr(function, "prox"):
            raise TypeError("ProxUpdate needs a function with a prox and a map with A*A = c I")

    def minimize(self, function, operator, x, target, penalty, prepared):
        gram = jnp.asarray(operator.gram, penalty.dtype)
        point = jax.tree.map(lambda a: a / gram.astype(a.real.dtype), operator.adjoint(target))
        return function.prox(point, 1 / (penalty * gram)), jnp.zeros_like(penalty)


class LinearizedUpdate(AbstractUpdate):
    """One proximal step on the linearized quadratic, for any map and any $f$ with a prox,

    $$x \\leftarrow \\mathrm{prox}_{f / (\\rho \\mu)}(x - A^*(Ax - w) / \\mu), \\qquad
      \\mu \\ge \\|A\\|^2 .$$
    """

    def prepare(self, function, operator, x, penalty):
        return norm_bound(operator, x) ** 2

    def minimize(self, function, operator, x, target, penalty, prepared):
        gap = operator.adjoint(jax.tree.map(jnp.subtract, operator(x), target))
        point = jax.tree.map(lambda a, g: a - g / prepared.astype(a.real.dtype), x, gap)
        new = function.prox(point, 1 / (penalty * prepared))
        # The subgradient that the step found is missing this much: rho (A*A - mu) (x+ - x).
        moved = jax.tree.map(jnp.subtract, new, x)
        left = tree.axpy(operator.adjoint(operator(moved)), -prepared, moved)
        return new, penalty * tree.norm(left)


class QuadraticUpdate(AbstractUpdate):
    """Exact, for a quadratic $f$ of real variables, by a Cholesky factor of
    $\\nabla^2 f + \\rho A^* A$ that is computed once for each penalty.

    With another $f$ the residual of the subproblem stays, and ADMM does not converge.

    **Raises:** `TypeError` for complex variables.
    """

    def prepare(self, function, operator, x, penalty):
        flat, unravel = ravel_pytree(x)
        if jnp.iscomplexobj(flat):
            raise TypeError("QuadraticUpdate needs real variables")
        value = lambda v: function(unravel(v))
        hessian = jax.hessian(value)(jnp.zeros_like(flat))
        matrix = dense(operator, x)
        system = hessian + penalty * matrix.T @ matrix
        gradient = jax.grad(value)(jnp.zeros_like(flat))
        return jax.scipy.linalg.cho_factor(system)[0], gradient

    def minimize(self, function, operator, x, target, penalty, prepared):
        factor, gradient = prepared
        pulled, unravel = ravel_pytree(operator.adjoint(target))
        rhs = penalty * pulled - gradient
        new = unravel(jax.scipy.linalg.cho_solve((factor, False), rhs))
        subproblem = _smooth(function, operator, target, penalty)
        return new, tree.norm(subproblem.residual(new))


class InexactUpdate(AbstractUpdate):
    """A few steps of another solver, started from the last value.

    **Arguments:**

    - `solver`: for `Composite` problems if $f$ has a prox, else for `Smooth` ones.
    """

    solver: AbstractSolver

    def prepare(self, function, operator, x, penalty):
        return None

    def minimize(self, function, operator, x, target, penalty, prepared):
        if hasattr(function, "prox"):
            subproblem = Composite(_Distance(operator, target, penalty), function)
        else:
            subproblem = _smooth(function, operator, target, penalty)
        new = solve(subproblem, self.solver, x).value
        return new, tree.norm(subproblem.residual(new))


class _Distance(eqx.Module):
    """$\\tfrac{\\rho}{2} \\|A x - w\\|^2$."""

    operator: Map
    target: PyTree[Array]
    penalty: Float[Array, ""]

    def __call__(self, x):
        gap = jax.tree.map(jnp.subtract, self.operator(x), self.target)
        return 0.5 * self.penalty * tree.vdot(gap, gap)


def _smooth(function, operator, target, penalty):
    distance = _Distance(operator, target, penalty)
    return Smooth(lambda x: function(x) + distance(x))


def choose(update: AbstractUpdate | None, function: Any, operator: Map) -> AbstractUpdate:
    """The given update, or the cheapest that fits the function and the map."""
    if update is not None:
        return update
    if not hasattr(function, "prox"):
        raise TypeError(
            "a function without a prox needs an update: QuadraticUpdate() or InexactUpdate(solver)"
        )
    return ProxUpdate() if operator.gram is not None else LinearizedUpdate()
