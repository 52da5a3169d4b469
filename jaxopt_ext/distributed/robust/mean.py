"""The mean."""

from .aggregator import AbstractAggregator
from .rows import mean_of


class Mean(AbstractAggregator):
    """The mean of the rows. One bad row moves it anywhere; it is the baseline.

    **Reference:** McMahan, Moore, Ramage, Hampson, Agüera y Arcas, Communication-Efficient Learning
    of Deep Networks from Decentralized Data, 2017, arXiv:1602.05629, whose server takes it.
    """

    def combine(self, x, state, pivot, key, mask):
        return mean_of(x, mask)

    def tolerates(self, m):
        return 0
