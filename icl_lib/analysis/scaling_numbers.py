"""The numbers that the scaling page prints, as rows of the table `statistics`; the index page reads them from there."""

from collections.abc import Iterator

import pandas as pd

from icl_lib.ablation.effects import CONTROLS, DIFFERENCE, METRIC_WORDS
from icl_lib.analysis.reading import number, table_of
from icl_lib.analysis.scaling import BOTH_KINDS, KIND_COLUMN, PERCENTILES
from icl_lib.kinds import KINDS
from icl_lib.stats.permutation import trend_test

# Columns of the comparison, and of estimates those of the ends of the interval (or lowest and highest head) and of p.
_PERCENTILES = {of["value"]: {"low": of["low"], "high": of["high"]} for of in PERCENTILES.values()}
_COLUMNS = {
    **dict.fromkeys(("parameters", *KIND_COLUMN.values(), BOTH_KINDS, "top heads", "overlap by chance",
                     "overlap of layers"), {}),
    "overlap": {"p_value": "p (overlap)"},
    **_PERCENTILES,
    "rank correlation": {"low": "rank correlation, low", "high": "rank correlation, high"},
    "depth difference (layers)": {"p_value": "p (depth)", "smallest_p": "smallest possible p (depth)"},
}


def scaling_numbers(
    comparison: pd.DataFrame, overlaps: pd.DataFrame, effects: pd.DataFrame, *, seed: int
) -> pd.DataFrame:
    """All numbers of the page from the tables that `scaling` makes, per model and ("") over models.

    Over models count those with heads of both kinds; `n` is then their number.
    """
    of_models = [number(name, row[name], **{end: row[column] for end, column in ends.items()}, n=row["heads"],
                        model=row["model"]) for row in comparison.to_dict("records") for name, ends in _COLUMNS.items()]
    over_models = _over_models(comparison[comparison["both"]], len(comparison))
    rows = [*of_models, *over_models, *_of_overlaps(overlaps), *_of_effects(effects, seed)]
    return table_of(rows, notebook="model_scaling")


def lost(metric: str, ranking: str, control: str, excluded: bool) -> str:
    """The name of the numbers of one effect."""
    return f"{METRIC_WORDS[metric]} lost, {ranking}, against {control}" + (", with exclusion" if excluded else "")


def _over_models(both: pd.DataFrame, n_models: int) -> Iterator[dict]:
    n, deeper = len(both), both["depth difference (layers)"] > 0
    yield number("models with heads of both kinds", n, n=n_models)
    yield number("FV heads that are induction heads", both[BOTH_KINDS].sum(), n=both[KIND_COLUMN["fv"]].sum())
    counted = {"models with deeper FV heads": deeper,
               "models with significantly deeper FV heads": deeper & (both["p (depth)"] < 0.05),
               "models with power for depth": both["smallest possible p (depth)"] < 0.05,
               "models with more overlap than by chance": both["overlap"] > both["overlap by chance"]}
    for name, of_model in counted.items():
        yield number(name, of_model.sum(), n=n)
    for name in _PERCENTILES if n else ():
        yield number(name, both[name].mean(), n=n)


def _of_overlaps(overlaps: pd.DataFrame) -> Iterator[dict]:
    for fraction, at in overlaps.groupby("fraction"):
        where = f"top {fraction:g}"
        for row in at.itertuples():
            of = {"n": row.n_heads, "model": row.model}
            yield number(f"overlap, {where}", row.value, p_value=row.p_value, smallest_p=row.smallest_p, **of)
            yield number(f"overlap by chance, {where}", row.expected, **of)
        at = at[at["both"]]
        if at.empty:
            continue
        told = at[at["p_value"] < 0.05]
        found = {"overlap": at["value"].mean(), "overlap by chance": at["expected"].mean(),
                 "fewest heads": at["n_heads"].min(), "most heads": at["n_heads"].max(),
                 "models with more overlap": (told["value"] > told["expected"]).sum(),
                 "models with less overlap": (told["value"] < told["expected"]).sum(),
                 "models with power for overlap": (at["smallest_p"] < 0.05).sum()}
        for name, value in found.items():
            yield number(f"{name}, {where}", value, n=len(at))


def _of_effects(effects: pd.DataFrame, seed: int) -> Iterator[dict]:
    effects = effects[effects["ranking"].isin((*KINDS, DIFFERENCE))]
    for row in effects.itertuples():
        name = lost(row.metric, row.ranking, row.control, row.excluded)
        yield number(name, row.value, row.low, row.high, row.p_value, n=row.n_prompts, model=row.model)
    compared = effects[effects["both"].astype(bool)]
    for (metric, excluded, control), own in compared.groupby(["metric", "excluded", "control"]):
        gaps = own[own["ranking"] == DIFFERENCE]  # there where both kinds have this control
        if metric not in METRIC_WORDS or gaps.empty:
            continue
        n = len(gaps)
        for ranking, values in own[own["model"].isin(gaps["model"])].groupby("ranking")["value"]:
            yield number(lost(metric, ranking, control, excluded), values.mean(), n=n)
        name = lost(metric, DIFFERENCE, control, excluded)
        yield number(f"{name}, above zero", (gaps["value"] > 0).sum(), n=n)
        yield number(f"{name}, interval above zero", (gaps["low"] > 0).sum(), n=n)
        yield number(f"{name}, interval below zero", (gaps["high"] < 0).sum(), n=n)
        if control == CONTROLS[-1]:
            yield from _trend(f"{name}, trend with size", gaps, seed)


def _trend(name: str, gaps: pd.DataFrame, seed: int) -> Iterator[dict]:
    """Rank correlation with size of the mean of the models of a size."""
    by_size = gaps.groupby("parameters")["value"].mean()
    k = len(by_size)
    yield number(f"{name}, sizes", k, n=k)
    if k >= 3:
        test = trend_test(by_size.index.to_numpy(dtype=float), by_size.to_numpy(), seed=seed)
        yield number(name, n=k, **test._asdict())
