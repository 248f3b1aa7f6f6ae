"""Sections 3 and 5 from made-up score tables: what comes when, in each seed, and where top heads sit."""

import numpy as np
import pandas as pd
import pytest

from icl_lib import dynamics, report, scaling

STEPS = [0, 10, 20, 40]


def score_tables(model="m", fv_from=20, tasks=(1.0, 1.0, 1.0), induction_from=10):
    """Two layers of two heads: head (0, 0) turns into an induction head, (1, 1) into an FV head on the given tasks."""
    rows = []
    for step in STEPS:
        for layer, head in np.ndindex(2, 2):
            prefix = 0.9 if (layer, head) == (0, 0) and step >= induction_from else 0.0
            rows.append(("induction_prefix_matching", "", layer, head, step, prefix))
            for i, size in enumerate(tasks):
                fv = size * ((layer, head) == (1, 1) and step >= fv_from)
                rows.append(("fv", f"task {i}", layer, head, step, fv))
            rows += [("fv_null", f"draw {i}", layer, head, step, 0.1) for i in range(3)]
    table = pd.DataFrame(rows, columns=["score", "task", "layer", "head", "step", "value"])
    return table.assign(model=model)


def test_the_interval_of_emergence_spans_what_tasks_say():
    even = dynamics.fv_emergence_interval(score_tables(), null_quantile=0.99, seed=0)
    assert even == (20.0, 20.0)
    # Only one task of six shows the head: resamples without it never see one.
    odd = dynamics.fv_emergence_interval(score_tables(tasks=(1.0, 0, 0, 0, 0, 0)), null_quantile=0.99, seed=0)
    assert odd == (20.0, np.inf)
    assert report.interval_sentence(*odd).endswith("step 20 to none.")


def test_each_seed_says_which_kind_came_first():
    scores = pd.concat([score_tables("a"), score_tables("b", fv_from=10),
                        score_tables("c", fv_from=10, induction_from=20),
                        score_tables("d", fv_from=99, induction_from=99)])
    found = dynamics.emergence_by_seed(scores, induction_threshold=0.3, null_quantile=0.99).set_index("model")
    assert found["first"].to_dict() == {"a": "induction", "b": "same checkpoint", "c": "FV", "d": "neither came"}
    assert found.loc["a", "FV heads by step"] == 20 and pd.isna(found.loc["d", "FV heads by step"])
    text = report.seeds_sentence(found)
    assert text == ("Of 4 models that differ by their seed, induction heads came first in 1, FV heads came first in 1, "
                    "both came at the same checkpoint in 1, neither came in 1.")


def test_the_sweep_repeats_the_count_at_every_threshold():
    sweep = dynamics.transition_sweep(
        score_tables(), induction_thresholds=[0.5, 0.95], null_quantile=0.99, seed=0)
    assert sweep["threshold"].unique().tolist() == [0.5, 0.95]
    only = sweep[sweep["order"] == "induction_only"].set_index("threshold")["heads"]
    assert only.to_dict() == {0.5: 1, 0.95: 0}


def test_the_teaser_is_the_fv_head_that_was_most_an_induction_head():
    scores = score_tables()
    was_induction = (scores["score"] == "induction_prefix_matching") & (scores["step"] == 10)
    scores.loc[was_induction & (scores["layer"] == 1) & (scores["head"] == 1), "value"] = 0.5
    assert dynamics.teaser_head(scores, n=1) == (1, 1)


@pytest.mark.parametrize(("ours", "theirs", "expected"), [
    ([[1, 1], [0, 0]], [[1, 0], [0, 0]], 1.0),
    ([[1, 1], [0, 0]], [[0, 0], [1, 1]], 0.0),
    ([[1, 1], [0, 0]], [[1, 0], [1, 0]], 0.5),
])
def test_overlap_of_layers_compares_shares_of_layers(ours, theirs, expected):
    assert scaling.layer_overlap(np.array(ours, dtype=bool), np.array(theirs, dtype=bool)) == expected


def test_the_gap_is_the_difference_of_the_two_losses_and_its_trend_needs_three_sizes():
    effects = pd.DataFrame([(f"m{i}", size, ranking, value)
                            for i, (size, fv) in enumerate([(10, 0.1), (100, 0.2), (1000, 0.4)])
                            for ranking, value in (("fv", fv), ("induction", 0.15))],
                           columns=["model", "parameters", "ranking", "value"])
    gaps = scaling.gap_table(effects)
    assert np.allclose(gaps["gap"], [-0.05, 0.05, 0.25])
    assert "2 of 3 models. Rank correlation of the gap with size: +1.00" in report.gap_sentence(gaps, seed=0)
    assert report.gap_sentence(gaps.head(2), seed=0).endswith("cannot be said from 2 sizes.")
