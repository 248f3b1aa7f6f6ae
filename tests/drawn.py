"""What figures of pages show: points of their data, without frames, ticks, labels, legends and reference lines."""

import re
import xml.etree.ElementTree as ET
from base64 import b64decode
from html import unescape
from urllib.parse import unquote

SVG = "{http://www.w3.org/2000/svg}"
PICTURE = re.compile(r'<img (?=[^>]*class="figure)[^>]*src="data:image/svg\+xml(;base64)?,([^"]*)"')
NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")


def figures_in(page):
    """The SVG of every figure in a page or in a notebook's output."""
    return [b64decode(data).decode() if is_base64 else unquote(unescape(data))
            for is_base64, data in PICTURE.findall(page)]


def points_drawn(svg):
    """How many different points the marks of each panel have; its frame and lines across all of it are none.

    A place of a grid that is switched off has no parts and is no panel.
    """
    axes = [g for g in ET.fromstring(svg).iter(f"{SVG}g") if re.fullmatch(r"axes_\d+", g.get("id", ""))]
    panels = [[g for g in panel if g.tag == f"{SVG}g" and g.get("id")] for panel in axes]
    return [_in_panel(parts) for parts in panels if parts]


def _in_panel(parts):
    frame = next(g for g in parts if g.get("id").startswith("patch_"))
    edges = _extent(_points(frame))
    return sum(len(points) for g in parts if g is not frame and not _beside(g) for points in [_points(g)]
               if points and not (len(points) == 2 and any(map(_spans, _extent(points), edges))))


def _beside(g):
    """Axis, legend, text, or a side of the frame."""
    kind = g.get("id").rsplit("_", 1)[0]
    styles = [path.get("style", "") for path in g.iter(f"{SVG}path")]
    return kind in ("matplotlib.axis", "legend", "text", "matplotlib.table") or (
        kind == "patch" and any("fill: none" in style and "square" in style for style in styles))


def _points(g):
    in_definitions = {id(path) for defs in g.iter(f"{SVG}defs") for path in defs.iter(f"{SVG}path")}
    found = {(float(use.get("x")), float(use.get("y"))) for use in g.iter(f"{SVG}use")}
    for path in g.iter(f"{SVG}path"):
        if id(path) not in in_definitions:
            numbers = [float(number) for number in NUMBERS.findall(path.get("d", ""))]
            found |= set(zip(numbers[::2], numbers[1::2], strict=False))
    return found


def _extent(points):
    return [(min(values), max(values)) for values in zip(*points, strict=True)]


def _spans(own, whole):
    return own[0] <= whole[0] + 1 and own[1] >= whole[1] - 1
