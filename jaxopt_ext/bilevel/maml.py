"""Meta-learning of an initialization, and the linear tasks that tell when it pays."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..core import Scalar, checks, loops, scalar_field, tree
from ..core.restricted import Restricted
from .inner import descend

Loss = Callable[[PyTree[Array], PyTree[Array]], Float[Array, ""]]


class Task(NamedTuple):
    """Samples of one task, or of several, stacked on a leading axis.

    The two must be different samples of the task: a meta-gradient from the same is biased.

    - `support`: what a task is adapted on.
    - `query`: what it is judged by.
    """

    support: PyTree[Array]
    query: PyTree[Array]


def _check(tasks: Task) -> None:
    checks.point("a meta-gradient", tasks, Task, "Task(support, query)")
    counts = set()
    for name, part in tasks._asdict().items():
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(part)]
        if not shapes or any(len(shape) < 2 or 0 in shape[:2] for shape in shapes):
            raise ValueError(f"{name} must hold tasks and samples on leading axes, got {shapes}")
        counts |= {shape[0] for shape in shapes}
    if len(counts) != 1:
        raise ValueError(f"support and query must hold as many tasks, got {sorted(counts)}")


class AbstractMetaMethod(eqx.Module):
    """How an initialization is trained from tasks."""

    loss: eqx.AbstractVar[Loss]
    inner_step: eqx.AbstractVar[Any]
    inner_steps: eqx.AbstractVar[int]

    def __check_init__(self):
        if not callable(self.loss):
            raise TypeError(f"loss must be a function (params, samples), got {self.loss!r}")
        checks.positive("inner_step", self.inner_step)
        checks.count("inner_steps", self.inner_steps, minimum=0)

    def objective(self, w: PyTree[Array], tasks: Task) -> Float[Array, ""]:
        """The mean over tasks of what the method minimizes."""
        return self.value_and_gradient(w, tasks)[0]

    def gradient(self, w: PyTree[Array], tasks: Task) -> PyTree[Array]:
        """The method's meta-gradient, a mean over tasks, shaped like `w`."""
        return self.value_and_gradient(w, tasks)[1]

    def value_and_gradient(
        self, w: PyTree[Array], tasks: Task
    ) -> tuple[Float[Array, ""], PyTree[Array]]:
        """Both of them.

        **Arguments:**

        - `w`: the initialization, floating-point arrays.
        - `tasks`: stacked on a leading axis; that of samples is next.

        **Raises:** `ValueError` on an empty support or query, `TypeError` on what is no `Task`.
        """
        _check(tasks)
        if loops.in_shard_map():
            kinds = jax.eval_shape(lambda w: jax.vmap(lambda t: self._one(w, t))(tasks), w)
            w = loops.vary(w, loops.varying_axes(kinds))
        values, gradients = jax.vmap(lambda task: self._one(w, task))(tasks)
        return jnp.mean(values), jax.tree.map(lambda g: jnp.mean(g, axis=0), gradients)

    @abc.abstractmethod
    def _one(self, w: PyTree[Array], task: Task) -> tuple[Float[Array, ""], PyTree[Array]]:
        """Value and gradient of one task."""

    def adapt(
        self, w: PyTree[Array], support: PyTree[Array], steps: int | None = None
    ) -> PyTree[Array]:
        """`w` after gradient steps on the samples of one task.

        **Arguments:**

        - `support`: samples, on a leading axis.
        - `steps`: how many; `None` for `inner_steps`. It is static.
        """
        steps = self.inner_steps if steps is None else steps
        return descend(lambda u: self.loss(u, support), w, self.inner_step, steps)


class MAML(AbstractMetaMethod):
    """Model-agnostic meta-learning: the initialization from which a few gradient steps do best,

    $$\\min_w \\frac1B \\sum_i \\ell(u_i(w); Q_i), \\qquad u_i(w) = w \\text{ after } K
      \\text{ steps } u \\leftarrow u - \\alpha \\nabla \\ell(u; S_i).$$

    The gradient goes through all steps; for $K = 1$ it is
    $(I - \\alpha \\nabla^2 \\ell(w; S_i)) \\nabla \\ell(u_i; Q_i)$. It is the `unrolled`
    hypergradient of a lower level whose start is the upper variable. What it finds is the point to
    adapt from: before adaptation `NonAdaptive` is better.

    **Arguments:**

    - `loss`: $\\ell$, `(params, samples) -> scalar`, the mean over samples on a leading axis.
    - `inner_step`: $\\alpha > 0$; above $2/L$ the inner steps diverge.
    - `inner_steps`: $K \\ge 0$, static.

    **Raises:** `ValueError` on a step that is not positive or `inner_steps` below 0.

    **Reference:** Finn, Abbeel, Levine, Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks, 2017, arXiv:1703.03400. Collins, Mokhtari, Shakkottai, How Does the Task Landscape
    Affect MAML Performance?, 2022, arXiv:2010.14672.
    """

    loss: Loss
    inner_step: Scalar = scalar_field(0.1)
    inner_steps: int = eqx.field(static=True, default=1)

    def _one(self, w, task):
        after = lambda w: self.loss(self.adapt(w, task.support), task.query)
        return tree.value_and_gradient(after, w)


