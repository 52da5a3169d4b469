"""One module per system: the paper's headline claim, run beside the paper's own baseline.

A claim module defines `CLAIM`, one sentence with its threshold, fixed before the run, and
`run() -> Outcome`, which takes less than a minute on two cores.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a claim's run showed.

    **Arguments:**

    - `table`: rows of a table, each a mapping from column to number or text.
    - `holds`: whether the claim, as worded, holds.
    - `note`: what a reader should know: seeds, tuning, and where it does not hold, what was tried.
    """

    table: Sequence[dict[str, Any]]
    holds: bool
    note: str = ""


def format_table(table: Sequence[dict[str, Any]]) -> str:
    """Render rows as aligned columns."""
    columns = list(dict.fromkeys(key for row in table for key in row))
    cells = [[_show(row.get(column, "")) for column in columns] for row in table]
    widths = [max(len(c), *(len(row[i]) for row in cells)) for i, c in enumerate(columns)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True))]
    lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    return "\n".join("  " + line.rstrip() for line in lines)


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
