"""Links from one page of a book to a figure of another: `<a data-run="ablation/lab-1m" data-cell="curves">`.

A notebook names the run, without a step for its last, and the cell that draws the figure, `cell.2` for a second one.
Which page that is and which number the figure has is known when the pages are staged. A place that the book lacks stays
an element without an address, which a browser shows as text.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

LINK = re.compile(r'<a data-run=\\"([^"]+)\\" data-cell=\\"([\w-]+)(?:\.(\d+))?\\">')  # in JSON


def link_figures(source: Path, pages: Mapping[str, str]) -> None:
    """Fill in the addresses of such links in the staged pages at the root; `pages`: run to its page's name."""

    def address(link: re.Match[str]) -> str:
        run, cell, nth = link.groups(default="1")
        runs = [name for name in pages if name == run or name.startswith(f"{run}/step")]
        cells = json.loads((source / f"{pages[runs[-1]]}.ipynb").read_text(encoding="utf-8"))["cells"] if runs else []
        html = "".join(part for one in cells if one["id"] == cell for output in one.get("outputs", [])
                       for part in output.get("data", {}).get("text/html", ""))
        found = re.findall(r'<figure id="(figure-\d+)"', html)
        return rf'<a href=\"{pages[runs[-1]]}.html#{found[int(nth) - 1]}\">' if len(found) >= int(nth) else link[0]

    for path in source.glob("*.ipynb"):
        path.write_text(LINK.sub(address, path.read_text(encoding="utf-8")), encoding="utf-8")
