"""Protocols: presets by name, every switch does what it says or says why it cannot, all listed departures are there."""

from inspect import signature

import numpy as np
import pandas as pd
import pytest
import torch

from icl_lib import fv_scores, induction_scores, load_model, measurements, protocols, repeated_random_tokens
from icl_lib.data.sources import read_tasks
from icl_lib.data.tasks import Task, draw_prompts
from icl_lib.departures import SCORING, SCORING_WITHOUT_SWITCH
from icl_lib.pages import common as report
from icl_lib.pages import protocols as protocol_report
from icl_lib.protocols import PRESETS
from tests.conftest import ARCHITECTURES, golden_case, tiny_model

SWITCHES = {score: {name: parameter.default for function in functions for name, parameter in
                    signature(function).parameters.items() if parameter.default is not parameter.empty}
            for score, functions in {"induction": (protocols.protocol_tokens, protocols.protocol_induction_scores),
                                     "fv": (protocols.protocol_prompts, protocols.protocol_fv_scores)}.items()}
LETTERS = "abcdefghijklmnopqrst"
SMALL = {"n_prompts": 2, "n_shots": 3}


def task(name, type="abstractive", n=20):
    pairs = [(letter, f"{letter.upper()}{name}") for letter in LETTERS[:n]]
    return Task(name, type, "scoring", pairs)


TASKS = {name: task(name, type) for name, type in (
    ("x", "abstractive"), ("y", "abstractive"), ("z", "abstractive"), ("one", "extractive"), ("two", "extractive"))}


def test_every_listed_departure_has_a_switch_or_a_reason():
    switched = {place for d in SCORING for place in d["places"].split(", ")}
    unswitched = {d["place"] for d in SCORING_WITHOUT_SWITCH if d["why"]}
    assert switched | unswitched == {f"I{i}" for i in range(1, 10)} | {f"F{i}" for i in range(1, 11)}


def test_every_switch_is_a_parameter_and_departs_from_the_default():
    switches = {"induction": set(), "fv": set()}
    for departure in SCORING:
        assert all(SWITCHES[departure["score"]][name] != value for name, value in departure["switch"].items())
        switches[departure["score"]] |= set(departure["switch"])
    sizes = {"n_sequences", "length", "n_prompts", "n_shots"}
    for score, defaults in SWITCHES.items():
        assert switches[score] | sizes >= set(defaults)
        # the released preset is made of these departures
        assert set(PRESETS[score]["released"]) <= switches[score]


def test_the_default_is_what_the_library_does_without_protocols(neox):
    tokens = repeated_random_tokens(neox.model, n_sequences=4, length=10, seed=3)
    scores = protocols.protocol_induction_scores(neox.model, n_sequences=4, length=10, seed=3)
    assert torch.equal(scores, induction_scores(neox.model, tokens))
    prompts = measurements.prompts_of(neox.model, TASKS, **SMALL, seed=3)
    assert protocols.protocol_prompts(neox.model, TASKS, **SMALL, seed=3) == prompts
    scored = protocols.protocol_fv_scores(neox.model, TASKS, **SMALL, seed=3)
    assert torch.equal(scored.scores, fv_scores(neox.model, prompts).scores)


def test_induction_switches_change_the_tokens_as_they_say(neox):
    tokenizer = neox.model.tokenizer
    bos, special = tokenizer.bos_token_id, set(tokenizer.all_special_ids)

    def drawn(**switch):
        return protocols.protocol_tokens(neox.model, n_sequences=300, length=10, **switch, seed=0)

    tokens, lengths = drawn()
    assert tokens.shape == (300, 21) and (lengths == 21).all()
    twice, lengths = drawn(n_bos=2)
    assert torch.equal(twice[:, 1:], tokens) and (twice[:, 0] == bos).all() and (lengths == 22).all()
    assert drawn(n_bos=0)[0].shape == (300, 20)
    assert special & set(drawn(special_ids=True)[0][:, 1:].flatten().tolist())
    padding = neox.model.cfg.d_vocab - len(tokenizer)
    assert (drawn(padding_ids=True)[0] >= len(tokenizer)).any() == (padding > 0)
    again, lengths = drawn(retokenised=True)
    assert lengths.unique().numel() > 1 and again.shape[1] == lengths.max()
    for row, ids, length in zip(tokens[:20], again[:20], lengths[:20], strict=True):
        assert tokenizer.decode(ids[:length]) == tokenizer.decode(row)


