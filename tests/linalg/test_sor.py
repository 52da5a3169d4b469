"""Relaxation against sweeps in numpy; the policies are compared with scipy in their conformance."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from jax.sharding import Mesh, PartitionSpec as P

import jaxopt_ext as jxt
from jaxopt_ext import linalg
from jaxopt_ext.linalg import SOR, SSORCG, Coloring

OMEGAS = np.array([0.7, 1.0, 1.3, 1.8])


def grid_laplacian(n, shift=0.0):
    line = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    return np.kron(line, np.eye(n)) + np.kron(np.eye(n), line) + shift * np.eye(n * n)


def sweeps(A, b, omega, tol=1e-8, limit=10_000):
    """Count and solution, one unknown after the other."""
    x = np.zeros_like(b)
    for k in range(1, limit + 1):  # noqa: B007
        for i in range(len(b)):
            x[i] += omega * (b[i] - A[i] @ x) / A[i, i]
        if np.linalg.norm(b - A @ x) <= tol * np.linalg.norm(b):
            break
    return k, x


def preconditioned(A, b, omega, tol=1e-8):
    D, L = np.diag(np.diag(A)), np.tril(A, -1)
    M = (D + omega * L) @ np.linalg.inv(D) @ (D + omega * L).T / (omega * (2 - omega))
    x, r, z = np.zeros_like(b), b, np.linalg.solve(M, b)
    p, gamma, k = z, r @ z, 0
    while np.linalg.norm(r) > tol * np.linalg.norm(b):
        length = gamma / (p @ A @ p)
        x, r = x + length * p, r - length * A @ p
        z = np.linalg.solve(M, r)
        p, gamma, k = z + (r @ z) / gamma * p, r @ z, k + 1
    return k, x, M


@eqx.filter_jit
def solved(solver, A, b, omegas):
    def one(omega):
        operator = lx.MatrixLinearOperator(A, lx.symmetric_tag)
        relaxed = eqx.tree_at(lambda s: s.omega, solver, omega)
        out = lx.linear_solve(operator, b, relaxed, throw=False)
        return out.stats["num_steps"], out.value

    return jax.vmap(one)(omegas)


A, B = grid_laplacian(4, -0.1), np.random.default_rng(0).normal(size=16)


@pytest.mark.parametrize("single", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_counts_are_those_of_sweeps_over_the_unknowns(single):
    kind, tol, slack = (np.float32, 1e-5, 1) if single else (np.float64, 1e-8, 0)
    counts, x = solved(SOR(), *(jnp.asarray(a, kind) for a in (A, B, OMEGAS)))
    assert x.dtype == kind
    for omega, count, value in zip(OMEGAS, counts, x, strict=True):
        wanted, y = sweeps(A, B, omega, tol)
        assert abs(int(count) - wanted) <= slack
        np.testing.assert_allclose(value, y, rtol=1e-3 if single else 1e-9)
    # At relaxation 1 it is Gauss-Seidel.
    y = np.zeros(16)
    for _ in range(int(counts[1])):
        y = scipy.linalg.solve_triangular(np.tril(A), B - np.triu(A, 1) @ y, lower=True)
    np.testing.assert_allclose(x[1], y, rtol=1e-3 if single else 1e-9)


@pytest.mark.always(1)
@pytest.mark.parametrize("solver", [SOR, SSORCG])
def test_red_black_is_the_sweep_in_that_order(solver):
    coloring = Coloring.red_black((4, 4))
    counts, x = solved(solver(coloring=coloring), jnp.asarray(A), jnp.asarray(B), OMEGAS)
    order = np.argsort(coloring.colors, kind="stable")
    for omega, count, value in zip(OMEGAS, counts, x, strict=True):
        permuted = A[np.ix_(order, order)], B[order], omega
        wanted, y, *_ = (sweeps if solver is SOR else preconditioned)(*permuted)
        assert count == wanted
        np.testing.assert_allclose(value[order], y, rtol=1e-9)


def test_preconditioned_counts_and_the_preconditioner():
    counts, x = solved(SSORCG(), jnp.asarray(A), jnp.asarray(B), OMEGAS)
    for omega, count, value in zip(OMEGAS, counts, x, strict=True):
        wanted, y, M = preconditioned(A, B, omega)
        assert count == wanted
        np.testing.assert_allclose(value, y, rtol=1e-9)
        np.testing.assert_allclose(M, M.T)
        assert np.linalg.eigvalsh(M)[0] > 0


@pytest.mark.slow
def test_derivatives_in_what_a_batch_shares():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(3, 4))
    base = rng.normal(size=(4, 4)) + 8 * np.eye(4)  # not symmetric

    def total(matrix, vectors):
        one = lambda b: jnp.sum(
            lx.linear_solve(lx.MatrixLinearOperator(matrix), b, SOR(1.1, 1e-12)).value ** 2
        )
        return jnp.sum(jax.vmap(one)(vectors))

    found = jax.jit(jax.grad(total))(jnp.asarray(base), jnp.asarray(vectors))
    x = np.linalg.solve(base, vectors.T)
    np.testing.assert_allclose(found, -np.linalg.solve(base.T, 2 * x) @ x.T, rtol=1e-8, atol=1e-12)


@pytest.mark.always(1)
@pytest.mark.parametrize("solver", [SOR, SSORCG])
def test_it_solves_for_implicit_derivatives(solver):
    matrix = jnp.asarray(grid_laplacian(2, 0.5))
    adjoint = jxt.ImplicitAdjoint(linear_solver=solver(1.2, 1e-12))

    def minimizer(b):
        problem = jxt.Smooth(lambda x: 0.5 * x @ matrix @ x - b @ x)
        return jnp.sum(jxt.core.attach(jnp.linalg.solve(matrix, b), problem, adjoint) ** 2)

    vectors = np.random.default_rng(0).normal(size=(2, 4))
    found = jax.jit(jax.vmap(jax.grad(minimizer)))(jnp.asarray(vectors))
    x = np.linalg.solve(matrix, vectors.T)
    np.testing.assert_allclose(found, 2 * np.linalg.solve(matrix, x).T, rtol=1e-9)


@pytest.mark.slow
def test_it_traces_in_shard_map():
    matrix, vectors = jnp.asarray(A), jnp.asarray(np.stack([B, 2 * B]))

    def each(b):
        operator = lx.MatrixLinearOperator(matrix, lx.symmetric_tag)
        solvers = (SSORCG(1.5, coloring=Coloring.red_black((4, 4))),)
        one = linalg.solve_sequence(
            lambda _: operator, b[:, 0], b, linalg.TsallisINF([1.5]), jax.random.key(0)
        )
        return [s.compute(s.init(operator, {}), b[0], {})[0][None] for s in solvers] + [one.values]

    mesh = Mesh(np.array(jax.devices()[:2]), "i")
    spread = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=P("i"), out_specs=P("i")))
    for found in spread(vectors):
        np.testing.assert_allclose(found, np.linalg.solve(A, vectors.T).T, rtol=1e-6, atol=1e-7)


LINE = 2.5 * np.eye(4) - np.eye(4, k=1) - np.eye(4, k=-1)
TILTED = LINE + 0.1 * np.eye(4, k=1)  # of which no symmetry is known
COLORED = {"coloring": Coloring.red_black((4,))}


@pytest.mark.always(1)
@pytest.mark.parametrize(
    "cases",
    [
        [(SOR(1.2, 1e-12), LINE, False), (SOR(1.2, 1e-12, **COLORED), TILTED, True)],
        [(SSORCG(1.2, 1e-12, **COLORED), LINE, False), (lx.LU(), TILTED, False)],
    ],
    ids=["SOR", "others"],
)
def test_implicit_derivatives_in_shard_map(cases):
    """Of a solution for each device, and, with a sum over them in the problem, of one for all."""
    vectors = np.random.default_rng(2).normal(size=(2, 4))

    def each(vectors, scale):
        def score(scale, solver, matrix, together):
            def gap(x):
                own = scale * matrix @ x - vectors[0]
                return jax.lax.psum(own, "i") if together else own

            problem = (
                jxt.RootFinding(gap)
                if matrix is TILTED
                else jxt.Smooth(lambda x: 0.5 * scale * x @ matrix @ x - vectors[0] @ x)
            )
            b = jax.lax.pmean(vectors[0], "i") if together else vectors[0]
            x = jax.lax.stop_gradient(jnp.linalg.solve(scale * matrix, b))
            adjoint = jxt.ImplicitAdjoint(linear_solver=solver)
            return jnp.sum(jxt.core.attach(x, problem, adjoint) ** 2)

        return [jax.grad(score)(scale, *case) for case in cases]

    mesh = Mesh(np.array(jax.devices()[:2]), "i")
    spread = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=(P("i"), P()), out_specs=P()))
    for found, (_, matrix, together) in zip(spread(vectors, 1.5), cases, strict=True):
        b = vectors.mean(axis=0, keepdims=True) if together else vectors
        x = np.linalg.solve(1.5 * matrix, b.T)
        np.testing.assert_allclose(found, -2 * np.sum(x**2) / 1.5, rtol=1e-9)


@eqx.filter_jit
def _outcome(solver, matrix, vector, **options):
    operator = lx.MatrixLinearOperator(matrix, lx.symmetric_tag)
    out = lx.linear_solve(operator, vector, solver, options=options, throw=False)
    return out.result._value, out.value, out.stats["num_steps"]


def outcome(solver, matrix, vector):
    code, value, steps = _outcome(solver, *map(jnp.asarray, (matrix, vector)))
    names = ("successful", "max_steps_reached", "breakdown")
    status = next(n for n in names if int(code) == getattr(lx.RESULTS, n)._value)
    return status, np.asarray(value), int(steps)


def test_what_becomes_of_ugly_systems():
    def beside_a_one(pair):
        return scipy.linalg.block_diag(pair, 1.0)

    sor, swap, far = SOR(rtol=1e-12), [[0.0, 1.0], [1.0, 0.0]], [[1.0, 3.0], [3.0, 1.0]]
    ones = np.ones(3)
    for pair in (swap, far):  # a zero on the diagonal; sweeps that diverge
        status, x, _ = outcome(sor, beside_a_one(pair), ones)
        assert status == "breakdown"
        assert np.isnan(x).all()
    assert outcome(SSORCG(), beside_a_one(far), [1.0, -1.0, 0.0])[0] == "breakdown"
    assert outcome(sor, np.eye(3), [np.nan, 1, 1])[0] == "breakdown"
    assert outcome(sor, np.eye(3), np.zeros(3))[::2] == ("successful", 0)
    # Two unknowns of one colour are coupled.
    coupled = SOR(coloring=Coloring([0, 0, 1]))
    assert outcome(coupled, beside_a_one([[2.0, 1.0], [1.0, 2.0]]), ones)[0] == "breakdown"
    # Badly scaled, and solved all the same, but not in three sweeps.
    line = 2 * np.eye(3) - 0.5 * np.eye(3, k=1) - 0.5 * np.eye(3, k=-1)
    scale = np.array([1e-6, 1.0, 1e6])
    matrix = scale[:, None] * line * scale
    status, x, _ = outcome(sor, matrix, scale)
    assert status == "successful"
    np.testing.assert_allclose(matrix @ x, scale, atol=1e-5)
    status, x, steps = outcome(SOR(rtol=1e-12, max_steps=3), matrix, scale)
    assert (status, steps) == ("max_steps_reached", 3)
    assert np.isfinite(x).all()
    y0 = np.linalg.solve(line, ones)
    _, warm, steps = _outcome(sor, line, ones, y0=y0)
    np.testing.assert_allclose(warm, y0, rtol=1e-12)
    assert steps <= 1


@pytest.mark.parametrize("omega", [0.0, 2.0, -1.0, np.nan])
def test_relaxations_outside_raise(omega):
    for make in (SOR, SSORCG):
        with pytest.raises(ValueError, match="omega must be in"):
            make(omega)


def test_bad_input_raises():
    with pytest.raises(ValueError, match="rtol"):
        SOR(rtol=-1.0)
    with pytest.raises(TypeError, match="coloring"):
        SOR(coloring=np.zeros(3))
    with pytest.raises(ValueError, match="square"):
        lx.linear_solve(lx.MatrixLinearOperator(jnp.ones((3, 2))), jnp.ones(3), SOR())
    with pytest.raises(ValueError, match="tagged"):
        lx.linear_solve(lx.MatrixLinearOperator(jnp.ones((2, 2))), jnp.ones(2), SSORCG())
    with pytest.raises(ValueError, match="3 unknowns, the system 2"):
        outcome(SOR(coloring=Coloring([0, 1, 0])), np.eye(2), np.ones(2))
    with pytest.raises(TypeError, match="complex"):
        outcome(SOR(), np.eye(2) + 0j, np.ones(2) + 0j)
    for colors in ([[0]], [0.5], [-1]):
        with pytest.raises(ValueError, match="colors"):
            Coloring(colors)
    with pytest.raises(ValueError, match="grid"):
        linalg.TsallisINF([])
    with pytest.raises(ValueError, match="low must be below high"):
        linalg.ChebCB([1.0], 1.0, 1.0)
    with pytest.raises(ValueError, match="low must be below high"):
        linalg.Binned(linalg.TsallisINF([1.0]), 2.0, 1.0)
    with pytest.raises(ValueError, match="index"):
        linalg.Fixed([1.0], 1)
    args = (lambda c: c, jnp.ones(2), jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="grid must be in"):
        linalg.solve_sequence(*args, linalg.TsallisINF([1.0, 2.0]), jax.random.key(0))
    with pytest.raises(ValueError, match="one length"):
        linalg.solve_sequence(
            args[0], jnp.ones(3), args[2], linalg.TsallisINF([1.0]), jax.random.key(0)
        )


def test_youngs_optimum():
    n = 9
    line = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    best = 2 / (1 + np.sin(np.pi / (n + 1)))
    np.testing.assert_allclose(jax.jit(linalg.optimal_omega)(line), best)
    with pytest.raises(ValueError, match="square"):
        linalg.optimal_omega(jnp.ones((2, 3)))


@pytest.mark.parametrize(
    "name", ["binned", *(pytest.param(n, marks=pytest.mark.slow) for n in ("tsallis", "chebyshev"))]
)
def test_a_policy_learns_from_counts_across_calls_and_failures_cost_the_limit(name):
    """The first relaxation never converges in the limit, the second nearly at once."""
    line = 2 * np.eye(8) - np.eye(8, k=1) - np.eye(8, k=-1)
    omegas = np.array([0.02, 1.5])
    system = lambda c: lx.MatrixLinearOperator(jnp.asarray(line) + c * jnp.eye(8))
    shifts = jnp.linspace(0, 0.1, 60)
    vectors = jnp.ones((60, 8))
    solver = SOR(max_steps=100)

    @eqx.filter_jit
    def run(policy, key, state):
        return linalg.solve_sequence(
            system, shifts, vectors, policy, key, solver=solver, state=state
        )

    policy = {
        "binned": linalg.Binned(linalg.TsallisINF(omegas), 0.0, 0.1, num_bins=1),
        "tsallis": linalg.TsallisINF(omegas),
        "chebyshev": linalg.ChebCB(omegas, 0.0, 0.1),
    }[name]
    first = run(policy, jax.random.key(0), policy.init())
    second = run(policy, jax.random.key(1), first.state)
    counts, actions, converged = map(np.asarray, (first.counts, first.actions, first.converged))
    assert np.all(counts[actions == 0] == 100)
    assert not np.any(converged[actions == 0])
    assert np.all(converged[actions == 1])
    assert np.mean(np.asarray(second.actions)) > 0.8
    again = run(policy, jax.random.key(0), policy.init())
    np.testing.assert_array_equal(again.actions, first.actions)
    diverging = lambda c: lx.MatrixLinearOperator(jnp.array([[1.0, 3.0], [3.0, 1.0]]))
    fixed = linalg.Fixed(omegas, 1)
    spoiled = eqx.filter_jit(lambda *a: linalg.solve_sequence(diverging, *a))(
        shifts[:2], jnp.ones((2, 2)), fixed, jax.random.key(0)
    )
    assert np.all(spoiled.counts == 10_000)
    assert np.all(spoiled.actions == 1)


@pytest.mark.slow
def test_mean_counts_on_shifted_grids():
    """Fixed relaxations and the best of each system, beside counts measured independently."""
    n, num, rng = 10, 3000, np.random.default_rng(0)
    shifts = -0.15 + 0.6 * rng.beta(0.5, 1.5, num)
    bounds = scipy.stats.norm.cdf([-1, 1])
    vectors = scipy.stats.norm.ppf(rng.uniform(*bounds, size=(num, n * n)))
    solver = SOR(rtol=1e-8, coloring=Coloring.red_black((n, n)))

    def product(shift, u):
        p = jnp.pad(u.reshape(n, n), 1)
        near = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:]
        return ((4 + shift) * p[1:-1, 1:-1] - near).reshape(-1)

    @jax.jit
    def mean(omegas):
        def one(given):
            omega, shift, b = given
            relaxed = eqx.tree_at(lambda s: s.omega, solver, omega)
            shape = jax.ShapeDtypeStruct((n * n,), jnp.float64)
            tags = lx.positive_semidefinite_tag
            operator = lx.FunctionLinearOperator(lambda u: product(shift, u), shape, tags)
            return lx.linear_solve(operator, b, relaxed, throw=False).stats["num_steps"]

        return jnp.mean(jax.lax.map(one, (omegas, shifts, vectors)))

    beta = 4 * np.cos(np.pi / (n + 1)) / (4 + shifts)
    best = 1 + (beta / (1 + np.sqrt(np.maximum(1 - beta**2, 0)))) ** 2
    fixed = [np.full(num, omega) for omega in (1, 1.2, 1.4, 1.6, 1.8)]
    found = np.array([mean(omegas) for omegas in (*fixed, best)])
    wanted = np.array([570, 378, 239, 141, 100, 54])
    # Shifts near the singular one make the tail of the counts heavy, which all of them share.
    np.testing.assert_allclose(found[0], wanted[0], rtol=0.2)
    np.testing.assert_allclose(found / found[0], wanted / wanted[0], rtol=0.08)
