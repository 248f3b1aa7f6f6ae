"""Build the book of a suite: `python -m workflow.book RESULTS --notebooks FILE...`; prints the page to open.

The builder walks the whole folder it is given, so it gets one that holds the pages and executed notebooks and
nothing else, RESULTS/book/source: the settings and the hand-written pages of book/ at its root, the executed
notebooks under notebooks/ as they lie under RESULTS, and a page of all runs. Where
`_toc.yml` names a chapter after a notebook ("scoring"), the runs of that notebook are filled in.
"""

import argparse
import base64
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from workflow.inert import refuse_active
from workflow.links import link_figures
from workflow.lock import LockedError, lock_sweep
from workflow.notebooks import NOTEBOOKS
from workflow.runs import data_of_page, dictionary_page, runs_page, write_data
from workflow.suite import TEMPLATES, Suite, read_suite
from workflow.templates import title

SETTINGS = Path("_config.yml")
CONTENTS = Path("_toc.yml")
PAGES = Path("book")
# Scripts of installed packages, as (package, its file, name under _static), so that no page asks the network.
SCRIPTS = (
    ("plotly", "package_data/plotly.min.js", "plotly.min.js"),
    ("sphinx-mathjax-offline", "static/mathjax/tex-svg-full.js", "mathjax/tex-svg-full.js"),
)
# Files of the theme that no page asks for: source maps, fonts for browsers without woff2, texts in other languages.
UNUSED = ("*.map", "*.ttf", "*.mo", "*.po")
FIGURE_ELEMENT = re.compile(r"<figure\b([^>]*>.*?)<figcaption>(.*?</figcaption>)", re.DOTALL)
# A table whose index has a name: pandas gives the name a row of its own below the columns' heads.
TWO_HEADS = re.compile(r"<thead>\s*<tr[^>]*>\s*((?:<th></th>\s*)+)((?:<th>[^<]*</th>\s*)+)</tr>\s*"
                       r"<tr[^>]*>\s*((?:<th>[^<]+</th>\s*)+)(?:<th></th>\s*)+</tr>\s*</thead>")
FIGURE = re.compile(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)")
# Where a launched page is looked for in the repository: every run of a notebook at its template.
LAUNCHED = re.compile(rf"(?<=/{TEMPLATES.name}/)notebooks/(\w+)/[^\"?&]+(?=\.ipynb)")
# What the theme puts into every page and a page opened from disk cannot use: fonts ahead of time, and a script from
# the network, declared twice, that would run cells.
NOT_FROM_DISK = (
    r'<link rel="preload" as="font"[^>]*>\s*',
    r"<script>const THEBE_JS_URL[^<]*</script>\s*",
    r'<script [^>]*sphinx-thebe\.js[^>]*></script>\s*',
)


def page(results: Path) -> Path:
    """The first page of a suite's book."""
    return results / "book" / "_build" / "html" / "index.html"


