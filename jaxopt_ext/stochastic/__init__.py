"""Methods that look at minibatches, and at one block or one model at a time.

They take `FiniteSum`, `Expectation` and problems with one smooth part; a step is a minibatch, and
their states count `samples`. `solve` ends at the step limit unless a method has full gradients.

- `StochasticGradient`: proximal steps with any of `estimators`; begin here.
- `NormalizedGradientDescent`, `SPIDER`: steps of normalized length, for quartics and exponentials;
  `NormalizedSGD`, `ClippedSGD` without variance reduction; `generalized_smooth_step`.
- Which iterate is returned: `Last`, `Average`, `RandomIterate`, `LeastGradient`.
- `estimators`: `SVRG`, `SPIDER`, `PAGE`, `STORM` and plain ones.
- `phase_retrieval`, `chi2_dro`: problems that they are measured on.
"""

from . import estimators
from .descent import StochasticGradient
from .examples import chi2_dro, phase_retrieval
from .outputs import AbstractOutput, Average, Last, LeastGradient, RandomIterate
from .spider import (
    SPIDER,
    ClippedSGD,
    NormalizedGradientDescent,
    NormalizedSGD,
    generalized_smooth_step,
)

__all__ = [
    "SPIDER",
    "AbstractOutput",
    "Average",
    "ClippedSGD",
    "Last",
    "LeastGradient",
    "NormalizedGradientDescent",
    "NormalizedSGD",
    "RandomIterate",
    "StochasticGradient",
    "chi2_dro",
    "estimators",
    "generalized_smooth_step",
    "phase_retrieval",
]
