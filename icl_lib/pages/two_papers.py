"""Sentences and tables of the patterns page and of the page on two papers, filled from their numbers."""

from collections.abc import Mapping

import pandas as pd

from icl_lib.analysis.two_papers import DIFFERENCE, TASK_SETS, accuracy_of, benefit_of, carried_by, lost_at
from icl_lib.figures.common import LABEL
from icl_lib.kinds import KINDS
from icl_lib.pages.common import KIND_WORDS, interval_words


def able_words(numbers: pd.DataFrame, able: Mapping[str, list[str]], n_patterns: int, n_shots: int) -> str:
    """Which patterns each model answers above chance, with its accuracy on them."""
    lines, by_model = [], _words(numbers)
    for model, names in able.items():
        words = by_model[model]
        done = ", ".join(f"{name} {words[accuracy_of(name, n_shots)]}" for name in names)
        lines.append(f"- **{model}** answers {len(names)} of {n_patterns} patterns above chance at {n_shots} "
                     f"demonstrations{f' (accuracy: {done})' if done else ': on them its ablations say nothing'}.")
    return "\n".join(lines)


def steps_table(numbers: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Every step by model: accuracy lost to each kind, with its 95 % interval."""
    columns = {(model, KIND_WORDS[kind]): [words.get(lost_at(name, kind), "") for name in names]
               for model, words in _words(numbers).items() for kind in KINDS}
    return pd.DataFrame(columns, index=[" ".join(name.split()) for name in names])


def carriers_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """How much more of the benefit of demonstrations FV heads carry than induction heads, by model and task set."""
    columns, rows = {**TASK_SETS, DIFFERENCE: DIFFERENCE}, {}
    for model, words in _words(numbers).items():
        row = {shown: words.get(carried_by(name), "") for name, shown in columns.items()}
        if any(row.values()):
            rows[model] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(
        "benefit lost with FV heads, less with induction heads")


def benefit_table(numbers: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """What demonstrations add to accuracy by model and task set, unedited and with this share of heads ablated."""
    columns = {"no ablation": ("none", 0.0)} | {
        f"{fraction:.0%} {LABEL[kind]}": (kind, fraction) for kind in ("random_layer_matched", *KINDS)}
    rows = {}
    for model, words in _words(numbers).items():
        for task_set, of in TASK_SETS.items():
            if benefit_of(task_set, "none", 0.0) in words:
                rows[f"{model}, {of}"] = {
                    name: words.get(benefit_of(task_set, *edit), "") for name, edit in columns.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("accuracy that demonstrations add")


def _words(numbers: pd.DataFrame) -> dict[str, dict[str, str]]:
    """By model its numbers by name, with their intervals where they have them."""
    return {model: {row["name"]: interval_words(row, "z.2f") for _, row in rows.iterrows()}  # z: no minus before 0
            for model, rows in numbers.groupby("model", sort=False)}
