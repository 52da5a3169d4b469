"""One module per system: the paper's headline claim, run beside the paper's own baseline.

A claim module, `<family>/<name>.py`, defines

- `CLAIM`, one sentence with its threshold, fixed before the run;
- `SETTINGS`, how the settings of both sides were chosen, on which seeds, and which seeds are
  reported: others, unless nothing was chosen;
- `run() -> Outcome`, which takes less than a minute on two cores;
- `ALONE = True`, if it measures time: then nothing else runs beside it.

All but `run` are literals, which are read without an import. Files that start with an underscore
are what claims share.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

REASONS = ("scale", "paper", "ours")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a claim's run showed.

    **Arguments:**

    - `table`: rows of a table, each a mapping from column to number or text.
    - `holds`: whether the claim, as worded, holds.
    - `note`: what a reader should know: units, limits, and where it does not hold, what was tried.
    - `why`: what is said if it does not hold, in one line: `"scale: ..."` if the effect is not
      there at the size that runs here, `"paper: ..."` if the paper promises less than it seems to
      or more than it shows, `"ours: ..."` if our code or our choice of problem falls short. A claim
      that fails without is shown as not explained, and its run as failed, so that the table is kept
      while somebody looks for the reason.

    **Raises:** `ValueError` if `why` starts with none of these words or has more than one line.
    """

    table: Sequence[dict[str, Any]]
    holds: bool
    note: str = ""
    why: str = ""

    def __post_init__(self):
        word, _, rest = self.why.partition(": ")
        if self.why and (word not in REASONS or not rest.strip() or "\n" in self.why):
            raise ValueError(f"why must be one line, {REASONS} and a colon first, got {self.why!r}")


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
