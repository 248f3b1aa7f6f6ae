"""Figures of the patterns page and of the page on two papers: tables of `icl_lib.analysis.two_papers` in."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from icl_lib.analysis.two_papers import TASK_SETS
from icl_lib.figures.common import COLOUR, GREY, LABEL, MARKER, Figure, legend, look, note
from icl_lib.kinds import KINDS


def pattern_accuracy(patterns: pd.DataFrame, chance: dict[str, float], able: set[str]) -> Figure:
    """Accuracy of the clean model on each pattern by number of demonstrations; grey: chance; hollow: not above it."""
    rows = patterns[(patterns["ranking"] == "none") & (patterns["task_set"] == "patterns")]
    tasks, shots = sorted(chance), sorted(rows["n_shots"].unique())
    figure, ax = plt.subplots(figsize=(7.2, 0.9 + 0.42 * len(tasks)))
    shades = dict(zip(shots, np.linspace(0.35, 1, len(shots)), strict=True))
    for row in rows.itertuples():
        y = tasks.index(row.task) + 0.22 * (shots.index(row.n_shots) - (len(shots) - 1) / 2)
        ax.errorbar(row.value, y, xerr=1.96 * row.standard_error, color=COLOUR["none"], alpha=shades[row.n_shots],
                    marker="o", markersize=6, capsize=2.5, linestyle="none",
                    markerfacecolor=COLOUR["none"] if row.task in able else "white",
                    label=f"{row.n_shots} demonstrations" if row.task == tasks[0] else None)
    for y, task in enumerate(tasks):
        ax.plot([chance[task]] * 2, [y - 0.4, y + 0.4], color=GREY, linewidth=1.2)
    ax.set(xlim=(0, 1.02), ylim=(len(tasks) - 0.5, -0.5), xlabel="accuracy, by the likelier label")
    ax.set_yticks(range(len(tasks)), tasks)
    figure.legend(loc="outside upper center", ncols=len(shots), fontsize=10)
    return Figure(
        ax,
        "Accuracy on each pattern without ablation, of the likelier label, with 1.96 standard errors. Grey: chance. "
        "Hollow: patterns that the model does not answer above chance.",
        "Points of accuracy by pattern and number of demonstrations, beside a line at chance.")


def protocol_steps(walks: dict[str, pd.DataFrame], names: list[str]) -> Figure:
    """What accuracy loses at each step (`walk`), a panel per model, steps downwards; bars are 95 % intervals."""
    n_columns = min(len(walks), 2)
    n_rows = -(-len(walks) // n_columns)
    figure, axes = plt.subplots(n_rows, n_columns, squeeze=False, sharey=True, sharex=True,
                                figsize=(3.2 + 3.0 * n_columns, n_rows * (0.7 + 0.6 * len(names))))
    plt.setp(axes.flat[len(walks):], visible=False)
    for ax, (model, walk) in zip(axes.flat, walks.items(), strict=False):
        _both_kinds(ax, walk, "step", names)
        for y in sorted(set(range(len(names))) - {names.index(step) for step in walk["step"]}):
            ax.text(0.5, y, "not measured", transform=ax.get_yaxis_transform(), ha="center", va="center", fontsize=9,
                    color=COLOUR["random"])
        ax.set_title(model, fontsize=11)
        ax.tick_params(labelsize=10)
    low, high = axes[0, 0].get_xlim()
    axes[0, 0].set_xlim(max(low, -1), min(high, 1))
    figure.supxlabel("accuracy lost", fontsize=10)
    axes[0, 0].set_yticks(range(len(names)), names, fontsize=10)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    legend(axes.flat, ncols=len(KINDS))
    return Figure(
        axes,
        "Accuracy lost when the top heads of a kind are ablated. On patterns by the likelier label, on the paper's "
        "tasks by the answer's first token. Bars: 95 % intervals over tasks and draws, cut off beyond all accuracy.",
        "A panel per model: points with intervals of accuracy lost by step, FV heads and induction heads in each row.")


def benefit_of_demonstrations(benefits: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy with demonstrations minus without, under ablations: a row per model, a column per task set."""
    shown = {name: words for name, words in TASK_SETS.items()
             if any(name in set(table["task_set"]) for table in benefits.values())}
    fractions = sorted({f for table in benefits.values() for f in table["fraction"] if f})
    lines = [("none", 0.0), *((kind, f) for f in fractions for kind in ("random_layer_matched", "fv", "induction"))]
    _, axes = plt.subplots(len(benefits), len(shown), squeeze=False, sharex="col", sharey=True,
                           figsize=(2.4 + 3.2 * len(shown), 0.4 + 2.5 * len(benefits)))
    for row, (model, table) in zip(axes, benefits.items(), strict=True):
        for ax, task_set in zip(row, shown, strict=True):
            own = table[table["task_set"] == task_set].set_index(["ranking", "fraction"])
            for y, line in enumerate(lines):
                if line in own.index:
                    _intervals(ax, own.loc[[line]], [y], line[0])
            if own.empty:
                note(ax, "no pattern that\nthe model can do")
            ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
            ax.set_title(model, fontsize=11)
        ax.tick_params(labelsize=10)
    for ax, words in zip(axes[-1], shown.values(), strict=True):
        ax.set_xlabel(f"accuracy gained, {words}", fontsize=10)
    words = [LABEL[kind].removesuffix(" heads") + (f", {f:.0%}" if f else "") for kind, f in lines]
    axes[0, 0].set_yticks(range(len(lines)), words, fontsize=10)
    axes[0, 0].set_ylim(len(lines) - 0.5, -0.5)
    return Figure(
        axes,
        "What demonstrations add to accuracy, without ablation and with heads ablated; induction heads by prefix "
        "matching, random heads of their layers. Bars: 95 % bootstrap intervals over tasks.",
        "Points with intervals of accuracy gained by ablation; a row of panels per model, a column per task set.")


def pattern_effects(effects: pd.DataFrame, fraction: float, n_shots: int) -> Figure:
    """What accuracy loses on each pattern beyond random heads of the same layers, with 95 % intervals."""
    tasks = sorted(effects["task"].unique())
    _, ax = plt.subplots(figsize=(7.2, 1.1 + 0.6 * len(tasks)))
    _both_kinds(ax, effects, "task", tasks)
    ax.set(xlabel="accuracy lost beyond random heads of the same layers", ylim=(len(tasks) - 0.5, -0.5))
    ax.set_yticks(range(len(tasks)), [task or "mean over patterns" for task in tasks])
    legend([ax], ncols=len(KINDS))
    return Figure(
        ax,
        f"{fraction:.0%} of heads replaced by their mean at all positions, induction heads by prefix matching, "
        f"{n_shots} demonstrations. Bars: 95 % intervals over prompts and draws.",
        "Points with intervals of accuracy lost, a row per pattern, FV heads and induction heads in each.")


def _both_kinds(ax, rows: pd.DataFrame, column: str, places: list[str]) -> None:
    """Points with intervals of both kinds beside each other, at the place of what is in the column; a line at 0."""
    for kind, offset in zip(KINDS, (0.15, -0.15), strict=True):
        own = rows[rows["ranking"] == kind]
        _intervals(ax, own, [places.index(place) + offset for place in own[column]], kind)
    ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)


def _intervals(ax, rows: pd.DataFrame, places: list[float | int], kind: str) -> None:
    ax.errorbar(rows["value"], places, xerr=[rows["value"] - rows["low"], rows["high"] - rows["value"]], markersize=6,
                capsize=2.5, **look(kind, marker=MARKER[kind] or "D", linestyle="none"))
