"""A solve is a JAX function: values and derivatives in every context equal those of plain calls.

A problem type joins by one line of `SOLVERS`, with its case in `problems.py`; a solver by its row
in the catalogue.
"""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import optimizer_task as task
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from newton import Newton
from problems import ALIKE, CASES

import jaxopt_ext as jxt
from jaxopt_ext import catalog, prox
from jaxopt_ext.minimize import FISTA, FixedStep, ProximalGradient

FIRST_ORDER = FISTA(tol=1e-11, max_steps=20_000)
EXTRAGRADIENT = jxt.games.Extragradient(tol=1e-11)
INTERIOR_POINT = jxt.minimize.InteriorPoint(tol=1e-8)
SOLVERS = {
    jxt.Smooth: FIRST_ORDER,
    jxt.Composite: FIRST_ORDER,
    jxt.Constrained: FIRST_ORDER,
    jxt.FixedPoint: jxt.fixed_point.Anderson(tol=1e-11),
    jxt.Feedforward: jxt.fixed_point.Jacobi(tol=1e-11),
    jxt.RootFinding: jxt.adapters.Optimistix(optx.Newton(rtol=1e-12, atol=1e-12), tol=1e-9),
    jxt.LeastSquares: jxt.adapters.Optax(
        optax.lbfgs(linesearch=jxt.minimize.wolfe_line_search()), tol=1e-10
    ),
    jxt.Saddle: jxt.splitting.PrimalDualHybridGradient(tol=1e-10, max_steps=20_000),
    jxt.Splitting: jxt.splitting.ADMM(tol=1e-10, max_steps=20_000),
    jxt.QuadraticProgram: jxt.splitting.OSQP(tol=1e-10),
    jxt.FiniteSum: Newton(),
    jxt.Expectation: Newton(),
    jxt.EqualityConstrained: Newton(),
    jxt.NonlinearProgram: Newton(),
    jxt.BoundedRootFinding: Newton(),
    jxt.Fractional: Newton(),
    jxt.MultiObjective: Newton(),
    jxt.LinearProgram: INTERIOR_POINT,
    jxt.SecondOrderConeProgram: INTERIOR_POINT,
    jxt.LinearMatrixInequality: INTERIOR_POINT,
    jxt.VariationalInequality: EXTRAGRADIENT,
    jxt.Inclusion: EXTRAGRADIENT,
    jxt.MinMax: EXTRAGRADIENT,
    jxt.Game: EXTRAGRADIENT,
    jxt.FiniteSumInclusion: EXTRAGRADIENT,
    jxt.Bilevel: Newton(),
    jxt.StochasticBilevel: Newton(),
    jxt.MultiBlockBilevel: Newton(),
}
KINDS = [pytest.param(k, marks=pytest.mark.slow if k in ALIKE else ()) for k in SOLVERS]
NOT_IN_SHARD_MAP = {
    jxt.RootFinding: "its solvers are those of optimistix, which do not trace there",
}
SCALES = (1.0, 1.1, 0.9, 1.05)
SHIFT = 0.02


class Family:
    """Four problems of a type that share the leaf `shift`, scored by one number."""

    def __init__(self, kind, solver):
        self.case, self.solver = CASES[kind], solver
        self.thetas = jnp.asarray(self.case.theta) * jnp.asarray(SCALES)[:, None]

    def solution(self, theta, shift, start=None, **options):
        start = self.case.start(theta.dtype) if start is None else start
        problem = self.case.build(theta * (1 + shift))
        return jxt.solve(problem, self.solver, start, **options)

    def score(self, value):
        primal = self.case.primal(value)
        return jnp.sum(jnp.sin(jnp.arange(1, 1 + primal.size, dtype=primal.dtype) * primal))

    def one(self, theta, shift, **options):
        return self.score(self.solution(theta, shift, **options).value)

    def total(self, thetas, shift, **options):
        return jnp.sum(jax.vmap(lambda theta: self.one(theta, shift, **options))(thetas))


@functools.cache
def family(kind):
    return Family(kind, SOLVERS[kind])


