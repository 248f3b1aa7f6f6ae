"""One function per figure: tidy table in, axes out. One colour and marker per head kind in the whole book."""

from base64 import b64encode
from html import escape
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, display
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from icl_lib.ablation.measure import with_paired_errors
from icl_lib.figures.data import drawn
from icl_lib.stats.intervals import bootstrap_mean

# Okabe-Ito colours: distinct under the common kinds of colour blindness, dark enough on white.
COLOUR = {
    "induction": "#0072B2", "fv": "#D55E00", "random": "#8C8C8C", "random_layer_matched": "#5A5A5A",
    "none": "#000000",
}
# Maps of a score go to its kind's colour, negative FV scores to one of their own. The book's script has the same.
UNSIGNED = LinearSegmentedColormap.from_list("unsigned", ["#F4F4F4", COLOUR["induction"]])
SIGNED = LinearSegmentedColormap.from_list("signed", ["#5E3C99", "#F4F4F4", COLOUR["fv"]])
MARKER = {"induction": "o", "fv": "s", "random": "v", "random_layer_matched": "^", "none": ""}
LINE = {"induction": "-", "fv": "-", "random": ":", "random_layer_matched": "--", "none": "-"}
LABEL = {
    "induction": "induction heads", "fv": "FV heads", "random": "random heads",
    "random_layer_matched": "random heads, layer-matched", "none": "no ablation",
}
SCORE_LABEL = {
    "induction_attention_mass": "induction score\n(attention mass)",
    "induction_prefix_matching": "prefix-matching score",
    "fv": "FV score\n(rise in P(answer))",
}
FAMILY_MARKER = {
    "lab": "o", "pythia": "s", "gpt2": "^", "llama": "D", "qwen": "P", "smollm": "v", "gemma": "d", "other": "X",
}
KIND_OF_SCORE = {
    "induction_attention_mass": "induction", "induction_prefix_matching": "induction", "fv": "fv", "fv_null": "random",
}


def style() -> None:
    """Figure settings for the book: SVG without a ground; the page gives one, and turns ink to light in dark mode."""
    sns.set_theme(context="notebook", style="ticks", rc={
        "figure.facecolor": "white", "axes.facecolor": "none", "savefig.facecolor": "none",
        "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 100, "svg.fonttype": "path",
        "legend.frameon": False, "figure.constrained_layout.use": True, "svg.hashsalt": "icl_lib",
    })
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    set_matplotlib_formats("svg")


def matrix(scores: pd.DataFrame, score: str) -> np.ndarray:
    """The mean over tasks of one score as an array `[layer, head]`."""
    chosen = scores[scores["score"] == score]
    return chosen.groupby(["layer", "head"])["value"].mean().unstack("head").to_numpy()


