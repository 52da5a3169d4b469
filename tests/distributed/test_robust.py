"""Aggregators against numpy, scipy and brute force."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from jaxopt_ext.distributed import robust
from jaxopt_ext.distributed.robust import coordinatewise
from jaxopt_ext.distributed.robust.rows import LANES, pairwise, row_norms, weighted_sum

M, D, F = 11, 6, 2
STACKS = np.random.default_rng(0).normal(size=(25, M, D)) + 0.5
# Ties: rows and coordinates that are equal.
STACKS[1, 3:6] = STACKS[1, 2]
STACKS[2] = np.round(STACKS[2])
PIVOT = STACKS[:, 4]
SMALL = {"atol": 1e-10}


def squared_distances(x):
    return np.array([[np.sum((a - b) ** 2) for b in x] for a in x])


def krum(x, q):
    scores = []
    for i, row in enumerate(squared_distances(x)):
        others = np.sort(np.delete(row, i))
        scores.append(np.sum(others[: M - F - 2]))
    return x[np.argsort(np.round(scores, 9), kind="stable")[:q]].mean(axis=0)


def nna(x, pivot):
    order = np.argsort([np.linalg.norm(a - pivot) for a in x], kind="stable")
    return x[order[: M - F]].mean(axis=0)


def geometric_median(x):
    smooth = lambda z: np.sum(np.sqrt(np.sum((x - z) ** 2, axis=1) + 1e-14))
    options = {"xatol": 1e-9, "fatol": 1e-13, "maxiter": 20000, "maxfev": 20000}
    start = scipy.optimize.minimize(smooth, np.median(x, axis=0), method="BFGS").x
    return scipy.optimize.minimize(smooth, start, method="Nelder-Mead", options=options).x


def clipped(x, v, tau, iterations):
    for _ in range(iterations):
        total = np.zeros_like(v)
        for row in x:
            length = np.linalg.norm(row - v)
            total += (row - v) * (min(1.0, tau / length) if length > 0 else 0.0)
        v = v + total / len(x)
    return v


def least_variance(x):
    spread = lambda rows: np.sum(np.var(rows, axis=0))
    subsets = [list(s) for s in itertools.combinations(range(M), M - F)]
    return x[min(subsets, key=lambda s: round(spread(x[s]), 9))].mean(axis=0)


def flag(x, q, lam, iters):
    """The objective's weights on all ordered pairs, with singular vectors of dense matrices."""
    unit = lambda a: a / np.linalg.norm(a)
    pairs = [(i, j) for i in range(M) for j in range(M) if i != j and np.any(x[i] != x[j])]
    rows = np.array([unit(a) for a in x])
    columns = np.concatenate([rows, [unit(x[i] - x[j]) for i, j in pairs]]) if lam else rows
    prior = np.concatenate([np.ones(M), np.full(len(columns) - M, lam / (M * (M - 1)))])
    leading = lambda a: np.linalg.svd(a.T, full_matrices=False)[0][:, :q]
    rest = lambda Y: np.clip(1 - np.sum((columns @ Y) ** 2, axis=1), 0, 1)
    objective = lambda Y: np.sum(prior * np.sqrt(rest(Y)))
    Y = best = leading(rows)
    for _ in range(iters):
        weight = np.sqrt(prior) * (rest(Y) + 1e-7) ** -0.25
        Y = leading(weight[:, None] * columns)
        best = Y if objective(Y) < objective(best) else best
    return best @ best.T @ x.mean(axis=0)


