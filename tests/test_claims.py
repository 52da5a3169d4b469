"""The claims' files, and what runs them and writes them up; no claim is run."""

import ast
import json
import sys

import pytest

from benchmarks.claims import Outcome, __main__ as runner, files, pages

NAMES = files.names()


@pytest.mark.parametrize("name", NAMES)
def test_a_claim_file_has_its_parts(name):
    said = files.constants(name)
    assert said["CLAIM"].endswith(".")
    assert said["SETTINGS"].endswith(".")
    for text in (said["CLAIM"], said["SETTINGS"]):
        assert "\n" not in text
        assert "  " not in text
    tree = ast.parse(files.source(name).read_text())
    (run,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "run"]
    assert not run.args.args
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    outcomes = [n for n in calls if getattr(n.func, "id", "") == "Outcome"]
    assert len(outcomes) == 1
    for why in (k.value for k in outcomes[0].keywords if k.arg == "why"):
        Outcome([], True, why=ast.literal_eval(why))


def test_what_an_outcome_says_if_it_does_not_hold():
    assert Outcome([], False, why="scale: too small").why
    assert not Outcome([], False).why
    for why in ("too small", "scale:", "scale: ", "bad: too small", "scale: too\nsmall"):
        with pytest.raises(ValueError, match="why"):
            Outcome([], False, why=why)


def test_a_stamp_covers_the_helpers():
    path = files.source("optimizers.adabelief")
    assert {p.name for p in files.helpers(path)} == {"_digits.py", "_seeds.py", "_toys.py"}
    assert {p.name for p in files.helpers(files.source("diffusion.heun"))} == {"ddim.py"}
    assert {p.name for p in files.helpers(files.source("kernels.spmm"))} == {"timing.py"}
    assert files.helpers(files.source("minimize.fista")) == set()
    assert len({files.stamp(name) for name in NAMES}) == len(NAMES)


def test_a_stamp_changes_with_what_is_imported(tmp_path, monkeypatch):
    family = tmp_path / "benchmarks" / "claims" / "a"
    family.mkdir(parents=True)
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.setattr(files, "HERE", family.parent)
    (family / "one.py").write_text("from . import _two as two\n")
    (family / "_two.py").write_text("from ._three import x\nfrom benchmarks.claims.a import one\n")
    for name in ("_three.py", "_four.py"):
        (family / name).write_text("x = 1\n")
    first = files.stamp("a.one")
    (family / "_four.py").write_text("x = 2\n")
    assert files.stamp("a.one") == first
    for name in ("one.py", "_two.py", "_three.py"):
        with (family / name).open("a") as file:
            file.write("y = 1\n")
        assert files.stamp("a.one") != first, name
        first = files.stamp("a.one")


RESULT = {
    "claim": "It is fast.",
    "settings": "None.",
    "holds": True,
    "why": "",
    "table": [{"seed": 0, "ratio": 0.5}],
    "note": "",
    "seconds": 3.2,
    "stamp": "a",
    "library": "b",
}


