"""Look-up of rows by words, and what is printed of them."""

import importlib
import inspect
import pathlib
import pkgutil
import re
from collections.abc import Sequence

from .shapes import Row


def _collected() -> tuple[Row, ...]:
    """The rows of every file beside this one, file by file: a new file needs no entry."""
    here = pathlib.Path(__file__)
    names = sorted(module.name for module in pkgutil.iter_modules([str(here.parent)]))
    rows: list[Row] = []
    for name in names:
        if name == here.stem:
            continue
        for value in vars(importlib.import_module(f"{__package__}.{name}")).values():
            if isinstance(value, tuple) and value and all(isinstance(row, Row) for row in value):
                rows += value
    return tuple(rows)


ROWS: tuple[Row, ...] = _collected()

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_INDEX = _ROOT / "docs" / "claims" / "index.md"


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
    return "\n".join((row.name, row.public, row.paper, *identifiers(row))).casefold()


def identifiers(row: Row) -> tuple[str, ...]:
    """The systems that a row belongs to; a row may name several, one or none.

    **Arguments:**

    - `row`: the row.
    """
    system: tuple[str, ...] | str | None = row.system
    return (system,) if isinstance(system, str) else tuple(system or ())


def verdicts(index: pathlib.Path = _INDEX) -> dict[str, str]:
    """What became of each claim: `{"minimize/fista": "holds", ...}`.

    **Arguments:**

    - `index`: where the verdicts stand, by default `docs/claims/index.md` of a checkout. Installed
      packages come without it, and then nothing is known.
    """
    if not index.is_file():
        return {}
    rows = re.findall(
        r"^\| \[([\w.]+)\]\(\S+\) \| (.+) \| \S* ?\|$", index.read_text("utf-8"), re.MULTILINE
    )
    return {name.replace(".", "/"): text.replace("\\|", "|") for name, text in rows}


def describe(row: Row, known: dict[str, str]) -> str:
    """A paragraph on a row: name, public object, its first line, paper, and verdict if known.

    **Arguments:**

    - `row`: the row.
    - `known`: the verdicts.
    """
    lines = [row.name, f"  {_path(row)}", f"  {_first_line(row.object)}", f"  {row.paper}"]
    if row.claim in known:
        lines.append(f"  claim: {known[row.claim]}")
    return "\n".join(lines)


def _path(row: Row) -> str:
    root = "jaxopt_ext_" if row.public.startswith("kernels.") else "jaxopt_ext."
    return root + row.public


def _first_line(documented: object) -> str:
    first, *_ = (inspect.getdoc(documented) or "").splitlines() or [""]
    return first


def _first_sentence(documented: object) -> str:
    paragraph = (inspect.getdoc(documented) or "").partition("\n\n")[0]
    return re.split(r"(?<=\.)\s", " ".join(paragraph.split()))[0].rstrip(",:")


def markdown(rows: Sequence[Row], known: dict[str, str]) -> str:
    """A page of rows in Markdown, a table for each family, with links as seen from `docs/`.

    **Arguments:**

    - `rows`: the rows; families are in alphabetical order, rows of one keep theirs.
    - `known`: the verdicts.
    """
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row.public.partition(".")[0], []).append(row)
    parts = [
        "# Systems",
        "What is here, by family: the public object and its source, the paper, and what became of "
        "the paper's claim when it was run at small scale (all verdicts: "
        "[claims](claims/index.md)). `python -m jaxopt_ext systems --markdown` writes this page; "
        "with words instead it looks systems up.",
    ]
    for family, members in sorted(families.items()):
        lines = [_line("name", "here", "what it is", "paper", "claim", "system"), "|---" * 6 + "|"]
        lines += [_line(*_cells(row, known)) for row in members]
        parts += [f"## {family}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cells(row: Row, known: dict[str, str]) -> tuple[str, ...]:
    file = pathlib.Path(inspect.getfile(inspect.unwrap(row.object))).resolve()
    public = f"`{_path(row)}`"
    if _ROOT in file.parents:
        public = f"[{public}](../{file.relative_to(_ROOT).as_posix()})"
    paper = re.sub(
        r"arXiv:(\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})",
        r"[arXiv:\1](https://arxiv.org/abs/\1)",
        row.paper,
    )
    claim = ""
    if row.claim is not None:
        family, _, name = row.claim.partition("/")
        short, _, reason = known.get(row.claim, "not run").partition("; ")
        word = reason.partition(":")[0]
        claim = f"[{short}](claims/{family}.md#{name})" + (f" ({word})" if word else "")
    return (
        row.name,
        public,
        _first_sentence(row.object),
        paper,
        claim,
        ", ".join(identifiers(row)),
    )
