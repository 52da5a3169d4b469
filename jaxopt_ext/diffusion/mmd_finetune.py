"""Training a denoiser for the samples of a few steps."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from ..core import checks
from ..core.distances import AbstractKernel, Polynomial, squared_mmd
from ..training import Drawn, Fit, GradientStep, fit
from .denoiser import AbstractDenoiser, Sample, combine
from .sampler import AbstractSampler, Plan, follow, gaussian, plan_run
from .schedules import AbstractSchedule, Times


class MMDLoss(eqx.Module):
    """The squared maximum mean discrepancy between samples of a few steps and data, in features
    $\\phi$,

    $$\\frac{1}{B(B-1)}\\sum_{i \\ne j} k(\\phi(x_i), \\phi(x_j)) + k(\\phi(y_i), \\phi(y_j))
    - \\frac{2}{B^2} \\sum_{ij} k(\\phi(x_i), \\phi(y_j)),$$

    differentiated through all steps of the sampler, whose network is the same in each. Unbiased, so
    it may be negative.

    It is a loss for `training.GradientStep`: `loss(model, batch, context)`, with a batch of data
    `(B, ...)`, from as many fresh starts.

    **Arguments:**

    - `sampler`, `schedule`, `times`: the run whose samples are meant; it may end without noise if
      the sampler can.
    - `kernel`: $k$; that of the kernel Inception distance if left out.
    - `features`: from samples `(B, ...)` to vectors `(B, d)`; the samples themselves if left out.
    - `checkpoint`: evaluate the network again in reverse mode, at the memory of one step.

    **Raises:** `TypeError` if `sampler` or `schedule` is none, for one that chooses its steps too;
    `ValueError` if times do not fall; when called, if there are fewer than two data.

    **Reference:** Aiello, Valsesia, Magli, Fast Inference in Denoising Diffusion Models via MMD
    Finetuning, 2024, arXiv:2301.07969.
    """

    sampler: AbstractSampler
    plan: Plan
    kernel: AbstractKernel
    features: Callable[[Float[Array, "B ..."]], Float[Array, "B d"]] | None
    checkpoint: bool

    def __init__(
        self,
        sampler: AbstractSampler,
        schedule: AbstractSchedule,
        times: Times,
        kernel: AbstractKernel | None = None,
        features: Callable[[Float[Array, "B ..."]], Float[Array, "B d"]] | None = None,
        checkpoint: bool = True,
    ):
        kernel = Polynomial() if kernel is None else kernel
        checks.instance("kernel", kernel, AbstractKernel, "Polynomial()")
        self.plan = plan_run(sampler, schedule, times)
        self.sampler, self.kernel, self.features = sampler, kernel, features
        self.checkpoint = checkpoint

    def __call__(
        self, model: AbstractDenoiser, batch: Float[Array, "B ..."], context: Any
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Loss, and no metrics."""
        starting, drawing = jax.random.split(context.key)
        x = combine((self.plan.nodes.sigma[0], gaussian(batch, starting)))
        options = {"checkpoint": self.checkpoint}
        x, _ = follow(model, self.sampler, self.plan, x, drawing, **options)
        look = (lambda x: x) if self.features is None else self.features
        return squared_mmd(look(x), look(batch), self.kernel), {}


def finetune_mmd(
    model: AbstractDenoiser,
    data: Sample,
    sampler: AbstractSampler,
    schedule: AbstractSchedule,
    times: Times,
    *,
    key: PRNGKeyArray,
    num_steps: int = 200,
    batch_size: int = 128,
    tx: optax.GradientTransformation | None = None,
    **options: Any,
) -> Fit:
    """Finetune a trained denoiser for the samples of a few steps.

    `MMDLoss` under `training.fit`; a few hundred steps are enough.

    **Arguments:**

    - `model`: the trained model.
    - `data`: the data, on a leading axis.
    - `sampler`, `schedule`, `times`: the run.
    - `key`: random key.
    - `num_steps`, `batch_size`: training steps, and data in each.
    - `tx`: Adam with rate 1e-4 on gradients of a norm up to 0.5 if left out.
    - `options`: `kernel`, `features`, `checkpoint` of `MMDLoss`.

    **Returns:** a `training.Fit`, with the model in `params`.

    **Reference:** Aiello, Valsesia, Magli, Fast Inference in Denoising Diffusion Models via MMD
    Finetuning, 2024, arXiv:2301.07969.
    """
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-4)) if tx is None else tx
    method = GradientStep(MMDLoss(sampler, schedule, times, **options), tx)
    batching, training = jax.random.split(key)
    batches = Drawn(jax.tree.map(jnp.asarray, data), batch_size, batching)
    return fit(method, model, batches, num_steps, key=training, progress=False)
