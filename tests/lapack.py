"""Whether the dense factorizations of a program run one behind the other.

On CPUs a batch of factorizations hands its parts to the threads of a pool and waits for them, in a
thread of that pool. Where as many batches as the pool has threads run at once, each can wait for
parts that no thread is left for. Batches of which each waits for the last cannot.
"""

import math

import jax
from jax.extend.core import Var, jaxprs_in_params

NAMES = {
    "cholesky",
    "eig",
    "eigh",
    "geqp3",
    "geqrf",
    "hessenberg",
    "householder_product",
    "lu",
    "qr",
    "schur",
    "svd",
    "triangular_solve",
    "tridiagonal_solve",
}
CALLS = {"pjit", "jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint"}
TURN = "what changes from turn to turn"


def parts(eqn):
    """The programs inside; of a linear solve that of the solver, of a choice by platform that for
    CPUs."""
    platforms = eqn.params.get("branches_platforms")
    if platforms is not None:
        mine = [kinds is None or "cpu" in kinds for kinds in platforms]
        return [eqn.params["branches"][mine.index(True)].jaxpr]
    if eqn.primitive.name == "custom_linear_solve":
        return [eqn.params["jaxprs"].solve.jaxpr]
    return list(jaxprs_in_params(eqn.params))


def _factorizes(eqn):
    if eqn.primitive.name in NAMES:
        return math.prod(eqn.invars[0].aval.shape[:-2]) > 1
    return any(_factorizes(inner) for part in parts(eqn) for inner in part.eqns)


def side_by_side(jaxpr: jax.extend.core.ClosedJaxpr) -> list[tuple[str, str]]:
    """Pairs of factorizations, by name, of which neither waits for the other.

    Loops and branches with factorizations count as one. What is the same in each turn of a loop is
    reported too: compilers move it out, beside whatever stands there.
    """
    found = []

    def visit(jaxpr, known, seen, loop=False):
        """`known` is what each variable waits for; `seen` are all factorizations so far."""
        of = lambda v: known.get(v, frozenset()) if isinstance(v, Var) else frozenset()
        for eqn in jaxpr.eqns:
            waits = frozenset().union(*map(of, eqn.invars))
            name, inside = eqn.primitive.name, parts(eqn)
            if name in CALLS and len(inside) == 1:
                inner = dict(zip(inside[0].invars, map(of, eqn.invars), strict=True))
                known.update(zip(eqn.outvars, visit(inside[0], inner, seen, loop), strict=True))
                continue
            if _factorizes(eqn):
                found.extend((other[1], name) for other in seen - waits)
                if loop and TURN not in waits:
                    found.append((name, TURN))
                waits |= {(len(seen), name)}
                seen |= waits - {TURN}
                for part in inside:
                    if name in ("while", "scan"):
                        varying = _varying(eqn, part)
                        visit(part, dict.fromkeys(varying, frozenset({TURN})), set(), True)
                    else:
                        visit(part, {}, set())
            known.update(dict.fromkeys(eqn.outvars, waits))
        return [of(v) for v in jaxpr.outvars]

    visit(jaxpr.jaxpr, {}, set())
    return found


def _varying(eqn, part):
    """Arguments of a loop's body, or condition, that differ from turn to turn."""
    params = eqn.params
    if eqn.primitive.name == "scan":
        count = params["num_consts"]
        outs = [*part.outvars[: params["num_carry"]], *[None] * len(part.invars)]
    else:
        body = part is params["body_jaxpr"].jaxpr
        count = params["body_nconsts" if body else "cond_nconsts"]
        outs = part.outvars if body else [None] * len(part.invars)
    pairs = zip(part.invars[count:], outs, strict=False)
    return [v for v, out in pairs if v is not out]
