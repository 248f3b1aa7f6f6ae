"""Whether a suite's tables are the same bits every time: `python -m tests.support.determinism torture`.

In a copy of the project the suite is swept from nothing with two jobs at once, then with one job at a time and without
a network (where the system lets users cut it off), then with two jobs and its models listed in reverse. All tables must
agree bit for bit.
"""

import shutil
import sys
from functools import partial
from pathlib import Path

import yaml

from tests.support.trial import copy_for, count_tables, record_trial, run_sweep, unequal_tables, without_network_allowed
from workflow import command
from workflow.suite import RESULTS

ALONE, REVERSED = "one job at a time, without a network", "models in reverse"


def sweep(copy: Path, suite: str, kept: str) -> Path:
    """Sweep from nothing and put the results aside under this name."""
    shutil.rmtree(copy / ".snakemake", ignore_errors=True)
    run_sweep(copy, suite, cores=1 if kept == ALONE else 2, goal="sweep", log=copy.parent / "sweeps.log",
              network=kept != ALONE or not without_network_allowed())
    return (copy / RESULTS / suite).rename(copy / kept)


def reverse_models(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["models"].reverse()
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


@partial(command, failed=2)
def main(arguments: list[str]) -> bool:
    if len(arguments) != 1:
        raise ValueError("expected the name of one suite: python -m tests.support.determinism torture")
    suite, problems = arguments[0], []
    copy = copy_for(suite)
    first, variants = sweep(copy, suite, "first"), (ALONE, REVERSED)
    for variant in variants:
        if variant == REVERSED:
            reverse_models(copy / "config" / f"{suite}.yaml")
        unequal = list(unequal_tables(first, sweep(copy, suite, variant)))
        problems += [f"{variant}: table {name} is not the first one" for name in unequal]
        print(f"{variant}: {len(unequal)} of {count_tables(first)} tables differ", flush=True)
    record_trial("repetitions", f"python -m tests.support.determinism {suite}", tried=len(variants),
                 passed=len(variants) - len({line.split(":")[0] for line in problems}))
    if not problems:
        shutil.rmtree(copy)
    print("\n".join(problems) or f"{len(variants)} repetitions of suite {suite} agree bit for bit")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