ORACLES = {
    "mean": (robust.Mean(), lambda x, p: x.mean(axis=0)),
    "median": (robust.CoordinateMedian(), lambda x, p: np.median(x, axis=0)),
    "trimmed": (robust.TrimmedMean(F), lambda x, p: scipy.stats.trim_mean(x, F / M + 1e-9)),
    "Krum": (robust.Krum(F), lambda x, p: krum(x, 1)),
    "multi-Krum": (robust.Krum(F, M - F), lambda x, p: krum(x, M - F)),
    "NNA": (robust.NNA(F), nna),
    "NNA, f = 0": (robust.NNA(0), lambda x, p: x.mean(axis=0)),
    "NNM": (
        robust.NNM(F, robust.CoordinateMedian()),
        lambda x, p: np.median([nna(x, a) for a in x], axis=0),
    ),
    "clip": (robust.CenteredClip(0.7, 3), lambda x, p: clipped(x, p, 0.7, 3)),
    "no clip": (robust.CenteredClip(jnp.inf), lambda x, p: x.mean(axis=0)),
    "brute force": (robust.MinimumVariance(F), lambda x, p: least_variance(x)),
    "one bucket": (robust.Bucketing(M, robust.CoordinateMedian()), lambda x, p: x.mean(axis=0)),
    "buckets of one": (
        robust.Bucketing(1, robust.CoordinateMedian()),
        lambda x, p: np.median(x, axis=0),
    ),
    "flag": (robust.Flag(q=2), lambda x, p: flag(x, 2, 0.0, 5)),
    "flag, one step": (robust.Flag(q=1, iters=1), lambda x, p: flag(x, 1, 0.0, 1)),
    "flag with pairs": (robust.Flag(q=3, lam=2.0), lambda x, p: flag(x, 3, 2.0, 5)),
}
GEOMETRIC = robust.GeometricMedian(num_steps=2000)


@pytest.fixture(scope="module")
def found():
    def everything(x, pivot, key):
        rules = {name: rule for name, (rule, _) in ORACLES.items()}
        out = {name: rule(x, pivot, pivot, key) for name, rule in rules.items()}
        return {**out, "geometric": GEOMETRIC(x)}

    run = jax.jit(jax.vmap(everything, (0, 0, None)))
    return run(jnp.asarray(STACKS), jnp.asarray(PIVOT), jax.random.key(0))


@pytest.mark.parametrize("name", ORACLES)
def test_each_equals_its_definition(name, found):
    for x, pivot, value in zip(STACKS, PIVOT, found[name], strict=True):
        np.testing.assert_allclose(value, ORACLES[name][1](x, pivot), **SMALL)


def test_the_geometric_median_minimizes(found):
    for x, value in zip(STACKS[:4], found["geometric"][:4], strict=True):
        np.testing.assert_allclose(value, geometric_median(x), atol=1e-4)


class Probe(robust.AbstractAggregator):
    """Shows one of the rows that a rule gets."""

    row: int = eqx.field(static=True)

    def combine(self, x, state, pivot, key, mask):
        return jnp.where(mask[self.row], x[self.row], jnp.nan)

    def tolerates(self, m):
        return 0


def test_buckets_are_drawn_without_repetition():
    x, keys = jnp.eye(7), jax.random.split(jax.random.key(0), 300)
    absent = jnp.asarray([True] * 6 + [False])
    probes = [robust.Bucketing(3, Probe(row)) for row in range(3)]

    @jax.jit
    @jax.vmap
    def run(key):
        bucket = lambda mask: jnp.stack([probe(x, key=key, mask=mask) for probe in probes])
        return bucket(None), bucket(absent)

    buckets, fewer = map(np.asarray, run(keys))
    # 3 + 3 + 1 rows, each in one bucket; the last one is as likely to be any.
    sizes = np.array([3, 3, 1])[:, None]
    np.testing.assert_allclose(np.sum(buckets * sizes, axis=1), 1)
    np.testing.assert_allclose(np.count_nonzero(buckets, axis=2), np.tile([3, 3, 1], (300, 1)))
    alone = np.bincount(np.argmax(buckets[:, 2], axis=1), minlength=7)
    assert scipy.stats.chisquare(alone).pvalue > 1e-3
    # A bucket of absent rows only is absent too, and there is one when the last is alone.
    empty = np.isnan(fewer).any(axis=2)
    np.testing.assert_array_equal(empty[:, 2], np.argmax(buckets[:, 2], axis=1) == 6)
    assert not empty[:, :2].any()
    assert np.all(np.nan_to_num(fewer)[:, :, 6] == 0)


