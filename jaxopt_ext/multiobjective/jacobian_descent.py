"""Jacobian descent: steps that serve every objective."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import AbstractSolver, MultiObjective, Scalar, checks, loops, rows, scalar_field, tree
from ..core.confirm import unknown
from ..core.gram import combine, gram, min_norm_weights
from .aggregator import (
    AbstractJacobianAggregator,
    AbstractWeighting,
    average,
    check_tolerances,
    normalized,
)
from .gram import dual_cone_weights


def _check_preference(preference):
    if preference is None:
        return
    if jnp.ndim(preference) != 1:
        raise ValueError(f"preference must have shape (m,), got {jnp.shape(preference)}")
    checks.nonnegative("preference", preference)
    checks.finite("preference", preference)


def _preferred(preference, G):
    if preference is None:
        return average(G)
    if preference.shape != G[0].shape:
        raise ValueError(f"preference has shape {preference.shape} for {len(G)} objectives")
    return preference.astype(G.dtype)


def _regularized(G, norm_eps, reg_eps):
    return normalized(G, norm_eps) + reg_eps.astype(G.dtype) * jnp.eye(len(G), dtype=G.dtype)


def _as_vector(value):
    return None if value is None else jnp.asarray(value, float)


class UPGrad(AbstractWeighting):
    """Unconflicting projection of gradients: the mean of the gradients, each projected on the dual
    cone of all,

    $$A(J) = \\sum_i p_i\\, \\pi_J(g_i), \\qquad
    \\pi_J(g) = \\arg\\min_{d : J d \\ge 0} \\|d - g\\|,$$

    with $p_i = 1/m$ unless given. But for the ridge that `reg_eps` puts on $G = J J^\\top$ it does
    not conflict, $J A(J) \\ge -\\mathrm{reg\\_eps}\\, \\mathrm{tr}(G)\\, w$;
    it is linear under scaling, $c \\mapsto A(\\mathrm{diag}(c) J)$ is linear in $c > 0$;
    and it is a weighting,
    $A(J) = J^\\top w$ with $w = \\sum_i \\arg\\min_{v \\ge p_i e_i} v^\\top G v$, the solutions of
    $m$ programs, found in one batch. With one objective it is its gradient, to the last digit.

    **Arguments:**

    - `preference`: $p \\ge 0$, shape `(m,)`.
    - `norm_eps`: $G$ is divided by its trace; where that is below `norm_eps`, it counts as zero and
      the result is the weighted sum of the gradients.
    - `reg_eps`: times the identity is added to it then. The smaller, the nearer to no conflict.

    **Raises:** `ValueError` for a preference that is negative or of the wrong length.

    **Reference:** Quinton, Rey, Jacobian Descent for Multi-Objective Optimization, 2024,
    arXiv:2406.16232.
    """

    preference: Float[Array, " m"] | None = eqx.field(converter=_as_vector, default=None)
    norm_eps: Scalar = scalar_field(1e-4)
    reg_eps: Scalar = scalar_field(1e-4)

    def __check_init__(self):
        _check_preference(self.preference)
        check_tolerances(self.norm_eps, self.reg_eps)

    def weights(self, G, key=None):
        starts = jnp.diag(_preferred(self.preference, G))
        return jnp.sum(
            dual_cone_weights(_regularized(G, self.norm_eps, self.reg_eps), starts), axis=0
        )


class DualProj(AbstractWeighting):
    """The mean of the gradients, projected on their dual cone: one projection where `UPGrad` has
    one for each gradient.

    **Arguments:**

    - `preference`: weights of the mean, shape `(m,)`; $1/m$ if `None`.
    - `norm_eps`, `reg_eps`: see `UPGrad`.

    **Raises:** `ValueError` for a preference that is negative or of the wrong length.

    **Reference:** Lopez-Paz, Ranzato, Gradient Episodic Memory for Continual Learning, 2017,
    arXiv:1706.08840.
    """

    preference: Float[Array, " m"] | None = eqx.field(converter=_as_vector, default=None)
    norm_eps: Scalar = scalar_field(1e-4)
    reg_eps: Scalar = scalar_field(1e-4)

    def __check_init__(self):
        _check_preference(self.preference)
        check_tolerances(self.norm_eps, self.reg_eps)

    def weights(self, G, key=None):
        start = _preferred(self.preference, G)[None]
        return dual_cone_weights(_regularized(G, self.norm_eps, self.reg_eps), start)[0]


def gramian(
    loss: Callable[[PyTree[Array], Any], Float[Array, ""]],
    params: PyTree[Array],
    batch: PyTree[Array],
    chunk: int | None = None,
) -> Float[Array, "b b"]:
    """Inner products of the gradients of the losses of all samples, without their Jacobian.

    **Arguments:**

    - `loss`: maps parameters and one sample to a scalar.
    - `params`: where the gradients are taken, $d$ numbers.
    - `batch`: $b$ samples, stacked on the leading axis of each leaf.
    - `chunk`: two times this many gradients are held at once, and each is computed again
      $b / \\mathrm{chunk}$ times. `None` for all of them, once.

    **Raises:** `ValueError` for leaves without a common leading axis or a chunk below 1.

    **Reference:** Quinton, Rey, Jacobian Descent for Multi-Objective Optimization, 2024,
    arXiv:2406.16232.
    """
    rows.check(batch)
    b = rows.count(batch)
    chunk = b if chunk is None else chunk
    checks.count("chunk", chunk)
    gradients = lambda samples: jax.vmap(
        lambda sample: tree.gradient(lambda params: loss(params, sample), params)
    )(samples)
    if chunk >= b:
        return gram(gradients(batch))
    # What fills the last part up is the last sample again, and is cut off in the end.
    parts = -(-b // chunk)
    indices = jnp.minimum(jnp.arange(parts * chunk, dtype=jnp.int32), b - 1).reshape(parts, chunk)

    def row(_, mine):
        left = gradients(rows.take(batch, mine))

        def block(_, other):
            right = gradients(rows.take(batch, other))
            with jax.default_matmul_precision("highest"):
                inner = jax.vmap(jax.vmap(tree.vdot, (None, 0)), (0, None))
                return None, inner(left, right)

        return None, loops.scan(block, None, indices)[1]

    blocks = loops.scan(row, None, indices)[1]  # (parts, parts, chunk, chunk)
    whole = jnp.moveaxis(blocks, 1, 2).reshape(parts * chunk, parts * chunk)
    return whole[:b, :b]


def aggregated_grad(
    loss: Callable[[PyTree[Array], Any], Float[Array, ""]],
    params: PyTree[Array],
    batch: PyTree[Array],
    aggregator: AbstractWeighting,
    key: PRNGKeyArray | None = None,
    chunk: int | None = None,
) -> PyTree[Array]:
    """What takes the place of the gradient of a mean loss where each sample is an objective of its
    own: instance-wise risk minimization.

    The weights come from `gramian`; one backward pass through $\\sum_i w_i \\ell_i$ gives the row.

    **Arguments:**

    - `loss`, `params`, `batch`, `chunk`: see `gramian`.
    - `aggregator`: a rule with weights, `UPGrad()` say.
    - `key`: for rules that draw.

    **Returns:** a tree like `params`, for any optimizer.

    **Raises:** `TypeError` for an aggregator without weights.

    **Reference:** Quinton, Rey, Jacobian Descent for Multi-Objective Optimization, 2024,
    arXiv:2406.16232.
    """
    checks.instance("aggregator", aggregator, AbstractWeighting, "UPGrad()")
    weights = jax.lax.stop_gradient(aggregator.weights(gramian(loss, params, batch, chunk), key))

    def total(params):
        losses = jax.vmap(lambda sample: loss(params, sample))(batch)
        return jnp.vdot(weights.astype(losses.dtype), losses)

    return tree.gradient(total, params)


class _State(eqx.Module):
    key: PRNGKeyArray
    rows: PyTree[Array] | None
    steps: Int[Array, ""]
    error: Float[Array, ""]


class JacobianDescent(AbstractSolver):
    """Jacobian descent, $x \\leftarrow x - \\eta A(J(x))$ with an aggregator $A$ of the gradients.

    The error is the norm of the residual at the value, that of the point of least norm in the hull
    of the gradients; the Jacobian there is the one of the next step. With `UPGrad` no objective
    rises at first order, and one objective gives gradient descent to the last digit. Aggregators
    that are not linear under scaling, or that vanish elsewhere, may stall short of the Pareto set,
    or only reach it in the limit.

    Stochastic sub-Jacobian descent looks at a few objectives a step, drawn without replacement.
    Then no step knows the residual: the error is the largest number there is, and the end is the
    step limit.

    **Arguments:**

    - `aggregator`: `UPGrad()` or another rule of this family.
    - `step_size`: $\\eta > 0$, or a schedule of `optax`, from the number of steps to a scalar.
    - `subset`: the number of objectives a step; all of them if `None`. Static.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` from `solve` for a subset of more objectives than there are.

    **Reference:** Quinton, Rey, Jacobian Descent for Multi-Objective Optimization, 2024,
    arXiv:2406.16232.
    """

    aggregator: AbstractJacobianAggregator = eqx.field(default_factory=UPGrad)
    step_size: Any = scalar_field(0.1)
    subset: int | None = eqx.field(static=True, default=None)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (MultiObjective,)

    def __check_init__(self):
        checks.instance("aggregator", self.aggregator, AbstractJacobianAggregator, "UPGrad()")
        if not callable(self.step_size):
            checks.positive("step_size", self.step_size)
        if self.subset is not None:
            checks.count("subset", self.subset)

    def init(self, problem, x, key):
        dtype = tree.real_dtype(x)
        zero = jnp.asarray(0, jnp.int32)
        return self.refresh(problem, x, _State(key, None, zero, unknown(dtype)))

    def refresh(self, problem, x, state):
        m = problem.count(x)
        if self.subset is not None:
            if self.subset > m:
                raise ValueError(f"subset must be at most {m} objectives, got {self.subset}")
            return state
        return _State(state.key, problem.jacobian(x), state.steps, state.error)

    def step(self, problem, x, state):
        key, own = jax.random.split(state.key)
        if self.subset is None:
            rows = state.rows
        else:
            own, drawing = jax.random.split(own)
            m, dtype = problem.count(x), tree.real_dtype(x)
            drawn = jax.random.permutation(drawing, m)[: self.subset]
            rows = problem.jacobian(x, jax.nn.one_hot(drawn, m, dtype=dtype))
        update = self.aggregator(rows, own)
        size = self.step_size(state.steps) if callable(self.step_size) else self.step_size
        x = tree.axpy(x, -jnp.asarray(size), update)
        if self.subset is None:
            rows = problem.jacobian(x)
            error = tree.norm(combine(rows, min_norm_weights(gram(rows))))
        else:
            rows, error = None, state.error
        return x, _State(key, rows, state.steps + 1, error)

    def error(self, problem, x, state):
        return state.error
