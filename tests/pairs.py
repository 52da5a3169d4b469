"""A function of tests in several files."""

import jax

from jaxopt_ext import prox


class Pairs(prox.AbstractFunction):
    """A group lasso of neighbours."""

    weight: jax.Array
    convex = True

    def __call__(self, w):
        return prox.GroupLasso(self.weight)(w.reshape(-1, 2))

    def prox(self, w, step=1.0):
        return prox.GroupLasso(self.weight).prox(w.reshape(-1, 2), step).reshape(-1)
