"""Generalized linear models against scikit-learn and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import (
    ElasticNet,
    HuberRegressor,
    Lasso,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
)
from sklearn.metrics import d2_tweedie_score
from sklearn.model_selection import cross_val_score

from jaxopt_ext import estimators, minimize, prox

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 4))
Z = X @ np.array([1.0, -0.5, 0.0, 0.3]) + 0.4
NOISE = RNG.standard_t(3, size=80)
REAL, BINARY = Z + 0.3 * NOISE, (Z + NOISE > 0).astype(int)
CLASSES, COUNTS = np.digitize(Z + 0.5 * NOISE, [-0.5, 0.8]), RNG.poisson(np.exp(0.5 * Z))
SHARP = minimize.FISTA(tol=1e-10, max_steps=50_000)
N = len(X)


def fit(response, penalty, y, **options):
    model = estimators.GeneralizedLinearModel(response, penalty, solver=SHARP)
    return model.fit(X, y, **options)


def peer(response):
    """The penalty of ours and scikit-learn's model of the same problem."""
    sharp = dict(tol=1e-12, max_iter=100_000)
    return {
        "lasso": (prox.L1(0.1), Lasso(alpha=0.1, **sharp)),
        "ridge": (prox.L2Squared(0.2), Ridge(alpha=0.2 * N, tol=1e-12)),
        "elastic net": (prox.ElasticNet(0.05, 0.05), ElasticNet(alpha=0.1, l1_ratio=0.5, **sharp)),
    }[response]


@pytest.mark.parametrize("name", ["lasso", "ridge", "elastic net"])
def test_linear_regression(name):
    penalty, model = peer(name)
    ours, theirs = fit(estimators.Continuous(), penalty, REAL), model.fit(X, REAL)
    np.testing.assert_allclose(ours.coef, theirs.coef_, atol=1e-7)
    np.testing.assert_allclose(ours.intercept, theirs.intercept_, atol=1e-7)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-6)
    np.testing.assert_allclose(ours.score(X, REAL), theirs.score(X, REAL), atol=1e-7)


@pytest.mark.parametrize(("y", "response"), [(BINARY, "binary"), (CLASSES, "classes")])
def test_logistic_regression(y, response):
    response = estimators.Binary() if response == "binary" else estimators.Categorical(3)
    ours = fit(response, prox.L2Squared(0.02), y)
    theirs = LogisticRegression(C=1 / (0.02 * N), tol=1e-12, max_iter=10_000).fit(X, y)
    coef = theirs.coef_[0] if ours.coef.ndim == 1 else theirs.coef_.T
    np.testing.assert_allclose(ours.coef, coef, atol=1e-5)
    np.testing.assert_allclose(ours.probabilities(X), theirs.predict_proba(X), atol=1e-5)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    np.testing.assert_allclose(ours.score(X, y), theirs.score(X, y))


def test_sparse_logistic_regression():
    ours = fit(estimators.Binary(), prox.L1(0.05), BINARY)
    loss = lambda w, b: np.mean(np.logaddexp(0, X @ w + b) - BINARY * (X @ w + b))
    value = loss(ours.coef, ours.intercept) + 0.05 * np.abs(ours.coef).sum()
    theirs = LogisticRegression(
        l1_ratio=1.0, C=1 / (0.05 * N), solver="saga", tol=1e-12, max_iter=100_000
    ).fit(X, BINARY)
    best = loss(theirs.coef_[0], theirs.intercept_) + 0.05 * np.abs(theirs.coef_).sum()
    assert value <= best + 1e-10
    np.testing.assert_allclose(ours.coef, theirs.coef_[0], atol=1e-4)


def test_poisson_regression():
    ours = fit(estimators.Count(), prox.L2Squared(0.1), COUNTS)
    theirs = PoissonRegressor(alpha=0.1, tol=1e-10, max_iter=10_000).fit(X, COUNTS)
    np.testing.assert_allclose(ours.coef, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-4)
    wanted = d2_tweedie_score(COUNTS, ours.predict(X), power=1)
    np.testing.assert_allclose(ours.score(X, COUNTS), wanted, rtol=1e-9)


def test_robust_regression_resists_an_outlier():
    y = REAL.copy()
    y[0] += 1000.0
    robust = fit(estimators.Robust(1.0), prox.L2Squared(1e-4), y)
    clean = fit(estimators.Continuous(), prox.L2Squared(1e-4), REAL)
    plain = fit(estimators.Continuous(), prox.L2Squared(1e-4), y)
    assert np.abs(robust.coef - clean.coef).max() < 0.2 < np.abs(plain.coef - clean.coef).max()
    # HuberRegressor estimates the scale too; with it given, the problems are the same.
    theirs = HuberRegressor(epsilon=1.5, alpha=0.0, tol=1e-10, max_iter=10_000).fit(X, REAL)
    ours = fit(estimators.Robust(1.5 * theirs.scale_), prox.Zero(), REAL)
    np.testing.assert_allclose(ours.coef, theirs.coef_, atol=1e-4)


def test_without_an_intercept():
    model = estimators.GeneralizedLinearModel(penalty=prox.L1(0.1), intercept=False, solver=SHARP)
    ours, theirs = model.fit(X, REAL), Lasso(alpha=0.1, fit_intercept=False, tol=1e-12)
    np.testing.assert_allclose(ours.coef, theirs.fit(X, REAL).coef_, atol=1e-7)
    assert ours.intercept is None


def test_cross_validation_covers_every_row_once():
    model = estimators.GeneralizedLinearModel(penalty=prox.L2Squared(0.1))
    scores = estimators.cross_validate(model, X, REAL, key=jax.random.key(0), num_folds=4)
    fold = np.asarray(jax.random.permutation(jax.random.key(0), jnp.arange(N) % 4))
    cuts = [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(4)]
    wanted = cross_val_score(Ridge(alpha=0.1 * 60), X, REAL, cv=cuts)
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    with pytest.raises(ValueError, match="3 rows are too few"):
        estimators.cross_validate(model, X[:3], REAL[:3], key=jax.random.key(0))


def test_hypergradient_through_cross_validation():
    def curve(lam):
        model = estimators.GeneralizedLinearModel(penalty=prox.L2Squared(lam), solver=SHARP)
        return jnp.mean(estimators.cross_validate(model, X, REAL, key=jax.random.key(0)))

    wanted = (curve(0.1 + 1e-4) - curve(0.1 - 1e-4)) / 2e-4
    np.testing.assert_allclose(jax.grad(curve)(0.1), wanted, rtol=1e-4)


def test_bad_parts_raise():
    with pytest.raises(TypeError, match="response"):
        estimators.GeneralizedLinearModel("binary")
    with pytest.raises(TypeError, match="penalty"):
        estimators.GeneralizedLinearModel(penalty=0.1)
    with pytest.raises(TypeError, match="solver"):
        estimators.GeneralizedLinearModel(solver=minimize.GradientDescent())
    with pytest.raises(ValueError, match="num_classes"):
        estimators.Categorical(1)
    with pytest.raises(ValueError, match="delta"):
        estimators.Robust(0.0)
    with pytest.raises(TypeError, match="no classes"):
        fit(estimators.Continuous(), prox.Zero(), REAL).probabilities(X)
