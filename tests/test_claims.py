"""The ledger's rules, its data file, and statistics that are nowhere else."""

import re

import numpy as np
import pandas as pd
import pytest
import yaml

from icl_lib.analysis import claim_statistics
from icl_lib.analysis.claim_estimates import Estimate
from icl_lib.analysis.claims import (
    ABSENT,
    FAILS,
    HOLDS,
    OPEN,
    POWERLESS,
    counts_sentence,
    ledger,
    of_largest_model,
    overall,
    read_claims,
    tally_words,
    verdict,
    votes,
)
from icl_lib.analysis.suite_tables import SuiteTables
from icl_lib.pages.claims import answer_sentence, claims_table, ledger_table
from icl_lib.provenance import provenance
from icl_lib.tables import read_table, write_table
from tests.planted_tables import MADE_BY, PlantedTables, layer, with_heads
from tests.project import ROOT

NAN = float("nan")


@pytest.mark.parametrize(
    ("rule", "value", "low", "high", "p_value", "expected"),
    [
        ({"above": 0}, 1, 0.5, 2, NAN, HOLDS),
        ({"above": 0}, 1, -0.5, 2, NAN, OPEN),
        ({"above": 0}, -1, -2, -0.5, NAN, FAILS),
        ({"above": 0}, 0, 0, 0, NAN, FAILS),
        ({"after": 0}, 1, 0, 2, NAN, HOLDS),
        ({"after": 0}, -1, -2, 0, NAN, FAILS),
        ({"after": 0}, 0, -1, 1, NAN, OPEN),
        ({"below": 0.05}, -0.3, -0.4, -0.2, NAN, HOLDS),  # less than random heads is no worse
        ({"below": 0.1}, 0.05, 0, 0.2, NAN, OPEN),
        ({"below": 0.1}, 0.2, 0.1, 0.3, NAN, FAILS),
        ({"between": [-0.05, 0.05]}, 0, -0.05, 0.05, NAN, HOLDS),
        ({"between": [-0.05, 0.05]}, 0.1, 0.06, 0.2, NAN, FAILS),
        ({"between": [-0.05, 0.05]}, 0.1, 0.04, 0.2, NAN, OPEN),
        ({"above": 0}, 1, NAN, NAN, 0.04, HOLDS),
        ({"above": 0}, 1, NAN, NAN, 0.06, OPEN),
        ({"below": 0}, 1, NAN, NAN, 0.04, FAILS),
        ({"above": 0}, NAN, NAN, NAN, NAN, ABSENT),
        ({}, NAN, NAN, NAN, NAN, ABSENT),
    ],
)
def test_rules(rule, value, low, high, p_value, expected):
    assert verdict(Estimate("m", value, low, high, p_value), rule) == expected
    if rule:  # whatever came out, without power nothing is decided
        assert verdict(Estimate("m", value, low, high, p_value, smallest_p=0.05), rule) == POWERLESS
        assert verdict(Estimate("m", value, low, high, p_value, smallest_p=0.049), rule) == expected


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [([HOLDS, HOLDS, FAILS], HOLDS), ([HOLDS, FAILS], OPEN), ([FAILS, ABSENT], FAILS), ([ABSENT], ABSENT),
     ([OPEN, OPEN, HOLDS], OPEN), ([HOLDS, POWERLESS, POWERLESS], HOLDS), ([POWERLESS, ABSENT], POWERLESS),
     ([HOLDS, HOLDS, FAILS, OPEN], OPEN)],
)
def test_over_sizes_more_than_half_of_those_with_power_decide(verdicts, expected):
    rows = pd.DataFrame({"claim": "x", "model": [f"m{i}" for i in range(len(verdicts))], "verdict": verdicts})
    assert overall(rows) == expected
    assert counts_sentence(rows).startswith("Of 1 claims 1 ")


def rows_of(**verdicts):
    names = {model.replace("_", "-"): said for model, said in verdicts.items()}
    return pd.DataFrame({"claim": "x", "model": list(names), "verdict": list(names.values())})


