"""Checkpoints of a run, written beside it, by each process what it holds."""

import concurrent.futures
import os
import pathlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from ..core import checkpoint as files


class Checkpoints:
    """Saves `(length, done, state, history)` to one file, or in a run over several processes each
    process to files of its own, named `path.PROCESS-of-COUNT.DONE`.

    What is saved is copied to the host first; the file is written by a thread, while the devices
    go on. A context manager: at its end all is written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.part = f"{self.path.name}.{jax.process_index()}-of-{jax.process_count()}."
        self.alone = jax.process_count() == 1
        self.writer = concurrent.futures.ThreadPoolExecutor(1)
        self.pending: concurrent.futures.Future | None = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            self._wait()
        finally:
            self.writer.shutdown()

    def _wait(self):
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()  # raises what the thread raised

    def save(self, done: int, state: Any, history: list) -> None:
        """Copy to the host, and leave the writing to the thread."""
        content = _to_host((len(history), done, state, history))
        self._wait()
        self.pending = self.writer.submit(self._write, done, content)

    def _write(self, done, content):
        files.save(self.path if self.alone else self._file(done), content)
        # No process starts a piece before its file of the piece before the last is written, and
        # none ends a piece that another has not started: three files reach back to a common one.
        for old in sorted(self._own())[:-3]:
            self._file(old).unlink(missing_ok=True)

    def _file(self, done):
        return self.path.with_name(f"{self.part}{done}")

    def _own(self) -> list[int]:
        """Rounds of which this process has a file of its own."""
        if self.alone or not self.path.parent.exists():
            return []
        names = (file.name for file in self.path.parent.iterdir())
        ends = (name.removeprefix(self.part) for name in names if name.startswith(self.part))
        return [int(end) for end in ends if end.isdigit()]

    def resume(self, state: Any, measured: Any) -> tuple[Any, int, list] | None:
        """The last state that was saved, where `state` is, or `None` if there is none."""
        file = self.path
        if not self.alone:
            own = sorted(self._own())[-3:]
            padded = np.asarray([-1] * (3 - len(own)) + own)
            everywhere = multihost_utils.process_allgather(padded).reshape(-1, 3)
            common = set.intersection(*(set(row.tolist()) for row in everywhere)) - {-1}
            if common:
                file = self._file(max(common))
        if not file.exists():
            return None
        # The number of records comes first in the file, since it decides the shape of the rest.
        length = files.load(file, 0)
        whole = file == self.path
        like = _shapes((0, 0, state, [measured] * length), whole)
        _, done, stored, records = files.load(file, like)
        history = [_from_host(record, measured, whole) for record in records]
        return _from_host(stored, state, whole), done, history


def _numbers(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jax.random.key_data(a) if files.is_key(a) else a, tree)


def _starts(leaf: jax.Array) -> list[int]:
    """First rows of the pieces that this process holds, where it does not hold all."""
    return sorted({shard.index[0].start or 0 for shard in leaf.addressable_shards})


def _is_whole(leaf: Any) -> bool:
    array = isinstance(leaf, jax.Array)
    return not array or leaf.is_fully_addressable or leaf.is_fully_replicated


def _to_host(tree: PyTree) -> PyTree:
    """Arrays as numpy holds them; of those spread over processes the rows that lie here."""

    def leaf(a):
        if not isinstance(a, jax.Array) or a.is_fully_addressable:
            return a
        if a.is_fully_replicated:
            return a.addressable_data(0)
        rows = {shard.index[0].start or 0: shard.data for shard in a.addressable_shards}
        return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])

    return jax.device_get(jax.tree.map(leaf, _numbers(tree)))


def _shapes(tree: PyTree, whole: bool) -> PyTree:
    """What `_to_host` makes of arrays like these, by shape."""

    def leaf(a):
        if not isinstance(a, jax.Array):
            return a
        rows = a.shape if whole or _is_whole(a) else (len(_starts(a)) * _height(a), *a.shape[1:])
        return jax.ShapeDtypeStruct(rows, a.dtype)

    return jax.tree.map(leaf, _numbers(tree))


def _height(leaf: jax.Array) -> int:
    return leaf.addressable_shards[0].data.shape[0]


def _from_host(tree: PyTree, like: PyTree, whole: bool) -> PyTree:
    """Numbers that were read, as arrays where their twins in `like` are."""

    def leaf(value, twin):
        if not isinstance(twin, jax.Array):
            return value
        key, impl = files.is_key(twin), None
        if key:
            impl, twin = jax.random.key_impl(twin), jax.random.key_data(twin)
        if twin.is_fully_addressable:
            array = jax.device_put(value, twin.sharding)
        else:
            rows = np.asarray(value)

            def piece(index):
                if whole or twin.is_fully_replicated:
                    return rows[index]
                first = _starts(twin).index(index[0].start or 0) * _height(twin)
                return rows[first : first + _height(twin)]

            array = jax.make_array_from_callback(twin.shape, twin.sharding, piece)
        return jax.random.wrap_key_data(array, impl=impl) if key else array

    return jax.tree.map(leaf, tree, like)
