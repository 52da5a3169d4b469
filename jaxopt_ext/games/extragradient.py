"""The classical methods for monotone inclusions $0 \\in F(z) + G(z)$."""

import abc
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..core import AbstractInclusion, AbstractSolver, Scalar, checks, loops, scalar_field, tree

_SHRINK = 0.7
_MAX_SHRINKS = 100
_GROWTH = 1.1
_MAX_GROWTH = 1e3  # in all: where the map does not turn at all, a step could grow for ever


class _State(eqx.Module):
    value: PyTree[Array]
    point: PyTree[Array]
    slope: PyTree[Array]  # F at the value
    past: PyTree[Array]  # F at the value before, for the method that reflects
    anchor: PyTree[Array]
    step_size: Float[Array, ""]
    limit: Float[Array, ""]  # of the step size
    count: Int[Array, ""]
    total: PyTree[Array]  # of the average, weighted
    weight: Float[Array, ""]
    error: Float[Array, ""]


class _Moved(NamedTuple):
    value: PyTree[Array]
    point: PyTree[Array]
    slope: PyTree[Array]
    played: PyTree[Array]
    step_size: Float[Array, ""]


def _minus(a, b):
    return jax.tree.map(jnp.subtract, a, b)


class _AbstractMethod(AbstractSolver[AbstractInclusion, _State]):
    """What the methods share: the step size, the average and the error."""

    if TYPE_CHECKING:  # type checkers take equinox's abstract variables for fields
        step_size: ClassVar[Any]
        average: ClassVar[bool]
        factor: ClassVar[float]
        grows: ClassVar[bool]
    else:
        step_size: eqx.AbstractVar[Any]
        average: eqx.AbstractVar[bool]
        factor: eqx.AbstractClassVar[float]
        grows: eqx.AbstractClassVar[bool]

    def __check_init__(self):
        if self.step_size is not None:
            checks.positive("step_size", self.step_size)
        if not isinstance(self.average, bool):
            raise TypeError(f"average must be True or False, got {self.average!r}")

    @abc.abstractmethod
    def _move(self, problem: AbstractInclusion, state: _State) -> _Moved:
        """One step; `slope` is the map at `value`, and `played` what the average takes."""

    def _find(self, problem, propose, origin, state):
        """`propose(t)`, the map there, and the step size $t$.

        Without one given, $t$ shrinks until $t \\|F(h) - F(o)\\| \\le c \\|h - o\\|$ between the
        proposal and the origin. Where rounding is all that they differ by, the test would be one of
        rounding: then any step passes that is no longer than the last.
        """
        slope, last = state.slope, state.step_size
        if self.step_size is not None:
            t = jnp.asarray(self.step_size, last.dtype)
            proposed = tree.cast_like(propose(t), origin)
            return proposed, problem.forward(proposed), t
        eps = jnp.finfo(last.dtype).eps

        # The verdict is carried, so that rounding decides it once.
        def attempt(carry):
            _, _, t, shrinks, _ = carry
            proposed = tree.cast_like(propose(t), origin)
            found = tree.cast_like(problem.forward(proposed), origin)
            moved = tree.norm(_minus(proposed, origin))
            turned = t * tree.norm(_minus(found, slope))
            rounding = 8 * eps * (tree.norm(proposed) + tree.norm(origin))
            passed = turned <= self.factor * moved
            passed |= (turned <= self.factor * moved + rounding) & (t <= last)
            again = ~passed & (shrinks < _MAX_SHRINKS)
            return proposed, found, jnp.where(again, _SHRINK * t, t), shrinks + 1, again

        first = jnp.minimum(_GROWTH * last, state.limit) if self.grows else last
        start = (origin, slope, first, jnp.asarray(0, jnp.int32), jnp.asarray(True))
        proposed, found, t, *_ = loops.while_loop(lambda carry: carry[-1], attempt, start)
        return proposed, found, t

    def _first(self, problem, x, slope):
        """The inverse of how much the map turns along a step of one."""
        dtype = tree.real_dtype(x)
        if self.step_size is not None:
            return jnp.asarray(self.step_size, dtype)
        probe = problem.backward(_minus(x, slope), 1.0)
        moved = tree.norm(_minus(probe, x))
        turned = tree.norm(_minus(problem.forward(probe), slope))
        ratio = moved / jnp.where(turned > 0, turned, 1)
        usable = (turned > 0) & (ratio > 0) & jnp.isfinite(ratio)
        return jnp.where(usable, ratio, 1).astype(dtype)

    def init(self, problem, x, key):
        dtype = tree.real_dtype(x)
        slope = tree.cast_like(problem.forward(x), x)
        step = self._first(problem, x, slope)
        zero, infinity = jnp.zeros((), dtype), jnp.asarray(jnp.inf, dtype)
        total = jax.tree.map(jnp.zeros_like, x) if self.average else None
        count = jnp.asarray(0, jnp.int32)
        limit = _MAX_GROWTH * step
        return _State(x, x, slope, slope, x, step, limit, count, total, zero, infinity)

    def refresh(self, problem, x, state):
        slope = tree.cast_like(problem.forward(state.value), state.value)
        return eqx.tree_at(lambda s: (s.slope, s.past), state, (slope, slope))

    def step(self, problem, x, state):
        value, point, slope, played, t = self._move(problem, state)
        value, slope = tree.cast_like(value, x), tree.cast_like(slope, x)
        point, t = tree.cast_like(point, x), t.astype(state.step_size.dtype)
        total, weight, shown = state.total, state.weight + t, value
        at_shown = slope
        if self.average:
            total = tree.axpy(total, t, played)
            shown = tree.scale(total, 1 / weight)
            at_shown = problem.forward(shown)
        error = tree.norm(problem.residual_with(shown, at_shown)).astype(state.error.dtype)
        return shown, _State(
            value,
            point,
            slope,
            state.slope,
            state.anchor,
            t,
            state.limit,
            state.count + 1,
            total,
            weight,
            error,
        )

    def error(self, problem, x, state):
        return state.error


