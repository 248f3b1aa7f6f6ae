"""The ledger's statistics once more, in plain pandas, numpy and scipy: a function per claim of claims.yaml.

Each gives {model or "": value}, or (value, low, high, p) where these can be recomputed too; NaN is not recomputed, and
(end, tolerance) is an end of a bootstrap interval. `NOT_AUDITED` says which claims have none, and why.
"""

import itertools

import numpy as np
import pandas as pd
from scipy import stats

from tests import audit_patterns, audit_seeds
from tests import audit_plain as plain
from tests.audit_effects import plain_interval
from tests.audit_plain import ACCURACY, FV, LOSS, MASS

NOT_AUDITED = {
    "H3, C1": "has no statistic",
    "H5": "needs models of two families, the made-up suite has one",
    "3e, 5g": "is about one model of the hub", "4h": "is about two models of the hub",
}
LAST = "random_layer_matched"


def effect(metric, ranking, excluded, positions="all"):
    def of(suite):
        found = {}
        for model, lost in (suite.losses if positions == "all" else suite.losses_last).items():
            key = (metric, excluded, LAST, ranking)
            if key in lost:
                rows = suite.effects[model]
                row, = rows[(rows["metric"] == metric) & (rows["excluded"].ne("") == excluded)
                            & (rows["positions"] == positions)
                            & (rows["control"] == LAST) & (rows["ranking"] == ranking)].itertuples()
                found[model] = (lost[key], row.low, row.high, row.p_value)
            else:
                found[model] = np.nan
        return found
    return of


def trend(suite, values):
    by_size = pd.Series(values).groupby([suite.sizes[model] for model in values]).mean()
    rho, p, _ = plain.trend(by_size.index, by_size.to_numpy())
    return {"": (rho, np.nan, np.nan, p)}


def effect_trend(metric, excluded):
    return lambda suite: trend(suite, {model: lost[metric, excluded, LAST, "fv_minus_induction"]
                                       for model, lost in suite.losses.items()
                                       if (metric, excluded, LAST, "fv_minus_induction") in lost
                                       and len(suite.kinds(model)) == 2})


def shared(suite):
    found = {}
    for model, scores in suite.scores.items():
        wide = scores[scores["score"] == FV].pivot_table(index="task", columns=["layer", "head"], values="value")
        by_task, mass = wide.to_numpy(), plain.heads(scores, MASS)
        own = set(plain.top(mass, suite.shares["overlap_fraction"]))
        drawn = np.random.default_rng(1).integers(len(by_task), size=(500, len(by_task)))
        share = [len(own & set(plain.top(by_task[rows].mean(0), suite.shares["overlap_fraction"]))) / len(own)
                 for rows in drawn]
        value = len(own & set(plain.top(by_task.mean(0), suite.shares["overlap_fraction"]))) / len(own)
        # ends of few values: they may differ by one head
        found[model] = (value, *((end, 1.01 / len(own)) for end in np.quantile(share, [0.025, 0.975])), np.nan)
    return found


