"""Sentences and small tables of the ablation page, made from its tables."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from icl_lib.ablation_effects import DIFFERENCE, FEW_SHOT, KINDS, corrected, with_holm
from icl_lib.ablation_protocols import protocol, protocol_rows
from icl_lib.ablation_tables import TOKEN_LOSS, Condition
from icl_lib.heads import head_names
from icl_lib.statistics import bootstrap_difference, bootstrap_mean

_KIND = {"fv": "FV heads", "induction": "induction heads"}
_METRIC = {FEW_SHOT: "few-shot accuracy", TOKEN_LOSS: "the token-loss difference"}


def conditions_table(conditions: list[Condition]) -> pd.DataFrame:
    """The ablated heads of each ranking that is not random, by fraction."""
    rows = [(c.fraction, c.ranking, c.excluded or "nothing", int(c.heads.sum()), " ".join(head_names(c.heads)))
            for c in conditions if c.ranking in ("induction", "fv")]
    return pd.DataFrame(rows, columns=["fraction", "ranking", "excluded", "n_heads", "heads"])


def curve_metrics(ablations: pd.DataFrame, positions: str) -> list[str]:
    """The metrics that were measured with edits at these positions, few-shot accuracy first."""
    measured = ablations[ablations["positions"] == positions]["metric"].unique()
    return [metric for metric in (FEW_SHOT, "token_loss_difference") if metric in measured]


def ablation_sentence(ablations: pd.DataFrame, positions: str, *, seed: int) -> str:
    """Loss of few-shot accuracy by kind at the largest fraction up to 10 %, against random heads of its layers."""
    ablations = ablations[ablations["replacement"].isin(("none", "mean"))]
    edited = ablations[(ablations["positions"] == positions) & (ablations["metric"] == FEW_SHOT)]
    fractions = np.sort(edited["fraction"].unique())
    fraction = fractions[fractions <= 0.1][-1] if (fractions <= 0.1).any() else fractions[0]
    at = edited[edited["fraction"] == fraction]
    clean = ablations[(ablations["ranking"] == "none") & (ablations["metric"] == FEW_SHOT)].set_index("task")["value"]
    control = at[at["ranking"] == "random_layer_matched"]
    control = control.groupby([control["excluded"] != "", "matched", "task"])["value"].mean()
    parts = []
    for ranking, label in (("fv", "FV heads"), ("induction", "induction heads")):
        for excluded, words in ((False, ""), (True, " (top heads of the other kind kept)")):
            rows = at[(at["ranking"] == ranking) & ((at["excluded"] != "") == excluded)].set_index("task")["value"]
            random = control[excluded, ranking].loc[rows.index].to_numpy()
            lost = bootstrap_difference(random, rows.to_numpy(), rows.index.to_numpy(), seed=seed, over="tasks")
            parts.append(f"{label}{words} {rows.mean():.2f}, {lost.value:+.2f} lost beyond random heads in the same "
                         f"layers ({lost.low:+.2f} to {lost.high:+.2f})")
    mean = bootstrap_mean(clean.to_numpy(), clean.index.to_numpy(), seed=seed, over="tasks")
    n_heads = int(at["n_heads"].iloc[0])
    return (f"Without ablation the few-shot accuracy is {mean.value:.2f} ({mean.low:.2f} to {mean.high:.2f}); with "
            f"{n_heads} {'head' if n_heads == 1 else 'heads'} ({fraction:.0%}) replaced: " + "; ".join(parts)
            + ". Intervals: 95 %, bootstrap over tasks.")


def intervention_sentence(effects: pd.DataFrame, *, replacement: str = "mean", positions: str = "all") -> str:
    """Which heads matter for which metric under one intervention, beyond random heads of the same layers.

    `effects` of one fraction; p-values are Holm's over all its rows of the two kinds.
    """
    told = with_holm(corrected(effects))
    own = told[(told["replacement"] == replacement) & (told["positions"] == positions)]
    parts = []
    for metric, name in _METRIC.items():
        for excluded, words in ((False, ""), (True, " with exclusion")):
            texts = []
            for kind in ("fv", "induction"):
                r = own[(own["metric"] == metric) & (own["ranking"] == kind) & ((own["excluded"] != "") == excluded)]
                if len(r):
                    r = r.iloc[0]
                    verdict = "more" if r["low"] > 0 else "less" if r["high"] < 0 else "not told apart"
                    texts.append(f"{_KIND[kind]} {r['value']:+.3f} ({r['low']:+.3f} to {r['high']:+.3f}; {verdict}; "
                                 f"Holm p {_p(r['p_holm'])})")
            if texts:
                parts.append(f"**{name}{words}**: " + ", ".join(texts))
    first = own.iloc[0]
    return (f"Heads replaced by {replacement} at {positions} positions, {first['n_heads']} of each kind "
            f"({first['fraction']:.0%}), {first['n_draws']} random draws each. Lost beyond random heads of the same "
            f"layers (95 % interval; more or less than they, where it excludes 0): " + "; ".join(parts)
            + f". Holm's correction is over the {len(told)} effects of the figure.")


def _p(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def robustness_sentence(effects: pd.DataFrame) -> str:
    """In how many interventions the order FV, induction, random (and its reverse for the loss) holds."""
    parts = []
    for metric, first, second in ((FEW_SHOT, "fv", "induction"), (TOKEN_LOSS, "induction", "fv")):
        rows = corrected(effects).query("metric == @metric")
        rows = rows.assign(excluded=rows["excluded"] != "")
        for excluded, words in ((False, "plain"), (True, "with exclusion")):
            wide = rows[rows["excluded"] == excluded].pivot(
                index=["replacement", "positions"], columns="ranking", values=["value", "low", "high"])
            if wide.empty:
                continue
            order = (wide["value", first] > wide["value", second]) & (wide["value", second] > 0)
            above = (wide["low", first] > 0) & (wide["high", second] > 0)
            sign = 1 if first == "fv" else -1
            gap = wide["low" if sign > 0 else "high", DIFFERENCE] * sign > 0
            parts.append(f"**{_METRIC[metric]}, {words}**: {_KIND[first]} above {_KIND[second]} above random in "
                         f"{int(order.sum())} of {len(wide)} interventions, {_KIND[first]} beyond random in "
                         f"{int(above.sum())}, and above {_KIND[second]} by more than the interval in {int(gap.sum())}")
    return ("The order the paper reports, counted over replacements and positions: " + "; ".join(parts) + ".")


def figure_columns(
    ablations: pd.DataFrame, floors: pd.Series, *, names: Mapping[str, str], exclude_fraction: float
) -> tuple[dict[str, dict[str, pd.DataFrame]], dict[str, dict[str, float]]]:
    """What `figure_four` draws: per protocol its rows and the levels beside the few-shot metric.

    The floor is the mean over tasks of always giving the commonest label; it and the level without demonstrations are
    of first tokens; so is, for the F1, what a model has that always answers right.
    """
    columns, levels = {}, {}
    without = ablations[(ablations["metric"] == "zero_shot_accuracy") & (ablations["ranking"] == "none")]
    for name, title in names.items():
        share = exclude_fraction if name == "single" else None
        columns[title] = {metric: protocol_rows(name, ablations, metric, exclude_fraction=share)
                          for metric in ("few_shot", "token_loss")}
        floor = float(floors[columns[title]["few_shot"]["task"].unique()].mean())
        levels[title] = {"floor": floor, "no ablation, 0 shots": float(without["value"].mean())}
        if protocol(name).metric == "generated_f1":
            levels[title]["F1 of right answers"] = float(f1_limits(ablations).mean())
    return columns, levels


def protocol_sentence(conditions: Mapping[str, list[Condition]]) -> str:
    """How many heads each protocol excludes and ablates in this model."""
    parts = []
    for name, own in conditions.items():
        plain = {(c.ranking, c.fraction): c.heads for c in own if c.ranking in KINDS and not c.excluded}
        kept = {(c.ranking, c.fraction): c.heads for c in own if c.ranking in KINDS and c.excluded}
        changed = sum(bool((plain[key] != kept[key]).any()) for key in plain)
        counts = sorted({int(mask.sum()) for mask in plain.values()})
        words = next(c.excluded for c in own if c.excluded).split(" ", 2)
        parts.append(f"**{name}** ablates {', '.join(map(str, counts))} heads; excluding the top {float(words[1]):.0%} "
                     f"changes {changed} of {len(plain)} sets")
    return "; ".join(parts) + "."


# Departures that change a number of the grid: places, words, and what differs from the one intervention.
_CHANGES = (
    ("A1", "each task's own mean instead of that of all scoring tasks", {"replacement": "task_mean"}),
    ("A2", "only the last position is replaced", {"positions": "last"}),
    ("A18", "zero instead of the mean", {"replacement": "zero"}),
    ("A18", "another prompt's output instead of the mean", {"replacement": "resample"}),
    ("T5", "the output at the BOS instead of the mean", {"replacement": "bos_value"}),
    ("A14", "the other kind's top heads kept", {"excluded": True}),
)


def changes_table(effects: pd.DataFrame, ablations: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """What each departure does to the difference between the kinds: metric lost to FV heads minus to induction heads.

    `effects` of one fraction: beyond random heads of the same layers, as on the page. The last row has no random heads
    of the same layers in the released protocol: its F1 and, with the same heads and positions, first-token accuracy.
    """
    rows = corrected(effects).query("ranking == @DIFFERENCE")
    rows = rows.assign(excluded=rows["excluded"] != "")
    here = {"replacement": "mean", "positions": "all", "excluded": False}

    def told(metric: str, **change) -> str:
        at = rows[rows["metric"] == metric]
        for column, value in (here | change).items():
            at = at[at[column] == value]
        return "-" if at.empty else f"{at['value'].item():+.3f} ({at['low'].item():+.3f} to {at['high'].item():+.3f})"

    lines = [("", "one intervention, as on this page", told(FEW_SHOT), told(TOKEN_LOSS))]
    lines += [(place, words, told(FEW_SHOT, **change), told(TOKEN_LOSS, **change)) for place, words, change in _CHANGES]
    share = effects["fraction"].iloc[0]
    for place, words, metric in (("A4", "F1 of generated tokens, last position", "generated_f1"),
                                 ("", "first-token accuracy, last position, no random heads", FEW_SHOT)):
        own = ablations[(ablations["metric"] == metric) & (ablations["positions"] == "last")
                        & (ablations["replacement"] == "mean") & (ablations["excluded"] == "")]
        at = own["fraction"].unique()
        own = own[own["fraction"] == at[np.abs(at - share).argmin()]] if len(at) else own
        wide = own[own["ranking"].isin(KINDS)].pivot_table(index="task", columns="ranking", values="value")
        lost = "-"
        if len(wide) > 1:
            gap = bootstrap_difference(wide["induction"].to_numpy(), wide["fv"].to_numpy(), wide.index.to_numpy(str),
                                       seed=seed, over="tasks")
            lost = f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
        lines.append((place, words, lost, "-"))
    columns = ["place", "what differs", "few-shot accuracy", "token-loss difference (nats)"]
    return pd.DataFrame(lines, columns=columns).set_index("place")


def zero_shot_sentence(ablations: pd.DataFrame) -> str:
    """What ablation does at 0 shots, where there are no demonstrations to learn from."""
    rows = ablations[ablations["metric"] == "zero_shot_accuracy"]
    clean = rows[rows["ranking"] == "none"]["value"].mean()
    ten = ablations[(ablations["metric"] == FEW_SHOT) & (ablations["ranking"] == "none")]["value"].mean()
    last = rows["fraction"].max()
    at = rows[(rows["excluded"] != "") & (rows["fraction"] == last)].groupby("ranking")["value"].mean()
    parts = [f"{at[kind]:.2f} with {_KIND[kind]}" for kind in ("fv", "induction")]
    return (f"Accuracy without demonstrations is {clean:.2f} ({ten:.2f} with them); with {last:.0%} of heads replaced "
            f"it is {' and '.join(parts)} (with exclusion).")


def sets_sentence(sets: pd.DataFrame) -> str:
    """Overlap of the ablated sets and what remains, at the smallest and largest fraction."""
    rows = sets[~sets["excluded"]].sort_values("fraction")
    low, high = rows.iloc[0], rows.iloc[-1]
    return (f"The plain sets share {low['overlap']:.0%} of their heads at {low['fraction']:.0%} ablated and "
            f"{high['overlap']:.0%} at {high['fraction']:.0%}. Then the heads that remain after ablating induction "
            f"heads have a mean percentile of {high['fv_after_induction']:.2f} in the FV score, and those that remain "
            f"after ablating FV heads one of {high['induction_after_fv']:.2f} in the induction score (0.50 for all).")


def f1_limits(ablations: pd.DataFrame) -> pd.Series:
    """Per task the F1 of a model that always answers right: below 1 for long or punctuated answers (A6)."""
    return ablations[ablations["metric"] == "f1_ceiling"].set_index("task")["value"]


def task_table(ablations: pd.DataFrame, floors: pd.Series, fraction: float) -> pd.DataFrame:
    """Per task: floor, ceiling of the F1, clean, and both kinds against random heads of their layers, in accuracy."""
    rows = ablations[(ablations["metric"] == FEW_SHOT) & (ablations["positions"] != "last")
                     & ablations["replacement"].isin(("none", "mean"))]
    at = rows["fraction"].unique()
    nearest = at[np.abs(at - fraction).argmin()]

    def column(ranking: str, matched: str = "") -> pd.Series:
        own = rows[(rows["ranking"] == ranking) & (rows["matched"] == matched) & (rows["excluded"] == "")]
        own = own if ranking == "none" else own[own["fraction"] == nearest]
        return own.groupby("task")["value"].mean().round(2)

    table = {"floor": floors[sorted(rows["task"].unique())].round(2),
             "F1 of right answers": f1_limits(ablations).round(2), "clean": column("none")}
    for kind in ("fv", "induction"):
        table[_KIND[kind]] = column(kind)
        table[f"random, layers of {_KIND[kind]}"] = column("random_layer_matched", kind)
    return pd.DataFrame(table).rename_axis("task")


def grid_tasks(ablations: pd.DataFrame, floors: pd.Series, n: int) -> list[str]:
    """`n` tasks that have something to lose, evenly over clean accuracy above the floor by at least 0.2."""
    clean = ablations[(ablations["metric"] == FEW_SHOT) & (ablations["ranking"] == "none")].set_index("task")["value"]
    able = [t for t in sorted(clean.index, key=lambda t: (-clean[t], t)) if clean[t] > floors[t] + 0.2]
    able = able or sorted(clean.index)
    return sorted(able[i] for i in sorted({round(x) for x in np.linspace(0, len(able) - 1, min(n, len(able)))}))


def execution_sentence(executions: pd.DataFrame, layer: int, *, preset: str, items: str, seed: int) -> str:
    """Accuracy with the FV heads' vector at a layer against nothing added and against the random vectors."""
    rows = executions[(executions["preset"] == preset) & (executions["items"] == items)]
    if rows.empty:
        return f"**{preset}** ({items} items, layer {layer}): no item was answered after clean demonstrations."
    parts = []
    for prompts, words in (("zero_shot", "without demonstrations"), ("shuffled", "with shuffled labels")):
        own = rows[(rows["prompts"] == prompts) & rows["layer"].isin((-1, layer))]
        by_task = own.groupby(["heads", "task"])["value"].mean().unstack("heads")
        gaps = []
        for other, label in (("none", "nothing added"), ("random_layer_matched", "random heads of the same layers")):
            if other not in by_task:
                continue
            gap = bootstrap_difference(by_task["fv"].to_numpy(), by_task[other].to_numpy(),
                                       by_task.index.to_numpy(str), seed=seed, over="tasks")
            gaps.append(f"{gap.value:+.2f} against {label} ({gap.low:+.2f} to {gap.high:+.2f})")
        parts.append(f"{words} {by_task['fv'].mean():.2f}, {' and '.join(gaps)}")
    clean = rows[rows["prompts"] == "clean"].groupby("task")["value"].mean()
    n_draws = rows[rows["heads"] == "random_layer_matched"]["draw"].nunique()
    draws = f"{n_draws} different random {'draws' if n_draws > 1 else 'draw'}" if n_draws else (
        "no random heads of neither kind are left to compare with")
    return (f"**{preset}** ({items} items of {len(clean)} tasks, layer {layer}, {draws}): accuracy with the FV "
            f"heads' vector {'; '.join(parts)}; {clean.mean():.2f} after clean demonstrations. Intervals: 95 %, bootstrap over tasks.")
