"""Bad input gets an error that names the culprit, or the right status."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import fixed_point, minimize, objectives, prox, splitting
from jaxopt_ext.core import operators

X, Y = jnp.ones((4, 3)), jnp.ones(4)
SMOOTH = jxt.Smooth(lambda w: jnp.sum(w**2))
LASSO = jxt.Composite(objectives.SquaredLoss(X, Y), prox.L1(0.1))
EYE = np.eye(2)
QP = jxt.QuadraticProgram


def solve(problem, solver, x0, **options):
    return lambda: jxt.solve(problem, solver, x0, **options)


RAISES = {
    # starting points
    "integer x0": (solve(SMOOTH, minimize.FISTA(), jnp.zeros(3, int)), TypeError, "int"),
    "boolean x0": (solve(SMOOTH, minimize.FISTA(), jnp.zeros(3, bool)), TypeError, "bool"),
    "empty pytree": (solve(SMOOTH, minimize.FISTA(), {}), ValueError, "empty pytree"),
    "no x0": (solve(SMOOTH, minimize.FISTA(), None), ValueError, "empty pytree"),
    # problems and solvers
    "wrong solver": (solve(LASSO, minimize.GradientDescent(), Y), TypeError, "takes Smooth, not"),
    "no solver": (solve(SMOOTH, object(), Y), TypeError, "expected a solver"),
    "vector objective": (
        solve(jxt.Smooth(lambda w: w), minimize.FISTA(), Y),
        ValueError,
        "must return a scalar",
    ),
    "complex objective": (
        solve(jxt.Smooth(lambda w: jnp.sum(w) * 1j), minimize.FISTA(), Y),
        ValueError,
        "real",
    ),
    "no prox": (lambda: jxt.Composite(lambda w: 0.0, lambda w: 0.0), TypeError, "nonsmooth"),
    "no projection": (lambda: jxt.Constrained(lambda w: 0.0, prox.L1()), TypeError, "feasible"),
    "map to other shapes": (
        solve(jxt.FixedPoint(lambda w: w[:2]), fixed_point.Picard(), Y),
        ValueError,
        "shaped like x",
    ),
    # data
    "rows and targets": (
        lambda: objectives.SquaredLoss(X, jnp.ones(3)),
        ValueError,
        r"\(4, 3\) and \(3,\)",
    ),
    "zero rows": (
        lambda: objectives.LogisticLoss(jnp.ones((0, 3)), jnp.ones(0)),
        ValueError,
        r"\(0, 3\)",
    ),
    "no columns": (lambda: objectives.SquaredLoss(jnp.ones((4, 0)), Y), ValueError, "columns"),
    "matrix and x": (solve(LASSO, minimize.FISTA(), jnp.zeros(5)), TypeError, "dot_general|shape"),
    "negative penalty": (lambda: prox.L1(-0.1), ValueError, "weight must be non-negative"),
    # quadratic programs
    "P and q": (lambda: QP(EYE, np.ones(3), EYE, Y[:2], Y[:2]), ValueError, "P must have shape"),
    "A and l": (
        lambda: QP(EYE, np.ones(2), EYE, np.ones(3), np.ones(3)),
        ValueError,
        "A must have shape",
    ),
    "l and u": (
        lambda: QP(EYE, np.ones(2), EYE, np.zeros(2), np.zeros((1, 2))),
        ValueError,
        "one shape",
    ),
    "l above u": (
        lambda: QP(EYE, np.ones(2), EYE, np.ones(2), np.zeros(2)),
        ValueError,
        "u - l must be non-negative",
    ),
    "NaN bound": (
        lambda: QP(EYE, np.ones(2), EYE, np.full(2, np.nan), np.ones(2)),
        ValueError,
        "u - l",
    ),
    "l is +inf": (
        lambda: QP(EYE, np.ones(2), EYE, np.full(2, np.inf), np.full(2, np.inf)),
        ValueError,
        "l must be below",
    ),
    "skew P": (
        lambda: QP(np.array([[1, 2.0], [0, 1]]), np.ones(2), EYE, Y[:2], Y[:2]),
        ValueError,
        "P must be symmetric",
    ),
    "half an equality": (lambda: QP.from_inequalities(EYE, np.ones(2), A=EYE), ValueError, "A and"),
    # splittings
    "Ax and Bz": (
        solve(
            jxt.Splitting(prox.L1(), prox.L1(), jnp.ones((2, 3)), jnp.ones((3, 3))),
            splitting.ADMM(),
            jnp.zeros(3),
        ),
        (ValueError, TypeError),
        "shape|incompatible",
    ),
    "c": (
        solve(
            jxt.Splitting(prox.L1(), prox.L1(), None, -1.0, jnp.ones(2)),
            splitting.ADMM(),
            jnp.zeros(3),
        ),
        ValueError,
        "c must be shaped like",
    ),
    "no update": (
        solve(jxt.Splitting(lambda x: jnp.sum(x**2), prox.L1()), splitting.ADMM(), Y),
        TypeError,
        "needs an update",
    ),
    "no map": (lambda: operators.as_map("A"), TypeError, "expected a matrix"),
    "tensor map": (lambda: operators.as_map(jnp.ones((2, 2, 2))), ValueError, "must be a matrix"),
    "ragged consensus": (
        lambda: splitting.consensus(lambda x, d: 0.0, (X, jnp.ones(3)), prox.L1()),
        ValueError,
        "share one leading axis",
    ),
    "no prox for Douglas-Rachford": (
        solve(jxt.Composite(lambda w: jnp.sum(w**2), prox.L1()), splitting.DouglasRachford(), Y),
        TypeError,
        "smooth part with a prox",
    ),
    # coordinate descent
    "no bounds": (
        solve(
            jxt.Composite(lambda w: jnp.sum(w**2), prox.L1()), minimize.BlockCoordinateDescent(), Y
        ),
        TypeError,
        "give lipschitz",
    ),
    "unbounded curvature": (
        solve(
            jxt.Composite(objectives.PoissonLoss(X, Y), prox.L1()),
            minimize.BlockCoordinateDescent(),
            jnp.zeros(3),
        ),
        TypeError,
        "PoissonLoss has unbounded",
    ),
    "coupled blocks": (
        solve(
            jxt.Composite(objectives.SquaredLoss(X, Y), prox.Simplex()),
            minimize.BlockCoordinateDescent(),
            jnp.zeros(3),
        ),
        TypeError,
        "Simplex is not separable",
    ),
    "no oracle": (
        solve(
            jxt.Constrained(lambda w: jnp.sum(w**2), prox.NonNegative()), minimize.FrankWolfe(), Y
        ),
        TypeError,
        "no linear minimization oracle",
    ),
    # hyperparameters
    "zero step": (lambda: minimize.FixedStep(0.0), ValueError, "step_size must be positive"),
    "negative step": (lambda: minimize.MirrorDescent(step_size=-1.0), ValueError, "step_size"),
    "NaN step": (lambda: minimize.FixedStep(float("nan")), ValueError, "step_size"),
    "text": (lambda: minimize.FixedStep("fast"), TypeError, "fast"),
    "shrink": (lambda: minimize.Backtracking(shrink=1.0), ValueError, "shrink"),
    "growth": (lambda: minimize.Backtracking(growth=0.5), ValueError, "growth"),
    "negative tol": (lambda: minimize.FISTA(tol=-1.0), ValueError, "tol"),
    "no steps": (lambda: minimize.FISTA(max_steps=0), ValueError, "max_steps"),
    "half a step": (lambda: minimize.FISTA(max_steps=1.5), TypeError, "max_steps"),
    "bounds": (
        lambda: minimize.BlockCoordinateDescent(lipschitz=jnp.array([1.0, 0.0])),
        ValueError,
        "lipschitz",
    ),
    "atoms": (lambda: minimize.AwayFrankWolfe(max_atoms=1), ValueError, "max_atoms"),
    "averaging": (
        lambda: fixed_point.KrasnoselskiiMann(averaging=0.0),
        ValueError,
        r"averaging must be in \(0",
    ),
    "history": (lambda: fixed_point.Anderson(history=0), ValueError, "history"),
    "mixing": (lambda: fixed_point.Anderson(mixing=0.0), ValueError, "mixing"),
    "penalty": (lambda: splitting.ADMM(penalty=0.0), ValueError, "penalty"),
    "relaxation": (lambda: splitting.ADMM(relaxation=2.0), ValueError, "relaxation"),
    "balance": (lambda: splitting.ADMM(balance=1.0), ValueError, "balance"),
    "weight": (lambda: splitting.PrimalDualHybridGradient(weight=0.0), ValueError, "weight"),
    "sigma": (lambda: splitting.OSQP(sigma=0.0), ValueError, "sigma"),
    "complex quadratic update": (
        lambda: jxt.solve(
            jxt.Splitting(lambda x: jnp.sum(jnp.abs(x) ** 2), prox.L1()),
            splitting.ADMM(x_update=splitting.QuadraticUpdate()),
            jnp.zeros(2, complex),
        ),
        TypeError,
        "real",
    ),
    "no operator": (
        lambda: fixed_point.fixed_point_of(LASSO, minimize.FISTA(), jnp.zeros(2)),
        TypeError,
        "FISTA has no operator",
    ),
    "adjoint": (
        solve(SMOOTH, minimize.FISTA(), Y, adjoint="implicit"),
        TypeError,
        "adjoint must be",
    ),
}


@pytest.mark.parametrize("name", RAISES)
def test_raises(name):
    call, error, message = RAISES[name]
    with pytest.raises(error, match=message):
        call()


NAN = jnp.nan
STATUS = {
    "NaN in the matrix": (
        solve(
            jxt.Composite(objectives.SquaredLoss(X.at[1, 1].set(NAN), Y), prox.L1(0.1)),
            minimize.FISTA(),
            jnp.zeros(3),
        ),
        "nonfinite",
    ),
    "inf in the targets": (
        solve(
            jxt.Composite(objectives.SquaredLoss(X, Y.at[1].set(jnp.inf)), prox.L1(0.1)),
            minimize.BlockCoordinateDescent(),
            jnp.zeros(3),
        ),
        "nonfinite",
    ),
    "NaN in a quadratic program": (
        solve(QP(EYE, jnp.array([1.0, NAN]), EYE, -np.ones(2), np.ones(2)), splitting.OSQP(), None),
        "nonfinite",
    ),
    "infeasible": (
        solve(
            QP(EYE, np.ones(2), np.ones((2, 2)), np.array([1, -np.inf]), np.array([np.inf, 0])),
            splitting.OSQP(),
            None,
        ),
        "infeasible",
    ),
    "zero row that asks for one": (
        solve(
            QP(EYE, np.ones(2), np.zeros((1, 2)), np.ones(1), np.ones(1)), splitting.OSQP(), None
        ),
        "infeasible",
    ),
    "unbounded": (
        solve(
            QP(0 * EYE, -np.ones(2), np.array([[1.0, -1]]), np.zeros(1), np.zeros(1)),
            splitting.OSQP(),
            None,
        ),
        "unbounded",
    ),
    "harmless zero row": (
        solve(
            QP(EYE, np.ones(2), np.zeros((1, 2)), -np.ones(1), np.ones(1)), splitting.OSQP(), None
        ),
        "converged",
    ),
    "no constraints": (
        solve(QP.from_inequalities(EYE, np.ones(2)), splitting.OSQP(), None),
        "converged",
    ),
    "a column of zeros": (
        solve(
            jxt.Composite(objectives.SquaredLoss(X.at[:, 1].set(0.0), Y), prox.L1(0.1)),
            minimize.BlockCoordinateDescent(),
            jnp.zeros(3),
        ),
        "converged",
    ),
}


@pytest.mark.parametrize("name", STATUS)
def test_status(name):
    call, status = STATUS[name]
    assert call().status == getattr(jxt.Status, status)


def test_constants_are_checked_inside_of_jit_too():
    eye, one, zero = (
        jnp.eye(2),
        jnp.ones(2),
        jnp.zeros((1, 2)),
    )  # arrays made outside are not traced inside

    def program(P, l):
        return lambda q: jxt.QuadraticProgram(P, q, eye, l, one).q

    def plane(rhs):
        return lambda x: prox.AffineSet(zero, rhs).project(x)

    q = jnp.ones(2)
    jax.jit(program(eye, jnp.zeros(2)))(q)
    jax.jit(plane(jnp.zeros(1)))(q)
    with pytest.raises(ValueError, match="P must be symmetric"):
        jax.jit(program(jnp.array([[1, 2.0], [0, 1]]), jnp.zeros(2)))(q)
    with pytest.raises(ValueError, match="u - l"):
        jax.jit(program(eye, jnp.full(2, 3.0)))(q)
    with pytest.raises(ValueError, match="row 0"):
        jax.jit(plane(jnp.ones(1)))(q)
