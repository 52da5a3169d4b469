"""Consensus-based optimization and consensus hopping: minimization by function values alone."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import (
    AbstractSolver,
    Constrained,
    Scalar,
    Smooth,
    Status,
    checks,
    scalar_field,
    tree,
)
from ..core.confirm import confirmed
from . import _cubic

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


def laplace_mean(
    energies: Float[Array, " n"], points: PyTree[Array], alpha: Scalar
) -> PyTree[Array]:
    """The consensus point, the mean of points with Gibbs weights:

    $$x_\\alpha = \\sum_i w_i x_i \\Big/ \\sum_i w_i, \\qquad w_i = e^{-\\alpha (E_i - \\min E)}.$$

    As $\\alpha$ grows it tends to the best point (Laplace's principle).

    **Arguments:**

    - `energies`: $E_i$, shape `(n,)`. NaN and infinity have weight zero.
    - `points`: $x_i$, a pytree whose leaves have a leading axis of length $n$.
    - `alpha`: the inverse temperature $\\alpha \\ge 0$, finite.

    **Returns:** a pytree like one of the points; NaN if no energy is below infinity.

    **Raises:** `ValueError` if the leading axes do not agree.

    **Reference:** Riedl, Klock, Geldhauser, Fornasier, Gradient is All You Need?, 2023,
    arXiv:2306.09778.
    """
    if jnp.ndim(energies) != 1:
        raise ValueError(f"energies must have shape (n,), got {jnp.shape(energies)}")
    for leaf in jax.tree.leaves(points):
        if jnp.shape(leaf)[:1] != jnp.shape(energies):
            raise ValueError(
                f"points must have a leading axis of length {energies.shape[0]}, "
                f"got shape {jnp.shape(leaf)}"
            )
    known = energies < jnp.inf  # false of NaN
    best = jnp.min(jnp.where(known, energies, jnp.inf))
    # The best has weight one, so that the sum never underflows.
    excess = jnp.where(known, energies - best, 0)
    weights = jnp.where(known, jnp.exp(-jnp.asarray(alpha, energies.dtype) * excess), 0)
    weights = weights / jnp.sum(weights)
    return jax.tree.map(lambda p: jnp.tensordot(weights.astype(p.dtype), p, axes=1), points)


class AbstractNoise(eqx.Module):
    """How the noise of a particle depends on its difference from the consensus point."""

    default: eqx.AbstractClassVar[float]
    """The scale of the noise where none is given."""

    @abc.abstractmethod
    def __call__(self, difference: PyTree[Array], normal: PyTree[Array]) -> PyTree[Array]:
        """$D(z) B$ for every particle: leaves have a leading axis of particles."""


class Isotropic(AbstractNoise):
    """$D(z) = |z| I$, which explores in all directions alike.

    Particles only come together where $d \\sigma^2 < 2 \\lambda$ in $d$ unknowns.
    """

    default: ClassVar[float] = 1.0

    def __call__(self, difference, normal):
        lengths = jax.vmap(tree.norm)(difference)

        def scaled(b):
            return b * lengths.astype(b.dtype).reshape(-1, *(1,) * (b.ndim - 1))

        return jax.tree.map(scaled, normal)


class Anisotropic(AbstractNoise):
    """$D(z) = \\mathrm{diag}(z)$, with the signs of $z$: the number of unknowns does not matter."""

    default: ClassVar[float] = 5.0

    def __call__(self, difference, normal):
        return jax.tree.map(jnp.multiply, difference, normal)


def _objective(problem):
    return problem.fun if isinstance(problem, Smooth) else problem.smooth


def _projected(problem, points):
    return points if isinstance(problem, Smooth) else jax.vmap(problem.feasible.project)(points)


def _value(problem, mean):
    """A mean of points of a set that is not convex may be outside."""
    return mean if isinstance(problem, Smooth) else problem.feasible.project(mean)


def _normal(key, x, size):
    leaves, treedef = jax.tree.flatten(x)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.normal(k, (size, *leaf.shape), leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, drawn)


def _around(x, scale, normal):
    return jax.tree.map(lambda c, b: c + jnp.asarray(scale, b.dtype) * b, x, normal)


def _scheduled(value: Any) -> Any:
    return value if callable(value) else checks.scalar(value)


def _at(value, step, dtype):
    return jnp.asarray(value(step) if callable(value) else value, dtype)


def _check_positive(name, value):
    if not callable(value):
        checks.positive(name, value)


def _length(a, b):
    return tree.norm(jax.tree.map(jnp.subtract, a, b))


class _State(eqx.Module):
    particles: PyTree[Array]
    consensus: PyTree[Array]
    spread: Float[Array, ""]
    steps: Int[Array, ""]
    key: PRNGKeyArray
    error: Float[Array, ""]


# Module level: schedules are compared by identity, and a new one would trace again.
_RAISED = optax.piecewise_constant_schedule(1e4, {1000: 10.0})


class ConsensusBased(AbstractSolver):
    """Consensus-based optimization: particles drift to their consensus point and explore in
    proportion to their distance from it,

    $$X_i \\leftarrow X_i - h \\lambda (X_i - x_\\alpha)
    + \\sigma \\sqrt h\\, D(X_i - x_\\alpha) B_i, \\qquad B_i \\sim N(0, I),$$

    with $x_\\alpha$ the `laplace_mean` of all particles before the step. They start normal around
    $x_0$, and the value is their consensus point; on a `Constrained` problem each is projected.
    Values of $f$ alone move them, so it may have many minima, kinks, and regions where it is NaN.
    Under this drift and noise the consensus point follows a stochastically relaxed gradient flow.

    The error is the largest of the value's last move, the particles' mean distance from it, and,
    only where these pass, the norm of the problem's residual. Two things follow. A function with a
    kink at its minimizer has no small gradient beside it, and its solve rarely ends as converged.
    And function values tell a smooth minimizer no better than the square root of the precision:
    particles that met and cannot move any more end the solve as `Status.breakdown`, at the value
    they agree on. Tolerances on a gradient are met by a gradient method started there.

    **Arguments:**

    - `num_particles`: $N$.
    - `drift`: $\\lambda > 0$.
    - `noise`: $\\sigma \\ge 0$; by default 5 for `Anisotropic()`, 1 for `Isotropic()`.
    - `step_size`: $h > 0$.
    - `inverse_temperature`: $\\alpha > 0$, or a schedule, a function of the number of steps taken;
      by default $10^4$, and $10^5$ from step 1000.
    - `geometry`: $D$, `Anisotropic()` or `Isotropic()`.
    - `init_scale`: the standard deviation of the particles at the start.
    - `batch_size`: how many particles, drawn anew in each step, make the consensus point; `None`
      for all. It is also the number of evaluations of $f$ in a step.
    - `confirm`: whether the residual may be asked, which differentiates $f$; without it no solve
      ends as converged.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` for a batch larger than the number of particles.

    **Reference:** Riedl, Klock, Geldhauser, Fornasier, Gradient is All You Need?, 2023,
    arXiv:2306.09778. Carrillo, Jin, Li, Zhu, A Consensus-Based Global Optimization Method for High
    Dimensional Machine Learning Problems, 2021, arXiv:1909.09249, for anisotropic noise and
    batches.
    """

    num_particles: int = 100
    drift: Scalar = scalar_field(1.0)
    noise: Scalar | None = scalar_field(None)
    step_size: Scalar = scalar_field(0.01)
    inverse_temperature: Scalar | Schedule = eqx.field(converter=_scheduled, default=_RAISED)
    geometry: AbstractNoise = Anisotropic()
    init_scale: Scalar = scalar_field(1.0)
    batch_size: int | None = None
    tol: Scalar = scalar_field(1e-4)
    max_steps: int = 2000
    confirm: bool = eqx.field(static=True, default=True)
    problems = (Smooth, Constrained)

    def __check_init__(self):
        checks.count("num_particles", self.num_particles)
        for name in ("drift", "step_size", "init_scale"):
            checks.positive(name, getattr(self, name))
        if self.noise is not None:
            checks.nonnegative("noise", self.noise)
            checks.finite("noise", self.noise)
        _check_positive("inverse_temperature", self.inverse_temperature)
        checks.instance("geometry", self.geometry, AbstractNoise, "Anisotropic()")
        if self.batch_size is not None:
            checks.count("batch_size", self.batch_size)
            if self.batch_size > self.num_particles:
                raise ValueError(
                    f"batch_size must be at most num_particles, {self.num_particles}, "
                    f"got {self.batch_size}"
                )

    def _consensus(self, problem, particles, steps, key):
        points = particles
        if self.batch_size is not None:
            chosen = jax.random.permutation(key, self.num_particles)[: self.batch_size]
            points = jax.tree.map(lambda p: p[chosen], particles)
        energies = jax.vmap(_objective(problem))(points)
        alpha = _at(self.inverse_temperature, steps, energies.dtype)
        return laplace_mean(energies, points, alpha)

    def init(self, problem, x, key):
        start, pick, key = jax.random.split(key, 3)
        particles = _around(x, self.init_scale, _normal(start, x, self.num_particles))
        particles = _projected(problem, particles)
        steps = jnp.asarray(0, jnp.int32)
        consensus = self._consensus(problem, particles, steps, pick)
        infinity = jnp.asarray(jnp.inf, tree.real_dtype(x))
        return _State(particles, consensus, infinity, steps, key, infinity)

    def refresh(self, problem, x, state):
        pick = jax.random.fold_in(state.key, 0)
        consensus = self._consensus(problem, state.particles, state.steps, pick)
        infinity = jnp.full_like(state.error, jnp.inf)
        return _State(state.particles, consensus, infinity, state.steps, state.key, infinity)

    def step(self, problem, x, state):
        draw, pick, key = jax.random.split(state.key, 3)
        sigma = self.geometry.default if self.noise is None else self.noise
        sigma = sigma * jnp.sqrt(self.step_size)
        pull = self.step_size * self.drift
        difference = jax.tree.map(lambda p, c: p - c, state.particles, state.consensus)
        kicks = self.geometry(difference, _normal(draw, x, self.num_particles))

        def moved(p, z, kick):
            return p - jnp.asarray(pull, p.dtype) * z + jnp.asarray(sigma, p.dtype) * kick

        particles = jax.tree.map(moved, state.particles, difference, kicks)
        particles = _projected(problem, particles)
        steps = state.steps + 1
        consensus = self._consensus(problem, particles, steps, pick)
        new = tree.cast_like(_value(problem, consensus), x)
        away = jax.tree.map(lambda p, c: p - c, particles, consensus)
        spread = jnp.mean(jax.vmap(tree.norm)(away)).astype(state.error.dtype)
        estimate = jnp.maximum(_length(new, x), spread).astype(state.error.dtype)
        error = confirmed(problem, new, estimate, state.error, self.tol, self.confirm)
        return new, _State(particles, consensus, spread, steps, key, error)

    def error(self, problem, x, state):
        return state.error

    def status(self, problem, x, state):
        """Without a spread beyond rounding there is neither drift nor noise."""
        met = state.spread <= 4 * jnp.finfo(state.spread.dtype).eps * tree.norm(x)
        return Status.where(met, Status.breakdown, Status.running)


class _HoppingState(eqx.Module):
    steps: Int[Array, ""]
    key: PRNGKeyArray
    error: Float[Array, ""]
    failed: Bool[Array, ""]


class ConsensusHopping(AbstractSolver):
    """Consensus hopping: the value becomes the consensus point of fresh samples around it,

    $$x_k = x_\\alpha(y_1, \\dots, y_N), \\qquad y_i \\sim N(x_{k-1}, s^2 I),$$

    the limit of consensus-based optimization with $h = 1 / \\lambda$. By Laplace's principle it
    tends, as $\\alpha$ grows with $\\tau = \\alpha s^2$ fixed, to the proximal point
    $\\arg\\min_x f(x) + |x - x_{k-1}|^2 / (2\\tau)$, the minimizing movement; to first order it is
    a gradient step of length $\\tau$. On a `Constrained` problem samples are projected.

    With `num_samples=None` the mean is that of infinitely many samples, by the second-order model
    of $f$, which is exact for a quadratic:
    $x_k = x_{k-1} - \\tau (I + \\tau \\nabla^2 f)^{-1} \\nabla f$.
    The Hessian is dense. Where $I + \\tau \\nabla^2 f$ is not positive definite there is no mean,
    and the status is `Status.breakdown`.

    The error is the norm of the problem's residual; of samples, the larger of it and the last move,
    measured only where the move passes. Samples leave noise of the order
    $s / \\sqrt{N}$ in the value, so a small tolerance needs a `width` that falls.

    **Arguments:**

    - `num_samples`: $N$, or `None`.
    - `width`: $s > 0$, or a schedule, a function of the number of steps taken.
    - `inverse_temperature`: $\\alpha > 0$, or a schedule. At a small $s$ a large $\\alpha$
      needs many more samples, since few of them then have weight.
    - `confirm`: as in `ConsensusBased`, of samples.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `TypeError` for a `Constrained` problem with `num_samples=None`.

    **Reference:** Riedl, Klock, Geldhauser, Fornasier, Gradient is All You Need?, 2023,
    arXiv:2306.09778.
    """

    num_samples: int | None = 200
    width: Scalar | Schedule = eqx.field(converter=_scheduled, default=0.1)
    inverse_temperature: Scalar | Schedule = eqx.field(converter=_scheduled, default=10.0)
    tol: Scalar = scalar_field(1e-4)
    max_steps: int = 2000
    confirm: bool = eqx.field(static=True, default=True)
    problems = (Smooth, Constrained)

    def __check_init__(self):
        if self.num_samples is not None:
            checks.count("num_samples", self.num_samples)
        _check_positive("width", self.width)
        _check_positive("inverse_temperature", self.inverse_temperature)

    def init(self, problem, x, key):
        if self.num_samples is None and not isinstance(problem, Smooth):
            raise TypeError("num_samples=None needs a Smooth problem, got a Constrained one")
        infinity = jnp.asarray(jnp.inf, tree.real_dtype(x))
        return _HoppingState(jnp.asarray(0, jnp.int32), key, infinity, jnp.asarray(False))

    def step(self, problem, x, state):
        dtype = state.error.dtype
        width = _at(self.width, state.steps, dtype)
        alpha = _at(self.inverse_temperature, state.steps, dtype)
        draw, key = jax.random.split(state.key)
        if self.num_samples is None:
            new, failed = self._exact(problem, x, alpha * width**2)
            error = tree.norm(problem.residual(new)).astype(dtype)
        else:
            points = _around(x, width, _normal(draw, x, self.num_samples))
            points = _projected(problem, points)
            mean = laplace_mean(jax.vmap(_objective(problem))(points), points, alpha)
            new = tree.cast_like(_value(problem, mean), x)
            moved = _length(new, x).astype(dtype)
            error = confirmed(problem, new, moved, state.error, self.tol, self.confirm)
            failed = state.failed
        return new, _HoppingState(state.steps + 1, key, error, failed)

    def _exact(self, problem, x, tau):
        flat = _cubic.flatten(problem.fun, x)
        tau = tau.astype(flat.x.dtype)
        gradient = tree.gradient(flat.fun, flat.x)
        curved = jnp.eye(flat.x.size, dtype=flat.x.dtype) + tau * _cubic.hessian(flat.fun, flat.x)
        factor = jnp.linalg.cholesky(curved)  # NaN where it is not positive definite
        failed = ~jnp.all(jnp.isfinite(factor))
        factor = jnp.where(failed, jnp.eye(flat.x.size, dtype=factor.dtype), factor)
        move = jax.scipy.linalg.cho_solve((factor, True), tau * gradient)
        new = jnp.where(failed, flat.x, flat.x - move)
        return tree.cast_like(flat.unravel(new), x), failed

    def error(self, problem, x, state):
        return state.error

    def status(self, problem, x, state):
        return Status.where(state.failed, Status.breakdown, Status.running)
