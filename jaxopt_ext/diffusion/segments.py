"""Runs of steps at which networks of variable depth are equally deep."""

import abc
import itertools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Int, PyTree

from .denoiser import AbstractDenoiser, Sample
from .schedules import Node

Depths = tuple[tuple[int, ...], ...]
"""For each network of variable depth in a model, the depths that occur."""


class AbstractVariableDepth(eqx.Module):
    """A network of which less is computed at some levels."""

    @abc.abstractmethod
    def depth_at(self, node: Node) -> Int[np.ndarray, "*n"]:
        """How deep it is at nodes of the host."""

    @abc.abstractmethod
    def at_depth(self, *depths: int) -> "AbstractVariableDepth":
        """The network for nodes at which it is that deep; with one depth, no node is looked at."""


class Segments(NamedTuple):
    """How a run is cut.

    **Attributes:**

    - `num_steps`: of the whole run.
    - `steps`: length and depths of each segment.
    - `start`, `last`: depths at the first node, for samplers whose memory starts with a call, and
      at the last.
    """

    num_steps: int
    steps: tuple[tuple[int, Depths], ...]
    start: Depths
    last: Depths


class _Visits(AbstractDenoiser):
    """A model that answers zero and writes down where it was called."""

    nodes: list[Node] = eqx.field(static=True)

    def noise(self, x, node):
        self.nodes.append(Node(*(np.asarray(a, np.float64) for a in node)))
        return jax.tree.map(lambda a: 0 * a, x)

    data = noise


def visited(sampler: Any, x: Sample, begin: Node, table: PyTree[np.ndarray]) -> list[list[Node]]:
    """The nodes at which a sampler calls the model: before the first step, and in each step.

    Steps are taken one by one on the host, on a number in place of each array of the sample, so
    that of steps that branch only the branch that is taken is seen.
    """
    found = []
    sampler, table = sampler.unguided(table)
    with jax.ensure_compile_time_eval(), jax.disable_jit():
        x = jax.tree.map(lambda a: np.zeros((), a.dtype), x)
        key = jax.random.key(0)
        found.append([])
        memory = sampler.start(_Visits(found[-1]), x, begin)
        for i in range(len(jax.tree.leaves(table)[0])):
            found.append([])
            row = jax.tree.map(lambda a, i=i: a[i], table)
            x, memory = sampler.step(_Visits(found[-1]), x, memory, row, key)
    return found


def _variable(tree: Any) -> bool:
    return isinstance(tree, AbstractVariableDepth)


def networks(model: PyTree) -> list[AbstractVariableDepth]:
    """The networks of variable depth in a model."""
    return [leaf for leaf in jax.tree.leaves(model, is_leaf=_variable) if _variable(leaf)]


def cut(model: PyTree, depths: Depths) -> PyTree:
    """The model for nodes at which its networks are that deep."""
    left = iter(depths)
    turn = lambda leaf: leaf.at_depth(*next(left)) if _variable(leaf) else leaf
    return jax.tree.map(turn, model, is_leaf=_variable) if depths else model


def segments(
    model: PyTree,
    sampler: Any,
    x: Sample,
    begin: Node,
    table: PyTree[np.ndarray],
    last: Node,
) -> Segments:
    """How to cut a run into segments of steps of one depth; one segment, where the model has no
    network of variable depth.

    **Arguments:**

    - `model`, `sampler`: of the run.
    - `x`: the start, of which the structure is looked at.
    - `begin`, `last`: the first and the last node.
    - `table`: the sampler's plan.
    """
    found = networks(model)
    steps = len(jax.tree.leaves(table)[0])
    if not found:
        return Segments(steps, ((steps, ()),), (), ())

    def depths(nodes):
        each = lambda net: tuple(sorted({int(net.depth_at(node)) for node in nodes}))
        return tuple(map(each, found))

    start, *calls = visited(sampler, x, begin, table)
    runs = itertools.groupby(map(depths, calls))
    pieces = tuple((len(list(run)), kind) for kind, run in runs)
    return Segments(steps, pieces, depths([*start, begin]), depths([last]))
