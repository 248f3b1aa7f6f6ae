"""From a model to the table `ablations`: one intervention measured under all conditions, tidy rows."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from icl_lib.ablation.conditions import Condition
from icl_lib.data.tasks import TaskPrompts
from icl_lib.forward.edits import POSITIONS, Edit
from icl_lib.forward.encoded import encode_clean
from icl_lib.forward.replacements import Encoded, document_values, shared_value, values_of
from icl_lib.heads import different_heads
from icl_lib.measurements import METRICS
from icl_lib.metrics.evaluate import answer_metrics, label_metrics, token_loss_differences
from icl_lib.metrics.generation import f1_ceiling
from icl_lib.names import refuse_unknown
from icl_lib.progress import progress
from icl_lib.saved import SavedResults

FEW_SHOT_METRICS = METRICS | {"generated_f1": "generated_f1", "label_correct": "label_accuracy"}
_DOCUMENTS = 20  # measured and saved together
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


def measure(
    model,
    conditions: list[Condition],
    prompts: Mapping[str, TaskPrompts],
    scoring: Mapping[str, TaskPrompts],
    documents: Int[Tensor, "document pos"] | None,
    *,
    replacement: str,
    positions: str,
    seed: int,
    loss_window: int = 0,
    f1: bool = False,
    reach_back: bool = False,
    labels: Mapping[str, Sequence[str]] | None = None,
    spread_draws: bool = False,
    saved: SavedResults | None = None,
) -> list[Measurement]:
    """Few-shot metrics on the clean `prompts` and the token-loss difference on `documents`, under one intervention.

    The replaced outputs are those of `scoring` (`replacement_values`, `document_values`). Conditions with the same
    heads are measured once. No prompts or no documents (None): only the other metric. The token-loss difference
    comes twice, averaged over `loss_window` positions to either side and at the two positions alone
    (`..._points`, the paper's); at `last` each loss is read with the heads replaced where it is read from.

    `labels`: those that each task's answers are among; their metrics are then `label_metrics`. `spread_draws`: every
    prompt and document meets one draw of each random kind, the draws in turn, instead of all of them; values of the
    others are NaN. `saved`: finished tasks and documents are kept there and read again.
    """
    refuse_unknown("positions", positions, POSITIONS)
    how = _Intervention(model, conditions, replacement, positions, spread_draws, saved or SavedResults(None, model))
    mean = mean_value(model, scoring, how.saved) if replacement == "mean" else None
    source = encode_clean(model, scoring) if replacement == "resample" else {}  # the others do not read it
    measured = []
    if prompts:
        encoded = encode_clean(model, prompts)
        values = values_of(model, encoded, source, replacement, seed) if mean is None else dict.fromkeys(encoded, mean)
        measured += how.few_shot(encoded, values, labels, f1=f1, reach_back=reach_back)
    if documents is not None:
        value = document_values(model, documents, source, replacement, seed) if mean is None else mean
        measured += how.token_loss(documents, value, loss_window)
    return measured


@dataclass(frozen=True)
class _Intervention:
    """What is done under all conditions, and where finished parts are kept."""

    model: Any
    conditions: list[Condition]
    replacement: str
    positions: str
    spread_draws: bool
    saved: SavedResults

    def few_shot(
        self, encoded: Encoded, values: Mapping[str, Tensor], labels: Mapping[str, Sequence[str]] | None,
        **metrics: bool,
    ) -> list[Measurement]:
        def compute(task: str, rows: list[int], edits: list[Edit | None]) -> dict[str, Tensor]:
            chosen = {task: [encoded[task][row] for row in rows]}
            if labels:
                return label_metrics(self.model, chosen[task], labels[task], edits)
            table = answer_metrics(self.model, chosen, {str(i): edit for i, edit in enumerate(edits)}, **metrics)
            return {name: torch.from_numpy(table[name].to_numpy(dtype=float).reshape(len(rows), len(edits)).T.copy())
                    for name in FEW_SHOT_METRICS if name in table}

        def made_from(task: str, rows: list[int]) -> tuple:
            chosen = [encoded[task][row] for row in rows]
            of_labels = (labels[task],) if labels else ()
            return *metrics.values(), *of_labels, [(p.task, p.tokens, p.answer, p.answer_text) for p in chosen]

        tasks = np.repeat(list(encoded), [len(of_task) for of_task in encoded.values()])
        parts = [(task, len(of_task), values[task]) for task, of_task in encoded.items()]
        return self._measured(parts, tasks, compute, made_from)

    def token_loss(self, documents: Tensor, value: Tensor, window: int) -> list[Measurement]:
        def compute(block: Tensor, rows: list[int], edits: list[Edit | None]) -> dict[str, Tensor]:
            around, points = token_loss_differences(self.model, block[rows], edits, windows=(window, 0))
            return {TOKEN_LOSS: around, TOKEN_LOSS_POINTS: points}

        blocks = documents.split(_DOCUMENTS)
        values = [value] * len(blocks) if len(value) == 1 else value.split(_DOCUMENTS)
        parts = [(block, len(block), of_block) for block, of_block in zip(blocks, values, strict=True)]
        tasks = np.full(len(documents), "documents")
        return self._measured(parts, tasks, compute, lambda block, rows: (window, block[rows]))

    def _measured(self, parts: list[tuple], tasks: np.ndarray, compute, made_from) -> list[Measurement]:
        """Measurements of parts of the rows, each with its replaced values; NaN where nothing was measured.

        Sets of heads that are the same are measured once.
        """
        how, values, first = (self.replacement, self.positions), {}, 0
        for part, n, replaced in progress(parts, ", ".join(how), unit="part"):
            for of_turn, rows in _turns(self.conditions, n, first, self.spread_draws):
                heads, which = different_heads([self.conditions[i].heads for i in of_turn])
                chosen = replaced if len(replaced) == 1 else replaced[rows]
                edits = [Edit(mask, chosen, self.positions) if mask.any() else None for mask in heads]
                by_metric = self.saved.recall(
                    partial(compute, part, rows, edits), *how, *made_from(part, rows), torch.stack(heads), chosen)
                for name, by_edit in by_metric.items():
                    whole = values.setdefault(name, np.full((len(self.conditions), len(tasks)), np.nan))
                    whole[np.ix_(of_turn, [first + row for row in rows])] = by_edit[which].numpy()
            first += n
        return [Measurement(FEW_SHOT_METRICS.get(name, name), *how, self.conditions, tasks, of_metric)
                for name, of_metric in values.items()]


def _turns(conditions: list[Condition], n_rows: int, first: int, spread: bool) -> Iterator[tuple[list[int], list[int]]]:
    """Which conditions are measured on which of the rows that begin with number `first`: all, or draws in turn."""
    if not spread:
        yield list(range(len(conditions))), list(range(n_rows))
        return
    families = [(c.ranking, c.matched, c.excluded, c.fraction) for c in conditions]
    n_draws = Counter(family for family in families if family[0].startswith("random"))
    most = max(n_draws.values(), default=1)
    for turn in range(most):
        rows = [r for r in range(n_rows) if (first + r) % most == turn]
        if rows:
            yield [i for i, (c, family) in enumerate(zip(conditions, families, strict=True))
                   if family not in n_draws or c.draw == turn % n_draws[family]], rows


def f1_ceilings(model, prompts: Mapping[str, TaskPrompts]) -> pd.DataFrame:
    """Rows of the table `ablations`: per task the mean F1 of a model that always answers right (A6)."""
    rows = [(task, float(np.mean([f1_ceiling(model, p.answer) for p in of_task.clean])), len(of_task.clean))
            for task, of_task in prompts.items()]
    return pd.DataFrame(rows, columns=["task", "value", "n_prompts"]).assign(
        metric="f1_ceiling", replacement="none", positions="none", ranking="none", excluded="", matched="",
        fraction=0.0, n_heads=0, draw=0, standard_error=np.nan)


def mean_value(
    model, scoring: Mapping[str, TaskPrompts], saved: SavedResults | None = None
) -> Float[Tensor, "1 layer head d_head"]:
    """The replacement `mean`, the same for prompts and documents; kept in `saved`, since all interventions need it."""
    texts = [(task, p.text) for task, prompts in scoring.items() for p in prompts.clean]
    def compute() -> dict[str, Tensor]:
        return {"mean": shared_value(model, encode_clean(model, scoring), "mean")}

    return (saved or SavedResults(None, model)).recall(compute, "mean value", texts)["mean"]


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
    frames += [] if ceilings is None else [ceilings]
    table = pd.concat(frames, ignore_index=True).assign(model=name, step=step)
    values = ("value", "standard_error", "n_prompts")
    return table.drop_duplicates([c for c in table if c not in values], ignore_index=True)


def with_paired_errors(ablations: pd.DataFrame) -> pd.DataFrame:
    """The table with the standard error of the change beside each token-loss difference under ablation.

    Documents differ by more than ablation changes them, so only the paired error tells a condition from the clean
    model; the clean model keeps the error of its own mean.
    """
    key = [c for c in ablations if c not in ("value", "standard_error", "n_prompts")]
    change = ablations[ablations["metric"].str.endswith("_change")]
    paired = change.assign(metric=change["metric"].str.removesuffix("_change")).set_index(key)["standard_error"]
    edited = ablations["metric"].isin(paired.index.unique("metric")) & (ablations["ranking"] != "none")
    error = ablations["standard_error"].copy()
    error[edited] = paired.reindex(pd.MultiIndex.from_frame(ablations.loc[edited, key])).to_numpy()
    return ablations.assign(standard_error=error)


def _rows(m: Measurement, values: Float[np.ndarray, "condition row"], metric: str) -> pd.DataFrame:
    """Means over the prompts (or documents) of each task that a condition was measured on, with standard errors."""
    frames = []
    for task in dict.fromkeys(m.tasks.tolist()):
        of_task = pd.DataFrame(values[:, m.tasks == task].T)
        frames.append(pd.DataFrame({"task": task, "value": of_task.mean(), "standard_error": of_task.sem(),
                                    "n_prompts": of_task.count(), "condition": np.arange(len(values))}))
    table = pd.concat(frames, ignore_index=True)
    table = table[table["n_prompts"] > 0].reset_index(drop=True)
    which = table.pop("condition")
    for column in ("ranking", "excluded", "matched", "fraction", "draw"):
        table[column] = [getattr(m.conditions[i], column) for i in which]
    table["n_heads"] = [int(m.conditions[i].heads.sum()) for i in which]
    edited = table["ranking"] != "none"
    return table.assign(metric=metric, replacement=np.where(edited, m.replacement, "none"),
                        positions=np.where(edited, m.positions, "none"))
