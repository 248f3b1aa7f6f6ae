"""Processor seconds of a cold `make book` by part: `python -m benchmarks.book [SUITE]`; results/bench/book.csv.

Copies what git tracks and makes the book there with the environment of this tree, so that no result is there before and
none of this tree is touched. Seconds are user plus system time of the command with all that it started. The kernels and
processes of runs are counted one by one as they end; what is left is the workflow engine, imports and rendering.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks.common import RESULTS, save
from workflow import command
from workflow.suite import read_suite
from workflow.warm import SECONDS

TABLE, REST = RESULTS / "book.csv", "workflow, imports, rendering"


def part_of(module: str, arguments: list[str], made_from: str) -> tuple[str, Path]:
    """The notebook that a process worked for and what of: its log for kernels, the page for what starts them."""
    folders = Path(made_from).parts
    if "logs" in folders:
        place = folders.index("logs") + 1
        return folders[place].partition(".")[0], Path(*folders[place:])
    return (Path(arguments[0]).stem, Path(arguments[1])) if module == "workflow.run" else (module, Path())


def by_part(lines: list[str], total: float, included: Collection[str]) -> pd.DataFrame:
    """Columns part, runs, processor_seconds, of_real_models, share; the largest first, what is left of the total last.

    `included`: models and suites, whose own runs are the seconds of real models; the rest is the lab's or of both.
    """
    rows = []
    for module, arguments, made_from, seconds in map(json.loads, lines):
        part, of = part_of(module, arguments, made_from)
        real = any(name == of.stem.partition(".")[0] or f"/{name}/" in f"/{of}" for name in included)
        rows.append((part, module == "workflow.run", seconds, real * seconds))
    table = pd.DataFrame(rows, columns=["part", "runs", "processor_seconds", "of_real_models"])
    table = table.groupby("part", as_index=False).sum().sort_values("processor_seconds", ascending=False)
    rest = pd.DataFrame({"part": [REST], "processor_seconds": [total - table["processor_seconds"].sum()]})
    table = pd.concat([table, rest], ignore_index=True).fillna({"runs": 0, "of_real_models": 0.0}).astype({"runs": int})
    return table.assign(share=lambda t: t["processor_seconds"] / total)


def cold_book(suite: str, cores: int) -> tuple[list[str], float]:
    """Make the book of a suite in a copy of this tree; what its processes used, as lines, and all of it in seconds."""
    tracked = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True).stdout.split("\0")
    with tempfile.TemporaryDirectory(prefix="icl_book.") as folder:
        for name in filter(None, tracked):
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, target)  # with its time, or make would think the environment older
        seconds = Path(folder, "seconds")
        command = ["make", "--quiet", "book", f"SUITE={suite}", f"CORES={cores}", f"VENV={Path('.venv').resolve()}"]
        made = subprocess.Popen(command, cwd=folder, env=os.environ | {SECONDS: str(seconds), "PYTHONPATH": folder})
        _, status, used = os.wait4(made.pid, 0)
        if status:
            raise SystemExit(f"error: `{' '.join(command)}` ended with status {os.waitstatus_to_exitcode(status)}")
        return seconds.read_text(encoding="utf-8").splitlines(), used.ru_utime + used.ru_stime


@partial(command, takes="[SUITE]")
def main(arguments: list[str]) -> None:
    suite = arguments[0] if arguments else "lab"
    included = [name for other in read_suite(f"config/{suite}.yaml").included for name in (other.name, *other.steps)]
    table = by_part(*cold_book(suite, int(os.environ.get("CORES", "2"))), included)
    save(table, TABLE)
    seconds = table[["processor_seconds", "of_real_models"]].sum() / 60
    print("in all {:.1f} minutes of processor time, {:.1f} of them on real models alone".format(*seconds))


if __name__ == "__main__":
    sys.exit(main())
