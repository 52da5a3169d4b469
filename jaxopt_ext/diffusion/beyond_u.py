r"""Networks whose blocks are differential equations in depth (Beyond U)."""

import abc
import itertools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.extend
import jax.numpy as jnp
from jax.experimental.ode import odeint
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..core import checks, loops
from .denoiser import combine
from .networks import (
    AbstractNetwork,
    Conv3x3,
    Down,
    FourierFeatures,
    Join,
    Keep,
    PixelAttention,
    Through,
    Up,
    channels_first,
    group_norm,
    image_head,
    image_stem,
    log_ratio,
    one_hot,
    zeroed,
)
from .runge_kutta import RK4, AbstractRungeKutta, Tableau
from .schedules import Node

RightSide = Callable[[PyTree, PyTree[Array], Array], PyTree[Array]]


class AbstractDepthSolver(eqx.Module):
    """What integrates an equation over the unit interval."""

    @abc.abstractmethod
    def __call__(self, right_side: RightSide, args: PyTree, y: PyTree[Array]) -> PyTree[Array]:
        r"""$y(1)$ of $dy/ds = f(\theta, y, s)$, $y(0)$ given.

        **Arguments:**

        - `right_side`: f, a function that closes over nothing.
        - `args`: $\theta$, any pytree; derivatives flow to its floating-point arrays.
        - `y`: the start.
        """


class CheckpointedSteps(AbstractDepthSolver):
    r"""Steps of an explicit Runge-Kutta method, whose derivative is that of the steps.

    In reverse mode the steps are computed again, from about $2\sqrt n$ values that are kept.

    **Arguments:**

    - `num_steps`: n.
    - `method`: `RK4()`, `Midpoint()`, `Heun()` or `Euler()`, of which the tableau is used.

    **Raises:** `ValueError` if `num_steps` is below 1; `TypeError` for another method.
    """

    num_steps: int = eqx.field(static=True, default=2)
    method: AbstractRungeKutta = eqx.field(default_factory=lambda: RK4())

    def __check_init__(self):
        _check_steps(self)

    def __call__(self, right_side, args, y):
        tableau, n = self.method.tableau, self.num_steps
        f = lambda y, s: right_side(args, y, s)

        @jax.checkpoint
        def one(y, i):
            return _step(f, tableau, y, i / n, 1 / n), None

        length = math.isqrt(n)
        part = jax.checkpoint(lambda y, steps: loops.scan(one, y, steps))
        whole = n - n % length
        steps = jnp.arange(n, dtype=_dtype(y))
        y, _ = loops.scan(part, y, steps[:whole].reshape(-1, length))
        return loops.scan(one, y, steps[whole:])[0] if whole < n else y


class AdjointSteps(AbstractDepthSolver):
    r"""Steps of an explicit Runge-Kutta method, whose derivative is that of the equation: from the
    end back to the start,

    $$\frac{dp}{ds} = -\Big(\frac{\partial f}{\partial y}\Big)^T p, \qquad
    \frac{dg}{ds} = -\Big(\frac{\partial f}{\partial\theta}\Big)^T p,$$

    beside y, by the same steps. Memory does not grow with the steps; the derivative is right to
    the order of the method. There is no forward mode.

    **Arguments:**

    - `num_steps`: n.
    - `method`: `RK4()`, `Midpoint()`, `Heun()` or `Euler()`, of which the tableau is used.

    **Raises:** `ValueError` if `num_steps` is below 1; `TypeError` for another method.

    **Reference:** Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations,
    2018, arXiv:1806.07366.
    """

    num_steps: int = eqx.field(static=True, default=2)
    method: AbstractRungeKutta = eqx.field(default_factory=lambda: RK4())

    def __check_init__(self):
        _check_steps(self)

    def __call__(self, right_side, args, y):
        arrays, rest = eqx.partition(args, eqx.is_inexact_array)
        # Devices of a mesh each have their own derivatives, which are summed by what spreads.
        axes = loops.varying_axes((arrays, y))
        args, y = eqx.combine(loops.vary(arrays, axes), rest), loops.vary(y, axes)
        return _adjoint((args, y), right_side, self.method.tableau, self.num_steps)


