"""Figures along training: tables in, a `Figure` out. A checkpoint that is missing breaks the lines and is marked."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from icl_lib.ablation.effects import FEW_SHOT, METRIC_WORDS
from icl_lib.analysis import dynamics
from icl_lib.figures.common import COLOUR, LABEL, METRIC_LABEL, Figure, line_with_band, look, task_points
from icl_lib.kinds import DEFINED_BY, KINDS

SCORE_OF_TOP_HEADS = {"induction": "attention mass, top heads", "fv": "FV score, top heads"}
SCORE_OF_HEAD = {"induction": "prefix-matching score", "fv": "FV score"}  # by `kinds.DEFINED_BY`


def training_scores(scores: pd.DataFrame, steps: Sequence[int], fraction: float) -> Figure:
    """Figure 5: mean score of the top heads along training; selected at each of the `steps`, and by the last one."""
    curves = dynamics.top_score_curves(scores, fraction=fraction)
    figure, axes = plt.subplots(1, 2, figsize=(10.8, 4.2))
    for ax, selection in zip(axes, curves["selection"].unique(), strict=True):
        _both_scores(ax, curves[curves["selection"] == selection], steps)
        ax.set_title(selection, fontsize=11)
    return Figure(
        axes,
        f"Mean score of the top {fraction:.0%} of heads along training: attention mass (blue, left axis) and FV score "
        "(orange, right axis). Bands: lowest to highest of these heads.",
        "Two panels of score against training step, top heads selected at each checkpoint and at the end.")


def training_by_model(scores: Mapping[str, pd.DataFrame], steps: Mapping[str, list[int]], fraction: float) -> Figure:
    """Figure 21: as `training_scores`, a panel per model; top heads selected at each checkpoint."""
    rows = -(-len(scores) // 2)
    figure, axes = plt.subplots(rows, min(2, len(scores)), figsize=(6.8, 0.4 + 2.4 * rows), squeeze=False)
    panels, twins = axes.ravel()[:len(scores)], []
    plt.setp(axes.flat[len(scores):], visible=False)
    for ax, (model, table) in zip(panels, scores.items(), strict=True):
        curves = dynamics.top_score_curves(table, fraction=fraction).query("selection == 'selected at each checkpoint'")
        twins.append(twin := _both_scores(ax, curves, steps[model]))
        ax.set_title(model, fontsize=10, loc="left")
        for side in (ax, twin):
            side.set_ylabel(side.get_ylabel().split(",")[0], fontsize=10)
            side.tick_params(labelsize=9)
        ax.tick_params(axis="x", rotation=60)
        ax.set_xlabel(ax.get_xlabel() if ax in axes[-1] or rows == 1 else "")
    for sides in (panels, twins):  # one scale for all models
        low, high = np.transpose([side.get_ylim() for side in sides])
        plt.setp(sides, ylim=(low.min(), high.max()))
    return Figure(
        panels,
        f"Mean score of the top {fraction:.0%} of heads at each checkpoint, a panel per model. Blue, left: attention "
        "mass; orange, right: FV score. Bands: lowest to highest of these heads.",
        "A panel per model of both kinds' mean scores against training step.")


def _both_scores(ax, curves: pd.DataFrame, steps: Sequence[int]):
    """Both kinds' curves, FV on an axis of its own at the right, which is returned."""
    twin = ax.twinx()
    twin.spines["right"].set_visible(True)
    for side, kind in ((ax, "induction"), (twin, "fv")):
        rows = curves[curves["kind"] == kind].set_index("step")[["value", "low", "high"]]
        line_with_band(side, rows.reindex(sorted(steps)), **look(kind, label=None), markersize=4)
        side.tick_params(axis="y", colors=COLOUR[kind])
        side.set_ylabel(SCORE_OF_TOP_HEADS[kind], color=COLOUR[kind])
    _step_axis(ax, steps, curves["step"])
    return twin


def one_head(scores: pd.DataFrame, steps: Mapping[str, list[int]], head: tuple[str, int, int]) -> Figure:
    """Figure 1: both scores along training of one head (model, layer, head), that of `dynamics.teaser_head`."""
    model, *place = head
    own = scores[scores["model"] == model]
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.0), sharex=True)
    for ax, (kind, label) in zip(axes, SCORE_OF_HEAD.items(), strict=True):
        _paths(ax, own, DEFINED_BY[kind], [place], kind, steps[model], markersize=4)
        ax.set_ylabel(label)
        _step_axis(ax, steps[model], own["step"])
    return Figure(
        axes,
        f"As Figure 1: head L{place[0]}H{place[1]} of {model}, of the final FV heads of all seeds ({len(steps)}) the "
        "one with the highest prefix-matching score at a checkpoint before it was an FV head.",
        "Two panels, prefix-matching score and FV score of one head against training step.")


