"""The unified sampling framework: every choice of an exponential integrator, step by step."""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from ..core import checks, loops
from ..core.closure import hoist
from . import exponential
from .ddim import DDIM
from .denoiser import AbstractDenoiser, Sample, combine
from .dpm_solver import DPMSolver
from .dpm_solver_pp import DPMSolverPP
from .dpm_solver_v3 import AbstractDifferences, DividedDifferences, DPMSolverV3
from .exponential import AbstractForm, DataForm, NoiseForm
from .integrals import Integrals
from .model_statistics import ModelStatistics
from .sampler import AbstractSampler, as_numbers, check_times
from .schedules import AbstractSchedule, Coefficients, Node, Times
from .stepping import MultiStep, rising_orders
from .unipc import BH2, AbstractVariant, UniP, UniPC, Varying

MOST = 4
"""The highest order of a step; with its corrector one more."""


class StatisticsForm(eqx.Module):
    """The output of `DPMSolverV3` is expanded, by the statistics that the sampler is given."""


class LinearRelaxation(AbstractVariant):
    """$(1 + c z)\\varphi_2(z)$.

    **Arguments:**

    - `slope`: c.
    """

    slope: float = 0.0

    def second(self, z):
        return (1 + self.slope * z) * exponential.phi(2, z)


class ExponentialRelaxation(AbstractVariant):
    """$(1 + c (e^z - 1))\\varphi_2(z)$.

    **Arguments:**

    - `share`: c, 1/2 or -1/2 in the paper.
    """

    share: float = 0.5

    def second(self, z):
        return (1 + self.share * np.expm1(z)) * exponential.phi(2, z)


Active = tuple[tuple[int, ...], ...] | None


class AbstractCorrector(eqx.Module):
    """The step once more with the output at its end.

    **Attributes:**

    - `raised`: how much its order is above that of the step.
    - `variant`, `active`: as in `Step`; output 0 is the one at the end.
    """

    raised: eqx.AbstractVar[int]
    variant: eqx.AbstractVar[AbstractVariant]
    active: eqx.AbstractVar[Active]

    @property
    @abc.abstractmethod
    def calls(self) -> int:
        """Evaluations that it costs."""

    def __check_init__(self):
        if self.raised not in (0, 1):
            raise ValueError(f"raised must be 0 or 1, got {self.raised}")
        checks.instance("variant", self.variant, AbstractVariant, "Varying()")
        _check_active(self.active, 0)


class PseudoCorrector(AbstractCorrector):
    """The output at the predicted end serves the next step too; it costs nothing.

    **Arguments:**

    - `raised`: 1 to correct with an order more than that of the step, 0 with the same.
    - `variant`, `active`: as in `Step`; output 0 is the one at the end.

    **Raises:** as `Step`.
    """

    raised: int = 1
    variant: AbstractVariant = Varying()
    active: Active = None

    @property
    def calls(self):
        return 0


class ImplicitCorrector(AbstractCorrector):
    """The model is evaluated again at the corrected end, for one more call.

    **Arguments:**

    - `raised`, `variant`, `active`: as in `PseudoCorrector`.

    **Raises:** as `Step`.
    """

    raised: int = 1
    variant: AbstractVariant = Varying()
    active: Active = None

    @property
    def calls(self):
        return 1


class Step(eqx.Module):
    """What is chosen in a step.

    **Arguments:**

    - `order`: p, 1 to 4; less where there is not so much history.
    - `form`: the output that is expanded, `DataForm()`, `NoiseForm()` or `StatisticsForm()`.
    - `variant`: the relaxation of the first derivative, what stands for $\\varphi_2(z)$:
      `Varying()` for none, `BH1()`, `BH2()`, `LinearRelaxation(c)`, `ExponentialRelaxation(c)`.
    - `active`: for the derivatives of orders 1 to p - 1, which outputs it is estimated from besides
      the one at the step's beginning: 1 is that of the step before, and so on. `None` for the
      nearest p - 1 always. A derivative whose outputs there are not enough of is estimated from
      the nearest.
    - `corrector`: `PseudoCorrector()`, `ImplicitCorrector()` or `None`; the last step has none.

    **Raises:** `ValueError` if `order` or an output leaves its range; `TypeError` if a part is
    none.
    """

    order: int = 1
    form: AbstractForm | StatisticsForm = DataForm()
    variant: AbstractVariant = Varying()
    active: Active = None
    corrector: AbstractCorrector | None = None

    def __check_init__(self):
        checks.count("order", self.order)
        if self.order > MOST:
            raise ValueError(f"order must be at most {MOST}, got {self.order}")
        if not isinstance(self.form, (DataForm, NoiseForm, StatisticsForm)):
            raise TypeError(f"form must be DataForm() or another form, got {self.form!r}")
        checks.instance("variant", self.variant, AbstractVariant, "Varying()")
        if self.corrector is not None:
            checks.instance("corrector", self.corrector, AbstractCorrector, "PseudoCorrector()")
        _check_active(self.active, 1)


