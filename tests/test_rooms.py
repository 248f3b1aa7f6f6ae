"""The rooms of icl_lib know only rooms below them."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from tests.project import ROOT

# From the bottom up; a room is a folder or a file of icl_lib. What stands in one line may not know each other.
ORDER = [
    ("progress", "stats", "provenance", "names", "files", "departures"),
    ("heads", "tables", "parameters"),
    ("kinds",),
    ("saved", "models"),
    ("notebook",),
    ("data",),
    ("forward",),
    ("scores", "metrics"),
    ("check",),
    ("load",),
    ("measurements",),
    ("ablation", "example", "injection", "protocols"),
    ("analysis",),
    ("figures",),
    ("pages",),
]
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
ENGINE = {"forward", "scores", "metrics", "check"}
FILES = sorted((ROOT / "icl_lib").rglob("*.py"))


def room_of(path):
    parts = path.relative_to(ROOT / "icl_lib").parts
    return parts[0].removesuffix(".py")


def imported(path):
    """Rooms that a file imports from, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "icl_lib":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("icl_lib."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("icl_lib."))


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) != "__init__"],
                         ids=lambda path: path.relative_to(ROOT / "icl_lib").as_posix())
def test_a_room_knows_only_rooms_below_it(path):
    room = room_of(path)
    for other in set(imported(path)) - {room}:
        assert FLOOR[other] < FLOOR[room], f"{room} imports {other}"
        assert not (room in ("figures", "pages") and other in ENGINE), f"{room} imports the engine's {other}"


def test_no_circle_of_files():
    """Also inside a room, and where a function imports."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    knows = {name: set(imported_modules(path)) & set(modules) - {name} for name, path in modules.items()}
    assert sum(map(len, knows.values())) > 200
    list(TopologicalSorter(knows).static_order())  # raises CycleError and names the circle


def test_analysis_figures_and_pages_import_no_torch():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES
               if room_of(path) in ("analysis", "figures", "pages")]
    assert len(modules) > 10
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} - {"__init__"} == set(FLOOR)
