"""The table `ablations`: tidy rows of what was measured under all conditions."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from icl_lib.ablation.conditions import Condition
from icl_lib.tables import KEYS

TOKEN_LOSS, TOKEN_LOSS_POINTS = "token_loss_difference", "token_loss_difference_points"


@dataclass(frozen=True)
class Measurement:
    """One metric under one intervention: a value per condition and prompt (or document), `tasks` naming its task."""

    metric: str
    replacement: str
    positions: str
    conditions: list[Condition]
    tasks: Shaped[np.ndarray, "row"]
    values: Float[np.ndarray, "condition row"]


def zero_shot(measurements: list[Measurement]) -> list[Measurement]:
    """First-token accuracy measured on prompts without demonstrations, under a name of its own."""
    return [replace(m, metric="zero_shot_accuracy") for m in measurements if m.metric == "first_token_accuracy"]


def ablation_table(
    measurements: list[Measurement], *, name: str, step: int, ceilings: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Table `ablations`: the mean over each task's prompts (or the documents) with its standard error.

    The clean model stands in it once per metric. Beside each token-loss difference the table has its change against
    the clean model, paired by document (`..._change`): see `with_paired_errors`. `ceilings`: rows of `f1_ceilings`.
    """
    frames = [_rows(m, m.values, m.metric) for m in measurements]
    for m in measurements:
        clean = [i for i, condition in enumerate(m.conditions) if condition.ranking == "none"]
        if m.metric in (TOKEN_LOSS, TOKEN_LOSS_POINTS) and clean:
            change = _rows(m, m.values - m.values[clean[:1]], f"{m.metric}_change")
            frames.append(change[change["ranking"] != "none"])
    table = pd.concat([*frames, ceilings], ignore_index=True).assign(model=name, step=step)
    return table.drop_duplicates(KEYS["ablations"], ignore_index=True)


def with_paired_errors(ablations: pd.DataFrame) -> pd.DataFrame:
    """The table with the standard error of the change beside each token-loss difference under ablation.

    Documents differ by more than ablation changes them, so only the paired error tells a condition from the clean
    model; the clean model keeps the error of its own mean.
    """
    key = KEYS["ablations"]
    change = ablations[ablations["metric"].str.endswith("_change")]
    change = change.assign(metric=change["metric"].str.removesuffix("_change"))[[*key, "standard_error"]]
    paired = ablations[key].merge(change, how="left", on=key)["standard_error"].set_axis(ablations.index)
    return ablations.assign(standard_error=paired.fillna(ablations["standard_error"]))


def _rows(m: Measurement, values: Float[np.ndarray, "condition row"], metric: str) -> pd.DataFrame:
    """Means over the prompts (or documents) of each task that a condition was measured on, with standard errors."""
    by_task = pd.DataFrame(values.T).rename_axis(columns="condition").groupby(m.tasks, sort=False)
    means = {"value": by_task.mean(), "standard_error": by_task.sem(), "n_prompts": by_task.count()}
    table = pd.DataFrame({name: of_task.stack(future_stack=True) for name, of_task in means.items()})
    table = table.rename_axis(["task", "condition"]).reset_index()
    sets = pd.DataFrame([{**vars(c), "n_heads": int(c.heads.sum())} for c in m.conditions]).drop(columns="heads")
    table = table[table["n_prompts"] > 0].join(sets, on="condition").drop(columns="condition").reset_index(drop=True)
    edited = table["ranking"] != "none"
    return table.assign(metric=metric, replacement=np.where(edited, m.replacement, "none"),
                        positions=np.where(edited, m.positions, "none"))
