"""A row class for each shape of member.

Each says how the example is built, which suite runs it, and what the suite does not ask.
"""

from .aggregator import AggregatorRow
from .estimator import EstimatorRow
from .function import AbstractFunctionCase, FunctionRow
from .kernel import KernelRow
from .learner import LearnerRow
from .network import NetworkRow
from .optimizer import OptimizerRow
from .row import Row
from .sampler import SamplerRow
from .solver import SolverRow
from .training import TrainingRow

__all__ = [
    "AbstractFunctionCase",
    "AggregatorRow",
    "EstimatorRow",
    "FunctionRow",
    "KernelRow",
    "LearnerRow",
    "NetworkRow",
    "OptimizerRow",
    "Row",
    "SamplerRow",
    "SolverRow",
    "TrainingRow",
]
