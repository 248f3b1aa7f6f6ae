"""The numbers that the scoring page prints, as rows of the table `statistics`, made from the page's own tables."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from icl_lib import kinds
from icl_lib.analysis.reading import number, table_of
from icl_lib.heads import head_names
from icl_lib.kinds import DEFINED_BY, RANKED_BY, mean_scores
from icl_lib.stats.intervals import overlap_test, spearman

SCORES = (RANKED_BY["induction"], DEFINED_BY["induction"], RANKED_BY["fv"])
TOP = (1, 2, 5)  # heads whose share of the summed score says how concentrated it is


def scoring_numbers(
    scores: pd.DataFrame, accuracy: pd.DataFrame, tasks: pd.DataFrame, *, fraction: float, seed: int
) -> pd.DataFrame:
    """All numbers of the scoring page, from the tables of these names of one model at one step."""
    n_tasks = len(set(accuracy["task"]) & set(tasks["task"]))
    loss = accuracy[accuracy["metric"] == "token_loss_difference"].iloc[0]
    half = 1.96 * loss["standard_error"]
    rows = [*accuracy_numbers(trained(accuracy, tasks)),
            number("tasks not done", len(undone_tasks(accuracy, tasks)), n=n_tasks),
            number("token-loss difference", loss["value"], loss["value"] - half, loss["value"] + half,
                   n=loss["n_prompts"]),
            *score_numbers(scores, accuracy, fraction=fraction, seed=seed), *concentration_numbers(scores)]
    by_type = fv_by_type(scores, tasks)
    for kind, values in by_type.items():
        rows += _highest(f"highest fv, {kind} tasks", values)
    if len(by_type) == 2:
        rows += _rank_correlation("rank correlation of types", *by_type.values(), seed)
    return table_of(rows, notebook="scoring", model=scores["model"].iloc[0])


def trained(accuracy: pd.DataFrame, tasks: pd.DataFrame) -> pd.DataFrame:
    """First-token accuracy on tasks seen in training, with the column `group`, the kind of each task."""
    rows = accuracy.merge(tasks[["task", "group"]], on="task")
    return rows[(rows["split"] != "unseen") & (rows["metric"] == "first_token_accuracy")]


def accuracy_numbers(accuracy: pd.DataFrame) -> Iterator[dict]:
    """Means over tasks of first-token accuracy (`trained`) by group of tasks, labels and number of demonstrations."""
    for (group, labels, shots), part in accuracy.groupby(["group", "labels", "n_shots"], sort=False):
        yield number(f"accuracy, {group}, {labels}, {shots} shots", part["value"].mean(), n=len(part))


def undone_tasks(accuracy: pd.DataFrame, tasks: pd.DataFrame) -> list[str]:
    """The tasks that a model does not do: with the most demonstrations no more answers are right than by one answer.

    One-sided exact binomial test at 0.05 of first-token accuracy on clean prompts against `floor`, the accuracy of
    always giving the commonest label.
    """
    rows = accuracy.query("labels == 'clean' and metric == 'first_token_accuracy'")
    rows = rows[rows["n_shots"] == rows["n_shots"].max()].merge(tasks[["task", "floor"]], on="task")
    right = (rows["value"] * rows["n_prompts"]).round().astype(int)
    p_values = stats.binom.sf(right - 1, rows["n_prompts"], rows["floor"])
    return sorted(rows["task"][p_values >= 0.05])


def concentration_numbers(scores: pd.DataFrame) -> Iterator[dict]:
    """How few heads carry each score that ranks: the share of its positive sum in the top 1, 2 and 5 heads, 0..1.

    With the lowest FV score, and on how many scoring tasks the top FV head has the highest score of all.
    """
    for kind, score in RANKED_BY.items():
        values = np.sort(mean_scores(scores, score).ravel())[::-1]
        positive = values[values > 0]
        for k in TOP if len(positive) else ():
            yield number(f"share of top {k}, {kind}", positive[:k].sum() / positive.sum(), n=values.size)
    yield from _highest("lowest fv", mean_scores(scores, "fv"), np.argmin)
    by_task = kinds.scores_by_task(scores, "fv")
    best = (by_task.argmax(axis=1) == by_task.mean(axis=0).argmax()).sum()
    yield number("tasks with the top FV head highest", best, n=len(by_task))


def score_numbers(scores: pd.DataFrame, accuracy: pd.DataFrame, *, fraction: float, seed: int) -> Iterator[dict]:
    """Highest scores, heads of each kind by the one definition, top sets with their overlap and rank correlation.

    A head stands in a row's name ("top fv head L2H3"), or as the two rows "<name>, layer" and "<name>, head".
    """
    values = {score: mean_scores(scores, score) for score in SCORES}
    null, gaps, size = kinds.null_draws(scores), kinds.label_gaps(accuracy), values["fv"].size
    for score in SCORES:
        yield from _highest(f"highest {score}", values[score])
    yield number("FV threshold", kinds.fv_threshold(null), n=len(null))
    fv = values["fv"].ravel()
    own = (fv > np.maximum(kinds.FV_MINIMUM, null.max(axis=0))).sum()
    yield number("heads above their own null", own, n=size)
    yield number("draws with the top FV head highest", (null.argmax(axis=1) == fv.argmax()).sum(), n=len(null))
    yield number("accuracy lost to shuffled labels", gaps.mean() if len(gaps) else np.nan, n=len(gaps))
    for kind, mask in kinds.heads_of_kind(scores, accuracy).items():
        yield number(f"{kind} heads", mask.sum(), n=size)
    tops = kinds.top_sets(scores, fraction=fraction)
    for kind, mask in tops.items():
        for head, value in zip(head_names(mask), values[RANKED_BY[kind]][mask], strict=True):
            yield number(f"top {kind} head {head}", value, n=size)
    n, (shared, by_chance) = int(tops["fv"].sum()), overlap_test(tops["fv"], tops["induction"])
    yield number("shared top heads", shared.value, p_value=shared.p_value, n=n)
    yield number("shared top heads by chance", by_chance, n=n)
    yield from _rank_correlation("rank correlation", values[SCORES[0]], values["fv"], seed)


def fv_by_type(scores: pd.DataFrame, tasks: pd.DataFrame) -> dict[str, Float[ndarray, "layer head"]]:
    """The FV score of every head as the mean over the tasks of each type (abstractive, extractive)."""
    fv = scores[scores["score"] == "fv"]
    kind = fv["task"].map(tasks.set_index("task")["task_type"])
    return {name: mean_scores(fv[kind == name], "fv") for name in sorted(kind.unique())}


def _highest(name: str, values: Float[ndarray, "layer head"], which=np.argmax) -> list[dict]:
    layer, head = np.unravel_index(which(values), values.shape)
    found = {name: values[layer, head], f"{name}, layer": layer, f"{name}, head": head}
    return [number(words, value, n=values.size) for words, value in found.items()]


def _rank_correlation(name: str, first: ndarray, second: ndarray, seed: int) -> list[dict]:
    """With its 95 % bootstrap interval over heads; nothing where a score is the same for all."""
    if not np.ptp(first) or not np.ptp(second):
        return []
    return [number(name, *spearman(first, second, seed=seed), n=first.size)]
