"""Jacobian descent, its aggregators, and instance-wise risk minimization."""

import functools

import cvxpy as cp
import jax
import jax.numpy as jnp
import lapack
import numpy as np
import pytest
import scipy.optimize

import jaxopt_ext as jxt
from jaxopt_ext import multiobjective as mo

KEY = jax.random.key(0)
J = np.array([[-4.0, 1, 1], [6, 1, 1]])
VALUES = (
    (mo.UPGrad(), (0.2929, 1.9004, 1.9004)),
    (mo.DualProj(), (0.5563, 1.1109, 1.1109)),
    (mo.MGDA(), (0, 1, 1)),
    (mo.CAGrad(0.5), (0.1835, 1.2041, 1.2041)),
    (mo.IMTLG(), (0.0767, 1, 1)),
    (mo.NashMTL(), (0.0542, 0.7061, 0.7061)),
    (mo.AlignedMTL(), (0.2133, 0.9673, 0.9673)),
    (mo.PCGrad(), (0.5848, 3.8012, 3.8012)),
    (mo.Mean(), (1, 1, 1)),
)
DRAWN = (mo.GradDrop(), None), (mo.RandomWeights(), None)
MAIN = mo.UPGrad, mo.DualProj, mo.PCGrad, mo.Mean, mo.GradDrop
GROUPS = {
    "main": [case for case in (*VALUES, *DRAWN) if isinstance(case[0], MAIN)],
    "others": [case for case in (*VALUES, *DRAWN) if not isinstance(case[0], MAIN)],
}
RULES = [rule for group in GROUPS.values() for rule, _ in group]


def _drawn(seed, size, m, d):
    """Jacobians; every other one with a zero row."""
    rows = np.random.default_rng(seed).normal(size=(size, m, d))
    rows[::2, 1] = 0
    return rows


@functools.partial(jax.jit, static_argnums=1)
def results(x, group):
    """Of the rules of a group, in one program."""
    return [rule(x, KEY) for rule, _ in GROUPS[group]]


def everything(x):
    return [row for group in GROUPS for row in results(x, group)]


FLOAT32 = pytest.param(np.float32, marks=pytest.mark.slow)
EACH_GROUP = pytest.mark.parametrize(
    "group", ["main", pytest.param("others", marks=pytest.mark.slow)]
)


@pytest.mark.parametrize("dtype", [np.float64, FLOAT32])
@pytest.mark.parametrize("group", GROUPS)
def test_values_of_the_paper_s_library(group, dtype):
    found = results(J.astype(dtype), group)
    for (rule, wanted), row in zip(GROUPS[group], found, strict=True):
        assert row.dtype == dtype
        if wanted is not None:
            np.testing.assert_allclose(row, wanted, atol=1e-4, err_msg=repr(rule))


@EACH_GROUP
def test_nan_stays_visible(group):
    spoiled = J.copy()
    spoiled[0, 1] = np.nan
    for (rule, _), row in zip(GROUPS[group], results(spoiled, group), strict=True):
        assert np.any(np.isnan(row)), rule


@pytest.mark.slow
def test_projections_equal_those_by_nonnegative_least_squares():
    """The nearest point of a cone is what is left of a row by its polar cone."""
    rows = np.random.default_rng(1).normal(size=(5, 8))
    total = np.mean([row + rows.T @ scipy.optimize.nnls(rows.T, -row)[0] for row in rows], axis=0)
    found = mo.UPGrad(norm_eps=0, reg_eps=1e-11)(jnp.asarray(rows))
    np.testing.assert_allclose(found, total, atol=1e-7)


@pytest.mark.slow
def test_upgrad_does_not_conflict_and_is_linear_under_scaling():
    rule = mo.UPGrad(norm_eps=0, reg_eps=1e-12)
    rows = _drawn(2, 200, 5, 8)
    rng = np.random.default_rng(3)
    one, two = rng.uniform(0.1, 2, (2, 200, 5, 1))
    upgrad = jax.jit(jax.vmap(rule))
    update = upgrad(rows)
    assert np.min(np.einsum("nmd,nd->nm", rows, update)) >= -1e-6
    both, first, second = map(
        np.asarray, map(upgrad, ((one + 2 * two) * rows, one * rows, two * rows))
    )
    np.testing.assert_allclose(both, first + 2 * second, atol=1e-8)


