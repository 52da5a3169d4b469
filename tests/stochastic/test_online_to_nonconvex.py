"""Online-to-nonconvex conversion by numpy loops, its identity, and regret of its learners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.stochastic import (
    Average,
    BallGradientDescent,
    BoxAdaGrad,
    BoxGradientDescent,
    Last,
    Midpoint,
    OnlineToNonconvex,
    OptimisticBall,
    UniformPoint,
    goldstein_norm,
    o2nc_parameters,
)

M, D = 12, 3
RNG = np.random.default_rng(3)
A, C = RNG.normal(size=(M, D)), RNG.normal(size=M)
START = RNG.normal(size=D)
RADIUS, STEP, T = 0.03, 0.02, 5
DELTA = T * RADIUS
LEARNERS = (
    BallGradientDescent(RADIUS, STEP),
    OptimisticBall(RADIUS, STEP, 3),
    BoxGradientDescent(RADIUS, STEP),
    BoxAdaGrad(RADIUS, 0.5),
)


def bent(x, sample):
    """With kinks, and concave in between."""
    a, c = sample
    r = a @ x - c
    return jnp.abs(r) - 0.2 * jnp.cos(3 * r)


def slope(x):
    r = A @ x - C
    return A.T @ (np.sign(r) + 0.6 * np.sin(3 * r)) / M


def table(sampling=None, dtype=None):
    data = jnp.asarray(A, dtype), jnp.asarray(C, dtype)
    return jxt.FiniteSum(bent, data=data, sampling=sampling or jxt.WithReplacement())


PROBLEM = jxt.Smooth(lambda x: table().full_value(x))


def path(problem, solver, start: np.ndarray = START):
    """Of all steps the point, where the gradient was taken on average, and this gradient; and the
    solution."""
    follow = lambda problem, x, state: (x, state.point, state.gradient)
    found = jxt.solve(problem, solver, jnp.asarray(start), trace=follow)
    return *map(np.asarray, found.trace), found


def ball(x):
    return x * min(1, RADIUS / max(np.linalg.norm(x), 1e-300))


def box(x):
    return np.clip(x, -RADIUS, RADIUS)


def loop(name, steps):
    """Points, places, and decisions; gradients are taken in the middle."""
    x, state, squares = START, np.zeros(D), np.zeros(D)
    points, places = [], []
    for n in range(steps):
        if name == "BoxAdaGrad" and n % T == 0:
            squares = np.zeros(D)
        move = state
        if name == "OptimisticBall":
            for _ in range(3):
                move = ball(state - STEP * slope(x + move / 2))
        place = x + move / 2
        x, g = x + move, slope(place)
        squares = squares + g**2
        if name == "BoxAdaGrad":
            state = box(state - 0.5 * RADIUS * g / np.sqrt(squares))
        else:
            state = (box if name == "BoxGradientDescent" else ball)(state - STEP * g)
        points.append(x)
        places.append(place)
    return np.array(points), np.array(places)


@pytest.mark.parametrize(
    "learner",
    [
        pytest.param(learner, id=type(learner).__name__, marks=() if i % 2 else pytest.mark.slow)
        for i, learner in enumerate(LEARNERS)
    ],
)
def test_steps_by_numpy(learner):
    steps = 4 * T + 3  # those behind the last epoch are dropped
    solver = OnlineToNonconvex(learner, DELTA, T, Midpoint(), output=Average(), max_steps=steps)
    points, _, _, found = path(PROBLEM, solver)
    wanted, places = loop(type(learner).__name__, steps)
    np.testing.assert_allclose(points, wanted, rtol=0, atol=1e-11)
    epochs = places[: 4 * T].reshape(4, T, D)
    means = epochs.mean(axis=1)
    np.testing.assert_allclose(found.value, means.mean(axis=0), atol=1e-12)
    order = 1 if "Box" in type(learner).__name__ else 2
    norms = [np.linalg.norm(np.mean([slope(w) for w in e], axis=0), order) for e in epochs]
    np.testing.assert_allclose(found.state.epoch.norm, np.mean(norms), rtol=1e-9)
    assert found.status == jxt.Status.step_limit
    assert int(found.state.samples) == steps * (1 + learner.asks)
    away = np.linalg.norm(epochs - means[:, None], np.inf if order == 1 else 2, axis=2)
    assert away.max() <= DELTA
    moves = np.diff(np.concatenate([START[None], points]), axis=0)
    longest = np.linalg.norm(moves, np.inf if order == 1 else 2, axis=1).max()
    assert 0.9 * RADIUS < longest <= RADIUS * (1 + 1e-6)


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.slow
def test_losses_add_up_to_the_decrease(learner):
    """Of a quadratic with gradients in the middle of steps; at their ends they do not."""
    H = A.T @ A
    value = lambda x: 0.5 * x @ H @ x - x @ C[:D]
    problem = jxt.Smooth(lambda x: 0.5 * x @ jnp.asarray(H) @ x - x @ jnp.asarray(C[:D]))
    solver = OnlineToNonconvex(learner, DELTA, 1, Midpoint(), max_steps=60)
    points, _, gradients, _ = path(problem, solver)
    moves = np.diff(np.concatenate([START[None], points]), axis=0)
    change = value(points[-1]) - value(START)
    np.testing.assert_allclose(np.sum(gradients * moves), change, rtol=1e-10)
    ends = np.sum((points @ H - C[:D]) * moves)
    assert abs(ends - change) > 0.01 * abs(change)


def test_gradients_are_taken_along_the_step():
    """At a uniform part of it, anew in each step, whatever the learner chose; single precision."""
    solver = OnlineToNonconvex(LEARNERS[0], DELTA, 1, UniformPoint(), max_steps=400)
    points, places, gradients, _ = path(
        table(jxt.WithoutReplacement(), jnp.float32), solver, START.astype(np.float32)
    )
    assert points.dtype == gradients.dtype == np.float32
    before = np.concatenate([START[None].astype(np.float32), points[:-1]])
    moves = points - before
    square = np.sum(moves**2, axis=1)
    moved = square > 0.5 * RADIUS**2
    s = np.sum((places - before) * moves, axis=1)[moved] / square[moved]
    assert s.min() > -1e-3
    assert s.max() < 1 + 1e-3
    assert abs(s.mean() - 0.5) < 4 / np.sqrt(12 * len(s))
    assert abs(np.mean(s**2) - 1 / 3) < 0.08
    first = np.array([bent_slope(w, g) for w, g in zip(places, gradients, strict=True)])
    assert first.max() < 1e-4


def bent_slope(x, gradient):
    """How far the gradient is from the nearest one of a sample."""
    r = A @ x - C
    each = A * (np.sign(r) + 0.6 * np.sin(3 * r))[:, None]
    return np.abs(each - gradient).max(axis=1).min()


def test_a_random_epoch_is_returned():
    """Each as often as another."""
    K, draws = 4, 400
    solver = OnlineToNonconvex(LEARNERS[0], DELTA, T, Midpoint(), max_steps=K * T)
    run = jax.vmap(lambda key: jxt.solve(PROBLEM, solver, jnp.asarray(START), key=key).value)
    values = np.asarray(jax.jit(run)(jax.random.split(jax.random.key(0), draws)))
    means = loop("BallGradientDescent", K * T)[1].reshape(K, T, D).mean(axis=1)
    gaps = np.linalg.norm(values[:, None] - means, axis=2)
    assert gaps.min(axis=1).max() < 1e-10
    counts = np.bincount(gaps.argmin(axis=1), minlength=K)
    assert np.sum((counts - draws / K) ** 2) / (draws / K) < 16.3  # one in a thousand is above


def test_regret():
    """Against the best fixed decision in hindsight, on random losses with a drift."""
    rounds, size = 200, 20
    rng = np.random.default_rng(0)
    losses = rng.normal(size=(size, rounds, D)) + 0.3 * rng.normal(size=(size, 1, D))
    losses /= np.linalg.norm(losses, axis=2).max()
    total = losses.sum(axis=1)
    squares = np.sqrt(np.sum(losses**2, axis=1)).sum(axis=1)
    euclidean = -RADIUS * np.linalg.norm(total, axis=1)
    step = RADIUS / rounds**0.5
    cases = (
        (BallGradientDescent(RADIUS, step), euclidean, RADIUS * rounds**0.5),
        (
            BoxGradientDescent(RADIUS, step),
            -RADIUS * np.abs(total).sum(axis=1),
            D * RADIUS * rounds**0.5,
        ),
        (
            BoxAdaGrad(RADIUS),
            -RADIUS * np.abs(total).sum(axis=1),
            RADIUS * 8**0.5 * squares,
        ),
        # It was told everything before.
        (OptimisticBall(RADIUS, 1.0, 1), euclidean, RADIUS**2 / 2),
    )

    learners = [learner for learner, *_ in cases]

    @jax.jit
    @jax.vmap
    def lost(losses):
        def play(states, loss):
            pairs = list(zip(learners, states, strict=True))
            moves = [learner.act(state, lambda _: loss) for learner, state in pairs]
            states = [learner.observe(state, loss) for learner, state in pairs]
            return states, jnp.stack([jnp.vdot(loss, move) for move in moves])

        start = [learner.init(jnp.zeros(D)) for learner in learners]
        return jnp.sum(jax.lax.scan(play, start, losses)[1], axis=0)

    for found, (learner, best, bound) in zip(lost(losses).T, cases, strict=True):
        assert np.all(found - best <= bound), type(learner)


def _optimistic(batch, tol):
    learner = OptimisticBall(0.2, 0.3, 2)
    return OnlineToNonconvex(learner, 1.0, 5, Midpoint(), batch, tol=tol, max_steps=1500)


def test_a_smooth_sum_is_solved():
    """Converged only where the gradient at the value is below the tolerance."""
    fit = lambda x, sample: 0.5 * (sample[0] @ x - sample[1]) ** 2 + 0.1 * jnp.cos(x[0])
    whole = jxt.FiniteSum(fit, data=(A, C), sampling=jxt.WithoutReplacement())
    found = jxt.solve(whole, _optimistic(M, 1e-8), START)
    assert found.status == jxt.Status.converged
    assert found.residual <= 1e-8
    assert int(found.steps) % 5 == 0
    assert int(found.state.samples) == 3 * M * int(found.steps)
    x = np.asarray(found.value)
    gradient = A.T @ (A @ x - C) / M - 0.1 * np.sin(x[0]) * np.eye(D)[0]
    assert np.linalg.norm(gradient) <= 1e-8
    np.testing.assert_allclose(found.state.epoch.point, found.value)


@pytest.mark.slow
def test_noise_ends_at_the_step_limit():
    noisy = jxt.solve(table(), _optimistic(1, 1e-8), START)
    assert noisy.status == jxt.Status.step_limit
    draw = lambda key, b: jax.random.normal(key, (b, D))
    unknown = jxt.Expectation(lambda x, c: jnp.sum((x - c) ** 2), sampler=draw)
    free = jxt.solve(unknown, _optimistic(4, 10.0), START)
    assert free.status == jxt.Status.step_limit
    assert np.linalg.norm(free.value) < 1


def test_a_mean_gradient_that_vanishes_is_not_taken_for_a_solution():
    """On both sides of a kink gradients cancel; the one at the value does not."""
    kink = jxt.Smooth(lambda x: jnp.sum(jnp.abs(x)))
    solver = OnlineToNonconvex(
        BallGradientDescent(0.1, 0.05), 0.4, 4, Midpoint(), output=Last(), tol=0.9, max_steps=200
    )
    found = jxt.solve(kink, solver, jnp.asarray([1.03]))
    assert found.status == jxt.Status.step_limit
    assert found.state.epoch.norm < 0.9


@pytest.mark.slow
def test_going_on_is_the_same_as_not_stopping():
    make = lambda steps: OnlineToNonconvex(LEARNERS[0], DELTA, T, output=Last(), max_steps=steps)
    whole = jxt.solve(table(), make(8 * T), START)
    follow = lambda problem, x, state: x
    half = jxt.solve(table(), make(4 * T), START, trace=follow)
    rest = jxt.solve(table(), make(4 * T), half.trace[-1], state=half.state)
    np.testing.assert_allclose(rest.value, whole.value, rtol=1e-12)


@pytest.mark.slow
def test_overflow_and_boxes_of_their_own():
    steep = jxt.Smooth(lambda x: jnp.exp(x["a"]) * 1e30 + jnp.sum(x["b"] ** 2))
    start = {"a": jnp.float32(20.0), "b": jnp.ones(2, jnp.float32)}
    radius = {"a": 0.1, "b": jnp.asarray([0.05, 0.02])}
    box = BoxAdaGrad(radius)
    for learner in (box, BallGradientDescent(0.1, 1.0)):
        found = jxt.solve(steep, OnlineToNonconvex(learner, 1.0, 5), start)
        assert found.status == jxt.Status.nonfinite
    calm = jxt.Smooth(lambda x: 3 * x["a"] + jnp.sum(x["b"]))
    follow = lambda problem, x, state: x
    moved = jxt.solve(calm, OnlineToNonconvex(box, 1.0, 5, max_steps=20), start, trace=follow).trace
    np.testing.assert_allclose(np.diff(moved["a"])[3:], -0.1, rtol=1e-4)
    wanted = np.broadcast_to([-0.05, -0.02], (16, 2))
    np.testing.assert_allclose(np.diff(moved["b"], axis=0)[3:], wanted, rtol=1e-3)


def test_numbers_of_the_theory():
    plan = o2nc_parameters(1000, 0.2, 2.0, 5.0)
    assert plan.epoch == 19  # 80^(2/3) = 18.57
    assert plan.num_epochs == 52
    assert plan.num_steps == 988
    np.testing.assert_allclose(plan.radius, 0.2 / 19)
    np.testing.assert_allclose(plan.step_size, 0.2 / 19 / (2 * 19**0.5))
    np.testing.assert_allclose(plan.bound, 10 / 200 + 5 * (4 * 5 / 200) ** (1 / 3))
    many = o2nc_parameters(10, 100.0, 1.0, 0.1)
    assert many.epoch == 5
    np.testing.assert_allclose(many.bound, 0.2 / 1000 + 6 / 10**0.5)


def test_goldstein_norm_by_numpy():
    points = START + 0.1 * RNG.normal(size=(7, D))
    found = goldstein_norm(table(), jnp.asarray(points))
    wanted = np.mean([slope(x) for x in points], axis=0)
    np.testing.assert_allclose(found.gradient, wanted, rtol=1e-10)
    np.testing.assert_allclose(found.norm, np.linalg.norm(wanted), rtol=1e-10)
    center = points.mean(axis=0)
    np.testing.assert_allclose(found.point, center, rtol=1e-10)
    np.testing.assert_allclose(found.radius, np.linalg.norm(points - center, axis=1).max())


def test_bad_input():
    ball = BallGradientDescent(0.1, 0.1)
    for bad, match in (
        (lambda: OnlineToNonconvex(ball, 1.0, 0), "epoch"),
        (lambda: OnlineToNonconvex(ball, 0.0, 5), "delta must be positive"),
        (lambda: OnlineToNonconvex(ball, 0.4, 5), "epoch . radius = 0.5, got 0.4"),
        (lambda: OnlineToNonconvex(ball, 9.0, 5, max_steps=9), "max_steps must be at least 10"),
        (lambda: OnlineToNonconvex(ball, 1.0, 5, batch=0), "batch"),
        (lambda: BallGradientDescent(-1.0, 0.1), "radius"),
        (lambda: OptimisticBall(0.1, 0.0), "step_size"),
        (lambda: OptimisticBall(0.1, 0.1, 0), "rounds"),
        (lambda: BoxGradientDescent({"a": 0.1, "b": 0.0}, 0.1), "radius"),
        (lambda: BoxAdaGrad(0.1, 0.0), "scale"),
        (lambda: o2nc_parameters(1, 0.1, 1.0, 1.0), "N"),
        (lambda: o2nc_parameters(9, 0.1, -1.0, 1.0), "G"),
        (lambda: goldstein_norm(PROBLEM, jnp.zeros((0, D))), "rows"),
    ):
        with pytest.raises(ValueError, match=match):
            bad()
    lasso = jxt.FiniteSum(bent, data=(A, C), nonsmooth=prox.L1(1.0))
    with pytest.raises(TypeError, match="nonsmooth"):
        jxt.solve(lasso, OnlineToNonconvex(ball, 1.0, 5), START)
    for bad in (
        lambda: OnlineToNonconvex(0.1, 1.0, 5),  # pyright: ignore[reportArgumentType]
        lambda: OnlineToNonconvex(ball, 1.0, 5, 0.5),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(TypeError, match="must be an object"):
            bad()
