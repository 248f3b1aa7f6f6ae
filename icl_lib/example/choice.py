"""Which heads and which task the worked example is about: by rule, from a model's tables."""

import pandas as pd

from icl_lib.kinds import DEFINED_BY, mean_scores


def top_head_of_each_kind(scores: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """The (layer, head) highest by the score that defines each kind: prefix matching; the FV score, mean over tasks."""
    means = {kind: mean_scores(scores, score) for kind, score in DEFINED_BY.items()}
    return {kind: divmod(int(values.argmax()), values.shape[1]) for kind, values in means.items()}


def fv_by_task(scores: pd.DataFrame, layer: int, head: int) -> pd.Series:
    """The FV scores of one head by task, each a mean over prompts."""
    rows = scores[(scores["score"] == "fv") & (scores["layer"] == layer) & (scores["head"] == head)]
    return rows.set_index("task")["value"].rename("fv")


def candidate_tasks(scores: pd.DataFrame, accuracy: pd.DataFrame, least_accuracy: float) -> pd.DataFrame:
    """The tasks to choose from, best first: abstractive scoring tasks that the model does, by the top FV head's score.

    Columns `task, accuracy, fv`: first-token accuracy with the most demonstrations, 0..1; FV score on the task of the
    head that is highest over all tasks. Raises ValueError where no task has the `least_accuracy`.
    """
    rows = accuracy.query("metric == 'first_token_accuracy' and labels == 'clean' and split == 'scoring' and "
                          "task_type == 'abstractive'")
    rows = rows[(rows["n_shots"] == rows["n_shots"].max()) & (rows["value"] >= least_accuracy)]
    if rows.empty:
        raise ValueError(f"no abstractive scoring task has an accuracy of {least_accuracy:g}; give a lower one")
    tasks = rows[["task", "value"]].rename(columns={"value": "accuracy"})
    tasks = tasks.join(fv_by_task(scores, *top_head_of_each_kind(scores)["fv"]), on="task")
    return tasks.sort_values(["fv", "task"], ascending=[False, True], ignore_index=True)
