"""Section 3 and the size axis of section 4 from the tables of all models of a suite; no model is loaded."""

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy import ndarray

from icl_lib.analysis.reading import one_intervention
from icl_lib.kinds import DEFINED_BY, RANKED_BY, heads_of_kind, mean_scores, scores_by_task, top_sets
from icl_lib.models.locate import count_parameters
from icl_lib.stats import intervals
from icl_lib.stats.permutation import depth_difference

KIND_COLUMN = {"induction": "induction heads", "fv": "FV heads"}
BOTH_KINDS = "heads of both kinds"
# Columns of the comparison: the mean percentile of a kind's top heads in the other score, the lowest and the highest.
PERCENTILES = {
    "fv": {"value": "induction percentile of FV heads", "low": "lowest of these", "high": "highest of these"},
    "induction": {"value": "FV percentile of induction heads", "low": "lowest of those", "high": "highest of those"},
}


def model_sizes(models: dict[str, list[int]]) -> pd.DataFrame:
    """Parameters without embeddings of each model, from its configuration; columns model, parameters, rising."""
    rows = [(model, count_parameters(model, steps[-1])) for model, steps in models.items() if steps]
    return pd.DataFrame(rows, columns=["model", "parameters"]).sort_values(["parameters", "model"], ignore_index=True)