def test_padding_ids_are_drawn_where_the_embedding_has_rows_without_a_token():
    model, _ = tiny_model("gpt_neox", 1, 2)
    model.cfg.d_vocab = len(model.tokenizer) + 50
    for padding_ids in (False, True):
        tokens, _ = protocols.protocol_tokens(model, n_sequences=50, length=10, padding_ids=padding_ids, seed=0)
        assert (tokens >= len(model.tokenizer)).any() == padding_ids


def test_scores_of_padded_sequences_are_those_of_each_alone(neox):
    switches = {name: value for name, value in PRESETS["induction"]["released"].items() if name != "dtype"}
    tokens, lengths = protocols.protocol_tokens(neox.model, n_sequences=6, length=10, **switches, seed=1)
    assert lengths.unique().numel() > 1
    for convention in ("attention_mass", "prefix_matching"):
        alone = [induction_scores(neox.model, row[None, :n], convention=convention)
                 for row, n in zip(tokens, lengths, strict=True)]
        together = induction_scores(neox.model, tokens, convention=convention, lengths=lengths)
        torch.testing.assert_close(together, torch.stack(alone).mean(0), rtol=1e-4, atol=1e-7)


def test_released_tasks_are_9_abstractive_to_20_extractive_ones(neox):
    many = {f"{kind}{i}": task(f"{kind}{i}", kind) for kind in ("abstractive", "extractive") for i in range(40)}
    protocol = dict(tasks="released_share", **SMALL)
    for seed in (0, 1):
        chosen = protocols.protocol_prompts(neox.model, many, **protocol, seed=seed)
        assert [sum(name.startswith(kind) for name in chosen) for kind in ("abs", "ext")] == [18, 40]
    one_type = {name: t for name, t in many.items() if t.type == "abstractive"}
    assert set(protocols.protocol_prompts(neox.model, one_type, **protocol, seed=0)) == set(one_type)


def test_released_queries_come_from_nine_percent_and_no_demonstration(neox):
    # the sizes that the released split of 700 and 3149 pairs has
    for n, sizes in ((700, (490, 63)), (3149, (2204, 284)), (20, (14, 2))):
        pairs = [(f"i{i}", f"o{i}") for i in range(n)]
        split = protocols._released_split(Task("t", "abstractive", "scoring", pairs))
        assert (len(split.training_pairs), len(split.query_pairs)) == sizes
        assert len(set(split.pairs)) == len(split.pairs) and set(split.pairs) <= set(pairs)
    prompts = protocols.protocol_prompts(
        neox.model, {"x": TASKS["x"]}, queries="released", n_prompts=30, n_shots=10, seed=0)["x"]
    assert len({p.answer for p in prompts.clean}) == 2
    assert not any(prompt.answer in prompt.text for prompt in prompts.clean)


def test_a_plain_permutation_keeps_about_one_label_and_a_derangement_none():
    kept = {}
    for permuted in (False, True):
        prompts = draw_prompts(
            TASKS["x"], n_prompts=300, n_shots=5, bos="<|endoftext|>", seed=0, any_permutation=permuted)
        lines = [[p.text.split("\n")[1::3][:5] for p in given] for given in (prompts.clean, prompts.shuffled)]
        kept[permuted] = np.mean([sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(*lines, strict=True)])
        assert all(sorted(a) == sorted(b) for a, b in zip(*lines, strict=True))
        assert all(c.answer == s.answer for c, s in zip(prompts.clean, prompts.shuffled, strict=True))
    assert kept[False] == 0 and 0.8 < kept[True] < 1.2


