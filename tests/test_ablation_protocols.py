"""Conditions, protocols as points of the grid, the list of departures, and the effects against random draws."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from icl_lib import heads as head_sets
from icl_lib.ablation.conditions import Condition, ablation_conditions, refuse_overlap
from icl_lib.ablation.effects import (
    CONTROLS,
    DIFFERENCE,
    at_fraction,
    corrected,
    effects_table,
    set_table,
    with_holm,
)
from icl_lib.ablation.measure import (
    TOKEN_LOSS,
    TOKEN_LOSS_POINTS,
    Measurement,
    ablation_table,
    measure,
    with_paired_errors,
)
from icl_lib.ablation.protocols import (
    PAPER_FRACTIONS,
    PROTOCOLS,
    Protocol,
    measure_protocol,
    protocol,
    protocol_conditions,
    protocol_rows,
)
from icl_lib.departures import ABLATION, departures_table
from icl_lib.kinds import OF_EITHER_KIND, heads_of_kind
from icl_lib.stats.intervals import bootstrap_difference, effect_against_draws

INDUCTION = "induction_attention_mass"
SETTINGS = {"n_draws": 2, "exclude_fraction": 0.05, "seed": 0}


def scores(n_layers, n_heads, n_of_kind=2, seed=0):
    """Scores in random order, all of them different; the `n_of_kind` best heads of either score are of its kind."""
    rng = np.random.default_rng(seed)
    grid = pd.MultiIndex.from_product([range(n_layers), range(n_heads)], names=["layer", "head"]).to_frame(index=False)
    mass, fv = (rng.permutation(len(grid)) / len(grid) for _ in range(2))
    limit = 1 - (n_of_kind + 0.5) / len(grid)
    return pd.concat([
        grid.assign(score=INDUCTION, value=mass, task=""), grid.assign(score="fv", value=fv, task="t"),
        grid.assign(score="induction_prefix_matching", value=np.where(mass > limit, 0.9, 0.1), task=""),
        grid.assign(score="fv_null", value=limit, task="draw 0")], ignore_index=True)


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
    of_kind = torch.stack(list(heads_of_kind(table).values())).any(0)
    conditions = ablation_conditions(table, fractions=[0.05, 0.1], **SETTINGS | {"n_draws": 9, "seed": seed})
    for fraction in (0.05, 0.1):
        at = pick(conditions, fraction=fraction)
        sets = torch.stack([c.heads for c in at if c.ranking in ("fv", "induction")]).any(0)
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
    assert torch.stack([c.heads for c in drawn]).any(0).all()


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
        effects_table([m], name="m", step=1, seed=0)


def test_random_draws_are_nested_over_fractions_and_differ_between_draws():
    for random_from in ("neither", "all"):
        settings = SETTINGS | {"random_from": random_from}
        conditions = ablation_conditions(scores(8, 12), fractions=[0.02, 0.05, 0.2], **settings)
        for draw in range(2):
            sets = [c.heads for c in pick(conditions, ranking="random", draw=draw)]
            assert len(sets) == 3
            taken = torch.stack([c.heads for c in conditions if c.ranking in ("fv", "induction")]).any(0)
            taken &= random_from == "neither"  # a head that a larger set takes is no random head there
            assert all(not (small & ~large & ~taken).any() for small, large in itertools.pairwise(sets))
        first, second = pick(conditions, ranking="random", fraction=0.2)
        assert not torch.equal(first.heads, second.heads)
        again = ablation_conditions(scores(8, 12), fractions=[0.2], **settings)
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
        "rounding 'half' is unknown": {"fractions": [0.5], "rounding": "half"},
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


def made_up(effect_fv, effect_induction, n_draws=20, seed=0):
    rng = np.random.default_rng(seed)
    none = torch.zeros(2, 2, dtype=torch.bool)
    one, other = none.clone(), none.clone()
    one[0, 0] = other[0, 1] = True
    conditions = [Condition("none", "", "", 0.0, 0, none)]
    tasks = np.repeat([f"t{i}" for i in range(8)], 10)
    clean = rng.normal(size=len(tasks))
    values = [clean]
    for kind, effect in (("induction", effect_induction), ("fv", effect_fv)):
        conditions.append(Condition(kind, "", "", 0.1, 0, one))
        values.append(clean - effect + 0.1 * rng.normal(size=len(tasks)))
        for draw in range(n_draws):
            conditions.append(Condition("random_layer_matched", "", kind, 0.1, draw, other))
            values.append(clean + 0.1 * rng.normal(size=len(tasks)))
    return Measurement("first_token_accuracy", "mean", "all", conditions, tasks, np.stack(values))


def test_effects_find_what_was_put_in_and_are_paired():
    every = effects_table([made_up(0.5, 0.0)], name="m", step=1, seed=0)
    effects = corrected(every).set_index("ranking")
    assert effects.loc["fv", "value"] == pytest.approx(0.5, abs=0.05)
    assert effects.loc["fv", "low"] > 0.4  # prompts differ by 1, so only a paired interval is this narrow
    assert effects.loc["induction", "low"] < 0 < effects.loc["induction", "high"]
    assert effects.loc[DIFFERENCE, "value"] == pytest.approx(0.5, abs=0.05)
    adjusted = with_holm(effects.reset_index())
    assert set(adjusted["ranking"]) == {"fv", "induction"} and (adjusted["p_holm"] >= adjusted["p_value"]).all()
    assert adjusted.set_index("ranking").loc["fv", "p_holm"] < 0.001
    plain = effects.reset_index()
    assert len(at_fraction(plain, 0.3)) == 3
    same = pd.concat([plain, plain.assign(excluded="top 0.05 fv")])
    assert len(at_fraction(same, 0.3)) == 3  # exclusion changes no set
    other = pd.concat([plain, plain.assign(excluded="top 0.05 fv", value=plain["value"] + 1)])
    assert len(at_fraction(other, 0.3)) == 6
    assert len(at_fraction(every, 0.3)) == 6 and set(every["control"]) == {"none", "random_layer_matched"}


def plain_loss(m, ranking, control):
    """By hand: mean over tasks of the mean over draws and prompts, control less treated."""
    kinds = [c.matched if c.ranking.startswith("random_") else c.ranking for c in m.conditions]
    of_control = {"none": lambda c, kind: c.ranking == "none", "random": lambda c, kind: c.ranking == "random",
                  "random_layer_matched": lambda c, kind: c.ranking == control and kind == ranking}[control]
    draws = [m.values[i] for i, kind in enumerate(kinds) if of_control(m.conditions[i], kind)]
    treated = m.values[[c.ranking for c in m.conditions].index(ranking)]
    return pd.Series(np.mean(draws, axis=0) - treated).groupby(m.tasks).mean().mean()


@pytest.mark.parametrize("n_others", [1, 3, 8, 20])
def test_effects_against_every_control_are_what_plain_means_say(n_others):
    m = made_up(0.5, 0.2)
    keep = [i for i, c in enumerate(m.conditions) if c.matched != "induction" or c.draw < n_others]
    conditions, values = [m.conditions[i] for i in keep], m.values[keep]
    other = torch.tensor([[False, False], [True, False]])
    rng = np.random.default_rng(1)
    for draw in range(5):
        conditions.append(Condition("random", OF_EITHER_KIND, "", 0.1, draw, other))
        values = np.vstack([values, m.values[0] - 0.1 + 0.1 * rng.normal(size=m.values.shape[1])])
    m = dataclasses.replace(m, conditions=conditions, values=values)
    effects = effects_table([m], name="m", step=1, seed=0).set_index(["control", "ranking"])
    assert len(effects) == 9
    for control in CONTROLS:
        for kind in ("fv", "induction"):
            assert effects.loc[(control, kind), "value"] == pytest.approx(plain_loss(m, kind, control))
        gap = effects.loc[(control, "fv"), "value"] - effects.loc[(control, "induction"), "value"]
        assert effects.loc[(control, DIFFERENCE), "value"] == pytest.approx(gap)
    assert effects.loc[("none", "fv"), "value"] == pytest.approx(0.5, abs=0.05)
    assert effects.loc[("random", "fv"), "value"] == pytest.approx(0.4, abs=0.05)
    n_draws = effects["n_draws"].unstack()
    assert n_draws.loc["none"].eq(0).all() and n_draws.loc["random"].eq(5).all()
    assert n_draws.loc["random_layer_matched"].to_dict() == {"fv": 20, "induction": n_others, DIFFERENCE: 20}


def test_fewer_draws_of_one_kind_leave_the_difference_as_uncertain_as_they_are():
    def width(n_others, seed):
        m = made_up(0.5, 0.2)
        keep = [i for i, c in enumerate(m.conditions) if c.matched != "induction" or c.draw < n_others]
        conditions, values = [m.conditions[i] for i in keep], m.values[keep]
        shift = np.random.default_rng(seed).normal(size=len(keep))
        moved = [c.matched == "induction" for c in conditions]
        values = values + np.where(moved, shift, 0)[:, None]
        m = dataclasses.replace(m, conditions=conditions, values=values)
        rows = corrected(effects_table([m], name="m", step=1, seed=0)).set_index("ranking")
        return (rows["high"] - rows["low"])[[DIFFERENCE, "induction"]].to_numpy()

    for n_others in (3, 6, 13, 20):  # draws of the induction heads' control differ most: theirs is the uncertainty
        gap, own = np.mean([width(n_others, seed) for seed in range(4)], axis=0)
        assert gap == pytest.approx(own, rel=0.25)


def test_where_there_is_no_control_there_is_no_effect_beyond_it():
    m = made_up(0.5, 0.0, n_draws=0)
    effects = effects_table([m], name="m", step=1, seed=0)
    assert set(effects["control"]) == {"none"} and len(effects) == 3 and corrected(effects).empty
    one_sided = made_up(0.5, 0.0)
    keep = [i for i, c in enumerate(one_sided.conditions) if c.matched != "fv"]
    m = dataclasses.replace(m, conditions=[one_sided.conditions[i] for i in keep], values=one_sided.values[keep])
    assert corrected(effects_table([m], name="m", step=1, seed=0))["ranking"].tolist() == ["induction"]


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
    sets = set_table(conditions, table)
    assert len(sets) == 4 and sets["overlap"].between(0, 1).all()
    plain = sets[~sets["excluded"]].set_index("fraction")
    assert plain.loc[0.5, "fv_after_fv"] == pytest.approx(0.25)  # the lower half remains
    assert (sets[sets["excluded"]]["fv_after_induction"].to_numpy() >= plain["fv_after_induction"].to_numpy()).all()
