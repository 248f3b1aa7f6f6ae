"""What the ablation page says on planted tables: counts, no control, same sets, losses without power."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from icl_lib.ablation.effects import DIFFERENCE, at_fraction, corrected
from icl_lib.analysis.ablation_numbers import ablation_numbers, carries_loss, effect_name, find
from icl_lib.figures.ablation import ablation_curves, figure_four, robustness
from icl_lib.pages import ablation as report
from tests import ablation_page as page

FEW_SHOT, LOSS = "first_token_accuracy", "token_loss_difference"


def numbers_of(made, effects=None):
    return ablation_numbers(
        made.ablations, made.effects if effects is None else effects, made.scores, made.conditions, made.historic,
        fraction=0.1, exclude_fraction=0.1, seed=0)


@pytest.fixture(scope="module")
def plain():
    return page.made_up()


@pytest.fixture(scope="module")
def bare():
    """A model whose heads are nearly all induction heads: no control. Its token-loss difference is about 0."""
    return page.made_up(n_induction=30, nats=0.1)


def planted(fv, induction):
    """Effects of ten interventions beyond layer-matched heads: (value, low, high) of the two kinds, and their gap."""
    gap = (fv[0] - induction[0], -1.0, 1.0)
    rows = [{"metric": metric, "replacement": replacement, "positions": positions, "ranking": ranking, "excluded": "",
             "control": control, "fraction": 0.1, "n_heads": 4, "n_draws": 3, "value": value, "low": low, "high": high,
             "p_value": 0.01, "n_prompts": 20, "model": "m", "step": 1}
            for metric in (FEW_SHOT, LOSS) for replacement in "abcde" for positions in ("all", "last")
            for control in ("none", "random", "random_layer_matched")
            for ranking, (value, low, high) in (("fv", fv), ("induction", induction), (DIFFERENCE, gap))]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("fv", "induction", "of_fv", "of_induction"), [
    # the other kind's interval lies below 0: the heads themselves are beyond random all the same
    ((-0.2, -0.3, -0.1), (0.3, 0.2, 0.4), 0, 10), ((0.3, 0.2, 0.4), (-0.2, -0.3, -0.1), 10, 0),
    # the other kind's interval reaches above 0, their own does so from below: they are not beyond random
    ((0.2, -0.1, 0.5), (0.1, -0.2, 0.4), 0, 0),
])  # fmt: skip
def test_heads_are_beyond_random_by_their_own_interval(plain, fv, induction, of_fv, of_induction):
    numbers = numbers_of(plain, planted(fv, induction))
    table = report.order_table(numbers).set_index("drops most for")
    assert table.loc[["FV heads", "induction heads"], "beyond random"].tolist() == [of_fv, of_induction]
    assert table.loc["FV heads", "in the paper's order"] == 10 * (fv[0] > induction[0] > 0)
    assert (table["interventions"] == 10).all()


def test_without_a_control_the_page_says_so_and_gives_no_corrected_effect(bare):
    assert set(bare.effects["control"]) == {"none"} and corrected(bare.effects).empty
    numbers = numbers_of(bare)
    text = report.finding_sentence(numbers)
    neither = int(find(numbers, "heads of neither kind")["value"])
    assert neither < 4 and f"There is no valid control here: {neither} of 32 heads are of neither kind" in text
    assert "against no ablation" in text and "beyond random heads" not in text
    assert report.order_table(numbers).empty
    table = report.controls_table(numbers)
    assert (table["beyond random heads"] == "no valid control").all()
    assert (table["different draws of the same layers"] == 0).all()
    assert table["against no ablation"].str.match(r"[-+]\d").all() and (table["Holm's p"] == "-").all()
    assert (report.changes_table(numbers).iloc[:6, 1:] == "-").all(axis=None)
    plain, *_ = robustness(bare.effects, numbers)
    assert [bool(ax.texts) for ax in plain.axes[0]] == [False, True, True]
    plt.close("all")


def test_what_was_measured_and_the_same_set_for_both_kinds_are_said(plain):
    numbers = numbers_of(plain)
    assert "are the same heads" not in report.finding_sentence(numbers)
    told = f"{page.TASKS * page.PROMPTS} prompts of {page.TASKS} tasks and {page.DOCUMENTS} documents)"
    assert told in report.finding_sentence(numbers)
    same = numbers.assign(value=numbers["value"].where(numbers["name"] != "shared heads at the shown share", 1.0))
    assert "The plain sets of both kinds are the same heads" in report.finding_sentence(same)


def test_of_two_shares_equally_near_the_smaller_is_taken_alone(plain):
    at = plain.ablations["fraction"] == 0.1
    other = plain.ablations[at & (plain.ablations["positions"] == "last")]
    other = other.assign(value=other["value"].where(other["ranking"] != "fv", 0.0))
    both = pd.concat([plain.ablations.assign(fraction=plain.ablations["fraction"].replace(0.1, 0.0625)),
                      other.assign(fraction=0.1375)], ignore_index=True)
    name = effect_name(FEW_SHOT, DIFFERENCE, False, "mean", "last", "without")
    alone, of_two = (find(numbers_of(plain._replace(ablations=table)), name) for table in (
        plain.ablations, both))
    assert of_two["value"] == alone["value"] and alone["n"] == page.TASKS


def test_single_heads_come_before_the_lowest_and_these_by_their_number():
    rows = [{"name": f"{FEW_SHOT} lost, {of}, mean at {at}", "value": 0.1, "low": 0.0, "high": 0.2, "n": 9}
            for of, at in [("10 heads of fv_lowest", "all"), ("4 heads of fv_lowest", "last"),
                           ("1 heads of induction", "last"), ("1 heads of fv", "last")]]
    table = report.few_heads_table(pd.DataFrame(rows))
    assert table.index.tolist() == ["1 FV head, the top one", "1 induction head, the top one", "4 lowest FV scores",
                                    "10 lowest FV scores"]
    assert table["lost, all positions"].tolist() == ["-", "-", "-", "+0.100 (+0.000 to +0.200)"]


@pytest.mark.parametrize(("clean", "low", "least", "carries"), [
    (2.0, 1.5, 0.3, True),
    (0.3, -0.2, 0.1, False),  # nothing shown to be lost
    (0.3, 0.1, 0.4, False),  # losing all of it would not be told from losing nothing
    (-0.5, -1.0, 0.1, False), (2.0, np.nan, np.nan, False),  # one document has no error
])  # fmt: skip
def test_a_token_loss_that_cannot_show_a_loss_does_not_carry_the_third_row(clean, low, least, carries):
    rows = [{"name": f"{LOSS}_points, no ablation", "value": clean, "low": low, "high": clean + 1, "n": 20},
            {"name": "least change told, paper", "value": least, "low": np.nan, "high": np.nan, "n": 20}]
    numbers = pd.DataFrame(rows)
    assert carries_loss(numbers, "paper") is carries and carries_loss(numbers, "single") is None
    row, = report.protocols_table(numbers, {}).itertuples(index=False)
    assert row[-1] == ("drawn" if carries else "not drawn") and row[1] == "20"


def test_a_loss_that_cannot_carry_its_row_is_not_drawn(plain, bare):
    for made, drawn in ((plain, True), (bare, False)):
        numbers, protocols = numbers_of(made), ["paper", "released"]
        tasks = pd.DataFrame({"task": [f"task {i}" for i in range(page.TASKS)], "floor": 0.1})
        assert {carries_loss(numbers, name) for name in (*protocols, "single")} == {drawn}
        options = {"exclude_fraction": 0.1, "seed": 0}
        figure, alone = (figure_four(made.ablations, numbers, tasks, names, **options) for names in (protocols, []))
        titles = ("Paper's text:", "Released code:", "One intervention:")  # of the columns, in their order
        assert [words in figure.caption for words in titles] == [True] * 3 and figure.axes.shape[1] == 3
        assert [words in alone.caption for words in titles] == [False, False, True] and alone.axes.shape[1] == 1
        axes = figure.axes
        assert all(bool(ax.lines) is drawn and bool(ax.texts) is not drawn for ax in axes[2])
        assert all(len(ax.lines) > 3 for ax in axes[:2].ravel())
        curves = ablation_curves(made.ablations, "all", n_shots=4, loss_window=2, seed=0).axes
        assert [ax.get_title(loc="right") != "" for ax in curves[:, 0]] == [False, not drawn]
        assert "10 shots" not in curves[0, 0].get_ylabel()
        plt.close("all")


def test_the_figure_has_each_effect_under_its_control(plain):
    rows = at_fraction(plain.effects, 0.1)
    for excluded, figure in zip((False, True), robustness(plain.effects, numbers_of(plain)), strict=True):
        for line, metric in zip(figure.axes, (FEW_SHOT, LOSS), strict=True):
            for ax, control in zip(line, ("none", "random", "random_layer_matched"), strict=True):
                own = rows[(rows["metric"] == metric) & (rows["control"] == control)
                           & ((rows["excluded"] != "") == excluded) & rows["ranking"].isin(("fv", "induction"))]
                points = [line.get_xdata()[0] for container in ax.containers for line in container.lines[:1]]
                assert sorted(points) == pytest.approx(sorted(own["value"])) and len(points) == 8
        plt.close("all")


def test_every_effect_has_one_interval_on_the_page(plain):
    """An effect that the sentence prints is the same number in the table of controls, and in that of effects."""
    numbers = numbers_of(plain)
    row = corrected(plain.effects).query(
        "metric == @FEW_SHOT and ranking == 'fv' and excluded == '' and fraction == 0.1 and replacement == 'mean' "
        "and positions == 'all'").iloc[0]
    printed = f"{row['value']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
    assert printed.replace("+", "") in report.finding_sentence(numbers)
    assert printed in report.controls_table(numbers).to_string()
