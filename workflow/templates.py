"""Notebook templates read statically: their parameters, the code they depend on, whether they are clean."""

import ast
import difflib
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import nbformat

PACKAGES = ("icl_lib", "lab")
MEASURE = "measure"  # the tag of cells whose tables are read again where they are
_SCALARS = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


class ParameterError(ValueError):
    """A parameter that the template does not take as given; the message is one line."""


class Parameter(NamedTuple):
    annotation: ast.expr | None
    default: Any


def template_parameters(path: str | Path) -> dict[str, Parameter]:
    """The parameters of a template: the assignments of its one cell tagged `parameters`, with their types.

    The same names as `papermill.inspect_notebook`, without papermill's import and with values instead of
    source text. Raises ParameterError when there is no such cell, more than one, or a default that is no
    literal.
    """
    path = Path(path)
    cells = [cell for cell in _code_cells(path) if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if len(cells) != 1:
        raise ParameterError(f"{path.name} has {len(cells)} cells tagged parameters, expected one")
    found = {}
    for node in ast.parse(cells[0].source).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
                pass
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                annotation = None
            case _:
                continue
        try:
            found[name] = Parameter(annotation, ast.literal_eval(value))
        except ValueError:
            raise ParameterError(f"{path.name}: the default of {name} is no literal") from None
    return found


def title(path: str | Path) -> str:
    """The first heading of a template, or its name where it has none."""
    cells = nbformat.read(path, as_version=4).cells
    lines = [line for cell in cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ")), Path(path).stem)


def check_parameters(path: str | Path, given: dict[str, Any]) -> None:
    """Refuse parameters that the template does not declare, or of another type than it declares.

    Types are the annotations str, int, float (takes whole numbers too), bool, list, dict, also with element
    types; without annotation the type of the default counts. Raises ParameterError.
    """
    declared = template_parameters(path)
    for name, value in given.items():
        if name not in declared:
            near = difflib.get_close_matches(str(name), declared, n=1)
            raise ParameterError(
                f"{Path(path).name} has no parameter {name!r}, it has {', '.join(declared)}"
                + (f"; nearest: {near[0]}" if near else "")
            )
        expected = declared[name].annotation or ast.Name(type(declared[name].default).__name__)
        if not _is_of_type(value, expected):
            raise ParameterError(
                f"{Path(path).name}: parameter {name} is {value!r} ({type(value).__name__}), "
                f"expected {ast.unparse(expected)}"
            )


def measuring_source(path: str | Path) -> str:
    """The source of a template's cells tagged `measure`: what its measured tables are made by; "" where it has none."""
    return "\n".join(cell.source for cell in _code_cells(Path(path)) if MEASURE in cell.metadata.get("tags", []))


def measuring_parameters(path: str | Path) -> set[str]:
    """The parameters that the cells tagged `measure` use."""
    names = {node.id for node in ast.walk(ast.parse(measuring_source(path))) if isinstance(node, ast.Name)}
    return names & set(template_parameters(path))


def library_files(path: str | Path, root: str | Path = ".", *, measuring: bool = False) -> list[str]:
    """Files of this project that a template imports, directly or indirectly, relative to `root`.

    `measuring`: only what its cells tagged `measure` import. Found by parsing, nothing is run. A name imported from a
    package is followed to the module that its `__init__` takes it from, so that editing a module concerns only the
    templates that use it; importing a package as a whole counts as using all of it.
    """
    root = Path(root)
    source = measuring_source(path) if measuring else "\n".join(cell.source for cell in _code_cells(Path(path)))
    plain = ("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
    found: set[Path] = set()
    todo = _imported("\n".join(plain), root, package="")
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            package = ".".join(file.parent.relative_to(root).parts)
            todo += _imported(file.read_text(encoding="utf-8"), root, package)
    return sorted(file.relative_to(root).as_posix() for file in found)


def unclean_templates(folder: str | Path) -> list[str]:
    """One line for each template with outputs, execution counts or cells without an id."""
    problems = []
    for path in sorted(Path(folder).glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        for index, cell in enumerate(notebook.cells):
            if cell.get("outputs") or cell.get("execution_count") is not None:
                problems.append(f"{path}: cell {index} has outputs, clear them before committing")
            if "id" not in cell:
                problems.append(f"{path}: cell {index} has no id")
    return problems


def _code_cells(path: Path) -> list[nbformat.NotebookNode]:
    if not path.is_file():
        raise ParameterError(f"template {path} does not exist")
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises its own, JSON's and attribute errors
        raise ParameterError(f"{path} is not a notebook ({type(error).__name__})") from None
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _is_of_type(value: Any, expected: ast.expr) -> bool:
    match expected:
        case ast.Constant(value=str() as quoted):
            return _is_of_type(value, ast.parse(quoted, mode="eval").body)
        case ast.Name(id="float"):
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id=name) if name in _SCALARS:
            return isinstance(value, _SCALARS[name])
        case ast.Subscript(value=ast.Name(id="list"), slice=element):
            return isinstance(value, list) and all(_is_of_type(item, element) for item in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, element])):
            return isinstance(value, dict) and all(
                _is_of_type(k, key) and _is_of_type(v, element) for k, v in value.items()
            )
    # Papermill does not see parameters with other annotations, unions among them.
    raise ParameterError(f"the type {ast.unparse(expected)} is none of {', '.join(_SCALARS)}")


def _imported(source: str, root: Path, package: str) -> list[Path]:
    """Files that the imports of one module lead to; `package` is "" for a notebook."""
    files = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            files += [file for alias in node.names for file in _module(root, alias.name, whole=True)]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            files += [file for alias in node.names for file in _name(root, _origin(node, package), alias.name)]
    return files


def _origin(node: ast.ImportFrom, package: str) -> str:
    return importlib.util.resolve_name("." * node.level + (node.module or ""), package)


def _name(root: Path, module: str, name: str) -> list[Path]:
    """`from module import name`: a submodule, a name defined there, or one that its `__init__` passes on."""
    if name == "*":
        return _module(root, module, whole=True)
    if submodule := _module(root, f"{module}.{name}"):
        return submodule
    found = _module(root, module)
    passes_on = bool(found) and found[0].name == "__init__.py"
    for node in ast.parse(found[0].read_text(encoding="utf-8")).body if passes_on else ():
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            if (alias.asname or alias.name) == name:
                return _name(root, _origin(node, module), alias.name)
    return found


def _module(root: Path, name: str, *, whole: bool = False) -> list[Path]:
    """The file of a module of this project, with `whole` all files of a package; [] for other modules."""
    base = root.joinpath(*name.split("."))
    if name.split(".")[0] not in PACKAGES:
        return []
    if (base / "__init__.py").is_file():
        return sorted(base.rglob("*.py")) if whole else [base / "__init__.py"]
    return [file for file in [base.with_suffix(".py")] if file.is_file()]


if __name__ == "__main__":
    found = unclean_templates(sys.argv[1])
    print("\n".join(found), end="\n" if found else "")
    sys.exit(bool(found))