class FirstOrderMAML(AbstractMetaMethod):
    """`MAML` without its Hessians: the gradient at the adapted point, taken for that of the
    initialization.

    **Arguments:** as of `MAML`.

    **Reference:** Finn, Abbeel, Levine, Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks, 2017, arXiv:1703.03400.
    """

    loss: Loss
    inner_step: Scalar = scalar_field(0.1)
    inner_steps: int = eqx.field(static=True, default=1)

    def _one(self, w, task):
        adapted = self.adapt(w, task.support)
        return tree.value_and_gradient(lambda u: self.loss(u, task.query), adapted)


class HessianFreeMAML(AbstractMetaMethod):
    """`MAML` with each Hessian product as a difference of gradients,

    $$\\nabla^2 \\ell(u)\\, g \\approx \\frac{\\nabla \\ell(u + \\delta g) -
      \\nabla \\ell(u - \\delta g)}{2 \\delta}.$$

    **Arguments:** as of `MAML`, and

    - `delta`: $\\delta > 0$; in single precision not much below the default.

    **Reference:** Fallah, Mokhtari, Ozdaglar, On the Convergence Theory of Gradient-Based
    Model-Agnostic Meta-Learning Algorithms, 2020, arXiv:1908.10400.
    """

    loss: Loss
    inner_step: Scalar = scalar_field(0.1)
    inner_steps: int = eqx.field(static=True, default=1)
    delta: Scalar = scalar_field(1e-3)

    def __check_init__(self):
        checks.positive("delta", self.delta)

    def _one(self, w, task):
        fit = lambda u: self.loss(u, task.support)
        adapted, before = descend(fit, w, self.inner_step, self.inner_steps, keep=True)
        value, g = tree.value_and_gradient(lambda u: self.loss(u, task.query), adapted)

        def back(g, u):
            ahead, behind = (
                tree.gradient(fit, tree.axpy(u, sign * self.delta, g)) for sign in (1, -1)
            )
            turned = jax.tree.map(jnp.subtract, ahead, behind)
            return tree.cast_like(
                tree.axpy(g, -self.inner_step / (2 * self.delta), turned), g
            ), None

        return value, loops.scan(back, g, before, reverse=True)[0]


class NonAdaptive(AbstractMetaMethod):
    """One model for all tasks: the loss of support and query together, without adaptation.

    **Arguments:** as of `MAML`; the inner steps are those of `adapt`.

    **Reference:** Collins, Mokhtari, Shakkottai, How Does the Task Landscape Affect MAML
    Performance?, 2022, arXiv:2010.14672.
    """

    loss: Loss
    inner_step: Scalar = scalar_field(0.1)
    inner_steps: int = eqx.field(static=True, default=1)

    def _one(self, w, task):
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), task.support, task.query)
        return tree.value_and_gradient(lambda w: self.loss(w, both), w)


class MetaTrained(NamedTuple):
    """What meta-training ends with.

    - `params`: the last iterate.
    - `average`: the mean of the second half of them.
    - `losses`: the objective before each step, shape `(num_steps,)`; it is not finite where
      training broke down.
    - `opt_state`: of the transformation.
    """

    params: PyTree[Array]
    average: PyTree[Array]
    losses: Float[Array, " num_steps"]
    opt_state: PyTree


def meta_train(
    method: AbstractMetaMethod,
    w0: PyTree[Array],
    draw_tasks: Callable[[PRNGKeyArray], Task],
    tx: optax.GradientTransformation,
    num_steps: int,
    key: PRNGKeyArray,
) -> MetaTrained:
    """Train an initialization on tasks that are drawn anew at each step, as one scan.

    **Arguments:**

    - `method`: `MAML(...)` or another `AbstractMetaMethod`.
    - `w0`: the start; leaves that are no floating-point arrays stay as they are.
    - `draw_tasks`: `key -> Task`, stacked on a leading axis; pure.
    - `tx`: any `optax` transformation.
    - `num_steps`: static.
    - `key`: split into one for each step.

    **Raises:** `TypeError` on a `method` that is none, `ValueError` on `num_steps` below 1.
    """
    checks.instance("method", method, AbstractMetaMethod, "MAML(loss)")
    checks.count("num_steps", num_steps)
    w, rest = checks.split_point("w0", w0)
    if jax.tree.leaves(rest):
        method = dataclasses.replace(method, loss=Restricted(method.loss, rest))
    half = num_steps // 2

    def step(carry, at):
        w, total, opt_state = carry
        i, key = at
        value, gradient = method.value_and_gradient(w, draw_tasks(key))
        updates, opt_state = tx.update(gradient, opt_state, w)
        w = tree.cast_like(optax.apply_updates(w, updates), w)
        total = jax.tree.map(lambda t, leaf: t + jnp.where(i >= half, leaf, 0), total, w)
        return (w, total, opt_state), value

    steps = jnp.arange(num_steps, dtype=jnp.int32), jax.random.split(key, num_steps)
    start = w, jax.tree.map(jnp.zeros_like, w), tx.init(w)
    (w, total, opt_state), losses = loops.scan(step, start, steps)
    average = tree.scale(total, 1 / (num_steps - half))
    return MetaTrained(eqx.combine(w, rest), eqx.combine(average, rest), losses, opt_state)