@pytest.mark.slow
def test_neighbour_averaging_shrinks_the_spread():
    """The constants of (alpha, lambda)-reduction for n >= 11 f."""
    n, f, stacks = 22, 2, 1500
    rng = np.random.default_rng(1)
    good = rng.normal(size=(stacks, n - f, 4)) * np.exp(rng.normal(size=(stacks, n - f, 1)))
    center, spread = good.mean(axis=1, keepdims=True), good.std(axis=1, keepdims=True)
    direction = rng.normal(size=(stacks, 1, 4))
    bad = center + rng.choice([0.1, 1, 3, 10], size=(stacks, 1, 1)) * spread * np.sign(direction)
    rows = jnp.asarray(np.concatenate([np.repeat(bad, f, axis=1), good], axis=1))
    rule = robust.NNA(f)
    mix = jax.jit(jax.vmap(lambda x: jax.vmap(lambda own: rule(x, pivot=own))(x[f:])))
    y = np.asarray(mix(rows))
    gamma = lambda a: np.mean(np.sum((a - a.mean(axis=1, keepdims=True)) ** 2, axis=2), axis=1)
    moved = np.sum((y.mean(axis=1) - center[:, 0]) ** 2, axis=1)
    assert np.all(gamma(y) <= 9.88 * f / (n - f) * gamma(good))
    assert np.all(moved <= 9 * f / (n - f) * gamma(good))


def test_flag():
    rng = np.random.default_rng(2)
    rules = {"line": robust.Flag(q=1), "mean": robust.Mean()}
    signal = rng.normal(size=(4, 3, 1000)) / np.sqrt(1000)
    weights = 1 + 0.3 * rng.normal(size=(4, 12, 3))
    good = weights @ signal + 0.1 * rng.normal(size=(4, 12, 1000)) / np.sqrt(1000)
    length = 10 * np.linalg.norm(good, axis=2).mean()
    bad = rng.uniform(-1, 1, size=(4, 3, 1000))
    bad *= length / np.linalg.norm(bad, axis=2, keepdims=True)
    rows = np.concatenate([bad, good], axis=1)

    @jax.jit
    @jax.vmap
    def run(x):
        out = {name: rule(x) for name, rule in rules.items()}
        return out, [robust.Flag(q=2, iters=i).qualities(x) for i in (0, 1, 5)]

    out, qualities = run(jnp.asarray(rows, jnp.float32))
    wanted = good.mean(axis=1)
    loss = {
        name: np.linalg.norm(a - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        for name, a in out.items()
    }
    # Three of fifteen rows are large and point anywhere: what is left of them is their zero.
    assert np.all(loss["mean"] > 1)
    assert np.all(np.abs(loss["line"] - 0.2) < 0.1)
    value = np.array([np.sum(np.sqrt(1 - np.asarray(v, float)), axis=1) for v in qualities])
    assert np.all(np.diff(value, axis=0) <= 1e-5)
    assert np.all(value[-1] < value[0] - 1e-3)
    x = jnp.asarray(rows[0, :5, :40], jnp.float32)
    zero = x.at[2].set(0)

    @jax.jit
    def edges(x, zero):
        pairs = robust.Flag(lam=1.0)
        mean, unit = robust.Flag(q=9)(x), robust.Flag(q=5, normalized=True)(x)
        return mean, unit, pairs.qualities(zero), pairs(zero.at[1].set(zero[0]))

    mean, unit, quality, equal = edges(x, zero)
    np.testing.assert_allclose(mean, np.mean(x, axis=0), atol=1e-5 * np.abs(x).max())
    wanted = np.sum(x / np.linalg.norm(x, axis=1, keepdims=True), axis=0) / 5
    np.testing.assert_allclose(unit, wanted, atol=1e-5)
    assert quality[2] == 0
    assert np.all(np.isfinite(equal))


def test_too_few_rows_that_are_there_show():
    x = jnp.asarray(STACKS[0])
    mask = jnp.arange(M) < 4

    @jax.jit
    def run(mask):
        rules = [robust.TrimmedMean(F), robust.Krum(F), robust.NNA(4), robust.NNM(4, robust.Mean())]
        rules += [robust.Mean(), robust.CoordinateMedian(), robust.GeometricMedian()]
        return [rule(x, pivot=x[0], mask=mask) for rule in rules]

    few, none = run(mask), run(mask & False)
    assert all(np.isnan(a).all() for a in few[:4])
    assert not any(np.isnan(a).any() for a in few[4:])
    assert not any(np.isfinite(a).any() for a in none)


@pytest.mark.always(4)
@pytest.mark.parametrize("n", [32, 12, 7, 1, *range(2, 7), *range(8, 12), 31])
def test_the_network_sorts(n):
    """All zeros and ones, which is enough for any numbers, or many draws."""
    if n < 13:
        rows = np.array(list(itertools.product([0, 1], repeat=n))).T.copy()
    else:
        rows = np.random.default_rng(n).integers(0, 9, size=(n, 4000))
    wanted = np.sort(rows, axis=0)
    for i, j in coordinatewise.comparators(n):
        rows[i], rows[j] = np.minimum(rows[i], rows[j]), np.maximum(rows[i], rows[j])
    np.testing.assert_array_equal(rows, wanted)


@pytest.mark.parametrize("m", [5, coordinatewise.NETWORK + 1])
def test_each_coordinate_is_sorted_with_nan_behind(m):
    rows = np.random.default_rng(0).normal(size=(m, 3))
    rows[1, 0], rows[2, 1] = np.nan, -np.inf
    found = jnp.stack(list(coordinatewise.ascending(jnp.asarray(rows))))
    np.testing.assert_array_equal(
        found, np.sort(np.nan_to_num(rows, nan=np.inf, neginf=-np.inf), axis=0)
    )


def test_clipping_bounds_what_one_row_does():
    x = jnp.asarray(STACKS[0], jnp.float32)
    rule = robust.CenteredClip(0.5)
    state = jnp.zeros(D)
    run = jax.jit(lambda x: rule(x, state))
    still = run(x.at[0].set(0))
    far = run(x.at[0].set(jnp.zeros(D, x.dtype).at[1].set(1e30)))
    np.testing.assert_allclose(far - still, np.eye(D)[1] * 0.5 / M, atol=1e-6)
    np.testing.assert_allclose(run(x.at[0].set(jnp.nan)), still, atol=1e-7)


def test_bad_input_is_refused():
    x = jnp.ones((5, 2))
    bad = {
        "tau": (lambda: robust.CenteredClip(0.0), "tau must be in"),
        "NaN tau": (lambda: robust.CenteredClip(jnp.nan), "tau must be in"),
        "iterations": (lambda: robust.CenteredClip(1.0, 0), "iterations"),
        "f": (lambda: robust.TrimmedMean(-1), "f must be at least 0"),
        "q": (lambda: robust.Krum(1, 5)(x), r"q=5.*q <= m - f, got m = 5"),
        "pivot": (lambda: robust.NNA(1)(x), "pivot"),
        "key": (lambda: robust.Bucketing(2, robust.Mean())(x), "key"),
        "buckets": (
            lambda: robust.Bucketing(2, robust.TrimmedMean(2))(x, key=jax.random.key(0)),
            "m > 2 f, got m = 3",
        ),
        "inner rule": (lambda: robust.NNM(1, robust.Krum(2))(x), "2 f"),
        "brute force": (lambda: robust.MinimumVariance(1)(jnp.ones((16, 2))), "m <= 15"),
        "smoothing": (lambda: robust.GeometricMedian(8, 0.0), "smoothing"),
        "lam": (lambda: robust.Flag(lam=-1.0), "lam"),
        "beta": (lambda: robust.Flag(beta_shape=0.0), "beta_shape"),
    }
    for call, words in bad.values():
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="rule"):
        robust.Bucketing(2, "mean")


