"""The table of systems: what each is, where it lives, which paper it follows, what it claims.

The conformance suite runs over these rows and nothing else: a new member is a file in its family
and a row here.
"""

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import optax
import optimistix as optx
from jax.flatten_util import ravel_pytree

import jaxopt_ext as jxt

Shape = Literal["solver", "optimizer", "network", "sampler", "estimator", "kernel"]


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One member of the library.

    **Arguments:**

    - `name`: the method's name in the literature.
    - `public`: dotted path of the public object, `"minimize.FISTA"`; kernels start with
      `"kernels."`.
    - `shape`: which contract it keeps, and so which conformance suite runs it.
    - `paper`: authors, title, year, arXiv id or venue.
    - `example`: builds the member that the suite runs. Solvers, samplers, estimators and kernels:
      called with no argument. Optimizers: called with the parameters. Network algorithms: called
      with the loss.
    - `claim`: path of the claim under `benchmarks/claims`, without suffix.
    - `system`: identifier of the published system; `None` for building blocks.
    - `extras`: optimizers only: names of the extra arguments that `update` needs.
    - `state_bytes`: optimizers only: the paper's formula for the size of the state, from the
      parameters; counters of a few bytes are left out.
    - `opt_outs`: checks that do not apply, each with its reason.
    """

    name: str
    public: str
    shape: Shape
    paper: str
    example: Callable[..., Any]
    claim: str | None = None
    system: str | None = None
    extras: tuple[str, ...] = ()
    state_bytes: Callable[[Any], int] | None = None
    opt_outs: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def object(self) -> Any:
        """The public object itself."""
        if self.public.startswith("kernels."):
            root: Any = importlib.import_module("jaxopt_ext_kernels")
            return functools.reduce(getattr, self.public.split(".")[1:], root)
        return functools.reduce(getattr, self.public.split("."), jxt)


SOLVERS: tuple[Row, ...] = (
    Row(
        "Gradient descent",
        "minimize.GradientDescent",
        "solver",
        "Nocedal, Wright, Numerical Optimization, 2006",
        lambda: jxt.minimize.GradientDescent(),
    ),
    Row(
        "Proximal gradient",
        "minimize.ProximalGradient",
        "solver",
        "Combettes, Wajs, Signal Recovery by Proximal Forward-Backward Splitting, 2005",
        lambda: jxt.minimize.ProximalGradient(),
    ),
    Row(
        "FISTA",
        "minimize.FISTA",
        "solver",
        "Beck, Teboulle, A Fast Iterative Shrinkage-Thresholding Algorithm, 2009",
        lambda: jxt.minimize.FISTA(),
        claim="minimize/fista",
    ),
    Row(
        "Block coordinate descent",
        "minimize.BlockCoordinateDescent",
        "solver",
        "Tseng, Yun, A Coordinate Gradient Descent Method for Nonsmooth Separable Minimization, "
        "2009",
        lambda: jxt.minimize.BlockCoordinateDescent(selection=jxt.minimize.Shuffled()),
        claim="minimize/block_coordinate",
        opt_outs={"pytree": "blocks are the entries of the leading axis of one array"},
    ),
    Row(
        "Greedy coordinate descent",
        "minimize.GreedyCoordinateDescent",
        "solver",
        "Nutini et al., Coordinate Descent Converges Faster with the Gauss-Southwell Rule, 2015, "
        "arXiv:1506.00552",
        lambda: jxt.minimize.GreedyCoordinateDescent(),
        claim="minimize/block_coordinate",
        opt_outs={"pytree": "blocks are the entries of the leading axis of one array"},
    ),
    Row(
        "Mirror descent",
        "minimize.MirrorDescent",
        "solver",
        "Beck, Teboulle, Mirror Descent and Nonlinear Projected Subgradient Methods, 2003",
        lambda: jxt.minimize.MirrorDescent(),
    ),
    Row(
        "Frank-Wolfe",
        "minimize.FrankWolfe",
        "solver",
        "Jaggi, Revisiting Frank-Wolfe, 2013",
        lambda: jxt.minimize.FrankWolfe(),
        claim="minimize/frank_wolfe",
        opt_outs={
            name: "its error falls as 1/k, so the tight tolerance of this check is out of reach"
            for name in ("oracle", "pytree", "gradient", "vmap")
        },
    ),
    Row(
        "Away-step Frank-Wolfe",
        "minimize.AwayFrankWolfe",
        "solver",
        "Lacoste-Julien, Jaggi, On the Global Linear Convergence of Frank-Wolfe Variants, 2015, "
        "arXiv:1511.05932",
        lambda: jxt.minimize.AwayFrankWolfe(),
        claim="minimize/frank_wolfe",
    ),
    Row(
        "Pairwise Frank-Wolfe",
        "minimize.PairwiseFrankWolfe",
        "solver",
        "Lacoste-Julien, Jaggi, On the Global Linear Convergence of Frank-Wolfe Variants, 2015, "
        "arXiv:1511.05932",
        lambda: jxt.minimize.PairwiseFrankWolfe(),
        claim="minimize/frank_wolfe",
    ),
    Row(
        "Picard iteration",
        "fixed_point.Picard",
        "solver",
        "Picard 1890; Banach 1922",
        lambda: jxt.fixed_point.Picard(),
    ),
    Row(
        "Krasnosel'skii-Mann iteration",
        "fixed_point.KrasnoselskiiMann",
        "solver",
        "Mann, Mean Value Methods in Iteration, 1953",
        lambda: jxt.fixed_point.KrasnoselskiiMann(),
    ),
    Row(
        "Halpern iteration",
        "fixed_point.Halpern",
        "solver",
        "Lieder, On the Convergence Rate of the Halpern-Iteration, 2021",
        lambda: jxt.fixed_point.Halpern(),
        claim="fixed_point/halpern",
        opt_outs={
            name: "its residual falls as 1/k, so the tight tolerance of this check is out of reach"
            for name in ("oracle", "pytree", "gradient", "vmap", "float32")
        },
    ),
    Row(
        "Anderson acceleration",
        "fixed_point.Anderson",
        "solver",
        "Zhang, O'Donoghue, Boyd, Globally Convergent Type-I Anderson Acceleration, 2020, "
        "arXiv:1808.03971",
        lambda: jxt.fixed_point.Anderson(),
        claim="fixed_point/anderson",
    ),
    Row(
        "ADMM",
        "splitting.ADMM",
        "solver",
        "Boyd et al., Distributed Optimization and Statistical Learning via ADMM, 2011",
        lambda: jxt.splitting.ADMM(),
        claim="splitting/admm",
        opt_outs={"pytree": "a split point is a tuple already"},
    ),
    Row(
        "Douglas-Rachford splitting",
        "splitting.DouglasRachford",
        "solver",
        "Lions, Mercier, Splitting Algorithms for the Sum of Two Nonlinear Operators, 1979",
        lambda: jxt.splitting.DouglasRachford(step_size=5.0),
        opt_outs={
            "pytree": "the prox of a least-squares loss acts on one array",
            "problems": "Constrained: the suite's objective there has no prox",
        },
    ),
    Row(
        "Primal-dual hybrid gradient",
        "splitting.PrimalDualHybridGradient",
        "solver",
        "Chambolle, Pock, A First-Order Primal-Dual Algorithm for Convex Problems, 2011; "
        "Applegate et al., 2023, arXiv:2105.12715",
        lambda: jxt.splitting.PrimalDualHybridGradient(),
        claim="splitting/primal_dual",
        opt_outs={"pytree": "a primal-dual pair is a tuple already"},
    ),
    Row(
        "OSQP",
        "splitting.OSQP",
        "solver",
        "Stellato et al., OSQP: An Operator Splitting Solver for Quadratic Programs, 2020, "
        "arXiv:1711.08013",
        lambda: jxt.splitting.OSQP(),
        claim="splitting/osqp",
        opt_outs={"pytree": "a quadratic program is over one vector"},
    ),
    Row(
        "optax transformations",
        "adapters.Optax",
        "solver",
        "DeepMind et al., The DeepMind JAX Ecosystem, 2020",
        lambda: jxt.adapters.Optax(optax.lbfgs()),
    ),
    Row(
        "optimistix solvers",
        "adapters.Optimistix",
        "solver",
        "Rader, Lyons, Kidger, Optimistix: Modular Optimisation in JAX and Equinox, 2024, "
        "arXiv:2402.09983",
        lambda: jxt.adapters.Optimistix(optx.LevenbergMarquardt(rtol=1e-10, atol=1e-10)),
        opt_outs={
            "problems": "Smooth, FixedPoint: the example is a least-squares solver",
            "oracle": "its tolerance is its own, on another quantity",
            "float32": "its tolerance is its own, out of reach in single precision",
            "construction": "its step limit is its own; max_steps is one run",
        },
    ),
)


def _state_bytes(numbers: Callable[[Any], int]) -> Callable[[Any], int]:
    """Bytes of a state with `numbers(leaf)` real numbers per leaf, at least single precision."""

    def formula(params):
        leaves = jax.tree.leaves(params)
        return sum(numbers(leaf) * max(4, leaf.real.dtype.itemsize) for leaf in leaves)

    return formula


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


def _entry(params: Any, index: Any) -> Any:
    """One number of the parameters: with targets, a least-squares problem for any tree."""
    return ravel_pytree(params)[0][index]


OPTIMIZERS: tuple[Row, ...] = (
    Row(
        "BAdam",
        "optimizers.badam",
        "optimizer",
        "Luo, Yu, Li, BAdam: A Memory Efficient Full Parameter Training Method for Large Language "
        "Models, 2024, arXiv:2404.02827",
        lambda params: jxt.optimizers.badam(
            1e-2, jxt.optimizers.blocks_by_layer(params), strict=False
        ),
        claim="optimizers/badam",
        system="S176",
        state_bytes=_badam_bytes,
    ),
    Row(
        "MicroAdam",
        "optimizers.microadam",
        "optimizer",
        "Modoranu et al., MicroAdam: Accurate Adaptive Optimization with Low Space Overhead and "
        "Provable Convergence, 2024, arXiv:2405.15593",
        lambda params: jxt.optimizers.microadam(5e-4),
        claim="optimizers/microadam",
        system="S027",
        state_bytes=_microadam_bytes,
    ),
    Row(
        "Online Subspace Descent",
        "optimizers.online_subspace_descent",
        "optimizer",
        "Liang, Liu, Chen, Liu, Memory-Efficient LLM Training with Online Subspace Descent, 2024, "
        "arXiv:2408.12857",
        lambda params: jxt.optimizers.online_subspace_descent(1e-2, rank=0.25),
        claim="optimizers/online_subspace",
        system="S037",
        state_bytes=_state_bytes(_online_subspace_numbers),
    ),
    Row(
        "AdamSNSM",
        "optimizers.adam_snsm",
        "optimizer",
        _SN_SM,
        lambda params: jxt.optimizers.adam_snsm(1e-2, rank=0.25),
        claim="optimizers/subset_norm",
        system="S063",
        state_bytes=_state_bytes(
            lambda leaf: _subset_numbers(leaf) + _subspace_numbers(leaf, 1, 1, 1)
        ),
    ),
    Row(
        "Adam with Subset-Norm",
        "optimizers.adam_sn",
        "optimizer",
        _SN_SM,
        lambda params: jxt.optimizers.adam_sn(1e-2),
        claim="optimizers/subset_norm",
        system="S063",
        state_bytes=_state_bytes(lambda leaf: leaf.size + _subset_numbers(leaf)),
    ),
    Row(
        "Subset-Norm",
        "optimizers.subset_norm",
        "optimizer",
        _SN_SM,
        lambda params: jxt.optimizers.subset_norm(0.5),
        claim="optimizers/subset_norm",
        system="S063",
        state_bytes=_state_bytes(_subset_numbers),
    ),
    Row(
        "Subspace-Momentum",
        "optimizers.subspace_momentum",
        "optimizer",
        _SN_SM,
        lambda params: jxt.optimizers.subspace_momentum(1e-2, rank=0.25),
        claim="optimizers/subset_norm",
        system="S063",
        state_bytes=_state_bytes(lambda leaf: _subspace_numbers(leaf, 1, 1, 1)),
    ),
    Row(
        "EXAdam",
        "optimizers.exadam",
        "optimizer",
        "Adly, EXAdam: The Power of Adaptive Cross-Moments, 2024, arXiv:2412.20302",
        lambda params: jxt.optimizers.exadam(1e-2),
        claim="optimizers/exadam",
        system="S094",
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
    ),
    Row(
        "Adan",
        "optimizers.adan",
        "optimizer",
        "Xie et al., Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models, "
        "2024, arXiv:2208.06677",
        lambda params: jxt.optimizers.adan(1e-2),
        claim="optimizers/adan",
        system="S102",
        state_bytes=_state_bytes(lambda leaf: 4 * leaf.size),
    ),
    Row(
        "AdamP",
        "optimizers.adamp",
        "optimizer",
        _ADAMP,
        lambda params: jxt.optimizers.adamp(1e-2),
        claim="optimizers/adamp",
        system="S034",
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
    ),
    Row(
        "SGDP",
        "optimizers.sgdp",
        "optimizer",
        _ADAMP,
        lambda params: jxt.optimizers.sgdp(1e-2, 0.9),
        claim="optimizers/adamp",
        system="S034",
        state_bytes=_state_bytes(lambda leaf: leaf.size),
    ),
    Row(
        "MultiAdam",
        "optimizers.multiadam",
        "optimizer",
        "Yao et al., MultiAdam: Parameter-wise Scale-invariant Optimizer for Multiscale Training "
        "of Physics-informed Neural Networks, 2023, arXiv:2306.02816",
        lambda params: jxt.optimizers.multiadam(1e-2),
        claim="optimizers/multiadam",
        system="S066",
        extras=("loss_grads",),
        state_bytes=_state_bytes(lambda leaf: 2 * 2 * leaf.size),
    ),
    Row(
        "RMSProp under generalized smoothness",
        "optimizers.rmsprop_gs",
        "optimizer",
        _GENERALIZED_SMOOTH,
        lambda params: jxt.optimizers.rmsprop_gs(1e-2),
        claim="optimizers/adam",
        system="S046",
        state_bytes=_state_bytes(lambda leaf: leaf.size),
    ),
    Row(
        "Adam under generalized smoothness",
        "optimizers.adam_gs",
        "optimizer",
        _GENERALIZED_SMOOTH,
        lambda params: jxt.optimizers.adam_gs(1e-2),
        claim="optimizers/adam",
        system="S046",
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
    ),
    Row(
        "Aggressive stochastic weight averaging (ASWA)",
        "optimizers.aswa",
        "optimizer",
        _ASWA,
        lambda params: jxt.optimizers.aswa(optax.sgd(0.3), 10),
        claim="optimizers/aswa",
        system="S104",
        state_bytes=_state_bytes(lambda leaf: leaf.size),
    ),
    Row(
        "Norm-filtered aggressive stochastic weight averaging (NASWA)",
        "optimizers.aswa",
        "optimizer",
        _ASWA,
        lambda params: jxt.optimizers.aswa(optax.sgd(0.3), 10, norm_filter=True),
        claim="optimizers/aswa",
        system="S104",
        state_bytes=_state_bytes(lambda leaf: leaf.size),
    ),
    Row(
        "Switch EMA",
        "optimizers.switch_ema",
        "optimizer",
        "Li et al., Switch EMA: A Free Lunch for Better Flatness and Sharpness, 2024, "
        "arXiv:2402.09240",
        lambda params: jxt.optimizers.switch_ema(optax.sgd(1e-2), 0.9, steps_per_epoch=10),
        claim="optimizers/switch_ema",
        system="S127",
        state_bytes=_state_bytes(lambda leaf: leaf.size),
    ),
    Row(
        "Multi-momentum variance reduction (Discover)",
        "optimizers.multi_momentum",
        "optimizer",
        "Tondji, Kashubin, Cisse, Variance Reduction in Deep Learning: More Momentum is All You "
        "Need, 2021, arXiv:2111.11828",
        lambda params: jxt.optimizers.multi_momentum(optax.sgd(1e-2), 2),
        claim="optimizers/multimomentum",
        system="S122",
        extras=("cluster_id",),
        state_bytes=_state_bytes(lambda leaf: (2 + 1) * leaf.size),
    ),
    Row(
        "AdaHessian",
        "optimizers.adahessian",
        "optimizer",
        "Yao et al., ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning, 2021, "
        "arXiv:2006.00719",
        lambda params: jxt.optimizers.adahessian(1e-2),
        system="S141",
        extras=("hvp_fn",),
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
    ),
    Row(
        "OASIS",
        "optimizers.oasis",
        "optimizer",
        _OASIS,
        lambda params: jxt.optimizers.oasis(n_warmup=10),
        system="S100",
        extras=("grad_fn", "hvp_fn"),
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
    ),
    Row(
        "OASIS with momentum at a fixed rate",
        "optimizers.oasis",
        "optimizer",
        _OASIS,
        lambda params: jxt.optimizers.oasis(
            n_warmup=10, adaptive=False, b1=0.9, learning_rate=1e-2
        ),
        system="S100",
        extras=("hvp_fn",),
        state_bytes=_state_bytes(lambda leaf: 2 * leaf.size),
    ),
    Row(
        "SANIA AdaGrad-SQR",
        "optimizers.sania",
        "optimizer",
        _SANIA,
        lambda params: jxt.optimizers.sania("adagrad_sqr"),
        system="S129",
        extras=("value",),
        state_bytes=_state_bytes(lambda leaf: leaf.size),
    ),
    Row(
        "SANIA Adam-SQR",
        "optimizers.sania",
        "optimizer",
        _SANIA,
        lambda params: jxt.optimizers.sania("adam_sqr"),
        system="S129",
        extras=("value",),
        state_bytes=_state_bytes(lambda leaf: leaf.size),
    ),
    Row(
        "SANIA identity (stochastic Polyak)",
        "optimizers.sania",
        "optimizer",
        _SANIA,
        lambda params: jxt.optimizers.sania("identity"),
        system="S129",
        extras=("value",),
        state_bytes=lambda params: 0,
    ),
    Row(
        "SANIA Hutchinson",
        "optimizers.sania",
        "optimizer",
        _SANIA,
        lambda params: jxt.optimizers.sania("hutchinson"),
        system="S129",
        extras=("value", "hvp_fn"),
        state_bytes=_state_bytes(lambda leaf: leaf.size),
    ),
    Row(
        "SANIA Newton",
        "optimizers.sania",
        "optimizer",
        _SANIA,
        lambda params: jxt.optimizers.sania("newton"),
        system="S129",
        extras=("value", "hvp_fn"),
        state_bytes=lambda params: 0,
    ),
    Row(
        "SANIA Newton-CG",
        "optimizers.sania",
        "optimizer",
        _SANIA,
        lambda params: jxt.optimizers.sania("cg"),
        system="S129",
        extras=("value", "hvp_fn"),
        state_bytes=lambda params: 0,
    ),
    Row(
        "Exact Gauss-Newton (EGN)",
        "optimizers.egn",
        "optimizer",
        "Korbit, Adeoye, Bemporad, Zanon, Exact Gauss-Newton Optimization for Training Deep Neural "
        "Networks, 2024, arXiv:2405.14402",
        lambda params: jxt.optimizers.egn(_entry),
        system="S148",
        extras=("batch",),
        state_bytes=lambda params: 0,
    ),
    Row(
        "AdAdaGrad",
        "optimizers.adadagrad",
        "optimizer",
        _ADADAGRAD,
        lambda params: jxt.optimizers.adadagrad(0.5),
        system="S035",
        extras=("per_sample_grads",),
        state_bytes=_state_bytes(lambda leaf: leaf.size),
    ),
    Row(
        "AdAdaGradNorm",
        "optimizers.adadagrad_norm",
        "optimizer",
        _ADADAGRAD,
        lambda params: jxt.optimizers.adadagrad_norm(0.5),
        system="S035",
        extras=("per_sample_grads",),
        state_bytes=lambda params: 0,
    ),
)

NETWORK: tuple[Row, ...] = (
    Row(
        "Gradient tracking (DIGing)",
        "distributed.GradientTracking",
        "network",
        "Nedić, Olshevsky, Shi, Achieving Geometric Convergence for Distributed Optimization over "
        "Time-Varying Graphs, 2017, arXiv:1607.03218",
        lambda loss: jxt.distributed.GradientTracking(loss, 0.05),
        claim="distributed/gradient_tracking",
    ),
    Row(
        "Gradient tracking, adapt then combine",
        "distributed.AdaptThenCombineTracking",
        "network",
        "Xu, Zhu, Soh, Xie, Augmented Distributed Gradient Methods for Multi-Agent Optimization, "
        "2015",
        lambda loss: jxt.distributed.AdaptThenCombineTracking(loss, 0.05),
        claim="distributed/gradient_tracking",
    ),
    Row(
        "EXTRA",
        "distributed.EXTRA",
        "network",
        "Shi, Ling, Wu, Yin, EXTRA: An Exact First-Order Algorithm for Decentralized Consensus "
        "Optimization, 2015, arXiv:1404.6264",
        lambda loss: jxt.distributed.EXTRA(loss, 0.05),
        claim="distributed/gradient_tracking",
    ),
    Row(
        "Exact diffusion",
        "distributed.ExactDiffusion",
        "network",
        "Yuan, Ying, Zhao, Sayed, Exact Diffusion for Distributed Optimization and Learning, "
        "2019, arXiv:1702.05122",
        lambda loss: jxt.distributed.ExactDiffusion(loss, 0.05),
        claim="distributed/gradient_tracking",
    ),
    Row(
        "Decentralized gradient descent",
        "distributed.DecentralizedGradient",
        "network",
        "Nedić, Ozdaglar, Distributed Subgradient Methods for Multi-Agent Optimization, 2009",
        lambda loss: jxt.distributed.DecentralizedGradient(loss, 0.05),
        claim="distributed/gradient_tracking",
        opt_outs={"exact": "a constant step size leaves a bias; it is the baseline"},
    ),
    Row(
        "Decentralized ADMM",
        "distributed.DecentralizedADMM",
        "network",
        "Shi, Ling, Yuan, Wu, Yin, On the Linear Convergence of the ADMM in Decentralized "
        "Consensus Optimization, 2014, arXiv:1307.5561",
        lambda loss: jxt.distributed.DecentralizedADMM(
            loss, 0.5, jxt.minimize.FISTA(tol=1e-10, max_steps=200)
        ),
        claim="distributed/decentralized_admm",
    ),
)

SAMPLERS: tuple[Row, ...] = ()

ESTIMATORS: tuple[Row, ...] = ()

KERNELS: tuple[Row, ...] = (
    Row(
        "Block-sparse times dense",
        "kernels.bcsr_matmul",
        "kernel",
        "Blocked compressed sparse rows; Im, Yelick, Vuduc, Sparsity, 2004",
        lambda: importlib.import_module("jaxopt_ext_kernels.testing").BCSRMatmulCase(),
        claim="kernels/spmm",
    ),
)

ROWS: tuple[Row, ...] = SOLVERS + OPTIMIZERS + NETWORK + SAMPLERS + ESTIMATORS + KERNELS


def rows(shape: Shape | None = None) -> tuple[Row, ...]:
    """All rows, or those of one shape."""
    return tuple(row for row in ROWS if shape in (None, row.shape))
