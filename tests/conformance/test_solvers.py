"""Every solver in the catalogue keeps the contract of solvers."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import ALIKE, CASES

import jaxopt_ext as jxt
from jaxopt_ext import catalog

ROWS = catalog.rows(catalog.SolverRow)
CHECKS = (
    "problems",
    "oracle",
    "float32",
    "jit",
    "vmap",
    "pytree",
    "gradient",
    "retrace",
    "key",
    "nonfinite",
    "construction",
    "shard_map",
)


@functools.cache
def _kinds(row):
    """The problem types of a row that the suite has a case for."""
    skipped = row.opt_outs.get("problems", "")
    kinds = row.example().problems
    return [kind for kind in kinds if kind in CASES and kind.__name__ not in skipped]


PAIRS = [
    pytest.param(row, kind, id=f"{row.name}-{kind.__name__}")
    for row in ROWS
    for kind in _kinds(row)
]


def _alike(row):
    """The solvers of a package of a family, or of a claim, that belong to one system."""
    package = row.public.rpartition(".")[0]
    return row.system, package if "." in package else row.claim


LEADING = {_alike(row): row for row in reversed(ROWS) if row.system}
"""The first of those that are alike; the steps of the others are much like its own."""


def _each(row, kind, name):
    """A check that says little more of the other solvers of a system, and of a solver's other
    problem types: theirs are slow tests."""
    alone = LEADING.get(_alike(row), row) is row and kind is _kinds(row)[0]
    return pytest.param(row, kind, id=name, marks=() if alone else pytest.mark.slow)


def _first_kinds(always):
    """Each row with its first problem type; slow where `always(row, kind)` does not hold."""
    marks = lambda row, kind: () if always(row, kind) else pytest.mark.slow
    firsts = [(row, _kinds(row)[0]) for row in ROWS]
    cases = [pytest.param(*first, id=first[0].name, marks=marks(*first)) for first in firsts]
    return pytest.mark.parametrize(("row", "kind"), cases)


FIRST = [_each(row, _kinds(row)[0], row.name) for row in ROWS]
FEW = [_each(row, kind, f"{row.name}-{kind.__name__}") for row in ROWS for kind in _kinds(row)]


def _skip(row, check):
    if row.reason(check):
        pytest.skip(row.reason(check))


def _sharp(solver, dtype):
    tol = 1e-9 if dtype == jnp.float64 else 1e-4
    return dataclasses.replace(solver, tol=tol, max_steps=max(1, 20_000 * (solver.max_steps > 1)))


def _theta(case, dtype):
    return jnp.asarray(case.theta, dtype)


def _solve(solver, case, theta, start=None, key=None):
    start = case.start(theta.dtype) if start is None else start
    return jxt.solve(case.build(theta), solver, start, key=key)


@functools.cache
def _oracle(kind):
    case = CASES[kind]
    return case.oracle(case.theta)


# Compilation is what this suite costs, so each row has few programs and the checks share them: a
# plain solve, to which tolerance, key and numbers are arguments, and a program of everything else.


@functools.cache
def _reference(row, kind, dtype=jnp.float64):
    """The solution, found once for all checks."""
    return _plain(row, _problem(row, kind, _theta(CASES[kind], dtype)), kind, dtype)


def _problem(row, kind, theta):
    """With the parameters `theta`, for `_plain`."""
    case = CASES[kind]
    return (case.pytree if _on_trees(row, kind, theta.dtype) else case.build)(theta)


def _plain(row, problem, kind, dtype, tol=None, seed=0):
    solver = _sharp(row.example(), dtype)
    solver = solver if tol is None else dataclasses.replace(solver, tol=tol)
    start = CASES[kind].start(dtype)
    start = _split(start) if _on_trees(row, kind, dtype) else start
    return jxt.solve(problem, solver, start, key=jax.random.key(seed))


def _split(x):
    return {"a": x[:2], "b": (x[2:],)}


def _joined(tree):
    return jnp.concatenate([tree["a"], tree["b"][0]])


def _found(row, kind, solution):
    """The numbers of a plain solution."""
    trees = _on_trees(row, kind, solution.residual.dtype)
    return _joined(solution.value) if trees else CASES[kind].primal(solution.value)


@functools.cache
def _type(row, kind):
    """The precision of a row's plain solves.

    Of one solver for each of the core's problem types they are in double precision too. Those of
    the others are in single precision, which is asked for anyway, and what is compiled for a batch
    is compared with the independent solutions in their place; with each other both are in slow
    tests.
    """
    first = kind is _kinds(row)[0] and LEADING.get(_alike(row), row) is row
    can = not any(map(row.reason, ("float32", "jit", "vmap", "oracle")))
    core = not row.system and _derived(row, kind)
    return jnp.float32 if first and can and not core else jnp.float64


def _on_trees(row, kind, dtype):
    """Whether plain solves are over dictionaries: those in single precision, where another program
    has the arrays."""
    if dtype != jnp.float32 or _type(row, kind) != jnp.float32:
        return False
    return CASES[kind].pytree is not None and not row.reason("pytree")


SCALES = np.array([[1.0], [1.1], [0.5]])


def _direction(case):
    return np.cos(np.arange(len(case.theta)))


def _weights(kind):
    return np.sin(1 + np.arange(len(_oracle(kind))))


LONG = ("minimize.VRACODER",)
"""What takes long to compile, where another solver can be asked."""


@functools.cache
def _derived(row, kind):
    """Whether derivatives are checked always: with one solver for each problem type, as they belong
    to the problem, and take four times as long to compile as a solve does."""
    checks = ("gradient", "jit", "vmap")
    able = [r for r in ROWS if kind is _kinds(r)[0] and not any(map(r.reason, checks))]
    able.sort(key=lambda r: ("float32" in r.opt_outs, r.public in LONG))
    return bool(able) and able[0] is row


@functools.cache
def _together(row, kind, derived):
    """Solutions, their status and perhaps both derivatives of three problems: a batch in one
    program.

    Forward along a direction, backward from the weights of a score.
    """
    case, solver = CASES[kind], _sharp(row.example(), jnp.float64)

    def solved(theta):
        solution = _solve(solver, case, theta)
        return case.primal(solution.value), (solution.status._value, solution.residual)

    def one(theta):
        if not derived:
            return solved(theta)
        primal, push, told = jax.linearize(solved, theta, has_aux=True)
        (slope,) = jax.linear_transpose(push, theta)(jnp.asarray(_weights(kind)))
        return primal, told, push(jnp.asarray(_direction(case))), slope

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(_theta(case, jnp.float64) * SCALES))


def test_there_are_solvers_and_known_opt_outs():
    assert ROWS
    for row in ROWS:
        assert set(row.opt_outs) <= set(CHECKS), row.name
        assert _kinds(row), row.name


@pytest.mark.parametrize(("row", "kind"), PAIRS)
def test_agrees_with_an_independent_solution(row, kind):
    _skip(row, "oracle")
    if _type(row, kind) == jnp.float64:
        solution = _reference(row, kind)
        found = CASES[kind].primal(solution.value)
        status, residual = solution.status._value, solution.residual
    else:
        found, (status, residual), *_ = jax.tree.map(
            lambda a: a[0], _together(row, kind, _derived(row, kind))
        )
    assert status == jxt.Status.converged._value, jxt.Status[status]
    assert residual <= 1e-9
    np.testing.assert_allclose(found, _oracle(kind), atol=3e-7)


@pytest.mark.parametrize(("row", "kind"), FEW)
def test_stays_in_single_precision(row, kind):
    _skip(row, "float32")
    solution = _reference(row, kind, jnp.float32)
    kinds = {x.dtype for x in jax.tree.leaves((solution.value, solution.residual))}
    assert kinds == {jnp.dtype(jnp.float32)}
    assert solution.status == jxt.Status.converged, (solution.status, solution.residual)
    np.testing.assert_allclose(_found(row, kind, solution), _oracle(kind), atol=5e-3)


@pytest.mark.parametrize(("row", "kind"), FIRST)
def test_a_compiled_batch_equals_plain_solves(row, kind):
    _skip(row, "jit")
    _skip(row, "vmap")
    case = CASES[kind]
    values, (codes, _), *_ = _together(row, kind, _derived(row, kind))
    thetas = _theta(case, jnp.float64) * SCALES
    if _type(row, kind) == jnp.float32:
        assert np.all(codes == jxt.Status.converged._value), codes
        for theta, value in zip(thetas, values, strict=True):
            np.testing.assert_allclose(value, case.oracle(np.asarray(theta)), rtol=0, atol=3e-7)
        return
    rest = [_plain(row, case.build(theta), kind, jnp.float64) for theta in thetas[1:]]
    solutions = [_reference(row, kind), *rest]
    for solution, value, code in zip(solutions, values, codes, strict=True):
        np.testing.assert_allclose(value, case.primal(solution.value), rtol=0, atol=1e-7)
        assert int(code) == int(solution.status._value)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "kind"), FIRST)
def test_jit_changes_nothing(row, kind):
    _skip(row, "jit")
    case = CASES[kind]
    solver = _sharp(row.example(), jnp.float64)
    theta = _theta(case, jnp.float64)
    jitted = jax.jit(lambda t: case.primal(_solve(solver, case, t).value))(theta)
    eager = case.primal(_reference(row, kind).value)
    np.testing.assert_allclose(jitted, eager, rtol=0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "kind"), FIRST)
def test_vmap_equals_a_loop(row, kind):
    _skip(row, "vmap")
    case = CASES[kind]
    solver = _sharp(row.example(), jnp.float64)
    thetas = _theta(case, jnp.float64) * jnp.array([[1.0], [1.1], [0.5]])

    def one(theta):
        solution = _solve(solver, case, theta)
        return case.primal(solution.value), solution.status._value

    batched = jax.vmap(one)(thetas)
    looped = [one(theta) for theta in thetas]
    for i, (value, status) in enumerate(looped):
        np.testing.assert_allclose(batched[0][i], value, rtol=0, atol=1e-7)
        assert int(batched[1][i]) == int(status)


@pytest.mark.parametrize(("row", "kind"), FIRST)
def test_takes_pytrees(row, kind):
    _skip(row, "pytree")
    if CASES[kind].pytree is None:
        pytest.skip(f"{kind.__name__} is solved over arrays or pairs of them")
    if _type(row, kind) == jnp.float64:
        _check_pytrees(row, kind)
    else:
        value = _reference(row, kind, jnp.float32).value
        start = _split(CASES[kind].start(jnp.float32))
        chex.assert_trees_all_equal_shapes_and_dtypes(value, start)
        np.testing.assert_allclose(_joined(value), _oracle(kind), atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "kind"), FIRST)
def test_takes_pytrees_in_double_precision(row, kind):
    _skip(row, "pytree")
    if CASES[kind].pytree is None:
        pytest.skip(f"{kind.__name__} is solved over arrays or pairs of them")
    _check_pytrees(row, kind)


def _check_pytrees(row, kind):
    case = CASES[kind]
    start = _split(case.start(jnp.float64))
    problem = case.pytree(_theta(case, jnp.float64))
    value = jxt.solve(problem, _sharp(row.example(), jnp.float64), start).value
    chex.assert_trees_all_equal_shapes_and_dtypes(value, start)
    np.testing.assert_allclose(_joined(value), _oracle(kind), atol=3e-7)


def _central_differences(kind):
    """Of the score, along the direction."""
    case, step = CASES[kind], 1e-4
    move = step * _direction(case)
    ahead, behind = (case.oracle(case.theta + sign * move) for sign in (1, -1))
    return _weights(kind) @ (ahead - behind) / (2 * step)


@_first_kinds(_derived)
def test_gradient_equals_central_differences_of_the_oracle(row, kind):
    for check in ("gradient", "jit", "vmap"):
        _skip(row, check)
    case = CASES[kind]
    *_, forward, reverse = (part[0] for part in _together(row, kind, True)[2:])
    reverse = reverse @ _direction(case)
    np.testing.assert_allclose(reverse, _central_differences(kind), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(_weights(kind) @ forward, reverse, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "kind"), PAIRS)
def test_plain_gradient_equals_central_differences_of_the_oracle(row, kind):
    _skip(row, "gradient")
    case = CASES[kind]
    solver = _sharp(row.example(), jnp.float64)
    direction, weights = _direction(case), _weights(kind)

    def score(theta):
        return jnp.vdot(weights, case.primal(_solve(solver, case, theta).value))

    theta = _theta(case, jnp.float64)
    reverse = jnp.vdot(jax.grad(score)(theta), direction)
    np.testing.assert_allclose(reverse, _central_differences(kind), rtol=1e-4, atol=1e-5)
    if kind is _kinds(row)[0]:
        forward = jax.jvp(score, (theta,), (jnp.asarray(direction),))[1]
        np.testing.assert_allclose(forward, reverse, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k in ALIKE else ()) for k in CASES]
)
def test_gradient_in_single_precision(kind):
    """Of one solver for each problem type, as derivatives belong to the problem; double precision
    is enabled besides."""
    case = CASES[kind]
    able = [
        row for row in ROWS if kind in _kinds(row) and not {"gradient", "float32"} & {*row.opt_outs}
    ]
    able = [row for row in able if not row.host]
    if not able:
        pytest.skip(f"no solver of {kind.__name__} stays in single precision")
    row = min(able, key=lambda row: (not _derived(row, kind), _kinds(row).index(kind)))
    solver = _sharp(row.example(), jnp.float32)
    weights = _weights(kind).astype(np.float32)
    score = lambda theta: jnp.vdot(weights, case.primal(_solve(solver, case, theta).value))
    single = jax.jit(jax.grad(score))(_theta(case, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, _together(row, kind, True)[-1][0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("row", "kind"), FIRST)
def test_new_numbers_do_not_retrace(row, kind, trace_count):
    _skip(row, "retrace")
    case, dtype = CASES[kind], _type(row, kind)
    theta = _theta(case, dtype)
    problems = [_problem(row, kind, theta * scale) for scale in (1.5, 2)]
    _plain(row, problems[0], kind, dtype)
    with trace_count() as traces:
        _plain(row, problems[1], kind, dtype, tol=1e-3)
    assert traces.count == 0


@pytest.mark.parametrize(("row", "kind"), FIRST)
def test_same_key_same_result(row, kind):
    _skip(row, "key")
    case, dtype = CASES[kind], _type(row, kind)
    problem = _problem(row, kind, _theta(case, dtype))
    first, second = (_plain(row, problem, kind, dtype, tol=1e-3, seed=3).value for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


ASKED = ("bilevel.BAMM", "stochastic.StochasticModelBased")
"""Of the solvers that ask for the residual near the end only, two; the others' are slow tests."""


