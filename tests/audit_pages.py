"""The numbers that each page has to print, recomputed from tables, and its sentences held against them."""

import re

import numpy as np
import pandas as pd
from scipy import stats

from icl_lib.figures.common import Figure
from tests import audit_plain as plain
from tests.audit import check, covered, rows_of

METRICS = {plain.ACCURACY: "few-shot accuracy", plain.LOSS: "token-loss difference"}
CONTROLS = ("none", "random", "random_layer_matched")
# Of captions: the level of intervals, standard errors in them, the ends of scales, boxes.
CONSTANTS = (0.5, 1.5, 0, 1, 95, 1.96, 50, 500)


def captions(shown, *parameters):
    """Every number of a caption is a constant of the method or one of the notebook's parameters."""
    for figure in shown:
        if isinstance(figure, Figure):
            covered(figure.caption, (*CONSTANTS, *parameters))


def scaling(tables, sizes, shares):
    """{(model, name): (value, low, high, p, n)} of the scaling page; `tables`: scores, accuracy, ablations, effects."""
    found, chosen = {}, {}
    scores, accuracy, ablations, effects = tables

    def put(model, name, value, low=np.nan, high=np.nan, p=np.nan, smallest=np.nan, *, n):
        found[model, name] = (value, low, high, p, n, smallest)

    lost = {}
    for model, rows in scores.groupby("model"):
        mass, fv = plain.heads(rows, plain.MASS), plain.heads(rows, plain.FV)
        n = fv.size
        kinds = plain.kinds(rows, accuracy[accuracy["model"] == model])
        top, wide = plain.tops(rows, shares["top_fraction"]), plain.tops(rows, shares["overlap_fraction"])
        k, (shared, p, by_chance, _) = len(wide["fv"]), plain.overlap(wide, fv.shape[1])
        of_fv = plain.percentiles(mass)[sorted(top["fv"])]
        of_induction = plain.percentiles(fv)[sorted(top["induction"])]
        depth = plain.depth(top, fv.shape[1])
        layers = [np.bincount([i // fv.shape[1] for i in own], minlength=len(fv)) / k for own in wide.values()]
        put(model, "parameters", sizes[model], n=n)
        put(model, "induction heads", kinds["induction"], n=n)
        put(model, "FV heads", kinds["fv"], n=n)
        put(model, "heads of both kinds", plain.both_kinds(rows, accuracy[accuracy["model"] == model]), n=n)
        put(model, "top heads", len(top["fv"]), n=n)
        put(model, "overlap", shared, p=p, n=n)
        put(model, "overlap by chance", by_chance, n=n)
        put(model, "overlap of layers", np.minimum(*layers).sum(), n=n)
        put(model, "induction percentile of FV heads", of_fv.mean(), of_fv.min(), of_fv.max(), n=n)
        put(model, "FV percentile of induction heads", of_induction.mean(), of_induction.min(), of_induction.max(), n=n)
        put(model, "rank correlation", *plain.rank_correlation(mass, fv), n=n)
        put(model, "depth difference (layers)", depth[0], p=depth[1], smallest=depth[2], n=n)
        at = {}
        for fraction in shares["overlap_fractions"]:
            own = plain.tops(rows, fraction)
            m, (both, p, chance, smallest) = len(own["fv"]), plain.overlap(own, fv.shape[1])
            put(model, f"overlap, top {fraction:g}", both, p=p, smallest=smallest, n=m)
            put(model, f"overlap by chance, top {fraction:g}", chance, n=m)
            at[fraction] = (both, chance, m, p, smallest)
        chosen[model] = {"kinds": kinds, "of_fv": of_fv.mean(), "of_induction": of_induction.mean(), "depth": depth,
                         "overlap": (shared, by_chance), "at": at}
        lost[model] = plain.losses(ablations[ablations["model"] == model], shares["ablated_fraction"])
        measured = effects[effects["model"] == model]
        for (metric, excluded, control, ranking), value in lost[model].items():
            # intervals come with the table: prompts are not in any
            row, = measured[(measured["metric"] == metric) & (measured["excluded"].ne("") == excluded)
                            & (measured["positions"] == "all") & (measured["control"] == control)
                            & (measured["ranking"] == ranking)].itertuples()
            assert row.low <= row.value <= row.high and 0 <= row.p_value <= 1
            put(model, name_of(metric, ranking, control, excluded), value, row.low, row.high, row.p_value,
                n=row.n_prompts)
    _over_models(put, found, chosen, lost, sizes, shares)
    return found


def name_of(metric, ranking, control, excluded=False):
    return f"{METRICS[metric]} lost, {ranking}, against {control}" + (", with exclusion" if excluded else "")


def _over_models(put, found, chosen, lost, sizes, shares):
    both = {model: of for model, of in chosen.items() if min(of["kinds"].values()) > 0}
    n = len(both)
    put("", "models with heads of both kinds", n, n=len(chosen))
    put("", "FV heads that are induction heads", sum(found[model, "heads of both kinds"][0] for model in both),
        n=sum(of["kinds"]["fv"] for of in both.values()))
    put("", "models with deeper FV heads", sum(of["depth"][0] > 0 for of in both.values()), n=n)
    put("", "models with significantly deeper FV heads",
        sum(of["depth"][0] > 0 and of["depth"][1] < 0.05 for of in both.values()), n=n)
    put("", "models with power for depth", sum(of["depth"][2] < 0.05 for of in both.values()), n=n)
    put("", "models with more overlap than by chance", sum(of["overlap"][0] > of["overlap"][1] for of in both.values()),
        n=n)
    put("", "induction percentile of FV heads", np.mean([of["of_fv"] for of in both.values()]), n=n)
    put("", "FV percentile of induction heads", np.mean([of["of_induction"] for of in both.values()]), n=n)
    for fraction in shares["overlap_fractions"]:
        value, chance, count, p, smallest = np.array([of["at"][fraction] for of in both.values()]).T
        for name, number in (("overlap", value.mean()), ("overlap by chance", chance.mean()),
                             ("fewest heads", count.min()), ("most heads", count.max()),
                             ("models with more overlap", ((p < 0.05) & (value > chance)).sum()),
                             ("models with less overlap", ((p < 0.05) & (value < chance)).sum()),
                             ("models with power for overlap", (smallest < 0.05).sum())):
            put("", f"{name}, top {fraction:g}", number, n=n)
    for metric in METRICS:
        for excluded in (False, True):
            for control in CONTROLS:
                gap = name_of(metric, "fv_minus_induction", control, excluded)
                models = [model for model in both if (model, gap) in found]
                if not models:
                    continue
                for ranking in ("fv", "induction", "fv_minus_induction"):
                    mean = np.mean([lost[model][metric, excluded, control, ranking] for model in models])
                    put("", name_of(metric, ranking, control, excluded), mean, n=len(models))
                value, low, high = (np.array([found[model, gap][i] for model in models]) for i in range(3))
                put("", f"{gap}, above zero", (value > 0).sum(), n=len(models))
                put("", f"{gap}, interval above zero", (low > 0).sum(), n=len(models))
                put("", f"{gap}, interval below zero", (high < 0).sum(), n=len(models))
                if control == "random_layer_matched":
                    by_size = pd.Series(value).groupby([sizes[model] for model in models]).mean()
                    k = len(by_size)
                    put("", f"{gap}, trend with size, sizes", k, n=k)
                    rho, p, smallest = plain.trend(by_size.index, by_size.to_numpy())
                    put("", f"{gap}, trend with size", rho, p=p, smallest=smallest, n=k)


def scaling_words(found):
    """The numbers of the scaling page's sentence on models; of its tables of effects and of counts row by row."""
    def of(name, i=0):
        return found["", name][i]

    sizes = [value[0] for (_, name), value in found.items() if name == "parameters"]
    models = [len(sizes), min(sizes), max(sizes), of("models with heads of both kinds")]
    n = of("models with heads of both kinds")
    comparison = [[of("FV heads that are induction heads"), of("FV heads that are induction heads", 4)],
                  [of("models with deeper FV heads"), n], [0.05, of("models with significantly deeper FV heads"), n],
                  *([of(name), n] for name in (
                      "models with power for depth", "models with more overlap than by chance",
                      "induction percentile of FV heads", "FV percentile of induction heads"))]
    effects = []
    for metric in METRICS:
        fv, induction, gap = (name_of(metric, kind, CONTROLS[-1]) for kind in ("fv", "induction", "fv_minus_induction"))
        rho, _, _, p, _, smallest = found["", f"{gap}, trend with size"]
        effects.append([of(gap, 4), of(fv), of(induction), *(of(f"{gap}, {end}") for end in (
            "above zero", "interval above zero", "interval below zero")), rho, p, smallest])
    return models, effects, comparison


def scaling_overlaps(found, shares):
    """The rows of the scaling page's table of overlaps."""
    names = ("fewest heads", "most heads", "overlap", "overlap by chance", "models with more overlap",
             "models with less overlap", "models with power for overlap")
    n = found["", "models with heads of both kinds"][0]
    return [[fraction, *(found["", f"{name}, top {fraction:g}"][0] for name in names), n]
            for fraction in shares["overlap_fractions"]]


def scoring_tables(scores, accuracy, groups, types, floors, parameters):
    """The numbers of the scoring page: accuracy by group, the table of scores, heads of each kind; then of its other
    tables row by row."""
    rows = accuracy[(accuracy["metric"] == plain.ACCURACY) & (accuracy["split"] != "unseen")]
    by_group = {}
    for group, own in rows.groupby(rows["task"].map(groups)):
        means = own.groupby(["labels", "n_shots"])["value"].mean()
        by_group[group] = {f"{shots} shots{', shuffled' * (labels == 'shuffled')}": mean
                           for (labels, shots), mean in means.items()}
    most = accuracy[(accuracy["metric"] == plain.ACCURACY) & (accuracy["labels"] == "clean")]
    most = most[most["n_shots"] == most["n_shots"].max()]
    p_values = [stats.binomtest(round(row.value * row.n_prompts), row.n_prompts, floors[row.task], "greater").pvalue
                for row in most.itertuples()]
    undone = [sum(p >= 0.05 for p in p_values), len(most)]
    loss = accuracy[accuracy["metric"] == plain.LOSS].iloc[0]
    half = 1.96 * loss["standard_error"]
    losses = [50, 500, loss["value"], loss["value"] - half, loss["value"] + half, loss["n_prompts"]]

    def best(values):
        return [values.max(), *np.unravel_index(values.argmax(), values.shape)]

    mass, prefix, fv = (plain.heads(scores, score) for score in (plain.MASS, plain.PREFIX, plain.FV))
    count, gap = plain.kinds(scores, accuracy), plain.label_gap(accuracy)
    done = [[gap.mean(), len(gap)], undone, losses]
    highest = []
    for values in (mass, prefix, fv):
        ordered = sorted((value for value in values.ravel() if value > 0), reverse=True)
        highest.append([*best(values), *([] if values is prefix else [sum(ordered[:k]) / sum(ordered)
                                                                      for k in (1, 2, 5) if ordered])])
    alone = [own.sort_values(["layer", "head"])["value"].to_numpy().argmax()
             for _, own in scores[scores["score"] == "fv"].groupby("task")]
    nulls = [own.sort_values(["layer", "head"])["value"].to_numpy()
             for _, own in scores[scores["score"] == "fv_null"].groupby("task")]
    above = sum(value > 0.005 and all(value > draw[head] for draw in nulls) for head, value in enumerate(fv.ravel()))
    few = [[0.005, above, fv.size], [sum(draw.argmax() == fv.argmax() for draw in nulls), len(nulls)]]
    few += [[alone.count(fv.argmax()), len(alone)], [fv.min(), *np.unravel_index(fv.argmin(), fv.shape), fv.size]]
    top = plain.tops(scores, parameters["top_fraction"])
    n, (shared, p, by_chance, _) = len(top["fv"]), plain.overlap(top, fv.shape[1])
    kinds = [[count[kind], fv.size, bar, *(at for head in sorted(top[kind]) for at in divmod(head, fv.shape[1]))]
             for kind, bar in (("induction", 0.3), ("fv", plain.threshold(scores)))]
    overlap = [[shared, p, n], [by_chance, n],
               [*plain.rank_correlation(mass, fv), fv.size]]
    by_type = {kind: scores[(scores["score"] == "fv") & (scores["task"].map(types) == kind)].pivot_table(
        index="layer", columns="head", values="value").to_numpy() for kind in ("abstractive", "extractive")}
    of_types = [*([*best(values), fv.size] for values in by_type.values()),
                [*plain.rank_correlation(*by_type.values()), fv.size]]
    return by_group, [kinds, overlap, done, highest, few, of_types]


def check_heads(html, scores):
    """The table of all heads: scores to four digits, ranks by attention mass and FV score."""
    values = [plain.heads(scores, score).ravel() for score in (plain.MASS, plain.PREFIX, "previous_token", plain.FV)]
    ranks = [stats.rankdata(-values[i], method="ordinal") for i in (0, 3)]
    n_heads = scores["head"].max() + 1
    head, *rows = rows_of(html)
    assert head[2:4] == ["attention mass", "prefix matching"] and head[-2:] == [
        "rank by attention mass", "rank by FV score"]
    for i, row in enumerate(rows):
        wanted = [*divmod(i, n_heads), *(of[i] for of in values), *(of[i] for of in ranks)]
        check(" ".join(row), wanted)
    assert len(rows) == len(values[0])


def check_samples(html, samples, prefix):
    """The shares of attention beside the tokens of both prompts, of the head with the highest prefix matching."""
    layer, head = np.unravel_index(prefix.argmax(), prefix.shape)
    assert set(samples["layer"]) == {layer} and set(samples["head"]) == {head}
    figures = html.split("</figure>")[:2]
    for figure, labels in zip(figures, ("clean", "shuffled"), strict=True):
        rows = samples[samples["prompts"] == labels].sort_values("to_position")
        assert re.findall(r"<sub>(\d+)</sub>", figure) == [f"{100 * x:.0f}" for x in rows["value"] if x >= 0.05]
        full = rows.loc[rows["token"] != "BOS", "value"].max()
        assert f"{labels.title()}. Attention of L{layer}H{head} from the last token. Full shade: {full:.0%}." in figure


def check_accuracy(html, accuracy, floors):
    """The folded table of accuracies: two digits of what the table has; the floor of each task, the prompts of all."""
    head, *rows = rows_of(html)
    rows = [dict(zip(head, row, strict=True)) for row in rows if row[0] != "task"]
    own = accuracy[accuracy["metric"] == plain.ACCURACY]
    values = own.set_index(["task", "labels", "n_shots"])["value"]
    columns = {name: ("shuffled" if "shuffled" in name else "clean", int(re.match(r"\d+", name)[0]))
               for name in head if re.match(r"\d+ shots", name)}
    shown = {(row[head[0]], *key): row[name] for row in rows for name, key in columns.items()}
    assert shown.keys() == set(values.index)
    assert set(head) - {*columns, head[0]} == {"split", "group", "floor", "prompts", "done"}
    for key, value in values.items():
        check(shown[key], [(value, 1e-9)])
    for row in rows:
        check(f"{row['floor']} {row['prompts']}", [floors[row[head[0]]], own["n_prompts"].iloc[0]])
