"""The site lists every public name, and the examples of its pages run."""

import importlib
import pkgutil
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

import jaxopt_ext
import jaxopt_ext_kernels

sys.path.insert(0, str(ROOT / "docs" / "_hooks"))
import plan

ADDING = ROOT / "docs" / "adding"
NOTEBOOKS = [f"notebooks/{path.stem}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]


def public_modules():
    """All modules of both packages that no part of their name hides."""
    for package in (jaxopt_ext, jaxopt_ext_kernels):
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not any(part.startswith("_") for part in found.name.split(".")):
                yield importlib.import_module(found.name)


def listed():
    """The objects on pages by identity, and the identifiers of the pages."""
    identifiers = {i for page in plan.reference_pages() for i in page.identifiers}
    return (
        identifiers
        | {family.module for family in plan.families()}
        | {section.file for family in plan.families() for section in family.sections}
    )


def test_every_public_name_is_on_a_page():
    identifiers = listed()
    there = {id(_object(i)) for i in identifiers}
    for module in public_modules():
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if f"{module.__name__}.{name}" not in identifiers:
                assert id(value) in there, f"{module.__name__}.{name} is on no page"


def _object(identifier):
    module, _, name = identifier.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (AttributeError, ValueError):
        return importlib.import_module(identifier)


def test_every_name_on_a_page_exists():
    for page in plan.reference_pages():
        for identifier in page.identifiers:
            assert _object(identifier) is not None, identifier
            assert re.search(rf"(::: |#){re.escape(identifier)}(\n| )", page.text + "\n")


def test_a_new_file_is_on_its_family_page(tmp_path):
    family = tmp_path / "family"
    family.mkdir()
    (family / "__init__.py").write_text(
        '"""A family.\n\n- `B`: second. `A`: third."""\n'
        "from .new_file import A, B, other\n"
        '__all__ = ["A", "B", "other"]\n'
    )
    (family / "new_file.py").write_text(
        '"""One sentence. More.\n\nText."""\ndef other(): ...\nclass A: ...\nclass B: ...\n'
    )
    found = plan._family("jaxopt_ext.family", family)
    (section,) = found.sections
    assert section.title == "One sentence"
    names = [identifier.rpartition(".")[2] for identifier in section.identifiers]
    assert names == ["B", "A", "other"]  # as the map has them, then as the file does


@pytest.mark.slow
def test_the_site_hookss_and_has_every_object(tmp_path, monkeypatch):
    """Strictly, but for the notebooks, which are not run here."""
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("nbconvert")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from nbconvert.preprocessors import ExecutePreprocessor

    monkeypatch.setattr(ExecutePreprocessor, "preprocess", lambda self, book, *args: book)
    monkeypatch.chdir(ROOT)
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    build(config)
    for page in plan.reference_pages():
        html = (tmp_path / page.path).with_suffix(".html").read_text()
        for identifier in page.identifiers:
            assert f'id="{identifier}"' in html, identifier
        assert "doc-module" not in html, page.path  # a file in place of the object of its name
        assert not re.search(r"<p>[^<]*\\$\\$", html), (
            page.path
        )  # a formula that was not seen as one
    for name in ("index", "from_jaxopt", "adding/solver", *NOTEBOOKS):
        assert (tmp_path / f"{name}.html").exists()


def test_code_words_become_references():
    link = lambda text, **options: plan.link(text, "jaxopt_ext.minimize", **options)
    assert link("see `FISTA`.") == "see [`FISTA`][jaxopt_ext.minimize.FISTA]."
    assert "[jaxopt_ext.prox.L1]" in link("`prox.L1`")
    assert "[jaxopt_ext.core.solve]" in link("`solve`", everything=True)
    for text in ("`solve`", "`nothing.here`", "[`FISTA`](x.md)", "```python\n`FISTA`\n```", "`x`"):
        assert link(text) == text


def test_every_shape_of_member_is_in_the_table():
    table = (ADDING / "index.md").read_text()
    for path in ADDING.glob("*.md"):
        assert path.stem == "index" or f"({path.name})" in table, path


def run(shape):
    """What the programs of a page leave behind."""
    names = {"__name__": "example"}
    programs = re.findall(
        r"^```python\n(.*?)^```$", (ADDING / f"{shape}.md").read_text(), re.M | re.S
    )
    for program in programs:
        exec(program, names)
    return names


def check_solver(names):
    np.testing.assert_allclose(names["x"], [1.0, 0.1], atol=1e-6)
    np.testing.assert_allclose(names["jacobian"], np.diag([1.0, 0.1]), atol=1e-6)


def check_optimizer(names):
    assert np.max(np.abs(names["params"]["w"])) < 0.3
    assert names["row"].state_bytes(names["params"]) == sum(
        x.nbytes for x in jax.tree.leaves(names["state"]) if x.ndim
    )


def check_network(names):
    np.testing.assert_allclose(names["result"].params, 3.5, atol=0.2)


def check_sampler(names):
    value = np.asarray(names["found"].value)
    assert names["found"].evaluations == 2 * 20
    assert 0.2 < np.std(np.abs(value[:, 0])) < 0.4
    np.testing.assert_allclose(np.mean(np.abs(value), axis=0)[0], 2, atol=0.15)


def check_estimator(names):
    assert names["path"].shape == (5, 3)
    np.testing.assert_allclose(names["path"][0], [1, 0, -1], atol=0.01)
    np.testing.assert_allclose(names["path"][-1], 0, atol=1e-6)
    assert names["slope"] < 0


def check_function(names):
    np.testing.assert_allclose(names["found"], names["wanted"], rtol=1e-5)


def check_kernel(names):
    for body in names["bodies"]:
        np.testing.assert_allclose(body, names["wanted"], rtol=1e-5, atol=1e-6)
    assert jnp.size(names["wanted"])


def check_aggregator(names):
    np.testing.assert_allclose(names["result"], [1, 2], atol=0.1)


def check_learner(names):
    np.testing.assert_allclose(names["result"], [-0.3, -0.4], rtol=1e-6)


def check_training(names):
    np.testing.assert_allclose(names["fit"].params, [1, -2], atol=0.01)
    assert names["fit"].metrics["loss"].shape == (200,)


CHECKS = {
    "aggregator": check_aggregator,
    "estimator": check_estimator,
    "function": check_function,
    "kernel": check_kernel,
    "learner": check_learner,
    "network": check_network,
    "optimizer": check_optimizer,
    "sampler": check_sampler,
    "solver": check_solver,
    "training": check_training,
}


@pytest.mark.parametrize("shape", CHECKS)
def test_examples_run(shape):
    names = run(shape)
    CHECKS[shape](names)
    assert names["row"].shape == shape


def test_every_page_has_its_check():
    assert {path.stem for path in ADDING.glob("*.md")} - {"index"} == set(CHECKS)
