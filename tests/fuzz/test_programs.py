"""Ugly linear and quadratic programs against HiGHS and Clarabel.

Judged by value and feasibility, since solutions need not be unique. Entries are short multiples of
a power of two, so that single precision holds the same programs.
"""

import collections
import functools
import itertools

import clarabel
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse

import jaxopt_ext as jxt
from jaxopt_ext import splitting

COLUMNS, ROWS, CHUNK = 6, 9, 500
TOLERANCE = {jnp.float32: 1e-4, jnp.float64: 1e-6}


def draw(rng, linear):
    """A program of moderate size and the powers of two that its columns, rows and cost take."""
    n, m = int(rng.integers(1, COLUMNS + 1)), int(rng.integers(0, ROWS + 1))
    whole = rng.random() < 0.6  # small integers make degenerate vertices

    def integers(*shape):
        return rng.integers(-3, 4, shape).astype(float)

    def numbers(*shape):
        return integers(*shape) if whole else np.round(64 * rng.normal(size=shape)) / 64

    A, root = numbers(m, n), numbers(n, 0 if linear else int(rng.integers(0, n + 1)))
    if rng.random() < 0.5:
        if n > 1 and rng.random() < 0.5:
            i, j = rng.choice(n, 2, replace=False)
            A[:, i], root[i] = A[:, j], root[j]
        if m > 1 and rng.random() < 0.5:
            i, j = rng.choice(m, 2, replace=False)
            A[i] = rng.choice([-1.0, 1.0]) * A[j]
        if rng.random() < 0.2:
            i = rng.integers(n)
            A[:, i], root[i] = 0, 0
        if m and rng.random() < 0.2:
            A[rng.integers(m)] = 0
    P, inside = root @ root.T, A @ numbers(n)
    if rng.random() < 0.2:  # maybe infeasible
        inside = inside + numbers(m)
    width = np.abs(numbers(2, m))
    l, u = inside - width[0], inside + width[1]
    kind = rng.choice(["box", "equal", "free", "low", "high"], m, p=[0.4, 0.15, 0.1, 0.175, 0.175])
    l[kind == "equal"] = u[kind == "equal"] = inside[kind == "equal"]
    l[(kind == "free") | (kind == "high")] = -np.inf
    u[(kind == "free") | (kind == "low")] = np.inf
    q = numbers(n)
    if rng.random() < 0.7:  # with multipliers, hence bounded below
        y = integers(m) * (rng.random(m) < 0.7)
        y = np.where(np.isinf(u), np.minimum(y, 0), y)
        y = np.where(np.isinf(l), np.maximum(y, 0), y)
        q = -P @ integers(n) - A.T @ y
    spread = rng.choice([0, 5, 10], 3, p=[0.6, 0.2, 0.2]) * (rng.random() < 0.6)
    exponents = [rng.uniform(-s, s, k) for s, k in zip(spread, (n, m, 1), strict=True)]
    scale = [np.exp2(np.round(e)) for e in exponents]
    return (P, q, A, l, u), scale


def scaled(program, scale):
    (P, q, A, l, u), (D, E, c) = program, scale
    return c * D[:, None] * P * D, c * D * q, E[:, None] * A * D, E * l, E * u


def padded(program):
    """With variables that nothing depends on and rows that ask for nothing."""
    bounds = np.full(ROWS, -np.inf), np.full(ROWS, np.inf)
    out = np.zeros((COLUMNS, COLUMNS)), np.zeros(COLUMNS), np.zeros((ROWS, COLUMNS)), *bounds
    for whole, part in zip(out, program, strict=True):
        whole[tuple(slice(k) for k in part.shape)] = part
    return out


def highs(q, A, l, u, box=None):
    equal, low, high = l == u, np.isfinite(l) & (l != u), np.isfinite(u) & (l != u)
    return scipy.optimize.linprog(
        q,
        np.vstack([A[high], -A[low]]),
        np.concatenate([u[high], -l[low]]),
        A[equal],
        l[equal],
        bounds=(None, None) if box is None else (-box, box),
        method="highs",
    )


def feasible(program):
    _, q, A, l, u = program
    return highs(0 * q, A, l, u).status == 0


