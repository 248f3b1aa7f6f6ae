"""The numbers of the ablation page recomputed from made-up values per prompt, in plain pandas, numpy and scipy."""

import itertools

import numpy as np
import pandas as pd
from scipy import optimize, stats

from tests import ablation_page as page

FEW_SHOT, LOSS = "first_token_accuracy", "token_loss_difference"
KINDS, SHARE, LARGEST = ("fv", "induction"), 0.1, 0.2
CONTROLS = ("none", "random", "random_layer_matched")
HEADS = page.LAYERS * page.HEADS


def values_of(made, metric, replacement, positions):
    """The one measurement, as a frame of its conditions and its values, a column per prompt."""
    m = next(m for m in made.measured
             if (m.metric, m.replacement, m.positions) == (metric, replacement, positions)
             and _of(m, made) == "single")
    names = ["ranking", "excluded", "matched", "fraction", "draw"]
    index = pd.MultiIndex.from_tuples([[getattr(c, name) for name in names] for c in m.conditions], names=names)
    return pd.DataFrame(m.values, index=index, columns=pd.Index(m.tasks, name="task"))


def lost(made, metric, kind, excluded, replacement, positions, control):
    """Per draw and prompt: the control's value less that with the kind's heads ablated."""
    rows = values_of(made, metric, replacement, positions)
    is_ = rows.index.to_frame(index=False)
    at = (is_["fraction"] == SHARE) | (is_["ranking"] == "none")
    kept = (is_["excluded"] != "") == excluded
    compared = at & (is_["ranking"] == control)
    if control == CONTROLS[2]:
        compared &= (is_["matched"] == kind) & kept
    own = at & (is_["ranking"] == kind) & kept
    assert own.sum() == 1 and compared.any()
    return rows[compared.to_numpy()].to_numpy() - rows[own.to_numpy()].to_numpy()


def tasks_of(made, metric):
    return next(m.tasks for m in made.measured if m.metric == metric)


def mean_over_tasks(values, tasks):
    return pd.Series(values).groupby(tasks).mean().mean()


def plain_interval(draws, tasks):
    """Ends and p of an effect, from what each draw takes from each prompt: a variance over tasks and one over draws."""
    names = sorted(set(tasks))
    groups = [np.flatnonzero(tasks == one) for one in names] if len(names) > 1 else [[i] for i in range(len(tasks))]
    cells = np.array([[draw[rows].mean() for rows in groups] for draw in draws])  # every prompt has every draw here
    n_draws, n = cells.shape
    mean, by_task, variance = cells.mean(), cells.mean(0), 0.0
    for one, other in itertools.permutations(range(n), 2):
        variance += ((cells[:, one] - mean) * (cells[:, other] - mean)).sum() / (n * n_draws) ** 2
    parts = [(by_task.var(ddof=1) / n, n - 1)]
    parts += [(max(0, variance) * n_draws / (n_draws - 1), n_draws - 1)] if n_draws > 1 else []
    total = sum(part for part, _ in parts)
    degrees = total**2 / sum(part**2 / free for part, free in parts)
    return (*stats.t.interval(0.95, degrees, mean, total**0.5), 2 * stats.t.sf(abs(mean) / total**0.5, degrees))


def name(metric, kind, excluded, replacement, positions, control):
    return f"{metric} lost, {kind}{' with exclusion' * excluded}, {replacement} at {positions}, control {control}"


EFFECTS = list(itertools.product(
    (FEW_SHOT, LOSS), (False, True), page.GIVEN["replacements"], page.GIVEN["positions"], CONTROLS))


def recomputed(made):
    """All numbers of the page's table by name; effects without their intervals."""
    return effects(made) | few_heads(made) | counts(made) | levels(made) | sets(made) | controls(made)


