"""The sentence of the task-execution page, made from its table."""

import pandas as pd

from icl_lib.analysis.reading import draws_words, third, vector_gains

_CONTROLS = {"none": "nothing added", "random_layer_matched": "random heads of the same layers"}


def execution_sentences(executions: pd.DataFrame) -> list[str]:
    """`execution_sentence` of each preset that was measured; of each task's own vector also on answered items."""
    return [execution_sentence(executions, preset=preset, items=items)
            for preset, items in (("task", "all"), ("task", "answered"), ("released", "answered"))
            if preset in set(executions["preset"])]


def execution_sentence(executions: pd.DataFrame, *, preset: str, items: str) -> str:
    """Accuracy with the FV heads' vector at a third of the layers against nothing added and the random vectors."""
    rows, layer = executions[(executions["preset"] == preset) & (executions["items"] == items)], third(executions)
    if rows.empty:
        return f"**{preset}** ({items} items, layer {layer}): no item was answered after clean demonstrations."
    parts = []
    for prompts, words in (("zero_shot", "without demonstrations"), ("shuffled", "with shuffled labels")):
        fv = rows[(rows["prompts"] == prompts) & (rows["layer"] == layer) & (rows["heads"] == "fv")]["value"].mean()
        gains = [f"{gain.value:+.2f} against {_CONTROLS[control]} ({gain.low:+.2f} to {gain.high:+.2f})"
                 for control, gain in vector_gains(rows, prompts).items()]
        parts.append(f"{words} {fv:.2f}, {' and '.join(gains)}")
    clean = rows[rows["prompts"] == "clean"].groupby("task")["value"].mean()
    return (f"**{preset}** ({items} items of {len(clean)} tasks, layer {layer}, {draws_words(rows)}): accuracy with "
            f"the FV heads' vector {'; '.join(parts)}; {clean.mean():.2f} after clean demonstrations. Intervals: 95 %, "
            "over tasks and draws.")
