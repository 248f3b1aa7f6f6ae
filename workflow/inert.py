"""Executed notebooks as pages: nothing in them may run in the reader's browser, whoever made the results.

Text outputs are shown as text by the builder; HTML and Markdown are passed on as they are, so they are read here.
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from workflow.templates import cells_of

_REFUSED = ("iframe", "object", "embed", "applet", "base", "meta", "link", "form")
_LINKS = ("href", "src", "action", "formaction", "data", "xlink:href", "srcdoc")
_SAFE_SCHEMES = ("http:", "https:", "mailto:", "data:image/", "data:text/csv;")
_MARKUP = ("text/html", "text/markdown", "image/svg+xml", "text/latex")


def refuse_active(path: Path) -> None:
    """Raise ValueError in one line for a notebook whose page would run code: scripts, handlers, frames."""
    for index, cell in enumerate(cells_of(path)):
        texts = [] if cell.cell_type == "code" else [("the text", cell.source)]
        for kind, content in (item for output in cell.get("outputs", []) for item in output.get("data", {}).items()):
            if kind in _MARKUP:
                texts.append((f"an output ({kind})", "".join(content)))
            elif kind.endswith("javascript") or kind.startswith("application/vnd."):
                texts.append((f"an output ({kind})", "<script>"))
        for what, text in texts:
            if found := active(text):
                raise ValueError(f"{path}: {what} of cell {index} holds {found}, which a page may not; remove the "
                                 "file and run the suite again")


def active(text: str) -> str:
    """What in a piece of HTML or Markdown a browser would run, in words; empty when nothing."""
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.extend(_active_of_tag(tag, attributes))
    parser.feed(text)
    parser.close()
    return next(iter(found), "")


def _active_of_tag(tag: str, attributes: list[tuple[str, str | None]]) -> Iterator[str]:
    # of an attribute given twice browsers take the first
    values = {name.lower(): "".join((value or "").split()).lower() for name, value in reversed(attributes)}
    if tag in _REFUSED or tag == "script" and values.get("type") != "application/json":  # which no browser runs
        yield f"an element <{tag}>"
    yield from (f"a handler {name}" for name in values if name.startswith("on"))
    for name in _LINKS:
        scheme = re.match(r"([a-z][a-z0-9+.-]*:)?", values.get(name, ""))[0]
        if scheme and not values[name].startswith(_SAFE_SCHEMES):
            yield f"a link to {scheme}"
