"""What is shipped: the wheel holds both packages, and they import what it declares, no more."""

import ast
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import networkx as nx
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = {"jaxopt_ext": ROOT / "jaxopt_ext", "jaxopt_ext_kernels": ROOT / "kernels"}
DEMO_ONLY = {"sklearn", "matplotlib"}
PLOTS_ONLY = {"matplotlib"}


def third_party(path):
    """Top-level modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def test_imports_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[>=<\[ ]", need)[0] for need in project["dependencies"]}
    for folder in PACKAGES.values():
        for path in folder.rglob("*.py"):
            needed = set(third_party(path)) - set(sys.stdlib_module_names) - set(PACKAGES)
            extra = DEMO_ONLY if path.name == "_demo.py" else set()
            extra = {"sklearn"} if path.name == "beds.py" else extra  # in one function of it
            extra = PLOTS_ONLY if path.parent.name == "plots" else extra
            extra = {"cvxpy"} if path.name == "dadao.py" else extra  # in one function of it
            assert needed <= declared | extra, (path, needed - declared)


def test_kernels_know_nothing_of_solvers():
    for path in PACKAGES["jaxopt_ext_kernels"].rglob("*.py"):
        assert "jaxopt_ext" not in set(third_party(path)), path


def _modules():
    """Each module by its dotted name, with the modules of ours that it imports anywhere."""
    folder = PACKAGES["jaxopt_ext"]
    dotted = {}
    for path in folder.rglob("*.py"):
        parts = ("jaxopt_ext", *path.relative_to(folder).with_suffix("").parts)
        dotted[".".join(parts).removesuffix(".__init__")] = path
    for name, path in dotted.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*above, *filter(None, [node.module])])
                for alias in node.names:
                    inner = f"{origin}.{alias.name}"
                    found.add(inner if inner in dotted else origin)
        yield name, found - {name}


def test_imports_make_no_circle():
    # The root loads families on first use, and a package stands for what it shows of its modules.
    edges = [
        (name, other) for name, others in _modules() if name != "jaxopt_ext" for other in others
    ]
    inside = [(a, b) for a, b in edges if not (a == b.rpartition(".")[0] and a.count(".") <= 2)]
    circles = list(nx.simple_cycles(nx.DiGraph(inside)))
    assert not circles


def test_families_import_downwards():
    family = lambda name: [*name.split("."), ""][1]
    edges = {
        (family(a), family(b)) for a, others in _modules() for b in others if a != "jaxopt_ext"
    }
    edges = {(a, b) for a, b in edges if a != b and a not in ("", "__main__")}
    assert ("minimize", "core") in edges
    assert not [b for a, b in edges if a == "core"]
    assert nx.is_directed_acyclic_graph(nx.DiGraph(edges)), edges


def test_no_import_starts_a_backend():
    """Programs on several hosts must be able to import before `jax.distributed.initialize`."""
    code = (
        "import importlib, pkgutil, jaxopt_ext, jax._src.xla_bridge as bridge\n"
        "for module in pkgutil.walk_packages(jaxopt_ext.__path__, 'jaxopt_ext.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "        assert not bridge.backends_are_initialized(), module.name"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
def test_the_wheel_imports_away_from_the_checkout(tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import jaxopt_ext, jaxopt_ext_kernels\n"
        "[getattr(jaxopt_ext, name) for name in jaxopt_ext.__all__]\n"
        "[row.object for row in jaxopt_ext.catalog.ROWS]\n"
        "print(jaxopt_ext.__file__, jaxopt_ext_kernels.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert all(place.startswith(str(site)) for place in run.stdout.split()), run.stdout
    for package in PACKAGES:
        assert (site / package / "py.typed").exists()
