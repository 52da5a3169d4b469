"""Which claims there are, what their files say, and what their results depend on.

Nothing is imported to find out: files are parsed.
"""

import ast
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / ".cache" / "claims"


def names() -> list[str]:
    """All claims, `family.name` each."""
    return sorted(
        f"{path.parent.name}.{path.stem}"
        for path in HERE.glob("*/*.py")
        if not path.name.startswith("_")
    )


def source(name: str) -> pathlib.Path:
    """The file of a claim."""
    return HERE.joinpath(*name.split(".")).with_suffix(".py")


def constants(name: str) -> dict[str, Any]:
    """The literals that a claim's module assigns at its top."""
    found = {}
    for node in ast.parse(source(name).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def helpers(path: pathlib.Path) -> set[pathlib.Path]:
    """The files of `benchmarks` that a file imports, and those that they import."""
    found, waiting = set(), [path]
    while waiting:
        for imported in _imports(waiting.pop()):
            if imported not in found and imported != path:
                found.add(imported)
                waiting.append(imported)
    return found


def _imports(path: pathlib.Path) -> Iterator[pathlib.Path]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [ROOT.joinpath(*alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if node.level else ROOT
            module = base.joinpath(*(node.module or "").split("."))
            modules = [module, *(module / alias.name for alias in node.names)]
        else:
            continue
        for module in modules:
            file = module.parent / f"{module.name}.py"
            if file.is_file() and (ROOT / "benchmarks") in file.parents:
                yield file


def stamp(name: str) -> str:
    """A digest of a claim's file and of the helpers it imports."""
    path = source(name)
    return _digest([path, *sorted(helpers(path))])


def library() -> str:
    """A digest of the library's sources, without what no claim runs."""
    return _digest(
        path
        for root in ("jaxopt_ext", "kernels")
        for path in sorted((ROOT / root).rglob("*.py"))
        if not {"catalog", "plots", "_demo.py", "__main__.py"} & set(path.relative_to(ROOT).parts)
    )


def _digest(paths: Iterable[pathlib.Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


def result_file(name: str) -> pathlib.Path:
    """Where a claim's result is kept."""
    return RESULTS.joinpath(*name.split(".")).with_suffix(".json")


def write_result(name: str, result: dict[str, Any]) -> None:
    """Keep a result; a reader sees the old file or the new one, nothing between."""
    file = result_file(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(result, indent=1))
    part.replace(file)


def read_result(name: str) -> dict[str, Any] | None:
    """The result that is kept, if there is one."""
    file = result_file(name)
    return json.loads(file.read_text()) if file.is_file() else None