def head_map(scores: pd.DataFrame, names: list[str]):
    """Heat maps of head scores, one panel per score, layers upward."""
    figure, axes = plt.subplots(1, len(names), figsize=(4.8 * len(names), 3.8), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        values = matrix(scores, name)
        top = np.abs(values).max()
        signed = name.startswith("fv")
        sns.heatmap(values, ax=ax, cmap=SIGNED if signed else UNSIGNED, vmin=-top if signed else 0, vmax=top,
                    cbar_kws={"label": SCORE_LABEL[name]}, linewidths=0.5, linecolor="white")
        ax.invert_yaxis()
        ax.set(xlabel="head", ylabel="layer")
    return axes[0]


def scores_by_layer(scores: pd.DataFrame, tops: dict[str, np.ndarray], names: list[str]):
    """Figure 2: every head at its layer; the top heads filled; a dashed line at the score-weighted mean layer."""
    figure, axes = plt.subplots(1, len(names), figsize=(4.8 * len(names), 4.0), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        _at_layers(ax, matrix(scores, name), tops[KIND_OF_SCORE[name]], name)
        ax.legend(fontsize=9)
    return axes[0]


def layers_by_model(models: dict[str, tuple[pd.DataFrame, dict[str, np.ndarray]]], names: list[str]):
    """Figure 19: as `scores_by_layer`, a row of panels per model; `models`: scores and top sets by name."""
    figure, axes = plt.subplots(len(models), len(names), figsize=(6.4, 0.6 + 1.7 * len(models)), squeeze=False)
    for row, (model, (scores, tops)) in zip(axes, models.items(), strict=True):
        for ax, name in zip(row, names, strict=True):
            _at_layers(ax, matrix(scores, name), tops[KIND_OF_SCORE[name]], name, size=14)
            ax.set(xlabel="layer" if row is axes[-1] else "", ylabel="")
            ax.tick_params(labelsize=10)
            ax.set_title(f"{model}: {SCORE_LABEL[name].split(chr(10))[0]}", fontsize=10, loc="left")
    labels = {label: part for ax in axes[0] for part, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="outside upper center", ncols=3, fontsize=10)
    return axes


def _at_layers(ax, values: np.ndarray, top: np.ndarray, name: str, size: int = 24) -> None:
    kind, top = KIND_OF_SCORE[name], top.ravel()
    layers = np.repeat(np.arange(values.shape[0]), values.shape[1])
    ax.scatter(layers[~top], values.ravel()[~top], facecolors="none", edgecolors=COLOUR["random"], s=size,
               label="other heads")
    ax.scatter(layers[top], values.ravel()[top], color=COLOUR[kind], marker=MARKER[kind], s=1.7 * size,
               label=f"top {LABEL[kind]}")
    weight = np.clip(values.ravel()[top], 0, None)
    if weight.sum() > 0:
        ax.axvline(np.average(layers[top], weights=weight), color=COLOUR[kind], linestyle="--", linewidth=1)
    ax.set(xlabel="layer", ylabel=SCORE_LABEL[name])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def score_scatter(scores: pd.DataFrame, tops: dict[str, np.ndarray], induction: str):
    """Both scores of every head; filled where a head is in a top set, both markers where it is in both."""
    figure, ax = plt.subplots(figsize=(5, 3.6))
    x, y = matrix(scores, induction).ravel(), matrix(scores, "fv").ravel()
    ax.scatter(x, y, facecolors="none", edgecolors=COLOUR["random"], s=24, label="other heads")
    for kind, size in (("induction", 80), ("fv", 30)):
        top = tops[kind].ravel()
        ax.scatter(x[top], y[top], color=COLOUR[kind], marker=MARKER[kind], s=size, label=f"top {LABEL[kind]}")
    ax.axhline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
    ax.set(xlabel=SCORE_LABEL[induction], ylabel=SCORE_LABEL["fv"])
    ax.legend(fontsize=9)
    return ax


def scores_by_type(by_type: dict[str, np.ndarray], tops: dict[str, np.ndarray]):
    """FV score of every head on abstractive against extractive tasks; filled: heads of the top sets."""
    figure, ax = plt.subplots(figsize=(5, 3.6))
    x, y = (np.asarray(values).ravel() for values in by_type.values())
    ax.scatter(x, y, facecolors="none", edgecolors=COLOUR["random"], s=24, label="other heads")
    for kind, size in (("induction", 80), ("fv", 30)):
        top = tops[kind].ravel()
        ax.scatter(x[top], y[top], color=COLOUR[kind], marker=MARKER[kind], s=size, label=f"top {LABEL[kind]}")
    ax.axhline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
    ax.axvline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
    first, second = by_type
    ax.set(xlabel=f"FV score, {first} tasks", ylabel=f"FV score, {second} tasks")
    ax.legend(fontsize=9)
    return ax


def departure_ranks(effects: pd.DataFrame):
    """Rank correlation of each protocol's scores with the default's, one panel per score; grey: other seeds."""
    scores = list(effects["score"].unique())
    figure, axes = plt.subplots(len(scores), 1, figsize=(8.4, 6.2), sharex=True)
    for ax, score in zip(np.atleast_1d(axes), scores, strict=True):
        rows = effects[(effects["score"] == score) & (effects["note"] == "")]
        seeds = rows[rows["kind"] == "seed"]["rank_correlation"]
        ax.axvspan(seeds.min(), seeds.max(), color=COLOUR["random"], alpha=0.25, linewidth=0)
        shown = rows[rows["kind"].isin(["departure", "preset"])].iloc[::-1]
        places = np.arange(len(shown))
        error = [shown["rank_correlation"] - shown["low"], shown["high"] - shown["rank_correlation"]]
        ax.errorbar(shown["rank_correlation"], places, xerr=error, fmt=MARKER[score], color=COLOUR[score], capsize=3)
        ax.set_yticks(places, shown["name"], fontsize=9)
        ax.axvline(1, color="#BBBBBB", linewidth=0.8, zorder=0)
        ax.set_title({"induction": "induction score", "fv": "FV score"}[score], fontsize=11)
    ax.set_xlabel("rank correlation with the default, over heads")
    return np.atleast_1d(axes)


def accuracy_by_shots(accuracy: pd.DataFrame, seed: int):
    """Accuracy against shots, one line per group of tasks, clean and shuffled labels; band: 95 % over tasks."""
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.8), sharey=True, sharex=True)
    groups = list(accuracy["group"].unique())
    palette = dict(zip(groups, sns.color_palette("viridis", len(groups) + 1), strict=False))
    for ax, labels in zip(axes, ("clean", "shuffled"), strict=True):
        for group in groups:
            rows = accuracy[(accuracy["group"] == group) & (accuracy["labels"] == labels)]
            line_over_tasks(ax, rows, "n_shots", palette[group], "o", "-", group, seed)
        ax.set(xlabel="demonstrations (shots)", ylabel="accuracy (share of prompts)", ylim=(0, 1.02),
               title=f"{labels} labels")
    axes[1].legend(fontsize=9)
    return axes