def effects(made):
    found = {}
    for metric, excluded, *how in EFFECTS:
        tasks, rest = tasks_of(made, metric), (excluded, *how)
        of_kind = {kind: mean_over_tasks(lost(made, metric, kind, *rest).mean(0), tasks) for kind in KINDS}
        of_kind["fv_minus_induction"] = of_kind["fv"] - of_kind["induction"]
        found |= {name(metric, ranking, *rest): value for ranking, value in of_kind.items()}
    rows = made.effects.query("fraction == @SHARE and ranking in @KINDS and control == 'random_layer_matched'")
    order = rows.sort_values("p_value")
    largest = 0.0
    for rank, row in enumerate(order.itertuples()):  # Holm: the smallest p times the number of tests, and so on
        largest = max(largest, min(1.0, row.p_value * (len(order) - rank)))
        what = name(row.metric, row.ranking, row.excluded != "", row.replacement, row.positions, row.control)
        found[f"{what}, Holm's p"] = largest
    return found


def few_heads(made):
    """Few-shot accuracy lost to the heads of the lowest FV scores, and to a head alone, against no ablation."""
    found = {}
    for m in made.measured:
        if (m.metric, m.replacement) != (FEW_SHOT, "mean") or _of(m, made) != "single":
            continue
        for i, c in enumerate(m.conditions):
            n = int(c.heads.sum())
            if c.ranking == "fv_lowest" or c.ranking in KINDS and n == 1 and not c.excluded:
                found[f"{FEW_SHOT} lost, {n} heads of {c.ranking}, mean at {m.positions}"] = mean_over_tasks(
                    m.values[0] - m.values[i], m.tasks)
    return found


def counts(made):
    found = {}
    rows = made.effects.query("fraction == @SHARE and control == 'random_layer_matched'")
    by = rows.set_index(["metric", "ranking", rows["excluded"] != "", "replacement", "positions"]).sort_index()
    for (metric, first, second), excluded in itertools.product(
            ((FEW_SHOT, "fv", "induction"), (LOSS, "induction", "fv")), (False, True)):
        hits = {"in order": 0, "beyond random": 0, "told apart": 0}
        for how in itertools.product(page.GIVEN["replacements"], page.GIVEN["positions"]):
            one, two, gap = (by.loc[(metric, ranking, excluded, *how)]
                             for ranking in (first, second, "fv_minus_induction"))
            hits["in order"] += one["value"] > two["value"] > 0
            hits["beyond random"] += one["low"] > 0
            hits["told apart"] += gap["low"] > 0 if first == "fv" else gap["high"] < 0
        found |= {f"interventions {what}, {metric}, {first}{' with exclusion' * excluded}": n
                  for what, n in hits.items()}
    return found


def levels(made):
    """Means over tasks, token losses, and the least changes that are told from none."""
    found = {"share of heads ablated": SHARE, "heads ablated": np.ceil(SHARE * HEADS),
             "share of heads ablated at 0 shots": LARGEST}
    for metric, positions, share in ((FEW_SHOT, "all", SHARE), (FEW_SHOT, "last", SHARE),
                                     ("zero_shot_accuracy", "all", LARGEST)):
        rows = values_of(made, metric, "mean", positions).T.groupby(tasks_of(made, metric)).mean().mean()
        for (ranking, excluded, _, fraction, _), value in rows.items():
            if ranking in KINDS and fraction == share:
                found[f"{metric}, {ranking}{' with exclusion' * (excluded != '')}, mean at {positions}"] = value
    for metric, how in ((FEW_SHOT, ("mean", "all")), ("zero_shot_accuracy", ("mean", "all")), (LOSS, ("mean", "all")),
                        (f"{LOSS}_points", ("mean", "all"))):
        clean = values_of(made, metric, *how).xs("none", level="ranking").iloc[0]
        found[f"{metric}, no ablation"] = clean.groupby(level="task").mean().mean()
    for protocol, metric, how, share in (
            ("paper", f"{LOSS}_points", ("mean", "all"), 0.09),
            ("released", f"{LOSS}_points", ("bos_value", "all"), 0.09), ("single", LOSS, ("mean", "all"), 0.1)):
        errors = [np.std(m.values[i] - m.values[0], ddof=1) / page.DOCUMENTS**0.5
                  for m in made.measured
                  if (m.metric, m.replacement, m.positions) == (metric, *how) and _of(m, made) == protocol
                  for i, c in enumerate(m.conditions) if c.ranking in KINDS and c.fraction == share]
        found[f"least change told, {protocol}"] = 1.96 * max(errors)
    for metric in ("generated_f1", FEW_SHOT):
        m = next(m for m in made.measured if (m.metric, m.replacement, m.positions) == (metric, "mean", "last"))
        share = 0.09 if metric == "generated_f1" else SHARE
        one = {c.ranking: m.values[i] for i, c in enumerate(m.conditions) if c.fraction == share and not c.excluded}
        found[name(metric, "fv_minus_induction", False, "mean", "last", "without")] = mean_over_tasks(
            one["induction"] - one["fv"], m.tasks)
    return found