def head_trajectories(scores: pd.DataFrame, steps: Sequence[int], n_heads: int) -> Figure:
    """Figure 6: both scores of single final heads along training, fading with rank; rows are the two scores."""
    figure, axes = plt.subplots(2, 2, figsize=(9.2, 5.6), sharex=True, sharey="row")
    heads = dynamics.final_heads(scores, n=n_heads)
    for row, (score, label) in zip(axes, SCORE_OF_HEAD.items(), strict=True):
        for ax, (kind, own) in zip(row, heads.items(), strict=True):
            _paths(ax, scores, DEFINED_BY[score], own, kind, steps)
        row[0].set_ylabel(label)
    for (top, bottom), kind in zip(axes.T, heads, strict=True):
        top.set_title(f"final {LABEL[kind]}", fontsize=11)
        top.legend(fontsize=8, ncol=2)
        _step_axis(bottom, steps, scores["step"])
    return Figure(
        axes,
        f"Scores of the {n_heads} final induction heads (left) and FV heads (right) along training, fading with rank.",
        "Four panels of single heads' scores against training step.")


def trajectories_by_model(scores: Mapping[str, pd.DataFrame], steps: Mapping[str, list[int]], n_heads: int) -> Figure:
    """Figure 22: as `head_trajectories`, a row per model, a column per score, both kinds in one panel by colour."""
    figure, axes = plt.subplots(len(scores), 2, figsize=(6.8, 0.4 + 1.9 * len(scores)), squeeze=False)
    for row, (model, table) in zip(axes, scores.items(), strict=True):
        heads = dynamics.final_heads(table, n=n_heads)
        for ax, (score, label) in zip(row, SCORE_OF_HEAD.items(), strict=True):
            for kind, own in heads.items():
                _paths(ax, table, DEFINED_BY[score], own, kind, steps[model])
            _step_axis(ax, steps[model], table["step"])
            ax.set_title(f"{model}: {label}", fontsize=10, loc="left")
            ax.tick_params(labelsize=9)
            ax.tick_params(axis="x", rotation=60)
            ax.set_xlabel(ax.get_xlabel() if model == list(scores)[-1] else "")
    return Figure(
        axes,
        f"As Figure 22: scores of the {n_heads} final induction heads (blue) and FV heads (orange), fading with rank.",
        "A row per model of two panels of single heads' scores against training step, prefix matching and FV score.")


def _paths(ax, scores: pd.DataFrame, score: str, heads: list, kind: str, steps: Sequence[int], markersize: int = 3):
    """A score of single heads (layer, head) of a kind at each step, mean over tasks."""
    for rank, (layer, head) in enumerate(heads):
        own = scores[(scores["score"] == score) & (scores["layer"] == layer) & (scores["head"] == head)]
        ax.plot(own.groupby("step")["value"].mean().reindex(sorted(steps)), markersize=markersize,
                alpha=1 - 0.7 * rank / max(1, len(heads)), **look(kind, label=f"L{layer}H{head}"))


def metrics_along_training(accuracy: pd.DataFrame, steps: Sequence[int], seed: int) -> Figure:
    """What the unedited model does along training on one axis of steps: accuracy above, token-loss difference below."""
    figure, axes = plt.subplots(2, 1, figsize=(7.2, 5.6), sharex=True, height_ratios=[3, 2])
    accuracy = accuracy[accuracy["split"] != "unseen"]
    conditions = accuracy[accuracy["metric"] == FEW_SHOT].groupby(["labels", "n_shots"])
    for colour, ((labels, shots), rows) in zip(sns.color_palette("viridis", len(conditions)), conditions, strict=True):
        line_with_band(axes[0], task_points(rows, "step", seed).reindex(sorted(steps)), marker="o", markersize=5,
                       color=colour, linestyle="-" if labels == "clean" else ":", label=f"{shots} shots, {labels}")
    axes[0].set(ylabel="accuracy (share of prompts)", ylim=(0, 1.02))
    axes[0].legend(fontsize=9)
    losses = accuracy[accuracy["metric"] == "token_loss_difference"]
    line_with_band(axes[1], task_points(losses, "step", seed).reindex(sorted(steps)), marker="o", markersize=5,
                   color=COLOUR["none"])
    axes[1].set_ylabel(METRIC_LABEL["token_loss_difference"])
    _step_axis(axes[1], steps, accuracy["step"])
    return Figure(
        axes,
        "Above: accuracy of the answer's first token, means over all tasks seen in training; bands: 95 % bootstrap "
        "intervals over tasks. Below: loss around the 50th minus loss around the 500th token of documents; band: 1.96 "
        "standard errors over documents.",
        "Accuracy for each number of demonstrations and kind of labels, and token-loss difference, against training "
        "step.")