def test_seeds_of_one_size_vote_as_one():
    rows = rows_of(a=HOLDS, b=FAILS, b_seed1=FAILS, b_seed2=FAILS, c=HOLDS, c_seed1=POWERLESS, d=HOLDS, d_seed1=FAILS)
    assert votes(rows) == {"a": HOLDS, "b": FAILS, "c": OPEN, "d": OPEN}
    assert overall(rows) == OPEN
    assert tally_words(rows) == "1 for, 1 against, 2 open"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statistic": "efect"}, "claim 3a of claims.yaml: unknown statistic 'efect', expected none or one of effect"),
        ({"holds": {"abov": 0}}, "holds is {'abov': 0}, expected one rule of above, after, below, between"),
        ({"holds": {"above": 0, "below": 1}}, "expected one rule"),
        ({"statistic": "none"}, "expected one rule"),
        ({"colour": "red"}, "claim 3a of claims.yaml: got an unexpected keyword argument 'colour'"),
        ({"id": "4a"}, "claim 4a is listed twice"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(tmp_path, changes, message):
    entry = {"id": "3a", "section": "3", "claim": "c", "paper": "p", "figure": "2", "statistic": "depth_difference",
             "test": "t", "page": "scoring", "holds": {"above": 0}}
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"claims": [entry | {"id": "4a"}, entry | changes]}))
    with pytest.raises(ValueError, match="claims.yaml") as caught:
        read_claims(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_every_claim_of_the_dossier_has_a_row_and_a_page():
    ids = {part.split(" ")[0] for claim in read_claims() for part in claim.id.split(", ")}
    sections = {f"3{c}" for c in "abcde"} | {f"4{c}" for c in "abcdefgh"} | {f"5{c}" for c in "abcdefgh"}
    assert ids >= sections | {"H1", "H2", "H3", "H5", "C1", "C2", "A1"}
    assert all((ROOT / "notebooks" / f"{claim.page}.ipynb").is_file() for claim in read_claims())


def ablations(losses):
    """A table of one model with 10 % of heads ablated; `losses`: per task the accuracy lost by kind and metric."""
    made_by = provenance(suite="s", seed=0, dtype="", device="", bos="", parameters={})
    rows = []
    for task, by_metric in losses.items():
        for metric, by_ranking in by_metric.items():
            rows.append((metric, "none", "", task, 1.0))
            rows += [(metric, ranking, matched, task, 1 - lost) for ranking, lost in by_ranking.items()
                     for matched in (("fv", "induction") if "matched" in ranking else ("",))]
    table = pd.DataFrame(rows, columns=["metric", "ranking", "matched", "task", "value"])
    edited = table["ranking"] != "none"
    table = table.assign(
        model="m", step=1, replacement=np.where(edited, "mean", "none"), positions=np.where(edited, "all", "none"),
        excluded="", fraction=np.where(edited, 0.1, 0.0), n_heads=edited.astype(int), draw=0, standard_error=0.0,
        n_prompts=10)
    return table, made_by


def test_statistics_over_tasks_are_those_of_their_words(tmp_path):
    lost = {
        "a": {"first_token_accuracy": {"fv": 0.8, "induction": 0.1, "random_layer_matched": 0.1},
              "zero_shot_accuracy": {"fv": 0.1, "random_layer_matched": 0.1}},
        "b": {"first_token_accuracy": {"fv": 0.5, "induction": 0.5, "random_layer_matched": 0.0},
              "zero_shot_accuracy": {"fv": 0.0, "random_layer_matched": 0.0}},
        "c": {"first_token_accuracy": {"fv": 0.2, "induction": 0.4, "random_layer_matched": 0.1},
              "zero_shot_accuracy": {"fv": 0.3, "random_layer_matched": 0.0}},
        "d": {"first_token_accuracy": {"fv": 0.6, "induction": 0.4, "random_layer_matched": 0.0},
              "zero_shot_accuracy": {"fv": 0.0, "random_layer_matched": 0.0}},
    }
    table, made_by = ablations(lost)
    loss = table[table["ranking"].isin(("none", "fv"))].drop_duplicates("ranking")
    loss = loss.assign(metric="token_loss_difference", task="documents")
    loss.loc[loss["ranking"] == "fv", "fraction"] = 0.09  # nearer to the share asked for, but without accuracies
    table = pd.concat([table, loss])
    write_table(table, tmp_path / "ablations" / "m" / "step1.parquet", schema_name="ablations", provenance=made_by)
    suite = SuiteTables(tmp_path, {"m": [1]}, {"m": [1]}, {}, ablated_fraction=0.09)
    more, = claim_statistics.tasks_with_larger_fv_loss(suite)
    assert more.value == pytest.approx((1 + 0.5 + 0 + 1) / 4) and more.n == 4
    assert more.smallest_p == pytest.approx(2 / 8) and not more.decidable  # a tie says nothing
    assert more.why.startswith("4 tasks, of which 3 differ: ")
    beyond, = claim_statistics.few_shot_loss_beyond_zero_shot(suite)
    assert beyond.value == pytest.approx(np.mean([0.7 - 0.0, 0.5, 0.1 - 0.3, 0.6]))  # of 1 with and without
    assert beyond.low < beyond.value < beyond.high


def test_losing_the_same_share_with_and_without_demonstrations_says_nothing_of_demonstrations(tmp_path):
    tables = PlantedTables(tmp_path)
    lost = np.linspace(0.3, 0.5, 8)
    few, zero = "first_token_accuracy", "zero_shot_accuracy"
    tables.ablations("m", {few: 0.8, zero: 0.2}, {
        (few, "fv"): lost.tolist(), (zero, "fv"): (lost / 4).tolist(),
        **{(metric, "random_layer_matched"): [0.0] * 8 for metric in (few, zero)}})
    found, = claim_statistics.few_shot_loss_beyond_zero_shot(tables.suite())
    assert found.value == pytest.approx(0) and verdict(found, {"above": 0}) != HOLDS


def test_a_vector_restores_nothing_where_random_heads_vectors_do_harm(tmp_path):
    tables = PlantedTables(tmp_path)
    with_fv, none = np.linspace(0.5, 0.7, 8), np.linspace(0.52, 0.72, 8)[::-1]
    tables.executions("m", {"fv": with_fv.tolist(), "none": none.tolist(), "random_layer_matched": [0.1] * 8})
    found, = claim_statistics.execution_gain(tables.suite())
    assert found.value == pytest.approx(-0.02) and verdict(found, {"above": 0}) != HOLDS


def effects_of(tables, **options):
    rows = [("first_token_accuracy", "fv_minus_induction", False, 0.3)]
    tables.scores("m", induction=with_heads(layer(1), 0.4), fv=with_heads(layer(2), 0.1))
    tables.effects("m", rows, **options)


def of_4a(tables):
    found, = claim_statistics.effect(tables.suite(), metric="first_token_accuracy", ranking="fv_minus_induction",
                                     excluded=False)
    return found


def test_effects_are_those_beyond_layer_matched_random_heads(tmp_path):
    tables = PlantedTables(tmp_path)
    effects_of(tables)
    found = of_4a(tables)
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.2, 0.4))  # not the 0.35 against other controls
    assert found.decidable