def bounded(program):
    """No direction of descent along which the program goes on for ever?"""
    P, q, A, l, u = program
    n = len(q)
    lower, upper = np.where(np.isinf(l), l, 0), np.where(np.isinf(u), u, 0)
    zeros = np.zeros(n)
    slopes = highs(q, np.vstack([P, A]), *(np.append(zeros, b) for b in (lower, upper)), box=1.0)
    return slopes.fun > -1e-7


def optimum(program):
    """The least value and where, by a solver that shares no code with ours; `None` if none."""
    P, q, A, l, u = program
    if not np.any(P):
        found = highs(q, A, l, u)
        return (found.fun, found.x) if found.status == 0 else None
    equal, low, high = l == u, np.isfinite(l) & (l != u), np.isfinite(u) & (l != u)
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    cones = [clarabel.ZeroConeT(equal.sum()), clarabel.NonnegativeConeT(high.sum() + low.sum())]
    for tol in (1e-10, 1e-8, 1e-6):  # now and then it ends short of the first
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tol
        found = clarabel.DefaultSolver(
            scipy.sparse.csc_matrix(np.triu(P)),
            q,
            scipy.sparse.csc_matrix(np.vstack([A[equal], A[high], -A[low]])),
            np.concatenate([l[equal], u[high], -l[low]]),
            cones,
            settings,
        ).solve()
        solved, x = str(found.status) == "Solved", np.array(found.x)
        if solved and np.max(np.abs(x), initial=0) < 1e5:
            return found.obj_val, x
    if feasible(program) and bounded(program):
        return UNKNOWN  # Clarabel gives up on one in some thousands
    return None


UNKNOWN = "unknown"


@functools.cache
def drawn(count, seed, linear):
    rng, draws, truth = np.random.default_rng(seed), [], []
    while len(draws) < count:
        new = draw(rng, linear)
        best = optimum(new[0])
        if best is not UNKNOWN:
            draws.append(new)
            truth.append(best)
    data = [padded(scaled(*d)) for d in draws]
    return draws, [np.stack(part) for part in zip(*data, strict=True)], truth


@functools.partial(jax.jit, static_argnums=0)
def batch(solver_options, *data):
    solver = splitting.OSQP(**dict(solver_options))
    return jax.vmap(lambda *d: jxt.solve(jxt.QuadraticProgram(*d), solver, None))(*data)


def solve(data, dtype, **options):
    options = tuple({"tol": TOLERANCE[dtype], **options}.items())
    data = [jnp.asarray(part, dtype) for part in data]
    parts = [
        batch(options, *(d[i : i + CHUNK] for d in data)) for i in range(0, len(data[0]), CHUNK)
    ]
    parts = [
        [np.asarray(a) for a in (*s.value, s.residual, s.steps, s.status._value)] for s in parts
    ]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def judged(draws, data, truth, found, tol):
    """How many are right, undecided, wrong; and which are wrong, and why."""
    names = {int(getattr(jxt.Status, name)._value): name for name in STATUSES}
    counts, wrong = collections.Counter(), []
    for i, ((program, scale), best) in enumerate(zip(draws, truth, strict=True)):
        P, q, A, l, u = (part[i] for part in data)
        x, y, error, _, status = (part[i] for part in found)
        x, y, status, why = x.astype(float), y.astype(float), names[int(status)], None
        if status == "converged":
            Ax, value = A @ x, 0.5 * x @ P @ x + q @ x
            outside = np.max(
                np.maximum(np.maximum(Ax - u, l - Ax), 0) / (1 + np.abs(A) @ np.abs(x))
            )
            # The error is computed with the rounding of its products.
            unit = 4 * np.finfo(error.dtype).eps
            sizes = np.abs(P) @ np.abs(x) + np.abs(q) + np.abs(A).T @ np.abs(y)
            dual = np.abs(P @ x + q + A.T @ y) / (1 + sizes) - unit
            z, sizes = np.clip(Ax + y, l, u), np.abs(A) @ np.abs(x)
            primal = np.abs(Ax - z) / (1 + sizes + np.abs(z)) - unit
            allowed = 0 if best is None else 100 * tol * (1 + abs(scale[2][0] * best[0]))
            # What a step over rows within tolerance does to the program as it was drawn.
            cost, (base_P, base_q, base_A, low, high) = scale[2][0], program
            step = (tol * (1 + np.abs(A) @ np.abs(x)))[: len(low)] / scale[1]
            wider = base_A, low - step, high + step
            if best is None:
                # Unless there is one where the slope is what it missed zero by.
                slope = (P @ x + q + A.T @ y)[: len(base_q)] / (cost * scale[0])
                if optimum((base_P, base_q - slope, *wider)) is None:
                    why = "no solution exists"
            elif abs(value - scale[2][0] * best[0]) > allowed:
                # Unless it is below by what such a step is worth.
                least = optimum((base_P, base_q, *wider))
                if least is None or not cost * least[0] - allowed <= value <= cost * best[0]:
                    why = f"{value} instead of {cost * best[0]}"
            elif outside > 10 * tol:
                why = f"outside by {outside}"
            elif max(dual.max(), primal.max()) > 1.01 * error:
                why = f"the error {error} does not bound the residual"
        elif status == "infeasible":
            why = "feasible" if best is not None or feasible(program) else None
        elif status == "unbounded":
            why = "bounded" if best is not None or bounded(program) else None
        else:
            counts[f"undecided, {status}, {'no ' if best is None else ''}solution"] += 1
            continue
        counts["right" if why is None else "wrong"] += 1
        wrong += [] if why is None else [(i, status, why)]
    return counts, wrong


