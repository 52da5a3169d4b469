"""Rows of the aggregators."""

from jaxopt_ext.distributed import robust

from .shapes import AggregatorRow

_YIN = (
    "Yin, Chen, Ramchandran, Bartlett, Byzantine-Robust Distributed Learning: Towards Optimal "
    "Statistical Rates, 2018, arXiv:1803.01498"
)
_KRUM = (
    "Blanchard, El Mhamdi, Guerraoui, Stainer, Machine Learning with Adversaries: Byzantine "
    "Tolerant Gradient Descent, 2017, arXiv:1703.02757"
)
_WEISZFELD = (
    "Pillutla, Kakade, Harchaoui, Robust Aggregation for Federated Learning, 2022, arXiv:1912.13445"
)
_NNM = (
    "Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, Fixing by Mixing: A Recipe for "
    "Optimal Byzantine ML under Heterogeneity, 2023, arXiv:2302.01772"
)
_FLAG = (
    "Almasi, Mishra, Vamanan, Ravi, Flag Aggregator: Scalable Distributed Training under Failures "
    "and Augmented Losses using Convex Optimization, 2024, arXiv:2302.05865"
)

_NO_F = {"feasible": "takes any number of rows"}
_AXES = {"rotation": "looks at each coordinate apart"}
_SHRINKS = {
    "translation": "a subspace through the origin",
    "breakdown": "a large row shrinks outside of the subspace, but does not vanish",
}


def _half(m: int) -> int:
    return (m - 1) // 2


def _krum(m: int) -> int:
    return (m - 3) // 2


AGGREGATORS: tuple[AggregatorRow, ...] = (
    AggregatorRow(
        "Mean",
        "distributed.robust.Mean",
        "McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized "
        "Data, 2017, arXiv:1602.05629",
        lambda m, f: robust.Mean(),
        tolerates=lambda m: 0,
        opt_outs=_NO_F | {"breakdown": "one bad row moves it anywhere: it is the baseline"},
    ),
    AggregatorRow(
        "Coordinate-wise median",
        "distributed.robust.CoordinateMedian",
        _YIN,
        lambda m, f: robust.CoordinateMedian(),
        tolerates=_half,
        opt_outs=_NO_F | _AXES,
    ),
    AggregatorRow(
        "Trimmed mean",
        "distributed.robust.TrimmedMean",
        _YIN,
        lambda m, f: robust.TrimmedMean(f),
        tolerates=_half,
        opt_outs=_AXES,
    ),
    AggregatorRow(
        "Krum",
        "distributed.robust.Krum",
        _KRUM,
        lambda m, f: robust.Krum(f),
        tolerates=_krum,
    ),
    AggregatorRow(
        "Multi-Krum",
        "distributed.robust.Krum",
        _KRUM,
        lambda m, f: robust.Krum(f, max(m - f - 2, 1)),
        tolerates=_krum,
    ),
    AggregatorRow(
        "Geometric median",
        "distributed.robust.GeometricMedian",
        _WEISZFELD,
        lambda m, f: robust.GeometricMedian(300),
        tolerates=_half,
        opt_outs=_NO_F,
    ),
    AggregatorRow(
        "Geometric median, few steps",
        "distributed.robust.GeometricMedian",
        _WEISZFELD,
        lambda m, f: robust.GeometricMedian(),
        tolerates=_half,
        opt_outs=_NO_F
        | {
            "rotation": "a few smoothed steps from a start that looks at each coordinate apart",
        },
    ),
    AggregatorRow(
        "Centered clipping",
        "distributed.robust.CenteredClip",
        "Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization, 2021, "
        "arXiv:2012.10333",
        lambda m, f: robust.CenteredClip(2.0, 3),
        claim="distributed/centered_clipping",
        system=("S062",),
        tolerates=_half,
        opt_outs=_NO_F
        | {
            "scale": "its threshold has the units of the rows",
            "absent": "a row that is absent still counts in m",
            "equal": "it moves by its threshold at most, from the last result",
        },
    ),
    AggregatorRow(
        "Nearest-neighbour averaging",
        "distributed.robust.NNA",
        "Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, Robust Collaborative Learning with "
        "Linear Gradient Overhead, 2023, arXiv:2210.00253",
        lambda m, f: robust.NNA(f),
        claim="distributed/monna",
        system=("S052",),
        tolerates=_half,
    ),
    AggregatorRow(
        "Nearest-neighbour mixing, then median",
        "distributed.robust.NNM",
        _NNM,
        lambda m, f: robust.NNM(f, robust.CoordinateMedian()),
        tolerates=_half,
        opt_outs=_AXES,
    ),
    AggregatorRow(
        "Nearest-neighbour mixing, then Krum",
        "distributed.robust.NNM",
        _NNM,
        lambda m, f: robust.NNM(f, robust.Krum(f)),
        tolerates=_krum,
        opt_outs={"permutation": "rows mixed of the same rows tie: Krum takes the first"},
    ),
    AggregatorRow(
        "Bucketing, then trimmed mean",
        "distributed.robust.Bucketing",
        "Karimireddy, He, Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via "
        "Bucketing, 2022, arXiv:2006.09365",
        lambda m, f: robust.Bucketing(2, robust.TrimmedMean(f)),
        tolerates=lambda m: _half((m + 1) // 2),
        opt_outs=_AXES
        | {
            "permutation": "the buckets are drawn: equal in law only",
            "absent": "a bucket may be empty, and others then hold other rows",
        },
    ),
    AggregatorRow(
        "Minimum-variance averaging",
        "distributed.robust.MinimumVariance",
        "El Mhamdi, Guerraoui, Rouault, The Hidden Vulnerability of Distributed Learning in "
        "Byzantium, 2018, arXiv:1802.07927",
        lambda m, f: robust.MinimumVariance(f),
        tolerates=_half,
        opt_outs={"absent": "an absent row counts among the f"},
    ),
    AggregatorRow(
        "Flag aggregator",
        "distributed.robust.Flag",
        _FLAG,
        lambda m, f: robust.Flag(),
        claim="distributed/flag",
        system=("S024",),
        tolerates=lambda m: 0,
        opt_outs=_NO_F
        | _SHRINKS
        | {"absent": "the dimension of its subspace comes from the number of all rows"},
    ),
    AggregatorRow(
        "Flag aggregator with pairs",
        "distributed.robust.Flag",
        _FLAG,
        lambda m, f: robust.Flag(q=3, lam=0.5),
        claim="distributed/flag",
        system=("S024",),
        tolerates=lambda m: 0,
        opt_outs=_NO_F | _SHRINKS,
    ),
)
