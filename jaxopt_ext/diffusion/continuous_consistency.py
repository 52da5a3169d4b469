r"""Consistency models trained in continuous time: one call of a network from noise to data.

With `TrigFlow`, $x_t = \cos t\, x_0 + \sin t\, z$, the model is

$$f(x, t) = \cos t\, x - s_d \sin t\, F(x/s_d, t),$$

which is $x$ at $t = 0$, and is to be constant along the probability-flow equation $dx/dt = s_d
F^\star(x/s_d, t)$: its end point is then what f gives anywhere on it.
"""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..core import checks, loops
from .denoiser import Denoiser
from .magnitude_preserving import normalize
from .networks import Sinusoidal
from .objectives import AbstractLevels, LogNormal
from .schedules import Node
from .trigflow import TrigVelocity


class ConsistencyModel(eqx.Module):
    r"""$f(x, t) = \cos t\, x - s_d \sin t\, F(x/s_d, t)$, the data at the end of the path through
    $x$ at time $t$.

    The network F is called as that of a `TrigVelocity`, `(x, node) -> output`, or with a condition
    as a third argument. For training it should look at `node.t` itself, by features of few
    frequencies: the derivative of $\log\tan t$ blows up at both ends. `MLPDenoiser(shape,
    embedding=FourierFeatures(32, 0.3, key=key), level=time)`, say, or `Sinusoidal`.

    **Arguments:**

    - `network`: F, of one sample or a batch, best one trained as a `TrigVelocity`.
    - `sigma_data`: $s_d$, the root mean square of the data.

    **Raises:** `ValueError` if `sigma_data` is not positive.

    **Reference:** Lu, Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency
    Models, 2025, arXiv:2410.11081.
    """

    network: Callable[..., Array]
    sigma_data: float = eqx.field(static=True, default=0.5)

    def __check_init__(self):
        checks.positive("sigma_data", self.sigma_data)

    def output(self, x: Array, t: Float[Array, ""], condition: Any = None) -> Array:
        """F of a sample, or of a batch at one time."""
        t = jnp.asarray(t, x.dtype)
        node = Node(t, jnp.cos(t), self.sigma_data * jnp.sin(t))
        more = () if condition is None else (condition,)
        return self.network(x / self.sigma_data, node, *more)

    def __call__(self, x: Array, t: Float[Array, ""], condition: Any = None) -> Array:
        """f of a sample, or of a batch at one time."""
        t = jnp.asarray(t, x.dtype)
        output = self.output(x, t, condition)
        return jnp.cos(t) * x - self.sigma_data * jnp.sin(t) * output

    def sample(
        self,
        key: PRNGKeyArray,
        shape: Sequence[int],
        times: Sequence[float] | None = None,
        condition: Any = None,
        dtype: Any = None,
    ) -> Array:
        r"""Samples from noise, by a call at each time: $x \leftarrow f(\cos t\, x + \sin t\, z, t)$
        with new noise, pure noise at first.

        **Arguments:**

        - `key`: random key.
        - `shape`: of a sample, or of a batch.
        - `times`: falling times in $(0, \pi/2]$; two steps, at the level 80 and at 1.1, if not
          given. `times[:1]` is one step.
        - `condition`: what the network is called with besides.
        - `dtype`: of the samples.

        **Raises:** `ValueError` for times that do not fall or are out of range.
        """
        if times is None:
            times = (math.atan(80 / self.sigma_data), 1.1)
        t = np.asarray(times, np.float64)
        inside = t.ndim == 1 and t.size and np.all((t > 0) & (t <= math.pi / 2))
        if not inside or np.any(np.diff(t) >= 0):
            raise ValueError(f"times must be a vector that falls, in (0, pi/2], got {times}")
        dtype = jnp.zeros(()).dtype if dtype is None else dtype
        first = np.arange(t.size) == 0
        kept, new = np.where(first, 0, np.cos(t)), np.where(first, 1, np.sin(t))
        rows = tuple(jnp.asarray(a, dtype) for a in (t, kept, self.sigma_data * new))

        def step(x, row):
            (t, kept, new), key = row
            noisy = kept * x + new * jax.random.normal(key, x.shape, dtype)
            return self(noisy, t, condition), None

        keys = jax.random.split(key, t.size)
        return loops.scan(step, jnp.zeros(tuple(shape), dtype), (rows, keys))[0]