class DormandPrince(AbstractDepthSolver):
    """Adaptive steps of the method of Dormand and Prince, with the derivative of the equation.

    It runs until the error of each step is small, as `jax.experimental.ode.odeint` measures it.
    There is no forward mode, and no count of operations.

    **Arguments:**

    - `rtol`, `atol`: tolerances of a step, relative and absolute.

    **Raises:** `ValueError` if a tolerance is not positive, and in a call if both are below 1e-5
    and the values have single precision or less, where such steps may not be found.

    **Reference:** Dormand, Prince, A family of embedded Runge-Kutta formulae, 1980.
    """

    rtol: float = eqx.field(static=True, default=1e-4)
    atol: float = eqx.field(static=True, default=1e-4)

    def __check_init__(self):
        checks.positive("rtol", self.rtol)
        checks.positive("atol", self.atol)

    def __call__(self, right_side, args, y):
        dtype = _dtype(y)
        if max(self.rtol, self.atol) < 1e-5 and jnp.finfo(dtype).bits < 64:
            raise ValueError(
                f"rtol or atol must be at least 1e-5 in {dtype}, got {self.rtol}, {self.atol}"
            )
        arrays, rest = eqx.partition(args, eqx.is_inexact_array)
        f = lambda y, s, arrays: _like(right_side(eqx.combine(arrays, rest), y, s), y)
        ends = jnp.array([0, 1], dtype)
        way = odeint(f, y, ends, arrays, rtol=self.rtol, atol=self.atol)
        return jax.tree.map(lambda a: a[-1], way)


def _check_steps(solver):
    checks.count("num_steps", solver.num_steps)
    if not isinstance(solver.method, AbstractRungeKutta):
        raise TypeError(
            f"method must be an explicit Runge-Kutta method, RK4() say, got {solver.method!r}"
        )


def _dtype(y):
    return jnp.result_type(*jax.tree.leaves(y))


def _like(new, old):
    return jax.tree.map(lambda a, b: a.astype(b.dtype), new, old)


def _step(f, tableau: Tableau, y, s, h):
    """One step of length h from s."""
    slopes = []
    for place, row in zip(tableau.places, tableau.stages, strict=True):
        parts = [(h * a, k) for a, k in zip(row, slopes, strict=True) if a]
        slopes.append(f(_like(combine((1, y), *parts), y), s + place * h))
    weights = [h * b for b in tableau.weights]
    return _like(combine((1, y), *zip(weights, slopes, strict=True)), y)


def _steps(f, tableau, n, y, back=False):
    """The value at the other end after n steps, from 0 or back from 1."""
    start, h = (1, -1 / n) if back else (0, 1 / n)
    step = lambda y, i: (_step(f, tableau, y, start + h * i, h), None)
    return loops.scan(step, y, jnp.arange(n, dtype=_dtype(y)))[0]


@eqx.filter_custom_vjp
def _adjoint(args_and_y, right_side, tableau, n):
    args, y = args_and_y
    return _steps(lambda y, s: right_side(args, y, s), tableau, n, y)


@_adjoint.def_fwd
def _adjoint_forward(perturbed, args_and_y, right_side, tableau, n):
    del perturbed
    y = _adjoint(args_and_y, right_side, tableau, n)
    return y, y


@_adjoint.def_bwd
def _adjoint_backward(y, cotangent, perturbed, args_and_y, right_side, tableau, n):
    theta, rest = eqx.partition(args_and_y[0], perturbed[0])
    zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    p = eqx.combine(cotangent, zeros(y))

    def augmented(state, s):
        y, p, _ = state
        output = lambda theta, y: _like(right_side(eqx.combine(theta, rest), y, s), y)
        slope, pull = jax.vjp(output, theta, y)
        g, q = pull(p)
        return slope, *jax.tree.map(jnp.negative, (q, g))

    _, p, g = _steps(augmented, tableau, n, (y, p, zeros(theta)), back=True)
    return eqx.combine((g, p), jax.tree.map(lambda _: None, args_and_y))


def _second_order(args, y, s):
    (field, condition, duration), (h, v) = args, y
    slope = field((h, v), s * duration, condition)
    return jax.tree.map(lambda a: duration * a, (v, slope))


def _first_order(args, y, s):
    (field, condition, duration), (h,) = args, y
    return (jax.tree.map(lambda a: duration * a, field((h,), s * duration, condition)),)


def _raw(duration, dtype):
    checks.positive("duration", duration)
    return jnp.asarray(duration + math.log(-math.expm1(-duration)), dtype)  # softplus inverted


class SecondOrderBlock(eqx.Module):
    r"""A block of a network whose hidden value moves like a point with a velocity:

    $$h''(\tau) = f(h, h', \tau, c), \qquad h(0) = h_0, \quad h'(0) = g(h_0), \qquad
    h_0 \mapsto h(T).$$

    The depth $\tau$ is not the diffusion's time, which is part of the condition c. The duration T
    is trained; it is the softplus of a number, and so positive. Weights are shared along the
    depth, operations are not: n steps of `RK4` evaluate f 4n times.

    **Arguments:**

    - `field`: f, `((h, v), tau, condition) -> acceleration`, like `h`; `ConvolutionField` or
      `DenseField`, say.
    - `velocity`: g, `h -> v`, like `h`.
    - `duration`: T before training.
    - `solver`: `CheckpointedSteps()`, `AdjointSteps()` or `DormandPrince()`.
    - `dtype`: of the duration.

    **Raises:** `ValueError` for a duration that is not positive; `TypeError` for another solver.

    **Reference:** Calvo-Ordonez, Cheng, Huang, Zhang, Yang, Schönlieb, Aviles-Rivero, Beyond U:
    Making Diffusion Models Faster & Lighter, 2023, arXiv:2310.20092.
    """

    field: Callable[..., Any]
    velocity: Callable[[Any], Any]
    raw_duration: Float[Array, ""]
    solver: AbstractDepthSolver

    def __init__(
        self,
        field: Callable[..., Any],
        velocity: Callable[[Any], Any],
        duration: float = 1.0,
        solver: AbstractDepthSolver | None = None,
        *,
        dtype: Any = None,
    ):
        self.field, self.velocity, self.raw_duration = field, velocity, _raw(duration, dtype)
        self.solver = _checked(solver)

    @classmethod
    def convolutional(cls, channels, condition, attention=False, solver=None, *, key, dtype=None):
        """A block of `ConvolutionField` and a convolution's velocity; used by `ContinuousUNet`."""
        keys = jax.random.split(key)
        field = ConvolutionField(channels, condition, 2, attention, key=keys[0], dtype=dtype)
        velocity = Velocity(Conv3x3(channels, channels, key=keys[1], dtype=dtype))
        return cls(field, velocity, solver=solver, dtype=dtype)

    @classmethod
    def dense(cls, width, condition, solver=None, *, key, dtype=None):
        """A block of `DenseField` and a linear layer's velocity; used by `ContinuousMLP`."""
        keys = jax.random.split(key)
        field = DenseField(width, condition, 2, key=keys[0], dtype=dtype)
        velocity = Velocity(eqx.nn.Linear(width, width, dtype=dtype, key=keys[1]))
        return cls(field, velocity, solver=solver, dtype=dtype)

    @property
    def duration(self) -> Float[Array, ""]:
        """T."""
        return jax.nn.softplus(self.raw_duration)

    def __call__(self, hidden: Any, condition: Any) -> Any:
        start = hidden, _like(self.velocity(hidden), hidden)
        return self.solver(_second_order, (self.field, condition, self.duration), start)[0]


class FirstOrderBlock(eqx.Module):
    r"""A block of a network whose hidden value moves without a velocity of its own,
    $h'(\tau) = f(h, \tau, c)$, $h_0 \mapsto h(T)$; what `SecondOrderBlock` is measured against.

    **Arguments:**

    - `field`: f, `((h,), tau, condition) -> slope`, like `h`.
    - `duration`: T before training.
    - `solver`: `CheckpointedSteps()`, `AdjointSteps()` or `DormandPrince()`.
    - `dtype`: of the duration.

    **Raises:** `ValueError` for a duration that is not positive; `TypeError` for another solver.

    **Reference:** Chen, Rubanova, Bettencourt, Duvenaud, Neural Ordinary Differential Equations,
    2018, arXiv:1806.07366.
    """

    field: Callable[..., Any]
    raw_duration: Float[Array, ""]
    solver: AbstractDepthSolver

    def __init__(
        self,
        field: Callable[..., Any],
        duration: float = 1.0,
        solver: AbstractDepthSolver | None = None,
        *,
        dtype: Any = None,
    ):
        self.field, self.raw_duration = field, _raw(duration, dtype)
        self.solver = _checked(solver)

    @classmethod
    def convolutional(cls, channels, condition, attention=False, solver=None, *, key, dtype=None):
        """A block of `ConvolutionField`; used by `ContinuousUNet`."""
        field = ConvolutionField(channels, condition, 1, attention, key=key, dtype=dtype)
        return cls(field, solver=solver, dtype=dtype)

    @classmethod
    def dense(cls, width, condition, solver=None, *, key, dtype=None):
        """A block of `DenseField`; used by `ContinuousMLP`."""
        field = DenseField(width, condition, 1, key=key, dtype=dtype)
        return cls(field, solver=solver, dtype=dtype)

    @property
    def duration(self) -> Float[Array, ""]:
        """T."""
        return jax.nn.softplus(self.raw_duration)

    def __call__(self, hidden: Any, condition: Any) -> Any:
        args = self.field, condition, self.duration
        return self.solver(_first_order, args, (hidden,))[0]


