"""A small decentralized task, shared by the tests and by the processes they start."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pod_task

from jaxopt_ext import catalog, distributed

NODES, ROWS, COLUMNS = 8, 6, 4
RNG = np.random.default_rng(0)
A = RNG.normal(size=(NODES, ROWS, COLUMNS)) / 2
B = RNG.normal(size=(NODES, ROWS))
OPTIMUM = np.linalg.lstsq(A.reshape(-1, COLUMNS), B.reshape(-1), rcond=None)[0]


def loss(w, batch):
    rows, targets = batch
    return 0.5 * jnp.sum((rows @ jnp.concatenate([w["a"], w["b"]]) - targets) ** 2)


def start(dtype=jnp.float64):
    return {"a": jnp.zeros(1, dtype), "b": jnp.zeros(COLUMNS - 1, dtype)}


def batch(dtype=jnp.float64):
    return jnp.asarray(A, dtype), jnp.asarray(B, dtype)


def joined(params):
    return np.concatenate([np.asarray(params["a"]), np.asarray(params["b"])], axis=1)


def graph(row, n=NODES):
    return (row.graph or distributed.ring)(n)


def simulated(row):
    return distributed.Network.simulated(graph(row))


def on_mesh(row, devices, check_vma=False):
    mesh = jax.sharding.Mesh(np.array(devices), ("nodes",))
    return distributed.Network.on_mesh(graph(row), mesh, "nodes", check_vma=check_vma)


def run(row, network, rounds, **options):
    algorithm = row.example(loss)
    params = network.replicate(start())
    options = {"progress": False, **options}
    return distributed.run(algorithm, network, params, batch(), rounds, **options)


def process(rank: int, port: str, out: str, names: list[str]) -> None:
    """One of two processes with four nodes each; rank 0 writes what these algorithms reach.

    The first of all runs again with checkpoints, to half way and then to the end. A solve has half
    of its rows in each process.
    """
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
    from jax.experimental import multihost_utils

    results = {}
    rows = catalog.rows(catalog.NetworkRow)
    for row in (row for row in rows if row.name in names):
        params = run(row, on_mesh(row, jax.devices()), 20).params
        gathered = multihost_utils.process_allgather(params, tiled=True)
        results[row.name] = joined(gathered)
    state = pathlib.Path(out).parent / "checkpoint" / "state"
    row = rows[0]
    network = on_mesh(row, jax.devices())
    options = {"metric": distributed.consensus_distance, "record_every": 5}
    run(row, network, 10, checkpoint=state, **options)
    # The other process was killed before it could write the last file.
    multihost_utils.sync_global_devices("written")
    if rank == 1:
        state.with_name("state.1-of-2.10").unlink()
    multihost_utils.sync_global_devices("killed")
    for name in ("resumed", "whole", "alone"):
        checkpoint = None if name == "alone" else state
        again = run(row, network, 20, checkpoint=checkpoint, **options)
        gathered = multihost_utils.process_allgather(again.params, tiled=True)
        results[name] = joined(gathered)
        results["records"] = len(again.history)
    multihost_utils.sync_global_devices("done")
    rows_apart = jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.array(jax.devices()), ("rows",)), jax.sharding.PartitionSpec("rows")
    )
    place = lambda a: jax.make_array_from_callback(a.shape, rows_apart, lambda index: a[index])
    for name, found in pod_task.fitted(place).items():
        results[f"solve: {name}"] = multihost_utils.process_allgather(found, tiled=True)
    results["files"] = len(list(state.parent.iterdir()))
    if rank == 0:
        np.savez(out, **results)


if __name__ == "__main__":
    process(int(sys.argv[1]), *sys.argv[2:4], sys.argv[4:])
