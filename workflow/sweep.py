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

from icl_lib.tables import read_table

# Notebooks that write tables for one model and step.
SWEPT = ("scoring", "ablation", "protocols", "task_execution")


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


def write(frame: pd.DataFrame, path: Path) -> None:
    """A joined table, under its name only once complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        frame.to_parquet(temporary, index=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Join the tables of a sweep.")
    parser.add_argument("runs", type=Path, help="JSON file of the runs")
    parser.add_argument("joined", type=Path, nargs="+", help="<table>.parquet to write")
    given = parser.parse_args()
    try:
        runs = json.loads(given.runs.read_text(encoding="utf-8"))
        for path in given.joined:
            write(join(runs, path.stem), path)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
