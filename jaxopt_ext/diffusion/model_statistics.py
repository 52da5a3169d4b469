"""What a model is like on average at each level of noise, coordinate by coordinate."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..core import checks, loops
from ..core.constants import HostArray
from .denoiser import AbstractDenoiser
from .schedules import AbstractSchedule, Coefficients


class ModelStatistics(eqx.Module):
    """The linear part, the scaling and the offset of a model's output on a grid of levels; linear
    in $\\lambda$ between them. See `model_statistics`.

    **Attributes:**

    - `linear`, `scaling`, `offset`: $l$, $s$ and $b$, shape `(M + 1, *shape)`, with the shape of a
      sample, or one that broadcasts to it.
    - `log_snr`: $\\lambda$, rising, shape `(M + 1,)`.
    - `arrays`: all four in this order. They are constants of a sampler, no leaves of a pytree: what
      is saved are `arrays`, and `ModelStatistics(*arrays)` is made of what is loaded.

    **Raises:** `ValueError` if shapes do not fit or levels do not rise.
    """

    _parts: tuple[HostArray, HostArray, HostArray] = eqx.field(static=True)
    _log_snr: HostArray = eqx.field(static=True)

    def __init__(self, linear, scaling, offset, log_snr):
        parts = [np.asarray(a, np.float64) for a in (linear, scaling, offset)]
        self._log_snr = HostArray(np.asarray(log_snr, np.float64))
        if self.log_snr.ndim != 1 or len(self.log_snr) < 2 or np.any(np.diff(self.log_snr) <= 0):
            raise ValueError(f"log_snr must be a vector that rises, got {self.log_snr}")
        shape = (len(self.log_snr), *parts[0].shape[1:])
        if any(a.shape != shape for a in parts):
            raise ValueError(
                f"linear, scaling and offset must have one shape with {len(self.log_snr)} levels, "
                f"got {[a.shape for a in parts]}"
            )
        self._parts = HostArray(parts[0]), HostArray(parts[1]), HostArray(parts[2])

    @property
    def linear(self) -> Float[np.ndarray, "M *shape"]:
        """$l$."""
        return self._parts[0].value

    @property
    def scaling(self) -> Float[np.ndarray, "M *shape"]:
        """$s$."""
        return self._parts[1].value

    @property
    def offset(self) -> Float[np.ndarray, "M *shape"]:
        """$b$."""
        return self._parts[2].value

    @property
    def log_snr(self) -> Float[np.ndarray, " M"]:
        """$\\lambda$."""
        return self._log_snr.value

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What the constructor takes."""
        return self.linear, self.scaling, self.offset, self.log_snr

    def at(self, log_snr: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, "n *shape"], ...]:
        """$l$, $s$ and $b$ at other levels, on the host."""
        place = np.interp(log_snr, self.log_snr, np.arange(len(self.log_snr)))
        low = np.minimum(place.astype(int), len(self.log_snr) - 2)
        share = (place - low).reshape(-1, *[1] * (self.linear.ndim - 1))
        mix = lambda a: (1 - share) * a[low] + share * a[low + 1]
        return mix(self.linear), mix(self.scaling), mix(self.offset)

    def check_levels(self, log_snr: Float[np.ndarray, " n"]) -> None:
        """Raise `ValueError` unless rising levels lie within these."""
        known = self.log_snr
        if log_snr[0] < known[0] - 1e-6 or log_snr[-1] > known[-1] + 1e-6:
            raise ValueError(
                f"levels of the statistics are {known[0], known[-1]}, times have "
                f"{log_snr[0], log_snr[-1]}"
            )

    def linear_at(self, log_snr: Coefficients) -> Float[Array, " *shape"]:
        """$l$ at another level, inside a program."""
        levels, linear = jnp.asarray(self.log_snr), jnp.asarray(self.linear)
        place = jnp.interp(log_snr, levels, jnp.arange(len(self.log_snr), dtype=levels.dtype))
        low = jnp.minimum(place.astype(int), len(self.log_snr) - 2)
        share = place - low
        return (1 - share) * linear[low] + share * linear[low + 1]


