"""Section 3 and the size axis of section 4 from the tables of all models of a suite; no model is loaded."""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy import ndarray

from icl_lib.heads import overlap
from icl_lib.measurements import mean_scores, top_sets
from icl_lib.models import count_parameters
from icl_lib.statistics import (
    bootstrap_mean,
    depth_difference,
    expected_overlap,
    overlap_p_value,
    percentile_rank,
    spearman,
)
from icl_lib.tables import read_table

INDUCTION = "induction_attention_mass"


def last_tables(results: str, table: str, models: dict[str, list[int]]) -> pd.DataFrame:
    """The table of each model's last step, one below the other; a model whose file is missing is left out.

    Raises ValueError when there is none at all.
    """
    paths = [Path(results) / table / model / f"step{steps[-1]}.parquet" for model, steps in models.items() if steps]
    found = [read_table(path, schema_name=table) for path in paths if path.is_file()]
    if not found:
        raise ValueError(f"no table {table!r} in {results}: run the suite first, e.g. make book SUITE=lab")
    return pd.concat(found, ignore_index=True)


def model_sizes(models: dict[str, list[int]]) -> pd.DataFrame:
    """Parameters without embeddings of each model, from its configuration; columns model, parameters, rising."""
    rows = [(model, count_parameters(model, steps[-1])) for model, steps in models.items() if steps]
    return pd.DataFrame(rows, columns=["model", "parameters"]).sort_values("parameters", ignore_index=True)


def strength_table(scores: pd.DataFrame, sizes: pd.DataFrame, *, fraction: float) -> pd.DataFrame:
    """Highest score, mean of the top heads and mean of all (figure 12); low and high: 95 % over scoring tasks."""
    rows = []
    for model, group in scores.groupby("model"):
        for score, kind in (("induction_prefix_matching", "induction"), ("fv", "fv")):
            top = top_sets(group, fraction=fraction, induction="induction_prefix_matching")[kind].numpy()
            by_task = np.stack([g.sort_values(["layer", "head"])["value"].to_numpy().reshape(top.shape)
                                for _, g in group[group["score"] == score].groupby("task")])
            best = by_task.mean(0) == by_task.mean(0).max()
            for statistic, mask in (("highest head", best), ("mean of the top heads", top),
                                    ("mean of all heads", np.ones_like(top))):
                per_task = by_task[:, mask].mean(1)
                low = high = float(per_task.mean())
                if len(per_task) > 1:
                    _, low, high = bootstrap_mean(per_task, np.arange(len(per_task)), seed=0, over="tasks")
                rows.append((model, score, statistic, float(per_task.mean()), low, high))
    table = pd.DataFrame(rows, columns=["model", "score", "statistic", "value", "low", "high"])
    return table.merge(sizes, on="model")


def comparison_table(
    scores: pd.DataFrame, sizes: pd.DataFrame, *, fraction: float, overlap_fraction: float, seed: int
) -> pd.DataFrame:
    """One row per model: overlap with its expectation, percentiles both ways, rank correlation, depth difference."""
    rows = []
    for model, group in scores.groupby("model"):
        tops = top_sets(group, fraction=fraction, induction=INDUCTION)
        wide = top_sets(group, fraction=overlap_fraction, induction=INDUCTION)
        induction, fv = (mean_scores(group, score).numpy() for score in (INDUCTION, "fv"))
        of_fv = percentile_rank(induction)[tops["fv"].numpy()]
        of_induction = percentile_rank(fv)[tops["induction"].numpy()]
        n, n_top, shared = fv.size, int(wide["fv"].sum()), int((wide["fv"] & wide["induction"]).sum())
        rho = spearman(induction, fv, seed=seed)
        depth = depth_difference(tops["fv"].numpy(), tops["induction"].numpy(), seed=seed)
        rows.append({
            "model": model, "heads": n, "top heads": int(tops["fv"].sum()),
            "overlap": overlap(wide["fv"], wide["induction"]),
            "overlap by chance": expected_overlap(n, n_top, n_top) / n_top,
            "p (overlap)": overlap_p_value(shared, n, n_top, n_top).p_value,
            "overlap of layers": layer_overlap(wide["fv"].numpy(), wide["induction"].numpy()),
            "induction percentile of FV heads": of_fv.mean(), "lowest of these": of_fv.min(),
            "highest of these": of_fv.max(),
            "FV percentile of induction heads": of_induction.mean(), "lowest of those": of_induction.min(),
            "highest of those": of_induction.max(),
            "rank correlation": rho.value, "rank correlation, low": rho.low, "rank correlation, high": rho.high,
            "depth difference (layers)": depth.value, "p (depth)": depth.p_value,
        })
    return pd.DataFrame(rows).merge(sizes, on="model").sort_values("parameters", ignore_index=True)


def layer_overlap(heads: Bool[ndarray, "layer head"], others: Bool[ndarray, "layer head"]) -> float:
    """Share of two head sets that sits in the same layers, 0..1: the sum over layers of the smaller share."""
    shares = [mask.sum(axis=1) / mask.sum() for mask in (heads, others)]
    return float(np.minimum(*shares).sum())


