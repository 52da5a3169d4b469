"""Run what the papers claim, side by side with their baselines.

Each claim runs in a process of its own, as many at a time as there are cores; those that measure
time run last and alone. A result is kept in .cache/claims/FAMILY/NAME.json as soon as it is there,
and docs/claims has the pages made of all that are kept: what is interrupted goes on from there.

What is kept runs again if the claim's file, or a file of benchmarks that it imports, has changed,
or if it crashed. A change of the library alone does not run everything again: the verdicts of older
sources are counted, each page names the sources its numbers are of, and --stale runs them.

A claim that does not hold does not fail the run; one that crashes does, and one that does not hold
and says not why.
"""

import argparse
import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from . import files, format_table, pages


class _Pool:
    """Claims in processes of their own."""

    def __init__(self, jobs: int, timeout: float):
        self.jobs, self.timeout = jobs, timeout
        self.stopping = threading.Event()
        self.running: set[subprocess.Popen] = set()

    def run(self, names: list[str]) -> Iterator[tuple[str, dict[str, Any], str]]:
        """Name, result and what was printed, as claims end."""
        alone = [name for name in names if files.constants(name).get("ALONE", False)]
        together = [name for name in names if name not in alone]
        for batch, jobs in ((together, self.jobs), (alone, 1)):
            with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
                try:
                    waiting = {pool.submit(self._one, name): name for name in batch}
                    for future in concurrent.futures.as_completed(waiting):
                        yield waiting[future], *future.result()
                except BaseException:
                    self.stopping.set()
                    pool.shutdown(wait=False, cancel_futures=True)
                    for process in list(self.running):
                        process.terminate()
                    raise

    def _one(self, name: str) -> tuple[dict[str, Any], str]:
        stamp = files.stamp(name)
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.claims.single", name],
            cwd=files.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # an interrupt is for us, and we pass it on
        )
        self.running.add(process)
        if self.stopping.is_set():
            process.terminate()
        try:
            printed, _ = process.communicate(timeout=self.timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            printed, _ = process.communicate()
            printed += f"\nstopped after {self.timeout:g} s"
        finally:
            self.running.discard(process)
        if process.returncode and not self.stopping.is_set():
            claim = files.constants(name).get("CLAIM", "")
            files.write_result(name, {"crashed": True, "claim": claim, "stamp": stamp})
        return files.read_result(name) or {}, printed


def _interrupt(*_):
    raise KeyboardInterrupt


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="families, or parts of names; all without one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--stale", action="store_true", help="also run those of older sources")
    parser.add_argument("--fresh", action="store_true", help="run all, whatever is kept")
    parser.add_argument("--tables", action="store_true", help="print the tables too")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one claim")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    return options


def _chosen(names: list[str], words: list[str]) -> list[str]:
    for word in words:
        if not any(word in name for name in names):
            raise SystemExit(f"no claim matches {word}")
    return [name for name in names if not words or any(word in name for word in words)]


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    names, library = files.names(), files.library()
    chosen = _chosen(names, options.names)
    results = {name: result for name in names if (result := files.read_result(name))}

    def current(name: str) -> bool:
        kept = results.get(name)
        return kept is not None and not kept.get("crashed") and kept["stamp"] == files.stamp(name)

    kept = [] if options.fresh else [name for name in chosen if current(name)]
    older = [name for name in kept if results[name]["library"] != library]
    if options.stale:
        kept, older = [name for name in kept if name not in older], []
    waiting = [name for name in chosen if name not in kept]
    hint = f", {len(older)} of them of older library sources (--stale runs them)" if older else ""
    print(f"{len(chosen)} claims: {len(waiting)} to run, {len(kept)} kept{hint}", flush=True)
    interrupted = False
    runs = _Pool(options.jobs, options.timeout).run(waiting)
    try:
        with contextlib.closing(runs):
            for count, (name, result, printed) in enumerate(runs, 1):
                results[name] = result
                head = f"[{count}/{len(waiting)}] {name}: {pages.verdict(result)}"
                if result.get("crashed"):
                    print(f"{head}\n{printed[-3000:]}", flush=True)
                    continue
                print(f"{head} ({result['seconds']:.0f} s)", flush=True)
                if options.tables:
                    print(f"{format_table(result['table'])}\n  {result['note']}", flush=True)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; what is done is kept", flush=True)
    for name, result in results.items():
        result["outdated"] = result["stamp"] != files.stamp(name)
    pages.write(results, names)
    done = [results[name] for name in chosen if name in results]
    crashed = sum(bool(result.get("crashed")) for result in done)
    held = sum(bool(result.get("holds")) for result in done)
    dark = [result for result in done if not (result.get("holds", True) or result["why"])]
    print(
        f"{held} of {len(done)} claims hold, {crashed} crashed, {len(dark)} fail and say not why; "
        f"pages in {pages.PAGES.relative_to(files.ROOT)}"
    )
    return 130 if interrupted else int(bool(crashed or dark))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main(sys.argv[1:]))
