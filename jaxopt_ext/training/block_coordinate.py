"""Networks trained block by block: weights, activations and inputs of layers in turn."""

import abc
import functools
import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..core import Scalar, checkpoint as files, checks, loops, scalar_field, tree
from ..core.progress import progress_bar
from ..minimize import Backtracking
from ..prox import AbstractFunction
from .activations import AbstractActivation, Identity, ReLU
from .losses import AbstractOutputLoss, SquaredError

SHORTEST = 1e-6
"""A search at a kink may end at any step; the next starts from no less."""


class FeedforwardNetwork(eqx.Module):
    """$V_i = \\sigma_i(W_i V_{i-1} + b_i)$, to which $V_{i-1}$ is added where a layer is skipped;
    the last layer is linear.

    **Attributes:**

    - `weights`, `biases`: of shapes $(d_i, d_{i-1})$ and $(d_i)$.
    - `activation`: of all layers but the last.
    - `skips`: for each layer, whether its input is added to its output.
    """

    weights: tuple[Float[Array, "out in"], ...]
    biases: tuple[Float[Array, " out"], ...]
    activation: AbstractActivation
    skips: tuple[bool, ...] = eqx.field(static=True)

    def layer(self, i: int, x: Float[Array, "n in"]) -> tuple[Array, Array]:
        """What enters the activation of layer `i`, and what leaves the layer."""
        u = x @ self.weights[i].T + self.biases[i]
        v = u if i == len(self.weights) - 1 else self.activation(u)
        return u, v + x if self.skips[i] else v

    def __call__(self, X: Float[Array, "n in"]) -> Float[Array, "n out"]:
        """Outputs for rows of inputs."""
        for i in range(len(self.weights)):
            _, X = self.layer(i, X)
        return X


class BlockState(eqx.Module):
    """What block coordinate descent holds.

    **Attributes:**

    - `weights`, `biases`: $W_i$, shape $(d_i, d_{i-1})$, and $b_i$.
    - `outputs`: $V_i$, shape $(n, d_i)$: samples are rows.
    - `inputs`: $U_i$, of the same shapes; empty for two splittings.
    - `steps`: for each layer the last step sizes of its weights and of its outputs, where these
      are found by a search.
    """

    weights: tuple[Float[Array, "out in"], ...]
    biases: tuple[Float[Array, " out"], ...]
    outputs: tuple[Float[Array, "n out"], ...]
    inputs: tuple[Float[Array, "n out"], ...]
    steps: tuple[Float[Array, " 2"], ...]


Update = Callable[[BlockState, Array, Array], BlockState]


class AbstractNetworkSplitting(eqx.Module):
    """Which variables a network is split into."""

    @abc.abstractmethod
    def start(self, model: Any, network: FeedforwardNetwork, X: Array) -> tuple[tuple, tuple]:
        """Outputs and inputs of all layers."""

    @abc.abstractmethod
    def coupling(self, model: Any, state: BlockState, X: Array) -> Float[Array, ""]:
        """The terms that tie the variables together."""

    @abc.abstractmethod
    def updates(self, model: Any) -> list[Update]:
        """What an epoch does, one block after the other."""


def _set(state, name, i, value):
    return eqx.tree_at(lambda s: getattr(s, name)[i], state, value)


def _before(state, X, i):
    return state.outputs[i - 1] if i else X


def _square(x):
    return jnp.sum(x**2)


def ridge_step(
    A: Float[Array, "m p"], gap: Float[Array, "k m"], penalty: Any, weight: Any
) -> Float[Array, "k p"]:
    """$\\arg\\min_D \\tfrac w2 \\|R - D A^\\top\\|^2 + \\tfrac c2 \\|D\\|^2$ for the rows of $R$,
    by a Cholesky factor of the smaller Gram matrix of $A$.

    **Arguments:**

    - `A`: $A$. `gap`: $R$. `penalty`: $c > 0$. `weight`: $w$.
    """
    m, p = A.shape
    wide = p > m
    gram = A @ A.T if wide else A.T @ A
    system = weight * gram + penalty * jnp.eye(min(m, p), dtype=A.dtype)
    factor = jax.scipy.linalg.cho_factor(system)
    rhs = gap if wide else gap @ A
    solved = weight * jax.scipy.linalg.cho_solve(factor, rhs.T).T
    return solved @ A if wide else solved


def _search(fun, prox, x, step):
    """A proximal gradient step whose size is searched from twice the last one."""
    value, slope = tree.value_and_gradient(fun, x)
    search = Backtracking(growth=2.0, max_shrinks=40)
    return search.take(fun, x, value, slope, prox, jnp.maximum(step, SHORTEST))