@functools.cache
def plain(kind):
    """Scores, derivatives by the own leaf, and by the shared one, each by a call of its own."""
    f = family(kind)
    one = jax.jit(jax.value_and_grad(f.one))
    values, slopes = zip(*(one(theta, SHIFT) for theta in f.thetas), strict=True)
    slopes = np.stack(slopes)
    along = np.sum(slopes * np.asarray(f.thetas), axis=1) / (1 + SHIFT)
    step = 1e-4
    behind, ahead = (
        sum(np.vdot(one(theta, SHIFT + s)[1], theta) / (1 + SHIFT + s) for theta in f.thetas)
        for s in (-step, step)
    )
    return np.stack(values), slopes, along, (ahead - behind) / (2 * step)


@functools.cache
def inside(kind, contexts):
    """Contexts that need no mesh, in one program."""
    f = family(kind)
    return jax.jit(lambda t, s: {c: CONTEXTS[c](f, t, s) for c in contexts})(f.thetas, SHIFT)


def _values_of_a_vmap(f, thetas, shift):
    return jax.vmap(lambda theta: f.one(theta, shift))(thetas)


def _gradient_of_a_vmap(f, thetas, shift):
    return jax.grad(f.total, argnums=(0, 1))(thetas, shift)


def _vmap_of_a_gradient(f, thetas, shift):
    return jax.vmap(jax.grad(f.one), in_axes=(0, None))(thetas, shift)


def _jvp(f, thetas, shift):
    return jax.jvp(f.total, (thetas, shift), (jnp.zeros_like(thetas), jnp.ones_like(shift)))[1]


def _hessian_of_a_vmap(f, thetas, shift):
    return jax.hessian(f.total, argnums=1)(thetas, shift)


def _scan(f, thetas, shift):
    """Warm starts: each problem from the solution of the last."""

    def total(shift):
        def visit(start, theta):
            value = f.solution(theta, shift, start).value
            return value, f.score(value)

        first = f.solution(thetas[0], shift).value
        return jnp.sum(jax.lax.scan(visit, first, thetas)[1])

    return jax.grad(total)(shift)


def _cond(f, thetas, shift):
    branch = lambda shift: jax.lax.cond(shift > 0, lambda s: f.one(thetas[0], s), jnp.sin, shift)
    return jax.grad(branch)(shift)


def _checkpoint(f, thetas, shift):
    return jax.grad(jax.checkpoint(lambda s: f.one(thetas[0], s)))(shift)


def _vmap_over_starts(f, thetas, shift):
    starts = jax.vmap(lambda theta: f.solution(theta, shift).value)(thetas)
    one = lambda start: f.score(f.solution(thetas[0], shift, start).value)
    return jax.vmap(one)(starts)


def _vmap_over_a_field(f, thetas, shift):
    def one(tol):
        solver = dataclasses.replace(f.solver, tol=tol)
        problem = f.case.build(thetas[0] * (1 + shift))
        return f.score(jxt.solve(problem, solver, f.case.start(thetas.dtype)).value)

    return jax.vmap(one)(f.solver.tol * jnp.array([1.0, 3.0]))


CONTEXTS = {
    "vmap": _values_of_a_vmap,
    "gradient of vmap": _gradient_of_a_vmap,
    "vmap of gradient": _vmap_of_a_gradient,
    "jvp": _jvp,
    "hessian of vmap": _hessian_of_a_vmap,
    "scan": _scan,
    "cond": _cond,
    "checkpoint": _checkpoint,
    "vmap over starts": _vmap_over_starts,
    "vmap over a field": _vmap_over_a_field,
}


def wanted(kind, context):
    values, slopes, along, curvature = plain(kind)
    own = slopes  # by theta, at theta (1 + shift)
    return {
        "vmap": values,
        "gradient of vmap": (own, np.sum(along)),
        "vmap of gradient": own,
        "jvp": np.sum(along),
        "hessian of vmap": curvature,
        "scan": np.sum(along),
        "cond": along[0],
        "checkpoint": along[0],
        "vmap over starts": np.full(len(SCALES), values[0]),
        "vmap over a field": np.full(2, values[0]),
    }[context]


