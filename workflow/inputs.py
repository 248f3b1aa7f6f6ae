"""What a run was made from: fingerprints of its input files, kept in every table and every executed notebook.

Tables count by their data and by what made them, not by their bytes, so that two runs of one suite leave the same
record however long they took and whatever their results folder is called.
"""

import functools
import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from workflow.templates import MEASURE, library_files, measuring_parameters, measuring_source

MADE_FROM = "ICL_LIB_MADE_FROM"  # the environment variable that icl_lib.tables reads
_DIGITS = 16


def made_from(inputs: Sequence[Path], parameters: dict[str, Any], results: Path) -> dict[str, Any]:
    """`files` and `tables` (those under `results`, named from there) with their fingerprints, and the parameters.

    Of these the name of the results folder does not count: it changes no number.
    """
    return {
        "files": {path.as_posix(): fingerprint(path) for path in inputs if not path.is_relative_to(results)},
        "tables": {path.relative_to(results).as_posix(): fingerprint(path)
                   for path in inputs if path.is_relative_to(results)},
        "parameters": {name: value for name, value in parameters.items() if name != "results"}}


def measured_from(template: Path, inputs: Sequence[Path], parameters: dict[str, Any], results: Path) -> dict[str, Any]:
    """What the measured tables of a run are made from: of `made_from` what its cells tagged `measure` can see.

    Other code and parameters change what is shown, not measured. The cells count as the file `<template>#measure`.
    """
    shown = set(library_files(template)) - set(library_files(template, measuring=True))
    kept = [path for path in inputs if path != template and path.as_posix() not in shown]
    used = measuring_parameters(template)
    return made_from([*kept, template.with_name(f"{template.name}#{MEASURE}")],
                     {name: value for name, value in parameters.items() if name in used}, results)


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


def differences(record: Any, parameters: dict[str, Any], results: Path, stale: Collection[str] = ()) -> list[str]:
    """What is no longer as a record says, in words: files, tables (those `stale` too), parameters."""
    kinds = ("files", "tables", "parameters")
    if not isinstance(record, dict) or not all(isinstance(record.get(kind), dict) for kind in kinds):
        return ["it does not say what it was made from, so the workflow did not make it"]
    found = []
    for folder, prints in ((Path(), record["files"]), (results, record["tables"])):
        for name, was in prints.items():
            try:
                if fingerprint(folder / name) != was:
                    found.append(f"{name} has changed")
                elif name in stale:
                    found.append(f"{name} is stale")
            except (OSError, ValueError):
                found.append(f"{name} is gone or unreadable")
    was, now = record["parameters"], made_from([], parameters, results)["parameters"]
    return found + [
        f"parameter {name} was {json.dumps(was.get(name, 'not given'))}, is {json.dumps(now.get(name, 'not given'))}"
        for name in sorted(was.keys() | now.keys())
        if name not in was or name not in now or was[name] != now[name]]