def test_means_over_correct_prompts_leave_out_the_others(neox, monkeypatch):
    prompts = measurements.prompts_of(neox.model, {"x": TASKS["x"], "y": TASKS["y"]}, n_prompts=3, n_shots=2, seed=0)
    metrics = protocols.answer_metrics(neox.model, {t: p.clean for t, p in prompts.items()})
    right = (metrics["task"] == "x") & (metrics["prompt"] == 1)
    monkeypatch.setattr(protocols, "answer_metrics", lambda *_: metrics.assign(first_token_correct=right))
    kept = protocols._correct(neox.model, prompts)
    assert kept["x"].clean == [prompts["x"].clean[1]] and kept["x"].shuffled == prompts["x"].shuffled
    assert kept["y"] == prompts["y"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_another_dtype_is_as_if_loaded_in_it_and_leaves_the_model_as_it_was(architecture, dtype):
    model, loaded = (golden_case(architecture, name).model for name in ("float32", dtype))

    def scores(model, **switch):
        return (protocols.protocol_fv_scores(model, TASKS, **SMALL, **switch, seed=0).scores,
                protocols.protocol_induction_scores(model, n_sequences=3, length=8, **switch, seed=0))

    before, switched, expected = scores(model), scores(model, dtype=dtype), scores(loaded)
    for values, others in zip(switched, expected, strict=True):
        assert torch.equal(values, others)
    for values, others in zip(scores(model), before, strict=True):
        assert torch.equal(values, others)


@pytest.fixture(scope="module")
def effects():
    return protocols.departure_effects(
        golden_case("gpt_neox").model, TASKS, **SMALL, n_sequences=6, sequence_length=10, n_seeds=2, top_fraction=0.2)


def test_effects_stand_beside_other_seeds_and_say_where_a_switch_cannot_act(effects, neox):
    assert effects.groupby("score")["kind"].value_counts().to_dict() == {
        (score, kind): n for score in ("fv", "induction")
        for kind, n in (("default", 1), ("seed", 2), ("departure", 6), ("preset", 2))}
    default = effects[effects["kind"] == "default"]
    assert (default["rank_correlation"] == 1).all() and (default["shared"] == 1).all()
    idle = effects[effects["note"] != ""]
    assert idle["top"].isna().all() and idle["rank_correlation"].isna().all() and (idle["beyond"] == "").all()
    assert "the tokenizer gives the same first token either way" in " ".join(idle["note"])
    acting = effects[effects["note"] == ""]
    assert acting["rank_correlation"].between(-1, 1).all() and acting["shared"].between(0, 1).all()
    again = protocols.departure_effects(
        neox.model, TASKS, **SMALL, n_sequences=6, sequence_length=10, n_seeds=2, top_fraction=0.2)
    assert again.equals(effects)


def test_on_a_lab_model_nothing_stands_behind_the_tokenizer():
    model = load_model("lab-7k", device="cpu")
    tasks = dict(list(measurements.in_split(read_tasks(), "scoring").items())[:2])
    table = protocols.departure_effects(
        model, tasks, n_prompts=1, n_shots=2, n_sequences=4, sequence_length=10, n_seeds=1, top_fraction=0.2)
    notes = table[table["note"] != ""].set_index("name")["note"]
    assert "no rows beyond the tokenizer" in notes["I5: embedding rows without a token drawn too"]
    assert "of one type only" in notes["F1, F3: 9 abstractive to 20 extractive tasks"]


def test_a_change_counts_only_beyond_every_other_seed():
    columns = ["kind", "top", "rank_correlation", "shared"]
    table = pd.DataFrame([
        ("default", 1.0, 1.0, 1.0), ("seed", 1.2, 0.8, 0.5), ("seed", 0.9, 0.9, 1.0),
        ("departure", 0.7, 0.85, 0.4), ("departure", 1.15, 0.79, 0.5), ("preset", np.nan, np.nan, np.nan),
    ], columns=columns)
    beyond = protocols._beyond_seeds(table)["beyond"]
    assert beyond.tolist() == ["", "", "", "top score, top heads", "ranking", ""]


def test_statistics_tables_and_sentences_are_made_from_the_effects(effects, tmp_path):
    from icl_lib.tables import read_table

    statistics = measurements.departure_statistics(effects, name="m")
    report.write_statistics(statistics, tmp_path / "t.parquet", suite="s", seed=0, parameters={})
    table = read_table(tmp_path / "t.parquet").set_index("name")["value"]
    assert len(table) == 3 * len(effects) and table["fv, default, rank correlation"] == 1
    sentence = protocol_report.departure_sentence(effects)
    assert "6 of 6 departures can act" in sentence and "4 of 6 departures can act" in sentence
    for score in ("induction", "fv"):
        assert "2 other seeds" in protocol_report.departure_table(effects, score).data
    assert "retokenised=True" in protocol_report.departures_in_words().data
    assert "F9" in protocol_report.departures_without_switch().data
