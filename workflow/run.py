"""Run one notebook template: `python -m workflow.run TEMPLATE EXECUTED --parameters JSON --log FILE`.

Everything is written beside the log first. Only when the notebook has finished and its tables are there does
the executed notebook get its name; when it fails, log and executed notebook (with the traceback) stay beside
each other, tables of this run are removed, one line says what happened, and the exit status is 1.
"""

import argparse
import contextlib
import glob
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from icl_lib.files import whole
from icl_lib.tables import read_table
from workflow import command
from workflow.inputs import MADE_FROM, fingerprint, made_from, measured_from
from workflow.lock import lock_run
from workflow.templates import check_parameters, measuring_source

KEPT = "measured"  # folder under a suite's results with copies of its measured tables


def run_notebook(
    template: Path, executed: Path, parameters: dict[str, Any], *, log: Path, tables: Sequence[Path] = (),
    inputs: Sequence[Path] = (), committed: Sequence[Path] = (),
) -> None:
    """Execute a template with these parameters in the present working folder.

    With `inputs`, all files that the run depends on, their fingerprints go into the executed notebook, and those that a
    measurement depends on into its tables. Tables of an earlier run that were measured from the same are put back
    first, so that the notebook measures nothing and shows them; so are those of the folders `committed`, whatever made
    them. Raises ValueError before anything runs, RuntimeError in one line when a cell fails or a table was not written.
    """
    check_parameters(template, parameters)
    import papermill  # late: it takes longer to import than a bad parameter takes to find

    log.parent.mkdir(parents=True, exist_ok=True)
    attempt, of_tables = log.with_suffix(".ipynb"), log.with_suffix(".made_from.json")
    record, results = None, Path(parameters.get("results", ""))
    measures = bool(inputs and measuring_source(template))
    killed = [left for path in tables for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp")]
    _remove([executed, attempt, *tables, *killed])
    try:
        with _logged(log):
            if inputs:
                _set_aside_damaged([path for path in inputs if path.suffix == ".parquet"])
                record = made_from(inputs, parameters, results)
                measured = measured_from(template, inputs, parameters, results) if measures else record
                if measures:
                    put_back(tables, results, measured, committed)
                of_tables.write_text(json.dumps(measured, sort_keys=True), encoding="utf-8")
                os.environ[MADE_FROM] = str(of_tables.resolve())
            papermill.execute_notebook(
                template, attempt, parameters=parameters, kernel_name="python3", progress_bar=False,
                log_output=True, cwd=".", extra_arguments=["--IPKernelApp.log_level=50"],  # or it tells how to connect
                shutdown_kernel="immediate",  # all is written by then, and an orderly exit takes torch two seconds
            )  # fmt: skip
            if absent := [str(table) for table in tables if not table.is_file()]:
                raise FileNotFoundError(f"it ended without writing {', '.join(absent)}")
            for path in tables if measures else ():  # to where no rule removes it
                if path.relative_to(results).parts[0] != "statistics":
                    _copy(path, results / KEPT / path.relative_to(results))
    except BaseException as error:
        _remove(tables)
        kept = f"log {log}, notebook {attempt}" if attempt.exists() else f"log {log}"
        raise RuntimeError(f"{template.name} failed: {_summary(error)} ({kept})") from error
    finally:
        os.environ.pop(MADE_FROM, None)
        of_tables.unlink(missing_ok=True)
    made = json.loads(attempt.read_text(encoding="utf-8"))
    made["metadata"]["made_from"] = record
    attempt.write_text(json.dumps(made, indent=1), encoding="utf-8")
    executed.parent.mkdir(parents=True, exist_ok=True)
    os.replace(attempt, executed)


@contextlib.contextmanager
def _logged(log: Path) -> Iterator[None]:
    """What is logged, with the traceback of an error, goes to this file."""
    handler, root = logging.FileHandler(log, mode="w", encoding="utf-8"), logging.getLogger()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    except BaseException:
        root.exception("the run failed")
        raise
    finally:
        root.removeHandler(handler)
        handler.close()


def put_back(tables: Sequence[Path], results: Path, measured: dict[str, Any], committed: Sequence[Path]) -> None:
    """Copy tables to where a run writes them: committed ones, and kept ones that were measured from the same."""
    for path in tables:
        name = path.relative_to(results)
        if there := [folder / name for folder in committed if (folder / name).is_file()]:
            _copy(there[0], path)
        elif (kept := results / KEPT / name).is_file():
            with contextlib.suppress(ValueError):  # a damaged one is measured anew
                if read_table(kept).attrs["provenance"]["made_from"] == measured:
                    _copy(kept, path)


def _copy(source: Path, target: Path) -> None:
    with whole(target) as temporary:
        shutil.copyfile(source, temporary)


def _summary(error: BaseException) -> str:
    """What went wrong, in one line: the notebook's own exception rather than papermill's report of it."""
    if hasattr(error, "ename"):
        return f"{error.ename}: {next(iter(str(error.evalue).splitlines()), '')}"
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"


def _set_aside_damaged(tables: Sequence[Path]) -> None:
    """Move tables that cannot be read away from where they were found, so that the next sweep makes them anew."""
    reasons = []
    for path in tables:
        try:
            fingerprint(path)
        except ValueError as error:
            os.replace(path, path.with_name(f"{path.name}.damaged"))
            reasons.append(str(error))
    if reasons:
        raise ValueError(f"{'; '.join(reasons)}; set aside as *.damaged, run the suite again to make it anew")


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


@command
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Run one notebook template.")
    parser.add_argument("template", type=Path)
    parser.add_argument("executed", type=Path)
    parser.add_argument("--parameters", type=json.loads, default={}, help="as JSON")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--tables", type=Path, nargs="*", default=[], help="tables the notebook has to write")
    parser.add_argument("--inputs", type=Path, nargs="*", default=[], help="all files that the run depends on")
    parser.add_argument("--committed", type=Path, nargs="*", default=[], help="folders of tables taken as they are")
    parser.add_argument("--results", type=Path, help="the suite's folder, to say there that a run is at work")
    given = vars(parser.parse_args(arguments))
    if not isinstance(given["parameters"], dict):
        raise ValueError(f"--parameters {given['parameters']!r}: expected a mapping of names to values")
    results = given.pop("results")
    with lock_run(results) if results else contextlib.nullcontext():
        own = Path(given["parameters"].get("results", ""))
        for path in given["inputs"] if results and own != results else ():
            if path.is_relative_to(results):  # a notebook looks for tables in its own results folder
                _copy(path, own / path.relative_to(results))
        run_notebook(**given)


if __name__ == "__main__":
    sys.exit(main())
