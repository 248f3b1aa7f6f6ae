"""Figures of the scores of all heads and of what a model can do: tables in, a `Figure` with its caption out."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, Markdown
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from icl_lib.analysis.scoring_numbers import fv_by_type, trained
from icl_lib.figures.common import COLOUR, GREY, LABEL, MARKER, SCORE_LABEL, Figure, legend, line_over_tasks
from icl_lib.kinds import RANKED_BY, mean_scores, top_sets

# Maps of a score go to its kind's colour, negative FV scores to one of their own. The book's script has the same.
UNSIGNED = LinearSegmentedColormap.from_list("unsigned", ["#F4F4F4", COLOUR["induction"]])
SIGNED = LinearSegmentedColormap.from_list("signed", ["#5E3C99", "#F4F4F4", COLOUR["fv"]])
COLUMNS = {"induction_attention_mass": "attention mass", "induction_prefix_matching": "prefix matching",
           "previous_token": "previous token", "fv": "FV score"}


def accuracy_by_shots(accuracy: pd.DataFrame, tasks: pd.DataFrame, seed: int) -> Figure:
    """Accuracy against shots, one line per group of trained tasks, clean and shuffled labels."""
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.8), sharey=True, sharex=True)
    by_group = trained(accuracy, tasks).groupby("group", sort=False)
    for ax, labels in zip(axes, ("clean", "shuffled"), strict=True):
        for (group, rows), colour in zip(by_group, sns.color_palette("viridis", by_group.ngroups + 1), strict=False):
            line_over_tasks(ax, rows[rows["labels"] == labels], "n_shots", seed, color=colour, marker="o",
                            linestyle="-", label=group)
        ax.set(xlabel="demonstrations (shots)", ylabel="accuracy (share of prompts)", ylim=(0, 1.02),
               title=f"{labels} labels")
    axes[1].legend(fontsize=9)
    return Figure(
        axes,
        "Accuracy of the answer's first token by number of demonstrations. Lines: means over tasks; bands: 95 % "
        "bootstrap intervals over tasks.",
        "Two panels of accuracy against shots, clean labels left and shuffled labels right, a line per group of tasks.")


def head_table(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per head: its scores (mean over tasks) and its rank by the two that rank heads, 1 the highest."""
    layers, heads = np.indices(mean_scores(scores, "fv").shape).reshape(2, -1)
    table = pd.DataFrame({"layer": layers, "head": heads} | {
        name: mean_scores(scores, score).ravel() for score, name in COLUMNS.items()})
    for score in RANKED_BY.values():
        table[f"rank by {COLUMNS[score]}"] = table[COLUMNS[score]].rank(ascending=False, method="first").astype(int)
    return table


def head_map(scores: pd.DataFrame) -> HTML:
    """The map of one model's heads and a folded table of them, of which the book's script makes a map that tells a
    head's scores and ranks."""
    table = head_table(scores)
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8))
    for ax, (score, colours, lowest) in zip(axes, ((RANKED_BY["induction"], UNSIGNED, 0), ("fv", SIGNED, -1)),
                                            strict=True):
        values = mean_scores(scores, score)
        top = np.abs(values).max()
        sns.heatmap(values, ax=ax, cmap=colours, vmin=lowest * top, vmax=top, cbar_kws={"label": SCORE_LABEL[score]},
                    linewidths=0.5, linecolor="white")
        ax.invert_yaxis()
        ax.set(xlabel="head", ylabel="layer")
    picture = Figure(
        axes,
        "Scores of all heads; layers upward. Left: attention mass, 0 to about 0.5. Right: FV score, signed, mean over "
        "the scoring tasks. In the book, point at a head for its scores and ranks.",
        "Two heat maps of layer against head, one for each score.")
    return HTML(
        f'<div class="head-map">{picture._repr_html_()}</div>'
        f'<details><summary>All {len(table)} heads</summary><div class="wide">'
        f"{table.to_html(index=False, classes='sortable', border=0, float_format='{:.4f}'.format)}</div></details>")


