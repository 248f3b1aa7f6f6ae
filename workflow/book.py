"""Build the book of a suite: `python -m workflow.book RESULTS --notebooks FILE...`; prints the page to open.

The builder walks the whole folder it is given, so it gets one that holds the pages and executed notebooks and
nothing else, RESULTS/book/source. Where `_toc.yml` names a chapter after a notebook ("scoring"), the runs of that
notebook are filled in.
"""

import argparse
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from workflow import command
from workflow.inert import refuse_active
from workflow.lock import lock_sweep
from workflow.notebooks import NOTEBOOKS, Run
from workflow.runs import data_of_page, dictionary_page, runs_page, write_data
from workflow.suite import TEMPLATES, Suite, read_suite
from workflow.templates import title

# Scripts of installed packages, as (package, its file, name under _static), so that no page asks the network.
SCRIPTS = (
    ("plotly", "package_data/plotly.min.js", "plotly.min.js"),
    ("sphinx-mathjax-offline", "static/mathjax/tex-svg-full.js", "mathjax/tex-svg-full.js"),
)
LINK = re.compile(r'<a data-run=\\"([^"]+)\\" data-cell=\\"([\w-]+)(?:\.(\d+))?\\">')  # in JSON
FIGURE_ELEMENT = re.compile(r"<figure\b([^>]*>.*?)<figcaption>(.*?</figcaption>)", re.DOTALL)
# A table whose index has a name: pandas gives the name a row of its own below the columns' heads.
TWO_HEADS = re.compile(r"<thead>\s*<tr[^>]*>\s*((?:<th></th>\s*)+)((?:<th>[^<]*</th>\s*)+)</tr>\s*"
                       r"<tr[^>]*>\s*((?:<th>[^<]+</th>\s*)+)(?:<th></th>\s*)+</tr>\s*</thead>")
# Where a launched page is looked for in the repository: every run of a notebook at its template.
LAUNCHED = re.compile(rf"(?<=/{TEMPLATES.name}/)notebooks/(\w+)/[^\"?&]+(?=\.ipynb)")
# What the theme puts into every page and a page opened from disk cannot use: fonts ahead of time, and a script from
# the network, declared twice, that would run cells.
NOT_FROM_DISK = re.compile(
    r'<link rel="preload" as="font"[^>]*>\s*|<script>const THEBE_JS_URL[^<]*</script>\s*|'
    r'<script [^>]*sphinx-thebe\.js[^>]*></script>\s*')


def page(results: Path) -> Path:
    """The first page of a suite's book."""
    return results / "book" / "_build" / "html" / "index.html"


