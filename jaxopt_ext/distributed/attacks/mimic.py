"""An attack by copies of a good node."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...core import checks
from ...core.rows import average
from ..robust.rows import ravel_rows
from .attack import AbstractAttack, repeated

HIGHEST = jax.lax.Precision.HIGHEST


class MimicState(eqx.Module):
    """What `Mimic` remembers.

    **Attributes:**

    - `mean`: running mean of the good messages, raveled.
    - `direction`: $v$, the direction in which they differ most, raveled, of length one.
    - `rounds`: rounds seen.
    """

    mean: Float[Array, " d"]
    direction: Float[Array, " d"]
    rounds: Int[Array, ""]


class Mimic(AbstractAttack):
    """All send the message of one good node, whose data so get too much weight.

    In the first rounds they copy node 0 and learn the direction $v$ of most variance by power
    iteration: with $a = t/(t + 1)$ after $t$ rounds and $\\mu$ the mean of this one,

    $$\\bar\\mu \\leftarrow a \\bar\\mu + (1 - a) \\mu, \\qquad
      v \\leftarrow \\mathrm{normalize}\\Bigl(a v + (1 - a) \\sum_i
      \\langle x_i - \\bar\\mu, v \\rangle (x_i - \\bar\\mu)\\Bigr).$$

    Then they copy the node of largest $|\\langle v, x_i \\rangle|$ in each round. It needs a state:
    `state = attack.observe(state, good)` comes before `attack(good, key, state)`.

    **Arguments:**

    - `f`: the number of bad nodes; static.
    - `warmup`: rounds of learning; static.

    **Reference:** Karimireddy, He, Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via
    Bucketing, 2022, arXiv:2006.09365.
    """

    f: int = eqx.field(static=True)
    warmup: int = eqx.field(static=True, default=100)

    def __check_init__(self):
        checks.count("f", self.f, 0)
        checks.count("warmup", self.warmup, 0)

    def init(self, row, key=None):
        if key is None:
            raise ValueError("Mimic draws its first direction and needs a key")
        x = ravel_rows(jax.tree.map(lambda a: jnp.asarray(a)[None], row))[0][0]
        direction = jax.random.normal(key, x.shape, x.dtype)
        return MimicState(jnp.zeros_like(x), _normalized(direction), jnp.zeros((), jnp.int32))

    def observe(self, state, good):
        x = ravel_rows(good)[0]
        part = (1 / (state.rounds + 1)).astype(x.dtype)
        mean = state.mean + part * (average(x) - state.mean)
        gaps = x - mean
        along = jnp.matmul(gaps, state.direction, precision=HIGHEST)
        push = jnp.matmul(along, gaps, precision=HIGHEST)
        direction = (1 - part) * state.direction + part * push
        # Equal messages push nowhere.
        direction = jnp.where(jnp.any(direction != 0), direction, state.direction)
        learning = state.rounds < self.warmup
        return MimicState(
            jnp.where(learning, mean, state.mean),
            jnp.where(learning, _normalized(direction), state.direction),
            state.rounds + 1,
        )

    def send(self, good, key, state, own):
        if state is None:
            raise ValueError("Mimic needs the state that init and observe give")
        along = jnp.abs(jnp.matmul(good, state.direction, precision=HIGHEST))
        chosen = jnp.where(state.rounds > self.warmup, jnp.argmax(along), 0)
        return repeated(good[chosen], self.f)


def _normalized(x):
    norm = jnp.linalg.norm(x)
    return x / jnp.where(norm > 0, norm, 1)
