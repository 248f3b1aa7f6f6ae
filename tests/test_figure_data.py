"""The numbers beside a figure are those that were given to it, and any figure of a page carries them."""

import io
import re
import xml.etree.ElementTree as ET
from html import unescape
from urllib.parse import unquote

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns

from icl_lib.figures.common import Figure, svg_link
from icl_lib.figures.data import drawn
from tests.drawn import figures_in


@pytest.fixture
def axes():
    figure, axes = plt.subplots(1, 2)
    yield axes
    plt.close(figure)


def test_lines_points_intervals_and_bands(axes):
    left, right = axes
    left.plot([1, 2], [0.25, 0.5], label="FV heads")
    left.axhline(0.1)
    left.set(title="plain\nranking", xlabel="heads (%)", ylabel="accuracy")
    right.scatter([3], [4], label="other heads")
    right.errorbar([0.5], [0], xerr=[[0.25], [0.125]], fmt="o")
    right.fill_between([0, 1], [2, 2], [3, 3])
    right.bar([1], [7], width=1, label="share")
    right.text(1, 0, "not\ndecided")
    right.text(0.5, 0.5, "a note on the panel", transform=right.transAxes)
    right.set_yticks([0, 1], ["mean", "zero"])
    table = drawn(left.figure)
    first = table[(table["panel"] == 1) & (table["series"] == "FV heads")]
    assert first[["title", "x_axis", "y_axis", "mark"]].drop_duplicates().to_numpy().tolist() == [
        ["plain ranking", "heads (%)", "accuracy", "line"]]
    assert first[["x", "y"]].to_numpy().tolist() == [[1, 0.25], [2, 0.5]]
    second = table[table["panel"] == 2].set_index("mark")
    assert second.loc["points", ["x", "y", "series"]].to_list() == [3, 4, "other heads"]
    assert second.loc["interval", ["x", "x_end", "y"]].to_list() == [0.25, 0.625, "mean"]
    assert set(second.loc["band", "y"]) == {2, 3}
    assert second.loc["bar", ["x", "x_end", "y_end", "series"]].to_list() == [0.5, 1.5, 7, "share"]
    assert second.loc["text", ["x", "y", "series"]].to_list() == [1, "mean", "not decided"]


def test_the_cells_of_a_map(axes):
    sns.heatmap(np.array([[1.5, 2], [3, -4]]), ax=axes[0], cbar=False)
    cells = drawn(axes[0].figure).query("mark == 'cell'")
    assert cells.set_index(["y", "x"])["value"].to_dict() == {
        ("0", "0"): 1.5, ("0", "1"): 2, ("1", "0"): 3, ("1", "1"): -4}


def test_a_page_carries_them(axes):
    axes[0].plot([1, 2], [0.25, 0.1234567891], label='a "b" & 5 %, <c>\nä')
    html = Figure(axes, "A caption", "a line")._repr_html_()
    data = re.search(r'<a download="figure.csv" href="data:text/csv;charset=utf-8,([^"]+)">', html)[1]
    table = pd.read_csv(io.StringIO(unquote(unescape(data))))
    assert table[["x", "y"]].to_numpy().tolist() == [[1, 0.25], [2, 0.123457]]
    assert set(table["series"]) == {'a "b" & 5 %, <c>\nä'}
    assert html.index("A caption") < html.index("<a ") < html.index("</figcaption>")


def test_marks_that_stand_aside_bear_the_name_of_their_place(axes):
    axes[0].scatter([1, 2], [0.2, 0.8])
    axes[0].set_yticks([0, 1], ["induction heads", "FV heads"])
    assert drawn(axes[0].figure)["y"].to_list() == ["induction heads", "FV heads"]


def test_an_interval_without_ends_is_none(axes):
    axes[0].errorbar([1, 2], [3, 4], yerr=[[np.nan, 0.5], [np.nan, 0.25]], fmt="o")
    intervals = drawn(axes[0].figure).query("mark == 'interval'")
    assert intervals[["x", "y", "y_end"]].to_numpy().tolist() == [[2, 3.5, 4.25]]


def test_the_picture_in_a_page_is_the_same_drawing_in_fewer_bytes(axes):
    axes[0].plot([1, 2, 3], [0.25, 0.1234567891, 0.7], marker="o")
    axes[1].set_title("it's <a> & \"b\" #1 50%")
    file = io.StringIO()
    axes[0].figure.savefig(file, format="svg")
    link = svg_link(file.getvalue())
    (found,) = figures_in(f'<img class="figure" src="{link}"/>')
    old, new = ([element for element in ET.fromstring(svg).iter() if element.tag.startswith("{http://www.w3.org/2000/svg}")
                 and not element.tag.endswith("metadata")] for svg in (file.getvalue(), found))
    assert len(link) < 0.95 * len(file.getvalue()) and [e.tag for e in old] == [e.tag for e in new]
    number = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
    for before, after in zip(old, new, strict=True):
        assert before.keys() == after.keys()
        for key, text in before.items():
            other = after.get(key)
            if key not in ("d", "x", "y", "transform"):
                assert text.split() == other.split()
                continue
            words, others = (re.sub(r"([A-Za-z])", r" \1 ", one) if key == "d" else one for one in (text, other))
            assert number.sub("#", words).split() == number.sub("#", others).split(), key
            apart = [abs(float(a) - float(b)) for a, b in zip(number.findall(text), number.findall(other), strict=True)]
            assert max(apart, default=0) <= 0.01, (key, text, other)
            assert "scale" not in text or re.findall(r"scale\([^)]*\)", text) == re.findall(r"scale\([^)]*\)", other)
    link = svg_link('<svg><text>it&#39;s "b" &amp; #1 50%</text></svg>')
    (quoted,) = figures_in(f'<img class="figure" src="{link}"/>')
    assert ET.fromstring(quoted)[0].text.replace("'", '"') == 'it"s "b" & #1 50%'
