"""Put the effects of the finished grid suite into lab/grid.csv: `python -m workflow.grid [config/grid.yaml]`.

The suite takes hours, so its table is committed, and every book has a page of it; `make grid` does both.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from icl_lib.ablation_ladder import COLUMNS
from icl_lib.scaling import model_sizes
from icl_lib.tables import read_table
from lab.files import GRID
from workflow.suite import Suite, read_suite


def collected(suite: Suite) -> pd.DataFrame:
    """The tables `effects` of all ablated models, smallest first. Errors as in `read_table`."""
    sizes = model_sizes(suite.ablated)
    frames = [read_table(Path(suite.results, "effects", model, f"step{suite.ablated[model][-1]}.parquet"),
                         schema_name="effects") for model in sizes["model"]]
    return pd.concat(frames, ignore_index=True)[COLUMNS]


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) > 1:
        print("error: expected at most one suite file: python -m workflow.grid config/grid.yaml", file=sys.stderr)
        return 2
    try:
        suite = read_suite(given[0] if given else "config/grid.yaml")
        if not suite.ablated:
            raise ValueError(f"suite {suite.name} ablates no model, expected one that does, such as config/grid.yaml")
        table = collected(suite)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    temporary = GRID.with_suffix(".partial")
    table.to_csv(temporary, index=False, float_format="%.5g")
    os.replace(temporary, GRID)
    print(f"{len(table)} rows of {table['model'].nunique()} models -> {os.path.relpath(GRID)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
