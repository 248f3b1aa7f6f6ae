"""Whether a suite's tables are the same bits every time: `python -m tests.support.determinism torture`.

In a copy of the project the suite is swept from nothing with two jobs at once, then again with all that must not
matter changed: one job at a time, its models in reverse, and without a network where the system lets users cut it off.
All tables must agree bit for bit.
"""

import shutil
import sys
from functools import partial
from pathlib import Path

import yaml

from tests.support.trial import copy_for, count_tables, record_trial, run_sweep, unequal_tables, without_network_allowed
from workflow import command
from workflow.suite import RESULTS


def sweep(copy: Path, suite: str, kept: str, *, cores: int, network: bool) -> Path:
    """Sweep from nothing and put the results aside under this name."""
    shutil.rmtree(copy / ".snakemake", ignore_errors=True)
    run_sweep(copy, suite, cores=cores, goal="sweep", log=copy.parent / "sweeps.log", network=network)
    return (copy / RESULTS / suite).rename(copy / kept)


def reverse_models(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["models"].reverse()
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


@partial(command, failed=2)
def main(arguments: list[str]) -> bool:
    if len(arguments) != 1:
        raise ValueError("expected the name of one suite: python -m tests.support.determinism torture")
    suite = arguments[0]
    copy = copy_for(suite)
    first = sweep(copy, suite, "first", cores=2, network=True)
    reverse_models(copy / "config" / f"{suite}.yaml")
    unequal = list(unequal_tables(first, sweep(copy, suite, "again", cores=1, network=not without_network_allowed())))
    record_trial("repetitions", f"python -m tests.support.determinism {suite}", tried=1, passed=int(not unequal))
    print(*(f"table {name} is not the first one" for name in unequal), sep="\n", end="\n" * bool(unequal))
    print(f"{len(unequal)} of {count_tables(first)} tables differ")
    if not unequal:
        shutil.rmtree(copy)
    return bool(unequal)


if __name__ == "__main__":
    sys.exit(main())
