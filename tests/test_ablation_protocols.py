"""Conditions, protocols as points of the grid, the list of departures, and the effects against random draws."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from icl_lib import heads as head_sets
from icl_lib.ablation_effects import DIFFERENCE, at_fraction, effects_table, set_table, with_holm
from icl_lib.ablation_protocols import (
    DEPARTURES,
    PAPER_FRACTIONS,
    PROTOCOLS,
    Protocol,
    departures_table,
    measure_protocol,
    protocol,
    protocol_conditions,
    protocol_rows,
)
from icl_lib.ablation_report import changes_table
from icl_lib.ablation_tables import (
    TOKEN_LOSS,
    TOKEN_LOSS_POINTS,
    Condition,
    Measurement,
    ablation_conditions,
    ablation_table,
    measure,
    measure_grid,
    with_paired_errors,
)
from icl_lib.statistics import bootstrap_difference, effect_against_draws

INDUCTION = "induction_attention_mass"
SETTINGS = {"n_draws": 2, "induction": INDUCTION, "exclude_fraction": 0.05, "seed": 0}


def scores(n_layers, n_heads, seed=0):
    rng = np.random.default_rng(seed)
    grid = pd.MultiIndex.from_product([range(n_layers), range(n_heads)], names=["layer", "head"]).to_frame(index=False)
    return pd.concat([grid.assign(score=score, value=rng.permutation(len(grid)) / len(grid), task="")
                      for score in (INDUCTION, "fv")], ignore_index=True)


def pick(conditions, **fields):
    return [c for c in conditions if all(getattr(c, k) == v for k, v in fields.items())]


def test_conditions_have_the_counts_and_exclusions_they_name():
    conditions = ablation_conditions(scores(4, 12), fractions=[0.05, 0.2], **SETTINGS)
    assert [int(c.heads.sum()) for c in pick(conditions, ranking="none")] == [0]
    top_fv, = pick(conditions, ranking="fv", excluded="", fraction=0.05)
    kept, = pick(conditions, ranking="induction", excluded="top 0.05 fv", fraction=0.2)
    assert int(top_fv.heads.sum()) == 2 and int(kept.heads.sum()) == 9
    of_fv, = pick(conditions, ranking="fv", excluded="", fraction=0.2)
    assert int((kept.heads & of_fv.heads).sum()) < 9
    for kind, words in (("fv", "top 0.05 induction"), ("induction", "top 0.05 fv"), ("fv", ""), ("induction", "")):
        own, = pick(conditions, ranking=kind, excluded=words, fraction=0.2)
        draws = pick(conditions, ranking="random_layer_matched", matched=kind, excluded=words, fraction=0.2)
        assert len(draws) == 2
        for drawn in draws:
            assert torch.equal(drawn.heads.sum(1), own.heads.sum(1))


def test_random_draws_are_nested_over_fractions_and_differ_between_draws():
    conditions = ablation_conditions(scores(4, 12), fractions=[0.05, 0.2, 0.5], **SETTINGS)
    for draw in range(2):
        sets = [c.heads for c in pick(conditions, ranking="random", draw=draw)]
        assert all(not (small & ~large).any() for small, large in itertools.pairwise(sets))
    first, second = pick(conditions, ranking="random", fraction=0.5)
    assert not torch.equal(first.heads, second.heads)
    again = ablation_conditions(scores(4, 12), fractions=[0.5], **SETTINGS)
    assert torch.equal(pick(again, ranking="random", draw=1)[0].heads, second.heads)


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
        assert expected or all(torch.equal(a.heads, b.heads) for a, b in zip(kept, plain, strict=True))


def head_scores(table, score):
    rows = table[table["score"] == score].sort_values(["layer", "head"])
    return torch.from_numpy(rows["value"].to_numpy().reshape(rows["layer"].max() + 1, -1).copy())


def test_head_counts_of_the_released_protocol():
    counts = {}
    for shape in ((6, 8), (16, 8), (24, 16)):
        conditions = protocol_conditions("released", scores(*shape), induction=INDUCTION, n_draws=20, seed=0)
        counts[shape] = [int(c.heads.sum()) for c in pick(conditions, ranking="fv", excluded="")]
        assert len(pick(conditions, ranking="random")) == 7  # one draw
        assert not pick(conditions, ranking="random_layer_matched")
    assert counts == {(6, 8): [1, 1, 2, 3, 4, 7, 9], (16, 8): [1, 3, 6, 8, 11, 19, 25],
                      (24, 16): [3, 11, 19, 26, 34, 57, 76]}  # paper.md 2.4


def test_bad_conditions_are_refused_in_one_line():
    table = scores(2, 4)
    calls = {
        "fraction 1.5 is outside 0..1": {"fractions": [1.5]},
        "fraction -0.1 is outside 0..1": {"fractions": [-0.1]},
        "fraction 2.0 is outside 0..1": {"fractions": [0.5], "exclude_fraction": 2.0},
        "n_heads 8 is outside 0..7, the heads there are after excluding 1 of 8": {"fractions": [1.0]},
        "rounding 'half' is unknown": {"fractions": [0.5], "rounding": "half"},
    }
    for message, changes in calls.items():
        with pytest.raises(ValueError) as error:
            ablation_conditions(table, **(SETTINGS | changes))
        assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="unknown protocol 'relased'; valid are .*; nearest: released"):
        protocol("relased")


def test_every_departure_is_reproduced_or_has_a_reason():
    numbers = [row[0] for row in DEPARTURES]
    assert numbers == [f"A{i}" for i in range(1, 20)] + [f"T{i}" for i in range(1, 13)]
    fields = {field.name for field in dataclasses.fields(Protocol)}
    for number, text, how, field, why in DEPARTURES:
        assert how in ("preset", "shown", "not reproducible", "not applicable"), number
        assert (field in fields) == (how == "preset") and text and why, number
    table = departures_table()
    assert len(table) == 31 and table.index.is_unique


def small_lab(neox):
    tasks = {task: p for task, p in neox.prompts.items()}
    documents = torch.tensor(neox.expected["token_loss"]["tokens"])
    shape = neox.model.cfg.n_layers, neox.model.cfg.n_heads
    return neox.model, scores(*shape), tasks, documents


def test_a_protocol_is_rows_of_the_grid(neox):
    model, table, prompts, documents = small_lab(neox)
    measured = []
    for name in ("paper", "released"):
        conditions = protocol_conditions(name, table, induction=INDUCTION, n_draws=2, seed=0)
        measured += measure_protocol(name, model, conditions, prompts, prompts, documents, seed=0)
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
            assert set(rows[rows["ranking"] == "fv"]["fraction"]) == set(PAPER_FRACTIONS)
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


def test_a_grid_measures_the_first_replacement_everywhere_and_the_others_at_some_fractions(neox):
    model, table, prompts, documents = small_lab(neox)
    conditions = ablation_conditions(table, fractions=[0.1, 0.3], **SETTINGS)
    settings = {"replacements": ["mean", "zero"], "positions": ["all", "last"], "seed": 0}
    for asked, fractions in (([0.28], {0.3}), ([], {0.1, 0.3})):
        found = measure_grid(model, conditions, prompts, prompts, documents, grid_fractions=asked, **settings)
        cells = {(m.replacement, m.positions, m.metric): {c.fraction for c in m.conditions} - {0.0} for m in found}
        assert cells["mean", "last", TOKEN_LOSS] == {0.1, 0.3}
        assert cells["zero", "last", TOKEN_LOSS] == cells["zero", "all", "exact_match"] == fractions
    rows = ablation_table(found, name="m", step=1)
    assert len(rows[(rows["ranking"] == "none") & (rows["metric"] == TOKEN_LOSS)]) == 1


def test_unknown_interventions_are_refused(neox):
    model, table, prompts, documents = small_lab(neox)
    conditions = ablation_conditions(table, fractions=[0.1], **SETTINGS)
    for changes, message in (({"replacement": "median"}, "unknown replacement 'median'"),
                             ({"positions": "first"}, "unknown positions 'first'")):
        for given in (prompts, {}):
            with pytest.raises(ValueError, match=message):
                measure(model, conditions, given, prompts, documents, seed=0,
                        **({"replacement": "mean", "positions": "all"} | changes))


def made_up(effect_fv, effect_induction, n_draws=20, seed=0):
    rng = np.random.default_rng(seed)
    none = torch.zeros(2, 2, dtype=torch.bool)
    one = none.clone()
    one[0, 0] = True
    conditions = [Condition("none", "", "", 0.0, 0, none)]
    tasks = np.repeat([f"t{i}" for i in range(8)], 10)
    clean = rng.normal(size=len(tasks))
    values = [clean]
    for kind, effect in (("induction", effect_induction), ("fv", effect_fv)):
        conditions.append(Condition(kind, "", "", 0.1, 0, one))
        values.append(clean - effect + 0.1 * rng.normal(size=len(tasks)))
        for draw in range(n_draws):
            conditions.append(Condition("random_layer_matched", "", kind, 0.1, draw, one))
            values.append(clean + 0.1 * rng.normal(size=len(tasks)))
    return Measurement("first_token_accuracy", "mean", "all", conditions, tasks, np.stack(values))


def test_effects_find_what_was_put_in_and_are_paired():
    effects = effects_table([made_up(0.5, 0.0)], name="m", step=1, seed=0).set_index("ranking")
    assert effects.loc["fv", "value"] == pytest.approx(0.5, abs=0.05)
    assert effects.loc["fv", "low"] > 0.4  # prompts differ by 1, so only a paired interval is this narrow
    assert effects.loc["induction", "low"] < 0 < effects.loc["induction", "high"]
    assert effects.loc[DIFFERENCE, "value"] == pytest.approx(0.5, abs=0.05)
    corrected = with_holm(effects.reset_index())
    assert set(corrected["ranking"]) == {"fv", "induction"} and (corrected["p_holm"] >= corrected["p_value"]).all()
    assert corrected.set_index("ranking").loc["fv", "p_holm"] < 0.001
    plain = effects.reset_index()
    assert len(at_fraction(plain, 0.3)) == 3
    same = pd.concat([plain, plain.assign(excluded="top 0.05 fv")])
    assert len(at_fraction(same, 0.3)) == 3  # exclusion changes no set
    other = pd.concat([plain, plain.assign(excluded="top 0.05 fv", value=plain["value"] + 1)])
    assert len(at_fraction(other, 0.3)) == 6


def test_effect_against_draws_agrees_with_the_paired_bootstrap_and_widens_with_few_draws():
    m = made_up(0.3, 0.0)
    values, draws = m.values[1 + 20 + 1], m.values[1 + 20 + 2 :]
    many = effect_against_draws(values, draws, m.tasks, seed=0)
    paired = bootstrap_difference(draws.mean(0), values, m.tasks, seed=0)
    assert many.value == pytest.approx(paired.value)
    assert many.low == pytest.approx(paired.low, abs=0.02) and many.high == pytest.approx(paired.high, abs=0.02)
    shifted = draws + np.linspace(-1, 1, 20)[:, None]
    few = effect_against_draws(values, shifted[::7], m.tasks, seed=0)
    assert few.high - few.low > 3 * (many.high - many.low)
    assert few == effect_against_draws(values, shifted[::7], m.tasks, seed=0)
    null = effect_against_draws(draws[0], draws[1:], m.tasks, seed=0)
    assert null.low < 0 < null.high and null.p_value > 0.05


def test_sets_overlap_and_remaining_percentiles():
    table = scores(4, 8)
    conditions = ablation_conditions(table, fractions=[0.1, 0.5], **SETTINGS)
    sets = set_table(conditions, table, induction=INDUCTION)
    assert len(sets) == 4 and sets["overlap"].between(0, 1).all()
    plain = sets[~sets["excluded"]].set_index("fraction")
    assert plain.loc[0.5, "fv_after_fv"] == pytest.approx(0.25)  # the lower half remains
    assert (sets[sets["excluded"]]["fv_after_induction"].to_numpy() >= plain["fv_after_induction"].to_numpy()).all()


def test_the_table_of_changes_holds_each_departures_own_gap():
    grid = [made_up(0.5, 0.0), dataclasses.replace(made_up(0.2, 0.1), positions="last")]
    effects = effects_table(grid, name="m", step=1, seed=0)
    tasks = ["a", "b", "c"]
    rows = [("generated_f1", ranking, task, value)
            for ranking, value in (("fv", 0.2), ("induction", 0.6), ("none", 0.9)) for task in tasks]
    ablations = pd.DataFrame(rows, columns=["metric", "ranking", "task", "value"]).assign(
        positions="last", replacement="mean", excluded="", fraction=0.09)
    table = changes_table(effects, ablations, seed=0)
    accuracy = table["few-shot accuracy"]
    gaps = effects[effects["ranking"] == DIFFERENCE].set_index("positions")["value"]
    assert accuracy.iloc[0].startswith(f"{gaps['all']:+.3f} (") and accuracy["A2"].startswith(f"{gaps['last']:+.3f} (")
    assert accuracy["A4"].startswith("+0.400 (") and accuracy["A1"] == "-"  # not measured here
    assert (table["token-loss difference (nats)"] == "-").all()
