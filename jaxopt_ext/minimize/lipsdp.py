"""Certified Lipschitz constants of networks, by semidefinite programs."""

import abc
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..core import LinearMatrixInequality, PrimalDual, Status, checks, solve
from .interior_point import InteriorPoint
from .lipsdp_layers import AbstractActivation, AbstractLayer, Affine, SlopeRestricted

Layers = Sequence[AbstractLayer | AbstractActivation]


class AbstractLipschitzNorm(eqx.Module):
    """The norm of inputs and outputs in which a Lipschitz constant is asked for."""

    @abc.abstractmethod
    def rows(self, V: Float[Array, "m N"]) -> Float[Array, "p q N"]:
        """The outputs one part after the other; a constant is the largest of those of the parts."""

    @abc.abstractmethod
    def masks(self, size: int, dtype: Any) -> Float[Array, "r size"]:
        """Diagonals $d_i$ with sum one: a part's increment $y$ has $|y|^2 \\le \\sum_i \\mu_i$ for
        all $\\Delta x$ of length one where $|y|^2 \\le \\Delta x^\\top \\mathrm{diag}(\\sum_i
        \\mu_i d_i) \\Delta x$ for all."""

    @abc.abstractmethod
    def matrix(self, A: Float[Array, "m n"]) -> Float[Array, ""]:
        """The norm of a matrix."""

    @abc.abstractmethod
    def slope(self, activation: AbstractActivation) -> Array | float:
        """That of an activation."""


class EuclideanNorm(AbstractLipschitzNorm):
    """$|\\Delta y|_2 \\le L |\\Delta x|_2$: one program with $\\rho I$ on the inputs."""

    def rows(self, V):
        return V[None]

    def masks(self, size, dtype):
        return jnp.ones((1, size), dtype)

    def matrix(self, A):
        return jnp.linalg.norm(A, 2)

    def slope(self, activation):
        return activation.slope


class MaximumNorm(AbstractLipschitzNorm):
    """$|\\Delta y|_\\infty \\le L |\\Delta x|_\\infty$: a program for each output, with a diagonal
    $\\mathrm{diag}(\\mu)$ on the inputs and $L^2 = 1^\\top \\mu$."""

    def rows(self, V):
        return V[:, None]

    def masks(self, size, dtype):
        return jnp.eye(size, dtype=dtype)

    def matrix(self, A):
        return jnp.max(jnp.sum(jnp.abs(A), axis=1), initial=0)

    def slope(self, activation):
        return activation.max_slope


class LipschitzCertificate(eqx.Module):
    """A Lipschitz constant with its proof.

    **Attributes:**

    - `bound`: the constant. Infinite if no proof was found.
    - `inputs`: $\\rho$, or $\\mu$, of each part of the output, shape `(parts, r)`.
    - `multipliers`: of each activation in turn, shape `(parts, count)`. Zero are those that act on
      what passes unchanged, where the proof is for the increments for which it does; for all
      increments these multipliers would have to be very large.
    - `residual_eigenvalue`: the largest eigenvalue of the matrix that must not have positive ones,
      in units of the increments that a product of norms allows, the largest over the parts.
    - `status`: of the programs; what is certified is true whatever it says. `infeasible` where no
      multipliers prove anything.
    """

    bound: Float[Array, ""]
    inputs: Float[Array, "p r"]
    multipliers: tuple[Float[Array, "p count"], ...]
    residual_eigenvalue: Float[Array, ""]
    status: Status


