"""Rows of the bilevel methods."""

import jaxopt_ext as jxt

from .cases.meta import MetaGradientCase
from .shapes import FunctionRow, Row, SolverRow

BILEVEL: tuple[Row, ...] = (
    SolverRow(
        "Averaged method of multipliers",
        "bilevel.BAMM",
        "Liu, Liu, Yao, Zeng, Zhang, Averaged Method of Multipliers for Bi-Level Optimization "
        "without Lower-Level Strong Convexity, ICML 2023, arXiv:2302.03407",
        lambda: jxt.bilevel.BAMM(0.5, jxt.bilevel.PowerDecay(0.5, 0.25), x_step=0.25),
        claim="bilevel/bamm",
        system=("S050",),
    ),
    FunctionRow(
        "Model-agnostic meta-learning",
        "bilevel.MAML",
        "Finn, Abbeel, Levine, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, "
        "2017, arXiv:1703.03400; Collins, Mokhtari, Shakkottai, How Does the Task Landscape Affect "
        "MAML Performance?, CoLLAs 2022, arXiv:2010.14672",
        lambda: MetaGradientCase(jxt.bilevel.MAML),
        claim="bilevel/maml",
        system=("S110",),
    ),
    FunctionRow(
        "First-order MAML",
        "bilevel.FirstOrderMAML",
        "Finn, Abbeel, Levine, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, "
        "2017, arXiv:1703.03400",
        lambda: MetaGradientCase(jxt.bilevel.FirstOrderMAML, 1),
        claim="bilevel/maml",
        system=("S110",),
    ),
    FunctionRow(
        "MAML without Hessian products",
        "bilevel.HessianFreeMAML",
        "Fallah, Mokhtari, Ozdaglar, On the Convergence Theory of Gradient-Based Model-Agnostic "
        "Meta-Learning Algorithms, AISTATS 2020, arXiv:1908.10400",
        lambda: MetaGradientCase(jxt.bilevel.HessianFreeMAML),
        system=("S110",),
        relative=True,
    ),
    FunctionRow(
        "Training without adaptation",
        "bilevel.NonAdaptive",
        "Collins, Mokhtari, Shakkottai, How Does the Task Landscape Affect MAML Performance?, "
        "CoLLAs 2022, arXiv:2010.14672",
        lambda: MetaGradientCase(jxt.bilevel.NonAdaptive, 0),
        claim="bilevel/maml",
        system=("S110",),
    ),
)
