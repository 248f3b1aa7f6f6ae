"""From a model to tidy tables: what the notebooks call, one function per table of the schemas."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_lib.ablation import Edit, replacement_values
from icl_lib.evaluate import answer_metrics, token_loss_difference, token_losses
from icl_lib.function_vectors import FVScores, permuted_mean_scores
from icl_lib.heads import head_count, layer_matched_random_heads, random_heads, top_heads
from icl_lib.induction import duplicate_token_scores, induction_scores, previous_token_scores
from icl_lib.models import bos_text
from icl_lib.tasks import Task, TaskPrompts, draw_prompts

METRICS = {
    "first_token_correct": "first_token_accuracy",
    "exact_match": "exact_match",
    "first_token_probability": "answer_probability",
}


def prompts_of(
    model, tasks: Mapping[str, Task], *, n_prompts: int, n_shots: int, seed: int
) -> dict[str, TaskPrompts]:
    """Clean and shuffled prompts of every task, beginning with the model's BOS text; see `draw_prompts`."""
    bos = bos_text(model)
    return {name: draw_prompts(task, n_prompts=n_prompts, n_shots=n_shots, bos=bos, seed=seed)
            for name, task in tasks.items()}


def in_split(tasks: Mapping[str, Task], *splits: str) -> dict[str, Task]:
    """The tasks of the given splits (`scoring`, `evaluation`, `unseen`), in order of names."""
    return {name: task for name, task in sorted(tasks.items()) if task.split in splits}


def task_group(task: Task) -> str:
    """What kind of task: `shared labels` (other tasks have the same inputs and labels), `look-up`, `extractive`."""
    if task.type == "extractive":
        return "extractive"
    return "shared labels" if len(task.siblings) > 1 else "look-up"


def accuracy_table(
    model, tasks: Mapping[str, Task], *, name: str, step: int, shots: Iterable[int], n_prompts: int, seed: int
) -> pd.DataFrame:
    """Few-shot metrics per task and number of shots, with clean and (above one shot) shuffled labels.

    Table `accuracy`: metrics `first_token_accuracy`, `exact_match` (0..1) and `answer_probability`; the value is
    the mean over a task's prompts, `standard_error` its standard error over prompts.
    """
    frames = []
    for n_shots in shots:
        prompts = prompts_of(model, tasks, n_prompts=n_prompts, n_shots=n_shots, seed=seed)
        for labels in ("clean", "shuffled") if n_shots > 1 else ("clean",):
            metrics = answer_metrics(model, {task: getattr(p, labels) for task, p in prompts.items()})
            frames.append(per_task(metrics).assign(n_shots=n_shots, labels=labels))
    table = pd.concat(frames, ignore_index=True).drop(columns="edit")
    return table.assign(model=name, step=step, task_type=table["task"].map(lambda t: tasks[t].type),
                        split=table["task"].map(lambda t: tasks[t].split))


def per_task(metrics: pd.DataFrame) -> pd.DataFrame:
    """Means over prompts: columns edit, task, metric, value, standard_error, n_prompts."""
    long = metrics.rename(columns=METRICS).melt(["edit", "task"], list(METRICS.values()), "metric")
    grouped = long.assign(value=long["value"].astype(float)).groupby(["edit", "task", "metric"], sort=False)["value"]
    table = grouped.agg(["mean", "sem", "size"]).reset_index()
    return table.rename(columns={"mean": "value", "sem": "standard_error", "size": "n_prompts"})


def score_rows(values: Float[Tensor, "layer head"], score: str, *, task: str = "", errors=None, n: int) -> pd.DataFrame:
    """A score of every head as rows of the table `scores` (without model and step)."""
    layers, heads = values.shape
    return pd.DataFrame({
        "score": score, "layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers),
        "task": task, "value": values.double().cpu().flatten().numpy(),
        "standard_error": np.nan if errors is None else errors.double().cpu().flatten().numpy(), "n_prompts": n,
    })


def score_table(
    model, tokens: Int[Tensor, "batch pos"], fv: FVScores, null: Float[Tensor, "draw layer head"], *,
    name: str, step: int,
) -> pd.DataFrame:
    """Table `scores`: four attention scores on `tokens`, the FV score per task, and its null (`task`: the draw)."""
    n = len(tokens)
    frames = [score_rows(induction_scores(model, tokens, convention=convention), f"induction_{convention}", n=n)
              for convention in ("attention_mass", "prefix_matching")]
    frames += [score_rows(previous_token_scores(model, tokens), "previous_token", n=n),
               score_rows(duplicate_token_scores(model, tokens), "duplicate_token", n=n)]
    frames += [score_rows(values, "fv", task=task, errors=fv.standard_error_by_task[task], n=fv.n_prompts[task])
               for task, values in fv.by_task.items()]
    n_scored = sum(fv.n_prompts.values())
    frames += [score_rows(values, "fv_null", task=f"draw {i}", n=n_scored) for i, values in enumerate(null)]
    return pd.concat(frames, ignore_index=True).assign(model=name, step=step)


def null_scores(model, prompts: Mapping[str, TaskPrompts], fv: FVScores, *, n_draws: int, seed: int):
    """`n_draws` draws of the FV score under another task's clean means, `[draw layer head]`."""
    return permuted_mean_scores(model, prompts, fv.mean_z, n_draws=n_draws, seed=seed, progress=False)