@pytest.mark.slow
def test_rules_look_at_rows_as_they_should():
    """Permutation, rotation, zero rows, a pytree, none of which draws twice the same for rules that
    draw: those are left out but for zero rows."""
    rows = _drawn(4, 12, 5, 8)
    order = np.array([3, 1, 4, 0, 2])
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    fixed = [rule for rule, _ in VALUES if not isinstance(rule, mo.PCGrad)]
    fixed += [mo.AlignedMTL(mo.lower_median), mo.AlignedMTL(mo.root_mean_square)]
    stack = np.stack([rows, rows[:, order], rows @ turn])

    @jax.jit
    @jax.vmap
    @jax.vmap
    def run(x):
        tree = {"a": x[:, :3], "b": x[:, 3:].reshape(5, 1, 5)}
        out = [rule(tree, KEY) for rule in (*fixed, mo.PCGrad(), mo.GradDrop())]
        return [jnp.concatenate([part["a"], part["b"][0]]) for part in out]

    found = run(stack)
    assert all(np.all(np.isfinite(part)) for part in found)
    for rule, (plain, permuted, rotated) in zip(fixed, found[: len(fixed)], strict=True):
        # The tolerance of Frank-Wolfe is on its step.
        atol = 2e-2 if isinstance(rule, mo.MGDA) else 1e-6
        np.testing.assert_allclose(permuted, plain, atol=atol, err_msg=repr(rule))
        np.testing.assert_allclose(rotated, plain @ turn, atol=atol, err_msg=repr(rule))


@pytest.mark.slow
def test_cagrad_is_the_best_in_its_ball():
    """The worst inner product with a gradient equals that found by cvxpy."""
    for seed, c in ((0, 0.3), (1, 0.8), (2, 1.5)):
        rows = np.random.default_rng(seed).normal(size=(4, 6))
        mean = rows.mean(axis=0)
        d, s = cp.Variable(6), cp.Variable()
        ball = cp.norm(d - mean) <= c * np.linalg.norm(mean)
        cp.Problem(cp.Maximize(s), [rows @ d >= s, ball]).solve(
            solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10
        )
        found = np.asarray(mo.CAGrad(c)(jnp.asarray(rows)))
        np.testing.assert_allclose(found, d.value, atol=1e-5)
    np.testing.assert_allclose(mo.CAGrad(0)(jnp.asarray(rows)), mean, atol=1e-12)
    assert np.all(mo.CAGrad(1.2)(jnp.asarray([[1.0, 2], [-1, -2], [1, 1]])) == 0)


@pytest.mark.slow
def test_pcgrad_equals_a_loop_over_all_orders():
    """Of three rows a random order of the other two is one of two, for each row."""
    rows = np.random.default_rng(7).normal(size=(3, 3))
    rows[1] -= rows[0]
    rows[2] -= rows[1] + rows[0]

    def project(i, order):
        v = rows[i].copy()
        for j in order:
            if v @ rows[j] < 0:
                v -= v @ rows[j] / (rows[j] @ rows[j]) * rows[j]
        return v

    choices = [
        [project(i, o) for o in ([j, k], [k, j])] for i, j, k in ((0, 1, 2), (1, 0, 2), (2, 0, 1))
    ]
    sums = np.array([a + b + c for a in choices[0] for b in choices[1] for c in choices[2]])
    found = jax.vmap(lambda key: mo.PCGrad()(jnp.asarray(rows), key))(jax.random.split(KEY, 64))
    gaps = np.abs(np.asarray(found)[:, None] - sums).max(axis=2)
    assert gaps.min(axis=1).max() < 1e-12
    assert len(set(gaps.argmin(axis=1))) > 1


@pytest.mark.slow
def test_graddrop_keeps_one_sign_with_its_probability():
    rows = jnp.asarray([[3.0, -1, 0, 2], [-1, -2, 0, -2]])
    keys = jax.random.split(KEY, 4000)
    found = np.asarray(jax.jit(jax.vmap(lambda key: mo.GradDrop()(rows, key)))(keys))
    assert set(found[:, 0]) == {3.0, -1.0}
    assert abs(np.mean(found[:, 0] == 3) - 0.75) < 0.04
    assert set(found[:, 1]) == {-3.0}
    assert set(found[:, 2]) == {0.0}
    assert abs(np.mean(found[:, 3] == 2) - 0.5) < 0.04


