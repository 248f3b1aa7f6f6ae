"""Figures of the worked example: table in, a `Figure` with its caption out."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from icl_lib.figures.common import COLOUR, Figure, legend
from icl_lib.kinds import KINDS

HEAD = {"induction": "induction head", "fv": "FV head"}
# The experiments in the order of the page: prompt, what the head's output is replaced by, where; in words.
EXPERIMENTS = {
    ("clean", "none", "none"): "right labels",
    ("shuffled", "none", "none"): "shuffled labels",
    ("shuffled", "task_mean", "last"): "shuffled, head put back",
    ("shuffled", "mean", "last"): "shuffled, mean of all tasks put in",
    ("clean", "mean", "last"): "right labels, ablated at the last token",
    ("clean", "mean", "all"): "right labels, ablated at every token",
}


def outcomes(example: pd.DataFrame, metric: str) -> pd.DataFrame:
    """What came out by a metric, by experiment (`EXPERIMENTS`) and head that is replaced."""
    return example[example["metric"] == metric].set_index(["prompts", "replacement", "positions", "ranking"])


def head_name(rows: pd.DataFrame) -> str:
    return f"L{rows['layer'].iloc[0]}H{rows['head'].iloc[0]}"


def pattern(rows: pd.DataFrame) -> Figure:
    """Attention of a head on repeated tokens, a row for each token that is read, columns what it sees; of one head the
    rows of a table `example` or `samples`."""
    values = rows.pivot(index="position", columns="to_position", values="value")
    words = rows[rows["position"] == rows["position"].max()].sort_values("to_position")["token"].str.strip().tolist()
    figure, ax = plt.subplots(figsize=(5.6, 4.8))
    sns.heatmap(values, ax=ax, cmap="Blues", vmin=0, vmax=1, square=True, mask=values.isna(),
                xticklabels=words, yticklabels=words, cbar_kws={"label": "attention", "shrink": 0.7})
    again = len(words) - len(words) // 2
    ax.axhline(again, color=COLOUR["random"], linewidth=0.8)
    ax.axvline(again, color=COLOUR["random"], linewidth=0.8)
    ax.tick_params(labelsize=9, length=0)
    ax.tick_params(axis="x", rotation=90)
    ax.set(xlabel="attends to", ylabel="token that is read")
    return Figure(
        ax,
        f"Attention of {head_name(rows)}. Each row is a token that is read, its columns the tokens it attends to; a "
        "row adds up to 1. BOS is the beginning of the text. Lines: where the tokens begin again.",
        "Heat map of attention from each token to each earlier one; a stripe in the lower half shows copying.")


def answer_bars(example: pd.DataFrame) -> Figure:
    """The probability of the right answer in each experiment, a bar for each head that is replaced."""
    rows = outcomes(example, "answer_probability")["value"]
    _, ax = plt.subplots(figsize=(5.6, 4.6))
    for place, experiment in enumerate(EXPERIMENTS):
        kinds = ("none",) if experiment[1] == "none" else tuple(reversed(KINDS))
        for i, kind in enumerate(kinds):
            value, at = rows[(*experiment, kind)], place + 0.36 * (i - (len(kinds) - 1) / 2)
            ax.barh(at, value, height=0.34, color=COLOUR[kind], label=HEAD.get(kind))
            ax.text(value + 0.01, at, f"{value:.3f}", va="center", fontsize=9)
    ax.set_yticks(range(len(EXPERIMENTS)), [words.replace(", ", ",\n") for words in EXPERIMENTS.values()], fontsize=10)
    ax.invert_yaxis()
    ax.set(xlabel="probability of the right answer", xlim=(0, 1.12), xticks=[0, 0.25, 0.5, 0.75, 1])
    legend([ax], ncols=2)
    return Figure(
        ax, "Probability of the right answer. Black: nothing replaced; orange and blue: one head's output replaced.",
        "Bars of the probability of the right answer under each experiment, side by side for the two heads.")