def consistency_tangent(
    model: ConsistencyModel,
    x: Array,
    t: Float[Array, ""],
    velocity: Array,
    warmup: Float[Array, ""] | float = 1.0,
    condition: Any = None,
) -> tuple[Array, Array]:
    r"""F of one sample, and $\cos t$ times the derivative of f along a path,

    $$g = -\cos^2 t\, (s_d F - \dot x) - r \cos t \sin t\, (x + s_d \tfrac{dF}{dt}),$$

    where $dF/dt$ is the total derivative, x moving too. It is one derivative forward, along
    $\cos t \sin t\,(\dot x, 1)$: products before and not after it, since $dF/dt$ alone may overflow
    near $\pi/2$.

    **Arguments:**

    - `model`: f.
    - `x`, `t`: a sample and its time.
    - `velocity`: $\dot x$, shaped like `x`.
    - `warmup`: $r$; below 1 it holds back the part that is not stable.
    - `condition`: what the network is called with besides.

    **Returns:** F, and $g$, through which no derivative flows.

    **Reference:** Lu, Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency
    Models, 2025, arXiv:2410.11081.
    """
    t = jnp.asarray(t, x.dtype)
    cos, sin, width = jnp.cos(t), jnp.sin(t), model.sigma_data
    x, velocity = jax.lax.stop_gradient((x, velocity))
    along = cos * sin
    output, moved = jax.jvp(
        lambda x, t: model.output(x, t, condition), (x, t), (along * velocity, along)
    )
    tangent = -(cos**2) * (width * output - velocity) - warmup * (along * x + width * moved)
    return output, jax.lax.stop_gradient(tangent)


class AbstractTangentBound(eqx.Module):
    """What keeps tangents from being large."""

    @abc.abstractmethod
    def __call__(self, tangent: Array) -> Array:
        """The tangent of one sample, bounded."""


class TangentNorm(AbstractTangentBound):
    r"""$g/(|g| + c)$, with the Euclidean norm of a sample.

    **Arguments:**

    - `constant`: $c$.

    **Raises:** `ValueError` if it is not positive.
    """

    constant: float = 0.1

    def __check_init__(self):
        checks.positive("constant", self.constant)

    def __call__(self, tangent):
        return tangent / (jnp.linalg.norm(tangent.ravel()) + self.constant)


class TangentClip(AbstractTangentBound):
    """Each coordinate cut off at plus and minus a bound.

    **Arguments:**

    - `bound`: the bound.

    **Raises:** `ValueError` if it is not positive.
    """

    bound: float = 1.0

    def __check_init__(self):
        checks.positive("bound", self.bound)

    def __call__(self, tangent):
        return jnp.clip(tangent, -self.bound, self.bound)


