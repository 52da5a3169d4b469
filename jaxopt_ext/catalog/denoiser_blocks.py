"""What denoisers are made of."""

from .cases.aggregation import AggregationCase
from .shapes import FunctionRow, Row

DENOISER_BLOCKS: tuple[Row, ...] = (
    FunctionRow(
        "Adaptive feature aggregation (AFA)",
        "diffusion.AggregatedNetwork",
        "Wang, Tian, Guan, Shen, Jiang, Gu, Zhang, Ensembling Diffusion Models via Adaptive "
        "Feature Aggregation, 2024, arXiv:2405.17082",
        AggregationCase,
        claim="diffusion/feature_aggregation",
        system=("S036",),
    ),
)
