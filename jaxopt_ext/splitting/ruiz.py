"""Equilibration of quadratic programs."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import PrimalDual, QuadraticProgram, loops


class Scaling(eqx.Module):
    """A change of variables $x = D \\bar x$, rows multiplied by $E$, objective by $c$."""

    D: Float[Array, " n"]
    E: Float[Array, " m"]
    c: Float[Array, ""]

    def scale(self, problem: QuadraticProgram) -> QuadraticProgram:
        """The equilibrated problem."""
        D, E, c = self.D, self.E, self.c
        scaled = (
            c * D[:, None] * problem.P * D[None, :],
            c * D * problem.q,
            E[:, None] * problem.A * D[None, :],
            E * problem.l,
            E * problem.u,
        )
        return eqx.tree_at(lambda p: (p.P, p.q, p.A, p.l, p.u), problem, scaled)

    def forward(self, x: PrimalDual) -> PrimalDual:
        """A point in the scaled variables."""
        return PrimalDual(x.primal / self.D, self.c * x.dual / self.E)

    def backward(self, x: PrimalDual) -> PrimalDual:
        """A point in the variables of the user."""
        return PrimalDual(self.D * x.primal, self.E * x.dual / self.c)


def identity_scaling(problem: QuadraticProgram) -> Scaling:
    """No change of variables."""
    return Scaling(jnp.ones_like(problem.q), jnp.ones_like(problem.l), jnp.ones_like(problem.q[0]))


def ruiz_scaling(problem: QuadraticProgram, steps: int) -> Scaling:
    """Make the columns of the matrix $[P\\ A^\\top; A\\ 0]$ alike in size.

    **Arguments:**

    - `problem`: with dense matrices.
    - `steps`: sweeps.

    **Reference:** Ruiz, A Scaling Algorithm to Equilibrate Both Rows and Columns Norms in Matrices,
    2001; with the cost scaling of Stellato et al., 2020.
    """

    def sizes(values):
        # Rows of zeros are left alone; huge factors would only move trouble elsewhere.
        return jnp.where(values > 0, 1 / jnp.sqrt(jnp.clip(values, 1e-4, 1e4)), 1)

    def sweep(_, scaling):
        p = scaling.scale(problem)
        columns = jnp.maximum(
            jnp.max(jnp.abs(p.P), axis=0, initial=0), jnp.max(jnp.abs(p.A), axis=0, initial=0)
        )
        rows = jnp.max(jnp.abs(p.A), axis=1, initial=0)
        scaling = Scaling(scaling.D * sizes(columns), scaling.E * sizes(rows), scaling.c)
        p = scaling.scale(problem)
        columns = jnp.max(jnp.abs(p.P), axis=0, initial=0)
        # Zero columns do not count: the others would grow from sweep to sweep.
        mean = jnp.sum(columns) / jnp.maximum(jnp.sum(columns > 0), 1)
        cost = jnp.maximum(mean, jnp.max(jnp.abs(p.q), initial=0))
        gain = jnp.where(cost > 0, 1 / jnp.clip(cost, 1e-4, 1e4), 1)
        return Scaling(scaling.D, scaling.E, scaling.c * gain)

    return loops.fori_loop(0, steps, sweep, identity_scaling(problem))
