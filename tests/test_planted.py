"""A transformer with one previous-token, one induction and one FV head goes through the library to the known answer.

Two more have the one or the other. What every ablation must do follows from which of the three heads it takes away.
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from icl_lib import measurements
from icl_lib.ablation import effects as ablation_effects
from icl_lib.ablation import measure as grid
from icl_lib.ablation.conditions import ablation_conditions
from icl_lib.ablation.table import ablation_table
from icl_lib.ablation.table import zero_shot as zero_shot_rows
from icl_lib.analysis.claims import FAILS, HOLDS, POWERLESS, ledger
from icl_lib.analysis.suite_tables import SuiteTables
from icl_lib.injection import execution_table
from icl_lib.load import load_model
from icl_lib.provenance import provenance
from icl_lib.scores.function_vectors import fv_scores, permuted_mean_scores
from icl_lib.scores.induction import (
    duplicate_token_scores,
    induction_scores,
    previous_token_scores,
    repeated_random_tokens,
)
from icl_lib.tables import run_path, write_table
from tests import planted

WORKING = {"both": ("previous", "induction", "fv"), "fv": ("previous", "fv"), "induction": ("previous", "induction")}
ELSEWHERE = {"previous": (0, 1), "induction": (2, 2), "fv": (1, 3)}
PLACES = [("both", planted.HEADS), ("both", ELSEWHERE), ("fv", planted.HEADS), ("induction", planted.HEADS)]
N_SHOTS, N_PROMPTS, N_DRAWS, STEP = 6, 4, 2, -1
ONE_HEAD = 1 / (planted.N_LAYERS * planted.N_HEADS)
# By how many nats the 500th token is cheaper than the 50th.
COPIED = math.log(len(planted.TOKENS) - 1 + math.exp(planted.UNSURE))


# The first of five documents has no new token at the 50th place.
BY_DOCUMENT = COPIED * np.array([0, 1, 1, 1, 1])


def scored(model):
    """Attention scores' tokens, FV scores and their null."""
    prompts = of_split(model, "scoring")
    fv = fv_scores(model, prompts)
    null = permuted_mean_scores(model, prompts, fv.mean_z, n_draws=N_DRAWS, seed=0)
    return repeated_random_tokens(model, n_sequences=20, length=15, seed=0), fv, null


def of_split(model, split, n_shots=N_SHOTS):
    tasks = measurements.in_split(planted.tasks(), split)
    return measurements.prompts_of(model, tasks, n_prompts=N_PROMPTS, n_shots=n_shots, seed=0)


def write_tables(model, name):
    """Every table of the model that the ledger reads; what was measured and under which conditions."""
    tasks, named, documents = planted.tasks(), {"name": name, "step": STEP}, planted.documents(5)
    scores = measurements.score_table(model, *scored(model), **named)
    accuracy = pd.concat([
        measurements.accuracy_table(model, tasks, shots=[0, N_SHOTS], n_prompts=N_PROMPTS, seed=0, **named),
        measurements.token_loss_rows(model, documents, window=0, **named)])
    conditions = ablation_conditions(
        scores, fractions=[ONE_HEAD, 2 * ONE_HEAD], n_draws=N_DRAWS, exclude_fraction=ONE_HEAD, seed=0)
    scoring, evaluation = of_split(model, "scoring"), of_split(model, "evaluation")

    def with_heads(replacement, positions, prompts, texts):
        return grid.measure(
            model, conditions, prompts, scoring, texts, replacement=replacement, positions=positions, seed=0)

    measured = [*with_heads("mean", "all", evaluation, documents), *with_heads("mean", "last", evaluation, documents),
                *with_heads("task_mean", "all", evaluation, None)]
    zero_shot = zero_shot_rows(with_heads("mean", "all", of_split(model, "evaluation", n_shots=0), None))
    tables = {
        "scores": scores, "accuracy": accuracy, "ablations": ablation_table(measured + zero_shot, **named),
        "effects": ablation_effects.effects_table(measured, **named),
        "executions": execution_table(
            model, measurements.in_split(tasks, "evaluation"), scores, fraction=ONE_HEAD,
            layers=range(planted.N_LAYERS), n_prompts=N_PROMPTS, n_shots=N_SHOTS, n_draws=N_DRAWS, seed=0, **named),
    }
    made_by = provenance(suite="planted", seed=0, dtype="float32", device="cpu", bos=planted.BOS, parameters={})
    for kind, table in tables.items():
        write_table(table, run_path("results", kind, name, STEP), schema_name=kind, provenance=made_by)
    answerable = np.array([not planted.is_exception(task, p) for task, of in evaluation.items() for p in of.clean])
    return tables | {"measured": measured, "zero_shot": zero_shot, "answerable": answerable}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Tables of the three models, and the ledger over them; a model's name is its folder's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("planted"))
        tables = {}
        for name, working in WORKING.items():
            planted.write_model(name, working=working)
            tables[name] = write_tables(load_model(name, device="cpu"), name)
        steps = dict.fromkeys(WORKING, [STEP])
        yield tables, ledger(SuiteTables(
            Path("results"), steps, steps, steps, top_fraction=ONE_HEAD, overlap_fraction=ONE_HEAD,
            ablated_fraction=ONE_HEAD))


