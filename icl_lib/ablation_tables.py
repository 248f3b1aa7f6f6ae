"""From a model to the table `ablations`: conditions, one intervention measured under all of them, tidy rows."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from tqdm import tqdm

from icl_lib.ablation import POSITIONS, Edit, document_values, replacement_values
from icl_lib.evaluate import PLACES, answer_metrics, check_window, edited_token_losses
from icl_lib.heads import (
    different_heads,
    head_count,
    head_names,
    layer_matched_random_heads,
    random_ranking,
    top_heads,
)
from icl_lib.kinds import OF_EITHER_KIND, RANKED_BY, heads_of_kind
from icl_lib.measurements import METRICS, mean_scores
from icl_lib.tasks import TaskPrompts

FEW_SHOT_METRICS = METRICS | {"generated_f1": "generated_f1"}
TOKEN_LOSS, TOKEN_LOSS_POINTS = "token_loss_difference", "token_loss_difference_points"


@dataclass(frozen=True)
class Condition:
    """One ablated set and how it was chosen; the fields are columns of the table `ablations`."""

    ranking: str
    excluded: str
    matched: str
    fraction: float
    draw: int
    heads: Bool[Tensor, "layer head"]


@dataclass(frozen=True)
class Measurement:
    """One metric under one intervention: a value per condition and prompt (or document), `tasks` naming its task."""

    metric: str
    replacement: str
    positions: str
    conditions: list[Condition]
    tasks: Shaped[np.ndarray, "row"]
    values: Float[np.ndarray, "condition row"]


def ablation_conditions(
    scores: pd.DataFrame,
    *,
    fractions: list[float],
    n_draws: int,
    exclude_fraction: float,
    seed: int,
    rounding: str = "ceil",
    random_from: str = "neither",
) -> list[Condition]:
    """The clean model and, per fraction: both rankings without and with exclusion, and up to `n_draws` random sets.

    Counts are rounded up, at least 1 head. With exclusion the top `exclude_fraction` of the other kind is passed over.
    `rounding` "floor" is the released int() for both, which excludes nobody in a small model (A14 of the protocols
    page). Random heads are of neither kind (`kinds.heads_of_kind`) and in neither kind's set at this fraction: a
    control has nothing of what it controls for. Layer-matched ones are drawn for each of the four sets
    (`layer_matched_random_heads`). Where too few such heads are left, there is no control at this fraction. A draw
    that repeats an earlier one is left out. A draw of random heads is one ranking, so that its sets are nested over
    fractions as far as the sets in question allow (A15). `random_from` "all" draws random heads from all heads and
    none by layer, as the paper and its code do (A16).

    Raises ValueError for a fraction outside 0..1 and where exclusion leaves too few heads.
    """
    by_kind = {kind: mean_scores(scores, score) for kind, score in RANKED_BY.items()}
    of_kind = torch.stack(list(heads_of_kind(scores).values())).any(0)
    shape, n_total = tuple(by_kind["fv"].shape), by_kind["fv"].numel()
    n_excluded = head_count(exclude_fraction, n_total, rounding=rounding, minimum=int(rounding == "ceil"))
    conditions = [Condition("none", "", "", 0.0, 0, torch.zeros(shape, dtype=torch.bool))]
    for fraction in fractions:
        n_heads = head_count(fraction, n_total, rounding=rounding)
        sets = []
        for kind, other in (("induction", "fv"), ("fv", "induction")):
            excluded = top_heads(by_kind[other], n_heads=n_excluded)
            for words, exclude in (("", None), (exclusion_words(exclude_fraction, other, rounding), excluded)):
                heads = top_heads(by_kind[kind], n_heads=n_heads, exclude=exclude)
                sets.append(Condition(kind, words, "", fraction, 0, heads))
        conditions += sets
        if random_from == "all":
            conditions += random_conditions(shape, fraction, n_heads, n_draws, seed=seed)
            continue
        taken = torch.stack([of_kind, *(c.heads for c in sets)]).any(0)
        conditions += random_conditions(shape, fraction, n_heads, n_draws, seed=seed, taken=taken)
        for c in sets:
            conditions += matched_conditions(c, n_draws, taken=taken, seed=seed)
    return conditions


def random_conditions(
    shape: tuple[int, int], fraction: float, n_heads: int, n_draws: int, *, seed: int,
    taken: Bool[Tensor, "layer head"] | None = None,
) -> list[Condition]:
    """Different draws of `n_heads` heads, none of them `taken`; none at all where too few are left."""
    if taken is not None and n_heads > int((~taken).sum()):
        return []
    words = "" if taken is None else OF_EITHER_KIND
    drawn = [top_heads(random_ranking(shape, seed=seed, draw=draw), n_heads=n_heads, exclude=taken)
             for draw in range(n_draws)]
    return [Condition("random", words, "", fraction, draw, heads) for draw, heads in _first_of_each(drawn)]


def matched_conditions(
    ablated: Condition, n_draws: int, *, taken: Bool[Tensor, "layer head"], seed: int
) -> list[Condition]:
    """Different draws of layer-matched heads for an ablated set, none of them `taken`; none where too few are left."""
    if int(ablated.heads.sum()) > int((~taken).sum()):
        return []
    drawn = [layer_matched_random_heads(ablated.heads, seed=seed, draw=draw, exclude=taken) for draw in range(n_draws)]
    return [Condition("random_layer_matched", ablated.excluded, ablated.ranking, ablated.fraction, draw, heads)
            for draw, heads in _first_of_each(drawn)]


def _first_of_each(drawn: list[Bool[Tensor, "layer head"]]) -> list[tuple[int, Bool[Tensor, "layer head"]]]:
    """Draws numbered anew, those left out that repeat an earlier one: a set of heads counts once."""
    heads, _ = different_heads(drawn)
    return list(enumerate(heads))


def refuse_overlap(conditions: list[Condition]) -> None:
    """Raise ValueError naming a head of a random set that is in a set which it is the control for."""
    for control in conditions:
        if not control.ranking.startswith("random"):
            continue
        for c in conditions:
            controlled = control.matched == c.ranking and control.excluded == c.excluded or control.ranking == "random"
            if c.ranking in RANKED_BY and c.fraction == control.fraction and controlled:
                shared = c.heads & control.heads
                if shared.any():
                    raise ValueError(
                        f"{head_names(shared)[0]} is both in the {c.ranking} heads at {c.fraction:g} and in their "
                        f"control {control.ranking}, draw {control.draw}; draw controls with ablation_conditions")


def exclusion_words(fraction: float, kind: str, rounding: str) -> str:
    """What the column `excluded` says."""
    return f"top {fraction:g} {kind}" + (", rounded down" if rounding == "floor" else "")


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
) -> list[Measurement]:
    """Few-shot metrics on the clean `prompts` and the token-loss difference on `documents`, under one intervention.

    The replaced outputs are those of `scoring` (`replacement_values`, `document_values`). Conditions with the same
    heads are measured once. No prompts or no documents (None): only the other metric. The token-loss difference
    comes twice, averaged over `loss_window` positions to either side and at the two positions alone
    (`..._points`, the paper's); at `last` each loss is read with the heads replaced where it is read from.
    """
    if positions not in POSITIONS:
        raise ValueError(f"unknown positions {positions!r}; valid are {', '.join(POSITIONS)}")
    heads, which = different_heads([c.heads for c in conditions])
    found = []
    if prompts:
        values = replacement_values(model, prompts, replacement, scoring_prompts=scoring, seed=seed)
        edits = {str(i): {task: Edit(mask, values[task], positions) for task in prompts} if mask.any() else None
                 for i, mask in enumerate(heads)}
        clean = {task: p.clean for task, p in prompts.items()}
        metrics = answer_metrics(model, clean, edits, f1=f1, reach_back=reach_back)
        for column, metric in FEW_SHOT_METRICS.items():
            if column in metrics:
                wide = metrics.pivot(index=["task", "prompt"], columns="edit", values=column)
                by_edit = wide[list(edits)].to_numpy(dtype=float).T[which]
                tasks = wide.index.get_level_values("task").to_numpy(dtype=str)
                found.append(Measurement(metric, replacement, positions, conditions, tasks, by_edit))
    if documents is not None:
        value = document_values(model, documents, replacement, scoring_prompts=scoring, seed=seed)
        edits = [Edit(mask, value, positions) if mask.any() else None for mask in heads]
        for metric, by_edit in _token_loss_differences(model, documents, edits, loss_window).items():
            tasks = np.full(len(documents), "documents")
            found.append(Measurement(metric, replacement, positions, conditions, tasks, by_edit[which]))
    return found


def measure_grid(
    model,
    conditions: list[Condition],
    prompts: Mapping[str, TaskPrompts],
    scoring: Mapping[str, TaskPrompts],
    documents: Int[Tensor, "document pos"],
    *,
    replacements: list[str],
    positions: list[str],
    grid_fractions: list[float],
    seed: int,
    loss_window: int = 0,
) -> list[Measurement]:
    """`measure` for every replacement at every position.

    The first replacement is measured under all conditions, the others at the `grid_fractions` (each the nearest of
    the conditions' fractions; none given: all of them).
    """
    at = np.array(sorted({c.fraction for c in conditions if c.ranking != "none"}))
    wanted = {at[np.abs(at - fraction).argmin()] for fraction in grid_fractions or at}
    some = [c for c in conditions if c.ranking == "none" or c.fraction in wanted]
    cells = [(replacement, where) for replacement in replacements for where in positions]
    found = []
    for replacement, where in tqdm(cells, desc="interventions", disable=not sys.stderr.isatty(), leave=False):
        found += measure(model, conditions if replacement == replacements[0] else some, prompts, scoring, documents,
                         replacement=replacement, positions=where, seed=seed, loss_window=loss_window)
    return found


def mean_value(model, scoring: Mapping[str, TaskPrompts]) -> Float[Tensor, "1 layer head d_head"]:
    """The replacement `mean`, which is the same for prompts and documents."""
    first = dict(list(scoring.items())[:1])
    return next(iter(replacement_values(model, first, "mean", scoring_prompts=scoring).values()))


def zero_shot(measurements: list[Measurement]) -> list[Measurement]:
    """First-token accuracy measured on prompts without demonstrations, under a name of its own."""
    return [replace(m, metric="zero_shot_accuracy") for m in measurements if m.metric == "first_token_accuracy"]


def _token_loss_differences(model, documents, edits, window: int) -> dict[str, Float[np.ndarray, "edit row"]]:
    check_window(window, documents.shape[1] - 1)
    at = [place + shift for place in PLACES for shift in range(-window, window + 1)]
    losses = edited_token_losses(model, documents, edits, at=at).double().unflatten(2, (2, -1)).numpy()
    around, points = losses.mean(3), losses[..., window]
    return {TOKEN_LOSS: around[..., 0] - around[..., 1], TOKEN_LOSS_POINTS: points[..., 0] - points[..., 1]}


def ablation_table(measurements: list[Measurement], *, name: str, step: int) -> pd.DataFrame:
    """Table `ablations`: the mean over each task's prompts (or the documents) with its standard error.

    The clean model stands in it once per metric. Beside each token-loss difference the table has its change against
    the clean model, paired by document (`..._change`): see `with_paired_errors`.
    """
    frames = [_rows(m, m.values, m.metric) for m in measurements]
    for m in measurements:
        clean = [i for i, condition in enumerate(m.conditions) if condition.ranking == "none"]
        if m.metric in (TOKEN_LOSS, TOKEN_LOSS_POINTS) and clean:
            change = _rows(m, m.values - m.values[clean[:1]], f"{m.metric}_change")
            frames.append(change[change["ranking"] != "none"])
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
    frames = []
    for task in dict.fromkeys(m.tasks.tolist()):
        own = values[:, m.tasks == task]
        n = own.shape[1]
        error = own.std(1, ddof=1) / n**0.5 if n > 1 else np.full(len(own), np.nan)
        frames.append(pd.DataFrame({"task": task, "value": own.mean(1), "standard_error": error, "n_prompts": n,
                                    "condition": np.arange(len(own))}))
    table = pd.concat(frames, ignore_index=True)
    which = table.pop("condition")
    for column in ("ranking", "excluded", "matched", "fraction", "draw"):
        table[column] = [getattr(m.conditions[i], column) for i in which]
    table["n_heads"] = [int(m.conditions[i].heads.sum()) for i in which]
    edited = table["ranking"] != "none"
    return table.assign(metric=metric, replacement=np.where(edited, m.replacement, "none"),
                        positions=np.where(edited, m.positions, "none"))
