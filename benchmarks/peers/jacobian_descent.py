"""UPGrad and other aggregators beside TorchJD on the same Jacobians."""

import importlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import race
from jaxopt_ext import multiobjective as mo

TITLE = (
    "one row of Jacobians with 1000 columns whose rows conflict, float32, against TorchJD; apart: "
    "the largest difference, as a part of the longest row. TorchJD solves the programs of UPGrad "
    "one by one with quadprog, in float64, on one core"
)
RULES = {
    "DualProj": mo.DualProj(),
    "MGDA": mo.MGDA(),
    "IMTLG": mo.IMTLG(),
    "AlignedMTL": mo.AlignedMTL(),
}


PROGRAMS = ("UPGrad", "DualProj")
"""The rules whose programs TorchJD solves with packages of its extra `quadprog-projector`."""


def _missing(*names: str) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


def run() -> list[dict]:
    if missing := _missing("torch", "torchjd"):
        return [{"rule": "all", "why not": f"not installed: {', '.join(missing)}"}]
    cases = [("UPGrad", mo.UPGrad(), m) for m in (2, 8, 32, 64, 128, 256)]
    cases += [(name, rule, 32) for name, rule in RULES.items()]
    missing = _missing("qpsolvers", "quadprog")
    absent = [name for name in PROGRAMS if missing]
    rows = [_row(*case) for case in cases if case[0] not in absent]
    why = f"not installed: {', '.join(missing)}"
    return rows + [{"rule": name, "why not": why} for name in absent]


def _row(name, rule, m):
    torch = importlib.import_module("torch")
    peer = getattr(importlib.import_module("torchjd.aggregation"), name)()
    rng = np.random.default_rng(0)
    J = rng.normal(size=(m, 1000)).astype(np.float32)
    J += np.float32(3) * rng.normal(size=1000).astype(np.float32) * rng.choice([-1, 1], (m, 1))
    J = J.astype(np.float32)
    ours, rows, tensor = jax.jit(lambda J: rule(J)), jnp.asarray(J), torch.from_numpy(J)
    candidates = {"ours": lambda: ours(rows), "TorchJD": lambda: peer(tensor).numpy()}
    mine, other = (np.asarray(call()) for call in candidates.values())
    far = np.abs(mine - other).max() / np.linalg.norm(J, axis=1).max()
    first, second = race(candidates, reference="ours", rounds=1 if m > 64 else 5)
    return {
        "rule": name,
        "rows": m,
        "our ms": 1e3 * first.seconds,
        "TorchJD's ms": 1e3 * second.seconds,
        "TorchJD / ours": second.ratio,
        "apart": float(far),
    }
