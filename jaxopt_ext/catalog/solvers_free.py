"""Rows of the derivative-free solvers."""

import jaxopt_ext as jxt

from .shapes import SolverRow

_ROUGH = (
    "function values tell a minimizer no better than the square root of the precision; "
    "tests/minimize/test_consensus_based.py asks the same to a tolerance within that"
)

_NOISE = (
    "at solutions where the gradient is not zero the noise of its estimates stays; "
    "tests/minimize/test_zeroth_order.py asks for derivatives and for the accuracy of a plan"
)

SOLVERS_FREE: tuple[SolverRow, ...] = (
    SolverRow(
        "Consensus-based optimization",
        "minimize.ConsensusBased",
        "Riedl, Klock, Geldhauser, Fornasier, Gradient is All You Need?, 2023, arXiv:2306.09778",
        lambda: jxt.minimize.ConsensusBased(
            50, noise=2.0, step_size=0.1, init_scale=3.0
        ),  # meets soon
        system=("S028",),
        claim="minimize/consensus_based",
        opt_outs={check: _ROUGH for check in ("oracle", "float32", "pytree", "gradient")},
    ),
    SolverRow(
        "Consensus hopping",
        "minimize.ConsensusHopping",
        "Riedl, Klock, Geldhauser, Fornasier, Gradient is All You Need?, 2023, arXiv:2306.09778",
        lambda: jxt.minimize.ConsensusHopping(num_samples=None, inverse_temperature=100.0),
        system=("S028",),
        claim="minimize/consensus_based",
        opt_outs={"problems": "Constrained: without samples the mean is known on no set"},
    ),
    SolverRow(
        "Zeroth-order smoothing",
        "minimize.ZerothOrder",
        "Gasnikov, Novitskii, Novitskii, Abdukhakimov, Kamzolov, Beznosikov, Takáč, Dvurechensky, "
        "Gu, The Power of First-Order Smooth Optimization for Black-Box Non-Smooth Problems, 2022, "
        "arXiv:2201.12289",
        lambda: jxt.minimize.ZerothOrder(
            jxt.minimize.AcceleratedBatch(),
            jxt.minimize.SphereSmoothing(1.0, 64),
            5.0,
            confirm=True,
            max_steps=300,
        ),
        system=("S167",),
        claim="minimize/zeroth_order",
        opt_outs={
            **{check: _NOISE for check in ("oracle", "float32", "gradient")},
            "problems": "Expectation: samples are asked of `FiniteSum`; MinMax: asked by a method "
            "for it in tests/minimize/test_zeroth_order.py",
        },
    ),
)
