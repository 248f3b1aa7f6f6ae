"""Every number that the ablation page prints, recomputed from values per prompt in plain pandas, numpy and scipy."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from IPython.display import HTML
from scipy import stats

from icl_lib.tables import read_table, run_path
from tests import ablation_page as page
from tests.audit import check, rows_of, run_page, texts
from tests.audit_effects import (
    CONTROLS,
    EFFECTS,
    FEW_SHOT,
    KINDS,
    LARGEST,
    LOSS,
    SHARE,
    lost,
    name,
    plain_interval,
    recomputed,
    tasks_of,
    values_of,
)

HOLM = "Holm's p"


@pytest.fixture(scope="module")
def made():
    return page.made_up()


@pytest.fixture(scope="module")
def shown(made, tmp_path_factory):
    """What the page shows, and the table of numbers that it wrote."""
    folder = tmp_path_factory.mktemp("results")
    displayed, _ = run_page("ablation", **page.write_page(folder, made))
    path = run_path(folder, "statistics", page.MODEL, page.STEP, notebook="ablation")
    return displayed, read_table(path, schema_name="statistics").set_index("name")


def test_a_page_of_all_positions_alone_has_no_figure_of_the_last(tmp_path, monkeypatch):
    changed = {**page.GIVEN, "positions": ["all"], "protocols": []}
    monkeypatch.setattr(page, "GIVEN", changed)
    monkeypatch.setattr(page, "MADE_BY", page.MADE_BY | {"parameters": changed})
    displayed, variables = run_page("ablation", **page.write_page(tmp_path, page.made_up()))
    assert set(variables["ablations"]["positions"]) == {"none", "all"}
    assert not [figure for figure in displayed if "last position only" in getattr(figure, "caption", "")]


@pytest.fixture(scope="module")
def values(made):
    return recomputed(made)


def test_the_table_holds_what_the_values_say_and_nothing_else(shown, values):
    numbers = shown[1]
    assert set(numbers.index) == set(values)
    for what, value in values.items():
        assert numbers.loc[what, "value"] == pytest.approx(value, abs=1e-9), what


def test_effects_are_those_of_the_table_effects(made, shown):
    numbers = shown[1]
    rows = made.effects[(made.effects["fraction"] == SHARE) & (made.effects["ranking"] != "fv_lowest")]
    for row in rows.itertuples():
        how = (row.excluded != "", row.replacement, row.positions, row.control)
        own = numbers.loc[name(row.metric, row.ranking, *how)]
        assert (own["low"], own["high"], own["p_value"], own["n"]) == (row.low, row.high, row.p_value, row.n_prompts)
    assert len(rows) == len(EFFECTS) * 3


@pytest.mark.parametrize("metric", [FEW_SHOT, LOSS])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("control", CONTROLS)
def test_intervals_and_p_values_are_those_of_an_independent_computation(made, shown, metric, kind, control):
    row = shown[1].loc[name(metric, kind, False, "mean", "all", control)]
    draws = lost(made, metric, kind, False, "mean", "all", control)
    assert tuple(row[["low", "high", "p_value"]]) == pytest.approx(plain_interval(draws, tasks_of(made, metric)))


@pytest.mark.parametrize("metric", [FEW_SHOT, "zero_shot_accuracy"])
def test_the_clean_models_interval_is_an_independent_bootstraps_over_tasks(made, shown, metric):
    clean = values_of(made, metric, "mean", "all").xs("none", level="ranking").iloc[0].groupby(level="task").mean()
    row = shown[1].loc[f"{metric}, no ablation"]
    half = stats.t.ppf(0.975, len(clean) - 1) * clean.std(ddof=1) / len(clean) ** 0.5
    assert row["high"] - row["low"] == pytest.approx(2 * half, rel=0.25) and row["n"] == page.TASKS


@pytest.mark.parametrize("metric", ["generated_f1", FEW_SHOT])
def test_gaps_without_random_heads_have_an_independent_bootstraps_interval(made, shown, metric):
    m = next(m for m in made.measured if (m.metric, m.replacement, m.positions) == (metric, "mean", "last"))
    share = 0.09 if metric == "generated_f1" else SHARE
    one = {c.ranking: m.values[i] for i, c in enumerate(m.conditions) if c.fraction == share and not c.excluded}
    gap = pd.Series(one["induction"] - one["fv"]).groupby(m.tasks).mean()
    row = shown[1].loc[name(metric, "fv_minus_induction", False, "mean", "last", "without")]
    half = stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / len(gap) ** 0.5
    assert row["low"] == pytest.approx(gap.mean() - half, abs=half / 4)
    assert row["high"] == pytest.approx(gap.mean() + half, abs=half / 4)


@pytest.mark.parametrize("metric", [LOSS, f"{LOSS}_points"])
def test_the_clean_token_loss_has_its_standard_error(made, shown, metric):
    clean = values_of(made, metric, "mean", "all").xs("none", level="ranking").iloc[0]
    row = shown[1].loc[f"{metric}, no ablation"]
    half = 1.96 * clean.std(ddof=1) / len(clean) ** 0.5
    assert (row["high"] - row["value"], row["value"] - row["low"]) == pytest.approx((half, half))


def sentences(shown):
    return [text.data for text in shown[0] if type(text).__name__ == "Markdown"]


def frames(shown):
    return [table for table in shown[0] if isinstance(table, pd.DataFrame)]


def interval(shown, what):
    return [shown[1].loc[what, end] for end in ("value", "low", "high")]


def test_the_sentences_print_these_numbers(shown, values):
    finding, = sentences(shown)
    expected = [*interval(shown, f"{FEW_SHOT}, no ablation"), values["heads ablated"], SHARE]
    for metric, kind in itertools.product((FEW_SHOT, LOSS), KINDS):
        expected += interval(shown, name(metric, kind, False, "mean", "all", CONTROLS[2]))
    check(finding, [*expected, 95, page.TASKS * page.PROMPTS, page.TASKS, page.DOCUMENTS])


def test_the_tables_without_demonstrations_and_of_what_is_left_print_these_numbers(shown, values):
    *_, without = frames(shown)
    folded, = (html for html in texts(shown[0], HTML) if "In numbers" in html)
    _, *left = rows_of(folded)
    n_heads = np.ceil(np.array([SHARE, LARGEST]) * page.LAYERS * page.HEADS)
    wanted = [[*interval(shown, f"{metric}, no ablation"), page.TASKS] for metric in (FEW_SHOT, "zero_shot_accuracy")]
    wanted += [[values[f"zero_shot_accuracy, {kind} with exclusion, mean at all"], page.TASKS] for kind in KINDS]
    wanted += [[LARGEST, 1], [SHARE, 1], [values["shared heads at the smallest share"], n_heads[0]], [LARGEST, 1],
               [values["shared heads at the largest share"], n_heads[1]],
               *([0.5, values[f"percentile in {score} after {kind}"], 1] for score, kind in (KINDS, KINDS[::-1]))]
    rows = [*without.iterrows(), *((words, row) for words, *row in left)]
    for (words, row), numbers in zip(rows, wanted, strict=True):
        check(f"{words} {' '.join(row)}", numbers)


def test_the_tables_of_interventions_and_protocols_print_these_numbers(shown, values):
    order, _, protocols, *_ = frames(shown)
    rows = order.reset_index().to_numpy()
    for row, ((metric, first), excluded) in zip(rows, itertools.product(
            ((FEW_SHOT, "fv"), (LOSS, "induction")), (False, True)), strict=True):
        assert row[1].startswith({"fv": "FV", "induction": "induction"}[first]) and ("exclusion" in row[1]) == excluded
        assert row[2:].tolist() == [*(values[
            f"interventions {what}, {metric}, {first}{' with exclusion' * excluded}"]
            for what in ("in order", "beyond random", "told apart")), 4]
    for row, (protocol, metric) in zip(protocols.to_dict("records"), (
            ("paper", f"{LOSS}_points"), ("released", f"{LOSS}_points"), ("single", LOSS)), strict=True):
        counted = {values[what] for what in values if what.startswith(f"heads ablated, {protocol},")}
        if protocol == "single":
            assert row["heads ablated"] == row["excluded"] == row["sets changed by exclusion"] == "-"
        else:
            check(row["heads ablated"], sorted(counted))
            check(f"{row['excluded']}; {row['sets changed by exclusion']}", [
                0.02, values[f"sets changed by exclusion, {protocol}"], 14])
        check(row["token-loss difference (nats)"], interval(shown, f"{metric}, no ablation"))
        check(f"{row['documents']}; {row['least change told (nats)']}", [
            page.DOCUMENTS, values[f"least change told, {protocol}"]])


@pytest.mark.parametrize("positions", ["all", "last"])
def test_the_tables_of_controls_print_these_numbers(shown, values, positions):
    at = {"all": "all positions", "last": "the last position"}[positions]
    html, = (thing.data for thing in shown[0] if f"Lost at {at}" in str(getattr(thing, "data", "")))
    head, _, *rows = rows_of(html)
    for cells, (metric, excluded, kind) in zip(rows, itertools.product(
            (FEW_SHOT, LOSS), (False, True), KINDS), strict=True):
        row, words = dict(zip(head[::-1], cells[::-1], strict=False)), kind + " with exclusion" * excluded
        left = values.get(f"{metric}, {words}, mean at {positions}")
        assert left is not None or (metric, row["left"]) == (LOSS, "-")
        what = [name(metric, kind, excluded, "mean", positions, control) for control in CONTROLS]
        heads = ("against no ablation", "beyond random heads", "beyond random heads of the same layers")
        for told, effect in zip(heads, what, strict=True):
            check(row[told], interval(shown, effect))
        check(f"{row['left']} {row[HOLM]}", [*([] if left is None else [left]),
                                             max(values[f"{what[2]}, Holm's p"], 0.001)])
        check(f"{row['different draws of the same layers']} {row['mean distance of their layers']}", [
            values[f"draws, layer-matched, {words}"], values[f"layer distance, {words}"]])


def test_the_tables_of_single_heads_and_departures_print_these_numbers(shown, values):
    _, few, _, changes, *_ = frames(shown)
    assert few.index.str.endswith("lowest FV scores").any()
    for what, row in few.iterrows():
        n, words, *_ = what.split()
        ranking = {"FV": "fv", "induction": "induction", "lowest": "fv_lowest"}[words]
        for positions, text in (("all", row["lost, all positions"]), ("last", row["lost, last position"])):
            check(text, interval(shown, f"{FEW_SHOT} lost, {n} heads of {ranking}, mean at {positions}"))
    gap = "fv_minus_induction"
    expected = {
        "": [(False, "mean", "all")], "A2": [(False, "mean", "last")], "A18": [(False, "zero", "all")],
        "A14": [(True, "mean", "all")]}
    for place, rows in expected.items():
        for how in rows:
            for column, metric in (("few-shot accuracy", FEW_SHOT), ("token-loss difference (nats)", LOSS)):
                text = changes.loc[[place], column].iloc[0]
                check(text, interval(shown, name(metric, gap, *how, CONTROLS[2])))
    at_last = (False, "mean", "last", "without")
    check(changes.loc["A4", "few-shot accuracy"], interval(shown, name("generated_f1", gap, *at_last)))
    check(changes["few-shot accuracy"].iloc[-1], interval(shown, name(FEW_SHOT, gap, *at_last)))
    assert changes.loc["T5", "few-shot accuracy"] == "-" and changes["few-shot accuracy"].str.match(r"-$|[-+]\d").all()


def test_captions_print_the_numbers_of_the_run(shown):
    captions = " ".join(figure.caption for figure in shown[0] if hasattr(figure, "caption"))
    assert f"{page.GIVEN['n_shots']} demonstrations" in captions and "10 shots" not in captions
    assert f"Mean loss over {page.GIVEN['n_curve_documents']} documents" in captions
    assert not re.search(r"\bnan\b", captions + " ".join(sentences(shown)))