def test_one_objective_is_gradient_descent():
    fun = lambda x: jnp.sum((x - jnp.arange(3.0)) ** 4)
    problem = jxt.MultiObjective(lambda x: fun(x)[None])
    slope = jax.jit(jax.grad(fun))
    x = np.ones(3)
    for _ in range(20):
        x = x - 0.01 * np.asarray(slope(x))
    solver = mo.JacobianDescent(step_size=0.01, tol=0.0, max_steps=20)
    np.testing.assert_array_equal(jxt.solve(problem, solver, jnp.ones(3)).value, x)


@pytest.mark.slow
def test_one_row_comes_back_from_all():
    row = jnp.asarray([[1.0, -2.0, 3.0]])
    for rule, found in zip(RULES, everything(row), strict=True):
        wanted = {mo.CAGrad: 1.5 * row[0], mo.NashMTL: row[0] / np.sqrt(14)}.get(type(rule), row[0])
        np.testing.assert_allclose(found, wanted, rtol=1e-9)


def _descend(rule, objectives, start, step_size, steps):
    solver = mo.JacobianDescent(rule, step_size, tol=0.0, max_steps=steps)
    return np.asarray(jxt.solve(jxt.MultiObjective(objectives), solver, jnp.asarray(start)).value)


@pytest.mark.slow
def test_elementwise_quadratic():
    """Of (x1^2, x2^2) / 2 each coordinate is an objective's own: UPGrad is as fast as the gradient
    of each, others are not, or stop where nothing is optimal."""
    start = np.array([3.0, -2.0])
    np.testing.assert_allclose(
        _descend(mo.UPGrad(norm_eps=1e-9, reg_eps=1e-7), lambda x: x**2, start, 0.075, 50),
        start * (1 - 0.075) ** 50,
        rtol=1e-5,
    )
    assert _descend(mo.MGDA(), lambda x: x**2, start, 0.075, 50)[0] > 2
    x = _descend(mo.IMTLG(), lambda x: x**2, start, 0.15, 50)
    np.testing.assert_allclose(x, [1, 0], atol=0.05)


@pytest.mark.slow
def test_a_schedule_and_a_subset_of_the_objectives():
    """Stochastic sub-Jacobian descent with a step that falls reaches a common minimizer."""
    centers = jnp.asarray(2 * np.linalg.qr(np.random.default_rng(0).normal(size=(6, 3)))[0])
    pull = lambda x: 0.5 * (centers @ (x - jnp.arange(3.0))) ** 2
    schedule = lambda step: 0.2 / (1 + step / 200)
    solver = mo.JacobianDescent(step_size=schedule, subset=2, max_steps=800)
    found = jxt.solve(jxt.MultiObjective(pull), solver, jnp.zeros(3), key=KEY)
    assert found.status == jxt.Status.step_limit
    np.testing.assert_allclose(found.value, np.arange(3), atol=1e-3)


def _network(params, sample):
    x, y = sample
    hidden = jnp.tanh(params["first"] @ x + params["shift"])
    return 0.5 * (params["second"] @ hidden - y) ** 2


def _task(b):
    rng = np.random.default_rng(0)
    params = {
        "first": rng.normal(size=(4, 3)),
        "shift": rng.normal(size=4),
        "second": rng.normal(size=4),
    }
    return params, (rng.normal(size=(b, 3)), rng.normal(size=b))


