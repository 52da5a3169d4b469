"""Feedforward computations by rounds, against plain loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

import jaxopt_ext as jxt
from jaxopt_ext import fixed_point as fp

T, D = 13, 2
RNG = np.random.default_rng(4)
LOWER = np.tril(RNG.normal(size=(T, T)), -1)
SHIFT = RNG.normal(size=(T, D))
MAP = jxt.Feedforward(lambda s: jnp.sin(jnp.asarray(LOWER) @ s) + jnp.asarray(SHIFT), (T, D))


def by_hand(start=None):
    """The states, and the iterates of Jacobi from a start."""
    s = np.zeros((T, D))
    for t in range(T):
        s[t] = np.sin(LOWER[t] @ s) + SHIFT[t]
    rounds = [np.zeros((T, D)) if start is None else start]
    for _ in range(T):
        rounds.append(np.sin(LOWER @ rounds[-1]) + SHIFT)
    return s, rounds


EXACT, ROUNDS = by_hand()
ROWS_LOOKED_AT = []


class Rowwise:
    """A map that knows its rows, and of how many it is asked."""

    def rows(self, indices, s):
        ROWS_LOOKED_AT.append(indices.shape[0])
        return jnp.sin(jnp.asarray(LOWER)[indices] @ s) + jnp.asarray(SHIFT)[indices]

    def __call__(self, s):
        return jnp.sin(jnp.asarray(LOWER) @ s) + jnp.asarray(SHIFT)


def test_rounds_of_jacobi_make_states_final_one_by_one():
    start = RNG.normal(size=(T, D))
    solver = fp.Jacobi(tol=0.0)
    solution = jxt.solve(MAP, solver, jnp.asarray(start), trace=lambda p, x, s: x)
    assert solution.status == jxt.Status.converged
    assert solution.residual == 0
    assert solution.steps <= T
    for k, x in enumerate(by_hand(start)[1][1:]):
        np.testing.assert_allclose(solution.trace[min(k, solution.steps - 1)], x, atol=1e-12)
        np.testing.assert_allclose(x[: k + 1], EXACT[: k + 1], atol=1e-14)
    jacobian = jax.jit(jax.jacobian(MAP.fun))(solution.value)
    assert not np.triu(np.abs(np.asarray(jacobian)).sum((1, 3))).any()


@pytest.mark.slow
def test_rounds_equal_the_scan_bit_for_bit():
    """After k rounds the first k states are those of the computation one by one, where each state
    is computed by the same operations. With a product of a matrix in the cell they are not: a
    batch of products sums in another order, and one rounding apart, 3e-16, is what is left."""

    def one_by_one(shift):
        row = lambda t, s: s.at[t].set(jnp.sin(jnp.asarray(LOWER) @ s)[t] + shift[t])
        return jax.lax.fori_loop(0, T, row, jnp.zeros((T, D)))

    elementwise = lambda s, u: jnp.sin(1.3 * s) + u
    mixing = lambda s, u: jnp.tanh(jnp.asarray(W[:D, :D]) @ s + u)
    scan = lambda cell: lambda u: jax.lax.scan(lambda s, u: (cell(s, u),) * 2, jnp.zeros(D), u)[1]
    recurrence = lambda cell: fp.recurrence(cell, jnp.asarray(SHIFT), jnp.zeros(D))
    start = jnp.asarray(RNG.normal(size=(T, D)))
    for problem, sequential in ((MAP, one_by_one), (recurrence(elementwise), scan(elementwise))):
        states = np.asarray(jax.jit(sequential)(SHIFT))
        rounds = jxt.solve(problem, fp.Jacobi(tol=0.0), start, trace=lambda p, x, s: x)
        assert rounds.steps <= T
        for k, x in enumerate(np.asarray(rounds.trace)[: int(rounds.steps)]):
            np.testing.assert_array_equal(x[: k + 1], states[: k + 1])
        np.testing.assert_array_equal(rounds.value, states)
    states = jax.jit(scan(mixing))(SHIFT)
    found = jxt.solve(recurrence(mixing), fp.Jacobi(tol=0.0), start).value
    np.testing.assert_allclose(found, states, rtol=0, atol=2e-15)


def block_jacobi(block):
    """Rounds of blocks that see each other's last states."""
    x, rounds = np.zeros((T, D)), []
    while len(rounds) * block < T:
        new = x.copy()
        for first in range(0, T, block):
            for t in range(first, min(first + block, T)):
                seen = np.concatenate([x[:first], new[first:t], np.zeros((T - t, D))])
                new[t] = np.sin(LOWER[t] @ seen) + SHIFT[t]
        x = new
        rounds.append(x)
    return rounds