STATUSES = ["converged", "step_limit", "nonfinite", "infeasible", "unbounded"]


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "quadratic"])
def test_nothing_is_wrong(linear, dtype):
    draws, data, truth = drawn(CHUNK, 0, linear)
    found = solve(data, dtype, max_steps=100)
    counts, wrong = judged(draws, data, truth, found, TOLERANCE[dtype])
    assert not wrong, (counts, wrong)
    # Single precision leaves some of the badly scaled ones open.
    assert counts["right"] >= CHUNK * (0.998 if dtype == jnp.float64 else 0.98), counts


@pytest.mark.slow
@pytest.mark.parametrize("linear", [True, False], ids=["linear", "quadratic"])
def test_nothing_is_wrong_in_ten_thousand(linear, dtype):
    draws, data, truth = drawn(10_000, 1, linear)
    counts, wrong = judged(draws, data, truth, solve(data, dtype), TOLERANCE[dtype])
    print(linear, dtype.__name__, dict(counts), wrong)
    assert not wrong, (counts, wrong)
    assert counts["right"] >= (9_990 if dtype == jnp.float64 else 9_900), counts


@pytest.mark.slow
def test_members_of_a_batch_are_solved_as_if_alone():
    """Easy, hard, infeasible and unbounded ones, of which some stop long before others."""
    _, data, _ = drawn(CHUNK, 0, True)
    together = solve(data, jnp.float64, max_steps=400)
    steps, status = together[3:]
    hard = np.argsort(np.where(status == int(jxt.Status.converged._value), steps, 0))[-3:]
    chosen = [*hard, *(np.flatnonzero(status == s)[0] for s in np.unique(status))]
    solver = splitting.OSQP(tol=1e-6, max_steps=400)
    alone = jax.jit(lambda *d: jxt.solve(jxt.QuadraticProgram(*d), solver, None))
    assert steps[chosen].max() > 5 * steps[chosen].min()
    for i in chosen:
        found = alone(*(jnp.asarray(d[i]) for d in data))
        if status[i] == int(jxt.Status.step_limit._value):  # rounding decides whether it is found
            assert found.status in (jxt.Status.converged, jxt.Status.step_limit)
            continue
        if i not in hard:  # where rounding decides when the rows at bounds are found
            assert int(found.steps) == steps[i]
        assert int(found.status._value) == status[i]
        if found.status == jxt.Status.converged:  # others are where rounding drove them
            P, q, A, l, u = (part[i] for part in data)
            x, other = np.asarray(found.value.primal), together[0][i]
            # Where there are several solutions rounding picks one; they differ by such a step.
            np.testing.assert_allclose(P @ (x - other), 0, atol=1e-6 * (1 + np.max(np.abs(q))))
            np.testing.assert_allclose(q @ x, q @ other, rtol=1e-7, atol=1e-7)
            assert np.all(
                (A @ x >= l - 1e-6 * (1 + np.abs(l))) & (A @ x <= u + 1e-6 * (1 + np.abs(u)))
            )