def task_points(rows: pd.DataFrame, x: str, seed: int) -> list[tuple[float, float, float, float]]:
    """Per `x` the mean of `value` over tasks and the ends of a 95 % interval: bootstrap over tasks, or for a single
    one (documents) 1.96 standard errors."""
    points = []
    for at, group in rows.assign(at=rows[x].astype(float)).groupby("at"):
        by_task = group.groupby("task")[["value", "standard_error"]].mean()
        if len(by_task) > 1:
            interval = bootstrap_mean(by_task["value"].to_numpy(), by_task.index.to_numpy(), seed=seed, over="tasks")
            points.append((float(at), *interval))
        else:
            value, error = by_task.iloc[0]
            points.append((float(at), float(value), float(value - 1.96 * error), float(value + 1.96 * error)))
    return points


def line_over_tasks(ax, rows: pd.DataFrame, x: str, colour, marker: str, line: str, label: str, seed: int) -> None:
    """`task_points` as a line with a band, or as bars where there is one place; nothing where there are no rows."""
    points = task_points(rows, x, seed)
    if points:
        xs, means, lows, highs = zip(*points, strict=True)
        ax.plot(xs, means, color=colour, marker=marker, linestyle=line, label=label, markersize=5)
        if len(xs) > 1:
            ax.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)
        else:
            ax.vlines(xs, lows, highs, color=colour, alpha=0.5)


def note(ax, text: str, *, ticks: bool = False) -> None:
    """Words in the middle of a panel that has nothing to show; without `ticks` no scale on its side."""
    if not ticks:
        ax.tick_params(axis="y", left=False, labelleft=False)
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=10, color="#5A5A5A")


