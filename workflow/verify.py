"""Whether a suite's results and the code agree: `python -m workflow.verify config/lab.yaml`.

One line for everything that does not: tables and notebooks that are missing, unreadable, foreign (no notebook of this
suite makes them) or stale (made by other code, weights, tables, parameters or versions than at present), notebooks
without their tables, and temporary files left by a kill. Nothing is changed. The exit status is 0 when all agree.
"""

import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icl_lib.tables import read_table, table_fingerprint
from workflow.inputs import differences, is_record, read_record
from workflow.run import KEPT
from workflow.suite import CHOSEN_BY, GROUPED, TABLES, TEMPLATES, Suite, place, read_suite
from workflow.sweep import changed_parts
from workflow.templates import measuring_parameters, measuring_source

_SHOWN = 3  # differences named for one file
# Folders that hold no results of the runs below: what was printed, finished parts of runs, rendered pages, a copy under
# torture, what the stand-in hub serves.
_OTHER = ("logs", "partial", "book", "copy", "hub", KEPT)


@dataclass(frozen=True)
class Run:
    """One run of a notebook: where its executed notebook and its tables are, under the suite's results."""

    notebook: str
    stem: str  # "" for a notebook that runs once
    parameters: dict[str, Any]
    point: str = ""  # of the suite's grid, for a swept run

    @property
    def executed(self) -> str:
        return f"{self._swept}notebooks{'' if self.point else f'/{self.notebook}'}{self._below}.ipynb"

    @property
    def record(self) -> str:
        return f"logs/{self._swept or f'{self.notebook}/'}{self.stem}".rstrip("/") + ".inputs.json"

    @property
    def tables(self) -> dict[str, str]:
        """The run's tables: path to schema."""
        return {f"{self._swept}{place(self.notebook, kind)}{self._below}.parquet": kind
                for kind in TABLES[self.notebook]}

    @property
    def _swept(self) -> str:
        return f"sweeps/{self.notebook}/{self.point}/" if self.point else ""

    @property
    def _below(self) -> str:
        return f"/{self.stem}" if self.stem else ""


def runs(suite: Suite) -> Iterator[Run]:
    """All runs of a suite, as the Snakefile has them."""
    for notebook in ("scoring", *CHOSEN_BY):
        of_all = [of.steps if notebook == "scoring" else of.chosen[notebook] for of in (suite, *suite.included)]
        for model, steps in (item for chosen in of_all for item in chosen.items()):
            for step in steps:
                yield Run(notebook, f"{model}/step{step}", suite.parameters(notebook, model=model, step=step))
    for notebook in TABLES:
        if notebook == "training_dynamics":
            for model in suite.followed:
                yield Run(notebook, model, suite.parameters(notebook, model=model))
        elif notebook != "scoring" and notebook not in CHOSEN_BY:
            for of in suite.groups if notebook in GROUPED else ():
                yield Run(notebook, of.name, suite.parameters(notebook, group=of.name))
            yield Run(notebook, "", suite.parameters(notebook))
    for notebook in suite.sweep:
        for name, values, model, step in suite.swept(notebook):
            given = suite.parameters(notebook, model=model, step=step) | values
            yield Run(notebook, f"{model}/step{step}", given, point=name)


def joined(suite: Suite) -> dict[str, list[str]]:
    """The joined table of every sweep and kind, and the tables of the runs that it should have been made from."""
    parts: dict[str, list[str]] = {}
    for run in runs(suite):
        if run.point:
            for path, kind in run.tables.items():
                parts.setdefault(f"sweeps/{run.notebook}/{kind}.parquet", []).append(path)
    return parts


def problems(suite: Suite) -> list[str]:
    """One line each, the file's path first; in order of paths. Empty when everything agrees."""
    results = Path(suite.results)
    expected = list(runs(suite))  # each after the runs that it reads
    stale: set[str] = set()
    found = [line for run in expected for line in _of_run(suite, run, results, stale)]
    known = {path for run in expected for path in (run.executed, *run.tables)}
    # a swept run finds the model's scores in its own folder
    known |= {f"sweeps/{run.notebook}/{run.point}/{kind}/{run.stem}.parquet"
              for run in expected if run.point for kind in ("scores", "tasks")}
    for name, parts in joined(suite).items():
        known.add(name)
        if not (results / name).is_file():
            found.append(f"{results / name}: missing")
            continue
        changed = changed_parts(results / name, [results / part for part in parts])
        if changed := changed + [f"{part} is stale" for part in parts if part in stale]:
            found.append(_stale(results / name, changed))
    for path in results.rglob("*"):
        name = path.relative_to(results).as_posix()
        if path.suffix == ".tmp" and name.split("/")[0] != "copy":
            found.append(f"{path}: temporary file left by a run that was killed; remove it")
        elif path.suffix == ".damaged":
            found.append(f"{path}: set aside because it could not be read; look at it and remove it")
        elif path.suffix in (".parquet", ".ipynb") and name not in known and name.split("/")[0] not in _OTHER:
            found.append(f"{path}: foreign, no notebook of suite {suite.name} makes it; remove it or move it away")
    return sorted(found)


