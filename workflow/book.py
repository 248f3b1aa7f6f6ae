"""Build the book of a suite: `python -m workflow.book RESULTS --notebooks FILE...`; prints the page to open.

The builder walks the whole folder it is given, so it gets one that holds the pages and executed notebooks and
nothing else, RESULTS/book/source: the settings and the hand-written pages of book/ at its root, the executed
notebooks under notebooks/ as they lie under RESULTS. Where `_toc.yml` names a chapter after a notebook
("scoring"), the runs of that notebook are filled in.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from workflow.suite import TABLES

SETTINGS = Path("_config.yml")
CONTENTS = Path("_toc.yml")
PAGES = Path("book")


def page(results: Path) -> Path:
    """The first page of a suite's book."""
    return results / "book" / "_build" / "html" / "index.html"


def stage(results: Path, notebooks: Sequence[Path]) -> Path:
    """Copy settings, hand-written pages and executed notebooks into an empty source folder.

    The last run of each notebook in the order given, by the suite the last step of the last model, is the
    page that bears the notebook's name, unless book/ has a page of that name; the other runs are sections
    below it. Raises FileNotFoundError for a missing file.
    """
    source = results / "book" / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(PAGES, source, ignore=shutil.ignore_patterns("_build", ".*"))
    shutil.copy(SETTINGS, source / SETTINGS.name)
    runs: dict[str, list[str]] = {kind: [] for kind in TABLES}
    for notebook in notebooks:
        name = notebook.relative_to(results / "notebooks").with_suffix("").as_posix()
        runs[name.split("/")[0]].append(name)
    for kind, names in runs.items():
        if names and not list(source.glob(f"{kind}.*")):
            shutil.copy(results / "notebooks" / f"{names.pop()}.ipynb", source / f"{kind}.ipynb")
        for name in names:
            target = source / "notebooks" / f"{name}.ipynb"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(results / "notebooks" / f"{name}.ipynb", target)
    toc = yaml.safe_load(CONTENTS.read_text(encoding="utf-8"))
    for part in [toc, *toc.get("parts", [])]:
        if "chapters" in part:
            chapters = [_with_runs(chapter, runs) for chapter in part["chapters"]]
            # A chapter without any run is left out: no model of this suite has several steps, say.
            part["chapters"] = [
                c for c in chapters if c.get("file") not in TABLES or _is_page(source, c["file"])
            ]
    if "parts" in toc:
        toc["parts"] = [part for part in toc["parts"] if part.get("chapters")]
    (source / CONTENTS.name).write_text(yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")
    return source


def _with_runs(chapter: dict[str, Any], runs: dict[str, list[str]]) -> dict[str, Any]:
    kind = chapter.get("file")
    sections = [
        {"file": f"notebooks/{name}", "title": ", ".join(name.split("/", 1)[-1].rsplit("/", 1))}
        for name in runs.get(kind, [])
    ]
    return chapter | {"sections": [*chapter.get("sections", []), *sections]} if sections else chapter


def _is_page(source: Path, name: str) -> bool:
    return any(path.suffix in (".md", ".ipynb") for path in source.glob(f"{name}.*"))


def build(results: Path, notebooks: Sequence[Path], log: Path) -> Path:
    """Render the book, every warning an error. Returns the page to open; raises RuntimeError in one line."""
    source = stage(results, notebooks)
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
    return page(results)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the book of a suite.")
    parser.add_argument("results", type=Path, help="results/<suite>")
    parser.add_argument("--notebooks", type=Path, nargs="*", default=[])
    parser.add_argument("--log", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        print(build(given.results, given.notebooks, given.log))
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
