"""Whether a suite's results and the code agree: `python -m workflow.verify config/lab.yaml`.

One line for everything that does not: tables and notebooks that are missing, unreadable, foreign (no notebook of this
suite makes them) or stale (made by other code, weights, tables, parameters or versions than at present), notebooks
without their tables, and temporary files left by a kill. Nothing is changed. The exit status is 0 when all agree.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from icl_lib.provenance import version
from icl_lib.tables import read_table, table_fingerprint
from workflow import command
from workflow.inputs import differences
from workflow.notebooks import NOTEBOOKS, Run
from workflow.run import KEPT
from workflow.suite import Suite, read_suite
from workflow.sweep import join
from workflow.templates import measuring_parameters, measuring_source

_SHOWN = 3  # differences named for one file
# Folders that hold no results of the runs below: what was printed, finished parts of runs, rendered pages, a copy under
# torture, what the stand-in hub serves.
_OTHER = ("logs", "partial", "book", "copy", "hub", KEPT)


def problems(suite: Suite) -> list[str]:
    """One line each, the file's path first; in order of paths. Empty when everything agrees."""
    check = _Check(suite, Path(suite.results))
    return sorted([*(line for run in suite.runs for line in check.of_run(run)), *check.of_copied(), *check.of_joined(),
                   *check.of_others()])


@dataclass
class _Check:
    suite: Suite
    results: Path
    stale: set[str] = field(default_factory=set)  # tables with a problem, which spoil what was made from them

    def of_run(self, run: Run) -> Iterator[str]:
        executed = self.results / run.executed
        there = [name for name in run.tables if (self.results / name).is_file()]
        if not executed.is_file():
            yield f"{executed}: missing" + (f", though {', '.join(there)} is there" if there else "")
        else:
            try:
                made_from = json.loads(executed.read_text(encoding="utf-8"))["metadata"]["made_from"]
            except (OSError, ValueError, LookupError, TypeError):
                made_from = None
            if changed := differences(made_from, self.suite.given(run), self.results, self.stale):
                yield f"{executed}: {_stale(changed)}"
            yield from (f"{self.results / name}: missing, though {run.executed} is there"
                        for name in run.tables if name not in there)
        for name in there:
            if reason := self._of_table(run, self.results / name, run.tables[name]):
                self.stale.add(name)
                yield f"{self.results / name}: {reason}"

    def _of_table(self, run: Run, path: Path, kind: str) -> str:
        """What does not agree; "" where all does."""
        try:
            made_by = read_table(path, schema_name=kind).attrs["provenance"]
        except ValueError as error:
            reason = str(error).removeprefix(str(path)).lstrip(": ")
            return f"unreadable, it {reason}; remove it and run the suite again"
        suites = (self.suite, *self.suite.included)
        for folder in (of.tables for of in suites if of.tables):
            committed = Path(folder, path.relative_to(self.results))
            if committed.is_file():  # of whatever code: spot checks vouch for it
                same = table_fingerprint(committed) == table_fingerprint(path)
                return "" if same else _stale([f"{committed} has changed"])
        if made_by["suite"] not in [of.name for of in suites]:
            return f"foreign, made by suite {made_by['suite']!r}; remove it or move it away"
        given = self.suite.given(run)
        used = measuring_parameters(run.template) if measuring_source(run.template) else given
        changed = differences(made_by["made_from"], {name: given[name] for name in given if name in used}, self.results,
                              self.stale)
        changed += [f"{package} was {was}, is {now}" for package, was in made_by["versions"].items()
                    if (now := version(package)) != was]
        return _stale(changed) if changed else ""

    def of_copied(self) -> Iterator[str]:
        for path, committed in self.suite.copied.items():
            if not Path(path).is_file():
                yield f"{path}: missing"
            elif Path(path).read_bytes() != Path(committed).read_bytes():
                yield f"{path}: {_stale([f'{committed} is another'])}"

    def of_joined(self) -> Iterator[str]:
        for path, parts in self.suite.joined.items():
            if not Path(path).is_file():
                yield f"{path}: missing"
                continue
            changed = [f"{part} is stale" for part in parts if part.removeprefix(f"{self.results}/") in self.stale]
            try:
                same = pq.read_table(path, partitioning=None).equals(join(parts))
                changed += [] if same else ["it is not what its parts are"]
            except (OSError, ValueError, pa.ArrowException) as error:
                changed.append(str(error).splitlines()[0])
            if changed:
                yield f"{path}: {_stale(changed)}"

    def of_others(self) -> Iterator[str]:
        """What lies among the results and belongs to none of the runs."""
        known = {self.results / path for run in self.suite.runs for path in (run.executed, *run.tables)}
        known |= {self.results / run.folder / kind / f"{run.stem}.parquet" for run in self.suite.runs if run.point
                  for kind in NOTEBOOKS[run.notebook].reads}  # it finds the model's tables in its own folder
        known |= {Path(path) for path in (*self.suite.joined, *self.suite.copied)}
        for path in self.results.rglob("*"):
            parts = path.relative_to(self.results).parts
            other = parts[0] in _OTHER or parts[0] == "sweeps" and parts[3:4] == (KEPT,)  # a point has its own
            if path.suffix == ".tmp" and parts[0] != "copy":
                yield f"{path}: temporary file left by a run that was killed; remove it"
            elif path.suffix == ".damaged":
                yield f"{path}: set aside because it could not be read; look at it and remove it"
            elif path.suffix in (".parquet", ".ipynb") and not other and path not in known:
                yield f"{path}: foreign, no notebook of suite {self.suite.name} makes it; remove it or move it away"


def _stale(why: list[str]) -> str:
    more = f" and {len(why) - _SHOWN} more" if len(why) > _SHOWN else ""
    return f"stale, {'; '.join(why[:_SHOWN])}{more}; run the suite again"


@partial(command, failed=2, takes="SUITE_FILE")
def main(arguments: list[str]) -> int:
    suite = read_suite(*arguments)
    suite.check_templates()
    found = problems(suite)
    print("\n".join(found), end="\n" if found else "")
    print(f"{suite.results}: {len(found)} problems" if found else
          f"{suite.results}: {len(suite.runs)} runs and their tables agree with the code")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