def agree(found, expected, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 1e-6} | tolerance
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


FIRST = ("gradient of vmap",)
REST = tuple(context for context in CONTEXTS if context not in FIRST)


def check_contexts(kind, contexts):
    for context in contexts:
        loose = {"rtol": 1e-3, "atol": 1e-3} if context == "hessian of vmap" else {}
        agree(inside(kind, contexts)[context], wanted(kind, context), err_msg=context, **loose)


@pytest.mark.parametrize("kind", KINDS)
def test_in_batches_with_a_shared_leaf(kind):
    check_contexts(kind, FIRST)


@pytest.mark.parametrize("kind", [jxt.Composite])
def test_in_other_transformations(kind):
    check_contexts(kind, REST)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in SOLVERS if kind is not jxt.Composite])
def test_in_other_transformations_too(kind):
    check_contexts(kind, REST)


def test_every_problem_type_is_here():
    abstract = jxt.AbstractProblem
    public = {getattr(jxt, name) for name in jxt.core.__all__}
    kinds = {k for k in public if isinstance(k, type) and issubclass(k, abstract)}
    assert {kind for kind in kinds if not inspect.isabstract(kind)} == set(SOLVERS)


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((4,), ("i",), axis_types=(kind,))


def over_devices(f, thetas, shift, check, derivative):
    """Score and derivatives with a problem on each device, taken outside or inside of the map."""
    specs = {"mesh": mesh(), "in_specs": (P("i"), P()), "check_vma": check}

    def total(thetas, shift):
        per_device = jax.shard_map(
            lambda theta, shift: f.one(theta[0], shift)[None], out_specs=P("i"), **specs
        )
        return jnp.sum(per_device(thetas, shift))

    def within(theta, shift):
        own, shared = jax.grad(lambda t, s: f.one(t[0], s), argnums=(0, 1))(theta, shift)
        # A leaf that is the same everywhere: with the check on its derivative is summed already.
        return own, shared if check else jax.lax.psum(shared, "i")

    if derivative == "outside":
        return jax.value_and_grad(total, argnums=(0, 1))(thetas, shift)
    return jax.shard_map(within, out_specs=(P("i"), P()), **specs)(thetas, shift)


@pytest.mark.parametrize("kind", KINDS)
def test_in_shard_map(kind):
    check_devices(kind, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOLVERS)
def test_in_shard_map_without_its_check(kind):
    check_devices(kind, check=False)


def check_devices(kind, check):
    if kind in NOT_IN_SHARD_MAP:
        pytest.skip(NOT_IN_SHARD_MAP[kind])
    f = family(kind)

    @jax.jit
    def run(thetas, shift):
        return tuple(over_devices(f, thetas, shift, check, d) for d in ("outside", "inside"))

    values, slopes, along, _ = plain(kind)
    (total, outside), within = run(f.thetas, SHIFT)
    agree(total, np.sum(values))
    agree(outside, (slopes, np.sum(along)))
    agree(within, (slopes, np.sum(along)))


STANDS_FOR = {jxt.AbstractInclusion: jxt.VariationalInequality}
SOLVER_ROWS = [
    pytest.param(row, next(k for k in CASES if k in row.example().problems), id=row.name)
    for row in catalog.rows(catalog.SolverRow)
]


@pytest.mark.slow
@pytest.mark.parametrize(("row", "kind"), SOLVER_ROWS)
def test_every_solver_in_shard_map_and_under_the_gradient_of_a_vmap(row, kind):
    if row.reason("shard_map"):
        pytest.skip(row.reason("shard_map"))
    kind = STANDS_FOR.get(kind, kind)
    solver = dataclasses.replace(row.example(), tol=1e-5)
    f = Family(kind, solver)

    @jax.jit
    def run(thetas, shift):
        vmapped = jax.value_and_grad(f.total, argnums=(0, 1))(thetas, shift)
        return vmapped, over_devices(f, thetas, shift, True, "outside")

    batch, spread = run(f.thetas, SHIFT)
    agree(spread, batch, rtol=1e-3, atol=1e-3)
    values, slopes, along, _ = plain(kind)
    if not {"oracle", "gradient"} & set(row.opt_outs):  # it reaches this tolerance
        agree(batch, (np.sum(values), (slopes, np.sum(along))), rtol=2e-2, atol=2e-2)


