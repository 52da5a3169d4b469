"""Run the claims: `python -m benchmarks.claims [part of a name ...]`.

Prints every table and a verdict; writes `.cache/claims.json`. A claim that does not hold is
printed as such and does not fail the run; one that crashes does.
"""

import importlib
import json
import pathlib
import sys
import time
import traceback

from . import format_table

HERE = pathlib.Path(__file__).parent


def main(filters: list[str]) -> int:
    names = sorted(
        ".".join(path.relative_to(HERE).with_suffix("").parts)
        for path in HERE.glob("*/*.py")
        if not path.name.startswith("_")
    )
    chosen = [name for name in names if not filters or any(f in name for f in filters)]
    results, crashed = {}, 0
    for name in chosen:
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
            "table": [{k: str(v) for k, v in row.items()} for row in outcome.table],
            "note": outcome.note,
        }
    out = pathlib.Path(".cache/claims.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1))
    held = sum(r["holds"] for r in results.values())
    print(f"\n{held} of {len(chosen)} claims hold, {crashed} crashed; details in {out}")
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
