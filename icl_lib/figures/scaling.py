"""Figures across models: tables in, a `Figure` out. Families as markers, a point per model or seed."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from icl_lib.ablation.effects import FEW_SHOT, METRIC_WORDS
from icl_lib.analysis.scaling import depth_table, percentiles
from icl_lib.figures.common import COLOUR, CONTROL_LABEL, LABEL, MARKER, SCORE_LABEL, Figure, look, note
from icl_lib.kinds import KINDS, RANKED_BY
from icl_lib.models.paper_models import family

FAMILY_MARKER = {"lab": "o", "pythia": "s", "gpt2": "^", "llama": "D", "qwen": "P", "smollm": "v", "gemma": "d",
                 "other": "X"}
_NEAR = 0.12  # of the axis: two labels nearer than this would overlap


def strength_by_size(strength: pd.DataFrame) -> list[Figure]:
    """Figure 12: highest head, mean of the top heads and mean of all against size, a figure per score."""
    return [Figure(
        _by_size(rows, "statistic", SCORE_LABEL[score]),
        "Score by size of the model. Bars: 95 % bootstrap intervals over scoring tasks (FV score only).",
        f"{SCORE_LABEL[score]} against number of parameters: highest, mean of the top heads, mean of all.")
        for score, rows in strength.groupby("score", sort=False)]


def percentiles_by_size(comparison: pd.DataFrame) -> Figure:
    """Figure 3 right: percentile of either kind's top heads in the other score against size."""
    return Figure(
        _by_size(percentiles(comparison), "series", "percentile of a kind's heads\nin the other score"),
        "Mean percentile rank of the top heads of a kind in the score of the other kind. Bars: lowest and highest "
        "head.",
        "Percentile against number of parameters, a line for each kind of head.")


def _by_size(table: pd.DataFrame, series: str, ylabel: str):
    """Statistics against size; `table`: columns model, parameters, `series` (of kinds or words), value, low, high."""
    figure, ax = plt.subplots(figsize=(6.4, 3.8))
    by_name = table.groupby(series, sort=False)
    for (name, rows), colour in zip(by_name, sns.color_palette("viridis", by_name.ngroups), strict=True):
        _points(ax, rows, COLOUR.get(name, colour), MARKER.get(name, "o"), LABEL.get(name, name))
    ax.set(ylabel=ylabel)
    size_axis(ax, table["parameters"])
    _families(ax, table["model"])
    ax.legend(fontsize=9)
    return ax


def scores_by_model(scores: pd.DataFrame, sizes: pd.DataFrame) -> Figure:
    """Boxes of all heads' scores, one per model, smallest first, coloured by size (the paper's box plots)."""
    order = [model for model in sizes.sort_values(["parameters", "model"])["model"] if model in set(scores["model"])]
    figure, axes = plt.subplots(2, 1, figsize=(max(6.4, 0.55 * len(order) + 2), 6), sharex=True)
    for ax, score in zip(axes, RANKED_BY.values(), strict=True):
        by_head = scores[scores["score"] == score].groupby(["model", "layer", "head"])["value"].mean()
        boxes = ax.boxplot([by_head[model].to_numpy() for model in order], patch_artist=True,
                           flierprops={"markersize": 4}, medianprops={"color": "black"})
        for box, colour in zip(boxes["boxes"], sns.color_palette("viridis", len(order)), strict=True):
            box.set(facecolor=colour, alpha=0.75)
        ax.set_ylabel(SCORE_LABEL[score])
    axes[-1].set_xticks(range(1, len(order) + 1), order, rotation=90, fontsize=9)
    return Figure(
        axes,
        "Scores of all heads, smallest model left. Boxes: quartiles; lines: 1.5 interquartile ranges; points: beyond.",
        "Two panels of boxes, induction score and FV score, one box per model.")


def effects_by_size(effects: pd.DataFrame, fraction: float) -> list[Figure]:
    """Figures 4 and 9 by size: what ablating each kind costs (`scaling.effects_by_size`); plain, then exclusion."""
    return [Figure(
        _effects_by_size(effects, excluded),
        f"Few-shot accuracy (top) and token-loss difference (bottom, nats) lost by ablating {fraction:.0%} of "
        f"heads{words}, against three controls. Bars: 95 % intervals over tasks and draws (loss: over "
        "documents and draws). Hollow: models that lack a kind of heads.",
        f"Six panels of metric lost{words} against number of parameters, induction heads and FV heads in each.")
        for excluded, words in ((False, ""), (True, " with the top heads of the other kind kept"))]


