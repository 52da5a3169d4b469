"""Networks whose blocks are differential equations in depth."""

from .cases.continuous_blocks import SecondOrderCase
from .shapes import FunctionRow, Row

CONTINUOUS_BLOCKS: tuple[Row, ...] = (
    FunctionRow(
        "Second-order dynamic block (Beyond U)",
        "diffusion.SecondOrderBlock",
        "Calvo-Ordonez, Cheng, Huang, Zhang, Yang, Schönlieb, Aviles-Rivero, Beyond U: Making "
        "Diffusion Models Faster & Lighter, 2023, arXiv:2310.20092",
        SecondOrderCase,
        claim="diffusion/beyond_u",
        system=("S111",),
    ),
)
