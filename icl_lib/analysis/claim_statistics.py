"""The statistics that claims.yaml names: tables in, an estimate per model out; those of section 5: claim_dynamics."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from icl_lib.ablation.conditions import THEIRS
from icl_lib.ablation.effects import DIFFERENCE, corrected
from icl_lib.analysis import claim_dynamics
from icl_lib.analysis.claim_dynamics import size_trend
from icl_lib.analysis.claim_estimates import Estimate, spanned, tested, undecidable
from icl_lib.analysis.reading import third
from icl_lib.analysis.suite_tables import SuiteTables
from icl_lib.analysis.two_papers import MATCHED, by_task_benefits
from icl_lib.heads import overlap, top_heads
from icl_lib.kinds import RANKED_BY, mean_scores, scores_by_task, top_sets
from icl_lib.models.paper_models import family
from icl_lib.names import size_of
from icl_lib.stats.intervals import bootstrap_mean, spearman
from icl_lib.stats.permutation import depth_difference as depth_test
from icl_lib.stats.permutation import group_test, mean_rank_test, sign_test

ACCURACY, LOSS = "first_token_accuracy", "token_loss_difference"
# What a metric has to be above without ablation for there to be something to lose: accuracy (0..1), loss (nats).
TO_LOSE = {ACCURACY: 0.05, LOSS: 0.0}
NOTHING = {ACCURACY: "the model answers no more than one prompt in twenty",
           LOSS: "the model's loss does not fall along documents: nothing to lose"}
SMALLEST_BENEFIT = 0.05
NO_CONTROL = "no heads of neither kind left for a control"
NO_PATTERN = "the model can do none of the patterns"
NO_BENEFIT = "demonstrations raise accuracy by no more than one prompt in twenty, or the interval of it reaches 0"


def effect(suite: SuiteTables, *, metric: str, ranking: str, excluded: bool, among=None) -> Iterator[Estimate]:
    """What is lost beyond layer-matched random heads, per model.

    Cannot be decided without such heads, where the model has nothing to lose, and where nothing varied.
    """
    for model, rows in _effects(suite, metric, ranking, excluded).items():
        if among is not None and model not in among:
            continue
        row = next(rows.itertuples(), None)
        if row is None:
            yield undecidable(model, NO_CONTROL)
        elif _nothing_to_lose(suite, model, metric):
            yield undecidable(model, NOTHING[metric], row.value, row.n_prompts)
        else:
            estimate = spanned(model, (row.value, row.low, row.high), n=row.n_prompts, of="prompts or documents")
            yield estimate._replace(p_value=row.p_value) if estimate.decidable else estimate


def effect_trend(suite: SuiteTables, *, metric: str, excluded: bool) -> list[Estimate]:
    """Trend with size of the two kinds' difference in effect, of the models that have both kinds and a difference."""
    rows = {model: own for model, own in _effects(suite, metric, DIFFERENCE, excluded).items()
            if set(RANKED_BY) <= suite.kinds.get(model, set())}
    able = {model: own["value"].item() for model, own in rows.items()
            if len(own) and not _nothing_to_lose(suite, model, metric)}
    if rows and not able:
        return [undecidable("", "no model has a control and something to lose")]
    return size_trend(suite, able)


def shared_heads(suite: SuiteTables, n_resamples: int = 1000) -> Iterator[Estimate]:
    """Share of the top heads of one kind that is also among those of the other; interval over scoring tasks."""
    for model, scores in suite.scores.items():
        by_task = scores_by_task(scores, "fv")
        own = top_heads(mean_scores(scores, RANKED_BY["induction"]), fraction=suite.overlap_fraction)
        n_tasks, n_top = len(by_task), int(own.sum())

        def share(fv, own=own):
            return overlap(own, top_heads(fv.reshape(own.shape), fraction=suite.overlap_fraction))

        value = share(by_task.mean(0))
        if n_tasks < 2 or n_top < 2:
            yield undecidable(model, f"{n_top} top heads, {n_tasks} scoring tasks", value, n_top)
        else:
            drawn = np.random.default_rng(suite.seed).integers(n_tasks, size=(n_resamples, n_tasks))
            low, high = np.quantile([share(by_task[tasks].mean(0)) for tasks in drawn], [0.025, 0.975])
            yield Estimate(model, value, float(low), float(high), n=n_top)


def percentile(suite: SuiteTables, *, of: str) -> Iterator[Estimate]:
    """Mean percentile of one kind's top heads in the other kind's score, 0..1, against random sets of as many heads."""
    for model, scores in suite.scores.items():
        other = mean_scores(scores, RANKED_BY["induction" if of == "fv" else "fv"])
        chosen = top_sets(scores, fraction=suite.top_fraction)[of]
        n = int(chosen.sum())
        test = mean_rank_test(chosen, other, seed=suite.seed)
        yield undecidable(model, "one top head", test.value, n) if n < 2 else tested(model, test, n=n, of="top heads")