def _stay(x, step):
    return x


class Three(AbstractNetworkSplitting):
    """Three splittings: outputs $V_i$, inputs $U_i$ of activations, and weights are tied by

    $$\\tfrac\\gamma2 \\sum_i \\|V_i - \\sigma_i(U_i)\\|^2
      + \\tfrac\\rho2 \\sum_i \\|U_i - V_{i-1} W_i^\\top - b_i\\|^2.$$

    Every block is minimized over exactly: ridge regressions, and one equation for each entry of
    $U_i$; with a penalty on weights or outputs these take a proximal step instead.
    """

    def start(self, model, network, X):
        inputs, outputs = [], []
        for i in range(len(network.weights)):
            u, X = network.layer(i, X)
            inputs.append(u)
            outputs.append(X)
        return tuple(outputs), tuple(inputs)

    def coupling(self, model, state, X):
        total = jnp.zeros((), X.dtype)
        for i in range(len(state.weights)):
            total += 0.5 * model.gamma * _square(self._misfit(model, state, X, i))
            total += 0.5 * model.rho * _square(self._gap(state, X, i))
        return total

    def _misfit(self, model, state, X, i):
        """$V_i - \\sigma_i(U_i)$, less what is skipped."""
        v = state.outputs[i] - model.activation_of(i)(state.inputs[i])
        return v - _before(state, X, i) if model.skips[i] else v

    def _gap(self, state, X, i):
        """$U_i - V_{i-1} W_i^\\top - b_i$."""
        x = _before(state, X, i)
        return state.inputs[i] - x @ state.weights[i].T - state.biases[i]

    def updates(self, model):
        found = []
        for i in reversed(range(model.depth)):
            for block in (self._output, self._input, self._weight, self._bias):
                found.append(functools.partial(block, model, i))
        return found

    def _output(self, model, i, state, X, Y):
        gamma, rho = model.gamma, model.rho
        old = state.outputs[i]
        anchor = model.activation_of(i)(state.inputs[i])
        anchor = anchor + _before(state, X, i) if model.skips[i] else anchor
        if i == model.depth - 1:
            return _set(state, "outputs", i, model.nearest_output(anchor, old, Y))
        weight = gamma
        if model.skips[i + 1]:
            above = state.outputs[i + 1] - model.activation_of(i + 1)(state.inputs[i + 1])
            anchor, weight = 0.5 * (anchor + above), 2 * gamma
        W = state.weights[i + 1]
        target = state.inputs[i + 1] - state.biases[i + 1]
        if model.output_penalty is None:
            new = anchor + ridge_step(W, target - anchor @ W.T, weight, rho)
            return _set(state, "outputs", i, new)
        fun = lambda V: 0.5 * weight * _square(V - anchor) + 0.5 * rho * _square(target - V @ W.T)
        new, step = _search(fun, model.output_penalty.prox, old, state.steps[i][1])
        state = _set(state, "outputs", i, new)
        return _set(state, "steps", i, state.steps[i].at[1].set(step))

    def _input(self, model, i, state, X, Y):
        x, old, rho = _before(state, X, i), state.inputs[i], model.rho
        wanted = x @ state.weights[i].T + state.biases[i]
        v = state.outputs[i] - x if model.skips[i] else state.outputs[i]
        # The last layer is linear, and its block strongly convex without a proximal term.
        alpha = 0.0 if i == model.depth - 1 else model.alpha
        center = (rho * wanted + alpha * old) / (rho + alpha)
        new = model.activation_of(i).minimize(v, center, (rho + alpha) / model.gamma, old)
        return _set(state, "inputs", i, new)

    def _weight(self, model, i, state, X, Y):
        W, x, rho = state.weights[i], _before(state, X, i), model.rho
        if model.weight_penalty is None:
            moved = ridge_step(x, self._gap(state, X, i).T, model.alpha, rho)
            return _set(state, "weights", i, W + moved)
        target = state.inputs[i] - state.biases[i]
        fun = lambda W: 0.5 * rho * _square(target - x @ W.T)
        new, step = _search(fun, model.weight_penalty.prox, W, state.steps[i][0])
        state = _set(state, "weights", i, new)
        return _set(state, "steps", i, state.steps[i].at[0].set(step))

    def _bias(self, model, i, state, X, Y):
        gap = self._gap(state, X, i)
        moved = model.rho * jnp.sum(gap, axis=0) / (model.rho * X.shape[0] + model.alpha)
        return _set(state, "biases", i, state.biases[i] + moved)


