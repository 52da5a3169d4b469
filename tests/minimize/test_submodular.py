"""Differences of submodular functions by brute force over all sets."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxopt_ext import Status
from jaxopt_ext.minimize.submodular import (
    ConcaveOfModular,
    Coverage,
    Cut,
    DifferenceOfSubmodular,
    Extrapolated,
    FacilityLocation,
    GreedySet,
    JointEntropy,
    LogDet,
    LovaszSubgradient,
    MinimumNormPoint,
    ModMod,
    Modular,
    Rounded,
    SubmodularCDCA,
    SubmodularDCA,
    SubSup,
    SupSub,
    WeightedSum,
)


def masks(n):
    return np.array(list(itertools.product([False, True], repeat=n)))


def _entropy(rows):
    _, counts = np.unique(rows, axis=0, return_counts=True)
    return -np.sum(counts / counts.sum() * np.log(counts / counts.sum()))


def functions(seed, n=5):
    """Set functions of each kind, and the same by numpy, one set at a time."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=n)
    edges = np.triu(rng.random((n, n)) * (rng.random((n, n)) < 0.6), 1)
    edges = edges + edges.T
    benefits, costs = rng.random((n, 4)), rng.random(4)
    covers = rng.random((n, 7)) < 0.4
    units = rng.random(7)
    root = rng.normal(size=(n, n))
    gram = root @ root.T + np.eye(n)
    table, labels = rng.integers(0, 3, (12, n)), rng.integers(0, 3, 12)
    seen = lambda S: np.concatenate([table[:, S], labels[:, None]], axis=1)
    return {
        "modular": (Modular(w), lambda S: w[S].sum()),
        "cut": (Cut(edges), lambda S: edges[np.ix_(S, ~S)].sum()),
        "facility": (
            FacilityLocation(benefits, costs),
            lambda S: benefits[S].max(axis=0, initial=0) @ costs,
        ),
        "coverage": (Coverage(covers, units), lambda S: units[covers[S].any(axis=0)].sum()),
        "concave": (
            ConcaveOfModular(benefits, costs),
            lambda S: np.sqrt(benefits[S].sum(axis=0)) @ costs,
        ),
        "logdet": (LogDet(gram), lambda S: np.linalg.slogdet(gram[np.ix_(S, S)])[1]),
        "entropy": (JointEntropy(table, 3), lambda S: _entropy(table[:, S]) if S.any() else 0.0),
        "conditional": (
            JointEntropy(table, 3, labels),
            lambda S: _entropy(seen(S)) - _entropy(labels[:, None]),
        ),
    }


SLOW = ("entropy", "modular", "facility")  # like others
NAMES = [pytest.param(k, marks=pytest.mark.slow if k in SLOW else ()) for k in functions(0)]


@pytest.mark.parametrize("name", NAMES)
def test_values_and_greedy_vectors_by_brute_force(name):
    fun, by_hand = functions(1)[name]
    n = fun.size
    sets = masks(n)
    values = np.array([by_hand(S) for S in sets])
    # A linear program over all inequalities y(S) <= F(S), of which y(V) = F(V) is an equality.
    rng = np.random.default_rng(2)
    x = rng.normal(size=n)
    ones = sets.astype(float)
    best = scipy.optimize.linprog(
        -x, ones[1:-1], values[1:-1], ones[-1:], values[-1:], (None, None)
    )

    @jax.jit
    def ask(sets, x):
        points = jnp.concatenate([sets.astype(x.dtype), x[None]])
        extended = jax.vmap(fun.lovasz)(points)
        return jax.vmap(fun.value)(sets), extended, fun.greedy_vector(x), fun.marginals(sets[5])

    given, extended, vertex, marginals = ask(sets, x)
    *prefix, lovasz = np.asarray(extended)
    for each in (given, prefix):
        np.testing.assert_allclose(each, values, atol=1e-12)
    assert np.all(ones @ np.asarray(vertex) <= values + 1e-9)
    np.testing.assert_allclose(lovasz, -best.fun, atol=1e-9)
    wanted = [by_hand(sets[5] | e) - by_hand(sets[5] & ~e) for e in np.eye(n, dtype=bool)]
    np.testing.assert_allclose(marginals, wanted, atol=1e-12)


