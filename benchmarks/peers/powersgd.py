"""PowerSGD beside the communication hook of PyTorch's DistributedDataParallel."""

import functools
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile

import jax
import numpy as np
from jax.sharding import PartitionSpec

import jaxopt_ext as jxt
from benchmarks.timing import race

TITLE = (
    "one step of rank 4 on two workers, warm start and error feedback, stacks of matrices of one "
    "shape, both factors orthogonalized by QR: ours on two host devices, PyTorch's hook in two "
    "processes of one thread each on gloo; left over: ||sum of the results - sum of the mean "
    "gradients|| / ||sum of the mean gradients|| after 20 steps with one gradient"
)

SHAPES = [(512, 512)] * 4 + [(1024, 512)] * 2 + [(512,)] * 6
RANK, WORKERS, ROUNDS, STEPS = 4, 2, 9, 20


def run() -> list[dict]:
    """In a process of its own, which has two devices."""
    if importlib.util.find_spec("torch") is None:
        return [{"case": "step", "who": "PyTorch is not here"}]
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={WORKERS}",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def gradients(worker: int) -> list[np.ndarray]:
    """Decaying singular values, common to the workers, and noise of their own."""
    common, own = np.random.default_rng(0), np.random.default_rng(1 + worker)
    found = []
    for shape in SHAPES:
        signal = common.normal(size=shape)
        if len(shape) == 2:
            left, right = (np.linalg.qr(common.normal(size=(n, 32)))[0] for n in shape)
            signal = 100 * (left / np.arange(1, 33)) @ right.T
        found.append((signal + 0.01 * own.normal(size=shape)).astype(np.float32))
    return found


class Bucket:
    """What the hook asks of a bucket of gradients, all of them in one."""

    def __init__(self, arrays):
        import torch

        flat = np.concatenate([a.reshape(-1) for a in arrays])
        self.flat = torch.from_numpy(flat)
        ends = np.cumsum([a.size for a in arrays])
        self.views = [
            self.flat[end - a.size : end].view(a.shape) for a, end in zip(arrays, ends, strict=True)
        ]

    def index(self):
        return 0

    def is_last(self):
        return True

    def buffer(self):
        return self.flat

    def gradients(self):
        return self.views

    def parameters(self):
        return self.views


def hook(rank: int, store: str):
    """A step of the worker of this rank, which returns the flat mean gradient."""
    import torch
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORKERS)
    state = power.PowerSGDState(
        None,
        matrix_approximation_rank=RANK,
        start_powerSGD_iter=2,
        min_compression_rate=0,
        batch_tensors_with_same_shape=True,
    )
    bucket = Bucket(gradients(rank))
    flat = bucket.flat.clone()

    def step():
        bucket.flat.copy_(flat)  # the result lies where the gradients lay
        return power.powerSGD_hook(state, bucket).wait()  # pyright: ignore[reportArgumentType]

    for _ in range(2):  # two steps of whole gradients come first
        step()
    return step


def other_worker(store: str, steps: int) -> None:
    """As many steps as the first worker takes."""
    step = hook(1, store)
    for _ in range(steps):
        step()


def ours():
    """A step of both workers on their devices, which returns the flat mean gradient."""
    mesh = jax.make_mesh((WORKERS,), ("workers",))
    nodes = PartitionSpec("workers")
    transformation = jxt.distributed.powersgd(RANK, "workers")
    stacked = [np.stack(a) for a in zip(*map(gradients, range(WORKERS)), strict=True)]
    grads = [jax.device_put(a, jax.NamedSharding(mesh, nodes)) for a in stacked]
    one = functools.partial(jax.tree.map, lambda a: a[0])
    many = functools.partial(jax.tree.map, lambda a: a[None])

    def init(grads):
        return many(transformation.init(one(grads)))

    def update(grads, state):
        found, state = transformation.update(one(grads), one(state))
        return many((found, state))

    on = functools.partial(jax.shard_map, mesh=mesh, out_specs=nodes, check_vma=False)
    state = [jax.jit(on(init, in_specs=nodes))(grads)]
    advance = jax.jit(on(update, in_specs=(nodes, nodes)), donate_argnums=1)

    def step():
        found, state[0] = advance(grads, state[0])
        return found

    return step


def left_over(flat, wanted) -> float:
    return float(np.linalg.norm(flat - wanted) / np.linalg.norm(wanted))


def measure() -> list[dict]:
    calls = STEPS + 1 + 2 * ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        child = multiprocessing.get_context("spawn").Process(
            target=other_worker, args=(store, calls), daemon=True
        )
        child.start()
        theirs, mine = hook(0, store), ours()
        flat = lambda leaves: np.concatenate([np.asarray(a).reshape(-1) for a in leaves])
        both = [flat(gradients(worker)) for worker in range(WORKERS)]
        wanted = STEPS * np.mean(both, axis=0)
        totals = {
            "ours": sum(flat([np.asarray(a)[0] for a in mine()]) for _ in range(STEPS)),
            "PyTorch": sum(theirs().numpy().copy() for _ in range(STEPS)),
        }
        timings = race({"ours": mine, "PyTorch": theirs}, reference="ours", rounds=ROUNDS)
        child.join()
    return [
        {
            "case": "step",
            "who": t.name,
            "ms": 1e3 * t.seconds,
            "ratio": t.ratio,
            "left over": left_over(totals[t.name], wanted),
        }
        for t in timings
    ]


if __name__ == "__main__":
    print(json.dumps(measure()))
