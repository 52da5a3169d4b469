"""Probes of matrix units against units of known behaviour, and this machine's."""

import itertools
import time

import numpy as np

from benchmarks.claims import Outcome
from jaxopt_ext_kernels import microbench as mb

CLAIM = (
    "Seen from outside only: products of bfloat16 numbers and of tf32 ones are exact in single "
    "precision and sums differ from exact ones by at most one rounding, in this device's unit as "
    "in a model in software; widths and roundings of three model accumulators (single precision to "
    "nearest, truncated, half precision) are found, half precision errs 1000 times more than "
    "single and truncation away from zero never; sleeps of known length are recovered within "
    "20 %; and throughput does not fall by more than 10 % up to its knee; on 3 seeds."
)
SETTINGS = (
    "Nothing is tuned. 4096 results for each probe of numbers, seeds 0 to 2; times are the least "
    "of 41, chains of about 2 ms, which other processes interrupt less often than long ones, tiles "
    "of 16 in float32 and int8, 1 to 8 chains."
)
ALONE = True


def run() -> Outcome:
    table, holds = [], True
    models = {
        "nearest": _model("nearest"),
        "truncation": _model("truncation"),
        "half": _model("half"),
    }
    expected = {
        "nearest": (24, "nearest"),
        "truncation": (24, "truncation"),
        "half": (11, "nearest"),
    }
    for name, model in models.items():
        width = mb.accumulator_width(model)
        holds &= (width["bits"], width["rounding"]) == expected[name]
        table.append({"what": f"model, {name}", **width})
    for seed in range(3):
        for dtype in ("bfloat16", "tf32"):
            device = _errors(mb.unit(dtype), dtype, seed)
            model = _errors(_model("nearest", dtype), dtype, seed)
            half = _errors(_model("half", dtype), dtype, seed)
            cut = _errors(_model("truncation", dtype), dtype, seed)
            row = {"what": f"{dtype} in {mb.computed_in(dtype)}", "seed": seed}
            row |= {probe: found["error"] for probe, found in device.items()}
            row["half, accumulation"] = half["accumulation"]["error"]
            row["truncated, bias"] = cut["accumulation"]["bias"]
            table.append(row)
            holds &= device["multiplication"]["error"] == model["multiplication"]["error"] == 0
            for probe in ("addition", "accumulation"):
                # A rounding is half of an ulp, of numbers of size one to eight.
                gap = device[probe]["error"] - model[probe]["error"]
                holds &= abs(gap) <= 2.0**-24
            holds &= half["accumulation"]["error"] > 1000 * model["accumulation"]["error"]
            holds &= cut["accumulation"]["bias"] <= -0.99
    for milliseconds in (1.0, 3.0):
        found = 1000 * mb.slope(lambda n, s=milliseconds / 1000: time.sleep(0.01 + n * s), 20)
        holds &= abs(found - milliseconds) <= 0.2 * milliseconds
        table.append({"what": f"sleep of {milliseconds:g} ms", "ms": found})
    for dtype in ("float32", "int8"):
        rows = mb.throughput(dtype, (16, 16, 16), (1, 2, 4, 8), seconds=0.002, repeats=41)
        rates = [row["flops"] for row in rows]
        knee = next(i for i, row in enumerate(rows) if row["knee"])
        rising = all(b >= 0.9 * a for a, b in itertools.pairwise(rates[: knee + 1]))
        holds &= rising
        row = {"what": f"Gflop/s, {dtype}", "knee": rows[knee]["parallel"]}
        table.append(row | {f"{r['parallel']} chains": r["flops"] / 1e9 for r in rows})
    wide = mb.accumulator_width(mb.unit("float32"))
    return Outcome(
        table,
        bool(holds),
        f"Mean errors, of numbers of size one. This device adds on {wide['bits']} bits, rounding "
        f"{wide['rounding']}. That matrix units of GPUs truncate, as the paper found, is not asked "
        "of the device here.",
    )


def _errors(product, dtype, seed):
    rows = mb.numeric_profile(product, dtype, 4096, seed)
    return {row["probe"]: row for row in rows if row["drawn"] == "low"}


def _model(sums, inputs="bfloat16"):
    """A unit in software: exact but for one rounding at the end."""

    def product(a, b, c):
        exact = mb.round_to(a, inputs) @ mb.round_to(b, inputs) + np.asarray(c, float)
        if sums == "half":
            return exact.astype(np.float16)
        found = exact.astype(np.float32)
        if sums == "truncation":
            beyond = np.abs(found.astype(float)) > np.abs(exact)
            found = np.where(beyond, np.nextafter(found, np.float32(0)), found)
        return found

    return product
