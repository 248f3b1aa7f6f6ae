"""Reading a page as its reader does: what it shows, the numbers in it, and whether each is one that was recomputed."""

import re
from html.parser import HTMLParser
from unittest import mock

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
from IPython.display import Markdown

from icl_lib.figures.common import Figure
from tests.project import ROOT

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?%?")


def run_page(notebook, **parameters):
    """Everything that a notebook shows, in order, and its variables; figures are drawn and not saved."""
    shown, variables = [], {}

    def display(*objects):
        shown.extend(objects)
        plt.close("all")

    def as_html(figure):
        display(figure)
        return ""

    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    with mock.patch("IPython.display.display", display), mock.patch.object(Figure, "_repr_html_", as_html):
        for cell in cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, f"{notebook}.ipynb", "exec"), variables)
                if "parameters" in cell.metadata.get("tags", []):
                    assert set(parameters) <= set(variables), "a parameter that the notebook does not declare"
                    variables.update(parameters)
    return shown, variables


def numbers_in(text, names=()):
    """The numbers in a text as (value, half a unit of its last digit); those in the given names are not counted.

    "12%" and "12 %" differ: the former is a share. A head such as L2H3 is two numbers.
    """
    assert not re.search(r"\b(nan|inf|None)\b", text), f"no number: {text}"
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, " ")
    text = re.sub(r"L(\d+)H(\d+)", r" \1 \2 ", text)
    text = re.sub(r"(?<![\w.])[A-Za-z][\w-]*", " ", re.sub(r"(\d)(st|nd|rd|th)\b", r"\1", text))
    found = []
    for token in NUMBER.findall(text):
        digits, _, exponent = token.rstrip("%").replace(",", "").partition("e")
        unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
        value = float(digits) * 10.0 ** int(exponent or 0)
        scale = 0.01 if token.endswith("%") else 1
        found.append((value * scale, unit * scale / 2))
    return found


def check(text, expected, names=()):
    """Every number of a text is the expected one, in order, to its last digit; (value, tolerance) for a bootstrap."""
    found = numbers_in(text, names)
    assert len(found) == len(expected), f"{len(found)} numbers, {len(expected)} recomputed: {text}\n{expected}"
    for (value, half), wanted in zip(found, expected, strict=True):
        wanted, tolerance = wanted if isinstance(wanted, tuple) else (wanted, 0)
        assert abs(value - wanted) <= half * 1.001 + tolerance + 1e-12, f"{value} printed, {wanted} recomputed: {text}"


def covered(text, values, names=()):
    """Every number of a text is one of the values, to its last digit."""
    values = np.array([value for value in values if np.isfinite(value)])
    for value, half in numbers_in(text, names):
        assert (np.abs(values - value) <= half * 1.001 + 1e-12).any(), f"{value} is not recomputed: {text}"


class _Rows(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.cell = [], None

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.cell = []

    def handle_data(self, data):
        if self.cell is not None:
            self.cell.append(data)

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self.cell is not None:
            self.rows[-1].append(" ".join("".join(self.cell).split()))
            self.cell = None


def rows_of(html):
    """The cells of all rows of the tables in a piece of HTML, as text."""
    parser = _Rows()
    parser.feed(html)
    return parser.rows


def texts(shown, kind=Markdown):
    return [thing.data for thing in shown if isinstance(thing, kind)]


def frames(shown):
    return [thing for thing in shown if isinstance(thing, pd.DataFrame)]


def near(found, wanted):
    """Whether numbers are the recomputed ones; an (end, tolerance) is one of a bootstrap, NaN equals NaN."""
    wanted, tolerance = wanted if isinstance(wanted, tuple) else (wanted, 1e-9)
    return (np.isnan(found) and np.isnan(wanted)) or abs(found - wanted) <= tolerance + 1e-9 * abs(wanted)