def _backward(problem, z, t, slope):
    """$J_{tG}(z - t v)$."""
    return problem.backward(tree.axpy(z, -t, slope), t)


class Extragradient(_AbstractMethod):
    """Look ahead, then step from where you were with the map found there:

    $$h = J_{tG}(z - t F(z)), \\qquad z^+ = J_{tG}(z - t F(h)).$$

    It converges for monotone maps with $t < 1/L$, the average of the $h$ with $O(1/k)$ in the gap.
    On $\\min_x \\max_y\\, s x y$ a step multiplies by $1 - t^2 s^2 \\pm i t s$.

    The error is the norm of the problem's residual at what is returned; the map there is that of
    the next step, but for averages it costs one more.

    **Arguments:**

    - `step_size`: $t > 0$; `None` searches for one with $t \\|F(h) - F(z)\\| \\le 0.9 \\|h - z\\|$,
      each time from a little more than the last. A solve that searches cannot be unrolled in
      reverse mode.
    - `average`: return the mean of the $h$, weighted with $t$, not the last $z$.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless `step_size` is positive.

    **Reference:** Korpelevich, The Extragradient Method for Finding Saddle Points and Other
    Problems, 1976. Nemirovski, Prox-Method with Rate of Convergence O(1/t) for Variational
    Inequalities, 2004.
    """

    step_size: Scalar | None = scalar_field(None)
    average: bool = eqx.field(static=True, default=False)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (AbstractInclusion,)
    factor = 0.9
    grows = True

    def _move(self, problem, state):
        z = state.point
        propose = lambda t: _backward(problem, z, t, state.slope)
        ahead, slope, t = self._find(problem, propose, z, state)
        z = tree.cast_like(_backward(problem, z, t, slope), z)
        return _Moved(z, z, problem.forward(z), ahead, t)


class OptimisticGradient(_AbstractMethod):
    """Popov's method, or past extragradient: look ahead with the map of the last look,

    $$w^+ = J_{tG}(z - t F(w)), \\qquad z^+ = J_{tG}(z - t F(w^+)),$$

    which costs one evaluation a step. It converges for monotone maps with $t < 1/(2L)$. The value
    is $w$, where the map is known, and the error the norm of the problem's residual there.

    **Arguments:**

    - `step_size`: $t > 0$; `None` searches for one with $t \\|F(w^+) - F(w)\\| \\le 0.45
      \\|w^+ - w\\|$ that only falls. A solve that searches cannot be unrolled in reverse mode.
    - `average`: return the mean of the $w$, weighted with $t$; one more evaluation a step.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless `step_size` is positive.

    **Reference:** Popov, A Modification of the Arrow-Hurwicz Method for Search of Saddle Points,
    1980. Hsieh, Iutzeler, Malick, Mertikopoulos, On the Convergence of Single-Call Stochastic
    Extra-Gradient Methods, 2019, arXiv:1908.08465.
    """

    step_size: Scalar | None = scalar_field(None)
    average: bool = eqx.field(static=True, default=False)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (AbstractInclusion,)
    factor = 0.45
    grows = False

    def _move(self, problem, state):
        z = state.point
        propose = lambda t: _backward(problem, z, t, state.slope)
        w, slope, t = self._find(problem, propose, state.value, state)
        return _Moved(w, _backward(problem, z, t, slope), slope, w, t)


