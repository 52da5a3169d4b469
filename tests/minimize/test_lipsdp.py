"""Lipschitz certificates against Clarabel, sampled increments and formulas."""

import itertools

import cvxpy as cp
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import jaxopt_ext as jxt
from jaxopt_ext.minimize import (
    Affine,
    EuclideanNorm,
    GroupSort,
    Householder,
    Implicit,
    InteriorPoint,
    LipschitzCertificate,
    MaximumNorm,
    MaxMin,
    Residual,
    SlopeRestricted,
    from_equinox,
    lipschitz_bound,
    norm_product,
    sampled_lipschitz,
    split_lipschitz_bound,
    verify,
)

RELU = SlopeRestricted()
ACTIVATIONS = {
    "relu": RELU,
    "leaky": SlopeRestricted(-0.3, 1.0, lambda x: jnp.where(x > 0, x, -0.3 * x)),
    "steep": SlopeRestricted(0.5, 2.0, lambda x: jnp.where(x > 0, 2 * x, 0.5 * x)),
    "maxmin": MaxMin(),
    "groups of four": GroupSort(4),  # the last of two
    "householder": Householder(np.array([1.0, 2.0, -1.0])),
}


def _points(count, width=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, count, width)) * 10.0 ** rng.uniform(-1, 1, (2, count, 1))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in ("relu", "maxmin") else ())
        for n in ACTIVATIONS
    ],
)
def test_constraints_hold_for_all_pairs(name):
    """And that of the ball is above the one that is said to be below it."""
    activation, width = ACTIVATIONS[name], 6
    points = _points(10_000)
    size = jax.eval_shape(lambda: activation.signs(width)).shape
    drawn = np.random.default_rng(1).normal(size=(4, *size))

    @jax.jit
    def run(points, drawn, two):
        matrix = lambda multipliers: activation.matrix(multipliers, width)
        values = jax.vmap(jax.vmap(activation))(points)
        signs = activation.signs(width)
        signed = jnp.where(signs, jnp.abs(drawn), drawn)
        drawn = jnp.concatenate([signed, jnp.where(signs, 0, drawn[-1:])])
        constants = activation.passed(width), activation.slope
        return values, jax.vmap(matrix)(drawn), matrix(activation.ball(two, width)), *constants

    values, matrices, ball, passed, slope = run(points, drawn, 2.0)
    dx, dphi = (np.asarray(a[1] - a[0]) for a in (points, np.asarray(values)))
    pairs = np.concatenate([dx, dphi], axis=1)
    *matrices, unsigned = np.asarray(matrices)
    for X in matrices:
        np.testing.assert_allclose(X, X.T)
        forms = np.einsum("si,ij,sj->s", pairs, X, pairs)
        assert np.min(forms / np.sum(pairs**2, axis=1)) >= -1e-10
    passed = np.asarray(passed)
    assert np.linalg.matrix_rank(passed) == len(passed)
    np.testing.assert_allclose(dphi @ passed.T, dx @ passed.T, atol=1e-10)
    if len(passed):  # where that vanishes, only multipliers with a sign are left
        kept = np.linalg.svd(np.concatenate([passed, -passed], axis=1))[2][len(passed) :]
        np.testing.assert_allclose(kept @ unsigned @ kept.T, 0, atol=1e-10)
    gap = 2 * np.diag(np.repeat([float(slope) ** 2, -1.0], width)) - ball
    assert np.min(np.linalg.eigvalsh(gap)) > -1e-12


def test_activations_do_what_they_say():
    x, v = np.array([1.0, 3.0, -2.0, -5.0, 4.0]), np.array([0.6, 0.8])
    reflection, wide = Householder(v * 7), np.array([1.0, 2.0, -1.0])
    ends = np.array([[1.0, 1.0], [1.0, -1.0]])

    @jax.jit
    def run(x, ends):
        slopes = jnp.stack([reflection.max_slope, Householder(wide).max_slope])
        return MaxMin()(x), GroupSort(3)(x), jax.vmap(reflection)(ends), slopes

    pairs, threes, reflected, steepest = run(x, ends)
    np.testing.assert_array_equal(pairs, [3, 1, -2, -5, 4])
    np.testing.assert_array_equal(threes, [3, 1, -2, 4, -5])
    wanted = (np.eye(2) - 2 * np.outer(v, v)) @ [1, -1]
    np.testing.assert_allclose(reflected, [[1, 1], wanted])
    # Of a reflection in the maximum norm, largest at a corner of the cube.
    corners = np.array(list(itertools.product([-1, 1], repeat=3)))
    far = np.max(np.abs(corners - np.outer(corners @ wide, wide) / 3))
    np.testing.assert_allclose(steepest, [1.24, far], rtol=1e-12)


