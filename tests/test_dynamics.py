"""Sections 3 and 5 from made-up score tables: what comes when, in each seed, and where top heads sit."""

import numpy as np
import pandas as pd
import pytest

from icl_lib.analysis import dynamics, mattering, transitions
from icl_lib.analysis.reading import tables_of
from icl_lib.figures import dynamics as dynamics_figures
from icl_lib.figures.data import drawn
from icl_lib.pages import dynamics as dynamics_report
from icl_lib.provenance import provenance
from icl_lib.tables import write_table
from tests import planted_tables

STEPS = [0, 10, 20, 40]
UNKNOWN = pd.DataFrame(columns=["model", "step"])  # a table `accuracy` that says of no step whether labels are read
MADE_BY = provenance(suite="s", seed=0, dtype="", device="", bos="", parameters={})


def score_tables(model="m", fv_from=20, tasks=(1.0, 1.0, 1.0), induction_from=10, null=0.1):
    """Two layers of two heads: head (0, 0) turns into an induction head, (1, 1) into an FV head on the given tasks."""
    rows = []
    for step in STEPS:
        for layer, head in np.ndindex(2, 2):
            prefix = 0.9 if (layer, head) == (0, 0) and step >= induction_from else 0.0
            rows.append(("induction_prefix_matching", "", layer, head, step, prefix))
            rows.append(("induction_attention_mass", "", layer, head, step, prefix / 2))
            for i, size in enumerate(tasks):
                fv = size * ((layer, head) == (1, 1) and step >= fv_from)
                rows.append(("fv", f"task {i}", layer, head, step, fv))
            rows += [("fv_null", f"draw {i}", layer, head, step, null) for i in range(3)]
    table = pd.DataFrame(rows, columns=["score", "task", "layer", "head", "step", "value"])
    return table.assign(model=model)


def training(scores, accuracy=UNKNOWN):
    found, = dynamics.trainings(scores, accuracy)
    return found


def by_seed(scores):
    return transitions.transitions_by_seed(dynamics.trainings(scores, UNKNOWN), seed=0).set_index("model")


def orders_of(scores, accuracy=UNKNOWN):
    """Heads by which score came first."""
    return transitions.transitions([training(scores, accuracy)], seed=0).table().set_index("order")["heads"]


def test_the_interval_of_emergence_spans_what_tasks_say():
    even = dynamics.fv_emergence_interval(training(score_tables()), seed=0)
    assert even == (20.0, 20.0)
    # Only one task of six shows the head: resamples without it never see one.
    odd = dynamics.fv_emergence_interval(training(score_tables(tasks=(1.0, 0, 0, 0, 0, 0))), seed=0)
    assert odd == (20.0, np.inf)
    assert dynamics_report.interval_sentence(*odd).endswith("step 20 to not within these steps.")


def test_each_seed_says_which_kind_came_first():
    scores = pd.concat([score_tables("a"), score_tables("b", fv_from=10),
                        score_tables("c", fv_from=10, induction_from=20),
                        score_tables("d", fv_from=99, induction_from=99)])
    found = dynamics.emergence_by_seed(dynamics.trainings(scores, UNKNOWN), fraction=0.1).set_index("model")
    assert found["half of FV level"].tolist()[:3] == [20, 10, 10]
    assert found["half of induction level"].tolist()[:3] == [10, 10, 20]
    assert found["first"].to_dict() == {"a": "induction", "b": "same checkpoint", "c": "FV", "d": "neither came"}
    assert found["FV heads by step"].tolist() == ["20", "10", "10", "not within 40 steps"]
    over = dynamics.half_levels_over_seeds(found[:3], seed=0).set_index("half of the final level")
    assert over["step"].to_dict() == pytest.approx(
        {"induction heads": 40 / 3, "FV heads": 40 / 3, "FV after induction heads": 0})
    assert over.loc["FV after induction heads", "low"] < 0 < over.loc["FV after induction heads", "high"]
    assert "in 1 of 2 seeds, earlier in 0 (sign test: p = 1, at least 1 w" in dynamics_report.order_sentence(found[:2])
    assert "in 0 of 2 seeds, earlier in 1" in dynamics_report.order_sentence(found[1:3])
    never = dynamics.emergence_table(training(score_tables(fv_from=99)))
    assert "FV heads did not come within 40 steps." in dynamics_report.emergence_sentence(never)
    assert dynamics_report.emergence_shown(never)["first step with it"].tolist() == ["10", "not within 40 steps"]


