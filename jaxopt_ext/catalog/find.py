"""Look-up of rows by words, and what is printed of them."""

import inspect
import pathlib
import re

from .estimators import ESTIMATORS
from .kernels import KERNELS
from .network import NETWORK
from .optimizers import OPTIMIZERS
from .rows import Row
from .samplers import SAMPLERS
from .solvers import SOLVERS

ROWS: tuple[Row, ...] = SOLVERS + OPTIMIZERS + NETWORK + SAMPLERS + ESTIMATORS + KERNELS

_PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "claims.md"


def find(*words: str) -> list[Row]:
    """The rows that hold all the words.

    **Arguments:**

    - `words`: parts of the method's name, of the public name, of the paper's authors, title, year
      or venue, or of the system's identifier; capitals do not count.

    **Returns:** the rows in the order of the table; all without a word, `[]` if none matches.

    **Raises:** `TypeError` if a word is not a string.
    """
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"words must be strings, got {word!r}")
    wanted = [word.casefold() for word in words]
    return [row for row in ROWS if all(word in _text(row) for word in wanted)]


def _text(row: Row) -> str:
    return "\n".join((row.name, row.public, row.paper, *row.system)).casefold()


def verdicts(page: pathlib.Path = _PAGE) -> dict[str, str]:
    """What became of each claim: `{"minimize/fista": "holds", ...}`.

    **Arguments:**

    - `page`: where the claims are written up, by default `docs/claims.md` of a checkout. Installed
      packages come without it, and then nothing is known.
    """
    if not page.is_file():
        return {}
    heads = re.findall(r"^## (\S+): (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.replace(".", "/"): verdict for name, verdict in heads}


def describe(row: Row, known: dict[str, str]) -> str:
    """A paragraph on a row: name, public object, its first line, paper, and verdict if known.

    **Arguments:**

    - `row`: the row.
    - `known`: the verdicts.
    """
    root = "jaxopt_ext_" if row.public.startswith("kernels.") else "jaxopt_ext."
    first, *_ = (inspect.getdoc(row.object) or "").splitlines() or [""]
    lines = [row.name, f"  {root}{row.public}", f"  {first}", f"  {row.paper}"]
    if row.claim in known:
        lines.append(f"  claim: {known[row.claim]}")
    return "\n".join(lines)