def _check_active(active: Any, lowest: int):
    for k, chosen in enumerate(active or [], 1):
        inside = all(lowest <= j < MOST for j in chosen)
        if len(set(chosen)) < max(len(chosen), k) or not inside:
            raise ValueError(
                f"active must name at least {k} different outputs from {lowest} to {MOST - 1} for "
                f"derivative {k}, got {chosen}"
            )


class AbstractFirst(eqx.Module):
    """The data that stand for the first prediction, which is then not made."""


class ZeroData(AbstractFirst):
    """Zero."""


class MeanData(AbstractFirst):
    """The mean of the data, which the sampler is given."""


class Decision(eqx.Module):
    """All that is chosen for a run.

    **Arguments:**

    - `times`: falling times, N + 1 of them; their ends are free as well.
    - `steps`: a `Step` for each two.
    - `first`: `ZeroData()` or `MeanData()` in place of the first output of the model, or `None`.

    **Raises:** `ValueError` if there is not one step between each two times, or times do not fall.
    """

    times: tuple[float, ...]
    steps: tuple[Step, ...]
    first: AbstractFirst | None = None

    def __check_init__(self):
        if len(self.times) != len(self.steps) + 1 or not self.steps:
            raise ValueError(
                f"there must be a step between each two times, got {len(self.steps)} steps and "
                f"{len(self.times)} times"
            )
        if not np.all(np.diff(self.times) < 0):
            raise ValueError(f"times must fall, got {self.times}")
        for step in self.steps:
            checks.instance("step", step, Step, "Step()")
        if self.first is not None:
            checks.instance("first", self.first, AbstractFirst, "ZeroData()")

    @property
    def calls(self) -> int:
        """Evaluations of the model."""
        again = sum(s.corrector.calls for s in self.steps[:-1] if s.corrector is not None)
        return len(self.steps) - (self.first is not None) + again


class _Linear(NamedTuple):
    """$\\kappa x + o + \\sum_j u_j x_j + w_j \\hat\\epsilon_j$, with the points at which the model
    was evaluated, newest first, and what it said."""

    keep: Coefficients
    offset: Coefficients
    points: Coefficients
    noises: Coefficients


class _Row(NamedTuple):
    """The model is evaluated at `node`, unless it is `known` what it says, in place of the last
    output if it does so `again`; what the point was moved from is moved once more, `corrected`;
    then the next step is `predicted`."""

    node: Node
    known: Bool[np.ndarray, " n"]
    again: Bool[np.ndarray, " n"]
    corrected: _Linear
    predicted: _Linear


class USFSampler(AbstractSampler):
    """The sampler that a `Decision` describes.

    From outputs $f_j$ at the step's beginning s (j = 0) and before it, in the noise or in the data,

    $$x_t = \\kappa x_s + c \\Big(\\varphi_1(z) f_0 + \\sum_{k=1}^{p-1} R_k \\varphi_{k+1}(z)\\,
    h^k D_k\\Big), \\qquad D_k = \\sum_{j \\in A_k} w_{kj} (f_j - f_0),$$

    $$\\sum_{j \\in A_k} w_{kj} \\frac{(\\lambda_j - \\lambda_s)^i}{i!} = [i = k], \\quad
    i = 1, \\dots, |A_k|,$$

    with $\\kappa, c, z$ as in `exponential`, the relaxation $R_1$ (other $R_k = 1$) and the active
    outputs $A_k$ of the `Step`. A corrector makes the step again from $x_s$ with the output at t
    among them. With statistics the integrals are those of `DPMSolverV3`.

    Steps may expand different outputs: what is kept are points and the noise predicted there, and
    outputs are linear in these. So a run is rows of numbers, and all decisions are one program. An
    implicit corrector is a row of its own.

    **Arguments:**

    - `decision`: a `Decision`, whose times those of the run should be; or a `Step` for every step
      of any run.
    - `statistics`: a `ModelStatistics` for steps with `StatisticsForm()`.
    - `mean`: mean of the data for `MeanData()`, a number or an array of a sample's shape.

    **Raises:** `TypeError` if a part is none; `ValueError`, when run, if the numbers of steps
    differ, or a step needs statistics and there are none, or they do not reach so far.

    **Reference:** Liu, Ning, Lin, Yang, Wang, A Unified Sampling Framework for Solver Searching of
    Diffusion Probabilistic Models, 2023, arXiv:2312.07243.
    """

    decision: Decision | Step
    statistics: ModelStatistics | None = None
    mean: Float[np.ndarray, " *shape"] | float = 0.0

    def __check_init__(self):
        if not isinstance(self.decision, (Decision, Step)):
            raise TypeError(f"decision must be a Decision or a Step, got {self.decision!r}")
        if self.statistics is not None:
            checks.instance("statistics", self.statistics, ModelStatistics, "model_statistics(...)")

    @property
    def stepper(self):
        return USFSampler(Step())

    def evaluations(self, num_steps):
        # Times do not matter here.
        return self._chosen(np.arange(num_steps, -1, -1.0)).calls

    def plan(self, schedule, times):
        return _Planner(self, self._chosen(times), schedule, np.asarray(times, float)).rows()

    def start(self, model, x, node):
        nothing = jax.tree.map(jnp.zeros_like, x)
        return nothing, ((nothing, nothing),) * MOST

    def step(self, model, x, memory, row, key):
        zero = lambda: jax.tree.map(jnp.zeros_like, x)
        noise = loops.cond(row.known, zero, lambda: _noise(model, x, row.node))
        return _advance(x, noise, memory, row)

    def _chosen(self, times) -> Decision:
        if isinstance(self.decision, Step):
            return Decision(tuple(map(float, times)), (self.decision,) * (len(times) - 1))
        if len(times) != len(self.decision.times):
            raise ValueError(
                f"decision has {len(self.decision.steps)} steps, times have {len(times) - 1}"
            )
        return self.decision


