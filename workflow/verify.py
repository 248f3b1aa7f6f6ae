"""Whether a suite's results and the code agree: `python -m workflow.verify config/lab.yaml`.

One line for everything that does not: tables and notebooks that are missing, unreadable, foreign (no notebook of this
suite makes them) or stale (made by other code, weights, tables, parameters or versions than at present), notebooks
without their tables, and temporary files left by a kill. Nothing is changed. The exit status is 0 when all agree.
"""

import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icl_lib.tables import read_table, table_fingerprint
from workflow.inputs import differences, is_record, read_record
from workflow.notebooks import NOTEBOOKS, Run
from workflow.run import KEPT
from workflow.suite import Suite, read_suite
from workflow.sweep import changed_parts
from workflow.templates import measuring_parameters, measuring_source

_SHOWN = 3  # differences named for one file
# Folders that hold no results of the runs below: what was printed, finished parts of runs, rendered pages, a copy under
# torture, what the stand-in hub serves.
_OTHER = ("logs", "partial", "book", "copy", "hub", KEPT)


def problems(suite: Suite) -> list[str]:
    """One line each, the file's path first; in order of paths. Empty when everything agrees."""
    return sorted(_Check(suite).problems())


@dataclass
class _Check:
    suite: Suite
    stale: set[str] = field(default_factory=set)  # tables with a problem, which spoil what was made from them

    @property
    def results(self) -> Path:
        return Path(self.suite.results)

    def problems(self) -> Iterator[str]:
        runs, joined = self.suite.runs, {}
        known = {path for run in runs for path in (run.executed, *run.tables)}
        for run in runs:
            yield from self._of_run(run)
            for path, kind in run.tables.items() if run.point else ():
                joined.setdefault(f"sweeps/{run.notebook}/{kind}.parquet", []).append(path)
            if run.point:  # it finds the model's tables in its own folder
                known |= {f"{run.folder}{kind}/{run.stem}.parquet" for kind in NOTEBOOKS[run.notebook].reads}
        for name, parts in joined.items():
            path = self.results / name
            if not path.is_file():
                yield f"{path}: missing"
            elif changed := changed_parts(path, [self.results / part for part in parts]) + [
                    f"{part} is stale" for part in parts if part in self.stale]:
                yield _stale(path, changed)
        for path in self.results.rglob("*"):
            name = path.relative_to(self.results).as_posix()
            if path.suffix == ".tmp" and name.split("/")[0] != "copy":
                yield f"{path}: temporary file left by a run that was killed; remove it"
            elif path.suffix == ".damaged":
                yield f"{path}: set aside because it could not be read; look at it and remove it"
            elif path.suffix in (".parquet", ".ipynb") and name.split("/")[0] not in _OTHER and name not in {
                    *known, *joined}:
                yield f"{path}: foreign, no notebook of suite {self.suite.name} makes it; remove it or move it away"

    def _of_run(self, run: Run) -> Iterator[str]:
        executed = self.results / run.executed
        if not executed.is_file():
            present = [name for name in run.tables if (self.results / name).is_file()]
            yield f"{executed}: missing" + (f", though {', '.join(present)} is there" if present else "")
        else:
            try:
                changed = self._differences(read_record(self.results / run.record), self.suite.given(run))
            except ValueError as error:
                changed = [str(error)]
            if changed:
                yield _stale(executed, changed)
        for name, kind in run.tables.items():
            path = self.results / name
            if path.is_file():
                if reason := self._of_table(run, path, kind):
                    self.stale.add(name)
                    yield reason
            elif executed.is_file():
                yield f"{path}: missing, though {run.executed} is there"

    def _differences(self, record: dict[str, Any], given: dict[str, Any]) -> list[str]:
        found = differences(record, given, self.results)
        return found + [f"{name} is stale" for name in record["tables"] if name in self.stale and (
            self.results / name).is_file() and not any(line.startswith(f"{name} ") for line in found)]

    def _of_table(self, run: Run, path: Path, kind: str) -> str:
        """What does not agree; "" where all does."""
        try:
            made_by = read_table(path, schema_name=kind).attrs["provenance"]
        except ValueError as error:
            return f"{path}: unreadable, it {str(error).removeprefix(str(path)).lstrip(': ')}; run the suite again"
        suites = (self.suite, *self.suite.included)
        for of in suites if not run.point else ():
            committed = Path(of.tables, path.relative_to(self.results))
            if of.tables and committed.is_file():  # of whatever code: spot checks vouch for it
                same = table_fingerprint(committed) == table_fingerprint(path)
                return "" if same else _stale(path, [f"{committed} has changed"])
        if made_by["suite"] not in [of.name for of in suites]:
            return f"{path}: foreign, made by suite {made_by['suite']!r}; remove it or move it away"
        if not is_record(made_by["made_from"]):
            return _stale(path, ["it does not say what it was made from, so the workflow did not make it"])
        given = all_given = self.suite.given(run)
        if measuring_source(run.template):  # then the tables are of what measures alone
            given = {name: given[name] for name in measuring_parameters(run.template) if name in given}
        changed = self._differences(made_by["made_from"], given)
        changed += [f"{package} was {was}, is {now}" for package, was in made_by["versions"].items()
                    if (now := _version(package)) != was]
        if made_by["seed"] != all_given["seed"] and not any("seed" in line for line in changed):
            changed.append(f"seed was {made_by['seed']}, is {all_given['seed']}")
        return _stale(path, changed) if changed else ""


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
    print("\n".join(found), end="\n" if found else "")
    print(f"{suite.results}: {len(found)} problems" if found else
          f"{suite.results}: {len(suite.runs)} runs and their tables agree with the code")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