def test_blocks_see_the_last_round_of_each_other():
    solver = fp.JacobiGaussSeidel(4, tol=1e-300)
    found = jxt.solve(MAP, solver, trace=lambda p, x, s: x)
    for ours, wanted in zip(found.trace, block_jacobi(4), strict=False):
        np.testing.assert_allclose(ours, wanted, atol=1e-12)
    assert found.steps <= 4


SOLVERS = {
    "Gauss-Seidel": (fp.GaussSeidel(), 1),
    "Jacobi": (fp.Jacobi(), T),
    "blocks": (fp.JacobiGaussSeidel(4), 4),
    "blocks of one": (fp.JacobiGaussSeidel(1), T),
    "one block": (fp.JacobiGaussSeidel(20), 1),
    "sliding": (fp.GaussSeidelJacobi(5), T),
    "standing": (fp.GaussSeidelJacobi(5, sliding=False), T),
    "wide": (fp.GaussSeidelJacobi(20), T),
    "Picard": (fp.Picard(), T),
    "Anderson": (fp.Anderson(), 60),
}


SLOW = ("blocks of one", "one block", "wide", "Picard", "Anderson", "Jacobi")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in SOLVERS]
)
def test_all_ways_lead_to_the_same_states(name):
    solver, limit = SOLVERS[name]
    solver = dataclasses.replace(solver, tol=1e-12)
    problem = dataclasses.replace(MAP, fun=Rowwise()) if name in ("blocks", "sliding") else MAP
    ROWS_LOOKED_AT.clear()
    found = jxt.solve(problem, solver)
    assert found.status == jxt.Status.converged
    assert found.steps <= limit
    np.testing.assert_allclose(found.value, EXACT, atol=1e-11)
    assert set(ROWS_LOOKED_AT) == {"blocks": {1}, "sliding": {5}}.get(name, set())


def window(block, sliding):
    """How many rounds a window takes."""
    x, start, inner, rounds = np.zeros((T, D)), 0, 0, 0
    while start < T:
        at = slice(start, min(start + block, T))
        new = (np.sin(LOWER @ x) + SHIFT)[at]
        same = np.abs(new - x[at]).max(1) <= 1e-9
        final = min(int(np.cumprod(same).sum()) + 1, len(same))
        x[at] = new
        rounds, inner = rounds + 1, inner + 1
        if sliding:
            start += final
        elif final == len(same) or inner >= block:
            start, inner = start + block, 0
    return rounds


@pytest.mark.parametrize("sliding", [True, False])
def test_windows_go_on_behind_what_is_final(sliding):
    problem = jxt.Feedforward(
        lambda s: jnp.sin(jnp.asarray(LOWER) @ s) + jnp.asarray(SHIFT), (T, D)
    )
    solver = fp.GaussSeidelJacobi(5, sliding, atol=1e-9, tol=1e-6)
    assert jxt.solve(problem, solver).steps == window(5, sliding)


@pytest.mark.slow
def test_coarse_windows_are_not_taken_for_solutions():
    """Where the window is content too early, another pass begins."""
    cell = lambda s, u: 0.9 * s + u
    problem = fp.recurrence(cell, jnp.full(40, 0.05), jnp.asarray(0.0))
    loose = fp.GaussSeidelJacobi(20, atol=0.1, tol=1e-3, max_steps=1000)
    found = jxt.solve(problem, loose)
    assert found.status == jxt.Status.converged
    assert jxt.tree.norm(problem.residual(found.value)) <= 1e-3


W = RNG.normal(size=(3, 3))
INPUTS = RNG.normal(size=(9, 3))
TREE_START = {"a": jnp.zeros(2), "b": jnp.ones(1)}


def cell(s, u):
    new = jnp.tanh(jnp.asarray(W, u.dtype) @ jnp.concatenate([s["a"], s["b"]]) + u)
    return {"a": new[:2], "b": new[2:]}