def test_nothing_can_be_said_of_a_model_without_control_without_answers_or_without_spread(tmp_path):
    plain, floor, same = (PlantedTables(tmp_path / name) for name in ("plain", "floor", "same"))
    plain.effects("m", [("first_token_accuracy", "fv_minus_induction", False, 0.3, ("none", "random"))])
    assert of_4a(plain).why == claim_statistics.NO_CONTROL and not of_4a(plain).decidable
    effects_of(floor)
    floor.ablations("m", {"first_token_accuracy": 0.04})
    assert "no more than one prompt in twenty" in of_4a(floor).why and not of_4a(floor).decidable
    effects_of(same, half=0.0)
    assert "do not differ" in of_4a(same).why and not of_4a(same).decidable
    alike = PlantedTables(tmp_path / "alike")
    effects_of(alike)
    alike.effects("m", [("first_token_accuracy", "fv_minus_induction", False, 0.0)], half=0.0)
    assert "are the same heads" in of_4a(alike).why and not of_4a(alike).decidable


def test_the_share_of_heads_is_not_moved_by_a_missing_control(tmp_path):
    tables = PlantedTables(tmp_path)
    tables.effects("m", [("first_token_accuracy", "fv", False, 0.3, ("none",))], fraction=0.1)
    at_fifth = PlantedTables(tmp_path / "more")
    at_fifth.effects("m", [("first_token_accuracy", "fv", False, 0.9)], fraction=0.2)
    path = "effects/m/step100.parquet"
    both = pd.concat([read_table(tmp_path / path), read_table(tmp_path / "more" / path)])
    write_table(both, tmp_path / path, schema_name="effects", provenance=MADE_BY)
    found, = claim_statistics.effect(tables.suite(), metric="first_token_accuracy", ranking="fv", excluded=False)
    assert found.why == claim_statistics.NO_CONTROL  # and not the 0.9 at a fifth


