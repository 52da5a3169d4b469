"""Blockwise methods against loops of numpy, closed-form solutions, and each other."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import lapack
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import bilevel
from jaxopt_ext.stochastic import Average, estimators

RNG = np.random.default_rng(3)
M, DX, DY, N = 6, 4, 3, 5
Q = np.linalg.qr(RNG.normal(size=(M, DY, DY)))[0]
A = np.einsum("mij,j,mkj->mik", Q, np.linspace(1, 2, DY), Q)
B = RNG.normal(size=(M, DX, DY)) / np.sqrt(DX)
C, H, R = RNG.normal(size=(M, DY)), RNG.normal(size=DX), 0.3
XI, ZETA = RNG.normal(size=(N, DY)), RNG.normal(size=(N, DY))
KEY = jax.random.key(2)


def problem(noise=1.0, **options):
    """Quadratics; samples move all first and lower second derivatives."""
    a, b, c = map(jnp.asarray, (A, B, C))

    def upper(x, y, xi, i):
        size = 0.5 * jnp.sum((y - c[i] - xi) ** 2) + 0.5 * R * jnp.sum((x - H) ** 2)
        return size + x[:DY] @ xi

    def lower(x, y, zeta, i):
        return 0.5 * y @ a[i] @ y + 0.5 * jnp.sum((zeta * y) ** 2) - x @ b[i] @ (y + 0.1 * zeta * y)

    data = jnp.asarray(noise * XI), jnp.asarray(noise * ZETA)
    return jxt.MultiBlockBilevel(upper, lower, *data, M, **options)


def _parts(i, x, y, xi, zeta):
    """Of one block, over samples: $\\nabla_x f$, $\\nabla_y f$, $\\nabla_y g$, $J$, $H$."""
    curve = A[i] + np.diag(np.mean(zeta**2, axis=0))
    cross = -B[i] * (1 + 0.1 * zeta.mean(0))
    own = R * (x - H) + np.pad(xi.mean(0), (0, DX - DY))
    return own, y - C[i] - xi.mean(0), curve @ y + cross.T @ x, cross, curve


def _block(i, x, y, v, xi, zeta):
    """The residual of one block."""
    own, through, slope, cross, curve = _parts(i, x, y, xi, zeta)
    return own - cross @ v, slope, curve @ v - through


def point(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=DX), rng.normal(size=(M, DY)), rng.normal(size=(M, DY))


def solution():
    """Without noise."""
    inverse = np.linalg.inv(A)
    pull = B @ inverse @ inverse
    mean = np.mean(pull @ np.swapaxes(B, 1, 2), axis=0) + R * np.eye(DX)
    x = np.linalg.solve(mean, np.mean(np.einsum("mij,mj->mi", B @ inverse, C), axis=0) + R * H)
    y = np.einsum("mij,mkj,k->mi", inverse, B, x)
    return x, y, np.einsum("mij,mj->mi", inverse, y - C)


@pytest.mark.slow
def test_the_residual_is_that_of_the_blocks_with_the_mean_above():
    x, y, v = point()
    found = jax.jit(lambda z: problem(chunk=2).residual(z))(
        jxt.BilevelPoint(*map(jnp.asarray, (x, y, v)))
    )
    each = [_block(i, x, y[i], v[i], XI, ZETA) for i in range(M)]
    upper, lower, multiplier = map(np.stack, zip(*each, strict=True))
    for a, b in zip(found, (upper.mean(0), lower, multiplier), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.slow
def test_points_with_functions_in_them():
    """Each block has its own of what is stacked, numbers that are no variables too."""
    x, y, _ = map(jnp.asarray, point())

    def loss(x, y, sample, block):
        return y["act"](jnp.sum((y["a"] - x) ** 2)) * y["n"] * sample + 0 * block

    data = jnp.ones(1)
    rest = jxt.BilevelPoint(None, {"a": None, "act": jnp.tanh, "n": jnp.arange(1, M + 1)}, None)
    bare = jxt.MultiBlockBilevel(loss, loss, data, data, M)
    arrays = {"a": y, "act": None, "n": None}
    x = x[:DY]
    residual = jax.jit(lambda z: bare.restrict(rest).residual(z))
    found = residual(jxt.BilevelPoint(x, arrays, arrays))
    size = np.sum((np.asarray(y) - x) ** 2, axis=1, keepdims=True)
    wanted = (1 - np.tanh(size) ** 2) * 2 * (y - x) * np.arange(1, M + 1)[:, None]
    np.testing.assert_allclose(found.lower["a"], wanted, atol=1e-12)
    with pytest.raises(TypeError, match="starts from BilevelPoint"):
        bare.restrict((None, arrays))


def test_points():
    given = jnp.ones(DX), jnp.ones((M, DY))
    started = problem().start(given)
    assert isinstance(started, jxt.BilevelPoint)
    np.testing.assert_array_equal(started.multiplier, np.zeros((M, DY)))
    cases = [
        (jnp.ones(2), TypeError, "BilevelPoint"),
        ((given[0], jnp.ones((M + 1, DY))), ValueError, "row for each of 6 blocks"),
        ((given[0], jnp.asarray(1.0)), ValueError, "row for each of 6 blocks"),
        (jxt.BilevelPoint(*given, jnp.ones((M, 2))), ValueError, "multiplier"),
        ((given[0] * 1j, given[1]), TypeError, "complex"),
    ]
    for start, error, match in cases:
        with pytest.raises(error, match=match):
            problem().check(problem().start(start))
    loss, data = (lambda x, y, sample, block: y), jnp.ones(3)
    with pytest.raises(ValueError, match="upper_loss must return a scalar"):
        jxt.MultiBlockBilevel(loss, loss, data, data, M).check(started)
    with pytest.raises(TypeError, match="upper_loss must be"):
        jxt.MultiBlockBilevel(3, loss, data, data, M)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="num_blocks"):
        jxt.MultiBlockBilevel(loss, loss, data, data, 0)
    with pytest.raises(ValueError, match="lower_data"):
        jxt.MultiBlockBilevel(loss, loss, data, jnp.ones((0, 3)), M)
    with pytest.raises(ValueError, match="6 of 5"):
        problem(sampling=jxt.WithoutReplacement()).draw_lower(KEY, 6)


def test_tracking_of_a_table():
    table, new, old = RNG.normal(size=(7, 2)), RNG.normal(size=(2, 2)), RNG.normal(size=(2, 2))
    index, rows = jnp.array([5, 1]), RNG.normal(size=(2, 7, 2))
    settings = [(0.3, 10, 5), (0.3, 10, 9), (1.0, 10, 5), (1.0, 5, 5), (0.1, 5, 5)]

    @jax.jit
    def run(table, new, old, rows):
        update = lambda *numbers: estimators.MSVR(*numbers).update(table, index, new, old)
        every = estimators.MSVR(0.3).update(table, jnp.arange(7), *rows)
        factors = [estimators.MSVR(weight).factor(*sizes) for weight, *sizes in settings]
        randomized = bilevel.RSVRB(weight=0.25).follow(table, index, new, old)
        return update(0.3, 0.6), update(0.3, 0.0), every, factors, randomized

    found, average, every, factors, randomized = run(table, new, old, rows)
    wanted, scaled = table.copy(), 0.75 * table
    for row, a, b in zip(index, new, old, strict=True):
        wanted[row] = 0.7 * table[row] + 0.3 * a + 0.6 * (a - b)
        scaled[row] += 3.5 * (a - 0.75 * b)
    np.testing.assert_allclose(found, wanted, atol=1e-14)
    np.testing.assert_allclose(randomized, scaled, atol=1e-14)
    np.testing.assert_allclose(average[index], 0.7 * table[index] + 0.3 * new, atol=1e-14)
    # All rows measured, it is STORM.
    np.testing.assert_allclose(every, rows[0] + 0.7 * (table - rows[1]), atol=1e-14)
    theory = [1.0 + 0.7, 1 / 9 / 0.7 + 0.7, np.inf, 0.0, 0.9]
    np.testing.assert_allclose(factors, np.minimum(theory, 1), atol=1e-6)


class _Loop:
    """The methods, written out."""

    def __init__(self, method, start, first, eta=0.05, tau=0.2, tau_v=0.3, alpha=0.4, beta=0.25):
        self.method, self.rates = method, (eta, tau, tau_v)
        self.alpha, self.beta, self.gamma = alpha, beta, 0.5
        if method == "BlockwiseSGD":
            self.alpha = self.beta = 1.0
            self.gamma = 0.0
        self.new = self.old = tuple(a.copy() for a in start)
        self.measured = np.full(M, -1)
        x, y, v = start
        blocks, xi, zeta = first
        parts = [_parts(i, x, y[i], *s) for i, *s in zip(blocks, xi, zeta, strict=True)]
        self.s = np.stack([p[2] for p in parts])
        if method == "BSVRBHessian":
            self.H = self.H_old = np.stack([self._clip(p[4]) for p in parts])
            found = [self._dense(p, H) for p, H in zip(parts, self.H, strict=True)]
            self.z = np.mean([f[0] for f in found], axis=0)
        else:
            self.u = np.stack([p[4] @ w - p[1] for p, w in zip(parts, v, strict=True)])
            self.z = np.mean([p[0] - p[3] @ w for p, w in zip(parts, v, strict=True)], axis=0)
        self.time = 0

    @staticmethod
    def _clip(matrix):
        """On eigenvalues of at least 1.5."""
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        return vectors @ np.diag(np.maximum(values, 1.5)) @ vectors.T

    @staticmethod
    def _dense(parts, H):
        own, through, _, cross, _ = parts
        v = np.linalg.solve(H, through)
        return own - cross @ v, v

    def _tracked(self, table, blocks, new, old):
        table = table.copy()
        if self.method == "RSVRB":
            table *= 1 - self.beta
            for i, a, b in zip(blocks, new, old, strict=True):
                table[i] += M / len(blocks) * (a - (1 - self.beta) * b)
            return table
        for i, a, b in zip(blocks, new, old, strict=True):
            table[i] = (1 - self.alpha) * table[i] + self.alpha * a + self.gamma * (a - b)
        return table

    def step(self, blocks, xi, zeta, lazy):
        looked = [
            [_parts(i, x, y[i], *s) for i, *s in zip(blocks, xi, zeta, strict=True)]
            for x, y, _ in (self.new, self.old)
        ]
        x, y, v = (a.copy() for a in self.new)
        self.s = self._tracked(self.s, blocks, *([p[2] for p in parts] for parts in looked))
        if self.method == "BSVRBHessian":
            tables = (self.H, self.H_old)
            found = [
                [self._dense(p, H[i]) for p, i in zip(parts, blocks, strict=True)]
                for parts, H in zip(looked, tables, strict=True)
            ]
            G = [np.mean([f[0] for f in at], axis=0) for at in found]
            v[blocks] = [f[1] for f in found[0]]
            self.H_old = self.H
            self.H = self._tracked(self.H, blocks, *([p[4] for p in parts] for parts in looked))
            self.H[blocks] = [self._clip(self.H[i]) for i in blocks]
        else:
            rows = [
                [(p[0] - p[3] @ w[i], p[4] @ w[i] - p[1]) for p, i in zip(at, blocks, strict=True)]
                for at, (_, _, w) in zip(looked, (self.new, self.old), strict=True)
            ]
            G = [np.mean([r[0] for r in at], axis=0) for at in rows]
            self.u = self._tracked(self.u, blocks, *([r[1] for r in at] for at in rows))
        self.z = (1 - self.beta) * (self.z - G[1]) + G[0]
        eta, tau, tau_v = self.rates
        lag = np.ones(M)
        if lazy:
            lag = np.zeros(M)
            lag[blocks] = self.time - self.measured[blocks]
        x -= eta * self.z
        y -= tau * lag[:, None] * self.s
        if self.method != "BSVRBHessian":
            v -= tau_v * lag[:, None] * self.u
            size = np.linalg.norm(v, axis=1, keepdims=True)
            v = v / np.maximum(size / 1.2, 1)
        self.measured[blocks] = self.time
        self.time += 1
        self.old, self.new = self.new, (x, y, v)


def solver(name, moves):
    options = {"blocks": 2, "batch": 3, "moves": moves, "max_steps": 5}
    if name != "BSVRBHessian":
        ball = jxt.prox.L2Ball(1.2)
        options |= {"multiplier_step": 0.3, "multiplier_set": ball}
    if name.startswith("BSVRB"):
        options |= {"tracker": estimators.MSVR(0.4, 0.5), "upper_weight": 0.25}
    if name == "BSVRBHessian":
        options |= {"modulus": 1.5}
    if name == "RSVRB":
        options |= {"weight": 0.25}
    return getattr(bilevel, name)(0.05, 0.2, **options)


LAZY, EVERY = bilevel.MeasuredRows(), bilevel.AllRows()
FORMS = [
    ("BSVRB", LAZY),
    ("BSVRBHessian", EVERY),
    ("BSVRB", EVERY),
    ("BSVRBHessian", LAZY),
    ("RSVRB", EVERY),
    ("BlockwiseSGD", LAZY),
    ("BlockwiseSGD", EVERY),
]


@pytest.mark.always(1)
@pytest.mark.parametrize(("name", "moves"), FORMS)
def test_steps_are_a_loop_of_numpy(name, moves):
    start, method, noisy = point(), solver(name, moves), problem()

    @jax.jit
    def run(x):
        """Points and batches, those of the start too."""
        state = method.init(noisy, x, KEY)
        first = method.draw(noisy, jax.random.split(KEY)[0], M)

        def step(carry, _):
            x, state = carry
            batch = method.draw(noisy, jax.random.split(state.key, 3)[0])
            x, state = method.step(noisy, x, state)
            return (x, state), (x, state.gradient, batch)

        (_, state), recorded = jax.lax.scan(step, (x, state), length=5)
        return first, recorded, state.samples

    first, (points, gradients, batches), samples = run(jxt.BilevelPoint(*map(jnp.asarray, start)))
    looked = lambda b, at=(): (b.blocks[at], XI[b.upper[at]], ZETA[b.lower[at]])
    first, batches = jax.tree.map(np.asarray, (first, batches))
    loop = _Loop(name, start, looked(first))
    for k in range(5):
        loop.step(*looked(batches, k), lazy=moves is LAZY)
        for a, b in zip(points, loop.new, strict=True):
            np.testing.assert_allclose(a[k], b, atol=1e-11, err_msg=str(k))
        np.testing.assert_allclose(gradients[k], loop.z, atol=1e-11)
    assert int(samples) == M * 6 + 5 * 2 * 6 * (1 if name == "BlockwiseSGD" else 2)
    assert len(set(batches.blocks[0])) == 2


@functools.cache
def _converged():
    """With all blocks, without noise."""
    start = jnp.zeros(DX), jnp.zeros((M, DY))
    options: dict[str, Any] = {"blocks": None, "batch": None, "max_steps": 3000}
    lazy = bilevel.BSVRB(0.1, 0.3, **options)
    methods = {
        "lazy": dataclasses.replace(lazy, tol=1e-13),
        "all": dataclasses.replace(lazy, moves=bilevel.AllRows(), tol=1e-13),
        "Hessian": bilevel.BSVRBHessian(0.1, 0.3, modulus=0.5, tol=1e-13, **options),
        "RSVRB": bilevel.RSVRB(0.1, 0.3, tol=1e-13, **options),
        "wrong modulus": bilevel.BSVRBHessian(0.1, 0.3, modulus=1.5, tol=1e-9, **options),
        "small ball": bilevel.BSVRB(
            0.1, 0.3, multiplier_set=jxt.prox.L2Ball(0.5), tol=1e-9, **options
        ),
        "average": dataclasses.replace(lazy, output=Average(), max_steps=50),
    }
    run = jax.jit(lambda: {k: jxt.solve(problem(0.0), s, start) for k, s in methods.items()})
    return run()


@pytest.mark.slow
def test_all_go_to_the_solution():
    found = _converged()
    for name in ("lazy", "all", "Hessian", "RSVRB"):
        assert found[name].status == jxt.Status.converged, name
        for a, b in zip(found[name].value, solution(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12, err_msg=name)
    # With all blocks measured nothing waits.
    assert int(found["lazy"].steps) == int(found["all"].steps)
    for a, b in zip(found["lazy"].value, found["all"].value, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BSVRB", "BSVRBHessian"])
def test_fifty_blocks_without_noise(name):
    """Of the mean alone, by its normal equations."""
    rng = np.random.default_rng(0)
    m, dx, dy = 50, 10, 5
    frame = np.linalg.qr(rng.normal(size=(m, dy, dy)))[0]
    a = np.einsum("mij,j,mkj->mik", frame, np.linspace(1, 2, dy), frame)
    b, c = rng.normal(size=(m, dx, dy)) / np.sqrt(dx), rng.normal(size=(m, dy))
    h, inverse = rng.normal(size=dx), np.linalg.inv(a)
    mean = np.mean(b @ inverse @ inverse @ np.swapaxes(b, 1, 2), axis=0) + 0.1 * np.eye(dx)
    right = np.mean(np.einsum("mij,mj->mi", b @ inverse, c), axis=0) + 0.1 * h
    A_, B_, C_ = map(jnp.asarray, (a, b, c))

    def upper(x, y, sample, i):
        return 0.5 * jnp.sum((y - C_[i]) ** 2) + 0.05 * jnp.sum((x - h) ** 2)

    def lower(x, y, sample, i):
        return 0.5 * y @ A_[i] @ y - x @ B_[i] @ y

    whole = jxt.MultiBlockBilevel(upper, lower, jnp.zeros(1), jnp.zeros(1), m)
    method = getattr(bilevel, name)(0.05, 0.1, blocks=None, batch=None, max_steps=3000)
    found = jxt.solve(whole, method, (jnp.zeros(dx), jnp.zeros((m, dy))))
    assert np.linalg.norm(mean @ found.value.upper - right) < 1e-12


@pytest.mark.slow
def test_factorizations_of_a_batch_wait_for_each_other():
    """Else they can wait for each other's threads for ever."""
    method = dataclasses.replace(solver("BSVRBHessian", EVERY), tol=1e-3)
    start = jxt.BilevelPoint(*map(jnp.asarray, point()))

    run = lambda noise: jxt.solve(problem(noise), method, start).value
    assert not lapack.side_by_side(jax.make_jaxpr(jax.vmap(run))(jnp.ones(2)))
    score = lambda noise: jnp.sum(jax.vmap(run)(noise).upper ** 2)
    assert not lapack.side_by_side(jax.make_jaxpr(jax.grad(score))(jnp.ones(2)))


