"""Attacks on inputs: small changes that raise the loss."""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..core import checks, loops, tree

InputLoss = Callable[[Float[Array, "b ..."], Int[Array, "b ..."]], Float[Array, ""]]


class AbstractAttack(eqx.Module):
    """Inputs near given ones, in the range of inputs, at which a loss is larger."""

    @abc.abstractmethod
    def __call__(
        self, loss: InputLoss, x: Float[Array, "b ..."], y: Int[Array, "b ..."], key: PRNGKeyArray
    ) -> Float[Array, "b ..."]:
        """The inputs; `loss(x, y)` is the mean over the batch."""

    def check(self, x: Float[Array, "b ..."]) -> None:
        """Raise `ValueError` for inputs outside the range, where their numbers can be seen."""
        del x


class NoAttack(AbstractAttack):
    """The inputs as they are."""

    def __call__(self, loss, x, y, key):
        return x


def _check_ball(eps, norm, bounds):
    checks.nonnegative("eps", eps)
    checks.finite("eps", eps)
    if norm not in (2, math.inf):
        raise ValueError(f"norm must be 2 or inf, got {norm!r}")
    if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
        raise ValueError(f"bounds must be two numbers, the smaller first, got {bounds}")


def _check_inputs(x, bounds):
    # NaN is no matter of bounds: it shows in the loss.
    if bounds is None or isinstance(x, Tracer):
        return
    x = np.asarray(x)
    if np.any(outside := (x < bounds[0]) | (x > bounds[1])):
        raise ValueError(f"inputs must be within {bounds}, got {x[outside][0]}")


def _clip(x, bounds):
    return x if bounds is None else jnp.clip(x, *(jnp.asarray(b, x.dtype) for b in bounds))


def _lengths(x):
    """Norm of each sample, shaped to divide it."""
    return jnp.sqrt(jnp.sum(x**2, axis=tuple(range(1, x.ndim)), keepdims=True))


def _direction(loss, x, y, norm):
    """Steepest ascent of each sample's own loss in the norm; zero where the loss is flat."""
    # Of the sum: the loss of a sample must not depend on how many there are.
    slope = tree.gradient(lambda x: loss(x, y) * len(x), x)
    if norm == math.inf:
        return jnp.sign(slope)
    length = _lengths(slope)
    return jnp.where(length > 0, slope / jnp.where(length > 0, length, 1), slope)


def _project(moved, x, eps, norm):
    """The point of the ball around `x` next to `moved`."""
    if norm == math.inf:
        return jnp.clip(moved, x - eps, x + eps)
    away = moved - x
    length = _lengths(away)
    return x + away * jnp.where(length > eps, eps / jnp.where(length > eps, length, 1), 1)


class FGSM(AbstractAttack):
    r"""One step of the fast gradient sign method, $x + \epsilon\,\mathrm{sign}\nabla_x\ell$, or
    with the gradient divided by its length for `norm=2`, cut to the range of inputs.

    **Arguments:**

    - `eps`: $\epsilon \ge 0$.
    - `norm`: `inf` or 2, of one sample.
    - `bounds`: the range of inputs, or `None`.

    **Raises:** `ValueError` for other values, and for inputs outside the range.
    """

    eps: Float[Array, ""] = eqx.field(converter=checks.scalar)
    norm: float = eqx.field(static=True, default=math.inf)
    bounds: tuple[float, float] | None = eqx.field(static=True, default=(0.0, 1.0))

    def __check_init__(self):
        _check_ball(self.eps, self.norm, self.bounds)

    def check(self, x):
        _check_inputs(x, self.bounds)

    def __call__(self, loss, x, y, key):
        step = jnp.asarray(self.eps, x.dtype) * _direction(loss, x, y, self.norm)
        return _clip(x + step, self.bounds)


