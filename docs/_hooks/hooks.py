"""Hooks of the site's build: the navigation, the generated pages, notebooks, formulas, links."""

import importlib.util
import pathlib
import posixpath
import re
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import plan
import tutorials

DOCS = plan.ROOT / "docs"


def _notebooks() -> list[pathlib.Path]:
    return sorted((plan.ROOT / "notebooks").glob("*.ipynb"))


def _title(path: pathlib.Path) -> str:
    match = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1].replace("`", "") if match else path.stem.replace("_", " ").capitalize()


def _written(folder: str) -> list[pathlib.Path]:
    """The pages of a folder of `docs`, `index.md` first."""
    found = (DOCS / folder).glob("*.md")
    return sorted(found, key=lambda path: (path.name != "index.md", path.name))


def _entries(*names: str) -> list:
    """Navigation entries of those pages, and folders of pages, that are there."""
    entries = []
    for name in names:
        if (DOCS / f"{name}.md").exists():
            entries.append({_title(DOCS / f"{name}.md"): f"{name}.md"})
        pages = [path.relative_to(DOCS).as_posix() for path in _written(name)]
        if pages:
            inner = [p if p.endswith("/index.md") else {pathlib.Path(p).stem: p} for p in pages]
            entries.append({name.capitalize(): inner})
    return entries


def _reference() -> list:
    entries, large = [{"Overview": "reference/index.md"}], {}
    for page in plan.reference_pages():
        folder = posixpath.dirname(page.path)
        if folder == "reference":
            entries.append({page.label: page.path})
        elif page.path.endswith("/index.md"):
            large[folder] = [page.path]
            entries.append({page.label: large[folder]})
        else:
            large[folder].append({page.label: page.path})
    return entries


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    adding = [{shape.capitalize(): path} for shape, path in _shapes().items()]
    config.nav = [
        {"Home": "index.md"},
        {"From JAXopt": "from_jaxopt.md"},
        {"Tutorials": [{tutorials.title(p): f"notebooks/{p.stem}.md"} for p in _notebooks()]},
        {"Reference": _reference()},
        {"Systems": _entries("systems", "claims", "peers", "robustness")},
        {"Adding a system": ["adding/index.md", *adding]},
    ]
    return config


def _shapes() -> dict[str, str]:
    """For each shape of member the page that says how one is added."""
    folder = plan.ROOT / "jaxopt_ext" / "catalog" / "shapes"
    rows = [path.stem for path in sorted(folder.glob("*.py")) if path.stem not in _NO_SHAPE]
    more = [path.stem for path in _written("adding") if path.stem not in ("index", *rows)]
    return {shape.replace("_", " "): f"adding/{shape}.md" for shape in rows + more}


_NO_SHAPE = ("__init__", "row")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    def add(path: str, content: str | bytes) -> None:
        files.append(File.generated(config, path, content=content))

    for page in plan.reference_pages():
        add(page.path, page.text)
    add("reference/index.md", _overview())
    for shape, path in _shapes().items():
        if files.get_file_from_path(path) is None:
            add(path, _adding(shape))
    for path in _notebooks():
        text, pictures = tutorials.convert(path)
        add(f"notebooks/{path.stem}.md", text)
        for name, content in pictures.items():
            add(f"notebooks/{name}", content)
    # MathJax comes with the site, so that formulas need no other server.
    spec = importlib.util.find_spec("mathjax")
    (folder,) = spec.submodule_search_locations
    source = pathlib.Path(folder, "static", "mathjax", "es5", "tex-svg.js")
    files.append(File.generated(config, "assets/tex-svg.js", abs_src_path=str(source)))
    return files


def _overview() -> str:
    lines = [
        "# Reference",
        "",
        "`jxt` is `jaxopt_ext`. The names of `core` are names of `jxt` itself: `jxt.solve`,"
        " `jxt.Composite`. The others are in their families, which are loaded when first used.",
        "",
        "| family | what it holds |",
        "|---|---|",
    ]
    for family in plan.families():
        first = family.text.partition("\n\n")[0].replace("\n", " ")
        lines.append(f"| [`{family.name}`][{family.module}] | {first} |")
    return "\n".join(lines)


def _adding(shape: str) -> str:
    """The page of a shape that nobody has written one for: what its row says."""
    name = shape.title().replace(" ", "") + "Row"
    row = plan.link(f"`catalog.{name}`", "jaxopt_ext.catalog")
    return (
        f"# {shape.capitalize()}\n\nA file in its family, a test against an oracle, a row {row} in "
        "the catalogue, and a claim; see [the steps](index.md)."
    )


def on_page_markdown(markdown: str, page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri == "from_jaxopt.md":
        markdown = _with_table(markdown)
        page.meta["hide"] = ["navigation"]
    if page.file.src_uri == "systems.md":
        page.meta["hide"] = ["toc"]  # its tables are wide
    return re.sub(
        r"(?<!!)\[([^\]\n]+)\]\((\.\./[^)\s]+)\)",
        lambda match: _inside(match, page.file.src_uri),
        markdown,
    )


def _inside(match: re.Match, source: str) -> str:
    """Links to files of the checkout lead to their page or, if their words name a public object, to
    that; the others are only words."""
    target, _, _ = match[2].partition("#")
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), target))
    if path.startswith("docs/"):
        return match[0]
    known = {f"notebooks/{p.stem}.ipynb": f"notebooks/{p.stem}.md" for p in _notebooks()}
    known["README.md"] = "index.md"
    if path not in known:
        return plan.link(match[1].replace("`jaxopt_ext.", "`"), "jaxopt_ext.core")
    return f"[{match[1]}]({posixpath.relpath(known[path], posixpath.dirname(source) or '.')})"


def _with_table(markdown: str) -> str:
    """The README's table of names, each row with a link to its programs, ahead of the programs."""
    readme = (plan.ROOT / "README.md").read_text(encoding="utf-8")
    head = "| JAXopt | here |\n|---|---|\n"
    rows = readme.split(head)[1].split("\n\n")[0].splitlines()
    markdown = markdown.replace(
        "[the README's table](../README.md#from-jaxopt-to-here)", "the table"
    )
    table = [head.rstrip()]
    for i, row in enumerate(rows):
        left, right = row.strip("| ").split(" | ", 1)
        for module in ("core", "prox", "minimize", "core.objectives"):  # whose names stand bare
            right = plan.link(right, f"jaxopt_ext.{module}")
        table.append(f"| {left} | {right} [→](#row-{i}) |")
        markdown = markdown.replace(f"\n## {left}\n", f"\n## {left} {{ #row-{i} }}\n")
    first, intro, rest = markdown.split("\n\n", 2)
    return "\n\n".join([first, intro, "\n".join(table), rest])
