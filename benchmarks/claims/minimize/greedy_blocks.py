"""Greedy blocks beside random and fixed ones, on least squares and on a lattice."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.minimize import (
    GS,
    GSD,
    GSDH,
    GSL,
    GSQIHT,
    Cyclic,
    ForestBlocks,
    ForestUpdate,
    GivenBlocks,
    GradientUpdate,
    GraphQuadratic,
    GreedyBlockCoordinateDescent,
    MatrixUpdate,
    Random,
    Shuffled,
    VariableBlocks,
    forest_blocks,
    red_black_blocks,
)

CLAIM = (
    "On least squares with columns of different scale the objective gap after 300 matrix updates "
    "of 5 coordinates is less by the rule GSDH than by GS, and less by GS than by random blocks; "
    "on label propagation over a 20 x 20 lattice, after 60 exact updates, greedy forests leave at "
    "most 0.7 times what random forests leave, and those at most 0.57 times what red-black blocks "
    "leave: each as a mean over 5 seeds."
)
SETTINGS = (
    "Nothing is tuned: the rules and updates have no constants but those of the problem. Seeds 10 "
    "to 14; the first run was on 0 and 1."
)
N, D, SIZE, STEPS, SIDE, LABELS, ROUNDS = 200, 100, 5, 300, 20, 20, 60
RULES = {
    "GSDH": GSDH(),
    "GSD": GSD(),
    "GS": GS(),
    "IHT": GSQIHT(),
    "cyclic": Cyclic(),
    "random": Shuffled(),
}
FORESTS = {"GS": GS(), "GSL": GSL(), "GSD": GSD(), "random": Random()}


def _least_squares(seed):
    """A common offset correlates the columns."""
    rng = np.random.default_rng(seed)
    X = (rng.normal(size=(N, D)) + 1) * 10 ** rng.uniform(-1, 1, D)
    return X, X @ rng.normal(size=D) + rng.normal(size=N)


def _solver(rule, update):
    return GreedyBlockCoordinateDescent(
        VariableBlocks(SIZE), rule, update, tol=0.0, max_steps=STEPS
    )


@jax.jit
def _gaps(X, y):
    """Of all rules and both updates."""
    loss = jxt.objectives.SquaredLoss(X, y)
    gap = lambda w: N * (loss(w) - loss(jnp.linalg.lstsq(X, y)[0]))
    gaps = {}
    for name, rule in RULES.items():
        for update in (MatrixUpdate(), GradientUpdate()):
            solution = jxt.solve(jxt.Smooth(loss), _solver(rule, update), jnp.zeros(D))
            gaps[f"{name}, {type(update).__name__[:-6].lower()}"] = gap(solution.value)
    return gaps


def _lattice(seed):
    """Unlabelled nodes are the unknowns; labels are signs."""
    rng = np.random.default_rng(seed)
    graph = nx.convert_node_labels_to_integers(nx.grid_2d_graph(SIDE, SIDE))
    for _, _, data in graph.edges(data=True):
        data["weight"] = 10 ** rng.uniform(-2, 2)
    laplacian = nx.laplacian_matrix(graph).toarray()
    known = rng.permutation(SIDE**2) < LABELS
    free = np.flatnonzero(~known)
    labels = rng.choice([-1.0, 1.0], known.sum())
    A = laplacian[np.ix_(free, free)]
    return A, -laplacian[np.ix_(free, np.flatnonzero(known))] @ labels


def _left(seed):
    A, b = _lattice(seed)
    fun, best = GraphQuadratic.from_matrix(A, b), np.linalg.solve(A, b)
    plans: dict[str, tuple] = {name: (ForestBlocks(), rule) for name, rule in FORESTS.items()}
    plans["forest partition"] = (GivenBlocks(forest_blocks(fun)), Cyclic())
    plans["red-black"] = (GivenBlocks(red_black_blocks(fun)), Cyclic())
    left = {}
    for name, (partition, rule) in plans.items():
        solver = GreedyBlockCoordinateDescent(
            partition, rule, ForestUpdate(), tol=0.0, max_steps=ROUNDS
        )
        value = jxt.solve(jxt.Smooth(fun), solver, jnp.zeros(b.size)).value
        left[f"lattice, {name}"] = float(fun(value) - fun(jnp.asarray(best)))
    return left


def run() -> Outcome:
    with jax.enable_x64(True):
        return _run(range(10, 15))


def _run(seeds) -> Outcome:
    table = []
    for seed in seeds:
        gaps = {name: float(gap) for name, gap in _gaps(*_least_squares(seed)).items()}
        table.append({"seed": seed} | gaps | _left(seed))
    mean = {
        name: float(np.mean([row[name] for row in table])) for name in table[0] if name != "seed"
    }
    table.append({"seed": "mean"} | mean)
    squares = mean["GSDH, matrix"] < mean["GS, matrix"] < mean["random, matrix"]
    drawn, colours = mean["lattice, random"], mean["lattice, red-black"]
    greedy = max(mean[f"lattice, {name}"] for name in ("GS", "GSL", "GSD"))
    lattice = greedy <= 0.7 * drawn and drawn <= 0.4 / 0.7 * colours
    each = [
        sum(row["GSDH, matrix"] < row["GS, matrix"] for row in table[:-1]),
        sum(row["GS, matrix"] < row["random, matrix"] for row in table[:-1]),
        sum(row["lattice, GS"] <= 0.7 * row["lattice, random"] for row in table[:-1]),
    ]
    note = (
        "objective gaps; random blocks are drawn anew each step; seeds on which GSDH < GS, GS < "
        f"random, greedy <= 0.7 random forest: {each[0]}, {each[1]}, {each[2]} of 5. With gradient "
        "updates GSD, whose bounds then need not cover a block, is the best rule"
    )
    why = (
        "paper: large columns dominate the gradients that GS looks at, while matrix updates take "
        "scales out, so random blocks are ahead of it on 3 of 5 seeds; all the rest holds"
    )
    return Outcome(table, squares and lattice, note, why)
