"""What of a program may run beside its talk."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.stages import Traced

_INLINED = {"jit", "pjit", "closed_call", "core_call", "shard_map", "checkpoint", "remat2"}
_INLINED |= {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
_TALK = {"all_to_all", "ppermute", "all_gather", "psum", "psum2", "psum_invariant"}
_TALK |= {"reduce_scatter"}


@dataclasses.dataclass(frozen=True)
class Overlap:
    """One collective of a program, and what may run beside it.

    **Attributes:**

    - `collective`: the primitive's name.
    - `bytes`: what one device hands to it.
    - `independent`: share of the program's multiplications that neither lead to it nor come of it.
    - `before`, `after`: the `jax.named_scope`s that it waits for, and that wait for it.
    - `beside`: those of which no part does either.
    """

    collective: str
    bytes: int
    independent: float
    before: frozenset[str]
    after: frozenset[str]
    beside: frozenset[str]


@dataclasses.dataclass
class _Node:
    name: str
    scopes: frozenset[str]
    flops: int
    bytes: int
    ancestors: int
    """Numbers of the nodes that lead here, as bits."""


def overlap_report(traced: Traced, collective: str = "all_to_all") -> list[Overlap]:
    """Which parts of a program depend on each of its collectives, and on which each depends.

    This is read off the program as traced: a compiler may add dependencies, but cannot take one
    away. Multiplications are counted in matrix products only; the body of a loop is one piece, and
    counts once.

    **Arguments:**

    - `traced`: `jax.jit(f).trace(...)`. A mesh without devices, `jax.sharding.AbstractMesh`, is
      enough.
    - `collective`: the primitive's name.

    **Returns:** one for each such collective, in the order of the program.
    """
    nodes: list[_Node] = []
    _walk(traced.jaxpr.jaxpr, {}, frozenset(), nodes)
    scopes = frozenset().union(*(node.scopes for node in nodes))
    total = sum(node.flops for node in nodes)
    found = []
    for number, node in enumerate(nodes):
        if node.name != collective:
            continue
        above = [n for i, n in enumerate(nodes) if node.ancestors >> i & 1]
        below = [n for n in nodes if n.ancestors >> number & 1]
        tied = sum(n.flops for n in above) + sum(n.flops for n in below)
        before, after = (frozenset().union(*(n.scopes for n in part)) for part in (above, below))
        free = 1 - tied / total if total else 1.0
        beside = scopes - before - after - node.scopes
        found.append(Overlap(node.name, node.bytes, free, before, after, beside))
    return found


def _walk(jaxpr: Jaxpr, known: dict[Any, int], scopes: frozenset[str], nodes: list[_Node]) -> None:
    """Append a node for each equation; `known` has the ancestors of each variable."""
    for eqn in jaxpr.eqns:
        reading = [known.get(v, 0) if not isinstance(v, Literal) else 0 for v in eqn.invars]
        here = scopes | _names(str(eqn.source_info.name_stack))
        inner = list(_inner(eqn.params))
        if eqn.primitive.name in _INLINED and len(inner) == 1:
            body = inner[0]
            if len(body.invars) == len(eqn.invars):
                inside = dict(zip(body.invars, reading, strict=True))
                _walk(body, inside, here, nodes)
                for out, var in zip(eqn.outvars, body.outvars, strict=True):
                    known[out] = 0 if isinstance(var, Literal) else inside.get(var, 0)
                continue
        ancestors = 0
        for bits in reading:
            ancestors |= bits
        size = sum(_bytes(v.aval) for v in eqn.invars) if eqn.primitive.name in _TALK else 0
        number = len(nodes)
        nodes.append(_Node(eqn.primitive.name, here, _flops(eqn), size, ancestors))
        for out in eqn.outvars:
            known[out] = ancestors | 1 << number


def _names(stack: str) -> frozenset[str]:
    """The named scopes of `vmap(jvp(a))/b`, without the transformations; libraries name theirs by
    no identifiers."""
    parts = (re.sub(r"^(\w+\()*|\)*$", "", part) for part in stack.split("/"))
    return frozenset(filter(str.isidentifier, parts))


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


def _flops(eqn) -> int:
    if eqn.primitive.name != "dot_general":
        return sum(_flops(e) for body in _inner(eqn.params) for e in body.eqns)
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _bytes(aval) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize
