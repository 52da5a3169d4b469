"""Derivatives of samples at a memory that does not grow with the number of steps."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..core import checks, loops
from ..core.closure import hoist
from .denoiser import AbstractDenoiser, Sample, combine
from .exponential import SinglestepRow, singlestep, weighted
from .runge_kutta import AbstractRungeKutta, stages
from .sampler import Sampled, as_numbers, check_times, prepare
from .schedules import AbstractSchedule, Node, Times


def sample_adjoint(
    model: AbstractDenoiser,
    method: AbstractRungeKutta,
    schedule: AbstractSchedule,
    times: Times,
    x: Sample,
    *,
    checkpoints: int = 0,
    backward: Times | None = None,
    denoise: bool = False,
) -> Sampled:
    r"""`sample` with derivatives by the adjoint equation (AdjointDPM).

    In $y = x/\alpha$ and $\rho = \sigma/\alpha$ the probability-flow equation is
    $dy/d\rho = \hat\epsilon_\theta(\alpha y, \rho)$. The derivatives $p = dL/dy$ and
    $g = dL/d\theta$ of a loss of the sample satisfy

    $$\frac{dp}{d\rho} = -\Big(\frac{\partial\hat\epsilon}{\partial y}\Big)^T p, \qquad
    \frac{dg}{d\rho} = -\Big(\frac{\partial\hat\epsilon}{\partial\theta}\Big)^T p, \qquad
    p(\rho_0) = \frac{dL}{dy_0}, \quad g(\rho_0) = 0,$$

    and are integrated from the data's end back to the noise by the same method, with y again beside
    them. Only the sample is kept; one transposed derivative of the network for each evaluation
    gives all terms. In `DataForm()` the variables are $x/\sigma$ and $\alpha/\sigma$.

    The derivative is that of the equation to the order of the method, not that of the steps, which
    `sample` gives at a memory that grows with them. $p$ and $g$ are summed in single precision at
    least. Derivatives flow to `x`, to the model's leaves and to arrays that it closes over, its
    conditions say; times and schedule are constants. For forward mode and for second derivatives
    there is `sample`. A network with dropout must be in its inference mode.

    For instance, the noise whose sample a classifier takes for a class, by steps in the signs of
    the gradient, with `score` the logarithm of the class's probability:

    ```python
    def ascend(x, _):
        value = lambda x: score(sample_adjoint(model, Heun(), schedule, times, x).value)
        return x + 0.05 * jnp.sign(jax.grad(value)(x)), None


    x, _ = jax.lax.scan(ascend, x, length=30)
    ```

    **Arguments:**

    - `model`: a `Denoiser`, or one that wraps it.
    - `method`: `Euler()`, `Midpoint()`, `Heun()` or `RK4()`.
    - `schedule`: the noise schedule that the model was trained with.
    - `times`: falling times, one step between each two.
    - `x`: the noisy start at `times[0]`, a pytree of floating-point arrays.
    - `checkpoints`: how many points of the way are kept, evenly among the inner times. The way back
      is set right at each, for equations too stiff to be run backwards.
    - `backward`: falling times of the way back, with the same ends; `times` if left out. Points are
      kept at times that both have.
    - `denoise`: end with the predicted data at the last time, for one more evaluation.

    **Returns:** a `Sampled`, whose `evaluations` are those of the way there.

    **Raises:** `TypeError` if `method` is no explicit Runge-Kutta method, as those that draw noise
    or remember outputs are not, and in forward mode. `ValueError` if times do not fall or leave the
    schedule's range, if `backward` has other ends, or if there are fewer common inner times than
    `checkpoints`.

    **Reference:** Pan, Liew, Tan, Feng, Yan, AdjointDPM: Adjoint Sensitivity Method for Gradient
    Backpropagation of Diffusion Probabilistic Models, 2024, arXiv:2307.10711.
    """
    if not isinstance(method, AbstractRungeKutta):
        raise TypeError(
            "method must be an explicit Runge-Kutta method, Heun() say, or Euler() for DDIM, got "
            f"{method!r}"
        )
    x, _, times = prepare(model, method, schedule, times, x, None)
    checks.count("checkpoints", checkpoints, 0)
    back = times if backward is None else check_times(schedule, backward)
    if (back[0], back[-1]) != (times[0], times[-1]):
        raise ValueError(
            f"backward must lead from {times[0]} to {times[-1]}, got {back[0]} and {back[-1]}"
        )
    slots = {t: i for i, t in enumerate(_kept(times, back, checkpoints))}
    places = lambda times: np.array([slots.get(t, checkpoints) for t in times], np.int32)
    forward = (method.plan(schedule, times), places(times[1:]))
    forward, last = as_numbers((forward, schedule.nodes(times[-1])), x)
    reverse = _reversed(method, schedule, back, places(back[:0:-1]), x)
    try:
        value = _run(hoist(model), method, x, forward, reverse, last, checkpoints, denoise)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(
            "sample_adjoint has derivatives in reverse mode only; sample has them in forward mode, "
            "at a memory that does not grow with the steps either"
        ) from error
    return Sampled(value, method.evaluations(len(times) - 1) + denoise)


def _kept(times: Times, back: Times, count: int) -> Times:
    common = np.intersect1d(times[1:-1], back[1:-1])
    if count > len(common):
        raise ValueError(
            f"checkpoints must be at most the number of common inner times, {len(common)}, got "
            f"{count}"
        )
    return common[np.round(np.linspace(-1, len(common), count + 2)[1:-1]).astype(int)]


class _Reverse(NamedTuple):
    """Steps from the data's end to the noise, a row for each but in `ends`.

    With $a$ the size in $y = x/a$, `sizes` are those at the stages and `ends` those at the data's
    and the noise's end; `moves` are the steps in $\\rho$; `slots` tell which kept point stands at a
    step's beginning.
    """

    rows: SinglestepRow
    sizes: Float[Array, "n p"]
    moves: Float[Array, " n"]
    ends: Float[Array, "2"]
    slots: Int[Array, " n"]


def _reversed(method, schedule, back, slots, x) -> _Reverse:
    nodes = schedule.nodes(back[::-1])
    here, there = Node(*(a[:-1] for a in nodes)), Node(*(a[1:] for a in nodes))
    rows = stages(method.tableau, method.form, schedule, here, there)
    sizes, rho = method.form.variables(nodes)
    numbers: Any = method.form.variables(rows.nodes)[0], np.diff(rho), sizes[np.array([0, -1])]
    # What is summed is so in single precision at least, whatever the network is evaluated in.
    wide = jax.tree.map(_widened, x)
    sizes, moves, both = as_numbers(numbers, wide)
    return _Reverse(as_numbers(rows, x), sizes, moves, both, jnp.asarray(slots))


def _widened(a: Array) -> Array:
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))


@eqx.filter_jit
def _run(model, method, x, forward, reverse, last, count, denoise):
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    # Devices of a mesh each have their own derivatives; where they share a leaf, these are summed
    # by what makes it theirs.
    axes = loops.varying_axes((arrays, x))
    model, x = eqx.combine(loops.vary(arrays, axes), rest), loops.vary(x, axes)
    x = _flow((model, x), method, forward, reverse, count)
    return model.data(x, last) if denoise else x


@eqx.filter_custom_vjp
def _flow(model_and_x, method, forward, reverse, count):
    return _there(model_and_x, method, forward, count)[0]


@_flow.def_fwd
def _flow_forward(perturbed, model_and_x, method, forward, reverse, count):
    del perturbed, reverse
    value, kept = _there(model_and_x, method, forward, count)
    return value, (value, kept)


@_flow.def_bwd
def _flow_backward(residuals, cotangent, perturbed, model_and_x, method, forward, reverse, count):
    del forward
    x, kept = residuals
    model, _ = model_and_x
    theta, rest = eqx.partition(model, perturbed[0])
    output = lambda theta, x, node: method.form.evaluate(eqx.combine(theta, rest), x, node)
    p = jax.tree.map(
        lambda c, a: jnp.zeros_like(a) if c is None else c,
        cotangent,
        x,
        is_leaf=lambda leaf: leaf is None,
    )
    p = combine((reverse.ends[0], jax.tree.map(_widened, p)))
    g = jax.tree.map(lambda a: jnp.zeros_like(_widened(a)), theta)

    def step(carry, row):
        x, p, g = carry
        rows, sizes, move, slot = row
        if count:
            held = jax.tree.map(lambda a: a[jnp.minimum(slot, count - 1)], kept)
            x = jax.tree.map(lambda a, b: jnp.where(slot < count, a, b), held, x)
        return _back(output, method, theta, rows, sizes, move, x, p, g), None

    table = reverse.rows, reverse.sizes, reverse.moves, reverse.slots
    (_, p, g), _ = loops.scan(step, (x, p, g), table)
    p = combine((1 / reverse.ends[1], p))
    like = lambda a, b: a.astype(b.dtype)
    grads = jax.tree.map(like, g, theta), jax.tree.map(like, p, x)
    return eqx.combine(grads, jax.tree.map(lambda _: None, model_and_x))


def _there(model_and_x, method, forward, count):
    """The sample, and the `count` points of the way that are kept."""
    model, x = model_and_x
    kept = jax.tree.map(lambda a: jnp.zeros((count, *a.shape), a.dtype), x)

    def step(carry, row):
        x, kept = carry
        new = singlestep(method.form, model, x, row[0])
        new = jax.tree.map(lambda a, b: a.astype(b.dtype), new, x)
        if count:
            kept = jax.tree.map(lambda a, b: a.at[row[1]].set(b, mode="drop"), kept, new)
        return (new, kept), None

    return loops.scan(step, (x, kept), forward)[0]


def _back(output, method, theta, rows, sizes, move, x, p, g):
    """One step of the augmented equation."""
    tableau = method.tableau
    outputs, slopes, shares = [], [], []
    for i, row in enumerate(tableau.stages):
        node = Node(*(a[i] for a in rows.nodes))
        point, costate = x, p
        if i:
            point = weighted(rows.keep[i - 1], x, rows.weights[i - 1], tuple(outputs))
            costate = combine((1, p), *zip([move * a for a in row], slopes, strict=True))
        point = jax.tree.map(lambda a, b: a.astype(b.dtype), point, x)
        out, pull = jax.vjp(lambda theta, x, node=node: output(theta, x, node), theta, point)
        share, slope = pull(jax.tree.map(lambda a, b: a.astype(b.dtype), costate, out))
        outputs.append(out)
        slopes.append(combine((-sizes[i], jax.tree.map(_widened, slope))))
        shares.append(combine((-1, jax.tree.map(_widened, share))))
    weights = [move * b for b in tableau.weights]
    add = lambda a, parts: combine((1, a), *zip(weights, parts, strict=True))
    new = weighted(rows.keep[-1], x, rows.weights[-1], tuple(outputs))
    new = jax.tree.map(lambda a, b: a.astype(b.dtype), new, x)
    return new, add(p, slopes), add(g, shares)
