"""Rows of what a sequence of matrices or systems is worked on with."""

import jaxopt_ext as jxt

from .cases.lora import AdapterLossCase, LowRankAttentionCase
from .cases.projection import ProjectionCase, SketchedCase
from .cases.relaxation import PolicyCase, RelaxedSolveCase, SequenceCase
from .cases.svd import SVDUpdateCase
from .shapes import FunctionRow, Row

_RELAX = (
    "Khodak, Chow, Balcan, Talwalkar, Learning to Relax: Setting Solver Parameters Across a "
    "Sequence of Linear System Instances, 2024, arXiv:2310.02246"
)
_LORA = (
    "Hu, Su, Kuo, Song, Liu, Computational Limits of Low-Rank Adaptation (LoRA) for "
    "Transformer-Based Models, 2025, arXiv:2406.03136"
)
_SVD = (
    "Deng, Yang, Li, Chen, Jiang, Pu, Fast Updating Truncated SVD for Representation Learning with "
    "Sparse Matrices, 2024, arXiv:2401.09703"
)
_PROJECTION = (
    "Song, Yang, Yang, Zhang, Sketching Meets Differential Privacy: Fast Algorithm for Dynamic "
    "Kronecker Projection Maintenance, 2023, arXiv:2210.11542"
)
_LAW = {"gradient": "what is drawn by the law has no derivative in what was observed"}

LINALG_SEQUENCES: tuple[Row, ...] = (
    FunctionRow(
        "Successive over-relaxation (SOR)",
        "linalg.SOR",
        _RELAX,
        lambda: RelaxedSolveCase(jxt.linalg.SOR),
        claim="linalg/sor",
        system=("S068",),
    ),
    FunctionRow(
        "Conjugate gradients preconditioned by SSOR",
        "linalg.SSORCG",
        _RELAX,
        lambda: RelaxedSolveCase(jxt.linalg.SSORCG),
        claim="linalg/sor",
        system=("S068",),
    ),
    FunctionRow(
        "Learning to relax",
        "linalg.solve_sequence",
        _RELAX,
        lambda: SequenceCase(),
        claim="linalg/sor",
        system=("S068",),
    ),
    FunctionRow(
        "ChebCB",
        "linalg.ChebCB",
        _RELAX,
        lambda: PolicyCase("chebyshev"),
        claim="linalg/sor",
        system=("S068",),
        opt_outs=_LAW,
    ),
    FunctionRow(
        "Tsallis-INF in bins of the context",
        "linalg.Binned",
        _RELAX,
        lambda: PolicyCase("binned"),
        claim="linalg/sor",
        system=("S068",),
        opt_outs=_LAW,
    ),
    FunctionRow(
        "Attention by polynomial features",
        "linalg.low_rank_attention",
        _LORA,
        lambda: LowRankAttentionCase(),
        claim="linalg/lora_gradient",
        system=("S096",),
    ),
    FunctionRow(
        "Gradients of low-rank adapters in almost linear time",
        "linalg.lora_attention_loss",
        _LORA,
        lambda: AdapterLossCase(),
        claim="linalg/lora_gradient",
        system=("S096",),
    ),
    FunctionRow(
        "Updates of a truncated singular value decomposition",
        "linalg.TruncatedSVD",
        _SVD,
        lambda: SVDUpdateCase(jxt.linalg.GramSchmidt()),
        claim="linalg/svd_update",
        system=("S073",),
    ),
    FunctionRow(
        "Dynamic Kronecker projection maintenance",
        "linalg.KroneckerProjection",
        _PROJECTION,
        lambda: ProjectionCase(jxt.linalg.TwoSided()),
        claim="linalg/projection_maintenance",
        system=("S071",),
    ),
    FunctionRow(
        "Sketched Kronecker projections under adaptive queries",
        "linalg.SketchedProjection",
        _PROJECTION,
        lambda: SketchedCase(jxt.linalg.OneSided()),
        claim="linalg/projection_maintenance",
        system=("S071",),
    ),
)
