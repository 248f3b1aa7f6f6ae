"""Sentences and small tables for the notebooks, made from tables so that no result is typed by hand."""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from IPython.display import HTML

from icl_lib.figures.common import CONTROL_LABEL, LABEL
from icl_lib.provenance import provenance
from icl_lib.tables import write_table

# By list the name of a number in a table `statistics` to what the page calls it and the format of its value.
NUMBERS: dict[str, dict[str, list[str]]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
CONTROL_WORDS = {control: " ".join(label.split()) for control, label in CONTROL_LABEL.items()}
KIND_WORDS = {kind: LABEL[kind] for kind in ("fv", "induction")}  # FV heads first, as pages name them


def fault_table(tasks: pd.DataFrame) -> pd.DataFrame:
    """What is odd in the tasks' files, a row each, from the table `tasks`; nothing of it is repaired."""
    odd = tasks[tasks["faults"] != ""].set_index("task")["faults"].str.split("; ").explode()
    return odd.rename("fault").to_frame()


def write_statistics(
    rows: pd.DataFrame, path: str | Path, *, suite: str, seed: int, parameters: dict[str, Any]
) -> None:
    """Write the numbers that a page prints, which are made from tables, as its table `statistics`."""
    made_by = provenance(suite=suite, seed=seed, dtype="", device="", bos="", parameters=parameters)
    rows = rows.assign(smallest_p=rows.get("smallest_p", np.nan))
    write_table(rows, path, schema_name="statistics", provenance=made_by)


def interval_words(row: pd.Series, form: str) -> str:
    """A row's `value` with its interval, where it has one, each in this format: "+0.12 (+0.04 to +0.20)"."""
    value, low, high = (f"{row[name]:{form}}" for name in ("value", "low", "high"))
    return value if np.isnan(row["low"]) else f"{value} ({low} to {high})"


def numbers_table(numbers: pd.DataFrame, shown: str) -> pd.DataFrame:
    """Rows of the table `statistics` in a page's words: value with its 95 % interval and its head, p, and `n`.
    `shown`: a list of `NUMBERS`; what there is no number of is left out."""
    of, rows = numbers.set_index("name"), {}
    for name, (words, form) in NUMBERS[shown].items():
        if name in of.index and pd.notna(of.at[name, "value"]):
            row, place = of.loc[name], [f"{name}, layer", f"{name}, head"]
            text = interval_words(row, form)
            if place[0] in of.index:
                text += " (L{:.0f}H{:.0f})".format(*of["value"][place])
            p_value = "" if np.isnan(row["p_value"]) else f"{row['p_value']:.2g}"
            rows[words] = {"value": text, "p": p_value, "n": str(row["n"])}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "p", "n"])
    return table if table["p"].any() else table.drop(columns="p")


def folded(table: pd.DataFrame, title: str) -> HTML:
    """A long table that opens on a click."""
    return HTML(f"<details><summary>{escape(title)}</summary>{table.to_html()}</details>")


def verdict_table(heads: Iterable[str], rows: Iterable[Iterable[str]], *, kind: str = "ledger", bare: int = 1) -> HTML:
    """Rows of HTML cells as a table. Where a screen is narrow, cells from column `bare` on bear their column's head."""
    heads = [escape(head) for head in heads]
    marks = ["" if i < bare else f' data-head="{head}"' for i, head in enumerate(heads)]
    lines = ("".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, row, strict=True)) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return HTML(f'<div class="wide"><table class="{kind}"><thead><tr><th>{"</th><th>".join(heads)}</th></tr></thead>'
                f"<tbody>{body}</tbody></table></div>")


def side_by_side(texts: Mapping[str, str]) -> HTML:
    """Named texts beside each other, as they are."""
    cells = "".join(f"<div><b>{escape(name)}</b><pre>{escape(text)}</pre></div>" for name, text in texts.items())
    return HTML(f'<div style="display: flex; gap: 2em; flex-wrap: wrap">{cells}</div>')


def transposed(comparison: pd.DataFrame) -> pd.DataFrame:
    """A table with one row per model turned, so that models stand side by side; whole numbers stay whole."""
    text = comparison.set_index("model").map(
        lambda v: f"{v:,}" if isinstance(v, int) else "" if np.isnan(v) else f"{v:.3f}")
    return text.T.rename_axis(index=None, columns=None)
