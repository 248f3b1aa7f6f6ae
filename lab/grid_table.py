"""The full ablation grid over the lab's ladder, from its committed table: counts, sentences and rows, no model."""

from pathlib import Path

import pandas as pd

from icl_lib.ablation.effects import DIFFERENCE, KINDS, METRIC_WORDS, corrected
from icl_lib.stats.intervals import holm

CELL = ["replacement", "positions", "fraction"]
COLUMNS = ["model", "metric", *CELL, "ranking", "excluded", "control", "of_kind", "n_heads", "n_draws", "n_prompts",
           "value", "low", "high", "p_value"]


def read_grid(path: str | Path) -> pd.DataFrame:
    """The committed rows of the tables `effects`, models smallest first; `excluded` is "" or words.

    `control` is "none" or "random_layer_matched"; `of_kind` is how many heads of the ranking's kind the model has by
    the definition (`kinds.heads_of_kind`), for the difference the smaller number of the two.
    Raises ValueError in one line for a file that is missing or has other columns.
    """
    try:
        grid = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}), expected the grid's table: "
                         "run `make sweep SUITE=grid`, then `python -m lab.grid`") from None
    if list(grid) != COLUMNS:
        raise ValueError(f"{path} has the columns {', '.join(grid)}, expected {', '.join(COLUMNS)}: run "
                         "`make sweep SUITE=grid`, then `python -m lab.grid`")
    return grid


def with_kinds(grid: pd.DataFrame) -> pd.DataFrame:
    """The rows that counts are about: of kinds that their model has."""
    return grid[grid["of_kind"] > 0]


def left_out_sentence(grid: pd.DataFrame) -> str:
    """Which models lack a kind, by name, so that no count is about them; "" for none."""
    parts = []
    for kind, label in (("fv", "FV heads"), ("induction", "induction heads")):
        lacking = list(dict.fromkeys(grid[(grid["ranking"] == kind) & (grid["of_kind"] == 0)]["model"]))
        parts += [f"no {label} in {', '.join(lacking)}"] if lacking else []
    uncontrolled = [model for model, rows in with_kinds(grid).groupby("model", sort=False) if corrected(rows).empty]
    parts += [f"no valid control in {', '.join(uncontrolled)}"] if uncontrolled else []
    return f"Left out: {'; '.join(parts)}." if parts else ""


def draws_words(grid: pd.DataFrame) -> str:
    """How many different draws of layer-matched random heads the cells have."""
    n_draws = with_kinds(corrected(grid))["n_draws"]
    return f"{n_draws.min()} to {n_draws.max()} different draws" if len(n_draws) else "no valid control"


def cell_counts(grid: pd.DataFrame) -> pd.DataFrame:
    """In how many cells accuracy or loss drops by more than for its layers, and for which kind by more; plain rankings.

    A row per model and metric. A cell is a replacement, positions and a number of heads: fractions that come to the
    same number are one cell. A kind counts where the 95 % interval is above zero, in brackets where Holm's p over all
    cells and both kinds of the row is below 0.05. `difference`: range over cells of FV less induction heads' effect.
    Kinds that a model has no head of are left out, and cells without a valid control.
    """
    rows = []
    plain = with_kinds(corrected(grid)).query("excluded == ''").drop_duplicates(
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
        "drops more for FV heads": counts["fv_more"], "drops more for induction heads": counts["induction_more"],
        "difference, lowest to highest":
            [f"{low:+.2f} to {high:+.2f}" for low, high in zip(counts["lowest"], counts["highest"], strict=True)],
    }).set_index(["metric", "model"]).sort_index(level=0, sort_remaining=False)


def order_sentence(counts: pd.DataFrame) -> str:
    """Does the order of the two kinds survive every replacement, position and share of heads?"""
    parts = []
    for metric, words in METRIC_WORDS.items():
        own = counts[(counts["metric"] == metric) & (counts["cells"] > 0)]
        if own.empty:
            continue
        fv, induction = own["fv_more"] > 0, own["induction_more"] > 0
        clauses = [f"{says} in {', '.join(own.loc[of_models, 'model'])}" for says, of_models in (
            ("more for FV heads somewhere and for induction heads nowhere", fv & ~induction),
            ("more for induction heads somewhere and for FV heads nowhere", induction & ~fv),
            ("more for either kind somewhere", fv & induction)) if of_models.any()]
        total = own[["cells", "fv_more", "induction_more"]].sum()
        parts.append(f"**{words}** drops more when FV heads are ablated than when induction heads are in "
                     f"{total['fv_more']} of {total['cells']} cells of {len(own)} models that have both, less in "
                     f"{total['induction_more']} (interval of the difference clear of zero)"
                     + (f"; {'; '.join(clauses)}" if clauses else ""))
    return ". ".join(parts) + "."


def statistics_rows(grid: pd.DataFrame) -> pd.DataFrame:
    """All rows of the grid as rows of the table `statistics`, the name telling the cell."""
    beyond = grid["control"].map({"none": "against no ablation", "random_layer_matched": "beyond layer-matched random"})
    words = grid["metric"].map(METRIC_WORDS) + " lost " + beyond + ", " + grid["ranking"]
    cell = (", " + grid["replacement"] + ", " + grid["positions"] + " positions, "
            + grid["fraction"].map("{:g}".format) + " of heads")
    kept = grid["excluded"].map(lambda excluded: f", without the {excluded}" if excluded else "")
    return grid[["model", "value", "low", "high", "p_value"]].assign(
        name=words + cell + kept, n=grid["n_prompts"], notebook="ablation_ladder")
