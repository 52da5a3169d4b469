"""Rows of the derivative-free solvers."""

import jaxopt_ext as jxt

from .rows import SolverRow

_ROUGH = (
    "function values tell a minimizer no better than the square root of the precision; "
    "tests/minimize/test_consensus_based.py asks the same to a tolerance within that"
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
)
