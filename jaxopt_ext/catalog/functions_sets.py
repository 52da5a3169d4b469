"""Rows of the minimizers of set functions."""

from jaxopt_ext.minimize import submodular

from .cases.sets import CutCase
from .shapes import FunctionRow, Row

_PAPER = (
    "El Halabi, Orfanides, Hoheisel, Difference of Submodular Minimization via DC Programming, "
    "2023, arXiv:2305.11046"
)
_DISCRETE = {"gradient": "what is found is a set, which has no derivative"}
_SAME = "its loop is that of SubmodularDCA, whose row is asked"

FUNCTIONS_SETS: tuple[Row, ...] = (
    FunctionRow(
        "Difference of submodular minimization (DCA)",
        "minimize.submodular.SubmodularDCA",
        _PAPER,
        lambda: CutCase(submodular.SubmodularDCA()),
        claim="minimize/submodular",
        system=("S044",),
        opt_outs=_DISCRETE
        | {"vmap": "tests/minimize/test_submodular.py solves a batch, where time does not matter"},
    ),
    FunctionRow(
        "Difference of submodular minimization, complete (CDCA)",
        "minimize.submodular.SubmodularCDCA",
        _PAPER,
        lambda: CutCase(submodular.SubmodularCDCA(inner_steps=3)),
        claim="minimize/submodular",
        relative=True,
        system=("S044",),
        opt_outs=_DISCRETE | {"single": _SAME, "vmap": _SAME},
    ),
)
