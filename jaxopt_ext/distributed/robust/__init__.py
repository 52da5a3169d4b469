"""Aggregators: one row of many, of which some may be bad.

`rule.aggregate(rows, state=None, pivot=None, key=None, mask=None)` makes one row of $m$; rows are
stacked pytrees, raveled across leaves. `tolerates(m)` says how many rows may hold anything;
what is infeasible raises `ValueError` with the numbers. Non-finite rows are never averaged, but
for `Mean`, as long as there are no more of them than that.

- `Mean`: the baseline, for honest nodes.
- `CoordinateMedian`, `TrimmedMean`: cheap, each coordinate apart.
- `GeometricMedian`, `Krum`, `NNA`: whole rows count, by their distances.
- `CenteredClip`: remembers the last result, and needs no gathering of rows; `state` is that result.
- `Flag`: the subspace that most rows lie close to.
- `NNM` and `Bucketing` make rows more alike before another rule: use them where the data of the
  nodes differ.
- `MinimumVariance`: brute force, a yardstick.
"""

from .aggregator import AbstractAggregator
from .bucketing import Bucketing
from .centered_clip import CenteredClip
from .coordinatewise import CoordinateMedian, TrimmedMean
from .flag import Flag
from .geometric_median import GeometricMedian
from .krum import Krum
from .mean import Mean
from .minimum_variance import MinimumVariance
from .neighbors import NNA, NNM

__all__ = [
    "NNA",
    "NNM",
    "AbstractAggregator",
    "Bucketing",
    "CenteredClip",
    "CoordinateMedian",
    "Flag",
    "GeometricMedian",
    "Krum",
    "Mean",
    "MinimumVariance",
    "TrimmedMean",
]
