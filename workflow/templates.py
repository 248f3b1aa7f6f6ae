"""Notebook templates read without running them: their parameters and the code they depend on."""

import ast
import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import nbformat

from icl_lib.names import refuse_unknown
from icl_lib.parameters import TYPES, misfit

PACKAGES = ("icl_lib", "lab")
MEASURE = "measure"  # the tag of cells whose tables are read again where they are


class Parameter(NamedTuple):
    type: str
    default: Any


def template_parameters(path: str | Path) -> dict[str, Parameter]:
    """The parameters of a template: the typed assignments of its one cell tagged `parameters`.

    The same names as `papermill.inspect_notebook`, with values instead of source text. Raises ValueError.
    """
    path = Path(path)
    cells = _tagged(path, "parameters")
    if len(cells) != 1:
        raise ValueError(f"{path.name} has {len(cells)} cells tagged parameters, expected one")
    found = {}
    for node in ast.parse(cells[0]).body:
        if isinstance(node, ast.AnnAssign) and node.value:
            name, kind = ast.unparse(node.target), ast.unparse(node.annotation)
            if kind.partition("[")[0] not in TYPES:
                raise ValueError(f"{path.name}: the type {kind} of {name} is none of {', '.join(TYPES)}")
            try:
                found[name] = Parameter(kind, ast.literal_eval(node.value))
            except ValueError:
                raise ValueError(f"{path.name}: the default of {name} is no literal") from None
    return found


def title(path: str | Path) -> str:
    """The first heading of a template, or its name where it has none."""
    cells = cells_of(path)
    lines = [line for cell in cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ")), Path(path).stem)


def check_parameters(path: str | Path, given: dict[str, Any]) -> None:
    """Refuse parameters that the template does not declare or cannot use (`misfit`); a float may be a whole number."""
    declared, file = template_parameters(path), Path(path).name
    for name, value in given.items():
        refuse_unknown(f"parameter of {file}", str(name), declared)
        if wrong := misfit(name, value, declared[name].type):
            raise ValueError(f"{file}: parameter {name} is {wrong}")


def measuring_source(path: str | Path) -> str:
    """The source of a template's cells tagged `measure`: what its measured tables are made by; "" where it has none."""
    return "\n".join(_tagged(path, MEASURE))


def measuring_parameters(path: str | Path) -> set[str]:
    """The parameters that the cells tagged `measure` use."""
    names = {node.id for node in ast.walk(ast.parse(measuring_source(path))) if isinstance(node, ast.Name)}
    return names & set(template_parameters(path))


def library_files(path: str | Path, *, measuring: bool = False) -> list[str]:
    """Files of this project that a template imports, directly or indirectly; found by parsing, nothing is run.

    `measuring`: only what its cells tagged `measure` import. Imports are absolute (ruff sees to it), and a name is
    looked for in the module that it is imported from.
    """
    todo = [measuring_source(path) if measuring else "\n".join(_tagged(path))]
    found: set[Path] = set()
    while todo:
        for names in _imported(todo.pop()):
            file = next(filter(None, map(_file, names)), None)
            if file and file not in found:
                found.add(file)
                todo.append(file.read_text(encoding="utf-8"))
    return sorted(file.as_posix() for file in found)


@functools.cache  # notebooks share most modules
def _imported(source: str) -> list[tuple[str, ...]]:
    """What a module imports: for each name the modules that it may be or stand in."""
    nodes = list(ast.walk(ast.parse(source)))
    return [(alias.name,) for node in nodes if isinstance(node, ast.Import) for alias in node.names] + [
        (f"{node.module}.{alias.name}", node.module)
        for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]


def _file(module: str) -> Path | None:
    """The file of a module of this project."""
    base = Path(*module.split("."))
    files = [base.with_suffix(".py"), base / "__init__.py"] if base.parts[0] in PACKAGES else []
    return next((file for file in files if file.is_file()), None)


def cells_of(path: str | Path) -> list[nbformat.NotebookNode]:
    """The cells of a notebook. Raises ValueError in one line for what is none."""
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist")
    try:
        return nbformat.read(path, as_version=4).cells
    except Exception as error:  # nbformat raises its own, JSON's and attribute errors
        raise ValueError(f"{path} is not a notebook ({type(error).__name__})") from None


def _tagged(path: str | Path, tag: str = "") -> list[str]:
    """The sources of a template's code cells without magics, with `tag` of those that bear it."""
    return [re.sub(r"(?m)^[%!].*", "", cell.source) for cell in cells_of(path)
            if cell.cell_type == "code" and (not tag or tag in cell.metadata.get("tags", []))]
