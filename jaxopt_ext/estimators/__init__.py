"""Models with `fit(data) -> fitted model`, pure and differentiable.

- `GeneralizedLinearModel`: linear, robust, logistic, multinomial and Poisson regression with any
  penalty of `prox`. Responses: `Continuous`, `Robust`, `Binary`, `Categorical`, `Count`.
- `regularization_path`: its fits over decreasing penalties, each from the one before, beginning at
  `largest_factor`, where the first coefficient leaves zero.
- `cross_validate`, `cross_validate_path`: scores on held-out folds, all folds in one `vmap`.

A fitted model is an equinox module with `predict` and `score`. Penalties are array leaves: `vmap`
over them for many fits at once, `grad` through `fit` for a hypergradient. Rows that are not there
have weight zero, so folds, bootstraps and ragged data sets keep one shape. Traced data that make
no sense, NaN or a class that is not there, give status non-finite; concrete ones raise.
"""

from .cross_validation import cross_validate, cross_validate_path
from .linear_model import GeneralizedLinearModel, LinearFit
from .path import RegularizationPath, largest_factor, regularization_path
from .responses import AbstractResponse, Binary, Categorical, Continuous, Count, Robust

__all__ = [
    "AbstractResponse",
    "Binary",
    "Categorical",
    "Continuous",
    "Count",
    "GeneralizedLinearModel",
    "LinearFit",
    "RegularizationPath",
    "Robust",
    "cross_validate",
    "cross_validate_path",
    "largest_factor",
    "regularization_path",
]
