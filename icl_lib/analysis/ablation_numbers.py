"""Every number that a sentence of the ablation page prints, as rows of the table `statistics`: the one source."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from icl_lib.ablation.conditions import Condition, nearest_fraction
from icl_lib.ablation.effects import CONTROLS, DIFFERENCE, FEW_SHOT, at_fraction, corrected, set_table, with_holm
from icl_lib.ablation.protocols import protocol_rows
from icl_lib.ablation.table import TOKEN_LOSS, TOKEN_LOSS_POINTS, with_paired_errors
from icl_lib.analysis.reading import number, table_of
from icl_lib.heads import layer_distance
from icl_lib.kinds import KINDS, LOWEST, heads_of_kind
from icl_lib.stats.intervals import bootstrap_mean

# The token-loss difference of a protocol: the column of Figure 4 that its third row is drawn in.
LOSSES = {"paper": TOKEN_LOSS_POINTS, "released": TOKEN_LOSS_POINTS, "single": TOKEN_LOSS}


def effect_name(metric: str, ranking: str, excluded: bool, replacement: str, positions: str, control: str) -> str:
    """The name of an effect's row: what is lost of a metric when a ranking's heads are ablated, beyond a control."""
    return f"{metric} lost, {set_name(ranking, excluded)}, {replacement} at {positions}, control {control}"


def find(numbers: pd.DataFrame, name: str) -> pd.Series | None:
    """The row of this name, None where the page has no such number."""
    rows = numbers[numbers["name"] == name]
    return None if rows.empty else rows.iloc[0]


def ablation_numbers(
    ablations: pd.DataFrame, effects: pd.DataFrame, scores: pd.DataFrame, conditions: list[Condition],
    historic: Mapping[str, list[Condition]], *, fraction: float, exclude_fraction: float, seed: int,
) -> pd.DataFrame:
    """Table `statistics` of one model: the numbers that the page's sentences are filled from.

    `conditions` and `historic`: what was ablated for the tables and for the historical protocols. Effects are those at
    the share nearest to `fraction`; `n`: the tasks, documents, interventions or sets that a row is made from.
    """
    ablations = with_paired_errors(ablations)
    shown = at_fraction(effects, fraction)
    share = shown["fraction"].iloc[0]
    rows = [
        number("share of heads ablated", share, n=1), number("heads ablated", shown["n_heads"].iloc[0], n=1),
        *_clean(ablations, seed), *_accuracies(ablations, share), *_effects(shown), *_counts(shown),
        *_few_heads(effects), *_controls(conditions, scores, share), *_sets(conditions, scores, share),
        *_protocols(historic),
        *_detectable(ablations, (*historic, "single"), share, exclude_fraction), *_gaps_at_last(ablations, share, seed)]
    return table_of(rows, notebook="ablation", model=effects["model"].iloc[0])


def carries_loss(numbers: pd.DataFrame, protocol: str) -> bool | None:
    """Whether the token-loss difference of a protocol can show what Figure 4's third row asks; None: not measured.

    It can where the clean model's difference is above zero beyond its error, so that there is something to lose, and
    where the loss of all of it would be told apart from no change.
    """
    clean, least = find(numbers, f"{LOSSES[protocol]}, no ablation"), find(numbers, f"least change told, {protocol}")
    if clean is None or least is None:
        return None
    return bool(clean["low"] > 0 and least["value"] < clean["value"])


def able_tasks(clean: pd.Series, floors: pd.Series, n: int) -> list[str]:
    """`n` tasks that have something to lose, evenly over clean accuracy above the floor by at least 0.2."""
    able = [t for t in sorted(clean.index, key=lambda t: (-clean[t], t)) if clean[t] > floors[t] + 0.2]
    able = able or sorted(clean.index)
    return sorted(able[i] for i in sorted({round(x) for x in np.linspace(0, len(able) - 1, min(n, len(able)))}))


def set_name(ranking: str, excluded: bool) -> str:
    return ranking + (" with exclusion" if excluded else "")


def _clean(ablations: pd.DataFrame, seed: int) -> Iterable[dict]:
    """The clean model: means over tasks with bootstrap intervals over them, the loss with 1.96 standard errors."""
    clean = ablations[ablations["ranking"] == "none"]
    for metric in (FEW_SHOT, "zero_shot_accuracy"):
        rows = clean[clean["metric"] == metric]
        if len(rows):
            mean = bootstrap_mean(rows["value"].to_numpy(), seed=seed)
            yield number(f"{metric}, no ablation", *mean, n=len(rows))
    for row in clean[clean["metric"].isin((TOKEN_LOSS, TOKEN_LOSS_POINTS))].itertuples():
        half = 1.96 * row.standard_error
        yield number(f"{row.metric}, no ablation", row.value, row.value - half, row.value + half, n=row.n_prompts)


def _accuracies(ablations: pd.DataFrame, share: float) -> Iterable[dict]:
    """Accuracy with a kind's heads replaced by their mean: at the shown share, and at 0 shots at the largest one."""
    rows = ablations[ablations["ranking"].isin(KINDS) & (ablations["replacement"] == "mean")]
    at = rows[(rows["metric"] == FEW_SHOT) & (rows["fraction"] == share)]
    without = rows[rows["metric"] == "zero_shot_accuracy"]
    if len(without):
        largest = without["fraction"].max()
        yield number("share of heads ablated at 0 shots", largest, n=1)
        at = pd.concat([at, without[without["fraction"] == largest]])
    for (metric, ranking, excluded, positions), own in at.groupby(
            ["metric", "ranking", at["excluded"] != "", "positions"], sort=False):
        yield number(f"{metric}, {set_name(ranking, excluded)}, mean at {positions}", own["value"].mean(), n=len(own))