@pytest.mark.slow
def test_what_cannot_be_solved_is_not_said_to_be():
    """Multipliers outside of their set, and Hessians kept from what they are."""
    found = _converged()
    assert np.max(np.linalg.norm(solution()[2], axis=1)) > 0.5
    for name in ("wrong modulus", "small ball", "average"):
        assert found[name].status == jxt.Status.step_limit, name
        assert found[name].residual > 1e-2, name
    np.testing.assert_allclose(
        np.max(np.linalg.norm(found["small ball"].value.multiplier, axis=1)), 0.5
    )


@pytest.mark.slow
def test_the_plain_method_is_the_other_without_memory():
    """At half of the price; and a solve that goes on measures anew and keeps its counts."""
    first = jxt.BilevelPoint(*map(jnp.asarray, point()))
    options: dict[str, Any] = {"blocks": 2, "batch": 3, "max_steps": 4}
    plain = bilevel.BlockwiseSGD(0.05, 0.2, **options)
    tracked = bilevel.BSVRB(0.05, 0.2, tracker=estimators.MSVR(1, 0), upper_weight=1, **options)

    @jax.jit
    def run(first):
        one, two = (jxt.solve(problem(), s, first, key=KEY) for s in (plain, tracked))
        return one, two, jxt.solve(problem(), plain, one.value, state=one.state)

    one, two, more = run(first)
    for a, b in zip(one.value, two.value, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    assert (int(one.state.samples), int(two.state.samples)) == (36 + 48, 36 + 96)
    assert (int(more.state.count), int(more.state.samples)) == (8, 2 * (36 + 48))
    assert np.all(np.asarray(more.state.measured) >= 3)


@pytest.mark.slow
def test_rows_of_several_arrays_and_functions():
    """Points of dictionaries, with what is no array in them, equal those of one vector."""
    split = lambda y: {"a": y[..., :1], "b": (y[..., 1:], jnp.tanh)}
    join = lambda y: jnp.concatenate([y["a"], y["b"][0]], axis=-1)
    flat = problem()
    tree = dataclasses.replace(
        flat,
        upper_loss=lambda x, y, s, i: flat.upper_loss(x, join(y), s, i),
        lower_loss=lambda x, y, s, i: flat.lower_loss(x, join(y), s, i),
    )
    x, y, v = map(jnp.asarray, point())
    method = solver("BSVRBHessian", bilevel.AllRows())
    named = jxt.BilevelPoint(x, split(y), {"a": v[:, :1], "b": (v[:, 1:], None)})
    one = jxt.solve(flat, method, jxt.BilevelPoint(x, y, v), key=KEY).value
    two = jxt.solve(tree, method, named, key=KEY).value
    np.testing.assert_allclose(two.upper, one.upper, atol=1e-12)
    np.testing.assert_allclose(join(two.lower), one.lower, atol=1e-12)
    assert two.lower["b"][1] is jnp.tanh


def test_bad_input():
    start = jnp.zeros(DX), jnp.zeros((M, DY))
    with pytest.raises(ValueError, match="blocks must be at most the problem's 6, got 10"):
        jxt.solve(problem(), bilevel.BSVRB(), start)
    cases = [
        (bilevel.BSVRB, "step_size", 0.0, ValueError),
        (bilevel.BSVRB, "lower_step", -1.0, ValueError),
        (bilevel.BSVRB, "multiplier_step", 0.0, ValueError),
        (bilevel.BSVRB, "upper_weight", 0.0, ValueError),
        (bilevel.BSVRB, "blocks", 0, ValueError),
        (bilevel.BSVRB, "batch", 1.5, TypeError),
        (bilevel.BSVRB, "tracker", 0.9, TypeError),
        (bilevel.BSVRB, "moves", "lazy", TypeError),
        (bilevel.BSVRB, "multiplier_set", 10.0, TypeError),
        (bilevel.BSVRB, "output", "last", TypeError),
        (bilevel.RSVRB, "weight", 1.5, ValueError),
        (bilevel.BSVRBHessian, "upper_weight", 1.5, ValueError),
        (bilevel.BSVRBHessian, "modulus", 0.0, ValueError),
        (bilevel.BSVRBHessian, "moves", None, TypeError),
        (estimators.MSVR, "weight", 0.0, ValueError),
        (estimators.MSVR, "correction", -0.1, ValueError),
    ]
    for kind, name, value, error in cases:
        with pytest.raises(error, match=name):
            kind(**{name: value})
