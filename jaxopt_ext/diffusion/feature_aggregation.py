r"""Several denoisers of one architecture as one, by attention between their features.

`AggregatedNetwork` of frozen networks is a network like any other; only its aggregators are
trained. `average_weights` and `AveragedOutputs` need no training, and are what it is measured
against.
"""

import abc
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import checks
from .networks import (
    AbstractNetwork,
    Conv3x3,
    ConvolutionBlock,
    FourierFeatures,
    log_ratio,
    one_hot,
)
from .schedules import Node


class Told(NamedTuple):
    """What aggregators are told besides features.

    **Attributes:**

    - `level`: the level of noise, a number.
    - `embedding`: its features.
    - `label`: a one in the place of the class; empty without classes.
    """

    level: Float[Array, ""]
    embedding: Float[Array, " e"]
    label: Float[Array, " classes"]


class AbstractAggregator(eqx.Module):
    r"""How features $F_1, \dots, F_N$ of one shape become one,
    $H = \sum_k A_k \odot F_k$, with $A_k \ge 0$ and $\sum_k A_k = 1$ at every place."""

    @abc.abstractmethod
    def maps(self, features: Float[Array, "N *feature"], told: Told) -> Float[Array, "N ..."]:
        """The weights A, which broadcast against the features."""


class UniformAggregator(AbstractAggregator):
    """The same weight for all models: what trained aggregators start from."""

    def maps(self, features, told):
        del told
        n = features.shape[0]
        return jnp.full((n,) + (1,) * (features.ndim - 1), 1 / n, features.dtype)


class LevelChoice(AbstractAggregator):
    r"""One model at each level of noise: model $k$ where $u_{k-1} \le u < u_k$, with
    $u = \tfrac14 \log(\sigma/\alpha)$ or what the network takes for its level.

    **Arguments:**

    - `edges`: $u_0 < \dots < u_{N-2}$, for $N$ models.

    **Raises:** `ValueError` for edges that do not rise, or, when called, are not one fewer than
    models.
    """

    edges: tuple[float, ...] = eqx.field(static=True)

    def __check_init__(self):
        if any(not a < b for a, b in zip(self.edges[:-1], self.edges[1:], strict=True)):
            raise ValueError(f"edges must rise, got {self.edges}")

    def maps(self, features, told):
        n = features.shape[0]
        if len(self.edges) != n - 1:
            raise ValueError(f"{n} models need {n - 1} edges, got {self.edges}")
        edges = jnp.asarray(self.edges, told.level.dtype)
        chosen = jnp.sum(told.level >= edges)
        weights = jax.nn.one_hot(chosen, n, dtype=features.dtype)
        return weights.reshape((n,) + (1,) * (features.ndim - 1))


def _zeroed(linear: eqx.nn.Linear) -> eqx.nn.Linear:
    where = lambda layer: (layer.weight, layer.bias)
    return eqx.tree_at(where, linear, replace_fn=jnp.zeros_like)


class _CrossAttention(eqx.Module):
    """Pixels look at two tokens, that of the class and one that stands for none."""

    norm: eqx.nn.GroupNorm
    attention: eqx.nn.MultiheadAttention
    none: Float[Array, " hidden"]
    classes: Float[Array, "classes hidden"]

    def __init__(self, hidden: int, num_classes: int, *, key: PRNGKeyArray, dtype: Any):
        keys = jax.random.split(key, 3)
        self.norm = eqx.nn.GroupNorm(1, hidden, dtype=dtype)
        self.attention = eqx.nn.MultiheadAttention(1, hidden, dtype=dtype, key=keys[0])
        self.none = jax.random.normal(keys[1], (hidden,), dtype)
        self.classes = jax.random.normal(keys[2], (num_classes, hidden), dtype)

    def __call__(self, h, label):
        pixels = self.norm(h).reshape(h.shape[0], -1).T
        # Without a class both tokens are the same.
        own = label @ self.classes + (1 - jnp.sum(label)) * self.none
        tokens = jnp.stack([self.none, own])
        return h + self.attention(pixels, tokens, tokens).T.reshape(h.shape)