@_first_kinds(lambda row, kind: row.public in ASKED)
def test_goes_on_where_it_converged(row, kind):
    """A state that says solved is none that says diverged."""
    dtype = _type(row, kind)
    problem = _problem(row, kind, _theta(CASES[kind], dtype))
    loose = dataclasses.replace(_sharp(row.example(), dtype), tol=1e6)
    done = _plain(row, problem, kind, dtype, tol=1e6)
    if done.status != jxt.Status.converged:
        pytest.skip("never says that it has converged")
    again = jxt.solve(problem, loose, done.value, state=done.state)
    assert again.status == jxt.Status.converged, again.status


@pytest.mark.parametrize(("row", "kind"), FIRST)
def test_nan_in_the_data_is_reported(row, kind):
    _skip(row, "nonfinite")
    case, dtype = CASES[kind], _type(row, kind)
    theta = _theta(case, dtype).at[1].set(jnp.nan)
    solution = _plain(row, _unchecked(row, kind, theta), kind, dtype)
    assert solution.status == jxt.Status.nonfinite, solution.status


def _unchecked(row, kind, theta):
    """Build the problem with valid numbers, then put `theta` in, as a traced value would be."""
    valid = _theta(CASES[kind], theta.dtype)
    leaves, treedef = jax.tree.flatten(jxt.hoist(_problem(row, kind, valid)))
    places = [slice(None), slice(2), slice(2, None)]  # whole, or split over a tree

    def swapped(x):
        same = (p for p in places if jnp.shape(x) == theta[p].shape and np.array_equal(x, valid[p]))
        place = next(same, None)
        return x if place is None else theta[place]

    new = [*map(swapped, leaves)]
    assert any(a is not b for a, b in zip(new, leaves, strict=True))
    return jax.tree.unflatten(treedef, new)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_bad_hyperparameters_raise_at_construction(row):
    _skip(row, "construction")
    solver = row.example()
    for name, value, error in (
        ("tol", -1.0, ValueError),
        ("max_steps", 0, ValueError),
        ("max_steps", 1.5, TypeError),
    ):
        with pytest.raises(error, match=name):
            dataclasses.replace(solver, **{name: value})
