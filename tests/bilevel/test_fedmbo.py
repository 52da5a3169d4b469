"""Federated bilevel methods against loops in numpy, enumerated paths and closed forms."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import distributed as dd
from jaxopt_ext.bilevel import (
    AveragedChain,
    Clients,
    CommonTruncation,
    ExchangedChains,
    FedMBO,
    FedNest,
    LocalHypergradient,
    OwnChains,
    OwnTruncation,
    WholeSeries,
    federated_hypergradient,
)

RIDGE = 0.05


def upper(x, y, data):
    centre, tilt = data
    return 0.5 * jnp.sum((y - centre) ** 2) + x @ tilt @ y + RIDGE / 2 * jnp.sum(x**2)


def lower(x, y, data):
    curve, coupling, shift = data
    return 0.5 * y @ curve @ y - x @ coupling @ y - shift @ y


class Quadratics:
    """Clients' levels as above, and what they are in numpy."""

    def __init__(self, seed, n, dx=3, dy=2, tilt=0.3, smallest=0.3, largest=3.0):
        rng = np.random.default_rng(seed)
        spin = np.linalg.qr(rng.normal(size=(n, dy, dy)))[0]
        values = rng.uniform(smallest, largest, (n, 1, dy))
        self.A = (spin * values) @ spin.transpose(0, 2, 1)
        self.B = rng.normal(size=(n, dx, dy))
        self.b = rng.normal(size=(n, dy))
        self.c = rng.normal(size=(n, dy))
        self.D = tilt * rng.normal(size=(n, dx, dy))
        self.x = rng.normal(size=dx)
        self.smoothness = largest
        self.y = np.linalg.solve(self.A.mean(0), self.B.mean(0).T @ self.x + self.b.mean(0))

    @property
    def data(self):
        return jax.tree.map(jnp.asarray, ((self.c, self.D), (self.A, self.B, self.b)))

    def own(self, i, x, y):
        return RIDGE * x + self.D[i] @ y

    def through(self, i, x, y):
        return y - self.c[i] + self.D[i].T @ x

    def slope(self, i, x, y):
        return self.A[i] @ y - self.B[i].T @ x - self.b[i]

    def product(self, i, r):
        return r - self.A[i] @ r / self.smoothness

    def path(self, clients):
        """The estimate whose chain passes through these clients, without the factor Q."""
        first, *middle, last = clients
        r = self.through(first, self.x, self.y)
        for i in middle:
            r = self.product(i, r)
        return self.own(first, self.x, self.y) + self.B[last] @ r / self.smoothness, r

    def neumann(self, num_terms, x=None, y=None):
        x, y = self.x if x is None else x, self.y if y is None else y
        everyone = range(len(self.A))
        mean = lambda fun: np.mean([fun(i) for i in everyone], axis=0)
        term = total = mean(lambda i: self.through(i, x, y))
        for _ in range(num_terms - 1):
            term = mean(lambda i: self.product(i, term))  # noqa: B023
            total = total + term
        return mean(lambda i: self.own(i, x, y)) + self.B.mean(0) @ total / self.smoothness


def estimates(problem, count, num_terms, *configurations, data=None):
    """Many estimates of each configuration, in one program."""
    network = dd.Network.clients(len(problem.A))
    x, y = network.replicate((jnp.asarray(problem.x), jnp.asarray(problem.y)))

    @jax.jit
    def run(data, keys):
        clients = Clients(upper, lower, data)

        def one(key, n, chain, series):
            found = federated_hypergradient(
                clients,
                x,
                y,
                network,
                key,
                num_terms=num_terms,
                smoothness=problem.smoothness,
                participants=n,
                chain=chain,
                series=series,
            )
            return found[0]

        return [jax.vmap(lambda key, c=c: one(key, *c))(keys) for c in configurations]

    keys = jax.random.split(jax.random.key(3), count)
    found = run(problem.data if data is None else data, keys)
    return [np.asarray(one) for one in found]


def standard_errors(found, wanted):
    """How many standard errors the mean is off."""
    spread = np.sqrt(found.var(axis=0, ddof=1).sum() / len(found))
    return np.linalg.norm(found.mean(axis=0) - wanted) / spread


COUNT, TERMS = 1024, 3