class FeatureAggregator(AbstractAggregator):
    r"""Attention between images: a weight for each model at each pixel,

    $$A = \mathrm{softmax}_k\big(W_2\, r([W_1 [F_1; \dots; F_N]], \text{level})\big),$$

    with $1 \times 1$ convolutions $W_1$, $W_2$ and a residual block $r$ of two $3 \times 3$
    convolutions, scaled and shifted by the level; with classes, attention of the pixels to the
    class comes before $W_2$. At first $W_2 = 0$, so that all weights are $1/N$.

    **Arguments:**

    - `num_models`: N.
    - `channels`: of a feature, an array `(channels, height, width)`.
    - `hidden`: channels inside.
    - `condition_size`: number of features of the level.
    - `num_classes`: number of labels, if there are any.
    - `key`: random key.
    - `dtype`: of the weights.

    **Raises:** `ValueError` or `TypeError` for a size that is none.

    **Reference:** Wang, Tian, Guan, Shen, Jiang, Gu, Zhang, Ensembling Diffusion Models via
    Adaptive Feature Aggregation, 2024, arXiv:2405.17082.
    """

    first: eqx.nn.Linear
    block: ConvolutionBlock
    attention: _CrossAttention | None
    last: eqx.nn.Linear

    def __init__(
        self,
        num_models: int,
        channels: int,
        hidden: int,
        condition_size: int,
        num_classes: int | None = None,
        *,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        sizes = {"num_models": num_models, "channels": channels, "hidden": hidden}
        for name, size in sizes.items():
            checks.count(name, size)
        keys = jax.random.split(key, 5)
        self.first = eqx.nn.Linear(num_models * channels, hidden, dtype=dtype, key=keys[0])
        block = ConvolutionBlock(hidden, hidden, condition_size, key=keys[1], dtype=dtype)
        # Zeros in two layers, one behind the other, would leave this one without derivatives.
        second = Conv3x3(hidden, hidden, key=keys[2], dtype=dtype)
        self.block = eqx.tree_at(lambda b: b.convolutions[1], block, second)
        self.attention = None
        if num_classes is not None:
            kind = self.first.weight.dtype
            self.attention = _CrossAttention(hidden, num_classes, key=keys[3], dtype=kind)
        self.last = _zeroed(eqx.nn.Linear(hidden, num_models, dtype=dtype, key=keys[4]))

    def maps(self, features, told):
        height, width = features.shape[-2:]
        h = _pixelwise(self.first, features.reshape(-1, height, width))
        h = self.block(h, told.embedding)
        if self.attention is not None:
            h = self.attention(h, told.label)
        return jax.nn.softmax(_pixelwise(self.last, jax.nn.silu(h)), axis=0)[:, None]


def _pixelwise(linear, image):
    return jnp.tensordot(linear.weight, image, 1) + linear.bias[:, None, None]


class GroupAggregator(AbstractAggregator):
    r"""Attention between vectors: a weight for each model and each group of entries, by a
    perceptron with one hidden layer that sees the features of all models, the level and the class.

    Entries stand in groups of neighbours. The last layer is zero at first, so that all weights are
    $1/N$. Leading axes, those of tokens, are seen one by one.

    **Arguments:**

    - `num_models`: N.
    - `width`: of a feature, an array `(*tokens, width)`.
    - `hidden`: size of the hidden layer.
    - `condition_size`: number of features of the level.
    - `groups`: number of groups, a divisor of the width.
    - `num_classes`: number of labels, if there are any.
    - `key`: random key.
    - `dtype`: of the weights.

    **Raises:** `ValueError` or `TypeError` for a size that is none, or groups that do not divide
    the width.
    """

    first: eqx.nn.Linear
    last: eqx.nn.Linear
    groups: int = eqx.field(static=True)

    def __init__(
        self,
        num_models: int,
        width: int,
        hidden: int,
        condition_size: int,
        groups: int = 8,
        num_classes: int | None = None,
        *,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        sizes = {"num_models": num_models, "width": width, "hidden": hidden, "groups": groups}
        for name, size in sizes.items():
            checks.count(name, size)
        if width % groups:
            raise ValueError(f"groups must divide the width {width}, got {groups}")
        keys = jax.random.split(key)
        inputs = num_models * width + condition_size + (num_classes or 0)
        self.first = eqx.nn.Linear(inputs, hidden, dtype=dtype, key=keys[0])
        self.last = _zeroed(eqx.nn.Linear(hidden, num_models * groups, dtype=dtype, key=keys[1]))
        self.groups = groups

    def maps(self, features, told):
        n, *tokens, width = features.shape

        def one(features):
            seen = jnp.concatenate([features.reshape(-1), told.embedding, told.label])
            logits = self.last(jax.nn.silu(self.first(seen))).reshape(n, self.groups)
            return jnp.repeat(jax.nn.softmax(logits, axis=0), width // self.groups, axis=1)

        if not tokens:
            return one(features)
        weights = jax.vmap(one, 1, 1)(features.reshape(n, -1, width))
        return weights.reshape(features.shape)


def _merge(aggregator, features, told):
    """The merged feature and the weights."""
    stacked = jnp.stack(features)
    weights = aggregator.maps(stacked, told)
    return jnp.sum(weights * stacked, axis=0), weights


def _feature(hidden):
    """What a block computed: an image may come with a tuple of those kept for later blocks."""
    return hidden[0] if isinstance(hidden, tuple) else hidden


def _behind(before, after, feature):
    """The hidden value with the merged feature, which is what is kept where a block keeps its
    own."""
    if not isinstance(after, tuple):
        return feature
    kept, count = before[1], len(after[1])
    return feature, (*kept, feature) if count > len(kept) else kept[:count]


class MergedBlock(eqx.Module):
    """The blocks of all models on one hidden value, and the aggregator that makes their features
    the next.

    **Arguments:**

    - `blocks`: one of each model.
    - `aggregator`: merges their features.
    """

    blocks: tuple[Any, ...]
    aggregator: AbstractAggregator

    def merged(self, hidden: Any, condition: Any) -> tuple[Any, Array]:
        """The next hidden value, and the weights."""
        conditions, told = condition
        after = [block(hidden, own) for block, own in zip(self.blocks, conditions, strict=True)]
        feature, weights = _merge(self.aggregator, [_feature(h) for h in after], told)
        return _behind(hidden, after[0], feature), weights

    def __call__(self, hidden, condition):
        return self.merged(hidden, condition)[0]


class AggregatedNetwork(AbstractNetwork):
    r"""Adaptive feature aggregation (AFA): networks of one architecture with one stream of
    features. Block $i$ of every model sees the same $H^{i-1}$, and

    $$H^i = \sum_k A^i_k \odot F^i_k, \qquad F^i_k = \mathrm{block}^i_k(H^{i-1}),$$

    with weights from aggregator $i$, which knows the features, the level of noise and the class.
    What U-Nets keep for later blocks is $H^i$ too. Stems and outputs are merged in the same way.

    A call costs those of all networks and the aggregators. For training of the aggregators alone,
    hand `aggregator_filter(model)` to `training.GradientStep` as `trainable`; where there are
    classes, `label_dropout` of `DenoisingLoss` (0.1 in the paper) lets it be guided afterwards.

    **Arguments:**

    - `networks`: the models, N of them; those with classes all have the same ones.
    - `aggregators`: one for each block.
    - `first`, `output`: of the stems' features and of the outputs; `UniformAggregator()` gives
      means.
    - `embedding`: features of the level, for aggregators.
    - `level`: the node's level of noise, for aggregators.
    - `num_classes`: number of labels that aggregators know; labels go to the networks too where
      these have classes.
    - `output_shape`: the shape in which aggregators see outputs, that of a sample if not given.

    **Raises:** `TypeError` for what is no `AbstractNetwork`; `ValueError` for networks of different
    shapes, numbers of blocks or classes, for features of different shapes or types, with the
    block's index, and for a wrong number of aggregators.

    **Reference:** Wang, Tian, Guan, Shen, Jiang, Gu, Zhang, Ensembling Diffusion Models via
    Adaptive Feature Aggregation, 2024, arXiv:2405.17082.
    """

    networks: tuple[AbstractNetwork, ...]
    aggregators: tuple[AbstractAggregator, ...]
    first: AbstractAggregator
    output: AbstractAggregator
    embedding: Any
    level: Callable[[Node], Array] = log_ratio
    num_classes: int | None = eqx.field(static=True, default=None)
    output_shape: tuple[int, ...] | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        count = len(_features(self.networks)) - 2
        if len(self.aggregators) != count:
            raise ValueError(
                f"networks of {count} blocks need as many aggregators, got {len(self.aggregators)}"
            )
        known = _classes(self.networks[0])
        if known is not None and known != self.num_classes:
            raise ValueError(f"the networks have {known} classes, got {self.num_classes}")

    @classmethod
    def create(
        cls,
        networks: Sequence[AbstractNetwork],
        *,
        key: PRNGKeyArray,
        hidden: int = 64,
        groups: int = 8,
        embedding: Any = None,
        level: Callable[[Node], Array] = log_ratio,
        num_classes: int | None = None,
        output: AbstractAggregator | None = None,
    ) -> "AggregatedNetwork":
        """With fresh aggregators: `FeatureAggregator` for images, `GroupAggregator` for vectors and
        tokens.

        **Arguments:**

        - `networks`: the models.
        - `key`: random key.
        - `hidden`: size of the aggregators' hidden layers.
        - `groups`: of entries of a vector.
        - `embedding`: features of the level, with a `size`; 16 random frequencies if not given.
        - `level`: the node's level of noise, for aggregators.
        - `num_classes`: number of labels, that of the networks if not given.
        - `output`: merges the outputs; made like the others if not given.
        """
        networks = tuple(networks)
        shapes = _features(networks)
        dtype = shapes[0].dtype
        keys = jax.random.split(key, len(shapes) + 1)
        if embedding is None:
            embedding = FourierFeatures(16, key=keys[0], dtype=dtype)
        known = _classes(networks[0])
        num_classes = known if num_classes is None else num_classes
        n, size = len(networks), embedding.size

        def make(key, shape):
            options = {"num_classes": num_classes, "key": key, "dtype": dtype}
            if len(shape) == 3:
                return FeatureAggregator(n, shape[0], hidden, size, **options)
            divided = math.gcd(groups, shape[-1]) if len(shape) == 1 else 1
            return GroupAggregator(n, shape[-1], hidden, size, divided, **options)

        shape = networks[0].shape
        vectors = len(shapes[0].shape) == 1
        seen = (math.prod(shape),) if vectors else (-1, *shape[-2:])
        seen = tuple(np.empty(shape, bool).reshape(seen).shape)
        first, *inner = (make(k, s.shape) for k, s in zip(keys[1:], shapes[:-1], strict=False))
        output = make(keys[-1], seen) if output is None else output
        # Shape and blocks are no fields here.
        make_network: Any = cls
        return make_network(
            networks=networks,
            aggregators=tuple(inner),
            first=first,
            output=output,
            embedding=embedding,
            level=level,
            num_classes=num_classes,
            output_shape=seen,
        )

    @property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of a sample."""
        return self.networks[0].shape

    @property
    def blocks(self) -> tuple[MergedBlock, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of all models, one by one with their aggregator."""
        each = zip(*(network.blocks for network in self.networks), strict=True)
        return tuple(map(MergedBlock, each, self.aggregators))

    def _started(self, x, node, label):
        level = jnp.asarray(self.level(node)).astype(x.dtype)
        labels = one_hot(label, self.num_classes, x.dtype)
        told = Told(level, self.embedding(level).astype(x.dtype), labels)
        stems = [
            network.stem(x, node, None if _classes(network) is None else label)
            for network in self.networks
        ]
        hidden, conditions = zip(*stems, strict=True)
        feature, weights = _merge(self.first, [_feature(h) for h in hidden], told)
        return (_behind((None, ()), hidden[0], feature), (conditions, told)), weights

    def _ended(self, hidden, condition):
        conditions, told = condition
        shape = self.shape if self.output_shape is None else self.output_shape
        outputs = [
            network.head(hidden, own).reshape(shape)
            for network, own in zip(self.networks, conditions, strict=True)
        ]
        merged, weights = _merge(self.output, outputs, told)
        return merged.reshape(self.shape), weights

    def stem(self, x, node, label=None):
        return self._started(x, node, label)[0]

    def head(self, hidden, condition):
        return self._ended(hidden, condition)[0]


def attention_maps(
    network: AggregatedNetwork, x: Array, node: Node, label: Int[Array, ""] | None = None
) -> tuple[Float[Array, "N ..."], ...]:
    """The weights of the models for one sample: of the stem, of each block and of the output.

    **Arguments:**

    - `network`: the models.
    - `x`: a noisy sample.
    - `node`: its level.
    - `label`: its class, if there is one.

    **Returns:** arrays with a leading axis of models: `(N, 1, height, width)` for images, `(N,
    *tokens, width)` for vectors, with equal weights in a group.
    """
    if x.shape != network.shape:
        raise ValueError(f"x must be one sample of shape {network.shape}, got shape {x.shape}")
    (hidden, condition), weights = network._started(x, node, label)
    found = [weights]
    for block in network.blocks:
        hidden, weights = block.merged(hidden, condition)
        found.append(weights)
    return (*found, network._ended(hidden, condition)[1])


def aggregator_filter(model: PyTree) -> PyTree[bool]:
    """True for what belongs to aggregators: what `GradientStep` takes as `trainable`.

    **Arguments:**

    - `model`: a pytree with aggregated networks in it, a `Denoiser` of one say.
    """
    own = lambda node: isinstance(node, AbstractAggregator)
    return jax.tree.map(own, model, is_leaf=own)


def average_weights(networks: Sequence[PyTree], weights: Sequence[float] | None = None) -> PyTree:
    r"""The network with weights $\sum_k c_k \theta_k$ (a model soup), for networks that were
    trained from one.

    **Arguments:**

    - `networks`: modules of one structure.
    - `weights`: $c_k$, which sum to one; $1/N$ if not given.

    **Raises:** `ValueError` for networks of different structures, or weights that do not fit.

    **Reference:** Wortsman et al., Model Soups: Averaging Weights of Multiple Fine-Tuned Models
    Improves Accuracy without Increasing Inference Time, 2022, arXiv:2203.05482.
    """
    weights = _weights(networks, weights)
    arrays = [eqx.filter(network, eqx.is_inexact_array) for network in networks]
    shapes = [(jax.tree.structure(a), [leaf.shape for leaf in jax.tree.leaves(a)]) for a in arrays]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("networks must have the same structure and shapes")

    def mean(*leaves):
        # Of equal leaves nothing is rounded.
        moved = [c * (leaf - leaves[0]) for c, leaf in zip(weights, leaves, strict=True)]
        return leaves[0] + sum(moved[1:], moved[0])

    rest = eqx.filter(networks[0], eqx.is_inexact_array, inverse=True)
    return eqx.combine(jax.tree.map(mean, *arrays), rest)


class AveragedOutputs(eqx.Module):
    """The mean of the outputs of networks, each with features of its own.

    **Arguments:**

    - `networks`: `(x, node) -> output` or `(x, node, label) -> output`.
    - `weights`: one for each network, which sum to one; equal ones if not given.

    **Raises:** `ValueError` for weights that do not fit.
    """

    networks: tuple[Any, ...]
    weights: Float[Array, " N"]

    def __init__(self, networks: Sequence[Any], weights: Sequence[float] | None = None):
        self.networks, self.weights = tuple(networks), jnp.asarray(_weights(networks, weights))

    def __call__(self, x: Array, node: Node, *label: Array) -> Array:
        outputs = [network(x, node, *label) for network in self.networks]
        scaled = [c.astype(y.dtype) * y for c, y in zip(self.weights, outputs, strict=True)]
        return functools.reduce(jnp.add, scaled)


def _weights(networks, weights):
    n = len(networks)
    if not n:
        raise ValueError("there must be at least one network")
    weights = (1 / n,) * n if weights is None else tuple(map(float, weights))
    if len(weights) != n or not abs(sum(weights) - 1) < 1e-6:
        raise ValueError(f"weights must be {n} numbers that sum to one, got {weights}")
    return weights


def _classes(network):
    return getattr(network, "num_classes", None)


def _features(networks) -> list[jax.ShapeDtypeStruct]:
    """Shapes and types of the features of stem, blocks and output, which are to be the same for all
    networks."""
    if not networks:
        raise ValueError("there must be at least one network")
    for network in networks:
        if not isinstance(network, AbstractNetwork):
            raise TypeError(f"networks must be AbstractNetwork, got {network!r}")
    found = {"shape": [n.shape for n in networks], "classes": [_classes(n) for n in networks]}
    found["number of blocks"] = [len(n.blocks) for n in networks]
    for name, values in found.items():
        if any(value != values[0] for value in values):
            raise ValueError(f"networks must have the same {name}, got {values}")
    each = [_traced(network) for network in networks]
    names = ["stem", *(f"block {i}" for i in range(len(networks[0].blocks))), "output"]
    for name, *features in zip(names, *each, strict=True):
        if any(feature != features[0] for feature in features):
            raise ValueError(f"features of {name} must have one shape and type, got {features}")
    return each[0]


def _traced(network):
    arrays = [leaf for leaf in jax.tree.leaves(network) if eqx.is_inexact_array(leaf)]
    dtype = arrays[0].dtype if arrays else jnp.zeros(()).dtype

    def features(x, node):
        hidden, condition = network.stem(x, node)
        found = [_feature(hidden)]
        for block in network.blocks:
            hidden = block(hidden, condition)
            found.append(_feature(hidden))
        return [*found, network.head(hidden, condition)]

    number: Any = jax.ShapeDtypeStruct((), dtype)
    x = jax.ShapeDtypeStruct(network.shape, dtype)
    return jax.eval_shape(features, x, Node(number, number, number))
