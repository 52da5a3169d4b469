"""Rows of federated bilevel methods."""

import jaxopt_ext as jxt

from .cases.federated import TwoLevels
from .shapes import NetworkRow


def _example(method, loss, **options):
    level = TwoLevels.level(loss)
    return TwoLevels(method(level, level, 0.02, 0.02, 2, 4, 30.0, **options))


def _sums(*bits):
    """Means are sums. Loops' bodies count once."""
    return {"all-reduce": sum(map(jxt.distributed.model_bits, bits)) // 8}


def _exchanged(params, network):
    """An exchange sends what a chain carries twice, here in as many parts as there are nodes."""
    a, b = params["a"], params["b"]
    exchanges = {"all-to-all": 2 * 4 * network.size}
    return _sums(b, a, a) | exchanges


def _one_chain(params, network):
    """Gradients and where local steps end, of both levels, and both ends of a chain."""
    a, b = params["a"], params["b"]
    return _sums(a, a, b, b, b, b)


def _own_chains(params, network):
    a, b = params["a"], params["b"]
    return _sums(b, a, a)


FEDMBO: tuple[NetworkRow, ...] = (
    NetworkRow(
        "FedMBO",
        "bilevel.FedMBO",
        "Huang, Zhang, Ji, Achieving Linear Speedup in Non-IID Federated Bilevel Learning, ICML "
        "2023, arXiv:2302.05412",
        lambda loss: _example(jxt.bilevel.FedMBO, loss, participants=6),
        claim="bilevel/fedmbo",
        system=("S169",),
        collectives=_exchanged,
        opt_outs={"exact": "its hypergradient is an estimate, of clients drawn at random"},
    ),
    NetworkRow(
        "FedNest",
        "bilevel.FedNest",
        "Tarzanagh, Li, Thrampoulidis, Oymak, FedNest: Federated Bilevel, Minimax, and "
        "Compositional Optimization, ICML 2022, arXiv:2205.02215",
        lambda loss: _example(jxt.bilevel.FedNest, loss, local_steps=2, upper_local_steps=2),
        claim="bilevel/fedmbo",
        system=("S169",),
        collectives=_one_chain,
        relative=True,
    ),
    NetworkRow(
        "Mean of the clients' own hypergradients",
        "bilevel.LocalHypergradient",
        "Huang, Zhang, Ji, Achieving Linear Speedup in Non-IID Federated Bilevel Learning, ICML "
        "2023, arXiv:2302.05412",
        lambda loss: _example(jxt.bilevel.LocalHypergradient, loss),
        claim="bilevel/fedmbo",
        system=("S169",),
        collectives=_own_chains,
        relative=True,
        opt_outs={"exact": "where clients differ it ends elsewhere"},
    ),
)