class LinearTask(eqx.Module):
    """Linear regression tasks, $y = \\langle w^*, x\\rangle + s\\,\\varepsilon$ with
    $x \\sim N(0, \\Sigma)$: one, or groups of them on a leading axis, all as likely.

    **Arguments:**

    - `covariance`: $\\Sigma$, shape `(d, d)` or `(groups, d, d)`.
    - `solution`: $w^*$, `(d,)` or `(groups, d)`; of a group with a spread, the mean of it.
    - `noise`: $s$, `()` or `(groups,)`.
    - `spread`: the variance of each entry of $w^*$ within a group, `()` or `(groups,)`.

    **Raises:** `ValueError` on shapes that do not fit.

    **Reference:** Collins, Mokhtari, Shakkottai, How Does the Task Landscape Affect MAML
    Performance?, 2022, arXiv:2010.14672.
    """

    covariance: Float[Array, "*groups d d"] = eqx.field(converter=jnp.asarray)
    solution: Float[Array, "*groups d"] = eqx.field(converter=jnp.asarray)
    noise: Float[Array, "*groups"] = eqx.field(converter=jnp.asarray)
    spread: Float[Array, "*groups"] = eqx.field(converter=jnp.asarray, default=0.0)

    def __check_init__(self):
        shape = jnp.shape(self.solution)
        if not shape or jnp.shape(self.covariance) != (*shape, shape[-1]):
            raise ValueError(
                f"covariance {jnp.shape(self.covariance)} does not fit the solution's {shape}"
            )
        for name in ("noise", "spread"):
            checks.nonnegative(name, getattr(self, name))
            if jnp.shape(getattr(self, name)) not in ((), shape[:-1]):
                raise ValueError(f"{name} must have a number for each group, {shape[:-1]}")

    def sample(self, key: PRNGKeyArray, m: int) -> tuple[Float[Array, "m d"], Float[Array, " m"]]:
        """`m` samples $(x, y)$ of one task, whose $w^*$ is drawn too if there is a spread."""
        checks.count("m", m)
        own, inputs, noise = jax.random.split(key, 3)
        d, dtype = self.solution.shape[-1], self.solution.dtype
        w = self.solution + jnp.sqrt(self.spread) * jax.random.normal(own, (d,), dtype)
        X = jax.random.normal(inputs, (m, d), dtype) @ jnp.linalg.cholesky(self.covariance).T
        return X, X @ w + self.noise * jax.random.normal(noise, (m,), dtype)

    def draw(self, key: PRNGKeyArray, num_tasks: int, m: int, m_query: int) -> Task:
        """Tasks of random groups, with `m` samples of support and others of query."""
        checks.count("num_tasks", num_tasks)
        checks.count("m_query", m_query)
        groups = self.solution.shape[0]

        def one(key):
            which, samples = jax.random.split(key)
            i = jax.random.randint(which, (), 0, groups)
            full = lambda a: jnp.broadcast_to(a, (groups,))[i]
            task = LinearTask(
                self.covariance[i], self.solution[i], full(self.noise), full(self.spread)
            )
            X, y = task.sample(samples, m + m_query)
            return Task((X[:m], y[:m]), (X[m:], y[m:]))

        return jax.vmap(one)(jax.random.split(key, num_tasks))

    def population_risk(self, w: Float[Array, " d"]) -> Float[Array, ""]:
        """$\\tfrac12 \\mathbb E (\\langle w, x\\rangle - y)^2$, the mean over groups."""
        return _quadratic_mean(self, self.covariance, w) + 0.5 * jnp.mean(self.noise**2)


def _quadratic_mean(tasks: LinearTask, Q, w) -> Float[Array, ""]:
    """$\\tfrac12 \\mathbb E \\|w - w^*\\|_Q^2$ over groups and within."""
    gap = w - tasks.solution
    own = jnp.einsum("...i,...ij,...j->...", gap, Q, gap)
    within = tasks.spread * jnp.trace(Q, axis1=-2, axis2=-1)
    return 0.5 * jnp.mean(own + within)


