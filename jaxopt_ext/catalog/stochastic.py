"""Rows of the stochastic solvers."""

import functools

import jaxopt_ext as jxt

from .shapes import SolverRow

_SPIDER = (
    "Chen, Zhou, Liang, Lu, Generalized-Smooth Nonconvex Optimization is As Efficient As Smooth "
    "Nonconvex Optimization, 2023, arXiv:2303.02854"
)
_CYCLIC = (
    "Cai, Song, Wright, Diakonikolas, Cyclic Block Coordinate Descent With Variance Reduction for "
    "Composite Nonconvex Optimization, 2023, arXiv:2212.05088"
)
_NO_PROX = {
    "problems": "FiniteSum, Expectation: the suite's have a nonsmooth part; asked in "
    "tests/stochastic/test_spider.py"
}


@functools.cache
def _shrinking():
    """Steps of given length meet a tolerance as fast as their lengths fall."""
    import optax

    return optax.exponential_decay(30.0, 1, 0.9)


STOCHASTIC: tuple[SolverRow, ...] = (
    SolverRow(
        "SPIDER",
        "stochastic.SPIDER",
        _SPIDER,
        lambda: jxt.stochastic.SPIDER(_shrinking(), tol=1e-6),
        system=("S158",),
        claim="stochastic/spider",
        opt_outs=_NO_PROX,
    ),
    SolverRow(
        "Normalized gradient descent",
        "stochastic.NormalizedGradientDescent",
        _SPIDER,
        lambda: jxt.stochastic.NormalizedGradientDescent(_shrinking()),
        system=("S158",),
        claim="stochastic/spider",
        opt_outs=_NO_PROX,
    ),
    SolverRow(
        "Stochastic model-based minimization",
        "stochastic.StochasticModelBased",
        "Davis, Drusvyatskiy, Stochastic Model-Based Minimization of Weakly Convex Functions, "
        "2019, arXiv:1803.06523",
        lambda: jxt.stochastic.StochasticModelBased(
            jxt.stochastic.Subgradient(), 30.0, tol=1e-6, max_steps=5000
        ),
        system=("S075",),
        claim="stochastic/model_based",
        opt_outs={
            "problems": "FiniteSum, Expectation: with a constant penalty the noise stays; asked in "
            "tests/stochastic/test_model_based.py"
        },
    ),
    SolverRow(
        "Cyclic proximal block descent",
        "stochastic.CyclicProximal",
        _CYCLIC,
        lambda: jxt.stochastic.CyclicProximal(0.05),
        system=("S048",),
        claim="stochastic/cyclic_block",
    ),
    SolverRow(
        "Cyclic block descent with variance reduction",
        "stochastic.VarianceReducedCyclic",
        _CYCLIC,
        lambda: jxt.stochastic.VarianceReducedCyclic(0.02, small_batch=4, tol=1e-6),
        system=("S048",),
        claim="stochastic/cyclic_block",
        opt_outs={"problems": "Expectation: without all samples the noise stays"},
    ),
    SolverRow(
        "Stochastic gradient descent",
        "stochastic.StochasticGradient",
        "Robbins, Monro, A Stochastic Approximation Method, 1951; Johnson, Zhang, Accelerating "
        "Stochastic Gradient Descent using Predictive Variance Reduction, 2013",
        lambda: jxt.stochastic.StochasticGradient(
            0.1, jxt.stochastic.estimators.SVRG(5, 8), tol=1e-6, max_steps=5000
        ),
        system=("S158",),
        opt_outs={"problems": "Expectation: without all samples the noise stays"},
    ),
    SolverRow(
        "Normalized stochastic gradient descent",
        "stochastic.NormalizedSGD",
        "Cutkosky, Mehta, Momentum Improves Normalized SGD, ICML 2020, arXiv:2002.03305",
        lambda: jxt.stochastic.NormalizedSGD(_shrinking(), tol=1e-6),
        system=("S158",),
        claim="stochastic/spider",
        opt_outs=_NO_PROX,
    ),
    SolverRow(
        "Clipped stochastic gradient descent",
        "stochastic.ClippedSGD",
        "Zhang, He, Sra, Jadbabaie, Why Gradient Clipping Accelerates Training, ICLR 2020, "
        "arXiv:1905.11881",
        lambda: jxt.stochastic.ClippedSGD(0.1, tol=1e-6, max_steps=5000),
        system=("S158",),
        claim="stochastic/spider",
        opt_outs=_NO_PROX,
    ),
)
