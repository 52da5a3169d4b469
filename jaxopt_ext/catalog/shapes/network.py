"""Rows of network algorithms."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from .row import Row


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class NetworkRow(Row):
    """A decentralized or federated algorithm: `init` and `round`, driven by `distributed.run`.

    `example` takes the loss of one node.

    Not asked: speed of convergence, which depends on the graph and belongs to its claim.

    **Arguments:**

    - `collectives`: `(params, network) -> bytes by collective` of one round on a mesh with one node
      on each device, as `distributed.collective_bytes` reads them; if `None`, `bits_per_round` by
      `collective-permute`.
    - `graph`: of so many nodes; if `None`, the suite's own, of few edges.
    - `relative`: it is made of the parts of another row, and the suite runs it where time does not
      matter only.
    """

    collectives: Callable[[Any, Any], dict[str, int]] | None = None
    graph: Callable[[int], Any] | None = None
    relative: bool = False

    shape: ClassVar[str] = "network"
    suite: ClassVar[str] = "test_network.py"