@pytest.mark.parametrize(("n_patterns", "decidable"), [(2, False), (3, True)])
def test_two_patterns_that_agree_decide_nothing(tmp_path, n_patterns, decidable):
    tables = PlantedTables(tmp_path)
    tables.patterns("m", 0.3, {"none": [0.5] * 4})
    path = tmp_path / "pattern_effects/m/step100.parquet"
    own = read_table(path)
    alone = [own.assign(task=f"pattern {i}") for i in range(n_patterns)]
    write_table(pd.concat([own, *alone]), path, schema_name="pattern_effects", provenance=MADE_BY)
    found, = claim_statistics.STATISTICS["pattern_effect"](tables.suite())
    assert found.value == pytest.approx(0.3) and found.decidable == decidable


def test_a_model_without_the_kinds_is_left_out(tmp_path):
    for name, options in {"none": {}, "weak": {"fv": 0.003}, "unread": {"fv": 0.1, "shuffled": 0.79}}.items():
        tables = PlantedTables(tmp_path / name)
        tables.scores("m", induction=with_heads(layer(1), 0.4), fv=with_heads(layer(2), options.get("fv", 0.001)),
                      null=-0.5)
        tables.accuracy("m", shuffled=options.get("shuffled", 0.3))
        assert tables.suite().kinds == {"m": {"induction"}}, name
        claim, = (claim for claim in read_claims() if claim.id == "3a")
        assert ledger(tables.suite(), (claim,))["verdict"].tolist() == [ABSENT]


def test_seeds_are_averaged_before_a_trend(tmp_path):
    tables = PlantedTables(tmp_path)
    sizes = {}
    for size in range(5):
        for seed, shift in ((0, 0.0), (1, 0.02), (2, -0.02)):
            name = f"m{size}" + (f"-seed{seed}" if seed else "")
            sizes[name] = 1000 * 2**size
            tables.scores(name, fv=with_heads(layer(2), 0.1 + 0.01 * size + shift))
    found, = claim_statistics.strength_trend(tables.suite(sizes), kind="fv")
    assert found.n == 5 and found.value == pytest.approx(1) and found.p_value == pytest.approx(2 / 120)


def test_a_kind_that_never_came_is_later_than_what_came(tmp_path):
    tables = PlantedTables(tmp_path)
    steps = [0, 10, 20, 40, 100]
    for size in range(5):  # the larger the later; in the largest it has not come by the end
        for step in steps:
            there = size < 4 and step >= steps[size + 1]
            tables.scores(f"m{size}", step, induction=with_heads(layer(1) if there else [], 0.4))
    found, = claim_statistics.STATISTICS["emergence_trend"](
        tables.suite({f"m{size}": 2**size for size in range(5)}), kind="induction")
    assert found.n == 5 and found.value == pytest.approx(1)


def test_the_page_says_what_is_missing_and_no_p_value_is_zero(tmp_path):
    claim, = (claim for claim in read_claims() if claim.id == "H1, 4a")
    tables = PlantedTables(tmp_path)
    tables.scores("m", induction=with_heads(layer(1), 0.4), fv=with_heads(layer(2), 0.1))
    tables.effects("m", [("first_token_accuracy", "fv_minus_induction", False, 0.3, ("none",))])
    found = ledger(tables.suite(), (claim,))
    html = ledger_table({"here": found}).data
    assert "no heads of neither kind left for a control" in html and "<summary>" not in html
    two = ledger_table({"here": pd.concat([found, found.assign(model="n")])}).data
    assert "<summary>2 no power<" in two and two.count("no heads of neither kind left for a control") == 2
    assert 'class="verdict cannot-be-decided-here"' in html and "p = 0)" not in html
    table = ledger_table({"real": found, "here": found.iloc[:0]}).data
    both = next(row for row in table.split("<tr>") if claim.id in row)
    assert both.index('data-head="real"') < both.index("cannot-be-decided-here") < both.index('data-head="here"')
    assert "not-measured-here" in both.split('data-head="here"')[1]


