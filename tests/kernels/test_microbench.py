"""Probes against units of known behaviour in software, and times against sleeps."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext_kernels import microbench
from jaxopt_ext_kernels.microbench import (
    Report,
    accumulator_width,
    bandwidth,
    chain_error,
    chained_dot,
    computed_in,
    latency,
    numeric_profile,
    profile,
    round_to,
    slope,
    special_values,
    throughput,
    unit,
)


def software(inputs="bfloat16", sums="nearest", flush=False):
    """A unit by numpy: inputs rounded, products exact, one rounding at the end or none."""

    def product(a, b, c):
        a, b = round_to(a, inputs), round_to(b, inputs)
        with np.errstate(invalid="ignore", over="ignore"):
            exact = a @ b + np.asarray(c, np.float64)
            if sums == "half":
                return exact.astype(np.float16)
            found = exact.astype(np.float32)
            if sums == "truncation":
                low = np.nextafter(found, np.float32(0))
                found = np.where(np.abs(found.astype(np.float64)) > np.abs(exact), low, found)
        small = np.abs(found) < np.finfo(np.float32).tiny
        return np.where(small, 0, found) if flush else found

    return product


def test_accumulators_are_told_apart():
    assert accumulator_width(software()) == {"bits": 24, "rounding": "nearest"}
    assert accumulator_width(software(sums="truncation")) == {"bits": 24, "rounding": "truncation"}
    assert accumulator_width(software(sums="half")) == {"bits": 11, "rounding": "nearest"}
    exact = lambda a, b, c: np.asarray(a, np.longdouble) @ b + c
    assert accumulator_width(exact)["bits"] >= 53


def test_truncation_is_a_bias():
    profile_of = lambda u: {
        (r["probe"], r["drawn"]): r for r in numeric_profile(u, "bfloat16", 512)
    }
    nearest, cut = profile_of(software()), profile_of(software(sums="truncation"))
    half = profile_of(software(sums="half"))
    key = ("accumulation", "low")
    assert abs(nearest[key]["bias"]) < 0.2
    assert cut[key]["bias"] < -0.99
    assert half[key]["error"] > 1000 * nearest[key]["error"] > 0
    # Products of two numbers of 8 bits are exact in 24.
    assert nearest["multiplication", "low"]["error"] == cut["multiplication", "low"]["error"] == 0
    assert nearest["multiplication", "full"]["error"] > 1e-4


def test_subnormal_numbers_and_chains():
    assert special_values(software("float32"), "float32") == dict.fromkeys(
        ("subnormal_in", "subnormal_out", "inf_times_zero", "inf_minus_inf", "nan_stays_in_row"),
        True,
    )
    flushed = special_values(software("float32", flush=True), "float32")
    assert not flushed["subnormal_in"]
    assert not flushed["subnormal_out"]
    fine, coarse = (chain_error(software(d), d) for d in ("float32", "float16"))
    assert fine["overflow"] == 0
    assert max(fine["errors"]) < 1e-6
    x, (a, start) = None, round_to(np.random.default_rng(0).normal(size=(2, 16, 16)), "float16")
    steps, x = 0, start
    while np.abs(x).max() < 65520:  # what half precision rounds to infinity
        x, steps = a @ x, steps + 1
    assert abs(coarse["overflow"] - steps) <= 1
    assert 1e-5 < coarse["errors"][0] < 1e-3


UNITS = ["bfloat16", "float32"]
MORE = ["float16", "tf32", "float8_e4m3fn", "int8"]


@pytest.mark.parametrize(
    "dtype", [*UNITS, *(pytest.param(d, marks=pytest.mark.slow) for d in MORE)]
)
def test_this_device_equals_a_model_in_software(dtype):
    found = numeric_profile(unit(dtype), dtype, 256)
    model = numeric_profile(software(dtype), dtype, 256)
    for ours, theirs in zip(found, model, strict=True):
        if ours["probe"] == "multiplication" and dtype != "float32":
            assert ours["error"] == theirs["error"], ours
        # One rounding more, of numbers of size one.
        assert abs(ours["error"] - theirs["error"]) < 2 * np.finfo(np.float32).eps, ours
    assert found[0]["error"] == 0 or dtype == "float32"
    wide = {"bits": 31, "rounding": "other"} if dtype == "int8" else accumulator_width(software())
    assert accumulator_width(unit(dtype)) == wide
    assert computed_in(dtype) in ("f32", "bf16", "f16", "s8", "s32", "unknown")


def test_rounding_to_ten_bits():
    x = np.array(
        [1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-11 + 2.0**-20, -3.0, np.inf], np.float32
    )
    wanted = [1, 1 + 2.0**-9, 1 + 2.0**-10, -3, np.inf]
    np.testing.assert_array_equal(round_to(x, "tf32"), wanted)


def test_the_slope_of_sleeps():
    """A launch of 10 ms does not count."""
    run = lambda steps: time.sleep(0.01 + steps * 0.002)
    for _ in range(3):  # the machine may be busy
        found = slope(run, 10, repeats=3)
        if abs(found - 0.002) < 0.2 * 0.002:
            return
    pytest.fail(f"slept 2 ms a step, found {1000 * found} ms")


def test_noise_is_no_speed():
    times = iter([0.0, 0.02, 0.01] * 9)  # longer chains seem to be faster
    assert slope(lambda steps: time.sleep(next(times)), 10, repeats=2, trust=0.5) > 0.0002


def test_chains_stay_chains():
    """No product is hoisted, and none is skipped."""
    a = jnp.eye(16) * 2
    one = jnp.ones((2, 16, 16))
    for implementation in ("xla", "pallas"):
        found = chained_dot(a, one, one, 5, implementation=implementation)
        np.testing.assert_array_equal(found, 2.0**5 + 2.0**5 - 1)
    text = microbench._chains.lower("float32", "float32", a, [one[0]], [one[0]], 3).compile()
    assert " while(" in text.as_text()


@pytest.mark.slow
def test_vmap_and_jit_of_the_chain():
    rng = np.random.default_rng(0)
    a, x, c = (jnp.asarray(rng.normal(size=s)) for s in ((3, 3, 3), (3, 2, 3, 4), (3, 2, 3, 4)))
    found = jax.jit(jax.vmap(lambda a, x, c: chained_dot(a, x, c, 2)))(a, x, c)
    np.testing.assert_allclose(found, a[:, None] @ (a[:, None] @ x + c) + c, atol=1e-12)


def report():
    row = {"dtype": "float32", "computed_in": "f32", "shape": [16, 16, 16]}
    tables = {
        "latency": [{**row, "seconds": 1e-6}],
        "throughput": [
            {**row, "parallel": p, "flops": 1e9 * p, "knee": p == 2, "in_flight": float(p)}
            for p in (1, 2)
        ],
        "bandwidth": [{"size": 64.0, "copy": 2e8, "load": 1e8}],
        "numeric": [],
        "chain": [
            {
                "dtype": "float32",
                "accumulator": "float32",
                "errors": [1e-7, float("inf")],
                "overflow": 2,
            }
        ],
        "accumulator": [],
        "special": [],
        "sparse": [{"product": "2:4", "status": "no hardware path"}],
    }
    return Report({"backend": "cpu", "kind": "model", "jax": "0"}, tables)


def test_reports_round_trip_and_are_drawn():
    first = report()
    text = first.to_json()
    parsed = json.loads(text)
    assert parsed["schema"] == microbench.SCHEMA
    assert parsed["chain"][0]["errors"] == [1e-7, None]
    again = Report.from_json(text)
    assert again.to_json() == text
    assert again.ridge == {"float32": 20.0}
    with pytest.raises(ValueError, match="schema"):
        Report.from_json(text.replace('"schema": 1', '"schema": 0'))
    pytest.importorskip("matplotlib")
    ax = again.plot_roofline()
    (roof, point) = ax.get_lines()
    np.testing.assert_allclose(np.max(roof.get_ydata()), 2e9)
    assert point.get_ydata()[0] == 2e9
    (line,) = again.plot_errors().get_lines()
    np.testing.assert_array_equal(line.get_ydata(), [1e-7, np.nan])


def test_times_are_sane(monkeypatch):
    quick = {"seconds": 0.001, "repeats": 1}
    rows = throughput("float32", (16, 8, 8), (1, 2), **quick)
    assert [row["parallel"] for row in rows] == [1, 2]
    assert sum(row["knee"] for row in rows) == 1
    np.testing.assert_allclose(rows[0]["in_flight"], 1)
    assert all(0 < row["flops"] < 1e16 for row in rows)
    assert 0 < bandwidth(2**12, **quick)["load"] < 1e16


@pytest.mark.slow
def test_the_program_writes_a_report(tmp_path):
    assert microbench.main(["--out", str(tmp_path), "--seconds", "0.001", "--repeats", "1"]) == 0
    found = Report.from_json((tmp_path / "report.json").read_text())
    assert {row["dtype"] for row in found.tables["numeric"]} == {"float32", "bfloat16", "int8"}
    assert (tmp_path / "roofline.png").stat().st_size > 1000
    assert profile.__doc__
    assert latency("int8", (8, 8, 8), seconds=0.001, repeats=1) > 0


def test_two_of_four_are_kept_and_multiplied():
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=s).astype(np.float32) for s in ((5, 12), (12, 7), (5, 7)))
    a[0, :4], a[1, :4] = [1, -1, 1, 0], [0, 0, 0, 2]
    kept = np.zeros_like(a)
    for i, j in np.ndindex(5, 3):
        four = a[i, 4 * j : 4 * j + 4]
        at = np.argsort(-np.abs(four), kind="stable")[:2]
        kept[i, 4 * j + at] = four[at]
    values, places = microbench.compress_two_of_four(jnp.asarray(a))
    assert values.shape == places.shape == (5, 6)
    again = np.zeros_like(a)
    np.put_along_axis(again, np.asarray(places), np.asarray(values), axis=1)
    np.testing.assert_array_equal(again, kept)
    found = microbench.sparse_unit("float32")(a, b, c)
    np.testing.assert_allclose(found, kept.astype(float) @ b + c, rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(found) - (a @ b + c)).max() > 0.1
    rounded = microbench.sparse_unit("bfloat16")(a, b, c)
    wanted = round_to(kept, "bfloat16") @ round_to(b, "bfloat16") + c
    np.testing.assert_allclose(rounded, wanted, rtol=1e-5, atol=1e-5)


def test_the_sparse_report_says_what_is_emulated():
    rows = microbench.sparse_profile("bfloat16", 256)
    assert [row["probe"] for row in rows] == ["multiplication", "addition", "accumulation"]
    assert all(row["measured"] == "emulation" for row in rows)
    assert all(row["status"].startswith("no hardware path: ") for row in rows)
    # Products of two of them are exact in single precision; a sum of two is rounded once.
    assert rows[0]["error"] == rows[0]["dense_error"] == 0
    assert all(row["error"] <= 2 * row["dense_error"] + 1e-9 for row in rows)
    assert all(row["ratio"] == 18 / 32 for row in rows)
    assert "tcgen05" in microbench.sparse_path("cuda", "NVIDIA H100")


def test_bad_input_is_named():
    a, x = jnp.ones((2, 2)), jnp.ones((1, 2, 3))
    cases = [
        (lambda: unit("float64"), ValueError, "'float64'"),
        (lambda: unit("float32", "bfloat16"), ValueError, "'bfloat16'"),
        (lambda: round_to(x, "int4"), ValueError, "'int4'"),
        (lambda: slope(lambda n: None, 0), ValueError, "got 0"),
        (lambda: latency("float32", (0, 2, 2)), ValueError, r"\(0, 2, 2\)"),
        (lambda: bandwidth(1), ValueError, "1"),
        (lambda: numeric_profile(software(), "float32", 0), ValueError, "0"),
        (lambda: chain_error(software(), "float32", 0), ValueError, "0"),
        (lambda: microbench.compress_two_of_four(a), ValueError, r"\(2, 2\)"),
        (lambda: microbench.sparse_unit("float64"), ValueError, "'float64'"),
        (lambda: chained_dot(x[0], x, x, 1), ValueError, r"\(2, 3\)"),
        (lambda: chained_dot(a.astype(int), x, x, 1), TypeError, "int"),
        (lambda: chained_dot(a, x, x, 1, implementation="cuda"), ValueError, "'cuda'"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
