"""Figures of the causal test: table in, a `Figure` out. Arms one below the other, each with its sham in grey."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from icl_lib.figures.common import COLOUR, LABEL, MARKER, Figure
from lab.causal_statistics import at_full

ARM_LABEL = {
    "none": "untouched", "mask_outside": "mask outside prompts", "mask_everywhere": "mask everywhere",
    "no_copy_loss": "no loss on copies", "no_repeats": "no repeats", "clamp": "induction heads clamped",
    "early_repeats": "extra repeats early", "mask_outside_long": "mask outside prompts, longer",
}
MEASURES = {  # measure: axis label, colour, marker
    "prefix_matching": ("prefix-matching score,\nbest head", COLOUR["induction"], MARKER["induction"]),
    "fv_score": ("FV score, best head\n(rise in P(answer))", COLOUR["fv"], MARKER["fv"]),
    "accuracy": ("10-shot accuracy\n(share of prompts)", COLOUR["none"], "D"),
}
SHAM = {"color": COLOUR["random"], "marker": "v"}


def pairs(plan: dict[str, Any]) -> dict[str, str | None]:
    """Arm to its sham, the untouched arm first, in the order of the plan."""
    return {arm: entry.get("control") for arm, entry in plan["arms"].items() if not entry.get("sham")}


def outcomes_by_arm(last: pd.DataFrame, plan: dict[str, Any]) -> Figure:
    """Induction, FV score and accuracy at the last step, a point per seed and a bar at the mean; shams in grey.

    `last`: `causal_statistics.last_rows`. Grey ticks: the FV score's null, accuracy on shuffled labels.
    """
    arms = pairs(plan)
    figure, axes = plt.subplots(1, 3, figsize=(11.4, 0.62 * len(arms) + 1.1), sharey=True)
    for ax, (measure, (label, colour, marker)) in zip(axes, MEASURES.items(), strict=True):
        for place, (arm, control) in enumerate(arms.items()):
            for name, shift, look in ((arm, -0.16, {"color": colour, "marker": marker}), (control, 0.2, SHAM)):
                rows = at_full(last, name, plan["arms"][arm])
                y = np.full(len(rows), place + shift)
                ax.scatter(rows[measure], y, s=22, alpha=0.75, linewidths=0, **look)
                ax.plot([rows[measure].mean()] * 2, [place + shift - 0.14, place + shift + 0.14], color=look["color"])
                reference = {"fv_score": "fv_null", "accuracy": "accuracy_shuffled"}.get(measure)
                if reference and name == arm:
                    ax.scatter(rows[reference], y, s=60, marker="|", color=COLOUR["random_layer_matched"],
                               linewidths=1)
        ax.set(xlabel=label, xlim=(min(0, last["fv_null"].min()) - 0.005 if measure == "fv_score" else -0.03, None))
        ax.grid(axis="y", linewidth=0.4)
    axes[0].set_yticks(range(len(arms)), [ARM_LABEL.get(arm, arm) for arm in arms])
    axes[0].invert_yaxis()
    return Figure(
        axes,
        "At the last step, by arm: a point per seed, bars at means. Accuracy: trained tasks with shared labels. "
        "Grey triangles: sham. Grey ticks: the FV score's null (about the highest of "
        f"{plan['measures']['null_draws']} draws), accuracy on shuffled labels.",
        "Dot plot of induction, FV score and accuracy by arm")


def along_training(runs: pd.DataFrame, plan: dict[str, Any], plan_name: str) -> Figure:
    """The three measures against step, means over seeds with their range; a row per arm, its sham dashed in grey."""
    arms = [arm for arm in pairs(plan) if arm in set(runs["arm"])]
    figure, axes = plt.subplots(len(arms), 3, figsize=(10.4, 1.35 * len(arms) + 0.8), sharex=True, sharey="col",
                                squeeze=False)
    for row, arm in zip(axes, arms, strict=True):
        entry = plan["arms"][arm]
        for ax, (measure, (_, colour, marker)) in zip(row, MEASURES.items(), strict=True):
            for name, look in ((entry.get("control"), {"color": COLOUR["random"], "linestyle": "--"}),
                               (arm, {"color": colour, "marker": marker, "markersize": 4})):
                by_step = at_full(runs, name, entry).groupby("step")[measure]
                mean, low, high = by_step.mean(), by_step.min(), by_step.max()
                ax.plot(mean.index, mean, linewidth=1.6, **look)
                ax.fill_between(low.index, low, high, color=look["color"], alpha=0.15, linewidth=0)
        row[0].set_ylabel(ARM_LABEL.get(arm, arm).replace(" ", "\n", 1), rotation=0, ha="right", va="center")
    for ax, (label, _, _) in zip(axes[0], MEASURES.values(), strict=True):
        ax.set_title(label, fontsize=11)
    figure.supxlabel("optimiser step", fontsize=11)
    return Figure(
        axes,
        f"{plan_name[0].upper()}{plan_name[1:]}: means and ranges over seeds; dashed grey: sham.",
        "Prefix matching, FV score and accuracy against training step, masked arm and sham")


def dose_series(table: pd.DataFrame) -> Figure:
    """Last scores of the best heads and when they came against the share of repeats that stays; `lab.dose.dose_table`.

    A point per run, lines through means over seeds; of steps through medians, where most runs had the kind.
    """
    figure, axes = plt.subplots(1, 3, figsize=(11.4, 3.4))
    places = sorted(table["repeats"].unique())
    for ax, kind in zip(axes, ("prefix_matching", "fv_score"), strict=False):
        label, colour, marker = MEASURES[kind]
        ax.scatter(table["repeats"], table[kind], color=colour, marker=marker, s=26, alpha=0.75, linewidths=0)
        ax.plot(places, table.groupby("repeats")[kind].mean(), color=colour, linewidth=1.4)
        ax.set(ylabel=label, ylim=(0, None))
    for kind, shift in (("induction", -0.012), ("fv", 0.012)):
        came = table[f"{kind} came"].replace(np.inf, np.nan)
        axes[2].scatter(table["repeats"] + shift, came, alpha=0.75, linewidths=0, s=26, color=COLOUR[kind],
                        marker=MARKER[kind], label=LABEL[kind])
        middle = table.groupby("repeats")[f"{kind} came"].median().replace(np.inf, np.nan)
        axes[2].plot(np.array(places) + shift, middle, color=COLOUR[kind], linewidth=1.4)
    axes[2].set(ylabel="step with half of the last score")
    axes[2].set_yscale("log", base=2)
    axes[2].yaxis.set_major_formatter("{x:,.0f}")
    axes[2].legend(fontsize=9)
    for ax in axes:
        ax.set(xlabel="share of repeats that stays", xticks=places)
    return Figure(
        axes,
        "Best head at the last step, and first checkpoint with half of its last score; a point per seed, lines through "
        "means (of steps through medians). No point: the kind did not form.",
        "Three panels against the share of repeats: prefix matching, FV score, and the step at which each kind came")