def depth_difference(suite: SuiteTables) -> Iterator[Estimate]:
    """Mean layer of the top FV heads minus that of the top induction heads, in layers, with a p-value."""
    for model, scores in suite.scores.items():
        tops = top_sets(scores, fraction=suite.top_fraction)
        test = depth_test(tops["fv"], tops["induction"], seed=suite.seed)
        yield tested(model, test, n=int(tops["fv"].sum()), of="top heads of each kind")


def rank_correlation(suite: SuiteTables) -> Iterator[Estimate]:
    """Rank correlation of the two scores over all heads."""
    for model, scores in suite.scores.items():
        induction, fv = (mean_scores(scores, score) for score in RANKED_BY.values())
        if fv.size < 4 or not np.ptp(induction) or not np.ptp(fv):
            yield undecidable(model, f"{fv.size} heads, or all alike", n=fv.size)
        else:
            yield spanned(model, spearman(induction, fv, seed=suite.seed), n=fv.size, of="heads")


def strength_trend(suite: SuiteTables, *, kind: str) -> list[Estimate]:
    """Trend with size of the top heads' mean score."""
    return size_trend(suite, {model: _top_mean(scores, kind, suite.top_fraction)
                              for model, scores in suite.scores.items()})


def family_difference(suite: SuiteTables) -> list[Estimate]:
    """Largest difference between families' mean FV score of the top heads; seeds of a size are averaged."""
    means = pd.DataFrame([(family(model), size_of(model), _top_mean(scores, "fv", suite.top_fraction))
                          for model, scores in suite.scores.items()], columns=["family", "size", "value"])
    groups = [rows["value"].groupby(rows["size"]).mean().to_numpy() for _, rows in means.groupby("family")]
    if len(groups) < 2:
        return []
    return [tested("", group_test(groups, seed=suite.seed), n=sum(map(len, groups)),
                   of=f"sizes of model in {len(groups)} families")]


def highest_induction(suite: SuiteTables, *, model: str) -> list[Estimate]:
    """The highest attention mass of any head of one model."""
    if model not in suite.scores:
        return []
    highest = float(mean_scores(suite.scores[model], RANKED_BY["induction"]).max())
    return [Estimate(model, highest, highest, highest)]


def dissociation(suite: SuiteTables) -> Iterator[Estimate]:
    """Difference FV minus induction as a share of the clean metric: accuracy minus token loss, independent errors."""
    both = {metric: _effects(suite, metric, DIFFERENCE, False) for metric in (ACCURACY, LOSS)}
    for model in both[ACCURACY]:
        if model not in both[LOSS]:
            continue
        if any(both[metric][model].empty for metric in both):
            yield undecidable(model, NO_CONTROL)
            continue
        nothing = [NOTHING[metric] for metric in both if _nothing_to_lose(suite, model, metric)]
        if nothing:
            yield undecidable(model, nothing[0])
            continue
        clean = suite.ablations(model).query("ranking == 'none'").groupby("metric")["value"].mean()
        if not set(both) <= set(clean.index):
            continue
        (a, a_low, a_high), (b, b_low, b_high) = (
            both[metric][model][["value", "low", "high"]].to_numpy()[0] / clean[metric] for metric in both)
        interval = (a - b, a - b - np.hypot(a - a_low, b_high - b), a - b + np.hypot(a_high - a, b - b_low))
        yield spanned(model, interval, n=int(both[ACCURACY][model]["n_prompts"].item()), of="prompts")


def tasks_with_larger_fv_loss(suite: SuiteTables) -> Iterator[Estimate]:
    """Share of evaluation tasks that lose more accuracy with FV heads than with induction heads ablated; sign test."""
    for model in suite.ablated:
        rows = suite.ablations(model)
        by_task = rows[rows["metric"] == ACCURACY].pivot_table(index="task", columns="ranking", values="value")
        if {"fv", "induction"} <= set(by_task):
            more = (by_task["induction"] - by_task["fv"]).dropna().to_numpy()
            yield tested(model, sign_test(more), n=len(more), of="tasks")


def few_shot_loss_beyond_zero_shot(suite: SuiteTables) -> Iterator[Estimate]:
    """Accuracy lost to FV heads with demonstrations minus that lost without, each beyond layer-matched random heads."""
    for model in suite.ablated:
        rows = suite.ablations(model)
        rows = rows[rows["ranking"].eq("fv") | rows["matched"].eq("fv")]
        by_task = rows.pivot_table(index="task", columns=["metric", "ranking"], values="value")
        metrics = (ACCURACY, "zero_shot_accuracy")
        if not {(metric, "fv") for metric in metrics} <= set(by_task):
            continue
        if not {(metric, "random_layer_matched") for metric in metrics} <= set(by_task):
            yield undecidable(model, NO_CONTROL)
            continue
        few, zero = (by_task[metric, "random_layer_matched"] - by_task[metric, "fv"] for metric in metrics)
        yield _over_tasks(suite, model, (few - zero).dropna())


def execution_gain(suite: SuiteTables) -> Iterator[Estimate]:
    """Accuracy on shuffled prompts with the FV heads' vector at a third of the layers minus random heads' vector."""
    for model in suite.executed:
        rows = suite.executions(model)
        rows = rows[rows["prompts"] == "shuffled"]
        by_task = rows[rows["layer"] == third(rows)].pivot_table(index="task", columns="heads", values="value")
        if "fv" in by_task and "random_layer_matched" not in by_task:
            yield undecidable(model, NO_CONTROL)
        elif "fv" in by_task:
            yield _over_tasks(suite, model, (by_task["fv"] - by_task["random_layer_matched"]).dropna())


