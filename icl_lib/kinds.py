"""When a head is an induction head or an FV head: the one definition, used by every page, test and rule.

The two scores that the paper ranks by are here too: its induction score is the attention mass, and FV heads are
ranked by the mean FV score over scoring tasks.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from icl_lib.heads import HeadMask, top_heads

KINDS = ("induction", "fv")
RANKED_BY = {"induction": "induction_attention_mass", "fv": "fv"}  # the paper's ranking of a kind (section 2)
DEFINED_BY = {"induction": "induction_prefix_matching", "fv": "fv"}  # prefix matching has a ceiling of 1 in every model
INDUCTION_THRESHOLD = 0.3  # share of a repeated token's attention that goes to the token after its earlier copy
FV_MINIMUM = 0.005  # the smallest FV score that counts: half a percentage point of the answer's probability
NULL_QUANTILE = 0.99  # an FV head beats the best of all heads in this share of the draws of the null
LABELS_READ = 0.05  # accuracy minus accuracy with shuffled labels from which a model reads labels
LOWEST = "fv_lowest"  # the ranking with the lowest FV scores first: heads that lower the answer's probability
ANY_HEADS = "random_any"  # random heads of all heads, those of either kind included
OF_EITHER_KIND = "heads of either kind"  # what the column `excluded` of random heads says: they are of neither kind


def mean_scores(scores: pd.DataFrame, score: str) -> Float[ndarray, "layer head"]:
    """The mean over tasks of one score of one model and step; a one-line error where the table lacks it."""
    return rows_of(scores, score).groupby(["layer", "head"])["value"].mean().unstack("head").to_numpy()


def rows_of(scores: pd.DataFrame, score: str) -> pd.DataFrame:
    """The rows of one score. Raises ValueError in one line where the table has none."""
    rows = scores[scores["score"] == score]
    if rows.empty:
        raise ValueError(f"the table has no score {score!r}, only {', '.join(sorted(scores['score'].unique()))}")
    return rows


def scores_by_task(scores: pd.DataFrame, score: str) -> Float[ndarray, "task head"]:
    """One score of one model and step by task and head, heads flattened."""
    rows = scores[scores["score"] == score]
    return rows.pivot(index="task", columns=["layer", "head"], values="value").sort_index(axis=1).to_numpy()


def heads_of_kind(scores: pd.DataFrame, accuracy: pd.DataFrame | None = None) -> dict[str, HeadMask]:
    """Which heads of one model at one step are of a kind, from its table `scores`: {"induction": mask, "fv": mask}.

    An induction head has a prefix-matching score above 0.3. An FV head has an FV score (mean over scoring tasks)
    above `fv_threshold`, in a model that reads labels: with the table `accuracy` a model that `reads_labels` does not
    vouch for has no FV heads. A head may be of both kinds. Raises ValueError for a table without these scores.
    """
    masks = {"induction": mean_scores(scores, DEFINED_BY["induction"]) > INDUCTION_THRESHOLD,
             "fv": mean_scores(scores, "fv") > fv_threshold(null_draws(scores))}
    if accuracy is not None and not reads_labels(accuracy):
        masks["fv"] = np.zeros_like(masks["fv"])
    return masks


def top_sets(scores: pd.DataFrame, *, fraction: float) -> dict[str, HeadMask]:
    """The top share of heads of each kind by the score that ranks it: {"induction": mask, "fv": mask}."""
    return {kind: top_heads(mean_scores(scores, score), fraction=fraction) for kind, score in RANKED_BY.items()}


def fv_threshold(null: Float[ndarray, "draw *head"]) -> float:
    """The FV score from which a head is an FV head: above the null, and at least 0.005 in any case.

    A null below the smallest effect that counts, or below zero, does not lower the bar. Errors as in `best_of_null`.
    """
    return max(FV_MINIMUM, best_of_null(null))


def best_of_null(null: Float[ndarray, "draw *head"]) -> float:
    """What the best head's FV score under another task's means stays below in 99 % of draws.

    In each draw the best head counts, which guards against choosing heads by their score. Raises ValueError for NaN or
    no draws.
    """
    if null.size == 0 or np.isnan(null).any():
        raise ValueError("the null has NaN or no draws, expected a number for every draw and head")
    return float(np.quantile(null.reshape(len(null), -1).max(axis=1), NULL_QUANTILE))


def null_draws(scores: pd.DataFrame) -> Float[ndarray, "draw head"]:
    """The draws of the FV null in one model's table `scores`, heads flattened. ValueError where it has none."""
    if not scores["score"].eq("fv_null").any():
        raise ValueError("the table has no score 'fv_null'; score the heads with n_null_draws of at least 1")
    return scores_by_task(scores, "fv_null")


def reads_labels(accuracy: pd.DataFrame) -> bool:
    """Whether a model learns from which label stands beside which input, from its table `accuracy` at one step.

    First-token accuracy on the scoring tasks at the most demonstrations, labels clean minus labels shuffled: at least
    0.05 on the mean over tasks, and above 0 at p < 0.05 (one-sided t test over tasks, where there are two or more).
    """
    gaps = label_gaps(accuracy)
    if gaps.empty or gaps.mean() < LABELS_READ:
        return False
    same = len(gaps) < 2 or np.ptp(gaps) == 0
    return bool(same or stats.ttest_1samp(gaps, 0, alternative="greater").pvalue < 0.05)


def label_gaps(accuracy: pd.DataFrame) -> pd.Series:
    """Per scoring task first-token accuracy at the most demonstrations, labels clean minus labels shuffled.

    Of the table `accuracy` at one step; empty where shuffled labels were not measured at so many demonstrations.
    """
    rows = accuracy[(accuracy["metric"] == "first_token_accuracy") & (accuracy["split"] == "scoring")]
    rows = rows[rows["n_shots"] == rows["n_shots"].max()]
    by_labels = rows.pivot(index="task", columns="labels", values="value").reindex(columns=["clean", "shuffled"])
    return (by_labels["clean"] - by_labels["shuffled"]).dropna()
