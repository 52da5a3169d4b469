"""The methods of the textbook on convex optimization, each with its theorem as a number.

`guarantee(method, steps, Constants(...))` is the bound that a method's theorem gives, also of the
landed ones (`ProximalGradient`, `FISTA`, `FrankWolfe`, ...).
"""

from .guarantee import Constants, guarantee

__all__ = ["Constants", "guarantee"]
