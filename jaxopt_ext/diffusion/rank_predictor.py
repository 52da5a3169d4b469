"""A predictor of which decisions of a sampler are better."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..core import checks, loops
from ..training import GradientStep, fit
from . import exponential
from .exponential import DataForm, NoiseForm
from .schedules import AbstractSchedule
from .usf import (
    MOST,
    Decision,
    ImplicitCorrector,
    MeanData,
    Step,
    ZeroData,
)

_BATCH = 64  # decisions that are compared with each other in a step of training


def encode(decision: Decision, schedule: AbstractSchedule) -> Float[np.ndarray, "steps features"]:
    """A decision as a row of numbers for each step: where it ends and how long it is in the
    logarithm of the signal-to-noise ratio, its order, form, outputs of the first derivative,
    relaxation and corrector, and what the first output is; of size about one.

    **Arguments:**

    - `decision`: the decision.
    - `schedule`: the noise schedule.
    """
    levels = np.asarray(schedule.log_snr(np.asarray(decision.times)))
    kinds = (type(None), ZeroData, MeanData)
    first = [float(type(decision.first) is kind) for kind in kinds]
    rows = [
        [levels[i + 1] / 4, levels[i + 1] - levels[i], *_features(step, levels[i + 1] - levels[i])]
        for i, step in enumerate(decision.steps)
    ]
    return np.array([row + first for row in rows])


def _features(step: Step, h: float) -> list[float]:
    form = 0 if isinstance(step.form, NoiseForm) else 1 if isinstance(step.form, DataForm) else 2
    near = tuple(range(1, step.order)) if not step.active else step.active[0]
    z = np.array(h if form == 0 else -h)
    relaxed = lambda variant: float(variant.second(z) / exponential.phi(2, z)) - 1
    row = [float(step.order == p) for p in range(1, MOST + 1)]
    row += [float(form == kind) for kind in range(3)]
    row += [float(j in near) for j in range(1, MOST)]
    row.append(relaxed(step.variant) if step.order > 1 else 0.0)
    corrector = step.corrector
    if corrector is None:
        return [*row, 0.0, 0.0, 0.0, 0.0]
    again = float(isinstance(corrector, ImplicitCorrector))
    return [*row, 1.0, again, float(corrector.raised), relaxed(corrector.variant)]


class _Member(eqx.Module):
    """A score from a recurrent network over the steps."""

    embedding: eqx.nn.Linear
    cell: eqx.nn.GRUCell
    out: eqx.nn.Linear

    def __init__(self, features, width, key):
        one, two, three = jax.random.split(key, 3)
        self.embedding = eqx.nn.Linear(features, width, key=one)
        self.cell = eqx.nn.GRUCell(width, width, key=two)
        self.out = eqx.nn.Linear(width, 1, key=three)

    def __call__(self, rows, mask):
        def step(hidden, now):
            row, there = now
            new = self.cell(jnp.tanh(self.embedding(row)), hidden)
            return jnp.where(there, new, hidden), None

        hidden = jnp.zeros(self.cell.hidden_size, rows.dtype)
        hidden, _ = loops.scan(step, hidden, (rows, mask))
        return self.out(hidden)[0]


class RankModel(eqx.Module):
    """What `RankPredictor.fit` returns.

    **Attributes:**

    - `members`: the networks, stacked.
    - `schedule`, `most`: the noise schedule, and how many steps there may be.
    """

    members: _Member
    schedule: AbstractSchedule
    most: int

    def predict(self, decisions: Sequence[Decision]) -> Float[np.ndarray, " n"]:
        """Scores, higher where a decision is expected to be better."""
        rows, mask = _table(decisions, self.schedule, self.most, len(decisions))
        return np.asarray(_scores(self.members, rows, mask)).mean(0)


@eqx.filter_jit
def _scores(members, rows, mask) -> Float[Array, "m n"]:
    of = lambda member: jax.vmap(member)(rows, mask)
    return eqx.filter_vmap(of)(members)


def _table(decisions, schedule, most, room) -> tuple[Float[Array, "n k f"], Bool[Array, "n k"]]:
    encoded = [encode(decision, schedule) for decision in decisions]
    if any(len(rows) > most for rows in encoded):
        raise ValueError(f"decisions must have at most {most} steps")
    rows, mask = np.zeros((room, most, encoded[0].shape[1])), np.zeros((room, most), bool)
    for i, found in enumerate(encoded):
        rows[i, : len(found)], mask[i, : len(found)] = found, True
    return jnp.asarray(rows, jnp.float32), jnp.asarray(mask)


def _loss(members, batch, context):
    """The pairwise hinge loss of those in the batch."""
    del context
    rows, mask, losses, margin = batch
    scores = eqx.filter_vmap(lambda member: jax.vmap(member)(rows, mask))(members)
    better = losses[:, None] < losses[None, :]
    gaps = scores[:, :, None] - scores[:, None, :]
    hinge = jnp.where(better, jax.nn.relu(margin - gaps), 0.0)
    each = jnp.sum(hinge, (1, 2)) / jnp.maximum(jnp.sum(better), 1)
    return jnp.sum(each), {}


class RankPredictor(eqx.Module):
    """Learns which of two decisions has the smaller loss: an ensemble of small recurrent networks
    over the encoded steps, each trained with the hinge loss of pairs,

    $$\\sum_{\\ell_i < \\ell_j} \\max(0,\\, \\delta - (s_i - s_j)).$$

    **Arguments:**

    - `width`: of the networks.
    - `members`: how many there are; scores are their means.
    - `margin`: $\\delta$.
    - `num_steps`: steps of training, with Adam.
    - `learning_rate`: its rate.

    **Raises:** `ValueError` if a number leaves its range.

    **Reference:** Liu, Ning, Lin, Yang, Wang, A Unified Sampling Framework for Solver Searching of
    Diffusion Probabilistic Models, 2023, arXiv:2312.07243.
    """

    width: int = 32
    members: int = 3
    margin: float = 0.1
    num_steps: int = 100
    learning_rate: float = 5e-3

    def __check_init__(self):
        for name in ("width", "members", "num_steps"):
            checks.count(name, getattr(self, name))
        checks.positive("margin", self.margin)
        checks.positive("learning_rate", self.learning_rate)

    def fit(
        self,
        decisions: Sequence[Decision],
        losses: Float[np.ndarray, " n"],
        schedule: AbstractSchedule,
        key: PRNGKeyArray,
        *,
        most: int | None = None,
        room: int | None = None,
    ) -> RankModel:
        """Train.

        **Arguments:**

        - `decisions`: the decisions.
        - `losses`: their losses, shape `(n,)`.
        - `schedule`: the noise schedule.
        - `key`: random key.
        - `most`, `room`: how many steps and how many decisions to make room for, so that later fits
          are the same program; those there are if left out.

        **Raises:** `ValueError` if numbers of decisions and losses differ, or there is no room.
        """
        losses = np.asarray(losses)
        room = len(decisions) if room is None else room
        most = max(len(d.steps) for d in decisions) if most is None else most
        if losses.shape != (len(decisions),) or len(decisions) > room:
            raise ValueError(
                f"there must be a loss for each decision and room for {len(decisions)}, got shape "
                f"{losses.shape} and room {room}"
            )
        rows, mask = _table(decisions, schedule, most, room)
        # Only the order matters.
        ranks = np.zeros(room, np.float32)
        ranks[: len(losses)] = np.argsort(np.argsort(losses, kind="stable"), kind="stable")
        first, second, third = jax.random.split(key, 3)
        make = lambda key: _Member(rows.shape[-1], self.width, key)
        members = eqx.filter_vmap(make)(jax.random.split(first, self.members))
        members = jax.tree.map(
            lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, members
        )
        count, ranks = jnp.asarray(len(losses)), jnp.asarray(ranks)
        margin = jnp.asarray(self.margin, jnp.float32)

        def batch(step):
            index = jax.random.randint(jax.random.fold_in(second, step), (_BATCH,), 0, count)
            return rows[index], mask[index], ranks[index], margin

        method = GradientStep(_loss, optax.adam(self.learning_rate))
        found = fit(method, members, batch, self.num_steps, key=third, progress=False)
        return RankModel(found.params, schedule, most)
