"""Statistics that claims.yaml names and explains under `test`: tables in, an estimate per model or over models out."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pandas as pd

from icl_lib.ablation.effects import DIFFERENCE, corrected
from icl_lib.analysis import claim_dynamics, claim_two_papers
from icl_lib.analysis.claim_dynamics import size_trend
from icl_lib.analysis.claim_estimates import NO_CONTROL, Estimate, spanned, tested, undecidable
from icl_lib.analysis.reading import vector_gains
from icl_lib.analysis.suite_tables import SuiteTables
from icl_lib.heads import overlap, top_heads
from icl_lib.kinds import RANKED_BY, mean_scores, scores_by_task, top_sets
from icl_lib.models.paper_models import family
from icl_lib.names import size_of
from icl_lib.stats.intervals import spearman
from icl_lib.stats.permutation import depth_difference as depth_test
from icl_lib.stats.permutation import group_test, mean_rank_test, sign_test

ACCURACY, LOSS, ZERO_SHOT = "first_token_accuracy", "token_loss_difference", "zero_shot_accuracy"
# What a metric has to be above without ablation for there to be something to lose: accuracy (0..1), loss (nats).
TO_LOSE = {ACCURACY: 0.05, ZERO_SHOT: 0.05, LOSS: 0.0}
NOTHING = {ACCURACY: "the model answers no more than one prompt in twenty",
           ZERO_SHOT: "without demonstrations the model answers no more than one prompt in twenty",
           LOSS: "the model's loss does not fall along documents: nothing to lose"}


def effect(
    suite: SuiteTables, *, metric: str, ranking: str, excluded: bool, positions: str = "all", among=None,
    larger_than: int = 0,
) -> Iterator[Estimate]:
    """What is lost beyond layer-matched random heads, per model.

    Cannot be decided without such heads, where the model has nothing to lose, where nothing varied, and of models that
    are not `larger_than` what a claim speaks of, in parameters.
    """
    for model, rows in _effects(suite, metric, ranking, excluded, positions).items():
        if among is not None and model not in among:
            continue
        row = next(rows.itertuples(), None)
        if row is None:
            yield undecidable(model, NO_CONTROL)
        elif larger_than and suite.sizes[model] <= larger_than:
            yield undecidable(model, f"the claim is about more than {larger_than / 1e6:g} million parameters",
                              row.value, row.n_prompts)
        elif _nothing_to_lose(suite, model, metric):
            yield undecidable(model, NOTHING[metric], row.value, row.n_prompts)
        else:
            estimate = spanned(model, (row.value, row.low, row.high), n=row.n_prompts, of="prompts or documents")
            if ranking == DIFFERENCE and row.low == row.high == 0:
                estimate = estimate._replace(why="the ablated sets of the two kinds are the same heads")
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


def shared_heads(suite: SuiteTables) -> Iterator[Estimate]:
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
            drawn = np.random.default_rng(suite.seed).integers(n_tasks, size=(1000, n_tasks))
            low, high = np.quantile([share(by_task[tasks].mean(0)) for tasks in drawn], [0.025, 0.975])
            yield Estimate(model, value, float(low), float(high), n=n_top)


def percentile(suite: SuiteTables, *, of: str) -> Iterator[Estimate]:
    """Mean percentile of one kind's top heads in the other kind's score, less that of random heads of their layers."""
    for model, scores in suite.scores.items():
        other = mean_scores(scores, RANKED_BY["induction" if of == "fv" else "fv"])
        chosen = top_sets(scores, fraction=suite.top_fraction)[of]
        n, test = int(chosen.sum()), mean_rank_test(chosen, other, seed=suite.seed)
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
        lacks = [NO_CONTROL for metric in both if both[metric][model].empty]
        lacks += [NOTHING[metric] for metric in both if _nothing_to_lose(suite, model, metric)]
        if lacks:
            yield undecidable(model, lacks[0])
            continue
        clean = suite.ablations[model].query("ranking == 'none'").groupby("metric")["value"].mean()
        if not set(both) <= set(clean.index):
            continue
        (a, a_low, a_high), (b, b_low, b_high) = (
            both[metric][model][["value", "low", "high"]].to_numpy()[0] / clean[metric] for metric in both)
        interval = (a - b, a - b - np.hypot(a - a_low, b_high - b), a - b + np.hypot(a_high - a, b - b_low))
        yield spanned(model, interval, n=int(both[ACCURACY][model]["n_prompts"].item()), of="prompts")


def tasks_with_larger_fv_loss(suite: SuiteTables) -> Iterator[Estimate]:
    """Share of tasks that lose more accuracy to FV than to induction heads, each beyond random ones; sign test."""
    for model in suite.ablated:
        fv, induction = (_lost_by_task(suite, model, ACCURACY, kind) for kind in ("fv", "induction"))
        if fv is None or induction is None:
            continue
        more = (fv - induction).dropna().to_numpy()
        differ = f"tasks, of which {np.count_nonzero(more)} differ"
        yield tested(model, sign_test(more), n=len(more), of=differ) if len(more) else undecidable(model, NO_CONTROL)


def few_shot_loss_beyond_zero_shot(suite: SuiteTables) -> Iterator[Estimate]:
    """Share of accuracy lost to FV heads with demonstrations minus that lost without, beyond random heads.

    As shares, for what is lost in proportion with and without demonstrations says nothing of them; accuracy that rises
    without them counts as none lost.
    """
    metrics = (ACCURACY, ZERO_SHOT)
    for model in suite.ablated:
        lost = [_lost_by_task(suite, model, metric, "fv") for metric in metrics]
        if any(of is None for of in lost):
            continue
        clean = suite.ablations[model].query("ranking == 'none'").pivot_table(
            index="task", columns="metric", values="value")
        table = pd.concat([*lost, *(clean[metric] for metric in metrics)], axis=1).dropna().to_numpy()
        if not len(table) or any(_nothing_to_lose(suite, model, metric) for metric in metrics):
            yield undecidable(model, NOTHING[ZERO_SHOT] if len(table) else NO_CONTROL, n=len(table))
            continue
        drawn = np.random.default_rng(suite.seed).integers(len(table), size=(2000, len(table)))
        few, zero, of_few, of_zero = table[drawn].mean(1).T
        with np.errstate(divide="ignore", invalid="ignore"):  # a few resamples may have nothing to lose
            shares = few / of_few - np.maximum(zero / of_zero, 0)
        few, zero, of_few, of_zero = table.mean(0)
        ends = np.nanquantile(shares[np.isfinite(shares)], [0.025, 0.975])
        yield spanned(model, (few / of_few - max(zero / of_zero, 0), *ends), n=len(table), of="tasks")


def execution_gain(suite: SuiteTables) -> Iterator[Estimate]:
    """Accuracy on shuffled prompts with the FV heads' vector at a third of the layers, above both controls.

    Those are random heads' vectors, which may do harm, and nothing added: the smaller gain counts, with the lower of
    each end of their intervals over tasks and draws. It is above zero where both are.
    """
    for model in suite.executed:
        rows = suite.executions(model)
        if not rows["heads"].eq("fv").any():
            continue
        gains = vector_gains(rows, "shuffled")
        if len(gains) < 2:
            yield undecidable(model, NO_CONTROL)
        else:
            yield spanned(model, np.min([*gains.values()], axis=0), n=rows["task"].nunique(), of="tasks")


def _effects(
    suite: SuiteTables, metric: str, ranking: str, excluded: bool, positions: str = "all"
) -> dict[str, pd.DataFrame]:
    """Per model in which this was ablated its row beyond layer-matched random heads, or none without such heads."""
    own = {model: rows[rows["metric"].eq(metric) & rows["ranking"].eq(ranking) & (rows["excluded"].ne("") == excluded)]
           for model, rows in suite.effects[positions].items()}
    return {model: corrected(rows) for model, rows in own.items() if len(rows)}  # at least against the clean model


def _lost_by_task(suite: SuiteTables, model: str, metric: str, kind: str) -> pd.Series | None:
    """What each task loses beyond layer-matched random heads; empty without these, None where it was not measured."""
    rows = suite.ablations[model]
    rows = rows[rows["metric"].eq(metric) & (rows["ranking"].eq(kind) | rows["matched"].eq(kind))]
    by_task = rows.pivot_table(index="task", columns="ranking", values="value")
    if kind not in by_task:
        return None
    return by_task.get("random_layer_matched", by_task[kind] * np.nan) - by_task[kind]


def _nothing_to_lose(suite: SuiteTables, model: str, metric: str) -> bool:
    rows = suite.ablations[model]
    clean = rows[(rows["ranking"] == "none") & (rows["metric"] == metric)]["value"]
    return bool(len(clean) and clean.mean() <= TO_LOSE[metric])


def _top_mean(scores: pd.DataFrame, kind: str, fraction: float) -> float:
    return float(mean_scores(scores, RANKED_BY[kind])[top_sets(scores, fraction=fraction)[kind]].mean())


STATISTICS: dict[str, Callable[..., Iterable[Estimate]]] = {f.__name__: f for f in (
    effect, effect_trend, shared_heads, percentile, depth_difference, rank_correlation, strength_trend,
    family_difference, highest_induction, dissociation, tasks_with_larger_fv_loss, few_shot_loss_beyond_zero_shot,
    execution_gain, *claim_two_papers.STATISTICS, *claim_dynamics.STATISTICS,
)}
