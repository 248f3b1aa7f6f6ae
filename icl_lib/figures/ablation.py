"""Figures of the ablation page: tables in, a `Figure` with its caption out."""

from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd

from icl_lib.ablation.conditions import Condition
from icl_lib.ablation.effects import FEW_SHOT, KINDS, METRIC_WORDS, at_fraction, set_table, with_holm
from icl_lib.ablation.protocols import protocol, protocol_rows, titles
from icl_lib.ablation.table import TOKEN_LOSS, with_paired_errors
from icl_lib.analysis.ablation_numbers import able_tasks, carries_loss, find
from icl_lib.figures.common import CONTROL_LABEL, GREY, LABEL, METRIC_LABEL, Figure, legend, line_over_tasks, look, note


def robustness(effects: pd.DataFrame, numbers: pd.DataFrame) -> list[Figure]:
    """What is lost of both metrics when a kind is ablated: plain rankings and, where that changes a set, exclusion."""
    share = find(numbers, "share of heads ablated")["value"]
    shown = with_holm(at_fraction(effects, share))
    matched = numbers[numbers["name"].str.startswith("draws, layer-matched")]["value"].astype(int)
    counts = f"{matched.min()}" if matched.nunique() == 1 else f"{matched.min()} to {matched.max()}"
    return [Figure(
        _robustness(rows),
        f"What is lost when {share:.0%} of heads are ablated, {'with exclusion' if excluded else 'plain rankings'}, by "
        f"replacement and positions, against three controls ({find(numbers, 'draws, random')['value']:.0f} different "
        f"draws of random heads and {counts} of layer-matched ones). Bars: 95 % intervals over tasks and "
        "draws (loss: over documents and draws). Filled: Holm's p < 0.05 over all points of a control. "
        "Grey: the intervention of the figure above.",
        "Points with intervals, a row per replacement and position: accuracy above, token loss below, a column per "
        "control.") for excluded, rows in shown.groupby(shown["excluded"] != "")]


def _robustness(rows: pd.DataFrame):
    cells = rows[["replacement", "positions"]].drop_duplicates().to_numpy().tolist()
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 2.0 + 0.6 * len(cells)), sharex="row", sharey=True)
    for line, (metric, unit) in zip(axes, ((FEW_SHOT, ""), (TOKEN_LOSS, " (nats)")), strict=True):
        for ax, (control, words) in zip(line, CONTROL_LABEL.items(), strict=True):
            chosen = rows[(rows["metric"] == metric) & (rows["control"] == control)]
            for offset, kind in ((-0.16, "fv"), (0.16, "induction")):
                ax.plot([], [], **look(kind))
                for row in chosen[chosen["ranking"] == kind].itertuples():
                    ax.errorbar(row.value, cells.index([row.replacement, row.positions]) + offset,
                                xerr=[[row.value - row.low], [row.high - row.value]], markersize=6, capsize=2.5,
                                markerfacecolor=look(kind)["color"] if row.p_holm < 0.05 else "white",
                                **look(kind, linestyle="none", label=None))
            ax.axvline(0, linewidth=1, **look(control, marker=None, label=None))
            ax.axhspan(-0.5, 0.5, color=GREY, alpha=0.25, linewidth=0, zorder=0)
            ax.set_xlabel(f"{METRIC_WORDS[metric]} lost{unit}\n{words}", fontsize=10)
            if chosen.empty:
                note(ax, "no valid control:\ntoo few heads\nof neither kind")
        line[0].set_yticks(range(len(cells)), [f"{replacement}, {where}" for replacement, where in cells], fontsize=10)
        line[0].set_ylim(len(cells) - 0.5, -0.5)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=10)
    return axes


def ablation_curves(ablations: pd.DataFrame, positions: str, *, n_shots: int, loss_window: int, seed: int) -> Figure:
    """Figure 4: metrics against the share of heads replaced by their mean; left plain, right with exclusion."""
    axes = _curves_by_metric(ablations, positions, seed)
    if positions == "last":
        return Figure(
            axes, "Heads replaced by their mean at the last position only. Bands and the line of no ablation as above.",
            "Metric against share of ablated heads at the last position; left plain, right with exclusion.")
    return Figure(
        axes,
        f"Heads replaced by their mean at all positions, {n_shots} demonstrations. Top: means over evaluation tasks "
        "(random: also over draws) with 95 % bootstrap intervals over tasks. Bottom: means over documents, "
        f"{2 * loss_window + 1} positions around each of the two, with 1.96 standard errors of the change against the "
        "clean model, paired by document.",
        "Metric against share of ablated heads; left plain rankings, right with the other kind's top heads kept.")


