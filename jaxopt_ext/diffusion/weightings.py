r"""How much each level of noise counts in training.

A weighting is a function of $\lambda = \log(\alpha/\sigma)$ that weighs the squared error of the
predicted data, $w(\lambda)\,|x_0 - \hat x_0|^2$. `DenoisingLoss` turns it into a weight of what the
network predicts: the error of the noise is $\mathrm{SNR}$ times that of the data, with
$\mathrm{SNR} = e^{2\lambda}$.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import Scalar, checks, scalar_field


class AbstractWeighting(eqx.Module):
    """A weight of the squared error of the data, a function of half the logarithm of the
    signal-to-noise ratio."""

    @abc.abstractmethod
    def __call__(self, log_snr: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """$w(\\lambda)$."""


def _ratio(log_snr):
    return jnp.exp(2 * log_snr)


class MinSNR(AbstractWeighting):
    r"""$\min(\mathrm{SNR}, \gamma)$: levels of little noise, where the weight of noise prediction
    would be $\mathrm{SNR}$, do not drown the others.

    **Arguments:**

    - `gamma`: $\gamma$, positive.

    **Raises:** `ValueError` if `gamma` is not positive.

    **Reference:** Hang, Gu, Li, Bao, Chen, Hu, Geng, Guo, Efficient Diffusion Training via Min-SNR
    Weighting Strategy, 2023, arXiv:2303.09556.
    """

    gamma: Scalar = scalar_field(5.0)

    def __check_init__(self):
        checks.positive("gamma", self.gamma)

    def __call__(self, log_snr):
        return jnp.minimum(_ratio(log_snr), self.gamma.astype(log_snr.dtype))


class MaxSNR(AbstractWeighting):
    r"""$\max(\mathrm{SNR}, \gamma)$, the opposite of `MinSNR`.

    **Arguments:**

    - `gamma`: $\gamma$, positive.

    **Raises:** `ValueError` if `gamma` is not positive.

    **Reference:** Hang, Gu, Li, Bao, Chen, Hu, Geng, Guo, Efficient Diffusion Training via Min-SNR
    Weighting Strategy, 2023, arXiv:2303.09556.
    """

    gamma: Scalar = scalar_field(5.0)

    def __check_init__(self):
        checks.positive("gamma", self.gamma)

    def __call__(self, log_snr):
        return jnp.maximum(_ratio(log_snr), self.gamma.astype(log_snr.dtype))


class TruncatedSNR(AbstractWeighting):
    r"""$\max(\mathrm{SNR}, 1)$: the larger of the weights of data and of noise prediction.

    **Reference:** Salimans, Ho, Progressive Distillation for Fast Sampling of Diffusion Models,
    2022, arXiv:2202.00512.
    """

    def __call__(self, log_snr):
        return jnp.maximum(_ratio(log_snr), 1)


class SNR(AbstractWeighting):
    r"""$\mathrm{SNR}$: the plain loss of noise prediction.

    **Reference:** Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020,
    arXiv:2006.11239.
    """

    def __call__(self, log_snr):
        return _ratio(log_snr)


class InverseSNR(AbstractWeighting):
    r"""$1/\mathrm{SNR}$."""

    def __call__(self, log_snr):
        return jnp.exp(-2 * log_snr)


class ConstantWeighting(AbstractWeighting):
    """1: the plain loss of data prediction."""

    def __call__(self, log_snr):
        return jnp.ones_like(log_snr)


class P2(AbstractWeighting):
    r"""$\mathrm{SNR} / (k + \mathrm{SNR})^\gamma$: less for levels of little noise, where only
    details are left to learn.

    **Arguments:**

    - `gamma`: $\gamma$, non-negative; 0 is `SNR`.
    - `k`: positive.

    **Raises:** `ValueError` if a number is out of range.

    **Reference:** Choi, Lee, Shin, Kim, Kim, Yoon, Perception Prioritized Training of Diffusion
    Models, 2022, arXiv:2204.00227.
    """

    gamma: Scalar = scalar_field(1.0)
    k: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.nonnegative("gamma", self.gamma)
        checks.positive("k", self.k)

    def __call__(self, log_snr):
        ratio, dtype = _ratio(log_snr), log_snr.dtype
        return ratio / (self.k.astype(dtype) + ratio) ** self.gamma.astype(dtype)


class EDMWeighting(AbstractWeighting):
    r"""$1/c_{out}^2 = \mathrm{SNR} + 1/s_d^2$ of `Preconditioned`: 1 on what its network predicts.

    **Arguments:**

    - `sigma_data`: $s_d$, the standard deviation of the data.

    **Raises:** `ValueError` if `sigma_data` is not positive.

    **Reference:** Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based
    Generative Models, 2022, arXiv:2206.00364.
    """

    sigma_data: Scalar = scalar_field(0.5)

    def __check_init__(self):
        checks.positive("sigma_data", self.sigma_data)

    def __call__(self, log_snr):
        return _ratio(log_snr) + 1 / self.sigma_data.astype(log_snr.dtype) ** 2
