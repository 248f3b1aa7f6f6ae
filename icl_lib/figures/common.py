"""What all figures share: one colour and marker per head kind in the whole book, lines over tasks, how to show one."""

import re
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import yaml

from icl_lib.figures.data import drawn
from icl_lib.stats.intervals import bootstrap_mean

_SHOWN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
COLOUR, MARKER, LINE, LABEL = (
    {kind: look[part] for kind, look in _SHOWN["kinds"].items()} for part in ("colour", "marker", "line", "label"))
SCORE_LABEL, METRIC_LABEL, CONTROL_LABEL = (_SHOWN[name] for name in ("scores", "metrics", "controls"))
GREY = "#BBBBBB"  # of lines that mark a place
IN_LINKS = " !$()*+,-./:;=?@_~|{}[]^`'"  # what browsers read in a link that holds a file as it is


@dataclass(frozen=True, repr=False)
class Figure:
    """A drawn figure, its caption and its words for who cannot see it; a notebook shows it with its numbers as CSV."""

    axes: Any
    caption: str
    alt: str

    def __repr__(self) -> str:
        return self.alt

    def _repr_html_(self) -> str:
        """The figure, which is closed, as HTML with caption, alternative text and what it shows as CSV."""
        figure, buffer = np.ravel(self.axes)[0].figure, StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        numbers = numbers_link(drawn(figure))
        plt.close(figure)
        return (f'<figure><img class="figure" style="background: white" alt="{escape(self.alt)}" '
                f'src="{svg_link(buffer.getvalue())}"/><figcaption>{escape(self.caption)} {numbers}</figcaption>'
                "</figure>")


def svg_link(svg: str) -> str:
    """An SVG as a link that holds it, in few bytes: no comments, no indentation, places in hundredths of a point."""
    svg = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", svg)).strip()
    svg = re.sub(r' (?:d|x|y)="[^"]*"|translate\([^)]*\)', lambda at: re.sub(r"(\d\.\d\d)\d+", r"\1", at[0]), svg)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r" ?([A-Za-z]) (?=[-\d])", r"\1", path[0]), svg)
    return "data:image/svg+xml," + quote(svg.replace("'", "&apos;").replace('"', "'"), safe=IN_LINKS)


def style() -> None:
    """Settings of the book: tables with all words, SVG without a ground (the page has one, and inverts ink if dark)."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    pd.set_option("display.max_colwidth", None)
    sns.set_theme(context="notebook", style="ticks", rc={
        "figure.facecolor": "white", "axes.facecolor": "none", "savefig.facecolor": "none",
        "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 100, "svg.fonttype": "path",
        "legend.frameon": False, "figure.constrained_layout.use": True, "svg.hashsalt": "icl_lib",
    })
    set_matplotlib_formats("svg")


def numbers_link(table: pd.DataFrame) -> str:
    """A link that saves what a figure shows; the book gives the file the figure's name."""
    data = quote(table.to_csv(index=False, float_format="%.6g"), safe=IN_LINKS)
    return f'<a download="figure.csv" href="data:text/csv;charset=utf-8,{data}">Numbers (CSV)</a>'


def look(kind: str, **other: Any) -> dict[str, Any]:
    """Colour, marker, line and label of a head kind as matplotlib takes them, with what is `other`wise."""
    return dict(color=COLOUR[kind], marker=MARKER[kind], linestyle=LINE[kind], label=LABEL[kind]) | other


def task_points(rows: pd.DataFrame, x: str, seed: int) -> pd.DataFrame:
    """Per `x`, the index, the mean over tasks as `value` and the ends of a 95 % interval as `low` and `high`: bootstrap
    over tasks, or for a single one (documents) 1.96 standard errors."""
    points = {}
    for at, group in rows.groupby(x):
        by_task = group.groupby("task")[["value", "standard_error"]].mean()
        value, error = by_task.iloc[0].astype(float)
        points[at] = (bootstrap_mean(by_task["value"].to_numpy(), seed=seed) if len(by_task) > 1 else
                      (value, value - 1.96 * error, value + 1.96 * error))
    return pd.DataFrame.from_dict(points, orient="index", columns=["value", "low", "high"], dtype=float)


def line_with_band(ax, rows: pd.DataFrame, **style: Any) -> None:
    """At the places of the index a line through the column `value`, and a band from `low` to `high`."""
    ax.plot(rows["value"], **style)
    ax.fill_between(rows.index, rows["low"], rows["high"], color=style["color"], alpha=0.15, linewidth=0)


def line_over_tasks(ax, rows: pd.DataFrame, x: str, seed: int, **style: Any) -> None:
    """`task_points` as a line with a band, or as bars where there is one place; nothing where there are no rows."""
    points = task_points(rows, x, seed)
    if len(points) == 1:
        ax.plot(points["value"], markersize=5, **style)
        ax.vlines(points.index, points["low"], points["high"], color=style["color"], alpha=0.5)
    elif len(points):
        line_with_band(ax, points, markersize=5, **style)


def legend(axes, **style: Any) -> None:
    """One legend for all panels, above them, that has every label once."""
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    axes[0].figure.legend(handles.values(), handles, **{"loc": "outside upper center", "fontsize": 10} | style)


def note(ax, text: str) -> None:
    """Words in the middle of a panel that has nothing to show."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=10, color="#5A5A5A")
