"""Rows of what takes several objectives."""

import jaxopt_ext as jxt

from .cases.jacobian import AggregatorCase, TrainingCase, dual_projection, upgrad
from .shapes import FunctionRow, Row, SolverRow

_JD = "Quinton, Rey, Jacobian Descent for Multi-Objective Optimization, 2024, arXiv:2406.16232"
_CLAIM = "multiobjective/jacobian_descent"
_FIXED = {"gradient": "weights are taken for constants: they are not meant to be differentiated"}

MULTIOBJECTIVE: tuple[Row, ...] = (
    SolverRow(
        "Jacobian descent",
        "multiobjective.JacobianDescent",
        _JD,
        lambda: jxt.multiobjective.JacobianDescent(),
        claim=_CLAIM,
        system=("S081",),
    ),
    FunctionRow(
        "UPGrad",
        "multiobjective.UPGrad",
        _JD,
        lambda: AggregatorCase(jxt.multiobjective.UPGrad(), upgrad),
        claim=_CLAIM,
        system=("S081",),
        opt_outs=_FIXED,
    ),
    FunctionRow(
        "DualProj",
        "multiobjective.DualProj",
        "Lopez-Paz, Ranzato, Gradient Episodic Memory for Continual Learning, 2017, "
        "arXiv:1706.08840",
        lambda: AggregatorCase(jxt.multiobjective.DualProj(), dual_projection),
        claim=_CLAIM,
        opt_outs=_FIXED,
    ),
    FunctionRow(
        "Instance-wise risk minimization",
        "multiobjective.aggregated_grad",
        _JD,
        lambda: TrainingCase(whole=True),
        claim=_CLAIM,
        system=("S081",),
        opt_outs=_FIXED,
    ),
    FunctionRow(
        "Gramian of the gradients of all samples",
        "multiobjective.gramian",
        _JD,
        lambda: TrainingCase(whole=False),
        claim=_CLAIM,
        system=("S081",),
    ),
)