@functools.cache
def small():
    problem = Quadratics(0, 3)
    found = estimates(
        problem,
        COUNT,
        TERMS,
        (1, ExchangedChains(), OwnTruncation()),
        (2, ExchangedChains(), WholeSeries()),
        (None, OwnChains(), WholeSeries()),
    )
    return problem, found


def test_each_estimate_is_a_path_through_clients_and_all_are_as_likely():
    problem, (found, _, _) = small()
    paths, values = [], []
    for products in range(TERMS):
        for path in itertools.product(range(3), repeat=products + 2):
            _, r = problem.path(path)
            paths.append(path)
            values.append(
                problem.own(path[0], problem.x, problem.y)
                + TERMS * problem.B[path[-1]] @ r / problem.smoothness
            )
    values = np.array(values)
    distances = np.linalg.norm(found[:, None] - values, axis=-1)
    assert distances.min(axis=1).max() < 1e-10
    taken = [paths[i] for i in distances.argmin(axis=1)]
    lengths = np.bincount([len(path) - 2 for path in taken], minlength=TERMS)
    assert np.all(np.abs(lengths - COUNT / TERMS) < 4 * np.sqrt(COUNT / TERMS))
    # Each two stages are independent: their pairs are as frequent as each other.
    for first, second in ((0, 1), (-2, -1), (0, -1)):
        long = [(path[first], path[second]) for path in taken if len(path) == 4]
        pairs = np.bincount([3 * i + j for i, j in long], minlength=9)
        assert np.sum((pairs - len(long) / 9) ** 2) / (len(long) / 9) < 26  # 0.1% of chi2(8)


def test_the_mean_is_the_series_of_the_means_and_clients_alone_miss_it():
    problem, (found, summed, alone) = small()
    wanted = problem.neumann(TERMS)
    assert standard_errors(found, wanted) < 4
    assert standard_errors(summed, wanted) < 4
    assert summed.var(axis=0).sum() < found.var(axis=0).sum() / 3
    # Without a draw there is no variance, but a bias.
    own = [
        np.mean([problem.path((i,) + (i,) * q + (i,))[0] for i in range(3)], axis=0)
        for q in range(TERMS)
    ]
    plain = np.mean([problem.own(i, problem.x, problem.y) for i in range(3)], axis=0)
    local = plain + sum(value - plain for value in own)
    np.testing.assert_allclose(alone, np.tile(local, (COUNT, 1)), atol=1e-10)
    assert np.linalg.norm(local - wanted) > 0.05 * np.linalg.norm(wanted)


def rounds_by_hand(problem, x, y, steps, rounds=2):
    """FedNest with all clients and the whole series."""
    everyone = range(len(problem.A))
    mean = lambda fun: np.mean([fun(i) for i in everyone], axis=0)

    def corrected(slope, z, step, number):
        total = mean(lambda i: slope(i, z))
        ends = []
        for i in everyone:
            local = z
            for _ in range(number):
                local = local - step * (slope(i, local) - slope(i, z) + total)
            ends.append(local)
        return np.mean(ends, axis=0)

    for _ in range(rounds):
        for _ in range(2):
            y = corrected(lambda i, z: problem.slope(i, x, z), y, 0.2, steps)  # noqa: B023
        term = v = mean(lambda i: problem.through(i, x, y))  # noqa: B023
        for _ in range(TERMS - 1):
            term = mean(lambda i: problem.product(i, term))  # noqa: B023
            v = v + term
        slope = lambda i, z: (
            problem.own(i, z, y) + problem.B[i] @ v / problem.smoothness  # noqa: B023
        )
        x = corrected(slope, x, 0.1, 2)
    return x, y


def test_fednest_is_a_loop_over_clients():
    problem = Quadratics(1, 4)
    network = dd.Network.clients(4)
    method = FedNest(
        upper,
        lower,
        0.1,
        0.2,
        2,
        TERMS,
        problem.smoothness,
        series=WholeSeries(),
        local_steps=3,
        upper_local_steps=2,
    )
    start = np.ones(3), np.zeros(2)
    params = network.replicate(jax.tree.map(jnp.asarray, start))
    found = dd.run(method, network, params, problem.data, 2, progress=False).params
    wanted = rounds_by_hand(problem, *start, steps=3)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, np.tile(b, (4, 1)), rtol=1e-11)