def headline(ablations: pd.DataFrame, *, seed: int) -> Figure:
    """`ablation_curves` at all positions for the front page, with what a reader needs who comes from nowhere."""
    return Figure(
        _curves_by_metric(ablations, "all", seed),
        f"Heads of {ablations['model'].iloc[0]} replaced by their mean at all positions: one intervention, two "
        "metrics. Top: few-shot accuracy on tasks that no ranking was made from; bottom: token-loss difference. "
        "Bands, bars: 95 % intervals, top over tasks, bottom over documents.",
        "Few-shot accuracy and token-loss difference against the share of ablated heads, by kind of head.")


def _curves_by_metric(ablations: pd.DataFrame, positions: str, seed: int):
    """A row per metric measured at these positions; a panel says where the clean model's is not told from 0."""
    rows = with_paired_errors(ablations[ablations["positions"].isin(("none", positions))])
    rows = rows[rows["replacement"].isin(("none", "mean"))]
    measured = set(ablations[ablations["positions"] == positions]["metric"])
    metrics = [metric for metric in (FEW_SHOT, TOKEN_LOSS) if metric in measured]
    figure, axes = plt.subplots(len(metrics), 2, figsize=(9.6, 3.3 * len(metrics)), squeeze=False, sharex=True,
                                sharey="row")
    for line, metric in zip(axes, metrics, strict=True):
        chosen = rows[rows["metric"] == metric]
        clean = chosen[chosen["ranking"] == "none"]
        unsure = len(clean) == 1 and not clean["value"].item() > 1.96 * clean["standard_error"].item()
        for ax, excluded in zip(line, (False, True), strict=True):
            _curves(ax, chosen, excluded, seed, matched=True)
            if unsure:
                ax.set_title("without ablation not told from 0", fontsize=9, loc="right")
            if metric == metrics[0]:
                ax.set_title("with exclusion of the other kind" if excluded else "plain ranking", fontsize=11)
            if metric == metrics[-1]:
                ax.set_xlabel("heads ablated (%)")
        line[0].set_ylabel(METRIC_LABEL[metric])
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    return axes


