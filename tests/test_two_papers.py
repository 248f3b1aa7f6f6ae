"""Models that tell patterns by their induction head, beside it or not at all go through the ablation of two papers."""

import numpy as np
import pytest

from icl_lib import measurements
from icl_lib.ablation import two_papers
from icl_lib.ablation.conditions import Condition
from icl_lib.ablation.table import Measurement
from icl_lib.load import load_model
from icl_lib.provenance import provenance
from icl_lib.scores.function_vectors import fv_scores, permuted_mean_scores
from icl_lib.scores.induction import repeated_random_tokens
from icl_lib.tables import read_table, write_table
from tests import planted, planted_patterns

ONE_HEAD = 1 / (planted.N_LAYERS * planted.N_HEADS)
TASK = {"induction": "repetition", "mlp": "recursion", "nothing": "repetition"}
N_PROMPTS, N_SEEDS, N_DRAWS, SHOTS = 10, 2, 3, [0, 2]


def measured(folder, by):
    """Tables of a model that finds its pattern by something, its conditions, and whether letters recur by prompt."""
    planted_patterns.write_model(folder, by)
    model, tasks = load_model(folder, device="cpu"), planted_patterns.tasks(TASK[by])
    scoring = measurements.prompts_of(
        model, measurements.in_split(tasks, "scoring"), n_prompts=8, n_shots=2, seed=0)
    fv = fv_scores(model, scoring)
    null = permuted_mean_scores(model, scoring, fv.mean_z, n_draws=2, seed=0)
    tokens = repeated_random_tokens(model, n_sequences=20, length=15, seed=0)
    scores = measurements.score_table(model, tokens, fv, null, name=by, step=-1)
    conditions = two_papers.conditions_of_both(
        scores, fractions=[ONE_HEAD, 2 * ONE_HEAD], n_draws=N_DRAWS, exclude_fraction=ONE_HEAD, seed=0)
    evaluation = measurements.in_split(tasks, "evaluation")
    found = two_papers.measure_both(
        model, {"patterns": evaluation}, conditions, scoring, n_prompts={"patterns": N_PROMPTS},
        n_seeds={"patterns": N_SEEDS}, n_check=N_PROMPTS, shots=SHOTS, seed=0)
    return *two_papers.pattern_tables(found, name=by, step=-1), conditions


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return {by: measured(tmp_path_factory.mktemp(by), by) for by in TASK}


def gone(condition, by):
    """Whether heads are ablated that the pattern is found by."""
    needed = {"induction": ("previous", "induction"), "mlp": ("previous",)}[by]
    return any(condition.heads[planted.HEADS[kind]] for kind in needed)


@pytest.mark.parametrize("by", ["induction", "mlp"])
def test_accuracy_falls_to_chance_without_the_heads_that_find_the_pattern(tables, by):
    table, _, conditions = tables[by]
    rows = table[table["n_shots"] == 2]
    clean = rows[rows["ranking"] == "none"]["value"].item()
    assert clean > 0.8
    seen = set()
    for ranked_by, of_score in conditions.items():
        for c in of_score[1:]:
            same = (rows["ranked_by"] == ranked_by) & (rows["fraction"] == c.fraction)
            for column in ("ranking", "excluded", "matched", "draw"):
                same &= rows[column] == getattr(c, column)
            row = rows[same]
            assert len(row) == 1 and row["n_heads"].item() == int(c.heads.sum()), c
            if not c.ranking.startswith("random"):  # of all prompts, half of them with either label
                assert row["value"].item() == (0.5 if gone(c, by) else clean), c
            seen.add((c.ranking, int(c.heads.sum()), gone(c, by)))
    assert ("induction", 1, by == "induction") in seen and ("induction", 1, by != "induction") not in seen


