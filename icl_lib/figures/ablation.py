"""Figures of the ablation page: table in, axes out; colours and markers of `icl_lib.figures.common`."""

from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from icl_lib.ablation.effects import FEW_SHOT, KINDS
from icl_lib.ablation.measure import TOKEN_LOSS
from icl_lib.figures.common import COLOUR, LABEL, LINE, MARKER, line_over_tasks, note

_GREY = "#BBBBBB"
EFFECT_LABEL = {FEW_SHOT: "few-shot accuracy lost", TOKEN_LOSS: "token-loss difference lost (nats)"}
CONTROL_LABEL = {
    "none": "against no ablation", "random": "beyond random heads",
    "random_layer_matched": "beyond random heads\nof the same layers",
}
ROW_LABEL = {
    "generated_f1": "few-shot F1", "exact_match": "few-shot accuracy\n(whole answer)",
    "first_token_accuracy": "few-shot accuracy\n(first token)",
}


def robustness(effects: pd.DataFrame, *, excluded: bool):
    """What is lost of both metrics when a kind is ablated, a line per intervention; a column per control.

    `effects`: from `with_holm`, at one fraction; of them those with exclusion or those without. Bars: 95 % intervals;
    filled where Holm's p is below 0.05. Grey: the one intervention that the other figures have. A control that does
    not exist has no points and says so.
    """
    rows = effects[(effects["excluded"] != "") == excluded]
    cells = rows[["replacement", "positions"]].drop_duplicates().to_numpy().tolist()
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 2.0 + 0.6 * len(cells)), sharex="row", sharey=True)
    for line, (metric, label) in zip(axes, EFFECT_LABEL.items(), strict=True):
        for ax, (control, words) in zip(line, CONTROL_LABEL.items(), strict=True):
            chosen = rows[(rows["metric"] == metric) & (rows["control"] == control)]
            for offset, kind in ((-0.16, "fv"), (0.16, "induction")):
                _effects(ax, chosen[chosen["ranking"] == kind], cells, offset, kind)
            ax.axvline(0, color=COLOUR[control], linestyle=LINE[control], linewidth=1)
            ax.axhspan(-0.5, 0.5, color=_GREY, alpha=0.25, linewidth=0, zorder=0)
            ax.set_xlabel(f"{label}\n{words}", fontsize=10)
            if chosen.empty:
                note(ax, "no valid control:\ntoo few heads\nof neither kind", ticks=True)
        line[0].set_yticks(range(len(cells)), [f"{replacement}, {where}" for replacement, where in cells], fontsize=10)
        line[0].set_ylim(len(cells) - 0.5, -0.5)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=10)
    return axes


def _effects(ax, rows: pd.DataFrame, cells: list, offset: float, kind: str) -> None:
    found = {(r.replacement, r.positions): r for r in rows.itertuples()}
    ax.plot([], [], color=COLOUR[kind], marker=MARKER[kind], linestyle="-", label=LABEL[kind])
    for place, cell in enumerate(cells):
        if r := found.get(tuple(cell)):
            ax.errorbar(r.value, place + offset, xerr=[[r.value - r.low], [r.high - r.value]], color=COLOUR[kind],
                        marker=MARKER[kind], markersize=6, capsize=2.5, linestyle="none",
                        markerfacecolor=COLOUR[kind] if r.p_holm < 0.05 else "white")


def figure_four(
    columns: dict[str, dict[str, pd.DataFrame]], levels: dict[str, dict[str, float]], carried: dict[str, bool | None],
    seed: int,
):
    """Figure 4, a column per protocol: few-shot metric, the same with exclusion, token-loss difference with exclusion.

    `columns`: title to the rows of "few_shot" and "token_loss" (`protocol_rows`); `levels`: title to horizontal lines
    of the few-shot rows by name (floor, zero-shot). Random heads stand in all rows without exclusion (A16). `carried`:
    title to whether the token-loss difference can carry its row (`carries_loss`); one that cannot is not drawn.
    """
    figure, axes = plt.subplots(3, len(columns), figsize=(3.9 * len(columns), 8.4), squeeze=False, sharex="col")
    shown = (("few_shot", False), ("few_shot", True), ("token_loss", True))
    for column, (title, rows_of) in zip(axes.T, columns.items(), strict=True):
        for ax, (metric, excluded) in zip(column, shown, strict=True):
            rows = rows_of[metric]
            if metric == "few_shot" or carried[title]:
                _curves(ax, rows, excluded, seed)
            else:
                note(ax, "not drawn: its error\nis too large here")
            if metric == "few_shot":
                for (name, level), line in zip(levels[title].items(), (":", "-.", "--"), strict=False):
                    ax.axhline(level, color=_GREY, linestyle=line, linewidth=1.2, label=name, zorder=0)
                ax.set_ylim(0, None)
            label = ROW_LABEL[rows["metric"].iloc[0]] if metric == "few_shot" else "token-loss\ndifference (nats)"
            ax.set_ylabel(label + ("\nwith exclusion" if excluded else ""), fontsize=11)
        column[0].set_title(title, fontsize=11)
        column[-1].set_xlabel("heads ablated (%)")
    found = {label: handle for ax in axes[0] for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found, loc="outside lower center", ncols=4, fontsize=10)
    return axes


