"""Two-layer ReLU networks by convex programs."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..core import (
    AbstractSolver,
    Composite,
    Saddle,
    Scalar,
    Splitting,
    Status,
    checks,
    loops,
    scalar_field,
    solve,
    tree,
)
from ..core.operators import Map
from ..estimators.linear_model import _checked
from ..minimize import FISTA
from ..prox import L1, AbstractFunction, AbstractSet, GroupLasso, NonNegative, Separable
from ..splitting import ADMM, AbstractUpdate, PrimalDualHybridGradient
from .activations import ReLU
from .block_coordinate import FeedforwardNetwork
from .losses import AbstractOutputLoss, SquaredError


class Patterns(eqx.Module):
    """Which rows each of a number of neurons is active on.

    **Attributes:**

    - `active`: $D_i$ as rows, shape $(P, n)$.
    - `present`: which patterns count; the others are repetitions, kept for their shape.
    """

    active: Bool[Array, "P n"]
    present: Bool[Array, " P"]


def _normal(key, shape, dtype):
    """The same numbers in both precisions."""
    return jax.random.normal(key, shape, jnp.float32).astype(dtype)


def sample_patterns(
    X: Float[Array, "n d"], num: int, key: PRNGKeyArray, radius: Any = 0.0
) -> Patterns:
    """Patterns $1[X g \\ge 0]$ of directions $g \\sim N(0, I)$, each with that of $-g$.

    **Arguments:**

    - `X`: rows of data. `num`: $P$, repetitions included.
    - `key`: of the directions.
    - `radius`: half of the directions see data of which each entry is moved by so much, up or
      down; one number, or one for each column.

    **Raises:** `ValueError` if `num` is below 1.

    **Reference:** Bai, Gautam, Sojoudi, Efficient Global Optimization of Two-layer ReLU Networks:
    Quadratic-time Algorithms and Adversarial Training, 2023, arXiv:2201.01965.
    """
    checks.count("num", num)
    direction_key, sign_key = jax.random.split(key)
    g = _normal(direction_key, (-(-num // 2), X.shape[1]), X.dtype)
    size = jnp.asarray(radius, X.dtype)

    def image(g, moved, key):
        sign = jnp.where(moved, jax.random.rademacher(key, X.shape, jnp.int8), 0)
        return (X + size * sign) @ g

    moved = jnp.arange(len(g)) % 2 == 1
    z = jax.vmap(image)(g, moved, jax.random.split(sign_key, len(g)))
    active = jnp.concatenate([z >= 0, -z >= 0])[:num]
    signs = jnp.where(active, 1, -1).astype(X.dtype)
    same = signs @ signs.T > X.shape[0] - 0.5
    return Patterns(active, jnp.argmax(same, axis=1) == jnp.arange(num))


def all_patterns(X: Float[Array, "n d"]) -> Patterns:
    """All patterns of full-dimensional cells, $O(n^{r - 1})$ of them for data of rank $r \\le 3$.

    At every ray in which hyperplanes meet, those of the hyperplanes through it are combined with
    the signs of the others. Runs on the host.

    **Arguments:**

    - `X`: rows of data.

    **Raises:** `ValueError` for a rank above 3; `TypeError` inside of a transformation.
    """
    if checks.is_traced(X):
        raise TypeError("all_patterns runs on the host, not inside of a transformation")
    rows = np.asarray(X, np.float64)
    if rows.ndim != 2:
        raise ValueError(f"X must be a matrix, got shape {rows.shape}")
    rank = np.linalg.matrix_rank(rows)
    if rank > 3:
        raise ValueError(f"X must have rank at most 3, got {rank}")
    active = jnp.asarray(np.array(sorted(_cells(rows))))
    return Patterns(active, jnp.ones(len(active), bool))


def _cells(rows):
    """Patterns of an arrangement of hyperplanes through zero, as tuples."""
    lengths = np.linalg.norm(rows, axis=1)
    scale = lengths.max(initial=0)
    zero = lengths <= 1e-12 * scale
    if zero.all():
        return {(True,) * len(rows)}
    _, values, basis = np.linalg.svd(rows, full_matrices=False)
    rank = int(np.sum(values > 1e-8 * values[0]))
    units = (rows @ basis[:rank].T) / np.where(zero, 1, lengths)[:, None]
    if rank == 1:
        return {tuple((zero | (side * units[:, 0] > 0)).tolist()) for side in (-1, 1)}
    found = set()
    for chosen in itertools.combinations(np.flatnonzero(~zero), rank - 1):
        _, values, basis = np.linalg.svd(units[list(chosen)])
        if values[-1] <= 1e-8:
            continue
        image = units @ basis[-1]
        flat = np.abs(image) <= 1e-10
        flat[list(chosen)] = True
        for side in (image, -image):
            for cell in _cells(units[flat]):
                pattern = side > 0
                pattern[flat] = cell
                found.add(tuple(pattern.tolist()))
    return found


def scenario_size(n: int, psi: float, xi: float) -> int:
    """How many patterns are enough: with probability $1 - \\psi$ one more improves the optimum with
    probability at most $\\xi$ if

    $$P \\ge \\min\\Bigl\\{\\frac{n + 1}{\\psi \\xi} - 1,\\;
      \\frac2\\xi (n + 1 - \\log \\psi)\\Bigr\\}.$$

    **Arguments:**

    - `n`: number of rows. `psi`, `xi`: $\\psi, \\xi \\in (0, 1)$.

    **Raises:** `ValueError` outside of these.

    **Reference:** Bai, Gautam, Sojoudi, Efficient Global Optimization of Two-layer ReLU Networks:
    Quadratic-time Algorithms and Adversarial Training, 2023, arXiv:2201.01965.
    """
    checks.count("n", n)
    for name, value in (("psi", psi), ("xi", xi)):
        checks.interval(name, value, 0, 1, open_low=True, open_high=True)
    return math.ceil(min((n + 1) / (psi * xi) - 1, 2 / xi * (n + 1 - math.log(psi))))


class _Program(eqx.Module):
    """The linear maps of the convex program, on $u = (v_1, \\dots, v_P, w_1, \\dots, w_P)$, shape
    $(2P, d)$."""

    X: Float[Array, "n d"]
    active: Float[Array, "P n"]

    def _difference(self, u):
        v, w = jnp.split(u, 2)
        return v - w

    def predict(self, u):
        """$Fu = \\sum_i D_i X (v_i - w_i)$."""
        return jnp.sum(self.active * (self._difference(u) @ self.X.T), axis=0)

    def predict_adjoint(self, r):
        half = (self.active * r) @ self.X
        return jnp.concatenate([half, -half])

    @property
    def signs(self):
        """$2 D_i - I$ for each row of $u$."""
        return jnp.tile(2 * self.active - 1, (2, 1))

    def cones(self, u):
        """$Gu$, the rows $(2 D_i - I) X u_i$."""
        return self.signs * (u @ self.X.T)

    def cones_adjoint(self, s):
        return (self.signs * s) @ self.X

    def slopes(self, u):
        """What the network is on each row, $\\sum_i d_{ik} (v_i - w_i)$, shape $(n, d)$."""
        return self.active.T @ self._difference(u)

    def slopes_adjoint(self, c):
        half = self.active @ c
        return jnp.concatenate([half, -half])


class _Split(eqx.Module):
    """$u \\mapsto (u, Gu)$, with what the loss sees in the constraint too if it has a prox only."""

    program: _Program

    def __call__(self, u):
        return u, self.program.cones(u)

    def adjoint(self, parts):
        u, s = parts
        return u + self.program.cones_adjoint(s)


class _SplitLoss(eqx.Module):
    """$u \\mapsto (u, Gu, Fu)$."""

    program: _Program

    def __call__(self, u):
        return u, self.program.cones(u), self.program.predict(u)

    def adjoint(self, parts):
        u, s, z = parts
        return u + self.program.cones_adjoint(s) + self.program.predict_adjoint(z)


class _SplitRobust(eqx.Module):
    """$u \\mapsto (u, (u, Gu), \\text{slopes})$."""

    program: _Program

    def __call__(self, u):
        return u, (u, self.program.cones(u)), self.program.slopes(u)

    def adjoint(self, parts):
        u, (a, s), c = parts
        return u + a + self.program.cones_adjoint(s) + self.program.slopes_adjoint(c)


class _Fit(eqx.Module):
    """$\\sum_k s_k \\ell((Fu)_k, y_k)$."""

    program: _Program
    loss: AbstractOutputLoss
    y: Float[Array, " n"]
    weights: Float[Array, " n"]

    def of_predictions(self, z):
        return jnp.sum(self.weights * self.loss(z, self.y))

    def __call__(self, u):
        return self.of_predictions(self.program.predict(u))


class _Nothing(eqx.Module):
    """Zero, where all functions are of the other variable."""

    program: _Program

    def __call__(self, u):
        return jnp.zeros((), u.dtype)


class _Targets(AbstractFunction):
    """$\\sum_k s_k \\ell(z_k, y_k)$ with its prox."""

    loss: AbstractOutputLoss
    y: Float[Array, " n"]
    weights: Float[Array, " n"]
    convex = True

    def __call__(self, x):
        return jnp.sum(self.weights * self.loss(x, self.y))

    def prox(self, x, step=1.0):
        return self.loss.prox(x, self.y, step * self.weights)


def _bisect(grows, low, high):
    """Where a growing function of each entry changes sign, or the end next to it."""

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        above = grows(middle) > 0
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    steps = jnp.finfo(low.dtype).nmant + 5  # so many halvings leave nothing of a bracket
    low, high = loops.fori_loop(0, steps, halve, (low, high))
    return 0.5 * (low + high)


def _soft(x, threshold):
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0)


class _RobustCone(AbstractSet):
    """Pairs $(a_i, s_i)$ with $s_{ik} \\ge \\sum_j \\varepsilon_j |a_{ij}|$ for all $k$."""

    radius: Float[Array, " d"]
    convex = True

    def project(self, x):
        return jax.vmap(self._one)(*x)

    def _one(self, a, s):
        # With multipliers of sum q: a shrinks by radius q, and s rises to t, the norm of a.
        level = lambda q: jnp.sum(self.radius * jnp.abs(_soft(a, self.radius * q)))
        lacking = lambda t: jnp.sum(jnp.maximum(t - s, 0))
        zero = jnp.zeros((), a.dtype)
        q = _bisect(lambda q: q - lacking(level(q)), zero, lacking(level(zero)))
        return _soft(a, self.radius * q), jnp.maximum(s, level(q))


class _RobustTargets(AbstractFunction):
    """The worst loss over perturbations of rows in a box, as a function of the slopes $c_k$: the
    prediction $x_k^\\top c_k$ moves by up to $\\sum_j \\varepsilon_j |c_{kj}|$."""

    loss: AbstractOutputLoss
    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    weights: Float[Array, " n"]
    radius: Float[Array, " d"]
    convex = True

    def _margin(self, c):
        """The least margin, or minus the largest error."""
        fit, width = jnp.sum(self.X * c, axis=1), jnp.sum(self.radius * jnp.abs(c), axis=1)
        if self.loss.margin:
            return self.y * fit - width
        return -jnp.abs(fit - self.y) - width

    def _pull(self, margin):
        """Minus the derivative of the loss in the margin."""
        target = jnp.ones_like(margin) if self.loss.margin else jnp.zeros_like(margin)
        slope = tree.gradient(lambda m: jnp.sum(self.loss(m, target)), margin)
        return -self.weights * slope

    def __call__(self, x):
        margin = self._margin(x)
        target = jnp.ones_like(margin) if self.loss.margin else jnp.zeros_like(margin)
        return jnp.sum(self.weights * self.loss(margin, target))

    def prox(self, x, step=1.0):
        # The loss pulls with q along the gradient of the margin, and must be what is pulled with.
        def moved(q, side):
            return _soft(x + step * side[:, None] * self.X, step * self.radius * q[:, None])

        def error(q, side):
            return jnp.sum(self.X * moved(q, side), axis=1) - self.y

        def at(q):
            if self.loss.margin:
                return moved(q, q * self.y)
            # Between pulling up and down with q, where the error changes sign.
            return moved(q, _bisect(lambda side: error(q, side), -q, q))

        zero = jnp.zeros_like(self.y)
        # A logistic loss pulls with at most its weight, others most before they have moved.
        most = self._pull(self._margin(x)) * (1 + 1e-6)
        q = _bisect(lambda q: q - self._pull(self._margin(at(q))), zero, most)
        return at(q)


class PatternUpdate(AbstractUpdate):
    """Exact, for the convex program of `ConvexReLU`: with $K = I + X^\\top X$ the system is block
    diagonal plus a matrix of rank $n$,

    $$(I \\otimes K + F^\\top C F)\\, u = r,$$

    solved by a factor of $K$ and one of $I + C^{1/2} F (I \\otimes K)^{-1} F^\\top C^{1/2}$, both
    computed once for a penalty: $O(n d P + n^2)$ for each iteration.

    **Reference:** Bai, Gautam, Sojoudi, Efficient Global Optimization of Two-layer ReLU Networks:
    Quadratic-time Algorithms and Adversarial Training, 2023, arXiv:2201.01965.
    """

    def _root(self, function, penalty):
        """$C^{1/2}$: of the loss, over the penalty, or of a copy of the predictions."""
        if isinstance(function, _Fit):
            return jnp.sqrt(function.weights / penalty)
        return jnp.ones(function.program.X.shape[0], penalty.dtype)

    def prepare(self, function, operator, x, penalty):
        if not isinstance(function, _Nothing) and not (
            isinstance(function, _Fit) and isinstance(function.loss, SquaredError)
        ):
            raise TypeError("PatternUpdate is for squared errors; BlockUpdate takes smooth losses")
        X, active = function.program.X, function.program.active
        root = self._root(function, penalty)
        small = jax.scipy.linalg.cho_factor(jnp.eye(X.shape[1], dtype=X.dtype) + X.T @ X)[0]
        between = X @ jax.scipy.linalg.cho_solve((small, False), X.T)
        large = 2 * between * (active.T @ active) * root * root[:, None]
        return small, jax.scipy.linalg.cho_factor(jnp.eye(len(X), dtype=X.dtype) + large)[0]

    def minimize(self, function, operator, x, target, penalty, prepared):
        program, (small, large) = function.program, prepared
        root = self._root(function, penalty)
        rhs = operator.adjoint(target)
        if isinstance(function, _Fit):
            rhs = rhs + program.predict_adjoint(function.weights * function.y) / penalty
        inverse = lambda r: jax.scipy.linalg.cho_solve((small, False), r.T).T
        first = inverse(rhs)
        seen = jax.scipy.linalg.cho_solve((large, False), root * program.predict(first))
        new = first - inverse(program.predict_adjoint(root * seen))
        return new, jnp.zeros_like(penalty)


class _RobustUpdate(AbstractUpdate):
    """Exact, for the robust program: the map on slopes acts on patterns and that of cones on
    features, so that eigenvectors of both solve for all entries apart."""

    def prepare(self, function, operator, x, penalty):
        X, active = function.program.X, function.program.active
        return *jnp.linalg.eigh(X.T @ X), *jnp.linalg.eigh(active @ active.T)

    def minimize(self, function, operator, x, target, penalty, prepared):
        of_features, Q, of_patterns, E = prepared
        r, t = jnp.split(operator.adjoint(target), 2)
        plain = 2 + of_features
        total = ((r + t) @ Q / plain) @ Q.T
        difference = E @ ((E.T @ (r - t) @ Q) / (plain + 2 * of_patterns[:, None])) @ Q.T
        new = 0.5 * jnp.concatenate([total + difference, total - difference])
        return new, jnp.zeros_like(penalty)


class BlockUpdate(AbstractUpdate):
    """Randomized block coordinate descent, for smooth losses: one gradient step for the vector of
    one neuron after the other, in random order, with predictions kept up to date, until the norm
    of the gradient has fallen by a factor.

    **Arguments:**

    - `factor`: in (0, 1).
    - `max_sweeps`: at most so many steps for each block; static.

    **Reference:** Bai, Gautam, Sojoudi, Efficient Global Optimization of Two-layer ReLU Networks:
    Quadratic-time Algorithms and Adversarial Training, 2023, arXiv:2201.01965.
    """

    factor: Scalar = scalar_field(0.1)
    max_sweeps: int = eqx.field(static=True, default=50)

    def __check_init__(self):
        checks.interval("factor", self.factor, 0, 1, open_low=True, open_high=True)
        checks.count("max_sweeps", self.max_sweeps)

    def prepare(self, function, operator, x, penalty):
        if not isinstance(function, _Fit) or not math.isfinite(function.loss.curvature):
            raise TypeError("BlockUpdate needs a smooth loss, such as SquaredError() or Logistic()")
        X = function.program.X
        largest = jnp.linalg.eigvalsh(X.T @ X)[-1]
        curvature = function.loss.curvature * jnp.max(function.weights)
        return 1 / ((curvature + penalty) * largest + penalty)

    def minimize(self, function, operator, x, target, penalty, prepared):
        program = function.program
        near, cones = target
        sides = jnp.concatenate([program.active, -program.active])
        slope = functools.partial(tree.gradient, function.of_predictions)

        def gradient(u, z):
            distance = u - near + program.cones_adjoint(program.cones(u) - cones)
            return program.predict_adjoint(slope(z)) + penalty * distance

        def block(carry, j):
            u, z = carry
            signs = program.signs[j]
            along = signs * (program.X @ u[j]) - cones[j]
            pull = sides[j] * slope(z) + penalty * signs * along
            moved = -prepared * (pull @ program.X + penalty * (u[j] - near[j]))
            return (u.at[j].add(moved), z + sides[j] * (program.X @ moved)), None

        def sweep(carry):
            u, _, count, _ = carry
            order = jax.random.permutation(jax.random.fold_in(jax.random.key(0), count), len(u))
            (u, z), _ = loops.scan(block, (u, program.predict(u)), order)
            return u, tree.norm(gradient(u, z)), count + 1, carry[3]

        first = tree.norm(gradient(x, program.predict(x)))
        wanted = self.factor.astype(first.dtype) * first
        start = x, first, jnp.asarray(0, jnp.int32), wanted
        more = lambda carry: (carry[1] > carry[3]) & (carry[2] < self.max_sweeps)
        u, left, _, _ = loops.while_loop(more, sweep, start)
        return u, left


class SampledNeurons(eqx.Module):
    """The sampled convex program: hidden weights $U$ are drawn uniformly from the unit sphere, and
    $\\min_a \\ell((XU)_+ a, y) + \\beta \\|a\\|_1$ is solved for the outputs.

    **Arguments:**

    - `num`: $N$, the number of hidden neurons; static.
    - `solver`: of `Composite` problems for a smooth loss, of `Saddle` problems for another; `None`
      takes FISTA or the primal-dual hybrid gradient method.

    **Reference:** Bai, Gautam, Sojoudi, Efficient Global Optimization of Two-layer ReLU Networks:
    Quadratic-time Algorithms and Adversarial Training, 2023, arXiv:2201.01965.
    """

    num: int = eqx.field(static=True)
    solver: AbstractSolver | None = None

    def __check_init__(self):
        checks.count("num", self.num)


class _Outer(eqx.Module):
    features: Float[Array, "n N"]
    targets: _Targets

    def __call__(self, a):
        return self.targets(self.features @ a)


class TwoLayerReLU(eqx.Module):
    """A fitted network $\\sum_j a_j (x^\\top u_j)_+$.

    **Attributes:**

    - `hidden`: $u_j$ as rows; zero where a neuron is not needed.
    - `output`: $a_j$.
    - `loss`: of the model.
    - `objective`: the optimum of the convex program, as far as it was solved.
    - `status`, `residual`: of its solve.
    """

    hidden: Float[Array, "N d"]
    output: Float[Array, " N"]
    loss: AbstractOutputLoss
    objective: Float[Array, ""]
    status: Status
    residual: Float[Array, ""]

    def decision(self, X: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The network's output for each row.

        **Raises:** `ValueError` if `X` has another number of columns than in `fit`.
        """
        X = jnp.asarray(X)
        if X.ndim != 2 or X.shape[1] != self.hidden.shape[1]:
            raise ValueError(
                f"X must have {self.hidden.shape[1]} columns, as in fit, got shape {X.shape}"
            )
        return jax.nn.relu(X.astype(self.hidden.dtype) @ self.hidden.T) @ self.output

    def predict(self, X: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The output, or its sign where targets are $\\pm 1$."""
        z = self.decision(X)
        return jnp.where(z >= 0, 1, -1).astype(z.dtype) if self.loss.margin else z

    def score(
        self, X: Float[Array, "n d"], y: Float[Array, " n"], sample_weight: Any = None
    ) -> Float[Array, ""]:
        """$R^2$, or the accuracy where targets are $\\pm 1$."""
        X, y, weights = _checked(X, y, sample_weight)
        found = self.predict(X)
        if self.loss.margin:
            return jnp.sum(weights * (found == y))
        spread = y - jnp.sum(weights * y)
        return 1 - jnp.sum(weights * (y - found) ** 2) / jnp.sum(weights * spread**2)

    def to_network(self) -> FeedforwardNetwork:
        """The same as layers."""
        biases = jnp.zeros_like(self.output), jnp.zeros(1, self.output.dtype)
        weights = self.hidden, self.output[None]
        return FeedforwardNetwork(weights, biases, ReLU(), (False, False))


def _plain(radius):
    """Numbers that can be compared and hashed."""
    values = np.asarray(radius, float)
    return float(values) if values.ndim == 0 else tuple(values.tolist())


class ConvexReLU(eqx.Module):
    """Train a two-layer ReLU network to its global optimum. The problem

    $$\\min_{u_j, a_j} \\sum_k s_k\\, \\ell\\Bigl(\\sum_j (x_k^\\top u_j)_+ a_j, y_k\\Bigr)
      + \\tfrac\\beta2 \\sum_j \\|u_j\\|^2 + a_j^2,$$

    with as many neurons as are needed, has the value of the convex program

    $$\\min_{v_i, w_i} \\sum_k s_k\\, \\ell\\Bigl(\\sum_i d_{ik} x_k^\\top (v_i - w_i), y_k\\Bigr)
      + \\beta \\sum_i \\|v_i\\| + \\|w_i\\|
      \\quad\\text{with}\\quad (2 D_i - I) X v_i \\ge 0,\\; (2 D_i - I) X w_i \\ge 0$$

    over all patterns $D_i = \\mathrm{diag}(1[X g \\ge 0])$; over some of them it is an upper bound,
    still convex. Neurons come back as $v_i / \\sqrt{\\|v_i\\|}$ with output $\\sqrt{\\|v_i\\|}$,
    and those of $w_i$ with a minus. There are no biases: give `X` a column of ones.

    `ADMM` splits off copies of $v, w$ for the norms and of $(2 D_i - I) X v_i$ for the signs. Its
    update of $v, w$ is exact for squared errors (`PatternUpdate`). Other losses get a copy of the
    predictions too, with which it is exact again; with `ADMM(x_update=BlockUpdate())` smooth ones
    are kept in the update, which is then by randomized block coordinate descent.

    With a `radius` $\\varepsilon > 0$ it is the worst loss over perturbations of each entry of
    $x_k$ by up to $\\varepsilon$ that is minimized: cones become
    $(2 D_i - I) X v_i \\ge \\varepsilon \\|v_i\\|_1$, and margins lose
    $\\varepsilon \\|\\sum_i d_{ik} (v_i - w_i)\\|_1$, by which errors grow. Few cones are then
    more than zero: add the pattern that is active everywhere, of a neuron with a large bias.

    Thin cones make ADMM slow, robust ones most; a fixed penalty (`balance=None`) with a
    `relaxation` near 1.8 has then been best. The status tells whether the tolerance was reached.

    **Arguments:**

    - `loss`: $\\ell$: `SquaredError()`, `Hinge()`, `Logistic()`.
    - `penalty`: $\\beta > 0$.
    - `patterns`: how many are sampled in `fit`, or `Patterns`, from `all_patterns` say.
    - `radius`: $\\varepsilon \\ge 0$, or one for each column, zero for that of ones say; static.
    - `solver`: an `ADMM`, or `SampledNeurons(num)`, which knows no patterns and no radius.

    **Raises:** `ValueError` for a penalty that is not positive, no patterns, or a radius with
    `SampledNeurons`; `TypeError` for parts of the wrong kind, and from `fit` for an update that
    does not take the loss.

    **Reference:** Bai, Gautam, Sojoudi, Efficient Global Optimization of Two-layer ReLU Networks:
    Quadratic-time Algorithms and Adversarial Training, 2023, arXiv:2201.01965.
    """

    loss: AbstractOutputLoss = eqx.field(default_factory=SquaredError)
    penalty: Scalar = scalar_field(1e-2)
    patterns: int | Patterns = 50
    radius: float | tuple[float, ...] = eqx.field(static=True, converter=_plain, default=0.0)
    solver: ADMM | SampledNeurons = eqx.field(
        default_factory=lambda: ADMM(penalty=0.01, tol=1e-3, max_steps=5000)
    )

    def __check_init__(self):
        checks.instance("loss", self.loss, AbstractOutputLoss, "SquaredError()")
        checks.positive("penalty", self.penalty)
        checks.nonnegative("radius", self.radius)
        if not isinstance(self.patterns, Patterns):
            checks.count("patterns", self.patterns)
        if not isinstance(self.solver, ADMM | SampledNeurons):
            raise TypeError(f"solver must be an ADMM or SampledNeurons, got {self.solver!r}")
        if isinstance(self.solver, SampledNeurons) and self._robust:
            raise ValueError(f"SampledNeurons takes no radius, got {self.radius}")

    @property
    def _robust(self):
        return bool(np.any(np.asarray(self.radius) > 0))

    def fit(
        self,
        X: Float[Array, "n d"],
        y: Float[Array, " n"],
        sample_weight: Float[Array, " n"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> TwoLayerReLU:
        """Fit to rows `X` and targets `y`.

        **Arguments:**

        - `X`: shape $(n, d)$; integers are converted. `y`: real, or $\\pm 1$ as the loss has it.
        - `sample_weight`: $s \\ge 0$, 1 if left out: losses are summed. A row of weight zero is
          as if it were not there.
        - `key`: of the patterns or neurons; `jax.random.key(0)` if not given.

        **Returns:** a `TwoLayerReLU`; its `status` tells whether the program was solved.

        **Raises:** `ValueError` on shapes that do not fit, no rows, NaN or infinity in the data,
        negative weights, targets that the loss does not take.
        """
        X, y, shares = _checked(X, y, sample_weight)
        self.loss.check(y)
        total = len(y) if sample_weight is None else jnp.sum(jnp.asarray(sample_weight))
        weights = (shares * total).astype(X.dtype)
        key = jax.random.key(0) if key is None else key
        shape = self.patterns.active.shape if isinstance(self.patterns, Patterns) else (1, len(y))
        if len(shape) != 2 or shape[1] != len(y):
            raise ValueError(f"patterns must have shape (P, {len(y)}), got {shape}")
        if np.shape(self.radius) not in ((), X.shape[1:]):
            raise ValueError(
                f"radius must be a number or {X.shape[1]}, got {len(np.ravel(self.radius))}"
            )
        return _fitted(self, X, y.astype(X.dtype), weights, key)

    def _fit(self, X, y, weights, key):
        X = jnp.where(weights[:, None] > 0, X, 0)
        beta = self.penalty.astype(X.dtype)
        targets = _Targets(self.loss, y, weights)
        if isinstance(self.solver, SampledNeurons):
            return self._sampled(self.solver, X, targets, beta, key)
        patterns = self.patterns
        if not isinstance(patterns, Patterns):
            patterns = sample_patterns(X, patterns, key, self.radius)
        active = (patterns.active & patterns.present[:, None]).astype(X.dtype)
        return self._program(self.solver, _Program(X, active), targets, beta)

    def _program(self, solver, program, targets, beta):
        norms = GroupLasso(beta)
        update: AbstractUpdate | None = solver.x_update
        worst = None
        if self._robust:
            radius = jnp.asarray(self.radius, program.X.dtype)
            radius = jnp.broadcast_to(radius, program.X.shape[1:])
            worst = _RobustTargets(self.loss, program.X, targets.y, targets.weights, radius)
            f, split, update = _Nothing(program), _SplitRobust(program), _RobustUpdate()
            g = Separable((norms, _RobustCone(radius), worst))
        elif isinstance(self.loss, SquaredError) or isinstance(update, BlockUpdate):
            f = _Fit(program, self.loss, targets.y, targets.weights)
            split, g = _Split(program), Separable((norms, NonNegative()))
            update = PatternUpdate() if update is None else update
        else:
            f, split, update = _Nothing(program), _SplitLoss(program), PatternUpdate()
            g = Separable((norms, NonNegative(), targets))
        solver = dataclasses.replace(solver, x_update=update)
        problem = Splitting(f, g, Map(split, split.adjoint))
        start = jnp.zeros((2 * len(program.active), program.X.shape[1]), program.X.dtype)
        solution = solve(problem, solver, start)
        u = solution.value.z[0]  # the copy that the norms have made sparse
        length = jnp.linalg.norm(u, axis=1)
        root = jnp.sqrt(jnp.where(length > 0, length, 1))
        hidden = u / root[:, None]
        signs = jnp.repeat(jnp.asarray([1, -1], u.dtype), len(program.active))
        output = jnp.where(length > 0, signs * root, 0)
        value = beta * jnp.sum(length)
        value += worst(program.slopes(u)) if worst is not None else targets(program.predict(u))
        return TwoLayerReLU(hidden, output, self.loss, value, solution.status, solution.residual)

    def _sampled(self, method, X, targets, beta, key):
        U = _normal(key, (method.num, X.shape[1]), X.dtype)
        U = U / jnp.linalg.norm(U, axis=1, keepdims=True)
        features, norm, start = jax.nn.relu(X @ U.T), L1(beta), jnp.zeros(method.num, X.dtype)
        smooth, solver = _Outer(features, targets), method.solver
        if math.isfinite(self.loss.curvature):
            solver = FISTA(tol=1e-5, max_steps=10_000) if solver is None else solver
            solution = solve(Composite(smooth, norm), solver, start)
            a = solution.value
        else:
            default = PrimalDualHybridGradient(tol=1e-4, max_steps=20_000)
            solver = default if solver is None else solver
            solution = solve(Saddle(norm, targets, features), solver, start)
            a = solution.value.primal
        root = jnp.sqrt(jnp.where(a != 0, jnp.abs(a), 1))
        hidden = jnp.where(a[:, None] != 0, U * root[:, None], 0)
        output = jnp.where(a != 0, jnp.sign(a) * root, 0)
        value = smooth(a) + norm(a)
        return TwoLayerReLU(hidden, output, self.loss, value, solution.status, solution.residual)

    def objective(
        self,
        network: TwoLayerReLU,
        X: Float[Array, "n d"],
        y: Float[Array, " n"],
        sample_weight: Float[Array, " n"] | None = None,
    ) -> Float[Array, ""]:
        """What is minimized over networks, without a radius."""
        X, y, shares = _checked(X, y, sample_weight)
        total = len(y) if sample_weight is None else jnp.sum(jnp.asarray(sample_weight))
        losses = jnp.sum(total * shares * self.loss(network.decision(X), y.astype(X.dtype)))
        squares = jnp.sum(network.hidden**2) + jnp.sum(network.output**2)
        return losses + 0.5 * self.penalty * squares


@eqx.filter_jit
def _fitted(model, X, y, weights, key):
    return model._fit(X, y, weights, key)
