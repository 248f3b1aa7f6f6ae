"""The book's page of all runs, their tables as CSV, and what the columns of these mean."""

import gzip
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import yaml

from icl_lib.analysis.claims import with_verdicts
from icl_lib.tables import DICTIONARY, KEYS, read_table
from workflow.notebooks import NOTEBOOKS, place

_PLAIN = 15_000  # bytes of a parquet file up to which its CSV is not compressed


def runs_page(results: Path, pages: dict[str, str], missing: list[str]) -> str:
    """Markdown of the page: one row per executed notebook with its time, parameters, versions and tables.

    `pages` gives the page of each run, in the book's order; `missing` names runs that have no executed notebook.
    """
    rows = "".join(_row(results, name, target) for name, target in pages.items())
    absent = f"\n**Missing:** {', '.join(f'`{name}`' for name in missing)}.\n" if missing else ""
    head = "".join(f"<th>{title}</th>" for title in ("run", "started (UTC)", "seconds", "made with", "tables"))
    return (
        "# Runs\n\nEvery executed notebook of this book, with what it was given and the tables that it wrote. Large "
        "tables are compressed.\n" + absent
        + f'\n<div class="wide"><table class="sortable"><thead><tr>{head}</tr></thead>'
        + f"<tbody>{rows}</tbody></table></div>\n")


def dictionary_page() -> str:
    """Markdown of the data dictionary: every kind of table with its columns, from icl_lib/tables.yaml."""
    parts = ["# Data dictionary\n\nThe tables of this book, as they lie in `results/` and `pretrained/` (parquet; "
             "`icl_lib.tables.read_table` reads them with their provenance) and below each page (CSV of seven digits). "
             "No two rows have the same values in all columns with a star.\n"]
    for name, table in DICTIONARY["tables"].items():
        meanings = DICTIONARY["meanings"] | table.get("meanings", {})
        rows = "".join(
            f"<tr><td><code>{column}</code>{'*' if column in KEYS[name] else ''}</td><td>{kind}</td>"
            f"<td>{escape(meanings[column])}{_values(column)}</td></tr>" for column, kind in table["columns"].items())
        head = "".join(f"<th>{title}</th>" for title in ("column", "type", "what it holds"))
        parts.append(f"\n## {name}\n\n{table['row']}\n\n"
                     f'<div class="wide dictionary"><table><thead><tr>{head}</tr></thead>'
                     f"<tbody>{rows}</tbody></table></div>\n")
    return "".join(parts)


def _values(column: str) -> str:
    values = DICTIONARY["values"].get(column)
    return f": {', '.join(f'<code>{value}</code>' for value in values)}" if values else ""


def data_of_page(results: Path, name: str, up: str) -> str:
    """HTML of the last line of a run's page: its tables, the executed notebook, and where the columns are explained.

    Links lead to the book's root, which lies `up` from the page.
    """
    tables = [f'<a href="{up}tables/{csv_name(results, file).as_posix()}">{file.relative_to(results).parts[0]}</a>'
              for file in tables_of_run(results, name)]
    if name.partition("/")[0] == "claims":
        tables.append(f'<a href="{up}{verdicts_name(name)}">verdicts</a>')
    return (f'<p class="data-of-page">Data of this page: {"".join(f"{table}, " for table in tables)}'
            f'<a download href="{up}{notebook_name(name)}">executed notebook</a>. '
            f'<a href="{up}data.html">What the columns hold</a>.</p>')


def verdicts_name(name: str) -> str:
    """Where the book keeps the verdicts on the claims over one group of models, "claims" or "claims/<group>"."""
    return f"tables/verdicts/{name}.csv"


def notebook_name(name: str) -> str:
    """Where the book keeps the executed notebook of a run, compressed."""
    return f"tables/notebooks/{name}.ipynb.gz"


def _row(results: Path, name: str, target: str) -> str:
    executed = json.loads((results / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    run = executed["metadata"].get("papermill", {})
    files = tables_of_run(results, name)
    made = read_table(files[0]).attrs["provenance"] if files else {}
    versions = ", ".join(f"{package} {version}" for package, version in made.get("versions", {}).items())
    commit = f"commit {made['git_commit'][:9]}{', changed since' if made['git_dirty'] else ''}" if made else ""
    links = " ".join(
        f'<a href="tables/{csv_name(results, file).as_posix()}">{file.relative_to(results).parts[0]}</a>'
        for file in files)
    return (
        f'<tr><td><a href="{target}.html">{escape(name)}</a><details><summary>parameters</summary>'
        f"<pre>{_yaml(run.get('parameters', {}))}</pre></details></td>"
        f"<td>{escape(str(run.get('start_time', ''))[:19].replace('T', ' '))}</td>"
        f"<td>{run.get('duration') or 0:.0f}</td><td>{escape(', '.join(filter(None, [commit, versions])))}</td>"
        f"<td>{links}</td></tr>")


def _yaml(parameters: dict[str, Any]) -> str:
    """Plain text on one HTML line, so that no blank line ends the block it stands in."""
    text = yaml.safe_dump(parameters, sort_keys=False, default_flow_style=None, width=80)
    return escape(text.strip()).replace("\n", "&#10;")


def tables_of_run(results: Path, name: str) -> list[Path]:
    """The tables that a run wrote, those that are there."""
    kind, _, of = name.partition("/")
    paths = [results / f"{place(kind, table)}{'/' if of else ''}{of}.parquet" for table in NOTEBOOKS[kind].writes]
    return [path for path in paths if path.is_file()]


def csv_name(results: Path, table: Path) -> Path:
    """A table's CSV under the book's tables folder; compressed where the parquet file is large."""
    return table.relative_to(results).with_suffix(".csv.gz" if table.stat().st_size > _PLAIN else ".csv")


def write_data(results: Path, names: Iterable[str], folder: Path) -> None:
    """Every table of the results as CSV of seven digits, in the same tree, and the named runs' executed notebooks."""
    for kind in sorted({table for notebook in NOTEBOOKS.values() for table in notebook.writes}):
        for table in sorted((results / kind).rglob("*.parquet")):
            text = read_table(table).to_csv(index=False, float_format="%.7g").encode()
            _write(folder / "tables" / csv_name(results, table), text)
    for table in sorted((results / "statistics").rglob("*.parquet")):
        name = table.relative_to(results / "statistics").with_suffix("").as_posix()
        if name.partition("/")[0] == "claims":
            text = with_verdicts(read_table(table)).to_csv(index=False, float_format="%.7g").encode()
            _write(folder / verdicts_name(name), text)
    for name in names:
        _write(folder / notebook_name(name), (results / "notebooks" / f"{name}.ipynb").read_bytes())


def _write(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(content, mtime=0) if target.suffix == ".gz" else content)