def test_the_sweep_repeats_the_count_at_every_threshold():
    sweep = transitions.transition_sweep(training(score_tables()), induction_thresholds=[0.5, 0.95], seed=0)
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
    found = by_seed(pd.concat([score_tables("a"), same_head]))
    assert found["induction first"].to_dict() == {"a": 0, "b": 1, "all": 1, "all, in layers": 1, "all, same places": 1,
                                                  "all, each step's threshold": 1}
    assert found["FV first"].sum() == 0
    # one of four heads in each seed: chance has it there in a quarter, so that neither seed nor both can tell
    assert found.loc["all", "induction first, by chance"] == pytest.approx(0.5, abs=0.05)
    assert (found["smallest p (induction first)"] > 0.05).all() and (found["smallest p (FV first)"] == 1).all()


def one_head(**options):
    """`score_tables` in which head (0, 0) has both scores."""
    table = score_tables(**options)
    moved = (table["score"] == "fv") & (table["layer"] == table["head"])
    table.loc[moved, ["layer", "head"]] = 1 - table.loc[moved, ["layer", "head"]]
    return table


def test_the_order_can_be_told_by_each_steps_own_threshold():
    """FV from step 10, induction from 20; the null rises above the first FV score."""
    head = one_head(fv_from=10, induction_from=20, tasks=(0.1, 0.1, 0.1), null=0.01)
    head.loc[(head["value"] == 0.1) & (head["step"] >= 20), "value"] = 0.9
    head.loc[(head["score"] == "fv_null") & (head["step"] >= 40), "value"] = 0.5
    found = by_seed(pd.concat([head, head.assign(model="n")]))
    assert found.loc["all", ["FV first", "both at once"]].tolist() == [0, 2]
    assert found.loc["all, each step's threshold", ["FV first", "both at once"]].tolist() == [2, 0]


def test_heads_that_keep_their_first_kind_are_told_from_those_that_change_it():
    head = one_head()
    assert transitions.kinds_at_the_end([training(head)]) == {"induction": 1, "fv": 1}
    assert transitions.kinds_at_the_end([training(score_tables())]) == {"induction": 0, "fv": 0}
    lost = head["step"] == 40
    changed = head.assign(value=head["value"].mask(lost & head["score"].str.startswith("induction"), 0.1))
    assert transitions.kinds_at_the_end([training(changed)]) == {"induction": 0, "fv": 1}
    back = head.assign(value=head["value"].mask(lost & (head["score"] == "fv"), 0.0))
    assert transitions.kinds_at_the_end([training(back)]) == {"induction": 1, "fv": 0}


