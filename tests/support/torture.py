"""Kill sweeps and see what is lost: `python -m tests.support.torture torture --kills 100 --seed 0`.

In a copy of the project a suite's book is made once undisturbed. Then `make book` is started again and again from
nothing, each time killed (SIGKILL of its whole process group) at a moment drawn at random: any time, or just after a
file of the results was written, or during the build of the book. When a book is finished, its tables must be those of
the undisturbed one bit for bit, `make verify` must find nothing, no temporary file may be left, and no run that had
finished before a kill may have been made again; then the results are removed and it begins anew, until there were as
many kills as asked for. The report is results/<suite>/report.md, with a row per kill in report.csv.

A run has finished when Snakemake has recorded its outputs as complete.
"""

import argparse
import base64
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from tests.support.trial import copy_for, count_tables, record_trial, run_sweep, start_sweep, unequal_tables
from workflow import command
from workflow.suite import RESULTS

MOMENTS = {"any time": 0.5, "after a write": 0.42, "during the book": 0.08}
_WRITTEN = (".parquet", ".ipynb", ".tmp", ".json", ".safetensors")


@dataclass(frozen=True)
class Kill:
    """One kill: which book it hit, when, what was at work, and how much had been finished."""

    kill: int
    book: int
    moment: str
    seconds: float
    at_work: str
    finished_runs: int
    temporary_files: int


@dataclass
class Torture:
    """The state of one torture: the copy, its undisturbed results, the kills so far and what went wrong."""

    copy: Path
    suite: str
    cores: int
    rng: np.random.Generator
    seconds: float = 0.0  # an undisturbed book takes
    book: int = 1
    kills: list[Kill] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    finished: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        return self.copy / RESULTS / self.suite

    @property
    def undisturbed(self) -> Path:
        return self.copy / "undisturbed"

    @property
    def log(self) -> Path:
        return self.copy.parent / "sweeps.log"

    def prepare(self) -> None:
        """Make the book once and put its results aside."""
        start = time.monotonic()
        run_sweep(self.copy, self.suite, cores=self.cores, goal="book", log=self.log)
        self.seconds = time.monotonic() - start
        self.results.rename(self.undisturbed)
        self.forget()

    def forget(self) -> None:
        """Begin a book from nothing."""
        shutil.rmtree(self.results, ignore_errors=True)
        shutil.rmtree(self.copy / ".snakemake", ignore_errors=True)
        self.finished = {}

    def kill_once(self) -> None:
        """Start the sweep and kill it; when it ends first, check what it made and begin the next book."""
        moment = str(self.rng.choice(list(MOMENTS), p=list(MOMENTS.values())))
        # many kills early in what is left to do, as many late enough for some runs to finish
        delay = float(np.exp(self.rng.uniform(0, np.log(max(2.0, self.seconds / 2)))))
        start = time.monotonic()
        process = start_sweep(self.copy, self.suite, cores=self.cores, goal="book", log=self.log)
        if self._wait(process, moment, delay):
            at_work = working(process.pid)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._note(moment, time.monotonic() - start, at_work)
        else:
            self.check(process.returncode)
            self.book += 1
            self.forget()

    def _wait(self, process: subprocess.Popen, moment: str, delay: float) -> bool:
        """Until the moment has come (True) or the sweep has ended (False)."""
        pause = float(self.rng.uniform(0, 0.3))
        start = time.monotonic()
        seen = None
        while process.poll() is None:
            if moment == "any time" and time.monotonic() - start > delay:
                return True
            if moment == "during the book" and "book" in working(process.pid):
                time.sleep(pause * 30)  # a build takes about as long
                return process.poll() is None
            if moment == "after a write" and time.monotonic() - start > delay / 2:
                now = set(self._written())
                if seen is not None and now - seen:
                    time.sleep(pause)
                    return process.poll() is None
                seen = now
            time.sleep(0.005)
        return False

    def _written(self) -> Iterator[Path]:
        for folder, _, names in os.walk(self.results):  # not glob: it stumbles over folders that go while it looks
            yield from (Path(folder, name) for name in names if name.endswith(_WRITTEN))

    def _note(self, moment: str, seconds: float, at_work: str) -> None:
        self._compare_finished()
        marked = incomplete(self.copy)
        for path in (self.results / "notebooks").rglob("*.ipynb"):
            if path.relative_to(self.copy).as_posix() not in marked:
                self.finished.setdefault(path.relative_to(self.copy).as_posix(), _identity(path))
        left = sum(path.suffix == ".tmp" for path in self._written())
        self.kills.append(Kill(len(self.kills) + 1, self.book, moment, round(seconds, 2), at_work,
                               len(self.finished), left))
        print(self.kills[-1], flush=True)

    def _compare_finished(self) -> None:
        for name, known in self.finished.items():
            path = self.copy / name
            if not path.is_file() or _identity(path) != known:
                self.problems.append(f"book {self.book}: finished run {name} was lost or made again")
        self.finished = {k: v for k, v in self.finished.items() if (self.copy / k).is_file()}

    def check(self, status: int) -> None:
        """What a finished book must be."""
        found = [f"make book ended with {status}"] if status else []
        self._compare_finished()
        found += [f"table {name} is not the undisturbed one" for name in unequal_tables(self.undisturbed, self.results)]
        found += [f"temporary file {path.name} is left" for path in self.results.rglob("*.tmp")]
        if not (self.results / "book/_build/html/index.html").is_file():
            found.append("there is no book")
        done = subprocess.run([sys.executable, "-m", "workflow.verify", f"config/{self.suite}.yaml"], cwd=self.copy,
                              capture_output=True, text=True, check=False)
        if done.returncode:
            found += (done.stdout + done.stderr).splitlines()
        self.problems += [f"book {self.book}: {line}" for line in found]
        print(f"book {self.book}: {len(found)} problems", flush=True)


