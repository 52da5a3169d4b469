"""What the site's pages list, read off the sources without importing them.

A family is a public package or module right below `jaxopt_ext`, a package in one of those that
exports more than it does, and the kernels' package. Its page shows the docstring of its `__init__`
and, file by file, the names that the `__init__` exports; of a module that it exports as a module,
the public definitions. So a new file is on its family's page without being told, and no page has to
be edited. Families of more than `LARGE` names have a page for each file.
"""

import ast
import dataclasses
import functools
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = {"jaxopt_ext": ROOT / "jaxopt_ext", "jaxopt_ext_kernels": ROOT / "kernels"}
LARGE = 50
FIRST = ("core", "prox", "minimize", "splitting", "fixed_point")
"""Families that the others stand on, before the others."""


@dataclasses.dataclass(frozen=True)
class Section:
    """The names of one file: their identifiers, and what the file says of itself."""

    file: str
    title: str
    text: str
    identifiers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Family:
    """A package or module, its docstring, and its sections in the order of the docstring."""

    module: str
    text: str
    sections: tuple[Section, ...]

    @property
    def name(self) -> str:
        return self.module.removeprefix("jaxopt_ext.")

    @property
    def identifiers(self) -> tuple[str, ...]:
        return tuple(i for section in self.sections for i in section.identifiers)

    @property
    def is_large(self) -> bool:
        return len(self.identifiers) > LARGE


@dataclasses.dataclass(frozen=True)
class Page:
    """A page of the reference: where it is, its name in the navigation, its Markdown."""

    path: str
    label: str
    text: str
    identifiers: tuple[str, ...]


@functools.cache
def _tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _docstring(path: pathlib.Path) -> str:
    return ast.get_docstring(_tree(path)) or ""


