"""Figures of the task-execution page: table in, a `Figure` with its caption out."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from icl_lib.analysis.reading import draws_words, third
from icl_lib.figures.common import COLOUR, GREY, MARKER, Figure, line_over_tasks, look, task_points

PROMPTS_LABEL = {"zero_shot": "no demonstrations", "shuffled": "shuffled labels"}
TICKS = {"none": "nothing\nadded", "fv": "FV\nheads", "induction": "induction\nheads",
         "random_layer_matched": "random,\nlayer-matched", "random": "random\nheads"}
# Preset to the items shown, the title of its column and what the caption says of it.
PRESETS = {"task": ("all", "each task's own vector", "own vectors: {draws}, all items"),
           "released": ("answered", "released code: one vector",
                        "one vector: one draw, items answered after clean demonstrations")}


def execution_points(executions: pd.DataFrame, fraction: float, seed: int) -> Figure:
    """Figure 14 for one model: accuracy with each kind's vector added at a third of the layers, a column per preset.

    `fraction`: the share of heads in a vector. Where the model answered nothing a column of "answered" items is empty.
    """
    presets, layer = [name for name in PRESETS if name in set(executions["preset"])], third(executions)
    figure, axes = plt.subplots(2, len(presets), figsize=(5.2 * len(presets), 5.6), squeeze=False, sharex=True,
                                sharey=True)
    for column, preset in zip(axes.T, presets, strict=True):
        items, title, _ = PRESETS[preset]
        rows = executions[(executions["preset"] == preset) & (executions["items"] == items)]
        clean = rows[rows["prompts"] == "clean"].groupby("task")["value"].mean().mean()
        for ax, prompts in zip(column, PROMPTS_LABEL, strict=True):
            at_layer = rows[(rows["prompts"] == prompts) & rows["layer"].isin((-1, layer))]
            points = task_points(at_layer, "heads", seed)  # none where the model answered nothing when clean
            for kind, value, low, high in points.reindex(TICKS).dropna(subset="value").itertuples():
                ax.errorbar(list(TICKS).index(kind), value, yerr=[[value - low], [high - value]], capsize=4,
                            markersize=8, **look(kind, marker=MARKER[kind] or "D", linestyle="none", label=None))
            ax.axhline(clean, color=COLOUR["none"], linestyle=":", linewidth=1.2)
            ax.set(xlim=(-0.5, len(TICKS) - 0.5), ylim=(0, 1.02))
        column[0].set_title(title, fontsize=11)
        column[-1].set_xticks(range(len(TICKS)), TICKS.values(), fontsize=9)
    for ax, words in zip(axes[:, 0], PROMPTS_LABEL.values(), strict=True):
        ax.set_ylabel(f"accuracy (first token)\n{words}")
    return Figure(
        axes,
        f"Accuracy with a vector added at the output of layer {layer}, made of {fraction:.0%} of heads (counts rounded "
        f"up); {'; '.join(PRESETS[preset][2] for preset in presets).format(draws=draws_words(executions))}. "
        "Bars: 95 % bootstrap intervals over tasks. Dotted: clean demonstrations.",
        "Points with intervals of accuracy by kind of heads; top no demonstrations, bottom shuffled labels.")


def execution_by_layer(executions: pd.DataFrame, seed: int) -> Figure:
    """Accuracy against the layer that each task's own vector is added at, left no demonstrations, right shuffled."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8), sharey=True, sharex=True)
    own = executions[(executions["preset"] == "task") & (executions["items"] == "all")]
    for ax, (prompts, words) in zip(axes, PROMPTS_LABEL.items(), strict=True):
        rows = own[own["prompts"] == prompts]
        ax.axhline(rows[rows["heads"] == "none"]["value"].mean(), color=COLOUR["none"], linewidth=1,
                   label="nothing added")
        for kind in ("random", "random_layer_matched", "induction", "fv"):
            line_over_tasks(ax, rows[rows["heads"] == kind], "layer", seed, **look(kind))
        ax.axvline(third(executions), color=GREY, linewidth=0.8, zorder=0)
        ax.set(xlabel="layer whose output the vector is added to", title=words, ylim=(0, 1.02))
        ax.set_xticks(np.sort(own.query("layer >= 0")["layer"].unique()))
    axes[0].set_ylabel("accuracy (first token)")
    axes[1].legend(fontsize=9)
    return Figure(
        axes,
        "Accuracy with each task's own vector by the layer that it is added at; grey: a third of the layers. Random "
        f"heads: {draws_words(executions)}. Bands: 95 % bootstrap intervals over tasks.",
        "Accuracy against layer, a line per kind of heads; left no demonstrations, right shuffled labels.")
