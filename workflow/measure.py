"""Measure a packaged model, or measure a sample of it anew: `python -m workflow.measure config/pretrained.yaml MODEL`.

Runs the suite's notebooks on one model in a folder of their own, results/measure/, where a run that was killed goes on.
Tables that the suite's folder of committed tables lacks are put there; those that it has are compared with the new
ones, number by number. The exit status is 1 where they differ by more than 1e-4; in mixed precision, where processors
round differently, the difference is told and not judged. config/spot.yaml measures a sample.
"""

import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from icl_lib.models.placement import MIXED
from icl_lib.names import unknown
from icl_lib.tables import KEYS, read_table
from workflow import command
from workflow.notebooks import NOTEBOOKS
from workflow.run import run_notebook
from workflow.suite import Suite, read_suite

TOLERANCE = 1e-4
MEASURED = Path("results/measure")
READ = {kind for notebook in NOTEBOOKS.values() for kind in notebook.reads}  # what others need of a run without a page


def measure(suite: Suite, model: str) -> Iterator[tuple[Path, Path]]:
    """Run the measuring notebooks on one model; yields each new table with the committed one's path."""
    results = MEASURED / suite.name
    for run in suite.of_steps:
        if run.model != model:
            continue
        log = results / run.log
        if not all((results / name).is_file() for name in run.tables):
            print(f"measuring: {run.notebook} of {model}, log {log}", flush=True)
            given = suite.given(run) | {"results": results.as_posix()}
            run_notebook(Path(run.template), results / run.executed, given, log=log)
        yield from ((results / name, Path(suite.tables, name)) for name, kind in run.tables.items()
                    if kind in READ or kind != "statistics" and suite.has_page(run))


def largest_difference(first: pd.DataFrame, second: pd.DataFrame) -> float:
    """The largest difference of a value of two tables of one schema; infinite where their rows are not the same."""
    key = [column for column in KEYS[first.attrs["schema"]] if column in first]
    if not first[key].equals(second[key]):
        return np.inf
    numbers = [column for column in ("value", "floor") if column in first]
    return float(np.nan_to_num([(first[c] - second[c]).abs().max() for c in numbers] + [0.0]).max())


@partial(command, takes="SUITE_FILE MODEL")
def main(arguments: list[str]) -> None:
    file, model = arguments
    suite, worst = read_suite(file), 0.0
    if not suite.tables:
        raise ValueError(f"{file} names no folder of committed tables (the key tables)")
    if model not in suite.steps:
        raise unknown(f"model of {file}", model, suite.steps)
    for new, committed in measure(suite, model):
        if not committed.is_file():
            committed.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(new, committed)
            print(f"{committed}: new")
            continue
        tables = read_table(new), read_table(committed)
        difference, mixed = largest_difference(*tables), tables[1].attrs["provenance"]["dtype"] == MIXED
        worst = max(worst, 0.0 if mixed and np.isfinite(difference) else difference)
        print(f"{committed}: largest difference {difference:.2g}" + ", not judged: mixed precision" * mixed)
    if worst > TOLERANCE:
        raise ValueError(f"the tables of {model} differ by {worst:.2g}, expected at most {TOLERANCE:g}")


if __name__ == "__main__":
    sys.exit(main())