def recurrent_by_hand(own):
    """The states, the gradients of a loss by them, given its own by each, and by the inputs."""
    states, s = [], np.array([0.0, 0, 1])
    for u in INPUTS:
        s = np.tanh(W @ s + u)
        states.append(s)
    states = np.array(states)
    slopes, own = 1 - states**2, own(states)
    g = [own[-1]]
    for t in range(len(states) - 1, 0, -1):
        g.append(W.T @ (slopes[t] * g[-1]) + own[t - 1])
    g = np.array(g)[::-1]
    return states, g, slopes * g


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(fp.ScanNewton(tol=1e-12), id="Newton"),
        pytest.param(fp.JacobiGaussSeidel(4, tol=1e-12), id="blocks", marks=pytest.mark.slow),
    ],
)
def test_recurrences_over_trees_and_their_derivatives(solver):
    """By the transposed rounds, against those of a scan."""
    adjoint = jxt.ImplicitAdjoint(fp.UnitTriangular())
    weigh = lambda s: jnp.sum(jnp.sin(s["a"])) + jnp.sum(s["b"] ** 2)

    def score(inputs):
        solution = jxt.solve(fp.recurrence(cell, inputs, TREE_START), solver, adjoint=adjoint)
        return weigh(solution.value), solution

    (_, solution), slope = jax.jit(jax.value_and_grad(score, has_aux=True))(INPUTS)
    assert solution.status == jxt.Status.converged
    assert solution.steps <= 9
    own = lambda s: np.concatenate([np.cos(s[:, :2]), 2 * s[:, 2:]], axis=1)
    states, _, wanted = recurrent_by_hand(own)
    value = np.concatenate([solution.value["a"], solution.value["b"]], axis=1)
    np.testing.assert_allclose(value, states, atol=1e-11)
    np.testing.assert_allclose(slope, wanted, atol=1e-10)


