"""What a client does between two talks: steps of stochastic gradient descent on its own data."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ..core import Scalar, checks, loops, tree
from .algorithm import Loss


class Padded(eqx.Module):
    """Samples of clients that have more and less of them, stacked.

    **Arguments:**

    - `data`: leaves `(n, longest, ...)`; a client's samples come first.
    - `count`: how many each client has, shape `(n,)`.
    """

    data: PyTree[Array]
    count: Int[Array, " n"]

    @staticmethod
    def of(clients: Sequence[PyTree[Any]]) -> "Padded":
        """Pad with zeros to the longest.

        **Arguments:**

        - `clients`: each client's samples, leaves `(count, ...)`, count >= 1.

        **Raises:** `ValueError` on a client without samples, or whose leaves disagree about them.
        """
        counts = [_length(client) for client in clients]
        if not counts or min(counts) < 1:
            raise ValueError(f"each client needs a sample, got counts {counts}")

        def stack(*leaves):
            fill = np.zeros((len(leaves), max(counts), *leaves[0].shape[1:]), leaves[0].dtype)
            for row, leaf in zip(fill, leaves, strict=True):
                row[: len(leaf)] = leaf
            return jnp.asarray(fill)

        data = jax.tree.map(stack, *(jax.tree.map(np.asarray, client) for client in clients))
        return Padded(data, jnp.asarray(counts, jnp.int32))


def _length(data: PyTree[Any]) -> int:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(data)]
    if () in shapes or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(f"samples must lie along the first axis of all leaves, got {shapes}")
    return shapes[0][0]


class AbstractLocalSolver(eqx.Module):
    """Local training from the parameters that a client holds."""

    @abc.abstractmethod
    def run(
        self,
        loss: Loss,
        params: PyTree[Array],
        data: PyTree[Array],
        count: Int[Array, ""] | int | None,
        key: PRNGKeyArray,
        scale: Any = 1.0,
    ) -> PyTree[Array]:
        """The parameters of one client after its steps.

        **Arguments:**

        - `loss`: `(params, minibatch) -> scalar`.
        - `params`: where it starts.
        - `data`: its samples, leaves `(longest, ...)`.
        - `count`: how many there are; all if `None`.
        - `key`: for its minibatches.
        - `scale`: multiplies the step size.
        """

    def run_all(
        self,
        loss: Loss,
        params: PyTree[Array],
        batch: PyTree[Array] | Padded,
        keys: PRNGKeyArray,
        scale: Any = 1.0,
    ) -> PyTree[Array]:
        """`run` at all local nodes.

        **Arguments:**

        - `params`, `keys`: stacked.
        - `batch`: `Padded`, or a tree with leaves `(local, samples, ...)`.
        """
        if isinstance(batch, Padded):
            return jax.vmap(lambda p, d, c, k: self.run(loss, p, d, c, k, scale))(
                params, batch.data, batch.count, keys
            )
        return jax.vmap(lambda p, d, k: self.run(loss, p, d, None, k, scale))(params, batch, keys)


def _check(solver):
    checks.positive("step_size", solver.step_size)
    checks.count("num_steps", solver.num_steps)
    if solver.batch_size is not None:
        checks.count("batch_size", solver.batch_size)
    checks.interval("momentum", solver.momentum, 0, 1, open_high=True)
    checks.nonnegative("weight_decay", solver.weight_decay)


def minibatch(
    data: PyTree[Array], count: Int[Array, ""] | int | None, key: PRNGKeyArray, size: int | None
) -> PyTree[Array]:
    """Samples of one client, drawn uniformly with replacement.

    **Arguments:**

    - `data`: leaves `(longest, ...)`.
    - `count`: how many there are; all if `None`.
    - `key`: for the draw.
    - `size`: how many are drawn; all data, without a draw, if `None`.

    **Raises:** `ValueError` if clients are padded and there is no `size`.
    """
    length = _length(data)
    if size is None:
        if count is not None:
            raise ValueError("clients of different lengths need a batch_size")
        return data
    picked = jax.random.randint(key, (size,), 0, length if count is None else count)
    return jax.tree.map(lambda a: a[picked], data)


def _steps(
    solver: "LocalSGD | LocalSAM", direction: Callable, params, data, count, key, scale
) -> PyTree[Array]:
    """Heavy-ball steps along `direction(y, minibatch)`, momentum from zero."""

    def one(carry, key):
        y, velocity = carry
        found = direction(y, minibatch(data, count, key, solver.batch_size))
        found = tree.axpy(found, solver.weight_decay, y)
        velocity = tree.axpy(found, solver.momentum, velocity)
        return (tree.axpy(y, -scale * solver.step_size, velocity), velocity), None

    start = params, jax.tree.map(jnp.zeros_like, params)
    return loops.scan(one, start, jax.random.split(key, solver.num_steps))[0][0]


class LocalSGD(AbstractLocalSolver):
    """Steps of stochastic gradient descent with momentum and weight decay,

    $$v \\leftarrow \\mu v + \\nabla f(y; \\xi) + \\delta y, \\qquad y \\leftarrow y - \\eta v,$$

    from v = 0. Minibatches are drawn uniformly, with replacement.

    **Arguments:**

    - `step_size`: $\\eta > 0$.
    - `num_steps`: K.
    - `batch_size`: samples of a step; all, without a draw, if `None`.
    - `momentum`: $\\mu$, in [0, 1).
    - `weight_decay`: $\\delta \\ge 0$.

    **Raises:** `ValueError` on others; where it runs, if clients are padded and there is no
    `batch_size`.

    **Reference:** McMahan, Moore, Ramage, Hampson, Agüera y Arcas, Communication-Efficient Learning
    of Deep Networks from Decentralized Data, 2017, arXiv:1602.05629.
    """

    step_size: Scalar = eqx.field(converter=checks.scalar)
    num_steps: int = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True, default=None)
    momentum: Scalar = eqx.field(converter=checks.scalar, default=0.0)
    weight_decay: Scalar = eqx.field(converter=checks.scalar, default=0.0)

    def __check_init__(self):
        _check(self)

    def run(self, loss, params, data, count, key, scale=1.0):
        direction = lambda y, batch: tree.gradient(lambda q: loss(q, batch), y)
        return _steps(self, direction, params, data, count, key, scale)


class LocalSAM(AbstractLocalSolver):
    """Steps of sharpness-aware minimization: the gradient is that at the worst point near by, on
    the same minibatch,

    $$v \\leftarrow \\mu v + \\nabla f\\Bigl(y + \\rho \\frac{g}{\\|g\\|}; \\xi\\Bigr) + \\delta y,
      \\qquad g = \\nabla f(y; \\xi), \\qquad y \\leftarrow y - \\eta v .$$

    The norm is over all leaves; where the gradient is zero nothing is added. Two gradients a step.

    **Arguments:**

    - `rho`: $\\rho \\ge 0$; 0 is `LocalSGD`, at twice the work.
    - `step_size`, `num_steps`, `batch_size`, `momentum`, `weight_decay`: see `LocalSGD`.

    **Raises:** as `LocalSGD`.

    **Reference:** Foret, Kleiner, Mobahi, Neyshabur, Sharpness-Aware Minimization for Efficiently
    Improving Generalization, 2021, arXiv:2010.01412.
    """

    rho: Scalar = eqx.field(converter=checks.scalar)
    step_size: Scalar = eqx.field(converter=checks.scalar)
    num_steps: int = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True, default=None)
    momentum: Scalar = eqx.field(converter=checks.scalar, default=0.0)
    weight_decay: Scalar = eqx.field(converter=checks.scalar, default=0.0)

    def __check_init__(self):
        _check(self)
        checks.nonnegative("rho", self.rho)

    def run(self, loss, params, data, count, key, scale=1.0):
        def direction(y, batch):
            gradient = lambda p: tree.gradient(lambda q: loss(q, batch), p)
            found = gradient(y)
            length = tree.norm(found)
            # Where the gradient is zero the point stays, rather than become NaN.
            worst = tree.axpy(y, self.rho / jnp.where(length > 0, length, 1), found)
            return gradient(worst)

        return _steps(self, direction, params, data, count, key, scale)
