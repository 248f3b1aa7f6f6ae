"""Put the effects of the finished grid suite into lab/grid.csv: `python -m lab.grid [results/grid]`.

The suite (`make sweep SUITE=grid`) takes long, so its table is committed, and every book has a page of it.
"""

import argparse
import os
import sys
from pathlib import Path

import pandas as pd

from icl_lib.ablation.effects import DIFFERENCE
from icl_lib.analysis.scaling import model_sizes
from icl_lib.files import whole
from icl_lib.kinds import heads_of_kind
from icl_lib.tables import read_table
from lab.files import GRID
from lab.grid_table import COLUMNS
from workflow import command

CONTROLS = ("none", "random_layer_matched")  # what is written, of the controls that the tables have


def collected(results: Path) -> pd.DataFrame:
    """The tables `effects` of all scored models, smallest first, with the number of heads of each kind.

    Errors as in `read_table`, and ValueError where no model is scored.
    """
    scored = {path.parent.relative_to(results / "scores").as_posix(): path.name
              for path in results.glob("scores/**/step*.parquet")}
    if not scored:
        raise ValueError(f"{results} has no tables `scores`; run the suite first: make sweep SUITE=grid")
    frames = []
    for model in model_sizes({model: [int(name[4:-8])] for model, name in scored.items()})["model"]:
        effects, scores, accuracy = (
            read_table(results / kind / model / scored[model], schema_name=kind)
            for kind in ("effects", "scores", "accuracy"))
        of_kind = {kind: int(heads.sum()) for kind, heads in heads_of_kind(scores, accuracy).items()}
        of_kind[DIFFERENCE] = min(of_kind.values())
        rows = effects[effects["control"].isin(CONTROLS) & effects["ranking"].isin(of_kind)]
        frames.append(rows.assign(of_kind=rows["ranking"].map(of_kind)))
    return pd.concat(frames, ignore_index=True)[COLUMNS]


@command
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="?", type=Path, default=Path("results/grid"))
    table = collected(parser.parse_args(arguments).results)
    with whole(GRID) as temporary:
        table.to_csv(temporary, index=False, float_format="%.5g")
    print(f"{len(table)} rows of {table['model'].nunique()} models -> {os.path.relpath(GRID)}")


if __name__ == "__main__":
    sys.exit(main())