@pytest.mark.slow
def test_the_gramian_path_equals_that_of_the_jacobian():
    params, batch = _task(7)
    jacobian = jax.vmap(jax.grad(_network), (None, 0))(params, batch)
    flat = np.concatenate([np.reshape(a, (7, -1)) for a in jax.tree.leaves(jacobian)], axis=1)
    wanted = mo.UPGrad()(jacobian)

    @jax.jit
    def run(params, batch):
        return [
            (
                mo.gramian(_network, params, batch, chunk),
                mo.aggregated_grad(_network, params, batch, mo.UPGrad(), chunk=chunk),
            )
            for chunk in (None, 3)
        ]

    for G, update in run(params, batch):
        np.testing.assert_allclose(G, flat @ flat.T, rtol=1e-9, atol=1e-12)
        for a, b in zip(jax.tree.leaves(update), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_the_gramian_path_stores_no_jacobian():
    b, d = 64, 20_000
    loss = lambda w, x: jnp.sum(jnp.sin(w * x))
    w, x = jnp.zeros(d), jnp.zeros((b, d))
    memory = lambda chunk: (
        jax.jit(lambda w, x: mo.gramian(loss, w, x, chunk))
        .lower(w, x)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )
    assert memory(4) < 0.25 * memory(None)


@pytest.mark.always(1)
@pytest.mark.parametrize(
    "rule",
    [mo.UPGrad(), mo.CAGrad(), mo.NashMTL(), mo.AlignedMTL()],
    ids=lambda r: type(r).__name__,
)
def test_factorizations_run_one_behind_the_other(rule):
    problem = jxt.MultiObjective(lambda x: jnp.stack([jnp.sum(x**2), jnp.sum((x - 1) ** 2)]))
    solver = mo.JacobianDescent(rule)
    one = lambda x: solver.step(problem, x, solver.init(problem, x, KEY))
    assert not lapack.side_by_side(jax.make_jaxpr(jax.vmap(one))(np.zeros((4, 3))))


@pytest.mark.slow
def test_convex_quadratic_pair_ends_on_the_pareto_set():
    def turned(angle, scales):
        c, s = np.cos(angle), np.sin(angle)
        B = np.array([[c, -s], [s, c]]) @ np.diag(scales)
        return B @ B.T

    H = turned(np.pi / 16, [1, 0.1]), turned(-np.pi / 16, [np.sqrt(3), 0.1])
    u = np.array([1.0, 0]), np.array([-1.0, 0])
    pair = lambda x: jnp.stack([(x - c) @ M @ (x - c) for c, M in zip(u, H, strict=True)])

    def distance(x):
        def front(t):
            M = t * H[0] + (1 - t) * H[1]
            return np.linalg.solve(M, t * H[0] @ u[0] + (1 - t) * H[1] @ u[1])

        gap = lambda t: np.linalg.norm(front(t) - x)
        coarse = min(np.linspace(0, 1, 1001), key=gap)
        bounds = max(coarse - 1e-3, 0), min(coarse + 1e-3, 1)
        return scipy.optimize.minimize_scalar(gap, bounds=bounds, method="bounded").fun

    def far(rule):
        return distance(_descend(rule, pair, np.array([-1.0, 7.0]), 0.05, 500))

    upgrad = far(mo.UPGrad(norm_eps=1e-9, reg_eps=1e-7))
    others = [mo.Mean(), mo.DualProj(norm_eps=1e-9, reg_eps=1e-7), mo.MGDA(), mo.AlignedMTL()]
    assert upgrad < 0.2 * min(map(far, others))


def test_bad_arguments_are_refused():
    for build, match in (
        (lambda: mo.CAGrad(-0.1), "c must be non-negative"),
        (lambda: mo.UPGrad(jnp.asarray([1.0, -1.0])), "preference must be non-negative"),
        (lambda: mo.DualProj(jnp.ones((2, 2))), r"preference must have shape \(m,\)"),
        (lambda: mo.UPGrad(jnp.ones(3))(jnp.asarray(J)), r"shape \(3,\) for 2 objectives"),
        (lambda: mo.UPGrad(reg_eps=-1.0), "reg_eps"),
        (lambda: mo.NashMTL(-1.0), "max_norm"),
        (lambda: mo.MGDA(max_iters=0), "max_iters"),
        (lambda: mo.UPGrad()(jnp.ones((0, 3))), "must have rows"),
        (lambda: mo.PCGrad()(jnp.asarray(J)), "give it a key"),
        (lambda: mo.GradDrop()(jnp.asarray(J)), "give it a key"),
        (lambda: mo.JacobianDescent(step_size=0.0), "step_size"),
        (lambda: mo.JacobianDescent(subset=0), "subset"),
        (lambda: mo.gramian(_network, *_task(3), chunk=0), "chunk"),
    ):
        with pytest.raises(ValueError, match=match):
            build()
    problem = jxt.MultiObjective(lambda x: x**2)
    with pytest.raises(ValueError, match="at most 2 objectives, got 3"):
        jxt.solve(problem, mo.JacobianDescent(subset=3), jnp.ones(2))
    with pytest.raises(TypeError, match="aggregator"):
        mo.JacobianDescent(aggregator=jnp.mean)
    with pytest.raises(TypeError, match="aggregator"):
        mo.aggregated_grad(_network, *_task(3), mo.GradDrop(), KEY)
    with pytest.raises(TypeError, match="signs"):
        mo.GradDrop()(jnp.asarray(J) + 1j, KEY)