def test_of_the_seeds_of_a_size_one_is_shown_that_says_what_most_say():
    rows = pd.DataFrame([("b", FAILS, 1.0), ("b-seed1", HOLDS, 2.0), ("b-seed2", HOLDS, 3.0), ("c", POWERLESS, 4.0)],
                        columns=["model", "verdict", "value"])
    sizes = {"b": 1, "b-seed1": 1, "b-seed2": 1, "c": 2}
    assert of_largest_model(rows, sizes).model == "b-seed1"
    assert of_largest_model(rows[rows["verdict"] == POWERLESS], sizes).model == "c"
    assert of_largest_model(rows.assign(value=NAN), sizes) is None


def test_the_front_page_answers_by_the_largest_model_and_says_what_has_no_power():
    numbers = {"low": 0.1, "high": 0.3, "p_value": NAN, "n": 9, "smallest_p": NAN, "why": ""}
    rows = [("H1, 4a", "a", HOLDS, 0.25), ("H1, 4a", "b", FAILS, 0.2), ("H1, 4a", "c", HOLDS, 0.15),
            ("H1, 4a (last)", "a", HOLDS, 0.4), ("H1, 4a (last)", "b", POWERLESS, 0.5),
            ("H1, 4a (size)", "", POWERLESS, NAN), ("4d", "b", POWERLESS, NAN)]
    found = pd.DataFrame([{"claim": claim, "model": model, "verdict": said, "value": value, **numbers}
                          for claim, model, said, value in rows])
    sizes = {"a": 1, "b": 3, "c": 2}
    worlds = {"real models": found, "the lab": found[found["model"] == "b"]}
    text = answer_sentence(worlds, sizes)
    assert "**In real models it does (b, the largest, where it does not: 0.2 (0.1 to 0.3) of accuracy); in the " in text
    assert "in the lab it does not (b, the largest: 0.2" in text
    assert text.endswith("stays: **in real models it does; in the lab this cannot be decided.**")
    html = claims_table(worlds, sizes, {"real models": "/pretrained", "the lab": ""}).data
    assert re.findall(r"</span> <small>([^<]*)</small>", html)[:2] == ["2 for, 1 against", "1 against"]
    first, last, size, *rest = html.split("<tr>")[2:]
    assert 'class="verdict holds"' in first and 'class="verdict does-not-hold"' in first
    assert size.count('class="verdict cannot-be-decided-here"') == 1 and size.count("not-measured-here") == 1
    of_b = "b: {}0.2 (0.1 to 0.3) of accuracy</a>"
    assert '<a data-run="ablation/b" data-cell="ablation-10">' + of_b.format("does not hold, ") in first
    assert first.count(of_b.format("")) == 1, "in the lab its verdict is that of all"
    assert '<a data-run="ablation/a" data-cell="ablation-14">a: 0.4' in last, "the largest with power"
    seeds = pd.DataFrame([{"claim": "H1, 4a", "model": model, "verdict": said, "value": 0.2, **numbers}
                          for model, said in (("b", FAILS), ("b-seed1", HOLDS), ("b-seed2", HOLDS))])
    of_size = {"b": 3, "b-seed1": 3, "b-seed2": 3}
    assert "(b-seed1, the largest, one of 3 seeds: 0.2" in answer_sentence({"the lab": seeds}, of_size)
    cell = claims_table({"the lab": seeds}, of_size, {"the lab": ""}).data.split("<tr>")[2]
    assert "<small>b-seed1, one of 3 seeds: 0.2 (0.1 to 0.3) of accuracy</small>" in cell, "the page of b has another"
    loss = next(row for row in rest if "loss along a document" in row)
    assert loss.count('class="verdict cannot-be-decided-here"') == 2
    assert all(row.count('class="verdict not-measured-here"') == 2 for row in rest if row != loss)
