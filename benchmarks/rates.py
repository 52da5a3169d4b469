"""Measured beside proved: methods of the textbook on random problems whose solutions are planted.

`RATES` has a function for each method: from a key to the gap at ten checkpoints of one random
instance, and the bound that the method's theorem puts on it there.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_ext as jxt
from jaxopt_ext import minimize, prox
from jaxopt_ext.minimize import textbook as tb

STEPS = 100
CHECKPOINTS = np.arange(1, 11) * STEPS // 10
D, PIECES, SAMPLES = 5, 12, 16
Curves = tuple[jax.Array, jax.Array]


def _curves(problem, method, start, gap, constants, key=None, checkpoints=CHECKPOINTS) -> Curves:
    """The gap of what would be returned, and its bound, at the checkpoints."""
    measured = _walk(problem, method, start, lambda x, s: gap(getattr(s, "average", x)), key)
    return measured[checkpoints - 1], tb.guarantee(method, checkpoints, constants)


def _walk(problem, method, start, look, key=None):
    """What is seen behind each step: those of `solve`, which would stop at a solution."""
    key = jax.random.key(0) if key is None else key

    def body(carry, _):
        x, state = method.step(problem, *carry)
        return (x, state), look(x, state)

    state = method.init(problem, start, key)
    return jax.lax.scan(body, (start, state), length=method.max_steps)[1]


def _normal(key, *shape):
    return jax.random.normal(key, shape, float)


def _unit(key, *shape):
    x = _normal(key, *shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class _Pieces:
    """$\\max_i \\langle a_i, x - x^*\\rangle$ with $\\sum_i a_i = 0$: its least value is 0."""

    def __init__(self, key, solution):
        a = _normal(key, PIECES, *solution.shape)
        self.a, self.solution = a - jnp.mean(a, axis=0), solution

    def __call__(self, x):
        return jnp.max(jnp.tensordot(self.a, x - self.solution, self.solution.ndim))


def projected_subgradient(key, average=None) -> Curves:
    """On a ball, its solution inside."""
    a, b = jax.random.split(key)
    f = _Pieces(a, 0.7 * _unit(b, D))
    radius, lipschitz = 0.7, jnp.max(jnp.linalg.norm(f.a, axis=1))
    average = tb.UniformAverage() if average is None else average
    method = tb.ProjectedSubgradient(radius, lipschitz, average, tol=0.0, max_steps=STEPS)
    constants = tb.Constants(radius=radius, lipschitz=lipschitz)
    problem = jxt.Constrained(f, prox.L2Ball(1.0))
    return _curves(problem, method, jnp.zeros(D), f, constants)


def strongly_convex_subgradient(key) -> Curves:
    """The same plus a square."""
    a, b = jax.random.split(key)
    f = _Pieces(a, 0.7 * _unit(b, D))
    whole = lambda x: f(x) + 0.25 * jnp.sum((x - f.solution) ** 2)
    lipschitz = jnp.max(jnp.linalg.norm(f.a, axis=1)) + 0.5 * 1.7
    method = tb.StronglyConvexSubgradient(0.5, tol=0.0, max_steps=STEPS)
    constants = tb.Constants(lipschitz=lipschitz, strong_convexity=0.5)
    problem = jxt.Constrained(whole, prox.L2Ball(1.0))
    return _curves(problem, method, jnp.zeros(D), whole, constants)


def _quadratic(key, alpha):
    """Eigenvalues from $\\alpha$ to 1, both there."""
    a, b, c = jax.random.split(key, 3)
    values = jnp.concatenate([jnp.array([alpha, 1.0]), alpha ** jax.random.uniform(b, (D - 2,))])
    # Of reflections: a decomposition in a batch would cost more than all else.
    v, w = _unit(a, 2, D)
    basis = (jnp.eye(D) - 2 * jnp.outer(v, v)) @ (jnp.eye(D) - 2 * jnp.outer(w, w))
    solution = _unit(c, D)
    root = jnp.sqrt(values)[:, None] * basis
    return lambda x: 0.5 * jnp.sum((root @ (x - solution)) ** 2)


ALPHA = 0.02


def _smooth(make: Callable[[], Any]) -> Callable[[jax.Array], Curves]:
    def run(key):
        f = _quadratic(key, ALPHA)
        constants = tb.Constants(
            radius=1.0, smoothness=1.0, strong_convexity=ALPHA, spread=f(jnp.zeros(D))
        )
        return _curves(jxt.Smooth(f), make(), jnp.zeros(D), f, constants)

    return run


def _simplex(key):
    a, b = jax.random.split(key)
    weights = jax.random.exponential(b, (D,), float)
    return _Pieces(a, weights / jnp.sum(weights)), jnp.full(D, 1 / D)


def _entropic(make: Callable[..., Any]) -> Callable[[jax.Array], Curves]:
    def run(key):
        f, start = _simplex(key)
        radius, lipschitz = np.log(D) ** 0.5, jnp.max(jnp.abs(f.a))
        method = make(minimize.EntropicSimplex(), radius, lipschitz, tol=0.0, max_steps=STEPS)
        constants = tb.Constants(radius=radius, lipschitz=lipschitz, mirror_convexity=1.0)
        return _curves(jxt.Constrained(f, prox.Simplex(1.0)), method, start, f, constants)

    return run


def _simplex_square(make: Callable[[Any], Any]) -> Callable[[jax.Array], Curves]:
    """A square on the simplex, in the 1-norm."""

    def run(key):
        f, start = _simplex(key)
        hessian = f.a.T @ f.a
        square = lambda x: 0.5 * jnp.sum((f.a @ (x - f.solution)) ** 2)
        beta = jnp.max(jnp.abs(hessian))
        constants = tb.Constants(radius=np.log(D) ** 0.5, smoothness=beta, mirror_convexity=1.0)
        problem = jxt.Constrained(square, prox.Simplex(1.0))
        return _curves(problem, make(beta), start, square, constants)

    return run


def _simplex_euclidean(make: Callable[[Any], Any]) -> Callable[[jax.Array], Curves]:
    """The same in the Euclidean norm; the trace bounds the largest eigenvalue."""

    def run(key):
        f, start = _simplex(key)
        square = lambda x: 0.5 * jnp.sum((f.a @ (x - f.solution)) ** 2)
        beta = jnp.sum(f.a**2)
        constants = tb.Constants(
            radius=jnp.linalg.norm(start - f.solution),
            smoothness=beta,
            diameter=2**0.5,
            spread=square(start),
        )
        problem = jxt.Constrained(square, prox.Simplex(1.0))
        return _curves(problem, make(beta), start, square, constants)

    return run


def _composite(make: Callable[..., Any], geometry: Any, p: float):
    """$\\max_i \\langle a_i, x - x^*\\rangle + \\lambda |x|_1$ with a sparse solution."""

    def run(key):
        lam, q = 0.3, p / (p - 1)
        a, b = jax.random.split(key)
        solution = _normal(b, D) * (jnp.arange(D) < 2)
        f = _Pieces(a, solution)
        f.a = f.a - lam * jnp.sign(solution)
        norm = lambda x, p: jnp.sum(jnp.abs(x) ** p, axis=-1) ** (1 / p)
        radius = norm(solution, p) / (2 * (p - 1)) ** 0.5
        lipschitz = jnp.max(norm(f.a, q))
        method = make(geometry(), radius, lipschitz, tol=0.0, max_steps=STEPS)
        constants = tb.Constants(radius=radius, lipschitz=lipschitz, mirror_convexity=1.0)
        problem = jxt.Composite(f, prox.L1(lam))
        gap = lambda x: problem.objective(x) - problem.objective(solution)
        return _curves(problem, method, jnp.zeros(D), gap, constants)

    return run


def matrix_entropy(key) -> Curves:
    """On the spectrahedron."""
    a, b = jax.random.split(key)
    root = _normal(b, 3, 3)
    solution = root @ root.T / jnp.sum(root**2)
    f = _Pieces(a, solution)
    f.a = 0.5 * (f.a + jnp.swapaxes(f.a, 1, 2))
    radius = np.log(3) ** 0.5
    lipschitz = jnp.max(jnp.sqrt(jnp.sum(f.a**2, axis=(1, 2))))  # at least the spectral norm
    method = tb.FixedMirrorDescent(tb.MatrixEntropy(), radius, lipschitz, tol=0.0, max_steps=STEPS)
    constants = tb.Constants(radius=radius, lipschitz=lipschitz, mirror_convexity=1.0)
    problem = jxt.Constrained(f, tb.Spectrahedron())
    return _curves(problem, method, jnp.eye(3) / 3, f, constants)


ROWS, COLUMNS = 8, 6


def _game(make: Callable[..., Any], size=(ROWS, COLUMNS)) -> Callable[[jax.Array], Curves]:
    def run(key):
        a, b = jax.random.split(key)
        A = jax.random.uniform(a, size, float, -1.0, 1.0)
        most = jnp.max(jnp.abs(A))
        radii = tuple(np.log(k) ** 0.5 for k in size)
        maps = (minimize.EntropicSimplex(), minimize.EntropicSimplex())
        method = make(*maps, radii, most)
        side = {"lipschitz": most, "second_moment": most, "noise": 2 * most}
        other = tb.Constants(radius=radii[1], **side)
        constants = tb.Constants(radius=radii[0], coupling=most, dual=other, **side)
        start = jxt.PrimalDual(*(jnp.full(k, 1 / k) for k in size))
        gap = lambda z: jnp.max(z.primal @ A) - jnp.min(A @ z.dual)
        return _curves(tb.matrix_game(A), method, start, gap, constants, key=b)

    return run


def _rows(key, level):
    """Rows of unit length, each with two targets, above and below that of the solution."""
    a, b = jax.random.split(key)
    rows, solution = _unit(a, SAMPLES, 3), 0.5 * _unit(b, 3)
    targets = rows @ solution
    return (
        jnp.concatenate([rows, rows]),
        jnp.concatenate([targets + level, targets - level]),
        solution,
    )


def _samples(loss, level, nonsmooth, make):
    def run(key):
        a, b = jax.random.split(key)
        rows, targets, _ = _rows(a, level)
        problem = jxt.FiniteSum(lambda x, s: loss(s[0] @ x - s[1]), (rows, targets), nonsmooth)
        method, constants, checkpoints = make(problem, rows)
        gap = lambda x: problem.full_value(x) - loss(level)
        return _curves(problem, method, jnp.zeros(3), gap, constants, b, checkpoints)

    return run


def _plain_stochastic(problem, rows):
    radius = 0.5 / 2**0.5
    method = tb.StochasticMirrorDescent(radius=radius, tol=0.0, max_steps=STEPS)
    return method, tb.Constants(radius=radius, second_moment=1.0), CHECKPOINTS


def _smooth_stochastic(problem, rows):
    """On the unit ball, where a gradient is at most $1 + |x - x^*| \\le 2.5$."""
    constants = {"radius": 0.5 / 2**0.5, "noise": 2.5, "smoothness": 1.0}
    method = tb.SmoothStochasticMirrorDescent(**constants, batch=4, tol=0.0, max_steps=STEPS)
    return method, tb.Constants(**constants), CHECKPOINTS


def _variance_reduced(problem, rows):
    """Strong convexity by three minors would be long: of $3 \\times 3$, by power iteration."""
    second = rows.T @ rows / rows.shape[0]
    shifted = jnp.eye(3) - second
    alpha = 1 - jnp.trace(jnp.linalg.matrix_power(shifted, 64)) ** (1 / 64)
    method = tb.SVRG(1.0, inner_steps=400, tol=0.0, max_steps=10)
    spread = problem.full_value(jnp.zeros(3)) - 0.5
    constants = tb.Constants(smoothness=1.0, strong_convexity=alpha, spread=spread)
    return method, constants, np.arange(1, 11)


def coordinate_descent(key, power=1.0) -> Curves:
    """Sweeps of draws, on a strongly convex square."""
    a, b, c = jax.random.split(key, 3)
    X = _normal(a, 10, D) * jnp.linspace(0.5, 1.5, D)
    solution = _normal(b, D)
    loss = jxt.objectives.SquaredLoss(
        jnp.concatenate([X, jnp.eye(D)]), jnp.concatenate([X @ solution, solution])
    )
    beta = loss.coordinate_lipschitz()
    selection = minimize.Random(power)
    method = minimize.BlockCoordinateDescent(selection, beta, tol=0.0, max_steps=10)
    # The rows of the identity make it as strongly convex as 1 / 15.
    constants = tb.Constants(
        coordinate_smoothness=beta, strong_convexity=1 / 15, spread=loss(jnp.zeros(D))
    )
    problem = jxt.Composite(loss, prox.Zero())
    return _curves(problem, method, jnp.zeros(D), loss, constants, c, np.arange(1, 11))


def short_steps(key) -> Curves:
    """Linear programs in the box; the gap is the complementarity."""
    a, b = jax.random.split(key)
    rows = jnp.concatenate([_normal(a, 4, 3), jnp.eye(3)])
    problem = jxt.LinearProgram(_normal(b, 3), rows, -jnp.ones(7), jnp.ones(7))
    method = minimize.InteriorPoint(minimize.ShortStep(), tol=0.0, max_steps=STEPS)
    start = jxt.PrimalDual(jnp.zeros(3), jnp.zeros(7))

    def complementarity(x, state):
        p = state.point
        return (jxt.tree.vdot(p.s, p.z) + p.tau * p.kappa) / state.form.degree

    proved = tb.guarantee(method, CHECKPOINTS, tb.Constants(barrier=14.0))
    return _walk(problem, method, start, complementarity)[CHECKPOINTS - 1], proved


def path_following(key) -> Curves:
    """The same programs; the start is on the path, and the gap is that to the dual point."""
    a, b = jax.random.split(key)
    rows = jnp.concatenate([_normal(a, 4, 3), jnp.eye(3)])
    problem = jxt.LinearProgram(_normal(b, 3), rows, -jnp.ones(7), jnp.ones(7))
    method = tb.BarrierMethod(tol=0.0, max_steps=STEPS)
    start = jxt.PrimalDual(jnp.zeros(3), jnp.zeros(7))
    gap = lambda x, state: problem.c @ x.primal + jnp.sum(jnp.abs(x.dual))
    proved = tb.guarantee(method, CHECKPOINTS, tb.Constants(barrier=14.0))
    return _walk(problem, method, start, gap)[CHECKPOINTS - 1], proved


def _cuts(make: Callable[[], Any], dimension: int, random: bool = False):
    """On a box, its solution inside."""

    def run(key):
        a, b, c = jax.random.split(key, 3)
        f = _Pieces(a, 0.5 * _unit(b, dimension))
        # The largest value less the smallest, which is zero.
        most = jnp.max(jnp.sum(jnp.abs(f.a), axis=1) - f.a @ f.solution)
        constants = tb.Constants(
            spread=most, radius=dimension**0.5, inner_radius=1.0, dimension=dimension
        )
        problem = jxt.Constrained(f, prox.Box(-1.0, 1.0))
        return _curves(problem, make(), jnp.zeros(dimension), f, constants, c if random else None)

    return run


def vaidya(key) -> Curves:
    """The bound is the one that its cuts prove: there is none beforehand but with the constants
    of the theory, which make it slow."""
    a, b = jax.random.split(key)
    f = _Pieces(a, 0.5 * _unit(b, 3))
    problem = jxt.Constrained(f, prox.Box(-1.0, 1.0))
    method = tb.Vaidya(1.0, **_options())

    def look(x, state):
        return f(x), method.gap(problem, x, state) * jnp.maximum(f(x), 1)

    measured, proved = _walk(problem, method, jnp.zeros(3), look)
    return measured[CHECKPOINTS - 1], jnp.minimum(proved[CHECKPOINTS - 1], 1e3)


def annealing(key) -> Curves:
    """Ten temperatures, from the range of the function down."""
    a, b, c = jax.random.split(key, 3)
    f = _Pieces(a, 0.5 * _unit(b, 3))
    first = 2.0  # some less than the range: the theorem is on samples of the first temperature
    method = tb.SimulatedAnnealing(1.0, first, tol=0.0, max_steps=10)
    constants = tb.Constants(dimension=3)
    return _curves(jxt.Smooth(f), method, jnp.zeros(3), f, constants, c, np.arange(1, 11))


def _options(**more):
    return {"tol": 0.0, "max_steps": STEPS, **more}


RATES: dict[str, Callable[[jax.Array], Curves]] = {
    "projected subgradient": projected_subgradient,
    "projected subgradient, best": functools.partial(projected_subgradient, average=tb.BestPoint()),
    "strongly convex subgradient": strongly_convex_subgradient,
    "gradient descent": _smooth(
        lambda: minimize.GradientDescent(optax.scale(2 / (1 + ALPHA)), **_options())
    ),
    "accelerated, strongly convex": _smooth(
        lambda: tb.StronglyConvexNesterov(1.0, ALPHA, **_options())
    ),
    "accelerated, smooth": _smooth(
        lambda: minimize.FISTA(minimize.FixedStep(1.0), restart=False, **_options())
    ),
    "geometric descent": _smooth(lambda: tb.GeometricDescent(ALPHA, **_options())),
    "projected gradient": _simplex_euclidean(
        lambda beta: minimize.ProximalGradient(minimize.FixedStep(1 / beta), **_options())
    ),
    "conditional gradient": _simplex_euclidean(lambda beta: minimize.FrankWolfe(**_options())),
    "mirror descent": _entropic(tb.FixedMirrorDescent),
    "mirror descent, matrices": matrix_entropy,
    "mirror descent, smooth": _simplex_square(
        lambda beta: minimize.MirrorDescent(minimize.EntropicSimplex(), **_options())
    ),
    "dual averaging": _entropic(tb.DualAveraging),
    "mirror prox": _simplex_square(
        lambda beta: tb.MirrorProx(minimize.EntropicSimplex(), beta, **_options())
    ),
    "composite mirror descent": _composite(tb.FixedMirrorDescent, lambda: minimize.PNorm(1.5), 1.5),
    "regularized dual averaging": _composite(tb.DualAveraging, minimize.Euclidean, 2.0),
    "saddle mirror descent": _game(
        lambda x, y, radii, most: tb.SaddleMirrorDescent(x, y, radii, (most, most), **_options())
    ),
    "saddle mirror prox": _game(
        lambda x, y, radii, most: tb.SaddleMirrorProx(x, y, radii, (0.0, 0.0, most), **_options())
    ),
    "short-step interior point": short_steps,
    "barrier method": path_following,
    "center of gravity": _cuts(lambda: tb.CenterOfGravity(1.0, **_options()), 2),
    "ellipsoids": _cuts(lambda: tb.Ellipsoid(3**0.5, **_options()), 3),
    "Vaidya, by its cuts": vaidya,
}
"""Of these the bound holds on each instance."""

RANDOM_RATES: dict[str, Callable[[jax.Array], Curves]] = {
    "stochastic mirror descent": _samples(jnp.abs, 0.2, None, _plain_stochastic),
    "stochastic mirror descent, smooth": _samples(
        lambda r: 0.5 * r**2, 1.0, prox.L2Ball(1.0), _smooth_stochastic
    ),
    "SVRG": _samples(lambda r: 0.5 * r**2, 1.0, None, _variance_reduced),
    "random coordinate descent": coordinate_descent,
    "center of gravity by a random walk": _cuts(
        lambda: tb.CenterOfGravity(1.0, tb.SampledCentroid(), max_steps=STEPS, tol=0.0), 3, True
    ),
    "simulated annealing": annealing,
    "stochastic saddle mirror descent": _game(
        lambda x, y, radii, most: tb.StochasticSaddleMirrorDescent(
            x, y, radii, (most, most), **_options()
        )
    ),
    "stochastic saddle mirror prox": _game(
        lambda x, y, radii, most: tb.StochasticSaddleMirrorProx(
            x, y, radii, (0.0, 0.0, most), (2 * most, 2 * most), **_options()
        )
    ),
}
"""Of these it holds for the mean."""


LANDED = (
    "projected subgradient, best",
    "gradient descent",
    "accelerated, smooth",
    "projected gradient",
    "conditional gradient",
    "mirror descent, smooth",
    "short-step interior point",
    "barrier method",
    "random coordinate descent",
    "center of gravity",
    "ellipsoids",
    "Vaidya, by its cuts",
    "center of gravity by a random walk",
    "simulated annealing",
)
"""Methods of other files, whose tests look at their bounds too, and variants."""


@functools.cache
def _compiled(names, instances, double):
    """All in one program, in a hurry: compiling is most of the time."""
    every = {**RATES, **RANDOM_RATES}
    keys = jax.random.split(jax.random.key(0), instances)
    run = jax.jit(lambda keys: {name: jax.vmap(every[name])(keys) for name in names})
    return run.lower(keys).compile({"xla_backend_optimization_level": 0})


def measure(seed: int, instances: int, names=None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Gaps and bounds of all methods, each of shape `(instances, 10)`.

    **Arguments:**

    - `seed`, `instances`: which random problems, and how many.
    - `names`: of some methods only.
    """
    names = tuple({**RATES, **RANDOM_RATES} if names is None else names)
    run = _compiled(names, instances, jax.config.jax_enable_x64)
    found = run(jax.random.split(jax.random.key(seed), instances))
    return {name: jax.tree.map(np.asarray, found[name]) for name in names}