def _noise(model, x, node):
    return jax.tree.map(lambda e, a: jnp.asarray(e, a.dtype), model.noise(x, node), x)


def _advance(x, noise, memory, row: _Row):
    """The next point, with the model's output at `x`."""
    base, pairs = memory
    older = jax.tree.map(lambda a, b: jnp.where(row.again, a, b), (*pairs[1:], pairs[-1]), pairs)
    pairs = ((x, noise), *older)
    base = _apply(row.corrected, base, pairs)
    return _apply(row.predicted, base, pairs), (base, pairs[:-1])


def _apply(linear: _Linear, x, pairs):
    terms = [(linear.keep, x), (linear.offset, jax.tree.map(jnp.ones_like, x))]
    for j, (point, noise) in enumerate(pairs):
        terms += [(linear.points[j], point), (linear.noises[j], noise)]
    return combine(*terms)


class _Planner:
    """The rows of a run."""

    def __init__(self, sampler: USFSampler, decision: Decision, schedule, times):
        self.decision = decision
        self.nodes = schedule.nodes(times)
        self.levels = np.asarray(exponential.log_snr(self.nodes))
        self.integrals = None
        shape = ()
        statistics = sampler.statistics
        if any(isinstance(step.form, StatisticsForm) for step in decision.steps):
            if statistics is None:
                raise ValueError("a step with StatisticsForm() needs statistics, got none")
            statistics.check_levels(self.levels)
            self.integrals = Integrals(statistics, self.levels)
        if statistics is not None:
            shape = statistics.linear.shape[1:]
        known = isinstance(decision.first, MeanData)
        self.first = np.asarray(sampler.mean, np.float64) if known else np.zeros(())
        self.shape = np.broadcast_shapes(shape, np.shape(sampler.mean))

    def rows(self) -> _Row:
        steps, made = self.decision.steps, []
        same = self.linear({0: (1.0, 0.0)})
        stay = self.linear({}, keep=1.0)
        for i, step in enumerate(steps):
            known = i == 0 and self.decision.first is not None
            predicted = self.move(step, i)
            correcting = steps[i - 1].corrector if i else None
            if correcting is None:
                made.append((i, known, False, same, predicted))
                continue
            corrected = self.move(steps[i - 1], i - 1, correcting)
            if correcting.calls:
                made.append((i, known, False, corrected, stay))
                made.append((i, known, True, same, predicted))
            else:
                made.append((i, known, False, corrected, predicted))
        at, known, again, corrected, predicted = zip(*made, strict=True)
        stack = lambda rows: _Linear(*(np.stack(a) for a in zip(*rows, strict=True)))
        node = Node(*(a[list(at)] for a in self.nodes))
        return _Row(node, np.array(known), np.array(again), stack(corrected), stack(predicted))

    def linear(self, weights, keep: Any = 0.0, offset: Any = 0.0) -> _Linear:
        """With weights of points and of noises, by their place among those that are kept."""
        points, noises = (np.zeros((MOST + 1, *self.shape)) for _ in range(2))
        for place, (point, noise) in weights.items():
            points[place] += point
            noises[place] += noise
        whole = lambda a: np.broadcast_to(np.asarray(a, np.float64), self.shape)
        return _Linear(whole(keep), whole(offset), points, noises)

    def move(self, step: Step, i: int, corrector: AbstractCorrector | None = None) -> _Linear:
        """Step i, or its correction."""
        order = min(step.order, i + 1)
        rule = step if corrector is None else corrector
        order += 0 if corrector is None else corrector.raised
        # Outputs by how far back they are: the beginning's is 0, the end's -1.
        back = lambda j: -1 if corrector is not None and j == 0 else j
        known = [j for j in range(MOST) if -1 <= back(j) <= i and (j or corrector is not None)]
        nearest = tuple(known[: order - 1])
        chosen = []
        for k in range(1, order):
            wanted = nearest if rule.active is None or k > len(rule.active) else rule.active[k - 1]
            wanted = tuple(j for j in wanted if j in known)
            chosen.append([back(j) for j in (wanted if len(wanted) >= k else nearest)])
        backs = [0, *sorted({j for js in chosen for j in js})]
        h = self.levels[i + 1] - self.levels[i]
        rows = np.zeros((order, len(backs)))
        rows[0, 0] = 1.0
        for k, js in enumerate(chosen, 1):
            js = [0, *js]
            places = np.array([self.levels[i - j] - self.levels[i] for j in js]) / h
            rows[k, [backs.index(j) for j in js]] = exponential.derivatives(places)[k]
        shift = 0 if corrector is None else 1
        keep, offset, outputs = self.weigh(step.form, rule.variant, i, backs, rows)
        weights = {}
        for j, weight in zip(backs, outputs, strict=True):
            point, noise = self.pair(step.form, i - j, weight)
            if i == j and self.decision.first is not None:
                sigma, alpha = self.nodes.sigma[0], self.nodes.alpha[0]
                offset = offset - noise * alpha / sigma * self.first
                point, noise = point + noise / sigma, 0.0
            weights[j + shift] = point, noise
        return self.linear(weights, keep, offset)

    def weigh(self, form, variant, i, backs, rows):
        """$\\kappa$, the offset, and weights of outputs, by those in $h^k f^{(k)}$."""
        here, there = (Node(*(a[n] for a in self.nodes)) for n in (i, i + 1))
        h = self.levels[i + 1] - self.levels[i]
        if isinstance(form, StatisticsForm):
            assert self.integrals is not None
            scaled = rows / h ** np.arange(len(rows))[:, None]
            if len(rows) > 1:
                scaled[1] *= _number(variant.second(np.array(-h)) / exponential.phi(2, -h))
            scale = there.alpha / here.alpha, there.alpha
            return self.integrals.step([i - j for j in backs], i + 1, scale, scaled, len(backs))
        keep, scale, z = form.linear(here, there)
        phis: list[Any] = [exponential.phi(k + 1, z) for k in range(len(rows))]
        if len(rows) > 1:
            phis[1] = _number(variant.second(np.array(z)))
        return keep, 0.0, exponential.weigh(scale, phis, rows)

    def pair(self, form, n, weight):
        """Weights of the point and of the noise at node n, by that of the output."""
        alpha, sigma = self.nodes.alpha[n], self.nodes.sigma[n]
        if isinstance(form, NoiseForm):
            return 0.0, weight
        if isinstance(form, DataForm):
            return weight / alpha, -weight * sigma / alpha
        assert self.integrals is not None
        return -weight * self.integrals.linear[n] / alpha, weight * sigma / alpha


