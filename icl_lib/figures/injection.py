"""Figures of the task-execution page: table in, axes out."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from icl_lib.figures.common import COLOUR, LABEL, LINE, MARKER, line_over_tasks
from icl_lib.stats.intervals import bootstrap_mean

PROMPTS_LABEL = {"zero_shot": "no demonstrations", "shuffled": "shuffled labels", "clean": "clean demonstrations"}
KINDS = ("fv", "induction", "random_layer_matched", "random")


TICKS = {
    "none": "nothing\nadded", "fv": "FV\nheads", "induction": "induction\nheads",
    "random_layer_matched": "random,\nlayer-matched", "random": "random\nheads",
}


def execution_points(executions: pd.DataFrame, layer: int, shown: dict[str, tuple[str, str]], seed: int):
    """Figure 14 for one model: accuracy with each kind's vector added at one layer, a column per preset.

    `shown`: preset to the items shown and a title. Bars: 95 % bootstrap intervals over tasks; random kinds are means
    over draws. A column of "answered" items stays empty where the model answered none.
    """
    figure, axes = plt.subplots(2, len(shown), figsize=(5.2 * len(shown), 5.6), squeeze=False, sharex=True, sharey=True)
    for column, (preset, (items, title)) in zip(axes.T, shown.items(), strict=True):
        rows = executions[(executions["preset"] == preset) & (executions["items"] == items)]
        clean = rows[rows["prompts"] == "clean"].groupby("task")["value"].mean().mean()
        for ax, prompts in zip(column, ("zero_shot", "shuffled"), strict=True):
            own = rows[rows["prompts"] == prompts]
            for place, kind in enumerate(("none", *KINDS)):
                at = own[(own["heads"] == kind) & (own["layer"] == (-1 if kind == "none" else layer))]
                by_task = at.groupby("task")["value"].mean()
                if by_task.empty:  # the model answered nothing after clean demonstrations
                    continue
                names = by_task.index.to_numpy(str)
                value, low, high = bootstrap_mean(by_task.to_numpy(), names, seed=seed, over="tasks")
                ax.errorbar(place, value, yerr=[[value - low], [high - value]], color=COLOUR[kind],
                            marker=MARKER[kind] or "D", capsize=4, markersize=8, linestyle="none")
            ax.axhline(clean, color=COLOUR["none"], linestyle=":", linewidth=1.2)
            ax.set_ylim(0, 1.02)
            ax.set_xlim(-0.5, len(KINDS) + 0.5)
            if ax is column[0]:
                ax.set_title(title, fontsize=11)
        column[-1].set_xticks(range(len(TICKS)), TICKS.values(), fontsize=9)
    for ax, prompts in zip(axes[:, 0], ("zero_shot", "shuffled"), strict=True):
        ax.set_ylabel(f"accuracy (first token)\n{PROMPTS_LABEL[prompts]}")
    return axes


def execution_by_layer(executions: pd.DataFrame, chosen_layer: int, seed: int):
    """Accuracy against the layer that the vector is added at, left without demonstrations, right shuffled labels."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8), sharey=True, sharex=True)
    for ax, prompts in zip(axes, ("zero_shot", "shuffled"), strict=True):
        rows = executions[executions["prompts"] == prompts]
        ax.axhline(rows[rows["heads"] == "none"]["value"].mean(), color=COLOUR["none"], linewidth=1,
                   label="nothing added")
        for kind in reversed(KINDS):
            line_over_tasks(ax, rows[rows["heads"] == kind], "layer", COLOUR[kind], MARKER[kind], LINE[kind],
                            LABEL[kind], seed)
        ax.axvline(chosen_layer, color="#BBBBBB", linewidth=0.8, zorder=0)
        ax.set(xlabel="layer whose output the vector is added to", title=PROMPTS_LABEL[prompts], ylim=(0, 1.02))
        ax.set_xticks(np.sort(executions.query("layer >= 0")["layer"].unique()))
    axes[0].set_ylabel("accuracy (first token)")
    axes[1].legend(fontsize=9)
    return axes