def _source(path: pathlib.Path) -> pathlib.Path:
    """The file of a module, given without suffix."""
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _definitions(path: pathlib.Path) -> list[str]:
    """The public names that a file defines, in its order."""
    names = []
    for node in _tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def _exports(path: pathlib.Path) -> list[str] | None:
    """The literal `__all__` of a file, if it has one."""
    for node in _tree(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [e.value for e in ast.walk(node.value) if isinstance(e, ast.Constant)]
    return None


def _imports(path: pathlib.Path) -> dict[str, str]:
    """For each name that a file imports from its own folder, the module it comes from."""
    found = {}
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for alias in node.names:
                found[alias.asname or alias.name] = node.module or ""
    return found


def _section(file: str, source: pathlib.Path, identifiers: tuple[str, ...], text: str) -> Section:
    """A section with the file's first sentence for a title where that is short."""
    docstring = _docstring(source)
    title, _, rest = docstring.partition("\n\n")
    match = re.match(r"(.+?)(?:: |[:.](?:\s|$))", title, re.DOTALL)
    if match and len(match[1]) <= 44 and not set("$`\n") & set(match[1]):
        title, docstring = match[1], rest if match[0].strip() == title else docstring
    else:
        title = _heading(file, identifiers)
    # Those of the map first, in its order; the sort keeps the file's order for the others.
    order = sorted(identifiers, key=lambda identifier: _place(text, identifier))
    return Section(file, title, docstring, tuple(order))


def _heading(file: str, identifiers: tuple[str, ...]) -> str:
    """A file's name as a heading; `admm` is `ADMM` if it has a class of that name."""
    stem = file.rpartition(".")[2]
    names = {identifier.rpartition(".")[2] for identifier in identifiers}
    return stem.upper() if stem.upper() in names else stem.replace("_", " ").capitalize()


def _place(text: str, identifier: str) -> int:
    """Where a text first speaks of a name; its end if it does not."""
    match = re.search(rf"`{identifier.rpartition('.')[2]}[`(]", text)
    return match.start() if match else len(text)


def _family(module: str, path: pathlib.Path) -> Family:
    source = _source(path)
    text = _docstring(source)
    if not path.is_dir():
        names = _exports(source)
        names = _definitions(source) if names is None else names
        return Family(module, text, (Section(module, "", "", _full(module, names)),))
    imports, files = _imports(source), {}
    for name in _exports(source) or []:
        files.setdefault(imports.get(name), []).append(name)
    own = files.pop(None, [])  # defined in the `__init__` itself
    sections = [Section(module, "", "", _full(module, own))] if own else []
    found = []
    for name in files.pop("", []):  # whole modules
        inner = _source(path / name)
        names = _exports(inner)
        names = _full(f"{module}.{name}", _definitions(inner) if names is None else names)
        file = f"{module}.{name}"
        found.append(Section(file, _heading(file, names), _docstring(inner), names))
    for file, names in files.items():
        inner = _source(path.joinpath(*file.split(".")))
        order = {name: i for i, name in enumerate(_definitions(inner))}
        names = sorted(names, key=lambda name: (order.get(name, len(order)), name))
        found.append(_section(f"{module}.{file}", inner, _full(module, names), text))
    found.sort(key=lambda s: min(_place(text, name) for name in (s.file, *s.identifiers)))
    return Family(module, text, tuple(sections + found))


def _full(module: str, names) -> tuple[str, ...]:
    return tuple(f"{module}.{name}" for name in names)


@functools.cache
def families() -> tuple[Family, ...]:
    """All families, those that others stand on first."""
    folder = PACKAGES["jaxopt_ext"]
    paths = [
        path.with_suffix("")
        for path in sorted(folder.iterdir())
        if not path.name.startswith("_")
        and (path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").exists()))
    ]
    paths += [
        inner.parent
        for path in paths
        for inner in sorted(path.glob("*/__init__.py"))
        if not inner.parent.name.startswith("_")
        and not set(_exports(inner) or []) <= set(_exports(_source(path)) or [])
        and inner.parent.name not in (_exports(_source(path)) or [])  # on the page of that one
    ]
    found = [_family(".".join(path.relative_to(folder.parent).parts), path) for path in paths]
    found.append(
        _family("jaxopt_ext_kernels", PACKAGES["jaxopt_ext_kernels"] / "jaxopt_ext_kernels")
    )
    rank = {name: i for i, name in enumerate(FIRST)}
    place = lambda family: rank.get(family.name, len(rank))
    return tuple(sorted(found, key=lambda family: (place(family), family.name)))


@functools.cache
def _known() -> dict[str, str]:
    """Identifiers by the ways that prose names them."""
    known = {}
    for family in families():
        known.setdefault(family.name, family.module)
        known[family.module] = family.module
        for identifier in family.identifiers:
            short = identifier.removeprefix("jaxopt_ext.")
            known[identifier] = identifier
            known.setdefault(short, identifier)
            if short.startswith("core."):
                known.setdefault(short.removeprefix("core."), identifier)
                known.setdefault(f"jxt.{short.removeprefix('core.')}", identifier)
            known.setdefault(f"jxt.{short}", identifier)
    return known


def family_of(identifier: str) -> str:
    """The module of the family that an object belongs to."""
    found = [f.module for f in families() if identifier.startswith(f"{f.module}.")]
    return max(found, key=len, default="")


def link(text: str, module: str, everything: bool = False) -> str:
    """Markdown whose code words that name public objects are references to them.

    **Arguments:**

    - `text`: Markdown.
    - `module`: the module it is about, whose names may stand without a prefix; so may those of
      `core`.
    - `everything`: link lower-case names without a prefix too, which may be names of arguments.
    """
    own = {}
    for family in families():
        for section in family.sections:
            if module == family.module or module == section.file:
                own |= {i.rpartition(".")[2]: i for i in section.identifiers}

    def reference(match: re.Match) -> str:
        name = match[1]
        bare = "." not in name
        if bare and not everything and not name[0].isupper():
            return match[0]
        if len(name) == 1:
            return match[0]
        target = own.get(name) if bare else None
        target = target or _known().get(name)
        return f"[`{name}`][{target}]" if target else match[0]

    pieces = re.split(r"(^ *```.*?^ *```)", text, flags=re.DOTALL | re.MULTILINE)
    pattern = re.compile(r"(?<![\[`])`([A-Za-z_][\w.]*\w|[A-Za-z])`(?![`\]])")
    return "".join(p if i % 2 else pattern.sub(reference, p) for i, p in enumerate(pieces))


def _object(identifier: str, file: str) -> str:
    """What puts an object on a page.

    One that is named as the file it comes from is shadowed by the file where sources are read
    without being run; it is asked for by the file's name then, and shown under its own.
    """
    source = _path(identifier)
    if not source.exists():
        return f"::: {identifier}"
    if file == identifier.rpartition(".")[0]:  # defined in the `__init__` beside the file
        return _by_hand(identifier, _path(file) / "__init__.py")
    name = identifier.rpartition(".")[2]
    options = f"    options:\n      heading: {identifier}\n      toc_label: {name}"
    return f"[](){{ #{identifier} }}\n\n::: {file}.{name}\n{options}"


def _path(module: str) -> pathlib.Path:
    """Where a module is: its folder or its file, which may not exist."""
    package, *rest = module.split(".")
    folder = ROOT if package == "jaxopt_ext" else PACKAGES[package]
    path = folder.joinpath(package, *rest)
    return path if path.is_dir() else path.with_suffix(".py")


def _by_hand(identifier: str, source: pathlib.Path) -> str:
    """The heading, signature and docstring of a function."""
    name = identifier.rpartition(".")[2]
    (node,) = (n for n in _tree(source).body if getattr(n, "name", None) == name)
    signature = f"{name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
    heading = f"### {identifier} {{ #{identifier} data-toc-label={name} }}"
    return f"{heading}\n\n```python\n{signature}\n```\n\n{ast.get_docstring(node)}"


def _section_text(section: Section, module: str, level: str) -> str:
    parts = [f"{level} {section.title}"] if section.title else []
    if section.text:
        parts.append(link(section.text, module))
    return "\n\n".join([*parts, *(_object(i, section.file) for i in section.identifiers)])


def reference_pages() -> list[Page]:
    """The pages of the reference, in the order of the navigation."""
    pages = []
    for family in families():
        # The anchor is what links to the family as a whole lead to.
        head = f"# `{family.name}` {{ #{family.module} }}\n\n"
        head += link(family.text, family.module, everything=True)
        if not family.is_large:
            body = [_section_text(section, family.module, "##") for section in family.sections]
            page = "\n\n".join([head, *body])
            path = f"reference/{family.name}.md"
            pages.append(Page(path, family.name, page, family.identifiers))
            continue
        folder = f"reference/{family.name}"
        pages.append(Page(f"{folder}/index.md", family.name, head, ()))
        for section in family.sections:
            stem = section.file.rpartition(".")[2]
            page = _section_text(section, family.module, "#")
            pages.append(Page(f"{folder}/{stem}.md", section.title, page, section.identifiers))
    return pages
