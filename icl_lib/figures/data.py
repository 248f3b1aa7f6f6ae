"""What a figure shows, as numbers: one row per point, line point, interval, band edge or cell of a map."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import Collection, LineCollection, PathCollection, PolyCollection, QuadMesh
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
        names = {"x": _names(ax.xaxis), "y": _names(ax.yaxis)}
        for row in _marks(ax):
            ends = [end for end in ("x", "y", "x_end", "y_end") if end in row]
            rows.append(of_panel | row | {end: _named(float(row[end]), names[end[0]]) for end in ends})
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.loc[:, (table.notna() & (table != "")).any()]


def _marks(ax: Axes) -> Iterator[dict]:
    for line in ax.lines:
        for x, y in np.asarray(line.get_xydata(), dtype=float):
            yield {"mark": "line", "series": _label(line), "x": x, "y": y}
    for collection in ax.collections:
        yield from _of_collection(collection)
    for container in ax.containers:
        for bar in container.patches if isinstance(container, BarContainer) else ():
            x, y, x_end, y_end = bar.get_bbox().extents
            yield {"mark": "bar", "series": _label(container), "x": x, "y": y, "x_end": x_end, "y_end": y_end}
    for text in ax.texts:
        if text.get_transform() == ax.transData and text.get_text():
            x, y = text.get_position()
            yield {"mark": "text", "series": _words(text.get_text()), "x": x, "y": y}


def _of_collection(collection: Collection) -> Iterator[dict]:
    series = {"series": _label(collection)}
    if isinstance(collection, QuadMesh):
        for (y, x), value in np.ndenumerate(np.ma.filled(collection.get_array().astype(float), np.nan)):
            yield {"mark": "cell", "x": x + 0.5, "y": y + 0.5, "value": value}  # its middle
    elif isinstance(collection, PathCollection):
        for x, y in np.asarray(collection.get_offsets(), dtype=float):
            yield series | {"mark": "points", "x": x, "y": y}
    elif isinstance(collection, LineCollection):
        # an interval without ends has no points: one draw or one task has none
        for (x, y), *_, (x_end, y_end) in filter(len, collection.get_segments()):
            yield series | {"mark": "interval", "x": x, "y": y, "x_end": x_end, "y_end": y_end}
    elif isinstance(collection, PolyCollection):
        for path in collection.get_paths():
            for x, y in path.vertices:
                yield series | {"mark": "band", "x": x, "y": y}


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
