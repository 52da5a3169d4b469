"""Decentralized consensus ADMM."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..core import AbstractSolver, Composite, Smooth, checks, solve, tree
from .algorithm import AbstractNetworkAlgorithm, Loss


class _State(eqx.Module):
    params: PyTree[Array]
    dual: PyTree[Array]
    around: PyTree[Array]


class DecentralizedADMM(AbstractNetworkAlgorithm):
    """ADMM over the edges of a graph for $\\min_x \\sum_i f_i(x) + g(x)$.

    Each node solves its own problem and sends the answer to its neighbours; with $d_i$ of them,

    $$\\begin{aligned}
      x_i &\\leftarrow \\arg\\min_x f_i(x) + \\tfrac1n g(x) + \\langle \\alpha_i, x\\rangle
        + c\\, d_i \\|x - v_i\\|^2, \\qquad
        v_i = \\tfrac12 \\bigl(x_i + \\tfrac{1}{d_i} \\textstyle\\sum_{j \\sim i} x_j\\bigr), \\\\
      \\alpha_i &\\leftarrow \\alpha_i + c \\bigl(d_i x_i - \\textstyle\\sum_{j \\sim i} x_j\\bigr).
    \\end{aligned}$$

    Nothing but $x_i$ travels: data, losses and multipliers stay where they are.

    **Arguments:**

    - `loss`: $f_i$, `(params, batch) -> scalar` of one node.
    - `penalty`: $c > 0$.
    - `solver`: for the local problems, started from the last answer; `Composite` problems if there
      is a `regularizer`, `Smooth` ones if not.
    - `regularizer`: $g$, a function of `jaxopt_ext.prox`, or `None`.

    **Reference:** Shi, Ling, Yuan, Wu, Yin, On the Linear Convergence of the ADMM in Decentralized
    Consensus Optimization, 2014, arXiv:1307.5561.
    """

    loss: Loss
    penalty: Float[Array, ""] = eqx.field(converter=checks.scalar)
    solver: AbstractSolver
    regularizer: Any = None

    def __check_init__(self):
        checks.positive("penalty", self.penalty)

    def init(self, params, batch, network, key):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return _State(params, zeros, network.neighbor_sum(params))

    def round(self, state, batch, network, key):
        degrees = network.degrees()

        def local(x, dual, around, degree, data):
            penalty, share = self.penalty, 1 / network.size
            middle = jax.tree.map(
                lambda a, s: 0.5 * (a + s / jnp.maximum(degree, 1).astype(a.dtype)), x, around
            )

            def objective(v):
                gap = jax.tree.map(jnp.subtract, v, middle)
                weight = (penalty * degree).astype(tree.real_dtype(v))
                return self.loss(v, data) + tree.vdot(dual, v) + weight * tree.vdot(gap, gap)

            problem = (
                Smooth(objective)
                if self.regularizer is None
                else Composite(objective, share * self.regularizer)
            )
            return solve(problem, self.solver, x).value

        params = jax.vmap(local)(state.params, state.dual, state.around, degrees, batch)
        around = network.neighbor_sum(params)

        def ascend(alpha, x, s):
            degree = degrees.reshape(-1, *([1] * (x.ndim - 1))).astype(x.dtype)
            return alpha + self.penalty.astype(x.dtype) * (degree * x - s)

        return _State(params, jax.tree.map(ascend, state.dual, params, around), around)