def test_the_exclusion_of_fv_heads_changes_nothing_where_there_are_none(tables):
    _, effects, _ = tables["induction"]
    plain, kept = (rows.set_index(["n_shots", "ranked_by", "control", "fraction", "task"])[["value", "n_heads"]]
                   for rows in (effects[(effects["ranking"] == "induction") & (effects["excluded"].ne("") == kept)]
                                for kept in (False, True)))
    plain, kept = plain.xs("none", level="control"), kept.xs("none", level="control")
    assert len(plain) and plain.equals(kept.reindex(plain.index))


@pytest.mark.parametrize(("by", "lost"), [("induction", 0.5), ("mlp", 0.0)])
def test_the_preset_finds_what_the_induction_head_does(tables, by, lost):
    """Beyond random heads of its layer, which hold nothing that is needed."""
    _, effects, _ = tables[by]
    for ranked_by in two_papers.RANKINGS:
        row = effects[(effects["n_shots"] == 2) & (effects["ranked_by"] == ranked_by) & (effects["excluded"] == "")
                      & (effects["ranking"] == "induction") & (effects["control"] == "random_layer_matched")
                      & (effects["fraction"] == effects[effects["ranked_by"] == ranked_by]["fraction"].min())
                      & (effects["task"] == "")]
        if ranked_by == two_papers.PAPERS:  # two heads there: the second may be one that is needed too
            continue
        assert len(row) == 1 and row["value"].item() == pytest.approx(lost)
        assert (row["low"].item() > 0) is (lost > 0)


def test_a_pattern_that_a_model_cannot_find_is_not_ablated(tables):
    table, effects, _ = tables["nothing"]
    assert set(table["ranking"]) == {"none"} and set(table["value"]) == {0.5} and effects.empty


def test_tables_fit_their_schemas(tables, tmp_path):
    made_by = provenance(suite="planted", seed=0, dtype="float32", device="cpu", bos=planted.BOS, parameters={})
    for by, (table, effects, _) in tables.items():
        for kind, frame in (("patterns", table), ("pattern_effects", effects)):
            write_table(frame, tmp_path / by / f"{kind}.parquet", schema_name=kind, provenance=made_by)
            assert len(read_table(tmp_path / by / f"{kind}.parquet")) == len(frame)


@pytest.mark.parametrize(("right", "able"), [(20, True), (15, True), (14, False), (10, False), (3, False)])
def test_able_is_what_a_binomial_test_says(right, able):
    """15 of 20 and more come by chance once in 48 times, 14 once in 17."""
    tasks = planted_patterns.tasks("repetition")
    values = np.array([[1.0] * right + [0.0] * (20 - right)])
    clean = Measurement("label_accuracy", "none", "none", [], np.repeat("repetition", 20), values)
    assert two_papers.able_tasks(clean, tasks) == ["repetition"] * able


@pytest.mark.parametrize(("n_draws", "fits"), [(1, True), (2, False), (3, True), (4, False)])
def test_every_draw_meets_every_label(tmp_path, n_draws, fits):
    """Labels and draws are taken in turn: two draws of a task of two labels would meet one label each."""
    planted_patterns.write_model(tmp_path, "induction")
    model, tasks = load_model(tmp_path, device="cpu"), planted_patterns.tasks("repetition")
    prompts = two_papers.prompts_of_seeds(model, tasks, n_prompts=2, n_shots=0, seed=0)
    heads = np.zeros((planted.N_LAYERS, planted.N_HEADS), dtype=bool)
    conditions = [Condition("none", "", "", 0.0, 0, heads)]
    conditions += [Condition("random", "", "", 0.1, draw, heads) for draw in range(n_draws)]
    how = dict(task_set="patterns", seed=0)
    if fits:
        assert len(two_papers.measure_sets(model, conditions, tasks, prompts, {}, **how).conditions) == 1 + n_draws
    else:
        with pytest.raises(ValueError, match=f"n_draws {n_draws} and the 2 labels of task .* odd number of draws"):
            two_papers.measure_sets(model, conditions, tasks, prompts, {}, **how)