def pattern_effect(suite: SuiteTables) -> Iterator[Estimate]:
    """Accuracy lost on patterns, per model, at the smallest share of heads ranked by prefix matching.

    Beyond random heads of neither kind in the same layers, at the most demonstrations, mean over the tasks that the
    model can do. Cannot be decided where it can do none, and without such random heads.
    """
    for model in suite.ablated:
        if suite.table("patterns", model).empty:
            continue
        effects = suite.table("pattern_effects", model)
        rows = effects[(effects["task_set"] == "patterns") & (effects["task"] == "") & (effects["excluded"] == "")
                       & (effects["ranking"] == "induction") & (effects["ranked_by"] == THEIRS)]
        least = (rows["fraction"] == rows["fraction"].min()) & (rows["n_shots"] == rows["n_shots"].max())
        row = rows[least & (rows["control"] == MATCHED)]
        if row.empty:
            yield undecidable(model, NO_PATTERN if rows.empty else NO_CONTROL)
        else:
            yield spanned(model, row[["value", "low", "high"]].to_numpy()[0], n=int(row["n_prompts"].item()),
                          of="prompts")


def benefit_lost(suite: SuiteTables) -> Iterator[Estimate]:
    """Share of what demonstrations add to accuracy on the paper's tasks that is lost, per model.

    With the largest share of heads by prefix matching ablated, beyond random heads of the same layers. Bootstrap over
    tasks. Cannot be decided where demonstrations add nothing, or the interval of what they add reaches 0.
    """
    for model in suite.ablated:
        benefits = by_task_benefits(suite.table("patterns", model))
        by_condition = {key: by_task for key, by_task in benefits if key[0] == "paper"}
        if not by_condition:
            continue
        share = max(fraction for _, _, fraction in by_condition)
        keys = [("paper", "none", 0.0), ("paper", MATCHED, share), ("paper", "induction", share)]
        if not set(keys) <= set(by_condition):
            yield undecidable(model, NO_CONTROL)
            continue
        none, matched, induction = (by_condition[key] for key in keys)
        table = pd.DataFrame({"lost": matched - induction, "benefit": none}).dropna()
        samples, n = (table["lost"].to_numpy(), table["benefit"].to_numpy()), len(table)
        if n < 2 or none.mean() <= SMALLEST_BENEFIT or bootstrap_mean(samples[1], seed=suite.seed).low <= 0:
            yield undecidable(model, NO_BENEFIT, n=n)
            continue
        with np.errstate(divide="ignore", invalid="ignore"):  # a few resamples may have no benefit
            ends = bootstrap(samples, _ratio, paired=True, n_resamples=2000, method="percentile",
                             rng=np.random.default_rng(suite.seed)).confidence_interval
        yield spanned(model, (_ratio(*samples), *ends), n=n, of="tasks")


def _effects(suite: SuiteTables, metric: str, ranking: str, excluded: bool) -> dict[str, pd.DataFrame]:
    """Per model in which this was ablated its row beyond layer-matched random heads, or none without such heads."""
    found = {}
    for model, rows in suite.effects.items():
        rows = rows[(rows["metric"] == metric) & (rows["ranking"] == ranking) & (rows["excluded"].ne("") == excluded)]
        if len(rows):  # at least against the clean model
            found[model] = corrected(rows)
    return found


def _nothing_to_lose(suite: SuiteTables, model: str, metric: str) -> bool:
    rows = suite.ablations(model)
    clean = rows[(rows["ranking"] == "none") & (rows["metric"] == metric)]["value"]
    return bool(len(clean) and clean.mean() <= TO_LOSE[metric])


def _over_tasks(suite: SuiteTables, model: str, values: pd.Series) -> Estimate:
    """A mean over tasks with its bootstrap interval over tasks."""
    if len(values) < 2:
        return undecidable(model, f"{len(values)} tasks", float(values.mean()), len(values))
    interval = bootstrap_mean(values.to_numpy(), seed=suite.seed)
    return spanned(model, interval, n=len(values), of="tasks")


def _top_mean(scores: pd.DataFrame, kind: str, fraction: float) -> float:
    return float(mean_scores(scores, RANKED_BY[kind])[top_sets(scores, fraction=fraction)[kind]].mean())


def _ratio(lost: np.ndarray, benefit: np.ndarray, axis: int = -1) -> np.ndarray | np.floating:
    return lost.mean(axis) / benefit.mean(axis)


STATISTICS: dict[str, Callable[..., Iterable[Estimate]]] = {f.__name__: f for f in (
    effect, effect_trend, shared_heads, percentile, depth_difference, rank_correlation, strength_trend,
    family_difference, highest_induction, dissociation, tasks_with_larger_fv_loss, few_shot_loss_beyond_zero_shot,
    execution_gain, pattern_effect, benefit_lost, *claim_dynamics.STATISTICS,
)}
