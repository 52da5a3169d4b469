"""Difference-of-submodular minimization by DCA beside the methods it generalizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer

from benchmarks.claims import Outcome
from jaxopt_ext.minimize import submodular

CLAIM = (
    "On feature selection, lambda |S| less the mutual information of features and label, of the "
    "first 8 features in 3 levels over samples of 100 rows of the breast cancer data, DCA and CDCA "
    "are never above the best of ModMod, SubSup, SupSub, greedy selection and the minimum-norm "
    "point; and on 8 random differences of 12 elements their mean gap to the best of all sets is "
    "below that of each of these."
)
SETTINGS = (
    "rho of DCA is the best of 0.01, 0.1, 1, 10 by the mean value on random seeds 100 to 107, the "
    "same for CDCA, and 0.1, the default, on features; baselines have no settings. Reported: "
    "random seeds 0 to 7, samples 0 and 1, lambda 0.005 and 0.02."
)
RHOS = (0.01, 0.1, 1.0, 10.0)
PENALTIES = (0.005, 0.02)
BASELINES = {
    "ModMod": submodular.ModMod(),
    "SubSup": submodular.SubSup(),
    "SupSub": submodular.SupSub(),
    "greedy": submodular.GreedySet(),
    "minimum norm": lambda problem, key: submodular.MinimumNormPoint(50).minimize(problem),
}
OURS = {"DCA": submodular.SubmodularDCA(), "CDCA": submodular.SubmodularCDCA()}


def _random(seed, n=12):
    rng = np.random.default_rng(seed)

    def cover(m, scale):
        units = jnp.asarray(scale * rng.random(m), jnp.float32)
        return submodular.Coverage(rng.random((n, m)) < 0.25, units)

    parts = [jnp.asarray(rng.random(shape), jnp.float32) for shape in ((n, 3), 3)]
    concave = submodular.ConcaveOfModular(*parts)
    both = submodular.WeightedSum((concave, cover(15, 0.5)))
    return submodular.DifferenceOfSubmodular(both, cover(20, 0.8))


@functools.cache
def _levels():
    """The first features cut at their thirds, and labels."""
    table, labels = load_breast_cancer(return_X_y=True)
    table = table[:, :8]
    cuts = np.quantile(table, [1 / 3, 2 / 3], axis=0)
    return np.sum(table[:, :, None] > cuts.T[None], axis=2).astype(np.int32), labels


def _features(seed, penalty):
    """$\\lambda |S| - I(X_S; Y) = (\\lambda |S| + H(X_S | Y)) - H(X_S)$."""
    table, labels = _levels()
    rows = np.random.default_rng(seed).permutation(len(labels))[:100]
    cost = submodular.Modular(jnp.full(table.shape[1], penalty, jnp.float32))
    given = submodular.JointEntropy(table[rows], 3, labels[rows].astype(np.int32))
    positive = submodular.WeightedSum((cost, given))
    return submodular.DifferenceOfSubmodular(positive, submodular.JointEntropy(table[rows], 3))


def _stacked(problems):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)


def _compiled(fun, *args):
    """In a hurry: compiling is most of the time."""
    return jax.jit(fun).lower(*args).compile({"xla_backend_optimization_level": 0})


def _solved(solver, problems):
    """Values of a batch."""
    key = jax.random.key(0)
    run = jax.vmap(lambda p: solver(p, key).value)
    return np.asarray(_compiled(run, problems)(problems))


def _tuned(tuning):
    """The rho of DCA with the least mean value; it is traced, so that one program serves all."""
    key = jax.random.key(0)

    def run(rho, problems):
        return jax.vmap(lambda p: submodular.SubmodularDCA(rho)(p, key).value)(problems)

    run = _compiled(run, jnp.float32(0), tuning)
    means = [float(np.mean(run(jnp.float32(rho), tuning))) for rho in RHOS]
    return RHOS[int(np.argmin(means))]


def _least(problems):
    """The best of all sets of each."""
    n = jax.tree.leaves(jax.vmap(lambda p: jnp.zeros(p.size))(problems))[0].shape[1]
    sets = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1
    found = jax.vmap(lambda p, s: jnp.min(jax.vmap(p.value)(s)), (0, None))
    return np.asarray(jax.jit(found)(problems, jnp.asarray(sets)))


def _table(name, rho, problems):
    rows, values, least = [], {}, _least(problems)
    for method, solver in OURS.items():
        values[method] = _solved(dataclasses.replace(solver, rho=rho), problems)
        rows.append({"problems": name, "method": method, "rho": rho})
    for method, solver in BASELINES.items():
        values[method] = _solved(solver, problems)
        rows.append({"problems": name, "method": method})
    best = np.min([values[m] for m in BASELINES], axis=0)
    for row in rows:
        found = values[row["method"]]
        row["mean gap"] = float(np.mean(found - least))
        row["best of all"] = int(np.sum(found <= least + 1e-5))
        row["above the baselines"] = int(np.sum(found > best + 1e-5))
    return rows


def run() -> Outcome:
    random = _stacked([_random(seed) for seed in range(8)])
    tuning = _stacked([_random(seed) for seed in range(100, 108)])
    drawn = _table("random", _tuned(tuning), random)
    features = _stacked([_features(seed, p) for seed in range(2) for p in PENALTIES])
    chosen = _table("features", 0.1, features)
    count = len(OURS)
    lowest = min(row["mean gap"] for row in drawn[count:])
    parts = {
        "features": all(row["above the baselines"] == 0 for row in chosen[:count]),
        "random": all(row["mean gap"] < lowest for row in drawn[:count]),
    }
    failed = [name for name, holds in parts.items() if not holds]
    note = "Gaps are to the best of all sets. Parts that do not hold: "
    gaps = ", ".join(f"{row['method']} {row['mean gap']:.2g}" for row in drawn[:count])
    why = (
        "ours: the random functions are our choice, and there another method is as near to the "
        f"best sets: mean gaps {gaps}, least of the others {lowest:.2g}"
    )
    why = why if failed == ["random"] else ""
    return Outcome([*drawn, *chosen], not failed, note + (", ".join(failed) or "none"), why)
