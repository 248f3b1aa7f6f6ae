"""Figures of the lab's page: table in, a `Figure` out. Models on one sequential ramp, smallest lightest."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from icl_lib.figures.common import COLOUR, MARKER, SCORE_LABEL, Figure
from icl_lib.figures.scaling import size_axis


def loss_curves(curves: pd.DataFrame) -> Figure:
    """Training loss against step, a line per rung and seed; `curves` comes from the smallest rung to the largest."""
    figure, ax = plt.subplots(figsize=(7.2, 3.8))
    by_size = curves.groupby("rung", sort=False)
    for (rung, of_rung), colour in zip(by_size, sns.color_palette("crest", by_size.ngroups), strict=True):
        for i, (_, rows) in enumerate(of_rung.groupby("seed", sort=False)):
            ax.plot(rows["step"], rows["loss"], color=colour, linewidth=1.2, label=None if i else rung)
    ax.set(xlabel="optimiser step", ylabel="training loss (nats)", ylim=(0, None))
    ax.legend(fontsize=9)
    return Figure(
        ax,
        "Training loss of every model and seed, by optimiser step: mean over 100 steps of the weighted next-token "
        "loss. One line per seed; darker is larger. The steep fall is where induction heads form.",
        "Loss against optimiser step, one line per model and seed; larger models fall earlier and lower.")


def reached_by_size(reached: pd.DataFrame) -> Figure:
    """Accuracies, top prefix-matching score and top FV score with its threshold against size, a point per seed."""
    figure, axes = plt.subplots(1, 3, figsize=(12.4, 3.8))
    columns = ["0 shots", "1 shot", "10 shots", "10, shuffled"]
    for colour, column in zip(sns.color_palette("viridis", len(columns)), columns, strict=True):
        _seeds(axes[0], reached, column, colour, "o", ":" if "shuffled" in column else "-")
    axes[0].set(ylabel="accuracy (share of prompts)", ylim=(0, 1.02))
    _seeds(axes[1], reached, "prefix matching", COLOUR["induction"], MARKER["induction"], "-")
    axes[1].set(ylabel=SCORE_LABEL["induction_prefix_matching"], ylim=(0, 1.02))
    _seeds(axes[2], reached, "FV score", COLOUR["fv"], MARKER["fv"], "-")
    axes[2].scatter(reached["parameters"], reached["FV threshold"], marker="_", color=COLOUR["random"], s=120,
                    label="from here an FV head")
    axes[2].set(ylabel=SCORE_LABEL["fv"], ylim=(0, None))
    for ax in axes:
        size_axis(ax, reached["parameters"])
    for ax in axes[[0, 2]]:  # above, for points may be anywhere
        ax.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return Figure(
        axes,
        "What the models reached at their last checkpoint, a point per seed. Left: accuracy on tasks that share inputs "
        "and labels. Middle: highest prefix-matching score. Right: highest FV score; dashes: from here on "
        "a head is called an FV head.",
        "Three panels against number of parameters: accuracies, prefix-matching score and FV score, a point per seed.")


def _seeds(ax, reached: pd.DataFrame, column: str, colour, marker: str, line: str) -> None:
    """A point per model and a line through the means over seeds."""
    ax.scatter(reached["parameters"], reached[column], color=colour, marker=marker, s=26, alpha=0.8)
    means = reached.groupby("parameters")[column].mean()
    ax.plot(means.index, means.to_numpy(), color=colour, linestyle=line, linewidth=1.2, label=column)
