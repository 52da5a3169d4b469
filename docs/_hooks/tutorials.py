"""Notebooks, run and turned into pages of the site."""

import json
import pathlib
import re

import nbconvert
import nbformat
from nbconvert.preprocessors import ExecutePreprocessor


def title(path: pathlib.Path) -> str:
    """The first heading."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return re.search(r"^# (.+)$", "".join(cells[0]["source"]), re.MULTILINE)[1]


def convert(path: pathlib.Path) -> tuple[str, dict[str, bytes]]:
    """Markdown of the executed notebook, and its pictures by name.

    **Raises:** `nbclient.exceptions.CellExecutionError` if a cell raises.
    """
    book = nbformat.read(path, as_version=4)
    run = ExecutePreprocessor(timeout=None)  # compiling takes as long as it takes
    run.preprocess(book, {"metadata": {"path": str(path.parent)}})
    for cell in book.cells:  # progress bars and warnings are no part of a page
        outputs = cell.get("outputs", [])
        cell.outputs = [o for o in outputs if o.get("name") != "stderr"]
        if cell.cell_type != "code":
            del cell["outputs"]
    exporter = nbconvert.MarkdownExporter()
    text, resources = exporter.from_notebook_node(
        _joined(book), {"unique_key": path.stem, "output_files_dir": "."}
    )
    return text, {pathlib.PurePath(k).name: v for k, v in resources["outputs"].items()}


def _joined(book):
    """Streams that were written in pieces, as one."""
    for cell in book.cells:
        joined = []
        for output in cell.get("outputs", []):
            last = joined[-1] if joined else None
            if last and output.output_type == last.output_type == "stream":
                last["text"] += output["text"]
            else:
                joined.append(output)
        if cell.cell_type == "code":
            cell["outputs"] = joined
    return book