WRONG_ONCE = [
    ([1, -3], [[-2, -2], [-1, -3], [-2, 3]], [-6, -10, 4], [-3, -4, 5]),
    ([2, -2], [[-1, -2], [3, 1], [1, 0]], [4, -8, -1], [6, -5, 0]),
    ([-3, 2], [[0, 1], [-2, -3], [3, 2]], [-3, 1, 0], [0, 2, 2]),
]

TOUCHING = tuple(
    np.asarray(part, float)
    for part in (
        [4, -0.5, 0.0078125],
        [[2, 0, 0], [0, 0, 0], [-0.25, 0, 0]],
        [0.5, -np.inf, -0.0625],
        [0.5, 4, 0.125],
    )
)


def test_programs_that_were_solved_wrongly_once(dtype):
    """A feasible point, and multipliers that do not fit its rows, stopped an earlier rule."""
    programs = [tuple(np.asarray(part, float) for part in program) for program in WRONG_ONCE]
    data = [
        padded((np.zeros((n, n)), *program))
        for program in (*programs, TOUCHING)
        for n in [len(program[0])]
    ]
    tol = TOLERANCE[dtype]
    found = solve([np.stack(part) for part in zip(*data, strict=True)], dtype, max_steps=100)
    # Its rows meet in one point, so that the certificate is a sum that cancels to rounding.
    assert found[4][-1] == int(jxt.Status.unbounded._value)
    found = [part[:-1] for part in found]
    values = [q @ x[:2] for (q, *_), x in zip(programs, found[0], strict=True)]
    np.testing.assert_allclose(values, [highs(*program).fun for program in programs], rtol=10 * tol)
    np.testing.assert_allclose(values[:2], [-5.8, 2.0], rtol=10 * tol)
    assert np.all(found[4] == int(jxt.Status.converged._value))
    assert np.all(found[2] <= tol)


def degenerate(rng, n=4, m=6):
    """A program with rows that its solution touches without a multiplier."""
    root, A, x = rng.normal(size=(n, n)), rng.normal(size=(m, n)), rng.normal(size=n)
    touched, pressed = np.arange(m) < 3, np.arange(m) < rng.integers(0, 4)
    l, u = A @ x - rng.uniform(0.5, 2, m), np.where(touched, A @ x, A @ x + rng.uniform(0.5, 2, m))
    P = root @ root.T + np.eye(n)
    y = np.where(pressed, rng.uniform(0.5, 2, m), 0)
    return (P, -P @ x - A.T @ y, A, l, u), pressed, touched & ~pressed


def derivatives(programs, rng, step=1e-4):
    """Along a random change of q, l and u: ours, and the independent solver's on either side."""
    cases, sides = [], []
    for P, q, A, l, u in programs:
        dq, dl, du, weight = (rng.normal(size=b.shape) for b in (q, l, u, q))
        # Rows that are alike stay, or nothing would be feasible on one side.
        alike = np.abs(A @ A.T) >= 0.999 * np.sum(A**2, axis=1)
        lonely = alike.sum(axis=1) == 1
        dl = np.where(lonely & np.isfinite(l), dl, 0)
        du = np.where(l == u, dl, np.where(lonely & np.isfinite(u), du, 0))
        moved = [(P, q + h * dq, A, l + h * dl, u + h * du) for h in (step, -step)]
        if any(np.any(l > u) for *_, l, u in moved):
            continue
        best, *found = (optimum(program) for program in ((P, q, A, l, u), *moved))
        if all(f is not None and f is not UNKNOWN for f in (best, *found)):
            sides.append(
                [weight @ (f[1] - best[1]) / h for f, h in zip(found, (step, -step), strict=True)]
            )
            cases.append(
                (
                    *padded((P, q, A, l, u)),
                    *map(filled, (dq, dl, du, weight), (COLUMNS, ROWS, ROWS, COLUMNS)),
                )
            )

    def score(moving, P, A, weight):
        q, l, u = moving
        # Variables that nothing depends on get a curvature, or there would be no one solution.
        P = P + jnp.diag(jnp.where(jnp.diag(P) == 0, 1.0, 0.0))
        solver = splitting.OSQP(tol=1e-9)
        return weight @ jxt.solve(jxt.QuadraticProgram(P, q, A, l, u), solver, None).value.primal

    P, q, A, l, u, dq, dl, du, weight = (np.stack(part) for part in zip(*cases, strict=True))
    slopes = jax.jit(jax.vmap(jax.grad(score)))((q, l, u), P, A, weight)
    along = [np.sum(g * d, axis=1) for g, d in zip(slopes, (dq, dl, du), strict=True)]
    return sum(along), np.sort(sides, axis=1), cases


