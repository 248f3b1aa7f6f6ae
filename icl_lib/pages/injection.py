"""The sentence of the task-execution page, made from its table."""

import pandas as pd

from icl_lib.stats.intervals import bootstrap_difference


def execution_sentence(executions: pd.DataFrame, layer: int, *, preset: str, items: str, seed: int) -> str:
    """Accuracy with the FV heads' vector at a layer against nothing added and against the random vectors."""
    rows = executions[(executions["preset"] == preset) & (executions["items"] == items)]
    if rows.empty:
        return f"**{preset}** ({items} items, layer {layer}): no item was answered after clean demonstrations."
    parts = []
    for prompts, words in (("zero_shot", "without demonstrations"), ("shuffled", "with shuffled labels")):
        own = rows[(rows["prompts"] == prompts) & rows["layer"].isin((-1, layer))]
        by_task = own.groupby(["heads", "task"])["value"].mean().unstack("heads")
        gaps = []
        for other, label in (("none", "nothing added"), ("random_layer_matched", "random heads of the same layers")):
            if other not in by_task:
                continue
            gap = bootstrap_difference(by_task["fv"].to_numpy(), by_task[other].to_numpy(),
                                       by_task.index.to_numpy(str), seed=seed, over="tasks")
            gaps.append(f"{gap.value:+.2f} against {label} ({gap.low:+.2f} to {gap.high:+.2f})")
        parts.append(f"{words} {by_task['fv'].mean():.2f}, {' and '.join(gaps)}")
    clean = rows[rows["prompts"] == "clean"].groupby("task")["value"].mean()
    return (f"**{preset}** ({items} items of {len(clean)} tasks, layer {layer}, {draws_words(rows)}): accuracy with "
            f"the FV heads' vector {'; '.join(parts)}; {clean.mean():.2f} after clean demonstrations. Intervals: 95 %, "
            "bootstrap over tasks.")


def draws_words(executions: pd.DataFrame) -> str:
    """How many different draws of layer-matched random heads there were."""
    n_draws = executions[executions["heads"] == "random_layer_matched"]["draw"].nunique()
    if not n_draws:
        return "no random heads of neither kind are left to compare with"
    return f"{n_draws} different random {'draws' if n_draws > 1 else 'draw'}"
