"""Pictures of reports, by matplotlib, which is loaded when one is drawn."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..microbench import Report


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise ImportError("pictures need matplotlib: pip install 'jaxopt-ext[plots]'") from missing
    return Figure(figsize=(6, 4), layout="constrained").add_subplot()


def roofline(report: "Report", ax: Any = None) -> Any:
    """The least of memory and peak for each type, with the products that were measured.

    **Arguments:**

    - `report`: tables of `microbench.profile`. `ax`: axes; new ones by default.
    """
    ax = _axes(ax)
    memory = max(row["load"] for row in report.tables["bandwidth"])
    bytes_of = {"float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2}
    for i, (dtype, ridge) in enumerate(report.ridge.items()):
        intensity = np.geomspace(ridge / 100, ridge * 100, 101)
        roof = memory * np.minimum(intensity, ridge)
        ax.loglog(intensity, roof, color=f"C{i}", label=dtype)
        for row in report.tables["throughput"]:
            if row["dtype"] == dtype and row["knee"]:
                m, n, k = row["shape"]
                moved = bytes_of.get(dtype, 1) * (m * k + k * n) + 4 * m * n
                ax.plot(2 * m * n * k / moved, row["flops"], "o", color=f"C{i}")
    ax.set_xlabel("operations for each byte")
    ax.set_ylabel("operations a second")
    ax.set_title(f"{report.device['backend']}: {report.device['kind']}")
    ax.legend()
    return ax


def errors(report: "Report", ax: Any = None) -> Any:
    """Relative errors of chained products against their number, a line for each unit.

    **Arguments:**

    - `report`: tables of `microbench.profile`. `ax`: axes; new ones by default.
    """
    ax = _axes(ax)
    for row in report.tables["chain"]:
        values = np.array([np.nan if e is None else e for e in row["errors"]], float)
        label = f"{row['dtype']}, {row['accumulator']}"
        ax.semilogy(np.arange(1, len(values) + 1), values, "o-", label=label)
    ax.set_xlabel("products")
    ax.set_ylabel("relative error")
    ax.legend()
    return ax
