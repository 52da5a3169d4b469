"""Adversarial training whose attacks do not wait for the gradient, nor it for them."""

import enum
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import checks, loops, tree
from .attacks import AbstractAttack
from .step import AbstractTrainingStep, check_parts, descend, keep, start, value_aux_gradient


class Branch(enum.IntEnum):
    """Which inputs a loss sees: each kind has its own statistics in `SplitBatchNorm`."""

    CLEAN = 0
    AUGMENTED = 1
    ADVERSARIAL = 2


BranchLoss = Callable[[PyTree, PyTree[Array], PyTree[Array], Branch], Float[Array, ""]]
Augment = Callable[[PRNGKeyArray, Array], Array]


class SplitBatchNorm(eqx.Module):
    r"""Batch normalization with statistics and affine parameters for each `Branch`.

    Training uses the batch's own mean and variance, `evaluate` the running ones of the clean
    branch. These have no derivative; `observe` gives the module with those of a batch mixed in.

    **Arguments:**

    - `size`: features, on the last axis.
    - `decay`: of the running statistics, in [0, 1).
    - `epsilon`: added to the variance.

    **Raises:** `ValueError` for arguments out of range.
    """

    scale: Float[Array, "3 d"]
    shift: Float[Array, "3 d"]
    mean: Float[Array, "3 d"]
    variance: Float[Array, "3 d"]
    decay: float = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    def __init__(self, size: int, decay: float = 0.9, epsilon: float = 1e-5, dtype: Any = None):
        checks.count("size", size)
        checks.interval("decay", decay, 0.0, 1.0, open_high=True)
        checks.positive("epsilon", epsilon)
        shape = (len(Branch), size)
        self.scale, self.shift = jnp.ones(shape, dtype), jnp.zeros(shape, dtype)
        self.mean, self.variance = jnp.zeros(shape, dtype), jnp.ones(shape, dtype)
        self.decay, self.epsilon = decay, epsilon

    def _moments(self, x):
        axes = tuple(range(x.ndim - 1))
        return jnp.mean(x, axis=axes), jnp.var(x, axis=axes)

    def _apply(self, x, mean, variance, branch):
        normed = (x - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return normed * self.scale[branch] + self.shift[branch]

    def __call__(self, x: Float[Array, "*b d"], branch: Branch) -> Float[Array, "*b d"]:
        """Of a training batch, by its own statistics and the branch's parameters."""
        return self._apply(x, *self._moments(x), branch)

    def observe(self, x: Float[Array, "*b d"], branch: Branch) -> "SplitBatchNorm":
        """With the statistics of `x` mixed into those of the branch, and of no other."""
        mix = lambda old, new: old.at[branch].set(
            self.decay * old[branch] + (1 - self.decay) * jax.lax.stop_gradient(new)
        )
        mean, variance = self._moments(x)
        new = mix(self.mean, mean), mix(self.variance, variance)
        return eqx.tree_at(lambda norm: (norm.mean, norm.variance), self, new)

    def evaluate(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """By running statistics and parameters of the clean branch."""
        mean, variance = jax.lax.stop_gradient((self.mean, self.variance))
        return self._apply(x, mean[Branch.CLEAN], variance[Branch.CLEAN], Branch.CLEAN)


def _check_common(method):
    check_parts(method.tx, loss=method.loss)
    if not isinstance(method.attack, AbstractAttack):
        raise TypeError(f"attack must be an AbstractAttack, got {method.attack!r}")
    for name in ("augment", "observe"):
        value = getattr(method, name)
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be a function or None, got {value!r}")
    wanted = 2 if method.augment is None else 3
    if len(method.weights) != wanted:
        raise ValueError(f"weights must be {wanted} numbers, got {method.weights}")
    for weight in method.weights:
        checks.nonnegative("weights", weight)


def _check_batch(method, batch):
    if not isinstance(batch, tuple) or len(batch) != 2:
        raise TypeError(f"a batch must be a pair of inputs and labels, got {type(batch).__name__}")
    method.attack.check(batch[0])


def _attacked(method, params, x, y, key):
    """Adversarial inputs, without derivative."""
    params = (
        jax.lax.stop_gradient(eqx.filter(params, eqx.is_array)),
        eqx.filter(params, eqx.is_array, inverse=True),
    )
    fixed = eqx.combine(*params)
    made = method.attack(lambda x, y: method.loss(fixed, x, y, Branch.ADVERSARIAL), x, y, key)
    return jax.lax.stop_gradient(made)


def _branches(method, x, adversarial, key):
    if method.augment is None:
        return ((Branch.CLEAN, x), (Branch.ADVERSARIAL, adversarial))
    augmented = method.augment(key, x)
    return (
        (Branch.CLEAN, x),
        (Branch.AUGMENTED, augmented),
        (Branch.ADVERSARIAL, adversarial),
    )


def _gradient(method, params, x, y, adversarial, key):
    """Weighed loss, losses by branch, gradient."""
    branches = _branches(method, x, adversarial, key)

    def objective(params):
        losses = [method.loss(params, x, y, branch) for branch, x in branches]
        weighed = [
            jnp.asarray(w, loss.dtype) * loss
            for w, loss in zip(method.weights, losses, strict=True)
        ]
        return sum(weighed[1:], weighed[0]), (losses[0], losses[-1])

    return value_aux_gradient(objective, params)


def _descend(method, state, found, x, adversarial, key):
    """Parameters and optimizer's state after the step, statistics of the batch included."""
    loss, _, gradient = found
    params, opt_state, finite = descend(method.tx, loss, gradient, state.opt_state, state.params)
    if method.observe is not None:
        for branch, seen in _branches(method, x, adversarial, key):
            params = keep(finite, method.observe(params, seen, branch), params)
    return params, opt_state, finite


def _shares(method):
    weights = (0.5, 0.5) if method.augment is None else (1 / 3, 1 / 3, 1 / 3)
    return weights


class AdversarialState(eqx.Module):
    """State of adversarial training.

    `ring` holds inputs, labels and adversarial inputs of the batches that wait for their step;
    `None` where none wait.
    """

    params: PyTree
    opt_state: PyTree[Array]
    ring: tuple[Array, Array, Array] | None
    step: Int[Array, ""]
    key: PRNGKeyArray


class ConcurrentAdversarial(AbstractTrainingStep):
    r"""Concurrent adversarial training: the attack on a batch is made with parameters that are
    $\tau$ steps old, and so at the same time as the gradient of another batch,

    $$\theta_{t+1} = \theta_t - u\Big(\nabla_\theta\big[w_1\ell(\theta_t; x_t, y_t)
    + w_2\ell(\theta_t; \tilde x_t, y_t)\big]\Big), \qquad
    \tilde x_t \approx \arg\max_{|\tilde x - x_t|\le\epsilon}\ell(\theta_{t-\tau}; \tilde x, y_t).$$

    Within a step the two share no data, so that its longest chain is that of one gradient, where
    `SequentialAdversarial` has two.

    A batch is given once. It is attacked at once and waits $\tau$ steps, with its labels, until it
    is trained on; nobody has to look ahead. So the first $\tau$ steps attack with $\theta_0$ and
    train on nothing, and the last $\tau$ batches are still in the ring at the end.

    `step_on` runs the two parts of a step on two devices.

    For smooth losses the theory adds to the usual rate a term that grows with $\tau$ and the step
    size.

    **Arguments:**

    - `loss`: `(params, x, y, branch) -> scalar`, the mean over a batch, `branch` a `Branch`. It
      normalizes by `SplitBatchNorm`, if it does at all.
    - `attack`: how adversarial inputs are made, `FGSM` or `RandomTargetFGSM` say.
    - `tx`: an `optax` transformation; LARS in the paper.
    - `weights`: of the clean, the augmented if there is one, and the adversarial branch; 1/2 each,
      or 1/3 each, by default.
    - `augment`: `(key, x) -> x`, of a batch of inputs; `None` for no such branch.
    - `staleness`: $\tau \ge 1$.
    - `observe`: `(params, x, branch) -> params`, what is learned from a batch without a gradient,
      running statistics say; called for each branch after the optimizer's step. Their leaves must
      have zero gradient, and be masked in a weight decay.

    **Raises:** `ValueError` or `TypeError` for arguments out of range and for inputs outside the
    attack's bounds.

    **Reference:** Liu, Chen, Cheng, Hsieh, You, Concurrent Adversarial Learning for Large-Batch
    Training, 2022, arXiv:2106.00221.
    """

    loss: BranchLoss
    attack: AbstractAttack
    tx: optax.GradientTransformation
    weights: tuple[Any, ...]
    augment: Augment | None
    staleness: int = eqx.field(static=True)
    observe: Callable[[PyTree, Array, Branch], PyTree] | None

    def __init__(self, loss, attack, tx, weights=None, augment=None, staleness=1, *, observe=None):
        self.loss, self.attack, self.tx = loss, attack, tx
        self.augment, self.staleness, self.observe = augment, staleness, observe
        self.weights = tuple(map(checks.scalar, _shares(self) if weights is None else weights))

    def __check_init__(self):
        _check_common(self)
        checks.count("staleness", self.staleness)

    def check(self, batch):
        _check_batch(self, batch)

    def init(self, params, batch, key):
        self.check(batch)
        x, y = jax.tree.map(jnp.asarray, batch)
        empty = lambda a: jnp.zeros((self.staleness, *a.shape), a.dtype)
        opt_state = start(self.tx, params)
        ring = empty(x), empty(y), empty(x)
        return AdversarialState(params, opt_state, ring, jnp.zeros((), jnp.int32), key)

    def _parts(self, state, batch):
        """What a step has to do: the gradient of the batch whose turn it is, the attack on a new
        one."""
        x, y = batch
        place = state.step % self.staleness
        turn, now = jax.tree.map(lambda a: a[place], state.ring), state.step
        attack_key, _ = jax.random.split(jax.random.fold_in(state.key, now))
        _, augment_key = jax.random.split(jax.random.fold_in(state.key, now - self.staleness))
        old, labels, adversarial = turn
        gradient = lambda: _gradient(self, state.params, old, labels, adversarial, augment_key)
        attack = lambda: _attacked(self, state.params, x, y, attack_key)
        return gradient, attack, (old, adversarial, augment_key), place

    def _finish(self, state, batch, found, made, seen, place):
        params, opt_state, finite = _descend(self, state, found, *seen)
        # Until the ring is full there is nothing to train on.
        full = state.step >= self.staleness
        params, opt_state = keep(full, (params, opt_state), (state.params, state.opt_state))
        put = lambda a, new: a.at[place].set(new)
        ring = jax.tree.map(put, state.ring, (*batch, made))
        loss, (clean, adversarial), _ = found
        zero = lambda value: jnp.where(full, value, jnp.zeros_like(value))
        metrics = {
            "loss": zero(loss),
            "clean": zero(clean),
            "adversarial": zero(adversarial),
            "finite": finite | ~full,
        }
        return AdversarialState(params, opt_state, ring, state.step + 1, state.key), metrics

    def step(self, state, batch):
        self.check(batch)
        gradient, attack, seen, place = self._parts(state, batch)
        return self._finish(state, batch, gradient(), attack(), seen, place)

    def step_on(self, state, batch, axis: str):
        """The same step inside of `shard_map` over an axis of two devices with the same state and
        batch: the first computes the gradient, the second the attack, and each tells the other."""
        if (size := jax.lax.axis_size(axis)) != 2:
            raise ValueError(f"the axis {axis} must have two devices, got {size}")
        gradient, attack, seen, place = self._parts(state, batch)
        role = jax.lax.axis_index(axis)

        def only(device, work):
            """Done by one device, and told to both."""
            nothing = lambda: tree.zeros_of(jax.eval_shape(work))
            done = loops.cond(role == device, work, nothing)
            return jax.tree.map(lambda a: jax.lax.psum(a, axis), done)

        return self._finish(state, batch, only(0, gradient), only(1, attack), seen, place)


class SequentialAdversarial(AbstractTrainingStep):
    r"""Adversarial training as usual: the attack is made with the parameters of the step, whose
    gradient waits for it. It is `ConcurrentAdversarial` with $\tau = 0$.

    **Arguments:** those of `ConcurrentAdversarial`, without staleness.

    **Raises:** as `ConcurrentAdversarial`.

    **Reference:** Liu, Chen, Cheng, Hsieh, You, Concurrent Adversarial Learning for Large-Batch
    Training, 2022, arXiv:2106.00221.
    """

    loss: BranchLoss
    attack: AbstractAttack
    tx: optax.GradientTransformation
    weights: tuple[Any, ...]
    augment: Augment | None
    observe: Callable[[PyTree, Array, Branch], PyTree] | None

    def __init__(self, loss, attack, tx, weights=None, augment=None, *, observe=None):
        self.loss, self.attack, self.tx = loss, attack, tx
        self.augment, self.observe = augment, observe
        self.weights = tuple(map(checks.scalar, _shares(self) if weights is None else weights))

    def __check_init__(self):
        _check_common(self)

    def check(self, batch):
        _check_batch(self, batch)

    def init(self, params, batch, key):
        self.check(batch)
        opt_state = start(self.tx, params)
        return AdversarialState(params, opt_state, None, jnp.zeros((), jnp.int32), key)

    def step(self, state, batch):
        self.check(batch)
        x, y = batch
        attack_key, augment_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        made = _attacked(self, state.params, x, y, attack_key)
        found = _gradient(self, state.params, x, y, made, augment_key)
        params, opt_state, finite = _descend(self, state, found, x, made, augment_key)
        loss, (clean, adversarial), _ = found
        metrics = {"loss": loss, "clean": clean, "adversarial": adversarial, "finite": finite}
        return AdversarialState(params, opt_state, None, state.step + 1, state.key), metrics