def _curves(ax, rows: pd.DataFrame, excluded: bool, seed: int, *, matched: bool = False) -> None:
    """Clean level, random heads (`matched`: also of a kind's layers) and both kinds, at the shares really ablated."""
    edited = rows[rows["ranking"] != "none"].assign(percent=lambda of: 100 * of["fraction"])
    kept = (edited["excluded"] != "") == excluded
    ax.axhline(rows[rows["ranking"] == "none"]["value"].mean(), linewidth=1, **look("none"))
    lines = [(edited[edited["ranking"] == "random"], look("random"))]
    for kind in KINDS:
        if matched:
            lines.append((edited[(edited["matched"] == kind) & kept], _in_layers(kind)))
        lines.append((edited[(edited["ranking"] == kind) & kept], look(kind)))
    apart = 0.3 if edited["fraction"].nunique() == 1 else 0  # points at one share would hide one another
    for place, (own, style) in enumerate(lines, start=-(len(lines) // 2)):
        line_over_tasks(ax, own.assign(percent=own["percent"] + apart * place), "percent", seed, **style)


def _in_layers(kind: str) -> dict:
    return look("random_layer_matched", marker=look(kind)["marker"], label=f"random in layers of {LABEL[kind]}",
                linestyle={"induction": "-.", "fv": "--"}[kind])


_PROTOCOL_WORDS = {
    "paper": "Paper's text: mean at the last position for accuracy, at all positions for the loss.",
    "released": "Released code: F1 on five generated tokens, mean at the last position; for the loss the value at the "
                "BOS at all positions; one random draw.",
    "single": "One intervention: mean at all positions for both.",
}


def figure_four(
    ablations: pd.DataFrame, numbers: pd.DataFrame, tasks: pd.DataFrame, protocols: list[str], *,
    exclude_fraction: float, seed: int,
) -> Figure:
    """Figure 4, a column per protocol: few-shot metric, the same with exclusion, token-loss difference with exclusion.

    `exclude_fraction` is that of the one intervention. Random heads stand in all rows without exclusion (A16).
    """
    ablations, columns = with_paired_errors(ablations), titles(protocols)
    figure, axes = plt.subplots(3, len(columns), figsize=(3.9 * len(columns), 8.4), squeeze=False, sharex="col")
    for column, (name, title) in zip(axes.T, columns.items(), strict=True):
        few_shot, token_loss = (protocol_rows(
            name, ablations, metric, exclude_fraction=exclude_fraction if name == "single" else None)
            for metric in ("few_shot", "token_loss"))
        levels = _levels(name, ablations, tasks.set_index("task")["floor"][few_shot["task"].unique()])
        for ax, excluded in zip(column, (False, True), strict=False):
            _curves(ax, few_shot, excluded, seed)
            for (words, level), line in zip(levels.items(), (":", "-.", "--"), strict=False):
                ax.axhline(level, color=GREY, linestyle=line, linewidth=1.2, label=words, zorder=0)
            ax.set_ylim(0, None)
            ax.set_ylabel(METRIC_LABEL[few_shot["metric"].iloc[0]] + "\nwith exclusion" * excluded, fontsize=11)
        if carries_loss(numbers, name):
            _curves(column[2], token_loss, True, seed)
        else:
            note(column[2], "not drawn: its error\nis too large here")
            column[2].tick_params(axis="y", left=False, labelleft=False)
        column[2].set_ylabel("token-loss\ndifference (nats)\nwith exclusion", fontsize=11)
        column[0].set_title(title, fontsize=11)
        column[2].set_xlabel("heads ablated (%)")
    legend(axes[0], loc="outside lower center", ncols=4)
    return Figure(
        axes,
        " ".join(_PROTOCOL_WORDS[name] for name in columns) + " Bands as above. Grey: floor (commonest label), "
        "accuracy without demonstrations. A token-loss difference whose error is too large for its row is not drawn.",
        "Three rows of few-shot metric, the same with exclusion and token-loss difference; a column per protocol.")


def _levels(name: str, ablations: pd.DataFrame, floors: pd.Series) -> dict[str, float]:
    without = ablations[(ablations["metric"] == "zero_shot_accuracy") & (ablations["ranking"] == "none")]
    levels = {"floor": float(floors.mean()), "no ablation, 0 shots": float(without["value"].mean())}
    if protocol(name).metric == "generated_f1":
        levels["F1 of right answers"] = float(ablations[ablations["metric"] == "f1_ceiling"]["value"].mean())
    return levels


def task_grid(ablations: pd.DataFrame, tasks: pd.DataFrame) -> Figure:
    """Appendix A.2: first-token accuracy of 20 tasks against the share of heads ablated; dotted: floor."""
    rows = ablations.query("metric == @FEW_SHOT and positions != 'last' and replacement in ('none', 'mean')")
    floors, n_columns = tasks.set_index("task")["floor"], 5
    names = able_tasks(rows[rows["ranking"] == "none"].set_index("task")["value"], floors, 20)
    n_rows = -(-len(names) // n_columns)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=(10.5, 2.1 * n_rows), sharex=True, sharey=True,
                                squeeze=False)
    plt.setp(axes.flat[len(names):], visible=False)
    for ax, task in zip(axes.flat, names, strict=False):
        of_task = rows[rows["task"] == task]
        ax.axhline(of_task[of_task["ranking"] == "none"]["value"].mean(), linewidth=1, **look("none"))
        ax.axhline(floors[task], color=GREY, linestyle=":", label="floor")
        for ranking in ("random", *KINDS):
            own = of_task.query("ranking == @ranking and (excluded == '' or ranking == 'random')")
            ax.plot(own.groupby(100 * own["fraction"])["value"].mean(), markersize=3.5, **look(ranking))
        ax.set_title(fill(task.replace("_", " "), 20), fontsize=8.5)
        ax.set_ylim(-0.03, 1.03)
    figure.supxlabel("heads ablated (%)", fontsize=11)
    figure.supylabel("accuracy (first token)", fontsize=11)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=9)
    n_prompts = rows[rows["ranking"].isin(KINDS)]["n_prompts"].max()
    return Figure(
        axes,
        f"Accuracy of {len(names)} evaluation tasks, {n_prompts} prompts each, heads replaced by their mean at all "
        "positions, plain rankings. Dotted: always giving the commonest label.",
        "Small panels of accuracy against share of ablated heads, one per task.")


def zero_shot_control(ablations: pd.DataFrame, *, n_shots: int, seed: int) -> Figure:
    """Accuracy without demonstrations under ablation with exclusion, with the clean lines at 0 and `n_shots` shots."""
    figure, ax = plt.subplots(figsize=(6.4, 3.4))
    _curves(ax, ablations[ablations["metric"] == "zero_shot_accuracy"], True, seed)
    clean = ablations[(ablations["metric"] == FEW_SHOT) & (ablations["ranking"] == "none")]["value"].mean()
    ax.axhline(clean, linewidth=1.2, **look("none", linestyle=":", label=f"no ablation, {n_shots} shots"))
    ax.set(xlabel="heads ablated (%)", ylabel="accuracy at 0 shots\n(first token)", ylim=(0, None))
    ax.legend(fontsize=9, loc="center right", bbox_to_anchor=(1.0, 0.62))
    return Figure(
        ax,
        "Accuracy at 0 shots with heads replaced by their mean at all positions, with exclusion. Dotted: clean at "
        f"{n_shots} shots. Bands: 95 % bootstrap intervals over tasks.",
        "Accuracy at 0 shots against share of ablated heads, with the clean lines at 0 shots and with demonstrations.")


def ablated_sets(conditions: list[Condition], scores: pd.DataFrame) -> Figure:
    """Share of heads in both ablated sets, and the mean percentile in either score of the heads that remain."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharex=True)
    sets = set_table(conditions, scores)
    plain, kept = (sets[sets["excluded"] == excluded].drop(columns="excluded").reset_index(drop=True)
                   for excluded in (False, True))
    for rows, line, words in ((plain, "-", "plain"), (kept, "--", "with exclusion"))[: 1 if kept.equals(plain) else 2]:
        axes[0].plot(100 * rows["fraction"], 100 * rows["overlap"], markersize=5,
                     **look("none", linestyle=line, marker="D", label=words))
        for ax, score in zip(axes[1:], ("fv", "induction"), strict=True):
            for kind in KINDS:
                ax.plot(100 * rows["fraction"], rows[f"{score}_after_{kind}"], markersize=5,
                        **look(kind, linestyle=line, label=f"{LABEL[kind]} ablated, {words}"))
    axes[0].set_ylim(-3, 103)
    for ax, label in zip(axes, ("heads in both sets (%)", "mean FV percentile\nof the heads that remain",
                                "mean induction percentile\nof the heads that remain"), strict=True):
        ax.set(xlabel="heads ablated (%)", ylabel=label)
    axes[0].legend(fontsize=9)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=9)
    return Figure(
        axes,
        "Left: share of heads that the two kinds' sets have in common. Middle and right: mean percentile among all "
        "heads, in either score, of the heads that are left. Dashed: with exclusion, where it changes a set.",
        "Overlap of the ablated sets and percentile of the remaining heads in two scores against share of ablated "
        "heads.")


def loss_by_position(curves: pd.DataFrame) -> Figure:
    """Left: loss by position in the document under ablation; right: its rise over the clean model. Log positions."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), sharex=True)
    clean = curves[curves["ranking"] == "none"].set_index("position")["value"]
    for (ranking, matched), rows in curves.set_index("position").groupby(["ranking", "matched"], sort=False):
        style = (_in_layers(matched) if matched else look(ranking)) | {"markersize": 4}
        axes[0].plot(rows["value"], **style)
        if ranking != "none":
            axes[1].plot(rows["value"] - clean, **style)
    for ax in axes:
        for place in (50, 500):
            ax.axvline(place, color=GREY, linewidth=0.8, zorder=0)
        ax.set(xscale="log", xlabel="token of the document (log scale)")
        ax.set_xticks([1, 5, 50, 500], [1, 5, 50, 500])
        ax.minorticks_off()
    axes[0].set_ylabel("loss (nats)")
    axes[1].set_ylabel("loss above the\nclean model's (nats)")
    axes[0].legend(fontsize=9)
    return Figure(
        axes,
        f"Mean loss over {curves['n_prompts'].iloc[0]} documents by position with {curves['fraction'].max():.0%} of "
        "heads replaced by their mean at all positions, and its rise over the clean model. Vertical lines: tokens 50 "
        "and 500.",
        "Loss against position in the document under ablation, and the same minus the clean model's loss.")
