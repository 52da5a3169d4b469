"""Accelerated gossip: several rounds of talk that bring nodes closer to their mean than plain
mixing does, and keep the mean."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..core import checks, loops, tree
from .network import Network, column


def chebyshev_gossip(
    network: Network,
    x: PyTree[Array],
    num_steps: int,
    spectrum: tuple[Any, Any],
) -> PyTree[Array]:
    """K steps of Chebyshev's polynomial in the Laplacian L of the graph.

    On vectors of mean zero it contracts by exactly $1 / T_K(c)$ at the ends of the spectrum, and
    nowhere by less, where $c = (\\chi + 1) / (\\chi - 1)$ and
    $\\chi = \\lambda_{\\max} / \\lambda_2$:

    $$y_1 = x - \\tfrac{2}{\\lambda_2 + \\lambda_{\\max}} L x, \\qquad
      y_{k+1} = 2 c\\, r_{k+1} \\bigl(y_k - \\tfrac{2}{\\lambda_2 + \\lambda_{\\max}} L y_k\\bigr)
        - r_{k+1} r_k\\, y_{k-1}, \\qquad
      r_1 = \\tfrac1c, \\quad r_{k+1} = \\tfrac{1}{2 c - r_k} .$$

    **Arguments:**

    - `x`: stacked node values.
    - `num_steps`: K, each a value on every edge.
    - `spectrum`: $\\lambda_2$ and $\\lambda_{\\max}$, `laplacian_spectrum(graph)`. Too small a
      $\\lambda_2$ is slower; too small a $\\lambda_{\\max}$ may diverge.

    **Reference:** Scaman, Bach, Bubeck, Lee, Massoulié, Optimal Algorithms for Smooth and Strongly
    Convex Distributed Optimization in Networks, 2017, arXiv:1702.08704.
    """
    checks.count("num_steps", num_steps, minimum=0)
    second, last = spectrum
    checks.positive("spectrum", second)
    checks.positive("spectrum", last)
    degrees = network.degrees()

    def laplacian(y):
        def leaf(a, s):
            return column(degrees.astype(a.real.dtype), a) * a - s

        return jax.tree.map(leaf, y, network.neighbor_sum(y))

    def one(_, state):
        return chebyshev_step(state, laplacian, spectrum)

    return loops.fori_loop(0, num_steps, one, chebyshev_start(x))[0] if num_steps else x


def chebyshev_start(x: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array], Array]:
    """The state before the first `chebyshev_step`: the values, those before, and r."""
    # With r = 0 the recursion's first step is the plain one, whatever stands for the past.
    return x, x, jnp.zeros(())


def chebyshev_step(
    state: tuple[PyTree[Array], PyTree[Array], Array],
    laplacian: Callable[[PyTree[Array]], PyTree[Array]],
    spectrum: tuple[Any, Any],
) -> tuple[PyTree[Array], PyTree[Array], Array]:
    """One step of the recursion of `chebyshev_gossip`.

    **Arguments:**

    - `laplacian`: `y -> L y`, called once.
    """
    y, old, r = state
    low, high = spectrum
    # 1 / c, which is zero where all eigenvalues are one, rather than c, which is infinite there.
    inverse = (jnp.asarray(high) - low) / (jnp.asarray(high) + low)
    first = r == 0
    twice = jnp.where(first, 0.5, 1 / (2 - inverse * r))  # c r_{k+1}
    # With all eigenvalues alike r stays zero, and each step is exact.
    new = jnp.where(first, 1, twice) * inverse
    down = tree.axpy(y, -2 / (jnp.asarray(low) + high), laplacian(y))

    def leaf(a, b):
        dtype = a.real.dtype
        return (2 * twice).astype(dtype) * a - (new * r).astype(dtype) * b

    return jax.tree.map(leaf, down, old), y, new.astype(r.dtype)


def fast_mix(network: Network, x: PyTree[Array], num_steps: int, contraction: Any) -> PyTree[Array]:
    """K steps of mixing with momentum,

    $$x_{k+1} = (1 + \\eta) W x_k - \\eta\\, x_{k-1}, \\qquad x_{-1} = x_0, \\qquad
      \\eta = \\frac{1 - \\sqrt{1 - \\lambda^2}}{1 + \\sqrt{1 - \\lambda^2}} .$$

    **Arguments:**

    - `x`: stacked node values.
    - `num_steps`: K, each a value on every edge.
    - `contraction`: $\\lambda = \\|W - \\tfrac1n 11^\\top\\|_2$ of the network's mixing matrix, one
      less its `spectral_gap`; in [0, 1).

    **Reference:** Liu, Morse, Accelerated Linear Iterations for Distributed Averaging, 2011.
    """
    checks.count("num_steps", num_steps, minimum=0)
    checks.interval("contraction", contraction, 0, 1, open_high=True)
    root = jnp.sqrt(1 - jnp.asarray(contraction) ** 2)
    momentum = (1 - root) / (1 + root)

    def one(_, carry):
        y, old = carry

        def leaf(a, b):
            eta = momentum.astype(b.real.dtype)
            return a + eta * (a - b)

        return jax.tree.map(leaf, network.mix(y), old), y

    return loops.fori_loop(0, num_steps, one, (x, x))[0] if num_steps else x
