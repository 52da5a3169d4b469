"""Rows of solvers of which part of the loop runs on the host."""

import jaxopt_ext as jxt

from .cases.metric import ClusteringCase, LearnedMetricCase, NearestMetricCase
from .shapes import FunctionRow, Row, SolverRow

_PAPER = (
    "Sonthalia, Gilbert, Project and Forget: Solving Large-Scale Metric Constrained Problems, "
    "2022, arXiv:2005.03853"
)
_HOST = (
    "as many half-spaces as an oracle finds are kept on the host, whose number no compiled "
    "program knows"
)
_OUTSIDE = {
    "gradient": "the check is inside of jit; tests/minimize/test_project_and_forget.py asks the "
    "same outside"
}

SOLVERS_HOST: tuple[Row, ...] = (
    SolverRow(
        "Project and Forget",
        "minimize.ProjectAndForget",
        _PAPER,
        lambda: jxt.minimize.ProjectAndForget(),
        claim="minimize/project_and_forget",
        system=("S061",),
        opt_outs={"pytree": "a quadratic program is over one vector"},
    ),
    FunctionRow(
        "Metric nearness",
        "minimize.metric_nearness",
        _PAPER,
        lambda: NearestMetricCase(),
        claim="minimize/project_and_forget",
        system=("S061",),
        host=_HOST,
        opt_outs=_OUTSIDE,
    ),
    FunctionRow(
        "Relaxed correlation clustering",
        "minimize.correlation_clustering",
        _PAPER,
        lambda: ClusteringCase(),
        claim="minimize/project_and_forget",
        relative=True,
        system=("S061",),
        host=_HOST,
        opt_outs=_OUTSIDE,
    ),
    FunctionRow(
        "Information-theoretic metric learning",
        "minimize.itml",
        _PAPER + "; Davis, Kulis, Jain, Sra, Dhillon, Information-Theoretic Metric Learning, 2007",
        lambda: LearnedMetricCase(),
        claim="minimize/project_and_forget",
        system=("S061",),
        host=_HOST,
        opt_outs=_OUTSIDE,
    ),
)