def test_seeds_together_have_the_power_that_one_lacks():
    def grid(model, step, induction, fv):
        parts = {"induction_prefix_matching": induction, "induction_attention_mass": induction / 2, "fv": fv,
                 "fv_null": np.zeros_like(fv)}
        return pd.concat([pd.DataFrame({
            "score": score, "task": "", "layer": np.repeat(range(4), 10), "head": np.tile(range(10), 4), "step": step,
            "value": values.ravel(), "model": model}) for score, values in parts.items()])

    nothing = planted_tables.with_heads([], 0.1) / 100
    three, first = (planted_tables.with_heads(planted_tables.layer(1, n), score) for n, score in ((3, 0.8), (1, 0.1)))

    def transitions_of(induction):
        scores = [grid(model, step, induction if step >= 10 else nothing, first if step >= 20 else nothing)
                  for model in "abc" for step in (0, 10, 20)]
        return by_seed(pd.concat(scores))

    found = transitions_of(three)
    assert (found.loc[list("abc"), "smallest p (induction first)"] > 0.05).all()  # three of forty heads: 2 x 0.075
    assert found.loc["all", "p (induction first)"] == pytest.approx(2 * 0.075**3, abs=0.002)
    assert found.loc["all", "induction first"] == 3
    assert found.loc["all", "induction first, by chance"] == pytest.approx(3 * 0.075, abs=0.02)
    assert found.loc["all", "smallest p (induction first)"] < 0.05
    assert found.loc["all, in layers", "induction first, by chance"] == pytest.approx(3 * 0.3, abs=0.05)
    layers_differ = transitions_of(planted_tables.with_heads(planted_tables.layer(1, 10), 0.8))["p (induction first)"]
    assert layers_differ["all"] < 0.05 and layers_differ["all, in layers"] == 1
    assert found.loc["all, in layers", "p (induction first)"] < 0.06  # 2 x 0.3 ** 3
    assert found.loc["all, same places", "p (induction first)"] == 1  # the same heads in every seed
    told = dynamics_report.transitions_sentence(found.reset_index(), {"induction": 2, "fv": 3})
    assert "Of 3 heads with both scores induction came first in 3, a share of 1.00; in random" in told
    assert told.endswith("At the end 2 of these 3 heads are induction heads and 3 FV heads.")
    both = dynamics_report.transitions_sentence(found.reset_index(), {"induction": 3, "fv": 3})
    assert both.endswith("they added a kind and did not change it.")
    named = found.rename(index={"a": "lab-1k", "b": "lab-1k-seed1", "c": "lab-1k-data-seed2"}).reset_index()
    shown = dynamics_report.transitions_by_seed_shown(named)
    assert shown.index.tolist() == ["0", "1", "data-seed2", *list(found.index)[3:]]
    words = "{:.2g} ({:.2g})".format(*found.loc["all", ["p (induction first)", "smallest p (induction first)"]])
    assert shown.loc["all", "p (induction first) (least possible)"] == words != "0 (0)"


def accuracies(gaps):
    """Ten-shot accuracy on four scoring tasks by step: clean at 0.8, shuffled less by the gap."""
    rows = [("m", step, 10, labels, f"task {i}", "scoring", "first_token_accuracy", value + 0.01 * i * (value == 0.8))
            for step, gap in gaps.items() for labels, value in (("clean", 0.8), ("shuffled", 0.8 - gap))
            for i in range(4)]
    columns = ["model", "step", "n_shots", "labels", "task", "split", "metric", "value"]
    return pd.DataFrame(rows, columns=columns)


def test_there_are_no_fv_heads_while_a_model_does_not_read_labels():
    scores = score_tables(fv_from=10)
    came = dynamics.emergence_table(training(scores)).set_index("kind")["first step with it"]
    assert came["fv"] == 10
    late = accuracies({0: 0.0, 10: 0.0, 20: 0.02, 40: 0.5})
    told = dynamics.emergence_table(training(scores, late)).set_index("kind")
    assert told.loc["fv", "first step with it"] == 40 and told.loc["fv", "its score"] == 1
    assert told.loc["induction", "first step with it"] == 10
    assert dynamics.fv_emergence_interval(training(scores, late), seed=0) == (40.0, 40.0)
    moved = scores.replace({"layer": {0: 1, 1: 0}}).query("score == 'fv'").assign(head=lambda t: 1 - t["head"])
    one_head = pd.concat([scores.query("score != 'fv'"), moved])
    orders = orders_of(one_head, late)
    assert orders["induction_first"] == 1 and orders["both_at_once"] == 0
    assert orders_of(one_head)["both_at_once"] == 1


def test_a_null_below_zero_does_not_make_fv_heads():
    assert training(score_tables(null=-0.5)).fv_thresholds.tolist() == [0.005] * 4
    weak = score_tables(tasks=(0.004,), null=-0.5)
    assert pd.isna(dynamics.emergence_table(training(weak)).set_index("kind").loc["fv", "first step with it"])


def test_top_heads_are_ranked_by_the_papers_score_and_defined_by_the_other():
    scores = score_tables()
    mass = (scores["score"] == "induction_attention_mass") & (scores["layer"] == 1) & (scores["head"] == 0)
    scores.loc[mass, "value"] = 0.49  # above that of the head with the prefix matching
    assert dynamics.final_heads(scores, n=1)["induction"] == [(1, 0)]
    curve = dynamics.top_score_curves(scores, fraction=0.25).query("kind == 'induction' and step == 40")
    assert curve["value"].tolist() == [0.49, 0.49]
    told = dynamics.emergence_table(training(scores)).set_index("kind")
    assert told.loc["induction", "best head at the end"] == "L0H0"


