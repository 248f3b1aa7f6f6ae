"""Put the tables of the last `make bench` into the book: `python -m benchmarks.publish`, or those named after it.

Headings get units and lose underscores; columns that are the same in every row of a table are left out, as the page
says them in words.
"""

import sys
from pathlib import Path

import pandas as pd

from benchmarks.common import RESULTS, refuse_unknown

BOOK = Path("book")
# The book's name of each table, and its name among the results.
TABLES = {"fv_scores": "fv_scores", "ablation_grid": "ablation_grid", "training_cost": "training", "book_cost": "book"}
HEADINGS = {"ratio_to_flop_limit": "ratio to FLOP limit", "peak_memory_mib": "peak memory (MiB)",
            "resident_mib": "resident (MiB)"}


def for_the_page(table: pd.DataFrame) -> pd.DataFrame:
    """The table with readable headings and without columns of one value."""
    varying = [column for column in table if table[column].nunique(dropna=False) > 1]
    return table[varying].rename(columns=lambda name: HEADINGS.get(name, name.replace("_", " ")))


def main() -> None:
    refuse_unknown("table", sys.argv[1:], TABLES)
    tables = {name: RESULTS / f"{TABLES[name]}.csv" for name in sys.argv[1:] or TABLES}
    if missing := [str(path) for path in tables.values() if not path.is_file()]:
        raise SystemExit(f"error: {missing[0]} is not there, expected the tables of a benchmark; run `make bench`")
    for name, path in tables.items():
        target = BOOK / f"{name}.csv"
        for_the_page(pd.read_csv(path)).to_csv(target, index=False)
        print(f"{path} -> {target}")


if __name__ == "__main__":
    main()