def test_clients_draw_their_own_samples_and_never_the_padding():
    rows = [np.arange(1.0, 2 + i) + 10 * i for i in range(3)]
    data = dd.Padded.of(rows)
    data = dd.Padded(jnp.where(data.data == 0, jnp.nan, data.data), data.count)
    network = dd.Network.clients(3)
    level = lambda x, y, samples: jnp.sum(samples) * x
    clients = Clients(level, level, (data, data), 2)
    both = lambda problem: jnp.stack([problem.upper(1.0, 0.0), problem.lower(1.0, 0.0)])
    draw = jax.vmap(lambda key: clients.each(both, network, key))
    found = np.asarray(jax.jit(draw)(jax.random.split(jax.random.key(0), 200)))
    for i, own in enumerate(rows):
        sums = {a + b for a in own for b in own}
        assert set(found[:, i].ravel()) == sums
    assert not np.array_equal(found[:, 2, 0], found[:, 2, 1])  # levels draw apart


def _method(kind: type = FedMBO, **changes):
    fields = {
        "upper": upper,
        "lower": lower,
        "upper_step": 0.1,
        "lower_step": 0.1,
        "lower_steps": 2,
        "num_terms": 5,
        "smoothness": 3.0,
    }
    return kind(**(fields | changes))


def test_bits_count_what_a_client_sends():
    network = dd.Network.clients(4)
    x, y = (jax.ShapeDtypeStruct((4, d), jnp.float32) for d in (3, 2))
    bits = lambda *args, **changes: _method(*args, **changes).bits_per_round((x, y), network)
    assert bits() == 32 * ((2 + 5) * 2 + 2 * 3)
    assert bits(series=WholeSeries()) == 32 * ((2 + 10) * 2 + 2 * 3)
    assert bits(LocalHypergradient) == 32 * (2 * 2 + 3)
    assert bits(FedNest) == 32 * ((2 + 5) * 2 + 3)
    assert bits(FedNest, local_steps=3, upper_local_steps=2) == 32 * ((4 + 5) * 2 + 2 * 3)


BAD = {
    "step": (lambda: _method(upper_step=0.0), ValueError, "upper_step"),
    "lower step": (lambda: _method(lower_step=-1.0), ValueError, "lower_step"),
    "steps": (lambda: _method(lower_steps=0), ValueError, "lower_steps"),
    "terms": (lambda: _method(num_terms=0), ValueError, "num_terms"),
    "smoothness": (lambda: _method(smoothness=0.0), ValueError, "smoothness"),
    "participants": (lambda: _method(participants=0), ValueError, "participants"),
    "batch size": (lambda: _method(batch_size=0), ValueError, "batch_size"),
    "local steps": (lambda: _method(FedNest, local_steps=0), ValueError, "local_steps"),
    "series": (lambda: _method(series=3), TypeError, "OwnTruncation"),
    "level": (lambda: _method(upper=3), TypeError, "upper"),
    "batch": (lambda: Clients(upper, lower, jnp.zeros(3)), TypeError, "pair"),
    "pair": (lambda: _run(jnp.zeros((3, 2))), TypeError, "pair"),
    "more": (lambda: _run(participants=4), ValueError, "of 3 clients 4"),
    "padded": (lambda: _run(padded=True), ValueError, "batch_size"),
}


def _run(params=None, padded=False, **changes):
    network, problem = dd.Network.clients(3), Quadratics(0, 3)
    params = network.replicate((jnp.zeros(3), jnp.zeros(2))) if params is None else params
    data = problem.data
    if padded:
        data = (dd.Padded(jnp.zeros((3, 5)), jnp.ones(3, int)),) * 2
    return jax.eval_shape(
        lambda: dd.run(_method(**changes), network, params, data, 1, progress=False).params
    )


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, kind, said = BAD[case]
    with pytest.raises(kind, match=said):
        call()


@functools.cache
def large():
    """The size of the paper's claim: 20 clients, 25 terms."""
    problem = Quadratics(4, 20, 6, 5, tilt=0.0)
    chains = [(n, ExchangedChains(), OwnTruncation()) for n in (1, 5, None)]
    found = estimates(problem, 4000, 25, *chains, (None, OwnChains(), OwnTruncation()))
    return problem, found


