"""Every prox over ten orders of magnitude, by the inequalities that define it.

For convex $g$ and $p = \\mathrm{prox}_{t g}(x)$, $(x - p) / t$ is a subgradient at $p$:
$g(u) \\ge g(p) + \\langle x - p, u - p\\rangle / t$ for all $u$. For the others, and for those that
are iterations, the objective at $p$ is not above that of any $u$. Proxes run in both precisions;
values and inequalities are evaluated in double. A new function joins by one line in `CASES`.
"""

import contextlib
import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import prox

NORMAL = np.array([1.0, -0.3, 0.0, 2.5, 1e-3])
MATRIX = np.random.default_rng(0).normal(size=(2, 5))
MATRIX = np.concatenate([MATRIX, MATRIX[:1] - MATRIX[1:]])  # dependent rows
ROWS = np.random.default_rng(1).normal(size=(7, 5))
ROWS = np.concatenate([ROWS, 3 * ROWS[:1], 0 * ROWS[:1], ROWS[1:2] + ROWS[2:3], 1e-3 * ROWS[:2]])
SLACK = np.array([0.0, 1.0, 0.0, 0.5, 2.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1e-3])
LABELS = np.array([0, 1, 0, 2, 1])
P, Q = np.array([0.5, 1.0, 0.7]), np.array([0.6, 0.9, 0.4, 0.3])


def like(w, values):
    """An array in the precision of the drawn parameter."""
    return jnp.asarray(values, w.dtype)


class Case(NamedTuple):
    """`make(w)` for a drawn number `w`: a weight, radius or offset."""

    make: Callable[[Any], Any]
    shape: tuple[int, ...] = (5,)
    dtype: Any = float
    split: Callable[[Any], Any] = lambda x: x
    gap: float = 0.0
    """For iterations: how far the objective may be above the least, over that of the better of
    the point itself and its mean."""
    slow: bool = False
    """A variant that takes long to compile, for the slow tests alone."""
    offset: Callable[[Any], Any] = lambda w: 0.0
    """Size of what points are moved by, and so of the rounding."""
    slope: Callable[[Any], Any] = lambda w: 0.0
    """The steepest slope at a kink that an offset moves away from representable numbers."""


def is_set(name):
    made_of_sets = name.endswith(", set")
    return made_of_sets or isinstance(CASES[name].make(np.float64(1.0)), prox.AbstractSet)


def halves(x):
    return {"a": x[:2], "b": (x[2:],)}


