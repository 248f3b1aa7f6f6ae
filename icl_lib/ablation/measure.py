"""One intervention measured under all conditions, on prompts and documents."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from icl_lib.ablation.conditions import Condition
from icl_lib.ablation.protocols import protocol
from icl_lib.ablation.table import TOKEN_LOSS, TOKEN_LOSS_POINTS, Measurement
from icl_lib.data.tasks import TaskPrompts
from icl_lib.forward.edits import POSITIONS, Edit
from icl_lib.forward.encoded import EncodedPrompt, encode_clean
from icl_lib.forward.replacements import document_values, replacement_values
from icl_lib.heads import different_heads
from icl_lib.measurements import METRICS
from icl_lib.metrics.evaluate import answer_metrics, edited_token_losses, label_metrics, token_loss_differences
from icl_lib.metrics.generation import f1_ceiling
from icl_lib.names import refuse_unknown
from icl_lib.progress import progress
from icl_lib.saved import SavedResults
from icl_lib.tables import SCHEMAS

FEW_SHOT_METRICS = METRICS | {"generated_f1": "generated_f1", "label_correct": "label_accuracy"}
_DOCUMENTS = 20  # measured and saved together


def measure(
    model, conditions: list[Condition], prompts: Mapping[str, TaskPrompts], scoring: Mapping[str, TaskPrompts],
    documents: Int[Tensor, "document pos"] | None, *, replacement: str, positions: str, seed: int,
    loss_window: int = 0, f1: bool = False, reach_back: bool = False,
    labels: Mapping[str, Sequence[str]] | None = None, spread_draws: bool = False,
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
    saved = saved or SavedResults(None, model)
    replaced = dict(replacement=replacement, scoring_prompts=scoring, seed=seed, saved=saved)
    in_parts = partial(_in_parts, model, conditions, (replacement, positions), spread_draws, saved)
    measured = []
    if prompts:
        encoded = encode_clean(model, prompts)
        values = replacement_values(model, prompts, **replaced)
        measured += in_parts(_few_shot, [(task, of_task, values[task], (f1, reach_back, labels and labels[task]))
                                         for task, of_task in encoded.items()])
    if documents is not None:
        value = document_values(model, documents, **replaced)
        measured += in_parts(_token_loss, [
            ("documents", documents[rows], value if len(value) == 1 else value[rows], (loss_window,))
            for rows in torch.arange(len(documents)).split(_DOCUMENTS)])
    return measured


def _few_shot(
    model, prompts: list[EncodedPrompt], edits: list[Edit | None], f1: bool, reach_back: bool,
    labels: Sequence[str] | None,
) -> dict[str, Tensor]:
    if labels:
        return label_metrics(model, prompts, labels, edits)
    table = answer_metrics(model, {prompts[0].task: prompts}, {str(i): edit for i, edit in enumerate(edits)}, f1=f1,
                           reach_back=reach_back)
    return {name: torch.from_numpy(table[name].to_numpy(dtype=float).reshape(len(prompts), len(edits)).T.copy())
            for name in FEW_SHOT_METRICS if name in table}


def _token_loss(model, documents: Tensor, edits: list[Edit | None], window: int) -> dict[str, Tensor]:
    around, points = token_loss_differences(model, documents, edits, windows=(window, 0))
    return {TOKEN_LOSS: around, TOKEN_LOSS_POINTS: points}


def _in_parts(
    model, conditions: list[Condition], how: tuple[str, str], spread_draws: bool, saved: SavedResults, compute,
    parts: list[tuple],
) -> list[Measurement]:
    """Measurements of parts of the rows: task, texts, their replaced values, options of `compute`.

    Sets of heads that are the same are measured once. NaN where nothing was measured.
    """
    tasks = np.repeat([task for task, *_ in parts], [len(texts) for _, texts, *_ in parts])
    values, first = {}, 0
    for _, texts, replaced, options in progress(parts, ", ".join(how), unit="part"):
        for of_turn, rows in _turns(conditions, len(texts), first, spread_draws):
            heads, which = different_heads([conditions[i].heads for i in of_turn])
            some = texts[rows] if isinstance(texts, Tensor) else [texts[row] for row in rows]
            chosen = replaced if len(replaced) == 1 else replaced[rows]
            masks = [torch.from_numpy(mask) for mask in heads]
            edits = [Edit(mask, chosen, how[1]) if mask.any() else None for mask in masks]
            by_metric = saved.recall(
                partial(compute, model, some, edits, *options), *how, *options, some, torch.stack(masks), chosen)
            for name, by_edit in by_metric.items():
                whole = values.setdefault(name, np.full((len(conditions), len(tasks)), np.nan))
                whole[np.ix_(of_turn, [first + row for row in rows])] = by_edit[which].numpy()
        first += len(texts)
    return [Measurement(FEW_SHOT_METRICS.get(name, name), *how, conditions, tasks, of_metric)
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


def measure_protocol(
    name: str, model, conditions: list[Condition], prompts, scoring, documents, *, seed: int
) -> list[Measurement]:
    """Both metrics as the protocol measures them: few-shot and token loss under its two interventions."""
    p = protocol(name)
    few_shot = measure(model, conditions, prompts, scoring, None, replacement=p.few_shot[0], positions=p.few_shot[1],
                       seed=seed, f1=p.metric == "generated_f1", reach_back=p.reach_back)
    token_loss = measure(model, conditions, {}, scoring, documents, replacement=p.token_loss[0],
                         positions=p.token_loss[1], seed=seed)
    return [m for m in few_shot + token_loss if m.metric in (p.metric, p.loss_metric)]


def loss_curves(model, documents, conditions: list[Condition], value, *, name: str, step: int) -> pd.DataFrame:
    """Table `curves`: mean loss by position under edits at all positions; empty for no documents.

    Positions in 16 bins of equal width on a log scale, named by their geometric mean; draws of random heads are
    averaged before the standard error over documents is taken.
    """
    if not len(documents):
        return pd.DataFrame(columns=list(SCHEMAS["curves"]))
    edits = [None if c.ranking == "none" else Edit(torch.from_numpy(c.heads), value, "all") for c in conditions]
    losses = edited_token_losses(model, documents, edits).double().numpy()
    edges = np.unique(np.geomspace(1, losses.shape[2] + 1, 17).round().astype(int))
    frames = []
    for ranking, matched, fraction in dict.fromkeys((c.ranking, c.matched, c.fraction) for c in conditions):
        mean = losses[[(c.ranking, c.matched) == (ranking, matched) for c in conditions]].mean(0)
        by_bin = pd.DataFrame([mean[:, low - 1 : high - 1].mean(1) for low, high in pairwise(edges)])
        frames.append(pd.DataFrame({
            "ranking": ranking, "matched": matched, "fraction": fraction,
            "position": [(low * (high - 1)) ** 0.5 for low, high in pairwise(edges)],
            "value": by_bin.mean(axis=1), "standard_error": by_bin.sem(axis=1), "n_prompts": len(mean)}))
    return pd.concat(frames, ignore_index=True).assign(model=name, step=step)
