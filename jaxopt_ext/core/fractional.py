"""Ratios of functions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from . import checks, tree
from .natural import natural
from .problem import AbstractProblem
from .restricted import Restricted


class Fractional(AbstractProblem):
    """Minimize a ratio, $\\min_x F(x) = (f(x) + h(x)) / g(x)$ with $f + h \\ge 0$ and $g > 0$.

    The residual is $x - \\mathrm{prox}_h(x - (\\nabla f(x) - F(x)\\, s))$ with a subgradient $s$ of
    $g$, zero exactly at critical points: $0 \\in \\nabla f + \\partial h - F s$. Where $g$ is
    concave these are the minimizers. Where $g(x) \\le 0$ the ratio, and with it the residual, is
    NaN, so that solvers report a start outside of the domain, and a denominator that reaches zero,
    as non-finite.

    **Derivatives.** As for `Composite`, on the active set of $h$, and on the piece of $g$ that the
    point is on; at a kink of $g$ the subgradient returned stands for all of them.

    **Arguments:**

    - `smooth`: $f$, convex and differentiable.
    - `nonsmooth`: $h$, a function of `jaxopt_ext.prox` that is finite where it is asked; `None` for
      zero.
    - `denominator`: $g$, `x -> scalar`. A method `subgradient(x)` says which one to take at kinks;
      without it that is JAX's derivative.
    """

    smooth: Callable[[PyTree[Array]], Float[Array, ""]]
    nonsmooth: Any
    denominator: Callable[[PyTree[Array]], Float[Array, ""]]

    def __check_init__(self):
        if self.nonsmooth is not None:
            checks.proximable("nonsmooth", self.nonsmooth)
        if not callable(self.denominator):
            raise TypeError(f"denominator must be a function, got {self.denominator!r}")

    def objective(self, x: PyTree[Array]) -> Float[Array, ""]:
        """$F(x)$; NaN where $g(x) \\le 0$."""
        top, bottom = self.smooth(x), self.denominator(x)
        if self.nonsmooth is not None:
            top = top + self.nonsmooth(x)
        inside = bottom > 0
        return jnp.where(inside, top / jnp.where(inside, bottom, 1), jnp.nan)

    def subgradient(self, x: PyTree[Array]) -> PyTree[Array]:
        """A subgradient of $g$."""
        if checks.has_method(self.denominator, "subgradient"):
            return self.denominator.subgradient(x)
        return tree.gradient(self.denominator, x)

    def residual(self, x):
        ratio = self.objective(x)
        slope = tree.axpy(tree.gradient(self.smooth, x), -ratio, self.subgradient(x))
        return natural(self.nonsmooth, x, slope)

    def check(self, x):
        checks.objective("smooth", self.smooth, x)
        checks.objective("denominator", self.denominator, x)
        checks.shaped_like("the subgradient", jax.eval_shape(self.subgradient, x), x)
        if self.nonsmooth is not None:
            out = jax.eval_shape(lambda x: self.nonsmooth.prox(x, 1.0), x)
            checks.shaped_like("the prox of nonsmooth", out, x)

    def restrict(self, rest):
        denominator = Restricted(self.denominator, rest)
        if checks.has_method(self.denominator, "subgradient"):
            slope = Restricted(self.denominator.subgradient, rest, maps=True)
            denominator = _Denominator(denominator, slope)
        smooth = Restricted(self.smooth, rest)
        return dataclasses.replace(self, smooth=smooth, denominator=denominator)


class _Denominator(eqx.Module):
    value: Restricted
    slope: Restricted

    def __call__(self, x):
        return self.value(x)

    def subgradient(self, x):
        return self.slope(x)
