"""Convex programs of networks against cvxpy, their parts against dense linear algebra."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_ext as jxt
from jaxopt_ext.training import (
    BlockUpdate,
    ConvexReLU,
    Hinge,
    Logistic,
    Patterns,
    PatternUpdate,
    SampledNeurons,
    SquaredError,
    TwoLayerReLU,
    all_patterns,
    convex_relu as module,
    sample_patterns,
    scenario_size,
)

cp = pytest.importorskip("cvxpy")
ADMM = jxt.splitting.ADMM


def draw(n=16, d=3, seed=0, signs=False):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    y = np.tanh(X[:, 0] * X[:, 1]) + 0.1 * rng.normal(size=n)
    return X, np.sign(y) if signs else y


@functools.cache
def patterns(n=16, d=3, num=8):
    return jax.jit(sample_patterns, static_argnums=1)(draw(n, d)[0], num, jax.random.key(0))


def by_cvxpy(X, y, active, beta, kind, radius=0.0):
    """The optimum, from the definition of the program."""
    D = np.asarray(active, float)
    v, w = (cp.Variable((len(D), X.shape[1])) for _ in range(2))
    slopes = D.T @ (v - w)
    z = cp.sum(cp.multiply(X, slopes), axis=1)
    width = radius * cp.sum(cp.abs(slopes), axis=1)
    loss = {
        SquaredError: lambda: cp.sum(cp.square(cp.abs(z - y) + width)) / 2,
        Hinge: lambda: cp.sum(cp.pos(1 - cp.multiply(y, z) + width)),
        Logistic: lambda: cp.sum(cp.logistic(-cp.multiply(y, z) + width)),
    }[kind]()
    cones = [
        cp.multiply(2 * row - 1, X @ u[i]) >= radius * cp.norm1(u[i])
        for u in (v, w)
        for i, row in enumerate(D)
    ]
    norms = cp.sum(cp.norm(v, axis=1) + cp.norm(w, axis=1))
    program = cp.Problem(cp.Minimize(loss + beta * norms), cones)
    return program.solve(solver="CLARABEL")


def check_program(model, X, y, signs, rtol):
    fit = model.fit(X, y)
    D = np.asarray(model.patterns.active)[np.asarray(model.patterns.present)]
    wanted = by_cvxpy(X, y, D, 0.1, type(model.loss), model.radius)
    np.testing.assert_allclose(fit.objective, wanted, rtol=rtol)
    return fit


def test_squared_errors_and_the_network():
    X, y = draw()
    model = ConvexReLU(penalty=0.1, patterns=patterns(), solver=ADMM(0.1, tol=1e-6))
    fit = check_program(model, X, y, False, 1e-5)
    assert fit.status == jxt.Status.converged

    # The network has the value of the program, and its parts are those of the definition.
    @eqx.filter_jit
    def run(fit, X, y):
        network = fit.to_network()(X)
        return model.objective(fit, X, y), fit.predict(X), network, fit.score(X, y)

    objective, predicted, network, score = run(fit, X, y)
    np.testing.assert_allclose(objective, fit.objective, rtol=1e-5)
    hidden, output = np.asarray(fit.hidden), np.asarray(fit.output)
    z = np.maximum(X @ hidden.T, 0) @ output
    value = 0.5 * np.sum((z - y) ** 2) + 0.05 * (np.sum(hidden**2) + np.sum(output**2))
    np.testing.assert_allclose(objective, value, rtol=1e-9)
    np.testing.assert_allclose(predicted, z, rtol=1e-9)
    np.testing.assert_allclose(np.asarray(network)[:, 0], z, rtol=1e-9)
    np.testing.assert_allclose(score, 1 - np.sum((z - y) ** 2) / (len(y) * np.var(y)))
    assert np.sum(output != 0) < len(output)
    # Rows of weight zero are not there, and two are worth twice one.
    weights = np.arange(16) % 3
    kept = np.repeat(np.arange(16), weights)
    D = np.asarray(patterns().active)[:, kept]
    wanted = by_cvxpy(X[kept], y[kept], D, 0.1, SquaredError)
    np.testing.assert_allclose(model.fit(X, y, weights).objective, wanted, rtol=1e-5)
    # The same program: what cannot be seen behind a trace is reported.
    X[0, 0] = np.nan
    spoiled = jax.device_put((X, y, np.ones(16)))
    assert module._fitted(model, *spoiled, jax.random.key(0)).status == jxt.Status.nonfinite


@pytest.mark.slow
def test_sixty_patterns_to_a_thousandth_and_roughly_after_twenty_steps():
    """Of 60 points in five dimensions with the penalty 0.01, from rho = 0.01: 1.43 times the
    optimum after 20 steps, 1.00008 after 3000, where the network has 1.0001. With rho held fast
    it is 7.3, and 0.9988, of a point that is not feasible yet."""
    X, y = draw(60, 5)
    sampled = patterns(60, 5, 60)
    wanted = by_cvxpy(X, y, np.asarray(sampled.active)[sampled.present], 0.01, SquaredError)

    def fit(steps):
        solver = ADMM(0.01, tol=0.0, max_steps=steps)
        model = ConvexReLU(penalty=0.01, patterns=sampled, solver=solver)
        return model, model.fit(X, y)

    _, early = fit(20)
    assert wanted <= early.objective <= 1.5 * wanted
    model, late = fit(3000)
    np.testing.assert_allclose(late.objective, wanted, rtol=2e-4)
    np.testing.assert_allclose(model.objective(late, X, y), wanted, rtol=3e-4)
    hidden, output = np.asarray(late.hidden), np.asarray(late.output)
    z = np.maximum(X @ hidden.T, 0) @ output
    value = 0.5 * np.sum((z - y) ** 2) + 0.005 * (np.sum(hidden**2) + np.sum(output**2))
    np.testing.assert_allclose(value, wanted, rtol=3e-4)


@pytest.mark.slow
def test_single_precision():
    X, y = draw()
    model = ConvexReLU(penalty=0.1, patterns=patterns(), solver=ADMM(0.1, tol=1e-4))
    fit = model.fit(X.astype(np.float32), y.astype(np.float32))
    assert fit.objective.dtype == jnp.float32
    wanted = by_cvxpy(X, y, np.asarray(patterns().active), 0.1, SquaredError)
    np.testing.assert_allclose(fit.objective, wanted, rtol=1e-3)
    X = draw(n=4, d=2)[0]
    sample = jax.jit(sample_patterns, static_argnums=1)
    both = [sample(X.astype(kind), 40, jax.random.key(1), 0.0) for kind in (float, np.float32)]
    np.testing.assert_array_equal(both[0].active, both[1].active)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("loss", "radius", "solver", "rtol"),
    [
        pytest.param(
            Hinge(),
            0.0,
            ADMM(1.0, relaxation=1.6, tol=1e-5, max_steps=20_000),
            1e-3,
            id="hinge",
            marks=SLOW,
        ),
        pytest.param(Logistic(), 0.0, ADMM(0.1, tol=1e-5), 1e-3, id="logistic", marks=SLOW),
        pytest.param(
            Logistic(),
            0.0,
            ADMM(0.1, tol=1e-5, x_update=BlockUpdate()),
            1e-3,
            id="logistic by blocks",
            marks=SLOW,
        ),
        pytest.param(
            SquaredError(),
            0.05,
            ADMM(1.0, balance=None, tol=1e-6, max_steps=20_000),
            1e-5,
            id="robust squares",
            marks=SLOW,
        ),
        pytest.param(
            Hinge(),
            0.05,
            ADMM(1.0, relaxation=1.8, balance=None, tol=1e-5, max_steps=30_000),
            3e-3,
            id="robust hinge",
            marks=SLOW,
        ),
        pytest.param(
            Logistic(),
            0.05,
            ADMM(1.0, relaxation=1.8, balance=None, tol=1e-5, max_steps=30_000),
            3e-3,
            id="robust logistic",
            marks=SLOW,
        ),
    ],
)
def test_other_programs(loss, radius, solver, rtol):
    X, y = draw(signs=True)
    fit = check_program(ConvexReLU(loss, 0.1, patterns(), radius, solver), X, y, True, rtol)
    if loss.margin:
        assert set(np.unique(fit.predict(X))) <= {-1.0, 1.0}
        np.testing.assert_allclose(fit.score(X, y), np.mean(fit.predict(X) == y))


def _dense(apply, shape):
    """The matrix of a linear map."""
    basis = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    return np.stack(
        [np.concatenate([np.ravel(a) for a in jax.tree.leaves(apply(e))]) for e in basis]
    ).T


@pytest.mark.parametrize("kind", ["squares", "copy", "robust", "blocks"])
def test_updates_solve_their_systems(kind):
    """Against the dense normal equations of maps that are written out."""
    n, d, P, rho = 6, 2, 3, 0.7
    rng = np.random.default_rng(2)
    X, y, s = rng.normal(size=(n, d)), rng.normal(size=n), rng.uniform(0.5, 2, size=n)
    D = (rng.normal(size=(P, n)) > 0).astype(float)
    program = module._Program(jnp.asarray(X), jnp.asarray(D))
    fit = module._Fit(program, SquaredError(), jnp.asarray(y), jnp.asarray(s))
    split, function, update = {
        "squares": (module._Split(program), fit, PatternUpdate()),
        "copy": (module._SplitLoss(program), module._Nothing(program), PatternUpdate()),
        "robust": (module._SplitRobust(program), module._Nothing(program), module._RobustUpdate()),
        "blocks": (module._Split(program), fit, BlockUpdate(1e-10, 5000)),
    }[kind]

    def written_out(u):
        v, w = u[:P], u[P:]
        cones = np.array([(2 * D[i % P] - 1) * (X @ u[i]) for i in range(2 * P)])
        predicted = sum(D[i] * (X @ (v[i] - w[i])) for i in range(P))
        slopes = np.array([sum(D[i, k] * (v[i] - w[i]) for i in range(P)) for k in range(n)])
        return {"copy": (u, cones, predicted), "robust": (u, (u, cones), slopes)}.get(
            kind, (u, cones)
        )

    A = _dense(written_out, (2 * P, d))
    F = _dense(lambda u: sum(D[i] * (X @ (u[i] - u[P + i])) for i in range(P)), (2 * P, d))
    shapes = jax.eval_shape(split, jnp.zeros((2 * P, d)))
    target = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), shapes)
    flat = np.concatenate([np.ravel(a) for a in jax.tree.leaves(target)])
    loss = s if isinstance(function, module._Fit) else 0 * s
    system = rho * A.T @ A + F.T @ np.diag(loss) @ F
    wanted = np.linalg.solve(system, rho * A.T @ flat + F.T @ (loss * y))
    operator = jxt.core.operators.Map(split, split.adjoint)

    @jax.jit
    def solve(target):
        x, penalty = jnp.zeros((2 * P, d)), jnp.asarray(rho)
        prepared = update.prepare(function, operator, x, penalty)
        found = update.minimize(function, operator, x, target, penalty, prepared)
        return *found, split.adjoint(target)

    found, left, pulled = solve(target)
    np.testing.assert_allclose(pulled.ravel(), A.T @ flat, rtol=1e-9)
    np.testing.assert_allclose(found.ravel(), wanted, atol=1e-8)
    assert left < 1e-7


@pytest.mark.parametrize("loss", [Hinge(), Logistic(), SquaredError()], ids=["hinge", "log", "sq"])
def test_robust_prox(loss):
    n, d, radius, step = 5, 3, np.array([0.3, 0.0, 0.5]), 0.7
    rng = np.random.default_rng(0)
    X, c0 = rng.normal(size=(2, n, d))
    y, s = np.sign(rng.normal(size=n)), np.array([1, 2, 0.5, 1, 0])
    worst = module._RobustTargets(loss, *map(jnp.asarray, (X, y, s)), jnp.asarray(radius))
    value, found = jax.jit(lambda c: (worst(worst.prox(c, step)), worst.prox(c, step)))(c0)
    c = cp.Variable((n, d))
    z, width = cp.sum(cp.multiply(X, c), axis=1), cp.abs(c) @ radius
    losses = {
        Hinge: lambda: cp.pos(1 - cp.multiply(y, z) + width),
        Logistic: lambda: cp.logistic(width - cp.multiply(y, z)),
        SquaredError: lambda: cp.square(cp.abs(z - y) + width) / 2,
    }[type(loss)]()
    cp.Problem(cp.Minimize(s @ losses + cp.sum_squares(c - c0) / (2 * step))).solve("CLARABEL")
    np.testing.assert_allclose(found, c.value, atol=2e-5)
    np.testing.assert_allclose(value, (s @ losses).value, rtol=1e-5)


def test_robust_cone():
    rng = np.random.default_rng(1)
    a0, s0 = rng.normal(size=(4, 3)), rng.normal(size=(4, 5))
    cone = module._RobustCone(jnp.asarray([0.4, 0.2, 0.0]))
    a, s = jax.jit(lambda pair: cone.project(pair))((jnp.asarray(a0), jnp.asarray(s0)))
    A, S = cp.Variable((4, 3)), cp.Variable((4, 5))
    held = [S[i] >= cp.abs(A[i]) @ np.array([0.4, 0.2, 0.0]) for i in range(4)]
    cp.Problem(cp.Minimize(cp.sum_squares(A - a0) + cp.sum_squares(S - s0)), held).solve("CLARABEL")
    np.testing.assert_allclose(a, A.value, atol=1e-6)
    np.testing.assert_allclose(s, S.value, atol=1e-6)


def test_all_patterns_by_many_directions():
    rng = np.random.default_rng(3)
    for d in (1, 2, 3):
        X = rng.normal(size=(7, d))
        X[3], X[4], X[5] = 2 * X[1], -X[2], 0  # one hyperplane twice, or with its sides exchanged
        found = {tuple(row) for row in np.asarray(all_patterns(X).active)}
        g = rng.normal(size=(20_000, d))
        seen = {tuple(row) for row in np.unique(g @ X.T >= 0, axis=0)}
        assert found == seen
    # Of n hyperplanes in general position, 2 sum_k C(n - 1, k).
    assert len(all_patterns(rng.normal(size=(9, 3))).active) == 2 * (1 + 8 + 28)
    # Of rank two though of three columns, as with a column of ones in the span of the others.
    X = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 3))
    assert len(all_patterns(X).active) == 12


def test_sampled_patterns_come_in_pairs_and_once():
    X = draw(n=4, d=2)[0]
    sample = jax.jit(sample_patterns, static_argnums=1)
    found = sample(X, 40, jax.random.key(1), 0.0)
    active, present = np.asarray(found.active), np.asarray(found.present)
    np.testing.assert_array_equal(active[:20], ~active[20:])
    kept = {tuple(row) for row in active[present]}
    assert len(kept) == present.sum() == len({tuple(row) for row in active})
    assert kept <= {tuple(row) for row in np.asarray(all_patterns(X).active)}
    moved = sample(X, 40, jax.random.key(1), 0.5)
    same = np.all(np.asarray(moved.active) == active, axis=1)
    assert same[:20:2].all()
    assert not same[1:20:2].all()


def test_scenario_size():
    # By hand: min(11 / 0.05 - 1, 20 (11 + log 2)), and where the other of both is less.
    assert scenario_size(10, 0.5, 0.1) == 219
    assert scenario_size(10, 0.01, 0.1) == int(np.ceil(20 * (11 + np.log(100))))


def test_bad_input():
    X, y = draw()
    for call, match in (
        (lambda: ConvexReLU(penalty=0.0), "penalty must be positive, got 0"),
        (lambda: ConvexReLU(patterns=0), "patterns must be at least 1, got 0"),
        (lambda: ConvexReLU(radius=-1.0), "radius"),
        (lambda: ConvexReLU(radius=0.1, solver=SampledNeurons(5)), "no radius, got 0.1"),
        (lambda: ConvexReLU(radius=(0.1, 0.1)).fit(X, y), "radius must be a number or 3, got 2"),
        (lambda: SampledNeurons(0), "num"),
        (lambda: ConvexReLU(Hinge()).fit(X, y), "targets must be -1 or 1, got"),
        (lambda: ConvexReLU(patterns=patterns()).fit(X[:5], y[:5]), r"\(P, 5\), got \(8, 16\)"),
        (lambda: all_patterns(np.eye(4)), "rank at most 3, got 4"),
        (lambda: scenario_size(10, 1.0, 0.1), "psi"),
        (lambda: sample_patterns(X, 0, jax.random.key(0)), "num"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    for call, match in (
        (lambda: ConvexReLU(loss="hinge"), "loss must be an object"),
        (lambda: ConvexReLU(solver=jxt.minimize.FISTA()), "ADMM or SampledNeurons"),
        (lambda: jax.jit(all_patterns)(X), "on the host"),
        (
            lambda: ConvexReLU(Hinge(), solver=ADMM(x_update=BlockUpdate())).fit(X, np.sign(y)),
            "smooth loss",
        ),
    ):
        with pytest.raises(TypeError, match=match):
            call()


@pytest.mark.slow
def test_a_path_of_penalties_under_vmap():
    X, y = draw()
    fit = lambda beta: ConvexReLU(penalty=beta, patterns=patterns(), solver=ADMM(0.1)).fit(X, y)
    found = jax.vmap(lambda beta: fit(beta).objective)(jnp.asarray([0.05, 0.2]))
    for beta, value in zip((0.05, 0.2), found, strict=True):
        np.testing.assert_allclose(value, fit(beta).objective, rtol=1e-6)


@pytest.mark.slow
def test_the_global_optimum_is_below_everything_else():
    """All patterns, then more and more sampled neurons, then networks trained by Adam."""
    X, y = draw(n=8, d=2, seed=5)
    exact = ConvexReLU(
        penalty=0.1, patterns=all_patterns(X), solver=ADMM(0.1, tol=1e-7, max_steps=20_000)
    )
    best = float(exact.fit(X, y).objective)
    np.testing.assert_allclose(
        best, by_cvxpy(X, y, exact.patterns.active, 0.1, SquaredError), rtol=1e-5
    )
    sampled = lambda num: float(
        ConvexReLU(penalty=0.1, solver=SampledNeurons(num)).fit(X, y).objective
    )
    many, few = sampled(2000), sampled(100)
    assert best <= many + 1e-5 <= few + 2e-5

    @jax.jit
    @jax.vmap
    def by_adam(key):
        def value(params):
            z = jax.nn.relu(X @ params[0].T) @ params[1]
            squares = jnp.sum(params[0] ** 2) + jnp.sum(params[1] ** 2)
            return 0.5 * jnp.sum((z - y) ** 2) + 0.05 * squares

        keys = jax.random.split(key)
        params = jax.random.normal(keys[0], (20, 2)), jax.random.normal(keys[1], (20,))
        tx = optax.adam(optax.cosine_decay_schedule(0.03, 5000))

        def step(carry, _):
            updates, state = tx.update(jax.grad(value)(carry[0]), carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=5000)
        return value(params)

    reached = by_adam(jax.random.split(jax.random.key(0), 10))
    assert np.min(reached) >= best - 1e-6
    hinge = ConvexReLU(Hinge(), 0.1, solver=SampledNeurons(200)).fit(X, np.sign(y))
    wanted = by_cvxpy(X, np.sign(y), exact.patterns.active, 0.1, Hinge)
    assert wanted - 1e-3 <= hinge.objective <= 1.2 * wanted
    assert isinstance(hinge, TwoLayerReLU)
    assert isinstance(exact.patterns, Patterns)