def with_kinds(sizes: pd.DataFrame, scores: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """`model_sizes` with how many heads of each kind a model has by `kinds.heads_of_kind`; `both`: one of either.

    A model without a table `accuracy` has no FV heads, as nobody vouches for its reading labels.
    """
    counts = []
    for model, rows in scores.groupby("model"):
        masks = heads_of_kind(rows, accuracy[accuracy["model"] == model])
        counts.append({"model": model} | {name: int(masks[kind].sum()) for kind, name in KIND_COLUMN.items()}
                      | {BOTH_KINDS: int((masks["induction"] & masks["fv"]).sum())})
    found = sizes.merge(pd.DataFrame(counts), on="model")
    return found.assign(both=(found[list(KIND_COLUMN.values())] > 0).all(axis=1))


def strength_table(scores: pd.DataFrame, sizes: pd.DataFrame, *, fraction: float, seed: int) -> pd.DataFrame:
    """Highest score, mean of the top heads and mean of all (figure 12); low and high: 95 % over scoring tasks.

    The two scores that rank heads, and prefix matching beside them. The top heads are those of the score that ranks.
    """
    kind_of = {score: kind for scores_of in (RANKED_BY, DEFINED_BY) for kind, score in scores_of.items()}
    rows = []
    for model, group in scores.groupby("model"):
        tops = top_sets(group, fraction=fraction)
        for score, kind in kind_of.items():
            top = tops[kind]
            by_task = scores_by_task(group, score).reshape(-1, *top.shape)
            best = by_task.mean(0) == by_task.mean(0).max()
            for statistic, mask in (("highest head", best), ("mean of the top heads", top),
                                    ("mean of all heads", np.ones_like(top))):
                per_task = by_task[:, mask].mean(1)
                rows.append((model, score, statistic, *intervals.bootstrap_mean(per_task, seed=seed)))
    table = pd.DataFrame(rows, columns=["model", "score", "statistic", "value", "low", "high"])
    return table.merge(sizes, on="model")


def comparison_table(
    scores: pd.DataFrame, sizes: pd.DataFrame, *, fraction: float, overlap_fraction: float, seed: int
) -> pd.DataFrame:
    """One row per model: overlap with its expectation, percentiles both ways, rank correlation, depth difference."""
    rows = []
    for model, group in scores.groupby("model"):
        tops = top_sets(group, fraction=fraction)
        wide = top_sets(group, fraction=overlap_fraction)
        induction, fv = (mean_scores(group, score) for score in RANKED_BY.values())
        percentiles_of = {}
        for kind, other in (("fv", induction), ("induction", fv)):
            ranks = intervals.percentile_rank(other)[tops[kind]]
            percentiles_of |= zip(PERCENTILES[kind].values(), (ranks.mean(), ranks.min(), ranks.max()), strict=True)
        overlap, by_chance = intervals.overlap_test(wide["fv"], wide["induction"])
        differ = np.ptp(induction) and np.ptp(fv)
        rho = intervals.spearman(induction, fv, seed=seed) if differ else intervals.Interval(*[np.nan] * 3)
        depth = depth_difference(tops["fv"], tops["induction"], seed=seed)
        rows.append({
            "model": model, "heads": fv.size, "top heads": int(tops["fv"].sum()), "overlap": overlap.value,
            "overlap by chance": by_chance, "p (overlap)": overlap.p_value,
            "overlap of layers": layer_overlap(wide["fv"], wide["induction"]), **percentiles_of,
            "rank correlation": rho.value, "rank correlation, low": rho.low, "rank correlation, high": rho.high,
            "depth difference (layers)": depth.value, "p (depth)": depth.p_value,
            "smallest possible p (depth)": depth.smallest_p,
        })
    return pd.DataFrame(rows).merge(sizes, on="model").sort_values(["parameters", "model"], ignore_index=True)


def layer_overlap(heads: Bool[ndarray, "layer head"], others: Bool[ndarray, "layer head"]) -> float:
    """Share of two head sets that sits in the same layers, 0..1: the sum over layers of the smaller share."""
    return float(np.minimum(heads.sum(axis=1) / heads.sum(), others.sum(axis=1) / others.sum()).sum())


def depth_table(scores: pd.DataFrame, sizes: pd.DataFrame, *, fraction: float) -> pd.DataFrame:
    """Mean (value) and standard deviation (spread) of the top heads' layers, 0 the first and 1 the last, by kind."""
    rows = []
    for model, group in scores.groupby("model"):
        for kind, mask in top_sets(group, fraction=fraction).items():
            layers = np.nonzero(mask)[0] / max(1, mask.shape[0] - 1)
            rows.append((model, kind, layers.mean(), layers.std()))
    table = pd.DataFrame(rows, columns=["model", "kind", "value", "spread"])
    return table.merge(sizes, on="model").sort_values(["parameters", "model", "kind"], ignore_index=True)


def overlap_table(scores: pd.DataFrame, sizes: pd.DataFrame, *, fractions: list[float]) -> pd.DataFrame:
    """Overlap of the two top sets at several shares of heads (figure 3 left; the paper: 5 %), counts rounded up.

    Columns model, fraction, n_heads, value, expected, p_value, smallest_p (`intervals.overlap_test`), those of `sizes`.
    """
    rows = []
    for model, group in scores.groupby("model"):
        for fraction in fractions:
            tops = top_sets(group, fraction=fraction)
            shared, expected = intervals.overlap_test(tops["fv"], tops["induction"])
            rows.append((model, fraction, int(tops["fv"].sum()), shared.value, expected, shared.p_value,
                         shared.smallest_p))
    table = pd.DataFrame(rows, columns=["model", "fraction", "n_heads", "value", "expected", "p_value", "smallest_p"])
    return table.merge(sizes, on="model").sort_values(["parameters", "model", "fraction"], ignore_index=True)


def percentiles(comparison: pd.DataFrame) -> pd.DataFrame:
    """Both percentiles of the comparison in long form: columns model, parameters, both, series, value, low, high."""
    return pd.concat([
        comparison[["model", "parameters", "both"]].assign(
            series=kind, **{name: comparison[column] for name, column in columns.items()})
        for kind, columns in PERCENTILES.items()], ignore_index=True)


def effects_by_size(effects: pd.DataFrame, sizes: pd.DataFrame, *, fraction: float) -> pd.DataFrame:
    """What ablating each kind costs, against every control, by size (figures 4 and 9).

    Rows of the table `effects` with the columns of `sizes`; `excluded`: whether the other kind's top heads were kept.
    """
    rows = one_intervention(effects, fraction)
    rows = rows.assign(excluded=rows["excluded"] != "").merge(sizes, on="model")
    return rows.sort_values(["parameters", "model", "metric", "excluded", "ranking", "control"], ignore_index=True)
