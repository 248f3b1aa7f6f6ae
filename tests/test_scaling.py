"""The scaling and scoring pages from made-up tables: chance, controls, power and what is left out."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from icl_lib.analysis import scaling, scoring_numbers
from icl_lib.analysis.reading import table_of
from icl_lib.analysis.scaling_numbers import scaling_numbers
from icl_lib.data.sources import read_tasks
from icl_lib.figures import common as figures
from icl_lib.figures import scaling as scaling_figures
from icl_lib.measurements import task_table
from icl_lib.pages import scaling as scaling_report
from icl_lib.pages import scoring as scoring_report
from icl_lib.pages.common import numbers_table

SHAPE = (2, 10)


def score_rows(first, second, model="m", null=0.001):
    """Scores of 20 heads: the first heads of either kind as given, prefix matching twice the attention mass."""
    grid = pd.MultiIndex.from_product([range(n) for n in SHAPE], names=["layer", "head"]).to_frame(index=False)
    rng = np.random.default_rng(0)
    mass, fv = rng.uniform(0, 0.01, 20), rng.uniform(-0.001, 0.001, 20)
    mass[first], fv[second] = np.linspace(0.4, 0.3, len(first)), np.linspace(0.1, 0.05, len(second))
    tables = [("induction_attention_mass", "", mass), ("induction_prefix_matching", "", 2 * mass), ("fv", "a", fv),
              ("fv", "b", fv * 1.1), ("previous_token", "", mass)]
    tables += [("fv_null", f"draw {i}", np.full(20, null)) for i in range(3)]
    rows = [grid.assign(score=score, task=task, value=values) for score, task, values in tables]
    return pd.concat(rows, ignore_index=True).assign(model=model, step=1)


def accuracy_rows(model="m", shots=(0, 10), lost=0.4):
    rows = [(n, labels, f"task {t}", 0.8 - lost * (labels == "shuffled") + 0.01 * t) for n in shots
            for labels in (("clean", "shuffled") if n > 1 else ("clean",)) for t in range(4)]
    table = pd.DataFrame(rows, columns=["n_shots", "labels", "task", "value"])
    return table.assign(metric="first_token_accuracy", split="scoring", model=model, step=1, n_prompts=5,
                        standard_error=0.1, task_type="abstractive")


def effect_rows(model, gaps, controls=("none", "random", "random_layer_matched"), induction=0.1):
    """Effects of the mean at all positions on accuracy: FV heads cost `gaps` more than induction heads."""
    rows = [{"control": control, "ranking": ranking, "value": value, "low": value - 0.05, "high": value + 0.05}
            for control, gap in zip(controls, gaps, strict=False)
            for ranking, value in (("fv", induction + gap), ("induction", induction), ("fv_minus_induction", gap))]
    return pd.DataFrame(rows).assign(
        model=model, step=1, metric="first_token_accuracy", replacement="mean", positions="all", excluded="",
        fraction=0.1, n_heads=2, n_draws=3, p_value=0.01, n_prompts=20)


def page(models, gaps, *, fv=(1, 2), controls=("none", "random", "random_layer_matched")):
    """Numbers of the scaling page for models of rising size, all with heads of both kinds unless `fv` is empty."""
    scores = pd.concat([score_rows([0, 1], list(fv), model) for model in models])
    accuracy = pd.concat([accuracy_rows(model) for model in models])
    sizes = pd.DataFrame({"model": models, "parameters": [10 ** (i + 1) for i in range(len(models))]})
    sizes = scaling.with_kinds(sizes, scores, accuracy)
    comparison = scaling.comparison_table(scores, sizes, fraction=0.1, overlap_fraction=0.1, seed=0)
    effects = pd.concat([effect_rows(model, [gap] * 3, controls) for model, gap in zip(models, gaps, strict=True)])
    overlaps = scaling.overlap_table(scores, sizes, fractions=[0.05, 0.1])
    effects = scaling.effects_by_size(effects, sizes, fraction=0.1)
    return scaling_numbers(comparison, overlaps, effects, seed=0), effects


def scored(*tables, **options):
    return table_of(list(scoring_numbers.score_numbers(*tables, **options)), notebook="scoring")


def test_chance_is_the_share_of_heads_that_are_top_heads_in_their_layers():
    numbers, _ = page(["m"], [0.1])
    of = numbers.set_index(["model", "name"])["value"]
    assert of["m", "overlap by chance"] == of["", "overlap by chance, top 0.1"] == 0.2  # both sets are in a layer of 10
    assert of["m", "overlap"] == 0.5 and of["", "models with more overlap than by chance"] == 1
    assert scaling_report.overlaps_table(numbers).loc["top 10%", ["shared", "by chance"]].tolist() == ["50%", "20%"]
    apart, _ = page(["m"], [0.1], fv=(2, 3))
    assert apart.set_index(["model", "name"])["value"]["", "models with more overlap than by chance"] == 0
    found = scored(score_rows([0, 1], [1, 2]), accuracy_rows(), fraction=0.1, seed=0)
    assert scoring_report.kinds_table(found)["top heads"].tolist() == ["L0H0, L0H1", "L0H1, L0H2"]
    assert numbers_table(found, "overlap")["value"].tolist()[:2] == ["50%", "20%"]


def test_the_page_says_which_score_ranks_and_how_many_heads_are_of_each_kind():
    scores = score_rows([0, 1, 2], [1, 2])
    found = scored(scores, accuracy_rows(), fraction=0.1, seed=0)
    kinds = scoring_report.kinds_table(found)
    table = scoring_report.scores_table(found)
    assert table.loc["attention mass (ranks)", ["highest", "head"]].tolist() == ["0.400", "L0H0"]
    assert kinds["heads"].tolist() == ["3 of 20", "2 of 20"] and kinds.at["FV heads", "defined by"].endswith("0.0050")
    assert numbers_table(found, "done")["value"].tolist() == ["0.40"]
    # a null above the smallest effect raises the bar; without labels read there are no FV heads, whatever the score
    high = scored(score_rows([0], [1], null=0.2), accuracy_rows(), fraction=0.1, seed=0)
    row = scoring_report.kinds_table(high).loc["FV heads"]
    assert row["heads"] == "0 of 20" and row["defined by"].endswith("0.2000")
    blind = scored(scores, accuracy_rows(lost=0.0), fraction=0.1, seed=0)
    assert scoring_report.kinds_table(blind).at["FV heads", "heads"] == "0 of 20"


@pytest.mark.parametrize("shots", [(0, 1), (4,), (0, 1, 4)])
def test_other_numbers_of_demonstrations_are_told_and_nothing_is_nan(shots):
    tasks = task_table(read_tasks("lab"), name="m", step=1)
    names = sorted(tasks["task"])[:4]
    accuracy = accuracy_rows(shots=shots)
    accuracy["task"] = accuracy["task"].map({f"task {i}": name for i, name in enumerate(names)})
    numbers = table_of(list(scoring_numbers.accuracy_numbers(accuracy.assign(group="look-up"))), notebook="scoring")
    table = scoring_report.accuracy_table(numbers)
    assert not table.isna().any(axis=None) and table.loc["look-up", f"{shots[-1]} shots"] in (0.81, 0.82)
    assert any("shuffled" in name for name in table) == (4 in shots)
    table = scoring_report.accuracy_by_task(accuracy, tasks)
    assert {f"{n} shots" for n in shots} <= set(table) and not table.isna().any().any()
    found = scored(score_rows([0], [1]), accuracy, fraction=0.1, seed=0)
    assert len(numbers_table(found, "done")) == (4 in shots)  # shuffled labels from two shots on


def test_labels_of_figures_name_no_number_that_a_notebook_may_change():
    assert not any("shots" in label for label in figures.METRIC_LABEL.values())


def test_intervals_of_strength_follow_the_seed():
    scores = score_rows([0, 1], [1, 2])
    scores.loc[(scores["score"] == "fv") & (scores["task"] == "b"), "value"] *= 3
    more = [scores] + [scores[scores["task"] == "a"].assign(task=f"t{i}", value=lambda t, i=i: t["value"] * i**1.5)
                       for i in range(2, 9)]
    sizes = pd.DataFrame({"model": ["m"], "parameters": [1]})
    tables = [scaling.strength_table(pd.concat(more), sizes, fraction=0.1, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (table[table["score"] == "fv"] for table in tables)
    assert first.equals(again) and not first["low"].equals(other["low"])


def test_effects_stand_side_by_side_against_each_control():
    numbers, effects = page(["small", "large"], [0.2, 0.4])
    main = scaling_report.main_effects_table(numbers).loc["few-shot accuracy"]
    assert main[["models", "FV heads", "induction heads", "interval above zero"]].tolist() == [2, "0.400", "0.100", 2]
    assert "Left out" not in scaling_report.left_out_sentence(numbers)
    table = scaling_report.effects_table(numbers)
    assert table["FV heads"].tolist() == ["0.400"] * 3 and table["induction heads"].tolist() == ["0.100"] * 3
    assert table["more with FV heads in"].tolist() == [2] * 3
    plain, excluded = scaling_figures.effects_by_size(effects, 0.1)
    assert all(len(ax.lines) > 2 and not ax.texts for ax in plain.axes[0])
    assert all(ax.texts for ax in excluded.axes.ravel())


def test_models_without_a_kind_or_a_control_are_left_out_and_named():
    numbers, _ = page(["small", "large"], [0.2, 0.4], fv=())
    assert scaling_report.left_out_sentence(numbers) == "Left out: small, large (no FV heads)."
    assert scaling_report.main_effects_table(numbers).empty
    counts = numbers_table(numbers[numbers["model"] == ""], "comparison")
    assert counts["value"].tolist() == ["0"] * 5 and counts["n"].tolist() == ["0"] * 5
    assert scaling_report.overlaps_table(numbers).empty
    bare, _ = page(["small", "large"], [0.2, 0.4], controls=("none", "random"))
    assert scaling_report.main_effects_table(bare).empty and len(scaling_report.effects_table(bare)) == 2
    text = scaling_report.left_out_sentence(bare)
    assert text == "Left out: small, large (not enough heads of neither kind for a control of the same layers)."


def test_a_trend_goes_over_sizes_and_says_when_it_has_no_power():
    numbers, _ = page(["a", "b"], [0.1, 0.2])
    told = ["trend of the difference with size", "p"]
    assert scaling_report.main_effects_table(numbers)[told].to_numpy().tolist() == [["", ""]]
    numbers, _ = page(["a", "b", "c", "d"], [0.1, 0.2, 0.3, 0.4])
    assert scaling_report.main_effects_table(numbers)[told].to_numpy().tolist() == [["+1.00", "0.083 (at least 0.083)"]]
    numbers, _ = page(["a", "b", "c", "d", "e"], [0.1, 0.2, 0.3, 0.4, 0.5])
    assert scaling_report.main_effects_table(numbers)["p"].item() == "0.017 (at least 0.017)"


@pytest.mark.parametrize(("ours", "theirs", "expected"), [
    ([[1, 1], [0, 0]], [[1, 0], [0, 0]], 1.0),
    ([[1, 1], [0, 0]], [[0, 0], [1, 1]], 0.0),
    ([[1, 1], [0, 0]], [[1, 0], [1, 0]], 0.5),
])
def test_overlap_of_layers_compares_shares_of_layers(ours, theirs, expected):
    assert scaling.layer_overlap(np.array(ours, dtype=bool), np.array(theirs, dtype=bool)) == expected


def test_effects_by_size_take_each_models_nearest_share_of_the_one_intervention():
    shared = {"step": 1, "metric": "first_token_accuracy", "ranking": "fv", "control": "none", "low": 0.0, "high": 1.0}
    effects = pd.DataFrame([
        shared | {"model": model, "replacement": replacement, "positions": positions, "fraction": fraction,
                  "excluded": excluded, "value": value}
        for model, replacement, positions, fraction, excluded, value in [
            ("a", "mean", "all", 0.1, "", 1.0), ("a", "mean", "all", 0.3, "", 2.0), ("a", "zero", "all", 0.1, "", 3.0),
            ("a", "mean", "last", 0.1, "", 4.0), ("a", "mean", "all", 0.1, "top 0.1 induction", 5.0),
            ("b", "mean", "all", 0.2, "", 6.0)]]
        + [shared | {"model": "a", "metric": "token_loss_difference", "replacement": "mean", "positions": "all",
                     "fraction": 0.12, "excluded": "", "value": 7.0}])  # of a protocol that measures the loss alone
    sizes = pd.DataFrame({"model": ["b", "a"], "parameters": [5, 10]})
    found = scaling.effects_by_size(effects, sizes, fraction=0.12)
    assert found["value"].tolist() == [6.0, 1.0, 5.0] and found["excluded"].tolist() == [False, False, True]


def test_overlap_is_measured_at_every_share_against_random_sets_of_the_layers():
    sizes = pd.DataFrame({"model": ["m"], "parameters": [1]})
    table = scaling.overlap_table(score_rows([0, 1], [1, 2]), sizes, fractions=[0.05, 0.1])
    assert table["value"].tolist() == [0.0, 0.5] and table["expected"].tolist() == [0.1, 0.2]
    # two of ten against two of ten: at least one shared with probability 1 - C(8,2)/C(10,2)
    assert table["p_value"].iloc[1] == pytest.approx(2 * (1 - 28 / 45))
    assert table["smallest_p"].iloc[1] == pytest.approx(2 / 45)


def test_labels_of_sizes_too_near_to_each_other_are_on_lines_of_their_own():
    ax = plt.subplots()[1]
    scaling_figures.size_axis(ax, pd.Series([1310.3e6, 100.3e6, 106.2e6, 357.9e6, 100.3e6]))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["100.3M", "\n106.2M", "357.9M", "1,310.3M"]
    scaling_figures.size_axis(ax, pd.Series([7e3]))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["7k"]