ADJOINTS = {
    "one step": (jxt.OneStepAdjoint(), ProximalGradient(FixedStep(0.5), tol=1e-12)),
    "unrolled": (jxt.UnrolledAdjoint(), FISTA(tol=1e-12, max_steps=300)),
    "implicit, matrix-free": (
        jxt.ImplicitAdjoint(jxt.LeastSquaresFallback(dense_size=0)),
        FIRST_ORDER,
    ),
}


@pytest.mark.parametrize("name", ADJOINTS)
def test_every_adjoint(name):
    """Batches, devices and one by one: the same numbers; the exact ones where they are exact."""
    adjoint, solver = ADJOINTS[name]
    f = Family(jxt.Composite, solver)
    f.one = functools.partial(Family.one, f, adjoint=adjoint)
    grad = jax.grad(f.total, argnums=(0, 1))

    @jax.jit
    def run(thetas, shift):
        _, spread = over_devices(f, thetas, shift, True, "outside")
        return grad(thetas, shift), spread, over_devices(f, thetas, shift, True, "inside")

    one = jax.jit(jax.grad(f.one, argnums=(0, 1)))
    own, shared = zip(*(one(theta, SHIFT) for theta in f.thetas), strict=True)
    loop = np.stack(own), np.sum(shared)
    for found in run(f.thetas, SHIFT):
        agree(found, loop)
    if name != "one step":
        _, slopes, along, _ = plain(jxt.Composite)
        agree(loop, (slopes, np.sum(along)))


RNG = np.random.default_rng(5)
X = jnp.asarray(RNG.normal(size=(40, 6)))
Y = jnp.asarray(RNG.normal(size=40))
LAM = jnp.asarray(0.05)


def lasso(lam, X, y, loss=None):
    loss = jxt.objectives.SquaredLoss(X, y) if loss is None else loss
    problem = jxt.Composite(loss, prox.L1(lam))
    return jxt.solve(problem, FIRST_ORDER, jnp.zeros(X.shape[1], X.dtype)).value


@functools.cache
def plain_lasso():
    score = lambda lam, X, y: jnp.sum(jnp.sin(lasso(lam, X, y)))
    return lasso(LAM, X, Y), jax.jit(jax.grad(score, argnums=(0, 1)))(LAM, X, Y)


def test_a_psum_in_the_objective_gives_one_solution_on_all_devices():
    def fit(lam, X, y):
        def loss(w):
            return jax.lax.psum(jnp.sum((X @ w - y) ** 2), "i") / 80

        return lasso(lam, X, y, loss)

    def within(lam, X, y):
        value = fit(lam, X, y)
        return value, jax.grad(lambda *args: jnp.sum(jnp.sin(fit(*args))), argnums=(0, 1))(
            lam, X, y
        )

    spread = jax.shard_map(
        within,
        mesh=mesh(),
        in_specs=(P(), P("i"), P("i")),
        out_specs=(P(), (P(), P("i"))),  # the solution is the same everywhere, and is known to be
    )
    agree(jax.jit(spread)(LAM, X, Y), plain_lasso())


def test_a_psum_in_the_objective_raises_without_the_check():
    """JAX's gradient of it is each device's own part there, times the number of devices."""
    total = lambda w, X: jax.lax.psum(jnp.sum((X @ w) ** 2), "i")

    def spread(fun, check):
        return jax.shard_map(
            lambda X: fun(X)[None], mesh=mesh(), in_specs=P("i"), out_specs=P("i"), check_vma=check
        )(X)

    slope = lambda X: jax.grad(total)(jnp.ones(6), X)
    parts = jax.vmap(lambda X: 2 * X.T @ X @ jnp.ones(6))(X.reshape(4, 10, 6))
    agree(spread(slope, True), np.tile(np.sum(parts, axis=0), (4, 1)))
    agree(spread(slope, False), 4 * parts)
    solved = lambda X: (
        jxt.solve(jxt.Smooth(lambda w: total(w - 1, X)), FIRST_ORDER, jnp.zeros(6)).value
    )
    agree(spread(solved, True), np.ones((4, 6)))
    with pytest.raises(ValueError, match="check_vma"):
        spread(solved, False)