def percentile(of):
    def ranked(suite):
        found = {}
        for model, scores in suite.scores.items():
            grid = plain.heads(scores, MASS if of == "fv" else FV)
            ranks, n = plain.percentiles(grid), grid.shape[1]
            own = sorted(plain.tops(scores, suite.shares["top_fraction"])[of])
            rng, layers = np.random.default_rng(1), [i // n for i in own]
            null = np.array([np.concatenate([rng.choice(ranks[at * n:(at + 1) * n], layers.count(at), replace=False)
                                             for at in set(layers)]).mean() for _ in range(4000)])
            centre = np.mean([ranks[at * n:(at + 1) * n].mean() for at in layers])
            above = ranks[own].mean() - centre
            found[model] = (above, np.nan, np.nan, ((np.abs(null - centre) >= abs(above) - 1e-9).mean(), 0.04))
        return found
    return ranked


def depths(suite):
    found = {}
    for model, scores in suite.scores.items():
        value, p, _ = plain.depth(plain.tops(scores, suite.shares["top_fraction"]), scores["head"].max() + 1)
        found[model] = (value, np.nan, np.nan, p)
    return found


def strengths(suite):
    return trend(suite, {model: plain.heads(scores, FV).ravel()[
        plain.top(plain.heads(scores, FV), suite.shares["top_fraction"])].mean()
        for model, scores in suite.scores.items()})


def dissociation(suite):
    found = {}
    for model, lost in suite.losses.items():
        rows = suite.ablations[model]
        clean = rows[rows["ranking"] == "none"].groupby("metric")["value"].mean()
        ends = {metric: of[model] for metric in (ACCURACY, LOSS)
                for of in [effect(metric, "fv_minus_induction", False)(suite)]}
        if (ACCURACY, False, LAST, "fv_minus_induction") not in lost:
            found[model] = np.nan
            continue
        (a, a_low, a_high), (b, b_low, b_high) = (np.array(ends[metric][:3]) / clean[metric] for metric in ends)
        found[model] = (a - b, a - b - ((a - a_low) ** 2 + (b_high - b) ** 2) ** 0.5,
                        a - b + ((a_high - a) ** 2 + (b - b_low) ** 2) ** 0.5, np.nan)
    return found


def correlations(suite):
    return {model: (*plain.rank_correlation(plain.heads(scores, MASS), plain.heads(scores, FV)), np.nan)
            for model, scores in suite.scores.items()}


def _ablated(suite, model):
    rows = suite.ablations[model]
    edited = rows[(rows["replacement"] == "mean") & (rows["positions"] == "all") & (rows["excluded"] == "")]
    return edited[edited["fraction"] == suite.shares["ablated_fraction"]]


def _by_task(suite, model, metric, kind):
    """What each task loses to a kind beyond layer-matched random heads; NaN without these."""
    rows = _ablated(suite, model)
    own = rows[rows["metric"] == metric]
    control = own[(own["ranking"] == LAST) & (own["matched"] == kind)].groupby("task")["value"].mean()
    return control - own[own["ranking"] == kind].set_index("task")["value"]


def tasks_with_more(suite):
    found = {}
    for model in suite.ablations:
        gap = (_by_task(suite, model, ACCURACY, "fv") - _by_task(suite, model, ACCURACY, "induction")).dropna()
        more, fewer = int((gap > 0).sum()), int((gap < 0).sum())
        p = min(1, 2 * stats.binom.cdf(min(more, fewer), more + fewer, 0.5))
        found[model] = ((more + (len(gap) - more - fewer) / 2) / len(gap), np.nan, np.nan, p) if len(gap) else np.nan
    return found


def _over_tasks(values):
    """Mean over tasks; of its interval, moved out for few tasks, only that it holds the mean and a quarter's width."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return values.mean(), (values.mean() - half, half / 2), (values.mean() + half, half / 2), np.nan


def beyond_zero_shot(suite):
    found = {}
    for model, table in suite.ablations.items():
        parts, clean = [], table[table["ranking"] == "none"]
        for metric in (ACCURACY, "zero_shot_accuracy"):
            parts += [_by_task(suite, model, metric, "fv"), clean[clean["metric"] == metric].set_index("task")["value"]]
        few, of_few, zero, of_zero = (part.reindex(parts[1].index) for part in parts)
        if few.isna().all():
            found[model] = np.nan
            continue
        value = few.mean() / of_few.mean() - max(0, zero.mean() / of_zero.mean())
        # each task's part in the change of both ratios, to first order
        part = (few - few.mean() / of_few.mean() * of_few) / of_few.mean() - (
            zero - zero.mean() / of_zero.mean() * of_zero) / of_zero.mean()
        half = 1.96 * part.std(ddof=0) / len(part) ** 0.5
        found[model] = (value, (value - half, half / 2), (value + half, half / 2), np.nan)
    return found


def executed(suite):
    found = {}
    for model, rows in suite.executions.items():
        at = rows[(rows["layer"] == (rows["layer"].max() + 1) // 3) & (rows["prompts"] == "shuffled")]
        none = rows[(rows["layer"] == -1) & (rows["prompts"] == "shuffled")].set_index("task")["value"]
        fv = at[at["heads"] == "fv"].set_index("task")["value"]
        draws = at[at["heads"] == LAST].pivot(index="draw", columns="task", values="value")[fv.index].to_numpy()
        value = min((fv - none).mean(), (fv.to_numpy() - draws).mean())
        ends = [plain_interval(control - fv.to_numpy(), fv.index.to_numpy())
                for control in (none[fv.index].to_numpy()[None], draws)]
        low, high = min(-high for _, high, _ in ends), min(-low for low, _, _ in ends)
        found[model] = (value, low, high, np.nan)
    return found


def _came(suite, model, kind):
    """The first step from which the model keeps a head of a kind, and the last without; infinite: never."""
    _, has = suite.crossings(model)
    without = [step for step, there in zip(suite.models[model], has[kind], strict=True) if not there]
    after = [step for step in suite.models[model] if not without or step > without[-1]]
    return (after[0] if after else np.inf), (without[-1] if without else 0)


def early(suite):
    found = {}
    for model in suite.followed:
        (first, before), last = _came(suite, model, "induction"), suite.models[model][-1]
        found[model] = (first / last, before / last, first / last, np.nan)
        if suite.models[model][0] / last >= 0.1:  # the first checkpoint is too late
            found[model] = first / last
    return found


def later(suite):
    found = {}
    for model in suite.followed:
        (fv, before_fv), (induction, before) = (_came(suite, model, kind) for kind in ("fv", "induction"))
        found[model] = (fv - induction, before_fv - induction, fv - before, np.nan)
    return found


def gradual(suite):
    found = {}
    for model in suite.followed:
        doublings = np.log2(np.array(suite.models[model]) + 1)
        width = [doublings[np.argmax(c >= 0.9 * c[-1])] - doublings[np.argmax(c >= 0.1 * c[-1])]
                 for c in (suite.curve(model, FV), suite.curve(model, MASS))]
        found[model] = width[0] - width[1]
    return found


def plateau(suite):
    curves = {model: suite.curve(model, MASS) for model in suite.followed}
    return {model: curve[-1] / curve.max() for model, curve in curves.items()}


def accuracies(suite):
    found = {}
    for model in suite.followed:
        by_step = [accuracy[(accuracy["metric"] == ACCURACY) & (accuracy["labels"] == "clean")
                            & (accuracy["split"] != "unseen") & (accuracy["n_shots"] == accuracy["n_shots"].max())]
                   ["value"].mean() for *_, accuracy in suite.by_step(model)]
        rho, p, _ = plain.trend(suite.curve(model, FV), np.array(by_step))
        found[model] = (rho, np.nan, np.nan, p)
    return found


def when(kind):
    """Rank correlation with size of when a kind came, by hand: how many models are surely earlier less later."""
    def of(suite):
        came = {model: _came(suite, model, kind)[0] for model in suite.followed}
        end = {model: suite.models[model][-1] for model in came}
        net = dict.fromkeys(came, 0)
        for a, b in itertools.permutations(came, 2):
            if came[a] < came[b] and came[a] <= end[b]:
                net[b] += 1
                net[a] -= 1
        return trend(suite, net) if len({suite.sizes[model] for model in came}) > 2 else {"": np.nan}
    return of


AUDIT = {
    "H1, 4a": effect(ACCURACY, "fv_minus_induction", False), "H1, 4a (size)": effect_trend(ACCURACY, False),
    "H2 (distinct), 3b": shared, "H2 (connected), 5e": audit_seeds.by_either_bar(audit_seeds.induction_first, min),
    "5e (change)": audit_seeds.changed,
    "5e (chance)": audit_seeds.transitions(audit_seeds.beyond_chance, place=False),
    "5e (chance, place)": audit_seeds.transitions(audit_seeds.beyond_chance, place=True),
    "5e (before, place)": audit_seeds.before, "3a": depths, "3c (FV)": percentile("fv"),
    "3c (induction)": percentile("induction"), "3d": strengths, "4b": effect(ACCURACY, "induction", True),
    "4c": effect(ACCURACY, "fv", True), "C2": effect(ACCURACY, "fv", True),
    "H1, 4a (last)": effect(ACCURACY, "fv_minus_induction", False, "last"),
    "4c (last)": effect(ACCURACY, "fv", True, "last"),
    "4d": effect(LOSS, "fv_minus_induction", True), "4d (size)": effect_trend(LOSS, True),
    "4e (metrics)": dissociation, "4e (correlation)": correlations, "4f": tasks_with_more, "4g": beyond_zero_shot,
    "5a": early, "5b": later, "5b (order)": audit_seeds.order, "5b (gradual)": gradual, "5c": plateau,
    "5d (induction)": when("induction"), "5d (FV)": when("fv"),
    "5f": audit_seeds.by_either_bar(audit_seeds.reverse, max), "5h": accuracies, "A1": executed,
    "CS1": audit_patterns.pattern_effect, "CS2": audit_patterns.benefit_lost,
}
