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
from pathlib import Path

import pandas as pd

from benchmarks.common import RESULTS, save
from workflow.warm import SECONDS

TABLE, REST = RESULTS / "book.csv", "workflow, imports, rendering"


def part_of(module: str, arguments: list[str], made_from: str) -> str:
    """The notebook that a process worked for: its log's folder for kernels, the template for what starts them."""
    folders = Path(made_from).parts
    if "logs" in folders:
        return folders[folders.index("logs") + 1].partition(".")[0]
    return Path(arguments[0]).stem if module == "workflow.run" else module


def by_part(lines: list[str], total: float) -> pd.DataFrame:
    """Columns part, runs, processor_seconds, share; the largest first, what no process accounts for last."""
    rows = [(part_of(*entry[:3]), entry[0] == "workflow.run", entry[3]) for entry in map(json.loads, lines)]
    table = pd.DataFrame(rows, columns=["part", "runs", "processor_seconds"]).groupby("part", as_index=False).sum()
    table = table.sort_values("processor_seconds", ascending=False)
    rest = pd.DataFrame({"part": [REST], "runs": [0], "processor_seconds": [total - table["processor_seconds"].sum()]})
    return pd.concat([table, rest], ignore_index=True).assign(share=lambda t: t["processor_seconds"] / total)


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


def main() -> None:
    suite = sys.argv[1] if len(sys.argv) > 1 else "lab"
    table = by_part(*cold_book(suite, int(os.environ.get("CORES", "2"))))
    save(table, TABLE)
    print(f"in all {table['processor_seconds'].sum() / 60:.1f} minutes of processor time")


if __name__ == "__main__":
    main()