def test_pages_keep_what_has_no_result(tmp_path):
    names = ["minimize.fista", "minimize.frank_wolfe", "splitting.admm"]
    failed = {**RESULT, "holds": False, "why": "ours: |x| is 1"}
    (tmp_path / "gone.md").write_text("# Claims: gone\n")
    pages.write({names[0]: RESULT, names[2]: failed}, names, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.md", "minimize.md", "splitting.md"]
    assert pages.rows_of(tmp_path / "index.md") == {
        names[0]: ("holds", "3"),
        names[1]: ("not run", ""),
        names[2]: ("does not hold; ours: |x| is 1", "3"),
    }
    index = (tmp_path / "index.md").read_text()
    assert "1 of 2 hold" in index
    assert "ours: \\|x\\| is 1" in index  # a bar would end the cell
    sections = pages.sections_of(tmp_path / "minimize.md")
    assert list(sections) == ["fista", "frank_wolfe"]  # the names alone: verdicts move no anchor
    assert "**Holds.**" in sections["fista"]
    assert "**Not run.**" in sections["frank_wolfe"]
    before = {page: page.read_text() for page in tmp_path.iterdir()}
    pages.write({}, names, tmp_path)
    assert {page: page.read_text() for page in tmp_path.iterdir()} == before
    pages.write({names[0]: {"crashed": True, "claim": "It is fast."}}, names, tmp_path)
    assert "**Crashed.**" in pages.sections_of(tmp_path / "minimize.md")["fista"]
    pages.write({names[0]: {**RESULT, "holds": False}}, names, tmp_path)
    assert pages.rows_of(tmp_path / "index.md")[names[0]][0] == "does not hold; not explained yet"


def test_the_pages_of_this_checkout():
    rows = pages.rows_of(pages.PAGES / "index.md")
    assert list(rows) == NAMES
    assert not [name for name, (text, _) in rows.items() if "not explained" in text]
    for name in NAMES:
        family, _, short = name.partition(".")
        assert short in pages.sections_of(pages.PAGES / f"{family}.md")


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A runner whose claims end at once: `b.crash` crashes, and the others hold."""
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(pages, "PAGES", tmp_path)
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.setattr(files, "names", lambda: ["a.one", "a.two", "b.crash"])
    monkeypatch.setattr(files, "constants", lambda name: {"CLAIM": "It is fast."})
    monkeypatch.setattr(pages, "write", lambda results, names: None)
    stamps, library, ran = {}, ["b"], []
    monkeypatch.setattr(files, "stamp", lambda name: stamps.get(name, "a"))
    monkeypatch.setattr(files, "library", lambda: library[0])

    def one(self, name):
        ran.append(name)
        crash = {"crashed": True, "claim": "", "stamp": "a"}
        files.write_result(name, crash if name == "b.crash" else {**RESULT, "library": library[0]})
        return files.read_result(name), "a traceback"

    monkeypatch.setattr(runner._Pool, "_one", one)

    def run(*arguments):
        ran.clear()
        code = runner.main([*arguments])
        return code, sorted(ran)

    return run, stamps, library


def test_what_is_run_again(bench, capsys):
    run, stamps, library = bench
    assert run("--jobs", "1") == (1, ["a.one", "a.two", "b.crash"])
    assert "a traceback" in capsys.readouterr().out
    assert run("a.") == (0, [])
    assert run() == (1, ["b.crash"])
    stamps["a.two"] = "other"
    assert run("a.") == (0, ["a.two"])
    del stamps["a.two"]
    library[0] = "c"
    assert run("a.") == (0, [])
    assert "2 of them of older library sources" in capsys.readouterr().out
    assert run("a.", "--stale") == (0, ["a.one", "a.two"])
    assert run("a.", "--stale") == (0, [])
    assert run("one", "--fresh") == (0, ["a.one"])
    with pytest.raises(SystemExit, match="no-such"):
        run("no-such")


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Processes that are shell scripts: `slow` never ends, `crash` crashes, others hold."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\n"
        'echo "$3" >> order\n'
        'case "$3" in *slow) exec sleep 600;; *crash) echo boom >&2; exit 3;; esac\n'
        f"mkdir -p results/a && echo '{json.dumps(RESULT)}' > results/a/${{3#a.}}.json\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.setattr(files, "stamp", lambda name: "a")
    monkeypatch.setattr(files, "constants", lambda name: {"ALONE": name == "a.clock"})
    return tmp_path / "order"


def test_a_crash_stops_no_other(fake):
    names = ["a.clock", "a.one", "a.crash", "a.two"]
    results = {name: (result, said) for name, result, said in runner._Pool(2, 60).run(names)}
    assert sorted(results) == sorted(names)
    assert all(results[name][0] == RESULT for name in names if name != "a.crash")
    assert results["a.crash"][0]["crashed"]
    assert "boom" in results["a.crash"][1]
    assert fake.read_text().split()[-1] == "a.clock"


def test_what_takes_too_long_is_stopped(fake):
    ((_, result, said),) = runner._Pool(1, 0.1).run(["a.slow"])
    assert result["crashed"]
    assert "stopped after" in said


def test_an_interrupt_ends_the_processes_and_keeps_results(fake):
    pool = runner._Pool(1, 600)
    runs = pool.run(["a.one", "a.slow", "a.two"])
    assert next(runs)[0] == "a.one"
    runs.close()  # returns only when all have ended
    assert not pool.running
    assert files.read_result("a.one") == RESULT
    assert files.read_result("a.slow") is files.read_result("a.two") is None


def test_results_are_whole_files(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    assert files.read_result("a.one") is None
    files.write_result("a.one", RESULT)
    assert files.read_result("a.one") == RESULT
    with pytest.raises(TypeError):
        files.write_result("a.one", {"what": object()})
    assert files.read_result("a.one") == RESULT
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["one.json"]
    assert json.loads((tmp_path / "a" / "one.json").read_text()) == RESULT
