"""The numbers on patterns once more, from the tables `patterns`, `pattern_effects` and `effects` in plain pandas."""

import numpy as np
import pandas as pd
from scipy import stats

ANY, SAME_LAYERS = "random_any", "random_layer_matched"


def lost(patterns, row):
    """Mean over tasks and draws of accuracy lost, for a row of `pattern_effects`, from the table `patterns`."""
    own = patterns[(patterns["task_set"] == row.task_set) & (patterns["n_shots"] == row.n_shots)]
    if row.task:
        own = own[own["task"] == row.task]
    at = own[(own["ranked_by"] == row.ranked_by) & (own["fraction"] == row.fraction)]
    treated = at[(at["ranking"] == row.ranking) & (at["excluded"] == row.excluded)].set_index("task")["value"]
    control = own[own["ranking"] == "none"] if row.control == "none" else at[at["ranking"] == row.control]
    if row.control == SAME_LAYERS:
        control = control[(control["matched"] == row.ranking) & (control["excluded"].ne("") == (row.excluded != ""))]
    return float((control.groupby("task")["value"].mean() - treated).mean())


def walk(effects, paper):
    """The rows of both tables that the steps stand for, in order, by kind."""
    own = effects[(effects["task"] == "") & (effects["n_shots"] == 10)]
    steps = [("patterns", 0.1, "prefix matching", ANY, False), ("patterns", 0.2, "prefix matching", ANY, False),
             ("paper", 0.2, "prefix matching", ANY, False), ("paper", 0.2, "prefix matching", SAME_LAYERS, False),
             ("paper", 0.2, "attention mass", SAME_LAYERS, False), ("paper", 0.2, "attention mass", SAME_LAYERS, True)]
    for kind in ("fv", "induction"):
        found = []
        for task_set, fraction, ranked_by, control, kept in steps:
            found += list(own[(own["task_set"] == task_set) & (own["fraction"] == fraction) & (own["ranking"] == kind)
                              & (own["ranked_by"] == ranked_by) & (own["control"] == control)
                              & (own["excluded"].ne("") == kept)].itertuples())
        at = paper[(paper["replacement"] == "mean") & (paper["control"] == SAME_LAYERS) & paper["excluded"].ne("")
                   & (paper["metric"] == "first_token_accuracy") & (paper["ranking"] == kind)]
        yield kind, [*found, *at[at["positions"] == "all"].itertuples(), *at[at["positions"] == "last"].itertuples()]


def benefit(patterns, ranking, fraction=0.0, task_set="paper"):
    """By task what ten demonstrations add."""
    rows = patterns[(patterns["task_set"] == task_set) & (patterns["excluded"] == "") & (patterns["ranking"] == ranking)
                    & (patterns["fraction"] == fraction) & patterns["ranked_by"].isin(["", "prefix matching"])]
    if ranking == SAME_LAYERS:
        rows = rows[rows["matched"] == "induction"]
    by_task = rows.groupby(["task", "n_shots"])["value"].mean().unstack()
    return (by_task[10] - by_task[0]).dropna()


def pattern_effect(suite):
    found = {}
    for model, patterns in suite.patterns.items():
        rows = suite.pattern_effects.get(model, pd.DataFrame(columns=["task_set"]))
        rows = rows[rows["task_set"] == "patterns"]
        if rows.empty:
            found[model] = np.nan
            continue
        row, = rows[(rows["task"] == "") & (rows["fraction"] == 0.1) & (rows["n_shots"] == 10) & rows["excluded"].eq("")
                    & (rows["control"] == SAME_LAYERS) & (rows["ranking"] == "induction")
                    & (rows["ranked_by"] == "prefix matching")].itertuples()
        found[model] = (lost(patterns, row), row.low, row.high, np.nan)
    return found


def benefit_lost(suite):
    """The ratio, and ends by Fieller's theorem, which a bootstrap of six tasks comes near."""
    found = {}
    for model, patterns in suite.patterns.items():
        add = benefit(patterns, "none")
        less = benefit(patterns, SAME_LAYERS, 0.2) - benefit(patterns, "induction", 0.2)
        ratio, n = less.mean() / add.mean(), len(add)
        error = (less - ratio * add).std(ddof=1) / n**0.5 / add.mean()
        half = stats.t.ppf(0.975, n - 1) * error
        found[model] = (ratio, (ratio - half, 0.7 * half), (ratio + half, 0.7 * half), np.nan)
    return found