@pytest.mark.always(1)
@pytest.mark.parametrize(
    ("solver", "cut"),
    [
        (fp.Jacobi(tol=1e-12), P("i")),
        (fp.Jacobi(tol=1e-12), P(None, "i")),
        (fp.ScanNewton(tol=1e-12), P(None, "i")),
        (fp.GaussSeidelJacobi(tol=1e-12), P(None, "i")),
        (fp.JacobiGaussSeidel(tol=1e-12), P(None, "i")),
        (fp.GaussSeidel(tol=1e-12), P(None, "i")),
    ],
    ids=lambda a: f"{a}" if isinstance(a, P) else type(a).__name__,
)
def test_inputs_over_devices_of_an_explicit_mesh(solver, cut):
    """Their positions, or what runs beside each other; the states are cut alike."""
    cell = lambda s, u: jnp.tanh(0.5 * s + u)
    inputs = jnp.asarray(RNG.normal(size=(8, 4)))
    states = lambda u: jax.lax.scan(lambda s, x: (cell(s, x), cell(s, x)), jnp.full(4, 0.1), u)[1]
    adjoint = jxt.ImplicitAdjoint(fp.UnitTriangular())

    def solved(u):
        problem = fp.recurrence(cell, u, jnp.full(4, 0.1))
        return jxt.solve(problem, solver, adjoint=adjoint).value

    score = lambda run: lambda u: (jnp.sum(jnp.sin(run(u))), run(u))
    graded = lambda run: jax.jit(jax.grad(score(run), has_aux=True))
    mesh = jax.make_mesh((4,), ("i",), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = jax.device_put(inputs, NamedSharding(mesh, cut))
        slope, value = graded(solved)(placed)
    wanted_slope, wanted = graded(states)(inputs)
    np.testing.assert_allclose(value, wanted, atol=1e-10)
    np.testing.assert_allclose(slope, wanted_slope, atol=1e-10)
    assert value.sharding.is_equivalent_to(placed.sharding, 2)


def test_newton_is_quadratic():
    cell = lambda s, u: jnp.sin(0.95 * s) + u
    problem = fp.recurrence(cell, jnp.asarray(0.1 * np.sin(np.arange(60))), jnp.asarray(0.1))
    plain = jxt.solve(problem, fp.Jacobi(tol=1e-10))
    fast = jxt.solve(problem, fp.ScanNewton(tol=1e-10))
    np.testing.assert_allclose(fast.value, plain.value, atol=1e-9)
    assert fast.steps < 0.5 * plain.steps


def test_back_propagation():
    states, g, wanted = recurrent_by_hand(np.cos)
    flat = lambda s, u: jnp.tanh(jnp.asarray(W) @ s + u)
    problem = fp.backprop(flat, jnp.asarray(INPUTS), jnp.asarray(states), jnp.cos(states))
    found = jnp.flip(jxt.solve(problem, fp.Jacobi(tol=0.0)).value, 0)
    np.testing.assert_allclose(found, g, atol=1e-12)
    whole = lambda u: fp.Recurrence(flat, u, jnp.array([0.0, 0, 1]))(jnp.asarray(states))
    pulled = jax.jit(lambda u, found: jax.vjp(whole, u)[1](found)[0])(INPUTS, found)
    np.testing.assert_allclose(pulled, wanted, atol=1e-12)


def test_samples_and_dense_blocks():
    scale = lambda x: jnp.tanh(jnp.asarray(LOWER) @ x)
    noise = jnp.asarray(SHIFT)
    sample = jxt.solve(
        fp.autoregressive(lambda x: (-scale(x), scale(x)), noise), fp.Jacobi(tol=0.0)
    )
    x = np.zeros((T, D))
    for t in range(T):
        m = np.tanh(LOWER[t] @ x)
        x[t] = -m + np.exp(m) * SHIFT[t]
    np.testing.assert_allclose(sample.value, x, atol=1e-12)

    weights = RNG.normal(size=(4, D))
    layers = [lambda u, s, w=w: jnp.tanh(u * w + jnp.sum(s, axis=0)) for w in weights]
    problem = fp.dense_block(layers, jnp.ones(D), jax.ShapeDtypeStruct((D,), jnp.float32))
    found = jxt.solve(problem, fp.Jacobi(tol=0.0))
    assert found.value.dtype == jnp.float32
    assert found.steps <= 4
    outputs = []
    for w in weights:
        outputs.append(np.tanh(w + np.sum(outputs, axis=0)))
    np.testing.assert_allclose(found.value, outputs, atol=1e-6)


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(fp.Jacobi(), id="Jacobi"),
        pytest.param(fp.GaussSeidelJacobi(12), id="window"),
        pytest.param(fp.JacobiGaussSeidel(3), id="blocks", marks=pytest.mark.slow),
        pytest.param(fp.ScanNewton(), id="Newton", marks=pytest.mark.slow),
    ],
)
def test_what_overflows_on_the_way_is_computed_again(solver):
    """From a bad start the map is infinite, at the solution it is tame; a true NaN is told."""
    cell = lambda s, u: u * jnp.exp(s * s)
    problem = fp.recurrence(cell, jnp.full(12, 0.1), jnp.asarray(0.0))
    s = [0.0]
    for _ in range(12):
        s.append(0.1 * np.exp(s[-1] ** 2))
    found = jxt.solve(problem, solver, jnp.full(12, 40.0))
    assert found.status == jxt.Status.converged
    np.testing.assert_allclose(found.value, s[1:], atol=1e-6)
    spoilt = fp.recurrence(cell, jnp.full(12, 0.1).at[7].set(jnp.nan), jnp.asarray(0.0))
    assert jxt.solve(spoilt, solver).status == jxt.Status.nonfinite


def test_bad_input():
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        fp.JacobiGaussSeidel(0)
    with pytest.raises(ValueError, match="block"):
        fp.GaussSeidelJacobi(0)
    with pytest.raises(ValueError, match="atol"):
        fp.GaussSeidelJacobi(atol=-1.0)
    with pytest.raises(ValueError, match="rtol"):
        fp.UnitTriangular(rtol=-1.0)
    with pytest.raises(TypeError, match="recurrence"):
        jxt.solve(MAP, fp.ScanNewton())
    with pytest.raises(ValueError, match="common leading axis"):
        jxt.solve(jxt.Feedforward(lambda s: s), fp.Jacobi(), (jnp.ones(2), jnp.ones(3)))
    with pytest.raises(ValueError, match=r"fun\(x\)"):
        jxt.solve(jxt.Feedforward(lambda s: s[1:]), fp.Jacobi(), jnp.ones(2))
    with pytest.raises(ValueError, match="cell"):
        fp.recurrence(lambda s, u: u, jnp.ones((3, 2)), jnp.zeros(()))
    with pytest.raises(ValueError, match="leading axis"):
        fp.recurrence(lambda s, u: s, {"a": jnp.ones(3), "b": jnp.ones(2)}, jnp.zeros(()))
    with pytest.raises(ValueError, match="must have a layer"):
        fp.dense_block([], jnp.ones(2), jax.ShapeDtypeStruct((2,), jnp.float32))