def _curves(ax, rows: pd.DataFrame, excluded: bool, seed: int) -> None:
    """Clean level, random heads and both kinds, with or without exclusion, at the shares really ablated."""
    edited = rows[rows["ranking"] != "none"]
    edited = edited.assign(percent=100 * edited["fraction"])
    ax.axhline(rows[rows["ranking"] == "none"]["value"].mean(), color=COLOUR["none"], linewidth=1, label=LABEL["none"])
    line_over_tasks(ax, edited[edited["ranking"] == "random"], "percent", COLOUR["random"], MARKER["random"],
                    LINE["random"], LABEL["random"], seed)
    for kind in KINDS:
        own = edited[(edited["ranking"] == kind) & ((edited["excluded"] != "") == excluded)]
        line_over_tasks(ax, own, "percent", COLOUR[kind], MARKER[kind], LINE[kind], LABEL[kind], seed)


def task_grid(ablations: pd.DataFrame, tasks: list[str], floors: pd.Series):
    """Appendix A.2: first-token accuracy of single tasks against the share of heads ablated; dotted: floor."""
    n_columns = 5
    figure, axes = plt.subplots(-(-len(tasks) // n_columns), n_columns, sharex=True, sharey=True, squeeze=False,
                                figsize=(10.5, 2.1 * -(-len(tasks) // n_columns)))
    for ax in axes.ravel()[len(tasks):]:
        ax.set_axis_off()
    for ax, task in zip(axes.ravel(), tasks, strict=False):
        rows = ablations[ablations["task"] == task]
        ax.axhline(rows[rows["ranking"] == "none"]["value"].mean(), color=COLOUR["none"], linewidth=1,
                   label=LABEL["none"])
        ax.axhline(floors[task], color=_GREY, linestyle=":", label="floor")
        for ranking in ("random", *KINDS):
            own = rows[(rows["ranking"] == ranking) & ((rows["excluded"] == "") | (ranking == "random"))]
            own = own.groupby("fraction")["value"].mean()
            ax.plot(100 * own.index, own.to_numpy(), color=COLOUR[ranking], marker=MARKER[ranking], markersize=3.5,
                    linestyle=LINE[ranking], label=LABEL[ranking])
        ax.set_title(fill(task.replace("_", " "), 20), fontsize=8.5)
        ax.set_ylim(-0.03, 1.03)
    figure.supxlabel("heads ablated (%)", fontsize=11)
    figure.supylabel("accuracy (first token)", fontsize=11)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9)
    return axes


def zero_shot_control(rows: pd.DataFrame, ten_shot: float, n_shots: int, seed: int):
    """Accuracy without demonstrations under ablation with exclusion, with the clean lines at 0 and `n_shots` shots."""
    figure, ax = plt.subplots(figsize=(6.4, 3.4))
    _curves(ax, rows, True, seed)
    ax.axhline(ten_shot, color=COLOUR["none"], linestyle=":", linewidth=1.2, label=f"no ablation, {n_shots} shots")
    ax.set(xlabel="heads ablated (%)", ylabel="accuracy at 0 shots\n(first token)", ylim=(0, None))
    ax.legend(fontsize=9, loc="center right", bbox_to_anchor=(1.0, 0.62))
    return ax


def ablated_sets(sets: pd.DataFrame):
    """Share of heads in both ablated sets, and the mean percentile in either score of the heads that remain."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharex=True)
    numbers = [c for c in sets if c != "excluded"]
    plain, kept = (sets[sets["excluded"] == excluded][numbers].reset_index(drop=True) for excluded in (False, True))
    for rows, line, words in ((plain, "-", "plain"), (kept, "--", "with exclusion"))[: 1 if kept.equals(plain) else 2]:
        axes[0].plot(100 * rows["fraction"], 100 * rows["overlap"], color=COLOUR["none"], linestyle=line, marker="D",
                     markersize=5, label=words)
        for ax, score in zip(axes[1:], ("fv", "induction"), strict=True):
            for kind in KINDS:
                ax.plot(100 * rows["fraction"], rows[f"{score}_after_{kind}"], color=COLOUR[kind], linestyle=line,
                        marker=MARKER[kind], markersize=5, label=f"{LABEL[kind]} ablated, {words}")
    axes[0].set(ylabel="heads in both sets (%)", ylim=(-3, 103))
    axes[1].set(ylabel="mean FV percentile\nof the heads that remain")
    axes[2].set(ylabel="mean induction percentile\nof the heads that remain")
    for ax in axes:
        ax.set_xlabel("heads ablated (%)")
    axes[0].legend(fontsize=9)
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=9)
    return axes


def loss_by_position(curves: pd.DataFrame):
    """Left: loss by position in the document under ablation; right: its rise over the clean model. Log positions."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), sharex=True)
    clean = curves[curves["ranking"] == "none"].set_index("position")["value"]
    for (ranking, matched), rows in curves.groupby(["ranking", "matched"], sort=False):
        label = LABEL[ranking] if not matched else f"random in layers of {LABEL[matched]}"
        line = {"induction": "-.", "fv": "--"}.get(matched, LINE[ranking])
        style = {"color": COLOUR[ranking], "marker": MARKER[matched or ranking], "linestyle": line, "markersize": 4}
        axes[0].plot(rows["position"], rows["value"], label=label, **style)
        if ranking != "none":
            axes[1].plot(rows["position"], rows["value"] - clean.loc[rows["position"]].to_numpy(), **style)
    for ax in axes:
        for place in (50, 500):
            ax.axvline(place, color=_GREY, linewidth=0.8, zorder=0)
        ax.set(xscale="log", xlabel="token of the document (log scale)")
        ticks = np.array([1, 5, 50, 500])
        ax.set_xticks(ticks, ticks)
        ax.minorticks_off()
    axes[0].set_ylabel("loss (nats)")
    axes[1].set_ylabel("loss above the\nclean model's (nats)")
    axes[0].legend(fontsize=9)
    return axes
