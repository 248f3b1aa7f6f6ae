"""Sections 3 and 5 from made-up score tables: what comes when, in each seed, and where top heads sit."""

import numpy as np
import pandas as pd
import pytest

from icl_lib import dynamics, dynamics_figures, report, scaling
from icl_lib.tables import provenance, write_table

STEPS = [0, 10, 20, 40]
MADE_BY = provenance(suite="s", seed=0, dtype="", device="", bos="", parameters={})


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


def test_transitions_are_counted_for_every_seed():
    same_head = score_tables("b")
    fv = (same_head["score"] == "fv") & (same_head["layer"] == 1) & (same_head["head"] == 1)
    same_head.loc[fv, ["layer", "head"]] = -1  # swap the two heads' FV scores
    other = (same_head["score"] == "fv") & (same_head["layer"] == 0) & (same_head["head"] == 0)
    same_head.loc[other, ["layer", "head"]] = 1
    same_head.loc[same_head["layer"] == -1, ["layer", "head"]] = 0
    found = dynamics.transitions_by_seed(
        pd.concat([score_tables("a"), same_head]), induction_threshold=0.3, null_quantile=0.99, seed=0)
    assert found.set_index("model")["induction first"].to_dict() == {"a": 0, "b": 1}
    assert found["FV first"].sum() == 0
    assert report.transitions_by_seed_sentence(found).startswith("Over 2 seeds: 1 head induction first")


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


def gap_rows(values):
    return pd.DataFrame([(f"m{i}", 10 ** (i + 1), value, value - 0.1, value + 0.1) for i, value in enumerate(values)],
                        columns=["model", "parameters", "value", "low", "high"])


def test_the_trend_of_the_gap_needs_three_sizes():
    gaps = gap_rows([-0.05, 0.05, 0.25])
    text = report.gap_sentence(gaps, "first_token_accuracy", seed=0)
    assert "2 of 3 models (interval above zero in 1, below in 0). Rank correlation of the gap with size: +1.00" in text
    assert report.gap_sentence(gaps.head(2), "token_loss_difference", seed=0).endswith("cannot be said from 2 sizes.")


def test_effects_by_size_take_each_models_nearest_share_of_the_one_intervention():
    shared = {"step": 1, "metric": "first_token_accuracy", "ranking": "fv", "control": "random_layer_matched",
              "n_heads": 1, "low": 0.0, "high": 1.0}
    effects = pd.DataFrame([
        shared | {"model": model, "replacement": replacement, "positions": positions, "fraction": fraction,
                  "excluded": excluded, "value": value}
        for model, replacement, positions, fraction, excluded, value in [
            ("a", "mean", "all", 0.1, "", 1.0), ("a", "mean", "all", 0.3, "", 2.0), ("a", "zero", "all", 0.1, "", 3.0),
            ("a", "mean", "last", 0.1, "", 4.0), ("a", "mean", "all", 0.1, "top 0.1 induction", 5.0),
            ("b", "mean", "all", 0.2, "", 6.0)]])
    effects = pd.concat([effects, *(effects.assign(control=control, value=9.0) for control in ("none", "random"))])
    sizes = pd.DataFrame({"model": ["b", "a"], "parameters": [5, 10]})
    found = scaling.effects_by_size(effects, sizes, fraction=0.12)
    assert found["value"].tolist() == [6.0, 1.0, 5.0] and found["excluded"].tolist() == [False, False, True]


def test_overlap_is_measured_at_every_share_against_two_random_sets():
    prefix, fv = np.zeros((2, 10)), np.zeros((2, 10))
    prefix[0, :2], fv[0, 1:3] = [0.9, 0.8], [0.9, 0.8]
    grid = pd.MultiIndex.from_product([range(2), range(10)], names=["layer", "head"]).to_frame(index=False)
    scores = pd.concat([grid.assign(score=score, task="", value=values.ravel(), model="m") for score, values in
                        (("induction_attention_mass", prefix), ("fv", fv))])
    table = scaling.overlap_table(scores, pd.DataFrame({"model": ["m"], "parameters": [1]}), fractions=[0.05, 0.1])
    assert table["value"].tolist() == [0.0, 0.5] and table["expected"].tolist() == [0.05, 0.1]
    # two of twenty against two of twenty: at least one shared with probability 1 - C(18,2)/C(20,2)
    assert table["p_value"].iloc[1] == pytest.approx(2 * (1 - 153 / 190))


def test_missing_checkpoints_are_left_out_and_named_and_none_at_all_is_refused(tmp_path):
    rows = score_tables().assign(standard_error=np.nan, n_prompts=1)
    for step in (10, 40):
        path = tmp_path / "scores" / "m" / f"step{step}.parquet"
        write_table(rows[rows["step"] == step], path, schema_name="scores", provenance=MADE_BY)
    found = dynamics.tables_of(tmp_path, "scores", {"m": [10, 20, 40]})
    assert sorted(found["step"].unique()) == [10, 40]
    assert report.steps_sentence(found, [10, 20, 40]).endswith("Missing: 20; figures have a gap there.")
    with pytest.raises(ValueError, match="no table 'scores' of other in .*run the suite first"):
        dynamics.tables_of(tmp_path, "scores", {"other": [1]})


def test_a_missing_checkpoint_breaks_the_lines_and_is_marked():
    curves = pd.DataFrame([("anew", kind, step, 0.5, 0.4, 0.6) for kind in ("induction", "fv") for step in (1, 4)],
                          columns=["selection", "kind", "step", "value", "low", "high"])
    ax = dynamics_figures.training_scores(curves, [1, 2, 4])[0]
    assert np.isnan(ax.lines[0].get_ydata()).tolist() == [False, True, False]
    assert [text.get_text() for text in ax.texts] == ["step 2 missing"]