def mean_scores(scores: pd.DataFrame, score: str) -> Float[Tensor, "layer head"]:
    """The mean over tasks of one score of one model and step; a one-line error where the table lacks it."""
    rows = scores[scores["score"] == score]
    if rows.empty:
        raise ValueError(f"the table has no score {score!r}, only {', '.join(sorted(scores['score'].unique()))}")
    values = rows.groupby(["layer", "head"])["value"].mean().unstack("head").to_numpy()
    return torch.from_numpy(values.copy())


def top_sets(
    scores: pd.DataFrame, *, fraction: float, induction: str, minimum: int = 1
) -> dict[str, Bool[Tensor, "layer head"]]:
    """The top heads of both kinds, counts rounded up: {"induction": mask, "fv": mask}."""
    return {kind: top_heads(mean_scores(scores, score), fraction=fraction, rounding="ceil", minimum=minimum)
            for kind, score in (("induction", induction), ("fv", "fv"))}


@dataclass(frozen=True)
class Condition:
    """One ablated set and how it was chosen; the fields are columns of the table `ablations`."""

    ranking: str
    excluded: str
    matched: str
    fraction: float
    draw: int
    heads: Bool[Tensor, "layer head"]


def ablation_conditions(
    scores: pd.DataFrame, *, fractions: list[float], n_draws: int, induction: str, exclude_fraction: float, seed: int
) -> list[Condition]:
    """The clean model and, per fraction: both rankings without and with exclusion, and `n_draws` of each random kind.

    With exclusion the top `exclude_fraction` (rounded up) of the other kind is passed over. Layer-matched random
    heads match one kind's heads without exclusion, layer by layer; they are drawn for both kinds.
    """
    by_kind = {"induction": mean_scores(scores, induction), "fv": mean_scores(scores, "fv")}
    shape = tuple(by_kind["fv"].shape)
    conditions = [Condition("none", "", "", 0.0, 0, torch.zeros(shape, dtype=torch.bool))]
    for fraction in fractions:
        n_heads = head_count(fraction, by_kind["fv"].numel())
        for kind, other in (("induction", "fv"), ("fv", "induction")):
            heads = top_heads(by_kind[kind], n_heads=n_heads)
            conditions.append(Condition(kind, "", "", fraction, 0, heads))
            top_other = top_heads(by_kind[other], fraction=exclude_fraction, rounding="ceil")
            kept = top_heads(by_kind[kind], n_heads=n_heads, exclude=top_other)
            conditions.append(Condition(kind, f"top {exclude_fraction:g} {other}", "", fraction, 0, kept))
            for draw in range(n_draws):
                drawn = layer_matched_random_heads(heads, seed=seed, draw=draw)
                conditions.append(Condition("random_layer_matched", "", kind, fraction, draw, drawn))
        for draw in range(n_draws):
            drawn = random_heads(shape, n_heads, seed=seed, draw=draw)
            conditions.append(Condition("random", "", "", fraction, draw, drawn))
    return conditions


def ablation_tables(
    model, conditions: list[Condition], prompts: Mapping[str, TaskPrompts], scoring: Mapping[str, TaskPrompts],
    documents: Int[Tensor, "document pos"], *, replacement: str, positions: list[str], loss_window: int,
    name: str, step: int, seed: int,
) -> pd.DataFrame:
    """Table `ablations`: few-shot metrics on the clean `prompts` and the token-loss difference under each condition.

    One intervention for both, `replacement` at each of `positions`. At `last` a document has no place that
    corresponds to a prompt's last token, so the token-loss difference is measured at `all` only. The clean model
    stands in the table once.
    """
    tables = [_ablation_table(model, conditions, prompts, scoring, documents, replacement, where, loss_window, seed)
              for where in positions]
    table = pd.concat(tables, ignore_index=True).assign(model=name, step=step)
    return table.drop_duplicates(["metric", "positions", "ranking", "excluded", "matched", "fraction", "draw", "task"])


def _ablation_table(
    model, conditions, prompts, scoring, documents, replacement, positions, loss_window, seed
) -> pd.DataFrame:
    values = replacement_values(model, prompts, replacement, scoring_prompts=scoring, seed=seed)
    edits = {str(i): None if condition.ranking == "none" else
             {task: Edit(condition.heads, values[task], positions) for task in prompts}
             for i, condition in enumerate(conditions)}
    frames = [per_task(answer_metrics(model, {task: p.clean for task, p in prompts.items()}, edits))]
    if positions == "all":
        value = next(iter(values.values())).mean(0, keepdim=True)
        frames.append(_token_loss_rows(model, conditions, documents, value, loss_window))
    table = pd.concat(frames, ignore_index=True)
    which = table.pop("edit").astype(int)
    for column in ("ranking", "excluded", "matched", "fraction", "draw"):
        table[column] = [getattr(conditions[i], column) for i in which]
    table["n_heads"] = [int(conditions[i].heads.sum()) for i in which]
    edited = table["ranking"] != "none"
    return table.assign(replacement=np.where(edited, replacement, "none"),
                        positions=np.where(edited, positions, "none"))


def _token_loss_rows(model, conditions, documents, value, window) -> pd.DataFrame:
    rows = []
    for i, condition in enumerate(conditions):
        edit = None if condition.ranking == "none" else Edit(condition.heads, value, "all")
        difference = token_loss_difference(token_losses(model, documents, edit), window=window).double()
        rows.append({"edit": str(i), "task": "documents", "metric": "token_loss_difference",
                     "value": float(difference.mean()), "n_prompts": len(difference),
                     "standard_error": float(difference.std() / len(difference) ** 0.5)})
    return pd.DataFrame(rows)