def stage(results: Path, notebooks: Sequence[Path], missing: Sequence[Path] = ()) -> Path:
    """Copy settings, hand-written pages and executed notebooks into an empty source folder.

    The last run of each notebook in the order given, by the suite the last step of the last model, is the
    page that bears the notebook's name, unless book/ has a page of that name; the other runs are sections
    below the page of runs. A chapter without a run is a page that says so and names what of it is `missing`.
    Raises FileNotFoundError for a missing file and ValueError for a notebook whose page would run a script.
    """
    source = results / "book" / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(PAGES, source, ignore=shutil.ignore_patterns("_build", ".*"))
    (source / SETTINGS.name).write_text(_settings(), encoding="utf-8")
    runs: dict[str, list[str]] = {kind: [] for kind in NOTEBOOKS}
    for notebook in notebooks:
        refuse_active(notebook)
        name = _run_name(results, notebook)
        runs[name.split("/")[0]].append(name)
    pages: dict[str, str] = {}
    for kind, names in runs.items():
        is_page = bool(list(source.glob(f"{kind}.*")))
        for name in names:
            pages[name] = kind if name == names[-1] and not is_page else f"notebooks/{name}"
            target = source / f"{pages[name]}.ipynb"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_as_page(results, name, up="../" * pages[name].count("/")), encoding="utf-8")
        if not names and not is_page:
            absent = [name for path in missing if (name := _run_name(results, path)).split("/")[0] == kind]
            (source / f"{kind}.md").write_text(_without_runs(kind, absent), encoding="utf-8")
    link_figures(source, pages)
    (source / "runs.md").write_text(
        runs_page(results, pages, [_run_name(results, path) for path in missing]), encoding="utf-8")
    (source / "data.md").write_text(dictionary_page(), encoding="utf-8")
    toc = yaml.safe_load(CONTENTS.read_text(encoding="utf-8"))
    others = []
    for name, page_of in pages.items():
        kind, _, run = name.partition("/")
        if page_of != kind:
            of_run = ", ".join(run.rsplit("/", 1))
            others.append({"file": page_of, "title": f"{_title(kind)}: {of_run}" if run else _title(kind)})
    for chapter in (chapter for part in [toc, *toc.get("parts", [])] for chapter in part.get("chapters", [])):
        if runs.get(chapter.get("file")):
            chapter["title"] = _title(chapter["file"])  # the page's own names a model
        if chapter.get("file") == "runs" and others:
            chapter["sections"] = others
    (source / CONTENTS.name).write_text(yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")
    return source


def _settings() -> str:
    """The builder's settings; where they name a repository, with the theme's options that link and launch it."""
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    repository, launched = settings.pop("repository", {}), settings.pop("launch_buttons", {})
    if repository.get("url"):
        settings["sphinx"]["config"]["html_theme_options"] |= {
            "repository_url": repository["url"], "repository_branch": repository["branch"],
            "use_repository_button": True, "launch_buttons": launched, "path_to_docs": TEMPLATES.name}
    return yaml.safe_dump(settings, sort_keys=False)


def _as_page(results: Path, name: str, up: str = "") -> str:
    """An executed notebook whose title says of which run it is, with its figures numbered: `#figure-1` leads to one.

    Code, with the parameters that it got, stands below what it shows; where the template's own parameters are left out
    of the page, so are these. Links of outputs lead to pages at the book's root, which lies `up` from here. The last
    line leads to its data.
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
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                html = "".join(output["data"]["text/html"])
                html = re.sub(r'<a href="(?=\w+\.html")', f'<a href="{up}', html)
                html = TWO_HEADS.sub(r'<thead><tr style="text-align: right;">\3\2</tr></thead>', html)
                output["data"]["text/html"] = FIGURE_ELEMENT.sub(numbered, html)
    named = re.sub(r"/step(-?\d+)$", lambda step: "" if step[1] == "-1" else f" at step {step[1]}",
                   name.partition("/")[2])
    first = next((cell for cell in found["cells"] if cell["cell_type"] == "markdown"), None)
    if named and first:
        lines = "".join(first["source"]).split("\n")
        lines[0] += f": {named}"
        first["source"] = "\n".join(lines)
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


def _title(kind: str) -> str:
    return title(TEMPLATES / f"{kind}.ipynb")


def _without_runs(kind: str, absent: list[str]) -> str:
    why = f"Not finished: {', '.join(f'`{name}`' for name in absent)}." if absent else \
        "No model of this suite is measured here; its suite file says for which models this notebook runs."
    return f"# {_title(kind)}\n\n{why}\n"


def _smaller(found: re.Match[str]) -> str:
    """A figure in a page in fewer bytes: paths in hundredths of a point, no indentation, no base64."""
    svg = re.sub(r"\s*\n\s*", " ", base64.b64decode(found[1]).decode())
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\d\.\d\d)\d+", r"\1", path[0]), svg)
    return "data:image/svg+xml," + quote(svg, safe=" !$()*+,-./:;=?@_~|{}[]^`'")


def _copy_scripts(folder: Path) -> None:
    for package, file, name in SCRIPTS:
        found = importlib.util.find_spec(package)
        if found is None or not found.origin:
            raise FileNotFoundError(f"the package {package} is not installed: make env")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(found.origin).parent / file, target)


def build(results: Path, notebooks: Sequence[Path], log: Path, missing: Sequence[Path] = ()) -> Path:
    """Render the book, every warning an error. Returns the page to open; raises RuntimeError in one line."""
    source = stage(results, notebooks, missing)
    shutil.rmtree(results / "book" / "_build", ignore_errors=True)
    builder = Path(sys.executable).with_name("jupyter-book")  # of this environment, activated or not
    command = [str(builder), "build", str(source), "--path-output", str(results / "book")]
    command += ["-W", "-n", "--keep-going", "--all"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if status or not page(results).is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        marked = [line.strip() for line in lines if "WARNING" in line or "ERROR" in line or "Error:" in line]
        page(results).unlink(missing_ok=True)
        first = (marked or lines[-1:] or ["no output"])[0]
        raise RuntimeError(f"the book has {len(marked)} warnings or errors, first: {first} (log {log})")
    write_data(results, [_run_name(results, notebook) for notebook in notebooks], page(results).parent)
    _copy_scripts(page(results).parent / "_static")
    for pattern in UNUSED:
        for file in (page(results).parent / "_static").rglob(pattern):
            file.unlink()
    for file in page(results).parent.rglob("*.html"):
        text = file.read_text(encoding="utf-8")
        for pattern in NOT_FROM_DISK:
            text = re.sub(pattern, "", text)
        text = LAUNCHED.sub(r"\1", text)
        file.write_text(FIGURE.sub(_smaller, text), encoding="utf-8")
    return page(results)


def build_unfinished(suite: Suite, log: Path) -> Path | None:
    """The book of those runs of a suite that have finished, the others named on its page of runs.

    None where nothing is missing. Raises LockedError while a sweep is at work on the results, and as `build`.
    """
    results = Path(suite.results)
    with lock_sweep(results):
        there = [path for path in suite.notebooks if path.is_file()]
        missing = [path for path in suite.notebooks if not path.is_file()]
        if not missing:
            return None
        unfinished = build(results, there, log, missing)
        os.utime(unfinished, (1, 1))  # older than anything, or the workflow would take it for the finished one
        return unfinished


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the book of a suite.")
    parser.add_argument("results", type=Path, nargs="?", help="results/<suite>")
    parser.add_argument("--notebooks", type=Path, nargs="*", default=[], help="executed notebooks")
    parser.add_argument("--unfinished", type=Path, metavar="SUITE", help="a suite file: the book of what has finished")
    parser.add_argument("--log", type=Path, required=True)
    given = parser.parse_args(arguments)
    if bool(given.results) == bool(given.unfinished):
        parser.error("expected either a results folder or --unfinished SUITE")
    try:
        if given.results:
            print(build(given.results, given.notebooks, given.log))
        elif page_of := build_unfinished(read_suite(given.unfinished), given.log):
            print(f"Open {page_of}: runs are missing, and its page of runs names them")
    except LockedError:  # the sweep whose place this takes has said so
        return 1
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