CASES = {
    "Zero": Case(lambda w: prox.Zero()),
    "L1": Case(lambda w: prox.L1(w)),
    "L1, complex": Case(lambda w: prox.L1(w), dtype=complex),
    "L1, weights": Case(lambda w: prox.L1(w * like(w, [0.0, 1e-3, 1.0, 2.0, 1e3]))),
    "L2Squared": Case(lambda w: prox.L2Squared(w)),
    "ElasticNet": Case(lambda w: prox.ElasticNet(w, 0.3 * w)),
    "L2": Case(lambda w: prox.L2(w)),
    "L2, complex": Case(lambda w: prox.L2(w), dtype=complex),
    "GroupLasso": Case(lambda w: prox.GroupLasso(w), (3, 2)),
    "GroupLasso, labels": Case(
        lambda w: prox.GroupLasso(w * like(w, [0.1, 1.0, 3.0]), jnp.asarray(LABELS), 3)
    ),
    "NuclearNorm": Case(lambda w: prox.NuclearNorm(w), (3, 2)),
    "TotalVariation1D": Case(lambda w: prox.TotalVariation1D(w), (6,)),
    "TotalVariation2D": Case(lambda w: prox.TotalVariation2D(w), (4, 3), gap=1e-6),
    "TotalVariation2D, anisotropic": Case(
        lambda w: prox.TotalVariation2D(w, isotropic=False), (4, 3), gap=1e-6, slow=True
    ),
    "NonNegative": Case(lambda w: prox.NonNegative()),
    "Box": Case(lambda w: prox.Box(-w * like(w, [1.0, 0.0, 3.0, -1.0, 1.0]), 2 * w)),
    "Simplex": Case(lambda w: prox.Simplex(w)),
    "L1Ball": Case(lambda w: prox.L1Ball(w)),
    "L1Ball, complex": Case(lambda w: prox.L1Ball(w), dtype=complex, slow=True),
    "L2Ball": Case(lambda w: prox.L2Ball(w)),
    "L2Ball, complex": Case(lambda w: prox.L2Ball(w), dtype=complex, slow=True),
    "LinfBall": Case(lambda w: prox.LinfBall(w)),
    "LinfBall, complex": Case(lambda w: prox.LinfBall(w), dtype=complex, slow=True),
    "NuclearBall": Case(lambda w: prox.NuclearBall(w), (3, 2)),
    "Hyperplane": Case(lambda w: prox.Hyperplane(like(w, NORMAL), w)),
    "Hyperplane through zero": Case(lambda w: prox.Hyperplane(w * like(w, NORMAL))),
    "Halfspace": Case(lambda w: prox.Halfspace(like(w, NORMAL), -w)),
    "Halfspace through zero": Case(lambda w: prox.Halfspace(w * like(w, NORMAL))),
    "AffineSet": Case(lambda w: prox.AffineSet(like(w, MATRIX), w * like(w, MATRIX @ np.ones(5)))),
    "AffineSet, one point": Case(
        lambda w: prox.AffineSet(like(w, MATRIX[:2, :2]), 0 * like(w, P[:2])), (2,), slow=True
    ),
    "Polyhedron": Case(
        lambda w: prox.Polyhedron(like(w, ROWS), w * like(w, ROWS @ np.ones(5) + SLACK)), slow=True
    ),
    "Polyhedron, cone": Case(
        lambda w: prox.Polyhedron(w * like(w, ROWS[:4]), 0 * like(w, SLACK[:4])), slow=True
    ),
    "Polyhedron, equalities": Case(
        lambda w: prox.Polyhedron(
            like(w, ROWS[:4]), w * like(w, SLACK[:4]), like(w, MATRIX), 0 * like(w, P)
        )
    ),
    "SecondOrderCone": Case(lambda w: prox.SecondOrderCone()),
    "PSDCone": Case(lambda w: prox.PSDCone(), (3, 3)),
    "Isotonic": Case(lambda w: prox.Isotonic(), (6,)),
    "TransportPolytope": Case(
        lambda w: prox.TransportPolytope(w * like(w, P), w * like(w, Q)), (3, 4)
    ),
    "Birkhoff": Case(lambda w: prox.Birkhoff(3), (3, 3), slow=True, offset=lambda w: 2.0),
    "Scaled": Case(lambda w: prox.Scaled(prox.L1(0.5 * w), 3 * w)),
    "Shifted": Case(
        lambda w: prox.Shifted(prox.L2(w), w * like(w, NORMAL)),
        offset=lambda w: 3 * w,
        slope=lambda w: w,
    ),
    "Shifted, set": Case(lambda w: prox.Shifted(prox.Simplex(w), w * like(w, NORMAL)), slow=True),
    "Precomposed": Case(
        lambda w: prox.Precomposed(prox.L1(w), -2.0 * w, like(w, NORMAL)),
        offset=lambda w: 1.5 / w,
        slope=lambda w: 6 * w**2,
    ),
    "Separable": Case(
        lambda w: prox.Separable({"a": prox.L2(w), "b": (prox.L1(0.1 * w),)}), split=halves
    ),
    "Separable, set": Case(
        lambda w: prox.Separable({"a": prox.Simplex(w), "b": (prox.NonNegative(),)}), split=halves
    ),
    "Conjugate": Case(
        lambda w: prox.Conjugate(prox.Simplex(w), lambda y: jnp.asarray(w, y.dtype) * jnp.max(y))
    ),
    "L0": Case(lambda w: prox.L0(w)),
    "SCAD": Case(lambda w: prox.SCAD(w)),
    "MCP": Case(lambda w: prox.MCP(w)),
    "MCP, complex": Case(lambda w: prox.MCP(w), dtype=complex),
}
NOT_HERE = {
    "AbstractFoldedConcave": "a contract",
    "AbstractFunction": "a contract",
    "AbstractSet": "a contract",
    "simplex_threshold": "a number, not a prox",
}


def test_every_public_function_is_here():
    tested = {name.split(",")[0].split(" ")[0] for name in CASES}
    assert tested | set(NOT_HERE) == set(prox.__all__)


GROUP = 8  # points of one step and parameter, so that each is a rival of the others
QUICK = {"xla_backend_optimization_level": 0}  # compiling takes longer than running
TOLERANCE, TINY = 20, 1e-60