class Two(AbstractNetworkSplitting):
    """Two splittings: outputs $V_i$ and weights are tied by

    $$\\tfrac\\gamma2 \\sum_i \\|V_i - \\sigma_i(V_{i-1} W_i^\\top + b_i)\\|^2.$$

    Outputs of hidden layers and weights with their biases take one proximal gradient step each,
    whose size is found by backtracking. At a kink of the activation no step may pass the test; the
    block then moves by next to nothing.
    """

    def start(self, model, network, X):
        return Three().start(model, network, X)[0], ()

    def coupling(self, model, state, X):
        misfit = lambda i: self._misfit(model, i, _before(state, X, i), state.outputs[i], state)
        return 0.5 * model.gamma * sum(_square(misfit(i)) for i in range(model.depth))

    def _misfit(self, model, i, x, v, state):
        network = model.to_network(state)
        return v - network.layer(i, x)[1]

    def updates(self, model):
        found = []
        for i in reversed(range(model.depth)):
            for block in (self._output, self._parameters):
                found.append(functools.partial(block, model, i))
        return found

    def _output(self, model, i, state, X, Y):
        network, old = model.to_network(state), state.outputs[i]
        anchor = network.layer(i, _before(state, X, i))[1]
        if i == model.depth - 1:
            return _set(state, "outputs", i, model.nearest_output(anchor, old, Y))
        above = state.outputs[i + 1]

        def fun(V):
            return (
                0.5
                * model.gamma
                * (_square(V - anchor) + _square(above - network.layer(i + 1, V)[1]))
            )

        penalty = model.output_penalty
        prox = _stay if penalty is None else penalty.prox
        new, step = _search(fun, prox, old, state.steps[i][1])
        state = _set(state, "outputs", i, new)
        return _set(state, "steps", i, state.steps[i].at[1].set(step))

    def _parameters(self, model, i, state, X, Y):
        x, v = _before(state, X, i), state.outputs[i]

        def fun(parameters):
            W, b = parameters
            moved = _set(_set(state, "weights", i, W), "biases", i, b)
            return 0.5 * model.gamma * _square(self._misfit(model, i, x, v, moved))

        penalty = model.weight_penalty

        def prox(parameters, step):
            W, b = parameters
            return W if penalty is None else penalty.prox(W, step), b

        old = state.weights[i], state.biases[i]
        (W, b), step = _search(fun, prox, old, state.steps[i][0])
        state = _set(_set(state, "weights", i, W), "biases", i, b)
        return _set(state, "steps", i, state.steps[i].at[0].set(step))


class BlockFit(eqx.Module):
    """What `BlockCoordinateTraining.fit` returns.

    **Attributes:**

    - `network`: the trained network.
    - `state`: all blocks.
    - `epochs`: how many were done.
    - `history`: the objective after every `record_every` epochs and after the last.
    """

    network: FeedforwardNetwork
    state: BlockState
    epochs: int
    history: Float[Array, " records"]


@eqx.filter_jit
def _start(model, X, Y, key):
    return model.init(X, Y, key)


@eqx.filter_jit
def _advance(model, state, X, Y, epochs):
    state = loops.fori_loop(0, epochs, lambda _, state: model.epoch(state, X, Y), state)
    return state, model.objective(state, X, Y)


