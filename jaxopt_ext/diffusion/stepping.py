"""Single-step and multistep forms of exponential integrators, for any output that is expanded."""

import abc
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ..core import checks
from . import exponential
from .denoiser import AbstractDenoiser, Sample
from .exponential import AbstractForm, MultistepRow, SinglestepRow
from .sampler import AbstractSampler, ends
from .schedules import AbstractSchedule, Coefficients, Node, Times

_PLACES = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


class AbstractStepping(eqx.Module):
    """Where the derivatives of the output come from: from stages inside a step, or from the steps
    before it."""

    @property
    def reaches_zero(self) -> bool:
        """Whether the last step may end without noise."""
        return False

    @abc.abstractmethod
    def evaluations(self, num_steps: int) -> int:
        """Model evaluations of so many steps."""

    @abc.abstractmethod
    def plan(self, form: AbstractForm, schedule: AbstractSchedule, times: Times) -> Any:
        """A row of numbers for each step between two `times`."""

    @abc.abstractmethod
    def start(self, x: Sample) -> Any:
        """The memory before the first step."""

    @abc.abstractmethod
    def step(
        self,
        form: AbstractForm,
        model: AbstractDenoiser,
        x: Sample,
        memory: Any,
        row: PyTree[Array],
    ) -> tuple[Sample, Any]:
        """The sample and the memory after a step."""


class SingleStep(AbstractStepping):
    """Stages inside each step; nothing is remembered, and a step of order p costs p evaluations.

    With $f_s$ the output at the step's beginning, $f_i$ those at the inner points, which lie at
    $\\lambda_s + r_i h$, and $\\kappa, c, \\varphi_k(z)$ as in `exponential`, a step ends at

    $$\\begin{aligned}
    1:&\\quad \\kappa x_s + c\\varphi_1 f_s, \\\\
    2:&\\quad \\kappa x_s + c\\varphi_1 \\big(f_s + \\tfrac{1}{2 r_1} (f_1 - f_s)\\big), \\\\
    3:&\\quad \\kappa x_s + c\\varphi_1 f_s + c\\varphi_2 \\tfrac{1}{r_2} (f_2 - f_s).
    \\end{aligned}$$

    The first inner point is a step of order 1, the second one of order 2 in the `taylor` form.

    **Arguments:**

    - `order`: 1, 2 or 3; or a tuple with one for each step.
    - `places`: $r_i \\in (0, 1]$, rising: (1/2) and (1/3, 2/3) if left out; where `order` is a
      tuple, a tuple of them for each step. With other $r_2$ than 2/3 order 3 is order 2 in fact.
    - `taylor`: put difference quotients for derivatives in
      $\\kappa x_s + c \\sum_k \\varphi_{k+1} h^k f^{(k)}$ instead.

    **Raises:** `ValueError` if `order` or `places` leave their ranges or do not fit; when run, if
    there is not one order for each step.

    **Reference:** Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver: A Fast ODE Solver for Diffusion
    Probabilistic Model Sampling in Around 10 Steps, 2022, arXiv:2206.00927.
    """

    order: int | tuple[int, ...] = 3
    places: tuple[Any, ...] | None = None
    taylor: bool = False

    def __check_init__(self):
        orders = self.order if isinstance(self.order, tuple) else (self.order,)
        if not orders:
            raise ValueError("order must name at least one step, got ()")
        for order in orders:
            check_order(order)
        if self.places is None:
            return
        rows = self.places if isinstance(self.order, tuple) else (self.places,)
        if len(rows) != len(orders):
            raise ValueError(f"places must be given for {len(orders)} steps, got {len(rows)}")
        for order, row in zip(orders, rows, strict=True):
            inner = np.asarray(row, np.float64)
            if inner.shape != (order - 1,):
                raise ValueError(f"order {order} needs {order - 1} places, got {row}")
            if inner.size and not (inner[0] > 0 and inner[-1] <= 1 and np.all(np.diff(inner) > 0)):
                raise ValueError(f"places must rise within (0, 1], got {row}")

    def evaluations(self, num_steps):
        return sum(order for order, _ in self._each(num_steps))

    def plan(self, form, schedule, times):
        here, there = ends(schedule, times)
        low, h = exponential.log_snr(here), exponential.gap(here, there)
        each = self._each(len(h))
        count, most = len(h), max(order for order, _ in each)
        nodes = [np.repeat(a[:, None], most, 1) for a in here]
        keep, weights = np.zeros((count, most)), np.zeros((count, most, most))
        for kind in dict.fromkeys(each):
            order, places = kind
            among = np.array([i for i, other in enumerate(each) if other == kind])
            pick = lambda node, among=among: Node(*(a[among] for a in node))
            inner = [schedule.nodes(schedule.time_at(low[among] + r * h[among])) for r in places]
            for i, node in enumerate(inner, 1):
                for table, column in zip(nodes, node, strict=True):
                    table[among, i] = column
            keeps, rows = stages(form, (pick(here), *inner, pick(there)), places, self.taylor)
            for i, (kept, row) in enumerate(zip(keeps, rows, strict=True)):
                # The end of every step stands last.
                at = i if i < order - 1 else most - 1
                keep[among, at] = kept
                weights[among, at, : row.shape[-1]] = row
        return SinglestepRow(Node(*nodes), keep, weights, np.array([order for order, _ in each]))

    def start(self, x):
        return ()

    def step(self, form, model, x, memory, row):
        orders = {self.order} if isinstance(self.order, int) else set(self.order)
        return exponential.singlestep(form, model, x, row, uniform=len(orders) == 1), memory

    def _each(self, num_steps):
        """Order and places of each step."""
        if isinstance(self.order, int):
            places = _PLACES[self.order] if self.places is None else tuple(self.places)
            return [(self.order, places)] * num_steps
        if len(self.order) != num_steps:
            raise ValueError(f"order names {len(self.order)} steps, times have {num_steps}")
        places = self.places or [_PLACES[order] for order in self.order]
        return [(order, tuple(row)) for order, row in zip(self.order, places, strict=True)]


