"""Every aggregator against every attack: `python -m benchmarks.robustness [--reduced]`.

Sixteen workers with parts of the digits, of which $f$ are bad, from none to as many as the rule
tolerates. A full run writes `docs/robustness.md` and `docs/robustness.png`; what it
has done is kept in `.cache/robustness`, and is not done again. The reduced one prints three bad
workers, for a few rounds.
"""

import argparse
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims.distributed import _workers as workers
from jaxopt_ext import distributed, plots
from jaxopt_ext.distributed import attacks, robust
from jaxopt_ext.distributed.robust import AbstractAggregator

WORKERS, BATCH, STEP, BETA, CONCENTRATION = 16, 16, 0.5, 0.9, 5.0
ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE, PAGE, PICTURE = (
    ROOT / ".cache" / "robustness",
    ROOT / "docs" / "robustness.md",
    ROOT / "docs" / "robustness.png",
)

RULES: dict[str, Callable[[int, int], AbstractAggregator]] = {
    "mean": lambda m, f: robust.Mean(),
    "median": lambda m, f: robust.CoordinateMedian(),
    "trimmed mean": lambda m, f: robust.TrimmedMean(f),
    "Krum": lambda m, f: robust.Krum(f),
    "multi-Krum": lambda m, f: robust.Krum(f, max(m - f - 2, 1)),
    "geometric median": lambda m, f: robust.GeometricMedian(),
    "centered clipping": lambda m, f: robust.CenteredClip(0.3, 3),
    "NNA": lambda m, f: robust.NNA(f),
    "NNM, median": lambda m, f: robust.NNM(f, robust.CoordinateMedian()),
    "bucketing, trimmed": lambda m, f: robust.Bucketing(2, robust.TrimmedMean(f)),
    "flag": lambda m, f: robust.Flag(),
}
"""All but `MinimumVariance`, which looks at all subsets. NNA needs a node's own row: there it is
MoNNA, on parameters."""

ATTACKS = (
    "none",
    "labels flipped",
    "sign flips",
    "inner products, 0.1",
    "inner products, reversing",
    "ALIE",
    "mimicry",
    "normal noise",
    "NaN",
    "line search, mean",
    "line search, deviation",
)
NOT_SENT = 2
"""How many of them, the first ones, are no messages."""


def feasible(name: str, f: int) -> bool:
    """Whether the rule takes so many bad rows."""
    if name in ("mean", "flag"):
        return 2 * f < WORKERS
    rule = RULES[name](WORKERS, f)
    try:
        rule.check(WORKERS)
    except ValueError:
        return False
    return f <= rule.tolerates(WORKERS)


def messages(name: str, f: int, trials: int) -> tuple[attacks.AbstractAttack, ...]:
    """What bad workers send, in the order of `ATTACKS`, without the line searches if no trials."""
    rule = RULES[name](WORKERS, f)
    seen = distributed.at_honest(rule, WORKERS - f) if name == "NNA" else rule
    good = WORKERS - f
    sent = (
        attacks.SignFlip(f),
        attacks.InnerProduct(f, 0.1),
        attacks.InnerProduct(f, 1.5 * good / f),
        attacks.ALIE(f),
        attacks.Mimic(f, warmup=20),
        attacks.Gaussian(f, 1.0),
        attacks.NonFinite(f),
    )
    if not trials:
        return sent
    directions = attacks.against_mean, attacks.against_deviation
    return sent + tuple(attacks.LineSearch(f, to, seen, trials) for to in directions)


def accuracies(name: str, f: int, rounds: int, seeds: range, trials: int) -> dict[str, float]:
    """Test accuracy under each attack, mean over the seeds and, of NNA, over the good workers."""
    rule, bad = RULES[name](WORKERS, f), tuple(range(f))
    sent = messages(name, f, trials) if f else ()
    names = ATTACKS[: NOT_SENT + len(sent)] if f else ATTACKS[:1]
    clients = distributed.Network.clients(WORKERS)
    network = distributed.Network.simulated(distributed.complete(WORKERS))

    def one(case, attacked=True):
        which, part, key = case
        options: dict[str, Any] = {}
        if f and attacked:
            # The first two are honest messages, those past the last one.
            number = jnp.where(which < NOT_SENT, len(sent), which - NOT_SENT)
            options = {"attack": workers.OneOf(sent, number), "faulty": bad}
        flipped = (jnp.arange(WORKERS) < f) & (which == 1)
        if name == "NNA":
            algorithm = distributed.MoNNA(workers.loss, STEP, f, BETA, missing=0, **options)
            params, _ = workers.train(algorithm, network, part, key, rounds, BATCH, flipped)
        else:
            algorithm = distributed.RobustSGD(workers.loss, STEP, rule, BETA, **options)
            params, _ = workers.train(algorithm, clients, part, key, rounds, BATCH, flipped)
        return jnp.mean(jax.vmap(workers.accuracy)(jax.tree.map(lambda a: a[f:], params)))

    def run(which, **options):
        cases = [(w, seed) for w in which for seed in seeds]
        numbers, seed = map(np.array, zip(*cases, strict=True))
        parts = np.stack([workers.parts(WORKERS, s, CONCENTRATION) for s in seed])
        keys = jax.vmap(jax.random.key)(jnp.asarray(seed))
        # One run after the other: side by side each would compute all the attacks.
        each = lambda cases: jax.lax.map(lambda case: one(case, **options), cases)
        found = jax.jit(each)((jnp.asarray(numbers), jnp.asarray(parts), keys))
        return np.asarray(found, float).reshape(len(which), -1).mean(axis=1).tolist()

    numbers = range(len(names))
    if name == "NNA" and f:
        # MoNNA's bad nodes have no honest parameters to send while they are under an attack.
        found = run(numbers[:NOT_SENT], attacked=False) + run(numbers[NOT_SENT:])
    else:
        found = run(numbers)
    return dict(zip(names, found, strict=True))