def _effects(shown: pd.DataFrame) -> Iterable[dict]:
    """Effects as measured, and Holm's p over those beyond layer-matched heads."""
    for row in shown[shown["ranking"].isin((*KINDS, DIFFERENCE))].itertuples():
        yield number(_name(row), row.value, row.low, row.high, row.p_value, n=row.n_prompts)
    adjusted = with_holm(corrected(shown))
    for row in adjusted.itertuples():
        yield number(f"{_name(row)}, Holm's p", row.p_holm, n=len(adjusted))


def _few_heads(effects: pd.DataFrame) -> Iterable[dict]:
    """The single top head of each kind, where it was ablated alone, and the heads of the lowest FV scores."""
    rows = effects[(effects["metric"] == FEW_SHOT) & (effects["replacement"] == "mean") & (effects["excluded"] == "")
                   & (effects["control"] == "none")]
    few = rows["ranking"].eq(LOWEST) | rows["ranking"].isin(KINDS) & rows["n_heads"].eq(1)
    for row in rows[few].drop_duplicates(["ranking", "n_heads", "positions"]).itertuples():
        name = f"{FEW_SHOT} lost, {row.n_heads} heads of {row.ranking}, mean at {row.positions}"
        yield number(name, row.value, row.low, row.high, row.p_value, n=row.n_prompts)


def _name(row) -> str:
    return effect_name(row.metric, row.ranking, row.excluded != "", row.replacement, row.positions, row.control)


def _counts(shown: pd.DataFrame) -> Iterable[dict]:
    """In how many interventions the order that the paper reports holds, beyond random heads of the same layers."""
    rows = corrected(shown)
    for metric, first, second in ((FEW_SHOT, "fv", "induction"), (TOKEN_LOSS, "induction", "fv")):
        for excluded in (False, True):
            own = rows[(rows["metric"] == metric) & ((rows["excluded"] != "") == excluded)]
            wide = own.pivot(index=["replacement", "positions"], columns="ranking", values=["value", "low", "high"])
            if wide.empty:
                continue
            order = (wide["value", first] > wide["value", second]) & (wide["value", second] > 0)
            gap = wide["low", DIFFERENCE] > 0 if first == "fv" else wide["high", DIFFERENCE] < 0
            for words, holds in (("in order", order), ("beyond random", wide["low", first] > 0), ("told apart", gap)):
                yield number(f"interventions {words}, {metric}, {set_name(first, excluded)}", holds.sum(), n=len(wide))


