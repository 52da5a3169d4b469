"""Linear layers that commute with a group, through diagrams.

The linear maps $(\\mathbb R^n)^{\\otimes k} \\to (\\mathbb R^n)^{\\otimes l}$ that commute with the
orthogonal, special orthogonal, symplectic or symmetric group are spanned by one for each diagram
on $l$ output and $k$ input vertices. None is ever made a matrix: a diagram costs
$O(n^k + n^l)$ in place of $n^{k+l}$.
"""

import abc
import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Iterator, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core import checks

_MOST_BRAUER, _MOST_PARTITION = 10, 8


@dataclasses.dataclass(frozen=True)
class Diagram:
    """A partition of vertices: outputs are $0 \\dots l-1$, inputs $l \\dots l+k-1$.

    - `blocks`: of two vertices each in Brauer's diagrams, and of any number in partition diagrams.
    - `free`: vertices in no block, in order; none, or as many as the space has dimensions.

    **Raises:** `ValueError` if vertices of a block do not rise, which a form with signs tells
    apart, or are not all there once.
    """

    l: int
    k: int
    blocks: tuple[tuple[int, ...], ...]
    free: tuple[int, ...] = ()

    def __post_init__(self):
        parts = (*self.blocks, self.free)
        if any(list(part) != sorted(part) for part in parts):
            raise ValueError(f"vertices of a block must rise, got {self.blocks}, {self.free}")
        if sorted(v for part in parts for v in part) != list(range(self.l + self.k)):
            raise ValueError(f"expected the vertices 0 to {self.l + self.k - 1} once, got {parts}")

    def split(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Outputs and inputs of each block, inputs counted from 0."""
        return [
            (tuple(v for v in b if v < self.l), tuple(v - self.l for v in b if v >= self.l))
            for b in self.blocks
        ]

    @property
    def sources(self) -> tuple:
        """What is done to the input: diagonals that are kept, those summed out, free vertices."""
        parts = self.split()
        crossing = sorted(low for top, low in parts if top and low)
        closed = sorted(low for top, low in parts if not top)
        free = tuple(v - self.l for v in self.free if v >= self.l) if self.free else None
        return tuple(crossing), tuple(closed), free


def brauer_diagrams(l: int, k: int, *, force: bool = False) -> tuple[Diagram, ...]:
    """All perfect matchings of $l + k$ vertices: $(l + k - 1)!!$, or none if that is odd.

    **Raises:** `ValueError` above ten vertices, unless forced; for negative numbers.
    """
    _few(l, k, _MOST_BRAUER, force)
    return tuple(Diagram(l, k, blocks) for blocks in _matchings(tuple(range(l + k))))


def free_diagrams(l: int, k: int, n: int, *, force: bool = False) -> tuple[Diagram, ...]:
    """All matchings that leave $n$ vertices free: $\\binom{l+k}{n} (l + k - n - 1)!!$.

    **Raises:** as `brauer_diagrams`.
    """
    _few(l, k, _MOST_BRAUER, force)
    checks.count("n", n)
    vertices = range(l + k)
    return tuple(
        Diagram(l, k, blocks, free)
        for free in itertools.combinations(vertices, n)
        for blocks in _matchings(tuple(v for v in vertices if v not in free))
    )


def partition_diagrams(l: int, k: int, n: int, *, force: bool = False) -> tuple[Diagram, ...]:
    """All partitions of $l + k$ vertices into at most $n$ blocks.

    **Raises:** `ValueError` above eight vertices, unless forced; for negative numbers.
    """
    _few(l, k, _MOST_PARTITION, force)
    checks.count("n", n)

    def partitions(count) -> Iterator[tuple[tuple[int, ...], ...]]:
        if count == 0:
            yield ()
            return
        for blocks in partitions(count - 1):
            for i, block in enumerate(blocks):
                yield (*blocks[:i], (*block, count - 1), *blocks[i + 1 :])
            if len(blocks) < n:
                yield (*blocks, (count - 1,))

    return tuple(Diagram(l, k, blocks) for blocks in partitions(l + k))


def _few(l, k, most, force):
    checks.count("l", l, 0)
    checks.count("k", k, 0)
    if l + k > most and not force:
        raise ValueError(f"l + k must be at most {most} unless forced, got {l} + {k}")


def _matchings(vertices):
    if not vertices:
        yield ()
        return
    first, *rest = vertices
    for i, partner in enumerate(rest):
        for others in _matchings((*rest[:i], *rest[i + 1 :])):
            yield ((first, partner), *others)


class AbstractGroup(eqx.Module):
    """A group of matrices and its diagrams."""

    @abc.abstractmethod
    def diagrams(self, l: int, k: int, n: int, *, force: bool = False) -> tuple[Diagram, ...]:
        """Diagrams whose maps span all equivariant ones; dependent where $n < (l + k) / 2$."""

    def form(self, n: int) -> np.ndarray | None:
        """The form that pairs of outputs and pairs of inputs carry; `None` for the identity."""
        del n
        return None

    def invariants(self, x: Float[Array, "..."], order: int) -> Float[Array, "*b c"]:
        """A number for each channel that the group leaves alone, for tensors of this order."""
        return jnp.sum(x**2, axis=tuple(range(x.ndim - order, x.ndim)))


class Orthogonal(AbstractGroup):
    """$O(n)$: Brauer's diagrams.

    **Reference:** Pearce-Crump, Brauer's Group Equivariant Neural Networks, 2023,
    arXiv:2212.08630.
    """

    def diagrams(self, l, k, n, *, force=False):
        return brauer_diagrams(l, k, force=force)


class SpecialOrthogonal(AbstractGroup):
    """$SO(n)$: Brauer's diagrams, and those with $n$ free vertices, which carry Levi-Civita's
    symbol. The cross product is one, of $SO(3)$.

    **Reference:** Pearce-Crump, Brauer's Group Equivariant Neural Networks, 2023,
    arXiv:2212.08630.
    """

    def diagrams(self, l, k, n, *, force=False):
        free = free_diagrams(l, k, n, force=force)
        return brauer_diagrams(l, k, force=force) + free


class Symplectic(AbstractGroup):
    """$Sp(n)$, $n$ even: the matrices that keep the form of blocks $0, 1; -1, 0$ on the diagonal.
    Brauer's diagrams, whose pairs carry that form, the vertex to the left first.

    **Reference:** Pearce-Crump, Brauer's Group Equivariant Neural Networks, 2023,
    arXiv:2212.08630.
    """

    def diagrams(self, l, k, n, *, force=False):
        self.form(n)
        return brauer_diagrams(l, k, force=force)

    def form(self, n):
        if n % 2:
            raise ValueError(f"a symplectic space has an even dimension, got n = {n}")
        return np.kron(np.eye(n // 2), np.array([[0, 1], [-1, 0]]))

    def invariants(self, x, order):
        """The form of each channel with the next: of a vector with itself it is 0."""
        other = jnp.roll(x, -1, axis=x.ndim - order - 1)
        for axis in range(x.ndim - order, x.ndim):
            half = jnp.moveaxis(other, axis, -1)
            pairs = half.reshape(*half.shape[:-1], -1, 2)
            turned = jnp.stack([pairs[..., 1], -pairs[..., 0]], axis=-1).reshape(half.shape)
            other = jnp.moveaxis(turned, -1, axis)
        return jnp.sum(x * other, axis=tuple(range(x.ndim - order, x.ndim)))


class Symmetric(AbstractGroup):
    """$S_n$, as permutation matrices: partition diagrams of at most $n$ blocks, each of which
    forces its indices to be equal.

    **Reference:** Pearce-Crump, Connecting Permutation Equivariant Neural Networks and Partition
    Diagrams, 2022, arXiv:2212.08648.
    """

    def diagrams(self, l, k, n, *, force=False):
        return partition_diagrams(l, k, n, force=force)


def apply_diagram(
    diagram: Diagram, x: Float[Array, "..."], group: AbstractGroup
) -> Float[Array, "..."]:
    """The map of a diagram, times a tensor.

    The input's axes are permuted so that those which end come last, in pairs or blocks, and are
    summed out one by one; what crosses is not touched; what begins in the output is put in; the
    output's axes are permuted. No entry of the matrix is made. Works under `jit`, `vmap`, in
    `shard_map`, and has derivatives of any order in both modes.

    **Arguments:**

    - `diagram`: of $l$ outputs and $k$ inputs.
    - `x`: shape `(..., n, ..., n)` with $k$ axes of size $n$; `diagram.k` of 0 is refused, as
      there would be no $n$ to see: `EquivariantLinear` has a bias for that.
    - `group`: what pairs carry: `Orthogonal`, `SpecialOrthogonal`, `Symplectic`, `Symmetric`.

    **Returns:** shape `(..., n, ..., n)` with $l$ axes.

    **Raises:** `ValueError` if `x` has no such shape, or the number of free vertices is not $n$;
    `TypeError` for a group that is none.

    **Reference:** Pearce-Crump, An Algorithm for Computing with Brauer's Group Equivariant Neural
    Network Layers, 2023, arXiv:2304.14165.
    """
    checks.instance("group", group, AbstractGroup, "Orthogonal()")
    n = _dimension(x, diagram.k)
    _check_free(diagram, n)
    core = _contract(diagram.sources, x, n, group.form(n), x.ndim - diagram.k)
    order, target = _targets(diagram)
    lead = x.ndim - diagram.k
    core = jnp.transpose(core, (*range(lead), *(lead + i for i in order)))
    return _expand(target, core, n, group.form(n), lead)


def _dimension(x, k):
    if k < 1 or jnp.ndim(x) < k or len(set(x.shape[x.ndim - k :])) != 1:
        raise ValueError(f"expected {k} axes of one size at the end, got shape {jnp.shape(x)}")
    return x.shape[-1]


def _check_free(diagram, n):
    if diagram.free and len(diagram.free) != n:
        raise ValueError(f"{len(diagram.free)} vertices are free, in {n} dimensions")


def _diagonal(x, axis):
    """One axis in place of this and the next: the diagonal, as a slice."""
    n = x.shape[axis]
    flat = x.reshape(*x.shape[:axis], n * n, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(flat, 0, None, n + 1, axis)


def _spread(x, axis):
    """Two axes in place of one, whose diagonal is `x`."""
    n = x.shape[axis]
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (0, 0, n)
    flat = jax.lax.pad(x, jnp.zeros((), x.dtype), padding)
    return flat.reshape(*x.shape[:axis], n, n, *x.shape[axis + 1 :])


def _contract(sources, x, n, form, lead):
    """Axes for what crosses, in the order of `sources`, and for free outputs."""
    crossing, closed, free = sources
    axes = [v for block in (*crossing, free or (), *closed) for v in block]
    x = jnp.transpose(x, (*range(lead), *(lead + v for v in axes)))
    for block in reversed(closed):
        if form is not None:  # blocks are pairs: two diagonals beside the main one
            flat = x.reshape(*x.shape[:-2], n * n)
            step = 2 * (n + 1)
            x = jnp.sum(flat[..., 1::step] - flat[..., n::step], axis=-1)
            continue
        for _ in block[1:]:
            x = _diagonal(x, x.ndim - 2)
        x = jnp.sum(x, axis=-1)
    place = lead + sum(map(len, crossing))
    for block in reversed(crossing):
        place -= len(block)
        for _ in block[1:]:
            x = _diagonal(x, place)
    return x if free is None else _levi_civita(x, n, len(free))


def _levi_civita(x, n, count):
    """The last `count` axes summed against Levi-Civita's symbol; its others come first in it."""
    orders = np.array(list(itertools.permutations(range(n))))
    later = orders[:, None, :] < orders[:, :, None]
    signs = (-1.0) ** np.sum(np.triu(later, 1), axis=(1, 2))
    powers = n ** np.arange(n)[::-1]
    outputs = orders[:, : n - count] @ powers[count:]
    inputs = orders[:, n - count :] @ powers[n - count :]
    shape = x.shape[: x.ndim - count]
    flat = x.reshape(*shape, n**count)[..., inputs] * jnp.asarray(signs, x.dtype)
    start = jnp.zeros((*shape, n ** (n - count)), x.dtype)
    return start.at[..., outputs].add(flat).reshape(*shape, *[n] * (n - count))


def _targets(diagram):
    """How the axes of what was contracted are permuted, and what is made of them then."""
    parts = [(low, top) for top, low in diagram.split() if top]
    crossing = [top for _, top in sorted(part for part in parts if part[0])]
    order = sorted(range(len(crossing)), key=crossing.__getitem__)
    free = tuple(v for v in diagram.free if v < diagram.l)
    whole = (*order, *range(len(order), len(order) + len(free)))
    opened = tuple(sorted(top for low, top in parts if not low))
    return whole, (tuple(crossing[i] for i in order), free, opened)


def _expand(target, x, n, form, lead):
    crossing, free, opened = target
    place = lead + len(crossing)
    for block in reversed(crossing):
        place -= 1
        for _ in block[1:]:
            x = _spread(x, place)
    for block in opened:
        if form is not None:
            x = x[..., None, None] * jnp.asarray(form, x.dtype)
            continue
        x = jnp.broadcast_to(x[..., None], (*x.shape, n))
        for _ in block[1:]:
            x = _spread(x, x.ndim - 1)
    vertices = [v for block in (*crossing, free, *opened) for v in block]
    back = np.argsort(vertices)
    return jnp.transpose(x, (*range(lead), *(lead + int(i) for i in back)))


def spanning_matrix(diagram: Diagram, n: int, group: AbstractGroup) -> np.ndarray:
    """The matrix of a diagram, entry by entry; for tests and small sizes, on the host.

    **Arguments:**

    - `diagram`, `group`: as for `apply_diagram`.
    - `n`: the dimension.

    **Returns:** shape `(n**l, n**k)`; indices in C order.

    **Raises:** `ValueError` if the number of free vertices is not $n$.
    """
    _check_free(diagram, n)
    l, form = diagram.l, group.form(n)
    matrix = np.zeros([n] * (l + diagram.k))
    for index in np.ndindex(matrix.shape):
        value = 1.0
        for block in diagram.blocks:
            ends = [index[v] for v in block]
            one_side = block[-1] < l or block[0] >= l
            value *= form[tuple(ends)] if form is not None and one_side else len(set(ends)) == 1
        if diagram.free:
            value *= np.linalg.det(np.eye(n)[[index[v] for v in diagram.free]])
        matrix[index] = value
    return matrix.reshape(n**l, n**diagram.k)


def _length(diagram, n):
    """The squared Frobenius norm of a diagram's matrix."""
    return n ** len(diagram.blocks) * (math.factorial(n) if diagram.free else 1)


class EquivariantLinear(eqx.Module):
    r"""All equivariant linear maps of channels of tensors, and invariant biases,

    $$y_o = \sum_\pi \sum_c W_{\pi o c}\, \pi(x_c) + \sum_\beta b_{\beta o}\, \beta.$$

    Diagrams that do the same to the input share that work, those that do the same to the output
    are added before it. Weights start Gaussian, so that inputs of variance 1 have outputs of about
    that. Works as `apply_diagram`.

    **Arguments:**

    - `n`: dimension of the space. `k`, `l`: orders of inputs and outputs.
    - `in_channels`, `out_channels`: how many tensors.
    - `group`: `Orthogonal`, `SpecialOrthogonal`, `Symplectic`, `Symmetric`.
    - `bias`: whether there is one.
    - `force`: allow more vertices than is practical.
    - `key`: for the weights.

    The call takes shape `(..., in_channels, n, ..., n)` and gives
    `(..., out_channels, n, ..., n)`.

    **Raises:** `ValueError` if there is no equivariant map but 0, as for $O(n)$ with $l + k$ odd,
    if there are too many diagrams, or $n$ does not suit the group.

    **Reference:** Pearce-Crump, An Algorithm for Computing with Brauer's Group Equivariant Neural
    Network Layers, 2023, arXiv:2304.14165.
    """

    weights: Float[Array, "diagrams out in"]
    bias: Float[Array, "biases out"] | None
    diagrams: tuple[Diagram, ...] = eqx.field(static=True)
    biases: tuple[Diagram, ...] = eqx.field(static=True)
    group: AbstractGroup = eqx.field(static=True)
    n: int = eqx.field(static=True)

    def __init__(
        self,
        n: int,
        k: int,
        l: int,
        in_channels: int,
        out_channels: int,
        group: AbstractGroup,
        *,
        bias: bool = True,
        force: bool = False,
        key: Array,
    ):
        checks.instance("group", group, AbstractGroup, "Orthogonal()")
        least = {"n": 1, "k": 0, "l": 0, "in_channels": 1, "out_channels": 1}
        for name, value in zip(least, (n, k, l, in_channels, out_channels), strict=True):
            checks.count(name, value, least[name])
        self.group, self.n = group, n
        self.diagrams = group.diagrams(l, k, n, force=force)
        self.biases = group.diagrams(l, 0, n, force=force) if bias else ()
        if not self.diagrams:
            raise ValueError(f"{group} has no map but 0 from order {k} to order {l} for n = {n}")
        sizes = np.array([_length(diagram, n) for diagram in self.diagrams])
        spread = np.sqrt(n**l / (sizes * len(sizes) * in_channels))
        shape = (len(self.diagrams), out_channels, in_channels)
        self.weights = jax.random.normal(key, shape) * spread[:, None, None]
        self.bias = jnp.zeros((len(self.biases), out_channels)) if self.biases else None

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        k, l = self.diagrams[0].k, self.diagrams[0].l
        lead = x.ndim - k
        if lead < 1 or x.shape[lead - 1 :] != (self.weights.shape[2], *[self.n] * k):
            wanted = (self.weights.shape[2], *[self.n] * k)
            raise ValueError(f"expected shape (..., {wanted}), got {x.shape}")
        form = self.group.form(self.n)
        cores, sums = {}, {}
        for diagram, weight in zip(self.diagrams, self.weights, strict=True):
            if diagram.sources not in cores:
                cores[diagram.sources] = _contract(diagram.sources, x, self.n, form, lead)
            mixed = _mix(weight, cores[diagram.sources], lead - 1)
            order, target = _targets(diagram)
            mixed = jnp.transpose(mixed, (*range(lead), *(lead + i for i in order)))
            sums[target] = sums[target] + mixed if target in sums else mixed
        parts = [_expand(target, z, self.n, form, lead) for target, z in sums.items()]
        y = functools.reduce(operator.add, parts)
        if self.bias is not None:
            for diagram, weight in zip(self.biases, self.bias, strict=True):
                one = jnp.ones((), self.bias.dtype)
                if diagram.free:
                    one = _levi_civita(one, self.n, 0)
                _, target = _targets(diagram)
                tensor = _expand(target, one, self.n, form, 0)
                y = y + weight.reshape(-1, *[1] * l) * tensor
        return y


def _mix(weight, x, axis):
    """Channels, at this axis, times a matrix."""
    return jnp.moveaxis(jnp.tensordot(weight, x, axes=(1, axis)), 0, axis)


class InvariantGate(eqx.Module):
    r"""Channels times $\sigma(b_c + a_c s_c / n^l)$ with $s_c$ an invariant of the group: the
    squared norm, or for the symplectic group the form of a channel with the next. Entry by entry, a
    nonlinearity would not be equivariant.

    **Arguments:**

    - `channels`: how many. `order`: $l$. `group`: as for `EquivariantLinear`.

    **Reference:** Weiler, Geiger, Welling, Boomsma, Cohen, 3D Steerable CNNs, 2018,
    arXiv:1807.02547.
    """

    slope: Float[Array, " c"]
    offset: Float[Array, " c"]
    order: int = eqx.field(static=True)
    group: AbstractGroup = eqx.field(static=True)

    def __init__(self, channels: int, order: int, group: AbstractGroup):
        self.slope, self.offset = jnp.ones(channels), jnp.zeros(channels)
        self.order, self.group = order, group

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        size = math.prod(x.shape[x.ndim - self.order :])
        gate = jax.nn.sigmoid(
            self.offset + self.slope * self.group.invariants(x, self.order) / size
        )
        return x * gate.reshape(*gate.shape, *[1] * self.order)


class EquivariantMLP(eqx.Module):
    """`EquivariantLinear` layers with an `InvariantGate` between any two.

    **Arguments:**

    - `n`: dimension of the space.
    - `orders`: of the tensors before, between and after the layers.
    - `channels`: numbers of tensors there.
    - `group`: as for `EquivariantLinear`.
    - `bias`, `force`: as there.
    - `key`: for the weights.

    **Raises:** `ValueError` unless there are as many orders as channels, two at least; and as
    `EquivariantLinear`.

    **Reference:** Pearce-Crump, An Algorithm for Computing with Brauer's Group Equivariant Neural
    Network Layers, 2023, arXiv:2304.14165.
    """

    layers: tuple[EquivariantLinear, ...]
    gates: tuple[InvariantGate, ...]

    def __init__(
        self,
        n: int,
        orders: Sequence[int],
        channels: Sequence[int],
        group: AbstractGroup,
        *,
        bias: bool = True,
        force: bool = False,
        key: Array,
    ):
        if len(orders) != len(channels) or len(orders) < 2:
            raise ValueError(f"expected one order for each of 2 or more, got {orders}, {channels}")
        shapes = zip(itertools.pairwise(orders), itertools.pairwise(channels), strict=True)
        keys = jax.random.split(key, len(orders) - 1)
        self.layers = tuple(
            EquivariantLinear(n, *order, *channel, group, bias=bias, force=force, key=one)
            for (order, channel), one in zip(shapes, keys, strict=True)
        )
        hidden = zip(channels[1:-1], orders[1:-1], strict=True)
        self.gates = tuple(InvariantGate(c, order, group) for c, order in hidden)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        for layer, gate in zip(self.layers, self.gates, strict=False):
            x = gate(layer(x))
        return self.layers[-1](x)