@pytest.mark.slow
def test_a_flag_from_a_random_start():
    """One reweighting of the columns by a subspace drawn uniformly, then its singular vectors."""
    rng, m, d, q = np.random.default_rng(8), 6, 9, 3
    x, key = rng.normal(size=(m, d)), jax.random.key(4)
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    start = np.linalg.qr(np.asarray(jax.random.normal(key, (d, q), jnp.float64)))[0]
    rest = 1 - np.sum((units @ start) ** 2, axis=1)
    left = np.linalg.svd((units * (rest + 1e-7)[:, None] ** -0.25).T)[0][:, :q]
    rule = robust.Flag(q, iters=1, random_start=True)
    np.testing.assert_allclose(
        rule(jnp.asarray(x), key=key), np.mean(x @ left @ left.T, axis=0), atol=1e-10
    )
    value = lambda rule: np.sum(np.sqrt(1 - rule.qualities(jnp.asarray(x), key)))
    longer = [value(robust.Flag(q, iters=k, random_start=True)) for k in (1, 5, 50)]
    assert longer[0] >= longer[1] >= longer[2]
    np.testing.assert_allclose(longer[2], value(robust.Flag(q, iters=50)), rtol=0.02)
    with pytest.raises(ValueError, match="key"):
        rule(jnp.asarray(x))
    with pytest.raises(ValueError, match="iters"):
        robust.Flag(q, iters=0, random_start=True)


@pytest.mark.always(1)
@pytest.mark.parametrize("m", [6, 1, 2, 5])
def test_distances_of_any_size(m):
    x = np.random.default_rng(m).normal(size=(m, 4))
    x[m // 2] = x[0]  # no distance, or itself
    both = jax.jit(lambda x: (pairwise(x), row_norms(x)))
    for scale in (1, 1e-25, 1e25):
        rows = (scale * x).astype(np.float32)
        wanted = np.linalg.norm(rows[:, None].astype(float) - rows.astype(float), axis=2)
        found, norms = both(jnp.asarray(rows))
        assert found.dtype == norms.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, rtol=2e-6)
        np.testing.assert_allclose(norms, np.linalg.norm(rows.astype(float), axis=1), rtol=2e-6)
    hurt = np.concatenate([rows / 1e25, np.full((1, 4), np.nan, np.float32)])
    found = np.asarray(pairwise(jnp.asarray(hurt)))
    assert np.isinf(found[m, :m]).all()
    assert np.isfinite(found[:m, :m]).all()


def test_long_rows():
    """More coordinates than lanes, not a multiple of them; rows far from zero, and a bad one."""
    d, offset = 4 * LANES + 37, 1e4
    rng = np.random.default_rng(3)
    rows = (offset + rng.normal(size=(7, d))).astype(np.float32)
    rows[2] = rows[1]
    center = (offset + 0.1 * rng.normal(size=d)).astype(np.float32)
    hurt = rows.copy()
    hurt[5, -1], hurt[6] = np.nan, 1e30
    clip, middle = robust.CenteredClip(50.0), robust.GeometricMedian(8, 0.1)

    @jax.jit
    def run(x, v):
        return pairwise(x), clip(x, v), middle(x), weighted_sum(jnp.arange(7) < 5, x)

    exact = rows.astype(float)
    near, moved, median, total = run(jnp.asarray(rows), jnp.asarray(center))
    wanted = np.linalg.norm(exact[:, None] - exact, axis=2)
    np.testing.assert_allclose(near, wanted, rtol=1e-6)
    spacing = np.spacing(np.float32(offset))
    np.testing.assert_allclose(moved, clipped(exact, center, 50.0, 1), atol=2 * spacing)
    z = np.median(exact, axis=0)
    for _ in range(8):
        weight = 1 / np.maximum(0.1, np.linalg.norm(exact - z, axis=1))
        z = weight @ exact / weight.sum()
    np.testing.assert_allclose(median, z, atol=4 * spacing)
    np.testing.assert_allclose(total, exact[:5].sum(axis=0), rtol=1e-6)

    near, moved, median, same = run(jnp.asarray(hurt), jnp.asarray(center))
    np.testing.assert_allclose(near[:5, :5], wanted[:5, :5], rtol=1e-6)
    assert np.isinf(np.delete(near[5], 5)).all()
    np.testing.assert_allclose(near[6, :5], 1e30 * np.sqrt(d), rtol=1e-6)
    there = np.delete(hurt.astype(float), 5, axis=0)
    np.testing.assert_allclose(
        moved, center + 6 / 7 * (clipped(there, center, 50.0, 1) - center), atol=2 * spacing
    )
    assert np.max(np.abs(median - offset)) < 5
    np.testing.assert_array_equal(same, total)