class WeightedConsistency(eqx.Module):
    r"""A consistency model and what is trained beside it: the logarithm $w(t)$ of the weight of its
    loss, a linear function of features of the time that starts at zero. Only `model` is of use
    afterwards.

    **Arguments:**

    - `model`: the consistency model.
    - `frequencies`: number of frequencies of the features.
    - `dtype`: of the weights.
    """

    model: ConsistencyModel
    embedding: Sinusoidal
    weight: Float[Array, " features"]
    bias: Float[Array, ""]

    def __init__(self, model: ConsistencyModel, frequencies: int = 16, dtype: Any = None):
        self.model = model
        self.embedding = Sinusoidal(frequencies)
        self.weight = jnp.zeros(self.embedding.size, dtype)
        self.bias = jnp.zeros((), dtype)

    def log_weight(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """$w$ at a time."""
        return self.embedding(t) @ self.weight + self.bias


Teacher = Denoiser | Callable[[Any], Denoiser] | None


def _check_parts(teacher, levels):
    checks.instance("levels", levels, AbstractLevels, "LogNormal()")
    if teacher is not None and not isinstance(teacher, Denoiser) and not callable(teacher):
        raise TypeError(f"teacher must be a Denoiser or a function, got {teacher!r}")


def _velocity(teacher, model, x, t, data, noise, condition):
    """Slope of the teacher's path through a sample, or of the circle through data and noise."""
    if teacher is None:
        return jnp.cos(t) * noise - jnp.sin(t) * data
    if not isinstance(teacher, Denoiser):
        teacher, condition = teacher(condition), None  # it is in the teacher then
    predicts = teacher.predicts
    if not isinstance(predicts, TrigVelocity) or predicts.sigma_data != model.sigma_data:
        raise ValueError(
            f"the teacher must predict TrigVelocity({model.sigma_data}), got {predicts}: see "
            "trigflow_teacher"
        )
    taught = ConsistencyModel(teacher.network, model.sigma_data)
    return model.sigma_data * jax.lax.stop_gradient(taught.output(x, t, condition))


def _mean(one, levels, model, batch, key):
    """Mean over a batch of a function of time, data, noise of the data's size and condition."""
    x, condition = batch if isinstance(batch, tuple) else (batch, None)
    level_key, noise_key = jax.random.split(key)
    nodes = levels.draw(level_key, len(x), x.dtype)
    t = jnp.arctan2(nodes.sigma, model.sigma_data * nodes.alpha)
    noise = model.sigma_data * jax.random.normal(noise_key, x.shape, x.dtype)
    return jax.tree.map(jnp.mean, jax.vmap(one)(t, x, noise, condition))


class ContinuousConsistencyLoss(eqx.Module):
    r"""$\mathbb E\, \frac{e^{w(t)}}{D} |F - F^- - \bar g|^2 - w(t)$, whose derivative in F is that
    of consistency along the path, $f^\top df/dt$ weighed by $1/(s_d \tan t)$; $F^-$ and the bounded
    tangent $\bar g$ of `consistency_tangent` have none, and $D$ is the number of coordinates.

    The paths are a teacher's, which is distilled, or straight from data and noise. Training starts
    from the weights of a network trained as a `TrigVelocity`, in either case, and goes best with
    Adam (0.9, 0.99) and a `PowerFunctionAverage`.

    The model is a `ConsistencyModel`, $w = 0$, or a `WeightedConsistency`. A batch is an array of
    samples, or a pair of samples and conditions, a pytree with a row for each, which the network is
    called with: labels, or strengths of guidance of a teacher that is guided.

    Without bound and warm-up, with a network that looks at $\log\tan t$, this is the older
    continuous consistency loss, which is unstable.

    **Arguments:**

    - `teacher`: what `trigflow_teacher` gives, or a `Denoiser` of `TrigVelocity`; or a function
      from the condition of one sample to one; or `None` for the data's own paths.
    - `bound`: `TangentNorm(0.1)`, `TangentClip(1.0)` or `None`.
    - `warmup_steps`: steps in which $r$ of the tangent grows to 1; about a quarter of a short
      training, 0 for none.
    - `levels`: law of $\sigma/\alpha = s_d \tan t$.

    **Returns:** the loss, and the metric `tangent`, the root mean square of $g$ before the bound.

    **Raises:** `TypeError` for parts of other types; `ValueError` for a negative `warmup_steps`,
    and, when called, for a teacher of another prediction.

    **Reference:** Lu, Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency
    Models, 2025, arXiv:2410.11081.
    """

    teacher: Any = None
    bound: AbstractTangentBound | None = TangentNorm()
    warmup_steps: int = eqx.field(static=True, default=10_000)
    levels: AbstractLevels = LogNormal(-1.0, 1.4)

    def __check_init__(self):
        _check_parts(self.teacher, self.levels)
        checks.count("warmup_steps", self.warmup_steps, minimum=0)
        if self.bound is not None:
            checks.instance("bound", self.bound, AbstractTangentBound, "TangentNorm()")

    def __call__(
        self, model: ConsistencyModel | WeightedConsistency, batch: Any, context: Any
    ) -> tuple[Array, dict]:
        plain = model.model if isinstance(model, WeightedConsistency) else model

        def one(t, data, noise, condition):
            x = jnp.cos(t) * data + jnp.sin(t) * noise
            velocity = _velocity(self.teacher, plain, x, t, data, noise, condition)
            share = 1.0
            if self.warmup_steps:
                share = jnp.minimum(1, context.step.astype(x.dtype) / self.warmup_steps)
            output, tangent = consistency_tangent(plain, x, t, velocity, share, condition)
            bounded = tangent if self.bound is None else self.bound(tangent)
            error = jnp.mean((output - jax.lax.stop_gradient(output) - bounded) ** 2)
            if isinstance(model, WeightedConsistency):
                log_weight = model.log_weight(t)
                error = jnp.exp(log_weight) * error - log_weight
            return error, jnp.mean(tangent**2)

        loss, square = _mean(one, self.levels, plain, batch, context.key)
        return loss, {"tangent": jnp.sqrt(square)}


class DiscreteConsistencyLoss(eqx.Module):
    r"""$\mathbb E\, \frac{1}{D\, h\, s_d \tan t} |f(x_t, t) - f^-(x_t - h \dot x, t - h)|^2$, what
    `ContinuousConsistencyLoss` is the limit of: with $h \to 0$ their derivatives are the same,
    where that has no bound, warm-up or $w$.

    **Arguments:**

    - `teacher`: as there.
    - `step_size`: $h$; where $t$ is less, it is $t$.
    - `levels`: law of $\sigma/\alpha = s_d \tan t$.

    **Raises:** `TypeError` for parts of other types; `ValueError` if `step_size` is not positive,
    and, when called, for a teacher of another prediction.

    **Reference:** Song, Dhariwal, Chen, Sutskever, Consistency Models, 2023, arXiv:2303.01469.
    """

    teacher: Any = None
    step_size: float = 1e-2
    levels: AbstractLevels = LogNormal(-1.0, 1.4)

    def __check_init__(self):
        _check_parts(self.teacher, self.levels)
        checks.positive("step_size", self.step_size)

    def __call__(self, model: ConsistencyModel, batch: Any, context: Any) -> tuple[Array, dict]:
        def one(t, data, noise, condition):
            x = jnp.cos(t) * data + jnp.sin(t) * noise
            velocity = _velocity(self.teacher, model, x, t, data, noise, condition)
            h = jnp.minimum(t, jnp.asarray(self.step_size, x.dtype))
            before = jax.lax.stop_gradient(model(x - h * velocity, t - h, condition))
            square = jnp.mean((model(x, t, condition) - before) ** 2)
            return square / (h * model.sigma_data * jnp.tan(t))

        return _mean(one, self.levels, model, batch, context.key), {}


class DoubleNorm(eqx.Module):
    r"""Adaptive double normalization, $\mathrm{norm}(h)\, p(s) + p(b)$ with $p(v) = v /
    \mathrm{rms}(v)$: scale $s$ and shift $b$ are linear in the condition and of one size each, so
    that no level of noise makes the layer, or its derivative in time, large.

    **Arguments:**

    - `channels`: of the hidden value, its first axis.
    - `condition`: size of the condition.
    - `groups`: of channels which are normalized together.
    - `key`: random key.
    - `dtype`: of the weights.

    **Raises:** `ValueError` if channels are no whole number of groups.

    **Reference:** Lu, Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency
    Models, 2025, arXiv:2410.11081.
    """

    norm: eqx.nn.GroupNorm
    scale: eqx.nn.Linear
    shift: eqx.nn.Linear

    def __init__(
        self,
        channels: int,
        condition: int,
        groups: int = 1,
        *,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        checks.count("channels", channels)
        checks.count("groups", groups)
        if channels % groups:
            raise ValueError(f"channels must be a multiple of the groups {groups}, got {channels}")
        keys = jax.random.split(key)
        self.norm = eqx.nn.GroupNorm(groups, channels, channelwise_affine=False)
        self.scale = eqx.nn.Linear(condition, channels, dtype=dtype, key=keys[0])
        self.shift = eqx.nn.Linear(condition, channels, dtype=dtype, key=keys[1])

    def __call__(
        self, hidden: Float[Array, "c ..."], condition: Float[Array, " k"]
    ) -> Float[Array, "c ..."]:
        spread = lambda v: normalize(v, 0).reshape(-1, *(1,) * (hidden.ndim - 1))
        return self.norm(hidden) * spread(self.scale(condition)) + spread(self.shift(condition))
