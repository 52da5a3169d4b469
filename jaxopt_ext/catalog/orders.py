"""Rows of autoregressive diffusion."""

from .cases.orders import LogProbCase, PolicyCase
from .shapes import FunctionRow, Row

_PAPER = (
    "Hoogeboom, Gritsenko, Bastings, Poole, van den Berg, Salimans, Autoregressive Diffusion "
    "Models, 2022, arXiv:2110.02037"
)

ORDERS: tuple[Row, ...] = (
    FunctionRow(
        "Order-agnostic autoregressive diffusion",
        "diffusion.OrderAgnostic",
        _PAPER,
        LogProbCase,
        claim="diffusion/autoregressive",
        system=("S067",),
    ),
    FunctionRow(
        "Upscaling autoregressive diffusion",
        "diffusion.Upscale",
        _PAPER,
        lambda: LogProbCase(upscale=True),
        claim="diffusion/autoregressive",
        system=("S067",),
    ),
    FunctionRow(
        "Optimal policy of parallel generation",
        "diffusion.optimal_policy",
        _PAPER,
        PolicyCase,
        claim="diffusion/autoregressive",
        system=("S067",),
        opt_outs={"nan": "a policy is whole numbers; its cost is that of the numbers given"},
    ),
)
