"""Maps by diagrams against their matrices, and layers against the group."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.sharding import PartitionSpec as P

from jaxopt_ext.linalg import (
    Diagram,
    EquivariantLinear,
    EquivariantMLP,
    InvariantGate,
    Orthogonal,
    SpecialOrthogonal,
    Symmetric,
    Symplectic,
    apply_diagram,
    brauer_diagrams,
    free_diagrams,
    partition_diagrams,
    spanning_matrix,
)

O, SO, Sp, S = Orthogonal(), SpecialOrthogonal(), Symplectic(), Symmetric()
RNG = np.random.default_rng(0)


def element(group, n, seed=0):
    """A random element of the group."""
    rng = np.random.default_rng(seed)
    if group == S:
        return np.eye(n)[rng.permutation(n)]
    if group == Sp:
        symmetric = rng.normal(size=(n, n))
        return scipy.linalg.expm(0.4 * group.form(n) @ (symmetric + symmetric.T))
    g = np.linalg.qr(rng.normal(size=(n, n)))[0]
    wanted = 1 if group == SO else -1
    return g if np.sign(np.linalg.det(g)) == wanted else g * np.where(np.arange(n), 1, -1)


def moved(g, x, order):
    """A tensor under an element of the group: each of its last axes is."""
    for axis in range(-order, 0):
        x = np.moveaxis(np.tensordot(g, x, axes=(1, axis)), 0, axis)
    return x


def check_against_matrices(groups, orders):
    for group in groups:
        n = 4 if group == Sp else 3
        for l, k in orders:
            x = RNG.normal(size=[n] * k)
            for diagram in group.diagrams(l, k, n):
                found = apply_diagram(diagram, jnp.asarray(x), group)
                wanted = spanning_matrix(diagram, n, group) @ x.ravel()
                assert found.shape == (n,) * l
                np.testing.assert_allclose(np.ravel(found), wanted, atol=1e-12)


@pytest.mark.slow
def test_every_diagram_equals_its_matrix():
    orders = [(l, k) for l in range(4) for k in range(1, 4)]
    check_against_matrices((O, SO, S), orders)
    check_against_matrices((Sp,), [(l, k) for l, k in orders if l + k < 6])
    check_against_matrices((Sp,), [(3, 3)])


def test_some_diagrams_equal_their_matrices():
    """One program for all of a shape."""
    chosen = [
        (O, 3, 3, 3, 7),
        (SO, 3, 2, 3, 3),
        (Sp, 4, 3, 3, 7),
        (S, 3, 2, 3, 5),
        (SO, 2, 2, 2, 1),
    ]

    @jax.jit
    def apply(xs):
        return [
            [apply_diagram(d, x, group) for d in group.diagrams(l, k, n)[::step]]
            for x, (group, n, l, k, step) in zip(xs, chosen, strict=True)
        ]

    xs = [RNG.normal(size=[n] * k) for _, n, _, k, _ in chosen]
    for x, found, (group, n, l, k, step) in zip(xs, apply(xs), chosen, strict=True):
        for diagram, y in zip(group.diagrams(l, k, n)[::step], found, strict=True):
            wanted = spanning_matrix(diagram, n, group) @ x.ravel()
            np.testing.assert_allclose(np.ravel(y), wanted, atol=1e-12)


def test_counts_and_ranks():
    assert [len(brauer_diagrams(*lk)) for lk in ((2, 2), (3, 3), (1, 2), (0, 0))] == [3, 15, 0, 1]
    assert len(partition_diagrams(2, 2, 4)) == 15  # Bell's number
    assert len(partition_diagrams(2, 2, 2)) == 8
    cross = SO.diagrams(1, 2, 3)
    assert len(cross) == 1
    assert not O.diagrams(1, 2, 3)
    u, v = RNG.normal(size=(2, 3))
    found = jax.jit(lambda x: apply_diagram(cross[0], x, SO))(np.outer(u, v))
    np.testing.assert_allclose(found, np.cross(u, v), atol=1e-12)
    wanted = math.comb(5, 3) * 1
    assert len(free_diagrams(2, 3, 3)) == wanted
    for n, rank in ((3, 15), (2, 10), (1, 1)):
        stack = [spanning_matrix(d, n, O).ravel() for d in brauer_diagrams(3, 3)]
        assert np.linalg.matrix_rank(np.stack(stack)) == rank


def test_the_diagrams_span_all_maps():
    """As many as what commutes with a few random elements, found by brute force."""
    for group, n in ((O, 2), (SO, 2), (SO, 3), (Sp, 2), (S, 3)):
        for l, k in ((2, 2), (1, 3)) if n == 2 else ((2, 1), (1, 2)):
            rows = []
            for seed in range(6):
                g = element(group, n, seed)
                left = functools.reduce(np.kron, [g] * l)
                right = functools.reduce(np.kron, [g] * k)
                rows.append(
                    np.kron(left, np.eye(n**k)) - np.kron(np.eye(n**l), right.T)
                )  # vec(left M - M right)
            free = n ** (l + k) - np.linalg.matrix_rank(np.concatenate(rows), tol=1e-9)
            spanned = [spanning_matrix(d, n, group).ravel() for d in group.diagrams(l, k, n)]
            rank = np.linalg.matrix_rank(np.stack(spanned)) if spanned else 0
            assert rank == free, (group, n, l, k)


def test_layers_and_networks_commute_with_the_group():
    shapes = (
        (O, 3, (2, 2, 0)),
        (SO, 3, (1, 2, 1)),
        (Sp, 4, (1, 1, 3)),
        (S, 3, (2, 2, 1)),
    )
    make = lambda key: [
        EquivariantMLP(n, orders, (2, 3, 2), group, key=key) for group, n, orders in shapes
    ]
    models = jax.jit(make)(jax.random.key(1))
    parts = [(m.layers[0].group, m.layers[0].n, m.layers[0].diagrams[0].k) for m in models]
    # Biases that are zero, and gates that are all equal, would hide mistakes.
    models = jax.tree.map(
        lambda a: a + 0.3 * np.cos(np.arange(a.size)).reshape(a.shape),
        jax.tree.map(np.asarray, models),
    )
    xs = [RNG.normal(size=(2, *[n] * k)) for _, n, k in parts]
    elements = [element(group, n, 5) for group, n, _ in parts]
    run = jax.jit(lambda xs: [model(x) for model, x in zip(models, xs, strict=True)])
    plain = run(xs)
    turned = run([moved(g, x, k) for g, x, (_, _, k) in zip(elements, xs, parts, strict=True)])
    for model, g, y, other in zip(models, elements, plain, turned, strict=True):
        order = model.layers[-1].diagrams[0].l
        np.testing.assert_allclose(other, moved(g, np.asarray(y), order), rtol=1e-9, atol=1e-10)
        assert np.max(np.abs(y)) > 1e-3


def test_entrywise_functions_would_not_commute():
    g, x = element(O, 3), RNG.normal(size=(2, 3))
    gate = eqx.filter_jit(InvariantGate(2, 1, O))
    np.testing.assert_allclose(gate(moved(g, x, 1)), moved(g, np.asarray(gate(x)), 1))
    assert not np.allclose(np.tanh(moved(g, x, 1)), moved(g, np.tanh(x), 1))


@pytest.mark.slow
def test_batches_shards_and_derivatives():
    layer = EquivariantLinear(3, 1, 2, 2, 2, SO, key=jax.random.key(0))
    x = jnp.asarray(RNG.normal(size=(4, 2, 3)))
    score = lambda weights, x: jnp.sum(jnp.sin(with_weights(layer, weights)(x)))
    slope = jax.grad(lambda w: jnp.sum(jax.vmap(score, (None, 0))(w, x)))
    found = jax.jit(slope)(layer.weights)
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.shard_map(
        lambda w, x: jax.grad(lambda w: jax.lax.psum(score(w, x[0]), "i"))(w),
        mesh=mesh,
        in_specs=(P(), P("i")),
        out_specs=P(),
    )
    np.testing.assert_allclose(jax.jit(spread)(layer.weights, x), found, atol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.vmap(layer))(x), layer(x), atol=1e-12)
    # Unit variance in, about unit variance out.
    wide = EquivariantLinear(4, 2, 2, 40, 40, O, bias=False, key=jax.random.key(1))
    y = wide(jax.random.normal(jax.random.key(2), (40, 4, 4)))
    assert 0.5 < jnp.mean(y**2) < 2


def with_weights(layer, weights):
    return eqx.tree_at(lambda m: m.weights, layer, weights)


def test_no_matrix_is_made():
    n = 12
    layer = EquivariantLinear(n, 2, 2, 1, 1, O, key=jax.random.key(0))
    jaxpr = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(layer(x) ** 2)))(jnp.ones((1, n, n)))
    assert max(v.aval.size for e in jaxpr.jaxpr.eqns for v in e.outvars) < 20 * n * n


def test_bad_input_is_named():
    key = jax.random.key(0)
    (pair,) = brauer_diagrams(1, 1)
    cases = [
        (lambda: EquivariantLinear(3, 1, 1, 1, 1, Sp, key=key), ValueError, "n = 3"),
        (lambda: EquivariantLinear(3, 1, 2, 1, 1, O, key=key), ValueError, "no map but 0"),
        (lambda: EquivariantLinear(3, 1, 1, 0, 1, O, key=key), ValueError, "in_channels"),
        (lambda: EquivariantLinear(3, 1, 1, 1, 1, "O", key=key), TypeError, "'O'"),
        (lambda: EquivariantLinear(3, 1, 1, 1, 1, O, key=key)(jnp.ones(3)), ValueError, r"\(3,\)"),
        (lambda: EquivariantMLP(3, (1, 1), (1,), O, key=key), ValueError, r"\(1,\)"),
        (lambda: brauer_diagrams(6, 6), ValueError, r"6 \+ 6"),
        (lambda: partition_diagrams(5, 4, 3), ValueError, r"5 \+ 4"),
        (lambda: brauer_diagrams(-1, 1), ValueError, "-1"),
        (lambda: apply_diagram(pair, jnp.ones((2, 3)).T[0, 0], O), ValueError, r"\(\)"),
        (
            lambda: apply_diagram(brauer_diagrams(2, 2)[0], jnp.ones((2, 3)), O),
            ValueError,
            r"\(2, 3\)",
        ),
        (
            lambda: apply_diagram(Diagram(1, 1, (), (0, 1)), jnp.ones(3), SO),
            ValueError,
            "2 vertices",
        ),
        (lambda: apply_diagram(pair, jnp.ones(3), "O"), TypeError, "'O'"),
        (lambda: Diagram(2, 2, ((2, 0), (1, 3))), ValueError, "rise"),
        (lambda: Diagram(2, 2, ((0, 2), (1, 2))), ValueError, "once"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
