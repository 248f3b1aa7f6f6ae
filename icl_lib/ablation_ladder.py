"""The full ablation grid over the lab's ladder, from its committed table: counts, sentences and rows, no model."""

from pathlib import Path

import pandas as pd

from icl_lib.ablation_effects import DIFFERENCE, KINDS
from icl_lib.report import METRIC_WORDS
from icl_lib.statistics import holm

CELL = ["replacement", "positions", "fraction"]
COLUMNS = ["model", "metric", *CELL, "ranking", "excluded", "n_heads", "n_draws", "n_prompts", "value", "low", "high",
           "p_value"]


def read_grid(path: str | Path) -> pd.DataFrame:
    """The committed rows of the tables `effects`, models smallest first; `excluded` is "" or words.

    Raises ValueError in one line for a file that is missing or has other columns.
    """
    try:
        grid = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}), expected the grid's table: "
                         "run `make grid`") from None
    if list(grid) != COLUMNS:
        raise ValueError(f"{path} has the columns {', '.join(grid)}, expected {', '.join(COLUMNS)}: run `make grid`")
    return grid


def cell_counts(grid: pd.DataFrame) -> pd.DataFrame:
    """In how many cells of the grid each kind costs more than its layers, and which kind costs more; plain rankings.

    A row per model and metric. A cell is a replacement, positions and a number of heads: fractions that come to the
    same number are one cell. A kind counts where the 95 % interval is above zero, in brackets where Holm's p over all
    cells and both kinds of the row is below 0.05. `difference`: range over cells of FV less induction heads' effect.
    """
    rows = []
    plain = grid[grid["excluded"] == ""].drop_duplicates(
        ["model", "metric", "replacement", "positions", "n_heads", "ranking"])
    for (model, metric), own in plain.groupby(["model", "metric"], sort=False):
        of_kinds = own[own["ranking"].isin(KINDS)]
        of_kinds = of_kinds.assign(p_holm=holm(of_kinds["p_value"].to_numpy()))
        gap = own[own["ranking"] == DIFFERENCE]
        row = {"model": model, "metric": metric, "cells": len(gap)}
        for kind in KINDS:
            rows_of = of_kinds[(of_kinds["ranking"] == kind)]
            above = rows_of["low"] > 0
            row |= {kind: int(above.sum()), f"{kind}_holm": int((above & (rows_of["p_holm"] < 0.05)).sum())}
        row |= {"fv_more": int((gap["low"] > 0).sum()), "induction_more": int((gap["high"] < 0).sum()),
                "lowest": gap["value"].min(), "highest": gap["value"].max()}
        rows.append(row)
    return pd.DataFrame(rows)


def counts_table(counts: pd.DataFrame) -> pd.DataFrame:
    """`cell_counts` for the page."""
    return pd.DataFrame({
        "model": counts["model"], "metric": counts["metric"].map(METRIC_WORDS), "cells": counts["cells"],
        "FV heads beyond their layers": [f"{n} ({h})" for n, h in zip(counts["fv"], counts["fv_holm"], strict=True)],
        "induction heads beyond their layers":
            [f"{n} ({h})" for n, h in zip(counts["induction"], counts["induction_holm"], strict=True)],
        "FV heads cost more": counts["fv_more"], "induction heads cost more": counts["induction_more"],
        "difference, lowest to highest":
            [f"{low:+.2f} to {high:+.2f}" for low, high in zip(counts["lowest"], counts["highest"], strict=True)],
    }).set_index(["metric", "model"]).sort_index(level=0, sort_remaining=False)


def order_sentence(counts: pd.DataFrame) -> str:
    """Does the order of the two kinds survive every replacement, position and share of heads?"""
    parts = []
    for metric, words in METRIC_WORDS.items():
        own = counts[counts["metric"] == metric]
        only_fv = own[(own["fv_more"] > 0) & (own["induction_more"] == 0)]["model"]
        only_induction = own[(own["induction_more"] > 0) & (own["fv_more"] == 0)]["model"]
        both = own[(own["fv_more"] > 0) & (own["induction_more"] > 0)]["model"]
        clauses = [f"{says} in {', '.join(models)}" for says, models in (
            ("FV heads cost more and induction heads nowhere do", only_fv),
            ("induction heads cost more and FV heads nowhere do", only_induction),
            ("either kind costs more somewhere", both)) if len(models)]
        total = own[["cells", "fv_more", "induction_more"]].sum()
        parts.append(f"**{words}**: of {total['cells']} cells of all models FV heads cost more in {total['fv_more']}, "
                     f"induction heads in {total['induction_more']} (interval of the difference clear of zero)"
                     + (f"; {'; '.join(clauses)}" if clauses else ""))
    return ". ".join(parts) + "."


def statistics_rows(grid: pd.DataFrame) -> pd.DataFrame:
    """All rows of the grid as rows of the table `statistics`, the name telling the cell."""
    words = grid["metric"].map(METRIC_WORDS) + " lost beyond layer-matched random, " + grid["ranking"]
    cell = (", " + grid["replacement"] + ", " + grid["positions"] + " positions, "
            + grid["fraction"].map("{:g}".format) + " of heads")
    kept = grid["excluded"].map(lambda excluded: f", without the {excluded}" if excluded else "")
    return grid[["model", "value", "low", "high", "p_value"]].assign(
        name=words + cell + kept, n=grid["n_prompts"], notebook="ablation_ladder")