def _of(m, made):
    """Which protocol a measurement is of."""
    return next((name for name, own in made.historic.items() if m.conditions is own), "single")


def best(scores, n, without=()):
    """The places of the n highest scores, passing over some."""
    return set([int(i) for i in np.argsort(-scores, kind="stable") if int(i) not in without][:n])


def by_head(made, score):
    rows = made.scores[made.scores["score"] == score]
    return rows.groupby(["layer", "head"])["value"].mean().to_numpy()


def sets(made):
    scores = {"fv": by_head(made, "fv"), "induction": by_head(made, "induction_attention_mass")}
    rank = {kind: (stats.rankdata(values) - 0.5) / HEADS for kind, values in scores.items()}
    found = {"smallest share of heads": SHARE, "largest share of heads": LARGEST}
    for place, share in (("smallest", SHARE), ("shown", SHARE), ("largest", LARGEST)):
        n = int(np.ceil(share * HEADS))
        tops = {kind: best(values, n) for kind, values in scores.items()}
        found[f"shared heads at the {place} share"] = len(tops["fv"] & tops["induction"]) / n
    for score, kind in (("fv", "induction"), ("induction", "fv")):
        found[f"percentile in {score} after {kind}"] = np.mean([rank[score][i] for i in range(HEADS)
                                                                if i not in tops[kind]])
    for protocol, n_excluded, rounded in (("paper", 1, np.ceil), ("released", 0, np.floor)):
        changed = 0
        for share in (0.01, 0.03, 0.05, 0.07, 0.09, 0.15, 0.2):
            n = max(1, int(rounded(share * HEADS)))
            found[f"heads ablated, {protocol}, {share:g}"] = n
            for kind, other in (KINDS, KINDS[::-1]):
                out = best(scores[other], n_excluded)
                changed += best(scores[kind], n) != best(scores[kind], n, out)
        found[f"sets changed by exclusion, {protocol}"] = changed
    return found


def controls(made):
    bar = max(0.005, np.quantile(made.scores[made.scores["score"] == "fv_null"].groupby("task")["value"].max(), 0.99))
    of_kind = (by_head(made, "fv") > bar) | (by_head(made, "induction_prefix_matching") > 0.3)
    at = [c for c in made.conditions if c.fraction == SHARE]
    found = {"heads of neither kind": (~of_kind).sum(), "draws, random": len({
        tuple(c.heads.ravel().tolist()) for c in at if c.ranking == "random"})}
    for own in (c for c in at if c.ranking in KINDS):
        drawn = [c.heads for c in at if c.ranking == "random_layer_matched" and c.matched == own.ranking
                 and c.excluded == own.excluded]
        words = own.ranking + " with exclusion" * (own.excluded != "")
        found[f"draws, layer-matched, {words}"] = len({heads.tobytes() for heads in drawn})
        layers = np.nonzero(own.heads)[0]
        cost = [np.abs(layers[:, None] - np.nonzero(heads)[0]) for heads in drawn]
        found[f"layer distance, {words}"] = np.mean([c[optimize.linear_sum_assignment(c)].mean() for c in cost])
        assert not any(heads.ravel()[of_kind].any() for heads in drawn)
    return found