def _network(sizes, activation, seed=0):
    rng = np.random.default_rng(seed)
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [Affine(rng.normal(size=(b, a)) / np.sqrt(a)), activation]
    return layers[:-1]


def _by_clarabel(weights, masks, group=None, row=None):
    """The least sum of the inputs, with constraints written down again: features by themselves
    with slopes in [0, 1], or groups of `group`."""
    n = weights[0].shape[1]
    widths = [w.shape[0] for w in weights[:-1]]
    N = n + sum(widths)
    blocks = np.split(np.eye(N), np.cumsum([n, *widths])[:-1])
    last = weights[-1] if row is None else weights[-1][row : row + 1]
    out = last @ blocks[-1]
    inputs = cp.Variable(len(masks), nonneg=True)
    M = out.T @ out - sum(
        inputs[i] * blocks[0].T @ np.diag(mask) @ blocks[0] for i, mask in enumerate(masks)
    )
    for k, width in enumerate(widths):
        seen, gives = weights[k] @ blocks[k], blocks[k + 1]
        if group is None:
            for i in range(width):
                a, b = seen[i : i + 1], gives[i : i + 1]
                M = M + cp.Variable(nonneg=True) * (a.T @ b + b.T @ a - 2 * b.T @ b)
            continue
        for first in range(0, width, group):
            a, b = seen[first : first + group], gives[first : first + group]
            one, two = np.sum(a, 0, keepdims=True), np.sum(b, 0, keepdims=True)
            M = M + cp.Variable(nonneg=True) * (a.T @ a - b.T @ b)
            # The sums are equal: any multiple of (one - two) times each is zero.
            for other in (one, two):
                M = M + cp.Variable() * ((one - two).T @ other + other.T @ (one - two))
    problem = cp.Problem(cp.Minimize(cp.sum(inputs)), [0.5 * (M + M.T) << 0])
    problem.solve(solver=cp.CLARABEL)
    return np.sqrt(problem.value)


