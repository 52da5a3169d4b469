"""Matrix functions, updates of decompositions, and linear solvers for sequences of systems."""

__all__: list[str] = []