def stage(results: Path, notebooks: Sequence[Path], missing: Sequence[Path] = ()) -> Path:
    """Copy settings, hand-written pages and executed notebooks into an empty source folder.

    The last run of each notebook in the order given, by the suite the last step of the last model, is the
    page that bears the notebook's name, unless book/ has a page of that name; the other runs are sections
    below the page of runs. A chapter without a run is a page that says so and names what of it is `missing`.
    Raises ValueError for a notebook that is missing, or whose page would run a script.
    """
    source = results / "book" / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree("book", source, ignore=shutil.ignore_patterns("_build", ".*"))
    shutil.copy("_config.yml", source)
    by_hand = {path.stem for path in source.iterdir()}
    names, absent = ([_run_name(results, path) for path in paths] for paths in (notebooks, missing))
    last = {name.partition("/")[0]: name for name in names}
    pages = {name: f"notebooks/{name}" for name in names}
    pages |= {name: kind for kind, name in last.items() if kind not in by_hand}
    for notebook, (name, page_of) in zip(notebooks, pages.items(), strict=True):
        refuse_active(notebook)
        target = source / f"{page_of}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_as_page(results, name, up="../" * page_of.count("/")), encoding="utf-8")
    link_figures(source, pages)
    texts = {kind: _without_runs(kind, absent) for kind in NOTEBOOKS if kind not in (*last, *by_hand)}
    texts |= {"runs": runs_page(results, pages, absent), "data": dictionary_page()}
    for name, text in texts.items():
        (source / f"{name}.md").write_text(text, encoding="utf-8")
    toc = yaml.safe_load(Path("_toc.yml").read_text(encoding="utf-8"))
    for chapter in (chapter for part in [toc, *toc.get("parts", [])] for chapter in part.get("chapters", [])):
        if chapter.get("file") in last:
            chapter["title"] = title(Run(chapter["file"]).template)  # the page's own names a model
        if chapter.get("file") == "runs" and (others := _sections(pages)):
            chapter["sections"] = others
    (source / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")
    return source


def link_figures(source: Path, pages: Mapping[str, str]) -> None:
    """Fill in links from one page to a figure of another: `<a data-run="ablation/lab-1m" data-cell="curves">`.

    A notebook names the run, without a step for its last, and the cell that draws the figure, `cell.2` for a second
    one. `pages`, run to its page's name, and the staged pages say where that is. A place that the book lacks stays an
    element without an address, which a browser shows as text.
    """

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


def _sections(pages: dict[str, str]) -> list[dict[str, str]]:
    """The entries of the table of contents for runs whose page does not bear their notebook's name."""
    parts = {page_of: name.partition("/") for name, page_of in pages.items()}
    return [{"file": page_of,
             "title": ": ".join(filter(None, [title(Run(kind).template), ", ".join(run.rsplit("/", 1))]))}
            for page_of, (kind, _, run) in parts.items() if page_of != kind]


def _as_page(results: Path, name: str, up: str = "") -> str:
    """An executed notebook whose title says of which run it is, with its figures numbered: `#figure-1` leads to one.

    Code, with the parameters that it got, stands below what it shows; where the template's own parameters are left out,
    so are these. Links of outputs lead to the book's root, which lies `up` from here, and the last line to its data.
    """
    found = json.loads((results / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    numbers, left_out = itertools.count(1), False

    def numbered(figure: re.Match[str]) -> str:
        n = next(numbers)
        return f'<figure id="figure-{n}"{figure[1]}<figcaption><b>Figure {n}.</b> {figure[2]}'.replace(
            'download="figure.csv"', f'download="{name.replace("/", "-")}-figure-{n}.csv"')

    for cell in found["cells"]:
        tags = cell["metadata"].get("tags", [])
        left_out |= "parameters" in tags and "remove-cell" in tags
        if "injected-parameters" in tags and left_out:
            tags.append("remove-cell")
        for data in (output["data"] for output in cell.get("outputs", []) if "text/html" in output.get("data", {})):
            html = re.sub(r'<a href="(?=\w+\.html")', f'<a href="{up}', "".join(data["text/html"]))
            html = TWO_HEADS.sub(r'<thead><tr style="text-align: right;">\3\2</tr></thead>', html)
            data["text/html"] = FIGURE_ELEMENT.sub(numbered, html)
    named = re.sub(r"/step(-?\d+)$", lambda step: "" if step[1] == "-1" else f" at step {step[1]}",
                   name.partition("/")[2])
    first = next((cell for cell in found["cells"] if cell["cell_type"] == "markdown"), None)
    if named and first:
        first["source"] = re.sub("$", f": {named}", "".join(first["source"]), count=1, flags=re.MULTILINE)
    found["cells"] = _findings_first(found["cells"])
    found["cells"].append({
        "cell_type": "markdown", "id": "data-of-page", "metadata": {}, "source": data_of_page(results, name, up)})
    return json.dumps(found)


def _findings_first(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells with their code, which opens on a click, below what it shows; code above the first finding waits for it."""
    page: list[dict[str, Any]] = []
    waiting: list[str] = []
    found, last = False, max((i for i, cell in enumerate(cells) if cell["cell_type"] == "code"), default=-1)
    for i, cell in enumerate(cells):
        tags = {*cell["metadata"].get("tags", [])}
        found |= bool(cell.get("outputs"))
        if cell["cell_type"] != "code" or tags & {"remove-cell", "remove-input"}:
            page.append(cell)
            continue
        if cell["outputs"]:
            page.append(cell | {"metadata": {"tags": ["remove-input"]}})
        waiting.append("".join(cell["source"]))
        if found or i == last:
            page.append(cell | {"id": f"{cell['id']}-code", "source": "\n\n".join(waiting), "outputs": [],
                                "metadata": {"tags": ["hide-input"]}})
            waiting = []
    return page


def _run_name(results: Path, notebook: Path) -> str:
    return notebook.relative_to(results / "notebooks").with_suffix("").as_posix()


def _without_runs(kind: str, absent: list[str]) -> str:
    names = ", ".join(f"`{name}`" for name in absent if name.partition("/")[0] == kind)
    why = f"Not finished: {names}." if names else \
        "No model of this suite is measured here; its suite file says for which models this notebook runs."
    return f"# {title(Run(kind).template)}\n\n{why}\n"


def build(results: Path, notebooks: Sequence[Path], missing: Sequence[Path] = ()) -> Path:
    """Render the book, every warning an error. Returns the page to open; raises RuntimeError in one line."""
    source, log = stage(results, notebooks, missing), results / "logs" / "book.log"
    shutil.rmtree(results / "book" / "_build", ignore_errors=True)
    builder = Path(sys.executable).with_name("jupyter-book")  # of this environment, activated or not
    options = ["--path-output", str(results / "book"), "-W", "-n", "--keep-going", "--all"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        status = subprocess.run([str(builder), "build", str(source), *options], stdout=file, stderr=subprocess.STDOUT,
                                check=False).returncode
    if status or not page(results).is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        marked = [line.strip() for line in lines if "WARNING" in line or "ERROR" in line or "Error:" in line]
        page(results).unlink(missing_ok=True)
        first = (marked or lines[-1:] or ["no output"])[0]
        raise RuntimeError(f"the book has {len(marked)} warnings or errors, first: {first} (log {log})")
    write_data(results, [_run_name(results, notebook) for notebook in notebooks], page(results).parent)
    _finish(page(results).parent)
    return page(results)


def _finish(html: Path) -> None:
    """Give the pages what they need when they are opened from disk, and take from them what they cannot use."""
    for package, file, name in SCRIPTS:
        (html / "_static" / name).parent.mkdir(exist_ok=True)
        shutil.copy(Path(importlib.util.find_spec(package).origin).parent / file, html / "_static" / name)
    for file in html.rglob("*.html"):
        text = NOT_FROM_DISK.sub("", file.read_text(encoding="utf-8"))
        file.write_text(LAUNCHED.sub(r"\1", text), encoding="utf-8")
    for unread in ("*.map", "*.ttf", "*.mo", "*.po"):  # of the theme: smaller fonts are there too, and one language
        for file in html.rglob(f"_static/**/{unread}"):
            file.unlink()


def build_unfinished(suite: Suite) -> Path | None:
    """The book of those runs of a suite that have finished, the others named on its page of runs.

    None where nothing is missing, or while a sweep is at work on the results. Errors as in `build`.
    """
    results = Path(suite.results)
    try:
        lock = lock_sweep(results)
    except RuntimeError:  # the sweep whose place this takes has said so
        return None
    with lock:
        there = [path for path in suite.notebooks if path.is_file()]
        missing = [path for path in suite.notebooks if path not in there]
        if not missing:
            return None
        unfinished = build(results, there, missing)
        os.utime(unfinished, (1, 1))  # older than anything, or the workflow would take it for the finished one
        return unfinished


@command
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Build the book of a suite.")
    parser.add_argument("results", type=Path, help="results/<suite>, or with --unfinished a suite file")
    parser.add_argument("--notebooks", type=Path, nargs="*", default=[], help="executed notebooks")
    parser.add_argument("--unfinished", action="store_true", help="the book of what has finished of a suite's runs")
    given = parser.parse_args(arguments)
    if not given.unfinished:
        print(build(given.results, given.notebooks))
    elif page_of := build_unfinished(read_suite(given.results)):
        print(f"Open {page_of}: runs are missing, and its page of runs names them")


if __name__ == "__main__":
    sys.exit(main())
