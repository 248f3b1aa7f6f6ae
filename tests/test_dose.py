"""The dose series of the causal test: what its runs change, and planted runs judged."""

import numpy as np
import pandas as pd
import pytest

from lab import causal
from lab.causal_page import dose_rows, dose_sentence, dose_shown, longer_sentence
from lab.dose import TESTED, dose_table, dose_tests, missing_runs
from lab.files import CAUSAL, CONFIRMATION, DOSE, NO_GLOSSARIES, read_plan
from lab.interventions import read_intervention

STEPS = [256, 512, 1024, 2048, 4096]


def run(strength, seed, *, induction_at, fv_at, prefix=0.9, fv=0.1, null=0.005):
    """The rows of one run: each score at its last value from a step on, at nothing before."""
    return pd.DataFrame([{
        "arm": "repeats", "strength": strength, "seed": seed, "step": step, "accuracy": 0.8, "fv_null": null,
        "prefix_matching": prefix * (step >= induction_at), "fv_score": fv * (step >= fv_at)} for step in STEPS])


def series(fv_at, **given):
    """Three seeds at six shares of repeats; `fv_at` by share."""
    return pd.concat([run(1 - share, seed, induction_at=512, fv_at=fv_at(share), **given)
                      for share in (0, 0.2, 0.4, 0.6, 0.8, 1) for seed in range(3)])


def test_runs_differ_in_nothing_but_the_share_of_repeats():
    plan, plans = read_plan(DOSE), map(read_plan, (CAUSAL, CONFIRMATION, NO_GLOSSARIES))
    assert not set(plan["seeds"]) & {seed for other in plans for seed in other["seeds"]}
    configs = [causal.configuration(run, plan, DOSE) for run in causal.planned(plan)]
    left = [round(read_intervention(config).repeats, 9) for config in configs]
    assert sorted(left) == sorted(3 * [0, 0.2, 0.4, 0.6, 0.8, 1]) and left[:3] == [1, 1, 1]
    assert len({str(config | {"intervention": None}) for config in configs}) == 1


def test_what_came_without_repeats_is_told_of_the_runs_without_them():
    plan = read_plan(DOSE)
    found = dose_table(series(lambda share: 1024 if share else 4096, fv=0.1), plan)
    assert longer_sentence(found) == "Of 3 runs of 4096 steps without any repeats in running text 3 have FV heads."
    assert "text 0 have" in longer_sentence(dose_table(series(lambda share: 1024 if share else 9999), plan))
    assert longer_sentence(found[found["repeats"] > 0.1]) == ""


def test_a_kind_comes_with_half_of_its_last_score_if_it_formed():
    plan = read_plan(DOSE)
    found = dose_table(run(0.2, 1, induction_at=512, fv_at=2048), plan).iloc[0]
    assert (found["repeats"], found["induction came"], found["fv came"], found["order"]) == (0.8, 512, 2048, 2)
    for missing in ({"prefix": 0.2}, {"fv": 0.01}, {"null": 0.2}):
        found = dose_table(run(0.2, 1, induction_at=512, fv_at=2048, **missing), plan).iloc[0]
        assert np.isnan(found["order"]) and np.isinf(found[["induction came", "fv came"]].astype(float)).sum() == 1


@pytest.mark.parametrize(("fv_at", "sign"), [(lambda share: 4096 if share < 0.5 else 1024, -1), (lambda share: 1024, 0),
                                             (lambda share: 1024 if share < 0.5 else 4096, 1)])
def test_an_order_that_depends_on_repeats_is_found_and_another_is_not(fv_at, sign):
    tests = dose_tests(dose_table(series(fv_at), read_plan(DOSE)), seed=0).set_index("with the share of repeats")
    order = tests.loc["doublings of the step from induction to FV heads"]
    assert np.sign(order["rank correlation"]) == sign and order["runs"] == 18
    assert (order["p (Holm)"] < 0.01) == (sign != 0) and order["p (Holm)"] >= order["p"]


def test_heads_that_never_come_are_the_latest():
    runs = series(lambda share: 1024)
    runs.loc[runs["strength"] > 0.5, "fv_score"] = 0.0
    tests = dose_tests(dose_table(runs, read_plan(DOSE)), seed=0).set_index("with the share of repeats")
    assert tests.loc["step at which FV heads came", "rank correlation"] < -0.5
    assert tests.loc["doublings of the step from induction to FV heads", "runs"] == 9


def test_the_page_says_which_kinds_never_came_and_what_is_missing():
    plan = read_plan(DOSE) | {"seeds": [0, 1, 2]}
    runs = series(lambda share: 1024 if share else 9999)
    runs.loc[(runs["strength"] == 0.8) & (runs["seed"] == 1), "prefix_matching"] = 0.1
    table = dose_table(runs, plan)
    shares = {("repeats", strength): 0.75 - 0.25 * (1 - strength) for strength in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}
    shown = dose_shown(table, shares)
    assert shown["few-shot share of the loss"].tolist() == [0.75, 0.7, 0.65, 0.6, 0.55, 0.5]
    assert shown["FV heads came"].tolist() == ["not within 4096 steps", *5 * ["1024"]]
    assert shown["induction heads came"].tolist() == ["512", "512; not within 4096 steps in 1 of 3", *4 * ["512"]]
    assert shown["prefix matching, best head"].tolist()[:2] == [0.9, 0.63] and missing_runs(table, plan) == 0
    assert missing_runs(table[table["repeats"] > 0], plan) == 3
    tests = dose_tests(table, seed=0)
    rows = dose_rows(tests, plan)
    assert rows["name"].tolist() == ["dose series, " + words for words in TESTED.values()]
    assert rows["p_value"].tolist() == tests["p (Holm)"].tolist() != tests["p"].tolist()
    assert rows["n"].tolist() == [18, 18, 18, 14]


def test_the_page_counts_runs_without_an_order_and_heads_that_were_lost():
    runs = series(lambda share: 1024)
    none = (runs["strength"] > 0.7) & (runs["seed"] == 0)  # two runs
    runs.loc[none, "prefix_matching"] = 0.1
    runs.loc[(runs["strength"] == 0) & (runs["seed"] == 1) & (runs["step"] == 4096), "fv_score"] = 0.001
    table = dose_table(runs, read_plan(DOSE))
    assert table["fv lost"].sum() == 1 and np.isinf(table.loc[table["fv lost"], "fv came"]).all()
    tests = dose_tests(table, seed=0)
    told = dose_sentence(table, tests)
    assert "Of 18 runs 17 have FV heads, 2 of these no induction heads, and so no order; 1 had them" in told
    row = tests.set_index("with the share of repeats").loc["step at which FV heads came"]
    assert f"step at which FV heads came {row['rank correlation']:.2f} ({row['p (Holm)']:.2g})" in told
    assert "Rank correlation" not in dose_sentence(table, tests.head(0))


def test_a_correlation_that_rests_on_the_known_end_is_gone_without_it():
    runs = series(lambda share: 1024)
    runs.loc[runs["strength"] == 1, "prefix_matching"] *= 0.1
    tests = dose_tests(dose_table(runs, read_plan(DOSE)), seed=0).set_index("with the share of repeats")
    best = tests.loc["prefix matching, best head"]
    assert best["rank correlation"] > 0.5 and best["p"] < 0.05
    assert best["not planned: where repeats are left"] == 0 and best["its p"] == 1
