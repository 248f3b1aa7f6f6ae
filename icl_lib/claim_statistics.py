"""The statistics that claims.yaml names: a suite's tables in, an estimate per model out."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from icl_lib import dynamics, scaling
from icl_lib.ablation_effects import DIFFERENCE
from icl_lib.kinds import top_sets
from icl_lib.measurements import mean_scores
from icl_lib.paper_models import family
from icl_lib.statistics import Interval, bootstrap_difference, bootstrap_mean, percentile_rank, spearman, trend_test
from icl_lib.suite_tables import SuiteTables

INDUCTION = scaling.INDUCTION
ACCURACY, LOSS = "first_token_accuracy", "token_loss_difference"


class Estimate(NamedTuple):
    """What a statistic says of one model ("" for all of a suite): with an interval, a p-value, or neither."""

    model: str
    value: float
    low: float = np.nan
    high: float = np.nan
    p_value: float = np.nan
    n: int = 1


def effect(suite: SuiteTables, *, metric: str, ranking: str, excluded: bool, among=None) -> list[Estimate]:
    """A row of the table `effects` per model."""
    rows = suite.effects.query("metric == @metric and ranking == @ranking and excluded == @excluded")
    return [Estimate(row.model, row.value, row.low, row.high, row.p_value, row.n_prompts)
            for row in rows.itertuples() if among is None or row.model in among]


def effect_trend(suite: SuiteTables, *, metric: str, excluded: bool) -> list[Estimate]:
    """Trend with size of the two kinds' difference in effect."""
    rows = suite.effects.query(f"metric == @metric and ranking == '{DIFFERENCE}' and excluded == @excluded")
    return _trend(rows["parameters"], rows["value"], suite.seed) if len(rows) else []


def shared_heads(suite: SuiteTables) -> list[Estimate]:
    """Share of the top heads of one kind that is also among those of the other."""
    def share(induction, fv):
        tops = [_top(values, suite.overlap_fraction) for values in (induction, fv)]
        return (tops[0] & tops[1]).sum() / tops[0].sum()
    return _over_tasks(suite, share)


def percentile(suite: SuiteTables, *, of: str) -> list[Estimate]:
    """Mean percentile of one kind's top heads in the other kind's score, 0..1."""
    def rank(induction, fv):
        own, other = (fv, induction) if of == "fv" else (induction, fv)
        return percentile_rank(other)[_top(own, suite.top_fraction)].mean()
    return _over_tasks(suite, rank)


def depth_difference(suite: SuiteTables) -> list[Estimate]:
    """Mean layer of the top FV heads minus that of the top induction heads, in layers, with a p-value."""
    table = _compared(suite)
    return [] if table is None else [
        Estimate(row["model"], row["depth difference (layers)"], p_value=row["p (depth)"], n=row["heads"])
        for _, row in table.iterrows()]


def rank_correlation(suite: SuiteTables) -> list[Estimate]:
    """Rank correlation of the two scores over all heads."""
    found = []
    for model, scores in suite.scores.items():
        induction, fv = (mean_scores(scores, score).numpy() for score in (INDUCTION, "fv"))
        if np.ptp(induction) and np.ptp(fv):
            found.append(Estimate(model, *spearman(induction, fv, seed=suite.seed), n=fv.size))
    return found


def strength_trend(suite: SuiteTables, *, score: str) -> list[Estimate]:
    """Trend with size of the top heads' mean score."""
    means = {model: _top_mean(scores, score, suite.top_fraction) for model, scores in suite.scores.items()}
    sizes = suite.sizes.set_index("model")["parameters"]
    return _trend(sizes[list(means)], pd.Series(means), suite.seed) if means else []


