"""The numbers that the scaling page prints, as rows of the table `statistics`; the index page reads them from there."""

import numpy as np
import pandas as pd

from icl_lib.ablation.effects import CONTROLS, DIFFERENCE, METRIC_WORDS
from icl_lib.analysis.reading import number, table_of
from icl_lib.analysis.scaling import KIND_COLUMN
from icl_lib.kinds import KINDS
from icl_lib.stats.permutation import trend_test

# Columns of the comparison that are estimates: the ends of their intervals (or lowest and highest head), their p-value.
_ESTIMATES = {
    "overlap": (None, None, "p (overlap)"),
    "induction percentile of FV heads": ("lowest of these", "highest of these", None),
    "FV percentile of induction heads": ("lowest of those", "highest of those", None),
    "rank correlation": ("rank correlation, low", "rank correlation, high", None),
    "depth difference (layers)": (None, None, "p (depth)"),
}
_PLAIN = ("parameters", *KIND_COLUMN.values(), "top heads", "overlap by chance", "overlap of layers",
          "smallest possible p (depth)")


def scaling_numbers(
    comparison: pd.DataFrame, overlaps: pd.DataFrame, effects: pd.DataFrame, *, seed: int
) -> pd.DataFrame:
    """All numbers of the page's sentences and of its tables, per model and ("") over models.

    `comparison` and `overlaps` as `scaling` makes them from sizes `with_kinds`, `effects` as in
    `scaling.effects_by_size`. Over models count those with heads of both kinds; `n` is then their number. No row for
    what there are no such models for.
    """
    parts = [_of_models(comparison), _over_models(comparison[comparison["both"]], len(comparison)),
             _of_overlaps(overlaps), _of_effects(effects, seed)]
    return table_of([row for rows in parts for row in rows], notebook="model_scaling")


def lost(metric: str, ranking: str, control: str, excluded: bool) -> str:
    """The name of the numbers of one effect."""
    return f"{METRIC_WORDS[metric]} lost, {ranking}, against {control}" + (", with exclusion" if excluded else "")


def _of_models(comparison: pd.DataFrame) -> list[dict]:
    rows = []
    for row in comparison.to_dict("records"):
        own = [number(name, row[name], n=row["heads"]) for name in _PLAIN]
        own += [number(name, row[name], *(np.nan if end is None else row[end] for end in ends), n=row["heads"])
                for name, ends in _ESTIMATES.items()]
        rows += [found | {"model": row["model"]} for found in own]
    return rows


def _over_models(both: pd.DataFrame, n_models: int) -> list[dict]:
    deeper = both["depth difference (layers)"] > 0
    n = len(both)
    rows = [number("models with heads of both kinds", n, n=n_models),
            number("models with deeper FV heads", deeper.sum(), n=n),
            number("models with significantly deeper FV heads", (deeper & (both["p (depth)"] < 0.05)).sum(), n=n),
            number("models with power for depth", (both["smallest possible p (depth)"] < 0.05).sum(), n=n),
            number("models with more overlap than by chance", (both["overlap"] > both["overlap by chance"]).sum(), n=n)]
    return rows + [number(name, both[name].mean(), n=n)
                   for name in ("induction percentile of FV heads", "FV percentile of induction heads") if n]


def _of_overlaps(overlaps: pd.DataFrame) -> list[dict]:
    rows = []
    for fraction, at in overlaps.groupby("fraction"):
        where = f"top {fraction:g}"
        rows += [number(f"overlap, {where}", row.value, p_value=row.p_value, n=row.n_heads) | {"model": row.model}
                 for row in at.itertuples()]
        rows += [number(f"overlap by chance, {where}", row.expected, n=row.n_heads) | {"model": row.model}
                 for row in at.itertuples()]
        at = at[at["both"]]
        n, told = len(at), at[at["p_value"] < 0.05]
        if n:
            rows += [number(f"overlap, {where}", at["value"].mean(), n=n),
                     number(f"overlap by chance, {where}", at["expected"].mean(), n=n),
                     number(f"fewest heads, {where}", at["n_heads"].min(), n=n),
                     number(f"most heads, {where}", at["n_heads"].max(), n=n),
                     number(f"models with more overlap, {where}", (told["value"] > told["expected"]).sum(), n=n),
                     number(f"models with less overlap, {where}", (told["value"] < told["expected"]).sum(), n=n),
                     number(f"models with power for overlap, {where}", (at["smallest_p"] < 0.05).sum(), n=n)]
    return rows


def _of_effects(effects: pd.DataFrame, seed: int) -> list[dict]:
    effects = effects[effects["ranking"].isin((*KINDS, DIFFERENCE))]
    rows = [number(lost(row.metric, row.ranking, row.control, row.excluded), row.value, row.low, row.high, row.p_value,
                   n=row.n_prompts) | {"model": row.model} for row in effects.itertuples()]
    compared = effects[effects["both"].astype(bool)]
    for (metric, excluded, control), own in compared.groupby(["metric", "excluded", "control"]):
        gaps = own[own["ranking"] == DIFFERENCE]  # there where both kinds have this control
        if metric not in METRIC_WORDS or gaps.empty:
            continue
        n = len(gaps)
        for ranking, values in own[own["model"].isin(gaps["model"])].groupby("ranking")["value"]:
            rows.append(number(lost(metric, ranking, control, excluded), values.mean(), n=n))
        name = lost(metric, DIFFERENCE, control, excluded)
        rows += [number(f"{name}, above zero", (gaps["value"] > 0).sum(), n=n),
                 number(f"{name}, interval above zero", (gaps["low"] > 0).sum(), n=n),
                 number(f"{name}, interval below zero", (gaps["high"] < 0).sum(), n=n)]
        if control == CONTROLS[-1]:
            rows += _trend(f"{name}, trend with size", gaps, seed)
    return rows


def _trend(name: str, gaps: pd.DataFrame, seed: int) -> list[dict]:
    """Rank correlation with size of the mean of the models of a size, and the smallest p-value so many sizes allow."""
    by_size = gaps.groupby("parameters")["value"].mean()
    k = len(by_size)
    if k < 3:
        return [number(f"{name}, sizes", k, n=k)]
    test = trend_test(by_size.index.to_numpy(dtype=float), by_size.to_numpy(), seed=seed)
    return [number(f"{name}, sizes", k, n=k), number(name, test.value, p_value=test.p_value, n=k),
            number(f"{name}, smallest p", test.smallest_p, n=k)]
