"""A model whose stages live on different nodes."""

import dataclasses
import functools
import hashlib
import types
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from ...core import checks

Stage = Callable[[Any], Any]


def gaussian_scale(epsilon: float, delta: float, sensitivity: float) -> float:
    """The least standard deviation $\\sigma$ for which Gaussian noise is
    $(\\varepsilon, \\delta)$-private:

    $$\\Phi\\Bigl(\\frac{\\Delta}{2 \\sigma} - \\frac{\\varepsilon \\sigma}{\\Delta}\\Bigr)
      - e^\\varepsilon \\Phi\\Bigl(-\\frac{\\Delta}{2 \\sigma}
      - \\frac{\\varepsilon \\sigma}{\\Delta}\\Bigr) = \\delta.$$

    **Arguments:**

    - `epsilon`, `delta`: $\\varepsilon > 0$, $0 < \\delta < 1$.
    - `sensitivity`: $\\Delta$, how far the value may move.

    **Reference:** Balle, Wang, Improving the Gaussian Mechanism for Differential Privacy:
    Analytical Calibration and Optimal Denoising, 2018, arXiv:1805.06530.
    """
    checks.positive("epsilon", epsilon)
    checks.interval("delta", delta, 0, 1, open_low=True, open_high=True)
    checks.positive("sensitivity", sensitivity)

    def excess(log_scale):
        s = np.exp(log_scale)
        far = np.exp(epsilon + log_ndtr(-0.5 / s - epsilon * s))
        return ndtr(0.5 / s - epsilon * s) - far - delta

    low, high = -1.0, 1.0
    while excess(low) < 0:
        low -= 1
    while excess(high) > 0:
        high += 1
    root: Any = brentq(excess, low, high, xtol=1e-13)
    return float(sensitivity * np.exp(root))


