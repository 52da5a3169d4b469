"""The programs of docs/from_jaxopt.md run, and JAXopt's half of each has the answer of ours.

Compiling them all takes minutes, so most are slow tests; that all the names exist is not.
"""

import ast
import re

import jax
import numpy as np
import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "from_jaxopt.md").read_text()
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```python\n# (\w+)(?:, to (\S+))?\n(.*?)^```$", flags=re.M | re.S)
DEFAULT_TOLERANCE = 1e-4

# What compiles in about half a second or less.
CHEAP = {
    "Bisection-0",
    "FixedPointIteration",
    "ScipyMinimize-1",
    "projection_non_negative",
    "loss-0",
    "tree_util",
}
COMPARED = {"FixedPointIteration", "projection_non_negative", "tree_util"}


def read_page():
    """The shared lines of each half, and by name `(theirs, ours, tolerance)` in page order."""
    opening, *rows = re.split(r"^## ", PAGE, flags=re.M)
    shared = {half: program for half, _, program in BLOCK.findall(opening)}
    pairs = {}
    for row in rows:
        name = re.search(r"`(?:(?:prox|projection|implicit_diff)\.)?(\w+)", row)[1]
        blocks = BLOCK.findall(row)
        assert blocks, row
        assert [half for half, _, _ in blocks] == ["JAXopt", "jaxopt_ext"] * (len(blocks) // 2), row
        for i in range(0, len(blocks), 2):
            key = f"{name}-{i // 2}" if len(blocks) > 2 else name
            assert key not in pairs
            tolerance = float(blocks[i + 1][1] or DEFAULT_TOLERANCE)
            pairs[key] = (blocks[i][2], blocks[i + 1][2], tolerance)
    return shared, pairs


SHARED, PAIRS = read_page()


def run(half, program):
    """What a program leaves in `answer`."""
    names = {}
    exec(SHARED["both"] + SHARED[half] + program, names)
    return names["answer"]


def cases(cheap):
    mark = lambda name: () if name in cheap else pytest.mark.slow
    return [pytest.param(name, marks=mark(name)) for name in PAIRS]


@pytest.mark.parametrize("name", cases(CHEAP))
def test_ours_runs(name):
    for leaf in jax.tree.leaves(run("jaxopt_ext", PAIRS[name][1])):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("name", cases(COMPARED))
def test_both_have_one_answer(name):
    pytest.importorskip("jaxopt")
    theirs, ours, tolerance = PAIRS[name]
    theirs, ours = (
        jax.tree.leaves(run(half, program))
        for half, program in (("JAXopt", theirs), ("jaxopt_ext", ours))
    )
    for expected, answer in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(answer, expected, rtol=tolerance, atol=tolerance)
        assert np.any(np.asarray(answer) != 0)


def table():
    """The left cells of the README's table."""
    rows = README.split("| JAXopt | here |\n|---|---|\n")[1].split("\n\n")[0]
    return [line.strip("| ").split(" | ")[0] for line in rows.splitlines()]


def test_a_program_for_each_row_of_the_table():
    assert table() == re.findall(r"^## (.*)$", PAGE, flags=re.M)


def test_every_name_in_our_programs_exists():
    names = {}
    exec(SHARED["both"] + SHARED["jaxopt_ext"], names)
    for _, program, _ in PAIRS.values():
        for node in ast.walk(ast.parse(program)):
            chain = []
            while isinstance(node, ast.Attribute):
                chain, node = [node.attr, *chain], node.value
            if not isinstance(node, ast.Name) or not chain:
                continue
            value = names.get(node.id)
            while chain and hasattr(value, "__name__") and not callable(value):  # a module
                assert hasattr(value, chain[0]), f"{value.__name__}.{chain[0]}"
                value, chain = getattr(value, chain[0]), chain[1:]


def test_every_public_name_of_jaxopt_has_a_row():
    jaxopt = pytest.importorskip("jaxopt")
    rows = " ".join(table())
    named = set(re.findall(r"\w+", rows.replace("`_", "`projection_")))
    whole = set(re.findall(r"`(\w+)\.\*`", rows)) | {"projection", "prox", "implicit_diff"}
    patterns = [name for name in named if name.endswith("_")]  # kl_projection_*
    for name, value in vars(jaxopt).items():
        if isinstance(value, type) and name != "OptStep":
            assert name in named
    for module in (
        "implicit_diff",
        "isotonic",
        "linear_solve",
        "loss",
        "objective",
        "perturbations",
    ):
        assert module in whole
    for module in ("implicit_diff", "projection", "prox"):
        for name in vars(getattr(jaxopt, module)):
            if not name.startswith("__"):
                assert name in named or name.startswith(tuple(patterns)), f"{module}.{name}"