def worst_ratio(name: str, curves: tuple[np.ndarray, np.ndarray]) -> float:
    """The largest ratio of a gap to its bound, of means where the theorem is one on means."""
    gaps, bounds = curves
    bounds = np.broadcast_to(bounds, gaps.shape)
    if name in RANDOM_RATES:
        gaps, bounds = gaps.mean(axis=0), bounds.mean(axis=0)
    return float(np.max(gaps / bounds))


def plot(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> Any:
    """A panel for each method: gaps of the instances in grey, their mean, and the bound dashed."""
    import matplotlib.pyplot as plt

    columns = 5
    rows = -(-len(found) // columns)
    size = (12, 2.3 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, layout="constrained")
    for axis, (name, (gaps, bounds)) in zip(axes.flat, found.items(), strict=False):
        floor = np.maximum(gaps, 1e-16)
        at = np.arange(1, 11) / 10
        axis.semilogy(at, floor.T, color="0.8", linewidth=0.8)
        axis.semilogy(at, floor.mean(axis=0), color="C0", linewidth=1.8, label="measured, mean")
        proved = np.broadcast_to(bounds, gaps.shape)
        axis.semilogy(at, proved.mean(axis=0), "k--", linewidth=1.5, label="proved, mean")
        axis.set_title(name, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    figure.supxlabel("share of the steps")
    figure.supylabel("gap")
    return figure