@pytest.mark.parametrize(("name", "heads"), PLACES)
def test_scores_find_each_head_where_it_is_and_no_other(tmp_path, name, heads):
    planted.write_model(tmp_path, working=WORKING[name], heads=heads)
    model = load_model(tmp_path, device="cpu")
    tokens, fv, null = scored(model)
    found = {"previous": previous_token_scores(model, tokens), "fv": fv.scores,
             "induction": induction_scores(model, tokens, convention="prefix_matching")}
    # of several earlier copies the head attends to each alike, and one of them is a period back
    repeated = tokens[:, 16:-1, None] == tokens[:, None, :]
    earlier = torch.arange(tokens.shape[1]) < torch.arange(16, tokens.shape[1] - 1)[:, None]
    expected = {"previous": 1.0, "fv": 1.0, "induction": float((1 / (repeated & earlier).sum(2)).mean())}
    assert expected["induction"] > 0.8
    for kind, scores in found.items():
        there = np.zeros((planted.N_LAYERS, planted.N_HEADS), dtype=bool)
        there[heads[kind]] = kind in WORKING[name]
        assert scores[there].tolist() == pytest.approx([expected[kind]] * int(there.sum()), abs=2e-3), kind
        assert scores[~there].abs().max() < (0.1 if kind != "fv" else 1e-6), kind
    assert null.max() < 1e-6, "another task's vector never helps"
    assert duplicate_token_scores(model, tokens).max() < 0.1
    mass = induction_scores(model, tokens)
    assert 0.4 < mass[heads["induction"]] < 0.6 if "induction" in WORKING[name] else mass.max() < 0.1


@pytest.mark.parametrize("name", WORKING)
def test_unedited_models_do_what_their_heads_allow(suite, name):
    accuracy = suite[0][name]["accuracy"]
    rows = accuracy[accuracy["metric"] == "first_token_accuracy"].set_index(["n_shots", "labels", "split"])["value"]
    assert (rows[0, "clean"] == 0).all() and rows[N_SHOTS, "shuffled"].max() < 0.3
    assert (rows[N_SHOTS, "clean", "scoring"] == float(name != "induction")).all()
    right = suite[0][name]["answerable"].mean() * (name != "induction")
    assert rows[N_SHOTS, "clean", "evaluation"].mean() == pytest.approx(right) and right < 1
    loss = accuracy[accuracy["metric"] == "token_loss_difference"]["value"].item()
    assert loss == pytest.approx(0 if name == "fv" else BY_DOCUMENT.mean(), abs=1e-4)


def left(measurement, condition, working, answerable):
    """The metric of each prompt or document that is left: what is needed for it must work and not be taken away.

    A task's own mean holds the task, whatever the model could read, and what the previous-token head does happens
    before the last position.
    """
    gone = {kind for kind, place in planted.HEADS.items() if condition.heads[place] or kind not in working}
    if measurement.positions == "last":
        gone -= {"previous"} & set(working)
    if measurement.metric.startswith("token_loss"):
        return BY_DOCUMENT * (not gone & {"previous", "induction"})
    if measurement.replacement == "task_mean" and condition.heads[planted.HEADS["fv"]] and "fv" in working:
        gone = set()
    return answerable * (not gone & {"previous", "fv"})


