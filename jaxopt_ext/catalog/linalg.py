"""Rows of the matrix functions."""

import jaxopt_ext as jxt

from .cases.equivariant import EquivariantCase
from .cases.mlmc import ProductCase
from .cases.roots import RootCase
from .shapes import FunctionRow, Row

_ROOT = (
    "Song, Sebe, Wang, Fast Differentiable Matrix Square Root, ICLR 2022, arXiv:2201.08663; and "
    "Fast Differentiable Matrix Square Root and Inverse Square Root, 2022, arXiv:2201.12543"
)

LINALG: tuple[Row, ...] = (
    FunctionRow(
        "Differentiable matrix square root",
        "linalg.sqrtm",
        _ROOT,
        lambda: RootCase(
            jxt.linalg.sqrtm,
            (0.5,),
            (
                (jxt.linalg.Pade(7), jxt.linalg.Lyapunov(10)),
                (jxt.linalg.Taylor(60), jxt.linalg.Lyapunov(10)),
                (jxt.linalg.Eigh(), jxt.linalg.Exact()),
            ),
        ),
        claim="linalg/sqrtm",
        system=("S039",),
    ),
    FunctionRow(
        "Differentiable inverse matrix square root",
        "linalg.inverse_sqrtm",
        _ROOT,
        lambda: RootCase(
            jxt.linalg.inverse_sqrtm,
            (-0.5,),
            (
                (jxt.linalg.Pade(20), jxt.linalg.Exact()),
                (jxt.linalg.NewtonSchulz(10), None),
            ),
        ),
        claim="linalg/sqrtm",
        system=("S039",),
    ),
    FunctionRow(
        "Differentiable matrix square root and its inverse",
        "linalg.sqrtm_pair",
        _ROOT,
        lambda: RootCase(
            jxt.linalg.sqrtm_pair, (0.5, -0.5), ((jxt.linalg.Pade(7), jxt.linalg.Lyapunov(10)),)
        ),
        claim="linalg/sqrtm",
        system=("S039",),
    ),
    FunctionRow(
        "Group-equivariant linear layer by diagrams",
        "linalg.EquivariantLinear",
        "Pearce-Crump, An Algorithm for Computing with Brauer's Group Equivariant Neural Network "
        "Layers, 2023, arXiv:2304.14165",
        EquivariantCase,
        claim="linalg/equivariant",
        system=("S117",),
    ),
    FunctionRow(
        "Multilevel Monte Carlo matrix product",
        "linalg.MultilevelProduct",
        "Wu, Polydorides, A Multilevel Monte Carlo Estimator for Matrix Multiplication, 2019, "
        "arXiv:1904.00429",
        ProductCase,
        claim="linalg/mlmc",
        system=("S147",),
    ),
)