class ForwardReflectedBackward(_AbstractMethod):
    """One evaluation and one resolvent a step,

    $$z^+ = J_{tG}(z - t F(z) - t' (F(z) - F(z'))),$$

    with the point $z'$ and the step size $t'$ before: with a constant one it is
    $J_{tG}(z - t (2 F(z) - F(z')))$. It converges for monotone maps with $t < 1/(2L)$. The error is
    the norm of the problem's residual at what is returned.

    **Arguments:**

    - `step_size`: $t > 0$; `None` searches for one with $t \\|F(z^+) - F(z)\\| \\le 0.45
      \\|z^+ - z\\|$, each time from a little more than the last. A solve that searches cannot be
      unrolled in reverse mode.
    - `average`: return the mean of the $z$, weighted with $t$; one more evaluation a step.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless `step_size` is positive.

    **Reference:** Malitsky, Tam, A Forward-Backward Splitting Method for Monotone Inclusions
    Without Cocoercivity, 2020, arXiv:1808.04162.
    """

    step_size: Scalar | None = scalar_field(None)
    average: bool = eqx.field(static=True, default=False)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (AbstractInclusion,)
    factor = 0.45
    grows = True

    def _move(self, problem, state):
        z, slope = state.point, state.slope
        reflected = tree.axpy(z, -state.step_size, _minus(slope, state.past))
        propose = lambda t: _backward(problem, reflected, t, slope)
        z, slope, t = self._find(problem, propose, z, state)
        return _Moved(z, z, slope, z, t)


class AnchoredExtragradient(_AbstractMethod):
    """Extragradient that is drawn back to its start, less and less,

    $$h = J_{tG}(z - t F(z) + a), \\quad z^+ = J_{tG}(z - t F(h) + a), \\quad
      a = (z_0 - z) / (k + 2).$$

    The last iterate's residual falls as $O(1/k)$ for monotone maps, which no such method can
    improve; without the anchor it is $O(1/\\sqrt k)$. The error is the norm of the problem's
    residual at what is returned.

    **Arguments:**

    - `step_size`: $t > 0$; the first proof of the rate asks for $t \\le 1/(8L)$, later ones for
      less. `None` searches for one with $t \\|F(h) - F(z)\\| \\le 0.5 \\|h - z\\|$ that only
      falls. A solve that searches cannot be unrolled in reverse mode.
    - `average`: return the mean of the $h$, weighted with $t$; one more evaluation a step.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless `step_size` is positive.

    **Reference:** Yoon, Ryu, Accelerated Algorithms for Smooth Convex-Concave Minimax Problems with
    O(1/k^2) Rate on Squared Gradient Norm, 2021, arXiv:2102.07922. Cai, Oikonomou, Zheng,
    Accelerated Algorithms for Constrained Nonconvex-Nonconcave Min-Max Optimization and Comonotone
    Inclusion, 2022, arXiv:2206.05248.
    """

    step_size: Scalar | None = scalar_field(None)
    average: bool = eqx.field(static=True, default=False)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (AbstractInclusion,)
    factor = 0.5
    grows = False

    def _move(self, problem, state):
        z = state.point
        pull = 1 / (state.count.astype(state.step_size.dtype) + 2)
        anchored = tree.axpy(z, pull, _minus(state.anchor, z))
        propose = lambda t: _backward(problem, anchored, t, state.slope)
        ahead, slope, t = self._find(problem, propose, z, state)
        z = tree.cast_like(_backward(problem, anchored, t, slope), z)
        return _Moved(z, z, problem.forward(z), ahead, t)


class GradientDescentAscent(_AbstractMethod):
    """All players follow their gradients at once, $z^+ = J_{tG}(z - t F(z))$.

    It converges where $F$ is the gradient of a convex function or strongly monotone, with a step
    that is short enough. On $\\min_x \\max_y\\, s x y$ each step multiplies the distance to the
    solution by $\\sqrt{1 + t^2 s^2}$, whatever the step size: the baseline that shows why the
    others look ahead. The error is the norm of the problem's residual at what is returned.

    **Arguments:**

    - `step_size`: $t > 0$; `None` searches for one with $t \\|F(z^+) - F(z)\\| \\le 0.9
      \\|z^+ - z\\|$ that only falls. A solve that searches cannot be unrolled in reverse mode.
    - `average`: return the mean of the points that the map was evaluated at, weighted with $t$; one
      more evaluation a step.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless `step_size` is positive.

    **Reference:** Arrow, Hurwicz, Uzawa, Studies in Linear and Non-Linear Programming, 1958.
    """

    step_size: Scalar | None = scalar_field(None)
    average: bool = eqx.field(static=True, default=False)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (AbstractInclusion,)
    factor = 0.9
    grows = False

    def _move(self, problem, state):
        z = state.point
        propose = lambda t: _backward(problem, z, t, state.slope)
        new, slope, t = self._find(problem, propose, z, state)
        return _Moved(new, new, slope, z, t)
