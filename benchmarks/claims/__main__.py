"""Run the claims: `python -m benchmarks.claims [part of a name ...]`.

Prints every table and a verdict, keeps them in `.cache/claims.json`, and once all claims are there
writes `docs/claims.md`. A claim that does not hold is printed as such and does not fail the run;
one that crashes does.
"""

import importlib
import json
import pathlib
import sys
import time
import traceback
from typing import Any

from . import format_table

HERE = pathlib.Path(__file__).parent
RESULTS = pathlib.Path(".cache/claims.json")
PAGE = pathlib.Path("docs/claims.md")


def _plain(value: Any) -> float | int | str:
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, float | int) else str(value)


def page(results: dict[str, dict]) -> str:
    """All claims with their tables and verdicts, in Markdown."""
    held = sum(result["holds"] for result in results.values())
    parts = [
        "# Claims",
        "What the papers claim, run at small scale beside their own baselines: "
        f"`make claims` writes this page. {held} of {len(results)} hold as worded; the others "
        "are here with what was found instead.",
    ]
    for name, result in sorted(results.items()):
        verdict = "holds" if result["holds"] else "does not hold"
        parts += [f"## {name}: {verdict}", result["claim"]]
        parts += [f"```\n{format_table(result['table'])}\n```"]
        parts += [result["note"]] if result["note"] else []
    return "\n\n".join(parts) + "\n"


def main(filters: list[str]) -> int:
    names = sorted(
        ".".join(path.relative_to(HERE).with_suffix("").parts)
        for path in HERE.glob("*/*.py")
        if not path.name.startswith("_")
    )
    chosen = [name for name in names if not filters or any(f in name for f in filters)]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results, crashed = {name: results[name] for name in names if name in results}, 0
    for name in chosen:
        results.pop(name, None)  # one that crashes now has no verdict from before
        start = time.perf_counter()
        try:
            module = importlib.import_module(f"benchmarks.claims.{name}")
            print(f"\n{name}\n  {module.CLAIM}", flush=True)
            outcome = module.run()
        except Exception:
            crashed += 1
            traceback.print_exc()
            continue
        seconds = time.perf_counter() - start
        print(format_table(outcome.table))
        if outcome.note:
            print(f"  {outcome.note}")
        print(f"  {'holds' if outcome.holds else 'DOES NOT HOLD'} ({seconds:.0f} s)", flush=True)
        results[name] = {
            "claim": module.CLAIM,
            "holds": bool(outcome.holds),
            "seconds": round(seconds, 1),
            "table": [{k: _plain(v) for k, v in row.items()} for row in outcome.table],
            "note": outcome.note,
        }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1))
    if len(results) == len(names):
        PAGE.write_text(page(results))
    held = sum(results[name]["holds"] for name in chosen if name in results)
    print(f"\n{held} of {len(chosen)} claims hold, {crashed} crashed; details in {RESULTS}")
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
