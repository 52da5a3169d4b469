"""Rows of the estimators."""

from collections.abc import Callable
from typing import Any

import jaxopt_ext as jxt

from .shapes import EstimatorRow

_GLM = "Nelder, Wedderburn, Generalized Linear Models, 1972"


def _model(response: Callable[[], Any], paper: str = _GLM, **options: Any) -> dict[str, Any]:
    """What the rows of one estimator share; makes no arrays before it is asked to."""

    def example():
        return jxt.estimators.GeneralizedLinearModel(response(), jxt.prox.L2Squared(0.05))

    return {
        "public": "estimators.GeneralizedLinearModel",
        "paper": paper,
        "example": example,
        "claim": "estimators/linear_model",
        **options,
    }


ESTIMATORS: tuple[EstimatorRow, ...] = (
    EstimatorRow("Linear regression", **_model(lambda: jxt.estimators.Continuous(), task="real")),
    EstimatorRow(
        "Robust linear regression",
        **_model(
            lambda: jxt.estimators.Robust(0.5),
            "Huber, Robust Estimation of a Location Parameter, 1964",
            task="real",
        ),
    ),
    EstimatorRow("Logistic regression", **_model(lambda: jxt.estimators.Binary(), task="binary")),
    EstimatorRow(
        "Multinomial regression", **_model(lambda: jxt.estimators.Categorical(3), task="classes")
    ),
    EstimatorRow("Poisson regression", **_model(lambda: jxt.estimators.Count(), task="counts")),
)
