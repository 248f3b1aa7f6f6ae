"""The causal test: how its runs are planned, what is measured of them, how they are compared."""

import numpy as np
import pandas as pd
import pytest
import torch

from icl_lib.data.sources import read_tasks
from icl_lib.data.tasks import Task
from lab import causal
from lab.check import beyond
from lab.files import CAUSAL, CONFIRMATION, NO_GLOSSARIES, read_plan, read_rung
from lab.interventions import DESCRIPTIONS
from lab.oracle import accuracy_without_pairing

MIXTURE = read_rung("lab-40k")["mixture"]


def test_every_intervention_has_an_arm():
    assert {entry["intervention"] for entry in read_plan()["arms"].values()} == set(DESCRIPTIONS)


@pytest.mark.parametrize("folder", [CAUSAL, CONFIRMATION, NO_GLOSSARIES], ids=lambda folder: folder.name)
def test_every_tested_arm_has_a_sham_of_its_cost(folder):
    plan = read_plan(folder)
    for arm, entry in plan["arms"].items():
        assert entry.get("sham", False) == arm.startswith("sham_")
        if "control" in entry:
            control = plan["arms"][entry["control"]]
            assert control["sham"] and control["intervention"] == entry["intervention"]
            assert entry["strengths"][0] in control["strengths"] and entry.get("change") == control.get("change")
    runs = causal.planned(plan)
    assert len(set(runs)) == len(runs) and {run.seed for run in runs} == set(plan["seeds"]) and len(plan["seeds"]) >= 5


def test_the_confirmation_asks_on_seeds_that_the_plan_has_not():
    plan, confirmation = read_plan(), read_plan(CONFIRMATION)
    assert not set(plan["seeds"]) & set(confirmation["seeds"])
    for arm, entry in confirmation["arms"].items():
        assert {**plan["arms"][arm], "strengths": [1]} == entry


def test_the_plan_without_glossaries_asks_as_the_confirmation_on_new_seeds():
    plan, confirmation = read_plan(NO_GLOSSARIES), read_plan(CONFIRMATION)
    assert not set(plan["seeds"]) & {*read_plan()["seeds"], *confirmation["seeds"]}
    assert (plan["rules"], plan["measures"]) == (confirmation["rules"], confirmation["measures"])
    for run in causal.planned(plan):
        config = causal.configuration(run, plan, NO_GLOSSARIES)
        assert "glossary" not in config["mixture"] and config["steps"] == 4096
        assert config["mixture"] == {kind: rows for kind, rows in MIXTURE.items() if kind != "glossary"}


def test_a_folder_without_a_plan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="plan.yaml"):
        read_plan(tmp_path)


def test_the_gain_on_repeats_is_that_of_the_copy_less_its_first_token():
    losses = torch.tensor([[4.0, 4.0, 4.0, 9.0, 1.0, 1.0]])  # BOS and three tokens twice
    assert causal.repeat_gain(losses) == pytest.approx(3.0)


def test_reordered_copies_hold_the_same_tokens_in_another_order():
    tokens = torch.tensor([[0, *range(5, 25), *range(5, 25)]] * 3)
    found = causal.reordered_copies(tokens, seed=0)
    assert torch.equal(found[:, :21], tokens[:, :21])
    assert torch.equal(found[:, 21:].sort(1).values, tokens[:, 21:])
    assert not torch.equal(found[:, 21:], tokens[:, 21:]) and not torch.equal(found[0], found[1])


def test_a_repetition_is_compared_at_its_last_step():
    table = pd.DataFrame({"step": [1, 2], "accuracy": [0.1, 0.9], "fv_score": [0.0, 0.08]})
    assert beyond({"accuracy": 0.1}, table, table.assign(accuracy=[0.9, 0.85])) == []
    line, = beyond({"accuracy": 0.1, "fv_score": 0.01}, table, table.assign(accuracy=[0.1, 0.7]))
    assert "accuracy" in line and "0.900" in line and "0.700" in line


def test_rows_are_put_into_a_table_once(tmp_path):
    rows = pd.DataFrame({"arm": "none", "strength": 1.0, "seed": [1, 0], "step": 5, "accuracy": [0.5, 0.25]})
    causal.put(tmp_path / "none.csv", rows, causal.KEY)
    causal.put(tmp_path / "none.csv", rows.assign(accuracy=0.75).iloc[:1], causal.KEY)
    found = pd.read_csv(tmp_path / "none.csv")
    assert found["seed"].tolist() == [0, 1] and found["accuracy"].tolist() == [0.25, 0.75]
    assert [path.name for path in tmp_path.iterdir()] == ["none.csv"]


def test_sets_of_labels_give_a_task_away_where_siblings_have_others():
    ring, names = list("abcd"), ["next", "previous", "double"]
    pairs = {"next": [(a, ring[(i + 1) % 4]) for i, a in enumerate(ring)],
             "previous": [(a, ring[i - 1]) for i, a in enumerate(ring)],
             "double": [(a, a + a) for a in ring]}
    tasks = {name: Task(name, "abstractive", "scoring", pairs[name], siblings=names) for name in names}

    def accuracy(name, shots):
        return accuracy_without_pairing(tasks[name], tasks, n_prompts=200, n_shots=shots, rng=np.random.default_rng(0))

    assert accuracy("double", 1) == 1  # its labels are its own
    assert accuracy("next", 3) == 1  # the label that is missing is the query's
    assert accuracy("next", 0) == pytest.approx(1 / 3)  # three different answers fit
    assert accuracy("next", 2) == pytest.approx(5 / 6, abs=0.05)  # opposite inputs, one pair of three: half is right


def test_retrieval_prompts_are_answered_by_what_stands_beside_the_query():
    for task in list(read_tasks().values())[:3]:
        own, others = dict(task.pairs), 0
        for prompt in causal.retrieval_prompts(task, n_prompts=20, n_shots=10, bos="<b>", seed=3):
            *shown, query = prompt.text.removeprefix("<b>").split("\n\n")
            pairs = dict(line.removeprefix("Q: ").split("\nA: ") for line in shown)
            asked = query.removeprefix("Q: ").removesuffix("\nA:")
            assert f" {pairs[asked]}" == prompt.answer
            others += own[asked] != pairs[asked]
        assert others > 10
