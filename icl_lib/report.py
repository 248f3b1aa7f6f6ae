"""Sentences and small tables for the notebooks, made from tables so that no result is typed by hand."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML

from icl_lib.ablation_tables import Condition
from icl_lib.heads import head_names
from icl_lib.statistics import bootstrap_difference, bootstrap_mean
from icl_lib.tables import provenance
from icl_lib.tasks import Task

FEW_SHOT = "first_token_accuracy"
METRIC_WORDS = {FEW_SHOT: "few-shot accuracy", "token_loss_difference": "token-loss difference"}


def fault_table(tasks: Mapping[str, Task]) -> pd.DataFrame:
    """What is odd in the tasks' files, a row each; nothing of it is repaired."""
    rows = [{"task": name, "fault": fault} for name, task in tasks.items() for fault in task.faults]
    return pd.DataFrame(rows, columns=["task", "fault"]).set_index("task")


def made_by(model, *, suite: str, seed: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """Provenance of a table measured on a model, its revision on the hub included."""
    weight = next(model.original_model.parameters())
    return provenance(suite=suite, seed=seed, dtype=str(weight.dtype).removeprefix("torch."),
                      device=weight.device.type, bos="in the prompt's text, first token", parameters=parameters,
                      revision=getattr(model, "revision", ""))


def made_from_tables(*, suite: str, seed: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """Provenance of a table made from tables."""
    return provenance(suite=suite, seed=seed, dtype="", device="", bos="", parameters=parameters)


def folded(table: pd.DataFrame, title: str) -> HTML:
    """A long table that opens on a click."""
    return HTML(f"<details><summary>{escape(title)}</summary>{table.to_html()}</details>")


def side_by_side(texts: Mapping[str, str]) -> HTML:
    """Named texts beside each other, as they are."""
    cells = "".join(f"<div><b>{escape(name)}</b><pre>{escape(text)}</pre></div>" for name, text in texts.items())
    return HTML(f'<div style="display: flex; gap: 2em; flex-wrap: wrap">{cells}</div>')


def transposed(comparison: pd.DataFrame) -> pd.DataFrame:
    """A table with one row per model turned, so that models stand side by side; whole numbers stay whole."""
    text = comparison.set_index("model").map(
        lambda v: f"{v:,}" if isinstance(v, int) else "" if np.isnan(v) else f"{v:.3f}")
    return text.T.rename_axis(index=None, columns=None)


def conditions_table(conditions: list[Condition]) -> pd.DataFrame:
    """The ablated heads of each ranking that is not random, by fraction."""
    rows = [(c.fraction, c.ranking, c.excluded or "nothing", int(c.heads.sum()), " ".join(head_names(c.heads)))
            for c in conditions if c.ranking in ("induction", "fv")]
    return pd.DataFrame(rows, columns=["fraction", "ranking", "excluded", "n_heads", "heads"])


def curve_metrics(ablations: pd.DataFrame, positions: str) -> list[str]:
    """The metrics that were measured with edits at these positions, few-shot accuracy first."""
    measured = ablations[ablations["positions"] == positions]["metric"].unique()
    return [metric for metric in (FEW_SHOT, "token_loss_difference") if metric in measured]


def ablation_sentence(ablations: pd.DataFrame, positions: str, *, seed: int) -> str:
    """Loss of few-shot accuracy by kind at the largest fraction up to 10 %, against random heads of its layers."""
    ablations = ablations[ablations["replacement"].isin(("none", "mean"))]
    edited = ablations[(ablations["positions"] == positions) & (ablations["metric"] == FEW_SHOT)]
    fractions = np.sort(edited["fraction"].unique())
    fraction = fractions[fractions <= 0.1][-1] if (fractions <= 0.1).any() else fractions[0]
    at = edited[edited["fraction"] == fraction]
    clean = ablations[(ablations["ranking"] == "none") & (ablations["metric"] == FEW_SHOT)].set_index("task")["value"]
    control = at[at["ranking"] == "random_layer_matched"]
    control = control.groupby([control["excluded"] != "", "matched", "task"])["value"].mean()
    parts = []
    for ranking, label in (("fv", "FV heads"), ("induction", "induction heads")):
        for excluded, words in ((False, ""), (True, " (top heads of the other kind kept)")):
            rows = at[(at["ranking"] == ranking) & ((at["excluded"] != "") == excluded)].set_index("task")["value"]
            random = control[excluded, ranking].loc[rows.index].to_numpy()
            lost = bootstrap_difference(random, rows.to_numpy(), rows.index.to_numpy(), seed=seed, over="tasks")
            parts.append(f"{label}{words} {rows.mean():.2f}, {lost.value:+.2f} lost beyond random heads in the same "
                         f"layers ({lost.low:+.2f} to {lost.high:+.2f})")
    mean = bootstrap_mean(clean.to_numpy(), clean.index.to_numpy(), seed=seed, over="tasks")
    n_heads = int(at["n_heads"].iloc[0])
    return (f"Without ablation the few-shot accuracy is {mean.value:.2f} ({mean.low:.2f} to {mean.high:.2f}); with "
            f"{n_heads} {'head' if n_heads == 1 else 'heads'} ({fraction:.0%}) replaced: " + "; ".join(parts)
            + ". Intervals: 95 %, bootstrap over tasks.")