def _effects_by_size(effects: pd.DataFrame, excluded: bool):
    figure, axes = plt.subplots(2, 3, figsize=(11.4, 6.4), sharex=True, sharey="row", squeeze=False)
    for row, (metric, name) in zip(axes, METRIC_WORDS.items(), strict=True):
        for ax, (control, words) in zip(row, CONTROL_LABEL.items(), strict=True):
            own = effects.query("metric == @metric and excluded == @excluded and control == @control")
            for kind in KINDS:
                _points(ax, own[own["ranking"] == kind], COLOUR[kind], MARKER[kind], LABEL[kind])
            if own.empty:
                note(ax, "no such control")
            ax.axhline(0, linewidth=1, **look(control, marker=None, label=None))
            ax.set_title(words if metric == FEW_SHOT else "", fontsize=11)
        row[0].set_ylabel(f"{name}\ndrop under ablation")
    for ax in axes[1]:
        size_axis(ax, effects["parameters"])
    _families(axes[0, 0], effects["model"])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9)
    return axes


def overlap_by_size(overlaps: pd.DataFrame) -> Figure:
    """Figure 3 left: share of heads in both top sets (`scaling.overlap_table`) by size, a panel per share of heads."""
    fractions = sorted(overlaps["fraction"].unique())
    figure, axes = plt.subplots(1, len(fractions), figsize=(3.9 * len(fractions), 3.6), squeeze=False, sharey=True)
    for ax, fraction in zip(axes[0], fractions, strict=True):
        rows = overlaps[overlaps["fraction"] == fraction]
        _points(ax, rows.assign(low=rows["value"], high=rows["value"]), COLOUR["none"], "D", "heads in both top sets")
        ax.plot(rows.groupby("parameters")["expected"].mean(), **look("random", label="random sets of the same layers"))
        ax.set_title(f"top {fraction:.0%} of heads", fontsize=11)
        ax.set_ylim(-0.04, 1.04)
        size_axis(ax, overlaps["parameters"])
    axes[0, 0].set_ylabel("share of the top sets")
    _families(axes[0, -1], overlaps["model"])
    figure.legend(*axes[0, -1].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9)
    return Figure(
        axes,
        "Share of the top heads of one kind that is also in the other's top set; grey: random sets with as many heads "
        "in each layer.",
        "Panels of overlap of the two top sets against number of parameters, with the overlap by chance.")


def depth_by_model(scores: pd.DataFrame, sizes: pd.DataFrame, fraction: float) -> Figure:
    """Figures 2 and 19 for all models: mean layer of the top heads of each kind, as a share of the depth."""
    depths = depth_table(scores, sizes, fraction=fraction)
    models = list(dict.fromkeys(depths["model"]))
    figure, ax = plt.subplots(figsize=(6.4, 1.2 + 0.36 * len(models)))
    for offset, kind in ((-0.12, "induction"), (0.12, "fv")):
        rows = depths[depths["kind"] == kind].set_index("model").loc[models]
        ax.errorbar(rows["value"], np.arange(len(models)) + offset, xerr=rows["spread"], capsize=3,
                    **look(kind, linestyle="none"))
    ax.set_yticks(range(len(models)), models)
    ax.set(xlabel="layer of the top heads (0 first, 1 last)", xlim=(-0.05, 1.05))
    ax.invert_yaxis()
    ax.legend(fontsize=9)
    return Figure(
        ax, f"Mean layer of the top {fraction:.0%} of heads as a share of the depth. Bars: one standard deviation.",
        "Mean relative layer of induction and FV heads for each model, with standard deviations.")


def size_axis(ax, parameters: pd.Series) -> None:
    """Numbers of parameters on a log axis, a tick for each size; labels too near to the one before are a line lower."""
    sizes, labels, depth = sorted(parameters.unique()), [], 0
    for before, size in pairwise([0, *sizes]):
        depth = depth + 1 if size < before * (sizes[-1] / sizes[0]) ** _NEAR else 0
        labels.append("\n" * depth + (f"{size / 1000:,.0f}k" if size < 1e6 else f"{size / 1e6:,.1f}M"))
    ax.set(xscale="log", xlabel="parameters without embeddings")
    ax.set_xticks(sizes, labels, fontsize=10)
    ax.minorticks_off()


def _points(ax, rows: pd.DataFrame, colour, marker: str, label: str) -> None:
    """A point with its interval per model, a line through the means of each size; hollow and off it if not `both`."""
    rows = rows.sort_values("parameters").assign(family=rows["model"].map(family), both=rows.get("both", True))
    for (member, both), part in rows.groupby(["family", "both"]):
        error = [part["value"] - part["low"], part["high"] - part["value"]]
        ax.errorbar(part["parameters"], part["value"], yerr=error, color=colour, capsize=3, linestyle="none", alpha=0.8,
                    markerfacecolor=colour if both else "white",
                    marker=FAMILY_MARKER[member] if rows["family"].nunique() > 1 else marker)
    ax.plot(rows[rows["both"]].groupby("parameters")["value"].mean(), color=colour, label=label)


def _families(ax, models: pd.Series) -> None:
    """Labels for the legend that say which marker is which family, where there are several."""
    families = sorted(set(models.map(family)))
    for member in families if len(families) > 1 else ():
        ax.plot([], [], color=COLOUR["none"], marker=FAMILY_MARKER[member], linestyle="none", label=member)
