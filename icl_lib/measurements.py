"""From a model to tidy tables: what the notebooks call, one function per table of the schemas."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_lib.data.documents import documents_sum
from icl_lib.data.sources import SOME_TASKS
from icl_lib.data.tasks import SPLITS, Task, TaskPrompts, bos_text, draw_prompts, tasks_sum
from icl_lib.metrics.evaluate import answer_metrics, token_loss_differences
from icl_lib.models.locate import files_sum, sum_of
from icl_lib.names import refuse_unknown
from icl_lib.parameters import own_data
from icl_lib.progress import progress
from icl_lib.provenance import provenance
from icl_lib.scores.function_vectors import FVScores
from icl_lib.scores.induction import duplicate_token_scores, induction_scores, previous_token_scores
from icl_lib.tables import checked, write_table

_DOCUMENTS = 20  # between two signs of progress
_AT_ONCE, _WIDE = 1000, 256  # tasks whose prompts share batches, in models narrower than this
METRICS = {
    "first_token_correct": "first_token_accuracy",
    "exact_match": "exact_match",
    "first_token_probability": "answer_probability",
}


def prompts_of(model, tasks: Mapping[str, Task], *, n_prompts: int, n_shots: int, seed: int) -> dict[str, TaskPrompts]:
    """Clean and shuffled prompts of every task, beginning with the model's BOS text; see `draw_prompts`."""
    bos = bos_text(model)
    return {name: draw_prompts(task, n_prompts=n_prompts, n_shots=n_shots, bos=bos, seed=seed)
            for name, task in tasks.items()}


def first_prompts(prompts: Mapping[str, TaskPrompts], n: int) -> dict[str, TaskPrompts]:
    """The first `n` prompts of each task, clean and shuffled; 0 for all.

    A null made from fewer prompts than the scores is wider, never narrower, on average: its bar is on the safe side.
    """
    return {task: TaskPrompts(p.clean[: n or None], p.shuffled[: n or None]) for task, p in prompts.items()}


def in_split(tasks: Mapping[str, Task], *splits: str) -> dict[str, Task]:
    """The tasks of the given splits, in order of names.

    Raises ValueError for an unknown split, for none of them, and for a single one to score heads on: its scores are
    compared with those under another task's means.
    """
    for split in splits:
        refuse_unknown("split", split, SPLITS)
    found = {name: task for name, task in sorted(tasks.items()) if task.split in splits}
    if len(found) < (least := 2 if splits == ("scoring",) else 1):
        of = ", ".join(sorted({task.split for task in tasks.values()}))
        raise ValueError(f"{len(found) or 'none'} of the {len(tasks)} tasks is of the split {' or '.join(splits)} (they"
                         f" are of {of}), expected at least {least}; name others in task_files, such as {SOME_TASKS}, "
                         "or give them that split in cards.json")
    return found


def task_group(task: Task) -> str:
    """What kind of task: `shared labels` (other tasks have the same inputs and labels), `look-up`, `extractive`."""
    if task.type == "extractive":
        return "extractive"
    return "shared labels" if len(task.siblings) > 1 else "look-up"


def made_by(model, *, suite: str, seed: int, parameters: dict[str, Any], **details: Any) -> dict[str, Any]:
    """Provenance of a table measured on a model, its revision on the hub included; `details` as in `provenance`.

    What is run by hand also gets the sums of a local model's files and of the user's own tasks and documents; of a
    suite's runs `made_from` has these.
    """
    weight = next(model.original_model.parameters())
    dtype = getattr(model, "number_type", str(weight.dtype).removeprefix("torch."))
    made = provenance(suite=suite, seed=seed, dtype=dtype,
                      device=weight.device.type, bos="in the prompt's text, first token", parameters=parameters,
                      revision=getattr(model, "revision", ""), seconds=time.process_time(),
                      checked=str(getattr(model, "checked", "")), **details)
    if "model" in parameters and not made["made_from"]:
        own = {"model": files_sum(parameters["model"], parameters["step"]), "own_data": sum_of(own_data(parameters))}
        made["sums"] = made["sums"] | {name: found for name, found in own.items() if found}
    return made


def write_measured(
    tables: Mapping[str, pd.DataFrame], paths: Mapping[str, Path], model, *, suite: str, seed: int,
    parameters: dict[str, Any], tasks: Mapping[str, Task], documents: str = "", partial: Path | None = None,
) -> None:
    """Write a run's tables, by schema, with what they were measured with; then its finished parts are removed.

    None is written where one of them is refused; errors as in `write_table`.
    """
    tables = {schema: checked(table, schema) for schema, table in tables.items()}
    sums = {"tasks": tasks_sum(tasks)} | ({"documents": documents_sum(documents)} if documents else {})
    of_run = made_by(model, suite=suite, seed=seed, parameters=parameters, sums=sums)
    for schema, table in tables.items():
        write_table(table, paths[schema], schema_name=schema, provenance=of_run)
    if partial:
        rmtree(partial)