def adapted_covariance(
    covariance: Float[Array, "*groups d d"], alpha: Scalar, m: Any
) -> Float[Array, "*groups d d"]:
    """The metric in which a point is judged after one inner step on $m$ samples, of covariance $S$:

    $$Q = \\mathbb E (I - \\alpha S) \\Sigma (I - \\alpha S) = \\Sigma - 2 \\alpha
      \\Sigma^2 + \\alpha^2 \\Bigl(\\bigl(1 + \\tfrac1m\\bigr) \\Sigma^3 +
      \\tfrac1m \\mathrm{tr}(\\Sigma^2)\\, \\Sigma\\Bigr).$$

    **Arguments:**

    - `covariance`: $\\Sigma$.
    - `alpha`: the inner step.
    - `m`: the size of the support; infinity for the whole task.
    """
    square = covariance @ covariance
    trace = jnp.trace(square, axis1=-2, axis2=-1)[..., None, None]
    noisy = (1 + 1 / m) * square @ covariance + trace / m * covariance
    return covariance - 2 * alpha * square + alpha**2 * noisy


def _weighted(Q, tasks: LinearTask) -> Float[Array, " d"]:
    return jnp.linalg.solve(
        jnp.mean(Q, axis=0), jnp.mean(jnp.einsum("...ij,...j->...i", Q, tasks.solution), axis=0)
    )


def maml_population_solution(tasks: LinearTask, alpha: Scalar, m: Any) -> Float[Array, " d"]:
    """$(\\mathbb E Q)^{-1} \\mathbb E [Q w^*]$, where `MAML` with one inner step ends.

    **Arguments:** groups of tasks; `alpha` and `m` as of `adapted_covariance`.
    """
    return _weighted(adapted_covariance(tasks.covariance, alpha, m), tasks)


def nal_population_solution(tasks: LinearTask) -> Float[Array, " d"]:
    """$(\\mathbb E \\Sigma)^{-1} \\mathbb E [\\Sigma w^*]$, where `NonAdaptive` ends.

    **Arguments:** groups of tasks.
    """
    return _weighted(tasks.covariance, tasks)


def excess_risk(
    w: Float[Array, " d"], tasks: LinearTask, alpha: Scalar, m: Any
) -> Float[Array, ""]:
    """The excess risk after one inner step on $m$ samples,

    $$\\tfrac12 \\mathbb E \\|w - w^*\\|_Q^2 + \\tfrac{\\alpha^2}{2m} \\mathbb E [s^2
      \\mathrm{tr}(\\Sigma^2)].$$

    **Arguments:** groups of tasks; `alpha` and `m` as of `adapted_covariance`.
    """
    square = jnp.trace(tasks.covariance @ tasks.covariance, axis1=-2, axis2=-1)
    noise = alpha**2 / (2 * m) * jnp.mean(tasks.noise**2 * square)
    return _quadratic_mean(tasks, adapted_covariance(tasks.covariance, alpha, m), w) + noise


def hardness_mixture(
    d: int,
    rho_easy: float,
    rho_hard: float,
    R: float,
    r_easy: float,
    r_hard: float,
    noise: float = 0.0,
) -> LinearTask:
    """Two groups of tasks, half each: easy ones, of inputs with covariance $\\rho_E I$ and
    solutions $N(0, r_E I)$, and hard ones, with $\\rho_H I$ and $N(R \\mathbf 1, r_H I)$.

    A gradient step contracts by $1 - \\alpha \\rho$, so a small $\\rho$ is hard. `MAML` weighs a
    group by how much of it is left to learn after the step, and gains over `NonAdaptive` where hard
    tasks lie close together and far from the easy ones.

    **Arguments:**

    - `d`: the dimension.
    - `rho_easy`, `rho_hard`, `r_easy`, `r_hard`: as above; positive, and not negative.
    - `R`: the distance in each entry.
    - `noise`: $s$ of all.

    **Raises:** `ValueError` on what is not positive.
    """
    checks.count("d", d)
    for name, value in (("rho_easy", rho_easy), ("rho_hard", rho_hard)):
        checks.positive(name, value)
    for name, value in (("r_easy", r_easy), ("r_hard", r_hard)):
        checks.nonnegative(name, value)
    rho, spread = jnp.asarray([rho_easy, rho_hard]), jnp.asarray([r_easy, r_hard])
    solution = jnp.stack([jnp.zeros(d), jnp.full(d, R)]).astype(rho.dtype)
    return LinearTask(
        rho[:, None, None] * jnp.eye(d, dtype=rho.dtype),
        solution,
        jnp.full(2, noise, rho.dtype),
        spread,
    )
