"""Robust rules beside ByzFL, the cost of a simulated round, gossip beside all-reduce."""

import importlib.util
import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.timing import race

TITLE = (
    "rules on 16 rows of 100,000 numbers, f = 3, against ByzFL on the same float32 tensors; a "
    "simulated round, of eight in one program, of mixing 10,000 numbers a node, 4-regular; one "
    "round of mixing 10 million numbers on a ring of 8 host devices against the mean over all (the "
    "host's memory is the wire)"
)

BYZFL = {
    "trimmed mean": ("TrMean", {"f": 3}),
    "coordinate median": ("Median", {}),
    "geometric median": ("GeometricMedian", {"T": 8, "nu": 0.1}),
    "multi-Krum": ("MultiKrum", {"f": 3}),
    "centered clipping": ("CenteredClipping", {"L": 1, "tau": 100.0}),
}
"""Their rules and settings, which are ours; but their geometric median starts at zero, ours at the
median of each coordinate."""


ROUNDS = 8


def run() -> list[dict]:
    return _rules() + _rounds() + _mesh()


def _rows(case, candidates, reference):
    return [
        {"case": case, "who": t.name, "ms": 1e3 * t.seconds, "ratio": t.ratio}
        for t in race(candidates, reference=reference, rounds=7)
    ]


def _rules():
    try:
        import torch

        byzfl = _byzfl()
    except ImportError as error:
        return [{"case": "rules", "who": f"ByzFL is not here: {error}"}]
    robust = jxt.distributed.robust
    rows = np.random.default_rng(0).normal(size=(16, 100_000)).astype(np.float32)
    x, tensor = jnp.asarray(rows), torch.from_numpy(rows)
    ours = {
        "trimmed mean": robust.TrimmedMean(3),
        "coordinate median": robust.CoordinateMedian(),
        "geometric median": robust.GeometricMedian(8, 0.1),
        "multi-Krum": robust.Krum(3, q=13),
        "centered clipping": robust.CenteredClip(100.0),
    }
    table = []
    for name, rule in ours.items():
        call = jax.jit(lambda x, rule=rule: rule.aggregate(x, state=jnp.zeros(x.shape[1])))
        kind, options = BYZFL[name]
        # A rule of theirs may remember its last result, from which it would go on.
        peer = lambda kind=kind, options=options: getattr(byzfl, kind)(**options)(tensor)
        apart = np.linalg.norm(call(x) - peer().numpy()) / np.linalg.norm(peer().numpy())
        candidates = {"ours": lambda c=call: c(x), "ByzFL": peer}
        ours_row, peer_row = _rows(name, candidates, "ours")
        table += [ours_row, peer_row | {"apart": float(apart)}]
    return table


def _byzfl():
    """Their rules alone: the front door of the package wants torchvision too."""
    spec = importlib.util.find_spec("byzfl")
    if spec is None:
        raise ImportError("no module named byzfl")
    package = types.ModuleType("byzfl")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules.setdefault("byzfl", package)
    return importlib.import_module("byzfl.aggregators")


def _rounds():
    table = []
    for n in (8, 64, 512, 4096):
        network = jxt.distributed.Network.simulated(jxt.distributed.random_regular(n, 4, seed=0))
        x = jax.random.normal(jax.random.key(0), (n, 10_000))
        rounds = lambda x, mix=network.mix: jax.lax.fori_loop(0, ROUNDS, lambda _, x: mix(x), x)
        # The first result of a large program is new memory, which the system has to clear: so the
        # numbers are of rounds that go on in one program, as those of a run do.
        call = jax.jit(rounds)
        (row,) = _rows(f"round of {n} nodes", {"ours": lambda c=call, x=x: c(x)}, "ours")
        row["ms"] /= ROUNDS
        table.append(row | {"us a node": 1e3 * row["ms"] / n})
    return table


_MESH = """
import json, jax, jax.numpy as jnp
import jaxopt_ext as jxt
from benchmarks.timing import race
dd = jxt.distributed
network = dd.Network.on_mesh(dd.ring(8), jax.make_mesh((8,), ("nodes",)), "nodes")
x = network.place(jax.random.normal(jax.random.key(0), (8, 10_000_000)))
key = jax.random.key(0)
step = lambda f: jax.jit(network.parallel(lambda x, batch, key: f(x)))
mix, mean = step(network.mix), step(network.mean)
calls = {"gossip": lambda: mix(x, x, key), "all-reduce": lambda: mean(x, x, key)}
print(json.dumps([[t.name, t.seconds, t.ratio] for t in race(calls, reference="gossip", rounds=5)]))
"""


def _mesh():
    """In a process of its own, which has eight devices."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", _MESH], env=environment, capture_output=True, text=True, check=True
    )
    return [
        {"case": "8 devices, 10M numbers", "who": who, "ms": 1e3 * seconds, "ratio": ratio}
        for who, seconds, ratio in json.loads(done.stdout.splitlines()[-1])
    ]
