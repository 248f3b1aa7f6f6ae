"""A copy of this project to try things on, sweeps in it, and what they left compared."""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from icl_lib.files import whole
from icl_lib.tables import table_fingerprint
from workflow.suite import RESULTS, read_suite

TRIALS = Path("book/trials.csv")  # what was tried and how it went, a line each; shown in the book
# Before a command: no network but the loop that kernels are spoken to through.
NO_NETWORK = ("unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"')
_PARTS = ("Makefile", "Snakefile", "requirements.lock", "pyproject.toml", "_config.yml", "_toc.yml", "workflow",
          "icl_lib", "lab", "notebooks", "config", "book", "benchmarks")


def copy_for(suite: str) -> Path:
    """What a sweep of a suite needs, with this environment, in a folder of its own below the suite's results.

    Results and records of runs are not copied. Raises ValueError for a suite that is wrong.
    """
    read_suite(f"config/{suite}.yaml").check_templates()
    target = (RESULTS / suite / "copy").resolve()
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in _PARTS:
        if Path(name).is_dir():
            shutil.copytree(name, target / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
        else:
            shutil.copy2(name, target)
    (target / ".venv").symlink_to(Path(".venv").resolve())
    return target


def start_sweep(
    copy: Path, suite: str, *, cores: int, goal: str, log: Path, network: bool = True
) -> subprocess.Popen:
    """`make book` or `make sweep` in a process group of its own, what it prints at the end of `log`.

    Without `network` in a network namespace of its own, where nothing but the machine itself can be reached.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTHONPATH"))}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = ["make", goal, f"SUITE={suite}", f"CORES={cores}"]
    with open(log, "a", encoding="utf-8") as file:
        return subprocess.Popen([*(() if network else NO_NETWORK), *command], cwd=copy, env=environment,
                                stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def run_sweep(copy: Path, suite: str, *, cores: int, goal: str, log: Path, network: bool = True) -> None:
    """The same to its end. Raises RuntimeError in one line when it fails."""
    if start_sweep(copy, suite, cores=cores, goal=goal, log=log, network=network).wait():
        raise RuntimeError(f"make {goal} SUITE={suite} CORES={cores} failed without being disturbed (log {log})")


def unequal_tables(first: Path, second: Path) -> Iterator[str]:
    """Names of tables that are only in one of two results folders or differ in any bit."""
    names = [{p.relative_to(folder).as_posix() for p in folder.rglob("*.parquet")} for folder in (first, second)]
    for name in sorted(names[0] | names[1]):
        if name not in names[0] & names[1] or table_fingerprint(first / name) != table_fingerprint(second / name):
            yield name


def without_network_allowed() -> bool:
    """Whether this system lets its users make a network namespace."""
    try:
        return not subprocess.run([*NO_NETWORK, "true"], capture_output=True, check=False).returncode
    except OSError:
        return False


def count_tables(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*.parquet"))


def record_trial(trial: str, command: str, *, tried: int, passed: int) -> None:
    """Put a trial's line into the book's table of trials, in place of its last one.

    A short form that went well does not take the place of a longer one that did.
    """
    rows = pd.read_csv(TRIALS, index_col="trial") if TRIALS.is_file() else pd.DataFrame(
        columns=["command", "tried", "passed"], index=pd.Index([], name="trial"))
    if trial in rows.index and rows["passed"][trial] == rows["tried"][trial] >= tried == passed:
        return
    rows.loc[trial] = [command, tried, passed]
    with whole(TRIALS) as temporary:
        rows.sort_index().to_csv(temporary)


def record_tests(trial: str, command: str, report: Path) -> None:
    """The same from a JUnit report of pytest; skipped tests count as not tried."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    tried = [case for case in cases if case.find("skipped") is None]
    failed = [case for case in tried if case.find("failure") is not None or case.find("error") is not None]
    record_trial(trial, command, tried=len(tried), passed=len(tried) - len(failed))


def main() -> int:
    """Meet faults and bad input: `python -m tests.support.trial`; a line of the book's table for each."""
    Path("results").mkdir(exist_ok=True)
    failed = False
    for trial, arguments in (("faults", ["-m", "faults or not faults", "tests/test_faults.py"]),
                             ("bad inputs", ["tests/test_bad_input.py", "-k", "one_line"]),
                             ("", ["-m", "faults", "tests/test_safety.py"])):
        report = Path("results", f"{trial.replace(' ', '_') or 'safety'}.xml")
        pytest = [sys.executable, "-m", "pytest", *arguments, f"--junitxml={report}"]
        failed |= bool(subprocess.run(pytest, check=False).returncode)
        if trial:
            record_tests(trial, "python -m tests.support.trial", report)
    return failed


if __name__ == "__main__":
    sys.exit(main())