def difference(seed, n=12):
    """A concave function of sums plus a coverage, minus a coverage."""
    rng = np.random.default_rng(seed)
    cover = lambda m, c: Coverage(rng.random((n, m)) < 0.25, c * rng.random(m))
    concave = ConcaveOfModular(rng.random((n, 3)), rng.random(3))
    return DifferenceOfSubmodular(WeightedSum((concave, cover(15, 0.5))), cover(20, 0.8))


ALL = masks(12)


def solve_all(solver, problems):
    """Values of solvers on a batch of problems, and what single changes would make of them."""

    def one(problem):
        solution = solver(problem, jax.random.key(0))
        return solution, jnp.min(problem.flips(solution.mask))

    return jax.jit(jax.vmap(one))(problems)


@pytest.fixture(scope="module")
def six():
    problems = jax.tree.map(lambda *a: jnp.stack(a), *map(difference, range(6)))
    least = jax.vmap(lambda p, sets: jnp.min(jax.vmap(p.value)(sets)), (0, None))
    brute = jax.jit(least)(problems, jnp.asarray(ALL))
    modmod, _ = solve_all(ModMod(), problems)
    return problems, np.asarray(brute), np.asarray(modmod.value)


def _is_good(found, flips, six):
    _, brute, modmod = six
    values = np.asarray(found.value)
    assert np.all(found.status == Status.converged)
    assert np.all(values >= brute - 1e-9)
    assert np.all(flips >= values - 1e-6)  # no single change improves
    assert np.mean(values - brute) <= 0.1 * np.mean(-brute)
    return np.sum(values < modmod - 1e-6), np.sum(values <= brute + 1e-6)


@pytest.mark.slow
def test_dca_often_finds_the_best_and_sometimes_beats_modular_bounds(six):
    found, flips = solve_all(SubmodularDCA(0.1), six[0])
    better, best = _is_good(found, flips, six)
    assert better >= 1, (found.value, six[2])
    assert best >= 2, (found.value, six[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [
        SubmodularCDCA(0.1),
        SubmodularCDCA(0.1, iterate=Rounded()),
        SubmodularDCA(0.1, iterate=Rounded()),
        SubmodularDCA(1.0, iterate=Extrapolated()),
        SubmodularDCA(0.1, LovaszSubgradient(300)),
    ],
    ids=["cdca", "cdcar", "dcar", "adca", "subgradients"],
)
def test_the_other_forms(six, solver):
    _is_good(*solve_all(solver, six[0]), six)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver", [SubSup(), SupSub(), GreedySet()], ids=lambda s: type(s).__name__
)
def test_baselines_lower_the_value_to_where_they_stop(six, solver):
    found, _ = solve_all(solver, six[0])
    assert np.all(found.value <= 1e-12)
    assert np.any(found.value < -0.1)
    assert np.all(found.value >= six[1] - 1e-9)


def cut_minus_modular(seed, n=10, scale=1.0):
    rng = np.random.default_rng(seed)
    edges = np.triu(rng.random((n, n)) * (rng.random((n, n)) < 0.4), 1)
    return Cut(scale * (edges + edges.T)), Modular(scale * rng.normal(size=n))


