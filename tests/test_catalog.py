"""The catalogue and the files it names."""

import pathlib
import re
from types import SimpleNamespace

import pytest

from benchmarks.claims.pages import index_page
from jaxopt_ext import catalog
from jaxopt_ext.__main__ import main
from jaxopt_ext.catalog.find import describe, identifiers, markdown, verdicts

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("row", [pytest.param(r, id=f"{r.shape}-{r.name}") for r in catalog.ROWS])
def test_row(row):
    assert "Reference" in row.object.__doc__, row.public
    assert row.paper
    if row.claim is not None:
        assert (ROOT / "benchmarks" / "claims" / f"{row.claim}.py").exists(), row.claim
    assert all(reason for reason in row.opt_outs.values())
    assert (ROOT / "tests" / "conformance" / row.suite).exists()


def test_names_are_unique():
    names = [(row.shape, row.name) for row in catalog.ROWS]
    assert len(set(names)) == len(names)
    assert all(row in catalog.rows(type(row)) for row in catalog.ROWS)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["fista"], id="name"),
        pytest.param(["minimize.FISTA"], id="public"),
        pytest.param(["teboulle"], id="author"),
        pytest.param(["shrinkage-THRESHOLDING"], id="title"),
    ],
)
def test_find_by_each_kind_of_word(words):
    found = catalog.find(*words)
    assert "minimize.FISTA" in [row.public for row in found]
    assert len(found) < len(catalog.ROWS) // 4


def test_a_row_names_its_systems_in_a_tuple():
    with pytest.raises(TypeError, match="tuple"):
        catalog.SolverRow("a", "minimize.FISTA", "b", lambda: None, system="S001")  # pyright: ignore[reportArgumentType]


def test_members_with_a_loop_on_the_host_are_not_traced():
    row = catalog.SolverRow("a", "minimize.FISTA", "b", lambda: None, host="it asks a file")
    assert row.reason("vmap") == "it asks a file"
    assert not row.reason("oracle")


def test_find_by_identifier():
    wanted = [row for row in catalog.ROWS if "S101" in row.system]
    assert wanted
    assert catalog.find("s101") == wanted


def test_find_wants_every_word():
    assert catalog.find() == list(catalog.ROWS)
    assert catalog.find("teboulle")
    assert catalog.find("teboulle", "no such word") == []
    assert set(catalog.find("teboulle", "mirror")) < set(catalog.find("teboulle"))
    with pytest.raises(TypeError, match="strings"):
        catalog.find(3)  # pyright: ignore[reportArgumentType]


def test_systems_are_printed(capsys):
    assert main(["systems", "minimize.fista"]) == 0
    (row,) = catalog.find("minimize.fista")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["FISTA", "  jaxopt_ext.minimize.FISTA"]
    assert lines[2].strip() == row.object.__doc__.splitlines()[0].strip()
    assert lines[3].strip() == row.paper
    assert main(["systems"]) == 0
    printed = capsys.readouterr().out.split("\n\n")
    assert [text.splitlines()[0] for text in printed] == [row.name for row in catalog.ROWS]


def test_systems_with_unknown_words(capsys):
    assert main(["systems", "fista", "no-such-word"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no-such-word" in captured.err


def test_verdicts(tmp_path):
    page = tmp_path / "index.md"
    assert verdicts(page) == {}
    rows = {"minimize.fista": ("does not hold; ours: |x| is 1", "3"), "b.c": ("not run", "")}
    page.write_text(index_page(rows))
    known = verdicts(page)
    assert known == {"minimize/fista": "does not hold; ours: |x| is 1", "b/c": "not run"}
    (row,) = catalog.find("minimize.fista")
    assert describe(row, known).endswith("\n  claim: does not hold; ours: |x| is 1")
    assert "claim" not in describe(row, {})


def test_verdicts_of_this_checkout():
    claims = {row.claim for row in catalog.ROWS}
    assert set(verdicts()) <= claims


def test_identifiers_of_each_way_to_name_them():
    named = lambda system: SimpleNamespace(system=system)
    assert identifiers(named(None)) == identifiers(named(())) == ()
    assert identifiers(named("S001")) == ("S001",)
    assert identifiers(named(("S001", "S002"))) == ("S001", "S002")


def test_the_page_of_systems():
    """Up to date but for the verdicts, which a run of the claims may change at any time."""
    page = (ROOT / "docs" / "systems.md").read_text()
    plain = lambda text: re.sub(r"\[[^]]*\]\((claims/\w+\.md#\w+)\)( \(\w+\))?", r"\1", text)
    current = markdown(catalog.ROWS, {})
    assert plain(page) == plain(current), "run `make systems`"
    for link in re.findall(r"\]\(\.\./(\S+?)\)", page):
        assert (ROOT / link).is_file(), link
    shown = markdown(catalog.find("minimize.fista"), {"minimize/fista": "does not hold; ours: so"})
    assert "[does not hold](claims/minimize.md#fista) (ours)" in shown
    assert "https://arxiv.org/abs/1711.08013" in current
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in page.splitlines() if line[:1] == "|"]
    assert set(cells) == {7}
