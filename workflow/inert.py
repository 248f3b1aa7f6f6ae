"""Executed notebooks as pages: nothing in them may run in the reader's browser, whoever made the results.

Text outputs are shown as text by the builder; HTML and Markdown are passed on as they are, so they are read here.
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import nbformat

_SCRIPT_TYPES = ("application/json",)  # data, which no browser runs
_REFUSED = ("iframe", "object", "embed", "applet", "base", "meta", "link", "form")
_LINKS = ("href", "src", "action", "formaction", "data", "xlink:href", "srcdoc")
_SAFE_SCHEMES = ("http:", "https:", "mailto:", "data:image/", "data:text/csv;")


def refuse_active(path: Path) -> None:
    """Raise ValueError in one line for a notebook whose page would run code: scripts, handlers, frames."""
    try:
        cells = nbformat.read(path, as_version=4).cells
    except Exception as error:  # nbformat raises its own, JSON's and attribute errors
        raise ValueError(f"{path} is not a notebook ({type(error).__name__}); run the suite again") from None
    for index, cell in enumerate(cells):
        for what, text in _marked_up(cell):
            found = active(text)
            if found:
                raise ValueError(f"{path}: {what} of cell {index} holds {found}, which a page may not; remove the "
                                 "file and run the suite again")


def _marked_up(cell: nbformat.NotebookNode) -> Iterator[tuple[str, str]]:
    if cell.cell_type != "code":
        yield "the text", cell.source
    for output in cell.get("outputs", []):
        for kind, content in output.get("data", {}).items():
            if kind in ("text/html", "text/markdown", "image/svg+xml", "text/latex"):
                yield f"an output ({kind})", "".join(content)
            elif kind.endswith("javascript") or kind.startswith("application/vnd."):
                yield f"an output ({kind})", "<script>"


def active(text: str) -> str:
    """What in a piece of HTML or Markdown a browser would run, in words; empty when nothing."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    return parser.found


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.found = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name.lower(): "".join((value or "").split()).lower() for name, value in attributes}
        if tag == "script" and values.get("type") not in _SCRIPT_TYPES or tag in _REFUSED:
            self.found = self.found or f"an element <{tag}>"
        for name, value in values.items():
            scheme = match[0] if (match := re.match(r"[a-z][a-z0-9+.-]*:", value)) else ""
            if name.startswith("on"):
                self.found = self.found or f"a handler {name}"
            elif name in _LINKS and scheme and not value.startswith(_SAFE_SCHEMES):
                self.found = self.found or f"a link to {scheme}"
