"""The sentence of the task-execution page, made from its table."""

import pandas as pd

from icl_lib.analysis.reading import draws_words, third
from icl_lib.stats.intervals import bootstrap_mean


def execution_sentences(executions: pd.DataFrame, *, seed: int) -> list[str]:
    """`execution_sentence` of each preset that was measured; of each task's own vector also on answered items."""
    return [execution_sentence(executions, preset=preset, items=items, seed=seed)
            for preset, items in (("task", "all"), ("task", "answered"), ("released", "answered"))
            if preset in set(executions["preset"])]


def execution_sentence(executions: pd.DataFrame, *, preset: str, items: str, seed: int) -> str:
    """Accuracy with the FV heads' vector at a third of the layers against nothing added and the random vectors."""
    rows, layer = executions[(executions["preset"] == preset) & (executions["items"] == items)], third(executions)
    if rows.empty:
        return f"**{preset}** ({items} items, layer {layer}): no item was answered after clean demonstrations."
    parts = []
    for prompts, words in (("zero_shot", "without demonstrations"), ("shuffled", "with shuffled labels")):
        own = rows[(rows["prompts"] == prompts) & rows["layer"].isin((-1, layer))]
        by_task = own.groupby(["heads", "task"])["value"].mean().unstack("heads")
        gaps = []
        for other, label in (("none", "nothing added"), ("random_layer_matched", "random heads of the same layers")):
            if other in by_task:
                gap = bootstrap_mean((by_task["fv"] - by_task[other]).to_numpy(), seed=seed)
                gaps.append(f"{gap.value:+.2f} against {label} ({gap.low:+.2f} to {gap.high:+.2f})")
        parts.append(f"{words} {by_task['fv'].mean():.2f}, {' and '.join(gaps)}")
    clean = rows[rows["prompts"] == "clean"].groupby("task")["value"].mean()
    return (f"**{preset}** ({items} items of {len(clean)} tasks, layer {layer}, {draws_words(rows)}): accuracy with "
            f"the FV heads' vector {'; '.join(parts)}; {clean.mean():.2f} after clean demonstrations. Intervals: 95 %, "
            "bootstrap over tasks.")
