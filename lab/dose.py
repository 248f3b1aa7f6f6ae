"""The dose series: how much repetition a model reads and what comes of both kinds of heads; plan lab/causal/dose."""

from typing import Any

import numpy as np
import pandas as pd

from icl_lib.analysis.dynamics import half_level
from icl_lib.stats.intervals import holm
from icl_lib.stats.permutation import trend_test

KINDS = {"induction": "prefix_matching", "fv": "fv_score"}
TESTED = {"prefix_matching": "prefix matching, best head", "fv_score": "FV score, best head",
          "fv came": "step at which FV heads came", "order": "doublings of the step from induction to FV heads"}


def dose_table(runs: pd.DataFrame, plan: dict[str, Any]) -> pd.DataFrame:
    """One row per run: the share of `repeats` that stays, the last step's scores, when each kind came, and the order.

    `induction came`, `fv came`: the first checkpoint at which the best head has half of its last score; infinity where
    the kind did not form by the plan's rule. `fv lost`: a head was above the rule's bar at some step and none is at the
    last, so that FV heads count as never. `order`: doublings of the step from the first to the second, NaN where one
    did not form. Runs: rows of `causal_statistics.read_runs`.
    """
    rule, rows = plan["rules"]["formed"], []
    for (strength, seed), run in runs.sort_values("step").groupby(["strength", "seed"]):
        last = run.iloc[-1]
        above = run["fv_score"] > run["fv_null"].clip(lower=rule["fv_score"])
        bars = {"induction": rule["prefix_matching"], "fv": max(rule["fv_score"], last["fv_null"])}
        came = {kind: half_level(run.set_index("step")[score]) if last[score] > bars[kind] else np.inf
                for kind, score in KINDS.items()}
        order = np.log2(came["fv"] / came["induction"]) if np.isfinite([*came.values()]).all() else np.nan
        rows.append({"repeats": 1 - strength, "seed": seed, "step": last["step"],
                     **last[[*KINDS.values(), "accuracy"]],
                     **{f"{kind} came": step for kind, step in came.items()}, "order": order,
                     "fv lost": bool(above.any() and not above.iloc[-1])})
    return pd.DataFrame(rows).sort_values(["repeats", "seed"], ignore_index=True)


def dose_tests(table: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Rank correlation with the share of repeats of what the plan names, p by permutation, Holm's, the smallest p.

    The last columns, not planned: the same without the runs that have no repeats, whose outcome was known beforehand.
    """
    some, rows = table[table["repeats"] > 1e-9], []
    for column, words in TESTED.items():
        value, p_value, smallest, n = _trend(table, column, seed)
        without, p_without, _, _ = _trend(some, column, seed)
        rows.append((words, value, p_value, smallest, n, without, p_without))
    tests = pd.DataFrame(rows, columns=["with the share of repeats", "rank correlation", "p", "smallest p", "runs",
                                        "not planned: where repeats are left", "its p"])
    tests.insert(3, "p (Holm)", holm(tests["p"].to_numpy()))
    return tests


def _trend(table: pd.DataFrame, column: str, seed: int) -> tuple[float, float, float, int]:
    n = int(table[column].notna().sum())
    found = trend_test(table["repeats"].to_numpy(float), table[column].to_numpy(float), seed=seed) if n > 2 else (
        np.nan, 1.0, 1.0)
    return *found, n


def missing_runs(table: pd.DataFrame, plan: dict[str, Any]) -> int:
    """How many of the plan's runs a `dose_table` lacks; the plan's tests are for all of them."""
    (entry,) = plan["arms"].values()
    planned = {(1 - strength, seed) for strength in entry["strengths"] for seed in plan["seeds"]}
    return len(planned - set(zip(table["repeats"], table["seed"], strict=True)))
