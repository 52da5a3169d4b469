"""Plain and averaged fixed-point iterations."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..core import AbstractSolver, Feedforward, FixedPoint, Scalar, checks, scalar_field, tree


def residual_norm(x: PyTree[Array], mapped: PyTree[Array]) -> Float[Array, ""]:
    """$\\|T(x) - x\\|$."""
    return tree.norm(jax.tree.map(jnp.subtract, mapped, x))


def mix(x: PyTree[Array], y: PyTree[Array], weight: Float[Array, ""]) -> PyTree[Array]:
    """$(1 - w) x + w y$."""
    return jax.tree.map(lambda a, b: a + weight.astype(a.real.dtype) * (b - a), x, y)


def apply(fun, x: PyTree[Array]) -> PyTree[Array]:
    """$T(x)$ in the types of `x`, whatever those of the map's data."""
    return tree.cast_like(fun(x), x)


class _State(eqx.Module):
    mapped: PyTree[Array]
    error: Float[Array, ""]


class AbstractMappedSolver(AbstractSolver):
    """A method whose state holds $T(x)$ at its own point, so that the error is exact there."""

    def init(self, problem, x, key):
        return _State(apply(problem.fun, x), jnp.asarray(jnp.inf, tree.real_dtype(x)))

    def refresh(self, problem, x, state):
        return _State(apply(problem.fun, x), state.error)

    def error(self, problem, x, state):
        return state.error


def _arrive(problem, x):
    mapped = apply(problem.fun, x)
    return x, _State(mapped, residual_norm(x, mapped))


class Picard(AbstractMappedSolver):
    """The iteration $x \\leftarrow T(x)$, for contractions.

    The error is $\\|T(x) - x\\|$, the norm of the residual. One evaluation of $T$ a step, and one
    at the start.

    **Arguments:**

    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Picard, Mémoire sur la théorie des équations aux dérivées partielles et la
    méthode des approximations successives, 1890; Banach, Sur les opérations dans les ensembles
    abstraits et leur application aux équations intégrales, 1922.
    """

    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 1000
    problems = (FixedPoint, Feedforward)

    def step(self, problem, x, state):
        return _arrive(problem, state.mapped)


class KrasnoselskiiMann(AbstractMappedSolver):
    """The averaged iteration $x \\leftarrow (1 - \\alpha) x + \\alpha T(x)$.

    For $\\alpha < 1$ it converges for every nonexpansive map with a fixed point, where Picard's,
    $\\alpha = 1$, may circle for ever, and $\\|T(x_k) - x_k\\| = O(1/\\sqrt{k})$.

    The error is $\\|T(x) - x\\|$, the norm of the residual. One evaluation of $T$ a step, and one
    at the start.

    **Arguments:**

    - `averaging`: $\\alpha \\in (0, 1]$.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Krasnosel'skii 1955; Mann, Mean Value Methods in Iteration, 1953.
    """

    averaging: Scalar = scalar_field(0.5)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (FixedPoint,)

    def __check_init__(self):
        checks.interval("averaging", self.averaging, 0, 1, open_low=True)

    def step(self, problem, x, state):
        return _arrive(problem, mix(x, state.mapped, self.averaging))


class _HalpernState(eqx.Module):
    anchor: PyTree[Array]
    ahead: PyTree[Array]
    steps: Array
    error: Float[Array, ""]


class Halpern(AbstractSolver):
    """The anchored iteration $x_{k+1} = \\lambda_k x_0 + (1 - \\lambda_k) T(x_k)$,
    $\\lambda_k = 1 / (k + 2)$.

    For nonexpansive maps $\\|T(x_k) - x_k\\| \\le 2 \\|x_0 - x^*\\| / (k + 1)$, the best rate there
    is, and the limit is the fixed point nearest to $x_0$. The value is the last point whose error
    is known: the next one would already lean back towards the anchor. The error is the norm of the
    residual, $\\|T(x) - x\\|$, at the value.

    **Arguments:**

    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Halpern, Fixed Points of Nonexpanding Maps, 1967. Lieder, On the Convergence Rate
    of the Halpern-Iteration, 2021.
    """

    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (FixedPoint,)

    def init(self, problem, x, key):
        return _HalpernState(
            x, x, jnp.asarray(0, jnp.int32), jnp.asarray(jnp.inf, tree.real_dtype(x))
        )

    def step(self, problem, x, state):
        x = state.ahead
        mapped = apply(problem.fun, x)
        weight = 1 / (state.steps.astype(state.error.dtype) + 2)
        ahead = mix(mapped, state.anchor, weight)
        error = residual_norm(x, mapped)
        return x, _HalpernState(state.anchor, ahead, state.steps + 1, error)

    def last_step(self, problem, x, state):
        return apply(problem.fun, x)

    def error(self, problem, x, state):
        return state.error