def _number(a):
    return np.asarray(a, np.float64)


def as_decision(sampler: AbstractSampler, schedule: AbstractSchedule, times: Times) -> Decision:
    """A known sampler as a decision for these times.

    **Arguments:**

    - `sampler`: `DDIM()`, `DPMSolver` or `DPMSolverPP` by `MultiStep`, `UniP`, `UniPC`, or
      `DPMSolverV3`, whose statistics `USFSampler` must be given.
    - `schedule`, `times`: those of the run.

    **Raises:** `TypeError` if the sampler is another one; `ValueError` if it draws noise, its order
    is above 4 or the number of steps, or times are none.

    **Reference:** Liu, Ning, Lin, Yang, Wang, A Unified Sampling Framework for Solver Searching of
    Diffusion Probabilistic Models, 2023, arXiv:2312.07243.
    """
    times = check_times(schedule, times)
    count = len(times) - 1
    if sampler.stochastic:
        raise ValueError(f"sampler must not draw noise, got {sampler!r}")
    orders = lambda most, final: rising_orders(count, most, final).tolist()
    if isinstance(sampler, DDIM):
        steps = [Step(1, NoiseForm())] * count
    elif isinstance(sampler, (DPMSolver, DPMSolverPP)) and isinstance(sampler.steps, MultiStep):
        rule = sampler.steps
        if rule.official_d2 and rule.order == 3:
            raise ValueError("sampler must have the right second derivative, got official_d2=True")
        steps = [
            Step(p, sampler.form, BH2() if p == 2 and not rule.taylor else Varying())
            for p in orders(rule.order, rule.lower_order_final)
        ]
    elif isinstance(sampler, (UniP, UniPC)):
        variant = lambda p: sampler.variant if p == 2 else Varying()
        corrector = lambda p: PseudoCorrector(1, variant(p + 1))
        steps = [
            Step(
                p,
                sampler.form,
                variant(p),
                corrector=corrector(p) if isinstance(sampler, UniPC) else None,
            )
            for p in orders(sampler.order, sampler.lower_order_final)
        ]
    elif isinstance(sampler, DPMSolverV3):
        steps = []
        for p, t in zip(orders(sampler.order, sampler.lower_order_final), times[1:], strict=True):
            corrector = None
            uses = 0 if sampler.corrector is None else sampler.corrector.ahead(p)
            if uses > 1 and t > sampler.corrected_above and sampler.corrector is not None:
                corrector = PseudoCorrector(uses - p, Varying(), _active(sampler.corrector, 0))
            active = _active(sampler.predictor, 1)
            steps.append(Step(p, StatisticsForm(), Varying(), active, corrector))
    else:
        raise TypeError(f"sampler must be DDIM() or another that has steps, got {sampler!r}")
    return Decision(tuple(map(float, times)), tuple(steps))


