"""Models with `fit(data) -> fitted model`, pure and differentiable.

- `GeneralizedLinearModel`: linear, robust, logistic, multinomial and Poisson regression with any
  penalty of `prox`; `cross_validate` scores one by folds.
- Responses: `Continuous`, `Robust`, `Binary`, `Categorical`, `Count`.

A fitted model is an equinox module with `predict` and `score`. Penalties are array leaves: `vmap`
over them for a path, `grad` through `fit` for a hypergradient.
"""

from .linear_model import GeneralizedLinearModel, LinearFit, cross_validate
from .responses import AbstractResponse, Binary, Categorical, Continuous, Count, Robust

__all__ = [
    "AbstractResponse",
    "Binary",
    "Categorical",
    "Continuous",
    "Count",
    "GeneralizedLinearModel",
    "LinearFit",
    "Robust",
    "cross_validate",
]
