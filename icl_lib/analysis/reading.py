"""What all pages read and write alike: a suite's tables, the one intervention they compare, rows of `statistics`."""

from pathlib import Path
from typing import Any, SupportsFloat, SupportsInt

import numpy as np
import pandas as pd

from icl_lib.stats.intervals import Interval, effect, lost_beyond
from icl_lib.tables import SCHEMAS, read_table, run_path


def found_tables(
    results: str | Path, kind: str, models: dict[str, list[int]], *, required: bool = False
) -> pd.DataFrame:
    """One kind of table for several models at several steps, one below the other; missing ones are left out.

    Raises ValueError as `read_table` does for a file that cannot be read, and, where `required`, if none is there.
    """
    paths = [run_path(results, kind, model, step) for model, steps in models.items() for step in steps]
    found = [read_table(path, schema_name=kind) for path in paths if path.is_file()]
    if required and not found:
        raise ValueError(f"no table {kind!r} of {', '.join(models) or 'any model'} in {results}: run the suite first, "
                         "e.g. make book SUITE=lab")
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(SCHEMAS[kind]))


def tables_of(results: str | Path, kind: str, models: dict[str, list[int]]) -> pd.DataFrame:
    """`found_tables`; ValueError where none of them is there."""
    return found_tables(results, kind, models, required=True)


def last_tables(results: str | Path, kind: str, models: dict[str, list[int]]) -> pd.DataFrame:
    """`tables_of` at each model's last step."""
    return tables_of(results, kind, {model: steps[-1:] for model, steps in models.items()})


def one_intervention(table: pd.DataFrame, fraction: float, *, positions: str = "all") -> pd.DataFrame:
    """Of a table of ablations or effects the mean at `positions`, per model and step at the share nearest to one.

    Of the shares with accuracies, where there are any: the historical protocols measure the loss alone at others.
    """
    rows = table[(table["replacement"] == "mean") & (table["positions"] == positions)]
    if rows.empty:
        return rows
    of_accuracy = rows[rows["metric"] == "first_token_accuracy"]
    key = ["model", "step"]
    nearest = (rows if of_accuracy.empty else of_accuracy).groupby(key)["fraction"].agg(
        lambda at: at.iloc[np.abs(at - fraction).argmin()])
    return rows[rows["fraction"].to_numpy() == nearest.reindex(pd.MultiIndex.from_frame(rows[key])).to_numpy()]


def number(
    name: str, value: SupportsFloat, low: SupportsFloat = np.nan, high: SupportsFloat = np.nan,
    p_value: SupportsFloat = np.nan, smallest_p: SupportsFloat = np.nan, *, n: SupportsInt, **of: str,
) -> dict[str, Any]:
    """A row of the table `statistics`; what there is no such number of is NaN. `of` may name a model."""
    return {"name": name, "value": float(value), "low": float(low), "high": float(high), "p_value": float(p_value),
            "smallest_p": float(smallest_p), "n": int(n), **of}


def table_of(rows: list[dict], *, notebook: str, model: str = "") -> pd.DataFrame:
    """Rows of `number` as the table `statistics`; a row may name a model of its own."""
    filled = [{"notebook": notebook, "model": model} | row for row in rows]
    return pd.DataFrame(filled, columns=list(SCHEMAS["statistics"]))


def third(executions: pd.DataFrame) -> int:
    """The layer at a third of the model's, where the paper adds vectors (figure 14)."""
    return 0 if executions.empty else (int(executions["layer"].max()) + 1) // 3


def vector_gains(executions: pd.DataFrame, prompts: str) -> dict[str, Interval]:
    """What the FV heads' vector at a third of the layers gains in accuracy, mean over tasks, beyond each control.

    Those are nothing added ("none") and layer-matched random heads' vectors, as far as they were measured. 95 %
    intervals over tasks and draws (`intervals.effect`), which end at -1 and 1.
    """
    rows = executions[(executions["prompts"] == prompts) & executions["layer"].isin([third(executions), -1])]
    by_task = rows.pivot_table(index=["heads", "draw"], columns="task", values="value").dropna(axis=1)
    fv, tasks = by_task.loc["fv"].to_numpy()[0], by_task.columns.to_numpy()
    there = by_task.index.get_level_values("heads")
    lost = {control: effect(lost_beyond(fv, by_task.loc[control].to_numpy(), tasks))
            for control in ("none", "random_layer_matched") if control in there}
    return {control: Interval(-of.value, max(-of.high, -1.0), min(-of.low, 1.0)) for control, of in lost.items()}


def draws_words(executions: pd.DataFrame) -> str:
    """How many different draws of layer-matched random heads there were."""
    n_draws = executions[executions["heads"] == "random_layer_matched"]["draw"].nunique()
    if not n_draws:
        return "no random heads of neither kind are left to compare with"
    return f"{n_draws} different random {'draws' if n_draws > 1 else 'draw'}"