@pytest.mark.parametrize("name", WORKING)
def test_ablations_cost_what_the_ablated_heads_do(suite, name):
    seen = set()
    for m in suite[0][name]["measured"]:
        if m.metric in ("first_token_accuracy", "exact_match", "token_loss_difference"):
            for condition, values in zip(m.conditions, m.values, strict=True):
                known = left(m, condition, WORKING[name], suite[0][name]["answerable"])
                assert np.abs(values - known).max() < 1e-3, (m.metric, m.replacement, m.positions, condition)
                seen.add((m.metric, m.replacement, m.positions, condition.ranking, bool(known.any())))
    if name == "both":  # so that the loop above has met both answers under one intervention
        accuracy, loss = "first_token_accuracy", "token_loss_difference"
        assert {(accuracy, "mean", "all", "none", True), (accuracy, "mean", "all", "fv", False),
                (accuracy, "mean", "all", "induction", True), (accuracy, "task_mean", "all", "fv", True),
                (loss, "mean", "all", "fv", True), (loss, "mean", "all", "induction", False)} <= seen
    assert all((m.values == 0).all() for m in suite[0][name]["zero_shot"])


def lost(tables, working):
    """What each kind costs beyond random heads; a model without a kind has none to rank first."""
    right, copied = tables["answerable"].mean(), BY_DOCUMENT.mean()
    accuracy = {"fv": right, "induction": 0, "fv_minus_induction": right}
    loss = {"fv": 0, "induction": copied, "fv_minus_induction": -copied}
    return {(metric, ranking): value for metric, values in (
        ("first_token_accuracy", accuracy), ("token_loss_difference", loss)) for ranking, value in values.items()
        if set(ranking.split("_minus_")) <= set(working)}


@pytest.mark.parametrize("name", WORKING)
def test_effects_beyond_random_heads_are_those_of_the_planted_heads(suite, name):
    effects = suite[0][name]["effects"].query(
        "replacement == 'mean' and positions == 'all' and fraction == @ONE_HEAD and control == 'random_layer_matched'")
    for (metric, ranking), value in lost(suite[0][name], WORKING[name]).items():
        rows = effects.query("metric == @metric and ranking == @ranking")
        assert len(rows) == 2, "without and with exclusion"
        assert np.abs(rows["value"] - value).max() < 1e-3, (metric, ranking)
        assert (rows["low"] <= value + 1e-3).all() and (rows["high"] >= value - 1e-3).all()
        assert value == 0 or (np.sign(rows[["low", "high"]]) == np.sign(value)).all(axis=None)


# Claims whose answer is known of one model alone. Where every task says the same there is no interval to decide by.
VERDICTS = {
    "both": {"H1, 4a": HOLDS, "H2 (distinct), 3b": POWERLESS, "4c": HOLDS, "4e (metrics)": HOLDS,
             "4f": HOLDS, "4g": POWERLESS, "C2": FAILS, "A1": HOLDS},  # without demonstrations it answers nothing
    "fv": {"4g": POWERLESS, "A1": HOLDS},
    "induction": {},
}


@pytest.mark.parametrize("name", WORKING)
def test_the_ledger_says_what_is_so_and_nothing_of_heads_that_are_not_there(suite, name):
    rows = suite[1][suite[1]["model"] == name].set_index("claim")
    judged = {claim: rows.loc[claim, "verdict"] for claim in VERDICTS["both"] if claim in rows.index}
    assert judged == VERDICTS[name]


def test_the_ledgers_numbers_are_the_planted_ones(suite):
    value = suite[1].set_index(["model", "claim"])["value"]["both"]
    right = suite[0]["both"]["answerable"].mean()
    known = {"H1, 4a": right, "H2 (distinct), 3b": 0, "4c": right, "4e (metrics)": 2, "4f": 1, "C2": right}
    assert {claim: value[claim] for claim in known} == pytest.approx(known, abs=1e-3)
    assert value["A1"] > 0.6


def test_the_fv_head_alone_carries_the_task_into_other_prompts(suite):
    at = suite[0]["both"]["executions"].query("items == 'all' and prompts != 'clean'").set_index(["heads", "layer"])
    layers = planted.HEADS["fv"][0], 1  # the vector acts wherever it is added before the last MLP reads it
    for heads, carried in {"fv": 1, "induction": 0, "random_layer_matched": 0}.items():
        for layer in layers:
            # added after the last layer nothing can read it any more
            told = carried if layer < planted.N_LAYERS - 1 else 0
            values = at.loc[[(heads, layer)], "value"]
            assert values.mean() > 0.6 if told else values.mean() < 0.1, (heads, layer)
    assert at.loc[["none"], "value"].mean() < 0.1
