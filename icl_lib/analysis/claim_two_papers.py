"""The statistics of claims.yaml on the claims of Crosbie and Shutova: tables in, an estimate per model out."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from icl_lib.ablation.conditions import THEIRS
from icl_lib.analysis.claim_estimates import NO_CONTROL, Estimate, spanned, undecidable
from icl_lib.analysis.suite_tables import SuiteTables
from icl_lib.analysis.two_papers import MATCHED, by_task_benefits
from icl_lib.stats.intervals import bootstrap_mean

SMALLEST_BENEFIT = 0.05
FEWEST_PATTERNS = 3  # two that happen to agree would give a narrow interval
NO_PATTERN = "the model can do none of the patterns"
NO_BENEFIT = "demonstrations raise accuracy by no more than one prompt in twenty, or the interval of it reaches 0"


def pattern_effect(suite: SuiteTables) -> Iterator[Estimate]:
    """Accuracy lost on patterns at the smallest share of heads by prefix matching and the most demonstrations."""
    for model in suite.ablated:
        if suite.table("patterns", model).empty:
            continue
        rows = suite.table("pattern_effects", model).query(
            f"task_set == 'patterns' and excluded == '' and ranking == 'induction' and ranked_by == {THEIRS!r}")
        least = (rows["fraction"] == rows["fraction"].min()) & (rows["n_shots"] == rows["n_shots"].max())
        at = rows[least & (rows["control"] == MATCHED)]
        n_patterns, row = at["task"].ne("").sum(), next(at[at["task"] == ""].itertuples(), None)
        if row is None:
            yield undecidable(model, NO_PATTERN if rows.empty else NO_CONTROL)
        elif 0 < n_patterns < FEWEST_PATTERNS:
            yield undecidable(model, f"{n_patterns} patterns", row.value, row.n_prompts)
        else:
            yield spanned(model, (row.value, row.low, row.high), n=row.n_prompts, of="prompts")


def benefit_lost(suite: SuiteTables) -> Iterator[Estimate]:
    """Share of what demonstrations add on the paper's tasks that is lost to the most heads by prefix matching."""
    for model in suite.ablated:
        benefits = by_task_benefits(suite.table("patterns", model))
        by_condition = {(ranking, fraction): own for (task_set, ranking, fraction), own in benefits
                        if task_set == "paper"}
        if not by_condition:
            continue
        share = max(fraction for _, fraction in by_condition)
        keys = [("none", 0.0), (MATCHED, share), ("induction", share)]
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


def _ratio(lost: np.ndarray, benefit: np.ndarray, axis: int = -1) -> np.ndarray | np.floating:
    return lost.mean(axis) / benefit.mean(axis)


STATISTICS = (pattern_effect, benefit_lost)