def family_difference(suite: SuiteTables) -> list[Estimate]:
    """Largest difference between families' mean FV score of the top heads; needs two families with three models."""
    groups: dict[str, list[float]] = {}
    for model, scores in suite.scores.items():
        groups.setdefault(family(model), []).append(_top_mean(scores, "fv", suite.top_fraction))
    groups = {name: values for name, values in groups.items() if len(values) >= 3}
    if len(groups) < 2:
        return []
    means = [np.mean(values) for values in groups.values()]
    p_value = float(stats.kruskal(*groups.values()).pvalue)
    return [Estimate("", float(max(means) - min(means)), p_value=p_value, n=sum(map(len, groups.values())))]


def highest_induction(suite: SuiteTables, *, model: str) -> list[Estimate]:
    """The highest attention mass of any head of one model."""
    if model not in suite.scores:
        return []
    highest = float(mean_scores(suite.scores[model], INDUCTION).max())
    return [Estimate(model, highest, highest, highest)]


def dissociation(suite: SuiteTables) -> list[Estimate]:
    """Difference FV minus induction as a share of the clean metric: accuracy minus token loss, independent errors."""
    found = []
    for model, rows in suite.effects.query(f"ranking == '{DIFFERENCE}' and excluded == False").groupby("model"):
        clean = suite.ablations(model).query("ranking == 'none'").groupby("metric")["value"].mean()
        by_metric = {row.metric: np.array([row.value, row.low, row.high]) / clean[row.metric]
                     for row in rows.itertuples() if clean.get(row.metric, 0) > 0}
        if {ACCURACY, LOSS} <= set(by_metric):
            (a, a_low, a_high), (b, b_low, b_high) = by_metric[ACCURACY], by_metric[LOSS]
            found.append(Estimate(model, a - b, a - b - np.hypot(a - a_low, b_high - b),
                                  a - b + np.hypot(a_high - a, b - b_low), n=int(rows["n_prompts"].min())))
    return found


def tasks_with_larger_fv_loss(suite: SuiteTables) -> list[Estimate]:
    """Share of evaluation tasks that lose more accuracy with FV heads than with induction heads ablated."""
    found = []
    for model in suite.ablated:
        rows = suite.ablations(model)
        if len(rows):
            by_task = rows[rows["metric"] == ACCURACY].pivot_table(index="task", columns="ranking", values="value")
            more = (np.sign(by_task["induction"] - by_task["fv"]) + 1) / 2
            found.append(Estimate(model, *_mean_over_tasks(more, suite.seed), n=len(more)))
    return found


def few_shot_loss_beyond_zero_shot(suite: SuiteTables) -> list[Estimate]:
    """Accuracy lost to FV heads with demonstrations minus that lost without, each beyond layer-matched random heads."""
    found = []
    for model in suite.ablated:
        rows = suite.ablations(model)
        if len(rows):
            rows = rows[rows["ranking"].eq("fv") | rows["matched"].eq("fv")]
            by_task = rows.pivot_table(index="task", columns=["metric", "ranking"], values="value")
            lost = [by_task[metric, "random_layer_matched"] - by_task[metric, "fv"]
                    for metric in (ACCURACY, "zero_shot_accuracy")]
            found.append(Estimate(model, *_mean_over_tasks(lost[0] - lost[1], suite.seed), n=len(by_task)))
    return found


def execution_gain(suite: SuiteTables) -> list[Estimate]:
    """Accuracy on shuffled prompts with the FV heads' vector at a third of the layers minus random heads' vector."""
    found = []
    for model in suite.executed:
        rows = suite.executions(model)
        if len(rows):
            third = (int(rows["layer"].max()) + 1) // 3
            at = rows[(rows["prompts"] == "shuffled") & (rows["layer"] == third)]
            by_task = at.pivot_table(index="task", columns="heads", values="value")
            gain = bootstrap_difference(
                by_task["fv"].to_numpy(), by_task["random_layer_matched"].to_numpy(), by_task.index.to_numpy(str),
                seed=suite.seed, over="tasks")
            found.append(Estimate(model, *gain, n=len(by_task)))
    return found


def emergence_share(suite: SuiteTables, *, kind: str) -> list[Estimate]:
    """First step with a kind of heads as a share of the last; from the last step known without it."""
    found = []
    for model, (first, before, last) in _emergence(suite, kind).items():
        if np.isfinite(first):
            found.append(Estimate(model, first / last, before / last, first / last))
    return found