@pytest.mark.slow
def test_many_clients_are_no_bias_and_less_variance():
    problem, (one, five, all20, alone) = large()
    wanted = problem.neumann(25)
    for found in (one, five, all20):
        assert standard_errors(found, wanted) < 3
    assert standard_errors(alone, wanted) > 20
    variance = lambda found: found.var(axis=0, ddof=1).sum()
    for found, n in ((five, 5), (all20, 20)):
        assert 0.75 * n < variance(one) / variance(found) < 1.25 * n


@pytest.mark.slow
def test_averaged_chains_are_the_series_and_identical_clients_agree():
    problem = Quadratics(2, 4)
    same = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], a.shape), problem.data)
    whole, common, single = estimates(
        problem,
        2000,
        8,
        (None, AveragedChain(), WholeSeries()),
        (2, AveragedChain(), CommonTruncation()),
        (None, ExchangedChains(), CommonTruncation()),
    )
    np.testing.assert_allclose(whole, np.tile(problem.neumann(8), (2000, 1)), rtol=1e-10)
    assert standard_errors(common, problem.neumann(8)) < 4
    assert standard_errors(single, problem.neumann(8)) < 4
    (chains,) = estimates(problem, 3, 8, (2, ExchangedChains(), WholeSeries()), data=same)
    first = Quadratics(2, 4)
    for name in "ABbcD":
        setattr(first, name, getattr(first, name)[:1])
    np.testing.assert_allclose(chains, np.tile(first.neumann(8), (3, 1)), rtol=1e-10)


@pytest.mark.slow
def test_an_estimate_has_derivatives():
    problem = Quadratics(3, 4)
    network = dd.Network.clients(4)
    x, y = network.replicate((jnp.asarray(problem.x), jnp.asarray(problem.y)))

    @jax.jit
    def score(data):
        clients, key = Clients(upper, lower, data), jax.random.key(5)
        found = federated_hypergradient(
            clients, x, y, network, key, num_terms=6, smoothness=3.0, participants=2
        )
        return jnp.sum(jnp.sin(found[0]))

    rng = np.random.default_rng(0)
    way = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), problem.data)
    slope = jax.grad(score)(problem.data)
    found = sum(map(jnp.vdot, jax.tree.leaves(slope), jax.tree.leaves(way)))
    moved = lambda h: jax.tree.map(lambda a, d: a + h * d, problem.data, way)
    wanted = (score(moved(1e-6)) - score(moved(-1e-6))) / 2e-6
    np.testing.assert_allclose(found, wanted, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("series", [WholeSeries(), CommonTruncation()])
def test_a_mesh_finds_what_one_device_finds(devices, series):
    problem = Quadratics(3, 8, 4, 3)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("n",))
    found = []
    for network in (
        dd.Network.clients(8),
        dd.Network.clients(8, mesh, "n", check_vma=True),
    ):
        params = network.replicate((jnp.asarray(problem.x), jnp.asarray(problem.y)))
        method = _method(participants=5, series=series)
        found.append(dd.run(method, network, params, problem.data, 5, progress=False).params)
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.slow
def test_chains_find_the_solution_and_clients_alone_do_not():
    """In the mean over rounds, which has little of the noise."""
    problem = Quadratics(5, 8, 2, 3, tilt=0.0)
    A, B, b, c = (a.mean(0) for a in (problem.A, problem.B, problem.b, problem.c))
    inverse = np.linalg.inv(A)
    curve = B @ inverse @ inverse @ B.T + RIDGE * np.eye(2)
    solution = np.linalg.solve(curve, B @ inverse @ (c - inverse @ b))
    network = dd.Network.clients(8)
    params = network.replicate((jnp.zeros(2), jnp.zeros(3)))
    far = {}
    for kind in (FedMBO, LocalHypergradient, FedNest):
        method = _method(kind, upper_step=0.05, series=WholeSeries(), num_terms=40)
        mean = dd.RunningAverage(method, burn_in=2000)
        x, _ = dd.run(mean, network, params, problem.data, 6000, progress=False).params
        far[kind] = np.linalg.norm(x[0] - solution) / np.linalg.norm(solution)
    assert far[FedNest] < 1e-3
    assert far[FedMBO] < 0.05
    assert far[LocalHypergradient] > 0.2
