"""Put the effects of the finished grid suite into lab/grid.csv: `python -m workflow.grid [config/grid.yaml]`.

The suite takes hours, so its table is committed, and every book has a page of it; `make grid` does both.
"""

import os
import sys
from collections.abc import Sequence

import pandas as pd

from icl_lib.ablation.effects import DIFFERENCE
from icl_lib.analysis.ladder import COLUMNS
from icl_lib.analysis.scaling import model_sizes
from icl_lib.kinds import heads_of_kind
from icl_lib.tables import read_table, run_path
from lab.files import GRID
from workflow.suite import Suite, read_suite

CONTROLS = ("none", "random_layer_matched")  # what is written, of the controls that the tables have


def collected(suite: Suite) -> pd.DataFrame:
    """The tables `effects` of all ablated models, smallest first, with the number of heads of each kind.

    Errors as in `read_table`.
    """
    frames = []
    for model in model_sizes(suite.ablated)["model"]:
        effects, scores, accuracy = (
            read_table(run_path(suite.results, kind, model, suite.ablated[model][-1]), schema_name=kind)
            for kind in ("effects", "scores", "accuracy"))
        of_kind = {kind: int(heads.sum()) for kind, heads in heads_of_kind(scores, accuracy).items()}
        of_kind[DIFFERENCE] = min(of_kind.values())
        rows = effects[effects["control"].isin(CONTROLS) & effects["ranking"].isin(of_kind)]
        frames.append(rows.assign(of_kind=rows["ranking"].map(of_kind)))
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
