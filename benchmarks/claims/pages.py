"""The pages on claims: one for each family, and an index with all verdicts.

Headings are the names alone, so that links to them outlive a verdict. What has no result here
stays on the pages as it was, if its claim is still there.
"""

import pathlib
import re
from typing import Any

from . import files, format_table

PAGES = files.ROOT / "docs" / "claims"


def verdict(result: dict[str, Any]) -> str:
    """In one line."""
    if result.get("crashed"):
        return "crashed"
    if result["holds"]:
        return "holds"
    return f"does not hold; {result['why'] or 'not explained yet'}"


def section(result: dict[str, Any]) -> str:
    """What is said under a claim's heading."""
    first, _, reason = verdict(result).partition("; ")
    parts = [result["claim"], f"**{first.capitalize()}.**" + (f" {reason}" if reason else "")]
    if not result.get("crashed"):
        parts += [f"```\n{format_table(result['table'])}\n```"]
        parts += [result["note"]] if result["note"] else []
        parts += [f"*Settings.* {result['settings']}"]
        late = ", before the claim's file last changed" if result.get("outdated") else ""
        sources = f"library sources {result['library']}{late}"
        parts += [f"*Run.* {result['seconds']:.0f} s, {sources}."]
    return "\n\n".join(part.strip() for part in parts)


def family_page(family: str, sections: dict[str, str]) -> str:
    """The page of a family; `sections` by the claims' names without the family."""
    parts = [f"# Claims: {family}"]
    for name, text in sorted(sections.items()):
        parts += [f"## {name}", text]
    return "\n\n".join(parts) + "\n"


def sections_of(page: pathlib.Path) -> dict[str, str]:
    """The sections that a family's page has now."""
    if not page.is_file():
        return {}
    _, *parts = re.split(r"^## (\S+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def rows_of(index: pathlib.Path) -> dict[str, tuple[str, str]]:
    """Verdict and seconds of each claim, as the index has them now."""
    if not index.is_file():
        return {}
    rows = re.findall(
        r"^\| \[(\S+)\]\(\S+\) \| (.+) \| (\S*) \|$", index.read_text("utf-8"), re.MULTILINE
    )
    return {name: (text.replace("\\|", "|"), seconds) for name, text, seconds in rows}


def index_page(rows: dict[str, tuple[str, str]]) -> str:
    """The index; `rows` has verdict and seconds of each claim."""
    held = sum(text == "holds" for text, _ in rows.values())
    ran = sum(text != "not run" for text, _ in rows.values())
    missing = f" {len(rows) - ran} have not run." if ran < len(rows) else ""
    lines = [
        "# Claims",
        "",
        "What the papers claim, run at small scale beside their own baselines: `make claims` "
        f"writes these pages. {held} of {ran} hold as worded; the others are here with what was "
        f"found instead.{missing} Where one does not hold, a word says why: *scale*, the effect is "
        "not there at the size that runs here; *paper*, the paper promises less, or shows less, "
        "than its claim; *ours*, our code or our choice of problem falls short.",
        "",
        "| claim | verdict | seconds |",
        "|---|---|---|",
    ]
    for name, (text, seconds) in sorted(rows.items()):
        family, _, short = name.partition(".")
        cell = text.replace("|", "\\|")
        lines.append(f"| [{name}]({family}.md#{short}) | {cell} | {seconds} |")
    return "\n".join(lines) + "\n"


def write(
    results: dict[str, dict[str, Any]], names: list[str], folder: pathlib.Path = PAGES
) -> None:
    """Write all pages.

    **Arguments:**

    - `results`: the results that are kept, by claim.
    - `names`: all claims that there are.
    - `folder`: where the pages go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "index.md"
    before = rows_of(index)
    rows = {name: before.get(name, ("not run", "")) for name in names}
    for name, result in results.items():
        seconds = "" if result.get("crashed") else f"{result['seconds']:.0f}"
        rows[name] = (verdict(result), seconds)
    index.write_text(index_page(rows), encoding="utf-8")
    families = {name.partition(".")[0] for name in names}
    for page in folder.glob("*.md"):
        if page != index and page.stem not in families:
            page.unlink()
    for family in sorted(families):
        page = folder / f"{family}.md"
        before = sections_of(page)
        sections = {}
        for name in names:
            if name.partition(".")[0] == family:
                short = name.partition(".")[2]
                if name in results:
                    sections[short] = section(results[name])
                elif rows[name][0] != "not run" and short in before:
                    sections[short] = before[short]
                else:
                    sections[short] = f"{files.constants(name)['CLAIM']}\n\n**Not run.**"
        page.write_text(family_page(family, sections), encoding="utf-8")