def model_statistics(
    model: AbstractDenoiser,
    schedule: AbstractSchedule,
    data: Callable[[PRNGKeyArray, int], Float[Array, "n *shape"]],
    key: PRNGKeyArray,
    num_nodes: int = 600,
    num_samples: int = 1024,
    probes: int | None = 1,
) -> ModelStatistics:
    """What makes the first-order error of an exponential integrator smallest, measured on noisy
    data.

    With $N = \\sigma\\hat\\epsilon - l x$, $f = N/\\alpha$ and $f'$ its derivative in $\\lambda$
    along the probability-flow equation,

    $$l = E\\Big[\\operatorname{diag} \\sigma\\frac{\\partial\\hat\\epsilon}{\\partial x}\\Big],
    \\qquad s = \\frac{E[f f'] - E f\\, E f'}{E[f^2] - (E f)^2}, \\qquad b = E f' - s E f,$$

    each coordinate by itself; s is zero where f does not vary.

    **Arguments:**

    - `model`: the model; guidance, if any, included.
    - `schedule`: its noise schedule; the levels are equally spaced in $\\lambda$ from its start to
      its end.
    - `data`: draws of the data, `(key, n) -> (n, *shape)`.
    - `key`: random key.
    - `num_nodes`: M, levels less one.
    - `num_samples`: fresh draws for each level.
    - `probes`: random signs for each sample that measure the diagonal; `None` for the exact one, at
      a derivative for each coordinate.

    **Returns:** a `ModelStatistics`.

    **Reference:** Zheng, Lu, Chen, Zhu, DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical
    Model Statistics, 2023, arXiv:2310.13268.
    """
    checks.count("num_nodes", num_nodes, 2)
    checks.count("num_samples", num_samples, 2)
    if probes is not None:
        checks.count("probes", probes)
    ends = schedule.log_snr(np.array([schedule.start, schedule.end]))
    levels = np.linspace(ends[0], ends[1], num_nodes + 1)
    first, second = jax.random.split(key)

    def noisy(level, key):
        node = schedule.nodes(schedule.time_at(level))
        drawing, noising = jax.random.split(key)
        x = data(drawing, num_samples)
        return node, node.alpha * x + node.sigma * jax.random.normal(noising, x.shape, x.dtype)

    def diagonal(level, key):
        key, probing = jax.random.split(key)
        node, x = noisy(level, key)
        along = lambda x, v: jax.jvp(lambda x: model.noise(x, node), (x,), (v,))[1] * v
        shape = x.shape[1:]
        if probes is None:
            units = jnp.eye(int(np.prod(shape)), dtype=x.dtype).reshape(-1, *shape)
            found = jnp.sum(jax.lax.map(lambda v: along(x, jnp.broadcast_to(v, x.shape)), units), 0)
        else:
            signs = jax.random.rademacher(probing, (probes, *x.shape), x.dtype)
            found = jnp.mean(jax.lax.map(lambda v: along(x, v), signs), 0)
        return node.sigma * jnp.mean(found, 0)

    def moments(level, key, l, slope):
        node, x = noisy(level, key)
        kept = lambda level: schedule.log_alpha(schedule.time_at(level))
        drift = jax.jvp(kept, (level,), (jnp.ones_like(level),))[1]
        moving = drift * x - node.sigma * model.noise(x, node)

        def output(x, level):
            node = schedule.nodes(schedule.time_at(level))
            return (node.sigma * model.noise(x, node) - l * x) / node.alpha

        f, change = jax.jvp(output, (x, level), (moving, jnp.ones_like(level)))
        change = change - slope * x / node.alpha
        mean, speed = jnp.mean(f, 0), jnp.mean(change, 0)
        spread = jnp.mean((f - mean) ** 2, 0)
        joint = jnp.mean((f - mean) * (change - speed), 0)
        varies = spread > jnp.finfo(x.dtype).eps * jnp.mean(f**2, 0)
        s = jnp.where(varies, joint / jnp.where(varies, spread, 1), 0)
        return s, speed - s * mean

    over = lambda fun, *rows: loops.scan(lambda none, row: (none, fun(*row)), None, rows)[1]
    real = jnp.result_type(float)
    nodes = jnp.asarray(levels, real)
    l = jax.jit(lambda keys: over(diagonal, nodes, keys))(jax.random.split(first, len(levels)))
    l = np.asarray(l, np.float64)
    rows = jnp.asarray(l, real), jnp.asarray(np.gradient(l, levels, axis=0, edge_order=2), real)
    measure = jax.jit(lambda keys: over(moments, nodes, keys, *rows))
    s, b = measure(jax.random.split(second, len(levels)))
    return ModelStatistics(l, s, b, levels)