def scores_by_layer(scores: pd.DataFrame, fraction: float) -> Figure:
    """Figure 2: every head at its layer; the top heads filled; a dashed line at the score-weighted mean layer."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.0))
    for ax, kind in zip(axes, RANKED_BY, strict=True):
        _at_layers(ax, scores, kind, fraction)
        ax.legend(fontsize=9)
    return Figure(
        axes,
        f"Every head at its layer. Filled: the top {fraction:.0%} by that score (counts rounded up). Dashed: mean "
        "layer of these, weighted by score.",
        "Two scatter plots of score against layer; top heads are filled, a dashed line marks their mean layer.")


def layers_by_model(models: Mapping[str, pd.DataFrame], fraction: float) -> Figure:
    """Figure 19: as `scores_by_layer`, a row of panels per model; `models`: the table `scores` by name."""
    figure, axes = plt.subplots(len(models), 2, figsize=(6.4, 0.6 + 1.7 * len(models)), squeeze=False)
    for row, (model, scores) in zip(axes, models.items(), strict=True):
        for ax, (kind, score) in zip(row, RANKED_BY.items(), strict=True):
            _at_layers(ax, scores, kind, fraction, size=14)
            ax.set(xlabel="layer" if model == list(models)[-1] else "", ylabel="")
            ax.tick_params(labelsize=10)
            ax.set_title(f"{model}: {SCORE_LABEL[score].split(chr(10))[0]}", fontsize=10, loc="left")
    legend(axes[0], ncols=3)
    return Figure(
        axes,
        f"As Figure 19: every head at its layer. Filled: the top {fraction:.0%} by that score. Dashed: mean layer of "
        "these, weighted by score.",
        "A row per model of two scatter plots of score against layer, induction score left and FV score right.")


def _at_layers(ax, scores: pd.DataFrame, kind: str, fraction: float, size: int = 24) -> None:
    values, top = mean_scores(scores, RANKED_BY[kind]), top_sets(scores, fraction=fraction)[kind]
    layers = np.indices(top.shape)[0]
    ax.scatter(layers[~top], values[~top], facecolors="none", edgecolors=COLOUR["random"], s=size, label="other heads")
    ax.scatter(layers[top], values[top], color=COLOUR[kind], marker=MARKER[kind], s=1.7 * size,
               label=f"top {LABEL[kind]}")
    weight = np.clip(values[top], 0, None)
    if weight.sum() > 0:
        ax.axvline(np.average(layers[top], weights=weight), color=COLOUR[kind], linestyle="--", linewidth=1)
    ax.set(xlabel="layer", ylabel=SCORE_LABEL[RANKED_BY[kind]])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def score_scatter(scores: pd.DataFrame, fraction: float) -> Figure:
    """Both scores of every head; filled where a head is in a top set, both markers where it is in both."""
    x, y = (mean_scores(scores, score) for score in RANKED_BY.values())
    ax = _heads(x, y, scores, fraction)
    ax.set(xlabel=SCORE_LABEL[RANKED_BY["induction"]], ylabel=SCORE_LABEL["fv"])
    return Figure(
        ax, "Both scores of every head. Filled circles: top induction heads; filled squares: top FV heads.",
        "Scatter plot of FV score against induction score, one point per head.")


def scores_by_type(scores: pd.DataFrame, tasks: pd.DataFrame, fraction: float) -> Figure | Markdown:
    """FV score of every head on abstractive against extractive tasks; where all are of one type, what they are."""
    by_type = fv_by_type(scores, tasks)
    if len(by_type) < 2:
        return Markdown(f"Not drawn: all scoring tasks are {', '.join(by_type)}.")
    (first, x), (second, y) = by_type.items()
    ax = _heads(x, y, scores, fraction)
    ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    ax.set(xlabel=f"FV score, {first} tasks", ylabel=f"FV score, {second} tasks")
    return Figure(
        ax,
        "FV score of every head on abstractive and on extractive scoring tasks. Filled: the top heads by either score.",
        "Scatter plot of the FV score on extractive tasks against that on abstractive tasks, one point per head.")


def _heads(x: np.ndarray, y: np.ndarray, scores: pd.DataFrame, fraction: float):
    """Two numbers of every head against each other, the top heads of either kind filled."""
    figure, ax = plt.subplots(figsize=(5, 3.6))
    tops = top_sets(scores, fraction=fraction)
    others = ~np.any([*tops.values()], axis=0)
    ax.scatter(x[others], y[others], facecolors="none", edgecolors=COLOUR["random"], s=24, label="other heads")
    for (kind, top), size in zip(tops.items(), (80, 30), strict=True):
        ax.scatter(x[top], y[top], color=COLOUR[kind], marker=MARKER[kind], s=size, label=f"top {LABEL[kind]}")
    ax.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    ax.legend(fontsize=9)
    return ax


def departure_ranks(effects: pd.DataFrame) -> Figure:
    """Rank correlation of each protocol's scores with the default's, one panel per score; grey: other seeds."""
    scores = list(effects["score"].unique())
    figure, axes = plt.subplots(len(scores), 1, figsize=(8.4, 6.2), sharex=True, squeeze=False)
    for ax, score in zip(axes[:, 0], scores, strict=True):
        rows = effects[(effects["score"] == score) & (effects["note"] == "")]
        seeds = rows[rows["kind"] == "seed"]["rank_correlation"]
        ax.axvspan(seeds.min(), seeds.max(), color=COLOUR["random"], alpha=0.25, linewidth=0)
        shown = rows[rows["kind"].isin(["departure", "preset"])].iloc[::-1]
        error = [shown["rank_correlation"] - shown["low"], shown["high"] - shown["rank_correlation"]]
        ax.errorbar(shown["rank_correlation"], range(len(shown)), xerr=error, fmt=MARKER[score], color=COLOUR[score],
                    capsize=3)
        ax.set_yticks(range(len(shown)), shown["name"], fontsize=9)
        ax.axvline(1, color=GREY, linewidth=0.8, zorder=0)
        ax.set_title({"induction": "induction score", "fv": "FV score"}[score], fontsize=11)
    axes[-1, 0].set_xlabel("rank correlation with the default, over heads")
    return Figure(
        axes,
        "Rank correlation over heads of the scores under each protocol with the default's. Above: induction, below: "
        "FV. Bars: 95 % intervals over heads. Grey: range of the default under other seeds. Departures without "
        "anything to act on in this model are left out.",
        "Two panels of points with bars, one point per departure, on an axis of rank correlation with the default.")