def _checked(solver):
    solver = CheckpointedSteps() if solver is None else solver
    checks.instance("solver", solver, AbstractDepthSolver, "CheckpointedSteps()")
    return solver


class Velocity(eqx.Module):
    """The hyperbolic tangent of a layer."""

    layer: Callable[[Array], Array]

    def __call__(self, hidden):
        return jnp.tanh(self.layer(hidden))


class ConvolutionField(eqx.Module):
    r"""$u + K_2 * [u, \tau]$ with $u = \mathrm{silu}(\mathrm{norm}(K_1 * [h, v])) + W c$: the
    condition shifts channels, the depth is one more of them.

    **Arguments:**

    - `channels`: of the hidden value.
    - `condition`: size of the condition.
    - `seen`: 2 if the velocity is seen beside the hidden value, 1 if there is none.
    - `attention`: attention between pixels at the end.
    - `key`: random key.
    - `dtype`: of the weights.
    """

    convolutions: tuple[Conv3x3, Conv3x3]
    norm: eqx.nn.GroupNorm
    shift: eqx.nn.Linear
    attention: PixelAttention | None

    def __init__(
        self,
        channels: int,
        condition: int,
        seen: int = 2,
        attention: bool = False,
        *,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        keys = jax.random.split(key, 4)
        self.convolutions = (
            Conv3x3(seen * channels, channels, key=keys[0], dtype=dtype),
            Conv3x3(channels + 1, channels, key=keys[1], dtype=dtype),
        )
        self.norm = group_norm(channels, dtype)
        self.shift = eqx.nn.Linear(condition, channels, dtype=dtype, key=keys[2])
        attend = lambda: PixelAttention(channels, key=keys[3], dtype=dtype)
        self.attention = attend() if attention else None

    def __call__(self, state, tau, condition):
        first, second = self.convolutions
        u = jax.nn.silu(self.norm(first(jnp.concatenate(state))))
        u = u + self.shift(condition)[:, None, None]
        depth = jnp.full((1, *u.shape[1:]), tau, u.dtype)
        u = u + second(jnp.concatenate([u, depth]))
        return u if self.attention is None else self.attention(u, condition)


class DenseField(eqx.Module):
    r"""$W_2 [u, \tau]$ with $u = \mathrm{silu}(W_1 [h, v]) + W c$, all with shifts.

    **Arguments:**

    - `width`: size of the hidden value.
    - `condition`: size of the condition.
    - `seen`: 2 if the velocity is seen beside the hidden value, 1 if there is none.
    - `key`: random key.
    - `dtype`: of the weights.
    """

    first: eqx.nn.Linear
    second: eqx.nn.Linear
    shift: eqx.nn.Linear

    def __init__(
        self, width: int, condition: int, seen: int = 2, *, key: PRNGKeyArray, dtype: Any = None
    ):
        keys = jax.random.split(key, 3)
        linear = lambda a, key: eqx.nn.Linear(a, width, dtype=dtype, key=key)
        self.first, self.second = linear(seen * width, keys[0]), linear(width + 1, keys[1])
        self.shift = linear(condition, keys[2])

    def __call__(self, state, tau, condition):
        u = jax.nn.silu(self.first(jnp.concatenate(state))) + self.shift(condition)
        return self.second(jnp.concatenate([u, jnp.full(1, tau, u.dtype)]))


class Merge(eqx.Module):
    """Channels that stand side by side made fewer, pixel by pixel, before a block."""

    weight: Float[Array, "out in"]
    block: Any

    def __init__(self, inputs: int, outputs: int, block: Any, *, key, dtype=None):
        bound = 1 / math.sqrt(inputs)
        self.weight = jax.random.uniform(key, (outputs, inputs), dtype, -bound, bound)
        self.block = block

    def __call__(self, x, condition):
        return self.block(jnp.tensordot(self.weight, x, 1), condition)


class ContinuousUNet(AbstractNetwork):
    """A U-Net of one dynamic block at each resolution and side: continuous in depth.

    **Arguments:**

    - `shape`: of a sample, with or without a leading axis of channels.
    - `channels`: at each resolution, halved from one to the next.
    - `attention`: attention between pixels at the lowest resolution.
    - `dynamics`: `SecondOrderBlock`, or `FirstOrderBlock`.
    - `solver`: of all blocks, `CheckpointedSteps()` if not given.
    - `num_classes`: number of labels, if there are any.
    - `embedding`: features of the level; 16 random frequencies if not given.
    - `level`: the node's level of noise.
    - `key`: random key.
    - `dtype`: of the weights.

    **Raises:** `ValueError` for sides that cannot be halved that often.

    **Reference:** Calvo-Ordonez, Cheng, Huang, Zhang, Yang, Schönlieb, Aviles-Rivero, Beyond U:
    Making Diffusion Models Faster & Lighter, 2023, arXiv:2310.20092.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    embedding: Any
    condition: eqx.nn.Linear
    first: Conv3x3
    blocks: tuple[Any, ...]
    norm: eqx.nn.GroupNorm
    last: Conv3x3
    level: Callable[[Node], Array]
    num_classes: int | None = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...] = (1, 8, 8),
        channels: tuple[int, ...] = (8, 16),
        attention: bool = False,
        dynamics: Any = SecondOrderBlock,
        solver: AbstractDepthSolver | None = None,
        num_classes: int | None = None,
        embedding: Any = None,
        level: Callable[[Node], Array] = log_ratio,
        *,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        images, halvings = channels_first("shape", shape), len(channels) - 1
        if any(side % 2**halvings for side in images[1:]):
            raise ValueError(f"sides of {shape} cannot be halved {halvings} times")
        dtype = jnp.zeros(()).dtype if dtype is None else dtype
        keys = iter(jax.random.split(key, 5 + 4 * len(channels)))
        if embedding is None:
            embedding = FourierFeatures(16, key=next(keys), dtype=dtype)
        size = 4 * channels[0]
        conv = lambda a, b, stride=1: Conv3x3(a, b, stride, key=next(keys), dtype=dtype)
        make = lambda count, attention=False: dynamics.convolutional(
            count, size, attention, solver, key=next(keys), dtype=dtype
        )
        pairs, blocks = list(itertools.pairwise(channels)), []
        for here, below in pairs:
            blocks += [Keep(make(here)), Through(Down(conv(here, below, 2)))]
        blocks.append(Through(make(channels[-1], attention)))
        for here, below in reversed(pairs):
            merge = Merge(here + below, here, make(here), key=next(keys), dtype=dtype)
            blocks += [Through(Up(eqx.nn.Identity())), Join(merge)]
        self.shape, self.embedding, self.level = tuple(shape), embedding, level
        inputs = embedding.size + (num_classes or 0)
        self.condition = eqx.nn.Linear(inputs, size, dtype=dtype, key=next(keys))
        self.first = conv(images[0], channels[0])
        self.blocks = tuple(blocks)
        self.norm = group_norm(channels[0], dtype)
        self.last = zeroed(conv(channels[0], images[0]))
        self.num_classes = num_classes

    def stem(self, x, node, label=None):
        return image_stem(self, x, node, label)

    def head(self, hidden, condition):
        del condition
        return image_head(self, hidden)


class ContinuousMLP(AbstractNetwork):
    """A perceptron of dynamic blocks, which are told the features of the level.

    **Arguments:**

    - `shape`: of a sample.
    - `width`, `depth`: size and number of the blocks.
    - `dynamics`: `SecondOrderBlock`, or `FirstOrderBlock`.
    - `solver`: of all blocks, `CheckpointedSteps()` if not given.
    - `num_classes`: number of labels, if there are any.
    - `embedding`: features of the level; 32 random frequencies if not given.
    - `level`: the node's level of noise.
    - `key`: random key.
    - `dtype`: of the weights.

    **Raises:** `ValueError` or `TypeError` for a width or depth that is none.

    **Reference:** Calvo-Ordonez, Cheng, Huang, Zhang, Yang, Schönlieb, Aviles-Rivero, Beyond U:
    Making Diffusion Models Faster & Lighter, 2023, arXiv:2310.20092.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    embedding: Any
    first: eqx.nn.Linear
    blocks: tuple[Any, ...]
    last: eqx.nn.Linear
    level: Callable[[Node], Array]
    num_classes: int | None = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 96,
        depth: int = 1,
        dynamics: Any = SecondOrderBlock,
        solver: AbstractDepthSolver | None = None,
        num_classes: int | None = None,
        embedding: Any = None,
        level: Callable[[Node], Array] = log_ratio,
        *,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        checks.count("width", width)
        checks.count("depth", depth)
        dtype = jnp.zeros(()).dtype if dtype is None else dtype
        embedding_key, *keys = jax.random.split(key, depth + 3)
        if embedding is None:
            embedding = FourierFeatures(32, key=embedding_key, dtype=dtype)
        linear = lambda a, b, key: eqx.nn.Linear(a, b, dtype=dtype, key=key)
        size, told = math.prod(shape), embedding.size + (num_classes or 0)
        self.shape, self.embedding, self.level = tuple(shape), embedding, level
        self.first = linear(size + told, width, keys[0])
        self.blocks = tuple(
            dynamics.dense(width, told, solver, key=key, dtype=dtype) for key in keys[2:]
        )
        self.last = linear(width, size, keys[1])
        self.num_classes = num_classes

    def stem(self, x, node, label=None):
        features = self.embedding(self.level(node)).astype(x.dtype)
        condition = jnp.concatenate([features, one_hot(label, self.num_classes, x.dtype)])
        seen = jnp.concatenate([x.reshape(-1), condition])
        return jax.nn.silu(self.first(seen)), condition

    def head(self, hidden, condition):
        del condition
        return self.last(hidden).reshape(self.shape)


def parameter_count(model: PyTree) -> int:
    """How many numbers a model's floating-point arrays hold. Random frequencies, which are not
    trained, are no such arrays.

    **Arguments:**

    - `model`: any pytree.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))


def flop_count(network: Callable[..., Array], shape: tuple[int, ...], dtype: Any = None) -> int:
    """Floating-point operations of one call of a network on one sample, as the compiler counts
    them, with each turn of a scan counted.

    **Arguments:**

    - `network`: `(x, node) -> like x`.
    - `shape`: of a sample.
    - `dtype`: of it.

    **Raises:** `ValueError` for a network whose loops end when the numbers say so, as those of
    `DormandPrince` do.
    """
    dtype = jnp.zeros(()).dtype if dtype is None else dtype
    one: Any = jax.ShapeDtypeStruct((), dtype)
    arguments = jax.ShapeDtypeStruct(tuple(shape), dtype), Node(one, one, one)
    arrays, rest = eqx.partition(network, eqx.is_array)
    call = lambda arrays, x, node: eqx.combine(arrays, rest)(x, node)
    # The compiler counts the body of a loop once; this way scans are unrolled.
    with jax.disable_jit():
        traced = jax.make_jaxpr(call)(arrays, *arguments)
    if _loops(traced.jaxpr):
        raise ValueError("operations of loops without a fixed length cannot be counted")
    flat = jax.tree.leaves((arrays, *arguments))
    run = jax.jit(jax.extend.core.jaxpr_as_fun(traced))
    costs: Any = run.lower(*flat).cost_analysis()
    return round(costs["flops"])


def _loops(jaxpr):
    """Whether there is a loop in a program."""
    for equation in jaxpr.eqns:
        inner = (getattr(a, "jaxpr", a) for a in jax.tree.leaves(equation.params))
        if equation.primitive.name in ("while", "scan") or any(
            _loops(a) for a in inner if hasattr(a, "eqns")
        ):
            return True
    return False
