"""Run the comparisons: `python -m benchmarks.peers [part of a name ...]`.

What a comparison printed last is kept in `docs/peers.md`, with the day and the machine: those that
are named are run, and their parts of the page written anew.
"""

import datetime
import importlib
import os
import pathlib
import platform
import re
import sys

import jax

from benchmarks.claims import format_table

HERE = pathlib.Path(__file__).parent
PAGE = pathlib.Path("docs/peers.md")
HEAD = """# Peers

Times beside other libraries, all of a table in one run on one machine: `make peers` writes this
page, `python -m benchmarks.peers NAME` one part of it."""


def _kept() -> dict[str, str]:
    """The parts of the page by name."""
    text = PAGE.read_text() if PAGE.exists() else ""
    _, *parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))


def main(filters: list[str]) -> int:
    names = sorted(path.stem for path in HERE.glob("*.py") if not path.name.startswith("_"))
    parts = {name: text for name, text in _kept().items() if name in names}
    for name in names:
        if filters and not any(f in name for f in filters):
            continue
        module = importlib.import_module(f"benchmarks.peers.{name}")
        print(f"\n{name}: {module.TITLE}", flush=True)
        table = format_table(module.run())
        print(table, flush=True)
        machine = (
            f"{datetime.date.today()}, jax {jax.__version__}, {jax.devices()[0].platform}, "
            f"{platform.machine()}, {os.cpu_count()} cores."
        )
        parts[name] = f"{module.TITLE}\n\n{machine}\n\n```\n{table}\n```"
        sections = [f"## {name}\n\n{parts[name]}" for name in sorted(parts)]
        PAGE.write_text("\n\n".join([HEAD, *sections]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