@pytest.mark.always(1)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_on_sharded_data(kind):
    """Rows over devices, a solve in `jit`; and a batch of problems over devices."""
    devices = mesh(kind)
    f = family(jxt.Composite)
    score = lambda lam, X, y: jnp.sum(jnp.sin(lasso(lam, X, y)))
    with jax.set_mesh(devices):
        rows = NamedSharding(devices, P("i"))
        place = functools.partial(jax.device_put, device=rows)
        value = jax.jit(lasso)(LAM, place(X), place(Y))
        slope = jax.jit(jax.grad(score, argnums=(0, 1)))(LAM, place(X), place(Y))
        agree((value, slope), plain_lasso())
        assert slope[1].sharding.is_equivalent_to(rows, 2) or kind is AxisType.Auto
        if kind is AxisType.Explicit:
            return  # JAX 0.10 cannot batch a while_loop over an axis that is cut explicitly
        found = jax.jit(jax.grad(f.total, argnums=(0, 1)))(place(f.thetas), SHIFT)
    _, slopes, along, _ = plain(jxt.Composite)
    agree(found, (slopes, np.sum(along)))


@pytest.mark.always(1)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_variables_over_devices(kind):
    """The point itself is cut, and with it all that the solver and the adjoint carry."""
    devices = mesh(kind)
    target, weight = jnp.arange(8.0) - 3.5, jnp.asarray(0.5)
    free = jxt.ImplicitAdjoint(jxt.LeastSquaresFallback(dense_size=0))

    def solved(target, weight, start):
        problem = jxt.Composite(lambda w: 0.5 * jnp.sum((w - target) ** 2), prox.L1(weight))
        return jxt.solve(problem, FIRST_ORDER, start, adjoint=free).value

    exact = lambda target, weight: jnp.sign(target) * jnp.maximum(jnp.abs(target) - weight, 0)
    with jax.set_mesh(devices):
        cut = NamedSharding(devices, P("i"))
        start, target = (jax.device_put(a, cut) for a in (jnp.zeros(8), target))
        value = jax.jit(solved)(target, weight, start)
        slope = jax.jit(jax.grad(lambda t, w: jnp.sum(solved(t, w, start) ** 2), argnums=(0, 1)))
        found = slope(target, weight)
    agree(value, exact(np.asarray(target), 0.5))
    expected = jax.grad(lambda t, w: jnp.sum(exact(t, w) ** 2), argnums=(0, 1))
    agree(found, expected(jnp.asarray(np.asarray(target)), weight))
    assert value.sharding.is_equivalent_to(cut, 1)


@pytest.mark.slow
def test_in_pmap():
    f = family(jxt.Composite)
    run = jax.pmap(jax.value_and_grad(f.one), in_axes=(0, None), devices=jax.devices()[:4])
    values, slopes, _, _ = plain(jxt.Composite)
    agree(run(f.thetas, SHIFT), (values, slopes))


CONIC = (jxt.LinearProgram, jxt.SecondOrderConeProgram, jxt.LinearMatrixInequality)


@pytest.mark.always(1)
@pytest.mark.parametrize("kind", [jxt.Composite, jxt.QuadraticProgram, *CONIC])
def test_exported_and_back(kind):
    f = family(kind)
    fun = jax.jit(jax.value_and_grad(f.one))
    blob = jax.export.export(fun)(f.thetas[0], jnp.asarray(SHIFT)).serialize()
    found = jax.export.deserialize(blob).call(f.thetas[0], jnp.asarray(SHIFT))
    values, slopes, _, _ = plain(kind)
    agree(found, (values[0], slopes[0]))