class BlockCoordinateTraining(eqx.Module):
    """Train a network without gradients through its depth: the outputs of each layer are variables,
    tied to the layer below by quadratic penalties, and blocks are minimized over in turn, from the
    last layer to the first, each from the newest of the others.

    With $V_0 = X$, samples as rows, and $\\sigma_N$ the identity,

    $$\\min \\sum_{s} \\ell(V_{N,s}, Y_s) + \\sum_i r(W_i) + \\sum_{i < N} s(V_i)
      + \\tfrac\\gamma2 \\sum_i \\|V_i - \\sigma_i(U_i)\\|^2
      + \\tfrac\\rho2 \\sum_i \\|U_i - V_{i-1} W_i^\\top - b_i\\|^2$$

    (`Three()`), or without the $U_i$ (`Two()`). Blocks that are not strongly convex by themselves,
    among them $V_N$, have $\\tfrac\\alpha2$ times the square of their move added. So the objective
    never rises; for analytic or piecewise linear parts all blocks converge to a critical point, and
    the smallest norm of its gradient so far falls as $O(1/k)$ on average. A critical point fits the
    auxiliary variables: how good the network is that its weights make shows `to_network` alone.

    An epoch costs products of the data with the weights and one factorization of a Gram matrix of
    side $\\min(n, d)$ for each layer. Samples that are sharded over a mesh stay where they are:
    Gram matrices are sums over devices.

    **Arguments:**

    - `widths`: $(d_0, \\dots, d_N)$; static.
    - `activation`: of hidden layers: `ReLU()`, `LeakyReLU(slope)`, `Sigmoid()`, `Tanh()`,
      `Identity()`.
    - `splitting`: `Three()` or `Two()`.
    - `residual`: whether to add its input to the output of every layer that is as wide as the one
      below: $V_i - V_{i-1}$ in place of $V_i$ above.
    - `loss`: $\\ell$: `SquaredError()`, `Hinge()`, `Logistic()`, of each output alone.
    - `gamma`, `rho`: $\\gamma, \\rho > 0$.
    - `alpha`: $\\alpha > 0$; if `None`, 5 for up to three layers and 1 for more, as the paper has.
    - `weight_penalty`, `output_penalty`: $r$ and $s$, functions of `prox` of one matrix, or `None`.
    - `init_scale`, `init_bias`: standard deviation of the first weights, and the first biases.

    **Raises:** `ValueError` for less than two widths, parameters that are not positive, or
    `residual` where no two widths in a row are equal; `TypeError` for parts of the wrong kind.

    **Reference:** Zeng, Lau, Lin, Yao, Global Convergence of Block Coordinate Descent in Deep
    Learning, 2019, arXiv:1803.00225.
    """

    widths: tuple[int, ...] = eqx.field(static=True, converter=tuple)
    activation: AbstractActivation = eqx.field(default_factory=ReLU)
    splitting: AbstractNetworkSplitting = eqx.field(default_factory=Three)
    residual: bool = eqx.field(static=True, default=False)
    loss: AbstractOutputLoss = eqx.field(default_factory=SquaredError)
    gamma: Scalar = scalar_field(1.0)
    rho: Scalar = scalar_field(1.0)
    alpha: Scalar = eqx.field(converter=checks.scalar, default=None)
    weight_penalty: AbstractFunction | None = None
    output_penalty: AbstractFunction | None = None
    init_scale: Scalar = scalar_field(0.01)
    init_bias: Scalar = scalar_field(0.1)

    def __post_init__(self):
        if self.alpha is None:
            self.alpha = checks.scalar(5.0 if len(self.widths) <= 4 else 1.0)

    def __check_init__(self):
        for width in self.widths:
            checks.count("widths", width)
        if len(self.widths) < 2:
            raise ValueError(f"widths must be those of inputs and outputs, got {self.widths}")
        for name, kind, example in (
            ("activation", AbstractActivation, "ReLU()"),
            ("splitting", AbstractNetworkSplitting, "Three()"),
            ("loss", AbstractOutputLoss, "SquaredError()"),
        ):
            checks.instance(name, getattr(self, name), kind, example)
        for name in ("gamma", "rho", "alpha", "init_scale"):
            checks.positive(name, getattr(self, name))
        for name in ("weight_penalty", "output_penalty"):
            if getattr(self, name) is not None:
                checks.proximable(name, getattr(self, name))
        if self.residual and not any(self.skips):
            raise ValueError(f"residual needs two equal widths in a row, got {self.widths}")

    @property
    def depth(self) -> int:
        """$N$, the number of layers."""
        return len(self.widths) - 1

    @property
    def skips(self) -> tuple[bool, ...]:
        """Which layers have their input added to their output."""
        pairs = zip(self.widths[:-1], self.widths[1:], strict=True)
        return tuple(self.residual and a == b for a, b in pairs)

    def activation_of(self, i: int) -> AbstractActivation:
        """That of layer `i`, of which the last is linear."""
        return Identity() if i == self.depth - 1 else self.activation

    def nearest_output(self, anchor: Array, old: Array, Y: Array) -> Array:
        """$\\arg\\min_V \\ell(V, Y) + \\tfrac\\gamma2 \\|V - a\\|^2 +
        \\tfrac\\alpha2 \\|V - V_N\\|^2$."""
        weight = self.gamma + self.alpha
        point = (self.gamma * anchor + self.alpha * old) / weight
        return self.loss.prox(point, Y, 1 / weight).astype(old.dtype)

    def _data(self, X, Y):
        X, Y = jnp.asarray(X), jnp.asarray(Y)
        wanted = X.shape[:1] + self.widths[-1:]
        if X.ndim != 2 or X.shape[1] != self.widths[0] or Y.shape != wanted or not X.shape[0]:
            raise ValueError(
                f"X and Y must have shapes (n, {self.widths[0]}) and (n, {self.widths[-1]}) with "
                f"n > 0, got {X.shape} and {Y.shape}"
            )
        if not jnp.issubdtype(X.dtype, jnp.floating):
            X = X.astype(jnp.result_type(float))
        return X, Y.astype(X.dtype)

    def init(
        self, X: Float[Array, "n in"], Y: Float[Array, "n out"], key: PRNGKeyArray
    ) -> BlockState:
        """Small random weights, and the blocks that they give.

        **Raises:** `ValueError` on shapes that do not fit, data that are not finite, or targets
        that the loss does not take.
        """
        X, Y = self._data(X, Y)
        checks.finite("X", X)
        checks.finite("Y", Y)
        self.loss.check(Y)
        keys = jax.random.split(key, self.depth)
        shapes = list(zip(self.widths[1:], self.widths[:-1], strict=True))
        scale = self.init_scale.astype(X.dtype)
        draw = lambda k, shape: scale * jax.random.normal(k, shape, X.dtype)
        weights = tuple(map(draw, keys, shapes))
        biases = tuple(jnp.full(out, self.init_bias, X.dtype) for out, _ in shapes)
        network = FeedforwardNetwork(weights, biases, self.activation, self.skips)
        outputs, inputs = self.splitting.start(self, network, X)
        steps = tuple(jnp.ones(2, X.dtype) for _ in shapes)
        return BlockState(weights, biases, outputs, inputs, steps)

    def objective(
        self, state: BlockState, X: Float[Array, "n in"], Y: Float[Array, "n out"]
    ) -> Float[Array, ""]:
        """What is minimized."""
        X, Y = self._data(X, Y)
        total = jnp.sum(self.loss(state.outputs[-1], Y))
        total += self.splitting.coupling(self, state, X)
        for penalty, blocks in (
            (self.weight_penalty, state.weights),
            (self.output_penalty, state.outputs[:-1]),
        ):
            if penalty is not None:
                total += sum(penalty(block) for block in blocks)
        return total.astype(X.dtype)

    def updates(self) -> list[Update]:
        """What an epoch does: functions `(state, X, Y) -> state` of one block each, in order."""
        return self.splitting.updates(self)

    def epoch(
        self, state: BlockState, X: Float[Array, "n in"], Y: Float[Array, "n out"]
    ) -> BlockState:
        """Every block once."""
        X, Y = self._data(X, Y)
        for update in self.updates():
            state = tree.cast_like(update(state, X, Y), state)
        return state

    def to_network(self, state: BlockState) -> FeedforwardNetwork:
        """The network of these weights."""
        return FeedforwardNetwork(state.weights, state.biases, self.activation, self.skips)

    def fit(
        self,
        X: Float[Array, "n in"],
        Y: Float[Array, "n out"],
        num_epochs: int,
        *,
        key: PRNGKeyArray | None = None,
        record_every: int = 10,
        checkpoint: str | os.PathLike | None = None,
        progress: bool = True,
    ) -> BlockFit:
        """Train for so many epochs.

        **Arguments:**

        - `X`: inputs, shape $(n, d_0)$. `Y`: targets, shape $(n, d_N)$.
        - `num_epochs`: in all, those of a resumed run included.
        - `key`: of the first weights; `jax.random.key(0)` if not given.
        - `record_every`: epochs between records, and checkpoints.
        - `checkpoint`: a file that holds the blocks; if it exists training goes on from there.
        - `progress`: show a bar if it takes longer than a second.

        **Raises:** what `init` raises.
        """
        checks.count("num_epochs", num_epochs, minimum=0)
        checks.count("record_every", record_every)
        X, Y = self._data(X, Y)
        checks.finite("X", X)
        checks.finite("Y", Y)
        self.loss.check(Y)
        state = _start(self, X, Y, jax.random.key(0) if key is None else key)
        done, history = 0, []
        if checkpoint is not None and os.path.exists(checkpoint):
            # The number of records comes first, since it decides the shape of the rest.
            records = [jnp.zeros((), X.dtype)] * files.load(checkpoint, 0)
            _, done, state, history = files.load(checkpoint, (0, 0, state, records))
        with progress_bar(num_epochs, type(self).__name__, enabled=progress) as advance:
            advance(done)
            while done < num_epochs:
                count = min(record_every, num_epochs - done)
                state, value = _advance(self, state, X, Y, jnp.asarray(count, jnp.int32))
                history.append(value)
                done += count
                advance(count, objective=value)
                if checkpoint is not None:
                    files.save(checkpoint, (len(history), done, state, history))
        history = jnp.stack(history) if history else jnp.zeros(0, X.dtype)
        return BlockFit(self.to_network(state), state, done, history)