def _of_run(suite: Suite, run: Run, results: Path, stale: set[str]) -> Iterator[str]:
    """The run's problems; its tables that have one join the `stale` ones, which spoil what was made from them."""
    executed = results / run.executed
    if not executed.is_file():
        present = [name for name in run.tables if (results / name).is_file()]
        yield f"{executed}: missing" + (f", though {', '.join(present)} is there" if present else "")
    else:
        changed = _recorded(results / run.record, run, results, stale)
        if changed:
            yield _stale(executed, changed)
    for name, kind in run.tables.items():
        path = results / name
        if path.is_file():
            lines = list(_of_table(suite, run, path, kind, stale))
            yield from lines
            if lines:
                stale.add(name)
        elif executed.is_file():
            yield f"{path}: missing, though {run.executed} is there"


def _recorded(path: Path, run: Run, results: Path, stale: set[str]) -> list[str]:
    try:
        return _differences(read_record(path), run.parameters, results, stale)
    except ValueError as error:
        return [str(error)]


def _differences(record: dict[str, Any], given: dict[str, Any], results: Path, stale: set[str]) -> list[str]:
    found = differences(record, given, results)
    return found + [f"{name} is stale" for name in record["tables"] if name in stale and (results / name).is_file()
                    and not any(line.startswith(f"{name} ") for line in found)]


def _of_table(suite: Suite, run: Run, path: Path, kind: str, stale: set[str]) -> Iterator[str]:
    try:
        made_by = read_table(path, schema_name=kind).attrs["provenance"]
    except ValueError as error:
        reason = str(error).removeprefix(str(path)).lstrip(": ")
        yield f"{path}: unreadable, it {reason}; run the suite again"
        return
    for of in (suite, *suite.included):
        committed = Path(of.tables, path.relative_to(suite.results))
        if of.tables and committed.is_file():  # of whatever code: spot checks vouch for it
            if table_fingerprint(committed) != table_fingerprint(path):
                yield _stale(path, [f"{committed} has changed"])
            return
    if made_by["suite"] not in [of.name for of in (suite, *suite.included)]:
        yield f"{path}: foreign, made by suite {made_by['suite']!r}; remove it or move it away"
        return
    if not is_record(made_by["made_from"]):
        yield _stale(path, ["it does not say what it was made from, so the workflow did not make it"])
        return
    template, given = TEMPLATES / f"{run.notebook}.ipynb", run.parameters
    if measuring_source(template):  # then the tables are of what measures alone
        given = {name: given[name] for name in measuring_parameters(template) if name in given}
    changed = _differences(made_by["made_from"], given, Path(suite.results), stale)
    changed += [f"{package} was {was}, is {now}" for package, was in made_by["versions"].items()
                if (now := _version(package)) != was]
    seed = run.parameters["seed"]
    if made_by["seed"] != seed and not any("seed" in line for line in changed):
        changed.append(f"seed was {made_by['seed']}, is {seed}")
    if changed:
        yield _stale(path, changed)


def _stale(path: Path, why: list[str]) -> str:
    more = f" and {len(why) - _SHOWN} more" if len(why) > _SHOWN else ""
    return f"{path}: stale, {'; '.join(why[:_SHOWN])}{more}; run the suite again"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) != 1:
        print("error: expected one suite file: python -m workflow.verify config/lab.yaml", file=sys.stderr)
        return 2
    try:
        suite = read_suite(given[0])
        suite.check_templates()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = problems(suite)
    n_runs = sum(1 for _ in runs(suite))
    print("\n".join(found), end="\n" if found else "")
    print(f"{suite.results}: {len(found)} problems" if found else
          f"{suite.results}: {n_runs} runs and their tables agree with the code")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