def stages(
    form: AbstractForm, nodes: Sequence[Node], places: Sequence[float], taylor: bool
) -> tuple[list[Coefficients], list[Coefficients]]:
    """$\\kappa$ and weights of earlier outputs of the inner points and the end of a single step; on
    the host or inside a program, by the nodes.

    **Arguments:**

    - `nodes`: beginning, inner points, end.
    - `places`: $r_i$ of the inner points.
    """
    keeps, weights = [], []
    for i, node in enumerate(nodes[1:], 1):
        keep, scale, z = form.linear(nodes[0], node)
        if i < len(nodes) - 1:
            rows = exponential.derivatives(np.array([0.0, *places[: i - 1]]) / places[i - 1])
        elif taylor or i == 1:
            rows = exponential.derivatives(np.array([0.0, *places]))
        elif i == 2:
            rows = midpoint(np.asarray(places[0]))
        else:
            rows = np.array([[1.0, 0.0, 0.0], [-1 / places[1], 0.0, 1 / places[1]]])
        phis = [exponential.phi(k + 1, z) for k in range(rows.shape[-2])]
        keeps.append(keep)
        weights.append(exponential.weigh(scale, phis, rows))
    return keeps, weights


def midpoint(place: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n 1 2"]:
    """Weights of two outputs in the one that stands for the whole step,
    $f_s + (f_r - f_s)/(2r)$."""
    return np.stack([1 - 0.5 / place, 0.5 / place], -1)[..., None, :]


class MultiStep(AbstractStepping):
    """Outputs of the steps before; one evaluation a step.

    With $f_0$ the output at the step's beginning, $f_1, f_2$ those before, $h_0, h_1$ the steps in
    $\\lambda$ before, $r_j = h_j/h$, and $\\kappa, c, \\varphi_k(z)$ as in `exponential`,

    $$\\begin{aligned}
    1:&\\quad \\kappa x_s + c\\varphi_1 f_0, \\\\
    2:&\\quad \\kappa x_s + c\\varphi_1 \\big(f_0 + \\tfrac{1}{2 r_0} (f_0 - f_1)\\big), \\\\
    3:&\\quad \\kappa x_s + c\\varphi_1 f_0 + c\\varphi_2 D_1 + c\\varphi_3 D_2,
    \\end{aligned}$$

    $$D = \\tfrac{1}{r_0} (f_0 - f_1), \\quad D' = \\tfrac{1}{r_1} (f_1 - f_2), \\quad
    D_1 = D + \\tfrac{r_0}{r_0 + r_1} (D - D'), \\quad D_2 = \\tfrac{2}{r_0 + r_1} (D - D').$$

    The first steps have orders 1, 2, ...; the last ones of a short run ..., 2, 1, and one that ends
    without noise has order 1.

    **Arguments:**

    - `order`: 1, 2 or 3.
    - `taylor`: order 2 is $\\kappa x_s + c\\varphi_1 f_0 + c\\varphi_2 D$ instead.
    - `lower_order_final`: runs of fewer steps end with falling orders; 0 for none.
    - `official_d2`: half of $D_2$, as in the authors' code. That is of second order only; for
      comparisons.

    **Raises:** `ValueError` if `order` leaves its range; when run, if it exceeds the number of
    steps.

    **Reference:** Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver++: Fast Solver for Guided Sampling of
    Diffusion Probabilistic Models, 2022, arXiv:2211.01095.
    """

    order: int = 2
    taylor: bool = False
    lower_order_final: int = 10
    official_d2: bool = False

    def __check_init__(self):
        check_order(self.order)
        checks.count("lower_order_final", self.lower_order_final, 0)

    @property
    def reaches_zero(self):
        return True

    def evaluations(self, num_steps):
        return num_steps

    def plan(self, form, schedule, times):
        here, there = ends(schedule, times)
        count = len(here.t)
        orders = rising_orders(count, self.order, self.lower_order_final)
        keep, weights = np.zeros(count), np.zeros((count, self.order))
        for order, among, begin, end, places in by_order(orders, here, there):
            keep[among], scale, z = form.linear(begin, end)
            rows = self._rows(places)
            phis = [exponential.phi(k + 1, z) for k in range(rows.shape[-2])]
            weights[among, :order] = exponential.weigh(scale, phis, rows)
        if there.sigma[-1] == 0:
            keep[-1], weights[-1, 0] = (a[-1] for a in form.constant(here, there))
        return MultistepRow(here, keep, weights)

    def _rows(self, places):
        order = places.shape[-1]
        if order == 2 and not self.taylor:
            return midpoint(places[:, 1])
        rows = exponential.derivatives(places)
        if order == 3 and self.official_d2:
            rows = rows * np.array([1.0, 1.0, 0.5])[:, None]
        return rows

    def start(self, x):
        return exponential.empty(x, self.order - 1)

    def step(self, form, model, x, memory, row):
        return exponential.multistep(form, model, x, memory, row)


def rising_orders(count: int, order: int, lower_order_final: int) -> Int[np.ndarray, " n"]:
    """The order of each of `count` steps: as much as there is history for, up to `order`, and
    falling again at the end of runs of fewer than `lower_order_final`.

    **Raises:** `ValueError` if there are fewer steps than `order`.
    """
    if count < order:
        raise ValueError(f"order {order} needs as many steps, got {count}")
    orders = np.minimum(order, np.arange(count) + 1)
    return np.minimum(orders, count - np.arange(count)) if count < lower_order_final else orders


def by_order(
    orders: Int[np.ndarray, " n"], here: Node, there: Node
) -> Iterator[tuple[int, Int[np.ndarray, " k"], Node, Node, Any]]:
    """The first steps, as many as there are orders, in groups of one order: the order, which steps,
    where they begin and end, and where the outputs that they use stand, in units of the step.

    A step that ends without noise is in no group.
    """
    low, inner = exponential.log_snr(here), there.sigma[: len(orders)] > 0
    for order in sorted(set(orders.tolist())):
        among = np.flatnonzero(inner & (orders == order))
        begin, end = (Node(*(a[among] for a in node)) for node in (here, there))
        h = exponential.gap(begin, end)
        yield (
            order,
            among,
            begin,
            end,
            (low[among[:, None] - np.arange(order)] - low[among, None]) / h[:, None],
        )


def check_order(order: Any) -> None:
    """Raise unless `order` is 1, 2 or 3."""
    checks.count("order", order)
    if order > 3:
        raise ValueError(f"order must be at most 3, got {order}")


class AbstractExponentialSampler(AbstractSampler):
    """A sampler that expands one output of the model and takes its steps as `steps` says."""

    steps: eqx.AbstractVar[AbstractStepping]

    @property
    @abc.abstractmethod
    def form(self) -> AbstractForm:
        """Which output is expanded."""

    def __check_init__(self):
        if not isinstance(self.steps, AbstractStepping):
            raise TypeError(f"steps must be SingleStep or MultiStep, got {self.steps!r}")

    @property
    def reaches_zero(self):
        return self.steps.reaches_zero

    def evaluations(self, num_steps):
        return self.steps.evaluations(num_steps)

    def plan(self, schedule, times):
        return self.steps.plan(self.form, schedule, times)

    def start(self, model, x, node):
        return self.steps.start(x)

    def step(self, model, x, memory, row, key):
        return self.steps.step(self.form, model, x, memory, row)
