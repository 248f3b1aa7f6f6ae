"""Figures along training: table in, axes out. A checkpoint that is missing breaks the lines and is marked."""

from collections.abc import Sequence
from itertools import zip_longest

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from icl_lib.figures.common import COLOUR, KIND_OF_SCORE, LABEL, LINE, MARKER, METRIC_LABEL, task_points

SCORE_OF_TOP_HEADS = {"induction": "attention mass, top heads", "fv": "FV score, top heads"}


def training_scores(curves: pd.DataFrame, steps: Sequence[int]):
    """Figure 5: mean score of the top heads along training, induction left axis, FV right; one panel per selection.

    `curves`: columns selection, kind, step, value, low, high. `steps`: the checkpoints that there should be.
    """
    selections = list(curves["selection"].unique())
    figure, axes = plt.subplots(1, len(selections), figsize=(5.4 * len(selections), 4.2), squeeze=False)
    for ax, selection in zip(axes[0], selections, strict=True):
        _both_scores(ax, curves[curves["selection"] == selection], steps)
        ax.set_title(selection, fontsize=11)
    return axes[0]


def training_by_model(curves: pd.DataFrame, steps: dict[str, list[int]]):
    """Figure 21: as `training_scores`, a panel per model; `curves` with a column model, one selection."""
    rows = -(-len(steps) // 2)
    figure, axes = plt.subplots(rows, min(2, len(steps)), figsize=(6.8, 0.4 + 2.4 * rows), squeeze=False)
    for ax, model in zip_longest(axes.ravel(), steps):
        if model is None:
            ax.set_axis_off()
            continue
        twin = _both_scores(ax, curves[curves["model"] == model], steps[model])
        ax.set_title(model, fontsize=10, loc="left")
        for side in (ax, twin):
            side.set_ylabel(side.get_ylabel().split(",")[0], fontsize=10)
            side.tick_params(labelsize=9)
        ax.tick_params(axis="x", rotation=60)
    return axes.ravel()[:len(steps)]


def _both_scores(ax, curves: pd.DataFrame, steps: Sequence[int]):
    """Both kinds' curves, FV on an axis of its own at the right, which is returned."""
    twin = ax.twinx()
    twin.spines["right"].set_visible(True)
    for side, kind in ((ax, "induction"), (twin, "fv")):
        rows = _with_gaps(curves[curves["kind"] == kind][["step", "value", "low", "high"]], steps)
        x = _place(rows["step"])
        side.plot(x, rows["value"], color=COLOUR[kind], marker=MARKER[kind], markersize=4)
        side.fill_between(x, rows["low"], rows["high"], color=COLOUR[kind], alpha=0.15, linewidth=0)
        side.tick_params(axis="y", colors=COLOUR[kind])
        side.set_ylabel(SCORE_OF_TOP_HEADS[kind], color=COLOUR[kind])
    _step_axis(ax, steps, curves["step"])
    return twin


def scores_by_seed(curves: pd.DataFrame, steps: dict[str, list[int]]):
    """Mean score of the top heads along training, a line per model that differs by its seed; left induction, right FV.

    `curves`: columns model, kind, step, value. `steps`: model to the checkpoints that there should be.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), sharex=True)
    every = sorted({step for of_model in steps.values() for step in of_model})
    for ax, (kind, label) in zip(axes, SCORE_OF_TOP_HEADS.items(), strict=True):
        for line, model in zip(["-", "--", ":", "-."] * len(steps), sorted(steps), strict=False):
            own = curves[(curves["model"] == model) & (curves["kind"] == kind)]
            rows = _with_gaps(own[["step", "value"]], steps[model])
            ax.plot(_place(rows["step"]), rows["value"], color=COLOUR[kind], marker=MARKER[kind], markersize=4,
                    linestyle=line, label=model)
        _step_axis(ax, every, curves["step"])
        ax.set_ylabel(label)
        ax.legend(fontsize=9)
    return axes


def one_head(scores: pd.DataFrame, head: tuple[int, int], names: dict[str, str], steps: Sequence[int]):
    """Figure 1: both scores of one head along training; `names`: score to axis label, induction first."""
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.0), sharex=True)
    for ax, (score, label) in zip(axes, names.items(), strict=True):
        kind = KIND_OF_SCORE[score]
        rows = _with_gaps(_path(scores, score, head), steps)
        ax.plot(_place(rows["step"]), rows["value"], color=COLOUR[kind], marker=MARKER[kind], markersize=4)
        ax.set_ylabel(label)
        _step_axis(ax, steps, scores["step"])
    return axes


def head_trajectories(
    scores: pd.DataFrame, heads: dict[str, list[tuple[int, int]]], names: dict[str, str], steps: Sequence[int]
):
    """Figure 6: both scores of single heads along training, fading with final rank; rows are the two scores."""
    figure, axes = plt.subplots(2, 2, figsize=(9.2, 5.6), sharex=True, sharey="row")
    for row, (score, label) in zip(axes, names.items(), strict=True):
        for ax, kind in zip(row, heads, strict=True):
            _paths(ax, scores, score, heads[kind], kind, steps)
            if score == next(iter(names)):
                ax.set_title(f"final {LABEL[kind]}", fontsize=11)
                ax.legend(fontsize=8, ncol=2)
        row[0].set_ylabel(label)
    for ax in axes[1]:
        _step_axis(ax, steps, scores["step"])
    return axes


def trajectories_by_model(
    scores: dict[str, pd.DataFrame], heads: dict[str, dict[str, list[tuple[int, int]]]], names: dict[str, str],
    steps: dict[str, list[int]]
):
    """Figure 22: as `head_trajectories`, a row per model, a column per score, both kinds in one panel by colour."""
    figure, axes = plt.subplots(len(scores), 2, figsize=(6.8, 0.4 + 2.2 * len(scores)), squeeze=False)
    for row, (model, table) in zip(axes, scores.items(), strict=True):
        for ax, (score, label) in zip(row, names.items(), strict=True):
            for kind, own in heads[model].items():
                _paths(ax, table, score, own, kind, steps[model])
            _step_axis(ax, steps[model], table["step"])
            ax.set_title(f"{model}: {label}", fontsize=10, loc="left")
            ax.tick_params(labelsize=9)
            ax.tick_params(axis="x", rotation=60)
            ax.set_xlabel(ax.get_xlabel() if row is axes[-1] else "")
    return axes


def _paths(ax, scores: pd.DataFrame, score: str, heads: list[tuple[int, int]], kind: str, steps: Sequence[int]) -> None:
    for rank, head in enumerate(heads):
        rows = _with_gaps(_path(scores, score, head), steps)
        ax.plot(_place(rows["step"]), rows["value"], color=COLOUR[kind], marker=MARKER[kind], markersize=3,
                alpha=1 - 0.7 * rank / max(1, len(heads)), label=f"L{head[0]}H{head[1]}")


def metrics_along_training(accuracy: pd.DataFrame, steps: Sequence[int], seed: int):
    """What the unedited model does along training, on one axis of steps: accuracy above, token-loss difference below.

    `accuracy`: rows of that table, first-token accuracy of the tasks wanted and the token-loss difference. Bands:
    95 % bootstrap intervals over tasks, for the loss 1.96 standard errors over documents.
    """
    figure, axes = plt.subplots(2, 1, figsize=(7.2, 5.6), sharex=True, height_ratios=[3, 2])
    of_tasks = accuracy[accuracy["metric"] == "first_token_accuracy"]
    conditions = sorted(set(zip(of_tasks["labels"], of_tasks["n_shots"], strict=True)))
    for colour, (labels, shots) in zip(sns.color_palette("viridis", len(conditions)), conditions, strict=True):
        rows = of_tasks[(of_tasks["labels"] == labels) & (of_tasks["n_shots"] == shots)]
        _metric_line(axes[0], rows, steps, seed, color=colour, linestyle="-" if labels == "clean" else ":",
                     label=f"{shots} shots, {labels}")
    axes[0].set(ylabel="accuracy (share of prompts)", ylim=(0, 1.02))
    axes[0].legend(fontsize=9)
    losses = accuracy[accuracy["metric"] == "token_loss_difference"]
    _metric_line(axes[1], losses, steps, seed, color=COLOUR["none"], linestyle="-", label=None)
    axes[1].set_ylabel(METRIC_LABEL["token_loss_difference"])
    _step_axis(axes[1], steps, accuracy["step"])
    return axes


def effects_by_step(effects: pd.DataFrame, steps: Sequence[int]):
    """Effect of ablating each kind beyond layer-matched random heads along training, both metrics."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.4), sharex=True)
    for ax, metric in zip(axes, ("first_token_accuracy", "token_loss_difference"), strict=True):
        for kind in ("induction", "fv"):
            own = effects[(effects["metric"] == metric) & (effects["ranking"] == kind)]
            rows = _with_gaps(own[["step", "value", "low", "high"]], steps)
            error = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
            ax.errorbar(_place(rows["step"]), rows["value"], yerr=error, color=COLOUR[kind], marker=MARKER[kind],
                        capsize=3, label=LABEL[kind])
        ax.axhline(0, color=COLOUR["random_layer_matched"], linestyle=LINE["random_layer_matched"], linewidth=1)
        ax.set_ylabel(METRIC_LABEL[metric].split("\n")[0] + " lost\nbeyond random heads")
        if effects.empty:
            ax.text(0.5, 0.5, "no checkpoint was ablated,\nor none has heads of neither kind", ha="center",
                    transform=ax.transAxes)
        else:
            _step_axis(ax, steps, effects["step"])
    axes[0].legend(fontsize=9)
    return axes


def transitions_by_threshold(sweep: pd.DataFrame):
    """Heads that had both scores, by which came first, against the induction threshold; dashed: by chance.

    `sweep`: columns threshold, order, heads, expected by chance.
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.4))
    for order, kind, label in (("induction_first", "induction", "induction first"), ("fv_first", "fv", "FV first")):
        rows = sweep[sweep["order"] == order].sort_values("threshold")
        ax.plot(rows["threshold"], rows["heads"], color=COLOUR[kind], marker=MARKER[kind], label=label)
        ax.plot(rows["threshold"], rows["expected by chance"], color=COLOUR[kind], linestyle="--",
                label=f"{label}, by chance")
    ax.set(xlabel="induction threshold (prefix-matching score)", ylabel="heads", ylim=(0, None))
    ax.legend(fontsize=9)
    return ax


def _path(scores: pd.DataFrame, score: str, head: tuple[int, int]) -> pd.DataFrame:
    """One head's score at each step, mean over tasks: columns step, value."""
    rows = scores[(scores["score"] == score) & (scores["layer"] == head[0]) & (scores["head"] == head[1])]
    return rows.groupby("step")["value"].mean().reset_index()


def _metric_line(ax, rows: pd.DataFrame, steps: Sequence[int], seed: int, **style) -> None:
    points = pd.DataFrame(task_points(rows, "step", seed), columns=["step", "value", "low", "high"])
    points = _with_gaps(points, steps)
    x = _place(points["step"])
    ax.plot(x, points["value"], marker="o", markersize=5, **style)
    ax.fill_between(x, points["low"].astype(float), points["high"].astype(float), color=style["color"], alpha=0.15,
                    linewidth=0)


def _with_gaps(rows: pd.DataFrame, steps: Sequence[int]) -> pd.DataFrame:
    """The rows in order of steps, NaN at the steps that are missing, so that no line crosses them."""
    return rows.set_index("step").reindex(sorted(steps)).rename_axis("step").reset_index()


def _place(steps) -> np.ndarray:
    """Where steps stand on a log axis: step 0 half way below the first other one."""
    steps = np.asarray(steps, dtype=float)
    later = steps[steps > 0]
    return np.where(steps > 0, steps, later.min() / 2 if len(later) else 1.0)


def _step_axis(ax, steps: Sequence[int], present: pd.Series) -> None:
    """Steps on a log axis that also has a place for step 0, labels apart; those without a table marked as missing."""
    ticks = np.array(sorted(int(step) for step in steps))
    shown = [i for i, t in enumerate(ticks) if t in (0, ticks[-1]) or (t & (t - 1)) == 0]
    places, known = _place(ticks), set(present)
    ax.set_xscale("log", base=2)
    ax.set_xticks(places[shown], [f"{ticks[i]:,}" for i in shown])
    ax.minorticks_off()
    ax.set_xlabel("optimiser step (log scale)")
    for tick, place in zip(ticks, places, strict=True):
        if tick not in known:
            ax.axvline(place, color=COLOUR["random"], linestyle=":", linewidth=1)
            ax.annotate(f"step {tick:,} missing", (place, 0.5), xycoords=("data", "axes fraction"), rotation=90,
                        ha="right", va="center", fontsize=8, color=COLOUR["random_layer_matched"])