def emergence_gap(suite: SuiteTables) -> list[Estimate]:
    """First step with FV heads minus first with induction heads, in steps, with what the checkpoints allow."""
    induction, fv = _emergence(suite, "induction"), _emergence(suite, "fv")
    return [Estimate(model, fv[model][0] - i, fv[model][1] - i, fv[model][0] - before)
            for model, (i, before, _) in induction.items() if np.isfinite(i) and np.isfinite(fv[model][0])]


def emergence_trend(suite: SuiteTables, *, kind: str) -> list[Estimate]:
    """Trend with size of the first step with a kind of heads; models in which it never came are left out."""
    came = {model: first for model, (first, *_) in _emergence(suite, kind).items() if np.isfinite(first)}
    sizes = suite.sizes.set_index("model")["parameters"]
    return _trend(sizes[list(came)], pd.Series(came), suite.seed) if came else []


def rise_difference(suite: SuiteTables) -> list[Estimate]:
    """Doublings of the step between a tenth and nine tenths of the top heads' final mean score: FV minus induction."""
    found = []
    for model, curves in _curves(suite).items():
        width = {}
        for kind, curve in curves.items():
            low, high = (int(curve.index[curve >= share * curve.iloc[-1]].min()) for share in (0.1, 0.9))
            width[kind] = np.log2((high + 1) / (low + 1))
        difference = float(width["fv"] - width["induction"])
        found.append(Estimate(model, difference, difference, difference))
    return found


def plateau(suite: SuiteTables) -> list[Estimate]:
    """Final mean score of the top induction heads as a share of its highest over training."""
    found = []
    for model, curves in _curves(suite).items():
        share = float(curves["induction"].iloc[-1] / curves["induction"].max())
        found.append(Estimate(model, share, share, share))
    return found


def accuracy_follows(suite: SuiteTables) -> list[Estimate]:
    """Rank correlation of few-shot accuracy and the top FV heads' mean score over at least 4 checkpoints."""
    found = []
    for model, curves in _curves(suite).items():
        both = pd.concat([curves["fv"], suite.accuracy(model)], axis=1).dropna().to_numpy()
        if len(both) >= 4:
            found.append(Estimate(model, *spearman(both[:, 0], both[:, 1]), n=len(both)))
    return found


def induction_first_share(suite: SuiteTables) -> list[Estimate]:
    """Share of the heads with an FV score that had an induction score at an earlier checkpoint."""
    found = []
    for model, table in suite.transitions.items():
        orders = ["induction_first", "fv_first", "both_at_once", "fv_only"]
        found += _share(model, table.at["induction_first", "heads"], table.loc[orders, "heads"].sum())
    return found


def reverse_share(suite: SuiteTables) -> list[Estimate]:
    """Share with the FV score first among heads that had both scores at some checkpoint."""
    found = []
    for model, table in suite.transitions.items():
        both = table.loc[["induction_first", "fv_first", "both_at_once"], "heads"].sum()
        found += _share(model, table.at["fv_first", "heads"], both)
    return found


def transitions_beyond_chance(suite: SuiteTables) -> list[Estimate]:
    """Heads that were induction heads first, minus their number under random pairing of the curves within layers."""
    return [Estimate(model, row["heads"] - row["expected by chance"], p_value=row["p (at least as many)"],
                     n=int(table["heads"].sum()))
            for model, table in suite.transitions.items() for row in [table.loc["induction_first"]]]


def _trend(sizes: pd.Series, values: pd.Series, seed: int) -> list[Estimate]:
    if sizes.nunique() < 3:
        return []
    test = trend_test(sizes.to_numpy(dtype=float), values.to_numpy(dtype=float), seed=seed)
    return [Estimate("", test.value, p_value=test.p_value, n=len(values))]


