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


def null_quantile(scores: pd.DataFrame, quantile: float) -> float:
    """The FV score that the best head of a null draw reaches with probability 1 - quantile."""
    best = scores[scores["score"] == "fv_null"].groupby("task")["value"].max()
    return float(np.quantile(best.to_numpy(), quantile))


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


def steps_sentence(scores: pd.DataFrame, steps: list[int]) -> str:
    """Which checkpoints the page is about, and which of them are missing."""
    present = set(scores["step"])
    missing = [step for step in steps if step not in present]
    note = f" Missing: {', '.join(map(str, missing))}; figures have a gap there." if missing else ""
    known = [step for step in steps if step in present]
    return f"{len(known)} checkpoints of {scores['model'].iloc[0]}: steps {', '.join(map(str, known))}.{note}"


def emergence_sentence(emergence: pd.DataFrame) -> str:
    """When each kind came and in which order, with the checkpoints that bound it."""
    came = emergence.set_index("kind")["first step with it"]
    parts = []
    for kind, label in (("induction", "Induction heads"), ("fv", "FV heads")):
        row = emergence.set_index("kind").loc[kind]
        if pd.isna(row["first step with it"]):
            parts.append(f"{label} did not come")
        else:
            after = f", after {row['last step without']}" if pd.notna(row["last step without"]) else ""
            parts.append(f"{label} came by step {row['first step with it']}{after}")
    text = ". ".join(parts) + "."
    if came.isna().any():
        return text
    if came["induction"] == came["fv"]:
        return text + " At this spacing of checkpoints they came together."
    return text + f" {'Induction' if came['induction'] < came['fv'] else 'FV'} heads came first."


def seeds_sentence(by_seed: pd.DataFrame) -> str:
    """In how many seeds which kind came first."""
    counts = by_seed["first"].value_counts()
    words = {"induction": "induction heads came first", "FV": "FV heads came first",
             "same checkpoint": "both came at the same checkpoint", "neither came": "neither came"}
    parts = [f"{text} in {counts[key]}" for key, text in words.items() if key in counts]
    if len(by_seed) == 1:
        return "Only one seed of this model has checkpoints here."
    return f"Of {len(by_seed)} models that differ by their seed, {', '.join(parts)}."


def interval_sentence(low: float, high: float) -> str:
    """The interval of the FV heads' emergence step."""
    return f"FV heads, 95 % interval over scoring tasks: {_step(low)} to {_step(high)}."


def transition_sentence(transitions: pd.DataFrame) -> str:
    """Heads that had both scores, by which came first."""
    rows = transitions.set_index("order")
    first, reverse = rows.loc["induction_first"], rows.loc["fv_first"]
    return (f"{int(first['heads'])} heads were induction heads before they were FV heads "
            f"({first['expected by chance']:.1f} by chance, p = {first['p (at least as many)']:.2g}), "
            f"{int(reverse['heads'])} the reverse ({reverse['expected by chance']:.1f} by chance), "
            f"{int(rows.loc['both_at_once', 'heads'])} both from the same checkpoint on.")


def transitions_by_seed_sentence(by_seed: pd.DataFrame) -> str:
    """Heads that changed kind in each direction, over models that differ by their seed."""
    first, reverse = by_seed["induction first"].sum(), by_seed["FV first"].sum()
    heads = "head" if first == 1 else "heads"
    return (f"Over {len(by_seed)} {'seeds' if len(by_seed) > 1 else 'seed'}: {first} {heads} induction first "
            f"({by_seed['induction first, by chance'].sum():.1f} by chance), {reverse} FV first "
            f"({by_seed['FV first, by chance'].sum():.1f} by chance); more induction-first heads than by chance at "
            f"p < 0.05 in {int((by_seed['p (induction first)'] < 0.05).sum())}.")


def _step(step: float) -> str:
    return f"step {step:g}" if np.isfinite(step) else "none"