def kept(name: str, f: int, *settings: Any) -> dict[str, float]:
    """The same, from the last run if there was one with these settings and this file."""
    text = "".join(
        path.read_text() for path in (pathlib.Path(__file__), pathlib.Path(workers.__file__))
    )
    stamp = hashlib.sha256(f"{text} {settings}".encode()).hexdigest()[:16]
    file = CACHE / stamp / f"{name} {f}.json"
    if not file.exists():
        found = accuracies(name, f, *settings)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    return json.loads(file.read_text())


Results = dict[tuple[str, int], dict[str, float]]


def matrix(results: Results, f: int) -> np.ndarray:
    """Rules against attacks; NaN where a rule does not take so many bad rows."""
    rows = [[results.get((name, f), {}).get(a, np.nan) for a in ATTACKS] for name in RULES]
    return np.array(rows)


def page(results: Results, settings: str) -> str:
    """The results in Markdown, a table for each number of bad workers, the worst in bold."""
    parts = [
        "# Robustness",
        f"Test accuracy in percent of softmax regression on the digits, {WORKERS} workers of which "
        f"$f$ are bad. {settings} `make robustness` writes this page.",
        "![Rules against attacks](robustness.png)",
        "The least of a row is in bold. A rule is missing where it does not take so many bad rows; "
        "the mean and the flag aggregator promise nothing, and are shown for all. NNA is MoNNA, on "
        "parameters. "
        "`MinimumVariance` looks at all subsets and is left out.",
    ]
    for f in sorted({f for _, f in results}):
        columns = ATTACKS if f else ATTACKS[:1]
        lines = ["| rule | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for name in RULES:
            row = results.get((name, f))
            if row is None:
                continue
            least = min(row.values())
            cells = [f"{100 * row[a]:.1f}" for a in columns]
            if f:
                pairs = zip(cells, columns, strict=True)
                cells = [f"**{c}**" if row[a] == least else c for c, a in pairs]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        parts += [f"## f = {f}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def picture(results: Results, shown: tuple[int, ...]) -> Any:
    """Heat maps of rules against attacks."""
    import matplotlib.pyplot as plt

    size = (11, 5.2 * len(shown))
    figure, axes = plt.subplots(len(shown), figsize=size, layout="constrained", squeeze=False)
    for axis, f in zip(axes[:, 0], shown, strict=True):
        percent = 100 * matrix(results, f)
        plots.heatmap(percent, rows=list(RULES), columns=list(ATTACKS), format=".0f", ax=axis)
        for image in axis.images:
            image.set_clim(0, 100)
        axis.set_title(f"test accuracy in percent, {f} of {WORKERS} workers bad")
        axis.tick_params(axis="x", rotation=30)
        plt.setp(axis.get_xticklabels(), ha="right")
    return figure


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and if not reduced write the page."""
    parser = argparse.ArgumentParser(description="Every aggregator against every attack.")
    parser.add_argument("--reduced", action="store_true", help="three bad workers, a minute")
    reduced = parser.parse_args(arguments).reduced
    rounds, seeds, trials = (40, range(1), 0) if reduced else (100, range(2), 8)
    results: Results = {}
    for f in [3] if reduced else range((WORKERS + 1) // 2):
        for name in RULES:
            if feasible(name, f):
                results[name, f] = kept(name, f, rounds, seeds, trials)
                numbers = " ".join(f"{100 * a:5.1f}" for a in results[name, f].values())
                print(f"{f} {name:20} {numbers}", flush=True)
    if not reduced:
        settings = (
            f"Classes of the workers' images from a Dirichlet distribution of {CONCENTRATION:g}, "
            f"batches of {BATCH}, momentum {BETA:g}, step {STEP:g} for all, {rounds} rounds, mean "
            f"of {len(seeds)} seeds; line searches of {trials} trials."
        )
        PAGE.write_text(page(results, settings))
        picture(results, (3, 6)).savefig(PICTURE, dpi=110)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
