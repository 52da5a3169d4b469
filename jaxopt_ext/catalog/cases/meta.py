"""Cases of meta-gradients."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt

from ..shapes import AbstractFunctionCase

_TASKS, _D, _SUPPORT, _QUERY = 2, 3, 4, 5


def _loss(w, samples):
    X, y = samples
    return 0.5 * jnp.mean((X @ w - y) ** 2)


def _square(w, X, y):
    """Value, gradient and Hessian of the loss."""
    r = X @ w - y
    return 0.5 * np.mean(r**2), X.T @ r / len(y), X.T @ X / len(y)


class MetaGradientCase(AbstractFunctionCase):
    """Value and gradient of a meta-method, on linear regression.

    **Arguments:**

    - `method`: `bilevel.MAML` or another of its kind.
    - `order`: how many derivatives of the inner steps it takes, 1 or 2; 0 for none of the steps.
    - `steps`: inner ones.
    """

    method: type
    order: int = 2
    steps: int = eqx.field(static=True, default=2)

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        part = lambda n: tuple(
            jnp.asarray(rng.normal(size=shape), dtype) for shape in ((_TASKS, n, _D), (_TASKS, n))
        )
        return jnp.asarray(rng.normal(size=_D), dtype), part(_SUPPORT), part(_QUERY)

    def call(self, *arguments):
        w, support, query = arguments
        method = self.method(_loss, 0.25, self.steps)
        return method.value_and_gradient(w, jxt.bilevel.Task(support, query))

    def reference(self, *arguments):
        w, support, query = arguments
        found = []
        for i in range(_TASKS):
            (X, y), (Xq, yq) = ([np.asarray(a[i], np.float64) for a in s] for s in (support, query))
            u, factor = np.asarray(w, np.float64), np.eye(_D)
            if self.order == 0:
                Xq, yq = np.concatenate([X, Xq]), np.concatenate([y, yq])
            for _ in range(self.steps if self.order else 0):
                _, g, H = _square(u, X, y)
                u = u - 0.25 * g
                factor = factor @ (np.eye(_D) - 0.25 * H) if self.order == 2 else factor
            value, g, _ = _square(u, Xq, yq)
            found.append((value, factor @ g))
        values, gradients = zip(*found, strict=True)
        return np.mean(values), np.mean(gradients, axis=0)
