"""Figures across models: table in, axes out. Families as markers, a point per model or seed."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from icl_lib.figures.common import COLOUR, FAMILY_MARKER, LABEL, LINE, MARKER, METRIC_LABEL, SCORE_LABEL
from icl_lib.models.paper_models import family

CONTROL_TITLE = {"none": "against no ablation", "random": "beyond random heads",
                 "random_layer_matched": "beyond random heads\nof the same layers"}


def by_size(table: pd.DataFrame, y: str, series: str, ylabel: str, colours: dict[str, str] | None = None):
    """A statistic against non-embedding parameters, log axis; `table`: columns model, parameters, `series`, `y`, low,
    high.

    A point with its interval per model; the line goes through the means of models of one size (seeds).
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.8))
    names = list(table[series].unique())
    colours = colours or dict(zip(names, sns.color_palette("viridis", len(names)), strict=True))
    for name in names:
        _points(ax, table[table[series] == name], y, colours[name], MARKER.get(name, "o"), LABEL.get(name, name))
    ax.set(ylabel=ylabel)
    size_axis(ax, table["parameters"])
    _legend(ax, table["model"])
    return ax


def scores_by_model(scores: pd.DataFrame, sizes: pd.DataFrame):
    """Boxes of all heads' scores, one per model, smallest first, coloured by size (the paper's box plots)."""
    order = [model for model in sizes.sort_values(["parameters", "model"])["model"] if model in set(scores["model"])]
    figure, axes = plt.subplots(2, 1, figsize=(max(6.4, 0.55 * len(order) + 2), 6), sharex=True)
    ramp = sns.color_palette("viridis", len(order))
    for ax, score in zip(axes, ("induction_attention_mass", "fv"), strict=True):
        by_head = scores[scores["score"] == score].groupby(["model", "layer", "head"])["value"].mean()
        values = [by_head[model].to_numpy() for model in order]
        boxes = ax.boxplot(values, patch_artist=True, flierprops={"markersize": 4})
        for box, median, colour in zip(boxes["boxes"], boxes["medians"], ramp, strict=True):
            box.set(facecolor=colour, alpha=0.75)
            median.set(color="black")
        ax.set_ylabel(SCORE_LABEL[score])
    axes[-1].set_xticks(range(1, len(order) + 1), order, rotation=90, fontsize=9)
    return axes


def effects_by_size(effects: pd.DataFrame, excluded: bool = False):
    """Figures 4 and 9 by size: what ablating each kind costs, against each control side by side.

    Rows are the two metrics, columns the controls; plain rankings, or those with exclusion. `effects`: columns model,
    parameters, metric, ranking, control, excluded (whether), value, low, high.
    """
    figure, axes = plt.subplots(2, 3, figsize=(11.4, 6.4), sharex=True, sharey="row", squeeze=False)
    for row, metric in zip(axes, ("first_token_accuracy", "token_loss_difference"), strict=True):
        for ax, (control, words) in zip(row, CONTROL_TITLE.items(), strict=True):
            own = effects[(effects["metric"] == metric) & (effects["excluded"] == excluded)
                          & (effects["control"] == control)]
            for kind in ("induction", "fv"):
                _points(ax, own[own["ranking"] == kind], "value", COLOUR[kind], MARKER[kind], LABEL[kind])
            if own.empty:
                ax.text(0.5, 0.5, "no such control", transform=ax.transAxes, ha="center", fontsize=10)
            ax.axhline(0, color=COLOUR[control], linestyle=LINE[control], linewidth=1)
            ax.set_title(words if metric == "first_token_accuracy" else "", fontsize=11)
        row[0].set_ylabel(METRIC_LABEL[metric].split("\n")[0] + "\ndrop under ablation")
    for ax in axes[1]:
        size_axis(ax, effects["parameters"])
    _families(axes[0, 0], effects["model"])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9)
    return axes


