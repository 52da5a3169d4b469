"""Rows of network algorithms."""

import dataclasses
from typing import ClassVar

from .row import Row


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class NetworkRow(Row):
    """A decentralized or federated algorithm: `init` and `round`, driven by `distributed.run`.

    `example` takes the loss of one node.

    Not asked: speed of convergence, which depends on the graph and belongs to its claim.
    """

    shape: ClassVar[str] = "network"
    suite: ClassVar[str] = "test_network.py"
