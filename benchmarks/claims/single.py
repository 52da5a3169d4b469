"""Run one claim in this process and keep its result: `python -m benchmarks.claims.single NAME`."""

import importlib
import sys
import time
from typing import Any

from . import files


def _plain(value: Any) -> float | int | str:
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, float | int) else str(value)


def main(name: str) -> None:
    sources = {"stamp": files.stamp(name), "library": files.library()}  # those that are imported
    start = time.perf_counter()
    module = importlib.import_module(f"benchmarks.claims.{name}")
    outcome = module.run()
    result = {
        "claim": module.CLAIM,
        "settings": module.SETTINGS,
        "holds": bool(outcome.holds),
        "why": outcome.why,
        "table": [{k: _plain(v) for k, v in row.items()} for row in outcome.table],
        "note": outcome.note,
        "seconds": round(time.perf_counter() - start, 1),
        **sources,
    }
    files.write_result(name, result)


if __name__ == "__main__":
    main(sys.argv[1])