class _Program(NamedTuple):
    """$V^\\top V - \\mathrm{diag}(\\mu d) + \\sum_k A_k^\\top X_k(\\lambda_k) A_k \\preceq 0$ over
    the increments of input and activations, in units of what a product of norms allows."""

    masks: Float[Array, "r n"]
    parts: Float[Array, "p q N"]
    constraints: tuple[Float[Array, "k2 N"], ...]
    activations: tuple[AbstractActivation, ...]
    ball: tuple[Float[Array, " count"], ...]
    size: Float[Array, ""]

    @property
    def signs(self):
        widths = [rows.shape[0] // 2 for rows in self.constraints]
        pairs = zip(self.activations, widths, strict=True)
        return tuple(activation.signs(width) for activation, width in pairs)

    def passed(self):
        """Rows of what vanishes, the changes of what activations pass unchanged."""
        rows = [jnp.zeros((0, self.parts.shape[-1]), self.parts.dtype)]
        for A, kind in zip(self.constraints, self.activations, strict=True):
            seen, out = jnp.split(A, 2)
            rows.append(kind.passed(seen.shape[0]).astype(A.dtype) @ (seen - out))
        return jnp.concatenate(rows)

    def basis(self):
        """Of the increments for which they do, those of the input first and unchanged; and the
        factors $Q$, $R$ of the rows' part behind the input, $R^\\top Q^\\top$."""
        n, N, dtype = self.masks.shape[1], self.parts.shape[-1], self.parts.dtype
        rows = self.passed()
        if not rows.shape[0]:
            return jnp.eye(N, dtype=dtype), None
        count = rows.shape[0]
        q, r = jnp.linalg.qr(rows[:, n:].T, mode="complete")
        q, r, free = q[:, :count], r[:count], q[:, count:]
        drive = jax.scipy.linalg.solve_triangular(r, rows[:, :n], trans=1)
        top = jnp.eye(n, N - count, dtype=dtype)
        return jnp.concatenate([top, jnp.concatenate([-q @ drive, free], axis=1)]), (q, r)

    def known(self):
        """Which multipliers matter then, as numbers."""
        with jax.ensure_compile_time_eval():
            widths = [rows.shape[0] // 2 for rows in self.constraints]
            none = [
                jax.eval_shape(lambda k=kind, w=width: k.passed(w)).shape[0] == 0
                for kind, width in zip(self.activations, widths, strict=True)
            ]
            return [np.asarray(a) | b for a, b in zip(self.signs, none, strict=True)]

    def constraint(self, multipliers):
        """$\\sum_k A_k^\\top X_k(\\lambda_k) A_k$."""
        N = self.parts.shape[-1]
        total = jnp.zeros((N, N), self.parts.dtype)
        for A, kind, part in zip(self.constraints, self.activations, multipliers, strict=True):
            total = total + A.T @ kind.matrix(part, A.shape[0] // 2) @ A
        return total

    def matrix(self, part, inputs, multipliers):
        """The matrix that must not have a positive eigenvalue."""
        n = self.masks.shape[1]
        diagonal = jnp.zeros(part.shape[-1], part.dtype).at[:n].set(inputs @ self.masks)
        return part.T @ part + self.constraint(multipliers) - jnp.diag(diagonal)


def _checked(layers: Layers) -> tuple[int, list[int]]:
    """The size of the input, and the widths of the activations, zero for layers without one."""
    if not layers or not isinstance(layers[0], AbstractLayer):
        raise ValueError("layers must begin with one that knows its input's size, Affine say")
    first = size = layers[0].sizes()[0]
    widths = []
    for i, layer in enumerate(layers):
        if isinstance(layer, AbstractActivation):
            layer.signs(size)
            widths.append(size)
        elif isinstance(layer, AbstractLayer):
            wanted, width, after = layer.sizes()
            if wanted != size:
                raise ValueError(f"layer {i} takes {wanted} features, but gets {size}")
            size = after
            widths.append(width)
            if layer.activation is not None:
                layer.activation.signs(width)
        else:
            raise TypeError(f"a layer must be an object such as Affine(W), got {layer!r}")
    return first, widths


def _activation(layer):
    return layer if isinstance(layer, AbstractActivation) else layer.activation


def _growth(layer, norm: AbstractLipschitzNorm):
    kind = _activation(layer)
    slope = 1.0 if kind is None else norm.slope(kind)
    if isinstance(layer, AbstractActivation):
        slope = jnp.asarray(slope)
        return slope, slope, jnp.zeros_like(slope)
    return layer.growth(norm.matrix, slope)


_SPARE = 0.1


def _program(layers: Layers, norm: AbstractLipschitzNorm) -> _Program:
    n, widths = _checked(layers)
    N = n + sum(widths)
    dtype = jnp.result_type(*[a for a in jax.tree.leaves(layers) if eqx.is_inexact_array(a)])
    rows = jnp.eye(N, dtype=dtype)
    v, at, size = rows[:n], n, jnp.ones((), dtype)
    pairs, activations, units, steps = [], [], [jnp.ones(n, dtype)], []
    for layer, width in zip(layers, widths, strict=True):
        w = rows[at : at + width]
        at += width
        kind = _activation(layer)
        inner, outer, past = (
            jnp.asarray(jax.lax.stop_gradient(a), dtype) for a in _growth(layer, EuclideanNorm())
        )
        if kind is not None:
            seen = v if isinstance(layer, AbstractActivation) else layer.input(v, w)
            pairs.append(jnp.concatenate([seen, w]))
            activations.append(kind)
            unit = size * inner
            # Without a bound, for an implicit layer, any unit will do.
            fine = (unit > 0) & jnp.isfinite(unit)
            unit = jnp.where(fine, unit, 1)
            units.append(jnp.full(width, unit))
            share = jnp.where(outer > 0, past / outer, 0)
            steps.append((kind, width, share, jnp.where(jnp.isfinite(inner), unit, jnp.nan)))
        v = w if isinstance(layer, AbstractActivation) else layer.output(v, w)
        outer = jnp.where(jnp.isinf(outer), 1, outer)
        size = size * jnp.where(outer == 0, 1, outer)
    # Levels fall from layer to layer, so that the balls together prove the product of norms.
    level, ball = jnp.ones((), dtype), []
    for kind, width, share, unit in reversed(steps):
        own = level * (1 - share) + _SPARE
        ball.append(kind.ball(own / unit**2, width))
        level = level * share + own
    unit = jnp.concatenate(units)
    return _Program(
        norm.masks(n, dtype),
        norm.rows(v * unit / size),
        tuple(A * unit for A in pairs),
        tuple(activations),
        tuple(reversed(ball)),
        size,
    )


def _split(flat, program: _Program):
    """Inputs, and multipliers of each activation, from the unknowns in a row."""
    sizes = [program.masks.shape[0], *(s.size for s in program.signs)]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    inputs, *multipliers = jnp.split(flat, ends)
    return inputs, tuple(multipliers)


def _inequality(program: _Program, part, basis, inward):
    """The least sum of the inputs as a linear matrix inequality, moved inwards a little, and which
    multipliers are its unknowns."""
    dtype = part.dtype
    count = program.masks.shape[0]
    known = np.concatenate([np.ones(count, bool), *program.known()])
    signs = jnp.concatenate([jnp.zeros(count, bool), *program.signs])[known].at[:count].set(True)
    cost = jnp.zeros(signs.size, dtype).at[:count].set(1)
    constant, still = part.T @ part, inward * jnp.eye(basis.shape[1], dtype=dtype)
    linear = lambda unit: program.matrix(part, *_split(unit, program)) - constant
    generators = jax.vmap(linear)(jnp.eye(known.size, dtype=dtype)[known])
    on = lambda M: basis.T @ M @ basis
    problem = LinearMatrixInequality(cost, on(constant) + still, jax.vmap(on)(generators), signs)
    return problem, known


def _least_inputs(program: _Program, part, basis, inputs, multipliers):
    """The inputs nearest to these, all raised or lowered alike, for which these multipliers are a
    proof: infinite where there are none."""
    n, dtype, N = program.masks.shape[1], part.dtype, part.shape[-1]
    on = lambda inputs: basis.T @ program.matrix(part, inputs, multipliers) @ basis
    M = on(jnp.zeros_like(inputs))
    corner, side, rest = M[:n, :n], M[:n, n:], M[n:, n:]
    values, vectors = jnp.linalg.eigh(rest)
    proves = jnp.max(values, initial=-jnp.inf) < 0
    pulled = side @ vectors
    inverse = jnp.where(proves, 1 / jnp.where(values < 0, values, -1), 0)
    schur = corner - (pulled * inverse) @ pulled.T - jnp.diag(inputs @ program.masks)
    inputs = jnp.maximum(inputs + jnp.linalg.eigvalsh(schur)[-1], 0)
    full = on(inputs)
    top = jnp.linalg.eigvalsh(full)[-1]
    # Increments have at most the length of one for the input and each activation: rounding is paid.
    margin = N * jnp.finfo(dtype).eps * jnp.linalg.norm(full)
    inputs = inputs + (1 + len(program.activations)) * (jnp.maximum(top, 0) + margin)
    return jnp.where(proves | jnp.isnan(top), inputs, jnp.inf), top


def _certified(program: _Program, part, solver):
    """The program solved for a part, made a proof, and its value with a derivative."""
    dynamic, static = eqx.partition((program, part), eqx.is_inexact_array)
    frozen, still = eqx.combine(jax.lax.stop_gradient(dynamic), static)
    basis, factors = frozen.basis()
    problem, known = _inequality(frozen, still, basis, 2 * solver.tol.astype(part.dtype))
    start = PrimalDual(jnp.zeros_like(problem.cost), jnp.zeros_like(problem.constant))
    solution = solve(problem, solver, start)
    z, X = jax.lax.stop_gradient(solution.value)
    signs = jnp.asarray(problem.nonnegative)
    z = jnp.where(signs, jnp.maximum(z, 0), z)
    z = jnp.zeros(known.size, z.dtype).at[np.flatnonzero(known)].set(z)
    least, found = _split(z, frozen)

    # A solve that stopped early is mended by the multipliers that prove the product of norms.
    def mended(share):
        blend = lambda a, b: (1 - share) * a + share * b
        multipliers = jax.tree.map(
            lambda a, b: jnp.where(share > 0, blend(a, b), a), found, program.ball
        )
        return *_least_inputs(frozen, still, basis, least, multipliers), multipliers

    shares = jnp.asarray([0, *[10.0**k for k in range(-10, 0)], 0.5, 1], part.dtype)
    options = jax.vmap(mended)(shares)
    totals = jnp.sum(options[0], axis=1)
    totals = jnp.where(jnp.isnan(totals) & (shares > 0), jnp.inf, totals)
    best = jnp.argmin(totals)  # the first is NaN where the data are, and NaN is least
    inputs, top, multipliers = jax.lax.stop_gradient(jax.tree.map(lambda a: a[best], options))
    # Envelope: at fixed inputs and multipliers only the matrix moves, in the metric of its dual,
    # and the rows of what vanishes, against the multipliers that hold it there.
    X = basis @ X @ basis.T
    moved = part.T @ part + program.constraint(found)
    value = jnp.sum(inputs) + jnp.vdot(X, moved - jax.lax.stop_gradient(moved))
    if factors is not None:
        q, r = factors
        side = q.T @ (frozen.matrix(still, least, found) @ X)[program.masks.shape[1] :]
        pull = jax.scipy.linalg.solve_triangular(r, side)
        rows = program.passed()
        value = value - 2 * jnp.vdot(pull, rows - jax.lax.stop_gradient(rows))
    return value, inputs, multipliers, top, solution.status


def _root(x):
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


@eqx.filter_jit
def _bound(layers, norm, solver):
    program = _program(layers, norm)
    values, inputs, multipliers, tops, statuses = jax.vmap(
        lambda part: _certified(program, part, solver)
    )(program.parts)
    scale = program.size**2
    failed = statuses._value != Status.converged._value
    status = jax.tree.map(lambda a: a[jnp.argmax(failed)], statuses)
    return LipschitzCertificate(
        program.size * _root(jnp.max(values)),
        scale * inputs,
        jax.tree.map(lambda a: scale * a, multipliers),
        jnp.max(tops),
        status,
    )


def _default_solver(layers):
    leaves = [a for a in jax.tree.leaves(layers) if eqx.is_inexact_array(a)]
    return InteriorPoint(tol=3e-4 if jnp.result_type(*leaves) == jnp.float32 else 1e-7)


def lipschitz_bound(
    layers: Layers, norm: AbstractLipschitzNorm | None = None, solver: InteriorPoint | None = None
) -> LipschitzCertificate:
    """The least Lipschitz constant of a network that quadratic constraints on its activations
    prove.

    With $\\Delta x$ the increment of the input, $\\Delta \\phi_k$ those of the activations,
    $\\Delta x_k$ what these see and $\\Delta y$ that of the output, all linear in the stack $\\xi$
    of the first two, it is $\\sqrt\\rho$ of

    $$\\min_{\\rho, \\lambda} \\rho \\quad \\text{s.t.} \\quad |\\Delta y|^2 - \\rho |\\Delta x|^2 +
      \\sum_k \\begin{pmatrix} \\Delta x_k \\\\ \\Delta \\phi_k \\end{pmatrix}^\\top X_k(\\lambda_k)
      \\begin{pmatrix} \\Delta x_k \\\\ \\Delta \\phi_k \\end{pmatrix} \\le 0
      \\quad \\text{for all } \\xi,$$

    a linear matrix inequality of the size of the input and all activations together, dense. What
    an activation passes unchanged, the sums of sorted groups, is eliminated: the multipliers that
    would say so otherwise have an optimum only at infinity, and the program is that of the others
    on fewer increments. Its solution need not be exact: with the multipliers found, the least
    $\\rho$ that they prove is an eigenvalue of a Schur complement, and this, with a margin for
    rounding, is the answer. Where the multipliers found prove nothing, they are mixed with those
    that prove the product of norms.

    Derivatives of the bound in the weights are those of the envelope theorem, at fixed multipliers,
    of first order only, and as exact as the program's dual solution.

    **Arguments:**

    - `layers`: `Affine`, `Residual`, `Implicit` layers and activations between them, the first no
      activation.
    - `norm`: `EuclideanNorm()`, the default, or `MaximumNorm()`.
    - `solver`: an `InteriorPoint`; its tolerance is on $\\rho$ relative to the square of the
      product of norms, by default `1e-7`, in single precision `3e-4`.

    **Returns:** a `LipschitzCertificate`.

    **Raises:** `ValueError` for layers that do not fit each other; `TypeError` for what is no
    layer.

    **Reference:** Pauli, Havens, Araujo, Garg, Khorrami, Allgöwer, Hu, Novel Quadratic Constraints
    for Extending LipSDP beyond Slope-Restricted Activations, ICLR 2024, arXiv:2401.14033; Fazlyab
    et al., Efficient and Accurate Estimation of Lipschitz Constants for Deep Neural Networks, 2019,
    arXiv:1906.04893.
    """
    norm = EuclideanNorm() if norm is None else norm
    checks.instance("norm", norm, AbstractLipschitzNorm, "EuclideanNorm()")
    _checked(layers)
    solver = _default_solver(layers) if solver is None else solver
    checks.instance("solver", solver, InteriorPoint, "InteriorPoint()")
    return _bound(tuple(layers), norm, solver)


def split_lipschitz_bound(
    layers: Layers,
    size: int,
    norm: AbstractLipschitzNorm | None = None,
    solver: InteriorPoint | None = None,
) -> tuple[Float[Array, ""], list[LipschitzCertificate]]:
    """A product of bounds on parts of a deep network: larger than that on the whole, but its time
    grows only with the number of parts.

    **Arguments:**

    - `layers`, `norm`, `solver`: as of `lipschitz_bound`.
    - `size`: how many activations a part has. Parts begin behind layers that are none.

    **Returns:** the product, and the certificate of each part.
    """
    checks.count("size", size)
    _checked(layers)
    parts, count = [[]], 0
    for i, layer in enumerate(layers):
        more = any(_activation(later) is not None for later in layers[i:])
        if count >= size and more and isinstance(layer, AbstractLayer):
            parts, count = [*parts, []], 0
        parts[-1].append(layer)
        count += _activation(layer) is not None
    certificates = [lipschitz_bound(part, norm, solver) for part in parts]
    return jnp.prod(jnp.stack([c.bound for c in certificates])), certificates


def verify(
    certificate: LipschitzCertificate, layers: Layers, norm: AbstractLipschitzNorm | None = None
) -> Bool[Array, ""]:
    """Whether a certificate proves its bound, by eigenvalues alone, on the increments for which
    what activations pass unchanged is so.

    The multipliers must have their signs, the matrix no eigenvalue that is positive by more than
    rounding, and the bound must be at least what the inputs say.
    """
    norm = EuclideanNorm() if norm is None else norm
    return _verified(certificate, tuple(layers), norm)


@eqx.filter_jit
def _verified(certificate, layers, norm):
    program = _program(layers, norm)
    unit = program.size**2
    rounding = 4 * program.parts.shape[-1] * jnp.finfo(unit.dtype).eps
    basis, _ = program.basis()

    def one(part, inputs, multipliers):
        M = program.matrix(part, inputs / unit, jax.tree.map(lambda a: a / unit, multipliers))
        M = basis.T @ M @ basis
        signed = jax.tree.map(lambda a, s: jnp.all((a >= 0) | ~s), multipliers, program.signs)
        proves = jnp.linalg.eigvalsh(M)[-1] <= rounding * jnp.linalg.norm(M)
        enough = certificate.bound**2 * (1 + rounding) >= jnp.sum(inputs)
        return jnp.all(jnp.stack([proves, enough, jnp.all(inputs >= 0), *signed]))

    return jnp.all(jax.vmap(one)(program.parts, certificate.inputs, certificate.multipliers))


def norm_product(layers: Layers, norm: AbstractLipschitzNorm | None = None) -> Float[Array, ""]:
    """The product of the norms of all layers, a cheap bound: for a `Residual` layer $\\|H\\| +
    \\|G\\| b \\|W\\|$, for an `Implicit` one $\\|C\\| b \\|U\\| / (1 - b \\|W\\|)$, infinite if
    that is negative, $b$ being the slope of the activation."""
    norm = EuclideanNorm() if norm is None else norm
    _checked(layers)
    return jnp.prod(jnp.stack([jnp.asarray(_growth(layer, norm)[1]) for layer in layers]))


def sampled_lipschitz(
    layers: Layers,
    key: PRNGKeyArray,
    num_points: int = 1000,
    norm: AbstractLipschitzNorm | None = None,
    scale: float = 1.0,
) -> Float[Array, ""]:
    """The largest norm of the Jacobian at random points, normal with this `scale`: a lower bound
    on the Lipschitz constant."""
    norm = EuclideanNorm() if norm is None else norm
    checks.count("num_points", num_points)
    return _sampled(tuple(layers), key, num_points, norm, scale)


@eqx.filter_jit
def _sampled(layers, key, num_points, norm, scale):
    n, _ = _checked(layers)

    def network(x):
        for layer in layers:
            x = layer(x)
        return x

    dtype = jnp.result_type(*[a for a in jax.tree.leaves(layers) if eqx.is_inexact_array(a)])
    points = scale * jax.random.normal(key, (num_points, n), dtype)
    return jnp.max(jax.vmap(lambda x: norm.matrix(jax.jacobian(network)(x)))(points))


# Told by the functions themselves: a name says nothing of what a function does.
_SLOPES = (
    (jax.nn.relu, (0.0, 1.0)),
    (jnp.tanh, (0.0, 1.0)),
    (jax.nn.sigmoid, (0.0, 0.25)),
    (jax.nn.leaky_relu, (0.01, 1.0)),
    (jax.nn.softplus, (0.0, 1.0)),
    (jax.nn.elu, (0.0, 1.0)),
)


def from_equinox(
    network: Any, activation: AbstractActivation | None = None
) -> list[AbstractLayer | AbstractActivation]:
    """The layers of an `equinox.nn.MLP`.

    **Arguments:**

    - `network`: the MLP.
    - `activation`: what its activation is; not needed for ReLU, leaky ReLU, ELU, softplus, tanh
      and sigmoid of `jax.nn` with their default slopes, the very functions. A final activation
      must be `jax.nn.identity` or equinox's default.

    **Raises:** `TypeError` for another network; `ValueError` for an activation that is not known.
    """
    if not isinstance(network, eqx.nn.MLP):
        raise TypeError(f"expected an equinox.nn.MLP, got {type(network).__name__}")
    if activation is None:
        fun: Callable[[Array], Array] = network.activation
        slopes = [slope for known, slope in _SLOPES if fun is known]
        if not slopes:
            raise ValueError(f"slopes of {fun!r} are not known: give SlopeRestricted(alpha, beta)")
        activation = SlopeRestricted(*slopes[0], fun)
    # Equinox's own default is a function without a name.
    default = inspect.signature(eqx.nn.MLP.__init__).parameters["final_activation"].default
    if not any(network.final_activation is identity for identity in (default, jax.nn.identity)):
        raise ValueError(f"the final activation {network.final_activation!r} is not the identity")
    layers: list[AbstractLayer | AbstractActivation] = []
    for linear in network.layers:
        layers += [Affine(weight=linear.weight, bias=linear.bias), activation]
    return layers[:-1]
