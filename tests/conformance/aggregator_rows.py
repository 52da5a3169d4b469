"""What the conformance suite of aggregators runs."""

import dataclasses
import types
from collections.abc import Callable, Mapping

from jaxopt_ext.distributed import robust

Opts = Mapping[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class AggregatorRow:
    """An aggregator of the suite.

    **Attributes:**

    - `name`: what it is called.
    - `build`: `(m, f) -> aggregator`.
    - `tolerates`: `m -> f`, the largest feasible f.
    - `opt_outs`: check -> why the suite does not ask it.
    """

    name: str
    build: Callable[[int, int], robust.AbstractAggregator]
    tolerates: Callable[[int], int]
    opt_outs: Opts = dataclasses.field(default_factory=lambda: types.MappingProxyType({}))

    def reason(self, check: str) -> str | None:
        """Why a check is not asked; `None` if it is."""
        return self.opt_outs.get(check)


HALF = lambda m: (m - 1) // 2
NO_F = {"feasible": "takes any number of rows"}
AXES = {"rotation": "looks at each coordinate apart"}
DRAWN = {"permutation": "the buckets are drawn: equal in law only"}
SMOOTH = "a few smoothed steps from a start that looks at each coordinate apart"

ROWS = (
    AggregatorRow(
        "mean",
        lambda m, f: robust.Mean(),
        lambda m: 0,
        {**NO_F, "breakdown": "one bad row moves it anywhere: it is the baseline"},
    ),
    AggregatorRow(
        "coordinate median", lambda m, f: robust.CoordinateMedian(), HALF, {**NO_F, **AXES}
    ),
    AggregatorRow("trimmed mean", lambda m, f: robust.TrimmedMean(f), HALF, AXES),
    AggregatorRow("Krum", lambda m, f: robust.Krum(f), lambda m: (m - 3) // 2),
    AggregatorRow(
        "multi-Krum", lambda m, f: robust.Krum(f, max(m - f - 2, 1)), lambda m: (m - 3) // 2
    ),
    AggregatorRow("geometric median", lambda m, f: robust.GeometricMedian(300), HALF, NO_F),
    AggregatorRow(
        "geometric median, few steps",
        lambda m, f: robust.GeometricMedian(),
        HALF,
        {**NO_F, "rotation": SMOOTH},
    ),
    AggregatorRow(
        "centered clipping",
        lambda m, f: robust.CenteredClip(2.0, 3),
        HALF,
        {
            **NO_F,
            "scale": "its threshold has the units of the rows",
            "absent": "a row that is absent still counts in m",
            "equal": "it moves by its threshold at most, from the last result",
        },
    ),
    AggregatorRow("nearest-neighbour averaging", lambda m, f: robust.NNA(f), HALF),
    AggregatorRow(
        "nearest-neighbour mixing",
        lambda m, f: robust.NNM(f, robust.CoordinateMedian()),
        HALF,
        AXES,
    ),
    AggregatorRow(
        "nearest-neighbour mixing, then Krum",
        lambda m, f: robust.NNM(f, robust.Krum(f)),
        lambda m: (m - 3) // 2,
        {"permutation": "rows mixed of the same rows tie: Krum takes the first"},
    ),
    AggregatorRow(
        "bucketing",
        lambda m, f: robust.Bucketing(2, robust.TrimmedMean(f)),
        lambda m: HALF((m + 1) // 2),
        {**DRAWN, **AXES, "absent": "a bucket may be empty, and others then hold other rows"},
    ),
    AggregatorRow(
        "minimum variance",
        lambda m, f: robust.MinimumVariance(f),
        HALF,
        {"absent": "an absent row counts among the f"},
    ),
    AggregatorRow(
        "flag",
        lambda m, f: robust.Flag(),
        lambda m: 0,
        {
            **NO_F,
            "translation": "a subspace through the origin",
            "breakdown": "a large row shrinks outside of the subspace, but does not vanish",
            "absent": "the dimension of its subspace comes from the number of all rows",
        },
    ),
    AggregatorRow(
        "flag with pairs",
        lambda m, f: robust.Flag(q=3, lam=0.5),
        lambda m: 0,
        {
            **NO_F,
            "translation": "a subspace through the origin",
            "breakdown": "a large row shrinks outside of the subspace, but does not vanish",
        },
    ),
)
