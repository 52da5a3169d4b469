"""How errors of single steps grow along a sampling run, and training against it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..core import checks, loops
from ..core.closure import hoist
from ..core.distances import RBF, AbstractKernel, squared_mmd
from .denoiser import AbstractDenoiser, Denoiser
from .objectives import DenoisingLoss
from .sampler import AbstractSampler, Plan, memoryless, noisy, plan_run
from .schedules import AbstractSchedule, Node, Times


def _noisy(plan, index, data, key):
    return noisy(data, jax.tree.map(lambda a: a[index], plan.nodes), key)


def _arrivals(model, sampler, plan, data, index, span, key, checkpoint=False):
    """Samples at node `index` that left the noisy data `span` steps before, or at the start."""
    starting, stepping = jax.random.split(key)
    first = index - span
    x = _noisy(plan, jnp.maximum(first, 0), data, starting)

    def step(x, offset):
        at = first + offset
        row = jax.tree.map(lambda a: a[jnp.maximum(at, 0)], plan.rows)
        new, _ = sampler.step(model, x, (), row, jax.random.fold_in(stepping, at))
        return jnp.where(at >= 0, new.astype(x.dtype), x), None

    step = jax.checkpoint(step, prevent_cse=False) if checkpoint else step
    return loops.scan(step, x, jnp.arange(span))[0]


def _discrepancy(model, sampler, plan, data, index, span, key, kernel, checkpoint=False):
    """Between what arrives at a node and noisy data there: the first half of the data is carried,
    the second compared with."""
    half = len(data) // 2
    carrying, comparing = jax.random.split(key)
    found = _arrivals(model, sampler, plan, data[:half], index, span, carrying, checkpoint)
    return squared_mmd(found, _noisy(plan, index, data[half:], comparing), kernel)


def modular_errors(
    model: AbstractDenoiser,
    sampler: AbstractSampler,
    schedule: AbstractSchedule,
    times: Times,
    data: Float[Array, "n ..."],
    key: PRNGKeyArray,
    kernel: AbstractKernel | None = None,
) -> Float[Array, " steps"]:
    """The error that each step makes by itself: the squared maximum mean discrepancy, at its end,
    between what one step of the sampler makes of noisy data and noisy data.

    **Arguments:**

    - `model`, `sampler`, `schedule`, `times`: the run; the sampler must have no memory.
    - `data`: half is carried, the other half compared with.
    - `key`: random key.
    - `kernel`: `RBF()`, with a width of its own at each time, if left out.

    **Returns:** one number for each step, from the noise to the data; unbiased, so of either sign
    where there is no error.

    **Raises:** `ValueError` if the sampler remembers outputs, or there are fewer than four data.

    **Reference:** Li, van der Schaar, On Error Propagation of Diffusion Models, 2024,
    arXiv:2308.05021.
    """
    return _errors(model, sampler, schedule, times, data, key, kernel, 1)


def cumulative_errors(
    model: AbstractDenoiser,
    sampler: AbstractSampler,
    schedule: AbstractSchedule,
    times: Times,
    data: Float[Array, "n ..."],
    key: PRNGKeyArray,
    kernel: AbstractKernel | None = None,
) -> Float[Array, " steps"]:
    """The error that a run has gathered at the end of each step: as `modular_errors`, but of runs
    from the noisy data of the first time.

    **Arguments:**

    - as those of `modular_errors`.

    **Returns:** one number for each step, from the noise to the data.

    **Raises:** as `modular_errors`.

    **Reference:** Li, van der Schaar, On Error Propagation of Diffusion Models, 2024,
    arXiv:2308.05021.
    """
    return _errors(model, sampler, schedule, times, data, key, kernel, len(times) - 1)


def _errors(model, sampler, schedule, times, data, key, kernel, span):
    plan = plan_run(sampler, schedule, times)
    data = checks.inexact_tree("data", jnp.asarray(data))
    if len(data) < 4:
        raise ValueError(f"data must be at least 4, got {len(data)}")
    plan = memoryless(model, sampler, plan, data)
    kernel = RBF() if kernel is None else kernel
    return _all_errors(hoist(model), sampler, plan, data, key, kernel, span)


@eqx.filter_jit
def _all_errors(model, sampler, plan, data, key, kernel, span):
    def one(index):
        return _discrepancy(model, sampler, plan, data, index, span, key, kernel)

    steps = len(plan.nodes.t) - 1
    return loops.scan(lambda none, i: (none, one(i)), None, jnp.arange(1, steps + 1))[1]


def amplification(
    cumulative: Float[np.ndarray, " steps"], modular: Float[np.ndarray, " steps"]
) -> Float[np.ndarray, " steps-1"]:
    """How much of the error at the beginning of a step is left at its end,
    $\\mu = (E^{cum}_{end} - E^{mod}) / E^{cum}_{begin}$, for all steps but the first.

    With exact Kullback-Leibler divergences it is at most one.

    **Arguments:**

    - `cumulative`, `modular`: errors at the ends of steps.
    """
    return (cumulative[1:] - modular[1:]) / cumulative[:-1]


class ChainErrors(NamedTuple):
    """Exact divergences of a chain of Gaussians at the ends of its steps; see
    `gaussian_chain_errors`.

    **Attributes:**

    - `start`: $KL(p || q)$ of the first points.
    - `cumulative`: $KL(p(x_t) || q(x_t))$.
    - `modular`: $E_p KL(p(x_t | x_s) || q(x_t | x_s))$.
    - `backward`: $E_p KL(p(x_s | x_t) || q(x_s | x_t))$.
    """

    start: float
    cumulative: Float[np.ndarray, " steps"]
    modular: Float[np.ndarray, " steps"]
    backward: Float[np.ndarray, " steps"]


def gaussian_chain_errors(
    data: tuple[float, float],
    model: tuple[float, float],
    schedule: AbstractSchedule,
    times: Times,
) -> ChainErrors:
    """Exact errors of ancestral sampling where the data are Gaussian, $N(m, c^2)$, and the denoiser
    is that of another Gaussian.

    By the chain rule, taken both ways,

    $$E^{cum}_{end} = E^{cum}_{begin} + E^{mod} - E^{back},$$

    so errors, in this measure, never grow by more than what the step adds.

    **Arguments:**

    - `data`, `model`: mean and standard deviation of the data, and of the law whose denoiser the
      model has.
    - `schedule`, `times`: the run, with noise at its end.

    **Returns:** a `ChainErrors`.

    **Reference:** Li, van der Schaar, On Error Propagation of Diffusion Models, 2024,
    arXiv:2308.05021.
    """
    nodes = schedule.nodes(np.asarray(times, np.float64))
    law = lambda m, c, n: np.array([n.alpha * m, n.alpha**2 * c**2 + n.sigma**2])
    steps = []
    node = lambda i: Node(*(a[i] for a in nodes))
    q = law(*data, node(0))
    p = np.array([0.0, node(0).sigma ** 2])  # runs start from noise
    start = _divergence(p, q)
    for i in range(len(nodes.t) - 1):
        s, t = node(i), node(i + 1)
        ours, exact = _ancestral(model, s, t), _posterior(data, s, t)
        modular = _conditional(ours, exact, p)
        after = np.array([ours[0] * p[0] + ours[1], ours[0] ** 2 * p[1] + ours[2]])
        backward = _conditional(_reversed(ours, p, after), _forward(s, t), after)
        q = law(*data, t)
        steps.append((_divergence(after, q), modular, backward))
        p = after
    return ChainErrors(start, *np.array(steps).T)


def _divergence(p, q):
    """KL of two Gaussians, each of a mean and a variance."""
    ratio = p[1] / q[1]
    return 0.5 * (ratio - 1 - np.log(ratio) + (p[0] - q[0]) ** 2 / q[1])


def _conditional(ours, exact, law):
    """The mean over x of KL between $N(a x + b, v)$ and another such."""
    mean = (ours[0] - exact[0]) * law[0] + ours[1] - exact[1]
    spread = (ours[0] - exact[0]) ** 2 * law[1]
    ratio = ours[2] / exact[2]
    return 0.5 * (ratio - 1 - np.log(ratio) + (mean**2 + spread) / exact[2])


def _forward(s, t):
    """$x_s$ given the less noisy $x_t$."""
    keep = s.alpha / t.alpha
    return keep, 0.0, s.sigma**2 - keep**2 * t.sigma**2


def _ancestral(law, s, t):
    """$x_t$ given $x_s$ by the ancestral sampler: what it is given $x_0$, at the $x_0$ predicted
    for data of this law."""
    mean, scale = law
    gain = s.alpha * scale**2 / (s.alpha**2 * scale**2 + s.sigma**2)
    keep, _, fresh = _forward(s, t)
    pull, push = keep * t.sigma**2 / s.sigma**2, t.alpha * fresh / s.sigma**2
    return (
        pull + push * gain,
        push * (mean - gain * s.alpha * mean),
        fresh * (t.sigma / s.sigma) ** 2,
    )


def _posterior(law, s, t):
    """$x_t$ given $x_s$: as above, and $x_0$ is not known exactly."""
    scale = law[1]
    factor, shift, spread = _ancestral(law, s, t)
    push = t.alpha * _forward(s, t)[2] / s.sigma**2
    left = scale**2 * s.sigma**2 / (s.alpha**2 * scale**2 + s.sigma**2)
    return factor, shift, spread + push**2 * left


def _reversed(ours, before, after):
    """$x_s$ given $x_t$ where $x_s$ has the law `before` and $x_t = a x_s + b$ plus noise."""
    gain = before[1] * ours[0] / after[1]
    return gain, before[0] - gain * after[0], before[1] - gain**2 * after[1]


class PropagationLoss(eqx.Module):
    """A denoising loss and a regulariser against errors that grow,

    $$(1 - w)\\, L_{dsm} + w\\, e^{\\rho k} R_k, \\qquad
    R_k = MMD^2\\big(\\tilde x_k, x_k\\big),$$

    where k, the number of steps from the start, is drawn for the batch, $\\tilde x_k$ is what
    `span` steps of the sampler, or as many as there are, make of noisy data, and $x_k$ are other
    noisy data. Noisy data stand for what the sampler itself would bring, which they come closer to
    as the model is trained.

    It is a loss for `training.GradientStep`: `loss(model, batch, context)`; the batch, of 128 or
    more, gives both halves. Metrics are `denoising` and `propagation`.

    **Arguments:**

    - `denoising`: $L_{dsm}$, a `DenoisingLoss`.
    - `sampler`, `schedule`, `times`: the run; the sampler must have no memory.
    - `span`: steps that are differentiated through.
    - `weight`: $w$.
    - `growth`: $\\rho$, towards the data.
    - `kernel`: `RBF()` if left out.
    - `checkpoint`: evaluate the network again in reverse mode, at the memory of one step.

    **Raises:** `ValueError` if `span` is below 1 or above the number of steps, `weight` outside
    [0, 1], or times do not fall; `TypeError` if a part is none.

    **Reference:** Li, van der Schaar, On Error Propagation of Diffusion Models, 2024,
    arXiv:2308.05021.
    """

    denoising: DenoisingLoss
    sampler: AbstractSampler
    plan: Plan
    span: int
    weight: float
    growth: float
    kernel: AbstractKernel
    checkpoint: bool

    def __init__(
        self,
        denoising: DenoisingLoss,
        sampler: AbstractSampler,
        schedule: AbstractSchedule,
        times: Times,
        span: int = 5,
        weight: float = 0.2,
        growth: float = 0.003,
        kernel: AbstractKernel | None = None,
        checkpoint: bool = True,
    ):
        kernel = RBF() if kernel is None else kernel
        checks.instance("denoising", denoising, DenoisingLoss, "DenoisingLoss(...)")
        checks.instance("kernel", kernel, AbstractKernel, "RBF()")
        checks.count("span", span)
        self.plan = plan_run(sampler, schedule, times)
        if span > len(self.plan.nodes.t) - 1:
            raise ValueError(
                f"span must be at most the number of steps {len(self.plan.nodes.t) - 1}, got {span}"
            )
        checks.interval("weight", weight, 0.0, 1.0)
        checks.nonnegative("growth", growth)
        self.denoising, self.sampler, self.kernel = denoising, sampler, kernel
        self.span, self.weight, self.growth = span, weight, growth
        self.checkpoint = checkpoint

    def __call__(
        self, model: Denoiser, batch: Float[Array, "B ..."], context: Any
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Loss and metrics."""
        choosing, carrying = jax.random.split(jax.random.fold_in(context.key, 1))
        plan = memoryless(model, self.sampler, self.plan, batch)
        index = jax.random.randint(choosing, (), 1, len(plan.nodes.t))
        apart = _discrepancy(
            model,
            self.sampler,
            plan,
            batch,
            index,
            self.span,
            carrying,
            self.kernel,
            self.checkpoint,
        )
        plain, _ = self.denoising(model, batch, context)
        scale = self.weight * jnp.exp(self.growth * index.astype(apart.dtype))
        loss = (1 - self.weight) * plain + scale * apart
        return loss, {"denoising": plain, "propagation": apart}