def overlap_by_size(overlaps: pd.DataFrame):
    """Figure 3 left: share of heads in both top sets by size, a panel per share of heads taken, with chance.

    `overlaps`: columns model, parameters, fraction, value, expected.
    """
    fractions = sorted(overlaps["fraction"].unique())
    figure, axes = plt.subplots(1, len(fractions), figsize=(3.9 * len(fractions), 3.6), squeeze=False, sharey=True)
    for ax, fraction in zip(axes[0], fractions, strict=True):
        rows = overlaps[overlaps["fraction"] == fraction]
        same = rows.assign(low=rows["value"], high=rows["value"])
        _points(ax, same, "value", COLOUR["none"], "D", "heads in both top sets")
        expected = rows.groupby("parameters")["expected"].mean()
        ax.plot(expected.index, expected.to_numpy(), color=COLOUR["random"], linestyle=":", marker="v",
                label="two random sets")
        ax.set_title(f"top {fraction:.0%} of heads", fontsize=11)
        ax.set_ylim(-0.04, 1.04)
        size_axis(ax, overlaps["parameters"])
        ax.tick_params(axis="x", rotation=60)
    axes[0, 0].set_ylabel("share of the top sets")
    _legend(axes[0, -1], overlaps["model"])
    return axes[0]


def depth_by_model(depths: pd.DataFrame):
    """Figures 2 and 19 for all models: mean layer of the top heads of each kind, as a share of the depth; bars: one SD.

    `depths`: columns model, kind, value, spread, by size.
    """
    models = list(dict.fromkeys(depths["model"]))
    figure, ax = plt.subplots(figsize=(6.4, 1.2 + 0.36 * len(models)))
    for offset, kind in ((-0.12, "induction"), (0.12, "fv")):
        rows = depths[depths["kind"] == kind].set_index("model").loc[models]
        ax.errorbar(rows["value"], np.arange(len(models)) + offset, xerr=rows["spread"], color=COLOUR[kind],
                    marker=MARKER[kind], linestyle="none", capsize=3, label=LABEL[kind])
    ax.set_yticks(range(len(models)), models)
    ax.set(xlabel="layer of the top heads (0 first, 1 last)", xlim=(-0.05, 1.05))
    ax.invert_yaxis()
    ax.legend(fontsize=9)
    return ax


def size_axis(ax, parameters: pd.Series) -> None:
    """Numbers of parameters on a log axis, a tick for each model."""
    sizes = sorted(parameters.unique())
    labels = [f"{size / 1000:,.0f}k" if size < 1e6 else f"{size / 1e6:,.1f}M" for size in sizes]
    ax.set(xscale="log", xlabel="parameters without embeddings")
    ax.set_xticks(sizes, labels, fontsize=10)
    ax.minorticks_off()


def _points(ax, rows: pd.DataFrame, y: str, colour, marker: str, label: str) -> None:
    """A point with its interval per model, and a line through the means of each size.

    Hollow where a column `both` says that the model lacks a kind of heads; the line leaves these out.
    """
    rows = rows.sort_values("parameters")
    rows = rows.assign(family=rows["model"].map(family), both=rows["both"] if "both" in rows else True)
    for (member, both), part in rows.groupby(["family", "both"]):
        error = [part[y] - part["low"], part["high"] - part[y]]
        ax.errorbar(part["parameters"], part[y], yerr=error, color=colour, capsize=3, linestyle="none", alpha=0.8,
                    markerfacecolor=colour if both else "white",
                    marker=FAMILY_MARKER[member] if rows["family"].nunique() > 1 else marker)
    means = rows[rows["both"]].groupby("parameters")[y].mean()
    ax.plot(means.index, means.to_numpy(), color=colour, label=label)


def _legend(ax, models: pd.Series) -> None:
    _families(ax, models)
    ax.legend(fontsize=9)


def _families(ax, models: pd.Series) -> None:
    families = sorted(set(models.map(family)))
    for member in families if len(families) > 1 else ():
        ax.plot([], [], color=COLOUR["none"], marker=FAMILY_MARKER[member], linestyle="none", label=member)
