"""The book's page of all runs, their tables as CSV, and what the columns of these mean."""

import gzip
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path

import pandas as pd
import yaml

from icl_lib.analysis.claims import with_verdicts
from icl_lib.tables import DICTIONARY, KEYS, read_table
from workflow.notebooks import Run

_PLAIN = 100  # rows up to which the CSV of a table that a page has is not compressed
# Where the book keeps the verdicts on the claims over one group of models, and the executed notebook of a run.
_VERDICTS, _EXECUTED = "tables/verdicts/{}.csv", "tables/notebooks/{}.ipynb.gz"


def runs_page(results: Path, pages: dict[str, str], missing: list[str]) -> str:
    """Markdown of the page: one row per executed notebook with its time, parameters, versions and tables.

    `pages` gives the page of each run, in the book's order; `missing` names runs that have no executed notebook.
    """
    absent = f"\n**Missing:** {', '.join(f'`{name}`' for name in missing)}.\n" if missing else ""
    return (
        "# Runs\n\nEvery executed notebook of this book, with what it was given and the tables that it wrote. Large "
        f'tables are compressed.\n{absent}\n<div class="wide"><table class="sortable">'
        + _rows(("run", "started (UTC)", "seconds", "made with", "tables"),
                (_row(results, name, target) for name, target in pages.items())) + "</table></div>\n")


def dictionary_page() -> str:
    """Markdown of the data dictionary: every kind of table with its columns, from icl_lib/tables.yaml."""
    parts = ["# Data dictionary\n\nThe tables of this book, as they lie in `results/` and `pretrained/` (parquet; "
             "`icl_lib.tables.read_table` reads them with their provenance) and below each page (CSV of seven digits). "
             "No two rows have the same values in all columns with a star.\n"]
    values = {column: f": <code>{'</code>, <code>'.join(known)}</code>"
              for column, known in DICTIONARY["values"].items()}
    for name, table in DICTIONARY["tables"].items():
        meanings = DICTIONARY["meanings"] | table.get("meanings", {})
        rows = (f"<tr><td><code>{column}</code>{'*' if column in KEYS[name] else ''}</td><td>{kind}</td>"
                f"<td>{escape(meanings[column])}{values.get(column, '')}</td></tr>"
                for column, kind in table["columns"].items())
        parts.append(f'\n## {name}\n\n{table["row"]}\n\n<div class="wide dictionary"><table>'
                     + _rows(("column", "type", "what it holds"), rows) + "</table></div>\n")
    return "".join(parts)


def _rows(columns: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{column}</th>" for column in columns)
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"


def data_of_page(results: Path, name: str, up: str) -> str:
    """HTML of the last line of a run's page: its tables, the executed notebook, and where the columns are explained.

    Links lead to the book's root, which lies `up` from the page.
    """
    links = _links(results, name, up)
    if name.partition("/")[0] == "claims":
        links.append(f'<a href="{up}{_VERDICTS.format(name)}">verdicts</a>')
    links.append(f'<a download href="{up}{_EXECUTED.format(name)}">executed notebook</a>')
    return (f'<p class="data-of-page">Data of this page: {", ".join(links)}. '
            f'<a href="{up}data.html">What the columns hold</a>.</p>')


def _row(results: Path, name: str, target: str) -> str:
    executed = json.loads((results / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    run = executed["metadata"].get("papermill", {})
    files = _tables_of(results, name)
    made = _read(files[0]).attrs["provenance"] if files else {}
    commit = [f"commit {made['git_commit'][:9]}{', changed since' if made['git_dirty'] else ''}"] if made else []
    versions = [f"{package} {version}" for package, version in made.get("versions", {}).items()]
    parameters = yaml.safe_dump(run.get("parameters", {}), sort_keys=False, default_flow_style=None, width=80)
    in_line = escape(parameters.strip()).replace("\n", "&#10;")  # a blank line would end the block it stands in
    return (
        f'<tr><td><a href="{target}.html">{escape(name)}</a><details><summary>parameters</summary>'
        f"<pre>{in_line}</pre></details></td>"
        f"<td>{escape(str(run.get('start_time', ''))[:19].replace('T', ' '))}</td>"
        f"<td>{run.get('duration') or 0:.0f}</td><td>{escape(', '.join(commit + versions))}</td>"
        f"<td>{' '.join(_links(results, name))}</td></tr>")


def _tables_of(results: Path, name: str) -> list[Path]:
    """The tables that a run wrote, those that are there."""
    kind, _, of = name.partition("/")
    return [path for table in Run(kind, of).tables if (path := results / table).is_file()]


def _links(results: Path, name: str, up: str = "") -> list[str]:
    return [f'<a href="{up}tables/{_csv_name(results, file).as_posix()}">{file.relative_to(results).parts[0]}</a>'
            for file in _tables_of(results, name)]


def _csv_name(results: Path, table: Path) -> Path:
    """A table's CSV under the book's tables folder; compressed where the table is long."""
    return table.relative_to(results).with_suffix(".csv.gz" if len(_read(table)) > _PLAIN else ".csv")


def write_data(results: Path, names: Iterable[str], folder: Path) -> None:
    """Tables that the named runs wrote or read as CSV of seven digits, in the same tree, and their executed notebooks.

    Those that were only read, of checkpoints without a page, are compressed. Other files among the results are left
    alone. Raises ValueError, naming the file, for a table that is damaged.
    """
    own, read = set(), set()
    for name in names:
        executed = (results / "notebooks" / f"{name}.ipynb").read_bytes()
        _write(folder / _EXECUTED.format(name), executed)
        own |= {*_tables_of(results, name)}
        tables = (json.loads(executed)["metadata"].get("made_from") or {}).get("tables", {})
        read |= {path for table in tables if (path := results / table).is_file()}
    for table in sorted(own | read):
        frame, target = _read(table), folder / "tables" / _csv_name(results, table)
        _write(target if table in own else target.with_name(f"{table.stem}.csv.gz"), _csv(frame))
        kind, *name = table.relative_to(results).with_suffix("").parts
        if kind == "statistics" and name[0] == "claims":
            _write(folder / _VERDICTS.format("/".join(name)), _csv(with_verdicts(frame)))


def _read(table: Path) -> pd.DataFrame:
    try:
        return read_table(table)
    except ValueError as error:
        raise ValueError(f"{error}; remove that file and run the suite again") from None


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, float_format="%.7g").encode()


def _write(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(content, mtime=0) if target.suffix == ".gz" else content)
