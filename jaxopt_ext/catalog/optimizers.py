"""Rows of the gradient transformations."""

import math
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.flatten_util import ravel_pytree

import jaxopt_ext as jxt

from .shapes import OptimizerRow


def _state_bytes(numbers: Callable[[Any], int]) -> Callable[[Any], int]:
    """Bytes of a state with `numbers(leaf)` real numbers per leaf, at least single precision."""

    def formula(params):
        leaves = jax.tree.leaves(params)
        return sum(numbers(leaf) * max(4, leaf.real.dtype.itemsize) for leaf in leaves)

    return formula


def _opt_amsgrad_bytes(params: Any) -> int:
    """Four copies of the parameters and the last gradient, five differences, their products."""
    return _state_bytes(lambda leaf: (4 + 1 + 5) * leaf.size)(params) + 4 * 5**2


def _subspace_numbers(leaf: Any, long: int, short: int, other: int) -> int:
    """`long` and `short` numbers per direction and entry of a matrix's sides, at quarter rank."""
    if leaf.ndim != 2:
        return other * leaf.size
    rank = max(1, min(leaf.shape) // 4)
    return rank * (long * max(leaf.shape) + short * min(leaf.shape))


def _subset_numbers(leaf: Any) -> int:
    """One number per row or column of a matrix, whichever are more."""
    return max(leaf.shape) if leaf.ndim == 2 else leaf.size


def _online_subspace_numbers(leaf: Any) -> int:
    plain = leaf.ndim != 2 or max(1, min(leaf.shape) // 4) == min(leaf.shape)
    return 2 * leaf.size if plain else _subspace_numbers(leaf, 2, 3, 2)


def _badam_bytes(params: Any) -> int:
    """Adam's two moments for the largest layer."""
    labels = jax.tree.leaves(jxt.optimizers.blocks_by_layer(params))
    leaves = jax.tree.leaves(params)
    layers = [
        sum(leaf.size for leaf, label in zip(leaves, labels, strict=True) if label == number)
        for number in set(labels)
    ]
    return 2 * max(layers) * max(4, *(leaf.real.dtype.itemsize for leaf in leaves))


def _microadam_bytes(params: Any) -> int:
    """Ten rows of 1 % of the entries at four bytes, a 4-bit error, a range every 64 entries."""
    total = 0
    for leaf in jax.tree.leaves(params):
        full, rest = divmod(leaf.size, 32768)
        kept = full * math.ceil(0.01 * 32768) + math.ceil(0.01 * rest)
        ranges = 2 * math.ceil(leaf.size / 64) * max(4, leaf.dtype.itemsize)
        total += 10 * kept * 4 + math.ceil(leaf.size / 2) + ranges
    return total


_SN_SM = (
    "Nguyen, Nguyen, Efficient Adaptive Optimization via Subset-Norm and Subspace-Momentum, 2025, "
    "arXiv:2411.07120"
)
_ADAMP = (
    "Heo et al., AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant "
    "Weights, 2021, arXiv:2006.08217"
)
_GENERALIZED_SMOOTH = (
    "Zhang, Zhou, Zou, Convergence Guarantees for RMSProp and Adam in Generalized-smooth "
    "Non-convex Optimization with Affine Noise Variance, 2025, arXiv:2404.01436"
)
_ASWA = "Madhyastha, Jain, On Model Stability as a Function of Random Seed, 2019, arXiv:1909.10447"

_ADADAGRAD = (
    "Lau, Liu, Kolar, AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods, 2024, "
    "arXiv:2402.11215"
)
_OASIS = (
    "Jahani et al., Doubly Adaptive Scaled Algorithm for Machine Learning Using Second-Order "
    "Information, 2022, arXiv:2109.05198"
)
_SANIA = (
    "Abdukhakimov et al., SANIA: Polyak-type Optimization Framework Leads to Scale Invariant "
    "Stochastic Algorithms, 2023, arXiv:2312.17369"
)


_AMSGRAD = "Reddi, Kale, Kumar, On the Convergence of Adam and Beyond, 2018, arXiv:1904.09237"
_ADABOUND = (
    "Luo, Xiong, Liu, Sun, Adaptive Gradient Methods with Dynamic Bound of Learning Rate, 2019, "
    "arXiv:1902.09843"
)
_OPT_AMSGRAD = (
    "Wang, Li, Karimi, Li, An Optimistic Acceleration of AMSGrad for Nonconvex Optimization, 2021, "
    "arXiv:1903.01435"
)
_ADEMAMIX = (
    "Pagliardini, Ablin, Grangier, The AdEMAMix Optimizer: Better, Faster, Older, 2025, "
    "arXiv:2409.03137"
)
_ADABELIEF = (
    "Zhuang et al., AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients, "
    "2020, arXiv:2010.07468"
)


def _factored_numbers(leaf: Any) -> int:
    """Row and column sums of the two largest axes."""
    sides = sorted(leaf.shape)[-2:]
    if len(sides) < 2 or sides[0] < 2:
        return leaf.size
    return leaf.size // sides[0] + leaf.size // sides[1]


_LINEAX = "the linear solves of lineax do not trace there with the check on"
_REAL = "its curvature, or its statistics, are defined for real parameters; it says so"


def _entry(params: Any, index: Any) -> Any:
    """One number of the parameters: with targets, a least-squares problem for any tree."""
    return ravel_pytree(params)[0][index]


OPTIMIZERS: tuple[OptimizerRow, ...] = (
    OptimizerRow(
        "BAdam",
        "optimizers.badam",
        "Luo, Yu, Li, BAdam: A Memory Efficient Full Parameter Training Method for Large Language "
        "Models, 2024, arXiv:2404.02827",
        lambda params: {
            "learning_rate": 1e-2,
            "blocks": jxt.optimizers.blocks_by_layer(params),
            "strict": False,
        },
        claim="optimizers/badam",
        system=("S176",),
        state_bytes=_badam_bytes,
        opt_outs={"empty_tree": "without parameters there is no block to train; it says so"},
    ),
    OptimizerRow(
        "MicroAdam",
        "optimizers.microadam",
        "Modoranu et al., MicroAdam: Accurate Adaptive Optimization with Low Space Overhead and "
        "Provable Convergence, 2024, arXiv:2405.15593",
        lambda params: {"learning_rate": 5e-4},
        static=("k",),
        claim="optimizers/microadam",
        system=("S027",),
        state_bytes=_microadam_bytes,
        opt_outs={
            "complex": _REAL,
            "optimum": "a window of ten sparse gradients bears short steps only",
            "dtypes": "its window holds bfloat16 values, as the paper's does",
        },
    ),
    OptimizerRow(
        "Online Subspace Descent",
        "optimizers.online_subspace_descent",
        "Liang, Liu, Chen, Liu, Memory-Efficient LLM Training with Online Subspace Descent, 2024, "
        "arXiv:2408.12857",
        lambda params: {"learning_rate": 1e-2, "rank": 0.25},
        static=("rank",),
        claim="optimizers/online_subspace",
        system=("S037",),
        state_bytes=_state_bytes(_online_subspace_numbers),
    ),
    OptimizerRow(
        "AdamSNSM",
        "optimizers.adam_snsm",
        _SN_SM,
        lambda params: {"learning_rate": 1e-2, "rank": 0.25},
        static=("rank",),
        claim="optimizers/subset_norm",
        system=("S063",),
        state_bytes=_state_bytes(
            lambda leaf: _subset_numbers(leaf) + _subspace_numbers(leaf, 1, 1, 1)
        ),
    ),
    OptimizerRow(
        "Adam with Subset-Norm",
        "optimizers.adam_sn",
        _SN_SM,
        lambda params: {"learning_rate": 1e-2},
        claim="optimizers/subset_norm",
        system=("S063",),
        state_bytes=_state_bytes(lambda leaf: leaf.size + _subset_numbers(leaf)),
    ),
    OptimizerRow(
        "Subset-Norm",
        "optimizers.subset_norm",
        _SN_SM,
        lambda params: {"learning_rate": 0.5},
        claim="optimizers/subset_norm",
        system=("S063",),
        state_bytes=_state_bytes(_subset_numbers),
    ),
    OptimizerRow(
        "Subspace-Momentum",
        "optimizers.subspace_momentum",
        _SN_SM,
        lambda params: {"learning_rate": 1e-2, "rank": 0.25},
        static=("rank",),
        claim="optimizers/subset_norm",
        system=("S063",),
        state_bytes=_state_bytes(lambda leaf: _subspace_numbers(leaf, 1, 1, 1)),
    ),
    OptimizerRow(
        "EXAdam",
        "optimizers.exadam",
        "Adly, EXAdam: The Power of Adaptive Cross-Moments, 2024, arXiv:2412.20302",
        lambda params: {"learning_rate": 1e-2},
        claim="optimizers/exadam",
        system=("S094",),
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
    ),
    OptimizerRow(
        "Adan",
        "optimizers.adan",
        "Xie et al., Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models, "
        "2024, arXiv:2208.06677",
        lambda params: {"learning_rate": 1e-2},
        claim="optimizers/adan",
        system=("S102",),
        state_bytes=_state_bytes(lambda leaf: 4 * leaf.size),
    ),
    OptimizerRow(
        "AdamP",
        "optimizers.adamp",
        _ADAMP,
        lambda params: {"learning_rate": 1e-2},
        claim="optimizers/adamp",
        system=("S034",),
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
    ),
    OptimizerRow(
        "SGDP",
        "optimizers.sgdp",
        _ADAMP,
        lambda params: {"learning_rate": 1e-2, "momentum": 0.9},
        claim="optimizers/adamp",
        system=("S034",),
        state_bytes=_state_bytes(lambda leaf: leaf.size),
    ),
    OptimizerRow(
        "MultiAdam",
        "optimizers.multiadam",
        "Yao et al., MultiAdam: Parameter-wise Scale-invariant Optimizer for Multiscale Training "
        "of Physics-informed Neural Networks, 2023, arXiv:2306.02816",
        lambda params: {"learning_rate": 1e-2},
        claim="optimizers/multiadam",
        system=("S066",),
        extras=("loss_grads",),
        state_bytes=_state_bytes(lambda leaf: 2 * 2 * leaf.size),
    ),
    OptimizerRow(
        "RMSProp under generalized smoothness",
        "optimizers.rmsprop_gs",
        _GENERALIZED_SMOOTH,
        lambda params: {"learning_rate": 1e-2},
        claim="optimizers/adam",
        system=("S046",),
        state_bytes=_state_bytes(lambda leaf: leaf.size),
    ),
    OptimizerRow(
        "Adam under generalized smoothness",
        "optimizers.adam_gs",
        _GENERALIZED_SMOOTH,
        lambda params: {"learning_rate": 1e-2},
        claim="optimizers/adam",
        system=("S046",),
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
    ),
    OptimizerRow(
        "Aggressive stochastic weight averaging (ASWA)",
        "optimizers.aswa",
        _ASWA,
        lambda params: {"inner": optax.sgd(0.3), "steps_per_epoch": 10},
        claim="optimizers/aswa",
        system=("S104",),
        state_bytes=_state_bytes(lambda leaf: leaf.size),
    ),
    OptimizerRow(
        "Norm-filtered aggressive stochastic weight averaging (NASWA)",
        "optimizers.aswa",
        _ASWA,
        lambda params: {"inner": optax.sgd(0.3), "steps_per_epoch": 10, "norm_filter": True},
        claim="optimizers/aswa",
        system=("S104",),
        state_bytes=_state_bytes(lambda leaf: leaf.size),
    ),
    OptimizerRow(
        "Switch EMA",
        "optimizers.switch_ema",
        "Li et al., Switch EMA: A Free Lunch for Better Flatness and Sharpness, 2024, "
        "arXiv:2402.09240",
        lambda params: {"inner": optax.sgd(1e-2), "decay": 0.9, "steps_per_epoch": 10},
        claim="optimizers/switch_ema",
        system=("S127",),
        state_bytes=_state_bytes(lambda leaf: leaf.size),
    ),
    OptimizerRow(
        "Multi-momentum variance reduction (Discover)",
        "optimizers.multi_momentum",
        "Tondji, Kashubin, Cisse, Variance Reduction in Deep Learning: More Momentum is All You "
        "Need, 2021, arXiv:2111.11828",
        lambda params: {"inner": optax.sgd(1e-2), "num_clusters": 2},
        claim="optimizers/multimomentum",
        system=("S122",),
        extras=("cluster_id",),
        state_bytes=_state_bytes(lambda leaf: (2 + 1) * leaf.size),
    ),
    OptimizerRow(
        "AdaHessian",
        "optimizers.adahessian",
        "Yao et al., ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning, 2021, "
        "arXiv:2006.00719",
        lambda params: {"learning_rate": 1e-2},
        claim="optimizers/adahessian",
        system=("S141",),
        extras=("hvp_fn",),
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
        opt_outs={"complex": _REAL},
    ),
    OptimizerRow(
        "OASIS",
        "optimizers.oasis",
        _OASIS,
        lambda params: {"n_warmup": 10},
        claim="optimizers/oasis",
        system=("S100",),
        extras=("grad_fn", "hvp_fn"),
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
        opt_outs={"complex": _REAL},
    ),
    OptimizerRow(
        "OASIS with momentum at a fixed rate",
        "optimizers.oasis",
        _OASIS,
        lambda params: {"n_warmup": 1, "adaptive": False, "b1": 0.9, "learning_rate": 1e-2},
        claim="optimizers/oasis",
        system=("S100",),
        extras=("hvp_fn",),
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
        opt_outs={"complex": _REAL},
    ),
    OptimizerRow(
        "SANIA AdaGrad-SQR",
        "optimizers.sania",
        _SANIA,
        lambda params: {"preconditioner": "adagrad_sqr", "eps": 1.0},
        claim="optimizers/sania",
        system=("S129",),
        extras=("value",),
        state_bytes=_state_bytes(lambda leaf: leaf.size),
        opt_outs={
            "optimum": "its sum only grows, so large first gradients slow it for good",
        },
    ),
    OptimizerRow(
        "SANIA Adam-SQR",
        "optimizers.sania",
        _SANIA,
        lambda params: {"preconditioner": "adam_sqr", "eps": 1.0},
        claim="optimizers/sania",
        system=("S129",),
        extras=("value",),
        state_bytes=_state_bytes(lambda leaf: leaf.size),
    ),
    OptimizerRow(
        "SANIA identity (stochastic Polyak)",
        "optimizers.sania",
        _SANIA,
        lambda params: {"preconditioner": "identity"},
        claim="optimizers/sania",
        system=("S129",),
        extras=("value",),
        state_bytes=lambda params: 0,
    ),
    OptimizerRow(
        "SANIA Hutchinson",
        "optimizers.sania",
        _SANIA,
        lambda params: {"preconditioner": "hutchinson"},
        claim="optimizers/sania",
        system=("S129",),
        extras=("value", "hvp_fn"),
        state_bytes=_state_bytes(lambda leaf: leaf.size),
        opt_outs={"complex": _REAL},
    ),
    OptimizerRow(
        "SANIA Newton",
        "optimizers.sania",
        _SANIA,
        lambda params: {"preconditioner": "newton"},
        claim="optimizers/sania",
        system=("S129",),
        extras=("value", "hvp_fn"),
        state_bytes=lambda params: 0,
        opt_outs={"complex": _REAL, "shard_map": _LINEAX},
    ),
    OptimizerRow(
        "SANIA Newton-CG",
        "optimizers.sania",
        _SANIA,
        lambda params: {"preconditioner": "cg"},
        claim="optimizers/sania",
        system=("S129",),
        extras=("value", "hvp_fn"),
        state_bytes=lambda params: 0,
        opt_outs={"complex": _REAL},
    ),
    OptimizerRow(
        "Exact Gauss-Newton (EGN)",
        "optimizers.egn",
        "Korbit, Adeoye, Bemporad, Zanon, Exact Gauss-Newton Optimization for Training Deep Neural "
        "Networks, 2024, arXiv:2405.14402",
        lambda params: {"predict_fn": _entry},
        claim="optimizers/egn",
        system=("S148",),
        extras=("batch",),
        state_bytes=lambda params: 0,
        opt_outs={
            "complex": _REAL,
            "empty_tree": "the example predicts an entry of the parameters",
            "shard_map": _LINEAX,
        },
    ),
    OptimizerRow(
        "AdAdaGrad",
        "optimizers.adadagrad",
        _ADADAGRAD,
        lambda params: {"learning_rate": 0.5},
        claim="optimizers/adadagrad",
        system=("S035",),
        extras=("per_sample_grads",),
        state_bytes=_state_bytes(lambda leaf: leaf.size),
        opt_outs={"complex": _REAL},
    ),
    OptimizerRow(
        "AdAdaGradNorm",
        "optimizers.adadagrad_norm",
        _ADADAGRAD,
        lambda params: {"learning_rate": 0.5},
        claim="optimizers/adadagrad",
        system=("S035",),
        extras=("per_sample_grads",),
        state_bytes=lambda params: 0,
        opt_outs={"complex": _REAL},
    ),
    OptimizerRow(
        "AdaBelief",
        "optimizers.adabelief",
        _ADABELIEF,
        lambda params: {"learning_rate": 1e-2},
        claim="optimizers/adabelief",
        system=("S041",),
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
    ),
    OptimizerRow(
        "AdaBelief, rectified",
        "optimizers.adabelief",
        _ADABELIEF,
        lambda params: {"learning_rate": 1e-2, "rectify": True},
        claim="optimizers/adabelief",
        system=("S041",),
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
    ),
    OptimizerRow(
        "AdaBelief with AMSGrad's maximum",
        "optimizers.adabelief",
        _ADABELIEF,
        lambda params: {"learning_rate": 1e-2, "amsgrad": True},
        claim="optimizers/adabelief",
        system=("S041",),
        state_bytes=_state_bytes(lambda leaf: 3 * leaf.size),
    ),
    OptimizerRow(
        "Adafactor",
        "optimizers.adafactor",
        "Shazeer, Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, 2018, "
        "arXiv:1804.04235",
        lambda params: {"learning_rate": 1e-1},
        claim="optimizers/adafactor",
        system=("S057",),
        state_bytes=_state_bytes(_factored_numbers),
    ),
    OptimizerRow(
        "AdEMAMix",
        "optimizers.ademamix",
        _ADEMAMIX,
        lambda params: {"learning_rate": 1e-2, "b3": 0.99},
        claim="optimizers/ademamix",
        system=("S060",),
        state_bytes=_state_bytes(lambda leaf: 3 * leaf.size),
    ),
    OptimizerRow(
        "AdEMAMix without the fast mean",
        "optimizers.ademamix",
        _ADEMAMIX,
        lambda params: {"learning_rate": 1e-2, "b1": 0.0, "b3": 0.99},
        claim="optimizers/ademamix",
        system=("S060",),
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
    ),
    OptimizerRow(
        "AMSGrad",
        "optimizers.amsgrad",
        _AMSGRAD,
        lambda params: {"learning_rate": 1e-2},
        claim="optimizers/amsgrad",
        system=("S072",),
        state_bytes=_state_bytes(lambda leaf: 3 * leaf.size),
    ),
    OptimizerRow(
        "AdamNC",
        "optimizers.adamnc",
        _AMSGRAD,
        lambda params: {"learning_rate": 1e-1},
        claim="optimizers/amsgrad",
        system=("S072",),
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
    ),
    OptimizerRow(
        "AdaBound",
        "optimizers.adabound",
        _ADABOUND,
        lambda params: {"learning_rate": 1e-2},
        claim="optimizers/adabound",
        system=("S084",),
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
    ),
    OptimizerRow(
        "AMSBound",
        "optimizers.amsbound",
        _ADABOUND,
        lambda params: {"learning_rate": 1e-2},
        claim="optimizers/adabound",
        system=("S084",),
        state_bytes=_state_bytes(lambda leaf: 3 * leaf.size),
    ),
    OptimizerRow(
        "Optimistic AMSGrad",
        "optimizers.opt_amsgrad",
        _OPT_AMSGRAD,
        lambda params: {"learning_rate": 1e-2},
        claim="optimizers/optimistic_amsgrad",
        system=("S101",),
        state_bytes=_opt_amsgrad_bytes,
    ),
)
