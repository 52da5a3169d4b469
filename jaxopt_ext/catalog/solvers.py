"""Rows of the solvers."""

import optax
import optimistix as optx

import jaxopt_ext as jxt

from .shapes import SolverRow

SOLVERS: tuple[SolverRow, ...] = (
    SolverRow(
        "Gradient descent",
        "minimize.GradientDescent",
        "Nocedal, Wright, Numerical Optimization, 2006",
        lambda: jxt.minimize.GradientDescent(),
        claim="minimize/gradient_descent",
        system=("S172",),
    ),
    SolverRow(
        "Proximal gradient",
        "minimize.ProximalGradient",
        "Combettes, Wajs, Signal Recovery by Proximal Forward-Backward Splitting, 2005",
        lambda: jxt.minimize.ProximalGradient(),
        claim="minimize/proximal_gradient",
        system=("S172",),
    ),
    SolverRow(
        "FISTA",
        "minimize.FISTA",
        "Beck, Teboulle, A Fast Iterative Shrinkage-Thresholding Algorithm, 2009",
        lambda: jxt.minimize.FISTA(),
        claim="minimize/fista",
        system=("S172",),
    ),
    SolverRow(
        "Block coordinate descent",
        "minimize.BlockCoordinateDescent",
        "Tseng, Yun, A Coordinate Gradient Descent Method for Nonsmooth Separable Minimization, "
        "2009",
        lambda: jxt.minimize.BlockCoordinateDescent(selection=jxt.minimize.Shuffled()),
        claim="minimize/block_coordinate",
        system=("S172",),
        opt_outs={"pytree": "blocks are the entries of the leading axis of one array"},
    ),
    SolverRow(
        "Greedy coordinate descent",
        "minimize.GreedyCoordinateDescent",
        "Nutini et al., Coordinate Descent Converges Faster with the Gauss-Southwell Rule, 2015, "
        "arXiv:1506.00552",
        lambda: jxt.minimize.GreedyCoordinateDescent(),
        claim="minimize/block_coordinate",
        opt_outs={"pytree": "blocks are the entries of the leading axis of one array"},
    ),
    SolverRow(
        "Mirror descent",
        "minimize.MirrorDescent",
        "Beck, Teboulle, Mirror Descent and Nonlinear Projected Subgradient Methods, 2003",
        lambda: jxt.minimize.MirrorDescent(),
        claim="minimize/mirror_descent",
        system=("S172",),
    ),
    SolverRow(
        "Frank-Wolfe",
        "minimize.FrankWolfe",
        "Jaggi, Revisiting Frank-Wolfe, 2013",
        lambda: jxt.minimize.FrankWolfe(),
        claim="minimize/frank_wolfe",
        system=("S172",),
        opt_outs={
            name: "its error falls as 1/k, so the tight tolerance of this check is out of reach"
            for name in ("oracle", "pytree", "gradient", "vmap")
        },
    ),
    SolverRow(
        "Away-step Frank-Wolfe",
        "minimize.AwayFrankWolfe",
        "Lacoste-Julien, Jaggi, On the Global Linear Convergence of Frank-Wolfe Variants, 2015, "
        "arXiv:1511.05932",
        lambda: jxt.minimize.AwayFrankWolfe(),
        claim="minimize/frank_wolfe",
    ),
    SolverRow(
        "Pairwise Frank-Wolfe",
        "minimize.PairwiseFrankWolfe",
        "Lacoste-Julien, Jaggi, On the Global Linear Convergence of Frank-Wolfe Variants, 2015, "
        "arXiv:1511.05932",
        lambda: jxt.minimize.PairwiseFrankWolfe(),
        claim="minimize/frank_wolfe",
    ),
    SolverRow(
        "Picard iteration",
        "fixed_point.Picard",
        "Picard 1890; Banach 1922",
        lambda: jxt.fixed_point.Picard(),
        opt_outs={"problems": "Feedforward: nothing but the map is looked at"},
        claim="fixed_point/picard",
    ),
    SolverRow(
        "Krasnosel'skii-Mann iteration",
        "fixed_point.KrasnoselskiiMann",
        "Mann, Mean Value Methods in Iteration, 1953",
        lambda: jxt.fixed_point.KrasnoselskiiMann(),
        claim="fixed_point/picard",
    ),
    SolverRow(
        "Halpern iteration",
        "fixed_point.Halpern",
        "Lieder, On the Convergence Rate of the Halpern-Iteration, 2021",
        lambda: jxt.fixed_point.Halpern(),
        claim="fixed_point/halpern",
        opt_outs={
            name: "its residual falls as 1/k, so the tight tolerance of this check is out of reach"
            for name in ("oracle", "pytree", "gradient", "vmap", "float32")
        },
    ),
    SolverRow(
        "Anderson acceleration",
        "fixed_point.Anderson",
        "Zhang, O'Donoghue, Boyd, Globally Convergent Type-I Anderson Acceleration, 2020, "
        "arXiv:1808.03971",
        lambda: jxt.fixed_point.Anderson(),
        opt_outs={"problems": "Feedforward: nothing but the map is looked at"},
        claim="fixed_point/anderson",
    ),
    SolverRow(
        "ADMM",
        "splitting.ADMM",
        "Boyd et al., Distributed Optimization and Statistical Learning via ADMM, 2011",
        lambda: jxt.splitting.ADMM(),
        claim="splitting/admm",
        opt_outs={"pytree": "a split point is a tuple already"},
    ),
    SolverRow(
        "Douglas-Rachford splitting",
        "splitting.DouglasRachford",
        "Lions, Mercier, Splitting Algorithms for the Sum of Two Nonlinear Operators, 1979",
        lambda: jxt.splitting.DouglasRachford(step_size=5.0),
        claim="splitting/douglas_rachford",
        opt_outs={
            "pytree": "the prox of a least-squares loss acts on one array",
            "problems": "Constrained: the suite's objective there has no prox",
        },
    ),
    SolverRow(
        "Primal-dual hybrid gradient",
        "splitting.PrimalDualHybridGradient",
        "Chambolle, Pock, A First-Order Primal-Dual Algorithm for Convex Problems, 2011; "
        "Applegate et al., 2023, arXiv:2105.12715",
        lambda: jxt.splitting.PrimalDualHybridGradient(),
        claim="splitting/primal_dual",
        system=("S172",),
        opt_outs={"pytree": "a primal-dual pair is a tuple already"},
    ),
    SolverRow(
        "OSQP",
        "splitting.OSQP",
        "Stellato et al., OSQP: An Operator Splitting Solver for Quadratic Programs, 2020, "
        "arXiv:1711.08013",
        lambda: jxt.splitting.OSQP(),
        claim="splitting/osqp",
        opt_outs={"pytree": "a quadratic program is over one vector"},
    ),
    SolverRow(
        "optax transformations",
        "adapters.Optax",
        "DeepMind et al., The DeepMind JAX Ecosystem, 2020",
        lambda: jxt.adapters.Optax(optax.lbfgs()),
        claim="adapters/libraries",
        opt_outs={"shard_map": "the line search of the example, optax's own, does not trace there"},
    ),
    SolverRow(
        "optimistix solvers",
        "adapters.Optimistix",
        "Rader, Lyons, Kidger, Optimistix: Modular Optimisation in JAX and Equinox, 2024, "
        "arXiv:2402.09983",
        lambda: jxt.adapters.Optimistix(optx.LevenbergMarquardt(rtol=1e-10, atol=1e-10)),
        claim="adapters/libraries",
        opt_outs={
            "shard_map": "the loops of optimistix do not trace there",
            "problems": "Smooth, FixedPoint: the example is a least-squares solver",
            "oracle": "its tolerance is its own, on another quantity",
            "float32": "its tolerance is its own, out of reach in single precision",
            "construction": "its step limit is its own; max_steps is one run",
        },
    ),
)
