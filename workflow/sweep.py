"""Runs of a notebook over a grid of its parameters, and their tables as one.

A suite's `sweep: {scoring: {n_shots: [0, 1, 4, 10], seed: [0, 1]}}` runs the notebook for every combination, on the
last step of every model it runs on. `python -m workflow.sweep POINTS TABLE...` joins the tables of the runs.
"""

import argparse
import itertools
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from icl_lib.tables import read_table
from workflow.inputs import fingerprint

# Notebooks that write tables for one model and step.
SWEPT = ("scoring", "ablation", "protocols", "task_execution")
JOINED_FROM = b"joined_from"  # of a joined table's metadata: JSON of its parts and their fingerprints


def points(grid: Mapping[str, list]) -> dict[str, dict[str, Any]]:
    """Every combination of a grid's values by its name, `n_shots=4,seed=1`. Raises ValueError for equal names."""
    found = {}
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        name = ",".join(f"{key}={re.sub(r'[^A-Za-z0-9_.+-]+', '_', str(value))}" for key, value in point.items())
        if name in found:
            raise ValueError(f"two points are called {name}: values have to differ in letters, digits or . _ + -")
        found[name] = point
    return found


def join(runs: list[dict[str, Any]], table: str) -> pd.DataFrame:
    """The tables of this kind of all runs, a column `swept_<parameter>` for each parameter in front.

    `runs`: `tables` (kind to path) and `point` (parameter to value). A list becomes its JSON text. Errors as in
    `read_table`.
    """
    frames = []
    for run in runs:
        frame = read_table(run["tables"][table], schema_name=table)
        for key, value in reversed(run["point"].items()):
            frame.insert(0, f"swept_{key}", value if isinstance(value, str | int | float) else json.dumps(value))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def write(frame: pd.DataFrame, path: Path, parts: list[Path]) -> None:
    """A joined table with its parts' fingerprints in the metadata, under its name only once complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    joined_from = {part.as_posix(): fingerprint(part) for part in parts}
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
        pq.write_table(table.replace_schema_metadata({JOINED_FROM: json.dumps(joined_from).encode()}), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def changed_parts(path: Path, parts: list[Path]) -> list[str]:
    """What differs between a joined table's parts and those it should have, in words; empty when all is the same."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        known = json.loads(metadata[JOINED_FROM])
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return ["it cannot be read or does not say what it was joined from"]
    found = [f"{name} is no part of it" for name in sorted({part.as_posix() for part in parts} - known.keys())]
    for name, was in known.items():
        try:
            same = Path(name) in parts and fingerprint(Path(name)) == was
        except (OSError, ValueError):
            same = False
        found += [] if same else [f"{name} has changed or is gone"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Join the tables of a sweep.")
    parser.add_argument("runs", type=Path, help="JSON file of the runs")
    parser.add_argument("joined", type=Path, nargs="+", help="<table>.parquet to write")
    given = parser.parse_args()
    try:
        runs = json.loads(given.runs.read_text(encoding="utf-8"))
        for path in given.joined:
            write(join(runs, path.stem), path, [Path(run["tables"][path.stem]) for run in runs])
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