def test_under_debug_nans_and_eagerly():
    f = family(jxt.Composite)
    values, slopes, _, _ = plain(jxt.Composite)
    with jax.debug_nans(True):
        agree(jax.value_and_grad(f.one)(f.thetas[0], SHIFT), (values[0], slopes[0]))


def test_single_precision_where_double_is_enabled():
    """In a batch, on devices, and their gradients: nothing is promoted, and it is near."""
    f = family(jxt.Composite)
    f = Family(jxt.Composite, dataclasses.replace(f.solver, tol=1e-5))
    thetas, shift = f.thetas.astype(jnp.float32), jnp.float32(SHIFT)

    @jax.jit
    def run(thetas, shift):
        batch = jax.value_and_grad(f.total, argnums=(0, 1))(thetas, shift)
        return batch, over_devices(f, thetas, shift, True, "outside")

    values, slopes, along, _ = plain(jxt.Composite)
    for found in run(thetas, shift):
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
        agree(found, (np.sum(values), (slopes, np.sum(along))), rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_estimators_fit_on_each_device():
    X, y = RNG.normal(size=(4, 10, 3)), (RNG.normal(size=(4, 10)) > 0) * 1.0
    model = jxt.estimators.GeneralizedLinearModel(
        jxt.estimators.Binary(), prox.L2Squared(jnp.asarray(0.05))
    )
    fit = lambda X, y: model.fit(X, y).coef
    specs = {"mesh": mesh(), "in_specs": (P("i"), P("i")), "out_specs": P("i")}
    spread = jax.jit(jax.shard_map(lambda X, y: fit(X[0], y[0])[None], **specs))
    agree(spread(X, y), np.stack([jax.jit(fit)(*part) for part in zip(X, y, strict=True)]))


@pytest.mark.always(3)
@pytest.mark.parametrize(
    "row", [pytest.param(r, id=r.name) for r in catalog.rows(catalog.SamplerRow)]
)
def test_samplers_run_on_each_device(row):
    diffusion = jxt.diffusion
    schedule = diffusion.VarianceExploding()
    times = np.geomspace(schedule.start, schedule.end, 7)
    noise, means = jnp.asarray(RNG.normal(size=2)), jnp.asarray(RNG.normal(size=(4, 2)))

    def one(noise, mean):
        model = diffusion.Denoiser(lambda x, node: 0.1 * (x - mean))
        key = jax.random.key(1)
        return diffusion.sample(model, row.example(), schedule, times, noise, key=key).value

    # The start is the same on all devices, what the model closes over is not.
    specs = {"mesh": mesh(), "in_specs": (P(), P("i")), "out_specs": P("i")}
    spread = jax.shard_map(lambda n, m: one(n, m[0])[None], **specs)
    each = jax.vmap(one, in_axes=(None, 0))
    loss = lambda run: jax.value_and_grad(lambda n: jnp.sum(jnp.sin(run(n, means))))
    agree(jax.jit(loss(spread))(noise), jax.jit(loss(each))(noise))


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", [pytest.param(r, id=r.name) for r in catalog.rows(catalog.OptimizerRow)]
)
def test_optimizers_step_on_each_device(row):
    if row.reason("shard_map"):
        pytest.skip(row.reason("shard_map"))
    params = task.tree(0, jnp.float64)
    tx = row.transformation(params)
    targets = jax.tree.map(lambda *a: jnp.stack(a), *(task.tree(i, jnp.float64) for i in range(4)))

    def one(target):
        start = jax.tree.map(lambda p, t: p + 0 * t, params, target)  # the device's own
        return task.run(tx, row, task.Parabola(target, 0.1), start, 3)[0]

    specs = {"mesh": mesh(), "in_specs": P("i"), "out_specs": P("i")}
    alone = lambda target: jax.tree.map(
        lambda a: a[None], one(jax.tree.map(lambda a: a[0], target))
    )
    found = jax.jit(jax.shard_map(alone, **specs))(targets)
    each = [jax.jit(one)(jax.tree.map(lambda a: a[i], targets)) for i in range(4)]  # noqa: B023
    agree(found, jax.tree.map(lambda *a: np.stack(a), *each))