def _share(model: str, count: int, total: int) -> list[Estimate]:
    """A share of heads with its exact interval; nothing where there are no heads."""
    if not total:
        return []
    interval = stats.binomtest(int(count), int(total)).proportion_ci()
    return [Estimate(model, count / total, float(interval.low), float(interval.high), n=int(total))]


def _top(values: np.ndarray, fraction: float) -> np.ndarray:
    """Mask of the top share of heads, count rounded up, ties to the lower layer and head."""
    mask = np.zeros(values.size, dtype=bool)
    mask[np.argsort(-values, axis=None, kind="stable")[: int(np.ceil(fraction * values.size - 1e-9))]] = True
    return mask.reshape(values.shape)


def _top_mean(scores: pd.DataFrame, score: str, fraction: float) -> float:
    mask = top_sets(scores, fraction=fraction)["fv" if score == "fv" else "induction"]
    return float(mean_scores(scores, score)[mask].mean())


def _over_tasks(suite: SuiteTables, statistic: Callable, n_resamples: int = 1000) -> list[Estimate]:
    """A statistic of both scores per model, with the interval over scoring tasks: the FV ranking is made anew."""
    found = []
    for model, scores in suite.scores.items():
        induction = mean_scores(scores, INDUCTION).numpy()
        rows = scores[scores["score"] == "fv"]
        fv = rows.pivot_table(index="task", columns=["layer", "head"], values="value").to_numpy()
        drawn = np.random.default_rng(suite.seed).integers(len(fv), size=(n_resamples, len(fv)))
        resampled = [statistic(induction, fv[tasks].mean(0).reshape(induction.shape)) for tasks in drawn]
        low, high = np.quantile(resampled, [0.025, 0.975])
        found.append(Estimate(model, float(statistic(induction, fv.mean(0).reshape(induction.shape))), float(low),
                              float(high), n=len(fv)))
    return found


def _mean_over_tasks(values: pd.Series, seed: int) -> Interval:
    values = values.dropna()
    return bootstrap_mean(values.to_numpy(), values.index.to_numpy(str), seed=seed, over="tasks")


def _compared(suite: SuiteTables) -> pd.DataFrame | None:
    able = [table for table in suite.scores.values() if table[table["score"] == "fv"]["value"].any()]
    return scaling.comparison_table(
        pd.concat(able), suite.sizes, fraction=suite.top_fraction, overlap_fraction=suite.overlap_fraction,
        seed=suite.seed) if able else None


def _emergence(suite: SuiteTables, kind: str) -> dict[str, tuple[float, float, int]]:
    """Per followed model the first step with a kind (infinite: never), the last without it (0: none) and the last."""
    found = {}
    for model, scores in suite.followed.items():
        row = dynamics.emergence_table(
            scores, induction_threshold=suite.induction_threshold, null_quantile=suite.null_quantile
        ).set_index("kind").loc[kind]
        first, before = row["first step with it"], row["last step without"]
        found[model] = (np.inf if pd.isna(first) else float(first), 0.0 if pd.isna(before) else float(before),
                        int(scores["step"].max()))
    return found


def _curves(suite: SuiteTables) -> dict[str, dict[str, pd.Series]]:
    """Per followed model and kind the mean score of the top heads, selected at each step, by step."""
    found = {}
    for model, scores in suite.followed.items():
        curves = dynamics.top_score_curves(scores, fraction=suite.top_fraction)
        curves = curves[curves["selection"] == "selected at each checkpoint"]
        found[model] = {kind: rows.set_index("step")["value"] for kind, rows in curves.groupby("kind")}
    return found


STATISTICS: dict[str, Callable[..., list[Estimate]]] = {f.__name__: f for f in (
    effect, effect_trend, shared_heads, percentile, depth_difference, rank_correlation, strength_trend,
    family_difference, highest_induction, dissociation, tasks_with_larger_fv_loss, few_shot_loss_beyond_zero_shot,
    execution_gain, emergence_share, emergence_gap, emergence_trend, rise_difference, plateau, accuracy_follows,
    induction_first_share, reverse_share, transitions_beyond_chance,
)}