@pytest.mark.parametrize("kind", [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)])
def test_submodular_functions_are_minimized_exactly(kind):
    """In any units; and so are their differences from a modular function, by the convex step of a
    function without curvature."""
    scales = np.array([1, 1e-3, 1e3, 1, 1e-6, 1e6, 1, 1e-2])
    pairs = [cut_minus_modular(seed, scale=scale) for seed, scale in enumerate(scales)]
    cast = lambda *a: jnp.asarray(np.stack(np.broadcast_arrays(*a)), kind)
    funs = jax.tree.map(cast, *[WeightedSum(pair) for pair in pairs])
    sets = masks(10)
    y = (scales[:, None] * np.random.default_rng(0).normal(size=(8, 10))).astype(kind)

    def one(pair):
        fun, y = pair
        values = jax.vmap(fun.value)(jnp.asarray(sets))
        moved = MinimumNormPoint()(fun, y, 0.0)
        return MinimumNormPoint().minimize(fun), values, moved

    found, values, moved = jax.jit(lambda *pairs: jax.lax.map(one, pairs))(funs, y)
    values, moved = np.asarray(values), np.asarray(moved)
    wanted = values.min(axis=1)
    atol = 1e-9 if kind == np.float64 else 1e-5
    np.testing.assert_allclose(found.value / scales, wanted / scales, atol=atol)
    assert np.all(found.status == Status.converged)
    assert np.sum(wanted / scales < -0.5) >= 4
    assert np.any(np.asarray(found.mask).sum(axis=1) > 1)
    for fun_values, mask, one, scale in zip(values, moved, y, scales, strict=True):
        tilted = (fun_values - sets @ one) / scale
        reached = tilted[np.all(sets == mask.astype(bool), axis=1)]
        np.testing.assert_allclose(reached, tilted.min(), atol=10 * atol)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "subtracted"),
    [
        (SubmodularDCA(0.1), False),
        (SubmodularDCA(0.0), False),
        (SubmodularCDCA(0.1), False),
        (SubmodularDCA(0.0, max_steps=1), True),
        (SubmodularCDCA(0.0, max_steps=1), True),
    ],
)
def test_the_least_of_all_cuts_is_found(solver, subtracted):
    """Cuts of eight random graphs plus sums over the members, to rounding: with nothing
    subtracted, and with the sums subtracted in one step without the quadratic."""
    n, rng, sets = 12, np.random.default_rng(7), ALL.astype(float)
    problems, least = [], []
    for _ in range(8):
        edges = np.triu(rng.random((n, n)) * (rng.random((n, n)) < 0.4), 1) / 2
        edges, costs = edges + edges.T, rng.normal(size=n)
        values = np.einsum("si,ij,sj->s", sets, edges, 1 - sets) + sets @ costs
        least.append(values.min())
        added, removed = (0 * costs, -costs) if subtracted else (costs, 0 * costs)
        cut = WeightedSum((Cut(edges), Modular(added)))
        problems.append(DifferenceOfSubmodular(cut, Modular(removed)))
    found, _ = solve_all(solver, jax.tree.map(lambda *a: jnp.stack(a), *problems))
    np.testing.assert_allclose(found.value, least, atol=1e-9)
    assert np.sum(np.array(least) < -0.5) >= 5


def cut_minus_coverage(seed, n=12):
    rng = np.random.default_rng(seed)
    edges = np.triu(rng.random((n, n)) * (rng.random((n, n)) < 0.5), 1)
    grown = WeightedSum((Cut(edges + edges.T), Modular(rng.random(n))))
    coverage = Coverage(rng.random((n, 20)) < 0.25, 0.6 * rng.random(20))
    return DifferenceOfSubmodular(grown, coverage)


@pytest.mark.slow
def test_dca_is_never_above_modular_bounds_on_cuts():
    """A cut and a sum minus a coverage, 24 times: below them in 8, best in 20 where they are in 13,
    and 0.04 above the least value on average where they are 0.26; single changes alone are 0.19
    above, and once above the bounds. On the first six instances of `difference` DCA is above the
    bounds in two and below in one."""
    problems = jax.tree.map(lambda *a: jnp.stack(a), *map(cut_minus_coverage, range(24)))
    least = jax.vmap(lambda p, sets: jnp.min(jax.vmap(p.value)(sets)), (0, None))
    brute = np.asarray(jax.jit(least)(problems, jnp.asarray(ALL)))
    ours, bounds = (
        np.asarray(solve_all(solver, problems)[0].value)
        for solver in (SubmodularDCA(0.1), ModMod())
    )
    assert np.all(ours <= bounds + 1e-9)
    assert np.sum(ours < bounds - 1e-6) >= 7
    assert np.sum(ours <= brute + 1e-6) >= 18
    assert np.mean(ours - brute) <= 0.25 * np.mean(bounds - brute)


