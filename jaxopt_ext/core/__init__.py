"""Problems, solvers, the one loop, and derivatives of solutions."""

from . import checkpoint as checkpoint, checks as checks

__all__ = ["checkpoint", "checks"]