def working(group: int) -> str:
    """What the processes of a group are at: the notebooks that run, the book, or else planning."""
    found = set()
    for process in psutil.process_iter():
        try:
            words = process.cmdline() if os.getpgid(process.pid) == group else []
        except (psutil.Error, OSError):  # it has just ended
            continue
        if "workflow.book" in words:
            found.add("book")
        elif "workflow.run" in words:
            found.add(Path(words[words.index("workflow.run") + 1]).stem)
    return " + ".join(sorted(found)) or "planning"


def incomplete(folder: Path) -> set[str]:
    """Outputs that Snakemake has marked as being made, by its own records: paths in base 64."""
    marks = (folder / ".snakemake" / "incomplete").rglob("*")
    return {base64.urlsafe_b64decode(path.name).decode() for path in marks if path.is_file()
            and path.name != "migration_underway"}


def _identity(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_ino, state.st_mtime_ns


def write_report(torture: Torture, folder: Path, minutes: float) -> None:
    """report.csv with a row per kill and report.md with the counts and all problems."""
    kills = torture.kills
    pd.DataFrame(kills, columns=[column.name for column in fields(Kill)]).to_csv(folder / "report.csv", index=False)
    counts = "\n".join(f"| {name} | {n} |" for name, n in Counter(k.at_work for k in kills).most_common())
    problems = "\n".join(f"- {line}" for line in torture.problems) or "None."
    between = np.mean([kill.seconds for kill in kills]) if kills else 0
    (folder / "report.md").write_text(
        f"# Kills\n\n{len(kills)} kills over {torture.book} books of suite {torture.suite} with {torture.cores} jobs "
        f"at once, in {minutes:.0f} minutes; {between:.1f} seconds from a start to its kill on average, "
        f"{torture.seconds:.0f} for an undisturbed book. {sum(k.temporary_files > 0 for k in kills)} kills left "
        f"temporary files, which the next start removed. {count_tables(torture.undisturbed)} tables a book were "
        f"compared bit for bit with the undisturbed ones.\n\n## Problems\n\n{problems}\n\n"
        f"## What was at work\n\n| at work | kills |\n|---|---|\n{counts}\n", encoding="utf-8")


@partial(command, failed=2)
def main(arguments: list[str]) -> bool:
    parser = argparse.ArgumentParser(description="Kill sweeps at random moments and see what is lost.")
    parser.add_argument("suite", help="name of a suite of seconds, such as torture")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no kill after this long")
    given = parser.parse_args(arguments)
    if given.kills < 1:
        raise ValueError(f"{given.kills} kills: expected at least 1")
    copy, folder = copy_for(given.suite), RESULTS / given.suite
    (folder / "sweeps.log").unlink(missing_ok=True)
    torture = Torture(copy, given.suite, given.cores, np.random.default_rng(given.seed))
    start = time.monotonic()
    torture.prepare()
    while len(torture.kills) < given.kills and time.monotonic() - start < given.minutes * 60:
        torture.kill_once()
    torture.check(start_sweep(copy, given.suite, cores=given.cores, goal="book", log=torture.log).wait())
    write_report(torture, folder, (time.monotonic() - start) / 60)
    # every kill of a book with a problem counts as lost
    spoiled = {line.split(":")[0] for line in torture.problems}
    limit = "" if given.minutes == float("inf") else f" --minutes {given.minutes:g}"
    record_trial("kills", f"python -m tests.support.torture {given.suite} --kills {given.kills}{limit}",
                 tried=len(torture.kills),
                 passed=sum(f"book {kill.book}" not in spoiled for kill in torture.kills))
    print("\n".join(torture.problems) or f"{len(torture.kills)} kills, nothing lost; {folder / 'report.md'}")
    if not torture.problems:
        shutil.rmtree(copy)
    return bool(torture.problems)


if __name__ == "__main__":
    sys.exit(main())