class CutNoise(eqx.Module):
    """Gaussian noise on an activation whose norm is clipped first, so that what leaves a node is
    $(\\varepsilon, \\delta)$-private with respect to any change of the input.

    **Arguments:**

    - `epsilon`, `delta`: see `gaussian_scale`.
    - `clip`: the largest norm of one input's activation; the sensitivity is twice that.

    **Raises:** `ValueError` unless they are positive and `delta` below 1.
    """

    clip: float
    scale: float

    def __init__(self, epsilon: float, delta: float, clip: float):
        checks.positive("clip", clip)
        self.clip = clip
        self.scale = gaussian_scale(epsilon, delta, 2 * clip)

    def __call__(self, a: Array, key: PRNGKeyArray) -> Array:
        """Noisy activations; the first axis of `a` has the inputs."""
        rows = a.reshape(len(a), -1)
        norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows * jnp.where(norms > self.clip, self.clip / norms, 1)
        noise = jax.random.normal(key, rows.shape, rows.dtype)
        return (rows + self.scale * noise).reshape(a.shape)


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What a run leaves for an auditor.

    **Attributes:**

    - `activations`: the input and what each stage sent on, opened to the auditor.
    - `chain`: $t_k = H(t_{k-1}, H(f_k), H(a_{k-1}), H(a_k))$, in hexadecimal digits.
    - `key`: of the noise, if any.
    """

    activations: tuple[Any, ...]
    chain: tuple[str, ...]
    key: PRNGKeyArray | None = None


class SplitModel(eqx.Module):
    """$f_K \\circ \\dots \\circ f_1$ with a stage on each node: node $k$ holds $f_k$ only, and gets
    activations only.

    **Arguments:**

    - `stages`: the $f_k$, equinox modules or functions, each of one array.
    - `noise`: `CutNoise` on what every node but the last sends, of floats.

    **Raises:** `ValueError` if there is no stage.

    **Reference:** Zhang, Zhao, Angione, Yang, Buban, Farhan, Johnston, Colangelo, Towards Secure
    and Private AI: A Framework for Decentralized Inference, 2024, arXiv:2407.19401.
    """

    stages: tuple[Stage, ...] = eqx.field(converter=tuple)
    noise: CutNoise | None = None

    def __check_init__(self):
        if not self.stages:
            raise ValueError("a split model needs a stage")

    def commitments(self) -> tuple[str, ...]:
        """A hash of all that each stage computes with, for its owner to publish.

        That is arrays and settings at every level, code and what it closes over. Code is compared
        as Python has compiled it, so that all need the same version of it and of the libraries;
        functions that it finds by a global name count by that.

        **Raises:** `TypeError` for a stage that holds what no hash can be made of.
        """
        return tuple(map(_stage_digest, self.stages))

    def run(
        self, x: Any, nodes: Sequence[Stage] | None = None, key: PRNGKeyArray | None = None
    ) -> tuple[Any, Transcript]:
        """The output and the transcript.

        **Arguments:**

        - `x`: the input.
        - `nodes`: what the nodes really compute; the stages if `None`.
        - `key`: for the noise.

        **Raises:** `ValueError` if there are not as many nodes as stages, or a key is missing.
        """
        nodes = self.stages if nodes is None else nodes
        if len(nodes) != len(self.stages):
            raise ValueError(f"{len(self.stages)} stages need as many nodes, got {len(nodes)}")
        activations, chain = [x], []
        for k, (node, digest) in enumerate(zip(nodes, self.commitments(), strict=True)):
            activations.append(self.leave(k, node(activations[-1]), key))
            chain.append(_link(chain[-1] if chain else "", digest, *activations[-2:]))
        return activations[-1], Transcript(tuple(activations), tuple(chain), key)

    def leave(self, k: int, a: Any, key: PRNGKeyArray | None) -> Any:
        """What node `k` sends on of its result."""
        if self.noise is None or k == len(self.stages) - 1:
            return a
        if key is None:
            raise ValueError("noise needs a key")
        return self.noise(a, jax.random.fold_in(key, k))


def audit(model: SplitModel, transcript: Transcript, *, tolerance: float = 1e-4) -> int | None:
    """The first stage whose link in the chain or whose result is wrong, counted from zero; `None`
    if all are right.

    Integers must be equal bit for bit; floats within `tolerance` of the largest entry, since the
    order of a sum differs between machines.

    **Raises:** `ValueError` if the transcript is of another number of stages.

    **Reference:** Haber, Stornetta, How to Time-Stamp a Digital Document, 1991.
    """
    previous, digests = "", model.commitments()
    if not len(transcript.activations) - 1 == len(transcript.chain) == len(digests):
        raise ValueError(
            f"{len(digests)} stages need a link and an activation each, got "
            f"{len(transcript.chain)} and {len(transcript.activations) - 1}"
        )
    for k, link in enumerate(transcript.chain):
        before, after = transcript.activations[k : k + 2]
        expected = model.leave(k, model.stages[k](before), transcript.key)
        if link != _link(previous, digests[k], before, after) or not _close(
            expected, after, tolerance
        ):
            return k
        previous = link
    return None


def _close(a, b, tolerance) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return False
    if not np.issubdtype(a.dtype, np.inexact):
        return np.array_equal(a, b)
    # What is infinite or no number to an honest stage is so to the audit too.
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.all(finite | (a == b) | (np.isnan(a) & np.isnan(b))):
        return False
    a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    return bool(np.max(np.abs(a - b), initial=0) <= tolerance * np.max(np.abs(a), initial=0))


def _link(previous: str, stage: str, before: Any, after: Any) -> str:
    text = "|".join((previous, stage, _digest(before), _digest(after)))
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(a: Any) -> str:
    a = np.ascontiguousarray(a)
    head = f"{a.dtype.str}{a.shape}".encode()
    return hashlib.sha256(head + a.tobytes()).hexdigest()


def _stage_digest(stage: Stage) -> str:
    return hashlib.sha256(_content(stage, ()).encode()).hexdigest()


def _content(x: Any, inside: tuple[int, ...]) -> str:
    """All that a stage computes with, at every level: arrays, settings, code and what it closes
    over."""
    if id(x) in inside:
        return "itself"
    inside = (*inside, id(x))
    deeper = lambda *parts: "(" + ",".join(_content(part, inside) for part in parts) + ")"
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if isinstance(x, jax.Array | np.ndarray | np.generic):
        return _digest(x)
    plain = bool | int | float | complex | str | bytes | slice | np.dtype | type
    if x is None or x is ... or isinstance(x, plain):
        return f"{type(x).__name__}:{x!r}"
    if isinstance(x, dict):
        return "dict" + deeper(*x.keys(), *x.values())
    if isinstance(x, tuple | list):
        return type(x).__name__ + deeper(*x)
    if isinstance(x, set | frozenset):
        return "set" + ",".join(sorted(_content(part, inside) for part in x))
    if isinstance(x, functools.partial):
        return "partial" + deeper(x.func, x.args, x.keywords)
    if isinstance(x, types.CodeType):
        return deeper(x.co_code, x.co_consts, x.co_names)
    if isinstance(x, types.FunctionType):
        closed = [cell.cell_contents for cell in x.__closure__ or ()]
        used = {name: x.__globals__[name] for name in x.__code__.co_names if name in x.__globals__}
        named = {name: _named(value, inside) for name, value in used.items()}
        return _name(x) + deeper(x.__code__, x.__defaults__, x.__kwdefaults__, *closed, named)
    if isinstance(x, types.MethodType):
        return deeper(x.__func__, x.__self__)
    if dataclasses.is_dataclass(x):
        names = [f.name for f in dataclasses.fields(x)]
        return _name(type(x)) + deeper(*names, *(getattr(x, name, None) for name in names))
    if isinstance(x, np.ufunc | jnp.ufunc):
        return repr(x)
    if callable(x) and hasattr(x, "__qualname__"):  # compiled, or with a rule
        if hasattr(x, "__wrapped__") and not x.__module__.startswith(("jax.", "jax_")):
            return _name(x) + deeper(x.__wrapped__)
        return _name(x)
    raise TypeError(f"a stage holds {x!r}, of which no digest can be made")


def _named(x: Any, inside: tuple[int, ...]) -> str:
    """What a function finds by a global name: of modules, classes and functions it is the name."""
    if isinstance(x, types.ModuleType):
        return x.__name__
    if isinstance(x, type) or (callable(x) and hasattr(x, "__qualname__")):
        return _name(x)
    return _content(x, inside)


def _name(x: Any) -> str:
    return f"{x.__module__}.{x.__qualname__}"