class RandomTargetFGSM(AbstractAttack):
    r"""A step towards a wrong label: from $x$ or, by one coin a batch, from $x$ and uniform noise
    in $[-\epsilon, \epsilon]$, along $-\mathrm{sign}\nabla_x\ell(\cdot, t)$ with $t$ uniform among
    the other labels, cut to the cube around $x$ and to the range of inputs.

    **Arguments:**

    - `eps`: $\epsilon \ge 0$; the paper has 9 of 255.
    - `num_classes`: at least 2.
    - `bounds`: the range of inputs, or `None`.
    - `noise_probability`: of the coin.
    - `steps`: each of $\epsilon$ over their number, or of `step_size` if that is larger.
    - `step_size`: $\epsilon$ if not given.

    **Raises:** `ValueError` for other values, and for inputs outside the range.
    """

    eps: Float[Array, ""] = eqx.field(converter=checks.scalar)
    num_classes: int = eqx.field(static=True)
    bounds: tuple[float, float] | None = eqx.field(static=True, default=(0.0, 1.0))
    noise_probability: Float[Array, ""] = eqx.field(converter=checks.scalar, default=0.8)
    steps: int = eqx.field(static=True, default=1)
    step_size: Any = eqx.field(converter=checks.scalar, default=None)

    def __check_init__(self):
        _check_ball(self.eps, math.inf, self.bounds)
        checks.count("num_classes", self.num_classes, 2)
        checks.interval("noise_probability", self.noise_probability, 0.0, 1.0)
        checks.count("steps", self.steps)
        if self.step_size is not None:
            checks.positive("step_size", self.step_size)

    def check(self, x):
        _check_inputs(x, self.bounds)

    def __call__(self, loss, x, y, key):
        eps = jnp.asarray(self.eps, x.dtype)
        step = eps if self.step_size is None else jnp.asarray(self.step_size, x.dtype)
        step = jnp.maximum(step, eps / self.steps)
        label, noise, coin = jax.random.split(key, 3)
        target = (y + jax.random.randint(label, y.shape, 1, self.num_classes, y.dtype)) % (
            self.num_classes
        )
        probability = jnp.asarray(self.noise_probability, x.dtype)
        far = jax.random.uniform(noise, x.shape, x.dtype, -1, 1) * eps
        begin = jnp.where(jax.random.bernoulli(coin, probability), x + far, x)

        def move(at):
            moved = at - step * _direction(loss, at, target, math.inf)
            return _clip(_project(moved, x, eps, math.inf), self.bounds)

        if self.steps == 1:
            return move(begin)
        return loops.fori_loop(0, self.steps, lambda _, at: move(at), begin)


class PGD(AbstractAttack):
    r"""Projected gradient ascent: steps of a fixed size along the sign of the gradient, or along
    the gradient for `norm=2`, each followed by the projection on the ball around $x$ and a cut to
    the range of inputs.

    **Arguments:**

    - `eps`: radius of the ball, $\ge 0$.
    - `step`: size of the steps, $\ge 0$.
    - `steps`: their number.
    - `norm`: `inf` or 2, of one sample.
    - `bounds`: the range of inputs, or `None`.
    - `random_start`: start at a random point of the ball, uniform in the cube.

    **Raises:** `ValueError` for other values, and for inputs outside the range.
    """

    eps: Float[Array, ""] = eqx.field(converter=checks.scalar)
    step: Float[Array, ""] = eqx.field(converter=checks.scalar)
    steps: int = eqx.field(static=True)
    norm: float = eqx.field(static=True, default=math.inf)
    bounds: tuple[float, float] | None = eqx.field(static=True, default=(0.0, 1.0))
    random_start: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        _check_ball(self.eps, self.norm, self.bounds)
        checks.nonnegative("step", self.step)
        checks.count("steps", self.steps)

    def check(self, x):
        _check_inputs(x, self.bounds)

    def __call__(self, loss, x, y, key):
        eps, step = jnp.asarray(self.eps, x.dtype), jnp.asarray(self.step, x.dtype)
        cut = lambda at: _clip(_project(at, x, eps, self.norm), self.bounds)
        begin = x
        if self.random_start:
            begin = cut(x + jax.random.uniform(key, x.shape, x.dtype, -1, 1) * eps)
        move = lambda _, at: cut(at + step * _direction(loss, at, y, self.norm))
        return loops.fori_loop(0, self.steps, move, begin)