def task_table(tasks: Mapping[str, Task], *, name: str, step: int) -> pd.DataFrame:
    """Table `tasks`: what the pages say of every task, so that they need not read its files."""
    rows = [(task.name, task.type, task.split, task_group(task), task.floor, len(task.pairs), "; ".join(task.faults))
            for task in tasks.values()]
    columns = ["task", "task_type", "split", "group", "floor", "n_pairs", "faults"]
    return pd.DataFrame(rows, columns=columns).assign(model=name, step=step)


def accuracy_table(
    model, tasks: Mapping[str, Task], *, name: str, step: int, shots: Iterable[int], n_prompts: int, seed: int
) -> pd.DataFrame:
    """Few-shot metrics per task and number of shots, with clean and (above one shot) shuffled labels.

    Table `accuracy`: metrics `first_token_accuracy`, `exact_match` (0..1) and `answer_probability`; the value is
    the mean over a task's prompts, `standard_error` its standard error over prompts.
    """
    frames = []
    cells = [(n, labels) for n in shots for labels in (("clean", "shuffled") if n > 1 else ("clean",))]
    at_once = _AT_ONCE if model.cfg.d_model < _WIDE else 1  # small models fill a batch from many tasks
    names = list(tasks)
    parts = [(*cell, names[i : i + at_once]) for cell in cells for i in range(0, len(names), at_once)]
    for n_shots, labels, some in progress(parts, "accuracy", unit="part"):
        prompts = prompts_of(
            model, {task: tasks[task] for task in some}, n_prompts=n_prompts, n_shots=n_shots, seed=seed)
        metrics = answer_metrics(model, {task: getattr(p, labels) for task, p in prompts.items()}, batch_size=64)
        frames.append(per_task(metrics).assign(n_shots=n_shots, labels=labels))
    table = pd.concat(frames, ignore_index=True).drop(columns="edit")
    return table.assign(model=name, step=step, task_type=table["task"].map(lambda t: tasks[t].type),
                        split=table["task"].map(lambda t: tasks[t].split))


def token_loss_rows(
    model, documents: Int[Tensor, "document pos"], *, name: str, step: int, window: int
) -> pd.DataFrame:
    """The unedited model's token-loss difference as a row of the table `accuracy`.

    Metric `token_loss_difference`, in nats: see the function of that name; mean over documents, `standard_error` over
    documents of the difference; task and split are "documents". Errors as there.
    """
    parts = [token_loss_differences(model, some, [None], windows=[window])[0, 0]
             for some in progress(documents.split(_DOCUMENTS), "documents", unit="part")]
    values = torch.cat(parts)
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else np.nan
    return pd.DataFrame([{
        "model": name, "step": step, "n_shots": 0, "labels": "clean", "task": "documents", "task_type": "documents",
        "split": "documents", "metric": "token_loss_difference", "value": float(values.mean()),
        "standard_error": error, "n_prompts": len(values)}])


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
    name: str, step: int, n_null_prompts: int = 0,
) -> pd.DataFrame:
    """Table `scores`: four attention scores on `tokens`, the FV score per task, and its null (`task`: the draw).

    `n_null_prompts`: per task, of which `permuted_mean_scores` made the null.
    """
    n = len(tokens)
    frames = [score_rows(induction_scores(model, tokens, convention=convention), f"induction_{convention}", n=n)
              for convention in ("attention_mass", "prefix_matching")]
    frames += [score_rows(previous_token_scores(model, tokens), "previous_token", n=n),
               score_rows(duplicate_token_scores(model, tokens), "duplicate_token", n=n)]
    frames += [score_rows(values, "fv", task=task, errors=fv.standard_error_by_task[task], n=fv.n_prompts[task])
               for task, values in fv.by_task.items()]
    n_null = sum(min(n, n_null_prompts or n) for n in fv.n_prompts.values())
    frames += [score_rows(values, "fv_null", task=f"draw {i}", n=n_null) for i, values in enumerate(null)]
    return pd.concat(frames, ignore_index=True).assign(model=name, step=step)


def departure_statistics(effects: pd.DataFrame, *, name: str) -> pd.DataFrame:
    """`protocols.departure_effects` as rows of the table `statistics`; NaN where a switch has nothing to act on.

    Names are "<score>, <protocol>, <measure>": `top score` in the score's unit, `rank correlation` with the default
    over heads with its 95 % interval, `shared top heads` 0..1. `n` is the number of heads.
    """
    rows = [{"name": f"{row.score}, {row.name}, {measure}", "value": getattr(row, column),
             "low": row.low if column == "rank_correlation" else np.nan,
             "high": row.high if column == "rank_correlation" else np.nan, "n": row.n_heads}
            for row in effects.itertuples(index=False)
            for measure, column in (("top score", "top"), ("rank correlation", "rank_correlation"),
                                    ("shared top heads", "shared"))]
    return pd.DataFrame(rows).assign(notebook="protocols", model=name, p_value=np.nan, smallest_p=np.nan)
