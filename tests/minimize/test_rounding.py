"""Relaxations by a conic solver, cuts by brute force."""

import itertools

import cvxpy as cp
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

from jaxopt_ext.minimize import textbook
from jaxopt_ext.minimize.textbook import BurerMonteiro, ExactRelaxation

KEY = jax.random.key(0)
PETERSEN = nx.to_numpy_array(nx.petersen_graph())


def _relaxed(form):
    X = cp.Variable(form.shape, PSD=True)
    problem = cp.Problem(cp.Maximize(cp.trace(form @ X)), [cp.diag(X) == 1])
    problem.solve(solver=cp.CLARABEL)
    return problem.value


def _largest(form):
    signs = np.array(list(itertools.product([-1, 1], repeat=len(form) - 1)))
    signs = np.concatenate([np.ones((len(signs), 1)), signs], axis=1)
    return ((signs @ form) * signs).sum(axis=1).max()


def _laplacian(weights):
    return (np.diag(weights.sum(axis=0)) - weights) / 4


@pytest.mark.parametrize("relaxation", [ExactRelaxation(), BurerMonteiro()], ids=["exact", "low"])
def test_the_petersen_graph(relaxation):
    found = textbook.max_cut(PETERSEN, KEY, 4000, relaxation)
    form = _laplacian(PETERSEN)
    wanted = _relaxed(form)
    assert found.solved
    np.testing.assert_allclose(found.relaxed, wanted, rtol=1e-5)
    np.testing.assert_allclose(found.bound, wanted, rtol=1e-3)
    assert found.bound >= wanted - 1e-6
    np.testing.assert_allclose(found.value, _largest(form), rtol=1e-9)  # 12
    angles = np.arccos(np.clip(found.vectors @ found.vectors.T, -1, 1))
    expected = np.sum(PETERSEN * angles) / (2 * np.pi)
    assert expected >= 0.8785 * wanted  # 0.87874: the worst angle is nearly this graph's
    np.testing.assert_allclose(found.mean, expected, rtol=5e-3)
    crossing = PETERSEN * (found.signs[:, None] != found.signs)
    np.testing.assert_allclose(crossing.sum() / 2, found.value)
    np.testing.assert_allclose(jnp.linalg.norm(found.vectors, axis=1), 1, rtol=1e-6)


def test_positive_forms():
    """The expected value of a rounding is the arcsine of the Gram matrix."""
    G = np.random.default_rng(1).normal(size=(10, 3))
    form = G @ G.T
    found = textbook.max_quadratic_form(form, KEY, 4000, BurerMonteiro())
    wanted = _relaxed(form)
    np.testing.assert_allclose(found.relaxed, wanted, rtol=1e-4)
    assert found.bound >= wanted * (1 - 1e-6)
    assert found.mean >= 2 / np.pi * wanted
    gram = np.clip(found.vectors @ found.vectors.T, -1, 1)
    np.testing.assert_allclose(found.mean, 2 / np.pi * np.sum(form * np.arcsin(gram)), rtol=0.03)
    np.testing.assert_allclose(found.value, _largest(form), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_both_relaxations_agree_on_the_karate_club(dtype):
    weights = nx.to_numpy_array(nx.karate_club_graph(), weight=None)
    wanted = _relaxed(_laplacian(weights))
    for relaxation in (ExactRelaxation(), BurerMonteiro()):
        found = textbook.max_cut(jnp.asarray(weights, dtype), KEY, 100, relaxation)
        assert found.solved
        assert found.value.dtype == dtype
        np.testing.assert_allclose(found.relaxed, wanted, rtol=1e-4)
        assert found.mean >= 0.878 * wanted
        assert found.value <= found.bound <= 1.01 * wanted


def test_bad_arguments_raise():
    for form, match in (
        (np.ones((2, 3)), "square"),
        (np.array([[0.0, 1], [2, 0]]), "symmetric"),
        (np.full((2, 2), np.nan), "finite"),
    ):
        with pytest.raises(ValueError, match=match):
            textbook.max_cut(form, KEY)
        with pytest.raises(ValueError, match=match):
            textbook.max_quadratic_form(form, KEY)
    with pytest.raises(ValueError, match="num_roundings"):
        textbook.max_cut(PETERSEN, KEY, 0)
    with pytest.raises(TypeError, match="relaxation"):
        textbook.max_cut(PETERSEN, KEY, 1, "exact")
    with pytest.raises(ValueError, match="tol"):
        BurerMonteiro(tol=0.0)
