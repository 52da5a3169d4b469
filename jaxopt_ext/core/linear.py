"""The linear solver behind implicit derivatives."""

from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree

from . import checks, tree


class _State(eqx.Module):
    operator: lx.AbstractLinearOperator
    factors: Any
    regular: Any
    flat: bool = eqx.field(static=True)


class LeastSquaresFallback(lx.AbstractLinearSolver[_State]):
    """Solve a square system fast if it is regular, and in the least-squares sense if it is not.

    Small systems are factorized by LU, large ones go matrix-free through BiCGStab, which looks at
    its residual after every step, and where it breaks down through restarted GMRES, which looks
    once a cycle. The answer is kept if its true residual is small and, for LU, if the pivots show
    no rank loss. Otherwise LSMR finds the minimum-norm least-squares solution $A^{+} b$. So a
    large singular system that has solutions gets one of them, not always the smallest. A method
    that is not needed takes no step, also under `vmap`.

    **Arguments:**

    - `rtol`: relative residual that counts as solved; `None` is `1e-5` in single and `1e-9` in
      double precision.
    - `dense_size`: systems of at most this size are factorized.
    - `max_steps`: limit on the iterations of each method; `None` is twice the size for BiCGStab
      and ten times for the others.
    - `strict`: report an LSMR solve that missed its tolerance as failed; else its last iterate is
      taken. What is not finite always counts as failed.
    """

    rtol: float | None = None
    dense_size: int = 256
    max_steps: int | None = None
    strict: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if self.rtol is not None:
            checks.positive("rtol", self.rtol)
        checks.count("dense_size", self.dense_size, minimum=0)

    def init(self, operator, options):
        del options
        if operator.in_size() != operator.out_size():
            raise ValueError("the residual must be shaped like x")
        if operator.in_size() > self.dense_size:
            return _State(lx.linearise(operator), None, jnp.asarray(True), False)
        matrix = operator.as_matrix()
        factors = jax.scipy.linalg.lu_factor(matrix)
        pivots = jnp.abs(jnp.diagonal(factors[0]))
        rounding = matrix.shape[0] * jnp.finfo(matrix.dtype).eps
        regular = jnp.min(pivots, initial=jnp.inf) > rounding * jnp.max(pivots, initial=0)
        dense = lx.MatrixLinearOperator(matrix)
        return _State(dense, (factors, eqxi.Static(False)), regular, True)

    def compute(self, state, vector, options):
        del options
        flat, unravel = ravel_pytree(vector)
        operator = state.operator if state.flat else _ravelled(state.operator, vector, unravel)
        tolerance = self.rtol or (1e-9 if flat.dtype == jnp.float64 else 1e-5)
        norm = jnp.linalg.norm(flat)
        scale = jnp.where(norm > 0, norm, 1)
        unit = flat / scale

        def solved(x):
            gap = jnp.linalg.norm(operator.mv(x) - unit)
            return state.regular & (gap <= tolerance)  # False for NaN

        successful = lx.RESULTS.successful
        if state.flat:
            factors, transposed = state.factors
            x = jax.scipy.linalg.lu_solve(factors, unit, trans=int(transposed.value))
            answer = (solved(x), x, successful)
        else:
            max_steps = self.max_steps or 2 * flat.size
            fast = lx.BiCGStab(0.0, 0.9 * tolerance, tree.norm, max_steps)
            x, _ = _run(fast, operator, unit)
            # GMRES demands its tolerance of the last update too, so ask for less than we check.
            restart = min(40, flat.size)
            sure = lx.GMRES(0.0, 0.1 * tolerance, tree.norm, self.max_steps, restart, 3)
            done, x, _ = _or_else((solved(x), x, successful), sure, operator, unit, solved)
            answer = (done, x, successful)
        lsmr = lx.LSMR(rtol=0.1 * tolerance, atol=0.1 * tolerance, max_steps=self.max_steps)
        # LSMR has the last word.
        _, x, result = _or_else(
            answer, _DefaultPrecision(lsmr), operator, unit, lambda x: jnp.asarray(True)
        )
        if not self.strict:
            result = lx.RESULTS.where(jnp.all(jnp.isfinite(x)), successful, result)
        return unravel(x * scale), result, {}

    def transpose(self, state, options):
        factors = state.factors
        if factors is not None:
            factors = (factors[0], eqxi.Static(not factors[1].value))
        return _State(state.operator.T, factors, state.regular, state.flat), options

    def conj(self, state, options):
        if state.factors is None:
            return _State(lx.conj(state.operator), None, state.regular, state.flat), options
        (lu, pivots), transposed = state.factors
        factors = ((lu.conj(), pivots), transposed)
        return _State(lx.conj(state.operator), factors, state.regular, state.flat), options

    def assume_full_rank(self):
        return True


def _run(solver, operator, vector):
    return solver.compute(solver.init(operator, {}), vector, {})[:2]


class _DefaultPrecision(eqx.Module):
    """A solver whose own scalars are of JAX's default precision, as those of LSMR in lineax 0.1.1:
    vectors must be too, or it does not compile for single precision where double is enabled."""

    solver: lx.AbstractLinearSolver

    def init(self, operator, options):
        shape, dtype = operator.in_structure().shape, operator.in_structure().dtype
        default = _default(dtype)

        def mv(v):
            return operator.mv(v.astype(dtype)).astype(default)

        wide = lx.FunctionLinearOperator(mv, jax.ShapeDtypeStruct(shape, default))
        return self.solver.init(wide, options)

    def compute(self, state, vector, options):
        x, result, stats = self.solver.compute(
            state, vector.astype(_default(vector.dtype)), options
        )
        return x.astype(vector.dtype), result, stats


def _default(dtype):
    return jnp.promote_types(dtype, jnp.result_type(float))


def _or_else(answer, solver, operator, vector, solved):
    """The `answer`, a triple of whether it is one, the vector and a result, or that of `solver`.

    It is a loop of at most one step: under `vmap` that is skipped if all are done, where a
    conditional would always take both branches, and keeps what is done. What `solver` finds is
    judged inside, so that an answer that stands is not judged again.
    """

    def body(carry):
        _, (done, _, _) = carry
        # Nothing to do for those that wait for others.
        new, result = _run(solver, operator, jnp.where(done, 0, vector))
        return jnp.asarray(True), (solved(new), new, result)

    return jax.lax.while_loop(lambda carry: ~carry[0], body, (answer[0], answer))[1]


def _ravelled(operator, vector, unravel):
    def mv(v):
        return ravel_pytree(operator.mv(unravel(v)))[0]

    flat = jax.eval_shape(lambda v: ravel_pytree(v)[0], vector)
    return lx.FunctionLinearOperator(mv, flat)
