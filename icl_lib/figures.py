"""One function per figure: tidy table in, axes out. One colour and marker per head kind in the whole book."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from icl_lib.ablation_tables import with_paired_errors
from icl_lib.models import family
from icl_lib.statistics import bootstrap_mean

# Okabe-Ito colours: distinct under the common kinds of colour blindness, dark enough on white.
COLOUR = {
    "induction": "#0072B2", "fv": "#D55E00", "random": "#8C8C8C", "random_layer_matched": "#5A5A5A",
    "none": "#000000",
}
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
FAMILY_MARKER = {"lab": "o", "pythia": "s", "gpt2": "^", "llama": "D", "qwen": "P", "other": "X"}
KIND_OF_SCORE = {
    "induction_attention_mass": "induction", "induction_prefix_matching": "induction", "fv": "fv", "fv_null": "random",
}


def style() -> None:
    """Figure settings for the book: SVG, white ground so that a figure reads in light and dark mode alike."""
    sns.set_theme(context="notebook", style="ticks", rc={
        "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
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
        sns.heatmap(values, ax=ax, cmap="RdBu_r" if signed else "Blues", vmin=-top if signed else 0, vmax=top,
                    cbar_kws={"label": SCORE_LABEL[name]}, linewidths=0.5, linecolor="white")
        ax.invert_yaxis()
        ax.set(xlabel="head", ylabel="layer")
    return axes[0]


def scores_by_layer(scores: pd.DataFrame, tops: dict[str, np.ndarray], names: list[str]):
    """Figure 2: every head at its layer; the top heads filled; a dashed line at the score-weighted mean layer."""
    figure, axes = plt.subplots(1, len(names), figsize=(4.8 * len(names), 4.0), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        kind, values = KIND_OF_SCORE[name], matrix(scores, name)
        layers = np.repeat(np.arange(values.shape[0]), values.shape[1])
        top = tops[kind].ravel()
        ax.scatter(layers[~top], values.ravel()[~top], facecolors="none", edgecolors=COLOUR["random"], s=24,
                   label="other heads")
        ax.scatter(layers[top], values.ravel()[top], color=COLOUR[kind], marker=MARKER[kind], s=40,
                   label=f"top {LABEL[kind]}")
        weight = np.clip(values.ravel()[top], 0, None)
        if weight.sum() > 0:
            ax.axvline(np.average(layers[top], weights=weight), color=COLOUR[kind], linestyle="--", linewidth=1)
        ax.set(xlabel="layer", ylabel=SCORE_LABEL[name], xticks=range(values.shape[0]))
        ax.legend(fontsize=9)
    return axes[0]


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
            _line(ax, rows, "n_shots", palette[group], "o", "-", group, seed)
        ax.set(xlabel="demonstrations (shots)", ylabel="accuracy (share of prompts)", ylim=(0, 1.02),
               title=f"{labels} labels")
    axes[1].legend(fontsize=9)
    return axes


def _line(ax, rows: pd.DataFrame, x: str, colour, marker: str, line: str, label: str, seed: int) -> None:
    """Mean of `value` over tasks at each `x` with a 95 % band: bootstrap over tasks, or for a single one
    (documents) its standard error."""
    points = []
    for at, group in rows.groupby(x):
        by_task = group.groupby("task")[["value", "standard_error"]].mean()
        if len(by_task) > 1:
            interval = bootstrap_mean(by_task["value"].to_numpy(), by_task.index.to_numpy(), seed=seed, over="tasks")
            points.append((at, *interval))
        else:
            value, error = by_task.iloc[0]
            points.append((at, value, value - 1.96 * error, value + 1.96 * error))
    if points:
        xs, means, lows, highs = zip(*points, strict=True)
        ax.plot(xs, means, color=colour, marker=marker, linestyle=line, label=label, markersize=5)
        ax.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)


METRIC_LABEL = {
    "first_token_accuracy": "few-shot accuracy\n(first token, 10 shots)",
    "exact_match": "few-shot accuracy\n(whole answer, 10 shots)",
    "answer_probability": "P(answer), 10 shots",
    "token_loss_difference": "token-loss difference\n(50th minus 500th, nats)",
}


def ablation_curves(ablations: pd.DataFrame, metrics: list[str], seed: int):
    """Figure 4: metric against the share of heads ablated; left plain, right with exclusion; rows are metrics.

    Rows of the replacement `mean`. The band of the mean over tasks is a 95 % bootstrap interval over tasks, that of the
    token-loss difference 1.96 standard errors of its change, paired by document; random lines are means over draws.
    """
    panels = [False, True]
    ablations = with_paired_errors(ablations)
    figure, axes = plt.subplots(len(metrics), 2, figsize=(9.6, 3.3 * len(metrics)), squeeze=False, sharex=True,
                                sharey="row")
    for row, metric in zip(axes, metrics, strict=True):
        first, last = metric == metrics[0], metric == metrics[-1]
        chosen = ablations[(ablations["metric"] == metric) & ablations["replacement"].isin(("none", "mean"))]
        clean = chosen[chosen["ranking"] == "none"]["value"].mean()
        for ax, excluded in zip(row, panels, strict=True):
            ax.axhline(clean, color=COLOUR["none"], linewidth=1, label=LABEL["none"])
            edited = chosen[chosen["ranking"] != "none"].assign(percent=100 * chosen["fraction"])
            _line(ax, edited[edited["ranking"] == "random"], "percent", COLOUR["random"], MARKER["random"],
                  LINE["random"], LABEL["random"], seed)
            for kind, line in (("induction", "-."), ("fv", "--")):
                ranking = "random_layer_matched"
                rows = edited[(edited["ranking"] == ranking) & (edited["matched"] == kind)]
                rows = rows[(rows["excluded"] != "") == excluded]
                label = f"random in layers of {LABEL[kind]}"
                _line(ax, rows, "percent", COLOUR[ranking], MARKER[kind], line, label, seed)
                rows = edited[(edited["ranking"] == kind) & ((edited["excluded"] != "") == excluded)]
                _line(ax, rows, "percent", COLOUR[kind], MARKER[kind], LINE[kind], LABEL[kind], seed)
            if first:
                ax.set_title("with exclusion of the other kind" if excluded else "plain ranking", fontsize=11)
            if last:
                ax.set_xlabel("heads ablated (%)")
        row[0].set_ylabel(METRIC_LABEL[metric])
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=9)
    return axes


def training_scores(curves: pd.DataFrame, seed: int):
    """Figure 5: mean score of the top heads along training, induction left axis, FV right; one panel per selection.

    `curves`: columns selection, kind, step, value, low, high.
    """
    selections = list(curves["selection"].unique())
    figure, axes = plt.subplots(1, len(selections), figsize=(5.4 * len(selections), 4.2), squeeze=False)
    for ax, selection in zip(axes[0], selections, strict=True):
        twin = ax.twinx()
        twin.spines["right"].set_visible(True)
        for side, kind in ((ax, "induction"), (twin, "fv")):
            rows = curves[(curves["selection"] == selection) & (curves["kind"] == kind)]
            x = _place(rows["step"])
            side.plot(x, rows["value"], color=COLOUR[kind], marker=MARKER[kind], markersize=4)
            side.fill_between(x, rows["low"], rows["high"], color=COLOUR[kind], alpha=0.15, linewidth=0)
            side.tick_params(axis="y", colors=COLOUR[kind])
        _step_axis(ax, curves["step"])
        ax.set_title(selection, fontsize=11)
        ax.set_ylabel("induction score, top heads", color=COLOUR["induction"])
        twin.set_ylabel("FV score, top heads", color=COLOUR["fv"])
    return axes[0]


def scores_by_seed(curves: pd.DataFrame):
    """Mean score of the top heads along training, a line per model that differs by its seed; left induction, right FV.

    `curves`: columns model, kind, step, value.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), sharex=True)
    models = sorted(curves["model"].unique())
    labels = {"induction": "prefix-matching score, top heads", "fv": "FV score, top heads"}
    for ax, (kind, label) in zip(axes, labels.items(), strict=True):
        for line, model in zip(["-", "--", ":", "-."] * len(models), models, strict=False):
            rows = curves[(curves["model"] == model) & (curves["kind"] == kind)]
            ax.plot(_place(rows["step"]), rows["value"], color=COLOUR[kind], marker=MARKER[kind], markersize=4,
                    linestyle=line, label=model)
        _step_axis(ax, curves["step"])
        ax.set_ylabel(label)
        ax.legend(fontsize=9)
    return axes


