"""What figures of pages show: points of their data, without frames, ticks, labels, legends and reference lines."""

import re
import xml.etree.ElementTree as ET
from base64 import b64decode
from urllib.parse import unquote

SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
PICTURE = re.compile(r'<img (?=[^>]*class="figure)[^>]*src="data:image/svg\+xml(;base64)?,([^"]*)"')
NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")


def figures_in(html):
    """The SVG of every figure in a page or in a notebook's output."""
    return [b64decode(data).decode() if is_base64 else unquote(data).replace("&#38;", "&").replace("&#34;", '"')
            for is_base64, data in PICTURE.findall(html)]


def points_drawn(svg):
    """How many different points the marks of each panel have, the panel's frame and lines across it left out."""
    axes = [g for g in ET.fromstring(svg).iter(f"{SVG}g") if re.fullmatch(r"axes_\d+", g.get("id", ""))]
    return [sum(_points(mark) for mark in _marks(panel)) for panel in axes]


def _marks(panel):
    named = [g for g in panel if g.tag == f"{SVG}g" and g.get("id")]
    frame = next((g for g in named if g.get("id").startswith("patch_")), None)
    for g in named:
        kind = g.get("id").rsplit("_", 1)[0]
        if g is not frame and kind not in ("matplotlib.axis", "legend", "text", "matplotlib.table") and not _spine(g):
            yield g
    yield from (image for image in panel.iter(f"{SVG}image"))


def _spine(g):
    return g.get("id").startswith("patch_") and any(
        "fill: none" in path.get("style", "") and "square" in path.get("style", "") for path in g.iter(f"{SVG}path"))


def _points(mark):
    if mark.tag == f"{SVG}image":
        return 100
    in_definitions = {id(path) for defs in mark.iter(f"{SVG}defs") for path in defs.iter(f"{SVG}path")}
    found = {(use.get("x"), use.get("y"), use.get(LINK)) for use in mark.iter(f"{SVG}use")}
    for path in mark.iter(f"{SVG}path"):
        if id(path) not in in_definitions:
            numbers = NUMBERS.findall(path.get("d", ""))
            found |= set(zip(numbers[::2], numbers[1::2], strict=False))
    lines = list(zip(*found, strict=True)) if mark.get("id").startswith("line2d") and len(found) == 2 else []
    return 0 if any(len(set(coordinates)) == 1 for coordinates in lines[:2]) else len(found)