def _active(differences: AbstractDifferences, first) -> Active:
    if not isinstance(differences, DividedDifferences):
        return None
    # The k-th divided difference is the k-th derivative of the polynomial through k + 1 outputs.
    return tuple(tuple(range(first, k)) for k in range(first + 1, MOST + 1))


def sample_decisions(
    model: AbstractDenoiser,
    decisions: Sequence[Decision],
    schedule: AbstractSchedule,
    x: Sample,
    statistics: ModelStatistics | None = None,
    mean: Float[np.ndarray, " *shape"] | float = 0.0,
) -> Sample:
    """The samples of many decisions from one start, at once and by one program; what it is traced
    for is only how many there are and how many evaluations they make.

    **Arguments:**

    - `model`, `schedule`: as in `sample`.
    - `decisions`: with the same number of evaluations.
    - `x`: the noisy start, the same for all.
    - `statistics`, `mean`: as in `USFSampler`.

    **Returns:** the samples, on a leading axis.

    **Raises:** `ValueError` if there are no decisions, or with different numbers of evaluations;
    and as `USFSampler`.

    **Reference:** Liu, Ning, Lin, Yang, Wang, A Unified Sampling Framework for Solver Searching of
    Diffusion Probabilistic Models, 2023, arXiv:2312.07243.
    """
    if len({decision.calls for decision in decisions}) != 1:
        raise ValueError(
            "decisions must have the same number of evaluations, got "
            f"{sorted({decision.calls for decision in decisions})}"
        )
    x = checks.inexact_tree("x", x)
    tables = []
    for decision in decisions:
        times = check_times(schedule, np.array(decision.times))
        table = USFSampler(decision, statistics, mean).plan(schedule, times)
        first = jax.tree.map(lambda a: a[0], table)
        if decision.first is None:
            # Nothing happens before the first evaluation.
            same = first.corrected
            stay = jax.tree.map(np.zeros_like, same)._replace(keep=np.ones_like(same.keep))
            first = first._replace(predicted=stay)
        else:
            table = jax.tree.map(lambda a: a[1:], table)
        tables.append((first, table))
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *tables)
    return _run_all(hoist(model), x, as_numbers(stacked, x))


@eqx.filter_jit
def _run_all(model: Any, x: Sample, tables: tuple[_Row, _Row]) -> Sample:
    sampler = USFSampler(Step())
    zero: Any = jax.tree.map(jnp.zeros_like, x)

    def one(rows):
        first, table = rows
        carry = _advance(x, zero, sampler.start(model, x, first.node), first)

        def step(carry, row):
            x, memory = carry
            new = _advance(x, _noise(model, x, row.node), memory, row)
            return jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, carry), None

        return loops.scan(step, carry, table)[0][0]

    return jax.vmap(one)(tables)
