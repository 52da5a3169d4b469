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
    ) -> PyTree[Array]:
        """The new value of the variable, from the last one."""


class ProxUpdate(AbstractUpdate):
    """Exact, by the prox of $f$, for maps with $A^* A = c I$."""

    def prepare(self, function, operator, x, penalty):
        if operator.gram is None or not hasattr(function, "prox"):
            raise TypeError("ProxUpdate needs a function with a prox and a map with A*A = c I")

    def minimize(self, function, operator, x, target, penalty, prepared):
        gram = jnp.asarray(operator.gram, penalty.dtype)
        point = jax.tree.map(lambda a: a / gram.astype(a.real.dtype), operator.adjoint(target))
        return function.prox(point, 1 / (penalty * gram))


class LinearizedUpdate(AbstractUpdate):
    """One proximal step on the linearized quadratic, for any map and any $f$ with a prox,

    $$x \\leftarrow \\mathrm{prox}_{f / (\\rho \\mu)}(x - A^*(Ax - w) / \\mu), \\qquad
      \\mu \\ge \\|A\\|^2 .$$
    """

    def prepare(self, function, operator, x, penalty):
        return norm_bound(operator, x) ** 2

    def minimize(self, function, operator, x, target, penalty, prepared):
        gap = operator.adjoint(jax.tree.map(jnp.subtract, operator(x), target))
        moved = jax.tree.map(lambda a, g: a - g / prepared.astype(a.real.dtype), x, gap)
        return function.prox(moved, 1 / (penalty * prepared))


class QuadraticUpdate(AbstractUpdate):
    """Exact, for a quadratic $f$, by a Cholesky factor of $\\nabla^2 f + \\rho A^* A$ that is
    computed once for each penalty."""

    def prepare(self, function, operator, x, penalty):
        flat, unravel = ravel_pytree(x)
        hessian = jax.hessian(lambda v: function(unravel(v)))(jnp.zeros_like(flat))
        matrix = dense(operator, x)
        system = hessian + penalty * matrix.T @ matrix
        gradient = jax.grad(lambda v: function(unravel(v)))(jnp.zeros_like(flat))
        return jax.scipy.linalg.cho_factor(system)[0], gradient

    def minimize(self, function, operator, x, target, penalty, prepared):
        factor, gradient = prepared
        pulled, unravel = ravel_pytree(operator.adjoint(target))
        rhs = penalty * pulled - gradient
        return unravel(jax.scipy.linalg.cho_solve((factor, False), rhs))


class InexactUpdate(AbstractUpdate):
    """A few steps of another solver, started from the last value.

    **Arguments:**

    - `solver`: for `Composite` problems if $f$ has a prox, else for `Smooth` ones.
    """

    solver: AbstractSolver

    def prepare(self, function, operator, x, penalty):
        return None

    def minimize(self, function, operator, x, target, penalty, prepared):
        def quadratic(v):
            gap = jax.tree.map(jnp.subtract, operator(v), target)
            return 0.5 * penalty * tree.vdot(gap, gap)

        if hasattr(function, "prox"):
            problem = Composite(quadratic, function)
        else:
            problem = Smooth(lambda v: function(v) + quadratic(v))
        return solve(problem, self.solver, x).value


def choose(update: AbstractUpdate | None, function: Any, operator: Map) -> AbstractUpdate:
    """The given update, or the cheapest that fits the function and the map."""
    if update is not None:
        return update
    if not hasattr(function, "prox"):
        raise TypeError(
            "a function without a prox needs an update: QuadraticUpdate() or InexactUpdate(solver)"
        )
    return ProxUpdate() if operator.gram is not None else LinearizedUpdate()