def _controls(conditions: list[Condition], scores: pd.DataFrame, share: float) -> Iterable[dict]:
    """Heads of neither kind, different draws of random heads, and how far layer-matched ones are from their set."""
    of_kind = heads_of_kind(scores)
    neither = ~(of_kind["induction"] | of_kind["fv"])
    yield number("heads of neither kind", neither.sum(), n=neither.size)
    at = [c for c in conditions if c.fraction == share]
    yield number("draws, random", sum(c.ranking == "random" for c in at), n=1)
    for own in (c for c in at if c.ranking in KINDS):
        drawn = [c.heads for c in at if c.ranking == CONTROLS[2] and (c.matched, c.excluded) == (
            own.ranking, own.excluded)]
        name = set_name(own.ranking, own.excluded != "")
        yield number(f"draws, layer-matched, {name}", len(drawn), n=1)
        if drawn:
            distance = np.mean([layer_distance(own.heads, heads) for heads in drawn])
            yield number(f"layer distance, {name}", distance, n=len(drawn))


def _sets(conditions: list[Condition], scores: pd.DataFrame, share: float) -> Iterable[dict]:
    """Overlap of the plain sets and what scores remain, at the smallest, the shown and the largest share."""
    sets = set_table(conditions, scores)
    plain = sets[~sets["excluded"]].sort_values("fraction")
    shown = plain[plain["fraction"] == share].iloc[0]
    yield number("shared heads at the shown share", shown["overlap"], n=shown["n_heads"])
    for place, row in (("smallest", plain.iloc[0]), ("largest", plain.iloc[-1])):
        yield number(f"{place} share of heads", row["fraction"], n=1)
        yield number(f"shared heads at the {place} share", row["overlap"], n=row["n_heads"])
    for score, kind in (("fv", "induction"), ("induction", "fv")):
        yield number(f"percentile in {score} after {kind}", plain.iloc[-1][f"{score}_after_{kind}"], n=1)


def _protocols(historic: Mapping[str, list[Condition]]) -> Iterable[dict]:
    """How many heads each protocol ablates at each of its shares, and how many sets its exclusion changes."""
    for name, own in historic.items():
        plain = {(c.ranking, c.fraction): c.heads for c in own if c.ranking in KINDS and not c.excluded}
        kept = {(c.ranking, c.fraction): c.heads for c in own if c.ranking in KINDS and c.excluded}
        for fraction, n_heads in sorted({(key[1], int(mask.sum())) for key, mask in plain.items()}):
            yield number(f"heads ablated, {name}, {fraction:g}", n_heads, n=1)
        changed = sum(bool((plain[key] != kept[key]).any()) for key in plain)
        yield number(f"sets changed by exclusion, {name}", changed, n=len(plain))


def _detectable(
    ablations: pd.DataFrame, protocols: Iterable[str], share: float, exclude_fraction: float
) -> Iterable[dict]:
    """The least change of each protocol's token-loss difference that its error, paired by document, tells from none."""
    for name in protocols:
        own_share = exclude_fraction if name == "single" else None
        rows = protocol_rows(name, ablations, "token_loss", exclude_fraction=own_share)
        at = _nearest(rows[rows["ranking"].isin(KINDS)], share)
        if len(at):
            least = 1.96 * at["standard_error"].max(skipna=False)
            yield number(f"least change told, {name}", least, n=at["n_prompts"].iloc[0])


def _gaps_at_last(ablations: pd.DataFrame, share: float, seed: int) -> Iterable[dict]:
    """Accuracy and F1 lost to FV less to induction heads at the last position, no random heads."""
    rows = ablations[(ablations["positions"] == "last") & (ablations["replacement"] == "mean")
                     & (ablations["excluded"] == "") & ablations["ranking"].isin(KINDS)]
    for metric in ("generated_f1", FEW_SHOT):
        own = _nearest(rows[rows["metric"] == metric], share)
        wide = own.pivot_table(index="task", columns="ranking", values="value")
        if len(wide) > 1:
            gap = bootstrap_mean((wide["induction"] - wide["fv"]).to_numpy(), seed=seed)
            yield number(effect_name(metric, DIFFERENCE, False, "mean", "last", "without"), *gap, n=len(wide))


def _nearest(rows: pd.DataFrame, share: float) -> pd.DataFrame:
    return rows[rows["fraction"] == nearest_fraction(rows["fraction"], share)] if len(rows) else rows
