"""What a run was made from: fingerprints of its input files, kept in every table and beside the run's log.

Tables count by their data and by what made them, not by their bytes, so that two runs of one suite leave the same
record however long they took and whatever their results folder is called.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from icl_lib.files import whole
from workflow.templates import MEASURE, library_files, measuring_parameters, measuring_source

MADE_FROM = "ICL_LIB_MADE_FROM"  # the environment variable that icl_lib.tables reads
_DIGITS = 16


def made_from(inputs: Sequence[Path], parameters: dict[str, Any], results: Path) -> dict[str, Any]:
    """`files` and `tables` (those under `results`, named from there) with their fingerprints, and all parameters."""
    tables = {path.relative_to(results).as_posix(): path for path in inputs if path.is_relative_to(results)}
    files = {path.as_posix(): path for path in inputs if not path.is_relative_to(results)}
    return {
        "files": {name: fingerprint(path) for name, path in sorted(files.items())},
        "tables": {name: fingerprint(path) for name, path in sorted(tables.items())},
        "parameters": _counting(parameters),
    }


def measured_from(
    template: Path, inputs: Sequence[Path], parameters: dict[str, Any], results: Path
) -> dict[str, Any]:
    """What the measured tables of a run are made from: of `made_from` what its cells tagged `measure` can see.

    Other code and other parameters change what is shown, not what was measured. The cells themselves count as the
    file `<template>#measure`.
    """
    shown = set(library_files(template)) - set(library_files(template, measuring=True))
    kept = [path for path in inputs if path != template and path.as_posix() not in shown]
    used = measuring_parameters(template)
    return made_from([*kept, template.with_name(f"{template.name}#{MEASURE}")],
                     {name: value for name, value in parameters.items() if name in used}, results)


def _counting(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters that can change a number: the name of the results folder cannot."""
    return {name: value for name, value in parameters.items() if name != "results"}


def fingerprint(path: Path) -> str:
    """Sixteen hex digits for a file's bytes, for a table's data. Errors as in `read_table`, and OSError."""
    if path.name.endswith(f"#{MEASURE}"):
        source = measuring_source(path.with_name(path.name.removesuffix(f"#{MEASURE}")))
        return hashlib.sha256(source.encode()).hexdigest()[:_DIGITS]
    state = path.stat()
    return _fingerprint(path.resolve(), (state.st_ino, state.st_size, state.st_mtime_ns))


@functools.cache  # the runs of a suite share most of their input files
def _fingerprint(path: Path, state: tuple[int, ...]) -> str:
    if path.suffix == ".parquet":
        from icl_lib.tables import table_fingerprint  # late: most runs have no tables as input

        return table_fingerprint(path)[:_DIGITS]
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]


def changed_files(known: dict[str, str], folder: Path = Path()) -> list[str]:
    """Which of these files no longer have their fingerprints, in words."""
    found = []
    for name, was in known.items():
        try:
            found += [] if fingerprint(folder / name) == was else [f"{name} has changed"]
        except (OSError, ValueError):
            found.append(f"{name} is gone or unreadable")
    return found


def differences(record: dict[str, Any], parameters: dict[str, Any], results: Path) -> list[str]:
    """What is no longer as the record says, in words: files, tables, parameters. Empty when all is the same."""
    was, now = record["parameters"], _counting(parameters)
    return [*changed_files(record["files"]), *changed_files(record["tables"], results), *(
        f"parameter {name} was {json.dumps(was.get(name, 'not given'))}, is {json.dumps(now.get(name, 'not given'))}"
        for name in sorted(was.keys() | now.keys())
        if name not in was or name not in now or was[name] != now[name])]


def write_record(record: dict[str, Any], path: Path) -> None:
    with whole(path) as temporary:
        temporary.write_text(json.dumps(record, sort_keys=True), encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """Raises ValueError in one line for a file that is missing or holds something else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__})") from None
    if not is_record(record):
        raise ValueError(f"{path} does not say what the run was made from")
    return record


def is_record(record: Any) -> bool:
    """Whether this is what `made_from` gives."""
    return isinstance(record, dict) and all(
        isinstance(record.get(kind), dict) for kind in ("files", "tables", "parameters"))
