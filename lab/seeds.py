"""The seeds of one size against what the size was made for (`aims` of its file), from the tables of their last step."""

from pathlib import Path

import pandas as pd

from icl_lib.kinds import heads_of_kind
from icl_lib.names import size_of
from icl_lib.pages.dynamics import by_seed_shown
from icl_lib.tables import read_table
from lab.files import read_rung


def seeds_table(results: str | Path, models: dict[str, list[int]], reached: pd.DataFrame, size: str) -> pd.DataFrame:
    """One row per seed of a size, of the models in `reached` (`ladder.reached_table`), with the measures of the aims.

    Measures as in `lab.check`: of the last step's heads `induction layers` and `other heads` (lowest share of a layer
    that are no induction heads), `FV heads`; accuracies of `reached`. `aims met`: whether none is below its aim.
    """
    aims, rows = read_rung(size)["aims"], {}
    for model in (model for model in reached.index if size_of(model) == size):
        tables = [read_table(Path(results) / kind / model / f"step{models[model][-1]}.parquet", schema_name=kind)
                  for kind in ("scores", "accuracy")]
        heads, row = heads_of_kind(*tables), reached.loc[model]
        rows[model] = {
            "induction heads by layer": row["induction heads by layer"],
            "induction layers": int(heads["induction"].any(axis=1).sum()),
            "other heads": float((~heads["induction"]).mean(axis=1).min()), "FV heads": int(heads["fv"].sum()),
            "10 shots": row["all trained"], "rise from 1 shot": row["10 shots"] - row["1 shot"],
            "gap to shuffled": row["10 shots"] - row["10, shuffled"]}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
    return table.assign(**{"aims met": (table[list(aims)] >= pd.Series(aims)).all(axis=1)}) if rows else table


def seeds_shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table by seed, in words."""
    return by_seed_shown(table.reset_index().assign(**{"aims met": table["aims met"].map(
        {True: "yes", False: "no"}).to_numpy()})).round(2)


def aims_sentence(table: pd.DataFrame, size: str) -> str:
    """In how many seeds each aim is met, and in how many all are."""
    aims, n = read_rung(size)["aims"], len(table)
    parts = [f"{aim}, at least {bound:g}: {(table[aim] >= bound).sum()}" for aim, bound in aims.items()]
    return (f"Of {n} seeds {table['aims met'].sum()} have all that the size was made for. Seeds with each part: "
            f"{'; '.join(parts)}.")
