"""Run the comparisons: `python -m benchmarks.peers [part of a name ...]`."""

import importlib
import pathlib
import sys

from benchmarks.claims import format_table

HERE = pathlib.Path(__file__).parent


def main(filters: list[str]) -> int:
    names = sorted(path.stem for path in HERE.glob("*.py") if not path.name.startswith("_"))
    for name in names:
        if filters and not any(f in name for f in filters):
            continue
        module = importlib.import_module(f"benchmarks.peers.{name}")
        print(f"\n{name}: {module.TITLE}", flush=True)
        print(format_table(module.run()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
