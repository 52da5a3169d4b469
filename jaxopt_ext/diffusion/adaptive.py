"""Sampling with steps chosen on the way."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core import checks, loops
from ..core.closure import hoist
from ..core.solution import Status
from . import exponential
from .denoiser import AbstractDenoiser, Sample
from .exponential import AbstractForm, NoiseForm
from .sampler import Sampled, as_numbers
from .schedules import AbstractSchedule, Node
from .stepping import stages


class DPMSolverAdaptive(eqx.Module):
    """Steps of DPM-Solver of two orders that share their evaluations, and the choice of the next h.

    A step from s to t in $\\lambda$ gives $x^-$ of order p - 1 and $x^+$ of order p. With

    $$E = \\max_{\\text{samples}} \\Big\\| \\frac{x^+ - x^-}{\\max(\\text{atol}, \\text{rtol}
    \\max(|x^-|, |x^-_{\\text{before}}|))} \\Big\\|_{\\text{rms}}, \\qquad
    h \\leftarrow \\min(\\theta h E^{-1/p}, \\lambda_{\\text{end}} - \\lambda)$$

    it is taken, with $x^+$, where $E \\le 1$, and tried again with the new h where not. p = 2 pairs
    orders 1 and 2 with the inner point 1/2, p = 3 orders 2 and 3 with 1/3 and 2/3.

    **Arguments:**

    - `order`: p, 2 or 3; evaluations a step, those that are not taken included.
    - `atol`, `rtol`: tolerances, for samples of size 1.
    - `theta`: safety factor $\\theta \\in (0, 1)$.
    - `h0`: the first step in $\\lambda$.
    - `form`: which output is expanded, `NoiseForm()` or `DataForm()`.
    - `taylor`: as in `SingleStep`.
    - `batch_ndim`: how many leading axes count samples. They share their steps; under `jax.vmap`
      each has its own.

    **Raises:** `ValueError` if numbers leave their ranges.

    **Reference:** Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver: A Fast ODE Solver for Diffusion
    Probabilistic Model Sampling in Around 10 Steps, 2022, arXiv:2206.00927.
    """

    order: int = 3
    atol: Float[Array, ""] | float = eqx.field(default=0.0078, converter=checks.scalar)
    rtol: Float[Array, ""] | float = eqx.field(default=0.05, converter=checks.scalar)
    theta: Float[Array, ""] | float = eqx.field(default=0.9, converter=checks.scalar)
    h0: Float[Array, ""] | float = eqx.field(default=0.05, converter=checks.scalar)
    form: AbstractForm = NoiseForm()
    taylor: bool = False
    batch_ndim: int = 1

    def __check_init__(self):
        checks.count("order", self.order, 2)
        if self.order > 3:
            raise ValueError(f"order must be 2 or 3, got {self.order}")
        checks.positive("atol", self.atol)
        checks.nonnegative("rtol", self.rtol)
        checks.finite("rtol", self.rtol)
        checks.interval("theta", self.theta, 0.0, 1.0, open_low=True, open_high=True)
        checks.positive("h0", self.h0)
        checks.count("batch_ndim", self.batch_ndim, 0)
        checks.instance("form", self.form, AbstractForm, "NoiseForm()")

    def pair(self, model: AbstractDenoiser, x: Sample, nodes: tuple[Node, ...]) -> tuple:
        """$x^-$ and $x^+$ of a step over these nodes: its beginning, inner points and end."""
        places = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}[self.order]
        keeps, weights = stages(self.form, nodes, places, self.taylor)
        lower_nodes = (*nodes[: self.order - 1], nodes[-1])
        lower = stages(self.form, lower_nodes, places[: self.order - 2], self.taylor)[1][-1]
        outputs = (self.form.evaluate(model, x, nodes[0]),)
        for i, node in enumerate(nodes[1:-1]):
            point = exponential.weighted(keeps[i], x, weights[i], outputs)
            outputs = (*outputs, self.form.evaluate(model, point, node))
        end = lambda w, outputs: exponential.weighted(keeps[-1], x, w, outputs)
        return end(lower, outputs[:-1]), end(weights[-1], outputs)

    def error(self, lower: Sample, higher: Sample, before: Sample) -> Float[Array, ""]:
        """E."""

        def leaf(low, high, old):
            size = jnp.maximum(jnp.abs(low), jnp.abs(old))
            ratio = jnp.abs(high - low) / jnp.maximum(self.atol, self.rtol * size)
            return jnp.sum(ratio**2, tuple(range(self.batch_ndim, low.ndim)))

        squares = jax.tree.leaves(jax.tree.map(leaf, lower, higher, before))
        shapes = [a.shape[self.batch_ndim :] for a in jax.tree.leaves(lower)]
        size = sum(math.prod(shape) for shape in shapes)
        return jnp.max(jnp.sqrt(sum(squares) / size), initial=0)


class _Carry(eqx.Module):
    x: Sample
    before: Sample
    log_snr: Float[Array, ""]
    h: Float[Array, ""]
    steps: Array
    arrived: Array
    broken: Array


def sample_adaptive(
    model: AbstractDenoiser,
    method: DPMSolverAdaptive,
    schedule: AbstractSchedule,
    x: Sample,
    *,
    max_steps: int = 1000,
    denoise: bool = False,
    checkpoints: int | None = None,
) -> Sampled:
    """Move noise to data from the schedule's start to its end, by steps chosen from estimates of
    their errors.

    Derivatives flow to `x` and to the model's leaves and closed-over arrays; the steps count as
    fixed. In float32 tolerances below about 1e-5 cannot be met.

    **Arguments:**

    - `model`: a `Denoiser`, or one that wraps it.
    - `method`: `DPMSolverAdaptive()`.
    - `schedule`: the noise schedule that the model was trained with.
    - `x`: the noisy start, a pytree of floating-point arrays; see `prior`.
    - `max_steps`: limit on steps, those that are not taken included.
    - `denoise`: end with the predicted data at the last time, for one more evaluation.
    - `checkpoints`: how many points a backward pass keeps of the run; the rest is computed again.
      If left out, derivatives are there in forward mode alone, and the run costs least.

    **Returns:** a `Sampled` whose evaluations are an array, and whose `status` is `converged` if
    the end was reached, `step_limit` if the steps were used up before it, `nonfinite` if E was not
    a number, after which no step is taken; `value` is where the run stopped.

    **Raises:** `TypeError` if `model` or `method` is none, or `x` does not hold floating-point
    arrays; `ValueError` if it has too few axes or `max_steps` is below 1.

    **Reference:** Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver: A Fast ODE Solver for Diffusion
    Probabilistic Model Sampling in Around 10 Steps, 2022, arXiv:2206.00927.
    """
    checks.instance("model", model, AbstractDenoiser, "a Denoiser")
    checks.instance("method", method, DPMSolverAdaptive, "DPMSolverAdaptive()")
    checks.count("max_steps", max_steps)
    if checkpoints is not None:
        checks.count("checkpoints", checkpoints)
    x = checks.inexact_tree("x", x)
    if any(leaf.ndim < method.batch_ndim for leaf in jax.tree.leaves(x)):
        raise ValueError(
            f"x must have {method.batch_ndim} leading axes of samples, got {checks.shapes_of(x)}"
        )
    span = schedule.nodes(np.array([schedule.start, schedule.end]))
    (first, last), end = as_numbers((exponential.log_snr(span), Node(*(a[1] for a in span))), x)
    run = _run(hoist(model), method, schedule, x, first, last, end, max_steps, denoise, checkpoints)
    value, steps, status = run
    return Sampled(value, method.order * steps + denoise, status=status)


@eqx.filter_jit
def _run(model, method, schedule, x, first, last, end, max_steps, denoise, checkpoints):
    real = first.dtype
    nodes_at = lambda log_snr: Node(
        *(a.astype(real) for a in schedule.nodes(schedule.time_at(log_snr)))
    )

    def running(now):
        return ~now.arrived & ~now.broken & (now.steps < max_steps)

    def attempt(now):
        left = last - now.log_snr
        h = jnp.minimum(now.h, left)
        final = now.h >= left
        inner = [nodes_at(now.log_snr + h * (i / method.order)) for i in range(1, method.order)]
        there = Node(
            *(jnp.where(final, a, b) for a, b in zip(end, nodes_at(now.log_snr + h), strict=True))
        )
        nodes = (nodes_at(now.log_snr), *inner, there)
        lower, higher = method.pair(model, now.x, nodes)
        # A model may answer in another type.
        lower, higher = (
            jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), out, now.x)
            for out in (lower, higher)
        )
        error = method.error(*jax.lax.stop_gradient((lower, higher, now.before))).astype(real)
        broken = ~jnp.isfinite(error)
        taken = error <= 1
        # What is not a number is shown.
        choose = lambda flag, new, old: jax.tree.map(lambda a, b: jnp.where(flag, a, b), new, old)
        growth = method.theta * jnp.maximum(error, jnp.finfo(real).tiny) ** (-1 / method.order)
        return _Carry(
            choose(taken | broken, higher, now.x),
            choose(taken, lower, now.before),
            jnp.where(taken, now.log_snr + h, now.log_snr),
            growth * h,
            now.steps + 1,
            taken & final,
            broken,
        )

    no = jnp.zeros((), bool)
    begin = _Carry(x, x, first, jnp.asarray(method.h0, real), jnp.zeros((), int), no, no)
    if checkpoints is None:
        out = loops.while_loop(running, attempt, begin)
    else:
        out = loops.checkpointed_loop(
            running, attempt, begin, max_steps=max_steps, checkpoints=checkpoints
        )
    value = model.data(out.x, end) if denoise else out.x
    stopped = Status.where(out.broken, Status.nonfinite, Status.step_limit)
    return value, out.steps, Status.where(out.arrived, Status.converged, stopped)