def effects_by_step(effects: pd.DataFrame, steps: Mapping[str, list[int]], fraction: float) -> Figure:
    """What ablating each kind costs along training: of one model with its intervals, of several with their mean."""
    every = sorted({step for of_model in steps.values() for step in of_model})
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.4), sharex=True)
    for ax, (metric, words) in zip(axes, METRIC_WORDS.items(), strict=True):
        for kind in KINDS:
            own = effects[(effects["metric"] == metric) & (effects["ranking"] == kind)]
            values = own.pivot(index="step", columns="model", values="value")
            if len(values.columns) > 1:
                ax.plot(values.reindex(every), color=COLOUR[kind], alpha=0.35, linewidth=0.8)
                ax.plot(values.mean(axis=1).reindex(every), **look(kind))
            else:
                rows = own.set_index("step")[["value", "low", "high"]].reindex(every)
                error = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
                ax.errorbar(rows.index, rows["value"], yerr=error, capsize=3, **look(kind))
        ax.axhline(0, linewidth=1, **look("random_layer_matched", marker=None, label=None))
        ax.set_ylabel(f"{words} lost\nbeyond random heads")
        _step_axis(ax, every, effects["step"])
    axes[0].legend(fontsize=9)
    return Figure(
        axes,
        f"Metric lost with {fraction:.0%} of heads replaced by their mean at all positions, beyond random heads of the "
        "same layers (dashed line at 0), by checkpoint. " + (
            "Thin lines: single seeds; thick: their mean." if len(set(effects["model"])) > 1 else
            "Bars: 95 % intervals over tasks and draws."),
        "Two panels against training step: accuracy lost and token-loss difference lost, a line per kind of head.")


def transitions_by_threshold(sweep: pd.DataFrame) -> Figure:
    """Heads that had both scores, by which came first, against the induction threshold (`transition_sweep`)."""
    figure, ax = plt.subplots(figsize=(6.4, 3.4))
    for kind, label in (("induction", "induction first"), ("fv", "FV first")):
        rows = sweep[sweep["order"] == f"{kind}_first"].set_index("threshold").sort_index()
        ax.plot(rows["heads"], **look(kind, label=label))
        ax.plot(rows["expected by chance"], color=COLOUR[kind], linestyle="--", label=f"{label}, by chance")
    ax.set(xlabel="induction threshold (prefix-matching score)", ylabel="heads", ylim=(0, None))
    ax.legend(fontsize=9)
    return Figure(
        ax,
        "A sensitivity analysis: heads that had both scores at some checkpoint, by which score came first, had "
        "induction heads another threshold. Dashed: mean over pairings of the two scores' curves at random over all "
        "heads.",
        "Number of heads against induction threshold: induction first, FV first, and what chance gives for each.")


def _step_axis(ax, steps: Sequence[int], present: pd.Series) -> None:
    """Steps on a log axis with a place for step 0, half of the first other one; those without a table are marked."""
    shown = [step for step in sorted(steps) if step == max(steps) or step & (step - 1) == 0]  # powers of two
    ax.set_xscale("symlog", base=2, linthresh=min(filter(None, steps), default=1), linscale=0.5)
    ax.set_xticks(shown, [f"{step:,}" for step in shown])
    ax.minorticks_off()
    ax.set_xlabel("optimiser step (log scale)")
    for step in sorted(set(steps) - set(present)):
        ax.axvline(step, color=COLOUR["random"], linestyle=":", linewidth=1)
        ax.annotate(f"step {step:,} missing", (step, 0.5), xycoords=("data", "axes fraction"), rotation=90,
                    ha="right", va="center", fontsize=8, color=COLOUR["random_layer_matched"])