METRIC_LABEL = {
    "first_token_accuracy": "few-shot accuracy\n(first token)",
    "exact_match": "few-shot accuracy\n(whole answer)",
    "answer_probability": "P(answer)",
    "token_loss_difference": "token-loss difference\n(50th minus 500th, nats)",
}


def ablation_curves(ablations: pd.DataFrame, metrics: list[str], seed: int):
    """Figure 4: metric against the share of heads ablated; left plain, right with exclusion; rows are metrics.

    Rows of the replacement `mean`. The band of the mean over tasks is a 95 % bootstrap interval over tasks, that of the
    token-loss difference 1.96 standard errors of its change, paired by document; random lines are means over draws.
    Where the clean model's own token-loss difference is within 1.96 standard errors of 0, the panel says so.
    """
    panels = [False, True]
    ablations = with_paired_errors(ablations)
    figure, axes = plt.subplots(len(metrics), 2, figsize=(9.6, 3.3 * len(metrics)), squeeze=False, sharex=True,
                                sharey="row")
    for row, metric in zip(axes, metrics, strict=True):
        first, last = metric == metrics[0], metric == metrics[-1]
        chosen = ablations[(ablations["metric"] == metric) & ablations["replacement"].isin(("none", "mean"))]
        clean = chosen[chosen["ranking"] == "none"]
        unsure = len(clean) == 1 and not clean["value"].item() > 1.96 * clean["standard_error"].item()
        for ax, excluded in zip(row, panels, strict=True):
            ax.axhline(clean["value"].mean(), color=COLOUR["none"], linewidth=1, label=LABEL["none"])
            if unsure:
                ax.set_title("without ablation not told from 0", fontsize=9, loc="right")
            edited = chosen[chosen["ranking"] != "none"].assign(percent=100 * chosen["fraction"])
            line_over_tasks(ax, edited[edited["ranking"] == "random"], "percent", COLOUR["random"], MARKER["random"],
                  LINE["random"], LABEL["random"], seed)
            for kind, line in (("induction", "-."), ("fv", "--")):
                ranking = "random_layer_matched"
                rows = edited[(edited["ranking"] == ranking) & (edited["matched"] == kind)]
                rows = rows[(rows["excluded"] != "") == excluded]
                label = f"random in layers of {LABEL[kind]}"
                line_over_tasks(ax, rows, "percent", COLOUR[ranking], MARKER[kind], line, label, seed)
                rows = edited[(edited["ranking"] == kind) & ((edited["excluded"] != "") == excluded)]
                line_over_tasks(ax, rows, "percent", COLOUR[kind], MARKER[kind], LINE[kind], LABEL[kind], seed)
            if first:
                ax.set_title("with exclusion of the other kind" if excluded else "plain ranking", fontsize=11)
            if last:
                ax.set_xlabel("heads ablated (%)")
        row[0].set_ylabel(METRIC_LABEL[metric])
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=9)
    return axes


def show(axes, text: str, alt: str):
    """Show the figure of `axes` with a caption and an alternative text, in a page or a notebook; nothing returned."""
    display(HTML(as_html(axes, text, alt)))


def as_html(axes, text: str, alt: str) -> str:
    """The figure of `axes`, which is closed, as HTML with a caption, an alternative text and what it shows as CSV."""
    figure = np.ravel(axes)[0].figure
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    numbers = numbers_link(drawn(figure))
    plt.close(figure)
    picture = b64encode(buffer.getvalue()).decode()
    return (f'<figure><img class="figure" style="background: white" alt="{escape(alt)}" '
            f'src="data:image/svg+xml;base64,{picture}"/><figcaption>{escape(text)} {numbers}</figcaption></figure>')


def numbers_link(table: pd.DataFrame) -> str:
    """A link that saves what a figure shows; the book gives the file the figure's name."""
    data = b64encode(table.to_csv(index=False, float_format="%.6g").encode()).decode()
    return f'<a download="figure.csv" href="data:text/csv;base64,{data}">Numbers (CSV)</a>'
