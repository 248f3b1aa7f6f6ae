"""Conditions, protocols as points of the grid, the list of departures, and the effects against random draws."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from icl_lib import heads as head_sets
from icl_lib.ablation.conditions import Condition, ablation_conditions, refuse_overlap
from icl_lib.ablation.effects import (
    effects_table,
)
from icl_lib.ablation.measure import measure, measure_protocol
from icl_lib.ablation.protocols import (
    PAPER_FRACTIONS,
    PROTOCOLS,
    Protocol,
    protocol,
    protocol_conditions,
    protocol_rows,
)
from icl_lib.ablation.table import TOKEN_LOSS, TOKEN_LOSS_POINTS, ablation_table, with_paired_errors
from icl_lib.departures import ABLATION, departures_table
from icl_lib.kinds import OF_EITHER_KIND, heads_of_kind
from tests.test_ablation_effects import SETTINGS, made_up, scores


def pick(conditions, **fields):
    return [c for c in conditions if all(getattr(c, k) == v for k, v in fields.items())]


def test_conditions_have_the_counts_and_exclusions_they_name():
    conditions = ablation_conditions(scores(4, 12), fractions=[0.05, 0.2], **SETTINGS)
    assert [int(c.heads.sum()) for c in pick(conditions, ranking="none")] == [0]
    top_fv, = pick(conditions, ranking="fv", excluded="", fraction=0.05)
    kept, = pick(conditions, ranking="induction", excluded="top 0.05 fv", fraction=0.2)
    assert int(top_fv.heads.sum()) == 3 and int(kept.heads.sum()) == 10
    of_fv, = pick(conditions, ranking="fv", excluded="", fraction=0.2)
    assert not (kept.heads & top_fv.heads).any() and int((kept.heads & of_fv.heads).sum()) < 10
    for kind, words in (("fv", "top 0.05 induction"), ("induction", "top 0.05 fv"), ("fv", ""), ("induction", "")):
        own, = pick(conditions, ranking=kind, excluded=words, fraction=0.2)
        draws = pick(conditions, ranking="random_layer_matched", matched=kind, excluded=words, fraction=0.2)
        assert len(draws) == 2
        for drawn in draws:
            assert int(drawn.heads.sum()) == 10 and not (drawn.heads & own.heads).any()
    refuse_overlap(conditions)


@pytest.mark.parametrize("seed", range(5))
def test_controls_are_of_neither_kind_and_in_no_set(seed):
    table = scores(4, 8, n_of_kind=6, seed=seed)
    of_kind = np.any(list(heads_of_kind(table).values()), axis=0)
    conditions = ablation_conditions(table, fractions=[0.05, 0.1], **SETTINGS | {"n_draws": 9, "seed": seed})
    for fraction in (0.05, 0.1):
        at = pick(conditions, fraction=fraction)
        sets = np.any([c.heads for c in at if c.ranking in ("fv", "induction")], axis=0)
        random = [c for c in at if c.ranking.startswith("random")]
        assert len(random) > 9 and not any((c.heads & (of_kind | sets)).any() for c in random)
        for _, group in itertools.groupby(random, key=lambda c: (c.ranking, c.matched, c.excluded)):
            group = list(group)
            assert [c.draw for c in group] == list(range(len(group)))
            assert len({tuple(head_sets.head_names(c.heads)) for c in group}) == len(group)


def test_each_different_draw_counts_once_and_where_there_are_too_few_heads_there_is_none():
    table = scores(2, 3, n_of_kind=1)  # six heads, of which one or two are of a kind: at most five are left
    conditions = ablation_conditions(table, fractions=[0.1, 0.5], **SETTINGS | {"n_draws": 40})
    at = [c for c in conditions if c.fraction == 0.1 and c.ranking.startswith("random")]
    assert at and all(len(pick(at, ranking=c.ranking, matched=c.matched, excluded=c.excluded)) <= 5 for c in at)
    assert not [c for c in conditions if c.fraction == 0.5 and c.ranking.startswith("random")]
    assert len([c for c in conditions if c.fraction == 0.5]) == 4
    # as the paper draws: from all heads, those of either kind included
    everywhere = ablation_conditions(table, fractions=[0.5], random_from="all", **SETTINGS | {"n_draws": 40})
    drawn = pick(everywhere, ranking="random")
    assert 10 < len(drawn) <= 20 and {c.excluded for c in drawn} == {""}
    assert np.any([c.heads for c in drawn], axis=0).all()


def test_a_control_that_overlaps_what_it_controls_for_is_refused():
    conditions = ablation_conditions(scores(4, 8), fractions=[0.1], **SETTINGS)
    top, = pick(conditions, ranking="fv", excluded="")
    for ranking, matched in (("random_layer_matched", "fv"), ("random", "")):
        bad = Condition(ranking, "", matched, 0.1, 7, top.heads)
        with pytest.raises(ValueError, match=f"both in the .* heads at 0.1 and in their control {ranking}, draw 7"):
            refuse_overlap([*conditions, bad])
    refuse_overlap([*conditions, dataclasses.replace(bad, fraction=0.3)])  # controls for none of these
    m = made_up(0.5, 0.0)
    m.conditions.append(Condition("random_layer_matched", "", "fv", 0.1, 20, m.conditions[1].heads))
    with pytest.raises(ValueError, match="L0H0 is both in the fv heads at 0.1"):
        effects_table([m], name="m", step=1)


def test_random_draws_are_nested_over_fractions_and_differ_between_draws():
    for random_from in ("neither", "all"):
        settings = SETTINGS | {"random_from": random_from}
        conditions = ablation_conditions(scores(8, 12), fractions=[0.02, 0.05, 0.2], **settings)
        for draw in range(2):
            sets = [c.heads for c in pick(conditions, ranking="random", draw=draw)]
            assert len(sets) == 3
            taken = np.any([c.heads for c in conditions if c.ranking in ("fv", "induction")], axis=0)
            taken &= random_from == "neither"  # a head that a larger set takes is no random head there
            assert all(not (small & ~large & ~taken).any() for small, large in itertools.pairwise(sets))
        first, second = pick(conditions, ranking="random", fraction=0.2)
        assert not np.array_equal(first.heads, second.heads)
        again = ablation_conditions(scores(8, 12), fractions=[0.2], **settings)
        assert np.array_equal(pick(again, ranking="random", draw=1)[0].heads, second.heads)


@pytest.mark.parametrize(("shape", "floor", "ceil"), [((6, 8), 0, 1), ((12, 12), 2, 3), ((32, 32), 20, 21)])
def test_floor_and_ceil_exclusion_are_the_dossiers_counts(shape, floor, ceil):
    table = scores(*shape)
    for rounding, expected, words in (("floor", floor, "top 0.02 fv, rounded down"), ("ceil", ceil, "top 0.02 fv")):
        settings = SETTINGS | {"n_draws": 0, "exclude_fraction": 0.02}
        conditions = ablation_conditions(table, fractions=list(PAPER_FRACTIONS), rounding=rounding, **settings)
        kept = pick(conditions, ranking="induction", excluded=words)
        top_fv = head_sets.top_heads(head_scores(table, "fv"), n_heads=expected)
        assert len(kept) == 7 and not any((c.heads & top_fv).any() for c in kept)
        plain = pick(conditions, ranking="induction", excluded="")
        assert expected or all(np.array_equal(a.heads, b.heads) for a, b in zip(kept, plain, strict=True))


def head_scores(table, score):
    rows = table[table["score"] == score].sort_values(["layer", "head"])
    return rows["value"].to_numpy().reshape(rows["layer"].max() + 1, -1)


def test_head_counts_of_the_released_protocol():
    counts = {}
    for shape in ((6, 8), (16, 8), (24, 16)):
        conditions = protocol_conditions("released", scores(*shape), n_draws=20, seed=0)
        counts[shape] = [int(c.heads.sum()) for c in pick(conditions, ranking="fv", excluded="")]
        assert len(pick(conditions, ranking="random")) == 7  # one draw
        assert not pick(conditions, ranking="random_layer_matched")
    assert counts == {(6, 8): [1, 1, 2, 3, 4, 7, 9], (16, 8): [1, 3, 6, 8, 11, 19, 25],
                      (24, 16): [3, 11, 19, 26, 34, 57, 76]}
    paper = protocol_conditions("paper", scores(6, 8), n_draws=20, seed=0)
    assert [int(c.heads.sum()) for c in pick(paper, ranking="fv", excluded="")] == [1, 2, 3, 4, 5, 8, 10]


def test_bad_conditions_are_refused_in_one_line():
    table = scores(2, 4)
    calls = {
        "fraction 1.5 is outside 0..1": {"fractions": [1.5]},
        "fraction -0.1 is outside 0..1": {"fractions": [-0.1]},
        "fraction 2.0 is outside 0..1": {"fractions": [0.5], "exclude_fraction": 2.0},
        "n_heads 8 is outside 0..7, the heads there are after excluding 1 of 8": {"fractions": [1.0]},
        "unknown rounding 'half'": {"fractions": [0.5], "rounding": "half"},
    }
    for message, changes in calls.items():
        with pytest.raises(ValueError) as error:
            ablation_conditions(table, **(SETTINGS | changes))
        assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="unknown protocol 'relased'; valid are .*; nearest: released"):
        protocol("relased")


def test_every_departure_is_reproduced_or_has_a_reason():
    numbers = [departure["number"] for departure in ABLATION]
    assert numbers == [f"A{i}" for i in range(1, 20)] + [f"T{i}" for i in range(1, 13)]
    fields = {field.name for field in dataclasses.fields(Protocol)}
    for d in ABLATION:
        assert d["how"] in ("preset", "shown", "not reproducible", "not applicable"), d
        assert (d.get("field") in fields) == (d["how"] == "preset") and d["departure"] and d["why"], d
    table = departures_table()
    assert len(table) == 31 and table.index.is_unique


def small_lab(neox):
    tasks = {task: p for task, p in neox.prompts.items()}
    documents = torch.tensor(neox.expected["token_loss"]["tokens"])
    shape = neox.model.cfg.n_layers, neox.model.cfg.n_heads
    return neox.model, scores(*shape), tasks, documents


def test_a_protocol_is_rows_of_the_grid(neox):
    model, table, prompts, documents = small_lab(neox)
    own = ablation_conditions(table, fractions=list(PAPER_FRACTIONS), **SETTINGS)
    measured = [m for replacement in ("mean", "bos_value") for where in ("all", "last") for m in measure(
        model, own, prompts, prompts, documents, replacement=replacement, positions=where, seed=0)]
    counts = {}
    for name in ("paper", "released"):
        conditions = protocol_conditions(name, table, n_draws=2, seed=0)
        measured += measure_protocol(name, model, conditions, prompts, prompts, documents, seed=0)
        counts[name] = {c.fraction: int(c.heads.sum()) for c in conditions}
    ablations = ablation_table(measured, name="m", step=1)
    for name in ("paper", "released"):
        p = PROTOCOLS[name]
        few_shot = protocol_rows(name, ablations, "few_shot")
        loss = protocol_rows(name, ablations, "token_loss")
        assert set(few_shot["metric"]) == {p.metric} and set(loss["metric"]) == {p.loss_metric}
        edited = few_shot[few_shot["ranking"] != "none"]
        assert set(zip(edited["replacement"], edited["positions"], strict=True)) == {p.few_shot}
        edited = loss[loss["ranking"] != "none"]
        assert set(zip(edited["replacement"], edited["positions"], strict=True)) == {p.token_loss}
        for rows in (few_shot, loss):
            keys = ["ranking", "excluded", "fraction", "draw", "task"]
            assert not rows.duplicated(keys).any()
            assert dict(zip(rows["fraction"], rows["n_heads"], strict=True)) == counts[name]
            assert set(rows[rows["ranking"] == "random"]["excluded"]) == {""}
            assert "random_layer_matched" not in set(rows["ranking"])
    single = protocol_rows("single", ablations, "few_shot", exclude_fraction=0.05)
    assert set(single[single["ranking"] == "random"]["excluded"]) == {OF_EITHER_KIND}
    raw = ablations[(ablations["metric"] == TOKEN_LOSS_POINTS) & (ablations["ranking"] == "none")]["value"].item()
    released = protocol_rows("released", ablations, "token_loss").query("ranking == 'none'")["value"].item()
    assert released == pytest.approx(raw * len(documents) / (len(documents) - 1))  # T2


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("replacement", ["mean", "task_mean", "zero", "resample", "bos_value"])
def test_both_metrics_are_measured_under_every_intervention(neox, replacement, positions):
    model, table, prompts, documents = small_lab(neox)
    conditions = ablation_conditions(table, fractions=[0.1, 0.11], **SETTINGS)
    found = measure(model, conditions, prompts, prompts, documents, replacement=replacement, positions=positions,
                    seed=0, loss_window=1)
    by_metric = {m.metric: m for m in found}
    assert set(by_metric) == {
        "first_token_accuracy", "exact_match", "answer_probability", TOKEN_LOSS, TOKEN_LOSS_POINTS}
    for m in found:
        assert np.isfinite(m.values).all() and m.values.shape == (len(conditions), len(m.tasks))
    loss = by_metric[TOKEN_LOSS]
    same = [i for i, c in enumerate(conditions) if c.ranking == "fv" and not c.excluded]
    assert np.array_equal(loss.values[same[0]], loss.values[same[1]])  # 0.1 and 0.11 are one head
    assert not np.array_equal(loss.values[0], loss.values[same[0]])
    rows = ablation_table(found, name="m", step=1)
    change = rows[(rows["metric"] == f"{TOKEN_LOSS}_change") & (rows["ranking"] == "fv")].iloc[0]
    assert change["value"] == pytest.approx((loss.values[same[0]] - loss.values[0]).mean())
    errors = with_paired_errors(rows)
    own = errors[(errors["metric"] == TOKEN_LOSS) & (errors["ranking"] == "fv")].iloc[0]
    assert own["standard_error"] == change["standard_error"] and own["value"] != change["value"]
    few_shot = (rows["metric"] == "answer_probability").to_numpy()
    assert errors[few_shot].equals(rows[few_shot])


def test_unknown_interventions_are_refused(neox):
    model, table, prompts, documents = small_lab(neox)
    conditions = ablation_conditions(table, fractions=[0.1], **SETTINGS)
    for changes, message in (({"replacement": "median"}, "unknown replacement 'median'"),
                             ({"positions": "first"}, "unknown positions 'first'")):
        for given in (prompts, {}):
            with pytest.raises(ValueError, match=message):
                measure(model, conditions, given, prompts, documents, seed=0,
                        **({"replacement": "mean", "positions": "all"} | changes))
