"""What a notebook asks before it works: was it given what it knows, and is its result there already."""

import ast
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from icl_lib.models.locate import files_sum, sum_of
from icl_lib.names import refuse_unknown
from icl_lib.parameters import misfit, own_data
from icl_lib.tables import model_folder, read_table, results_path, run_path


def check_given(namespace: dict[str, Any]) -> None:
    """Raise ValueError for a parameter given by papermill that the notebook lacks or cannot use (`parameters.misfit`).

    `namespace` is the notebook's `globals()`: papermill's cell stands in its history of inputs, and the annotations of
    the parameters cell are the names that there are. Papermill itself only logs a misspelled name and goes on. Where it
    measures a model, also for a results folder that cannot be written; a slash at the end of the model's name is cut.
    """
    given = [source for source in namespace.get("In", []) if source.lstrip().startswith("# Parameters")]
    known = namespace.get("__annotations__", {})
    for node in ast.parse(given[-1]).body if given else []:
        for target in node.targets if isinstance(node, ast.Assign) else []:
            refuse_unknown("parameter", target.id, known)
            kind = known[target.id].__name__ if isinstance(known[target.id], type) else str(known[target.id])
            if wrong := misfit(target.id, namespace[target.id], kind):
                hint = f"; papermill takes lists as -y '{target.id}: [...]'" if kind.startswith("list") else ""
                raise ValueError(f"parameter {target.id} is {wrong}{hint}")
    if "model" in known:
        namespace["model"] = namespace["model"].rstrip("/") or namespace["model"]
    if "model" in known and "results" in known:
        _refuse_unwritable(results_path(namespace["results"]))


def _refuse_unwritable(folder: Path) -> None:
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"results {str(folder)!r}: {there} is {'read-only' if there.is_dir() else 'not a folder'}, "
                         "expected a folder to write to; give another results folder")


def asked_of(namespace: Mapping[str, Any], *shown: str) -> dict[str, Any]:
    """The parameters that a run's tables are measured with, for their provenance and for `is_measured`.

    All that a notebook's parameters cell declares, but suite, results and those that only say what is `shown`.
    """
    return {name: namespace[name] for name in namespace["__annotations__"] if name not in ("suite", "results", *shown)}


def is_measured(paths: Mapping[str, Path], parameters: Mapping[str, Any]) -> bool:
    """Whether the tables of a run are there, by schema. Errors for one that cannot be read as in `read_table`.

    A table measured with other parameters is neither shown nor replaced: ValueError names the file and what differs.
    So is one measured by hand before a local model's files, or the user's own tasks or documents, changed, or before
    its scores were measured anew.
    """
    present = {schema: path for schema, path in paths.items() if path.is_file()}
    for schema, path in present.items():
        made_by = read_table(path, schema_name=schema).attrs["provenance"]
        was = made_by["parameters"]
        for name in sorted(set(was) | set(parameters)):
            if was.get(name) != parameters.get(name):
                raise ValueError(
                    f"{path} was measured with {name} = {was.get(name, 'not given')!r}, this run asks for "
                    f"{parameters.get(name, 'not given')!r}; give another results folder, the same value, or remove it")
        if not made_by["made_from"] and not os.environ.get("ICL_LIB_MADE_FROM"):  # the workflow sees to its own
            _refuse_older(path, made_by, with_scores="scores" not in paths)
    return len(present) == len(paths)


def _refuse_older(path: Path, made_by: Mapping[str, Any], *, with_scores: bool) -> None:
    """Raise ValueError where files or scores are no longer those that a table was measured with."""
    sums, given, again = made_by.get("sums", {}), made_by["parameters"], "give another results folder, or remove it"
    model, step = given.get("model"), given.get("step")
    if "model" in sums and files_sum(model, step) not in ("", sums["model"]):
        raise ValueError(f"{path} was measured before the files of model {model!r} changed; {again}")
    if "own_data" in sums and sum_of(own_data(given)) not in ("", sums["own_data"]):
        own = " or ".join(f"{name} {given[name]!r}" for name in ("task_files", "documents") if name in given)
        raise ValueError(f"{path} was measured before files of {own} changed; {again}")
    if with_scores and model is not None:
        results = path.parents[len(Path(model_folder(model)).parts) + 1]
        scores = run_path(results, "scores", model, step)
        if scores.is_file() and read_table(scores).attrs["provenance"]["time"] > made_by["time"]:
            raise ValueError(f"{path} was measured before the scores in {scores}; {again}")


def read_scored(results: Path, model: str, step: int, *kinds: str, task_files: str) -> list[pd.DataFrame]:
    """Tables that the scoring notebook made of a model. FileNotFoundError gives the command that makes them."""
    paths = {kind: run_path(results, kind, model, step) for kind in kinds}
    if missing := [path for path in paths.values() if not path.is_file()]:
        programs, root = Path(sys.executable).parent, results_path("")
        given = {"model": model, "step": step, "task_files": task_files, "results": os.path.relpath(results, root)}
        command = [os.path.relpath(programs / "papermill"), os.path.relpath(root / "notebooks" / "scoring.ipynb"),
                   f"{tempfile.gettempdir()}/scored.ipynb",
                   *(part for item in given.items() for part in ("-p", *map(str, item)))]
        raise FileNotFoundError(f"{missing[0]} does not exist; the scoring notebook makes it: {shlex.join(command)}")
    return [read_table(path, schema_name=kind) for kind, path in paths.items()]
