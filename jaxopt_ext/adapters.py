"""Solvers of other libraries, as solvers of this one.

`solve` wraps by itself: pass the `optax` or `optimistix` object as it is, or wrap it here to set a
tolerance and a step limit.

- `Optax`: a gradient transformation. `Optimistix`: a minimizer, least-squares solver, root finder
  or fixed-point solver. `as_solver`: whichever fits.
"""

from .core.adapters import Optax, Optimistix, as_solver

__all__ = ["Optax", "Optimistix", "as_solver"]