def test_the_teaser_is_the_fv_head_that_was_most_an_induction_head():
    both = pd.concat([score_tables("a"), score_tables("b")], ignore_index=True)
    matching = both.query("score == 'induction_prefix_matching' and layer == 1 and head == 1")
    both.loc[matching.query("model == 'b' and step == 10").index, "value"] = 0.5
    both.loc[matching.query("model == 'a' and step == 40").index, "value"] = 0.9  # it is an FV head by then
    assert dynamics.teaser_head(dynamics.trainings(both, UNKNOWN)) == ("b", 1, 1)
    both.loc[matching.query("model == 'a' and step == 10").index, "value"] = 0.6
    assert dynamics.teaser_head(dynamics.trainings(both, UNKNOWN)) == ("a", 1, 1)
    assert dynamics.teaser_head([training(score_tables(tasks=(0.004,)))]) is None


def test_missing_checkpoints_are_left_out_and_named_and_none_at_all_is_refused(tmp_path):
    rows = score_tables().assign(standard_error=np.nan, n_prompts=1)
    for step in (10, 40):
        path = tmp_path / "scores" / "m" / f"step{step}.parquet"
        write_table(rows[rows["step"] == step], path, schema_name="scores", provenance=MADE_BY)
    found = tables_of(tmp_path, "scores", {"m": [10, 20, 40]})
    assert sorted(found["step"].unique()) == [10, 40]
    assert dynamics_report.steps_sentence(found, [10, 20, 40]).endswith("Missing: 20; figures have a gap there.")
    with pytest.raises(ValueError, match="no table 'scores' of other in .*run the suite first"):
        tables_of(tmp_path, "scores", {"other": [1]})


def test_the_numbers_of_a_figure_have_step_0_at_0_in_panels_without_labels_too():
    scores = score_tables().replace({"step": {10: 0}})
    figure = dynamics_figures.head_trajectories(scores, [0, 20, 40], 1).axes.flat[0].figure
    lines = drawn(figure).query("mark == 'line'")
    assert {panel: {float(x) for x in of["x"]} for panel, of in lines.groupby("panel")} == dict.fromkeys(
        range(1, 5), {0, 20, 40})


def test_a_missing_checkpoint_breaks_the_lines_and_is_marked():
    scores = score_tables().query("step != 20")
    figure = dynamics_figures.training_scores(scores, [10, 20, 40], 0.25)
    ax = figure.axes[0]
    assert np.isnan(ax.lines[0].get_ydata()).tolist() == [False, True, False]
    assert [text.get_text() for text in ax.texts] == ["step 20 missing"] and "top 25% of heads" in figure.caption


def test_when_a_kind_starts_to_matter_is_told_by_seed_and_the_figure_has_a_line_for_each():
    low = {("a", "induction"): (-1, 0.1, 0.2), ("a", "fv"): (-1, -1, 0.1), ("b", "induction"): (0.1, 0.1, 0.1),
           ("b", "fv"): (0.1, 0.1, -1)}
    effects = pd.DataFrame([
        {"model": model, "metric": "first_token_accuracy", "ranking": kind, "step": step, "low": of, "value": of + 0.5,
         "high": of + 1} for (model, kind), lows in low.items() for step, of in zip(STEPS[1:], lows, strict=True)])
    found = mattering.matters_by_seed(effects).set_index("model")
    assert found["induction heads matter by step"].to_dict() == {"a": "20", "b": "10"}
    assert found["FV heads matter by step"].to_dict() == {"a": "40", "b": "not within 40 steps"}
    drawn = dynamics_figures.effects_by_step(effects, {"a": STEPS[1:], "b": STEPS[1:]}, 0.1)
    lines = [line.get_ydata() for line in drawn.axes[0].lines if len(line.get_ydata()) == 3]
    assert len(lines) == 6 and np.allclose(lines[2], [0.05, 0.6, 0.65]) and "single seeds" in drawn.caption
    alone = dynamics_figures.effects_by_step(effects.query("model == 'a'"), {"a": STEPS[1:]}, 0.1)
    assert "intervals" in alone.caption
