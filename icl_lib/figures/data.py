"""What a figure shows, as numbers: one row per point, line point, interval, band edge or cell of a map."""

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, PolyCollection, QuadMesh
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullFormatter, ScalarFormatter

COLUMNS = ["panel", "title", "x_axis", "y_axis", "mark", "series", "x", "y", "x_end", "y_end", "value"]


def drawn(figure: Figure) -> pd.DataFrame:
    """The marks of a figure, panels numbered from 1, in the units of the axes; places that have names bear them.

    `mark`: line, points, interval (from x, y to x_end, y_end), band (its edge), bar (its corners), text or cell (x the
    column, y the row, `value`); `series` is what the legend or the text says. Columns without anything are left out.
    """
    rows = []
    for number, ax in enumerate(figure.axes, 1):
        of_panel = {"panel": number, "title": _words(ax.get_title() or ax.get_title("right")),
                    "x_axis": _words(ax.get_xlabel()), "y_axis": _words(ax.get_ylabel())}
        names = {"x": _names(ax.xaxis), "y": _names(ax.yaxis), "value": {}}
        for mark, series, places in _marks(ax):
            ends = ("x", "y", "value") if mark == "cell" else ("x", "y", "x_end", "y_end")
            rows += [of_panel | {"mark": mark, "series": series} | {
                end: _named(float(at), names[end.removesuffix("_end")]) for end, at in zip(ends, place, strict=False)}
                for place in places]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.loc[:, (table.notna() & (table != "")).any()]


def _marks(ax: Axes) -> Iterator[tuple[str, str, Iterable]]:
    """What marks of one series are, the series, and of each mark its numbers."""
    for line in ax.lines:
        yield "line", _label(line), line.get_xydata()
    for marks in ax.collections:
        series = _label(marks)
        if isinstance(marks, QuadMesh):
            values = np.ma.filled(marks.get_array().astype(float), np.nan)
            yield "cell", "", [(x + 0.5, y + 0.5, value) for (y, x), value in np.ndenumerate(values)]  # its middle
        elif isinstance(marks, PathCollection):
            yield "points", series, np.asarray(marks.get_offsets())
        elif isinstance(marks, LineCollection):
            # an interval without ends has no points: one draw or one task has none
            yield "interval", series, [(*line[0], *line[-1]) for line in marks.get_segments() if len(line)]
        elif isinstance(marks, PolyCollection):
            yield "band", series, [place for path in marks.get_paths() for place in path.vertices]
    for container in ax.containers:
        if isinstance(container, BarContainer):
            yield "bar", _label(container), [bar.get_bbox().extents for bar in container]
    for text in ax.texts:
        if text.get_transform() == ax.transData and text.get_text():
            yield "text", _words(text.get_text()), [text.get_position()]


def _label(artist) -> str:
    label = str(artist.get_label())
    return "" if label.startswith("_") else label


def _words(text: str) -> str:
    return " ".join(text.split())


def _names(axis) -> dict[float, str]:
    """Names of places on an axis that is no scale of numbers."""
    if isinstance(axis.get_major_formatter(), ScalarFormatter | LogFormatter | NullFormatter):
        return {}
    return {float(place): _words(label.get_text()) for place, label in zip(
        axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)}


def _named(place: float, names: dict[float, str]) -> float | str:
    """The name of a place; marks beside each other for want of room have the name of the nearest."""
    nearest = min(names, key=lambda at: abs(at - place), default=np.nan)
    return names[nearest] if abs(nearest - place) < 0.5 else place
