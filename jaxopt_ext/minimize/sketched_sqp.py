"""Newton's method under equality constraints, its systems solved by random sketches."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..core import (
    AbstractSolver,
    EqualityConstrained,
    NonlinearProgram,
    Scalar,
    Status,
    checks,
    loops,
    scalar_field,
    tree,
)
from ..core.operators import LinearMap, Map
from ..linalg.sketching import AbstractSketch, GaussianSketch, sketch_and_project


class DirectSolve(eqx.Module):
    """The exact solution, by factorizing the matrix, in place of a sketch."""


class Model(NamedTuple):
    """The system of a Newton step and the constants of its error bound.

    **Attributes:**

    - `A`: $\\begin{pmatrix} B & J^\\top \\\\ J & 0 \\end{pmatrix}$, a matrix or a `Map`.
    - `size`: $|A|_F$, or a bound.
    - `psi`, `upsilon`: the constants $\\Psi$ and $\\Upsilon$.
    - `constraint`: $\\xi_G$, the least eigenvalue of $J J^\\top$.
    """

    A: LinearMap
    size: Float[Array, ""]
    psi: Float[Array, ""]
    upsilon: Float[Array, ""]
    constraint: Float[Array, ""]


class AbstractRegularity(eqx.Module):
    """How the Hessian of the Lagrangian is made positive definite where constraints hold, and what
    is known of the system."""

    @abc.abstractmethod
    def __call__(self, kkt: Map, r: Float[Array, " N"], n: int) -> Model:
        """The system.

        **Arguments:**

        - `kkt`: the symmetric map of Newton's method, with the Hessian as it is.
        - `r`: a point of its space.
        - `n`: how many of the unknowns are primal.
        """


def _constants(B, J, H, constraint, shift):
    psi = 20 * jnp.maximum(B**2, 1) / (jnp.minimum(constraint, 1) * jnp.minimum(shift, 1))
    return psi, jnp.maximum(jnp.maximum(J, H), 1)


class DenseRegularity(AbstractRegularity):
    """Forms the matrix. $B$ is the Hessian where its least eigenvalue on the null space of the
    Jacobian is at least `floor`, elsewhere the Hessian plus (`shift` plus its norm) times the
    identity.

    **Arguments:**

    - `floor`: what counts as positive definite.
    - `shift`: $\\xi_B$.
    """

    floor: Scalar = scalar_field(1e-6)
    shift: Scalar = scalar_field(0.1)

    def __check_init__(self):
        checks.positive("floor", self.floor)
        checks.positive("shift", self.shift)

    def __call__(self, kkt, r, n):
        eye = loops.vary(jnp.eye(r.size, dtype=r.dtype), loops.varying_axes(r))
        A = jax.vmap(kkt)(eye)
        A = 0.5 * (A + A.T)
        H, J = A[:n, :n], A[n:, :n]
        m = r.size - n
        shift = self.shift.astype(r.dtype)
        constraint = jnp.asarray(jnp.inf, r.dtype)
        if m:
            constraint = jnp.linalg.eigvalsh(J @ J.T)[0] if m <= n else jnp.zeros((), r.dtype)
        regular = jnp.asarray(True)
        if m < n:
            null = jnp.linalg.qr(J.T, mode="complete")[0][:, m:]
            regular = jnp.linalg.eigvalsh(null.T @ H @ null)[0] >= self.floor
        norm = jnp.linalg.norm(H)
        own = jnp.where(regular, 0, shift + norm)
        A = A + jnp.diag(jnp.where(jnp.arange(r.size) < n, own, 0))
        B = jnp.linalg.norm(A[:n, :n])
        psi, upsilon = _constants(B, jnp.linalg.norm(J), norm, constraint, shift)
        return Model(A, jnp.linalg.norm(A), psi, upsilon, constraint)


class GivenRegularity(AbstractRegularity):
    """Constants that are known, and products only: no matrix is formed.

    **Arguments:**

    - `norm`: a bound on the norms of Hessian and Jacobian.
    - `constraint`: $\\xi_G > 0$, a lower bound on the eigenvalues of $J J^\\top$.
    - `shift`: is added to the diagonal of the Hessian.
    - `curvature`: $\\xi_B > 0$.
    """

    norm: Scalar
    constraint: Scalar = scalar_field(1.0)
    shift: Scalar = scalar_field(0.0)
    curvature: Scalar = scalar_field(0.1)

    def __init__(self, norm, constraint=1.0, shift=0.0, curvature=0.1):
        self.norm, self.constraint = checks.scalar(norm), checks.scalar(constraint)
        self.shift, self.curvature = checks.scalar(shift), checks.scalar(curvature)

    def __check_init__(self):
        checks.positive("norm", self.norm)
        checks.positive("constraint", self.constraint)
        checks.nonnegative("shift", self.shift)
        checks.positive("curvature", self.curvature)

    def __call__(self, kkt, r, n):
        own = jnp.where(jnp.arange(r.size) < n, self.shift, 0).astype(r.dtype)
        shifted = lambda v: kkt(v) + own * v
        norm, constraint = self.norm.astype(r.dtype), self.constraint.astype(r.dtype)
        psi, upsilon = _constants(norm, norm, norm, constraint, self.curvature.astype(r.dtype))
        return Model(Map(shifted, shifted), 2 * norm, psi, upsilon, constraint)


class LanczosRegularity(AbstractRegularity):
    """Products only: what the test and the bounds need from the ends of three spectra.

    By Lanczos's method from a random start, `num_steps` steps with full orthogonalization: $|H|$;
    the ends of $J J^\\top$, so $\\xi_G$ and $|J|$; and the least eigenvalue of $Z^\\top H Z$, that
    of $PHP$ on the null space of $J$, where $P$ projects by conjugate gradients, `num_steps` of
    them, on $J J^\\top$. A Ritz value is moved outwards by the norm of its residual, but the least
    one of $J J^\\top$ to half of itself at most. All are exact where `num_steps` is at least the
    number of unknowns and of constraints; with fewer steps an end is missed where the start has
    next to nothing of its eigenvector, and $\\xi_G$ may be too large where $J J^\\top$ is ill
    conditioned. Norms are spectral, which are at most those of Frobenius.

    **Arguments:**

    - `num_steps`: $k$, of $2k$ products with the Hessian and some $4k^2$ with the
      Jacobian in all.
    - `floor`, `shift`: as of `DenseRegularity`.
    - `seed`: of the start.

    **Reference:** Golub, Van Loan, Matrix Computations, 2013, chapter 10.
    """

    num_steps: int = eqx.field(static=True, default=20)
    floor: Scalar = scalar_field(1e-6)
    shift: Scalar = scalar_field(0.1)
    seed: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        checks.count("num_steps", self.num_steps)
        checks.positive("floor", self.floor)
        checks.positive("shift", self.shift)

    def __call__(self, kkt, r, n):
        m, dtype = r.size - n, r.dtype
        hessian = lambda v: kkt(jnp.pad(v, (0, m)))[:n]
        jacobian = lambda v: kkt(jnp.pad(v, (0, m)))[n:]
        adjoint = lambda w: kkt(jnp.pad(w, (n, 0)))[:n]
        gram = lambda w: jacobian(adjoint(w))
        project = lambda v: v - adjoint(_conjugate(gram, jacobian(v), self.num_steps))
        draw = jax.random.normal(jax.random.key(self.seed), r.shape, dtype)
        draw = loops.vary(draw, loops.varying_axes(r))
        runs = [_lanczos(hessian, draw[:n], self.num_steps)]
        if m:
            runs.append(_lanczos(gram, draw[n:], self.num_steps))
        if 0 < m < n:
            reduced = lambda v: project(hessian(v))
            runs.append(_lanczos(reduced, project(draw[:n]), self.num_steps, project))
        # One factorization of all three.
        ritz, vectors = jnp.linalg.eigh(jnp.stack([T for T, _ in runs]))
        rest = jnp.stack([rest for _, rest in runs])[:, None] * jnp.abs(vectors[:, -1])
        low, high = ritz[:, 0] - rest[:, 0], ritz[:, -1] + rest[:, -1]
        norm = jnp.maximum(jnp.abs(low[0]), jnp.abs(high[0]))
        constraint, J = jnp.asarray(jnp.inf, dtype), jnp.zeros((), dtype)
        if m:
            constraint = jnp.maximum(low[1], 0.5 * jnp.maximum(ritz[1, 0], 0))
            constraint = jnp.where(m <= n, constraint, 0)
            J = jnp.sqrt(high[1])
        regular = jnp.asarray(True)
        if m < n:
            regular = low[2 if m else 0] >= self.floor
        shift = self.shift.astype(dtype)
        more = jnp.where(regular, 0, shift + norm)
        own = jnp.where(jnp.arange(r.size) < n, more, 0)
        shifted = lambda v: kkt(v) + own * v
        psi, upsilon = _constants(norm + more, J, norm, constraint, shift)
        return Model(Map(shifted, shifted), norm + more + J, psi, upsilon, constraint)


def _lanczos(product, start, num_steps, project=lambda v: v):
    """The tridiagonal matrix of so many steps, and the length of what is left.

    What leaves the subspace of `project` would grow from step to step."""
    eps, tiny = float(jnp.finfo(start.dtype).eps), float(jnp.finfo(start.dtype).tiny)
    scaled = lambda v, length: v / jnp.where(length > 0, length, 1)

    def step(j, carry):
        basis, T, v, _ = carry
        basis = basis.at[j].set(v)
        image = product(v)
        size = jnp.linalg.norm(image)
        along = basis @ image
        # Twice is enough.
        w = image - basis.T @ along
        w = project(w - basis.T @ (basis @ w))
        length = jnp.linalg.norm(w)
        # What rounding leaves, of a projection too, is no direction.
        noise = eps**0.7 * jnp.maximum(size, tiny)
        length = jnp.where(length > noise, length, 0)
        # Where the space has ended, the first value stands in for those that are not there.
        T = T.at[j, j].set(jnp.where(jnp.any(v != 0), along[j], T[0, 0]))
        T = T.at[j, (j + 1) % num_steps].set(jnp.where(j + 1 < num_steps, length, T[j, 0]))
        return basis, T, scaled(w, length) * (length > 0), length

    first = scaled(start, jnp.linalg.norm(start))
    empty = jnp.zeros_like(first, shape=(num_steps, start.size))
    square = jnp.zeros_like(first, shape=(num_steps, num_steps))
    carry = (empty, square, first, jnp.linalg.norm(first))
    _, T, _, rest = loops.fori_loop(0, num_steps, step, carry)
    above = jnp.triu(T, 1)
    return jnp.diag(jnp.diagonal(T)) + above + above.T, rest


def _conjugate(product, b, num_steps):
    """Conjugate gradients that stand still once there is nothing left."""
    divide = lambda a, b: jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
    least = (4 * jnp.finfo(b.dtype).eps) ** 2 * jnp.vdot(b, b)

    def step(_, carry):
        x, r, p, square = carry
        image = product(p)
        length = jnp.where(square > least, divide(square, jnp.vdot(p, image)), 0)
        x, r = x + length * p, r - length * image
        after = jnp.where(square > least, jnp.vdot(r, r), square)
        return x, r, r + divide(after, square) * p, after

    return loops.fori_loop(0, num_steps, step, (jnp.zeros_like(b), b, b, jnp.vdot(b, b)))[0]


class _State(eqx.Module):
    key: PRNGKeyArray
    feasibility: Float[Array, ""]
    stationarity: Float[Array, ""]
    accuracy: Float[Array, ""]
    error: Float[Array, ""]
    step_size: Float[Array, ""]
    sketches: Int[Array, ""]
    verdict: Status


class _Inner(NamedTuple):
    z: Float[Array, " N"]
    key: PRNGKeyArray
    feasibility: Float[Array, ""]
    stationarity: Float[Array, ""]
    accuracy: Float[Array, ""]
    sketches: Int[Array, ""]
    done: Bool[Array, ""]


class SketchedSQP(AbstractSolver):
    """Newton steps on the conditions of Karush, Kuhn and Tucker, inexact ones by random sketches,
    on a merit function that is exact.

    With $L = f + \\lambda^\\top c$, $J = c'$ and $H = \\nabla_x^2 L$, a step solves

    $$\\begin{pmatrix} B & J^\\top \\\\ J & 0 \\end{pmatrix} z =
      -\\begin{pmatrix} \\nabla_x L \\\\ c \\end{pmatrix}, \\qquad
      |A|_F \\Psi |Az - b| \\le \\theta \\delta |b|,$$

    for primal point and multipliers together, by `sketch_and_project`, and goes as far along $z$ as
    Armijo's rule allows for the augmented Lagrangian

    $$L_\\eta = L + \\tfrac{\\eta_1}{2} |c|^2 + \\tfrac{\\eta_2}{2} |\\nabla_x L|^2.$$

    Where $z$ is no descent direction of it, $\\nabla L_\\eta^\\top z > -\\frac{\\eta_2}{2} |b|^2$,
    $\\eta_1$ is raised, $\\eta_2$ and $\\delta$ are lowered, and the sketches go on from $z$. So
    near a solution steps are those of Newton's method, up to their accuracy, and it converges from
    far away where $J$ keeps full row rank. It finds stationary points, of which minimizers are
    some.

    The error is the norm of $(\\nabla_x L, c)$ at the value. `Status.breakdown` where $\\xi_G$ is
    below `singular`, or no step makes progress.

    **Arguments:**

    - `sketch`: `GaussianSketch()`, `KaczmarzSketch()`, or `DirectSolve()`.
    - `sharpen`: $\\theta = \\min(1, |b|)$ instead of 1, for a superlinear rate.
    - `regularity`: `DenseRegularity()` forms the matrix, `LanczosRegularity()` and
      `GivenRegularity(norm)` do not.
    - `feasibility`, `stationarity`: $\\eta_1$ and $\\eta_2$ at the start.
    - `accuracy`: $\\delta$ at the start, and `least_accuracy` that it does not fall below, in
      single precision at least `1e-4`.
    - `factor`: $\\nu > 1$. `armijo`: $\\beta \\in (0, 1/2)$.
    - `singular`: the least $\\xi_G$.
    - `max_sketches`: for one step.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` for a `NonlinearProgram` with inequalities or bounds; `TypeError` for
    complex numbers.

    **Reference:** Hong, Na, Mahoney, Kolar, Constrained Optimization via Exact Augmented Lagrangian
    and Randomized Iterative Sketching, ICML 2023, arXiv:2305.18379.
    """

    sketch: AbstractSketch | DirectSolve = GaussianSketch()
    sharpen: bool = eqx.field(static=True, default=False)
    regularity: AbstractRegularity = eqx.field(  # made when asked for: an import makes no arrays
        default_factory=lambda: DenseRegularity()
    )
    feasibility: Scalar = scalar_field(1.0)
    stationarity: Scalar = scalar_field(0.1)
    accuracy: Scalar = scalar_field(0.1)
    least_accuracy: Scalar = scalar_field(1e-6)
    factor: Scalar = scalar_field(1.5)
    armijo: Scalar = scalar_field(0.1)
    singular: Scalar = scalar_field(1e-2)
    max_sketches: int = 100_000
    tol: Scalar = scalar_field(1e-4)
    max_steps: int = 10_000
    problems = (EqualityConstrained, NonlinearProgram)

    def __check_init__(self):
        if not isinstance(self.sketch, AbstractSketch | DirectSolve):
            raise TypeError(f"sketch must be an object such as GaussianSketch(): {self.sketch!r}")
        checks.instance("regularity", self.regularity, AbstractRegularity, "DenseRegularity()")
        for name in ("feasibility", "stationarity", "accuracy", "least_accuracy", "singular"):
            checks.positive(name, getattr(self, name))
        checks.interval("factor", self.factor, 1, float("inf"), open_low=True, open_high=True)
        checks.interval("armijo", self.armijo, 0, 0.5, open_low=True, open_high=True)
        checks.count("max_sketches", self.max_sketches)
        if isinstance(self.sketch, DirectSolve) and not isinstance(
            self.regularity, DenseRegularity
        ):
            raise TypeError("DirectSolve() factorizes a matrix, DenseRegularity() alone forms it")

    def init(self, problem, x, key):
        if isinstance(problem, NonlinearProgram):
            if problem.inequalities is not None or problem.bounds is not None:
                raise ValueError("SketchedSQP takes equalities only, not inequalities or bounds")
            if problem.equalities is None:
                raise ValueError("SketchedSQP takes programs with equalities")
        if any(map(jnp.iscomplexobj, jax.tree.leaves(x))):
            raise TypeError("SketchedSQP is over real numbers, got complex ones")
        dtype = tree.real_dtype(x)
        number = lambda a: jnp.asarray(a, dtype)
        return _State(
            key,
            number(self.feasibility),
            number(self.stationarity),
            number(self.accuracy),
            number(jnp.inf),
            number(0),
            jnp.asarray(0, jnp.int32),
            Status.running,
        )

    def step(self, problem, x, state):
        point, unravel = ravel_pytree(x)
        n = tree.size(x.primal)
        residual = lambda p: ravel_pytree(problem.residual(unravel(p)))[0].astype(p.dtype)
        r, product = jax.linearize(residual, point)
        kkt = Map(product, product)
        model = self.regularity(kkt, r, n)
        size = jnp.linalg.norm(r)

        def slope(feasibility, stationarity):
            weighted = jnp.where(jnp.arange(r.size) < n, stationarity, feasibility) * r
            return r + product(weighted)

        found = self._direction(model, r, n, state, slope)
        z = found.z

        def merit(p, r):
            value = problem.lagrangian(*unravel(p)).astype(p.dtype)
            return (
                value
                + 0.5 * found.feasibility * jnp.sum(r[n:] ** 2)
                + 0.5 * found.stationarity * jnp.sum(r[:n] ** 2)
            )

        here, fall = merit(point, r), jnp.vdot(slope(found.feasibility, found.stationarity), z)
        armijo = self.armijo.astype(r.dtype)
        # What the values of the merit function cannot tell apart.
        rounding = 10 * jnp.finfo(r.dtype).eps * jnp.abs(here)

        def halve(carry):
            length, tries, _, _ = carry
            length = 0.5 * length
            p = point + length * z
            ahead = residual(p)
            fits = merit(p, ahead) <= here + length * armijo * fall + rounding
            return length, tries + 1, ahead, fits

        twice = jnp.asarray(2, r.dtype)
        length, _, ahead, fits = loops.while_loop(
            lambda carry: ~carry[3] & (carry[1] <= 40) & jnp.isfinite(size),
            halve,
            (twice, jnp.asarray(0, jnp.int32), r, jnp.asarray(False)),
        )
        # Not a number must stay visible.
        length = jnp.where(fits | ~jnp.isfinite(here), length, 0)
        stuck = (model.constraint < self.singular) | (length == 0)
        verdict = Status.where(stuck, Status.breakdown, Status.running)
        return unravel(point + length * z), _State(
            found.key,
            found.feasibility,
            found.stationarity,
            found.accuracy,
            jnp.where(length == 0, size, tree.norm(ahead)),
            length,
            state.sketches + found.sketches,
            verdict,
        )

    def error(self, problem, x, state):
        return state.error

    def status(self, problem, x, state):
        return state.verdict

    def _direction(self, model, r, n, state, slope) -> _Inner:
        """An inexact Newton step that descends on the merit function, and its new constants."""
        dtype, b = r.dtype, -r
        eps = float(jnp.finfo(dtype).eps)
        size = jnp.linalg.norm(b)
        theta = jnp.minimum(1, size) if self.sharpen else jnp.ones((), dtype)
        least = self.least_accuracy.astype(dtype)
        least = jnp.maximum(least, 1e-4) if dtype == jnp.float32 else least
        nu = self.factor.astype(dtype)

        def allowed(accuracy, feasibility, stationarity):
            total = 1 + feasibility + stationarity
            bound = (0.5 - self.armijo.astype(dtype)) * stationarity / total
            bound = bound / model.upsilon / model.upsilon / model.psi / model.psi
            return jnp.maximum(least, jnp.minimum(accuracy, bound))

        def solved(inner: _Inner):
            """The system solved a little better, and how many sketches that took."""
            if isinstance(self.sketch, DirectSolve):
                return jnp.linalg.solve(model.A, b), inner.key, jnp.asarray(1, jnp.int32)
            target = theta * inner.accuracy * size / model.size / model.psi
            # Rounding alone leaves this much.
            target = jnp.maximum(target, 4 * eps * (size + model.size * jnp.linalg.norm(inner.z)))
            key, own = jax.random.split(inner.key)
            left = self.max_sketches - inner.sketches
            out = sketch_and_project(self.sketch, model.A, b, inner.z, target, left, own)
            return out.x, key, out.sketches

        def body(inner: _Inner):
            z, key, used = solved(inner)
            used = inner.sketches + used
            eta1, eta2 = inner.feasibility, inner.stationarity
            descends = jnp.vdot(slope(eta1, eta2), z) <= -0.5 * eta2 * size**2
            end = (eta1 > 1e8) | (eta2 < 1e-8) | (used >= self.max_sketches)
            done = descends | end | ~jnp.isfinite(size)
            raised, lowered = eta1 * nu**2, eta2 / nu
            accuracy = allowed(inner.accuracy / nu**4, raised, lowered)
            keep = lambda old, new: jnp.where(done, old, new)
            return _Inner(
                z,
                key,
                keep(eta1, raised),
                keep(eta2, lowered),
                keep(inner.accuracy, accuracy),
                used,
                done,
            )

        start = _Inner(
            jnp.zeros_like(r),
            state.key,
            state.feasibility,
            state.stationarity,
            allowed(state.accuracy, state.feasibility, state.stationarity),
            jnp.asarray(0, jnp.int32),
            jnp.asarray(False),
        )
        return loops.while_loop(lambda inner: ~inner.done, body, start)


def ExactSQP(
    tol: Any = 1e-4, max_steps: int = 10_000, regularity: AbstractRegularity | None = None
) -> SketchedSQP:
    """`SketchedSQP` with `DirectSolve()`: Newton's method on the conditions of Karush, Kuhn and
    Tucker, with the line search on the exact augmented Lagrangian.

    **Arguments:**

    - `tol`, `max_steps`, `regularity`: as of `SketchedSQP`.

    **Reference:** Hong, Na, Mahoney, Kolar, Constrained Optimization via Exact Augmented Lagrangian
    and Randomized Iterative Sketching, ICML 2023, arXiv:2305.18379.
    """
    regularity = DenseRegularity() if regularity is None else regularity
    return SketchedSQP(DirectSolve(), regularity=regularity, tol=tol, max_steps=max_steps)