def draw(case, rng, groups):
    """Points, steps and parameters in double, exact in single precision too."""
    complex_ = case.dtype is complex
    shape, axes = (groups, GROUP, *case.shape), (1,) * len(case.shape)

    def normal(shape):
        z = rng.normal(size=shape)
        return z + 1j * rng.normal(size=shape) if complex_ else z

    column = lambda low, high: 10 ** rng.uniform(low, high, (groups, GROUP, *axes))
    styles = [
        normal(shape),
        rng.integers(-1, 2, shape) + 0 * normal(shape),  # ties and zeros
        np.ones(shape) * normal((groups, GROUP, *axes)),  # constant
        normal(shape) * 10 ** rng.uniform(-5, 5, shape),
        np.where(rng.random(shape) < 0.3, normal(shape), 0),
        1 + normal(shape) * column(-5, 0),  # an offset
    ]
    style = rng.integers(0, len(styles), (groups, GROUP, *axes))
    scale = 10 ** rng.uniform(-5, 5, (groups, 1, *axes))
    x = scale * np.choose(style, styles)
    x[:, 1] = x[:, 0] + column(-4, 0)[:, 1] * scale[:, 0] * normal(shape)[:, 1]
    x[:, 2] *= column(-5, 5)[:, 2]
    x *= np.minimum(
        1, 1e5 / np.maximum(np.abs(x).max(axis=tuple(range(2, x.ndim)), keepdims=True), 1)
    )
    scale = scale.reshape(groups)
    t, w = 10 ** rng.uniform(-5, 5, (2, groups))
    # Half of them where neither the point nor the parameter wins.
    near = 10 ** rng.uniform(-1, 1, groups)
    w = np.choose(rng.integers(0, 4, groups), [w, w, scale / t * near, scale * near])
    w = np.clip(w, 1e-5, 1e5)
    single = np.complex64 if complex_ else np.float32
    return x.astype(single).astype(case.dtype), *(
        v.astype(np.float32).astype(float) for v in (t, w)
    )


@functools.cache
def programs(name):
    """Proxes in both precisions with what sets say of them, and values in double."""
    case = CASES[name]

    def one(x, g, t, w):
        f, parts = case.make(w), case.split(x)
        flat = lambda y: jnp.concatenate([a.ravel() for a in jax.tree.leaves(y)]).reshape(x.shape)
        p = flat(f.prox(parts, t))
        if not is_set(name):
            return p, p, p
        corner = p
        with contextlib.suppress(TypeError):  # where there is no linear minimizer
            corner = flat(f.linear_minimizer(case.split(g)))
        return p, f(parts) == 0, corner

    each = jax.vmap(jax.vmap(one, (0, 0, None, None)))

    def both(low, high, t, w):
        t32, w32 = t.astype(jnp.float32), w.astype(jnp.float32)
        return each(*low, t32, w32), each(*high, t, w)

    value = lambda u, w: case.make(w)(case.split(u))
    values = jax.vmap(jax.vmap(jax.vmap(value, (0, None)), (0, None)))
    return jax.jit(both, compiler_options=QUICK), jax.jit(values, compiler_options=QUICK)


def inner(a, b, axes):
    """Inner products over the last axes."""
    return np.sum((a * np.conj(b)).real, axis=tuple(range(-axes, 0)))


def rivals(case, rng, x, p):
    """Points near and far, and on the way to special ones."""
    axes = tuple(range(2, x.ndim))

    def normal():
        z = rng.normal(size=x.shape)
        return z + 1j * rng.normal(size=x.shape) if case.dtype is complex else z

    size = lambda v: np.sqrt(np.mean(np.abs(v) ** 2, axis=axes, keepdims=True))
    mean = np.broadcast_to(np.mean(p, axis=axes, keepdims=True), x.shape)
    one = np.zeros((*x.shape[:2], p[0, 0].size))
    np.put_along_axis(one, rng.integers(0, one.shape[2], (*x.shape[:2], 1)), 1, axis=2)
    one = one.reshape(x.shape)
    points = [x, 0 * x, 0.5 * p, 1.5 * p, p + 0.1 * (x - p), p - 0.1 * (x - p)]
    points += [mean, p + 0.5 * (mean - p), p * (1 - one), p * (1 - 2 * one), p + one * (x - p)]
    points += [x * one, p + 0.01 * size(p) * normal(), p + 0.01 * size(x - p) * normal()]
    points += [p + 10 ** rng.uniform(-5, 5, size(x).shape) * normal()]
    return np.stack(points, axis=2)