@pytest.mark.slow
def test_convex_steps_by_a_quadratic_program():
    """In two ways, and by scipy over the whole base polytope."""
    cut, bend = cut_minus_modular(3, 5)
    fun = WeightedSum((cut, bend))
    y, rho = np.array([0.4, -0.2, 0.9, 0.1, 0.6]), 0.7
    sets = masks(5)[1:]
    values = np.array([float(fun.value(jnp.asarray(S))) for S in sets])
    ones = sets.astype(float)
    nearest = scipy.optimize.minimize(
        lambda s: np.sum((s - y) ** 2),
        np.asarray(fun.greedy_vector(jnp.zeros(5))),
        jac=lambda s: 2 * (s - y),
        constraints=[
            {
                "type": "ineq",
                "fun": lambda s: (values - ones @ s)[:-1],
                "jac": lambda s: -ones[:-1],
            },
            {"type": "eq", "fun": lambda s: (values - ones @ s)[-1:], "jac": lambda s: -ones[-1:]},
        ],
        options={"ftol": 1e-14, "maxiter": 300},
    ).x
    wanted = np.clip((y - nearest) / rho, 0, 1)
    assert 0.05 < np.mean(wanted) < 0.95
    exact = jax.jit(MinimumNormPoint().__call__)
    np.testing.assert_allclose(exact(fun, jnp.asarray(y), rho), wanted, atol=2e-5)
    slow = jax.jit(LovaszSubgradient(3000, 1e-5).__call__)(fun, jnp.asarray(y), rho)
    np.testing.assert_allclose(slow, wanted, atol=0.02)


@pytest.mark.slow
def test_shifted_functions_nan_and_single_precision():
    fun = ConcaveOfModular(np.ones((12, 1)), concave=lambda s: 5 - s)
    solver = SubmodularDCA(max_steps=5)
    found = solver(DifferenceOfSubmodular(fun, Modular(jnp.zeros(12))))
    assert found.value == -12  # beyond the empty set, whose 5 does not count
    assert np.all(found.mask)
    cast = lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a
    single = jax.tree.map(cast, difference(1))
    found = solver(single)
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, single.value(found.mask), rtol=1e-5)
    spoiled = jax.tree.map(lambda a: a * jnp.nan if a.dtype == jnp.float32 else a, single)
    assert solver(spoiled).status == Status.nonfinite


def test_bad_input():
    with pytest.raises(ValueError, match="symmetric"):
        Cut(np.array([[0.0, 1.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="weights must be non-negative"):
        Cut(-np.ones((2, 2)))
    with pytest.raises(ValueError, match="square"):
        LogDet(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        Coverage(np.ones((2, 3), bool), np.ones(2))
    with pytest.raises(TypeError, match="integers"):
        JointEntropy(np.ones((2, 3)), 2)
    with pytest.raises(ValueError, match="table"):
        JointEntropy(np.full((2, 3), 2), 2)
    with pytest.raises(ValueError, match="sizes"):
        WeightedSum((Modular(jnp.ones(2)), Modular(jnp.ones(3))))
    with pytest.raises(ValueError, match="sizes 2 and 3"):
        DifferenceOfSubmodular(Modular(jnp.ones(2)), Modular(jnp.ones(3)))
    with pytest.raises(TypeError, match="negative"):
        DifferenceOfSubmodular(Modular(jnp.ones(2)), 3)
    with pytest.raises(TypeError, match="problem"):
        SubmodularDCA()(Modular(jnp.ones(2)))
    with pytest.raises(ValueError, match="rho"):
        SubmodularDCA(-1.0)
    with pytest.raises(TypeError, match="iterate"):
        SubmodularCDCA(iterate=2)
    with pytest.raises(ValueError, match="inner_steps"):
        SubmodularCDCA(inner_steps=0)