def filled(vector, size):
    return np.append(vector, np.zeros(size - len(vector)))


def outside(found, bounds):
    return np.maximum(np.maximum(np.min(bounds) - found, found - np.max(bounds)), 0) / (
        1 + np.max(np.abs(bounds))
    )


def test_an_equation_without_a_multiplier_holds_in_derivatives():
    """Of the projection of 1 onto x = 1."""

    def projection(q, b):
        P, A = jnp.eye(2), jnp.array([[1.0, 0.0]])
        problem = jxt.QuadraticProgram(P, q, A, b, b)
        return jxt.solve(problem, splitting.OSQP(tol=1e-9), None).value.primal

    slopes = jax.jacobian(projection, (0, 1))(jnp.array([-1.0, -2.0]), jnp.ones(1))
    np.testing.assert_allclose(slopes[0], [[0, 0], [0, -1]], atol=1e-9)
    np.testing.assert_allclose(slopes[1], [[1], [0]], atol=1e-9)


@pytest.mark.slow
def test_derivatives_at_kinks():
    """With one row touched, one of the one-sided derivatives or between them; with more, in the
    hull of those with each such row held or let go; with none, the derivative."""
    rng, kinks = np.random.default_rng(2), 0
    programs = [degenerate(rng) for _ in range(60)]
    # Where a multiplier vanishes an interior point is off by the root of its tolerance.
    found, sides, cases = derivatives([program for program, _, _ in programs], rng, step=1e-2)
    assert len(found) == len(programs)
    for value, bounds, case, (program, pressed, weak) in zip(
        found, sides, cases, programs, strict=True
    ):
        P, _, A, *_ = program
        dq, _, du, weight = (part[:k] for part, k in zip(case[5:], (4, 6, 6, 4), strict=True))
        hull = []
        for held in itertools.product([False, True], repeat=weak.sum()):
            active = pressed.copy()
            active[weak] = held
            B, k = A[active], active.sum()
            matrix = np.block([[P, B.T], [B, np.zeros((k, k))]])
            hull.append(weight @ np.linalg.solve(matrix, np.append(-dq, du[active]))[:4])
        assert outside(value, hull) < 1e-6
        if weak.sum() <= 1:
            assert outside(value, bounds) < 5e-3
        kinks += weak.sum() == 1
    assert kinks > 5


@pytest.mark.slow
def test_derivatives_of_drawn_programs():
    draws, _, truth = drawn(4000, 3, False)
    unique = [
        program
        for (program, _), best in zip(draws, truth, strict=True)
        if best is not None and np.linalg.matrix_rank(program[0]) == len(program[1])
    ]
    found, sides, _ = derivatives(unique, np.random.default_rng(4))
    smooth = np.ptp(sides, axis=1) < 1e-4 * (1 + np.abs(sides).max(axis=1))
    assert smooth.sum() > 200
    off = np.array([outside(*pair) for pair in zip(found, sides, strict=True)])
    print(smooth.sum(), (~smooth).sum(), off[smooth].max(), np.sort(off[~smooth]))
    assert np.all(off[smooth] < 1e-3), (np.flatnonzero(smooth & (off >= 1e-3)), off[smooth].max())