def _weights(layers):
    return [np.asarray(layer.weight) for layer in layers if isinstance(layer, Affine)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize(
    ("sizes", "activation", "group"),
    [
        ((10, 8, 8, 5), MaxMin(), 2),
        ((5, 7, 3), GroupSort(3), 3),
        ((10, 8, 8, 5), RELU, None),
    ],
    ids=["maxmin", "sorted with a rest", "relu"],
)
def test_equals_clarabel_and_lies_between_the_bounds(sizes, activation, group):
    layers = _network(sizes, activation)
    certificate = lipschitz_bound(layers)
    wanted = _by_clarabel(_weights(layers), np.ones((1, sizes[0])), group)
    assert certificate.status == jxt.Status.converged
    np.testing.assert_allclose(certificate.bound, wanted, rtol=1e-4)
    below = sampled_lipschitz(layers, jax.random.key(0), 500)
    assert below <= certificate.bound <= norm_product(layers)
    assert verify(certificate, layers)
    # A smaller constant has no proof, nor have multipliers of the wrong sign.
    lower = eqx.tree_at(lambda c: (c.bound, c.inputs), certificate, replace_fn=lambda a: 0.999 * a)
    assert not verify(lower, layers)
    flipped = eqx.tree_at(
        lambda c: c.multipliers, certificate, tuple(-a for a in certificate.multipliers)
    )
    assert not verify(flipped, layers)
    single = lipschitz_bound(jax.tree.map(lambda a: a.astype(jnp.float32), layers))
    assert single.bound.dtype == jnp.float32
    np.testing.assert_allclose(single.bound, wanted, rtol=5e-3)
    assert single.bound > wanted * (1 - 1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("sizes", [(10, 16, 16, 5), (10, 16, 16, 16, 1)], ids=str)
def test_wider_and_deeper_networks_equal_clarabel(sizes):
    """4.178 and 2.532, where products of norms are 6.49 and 6.37 and samples give 2.86 and 1.58."""
    layers = _network(sizes, MaxMin())
    weights = _weights(layers)
    certificate = lipschitz_bound(layers)
    assert certificate.status == jxt.Status.converged
    wanted = _by_clarabel(weights, np.ones((1, sizes[0])), 2)
    np.testing.assert_allclose(certificate.bound, wanted, rtol=1e-4)
    below = sampled_lipschitz(layers, jax.random.key(0), 500)
    above = np.prod([np.linalg.norm(W, 2) for W in weights])
    assert below <= certificate.bound < 0.7 * above
    np.testing.assert_allclose(norm_product(layers), above, rtol=1e-12)
    # Increments of the network by its definition grow by no more.
    x = np.random.default_rng(2).normal(size=(2, 2000, sizes[0]))
    x[1] = x[0] + 1e-3 * x[1]
    y = x
    for W in weights[:-1]:
        pairs = (y @ W.T).reshape(2, 2000, -1, 2)
        y = np.stack([pairs.max(-1), pairs.min(-1)], -1).reshape(2, 2000, -1)
    y = y @ weights[-1].T
    grown = np.linalg.norm(y[1] - y[0], axis=1) / np.linalg.norm(x[1] - x[0], axis=1)
    assert 0.2 * certificate.bound < np.max(grown) <= certificate.bound


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("activation", [MaxMin(), RELU], ids=["maxmin", "relu"])
def test_maximum_norm(activation):
    layers = _network((4, 6, 3), activation, seed=1)
    certificate = lipschitz_bound(layers, MaximumNorm())
    first, last = _weights(layers)
    group = 2 if isinstance(activation, GroupSort) else None
    wanted = max(_by_clarabel([first, last], np.eye(4), group, row) for row in range(3))
    np.testing.assert_allclose(certificate.bound, wanted, rtol=1e-4)
    assert verify(certificate, layers, MaximumNorm())
    if activation is RELU:  # all patterns of slopes, a lower bound on what is provable
        patterns = np.array(np.meshgrid(*[[0, 1]] * 6)).reshape(6, -1).T
        by_pattern = max(np.abs((last * s) @ first).sum(axis=1).max() for s in patterns)
        assert by_pattern <= certificate.bound * (1 + 1e-9)
    below = sampled_lipschitz(layers, jax.random.key(0), 200, MaximumNorm())
    assert below <= certificate.bound <= norm_product(layers, MaximumNorm())


def _rewritings():
    """A pair sorted, by the constraint of groups, and by ReLUs: two, or one that is shared, beside
    the input, or four without it. All are one function."""
    skip = lambda H, G, W: [Residual(H, G, W, RELU)]
    alone = Affine([[0, 1], [0, -1], [1, -1], [-1, 1]]), Affine([[1, -1, 1, 0], [1, -1, 0, -1]])
    return {
        "groups": ([Affine(np.eye(2)), MaxMin(), Affine(np.eye(2))], 1.0),
        "one relu": (skip([[0, 1], [1, 0]], [[1], [-1]], [[1, -1]]), 1.0),
        "two relus": (skip([[0, 1], [0, 1]], [[1, 0], [0, -1]], [[1, -1], [-1, 1]]), 2**0.5),
        "four relus": ([alone[0], RELU, alone[1]], 8**0.5),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", _rewritings())
def test_a_sorted_pair_and_its_rewritings(name):
    layers, wanted = _rewritings()[name]
    x = np.random.default_rng(0).normal(size=2)
    y = jnp.asarray(x)
    for layer in layers:
        y = layer(y)
    np.testing.assert_allclose(y, [x.max(), x.min()], atol=1e-12)
    certificate = lipschitz_bound(layers)
    np.testing.assert_allclose(certificate.bound, wanted, atol=1e-4)
    assert certificate.bound >= wanted * (1 - 1e-12)


@pytest.mark.slow
def test_implicit_layers_are_bounded_where_they_are_well_posed():
    rng = np.random.default_rng(3)
    W, U, C = rng.normal(size=(4, 4)), rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
    layer = lambda W: [Implicit(W, U, C, RELU)]
    W = 1.5 * W / np.linalg.norm(W, 2)
    W = W - np.eye(4) * max(0, np.max(np.linalg.eigvalsh(W + W.T)) / 2 - 0.5)
    certificate = lipschitz_bound(layer(W))  # W is no contraction
    assert np.linalg.norm(W, 2) > 1
    assert norm_product(layer(W)) == np.inf
    assert certificate.status == jxt.Status.converged
    assert verify(certificate, layer(W))
    x = jnp.asarray(rng.normal(size=3))
    z = np.zeros(4)
    for _ in range(5000):
        z = z + 0.1 * (np.maximum(W @ z + U @ x, 0) - z)
    np.testing.assert_allclose(layer(W)[0](x), C @ z, atol=1e-8)
    assert sampled_lipschitz(layer(W), jax.random.key(1), 200) <= certificate.bound
    without = lipschitz_bound(layer(2 * np.eye(4)))
    assert without.status == jxt.Status.infeasible
    assert without.bound == np.inf
    assert not verify(without, layer(2 * np.eye(4)))


@pytest.mark.slow
def test_a_solve_that_stops_early_still_certifies():
    layers = _network((6, 6, 6, 4), MaxMin())
    residual = [*layers, Residual(np.eye(4), 0.3 * np.eye(4), np.eye(4), RELU)]
    best = lipschitz_bound(residual).bound
    early = lipschitz_bound(residual, solver=InteriorPoint(tol=1e-9, max_steps=2))
    assert early.status == jxt.Status.step_limit
    assert best <= early.bound <= 1.3 * norm_product(residual)
    assert verify(early, residual)


@pytest.mark.slow
def test_derivatives_are_those_of_differences():
    layers = _network((5, 6, 6, 3), MaxMin(), seed=2)
    rng = np.random.default_rng(4)
    move = [jnp.asarray(rng.normal(size=w.shape)) for w in _weights(layers)]

    def bound(t):
        moved = iter(w + t * d for w, d in zip(_weights(layers), move, strict=True))
        return lipschitz_bound(
            [Affine(next(moved)) if isinstance(a, Affine) else a for a in layers]
        ).bound

    run = jax.jit(jax.value_and_grad(bound))
    slope = (run(1e-3)[0] - run(-1e-3)[0]) / 2e-3
    np.testing.assert_allclose(run(0.0)[1], slope, rtol=1e-4)


@pytest.mark.slow
def test_a_reflection_that_swaps_is_a_sorted_pair():
    sizes = (4, 6, 6, 3)
    sorts = lipschitz_bound(_network(sizes, MaxMin()))
    swaps = lipschitz_bound(_network(sizes, Householder(np.array([1.0, -1.0]))))
    np.testing.assert_allclose(swaps.bound, sorts.bound, rtol=1e-5)


@pytest.mark.slow
def test_parts_of_a_deep_network():
    layers = _network((5, 6, 6, 6, 6, 3), MaxMin())
    whole = lipschitz_bound(layers)
    product, parts = split_lipschitz_bound(layers, 2)
    assert [len(part.multipliers) for part in parts] == [2, 2]
    assert whole.bound <= product * (1 + 1e-9)
    assert product <= norm_product(layers)


def _digits_classifier(sizes):
    """Trained weights, by Adam on the logistic loss."""
    images, labels = load_digits(return_X_y=True)
    X, y = jnp.asarray(images / 16), jnp.asarray(labels)
    affine = [layer for layer in _network(sizes, MaxMin(), seed=5) if isinstance(layer, Affine)]
    adam = optax.adam(3e-3)

    def scores(weights, x):
        for W in weights[:-1]:
            pairs = (W @ x).reshape(-1, 2)
            x = jnp.stack([jnp.max(pairs, axis=1), jnp.min(pairs, axis=1)], axis=1).ravel()
        return weights[-1] @ x

    def loss(weights, i):
        outputs = jax.vmap(lambda x: scores(weights, x))(X[i])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, y[i]))

    def step(carry, key):
        weights, state = carry
        batch = jax.random.randint(key, (128,), 0, 1500)
        moves, state = adam.update(jax.grad(loss)(weights, batch), state)
        return (optax.apply_updates(weights, moves), state), None

    first = [layer.weight for layer in affine]
    keys = jax.random.split(jax.random.key(0), 600)
    weights = jax.jit(lambda w: jax.lax.scan(step, (w, adam.init(w)), keys)[0][0])(first)
    found = jax.vmap(lambda x: scores(weights, x))(X[1500:])
    assert jnp.mean(jnp.argmax(found, axis=1) == y[1500:]) > 0.85
    layers = list(itertools.chain.from_iterable((Affine(W), MaxMin()) for W in weights))
    return layers[:-1]


@pytest.mark.slow
def test_a_classifier_of_digits():
    """64-32-32-10: between what is sampled and the product of norms, and near the first."""
    layers = _digits_classifier((64, 32, 32, 10))
    certificate = lipschitz_bound(layers)
    assert certificate.status == jxt.Status.converged
    assert verify(certificate, layers)
    below = sampled_lipschitz(layers, jax.random.key(1), 1000)
    assert below < certificate.bound < 0.85 * norm_product(layers)
    assert certificate.bound < 1.15 * below


def test_verification_looks_at_eigenvalues_only():
    """A certificate by hand: lengths do not grow in a sorted pair."""
    layers = [Affine(3 * np.eye(2)), MaxMin(), Affine(np.eye(2))]

    @jax.jit
    def run(rho, multipliers):
        status = jxt.Status.converged
        proof = LipschitzCertificate(jnp.sqrt(rho[0, 0]), rho, (multipliers,), 0 * rho, status)
        return verify(proof, layers, EuclideanNorm()), norm_product(layers)

    def proves(rho, lam):
        holds, product = run(np.array([[rho]]), np.array([[lam, 0.0, 0.0]]))
        assert product == 3
        return holds

    assert proves(9.0, 1.0)
    assert not proves(8.9, 1.0)
    assert not proves(9.0, 0.9)
    assert not proves(9.0, 1.1)


def test_from_equinox():
    key = jax.random.key(0)
    mlp_of = lambda activation=jax.nn.relu, **kinds: eqx.nn.MLP(
        3, 2, 4, 1, activation, **kinds, key=key
    )
    mlp = mlp_of()
    layers = from_equinox(mlp)

    @eqx.filter_jit
    def run(layers, mlp, x):
        y = x
        for layer in layers:
            y = layer(y)
        return y, mlp(x)

    np.testing.assert_allclose(*run(layers, mlp, np.array([1.0, -2.0, 0.5])), atol=1e-6)
    assert isinstance(layers[1], SlopeRestricted)
    assert layers[0].weight is mlp.layers[0].weight
    tanh = mlp_of(jnp.sin)
    with pytest.raises(ValueError, match="slopes"):
        from_equinox(tanh)
    assert len(from_equinox(tanh, SlopeRestricted(-1.0, 1.0, jnp.sin))) == 3
    with pytest.raises(TypeError, match="MLP"):
        from_equinox(eqx.nn.Linear(3, 4, key=key))
    assert len(from_equinox(mlp_of(final_activation=jax.nn.identity))) == 3
    for final in (jnp.tanh, lambda x: 3 * x):
        with pytest.raises(ValueError, match="final"):
            from_equinox(mlp_of(final_activation=final))

    def relu(x):  # by name only
        return 5 * jax.nn.relu(x)

    with pytest.raises(ValueError, match="slopes"):
        from_equinox(mlp_of(relu))


def test_bad_input():
    W = np.ones((3, 2))
    with pytest.raises(ValueError, match="begin"):
        lipschitz_bound([MaxMin(), Affine(W)])
    with pytest.raises(ValueError, match="begin"):
        lipschitz_bound([])
    with pytest.raises(ValueError, match="layer 1 takes 2 features, but gets 3"):
        lipschitz_bound([Affine(W), Affine(W)])
    with pytest.raises(TypeError, match="Affine"):
        lipschitz_bound([Affine(W), jnp.tanh])
    with pytest.raises(ValueError, match="shape"):
        lipschitz_bound([Affine(np.ones(3))])
    with pytest.raises(ValueError, match="G of Residual"):
        lipschitz_bound([Residual(W, np.ones((2, 2)), W, RELU)])
    with pytest.raises(ValueError, match="groups of 2"):
        lipschitz_bound([Affine(W), Householder([1.0, 1.0])])
    with pytest.raises(TypeError, match="norm"):
        lipschitz_bound([Affine(W)], "l2")
    with pytest.raises(TypeError, match="solver"):
        lipschitz_bound([Affine(W)], solver=jxt.minimize.FISTA())
    with pytest.raises(ValueError, match="beta"):
        SlopeRestricted(1.0, 1.0)
    with pytest.raises(ValueError, match="size"):
        GroupSort(0)
    with pytest.raises(ValueError, match="length of v"):
        Householder(np.zeros(2))
    with pytest.raises(ValueError, match="size"):
        split_lipschitz_bound([Affine(W)], 0)