def violations(name, seed, groups):
    """By how many tolerances each inequality fails, and the same for answers 1 % off."""
    case = CASES[name]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    x, t, w = draw(case, rng, groups)
    proxes, values = programs(name)
    single = np.complex64 if case.dtype is complex else np.float32

    def run(low, high):
        low = [v.astype(single) for v in low]  # of one type, for one program
        return jax.tree.map(np.asarray, proxes(low, high, t, w))

    low, high = [[out[0]] for out in run((x, x), (x, x))]
    if is_set(name):
        p, q = low[0], high[0]
        for slot, out in zip((low, high), run((p, p - x), (q, q - x)), strict=True):
            slot.extend(out)  # projected again, inside, corner
        for slot, out in zip(
            (low, high), run(*[(v + (x - v) / 100, v) for v in (p, q)]), strict=True
        ):
            slot.append(out[1])  # inside, though 1 % back
    assert low[0].dtype == single
    axes = len(case.shape)
    dot = lambda a, b: inner(a, b, axes)
    norm = lambda a: np.sqrt(dot(a, a))
    convex = case.make(np.float64(1.0)).convex
    worst = {}
    t, w = t[:, None], w[:, None]
    extra = case.offset(w) + (w if is_set(name) else 0)
    everyone = np.repeat(high[0][:, None], GROUP, axis=1)  # the other answers of the group
    for bits, out in ((32, low), (64, high)):
        eps = float(np.finfo(out[0].dtype).eps)
        p = out[0].astype(case.dtype)
        for label, q in (("", p), (" 1% back", p + 0.01 * (x - p)), (" 1% on", p - 0.01 * (x - p))):
            away = lambda u, q=q: u - q[:, :, None]
            pull, reach = norm(x - q), norm(x) + norm(q) + extra
            if is_set(name):
                if label == " 1% back":
                    continue  # what is outside is a matter of membership
                u = np.concatenate([everyone, out[3].astype(case.dtype)[:, :, None]], axis=2)
                excess = dot((x - q)[:, :, None], away(u))
                rounding = eps * reach[:, :, None] * (norm(away(u)) + pull[:, :, None])
                allowed = 0
            else:
                u = np.concatenate([everyone, rivals(case, rng, x, p)], axis=2)
                g = np.asarray(values(np.concatenate([u, q[:, :, None]], axis=2), w[:, 0]))
                gu, gq = g[:, :, :-1], g[:, :, -1:]
                step = t[:, :, None]
                rounding = reach[:, :, None] * (norm(away(u)) + pull[:, :, None]) / step
                kink = (case.slope(w) * reach)[:, :, None]
                rounding = eps * (rounding + kink + np.abs(gu) + np.abs(gq))
                if convex and not case.gap:
                    excess = gq + dot((x - q)[:, :, None], away(u)) / step - gu
                    allowed = 0
                else:
                    far = norm(x[:, :, None] - u) ** 2
                    excess = gq - gu + (pull[:, :, None] ** 2 - far) / (2 * step)
                    mean = np.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True)
                    plain = norm(x - mean)[:, :, None] ** 2 / (2 * step)
                    allowed = case.gap * np.minimum(plain, gu[:, :, GROUP : GROUP + 1])
            excess = np.where(np.isnan(excess), np.inf, excess)
            worst[f"optimal{label}, {bits}"] = excess / (TOLERANCE * rounding + allowed + TINY)
        if convex and not case.gap:  # firmly nonexpansive, between pairs of a group
            dx, dp = (v[:, :, None] - v[:, None] for v in (x, p))
            size = norm(x) + norm(p) + extra
            pair = size[:, :, None] + size[:, None]
            rounding = eps * pair * (norm(dx) + norm(dp))
            firm = (norm(dp) ** 2 - dot(dx, dp)) / (TOLERANCE * rounding + TINY)
            worst[f"firm, {bits}"] = np.where(np.isnan(firm), np.inf, firm)
        if is_set(name):
            off = 0.01 * norm(x - p)
            # Several rows of a polyhedron may be off, each by less, and its corners are sharp.
            roundings = 1e4 if "Polyhedron" in name else 1.1e3
            clear = off > roundings * eps * norm(p + 0.01 * (x - p))
            worst[f"outside, {bits}"] = np.where(out[4] & clear, np.inf, 0)
            worst[f"inside, {bits}"] = np.where(out[2], 0, np.inf)
            gap = norm(out[1].astype(case.dtype) - p)
            # The projection of what was 1e9 times as far has thousands of roundings at a corner.
            still = 4e3 if "Polyhedron" in name else 22
            worst[f"idempotent, {bits}"] = gap / (still * eps * norm(p) + TINY)
    return worst


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.slow])
def test_each_prox_is_optimal_at_all_scales(name):
    check(name, 0, 24)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_prox_is_optimal_at_all_scales_in_thousands_of_draws(name):
    for seed in range(1, 9):
        check(name, seed, 64)


def check(name, seed, groups):
    worst = violations(name, seed, groups)
    for label, ratio in worst.items():
        if "1%" not in label:
            assert np.max(ratio) <= 1, (label, np.max(ratio), np.argwhere(ratio > 1)[:3])
    # The check can fail: it sees an answer that is 1 % off.
    for label, ratio in worst.items():
        if "1%" in label and name not in ("Zero", "NonNegative"):
            assert np.max(ratio) > 1, label