def depth_table(scores: pd.DataFrame, sizes: pd.DataFrame, *, fraction: float) -> pd.DataFrame:
    """Mean and standard deviation of the top heads' layers, 0 the first and 1 the last, by kind, models by size.

    Columns model, kind, value, spread, parameters.
    """
    rows = []
    for model, group in scores.groupby("model"):
        for kind, mask in top_sets(group, fraction=fraction, induction=INDUCTION).items():
            layers = np.nonzero(mask.numpy())[0] / max(1, mask.shape[0] - 1)
            rows.append((model, kind, layers.mean(), layers.std()))
    table = pd.DataFrame(rows, columns=["model", "kind", "value", "spread"])
    return table.merge(sizes, on="model").sort_values(["parameters", "model", "kind"], ignore_index=True)


def overlaps(comparison: pd.DataFrame) -> pd.DataFrame:
    """The overlap of the top sets and its random expectation in long form, with the column series."""
    names = {"overlap": "same heads", "overlap by chance": "same heads, by chance", "overlap of layers": "same layers"}
    long = comparison.melt(["model", "parameters"], list(names), "series")
    return long.assign(series=long["series"].map(names), low=long["value"], high=long["value"])


def percentiles(comparison: pd.DataFrame) -> pd.DataFrame:
    """Both percentiles of the comparison in long form: columns parameters, series, value, low, high."""
    fv = comparison.rename(
        columns={"induction percentile of FV heads": "value", "lowest of these": "low", "highest of these": "high"})
    induction = comparison.rename(
        columns={"FV percentile of induction heads": "value", "lowest of those": "low", "highest of those": "high"})
    columns = ["model", "parameters", "series", "value", "low", "high"]
    return pd.concat([
        fv.assign(series="fv")[columns],
        induction.assign(series="induction")[columns],
    ], ignore_index=True)


def effect_table(ablations: pd.DataFrame, sizes: pd.DataFrame, *, fraction: float, seed: int) -> pd.DataFrame:
    """First-token accuracy lost with the top heads of a kind, minus the loss with random heads in the same layers.

    At all positions, without exclusion, at the ablated fraction nearest to `fraction`; paired over tasks, with a
    95 % bootstrap interval over tasks.
    """
    rows = []
    chosen = ablations[(ablations["metric"] == "first_token_accuracy") & (ablations["positions"] == "all")]
    chosen = chosen[chosen["replacement"] == "mean"]
    for model, group in chosen.groupby("model"):
        at = group["fraction"].unique()
        nearest = at[np.abs(at - fraction).argmin()]
        group = group[(group["fraction"] == nearest) & (group["excluded"] == "")]
        means = group.groupby(["ranking", "matched", "task"])["value"].mean()
        for ranking in ("induction", "fv"):
            lost = (means["random_layer_matched", ranking] - means[ranking, ""]).to_numpy()
            interval = bootstrap_mean(lost, np.arange(len(lost)), seed=seed, over="tasks")
            rows.append((model, ranking, nearest, len(lost), *interval))
    table = pd.DataFrame(rows, columns=["model", "ranking", "fraction", "n_tasks", "value", "low", "high"])
    return table.merge(sizes, on="model").sort_values(["parameters", "ranking"], ignore_index=True)


def gap_table(effects: pd.DataFrame) -> pd.DataFrame:
    """Loss with FV heads minus loss with induction heads, both beyond layer-matched random, per model by size."""
    wide = effects.pivot(index=["model", "parameters"], columns="ranking", values="value")
    return (wide["fv"] - wide["induction"]).rename("gap").reset_index().sort_values("parameters", ignore_index=True)


def statistics_table(comparison: pd.DataFrame, effects: pd.DataFrame) -> pd.DataFrame:
    """Both as rows of the table `statistics`."""
    rows = []
    for _, row in comparison.iterrows():
        values = {
            "overlap": (row["overlap"], np.nan, np.nan, row["p (overlap)"]),
            "induction percentile of FV heads":
                (row["induction percentile of FV heads"], row["lowest of these"], row["highest of these"], np.nan),
            "FV percentile of induction heads":
                (row["FV percentile of induction heads"], row["lowest of those"], row["highest of those"], np.nan),
            "rank correlation":
                (row["rank correlation"], row["rank correlation, low"], row["rank correlation, high"], np.nan),
            "depth difference": (row["depth difference (layers)"], np.nan, np.nan, row["p (depth)"]),
        }
        for name, (value, low, high, p_value) in values.items():
            rows.append({"model": row["model"], "name": name, "value": value, "low": low, "high": high,
                         "p_value": p_value, "n": row["heads"]})
    for _, row in effects.iterrows():
        rows.append({"model": row["model"], "name": f"accuracy lost beyond layer-matched random, {row['ranking']}",
                     "value": row["value"], "low": row["low"], "high": row["high"], "p_value": np.nan,
                     "n": row["n_tasks"]})
    return pd.DataFrame(rows).assign(notebook="model_scaling")