def one_head(scores: pd.DataFrame, head: tuple[int, int], names: dict[str, str]):
    """Figure 1: both scores of one head along training; `names`: score to axis label, induction first."""
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.0), sharex=True)
    for ax, (score, label) in zip(axes, names.items(), strict=True):
        kind = KIND_OF_SCORE[score]
        path = scores[scores["score"] == score].groupby(["layer", "head", "step"])["value"].mean().loc[head]
        ax.plot(_place(path.index), path.to_numpy(), color=COLOUR[kind], marker=MARKER[kind], markersize=4)
        ax.set_ylabel(label)
        _step_axis(ax, scores["step"])
    return axes


def effects_by_step(effects: pd.DataFrame):
    """Effect of ablating each kind beyond layer-matched random heads along training, both metrics."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.4), sharex=True)
    for ax, metric in zip(axes, ("first_token_accuracy", "token_loss_difference"), strict=True):
        for kind in ("induction", "fv"):
            rows = effects[(effects["metric"] == metric) & (effects["ranking"] == kind)].sort_values("step")
            error = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
            ax.errorbar(_place(rows["step"]), rows["value"], yerr=error, color=COLOUR[kind], marker=MARKER[kind],
                        capsize=3, label=LABEL[kind])
        ax.axhline(0, color=COLOUR["random_layer_matched"], linestyle=LINE["random_layer_matched"], linewidth=1)
        ax.set_ylabel(METRIC_LABEL[metric].split("\n")[0] + " lost\nbeyond random heads")
        if effects.empty:
            ax.text(0.5, 0.5, "no checkpoint of this model is ablated here", ha="center", transform=ax.transAxes)
        else:
            _step_axis(ax, effects["step"])
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


def _place(steps) -> np.ndarray:
    """Where steps stand on a log axis: step 0 half way below the first other one."""
    steps = np.asarray(steps, dtype=float)
    later = steps[steps > 0]
    return np.where(steps > 0, steps, later.min() / 2 if len(later) else 1.0)


def _step_axis(ax, steps: pd.Series) -> None:
    """Steps on a log axis that also has a place for step 0; labelled so that labels do not meet."""
    ticks = np.array(sorted(set(int(s) for s in steps)))
    shown = [i for i, t in enumerate(ticks) if t in (0, ticks[-1]) or (t & (t - 1)) == 0]
    ax.set_xscale("log", base=2)
    ax.set_xticks(_place(ticks)[shown], [f"{ticks[i]:,}" for i in shown])
    ax.minorticks_off()
    ax.set_xlabel("optimiser step (log scale)")


def head_trajectories(scores: pd.DataFrame, heads: dict[str, list[tuple[int, int]]], names: dict[str, str]):
    """Figure 6: both scores of single heads along training, fading with final rank; rows are the two scores."""
    figure, axes = plt.subplots(2, 2, figsize=(9.2, 5.6), sharex=True, sharey="row")
    for row, (score, label) in zip(axes, names.items(), strict=True):
        mean = scores[scores["score"] == score].groupby(["step", "layer", "head"])["value"].mean()
        for ax, kind in zip(row, heads, strict=True):
            for rank, (layer, head) in enumerate(heads[kind]):
                path = mean.xs((layer, head), level=("layer", "head"))
                ax.plot(_place(path.index), path.to_numpy(), color=COLOUR[kind], marker=MARKER[kind], markersize=3,
                        alpha=1 - 0.7 * rank / max(1, len(heads[kind])), label=f"L{layer}H{head}")
            if score == next(iter(names)):
                ax.set_title(f"final {LABEL[kind]}", fontsize=11)
                ax.legend(fontsize=8, ncol=2)
        row[0].set_ylabel(label)
    for ax in axes[1]:
        _step_axis(ax, scores["step"])
    return axes


def accuracy_along_training(accuracy: pd.DataFrame, seed: int):
    """Accuracy at several shot counts and on shuffled labels along training; band: 95 % over tasks."""
    figure, ax = plt.subplots(figsize=(6.4, 3.4))
    conditions = sorted(set(zip(accuracy["labels"], accuracy["n_shots"], strict=True)))
    palette = sns.color_palette("viridis", len(conditions))
    for colour, (labels, shots) in zip(palette, conditions, strict=True):
        rows = accuracy[(accuracy["labels"] == labels) & (accuracy["n_shots"] == shots)]
        _line(ax, rows.assign(place=_place(rows["step"])), "place", colour, "o", "-" if labels == "clean" else ":",
              f"{shots} shots, {labels}", seed)
    _step_axis(ax, accuracy["step"])
    ax.set(ylabel="accuracy (share of prompts)", ylim=(0, 1.02))
    ax.legend(fontsize=9)
    return ax


def by_size(table: pd.DataFrame, y: str, series: str, ylabel: str, colours: dict[str, str] | None = None):
    """A statistic against non-embedding parameters, log axis; `table`: columns parameters, `series`, `y`, low, high.

    A point with its interval per model; the line goes through the means of models of one size (seeds).
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.8))
    names = list(table[series].unique())
    colours = colours or dict(zip(names, sns.color_palette("viridis", len(names)), strict=True))
    families = table["model"].map(family)
    several = families.nunique() > 1
    for name in names:
        rows = table[table[series] == name].sort_values("parameters")
        for member, part in rows.groupby(families):
            marker = FAMILY_MARKER[member] if several else MARKER.get(name, "o")
            error = [part[y] - part["low"], part["high"] - part[y]]
            ax.errorbar(part["parameters"], part[y], yerr=error, color=colours[name], marker=marker, capsize=3,
                        linestyle="none", alpha=0.8)
        means = rows.groupby("parameters")[y].mean()
        ax.plot(means.index, means.to_numpy(), color=colours[name], label=LABEL.get(name, name))
    ax.set(ylabel=ylabel)
    size_axis(ax, table["parameters"])
    if several:
        for member in sorted(families.unique()):
            ax.plot([], [], color=COLOUR["none"], marker=FAMILY_MARKER[member], linestyle="none", label=member)
    ax.legend(fontsize=9)
    return ax


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


def show(axes, text: str, alt: str):
    """Show the figure of `axes` with a caption and an alternative text, in a page or a notebook; nothing returned."""
    from base64 import b64encode
    from html import escape
    from io import BytesIO

    from IPython.display import HTML, display

    figure = np.ravel(axes)[0].figure
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    data = b64encode(buffer.getvalue()).decode()
    display(HTML(
        f'<figure><img class="figure" alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}"/>'
        f"<figcaption>{escape(text)}</figcaption></figure>"))
