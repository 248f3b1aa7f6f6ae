"""The ledger's rules, its data file, and statistics that are nowhere else."""

import numpy as np
import pandas as pd
import pytest
import yaml

from icl_lib import claim_statistics
from icl_lib.claim_statistics import Estimate
from icl_lib.claims import ABSENT, FAILS, HOLDS, OPEN, counts_sentence, overall, read_claims, verdict
from icl_lib.suite_tables import SuiteTables
from icl_lib.tables import provenance, write_table
from tests.project import ROOT

NAN = float("nan")


@pytest.mark.parametrize(
    ("rule", "value", "low", "high", "p_value", "expected"),
    [
        ({"above": 0}, 1, 0.5, 2, NAN, HOLDS),
        ({"above": 0}, 1, -0.5, 2, NAN, OPEN),
        ({"above": 0}, -1, -2, -0.5, NAN, FAILS),
        ({"above": 0}, 0, 0, 0, NAN, FAILS),
        ({"at_least": 0}, 1, 0, 2, NAN, HOLDS),
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


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [([HOLDS, HOLDS, FAILS], HOLDS), ([HOLDS, FAILS], OPEN), ([FAILS, ABSENT], FAILS), ([ABSENT], ABSENT),
     ([OPEN, OPEN, HOLDS], OPEN)],
)
def test_over_models_more_than_half_of_the_measured_ones_decide(verdicts, expected):
    rows = pd.DataFrame({"claim": "x", "verdict": verdicts})
    assert overall(rows) == expected
    assert counts_sentence(rows).startswith("Of 1 claims 1 ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statistic": "efect"}, "claim 3a of claims.yaml: unknown statistic 'efect', expected none or one of effect"),
        ({"holds": {"abov": 0}}, "holds is {'abov': 0}, expected one rule of above, at_least, below, between"),
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
            rows += [(metric, ranking, "fv" if "matched" in ranking else "", task, 1 - lost)
                     for ranking, lost in by_ranking.items()]
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
    beyond, = claim_statistics.few_shot_loss_beyond_zero_shot(suite)
    assert beyond.value == pytest.approx(np.mean([0.7 - 0.0, 0.5, 0.1 - 0.3, 0.6]))
    assert beyond.low < beyond.value < beyond.high
