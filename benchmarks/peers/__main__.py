"""Run the comparisons: `python -m benchmarks.peers [part of a name ...]`.

A run of all of them writes `docs/peers.md`.
"""

import importlib
import os
import pathlib
import platform
import sys

import jax

from benchmarks.claims import format_table

HERE = pathlib.Path(__file__).parent
PAGE = pathlib.Path("docs/peers.md")


def main(filters: list[str]) -> int:
    names = sorted(path.stem for path in HERE.glob("*.py") if not path.name.startswith("_"))
    parts = [
        "# Peers",
        "Times beside other libraries, on one machine, in one run: `make peers` writes this page. "
        f"jax {jax.__version__}, {jax.devices()[0].platform}, {platform.machine()}, "
        f"{os.cpu_count()} cores.",
    ]
    for name in names:
        if filters and not any(f in name for f in filters):
            continue
        module = importlib.import_module(f"benchmarks.peers.{name}")
        print(f"\n{name}: {module.TITLE}", flush=True)
        table = format_table(module.run())
        print(table, flush=True)
        parts += [f"## {name}", module.TITLE, f"```\n{table}\n```"]
    if not filters:
        PAGE.write_text("\n\n".join(parts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
