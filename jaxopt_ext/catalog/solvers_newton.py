"""Rows of the second-order solvers, and of their neighbours."""

import jaxopt_ext as jxt

from .shapes import SolverRow

SOLVERS_NEWTON: tuple[SolverRow, ...] = (
    SolverRow(
        "Damped Newton",
        "minimize.DampedNewton",
        "Hanzely, Abdukhakimov, Takáč, Damped Newton Method with Near-Optimal Global O(k^-3) "
        "Convergence Rate, 2024, arXiv:2405.18926",
        lambda: jxt.minimize.DampedNewton(),
        system=("S092",),
        claim="minimize/damped_newton",
    ),
    SolverRow(
        "Regularized Newton with lazy Hessians",
        "minimize.RegularizedNewton",
        "Doikov, Chayti, Jaggi, Second-order Optimization with Lazy Hessians, 2023, "
        "arXiv:2212.00781",
        lambda: jxt.minimize.RegularizedNewton(period=3),
        system=("S106",),
        claim="minimize/lazy_hessians",
    ),
    SolverRow(
        "Cubic Newton with lazy Hessians",
        "minimize.LazyCubicNewton",
        "Doikov, Chayti, Jaggi, Second-order Optimization with Lazy Hessians, 2023, "
        "arXiv:2212.00781",
        lambda: jxt.minimize.LazyCubicNewton(period=3),
        system=("S106",),
        claim="minimize/lazy_hessians",
    ),
    SolverRow(
        "Accelerated cubic Newton",
        "minimize.AcceleratedCubicNewton",
        "Agafonov et al., Advancing the Lower Bounds: An Accelerated, Stochastic, Second-order "
        "Method with Optimal Adaptation to Inexactness, 2023, arXiv:2309.01570",
        lambda: jxt.minimize.AcceleratedCubicNewton(radius=3.0, strong_convexity=0.5),
        system=("S161",),
        claim="minimize/accelerated_newton",
        opt_outs={"problems": "FiniteSum: the suite's has a nonsmooth part"},
    ),
    SolverRow(
        "Accelerated tensor method",
        "minimize.AcceleratedTensor",
        "Agafonov et al., Advancing the Lower Bounds: An Accelerated, Stochastic, Second-order "
        "Method with Optimal Adaptation to Inexactness, 2023, arXiv:2309.01570",
        lambda: jxt.minimize.AcceleratedTensor(radius=3.0, strong_convexity=0.5),
        system=("S161",),
        claim="minimize/accelerated_newton",
        opt_outs={"problems": "FiniteSum: the suite's has a nonsmooth part"},
    ),
    SolverRow(
        "Scaled dogleg in a box",
        "minimize.ScaledDogleg",
        "Ayanzadeh, Yazdanian, Shahamatnia, A New Class of Scaling Matrices for Scaled Trust "
        "Region Algorithms, 2019, arXiv:1904.09209",
        lambda: jxt.minimize.ScaledDogleg(),
        system=("S134",),
        claim="minimize/scaled_trust_region",
    ),
    SolverRow(
        "Accelerated gradient for nonconvex penalties",
        "minimize.NonconvexAGD",
        "Yang, Asgharian, Bhatnagar, Accelerated Gradient Methods for Sparse Statistical Learning "
        "with Nonconvex Penalties, 2024, arXiv:2009.10629",
        lambda: jxt.minimize.NonconvexAGD(),
        system=("S070",),
        claim="minimize/nonconvex_agd",
    ),
)
